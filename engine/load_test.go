package engine

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"postern/board"
	"postern/engine/config"
	"postern/engine/control"
	"postern/engine/control/controltest"
	"postern/ike"
)

// say runs a command and checks that its response begins with want.
func (r *running) say(command string, req *control.Message, want string) {
	r.t.Helper()
	m, ok := r.Command(command, req, func(string, *control.Message) error { return nil })
	if !ok || !strings.HasPrefix(m.String(), want) {
		r.t.Fatalf("%s answers %s, want %s", command, m, want)
	}
}

// plant is the connection of confA as a client loads it.
func plantConn(more ...string) *control.Message {
	return controltest.Message(append([]string{"plant.remote_addrs[]=192.0.2.2", "plant.version=2", "plant.local.auth=psk", "plant.local.id=a.example",
		"plant.remote.auth=psk", "plant.remote.id=b.example", "plant.children.net.local_ts[]=10.1.0.0/16,2001:db8:1::/48",
		"plant.children.net.remote_ts[]=10.2.0.0/16,2001:db8:2::/48", "plant.children.net.esp_proposals[]=aes128gcm16"}, more...)...)
}

func loadedSecret(owners string) *control.Message {
	return controltest.Message("id=plant", "type=IKE", "data=correct horse battery staple 42", "owners[]="+owners)
}

const ok = `success="yes"`

// numbers returns the unique numbers of the IKE SAs and of their CHILD SAs.
func (r *running) numbers() (s string) {
	_ = r.loop.do(func() {
		r.loop.m.List(func(sa *ike.SAInfo) bool {
			s += fmt.Sprintf("%s#%d", sa.Conn, sa.Unique)
			for i := range sa.Children {
				s += fmt.Sprintf(" %s#%d", sa.Children[i].Name, sa.Children[i].Unique)
			}
			return true
		})
	})
	return s
}

// What a client loads carries packets like what the file has. What is loaded beside it, credentials
// that go, errors, and a reload of the file leave its SAs alone; a changed child gets new ones, and
// what is unloaded ends.
func TestLoadedConnectionLives(t *testing.T) {
	wire := &fakeWire{}
	a := startEngine(t, wire.host("192.0.2.1"), parse(t, "[daemon]\nmtu = 1400\n"), board.Tiny)
	b := startEngine(t, wire.host("192.0.2.2"), parse(t, confB), board.Tiny)
	a.say("load-shared", loadedSecret("a.example,b.example"), ok)
	a.say("load-conn", plantConn(), ok)
	a.say("initiate", controltest.Message("child=net", "loglevel=-1"), ok)
	want := a.numbers()
	if want != "plant#1 net#1" {
		t.Fatalf("the SAs are %q", want)
	}
	secret := udp4(srcHost, dstHost, 1000, 502, 200)
	a.host.tun.in <- secret
	eventually(t, "a packet arrives", func() bool { return len(b.host.tun.packets()) == 1 })
	for _, step := range []struct {
		what string
		do   func()
	}{
		{"the same again", func() { a.say("load-conn", plantConn(), ok) }},
		{"another connection", func() {
			a.say("load-conn", controltest.Message("other.remote_addrs[]=192.0.2.9", "other.local.auth=psk", "other.remote.auth=psk", "other.children.x.remote_ts[]=10.9.0.0/16"), ok)
		}},
		{"no credentials", func() { a.say("clear-creds", nil, ok) }},
		{"the credentials again", func() { a.say("load-shared", loadedSecret("a.example,b.example"), ok) }},
		{"an error", func() { a.say("load-conn", plantConn("plant.children.net.nonsense=1"), `success="no"`) }},
		{"a connection without a peer's address that is to start", func() {
			a.say("load-conn", controltest.Message("bad.children.x.start_action=start", "bad.local.id=x", "bad.children.x.remote_ts[]=what"), `success="no"`)
		}},
		{"the file again", func() {
			if err := a.Reload(parse(t, "[daemon]\nmtu = 1400\n[log]\nike = \"debug\"\n")); err != nil {
				t.Fatal(err)
			}
		}},
		{"a file with a connection of the same name", func() {
			if a.Reload(parse(t, fmt.Sprintf(confA, "", "aes128gcm16", "none"))) == nil {
				t.Error("two connections have one name")
			}
		}},
		{"another lifetime", func() { a.say("load-conn", plantConn("plant.children.net.rekey_time=2h"), ok) }},
		{"one less", func() { a.say("unload-conn", controltest.Message("name=other"), ok) }},
	} {
		step.do()
		if got := a.numbers(); got != want {
			t.Fatalf("after %s the SAs are %q, were %q", step.what, got, want)
		}
	}
	a.say("get-conns", nil, `conns=["plant"]`)
	a.say("load-conn", plantConn("plant.children.net.replay_window=64"), ok)
	eventually(t, "the changed child's SA ends", func() bool { return !strings.Contains(a.numbers(), "net#1") })
	a.say("initiate", controltest.Message("child=net", "loglevel=-1"), ok)
	a.say("unload-conn", controltest.Message("name=plant"), ok)
	eventually(t, "the SAs of what is unloaded end", func() bool { return a.numbers() == "" && b.numbers() == "" })
	a.say("initiate", controltest.Message("child=net", "loglevel=-1"), `success="no" errmsg="CHILD_SA config 'net' not found"`)
}

// Only what is new is started: a child that was closed by hand stays closed when something else is
// loaded, and a start action begins with the connection that has it.
func TestLoadedStartActionsBegin(t *testing.T) {
	wire := &fakeWire{}
	a := startEngine(t, wire.host("192.0.2.1"), parse(t, ""), board.Tiny)
	startEngine(t, wire.host("192.0.2.2"), parse(t, confB), board.Tiny)
	a.say("load-shared", loadedSecret("b.example"), ok)
	a.say("load-conn", plantConn("plant.children.net.start_action=start"), ok)
	eventually(t, "it is up", func() bool { return a.numbers() == "plant#1 net#1" })
	a.say("terminate", controltest.Message("ike=plant", "loglevel=-1"), ok)
	// One whose peer refuses it gives up after the first attempt.
	a.say("load-shared", controltest.Message("id=wrong", "type=IKE", "data=not the secret of the peer", "owners[]=z.example,b.example"), ok)
	refused := plantConn("plant.children.net.start_action=start", "plant.local.id=z.example")
	a.say("load-conn", controltest.Message("refused.x=y"), `success="no"`)
	again := new(control.Message)
	*again.Section("refused") = *refused.Sub("plant")
	a.say("load-conn", again, ok)
	attempts := func() (n int) {
		for _, line := range a.log.all() {
			if strings.Contains(line, "conn=refused") && strings.Contains(line, `"connecting to the peer"`) {
				n++
			}
		}
		return n
	}
	eventually(t, "it has given up", func() bool {
		return strings.Contains(strings.Join(a.log.all(), ""), "not tried again") && !strings.Contains(a.numbers(), "#")
	})
	a.say("load-conn", controltest.Message("other.remote_addrs[]=192.0.2.9", "other.local.auth=psk", "other.remote.auth=psk", "other.children.x.remote_ts[]=10.9.0.0/16"), ok)
	a.say("load-shared", controltest.Message("id=z", "type=IKE", "data=some other secret 42", "owners[]=y.example"), ok)
	a.say("load-conn", again, ok)
	if got, n := a.numbers(), attempts(); got != "" || n != 1 {
		t.Errorf("what was closed or has given up is back: %q, %d attempts", got, n)
	}
	a.say("unload-conn", controltest.Message("name=refused"), ok)
	a.say("unload-conn", controltest.Message("name=plant"), ok)
	a.say("load-conn", plantConn("plant.children.net.start_action=start"), ok)
	eventually(t, "it is up again", func() bool { return strings.Contains(a.numbers(), "plant#") && strings.Contains(a.numbers(), " net#") })
}

// A trap that is installed by hand brings up the SA, one that is taken away does not any more, and
// both are shown.
func TestTrapsByHand(t *testing.T) {
	wire := &fakeWire{}
	a := startEngine(t, wire.host("192.0.2.1"), parse(t, ""), board.Tiny)
	startEngine(t, wire.host("192.0.2.2"), parse(t, confB), board.Tiny)
	a.say("load-shared", loadedSecret("b.example"), ok)
	a.say("load-conn", plantConn("plant.children.lan.mode=pass", "plant.children.lan.local_ts[]=10.1.0.0/16", "plant.children.lan.remote_ts[]=10.1.0.0/16",
		"plant.children.lan.start_action=trap"), ok)
	listed := func() string {
		_, list := a.command("list-policies", "trap", "yes", "pass", "yes", "drop", "yes")
		var names []string
		for _, l := range list {
			name, _, _ := strings.Cut(strings.TrimPrefix(l, "list-policy "), "{")
			names = append(names, name)
		}
		return strings.Join(names, " ")
	}
	if got := listed(); got != "plant/lan" {
		t.Errorf("policies at first: %q", got)
	}
	fate := func() string {
		resp, _ := a.command("test-policy", "src", "10.1.0.1", "dst", "10.2.0.1", "proto", "17", "sport", "1", "dport", "2")
		_, f, _ := strings.Cut(resp, "fate=")
		return f
	}
	if got := fate(); got != `"none"` { // as nobody has asked for the child
		t.Errorf("without a trap a packet has the fate %s", got)
	}
	a.say("uninstall", controltest.Message("child=net"), `success="no" errmsg="policy 'net' not found"`)
	a.say("install", controltest.Message("child=net"), ok)
	a.say("install", controltest.Message("child=net", "ike=plant"), ok)
	if got := listed(); got != "plant/net plant/lan" || fate() != `"acquire"` {
		t.Errorf("with the trap there is %q, and a packet has the fate %s", got, fate())
	}
	a.say("load-conn", controltest.Message("other.remote_addrs[]=192.0.2.9", "other.local.auth=psk", "other.remote.auth=psk", "other.children.x.remote_ts[]=10.9.0.0/16"), ok)
	if got := listed(); got != "plant/net plant/lan" {
		t.Errorf("after another connection was loaded there is %q", got)
	}
	a.say("uninstall", controltest.Message("child=lan"), ok)
	a.say("uninstall", controltest.Message("child=lan"), `success="no" errmsg="policy 'lan' not found"`)
	if got := listed(); got != "plant/net" {
		t.Errorf("without the exception there is %q", got)
	}
	a.say("install", controltest.Message("child=lan"), ok)
	a.host.tun.in <- udp4(srcHost, dstHost, 1000, 502, 200)
	eventually(t, "the packet brings up the SA", func() bool { return a.numbers() == "plant#1 net#1" })
	a.say("uninstall", controltest.Message("child=net"), ok)
	if got := listed(); got != "plant/lan" || a.numbers() != "plant#1 net#1" {
		t.Errorf("without the trap there is %q, and the SAs are %q", got, a.numbers())
	}
	a.say("unload-conn", controltest.Message("name=plant"), ok)
	if len(a.traps) != 0 {
		t.Errorf("of what was installed by hand is left %v", a.traps)
	}
}

// Changes come one at a time, and one that fails leaves the configuration as it is.
func TestLoadIsAllOrNothing(t *testing.T) {
	a := startEngine(t, (&fakeWire{}).host("192.0.2.1"), parse(t, fmt.Sprintf(confA, "", "aes128gcm16", "none")), board.Tiny)
	was := a.cfg
	boom := errors.New("boom")
	if err := a.load(ike.ChangeConns, func(*config.Loaded) (*config.Loaded, error) { return nil, boom }); err != boom {
		t.Errorf("a change that fails: %v", err)
	}
	// More connections than the board has room for.
	err := a.load(ike.ChangeConns, func(l *config.Loaded) (*config.Loaded, error) {
		var err error
		for i := 0; i < 2000 && err == nil; i++ {
			name := fmt.Sprintf("c%d", i)
			l, err = l.LoadConn(name, controltest.Message("remote_addrs[]=192.0.2.9", "local.auth=psk", "remote.auth=psk", fmt.Sprintf("children.x.remote_ts[]=10.%d.%d.0/24", i/250, i%250)))
		}
		return l, err
	})
	if err == nil {
		t.Error("2000 connections fit a tiny board")
	}
	if a.cfg != was || a.loads.now() != nil {
		t.Error("a change that failed has left something")
	}
}

func TestReplacedSecretsAreWipedButForPPKsThatWereReadAgain(t *testing.T) {
	cfg := func(keys ...string) *config.Config {
		c := new(config.Config)
		c.IKE.Secrets = []ike.Secret{{Key: []byte(keys[0])}}
		c.IKE.PPKs = []ike.PPK{{Key: []byte(keys[1])}}
		return c
	}
	was := cfg("the first secret", "the first PPK")
	wipeReplaced(was, cfg("the second secret", "the first PPK"))
	if s := string(was.IKE.Secrets[0].Key); strings.Trim(s, "\x00") != "" {
		t.Errorf("a secret that was replaced is still there: %q", s)
	}
	if s := string(was.IKE.PPKs[0].Key); s != "the first PPK" {
		t.Errorf("a PPK that was read again is %q: handshakes that began before fail", s)
	}
}
