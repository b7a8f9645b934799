package vici

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"postern/engine/config"
	"postern/engine/control"
	"postern/esp"
	"postern/ike"
)

// list-conns shows the peer's names where remote_addrs has them.
func TestListConnsShowsNamesInTheirPlace(t *testing.T) {
	m := new(control.Message).Section("c")
	connMessage(m, &ike.Conn{
		RemoteAddrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("10.0.0.0/8")},
		RemoteNames: []ike.PeerName{{Name: "first.example"}, {Name: "gw.example", At: 1}, {Name: "last.example", At: 2}},
	}, nil, new(config.Config).Priority, false)
	got := strings.Join(m.Items(control.KeyRemoteAddrs), " ")
	if want := "first.example 192.0.2.1 gw.example 10.0.0.0/8 last.example"; got != want {
		t.Errorf("remote_addrs is %q, want %q", got, want)
	}
}

// list-sas says what an SA is for, as charon does where it knows such SAs.
func TestListSAsShowsLanes(t *testing.T) {
	for _, c := range []struct {
		lane         uint8
		perCPU       bool
		class        string
		cpus, on, of string
	}{
		{0, false, "", "", "", ""},
		{0, true, "", "", "yes", ""},
		{1, true, "", "0", "", ""},
		{8, true, "", "7", "", ""},
		{2, false, "8-10", "", "", "8-10"},
	} {
		m := new(control.Message)
		v := Child{ChildInfo: ike.ChildInfo{Lane: c.lane, PerCPU: c.perCPU}, Class: c.class}
		v.Message(m, time.Hour, true)
		if cpu, on, of := m.Get("cpu"), m.Get("per-cpu-sas"), m.Get("dscp-class"); cpu != c.cpus || on != c.on || of != c.of {
			t.Errorf("lane %d, CPUs %v: cpu %q, per-cpu-sas %q, dscp-class %q; want %+v", c.lane, c.perCPU, cpu, on, of, c)
		}
	}
}

// A dynamic selector has no address, but it may have a protocol and ports.
func TestDynamicSelectorsKeepTheirPorts(t *testing.T) {
	got := strings.Join(tsTexts([]ike.TS{
		{Dynamic: true, Selector: esp.Selector{EndPort: 65535}}, {Dynamic: true, Selector: esp.Selector{Proto: 47, EndPort: 65535}},
		{Dynamic: true, Selector: esp.Selector{Proto: esp.ProtoUDP, StartPort: 1000, EndPort: 2000}},
	}), " ")
	if want := "dynamic dynamic[gre] dynamic[udp/1000-2000]"; got != want {
		t.Errorf("they are written as %q, want %q", got, want)
	}
}

func TestUptimeIsInItsLargestUnit(t *testing.T) {
	for d, want := range map[time.Duration]string{90 * time.Second: "90 seconds", 2 * time.Minute: "2 minutes", 47 * time.Hour: "47 hours", 49 * time.Hour: "2 days"} {
		if got := uptime(d); got != want {
			t.Errorf("uptime(%v) is %q, want %q", d, got, want)
		}
	}
}
