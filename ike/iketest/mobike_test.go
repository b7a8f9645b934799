package iketest

import (
	"net/netip"
	"testing"
	"time"

	"postern/ike"
)

// Addresses of a beside its first one, 192.0.2.1, and of b beside 198.51.100.1.
var (
	addrA1 = netip.MustParseAddr("192.0.2.1")
	addrA2 = netip.MustParseAddr("192.0.2.77")
	addrA6 = netip.MustParseAddr("2001:db8::1")
	insA2  = netip.MustParseAddr("192.168.7.7") // behind a NAT
	natA2  = netip.MustParseAddr("192.0.2.99")  // the NAT's own
	addrB1 = netip.MustParseAddr("198.51.100.1")
	addrB2 = netip.MustParseAddr("203.0.113.9")
	addrB6 = netip.MustParseAddr("2001:db8:ffff::1")
)

// mobile is a pair with MOBIKE whose a connects.
func mobile(o options) options {
	o.mobike, o.start, o.children, o.dpd, o.dpdAction = true, ike.StartStart, 2, 20*time.Second, ike.ActionRestart
	o.esp = "aes128gcm16-x25519"
	return o
}

// anywhere lets both hosts use all of their addresses.
func anywhere(p *pair) {
	p.cfgB.Conns[0].RemoteAddrs = nil
}

// rise starts both hosts and waits until all is well.
func (p *pair) rise() {
	p.boot()
	p.Run(time.Second)
	_ = p.upAndRunning()
}

// identityOf returns what stays the same of an IKE SA that lives on.
func identityOf(p *pair, h *Host) (id [2]uint64, path ike.Path, encap bool) {
	h.M.List(func(sa *ike.SAInfo) bool {
		id, path, encap = [2]uint64{sa.SPIi, sa.SPIr}, sa.Path, sa.Encap
		return true
	})
	return id, path, encap
}

// survives runs deed between two moments at which all has to be well, and checks that the
// IKE SA is still the same, that packets pass again within the limit, and where both are.
func (p *pair) survives(limit time.Duration, deed func()) {
	p.settle(time.Minute)
	before, _, _ := identityOf(p, p.a)
	for _, f := range p.flows {
		p.Traffic(f, 50*time.Millisecond, p.Now()+limit+4*time.Second)
	}
	p.Run(p.Now() + time.Second)
	deed()
	p.Run(p.Now() + limit)
	from := p.Now()
	p.Run(from + 3*time.Second)
	if lost, sent := p.Undelivered(from, from+2*time.Second); p.Err() == nil && (lost > 0 || sent < 60) {
		p.Fail("%v after the change, %d of %d packets were lost", limit, lost, sent)
	}
	p.settle(time.Minute)
	_ = p.CheckPair(p.a, p.b, connName, p.children...)
	_ = p.CheckTraffic(p.flows...)
	if after, _, _ := identityOf(p, p.a); p.Err() == nil && after != before {
		p.Fail("the IKE SA is another one: %x was %x", after, before)
	}
}

// at checks that both sides see the same path.
func (p *pair) at(a, b netip.Addr, encap bool) {
	_, pa, ea := identityOf(p, p.a)
	_, pb, eb := identityOf(p, p.b)
	seen := a
	if p.a.NAT != nil && p.a.before(a) != nil {
		seen = p.a.NAT.Outside
	}
	if p.Err() == nil && (pa.Local.Addr() != a || pa.Remote.Addr() != b || pb.Local.Addr() != b || pb.Remote.Addr() != seen || ea != encap || eb != encap) {
		p.Fail("a is on %v > %v (UDP %v), b on %v > %v (UDP %v); want %v and %v, UDP %v",
			pa.Local, pa.Remote, ea, pb.Local, pb.Remote, eb, a, b, encap)
	}
}

func TestMovesToANewAddress(t *testing.T) {
	seeds(t, 20, mobile(options{}), func(p *pair) {
		anywhere(p)
		p.rise()
		p.survives(time.Second, func() { p.a.SetAddrs(addrA2) })
		p.at(addrA2, addrB1, false)
		p.survives(time.Second, func() { p.a.SetAddrs(addrA1) })
		p.at(addrA1, addrB1, false)
	})
}

func TestFailsOverAndBack(t *testing.T) {
	seeds(t, 20, mobile(options{}), func(p *pair) {
		anywhere(p)
		p.a.Addrs = []netip.Addr{addrA1, addrA2}
		p.rise()
		// A route changes, the addresses stay.
		p.survives(time.Second, func() { p.a.SetAddrs(addrA2, addrA1) })
		p.at(addrA2, addrB1, false)
		p.survives(time.Second, func() { p.a.SetAddrs(addrA1, addrA2) })
		p.at(addrA1, addrB1, false)
	})
}

// From Ethernet to LTE behind a NAT and back: UDP encapsulation comes and goes.
func TestFailsOverIntoANAT(t *testing.T) {
	seeds(t, 20, mobile(options{}), func(p *pair) {
		anywhere(p)
		p.a.Addrs = []netip.Addr{addrA1, insA2}
		p.a.NAT = &NAT{Outside: natA2, Only: insA2}
		p.rise()
		p.survives(time.Second, func() { p.a.SetAddrs(insA2, addrA1) })
		p.at(insA2, addrB1, true)
		p.survives(time.Second, func() { p.a.SetAddrs(addrA1, insA2) })
		p.at(addrA1, addrB1, false)
	})
}

func TestMovesFromIPv4ToIPv6(t *testing.T) {
	seeds(t, 10, mobile(options{}), func(p *pair) {
		anywhere(p)
		p.b.Addrs = []netip.Addr{addrB1, addrB6}
		p.rise()
		p.survives(2*time.Second, func() { p.a.SetAddrs(addrA6) })
		p.at(addrA6, addrB6, false)
		p.survives(2*time.Second, func() { p.a.SetAddrs(addrA1) })
		p.at(addrA1, addrB1, false)
	})
}

// The cable is out: the SAs wait for it, and nothing is asked of a peer that cannot hear.
func TestWaitsForACable(t *testing.T) {
	for name, back := range map[string]netip.Addr{"the same address": addrA1, "another address": addrA2} {
		t.Run(name, func(t *testing.T) {
			o := mobile(options{})
			o.dpd = 0
			seeds(t, 10, o, func(p *pair) {
				anywhere(p)
				p.rise()
				p.survives(61*time.Second, func() {
					p.a.SetAddrs()
					p.After(p.between(time.Second), func() { p.rekeyChild(p.a, "net0") })
					p.After(time.Minute, func() { p.a.SetAddrs(back) })
				})
				p.at(back, addrB1, false)
			})
		})
	}
}

// The responder loses the address that is in use and tells it from the other one.
func TestResponderMoves(t *testing.T) {
	seeds(t, 20, mobile(options{}), func(p *pair) {
		anywhere(p)
		p.b.Addrs = []netip.Addr{addrB1, addrB2}
		p.rise()
		p.survives(2*time.Second, func() { p.b.SetAddrs(addrB2) })
		p.at(addrA1, addrB2, false)
	})
}

// Nothing comes through to the responder's first address any more. Its second one is found
// by trying, and the first one again when it works.
func TestProbesThePeersOtherAddress(t *testing.T) {
	seeds(t, 20, mobile(options{}), func(p *pair) {
		anywhere(p)
		p.b.Addrs = []netip.Addr{addrB1, addrB2}
		p.rise()
		before, _, _ := identityOf(p, p.a)
		p.Block = func(src, dst netip.Addr) bool { return dst == addrB1 || src == addrB1 }
		p.Run(p.Now() + 2*time.Minute) // 80 s until an idle peer is asked, 11 s until the second retransmission
		_ = p.upAndRunning()
		p.at(addrA1, addrB2, false)
		p.Block = nil
		p.Run(p.Now() + time.Minute)
		_ = p.upAndRunning()
		p.at(addrA1, addrB1, false)
		if after, _, _ := identityOf(p, p.a); p.Err() == nil && after != before {
			p.Fail("the IKE SA is another one")
		}
	})
}

// Without MOBIKE the SAs cannot move; new ones come up at once.
func TestConnectsAnewWithoutMOBIKE(t *testing.T) {
	o := mobile(options{})
	o.mobike = false
	seeds(t, 20, o, func(p *pair) {
		anywhere(p)
		p.rise()
		p.a.SetAddrs(addrA2)
		p.Run(p.Now() + 2*time.Second)
		_ = p.CheckPair(p.a, p.b, connName, p.children...)
		_ = p.CheckTraffic(p.flows...)
		p.at(addrA2, addrB1, false)
	})
}

// The NAT gives out another port, or gets another address, under traffic and without.
func TestNATRebindingWithMOBIKE(t *testing.T) {
	for name, outside := range map[string]netip.Addr{"port": {}, "address": netip.MustParseAddr("192.0.2.200")} {
		t.Run(name, func(t *testing.T) {
			o := mobile(options{natA: true})
			seeds(t, 20, o, func(p *pair) {
				p.rise()
				p.Run(p.Now() + 30*time.Second)
				p.survives(2*time.Second, func() { p.a.NAT.Rebind(outside) })
				// In silence it is found by the liveness check.
				p.a.NAT.Rebind(outside)
				p.Run(p.Now() + time.Minute)
				_, path, _ := identityOf(p, p.b)
				if f := p.flows[0].reverse(); p.Err() == nil {
					q := f.From.Send(f.Src, f.Dst, f.Port)
					p.Run(p.Now() + time.Second)
					if q == nil || q.accepted != 1 {
						p.Fail("a packet towards the NAT was lost: b still sends to %v", path.Remote)
					}
				}
			})
		})
	}
}

// Both sides are behind NATs and neither has MOBIKE: the responder asks at the new address
// before it believes in it.
func TestNATRebindingBehindTwoNATs(t *testing.T) {
	o := mobile(options{natA: true, natB: true})
	o.mobike = false
	seeds(t, 20, o, func(p *pair) {
		p.rise()
		p.survives(8*time.Second, func() { p.a.NAT.Rebind(netip.Addr{}) })
	})
}

// With UDP encapsulation forced there is no NAT, but the peer believes in one.
func TestForcedEncapsulationFollowsANAT(t *testing.T) {
	o := mobile(options{natA: true, encap: true})
	o.mobike = false
	seeds(t, 10, o, func(p *pair) {
		p.rise()
		p.survives(time.Second, func() { p.a.NAT.Rebind(netip.Addr{}) })
	})
}
