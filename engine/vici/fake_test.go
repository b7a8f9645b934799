package vici

import (
	"strings"
	"testing"
	"time"

	"postern/engine/config"
	"postern/engine/control"
	"postern/engine/log"
	"postern/esp"
	"postern/ike"
	"postern/ike/pki"
)

// fakeDaemon is a daemon without tunnels: its configuration is real, what the machine would do is
// noted down.
type fakeDaemon struct {
	t        *testing.T
	file     *config.Config
	cfg      *config.Config
	loaded   *config.Loaded
	how      []ike.Change // of each load
	pools    []ike.PoolInfo
	policies []Policy
	traps    map[string]bool
	said     []string // to the machine
	sas      []ike.SAInfo
	fetched  map[pki.FetchKind][]byte
	flushed  []pki.FetchKind
	stopping error
	reload   error
}

// newFake returns a daemon with the configuration of a file.
func newFake(t *testing.T, toml string) *fakeDaemon {
	t.Helper()
	cfg, err := config.Parse("test.toml", []byte(toml), ike.AESFirst)
	if err != nil {
		t.Fatal(err)
	}
	return &fakeDaemon{t: t, file: cfg, cfg: cfg, traps: map[string]bool{}, fetched: map[pki.FetchKind][]byte{}}
}

func (d *fakeDaemon) Do(f func(Loop)) error {
	if d.stopping == nil {
		f(fakeLoop{d})
	}
	return d.stopping
}
func (d *fakeDaemon) About() About           { return About{Version: "1.2.3", HalfOpen: 3, Workers: 2} }
func (d *fakeDaemon) Busy() int              { return 1 }
func (d *fakeDaemon) Counters() []Counter    { return []Counter{{"packets", 7}} }
func (d *fakeDaemon) Reload() error          { return d.reload }
func (d *fakeDaemon) Log() *log.Logger       { return log.New(d.t.Output(), log.Error) }
func (d *fakeDaemon) Loaded() *config.Loaded { return d.loaded }

func (d *fakeDaemon) Load(how ike.Change, change func(*config.Loaded) (*config.Loaded, error)) error {
	l, err := change(d.loaded)
	if err != nil {
		return err
	}
	cfg, err := d.file.With(l)
	if err != nil {
		return err
	}
	d.cfg, d.loaded, d.how = cfg, l, append(d.how, how)
	return nil
}

type fakeLoop struct{ d *fakeDaemon }

func (l fakeLoop) Now() time.Duration     { return time.Hour }
func (l fakeLoop) Config() *config.Config { return l.d.cfg }
func (l fakeLoop) List(visit func(*ike.SAInfo) bool) {
	for i := range l.d.sas {
		if !visit(&l.d.sas[i]) {
			return
		}
	}
}
func (l fakeLoop) View(sa *ike.SAInfo) SA { return SA{SAInfo: *sa} }
func (l fakeLoop) Manual() []SA           { return nil }
func (l fakeLoop) Command(c ike.Command, done func(error)) uint64 {
	said := c.Conn + "/" + c.Child
	if c.Bare {
		said += " alone"
	}
	l.d.said = append(l.d.said, said)
	done(nil)
	return 1
}
func (l fakeLoop) Forget(uint64)                        {}
func (l fakeLoop) Policies() []Policy                   { return append([]Policy(nil), l.d.policies...) }
func (l fakeLoop) Entries() []Entry                     { return nil }
func (l fakeLoop) Fate(*esp.Flow, bool) Fate            { return Fate{What: control.FateNone} }
func (l fakeLoop) Leases(func(ike.Lease) bool)          {}
func (l fakeLoop) Usage() Usage                         { return Usage{} }
func (l fakeLoop) Messages(func(string, *ike.Counters)) {}
func (l fakeLoop) ResetMessages(string, bool)           {}
func (l fakeLoop) Keys() ([]string, bool)               { return nil, false }
func (l fakeLoop) Flush(kind pki.FetchKind)             { l.d.flushed = append(l.d.flushed, kind) }
func (l fakeLoop) Pools(visit func(ike.PoolInfo)) {
	for _, p := range l.d.pools {
		visit(p)
	}
}

func (l fakeLoop) Revocation(visit func(pki.FetchKind, []byte)) {
	for _, kind := range []pki.FetchKind{pki.FetchCRL, pki.FetchOCSP} {
		if b := l.d.fetched[kind]; b != nil {
			visit(kind, b)
		}
	}
}

func (l fakeLoop) Install(conn, child string) (bool, error) {
	for _, c := range l.d.cfg.IKE.Conns {
		for _, ch := range c.Children {
			if (conn == "" || conn == c.Name) && ch.Name == child {
				l.d.traps[c.Name+"/"+child] = true
				return true, nil
			}
		}
	}
	return false, nil
}

func (l fakeLoop) Uninstall(conn, child string) (bool, error) {
	for k, on := range l.d.traps {
		if on && (conn == "" || k == conn+"/"+child) && strings.HasSuffix(k, "/"+child) {
			l.d.traps[k] = false
			return true, nil
		}
	}
	return false, nil
}

// run executes a command and returns its response and what it has streamed.
func (d *fakeDaemon) run(name string, req *control.Message) (resp string, events []string) {
	d.t.Helper()
	m, ok := Handler{D: d}.Command(name, req, func(event string, m *control.Message) error {
		if m != nil {
			events = append(events, event+" "+m.String())
		}
		return nil
	})
	if !ok {
		d.t.Fatalf("there is no command %s", name)
	}
	return m.String(), events
}

const fileConf = `
[connections.office]
remote_addrs = ["192.0.2.7"]
[connections.office.local]
id = "a.example"
[connections.office.remote]
id = "b.example"
[connections.office.children.net]
remote_ts = ["10.7.0.0/16"]
[secrets.x]
id = ["a.example", "b.example"]
secret = "0123456789abcdef0123456789"
`
