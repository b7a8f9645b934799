package iketest

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"postern/esp"
	"postern/ike"
	"postern/ike/pki"
)

// Host is one machine with its surroundings: sockets, SAD, clock and randomness.
type Host struct {
	Name     string
	Addrs    []netip.Addr
	NAT      *NAT          // in front of it, or nil
	Down     bool          // no route leads anywhere
	WorkTime time.Duration // a job takes a random part of it
	TimerLag time.Duration // a deadline is met late by a random part of it
	Limits   ike.Limits
	Slots    int // of the inbound SAD
	// Saw, if it is set, learns of the machine's events. It must not call into the machine.
	Saw func(*ike.Event)
	// TicketKeys survive a crash, as do Boot's arguments.
	TicketKeys []ike.TicketKey

	M      *ike.Machine // of this life
	sim    *Sim
	random *rand.Rand
	epoch  int // how often it has been started or has crashed
	up     bool
	booted time.Duration // when, on the simulation's clock
	offset time.Duration // of its monotonic clock

	slots   []slot
	outs    []*outSA // the SAD's other half; the SA to be used first stands first
	everSPI map[uint32]bool
	lately  map[netip.Addr]time.Duration // when addresses went that were the host's

	timerAt  time.Duration // when the next timer event is due; 0: none
	timerGen int
	spins    int // timeouts in a row without time passing
	newest   uint64
	trace    string // the machine's words about the message that it sends next

	acquired map[string]time.Duration // when a packet last asked for a child
	grown    time.Duration            // when one last asked for a lane

	tags     uint64
	commands map[uint64]*Command
	books    books
	// Assigned is what gateways have given the host, by connection; Kept are the leases that
	// it has given out itself and that survive a crash.
	Assigned map[string]*ike.Assigned
	Kept     []ike.Lease

	check checker
}

// slot is a place of the inbound SAD.
type slot struct {
	spi    uint32 // 0: free
	freed  bool   // given back, but its SA is still to be taken out
	sa     *ike.ChildSA
	in     *esp.Inbound
	lastIn time.Duration
}

// outSA is an outbound SA.
type outSA struct {
	sa      *ike.ChildSA
	out     *esp.Outbound
	octets  uint64 // sealed
	standby bool
	last    time.Duration // when a packet left
}

// Command is what became of a command.
type Command struct {
	What  string
	Done  bool
	Err   error
	epoch int
}

// AddHost makes a host, switched off.
func (s *Sim) AddHost(name string, addrs ...netip.Addr) *Host {
	h := &Host{
		Name: name, Addrs: addrs, sim: s,
		Limits:   ike.Limits{IKESAs: 16, HalfOpen: 8, Cookies: 100, ChildSAs: 32},
		Slots:    64,
		random:   rand.New(rand.NewPCG(s.Seed, uint64(len(s.hosts))+1)),
		everSPI:  map[uint32]bool{},
		commands: map[uint64]*Command{},
	}
	s.hosts = append(s.hosts, h)
	return h
}

// Boot starts the host with a configuration. What it knew before is gone.
func (h *Host) Boot(cfg ike.Config) {
	h.Crash()
	h.up = true
	h.booted = h.sim.now
	h.offset = time.Duration(h.random.Int64N(int64(24 * time.Hour)))
	h.slots = make([]slot, h.Slots)
	h.M = ike.New(h, h.Limits)
	h.M.SetTicketKeys(h.TicketKeys)
	h.M.Trace = func() bool { return h.sim.ladder != nil }
	h.note("starts")
	h.Configure(cfg)
}

// Configure hands a configuration to the running machine.
func (h *Host) Configure(cfg ike.Config) {
	if !h.up {
		return
	}
	h.check.configured(cfg)
	h.step(func(now ike.Time) {
		if err := h.M.Configure(now, cfg); err != nil {
			h.sim.Fail("%s refuses its configuration: %v", h.Name, err)
		}
	})
}

// Crash takes the host away without a word.
func (h *Host) Crash() {
	if h.up {
		h.note("is gone")
	}
	h.epoch++
	h.up = false
	h.M, h.slots, h.outs = nil, nil, nil
	h.timerAt, h.spins = 0, 0
	h.books = books{}
	h.Assigned = nil
	h.acquired = nil
	h.check.former = nil
}

// clock returns the host's time.
func (h *Host) clock() ike.Time {
	return ike.Time{Mono: h.sim.now - h.booted + h.offset, Wall: time.Unix(1_800_000_000, 0).Add(h.sim.now)}
}

// Command hands a command to the machine; the result tells later how it ended.
func (h *Host) Command(what string, c ike.Command) *Command {
	h.tags++
	c.Tag = h.tags
	r := &Command{What: what, epoch: h.epoch}
	h.commands[c.Tag] = r
	h.note("command %d: %s", c.Tag, what)
	if !h.up {
		r.Done = true
		return r
	}
	h.step(func(now ike.Time) { h.M.Command(now, c) })
	return r
}

// step makes one call into the machine and does what it asks for.
func (h *Host) step(call func(ike.Time)) {
	if h.sim.err != nil || !h.up {
		return
	}
	epoch := h.epoch
	call(h.clock())
	var jobs []*ike.Work
	responded := false
	for {
		o, ok := h.M.Next()
		if !ok {
			break
		}
		switch o.Kind {
		case ike.OutSend:
			responded = responded || announces(o.Data)
			h.send(o.Path, o.Data)
		case ike.OutAddSA:
			if o.Add.Dir == esp.In && responded {
				h.sim.Fail("%s adds the inbound SA %08x after the response that announces it", h.Name, o.Add.SPI)
			}
			h.addSA(o.Add)
		case ike.OutDelSA:
			h.delSA(o.SPI, o.Inbound, o.Dir)
		case ike.OutUseSA:
			h.useSA(o.SPI, o.Inbound)
		case ike.OutMoveSA:
			h.moveSA(o.SPI, o.Inbound, o.Path, o.Encap)
		case ike.OutWork:
			jobs = append(jobs, o.Work)
		case ike.OutEvent:
			h.event(&o.Event)
		case ike.OutResolve:
			h.lookup(o.Name)
		case ike.OutFetch:
			h.fetch(o.FetchID, o.Fetches)
		case ike.OutKeep:
		case ike.OutAssign, ike.OutUnassign, ike.OutLeases:
			h.remote(&o)
		default:
			h.sim.Fail("%s: output of the unknown kind %d", h.Name, o.Kind)
		}
	}
	for i := range h.slots {
		if h.slots[i].freed {
			h.sim.Fail("%s: the SPI %08x was given back, but its SA was not taken out", h.Name, h.slots[i].spi)
		}
	}
	for _, w := range jobs {
		h.sim.work(h, w)
	}
	if h.epoch == epoch {
		h.invariants()
		h.arm()
	}
}

// announces tells whether a datagram is a response that can tell of a new inbound SA.
func announces(b []byte) bool {
	m, err := ike.ParseHeader(b)
	return err == nil && m.Flags&ike.FlagResponse != 0 && (m.Exchange == ike.ExchangeAuth || m.Exchange == ike.ExchangeCreateChild || m.Exchange == ike.ExchangeFollowupKE)
}

// arm sets the timer event for the machine's deadline.
func (h *Host) arm() {
	at, ok := h.M.Deadline()
	if !ok {
		h.timerAt = 0
		h.timerGen++
		return
	}
	due := max(at-h.offset+h.booted, h.sim.now)
	if h.timerAt == due && due > h.sim.now {
		return
	}
	h.timerAt = due
	h.timerGen++
	gen := h.timerGen
	h.sim.After(due-h.sim.now+h.sim.between(h.TimerLag), func() {
		if h.timerGen != gen || !h.up {
			return
		}
		h.timerAt = 0
		now := h.clock()
		h.step(func(t ike.Time) { h.M.Timeout(t) })
		if h.sim.err != nil || !h.up {
			return
		}
		if at, ok := h.M.Deadline(); ok && at <= now.Mono {
			if h.spins++; h.spins > 3 {
				h.sim.Fail("%s: Timeout leaves a deadline behind that has passed (%v, now %v): its loop would spin", h.Name, at, now.Mono)
			}
		} else {
			h.spins = 0
		}
	})
}

// send puts what the machine wants to send on the network.
func (h *Host) send(p ike.Path, b []byte) {
	if h.sim.ladder != nil && h.trace != "" {
		h.sim.ladder.remember(b, h.trace)
		h.trace = ""
	}
	if h.Down || h.hadLately(p.Local.Addr()) {
		return // as a kernel refuses it
	}
	if !slices.Contains(h.Addrs, p.Local.Addr()) {
		h.sim.Fail("%s sends from %v, which is none of its addresses", h.Name, p.Local)
		return
	}
	if p.NATT != (p.Local.Port() == portNATT) || !p.NATT && p.Local.Port() != portIKE {
		h.sim.Fail("%s sends from %v with NATT %v", h.Name, p.Local, p.NATT)
		return
	}
	if p.Local.Addr().Is4() != p.Remote.Addr().Is4() || p.Remote.Port() == 0 {
		h.sim.Fail("%s sends from %v to %v", h.Name, p.Local, p.Remote)
		return
	}
	h.sim.transmit(h, datagram{kind: ikes, src: p.Local, dst: p.Remote, data: b})
}

// receive takes a datagram from the network.
func (h *Host) receive(d *datagram) {
	if !h.up {
		return
	}
	if d.kind == esps {
		h.open(d)
		return
	}
	p := ike.Path{Local: d.dst, Remote: d.src, NATT: d.dst.Port() == portNATT}
	h.step(func(now ike.Time) { h.M.Datagram(now, p, d.data) })
}

// lookup answers what the machine asks of the DNS after some time: what the simulation's
// Names have then, or an error.
func (h *Host) lookup(name string) {
	epoch := h.epoch
	h.sim.After(h.sim.between(50*time.Millisecond), func() {
		if h.epoch != epoch || !h.up {
			return
		}
		addrs, err := h.sim.Names[name], error(nil)
		if len(addrs) == 0 {
			err = errNoDNS
		}
		h.step(func(now ike.Time) { h.M.Resolved(now, name, addrs, 0, err) })
	})
}

// fetch answers what the machine wants from the network after some time: nothing is to be had.
func (h *Host) fetch(id uint64, list []pki.Fetch) {
	epoch := h.epoch
	h.sim.After(h.sim.between(2*time.Second), func() {
		if h.epoch != epoch || !h.up {
			return
		}
		got := make([]pki.Fetched, len(list))
		for i := range list {
			got[i] = pki.Fetched{Fetch: list[i], Err: ike.ErrFetch}
		}
		h.step(func(now ike.Time) { h.M.Fetched(now, id, got) })
	})
}

var errNoDNS = errors.New("the simulated DNS does not answer")

// quiet tells whether the host has nothing going on.
func (h *Host) quiet() bool {
	if !h.up {
		return true
	}
	// An outbound SA on standby is used when the peer is known to have it, or after a time.
	quiet := !slices.ContainsFunc(h.outs, func(o *outSA) bool { return o.standby })
	h.M.List(func(sa *ike.SAInfo) bool {
		if sa.State != ike.StateEstablished || len(sa.Tasks)+len(sa.Passive) > 0 {
			quiet = false
		}
		for i := range sa.Children {
			if sa.Children[i].State != ike.ChildInstalled {
				quiet = false
			}
		}
		return quiet
	})
	return quiet
}

// Random is part of ike.Env.
func (h *Host) Random(b []byte) {
	for i := 0; i < len(b); i += 8 {
		var w [8]byte
		binary.LittleEndian.PutUint64(w[:], h.random.Uint64())
		copy(b[i:], w[:])
	}
}

// AllocSPI is part of ike.Env: the slot stands in the low bits, as in the real SAD. An SPI
// is never given twice, so that a packet of a former SA is always known as such.
func (h *Host) AllocSPI(uint8) (uint32, bool) {
	for i := range h.slots {
		if h.slots[i].spi != 0 {
			continue
		}
		for {
			spi := h.random.Uint32()&^0xff | uint32(i)
			if spi >= 256 && !h.everSPI[spi] {
				h.everSPI[spi] = true
				h.slots[i] = slot{spi: spi}
				return spi, true
			}
		}
	}
	return 0, false
}

// FreeSPI is part of ike.Env.
func (h *Host) FreeSPI(spi uint32) {
	t := h.slot(spi)
	if t == nil || t.freed {
		h.sim.Fail("%s: the SPI %08x was given back, but is not given out", h.Name, spi)
		return
	}
	if t.in != nil {
		t.freed = true // the output that takes it out must follow at once
		return
	}
	*t = slot{}
}

// Usage is part of ike.Env.
func (h *Host) Usage(spi uint32) (in, out esp.Usage, lastIn, lastOut time.Duration) {
	t := h.slot(spi)
	if t == nil || t.in == nil {
		return in, out, 0, 0
	}
	for _, o := range h.outs {
		if o.sa.Inbound == spi {
			out, lastOut = esp.Usage{Packets: o.out.Seq(), Bytes: o.octets}, o.last
		}
	}
	return t.in.Usage(), out, t.lastIn, lastOut
}

// Source is part of ike.Env.
func (h *Host) Source(remote netip.Addr) (netip.Addr, bool) {
	for _, a := range h.Addrs {
		if a.Is4() == remote.Is4() && !h.Down {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// Addresses is part of ike.Env.
func (h *Host) Addresses() ([]netip.Addr, bool) { return h.Addrs, true }

// SetAddrs changes the host's addresses, the one that routes prefer first. The machine is
// told a moment later, as by a real system.
func (h *Host) SetAddrs(addrs ...netip.Addr) {
	if h.lately == nil {
		h.lately = map[netip.Addr]time.Duration{}
	}
	for _, a := range h.Addrs {
		h.lately[a] = h.sim.now
	}
	h.Addrs = addrs
	h.note("has the addresses %v", addrs)
	h.tellAddresses()
}

// SetDown takes all routes of the host away, or brings them back.
func (h *Host) SetDown(down bool) {
	h.Down = down
	h.note("has routes: %v", !down)
	h.tellAddresses()
}

// noticeTime is how long a host takes to notice a change of its addresses.
const noticeTime = 300 * time.Millisecond

func (h *Host) tellAddresses() {
	h.sim.After(h.sim.between(noticeTime), func() {
		if h.up {
			h.step(func(now ike.Time) { h.M.Command(now, ike.Command{Kind: ike.CmdAddresses}) })
		}
	})
}

// hadLately tells whether an address was the host's until a moment ago: the machine may not
// know yet that it has gone, or a job may be out whose result is to leave from there.
func (h *Host) hadLately(a netip.Addr) bool { return h.hadWithin(a, noticeTime+2*time.Second) }

// hadWithin tells whether an address was the host's no longer ago than d.
func (h *Host) hadWithin(a netip.Addr, d time.Duration) bool {
	at, had := h.lately[a]
	return had && !slices.Contains(h.Addrs, a) && h.sim.now-at < d
}

// slot returns the place of an SPI that is given out, or nil.
func (h *Host) slot(spi uint32) *slot {
	if i := int(spi & 0xff); i < len(h.slots) && spi != 0 && h.slots[i].spi == spi {
		return &h.slots[i]
	}
	return nil
}
