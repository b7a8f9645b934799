package engine

import (
	"net/netip"
	"testing"
	"unsafe"

	"postern/esp"
)

// What a packet touches of an SA is what a packet costs with many SAs.
func TestPacketsTouchFewCacheLinesOfAnSA(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) != 8 {
		t.Skip("the layout is for 64-bit machines")
	}
	var in inSA
	var out outSA
	if end := unsafe.Offsetof(in.localTS); end > 64 {
		t.Errorf("what a packet needs of an inbound SA ends at octet %d, behind the first cache line", end)
	}
	if end := unsafe.Offsetof(out.spi); end > 64 {
		t.Errorf("what a packet needs of an outbound SA ends at octet %d, behind the first cache line", end)
	}
	for what, size := range map[string]uintptr{"inSA": unsafe.Sizeof(in), "outSA": unsafe.Sizeof(out)} {
		if size&(size-1) != 0 && size != 192 && size != 320 {
			t.Errorf("an %s has %d octets: the allocator has no such class that is aligned to a line", what, size)
		}
	}
}

// The short form of selectors holds exactly the flows that the selectors match, where there
// is one.
func TestNetPairHoldsWhatTheSelectorsMatch(t *testing.T) {
	sels := []esp.Selector{}
	for _, p := range []string{"0.0.0.0/0", "10.1.0.0/24", "10.1.0.7/32", "255.255.255.255/32", "fd01::/64"} {
		s := esp.SelectorFromPrefix(netip.MustParsePrefix(p))
		sels = append(sels, s)
		s.Proto = 17
		sels = append(sels, s)
		s.StartPort, s.EndPort = 5, 9
		sels = append(sels, s)
	}
	r := esp.SelectorFromPrefix(netip.MustParsePrefix("10.1.0.0/24"))
	r.Start, r.End = netip.MustParseAddr("10.1.0.3"), netip.MustParseAddr("10.1.0.9")
	sels = append(sels, r)
	r.EndPort, r.StartPort = 0, 65535
	sels = append(sels, r)
	var addrs []netip.Addr
	for _, a := range []string{"0.0.0.0", "10.0.255.255", "10.1.0.0", "10.1.0.2", "10.1.0.3", "10.1.0.7", "10.1.0.9", "10.1.0.10", "10.1.0.255", "10.1.1.0", "255.255.255.255", "fd01::1", "::ffff:10.1.0.7"} {
		addrs = append(addrs, netip.MustParseAddr(a))
	}
	held := 0
	for _, l := range sels {
		for _, r := range sels {
			ls, rs := []esp.Selector{l}, []esp.Selector{r}
			p := netPairOf(ls, rs)
			for _, la := range addrs {
				for _, ra := range addrs {
					for _, f := range []esp.Flow{{Proto: 17, LocalPort: 5, RemotePort: 9}, {Proto: 6, LocalPort: 65535}, {Proto: 17, NoPorts: true}} {
						f.Local, f.Remote = la, ra
						has, match := p.has(&f), esp.MatchFlow(ls, rs, &f)
						if has && !match || p.holds && has != match {
							t.Fatalf("%v === %v: %+v is held %v by the short form, and matched %v", l, r, f, has, match)
						}
						if has {
							held++
						}
					}
				}
			}
		}
	}
	if held == 0 {
		t.Error("no flow was held: the short form is never used")
	}
	two := []esp.Selector{sels[0], sels[3]}
	if netPairOf(two, sels[:1]).holds || netPairOf(sels[:1], two).holds || netPairOf(nil, sels[:1]).holds {
		t.Error("several selectors at one end have a short form")
	}
}
