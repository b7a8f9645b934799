package config

import (
	"bytes"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/engine/log"
	"postern/esp"
	"postern/ike"
)

// minimal is a configuration without problems, in which %s stands for more keys of the
// connection and of the child.
const minimal = `
[connections.a]
remote_addrs = ["198.51.100.7"]
%s
[connections.a.remote]
id = "b.example"
[connections.a.children.c]
remote_ts = ["10.2.0.0/24"]
%s
[secrets.a]
id = ["b.example"]
secret = "an example of 24 octets."
`

// mustParse parses a text that has to be right.
func mustParse(t *testing.T, text string) *Config {
	t.Helper()
	c, err := newLoader("test.toml", noSecretFiles).load([]byte(text))
	if err != nil {
		t.Fatalf("a correct configuration was refused:\n%v\nin\n%s", err, text)
	}
	return c
}

// noSecretFiles stands for the file system where no test needs one.
func noSecretFiles(string) ([]byte, error) { return nil, fmt.Errorf("there are no files here") }

// keyTests has for every key of the schema a value other than the default, and the
// field in which it must be found.
var keyTests = map[string]struct {
	text string
	want any
	get  func(c *Config) any
}{
	"daemon.interface": {`"ipsec7"`, "ipsec7", func(c *Config) any { return c.Daemon.Interface }},
	"daemon.mtu":       {`1380`, 1380, func(c *Config) any { return c.Daemon.MTU }},
	"daemon.board":     {`"tiny"`, "tiny", func(c *Config) any { return c.Daemon.Board }},
	"daemon.ike_port":  {`1500`, uint16(1500), func(c *Config) any { return c.IKE.Ports.IKE }},
	"daemon.natt_port": {`14500`, uint16(14500), func(c *Config) any { return c.IKE.Ports.NATT }},
	"daemon.control":   {`"/tmp/p.sock"`, "/tmp/p.sock", func(c *Config) any { return c.Daemon.Control }},
	"daemon.state_dir": {`"/var/lib/p"`, "/var/lib/p", func(c *Config) any { return c.Daemon.StateDir }},
	"daemon.qcd":       {`false`, false, func(c *Config) any { return c.Daemon.QCD }},
	"daemon.dns":       {`"resolvconf"`, DNSResolvconf, func(c *Config) any { return c.Daemon.DNS }},
	"daemon.dns_file":  {`"/tmp/postern.servers"`, "/tmp/postern.servers", func(c *Config) any { return c.Daemon.DNSFile }},
	"connections.NAME.vips": {`["0.0.0.0", "fd09::5"]`, []netip.Addr{netip.IPv4Unspecified(), netip.MustParseAddr("fd09::5")},
		func(c *Config) any { return c.IKE.Conns[0].VIPs }},
	"connections.NAME.dns_domains":      {`["Plant.Example.", "."]`, []string{"plant.example", "."}, func(c *Config) any { return c.DNSDomains("NAME") }},
	"log.target":                        {`"syslog"`, "syslog", func(c *Config) any { return c.Log.Target }},
	"log.ike":                           {`"debug"`, log.Debug, func(c *Config) any { return c.Log.IKE }},
	"log.esp":                           {`"warn"`, log.Warn, func(c *Config) any { return c.Log.ESP }},
	"log.net":                           {`"error"`, log.Error, func(c *Config) any { return c.Log.Net }},
	"authorities.NAME.cacert":           {`"a.der"`, "CN=A", func(c *Config) any { return c.IKE.Trust.Authorities()[0].Cert.Subject() }},
	"authorities.NAME.crls":             {`["a.crl", "a2.crl"]`, 2, func(c *Config) any { return len(c.IKE.Trust.Authorities()[0].CRLs) }},
	"authorities.NAME.crl_uris":         {`["http://crl.example/"]`, "http://crl.example/", func(c *Config) any { return c.IKE.Trust.Authorities()[0].CRLURIs[0] }},
	"authorities.NAME.ocsp_uris":        {`["http://ocsp.example/"]`, "http://ocsp.example/", func(c *Config) any { return c.IKE.Trust.Authorities()[0].OCSPURIs[0] }},
	"connections.NAME.encap":            {`true`, true, func(c *Config) any { return c.IKE.Conns[0].Encap }},
	"connections.NAME.resumption":       {`true`, true, func(c *Config) any { return c.IKE.Conns[0].Resumption }},
	"connections.NAME.follow_redirects": {`false`, true, func(c *Config) any { return c.IKE.Conns[0].IgnoreRedirects }},
	"connections.NAME.redirect_to":      {`"gw2.example"`, "gw2.example", func(c *Config) any { return c.IKE.Conns[0].RedirectTo.String() }},
	"connections.NAME.dpd_delay":        {`"2m"`, 2 * time.Minute, func(c *Config) any { return c.IKE.Conns[0].DPDDelay }},
	"daemon.export_keys":                {`true`, true, func(c *Config) any { return c.Daemon.ExportKeys }},
	"daemon.keep_alive":                 {`"45s"`, 45 * time.Second, func(c *Config) any { return c.Daemon.KeepAlive }},
	"connections.NAME.mobike":           {`false`, false, func(c *Config) any { return c.IKE.Conns[0].MOBIKE }},
	"connections.NAME.local_addrs": {`["192.0.2.1", "192.0.2.2"]`, "[192.0.2.1 192.0.2.2]",
		func(c *Config) any { return fmt.Sprint(c.IKE.Conns[0].LocalAddrs) }},
	"connections.NAME.remote_addrs": {`["192.0.2.9", "10.0.0.0/8", "%any"]`, "[192.0.2.9/32 10.0.0.0/8 0.0.0.0/0 ::/0]",
		func(c *Config) any { return fmt.Sprint(c.IKE.Conns[0].RemoteAddrs) }},
	"connections.NAME.remote_port": {`1500`, uint16(1500), func(c *Config) any { return c.IKE.Conns[0].RemotePort }},
	"connections.NAME.proposals": {`["aes256-sha256-modp2048", "aes128gcm16-prfsha256-x25519"]`, 2,
		func(c *Config) any { return len(c.IKE.Conns[0].Proposals) }},
	"connections.NAME.unique":             {`"keep"`, ike.UniqueKeep, func(c *Config) any { return c.IKE.Conns[0].Unique }},
	"connections.NAME.childless":          {`"force"`, ike.ChildlessForce, func(c *Config) any { return c.IKE.Conns[0].Childless }},
	"connections.NAME.keyingtries":        {`3`, 3, func(c *Config) any { return c.IKE.Conns[0].KeyingTries }},
	"connections.NAME.rekey_time":         {`"1d"`, 24 * time.Hour, func(c *Config) any { return c.IKE.Conns[0].RekeyTime }},
	"connections.NAME.reauth_time":        {`"8h"`, 8 * time.Hour, func(c *Config) any { return c.IKE.Conns[0].ReauthTime }},
	"connections.NAME.over_time":          {`"90s"`, 90 * time.Second, func(c *Config) any { return c.IKE.Conns[0].OverTime }},
	"connections.NAME.rand_time":          {`60`, time.Minute, func(c *Config) any { return c.IKE.Conns[0].RandTime }},
	"connections.NAME.retransmit_timeout": {`"500ms"`, 500 * time.Millisecond, func(c *Config) any { return c.IKE.Conns[0].RetryTimeout }},
	"connections.NAME.retransmit_base":    {`1.25`, 1.25, func(c *Config) any { return c.IKE.Conns[0].RetryBase }},
	"connections.NAME.retransmit_tries":   {`9`, 9, func(c *Config) any { return c.IKE.Conns[0].RetryTries }},
	"connections.NAME.fragmentation":      {`"accept"`, ike.FragmentAccept, func(c *Config) any { return c.IKE.Conns[0].Fragmentation }},
	"connections.NAME.fragment_size":      {`576`, 576, func(c *Config) any { return c.IKE.Conns[0].FragmentSize }},
	"connections.NAME.retransmit_limit":   {`"8s"`, 8 * time.Second, func(c *Config) any { return c.IKE.Conns[0].RetryLimit }},
	"connections.NAME.retransmit_jitter":  {`20`, 20, func(c *Config) any { return c.IKE.Conns[0].RetryJitter }},
	"connections.NAME.local.id": {`"a.example"`, ike.ID{Type: ike.IDFQDN, Data: "a.example"},
		func(c *Config) any { return c.IKE.Conns[0].LocalID }},
	"connections.NAME.remote.id": {`"c@b.example"`, ike.ID{Type: ike.IDRFC822, Data: "c@b.example"},
		func(c *Config) any { return c.IKE.Conns[0].RemoteID }},
	"connections.NAME.children.CHILD.local_ts": {`["10.1.0.0/24[tcp/502]"]`, "10.1.0.0/24[tcp/502]",
		func(c *Config) any { return firstChild(c).LocalTS[0].String() }},
	"connections.NAME.children.CHILD.remote_ts": {`["dynamic[udp/161]"]`, true,
		func(c *Config) any {
			ts := firstChild(c).RemoteTS[0]
			return ts.Dynamic && ts.Proto == 17 && ts.EndPort == 161
		}},
	"connections.NAME.children.CHILD.interface": {`"ipsec0"`, "ipsec0",
		func(c *Config) any { return firstChild(c).Interface }},
	"connections.NAME.children.CHILD.interface_addrs": {"[\"10.255.0.1/30\", \"fe80::1/64\"]\ninterface = \"ipsec0\"", "[10.255.0.1/30 fe80::1/64]",
		func(c *Config) any { return fmt.Sprint(c.Devices()[0].Addrs) }},
	"connections.NAME.children.CHILD.esp_proposals": {`["aes256-sha256", "aes128gcm16-x25519", "chacha20poly1305"]`, 3,
		func(c *Config) any { return len(firstChild(c).Proposals) }},
	"connections.NAME.children.CHILD.rekey_time":          {`"10m"`, 10 * time.Minute, func(c *Config) any { return firstChild(c).RekeyTime }},
	"connections.NAME.children.CHILD.life_time":           {`"100m"`, 100 * time.Minute, func(c *Config) any { return firstChild(c).LifeTime }},
	"connections.NAME.children.CHILD.rand_time":           {`"7m"`, 7 * time.Minute, func(c *Config) any { return firstChild(c).RandTime }},
	"connections.NAME.children.CHILD.rekey_bytes":         {`"20M"`, uint64(20 << 20), func(c *Config) any { return firstChild(c).RekeyBytes }},
	"connections.NAME.children.CHILD.life_bytes":          {`10000`, uint64(10000), func(c *Config) any { return firstChild(c).LifeBytes }},
	"connections.NAME.children.CHILD.rand_bytes":          {`"3k"`, uint64(3072), func(c *Config) any { return firstChild(c).RandBytes }},
	"connections.NAME.children.CHILD.rekey_packets":       {`"4G"`, uint64(4 << 30), func(c *Config) any { return firstChild(c).RekeyPackets }},
	"connections.NAME.children.CHILD.life_packets":        {`100`, uint64(100), func(c *Config) any { return firstChild(c).LifePackets }},
	"connections.NAME.children.CHILD.rand_packets":        {`0`, uint64(0), func(c *Config) any { return firstChild(c).RandPackets }},
	"connections.NAME.children.CHILD.replay_window":       {`4096`, 4096, func(c *Config) any { return firstChild(c).ReplayWindow }},
	"connections.NAME.children.CHILD.inactivity":          {`"5m"`, 5 * time.Minute, func(c *Config) any { return firstChild(c).Inactivity }},
	"connections.NAME.children.CHILD.per_cpu_sas":         {`true`, true, func(c *Config) any { return firstChild(c).PerCPU }},
	"connections.NAME.children.CHILD.dscp_classes":        {`["46", " 0-7, 16 "]`, []uint8{0, 1, 2, 2, 2, 2}, dscpLanes},
	"connections.NAME.children.CHILD.tfc_padding":         {`"mtu"`, ike.PadMTU, func(c *Config) any { return firstChild(c).Hiding.Padding }},
	"connections.NAME.children.CHILD.dummy":               {`"250ms"`, 250 * time.Millisecond, func(c *Config) any { return firstChild(c).Hiding.Dummies }},
	"connections.NAME.children.CHILD.start_action":        {`"trap"`, ike.StartTrap, func(c *Config) any { return firstChild(c).StartAction }},
	"connections.NAME.children.CHILD.dpd_action":          {`"restart"`, ike.ActionRestart, func(c *Config) any { return firstChild(c).DPDAction }},
	"connections.NAME.children.CHILD.close_action":        {`"trap"`, ike.ActionTrap, func(c *Config) any { return firstChild(c).CloseAction }},
	"connections.NAME.children.CHILD.mode":                {`"tunnel"`, esp.Tunnel, func(c *Config) any { return firstChild(c).Mode }},
	"connections.NAME.children.CHILD.non_first_fragments": {`"also"`, true, func(c *Config) any { return firstChild(c).Fragments }},
	"connections.NAME.children.CHILD.ah_proposals":        {`["sha256-x25519", "aes128gmac"]`, ike.ProtoAH, func(c *Config) any { return firstChild(c).Proposals[1].Proto }},
	"policies.NAME.action":                                {`"bypass"`, esp.Bypass, func(c *Config) any { return c.SPD(nil)[0].Action }},
	"policies.NAME.direction":                             {`"in"`, esp.OnlyIn, func(c *Config) any { return c.SPD(nil)[0].Dir }},
	"policies.NAME.local_ts":                              {`["10.1.0.0/24[tcp/502]"]`, "10.1.0.0/24[tcp/502]", func(c *Config) any { return c.SPD(nil)[0].LocalTS[0].String() }},
	"policies.NAME.remote_ts":                             {`["10.3.0.0-10.3.0.4", "fd00::/8"]`, 2, func(c *Config) any { return len(c.SPD(nil)[0].RemoteTS) }},
	"policies.NAME.child":                                 {`"NAME/CHILD"`, "CHILD", func(c *Config) any { return c.SPD(nil)[0].Carrier.Name }},
	"connections.NAME.pools":                              {`["NAME"]`, []string{"NAME"}, func(c *Config) any { return c.IKE.Conns[0].Pools }},
	"pools.NAME.addrs": {`["10.9.0.0/24", "10.8.0.10-10.8.0.99"]`, "10.9.0.1 10.9.0.254 10.8.0.10 10.8.0.99", func(c *Config) any {
		r := c.IKE.Pools[0].Ranges
		return fmt.Sprint(r[0].First, " ", r[0].Last, " ", r[1].First, " ", r[1].Last)
	}},
	"pools.NAME.leases": {`["alice@example.org=10.7.0.5"]`, []ike.StaticLease{{ID: ike.ID{Type: ike.IDRFC822, Data: "alice@example.org"}, Addr: netip.MustParseAddr("10.7.0.5")}},
		func(c *Config) any { return c.IKE.Pools[0].Leases }},
	"pools.NAME.dns":         {`["10.1.0.53", "fd00::53"]`, "[10.1.0.53 fd00::53]", func(c *Config) any { return fmt.Sprint(c.IKE.Pools[0].DNS) }},
	"pools.NAME.nbns":        {`["10.1.0.54"]`, "[10.1.0.54]", func(c *Config) any { return fmt.Sprint(c.IKE.Pools[0].NBNS) }},
	"pools.NAME.subnet":      {`["10.1.0.0/16", "fd00:1::/48"]`, "[10.1.0.0/16 fd00:1::/48]", func(c *Config) any { return fmt.Sprint(c.IKE.Pools[0].Subnets) }},
	"pools.NAME.dns_domains": {`["Corp.Example."]`, []string{"corp.example"}, func(c *Config) any { return c.IKE.Pools[0].Domains }},
	"pools.NAME.dnssec_ta": {`["corp.example 20326 8 2 E06D 44B8"]`, []ike.TrustAnchor{{Domain: "corp.example", KeyTag: 20326, Algorithm: 8, Digest: 2, Hex: "E06D44B8"}},
		func(c *Config) any { return c.IKE.Pools[0].TrustAnchors }},
	"pools.NAME.enc_dns": {`["dns.corp.example 10.1.0.53 alpn=dot,h2 port=8853"]`, []ike.EncryptedDNS{{ADN: "dns.corp.example",
		Addrs: []netip.Addr{netip.MustParseAddr("10.1.0.53")}, ALPN: []string{"dot", "h2"}, Port: 8853}}, func(c *Config) any { return c.IKE.Pools[0].EncDNS }},
	"manual.NAME.local_addrs":   {`["192.0.2.7"]`, "192.0.2.7:0", func(c *Config) any { return c.Manual[0].Out.Local.String() }},
	"manual.NAME.remote_addrs":  {`["192.0.2.8"]`, "192.0.2.8:0", func(c *Config) any { return c.Manual[0].In.Remote.String() }},
	"manual.NAME.local_ts":      {`["dynamic[gre]", "224.0.0.5"]`, "192.0.2.1/32[gre]", func(c *Config) any { return c.Manual[0].In.LocalTS[0].String() }},
	"manual.NAME.remote_ts":     {`["10.0.0.0/8", "224.0.0.0/4"]`, 2, func(c *Config) any { return len(c.SPD(nil)[2].RemoteTS) }},
	"manual.NAME.mode":          {`"beet"`, esp.BEET, func(c *Config) any { return c.Manual[0].Out.Mode }},
	"manual.NAME.esp_proposals": {`["null-sha1"]`, "NULL/HMAC_SHA1_96", func(c *Config) any { return c.Manual[0].In.Suite.String() }},
	"manual.NAME.ah_proposals":  {`["sha1"]`, esp.AH, func(c *Config) any { return c.Manual[0].In.Proto }},
	"manual.NAME.spi_in":        {`4294967295`, uint32(1<<32 - 1), func(c *Config) any { return c.Manual[0].In.SPI }},
	"manual.NAME.spi_out":       {`0xabc`, uint32(0xabc), func(c *Config) any { return c.Manual[0].Out.SPI }},
	"manual.NAME.encr_key_in":   {`"0xff112233445566778899aabbccddeeff"`, uint8(0xff), func(c *Config) any { return c.Manual[0].In.EncrKey[0] }},
	"manual.NAME.encr_key_out":  {`"0xfe112233445566778899aabbccddeeff"`, uint8(0xfe), func(c *Config) any { return c.Manual[0].Out.EncrKey[0] }},
	"manual.NAME.integ_key_in":  {`"0xfd02030405060708090a0b0c0d0e0f1011121314"`, uint8(0xfd), func(c *Config) any { return c.Manual[0].In.IntegKey[0] }},
	"manual.NAME.integ_key_out": {`"0xfc02030405060708090a0b0c0d0e0f1011121314"`, uint8(0xfc), func(c *Config) any { return c.Manual[0].Out.IntegKey[0] }},
	"manual.NAME.key_file":      {`"m.keys"`, uint8(0x21), func(c *Config) any { return c.Manual[0].Out.IntegKey[0] }},
	"manual.NAME.encap":         {`true`, uint16(4500), func(c *Config) any { return c.Manual[0].Out.Remote.Port() }},
	"manual.NAME.replay_window": {`256`, 256, func(c *Config) any { return c.Manual[0].In.ReplayWindow }},
	"manual.NAME.keep_sequence": {`true`, "128 false", func(c *Config) any { return fmt.Sprint(c.Manual[0].In.ReplayWindow, c.Manual[0].Out.Cycle) }},
	"secrets.NAME.id": {`["a.example", "b@c.example"]`, []ike.ID{{Type: ike.IDFQDN, Data: "a.example"}, {Type: ike.IDRFC822, Data: "b@c.example"}},
		func(c *Config) any { return c.IKE.Secrets[0].IDs }},
	"secrets.NAME.secret": {`"0x000102030405060708090a0b0c0d0e0f"`, []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
		func(c *Config) any { return c.IKE.Secrets[0].Key }},
	"secrets.NAME.secret_file": {`"plant.key"`, []byte("what is in plant.key"), func(c *Config) any { return c.IKE.Secrets[0].Key }},

	"connections.NAME.ppk_id":       {`"NAME"`, ike.PPKID{Type: ike.PPKIDFixed, Data: "NAME"}, func(c *Config) any { return c.IKE.Conns[0].PPK }},
	"connections.NAME.ppk_required": {`true`, true, func(c *Config) any { return c.IKE.Conns[0].PPKRequired }},
	"ppks.NAME.id":                  {`"opaque:other"`, ike.PPKID{Type: ike.PPKIDOpaque, Data: "other"}, func(c *Config) any { return c.IKE.PPKs[0].ID }},
	"ppks.NAME.secret":              {`"0s` + strings.Repeat("AAAA", 11) + `"`, make([]byte, 33), func(c *Config) any { return c.IKE.PPKs[0].Key }},
	"ppks.NAME.secret_file":         {`"plant.ppk"`, []byte("what is in plant.ppk"), func(c *Config) any { return c.IKE.PPKs[0].Key }},

	"connections.NAME.children.CHILD.iptfs":           {`"require"`, ike.IPTFSRequire, func(c *Config) any { return firstChild(c).Hiding.IPTFS }},
	"connections.NAME.children.CHILD.iptfs_mode":      {`"aggregate"`, ike.IPTFSAggregate, func(c *Config) any { return firstChild(c).Hiding.Mode }},
	"connections.NAME.children.CHILD.iptfs_rate":      {`"2M"`, uint64(2_000_000), func(c *Config) any { return firstChild(c).Hiding.Rate }},
	"connections.NAME.children.CHILD.iptfs_size":      {`700`, 700, func(c *Config) any { return firstChild(c).Hiding.Size }},
	"connections.NAME.children.CHILD.iptfs_dont_frag": {`true`, true, func(c *Config) any { return firstChild(c).Hiding.NoFrags }},
	"connections.NAME.children.CHILD.iptfs_trip_loss": {`7`, 7, func(c *Config) any { return firstChild(c).Hiding.TripLoss }},
	"connections.NAME.children.CHILD.iptfs_trip_time": {`"9s"`, 9 * time.Second, func(c *Config) any { return firstChild(c).Hiding.TripTime }},
}

// manualKeys are those of "null-sha1", and manualKeyFile has them in a file.
const (
	manualKeyIn   = "0x0102030405060708090a0b0c0d0e0f1011121314"
	manualKeyOut  = "0x2102030405060708090a0b0c0d0e0f1011121314"
	manualKeyFile = "# the keys\n\n integ_key_in=" + manualKeyIn + "\r\ninteg_key_out = " + manualKeyOut
)

// manualParts is a manual SA to which the key of that name can be added.
func manualParts(name string) map[string]string {
	m := map[string]string{"local_addrs": `["192.0.2.1"]`, "remote_addrs": `["192.0.2.2"]`, "spi_in": "0x100", "spi_out": "0x101",
		"esp_proposals": `["null-sha1"]`, "integ_key_in": `"` + manualKeyIn + `"`, "integ_key_out": `"` + manualKeyOut + `"`}
	if strings.HasPrefix(name, "manual.NAME.encr_key_") {
		m["esp_proposals"] = `["aes128-sha1"]`
		m["encr_key_in"], m["encr_key_out"] = `"0x00112233445566778899aabbccddeeff"`, `"0x10112233445566778899aabbccddeeff"`
	}
	return m
}

func firstChild(c *Config) *ike.Child { return c.IKE.Conns[0].Children[0] }

// TestEveryKeySetsItsField goes through the schema: a key without a test here fails, and
// so does one that has no effect.
func TestEveryKeySetsItsField(t *testing.T) {
	seen := 0
	rootSection.each(func(sec *section) {
		for _, k := range sec.keys {
			name := sec.path + "." + k.name
			kt, ok := keyTests[name]
			if !ok {
				t.Errorf("%s is in the schema, but nothing here tests what it sets", name)
				continue
			}
			seen++
			if k.doc == "" {
				t.Errorf("%s has no documentation", name)
			}
			t.Run(name, func(t *testing.T) {
				text := documentWith(name, kt.text)
				files := func(path string) ([]byte, error) {
					if path == "m.keys" {
						return []byte(manualKeyFile), nil
					}
					return []byte("what is in " + path), nil
				}
				l := newLoader("test.toml", files)
				withAuthFiles(l, publicFiles(t))
				c, err := l.load([]byte(text))
				if err != nil {
					t.Fatalf("%s = %s was refused: %v\nin\n%s", name, kt.text, err, text)
				}
				if got := kt.get(c); !reflect.DeepEqual(got, kt.want) {
					t.Errorf("%s = %s gives %v, expected %v", name, kt.text, got, kt.want)
				}
			})
		}
	})
	if seen != len(keyTests) {
		t.Errorf("%d keys are tested and %d of them are in the schema: a key has gone", len(keyTests), seen)
	}
}

// alongside are lines that a key makes no sense without.
var alongside = map[string][]string{
	"dns_file":               {`dns = "dnsmasq"`},
	"dns_domains":            {`vips = ["0.0.0.0"]`},
	"pools.NAME.dns_domains": {`dns = ["10.1.0.53"]`},
	"pools.NAME.dnssec_ta":   {`dns = ["10.1.0.53"]`, `dns_domains = ["corp.example"]`},
	"iptfs":                  {`iptfs_rate = "1M"`},
	"iptfs_mode":             {`iptfs = true`},
	"iptfs_rate":             {`iptfs = true`},
	"iptfs_size":             {`iptfs = true`, `iptfs_rate = "1M"`},
	"iptfs_dont_frag":        {`iptfs = true`, `iptfs_rate = "1M"`},
	"iptfs_trip_loss":        {`iptfs = true`, `iptfs_rate = "1M"`, `iptfs_mode = "constant"`},
	"iptfs_trip_time":        {`iptfs = true`, `iptfs_rate = "1M"`},
	"ppk_required":           {`ppk_id = "NAME"`},
}

// documentWith returns a configuration that is right and has the key with that value.
func documentWith(name, value string) string {
	type section struct {
		path string
		keys map[string]string
	}
	sections := []section{
		{"daemon", nil},
		{"log", nil},
		{"authorities.NAME", map[string]string{"cacert": `"a.pem"`}},
		{"connections.NAME", map[string]string{"remote_addrs": `["198.51.100.7"]`}},
		{"connections.NAME.local", nil},
		{"connections.NAME.remote", nil},
		{"connections.NAME.children.CHILD", map[string]string{"remote_ts": `["10.2.0.0/24"]`}},
		{"policies.NAME", map[string]string{"action": `"protect"`}},
		{"pools.NAME", map[string]string{"addrs": `["10.9.0.0/24"]`}},
		{"manual.NAME", manualParts(name)},
		{"secrets.NAME", map[string]string{"secret": `"an example of 24 octets."`}},
		{"ppks.NAME", map[string]string{"secret": `"an example of a key of 32 octets."`}},
	}
	for _, path := range laterRounds(name) {
		keys := map[string]string(nil)
		if !strings.HasPrefix(name, path+".") {
			keys = map[string]string{"auth": `"psk"`}
		}
		at := slices.IndexFunc(sections, func(s section) bool { return s.path == "connections.NAME.children.CHILD" })
		sections = slices.Insert(sections, at, section{path, keys})
	}
	var b strings.Builder
	for _, s := range sections {
		if s.path == "manual.NAME" && !strings.HasPrefix(name, s.path) {
			continue // the tests of [policies] would have it without packets
		}
		if s.path == "pools.NAME" && !strings.Contains(name, "pools") {
			continue
		}
		fmt.Fprintf(&b, "[%s]\n", s.path)
		key, here := strings.CutPrefix(name, s.path+".")
		here = here && !strings.Contains(key, ".")
		if here {
			fmt.Fprintf(&b, "%s = %s\n", key, value)
			with := alongside[name]
			if s.path != "pools.NAME" {
				with = slices.Concat(alongside[key], with)
			}
			for _, more := range with {
				if k, _, _ := strings.Cut(more, " = "); k == key {
					continue
				}
				fmt.Fprintln(&b, more)
			}
		}
		for k, v := range s.keys {
			if here && (k == key || key == "secret_file" || key == "ah_proposals" && k == "esp_proposals" || key == "key_file" && strings.Contains(k, "_key_")) {
				continue
			}
			fmt.Fprintf(&b, "%s = %s\n", k, v)
		}
	}
	return b.String()
}

func TestReferenceNamesEveryKey(t *testing.T) {
	var b bytes.Buffer
	if err := WriteReference(&b); err != nil {
		t.Fatal(err)
	}
	rootSection.each(func(sec *section) {
		if sec.path != "" && !strings.Contains(b.String(), "["+sec.path+"]") {
			t.Errorf("the reference does not have the section [%s]", sec.path)
		}
		for _, k := range sec.keys {
			if !strings.Contains(b.String(), "\n  "+k.name+" ") {
				t.Errorf("the reference does not have %s of [%s]", k.name, sec.path)
			}
		}
	})
}

// The absence of the key and the word "default" mean the same, on either processor; what is
// named is taken on both.
func TestDefaultProposalsFollowTheProcessor(t *testing.T) {
	words := func(ps []ike.Proposal) (out []string) {
		for i, p := range ps {
			if p.Num != uint8(i+1) {
				t.Errorf("proposal %d has the number %d", i+1, p.Num)
			}
			out = append(out, p.String())
		}
		return out
	}
	for _, order := range []ike.CipherOrder{ike.ChaChaFirst, ike.AESFirst} {
		wantIKE, wantESP := ike.DefaultProposals(ike.ProtoIKE, order), ike.DefaultProposals(ike.ProtoESP, order)
		const ikeName, espName = "aes256gcm16-prfsha256-x25519", "aes128gcm16"
		for _, c := range []struct {
			conn, child string
			named       bool
		}{
			{"", "", false},
			{`proposals = ["default"]`, `esp_proposals = ["default"]`, false},
			{`proposals = ["` + ikeName + `", "default"]`, `esp_proposals = ["` + espName + `", "default"]`, true},
		} {
			cfg, err := Parse("test.toml", []byte(fmt.Sprintf(minimal, c.conn, c.child)), order)
			if err != nil {
				t.Fatal(err)
			}
			gotIKE, gotESP := words(cfg.IKE.Conns[0].Proposals), words(firstChild(cfg).Proposals)
			if c.named {
				if gotIKE[0] != ikeName || gotESP[0] != espName {
					t.Errorf("%v: what is named first is %s and %s", order, gotIKE[0], gotESP[0])
				}
				gotIKE, gotESP = gotIKE[1:], gotESP[1:]
			}
			if fmt.Sprint(gotIKE) != fmt.Sprint(wantIKE) || fmt.Sprint(gotESP) != fmt.Sprint(wantESP) {
				t.Errorf("%v, %q and %q: %v and %v, expected %v and %v", order, c.conn, c.child, gotIKE, gotESP, wantIKE, wantESP)
			}
		}
	}
}

func TestDefaults(t *testing.T) {
	c := mustParse(t, fmt.Sprintf(minimal, "", ""))
	conn, child := c.IKE.Conns[0], firstChild(c)
	for _, d := range []struct {
		name      string
		got, want any
	}{
		{"interface", c.Daemon.Interface, "postern0"},
		{"mtu", c.Daemon.MTU, 0},
		{"board", c.Daemon.Board, "auto"},
		{"control", c.Daemon.Control, "/run/postern.sock"},
		{"state_dir", c.Daemon.StateDir, "/etc/postern/state"},
		{"qcd", c.Daemon.QCD, true},
		{"ports", c.IKE.Ports, ike.Ports{IKE: 500, NATT: 4500}},
		{"log", c.Log, Log{"stderr", log.Info, log.Info, log.Info}},
		{"local_addrs", len(conn.LocalAddrs), 0},
		{"local id", conn.LocalID, ike.ID{}},
		{"proposals", len(conn.Proposals), len(ike.DefaultProposals(ike.ProtoIKE, ike.ChaChaFirst))},
		{"keep_alive", c.Daemon.KeepAlive, 20 * time.Second},
		{"mobike", conn.MOBIKE, true},
		{"dpd_delay", conn.DPDDelay, 30 * time.Second},
		{"resumption", conn.Resumption, false},
		{"follow_redirects", conn.IgnoreRedirects, false},
		{"redirect_to", conn.RedirectTo, ike.Gateway{}},
		{"keyingtries", conn.KeyingTries, 0},
		{"IKE rekey_time", conn.RekeyTime, 4 * time.Hour},
		{"over_time", conn.OverTime, 24 * time.Minute},
		{"IKE rand_time", conn.RandTime, 24 * time.Minute},
		{"retransmit_timeout", conn.RetryTimeout, 4 * time.Second},
		{"retransmit_base", conn.RetryBase, 1.8},
		{"retransmit_tries", conn.RetryTries, 5},
		{"fragmentation", conn.Fragmentation, ike.FragmentYes},
		{"fragment_size", conn.FragmentSize, 1280},
		{"retransmit_limit", conn.RetryLimit, time.Duration(0)},
		{"retransmit_jitter", conn.RetryJitter, 0},
		{"local_ts", child.LocalTS[0].Dynamic, true},
		{"esp_proposals", len(child.Proposals), len(ike.DefaultProposals(ike.ProtoESP, ike.ChaChaFirst))},
		{"child rekey_time", child.RekeyTime, time.Hour},
		{"life_time", child.LifeTime, 66 * time.Minute},
		{"child rand_time", child.RandTime, 6 * time.Minute},
		{"replay_window", child.ReplayWindow, 128},
		{"hiding", child.Hiding, ike.Hiding{TripTime: time.Minute}},
		{"start_action", child.StartAction, ike.StartNone},
		{"dpd_action", child.DPDAction, ike.ActionClear},
		{"close_action", child.CloseAction, ike.ActionClear},
	} {
		if d.got != d.want {
			t.Errorf("the default of %s is %v, expected %v", d.name, d.got, d.want)
		}
	}
}

func TestDefaultsFollowOtherValues(t *testing.T) {
	for _, c := range []struct {
		name, conn, child string
		got               func(c *Config) any
		want              any
	}{
		{"what is started is restarted", "", `start_action = "start"`,
			func(c *Config) any {
				return firstChild(c).DPDAction == ike.ActionRestart && firstChild(c).CloseAction == ike.ActionRestart
			}, true},
		{"what is trapped is trapped again", "", `start_action = "trap"`,
			func(c *Config) any {
				return firstChild(c).DPDAction == ike.ActionTrap && firstChild(c).CloseAction == ike.ActionTrap
			}, true},
		{"the file's word counts", "", "start_action = \"start\"\nclose_action = \"clear\"",
			func(c *Config) any { return firstChild(c).CloseAction }, ike.ActionClear},
		{"over_time is a tenth", `rekey_time = "10h"`, "", func(c *Config) any { return c.IKE.Conns[0].OverTime }, time.Hour},
		{"rand_time is over_time", `over_time = "5m"`, "", func(c *Config) any { return c.IKE.Conns[0].RandTime }, 5 * time.Minute},
		{"rand_time is at most half", "rekey_time = \"2m\"\nover_time = \"5m\"", "", func(c *Config) any { return c.IKE.Conns[0].RandTime }, time.Minute},
		{"life_time is a tenth more", "", `rekey_time = "10m"`, func(c *Config) any { return firstChild(c).LifeTime }, 11 * time.Minute},
		{"rand_time is the rest of life_time", "", `life_time = "70m"`, func(c *Config) any { return firstChild(c).RandTime }, 10 * time.Minute},
		{"a child's rand_time is at most half", "", `life_time = "1d"`, func(c *Config) any { return firstChild(c).RandTime }, 30 * time.Minute},
		{"without rekeying there is no end", "", `rekey_time = 0`, func(c *Config) any { return firstChild(c).LifeTime }, time.Duration(0)},
		{"life_bytes is a tenth more", "", `rekey_bytes = 1000000`, func(c *Config) any { return firstChild(c).LifeBytes }, uint64(1100000)},
		{"rand_packets is the rest of life_packets", "", "rekey_packets = 1000\nlife_packets = 1300",
			func(c *Config) any { return firstChild(c).RandPackets }, uint64(300)},
		{"a hard limit alone has no random part", "", "life_packets = 1300", func(c *Config) any { return firstChild(c).RandPackets }, uint64(0)},
		{"over_time is a tenth of the longer one", `reauth_time = "10h"`, "", func(c *Config) any { return c.IKE.Conns[0].OverTime }, time.Hour},
		{"rand_time is at most half of the shorter one", `reauth_time = "10m"`, "", func(c *Config) any { return c.IKE.Conns[0].RandTime }, 5 * time.Minute},
		{"any peer", `local_addrs = ["%any"]`, "", func(c *Config) any { return len(c.IKE.Conns[0].LocalAddrs) }, 0},
	} {
		cfg := mustParse(t, fmt.Sprintf(minimal, c.conn, c.child))
		if got := c.got(cfg); got != c.want {
			t.Errorf("%s: got %v, expected %v", c.name, got, c.want)
		}
	}
}
