package platform

import (
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
)

// zones translates between the names of interfaces, which link-local addresses carry in
// a configuration (fe80::1%eth0), and the numbers that sockets want. It remembers the
// last few, so that a tunnel over link-local addresses allocates nothing for each packet.
// Addresses that are not link-local have no zone and cost nothing here.
type zones struct {
	mu    sync.Mutex
	known [4]zone
	next  int
}

type zone struct {
	index uint32
	name  string
}

// add gives a link-local address the zone of the interface with that index.
func (z *zones) add(ip netip.Addr, index uint32) netip.Addr {
	if index == 0 || !needsZone(ip) {
		return ip
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	for _, k := range z.known {
		if k.index == index {
			return ip.WithZone(k.name)
		}
	}
	var ifr unix.Ifreq
	ifr.SetUint32(index)
	if ifreqCall(unix.SIOCGIFNAME, &ifr) != nil {
		return ip
	}
	z.remember(zone{index, ifr.Name()})
	return ip.WithZone(ifr.Name())
}

// index returns the number of the interface that is the address's zone, 0 if it has none
// or there is no such interface (any more).
func (z *zones) index(ip netip.Addr) uint32 {
	if !needsZone(ip) || ip.Zone() == "" {
		return 0
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	for _, k := range z.known {
		if k.name == ip.Zone() {
			return k.index
		}
	}
	ifr, err := unix.NewIfreq(ip.Zone())
	if err != nil || ifreqCall(unix.SIOCGIFINDEX, ifr) != nil {
		return 0
	}
	z.remember(zone{ifr.Uint32(), ip.Zone()})
	return ifr.Uint32()
}

// forget drops what may have gone stale.
func (z *zones) forget() {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.known = [len(z.known)]zone{}
}

func (z *zones) remember(k zone) {
	z.known[z.next] = k
	z.next = (z.next + 1) % len(z.known)
}

func needsZone(ip netip.Addr) bool {
	return ip.Is6() && (ip.IsLinkLocalUnicast() || ip.IsLinkLocalMulticast())
}

func ifreqCall(req uint, ifr *unix.Ifreq) error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.IoctlIfreq(fd, req, ifr)
}
