//go:build !linux

package platform

import (
	"context"
	"net/netip"
	"os"
	"time"

	"postern/esp"
)

func unsupported(op, object string) error {
	return &OpError{Op: op, Object: object, Err: ErrUnsupported}
}

// Resolver looks names up; it exists on Linux only.
type Resolver struct{}

// Resolve returns an error that wraps [ErrUnsupported].
func (r *Resolver) Resolve(ctx context.Context, name string) ([]netip.Addr, time.Duration, error) {
	return nil, 0, unsupported("resolve", name)
}

// Dialer connects over TCP past the tunnel; it exists on Linux only.
type Dialer struct{}

// Dial returns an error that wraps [ErrUnsupported].
func (d *Dialer) Dial(ctx context.Context, to netip.AddrPort) (*os.File, error) {
	return nil, unsupported("connect", to.String())
}

// TUN is a TUN device; it exists on Linux only.
type TUN struct{}

// OpenTUN returns an error that wraps [ErrUnsupported].
func OpenTUN(name string, mtu int) (*TUN, error) { return nil, unsupported("open TUN device", name) }

// OpenTUNQueues returns an error that wraps [ErrUnsupported].
func OpenTUNQueues(name string, mtu, n int) ([]*TUN, error) {
	return nil, unsupported("open TUN device", name)
}

// Name returns "".
func (t *TUN) Name() string { return "" }

// Features returns "".
func (t *TUN) Features() string { return "" }

// Dropped returns 0.
func (t *TUN) Dropped() uint64 { return 0 }

// ReadBatch returns os.ErrClosed.
func (t *TUN) ReadBatch(bufs [][]byte, sizes []int, off int) (int, error) { return 0, os.ErrClosed }

// WriteBatch returns os.ErrClosed.
func (t *TUN) WriteBatch(bufs [][]byte, off int) (int, error) { return 0, os.ErrClosed }

// Close does nothing.
func (t *TUN) Close() error { return nil }

// Socket is a UDP or raw ESP socket; it exists on Linux only.
type Socket struct{}

// ListenUDP returns an error that wraps [ErrUnsupported].
func ListenUDP(addr netip.AddrPort) (*Socket, error) {
	return nil, unsupported("listen on UDP", addr.String())
}

// ListenUDPGroup returns an error that wraps [ErrUnsupported].
func ListenUDPGroup(addr netip.AddrPort, n int) ([]*Socket, error) {
	return nil, unsupported("listen on UDP", addr.String())
}

// ListenAH returns an error that wraps [ErrUnsupported].
func ListenAH(v6 bool) (*Socket, error) { return nil, unsupported("listen for", "AH") }

// ListenESP returns an error that wraps [ErrUnsupported].
func ListenESP(v6 bool) (*Socket, error) { return nil, unsupported("listen for", "ESP") }

// ListenICMP returns an error that wraps [ErrUnsupported].
func ListenICMP(v6 bool) (*Socket, error) { return nil, unsupported("listen for", "ICMP") }

// Features returns "".
func (s *Socket) Features() string { return "" }

// LocalPort returns 0.
func (s *Socket) LocalPort() uint16 { return 0 }

// ReadBatch returns os.ErrClosed.
func (s *Socket) ReadBatch(d []esp.Datagram) (int, error) { return 0, os.ErrClosed }

// WriteBatch returns os.ErrClosed.
func (s *Socket) WriteBatch(d []esp.Datagram) (int, error) { return 0, os.ErrClosed }

// Close does nothing.
func (s *Socket) Close() error { return nil }

// Network is the policy routing; it exists on Linux only.
type Network struct{}

// OpenNetwork returns an error that wraps [ErrUnsupported].
func OpenNetwork() (*Network, error) { return nil, unsupported("open", "policy routing") }

// Apply returns an error that wraps [ErrUnsupported].
func (n *Network) Apply(device string, policies []esp.Policy) error {
	return unsupported("set", "policy routing")
}

// Clear returns an error that wraps [ErrUnsupported].
func (n *Network) Clear() error { return unsupported("clear", "policy routing") }

// SetDevice returns an error that wraps [ErrUnsupported].
func (n *Network) SetDevice(device string, addrs, had []netip.Prefix) error {
	return unsupported("set addresses of", device)
}

// ForgetDevice does nothing.
func (n *Network) ForgetDevice(device string) {}

// Source returns an error that wraps [ErrUnsupported].
func (n *Network) Source(remote netip.Addr) (netip.Addr, error) {
	return netip.Addr{}, unsupported("look up the route to", remote.String())
}

// LinkMTU returns an error that wraps [ErrUnsupported].
func (n *Network) LinkMTU(remote netip.Addr) (int, error) {
	return 0, unsupported("look up the route to", remote.String())
}

// LinkTo returns an error that wraps [ErrUnsupported].
func (n *Network) LinkTo(remote netip.Addr) (string, error) {
	return "", unsupported("look up the route to", remote.String())
}

// RunScript returns an error that wraps [ErrUnsupported].
func RunScript(ctx context.Context, command string, env []string, line func(text []byte)) error {
	return unsupported("run", "script")
}

// SetMTU returns an error that wraps [ErrUnsupported].
func (n *Network) SetMTU(device string, mtu int) error { return unsupported("set mtu of", device) }

// Addresses returns an error that wraps [ErrUnsupported].
func (n *Network) Addresses() ([]netip.Addr, error) { return nil, unsupported("list", "addresses") }

// Close does nothing.
func (n *Network) Close() error { return nil }

// AddressWatch waits for changes of the host's addresses; it exists on Linux only.
type AddressWatch struct{}

// WatchAddresses returns an error that wraps [ErrUnsupported].
func WatchAddresses() (*AddressWatch, error) { return nil, unsupported("watch", "addresses") }

// Wait returns os.ErrClosed.
func (w *AddressWatch) Wait() error { return os.ErrClosed }

// Close does nothing.
func (w *AddressWatch) Close() error { return nil }

// State is a directory that survives a restart; it exists on Linux only.
type State struct{}

// OpenState returns an error that wraps [ErrUnsupported].
func OpenState(dir string) (*State, error) { return nil, unsupported("open", dir) }

// Load returns an error that wraps [ErrUnsupported].
func (s *State) Load(name string) ([]byte, error) { return nil, unsupported("load", name) }

// Store returns an error that wraps [ErrUnsupported].
func (s *State) Store(name string, b []byte) error { return unsupported("store", name) }

// Close does nothing.
func (s *State) Close() error { return nil }

// SetDNS returns an error that wraps [ErrUnsupported].
func SetDNS(how, file, device string, all []netip.Addr, domains map[string][]netip.Addr) error {
	return unsupported("set name servers of", device)
}

// CheckPrivileges returns an error that wraps [ErrUnsupported].
func CheckPrivileges(rawESP bool) error { return unsupported("check", "privileges") }

// HardenProcess does nothing.
func HardenProcess() error { return nil }

// MemoryTotal returns 0: unknown.
func MemoryTotal() uint64 { return 0 }

// MIPSRelease2 returns false.
func MIPSRelease2() bool { return false }

// Files is a directory that survives a restart; it exists on Linux only.
type Files struct{}

// OpenFiles returns an error that wraps [ErrUnsupported].
func OpenFiles(dir string, count int, octets int64) (*Files, error) {
	return nil, unsupported("open", dir)
}

// Load returns an error that wraps [ErrUnsupported].
func (d *Files) Load(name string) ([]byte, error) { return nil, unsupported("load", name) }

// Store returns an error that wraps [ErrUnsupported].
func (d *Files) Store(name string, b []byte) error { return unsupported("store", name) }
