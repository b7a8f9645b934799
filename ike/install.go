package ike

import (
	"time"

	"postern/esp"
)

// From an agreed CHILD SA to a pair of SAs in the SAD.

// allocSPI takes an SPI for an inbound SA. A part of the table is kept for rekeying.
func (m *Machine) allocSPI(rekey bool, cfg *Child, lane uint8) (uint32, bool) {
	used, free := 0, false
	for i := range m.children {
		if m.children[i].state != ChildFree {
			used++
		} else {
			free = true
		}
	}
	if !free || !rekey && used >= len(m.children)-reserve(len(m.children)) {
		return 0, false
	}
	if !cfg.PerCPU {
		lane = 0
	}
	return m.env.AllocSPI(lane)
}

// childParams is what a new CHILD SA is made from.
type childParams struct {
	cfg           *Child
	suite         esp.Suite
	dh            DHGroup
	ours          bool // we started the exchange
	standby       bool
	spiIn, spiOut uint32
	ni, nr        []byte // of the exchange: its initiator's first
	shared        []byte
	secrets       []byte // of the additional key exchanges
	ke            AddKE
	local, remote []esp.Selector
	mode          esp.Mode
	frags         bool
	seen          seenAs
	lane          laneState
	padding       bool // the peer takes it
	agg           AggFrag
}

// install derives the keys of a CHILD SA (section 2.17) and hands both directions out. It
// returns nil if there is no room.
func (m *Machine) install(sa *ikeSA, p *childParams) *childSA {
	var c *childSA
	for i := range m.children {
		if m.children[i].state == ChildFree {
			c = &m.children[i]
			break
		}
	}
	if c == nil {
		return nil
	}
	m.nextChild++
	*c = childSA{
		unique: m.nextChild, state: ChildInstalled, ike: sa.slot, conn: sa.conn, cfg: p.cfg,
		spiIn: p.spiIn, spiOut: p.spiOut, suite: p.suite, dh: p.dh, ke: p.ke, mode: p.mode, frags: p.frags, encap: sa.espRoute().encap,
		local: p.local, remote: p.remote, agg: p.agg, byPeer: !p.ours, standby: p.standby, nonceLow: lowest(p.ni, p.nr),
		installed: m.now.Mono, used: m.now.Mono, lane: p.lane,
	}
	c.timers.clear()
	encr, integ := p.suite.KeyLens()
	keymat := childKeymat(sa.suite.PRF, sa.keys.d, p.shared, p.ni, p.nr, 2*(encr+integ), p.secrets)
	take := func(n int) []byte {
		k := append([]byte(nil), keymat[:n]...)
		keymat = keymat[n:]
		return k
	}
	all := keymat
	first := [2][]byte{take(encr), take(integ)}  // from the exchange's initiator
	second := [2][]byte{take(encr), take(integ)} // to it
	clear(all)
	out, in := first, second
	if !p.ours {
		out, in = second, first
	}
	route := sa.espRoute()
	path := route.path
	base := esp.SA{
		Mode: p.mode, OrigLocal: p.seen[0], OrigRemote: p.seen[1], Suite: p.suite, Local: path.Local, Remote: path.Remote, Encap: c.encap,
		ReplayWindow: p.cfg.ReplayWindow, LocalTS: p.local, RemoteTS: p.remote,
	}
	if c.proto() == ProtoAH {
		base.Proto = esp.AH
	}
	add := func(dir esp.Direction, spi uint32, keys [2][]byte) {
		x := &ChildSA{SA: base, Inbound: c.spiIn, Conn: c.conn.Name, Child: c.cfg.Name, IKE: sa.unique, ID: c.unique,
			Standby: dir == esp.Out && p.standby, Fragments: p.frags, Lane: c.lane.n, PerCPU: c.lane.perCPU,
			Interface: c.cfg.Interface, Hiding: c.cfg.hiding(p.mode, p.padding, p.agg), AggFrag: p.agg}
		x.SPI, x.Dir, x.EncrKey, x.IntegKey = spi, dir, keys[0], keys[1]
		x.Soft, x.Hard = m.volumeLimits(c.cfg)
		m.out = append(m.out, Output{Kind: OutAddSA, Add: x})
	}
	add(esp.In, c.spiIn, in)
	add(esp.Out, c.spiOut, out)
	m.armChildLife(c)
	if p.standby && !p.ours {
		m.armChild(c, tcUse, standbyMax)
	}
	return c
}

// armChildLife sets the lifetimes of a CHILD SA.
func (m *Machine) armChildLife(c *childSA) {
	if c.cfg.Inactivity > 0 {
		m.armChild(c, tcIdle, c.cfg.Inactivity)
	}
	life := c.cfg.LifeTime
	if soft := c.cfg.RekeyTime; soft > 0 {
		if life == 0 {
			life = soft + soft/10
		}
		m.armChild(c, tcRekey, max(soft-m.random(c.cfg.RandTime), time.Second))
		c.rekeyAt = c.timers[tcRekey]
	}
	if life > 0 {
		m.armChild(c, tcExpire, life)
		c.expireAt = c.timers[tcExpire]
	}
}
