package engine

import (
	"net/netip"
	"slices"
	"time"

	"postern/engine/config"
	"postern/engine/log"
	"postern/esp"
)

// What the IKE loop knows of the outer paths: how long a packet each carries. That is the MTU of
// the link it begins with, or less where an ICMP message said so that quoted a packet of ours (RFC
// 4301 section 8.2). All of it runs on the loop's goroutine.

const (
	// learnedFor is how long what was learned of a path holds (RFC 1191 section 6.3, RFC 8201
	// section 4): then larger packets are tried again.
	learnedFor = 10 * time.Minute
	// What no path carries less than. RFC 791 has IPv4 routers carry 68 octets; hosts take 576, and
	// what would be left below it for a packet in a tunnel is not worth DF.
	leastPath4 = 576
	leastPath6 = minMTU
)

// plateaus are what a router may have meant that did not tell its MTU (RFC 1191 section 7).
var plateaus = [...]int{1492, 1006, leastPath4}

// pathKey is one path, whatever travels along it.
type pathKey struct{ local, remote netip.Addr }

// learnedMTU is what was learned of a path.
type learnedMTU struct {
	mtu int
	at  time.Duration
}

// links is the part of the IKE loop that knows paths and headers.
type links struct {
	// of returns the MTU of the link towards an address; nil: unknown.
	of func(remote netip.Addr) (int, error)
	// set sets the MTU of the TUN device; nil: that cannot be done.
	set     func(device string, mtu int) error
	icmp    [2]Socket // of IPv4 and IPv6; nil: path MTUs are not learned
	cfg     *config.Config
	learned map[pathKey]learnedMTU // never more than there are outbound SAs
	news    chan esp.TooBig

	base, now int  // MTU of the TUN device: as computed or configured, and as it is
	fixed     bool // it is configured
}

// linkQueue is how many messages of routers may wait for the loop.
const linkQueue = 16

func newLinks() links {
	return links{learned: map[pathKey]learnedMTU{}, news: make(chan esp.TooBig, linkQueue)}
}

// configure takes over a configuration, for which the TUN device has that MTU unless paths have less.
func (k *links) configure(cfg *config.Config, mtu int) {
	k.cfg, k.base, k.fixed = cfg, mtu, cfg.Daemon.MTU > 0
}

// tell hands a message to the loop without waiting; false if it is too busy.
func (k *links) tell(t esp.TooBig) bool {
	select {
	case k.news <- t:
		return true
	default:
		return false
	}
}

// knows tells whether path MTUs are learned in the family of an address.
func (k *links) knows(a netip.Addr) bool { return k.icmp[family(onTheWire(a))] != nil }

// known returns what a path carries, as far as is known; 0: the system's to know.
func (k *links) known(p pathKey) int {
	if !k.knows(p.remote) {
		return 0
	}
	mtu := pathMTU
	if k.of != nil {
		if n, err := k.of(p.remote); err == nil {
			mtu = max(n, k.least(p.remote))
		}
	}
	if l, ok := k.learned[p]; ok {
		mtu = min(mtu, l.mtu)
	}
	return min(mtu, plainMost)
}

func (k *links) least(a netip.Addr) int {
	return [...]int{leastPath4, leastPath6}[family(onTheWire(a))]
}

// headersOf returns what a child does with headers; the second value is false if the configuration
// does not have it any more.
func (k *links) headersOf(conn, child string) (*config.Headers, bool) {
	if k.cfg != nil {
		if h, ok := k.cfg.Headers(conn, child); ok {
			return h, true
		}
	}
	return &defaultHeaders, false
}

// defaultHeaders are those of an SA that the configuration does not have; to be read alone.
var defaultHeaders = config.DefaultHeaders()

func (sa *outSA) pathKey() pathKey {
	p := sa.path.Load()
	return pathKey{p.local, p.remote.Addr()}
}

// fit sends an outbound SA along a path, and tells it and the inbound one of its pair how long
// packets may be there and what becomes of their headers.
func (l *ikeLoop) fit(sa *outSA, along *outerPath) {
	now := *along
	if before := sa.path.Load(); now.headers == nil {
		now.headers = before.headers
	}
	h, ok := l.links.headersOf(sa.conn, sa.child)
	if !ok && now.headers != nil {
		h = now.headers // of a former configuration
	}
	now.headers, now.tunnel = h, sa.mode == esp.Tunnel
	// The peer would not take later fragments, which show no ports, through an SA for some ports.
	now.after = h.After || !sa.frags && (!allPorts(sa.localTS) || !allPorts(sa.remoteTS))
	mtu := l.links.known(pathKey{now.local, now.remote.Addr()})
	now.blind = mtu == 0
	now.mtu, now.most = uint16(mtu), plainMost
	if now.blind {
		mtu = pathMTU // TCP at least is to fit where most paths are
	}
	if now.nested && l.links.cfg != nil {
		mtu -= nestOctets(l.links.cfg.IKE.Conns)
	}
	d := esp.SA{Proto: sa.proto, Mode: sa.mode, Suite: sa.suite, Remote: now.remote, Encap: now.sock < sockESP4, LocalTS: sa.localTS}
	most := d.MaxPacket(mtu)
	if most <= 0 {
		most = plainMost
	}
	if !now.blind {
		now.most = uint16(min(most, plainMost))
	}
	if l.links.base > 0 {
		most = min(most, l.links.base)
	}
	now.bits = bitsOf(h, sa.mode, min(most, plainMost))
	// At the least that a path may have DF would only lose packets, should it have less.
	now.blind = now.blind || int(now.mtu) == leastPath4
	now.odd = now.blind || now.tunnel && !now.plainHeaders()
	if s := l.d.sad; s.fitted == nil || *s.fitted != now {
		s.fitted = &now
	}
	sa.path.Store(l.d.sad.fitted)
	if slot := l.d.sad.slot(sa.inbound); slot != nil {
		if in := slot.in.Load(); in != nil {
			in.headers.Store(uint32(now.bits))
		}
	}
}

// allPorts tells whether selectors hold packets whose ports cannot be seen.
func allPorts(ts []esp.Selector) bool {
	for i := range ts {
		if ts[i].StartPort != 0 || ts[i].EndPort != 65535 {
			return false
		}
	}
	return true
}

// plainHeaders tells whether the outer header is what package esp makes it.
func (p *outerPath) plainHeaders() bool {
	h := p.headers
	return h.DF == config.DFCopy && h.HopLimit == 0 && h.ECN && h.DSCP == defaultHeaders.DSCP
}

// fitAll does so for all SAs, and lets the TUN device follow.
func (l *ikeLoop) fitAll() { l.fitPaths(nil) }

// fitPaths does so for the SAs whose paths are among those; nil: all.
func (l *ikeLoop) fitPaths(among []pathKey) {
	for i := range l.d.sad.slots {
		if o := l.d.sad.slots[i].out; o != nil && (among == nil || slices.Contains(among, o.pathKey())) {
			l.fit(o, o.path.Load())
		}
	}
	l.followMTU()
}

// followMTU gives the TUN device the MTU that the widest SA carries, where that is less than
// what it had at first: then the kernel knows, and needs no telling. Narrower SAs tell their
// senders themselves.
func (l *ikeLoop) followMTU() {
	k := &l.links
	if k.set == nil || k.base == 0 {
		return
	}
	most := 0
	for i := range l.d.sad.slots {
		if o := l.d.sad.slots[i].out; o != nil && !o.standby {
			most = max(most, int(o.path.Load().most))
		}
	}
	want := k.base
	if most > 0 && !k.fixed {
		want = min(want, max(most, minMTU))
	}
	if want == k.now {
		return
	}
	if err := k.set(l.device, want); err != nil {
		l.log.Log(log.Kernel, log.Warn, "the MTU of the TUN device could not be set", log.Int("mtu", want), log.Err(err))
		return
	}
	l.log.Log(log.Kernel, log.Info, "the MTU of the TUN device follows the paths of the tunnels", log.Int("mtu", want), log.Int("was", k.now))
	k.now = want
}

// tooBig follows what a router says, if the packet that it quotes is one of an SA that is here (RFC
// 4301 section 8.2.1), and if it is news.
func (l *ikeLoop) tooBig(t esp.TooBig) {
	d, k := l.d, &l.links
	var sa *outSA
	for i := range d.sad.slots {
		if o := d.sad.slots[i].out; o != nil && o.shows(&t, d.ports.NATT) {
			sa = o
			break
		}
	}
	if sa == nil {
		d.counts.inc(cTooBigForged)
		return
	}
	key := sa.pathKey()
	was, least := k.known(key), k.least(key.remote)
	mtu := t.MTU
	if mtu == 0 && least == leastPath4 {
		for _, p := range plateaus {
			if mtu = p; p < t.Len && p < was {
				break
			}
		}
	}
	switch {
	case mtu < least && least == leastPath6: // RFC 8201 section 4
		d.counts.inc(cTooBigStale)
		return
	case mtu < least:
		mtu = least
	}
	if mtu >= was || len(k.learned) >= len(d.sad.slots) && k.learned[key].mtu == 0 {
		d.counts.inc(cTooBigStale)
		return
	}
	d.counts.inc(cTooBig)
	k.learned[key] = learnedMTU{mtu, d.clock()}
	l.log.Log(log.Kernel, log.Info, "the path to the peer carries smaller packets than before",
		log.Str("conn", sa.conn), log.Addr("peer", key.remote), log.Int("mtu", mtu), log.Int("was", was))
	l.fitPaths([]pathKey{key})
}

// ageLinks forgets what was learned long ago.
func (l *ikeLoop) ageLinks(now time.Duration) {
	k := &l.links
	var aged []pathKey
	for key, m := range k.learned {
		if now-m.at >= learnedFor {
			delete(k.learned, key)
			aged = append(aged, key)
		}
	}
	if aged != nil {
		l.fitPaths(aged)
	} else if k.now != k.base { // an SA that went away may have been the one that counted
		l.followMTU()
	}
}

// followNew lets the TUN device follow an SA that is new, or on a new path.
func (l *ikeLoop) followNew(sa *outSA) {
	if k := &l.links; k.now != k.base || int(sa.path.Load().most) < k.base {
		l.followMTU()
	}
}
