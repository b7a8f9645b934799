package engine

import (
	"testing"
	"time"

	"postern/board"
)

// segments returns n segments of one TCP connection with so many octets of data each, as the kernel
// hands them over that has cut one of its own large ones.
func segments(src, dst string, n, data int) [][]byte {
	pkts := make([][]byte, n)
	for i := range pkts {
		pkts[i] = tcp4(src, dst, 40000, 443, 40+data)
		pkts[i][5] = byte(i) // identification
		pkts[i][26] = byte(i)
	}
	return pkts
}

// tcp4 is an IPv4 TCP packet of n octets, at least 40, with ACK set.
func tcp4(src, dst string, sport, dport uint16, n int) []byte {
	p := udp4(src, dst, sport, dport, n)
	clear(p[24:40])
	p[9], p[32], p[33] = 6, 5<<4, 0x10
	p[10], p[11] = 0, 0
	sum := checksum(p[:20])
	p[10], p[11] = byte(sum>>8), byte(sum)
	return p
}

// BenchmarkStream measures what a segment of a single TCP stream costs over one SA, on its way out and
// on its way in: the best rounds, as of benchSAs.
func BenchmarkStream(b *testing.B) {
	for _, c := range []struct {
		name string
		data int
	}{{"ack", 0}, {"1348", 1348}} {
		b.Run(c.name, func(b *testing.B) {
			tp := newTestPath(b, board.Large)
			tp.quiet()
			tp.spd.set([]policySpec{protect("c", "n", "10.1.0.0/16", "10.2.0.0/16")})
			tp.addLoop(b, testSuites[0], true, "c", "n", "10.1.0.0/16", "10.2.0.0/16", true)
			pkts := segments(srcHost, dstHost, 64, c.data)
			sealed := make([][]byte, benchRound)
			for i := range sealed {
				sealed[i] = make([]byte, 0, 2048)
			}
			out, in := time.Hour, time.Hour
			tp.outRound(pkts, nil)
			for b.Loop() {
				out = min(out, tp.outRound(pkts, nil))
				in = min(in, tp.inRound(b, pkts, sealed, nil))
				tp.fakes[sockNATT4].route = nil
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(out.Nanoseconds())/benchRound, "ns/pkt-out")
			b.ReportMetric(float64(in.Nanoseconds())/benchRound, "ns/pkt-in")
		})
	}
}
