package config

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	"postern/board"
	"postern/engine/control"
	"postern/ike/pki/pkitest"
)

// Whatever was loaded before, and whatever of it With has kept, it returns what it returns to somebody
// who sees all of it for the first time: connections, policies, warnings and problems.
func TestWhatIsKeptIsWhatWouldBeMade(t *testing.T) {
	const text = `
[daemon]
interface = "tun9"
[connections.filed]
remote_addrs = ["192.0.2.200"]
local = { auth = "psk", id = "f.example" }
remote = { auth = "psk", id = "g.example" }
[connections.filed.children.net]
local_ts = ["10.1.0.0/16"]
remote_ts = ["10.200.0.0/24"]
[connections.filed.children.open]
mode = "pass"
local_ts = ["10.1.0.0/16"]
remote_ts = ["10.201.0.0/24"]
[secrets.s]
secret = "correct horse battery staple 42"
`
	file := func() *Config {
		c, err := Parse("postern.toml", []byte(text), 0)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	root := pkitest.Root("CA")
	sub := root.Issue(pkitest.Spec{Name: "sub", CA: true})
	own := []*pkitest.Cert{root.Issue(pkitest.Spec{Name: "gw.example"}), sub.Issue(pkitest.Spec{Name: "gw.example"})}
	r := rand.New(rand.NewPCG(5, 6))
	pick := func(words ...string) string { return words[r.IntN(len(words))] }
	names := []string{"c0", "c1", "c2", "c3", "c4", "c5", "filed"}
	name := func() string {
		if r.IntN(60) > 0 {
			return names[r.IntN(6)]
		}
		return names[6]
	}
	child := func() *control.Message {
		m := vm("local_ts", pick("10.1.0.0/16", "10.1.0.0/17", "dynamic"), "remote_ts", pick("10.2.0.0/16", "10.2.0.0/24", "10.3.0.0/24", "10.200.0.0/25", "dynamic"))
		switch r.IntN(12) {
		case 0:
			m.Set("mode", pick("pass", "drop"))
		case 1:
			m.Set("dpd_action", "restart")
		case 2:
			m.Set("priority", pick("1000", "2000"))
		case 3:
			m.Set("interface", pick("ipsec0", "ipsec1"))
			m.Set("interface_addrs", pick("10.255.0.1/30", "10.255.1.1/30"))
		case 4:
			m.Set("updown", pick("true", "/nowhere/updown"))
		case 5:
			m.Set("hostaccess", "yes")
		case 6:
			m.Set("copy_dscp", pick("no", "in"))
		case 7:
			m.Set("interface", pick("ipsec0", "tun9"))
		case 8:
			m.Set("start_action", pick("trap", "start"))
		}
		return m
	}
	conn := func() *control.Message {
		local := vm("auth", "psk", "id", pick("a.example", "b.example"))
		if i := r.IntN(8); i < 2 {
			local = vm("auth", "pubkey", "id", "gw.example", "certs", []string{string(own[i].Raw())})
			if r.IntN(2) == 0 {
				local = vm("auth", "pubkey", "id", "gw.example", "certs", []string{string(own[i].Raw()), string(sub.Raw())})
			}
		}
		m := vm("remote_addrs", pick("192.0.2.2", "192.0.2.3", "%any"), "local", local, "remote", vm("auth", pick("psk", "pubkey"), "id", pick("b.example", "peer.example")))
		switch r.IntN(10) {
		case 0:
			m.Set("vips", "0.0.0.0")
			m.Set("dns_domains", "plant.example")
		case 1:
			m.Set("pools", "p")
		case 2:
			m.Set("reauth_time", "2h")
		}
		kids := m.Section("children")
		for i := range 1 + r.IntN(2) {
			*kids.Section(fmt.Sprint("k", i)) = *child()
		}
		return m
	}
	kept := file()
	var l *Loaded
	refused, taken := 0, 0
	for step := range 1500 {
		next, err := l, error(nil)
		switch r.IntN(14) {
		case 0:
			next, err = l.UnloadConn(name())
		case 1:
			next = l.ClearCreds()
		case 2:
			next, err = l.LoadCert(vm("type", "X509", "flag", "CA", "data", string(root.Raw())))
		case 3:
			next, _, err = l.LoadKey(vm("type", "any", "data", string(own[r.IntN(2)].KeyPEM())))
		case 4:
			next, err = l.LoadCert(vm("type", "X509", "data", string([]*pkitest.Cert{own[0], own[1], sub}[r.IntN(3)].Raw())))
		case 5:
			next, err = l.LoadShared(vm("id", pick("x", "y"), "type", "IKE", "data", pick("short", "long enough for anybody"), "owners", []string{pick("a.example", "%any")}))
		case 6:
			next, err = l.LoadPool("p", vm("addrs", pick("10.9.0.0/24", "10.9.1.0/24")))
		default:
			next, err = l.LoadConn(name(), conn())
		}
		if err != nil {
			continue
		}
		got, gotErr := kept.With(next)
		want, wantErr := file().With(next)
		if fmt.Sprint(gotErr) != fmt.Sprint(wantErr) {
			t.Fatalf("step %d: %v\nwant %v", step, gotErr, wantErr)
		}
		if gotErr != nil {
			refused++
			continue
		}
		taken++
		small := board.Tiny
		small.ChildSAs, small.Policies = 3, 5
		type seen struct {
			IKE, SPD, Shunts, Devices, Warnings, Domains, Updowns, Headers any
			Small                                                          string
			Priorities                                                     []uint32
		}
		look := func(c *Config) (s seen) {
			s = seen{IKE: c.IKE, SPD: c.SPD(nil), Shunts: c.Shunts(), Devices: c.Devices(), Warnings: c.Warnings(), Domains: c.domains, Updowns: c.updowns, Headers: c.headers, Small: fmt.Sprint(c.Fits(small))}
			for i := range s.SPD.([]Entry) {
				e := &s.SPD.([]Entry)[i]
				s.Priorities = append(s.Priorities, c.Priority(e.Carrier))
				e.at = pos{}
			}
			return s
		}
		if a, b := look(got), look(want); !reflect.DeepEqual(a, b) {
			va, vb := reflect.ValueOf(a), reflect.ValueOf(b)
			for i := range va.NumField() {
				if !reflect.DeepEqual(va.Field(i).Interface(), vb.Field(i).Interface()) {
					t.Errorf("%s: %+v\nwant %+v", va.Type().Field(i).Name, va.Field(i), vb.Field(i))
				}
			}
			t.Fatalf("step %d: what was kept makes another configuration", step)
		}
		if r.IntN(20) > 0 { // as when the engine has refused it
			l = next
		}
	}
	if refused < 50 || taken < 500 {
		t.Errorf("%d changes were refused and %d taken", refused, taken)
	}
}

// A connection that stays the same is the same value, whatever else comes and goes; with other
// credentials it is another one.
func TestWhatStaysIsNotMadeAgain(t *testing.T) {
	must, file := mustLoad(t), emptyFile(t)
	conn := func(to string) *control.Message {
		return vm("remote_addrs", "192.0.2.2", "children", vm("net", vm("remote_ts", to)))
	}
	with := func(l *Loaded) *Config {
		c, err := file.With(l)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	l := must((*Loaded)(nil).LoadConn("a", conn("10.2.0.0/24")))
	first := with(l).Conn("a")
	l = must(l.LoadConn("b", conn("10.3.0.0/24")))
	l = must(l.LoadShared(vm("id", "x", "type", "IKE", "data", "long enough for anybody", "owners", []string{"%any"})))
	if with(l).Conn("a") != first {
		t.Error("it is made again for another connection or a secret")
	}
	if _, err := file.With(must(l.LoadConn("c", vm("nonsense", "1")))); err == nil || with(l).Conn("a") != first {
		t.Error("it is made again after one that was refused")
	}
	if l = must(l.LoadConn("a", conn("10.4.0.0/24"))); with(l).Conn("a") == first {
		t.Error("it was changed and is the same")
	}
	if len(file.read.memo.parts) != 2 {
		t.Errorf("%d parts are kept of 2 connections", len(file.read.memo.parts))
	}
	before := with(l).Conn("b")
	if l = must(l.LoadCert(vm("type", "X509", "flag", "CA", "data", string(pkitest.Root("CA").Raw())))); with(l).Conn("b") == before {
		t.Error("it is the same with another CA")
	}
}
