package platform

import (
	"fmt"
	"testing"
)

func BenchmarkSumBytes(b *testing.B) {
	buf := make([]byte, 1500)
	for i := range buf {
		buf[i] = byte(i * 7)
	}
	// Addresses of IPv4, its header, TCP's with timestamps, and packets, not at a word's boundary.
	for _, n := range []int{8, 20, 32, 128, 1440} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.SetBytes(int64(n))
			var s uint64
			for b.Loop() {
				s += sumBytes(buf[6:6+n], 0)
			}
			_ = s
		})
	}
}

// BenchmarkSplit cuts up a super-packet of TCP with 40 segments.
func BenchmarkSplit(b *testing.B) {
	const size = 1388
	spec := packetSpec{ttl: 64, flags: tcpACK, window: 500, options: make([]byte, 12), payload: make([]byte, 40*size)}
	for i := range spec.payload {
		spec.payload[i] = byte(i * 7)
	}
	h, p := spec.super(size)
	out := make([]byte, 2048)
	b.SetBytes(40 * size)
	for b.Loop() {
		var s superPacket
		if !s.parse(&h, p) {
			b.Fatal("the super-packet was refused")
		}
		for s.more() {
			s.segment(out[2:])
		}
	}
}
