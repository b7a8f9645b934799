//go:build !linux

package platform

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"time"
)

// LabPrivileged returns false.
func LabPrivileged() bool { return false }

// ReexecForLab returns an error that wraps [ErrUnsupported].
func ReexecForLab(args []string) (int, error) { return 1, unsupported("start in", "a namespace") }

// Lab makes hosts out of network namespaces; it exists on Linux only.
type Lab struct{}

// NewLab returns a lab that can make no host.
func NewLab() *Lab { return &Lab{} }

// LabHost is a host of a lab; there are none.
type LabHost struct{}

// Host returns an error that wraps [ErrUnsupported].
func (l *Lab) Host(name string) (*LabHost, error) { return nil, unsupported("make host", name) }

// Close does nothing.
func (l *Lab) Close() error { return nil }

// Connect returns an error that wraps [ErrUnsupported].
func (l *Lab) Connect(a *LabHost, aName string, aAddr netip.Prefix, b *LabHost, bName string, bAddr netip.Prefix) error {
	return unsupported("make interfaces", aName+" and "+bName)
}

// Route returns an error that wraps [ErrUnsupported].
func (h *LabHost) Route(dst netip.Prefix, via netip.Addr) error {
	return unsupported("set route", dst.String())
}

// Forward returns an error that wraps [ErrUnsupported].
func (h *LabHost) Forward() error { return unsupported("switch on", "forwarding") }

// Start returns an error that wraps [ErrUnsupported].
func (h *LabHost) Start(cmd *exec.Cmd) error { return unsupported("start", cmd.Path) }

// Listen returns an error that wraps [ErrUnsupported].
func (h *LabHost) Listen(addr netip.AddrPort) (*net.TCPListener, error) {
	return nil, unsupported("listen on", addr.String())
}

// Dial returns an error that wraps [ErrUnsupported].
func (h *LabHost) Dial(addr netip.AddrPort, timeout time.Duration) (net.Conn, error) {
	return nil, unsupported("connect to", addr.String())
}

// Capture returns an error that wraps [ErrUnsupported].
func (h *LabHost) Capture(device string) (*Capture, error) {
	return nil, unsupported("capture on", device)
}

// Capture is a running capture; there are none.
type Capture struct{}

// Next returns os.ErrClosed.
func (c *Capture) Next(buf []byte) (etherType uint16, n int, err error) { return 0, 0, os.ErrClosed }

// Lost returns 0.
func (c *Capture) Lost() (int, error) { return 0, nil }

// Close does nothing.
func (c *Capture) Close() error { return nil }
