package iketest

import (
	"testing"
	"time"

	"postern/ike"
)

// unique returns the unique numbers of a host's IKE SAs.
func unique(h *Host) (list []uint32) {
	h.M.List(func(sa *ike.SAInfo) bool {
		list = append(list, sa.Unique)
		return true
	})
	return list
}

// One side or both have the peers authenticate anew, again and again, in the midst of
// traffic and of rekeyings: not one packet is lost, and one IKE SA is left.
func TestReauthenticationLosesNoPacket(t *testing.T) {
	for name, o := range map[string]options{
		"the side that connected":   {reauth: 30 * time.Second},
		"the side that was called":  {reauthB: 60 * time.Second},
		"both":                      {reauth: 40 * time.Second, reauthB: 40 * time.Second},
		"three children":            {reauth: 30 * time.Second, children: 3},
		"PFS":                       {reauth: 30 * time.Second, children: 2, esp: "aes128gcm16-x25519"},
		"NAT":                       {reauth: 30 * time.Second, natA: true, children: 2},
		"with rekeying":             {reauth: 50 * time.Second, rekeyIKE: 20 * time.Second, rekeyChild: 13 * time.Second, children: 2},
		"asked for, with rekeying":  {reauthB: 50 * time.Second, rekeyIKE: 20 * time.Second, rekeyChild: 13 * time.Second, children: 2},
		"narrowed selectors":        {reauth: 30 * time.Second, narrow: true},
		"a slow processor, no wait": {reauth: 30 * time.Second, children: 2, esp: "aes128gcm16-x25519", over: 20 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			seeds(t, 6, o, func(p *pair) {
				p.Pair(p.a, p.b, Link{Delay: 20 * time.Millisecond})
				if name == "a slow processor, no wait" {
					p.a.WorkTime, p.b.WorkTime = time.Second, time.Second
				}
				p.boot()
				p.initiate(p.a)
				_ = p.upAndRunning()
				if p.Err() != nil {
					return
				}
				from, first := p.Now(), unique(p.b)
				for _, f := range p.flows {
					p.Traffic(f, 20*time.Millisecond, p.Now()+3*time.Minute)
				}
				_ = p.Run(p.Now() + 200*time.Second)
				if lost, sent := p.Undelivered(from, p.Now()-10*time.Second); lost > 0 || sent < 10000 {
					p.Fail("%d of %d packets were lost", lost, sent)
				}
				_ = p.upAndRunning()
				if p.Err() == nil && unique(p.b)[0] < first[0]+3 {
					p.Fail("b's IKE SA is #%d and was #%d: there were no three reauthentications in three minutes", unique(p.b)[0], first[0])
				}
			})
		})
	}
}

// The new IKE SA cannot be had for a while: the old one goes on, and the tries go on.
func TestReauthenticationIsTriedAgain(t *testing.T) {
	seeds(t, 5, options{reauth: time.Minute, over: 10 * time.Minute, retry: time.Second, retryTries: 2}, func(p *pair) {
		p.boot()
		p.initiate(p.a)
		_ = p.upAndRunning()
		_ = p.Run(45 * time.Second)
		p.Cut(p.a, p.b, true)
		_ = p.Run(2 * time.Minute)
		if n := len(unique(p.b)); n != 1 {
			p.Fail("b has %d IKE SAs while the line is cut, want the old one", n)
		}
		p.Cut(p.a, p.b, false)
		old := unique(p.b)
		_ = p.Run(p.Now() + 90*time.Second)
		_ = p.upAndRunning()
		if p.Err() == nil && unique(p.b)[0] == old[0] {
			p.Fail("the IKE SA is still the old one a while after the line has come back")
		}
	})
}

// A peer that connected and does not follow AUTH_LIFETIME loses its IKE SA at the hard limit.
func TestAuthenticationEndsHardWithoutReauthentication(t *testing.T) {
	seeds(t, 5, options{reauthB: time.Minute, over: 20 * time.Second}, func(p *pair) {
		p.boot()
		p.initiate(p.a)
		_ = p.upAndRunning()
		p.a.M.Trace = nil
		p.Cut(p.a, p.b, true)
		_ = p.Run(85*time.Second + p.Now())
		for _, id := range unique(p.b) {
			p.b.M.List(func(sa *ike.SAInfo) bool {
				if sa.Unique == id && sa.State == ike.StateEstablished {
					p.Fail("b's IKE SA is still established 80 s after the authentication that was to last a minute and 20 s")
				}
				return true
			})
		}
	})
}

// A command has the same effect, whichever side gives it.
func TestReauthenticationByCommand(t *testing.T) {
	for _, side := range []string{"a", "b"} {
		t.Run(side, func(t *testing.T) {
			seeds(t, 8, options{children: 2}, func(p *pair) {
				p.boot()
				p.initiate(p.a)
				_ = p.upAndRunning()
				_ = p.Run(p.Now() + time.Minute)
				h := p.a
				if side == "b" {
					h = p.b
				}
				from, old := p.Now(), unique(p.b)
				p.Traffic(p.flows[0], 20*time.Millisecond, p.Now()+20*time.Second)
				c := h.Command("reauthenticate", ike.Command{Kind: ike.CmdReauth, Conn: connName})
				_ = p.Run(p.Now() + 30*time.Second)
				p.ended(c, nil)
				if lost, sent := p.Undelivered(from, p.Now()); lost > 0 || sent < 1000 {
					p.Fail("%d of %d packets were lost", lost, sent)
				}
				_ = p.upAndRunning()
				if p.Err() == nil && unique(p.b)[0] == old[0] {
					p.Fail("the IKE SA is still the old one")
				}
			})
		})
	}
}
