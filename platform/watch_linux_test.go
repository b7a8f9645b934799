package platform

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// watched counts what an address watch in the namespace tells of.
type watched struct {
	t *testing.T
	c chan error
}

func watch(t *testing.T, ns *Namespace) *watched {
	t.Helper()
	var w *AddressWatch
	in(t, ns, func() (err error) { w, err = WatchAddresses(); return err })
	t.Cleanup(func() { w.Close() })
	g := &watched{t, make(chan error, 1024)}
	go func() {
		for {
			err := w.Wait()
			g.c <- err
			if err != nil {
				return
			}
		}
	}()
	return g
}

// told returns how often the watch told of something until it was silent for a while.
func (g *watched) told() (n int) {
	g.t.Helper()
	for {
		select {
		case err := <-g.c:
			if err != nil {
				g.t.Fatalf("the watch ended: %v", err)
			}
			n++
		case <-time.After(300 * time.Millisecond):
			return n
		}
	}
}

// tells waits until the watch tells of something, and then until it is silent.
func (g *watched) tells() bool {
	select {
	case err := <-g.c:
		if err != nil {
			g.t.Fatalf("the watch ended: %v", err)
		}
		g.told()
		return true
	case <-time.After(5 * time.Second):
		return false
	}
}

// Routes that change lead to other paths; our own, which follow from that, must not
// wake us again.
func TestWatchSeesRoutesAndLinksButNotOurOwn(t *testing.T) {
	g := newGateway(t)
	w := watch(t, g.ns)
	w.told()
	main := Route{Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST, Protocol: unix.RTPROT_STATIC,
		Dst: netip.MustParsePrefix("203.0.113.0/24"), Gateway: g.peer4}
	main6 := main
	main6.Dst, main6.Gateway = netip.MustParsePrefix("2001:db8:7::/64"), g.peer6
	other := main
	other.Table = 17
	for _, r := range []Route{main, main6, other} {
		mustNetlink(t, g.ns, func(nl *Netlink) error { return nl.AddRoute(r) })
		if !w.tells() {
			t.Errorf("a new route %v is not told", r)
		}
		mustNetlink(t, g.ns, func(nl *Netlink) error { return nl.DeleteRoute(r) })
		if !w.tells() {
			t.Errorf("the end of route %v is not told", r)
		}
	}
	// The kernel may have something of its own to tell meanwhile, but not every time.
	var n int
	for i := range 5 {
		g.apply("", testPolicies()[:2+i%2]...)
		if n = w.told(); n == 0 {
			break
		}
	}
	if n != 0 {
		t.Errorf("the watch told %d times of routes in our own tables: every adjustment would cause another one", n)
	}
	g.setPeer(false)
	if !w.tells() {
		t.Error("a link that goes down is not told")
	}
}

// setPeer switches the far end of the wan cable.
func (g *gateway) setPeer(up bool) {
	g.t.Helper()
	mustNetlink(g.t, g.peer, func(nl *Netlink) error {
		l, err := nl.LinkByName("p0")
		if err != nil {
			return err
		}
		return nl.SetLinkUp(l.Index, up)
	})
}

func TestSourceOfALinkWithoutCarrierIsAnError(t *testing.T) {
	g := newGateway(t)
	remote := netip.MustParseAddr("203.0.113.9")
	if src, err := g.net.Source(remote); err != nil || src != g.wan4 {
		t.Fatalf("Source = %v, %v, want %v", src, err, g.wan4)
	}
	g.setPeer(false)
	within(t, 5*time.Second, "the kernel sees the carrier go", func() {
		for {
			if _, err := g.net.Source(remote); err != nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
	g.setPeer(true)
	within(t, 5*time.Second, "the kernel sees the carrier come", func() {
		for {
			if src, err := g.net.Source(remote); err == nil && src == g.wan4 {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
}

func TestAddressesAreAllThatAreReady(t *testing.T) {
	g := newGateway(t)
	got, err := g.net.Addresses()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.Addr{g.lan4, g.lan6, g.wan4, g.wan6} {
		if !slices.Contains(got, a) {
			t.Errorf("%v is not among %v", a, got)
		}
	}
	// One that is not to be chosen as a source, as virtual addresses of routers are set up.
	mustNetlink(t, g.ns, func(nl *Netlink) error {
		l, err := nl.LinkByName("wan")
		if err != nil {
			return err
		}
		return nl.AddAddr(Addr{Index: l.Index, Prefix: netip.MustParsePrefix("2001:db8::77/64"), Flags: unix.IFA_F_NODAD | unix.IFA_F_DEPRECATED})
	})
	if got, err := g.net.Addresses(); err != nil || !slices.Contains(got, netip.MustParseAddr("2001:db8::77")) {
		t.Errorf("a deprecated address is not among %v (%v): SAs from it would be taken for lost", got, err)
	}
}
