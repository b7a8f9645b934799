package config

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"postern/engine/control"
	"postern/esp"
	"postern/ike"
)

// TestFileAndMessageMeanTheSame: what TOML says, and what VICI says in its words, becomes the same
// connection, once what differs by default is written down.
func TestFileAndMessageMeanTheSame(t *testing.T) {
	for _, c := range []struct {
		name, toml string
		m          *control.Message
	}{
		{"preshared key", `
remote_addrs = ["192.0.2.2"]
local_addrs = ["192.0.2.1"]
proposals = ["aes128-sha256-modp3072"]
dpd_delay = "10s"
keyingtries = 3
unique = "replace"
local = { auth = "psk", id = "a.example" }
remote = { auth = "psk", id = "b.example" }
[connections.c.children.net]
local_ts = ["10.1.0.0/16"]
remote_ts = ["10.2.0.0/16[tcp/502]", "10.3.0.1-10.3.0.9"]
esp_proposals = ["aes128gcm16-x25519", "aes128-sha256-esn"]
rekey_time = "30m"
rekey_bytes = "500M"
start_action = "start"
dpd_action = "restart"
close_action = "trap"
replay_window = 64
tfc_padding = "mtu"
copy_dscp = "no"
`, vm("version", "2", "remote_addrs", []string{"192.0.2.2"}, "local_addrs", "192.0.2.1", "proposals", []string{"aes128-sha256-modp3072"},
			"dpd_delay", "10", "keyingtries", "3", "unique", "replace",
			"local-1", vm("auth", "psk", "id", "a.example"), "remote-1", vm("auth", "psk", "id", "b.example"),
			"children", vm("net", vm("local_ts", "10.1.0.0/16", "remote_ts", []string{"10.2.0.0/16[tcp/502]", "10.3.0.1-10.3.0.9"},
				"esp_proposals", "aes128gcm16-x25519,aes128-sha256-esn", "rekey_time", "1800s", "rekey_bytes", "500m", "start_action", "trap|start",
				"dpd_action", "start", "close_action", "route", "replay_window", "32", "tfc_padding", "mtu", "copy_dscp", "no")))},
		{"client", `
remote_addrs = ["gw.example"]
vips = ["0.0.0.0"]
mobike = false
fragmentation = "accept"
reauth_time = "3h"
rekey_time = 0
over_time = "9m"
rand_time = "5m"
dpd_delay = 0
keyingtries = 1
send_certreq = false
local = { auth = "psk", id = "keyid:me" }
remote = { auth = "psk", id = "gw.example" }
[connections.c.children.all]
remote_ts = ["0.0.0.0/0"]
life_time = "70m"
rand_time = "3m"
start_action = "start"
dpd_action = "clear"
close_action = "clear"
per_cpu_sas = true
`, vm("remote_addrs", "gw.example", "vips", "0.0.0.0", "mobike", "no", "fragmentation", "accept", "reauth_time", "3h", "over_time", "540", "rand_time", "5m",
			"send_certreq", "0", "local", vm("auth", "psk", "id", "keyid:me"), "remote", vm("auth", "psk", "id", "gw.example"),
			"children", vm("all", vm("remote_ts", "0.0.0.0/0", "life_time", "70m", "rand_time", "180", "start_action", "start", "per_cpu_sas", "yes")))},
		{"gateway", `
dpd_delay = 0
keyingtries = 1
childless = "force"
ppk_id = "site"
local = { auth = "psk", id = "10.0.0.1" }
remote = { auth = "psk", id = "*.example" }
[connections.c.children.host]
mode = "transport"
ah_proposals = ["sha256"]
remote_ts = ["dynamic[gre]"]
[connections.c.children.two]
inactivity = "5m"
rekey_time = 0
life_time = 0
`, vm("childless", "force", "ppk_id", "site", "remote_addrs", "0.0.0.0/0, ::/0", "local", vm("auth", "psk", "id", "10.0.0.1"), "remote", vm("auth", "psk", "id", "*.example"),
			"children", vm("host", vm("mode", "transport", "ah_proposals", "sha256", "remote_ts", "dynamic[gre]"),
				"two", vm("inactivity", "300", "rekey_time", "0", "life_time", "0")))},
	} {
		text := "[secrets.s]\nsecret = \"a key of more than 16 octets\"\n[ppks.site]\nsecret = \"0x" + strings.Repeat("42", 32) + "\"\n[connections.c]\n"
		file, err := Parse("test.toml", []byte(text+c.toml), ike.AESFirst)
		if err != nil {
			t.Errorf("%s: the file: %v", c.name, err)
			continue
		}
		l, err := (&Loaded{}).LoadConn("c", c.m)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		both, err := emptyFile(t).With(l)
		if err != nil {
			t.Errorf("%s: the message: %v", c.name, err)
			continue
		}
		want, got := file.Conn("c"), both.Conn("c")
		for _, ch := range want.Children {
			ch.KeepIKE = ch.Inactivity > 0 // which the file does not know
		}
		if !reflect.DeepEqual(want, got) {
			t.Errorf("%s: the file gives %+v, the message %+v", c.name, *want, *got)
			for i := range min(len(want.Children), len(got.Children)) {
				t.Logf("children: %+v, %+v", *want.Children[i], *got.Children[i])
			}
		}
		for _, ch := range want.Children {
			a, _ := file.Headers("c", ch.Name)
			b, _ := both.Headers("c", ch.Name)
			if a == nil || b == nil || *a != *b {
				t.Errorf("%s: the headers of child %s are %v and %v", c.name, ch.Name, a, b)
			}
		}
		// What the printer of the file's reference knows is what both walk.
		if !slices.Equal(selectorTexts(file), selectorTexts(both)) {
			t.Errorf("%s: the policies are %v and %v", c.name, selectorTexts(file), selectorTexts(both))
		}
	}
}

func selectorTexts(c *Config) (out []string) {
	for _, e := range c.SPD(nil) {
		for _, s := range slices.Concat(e.LocalTS, e.RemoteTS) {
			out = append(out, e.Action.String()+" "+s.String())
		}
	}
	return out
}

func TestFileAndLoadedStayApart(t *testing.T) {
	must := mustLoad(t)
	const text = `
[connections.site]
remote_addrs = ["192.0.2.9"]
local = { id = "a" }
remote = { id = "b" }
children.net = { local_ts = ["10.1.0.0/24"], remote_ts = ["10.9.0.0/24"] }
[secrets.s]
secret = "a key of more than 16 octets"
[pools.p]
addrs = ["10.20.0.0/24"]
[manual.m]
local_addrs = ["192.0.2.1"]
remote_addrs = ["192.0.2.3"]
local_ts = ["10.1.5.0/24"]
remote_ts = ["10.5.0.0/24"]
esp_proposals = ["aes128-sha256"]
spi_in = 0x1000
spi_out = 0x1001
encr_key_in = "0x00112233445566778899aabbccddeeff"
encr_key_out = "0x00112233445566778899aabbccddeefe"
integ_key_in = "0x00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
integ_key_out = "0x00112233445566778899aabbccddeeff00112233445566778899aabbccddeefe"
`
	file, err := Parse("test.toml", []byte(text), ike.AESFirst)
	if err != nil {
		t.Fatal(err)
	}
	var none *Loaded
	same, err := file.With(none)
	if err != nil || len(same.IKE.Conns) != 1 || len(same.Manual) != 1 {
		t.Fatalf("with nothing loaded: %v, %v", same, err)
	}
	same.Manual[0].Wipe()
	if len(file.Manual[0].In.EncrKey) != 16 || file.Manual[0].In.EncrKey[1] != 0x11 {
		t.Error("the file's manual keys went with those of the result")
	}
	conn := pskConn(vm("local_ts", "10.1.0.0/24", "remote_ts", "10.2.0.0/24"))
	l := must(none.LoadConn("home", conn))
	l = must(l.LoadPool("q", vm("addrs", "10.21.0.0/24")))
	both, err := file.With(l)
	if err != nil {
		t.Fatal(err)
	}
	if len(both.IKE.Conns) != 2 || both.IKE.Conns[0].Name != "site" || both.IKE.Conns[1].Name != "home" || len(both.IKE.Pools) != 2 || len(both.Policies(nil)) != 2 {
		t.Errorf("together they are %v, pools %v", both.IKE.Conns, both.IKE.Pools)
	}
	if len(file.IKE.Conns) != 1 || len(file.IKE.Pools) != 1 || len(file.Policies(nil)) != 1 {
		t.Error("the file's own configuration has changed")
	}
	for _, c := range []struct {
		l    *Loaded
		want string
	}{
		{must(l.LoadConn("site", conn)), "connections.site: the file has a connection site as well"},
		{must(l.LoadConn("manual", conn)), "connections.manual: "},
		{must(l.LoadPool("p", vm("addrs", "10.22.0.0/24"))), "pools.p: the file has a pool p as well"},
	} {
		if _, err := file.With(c.l); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("the error is %v, want %q", err, c.want)
		}
	}
	again, err := file.With(must(l.UnloadConn("home")))
	if err != nil || len(again.IKE.Conns) != 1 {
		t.Errorf("after unload: %v, %v", again, err)
	}
	if n := len(l.ConnNames()); n != 1 {
		t.Errorf("unloading changed the value before: %d connections", n)
	}
}

// TestLoadedPolicyThatNeverDecidesIsAWarning: strongSwan loads connections whose packets an
// earlier one takes.
func TestLoadedPolicyThatNeverDecidesIsAWarning(t *testing.T) {
	must := mustLoad(t)
	child := func() *control.Message { return vm("local_ts", "10.1.0.0/24", "remote_ts", "10.2.0.0/24") }
	l := must((&Loaded{}).LoadConn("one", pskConn(child())))
	l = must(l.LoadConn("two", pskConn(child())))
	c, err := emptyFile(t).With(l)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(c.Warnings(), func(p Problem) bool {
		return strings.HasPrefix(p.String(), "connections.two.children.net.remote_ts: ") && strings.Contains(p.What, "child net of connection one")
	}) {
		t.Errorf("the warnings are %v", c.Warnings())
	}
}

func TestPriorityDecidesAboutTheOrder(t *testing.T) {
	must := mustLoad(t)
	conn := func(priority string, mode string) *control.Message {
		return pskConn(vm("local_ts", "10.1.0.0/24", "remote_ts", "10.2.0.0/24", "priority", priority, "mode", mode, "start_action", "trap"))
	}
	l := must((&Loaded{}).LoadConn("late", conn("0", "tunnel")))
	l = must(l.LoadConn("second", conn("200", "tunnel")))
	l = must(l.LoadConn("first", conn("100", "drop")))
	c, err := emptyFile(t).With(l)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range c.SPD(nil) {
		names = append(names, e.Conn)
	}
	if want := []string{"first", "second", "late"}; !slices.Equal(names, want) {
		t.Errorf("the order is %v, want %v", names, want)
	}
	if c.SPD(nil)[0].Action != esp.Discard {
		t.Errorf("the first entry is %v", c.SPD(nil)[0])
	}
}

func TestShuntOfAClientWaitsToBeInstalled(t *testing.T) {
	must := mustLoad(t)
	l := must((&Loaded{}).LoadConn("c", vm("children", vm("p", vm("mode", "pass", "remote_ts", "10.9.0.0/16")))))
	c, err := emptyFile(t).With(l)
	if err != nil || len(c.SPD(nil)) != 1 || !c.SPD(nil)[0].Parked {
		t.Errorf("without start_action the policies are %v, %v", c, err)
	}
	l = must(l.LoadConn("c", vm("children", vm("p", vm("mode", "pass", "remote_ts", "10.9.0.0/16", "start_action", "trap")))))
	if c, err = emptyFile(t).With(l); err != nil || len(c.SPD(nil)) != 1 || c.SPD(nil)[0].Parked || c.SPD(nil)[0].Action != esp.Bypass {
		t.Errorf("with start_action the policies are %v, %v", c, err)
	}
}
