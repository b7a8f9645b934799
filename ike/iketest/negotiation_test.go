package iketest

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"postern/esp"
	"postern/ike"
)

func TestCookieIsDemandedAndShown(t *testing.T) {
	seeds(t, 5, options{children: 1}, func(p *pair) {
		p.b.Limits.Cookies = 0
		p.Pair(p.a, p.b, Link{Delay: 10 * time.Millisecond, Dup: 0.3})
		p.boot()
		p.initiate(p.a)
		_ = p.upAndRunning()
		if n := p.Stats().Sent; n < 6 {
			p.Fail("%d messages: no cookie was demanded", n)
		}
	})
}

func TestInvalidKERetry(t *testing.T) {
	seeds(t, 5, options{
		ike: "aes128gcm16-prfsha256-ecp256-x25519", ikeB: "aes128gcm16-prfsha256-x25519",
		esp: "aes128gcm16-ecp384-x25519", espB: "aes128gcm16-x25519", children: 2,
	}, func(p *pair) {
		p.b.Limits.Cookies = int(p.Seed) % 2 * 100 // with a cookie before it or without
		p.boot()
		p.initiate(p.a)
		_ = p.upAndRunning()
		c := p.rekeyChild(p.a, "net0")
		_ = p.upAndRunning()
		p.ended(c, nil)
	})
}

func TestNATInBetween(t *testing.T) {
	for name, o := range map[string]options{
		"in front of a":    {natA: true},
		"in front of b":    {natB: true},
		"in front of both": {natA: true, natB: true},
		"forced":           {encap: true},
	} {
		o.children, o.start, o.esp = 2, ike.StartStart, "aes128gcm16-x25519"
		t.Run(name, func(t *testing.T) {
			seeds(t, 5, o, func(p *pair) {
				p.boot()
				p.Run(time.Second)
				_ = p.upAndRunning()
				for _, h := range []*Host{p.a, p.b} {
					h.M.List(func(sa *ike.SAInfo) bool {
						if !sa.Encap || !sa.Path.NATT || sa.NATLocal != (h.NAT != nil || o.encap) {
							p.Fail("%s: encap %v, path %v, NAT here %v", h.Name, sa.Encap, sa.Path, sa.NATLocal)
						}
						return true
					})
				}
				p.rekeyChild(p.b, "net0")
				p.rekeyChild(p.a, "net1")
				_ = p.upAndRunning()
				p.rekeyIKE(p.b)
				_ = p.upAndRunning()
			})
		})
	}
}

// Whatever the two processors have, the defaults of both sides lead to a tunnel, and to
// ChaCha20-Poly1305 as soon as one of them has no AES instructions.
func TestDefaultsOfUnlikeProcessorsMeet(t *testing.T) {
	for _, c := range []struct{ a, b, want string }{
		{"default", "default", "AES_GCM_16"},
		{"default", withoutAES, "CHACHA20_POLY1305"},
		{withoutAES, "default", "CHACHA20_POLY1305"},
		{withoutAES, withoutAES, "CHACHA20_POLY1305"},
	} {
		t.Run(c.a+", "+c.b, func(t *testing.T) {
			seeds(t, 2, options{ike: c.a, ikeB: c.b, esp: c.a, espB: c.b}, func(p *pair) {
				p.boot()
				p.initiate(p.a)
				_ = p.upAndRunning()
				check := func() {
					for _, h := range []*Host{p.a, p.b} {
						h.M.List(func(sa *ike.SAInfo) bool {
							if got := esp.EncrID(sa.Suite.Encr).String(); got != c.want {
								p.Fail("%s: the IKE SA has %s, expected %s", h.Name, got, c.want)
							}
							for _, child := range sa.Children {
								if got := child.Suite.Encr.String(); got != c.want {
									p.Fail("%s: %s has %s, expected %s", h.Name, child.Name, got, c.want)
								}
							}
							return true
						})
					}
				}
				check()
				p.rekeyChild(p.b, "net0")
				p.rekeyIKE(p.b)
				_ = p.upAndRunning()
				check()
			})
		})
	}
}

// A NAT that forgets its mapping must not keep the tunnel down for longer than it takes
// to find the peer dead.
func TestNATThatForgets(t *testing.T) {
	seeds(t, 10, options{natA: true, children: 2, start: ike.StartStart, dpd: 10 * time.Second, dpdAction: ike.ActionRestart}, func(p *pair) {
		p.boot()
		p.Run(time.Second)
		_ = p.upAndRunning()
		var moved netip.Addr
		if p.Seed%2 == 1 {
			moved = netip.MustParseAddr("192.0.2.77")
		}
		p.a.NAT.Rebind(moved)
		p.note("     the NAT forgets its mappings")
		p.Run(p.Now() + 8*time.Minute)
		_ = p.upAndRunning()
	})
}

// The side that is not behind the NAT follows the other's new mapping with its first
// authentic packet (RFC 7296 section 2.23), and no SA is lost over it.
func TestNewMappingIsFollowed(t *testing.T) {
	seeds(t, 10, options{natA: true, children: 2, start: ike.StartStart, esp: "aes128gcm16-x25519"}, func(p *pair) {
		p.boot()
		p.Run(time.Second)
		_ = p.upAndRunning()
		p.a.NAT.Rebind(netip.MustParseAddr("192.0.2.77"))
		p.note("     the NAT forgets its mappings")
		if p.Seed%2 == 0 {
			p.rekeyChild(p.a, "net0") // IKE tells of it first
		} else {
			f := p.flows[0] // or a packet does
			f.From.Send(f.Src, f.Dst, f.Port)
		}
		p.Run(p.Now() + time.Second)
		_ = p.upAndRunning()
		p.rekeyChild(p.b, "net1")
		p.rekeyIKE(p.b)
		_ = p.upAndRunning()
	})
}

func TestNarrowing(t *testing.T) {
	for _, inner6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("inner6=%v", inner6), func(t *testing.T) {
			seeds(t, 5, options{narrow: true, children: 3, inner6: inner6}, func(p *pair) {
				p.boot()
				p.initiate(p.a)
				_ = p.upAndRunning()
				p.a.M.List(func(sa *ike.SAInfo) bool {
					for _, c := range sa.Children {
						var i int
						fmt.Sscanf(c.Name, "net%d", &i)
						if want := p.net(1, i, false).Selector; len(c.LocalTS) != 1 || c.LocalTS[0] != want {
							p.Fail("%s was narrowed to %v, want %v", c.Name, c.LocalTS, want)
						}
					}
					return true
				})
				p.rekeyChild(p.a, "net1")
				p.rekeyChild(p.b, "net2")
				_ = p.upAndRunning()
			})
		})
	}
}

func TestAddressFamilies(t *testing.T) {
	for _, o := range []options{{}, {inner6: true}, {outer6: true}, {outer6: true, inner6: true}, {outer6: true, encap: true}} {
		o.children = 2
		t.Run(fmt.Sprintf("outer6=%v,inner6=%v,encap=%v", o.outer6, o.inner6, o.encap), func(t *testing.T) {
			seeds(t, 3, o, func(p *pair) {
				p.boot()
				p.initiate(p.a)
				_ = p.upAndRunning()
				p.rekeyChild(p.b, "net0")
				_ = p.upAndRunning()
			})
		})
	}
}

var espSuites = []string{
	"aes128gcm16", "aes192gcm16", "aes256gcm16", "chacha20poly1305", "aes128-sha1", "aes192-sha256",
	"aes256-sha256", "aes128-sha384", "aes256-sha512", "aes256gcm16-esn", "aes128-sha256-esn", "chacha20poly1305-esn",
	"aes256gcm16-ecp384", "aes128-sha256-modp2048", "chacha20poly1305-x25519-esn",
}

var ikeSuites = []string{
	"aes128gcm16-prfsha256-x25519", "aes192gcm16-prfsha384-ecp256", "aes256gcm16-prfsha512-ecp384",
	"chacha20poly1305-prfsha256-x25519", "aes128-sha1-x25519", "aes192-sha256-ecp256", "aes256-sha384-ecp521",
	"aes256-sha512-x25519", "aes128-sha256-prfsha1-modp2048", "aes128gcm16-prfsha1-modp3072", "aes256-sha256-modp4096",
}

func TestEverySuite(t *testing.T) {
	for i := range max(len(espSuites), len(ikeSuites)) {
		o := options{ike: ikeSuites[i%len(ikeSuites)], esp: espSuites[i%len(espSuites)], children: 2}
		t.Run(o.ike+","+o.esp, func(t *testing.T) {
			seeds(t, 1, o, func(p *pair) {
				p.boot()
				p.initiate(p.a)
				_ = p.upAndRunning()
				p.rekeyChild(p.a, "net0")
				_ = p.upAndRunning()
				p.rekeyIKE(p.b)
				_ = p.upAndRunning()
				p.rekeyChild(p.b, "net1")
				_ = p.upAndRunning()
				want := o.ike + "," + o.esp
				p.a.M.List(func(sa *ike.SAInfo) bool {
					if err := suiteIs(sa, o); err != nil && p.Err() == nil {
						p.Fail("%v, want %s", err, want)
					}
					return true
				})
			})
		})
	}
}

// suiteIs compares what was negotiated with the only proposals of both sides.
func suiteIs(sa *ike.SAInfo, o options) error {
	i, e := proposals(ike.ProtoIKE, o.ike)[0], proposals(ike.ProtoESP, o.esp)[0]
	value := func(p ike.Proposal, t ike.TransformType) (id, bits uint16) {
		for _, x := range p.Transforms {
			if x.Type == t {
				return x.ID, x.KeyBits
			}
		}
		return 0, 0
	}
	got := sa.Suite
	want := ike.IKESuite{}
	want.Encr, want.KeyBits = value(i, ike.TransformEncr)
	want.Integ, _ = value(i, ike.TransformInteg)
	prf, _ := value(i, ike.TransformPRF)
	dh, _ := value(i, ike.TransformDH)
	want.PRF, want.DH = ike.PRFID(prf), ike.DHGroup(dh)
	if got != want {
		return fmt.Errorf("the IKE SA has %v", got)
	}
	for _, c := range sa.Children {
		encr, bits := value(e, ike.TransformEncr)
		integ, _ := value(e, ike.TransformInteg)
		esn, _ := value(e, ike.TransformESN)
		pfs, _ := value(e, ike.TransformDH)
		if uint16(c.Suite.Encr) != encr || c.Suite.KeyBits != bits || uint16(c.Suite.Integ) != integ ||
			c.Suite.ESN != (esn == 1) || c.DH != ike.DHGroup(pfs) {
			return fmt.Errorf("%s has %v with %v", c.Name, c.Suite, c.DH)
		}
	}
	return nil
}
