package vici

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/engine/config"
	"postern/engine/control"
	"postern/esp"
	"postern/ike"
)

func (h Handler) listSAs(req *control.Message, stream func(string, *control.Message) error) (*control.Message, error) {
	s, err := selected(req)
	if err != nil {
		return nil, err
	}
	var views []SA
	var now time.Duration
	if err := h.D.Do(func(l Loop) {
		now = l.Now()
		l.List(func(sa *ike.SAInfo) bool {
			if s.conn == "" || sa.Conn == s.conn {
				if s.ike == 0 || sa.Unique == s.ike {
					views = append(views, l.View(sa))
				}
			}
			return true
		})
		if (s.conn == "" || s.conn == config.ManualConn) && s.ike == 0 {
			views = append(views, l.Manual()...)
		}
	}); err != nil {
		return nil, err
	}
	for i := range views {
		v := &views[i]
		m := new(control.Message)
		sec := m.Section(v.name())
		v.Message(sec, now, ours(req))
		kids := sec.Section(control.KeyChildSAs)
		found := false
		for j := range v.Children {
			c := &v.Children[j]
			if s.child != "" && c.Name != s.child || s.id != 0 && c.Unique != s.id {
				continue
			}
			found = true
			c.Message(kids.Section(childKey(c)), now, ours(req))
		}
		if s.children() && !found && (ours(req) || v.Manual) { // charon shows the IKE SA by itself
			continue
		}
		if err := stream(control.EvListSA, m); err != nil {
			return nil, err
		}
	}
	return new(control.Message), nil
}

// name is what the SA is listed under: a responder's is nameless until the peer has
// said who it is.
func (v *SA) name() string {
	if v.Conn == "" {
		return "(unnamed)"
	}
	return v.Conn
}

//go:noinline
func seconds(d time.Duration) int64 { return int64(d / time.Second) }

// Message writes an IKE SA without its children, in charon's order, at the time now of Loop's clock.
// With ours it adds the keys that charon does not have.
func (v *SA) Message(m *control.Message, now time.Duration, ours bool) {
	m.SetUint(control.KeyUniqueID, uint64(v.Unique))
	version := "2"
	if v.Manual {
		version = "0" // no IKE at all
	}
	m.Set(control.KeyVersion, version)
	state := v.State
	if state == ike.StateEstablished && v.Active > 0 && v.Tasks[0] == "IKE_REKEY" {
		state = ike.StateRekeying
	}
	m.Set(control.KeyState, state.String())
	m.Set(control.KeyLocalHost, v.Path.Local.Addr().Unmap().String())
	m.SetUint(control.KeyLocalPort, uint64(v.Path.Local.Port()))
	m.Set(control.KeyLocalID, idText(v.LocalID))
	m.Set(control.KeyRemoteHost, v.Path.Remote.Addr().Unmap().String())
	m.SetUint(control.KeyRemotePort, uint64(v.Path.Remote.Port()))
	m.Set(control.KeyRemoteID, idText(v.RemoteID))
	yes(m, control.KeyInitiator, v.Initiator)
	m.Set(control.KeyInitiatorSPI, fmt.Sprintf("%016x", v.SPIi))
	m.Set(control.KeyResponderSPI, fmt.Sprintf("%016x", v.SPIr))
	yes(m, control.KeyNATLocal, v.NATLocal && !v.NATFake)
	yes(m, control.KeyNATRemote, v.NATPeer)
	yes(m, control.KeyNATFake, v.NATFake && !v.NATPeer)
	yes(m, control.KeyNATAny, v.NATLocal || v.NATPeer)
	if v.Suite.Encr != 0 {
		algorithms(m, esp.EncrID(v.Suite.Encr), v.Suite.KeyBits, esp.IntegID(v.Suite.Integ))
		m.Set(control.KeyPRFAlg, v.Suite.PRF.String())
		m.Set(control.KeyDHGroup, v.Suite.DH.String())
		additionalKE(m, v.Suite.KE)
	}
	if v.PPK != (ike.PPKID{}) {
		yes(m, control.KeyPPK, true)
		if ours {
			m.Set(control.KeyPPKID, v.PPK.String())
		}
	}
	if state == ike.StateEstablished || ours && v.State == ike.StateEstablished {
		m.SetInt(control.KeyEstablished, seconds(now-v.Established))
		until(m, control.KeyRekeyTime, v.RekeyAt, now)
		until(m, control.KeyReauthTime, v.ReauthAt, now)
		if ours {
			until(m, control.KeyLifeTime, v.ExpireAt, now)
		}
	}
	if ours {
		proofLists(m, &v.SAInfo)
	}
	some := func(key string, list []string) {
		if len(list) > 0 {
			m.List(key, list...)
		}
	}
	if a := v.Assigned; a != nil {
		some(control.KeyLocalVIPs, Texts(a.Addrs))
		if ours {
			some(control.KeyDNSServers, Texts(v.DNSServers))
			some(control.KeyDNSDomains, v.DNSDomains)
			some(control.KeyEncDNS, EncTexts(a.EncDNS))
			some(control.KeyNetworks, Texts(a.Subnets))
		}
	}
	some(control.KeyRemoteVIPs, Texts(v.RemoteVIPs))
	some(control.KeyTasksQueued, v.Tasks[v.Active:])
	some(control.KeyTasksActive, v.Tasks[:v.Active])
	some(control.KeyTasksPassive, v.Passive)
}

// Message writes a CHILD SA in the same way.
func (c *Child) Message(m *control.Message, now time.Duration, ours bool) {
	m.Set(control.KeyName, c.Name)
	m.SetUint(control.KeyUniqueID, uint64(c.Unique))
	m.SetInt(control.KeyReqID, int64(c.ReqID))
	m.Set(control.KeyState, c.State.String())
	m.Set(control.KeyMode, c.Mode.String())
	proto := esp.ESP
	if c.Suite.Encr == esp.EncrNone && c.Suite.Integ != esp.IntegNone {
		proto = esp.AH
	}
	m.Set(control.KeyProtocol, proto.String())
	yes(m, control.KeyEncap, c.Encap)
	yes(m, control.KeyFragments, ours && c.Fragments)
	m.Set(control.KeySPIIn, fmt.Sprintf("%08x", c.SPIIn))
	m.Set(control.KeySPIOut, fmt.Sprintf("%08x", c.SPIOut))
	c.lane(m, ours)
	algorithms(m, c.Suite.Encr, c.Suite.KeyBits, c.Suite.Integ)
	if c.DH != ike.DHNone {
		m.Set(control.KeyDHGroup, c.DH.String())
		additionalKE(m, c.KE)
	}
	if c.Suite.ESN {
		m.Set(control.KeyESN, "1")
	}
	m.SetUint(control.KeyBytesIn, c.In.Bytes)
	m.SetUint(control.KeyPacketsIn, c.In.Packets)
	if c.LastIn != 0 {
		m.SetInt(control.KeyUseIn, seconds(now-c.LastIn))
	}
	m.SetUint(control.KeyBytesOut, c.Out.Bytes)
	m.SetUint(control.KeyPacketsOut, c.Out.Packets)
	if c.LastOut != 0 {
		m.SetInt(control.KeyUseOut, seconds(now-c.LastOut))
	}
	until(m, control.KeyRekeyTime, c.RekeyAt, now)
	until(m, control.KeyLifeTime, c.ExpireAt, now)
	m.SetInt(control.KeyInstallTime, seconds(now-c.Installed))
	m.List(control.KeyLocalTS, selectorTexts(c.LocalTS)...)
	m.List(control.KeyRemoteTS, selectorTexts(c.RemoteTS)...)
}

// lane writes what an SA beside others is for. The first two keys are those of charon, which
// has no SAs for classes.
func (c *Child) lane(m *control.Message, ours bool) {
	key, value := control.KeyDSCPClass, c.Class
	switch {
	case c.PerCPU && c.Lane > 0:
		key, value = control.KeyCPU, strconv.Itoa(int(c.Lane-1))
	case c.PerCPU:
		key, value = control.KeyPerCPU, "yes"
	}
	if value != "" && (ours || key != control.KeyDSCPClass) {
		m.Set(key, value)
	}
}

// yes writes a condition that holds; charon leaves out those that do not.
//
//go:noinline
func yes(m *control.Message, key string, v bool) {
	if v {
		m.Set(key, "yes")
	}
}

// until writes in how many seconds something will be, if ever.
func until(m *control.Message, key string, at, now time.Duration) {
	if at != 0 {
		m.SetInt(key, seconds(at-now))
	}
}

// additionalKE writes the methods of additional key exchanges.
func additionalKE(m *control.Message, ke ike.AddKE) {
	for i, g := range ke {
		if g != ike.DHNone {
			m.Set(control.KeyAdditionalKE(i+1), g.String())
		}
	}
}

func algorithms(m *control.Message, encr esp.EncrID, bits uint16, integ esp.IntegID) {
	m.Set(control.KeyEncrAlg, encr.String())
	if bits != 0 {
		m.SetUint(control.KeyEncrKeysize, uint64(bits))
	}
	if integ != esp.IntegNone {
		m.Set(control.KeyIntegAlg, integ.String())
	}
}

func idText(id ike.ID) string {
	if id == (ike.ID{}) {
		return "%any"
	}
	return idName(id)
}

// idName writes an identity as charon does: of the key identifiers those that are text as such, the
// others as pairs of digits.
func idName(id ike.ID) string {
	s := id.String()
	if id.Type != ike.IDKeyID {
		return s
	}
	if hex, ok := strings.CutPrefix(s, "@#"); !ok {
		s = strings.TrimPrefix(s, "keyid:")
	} else {
		s = ""
		for ; len(hex) > 2; hex = hex[2:] {
			s += hex[:2] + ":"
		}
		s += hex
	}
	return s
}

//go:noinline
func selectorTexts(list []esp.Selector) []string {
	out := make([]string, len(list))
	for i := range list {
		out[i] = list[i].String()
	}
	return out
}

// tsTexts writes configured selectors; a dynamic one has no address yet.
func tsTexts(list []ike.TS) []string {
	out := make([]string, len(list))
	for i, ts := range list {
		if ts.Dynamic {
			ts.Start, ts.End = netip.IPv4Unspecified(), netip.IPv4Unspecified()
		}
		out[i] = ts.Selector.String()
		if ts.Dynamic {
			_, ports, found := strings.Cut(out[i], "[")
			if out[i] = "dynamic"; found {
				out[i] += "[" + ports
			}
		}
	}
	return out
}

func (h Handler) listConns(req *control.Message, stream func(string, *control.Message) error) (*control.Message, error) {
	var cfg *config.Config
	if err := h.D.Do(func(l Loop) { cfg = l.Config() }); err != nil {
		return nil, err
	}
	only, shunts := req.Get(control.KeyIKE), cfg.Shunts()
	conns := cfg.IKE.Conns
	for i := range shunts {
		// A connection of nothing else has no part in IKE.
		if !slices.ContainsFunc(conns, func(c *ike.Conn) bool { return c.Name == shunts[i].Conn }) {
			conns = append(slices.Clip(conns), shunts[i].Owner)
		}
	}
	for _, c := range conns {
		if only != "" && c.Name != only {
			continue
		}
		m := new(control.Message)
		connMessage(m.Section(c.Name), c, shunts, cfg.Priority, ours(req))
		if err := stream(control.EvListConn, m); err != nil {
			return nil, err
		}
	}
	return new(control.Message), h.listManual(only, stream)
}

// startNames and actionNames are strongSwan's words for the actions: those that it lists, of which
// some are others than those that it reads.
var (
	startNames  = [...]string{ike.StartNone: "none", ike.StartTrap: "trap", ike.StartStart: "start"}
	uniqueNames = [...]string{ike.UniqueNo: "UNIQUE_NO", ike.UniqueNever: "UNIQUE_NEVER", ike.UniqueKeep: "UNIQUE_KEEP",
		ike.UniqueReplace: "UNIQUE_REPLACE"}
	actionNames = [...]string{ike.ActionClear: "none", ike.ActionTrap: "trap", ike.ActionRestart: "start"}
)

// connMessage writes a connection, in charon's order, with those of the shunts that are its
// children.
func connMessage(m *control.Message, c *ike.Conn, shunts []config.Shunt, priority func(*ike.Child) uint32, ours bool) {
	var local, remote []string
	for _, a := range c.LocalAddrs {
		local = append(local, a.String())
	}
	for _, p := range c.LocalNets {
		local = append(local, p.String())
	}
	names := func(at int) {
		for _, n := range c.RemoteNames {
			if n.At == at {
				remote = append(remote, n.Name)
			}
		}
	}
	for i, p := range c.RemoteAddrs {
		names(i)
		if p.IsSingleIP() {
			remote = append(remote, p.Addr().String())
		} else {
			remote = append(remote, p.String())
		}
	}
	names(len(c.RemoteAddrs))
	orAny := func(list []string) []string {
		if len(list) == 0 {
			return []string{"%any"}
		}
		return list
	}
	m.List(control.KeyLocalAddrs, orAny(local)...)
	m.List(control.KeyRemoteAddrs, orAny(remote)...)
	m.Set(control.KeyVersion, "IKEv2")
	m.SetInt(control.KeyReauthTimeC, seconds(c.ReauthTime))
	m.SetInt(control.KeyRekeyTimeC, seconds(c.RekeyTime))
	m.Set(control.KeyUnique, uniqueNames[c.Unique])
	if c.DPDDelay > 0 || ours {
		m.SetInt(control.KeyDPDDelay, seconds(c.DPDDelay))
	}
	switch {
	case c.PPKAny:
		m.Set(control.KeyPPKIDC, "%any")
	case c.PPK != ike.PPKID{}:
		m.Set(control.KeyPPKIDC, c.PPK.String())
	}
	yes(m, control.KeyPPKRequired, c.PPKRequired)
	authSections(m, c, ours)
	kids := m.Section(control.KeyChildren)
	for _, ch := range c.Children {
		s := kids.Section(ch.Name)
		lifetimes(s, ch)
		if ours {
			s.Set(control.KeyStartAction, startNames[ch.StartAction])
		}
		s.List(control.KeyLocalTS, tsTexts(ch.LocalTS)...)
		s.List(control.KeyRemoteTS, tsTexts(ch.RemoteTS)...)
		if ch.Interface != "" {
			s.Set(control.KeyInterface, ch.Interface)
		}
		if v := priority(ch); v > 0 {
			s.SetUint(control.KeyPriority, uint64(v))
		}
	}
	for i := range shunts {
		sh := &shunts[i]
		if sh.Conn != c.Name {
			continue
		}
		s := kids.Section(sh.Child)
		lifetimes(s, sh.As)
		if s.Set(control.KeyMode, modePass); sh.Action == esp.Discard {
			s.Set(control.KeyMode, modeDrop)
		}
		if ours {
			s.Set(control.KeyStartAction, startNames[ike.StartTrap])
		}
		s.List(control.KeyLocalTS, selectorTexts(sh.LocalTS)...)
		s.List(control.KeyRemoteTS, selectorTexts(sh.RemoteTS)...)
	}
}

// lifetimes writes how a child is and when its SAs end.
func lifetimes(s *control.Message, ch *ike.Child) {
	s.Set(control.KeyMode, ch.Mode.String())
	s.SetInt(control.KeyRekeyTimeC, seconds(ch.RekeyTime))
	s.SetUint(control.KeyRekeyBytes, ch.RekeyBytes)
	s.SetUint(control.KeyRekeyPackets, ch.RekeyPackets)
	s.Set(control.KeyDPDAction, actionNames[ch.DPDAction])
	s.Set(control.KeyCloseAction, actionNames[ch.CloseAction])
}
