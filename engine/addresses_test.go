package engine

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/board"
	"postern/engine/control"
)

// callsOut is a road warrior: its local selector is whatever address it has.
const callsOut = `
[connections.gw]
remote_addrs = ["192.0.2.2"]
[connections.gw.local]
id = "a.example"
[connections.gw.children.net]
remote_ts = ["10.2.0.0/16"]
[secrets.x]
secret = "correct horse battery staple 42"
`

// change sets what the host's routing says, tells of it and returns how often the kernel
// had been told the policies before.
func (h *fakeHost) change(noRoute bool) (applied int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.noRoute = noRoute
	h.watches[0].changes <- nil
	return h.applied
}

// locals returns the local selectors that the kernel knows, and how often it was told.
func (h *fakeHost) locals() (list []string, applied int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.policies {
		list = append(list, p.LocalTS[0].String())
	}
	return list, h.applied
}

func TestPoliciesFollowTheHostsAddresses(t *testing.T) {
	wire := &fakeWire{}
	h := wire.host("192.0.2.1")
	h.noRoute = true // as before DHCP
	a := startEngine(t, h, parse(t, callsOut), board.Tiny)
	if l, _ := h.locals(); len(l) != 1 || l[0] != "0.0.0.0/32" {
		t.Fatalf("without an address the policies are for %v, want what has yet to choose one", l)
	}
	before := h.change(false)
	eventually(t, "the kernel knows the new address", func() bool {
		l, _ := h.locals()
		return len(l) == 1 && l[0] == "192.0.2.1/32"
	})
	// The routes of an address come after it.
	eventually(t, "the policies were set once more", func() bool { _, n := h.locals(); return n >= before+2 })

	// That the address goes opens no hole: the policy stays until there is another one.
	before = h.change(true)
	eventually(t, "the policies were set again", func() bool { _, n := h.locals(); return n > before })
	if l, _ := h.locals(); len(l) != 1 || l[0] != "192.0.2.1/32" {
		t.Errorf("after the address is gone the policies are for %v, want what was protected still to be", l)
	}
	h.mu.Lock()
	h.addr = netip.MustParseAddr("192.0.2.9")
	h.mu.Unlock()
	h.change(false)
	eventually(t, "the kernel knows the other address", func() bool {
		l, _ := h.locals()
		return len(l) == 1 && l[0] == "192.0.2.9/32"
	})
	if p := a.d.spd.policies(); len(p) != 1 || p[0].LocalTS[0].String() != "192.0.2.9/32" {
		t.Errorf("the data path's policies are %v, the kernel's are for 192.0.2.9", p)
	}
	if all := strings.Join(a.log.all(), ""); strings.Contains(all, "level=warn") || strings.Contains(all, "level=error") {
		t.Errorf("warnings about nothing: %s", all)
	}
}

// A kernel that does not take the policies leaves those of before in force on both sides.
func TestPoliciesStayWhenTheKernelRefusesNewAddresses(t *testing.T) {
	h := (&fakeWire{}).host("192.0.2.1")
	a := startEngine(t, h, parse(t, callsOut), board.Tiny)
	h.mu.Lock()
	h.addr, h.applyErr = netip.MustParseAddr("192.0.2.9"), errors.New("netlink says no")
	h.mu.Unlock()
	h.change(false)
	eventually(t, "the refusal is logged", func() bool { return strings.Contains(strings.Join(a.log.all(), ""), "netlink says no") })
	_ = a.loop.do(func() {
		if p := a.d.spd.policies(); len(p) != 1 || p[0].LocalTS[0].String() != "192.0.2.1/32" {
			t.Errorf("the data path's policies are %v, want those that the kernel has", p)
		}
	})
}

func TestEngineRunsWithoutAnAddressWatch(t *testing.T) {
	for name, w := range map[string]func() (AddressWatch, error){
		"none":    nil,
		"refused": func() (AddressWatch, error) { return nil, errors.New("no netlink here") },
	} {
		h := (&fakeWire{}).host("192.0.2.1")
		o := h.os()
		o.WatchAddresses = w
		r := startEngineOn(t, h, o, parse(t, callsOut), board.Tiny)
		if v, _ := r.command(control.CmdVersion); v == "" {
			t.Errorf("%s: no version", name)
		}
		told := strings.Contains(strings.Join(r.log.all(), ""), "no netlink here")
		if told != (w != nil) {
			t.Errorf("%s: the log names the reason: %v", name, told)
		}
		r.end()
	}
	// One that breaks is told of, once.
	h := (&fakeWire{}).host("192.0.2.1")
	r := startEngine(t, h, parse(t, callsOut), board.Tiny)
	h.watches[0].changes <- errors.New("netlink broke")
	eventually(t, "the log says so", func() bool { return strings.Contains(strings.Join(r.log.all(), ""), "netlink broke") })
}

func TestAddressChangesArePaced(t *testing.T) {
	const ms = time.Millisecond
	run := func(changes ...time.Duration) (done []time.Duration) {
		var p addressPacer
		for now := ms; now < 10*time.Second; now += ms {
			for _, c := range changes {
				if c == now {
					p.changed(now)
				}
			}
			if p.due(now) {
				done = append(done, now)
			}
		}
		return done
	}
	var storm []time.Duration
	for at := 100 * ms; at <= 3100*ms; at += 7 * ms {
		storm = append(storm, at)
	}
	for name, c := range map[string]struct{ changes, want []time.Duration }{
		"none":                {nil, nil},
		"one":                 {[]time.Duration{5 * ms}, []time.Duration{5 * ms, 1005 * ms}},
		"two at once":         {[]time.Duration{5 * ms, 6 * ms}, []time.Duration{5 * ms, 1005 * ms, 2005 * ms}},
		"late in the pause":   {[]time.Duration{5 * ms, 900 * ms}, []time.Duration{5 * ms, 1005 * ms, 2005 * ms}},
		"long after":          {[]time.Duration{5 * ms, 5000 * ms}, []time.Duration{5 * ms, 1005 * ms, 5000 * ms, 6000 * ms}},
		"without end for 3 s": {storm, []time.Duration{100 * ms, 1100 * ms, 2100 * ms, 3100 * ms, 4100 * ms}},
	} {
		got := run(c.changes...)
		for i := 1; i < len(got); i++ {
			if got[i]-got[i-1] < addressInterval {
				t.Errorf("%s: adjusted at %v: twice within %v", name, got, addressInterval)
			}
		}
		if len(c.changes) > 0 && (len(got) == 0 || got[len(got)-1] < c.changes[len(c.changes)-1]+addressInterval) {
			t.Errorf("%s: adjusted at %v: not after the last change had time to settle", name, got)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: adjusted at %v, want %v", name, got, c.want)
		}
	}
}
