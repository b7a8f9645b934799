package platform

import (
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"

	"postern/esp"
)

// How large packets may be on their way. A router that has to drop one tells its sender by an
// ICMP message, which anybody can forge. The kernel believes what comes for one of its sockets, and
// keeps it for all that goes to that address; so the sockets that carry ESP do not follow
// it, and a socket of its own reads the messages, for the engine to judge by what they quote.

// icmpBuffer is what the socket for ICMP asks of the kernel: a few dozen messages.
const icmpBuffer = 32 << 10

// ListenICMP opens a raw socket for the messages "destination unreachable" of ICMP or "packet too
// big" of ICMPv6, whose datagrams begin with the message. It is for reading.
func ListenICMP(v6 bool) (*Socket, error) {
	s := &Socket{v6: v6, raw: true, icmp: true, object: "raw ICMP socket"}
	proto := unix.IPPROTO_ICMP
	if v6 {
		s.object += " (IPv6)"
		proto = unix.IPPROTO_ICMPV6
	}
	if err := s.open(unix.SOCK_RAW, proto, 0); err != nil {
		return nil, err
	}
	var ferr error
	err := s.rc.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, icmpBuffer)
		if v6 {
			f := &unix.ICMPv6Filter{}
			for i := range f.Data {
				f.Data[i] = 1<<32 - 1 // a bit that is set keeps its type away
			}
			f.Data[0] &^= 1 << icmp6TooBig
			ferr = unix.SetsockoptICMPv6Filter(int(fd), unix.IPPROTO_ICMPV6, icmp6Filter, f)
			return
		}
		ferr = unix.SetsockoptInt(int(fd), unix.SOL_RAW, icmpFilter, ^(1 << icmpUnreachable))
	})
	if err = errors.Join(err, ferr); err != nil {
		_ = s.Close()
		return nil, s.openError("filter messages of", err)
	}
	return s, nil
}

// Of the kernel's headers icmp.h and icmpv6.h.
const (
	icmpFilter      = 1 // ICMP_FILTER, ICMPV6_FILTER
	icmp6Filter     = 1
	icmpUnreachable = 3
	icmp6TooBig     = 2
)

// cutting is how a datagram may be cut on its way: a state of the socket.
type cutting uint8

const (
	cutSystem cutting = iota // as the kernel knows the path: messages of IKE may be larger than it
	cutNever                 // DF, and no look at what the kernel has been told of the path
	cutAny                   // IPv4: by any router, and here by the link's MTU alone
)

// cuttingOf returns how a datagram may be cut. IPv6 is cut by its sender alone, and the kernel does
// it by what it knows of the path itself: it has seen the same messages.
func (s *Socket) cuttingOf(d *esp.Datagram) cutting {
	switch {
	case d.Path == 0 && !d.DF || s.whole || !s.cuts:
		return cutSystem
	case d.DF || s.v6 && d.N+udpHeaders6 <= int(d.Path):
		return cutNever
	case s.v6:
		return cutSystem
	}
	return cutAny
}

// alikeCut returns how many datagrams, at least one, may be cut as the first.
func (s *Socket) alikeCut(d []esp.Datagram) (n int, c cutting) {
	c = s.cuttingOf(&d[0])
	for n = 1; n < len(d) && s.cuttingOf(&d[n]) == c; n++ {
	}
	return n, c
}

// setCutting brings the socket into the state for datagrams that are about to be sent. It belongs to
// wmu's holder.
func (s *Socket) setCutting(fd int, c cutting) error {
	level, name := s.discovery()
	value := [...]int{cutSystem: unix.IP_PMTUDISC_DONT, cutNever: unix.IP_PMTUDISC_PROBE, cutAny: pmtuOmit}[c]
	err := unix.SetsockoptInt(fd, level, name, value)
	if err == nil {
		s.state = c
	}
	return err
}

// discovery names the option that says whether packets may be cut. Its values are the same in both
// families.
func (s *Socket) discovery() (level, name int) {
	if s.v6 {
		return unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER
	}
	return unix.IPPROTO_IP, unix.IP_MTU_DISCOVER
}

// pmtuOmit is IP_PMTUDISC_OMIT and IPV6_PMTUDISC_OMIT: packets are cut by the link's MTU, whatever
// the kernel has been told of the path (Linux 3.15).
const pmtuOmit = unix.IP_PMTUDISC_OMIT

// knowsCutting tells whether the kernel has all that setCutting asks for. It leaves a socket for whole
// packets, whose headers say it, so that the link alone counts, and others in the state cutSystem. Without
// it datagrams may be cut by everybody, as the kernel sees fit.
func (s *Socket) knowsCutting(fd int) bool {
	level, name := s.discovery()
	err := unix.SetsockoptInt(fd, level, name, pmtuOmit)
	if err == nil && !s.whole {
		err = unix.SetsockoptInt(fd, level, name, unix.IP_PMTUDISC_DONT)
	}
	return err == nil
}

// LinkMTU returns the MTU of the link that the route to remote leads through, the tunnel's own
// rules aside.
func (n *Network) LinkMTU(remote netip.Addr) (int, error) {
	t, err := n.nl.routeTo(remote.Unmap(), Mark)
	if err != nil {
		return 0, err
	}
	l, err := n.nl.LinkByIndex(t.Index)
	return l.MTU, err
}

// LinkTo returns the name of the link that the route to remote leads through, the tunnel's own rules
// aside.
func (n *Network) LinkTo(remote netip.Addr) (string, error) {
	t, err := n.nl.routeTo(remote.Unmap(), Mark)
	if err != nil {
		return "", err
	}
	l, err := n.nl.LinkByIndex(t.Index)
	return l.Name, err
}

// SetMTU sets the MTU of the TUN device of that name.
func (n *Network) SetMTU(device string, mtu int) error {
	l, err := n.nl.LinkByName(device)
	if err != nil {
		return err
	}
	return n.nl.SetLinkMTU(l.Index, mtu)
}
