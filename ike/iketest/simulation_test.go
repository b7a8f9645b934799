package iketest

import (
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/ike"
)

var (
	replay       = flag.Int64("seed", -1, "replay this one seed of TestSimulation, with its ladder under -v")
	maxFailures  = flag.Int("max-failures", 3, "how many failing seeds each part of TestSimulation tells of")
	ignoreEvents = flag.Bool("ignore-events", false, "do not hold the machines' events against their tables")
	firstSeed    = flag.Int("first", 0, "the first of the seeds that TestSimulation runs")
	seedCount    = flag.Int("seeds", 700, "how many seeds TestSimulation runs")
)

const shards = 4

// TestSimulation runs two machines through random lives: a network that loses about a
// third, repeats, delays and reorders, NATs, cuts, restarts, reloads, gateways that send
// clients elsewhere or in a circle, and both sides initiating, rekeying, authenticating anew
// and deleting at any time, by command or because a packet wants it. Then the network heals,
// and all must come to what is configured; the SAs must carry packets; what nobody uses must
// end where that is configured; and when both are told to close, nothing may be left. The
// invariants of the simulation hold throughout.
//
// Where one side lets several IKE SAs stand (UniqueNever), there may be more than one in the
// end; both sides must hold the same ones all the same.
func TestSimulation(t *testing.T) {
	if *replay >= 0 {
		l := live(uint64(*replay), true)
		t.Logf("seed %d: %s\n%s%s", *replay, l.summary(), l.Ladder(), l.describe())
		if l.Err() != nil {
			t.Errorf("seed %d: %v", *replay, l.Err())
		}
		return
	}
	n := *seedCount
	if testing.Short() {
		n = min(n, 40)
	}
	var totals, troubled, together [shards]Stats
	t.Run("seeds", func(t *testing.T) {
		for shard := range shards {
			t.Run(fmt.Sprint(shard), func(t *testing.T) {
				t.Parallel()
				failed := 0
				for seed := *firstSeed + shard; seed < *firstSeed+n && failed < *maxFailures; seed += shards {
					l := live(uint64(seed), false)
					totals[shard].add(l.Stats())
					troubled[shard].add(l.troubled)
					if l.all {
						together[shard].add(l.Stats())
					}
					if l.Err() == nil {
						continue
					}
					failed++
					again := live(uint64(seed), true)
					t.Errorf("seed %d: %v\nreplay: go test ./ike/iketest -run TestSimulation -seed %d -v\n%s\n%s",
						seed, l.Err(), seed, again.summary(), again.Ladder())
				}
			})
		}
	})
	var all, bad, both Stats
	for i := range shards {
		all.add(totals[i])
		bad.add(troubled[i])
		both.add(together[i])
	}
	t.Logf("%d seeds: %+v; before the network heals: %+v; lives with everything: %+v", n, all, bad, both)
	// What was not exercised was not tested.
	if !t.Failed() && (bad.Lost*100 < bad.Sent*25 || bad.Doubled*100 < bad.Sent*5 || bad.Overtaken*100 < bad.Sent ||
		all.Opened < all.Packets/2 || all.Installed < 4*n || bad.Fragments*10 < bad.Sent ||
		n >= 300 && (all.Redirected == 0 || all.Acquired == 0 || all.Idle == 0 || all.Reauths == 0 || all.Loops == 0 || all.Grown == 0 || all.Mixed == 0) ||
		n >= 300 && (both.Resumed == 0 || both.Restarted == 0 || both.Roamed == 0 || both.Fragments*4 < both.Sent)) {
		t.Errorf("the simulation was too kind: %+v, %+v", bad, all)
	}
}

func (s *Stats) add(o Stats) {
	s.Sent += o.Sent
	s.Lost += o.Lost
	s.Doubled += o.Doubled
	s.Overtaken += o.Overtaken
	s.Packets += o.Packets
	s.Opened += o.Opened
	s.Stray += o.Stray
	s.Installed += o.Installed
	s.Fragments += o.Fragments
	s.Jobs += o.Jobs
	s.Resumed += o.Resumed
	s.Restarted += o.Restarted
	s.Roamed += o.Roamed
	s.Redirected += o.Redirected
	s.Loops += o.Loops
	s.Acquired += o.Acquired
	s.Grown += o.Grown
	s.Idle += o.Idle
	s.Reauths += o.Reauths
	s.Mixed += o.Mixed
}

// life is the random life of one pair.
type life struct {
	*pair
	told     []string // what it consists of
	troubled Stats    // until the network heals
	loose    bool     // more than one IKE SA may stay
	restarts bool     // b calls again when a closes
	silent   bool     // nothing is to be sent any more

	idle  map[string]time.Duration // after what time children are closed that nobody uses
	front *Host                    // the gateway that sends a to b, or nil
	heals func()                   // its part when the network heals
	away  func()                   // it sends away whom it has

	checkPPKs func() // or nil

	all bool // fragments, MOBIKE, quick crash detection and resumption together
}

func (l *life) tell(format string, args ...any) {
	l.told = append(l.told, fmt.Sprintf(format, args...))
}

func (l *life) summary() string {
	err := "all is well"
	if l.Err() != nil {
		err = l.Err().Error()
	}
	return err + "\n  " + strings.Join(l.told, "\n  ")
}

func (l *life) describe() string { return l.Describe() + fmt.Sprintf("\n%+v", l.Stats()) }

// live lets a pair live through what the seed says.
func live(seed uint64, trace bool) *life {
	// The options come from a generator of their own, so that the pair can be made of them.
	r := New(seed^0x5eed, false).Rand
	pick := func(n int) int { return r.IntN(n) }
	chance := func(percent int) bool { return r.IntN(100) < percent }
	span := func(from, to time.Duration) time.Duration { return from + time.Duration(r.Int64N(int64(to-from)+1)) }

	o := options{
		children: 1 + pick(3),
		outer6:   chance(25), inner6: chance(25),
		narrow: chance(20), encap: chance(10),
		dpd: span(5*time.Second, 30*time.Second), dpdAction: ike.ActionRestart,
		start: ike.StartAction(pick(3)), retry: span(500*time.Millisecond, 4*time.Second),
		retryTries: 4 + pick(4), window: 64 << pick(3),
	}
	if chance(30) {
		o.startB = ike.StartStart
	}
	if !chance(25) {
		o.rekeyChild = span(20*time.Second, 3*time.Minute)
	}
	if chance(20) {
		o.rekeyPackets = 30 + uint64(pick(300))
	}
	if chance(20) {
		o.rekeyBytes = 2000 + uint64(pick(20000))
	}
	if !chance(40) {
		o.rekeyIKE = span(40*time.Second, 5*time.Minute)
	}
	if chance(25) {
		o.reauth = span(40*time.Second, 5*time.Minute)
	}
	if chance(15) {
		o.reauthB = span(40*time.Second, 5*time.Minute)
	}
	group := []string{"x25519", "x25519", "x25519", "x25519", "x25519", "x25519", "ecp256", "ecp256", "ecp256", "ecp384"}[pick(10)]
	if pick(60) == 0 {
		group = []string{"modp2048", "modp3072", "modp4096", "ecp521"}[pick(4)]
	}
	o.ike = []string{"aes128gcm16-prfsha256", "aes192gcm16-prfsha384", "aes256gcm16-prfsha512", "chacha20poly1305-prfsha256",
		"aes128-sha256", "aes192-sha384", "aes256-sha512", "aes128-sha1"}[pick(8)] + "-" + group
	o.esp = espSuites[pick(12)]
	if chance(50) {
		o.esp = strings.Replace(o.esp, "-esn", "", 1) + "-" + group + []string{"", "-esn"}[pick(2)]
	}
	if chance(10) && group != "x25519" {
		o.ikeB, o.ike = o.ike, strings.Replace(o.ike, group, "x25519-"+group, 1)
	}
	o.qcd, o.resumption = chance(50), chance(50)
	switch pick(10) {
	case 0:
		o.natA = true
	case 1:
		o.natB = true
	case 2:
		o.natA, o.natB = true, true
	}
	if chance(40) {
		// So small that ordinary messages come in several fragments.
		o.fragA, o.fragB = 150+pick(250), 150+pick(250)
		o.modeA, o.modeB = ike.Fragmentation([]int{0, 0, 0, 1, 2}[pick(5)]), ike.Fragmentation([]int{0, 0, 0, 1, 2}[pick(5)])
	}
	o.mobike = chance(70)
	roams := chance(40) // addresses change; where the sides are then is no question of configuration
	all := chance(15)   // everything in one life
	if all {
		o.mobike, o.qcd, o.resumption, roams = true, true, true, true
		o.fragA, o.fragB = 150+pick(250), 150+pick(250)
		o.modeA, o.modeB = ike.FragmentYes, ike.FragmentYes
	}
	l := &life{pair: newPair(seed, trace, o)}
	s, a, b := l.Sim, l.a, l.b
	l.hiding(seed)
	l.ppks(seed)
	l.quantum(seed)
	l.rounds(seed)
	if roams {
		for _, c := range []*ike.Conn{l.cfgA.Conns[0], l.cfgB.Conns[0]} {
			if len(c.RemoteAddrs) > 0 {
				c.RemoteAddrs = append(c.RemoteAddrs, netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"))
			}
		}
	}
	home := map[*Host][]netip.Addr{a: a.Addrs, b: b.Addrs}
	l.tell("IKE %s, ESP %s, %d children, NAT %v %v, encap %v, outer6 %v, inner6 %v, narrow %v", o.ike, o.esp, o.children,
		o.natA, o.natB, o.encap, o.outer6, o.inner6, o.narrow)
	l.tell("quick crash detection %v, resumption %v", o.qcd, o.resumption)
	l.tell("MOBIKE %v, roams %v, all at once %v", o.mobike, roams, all)
	l.all = all
	l.tell("rekey after %d packets, %d octets", o.rekeyPackets, o.rekeyBytes)
	l.tell("reauthentication %v and %v", o.reauth, o.reauthB)
	l.tell("dpd %v, rekey child %v, rekey IKE %v, retry %v x %d, start %d and %d", o.dpd, o.rekeyChild, o.rekeyIKE, o.retry,
		o.retryTries, o.start, o.startB)

	l.tell("fragments %d (%d) and %d (%d)", o.fragA, o.modeA, o.fragB, o.modeB)

	bad := func() Link {
		k := Link{Loss: 0.3, Dup: 0.2 * r.Float64(), Delay: span(time.Millisecond, 200*time.Millisecond),
			Jitter: span(0, 800*time.Millisecond)}
		if chance(30) {
			k.Loss = 0.45 * r.Float64()
		}
		if chance(15) { // one way only, most of the time: a satellite, or a queue that is full
			k.Delay = span(200*time.Millisecond, 5*time.Second)
		}
		return k
	}
	ab, ba := bad(), bad()
	*s.Link(a, b), *s.Link(b, a) = ab, ba
	l.tell("a to b: %v; b to a: %v", ab, ba)
	for _, h := range []*Host{a, b} {
		h.WorkTime = []time.Duration{0, 20 * time.Millisecond, 2 * time.Second}[pick(3)]
		h.TimerLag = []time.Duration{0, 50 * time.Millisecond}[pick(2)]
		if chance(15) {
			h.Limits.Cookies = pick(2)
		}
	}

	// The troubled time.
	trouble := span(time.Minute, 5*time.Minute)
	l.dialing(seed, trouble)
	l.policies(seed, trouble)
	l.lanes(seed)
	b.Boot(l.cfgB)
	s.After(span(0, 2*time.Second), func() { a.Boot(l.cfgA) })
	for _, f := range l.flows {
		s.Traffic(f, span(200*time.Millisecond, 3*time.Second), trouble)
	}
	canInitiate := []*Host{a}
	if !o.natA {
		canInitiate = append(canInitiate, b)
	}
	for range pick(12) {
		at := span(0, trouble)
		h := []*Host{a, b}[pick(2)]
		child := l.children[pick(len(l.children))]
		deed := pick(11)
		if roams && chance(40) {
			deed = 11 + pick(4)
		}
		also := chance(30) // the other side does it too, at the same time
		on := func(f func(h *Host)) {
			s.After(at, func() {
				f(h)
				if also {
					f(map[*Host]*Host{a: b, b: a}[h])
				}
			})
		}
		switch deed {
		case 0, 1:
			on(func(h *Host) { l.rekeyIKE(h) })
		case 2, 3:
			on(func(h *Host) { l.rekeyChild(h, child) })
		case 4:
			on(func(h *Host) {
				h.Command("terminate "+child, ike.Command{Kind: ike.CmdTerminate, Conn: connName, Child: child})
			})
		case 5:
			on(func(h *Host) { l.terminate(h) })
		case 6, 7:
			h = canInitiate[pick(len(canInitiate))]
			also = also && len(canInitiate) > 1
			on(func(h *Host) { l.initiate(h) })
		case 8:
			away := span(0, time.Minute)
			s.After(at, func() { s.Cut(a, b, true) })
			s.After(at+away, func() { s.Cut(a, b, false) })
		case 9:
			away := span(0, 30*time.Second)
			cfg := map[*Host]ike.Config{a: l.cfgA, b: l.cfgB}[h]
			s.After(at, func() { h.Crash() })
			s.After(at+away, func() { h.Boot(cfg) })
		case 11: // another address, for a while
			other := home[h][0].Next()
			back := span(time.Second, time.Minute)
			s.After(at, func() { h.SetAddrs(other) })
			s.After(at+back, func() { h.SetAddrs(home[h]...) })
		case 12: // a second address, which routes may come to prefer, and which goes again
			other := home[h][0].Next().Next()
			one, two := span(0, 30*time.Second), span(0, 30*time.Second)
			s.After(at, func() { h.SetAddrs(home[h][0], other) })
			s.After(at+one, func() { h.SetAddrs(other, home[h][0]) })
			s.After(at+one+two, func() { h.SetAddrs(home[h]...) })
		case 13: // the cable is out
			away := span(time.Second, time.Minute)
			s.After(at, func() { h.SetDown(true) })
			s.After(at+away, func() { h.SetDown(false) })
		case 14: // a NAT has new ideas
			if a.NAT != nil {
				outside := netip.Addr{}
				if chance(30) {
					outside = a.NAT.Outside.Next().Next().Next()
				}
				s.After(at, func() {
					s.note("     the NAT in front of a gives out other ports")
					a.NAT.Rebind(outside)
				})
			}
		case 10:
			// A line that is dialled anew: the NAT knows nothing any more, the router starts.
			if a.NAT != nil {
				s.After(at, func() {
					s.note("     the NAT in front of a forgets its mappings")
					a.NAT.Rebind(netip.Addr{})
					a.Boot(l.cfgA)
				})
			}
		}
	}
	if s.Run(trouble+time.Minute) != nil {
		return l
	}

	// The network heals. Whoever can initiates until all is up.
	l.troubled = s.Stats()
	s.note("     the network heals")
	s.Mark()
	for _, h := range []*Host{a, b} {
		if roams {
			h.Down = false
			h.SetAddrs(home[h]...)
		}
	}
	good := Link{Delay: span(time.Millisecond, 50*time.Millisecond)}
	l.Pair(a, b, good)
	a.WorkTime, b.WorkTime = 10*time.Millisecond, 10*time.Millisecond
	a.Configure(l.cfgA)
	b.Configure(l.cfgB)
	if l.front != nil {
		l.Pair(a, l.front, good)
		l.Pair(b, l.front, good)
		l.heals()
	}
	l.chatter()
	who := canInitiate[pick(len(canInitiate)):]
	up := false
	for range 12 {
		for _, h := range who {
			l.initiate(h)
		}
		if l.away != nil {
			l.away()
		}
		if s.Run(s.Now()+time.Minute) != nil {
			return l
		}
		if up = s.RunUntil(time.Minute, func() bool { return s.Quiet() && l.allUp() }); up || s.Err() != nil {
			break
		}
	}
	if s.Err() != nil {
		return l
	}
	if !up {
		s.Fail("in a healed network the CHILD SAs do not come up: %s", s.Describe())
		return l
	}
	// What the two had to clear up may take until the next liveness check and its end.
	if !s.RunUntil(20*time.Minute, func() bool { return s.Quiet() && l.allUp() && l.sameOnBoth() && l.decided() }) && s.Err() == nil {
		s.Fail("in a healed network the sides do not come to hold the same: %s", s.Describe())
		return l
	}
	if l.loose {
		_ = s.CheckRest()
	} else {
		_ = s.CheckPair(a, b, connName, l.children...)
	}
	if l.checkPPKs != nil {
		l.checkPPKs()
	}
	l.fillAll()
	_ = s.CheckTraffic(l.flows...)
	if s.Err() != nil {
		return l
	}
	l.silent = true
	if l.idle != nil && l.idleEnds() != nil {
		return l
	}

	// The end.
	l.terminate(a)
	if chance(50) || l.restarts {
		l.terminate(b)
	}
	if s.Run(s.Now()+20*time.Minute) != nil {
		return l
	}
	_ = s.CheckEmpty(a)
	_ = s.CheckEmpty(b)
	if l.front != nil {
		_ = s.CheckEmpty(l.front)
	}
	return l
}

// chatter keeps the children from being idle.
func (l *life) chatter() {
	if l.silent || l.idle == nil {
		return
	}
	for _, f := range l.flows {
		f.From.Send(f.Src, f.Dst, f.Port)
		f.To.Send(f.Dst, f.Src, f.Port)
	}
	l.After(2*time.Second, l.chatter)
}

// idleEnds checks that the children whose time of silence is over are closed, and the others
// not, and that a packet brings back those that it may.
func (l *life) idleEnds() error {
	s := l.Sim
	var stay []string
	for _, name := range l.children {
		if l.idle[name] == 0 {
			stay = append(stay, name)
		}
	}
	// A reauthentication under way may bring one up once more.
	s.RunUntil(10*time.Minute, func() bool {
		for name := range l.idle {
			if l.has(l.a, name) || l.has(l.b, name) {
				return false
			}
		}
		return s.Quiet()
	})
	_ = s.Run(s.Now() + 2*time.Minute)
	l.settle(10 * time.Minute)
	if s.Err() != nil {
		return s.Err()
	}
	if len(stay) == 0 {
		_ = s.CheckEmpty(l.a)
		_ = s.CheckEmpty(l.b)
	} else if !l.loose {
		_ = s.CheckPair(l.a, l.b, connName, stay...)
	}
	for i, f := range l.flows {
		k := l.cfgA.Conns[0].Children[i]
		if l.idle[f.Child] == 0 || k.StartAction != ike.StartTrap || s.Err() != nil {
			continue
		}
		f.From.Send(f.Src, f.Dst, f.Port)
		if !s.RunUntil(l.idle[f.Child], func() bool { return l.has(l.a, f.Child) && l.has(l.b, f.Child) }) && s.Err() == nil {
			s.Fail("a packet does not bring back the child %s: %s", f.Child, s.Describe())
		}
	}
	return s.Err()
}

// has tells whether a host has a child up.
func (l *life) has(h *Host, child string) bool {
	up := false
	h.M.List(func(sa *ike.SAInfo) bool {
		for _, c := range sa.Children {
			up = up || c.Name == child && c.State == ike.ChildInstalled
		}
		return true
	})
	return up
}

// allUp tells whether each side has each child once, or in a loose life at least once, and
// nothing else.
func (l *life) allUp() bool {
	if l.front != nil && !l.none(l.front) {
		return false
	}
	for _, h := range []*Host{l.a, l.b} {
		if l.loose {
			for _, name := range l.children {
				if !l.has(h, name) {
					return false
				}
			}
			continue
		}
		var n, ikes int
		seen := map[string]bool{}
		h.M.List(func(sa *ike.SAInfo) bool {
			ikes++
			n += len(sa.Children)
			for _, c := range sa.Children {
				if l.Several && seen[c.Name] && c.State == ike.ChildInstalled {
					n-- // one more for a lane
				}
				seen[c.Name] = true
			}
			return true
		})
		if n != len(l.children) || ikes != 1 {
			return false
		}
	}
	return true
}

// decided tells whether every outbound SA is in use. Of several IKE SAs that stand beside each
// other it cannot be told in whose place a new one comes: where nothing passes it waits its time.
func (l *life) decided() bool {
	if !l.loose {
		return true // CheckPair finds those that are not
	}
	for _, h := range []*Host{l.a, l.b} {
		if slices.ContainsFunc(h.outs, func(o *outSA) bool { return o.standby }) {
			return false
		}
	}
	return true
}

// none tells whether a host has no IKE SA.
func (l *life) none(h *Host) bool {
	n := 0
	h.M.List(func(*ike.SAInfo) bool { n++; return true })
	return n == 0
}

// sameOnBoth tells whether both sides have the same IKE SAs with the same CHILD SAs: the
// inbound SPIs of one side are the outbound ones of the other.
func (l *life) sameOnBoth() bool {
	type pairOf struct {
		i, r    uint64
		in, out uint32
	}
	list := func(h *Host, mine bool) map[pairOf]bool {
		m := map[pairOf]bool{}
		h.M.List(func(sa *ike.SAInfo) bool {
			m[pairOf{sa.SPIi, sa.SPIr, 0, 0}] = true
			for _, c := range sa.Children {
				if mine {
					m[pairOf{sa.SPIi, sa.SPIr, c.SPIIn, c.SPIOut}] = true
				} else {
					m[pairOf{sa.SPIi, sa.SPIr, c.SPIOut, c.SPIIn}] = true
				}
			}
			return true
		})
		return m
	}
	return maps.Equal(list(l.a, true), list(l.b, false))
}
