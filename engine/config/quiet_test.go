package config

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/engine/control"
	"postern/ike"
)

// warned loads a connection with one more element, and pools, and returns it with the warnings
// about it.
func warned(t *testing.T, m *control.Message) (*ike.Conn, string) {
	t.Helper()
	must := mustLoad(t)
	l := must((&Loaded{}).LoadPool("clients", vm("addrs", "10.9.0.0/24")))
	c, err := emptyFile(t).With(must(l.LoadConn("c", m)))
	if err != nil {
		t.Fatalf("%v: %v", m, err)
	}
	var said []string
	for _, w := range c.Warnings() {
		if s := w.String(); strings.HasPrefix(s, "connections.c") {
			said = append(said, s)
		}
	}
	return c.Conn("c"), strings.Join(said, "\n")
}

// quietConn is a connection with one child, without the peer's address.
func quietConn(child *control.Message, more ...any) *control.Message {
	return vm(append([]any{"local", vm("auth", "psk", "id", "a"), "remote", vm("auth", "psk", "id", "b"), "children", vm("net", child)}, more...)...)
}

// strongSwan loads what starts a child though nobody can be called, and says why it does nothing.
func TestActionsThatNeedAPeerToCallAreTakenBack(t *testing.T) {
	fixed, dynamic := []any{"remote_ts", "10.2.0.0/16"}, []any{"remote_ts", "dynamic"}
	for _, c := range []struct {
		child []any
		conn  []any
		quiet bool
	}{
		{fixed, nil, true},
		{dynamic, nil, true},
		{fixed, []any{"remote_addrs", "%any"}, true},
		{fixed, []any{"remote_addrs", "10.0.0.0/8"}, true},
		{dynamic, []any{"pools", "clients"}, true},
		{dynamic, []any{"remote_addrs", "192.0.2.2", "pools", "clients"}, true},
		{fixed, []any{"remote_addrs", "192.0.2.2", "pools", "clients"}, false},
		{fixed, []any{"remote_addrs", "192.0.2.2"}, false},
		{append([]any{"local_ts", "10.1.0.0/16"}, fixed...), []any{"remote_addrs", "peer.example"}, false},
	} {
		for _, start := range []string{"start", "trap", "trap|start", "Route"} {
			conn, said := warned(t, quietConn(vm(append([]any{"start_action", start}, c.child...)...), c.conn...))
			if got := conn.Children[0].StartAction; (got == ike.StartNone) != c.quiet {
				t.Errorf("%v with start_action %s: it is %v", c.conn, start, got)
			}
			if strings.Contains(said, "children.net.start_action: ") != c.quiet {
				t.Errorf("%v with start_action %s: the warnings are %q", c.conn, start, said)
			}
		}
	}
}

func TestVolumesThatAreTooSmallAreRaised(t *testing.T) {
	conn, said := warned(t, quietConn(vm("rekey_packets", "50", "life_packets", "60", "rekey_bytes", "9000", "remote_ts", "10.2.0.0/16")))
	c := conn.Children[0]
	if c.RekeyPackets != 90 || c.LifePackets != 100 || c.RekeyBytes != 10000 || c.LifeBytes != 11000 {
		t.Errorf("the limits are %d and %d packets, %d and %d octets", c.RekeyPackets, c.LifePackets, c.RekeyBytes, c.LifeBytes)
	}
	for _, k := range []string{"rekey_packets", "life_packets", "rekey_bytes"} {
		if !strings.Contains(said, "children.net."+k+": ") {
			t.Errorf("no warning about %s: %s", k, said)
		}
	}
}

func TestLocalNetworksAreAddressesToAnswerAt(t *testing.T) {
	child := func() *control.Message { return vm("remote_ts", "10.2.0.0/16") }
	conn, said := warned(t, quietConn(child(), "local_addrs", "192.0.2.1, 10.0.0.5/8, 10.0.0.4-10.0.0.7, 192.0.2.3/32"))
	want := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.0.0.4/30")}
	if !slices.Equal(conn.LocalNets, want) || len(conn.LocalAddrs) != 2 || said != "" {
		t.Errorf("the addresses are %v and %v, warnings %q", conn.LocalAddrs, conn.LocalNets, said)
	}
	if conn, _ = warned(t, quietConn(child(), "local_addrs", "%any, 10.0.0.0/8")); len(conn.LocalNets) != 0 {
		t.Errorf("beside any address the networks are %v", conn.LocalNets)
	}
}

func TestLocalPortOfNATTraversal(t *testing.T) {
	for _, more := range [][]any{{"remote_addrs", "192.0.2.2", "remote_port", "4500"}, {"remote_addrs", "%any"}, {}} {
		if _, said := warned(t, quietConn(vm("remote_ts", "10.2.0.0/16"), append(more, "local_port", "4500")...)); said != "" {
			t.Errorf("%v: the warnings are %q", more, said)
		}
	}
}

func TestInactivityOfAClientsChildLeavesTheIKESA(t *testing.T) {
	for start, warns := range map[string]bool{"none": false, "trap": false, "start": true, "trap|start": true} {
		conn, said := warned(t, quietConn(vm("remote_ts", "10.2.0.0/16", "inactivity", "5m", "start_action", start), "remote_addrs", "192.0.2.2"))
		if !conn.Children[0].KeepIKE || strings.Contains(said, "children.net.inactivity: ") != warns {
			t.Errorf("start_action %s: the child is %+v, warnings %q", start, *conn.Children[0], said)
		}
	}
}

// A hard limit stays what it is; new keys come before it.
func TestLimitsThatLeaveNoRoomAreMovedApart(t *testing.T) {
	conn, said := warned(t, quietConn(vm("remote_ts", "10.2.0.0/16", "life_time", "1h", "rand_time", "50m", "life_bytes", "1m", "rekey_bytes", "2m",
		"rekey_packets", "1000", "rand_packets", "2000"), "rekey_time", "1h", "rand_time", "2h"))
	c := conn.Children[0]
	if c.LifeTime != time.Hour || c.RekeyTime >= c.LifeTime || c.RekeyTime < 50*time.Minute || c.RandTime > c.RekeyTime/2 {
		t.Errorf("the child lives for %v, and is rekeyed after %v less %v", c.LifeTime, c.RekeyTime, c.RandTime)
	}
	if c.LifeBytes != 1<<20 || c.RekeyBytes >= c.LifeBytes || c.RandBytes > c.RekeyBytes/2 || c.RandPackets != 500 {
		t.Errorf("its keys live for %d octets, and are replaced after %d less %d; %d packets by chance", c.LifeBytes, c.RekeyBytes, c.RandBytes, c.RandPackets)
	}
	if conn.RandTime != 30*time.Minute {
		t.Errorf("the IKE SA is rekeyed up to %v earlier", conn.RandTime)
	}
	for _, k := range []string{"rand_time", "children.net.life_time", "children.net.life_bytes", "children.net.rand_packets"} {
		if !strings.Contains(said, "connections.c."+k+": ") {
			t.Errorf("no warning about %s: %s", k, said)
		}
	}
}

// Without a hard limit there are new keys all the same.
func TestNoHardLimitKeepsTheRekeying(t *testing.T) {
	conn, _ := warned(t, quietConn(vm("remote_ts", "10.2.0.0/16", "rekey_time", "1h", "life_time", "0", "rekey_bytes", "2m", "life_bytes", "0", "rand_bytes", "3m")))
	if c := conn.Children[0]; c.RekeyTime != time.Hour || c.RekeyBytes != 2<<20 || c.RandTime >= c.RekeyTime || c.RandBytes >= c.RekeyBytes {
		t.Errorf("the child is %+v", *c)
	}
}

// The gateway's name does not matter to a trap whose packets come from virtual addresses.
func TestTrapOfAClientOfANamedGateway(t *testing.T) {
	conn, said := warned(t, quietConn(vm("remote_ts", "10.2.0.0/16", "start_action", "trap"), "remote_addrs", "gw.example", "vips", "0.0.0.0"))
	if conn.Children[0].StartAction != ike.StartTrap || !strings.Contains(said, "no packet of this host can start child net") {
		t.Errorf("the child is %+v, warnings %q", *conn.Children[0], said)
	}
}
