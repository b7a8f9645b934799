package ike

import (
	"errors"
	"net/netip"
	"testing"
	"time"
)

// silence returns when a sends to each address during d, in which nobody answers.
func (p *pair) silence(d time.Duration) (sent map[netip.Addr][]time.Duration) {
	sent = map[netip.Addr][]time.Duration{}
	start := p.now.Mono
	p.a.mangle = func(o *Output) bool {
		sent[o.Path.Remote.Addr()] = append(sent[o.Path.Remote.Addr()], p.now.Mono-start)
		return false
	}
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Conn: "link"})
	p.run()
	p.pass(d)
	p.a.mangle = nil
	return sent
}

func hosts32(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		a := netip.MustParseAddr(s)
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out
}

func TestRetransmissionsGrowUpToTheLimit(t *testing.T) {
	p := newPair(t, func(a, b *Conn) { a.RetryLimit = 10 * time.Second })
	got := p.silence(60 * time.Second)[p.b.addr]
	// 4, 7.2, then 12.96 and more, which the limit makes 10.
	want := []time.Duration{0, 4 * time.Second, 11200 * time.Millisecond, 21200 * time.Millisecond, 31200 * time.Millisecond, 41200 * time.Millisecond}
	if len(got) < len(want) {
		t.Fatalf("transmissions at %v, want them at %v", got, want)
	}
	for i, w := range want {
		if d := got[i] - w; d < -time.Millisecond || d > time.Millisecond {
			t.Errorf("transmission %d came at %v, want %v", i, got[i], w)
		}
	}
}

func TestJitterMakesRetransmissionsEarlierByItsPercentageAtMost(t *testing.T) {
	early := time.Duration(0)
	for range 20 {
		p := newPair(t, func(a, b *Conn) { a.RetryJitter = 20 })
		for range len(t.Name()) + int(early%7) { // another piece of the random sequence
			p.a.rnd.Uint32()
		}
		got := p.silence(5 * time.Second)[p.b.addr]
		if len(got) != 2 || got[1] < 3200*time.Millisecond || got[1] > 4*time.Second {
			t.Fatalf("transmissions at %v: the second belongs between 80 %% and 100 %% of 4 s", got)
		}
		early = max(early, 4*time.Second-got[1])
	}
	if early == 0 {
		t.Error("no retransmission came early, although retransmit_jitter asks for it")
	}
}

func TestDeadFirstAddressCostsSecondsOnly(t *testing.T) {
	p := newPair(t, func(a, b *Conn) { a.RemoteAddrs = hosts32("203.0.113.9", "192.0.2.2") })
	dead := netip.MustParseAddr("203.0.113.9")
	tries := 0
	p.a.mangle = func(o *Output) bool {
		if o.Path.Remote.Addr() == dead {
			tries++
			return false
		}
		return true
	}
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
	p.run()
	p.pass(firstPatience + 2*nextAddress)
	p.done(p.a, 1, nil)
	p.same(1)
	if tries != 3 {
		t.Errorf("%d transmissions to the dead address, want 3: one can be lost on a bad line", tries)
	}
	// The one that worked is called first from now on.
	p.a.m.Command(p.now, Command{Kind: CmdTerminate, Tag: 2, Conn: "link"})
	p.run()
	p.done(p.a, 2, nil)
	tries = 0
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 3, Conn: "link"})
	p.run()
	p.done(p.a, 3, nil)
	if tries != 0 {
		t.Errorf("the dead address was called %d times, although another one had worked", tries)
	}
}

func TestRoundsOfSeveralAddressesAreMorePatientEachTime(t *testing.T) {
	p := newPair(t, func(a, b *Conn) { a.RemoteAddrs = hosts32("203.0.113.9", "203.0.113.10") })
	p.silence(5 * time.Minute)
	var starts []time.Duration
	for _, e := range p.a.events {
		if e.Kind == EvFailed {
			starts = append(starts, e.Delay)
		}
	}
	if len(starts) < 6 {
		t.Fatalf("%d attempts in five minutes, want at least 6", len(starts))
	}
	for i, d := range starts {
		if within := i%2 == 0; within != (d == nextAddress) {
			t.Errorf("after attempt %d the wait is %v: the second address of a round comes at once, the next round after a back-off", i+1, d)
		}
	}
	if starts[1] < retryFirst || starts[3] < 2*retryFirst || starts[5] < 4*retryFirst {
		t.Errorf("waits %v: those between rounds have to double", starts)
	}
}

// An address that answers after five seconds is reached although there are others.
func TestSlowPeerIsReachedAmongSeveralAddresses(t *testing.T) {
	p := newPair(t, func(a, b *Conn) { a.RemoteAddrs = hosts32("203.0.113.9", "192.0.2.2") })
	type late struct {
		at time.Duration
		o  Output
	}
	var queue []late
	p.a.mangle = func(o *Output) bool {
		if o.Path.Remote.Addr() == p.b.addr {
			queue = append(queue, late{p.now.Mono + 5*time.Second, *o})
		}
		return false
	}
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Conn: "link"})
	for end := p.now.Mono + 3*time.Minute; p.now.Mono < end && p.a.count(EvChildUp) == 0; {
		p.run()
		p.pass(100 * time.Millisecond)
		for len(queue) > 0 && queue[0].at <= p.now.Mono {
			o := queue[0].o
			queue = queue[1:]
			p.b.m.Datagram(p.now, Path{Local: o.Path.Remote, Remote: o.Path.Local, NATT: o.Path.NATT}, o.Data)
			p.run()
		}
	}
	if p.a.count(EvChildUp) == 0 {
		t.Fatal("a peer that answers after 5 s was not reached in three minutes")
	}
}

func TestUnreachableAddressIsLeftAtOnceIfThereAreOthers(t *testing.T) {
	p := newPair(t, func(a, b *Conn) { a.RemoteAddrs = hosts32("203.0.113.9", "192.0.2.2") })
	var path Path
	p.a.mangle = func(o *Output) bool {
		if o.Path.Remote.Addr() != p.b.addr {
			path = o.Path
			return false
		}
		return true
	}
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
	p.run()
	p.a.m.Command(p.now, Command{Kind: CmdUnreachable, Path: path})
	p.pass(nextAddress)
	p.done(p.a, 1, nil)
	p.same(1)

	// Where there is no other, the retransmissions go on.
	p = newPair(t, nil)
	p.a.mangle = func(o *Output) bool { path = o.Path; return false }
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
	p.run()
	p.a.m.Command(p.now, Command{Kind: CmdUnreachable, Path: path})
	p.run()
	p.a.mangle = nil
	p.pass(4 * time.Second)
	p.done(p.a, 1, nil)
}

func TestBackoffStartsAnewAfterASuccess(t *testing.T) {
	p := newPair(t, func(a, b *Conn) { a.RetryTries, a.RetryTimeout = 1, 100*time.Millisecond })
	p.silence(2 * time.Minute)
	last := func() time.Duration {
		for i := len(p.a.events) - 1; i >= 0; i-- {
			if p.a.events[i].Kind == EvFailed {
				return p.a.events[i].Delay
			}
		}
		return 0
	}
	if d := last(); d < 16*time.Second || d > retryLast+retryLast/4 {
		t.Fatalf("after two minutes the wait is %v, want it grown but not above a minute", d)
	}
	p.pass(2 * retryLast)
	p.same(1)
	p.a.m.Command(p.now, Command{Kind: CmdTerminate, Tag: 2, Conn: "link"})
	p.run()
	p.a.events = nil
	p.silence(time.Second)
	if d := last(); d < retryFirst || d > retryFirst+retryFirst/4 {
		t.Errorf("the first wait after a success is %v, want %v: back-off has to start anew", d, retryFirst)
	}
}

func TestCommandAndNetworkChangeEndABackoff(t *testing.T) {
	for _, c := range []struct {
		name string
		cmd  Command
	}{{"initiate", Command{Kind: CmdInitiate, Tag: 9, Conn: "link"}}, {"network", Command{Kind: CmdAddresses}}} {
		t.Run(c.name, func(t *testing.T) {
			p := newPair(t, func(a, b *Conn) { a.RetryTries, a.RetryTimeout = 1, 100*time.Millisecond })
			p.silence(2 * time.Minute)
			if p.a.m.conns[0].retryAt <= p.now.Mono {
				p.pass(time.Second) // an attempt was under way
			}
			p.a.m.Command(p.now, c.cmd)
			p.pass(time.Second / 4)
			p.same(1)
		})
	}
}

func TestNetworkChangeRepeatsTheRequestFromTheNewAddress(t *testing.T) {
	p := newPair(t, func(a, b *Conn) { a.LocalAddrs, b.RemoteAddrs = nil, nil })
	p.a.mangle = func(*Output) bool { return false }
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
	p.run()
	p.pass(20 * time.Second) // the next repetition is more than ten seconds away
	p.a.mangle = nil
	p.a.addr = netip.MustParseAddr("192.0.2.77")
	p.a.m.Command(p.now, Command{Kind: CmdAddresses})
	p.pass(0)
	p.done(p.a, 1, nil)
	p.same(1)
	for _, s := range p.a.sas {
		if s.Local.Addr() != p.a.addr {
			t.Errorf("the SA is bound to %v, want the new address %v", s.Local, p.a.addr)
		}
	}
	if n := p.a.count(EvFailed); n != 0 {
		t.Errorf("%d attempts failed: the one from the old address was given up, it did not fail", n)
	}
}

// Where our address has not changed, the request under way is repeated at once all the same:
// the way beyond it may be another one.
func TestNetworkChangeRepeatsTheRequestAtOnce(t *testing.T) {
	p := newPair(t, nil)
	p.a.mangle = func(*Output) bool { return false }
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
	p.run()
	p.pass(20 * time.Second) // the next repetition is more than ten seconds away
	p.a.mangle = nil
	p.a.m.Command(p.now, Command{Kind: CmdAddresses})
	p.pass(0)
	p.done(p.a, 1, nil)
	p.same(1)
}

func TestKeyingTriesCountRounds(t *testing.T) {
	p := newPair(t, func(a, b *Conn) {
		a.KeyingTries = 1
		a.RemoteAddrs = hosts32("203.0.113.9", "203.0.113.10")
	})
	p.a.mangle = func(*Output) bool { return false }
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
	p.run()
	p.pass(firstPatience + time.Second)
	for _, e := range p.a.events {
		if e.Kind == EvDone {
			t.Fatal("the command ended although the second address had not failed yet")
		}
	}
	p.pass(firstPatience)
	p.done(p.a, 1, ErrTimeout)
	if n := p.a.count(EvInitiate); n != 2 {
		t.Errorf("%d attempts with keyingtries 1 and two addresses, want one at each", n)
	}
	if last := p.a.events[len(p.a.events)-1]; !errors.Is(last.Err, ErrTimeout) {
		t.Errorf("last event %+v", last)
	}
	if at, ok := p.a.m.Deadline(); ok && at > p.now.Mono {
		t.Errorf("something waits for %v after the last try", at)
	}
}

// A user's DELETE is repeated within the time that the daemon has at its end, and given up
// in seconds.
func TestDeleteOfTheUserIsRepeatedSoonAndGivenUpSoon(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	start := p.now.Mono
	var sent []time.Duration
	p.a.mangle = func(*Output) bool { sent = append(sent, p.now.Mono-start); return false }
	p.a.m.Command(p.now, Command{Kind: CmdTerminate, Tag: 2, Conn: "link"})
	p.run()
	p.pass(10 * time.Second)
	p.done(p.a, 2, ErrTimeout) // the peer has not confirmed it
	if len(sent) != 1+deleteTries || sent[1] != deletePace || sent[2] > 1500*time.Millisecond {
		t.Errorf("the DELETE left at %v, want one and three repetitions, two of them within 1.5 s", sent)
	}
	if n := p.ikes(p.a); n != 0 {
		t.Errorf("%d IKE SAs are left after ten seconds", n)
	}
	// One that reaches the peer at the second try ends both sides.
	p = newPair(t, nil)
	p.up()
	p.a.mangle = func(*Output) bool { p.a.mangle = nil; return false }
	p.a.m.Command(p.now, Command{Kind: CmdTerminate, Tag: 2, Conn: "link"})
	p.run()
	p.pass(deletePace)
	p.same(0)
}

func TestForcedEndDoesNotWaitForThePeer(t *testing.T) {
	for _, lost := range []bool{false, true} {
		p := newPair(t, withChildren)
		p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
		p.run()
		n := 0
		p.a.mangle = func(*Output) bool { n++; return !lost }
		p.a.m.Command(p.now, Command{Kind: CmdTerminate, Tag: 2, Conn: "link", Force: true})
		p.a.drain(p.now) // the peer has had no chance yet
		p.done(p.a, 2, nil)
		if len(p.a.sas) != 0 || p.ikes(p.a) != 0 || len(p.a.spis) != 0 {
			t.Errorf("%d simplex SAs and %d IKE SAs are left", len(p.a.sas), p.ikes(p.a))
		}
		p.run()
		if n != 1 {
			t.Errorf("%d datagrams left, want the one DELETE", n)
		}
		if lost != (len(p.b.sas) != 0) {
			t.Errorf("the peer has %d simplex SAs, and the DELETE was lost: %v", len(p.b.sas), lost)
		}
		n = 0
		p.pass(time.Minute)
		if n != 0 {
			t.Errorf("%d datagrams left after the forced end", n)
		}
	}
}

func TestForcedEndRespectsThePeersWindow(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	p.a.mangle = func(*Output) bool { return false }
	p.a.m.Command(p.now, Command{Kind: CmdRekey, Conn: "link", Child: "net"})
	p.run()
	n := 0
	p.a.mangle = func(*Output) bool { n++; return false }
	p.a.m.Command(p.now, Command{Kind: CmdTerminate, Tag: 2, Conn: "link", Force: true})
	p.run()
	p.done(p.a, 2, nil)
	if n != 0 || len(p.a.sas) != 0 || len(p.a.spis) != 0 || p.ikes(p.a) != 0 {
		t.Errorf("%d datagrams left, %d simplex SAs, %d SPIs and %d IKE SAs are there still", n, len(p.a.sas), len(p.a.spis), p.ikes(p.a))
	}
}

// press has a packet wait on a during d, in which nobody answers, and returns when a sends.
func (p *pair) press(d time.Duration) (sent []time.Duration) {
	start := p.now.Mono
	p.a.mangle = func(*Output) bool {
		sent = append(sent, p.now.Mono-start)
		return false
	}
	for ; d > 0; d -= time.Second {
		p.a.m.Command(p.now, Command{Kind: CmdAcquire, Conn: "link", Child: "net"})
		p.run()
		p.pass(min(d, time.Second))
	}
	p.a.mangle = nil
	return sent
}

// restart has a begin to connect anew, without a word to b.
func (p *pair) restart() {
	p.a.m.Command(p.now, Command{Kind: CmdTerminate, Conn: "link", Force: true})
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Conn: "link"})
	p.a.mangle = func(*Output) bool { return false }
	p.run()
	p.a.events = nil
}

// permanent has a keep the tunnel up at all times.
func permanent(a, _ *Conn) { a.Children[0].StartAction = StartStart }

// The peer is away for longer than any back-off under traffic, and comes back without a sign.
func TestPeerIsBackWithinThreeSecondsWhilePacketsWait(t *testing.T) {
	for name, change := range map[string]func(a, b *Conn){
		"on demand": func(a, _ *Conn) { a.Children[0].StartAction = StartTrap },
		"permanent": permanent,
		"few retransmissions": func(a, b *Conn) {
			permanent(a, b)
			a.RetryTries, a.RetryTimeout = 1, 500*time.Millisecond
		},
		"two addresses": func(a, b *Conn) {
			permanent(a, b)
			a.RemoteAddrs = hosts32("192.0.2.2", "203.0.113.9")
			a.RetryTries = 2
		},
	} {
		worst := time.Duration(0)
		for away := 200 * time.Second; away < 230*time.Second; away += 2700 * time.Millisecond {
			p := newPair(t, func(a, b *Conn) {
				change(a, b)
				a.LocalAddrs = nil
			})
			p.restart()
			sent := p.press(away)
			for i := 1; i < len(sent) && name != "two addresses"; i++ {
				if gap := sent[i] - sent[i-1]; gap > pressPace+time.Second/2 {
					t.Fatalf("%s: nothing is sent for %v while packets wait, want at most %v", name, gap, pressPace)
				}
			}
			if per := away / time.Duration(len(sent)); per < pressPace/3 {
				t.Errorf("%s: %d datagrams to a dead peer in %v", name, len(sent), away)
			}
			back := p.now.Mono
			for p.a.count(EvChildUp) == 0 && p.now.Mono-back < time.Minute {
				p.a.m.Command(p.now, Command{Kind: CmdAcquire, Conn: "link", Child: "net"})
				p.run()
				p.pass(100 * time.Millisecond)
			}
			worst = max(worst, p.now.Mono-back)
		}
		limit := 3 * time.Second
		if name == "two addresses" {
			limit += firstPatience // for the dead one; more than that is seldom
		}
		if worst > limit {
			t.Errorf("%s: the tunnel is up %v after the peer is back, want at most %v", name, worst, limit)
		}
	}
}

// What is repeated for waiting packets does not count: a peer is given up as late as without.
func TestWaitingPacketsDoNotShortenTheAttempt(t *testing.T) {
	p := newPair(t, permanent)
	p.restart()
	p.press(160 * time.Second)
	if n := p.a.count(EvFailed); n != 0 {
		t.Errorf("%d attempts failed within 160 s, want none before 165 s", n)
	}
	p.press(10 * time.Second)
	if n := p.a.count(EvFailed); n != 1 {
		t.Errorf("%d attempts failed within 170 s, want one", n)
	}
}

// A peer that says no is there: it is not asked more often because packets wait.
func TestRefusedAttemptIsNotHastenedByPackets(t *testing.T) {
	p := newPair(t, func(a, b *Conn) {
		permanent(a, b)
		b.Proposals = mustProposals(t, ProtoIKE, "aes256-sha512-ecp384")
	})
	for range 120 {
		p.a.m.Command(p.now, Command{Kind: CmdAcquire, Conn: "link", Child: "net"})
		p.run()
		p.pass(time.Second)
	}
	if n := p.a.count(EvInitiate); n > 8 {
		t.Errorf("%d attempts in two minutes at a peer that refuses, want the back-off of 2, 4, 8 … s", n)
	}
}

// The user has closed a permanent tunnel: packets do not bring it back.
func TestPacketsDoNotBringBackAPermanentTunnelThatTheUserClosed(t *testing.T) {
	p := newPair(t, permanent)
	p.same(1)
	p.a.m.Command(p.now, Command{Kind: CmdTerminate, Tag: 2, Conn: "link"})
	p.run()
	p.done(p.a, 2, nil)
	for range 5 {
		p.a.m.Command(p.now, Command{Kind: CmdAcquire, Conn: "link", Child: "net"})
		p.run()
		p.pass(time.Second)
	}
	p.same(0)
}

// A request on an IKE SA that is there is repeated for waiting packets, too.
func TestChildOnDemandIsBackSoonAfterAnOutage(t *testing.T) {
	p := newPair(t, func(a, b *Conn) {
		for _, c := range []*Conn{a, b} {
			k := *c.Children[0]
			k.Name = "more"
			k.LocalTS, k.RemoteTS = []TS{sel("10.3.0.0/24")}, []TS{sel("10.4.0.0/24")}
			if c == b {
				k.LocalTS, k.RemoteTS = k.RemoteTS, k.LocalTS
			}
			c.Children = append(c.Children, &k)
		}
	})
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link", Child: "more"})
	p.run()
	p.done(p.a, 1, nil)
	p.press(50 * time.Second) // of the schedule 47 s and 89 s are next
	for range 3 {
		p.a.m.Command(p.now, Command{Kind: CmdAcquire, Conn: "link", Child: "net"})
		p.run()
		p.pass(time.Second)
	}
	p.same(2)
}

// An address is given up while the peer's answer to IKE_AUTH is on its way: the peer has an
// IKE SA by then. Once messages pass, neither side has one too many.
func TestAttemptGivenUpInAuthenticationLeavesNothingBehind(t *testing.T) {
	slow := netip.MustParseAddr("192.0.2.2")
	for name, c := range map[string]struct {
		late bool // the answers along the first address come after 5 s; otherwise never
		next bool // the second address works
	}{
		"late, another address of the peer":  {late: true, next: true},
		"late, no other address":             {late: true},
		"never, another address of the peer": {next: true},
	} {
		p := newPair(t, func(a, b *Conn) {
			a.LocalAddrs, b.LocalAddrs = nil, nil
			a.RemoteAddrs = hosts32("192.0.2.2", "192.0.2.3")
			a.KeyingTries = 1
		})
		held := true
		var queue []Output
		p.b.mangle = func(o *Output) bool {
			if o.Path.Local.Addr() == slow && Exchange(o.Data[18]) == ExchangeAuth && held {
				queue = append(queue, *o)
				return false
			}
			return true
		}
		p.a.mangle = func(o *Output) bool { return c.next || o.Path.Remote.Addr() == slow }
		p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 1, Conn: "link"})
		p.run()
		if n := p.b.count(EvIKEUp); n != 1 {
			t.Fatalf("%s: the peer has %d IKE SAs after the first IKE_AUTH, want one", name, n)
		}
		p.pass(5 * time.Second)
		if n := p.a.count(EvFailed); n == 0 {
			t.Fatalf("%s: no attempt has failed by now", name)
		}
		if c.late {
			held = false
			for _, o := range queue {
				p.a.m.Datagram(p.now, Path{Local: o.Path.Remote, Remote: o.Path.Local, NATT: o.Path.NATT}, o.Data)
				p.run()
			}
		}
		p.pass(2 * time.Minute)
		want := 0
		if c.next {
			want = 1
			p.done(p.a, 1, nil)
		}
		for _, h := range []*host{p.a, p.b} {
			if n := len(h.ids()); n != want {
				t.Errorf("%s: %v has %d IKE SAs in the end, want %d", name, h.addr, n, want)
			}
		}
		p.same(want)
	}
}
