package cli

import (
	"slices"
	"strconv"
	"strings"

	"postern/engine/control"
)

// state is what the daemon tells about itself, gathered from version, stats,
// list-conns and list-sas.
type state struct {
	version string
	running string // since when, in words
	path    dataPath
	conns   []*conn
}

// dataPath is what the daemon's data path has; workers is 0 where it does not say, as charon.
type dataPath struct {
	workers, sockets uint64
	used, slots      uint64 // of the table of ESP SAs; slots is 0 where it does not say
	tun, udp, esp    string // what device and sockets can do
}

// conn is a connection with its SAs. One that a reload took out of the configuration
// while its SAs live on is not configured.
type conn struct {
	name       string
	configured bool
	version    string
	local      []string // addresses
	remote     []string
	localID    string
	remoteID   string
	children   []*child
	sas        []*ikeSA
}

// child is a CHILD SA's configuration.
type child struct {
	name      string
	start     string // none, trap, start; "" if the daemon does not say
	localTS   []string
	remoteTS  []string
	installed int
}

// ikeSA is an IKE SA. Times are seconds; -1 stands for what the daemon left out.
type ikeSA struct {
	id                    uint64
	state                 string
	initiator             bool
	localHost, remoteHost string // with port
	localID, remoteID     string
	spiI, spiR            string
	natLocal, natRemote   bool
	suite                 string
	localAuth, remoteAuth []string // how each side has proved who it is
	established           int64
	rekey, life           int64
	tasks                 []string
	vips, dns, domains    []string // that the peer has assigned to us
	encDNS, networks      []string
	given                 []string // virtual addresses that the peer has of us
	children              []*childSA
}

// childSA is a CHILD SA.
type childSA struct {
	id                   uint64
	name, state          string
	mode, protocol       string
	encap                bool
	spiIn, spiOut        string
	class, cpu           string // of the packets that it is for, where there are several
	suite                string
	bytesIn, packetsIn   uint64
	bytesOut, packetsOut uint64
	useIn, useOut        int64
	rekey, life, install int64
	localTS, remoteTS    []string
}

// collect asks the daemon. With a name it asks only for that connection.
func collect(c *control.Client, name string) (*state, error) {
	st := &state{}
	v, err := c.Call(control.CmdVersion, nil)
	if err != nil {
		return nil, err
	}
	st.version = v.Get(control.KeyVersion)
	s, err := c.Call(control.CmdStats, nil)
	if err != nil {
		return nil, err
	}
	st.running = s.Sub(control.KeyUptime).Get(control.KeyRunning)
	d := s.Sub(control.KeyDataPath)
	st.path = dataPath{tun: d.Get(control.KeyTUN), udp: d.Get(control.KeyUDP), esp: d.Get(control.KeyESP)}
	st.path.workers, _ = d.GetUint(control.KeyWorkers)
	st.path.sockets, _ = d.GetUint(control.KeySockets)
	st.path.slots, _ = d.GetUint(control.KeySlots)
	st.path.used, _ = d.GetUint(control.KeySlotsUsed)

	req := new(control.Message)
	if name != "" {
		req.Set(control.KeyIKE, name)
	}
	_, err = c.CallStream(control.CmdListConns, control.EvListConn, req, func(m *control.Message) error {
		for _, e := range m.Elements() {
			if e.Kind == control.KindSection && (name == "" || e.Name == name) {
				st.conns = append(st.conns, readConn(e.Name, e.Section))
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	_, err = c.CallStream(control.CmdListSAs, control.EvListSA, req, func(m *control.Message) error {
		for _, e := range m.Elements() {
			if e.Kind == control.KindSection && (name == "" || e.Name == name) {
				cn := st.conn(e.Name)
				cn.addSA(readIKESA(e.Section))
			}
		}
		return nil
	})
	return st, err
}

// conn returns the connection of that name, and makes one if the configuration has it
// no more.
func (st *state) conn(name string) *conn {
	for _, c := range st.conns {
		if c.name == name {
			return c
		}
	}
	c := &conn{name: name}
	st.conns = append(st.conns, c)
	return c
}

func (c *conn) addSA(sa *ikeSA) {
	c.sas = append(c.sas, sa)
	for _, s := range sa.children {
		i := slices.IndexFunc(c.children, func(ch *child) bool { return ch.name == s.name })
		if i >= 0 && s.carries() {
			c.children[i].installed++
		}
	}
}

// carries tells whether traffic flows through the CHILD SA.
func (s *childSA) carries() bool { return s.state == "INSTALLED" || s.state == "REKEYING" }

// up tells whether the tunnel is up: an IKE SA is established, a CHILD SA carries
// traffic, and no child that is to be up at all times is missing.
func (c *conn) up() bool {
	if !slices.ContainsFunc(c.sas, func(s *ikeSA) bool { return s.state == "ESTABLISHED" }) {
		return false
	}
	for _, ch := range c.children {
		if ch.start == "start" && ch.installed == 0 {
			return false
		}
	}
	return c.tunnels() > 0
}

// tunnels counts the CHILD SAs that carry traffic.
func (c *conn) tunnels() int {
	n := 0
	for _, sa := range c.sas {
		for _, s := range sa.children {
			if s.carries() {
				n++
			}
		}
	}
	return n
}

func readConn(name string, m *control.Message) *conn {
	c := &conn{
		name:       name,
		configured: true,
		version:    m.Get(control.KeyVersion),
		local:      m.Items(control.KeyLocalAddrs),
		remote:     m.Items(control.KeyRemoteAddrs),
		localID:    m.Sub(control.KeyLocalAuth).Get(control.KeyID),
		remoteID:   m.Sub(control.KeyRemoteAuth).Get(control.KeyID),
	}
	for _, e := range m.Sub(control.KeyChildren).Elements() {
		if e.Kind == control.KindSection {
			c.children = append(c.children, &child{
				name:     e.Name,
				start:    e.Section.Get(control.KeyStartAction),
				localTS:  e.Section.Items(control.KeyLocalTS),
				remoteTS: e.Section.Items(control.KeyRemoteTS),
			})
		}
	}
	return c
}

func readIKESA(m *control.Message) *ikeSA {
	sa := &ikeSA{
		state:       m.Get(control.KeyState),
		initiator:   m.GetBool(control.KeyInitiator),
		localHost:   hostPort(m.Get(control.KeyLocalHost), m.Get(control.KeyLocalPort)),
		remoteHost:  hostPort(m.Get(control.KeyRemoteHost), m.Get(control.KeyRemotePort)),
		localID:     m.Get(control.KeyLocalID),
		remoteID:    m.Get(control.KeyRemoteID),
		spiI:        m.Get(control.KeyInitiatorSPI),
		spiR:        m.Get(control.KeyResponderSPI),
		natLocal:    m.GetBool(control.KeyNATLocal),
		natRemote:   m.GetBool(control.KeyNATRemote),
		suite:       suite(m),
		established: seconds(m, control.KeyEstablished),
		rekey:       seconds(m, control.KeyRekeyTime),
		life:        seconds(m, control.KeyLifeTime),
		vips:        m.Items(control.KeyLocalVIPs),
		dns:         m.Items(control.KeyDNSServers),
		domains:     m.Items(control.KeyDNSDomains),
		encDNS:      m.Items(control.KeyEncDNS),
		networks:    m.Items(control.KeyNetworks),
		given:       m.Items(control.KeyRemoteVIPs),
	}
	sa.id, _ = m.GetUint(control.KeyUniqueID)
	sa.localAuth, sa.remoteAuth = m.Items(control.KeyLocalProofs), m.Items(control.KeyRemoteProofs)
	for _, k := range []string{control.KeyTasksActive, control.KeyTasksPassive, control.KeyTasksQueued} {
		sa.tasks = append(sa.tasks, m.Items(k)...)
	}
	for _, e := range m.Sub(control.KeyChildSAs).Elements() {
		if e.Kind == control.KindSection {
			sa.children = append(sa.children, readChildSA(e.Section))
		}
	}
	return sa
}

func readChildSA(m *control.Message) *childSA {
	s := &childSA{
		name:     m.Get(control.KeyName),
		state:    m.Get(control.KeyState),
		mode:     m.Get(control.KeyMode),
		protocol: m.Get(control.KeyProtocol),
		encap:    m.GetBool(control.KeyEncap),
		spiIn:    m.Get(control.KeySPIIn),
		spiOut:   m.Get(control.KeySPIOut),
		class:    m.Get(control.KeyDSCPClass),
		cpu:      m.Get(control.KeyCPU),
		suite:    suite(m),
		useIn:    seconds(m, control.KeyUseIn),
		useOut:   seconds(m, control.KeyUseOut),
		rekey:    seconds(m, control.KeyRekeyTime),
		life:     seconds(m, control.KeyLifeTime),
		install:  seconds(m, control.KeyInstallTime),
		localTS:  m.Items(control.KeyLocalTS),
		remoteTS: m.Items(control.KeyRemoteTS),
	}
	s.id, _ = m.GetUint(control.KeyUniqueID)
	s.bytesIn, _ = m.GetUint(control.KeyBytesIn)
	s.packetsIn, _ = m.GetUint(control.KeyPacketsIn)
	s.bytesOut, _ = m.GetUint(control.KeyBytesOut)
	s.packetsOut, _ = m.GetUint(control.KeyPacketsOut)
	return s
}

// seconds reads a time; -1 if it is not there.
func seconds(m *control.Message, key string) int64 {
	v, ok := m.GetInt(key)
	if !ok {
		return -1
	}
	return max(v, 0) // charon reports a rekeying that is overdue as negative
}

// hostPort joins address and port as netip does.
func hostPort(host, port string) string {
	switch {
	case port == "":
		return host
	case strings.Contains(host, ":"):
		return "[" + host + "]:" + port
	}
	return host + ":" + port
}

// suite writes the algorithms of an SA as charon does.
func suite(m *control.Message) string {
	var parts []string
	if s := m.Get(control.KeyEncrAlg); s != "" {
		if k := m.Get(control.KeyEncrKeysize); k != "" {
			s += "-" + k
		}
		parts = append(parts, s)
	}
	if s := m.Get(control.KeyIntegAlg); s != "" {
		if k := m.Get(control.KeyIntegKeysize); k != "" {
			s += "-" + k
		}
		parts = append(parts, s)
	}
	for _, k := range []string{control.KeyPRFAlg, control.KeyDHGroup} {
		if s := m.Get(k); s != "" {
			parts = append(parts, s)
		}
	}
	for n := 1; n <= 7; n++ {
		if s := m.Get(control.KeyAdditionalKE(n)); s != "" {
			parts = append(parts, "KE"+strconv.Itoa(n)+"_"+s)
		}
	}
	if m.GetBool(control.KeyPPK) {
		parts = append(parts, "PPK")
	}
	if m.GetBool(control.KeyESN) {
		parts = append(parts, "ESN")
	}
	return strings.Join(parts, "/")
}
