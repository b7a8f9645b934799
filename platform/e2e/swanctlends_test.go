//go:build linux

package e2e

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// One swanctl.conf for both ends of a tunnel, charon on one of them and postern on the other, each way
// round. Gateway a always initiates first. The configurations are in the files swanctlconf*_test.go.

// endsConf is a configuration. In its text words like <me> differ between the ends; where there are none, both
// ends have really the same file.
type endsConf struct {
	name string
	text string
	// words of one end, beside those of sideWords.
	a, b  map[string]string
	files func(p *endsPKI, side byte) swanctlDir

	conn     string   // that is terminated and rekeyed; "": site
	children []string // to initiate; nil: net
	flows    []flow   // nil: between the LANs, both ways
	outer6   bool     // IKE and ESP between IPv6 addresses

	// otherIDs: the ends list other identities: of several rounds charon tells the last, postern the
	// first, and postern writes keyid: before a key ID.
	otherIDs bool

	// check looks at the tunnel while it is up.
	check func(r *endsRun)
	// run is what to do instead of the usual course.
	run func(r *endsRun)
	// fails is a part of both logs or of what swanctl says: the tunnel must not come up.
	fails []string
}

// flow is who sends echo requests to whom.
type flow struct {
	from byte // 'a', 'b': a host of the LAN; 'A', 'B': the gateway itself
	to   netip.Addr
	src  netip.Addr // zero: the kernel's choice
}

var (
	flows4 = []flow{{from: 'a', to: hostB4}, {from: 'b', to: hostA4}}
	flows6 = []flow{{from: 'a', to: hostB6}, {from: 'b', to: hostA6}}
)

// sideWords are the words of every text: what lies on this side and on the other one.
func sideWords(side byte, outer6 bool, dir string) map[string]string {
	w := map[string]string{}
	for i, s := range []byte{side, 'a' + 'b' - side} {
		p := []string{"", "peer"}[i]
		lan, lan6 := lanA4, lanA6
		if s == 'b' {
			lan, lan6 = lanB4, lanB6
		}
		w[p+"side"], w[p+"id"], w[p+"lan"], w[p+"lan6"] = string(s), string(s)+".weir.example", lan, lan6
		w[[]string{"me", "peer"}[i]] = gwAddr(s, outer6).String()
	}
	w["dir"] = dir
	return w
}

// of returns the directory of one end.
func (c *endsConf) of(side byte, dir string, p *endsPKI) swanctlDir {
	words := sideWords(side, c.outer6, dir)
	own := c.a
	if side == 'b' {
		own = c.b
	}
	maps.Copy(words, own)
	var list []string
	for k, v := range words {
		list = append(list, "<"+k+">", v)
	}
	fill := strings.NewReplacer(list...)
	conf := swanctlDir{"swanctl.conf": fill.Replace(c.text)}
	if c.files != nil {
		more := c.files(p, side)
		for name, text := range more {
			more[name] = fill.Replace(text)
		}
		conf = conf.with(more)
	}
	return conf
}

// endsPKI has the certificates of a group of configurations: a root that both ends trust, an authority below it for
// each, and what that has issued.
type endsPKI struct {
	t                  *testing.T
	root, north, south *credential
	stranger           *credential
	mu                 sync.Mutex
	issued             map[string]*credential
}

func newEndsPKI(t *testing.T) *endsPKI {
	p := &endsPKI{t: t, root: newRoot(t, "weir root", ecdsa256), stranger: newRoot(t, "stranger root", ecdsa256), issued: map[string]*credential{}}
	p.north = p.root.issue(certSpec{name: "north", ca: true, kind: ecdsa384})
	p.south = p.root.issue(certSpec{name: "south", ca: true})
	return p
}

// authority returns what issues that side's certificates.
func (p *endsPKI) authority(side byte) *credential {
	if side == 'a' {
		return p.north
	}
	return p.south
}

// cert returns that side's certificate with a key of that kind.
func (p *endsPKI) cert(side byte, kind keyKind) *credential {
	p.mu.Lock()
	defer p.mu.Unlock()
	id := string(side) + string(kind)
	if p.issued[id] == nil {
		p.issued[id] = p.authority(side).issue(certSpec{name: string(side) + ".weir.example", kind: kind,
			emails: []string{"gw-" + string(side) + "@weir.example"}, dns: []string{string(side) + ".weir.example"}})
	}
	return p.issued[id]
}

// ours returns what a side has of its own: certificate, key, authority, and the root.
func (p *endsPKI) ours(side byte, kind keyKind) swanctlDir {
	c := p.cert(side, kind)
	return swanctlDir{
		"x509/" + string(side) + ".pem":    c.certPEM(),
		"private/" + string(side) + ".pem": c.keyPEM(),
		"x509ca/own.pem":                   p.authority(side).certPEM(),
		"x509ca/root.pem":                  p.root.certPEM(),
	}
}

// endsRun is one configuration with one pair of daemons.
type endsRun struct {
	t    *testing.T
	s    *site
	a, b *viciDaemon
	c    *endsConf
	p    *endsPKI
}

// runEnds tries the configurations, one after another, with one pair of daemons for each way round.
func runEnds(t *testing.T, confs []endsConf) {
	t.Parallel()
	need(t, "swanctl")
	needCharon(t)
	pairs := []pair{{"charon", "postern"}, {"postern", "charon"}}
	if matrix := matrixPairs(); !matrix[0].has("postern") || len(matrix) == 1 {
		pairs = matrix // somebody looks for something
	}
	pki := newEndsPKI(t)
	for _, p := range pairs {
		t.Run(p.String(), func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			var table strings.Builder
			ends := map[byte]*viciDaemon{}
			for side, kind := range map[byte]string{'a': p.a, 'b': p.b} {
				ends[side] = startVICI(s, side, daemonKind(kind), swanctlDir{"swanctl.conf": "",
					// So that a peer that is gone is noticed while the test waits.
					"strongswan.conf": "  retransmit_tries = 3\n  retransmit_timeout = 1\n  retransmit_base = 1.4\n"})
			}
			for i := range confs {
				c := &confs[i]
				begin, ran := time.Now(), false
				ok := t.Run(c.name, func(t *testing.T) {
					ran = true
					r := &endsRun{t: t, s: s, a: ends['a'], b: ends['b'], c: c, p: pki}
					for _, d := range ends {
						d.t = t
						d.forget()
					}
					s.t = t
					r.whole(i)
				})
				s.t = t
				for _, d := range ends {
					d.t = t
					if !d.alive() {
						t.Errorf("%s has ended%s", d.kind(), logs(d))
						d.start()
					}
				}
				if !ran {
					continue
				}
				fmt.Fprintf(&table, "\n%-26s %-16s %-4s %5.1f s", c.name, p, map[bool]string{true: "ok", false: "FAIL"}[ok], time.Since(begin).Seconds())
			}
			if table.Len() > 0 {
				t.Logf("configurations:%s", table.String())
			}
			for _, d := range ends {
				d.stop()
			}
		})
	}
}

// whole loads the configuration on both ends, runs its course, and unloads it.
func (r *endsRun) whole(i int) {
	defer r.clear()
	w := r.s.capture()
	for _, d := range []*viciDaemon{r.b, r.a} {
		d.replace(r.c.of(d.side, d.dir, r.p))
	}
	switch {
	case r.c.fails != nil:
		r.mustFail()
	case r.c.run != nil:
		r.c.run(r)
	default:
		r.usual(i)
	}
	if all := w.stop(); r.c.fails != nil {
		all.noClear(r.t, []byte(mark))
	} else {
		all.nothingInClear(r.t, []byte(mark))
	}
}

func (r *endsRun) conn() string {
	if r.c.conn != "" {
		return r.c.conn
	}
	return "site"
}

func (r *endsRun) names() []string {
	if r.c.children != nil {
		return r.c.children
	}
	return []string{"net"}
}

// usual is the course of a configuration that says nothing else: a initiates, both agree on what
// there is, echo requests pass, both kinds of SA are rekeyed, each by another end, and each end terminates
// something.
func (r *endsRun) usual(i int) {
	t := r.t
	t.Helper()
	r.up()
	before := r.agree()
	if r.c.check != nil {
		r.c.check(r)
	}
	r.traffic()
	one, other := r.a, r.b
	if i%2 == 1 {
		one, other = r.b, r.a
	}
	child := r.names()[0]
	r.must(one, "--rekey", "--child", child)
	rekeyed := r.agreeOn("another CHILD SA "+child, func(sas []ikeSA) bool {
		return child4(sas, child).spiIn != child4(before, child).spiIn
	})
	r.must(other, "--rekey", "--ike", r.conn())
	after := r.agreeOn("another IKE SA", func(sas []ikeSA) bool { return sasNamed(sas, r.conn()).spiI != sasNamed(before, r.conn()).spiI })
	if got, want := len(sasNamed(after, r.conn()).children), len(sasNamed(rekeyed, r.conn()).children); got != want {
		t.Errorf("%d CHILD SAs after the IKE SA was rekeyed, %d before", got, want)
	}
	r.traffic()
	r.must(one, "--terminate", "--child", child, "--timeout", "20")
	r.agreeOn("no CHILD SA "+child, func(sas []ikeSA) bool { return child4(sas, child).spiIn == "" })
	r.must(other, "--terminate", "--ike", r.conn(), "--timeout", "20")
	r.gone(r.conn())
}

// up initiates the children from a.
func (r *endsRun) up() {
	r.t.Helper()
	for _, child := range r.names() {
		if err := r.a.initiate(child); err != nil {
			r.t.Fatalf("%s, the initiator, did not bring up child %s: %v%s", r.a.kind(), child, err, logs(r.a, r.b))
		}
	}
}

// mustFail initiates in vain and looks for the reason.
func (r *endsRun) mustFail() {
	r.t.Helper()
	err := r.a.initiate(r.names()[0])
	if err == nil {
		r.t.Fatalf("the tunnel is up%s", logs(r.a, r.b))
	}
	for _, d := range []*viciDaemon{r.a, r.b} {
		if sas, _ := listSAs(d); slices.ContainsFunc(sas, func(s ikeSA) bool { return s.state == "ESTABLISHED" }) {
			r.t.Errorf("%s has an established IKE SA", d.kind())
		}
	}
	for _, words := range r.c.fails {
		if text := err.Error() + r.a.log() + r.b.log(); len(matching(text, words)) == 0 {
			r.t.Errorf("nobody says %q: %v%s", words, err, logs(r.a, r.b))
		}
	}
}

// must runs swanctl against one of the ends.
func (r *endsRun) must(d *viciDaemon, args ...string) {
	r.t.Helper()
	if err := d.do(args...); err != nil {
		r.t.Fatalf("%s: %v%s", d.kind(), err, logs(r.a, r.b))
	}
}

// traffic sends echo requests along the flows.
func (r *endsRun) traffic() {
	r.t.Helper()
	flows := r.c.flows
	if flows == nil {
		flows = flows4
	}
	r.sends(flows...)
}

func (r *endsRun) sends(flows ...flow) {
	r.t.Helper()
	for _, f := range flows {
		if res := r.s.pings(r.nsOf(f), f.to, 3, echoOptions{from: f.src}); res.lost() != 0 {
			a, _ := listSAs(r.a)
			b, _ := listSAs(r.b)
			r.t.Errorf("from %c: %v\na (%s) has %+v\nb (%s) has %+v%s", f.from, res, r.a.kind(), a, r.b.kind(), b, logs(r.a, r.b))
		}
	}
}

// nsOf returns the namespace that a flow starts in.
func (r *endsRun) nsOf(f flow) string {
	return map[byte]string{'a': r.s.lanA, 'b': r.s.lanB, 'A': r.s.gwA, 'B': r.s.gwB}[f.from]
}

// gone waits until neither end knows the connection's SAs.
func (r *endsRun) gone(conn string) {
	r.t.Helper()
	for _, d := range []*viciDaemon{r.a, r.b} {
		if !eventually(20*time.Second, func() bool {
			sas, err := listSAs(d)
			return err == nil && sasNamed(sas, conn).spiI == ""
		}) {
			r.t.Fatalf("%s keeps SAs of %s that were terminated%s", d.kind(), conn, logs(r.a, r.b))
		}
	}
}

// clear ends what is left and unloads everything: the next configuration must find nothing.
func (r *endsRun) clear() {
	t := r.t
	t.Helper()
	empty := swanctlDir{"swanctl.conf": "connections {}\n"}
	for _, d := range []*viciDaemon{r.a, r.b} {
		if !d.alive() {
			return
		}
		d.lay(empty)
		if err := d.do("--load-all", "--clear", "--noprompt", "--file", d.dir+"/swanctl.conf"); err != nil {
			t.Errorf("%s: unloading: %v%s", d.kind(), err, logs(d))
			return
		}
	}
	for _, d := range []*viciDaemon{r.a, r.b} {
		left := ""
		if !eventually(30*time.Second, func() bool {
			sas, err := listSAs(d)
			if err != nil {
				left = err.Error()
				return false
			}
			for _, sa := range sas {
				d.swanctl("--terminate", "--ike-id", sa.unique, "--force", "--timeout", "5")
			}
			if left = fmt.Sprintf("%+v", sas); len(sas) > 0 {
				return false
			}
			left = ""
			for _, what := range []string{"--list-conns", "--list-certs", "--list-pools", "--list-pols", "--list-authorities"} {
				if out, err := d.swanctl(what); err != nil || strings.TrimSpace(out) != "" {
					left += fmt.Sprintf("%s: %v %s", what, err, out)
				}
			}
			return left == ""
		}) {
			t.Errorf("%s still has, after everything was unloaded and terminated: %s%s", d.kind(), left, logs(d))
		}
	}
}

// sasNamed returns the established IKE SA of a connection.
func sasNamed(sas []ikeSA, conn string) ikeSA {
	for _, sa := range sas {
		if sa.conn == conn && sa.state == "ESTABLISHED" {
			return sa
		}
	}
	return ikeSA{}
}

// child4 returns the installed CHILD SA of that name.
func child4(sas []ikeSA, name string) childSA {
	for _, sa := range sas {
		for _, c := range sa.children {
			if c.name == name && c.state == "INSTALLED" {
				return c
			}
		}
	}
	return childSA{}
}

// agree waits until both ends list the same SAs and at least one child, and returns a's.
func (r *endsRun) agree() []ikeSA {
	r.t.Helper()
	return r.agreeOn("a tunnel", func(sas []ikeSA) bool {
		return slices.ContainsFunc(sas, func(s ikeSA) bool { return len(s.children) > 0 })
	})
}

// agreeOn waits until both ends list the same SAs, and these are as wanted; it returns a's, those that are in use only.
func (r *endsRun) agreeOn(what string, ok func(a []ikeSA) bool) []ikeSA {
	r.t.Helper()
	var a, b []ikeSA
	var diff string
	if !eventually(25*time.Second, func() bool {
		var errA, errB error
		a, errA = listSAs(r.a)
		b, errB = listSAs(r.b)
		if errA != nil || errB != nil {
			diff = fmt.Sprint(errA, errB)
			return false
		}
		a, b = inUse(a), inUse(b)
		if diff = disagreement(a, b, !r.c.otherIDs); diff == "" && !ok(a) {
			diff = "they are not what is wanted"
		}
		return diff == ""
	}) {
		r.t.Fatalf("the ends do not agree on %s: %s\na (%s): %+v\nb (%s): %+v%s", what, diff, r.a.kind(), a, r.b.kind(), b, logs(r.a, r.b))
	}
	return a
}

// inUse leaves out what is on its way in or out.
func inUse(sas []ikeSA) []ikeSA {
	var up []ikeSA
	for _, sa := range sas {
		if sa.state == "ESTABLISHED" {
			sa.children = slices.DeleteFunc(slices.Clone(sa.children), func(c childSA) bool { return c.state != "INSTALLED" })
			up = append(up, sa)
		}
	}
	return up
}

// disagreement compares what the two ends list; "" means that each SA of one is the other's, with the sides exchanged.
func disagreement(a, b []ikeSA, ids bool) string {
	if len(a) != len(b) {
		return fmt.Sprintf("%d IKE SAs and %d", len(a), len(b))
	}
	for _, x := range a {
		i := slices.IndexFunc(b, func(y ikeSA) bool { return y.spiI == x.spiI && y.spiR == x.spiR })
		if i < 0 {
			return "an IKE SA with SPIs that the other end does not have"
		}
		y := b[i]
		for _, pair := range [][3]string{
			{"initiators", fmt.Sprint(x.initiator), fmt.Sprint(!y.initiator)},
			{"algorithms", x.suite(), y.suite()},
			{"identities", x.localID + " " + x.remoteID, y.remoteID + " " + y.localID},
			{"hosts", x.localHost + " " + x.remoteHost, y.remoteHost + " " + y.localHost},
			{"virtual addresses", fmt.Sprint(x.localVIPs, x.remoteVIPs), fmt.Sprint(y.remoteVIPs, y.localVIPs)},
			{"PPK", fmt.Sprint(x.ppk), fmt.Sprint(y.ppk)},
			{"number of children", fmt.Sprint(len(x.children)), fmt.Sprint(len(y.children))},
		} {
			if pair[1] != pair[2] && (ids || pair[0] != "identities") {
				return fmt.Sprintf("%s of the IKE SA: %s and %s", pair[0], pair[1], pair[2])
			}
		}
		for _, c := range x.children {
			j := slices.IndexFunc(y.children, func(d childSA) bool { return d.spiIn == c.spiOut && d.spiOut == c.spiIn })
			if j < 0 {
				return "a CHILD SA with SPIs that the other end does not have"
			}
			d := y.children[j]
			for _, pair := range [][3]string{
				{"algorithms", c.suite(), d.suite()},
				{"modes", c.mode, d.mode},
				{"encapsulation", fmt.Sprint(c.encap), fmt.Sprint(d.encap)},
				{"selectors", fmt.Sprint(sorted(c.localTS), sorted(c.remoteTS)), fmt.Sprint(sorted(d.remoteTS), sorted(d.localTS))},
			} {
				if pair[1] != pair[2] {
					return fmt.Sprintf("%s of CHILD SA %s: %s and %s", pair[0], c.name, pair[1], pair[2])
				}
			}
		}
	}
	return ""
}

func sorted(list []string) []string { return slices.Sorted(slices.Values(list)) }
