package engine

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"postern/board"
	"postern/esp"
)

func flowTo(dst string) *esp.Flow {
	return &esp.Flow{Local: netip.MustParseAddr(srcHost), Remote: netip.MustParseAddr(dst), Proto: 17, LocalPort: 1, RemotePort: 502}
}

func plain(a esp.Action, local, remote string) policySpec {
	return policySpec{Policy: esp.Policy{Action: a, LocalTS: sel(local), RemoteTS: sel(remote)}}
}

func TestFirstPolicyWins(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	tp.spd.set([]policySpec{
		plain(esp.Discard, "10.1.0.0/16", "10.2.9.0/24"),
		plain(esp.Bypass, "10.1.0.0/16", "10.2.8.0/24"),
		protect("c", "n", "10.1.0.0/16", "10.2.0.0/16"),
		plain(esp.Discard, "0.0.0.0/0", "10.3.0.0/16"),
	})
	_, out := tp.addLoop(t, testSuites[0], true, "c", "n", "10.1.0.0/16", "10.2.0.0/16", true)
	for _, c := range []struct {
		dst  string
		c    counter
		sent int
	}{
		{"10.2.9.1", cOutDiscard, 0},
		{"10.2.8.1", cOutBypass, 0},
		{"10.2.7.1", cOutPackets, 1},
		{"10.3.0.1", cOutDiscard, 0},
	} {
		for range 2 { // the second time from the cache
			was, sent := tp.counts.get(c.c), len(tp.fakes[out.sock()].datagrams())
			tp.send(udp4(srcHost, c.dst, 1, 2, 60))
			if got := tp.counts.get(c.c) - was; got != 1 {
				t.Errorf("packet to %s: counter %s rose by %d, want 1", c.dst, c.c, got)
			}
			if got := len(tp.fakes[out.sock()].datagrams()) - sent; got != c.sent {
				t.Errorf("packet to %s: %d left, want %d", c.dst, got, c.sent)
			}
		}
	}
}

func TestPacketWithoutPolicyIsDropped(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	tp.spd.set([]policySpec{protect("c", "n", "10.1.0.0/16", "10.2.0.0/16")})
	tp.send(udp4(srcHost, "10.9.0.1", 1, 2, 60))
	tp.want(t, cOutNoPolicy, 1)
}

func TestReloadInvalidatesFlowCache(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	spec := protect("c", "n", "10.1.0.0/16", "10.2.0.0/16")
	tp.spd.set([]policySpec{spec})
	_, out := tp.addLoop(t, testSuites[0], true, "c", "n", "10.1.0.0/16", "10.2.0.0/16", true)
	pkt := udp4(srcHost, dstHost, 1, 2, 60)
	tp.send(pkt)
	tp.spd.set([]policySpec{plain(esp.Discard, "10.1.0.0/16", "10.2.0.0/16"), spec})
	tp.send(pkt)
	tp.want(t, cOutDiscard, 1)
	tp.spd.set([]policySpec{spec})
	tp.send(pkt)
	tp.want(t, cOutPackets, 2)
	tp.spd.unbind(out)
	tp.send(pkt)
	tp.want(t, cOutPackets, 2)
	tp.want(t, cOutQueued, 1)
}

func TestNewestMatchingSAOfAPolicyIsTaken(t *testing.T) {
	// Two road warriors under one policy, each with the selectors that it was narrowed
	// to, and one of them rekeyed.
	tp := newTestPath(t, board.Tiny)
	tp.spd.set([]policySpec{protect("rw", "n", "10.1.0.0/16", "10.2.0.0/16")})
	_, a := tp.addLoop(t, testSuites[0], true, "rw", "n", "10.1.0.0/16", "10.2.0.1/32", true)
	_, b := tp.addLoop(t, testSuites[0], true, "rw", "n", "10.1.0.0/16", "10.2.0.2/32", true)
	_, b2 := tp.addLoop(t, testSuites[0], true, "rw", "n", "10.1.0.0/16", "10.2.0.2/32", true)
	for _, c := range []struct {
		dst  string
		want *outSA
	}{{"10.2.0.1", a}, {"10.2.0.2", b2}, {"10.2.0.3", nil}} {
		if _, sa := tp.spd.lookup(flowTo(c.dst)); sa != c.want {
			t.Errorf("the packet to %s takes another SA than the newest that matches", c.dst)
		}
	}
	tp.spd.unbind(b2)
	if _, sa := tp.spd.lookup(flowTo("10.2.0.2")); sa != b {
		t.Error("without the rekeyed SA the older one must serve again")
	}
	// A reload keeps the SAs.
	tp.spd.set([]policySpec{plain(esp.Bypass, "10.9.0.0/16", "10.9.0.0/16"), protect("rw", "n", "10.1.0.0/16", "10.2.0.0/16")})
	if _, sa := tp.spd.lookup(flowTo("10.2.0.1")); sa != a {
		t.Error("a reload lost an SA")
	}
}

func TestDynamicPolicyFollowsItsSAs(t *testing.T) {
	s := newSPD(8)
	s.set([]policySpec{{Policy: esp.Policy{Action: esp.Protect}, conn: "rw", child: "n", dynamic: true}, plain(esp.Discard, "0.0.0.0/0", "10.0.0.0/8")})
	if n := len(s.policies()); n != 1 {
		t.Fatalf("%d policies without an SA, want 1: a dynamic selector is not known before", n)
	}
	a := &outSA{conn: "rw", child: "n", localTS: sel("10.1.0.0/16"), remoteTS: sel("10.2.0.1/32")}
	changed, taken := s.bind(a)
	if !changed || !taken {
		t.Errorf("bind: changed %v taken %v, want both", changed, taken)
	}
	if got := s.policies(); len(got) != 2 || got[0].RemoteTS[0] != a.remoteTS[0] {
		t.Errorf("policies are %v, want the SA's selectors first", got)
	}
	if _, sa := s.lookup(flowTo("10.2.0.1")); sa != a {
		t.Error("the SA does not carry what it was made for")
	}
	rekeyed := &outSA{conn: "rw", child: "n", localTS: a.localTS, remoteTS: a.remoteTS}
	if changed, taken := s.bind(rekeyed); changed || !taken {
		t.Errorf("rekeying: changed %v taken %v, want a binding and no change for the kernel", changed, taken)
	}
	if s.unbind(a) {
		t.Error("the policy is gone with the old SA although the new one has it")
	}
	if !s.unbind(rekeyed) || len(s.policies()) != 1 {
		t.Error("the policy stays without an SA")
	}
}

func TestSPDIsBounded(t *testing.T) {
	s := newSPD(2)
	spec := []policySpec{plain(esp.Bypass, "10.0.0.0/8", "10.0.0.0/8"), protect("c", "n", "10.1.0.0/16", "10.2.0.0/16"), protect("c", "m", "10.1.0.0/16", "10.3.0.0/16")}
	if s.check(spec) == nil {
		t.Error("three entries fit a table of two")
	}
	s.set([]policySpec{{Policy: esp.Policy{Action: esp.Protect}, conn: "rw", child: "n", dynamic: true}})
	for i := range 4 {
		p := fmt.Sprintf("10.2.0.%d/32", i)
		sa := &outSA{conn: "rw", child: "n", localTS: sel("10.1.0.0/16"), remoteTS: sel(p)}
		if _, taken := s.bind(sa); taken != (i < 2) {
			t.Errorf("SA %d: taken %v; the table has room for 2", i, taken)
		}
	}
	if n := len(s.policies()); n != 2 {
		t.Errorf("%d policies, want 2", n)
	}
}

func TestAcquireIsRateLimited(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	spec := protect("c", "n", "10.1.0.0/16", "10.2.0.0/16")
	spec2 := protect("c", "quiet", "10.1.0.0/16", "10.3.0.0/16")
	spec2.wait, spec2.acquire = false, false
	tp.spd.set([]policySpec{spec, spec2})
	pkt := udp4(srcHost, dstHost, 1, 2, 60)
	for range 10 {
		tp.send(pkt)
		tp.now += acquireInterval / 10
	}
	if len(tp.acquired) != 1 {
		t.Errorf("asked %d times within a second, want once", len(tp.acquired))
	}
	tp.send(pkt)
	if len(tp.acquired) != 2 {
		t.Errorf("asked %d times after a second, want twice", len(tp.acquired))
	}
	tp.send(udp4(srcHost, "10.3.0.1", 1, 2, 60))
	if len(tp.acquired) != 2 || tp.counts.get(cOutNoSA) != 1 {
		t.Error("a child that is not to be started by packets was asked for")
	}
	// The loop is too busy: the next packet may ask again at once.
	tp.busy, tp.now = true, tp.now+time.Minute
	tp.send(pkt)
	tp.busy = false
	tp.send(pkt)
	if len(tp.acquired) != 3 || tp.counts.get(cAcquireLost) != 1 {
		t.Errorf("asked %d times, %d lost; want 3 and 1", len(tp.acquired), tp.counts.get(cAcquireLost))
	}
	// An SA that was narrowed so that it does not take the packet: ask rarely.
	tp.addLoop(t, testSuites[0], true, "c", "n", "10.1.0.0/16", "10.2.1.0/24", true)
	tp.now += 10 * acquireInterval
	tp.send(pkt)
	if len(tp.acquired) != 3 {
		t.Error("a peer that narrows the selectors is asked again within a minute")
	}
	tp.now += acquireNarrow
	tp.send(pkt)
	if len(tp.acquired) != 4 {
		t.Error("a packet outside of the narrowed selectors must be able to ask, once a minute")
	}
}

func TestFlowCacheAgreesWithSPD(t *testing.T) {
	s := newSPD(64)
	var spec []policySpec
	for i := range 40 {
		spec = append(spec, protect("c", fmt.Sprint(i), "10.1.0.0/16", fmt.Sprintf("10.2.%d.0/24", i)))
	}
	s.set(spec)
	c := newFlowCache(16, 1) // far fewer entries than flows
	for round := range 3 {
		for i := range 50 {
			f := flowTo(fmt.Sprintf("10.2.%d.1", i))
			want, _ := s.lookup(f)
			gen := s.gen.Load()
			c.begin(gen)
			k := keyOf(f)
			if got, _ := c.lookup(s, f, &k, k.hash(c.seed), gen); got != want {
				t.Fatalf("round %d: the cache has another policy for %s than the SPD", round, f.Remote)
			}
		}
		s.set(spec[round:])
		if round == 1 { // the lower half of the generation is the old one again
			s.gen.Add(1<<32 - 1)
		}
	}
}

// fragment4 cuts a piece out of an IPv4 packet; from counts octets behind the header.
func fragment4(pkt []byte, from, n int, more bool) []byte {
	f := append(append([]byte(nil), pkt[:20]...), pkt[20+from:20+from+n]...)
	binary.BigEndian.PutUint16(f[2:], uint16(len(f)))
	field := uint16(from / 8)
	if more {
		field |= 0x2000
	}
	binary.BigEndian.PutUint16(f[6:], field)
	f[10], f[11] = 0, 0
	binary.BigEndian.PutUint16(f[10:], checksum(f[:20]))
	return f
}

// Of the three ways in which RFC 4301 section 7 has fragments protected, the first two: an
// SA for all ports takes every fragment, one for OPAQUE ports those that show none. An SA for
// some ports takes none but the first, on the way out and on the way in.
func TestFragmentsGoWhereSelectorsSay(t *testing.T) {
	ports := func(prefix string, first, last uint16) []esp.Selector {
		s := sel(prefix)
		s[0].Proto, s[0].StartPort, s[0].EndPort = 17, first, last
		return s
	}
	whole := udp4(srcHost, dstHost, 1000, 502, 1020)
	first, later := fragment4(whole, 0, 504, true), fragment4(whole, 504, 496, false)
	short := fragment4(whole, 0, 0, true) // ends before the ports (RFC 3128), where a datagram may
	for _, c := range []struct {
		name         string
		remote       [][]esp.Selector // of the children, in their order
		first, later int              // whose SA takes it; -1: none
		tiny         int              // who takes a first one that ends before its ports
	}{
		{"all ports", [][]esp.Selector{sel("10.2.0.0/16")}, 0, 0, 0},
		{"one port", [][]esp.Selector{ports("10.2.0.0/16", 502, 502)}, 0, -1, -1},
		{"OPAQUE beside it", [][]esp.Selector{ports("10.2.0.0/16", 502, 502), ports("10.2.0.0/16", 65535, 0)}, 0, 1, -1},
		{"another port", [][]esp.Selector{ports("10.2.0.0/16", 503, 600)}, -1, -1, -1},
	} {
		tp := newTestPath(t, board.Tiny)
		var spec []policySpec
		for i, r := range c.remote {
			p := protect("c", fmt.Sprint(i), "10.1.0.0/16", "10.2.0.0/16")
			p.RemoteTS = r
			spec = append(spec, p)
		}
		tp.spd.set(spec)
		var in []*inSA
		var out []*outSA
		for i, r := range c.remote {
			isa, osa := tp.addLoop(t, testSuites[0], true, "c", fmt.Sprint(i), "10.1.0.0/16", "10.2.0.0/16", false)
			isa.localTS, isa.nets, osa.remoteTS = r, netPairOf(r, isa.remoteTS), r
			isa.ported, osa.ported = ported(r), ported(r)
			tp.spd.bind(osa)
			in, out = append(in, isa), append(out, osa)
		}
		for _, q := range []struct {
			what string
			pkt  []byte
			want int
		}{{"the first fragment", first, c.first}, {"a later one", later, c.later}, {"a first one without ports", short, c.tiny}} {
			sent := len(tp.fakes[sockNATT4].datagrams())
			tp.send(q.pkt)
			got := tp.fakes[sockNATT4].datagrams()[sent:]
			if q.want < 0 {
				if len(got) != 0 {
					t.Errorf("%s: %s was sent", c.name, q.what)
				}
			} else if len(got) != 1 || esp.SPIOf(got[0].Buf) != out[q.want].spi {
				t.Errorf("%s: %s did not go through the SA of child %d", c.name, q.what, q.want)
			}
			// The same on the way in: seal it with each SA, whatever the selectors.
			for i := range in {
				buf := make([]byte, 2048)
				n := copy(buf[esp.HeadRoom:], q.pkt)
				start, end, err := out[i].out.Seal(tp.ctxLoop(), buf, esp.HeadRoom, n, esp.ProtoIPv4)
				if err != nil {
					t.Fatal(err)
				}
				was := tp.tun.count()
				tp.receive(sockNATT4, esp.Datagram{Buf: buf[start:end], N: end - start, Remote: netip.MustParseAddrPort("192.0.2.1:4500")})
				if dropped := tp.tun.count() == was; dropped != (i != q.want) {
					t.Errorf("%s: %s that came through the SA of child %d was dropped: %v", c.name, q.what, i, dropped)
				}
			}
		}
	}
}
