package engine

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"postern/board"
	"postern/engine/control"
	"postern/esp"
)

// TestRekeyingAndReloadingUnderTrafficLoseNothing sends a numbered stream in both
// directions while the CHILD SA and the IKE SA are rekeyed and the configuration is
// reloaded again and again.
func TestRekeyingAndReloadingUnderTrafficLoseNothing(t *testing.T) {
	wire := &fakeWire{}
	text := fmt.Sprintf(confA, "encap = true", "aes128gcm16", "trap")
	a := startEngine(t, wire.host("192.0.2.1"), parse(t, text), board.Small)
	b := startEngine(t, wire.host("192.0.2.2"), parse(t, confB), board.Small)
	if resp, _ := a.command(control.CmdInitiate, "child", "net"); resp != `success="yes"` {
		t.Fatalf("initiate: %s", resp)
	}
	const rounds = 8
	stop, sent := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		defer func() { sent <- n }()
		for {
			select {
			case <-stop:
				return
			default:
			}
			// No more on the way than the fake wire holds: it drops what is too much.
			if n-min(a.host.tun.count(), b.host.tun.count()) > 200 {
				time.Sleep(100 * time.Microsecond)
				continue
			}
			there, back := udp4(srcHost, dstHost, 1, 502, 80), udp4(dstHost, srcHost, 502, 1, 80)
			binary.BigEndian.PutUint32(there[28:], uint32(n))
			binary.BigEndian.PutUint32(back[28:], uint32(n))
			a.host.tun.in <- there
			b.host.tun.in <- back
			n++
			time.Sleep(20 * time.Microsecond)
		}
	}()
	for round := range rounds {
		want := fmt.Sprintf("net-%d{", round+2)
		cmd := []string{"child", "net"}
		by := []*running{a, b}[round%2]
		if resp, _ := by.command(control.CmdRekey, cmd...); !strings.Contains(resp, `success="yes"`) {
			t.Errorf("rekey: %s", resp)
		}
		eventually(t, "rekeyed", func() bool {
			_, sas := a.command(control.CmdListSAs)
			return len(sas) == 1 && strings.Contains(sas[0], want)
		})
		if round == rounds/2 {
			if resp, _ := a.command(control.CmdRekey, "ike", "plant"); !strings.Contains(resp, `success="yes"`) {
				t.Errorf("rekey of the IKE SA: %s", resp)
			}
			eventually(t, "the IKE SA was rekeyed", func() bool {
				_, sas := a.command(control.CmdListSAs)
				return len(sas) == 1 && strings.Contains(sas[0], `plant{uniqueid="2"`)
			})
		}
		if err := a.Reload(parse(t, text)); err != nil {
			t.Errorf("Reload: %v", err)
		}
		time.Sleep(2 * time.Millisecond)
	}
	close(stop)
	n := <-sent
	defer func() {
		for _, end := range []*running{a, b} {
			for _, c := range end.Counters() {
				if t.Failed() && c.Value != 0 {
					t.Logf("%s %s = %d", end.host.addr, c.Name, c.Value)
				}
			}
		}
	}()
	for _, end := range []*running{a, b} {
		eventually(t, fmt.Sprintf("all %d packets arrived at %s", n, end.host.addr), func() bool { return len(end.host.tun.packets()) == n })
		last := -1
		for _, p := range end.host.tun.packets() {
			if i := int(binary.BigEndian.Uint32(p[28:])); i <= last {
				t.Fatalf("at %s packet %d arrived after packet %d", end.host.addr, i, last)
			} else {
				last = i
			}
		}
	}
	if n < rounds*10 {
		t.Errorf("only %d packets were sent: the test has tested little", n)
	}
}

// FuzzInbound feeds arbitrary datagrams to each socket's reader: nothing that was not
// sealed under an SA may reach the TUN device.
func FuzzInbound(f *testing.F) {
	tp := newTestPath(f, board.Tiny)
	tp.spd.set([]policySpec{protect("c", "n", "10.1.0.0/16", "10.2.0.0/16")})
	in, _ := tp.addLoop(f, testSuites[0], true, "c", "n", "10.1.0.0/16", "10.2.0.0/16", true)
	tp.send(udp4(srcHost, dstHost, 1, 2, 100))
	sealed := tp.fakes[sockNATT4].datagrams()[0].Buf
	f.Add(uint8(sockNATT4), append(append([]byte(nil), sealed[:20]...), make([]byte, 80)...))
	f.Add(uint8(sockNATT4), sealed[:12])
	f.Add(uint8(sockESP6), binary.BigEndian.AppendUint32(nil, in.spi))
	f.Add(uint8(sockNATT6), make([]byte, 40))
	f.Add(uint8(sockIKE4), []byte{0xff})
	f.Fuzz(func(t *testing.T, sock uint8, b []byte) {
		s := sockID(sock) % numSocks
		b = b[:min(len(b), len(tp.in[s].bufs[0]))]
		tp.receive(s, esp.Datagram{Buf: b, N: len(b)})
		if tp.tun.wrote != 0 && string(b) != string(sealed) {
			t.Fatalf("%d octets that nobody sealed reached the TUN device through %s", len(b), s)
		}
		tp.tun.wrote = 0
		d := ikeDatagram{buf: make([]byte, minUDPBuffer)}
		for tp.ikeq.pop(&d) {
		}
	})
}
