package platform

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"postern/esp"
)

// Segments that are larger than the caller's buffers are lost one by one; those around
// them are not.
func TestUDPJoinedDatagramsThatDoNotFitArriveEmpty(t *testing.T) {
	ns := newNS(t)
	s, from := listenUDP(t, ns, any4), listenUDP(t, ns, any4)
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), s.LocalPort())
	d := append(row(0, 3, 900, "127.0.0.1", to, 0), row(3, 1, 200, "127.0.0.1", to, 0)...)
	mustWrite(t, from, append(d, row(4, 5, 256, "127.0.0.1", to, 0)...)...)
	for i, g := range collect(t, s, 9, 256, 4) {
		want := text(i, 256)
		switch {
		case i < 3:
			want = ""
		case i == 3:
			want = text(3, 200)
		}
		if string(g.Buf[:g.N]) != want {
			t.Errorf("datagram %d has %d octets, want %d", i, g.N, len(want))
		}
	}
}

// A datagram of its own may be larger than what goes to Buf directly.
func TestUDPSingleDatagramsOfAnySizeArriveWhole(t *testing.T) {
	ns := newNS(t)
	s, from := listenUDP(t, ns, any4), listenUDP(t, ns, any4)
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), s.LocalPort())
	for _, size := range []int{0, 1, groHead - 1, groHead, groHead + 1, 20000, 65507} {
		d := row(0, 1, size, "127.0.0.1", to, 0)
		mustWrite(t, from, d...)
		compare(t, collect(t, s, 1, 1<<16, 2), d, from.LocalPort())
		mustWrite(t, from, d...)
		if g := collect(t, s, 1, max(size-1, 1), 1)[0]; size > 1 && g.N != 0 {
			t.Errorf("%d octets into a buffer with one too few: N is %d, want 0", size, g.N)
		}
	}
}

// The memory of messages does not run out, whatever comes and however it is fetched.
func TestUDPJoinedMessagesInAnyOrderWithSingles(t *testing.T) {
	ns := newNS(t)
	for _, buf := range []int{1500, 3072, 9000} {
		for step := 1; step <= 20; step++ {
			s, from := listenUDP(t, ns, any6), listenUDP(t, ns, any6)
			to := netip.AddrPortFrom(netip.MustParseAddr("::1"), s.LocalPort())
			var d []esp.Datagram
			for i := 0; len(d) < 150; i++ {
				n := []int{1, 1, 3, 1, 40, 2, 1, 1, 1, 7}[i%10]
				d = append(d, row(len(d), n, 1+(i*389)%1450, "::1", to, uint8(i&0xfc))...)
			}
			mustWrite(t, from, d...)
			compare(t, collect(t, s, len(d), buf, step), d, from.LocalPort())
		}
	}
}

// groMsg is a message of 100 octets, as the kernel says it was.
type groMsg struct {
	seg   int
	trunc bool
}

// arrive puts messages where the kernel would have put them in a read into d, and returns
// how many datagrams the read brings.
func arrive(s *Socket, d []esp.Datagram, msgs ...groMsg) int {
	s.rx.begin(d)
	for i, m := range msgs {
		h, slot := &s.rx.hdrs[i], &s.rx.slots[i]
		s.point(i, &d[i], h, slot)
		h.n = 100
		n := copy(d[i].Buf, text(i, 100))
		copy(s.gro.body(i), text(i, 100)[n:])
		h.hdr.SetControllen(putControl(slot.control[:], unix.IPPROTO_UDP, unix.UDP_GRO, unsafe.Slice((*byte)(unsafe.Pointer(&[]int32{int32(m.seg)}[0])), 4)))
		if m.trunc {
			h.hdr.Flags = unix.MSG_TRUNC
		}
	}
	return s.cut(d, len(msgs))
}

// A message that is torn over two calls is two packets for the kernel, where one would do.
func TestUDPJoinedMessagesComeWholeWhereTheyFit(t *testing.T) {
	ns := newNS(t)
	single, two, five, ten := groMsg{}, groMsg{seg: 50}, groMsg{seg: 20}, groMsg{seg: 10}
	for name, c := range map[string]struct {
		room int
		msgs []groMsg
		want string // datagrams of each call
	}{
		"all fit":                       {10, []groMsg{five, two, single, two}, "10"},
		"the second waits":              {8, []groMsg{five, five}, "5 5"},
		"the third waits":               {9, []groMsg{two, five, five}, "7 5"},
		"it waits behind a single":      {5, []groMsg{single, five}, "1 5"},
		"it waits behind what is left":  {4, []groMsg{five, five}, "4 1 4 1"},
		"it fits behind what is left":   {6, []groMsg{ten, two}, "6 6"},
		"larger than any call":          {4, []groMsg{ten}, "4 4 2"},
		"larger than any call, waiting": {4, []groMsg{single, ten}, "1 4 4 2"},
	} {
		s := listenUDP(t, ns, any4)
		d := batch(c.room, 200)
		own := slices.Clone(d)
		var got, counts []string
		for n := arrive(s, d, c.msgs...); ; n = s.gro.take(d, 0) {
			for _, g := range d[:n] {
				got = append(got, string(g.Buf[:g.N]))
			}
			counts = append(counts, fmt.Sprint(n))
			if !s.gro.waiting() {
				break
			}
			copy(d, own)
		}
		if s := strings.Join(counts, " "); s != c.want {
			t.Errorf("%s: calls with room for %d brought %s datagrams, want %s", name, c.room, s, c.want)
		}
		var want []byte
		for i := range c.msgs {
			want = append(want, text(i, 100)...)
		}
		if strings.Join(got, "") != string(want) {
			t.Errorf("%s: order or content is lost: %q", name, got)
		}
	}
}

// What a kernel would have to be broken to say.
func TestCutSurvivesMessagesThatLie(t *testing.T) {
	ns := newNS(t)
	for name, c := range map[string]struct {
		buf  int
		msgs []groMsg
		want string // sizes
	}{
		"plain":                      {200, []groMsg{{0, false}, {0, false}}, "100 100"},
		"negative":                   {200, []groMsg{{-1, false}}, "100"},
		"as large as the message":    {200, []groMsg{{100, false}}, "100"},
		"larger than the message":    {200, []groMsg{{101, false}}, "100"},
		"halves":                     {200, []groMsg{{50, false}}, "50 50"},
		"a shorter last":             {200, []groMsg{{60, false}, {0, false}}, "60 40 100"},
		"cut off":                    {200, []groMsg{{60, true}, {0, false}}, "60 0 100"},
		"cut off where one ended":    {200, []groMsg{{50, true}}, "50 0"},
		"single behind joined, cut":  {200, []groMsg{{60, false}, {0, true}}, "60 40 0"},
		"single cut off":             {200, []groMsg{{0, true}}, "0"},
		"octet by octet":             {200, []groMsg{{1, false}}, strings.TrimSpace(strings.Repeat("1 ", 100))},
		"negative behind joined":     {200, []groMsg{{50, false}, {-7, false}}, "50 50 100"},
		"larger than Buf":            {40, []groMsg{{60, false}}, "0 40"},
		"as large as Buf":            {60, []groMsg{{60, false}}, "60 40"},
		"single does not fit behind": {60, []groMsg{{60, false}, {0, false}}, "60 40 0"},
	} {
		s := listenUDP(t, ns, any4)
		d := batch(8, c.buf)
		var got []string
		n := arrive(s, d, c.msgs...)
		for {
			for i := range n {
				got = append(got, fmt.Sprint(d[i].N))
			}
			if !s.gro.waiting() {
				break
			}
			n = s.gro.take(d, 0)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: datagrams of %v octets, want %s", name, got, c.want)
		}
	}
}

// IKE's own port has no bulk, and no memory for it.
func TestUDPPortOfIKEReadsPlainly(t *testing.T) {
	ns := newNS(t)
	s := listenUDP(t, ns, netip.AddrPortFrom(netip.IPv4Unspecified(), ikePort))
	if s.features().Coalesce || s.gro.memory != nil {
		t.Error("the socket of IKE asks for joined messages")
	}
	from := listenUDP(t, ns, any4)
	d := row(0, 12, 600, "127.0.0.1", netip.MustParseAddrPort("127.0.0.1:500"), 0)
	mustWrite(t, from, d...)
	compare(t, collect(t, s, len(d), 3072, 5), d, from.LocalPort())
}

// One direction of a tunnel between two hosts: batches of 64 ESP packets, each batch
// received before the next leaves.
func BenchmarkUDPOverVeth(b *testing.B) {
	for _, size := range []int{1400, 256} {
		for _, c := range []struct {
			name     string
			features socketFeatures
		}{
			{"segments", socketFeatures{true, true, true, false}},
			{"segments-out-only", socketFeatures{true, false, true, false}},
			{"segments-in-only", socketFeatures{false, true, true, false}},
			{"batches", socketFeatures{false, false, true, false}},
			{"one-by-one", socketFeatures{}},
		} {
			b.Run(fmt.Sprintf("%d/%s", size, c.name), func(b *testing.B) {
				here, there := twoHosts(b)
				sa, sb := listenUDP(b, here, any4), listenUDP(b, there, any4)
				if on := sb.features(); !on.Segment || !on.Coalesce {
					b.Skipf("this kernel has only: %v", on)
				}
				to := netip.AddrPortFrom(netip.MustParseAddr("192.0.2.2"), sb.LocalPort())
				mustWrite(b, sa, message("", to, 0, "hello")) // the hosts do not know each other yet
				collect(b, sb, 1, 64, 1)
				sa.gso.on.Store(c.features.Segment)
				if !c.features.Coalesce {
					coalesceOff(b, sb)
				}
				sa.oneByOne.Store(!c.features.Batch)
				sb.oneByOne.Store(!c.features.Batch)
				var calls int
				count := func(s *Socket) {
					s.intercept = func(send bool, hdrs []mmsghdr) unix.Errno {
						if s.oneByOne.Load() && !send {
							calls += len(hdrs)
						} else {
							calls++
						}
						return 0
					}
				}
				count(sa)
				count(sb)
				d := row(0, 64, size, "192.0.2.1", to, 0)
				back := batch(64, 2048)
				own := slices.Clone(back)
				sb.file.SetReadDeadline(time.Now().Add(time.Minute))
				octets := len(d) * size
				b.SetBytes(int64(octets))
				b.ReportAllocs()
				for b.Loop() {
					if n, err := sa.WriteBatch(d); n != len(d) || err != nil {
						b.Fatalf("WriteBatch = %d, %v", n, err)
					}
					for got := 0; got < len(d); {
						n, err := sb.ReadBatch(append(back[:0], own...))
						if err != nil {
							b.Fatal(err)
						}
						got += n
					}
				}
				b.ReportMetric(float64(calls)/(float64(b.N)*float64(octets)/1e6), "calls/MB")
			})
		}
	}
}
