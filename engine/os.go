package engine

import (
	"context"
	"io"
	"net/netip"
	"time"

	"postern/esp"
)

// Device is a TUN device, or one of its queues. ReadBatch blocks until at least one packet is there and puts
// packet i at bufs[i][off:off+sizes[i]]; it returns how many packets it read.
// WriteBatch writes bufs[i][off:]. Both are safe for one reader and several writers
// at once, allocate nothing, and return an error that wraps os.ErrClosed after Close.
// The kernel sends a flow to the queue through which the opposite direction of that flow
// was last written, and else to any. Features names, separated by spaces, what was
// found by trying to speed the device up; "" if nothing was.
type Device interface {
	Name() string
	ReadBatch(bufs [][]byte, sizes []int, off int) (int, error)
	WriteBatch(bufs [][]byte, off int) (int, error)
	Features() string
	Close() error
}

// Socket is a UDP socket, or a raw socket for IP protocol 50, of one address family.
// ReadBatch blocks until at least one datagram is there and fills in N, Local, Remote
// and TOS; on a raw socket Buf starts with the ESP header. It may put memory of its own in
// the place of Buf, which may be used, and written to, until the next ReadBatch. The datagrams
// behind those that it returns stay as they are.
// WriteBatch sends from Local where it is valid and returns how many datagrams it sent
// before the error. One reader and several writers may use it at once; neither allocates. A
// write that is blocked ends with an error when the socket is closed. Features is as in Device.
type Socket interface {
	ReadBatch(d []esp.Datagram) (int, error)
	WriteBatch(d []esp.Datagram) (int, error)
	Features() string
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
	// SetDevice says that a TUN device is inside a tunnel, so that no path to a peer leads
	// through it, and gives it those addresses that it had not, and takes the others of had away.
	SetDevice(device string, addrs, had []netip.Prefix) error
	// ForgetDevice takes back the former; the device is gone.
	ForgetDevice(device string)
	// Source returns the local address that the route to remote leaves from, the
	// tunnel's own rules aside. A link that is down leads nowhere, nor does one that is inside
	// a tunnel.
	Source(remote netip.Addr) (netip.Addr, error)
}

// AddressWatch tells when the host's addresses, routes or links change. Wait blocks until
// one may have come or gone; after Close its error wraps os.ErrClosed.
type AddressWatch interface {
	Wait() error
	Close() error
}

// State keeps small secrets over a restart, for the owner alone and one process at a time.
// The error of Load wraps fs.ErrNotExist where nothing is kept under the name.
type State interface {
	Load(name string) ([]byte, error)
	Store(name string, b []byte) error
	Close() error
}

// Files keeps files over a restart that can be had again, within bounds of its own. The error
// of Load wraps fs.ErrNotExist where nothing is kept under the name. Several goroutines may use
// it at once.
type Files interface {
	Load(name string) ([]byte, error)
	Store(name string, b []byte) error
}

// Stream is a connection over TCP. After SetDeadline its calls end at that time with an error that
// wraps os.ErrDeadlineExceeded.
type Stream interface {
	io.ReadWriteCloser
	SetDeadline(t time.Time) error
}

// OS is what the engine needs of the operating system; main fills it from package
// platform, tests from fakes. Errors name the operation and its object, and say what
// to do.
type OS struct {
	// OpenTUN makes (or takes over) the TUN device, sets its MTU and brings it up. It
	// returns its queues: at least one, and as many as asked for where the system can.
	OpenTUN func(name string, mtu, queues int) ([]Device, error)
	// ListenUDP binds 1 to n sockets to addr, an unspecified address of either family.
	// What they send is marked, so that policy routing lets it pass by the tunnel. Of
	// several sockets, ESP arrives at the one that its SPI, modulo their number, says, and
	// all else at the first; but the system may distribute in another way.
	ListenUDP func(addr netip.AddrPort, n int) ([]Socket, error)
	// ListenESP opens a raw socket for IP protocol 50, of IPv6 or of IPv4.
	ListenESP func(v6 bool) (Socket, error)
	// ListenAH opens a raw socket for IP protocol 51, whose datagrams have their IP header in
	// both directions. It sends whole packets of ESP as well.
	ListenAH func(v6 bool) (Socket, error)
	// ListenICMP opens a raw socket that reads "destination unreachable" of ICMP or "packet too
	// big" of ICMPv6; nil: path MTUs are not learned.
	ListenICMP func(v6 bool) (Socket, error)
	// LinkMTU returns the MTU of the link that the route to remote leads through; nil: unknown.
	LinkMTU func(remote netip.Addr) (int, error)
	// LinkTo returns the name of the link that the route to remote leads through; nil: unknown.
	LinkTo func(remote netip.Addr) (string, error)
	// RunScript has the shell run a command with an environment, to which it adds PATH alone, and gives line
	// what it says, line by line, in pieces of bounded length that are line's for the call alone. When ctx ends
	// it kills the shell and what that has started, and the error wraps ctx.Err(); a status other than 0 is an
	// error, too. nil: no script is run.
	RunScript func(ctx context.Context, command string, env []string, line func(text []byte)) error
	// SetMTU sets the MTU of the TUN device while it is used; nil: that cannot be done.
	SetMTU  func(device string, mtu int) error
	Network Network
	// WatchAddresses subscribes to changes of the host's addresses, routes and links; nil
	// if the system cannot tell of them.
	WatchAddresses func() (AddressWatch, error)
	// OpenState opens the directory for what survives a restart; nil if nothing can.
	OpenState func(dir string) (State, error)
	// OpenFiles opens the directory for so many public files with so many octets together, that
	// survive a restart; nil if nothing can.
	OpenFiles func(dir string, count int, octets int64) (Files, error)
	// Addresses lists the host's addresses; nil if the system cannot tell.
	Addresses func() ([]netip.Addr, error)
	// Resolve returns the addresses of a name of the DNS, as it is now, and how long they are
	// good for (0: unknown), trying until ctx ends; its queries pass by the tunnel. nil: names
	// of peers are refused.
	Resolve func(ctx context.Context, name string) (list []netip.Addr, ttl time.Duration, err error)
	// SetDNS has the programs of this host ask these servers: all for every name, and those of
	// domains for a domain and what is below it. It replaces what this or another process has
	// set; without servers it takes that away. how is a word of config.DNSMode but "none". It
	// may take some seconds. nil: nobody can be told.
	SetDNS func(how, file, device string, all []netip.Addr, domains map[string][]netip.Addr) error
	// Dial connects to a server over TCP, until ctx ends; the packets pass by the tunnel. nil:
	// nothing can be fetched.
	Dial func(ctx context.Context, to netip.AddrPort) (Stream, error)
	// Sleep returns after that time as precisely as the system can, not earlier; nil: time.Sleep.
	// It may keep a thread.
	Sleep func(d time.Duration)
	// Hurry gives the calling thread precedence over others, if the process may; nil: nothing can.
	Hurry func()
	// MemoryTotal is the device's RAM in octets, 0 if unknown.
	MemoryTotal func() uint64
}
