package platform

import (
	"errors"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// SetDevice says that a TUN device is inside a tunnel: [Network.Source] takes no route into it,
// and [Network.Addresses] leaves its addresses out. It gives the device these addresses, each
// with the length of its network, and takes away those that are in had alone; one that is there
// already, or gone already, is no error. The error wraps ENODEV if there is no such device.
func (n *Network) SetDevice(device string, addrs, had []netip.Prefix) error {
	l, err := n.nl.LinkByName(device)
	if err != nil {
		return err
	}
	n.mu.Lock()
	if n.inner == nil {
		n.inner = map[string]int{}
	}
	n.inner[device] = l.Index
	n.mu.Unlock()
	for _, p := range had {
		if slices.Contains(addrs, p) {
			continue
		}
		if err := n.nl.DeleteAddr(Addr{Index: l.Index, Prefix: p}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return err
		}
	}
	for _, p := range addrs {
		a := Addr{Index: l.Index, Prefix: p}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD // nobody else is on such a link
		}
		if err := n.nl.AddAddr(a); err != nil {
			return err
		}
	}
	return nil
}

// ForgetDevice takes back what SetDevice said of a device that is gone.
func (n *Network) ForgetDevice(device string) {
	n.mu.Lock()
	delete(n.inner, device)
	n.mu.Unlock()
}

// isInner tells whether a device inside a tunnel has that index.
func (n *Network) isInner(index int) (inner bool) {
	n.mu.Lock()
	for _, i := range n.inner {
		inner = inner || i == index
	}
	n.mu.Unlock()
	return inner
}
