package platform

import "testing"

func BenchmarkSumBytes(b *testing.B) {
	buf := make([]byte, 1448)
	for i := range buf {
		buf[i] = byte(i * 7)
	}
	b.SetBytes(1440)
	var s uint64
	for b.Loop() {
		s += sumBytes(buf[4:1444], 0)
	}
	_ = s
}
