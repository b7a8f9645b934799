package config

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

const virtualText = `
[connections.v]
remote_addrs = ["198.51.100.7"]
vips = ["0.0.0.0"]
[connections.v.children.net]
remote_ts = ["0.0.0.0/0", "::/0"]
[connections.v.children.lan]
local_ts = ["10.1.0.0/16", "dynamic[tcp]"]
remote_ts = ["10.2.0.0/16"]
[connections.w]
remote_addrs = ["198.51.100.8"]
[connections.w.children.net]
remote_ts = ["10.3.0.0/16"]
[secrets.a]
secret = "an example of 24 octets."
`

// The local selectors of a client's children are what the gateway has assigned, and never the
// host's own address, from which nothing would be let into the tunnel.
func TestLocalSelectorsAreTheAssignedAddresses(t *testing.T) {
	c := mustParse(t, virtualText)
	own := func(netip.Addr) (netip.Addr, error) { return netip.MustParseAddr("192.0.2.1"), nil }
	show := func(virtual func(string) []netip.Addr) string {
		var list []string
		for _, e := range c.SPDOf(own, virtual) {
			list = append(list, fmt.Sprintf("%s/%s %v own %v virtual %v", e.Conn, e.Child, e.LocalTS, e.Own, e.Virtual))
		}
		return strings.Join(list, "\n")
	}
	of := func(list ...string) func(string) []netip.Addr {
		return func(conn string) (out []netip.Addr) {
			if conn != "v" {
				t.Errorf("asked for the addresses of %s, which wants none", conn)
			}
			for _, a := range list {
				out = append(out, netip.MustParseAddr(a))
			}
			return out
		}
	}
	const w = "\nw/net [192.0.2.1/32] own true virtual false"
	for _, k := range []struct {
		name    string
		virtual func(string) []netip.Addr
		want    string
	}{
		{"assigned", of("10.9.0.5", "::"), "v/net [10.9.0.5/32 ::/128] own true virtual true\n" +
			"v/lan [10.1.0.0/16 10.9.0.5/32[tcp] ::/128[tcp]] own true virtual true" + w},
		{"not yet", of("0.0.0.0", "::"), "v/net [0.0.0.0/32 ::/128] own true virtual true\n" +
			"v/lan [10.1.0.0/16 0.0.0.0/32[tcp] ::/128[tcp]] own true virtual true" + w},
		{"nobody knows", nil, "v/net [] own true virtual true\nv/lan [] own true virtual true" + w},
	} {
		if got := show(k.virtual); got != k.want {
			t.Errorf("%s: the entries are\n%s\nwant\n%s", k.name, got, k.want)
		}
	}
}

func TestDNSProblems(t *testing.T) {
	for _, c := range []struct{ daemon, conn, child, want string }{
		{`dns = "dnsmasq"`, "", "", `dns "dnsmasq" needs a file of its own; name it`},
		{`dns = "unbound"`, "", "", `dns "unbound" is not known; use`},
		{`dns_file = "/etc/resolv.conf"`, "", "", `dns_file is not used with dns "none"; write dns = "file"`},
		{"dns = \"file\"\ndns_file = \"resolv.conf\"", "", "", `"resolv.conf" is no file; write a path from the root`},
		{"dns = \"file\"\ndns_file = \"/etc/a\\nb\"", "", "", `is no file`},
		{"", `dns_domains = ["plant.example"]`, "", `without vips the gateway of connection a is not asked for name servers`},
		{"", "vips = [\"::\"]\ndns_domains = [\"a/b\"]", "", `"a/b" is no domain; write names`},
		{"", "vips = [\"::\"]\ndns_domains = [\"a..b\"]", "", `"a..b" is no domain`},
		{"", `vips = ["10.9.0.5/24"]`, "", `"10.9.0.5/24" is no address to ask for`},
		{"", `vips = ["0.0.0.0", "0.0.0.0"]`, "", `"0.0.0.0" is no address to ask for, or is there twice`},
		{"", `vips = ["ff02::1"]`, "", `"ff02::1" is no address to ask for`},
	} {
		text := fmt.Sprintf(minimal, c.conn, c.child)
		if c.daemon != "" {
			text = "[daemon]\n" + c.daemon + "\n" + text
		}
		_, err := newLoader("test.toml", noSecretFiles).load([]byte(text))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s %s: %v, want %q", c.daemon, c.conn, c.child, err, c.want)
		}
	}
	if c := mustParse(t, "[daemon]\ndns = \"file\"\n"+fmt.Sprintf(minimal, "", "")); c.Daemon.DNSFile != defaultResolvConf {
		t.Errorf("without a name the file is %q, want %s", c.Daemon.DNSFile, defaultResolvConf)
	}
	w := mustParse(t, fmt.Sprintf(minimal, `vips = ["0.0.0.0"]`, `start_action = "trap"`)).Warnings()
	if len(w) != 1 || !strings.Contains(w[0].String(), "no packet of this host can start child c") {
		t.Errorf("a trap without an address to trap causes the warnings %v, want one", w)
	}
}

func TestDomainName(t *testing.T) {
	for text, want := range map[string]string{
		"Plant.EXAMPLE.": "plant.example", "a": "a", "_ldap._tcp.x": "_ldap._tcp.x", "xn--bcher-kva.example": "xn--bcher-kva.example",
		"": "", ".": "", "a..b": "", "-a.b": "", "a-.b": "", "a b": "", "a/10.0.0.1": "", "a\nserver=1.2.3.4": "", "a#b": "", "ä.example": "",
		strings.Repeat("a", 64): "", strings.Repeat("a.", 127) + "a": "",
		strings.Repeat("a.", 126) + "a": strings.Repeat("a.", 126) + "a",
	} {
		if got, ok := DomainName(text); got != want || ok != (want != "") {
			t.Errorf("DomainName(%q) = %q, %v; want %q", text, got, ok, want)
		}
	}
}
