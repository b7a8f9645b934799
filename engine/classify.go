package engine

import (
	"cmp"
	"encoding/binary"
	"math/bits"
	"net/netip"
	"slices"

	"postern/esp"
)

// classifier narrows a flow down to the few entries of a table that it may match, so that a
// look-up which the flow cache cannot answer costs nearly the same for one entry and for
// many. In each dimension (addresses, protocol, ports) it knows for every interval between
// two bounds of any selector which entries are possible there, as a set of bits; what is in
// the sets of all dimensions is tried in its order. The sets may hold entries too many, where
// one has several selectors, never too few: the entry itself has the last word.
//
// It takes a few hundred octets per entry, in the worst case 12 times the square of the
// number of entries, in bits; that number is bounded by the board profile. It is immutable.
type classifier struct {
	words int
	addr  [2]struct{ local, remote dimension } // IPv4, IPv6
	proto dimension
	lport dimension
	rport dimension
	// The entries for flows whose ports cannot be seen.
	lblind, rblind []uint64
}

// linearMost is the number of entries up to which trying one after the other is as fast.
const linearMost = 8

// bound is an address, a protocol or a port.
type bound struct{ hi, lo uint64 }

func addrBound(a netip.Addr) bound {
	if a.Is4() {
		b := a.As4()
		return bound{0, uint64(binary.BigEndian.Uint32(b[:]))}
	}
	b := a.As16()
	return bound{binary.BigEndian.Uint64(b[:]), binary.BigEndian.Uint64(b[8:])}
}

func (b bound) compare(o bound) int { return cmp.Or(cmp.Compare(b.hi, o.hi), cmp.Compare(b.lo, o.lo)) }

// next returns the bound behind b; false if b is the last one of 128 bits.
func (b bound) next() (bound, bool) {
	b.lo++
	if b.lo == 0 {
		b.hi++
	}
	return b, b != bound{}
}

// dimension tells for each value which entries are possible.
type dimension struct {
	from []bound  // where each interval begins; the first at 0
	set  []uint32 // where its set is in sets
	sets []uint64
}

// at returns the set of a value.
func (d *dimension) at(b bound, words int) []uint64 {
	i, j := 0, len(d.from) // from[i] <= b < from[j]
	for j-i > 1 {
		m := int(uint(i+j) >> 1)
		if f := &d.from[m]; f.hi < b.hi || f.hi == b.hi && f.lo <= b.lo {
			i = m
		} else {
			j = m
		}
	}
	at := int(d.set[i])
	return d.sets[at : at+words]
}

// span says that an entry is possible from one value to another one.
type span struct {
	from, to bound
	entry    int
}

// edge is where a span begins (step 1) or has ended (step -1).
type edge struct {
	at    bound
	entry int
	step  int
}

// sortEdges sorts by the places, in a heap: the library's sort of one more type would take
// several kilobytes of flash.
func sortEdges(e []edge) {
	sift := func(i, n int) {
		for {
			c := 2*i + 1
			if c >= n {
				return
			}
			if c+1 < n && e[c].at.compare(e[c+1].at) < 0 {
				c++
			}
			if e[i].at.compare(e[c].at) >= 0 {
				return
			}
			e[i], e[c] = e[c], e[i]
			i = c
		}
	}
	for i := len(e)/2 - 1; i >= 0; i-- {
		sift(i, len(e))
	}
	for n := len(e) - 1; n > 0; n-- {
		e[0], e[n] = e[n], e[0]
		sift(0, n)
	}
}

// newDimension cuts the spans into intervals. Equal sets are kept once.
func newDimension(spans []span, words int) dimension {
	edges := make([]edge, 0, 2*len(spans))
	for _, s := range spans {
		edges = append(edges, edge{s.from, s.entry, 1})
		if end, ok := s.to.next(); ok {
			edges = append(edges, edge{end, s.entry, -1})
		}
	}
	sortEdges(edges)
	var d dimension
	seen := map[string]uint32{}
	now, key := make([]uint64, words), make([]byte, 8*words)
	depth := make([]int, 64*words)
	add := func(at bound) {
		for i, w := range now {
			binary.NativeEndian.PutUint64(key[8*i:], w)
		}
		set, ok := seen[string(key)]
		if !ok {
			set = uint32(len(d.sets))
			seen[string(key)] = set
			d.sets = append(d.sets, now...)
		}
		if n := len(d.from); n > 0 && d.from[n-1] == at {
			d.set[n-1] = set
			return
		}
		if n := len(d.set); n == 0 || d.set[n-1] != set {
			d.from, d.set = append(d.from, at), append(d.set, set)
		}
	}
	add(bound{})
	for i, e := range edges {
		depth[e.entry] += e.step
		if bit := uint64(1) << (e.entry & 63); depth[e.entry] > 0 {
			now[e.entry>>6] |= bit
		} else {
			now[e.entry>>6] &^= bit
		}
		if i+1 == len(edges) || edges[i+1].at != e.at {
			add(e.at)
		}
	}
	d.from, d.set, d.sets = slices.Clip(d.from), slices.Clip(d.set), slices.Clip(d.sets)
	return d
}

// newClassifier returns the classifier of a table; nil if it is short.
func newClassifier(list []*policy) *classifier {
	if len(list) <= linearMost {
		return nil
	}
	c := &classifier{words: (len(list) + 63) / 64}
	c.lblind, c.rblind = make([]uint64, c.words), make([]uint64, c.words)
	var addr [2][2][]span
	var ports [2][]span
	var protos []span
	for i, p := range list {
		any := [2]bool{}
		for side, ts := range [2][]esp.Selector{p.LocalTS, p.RemoteTS} {
			blind := [2][]uint64{c.lblind, c.rblind}[side]
			for j := range ts {
				s := &ts[j]
				fam := family(s.Start)
				addr[fam][side] = append(addr[fam][side], span{addrBound(s.Start), addrBound(s.End), i})
				any[side] = any[side] || s.Proto == 0
				opaque := s.StartPort > s.EndPort
				if opaque || s.StartPort == 0 && s.EndPort == 65535 {
					blind[i>>6] |= 1 << (i & 63)
				}
				if !opaque {
					ports[side] = append(ports[side], span{bound{0, uint64(s.StartPort)}, bound{0, uint64(s.EndPort)}, i})
				}
			}
		}
		named := p.LocalTS
		switch {
		case any[0] && any[1]:
			protos = append(protos, span{bound{}, bound{0, 255}, i})
			continue
		case any[0]:
			named = p.RemoteTS
		}
		for j := range named {
			proto := bound{0, uint64(named[j].Proto)}
			protos = append(protos, span{proto, proto, i})
		}
	}
	for fam := range addr {
		c.addr[fam].local = newDimension(addr[fam][0], c.words)
		c.addr[fam].remote = newDimension(addr[fam][1], c.words)
	}
	c.proto = newDimension(protos, c.words)
	c.lport, c.rport = newDimension(ports[0], c.words), newDimension(ports[1], c.words)
	return c
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// first returns the first entry of the list that the flow matches, or nil.
func (c *classifier) first(list []*policy, f *esp.Flow, in bool) *policy {
	d := &c.addr[family(f.Local)]
	n := c.words
	local, remote := d.local.at(addrBound(f.Local), n), d.remote.at(addrBound(f.Remote), n)
	proto := c.proto.at(bound{0, uint64(f.Proto)}, n)
	lport, rport := c.lblind, c.rblind
	if !f.NoPorts {
		lport, rport = c.lport.at(bound{0, uint64(f.LocalPort)}, n), c.rport.at(bound{0, uint64(f.RemotePort)}, n)
	}
	for w := range n {
		for set := local[w] & remote[w] & proto[w] & lport[w] & rport[w]; set != 0; set &= set - 1 {
			if p := list[w<<6|bits.TrailingZeros64(set)]; p.matches(f, in) {
				return p
			}
		}
	}
	return nil
}
