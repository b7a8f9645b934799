//go:build linux

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// device is the name of postern's TUN device unless the configuration says otherwise.
const device = "postern0"

// resumes waits until echo requests are answered again and returns how long that took.
func resumes(t *testing.T, p *pinger, within time.Duration, ds ...daemon) time.Duration {
	t.Helper()
	begin, had := time.Now(), p.answers()
	if !eventually(within, func() bool { return p.answers() >= had+10 }) {
		t.Errorf("%v later traffic has not resumed%s", within, logs(ds...))
	}
	return time.Since(begin)
}

// Somebody sets the TUN device down while it carries traffic, and up again: the kernel has
// thrown away its routes meanwhile. Traffic resumes and nothing has left in clear.
func TestTUNDeviceSetDownAndUp(t *testing.T) {
	p := pair{"postern", "postern"}
	ready(t, p)
	s := newSite(t)
	ca, cb := pairSpecs(false, false)
	a, b := startPair(s, p, ca, cb)
	mustInitiate(t, "net", a, b)
	s.mustPing(t, false, a, b)
	spi := installed(t, a, "net").spiIn
	before := s.settled(s.gwA)
	rec := s.capture()
	ping, back := s.startPinger(s.lanA, hostB4, 50), s.startPinger(s.lanB, hostA4, 50)
	for range 2 {
		time.Sleep(300 * time.Millisecond)
		s.ip(s.gwA, "link set "+device+" down\n")
		time.Sleep(700 * time.Millisecond) // for the last answers to get home
		had := ping.answers()
		time.Sleep(300 * time.Millisecond)
		if now := ping.answers(); now != had {
			t.Errorf("%d echo requests were answered although the device is down: the test does not do what it says", now-had)
		}
		s.ip(s.gwA, "link set "+device+" up\n")
		took := resumes(t, ping, 15*time.Second, a, b)
		t.Logf("traffic resumed %.2f s after the device was up", took.Seconds())
	}
	there, home := ping.stop(), back.stop()
	t.Logf("there %d of %d, back %d of %d", there.answered, there.sent, home.answered, home.sent)
	rec.stop().nothingInClear(t, []byte(mark))
	s.mustPing(t, false, a, b)
	if now := installed(t, a, "net").spiIn; now != spi {
		t.Errorf("the CHILD SA was replaced (%s, now %s): nothing was wrong with it", spi, now)
	}
	if !eventually(5*time.Second, func() bool { return s.routing(s.gwA) == before }) {
		t.Errorf("the system is not as before:\n%s", difference(before, s.routing(s.gwA)))
	}
}

// Somebody deletes the TUN device: postern cannot go on. It closes its SAs with the peer,
// says why, takes back what it has set, and ends with an error, so that a service manager
// starts it again.
func TestTUNDeviceDeleted(t *testing.T) {
	p := pair{"postern", "postern"}
	ready(t, p)
	s := newSite(t)
	untouched := s.settled(s.gwA)
	ca, cb := pairSpecs(false, false)
	ad, b := startPair(s, p, ca, cb)
	a := ad.(*postern)
	mustInitiate(t, "net", a, b)
	s.mustPing(t, false, a, b)
	rec := s.capture()
	ping, back := s.startPinger(s.lanA, hostB4, 50), s.startPinger(s.lanB, hostA4, 50)
	time.Sleep(300 * time.Millisecond)
	before := len(a.log())
	s.ip(s.gwA, "link del "+device+"\n")
	begin := time.Now()
	if !a.p.wait(30 * time.Second) {
		t.Fatalf("postern goes on 30 s after its device was deleted%s", logs(a))
	}
	t.Logf("postern ended %.1f s after its device was deleted", time.Since(begin).Seconds())
	if code := a.p.cmd.ProcessState.ExitCode(); code != exitFailed {
		t.Errorf("exit status %d, want %d%s", code, exitFailed, logs(a))
	}
	said := a.log()[before:]
	if len(matching(said, device, "lost")) != 1 || len(matching(said, "deleted")) == 0 {
		t.Errorf("no line says that device %s is lost because it was deleted:\n%s", device, said)
	}
	if n := len(strings.Split(said, "\n")); n > 15 {
		t.Errorf("%d log lines on the way out, want a few:\n%s", n, said)
	}
	if after := s.routing(s.gwA); after != untouched {
		t.Errorf("the system is not as it was before the start:\n%s", difference(untouched, after))
	}
	if !gone(b, 10*time.Second) {
		t.Errorf("the peer was not told that the SA is gone%s", logs(a, b))
	}
	ping.stop()
	back.stop()
	w := rec.stop()
	// Without a daemon and its rules packets go where they always went: that is after its end.
	for _, k := range w {
		if k.class == classClear && k.from() == 'a' && k.at.Before(begin) {
			t.Errorf("a packet left in clear before the end: %s", k.what)
			break
		}
	}
	a.start()
	mustInitiate(t, "net", a, b)
	s.mustPing(t, false, a, b)
}

// The WAN link goes down under traffic and comes back with its route, as a modem does it:
// traffic resumes on the same SAs, without a word of IKE.
func TestWANLinkDownAndUp(t *testing.T) {
	t.Parallel()
	for _, encap := range []bool{false, true} {
		t.Run(map[bool]string{false: "ESP", true: "ESP in UDP"}[encap], func(t *testing.T) {
			p := pair{"postern", "postern"}
			ready(t, p)
			s := newSite(t)
			ca, cb := pairSpecs(false, false)
			both(&ca, &cb, func(c *conn) { c.encap = encap })
			a, b := startPair(s, p, ca, cb)
			mustInitiate(t, "net", a, b)
			s.mustPing(t, false, a, b)
			spi := installed(t, a, "net").spiIn
			rec := s.capture()
			ping, back := s.startPinger(s.lanA, hostB4, 50), s.startPinger(s.lanB, hostA4, 50)
			lines := len(strings.Split(a.log(), "\n"))
			for range 2 {
				time.Sleep(300 * time.Millisecond)
				s.ip(s.gwA, "link set wan0 down\n")
				time.Sleep(time.Second)
				had := ping.answers()
				time.Sleep(300 * time.Millisecond)
				if now := ping.answers(); now != had {
					t.Errorf("%d echo requests were answered although the link is down", now-had)
				}
				s.ip(s.gwA, "link set wan0 up\nroute add default via 198.51.100.254\n")
				took := resumes(t, ping, 15*time.Second, a, b)
				t.Logf("recovery: the WAN link goes down and up: traffic resumed %.2f s after it was up", took.Seconds())
			}
			there, home := ping.stop(), back.stop()
			t.Logf("there %d of %d, back %d of %d", there.answered, there.sent, home.answered, home.sent)
			rec.stop().nothingInClear(t, []byte(mark))
			s.mustPing(t, false, a, b)
			if now := installed(t, a, "net").spiIn; now != spi {
				t.Errorf("the CHILD SA was replaced (%s, now %s): nothing was wrong with it", spi, now)
			}
			if n := len(strings.Split(a.log(), "\n")) - lines; n > 20 {
				t.Errorf("two outages made %d log lines, want a few%s", n, logs(a))
			}
		})
	}
}

// The WAN carries less than the tunnel's MTU assumes: on the gateway's own link, or on one
// behind it that only says so when a packet is too big. Large packets and TCP still pass.
func TestSmallWAN(t *testing.T) {
	t.Parallel()
	for _, v6 := range []bool{false, true} {
		for _, encap := range []bool{false, true} {
			for _, own := range []bool{true, false} {
				where := map[bool]string{true: "own link", false: "link behind"}[own]
				name := fmt.Sprintf("IPv4, %v, %s", map[bool]string{false: "ESP", true: "ESP in UDP"}[encap], where)
				if v6 {
					name = "IPv6" + name[4:]
				}
				t.Run(name, func(t *testing.T) { smallWAN(t, v6, encap, own) })
			}
		}
	}
}

func smallWAN(t *testing.T, v6, encap, own bool) {
	p := pair{"postern", "postern"}
	ready(t, p, "iperf3")
	s := newSite(t)
	ca, cb := pairSpecs(v6, false)
	both(&ca, &cb, func(c *conn) { c.encap = encap })
	a, b := startPair(s, p, ca, cb)
	mustInitiate(t, "net", a, b)
	s.mustPing(t, false, a, b)
	const small = "1280"
	if own {
		s.ip(s.gwA, "link set wan0 mtu "+small+"\n")
		s.ip(s.wan, "link set a0 mtu "+small+"\n")
	} else {
		s.ip(s.wan, "link set b0 mtu "+small+"\n")
		s.ip(s.gwB, "link set wan0 mtu "+small+"\n")
	}
	rec := s.capture()
	// The first packets may be what the kernel learns the path's MTU from.
	s.pings(s.lanA, hostB4, 2, echoOptions{size: 1300, wait: 500 * time.Millisecond})
	for _, size := range []int{1200, 1300, 1372, 3000} {
		if r := s.pings(s.lanA, hostB4, 5, echoOptions{size: size}); r.lost() != 0 {
			t.Errorf("%d octets from LAN A to LAN B: %v", size, r)
		}
		if r := s.pings(s.lanB, hostA4, 5, echoOptions{size: size}); r.lost() != 0 {
			t.Errorf("%d octets from LAN B to LAN A: %v", size, r)
		}
	}
	w := rec.stop()
	w.nothingInClear(t, []byte(mark))
	for _, k := range w {
		if k.wire > 1280+14 && (own && k.link == "a0" || !own && k.link == "b0") {
			t.Errorf("a frame of %d octets on the small link: it is not small", k.wire)
			break
		}
	}
	for _, direction := range []string{"", "-R"} {
		args := []string{"-t", "1"}
		if direction != "" {
			args = append(args, direction)
		}
		r, err := s.iperf3(hostB4, args...)
		if err != nil {
			t.Fatalf("TCP over the small WAN (%q): %v%s", direction, err, logs(a, b))
		}
		t.Logf("TCP over the small WAN (%q): %.0f Mbit/s", direction, r.mbits)
		if r.mbits < 2 {
			t.Errorf("TCP over the small WAN (%q) carries %.3f Mbit/s: nearly nothing gets through", direction, r.mbits)
		}
	}
	s.mustPing(t, false, a, b)
}
