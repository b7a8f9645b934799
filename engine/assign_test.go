package engine

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/board"
	"postern/engine/config"
	"postern/engine/control"
	"postern/esp"
	"postern/ike"
)

// roaming is a client with a split tunnel: %s stands for more keys of the daemon, of the
// connection, and of the child.
const roaming = `
[daemon]
dns = "dnsmasq"
dns_file = "/tmp/postern.servers"
%s
[connections.gw]
remote_addrs = ["192.0.2.2"]
vips = ["0.0.0.0", "::"]
%s
[connections.gw.local]
id = "a.example"
[connections.gw.children.net]
%s
[secrets.x]
secret = "correct horse battery staple 42"
`

// roamer is an engine whose system writes down what it is asked for.
type roamer struct {
	*running
	net   *recordingNetwork
	names *fakeNames
	state *fakeState
}

// recordingNetwork writes down addresses and policies in the order in which they are set.
type recordingNetwork struct {
	*fakeNetwork
	mu  sync.Mutex
	ops []string
}

func (n *recordingNetwork) SetDevice(device string, addrs, had []netip.Prefix) error {
	n.note(fmt.Sprintf("%s %v", device, addrs))
	return n.fakeNetwork.SetDevice(device, addrs, had)
}

func (n *recordingNetwork) Apply(device string, policies []esp.Policy) error {
	var list []string
	for _, p := range policies {
		list = append(list, fmt.Sprint(p.LocalTS))
	}
	n.note("from " + strings.Join(list, " and "))
	return n.fakeNetwork.Apply(device, policies)
}

func (n *recordingNetwork) note(op string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.ops) == 0 || n.ops[len(n.ops)-1] != op {
		n.ops = append(n.ops, op)
	}
}

// taken returns what was asked for since the last time.
func (n *recordingNetwork) taken() (ops []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	ops, n.ops = n.ops, nil
	return ops
}

// fakeNames is who manages name servers.
type fakeNames struct {
	mu   sync.Mutex
	now  string
	sets int
	err  error
	wait chan struct{} // what set waits for; nil: nothing
}

func (f *fakeNames) set(how, file, device string, all []netip.Addr, domains map[string][]netip.Addr) error {
	f.mu.Lock()
	wait := f.wait
	f.mu.Unlock()
	if wait != nil {
		<-wait
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = fmt.Sprint(how, " ", file, " ", device, " ", all, " ", domains)
	f.sets++
	return f.err
}

func (f *fakeNames) said() (string, int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now, f.sets
}

func startRoamer(t *testing.T, daemon, conn, child string, state *fakeState, inner map[string][]netip.Prefix) *roamer {
	t.Helper()
	if state.kept == nil {
		state.kept = map[string][]byte{}
	}
	h := (&fakeWire{}).host("192.0.2.1")
	h.inner = inner
	o, r := h.os(), &roamer{names: new(fakeNames), state: state}
	r.net = &recordingNetwork{fakeNetwork: (*fakeNetwork)(h)}
	o.Network, o.SetDNS = r.net, r.names.set
	o.OpenState = func(string) (State, error) { return state, nil }
	r.running = startEngineOn(t, h, o, parse(t, fmt.Sprintf(roaming, daemon, conn, child)), board.Tiny)
	r.net.taken()
	return r
}

// give assigns; without addresses it takes away.
func (r *roamer) give(a *ike.Assigned) {
	r.t.Helper()
	err := r.loop.do(func() {
		if len(a.Addrs) == 0 {
			r.loop.unassign(a.Conn)
		} else {
			r.loop.assign(a)
		}
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *roamer) wantOps(when string, want ...string) {
	r.t.Helper()
	if got := r.net.taken(); !slices.Equal(got, want) {
		r.t.Errorf("%s the system was asked for\n%s\nwant\n%s", when, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func (r *roamer) wantNames(when, want string) {
	r.t.Helper()
	for range 1000 {
		if got, _ := r.names.said(); got == want {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	got, _ := r.names.said()
	r.t.Errorf("%s the name servers are %q, want %q", when, got, want)
}

func addrs(list ...string) (out []netip.Addr) {
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// The addresses come before the policies that are for them, and go after these: at no time is
// there a source that no policy knows. What was an address stays closed.
func TestAssignedAddressesComeAndGo(t *testing.T) {
	state := &fakeState{}
	r := startRoamer(t, "", `dns_domains = ["plant.example"]`, `remote_ts = ["10.1.0.0/16", "2001:db8:1::/48"]`, state, nil)
	if l, _ := r.host.locals(); !slices.Equal(l, []string{"0.0.0.0/32"}) {
		t.Errorf("before the first address the policies are for %v, want what has yet to choose one", l)
	}
	a := &ike.Assigned{Conn: "gw", Addrs: addrs("10.9.0.5", "fd09::5"), DNS: addrs("10.1.0.53"), Domains: []string{"plant.example", "Lab.Plant.example", "evil.example", "notplant.example"}}
	r.give(a)
	r.wantOps("at first", "fake0 [10.9.0.5/32 fd09::5/128]", "from [10.9.0.5/32 fd09::5/128]")
	r.wantNames("at first", "dnsmasq /tmp/postern.servers fake0 [] map[lab.plant.example:[10.1.0.53] plant.example:[10.1.0.53]]")
	if p := r.d.spd.policies(); len(p) != 1 || !p[0].Own {
		t.Errorf("the policies are %+v, want one whose source is ours to choose", p)
	}
	if all := strings.Join(r.log.all(), ""); !strings.Contains(all, "evil.example notplant.example") {
		t.Errorf("nothing is said of domains that are not allowed: %s", all)
	}
	// The same once more, as after a rekeying, changes nothing.
	_, sets := r.names.said()
	again := *a
	r.give(&again)
	if got, _ := r.names.said(); sets == 0 || got == "" {
		t.Error("no name servers")
	}
	for _, op := range r.net.taken() {
		if !strings.HasPrefix(op, "from [10.9.0.5/32 fd09::5/128]") {
			t.Errorf("the same assignment leads to %s", op)
		}
	}
	// Another one after a reauthentication: only IPv4 now.
	r.give(&ike.Assigned{Conn: "gw", Addrs: addrs("10.9.0.6"), DNS: addrs("10.1.0.53")})
	r.wantOps("with another address", "fake0 [10.9.0.6/32 10.9.0.5/32 fd09::5/128]",
		"from [10.9.0.6/32 ::/128 10.9.0.5/32 fd09::5/128]", "fake0 [10.9.0.6/32]", "from [10.9.0.6/32 ::/128 10.9.0.5/32 fd09::5/128]")
	r.wantNames("without domains from the gateway", "dnsmasq /tmp/postern.servers fake0 [] map[plant.example:[10.1.0.53]]")

	r.give(&ike.Assigned{Conn: "gw"})
	r.wantOps("at the end", "from [0.0.0.0/32 ::/128 10.9.0.6/32 10.9.0.5/32 fd09::5/128]", "fake0 []", "from [0.0.0.0/32 ::/128 10.9.0.6/32 10.9.0.5/32 fd09::5/128]")
	r.wantNames("at the end", "dnsmasq /tmp/postern.servers fake0 [] map[]")
	r.give(&ike.Assigned{Conn: "gw"})
	r.wantOps("at the end again")

	// The end of the daemon, with something assigned.
	r.give(a)
	r.net.taken()
	r.end()
	r.wantOps("when the daemon ends", "fake0 []")
	if got, _ := r.names.said(); got != "dnsmasq /tmp/postern.servers fake0 [] map[]" {
		t.Errorf("when the daemon has ended the name servers are %q", got)
	}
	if note := state.kept[stateAssigned]; len(note) > 0 {
		t.Errorf("the daemon has ended in order and leaves the note %q", note)
	}
}

// A process that was killed leaves a note; the next one takes away what is in it, also where the
// configuration is another one by now.
func TestTheNextStartTakesAway(t *testing.T) {
	state := &fakeState{}
	r := startRoamer(t, "", "", `remote_ts = ["0.0.0.0/0"]`, state, nil)
	r.give(&ike.Assigned{Conn: "gw", Addrs: addrs("10.9.0.5"), DNS: addrs("10.1.0.53")})
	note := string(state.kept[stateAssigned])
	if want := "addr fake0 10.9.0.5/32\ndns dnsmasq fake0 /tmp/postern.servers\n"; note != want {
		t.Fatalf("the note is %q, want %q", note, want)
	}
	stores := state.stores
	r.give(&ike.Assigned{Conn: "gw"})
	r.give(&ike.Assigned{Conn: "gw", Addrs: addrs("10.9.0.5"), DNS: addrs("10.1.0.53")})
	if state.stores != stores {
		t.Error("the note was written again though it says all that there is")
	}
	for i := range 100 {
		r.give(&ike.Assigned{Conn: "gw", Addrs: addrs(fmt.Sprintf("2001:db8:1111:2222:3333:4444:5555:%x", 0x1000+i))})
	}
	last := string(state.kept[stateAssigned])
	if len(last) > maxKept || !strings.HasPrefix(last, "addr fake0 2001:db8:1111:2222:3333:4444:5555:1063/128\n") || !strings.HasSuffix(last, "\n") {
		t.Errorf("after many addresses the note has %d octets: %q", len(last), last)
	}

	left := map[string][]netip.Prefix{"fake0": {netip.MustParsePrefix("10.9.0.5/32")}}
	next := startRoamer(t, "", "", `remote_ts = ["0.0.0.0/0"]`, &fakeState{kept: map[string][]byte{stateAssigned: []byte(note)}}, left)
	if len(left["fake0"]) != 0 {
		t.Errorf("the next start leaves %v on the device", left)
	}
	if got, _ := next.names.said(); got != "dnsmasq /tmp/postern.servers fake0 [] map[]" {
		t.Errorf("the next start leaves the name servers %q", got)
	}
	if n := next.state.kept[stateAssigned]; len(n) > 0 {
		t.Errorf("the next start leaves the note %q", n)
	}
	// What somebody has written into the note breaks nothing.
	odd := &fakeState{kept: map[string][]byte{stateAssigned: []byte("addr\naddr x y\n\x00\ndns\nnonsense fake0 1\naddr fake0 10.9.0.7/32")}}
	startRoamer(t, "", "", `remote_ts = ["0.0.0.0/0"]`, odd, map[string][]netip.Prefix{"fake0": {netip.MustParsePrefix("10.9.0.7/32")}})
}

func TestWhichNamesTheGatewayIsAskedFor(t *testing.T) {
	for name, c := range map[string]struct {
		conn, child string
		dns         []netip.Addr
		domains     []string
		want        string // the end of what the system is told
		log         string
	}{
		"everything goes through the tunnel": {"", `remote_ts = ["0.0.0.0/0"]`, addrs("10.1.0.53", "10.1.0.54", "10.1.0.53"), []string{"bank.example"}, "[10.1.0.53 10.1.0.54] map[]", ""},
		"split, nothing allowed":             {"", `remote_ts = ["10.1.0.0/16"]`, addrs("10.1.0.53"), []string{"bank.example"}, "", "domains=bank.example"},
		"split, nothing named":               {"", `remote_ts = ["10.1.0.0/16"]`, addrs("10.1.0.53"), nil, "", "name some in dns_domains"},
		"split, any allowed":                 {`dns_domains = ["."]`, `remote_ts = ["10.1.0.0/16"]`, addrs("10.1.0.53"), []string{"a.example"}, "[] map[a.example:[10.1.0.53]]", ""},
		"split, any allowed, none named":     {`dns_domains = ["."]`, `remote_ts = ["10.1.0.0/16"]`, addrs("10.1.0.53"), nil, "[10.1.0.53] map[]", ""},
		"a server outside the tunnel":        {`dns_domains = ["."]`, `remote_ts = ["10.1.0.0/16"]`, addrs("8.8.8.8", "10.1.0.53"), nil, "[10.1.0.53] map[]", "servers=8.8.8.8"},
		"only ports that are not DNS":        {`dns_domains = ["."]`, `remote_ts = ["10.1.0.0/16[tcp/502]"]`, addrs("10.1.0.53"), nil, "", "put their addresses into remote_ts"},
		"addresses that are none of servers": {"", `remote_ts = ["0.0.0.0/0", "::/0"]`, addrs("127.0.0.1", "224.0.0.1", "::", "fe80::1%eth0", "::ffff:10.0.0.1"), nil, "", ""},
		"names that are none":                {`dns_domains = ["."]`, `remote_ts = ["10.1.0.0/16"]`, addrs("10.1.0.53"), []string{"a/6.6.6.6", "a\nserver=6.6.6.6", ".", "ok.example"}, "[] map[ok.example:[10.1.0.53]]", `server=6.6.6.6`},
	} {
		r := startRoamer(t, "", c.conn, c.child, &fakeState{}, nil)
		_, sets := r.names.said()
		r.give(&ike.Assigned{Conn: "gw", Addrs: addrs("10.9.0.5"), DNS: c.dns, Domains: c.domains})
		if c.want != "" {
			r.wantNames(name+":", "dnsmasq /tmp/postern.servers fake0 "+c.want)
		} else if _, n := r.names.said(); n != sets {
			got, _ := r.names.said()
			t.Errorf("%s: the system is told %q, want nothing", name, got)
		}
		if all := strings.Join(r.log.all(), ""); !strings.Contains(all, c.log) {
			t.Errorf("%s: the log has no %q: %s", name, c.log, all)
		}
		r.end()
	}
}

// A domain that two connections name belongs to the first (RFC 8598 section 8).
func TestDomainOfTwoConnections(t *testing.T) {
	r := startRoamer(t, "", `dns_domains = ["."]`, `remote_ts = ["10.1.0.0/16"]`, &fakeState{}, nil)
	two := fmt.Sprintf(roaming, "", `dns_domains = ["."]`, `remote_ts = ["10.1.0.0/16"]`) + `
[connections.other]
remote_addrs = ["192.0.2.3"]
vips = ["0.0.0.0"]
dns_domains = ["."]
[connections.other.children.net]
remote_ts = ["10.2.0.0/16"]
`
	if err := r.Reload(parse(t, two)); err != nil {
		t.Fatal(err)
	}
	r.give(&ike.Assigned{Conn: "other", Addrs: addrs("10.8.0.5"), DNS: addrs("10.2.0.53"), Domains: []string{"internal", "other.example"}})
	r.wantNames("alone:", "dnsmasq /tmp/postern.servers fake0 [] map[internal:[10.2.0.53] other.example:[10.2.0.53]]")
	r.give(&ike.Assigned{Conn: "gw", Addrs: addrs("10.9.0.5"), DNS: addrs("10.1.0.53"), Domains: []string{"internal"}})
	r.wantNames("both:", "dnsmasq /tmp/postern.servers fake0 [] map[internal:[10.1.0.53] other.example:[10.2.0.53]]")
}

// A reload takes over what is assigned: to another device, to another way of telling, or to
// nobody.
func TestReloadMovesWhatIsAssigned(t *testing.T) {
	r := startRoamer(t, "", "", `remote_ts = ["0.0.0.0/0"]`, &fakeState{}, nil)
	r.give(&ike.Assigned{Conn: "gw", Addrs: addrs("10.9.0.5"), DNS: addrs("10.1.0.53")})
	r.wantNames("at first", "dnsmasq /tmp/postern.servers fake0 [10.1.0.53] map[]")
	r.net.taken()
	reload := func(text string) {
		t.Helper()
		if err := r.Reload(parse(t, text)); err != nil {
			t.Fatal(err)
		}
	}
	on := func(device string) string {
		r.host.mu.Lock()
		defer r.host.mu.Unlock()
		return fmt.Sprint(r.host.inner[device])
	}
	own := fmt.Sprintf(roaming, "", "", "remote_ts = [\"0.0.0.0/0\"]\ninterface = \"ipsec0\"\ninterface_addrs = [\"10.255.0.1/30\"]")
	reload(own)
	if on("fake0") != "[]" || on("ipsec0") != "[10.255.0.1/30 10.9.0.5/32]" {
		t.Errorf("the child has a device of its own, and the addresses are %s and %s", on("fake0"), on("ipsec0"))
	}
	// The machine may give and take in the midst of a reload.
	text := strings.Replace(own, "[daemon]\ndns = \"dnsmasq\"\ndns_file = \"/tmp/postern.servers\"", "[daemon]\ndns = \"file\"", 1)
	m := &reloadingMachine{machine: r.loop.m, then: ike.Output{Kind: ike.OutAssign, Assigned: &ike.Assigned{Conn: "gw", Addrs: addrs("10.9.0.7"), DNS: addrs("10.1.0.53")}}}
	_ = r.loop.do(func() { r.loop.m = m })
	reload(text)
	if on("ipsec0") != "[10.255.0.1/30 10.9.0.7/32]" {
		t.Errorf("what is assigned during a reload: %s", on("ipsec0"))
	}
	r.wantNames("in a file", "file /etc/resolv.conf fake0 [10.1.0.53] map[]")
	m.then = ike.Output{Kind: ike.OutUnassign, Name: "gw"}
	i, j := strings.Index(text, "[connections.gw]"), strings.Index(text, "[secrets.x]")
	reload(text[:i] + text[j:])
	if on("fake0") != "[]" || len(r.d.spd.policies()) != 0 {
		t.Errorf("the connection is gone, and its addresses are %s, the policies %v", on("fake0"), r.d.spd.policies())
	}
	r.wantNames("at the end", "file /etc/resolv.conf fake0 [] map[]")
	_ = r.loop.do(func() {
		if len(r.loop.assigned.of) != 0 {
			t.Errorf("what is assigned to connections that are gone is remembered: %v", r.loop.assigned.of)
		}
		r.loop.m = m.machine
	})
}

// reloadingMachine has one more output after each configuration.
type reloadingMachine struct {
	machine
	then ike.Output
	due  bool
}

func (m *reloadingMachine) Configure(now ike.Time, cfg ike.Config) error {
	m.due = true
	return m.machine.Configure(now, cfg)
}

func (m *reloadingMachine) Next() (ike.Output, bool) {
	if m.due {
		m.due = false
		return m.then, true
	}
	return m.machine.Next()
}

// What manages name servers may hang or fail without holding up the loop; and only the latest wish
// counts.
func TestNameServersDoNotHoldUpTheLoop(t *testing.T) {
	r := startRoamer(t, "", "", `remote_ts = ["0.0.0.0/0"]`, &fakeState{}, nil)
	wait := make(chan struct{})
	r.names.mu.Lock()
	r.names.wait, r.names.err = wait, fmt.Errorf("no such program")
	before := r.names.sets
	r.names.mu.Unlock()
	for i := range 50 {
		r.give(&ike.Assigned{Conn: "gw", Addrs: addrs("10.9.0.5"), DNS: addrs(fmt.Sprintf("10.1.0.%d", i+1))})
	}
	close(wait)
	r.wantNames("at last", "dnsmasq /tmp/postern.servers fake0 [10.1.0.50] map[]")
	if _, n := r.names.said(); n-before > 3 {
		t.Errorf("%d wishes were fulfilled, though only the last counts", n-before)
	}
	eventually(t, "the failure is logged", func() bool { return strings.Contains(strings.Join(r.log.all(), ""), "no such program") })
	if n := strings.Count(strings.Join(r.log.all(), ""), "no such program"); n != 1 {
		t.Errorf("the same failure is logged %d times", n)
	}
	r.names.mu.Lock()
	r.names.err = nil
	r.names.mu.Unlock()
}

// A file that others write loses our lines; they are put back.
func TestLinesInAFileComeBack(t *testing.T) {
	names := new(fakeNames)
	next := dnsTeller{set: names.set}
	next.again()
	w := dnsWish{how: config.DNSFile, file: "f", device: "d", all: addrs("10.9.0.1")}
	next.tell(w)
	next.tell(w)
	next.again()
	next.stop(dnsWish{how: config.DNSFile, file: "f", device: "d"})
	if got, n := names.said(); got != "file f d [] map[]" || n > 3 || n < 1 {
		t.Errorf("at the end %q after %d calls", got, n)
	}
	next.stop(w) // nothing is running any more
}

// What is in place is shown with the IKE SA.
func TestStatusShowsWhatIsAssigned(t *testing.T) {
	r := startRoamer(t, "", `dns_domains = ["plant.example"]`, `remote_ts = ["10.1.0.0/16"]`, &fakeState{}, nil)
	a := &ike.Assigned{Conn: "gw", Addrs: addrs("10.9.0.5", "fd09::5"), DNS: addrs("10.1.0.53"), Domains: []string{"plant.example"},
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")},
		EncDNS:  []ike.EncryptedDNS{{ADN: "dot.plant.example", Addrs: addrs("10.1.0.54"), ALPN: []string{"dot"}, Port: 8853}}}
	r.give(a)
	shown := func(sa *ike.SAInfo) string {
		m := new(control.Message)
		_ = r.loop.do(func() {
			v := r.loop.view(sa)
			v.Message(m, 0, true)
		})
		return m.String()
	}
	got := shown(&ike.SAInfo{Conn: "gw", Initiator: true})
	for _, want := range []string{`local-vips=["10.9.0.5" "fd09::5"]`, `dns-servers=["10.1.0.53"]`, `dns-domains=["plant.example"]`,
		`enc-dns=["dot.plant.example 10.1.0.54 port 8853 dot"]`, `internal-subnets=["10.1.0.0/16"]`} {
		if !strings.Contains(got, want) {
			t.Errorf("list-sas lacks %s: %s", want, got)
		}
	}
	for _, sa := range []*ike.SAInfo{{Conn: "gw"}, {Conn: "other", Initiator: true}} {
		if got := shown(sa); strings.Contains(got, "10.9.0.5") {
			t.Errorf("another SA shows it, too: %s", got)
		}
	}
	r.give(&ike.Assigned{Conn: "gw"})
	if got := shown(&ike.SAInfo{Conn: "gw", Initiator: true}); strings.Contains(got, "10.9.0.5") {
		t.Errorf("it is shown when it is gone: %s", got)
	}
}
