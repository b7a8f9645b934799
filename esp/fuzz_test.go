package esp

import (
	"bytes"
	"errors"
	"testing"
)

// FuzzOpen feeds a packet to every suite twice: as it is, which must be rejected without a
// trace, and as the plaintext of an authentic packet, where Open must agree with the
// reference about the padding.
func FuzzOpen(f *testing.F) {
	suites := allSuites()
	for i := range suites {
		f.Add(uint8(i), []byte{})
		f.Add(uint8(i), []byte{1, 2, 2, 4})
		f.Add(uint8(i), refPacket(testSA(suites[i], Out), 5, []byte("payload"), 4))
	}
	f.Add(uint8(0), bytes.Repeat([]byte{0xff}, 64))
	f.Fuzz(func(t *testing.T, which uint8, data []byte) {
		s := suites[int(which)%len(suites)]
		in, err := NewInbound(testSA(s, In), 1)
		if err != nil {
			t.Fatal(err)
		}
		before := state(in)
		pkt := append([]byte{}, data...)
		if inner, next, err := in.Open(0, pkt); err == nil {
			// Only the seeds that the reference sealed can get here.
			payload, _, refNext, refErr := refOpen(testSA(s, Out), 5, data)
			if refErr != nil || !bytes.Equal(inner, payload) || next != refNext {
				t.Fatalf("%v: accepted %x, the reference: %v", s, data, refErr)
			}
			return
		} else if err != ErrPadding && state(in) != before {
			t.Fatalf("%v: %v changed the state", s, err)
		}

		iv, align := refIV(s, 3)
		plain := append([]byte{}, data...)
		for len(plain)%align != 0 || len(plain) < 2 {
			plain = append(plain, 0)
		}
		inner, next, err := in.Open(0, refSeal(testSA(s, Out), 9, iv, plain))
		padLen, n := int(plain[len(plain)-2]), len(plain)-2
		good := padLen <= n
		for i := 0; good && i < padLen; i++ {
			good = int(plain[n-padLen+i]) == i+1
		}
		switch {
		case good && (err != nil || !bytes.Equal(inner, plain[:n-padLen]) || next != plain[n+1]):
			t.Fatalf("%v: plaintext %x gives %x, next %d, %v", s, plain, inner, next, err)
		case !good && err != ErrPadding:
			t.Fatalf("%v: plaintext %x gives %v, want %v", s, plain, err, ErrPadding)
		}
	})
}

// FuzzParseFlow: nothing panics, both directions agree, and octets behind the packet's own
// length change nothing.
func FuzzParseFlow(f *testing.F) {
	f.Add([]byte{})
	f.Add(ipv4Packet(ProtoTCP, 0, 20))
	f.Add(withOptions(ipv4Packet(ProtoUDP, 0x2000, 8), 12))
	f.Add(ipv4Packet(ProtoICMP, 7, 8))
	f.Add(ipv6Packet(ProtoTCP, ports))
	f.Add(ipv6Packet(ProtoUDP, ports, opts(ProtoHopByHop, 0), opts(ProtoRouting, 2), fragHeader(0, true), opts(ProtoDstOpts, 1)))
	f.Add(ipv6Packet(ProtoDstOpts, ports, fragHeader(8, false)))
	f.Fuzz(func(t *testing.T, pkt []byte) {
		var out, in Flow
		err := ParseFlow(pkt, true, &out)
		if errIn := ParseFlow(pkt, false, &in); errIn != err {
			t.Fatalf("out %v, in %v", err, errIn)
		}
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("%v, want %v", err, ErrMalformed)
			}
			return
		}
		in.Local, in.Remote, in.LocalPort, in.RemotePort = in.Remote, in.Local, in.RemotePort, in.LocalPort
		if in != out {
			t.Fatalf("the directions disagree: %+v and %+v", out, in)
		}
		if out.Local.Is4() != (pkt[0]>>4 == 4) || out.Local.BitLen() != out.Remote.BitLen() {
			t.Fatalf("addresses %v and %v of version %d", out.Local, out.Remote, pkt[0]>>4)
		}
		if out.NoPorts && (out.LocalPort != 0 || out.RemotePort != 0) {
			t.Fatalf("no ports, but %d and %d", out.LocalPort, out.RemotePort)
		}
		n, err := InnerLen(pkt)
		if err != nil || n > len(pkt) {
			t.Fatalf("InnerLen is %d of %d, %v", n, len(pkt), err)
		}
		var cut Flow
		if err := ParseFlow(pkt[:n:n], true, &cut); err != nil || cut != out {
			t.Fatalf("without what follows it the packet is %+v, %v, not %+v", cut, err, out)
		}
	})
}
