//go:build linux

package e2e

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// publisher is a web server on the WAN that hands out files, and counts who asks.
type publisher struct {
	t      *testing.T
	server *http.Server

	mu    sync.Mutex
	files map[string]string
	asked map[string]int
}

// publish starts a server on port 80 of a namespace, over both families.
func publish(s *site, ns string) *publisher {
	s.t.Helper()
	p := &publisher{t: s.t, files: map[string]string{}, asked: map[string]int{}}
	var l net.Listener
	if err := inNamespace(ns, func() (err error) {
		l, err = net.Listen("tcp", "[::]:80")
		return err
	}); err != nil {
		s.t.Fatal(err)
	}
	p.server = &http.Server{Handler: http.HandlerFunc(p.serve), ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := p.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.t.Errorf("the web server: %v", err)
		}
	}()
	s.t.Cleanup(func() {
		p.down()
		<-done
	})
	return p
}

// down stops the server: connections are refused from now on.
func (p *publisher) down() { _ = p.server.Close() }

func (p *publisher) serve(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	p.mu.Lock()
	text, ok := p.files[r.URL.Path]
	p.asked[r.URL.Path]++
	p.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	if to, moved := strings.CutPrefix(text, "moved to "); moved {
		http.Redirect(w, r, to, http.StatusFound)
		return
	}
	_, _ = io.WriteString(w, text)
}

// put has the server hand a text out.
func (p *publisher) put(path, text string) {
	p.mu.Lock()
	p.files[path] = text
	p.mu.Unlock()
}

// count returns how often a path was asked for.
func (p *publisher) count(path string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked[path]
}

// respond starts OpenSSL's OCSP responder of a CA on a port of a namespace. What is revoked is told
// so, and what is known is good.
func respond(s *site, ns string, port int, ca *credential, known []*credential, revoked ...*credential) {
	s.t.Helper()
	need(s.t, "openssl")
	dir := filepath.Join(s.dir, fmt.Sprint("ocsp-", port))
	var index strings.Builder
	line := func(c *credential, flag, when string) {
		fmt.Fprintf(&index, "%s\t%s\t%s\t%X\tunknown\t/CN=%s\n", flag, c.cert.NotAfter.UTC().Format("060102150405Z"), when, c.cert.SerialNumber, c.name)
	}
	for _, c := range known {
		line(c, "V", "")
	}
	for _, c := range revoked {
		line(c, "R", time.Now().Add(-time.Hour).UTC().Format("060102150405Z"))
	}
	writeFile(s.t, dir, "index.txt", index.String())
	writeFile(s.t, dir, "ca.pem", ca.certPEM())
	writeFile(s.t, dir, "ca.key", ca.keyPEM())
	out := filepath.Join(dir, "log")
	p := startIn(s.t, ns, out, nil, "openssl", "ocsp", "-port", fmt.Sprint(port), "-index", filepath.Join(dir, "index.txt"), "-CA", filepath.Join(dir, "ca.pem"),
		"-rsigner", filepath.Join(dir, "ca.pem"), "-rkey", filepath.Join(dir, "ca.key"), "-nmin", "60")
	if !eventually(20*time.Second, func() bool {
		b, _ := os.ReadFile(out)
		return strings.Contains(strings.ToLower(string(b)), "waiting for") || !p.alive()
	}) || !p.alive() {
		b, _ := os.ReadFile(out)
		s.t.Fatalf("the OCSP responder does not start: %s", b)
	}
}

// wanWeb is where both gateways find the servers on the WAN.
const wanWeb = "http://203.0.113.254"

// revocable returns the configurations of a pair whose certificates come from one root. One side
// looks, by that policy, whether the certificate of its peer is revoked; where to ask stands in that
// one alone, for the other side would ask as well.
func revocable(t *testing.T, checker byte, policy string, asked certSpec) (a, b spec, root, peer *credential) {
	t.Helper()
	a, b = pairSpecs(false, false)
	root = newRoot(t, "root", ecdsa256)
	make := func(name string, side byte) *credential {
		c := certSpec{name: name}
		if side != checker {
			c = asked
			c.name = name
			c.alter = func(x *x509.Certificate) {
				// charon 5.9.8 takes a serial number whose first bit is set for another one when it
				// comes back in the answer of an OCSP responder.
				x.SerialNumber.SetBit(x.SerialNumber, 119, 0).SetBit(x.SerialNumber, 118, 1)
			}
		}
		return root.issue(c)
	}
	certA, certB := make("a.example", 'a'), make("b.example", 'b')
	a.conns[0].localAuth, a.conns[0].remoteAuth = []round{{auth: "pubkey", cert: certA}}, []round{{auth: "pubkey"}}
	b.conns[0].localAuth, b.conns[0].remoteAuth = []round{{auth: "pubkey", cert: certB}}, []round{{auth: "pubkey"}}
	a.certs.roots, b.certs.roots = []*credential{root}, []*credential{root}
	if checker == 'a' {
		a.conns[0].remoteAuth[0].revocation = policy
		return a, b, root, certB
	}
	b.conns[0].remoteAuth[0].revocation = policy
	return a, b, root, certA
}

// wantWords fails the test unless the log of a daemon comes to have a line with the words.
func wantWords(t *testing.T, d daemon, words ...string) {
	t.Helper()
	if !eventually(20*time.Second, func() bool { return len(matching(d.log(), words...)) > 0 }) {
		t.Errorf("the log of %s has no line with %q%s", d.kind(), words, logs(d))
	}
}

// TestRevokedCertificates has each side refuse the other's certificate because a list over HTTP
// or an OCSP responder says that it is revoked, and take it where they say that it is good.
func TestRevokedCertificates(t *testing.T) {
	for _, c := range []struct {
		by      string // of what tells
		p       pair
		checker byte
	}{
		{"list", pair{"postern", "charon"}, 'a'},
		{"list", pair{"charon", "postern"}, 'b'},
		{"list", pair{"postern", "charon"}, 'b'}, // charon refuses ours
		{"ocsp", pair{"postern", "charon"}, 'a'},
		{"ocsp", pair{"charon", "postern"}, 'b'},
		{"ocsp", pair{"charon", "postern"}, 'a'}, // charon refuses ours
		{"both", pair{"postern", "postern"}, 'a'},
	} {
		for _, revoked := range []bool{false, true} {
			name := fmt.Sprintf("%s, %v, %c checks, revoked %v", c.by, c.p, c.checker, revoked)
			t.Run(name, func(t *testing.T) {
				ready(t, c.p, "openssl")
				s := newSite(t)
				var asked certSpec
				if c.by != "ocsp" {
					asked.crlURIs = []string{wanWeb + "/old.crl"}
				}
				if c.by != "list" {
					asked.ocspURIs = []string{wanWeb + ":2560/"}
				}
				ca, cb, root, peer := revocable(t, c.checker, "strict", asked)
				web := publish(s, s.wan)
				web.put("/old.crl", "moved to /new.crl")
				known, bad := []*credential{peer}, []*credential(nil)
				if revoked {
					known, bad = bad, known
				}
				web.put("/new.crl", root.crl(1, bad...))
				if c.by == "ocsp" { // of both, nobody answers at the responder, and the list decides
					respond(s, s.wan, 2560, root, known, bad...)
				}
				a, b := startPair(s, c.p, ca, cb)
				checker := b
				if c.checker == 'a' {
					checker = a
				}
				err := a.initiate("net")
				if (err != nil) != revoked {
					t.Fatalf("it ends with %v%s", err, logs(a, b))
				}
				if revoked {
					wantWords(t, checker, "revoked")
				}
				if c.by != "ocsp" && web.count("/new.crl") == 0 {
					t.Error("nobody has fetched the list")
				}
				if checker.kind() == "postern" && c.by == "list" {
					wantWords(t, checker, "fetched what tells of revoked certificates", "/old.crl")
				}
			})
		}
	}
}

// TestRevocationPolicies has nobody say whether a certificate is revoked.
func TestRevocationPolicies(t *testing.T) {
	for _, c := range []struct {
		policy string
		uri    bool // the certificate names a place to ask
		up     bool
	}{
		{"strict", true, false}, {"strict", false, false},
		{"ifuri", true, false}, {"ifuri", false, true},
		{"relaxed", true, true}, {"off", true, true},
	} {
		for _, p := range []pair{{"postern", "charon"}, {"charon", "postern"}} {
			t.Run(fmt.Sprintf("%s, uri %v, %v", c.policy, c.uri, p), func(t *testing.T) {
				ready(t, p)
				s := newSite(t)
				var asked certSpec
				if c.uri {
					asked.crlURIs = []string{"http://[2001:db8:b::fe]/ca.crl"}
				}
				side := byte('a')
				if p.b == "postern" {
					side = 'b'
				}
				ca, cb, _, _ := revocable(t, side, c.policy, asked)
				web := publish(s, s.wan) // which has no such file
				a, b := startPair(s, p, ca, cb)
				if err := a.initiate("net"); (err == nil) != c.up {
					t.Errorf("it ends with %v%s", err, logs(a, b))
				}
				if n := web.count("/ca.crl"); (n > 0) != (c.uri && c.policy != "off") {
					t.Errorf("the list was asked for %d times", n)
				}
				ours := a
				if side == 'b' {
					ours = b
				}
				if c.uri && c.policy != "off" {
					wantWords(t, ours, "cannot be fetched", "status 404")
				}
			})
		}
	}
}

// TestListIsKeptOverARestart takes the server away once the list is there.
func TestListIsKeptOverARestart(t *testing.T) {
	p := pair{"charon", "postern"}
	ready(t, p)
	s := newSite(t)
	ca, cb, root, _ := revocable(t, 'b', "strict", certSpec{crlURIs: []string{wanWeb + "/ca.crl"}})
	web := publish(s, s.wan)
	web.put("/ca.crl", root.crl(1))
	a, b := startPair(s, p, ca, cb)
	mustInitiate(t, "net", a, b)
	ours := b.(*postern)
	kept := func() []string {
		list, _ := filepath.Glob(filepath.Join(ours.dir, "state", "crls", "*.crl"))
		return list
	}
	if !eventually(20*time.Second, func() bool { return len(kept()) == 1 }) {
		t.Fatalf("the list is not in the state directory%s", logs(b))
	}
	if st, err := os.Stat(kept()[0]); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%s: %v, %v", kept()[0], st, err)
	}
	web.down()
	b.stop()
	ours.start()
	mustInitiate(t, "net", a, b)
	if n := web.count("/ca.crl"); n != 1 {
		t.Errorf("the list was asked for %d times", n)
	}
}

// TestOCSPTravelsInIKE has a side insist on knowing about the other's certificate that can ask
// nobody: the other one can, and sends the answer along (RFC 4806).
func TestOCSPTravelsInIKE(t *testing.T) {
	p := pair{"postern", "postern"}
	for _, revoked := range []bool{false, true} {
		t.Run(fmt.Sprintf("revoked %v", revoked), func(t *testing.T) {
			ready(t, p, "openssl")
			s := newSite(t)
			// An address of gwb's own LAN, to which no way leads from gwa but the tunnel.
			ca, cb, root, certB := revocable(t, 'a', "strict", certSpec{ocspURIs: []string{"http://10.2.0.1:2560/"}})
			if revoked {
				respond(s, s.gwB, 2560, root, nil, certB)
			} else {
				respond(s, s.gwB, 2560, root, []*credential{certB})
			}
			a, b := startPair(s, p, ca, cb)
			if err := a.initiate("net"); (err != nil) != revoked {
				t.Errorf("it ends with %v%s", err, logs(a, b))
			}
			if revoked {
				wantWords(t, b, "our own certificate", "b.example", "is revoked")
			}
		})
	}
}
