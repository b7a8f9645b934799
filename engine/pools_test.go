package engine

import (
	"fmt"
	"io/fs"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/board"
	"postern/ike"
)

// lockedState is a state directory that may be written beside the loop.
type lockedState struct {
	mu     sync.Mutex
	kept   map[string][]byte
	stores map[string]int
}

func (s *lockedState) Load(name string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b, ok := s.kept[name]; ok {
		return b, nil
	}
	return nil, fmt.Errorf("load %s: %w", name, fs.ErrNotExist)
}

func (s *lockedState) Store(name string, b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kept == nil {
		s.kept, s.stores = map[string][]byte{}, map[string]int{}
	}
	s.kept[name] = append([]byte(nil), b...)
	s.stores[name]++
	return nil
}

func (s *lockedState) Close() error { return nil }

func (s *lockedState) leases() (list []ike.Lease, stores int) {
	b, _ := s.Load(stateLeases)
	s.mu.Lock()
	defer s.mu.Unlock()
	return decodeLeases(b), s.stores[stateLeases]
}

const pooled = `
[pools.p4]
addrs = ["10.9.0.0/24"]
dns = ["10.2.0.53"]
[pools.p6]
addrs = ["fd00:9::/64"]
leases = ["a.example=fd00:9::77"]
[connections.road]
pools = ["p4", "p6"]
[connections.road.local]
id = "gw.example"
[connections.road.children.net]
local_ts = ["10.2.0.0/24", "fd00:2::/64"]
[secrets.x]
secret = "correct horse battery staple 42"
`

const asking = `
[connections.gw]
remote_addrs = ["192.0.2.2"]
vips = ["0.0.0.0", "::"]
[connections.gw.local]
id = %q
[connections.gw.remote]
id = "gw.example"
[connections.gw.children.net]
remote_ts = ["10.2.0.0/24", "fd00:2::/64"]
start_action = "start"
[secrets.x]
secret = "correct horse battery staple 42"
`

// becomes polls until f returns want.
func becomes(t *testing.T, what, want string, f func() string) {
	t.Helper()
	got := ""
	for range 1000 {
		if got = f(); got == want {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("%s: %s, want %s", what, got, want)
}

// A gateway and its client: the addresses come from the pools, control clients see them, the SPD
// has them, and they are the client's again after a restart of the gateway that nobody expected.
func TestPoolsGiveAddressesOverARestart(t *testing.T) {
	wire, disk := &fakeWire{}, &lockedState{}
	gateway := func(h *fakeHost) *running {
		o := h.os()
		o.OpenState = func(string) (State, error) { return disk, nil }
		return startEngineOn(t, h, o, parse(t, pooled), board.Tiny)
	}
	client := func(id, addr string) *running {
		return startEngineOn(t, wire.host(addr), wire.host(addr).os(), parse(t, fmt.Sprintf(asking, id)), board.Tiny)
	}
	gw := gateway(wire.host("192.0.2.2"))
	a := client("a.example", "192.0.2.1")
	becomes(t, "pool p4", `p4{base="10.9.0.1" size="254" online="1" offline="0" leases{0{address="10.9.0.1" identity="a.example" status="online"}} dns=["10.2.0.53"]}`, func() string {
		resp, _ := gw.command("get-pools", "name", "p4", "leases", "yes", "postern", "yes")
		return resp
	})
	resp, _ := gw.command("get-pools")
	if !strings.Contains(resp, "p6") || strings.Contains(resp, "identity") {
		t.Errorf("get-pools without a wish for leases: %s", resp)
	}
	_, events := gw.command("list-sas")
	if s := strings.Join(events, " "); !strings.Contains(s, "remote-vips") || !strings.Contains(s, "fd00:9::77") {
		t.Errorf("list-sas of the gateway: %s", s)
	}
	// The client has its addresses a moment after the gateway has given them.
	becomes(t, "list-sas of the client has its addresses", "true", func() string {
		_, events := a.command("list-sas")
		s := strings.Join(events, " ")
		return fmt.Sprint(strings.Contains(s, "local-vips") && strings.Contains(s, "10.9.0.1"))
	})
	becomes(t, "kept leases", "1", func() string { list, _ := disk.leases(); return fmt.Sprint(len(list) / 2) })

	// The gateway is gone without a word: what is kept now is all that there will be.
	copyOf := &lockedState{kept: map[string][]byte{}, stores: map[string]int{}}
	copyOf.kept[stateLeases], _ = disk.Load(stateLeases)
	a.end()
	gw.end()
	disk = copyOf
	gw = gateway(wire.host("192.0.2.2"))
	client("b.example", "192.0.2.3")
	becomes(t, "b's address", "10.9.0.2", func() string { return given(gw, "b.example") })
	client("a.example", "192.0.2.1")
	becomes(t, "a's address", "10.9.0.1", func() string { return given(gw, "a.example") })
	gw.end()
	list, _ := disk.leases()
	want := map[string]string{"10.9.0.1": "a.example", "10.9.0.2": "b.example", "fd00:9::1": "b.example"}
	got := map[string]string{}
	for _, l := range list {
		got[l.Addr.String()] = l.ID.String()
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("at its end the gateway has kept %v, want %v (static ones need not be)", got, want)
	}
}

// given returns the IPv4 address that the gateway has given to an identity.
func given(gw *running, id string) (a string) {
	_ = gw.loop.do(func() {
		gw.loop.m.List(func(sa *ike.SAInfo) bool {
			if sa.RemoteID.String() == id && len(sa.RemoteVIPs) > 0 {
				a = sa.RemoteVIPs[0].String()
			}
			return true
		})
	})
	return a
}

func TestLeasesAreKeptInBounds(t *testing.T) {
	lease := func(i int, owner string) ike.Lease {
		return ike.Lease{Pool: "p", ID: ike.ID{Type: ike.IDFQDN, Data: owner}, Addr: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), Online: true}
	}
	var all []ike.Lease
	for i := range 3000 {
		all = append(all, lease(i, fmt.Sprintf("%040d.example", i)))
	}
	all = append(all, lease(3000, strings.Repeat("x", maxLeaseOwner+1)), lease(3001, "last.example"))
	e := &Engine{loop: &ikeLoop{m: &leasingMachine{list: all}}}
	b := e.encodeLeases()
	got := decodeLeases(b)
	if len(b) > maxLeaseFile || len(b) < maxLeaseFile*9/10 {
		t.Errorf("%d octets are kept, want nearly all of %d", len(b), maxLeaseFile)
	}
	if n := len(got); n == 0 || got[n-1].ID.Data != "last.example" || got[n-2].ID.Data != all[2999].ID.Data || got[0].ID.Data == all[0].ID.Data {
		t.Errorf("%d leases are kept, and not the youngest ones", n)
	}
}

// leasingMachine has leases and nothing else.
type leasingMachine struct {
	scriptedMachine
	list []ike.Lease
}

func (m *leasingMachine) Leases(visit func(ike.Lease) bool) {
	for _, l := range m.list {
		if !visit(l) {
			return
		}
	}
}

// A write goes out at once after a quiet time, and never another one within the interval.
func TestLeasesAreWrittenAtAPace(t *testing.T) {
	m, disk := &leasingMachine{}, &lockedState{}
	e := &Engine{loop: &ikeLoop{m: m}}
	e.keep.dir = disk
	k := &e.loop.leases
	for i := range 100 {
		now := time.Duration(1000+i*100) * time.Millisecond
		m.list = append(m.list, ike.Lease{Pool: "p", ID: ike.ID{Type: ike.IDFQDN, Data: "a.example"}, Addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})})
		k.changed = true
		e.saveLeases(now)
		if k.writing != nil {
			<-k.writing
		}
		if list, n := disk.leases(); i == 0 && len(list) != 1 || n > 1+i/50 {
			t.Fatalf("after %v: %d leases in %d writes", now, len(list), n)
		}
	}
	if err := e.settleLeases(); err != nil {
		t.Fatal(err)
	}
	list, n := disk.leases()
	if len(list) != 100 || n != 3 {
		t.Errorf("in the end %d leases are kept by %d writes, want 100 by 3", len(list), n)
	}
	k.changed = true
	e.saveLeases(time.Hour)
	if k.writing != nil {
		<-k.writing
	}
	if _, again := disk.leases(); again != n || k.changed {
		t.Error("what has not changed is written again")
	}
}

func FuzzLeases(f *testing.F) {
	e := &Engine{loop: &ikeLoop{m: &leasingMachine{list: []ike.Lease{
		{Pool: "p", ID: ike.ID{Type: ike.IDFQDN, Data: "a.example"}, Addr: netip.MustParseAddr("10.9.0.1")},
		{Pool: "six", ID: ike.ID{Type: ike.IDKeyID, Data: "\x00\xff"}, Addr: netip.MustParseAddr("fd00::1")}}}}}
	f.Add(e.encodeLeases())
	f.Add([]byte{leaseFileVersion, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		list := decodeLeases(b)
		again := decodeLeases((&Engine{loop: &ikeLoop{m: &leasingMachine{list: list}}}).encodeLeases())
		if len(b) <= maxLeaseFile && !reflect.DeepEqual(list, again) {
			t.Fatalf("%v is kept as %v", list, again)
		}
	})
}
