package platformtest

import (
	"errors"
	"net/netip"
	"slices"
	"sync"

	"postern/esp"
)

// Apply is one call of Network.Apply.
type Apply struct {
	Device   string
	Policies []esp.Policy // a copy
}

// Network records what policy routing is asked for. Its zero value is usable; it knows
// no routes. Any number of goroutines may call it.
type Network struct {
	mu      sync.Mutex
	applied []Apply
	clears  int
	routes  map[netip.Addr]netip.Addr
	hosts   []netip.Addr
	fail    error
}

// ErrNoRoute is what Source returns for an address that it knows no route to.
var ErrNoRoute = errors.New("network is unreachable")

// NewNetwork makes one for a host: the source towards every address of a family is the
// first of its addresses of that family.
func NewNetwork(h *Host) *Network { return &Network{hosts: h.addrs} }

// SetSource sets the source towards one address; the zero Addr means: no route.
func (n *Network) SetSource(remote, source netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.routes == nil {
		n.routes = map[netip.Addr]netip.Addr{}
	}
	n.routes[remote] = source
}

// Fail makes Apply and Clear return err from now on; nil ends that.
func (n *Network) Fail(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fail = err
}

// Apply records the call.
func (n *Network) Apply(device string, policies []esp.Policy) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fail != nil {
		return n.fail
	}
	a := Apply{Device: device}
	for _, p := range policies {
		p.LocalTS, p.RemoteTS = slices.Clone(p.LocalTS), slices.Clone(p.RemoteTS)
		a.Policies = append(a.Policies, p)
	}
	n.applied = append(n.applied, a)
	return nil
}

// Clear records the call.
func (n *Network) Clear() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fail != nil {
		return n.fail
	}
	n.clears++
	return nil
}

// Applied returns the calls of Apply up to now, and how many calls of Clear there were.
func (n *Network) Applied() (calls []Apply, clears int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.applied), n.clears
}

// Source returns the address that packets to remote leave from.
func (n *Network) Source(remote netip.Addr) (netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	src, known := n.routes[remote]
	for _, h := range n.hosts {
		if !known && h.Is6() == remote.Is6() {
			src, known = h, true
		}
	}
	if !src.IsValid() {
		return netip.Addr{}, ErrNoRoute
	}
	return src, nil
}
