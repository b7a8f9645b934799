package esp

import (
	"encoding/binary"
	"errors"
	"testing"
)

// ipv4Part is an IPv4 packet with an identification.
func ipv4Part(frag, id uint16, n int) []byte {
	pkt := ipv4Packet(ProtoUDP, frag, n)
	binary.BigEndian.PutUint16(pkt[4:], id)
	return pkt
}

// withID is a fragment header with an identification.
func withID(offset uint16, more bool, id uint32) ext {
	e := fragHeader(offset, more)
	binary.BigEndian.PutUint32(e.body[4:], id)
	return e
}

func TestParseFragment(t *testing.T) {
	none := Fragment{}
	data := make([]byte, 24)
	chain := make([]ext, maxExtHeaders)
	for i := range chain {
		chain[i] = opts(ProtoDstOpts, 0)
	}
	for _, c := range []struct {
		name string
		pkt  []byte
		want Fragment // none: it is whole
		err  error
	}{
		{"whole", ipv4Part(0, 7, 20), none, nil},
		{"whole, don't fragment", ipv4Part(0x4000, 7, 20), none, nil},
		{"first", ipv4Part(0x2000, 7, 24), Fragment{7, 0, 24, true, ProtoUDP}, nil},
		{"first, don't fragment", ipv4Part(0x6000, 7, 24), Fragment{7, 0, 24, true, ProtoUDP}, nil},
		{"later, behind options", withOptions(ipv4Part(0x2003, 0xffff, 16), 8), Fragment{0xffff, 24, 40, true, ProtoUDP}, nil},
		{"last", ipv4Part(3, 7, 9), Fragment{7, 24, 33, false, ProtoUDP}, nil},
		{"octets behind the packet", append(ipv4Part(3, 7, 9), 1, 2, 3), Fragment{7, 24, 33, false, ProtoUDP}, nil},
		{"the very last", ipv4Part(0x1ffc, 7, 11), Fragment{7, 65504, 65515, false, ProtoUDP}, nil},
		{"one octet too many", ipv4Part(0x1ffc, 7, 12), none, ErrMalformed},
		{"no whole units", ipv4Part(0x2000, 7, 23), none, ErrMalformed},
		{"empty", ipv4Part(3, 7, 0), none, ErrMalformed},

		{"IPv6, whole", ipv6Packet(ProtoUDP, data, opts(ProtoHopByHop, 1)), none, nil},
		{"IPv6, atomic", ipv6Packet(ProtoUDP, data, withID(0, false, 9)), none, nil},
		{"IPv6, atomic, then a first one", ipv6Packet(ProtoUDP, data, withID(0, false, 9), withID(0, true, 8)), Fragment{8, 0, 24, true, ProtoUDP}, nil},
		{"IPv6, first", ipv6Packet(ProtoUDP, data, withID(0, true, 1<<31)), Fragment{1 << 31, 0, 24, true, ProtoUDP}, nil},
		{"IPv6, first, with options inside", ipv6Packet(ProtoUDP, data, opts(ProtoHopByHop, 0), withID(0, true, 9), opts(ProtoDstOpts, 1)), Fragment{9, 0, 40, true, ProtoDstOpts}, nil},
		{"IPv6, later, whatever is in it", ipv6Packet(ProtoDstOpts, []byte{44, 255, 1, 1, 1, 1, 1, 1}, withID(5, false, 9)), Fragment{9, 40, 48, false, ProtoDstOpts}, nil},
		{"IPv6, the very last", ipv6Packet(ProtoUDP, make([]byte, 7), withID(0x1fff, false, 9)), Fragment{9, 65528, 65535, false, ProtoUDP}, nil},
		{"IPv6, too long with its options", ipv6Packet(ProtoUDP, make([]byte, 7), opts(ProtoHopByHop, 0), withID(0x1fff, false, 9)), none, ErrMalformed},
		{"IPv6, of a fragment", ipv6Packet(ProtoUDP, data, withID(0, true, 9), withID(1, true, 8)), none, ErrMalformed},
		{"IPv6, no whole units", ipv6Packet(ProtoUDP, data[:23], withID(0, true, 9)), none, ErrMalformed},
		{"IPv6, empty", ipv6Packet(ProtoUDP, nil, withID(4, false, 9)), none, ErrMalformed},
		{"IPv6, headers without end", ipv6Packet(ProtoUDP, data, chain...), none, ErrChain},
		{"nothing", nil, none, ErrMalformed},
	} {
		var f Fragment
		ok, err := ParseFragment(c.pkt, &f)
		if !errors.Is(err, c.err) || ok != (c.want != none) {
			t.Errorf("%s: %v and %v, want %v and %v", c.name, ok, err, c.want != none, c.err)
		} else if ok && f != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, f, c.want)
		}
		if (ok || err != nil) && c.pkt != nil && !MayBeFragment(c.pkt) {
			t.Errorf("%s: said to be no fragment", c.name)
		}
	}
}

// FuzzParseFragment: whatever ParseFlow takes is read without a fault, and both agree.
func FuzzParseFragment(f *testing.F) {
	f.Add(ipv4Part(0x2000, 7, 24))
	f.Add(ipv4Part(0x1ffc, 7, 11))
	f.Add(ipv6Packet(ProtoUDP, ports, withID(0, true, 9)))
	f.Add(ipv6Packet(ProtoUDP, ports, opts(ProtoHopByHop, 0), withID(5, false, 9), opts(ProtoDstOpts, 1)))
	f.Fuzz(func(t *testing.T, pkt []byte) {
		var flow Flow
		var fr Fragment
		bad := ParseFlow(pkt, true, &flow)
		ok, err := ParseFragment(pkt, &fr)
		switch {
		case bad != nil:
		case err != nil || !ok:
			if ok {
				t.Fatal("a fragment with an error")
			}
		case !MayBeFragment(pkt):
			t.Fatalf("%x is said to be no fragment", pkt)
		case fr.Start%8 != 0 || fr.End <= fr.Start || fr.End > 65535 || fr.More && fr.End%8 != 0:
			t.Fatalf("%x is said to be %+v", pkt, fr)
		case fr.Start > 0 && !flow.NoPorts:
			t.Fatalf("%x shows ports and is %+v", pkt, fr)
		}
	})
}
