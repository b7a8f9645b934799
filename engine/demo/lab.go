// Package demo shows a whole site on one machine: a control room, two gateways with a
// network between them, and a plant, each in a network namespace of its own. The
// gateways run the real daemon; a Modbus/TCP client polls a server through the tunnel
// while keys are exchanged. It ends by itself and leaves nothing behind.
//
//	control room ── gateway A ══ router (WAN) ══ gateway B ── plant
//
// The daemon is built with it only under the tag demo: it wants the calls to the
// operating system that Lab names, and no router needs them.
package demo

import (
	"net"
	"net/netip"
	"os/exec"
	"time"
)

// Lab makes hosts and networks out of namespaces. Everything it made is gone when the
// process and its children are.
type Lab interface {
	// Host makes a host: a network namespace whose loopback is up.
	Host(name string) (Host, error)
	// Connect lays a cable between two hosts: an interface on each, with the address
	// and the prefix of the network, both up when it returns.
	Connect(a Host, aName string, aAddr netip.Prefix, b Host, bName string, bAddr netip.Prefix) error
	// Close ends what holds the namespaces.
	Close() error
}

// Host is one host of a Lab.
type Host interface {
	// Route sends what is for dst to the neighbour via.
	Route(dst netip.Prefix, via netip.Addr) error
	// Forward makes the host forward IPv4 between its interfaces. It is called when all
	// interfaces are there.
	Forward() error
	// Start starts a program on the host. It is killed when this process dies.
	Start(cmd *exec.Cmd) error
	// Listen and Dial open TCP sockets on the host.
	Listen(addr netip.AddrPort) (*net.TCPListener, error)
	Dial(addr netip.AddrPort, timeout time.Duration) (net.Conn, error)
	// Capture returns what passes an interface, as IP packets from the moment of the
	// call on. Close ends it.
	Capture(device string) (Capture, error)
}

// Capture is a running capture.
type Capture interface {
	// Next waits for a frame and copies it to buf: the network protocol's number
	// (EtherType) and the packet behind the link's header. It returns an error that wraps
	// os.ErrClosed after Close.
	Next(buf []byte) (etherType uint16, n int, err error)
	// Lost returns how many frames came too fast.
	Lost() (int, error)
	Close() error
}
