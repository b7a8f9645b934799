package config

import (
	"net/netip"
	"testing"
	"time"

	"postern/ike"
	"postern/ike/iketest"
)

// TestSamplesMeet lets the two ends of a sample come together in a simulated network, and sends a
// packet each way through the tunnel.
func TestSamplesMeet(t *testing.T) {
	all := samples(t)
	for _, p := range []struct {
		calls, called string
		child         string // of who calls
		from, to      string // inner addresses; from "" is the assigned one
		assigned      string // the networks of the pools
		auth          ike.AuthKind
	}{
		{calls: "road-warrior-cert.toml", called: "road-warrior-cert-gateway.toml", child: "net", to: "10.0.0.80", assigned: "10.9.0.0/24", auth: ike.AuthKindPubkey},
		{calls: "road-warrior-cert.toml", called: "road-warrior-cert-gateway.toml", child: "net", to: "2001:db8::80", assigned: "2001:db8:9::/64", auth: ike.AuthKindPubkey},
		{calls: "road-warrior.toml", called: "road-warrior-gateway.toml", child: "net", to: "10.1.0.80", assigned: "10.9.0.17/32"},
		{calls: "spoke.toml", called: "hub.toml", child: "star", from: "10.1.0.5", to: "10.2.0.5"},
	} {
		t.Run(p.calls, func(t *testing.T) {
			a, b := loadSample(t, p.calls, all[p.calls]), loadSample(t, p.called, all[p.called])
			ca, cb := a.IKE.Conns[0], b.IKE.Conns[0]
			here, there := netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("192.0.2.1")
			if len(ca.LocalAddrs) > 0 {
				here = ca.LocalAddrs[0]
			}
			s := iketest.New(1, true)
			if len(ca.RemoteNames) > 0 {
				s.Names = map[string][]netip.Addr{ca.RemoteNames[0].Name: {there}}
			} else {
				there = ca.RemoteAddrs[0].Addr()
			}
			client, gateway := s.AddHost("client", here), s.AddHost("gateway", there)
			gateway.Boot(b.IKE)
			client.Boot(a.IKE)
			client.Command("initiate", ike.Command{Kind: ike.CmdInitiate, Conn: ca.Name, Child: p.child})
			var sa *ike.SAInfo
			if !s.RunUntil(time.Minute, func() bool {
				client.M.List(func(i *ike.SAInfo) bool { sa = i; return true })
				return sa != nil && len(sa.Children) > 0 && s.Quiet()
			}) {
				t.Fatalf("the two do not come together: %v\n%s", s.Err(), s.Ladder())
			}
			if sa.RemoteID != cb.LocalID {
				t.Errorf("the gateway is %v, not %v", sa.RemoteID, cb.LocalID)
			}
			for _, proof := range append(sa.LocalAuth, sa.RemoteAuth...) {
				if proof.Kind != p.auth {
					t.Errorf("somebody proved who he is by %v %v, not by %v", proof.Kind, proof.Cert, p.auth)
				}
			}
			to := netip.MustParseAddr(p.to)
			var from netip.Addr
			if p.from != "" {
				from = netip.MustParseAddr(p.from)
			} else if given := client.Assigned[ca.Name]; given == nil {
				t.Fatalf("the client is given no address\n%s", s.Ladder())
			} else {
				pool := netip.MustParsePrefix(p.assigned)
				for _, x := range given.Addrs {
					if pool.Contains(x) {
						from = x
					}
				}
				if !from.IsValid() || len(given.DNS) == 0 || len(given.Subnets) == 0 {
					t.Fatalf("the client is given %+v, want an address of %v, a name server and what is behind the gateway", *given, pool)
				}
			}
			if err := s.CheckTraffic(iketest.Flow{From: client, To: gateway, Src: from, Dst: to, Port: 443, Child: p.child}); err != nil {
				t.Errorf("%v\n%s", err, s.Ladder())
			}
		})
	}
}
