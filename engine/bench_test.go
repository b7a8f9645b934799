package engine

import (
	"fmt"
	"net/netip"
	"testing"

	"postern/board"
	"postern/esp"
)

// benchPath is a data path with n SAs under n policies, with packets for all of them.
func benchPath(b *testing.B, n int) (*testPath, [][]byte) {
	prof := board.Large
	prof.Policies = max(n, prof.Policies)
	tp := newTestPath(b, prof)
	tp.quiet()
	spec := make([]policySpec, n)
	for i := range spec {
		spec[i] = protect("c", fmt.Sprint(i), "10.1.0.0/16", netip.PrefixFrom(benchAddr(i), 24).String())
	}
	tp.spd.set(spec)
	pkts := make([][]byte, n)
	for i := range pkts {
		tp.addLoop(b, testSuites[0], true, "c", fmt.Sprint(i), "10.1.0.0/16", netip.PrefixFrom(benchAddr(i), 24).String(), true)
		pkts[i] = udp4(srcHost, benchAddr(i).Next().String(), 1000, 502, 200)
	}
	return tp, pkts
}

func benchAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(2 + i>>8), byte(i), 0}) }

func BenchmarkOut(b *testing.B) {
	for _, n := range []int{1, 1024} {
		b.Run(fmt.Sprintf("sas=%d", n), func(b *testing.B) {
			tp, pkts := benchPath(b, n)
			batch := len(tp.out.bufs)
			b.ReportAllocs()
			b.SetBytes(200)
			for done := 0; done < b.N; done += batch {
				for i := range batch {
					tp.put(i, pkts[(done+i)%n])
				}
				tp.out.batch(min(batch, b.N-done))
			}
		})
	}
}

func BenchmarkIn(b *testing.B) {
	for _, n := range []int{1, 1024} {
		b.Run(fmt.Sprintf("sas=%d", n), func(b *testing.B) {
			tp, pkts := benchPath(b, n)
			in := tp.in[sockNATT4]
			batch := len(in.bufs)
			// Sealing what is opened does not count.
			var sealed []esp.Datagram
			tp.fakes[sockNATT4].route = func(d *esp.Datagram) {
				c := *d
				c.Buf = append([]byte(nil), d.Buf[:d.N]...)
				sealed = append(sealed, c)
			}
			b.ReportAllocs()
			b.SetBytes(200)
			const round = 4096
			for done := 0; done < b.N; done += round {
				b.StopTimer()
				sealed = sealed[:0]
				for i := range min(round, b.N-done) {
					tp.send(pkts[(done+i)%n])
				}
				b.StartTimer()
				for at := 0; at < len(sealed); at += batch {
					k := min(batch, len(sealed)-at)
					for i := range k {
						s := &sealed[at+i]
						in.batch[i] = esp.Datagram{Buf: in.bufs[i], N: copy(in.bufs[i], s.Buf[:s.N]), Remote: s.Remote}
					}
					in.process(k)
				}
			}
			b.StopTimer()
			if got := tp.counts.get(cInPackets); got < uint64(b.N) {
				b.Fatalf("%d packets were opened, want %d", got, b.N)
			}
		})
	}
}
