package platform

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Several sockets of one port, so that several workers read without sharing a lock:
//
//	1 the first is bound alone, which fails if anybody has the port, whatever they allow
//	2 all get an owner that nobody is (groupOwner): the kernel lets a socket join only
//	  those of its own user, so from here on the port is closed to others
//	3 the others join, in the order of their numbers
//	4 a filter in the kernel chooses among them by the SPI
//
// Where the process may not change the owner (CAP_CHOWN; a user namespace without other
// users), a program of the same user that asks to share the port (SO_REUSEPORT) can bind it,
// too. Datagrams to the unspecified address are not lost to it: the filter knows the first
// sockets alone. One that binds to a single address of the host gets what is for that.

// groupOwner is the user whom the sockets of a group belong to: the last that a kernel can
// tell, -2 as an unsigned number.
const groupOwner = -2

// maxGroup bounds a group; no board has more cores to read with.
const maxGroup = 64

// ListenUDPGroup is [ListenUDP] with up to n sockets (1 to 64) of the same port. A datagram
// that begins with a 32-bit word w other than 0, which is the SPI of an ESP packet, arrives
// at socket w % n of those that are returned; all others, IKE behind its marker and
// keepalives (RFC 3948 section 2), at the first. Datagrams that the kernel joins go together
// where one of them goes. Where the kernel cannot be told so ([Socket.Features] lacks
// SPI-steering), a hash of the addresses decides; where it does not let sockets share a
// port, or has no memory for n, there are fewer. Close them together: when one is missing
// the others are not chosen as before.
func ListenUDPGroup(addr netip.AddrPort, n int) ([]*Socket, error) {
	if n < 1 || n > maxGroup {
		return nil, &OpError{Op: "listen on UDP", Object: addr.String(), Err: fmt.Errorf("%d sockets were asked for, not 1 to %d", n, maxGroup)}
	}
	first, err := ListenUDP(addr)
	if err != nil {
		return nil, err
	}
	group := []*Socket{first}
	if n == 1 || control(first.file, joinGroup) != nil {
		return group, nil
	}
	for len(group) < n {
		s, err := listenPort(netip.AddrPortFrom(addr.Addr(), first.port), true)
		if err != nil {
			break
		}
		group = append(group, s)
	}
	if len(group) == 1 {
		_ = control(first.file, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 0) })
		return group, nil
	}
	if control(first.file, func(fd int) error { return steer(fd, len(group)) }) == nil {
		for _, s := range group {
			s.steered = true
		}
	}
	return group, nil
}

// joinGroup lets a socket share its port with those of the group, and, if the process
// may, with no others.
func joinGroup(fd int) error {
	_ = unix.Fchown(fd, groupOwner, -1)
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
}

// steer attaches the filter to the group of n that the socket is in (Linux 4.5). It sees a
// datagram from behind the UDP header, and its result is the number of the socket. A load
// from beyond the end is result 0.
func steer(fd, n int) error {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0},
		{Code: unix.BPF_ALU | unix.BPF_MOD | unix.BPF_K, K: uint32(n)},
		{Code: unix.BPF_RET | unix.BPF_A},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &prog)
}
