//go:build linux

package e2e

import (
	"encoding/binary"
	"slices"
	"testing"
	"time"
)

// strongSwan under (a very small) attack asks postern for a cookie.
func TestCookieDemandedByStrongSwan(t *testing.T) {
	t.Parallel()
	for _, initiator := range []string{"postern", "charon"} { // charon: the bench's control
		t.Run(initiator+"-charon", func(t *testing.T) {
			p := pair{initiator, "charon"}
			ready(t, p)
			s := newSite(t)
			ca, cb := pairSpecs(false, false)
			cb.cookieThreshold = 1
			cb.conns[0].remote = "%any"
			c := s.capture()
			a, b := startPair(s, p, ca, cb)
			x := s.stranger(500)
			x.send(ikeInit(0x1122334455667788)) // one half-open IKE SA is enough
			if x.receive(5*time.Second) == nil {
				t.Fatalf("charon does not answer IKE_SA_INIT%s", logs(b))
			}
			mustInitiate(t, "net", a, b)
			s.mustPing(t, false, a, b)
			cookieWasAsked(t, c.stop())
		})
	}
}

// cookieWasAsked checks that gwb asked gwa for a cookie and got it back as the first
// payload (RFC 7296 section 2.6).
func cookieWasAsked(t *testing.T, w wire) {
	t.Helper()
	answers, requests := w.ike("b0", exInit), w.ike("a0", exInit)
	asked := slices.ContainsFunc(answers, func(p packet) bool {
		return p.dst == gwA4 && slices.Equal(p.ike.notifies, []uint16{notifyCookie})
	})
	sent := slices.ContainsFunc(requests, func(p packet) bool {
		return len(p.ike.notifies) > 0 && p.ike.notifies[0] == notifyCookie
	})
	if !asked || !sent {
		t.Errorf("the responder asked for a cookie: %v, the initiator sent one: %v; answers %v, requests %v",
			asked, sent, notifiesOf(answers), notifiesOf(requests))
	}
	w.nothingInClear(t, []byte(mark))
}

// A flood of IKE_SA_INIT makes postern ask for cookies. It answers the flood with nothing
// else, keeps its tunnel, and lets a peer in that returns the cookie.
func TestCookieDemandedByPostern(t *testing.T) {
	t.Parallel()
	for _, initiator := range []string{"postern", "charon"} {
		t.Run(initiator+"-postern", func(t *testing.T) {
			p := pair{initiator, "postern"}
			ready(t, p)
			s := newSite(t)
			ca, cb := pairSpecs(false, false)
			cb.board = "tiny" // few half-open IKE SAs
			cb.conns[0].remote = "%any"
			// A stranger that comes from an address of its own must find a connection that
			// takes it.
			c := s.capture()
			a, b := startPair(s, p, ca, cb)
			x := s.stranger(500)
			var full, cookies int
			for i := range uint64(200) {
				x.send(ikeInit(0xabcd000000000000 + i))
				switch answer := x.receive(2 * time.Second); {
				case answer == nil:
				case slices.Equal(notifies(answer), []uint16{notifyCookie}):
					cookies++
				default:
					full++
				}
			}
			if full == 0 || full > 16 {
				t.Errorf("%d of 200 strangers got a half-open IKE SA, want between 1 and the 8 that the board has room for", full)
			}
			if cookies < 150 {
				t.Errorf("%d of 200 strangers were asked for a cookie, want all but the first few", cookies)
			}
			x.send(append(ikeInit(0xabcd00000000ffff), 0)) // a length that is not the header's
			if answer := x.receive(300 * time.Millisecond); answer != nil {
				t.Errorf("a datagram longer than its header says was answered with % x", answer)
			}
			mustInitiate(t, "net", a, b)
			s.mustPing(t, false, a, b)
			cookieWasAsked(t, c.stop())
			if n := len(matching(b.log(), "cookie")); n == 0 || n > 4 {
				t.Errorf("postern's log has %d lines about cookies, want one or a few:%s", n, logs(b))
			}
		})
	}
}

// A wrong cookie is as good as none.
func TestWrongCookieIsNotTaken(t *testing.T) {
	p := pair{"postern", "postern"}
	ready(t, p)
	s := newSite(t)
	_, cb := pairSpecs(false, false)
	cb.board = "tiny"
	cb.conns[0].remote = "%any"
	b := start(s, p.b, 'b', cb)
	x := s.stranger(500)
	for i := range uint64(40) {
		x.send(ikeInit(0xabcd000000000000 + i))
		x.receive(time.Second)
	}
	req := ikeInit(0x1234)
	x.send(req)
	answer := x.receive(time.Second)
	if !slices.Equal(notifies(answer), []uint16{notifyCookie}) {
		t.Fatalf("no cookie was asked for: %v%s", notifies(answer), logs(b))
	}
	cookie := answer[28+8:] // behind the header and the notify's own
	with := func(cookie []byte) []byte {
		n := payload(33, append([]byte{0, 0, 0x40, 0x06}, cookie...))
		m := append(slices.Clone(req[:28]), n...)
		m = append(m, req[28:]...)
		m[16] = 41
		binary.BigEndian.PutUint32(m[24:], uint32(len(m)))
		return m
	}
	wrong := slices.Clone(cookie)
	wrong[len(wrong)-1] ^= 1
	x.send(with(wrong))
	if got := notifies(x.receive(time.Second)); !slices.Equal(got, []uint16{notifyCookie}) {
		t.Errorf("a wrong cookie was answered with %v, want another COOKIE", got)
	}
	x.send(with(cookie))
	if got := x.receive(time.Second); got == nil || slices.Contains(notifies(got), notifyCookie) {
		t.Errorf("the right cookie was answered with notifies %v (%d octets), want an IKE SA", notifies(got), len(got))
	}
}
