package config

import (
	"fmt"
	"testing"

	"postern/ike"
)

// Names of peers keep their place among the addresses, make the connection one that can
// call, and leave dynamic selectors to the CHILD SA.
func TestNamesOfPeers(t *testing.T) {
	c, err := Parse("x.toml", []byte(`
[secrets.s]
secret = "a secret that is long enough"
[connections.a]
remote_addrs = ["192.0.2.1", "gw.example.net", "backup", "10.0.0.0/8", "site-2.example."]
[connections.a.children.c]
start_action = "start"
local_ts = ["10.1.0.0/24"]
remote_ts = ["dynamic"]
`), ike.AESFirst)
	if err != nil {
		t.Fatal(err)
	}
	conn := c.IKE.Conns[0]
	if got, want := fmt.Sprint(conn.RemoteAddrs, conn.RemoteNames), "[192.0.2.1/32 10.0.0.0/8] [{gw.example.net 1} {backup 1} {site-2.example. 2}]"; got != want {
		t.Errorf("remote_addrs became %s, want %s", got, want)
	}
	if p := c.Policies(nil)[0]; len(p.RemoteTS) != 0 {
		t.Errorf("the policy protects %v, although the peer's address is not known yet", p.RemoteTS)
	}
	for text, name := range map[string]bool{"a": true, "a.b.": true, "1.example": true, "a_b.c": true,
		"1.2.3.4": false, "1.2.3": false, "a.1": false, "": false, ".": false, "a..b": false, "-a": false, "a b": false, "ä.example": false, "::1": false} {
		if isName(text) != name {
			t.Errorf("isName(%q) is %v", text, !name)
		}
	}
}

func TestTrapWithANameNeedsSelectors(t *testing.T) {
	const text = `
[secrets.s]
secret = "a secret that is long enough"
[connections.a]
remote_addrs = ["gw.example.net"]
[connections.a.children.c]
start_action = "trap"
remote_ts = ["10.2.0.0/24"]
`
	if _, err := Parse("x.toml", []byte(text), ike.AESFirst); err == nil {
		t.Error("a trap for packets from an address that nobody knows was accepted")
	}
	if _, err := Parse("x.toml", []byte(text+"local_ts = [\"10.1.0.0/24\"]\n"), ike.AESFirst); err != nil {
		t.Errorf("with selectors: %v", err)
	}
}
