//go:build !linux

package platform

import (
	"net/netip"
	"time"
)

// BenchPath is the path of a measurement; it exists on Linux only.
type BenchPath struct {
	TUN       *TUN
	Near, Far *Socket
}

// OpenBenchPath returns an error that wraps [ErrUnsupported].
func OpenBenchPath(mtu int) (*BenchPath, error) {
	return nil, unsupported("open", "path for the measurement")
}

// Private returns false.
func (p *BenchPath) Private() bool { return false }

// To returns nothing.
func (p *BenchPath) To() netip.AddrPort { return netip.AddrPort{} }

// Inject returns an error that wraps [ErrUnsupported].
func (p *BenchPath) Inject(pkt []byte, n, segment int) error { return unsupported("inject", "packets") }

// Close does nothing.
func (p *BenchPath) Close() error { return nil }

// CPUModel returns "": unknown.
func CPUModel() string { return "" }

// ThreadTime returns 0: unknown.
func ThreadTime() time.Duration { return 0 }
