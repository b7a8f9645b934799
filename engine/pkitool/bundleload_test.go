package pkitool

import (
	"strings"
	"testing"
	"time"

	"postern/engine/config"
	"postern/ike"
)

// load reads a half's configuration as the daemon does.
func (b *bench) load(name string) *config.Config {
	b.t.Helper()
	cfg, err := config.Load(b.path(name), 0)
	if err != nil {
		b.t.Fatalf("%s: %v\n%s", name, err, b.read(name))
	}
	return cfg
}

// Both halves are configurations that the daemon takes, and they fit together.
func TestBundleIsLoaded(t *testing.T) {
	b := newBench(t)
	b.ok(bundleLine("@link")...)
	l, r := b.load("link/north.example/postern.toml").IKE.Conns[0], b.load("link/south.example/postern.toml").IKE.Conns[0]
	if l.Name != "south" || r.Name != "north" || l.Children[0].StartAction == r.Children[0].StartAction {
		t.Errorf("%s and %s, and both start alike", l.Name, r.Name)
	}
	if len(l.LocalAuth) != 1 || l.LocalAuth[0].Kind != ike.AuthKindPubkey || len(l.RemoteAuth) != 1 || l.RemoteAuth[0].Kind != ike.AuthKindPubkey {
		t.Error("the link is not authenticated with certificates")
	}
}

// Whatever the addresses and networks, check accepts what is written.
func TestBundleOfEveryShape(t *testing.T) {
	b := newBench(t)
	b.now = time.Now() // by which the daemon looks at its certificate
	b.ok("ca", "@root", "--dn", "CN=Root", "--type", "ed25519")
	b.ok("ca", "@ca", "--parent", "@root", "--dn", "CN=CA", "--type", "ed25519")
	addrs := []string{"198.51.100.1", "2001:db8::1", "gw.example.net", "%any"}
	nets := [][2]string{{"-", "-"}, {"10.1.0.0/24", "10.2.0.0/24"}, {"fd01::/64", "fd02::/64"}}
	n := 0
	for _, left := range addrs {
		for _, right := range addrs {
			for _, net := range nets {
				if left == right || !strings.Contains(left+right, "gw") && !strings.Contains(left+right, "any") {
					continue // one address for both, or of different kinds
				}
				dir := "link" + string(rune('a'+n/26)) + string(rune('a'+n%26))
				n++
				b.ok(bundleLine("@"+dir, "--left-addr", left, "--right-addr", right, "--left-net", net[0], "--right-net", net[1],
					"--ca", "@ca", "--type", "ed25519")...)
				for _, side := range []string{"north.example", "south.example"} {
					cfg := b.load(dir + "/" + side + "/postern.toml")
					if w := cfg.Warnings(); len(w) > 0 {
						t.Errorf("%s, %s to %s, %s: %v", side, left, right, net, w)
					}
					if certs := b.certs(dir + "/" + side + "/cert.pem"); len(certs) != 2 {
						t.Errorf("%d certificates; the authority between is missing", len(certs))
					}
					if err := b.verify(dir+"/"+side+"/cert.pem", dir+"/"+side+"/ca.pem"); err != nil {
						t.Error(err)
					}
				}
			}
		}
	}
	if n != 30 {
		t.Errorf("%d shapes", n)
	}
}
