package platform

import (
	"errors"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func mustNetlink(t testing.TB, ns *Namespace, f func(*Netlink) error) {
	t.Helper()
	if err := ns.Netlink(f); err != nil {
		t.Fatal(err)
	}
}

func TestNetlinkRulesComeBackAsTheyWereSet(t *testing.T) {
	ns := newNS(t)
	p := netip.MustParsePrefix
	rules := []Rule{
		{Priority: 310, Mark: Mark, Mask: MarkMask, Action: unix.FR_ACT_GOTO, Goto: 32766, Protocol: routeProtocol},
		{Priority: 311, From: p("10.1.0.0/16"), To: p("10.2.3.0/24"), IPProto: 6, SPort: PortRange{1, 99}, DPort: PortRange{502, 502},
			Action: unix.FR_ACT_TO_TBL, Table: 2204, Protocol: routeProtocol},
		{Priority: 311, From: p("0.0.0.0/32"), Action: unix.FR_ACT_TO_TBL, Table: 77, Protocol: routeProtocol},
		{Priority: 312, To: p("128.0.0.0/1"), Invert: true, IIF: "lo", Action: unix.FR_ACT_BLACKHOLE, Protocol: routeProtocol},
		{Priority: 313, Action: unix.FR_ACT_NOP, Protocol: routeProtocol},
		{Priority: 314, To: p("10.0.0.0/8"), Action: unix.FR_ACT_UNREACHABLE, Protocol: 99},
		{V6: true, Priority: 310, From: p("fd01::/64"), To: p("fd02::1/128"), IPProto: 17, DPort: PortRange{500, 4500},
			Action: unix.FR_ACT_TO_TBL, Table: 2204, Protocol: routeProtocol},
		{V6: true, Priority: 311, From: p("8000::/1"), Action: unix.FR_ACT_GOTO, Goto: 400, Protocol: routeProtocol},
	}
	mustNetlink(t, ns, func(nl *Netlink) error {
		var before [2][]Rule
		for i, v6 := range []bool{false, true} {
			var err error
			if before[i], err = nl.Rules(v6); err != nil {
				return err
			}
		}
		for _, r := range rules {
			if err := nl.AddRule(r); err != nil {
				return err
			}
		}
		for i, v6 := range []bool{false, true} {
			have, err := nl.Rules(v6)
			if err != nil {
				return err
			}
			var want, got []Rule
			for _, r := range rules {
				if r.V6 == v6 {
					want = append(want, r)
				}
			}
			for _, r := range have {
				if r.Priority >= prioMark && r.Priority <= prioEnd {
					got = append(got, r)
				}
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("IPv6 %v: the kernel has\n%v\nwant\n%v", v6, got, want)
			}
			for _, r := range want {
				if err := nl.DeleteRule(r); err != nil {
					t.Error(err)
				}
			}
			if have, _ = nl.Rules(v6); !reflect.DeepEqual(have, before[i]) {
				t.Errorf("IPv6 %v: left after deleting: %v, want %v", v6, have, before[i])
			}
		}
		if err := nl.DeleteRule(rules[0]); !errors.Is(err, unix.ENOENT) {
			t.Errorf("deleting a rule that is gone: %v, want ENOENT", err)
		}
		return nil
	})
}

func TestNetlinkRoutesComeBackAsTheyWereSet(t *testing.T) {
	ns := newNS(t)
	cable(t, ns, "a0", ns, "b0")
	addAddr(t, ns, "a0", "192.0.2.1/24", "2001:db8::1/64")
	addAddr(t, ns, "b0", "192.0.2.2/24")
	mustNetlink(t, ns, func(nl *Netlink) error {
		l, err := nl.LinkByName("a0")
		if err != nil {
			return err
		}
		p, ip := netip.MustParsePrefix, netip.MustParseAddr
		const table = 2204
		for _, r := range []Route{
			{Table: table, Type: unix.RTN_UNICAST, Protocol: routeProtocol, Dst: p("0.0.0.0/0"), Index: l.Index, PrefSrc: ip("192.0.2.1"), Metric: 1},
			{Table: table, Type: unix.RTN_UNREACHABLE, Protocol: routeProtocol, Dst: p("0.0.0.0/0"), Metric: unreachableMetric},
			{Table: table, Type: unix.RTN_UNICAST, Protocol: routeProtocol, Dst: p("198.51.100.0/24"), Gateway: ip("192.0.2.9"), Index: l.Index},
			{Table: table, Type: unix.RTN_UNICAST, Protocol: routeProtocol, Dst: p("198.51.101.0/24"), Gateway: ip("203.0.113.9"), Index: l.Index, Onlink: true},
			{Table: 90, Type: unix.RTN_BLACKHOLE, Protocol: routeProtocol, Dst: p("198.51.100.7/32")},
			{Table: table, Type: unix.RTN_UNICAST, Protocol: routeProtocol, Dst: p("::/0"), Index: l.Index, PrefSrc: ip("2001:db8::1"), Metric: 1},
			{Table: table, Type: unix.RTN_UNREACHABLE, Protocol: routeProtocol, Dst: p("::/0"), Index: loopbackIndex, Metric: unreachableMetric},
		} {
			v6 := r.Dst.Addr().Is6()
			if err := nl.AddRoute(r); err != nil {
				t.Error(err)
				continue
			}
			if err := nl.AddRoute(r); !errors.Is(err, unix.EEXIST) {
				t.Errorf("%v a second time: %v, want EEXIST", r, err)
			}
			if err := nl.ReplaceRoute(r); err != nil {
				t.Errorf("%v in its own place: %v", r, err)
			}
			have, err := nl.Routes(v6, r.Table)
			if err != nil || len(have) != 1 || have[0] != r {
				t.Errorf("the kernel has %+v, %v, want %+v", have, err, r)
			}
			if err := nl.DeleteRoute(r); err != nil {
				t.Error(err)
			}
			if have, err := nl.Routes(v6, r.Table); len(have) != 0 || err != nil {
				t.Errorf("left after deleting: %v, %v", have, err)
			}
			if err := nl.DeleteRoute(r); !errors.Is(err, unix.ESRCH) {
				t.Errorf("deleting a route that is gone: %v, want ESRCH", err)
			}
		}
		return nil
	})
}

func TestNetlinkLinksAndAddresses(t *testing.T) {
	a, b := newNS(t), newNS(t)
	mustNetlink(t, a, func(nl *Netlink) error {
		if _, err := nl.LinkByName("none0"); !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), "none0") {
			t.Errorf("an interface that is not there: %v, want ENODEV and its name", err)
		}
		if err := nl.AddVeth("v0", -1, "v1", -1); err != nil {
			return err
		}
		l, err := nl.LinkByName("v1")
		if err != nil || l.Up() || l.Kind != "veth" || l.Name != "v1" {
			t.Errorf("new link %+v, %v, want a veth v1 that is down", l, err)
		}
		if err := errors.Join(nl.SetLinkMTU(l.Index, 1300), nl.SetLinkUp(l.Index, true)); err != nil {
			return err
		}
		if l, err = nl.LinkByName("v1"); err != nil || !l.Up() || l.MTU != 1300 {
			t.Errorf("link %+v, %v, want up with mtu 1300", l, err)
		}
		addr := Addr{Index: l.Index, Prefix: netip.MustParsePrefix("192.0.2.7/29"), Flags: unix.IFA_F_PERMANENT}
		if err := errors.Join(nl.AddAddr(addr), nl.AddAddr(addr)); err != nil {
			t.Errorf("an address twice: %v, want no error", err)
		}
		have, err := nl.Addrs(false)
		if err != nil || len(have) != 2 || have[1] != addr {
			t.Errorf("addresses %+v, %v, want loopback's and %+v", have, err, addr)
		}
		if err := nl.DeleteAddr(addr); err != nil {
			t.Error(err)
		}
		if have, _ = nl.Addrs(false); len(have) != 1 {
			t.Errorf("addresses after deleting: %+v", have)
		}
		return control(b.f, func(fd int) error { return nl.MoveLink(l.Index, fd) })
	})
	mustNetlink(t, b, func(nl *Netlink) error {
		l, err := nl.LinkByName("v1")
		if err != nil {
			return err
		}
		return nl.DeleteLink(l.Index)
	})
	mustNetlink(t, a, func(nl *Netlink) error {
		if _, err := nl.LinkByName("v0"); !errors.Is(err, unix.ENODEV) {
			t.Errorf("the other end of a deleted veth: %v, want ENODEV", err)
		}
		return nil
	})
}

func TestNetlinkErrorsNameOperationAndObject(t *testing.T) {
	ns := newNS(t)
	mustNetlink(t, ns, func(nl *Netlink) error {
		err := nl.AddRoute(Route{Table: 2204, Type: unix.RTN_UNICAST, Dst: netip.MustParsePrefix("10.0.0.0/8"), Gateway: netip.MustParseAddr("192.0.2.1")})
		var op *OpError
		if !errors.As(err, &op) || op.Op != "add route" || op.Object != "10.0.0.0/8 via 192.0.2.1 table 2204" || !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("route over nothing: %v, want the operation, the route and ENETUNREACH", err)
		}
		if err := nl.Close(); err != nil {
			return err
		}
		if _, err := nl.Rules(false); !errors.Is(err, os.ErrClosed) {
			t.Errorf("after Close: %v, want os.ErrClosed", err)
		}
		return nil
	})
}

func TestAddressWatchSeesChanges(t *testing.T) {
	ns := newNS(t)
	var w *AddressWatch
	in(t, ns, func() (err error) { w, err = WatchAddresses(); return err })
	changed := make(chan error, 4)
	go func() {
		for {
			err := w.Wait()
			changed <- err
			if err != nil {
				return
			}
		}
	}()
	addAddr(t, ns, "lo", "192.0.2.1/32")
	// The address and the device coming up are several changes.
	for i, closed := 0, false; !closed; i++ {
		select {
		case err := <-changed:
			if closed = errors.Is(err, os.ErrClosed) && i > 0; !closed && err != nil {
				t.Fatalf("wait %d: %v, want changes, and os.ErrClosed after Close", i, err)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("wait %d: nothing", i)
		}
		if i == 0 {
			w.Close()
		}
	}
}

// Setting a device down takes its routes away, and setting it up does not bring them back.
func TestAddressWatchSeesALinkGoDownAndUp(t *testing.T) {
	ns := newNS(t)
	tun := openTUN(t, ns, "pt0", 1400)
	var w *AddressWatch
	in(t, ns, func() (err error) { w, err = WatchAddresses(); return err })
	defer w.Close()
	heard := func() bool {
		w.f.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		return w.Wait() == nil
	}
	for heard() { // of the device's making
	}
	for _, up := range []bool{false, true} {
		if err := ns.Netlink(func(nl *Netlink) error {
			l, err := nl.LinkByName(tun.Name())
			if err != nil {
				return err
			}
			return nl.SetLinkUp(l.Index, up)
		}); err != nil {
			t.Fatal(err)
		}
		w.f.SetReadDeadline(time.Now().Add(5 * time.Second))
		if err := w.Wait(); err != nil {
			t.Fatalf("nothing is heard of the device being set up=%v: %v", up, err)
		}
		for heard() {
		}
	}
}

// message is a netlink message as the kernel would send it.
func nlBytes(typ, flags uint16, body []byte) []byte {
	r := newRequest(typ, flags).raw(body...)
	b := r.finish(7, 0)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func TestNetlinkErrorBody(t *testing.T) {
	sent := nlBytes(unix.RTM_NEWRULE, 0, make([]byte, 12))
	code := func(n int32) []byte { return native.AppendUint32(nil, uint32(n)) }
	words := &request{}
	words.attrString(unix.NLMSGERR_ATTR_MSG, "no such thing")
	for name, c := range map[string]struct {
		flags uint16
		body  []byte
		errno unix.Errno
		words string
		bad   bool
	}{
		"acknowledgement":      {0, append(code(0), sent...), 0, "", false},
		"plain error":          {0, append(code(-22), sent...), 22, "", false},
		"words behind request": {unix.NLM_F_ACK_TLVS, append(append(code(-22), sent...), words.b...), 22, "no such thing", false},
		"words behind header":  {unix.NLM_F_ACK_TLVS | unix.NLM_F_CAPPED, append(append(code(-1), sent[:16]...), words.b...), 1, "no such thing", false},
		"short":                {0, append(code(-22), sent[:15]...), 0, "", true},
		"positive":             {0, append(code(22), sent...), 0, "", true},
		"request beyond end":   {unix.NLM_F_ACK_TLVS, append(code(-22), sent[:16]...), 0, "", true},
		"words cut short":      {unix.NLM_F_ACK_TLVS | unix.NLM_F_CAPPED, append(append(code(-1), sent[:16]...), words.b[:10]...), 1, "", true},
	} {
		errno, text, err := parseNetlinkError(nlMessage{flags: c.flags, body: c.body})
		if (err != nil) != c.bad || !c.bad && (errno != c.errno || text != c.words) {
			t.Errorf("%s: %v, %q, %v, want %v, %q, bad %v", name, errno, text, err, c.errno, c.words, c.bad)
		}
	}
}

func TestNetlinkAttributesAreBounded(t *testing.T) {
	attr := func(length, typ uint16, rest ...byte) []byte {
		return append(native.AppendUint16(native.AppendUint16(nil, length), typ), rest...)
	}
	const any = unix.FRA_PRIORITY
	for name, b := range map[string][]byte{
		"shorter than its header":  attr(3, any),
		"longer than the message":  attr(9, any, 1, 2, 3, 4),
		"three octets of an int":   attr(7, any, 1, 2, 3),
		"half a header":            attr(8, any)[:2],
		"behind a good one":        append(attr(8, any, 1, 2, 3, 4), attr(0, any)...),
		"destination of 33 bits":   attr(8, unix.FRA_DST, 1, 2, 3, 4),
		"address of three octets":  attr(7, unix.FRA_SRC, 1, 2, 3),
		"port range of two octets": attr(6, unix.FRA_SPORT_RANGE, 1, 2),
	} {
		h := make([]byte, unix.SizeofRtMsg)
		h[0], h[1] = unix.AF_INET, 33
		if r, err := parseRule(append(h, b...)); err == nil {
			t.Errorf("%s: parsed to %v, want an error", name, r)
		}
	}
}

func FuzzNetlinkMessages(f *testing.F) {
	r := ruleRequest(unix.RTM_NEWRULE, 0, Rule{Priority: 1, From: netip.MustParsePrefix("10.0.0.0/8"), IPProto: 6, DPort: PortRange{1, 2}, Action: unix.FR_ACT_TO_TBL, Table: 2204})
	f.Add(r.finish(1, 0))
	rt := routeRequest(unix.RTM_NEWROUTE, 0, Route{Table: 2204, Type: unix.RTN_UNICAST, Dst: netip.MustParsePrefix("fd00::/8"), Index: 3, Metric: 9})
	f.Add(append(rt.finish(1, 0), nlBytes(unix.NLMSG_DONE, 2, []byte{0, 0, 0, 0})...))
	a := addrRequest(unix.RTM_NEWADDR, 0, Addr{Index: 1, Prefix: netip.MustParsePrefix("192.0.2.1/24"), Flags: 0x200})
	f.Add(a.finish(1, 0))
	l := ifInfo(unix.RTM_NEWLINK, 0, 4, unix.IFF_UP, 0)
	l.attrString(unix.IFLA_IFNAME, "eth0")
	info := l.nest(unix.IFLA_LINKINFO)
	l.attrString(unix.IFLA_INFO_KIND, "tun")
	l.end(info)
	f.Add(l.finish(1, 0))
	f.Add(nlBytes(unix.NLMSG_ERROR, unix.NLM_F_ACK_TLVS, append([]byte{0xff, 0xff, 0xff, 0xff}, nlBytes(1, 0, nil)...)))
	f.Fuzz(func(t *testing.T, b []byte) {
		total := len(b)
		for len(b) > 0 {
			m, rest, err := nextMessage(b)
			if err != nil {
				return
			}
			if len(rest) >= len(b) || len(m.body) > total {
				t.Fatal("the cursor does not move on: a dump would never end")
			}
			b = rest
			if err := endOfExchange(m); err == nil && m.typ == unix.NLMSG_ERROR && len(m.body) < 20 {
				t.Fatal("a cut error message counts as success")
			}
			if l, err := parseLink(m.body); err == nil {
				_ = l.Up()
			}
			if a, err := parseAddr(m.body); err == nil {
				_ = a.usable()
			}
			if rt, err := parseRoute(m.body); err == nil {
				_ = rt.String()
				if !rt.Dst.IsValid() {
					t.Fatalf("a route without a destination: %+v", rt)
				}
			}
			if r, err := parseRule(m.body); err == nil {
				if q := ruleRequest(unix.RTM_NEWRULE, 0, r); len(q.b) < unix.SizeofNlMsghdr+unix.SizeofRtMsg {
					t.Fatalf("a rule that cannot be written back: %+v", r)
				}
			}
		}
	})
}
