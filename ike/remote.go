package ike

import (
	"net/netip"
	"slices"
	"time"

	"postern/ike/pool"
)

// Remote access (RFC 7296 section 2.19): a client asks in a Configuration payload for
// addresses in the gateway's network, and the gateway gives it some of a pool.
//
//	client:   authTransmit -> askAddresses ... authResponse -> takeAddresses -> OutAssign
//	gateway:  authRequest, parseCreate -> grantAddresses ... writeAddresses
//
// An address belongs to the IKE SA and its rekeyed successors. On the gateway they
// share one grant; with the last of them it goes back to the pool, which remembers it for
// the client. On the client what is assigned belongs to the connection, because the next IKE
// SA asks for the same.

// Pool is what clients of the gateway get addresses from, and what they are told besides.
type Pool struct {
	Name   string
	Ranges []AddrRange   // of one family, not overlapping
	Leases []StaticLease // each kept for one identity

	DNS          []netip.Addr
	NBNS         []netip.Addr   // IPv4 only
	Subnets      []netip.Prefix // behind the gateway
	Domains      []string       // for split DNS (RFC 8598); see GoodDomain
	TrustAnchors []TrustAnchor
	EncDNS       []EncryptedDNS // the best first; Priority is set by the place in the list
}

// AddrRange is the addresses from First to Last, both included.
type AddrRange = pool.Range

// StaticLease is an address that only one identity gets. It may lie outside of the ranges.
type StaticLease struct {
	ID   ID
	Addr netip.Addr
}

// TrustAnchor is a DNSSEC trust anchor of one of the pool's Domains (RFC 8598 section 4.2).
type TrustAnchor struct {
	Domain    string
	KeyTag    uint16
	Algorithm uint8
	Digest    uint8  // its type
	Hex       string // the digest in hexadecimal
}

// Lease is an address of a pool and who has it, or had it last.
type Lease struct {
	Pool   string
	ID     ID
	Addr   netip.Addr
	Online bool
}

// PoolInfo is a snapshot of a pool. Size counts at most to 2^62.
type PoolInfo struct {
	Pool            *Pool
	Base            netip.Addr
	Size            int64
	Online, Offline int
}

// addressRetry is the least time after which we ask again a gateway that has no address for
// us (RFC 7296 section 3.15.4): others have to go first.
const addressRetry = time.Minute

// leasesLeast is how many leases a pool can remember at least.
const leasesLeast = 64

// livePool is a pool with its leases.
type livePool struct {
	Pool
	live *pool.Pool
}

// grant is what an IKE SA and its successors have of the pools.
type grant struct {
	users int
	list  []granted
}

type granted struct {
	pool  string
	owner string
	addr  netip.Addr
}

// remoteSA is an IKE SA's part.
type remoteSA struct {
	given *grant       // gateway: nil if the peer has none
	vips  []netip.Addr // client: our addresses
}

// cpRequest is what the peer's request asks for.
type cpRequest struct {
	asked   bool
	domains bool // it understands split DNS (RFC 8598 section 3.1)
	anchors bool
	enc     [2]bool // it takes encrypted resolvers at IPv4 and IPv6 addresses
	attrs   bool    // SUPPORTED_ATTRIBUTES
}

// owner is an identity as pools know it.
func (id ID) owner() string { return string([]byte{byte(id.Type)}) + id.Data }

func ownerID(s string) ID {
	if s == "" {
		return ID{}
	}
	return ID{IDType(s[0]), s[1:]}
}

// configurePools takes the pools in place of those before, whose leases stay where they fit.
// remembered are those of an earlier life.
func (m *Machine) configurePools(list []Pool, remembered []Lease) {
	old := m.pools
	m.pools = nil
	for _, p := range list {
		c := pool.Config{Ranges: p.Ranges, Max: m.leasesMax}
		for _, s := range p.Leases {
			c.Static = append(c.Static, pool.Static{Owner: s.ID.owner(), Addr: s.Addr})
		}
		for i := range p.EncDNS {
			p.EncDNS[i].Priority = uint16(i + 1)
		}
		n := &livePool{p, pool.New(c)}
		if i := slices.IndexFunc(old, func(o *livePool) bool { return o.Name == p.Name }); i >= 0 {
			n.live.Inherit(old[i].live)
		}
		for _, l := range remembered {
			if l.Pool == p.Name {
				n.live.Restore(l.ID.owner(), l.Addr)
			}
		}
		m.pools = append(m.pools, n)
	}
}

// Leases calls visit with the leases of every pool until it returns false: in each pool
// first those offline, the oldest first, then those in use. Given to the next life in
// Config.Leases, they let everybody have the same address again.
func (m *Machine) Leases(visit func(Lease) bool) {
	for _, p := range m.pools {
		more := true
		p.live.Each(func(owner string, a netip.Addr, online bool) bool {
			more = visit(Lease{Pool: p.Name, ID: ownerID(owner), Addr: a, Online: online})
			return more
		})
		if !more {
			return
		}
	}
}

// Pools calls visit with every pool.
func (m *Machine) Pools(visit func(PoolInfo)) {
	for _, p := range m.pools {
		visit(PoolInfo{Pool: &p.Pool, Base: p.live.Base(), Size: p.live.Size(), Online: p.live.Online(), Offline: p.live.Offline()})
	}
}

func (m *Machine) pool(name string) *livePool {
	for _, p := range m.pools {
		if p.Name == name {
			return p
		}
	}
	return nil
}

// cpAtHand returns the Configuration payload of the message, if it is of that type.
func (m *Machine) cpAtHand(t CFGType) (cp CP, ok bool, err error) {
	p := m.msg.Find(PayloadCP)
	if p == nil {
		return CP{}, false, nil
	}
	cp, err = ParseCP(p.Body)
	return cp, err == nil && cp.Type == t, err
}

// grantAddresses gives the peer what its Configuration payload asks for, if its connection has
// pools. alone says that the peer has no other IKE SA with us. Without pools the payload is
// ignored, as RFC 7296 section 3.15.4 allows.
func (m *Machine) grantAddresses(sa *ikeSA, alone bool) (req cpRequest, no *refusal) {
	if len(sa.conn.Pools) == 0 || sa.origin.ours {
		return req, nil
	}
	cp, asks, err := m.cpAtHand(CFGRequest)
	if err != nil {
		return req, &refusal{t: NotifyInvalidSyntax, err: err}
	}
	asks = asks && (cp.has(AttrIP4Address) || cp.has(AttrIP6Address))
	if !asks {
		if sa.remote.given == nil {
			return req, &refusal{t: NotifyFailedCPRequired, err: ErrNoCP}
		}
		return req, nil
	}
	req = cpRequest{asked: true, domains: cp.has(AttrDNSDomain), anchors: cp.has(AttrDNSSECTA), attrs: cp.has(AttrSupported),
		enc: [2]bool{cp.has(AttrEncDNS4), cp.has(AttrEncDNS6)}}
	if sa.remote.given != nil {
		return req, nil // it asks again, and gets the same answer
	}
	g := &grant{users: 1}
	var left [2]int
	left[0], left[1] = maxVIPs, maxVIPs
	cp.Each(func(a Attr) bool {
		if a.Type != AttrIP4Address && a.Type != AttrIP6Address {
			return true
		}
		family := 0
		if a.Type == AttrIP6Address {
			family = 1
		}
		if left[family]--; left[family] < 0 {
			return true
		}
		want, _ := a.addr()
		if x, ok := m.lend(sa, want, family == 0, alone, g); ok {
			g.list = append(g.list, x)
		}
		return true
	})
	if len(g.list) == 0 {
		return req, &refusal{t: NotifyInternalAddressFailure, err: ErrPoolFull}
	}
	sa.remote.given = g
	m.leasesChanged = true
	m.event(Event{Kind: EvLeased, Conn: sa.connName(), IKE: sa.unique, Path: sa.path, Text: addrList(sa.remoteVIPs())})
	return req, nil
}

// lend takes an address of that family from the first pool of the connection that has one.
func (m *Machine) lend(sa *ikeSA, want netip.Addr, is4, alone bool, g *grant) (granted, bool) {
	owner := sa.peerID.owner()
	for _, name := range sa.conn.Pools {
		p := m.pool(name)
		if p == nil || p.live.Is4() != is4 {
			continue
		}
		share := func(a netip.Addr) bool {
			return !slices.ContainsFunc(g.list, func(o granted) bool { return o.addr == a }) && m.mayShare(sa, a, want, alone)
		}
		if a, ok := p.live.Assign(owner, want, share); ok {
			return granted{name, owner, a}, true
		}
	}
	return granted{}, false
}

// mayShare tells whether the peer may have once more, with a new IKE SA, the address that it has
// with another one: that one goes, because it says so or we want it so, or it asks for this very
// address from the same place, as clients do that authenticate anew. Two devices with one
// identity must not get the same address.
func (m *Machine) mayShare(sa *ikeSA, a, want netip.Addr, alone bool) (found bool) {
	all := alone || sa.conn.Unique == UniqueReplace
	if !all && a != want {
		return false // before the search: thousands of devices may have one identity
	}
	for i := range m.sas {
		o := &m.sas[i]
		if o == sa || o.state == StateFree || o.remote.given == nil || !o.peerID.Equal(sa.peerID) ||
			!slices.ContainsFunc(o.remote.given.list, func(g granted) bool { return g.addr == a }) {
			continue
		}
		if found = true; !all && o.closeErr == nil && !sa.resume.on && !sameHost(o.path.Remote, sa.path.Remote) {
			return false
		}
	}
	return found
}

// returnAddresses ends the part of an IKE SA that goes in what it was given.
func (m *Machine) returnAddresses(sa *ikeSA) {
	g := sa.remote.given
	if g == nil {
		return
	}
	sa.remote.given = nil
	if g.users--; g.users > 0 {
		return
	}
	for _, x := range g.list {
		if p := m.pool(x.pool); p != nil {
			p.live.Release(x.owner, x.addr)
		}
	}
	m.leasesChanged = true
}

// inheritAddresses makes the successor of an IKE SA another user of its addresses.
func (sa *ikeSA) inheritAddresses(from *ikeSA) {
	sa.remote = from.remote
	if g := sa.remote.given; g != nil {
		g.users++
	}
}

// remoteVIPs are the addresses that the peer has of us.
func (sa *ikeSA) remoteVIPs() []netip.Addr {
	if sa.remote.given == nil {
		return nil
	}
	list := make([]netip.Addr, 0, len(sa.remote.given.list))
	for _, x := range sa.remote.given.list {
		list = append(list, x.addr)
	}
	return list
}

// writeAddresses answers a request for addresses.
func (m *Machine) writeAddresses(b *Builder, sa *ikeSA, req *cpRequest) {
	if !req.asked || sa.remote.given == nil {
		return
	}
	var list []Attr
	var seen []*livePool
	for _, x := range sa.remote.given.list {
		list = append(list, addrAttr(AttrIP4Address, AttrIP6Address, x.addr))
		if p := m.pool(x.pool); p != nil && !slices.Contains(seen, p) {
			seen = append(seen, p)
		}
	}
	add := func(a Attr) { // two pools may tell the same
		if a.Type == AttrDNSSECTA || !slices.ContainsFunc(list, func(o Attr) bool { return o.Type == a.Type && string(o.Value) == string(a.Value) }) {
			list = append(list, a)
		}
	}
	var domains []string
	for _, p := range seen {
		for _, a := range p.DNS {
			add(addrAttr(AttrIP4DNS, AttrIP6DNS, a))
		}
		for _, a := range p.NBNS {
			add(addrAttr(AttrIP4NBNS, AttrIP4NBNS, a))
		}
		for _, s := range p.Subnets {
			add(subnetAttr(s))
		}
		for i := range p.EncDNS {
			e := &p.EncDNS[i]
			t, takes := AttrEncDNS4, req.enc[0]
			if e.Addrs[0].Is6() {
				t, takes = AttrEncDNS6, req.enc[1]
			}
			if !takes {
				continue
			}
			add(Attr{t, e.appendBody(nil)})
			for j := range e.Digests {
				add(Attr{AttrEncDNSHash, e.Digests[j].appendDigest(nil, e.ADN)})
			}
		}
		if !req.domains {
			continue // it would ask our resolvers for everything, or ignore them
		}
		for _, d := range p.Domains {
			if slices.Contains(domains, d) {
				continue
			}
			domains = append(domains, d)
			add(Attr{AttrDNSDomain, []byte(d)})
			for i := range p.TrustAnchors {
				if t := &p.TrustAnchors[i]; t.Domain == d && req.anchors {
					add(Attr{AttrDNSSECTA, append([]byte{byte(t.KeyTag >> 8), byte(t.KeyTag), t.Algorithm, t.Digest}, t.Hex...)})
				}
			}
		}
	}
	if req.attrs {
		list = append(list, attrList())
	}
	b.CP(CFGReply, list)
}

// attrList is the answer to SUPPORTED_ATTRIBUTES.
func attrList() Attr {
	a := Attr{Type: AttrSupported}
	for _, t := range supportedAttrs {
		a.Value = append(a.Value, byte(t>>8), byte(t))
	}
	return a
}

// infoCP answers a Configuration payload in INFORMATIONAL: a request for what we support is,
// of one for addresses nothing is given outside of a request for a CHILD SA, and nothing is
// taken from CFG_SET (RFC 7296 section 3.15.1).
func (m *Machine) infoCP(b *Builder) {
	p := m.msg.Find(PayloadCP)
	if p == nil {
		return
	}
	cp, err := ParseCP(p.Body)
	switch {
	case err != nil:
	case cp.Type == CFGSet:
		b.CP(CFGAck, nil)
	case cp.Type == CFGRequest && cp.has(AttrSupported):
		b.CP(CFGReply, []Attr{attrList()})
	case cp.Type == CFGRequest:
		b.CP(CFGReply, nil)
	}
}

// assignedTo returns what the connection of that name has, or nil.
func (m *Machine) assignedTo(conn string) *Assigned {
	for _, a := range m.assigned {
		if a.Conn == conn {
			return a
		}
	}
	return nil
}

// wantedVIPs are the addresses to ask for: those that we have had, where it does not matter.
func (m *Machine) wantedVIPs(c *Conn) []netip.Addr {
	list := slices.Clone(c.VIPs)
	had := m.assignedTo(c.Name)
	if had == nil {
		return list
	}
	for _, a := range had.Addrs {
		if slices.Contains(list, a) {
			continue
		}
		if i := slices.IndexFunc(list, func(w netip.Addr) bool { return w.IsUnspecified() && w.Is4() == a.Is4() }); i >= 0 {
			list[i] = a
		}
	}
	return list
}

// askAddresses adds the request for virtual addresses to our IKE_AUTH.
func (m *Machine) askAddresses(b *Builder, sa *ikeSA) {
	if len(sa.conn.VIPs) == 0 {
		return
	}
	var list []Attr
	var has [2]bool
	for _, a := range m.wantedVIPs(sa.conn) {
		list = append(list, addrAttr(AttrIP4Address, AttrIP6Address, a))
		has[a.BitLen()/128] = true
	}
	if has[0] {
		list = append(list, Attr{AttrIP4DNS, nil}, Attr{AttrIP4Subnet, nil})
	}
	if has[1] {
		list = append(list, Attr{AttrIP6DNS, nil}, Attr{AttrIP6Subnet, nil})
	}
	list = append(list, Attr{AttrDNSDomain, nil}, Attr{AttrDNSSECTA, nil})
	if has[0] {
		list = append(list, Attr{AttrEncDNS4, nil})
	}
	if has[1] {
		list = append(list, Attr{AttrEncDNS6, nil})
	}
	list = append(list, Attr{AttrEncDNSHash, []byte{3, 0, 0, 2, 0, 3, 0, 4}}) // the hashes of digestLen
	b.CP(CFGRequest, list)
}

// takeAddresses takes what the gateway assigns out of its IKE_AUTH response. refused is the
// error that the response reports. Without an address the IKE SA is of no use, and err says
// why there is none.
func (m *Machine) takeAddresses(sa *ikeSA, refused error) error {
	c := sa.conn
	if len(c.VIPs) == 0 {
		return nil
	}
	cp, ok, err := m.cpAtHand(CFGReply)
	if err != nil {
		return err
	}
	var as Assigned
	if ok {
		n6 := 0
		for _, a := range c.VIPs {
			n6 += a.BitLen() / 128
		}
		as = cp.assigned(len(c.VIPs)-n6, n6)
	}
	if len(as.Addrs) == 0 {
		if isNotify(refused, NotifyInternalAddressFailure) || refused != nil && !ok {
			return refused
		}
		return ErrNoVIP
	}
	as.Conn, as.IKE = c.Name, sa.unique
	sa.remote.vips = as.Addrs
	had := m.assignedTo(c.Name)
	if had != nil && had.same(&as) {
		return nil
	}
	text := addrList(as.Addrs)
	var other []netip.Addr
	for _, w := range m.wantedVIPs(c) {
		if !w.IsUnspecified() && !slices.Contains(as.Addrs, w) {
			other = append(other, w)
		}
	}
	if len(other) > 0 {
		text += ", and not " + addrList(other)
	}
	m.assigned = slices.DeleteFunc(m.assigned, func(a *Assigned) bool { return a == had })
	m.assigned = append(m.assigned, &as)
	m.out = append(m.out, Output{Kind: OutAssign, Assigned: &as})
	m.event(Event{Kind: EvAssigned, Conn: c.Name, IKE: sa.unique, Path: sa.path, Text: text})
	return nil
}

// same tells whether two assignments put the same in place.
func (a *Assigned) same(b *Assigned) bool {
	return slices.Equal(a.Addrs, b.Addrs) && slices.Equal(a.DNS, b.DNS) && slices.Equal(a.Domains, b.Domains) &&
		slices.Equal(a.Subnets, b.Subnets) && slices.Equal(a.TrustNames, b.TrustNames) && a.Lifetime == b.Lifetime &&
		slices.EqualFunc(a.TrustAnchors, b.TrustAnchors, slices.Equal) && slices.EqualFunc(a.EncDNS, b.EncDNS, func(x, y EncryptedDNS) bool {
		return x.Priority == y.Priority && x.ADN == y.ADN && x.Port == y.Port && x.DoHPath == y.DoHPath &&
			slices.Equal(x.Addrs, y.Addrs) && slices.Equal(x.ALPN, y.ALPN) &&
			slices.EqualFunc(x.Digests, y.Digests, func(p, q DNSDigest) bool { return p.Hash == q.Hash && slices.Equal(p.Sum, q.Sum) })
	})
}

// addressesRefused ends an attempt that has brought no address: the peer, which has the
// IKE SA, is told once, and the next attempt waits for a while.
func (m *Machine) addressesRefused(sa *ikeSA, err error) {
	m.send(sa.path, m.sealed(sa, sa.header(ExchangeInformational, sa.sendID, false), func(b *Builder) { b.Delete(ProtoIKE, nil) }))
	m.destroy(sa, err)
}

// noAddress tells whether an attempt has failed because the gateway has no address for us.
func noAddress(err error) bool {
	return err == ErrNoVIP || isNotify(err, NotifyInternalAddressFailure)
}

// unassign takes back what was assigned to connections that have no IKE SA and are about to
// make none, and tells that leases have changed.
func (m *Machine) unassign() {
	m.assigned = slices.DeleteFunc(m.assigned, func(a *Assigned) bool {
		for i := range m.sas {
			if sa := &m.sas[i]; sa.state != StateFree && sa.conn != nil && sa.conn.Name == a.Conn && len(sa.conn.VIPs) > 0 {
				return false
			}
		}
		for _, s := range m.conns {
			if s.conn.Name == a.Conn && len(s.wanted) > 0 && len(s.conn.VIPs) > 0 {
				return false
			}
		}
		m.out = append(m.out, Output{Kind: OutUnassign, Name: a.Conn})
		return true
	})
	if m.leasesChanged {
		m.leasesChanged = false
		m.out = append(m.out, Output{Kind: OutLeases})
	}
}

// ourAddrs are the addresses that dynamic selectors of ours stand for: our virtual ones, and any of
// those families as long as they are not known, or the one that the peer sees.
func (sa *ikeSA) ourAddrs() []netip.Addr {
	switch {
	case len(sa.remote.vips) > 0:
		return sa.remote.vips
	case sa.conn != nil && len(sa.conn.VIPs) > 0 && (sa.origin.ours || sa.initiator && sa.state == StateConnecting):
		var list []netip.Addr
		for _, a := range sa.conn.VIPs {
			any := netip.IPv4Unspecified()
			if a.Is6() {
				any = netip.IPv6Unspecified()
			}
			list = put(list, any, 2)
		}
		return list
	}
	return []netip.Addr{sa.path.Local.Addr()}
}

// theirAddrs are the addresses that dynamic selectors of the peer stand for: those that we
// have given it, or else its own.
func (sa *ikeSA) theirAddrs() []netip.Addr {
	if list := sa.remoteVIPs(); len(list) > 0 {
		return list
	}
	return []netip.Addr{sa.path.Remote.Addr()}
}
