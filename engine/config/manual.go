package config

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"slices"
	"strconv"

	"postern/esp"
	"postern/ike"
)

// ManualConn is the name that stands for the connection of all manual SAs: their children are
// called "manual/NAME".
const ManualConn = "manual"

// maxKept is how many manual SAs may keep their numbers: all of them share one small file.
const maxKept = 64

// Manual is a pair of SAs that are not negotiated (RFC 4301 section 4.5.1). The keys in In and Out
// are for whoever installs them to overwrite.
type Manual struct {
	Name    string
	In, Out esp.SA
	// Keep: the sequence numbers go on after a restart.
	Keep bool

	at pos
}

// manual is one while it is read.
type manual struct {
	*Manual
	t             *node
	local, remote netip.Addr
	mode          childMode
	suite         esp.Suite
	localTS       []ike.TS
	remoteTS      []ike.TS
	window        int
	encap         bool
}

func (s *scope) openManual(n *node) *scope {
	m := &manual{t: n, Manual: &Manual{Name: n.name, at: n.key}}
	m.In.Dir, m.Out.Dir = esp.In, esp.Out
	s.manuals = append(s.manuals, m)
	return &scope{loader: s.loader, manual: m}
}

// oneAddress reads a list that has one address.
func (s *scope) oneAddress(n *node, to *netip.Addr) {
	list := s.texts(n)
	if len(list) > 1 {
		s.problem(n.at, "make another section [manual.…] for each other peer", "%s has %d addresses; a manual SA has one", n.name, len(list))
		return
	}
	for _, e := range list {
		if e.text == anyAddr || isName(e.text) {
			s.problem(e.at, "write an IPv4 or IPv6 address", "%q is no address, and a manual SA cannot do without", e.text)
		} else if a, ok := s.address(e, e.text); ok {
			*to = a
		}
	}
}

// spi reads an SPI: what is below 256 is reserved (RFC 4303 section 2.1).
func (s *scope) spi(n *node, to *uint32) {
	v, ok := s.integer(n)
	switch {
	case !ok:
	case v < 256 || v > 1<<32-1:
		s.problem(n.at, "use 0x100 to 0xffffffff", "%s %d is out of range", n.name, v)
	default:
		*to = uint32(v)
	}
}

// oneSuite reads a list with one proposal that leaves no choice.
func (s *scope) oneSuite(n *node, proto ike.Protocol) {
	list := s.texts(n)
	if len(list) > 1 {
		s.problem(n.at, "keep the one that the peer has", "%s has %d proposals, but nothing is negotiated", n.name, len(list))
		return
	}
	for _, e := range list {
		suite, err := ike.ParseSuite(proto, e.text)
		if err != nil {
			s.problem(e.at, "", "%v", err)
			continue
		}
		s.manual.suite = suite
	}
}

// keys are the names of the keys, and where they go.
func (m *Manual) keys() []manualKey {
	return []manualKey{
		{"encr_key_in", &m.In.EncrKey}, {"encr_key_out", &m.Out.EncrKey},
		{"integ_key_in", &m.In.IntegKey}, {"integ_key_out", &m.Out.IntegKey},
	}
}

type manualKey struct {
	name string
	to   *[]byte
}

// manualKey reads a key that stands in the configuration.
func (s *scope) manualKey(n *node) {
	s.exposedKey(n)
	text := []byte(n.text)
	n.text = ""
	s.setKey(n, n.name, text, "")
	clear(text)
}

// setKey decodes a key of the given name. where tells, for people, where it stands in a file of
// its own.
func (s *scope) setKey(n *node, name string, text []byte, where string) {
	hexed, ok := bytes.CutPrefix(text, []byte("0x"))
	key := make([]byte, hex.DecodedLen(len(hexed)))
	if _, err := hex.Decode(key, hexed); err != nil || !ok || len(key) == 0 {
		s.problem(n.at, `write "0x" and an even number of the digits 0-9 and a-f`, "%s%s is not a key in hexadecimal", name, where)
		return
	}
	for _, k := range s.manual.keys() {
		if k.name != name {
			continue
		}
		if *k.to != nil {
			s.problem(n.at, "keep one of the two", "%s%s is there twice", name, where)
			clear(key)
			return
		}
		*k.to = key
		return
	}
	s.problem(n.at, `a line is "encr_key_in = 0x…", or encr_key_out, integ_key_in, integ_key_out`, "there is no key of the name%s", where)
}

// keyFile reads the file that holds the keys: a line "name = 0x…" for each.
func (s *scope) keyFile(n *node) {
	data, ok := s.secretFile(n)
	if !ok {
		return
	}
	defer clear(data)
	for i, rest := 0, data; len(rest) > 0; i++ {
		var line []byte
		line, rest, _ = bytes.Cut(rest, []byte("\n"))
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		name, key, _ := bytes.Cut(line, []byte("="))
		s.setKey(n, string(bytes.TrimSpace(name)), bytes.TrimSpace(key), " in line "+strconv.Itoa(i+1)+" of the file")
	}
}

// finishManual puts a manual SA together and takes it over.
func (l *loader) finishManual(m *manual) {
	if m.t.get("replay_window") == nil && m.Keep {
		m.window = defaultReplayWindow
	}
	dynamic := ike.TS{Dynamic: true, Selector: esp.Selector{EndPort: 65535}}
	for _, ts := range []*[]ike.TS{&m.localTS, &m.remoteTS} {
		if len(*ts) == 0 {
			*ts = []ike.TS{dynamic}
		}
	}
	port := uint16(0)
	if m.encap {
		port = defaultNATTPort
	}
	for _, sa := range []*esp.SA{&m.In, &m.Out} {
		sa.Suite, sa.Encap, sa.ReplayWindow = m.suite, m.encap, m.window
		if m.mode < modePass {
			sa.Mode = esp.Mode(m.mode)
		}
		if m.t.get("ah_proposals") != nil {
			sa.Proto = esp.AH
		}
		sa.Local, sa.Remote = netip.AddrPortFrom(m.local, port), netip.AddrPortFrom(m.remote, port)
		if m.local.IsValid() && m.remote.IsValid() {
			sa.LocalTS, sa.RemoteTS = resolve(m.localTS, []netip.Addr{m.local}), resolve(m.remoteTS, []netip.Addr{m.remote})
		}
	}
	// Who does not look for replays is served for ever (RFC 4303 section 3.3.3); numbers that go
	// on must not come again.
	m.Out.Cycle = !m.Keep && !m.suite.ESN
	l.cfg.Manual = append(l.cfg.Manual, m.Manual)
}

// peerSPI is by what a peer knows an SA.
type peerSPI struct {
	addr netip.Addr
	spi  uint32
}

// checkManuals notes what is wrong with manual SAs, and what they have in common.
func (l *loader) checkManuals() {
	spis, peers, keys, kept := map[uint32]*manual{}, map[peerSPI]*manual{}, map[[sha256.Size]byte]*manual{}, 0
	for _, m := range l.manuals {
		if !l.checkManual(m) {
			continue
		}
		if other := spis[m.In.SPI]; other != nil {
			l.problem(where(m.t, "spi_in"), "give each another one", "spi_in 0x%x is that of manual SA %s (line %d) already", m.In.SPI, other.Name, other.at.line)
		}
		spis[m.In.SPI] = m
		at := peerSPI{m.remote, m.Out.SPI}
		if other := peers[at]; other != nil {
			l.problem(where(m.t, "spi_out"), "give each another one, there as well", "spi_out 0x%x at %s is that of manual SA %s (line %d) already", at.spi, at.addr, other.Name, other.at.line)
		}
		peers[at] = m
		if m.Keep {
			if kept++; kept == maxKept+1 {
				l.problem(where(m.t, "keep_sequence"), "leave it out with some", "more than %d manual SAs have keep_sequence", maxKept)
			}
		}
		for dir, sa := range []*esp.SA{&m.In, &m.Out} {
			key := sa.EncrKey
			if len(key) == 0 {
				key = sa.IntegKey
			}
			id := sha256.Sum256(key)
			switch {
			case m.suite.CounterMode():
				if other := keys[id]; other != nil {
					l.problem(m.at, "give each direction of each SA a key of its own, or at least another salt",
						"manual SAs %s and %s use one key twice: %s would use its nonces twice, which gives away what is protected", other.Name, m.Name, m.suite)
				}
			case m.Keep && dir == 1:
				id[0] ^= 1 // apart from the others: one key both ways does no harm here
				if other := keys[id]; other != nil {
					l.problem(m.at, "give each a key of its own, or take keep_sequence out", "manual SAs %s and %s send under one key, and keep_sequence keeps one number for each key", other.Name, m.Name)
				}
			default:
				continue
			}
			keys[id] = m
		}
	}
	for _, c := range l.conns {
		if c.Name == ManualConn && len(l.manuals) > 0 {
			l.problem(c.t.key, "give the connection another name", "connection %s would be mistaken for the sections [manual.…]", c.Name)
		}
	}
}

// checkManual notes what is wrong with one, and tells whether it is complete.
func (l *loader) checkManual(m *manual) bool {
	before := len(l.problems)
	if m.t.bad || slices.ContainsFunc(m.t.entries, func(n *node) bool { return n.bad }) {
		return false
	}
	for _, name := range []string{"local_addrs", "remote_addrs", "spi_in", "spi_out"} {
		if m.t.get(name) == nil {
			l.problem(m.at, "write it: nobody negotiates it", "manual SA %s has no %s", m.Name, name)
		}
	}
	esps, ahs := m.t.get("esp_proposals"), m.t.get("ah_proposals")
	switch {
	case (esps == nil) == (ahs == nil):
		l.problem(m.at, `write esp_proposals = ["aes256-sha256"], or ah_proposals`, "manual SA %s must have either esp_proposals or ah_proposals", m.Name)
	case ahs != nil && m.encap:
		l.problem(ahs.key, "take encap out, or use esp_proposals", "AH cannot go through UDP, as encap asks for")
	case ahs != nil && m.mode == modeBEET:
		l.problem(ahs.key, `write mode = "tunnel" or "transport", or use esp_proposals`, "BEET is a mode of ESP alone")
	}
	switch {
	case m.mode >= modePass:
		l.problem(where(m.t, "mode"), `write "tunnel", "transport" or "beet"`, "mode %q makes no SA", modeWords[m.mode])
	case m.local.BitLen() != m.remote.BitLen():
		l.problem(where(m.t, "remote_addrs"), "give both sides an address of the same family", "local_addrs and remote_addrs of manual SA %s are of two address families", m.Name)
	case m.local == m.remote && m.local.IsValid():
		l.problem(where(m.t, "remote_addrs"), "the address is either ours or the peer's", "%s is in local_addrs and in remote_addrs", m.local)
	}
	if len(l.problems) > before {
		return false
	}
	l.checkManualSelectors(m)
	l.checkManualKeys(m)
	return len(l.problems) == before
}

func (l *loader) checkManualSelectors(m *manual) {
	if !sameFamily(m.In.LocalTS, m.In.RemoteTS) {
		l.problem(where(m.t, "remote_ts"), "give local_ts and remote_ts a pair of the same address family",
			"manual SA %s has no local_ts and remote_ts of one address family, so no packet fits", m.Name)
		return
	}
	for _, side := range []struct {
		name string
		list []esp.Selector
		addr netip.Addr
	}{{"local_ts", m.In.LocalTS, m.local}, {"remote_ts", m.In.RemoteTS, m.remote}} {
		for _, ts := range side.list {
			switch {
			case m.mode == modeTransport && (ts.Start != side.addr || ts.End != side.addr):
				l.problem(where(m.t, side.name), `name that one, or write "dynamic", or leave it out; others need mode = "tunnel"`,
					"mode \"transport\" is for packets between the two addresses of the SA alone, and %s has others", side.name)
			case m.mode == modeBEET && (ts.Start != ts.End || ts.Start != side.list[0].Start):
				l.problem(where(m.t, side.name), `name one address; networks need mode = "tunnel"`,
					"mode \"beet\" is for one address on each side, and %s has more", side.name)
			default:
				continue
			}
			break
		}
	}
}

func (l *loader) checkManualKeys(m *manual) {
	encr, integ := m.suite.KeyLens()
	for _, k := range m.keys() {
		want := encr
		if k.to == &m.In.IntegKey || k.to == &m.Out.IntegKey {
			want = integ
		}
		switch n := len(*k.to); {
		case n == want:
		case n == 0:
			l.problem(m.at, "write it there or into the file of key_file: 0x and "+strconv.Itoa(2*want)+" digits, the salt last if the cipher has one",
				"manual SA %s has no %s", m.Name, k.name)
		case want == 0:
			l.problem(where(m.t, k.name), "take it out", "%s takes no %s", m.suite, k.name)
		default:
			l.problem(where(m.t, k.name), "a salt stands behind the key of the cipher", "%s takes %d octets of %s, not %d", m.suite, want, k.name, n)
		}
	}
	switch {
	case m.Keep && l.cfg.Daemon.StateDir == "":
		l.problem(where(m.t, "keep_sequence"), "name a directory that survives a restart", "keep_sequence has nothing to keep its numbers in: state_dir is empty")
	case m.Keep:
	case m.suite.CounterMode():
		l.problem(where(m.t, "esp_proposals"), "negotiate it in [connections.…], take aes256-sha256, or have the numbers kept with keep_sequence = true",
			"%s must not be used with keys that stay the same over a restart: its nonces would come again, which gives away what is protected (RFC 8221 section 3)", m.suite)
	case m.suite.ESN:
		l.problem(m.at, "write keep_sequence = true, or take esn out",
			"extended sequence numbers do not work with keys that stay the same over a restart, unless the numbers go on: the peer could not tell their upper half (RFC 4303 section 2.2.1)")
	case m.window != 0:
		l.warn(where(m.t, "replay_window"), "write keep_sequence = true there if the peer is a postern, or write 0",
			"unless the peer's numbers go on after its restart, all that it sends will be taken for replays (RFC 4303 section 3.3.3)")
	}
	if m.suite.ESN && m.window == 0 {
		l.warn(where(m.t, "replay_window"), "write 64 or more, or leave it out", "replayed packets are not noticed")
	}
}

// findManual returns the manual SA of that name, if it can be used.
func (l *loader) findManual(name string) *manual {
	for _, m := range l.manuals {
		if m.Name == name {
			return m
		}
	}
	return nil
}

// manualEntries returns what the manual SAs protect.
func (c *Config) manualEntries() []Entry {
	var out []Entry
	for _, m := range c.Manual {
		out = append(out, Entry{
			Policy: esp.Policy{Action: esp.Protect, LocalTS: m.Out.LocalTS, RemoteTS: m.Out.RemoteTS},
			Conn:   ManualConn, Child: m.Name, Manual: true, at: m.at,
		})
	}
	return out
}

// Wipe overwrites the keys.
func (m *Manual) Wipe() {
	for _, k := range m.keys() {
		clear(*k.to)
		*k.to = nil
	}
}
