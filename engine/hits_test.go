package engine

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"postern/board"
	"postern/engine/control"
	"postern/esp"
)

// named is an entry of a table.
func named(name string, a esp.Action, d esp.Directions, local, remote string) policySpec {
	return policySpec{Policy: esp.Policy{Name: name, Action: a, Dir: d, LocalTS: sel(local), RemoteTS: sel(remote)}}
}

func TestEntriesAreForTheirDirection(t *testing.T) {
	s := newSPD(8)
	s.set([]policySpec{
		named("in", esp.Discard, esp.OnlyIn, "10.1.0.0/16", "10.2.0.0/16"),
		named("out", esp.Bypass, esp.OnlyOut, "10.1.0.0/16", "10.2.0.0/16"),
		named("both", esp.Discard, esp.BothWays, "10.0.0.0/8", "10.0.0.0/8"),
	})
	f := flowTo("10.2.0.9")
	if p, _ := s.lookup(f); p == nil || p.Name != "out" {
		t.Errorf("a packet that goes out is decided by %v, want the entry for that direction", p)
	}
	if p := s.lookupIn(f); p == nil || p.Name != "in" {
		t.Errorf("a packet that comes in is decided by %v, want the entry for that direction", p)
	}
	if p := s.lookupIn(flowTo("10.3.0.9")); p == nil || p.Name != "both" {
		t.Errorf("a packet that comes in is decided by %v, want the entry for both directions", p)
	}
}

// What came through an SA is dropped where an earlier entry discards or bypasses it, although
// the SA's selectors cover it, and passes where that entry comes later.
func TestEarlierEntriesForbidWhatAnSABrings(t *testing.T) {
	for _, c := range []struct {
		name    string
		before  []policySpec
		behind  []policySpec
		dropped bool
	}{
		{"discard before", []policySpec{named("d", esp.Discard, esp.OnlyIn, "10.2.9.0/24", "0.0.0.0/0")}, nil, true},
		{"bypass before", []policySpec{named("b", esp.Bypass, esp.BothWays, "10.2.9.0/24", "10.1.0.0/16")}, nil, true},
		{"discard behind", nil, []policySpec{named("d", esp.Discard, esp.BothWays, "10.2.9.0/24", "0.0.0.0/0")}, false},
		{"discard of what goes out", []policySpec{named("d", esp.Discard, esp.OnlyOut, "10.2.9.0/24", "0.0.0.0/0")}, nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			tp := newTestPath(t, board.Tiny)
			l := &ikeLoop{d: tp.datapath}
			// One machine is both ends here: the first entry is the sender's.
			spec := []policySpec{protect("c", "n", "10.1.0.0/16", "10.2.0.0/16")}
			spec[0].Dir = esp.OnlyOut
			spec = append(append(append(spec, c.before...), protect("c", "n", "10.2.0.0/16", "10.1.0.0/16")), c.behind...)
			tp.spd.set(spec)
			_, out := tp.addLoop(t, testSuites[0], true, "c", "n", "10.1.0.0/16", "10.2.0.0/16", true)
			l.rejudge()
			tp.send(udp4(srcHost, "10.2.9.1", 1, 2, 60), udp4(srcHost, "10.2.8.1", 1, 2, 60))
			sent := tp.fakes[out.sock()].datagrams()
			if len(sent) != 2 {
				t.Fatalf("%d packets were sent, want 2", len(sent))
			}
			for i := range sent {
				sent[i].Remote = netip.MustParseAddrPort("192.0.2.1:4500")
			}
			tp.receive(out.sock(), sent...)
			want := uint64(0)
			if c.dropped {
				want = 1
			}
			tp.want(t, cInPolicy, want)
			if n := len(tp.tun.packets()); n != 2-int(want) {
				t.Errorf("%d packets reached the TUN device, want %d", n, 2-int(want))
			}
		})
	}
}

// Packets that only arrived in clear, or that the table discards, are told apart from what
// nobody has a policy for, and counted for their entries.
func TestPacketsInClearAreCounted(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	tp.spd.set([]policySpec{
		protect("c", "n", "10.1.0.0/16", "10.2.0.0/16"),
		named("gone", esp.Discard, esp.BothWays, "10.1.0.0/16", "10.3.0.0/16"),
		named("require", esp.Protect, esp.OnlyIn, "10.1.0.0/16", "0.0.0.0/0"),
		named("rest", esp.Bypass, esp.BothWays, "0.0.0.0/0", "0.0.0.0/0"),
	})
	tp.send(udp4("10.2.0.1", "10.1.0.1", 1, 2, 60))  // the child's, from outside
	tp.send(udp4("10.3.0.1", "10.1.0.1", 1, 2, 60))  // discarded from outside
	tp.send(udp4("10.1.0.1", "10.3.0.1", 1, 2, 60))  // and going out
	tp.send(udp4("192.0.2.7", "10.1.0.1", 1, 2, 60)) // has to come through some SA
	tp.send(udp4("192.0.2.7", "192.0.2.9", 1, 2, 60))
	tp.want(t, cInClear, 3)
	tp.want(t, cOutDiscard, 1)
	tp.want(t, cOutBypass, 1)
	tp.want(t, cOutQueued, 0)
	for i, want := range [][2]uint64{{1, 0}, {1, 1}, {1, 0}, {0, 0}} {
		h := tp.spd.cur.Load().list[i].hits
		if got := [2]uint64{h.inClear.Load(), h.discarded.Load()}; got != want {
			t.Errorf("entry %d has counted %v packets in clear and discarded, want %v", i+1, got, want)
		}
	}
}

// Where one SA serves two entries, each gets what is its own; what it carries for one alone
// is taken from the SA's own count, also after its end.
func TestHitsBelongToTheirEntry(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	l := &ikeLoop{d: tp.datapath}
	two := []policySpec{protect("c", "n", "10.1.0.0/16", "10.2.9.0/24"), protect("c", "n", "10.1.0.0/16", "10.2.0.0/16")}
	two[0].Name, two[1].Name = "narrow", "wide"
	tp.spd.set(two)
	_, out := tp.addLoop(t, testSuites[0], true, "c", "n", "10.1.0.0/16", "10.2.0.0/16", true)
	l.rejudge()
	pkts := [][]byte{udp4(srcHost, "10.2.9.1", 1, 2, 60), udp4(srcHost, "10.2.8.1", 1, 2, 100), udp4(srcHost, "10.2.9.2", 1, 2, 60)}
	tp.send(pkts...)
	check := func(when string, want ...uint64) {
		t.Helper()
		l.foldAll()
		for i, p := range tp.spd.cur.Load().list {
			if got := [2]uint64{p.hits.outPackets.Load(), p.hits.outBytes.Load()}; got != [2]uint64{want[2*i], want[2*i+1]} {
				t.Errorf("%s: %s has %v packets and octets, want %v", when, p.Name, got, want[2*i:2*i+2])
			}
		}
	}
	check("shared", 2, 120, 1, 100)
	// One entry less: now the SA's own count is enough, from here on.
	tp.spd.set(two[1:])
	l.rejudge()
	if out.mixed.Load() {
		t.Error("an SA with one entry looks up every packet")
	}
	tp.send(pkts...)
	check("alone", 4, 320)
	l.retire(tp.sad.delIn(out.inbound), tp.sad.slot(out.inbound).delOut())
	check("after its end", 4, 320)
	tp.addLoop(t, testSuites[0], true, "c", "n", "10.1.0.0/16", "10.2.0.0/16", true)
	l.rejudge()
	tp.send(pkts...)
	check("with its successor", 7, 540)
}

func TestTheTableIsShownAndTested(t *testing.T) {
	wire := &fakeWire{}
	text := fmt.Sprintf(confA, "encap = true", "aes128gcm16", "trap") + `
[connections.plant.children.lan]
mode = "pass"
local_ts = ["10.1.0.0/16"]
remote_ts = ["10.1.0.0/16"]
[policies.mail]
action = "discard"
local_ts = ["10.1.0.0/16[tcp]"]
remote_ts = ["10.2.0.0/16[tcp/25]"]
[policies.plant]
action = "protect"
child = "plant/net"
`
	a, path := withControl(t, wire.host("192.0.2.1"), text)
	b := startEngine(t, wire.host("192.0.2.2"), parse(t, confB), board.Tiny)
	test := func(want string, kv ...string) {
		t.Helper()
		if resp, _ := a.command(control.CmdTestPolicy, kv...); !strings.Contains(resp, want) {
			t.Errorf("test-policy %v: %s, want %s", kv, resp, want)
		}
	}
	packet := []string{"src", "10.1.0.5", "dst", "10.2.0.9", "proto", "17", "sport", "1", "dport", "502"}
	test(`number="2" name="plant"`, packet...)
	test(`fate="acquire"`, packet...)
	for range 3 {
		a.host.tun.in <- udp4(srcHost, dstHost, 1000, 502, 200)
	}
	eventually(t, "the packets arrived", func() bool { return len(b.host.tun.packets()) == 3 })
	test(`fate="sa" child-sa{ike="plant" child="net" uniqueid="1" spi-out="`, packet...)
	test(`fate="sa" child-sa{ike="plant" child="net" spi-in="`, "src", "10.2.0.9", "dst", "10.1.0.5", "proto", "1", "direction", "in")
	test(`name="mail" action="discard"`, "src", "10.1.0.5", "dst", "10.2.0.9", "proto", "6", "sport", "1", "dport", "25")
	test(`fate="none"`, "src", "10.9.0.5", "dst", "10.2.0.9", "proto", "6")
	test(`success="no"`, "src", "10.9.0.5", "dst", "fd00::1", "proto", "6")
	test(`success="no"`, append(packet, "direction", "up")...)

	if resp, _ := a.command(control.CmdRekey, "child", "net"); !strings.Contains(resp, `success="yes"`) {
		t.Fatal(resp)
	}
	eventually(t, "the CHILD SA was rekeyed", func() bool {
		_, sas := a.command(control.CmdListSAs)
		return len(sas) == 1 && strings.Contains(sas[0], "net-2{") && !strings.Contains(sas[0], "net-1{")
	})
	a.host.tun.in <- udp4(srcHost, dstHost, 1000, 502, 200)
	eventually(t, "a packet arrived through the new SA", func() bool { return len(b.host.tun.packets()) == 4 })
	_, list := a.command(control.CmdListSPD)
	want := []string{
		`list-spd-entry number="1" name="mail" action="discard" direction="both" local-ts=["10.1.0.0/16[tcp]"] remote-ts=["10.2.0.0/16[tcp/25]"] discarded="0" in-clear="0"`,
		`list-spd-entry number="2" name="plant" action="protect" direction="both" ike="plant" child="net" local-ts=["10.1.0.0/16" "2001:db8:1::/48"] remote-ts=["10.2.0.0/16" "2001:db8:2::/48"] sas="1" packets-out="4" bytes-out="800" packets-in="0" bytes-in="0" in-clear="0"`,
		`list-spd-entry number="3" action="bypass" direction="both" ike="plant" child="lan" local-ts=["10.1.0.0/16"] remote-ts=["10.1.0.0/16"]`,
	}
	if got := strings.Join(list, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("list-spd says\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}

	swanctl, err := exec.LookPath("swanctl")
	if err != nil {
		t.Skip("swanctl is not installed (Debian: strongswan-swanctl): the commands are only tested without it")
	}
	for args, want := range map[string]string{
		"": "plant/net, TUNNEL\n  local:  10.1.0.0/16 2001:db8:1::/48\n  remote: 10.2.0.0/16 2001:db8:2::/48\n" +
			"policies/mail, DROP\n  local:  10.1.0.0/16[tcp]\n  remote: 10.2.0.0/16[tcp/25]\nplant/lan, PASS\n  local:  10.1.0.0/16\n  remote: 10.1.0.0/16\n",
		"--pass": "plant/lan, PASS\n  local:  10.1.0.0/16\n  remote: 10.1.0.0/16\n",
	} {
		out, err := exec.Command(swanctl, append(strings.Fields("--list-pols "+args), "--uri", "unix://"+path)...).CombinedOutput()
		if err != nil || string(out) != want {
			t.Errorf("swanctl --list-pols %s: %v\n%s\nwant\n%s", args, err, out, want)
		}
	}
}

// Packets that arrive in clear are handed over only where no entry, present or next, would
// have them sent into a tunnel: nothing tells them from what may go there.
func TestOnlyWhatNoTunnelTakesIsHandedOver(t *testing.T) {
	counts := func(s *spd) (out string) {
		for _, p := range s.policies() {
			out += map[bool]string{true: "y", false: "n"}[p.Count]
		}
		return out
	}
	child := protect("c", "n", "10.1.0.0/16", "10.2.0.0/16")
	for _, c := range []struct {
		name string
		spec []policySpec
		want string
	}{
		{"one child", []policySpec{child}, "y"},
		{"the table of the mission", []policySpec{child, named("b", esp.Bypass, 0, "0.0.0.0/0", "10.9.0.0/16"),
			named("require", esp.Protect, esp.OnlyIn, "10.1.0.0/16", "0.0.0.0/0"), named("rest", esp.Bypass, 0, "0.0.0.0/0", "0.0.0.0/0")}, "ynyn"},
		{"all through the tunnel", []policySpec{protect("c", "n", "10.1.0.0/16", "0.0.0.0/0")}, "n"},
		{"both families apart", []policySpec{child, protect("c", "m", "fd00::/16", "::/0")}, "yn"},
		{"hub", []policySpec{protect("c", "n", "10.0.0.0/8", "10.1.0.0/16"), protect("c", "m", "10.0.0.0/8", "10.2.0.0/16")}, "nn"},
		{"what goes out cannot come in", []policySpec{named("d", esp.Discard, esp.OnlyOut, "10.1.0.0/16", "10.2.0.0/16"),
			named("d", esp.Discard, esp.OnlyIn, "10.1.0.0/16", "10.2.0.0/16")}, "ny"},
		{"SAs bring entries", []policySpec{child, {Policy: esp.Policy{Action: esp.Protect}, conn: "rw", child: "n", dynamic: true}}, "n"},
	} {
		s := newSPD(8)
		s.set(c.spec)
		if got := counts(s); got != c.want {
			t.Errorf("%s: handed over %s, want %s", c.name, got, c.want)
		}
	}
	// On the way from one configuration to another, both count.
	s := newSPD(8)
	s.set([]policySpec{protect("c", "n", "10.0.0.0/8", "10.0.0.0/8")})
	if got := s.plainPolicies(s.compile([]policySpec{child})); got[0].Count {
		t.Error("what the present entries protect is handed over before they have gone")
	}
}
