//go:build linux

package e2e

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// node is one section of what swanctl --raw prints: {key=value list=[a b] section {…}}.
type node struct {
	values   map[string]string
	lists    map[string][]string
	names    []string // of the sections, in order
	sections []*node
}

// parseRaw reads swanctl's raw notation. The values of list-sas hold no braces; they may
// hold spaces, so that a value ends where the next "key=" or "key {" begins.
func parseRaw(s string) (*node, error) {
	p := &rawParser{s: s}
	n, err := p.section()
	if err == nil && p.pos < len(p.s) {
		err = p.fail("text after the last section")
	}
	return n, err
}

type rawParser struct {
	s   string
	pos int
}

func (p *rawParser) fail(what string) error {
	return fmt.Errorf("swanctl --raw, octet %d: %s, near %q", p.pos, what, p.s[max(0, p.pos-20):min(len(p.s), p.pos+20)])
}

// section reads key=value, key=[list] and key {section} up to the closing brace.
func (p *rawParser) section() (*node, error) {
	n := &node{values: map[string]string{}, lists: map[string][]string{}}
	for {
		for p.pos < len(p.s) && p.s[p.pos] == ' ' {
			p.pos++
		}
		if p.pos >= len(p.s) || p.s[p.pos] == '}' {
			return n, nil
		}
		rest := p.s[p.pos:]
		end := strings.IndexAny(rest, "={}")
		if end < 0 || rest[end] == '}' {
			return nil, p.fail("a name without a value")
		}
		key := strings.TrimSpace(rest[:end])
		p.pos += end + 1
		rest = p.s[p.pos:]
		switch {
		case p.s[p.pos-1] == '{':
			sub, err := p.section()
			if err != nil {
				return nil, err
			}
			if p.pos >= len(p.s) {
				return nil, p.fail("section " + key + " does not end")
			}
			p.pos++
			n.names, n.sections = append(n.names, key), append(n.sections, sub)
		case strings.HasPrefix(rest, "["):
			// A selector with a protocol has brackets of its own.
			depth, i := 0, 0
			for ; i < len(rest); i++ {
				if rest[i] == '[' {
					depth++
				} else if rest[i] == ']' {
					if depth--; depth == 0 {
						break
					}
				}
			}
			if i == len(rest) {
				return nil, p.fail("list " + key + " does not end")
			}
			n.lists[key] = strings.Fields(rest[1:i])
			p.pos += i + 1
		default:
			i := strings.IndexByte(rest, '}')
			if i < 0 {
				i = len(rest)
			}
			value := rest[:i]
			if next := strings.IndexAny(value, "={"); next >= 0 {
				cut := strings.LastIndexByte(strings.TrimRight(value[:next], " "), ' ')
				value = value[:max(cut, 0)]
			}
			n.values[key] = strings.TrimSpace(value)
			p.pos += len(value)
		}
	}
}

// ikeSA is an IKE SA as list-sas shows it.
type ikeSA struct {
	conn                  string
	state                 string
	unique                string
	initiator             bool
	localHost, remoteHost string
	localPort, remotePort string
	localID, remoteID     string
	encr, bits            string
	integ, prf, dh        string
	natLocal, natRemote   bool
	ppk                   bool
	spiI, spiR            string
	localVIPs, remoteVIPs []string
	children              []childSA
}

// suite returns the algorithms as one string: "AES_GCM_16-128/PRF_HMAC_SHA2_256/CURVE_25519".
func (s ikeSA) suite() string { return join(s.encr, s.bits, s.integ, s.prf, s.dh) }

// childSA is a CHILD SA as list-sas shows it.
type childSA struct {
	name, unique, state, mode string
	encap                     bool
	spiIn, spiOut             string
	encr, bits, integ, dh     string
	packetsIn, packetsOut     int
	localTS, remoteTS         []string
	class, cpu                string // that it is for, where there are several
}

func (c childSA) suite() string { return join(c.encr, c.bits, c.integ, "", c.dh) }

func join(encr, bits, integ, prf, dh string) string {
	if bits != "" && bits != "0" {
		encr += "-" + bits
	}
	parts := []string{encr, integ, prf, dh}
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), "/")
}

// listSAs asks a daemon for its SAs.
func listSAs(d daemon) ([]ikeSA, error) {
	out, err := rawOurs(d, "--list-sas", "list-sa")
	if err != nil {
		return nil, fmt.Errorf("list-sas of %s: %w: %s", d.kind(), err, out)
	}
	var sas []ikeSA
	for line := range strings.SplitSeq(out, "\n") {
		text, ok := strings.CutPrefix(line, "list-sa event {")
		if !ok {
			continue
		}
		root, err := parseRaw(strings.TrimSuffix(text, "}"))
		if err != nil {
			return nil, err
		}
		for i, n := range root.sections {
			v := n.values
			sa := ikeSA{conn: root.names[i], state: v["state"], unique: v["uniqueid"], initiator: v["initiator"] == "yes",
				localHost: v["local-host"], remoteHost: v["remote-host"], localPort: v["local-port"], remotePort: v["remote-port"],
				localID: v["local-id"], remoteID: v["remote-id"], encr: v["encr-alg"], bits: v["encr-keysize"],
				integ: v["integ-alg"], prf: v["prf-alg"], dh: v["dh-group"],
				natLocal: v["nat-local"] == "yes", natRemote: v["nat-remote"] == "yes", ppk: v["ppk"] == "yes",
				spiI: v["initiator-spi"], spiR: v["responder-spi"], localVIPs: n.lists["local-vips"], remoteVIPs: n.lists["remote-vips"]}
			for j, name := range n.names {
				if name != "child-sas" {
					continue
				}
				for _, c := range n.sections[j].sections {
					v := c.values
					in, _ := strconv.Atoi(v["packets-in"])
					out, _ := strconv.Atoi(v["packets-out"])
					sa.children = append(sa.children, childSA{name: v["name"], unique: v["uniqueid"], state: v["state"],
						mode: v["mode"], encap: v["encap"] == "yes", spiIn: v["spi-in"], spiOut: v["spi-out"],
						encr: v["encr-alg"], bits: v["encr-keysize"], integ: v["integ-alg"], dh: v["dh-group"],
						packetsIn: in, packetsOut: out, localTS: c.lists["local-ts"], remoteTS: c.lists["remote-ts"],
						class: v["dscp-class"], cpu: v["cpu"]})
				}
			}
			sas = append(sas, sa)
		}
	}
	return sas, nil
}

// established returns the daemon's one established IKE SA, waiting until there is
// exactly one.
func established(t *testing.T, d daemon) ikeSA {
	t.Helper()
	var sas []ikeSA
	var err error
	var up []ikeSA
	if !eventually(5*time.Second, func() bool {
		if sas, err = listSAs(d); err != nil {
			return false
		}
		up = nil
		for _, sa := range sas {
			if sa.state == "ESTABLISHED" {
				up = append(up, sa)
			}
		}
		return len(up) == 1
	}) {
		t.Fatalf("%s: expected one established IKE SA, found %d of %d (%v)%s", d.kind(), len(up), len(sas), err, logs(d))
	}
	return up[0]
}

// installed returns the child's one CHILD SA that carries traffic, waiting until there is
// exactly one.
func installed(t *testing.T, d daemon, name string) childSA {
	t.Helper()
	var found []childSA
	if !eventually(5*time.Second, func() bool {
		found = children(d, name)
		return len(found) == 1 && found[0].state == "INSTALLED"
	}) {
		t.Fatalf("%s: expected one installed CHILD SA %s, found %+v%s", d.kind(), name, found, logs(d))
	}
	return found[0]
}

// children returns the CHILD SAs of that name, whatever their state.
func children(d daemon, name string) []childSA {
	sas, _ := listSAs(d)
	var found []childSA
	for _, sa := range sas {
		for _, c := range sa.children {
			if c.name == name {
				found = append(found, c)
			}
		}
	}
	return found
}

// gone waits until the daemon knows no IKE SA and reports whether that came to pass.
func gone(d daemon, within time.Duration) bool {
	return eventually(within, func() bool {
		sas, err := listSAs(d)
		return err == nil && len(sas) == 0
	})
}

func TestRawNotationOfSwanctlIsRead(t *testing.T) {
	n, err := parseRaw("site {uniqueid=1 local-id=C=CH, CN=a b state=ESTABLISHED child-sas {net-1 {name=net " +
		"local-ts=[10.1.0.0/24[tcp/502] fd01::/64] remote-ts=[] packets-in=7} net-2 {name=more}}}")
	if err != nil {
		t.Fatal(err)
	}
	c := n.sections[0].sections[0].sections
	if got := n.sections[0].values["state"]; got != "ESTABLISHED" {
		t.Errorf("state after a value with spaces: got %q", got)
	}
	if len(c) != 2 || c[0].values["packets-in"] != "7" || c[1].values["name"] != "more" {
		t.Errorf("children: got %+v", c)
	}
	if ts := c[0].lists["local-ts"]; !slices.Equal(ts, []string{"10.1.0.0/24[tcp/502]", "fd01::/64"}) {
		t.Errorf("selectors: got %q", ts)
	}
	for _, bad := range []string{"a {b=c", "a", "x=[1 2"} {
		if _, err := parseRaw(bad); err == nil {
			t.Errorf("%q was read without an error", bad)
		}
	}
}
