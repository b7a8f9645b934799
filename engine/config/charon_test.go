package config

import (
	"slices"
	"strings"
	"testing"

	"postern/engine/control"
)

// viciCase is a key with a value, and what becomes of it: "" if it is taken, or a part of the
// reason why not.
type viciCase struct {
	where, key string
	value      any
	want       string
}

const refused = "cannot be honoured"

// viciCases has each key that swanctl.conf(5) of strongSwan 5.9 describes, and those that 6.0 has
// beside them; conn, local, remote, child, pool and authority are the sections.
var viciCases = []viciCase{
	{"conn", "version", "0", ""}, {"conn", "version", "2", ""}, {"conn", "version", "1", refused},
	{"conn", "local_addrs", []string{"%any"}, ""}, {"conn", "local_addrs", "192.0.2.1, 2001:db8::1", ""},
	{"conn", "local_addrs", []string{"0.0.0.0/0", "::/0"}, ""}, {"conn", "local_addrs", "10.0.0.0/8", ""},
	{"conn", "local_addrs", "10.0.0.1-10.0.0.9, 192.0.2.1/32", ""}, {"conn", "local_addrs", "10.0.0.9-10.0.0.1", "no range"}, {"conn", "local_addrs", "10.0.0.0/99", "not an address"}, {"conn", "local_addrs", "gw.example", refused},
	{"conn", "remote_addrs", "%any", ""}, {"conn", "remote_addrs", []string{"10.0.0.1-10.0.0.9", "peer.example", "10.9.0.1/16"}, ""},
	{"conn", "remote_addrs", "10.0.0.9-10.0.0.1", "no range"}, {"conn", "remote_addrs", "1.2.3", "not an address"},
	{"conn", "local_port", "500", ""}, {"conn", "local_port", "0", ""}, {"conn", "local_port", "4000", refused}, {"conn", "local_port", "4500", refused},
	{"conn", "remote_port", "4500", ""}, {"conn", "remote_port", "70000", "out of range"}, {"conn", "remote_port", "x", "no number"},
	{"conn", "proposals", []string{"aes128-sha256-modp3072", "default"}, ""}, {"conn", "proposals", "aes256gcm16-prfsha384-ecp384,default", ""},
	{"conn", "proposals", "aes128-sha256-modp2048s256", `"modp2048s256"`},
	{"conn", "vips", "0.0.0.0, ::", ""}, {"conn", "vips", []string{"10.9.0.7"}, ""}, {"conn", "vips", "any", "no address to ask for"},
	{"conn", "aggressive", "no", ""}, {"conn", "aggressive", "yes", refused},
	{"conn", "pull", "yes", ""}, {"conn", "pull", "no", refused},
	{"conn", "dscp", "000000", ""}, {"conn", "dscp", "101110", refused},
	{"conn", "encap", "yes", ""}, {"conn", "encap", "maybe", "neither yes nor no"},
	{"conn", "mobike", "no", ""}, {"conn", "mobike", "1", ""},
	{"conn", "dpd_delay", "30s", ""}, {"conn", "dpd_delay", "0x1e", ""}, {"conn", "dpd_delay", "often", "not a duration"},
	{"conn", "dpd_timeout", "150s", ""}, {"conn", "dpd_timeout", "late", "not a duration"},
	{"conn", "fragmentation", "yes", ""}, {"conn", "fragmentation", "force", ""}, {"conn", "fragmentation", "accept", ""}, {"conn", "fragmentation", "some", "not known"},
	{"conn", "childless", "force", ""}, {"conn", "childless", "x", "not known"},
	{"conn", "send_certreq", "no", ""}, {"conn", "send_cert", "always", ""}, {"conn", "send_cert", "Never", ""}, {"conn", "send_cert", "x", "not known"},
	{"conn", "ppk_id", "site-a", ""}, {"conn", "ppk_required", "no", ""},
	{"conn", "keyingtries", "0", ""}, {"conn", "keyingtries", "-1", "out of range"},
	{"conn", "unique", "replace", ""}, {"conn", "unique", "KEEP", ""}, {"conn", "unique", "x", "not known"},
	{"conn", "reauth_time", "1 d", ""}, {"conn", "rekey_time", "14400", ""}, {"conn", "over_time", "10m", ""}, {"conn", "rand_time", "0", ""},
	{"conn", "pools", "clients, dhcp", ""},
	{"conn", "if_id_in", "0", ""}, {"conn", "if_id_in", "42", refused}, {"conn", "if_id_out", "0", ""}, {"conn", "if_id_out", "%unique", refused},
	{"conn", "mediation", "no", ""}, {"conn", "mediation", "yes", refused},
	{"conn", "mediated_by", "mediator", refused}, {"conn", "mediation_peer", "peer", refused},

	{"local", "round", "1", ""}, {"local", "round", "first", "no number"},
	{"local", "auth", "psk", ""}, {"local", "auth", "pubkey", ""}, {"local", "auth", "ike:pubkey-sha256", ""}, {"local", "auth", "rsa-2048-sha256", ""},
	{"local", "auth", "eap-mschapv2", refused}, {"local", "auth", "xauth", refused}, {"local", "auth", "ecdsa-384", ""}, {"local", "auth", "pubkey-384", refused}, {"local", "auth", "x", "not known"},
	{"local", "id", "CN=gw", ""}, {"local", "id", "%any", ""}, {"local", "id", "ipv4:x", "not an address"},
	{"local", "certs", []string{"nonsense"}, "no certificate"}, {"local", "pubkeys", []string{"nonsense"}, "no public key"},
	{"local", "eap_id", "a", refused}, {"local", "aaa_id", "a", refused}, {"local", "xauth_id", "a", refused},
	{"local", "cert1", vm("file", "/nowhere/cert.pem"), "cannot read"}, {"local", "cert1", vm("handle", "00"), refused},
	{"local", "cert1", vm("slot", "0"), refused}, {"local", "cert1", vm("module", "x"), refused}, {"local", "cert1", vm("name", "x"), "unknown key"},

	{"remote", "round", "2", ""}, {"remote", "id", "*.example", ""}, {"remote", "id", "%any", ""},
	{"remote", "auth", "pubkey-sha256-sha512", ""}, {"remote", "auth", "rsa-4096", ""}, {"remote", "auth", "rsa-3072-sha256-sha384-ecdsa-256-sha256-sha384", ""},
	{"remote", "auth", "rsa-3072-sha256-ecdsa-256-sha384", refused}, {"remote", "auth", "rsa/pss-ecdsa", refused}, {"remote", "auth", "rsa-ecdsa-x", "not known"}, {"remote", "auth", "eap", refused},
	{"remote", "eap_id", "a", refused}, {"remote", "groups", "g", refused}, {"remote", "cert_policy", "1.2.3, 1.3.6.1", ""}, {"remote", "cert_policy", "1.2.x", "no object identifier"},
	{"remote", "certs", "nonsense", "no certificate"}, {"remote", "cacerts", "nonsense", "no certificate"}, {"remote", "pubkeys", "nonsense", "no public key"},
	{"remote", "cert-a", vm("file", "/nowhere/cert.pem"), "cannot read"}, {"remote", "cert-a", vm("handle", "00"), refused},
	{"remote", "cacert-a", vm("file", "/nowhere/cert.pem"), "cannot read"}, {"remote", "cacert-a", vm("handle", "00"), refused},
	{"remote", "cacert-a", vm("slot", "00"), refused}, {"remote", "cacert-a", vm("module", "00"), refused},
	{"remote", "ca_id", "CN=ca", ""}, {"remote", "ca_id", "CN", ""}, {"remote", "ca_id", "ipv4:x", "not an address"}, {"remote", "revocation", "strict", ""}, {"remote", "revocation", "IfUri", ""}, {"remote", "revocation", "x", "not known"},

	{"child", "ah_proposals", "sha256", ""}, {"child", "ah_proposals", []string{"default"}, ""}, {"child", "ah_proposals", "aes128", "cipher"},
	{"child", "esp_proposals", "aes128gcm16-x25519-esn, default", ""}, {"child", "esp_proposals", "aes256gcm16-sha256-modp3072", ""}, {"child", "esp_proposals", "3des-sha1", `"3des"`},
	{"child", "sha256_96", "no", ""}, {"child", "sha256_96", "yes", refused},
	{"child", "local_ts", "dynamic[tcp/http]", ""}, {"child", "local_ts", "10.1.0.5/16[udp/1000-2000], 10.7.0.0/16", ""}, {"child", "local_ts", "10.1.0.0/16[/53]", "[tcp/53]"}, {"child", "local_ts", "dynamic[tcp/+80]", "not a port"}, {"child", "local_ts", "dynamic[udp/no-such-service]", "not a port"},
	{"child", "local_ts", []string{"10.1.0.0-10.1.0.9[gre]"}, ""}, {"child", "remote_ts", "0.0.0.0/0, 0::0/0", ""}, {"child", "remote_ts", "%dynamic", ""}, {"child", "remote_ts", "x", "not an address"},
	{"child", "rekey_time", "1h", ""}, {"child", "life_time", "2h", ""}, {"child", "rand_time", "1m", ""},
	{"child", "rekey_bytes", "500 M", ""}, {"child", "life_bytes", "1g", ""}, {"child", "rand_bytes", "1k", ""}, {"child", "rekey_bytes", "x", "not a number"},
	{"child", "rekey_packets", "1000000", ""}, {"child", "life_packets", "1100000", ""}, {"child", "rand_packets", "10", ""}, {"child", "rekey_packets", "5", ""}, {"child", "life_packets", "5", ""}, {"child", "rekey_bytes", "1", ""},
	{"child", "mode", "tunnel", ""}, {"child", "mode", "TRANSPORT", ""}, {"child", "mode", "beet", ""}, {"child", "mode", "pass", ""}, {"child", "mode", "drop", ""},
	{"child", "mode", "transport_proxy", refused}, {"child", "mode", "x", "not known"},
	{"child", "policies", "yes", ""}, {"child", "policies", "no", refused}, {"child", "policies_fwd_out", "yes", ""}, {"child", "policies_fwd_out", "x", "neither"},
	{"child", "dpd_action", "clear", ""}, {"child", "dpd_action", "none", ""}, {"child", "dpd_action", "trap", ""}, {"child", "dpd_action", "restart", ""}, {"child", "dpd_action", "x", "not known"},
	{"child", "ipcomp", "no", ""}, {"child", "ipcomp", "yes", refused},
	{"child", "inactivity", "0s", ""}, {"child", "inactivity", "5m", ""},
	{"child", "reqid", "0", ""}, {"child", "reqid", "7", refused},
	{"child", "priority", "0", ""}, {"child", "priority", "100", ""}, {"child", "priority", "x", "no number"},
	{"child", "interface", "eth0", refused},
	{"child", "mark_in", "0/0x00000000", ""}, {"child", "mark_in", "42", refused}, {"child", "mark_in_sa", "no", ""}, {"child", "mark_in_sa", "yes", refused},
	{"child", "mark_out", "0", ""}, {"child", "mark_out", "%unique", refused},
	{"child", "set_mark_in", "0", ""}, {"child", "set_mark_in", "%same", refused}, {"child", "set_mark_out", "0/0", ""}, {"child", "set_mark_out", "1", refused},
	{"child", "if_id_in", "0", ""}, {"child", "if_id_in", "%unique", refused}, {"child", "if_id_out", "0", ""}, {"child", "if_id_out", "5", refused},
	{"child", "label", "x", refused}, {"child", "label_mode", "system", ""}, {"child", "label_mode", "selinux", refused},
	{"child", "tfc_padding", "0", ""}, {"child", "tfc_padding", "1200", ""}, {"child", "tfc_padding", "mtu", ""}, {"child", "tfc_padding", "x", "not known"},
	{"child", "replay_window", "0", ""}, {"child", "replay_window", "32", ""}, {"child", "replay_window", "1024", ""}, {"child", "replay_window", "9999", "out of range"},
	{"child", "hw_offload", "no", ""}, {"child", "hw_offload", "auto", ""}, {"child", "hw_offload", "yes", refused}, {"child", "hw_offload", "crypto", refused}, {"child", "hw_offload", "packet", refused},
	{"child", "copy_df", "no", ""}, {"child", "copy_ecn", "no", ""}, {"child", "copy_dscp", "yes", ""}, {"child", "copy_dscp", "x", "not known"},
	{"child", "start_action", "none", ""}, {"child", "start_action", "trap", ""}, {"child", "start_action", "start", ""}, {"child", "start_action", "trap|start", ""}, {"child", "start_action", "x", "not known"},
	{"child", "close_action", "none", ""}, {"child", "close_action", "clear", ""}, {"child", "close_action", "trap", ""}, {"child", "close_action", "start", ""}, {"child", "close_action", "restart", ""},
	{"child", "per_cpu_sas", "yes", ""}, {"child", "per_cpu_sas", "encap", refused},

	{"pool", "addrs", "10.8.0.0/24", ""}, {"pool", "addrs", "10.8.0.5/24", ""}, {"pool", "addrs", "10.8.0.10-10.8.0.20", ""}, {"pool", "addrs", "x", "not an address"},
	{"pool", "dns", "10.1.0.1, 2001:db8::53", ""}, {"pool", "dns", "x", "not an address"}, {"pool", "nbns", []string{"10.1.0.2"}, ""},
	{"pool", "subnet", "10.1.0.0/16", ""}, {"pool", "split_include", "10.2.0.0/16", ""}, {"pool", "split_exclude", "10.3.0.0/16", refused},
	{"pool", "dhcp", "10.1.0.3", refused}, {"pool", "netmask", "255.255.255.0", refused}, {"pool", "server", "10.1.0.4", refused}, {"pool", "25", "x", refused},

	{"authority", "cacert", "nonsense", "no certificate"}, {"authority", "file", "/nowhere/ca.pem", "cannot read"}, {"authority", "handle", "00", refused},
	{"authority", "slot", "0", refused}, {"authority", "module", "x", refused},
	{"authority", "crl_uris", "ftp://x", "cannot be used"}, {"authority", "ocsp_uris", []string{"ldap://x"}, "cannot be used"}, {"authority", "cert_uri_base", "http://x/", refused},
}

// viciPaths are the paths in the schema of the sections of viciCases.
var viciPaths = map[string]*section{"conn": connSection, "local": localSection, "remote": remoteSection, "child": childSection, "pool": poolSection, "authority": authoritySection}

// loadCase loads a message with nothing but one key that matters.
func loadCase(c *viciCase) (*Loaded, error) {
	m := vm(c.key, c.value)
	conn := func(child, local, remote *control.Message) *control.Message {
		return vm("remote_addrs", "192.0.2.2, 2001:db8::2", "local", local, "remote", remote, "children", vm("net", child))
	}
	psk := func() *control.Message { return vm("auth", "psk") }
	l := new(Loaded)
	switch c.where {
	case "conn":
		full := conn(vm(), psk(), psk())
		if c.key == "remote_addrs" {
			full = vm("local", psk(), "remote", psk(), "children", vm("net", vm()))
		}
		for _, e := range m.Elements() {
			switch e.Kind {
			case control.KindValue:
				full.Set(e.Name, e.Value)
			case control.KindList:
				full.List(e.Name, e.Items...)
			}
		}
		return l.LoadConn("c", full)
	case "local":
		return l.LoadConn("c", conn(vm(), m, psk()))
	case "remote":
		return l.LoadConn("c", conn(vm(), psk(), m))
	case "child":
		return l.LoadConn("c", conn(m, psk(), psk()))
	case "pool":
		if c.key != "addrs" {
			m.Set("addrs", "10.8.0.0/24")
		}
		return l.LoadPool("p", m)
	}
	return l.LoadAuthority("a", m)
}

func TestEveryKeyOfSwanctlConf(t *testing.T) {
	file := emptyFile(t)
	for i := range viciCases {
		c := &viciCases[i]
		l, err := loadCase(c)
		if err == nil {
			_, err = file.With(l)
		}
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %s = %v is refused: %v", c.where, c.key, c.value, err)
		case c.want != "" && err == nil:
			t.Errorf("%s: %s = %v is taken, and should be refused: %s", c.where, c.key, c.value, c.want)
		case c.want != "" && (!strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.key)):
			t.Errorf("%s: %s = %v: the error should name the element and say %q, and is %v", c.where, c.key, c.value, c.want, err)
		}
	}
}

func TestNoKeyOfTheDialectIsWithoutATest(t *testing.T) {
	for where, sec := range viciPaths {
		for _, k := range viciKeys[sec.path] {
			if k.name != "key" && !slices.ContainsFunc(viciCases, func(c viciCase) bool { return c.where == where && c.key == k.name }) {
				t.Errorf("%s of %s is in the table of the dialect and in no test", k.name, sec.path)
			}
		}
	}
}

func TestUnknownElementsAreNamed(t *testing.T) {
	for _, c := range []struct {
		m    *control.Message
		want string
	}{
		{vm("remote_addr", "192.0.2.1"), "connections.c.remote_addr: unknown key remote_addr: did you mean remote_addrs?"},
		{vm("children", vm("net", vm("remote_tss", "x"))), "connections.c.children.net.remote_tss: "},
		{vm("children", "x"), "connections.c.children: "},
		{vm("mobike", vm()), "connections.c.mobike: "},
		{vm("mobike", []string{"yes", "no"}), "connections.c.mobike: "},
		{vm("local", "x"), "connections.c.local: "},
		{vm("version", "2", "version2", "x"), "connections.c.version2: "},
	} {
		l, err := (&Loaded{}).LoadConn("c", c.m)
		if err == nil {
			_, err = emptyFile(t).With(l)
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: the error is %v, want %q in it", c.m, err, c.want)
		}
	}
}
