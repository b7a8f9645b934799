//go:build linux

package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// nameServer is a DNS server with one record, in the WAN's namespace.
type nameServer struct {
	mu    sync.Mutex
	addr  netip.Addr // of every name; none: silence
	asked int
}

const nameServerAddr = "198.51.100.254"

func (s *site) startNameServer() *nameServer {
	s.t.Helper()
	n := &nameServer{}
	var conn *net.UDPConn
	if err := inNamespace(s.wan, func() (err error) {
		conn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(nameServerAddr), Port: 53})
		return err
	}); err != nil {
		s.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		var buf [512]byte
		for {
			k, from, err := conn.ReadFromUDPAddrPort(buf[:])
			if err != nil {
				return
			}
			if r := n.answer(buf[:k]); r != nil {
				_, _ = conn.WriteToUDPAddrPort(r, from)
			}
		}
	}()
	s.t.Cleanup(func() {
		conn.Close()
		<-done
	})
	return n
}

// set changes the record; the zero address makes the server silent.
func (n *nameServer) set(a netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.addr = a
}

func (n *nameServer) answer(q []byte) []byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked++
	if !n.addr.IsValid() || len(q) < 17 {
		return nil
	}
	r := slices.Clone(q)
	r[2], r[3] = 0x81, 0x80
	if binary.BigEndian.Uint16(q[len(q)-4:]) == 1 { // A
		r[7] = 1
		r = append(r, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4)
		r = append(r, n.addr.AsSlice()...)
	}
	return r
}

// startNamed starts postern on gateway A with remote_addrs as given and the resolv.conf of
// the site's name server, and waits until its control socket is there.
func startNamed(s *site, c spec, remote string) *postern {
	s.t.Helper()
	d := newPostern(s, 'a', c)
	text := strings.Replace(d.toml(c), fmt.Sprintf("remote_addrs = [%q]", c.conns[0].remote), "remote_addrs = "+remote, 1)
	d.write(text)
	conf := filepath.Join(d.dir, "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver "+nameServerAddr+"\n"), 0o644); err != nil {
		s.t.Fatal(err)
	}
	// "ip netns exec" has made a mount namespace for it.
	d.launch("sh", "-c", `mount --bind "$0" /etc/resolv.conf && exec "$@"`, conf)
	if !eventually(20*time.Second, func() bool { _, err := os.Stat(d.socket()); return err == nil }) {
		s.t.Fatalf("postern did not start: %s", d.p.text())
	}
	return d
}

// recovered waits until pings pass and returns how long that took from since.
func recovered(t *testing.T, s *site, since time.Time, ds ...daemon) time.Duration {
	t.Helper()
	if !eventually(30*time.Second, func() bool { return s.pings(s.lanA, hostB4, 1, briefly).lost() == 0 }) {
		t.Fatalf("no tunnel after 30 s%s", logs(ds...))
	}
	return time.Since(since)
}

// The name of the peer does not resolve at boot; later its record moves while the tunnel is
// up, to where the peer has moved. Each time the tunnel is there in less than three seconds.
func TestPeerByName(t *testing.T) {
	ready(t, pair{"postern", "postern"})
	s := newSite(t)
	dns := s.startNameServer()
	ca, cb := pairSpecs(false, false)
	dead(&ca)
	ca.conns[0].children[0].start = "start"
	ca.conns[0].children[0].dpdAction = "restart"
	// A policy protects the way to the name server, and has no SA: only what passes by the
	// tunnel gets there.
	ca.conns[0].children = append(ca.conns[0].children, child{name: "dns", localTS: []string{gwAddr('a', false).String() + "/32"},
		remoteTS: []string{nameServerAddr + "/32"}, esp: usualESP, start: "none"})
	cb.conns[0].local, cb.conns[0].remote = "%any", "%any"
	b := start(s, "postern", 'b', cb)
	a := startNamed(s, ca, `["gw.example.net"]`)
	time.Sleep(6 * time.Second)
	if n := len(matching(a.log(), "gw.example.net", "cannot be resolved")); n != 1 {
		t.Errorf("%d lines say that the name does not resolve, want 1%s", n, logs(a))
	}
	c := s.capture()
	dns.set(gwAddr('b', false))
	d := recovered(t, s, time.Now(), a, b)
	t.Logf("the DNS works again: tunnel after %v", d.Round(time.Millisecond))
	if d > 3*time.Second {
		t.Errorf("%v from the first working DNS to the tunnel, want less than 3 s%s", d, logs(a, b))
	}

	// A make-before-break while both addresses work.
	other := netip.MustParseAddr("203.0.113.2")
	s.ip(s.gwB, "addr add 203.0.113.2/24 dev wan0\n")
	ping := s.startPinger(s.lanA, hostB4, 100)
	time.Sleep(200 * time.Millisecond)
	dns.set(other)
	moved := func() bool {
		for _, sa := range children(a, "net") {
			if sa.state == "INSTALLED" {
				return strings.Contains(a.log(), "203.0.113.2")
			}
		}
		return false
	}
	// The old address dies, which makes postern look the name up at once.
	s.ip(s.gwB, "addr del 203.0.113.1/24 dev wan0\naddr add 203.0.113.2/24 dev wan0\nroute replace default via 203.0.113.254\n")
	began := time.Now()
	_ = ping.stop()
	d = recovered(t, s, began, a, b)
	t.Logf("recovery: the record and the peer have moved: tunnel after %v", d.Round(time.Millisecond))
	if d > 4*time.Second {
		t.Errorf("%v from the peer's move to the tunnel, want 4 s at most: one until the liveness check, which looks the name up%s", d, logs(a, b))
	}
	if !eventually(10*time.Second, moved) {
		t.Errorf("the tunnel has not moved%s", logs(a, b))
	}
	if !eventually(15*time.Second, func() bool { return len(children(a, "net")) == 1 }) {
		t.Errorf("the old SA is still there: %+v%s", children(a, "net"), logs(a, b))
	}
	w := slices.DeleteFunc(c.stop(), func(p packet) bool {
		return p.link == "a0" && strings.Contains(p.what, nameServerAddr) && strings.Contains(p.what, " 53")
	})
	w.noClear(t, []byte(mark))
	if n := len(children(a, "dns")); n != 0 {
		t.Errorf("the child that the DNS must not need has %d SAs", n)
	}
}

// Of two addresses the first is dead: that costs seconds, and the next time nothing.
func TestDeadFirstAddress(t *testing.T) {
	facing(t, func(t *testing.T, s *site, p pair) {
		ca, cb := pairSpecs(false, false)
		b := start(s, p.b, 'b', cb)
		a := startNamed(s, ca, `["203.0.113.77", "203.0.113.1"]`)
		began := time.Now()
		if err := a.initiate("net"); err != nil {
			t.Fatalf("initiate: %v%s", err, logs(a, b))
		}
		d := time.Since(began)
		t.Logf("recovery: the first of two addresses is dead: tunnel after %v", d.Round(time.Millisecond))
		if d > 5*time.Second {
			t.Errorf("the dead address cost %v, want about 3 s%s", d, logs(a))
		}
		s.mustPing(t, false, a, b)
		if err := a.terminate(""); err != nil {
			t.Errorf("terminate: %v", err)
		}
		began = time.Now()
		if err := a.initiate("net"); err != nil || time.Since(began) > 2*time.Second {
			t.Errorf("the second time: %v after %v, want the address that worked to be called first%s", err, time.Since(began), logs(a))
		}
	})
}

// A reload adds a child, takes one away and changes dpd_delay, while pings pass through a
// third one: not one is lost.
func TestReloadOfChildrenUnderTraffic(t *testing.T) {
	p := pair{"postern", "postern"}
	ready(t, p)
	s := newSite(t)
	ca, cb := pairSpecs(false, false)
	ca.conns[0].children[0].start = "start"
	extra := func(c spec, name, local, remote string) spec {
		n := c.conns[0]
		n.children = append(slices.Clone(n.children), child{name: name, localTS: []string{local}, remoteTS: []string{remote}, esp: usualESP, start: "start"})
		return spec{conns: []conn{n}}
	}
	const old = "10.9.0.0/24"
	a, b := startPair(s, p, extra(ca, "old", lanA4, old), extra(cb, "old", old, lanA4))
	if !eventually(10*time.Second, func() bool { return len(children(a, "net")) == 1 && len(children(a, "old")) == 1 }) {
		t.Fatalf("no tunnel%s", logs(a, b))
	}
	before := installed(t, a, "net")
	s.mustPing(t, false, a, b)
	m := s.meter(t, a, b)
	ping := s.startPinger(s.lanA, hostB4, 100)
	time.Sleep(300 * time.Millisecond)
	reload := func(d daemon, c spec) {
		t.Helper()
		d.(*postern).write(d.(*postern).toml(c))
		if out, err := d.(*postern).cli("reload"); err != nil {
			t.Errorf("postern reload: %v\n%s%s", err, out, logs(d))
		}
	}
	both(&ca, &cb, func(c *conn) { c.dpdDelay = 7 * time.Second })
	reload(b, extra(cb, "new", lanC4, lanA4))
	reload(a, extra(ca, "new", lanA4, lanC4))
	if !eventually(5*time.Second, func() bool {
		return len(children(a, "new")) == 1 && len(children(a, "old")) == 0 && len(children(b, "old")) == 0
	}) {
		t.Errorf("the children are not those of the new configuration%s", logs(a, b))
	}
	if r := s.pings(s.lanA, hostC4, 5); r.lost() != 0 {
		t.Errorf("through the child that came with the reload, %v%s", r, logs(a, b))
	}
	time.Sleep(300 * time.Millisecond)
	m.noneLost(ping.stop())
	if now := children(a, "net"); len(now) != 1 || now[0].spiIn != before.spiIn {
		t.Errorf("the reload has replaced the CHILD SA that did not change: %+v, now %+v", before, now)
	}
}
