package engine

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"postern/board"
	"postern/esp"
)

// benchPackets is how many packets a test keeps to send: always the same, so that the
// processor's caches hold the same of the test.
const benchPackets = 1024

// benchPath is a data path with n SAs under n policies, with packets of size octets of as
// many flows in turn: each goes to a network of its own, and an SA covers one of them, or
// a single SA all.
func benchPath(b testing.TB, n, flows, size int) (*testPath, [][]byte) {
	prof := board.Large
	prof.Policies = max(n, prof.Policies)
	tp := newTestPath(b, prof)
	tp.quiet()
	remote := func(i int) string {
		if n == 1 {
			return "10.0.0.0/8"
		}
		return netip.PrefixFrom(benchAddr(i), 24).String()
	}
	spec := make([]policySpec, n)
	for i := range spec {
		spec[i] = protect("c", fmt.Sprint(i), "10.1.0.0/16", remote(i))
	}
	tp.spd.set(spec)
	for i := range n {
		tp.addLoop(b, testSuites[0], true, "c", fmt.Sprint(i), "10.1.0.0/16", remote(i), true)
	}
	pkts := make([][]byte, benchPackets)
	for i := range pkts {
		pkts[i] = udp4(srcHost, benchAddr(i%flows).Next().String(), 1000, 502, size)
	}
	return tp, pkts
}

func benchAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(2 + i>>8), byte(i), 0}) }

// benchRound is how many packets one measurement takes.
const benchRound = 4096

// outRound takes a round of packets through the way out, and returns how long that took
// without what the TUN device would do.
func (tp *testPath) outRound(pkts [][]byte, cold chiller) (took time.Duration) {
	batch := len(tp.out.bufs)
	for done := 0; done < benchRound; done += batch {
		for i := range batch {
			tp.put(i, pkts[(done+i)%len(pkts)])
		}
		cold.chill()
		begin := time.Now()
		tp.out.batch(batch)
		took += time.Since(begin)
	}
	return took
}

// inRound seals a round of packets, takes them through the way in, and returns how long
// that took without what the socket would do.
func (tp *testPath) inRound(b testing.TB, pkts, sealed [][]byte, cold chiller) (took time.Duration) {
	in := tp.in[sockNATT4]
	at := 0
	tp.fakes[sockNATT4].route = func(d *esp.Datagram) {
		sealed[at] = append(sealed[at][:0], d.Buf[:d.N]...)
		at++
	}
	before := tp.counts.get(cInPackets)
	tp.outRound(pkts, nil)
	batch := len(in.bufs)
	remote := netip.MustParseAddrPort("192.0.2.1:4500")
	for at := 0; at < benchRound; at += batch {
		for i := range batch {
			in.batch[i] = esp.Datagram{Buf: in.bufs[i], N: copy(in.bufs[i], sealed[at+i]), Remote: remote}
		}
		cold.chill()
		begin := time.Now()
		in.process(batch)
		took += time.Since(begin)
	}
	if n := tp.counts.get(cInPackets) - before; n != benchRound {
		b.Fatalf("%d packets were opened, want %d", n, benchRound)
	}
	return took
}

// chiller is memory that is read between two batches, so that these find the nearer caches
// of the processor full of something else: so it is for a gateway, whose kernel, and
// whatever else there is to do, has its turn between them. nil: none is.
type chiller []byte

// chillOctets is more than the caches have that a core has for itself.
const chillOctets = 4 << 20

func (c chiller) chill() {
	for i := 0; i < len(c); i += 64 {
		c[i]++
	}
}

// benchSAs measures rounds with 1 and with 1,024 SAs in turn, so that all meet the
// machine in the same state, and reports what a packet costs and the ratio: of the best
// rounds, which nobody else has disturbed. Both have 1,024 flows; what one flow costs over
// one SA stands beside it.
func benchSAs(b *testing.B, round func(tp *testPath, pkts [][]byte, cold chiller) time.Duration) {
	for _, c := range []struct {
		name string
		size int
		cold chiller
	}{{"200", 200, nil}, {"1400", 1400, nil}, {"200-cold", 200, make(chiller, chillOctets)}} {
		b.Run(c.name, func(b *testing.B) {
			const paths = 3
			var tp [paths]*testPath
			var pkts [paths][][]byte
			var times [paths][]time.Duration
			for i, n := range [paths][2]int{{1, 1}, {1, benchPackets}, {1024, benchPackets}} {
				tp[i], pkts[i] = benchPath(b, n[0], n[1], c.size)
				round(tp[i], pkts[i], nil) // each worker's state of each SA, and the flow cache
			}
			for b.Loop() {
				for i := range tp {
					times[i] = append(times[i], round(tp[i], pkts[i], c.cold))
				}
			}
			var ns [paths]float64
			for i := range times {
				ns[i] = float64(slices.Min(times[i]).Nanoseconds()) / benchRound
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(ns[0], "ns/pkt-1-flow")
			b.ReportMetric(ns[1], "ns/pkt-1-SA")
			b.ReportMetric(ns[2], "ns/pkt-1024-SAs")
			b.ReportMetric(ns[2]/ns[1], "ratio")
		})
	}
}

func BenchmarkOut(b *testing.B) {
	benchSAs(b, func(tp *testPath, pkts [][]byte, cold chiller) time.Duration { return tp.outRound(pkts, cold) })
}

func BenchmarkIn(b *testing.B) {
	sealed := make([][]byte, benchRound)
	for i := range sealed {
		sealed[i] = make([]byte, 0, 2048)
	}
	benchSAs(b, func(tp *testPath, pkts [][]byte, cold chiller) time.Duration {
		return tp.inRound(b, pkts, sealed, cold)
	})
}
