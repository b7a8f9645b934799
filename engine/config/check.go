package config

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/board"
	"postern/esp"
	"postern/ike"
)

// check fills in the defaults that depend on other values and notes what contradicts
// what. A value that has a problem already causes no second one, and when parts of
// the file could not be read at all, nothing is said about what they may have said.
func (l *loader) check(root *node) {
	l.partShunts()
	for _, c := range l.conns {
		l.finishConn(c)
		for _, ch := range c.children {
			l.finishChild(ch)
			l.finishHeaders(ch)
			l.cfg.marks = append(l.cfg.marks, mark{c.t.key, ch.t.key, ch.classes, 0})
			l.addDevice(ch)
		}
	}
	for _, m := range l.manuals {
		l.finishManual(m)
	}
	for _, s := range l.secrets {
		l.cfg.IKE.Secrets = append(l.cfg.IKE.Secrets, s.Secret)
	}
	for _, p := range l.ppks {
		l.cfg.IKE.PPKs = append(l.cfg.IKE.PPKs, p.PPK)
	}
	l.finishPools()
	l.cfg.IKE.Ports = ike.Ports{IKE: l.cfg.Daemon.IKEPort, NATT: l.cfg.Daemon.NATTPort}
	l.finishTrust()
	for _, c := range l.conns {
		l.finishAuth(c)
	}
	if l.broken {
		return
	}
	l.checkDaemon(root)
	for _, c := range l.conns {
		l.checkConn(c)
		l.checkVirtual(c)
		for _, ch := range c.children {
			l.checkChild(ch)
		}
	}
	l.checkPools()
	l.checkSecrets()
	l.checkPPKs()
	l.checkManuals()
	l.checkTable()
	l.checkOrder()
	l.checkTableOrder()
	if len(l.conns) == 0 && root.get("connections") == nil && len(l.manuals) == 0 {
		l.warn(pos{1, 1}, "add a section [connections.NAME]", "there are no connections, so nothing is protected")
	}
}

// finishConn fills in the defaults of a connection.
func (l *loader) finishConn(c *conn) {
	if c.t.get("over_time") == nil {
		c.OverTime = max(c.RekeyTime, c.ReauthTime) / 10
	}
	if c.t.get("rand_time") == nil {
		// Never more than half, so that a short rekey_time does not rekey at once.
		c.RandTime = c.OverTime
		for _, t := range []time.Duration{c.RekeyTime, c.ReauthTime} {
			if t > 0 {
				c.RandTime = min(c.RandTime, t/2)
			}
		}
	}
	if c.t.get("proposals") == nil {
		c.Proposals = numbered(ike.DefaultProposals(ike.ProtoIKE, l.order))
	}
}

// finishChild fills in the defaults of a child.
func (l *loader) finishChild(c *child) {
	dynamic := ike.TS{Dynamic: true, Selector: esp.Selector{EndPort: 65535}}
	if c.mode < modePass {
		c.Mode = esp.Mode(c.mode)
	}
	l.finishUpdown(c)
	if c.t.get("local_ts") == nil {
		c.LocalTS = []ike.TS{dynamic}
	}
	if c.t.get("remote_ts") == nil {
		c.RemoteTS = []ike.TS{dynamic}
	}
	if c.t.get("esp_proposals") == nil && c.t.get("ah_proposals") == nil {
		c.Proposals = numbered(ike.DefaultProposals(ike.ProtoESP, l.order))
	}
	if c.t.get("life_time") == nil {
		c.LifeTime = c.RekeyTime + c.RekeyTime/10
	}
	if c.t.get("rand_time") == nil {
		c.RandTime = max(0, min(c.LifeTime-c.RekeyTime, c.RekeyTime/2))
	}
	for _, v := range c.volumes() {
		if c.t.get("life_"+v.name) == nil {
			*v.life = *v.rekey + *v.rekey/10
		}
		if c.t.get("rand_"+v.name) == nil {
			*v.rand = min(max(*v.life, *v.rekey)-*v.rekey, *v.rekey/2)
		}
	}
	// What is started is kept up: a tunnel that stays down after the peer went away for
	// a minute is what people complain of most.
	again := map[ike.StartAction]ike.PeerAction{ike.StartTrap: ike.ActionTrap, ike.StartStart: ike.ActionRestart}
	if l.vici != nil {
		again = nil // what strongSwan's users do not ask for they do not expect
	}
	if c.t.get("dpd_action") == nil {
		c.DPDAction = again[c.StartAction]
	}
	if c.t.get("close_action") == nil {
		c.CloseAction = again[c.StartAction]
	}
}

func (l *loader) checkDaemon(root *node) {
	t := root.get("daemon")
	if t == nil || t.kind != kindTable {
		return
	}
	l.checkDNS(t)
	d := &l.cfg.Daemon
	if good(t, "ike_port", "natt_port") && d.IKEPort == d.NATTPort {
		at := t.get("natt_port")
		if at == nil {
			at = t.get("ike_port")
		}
		l.problem(at.at, "give them different ports", "ike_port and natt_port are both %d", d.IKEPort)
	}
	if good(t, "board") && d.Board != autoBoard {
		if p, err := board.ByName(d.Board); err == nil {
			if ps, ok := l.cfg.Fits(p).(Problems); ok {
				l.problems = append(l.problems, ps...)
			}
		}
	}
}

func (l *loader) checkConn(c *conn) {
	if good(c.t, "local_addrs", "remote_addrs") {
		l.checkAddrs(c)
	}
	if good(c.t, "rekey_time", "rand_time", "over_time") && c.RekeyTime > 0 && c.RandTime >= c.RekeyTime {
		l.clash(where(c.t, "rand_time"), "make rand_time the shorter one", "rand_time %s is not less than rekey_time %s",
			span(c.RandTime), span(c.RekeyTime))
		c.RandTime = c.RekeyTime / 2
	}
	if good(c.t, "reauth_time", "rand_time", "over_time") && c.ReauthTime > 0 && c.RandTime >= c.ReauthTime {
		l.clash(where(c.t, "rand_time"), "make rand_time the shorter one", "rand_time %s is not less than reauth_time %s",
			span(c.RandTime), span(c.ReauthTime))
		c.RandTime = c.ReauthTime / 2
	}
	if c.idsGood() && c.LocalID != (ike.ID{}) && c.LocalID == c.RemoteID {
		l.clash(where(c.remotes[0].t, "id"), "give each side its own id", "both sides of connection %s have the id %s", c.Name, c.LocalID)
	}
}

// idsGood tells that the identities of both sides have been understood.
func (c *conn) idsGood() bool {
	for _, p := range []*peer{&c.locals[0], &c.remotes[0]} {
		if p.t != nil && (p.t.bad || !good(p.t, "id")) {
			return false
		}
	}
	return !c.t.bad
}

// checkAddrs notes addresses that cannot be the two ends of one tunnel.
func (l *loader) checkAddrs(c *conn) {
	var local, remote families
	for _, a := range c.LocalAddrs {
		local.add(a)
		if slices.Contains(c.RemoteAddrs, netip.PrefixFrom(a, a.BitLen())) {
			l.problem(where(c.t, "remote_addrs"), "the address is either ours or the peer's", "%s is in local_addrs and in remote_addrs", a)
		}
	}
	for _, p := range c.RemoteAddrs {
		remote.add(p.Addr())
	}
	if local != 0 && remote != 0 && local&remote == 0 && len(c.RemoteNames) == 0 {
		l.problem(where(c.t, "local_addrs"), "give both sides an address of the same family",
			"local_addrs and remote_addrs of connection %s have no address family in common", c.Name)
	}
}

// families is a set of address families.
type families uint8

const (
	family4 families = 1 << iota
	family6
)

func (f *families) add(a netip.Addr) {
	if a.Is4() {
		*f |= family4
	} else {
		*f |= family6
	}
}

func (l *loader) checkChild(c *child) {
	rekey := good(c.t, "rekey_time")
	if rekey && good(c.t, "life_time") && c.RekeyTime > 0 && c.LifeTime <= c.RekeyTime {
		l.clash(where(c.t, "life_time"), "make life_time longer, or leave it out to get 110 % of rekey_time",
			"life_time %s is not longer than rekey_time %s", span(c.LifeTime), span(c.RekeyTime))
		if c.LifeTime > 0 { // or else it is 110 % of rekey_time
			c.RekeyTime = c.LifeTime / 11 * 10
		}
		c.RandTime = min(c.RandTime, c.RekeyTime/10)
	} else if rekey && good(c.t, "rand_time") && c.RekeyTime > 0 && c.RandTime >= c.RekeyTime {
		l.clash(where(c.t, "rand_time"), "make rand_time the shorter one", "rand_time %s is not less than rekey_time %s",
			span(c.RandTime), span(c.RekeyTime))
		c.RandTime = c.RekeyTime / 2
	}
	if good(c.t, "replay_window") && c.ReplayWindow == 0 {
		hint := "write 64 or more, or leave it out"
		if good(c.t, "esp_proposals") && offersESN(c.Proposals) {
			hint = "write 64 or more, or take esn out of esp_proposals, which cannot do without (RFC 4303 section 3.3.3)"
		}
		l.warn(where(c.t, "replay_window"), hint, "replayed packets are not noticed")
	}
	l.checkMode(c)
	l.checkHeaders(c)
	l.checkDevice(c)
	l.checkVolumes(c)
	l.checkHiding(c)
	if good(c.t, "inactivity", "start_action") && c.Inactivity > 0 && c.StartAction == ike.StartStart {
		l.clash(where(c.t, "inactivity"), `write start_action = "trap", with which the next packet brings it back`,
			"inactivity closes what start_action \"start\" keeps up for ever")
	}
	l.checkActions(c)
	l.checkLanes(c)
	l.checkSelectors(c)
}

// checkMode notes modes and protocols that do not go together, and selectors that a mode
// cannot have.
func (l *loader) checkMode(c *child) {
	ah := c.t.get("ah_proposals")
	if ah != nil && c.t.get("esp_proposals") != nil {
		l.problem(ah.key, "take one of the two out, or make two children of it", "a child has ESP or AH, not both")
	}
	if ah != nil && c.conn.Encap {
		l.problem(ah.key, "take encap out, or use esp_proposals", "AH cannot go through UDP, as encap asks for")
	}
	if ah != nil && c.mode == modeBEET {
		l.problem(ah.key, `write mode = "tunnel" or "transport", or use esp_proposals`, "BEET is a mode of ESP alone")
	}
	if c.mode == modeTransport && ah == nil && slices.ContainsFunc(slices.Concat(c.LocalTS, c.RemoteTS), func(ts ike.TS) bool { return ts.Proto == esp.ProtoESP }) {
		l.problem(where(c.t, "local_ts"), "write ah_proposals, or leave the protocol out", "a child between the two hosts that selects ESP goes around that of others, which only AH can")
	}
	if c.mode != modeTransport && c.mode != modeBEET {
		return
	}
	if c.Fragments {
		l.problem(where(c.t, "non_first_fragments"), `take it out, or write mode = "tunnel"`, "mode %q carries no fragments", modeWords[c.mode])
	}
	for _, side := range []struct {
		name string
		list []ike.TS
	}{{"local_ts", c.LocalTS}, {"remote_ts", c.RemoteTS}} {
		for _, ts := range side.list {
			if good(c.t, side.name) && !ts.Dynamic && (ts.Start != ts.End || ts.Start != side.list[0].Start) {
				l.problem(where(c.t, side.name), `name one address, or leave it out; networks need mode = "tunnel"`,
					"mode %q is for one address on each side, and %s has more", modeWords[c.mode], side.name)
				break
			}
		}
	}
}

// volumes are the limits of a child other than those of time.
func (c *child) volumes() []volume {
	return []volume{
		{"bytes", &c.RekeyBytes, &c.LifeBytes, &c.RandBytes},
		{"packets", &c.RekeyPackets, &c.LifePackets, &c.RandPackets},
	}
}

type volume struct {
	name              string
	rekey, life, rand *uint64
}

// checkVolumes notes limits in octets and packets that leave no room for new keys.
func (l *loader) checkVolumes(c *child) {
	for _, v := range c.volumes() {
		if !good(c.t, "rekey_"+v.name) || *v.rekey == 0 {
			continue
		}
		if good(c.t, "life_"+v.name) && *v.life <= *v.rekey {
			l.clash(where(c.t, "life_"+v.name), "make life_"+v.name+" larger, or leave it out to get 110 % of rekey_"+v.name,
				"life_%s %d is not more than rekey_%s %d", v.name, *v.life, v.name, *v.rekey)
			if *v.life > 0 {
				*v.rekey = *v.life / 11 * 10
			}
			*v.rand = min(*v.rand, *v.rekey/10)
		} else if good(c.t, "rand_"+v.name) && *v.rand >= *v.rekey {
			l.clash(where(c.t, "rand_"+v.name), "make rand_"+v.name+" the smaller one",
				"rand_%s %d is not less than rekey_%s %d", v.name, *v.rand, v.name, *v.rekey)
			*v.rand = *v.rekey / 2
		}
	}
}

func offersESN(ps []ike.Proposal) bool {
	for _, p := range ps {
		for _, t := range p.Transforms {
			if t.Type == ike.TransformESN && t.ID == 1 {
				return true
			}
		}
	}
	return false
}

// checkActions notes what asks us to call a peer whose address nobody knows.
func (l *loader) checkActions(c *child) {
	if !good(c.conn.t, "remote_addrs") || c.conn.t.bad {
		return
	}
	if !callable(c.conn.Conn) {
		for _, name := range []string{"start_action", "dpd_action", "close_action"} {
			n := c.t.get(name)
			if n != nil && !n.bad && n.text != startWords[ike.StartNone] && n.text != peerWords[ike.ActionClear] {
				instead := startWords[ike.StartNone]
				if name != "start_action" {
					instead = peerWords[ike.ActionClear]
				}
				l.problem(n.at, "put an address into remote_addrs, or write "+name+" = "+strconv.Quote(instead),
					"%s %q has to call the peer, but remote_addrs of connection %s names no single address", name, n.text, c.conn.Name)
			}
		}
		return
	}
	if n := c.t.get("start_action"); n != nil && c.StartAction == ike.StartTrap && good(c.t, "remote_ts") && !c.t.bad {
		_, known := hosts(c.conn.Conn)
		if slices.ContainsFunc(c.RemoteTS, isDynamic) && !known {
			l.problem(n.at, "write the addresses into remote_ts, or only single addresses into remote_addrs",
				"start_action \"trap\" cannot tell which packets to wait for: remote_ts is dynamic and the peer's address is not known")
		} else if slices.ContainsFunc(c.LocalTS, isDynamic) && len(c.conn.LocalAddrs)+len(c.conn.VIPs) == 0 && len(c.conn.RemoteNames) > 0 {
			l.problem(n.at, "write our addresses into local_ts or local_addrs, or only addresses into remote_addrs",
				"start_action \"trap\" cannot tell which packets to wait for: local_ts is dynamic and remote_addrs has a name")
		}
	}
}

func isDynamic(ts ike.TS) bool { return ts.Dynamic }

// checkSelectors notes children that no packet can use.
func (l *loader) checkSelectors(c *child) {
	if c.t.bad || !good(c.t, "local_ts", "remote_ts") {
		return
	}
	if l.vici == nil && c.t.get("remote_ts") == nil && !slices.ContainsFunc(c.LocalTS, isDynamic) && len(c.conn.Pools) == 0 {
		l.problem(c.t.key, `write remote_ts = ["…"] with what is behind the peer, or remote_ts = ["dynamic"] for the peer alone`,
			"child %s has local_ts but no remote_ts", c.Name)
		return
	}
	l.checkJoint(where(c.t, "remote_ts"), "child "+c.Name, plain(c.LocalTS), plain(c.RemoteTS))
	if !good(c.conn.t, "local_addrs", "remote_addrs") {
		return
	}
	ours := c.conn.LocalAddrs
	if len(c.conn.VIPs) > 0 {
		ours = c.conn.VIPs
	}
	local := c.families(c.LocalTS, ours)
	var peers []netip.Addr
	if addrs, known := hosts(c.conn.Conn); known && len(c.conn.Pools) == 0 {
		peers = addrs
	}
	remote := c.families(c.RemoteTS, peers)
	if local&remote == 0 {
		l.problem(where(c.t, "remote_ts"), "give local_ts and remote_ts a pair of the same address family",
			"child %s has no local_ts and remote_ts of one address family, so no packet fits", c.Name)
	}
}

// families returns those of the selectors; a dynamic one has those of addrs, or any
// if there are none.
func (c *child) families(list []ike.TS, addrs []netip.Addr) families {
	var f families
	for _, ts := range list {
		switch {
		case !ts.Dynamic:
			f.add(ts.Start)
		case len(addrs) == 0:
			f |= family4 | family6
		default:
			for _, a := range addrs {
				f.add(a)
			}
		}
	}
	return f
}

// checkSecrets notes connections without a secret, and secrets without a key or with
// the same identities.
func (l *loader) checkSecrets() {
	allGood := true
	seen := make(map[string]*secret)
	for _, s := range l.secrets {
		if s.t.bad || !good(s.t, "id") {
			allGood = false
			continue
		}
		inline, file := s.t.get("secret"), s.t.get("secret_file")
		switch {
		case inline == nil && file == nil:
			l.problem(s.t.key, `write secret = "…" or secret_file = "…"`, "secret %s has no key", s.Name)
		case inline != nil && file != nil:
			l.problem(file.key, "keep one of the two", "secret %s has both secret and secret_file", s.Name)
		}
		ids := make([]string, len(s.IDs))
		for i, id := range s.IDs {
			ids[i] = strconv.Itoa(int(id.Type)) + " " + strconv.Quote(id.Data)
		}
		slices.Sort(ids)
		k := strings.Join(ids, " ")
		if other := seen[k]; other != nil {
			l.problem(where(s.t, "id"), "keep one of the two, or give them different ids",
				"secrets %s and %s (line %d) are for the same identities", s.Name, other.Name, other.t.key.line)
		} else {
			seen[k] = s
		}
	}
	if !allGood {
		return
	}
	used := make(map[*secret]bool)
	complete := true
	for _, c := range l.conns {
		if !c.idsGood() {
			complete = false
			continue
		}
		found := !c.usesSecret()
		for _, s := range l.secrets {
			if c.usesSecret() && s.fits(c) {
				found, used[s] = true, true
			}
		}
		if !found {
			ids := "an id"
			switch {
			case c.LocalID != ike.ID{} && c.RemoteID != ike.ID{}:
				ids = "id = [" + strconv.Quote(c.LocalID.String()) + ", " + strconv.Quote(c.RemoteID.String()) + "]"
			case c.RemoteID != ike.ID{}:
				ids = "id = [" + strconv.Quote(c.RemoteID.String()) + "]"
			}
			l.problem(c.t.key, "add a section [secrets."+c.Name+"] with "+ids+" and the key", "no secret fits connection %s", c.Name)
		}
	}
	for _, s := range l.secrets {
		if complete && !used[s] && len(l.conns) > 0 {
			l.warn(where(s.t, "id"), "compare its id with those of the connections", "no connection uses secret %s", s.Name)
		}
	}
}

// fits tells whether the machine can take this secret for the connection, of which it
// knows more than the file: the address that stands for our id where there is none,
// and who calls. It must be possible for one of the pairs that can come about.
func (s *secret) fits(c *conn) bool {
	if len(s.IDs) == 0 {
		return true
	}
	locals, remotes := []ike.ID{c.LocalID}, []ike.ID{c.RemoteID}
	if c.LocalID == (ike.ID{}) {
		for _, a := range c.LocalAddrs {
			if id, err := ike.ParseIDString(a.String()); err == nil {
				locals = append(locals, id)
			}
		}
		for _, id := range s.IDs {
			if len(c.LocalAddrs) == 0 && (id.Type == ike.IDIPv4 || id.Type == ike.IDIPv6) {
				locals = append(locals, id)
			}
		}
	}
	if c.RemoteID == (ike.ID{}) && !c.initiates() {
		remotes = append(remotes, s.IDs...)
	}
	for _, l := range locals {
		for _, r := range remotes {
			if s.Fits(l, r) > 0 {
				return true
			}
		}
	}
	return false
}

// initiates tells whether a child makes us call the peer without being asked.
func (c *conn) initiates() bool {
	return callable(c.Conn) && slices.ContainsFunc(c.children, func(ch *child) bool { return ch.StartAction != ike.StartNone })
}

// checkOrder notes children that an earlier one leaves nothing to: the first policy
// that fits a packet wins (RFC 4301 section 4.4.1).
func (l *loader) checkOrder() {
	policies := l.cfg.Policies(nil)
	var earlier []*child
	var selects []esp.Policy
	same := make(map[string]*child)
	i := -1
	// Children with devices of their own compete with those that have the same one.
	for _, c := range l.conns {
		for _, ch := range c.children {
			i++
			if ch.placed || ch.t.bad || !good(ch.t, "local_ts", "remote_ts") || !good(c.t, "local_addrs", "remote_addrs") {
				continue
			}
			if ch.identity == "" {
				ch.identity = identity(ch, policies[i])
			}
			k := ch.identity
			if other := same[c.Name+" "+k]; other == nil {
				same[c.Name+" "+k] = ch
			} else if other.Interface != ch.Interface {
				l.warn(where(ch.t, "interface"), "give one of the two a connection of its own, with other ids",
					"children %s and %s of connection %s differ in nothing that the peer sees: it may take one for the other", other.Name, ch.Name, c.Name)
			}
			k = ch.Interface + "/" + k // a slash is in no name
			if first := same[k]; first != nil {
				l.problem(where(ch.t, "remote_ts"), "take one of the two out, or make the first one narrower",
					"child %s of connection %s has the selectors of child %s of connection %s%s and never gets a packet",
					ch.Name, c.Name, first.Name, first.conn.Name, first.t.key.inLine())
				continue
			}
			same[k] = ch
			if len(policies[i].LocalTS) == 0 {
				continue
			}
			for j, p := range selects {
				if ch.Interface == earlier[j].Interface && coversBoth(p.LocalTS, p.RemoteTS, policies[i].LocalTS, policies[i].RemoteTS) {
					l.warn(where(ch.t, "remote_ts"), "put the narrower child (and its connection) first",
						"child %s of connection %s never gets a packet: child %s of connection %s%s takes them all",
						ch.Name, c.Name, earlier[j].Name, earlier[j].conn.Name, earlier[j].t.key.inLine())
					break
				}
			}
			earlier, selects = append(earlier, ch), append(selects, policies[i])
		}
	}
}

// covers tells whether each of the selectors in narrow lies within one of those in wide.
func covers(wide, narrow []esp.Selector) bool {
	for _, n := range narrow {
		if !slices.ContainsFunc(wide, func(w esp.Selector) bool { return w.Contains(n) }) {
			return false
		}
	}
	return true
}

// identity returns a text that two children have in common exactly when they select the
// same packets. Selectors that depend on an address which is not known yet differ
// between connections.
func identity(c *child, p esp.Policy) string {
	if len(p.LocalTS) > 0 {
		return selectorSet(p.LocalTS) + " = " + selectorSet(p.RemoteTS)
	}
	side := func(list []ike.TS) string {
		var sels []esp.Selector
		s := ""
		for _, ts := range list {
			if ts.Dynamic {
				s += " dynamic " + strconv.Itoa(int(ts.Proto)) + " " + strconv.Itoa(int(ts.StartPort)) + " " + strconv.Itoa(int(ts.EndPort))
			} else {
				sels = append(sels, ts.Selector)
			}
		}
		return selectorSet(sels) + s
	}
	return c.conn.Name + ": " + side(c.LocalTS) + " = " + side(c.RemoteTS)
}

// selectorSet writes selectors in an order of its own.
func selectorSet(list []esp.Selector) string {
	texts := make([]string, len(list))
	for i, s := range list {
		texts[i] = s.String()
	}
	slices.Sort(texts)
	return strings.Join(texts, " ")
}

// span writes a duration as the file would have it.
func span(d time.Duration) string {
	for i := len(durationUnits) - 1; i >= 0; i-- {
		if u := durationUnits[i]; d%u.unit == 0 && d != 0 {
			return strconv.FormatInt(int64(d/u.unit), 10) + u.name
		}
	}
	return "0s"
}
