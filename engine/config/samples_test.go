package config

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postern/board"
	"postern/esp"
	"postern/ike"
)

// samplesDir is the room of the samples, seen from this package.
const samplesDir = "../../configs"

// samples returns the samples' names and texts.
func samples(t testing.TB) map[string]string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(samplesDir, "*.toml"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("there are no samples in %s: %v", samplesDir, err)
	}
	out := make(map[string]string)
	for _, p := range paths {
		text, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		out[filepath.Base(p)] = string(text)
	}
	return out
}

// loadSample loads a sample as a user would have it: his own file with mode 600.
func loadSample(t *testing.T, name, text string) *Config {
	t.Helper()
	dir := t.TempDir()
	sampleFiles(t, dir, text)
	c, err := Load(write(t, dir, name, text, 0o600), ike.AESFirst)
	if err != nil {
		t.Fatalf("the sample %s is refused:\n%v", name, err)
	}
	return c
}

// TestSamplesAreAllThere names the samples that people look for, so that none gets lost.
func TestSamplesAreAllThere(t *testing.T) {
	all := samples(t)
	for _, name := range []string{
		"site-to-site.toml", "host-to-host.toml", "strongswan-peer.toml", "responder-any.toml", "route-based.toml",
		"modbus-gateway.toml", "modbus-plant.toml", "snmp-collector.toml", "policy-table.toml", "manual-sa.toml", "esp-in-ah.toml",
		"aws.toml", "azure.toml", "google-cloud.toml", "hub.toml", "spoke.toml", "ppk-site.toml",
		"site-to-site-cert.toml", "3gpp-segw.toml", "road-warrior.toml", "road-warrior-gateway.toml",
		"road-warrior-cert.toml", "road-warrior-cert-gateway.toml",
	} {
		if all[name] == "" {
			t.Errorf("there is no sample %s", name)
		}
	}
}

// TestHubSampleFitsItsSpokes checks that the two ends of the star meet, and that the hub passes
// on what one spoke sends to another.
func TestHubSampleFitsItsSpokes(t *testing.T) {
	all := samples(t)
	hub, spoke := loadSample(t, "hub.toml", all["hub.toml"]), loadSample(t, "spoke.toml", all["spoke.toml"])
	ch, cs := hub.IKE.Conns[0], spoke.IKE.Conns[0]
	if ch.LocalID != cs.RemoteID || ch.RemoteID != cs.LocalID || string(hub.IKE.Secrets[0].Key) != string(spoke.IKE.Secrets[0].Key) {
		t.Errorf("the hub's connection %s is not that of the spoke", ch.Name)
	}
	star := cs.Children[len(cs.Children)-1]
	if ch.Children[0].LocalTS[0] != star.RemoteTS[0] || ch.Children[0].RemoteTS[0] != star.LocalTS[0] {
		t.Errorf("the hub protects %v = %v, the spoke %v = %v", ch.Children[0].LocalTS, ch.Children[0].RemoteTS, star.LocalTS, star.RemoteTS)
	}
	one, two := netip.MustParseAddr("10.1.0.5"), netip.MustParseAddr("10.2.0.5")
	in := esp.Flow{Local: two, Remote: one, Proto: esp.ProtoTCP} // as the hub sees it come
	out := esp.Flow{Local: one, Remote: two, Proto: esp.ProtoTCP}
	pols := hub.Policies(nil)
	if !esp.MatchFlow(pols[0].LocalTS, pols[0].RemoteTS, &in) || !esp.MatchFlow(pols[1].LocalTS, pols[1].RemoteTS, &out) {
		t.Errorf("a packet from one spoke to the other does not come out of %v and go into %v", pols[0], pols[1])
	}
}

func TestSamplesAreRight(t *testing.T) {
	for name, text := range samples(t) {
		t.Run(name, func(t *testing.T) {
			c := loadSample(t, name, text)
			for _, w := range c.Warnings() {
				t.Errorf("a sample must be an example, but: %v", w)
			}
			if len(c.marks)+len(c.Manual) == 0 {
				t.Error("the sample has no child, so it protects nothing")
			}
			prof := board.Small
			if c.Daemon.Board != "auto" {
				prof, _ = board.ByName(c.Daemon.Board)
			}
			if err := c.Fits(prof); err != nil {
				t.Errorf("the sample does not fit its board: %v", err)
			}
			if !strings.Contains(text, "chmod 600") {
				t.Error("the sample holds a secret and does not say that it must be protected")
			}
			for _, s := range c.IKE.Secrets {
				if !strings.HasPrefix(string(s.Key), "EXAMPLE-") {
					t.Errorf("the secret %s does not say that it is an example", s.Name)
				}
			}
			for _, p := range c.IKE.PPKs {
				if !strings.HasPrefix(string(p.Key), "EXAMPLE-") {
					t.Errorf("the PPK %s does not say that it is an example", p.ID)
				}
			}
		})
	}
}

// TestSamplesUseTheKeysOfTheSchema checks that every section of the schema, and all of
// its keys but the few named here, are shown in a sample.
func TestSamplesUseTheKeysOfTheSchema(t *testing.T) {
	used := make(map[string]bool)
	var visit func(sec *section, n *node)
	visit = func(sec *section, n *node) {
		for _, e := range n.entries {
			used[sec.path+"."+e.name] = true
			if sb := sec.sub(e.name); sb != nil && sb.named {
				for _, named := range e.entries {
					visit(sb.sec, named)
				}
			} else if sb != nil {
				visit(sb.sec, e)
			}
		}
	}
	for name, text := range samples(t) {
		root, problems := treeOf(text)
		if len(problems) > 0 {
			t.Errorf("%s is not TOML: %v", name, problems)
		}
		visit(rootSection, root)
	}
	rare := map[string]bool{ // for special cases; the tests have them
		"connections.NAME.retransmit_limit": true, "connections.NAME.retransmit_jitter": true,
		"daemon.interface": true, "log.esp": true, "connections.NAME.remote_port": true, "secrets.NAME.secret_file": true, "ppks.NAME.secret_file": true,
		"daemon.keep_alive": true, "daemon.export_keys": true, "connections.NAME.mobike": true,
		"connections.NAME.fragmentation": true, "connections.NAME.fragment_size": true,
		"daemon.state_dir": true, "daemon.qcd": true, "connections.NAME.resumption": true,
		"connections.NAME.follow_redirects": true, "connections.NAME.redirect_to": true,
		"pools.NAME.nbns": true, "pools.NAME.dnssec_ta": true, "pools.NAME.enc_dns": true,
	}
	for _, key := range []string{"reauth_time", "childless", "children.CHILD.inactivity", "children.CHILD.per_cpu_sas", "children.CHILD.tfc_padding", "children.CHILD.dummy"} {
		rare["connections.NAME."+key] = true
	}
	for _, k := range childSection.keys {
		if strings.HasPrefix(k.name, "iptfs") {
			rare[childSection.path+"."+k.name] = true
		}
	}
	for _, key := range []string{"mode", "ah_proposals", "key_file", "encap", "replay_window", "keep_sequence"} {
		rare["manual.NAME."+key] = true
	}
	for _, v := range (&child{Child: new(ike.Child)}).volumes() {
		for _, what := range []string{"rekey_", "life_", "rand_"} {
			rare[childSection.path+"."+what+v.name] = true
		}
	}
	for name := range keyTests {
		for _, rest := range []string{"local.", "remote.", "local-", "remote-", "send_cert"} {
			if strings.HasPrefix(name, "connections.NAME."+rest) && !strings.HasSuffix(name, "local.id") && !strings.HasSuffix(name, "remote.id") && !strings.HasSuffix(name, "local.auth") && !strings.HasSuffix(name, "remote.auth") {
				rare[name] = true
			}
		}
	}
	for _, key := range []string{"local.certs", "local.key", "remote.cacerts", "remote.revocation"} {
		delete(rare, "connections.NAME."+key)
	}
	for _, k := range authoritySection.keys {
		rare["authorities.NAME."+k.name] = true
	}
	for _, k := range append(headerKeys, updownKeys...) {
		rare[childSection.path+"."+k.name] = true
	}
	rootSection.each(func(sec *section) {
		for _, k := range sec.keys {
			name := sec.path + "." + k.name
			if used[name] == rare[name] {
				t.Errorf("%s: used in a sample %v, on the list of rare keys %v; it must be one of the two", name, used[name], rare[name])
			}
		}
	})
}

// TestModbusSamplesAreTheEndsOfOneLink checks what the two files promise each other.
func TestModbusSamplesAreTheEndsOfOneLink(t *testing.T) {
	all := samples(t)
	a := loadSample(t, "a.toml", all["modbus-gateway.toml"])
	b := loadSample(t, "b.toml", all["modbus-plant.toml"])
	ca, cb := a.IKE.Conns[0], b.IKE.Conns[0]
	if ca.LocalID != cb.RemoteID || ca.RemoteID != cb.LocalID {
		t.Errorf("the identities do not meet: %v and %v here, %v and %v there", ca.LocalID, ca.RemoteID, cb.LocalID, cb.RemoteID)
	}
	if ka, kb := a.IKE.Secrets[0].Key, b.IKE.Secrets[0].Key; string(ka) != string(kb) {
		t.Error("the two ends have different keys")
	}
	if at := fmt.Sprint(ca.LocalAddrs[0]) + "/32"; at != cb.RemoteAddrs[0].String() {
		t.Errorf("the plant calls %v, but the gateway is at %s", cb.RemoteAddrs[0], at)
	}
	pa, pb := a.Policies(nil), b.Policies(nil)
	if len(pa) != len(pb) {
		t.Fatalf("one end has %d children, the other %d", len(pa), len(pb))
	}
	for i := range pa {
		if selectorSet(pa[i].LocalTS) != selectorSet(pb[i].RemoteTS) || selectorSet(pa[i].RemoteTS) != selectorSet(pb[i].LocalTS) {
			t.Errorf("child %d protects %v = %v at one end and %v = %v at the other", i, pa[i].LocalTS, pa[i].RemoteTS, pb[i].LocalTS, pb[i].RemoteTS)
		}
	}
	flow := esp.Flow{Local: netip.MustParseAddr("10.10.0.5"), Remote: netip.MustParseAddr("10.20.0.9"), Proto: esp.ProtoTCP, LocalPort: 40000, RemotePort: 502}
	if !esp.MatchFlow(pa[0].LocalTS, pa[0].RemoteTS, &flow) {
		t.Errorf("Modbus from the control room (%+v) is not protected by %v = %v", flow, pa[0].LocalTS, pa[0].RemoteTS)
	}
	flow.RemotePort = 80
	if esp.MatchFlow(pa[0].LocalTS, pa[0].RemoteTS, &flow) {
		t.Error("the sample says that only Modbus passes the tunnel, but HTTP does too")
	}
}

// TestStrongSwanSampleShowsItsOtherEnd checks that the swanctl.conf in the comment is the
// other end of the sample.
func TestStrongSwanSampleShowsItsOtherEnd(t *testing.T) {
	text := samples(t)["strongswan-peer.toml"]
	c := loadSample(t, "s.toml", text)
	conn, child := c.IKE.Conns[0], firstChild(c)
	for _, want := range []string{
		"#     local_addrs = " + conn.RemoteAddrs[0].Addr().String(),
		"#     remote_addrs = " + conn.LocalAddrs[0].String(),
		"#       id = " + conn.RemoteID.String() + "\n#     }\n#     remote {",
		"#       id = " + conn.LocalID.String() + "\n#     }\n#     children {",
		"#         local_ts = " + child.RemoteTS[0].String(),
		"#         remote_ts = " + child.LocalTS[0].String(),
		`#     secret = "` + string(c.IKE.Secrets[0].Key) + `"`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the swanctl.conf of the sample does not have %q", want)
		}
	}
	for _, key := range []string{"proposals", "esp_proposals"} {
		root, _ := treeOf(text)
		n := root.get("connections").get("swan").get(key)
		if n == nil {
			n = root.get("connections").get("swan").get("children").get("net").get(key)
		}
		var words []string
		for _, e := range n.list {
			words = append(words, e.text)
		}
		if !strings.Contains(text, " "+key+" = "+strings.Join(words, ",")+"\n") {
			t.Errorf("the swanctl.conf of the sample does not have the %s %v", key, words)
		}
	}
	if conn.LocalID.Type != ike.IDFQDN {
		t.Errorf("%v is not a name, which strongSwan reads as one without a prefix", conn.LocalID)
	}
}
