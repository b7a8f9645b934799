package demo

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"postern/engine/config"
	"postern/ike"
)

// ipv4 builds a packet with the payload behind a header of that protocol.
func ipv4(proto byte, payload ...byte) []byte {
	p := make([]byte, 20, 20+len(payload))
	p[0], p[9] = 0x45, proto
	copy(p[12:], []byte{10, 1, 0, 10, 10, 2, 0, 10})
	return append(p, payload...)
}

func ports(from, to uint16, payload ...byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, from)
	return append(binary.BigEndian.AppendUint16(b, to), payload...)
}

func TestCaptureTellsClearTextFromESPAndIKE(t *testing.T) {
	udp := func(from, to uint16, payload ...byte) []byte {
		return ipv4(protoUDP, append(ports(from, to, 0, 0, 0, 0), payload...)...)
	}
	data := make([]byte, 40)
	data[0] = 1 // an SPI, not a marker of zeros
	v6 := make([]byte, 48)
	v6[6] = protoICMPv6
	hop := make([]byte, 56)
	hop[40] = protoICMPv6
	fragment := ipv4(protoTCP, ports(502, 502)...)
	binary.BigEndian.PutUint16(fragment[6:], 10)
	for _, tc := range []struct {
		name  string
		typ   uint16
		p     []byte
		want  tally
		clear bool
	}{
		{"ARP", etherARP, make([]byte, 28), tally{Neighbour: 1}, false},
		{"neighbour discovery", etherIPv6, v6, tally{Neighbour: 1}, false},
		{"listener report", etherIPv6, hop, tally{Neighbour: 1}, false},
		{"ESP", etherIPv4, ipv4(protoESP, data...), tally{ESP: 1}, false},
		{"IKE", etherIPv4, udp(500, 500, data...), tally{IKE: 1}, false},
		{"IKE behind the marker", etherIPv4, udp(4500, 4500, make([]byte, 32)...), tally{IKE: 1}, false},
		{"keepalive", etherIPv4, udp(4500, 4500, 0xff), tally{IKE: 1}, false},
		{"ESP in UDP", etherIPv4, udp(4500, 4500, data...), tally{ESP: 1}, false},
		{"Modbus request", etherIPv4, ipv4(protoTCP, ports(40000, 502)...), tally{Modbus: 1}, true},
		{"Modbus response", etherIPv4, ipv4(protoTCP, ports(502, 40000)...), tally{Modbus: 1}, true},
		{"readable registers in a response", etherIPv4, ipv4(protoTCP, ports(502, 40000, marker...)...), tally{Modbus: 1, Marked: 1}, true},
		{"readable registers in ESP", etherIPv4, ipv4(protoESP, marker...), tally{ESP: 1, Marked: 1}, true},
		{"TCP", etherIPv4, ipv4(protoTCP, ports(1, 2)...), tally{Other: 1}, true},
		{"a fragment", etherIPv4, fragment, tally{Other: 1}, true},
		{"DNS", etherIPv4, udp(40000, 53), tally{Other: 1}, true},
		{"IPv6 TCP", etherIPv6, make([]byte, 60), tally{Other: 1}, true},
		{"a short packet", etherIPv4, make([]byte, 19), tally{Other: 1}, true},
		{"a header longer than the packet", etherIPv4, append([]byte{0x4f}, make([]byte, 30)...), tally{Other: 1}, true},
		{"VLAN", 0x8100, make([]byte, 60), tally{Other: 1}, true},
	} {
		var got tally
		got.add(tc.typ, tc.p)
		if got.clear() != tc.clear || tc.clear == (got.First == "") {
			t.Errorf("%s: clear text %v, described as %q", tc.name, got.clear(), got.First)
		}
		got.First = ""
		if got != tc.want {
			t.Errorf("%s is counted as %+v, want %+v", tc.name, got, tc.want)
		}
	}
}

// good are results that show a tunnel that works.
func good() results {
	return results{
		Status:    "postern 1, running for 5 seconds; 1 connection, 1 up, 1 tunnel\n\n" + strings.Repeat(strings.Repeat("x", 80)+"\n", 12),
		Handshake: 2 * time.Millisecond, Rekey: 12345 * time.Microsecond, OldSPI: "c1234567", NewSPI: "cabcdef0",
		Polls: polls{Sent: 1000, Good: 1000, Writes: 100, Slowest: 1999 * time.Millisecond},
		Wan:   tally{ESP: 2100, IKE: 8, Neighbour: 20}, Lan: tally{Modbus: 2100, Marked: 1000, Neighbour: 4},
		Octets: 1e9, Stream: 2 * time.Second, Resident: [2]uint64{9e6, 10e6}, Took: 7 * time.Second,
	}
}

func TestSummaryFitsOnOneScreen(t *testing.T) {
	r := good()
	if err := r.judge(); err != nil {
		t.Fatalf("results that are good are refused: %v", err)
	}
	s := r.screen()
	lines := strings.Split(strings.TrimSuffix(s, "\n"), "\n")
	if len(lines) > 24 {
		t.Errorf("the summary has %d lines, a screen has 24:\n%s", len(lines), s)
	}
	for _, l := range lines {
		if len(l) > 80 {
			t.Errorf("a line has %d characters, a screen 80: %q", len(l), l)
		}
	}
	for _, want := range []string{"4000 Mbit/s", "1000 of 1000 polls", "2100 ESP, 8 IKE", "9.0 MB and 10.0 MB", "12.3 ms"} {
		if !strings.Contains(s, want) {
			t.Errorf("the summary lacks %q:\n%s", want, s)
		}
	}
}

func TestJudgeRefusesWhatATunnelMustNotDo(t *testing.T) {
	for name, spoil := range map[string]func(*results){
		"a failed poll":                        func(r *results) { r.Polls.Err = errors.New("reset") },
		"a poll without answer":                func(r *results) { r.Polls.Good-- },
		"no poll":                              func(r *results) { r.Polls = polls{} },
		"Modbus on the WAN":                    func(r *results) { r.Wan.Modbus = 1 },
		"registers on the WAN":                 func(r *results) { r.Wan.Marked = 1 },
		"other things on the WAN":              func(r *results) { r.Wan.Other = 1 },
		"a capture that sees no Modbus inside": func(r *results) { r.Lan.Modbus = 0 },
		"a capture that cannot read registers": func(r *results) { r.Lan.Marked = 0 },
		"no ESP":                               func(r *results) { r.Wan.ESP = 0 },
		"no rekeying on the WAN":               func(r *results) { r.Wan.IKE = 4 },
		"polls that went another way":          func(r *results) { r.Wan.ESP = 1999 },
	} {
		r := good()
		spoil(&r)
		if r.judge() == nil {
			t.Errorf("%s passes for a tunnel that works", name)
		}
	}
}

func TestConfigurationsOfBothGatewaysAreGood(t *testing.T) {
	text := configText("/run/a.sock", "0sAAAAAAAAAAAAAAAAAAAAAAAAAAA=", gatewayAWAN, gatewayBWAN, controlNet, plantNet, "a.example", "b.example")
	cfg, err := config.Parse("a.toml", []byte(text), ike.AESFirst)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if len(cfg.Warnings()) > 0 || cfg.Daemon.Control != "/run/a.sock" || cfg.IKE.Conns[0].Children[0].Name != childName {
		t.Errorf("warnings %v, or another configuration than was meant:\n%s", cfg.Warnings(), text)
	}
}

func TestPollerCountsWhatItDid(t *testing.T) {
	server := NewRegisters(numRegisters)
	copy(server.regs, markerValues())
	ours, theirs := net.Pipe()
	go server.serve(theirs)
	p := newPoller(NewModbus(ours, 5*time.Second))
	for end := time.Now().Add(10 * time.Second); p.now().Sent < 25 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if r := p.end(); r.Sent < 25 || r.Good != r.Sent || r.Writes != (r.Sent+9)/10 || r.Err != nil || r.Slowest == 0 {
		t.Errorf("polls of a server that answers: %+v", r)
	}
	if server.regs[firstCommand+1] != 11 && server.regs[firstCommand+1] != 31 {
		t.Errorf("the writes did not arrive: register %d holds %d", firstCommand+1, server.regs[firstCommand+1])
	}
	_ = ours.Close()
}

func TestPollerNoticesWrongAndMissingAnswers(t *testing.T) {
	for name, spoil := range map[string]func(s *Registers, c net.Conn){
		"wrong": func(s *Registers, _ net.Conn) {
			s.mu.Lock()
			s.regs[3]++
			s.mu.Unlock()
		},
		"missing": func(_ *Registers, c net.Conn) { _ = c.Close() },
	} {
		server := NewRegisters(numRegisters)
		copy(server.regs, markerValues())
		ours, theirs := net.Pipe()
		go server.serve(theirs)
		p := newPoller(NewModbus(ours, 5*time.Second))
		time.Sleep(5 * pollEvery)
		spoil(server, theirs)
		for end := time.Now().Add(10 * time.Second); p.now().Err == nil && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		if r := p.end(); r.Err == nil || r.Good != r.Sent-1 {
			t.Errorf("a %s answer: %+v, want one poll lost", name, r)
		}
	}
}

// frames is a capture of fixed frames.
type frames struct {
	list [][]byte
	lost int
	read chan struct{} // closed when all were read
	done chan struct{}
}

func (f *frames) Next(buf []byte) (uint16, int, error) {
	if len(f.list) == 0 {
		close(f.read)
		<-f.done
		return 0, 0, os.ErrClosed
	}
	n := copy(buf, f.list[0])
	f.list = f.list[1:]
	return etherIPv4, n, nil
}

func (f *frames) Lost() (int, error) { return f.lost, nil }

func (f *frames) Close() error {
	close(f.done)
	return nil
}

func TestCaptureThatMissedFramesProvesNothing(t *testing.T) {
	f := &frames{list: [][]byte{ipv4(protoESP), ipv4(protoESP)}, read: make(chan struct{}), done: make(chan struct{})}
	w := newWatch(f)
	<-f.read
	if seen, err := w.end(); err != nil || seen.ESP != 2 {
		t.Errorf("a capture of two frames: %+v, %v", seen, err)
	}
	w = newWatch(&frames{lost: 1, read: make(chan struct{}), done: make(chan struct{})})
	if _, err := w.end(); err == nil {
		t.Error("a capture that missed a frame is taken for proof")
	}
}

func TestAddressesOfTheSite(t *testing.T) {
	if a := at(netip.MustParsePrefix("192.0.2.0/24"), 7); a.String() != "192.0.2.7/24" {
		t.Errorf("host 7 is %s", a)
	}
	for _, p := range []netip.Prefix{controlRoom, gatewayALAN, gatewayAWAN, routerA, routerB, gatewayBWAN, gatewayBLAN, plant} {
		in := 0
		for _, n := range []netip.Prefix{controlNet, plantNet, wanA, wanB} {
			if n.Contains(p.Addr()) {
				in++
			}
		}
		if in != 1 {
			t.Errorf("%s is in %d networks of the site, want 1", p, in)
		}
	}
}
