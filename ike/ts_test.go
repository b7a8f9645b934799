package ike

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"postern/esp"
)

// selector reads "10.1.0.0/24" or "10.1.0.1-10.1.0.9", then optionally " proto start end".
func selector(t testing.TB, addrs string, rest ...uint16) esp.Selector {
	t.Helper()
	var s esp.Selector
	if from, to, ok := strings.Cut(addrs, "-"); ok {
		s = esp.Selector{EndPort: 65535, Start: netip.MustParseAddr(from), End: netip.MustParseAddr(to)}
	} else {
		s = esp.SelectorFromPrefix(netip.MustParsePrefix(addrs))
	}
	if len(rest) > 0 {
		s.Proto = uint8(rest[0])
	}
	if len(rest) > 1 {
		s.StartPort, s.EndPort = rest[1], rest[2]
	}
	return s
}

// manySelectors returns n hosts, of which no two touch.
func manySelectors(n int) []esp.Selector {
	var list []esp.Selector
	for i := range n {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1})
		list = append(list, esp.Selector{EndPort: 65535, Start: a, End: a})
	}
	return list
}

var emptySelector = []esp.Selector{{EndPort: 65535}}

func TestSelectorsOnTheWire(t *testing.T) {
	b := NewBuilder(nil, Header{})
	list := []esp.Selector{
		selector(t, "10.1.0.0/24"),
		selector(t, "10.1.0.5-10.1.0.9", 6, 502, 502),
		selector(t, "2001:db8::/64", 17, 65535, 0),
		selector(t, "::ffff:1.2.3.4-::ffff:1.2.3.9"),
		selector(t, "0.0.0.0/0", 1, 0x0800, 0x08FF),
	}
	b.TS(PayloadTSr, list)
	got := b.Finish()[headerLen+payloadHdr:]
	want := octets(t, "05000000"+
		"07000010"+"0000ffff"+"0a010000"+"0a0100ff"+
		"07060010"+"01f601f6"+"0a010005"+"0a010009"+
		"08110028"+"ffff0000"+"20010db8000000000000000000000000"+"20010db800000000ffffffffffffffff"+
		"08000028"+"0000ffff"+"00000000000000000000ffff01020304"+"00000000000000000000ffff01020309"+
		"07010010"+"080008ff"+"00000000"+"ffffffff")
	if !bytes.Equal(got, want) {
		t.Fatalf("got  %x\nwant %x", got, want)
	}
	back, err := ParseTS(got)
	if err != nil || !slices.Equal(back, list) {
		t.Errorf("read back: %v, %v; want %v", back, err, list)
	}
}

func TestUnknownSelectorTypesAreSkipped(t *testing.T) {
	host := "07000010" + "0000ffff" + "0a010001" + "0a010001"
	list, err := ParseTS(octets(t, "03000000"+"0a000008deadbeef"+host+"09000004"))
	if err != nil || len(list) != 1 || list[0].String() != "10.1.0.1/32" {
		t.Errorf("%v, %v; want the IPv4 selector between two of other types", list, err)
	}
	list, err = ParseTS(octets(t, "01000000"+"0a000008deadbeef"))
	if err != nil || len(list) != 0 {
		t.Errorf("%v, %v; want no selector and no error", list, err)
	}
}

func TestMalformedSelectorsAreRefused(t *testing.T) {
	for what, s := range map[string]string{
		"nothing":                                "",
		"a header that is cut":                   "010000",
		"no selector":                            "00000000",
		"a count above what is there":            "02000000" + "07000010" + "0000ffff" + "0a010001" + "0a010001",
		"a count below what is there":            "01000000" + "07000010" + "0000ffff" + "0a010001" + "0a010001" + "00",
		"a length of 3":                          "01000000" + "07000003",
		"a length of 0":                          "01000000" + "0a000000",
		"an IPv4 range one octet too short":      "01000000" + "0700000f" + "0000ffff" + "0a010001" + "0a0100",
		"an IPv4 range one octet too long":       "01000000" + "07000011" + "0000ffff" + "0a010001" + "0a010001" + "00",
		"an IPv6 type with an IPv4 range":        "01000000" + "08000010" + "0000ffff" + "0a010001" + "0a010001",
		"a length past the end":                  "01000000" + "07000010" + "0000ffff" + "0a010001" + "0a0100",
		"addresses that end before they start":   "01000000" + "07000010" + "0000ffff" + "0a010002" + "0a010001",
		"ports that end before they start":       "01000000" + "07060010" + "00510050" + "0a010001" + "0a010001",
		"ports 65535 to 1, which are not OPAQUE": "01000000" + "07060010" + "ffff0001" + "0a010001" + "0a010001",
	} {
		if list, err := ParseTS(octets(t, s)); !errors.Is(err, ErrSyntax) {
			t.Errorf("%s: %v, %v; want a syntax error", what, list, err)
		}
	}
}

func TestNarrowing(t *testing.T) {
	any4 := selector(t, "0.0.0.0/0")
	for _, c := range []struct {
		what              string
		configured, offer []esp.Selector
		want              string
	}{
		{"the same", []esp.Selector{selector(t, "10.1.0.0/24")}, []esp.Selector{selector(t, "10.1.0.0/24")}, "10.1.0.0/24"},
		{"more offered than configured", []esp.Selector{selector(t, "10.1.0.0/24")}, []esp.Selector{any4}, "10.1.0.0/24"},
		{"less offered than configured", []esp.Selector{any4}, []esp.Selector{selector(t, "10.1.0.0/24")}, "10.1.0.0/24"},
		{"nothing in common", []esp.Selector{selector(t, "10.1.0.0/24")}, []esp.Selector{selector(t, "10.2.0.0/24")}, ""},
		{"another family", []esp.Selector{any4}, []esp.Selector{selector(t, "::/0")}, ""},
		{"another protocol", []esp.Selector{selector(t, "10.1.0.0/24", 6)}, []esp.Selector{selector(t, "10.1.0.0/24", 17)}, ""},
		{"protocol and port", []esp.Selector{selector(t, "10.1.0.0/24", 6, 500, 600)}, []esp.Selector{selector(t, "10.1.0.0/16", 0)}, "10.1.0.0/24[tcp/500-600]"},
		{"overlapping ports", []esp.Selector{selector(t, "10.1.0.0/24", 6, 500, 600)}, []esp.Selector{selector(t, "10.1.0.9-10.1.1.9", 6, 550, 700)}, "10.1.0.9..10.1.0.255[tcp/550-600]"},
		{"the packet within the subnet that follows", []esp.Selector{any4},
			[]esp.Selector{selector(t, "10.1.0.5/32", 6, 80, 80), selector(t, "10.1.0.0/24")}, "10.1.0.0/24"},
		{"the packet within the subnet before it", []esp.Selector{any4},
			[]esp.Selector{selector(t, "10.1.0.0/24"), selector(t, "10.1.0.5/32", 6, 80, 80)}, "10.1.0.0/24"},
		{"what covers the packet is first", []esp.Selector{selector(t, "10.1.0.0/24"), selector(t, "10.2.0.0/24")},
			[]esp.Selector{selector(t, "10.2.0.5/32", 17, 53, 53), selector(t, "10.0.0.0/8")}, "10.2.0.0/24 10.1.0.0/24"},
		{"the packet alone is allowed", []esp.Selector{selector(t, "10.2.0.5/32")},
			[]esp.Selector{selector(t, "10.2.0.5/32", 17, 53, 53), selector(t, "10.1.0.0/24")}, "10.2.0.5/32[udp/53]"},
		{"duplicates", []esp.Selector{selector(t, "10.1.0.0/24"), selector(t, "10.1.0.0/24")},
			[]esp.Selector{any4, any4}, "10.1.0.0/24"},
		{"one that covers two", []esp.Selector{any4},
			[]esp.Selector{selector(t, "10.1.0.1/32"), selector(t, "10.3.0.0/24"), selector(t, "10.1.0.2/32"), selector(t, "10.1.0.0/24")},
			"10.1.0.0/24 10.3.0.0/24"},
		{"nothing offered", []esp.Selector{any4}, nil, ""},
	} {
		var got []string
		for _, s := range narrowTS(c.configured, c.offer) {
			got = append(got, s.String())
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %v; want %s", c.what, got, c.want)
		}
	}
}

func TestNarrowingIsBoundedAndKeepsTheFirst(t *testing.T) {
	offer := manySelectors(255)
	slices.Reverse(offer)
	got := narrowTS([]esp.Selector{selector(t, "10.0.0.0/8")}, offer)
	if len(got) != maxNarrowed || got[0] != offer[0] {
		t.Errorf("%d selectors, the first %v; want %d and the first one offered, %v", len(got), got[0], maxNarrowed, offer[0])
	}
}

func TestCoveringSelectorIsTakenWhenTheListIsFull(t *testing.T) {
	offer := append(manySelectors(254), selector(t, "10.0.0.0/16"))
	got := narrowTS([]esp.Selector{selector(t, "10.0.0.0/8")}, offer)
	if len(got) != 1 || got[0] != offer[254] {
		t.Errorf("%v; want the one that covers all the others, although it came last", got)
	}
}

// The result must select exactly the packets that both sides select.
func TestNarrowingSelectsWhatBothSelect(t *testing.T) {
	r := stream("narrowing", 20000)
	next := func(n int) int { v := int(r[0]) % n; r = r[1:]; return v }
	random := func() esp.Selector {
		a := netip.AddrFrom4([4]byte{10, 0, 0, byte(next(8))})
		s := esp.Selector{Start: a, End: a, EndPort: 65535}
		for range next(4) {
			s.End = s.End.Next()
		}
		s.Proto = []uint8{0, 6, 17}[next(3)]
		if next(2) == 0 {
			s.StartPort = uint16(next(4))
			s.EndPort = s.StartPort + uint16(next(3))
		}
		return s
	}
	matches := func(list []esp.Selector, a netip.Addr, proto uint8, port uint16) bool {
		return slices.ContainsFunc(list, func(s esp.Selector) bool { return s.Matches(a, proto, port, false) })
	}
	for round := range 200 {
		var conf, offer []esp.Selector
		for range 1 + next(3) {
			conf = append(conf, random())
		}
		for range 1 + next(3) {
			offer = append(offer, random())
		}
		got := narrowTS(conf, offer)
		for i := range 12 {
			a := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
			for _, proto := range []uint8{6, 17} {
				for port := range uint16(7) {
					want := matches(conf, a, proto, port) && matches(offer, a, proto, port)
					if matches(got, a, proto, port) != want {
						t.Fatalf("round %d: %v and %v narrowed to %v: %v proto %d port %d selected: %v, want %v",
							round, conf, offer, got, a, proto, port, !want, want)
					}
				}
			}
		}
	}
}
