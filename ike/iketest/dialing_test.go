package iketest

import (
	"net/netip"
	"slices"
	"time"

	"postern/ike"
)

// dialing makes a life harder, or not, by what has to do with the way to the peer and with
// changes of the configuration: names and dead addresses in remote_addrs, jitter, reloads. It
// has a generator of its own, so that the rest of a life stays as it is.
func (l *life) dialing(seed uint64, trouble time.Duration) {
	r := New(seed^0xd1a1, false).Rand
	chance := func(percent int) bool { return r.IntN(100) < percent }
	c := l.cfgA.Conns[0]
	dead := netip.MustParseAddr("203.0.113.77")
	if l.o.outer6 {
		dead = netip.MustParseAddr("2001:db8:dead::1")
	}
	if chance(15) {
		c.RemoteAddrs = append([]netip.Prefix{netip.PrefixFrom(dead, dead.BitLen())}, c.RemoteAddrs...)
		l.tell("the first address of b is a dead one")
	}
	if chance(25) {
		last := len(c.RemoteAddrs) - 1
		right := []netip.Addr{c.RemoteAddrs[last].Addr()}
		c.RemoteAddrs, c.RemoteNames = c.RemoteAddrs[:last], []ike.PeerName{{Name: "b.example", At: last}}
		l.Names = map[string][]netip.Addr{}
		l.After(time.Duration(r.Int64N(int64(20*time.Second))), func() { l.Names["b.example"] = right })
		if chance(50) { // for a while the record is wrong
			at := time.Duration(r.Int64N(int64(trouble)))
			l.After(at, func() { l.Names["b.example"] = []netip.Addr{dead} })
			l.After(min(at+2*time.Minute, trouble), func() { l.Names["b.example"] = right })
		}
		l.tell("b is called by its name")
	}
	if chance(30) {
		c.RetryJitter, c.RetryLimit = 20, 10*time.Second
	}
	for range r.IntN(3) {
		h, cfg := l.a, &l.cfgA
		if chance(50) {
			h, cfg = l.b, &l.cfgB
		}
		n := *cfg.Conns[0]
		n.Children = slices.Clone(n.Children)
		what := r.IntN(4)
		switch what {
		case 0:
			n.DPDDelay += time.Second
		case 1:
			n.RekeyTime, n.RandTime = 3*time.Minute, 20*time.Second
		case 2: // a child has to be negotiated anew
			k := *n.Children[0]
			k.ReplayWindow *= 2
			n.Children[0] = &k
		case 3: // and here the IKE SA
			n.Proposals = append(slices.Clone(n.Proposals), n.Proposals...)
		}
		now := *cfg
		now.Conns = []*ike.Conn{&n}
		*cfg = now
		at := time.Duration(r.Int64N(int64(trouble)))
		l.tell("reload %d of %s at %v", what, h.Name, at)
		l.After(at, func() {
			l.note("     %s gets a new configuration, change %d", h.Name, what)
			if h.up {
				h.Configure(now)
			}
		})
	}
}
