package iketest

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"postern/esp"
	"postern/ike"
)

// Three clients and a gateway whose pool has no address to spare, on a network that loses,
// repeats and reorders: rekeying and authenticating anew by whom ever, crashes of both sides, and
// clients that go and come. Nobody has an address that another one has, nor one that the gateway
// does not know of; everybody has the same one in the end as in the beginning; and when all have
// gone, all of the pool is free.
func TestVirtualAddressesInTrouble(t *testing.T) {
	n := 60
	if testing.Short() {
		n = 4
	}
	var total Stats
	for seed := range uint64(n) {
		if s := trouble(t, seed, false); s != nil {
			total.add(s.stats)
			continue
		}
		trouble(t, seed, true)
		return
	}
	if total.Lost*100 < total.Sent*5 || total.Reauths == 0 || total.Installed < n*6 {
		t.Errorf("the network was too kind: %+v", total)
	}
}

// trouble is one life; nil says that it has failed, and with trace why.
func trouble(t *testing.T, seed uint64, trace bool) *Sim {
	s := New(seed, trace)
	pick := s.Rand.IntN
	gw := s.AddHost("gw", netip.MustParseAddr("192.0.2.1"))
	four := ike.AddrRange{First: netip.MustParseAddr("10.9.0.1"), Last: netip.MustParseAddr("10.9.0.3")}
	six := ike.AddrRange{First: netip.MustParseAddr("fd00:9::1"), Last: netip.MustParseAddr("fd00:9::4")}
	dynamic := ike.TS{Dynamic: true, Selector: esp.Selector{EndPort: 65535}}
	net := []ike.TS{{Selector: esp.SelectorFromPrefix(netip.MustParsePrefix("10.2.0.0/24"))}, {Selector: esp.SelectorFromPrefix(netip.MustParsePrefix("fd00:2::/64"))}}
	conn := func() *ike.Conn {
		return &ike.Conn{Name: connName, Proposals: proposals(ike.ProtoIKE, "aes128gcm16-prfsha256-x25519"), MOBIKE: seed%2 == 0,
			DPDDelay: 20 * time.Second, RetryTimeout: time.Second, RetryTries: 6,
			Children: []*ike.Child{{Name: "net", Proposals: proposals(ike.ProtoESP, "aes128gcm16"), ReplayWindow: 128}}}
	}
	secrets := []ike.Secret{{Name: "psk", Key: []byte("a shared secret for the road")}}
	c := conn()
	c.LocalID, c.Pools, c.Unique = identity("gw.example"), []string{"four", "six"}, []ike.UniquePolicy{ike.UniqueNo, ike.UniqueReplace}[pick(2)]
	c.Children[0].LocalTS, c.Children[0].RemoteTS = net, []ike.TS{dynamic}
	cfg := ike.Config{Conns: []*ike.Conn{c}, Secrets: secrets, QCDSecret: make([]byte, 32),
		Pools: []ike.Pool{{Name: "four", Ranges: []ike.AddrRange{four}}, {Name: "six", Ranges: []ike.AddrRange{six}}}}
	gw.Boot(cfg)
	var clients []*Host
	var cfgs []ike.Config
	links := Link{Delay: 20 * time.Millisecond, Jitter: 30 * time.Millisecond, Loss: 0.15, Dup: 0.1}
	for i := range 3 {
		h := s.AddHost(fmt.Sprint("c", i), netip.AddrFrom4([4]byte{198, 51, 100, byte(i + 1)}))
		c := conn()
		c.LocalID, c.RemoteID = identity(fmt.Sprintf("c%d.example", i)), identity("gw.example")
		c.RemoteAddrs, c.VIPs = []netip.Prefix{netip.PrefixFrom(gw.Addrs[0], 32)}, []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
		if pick(2) == 0 {
			c.RekeyTime, c.RandTime = 50*time.Second, 10*time.Second
		}
		if pick(2) == 0 {
			c.ReauthTime, c.RandTime = 70*time.Second, 10*time.Second
		}
		k := c.Children[0]
		k.LocalTS, k.RemoteTS, k.RekeyTime, k.RandTime = []ike.TS{dynamic}, net, 40*time.Second, 5*time.Second
		k.StartAction, k.DPDAction, k.CloseAction = ike.StartStart, ike.ActionRestart, ike.ActionRestart
		clients, cfgs = append(clients, h), append(cfgs, ike.Config{Conns: []*ike.Conn{c}, Secrets: secrets, QCDSecret: make([]byte, 32)})
		s.Pair(h, gw, links)
		h.Boot(cfgs[i])
	}
	everybody := func() bool {
		return s.Quiet() && !slices.ContainsFunc(clients, func(h *Host) bool { return h.Assigned[connName] == nil || len(h.outs) == 0 })
	}
	if !s.RunUntil(10*time.Minute, everybody) {
		s.Fail("not every client has its addresses: %s", s.Describe())
	}
	var first [3][]netip.Addr
	for i, h := range clients {
		if a := h.Assigned[connName]; a != nil {
			first[i] = a.Addrs
		}
	}
	for range 6 {
		_ = s.Run(s.Now() + s.between(40*time.Second))
		h := clients[pick(3)]
		switch pick(7) {
		case 0:
			gw.Crash()
			_ = s.Run(s.Now() + s.between(20*time.Second))
			cfg.Leases = slices.Clone(gw.Kept)
			gw.Boot(cfg)
		case 1:
			h.Crash()
			_ = s.Run(s.Now() + s.between(3*time.Minute))
			h.Boot(cfgs[slices.Index(clients, h)])
		case 2:
			h.Command("terminate", ike.Command{Kind: ike.CmdTerminate, Conn: connName})
			_ = s.Run(s.Now() + s.between(time.Minute))
			h.Command("initiate", ike.Command{Kind: ike.CmdInitiate, Conn: connName})
		case 3:
			h.Command("reauth", ike.Command{Kind: ike.CmdReauth, Conn: connName})
		case 4:
			h.Command("rekey", ike.Command{Kind: ike.CmdRekey, Conn: connName})
		case 5:
			gw.Command("rekey", ike.Command{Kind: ike.CmdRekey, Conn: connName})
			h.Command("rekey", ike.Command{Kind: ike.CmdRekey, Conn: connName})
		case 6:
			gw.Command("rekey the child", ike.Command{Kind: ike.CmdRekey, Conn: connName, Child: "net"})
		}
	}
	for _, h := range clients {
		s.Pair(h, gw, Link{Delay: 20 * time.Millisecond})
	}
	_ = s.Run(s.Now() + 5*time.Minute)
	if s.Err() == nil && !s.RunUntil(30*time.Minute, everybody) {
		s.Fail("not every client has its addresses after the network has healed: %s", s.Describe())
	}
	for i, h := range clients {
		if a := h.Assigned[connName]; s.Err() == nil && !slices.Equal(a.Addrs, first[i]) {
			s.Fail("%s has %v now and had %v", h.Name, a.Addrs, first[i])
		}
		for j, dst := range []string{"10.2.0.7", "fd00:2::7"} {
			if s.Err() == nil {
				_ = s.CheckTraffic(Flow{From: h, To: gw, Src: first[i][j], Dst: netip.MustParseAddr(dst), Port: 1000, Child: "net"})
			}
		}
	}
	for _, h := range clients {
		h.Command("terminate", ike.Command{Kind: ike.CmdTerminate, Conn: connName})
	}
	_ = s.Run(s.Now() + 15*time.Minute)
	for _, h := range append(clients, gw) {
		_ = s.CheckEmpty(h)
		if len(h.Assigned) > 0 {
			s.Fail("%s still has %v", h.Name, h.Assigned)
		}
	}
	if s.Err() == nil {
		gw.M.Pools(func(p ike.PoolInfo) {
			if p.Online != 0 || p.Offline != 3 {
				s.Fail("pool %s has %d addresses in use and remembers %d, want 0 and 3", p.Pool.Name, p.Online, p.Offline)
			}
		})
		return s
	}
	if trace {
		t.Errorf("seed %d: %v\n%s", seed, s.Err(), s.Ladder())
	}
	return nil
}
