package iketest

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"postern/esp"
	"postern/ike"
)

// options describe a pair of gateways; their zero value is the plainest one.
type options struct {
	ike, esp        string // proposals of both, in strongSwan's notation
	ikeB, espB      string // of b, where they differ
	outer6, inner6  bool
	natA, natB      bool // b's forwards its ports
	encap           bool
	children        int // 1 if 0
	narrow          bool
	dpd             time.Duration
	rekeyIKE        time.Duration
	rekeyChild      time.Duration
	life            time.Duration
	reauth, reauthB time.Duration // of a and of b
	over            time.Duration
	rekeyPackets    uint64
	rekeyBytes      uint64
	start           ike.StartAction // of a
	startB          ike.StartAction
	dpdAction       ike.PeerAction
	closeAction     ike.PeerAction
	keyB            string // b's secret, where it differs
	anyRemote       bool   // b takes peers from anywhere, and so cannot initiate
	tries           int
	retry           time.Duration
	retryTries      int
	window          int
	fragA, fragB    int               // fragment sizes; 0: the default
	modeA, modeB    ike.Fragmentation // of each side
	resumption      bool              // both allow it, and have keys for tickets
	qcd             bool              // both have secrets for quick crash detection
	mobike          bool
	lanesA, lanesB  int  // of the children of each side
	perCPU          bool // on both sides where there are lanes
}

// pair is two gateways between which everything happens.
type pair struct {
	*Sim
	o        options
	a, b     *Host
	cfgA     ike.Config
	cfgB     ike.Config
	flows    []Flow
	children []string
}

const connName = "site"

// withoutAES is the default of a processor without AES instructions.
const withoutAES = "default without AES"

func proposals(proto ike.Protocol, s string) []ike.Proposal {
	if s == withoutAES {
		return ike.DefaultProposals(proto, ike.ChaChaFirst)
	}
	p, err := ike.ParseProposal(proto, s, ike.AESFirst)
	if err != nil {
		panic(err)
	}
	return p
}

func identity(s string) ike.ID {
	id, err := ike.ParseIDString(s)
	if err != nil {
		panic(err)
	}
	return id
}

func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// newPair makes the simulation; the hosts are still switched off.
func newPair(seed uint64, trace bool, o options) *pair {
	o.ike = or(o.ike, "aes128gcm16-prfsha256-x25519")
	o.esp = or(o.esp, "aes128gcm16")
	s := New(seed, trace)
	s.IgnoreEvents = *ignoreEvents
	s.Several = o.lanesA+o.lanesB > 0
	p := &pair{Sim: s, o: o}
	addrA, addrB := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.1")
	if o.outer6 {
		addrA, addrB = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8:ffff::1")
	}
	seenA, seenB := addrA, addrB
	insideA, insideB := addrA, addrB
	if o.natA {
		insideA = netip.MustParseAddr(map[bool]string{false: "192.168.1.2", true: "fd00:1::2"}[o.outer6])
	}
	if o.natB {
		insideB = netip.MustParseAddr(map[bool]string{false: "192.168.2.2", true: "fd00:2::2"}[o.outer6])
	}
	p.a, p.b = s.AddHost("a", insideA), s.AddHost("b", insideB)
	if o.natA {
		p.a.NAT = &NAT{Outside: addrA}
	}
	if o.natB {
		p.b.NAT = &NAT{Outside: addrB, Forward: true}
	}
	conn := func(local, remote string, peer netip.Addr, mine bool) *ike.Conn {
		c := &ike.Conn{
			Name: connName, LocalID: identity(local), RemoteID: identity(remote),
			RemoteAddrs: []netip.Prefix{netip.PrefixFrom(peer, peer.BitLen())},
			Proposals:   proposals(ike.ProtoIKE, o.ike), Encap: o.encap, MOBIKE: o.mobike,
			Resumption: o.resumption, DPDDelay: o.dpd, KeyingTries: o.tries, RekeyTime: o.rekeyIKE, RandTime: o.rekeyIKE / 10,
			ReauthTime: o.reauth, OverTime: o.over, RetryTimeout: o.retry, RetryTries: o.retryTries,
		}
		if !mine && o.ikeB != "" {
			c.Proposals = proposals(ike.ProtoIKE, o.ikeB)
		}
		if c.RandTime == 0 {
			c.RandTime = o.reauth / 10
		}
		c.FragmentSize, c.Fragmentation = o.fragA, o.modeA
		if !mine {
			c.ReauthTime = o.reauthB
			c.FragmentSize, c.Fragmentation = o.fragB, o.modeB
		}
		for i := range max(o.children, 1) {
			l, r := 1, 2
			if !mine {
				l, r = 2, 1
			}
			k := &ike.Child{
				Name:    fmt.Sprintf("net%d", i),
				LocalTS: []ike.TS{p.net(l, i, mine)}, RemoteTS: []ike.TS{p.net(r, i, mine)},
				Proposals: proposals(ike.ProtoESP, o.esp), ReplayWindow: or(o.window, 256),
				RekeyTime: o.rekeyChild, RandTime: o.rekeyChild / 10, LifeTime: o.life,
				RekeyPackets: o.rekeyPackets, RandPackets: o.rekeyPackets / 20,
				RekeyBytes: o.rekeyBytes, RandBytes: o.rekeyBytes / 20,
				StartAction: o.start, DPDAction: o.dpdAction, CloseAction: o.closeAction,
			}
			k.Lanes = o.lanesA
			if !mine {
				k.Lanes = o.lanesB
			}
			k.PerCPU = o.perCPU && k.Lanes > 0
			if !mine {
				k.StartAction = o.startB
				if o.espB != "" {
					k.Proposals = proposals(ike.ProtoESP, o.espB)
				}
			}
			c.Children = append(c.Children, k)
		}
		return c
	}
	ca, cb := conn("a.example", "b.example", seenB, true), conn("b.example", "a.example", seenA, false)
	if o.anyRemote || o.natA {
		cb.RemoteAddrs = nil
	}
	key := []byte("a shared secret for two gateways")
	p.cfgA = ike.Config{Conns: []*ike.Conn{ca}, Secrets: []ike.Secret{{Name: "psk", Key: key}}}
	if o.keyB != "" {
		key = []byte(o.keyB)
	}
	p.cfgB = ike.Config{Conns: []*ike.Conn{cb}, Secrets: []ike.Secret{{Name: "psk", Key: key}}}
	if o.resumption {
		p.a.TicketKeys, p.b.TicketKeys = []ike.TicketKey{{ID: [8]byte{0xa}}}, []ike.TicketKey{{ID: [8]byte{0xb}}}
	}
	if o.qcd {
		p.cfgA.QCDSecret, p.cfgB.QCDSecret = bytes.Repeat([]byte{0xa}, 32), bytes.Repeat([]byte{0xb}, 32)
	}
	for i, k := range ca.Children {
		p.children = append(p.children, k.Name)
		src, dst := p.net(1, i, false).Start, p.net(2, i, false).Start
		p.flows = append(p.flows, Flow{From: p.a, To: p.b, Src: src.Next(), Dst: dst.Next(), Port: uint16(1000 + i), Child: k.Name})
	}
	return p
}

// net returns the selector of side l (1 is a's) of child i. With narrow, a asks for more
// than b allows.
func (p *pair) net(l, i int, wide bool) ike.TS {
	bits, text := 24, fmt.Sprintf("10.%d.%d.0", l, 16*i)
	if p.o.inner6 {
		bits, text = 64, fmt.Sprintf("2001:db8:%d:%d::", l, 16*i)
	}
	if p.o.narrow && wide {
		bits -= 4
	}
	return ike.TS{Selector: esp.SelectorFromPrefix(netip.PrefixFrom(netip.MustParseAddr(text), bits))}
}

func (p *pair) boot() {
	p.b.Boot(p.cfgB)
	p.a.Boot(p.cfgA)
}

// initiate asks a host for all children.
func (p *pair) initiate(h *Host) *Command {
	return h.Command("initiate", ike.Command{Kind: ike.CmdInitiate, Conn: connName})
}

func (p *pair) terminate(h *Host) *Command {
	return h.Command("terminate", ike.Command{Kind: ike.CmdTerminate, Conn: connName})
}

func (p *pair) rekeyIKE(h *Host) *Command {
	return h.Command("rekey the IKE SA", ike.Command{Kind: ike.CmdRekey, Conn: connName})
}

func (p *pair) rekeyChild(h *Host, child string) *Command {
	return h.Command("rekey "+child, ike.Command{Kind: ike.CmdRekey, Conn: connName, Child: child})
}

// settle waits for rest; what was on its way through a replaced SA takes its time.
func (p *pair) settle(limit time.Duration) {
	if p.Err() == nil && !p.RunUntil(limit, p.Quiet) {
		p.Fail("no rest after %v: %s", limit, p.Describe())
	}
}

// upAndRunning waits for rest and checks that everything is as configured and works.
func (p *pair) upAndRunning() error {
	p.settle(10 * time.Minute)
	_ = p.CheckPair(p.a, p.b, connName, p.children...)
	return p.CheckTraffic(p.flows...)
}

// nothingLeft waits for rest and checks that both hosts are as if nothing had been.
func (p *pair) nothingLeft() error {
	p.settle(10 * time.Minute)
	_ = p.Run(p.Now() + 15*time.Minute)
	_ = p.CheckEmpty(p.a)
	return p.CheckEmpty(p.b)
}

// ended checks how a command ended.
func (p *pair) ended(c *Command, want error) {
	switch {
	case p.Err() != nil:
	case !c.Done:
		p.Fail("the command %q has not ended", c.What)
	case want == nil && c.Err != nil:
		p.Fail("the command %q ended with %v", c.What, c.Err)
	}
}

// seeds runs a scenario with many seeds, and once more with a ladder if one fails.
func seeds(t *testing.T, n uint64, o options, scenario func(p *pair)) {
	t.Helper()
	t.Parallel()
	if testing.Short() { // under emulation
		n = min(n, 2)
	}
	for seed := range n {
		p := newPair(seed, false, o)
		scenario(p)
		if p.Err() == nil {
			continue
		}
		q := newPair(seed, true, o)
		scenario(q)
		t.Fatalf("seed %d: %v\n%s", seed, p.Err(), q.Ladder())
	}
}
