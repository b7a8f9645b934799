package aggfrag

import (
	"bytes"
	"encoding/hex"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The octets are written down from the figures of RFC 9347 sections 6.1.1 and 6.1.2.
var headerVectors = []struct {
	name  string
	octet string
	h     Header
}{
	{"plain", "00000064", Header{BlockOffset: 100}},
	{"plain, the longest offset", "0000ffff", Header{BlockOffset: 65535}},
	// RTT 0x200001 (22 bits), Echo Delay 0x100001, Transmit Delay 0x0fffff (21 bits each):
	// 1000000000000000000001 100000000000000000001 011111111111111111111
	{"congestion", "01030064" + "00000400" + "80000600" + "002fffff" + "01020304" + "a1a2a3a4", Header{
		Congestion: true, Probe: true, CE: true, BlockOffset: 100, LossEventRate: 1024,
		RTT: 0x200001, EchoDelay: 0x100001, TransmitDelay: 0x0fffff, TVal: 0x01020304, TEcho: 0xa1a2a3a4,
	}},
	{"congestion, RTT alone", "01020000" + "00000000" + "fffffc00" + "00000000" + "00000000" + "00000000", Header{
		Congestion: true, Probe: true, RTT: MaxRTT,
	}},
	{"congestion, echo delay alone", "01010000" + "00000000" + "000003ff" + "ffe00000" + "00000000" + "00000000", Header{
		Congestion: true, CE: true, EchoDelay: MaxDelay,
	}},
	{"congestion, transmit delay alone", "01000000" + "00000000" + "00000000" + "001fffff" + "00000000" + "00000000", Header{
		Congestion: true, TransmitDelay: MaxDelay,
	}},
}

func TestHeadersAreTheFiguresOfTheRFC(t *testing.T) {
	for _, v := range headerVectors {
		want := unhex(t, v.octet)
		got := bytes.Repeat([]byte{0xee}, len(want)) // what was there before must not show
		v.h.Put(got)
		if !bytes.Equal(got, want) || v.h.Len() != len(want) {
			t.Errorf("%s: written %x, want %x", v.name, got, want)
		}
		var h Header
		blocks, err := h.Parse(append(want, 0x45, 1))
		if err != nil || h != v.h || !bytes.Equal(blocks, []byte{0x45, 1}) {
			t.Errorf("%s: read %+v, blocks %x, %v; want %+v", v.name, h, blocks, err, v.h)
		}
	}
}

func TestHeaderReservedBitsAreIgnored(t *testing.T) {
	var h Header
	if _, err := h.Parse(unhex(t, "00ff0007")); err != nil || h != (Header{BlockOffset: 7}) {
		t.Errorf("sub-type 0: %+v, %v", h, err)
	}
	b := make([]byte, CongestionHeaderLen)
	b[0], b[1] = 1, 0xfc
	if _, err := h.Parse(b); err != nil || h != (Header{Congestion: true}) {
		t.Errorf("sub-type 1: %+v, %v", h, err)
	}
}

func TestHeaderTimesSaturate(t *testing.T) {
	h := Header{Congestion: true, RTT: MaxRTT + 1, EchoDelay: MaxDelay + 1, TransmitDelay: 1<<32 - 1}
	b := make([]byte, CongestionHeaderLen)
	h.Put(b)
	var got Header
	if _, err := got.Parse(b); err != nil || got.RTT != 0x3fffff || got.EchoDelay != 0x1fffff || got.TransmitDelay != 0x1fffff {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestHeaderRefusesWhatIsNotOne(t *testing.T) {
	for n := range CongestionHeaderLen {
		b := make([]byte, n)
		want := error(nil)
		if n > 0 {
			b[0] = 1
		}
		if n < CongestionHeaderLen {
			want = ErrShort
		}
		var h Header
		if _, err := h.Parse(b); err != want {
			t.Errorf("%d octets of sub-type 1: %v, want %v", n, err, want)
		}
	}
	for sub := 2; sub < 256; sub++ {
		h := Header{BlockOffset: 1}
		if _, err := h.Parse([]byte{byte(sub), 0, 0, 9, 0x45}); err != ErrSubType || h != (Header{}) {
			t.Errorf("sub-type %d: %v, %+v", sub, err, h)
		}
	}
	// An empty payload is one (RFC 9347 section 2.2.4).
	var h Header
	if blocks, err := h.Parse(make([]byte, HeaderLen)); err != nil || len(blocks) != 0 {
		t.Errorf("empty payload: %x, %v", blocks, err)
	}
}

func TestBlockLengths(t *testing.T) {
	for _, v := range []struct {
		name, octets string
		n            int
		err          error
	}{
		{"IPv4", "45000014", 20, nil},
		{"IPv4, longest", "4500ffff", 65535, nil},
		{"IPv4, length not there yet", "450000", 0, nil},
		{"IPv4 without length", "45000000", 0, ErrLength},
		{"IPv4 shorter than its header", "45000013", 0, ErrLength},
		{"IPv4 shorter than its options", "46000017", 0, ErrLength},
		{"IPv4 with a header of 16 octets", "44000020", 0, ErrLength},
		{"IPv6 of its header alone", "600000000000" + "3b", 40, nil},
		{"IPv6", "600000000102" + "00", 40 + 258, nil},
		{"IPv6, next header not there yet", "600000000102", 0, nil},
		{"IPv6, longest", "60000000ffd7" + "11", 65535, nil},
		{"IPv6 of more than 65,535 octets", "60000000ffd8" + "11", 0, ErrLength},
		{"IPv6 jumbogram", "600000000000" + "00", 0, ErrLength},
	} {
		if n, err := blockLen(unhex(t, v.octets)); n != v.n || err != v.err {
			t.Errorf("%s: %d, %v; want %d, %v", v.name, n, err, v.n, v.err)
		}
	}
}

// FuzzHeader: what is read is written again as it was, but for reserved bits.
func FuzzHeader(f *testing.F) {
	f.Add([]byte{})
	for _, v := range headerVectors {
		f.Add(unhex(f, v.octet))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var h Header
		blocks, err := h.Parse(b)
		if err != nil {
			if h != (Header{}) || blocks != nil {
				t.Fatalf("%v leaves %+v, %x", err, h, blocks)
			}
			return
		}
		want := bytes.Clone(b[:h.Len()])
		if h.Congestion {
			want[1] &= 3
		} else {
			want[1] = 0
		}
		got := make([]byte, h.Len())
		h.Put(got)
		if !bytes.Equal(got, want) || len(blocks) != len(b)-h.Len() {
			t.Fatalf("%x becomes %x", want, got)
		}
	})
}
