package engine

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/board"
	"postern/engine/control"
	"postern/engine/log"
	"postern/esp"
)

// routedTo returns an entry of a device.
func routedTo(v *childDevice, conn, child, local, remote string) policySpec {
	s := protect(conn, child, local, remote)
	s.via = v
	return s
}

// addVia is addLoop for SAs of a device.
func (tp *testPath) addVia(t testing.TB, v *childDevice, conn, child, local, remote string) (*inSA, *outSA) {
	t.Helper()
	in, out := tp.addLoop(t, testSuites[0], true, conn, child, local, remote, false)
	in.via, in.routed, out.via = v, true, v
	tp.spd.bind(out)
	return in, out
}

// testDevice returns a device with a fake TUN device.
func (tp *testPath) testDevice(name string) (*childDevice, *fakeDevice) {
	v, tun := tp.newChildDevice(name, 0), newFakeDevice()
	v.out.now = tp.now
	d := Device(tun)
	v.tun.Store(&d)
	return v, tun
}

// sendVia takes packets out of a device.
func (tp *testPath) sendVia(v *childDevice, pkts ...[]byte) {
	for i, p := range pkts {
		v.out.sizes[i] = copy(v.out.bufs[i][headRoom:], p)
	}
	v.out.batch(len(pkts))
}

const anywhere = "0.0.0.0/0"

// Two devices and the TUN device of all have the same selectors: the device decides whose SA
// protects a packet, and the SA out of which device it comes.
func TestDevicesWithTheSameSelectorsKeepApart(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	one, tun1 := tp.testDevice("ipsec0")
	two, tun2 := tp.testDevice("ipsec1")
	tp.spd.set([]policySpec{
		routedTo(one, "c", "one", anywhere, anywhere), routedTo(two, "c", "two", anywhere, anywhere),
		protect("c", "main", "10.1.0.0/16", "10.2.0.0/16"),
	})
	if got := tp.spd.policies(); len(got) != 1 || !got[0].LocalTS[0].Contains(sel("10.1.0.0/16")[0]) {
		t.Errorf("the kernel is told %v, want the entry without a device alone", got)
	}
	_, out1 := tp.addVia(t, one, "c", "one", anywhere, anywhere)
	_, out2 := tp.addVia(t, two, "c", "two", anywhere, anywhere)
	_, out0 := tp.addLoop(t, testSuites[0], true, "c", "main", anywhere, anywhere, true)
	pkt := udp4(srcHost, dstHost, 1, 2, 100)
	tp.sendVia(one, pkt)
	tp.sendVia(two, pkt, pkt)
	tp.send(pkt, pkt, pkt)
	for i, sa := range []*outSA{out1, out2, out0} {
		if n := sa.out.Seq(); n != uint64(i+1) {
			t.Errorf("SA %s has carried %d packets, want %d", sa.child, n, i+1)
		}
	}
	sent := tp.fakes[sockNATT4].datagrams()
	if len(sent) != 6 {
		t.Fatalf("%d datagrams have left, want 6", len(sent))
	}
	for i := range sent {
		sent[i].Remote = netip.MustParseAddrPort("192.0.2.1:4500")
	}
	// Of three devices in turn, in one batch.
	tp.in[sockNATT4] = newInbound(tp.datapath, sockNATT4, 0, newPool(6, 2048).take(6))
	tp.receive(sockNATT4, sent[0], sent[3], sent[1], sent[4], sent[2], sent[5])
	if a, b, c := tun1.count(), tun2.count(), tp.tun.count(); a != 1 || b != 2 || c != 3 {
		t.Errorf("%d, %d and %d packets came out of the devices, want 1, 2 and 3", a, b, c)
	}
	tp.want(t, cInPackets, 6)
	tp.want(t, cInBytes, 600)

	// What no entry of the device selects is dropped there, whatever the others say.
	tp.sendVia(one, udp6("fd01::1", "fd02::1", 1, 2, 100))
	tp.want(t, cOutNoPolicy, 1)
	tp.want(t, cInClear, 0)

	// Nor is it taken for something that arrived in clear, which only the TUN device of all can be told.
	three, _ := tp.testDevice("ipsec2")
	tp.spd.set(append(slices.Clone(tp.spd.spec), routedTo(three, "c", "three", "172.16.0.0/16", anywhere)))
	tp.sendVia(three, udp4(dstHost, srcHost, 2, 1, 100))
	tp.want(t, cOutNoPolicy, 2)
	tp.want(t, cInClear, 0)
	tp.send(udp4(dstHost, srcHost, 2, 1, 100))
	tp.want(t, cInClear, 1)

	// A device that is gone takes nothing more, and nobody else gets it.
	tp.sendVia(one, pkt)
	one.tun.Store(nil)
	g := tp.fakes[sockNATT4].datagrams()[6]
	g.Remote = netip.MustParseAddrPort("192.0.2.1:4500")
	tp.receive(sockNATT4, g)
	tp.want(t, cInNoDevice, 1)
	if a, c := tun1.count(), tp.tun.count(); a != 1 || c != 3 {
		t.Errorf("a packet for a device that is gone came out of another one")
	}
}

// An entry that any SA may serve is not served by SAs of devices.
func TestAnySADoesNotMeanThoseOfDevices(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	v, _ := tp.testDevice("ipsec0")
	tp.spd.set([]policySpec{protect("", "", anywhere, anywhere), routedTo(v, "c", "n", anywhere, anywhere)})
	_, out := tp.addVia(t, v, "c", "n", anywhere, anywhere)
	if _, sa := tp.spd.lookup(flowTo(dstHost)); sa != nil {
		t.Error("a packet that is not routed into the device is protected by its SA")
	}
	if _, sa := tp.spd.lookupVia(flowTo(dstHost), v); sa != out {
		t.Error("a packet that is routed into the device is not protected by its SA")
	}
	if of, mixed := tp.spd.judge("c", "n", v, sel(anywhere), sel(anywhere), true); of != tp.spd.hits["c/n"] || mixed {
		t.Errorf("the SA's packets are counted at %p, mixed %v; want the child's entry, and all of them", of, mixed)
	}
}

// What waits for an SA waits for one of its device.
func TestWaitingPacketsRememberTheirDevice(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	one, _ := tp.testDevice("ipsec0")
	two, _ := tp.testDevice("ipsec1")
	tp.spd.set([]policySpec{routedTo(one, "c", "one", anywhere, anywhere), routedTo(two, "c", "two", anywhere, anywhere)})
	pkt := udp4(srcHost, dstHost, 1, 2, 100)
	tp.sendVia(one, pkt)
	tp.sendVia(two, pkt)
	if got := strings.Join(tp.acquired, " "); got != "c/one c/two" {
		t.Errorf("asked for %s, want c/one c/two", got)
	}
	_, out := tp.addVia(t, two, "c", "two", anywhere, anywhere)
	tp.flusher.flush()
	if n := out.out.Seq(); n != 1 || tp.pending.len() != 1 {
		t.Errorf("the SA of the second device has carried %d packets and %d wait, want 1 and 1", n, tp.pending.len())
	}
	// Without its entry the other one is not sent in clear, nor protected by somebody else.
	tp.spd.set([]policySpec{routedTo(two, "c", "two", anywhere, anywhere)})
	tp.flusher.flush()
	if tp.pending.len() != 0 || out.out.Seq() != 1 {
		t.Error("a packet for a device whose child is gone still waits, or was sent")
	}
	tp.want(t, cOutNoPolicy, 1)
}

func TestOwnPacketsRoutedIntoTheDeviceAreDropped(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	var lines bytes.Buffer
	tp.log = log.New(&lines, log.Debug)
	v, _ := tp.testDevice("ipsec0")
	tp.spd.set([]policySpec{routedTo(v, "c", "n", anywhere, anywhere)})
	_, out := tp.addVia(t, v, "c", "n", anywhere, anywhere)
	raw := func(proto byte) []byte {
		p := udp4("192.0.2.1", "192.0.2.2", 4500, 4500, 120)
		p[9] = proto
		return p
	}
	fragment := raw(17)
	fragment[6] = 0x20 // more fragments
	fragment[7] = 9
	loops := [][]byte{raw(17), raw(esp.ProtoESP), raw(esp.ProtoAH), udp4("192.0.2.1", "192.0.2.2", 500, 500, 120), fragment}
	for _, p := range loops {
		tp.sendVia(v, p)
	}
	tp.want(t, cOutLoop, uint64(len(loops)))
	if n := out.out.Seq(); n != 0 {
		t.Errorf("%d packets of the tunnel went into it", n)
	}
	if !strings.Contains(lines.String(), "the route to the peer leads into the tunnel's own device") {
		t.Errorf("the log does not say it: %s", lines.String())
	}
	// Everything else between the two, and IPsec of others, is traffic like any other.
	for _, p := range [][]byte{
		raw(1), udp4("192.0.2.1", "192.0.2.2", 1024, 4500, 120), udp4("10.1.0.9", "192.0.2.2", 4500, 4500, 120), udp4("192.0.2.1", "192.0.2.3", 4500, 4500, 120),
	} {
		tp.sendVia(v, p)
	}
	tp.want(t, cOutLoop, uint64(len(loops)))
	tp.want(t, cOutPackets, 4)
}

func TestNoAllocationPerRoutedPacket(t *testing.T) {
	tp := newTestPath(t, board.Tiny)
	v, tun := tp.testDevice("ipsec0")
	tp.spd.set([]policySpec{routedTo(v, "c", "n", anywhere, anywhere)})
	_, out := tp.addVia(t, v, "c", "n", anywhere, anywhere)
	tp.quiet()
	tun.keep = false
	const rounds = 50
	for range 2 * rounds { // for the inbound half
		tp.fakes[out.sock()].keep = true
		tp.sendVia(v, udp4(srcHost, dstHost, 1000, 502, 1300))
	}
	tp.fakes[out.sock()].keep = false
	pkt := udp4(srcHost, dstHost, 1000, 502, 1300)
	if n := testing.AllocsPerRun(rounds, func() { tp.sendVia(v, pkt) }); n != 0 {
		t.Errorf("%g allocations for a packet out of a device, want 0", n)
	}
	sent := tp.fakes[out.sock()].datagrams()
	i := 0
	if n := testing.AllocsPerRun(rounds, func() {
		sent[i].Remote = netip.MustParseAddrPort("192.0.2.1:4500")
		tp.receive(out.sock(), sent[i])
		i++
	}); n != 0 {
		t.Errorf("%g allocations for a packet into a device, want 0", n)
	}
	if tun.count() != i {
		t.Errorf("%d packets came out of the device, want %d", tun.count(), i)
	}
}

// routedConf is one end of a tunnel with children that have devices.
func routedConf(here, there, peer string, children ...string) string {
	s := fmt.Sprintf("[connections.c]\nremote_addrs = [%q]\n[connections.c.local]\nid = \"%s.example\"\n[connections.c.remote]\nid = \"%s.example\"\n"+
		"[secrets.x]\nsecret = \"correct horse battery staple 42\"\n", peer, here, there)
	for _, c := range children {
		name, more, _ := strings.Cut(c, " ")
		s += fmt.Sprintf("[connections.c.children.%s]\nlocal_ts = [\"0.0.0.0/0\"]\nremote_ts = [\"0.0.0.0/0\"]\nstart_action = \"trap\"\n%s\n", name, more)
	}
	return s
}

// tunOf returns the fake TUN device of that name, nil if it was never opened.
func (h *fakeHost) tunOf(name string) *fakeDevice {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.tuns[name]
}

// addrsOf returns the addresses of a device inside a tunnel; ok is false if it is none.
func (h *fakeHost) addrsOf(name string) (s string, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	list, ok := h.inner[name]
	return fmt.Sprint(list), ok
}

func (d *fakeDevice) isClosed() bool {
	select {
	case <-d.closed:
		return true
	default:
		return false
	}
}

// The life of a device: before the SA, with it, over reloads that change other things, that
// give it other addresses, that add a second one and take it away; deleted by somebody.
func TestDeviceOfAChild(t *testing.T) {
	before := runtime.NumGoroutine()
	wire := &fakeWire{}
	conf := func(children ...string) string { return routedConf("a", "b", "192.0.2.2", children...) }
	net := "net interface = \"ipsec0\"\ninterface_addrs = [\"10.255.0.1/30\"]"
	a := startEngine(t, wire.host("192.0.2.1"), parse(t, conf(net)), board.Tiny)
	b := startEngine(t, wire.host("192.0.2.2"), parse(t, routedConf("b", "a", "192.0.2.1", "net interface = \"ipsec0\"")), board.Tiny)
	if n := len(a.host.policies); n != 0 {
		t.Errorf("the kernel was told %d policies of a child with a device, want none", n)
	}
	if addrs, ok := a.host.addrsOf("ipsec0"); !ok || addrs != "[10.255.0.1/30]" {
		t.Errorf("the device has the addresses %s", addrs)
	}
	dev, peer := a.host.tunOf("ipsec0"), b.host.tunOf("ipsec0")
	pkt := udp4("172.16.0.1", "172.17.0.1", 1000, 502, 200)
	carries := func(what string, from, to *fakeDevice) {
		t.Helper()
		n := to.count()
		from.in <- pkt
		eventually(t, what, func() bool { return to.count() == n+1 })
	}
	carries("the first packet, which brings the SA up, has arrived", dev, peer)
	carries("the answer has arrived", peer, dev)
	if n := b.host.tun.count(); n != 0 {
		t.Errorf("%d packets came out of the TUN device of all", n)
	}
	if resp, _ := a.command(control.CmdRekey, "child", "net"); !strings.Contains(resp, `matches="1"`) {
		t.Fatalf("rekey: %s", resp)
	}
	carries("a packet has arrived after rekeying", dev, peer)
	_, spd := a.command(control.CmdListSPD)
	if len(spd) != 1 || !strings.Contains(spd[0], `interface="ipsec0"`) || !strings.Contains(spd[0], `packets-out="2"`) || !strings.Contains(spd[0], `packets-in="1"`) {
		t.Errorf("list-spd does not show the device and its packets: %v", spd)
	}

	reload := func(text string) {
		t.Helper()
		if err := a.Reload(parse(t, text)); err != nil {
			t.Fatalf("Reload: %v", err)
		}
	}
	acquires := a.d.counts.get(cAcquire)
	reload(conf(strings.Replace(net, "10.255.0.1/30", "10.255.0.5/30", 1), `more interface = "ipsec1"`))
	if addrs, _ := a.host.addrsOf("ipsec0"); addrs != "[10.255.0.5/30]" {
		t.Errorf("after the reload the device has the addresses %s", addrs)
	}
	second := a.host.tunOf("ipsec1")
	if second == nil || dev.isClosed() || a.host.tunOf("ipsec0") != dev {
		t.Fatal("a reload did not add the second device, or touched the first")
	}
	carries("a packet has arrived after the reload", dev, peer)
	if n := a.d.counts.get(cAcquire); n != acquires {
		t.Error("the reload cost the SA")
	}
	// A reload that fails takes its device away again.
	a.host.mu.Lock()
	a.host.applyErr = errors.New("netlink says no")
	a.host.mu.Unlock()
	if err := a.Reload(parse(t, conf(net, `more interface = "ipsec2"`))); err == nil {
		t.Error("the kernel refuses, and Reload has no error")
	}
	a.host.mu.Lock()
	a.host.applyErr = nil
	a.host.mu.Unlock()
	if d := a.host.tunOf("ipsec2"); d == nil || !d.isClosed() || second.isClosed() {
		t.Error("after a reload that failed, its device is there, or another one is not")
	}
	reload(conf(net))
	if !second.isClosed() {
		t.Error("the second device is there after its child has gone")
	}
	if _, ok := a.host.addrsOf("ipsec1"); ok {
		t.Error("the system was not told that the device is gone")
	}

	// The child gets another device: other SAs, and nothing comes out of the old one.
	reload(conf(strings.Replace(net, "ipsec0", "ipsec3", 1)))
	third := a.host.tunOf("ipsec3")
	n := dev.count()
	carries("a packet has arrived from the other device", third, peer)
	carries("the answer has arrived at the other device", peer, third)
	if dev.count() != n || !dev.isClosed() {
		t.Error("the old device is still used")
	}

	// Somebody deletes it: the others go on, and a reload makes it again for the SAs that are there.
	acquires = a.d.counts.get(cAcquire)
	_ = a.loop.do(func() { a.loop.devices["ipsec3"].out.pause = time.Millisecond })
	third.lose()
	eventually(t, "the log tells of the lost device", func() bool { return strings.Contains(strings.Join(a.log.all(), "\n"), "a TUN device is lost") })
	reload(conf(strings.Replace(net, "ipsec0", "ipsec3", 1)))
	again := a.host.tunOf("ipsec3")
	if again == third {
		t.Fatal("the reload did not make the device again")
	}
	carries("a packet has arrived from the device that was made again", again, peer)
	carries("the answer has arrived there", peer, again)
	if a.d.counts.get(cAcquire) != acquires {
		t.Error("losing the device cost the SA")
	}
	a.end()
	if !again.isClosed() {
		t.Error("the device outlives the engine")
	}
	b.end()
	eventually(t, "every goroutine has ended", func() bool { return runtime.NumGoroutine() <= before })
}

// lose lets every read fail, as that of a device that was deleted does.
func (f *fakeDevice) lose() {
	f.in <- nil
}

var errLost = errors.New("the device was deleted")

func TestDeviceThatCannotBeHad(t *testing.T) {
	wire := &fakeWire{}
	h := wire.host("192.0.2.1")
	system := h.os()
	open := system.OpenTUN
	system.OpenTUN = func(name string, mtu, queues int) ([]Device, error) {
		if name == "ipsec1" {
			return nil, os.ErrPermission
		}
		return open(name, mtu, queues)
	}
	text := routedConf("a", "b", "192.0.2.2", `one interface = "ipsec0"`, `two interface = "ipsec1"`)
	e, err := New(Options{OS: system, Config: parse(t, text), Profile: board.Tiny})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Run(nil); err == nil || !strings.Contains(err.Error(), "TUN device ipsec1: permission denied") {
		t.Errorf("Run: %v", err)
	}
	if !h.tunOf("ipsec0").isClosed() || !h.tun.isClosed() {
		t.Error("the devices that could be had are left behind")
	}
	a := startEngine(t, wire.host("192.0.2.3"), parse(t, routedConf("a", "b", "192.0.2.2", `one interface = "ipsec0"`)), board.Tiny)
	a.host.mu.Lock()
	a.host.innerErr = errors.New("netlink says no")
	a.host.mu.Unlock()
	if err := a.Reload(parse(t, text)); err == nil || !strings.Contains(err.Error(), "TUN device ipsec1: netlink says no") {
		t.Errorf("Reload: %v", err)
	}
	eventually(t, "the device is closed", func() bool { return a.host.tunOf("ipsec1").isClosed() })
	if a.host.tunOf("ipsec0").isClosed() {
		t.Error("the device from before is gone")
	}
}
