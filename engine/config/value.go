package config

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/board"
	"postern/engine/log"
	"postern/ike"
)

// conn is a connection while it is read: what the machine gets, and where it stands.
type conn struct {
	*ike.Conn
	t        *node
	locals   *rounds // these two are large; nil, once a part is finished
	remotes  *rounds
	children []*child // those with SAs, once they are parted from the others
}

// child is a child while it is read.
type child struct {
	*ike.Child
	conn   *conn
	t      *node
	mode   childMode
	placed bool           // an entry of [policies] names it
	addrs  []netip.Prefix // of its interface
	headerState
	updown Updown

	classes  *Classes // nil: none
	priority uint32   // as of a mark
	identity string   // of checkOrder; "": not known yet
}

// where returns the place of a key of table t, or of the table if it has no such key.
func where(t *node, name string) pos {
	if n := t.get(name); n != nil {
		return n.at
	}
	return t.key
}

// good tells that none of the keys of table t has a bad value; keys that are not there
// are good.
func good(t *node, names ...string) bool {
	for _, name := range names {
		if n := t.get(name); n != nil && n.bad {
			return false
		}
	}
	return true
}

// openConn starts a connection with its defaults.
func (s *scope) openConn(n *node) *scope {
	c := &conn{t: n, Conn: &ike.Conn{
		Name:         n.name,
		MOBIKE:       true,
		DPDDelay:     defaultDPDDelay,
		KeyingTries:  defaultKeyingTries,
		RekeyTime:    defaultIKERekey,
		RetryTimeout: defaultRetryTimeout,
		RetryBase:    defaultRetryBase,
		RetryTries:   defaultRetryTries,
		FragmentSize: defaultFragmentSize,
	}}
	c.locals, c.remotes = new(rounds), new(rounds)
	c.locals[0].id, c.remotes[0].id = &c.LocalID, &c.RemoteID
	s.conns = append(s.conns, c)
	s.cfg.IKE.Conns = append(s.cfg.IKE.Conns, c.Conn)
	return &scope{loader: s.loader, conn: c}
}

func (s *scope) openLocal(n *node) *scope { return s.openRound(n, ourSide, 0) }

func (s *scope) openRemote(n *node) *scope { return s.openRound(n, peersSide, 0) }

// openChild starts a child with its defaults.
func (s *scope) openChild(n *node) *scope {
	c := &child{conn: s.conn, t: n, headerState: newHeaderState(), Child: &ike.Child{
		Name:         n.name,
		RekeyTime:    defaultChildRekey,
		ReplayWindow: defaultReplayWindow,
		Hiding:       ike.Hiding{TripTime: defaultTripTime},
	}}
	s.conn.children = append(s.conn.children, c)
	s.conn.Children = append(s.conn.Children, c.Child)
	return &scope{loader: s.loader, conn: s.conn, child: c}
}

// word reads one of a few words and hands its place among them to set.
func (s *scope) word(n *node, words []string, set func(int)) {
	i := slices.Index(words, n.text)
	if i < 0 {
		s.problem(n.at, "use "+choice(words), "%s %q is not known", n.name, n.text)
		return
	}
	set(i)
}

// fragmentation reads whether to use fragments. One of strongSwan's words is missing, and
// whoever brings it along should know why.
func (s *scope) fragmentation(n *node, to *ike.Fragmentation) {
	if n.text == "force" {
		s.problem(n.at, "write \"yes\", which is what it means in IKEv2",
			"fragmentation \"force\" is for IKEv1: an IKEv2 peer must not be sent fragments before it has said that it takes them")
		return
	}
	s.word(n, fragWords, func(i int) { *to = ike.Fragmentation(i) })
}

// choice lists words for people: "a", "b" or "c".
func choice(words []string) string {
	var b strings.Builder
	for i, w := range words {
		switch {
		case i > 0 && i == len(words)-1:
			b.WriteString(" or ")
		case i > 0:
			b.WriteString(", ")
		}
		b.WriteString(strconv.Quote(w))
	}
	return b.String()
}

func (s *scope) boolean(n *node, to *bool) { *to = n.text == "true" }

// integer reads a TOML integer; the syntax has been checked.
func (s *scope) integer(n *node) (int64, bool) {
	v, err := strconv.ParseInt(n.text, 0, 64)
	if err != nil {
		s.problem(n.at, "", "%s does not fit into 64 bits", n.name)
	}
	return v, err == nil
}

func (s *scope) number(n *node, low, high int, to *int) {
	v, ok := s.integer(n)
	if !ok {
		return
	}
	if v < int64(low) || v > int64(high) {
		s.problem(n.at, "use "+strconv.Itoa(low)+" to "+strconv.Itoa(high), "%s %d is out of range", n.name, v)
		return
	}
	*to = int(v)
}

func (s *scope) port(n *node, to *uint16) {
	v := int(*to)
	s.number(n, 1, 65535, &v)
	*to = uint16(v)
}

// zeroOr reads a number for which 0 has a meaning outside the range.
func (s *scope) zeroOr(n *node, low, high int, to *int) {
	if v, err := strconv.ParseInt(n.text, 0, 64); err == nil && v == 0 {
		*to = 0
		return
	}
	s.number(n, low, high, to)
}

func (s *scope) factor(n *node, low, high float64, to *float64) {
	v, err := strconv.ParseFloat(strings.ReplaceAll(n.text, "_", ""), 64)
	if err != nil || !(v >= low && v <= high) { // NaN is neither
		s.problem(n.at, "use "+strconv.FormatFloat(low, 'g', -1, 64)+" to "+strconv.FormatFloat(high, 'g', -1, 64),
			"%s %s is out of range", n.name, n.text)
		return
	}
	*to = v
}

// The least that new keys may last: less than this is spent before a negotiation over a
// slow line is over, and the tunnel would stand still in between.
const (
	minRekeyBytes   = 10_000
	minRekeyPackets = 100
)

// maxVolume is the most that a volume can be: it does not matter when it is reached.
const maxVolume = 1 << 62

// volume reads a number of octets or packets: 1000000, "500k", "20M" or "4G", powers of 1024
// as strongSwan has them. 0 is no limit.
func (s *scope) volume(n *node, low uint64, to *uint64) {
	text, unit := n.text, uint64(1)
	if n.kind == kindInteger {
		v, ok := s.integer(n)
		if !ok {
			return
		}
		text = strconv.FormatInt(v, 10)
	} else if i := len(text) - 1; i >= 0 {
		if u := strings.IndexByte("kmg", text[i]|0x20); u >= 0 {
			text, unit = text[:i], 1024<<(10*u)
		}
	}
	v, err := strconv.ParseUint(text, 10, 64)
	switch {
	case err != nil || v > maxVolume/unit:
		s.problem(n.at, `write a number, or one with k, M or G such as "500M"`, "%s %q is not a number of octets or packets", n.name, n.text)
	case v != 0 && v*unit < low:
		s.clash(n.at, "use 0 for no limit, or "+strconv.FormatUint(low, 10)+" and more", "%s %q is too little", n.name, n.text)
		*to = low // where that is no mistake
	default:
		*to = v * unit
	}
}

// maxDuration is the longest time that a timer of the configuration can run.
const maxDuration = 365 * 24 * time.Hour

// durationUnits are the units of durations, longest name first.
var durationUnits = []struct {
	name string
	unit time.Duration
}{
	{"ms", time.Millisecond}, {"s", time.Second}, {"m", time.Minute}, {"h", time.Hour}, {"d", 24 * time.Hour},
}

// parseDuration reads "30s", "5m", "4h", "1d", "500ms" or a number of seconds.
func parseDuration(text string) (time.Duration, bool) {
	unit := time.Second
	for _, u := range durationUnits {
		if digits, ok := strings.CutSuffix(text, u.name); ok {
			text, unit = digits, u.unit
			break
		}
	}
	v, err := strconv.ParseUint(text, 10, 63)
	if err != nil || v > uint64(maxDuration/unit) {
		return 0, false
	}
	return time.Duration(v) * unit, true
}

// minKeepAlive is the shortest time between NAT keepalives; no NAT forgets faster.
const minKeepAlive = 5 * time.Second

// keepAlive reads the time between NAT keepalives.
func (s *scope) keepAlive(n *node, to *time.Duration) {
	was := *to
	if s.duration(n, to); *to > 0 && *to < minKeepAlive {
		*to = was
		s.problem(n.at, "use 5s to 365 days, or 0 for none", "%s is too short", n.name)
	}
}

func (s *scope) duration(n *node, to *time.Duration) {
	text := n.text
	if n.kind == kindInteger {
		v, ok := s.integer(n)
		if !ok {
			return
		}
		text = strconv.FormatInt(v, 10)
	}
	d, ok := parseDuration(text)
	if !ok {
		s.problem(n.at, `write "30s", "5m", "4h", "1d" or a number of seconds, at most 365 days`,
			"%s %q is not a duration", n.name, text)
		return
	}
	*to = d
}

func (s *scope) retryTimeout(n *node, to *time.Duration) {
	d := *to
	s.duration(n, &d)
	if d < 100*time.Millisecond || d > time.Minute {
		s.problem(n.at, `use "100ms" to "60s"`, "%s %q is out of range", n.name, n.text)
		return
	}
	*to = d
}

func (s *scope) retryLimit(n *node, to *time.Duration) {
	d := *to
	s.duration(n, &d)
	if d != 0 && d < 100*time.Millisecond {
		s.problem(n.at, `use "100ms" or more, or 0`, "%s %q is out of range", n.name, n.text)
		return
	}
	*to = d
}

func (s *scope) level(n *node, to *log.Level) {
	v, err := log.ParseLevel(n.text)
	if err != nil {
		s.problem(n.at, "", "%s: %v", n.name, err)
		return
	}
	*to = v
}

func (s *scope) board(n *node, to *string) {
	if n.text != autoBoard {
		if _, err := board.ByName(n.text); err != nil {
			s.problem(n.at, "", "%v", err)
			return
		}
	}
	*to = n.text
}

// The lengths that the kernel takes: IFNAMSIZ and sun_path, each with its final NUL.
const (
	maxInterfaceName = 15
	maxSocketPath    = 107
)

func (s *scope) interfaceName(n *node, to *string) {
	ok := n.text != "" && n.text != "." && n.text != ".."
	for i := 0; i < len(n.text); i++ {
		// The kernel refuses '/' and ':' and fills in numbers for '%'.
		if c := n.text[i]; c <= ' ' || c >= 0x7f || c == '/' || c == ':' || c == '%' {
			ok = false
		}
	}
	switch {
	case !ok:
		s.problem(n.at, "use letters and digits, such as "+strconv.Quote(defaultInterface), "%q cannot be the name of an interface", n.text)
	case len(n.text) > maxInterfaceName:
		s.problem(n.at, "use at most "+strconv.Itoa(maxInterfaceName), "the interface name %q has %d characters", n.text, len(n.text))
	default:
		*to = n.text
	}
}

func (s *scope) socketPath(n *node, to *string) {
	switch {
	case !filepath.IsAbs(n.text) || strings.ContainsRune(n.text, 0) || strings.HasSuffix(n.text, "/"):
		s.problem(n.at, "write a path from the root, such as "+strconv.Quote(defaultControl), "%q cannot be the control socket", n.text)
	case len(n.text) > maxSocketPath:
		s.problem(n.at, "use at most "+strconv.Itoa(maxSocketPath), "the path of the control socket has %d octets", len(n.text))
	default:
		*to = n.text
	}
}

// gateway sets where clients are sent, or nowhere.
func (s *scope) gateway(n *node, to *ike.Gateway) {
	if n.text == "" {
		*to = ike.Gateway{}
		return
	}
	g, ok := ike.ParseGateway(n.text)
	if !ok {
		s.problem(n.at, "write one address or a domain name", "%q is no gateway", n.text)
		return
	}
	*to = g
}

// directory sets a path from the root, or none.
func (s *scope) directory(n *node, to *string) {
	if n.text != "" && (!filepath.IsAbs(n.text) || strings.ContainsRune(n.text, 0)) {
		s.problem(n.at, "write a path from the root, such as "+strconv.Quote(defaultStateDir), "%q is no directory", n.text)
		return
	}
	*to = n.text
}

// maxList bounds the length of every list: more selectors would not fit into an
// IKE_AUTH request without fragments.
const maxList = 32

// texts returns the elements of a list, which must be texts.
func (s *scope) texts(n *node) []*node { return s.manyTexts(n, maxList) }

// manyTexts is texts with another bound.
func (s *scope) manyTexts(n *node, most int) []*node {
	switch {
	case len(n.list) == 0:
		s.problem(n.at, "leave the key out to get the default", "%s is empty", n.name)
	case len(n.list) > most:
		s.problem(n.at, "take some out, or join them in wider ones", "%s has %d elements; the most is %d", n.name, len(n.list), most)
		return nil
	}
	var out []*node
	for _, e := range n.list {
		if e.kind == kindString {
			out = append(out, e)
		} else {
			s.problem(e.at, `put each into quotes: ["…", "…"]`, "%s holds %s", n.name, e.kind)
		}
	}
	return out
}

const anyAddr = "%any"

// address reads one address of a host.
func (s *scope) address(n *node, text string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(text)
	switch {
	case err != nil:
		s.problem(n.at, "write an IPv4 or IPv6 address; names of hosts are not looked up", "%q is not an address", text)
	case a.Is4In6():
		s.problem(n.at, "write "+strconv.Quote(a.Unmap().String()), "%q is an IPv4 address in IPv6 clothes", text)
	case a.Zone() != "" || a.IsLinkLocalUnicast() || a.IsMulticast():
		s.problem(n.at, "write a unicast address that can be routed", "%q cannot be one end of a tunnel", text)
	case a.IsUnspecified():
		s.problem(n.at, "write "+strconv.Quote(anyAddr)+" for any address", "%q is not the address of a host", text)
	default:
		return a, true
	}
	return netip.Addr{}, false
}

func (s *scope) localAddrs(n *node, c *conn) {
	wild := false
	for _, e := range s.texts(n) {
		if e.text == anyAddr {
			wild = true
			continue
		}
		a, ok := s.address(e, e.text)
		if ok && slices.Contains(c.LocalAddrs, a) {
			s.problem(e.at, "take one out", "%s is twice in %s", a, n.name)
		} else if ok {
			c.LocalAddrs = append(c.LocalAddrs, a)
		}
	}
	if wild && len(c.LocalAddrs) > 0 {
		s.problem(n.at, "write either", "%s has %q beside addresses", n.name, anyAddr)
	}
}

// remoteAddrs reads addresses, names and prefixes. "%any" alone leaves the list empty, which
// is what the machine takes for any address; beside others it becomes the prefixes of
// everything.
func (s *scope) remoteAddrs(n *node, c *conn) {
	list := s.texts(n)
	for _, e := range list {
		var ps []netip.Prefix
		switch {
		case e.text == anyAddr && len(list) == 1:
		case e.text == anyAddr:
			ps = []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
		case strings.Contains(e.text, "/"):
			p, err := parsePrefix(e.text)
			if err != nil {
				s.problem(e.at, err.hint, "%s", err.what)
				continue
			}
			ps = []netip.Prefix{p}
		case isName(e.text):
			if slices.ContainsFunc(c.RemoteNames, func(n ike.PeerName) bool { return strings.EqualFold(n.Name, e.text) }) {
				s.problem(e.at, "take one out", "%q is twice in %s", e.text, n.name)
				continue
			}
			c.RemoteNames = append(c.RemoteNames, ike.PeerName{Name: e.text, At: len(c.RemoteAddrs)})
		default:
			a, ok := s.address(e, e.text)
			if !ok {
				continue
			}
			ps = []netip.Prefix{netip.PrefixFrom(a, a.BitLen())}
		}
		for _, p := range ps {
			if slices.Contains(c.RemoteAddrs, p) {
				s.problem(e.at, "take one out", "%q is twice in %s", e.text, n.name)
				break
			}
			c.RemoteAddrs = append(c.RemoteAddrs, p)
		}
	}
}

// isName tells whether a text can be a name of a host (RFC 1123 section 2.1): labels of
// letters, digits and inner hyphens, the last of which is no number, so that a mistyped
// address is not taken for a name.
func isName(text string) bool {
	labels := strings.Split(strings.TrimSuffix(text, "."), ".")
	if len(text) > 253 {
		return false
	}
	for _, label := range labels {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if !isBare(c) {
				return false
			}
		}
	}
	last := labels[len(labels)-1]
	return strings.Trim(last, "0123456789") != ""
}

// proposals reads a list of proposals in strongSwan's notation.
func (s *scope) proposals(n *node, proto ike.Protocol, to *[]ike.Proposal) {
	var all []ike.Proposal
	seen := make(map[string]bool)
	for _, e := range s.texts(n) {
		if seen[e.text] {
			s.problem(e.at, "take one out", "%q is twice in %s", e.text, n.name)
			continue
		}
		seen[e.text] = true
		ps, err := ike.ParseProposal(proto, e.text, s.order)
		if err != nil {
			s.problem(e.at, "", "%v", err)
			continue
		}
		all = append(all, ps...)
	}
	*to = numbered(all)
}

// numbered gives proposals their numbers, from 1 (RFC 7296 section 3.3.1).
func numbered(ps []ike.Proposal) []ike.Proposal {
	for i := range ps {
		ps[i].Num = uint8(i + 1)
	}
	return ps
}

// selectors reads a list of traffic selectors.
func (s *scope) selectors(n *node, to *[]ike.TS) {
	for _, e := range s.texts(n) {
		ts, err := parseTS(e.text)
		if err != nil {
			s.problem(e.at, err.hint, "%s", err.what)
			continue
		}
		if slices.Contains(*to, ts) {
			s.problem(e.at, "take one out", "%q is twice in %s", e.text, n.name)
			continue
		}
		*to = append(*to, ts)
	}
}

// identity reads one identity.
func (s *scope) identity(n *node, to *ike.ID) bool {
	id, err := ike.ParseIDString(n.text)
	switch {
	case err != nil:
		s.problem(n.at, "", "%v", err)
		return false
	case id == ike.ID{}:
		s.problem(n.at, "leave it out for any", "%q is not one identity", n.text)
		return false
	}
	*to = id
	return true
}

// identities reads a list of them.
func (s *scope) identities(n *node, to *[]ike.ID) {
	for _, e := range s.texts(n) {
		var id ike.ID
		if s.identity(e, &id) && !slices.Contains(*to, id) {
			*to = append(*to, id)
		}
	}
}
