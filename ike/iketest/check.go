package iketest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"postern/esp"
	"postern/ike"
)

// books are what the machine's events say is up; they have to agree with its tables.
type books struct {
	ikes map[uint32]bool   // unique numbers of established IKE SAs
	kids map[uint32]string // unique numbers of CHILD SAs and their names
}

// checker knows what a host's configuration allows. What the former ones have allowed may
// still come up for a moment, by exchanges that were under way.
type checker struct {
	cfg    ike.Config
	former []ike.Config
}

// misbooked notes that a machine's events do not agree with its tables.
func (s *Sim) misbooked(format string, args ...any) {
	if !s.IgnoreEvents {
		s.Fail(format, args...)
	}
}

func (c *checker) configured(cfg ike.Config) {
	c.former = append(c.former, c.cfg)
	c.cfg = cfg
}

// child returns the configuration of a child.
func (c *checker) child(conn, name string) *ike.Child {
	if k := childOf(c.cfg, conn, name); k != nil {
		return k
	}
	for _, cfg := range c.former {
		if k := childOf(cfg, conn, name); k != nil {
			return k
		}
	}
	return nil
}

func childOf(cfg ike.Config, conn, name string) *ike.Child {
	for _, x := range cfg.Conns {
		for _, k := range x.Children {
			if x.Name == conn && k.Name == name {
				return k
			}
		}
	}
	return nil
}

// event takes note of what the machine tells.
func (h *Host) event(e *ike.Event) {
	if e.Kind == ike.EvTrace {
		if text, ok := strings.CutPrefix(e.Text, "sending "); ok {
			h.trace = text
		}
		return
	}
	h.tell(e)
	if h.Saw != nil {
		h.Saw(e)
	}
	b := &h.books
	if b.ikes == nil {
		b.ikes, b.kids = map[uint32]bool{}, map[uint32]string{}
	}
	switch e.Kind {
	case ike.EvRoamed:
		h.sim.stats.Roamed++
	case ike.EvRedirected:
		switch {
		case e.Err == nil:
			h.sim.stats.Redirected++
		case e.Err == ike.ErrRedirectLoop:
			h.sim.stats.Loops++
		}
	case ike.EvInitiate:
		if e.Old != 0 {
			h.sim.stats.Reauths++
		}
	case ike.EvIKEUp:
		if b.ikes[e.IKE] {
			h.sim.misbooked("%s: the IKE SA #%d came up twice", h.Name, e.IKE)
		}
		b.ikes[e.IKE] = true
		if e.Text != "" {
			h.sim.stats.Resumed++
		}
	case ike.EvIKERekeyed:
		if !b.ikes[e.Old] {
			h.sim.misbooked("%s: the IKE SA #%d takes the place of #%d, of which nobody was told", h.Name, e.IKE, e.Old)
		}
		delete(b.ikes, e.Old)
		b.ikes[e.IKE] = true
	case ike.EvIKEDown:
		delete(b.ikes, e.IKE)
		switch e.Err {
		case ike.ErrPeerRestarted:
			h.sim.stats.Restarted++
		case ike.ErrInactive:
			h.sim.stats.Idle++
		}
	case ike.EvChildUp:
		if _, ok := b.kids[e.ChildID]; ok {
			h.sim.misbooked("%s: the CHILD SA {%d} came up twice", h.Name, e.ChildID)
		}
		b.kids[e.ChildID] = e.Child
	case ike.EvChildRekeyed:
		if _, ok := b.kids[e.Old]; !ok {
			h.sim.misbooked("%s: the CHILD SA {%d} takes the place of {%d}, of which nobody was told", h.Name, e.ChildID, e.Old)
		}
		delete(b.kids, e.Old)
		b.kids[e.ChildID] = e.Child
	case ike.EvChildDown:
		if _, ok := b.kids[e.ChildID]; !ok {
			h.sim.misbooked("%s: the CHILD SA {%d} went down, of which nobody was told that it was up", h.Name, e.ChildID)
		}
		delete(b.kids, e.ChildID)
		if e.Err == ike.ErrInactive {
			h.sim.stats.Idle++
		}
	case ike.EvDone:
		c := h.commands[e.Tag]
		switch {
		case c == nil:
			h.sim.Fail("%s: a command ended that nobody gave (%d)", h.Name, e.Tag)
		case c.Done:
			h.sim.Fail("%s: the command %d (%s) ended twice", h.Name, e.Tag, c.What)
		default:
			c.Done, c.Err = true, e.Err
		}
	}
}

// answerTime is how long the answer to a request may take in the slowest network.
const answerTime = 15 * time.Second

// checkHiding checks what was agreed on about AGGFRAG payloads. One that only waits to be deleted,
// because the peer has not granted them, is never used.
func checkHiding(c *ike.ChildSA, cfg *ike.Child, fail func(format string, args ...any)) {
	switch {
	case c.AggFrag.On && cfg.Hiding.IPTFS == ike.IPTFSNo:
		fail("it has AGGFRAG payloads, which were not asked for")
	case !c.AggFrag.On && cfg.Hiding.IPTFS == ike.IPTFSRequire && c.Dir == esp.Out && !c.Standby:
		fail("it has no AGGFRAG payloads, which are required")
	}
}

// checkNew looks at an SA before it is put in place.
func (h *Host) checkNew(c *ike.ChildSA) {
	fail := func(format string, args ...any) {
		h.sim.Fail("%s: %s SA %08x of %s {%d}: %s", h.Name, direction(c.Dir), c.SPI, c.Child, c.ID, fmt.Sprintf(format, args...))
	}
	t := h.slot(c.Inbound)
	if t == nil || t.freed {
		fail("its inbound SPI %08x is not given out", c.Inbound)
		return
	}
	encr, integ := c.Suite.KeyLens()
	if len(c.EncrKey) != encr || len(c.IntegKey) != integ {
		fail("its keys have %d and %d octets, %v takes %d and %d", len(c.EncrKey), len(c.IntegKey), c.Suite, encr, integ)
	}
	// The answer to a request that has left from an address which has gone since may be long on
	// its way. The machine then finds that no way leads from there.
	if !slices.Contains(h.Addrs, c.Local.Addr()) && !h.hadWithin(c.Local.Addr(), answerTime) {
		fail("it leaves from %v, which is none of the host's addresses", c.Local)
	}
	cfg := h.check.child(c.Conn, c.Child)
	if cfg == nil {
		fail("no such child is configured")
		return
	}
	inside := func(got []esp.Selector, allowed []ike.TS, what string) {
		for _, g := range got {
			if !slices.ContainsFunc(allowed, func(a ike.TS) bool {
				if a.Dynamic {
					return g.Start == g.End
				}
				return a.Contains(g)
			}) {
				fail("the %s selector %v is outside of the configured ones", what, g)
			}
		}
		if len(got) == 0 {
			fail("no %s selectors", what)
		}
	}
	checkHiding(c, cfg, fail)
	inside(c.LocalTS, cfg.LocalTS, "local")
	inside(c.RemoteTS, cfg.RemoteTS, "remote")
	if c.Dir == esp.In {
		if c.SPI != c.Inbound || t.in != nil || c.Standby {
			fail("the SPI is taken, or is not its own inbound SPI (%08x), or it is on standby", c.Inbound)
		}
		return
	}
	if h.findOut(c.SPI, c.Inbound) >= 0 {
		fail("it is there already")
		return
	}
	// The other side must have given the SPI out; and if it has come so far that it sends
	// to us, it must be able to receive from us.
	for _, peer := range h.sim.hosts {
		if !peer.everSPI[c.SPI] || peer == h {
			continue
		}
		if t := peer.slot(c.SPI); t != nil && t.in == nil && peer.findOut(c.Inbound, c.SPI) >= 0 {
			fail("%s sends through its other half, but has no inbound SA for it", peer.Name)
		}
		return
	}
	fail("nobody has given the SPI out")
}

// invariants are what must hold after every step of a host.
func (h *Host) invariants() {
	if h.sim.err != nil {
		return
	}
	listed := map[uint32]*ike.ChildInfo{}
	reserved := 0
	h.M.List(func(sa *ike.SAInfo) bool {
		for i := range sa.Children {
			c := &sa.Children[i]
			if listed[c.SPIIn] != nil {
				h.sim.Fail("%s: two CHILD SAs have the inbound SPI %08x", h.Name, c.SPIIn)
			}
			listed[c.SPIIn] = c
			t := h.slot(c.SPIIn)
			if t == nil || t.in == nil {
				h.sim.Fail("%s: the CHILD SA {%d} is %v without an inbound SA %08x", h.Name, c.Unique, c.State, c.SPIIn)
			}
			live := c.State == ike.ChildInstalled || c.State == ike.ChildRekeying
			if live && h.findOut(c.SPIOut, c.SPIIn) < 0 {
				h.sim.Fail("%s: the CHILD SA {%d} is %v without an outbound SA %08x", h.Name, c.Unique, c.State, c.SPIOut)
			}
			if live && sa.State != ike.StateEstablished && sa.State != ike.StateDeleting && sa.State != ike.StateRekeyed {
				h.sim.Fail("%s: the CHILD SA {%d} is %v while its IKE SA is %v", h.Name, c.Unique, c.State, sa.State)
			}
		}
		asking := 0 // requests of ours that can hold an SPI
		for _, t := range sa.Tasks {
			if t == "IKE_AUTH" || t == "CHILD_CREATE" || t == "CHILD_REKEY" {
				asking++
			}
		}
		reserved += min(asking, sa.Window)
		for _, t := range sa.Passive {
			if t != "IKE_REKEY" {
				reserved++
			}
		}
		return true
	})
	waiting := 0
	for i := range h.slots {
		t := &h.slots[i]
		switch {
		case t.in != nil && listed[t.spi] == nil:
			h.sim.Fail("%s: the inbound SA %08x belongs to no CHILD SA", h.Name, t.spi)
		case t.in == nil && t.spi != 0:
			waiting++
		}
	}
	if waiting > reserved {
		h.sim.Fail("%s: %d SPIs are reserved, but %d exchanges at most can wait for one: some have leaked", h.Name, waiting, reserved)
	}
	for _, o := range h.outs {
		if c := listed[o.sa.Inbound]; c == nil || c.SPIOut != o.sa.SPI {
			h.sim.Fail("%s: the outbound SA %08x belongs to no CHILD SA", h.Name, o.sa.SPI)
		}
	}
}

// settled checks a host that has come to rest: nothing reserved, what the events told is
// what is there, and no command is still waiting.
func (h *Host) settled() {
	if !h.up || h.sim.err != nil {
		return
	}
	for i := range h.slots {
		if t := &h.slots[i]; t.spi != 0 && t.in == nil {
			h.sim.Fail("%s: the SPI %08x is reserved, but no exchange is under way: it has leaked", h.Name, t.spi)
		}
	}
	for _, o := range h.outs {
		if o.standby {
			h.sim.Fail("%s: the outbound SA %08x of %s is still on standby", h.Name, o.sa.SPI, o.sa.Child)
		}
	}
	ikes, kids := map[uint32]bool{}, map[uint32]string{}
	h.M.List(func(sa *ike.SAInfo) bool {
		ikes[sa.Unique] = true
		for i := range sa.Children {
			kids[sa.Children[i].Unique] = sa.Children[i].Name
		}
		return true
	})
	if !maps.Equal(ikes, h.books.ikes) && len(ikes)+len(h.books.ikes) > 0 {
		h.sim.misbooked("%s: the events tell of the IKE SAs %v, the table holds %v", h.Name, keys(h.books.ikes), keys(ikes))
	}
	if !maps.Equal(kids, h.books.kids) && len(kids)+len(h.books.kids) > 0 {
		h.sim.misbooked("%s: the events tell of the CHILD SAs %v, the table holds %v", h.Name, keys(h.books.kids), keys(kids))
	}
	for _, tag := range slices.Sorted(maps.Keys(h.commands)) {
		if c := h.commands[tag]; !c.Done && c.epoch == h.epoch {
			h.sim.Fail("%s: the command %d (%s) has not ended, and nothing is under way", h.Name, tag, c.What)
		}
	}
}

func keys[V any](m map[uint32]V) []uint32 { return slices.Sorted(maps.Keys(m)) }

// CheckRest checks that all hosts have come to rest properly.
func (s *Sim) CheckRest() error {
	if s.err == nil && !s.Quiet() {
		s.Fail("the hosts do not come to rest: %s", s.Describe())
	}
	for _, h := range s.hosts {
		h.settled()
	}
	return s.err
}

// CheckPair checks that two hosts at rest hold one IKE SA of the connection with each
// other and just these CHILD SAs, and hold the same.
func (s *Sim) CheckPair(a, b *Host, conn string, children ...string) error {
	if s.CheckRest() != nil {
		return s.err
	}
	var sas [2]*ike.SAInfo
	for i, h := range [2]*Host{a, b} {
		h.M.List(func(sa *ike.SAInfo) bool {
			if sa.Conn != conn {
				return true
			}
			if sas[i] != nil {
				s.Fail("%s has two IKE SAs of %s: %s", h.Name, conn, s.Describe())
			}
			sas[i] = sa
			return true
		})
		if s.err == nil && sas[i] == nil {
			s.Fail("%s has no IKE SA of %s: %s", h.Name, conn, s.Describe())
		}
		if s.err != nil {
			return s.err
		}
	}
	x, y := sas[0], sas[1]
	if x.SPIi != y.SPIi || x.SPIr != y.SPIr || x.Initiator == y.Initiator || x.Suite != y.Suite ||
		x.LocalID != y.RemoteID || x.RemoteID != y.LocalID || x.NATLocal != y.NATPeer || x.NATPeer != y.NATLocal {
		s.Fail("the sides hold different IKE SAs of %s: %+v, %+v", conn, *x, *y)
	}
	slices.Sort(children)
	for i, h := range [2]*Host{a, b} {
		var names []string
		for j := range sas[i].Children {
			names = append(names, sas[i].Children[j].Name)
		}
		if slices.Sort(names); s.Several {
			names = slices.Compact(names)
		}
		if !slices.Equal(names, children) {
			s.Fail("%s has the CHILD SAs %v of %s, want %v: %s", h.Name, names, conn, children, s.Describe())
			return s.err
		}
	}
	for i := range x.Children {
		p := &x.Children[i]
		j := slices.IndexFunc(y.Children, func(c ike.ChildInfo) bool { return c.Name == p.Name && (!s.Several || c.SPIIn == p.SPIOut) })
		if j < 0 {
			s.Fail("only one side holds the CHILD SA %+v", *p)
			return s.err
		}
		q := &y.Children[j]
		if p.SPIIn != q.SPIOut || p.SPIOut != q.SPIIn || p.Suite != q.Suite || p.Encap != q.Encap || p.DH != q.DH ||
			!slices.Equal(p.LocalTS, q.RemoteTS) || !slices.Equal(p.RemoteTS, q.LocalTS) {
			s.Fail("the sides hold different CHILD SAs of %s: %+v, %+v", p.Name, *p, *q)
		}
	}
	return s.err
}

// CheckEmpty checks that a host at rest holds nothing at all: no SA, no SPI, no timer.
func (s *Sim) CheckEmpty(h *Host) error {
	if s.CheckRest() != nil || !h.up {
		return s.err
	}
	h.M.List(func(sa *ike.SAInfo) bool {
		s.Fail("%s still has an IKE SA: %s", h.Name, s.Describe())
		return false
	})
	for i := range h.slots {
		if h.slots[i].spi != 0 {
			s.Fail("%s: the SPI %08x has leaked", h.Name, h.slots[i].spi)
		}
	}
	if len(h.outs) > 0 {
		s.Fail("%s: %d outbound SAs have leaked", h.Name, len(h.outs))
	}
	// Names are looked up from time to time, whatever else goes on.
	names := slices.ContainsFunc(h.check.cfg.Conns, func(c *ike.Conn) bool { return len(c.RemoteNames) > 0 })
	if at, ok := h.M.Deadline(); ok && !names && s.err == nil {
		s.Fail("%s: a timer is left, due in %v", h.Name, at-h.clock().Mono)
	}
	return s.err
}

// CheckTraffic sends a packet each way for each pair of inner addresses and checks that all
// of them arrive, over a network that loses nothing.
func (s *Sim) CheckTraffic(flows ...Flow) error {
	var sent []*packet
	for _, f := range flows {
		for _, way := range [2]Flow{f, f.reverse()} {
			p := way.From.Send(way.Src, way.Dst, way.Port)
			// The one that is there is another worker's: it is asked for, if not for another child just
			// before, and may take a second exchange.
			for tries := 0; p == nil && s.Several && tries < 4 && s.err == nil; tries++ {
				_ = s.Run(s.now + 2e9)
				p = way.From.Send(way.Src, way.Dst, way.Port)
			}
			if p == nil && s.err == nil {
				s.Fail("%s has no SA for %v to %v: %s", way.From.Name, way.Src, way.Dst, s.Describe())
			}
			if s.err != nil {
				return s.err
			}
			if p.child != f.Child {
				s.Fail("%v to %v went through %s, not through %s", way.Src, way.Dst, p.child, f.Child)
			}
			sent = append(sent, p)
		}
	}
	_ = s.Run(s.now + 10e9)
	for _, p := range sent {
		if p.accepted != 1 && s.err == nil {
			s.Fail("packet %d of %s through %s did not arrive", p.number, p.from.Name, p.child)
		}
	}
	return s.err
}

// Describe tells what each host holds.
func (s *Sim) Describe() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d datagrams and %d jobs under way", s.flying, s.working)
	for _, h := range s.hosts {
		fmt.Fprintf(&b, "; %s:", h.Name)
		if !h.up {
			b.WriteString(" off")
			continue
		}
		h.M.List(func(sa *ike.SAInfo) bool {
			fmt.Fprintf(&b, " #%d %s %v %016x_i %016x_r tasks %v", sa.Unique, sa.Conn, sa.State, sa.SPIi, sa.SPIr, sa.Tasks)
			for i := range sa.Children {
				c := &sa.Children[i]
				fmt.Fprintf(&b, " {%d} %s %v %08x_i %08x_o", c.Unique, c.Name, c.State, c.SPIIn, c.SPIOut)
			}
			return true
		})
	}
	return b.String()
}
