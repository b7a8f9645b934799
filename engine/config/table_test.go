package config

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"postern/esp"
)

// tableBase has a connection with three children; the second passes and the third drops.
const tableBase = `
[connections.a]
remote_addrs = ["198.51.100.7"]
[connections.a.children.net]
local_ts = ["10.0.1.0/24"]
remote_ts = ["10.0.2.0/24"]
[connections.a.children.lan]
mode = "pass"
local_ts = ["10.0.1.0/24"]
remote_ts = ["10.0.1.0/24"]
[connections.a.children.last]
mode = "drop"
start_action = "trap"
remote_ts = ["10.0.0.0/8"]
[connections.a.children.voice]
local_ts = ["10.0.1.0/24[udp]"]
remote_ts = ["10.0.3.0/24"]
[secrets.a]
secret = "an example of 24 octets."
`

func describeSPD(list []Entry) string {
	var b strings.Builder
	for _, e := range list {
		fmt.Fprintf(&b, "%s %s %s %v=%v", e.Name, e.Action, e.Dir, e.LocalTS, e.RemoteTS)
		if e.Conn != "" {
			fmt.Fprintf(&b, " %s/%s %v", e.Conn, e.Child, e.Carrier != nil)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// The table comes first, as the file has it, then shunts that pass, children that protect,
// shunts that drop.
func TestOrderOfTheSPD(t *testing.T) {
	c := mustParse(t, tableBase+`
[policies.z]
action = "bypass"
remote_ts = ["0.0.0.0/0[tcp/443]", "10.9.0.0-10.9.0.5[icmp/8]"]
[policies.voice]
action = "protect"
child = "a/voice"
direction = "out"
[policies.a]
action = "protect"
local_ts = ["10.0.1.0/25"]
direction = "in"
`)
	want := `z bypass both [0.0.0.0/0 ::/0]=[0.0.0.0/0[tcp/443] 10.9.0.0..10.9.0.5[icmp/8]]
voice protect out [10.0.1.0/24[udp]]=[10.0.3.0/24] a/voice true
a protect in [10.0.1.0/25]=[0.0.0.0/0 ::/0]
 bypass both [10.0.1.0/24]=[10.0.1.0/24] a/lan false
 protect both [10.0.1.0/24]=[10.0.2.0/24] a/net true
 discard both [0.0.0.0/0 ::/0]=[10.0.0.0/8] a/last false
`
	if got := describeSPD(c.SPD(nil)); got != want {
		t.Errorf("the SPD is\n%swant\n%s", got, want)
	}
	if n := c.entries(); n != 6 {
		t.Errorf("entries() is %d, want 6", n)
	}
	if n := len(c.IKE.Conns[0].Children); n != 2 {
		t.Errorf("IKE knows %d children, want the 2 with SAs", n)
	}
}

func TestShuntsNeedNoPeer(t *testing.T) {
	c := mustParse(t, `
[connections.local.children.lan]
mode = "pass"
local_ts = ["10.0.1.0/24"]
remote_ts = ["10.0.1.0/24", "dynamic[udp/67-68]"]
`)
	if len(c.IKE.Conns) != 0 || len(c.Warnings()) != 0 {
		t.Errorf("%d connections and warnings %v, want none: the child needs no peer", len(c.IKE.Conns), c.Warnings())
	}
	want := " bypass both [10.0.1.0/24]=[10.0.1.0/24 0.0.0.0/0[udp/67-68] ::/0[udp/67-68]] local/lan false\n"
	if got := describeSPD(c.SPD(nil)); got != want {
		t.Errorf("the SPD is\n%swant\n%s", got, want)
	}
}

// The sample's table decides as its comments say.
func TestSampleOfTheTableDecides(t *testing.T) {
	c := loadSample(t, "policy-table.toml", samples(t)["policy-table.toml"])
	list := c.SPD(nil)
	for _, q := range []struct {
		local, remote string
		proto         uint8
		lport, rport  uint16
		in            bool
		want          string
	}{
		{"10.0.1.5", "10.0.2.7", 6, 40000, 502, false, "plant"},
		{"10.0.1.5", "10.0.2.7", 6, 40000, 443, false, "plant"}, // the first entry wins
		{"10.0.1.5", "10.0.2.7", 17, 1, 2, true, "plant"},
		{"10.0.1.5", "203.0.113.9", 6, 40000, 443, false, "https"},
		{"10.0.1.5", "203.0.113.9", 6, 40000, 443, true, "https"},
		{"10.0.1.5", "203.0.113.9", 6, 443, 40000, true, "https-here"},
		{"10.0.1.5", "203.0.113.9", 17, 40000, 443, true, "require"},
		{"10.0.1.5", "203.0.113.9", 6, 40000, 80, true, "require"},
		{"10.0.1.5", "203.0.113.9", 6, 40000, 80, false, "rest"},
		{"10.0.9.5", "10.0.2.7", 6, 40000, 80, true, "rest"},
		{"fd00::1", "fd00::2", 58, 1, 1, true, "rest"},
	} {
		f := esp.Flow{Local: netip.MustParseAddr(q.local), Remote: netip.MustParseAddr(q.remote), Proto: q.proto, LocalPort: q.lport, RemotePort: q.rport}
		got := "nothing"
		if i := Decide(list, &f, q.in); i >= 0 {
			got = list[i].Name
		}
		if got != q.want {
			t.Errorf("%+v is decided by %s, want %s", q, got, q.want)
		}
	}
}

func TestProblemsOfTheTable(t *testing.T) {
	for _, c := range []struct{ name, text string }{
		{"words", `[policies.a]
action = "allow"       #! action "allow" is not known; use "discard", "bypass" or "protect"
[policies.b]           #! policy b does not say what to do
direction = "up"       #! direction "up" is not known
[policies.c]
action = "protect"
child = "net"          #! "net" does not name a child; write "connection/child"
[policies.d]
action = "protect"
child = "a/lan"        #! there is no child lan in a connection a
[policies.e]
action = "bypass"
child = "a/net"        #! policy e protects nothing
[policies.f]
action = "discard"
remote_ts = ["dynamic"] #! remote_ts of a policy cannot be dynamic
[policies.g]
action = "discard"
remote_ts = ["10.0.0.0/8"]
local_ts = ["fd00::/8"]
[connections.a.children.more]
mode = "drop"
rekey_time = "1h"      #! rekey_time means nothing in a child with mode "drop"
`},
		{"families", `[policies.g]
action = "discard"
local_ts = ["fd00::/8"]
remote_ts = ["10.0.0.0/8"] #! policy g has no local_ts and remote_ts of one address family
`},
		{"shadowed", `[policies.all]
action = "discard"
remote_ts = ["10.0.3.0/24"]
direction = "out"
[policies.net]
action = "protect"
child = "a/net"
[policies.never]       #! policy never never decides: policy net (line 24) takes all its packets and says protect, not bypass
action = "bypass"
local_ts = ["10.0.1.7[tcp]"]
remote_ts = ["10.0.2.1-10.0.2.9"]
`},
		{"children behind the table", `[policies.all]
action = "bypass"
[connections.b]
remote_addrs = ["198.51.100.8"]
[connections.b.children.c] #! child c of connection b never decides: policy all (line 20) takes all its packets and says bypass, not protect
local_ts = ["10.0.5.0/24"]
remote_ts = ["10.0.4.0/24"]
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			base := tableBase
			if c.name == "children behind the table" {
				base = strings.ReplaceAll(tableBase, "[connections.a", "[connections.z")
			}
			_, err := newLoader("test.toml", noSecretFiles).load([]byte(base + c.text))
			got, ok := err.(Problems)
			if !ok {
				t.Fatalf("the error is %v (%T), expected Problems", err, err)
			}
			for _, w := range wantedProblems(base + c.text) {
				found := false
				for _, p := range got {
					found = found || p.Line == w.line && strings.Contains(p.What+"; "+p.Hint, w.words)
				}
				if !found {
					t.Errorf("no problem in line %d says %q; there are\n%v", w.line, w.words, got)
				}
			}
		})
	}
}

type wantedProblem struct {
	line  int
	words string
}

func wantedProblems(text string) (list []wantedProblem) {
	for i, line := range strings.Split(text, "\n") {
		if _, words, ok := strings.Cut(line, "#! "); ok {
			list = append(list, wantedProblem{i + 1, words})
		}
	}
	return list
}

func TestWarningsOfTheTable(t *testing.T) {
	for _, c := range []struct{ name, text string }{
		{"an exception is none", `[policies.dns]
action = "bypass"
local_ts = ["10.0.1.1"]
remote_ts = ["10.0.2.1"]
[policies.https]
action = "bypass"
remote_ts = ["0.0.0.0/0[tcp/443]"]
`},
		{"partial overlap", `[policies.lab]
action = "bypass"
local_ts = ["10.0.1.128/25"]
remote_ts = ["10.0.0.0-10.0.2.255"]
[policies.plant]       #! policy plant and policy lab (line 20) overlap: what both select is not protected
action = "protect"
child = "a/net"
`},
		{"twice the same", `[policies.x]
action = "discard"
local_ts = ["10.7.0.0/16"]
[policies.y]           #! policy y never decides: policy x (line 20) takes all its packets, with the same action
action = "discard"
local_ts = ["10.7.1.0/24"]
direction = "in"
`},
		{"other directions", `[policies.x]
action = "discard"
local_ts = ["10.7.0.0/16"]
direction = "out"
[policies.y]
action = "bypass"
local_ts = ["10.7.1.0/24"]
`},
		{"wider than its child", `[policies.net]
action = "protect"
child = "a/net"
remote_ts = ["10.0.2.0/24", "10.0.4.0/24"] #! policy net selects 10.0.4.0/24, which is not within remote_ts of child net
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := mustParse(t, tableBase+c.text)
			compare(t, "warning", tableBase+c.text, cfg.Warnings())
		})
	}
}
