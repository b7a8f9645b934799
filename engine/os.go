package engine

import (
	"context"
	"net/netip"

	"postern/esp"
)

// Device is a TUN device. ReadBatch blocks until at least one packet is there and puts
// packet i at bufs[i][off:off+sizes[i]]; it returns how many packets it read.
// WriteBatch writes bufs[i][off:]. Both are safe for one reader and several writers
// at once, allocate nothing, and return an error that wraps os.ErrClosed after Close.
type Device interface {
	Name() string
	ReadBatch(bufs [][]byte, sizes []int, off int) (int, error)
	WriteBatch(bufs [][]byte, off int) (int, error)
	Close() error
}

// Socket is a UDP socket, or a raw socket for IP protocol 50, of one address family.
// ReadBatch blocks until at least one datagram is there and fills in N, Local, Remote
// and TOS; on a raw socket Buf starts with the ESP header. WriteBatch sends from
// Local where it is valid and returns how many datagrams it sent before the error.
// One reader and several writers may use it at once; neither allocates.
type Socket interface {
	ReadBatch(d []esp.Datagram) (int, error)
	WriteBatch(d []esp.Datagram) (int, error)
	Close() error
}

// Network sets what the kernel must know so that packets find the tunnel and the
// tunnel's own packets do not.
type Network interface {
	// Apply makes the kernel route what the policies protect into the device, and
	// nothing else that was not routed there before. It is idempotent, replaces what an
	// earlier call (or a process that was killed) left, and leaves a policy without a
	// device fail-closed: its packets are dropped, never sent in clear.
	Apply(device string, policies []esp.Policy) error
	// Clear takes everything back.
	Clear() error
	// Source returns the local address that the route to remote leaves from, the
	// tunnel's own rules aside.
	Source(remote netip.Addr) (netip.Addr, error)
}

// AddressWatch tells when the host's addresses change. Wait blocks until one may have come
// or gone; after Close its error wraps os.ErrClosed.
type AddressWatch interface {
	Wait() error
	Close() error
}

// OS is what the engine needs of the operating system; main fills it from package
// platform, tests from fakes. Errors name the operation and its object, and say what
// to do.
type OS struct {
	// OpenTUN makes (or takes over) the TUN device, sets its MTU and brings it up.
	OpenTUN func(name string, mtu int) (Device, error)
	// ListenUDP binds to addr, an unspecified address of either family. What it sends is
	// marked, so that policy routing lets it pass by the tunnel.
	ListenUDP func(addr netip.AddrPort) (Socket, error)
	// ListenESP opens a raw socket for IP protocol 50, of IPv6 or of IPv4.
	ListenESP func(v6 bool) (Socket, error)
	Network   Network
	// WatchAddresses subscribes to changes of the host's addresses; nil if the system
	// cannot tell of them.
	WatchAddresses func() (AddressWatch, error)
	// Resolve returns the addresses of a name of the DNS, as it is now, trying until ctx
	// ends; its queries pass by the tunnel. nil: names of peers are refused.
	Resolve func(ctx context.Context, name string) ([]netip.Addr, error)
	// MemoryTotal is the device's RAM in octets, 0 if unknown.
	MemoryTotal func() uint64
}
