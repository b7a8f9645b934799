package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"

	"postern/board"
	"postern/engine/config"
	"postern/engine/control"
	"postern/esp"
)

// The whole way: a router speaks through the ICMP socket, a link changes, a reload changes headers
// and MTU, and the SA lives on.
func TestEngineFollowsPathsLinksAndConfiguration(t *testing.T) {
	wire := &fakeWire{}
	text := fmt.Sprintf(confA, "encap = true", "aes128gcm16", "trap")
	h := wire.host("192.0.2.1")
	system := h.os()
	icmp := newFakeSocket()
	var mu sync.Mutex
	var set []int
	link := 1500
	system.ListenICMP = func(v6 bool) (Socket, error) {
		if v6 {
			return nil, syscall.EPERM
		}
		return icmp, nil
	}
	system.LinkMTU = func(to netip.Addr) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		if to != netip.MustParseAddr("192.0.2.2") {
			return 0, errors.New("no route")
		}
		return link, nil
	}
	system.SetMTU = func(device string, mtu int) error {
		mu.Lock()
		defer mu.Unlock()
		set = append(set, mtu)
		return nil
	}
	was := func() string {
		mu.Lock()
		defer mu.Unlock()
		return fmt.Sprint(set)
	}
	a := startEngineOn(t, h, system, parse(t, text), board.Tiny)
	b := startEngine(t, wire.host("192.0.2.2"), parse(t, confB), board.Tiny)
	a.command(control.CmdInitiate, "child", "net")
	var sa *outSA
	path := func() outerPath {
		var p outerPath
		if err := a.loop.do(func() {
			for i := range a.d.sad.slots {
				if o := a.d.sad.slots[i].out; o != nil {
					sa, p = o, *o.path.Load()
				}
			}
		}); err != nil {
			t.Fatal(err)
		}
		return p
	}
	eventually(t, "the tunnel is up", func() bool { return path().mtu == 1500 })
	if strings.Count(strings.Join(a.log.all(), "\n"), "no raw socket for ICMP") != 1 {
		t.Error("the log does not say once that one family has no socket for ICMP")
	}
	first := sa

	quoted := udp4("192.0.2.1", "192.0.2.2", 4500, 4500, 60)
	binary.BigEndian.PutUint32(quoted[28:], sa.spi)
	msg := append([]byte{3, 4, 0, 0, 0, 0, 1300 >> 8, 1300 & 255}, quoted...)
	binary.BigEndian.PutUint16(msg[2:], checksum(msg))
	icmp.in <- esp.Datagram{Buf: msg, N: len(msg), Remote: netip.MustParseAddrPort("198.51.100.9:0")}
	eventually(t, "the path is learned", func() bool { return path().mtu == 1300 })
	if got := was(); got != "[1280]" {
		t.Errorf("the MTU of the device was set to %s, want 1280", got)
	}

	mu.Lock()
	link = 1290
	mu.Unlock()
	h.mu.Lock()
	for _, w := range h.watches {
		w.changes <- nil
	}
	h.mu.Unlock()
	eventually(t, "the link is followed", func() bool { return path().mtu == 1290 })

	more := strings.Replace(text, "start_action", "hop_limit = 77\nmss = 900\ncopy_ecn = false\nstart_action", 1)
	if err := a.Reload(parse(t, "[daemon]\nmtu = 1333\n"+more)); err != nil {
		t.Fatalf("Reload: %v", err)
	}
	if p := path(); p.headers.HopLimit != 77 || p.bits&mssBits != 900 || p.mtu != 1290 || !p.odd || sa != first {
		t.Errorf("after the reload the SA has %+v, the same: %v; want hop limit 77 and MSS 900", p, sa == first)
	}
	if got := was(); got != "[1280 1333]" {
		t.Errorf("the MTU of the device was set to %s, want 1333 at last", got)
	}
	if strings.Contains(strings.Join(a.log.all(), "\n"), "after a restart only") {
		t.Error("the log says that a restart is needed")
	}
	a.host.tun.in <- udp4(srcHost, dstHost, 1, 2, 100)
	eventually(t, "the tunnel carries packets after all that", func() bool { return len(b.host.tun.packets()) == 1 })

	// What the configuration does not have any more keeps what it had.
	if err := a.loop.do(func() {
		a.loop.links.cfg = &config.Config{}
		a.loop.fitAll()
	}); err != nil {
		t.Fatal(err)
	}
	if p := path(); p.headers.HopLimit != 77 {
		t.Errorf("an SA of a former configuration has the hop limit %d, want 77", p.headers.HopLimit)
	}
}

// Whatever is announced, the path stays within what is known and what every path has, and the MSS
// within the path; what was learned never outnumbers the SAs.
func TestPathsStayWithinTheirBounds(t *testing.T) {
	tl, sa := narrowLoop(t, "", 1500)
	r := testRandom(3)
	last := 1500
	for range 2000 {
		var b [4]byte
		r(b[:])
		m := shown(int(binary.BigEndian.Uint16(b[:])))
		m.Len = int(binary.BigEndian.Uint16(b[2:]))
		if b[3]&7 == 0 {
			m.MTU = 0
		}
		tl.tooBig(m)
		p := sa.path.Load()
		if int(p.mtu) > last || p.mtu < leastPath4 || int(p.most) >= int(p.mtu) || int(p.bits&mssBits)+40 > int(p.most) {
			t.Fatalf("after %d the path has %d octets, %d inside and an MSS of %d", m.MTU, p.mtu, p.most, p.bits&mssBits)
		}
		if last = int(p.mtu); len(tl.links.learned) > len(tl.sad.slots) {
			t.Fatalf("%d paths were learned", len(tl.links.learned))
		}
	}
	if last != leastPath4 {
		t.Errorf("the path ends at %d, want %d", last, leastPath4)
	}
}

// IPv6 has a least MTU: what is below it is no news (RFC 8201 section 4).
func TestIPv6PathsKeepTheirLeast(t *testing.T) {
	tl, _ := narrowLoop(t, "", 1500)
	in, out := tl.child(t, 2, false)
	for _, s := range []*esp.SA{&in.Add.SA, &out.Add.SA} {
		s.Local, s.Remote = netip.MustParseAddrPort("[2001:db8:f::1]:4500"), netip.MustParseAddrPort("[2001:db8:f::2]:4500")
	}
	tl.outputs(in, out)
	sa := tl.sad.findOut(0x1002, 0).out
	for _, c := range []struct{ told, want int }{{1279, 1500}, {0, 1500}, {1280, 1280}, {1200, 1280}} {
		tl.tooBig(esp.TooBig{MTU: c.told, Len: 1500, SPI: 0x1002,
			Local: netip.MustParseAddrPort("[2001:db8:f::1]:4500"), Remote: netip.MustParseAddrPort("[2001:db8:f::2]:4500")})
		if got := int(sa.path.Load().mtu); got != c.want {
			t.Errorf("told of %d octets the path has %d, want %d", c.told, got, c.want)
		}
	}
}
