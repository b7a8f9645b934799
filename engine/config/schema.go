package config

import (
	"fmt"
	"io"
	"strings"

	"postern/esp"
	"postern/ike"
)

// section describes one kind of table of the file: its keys and the tables in it. The
// table below is all that postern can be configured with; the walk along it, the
// suggestions for a mistyped key and the reference that WriteReference prints all
// come from it.
type section struct {
	path string // for people: "connections.NAME.children.CHILD"
	doc  string
	keys []key
	subs []sub
	rare bool // no home for a key that stands in the wrong place
}

// key is one key of a section.
type key struct {
	name string
	typ  *typ
	doc  string
	set  func(s *scope, n *node)
}

// sub is a table in a section. With named, it holds one table for each name that the
// user chooses.
type sub struct {
	name  string
	named bool
	sec   *section
	open  func(s *scope, n *node) *scope // nil: the same scope
}

// typ is what may stand behind a key.
type typ struct {
	kinds []kind
	words string
}

var (
	aText     = &typ{[]kind{kindString}, `a text in quotes`}
	aList     = &typ{[]kind{kindList}, `a list of texts: ["…", "…"]`}
	aNumber   = &typ{[]kind{kindInteger}, `a whole number without quotes`}
	aVolume   = &typ{[]kind{kindInteger, kindString}, `a whole number, or one with a unit: "500k", "20M", "4G"`}
	aFactor   = &typ{[]kind{kindFloat, kindInteger}, `a number without quotes`}
	aSwitch   = &typ{[]kind{kindBool}, `true or false without quotes`}
	aDuration = &typ{[]kind{kindString, kindInteger}, `a duration: "30s", "5m", "4h", "1d" or a number of seconds`}
)

// takes tells whether a value of that kind may stand there.
func (t *typ) takes(k kind) bool {
	for _, have := range t.kinds {
		if have == k {
			return true
		}
	}
	return false
}

// scope is what the setters fill: the part of the configuration that the walk is in.
type scope struct {
	*loader
	conn   *conn
	child  *child
	secret *secret
	ppk    *ppk
	peer   *peer
	policy *tableEntry
	manual *manual

	authority *authority
	pool      *poolTable
}

var rootSection = &section{
	subs: []sub{
		{name: "daemon", sec: daemonSection},
		{name: "log", sec: logSection},
		{name: "connections", named: true, sec: connSection, open: (*scope).openConn},
		{name: "authorities", named: true, sec: authoritySection, open: (*scope).openAuthority},
		{name: "policies", named: true, sec: policySection, open: (*scope).openPolicy},
		{name: "pools", named: true, sec: poolSection, open: (*scope).openPool},
		{name: "manual", named: true, sec: manualSection, open: (*scope).openManual},
		{name: "secrets", named: true, sec: secretSection, open: (*scope).openSecret},
		{name: "ppks", named: true, sec: ppkSection, open: (*scope).openPPK},
	},
}

var daemonSection = &section{
	path: "daemon",
	doc:  "the daemon itself",
	keys: []key{
		{"interface", aText, `name of the TUN device; "postern0"`,
			func(s *scope, n *node) { s.interfaceName(n, &s.cfg.Daemon.Interface) }},
		// 576 is what every IPv4 host must take (RFC 791); more than Ethernet's 1500 does not
		// fit into a packet buffer of every board.
		{"mtu", aNumber, `MTU of the TUN devices, 576 to 1500; 0: computed from the path and the ciphers`,
			func(s *scope, n *node) { s.zeroOr(n, 576, 1500, &s.cfg.Daemon.MTU) }},
		{"board", aText, `how much memory to use: "tiny", "small", "large"; "auto": by the device's RAM`,
			func(s *scope, n *node) { s.board(n, &s.cfg.Daemon.Board) }},
		{"ike_port", aNumber, `our UDP port for IKE; 500`,
			func(s *scope, n *node) { s.port(n, &s.cfg.Daemon.IKEPort) }},
		{"natt_port", aNumber, `our UDP port for IKE and ESP behind a NAT; 4500`,
			func(s *scope, n *node) { s.port(n, &s.cfg.Daemon.NATTPort) }},
		{"keep_alive", aDuration, `NAT keepalives after that long a silence, at least 5 s; 0: none; "20s"`,
			func(s *scope, n *node) { s.keepAlive(n, &s.cfg.Daemon.KeepAlive) }},
		{"control", aText, `path of the control socket; "/run/postern.sock"`,
			func(s *scope, n *node) { s.socketPath(n, &s.cfg.Daemon.Control) }},
		{"state_dir", aText, `directory for the few secrets that survive a restart; "": none do; "/etc/postern/state"`,
			func(s *scope, n *node) { s.directory(n, &s.cfg.Daemon.StateDir) }},
		{"qcd", aSwitch, `prove a restart to the peers, and believe their proof (RFC 6290); true`,
			func(s *scope, n *node) { s.boolean(n, &s.cfg.Daemon.QCD) }},
		{"dns", aText, `where name servers that gateways assign are made known: "file", as lines of a resolv.conf; "resolvconf", to systemd-resolved or resolvconf; "dnsmasq", in its servers-file; "none"; "none"`,
			func(s *scope, n *node) { s.word(n, dnsWords, func(i int) { s.cfg.Daemon.DNS = DNSMode(i) }) }},
		{"dns_file", aText, `that file; with "file" "/etc/resolv.conf"`,
			func(s *scope, n *node) { s.dnsFile(n, &s.cfg.Daemon.DNSFile) }},
		{"export_keys", aSwitch, `tell whoever may use the control socket the keys of CHILD SAs, so that captures can be decrypted; false`,
			func(s *scope, n *node) { s.boolean(n, &s.cfg.Daemon.ExportKeys) }},
	},
}

var logSection = &section{
	path: "log",
	doc:  `where log lines go, and how much: "error", "warn", "info" or "debug"; "info"`,
	keys: []key{
		{"target", aText, `"stderr" or "syslog"; "stderr"`,
			func(s *scope, n *node) { s.word(n, logTargets, func(i int) { s.cfg.Log.Target = logTargets[i] }) }},
		{"ike", aText, `the negotiation of keys`,
			func(s *scope, n *node) { s.level(n, &s.cfg.Log.IKE) }},
		{"esp", aText, `the protection of packets`,
			func(s *scope, n *node) { s.level(n, &s.cfg.Log.ESP) }},
		{"net", aText, `devices, sockets and routes`,
			func(s *scope, n *node) { s.level(n, &s.cfg.Log.Net) }},
	},
}

var connSection = &section{
	path: "connections.NAME",
	doc:  "a peer: how to reach it and who it is",
	keys: append([]key{
		{"local_addrs", aList, `addresses of ours to use; whatever the route to the peer says`,
			func(s *scope, n *node) { s.localAddrs(n, s.conn) }},
		{"remote_addrs", aList, `addresses or names of the peer, called in this order; prefixes ("10.0.0.0/8") and "%any" may only call us; "%any"`,
			func(s *scope, n *node) { s.remoteAddrs(n, s.conn) }},
		{"remote_port", aNumber, `the peer's UDP port; 500, or 4500 behind a NAT`,
			func(s *scope, n *node) { s.port(n, &s.conn.RemotePort) }},
		{"proposals", aList, `algorithms for IKE, best first, such as "aes128gcm16-prfsha256-x25519"; "default" follows the processor: AES-GCM first if it has AES instructions, or else ChaCha20-Poly1305 alone, each with ML-KEM as an additional key exchange (ke1_mlkem768) where the peer knows it; without "default" and with ke1_ in every proposal a peer has to know it`,
			func(s *scope, n *node) { s.proposals(n, ike.ProtoIKE, &s.conn.Proposals) }},
		{"encap", aSwitch, `ESP in UDP even without a NAT; false`,
			func(s *scope, n *node) { s.boolean(n, &s.conn.Encap) }},
		{"resumption", aSwitch, `let a lost session go on by a ticket instead of a key exchange (RFC 5723); false`,
			func(s *scope, n *node) { s.boolean(n, &s.conn.Resumption) }},
		{"follow_redirects", aSwitch, `as client, go to another gateway when the peer says so (RFC 5685); true`,
			func(s *scope, n *node) {
				var follow bool
				s.boolean(n, &follow)
				s.conn.IgnoreRedirects = !follow
			}},
		{"redirect_to", aText, `as gateway, send clients to that address or domain name; "": serve them`,
			func(s *scope, n *node) { s.gateway(n, &s.conn.RedirectTo) }},
		{"vips", aList, `as client, addresses to ask the gateway for; "0.0.0.0" and "::": any; none`,
			func(s *scope, n *node) { s.virtualAddrs(n, &s.conn.VIPs) }},
		{"dns_domains", aList, `as client in a split tunnel, domains for which the gateway's name servers may be asked, if it names them or something below them (RFC 8598); ".": any, and all names where it names none; where everything goes through the tunnel its servers are for all names; none`,
			func(s *scope, n *node) { s.dnsDomains(n) }},
		{"pools", aList, `as gateway, the sections [pools.…] from which the peer gets virtual addresses; "dynamic" in remote_ts is what it gets; none`,
			func(s *scope, n *node) { s.poolNames(n, s.conn) }},
		{"mobike", aSwitch, `let the tunnel move when addresses or routes change (RFC 4555); true`,
			func(s *scope, n *node) { s.boolean(n, &s.conn.MOBIKE) }},
		{"dpd_delay", aDuration, `ask a peer whether it lives that has not answered a packet for that time, or been silent for four times as long; 0: never; "30s"`,
			func(s *scope, n *node) { s.duration(n, &s.conn.DPDDelay) }},
		{"unique", aText, `older connections of the same peer when it connects: "no": those go that it says it has lost; "replace": all go; "keep": a new one from another address is refused; "never": all stay; "no"`,
			func(s *scope, n *node) {
				s.word(n, uniqueWords, func(i int) { s.conn.Unique = ike.UniquePolicy(i) })
			}},
		{"childless", aText, `IKE first without a child (RFC 6023): "allow" the peer to, "prefer", "force" or "never"; "allow"`,
			func(s *scope, n *node) {
				s.word(n, childlessWords, func(i int) { s.conn.Childless = ike.Childless(i) })
			}},
		{"send_cert", aText, `our certificates are sent "always", "ifasked" (or if the peer sends its own and asks for nothing) or "never"; "ifasked"`,
			func(s *scope, n *node) { s.word(n, sendCertWords, func(i int) { s.conn.SendCert = ike.SendCert(i) }) }},
		{"send_certreq", aSwitch, `ask for the peer's certificates; true`,
			func(s *scope, n *node) {
				var ask bool
				s.boolean(n, &ask)
				s.conn.NoCertReq = !ask
			}},
		{"keyingtries", aNumber, `attempts to reach the peer; 0: for ever; 0`,
			func(s *scope, n *node) { s.number(n, 0, 1000000, &s.conn.KeyingTries) }},
		{"rekey_time", aDuration, `new keys for IKE after that time; 0: never; "4h"`,
			func(s *scope, n *node) { s.duration(n, &s.conn.RekeyTime) }},
		{"reauth_time", aDuration, `both sides prove again who they are after that time, without a gap for the traffic; 0: never; 0`,
			func(s *scope, n *node) { s.duration(n, &s.conn.ReauthTime) }},
		{"over_time", aDuration, `that long after rekey_time and reauth_time the IKE SA is closed; a tenth of the longer one`,
			func(s *scope, n *node) { s.duration(n, &s.conn.OverTime) }},
		{"rand_time", aDuration, `rekey and reauthenticate up to that much earlier, by chance; over_time`,
			func(s *scope, n *node) { s.duration(n, &s.conn.RandTime) }},
		{"retransmit_timeout", aDuration, `the first retransmission; "4s"`,
			func(s *scope, n *node) { s.retryTimeout(n, &s.conn.RetryTimeout) }},
		{"retransmit_base", aFactor, `each later one waits that many times longer, 1 to 10; 1.8`,
			func(s *scope, n *node) { s.factor(n, 1, 10, &s.conn.RetryBase) }},
		{"retransmit_tries", aNumber, `retransmissions until the peer counts as dead, 1 to 30; 5`,
			func(s *scope, n *node) { s.number(n, 1, 30, &s.conn.RetryTries) }},
		{"fragmentation", aText, `large messages in several datagrams: "yes", "accept" (from the peer only) or "no"; "yes"`,
			func(s *scope, n *node) { s.fragmentation(n, &s.conn.Fragmentation) }},
		// 576 is the least that RFC 7383 section 2.5.1 speaks of. Ours leave through links of
		// Ethernet's size at most.
		{"fragment_size", aNumber, `size of those datagrams with their IP header, 576 to 1500; 1280`,
			func(s *scope, n *node) { s.number(n, 576, 1500, &s.conn.FragmentSize) }},
		{"retransmit_limit", aDuration, `no retransmission waits longer than that; 0: no limit; 0`,
			func(s *scope, n *node) { s.retryLimit(n, &s.conn.RetryLimit) }},
		{"retransmit_jitter", aNumber, `percent by which one may come earlier, by chance, 0 to 20; 0`,
			func(s *scope, n *node) { s.number(n, 0, 20, &s.conn.RetryJitter) }},
	}, ppkKeys...),
	subs: append([]sub{
		{name: "local", sec: localSection, open: (*scope).openLocal},
		{name: "remote", sec: remoteSection, open: (*scope).openRemote},
		{name: "children", named: true, sec: childSection, open: (*scope).openChild},
	}, authSubs()...),
}

var localSection = &section{
	path: "connections.NAME.local",
	doc:  "who we are, and how we prove it",
	keys: localKeys,
}

var remoteSection = &section{
	path: "connections.NAME.remote",
	doc:  "who the peer has to be, and how it proves it",
	keys: remoteKeys,
}

var childSection = &section{
	path: "connections.NAME.children.CHILD",
	doc:  "what traffic to protect; the order of the children is the order in which packets are matched",
	keys: append([]key{
		{"local_ts", aList, `what is behind us: "10.1.0.0/24", "10.1.0.5/32[tcp/502]", "10.0.0.1-10.0.0.9", "dynamic[udp/161]", "10.1.0.0/24[udp/2000-3000]", "10.1.0.0/24[icmp/8]" (a type; "3(4)" with its code), "10.1.0.0/24[udp/opaque]" (fragments that show no ports); "dynamic", our address`,
			func(s *scope, n *node) { s.selectors(n, &s.child.LocalTS) }},
		{"remote_ts", aList, `what is behind the peer; "dynamic", the peer's address`,
			func(s *scope, n *node) { s.selectors(n, &s.child.RemoteTS) }},
		{"mode", aText, `"tunnel"; "transport", between the two hosts themselves; "beet", the same with other addresses inside, one on each side; or, without an SA and a peer, "pass": in clear, before all children that protect, "drop": not at all, behind them; "tunnel"`,
			func(s *scope, n *node) { s.word(n, modeWords, func(i int) { s.child.mode = childMode(i) }) }},
		{"non_first_fragments", aText, `with ports in local_ts or remote_ts, whether fragments that show none pass where the first one of their packet did: "no", or "also" if the peer agrees; "no"`,
			func(s *scope, n *node) { s.word(n, fragmentWords, func(i int) { s.child.Fragments = i > 0 }) }},
		{"interface", aText, `a TUN device of its own, such as "ipsec0": what the system's routes lead into it is protected, within local_ts and remote_ts, and nothing else; the device of [daemon], into which policies lead`,
			func(s *scope, n *node) { s.interfaceName(n, &s.child.Interface) }},
		{"interface_addrs", aList, `addresses of that device, with the lengths of their networks: "10.255.0.1/30", "fe80::1/64"; none`,
			func(s *scope, n *node) { s.deviceAddrs(n, &s.child.addrs) }},
		{"esp_proposals", aList, `algorithms for ESP, best first, such as "aes128gcm16-x25519", "aes128gcm16-x25519-ke1_mlkem768" or "aes256-sha256"; "default" as above, with AES-CBC last and no key exchange of its own; where none is asked for, a peer that insists gets one in the group of the IKE SA`,
			func(s *scope, n *node) { s.proposals(n, ike.ProtoESP, &s.child.Proposals) }},
		{"ah_proposals", aList, `algorithms for AH, which authenticates the IP header too and encrypts nothing, such as "sha256-x25519"; instead of esp_proposals; with mode "transport" and "dynamic[esp]" for both selectors it goes around the ESP of other children to that peer`,
			func(s *scope, n *node) { s.proposals(n, ike.ProtoAH, &s.child.Proposals) }},
		{"rekey_time", aDuration, `new keys after that time; 0: never; "1h"`,
			func(s *scope, n *node) { s.duration(n, &s.child.RekeyTime) }},
		{"life_time", aDuration, `the keys are not used longer than that; 110 % of rekey_time`,
			func(s *scope, n *node) { s.duration(n, &s.child.LifeTime) }},
		{"rand_time", aDuration, `rekey up to that much earlier, by chance; life_time less rekey_time`,
			func(s *scope, n *node) { s.duration(n, &s.child.RandTime) }},
		{"rekey_bytes", aVolume, `new keys after that many octets in one direction; 0: no limit; 0`,
			func(s *scope, n *node) { s.volume(n, minRekeyBytes, &s.child.RekeyBytes) }},
		{"life_bytes", aVolume, `the keys protect no more octets than that; 110 % of rekey_bytes`,
			func(s *scope, n *node) { s.volume(n, minRekeyBytes, &s.child.LifeBytes) }},
		{"rand_bytes", aVolume, `rekey up to that many octets earlier, by chance; life_bytes less rekey_bytes`,
			func(s *scope, n *node) { s.volume(n, 0, &s.child.RandBytes) }},
		{"rekey_packets", aVolume, `new keys after that many packets in one direction; 0: no limit; 0`,
			func(s *scope, n *node) { s.volume(n, minRekeyPackets, &s.child.RekeyPackets) }},
		{"life_packets", aVolume, `the keys protect no more packets than that; 110 % of rekey_packets`,
			func(s *scope, n *node) { s.volume(n, minRekeyPackets, &s.child.LifePackets) }},
		{"rand_packets", aVolume, `rekey up to that many packets earlier, by chance; life_packets less rekey_packets`,
			func(s *scope, n *node) { s.volume(n, 0, &s.child.RandPackets) }},
		{"replay_window", aNumber, `how many packets late one may come, 64 to 4096; 0: replays are not noticed; 128`,
			func(s *scope, n *node) { s.zeroOr(n, 64, 4096, &s.child.ReplayWindow) }},
		{"dscp_classes", aList, `a CHILD SA of its own for each class of packets that a queue on the way may pass by the others, by the DSCP inside: ["46", "8,10-14"]; what is in none goes through the first one; none`,
			func(s *scope, n *node) { s.classes(n, s.child) }},
		{"per_cpu_sas", aSwitch, `a CHILD SA of its own for each worker, so that they share nothing, if the peer agrees (RFC 9611); false`,
			func(s *scope, n *node) { s.boolean(n, &s.child.PerCPU) }},
		{"inactivity", aDuration, `close the child when nothing has passed for that long, and with the last one the connection; 0: never; 0`,
			func(s *scope, n *node) { s.duration(n, &s.child.Inactivity) }},
		{"tfc_padding", aPadding, `pad packets inside to that many octets, against conclusions from their sizes; "mtu": to what the path takes; 0: do not; 0`,
			func(s *scope, n *node) { s.padding(n, &s.child.Hiding.Padding) }},
		{"dummy", aDuration, `while nothing is sent a dummy packet leaves about that often, by chance, against conclusions from silence; at least "10ms"; 0: none; 0`,
			func(s *scope, n *node) { s.dummies(n, &s.child.Hiding.Dummies) }},
		{"iptfs", aRequire, `put packets into packets of one size that leave at times which tell nothing (IP-TFS, RFC 9347), if the peer does, too; "require": or not at all; false`,
			func(s *scope, n *node) { s.iptfs(n, &s.child.Hiding.IPTFS) }},
		{"iptfs_mode", aText, `"constant": as many as iptfs_rate says, on a path whose bandwidth is ours; "congestion": as many as the path lets pass; "aggregate": when there is something to send, which hides little; "congestion"`,
			func(s *scope, n *node) {
				s.word(n, iptfsWords, func(i int) { s.child.Hiding.Mode = ike.IPTFSMode(i) })
			}},
		{"iptfs_rate", aRate, `bits per second that leave all the time, with "congestion" at most: 128000, "2M"; IP headers count`,
			func(s *scope, n *node) { s.rate(n, &s.child.Hiding.Rate) }},
		// Nothing shorter leaves room for more than headers, and nothing longer for them in a
		// packet buffer of every board.
		{"iptfs_size", aNumber, `length of the packets with their IP header, 256 to 1500; 0: what the path takes; 0`,
			func(s *scope, n *node) { s.zeroOr(n, 256, 1500, &s.child.Hiding.Size) }},
		{"iptfs_dont_frag", aSwitch, `keep packets whole: neither send nor take parts of one; false`,
			func(s *scope, n *node) { s.boolean(n, &s.child.Hiding.NoFrags) }},
		{"iptfs_trip_loss", aNumber, `with "constant": stop for good, and say so, if that many percent of the packets are lost for iptfs_trip_time; 1 to 100, 0: do not; 0`,
			func(s *scope, n *node) { s.zeroOr(n, 1, 100, &s.child.Hiding.TripLoss) }},
		{"iptfs_trip_time", aDuration, `how long losses have to last for that; "1m"`,
			func(s *scope, n *node) { s.duration(n, &s.child.Hiding.TripTime) }},
		{"start_action", aText, `"start": at once and for ever; "trap": with the first packet; "none": by hand or by the peer; "none"`,
			func(s *scope, n *node) {
				s.word(n, startWords, func(i int) { s.child.StartAction = ike.StartAction(i) })
			}},
		{"dpd_action", aText, `when the peer is dead: "restart", "trap" or "clear"; as start_action`,
			func(s *scope, n *node) {
				s.word(n, peerWords, func(i int) { s.child.DPDAction = ike.PeerAction(i) })
			}},
		{"close_action", aText, `when the peer closes the child: "restart", "trap" or "clear"; as start_action`,
			func(s *scope, n *node) {
				s.word(n, peerWords, func(i int) { s.child.CloseAction = ike.PeerAction(i) })
			}},
	}, append(headerKeys, updownKeys...)...),
}

var policySection = &section{
	path: "policies.NAME",
	doc:  "an ordered table of what happens to which packets: the first section that fits a packet decides; children that none of them names follow behind",
	keys: []key{
		{"action", aText, `"protect", "bypass" (in clear) or "discard"`,
			func(s *scope, n *node) { s.word(n, actionWords, func(i int) { s.policy.action = esp.Action(i) }) }},
		{"direction", aText, `packets that go "out", come "in", or "both"; "both"`,
			func(s *scope, n *node) {
				s.word(n, directionWords, func(i int) { s.policy.dir = esp.Directions(i) })
			}},
		{"local_ts", aList, `what is on our side, written as for a child; that of the child, or any address`,
			func(s *scope, n *node) { s.fixedSelectors(n, &s.policy.local) }},
		{"remote_ts", aList, `what is on the other side; that of the child, or any address`,
			func(s *scope, n *node) { s.fixedSelectors(n, &s.policy.remote) }},
		{"child", aText, `whose SAs protect it: "connection/child"; any SA that fits, and without one it is dropped`,
			func(s *scope, n *node) { s.childName(n) }},
	},
}

var manualSection = &section{
	path: "manual.NAME",
	doc:  "a pair of SAs with keys that nobody negotiates; the peer has the same with in and out exchanged",
	keys: []key{
		{"local_addrs", aList, `our address: one`,
			func(s *scope, n *node) { s.oneAddress(n, &s.manual.local) }},
		{"remote_addrs", aList, `the peer's address: one`,
			func(s *scope, n *node) { s.oneAddress(n, &s.manual.remote) }},
		{"local_ts", aList, `what is behind us, written as for a child, groups of multicast that it hears among it; "dynamic", our address`,
			func(s *scope, n *node) { s.selectors(n, &s.manual.localTS) }},
		{"remote_ts", aList, `what is behind the peer, groups that it hears among it; "dynamic", the peer's address`,
			func(s *scope, n *node) { s.selectors(n, &s.manual.remoteTS) }},
		{"mode", aText, `"tunnel", "transport" or "beet"; "tunnel"`,
			func(s *scope, n *node) { s.word(n, modeWords, func(i int) { s.manual.mode = childMode(i) }) }},
		{"esp_proposals", aList, `the algorithms of ESP: one suite, such as "aes256-sha256"`,
			func(s *scope, n *node) { s.oneSuite(n, ike.ProtoESP) }},
		{"ah_proposals", aList, `the algorithm of AH, such as "sha256"; instead of esp_proposals`,
			func(s *scope, n *node) { s.oneSuite(n, ike.ProtoAH) }},
		{"spi_in", aNumber, `the number of the SA on which the peer sends, 0x100 to 0xffffffff`,
			func(s *scope, n *node) { s.spi(n, &s.manual.In.SPI) }},
		{"spi_out", aNumber, `the number of the SA on which we send`,
			func(s *scope, n *node) { s.spi(n, &s.manual.Out.SPI) }},
		{"encr_key_in", aText, `the key of the cipher, with the salt behind it where it has one, on which the peer sends: "0x…"`,
			(*scope).manualKey},
		{"encr_key_out", aText, `the same, on which we send`, (*scope).manualKey},
		{"integ_key_in", aText, `the key of the integrity algorithm, where there is one, on which the peer sends: "0x…"`,
			(*scope).manualKey},
		{"integ_key_out", aText, `the same, on which we send`, (*scope).manualKey},
		{"key_file", aText, `or the file that holds these keys, with mode 600: a line "encr_key_in = 0x…" for each; relative to the configuration`,
			(*scope).keyFile},
		{"encap", aSwitch, `ESP in UDP, from natt_port to port 4500; false`,
			func(s *scope, n *node) { s.boolean(n, &s.manual.encap) }},
		{"replay_window", aNumber, `how many packets late one may come, 64 to 4096; 0: replays are not noticed; 128 with keep_sequence, else 0`,
			func(s *scope, n *node) { s.zeroOr(n, 64, 4096, &s.manual.window) }},
		{"keep_sequence", aSwitch, `the sequence numbers go on after a restart, by numbers reserved in state_dir; without it counter modes (GCM, CCM, CTR, GMAC, ChaCha20) are refused, and with it a state_dir that is put back from a copy, or keys that another device uses, give away what they protect; false`,
			func(s *scope, n *node) { s.boolean(n, &s.manual.Keep) }},
	},
}

var secretSection = &section{
	path: "secrets.NAME",
	doc:  "a pre-shared key",
	keys: []key{
		{"id", aList, `the identities that share the key; any`,
			func(s *scope, n *node) { s.identities(n, &s.secret.IDs) }},
		{"secret", aText, `the key: "a text", "0x…" in hexadecimal or "0s…" in base64; "postern psk" makes a good one`,
			func(s *scope, n *node) { s.inlineSecret(n) }},
		{"secret_file", aText, `or the file that holds it, with mode 600; relative to the configuration`,
			func(s *scope, n *node) { s.fileSecret(n) }},
	},
}

// The words of the keys that choose, in the order of the constants that they stand for.
var (
	logTargets     = []string{"stderr", "syslog"}
	uniqueWords    = []string{ike.UniqueNo: "no", ike.UniqueNever: "never", ike.UniqueKeep: "keep", ike.UniqueReplace: "replace"}
	childlessWords = []string{ike.ChildlessAllow: "allow", ike.ChildlessPrefer: "prefer", ike.ChildlessForce: "force", ike.ChildlessNever: "never"}
	startWords     = []string{ike.StartNone: "none", ike.StartTrap: "trap", ike.StartStart: "start"}
	peerWords      = []string{ike.ActionClear: "clear", ike.ActionTrap: "trap", ike.ActionRestart: "restart"}
	modeWords      = []string{modeTunnel: "tunnel", modeTransport: "transport", modeBEET: "beet", modePass: "pass", modeDrop: "drop"}
	fragmentWords  = []string{"no", "also"}
	actionWords    = []string{esp.Discard: "discard", esp.Bypass: "bypass", esp.Protect: "protect"}
	directionWords = []string{esp.BothWays: "both", esp.OnlyIn: "in", esp.OnlyOut: "out"}
	iptfsWords     = []string{ike.IPTFSCongestion: "congestion", ike.IPTFSConstant: "constant", ike.IPTFSAggregate: "aggregate"}
	fragWords      = []string{ike.FragmentYes: "yes", ike.FragmentAccept: "accept", ike.FragmentNo: "no"}
)

// walk reads table t along its section, in the order of the file.
func (l *loader) walk(sec *section, t *node, s *scope) {
	for _, n := range t.entries {
		if l.vici != nil && l.vici.walk(sec, n, s) {
			continue
		}
		if k := sec.key(n.name); k != nil {
			if !k.typ.takes(n.kind) {
				l.wrongKind(n, "%s must be %s", n.name, k.typ.words)
				continue
			}
			before := len(l.problems)
			k.set(s, n)
			if len(l.problems) > before {
				n.bad = true
			}
			continue
		}
		sb := sec.sub(n.name)
		switch {
		case sb == nil:
			t.bad = true // what is missing may stand under the wrong name
			l.unknown(sec, n)
		case sb.named:
			l.walkNamed(sb, n, s)
		case n.kind != kindTable:
			l.wrongKind(n, "%s must be a section [%s]", n.name, sb.sec.path)
			l.broken = true
		default:
			l.walk(sb.sec, n, sb.scope(s, n))
		}
	}
}

// walkNamed reads the tables that the user has named.
func (l *loader) walkNamed(sb *sub, n *node, s *scope) {
	if n.kind != kindTable {
		l.wrongKind(n, "%s must be sections with names: [%s]", n.name, sb.sec.path)
		l.broken = true
		return
	}
	for _, e := range n.entries {
		switch {
		case e.kind != kindTable:
			l.wrongKind(e, "%s in [%s] must be a section with a name: [%s]", shown(e.name), n.name, sb.sec.path)
			l.broken = true
		case !goodName(e.name):
			l.broken = true
			l.problem(e.key, "use letters, digits, - and _", "%s is no name for a section", shown(e.name))
		default:
			l.walk(sb.sec, e, sb.scope(s, e))
		}
	}
}

func (sb *sub) scope(s *scope, n *node) *scope {
	if sb.open == nil {
		return s
	}
	return sb.open(s, n)
}

func (l *loader) wrongKind(n *node, format string, args ...any) {
	n.bad = true
	at := n.at
	if n.kind == kindTable || n.kind == kindTables {
		at = n.key
	}
	l.problem(at, "", "%s, not %s", fmt.Sprintf(format, args...), n.kind)
}

// maxName is the length of a section's name: it stands in tables of 80 columns.
const maxName = 64

func goodName(s string) bool {
	if s == "" || len(s) > maxName {
		return false
	}
	for i := 0; i < len(s); i++ {
		if !isBare(s[i]) && s[i] != '.' {
			return false
		}
	}
	return true
}

func (sec *section) key(name string) *key {
	for i := range sec.keys {
		if sec.keys[i].name == name {
			return &sec.keys[i]
		}
	}
	return nil
}

func (sec *section) sub(name string) *sub {
	for i := range sec.subs {
		if sec.subs[i].name == name {
			return &sec.subs[i]
		}
	}
	return nil
}

// names lists the keys and tables of a section.
func (sec *section) names() []string {
	var names []string
	for _, k := range sec.keys {
		names = append(names, k.name)
	}
	for _, sb := range sec.subs {
		names = append(names, sb.name)
	}
	return names
}

// each calls f for the section and all below it.
func (sec *section) each(f func(*section)) {
	f(sec)
	for _, sb := range sec.subs {
		sb.sec.each(f)
	}
}

// unknown notes a key that the section does not have, and guesses what was meant: the
// same key of another section, or one of this section that is spelt nearly so.
func (l *loader) unknown(sec *section, n *node) {
	n.bad = true
	what := "unknown key " + shown(n.name)
	if n.kind == kindTable || n.kind == kindTables {
		what = "unknown section " + shown(n.name)
		l.broken = true
	}
	near, best := "", 3
	for _, name := range sec.names() {
		if d := distance(n.name, name, best); d < best && d*3 <= len(name) {
			near, best = name, d
		}
	}
	var homes []string
	rootSection.each(func(other *section) {
		if other.key(n.name) != nil && !other.rare && n.kind != kindTable && n.kind != kindTables {
			homes = append(homes, "["+other.path+"]")
		}
	})
	switch {
	case near != "":
		l.problem(n.key, "", "%s: did you mean %s?", what, near)
	case len(homes) > 0:
		l.problem(n.key, "it belongs into "+strings.Join(homes, " or "), "%s in %s", what, sec.title())
	default:
		l.problem(n.key, sec.title()+" has "+strings.Join(sec.names(), ", "), "%s", what)
	}
}

func (sec *section) title() string {
	if sec.path == "" {
		return "the top of the file"
	}
	return "[" + sec.path + "]"
}

// distance returns how many letters must be changed, added, dropped or exchanged with
// their neighbour to make b of a; limit if that many or more.
func distance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	before := make([]int, len(b)+1) // the row before the last one
	last := make([]int, len(b)+1)
	row := make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return min(last[len(b)], limit)
}

// WriteReference writes every section and key with what it means and, last, its
// default.
func WriteReference(w io.Writer) error {
	var err error
	rootSection.each(func(sec *section) {
		if sec.path == "" || err != nil {
			return
		}
		_, err = fmt.Fprintf(w, "[%s]  # %s\n", sec.path, sec.doc)
		for _, k := range sec.keys {
			if err == nil {
				_, err = fmt.Fprintf(w, "  %-18s  %s\n", k.name, k.doc)
			}
		}
	})
	return err
}
