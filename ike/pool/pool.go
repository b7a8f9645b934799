// Package pool gives out the virtual addresses of a gateway: who gets which, and who gets
// the same one again. It knows neither IKE nor the clock and does no I/O.
//
// What it remembers is bounded by Config.Max, whatever the number of addresses: an IPv6
// pool of 2^64 costs no more than one of 16.
package pool

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"slices"
	"sort"
)

// Range is the addresses from First to Last, both included, of one family.
type Range struct{ First, Last netip.Addr }

// Contains tells whether a lies in the range.
func (r Range) Contains(a netip.Addr) bool {
	return a.BitLen() == r.First.BitLen() && r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0
}

// maxSize stands for every number of addresses from there on.
const maxSize = 1 << 62

// Size returns the number of addresses, at most 2^62.
func (r Range) Size() int64 {
	if r.First.BitLen() != r.Last.BitLen() || r.First.Compare(r.Last) > 0 {
		return 0
	}
	a, b := r.First.As16(), r.Last.As16()
	low, borrow := bits.Sub64(binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(a[8:]), 0)
	high, _ := bits.Sub64(binary.BigEndian.Uint64(b[:]), binary.BigEndian.Uint64(a[:]), borrow)
	if high != 0 || low >= maxSize-1 {
		return maxSize
	}
	return int64(low) + 1
}

// Prefix returns the range of a prefix as gateways give it out: without the first and the
// last address, which in IPv4 name the network and everybody in it, unless it has no more
// than two.
func Prefix(p netip.Prefix) Range {
	p = p.Masked()
	first := p.Addr()
	b := first.AsSlice()
	for i := p.Bits(); i < first.BitLen(); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	if first.BitLen()-p.Bits() > 1 {
		return Range{first.Next(), last.Prev()}
	}
	return Range{first, last}
}

// Static keeps an address for one owner. It may lie outside of the ranges.
type Static struct {
	Owner string
	Addr  netip.Addr
}

// Config is what a pool is made of. All addresses are of one family; ranges do not overlap.
type Config struct {
	Ranges []Range
	Static []Static
	Max    int // leases that are remembered, 1 or more
}

// lease is an address with its owner. Without users it is offline: remembered for the owner,
// and given to others when nothing else is left.
type lease struct {
	addr       netip.Addr
	owner      string
	users      int
	prev, next *lease // in the list of those offline, the oldest first
}

// Pool gives out addresses. An owner is any text that stands for an identity. It is not
// safe for concurrent use.
type Pool struct {
	cfg      Config
	size     int64 // of the ranges
	kept     int   // reserved addresses inside of the ranges
	reserved map[netip.Addr]string
	leases   map[netip.Addr]*lease
	owners   map[string][]*lease
	offline  lease // root of the ring
	online   int
	dynamic  int // leases of addresses that may be anybody's
	at       int // the range and the address where the search for one goes on
	next     netip.Addr
}

// New makes a pool.
func New(c Config) *Pool {
	p := &Pool{cfg: c, reserved: make(map[netip.Addr]string, len(c.Static)), leases: map[netip.Addr]*lease{}, owners: map[string][]*lease{}}
	p.offline.prev, p.offline.next = &p.offline, &p.offline
	for _, r := range c.Ranges {
		p.size = min(p.size+r.Size(), maxSize)
	}
	for _, s := range c.Static {
		if _, twice := p.reserved[s.Addr]; !twice && p.inRange(s.Addr) {
			p.kept++
		}
		p.reserved[s.Addr] = s.Owner
	}
	if len(c.Ranges) > 0 {
		p.next = c.Ranges[0].First
	}
	return p
}

// Size returns the number of addresses: those of the ranges and static ones outside.
func (p *Pool) Size() int64 { return min(p.size+int64(len(p.reserved)-p.kept), maxSize) }

// Base returns the first address.
func (p *Pool) Base() netip.Addr {
	if len(p.cfg.Ranges) == 0 {
		if len(p.cfg.Static) == 0 {
			return netip.Addr{}
		}
		return p.cfg.Static[0].Addr
	}
	return p.cfg.Ranges[0].First
}

// Is4 tells whether the addresses are of IPv4.
func (p *Pool) Is4() bool { return p.Base().Is4() }

// Online returns how many addresses are in use, and Offline how many more are remembered.
func (p *Pool) Online() int { return p.online }

// Offline returns how many addresses are remembered for owners that are away.
func (p *Pool) Offline() int { return len(p.leases) - p.online }

func (p *Pool) inRange(a netip.Addr) bool {
	return slices.ContainsFunc(p.cfg.Ranges, func(r Range) bool { return r.Contains(a) })
}

// everybodys tells whether the address may be given to anybody.
func (p *Pool) everybodys(a netip.Addr) bool {
	_, static := p.reserved[a]
	return !static && p.inRange(a)
}

// Assign gives owner an address: want, if that is valid and may be had. In this order:
// a static address of the owner; one that the owner uses already and that share lets it use
// once more; the one that it had; want; one that nobody has had, or whose owner is
// forgotten; the one that has been offline for the longest time. Each Assign needs a Release.
// ok is false if every address is in use, or no more leases can be remembered.
func (p *Pool) Assign(owner string, want netip.Addr, share func(netip.Addr) bool) (a netip.Addr, ok bool) {
	if a, ok := p.static(owner, want, share); ok {
		return a, true
	}
	var mine *lease
	for _, l := range p.owners[owner] {
		switch {
		case l.users > 0 && share(l.addr) && p.everybodys(l.addr):
			if l.addr == want {
				return p.use(l), true
			}
			if mine == nil || mine.users == 0 {
				mine = l
			}
		case l.users == 0 && l.addr == want:
			return p.use(l), true
		case l.users == 0 && mine == nil:
			mine = l
		}
	}
	if mine != nil && mine.users > 0 {
		return p.use(mine), true
	}
	if p.leases[want] == nil && p.everybodys(want) && p.room(mine) {
		if mine != nil && mine.users == 0 {
			p.forget(mine) // or an owner could fill the memory with addresses that it asks for
		}
		return p.use(p.lease(owner, want)), true
	}
	if mine != nil {
		return p.use(mine), true
	}
	if int64(p.dynamic) < p.size-int64(p.kept) {
		if a := p.fresh(); p.room(nil) {
			return p.use(p.lease(owner, a)), true
		}
	}
	if l := p.offline.next; l != &p.offline {
		a := l.addr
		p.forget(l)
		return p.use(p.lease(owner, a)), true
	}
	return netip.Addr{}, false
}

// static returns an address that is kept for the owner.
func (p *Pool) static(owner string, want netip.Addr, share func(netip.Addr) bool) (netip.Addr, bool) {
	may := func(a netip.Addr) bool {
		l := p.leases[a]
		return p.reserved[a] == owner && (l == nil || l.owner == owner && (l.users == 0 || share(a)))
	}
	a := want
	if _, is := p.reserved[a]; !is || !may(a) {
		i := slices.IndexFunc(p.cfg.Static, func(s Static) bool { return s.Owner == owner && may(s.Addr) })
		if i < 0 {
			return netip.Addr{}, false
		}
		a = p.cfg.Static[i].Addr
	}
	l := p.leases[a]
	if l == nil {
		if !p.room(nil) {
			return netip.Addr{}, false
		}
		l = p.lease(owner, a)
	}
	return p.use(l), true
}

// room sees to it that one more lease can be remembered; spare is one that goes anyway.
func (p *Pool) room(spare *lease) bool {
	if len(p.leases) < p.cfg.Max || spare != nil && spare.users == 0 {
		return true
	}
	l := p.offline.next
	if l == &p.offline {
		return false
	}
	p.forget(l)
	return true
}

// fresh returns an address of the ranges that nobody has a lease of: there is one. The search
// goes on where the last one ended, so that an address comes again as late as can be.
func (p *Pool) fresh() netip.Addr {
	for {
		a := p.next
		if a == p.cfg.Ranges[p.at].Last {
			p.at = (p.at + 1) % len(p.cfg.Ranges)
			p.next = p.cfg.Ranges[p.at].First
		} else {
			p.next = a.Next()
		}
		if _, static := p.reserved[a]; !static && p.leases[a] == nil {
			return a
		}
	}
}

// lease makes a lease that nobody uses yet.
func (p *Pool) lease(owner string, a netip.Addr) *lease {
	l := &lease{addr: a, owner: owner}
	p.leases[a] = l
	p.owners[owner] = append(p.owners[owner], l)
	if p.everybodys(a) {
		p.dynamic++
	}
	return l
}

// use counts one more user.
func (p *Pool) use(l *lease) netip.Addr {
	if l.users == 0 {
		p.online++
		l.unlink()
	}
	l.users++
	return l.addr
}

func (l *lease) unlink() {
	if l.next != nil {
		l.prev.next, l.next.prev = l.next, l.prev
		l.prev, l.next = nil, nil
	}
}

// putAway makes a lease the youngest of those offline.
func (p *Pool) putAway(l *lease) {
	l.prev, l.next = p.offline.prev, &p.offline
	l.prev.next, l.next.prev = l, l
}

// forget takes a lease without users out.
func (p *Pool) forget(l *lease) {
	l.unlink()
	delete(p.leases, l.addr)
	list := slices.DeleteFunc(p.owners[l.owner], func(o *lease) bool { return o == l })
	if len(list) == 0 {
		delete(p.owners, l.owner)
	} else {
		p.owners[l.owner] = list
	}
	if p.everybodys(l.addr) {
		p.dynamic--
	}
}

// Release takes back what Assign has given. The address is remembered for the owner.
func (p *Pool) Release(owner string, a netip.Addr) {
	l := p.leases[a]
	if l == nil || l.owner != owner || l.users == 0 {
		return
	}
	if l.users--; l.users > 0 {
		return
	}
	p.online--
	if !p.everybodys(a) {
		p.forget(l) // a static one is the owner's without being remembered
		return
	}
	p.putAway(l)
}

// Restore remembers an address for an owner, the oldest first. What does not fit, is given
// away or static is left out, and so is what exceeds Config.Max.
func (p *Pool) Restore(owner string, a netip.Addr) {
	if p.leases[a] == nil && p.everybodys(a) && len(p.leases) < p.cfg.Max {
		p.putAway(p.lease(owner, a))
	}
}

// Inherit takes the leases of a former pool over: those in use all, of the others those that
// fit. It is called once, on a new pool.
func (p *Pool) Inherit(old *Pool) {
	for _, l := range old.inUse() {
		p.lease(l.owner, l.addr).users = l.users
		p.online++
	}
	for l := old.offline.next; l != &old.offline; l = l.next {
		p.Restore(l.owner, l.addr)
	}
	if old.next.BitLen() > 0 {
		for i, r := range p.cfg.Ranges {
			if r.Contains(old.next) {
				p.at, p.next = i, old.next
			}
		}
	}
}

// Each calls visit with every lease: those offline in the order in which their owners went, then
// those in use by address.
func (p *Pool) Each(visit func(owner string, a netip.Addr, online bool) bool) {
	for l := p.offline.next; l != &p.offline; l = l.next {
		if !visit(l.owner, l.addr, false) {
			return
		}
	}
	for _, l := range p.inUse() {
		if !visit(l.owner, l.addr, true) {
			return
		}
	}
}

// inUse returns the leases with users by address.
func (p *Pool) inUse() []*lease {
	list := make([]*lease, 0, p.online)
	for _, l := range p.leases {
		if l.users > 0 {
			list = append(list, l)
		}
	}
	sort.SliceStable(list, func(i, j int) bool { return list[i].addr.Less(list[j].addr) })
	return list
}
