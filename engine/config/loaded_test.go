package config

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/engine/control"
	"postern/ike"
)

// vm makes a message: values, lists ([]string) and sections (*control.Message) by their names.
func vm(pairs ...any) *control.Message {
	m := new(control.Message)
	for i := 0; i < len(pairs); i += 2 {
		name := pairs[i].(string)
		switch v := pairs[i+1].(type) {
		case string:
			m.Set(name, v)
		case []string:
			m.List(name, v...)
		case *control.Message:
			s := m.Section(name)
			*s = *v
		}
	}
	return m
}

// pskConn is a connection as swanctl sends it.
func pskConn(child *control.Message) *control.Message {
	return vm("version", "2", "remote_addrs", []string{"192.0.2.2"},
		"local", vm("auth", "psk", "id", "a.example"), "remote", vm("auth", "psk", "id", "b.example"),
		"children", vm("net", child))
}

func emptyFile(t *testing.T) *Config {
	t.Helper()
	c, err := Parse("test.toml", nil, ike.AESFirst)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mustLoad(t *testing.T) func(l *Loaded, err error) *Loaded {
	return func(l *Loaded, err error) *Loaded {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
}

func TestLoadedConnectionWithAPresharedKey(t *testing.T) {
	must := mustLoad(t)
	l := must((&Loaded{}).LoadShared(vm("id", "ike-1", "type", "IKE", "data", "a key of more than 16 octets", "owners", []string{"a.example", "b.example"})))
	l = must(l.LoadConn("home", pskConn(vm("local_ts", []string{"10.1.0.0/16"}, "remote_ts", "10.2.0.0/16, 10.3.0.0/16", "start_action", "trap|start"))))
	c, err := emptyFile(t).With(l)
	if err != nil {
		t.Fatal(err)
	}
	conn := c.Conn("home")
	if conn == nil || len(conn.Children) != 1 {
		t.Fatalf("connections are %v", c.IKE.Conns)
	}
	ch := conn.Children[0]
	if conn.KeyingTries != 1 || conn.DPDDelay != 0 || conn.RekeyTime != 4*time.Hour || conn.OverTime != 24*time.Minute || ch.RekeyTime != time.Hour {
		t.Errorf("defaults are not strongSwan's: %+v", conn)
	}
	if len(ch.RemoteTS) != 2 || ch.StartAction != ike.StartStart || ch.CloseAction != ike.ActionClear || len(conn.LocalAuth) != 0 {
		t.Errorf("the child is %+v", ch)
	}
	if !slices.Equal(conn.RemoteAddrs, []netip.Prefix{netip.MustParsePrefix("192.0.2.2/32")}) {
		t.Errorf("remote_addrs are %v", conn.RemoteAddrs)
	}
	if len(c.IKE.Secrets) != 1 || c.IKE.Secrets[0].Fits(conn.LocalID, conn.RemoteID) == 0 {
		t.Errorf("the secret does not fit: %v", c.IKE.Secrets)
	}
	if got := c.SPD(nil); len(got) != 1 || got[0].Conn != "home" {
		t.Errorf("the SPD is %v", got)
	}
}

func TestProblemOfLoadedNamesTheElement(t *testing.T) {
	l := mustLoad(t)((&Loaded{}).LoadConn("home", pskConn(vm("local_ts", []string{"10.1.0.0/161"}))))
	_, err := emptyFile(t).With(l)
	if err == nil || !strings.HasPrefix(err.Error(), "connections.home.children.net.local_ts: ") {
		t.Errorf("the error is %v", err)
	}
}

// strongSwan takes the names of keys in any letter case.
func TestKeysInAnyLetterCase(t *testing.T) {
	must := mustLoad(t)
	m := pskConn(vm("Rekey_Time", "77m", "REMOTE_TS", []string{"10.2.0.0/16"}))
	m.Set("DPD_Delay", "9")
	c, err := emptyFile(t).With(must((&Loaded{}).LoadConn("c", m)))
	if err != nil {
		t.Fatal(err)
	}
	conn := c.IKE.Conns[0]
	if conn.DPDDelay != 9*time.Second || conn.Children[0].RekeyTime != 77*time.Minute || conn.Children[0].RemoteTS[0].Dynamic {
		t.Errorf("read as %+v with %+v", conn, conn.Children[0])
	}
	m.Set("dpd_delay", "10")
	if _, err := emptyFile(t).With(must((&Loaded{}).LoadConn("c", m))); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("the same key in two ways: %v", err)
	}
}

// Where nothing more can be loaded, what is there can still be replaced.
func TestReplacedWhereTheTableIsFull(t *testing.T) {
	l := &Loaded{pools: make([]loadedSection, maxLoaded)}
	l.pools[7].name = "seven"
	must := mustLoad(t)
	n := must(l.LoadPool("seven", vm("addrs", "10.8.0.0/24")))
	if len(n.pools) != maxLoaded || n.pools[7].m == nil || l.pools[7].m != nil {
		t.Errorf("%d pools, the replaced one %v", len(n.pools), n.pools[7].m)
	}
	if _, err := l.LoadPool("eight", vm("addrs", "10.9.0.0/24")); err == nil || !strings.Contains(err.Error(), "no more can be") {
		t.Errorf("one more: %v", err)
	}
}
