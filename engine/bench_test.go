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

// benchPath is a data path with n SAs under n policies, with packets of size octets for
// all of them in turn.
func benchPath(b testing.TB, n, size int) (*testPath, [][]byte) {
	prof := board.Large
	prof.Policies = max(n, prof.Policies)
	tp := newTestPath(b, prof)
	tp.quiet()
	spec := make([]policySpec, n)
	for i := range spec {
		spec[i] = protect("c", fmt.Sprint(i), "10.1.0.0/16", netip.PrefixFrom(benchAddr(i), 24).String())
	}
	tp.spd.set(spec)
	for i := range n {
		tp.addLoop(b, testSuites[0], true, "c", fmt.Sprint(i), "10.1.0.0/16", netip.PrefixFrom(benchAddr(i), 24).String(), true)
	}
	pkts := make([][]byte, benchPackets)
	for i := range pkts {
		pkts[i] = udp4(srcHost, benchAddr(i%n).Next().String(), 1000, 502, size)
	}
	return tp, pkts
}

func benchAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(2 + i>>8), byte(i), 0}) }

// benchRound is how many packets one measurement takes.
const benchRound = 4096

// outRound takes a round of packets through the way out, and returns how long that took
// without what the TUN device would do.
func (tp *testPath) outRound(pkts [][]byte) (took time.Duration) {
	batch := len(tp.out.bufs)
	for done := 0; done < benchRound; done += batch {
		for i := range batch {
			tp.put(i, pkts[(done+i)%len(pkts)])
		}
		begin := time.Now()
		tp.out.batch(batch)
		took += time.Since(begin)
	}
	return took
}

// inRound seals a round of packets, takes them through the way in, and returns how long
// that took without what the socket would do.
func (tp *testPath) inRound(b testing.TB, pkts [][]byte, sealed [][]byte) (took time.Duration) {
	in := tp.in[sockNATT4]
	at := 0
	tp.fakes[sockNATT4].route = func(d *esp.Datagram) {
		sealed[at] = append(sealed[at][:0], d.Buf[:d.N]...)
		at++
	}
	before := tp.counts.get(cInPackets)
	tp.outRound(pkts)
	batch := len(in.bufs)
	remote := netip.MustParseAddrPort("192.0.2.1:4500")
	for at := 0; at < benchRound; at += batch {
		for i := range batch {
			in.batch[i] = esp.Datagram{Buf: in.bufs[i], N: copy(in.bufs[i], sealed[at+i]), Remote: remote}
		}
		begin := time.Now()
		in.process(batch)
		took += time.Since(begin)
	}
	if n := tp.counts.get(cInPackets) - before; n != benchRound {
		b.Fatalf("%d packets were opened, want %d", n, benchRound)
	}
	return took
}

// benchSAs measures rounds with 1 and with 1,024 SAs in turn, so that both meet the
// machine in the same state, and reports what a packet costs and the ratio: of the best
// rounds, which nobody else has disturbed.
func benchSAs(b *testing.B, size int, round func(tp *testPath, pkts [][]byte) time.Duration) {
	var tp [2]*testPath
	var pkts [2][][]byte
	var times [2][]time.Duration
	for i, n := range []int{1, 1024} {
		tp[i], pkts[i] = benchPath(b, n, size)
		round(tp[i], pkts[i]) // each worker's state of each SA, and the flow cache
	}
	for b.Loop() {
		for i := range tp {
			times[i] = append(times[i], round(tp[i], pkts[i]))
		}
	}
	var ns [2]float64
	for i := range times {
		ns[i] = float64(slices.Min(times[i]).Nanoseconds()) / benchRound
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(ns[0], "ns/pkt-1-SA")
	b.ReportMetric(ns[1], "ns/pkt-1024-SAs")
	b.ReportMetric(ns[1]/ns[0], "ratio")
}

func BenchmarkOut(b *testing.B) {
	for _, size := range []int{200, 1400} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			benchSAs(b, size, (*testPath).outRound)
		})
	}
}

func BenchmarkIn(b *testing.B) {
	for _, size := range []int{200, 1400} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			sealed := make([][]byte, benchRound)
			for i := range sealed {
				sealed[i] = make([]byte, 0, 2048)
			}
			benchSAs(b, size, func(tp *testPath, pkts [][]byte) time.Duration { return tp.inRound(b, pkts, sealed) })
		})
	}
}
