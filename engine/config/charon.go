package config

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/esp"
	"postern/ike"
	"postern/ike/pki"
)

// What VICI says otherwise than the file. A key that is not here is that of the file's schema. So
// each key of swanctl.conf is honoured, or it may have only the values that mean what is done
// anyway, or it is refused with the reason; viciKeys says which.

// keyList is a table of keys.
type keyList []key

func (l keyList) find(name string) *key {
	for i := range l {
		if l[i].name == name {
			return &l[i]
		}
	}
	return nil
}

// only is a key that may have but these values, because they mean what is done anyway.
func only(name, why, instead string, words ...string) key {
	return key{name, aText, why, func(s *scope, n *node) {
		w := strings.ToLower(n.text)
		if b := switchWords[w]; b != "" && len(w) > 1 { // 0 and 1 are numbers where no word is yes or no
			w = map[string]string{"true": "yes", "false": "no"}[b]
		} else if b != "" && (slices.Contains(words, "yes") || slices.Contains(words, "no")) {
			w = map[string]string{"true": "yes", "false": "no"}[b]
		}
		if !slices.Contains(words, w) {
			s.problem(n.at, instead, "%s %s cannot be honoured: %s", n.name, strconv.Quote(clipName(n.text)), why)
		}
	}}
}

// never is a key that is refused, whatever it says.
func never(name, why, instead string) key {
	return key{name, nil, why, func(s *scope, n *node) {
		s.problem(n.at, instead, "%s cannot be honoured: %s", n.name, why)
	}}
}

// unused is a key that says nothing to IKEv2, with strongSwan as well; its value has to be one of
// its type.
func unused(name, why string, t *typ, check func(s *scope, n *node)) key {
	return key{name, t, why, check}
}

const (
	noEAP   = "there is no EAP and no XAuth here"
	useKeys = "prove both sides with pubkey or psk"
	noMarks = "marks are of the kernel's IPsec, which is not what protects packets here"
	noXFRM  = "XFRM interfaces are of the kernel's IPsec, which is not what protects packets here"
	leaveIt = "leave it out"
	noToken = "keys and certificates on tokens cannot be used"
)

func anyDurationOf(s *scope, n *node) { var d time.Duration; s.duration(n, &d) }
func anySwitchOf(s *scope, n *node)   { var b bool; s.boolean(n, &b) }

// viciKeys are the keys by the path of their section.
var viciKeys = map[string]keyList{
	"connections.NAME": {
		only("version", "only IKEv2 is spoken", "write 2, and the same at the peer", "0", "2"),
		{"local_addrs", aList, "", func(s *scope, n *node) { s.viciLocalAddrs(n) }},
		{"remote_addrs", aList, "", func(s *scope, n *node) { s.viciRemoteAddrs(n) }},
		{"local_port", aNumber, "", (*scope).viciLocalPort},
		only("aggressive", "it is of IKEv1", leaveIt, "no"),
		only("pull", "push mode is of IKEv1", leaveIt, "yes"),
		only("dscp", "packets of IKE have no mark of their own", leaveIt, "000000", "0"),
		unused("dpd_timeout", "IKEv2 goes by its retransmissions", aDuration, anyDurationOf),
		lowered(connSection, "childless"),
		lowered(connSection, "send_cert"),
		lowered(connSection, "unique"),
		{"vips", aList, "", func(s *scope, n *node) {
			for _, e := range n.list {
				switch e.text {
				case anyAddr, "%config", "%config4", "%any4":
					e.text = "0.0.0.0"
				case "%config6", "%any6", "0::0":
					e.text = "::"
				}
			}
			s.virtualAddrs(n, &s.conn.VIPs)
		}},
		{"fragmentation", aText, "", func(s *scope, n *node) {
			w := lower(n)
			if b := switchWords[n.text]; b != "" {
				w.text = map[string]string{"true": "yes", "false": "no"}[b]
			}
			if w.text == "force" { // IKEv2 has no other way than after the peer has agreed
				w.text = "yes"
			}
			s.fragmentation(w, &s.conn.Fragmentation)
		}},
		only("if_id_in", noXFRM, leaveIt, "0"),
		only("if_id_out", noXFRM, leaveIt, "0"),
		only("mediation", "mediated connections are an experiment of strongSwan's", leaveIt, "no"),
		never("mediated_by", "mediated connections are an experiment of strongSwan's", leaveIt),
		never("mediation_peer", "mediated connections are an experiment of strongSwan's", leaveIt),
	},
	"connections.NAME.local":  append(roundKeys(), localVICI...),
	"connections.NAME.remote": append(roundKeys(), remoteVICI...),
	"connections.NAME.children.CHILD": {
		{"mode", aText, "", func(s *scope, n *node) {
			if lower(n).text == "transport_proxy" {
				s.problem(n.at, `write "transport" or "tunnel"`, "mode \"transport_proxy\" cannot be honoured: it is for Mobile IPv6")
				return
			}
			s.word(lower(n), modeWords, func(i int) { s.child.mode = childMode(i) })
		}},
		only("sha256_96", "SHA-256 is cut to 128 bits, as RFC 4868 says", "give the peer the right one", "no"),
		only("policies", "what a child protects is what its policies say", leaveIt, "yes"),
		unused("policies_fwd_out", "what is forwarded is protected as what this host sends", aSwitch, anySwitchOf),
		only("ipcomp", "there is no compression here", leaveIt, "no"),
		only("reqid", "SAs have no numbers that other programs could refer to", leaveIt, "0"),
		{"priority", aNumber, "", func(s *scope, n *node) {
			var v int
			s.number(n, 0, 1<<31-1, &v)
			s.child.priority = uint32(v)
		}},
		{"ah_proposals", aList, "", func(s *scope, n *node) { s.viciProposals(n, ike.ProtoAH) }},
		{"esp_proposals", aList, "", func(s *scope, n *node) { s.viciProposals(n, ike.ProtoESP) }},
		{"local_ts", aList, "", func(s *scope, n *node) { s.viciSelectors(n, &s.child.LocalTS) }},
		{"remote_ts", aList, "", func(s *scope, n *node) { s.viciSelectors(n, &s.child.RemoteTS) }},
		lowered(childSection, "copy_dscp"),
		never("interface", "policies are for the packets of all devices", leaveIt),
		onlyZero("mark_in", noMarks),
		only("mark_in_sa", noMarks, leaveIt, "no"),
		onlyZero("mark_out", noMarks),
		onlyZero("set_mark_in", noMarks),
		onlyZero("set_mark_out", noMarks),
		only("if_id_in", noXFRM, leaveIt, "0"),
		only("if_id_out", noXFRM, leaveIt, "0"),
		never("label", "security labels are of the kernel's IPsec, which is not what protects packets here", leaveIt),
		only("label_mode", "there are no labels", leaveIt, "system", "simple"),
		{"replay_window", aNumber, "", func(s *scope, n *node) {
			v := 0
			s.number(n, 0, 4096, &v)
			// Ours are never smaller than the 64 of RFC 4303; more is no less safe.
			if s.child.ReplayWindow = v; v > 0 {
				s.child.ReplayWindow = max(v, 64)
			}
		}},
		only("hw_offload", "packets are protected in user space", `leave it out, or write "auto"`, "no", "auto"),
		{"start_action", aText, "", func(s *scope, n *node) { s.viciStart(n) }},
		{"dpd_action", aText, "", func(s *scope, n *node) { s.viciAction(n, &s.child.DPDAction) }},
		{"close_action", aText, "", func(s *scope, n *node) { s.viciAction(n, &s.child.CloseAction) }},
		{"per_cpu_sas", aText, "", func(s *scope, n *node) {
			if lower(n).text == "encap" {
				s.problem(n.at, "write yes", "per_cpu_sas \"encap\" cannot be honoured: there are no different ports for each")
				return
			}
			if s.vici.coerce(n, aSwitch) {
				s.boolean(n, &s.child.PerCPU)
			}
		}},
	},
	"pools.NAME": {
		{"addrs", aText, "", func(s *scope, n *node) { s.viciPoolAddrs(n) }},
		{"subnet", aList, "", func(s *scope, n *node) { s.prefixes(n, &s.pool.Subnets) }},
		{"split_include", aList, "", func(s *scope, n *node) { s.prefixes(n, &s.pool.Subnets) }},
		never("split_exclude", "IKEv2 has no attribute for it; clients with strongSwan only know Cisco's of IKEv1", leaveIt),
		never("dhcp", "no client of IKEv2 uses it", leaveIt),
		never("netmask", "clients of IKEv2 have single addresses, and what is behind the gateway by its selectors", leaveIt),
		never("server", "no client of IKEv2 uses it", leaveIt),
	},
	"authorities.NAME": {
		{"cacert", aText, "", (*scope).viciCACert},
		{"file", aText, "", (*scope).viciCACert},
		never("handle", noToken, "name the certificate in cacert"),
		never("slot", noToken, leaveIt),
		never("module", noToken, leaveIt),
		never("cert_uri_base", "certificates are not taken from URIs that a peer names (hash and URL)", leaveIt),
	},
}

// onlyZero is a mark that is none.
func onlyZero(name, why string) key {
	return key{name, aText, why, func(s *scope, n *node) {
		value, _, _ := strings.Cut(n.text, "/")
		if v, err := strconv.ParseUint(value, 0, 32); err != nil || v != 0 {
			s.problem(n.at, leaveIt, "%s %s cannot be honoured: %s", n.name, strconv.Quote(clipName(n.text)), why)
		}
	}}
}

// roundKeys are those of both sides.
func roundKeys() keyList {
	return keyList{
		{"round", aNumber, "", func(s *scope, n *node) { v := 0; s.number(n, 0, 1<<30, &v) }},
		{"auth", aText, "", (*scope).viciAuth},
		{"certs", aData, "", (*scope).viciRoundCerts},
		{"pubkeys", aData, "", (*scope).viciPubkeys},
		never("key", "VICI loads private keys by themselves", "load it with load-key"),
		never("eap_id", noEAP, useKeys),
	}
}

// lowered is a key of the file whose words VICI takes in capitals as well.
func lowered(sec *section, name string) key {
	k := *sec.key(name)
	set := k.set
	k.set = func(s *scope, n *node) { set(s, lower(n)) }
	return k
}

var (
	localVICI = keyList{
		{"id", aText, "", (*scope).viciID},
		never("aaa_id", noEAP, useKeys),
		never("xauth_id", noEAP, useKeys),
	}
	remoteVICI = keyList{
		{"id", aText, "", (*scope).viciID},
		{"cacerts", aData, "", func(s *scope, n *node) {
			s.viciCerts(n, func(c *pki.Cert) { s.peer.auth.Anchors = append(s.peer.auth.Anchors, c) })
		}},
		lowered(remoteSection, "revocation"),
		never("groups", "there are no attribute certificates here", "name the CA of the group in cacerts"),
		{"cert_policy", aList, "", func(s *scope, n *node) {
			for _, e := range n.list {
				if !goodOID(e.text) {
					s.problem(e.at, `write "1.3.6.1.4.1.99999.1"`, "cert_policy %q is no object identifier", clipName(e.text))
					continue
				}
				s.peer.auth.Policies = append(s.peer.auth.Policies, e.text)
			}
		}},
		{"ca_id", aText, "", func(s *scope, n *node) { s.identity(n, &s.peer.auth.CA) }},
	}
)

// lower returns a node with the text in small letters, as strongSwan takes words.
func lower(n *node) *node {
	c := *n
	c.text = strings.ToLower(n.text)
	return &c
}

// viciLocalPort takes the port that the sockets have anyway.
func (s *scope) viciLocalPort(n *node) {
	var port int
	s.number(n, 0, 65535, &port)
	d := &s.cfg.Daemon
	if port != 0 && port != int(d.IKEPort) && port != int(d.NATTPort) && !n.bad {
		s.problem(n.at, "leave it out, or set ike_port of [daemon]", "local_port %d cannot be honoured: all connections share port %d", port, d.IKEPort)
	}
}

// checkLocalPort notes where we cannot call from the port of NAT traversal: what leaves it has the
// marker of RFC 3948, which only another port than 500 expects.
func (l *loader) checkLocalPort(c *conn) {
	n := c.t.get("local_port")
	if n != nil && !n.bad && n.text == strconv.Itoa(int(l.cfg.Daemon.NATTPort)) && callable(c.Conn) && (c.RemotePort == 0 || c.RemotePort == 500) {
		l.problem(n.at, "leave it out, or write remote_port = 4500 beside it", "local_port %s cannot be honoured: it does not go with port 500 of the peer", n.text)
	}
}

// anyWords are how strongSwan's configurations write any address, of both families or of one.
var anyWords = map[string]families{anyAddr: family4 | family6, "%any4": family4, "%any6": family6,
	"0.0.0.0": family4, "0.0.0.0/0": family4, "::": family6, "::/0": family6, "0::0": family6, "0::0/0": family6}

func (s *scope) viciLocalAddrs(n *node) {
	keep := n.list[:0]
	wild, nets := false, []netip.Prefix(nil)
	for _, e := range n.list {
		list, net := s.viciNet(e)
		switch {
		case anyWords[e.text] != 0:
			wild = true
		case net && len(list) == 1 && list[0].IsSingleIP():
			e.text = list[0].Addr().String()
			keep = append(keep, e)
		case net:
			nets = append(nets, list...)
		case isName(e.text):
			s.problem(e.at, "write the address, or leave it out for whatever the route says",
				"%s %q cannot be honoured: names of ours are not looked up", n.name, clipName(e.text))
		default:
			keep = append(keep, e)
		}
	}
	if n.list = keep; len(keep) > 0 {
		s.localAddrs(n, s.conn)
	}
	if !wild {
		s.conn.LocalNets = nets
	}
}

// viciNet reads a network or a range of addresses; false if it is neither.
func (s *scope) viciNet(e *node) ([]netip.Prefix, bool) {
	if first, last, ok := strings.Cut(e.text, "-"); ok && !isName(e.text) {
		a, err := netip.ParseAddr(first)
		b, err2 := netip.ParseAddr(last)
		if err != nil || err2 != nil || a.BitLen() != b.BitLen() || b.Less(a) || a.Zone() != "" || b.Zone() != "" {
			s.problem(e.at, `write "10.0.0.1-10.0.0.9"`, "%q is no range of addresses", clipName(e.text))
			return nil, true
		}
		return rangePrefixes(a, b), true
	}
	p, err := netip.ParsePrefix(e.text)
	if err != nil || p.Addr().Is4In6() {
		return nil, false
	}
	return []netip.Prefix{p.Masked()}, true
}

func (s *scope) viciRemoteAddrs(n *node) {
	var list []*node
	prefix := func(e *node, p netip.Prefix) {
		c := *e
		if c.text = p.String(); p.IsSingleIP() {
			c.text = p.Addr().String()
		}
		list = append(list, &c)
	}
	var wild families
	for _, e := range n.list {
		if f := anyWords[e.text]; f != 0 {
			wild |= f
			continue
		}
		if ps, ok := s.viciNet(e); ok {
			for _, p := range ps {
				prefix(e, p)
			}
			continue
		}
		list = append(list, e)
	}
	if wild == family4|family6 && len(list) == 0 {
		return // the default
	}
	any4 := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	any6 := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	at := node{kind: kindString, at: n.at}
	if wild&family4 != 0 {
		prefix(&at, any4)
	}
	if wild&family6 != 0 {
		prefix(&at, any6)
	}
	n.list = list
	if len(list) > 0 {
		s.remoteAddrs(n, s.conn)
	}
}

// rangePrefixes returns the prefixes that make up a range of addresses.
func rangePrefixes(a, b netip.Addr) (list []netip.Prefix) {
	for {
		bits := a.BitLen()
		for bits > 0 {
			p := netip.PrefixFrom(a, bits-1)
			if p.Masked().Addr() != a || b.Less(esp.SelectorFromPrefix(p).End) {
				break
			}
			bits--
		}
		p := netip.PrefixFrom(a, bits)
		list = append(list, p)
		end := esp.SelectorFromPrefix(p).End
		if end == b || len(list) > maxList {
			return list
		}
		a = end.Next()
	}
}

// defaultAH is what "default" stands for among the proposals of AH, for which the file has none.
const defaultAH = "sha256-sha384-sha512-noesn-esn"

// viciProposals reads proposals for CHILD SAs. Beside ciphers that protect integrity themselves
// strongSwan leaves an integrity algorithm out.
func (s *scope) viciProposals(n *node, proto ike.Protocol) {
	for _, e := range n.list {
		if proto == ike.ProtoAH && e.text == "default" {
			e.text = defaultAH
			continue
		}
		words := strings.Split(e.text, "-")
		aead := func(w string) bool {
			return strings.Contains(w, "gcm") || strings.Contains(w, "ccm") || strings.Contains(w, "gmac") || strings.HasPrefix(w, "chacha")
		}
		if proto == ike.ProtoESP && slices.ContainsFunc(words, aead) {
			e.text = strings.Join(slices.DeleteFunc(words, func(w string) bool {
				return strings.HasPrefix(w, "sha") || w == "aesxcbc" || w == "aescmac"
			}), "-")
		}
	}
	s.proposals(n, proto, &s.child.Proposals)
}

// viciSelectors reads traffic selectors. Bits of a host in a network, and the same twice, do no
// harm with strongSwan.
func (s *scope) viciSelectors(n *node, to *[]ike.TS) {
	seen := map[string]bool{}
	list := n.list[:0]
	for _, e := range n.list {
		addrs, tail, bracket := strings.Cut(e.text, "[")
		if p, err := netip.ParsePrefix(addrs); err == nil {
			addrs = p.Masked().String()
		}
		if addrs == "%dynamic" {
			addrs = dynamicTS
		}
		if e.text = addrs; bracket {
			e.text += "[" + tail
		}
		if !seen[e.text] {
			seen[e.text] = true
			list = append(list, e)
		}
	}
	n.list = list
	s.selectors(n, to)
}

// viciStart reads when a child is started. With trap|start its packets wait for it as with any
// child that is started here.
func (s *scope) viciStart(n *node) {
	w := lower(n)
	switch w.text {
	case "trap|start", "start|trap", "restart":
		w.text = "start"
	case "route":
		w.text = "trap"
	case "clear":
		w.text = "none"
	}
	s.word(w, startWords, func(i int) { s.child.StartAction = ike.StartAction(i); n.text = w.text })
}

func (s *scope) viciAction(n *node, to *ike.PeerAction) {
	w := lower(n)
	switch w.text {
	case "start":
		w.text = "restart"
	case "route", "hold":
		w.text = "trap"
	case "none":
		w.text = "clear"
	}
	s.word(w, peerWords, func(i int) { *to = ike.PeerAction(i); n.text = w.text })
}

// viciPoolAddrs reads one prefix or range. strongSwan leaves the first and the last address of a
// prefix out as we do; where it begins within one it is a range from there.
func (s *scope) viciPoolAddrs(n *node) {
	if p, err := netip.ParsePrefix(n.text); err == nil && p != p.Masked() && !p.Addr().Is4In6() {
		end := esp.SelectorFromPrefix(p.Masked()).End
		n.text = p.Addr().String() + "-" + end.Prev().String()
	}
	n.kind, n.list = kindList, split(n)
	s.poolAddrs(n)
}

// viciID reads an identity; %any is what is meant without one.
func (s *scope) viciID(n *node) {
	if id, err := ike.ParseIDString(n.text); err == nil && id == (ike.ID{}) {
		return
	}
	s.identity(n, s.peer.id)
}

// goodOID tells whether a text is an object identifier as it is printed.
func goodOID(text string) bool {
	arcs := strings.Split(text, ".")
	for _, a := range arcs {
		if v, err := strconv.ParseUint(a, 10, 31); err != nil || strconv.FormatUint(v, 10) != a {
			return false
		}
	}
	return len(arcs) > 1
}

// authKinds are the kinds of keys that auth may name, as keys name themselves.
var authKinds = map[string]string{"rsa": "RSA", "rsa/pss": "RSA", "ecdsa": "ECDSA", "ed25519": "Ed25519"}

// viciAuth reads how a side proves who it is: "psk", "pubkey" or kinds of keys, with the least
// strength of these and with hashes: "rsa-3072-sha256-ecdsa-256-sha256".
func (s *scope) viciAuth(n *node) {
	text := strings.TrimPrefix(strings.ToLower(n.text), "ike:")
	deny := func(instead, why string) {
		s.problem(n.at, instead, "auth %q cannot be honoured: %s", clipName(n.text), why)
	}
	if strings.HasPrefix(text, "eap") || strings.HasPrefix(text, "xauth") {
		deny(useKeys, noEAP)
		return
	}
	var limits []ike.KeyLimit
	var hashes, these []string // of all kinds, and of the last one
	words, kinds := strings.Split(text, "-"), 0
	closeKind := func() bool {
		if len(hashes) > 0 && len(these) > 0 && !slices.Equal(hashes, these) {
			deny("give all kinds of keys the same hashes", "the hashes of kinds of keys differ")
			return false
		}
		if len(these) > 0 {
			hashes = these
		}
		these = nil
		return true
	}
	for _, w := range words[1:] {
		bits, err := strconv.Atoi(w)
		switch kind := authKinds[w]; {
		case kind != "":
			if kinds++; !closeKind() {
				return
			}
			limits = append(limits, ike.KeyLimit{Key: kind})
			if w == "rsa/pss" || words[0] == "rsa/pss" {
				deny(`write "rsa/pss" alone`, "padding is for one kind of keys")
				return
			}
		case err == nil && authKinds[words[0]] == "":
			deny(`write a kind of keys before it: "rsa-3072"`, "there is a strength of no kind of keys")
			return
		case err == nil && kinds == 0:
			limits = []ike.KeyLimit{{Key: authKinds[words[0]], Bits: bits}}
		case err == nil:
			limits[len(limits)-1].Bits = bits
		default:
			these = append(these, w)
		}
	}
	if !closeKind() {
		return
	}
	first := words[0]
	if kinds > 0 {
		if len(limits) == kinds {
			limits = append([]ike.KeyLimit{{Key: authKinds[first]}}, limits...)
		}
		if authKinds[first] == "" {
			deny("name the kinds of keys alone", "pubkey is any of them")
			return
		}
		first = "pubkey"
	}
	w := *n
	w.text = strings.Join(append([]string{first}, hashes...), "-")
	s.authMethod(&w)
	s.peer.auth.Scheme.Limits = limits
}
