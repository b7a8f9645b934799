//go:build linux

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// spec is what a daemon is told, whichever daemon it is.
type spec struct {
	conns []conn
	// cookieThreshold makes charon ask for cookies from that many half-open IKE SAs on;
	// 0 leaves it as it is.
	cookieThreshold int
	noQCD           bool          // postern without quick crash detection
	exportKeys      bool          // postern tells the keys of CHILD SAs
	makeBeforeBreak bool          // of charon; postern does not know it otherwise
	board           string        // postern's board profile; "": the default
	keepalive       time.Duration // between NAT keepalives; 0: the daemon's default
	retryTimeout    time.Duration // before the first retransmission; 0: default
	retryTries      int           // retransmissions; 0: default
	retryBase       float64       // between retransmissions; 0: default
	certs           credentials
}

// conn is a connection with its secret. Names and notation are those of swanctl.conf.
type conn struct {
	name          string
	local, remote string // addresses; "%any" on the responder's side
	localID       string
	remoteID      string
	psk           string
	ike           string // proposals
	encap         bool
	mobike        string // yes or no; "": postern's default, and no for charon
	dpdDelay      time.Duration
	rekeyTime     time.Duration
	resumption    bool   // postern only
	redirectTo    string // postern only
	childless     string // allow, prefer, force, never; "": the default
	ppk           ppkSpec
	reauthTime    time.Duration
	overTime      time.Duration // of charon: how long before the end that AUTH_LIFETIME tells it reauthenticates
	keyingTries   int           // 0: default
	fragmentSize  int           // of IKE messages; 0: default. charon has one for all connections
	localAuth     []round       // how each side proves itself; both empty: with the secret
	remoteAuth    []round
	children      []child
}

// child is one CHILD SA.
type child struct {
	name              string
	localTS, remoteTS []string
	esp               string
	ah                string // postern only: instead of esp
	mode              string // postern only; "": tunnel
	fragments         string // postern only; "": no
	rekeyTime         time.Duration
	start             string // none, start, trap
	dpdAction         string // clear, restart, trap; "" means clear
	closeAction       string
	inactivity        time.Duration
	rekeyBytes        int // 0: no limit, as the next
	rekeyPackets      int
	more              string   // postern only: further lines
	device            string   // postern only: of its own
	deviceAddrs       []string // of that
}

// The algorithms that tests use when these are not the point.
const (
	usualIKE = "aes128gcm16-prfsha256-x25519"
	usualESP = "aes128gcm16"
)

// pairSpecs returns matching configurations for the two gateways of a site: one connection
// "site" with one child "net" between the two LANs of one family.
func pairSpecs(outer6, inner6 bool) (a, b spec) {
	tsA, tsB := lanA4, lanB4
	if inner6 {
		tsA, tsB = lanA6, lanB6
	}
	addrA, addrB := gwAddr('a', outer6).String(), gwAddr('b', outer6).String()
	const psk = "marigold-quarry-seventeen"
	a = spec{conns: []conn{{
		name: "site", local: addrA, remote: addrB, localID: "a.example", remoteID: "b.example", psk: psk, ike: usualIKE,
		children: []child{{name: "net", localTS: []string{tsA}, remoteTS: []string{tsB}, esp: usualESP, start: "none"}},
	}}}
	b = spec{conns: []conn{{
		name: "site", local: addrB, remote: addrA, localID: "b.example", remoteID: "a.example", psk: psk, ike: usualIKE,
		children: []child{{name: "net", localTS: []string{tsB}, remoteTS: []string{tsA}, esp: usualESP, start: "none"}},
	}}}
	return a, b
}

// both applies a change to the one connection of each of the two configurations.
func both(a, b *spec, change func(c *conn)) {
	change(&a.conns[0])
	change(&b.conns[0])
}

// suite sets the proposals of both sides.
func suite(a, b *spec, ike, esp string) {
	both(a, b, func(c *conn) {
		c.ike = ike
		for i := range c.children {
			c.children[i].esp = esp
		}
	})
}

// daemon is an IKE daemon on a gateway.
type daemon interface {
	kind() string // "postern" or "charon"
	// initiate brings up a child of connection "site" and waits until it is there.
	initiate(child string) error
	// terminate closes the IKE SA, or only a child of it.
	terminate(child string) error
	// control returns the URI of the VICI socket.
	control() string
	log() string
	alive() bool
	stop()   // as a service manager would
	kill()   // as kill -9 does
	freeze() // stops it without a word to anybody; the kernel keeps its sockets
}

// pair names the daemons on the two gateways, the initiator first.
type pair struct{ a, b string }

func (p pair) String() string { return p.a + "-" + p.b }

// has tells whether one of the two is that daemon.
func (p pair) has(kind string) bool { return p.a == kind || p.b == kind }

// start starts a daemon of that kind on gateway side ('a' or 'b') of the site.
func start(s *site, kind string, side byte, c spec) daemon {
	s.t.Helper()
	if kind == "charon" {
		return startCharon(s, side, c)
	}
	return startPostern(s, side, c)
}

// startPair starts both and leaves the initiating to the test.
func startPair(s *site, p pair, ca, cb spec) (a, b daemon) {
	s.t.Helper()
	b = start(s, p.b, 'b', cb)
	a = start(s, p.a, 'a', ca)
	return a, b
}

// mustInitiate brings the child up or ends the test with what both logs say.
func mustInitiate(t *testing.T, child string, a, b daemon) {
	t.Helper()
	if err := a.initiate(child); err != nil {
		t.Fatalf("%s, the initiator, did not bring up child %s: %v%s", a.kind(), child, err, logs(a, b))
	}
}

// logs quotes the end of the daemons' logs for a failure.
func logs(ds ...daemon) string {
	var b strings.Builder
	for i, d := range ds {
		fmt.Fprintf(&b, "\n---- log of %s (%d)\n%s", d.kind(), i+1, tail(d.log(), 40))
	}
	return b.String()
}

// tail returns the last n lines of s.
func tail(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}

// matching returns the lines of s that contain all the words, whatever their case.
func matching(s string, words ...string) []string {
	var out []string
	for line := range strings.SplitSeq(s, "\n") {
		ok := true
		for _, w := range words {
			ok = ok && strings.Contains(strings.ToLower(line), strings.ToLower(w))
		}
		if ok {
			out = append(out, line)
		}
	}
	return out
}
