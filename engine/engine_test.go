package engine

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"postern/board"
	"postern/engine/control"
	"postern/ike"
)

type messageT = control.Message

func newMessage(kv ...string) *control.Message {
	m := new(control.Message)
	for i := 0; i+1 < len(kv); i += 2 {
		m.Set(kv[i], kv[i+1])
	}
	return m
}

// confA and confB are the two ends of one tunnel.
const confA = `
[connections.plant]
remote_addrs = ["192.0.2.2"]
%s
[connections.plant.local]
id = "a.example"
[connections.plant.remote]
id = "b.example"
[connections.plant.children.net]
local_ts = ["10.1.0.0/16", "2001:db8:1::/48"]
remote_ts = ["10.2.0.0/16", "2001:db8:2::/48"]
esp_proposals = ["%s"]
start_action = "%s"
[secrets.x]
secret = "correct horse battery staple 42"
`

const confB = `
[connections.center]
remote_addrs = ["192.0.2.1"]
[connections.center.local]
id = "b.example"
[connections.center.remote]
id = "a.example"
[connections.center.children.net]
local_ts = ["10.2.0.0/16", "2001:db8:2::/48"]
remote_ts = ["10.1.0.0/16", "2001:db8:1::/48"]
[secrets.x]
secret = "correct horse battery staple 42"
`

// eventually waits for a condition that other goroutines bring about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("after 5 s: not %s", what)
}

func TestTwoEnginesCarryPackets(t *testing.T) {
	for _, c := range []struct {
		name, extra, suite string
		port               uint16
	}{
		{"raw ESP, AES-GCM", "", "aes128gcm16", 0},
		{"ESP in UDP, CBC with HMAC", "encap = true", "aes256-sha256", 4500},
		{"raw ESP, AES-CCM", "", "aes128ccm8", 0},
		{"ESP in UDP, implicit IV", "encap = true", "aes128gcm16iiv", 4500},
		{"raw ESP, AES-CTR with CMAC", "", "aes128ctr-aescmac", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			wire := &fakeWire{}
			secret := udp4(srcHost, dstHost, 1000, 502, 200)[28:]
			var esps int
			wire.seen = func(from, to netip.AddrPort, b []byte) {
				if bytes.Contains(b, secret[:64]) {
					t.Error("the wire carried the payload in clear")
				}
				if to.Port() == c.port && (c.port == 0 || len(b) > 4 && !bytes.Equal(b[:4], make([]byte, 4))) {
					esps++
				}
			}
			a := startEngine(t, wire.host("192.0.2.1"), parse(t, fmt.Sprintf(confA, c.extra, c.suite, "trap")), board.Tiny)
			b := startEngine(t, wire.host("192.0.2.2"),
				parse(t, strings.Replace(confB, "remote_ts =", fmt.Sprintf("esp_proposals = [%q]\nremote_ts =", c.suite), 1)), board.Tiny)
			if n := len(a.host.policies); n != 1 {
				t.Fatalf("the kernel of a was told %d policies, want 1", n)
			}
			// The first packet brings the tunnel up and still arrives.
			pkts := [][]byte{udp4(srcHost, dstHost, 1000, 502, 200), udp6("2001:db8:1::5", "2001:db8:2::9", 1, 2, 300)}
			a.host.tun.in <- pkts[0]
			eventually(t, "the packet that started the tunnel arrived at b", func() bool { return len(b.host.tun.packets()) == 1 })
			a.host.tun.in <- pkts[1]
			eventually(t, "the second packet arrived at b", func() bool { return len(b.host.tun.packets()) == 2 })
			for i, p := range b.host.tun.packets() {
				if !bytes.Equal(p, pkts[i]) {
					t.Errorf("packet %d arrived changed", i)
				}
			}
			back := udp4(dstHost, srcHost, 502, 1000, 150)
			b.host.tun.in <- back
			eventually(t, "the answer arrived at a", func() bool { return len(a.host.tun.packets()) == 1 })
			if !bytes.Equal(a.host.tun.packets()[0], back) {
				t.Error("the answer arrived changed")
			}

			_, sas := a.command(control.CmdListSAs)
			if len(sas) != 1 {
				t.Fatalf("list-sas shows %d IKE SAs, want 1: %v", len(sas), sas)
			}
			for _, want := range []string{"list-sa plant{", `state="ESTABLISHED"`, `local-host="192.0.2.1"`, `remote-host="192.0.2.2"`,
				`local-id="a.example"`, `remote-id="b.example"`, `initiator="yes"`, "child-sas{net-1{", `state="INSTALLED"`, `mode="TUNNEL"`,
				`protocol="ESP"`, `packets-out="2"`, `bytes-out="500"`, `packets-in="1"`, `bytes-in="150"`, `use-in="0"`,
				`local-ts=["10.1.0.0/16" "2001:db8:1::/48"]`, `remote-ts=["10.2.0.0/16" "2001:db8:2::/48"]`} {
				if !strings.Contains(sas[0], want) {
					t.Errorf("list-sas lacks %s: %s", want, sas[0])
				}
			}
			if strings.Contains(sas[0], `encap="yes"`) != (c.port == 4500) {
				t.Errorf("list-sas is wrong about encapsulation: %s", sas[0])
			}

			// Rekeying under traffic loses nothing.
			if resp, _ := a.command(control.CmdRekey, "child", "net"); !strings.Contains(resp, `success="yes" matches="1"`) {
				t.Fatalf("rekey: %s", resp)
			}
			eventually(t, "the CHILD SA was rekeyed on both sides", func() bool {
				for i := range 2 {
					_, sas := []*running{a, b}[i].command(control.CmdListSAs)
					if len(sas) != 1 || !strings.Contains(sas[0], "net-2{") {
						return false
					}
				}
				return true
			})
			for i := range 20 {
				a.host.tun.in <- udp4(srcHost, dstHost, uint16(i), 502, 100)
			}
			eventually(t, "20 packets arrived after rekeying", func() bool { return len(b.host.tun.packets()) == 22 })

			// The end of one side tells the other.
			a.end()
			eventually(t, "b has no SA after a has ended", func() bool {
				_, sas := b.command(control.CmdListSAs)
				return len(sas) == 0
			})
			if used := b.d.sad.used(); used != 0 {
				t.Errorf("%d slots of b's SAD are still used", used)
			}
			if a.host.cleared != 1 || a.host.policies != nil {
				t.Error("the routes were not taken back at the end")
			}
			if esps < 23 {
				t.Errorf("the wire carried %d ESP packets on port %d, want at least 23", esps, c.port)
			}
			for _, r := range []*running{a, b} {
				for _, l := range r.log.all() {
					if strings.Contains(l, "level=error") || strings.Contains(l, "level=warn") {
						t.Errorf("%s logs %s", r.host.addr, l)
					}
				}
			}
		})
	}
}

func TestGoroutinesDoNotDependOnSAs(t *testing.T) {
	before := runtime.NumGoroutine()
	wire := &fakeWire{}
	a := startEngine(t, wire.host("192.0.2.1"), parse(t, manyChildren("192.0.2.2", "a", "b", 12, "none")), board.Tiny)
	b := startEngine(t, wire.host("192.0.2.2"), parse(t, manyChildren("192.0.2.1", "b", "a", 12, "none")), board.Tiny)
	settle := func() int {
		n := 0
		for range 200 {
			time.Sleep(time.Millisecond)
			n = runtime.NumGoroutine()
		}
		return n
	}
	idle := settle()
	if resp, _ := a.command(control.CmdInitiate, "ike", "c", control.KeyOurs, "yes"); !strings.HasPrefix(resp, `success="yes"`) {
		t.Fatalf("initiate: %s", resp)
	}
	if n := b.d.sad.used(); n != 12 {
		t.Errorf("%d CHILD SAs are up, want 12", n)
	}
	if busy := settle(); busy != idle {
		t.Errorf("%d goroutines with 12 CHILD SAs, %d with none: the number must not depend on them", busy, idle)
	}
	a.end()
	b.end()
	eventually(t, "every goroutine has ended", func() bool { return runtime.NumGoroutine() <= before })
}

// manyChildren is one connection with n children.
func manyChildren(remote, local, peer string, n int, start string) string {
	l, r := "1", "2"
	if local > peer {
		l, r = r, l
	}
	s := fmt.Sprintf("[connections.c]\nremote_addrs = [\"%s\"]\n[connections.c.local]\nid = \"%s.example\"\n[connections.c.remote]\nid = \"%s.example\"\n[secrets.x]\nsecret = \"correct horse battery staple 42\"\n", remote, local, peer)
	for i := range n {
		s += fmt.Sprintf("[connections.c.children.n%d]\nlocal_ts = [\"10.%s.%d.0/24\"]\nremote_ts = [\"10.%s.%d.0/24\"]\nstart_action = \"%s\"\n", i, l, i, r, i, start)
	}
	return s
}

func TestInitiateAndTerminate(t *testing.T) {
	wire := &fakeWire{}
	a := startEngine(t, wire.host("192.0.2.1"), parse(t, fmt.Sprintf(confA, "", "aes128gcm16", "none")), board.Tiny)
	startEngine(t, wire.host("192.0.2.2"), parse(t, confB), board.Tiny)
	want := func(resp, part string) {
		t.Helper()
		if !strings.Contains(resp, part) {
			t.Errorf("response is %s, want %s in it", resp, part)
		}
	}
	resp, _ := a.command(control.CmdInitiate)
	want(resp, "missing configuration name")
	resp, _ = a.command(control.CmdInitiate, "child", "nett")
	want(resp, "CHILD_SA config 'nett' not found")
	resp, _ = a.command(control.CmdTerminate)
	want(resp, "missing terminate selector")
	resp, _ = a.command(control.CmdTerminate, "ike", "plant")
	want(resp, `success="no" matches="0" terminated="0" errmsg="no matching SAs to terminate found"`)
	resp, _ = a.command(control.CmdRekey, "child", "net")
	want(resp, `success="no" matches="0" errmsg="no matching SAs to rekey found"`)

	resp, events := a.command(control.CmdInitiate, "child", "net")
	want(resp, `success="yes"`)
	if all := strings.Join(events, "\n"); !strings.Contains(all, "control-log ") || !strings.Contains(all, "CHILD SA established") {
		t.Errorf("initiate streams no log of what happens: %s", all)
	}
	_, events = a.command(control.CmdInitiate, "child", "net", "loglevel", "-1")
	if len(events) != 0 {
		t.Errorf("log level -1 streams %v", events)
	}
	resp, _ = a.command(control.CmdTerminate, "child", "net", "loglevel", "-1")
	want(resp, `success="yes" matches="1" terminated="1"`)
	resp, _ = a.command(control.CmdTerminate, "ike-id", "1")
	want(resp, `success="yes" matches="1" terminated="1"`)
	eventually(t, "the SAD of a is empty", func() bool {
		used := 1
		_ = a.loop.do(func() { used = a.d.sad.used() })
		return used == 0
	})

	// Nobody answers: the command ends when its time is over and not before.
	wire.mu.Lock()
	wire.cut = true
	wire.mu.Unlock()
	begin := time.Now()
	resp, _ = a.command(control.CmdInitiate, "child", "net", "timeout", "300")
	want(resp, `errmsg="CHILD_SA 'net' not established after 300ms"`)
	if d := time.Since(begin); d < 300*time.Millisecond || d > 3*time.Second {
		t.Errorf("a timeout of 300 ms took %v", d)
	}
	resp, _ = a.command(control.CmdInitiate, "child", "net", "timeout", "-1")
	want(resp, `success="yes"`)
	n := 0
	_ = a.loop.do(func() { n = len(a.loop.waiters) })
	if n > 1 { // the one that nobody waits for ends with its attempt
		t.Errorf("%d commands are waited for", n)
	}
	// A command that waits does not outlive its client.
	gone := make(chan bool)
	go func() {
		_, _ = a.Command(control.CmdInitiate, newMessage("child", "net"), func(string, *control.Message) error { return control.ErrGone })
		close(gone)
	}()
	select {
	case <-gone:
	case <-time.After(5 * time.Second):
		t.Error("initiate goes on waiting for a client that is gone")
	}
}

func TestReloadKeepsSAsAndChangesPolicies(t *testing.T) {
	wire := &fakeWire{}
	text := fmt.Sprintf(confA, "", "aes128gcm16", "trap")
	first := parse(t, text)
	a := startEngine(t, wire.host("192.0.2.1"), first, board.Tiny)
	b := startEngine(t, wire.host("192.0.2.2"), parse(t, confB), board.Tiny)
	a.command(control.CmdInitiate, "child", "net")
	other := `
[connections.other]
remote_addrs = ["192.0.2.77"]
[connections.other.children.x]
local_ts = ["10.1.0.0/16"]
remote_ts = ["10.7.0.0/16"]
start_action = "trap"
`
	if err := a.Reload(parse(t, text+other)); err != nil {
		t.Fatalf("Reload: %v", err)
	}
	if key := first.IKE.Secrets[0].Key; len(key) == 0 || !bytes.Equal(key, make([]byte, len(key))) {
		t.Error("the secret of the configuration before is still in memory")
	}
	if n := len(a.host.policies); n != 2 {
		t.Errorf("the kernel was told %d policies, want 2", n)
	}
	a.host.tun.in <- udp4(srcHost, dstHost, 1, 2, 100)
	eventually(t, "the tunnel carries packets after the reload", func() bool { return len(b.host.tun.packets()) == 1 })
	if a.d.counts.get(cAcquire) != 0 {
		t.Error("the SA was lost in the reload and had to be negotiated anew")
	}
	_, conns := a.command(control.CmdListConns)
	if len(conns) != 2 || !strings.Contains(conns[1], `list-conn other{local_addrs=["%any"] remote_addrs=["192.0.2.77"] version="IKEv2"`) {
		t.Errorf("list-conns shows %v", conns)
	}

	// What the kernel refuses changes nothing.
	a.host.mu.Lock()
	a.host.applyErr = errors.New("netlink says no")
	a.host.mu.Unlock()
	if err := a.Reload(parse(t, text)); err == nil || !strings.Contains(err.Error(), "netlink says no") {
		t.Errorf("Reload with a kernel that refuses: %v", err)
	}
	if _, conns := a.command(control.CmdListConns); len(conns) != 2 {
		t.Errorf("a reload that failed left %d connections, want the 2 from before", len(conns))
	}
	a.host.mu.Lock()
	a.host.applyErr = nil
	a.host.mu.Unlock()
	if err := a.Reload(parse(t, manyChildren("192.0.2.2", "a", "b", 33, "none"))); err == nil {
		t.Error("33 children fit the tiny board's 32")
	}
	if n := len(a.d.spd.cur.Load().list); n != 2 {
		t.Errorf("a configuration that does not fit left %d policies, want the 2 from before", n)
	}
}

func TestDynamicSelectorsReachTheKernelWithTheSA(t *testing.T) {
	wire := &fakeWire{}
	a := startEngine(t, wire.host("192.0.2.1"), parse(t, `
[connections.gw]
remote_addrs = ["192.0.2.2"]
[connections.gw.local]
id = "a.example"
[connections.gw.children.net]
remote_ts = ["10.2.0.0/16"]
[secrets.x]
secret = "correct horse battery staple 42"
`), board.Tiny)
	b := startEngine(t, wire.host("192.0.2.2"), parse(t, `
[connections.rw.local]
id = "b.example"
[connections.rw.children.net]
local_ts = ["10.2.0.0/16"]
remote_ts = ["dynamic"]
[secrets.x]
secret = "correct horse battery staple 42"
`), board.Tiny)
	if p := a.host.policies; len(p) != 1 || p[0].LocalTS[0] != sel("192.0.2.1/32")[0] {
		t.Fatalf("a's policies are %v, want its own address as local selector", p)
	}
	if p := b.host.policies; len(p) != 0 {
		t.Fatalf("b's policies are %v before anybody called, want none", p)
	}
	if resp, _ := a.command(control.CmdInitiate, "child", "net"); resp != `success="yes"` {
		t.Fatalf("initiate: %s", resp)
	}
	eventually(t, "b's kernel knows the road warrior", func() bool {
		b.host.mu.Lock()
		defer b.host.mu.Unlock()
		return len(b.host.policies) == 1 && b.host.policies[0].RemoteTS[0] == sel("192.0.2.1/32")[0]
	})
	b.host.tun.in <- udp4(dstHost, "192.0.2.1", 1, 2, 100)
	eventually(t, "a packet reached the road warrior", func() bool { return len(a.host.tun.packets()) == 1 })
	a.command(control.CmdTerminate, "ike", "gw")
	eventually(t, "b's kernel has forgotten the road warrior", func() bool {
		b.host.mu.Lock()
		defer b.host.mu.Unlock()
		return len(b.host.policies) == 0
	})
}

func TestRunChangesNothingWhenItCannotStart(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(h *fakeHost, o *Options)
		want  string
	}{
		{"port in use", func(h *fakeHost, o *Options) { h.udp = os.NewSyscallError("bind", syscall.EADDRINUSE) }, "UDP IKE IPv4 socket, port 500: bind: address already in use"},
		{"no address family", func(h *fakeHost, o *Options) { h.udp = os.NewSyscallError("socket", syscall.EAFNOSUPPORT) }, "neither IPv4 nor IPv6"},
		{"no TUN", func(h *fakeHost, o *Options) {
			o.OS.OpenTUN = func(string, int, int) ([]Device, error) { return nil, os.ErrNotExist }
		}, "TUN device postern0: file does not exist"},
		{"kernel refuses", func(h *fakeHost, o *Options) { h.applyErr = errors.New("no permission") }, "no permission"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := (&fakeWire{}).host("192.0.2.1")
			o := Options{OS: h.os(), Config: parse(t, confB), Profile: board.Tiny}
			c.spoil(h, &o)
			o.OS.ListenUDP = func(a netip.AddrPort, n int) ([]Socket, error) {
				return one(h.listen(a.Addr().Is4(), a.Port(), h.udp))
			}
			e, err := New(o)
			if err != nil {
				t.Fatal(err)
			}
			if err = e.Run(make(chan struct{})); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Run: %v, want %q", err, c.want)
			}
			for _, s := range h.opened {
				select {
				case <-s.closed:
				default:
					t.Error("a socket was left open")
				}
			}
			if h.applied > 0 && h.cleared == 0 {
				t.Error("the routes were left behind")
			}
		})
	}
}

func TestMissingRawSocketMovesESPIntoUDP(t *testing.T) {
	wire := &fakeWire{}
	h := wire.host("192.0.2.1")
	h.noESP = os.NewSyscallError("socket", syscall.EPERM)
	a := startEngine(t, h, parse(t, fmt.Sprintf(confA, "encap = false", "aes128gcm16", "none")), board.Tiny)
	startEngine(t, wire.host("192.0.2.2"), parse(t, confB), board.Tiny)
	if all := strings.Join(a.log.all(), ""); !strings.Contains(all, "no raw socket for ESP") {
		t.Errorf("no warning about the raw socket: %s", all)
	}
	if resp, _ := a.command(control.CmdInitiate, "child", "net"); resp != `success="yes"` {
		t.Errorf("initiate with encapsulation: %s", resp)
	}
	children := 0
	_ = a.loop.do(func() {
		a.loop.m.List(func(sa *ike.SAInfo) bool {
			for _, c := range sa.Children {
				if children++; !c.Encap {
					t.Error("the CHILD SA is not encapsulated, and nothing could be sent")
				}
			}
			return true
		})
	})
	if children != 1 {
		t.Errorf("%d CHILD SAs, want 1", children)
	}
}

func TestLostDeviceEndsTheDaemon(t *testing.T) {
	h := (&fakeWire{}).host("192.0.2.1")
	h.tun.fail = errors.New("file descriptor in bad state")
	e, err := New(Options{OS: h.os(), Config: parse(t, confB), Profile: board.Tiny})
	if err != nil {
		t.Fatal(err)
	}
	e.d.out[0].pause = time.Millisecond
	done := make(chan error, 1)
	go func() { done <- e.Run(make(chan struct{})) }()
	select {
	case err := <-done:
		if err == nil || !strings.Contains(err.Error(), "TUN device fake0 is lost: file descriptor in bad state") {
			t.Errorf("Run: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the daemon goes on without its device")
	}
	if h.cleared == 0 {
		t.Error("the routes were left behind")
	}
}

func TestStopDoesNotWaitForASilentPeer(t *testing.T) {
	wire := &fakeWire{}
	a := startEngine(t, wire.host("192.0.2.1"), parse(t, fmt.Sprintf(confA, "", "aes128gcm16", "none")), board.Tiny)
	b := startEngine(t, wire.host("192.0.2.2"), parse(t, confB), board.Tiny)
	a.command(control.CmdInitiate, "child", "net")
	wire.mu.Lock()
	wire.cut = true
	wire.mu.Unlock()
	const patience = 400 * time.Millisecond
	_ = a.loop.do(func() { a.loop.patience = patience })
	_ = b.loop.do(func() { b.loop.patience = time.Millisecond })
	begin := time.Now()
	a.end()
	if d := time.Since(begin); d < patience || d > patience+2*time.Second {
		t.Errorf("ending took %v, want about %v", d, patience)
	}
}

func TestTunnelMTU(t *testing.T) {
	for _, c := range []struct {
		suite string
		want  int
	}{
		// 1500 - 40 (IPv6) - 8 (UDP) = 1452; GCM: - 8 - 8 - 16 = 1420, - 2 = 1418.
		{"aes128gcm16", 1418},
		// CBC: 1452 - 8 - 16 - 16 = 1412, in blocks of 16: 1408, - 2 = 1406.
		{"aes256-sha256", 1406},
		{"aes128gcm16\", \"aes256-sha512", 1390},
		// The other ciphers fill words of 4 octets.
		{"aes128gcm8", 1426},
		{"aes128gcm12", 1422},
		{"aes128ccm16", 1418},
		{"aes128ccm8", 1426},
		{"aes128gmac", 1418},
		{"aes128gcm16iiv", 1426},
		{"aes128ccm8iiv", 1434},
		{"chacha20poly1305iiv\", \"chacha20poly1305", 1418},
		{"null-sha256", 1426},
		{"null-aesxcbc", 1430},
		{"aes128ctr-sha256", 1418},
		{"aes128ctr-aescmac", 1422},
	} {
		cfg := parse(t, fmt.Sprintf(confA, "", c.suite, "none"))
		got, err := tunnelMTU(cfg, board.Small)
		if err != nil || got != c.want {
			t.Errorf("%s: MTU %d, %v; want %d", c.suite, got, err, c.want)
		}
		cfg.Daemon.MTU = 1300
		if got, _ := tunnelMTU(cfg, board.Small); got != 1300 {
			t.Errorf("a configured MTU of 1300 became %d", got)
		}
		cfg.Daemon.MTU = 9000
		if _, err := tunnelMTU(cfg, board.Small); err == nil || !strings.Contains(err.Error(), "use at most") {
			t.Errorf("an MTU of 9000 does not fit buffers of %d octets, but: %v", board.Small.BufferSize, err)
		}
	}
}

func TestStatsAndVersion(t *testing.T) {
	a := startEngine(t, (&fakeWire{}).host("192.0.2.1"), parse(t, confB), board.Tiny)
	v, _ := a.command(control.CmdVersion)
	if !strings.HasPrefix(v, `daemon="postern" version="1.2.3" sysname=`) {
		t.Errorf("version is %s", v)
	}
	s, _ := a.command(control.CmdStats, control.KeyOurs, "yes")
	for _, want := range []string{`uptime{running="0 seconds" since="`, `workers{total="1" idle="1" active{critical="0" high="0" medium="0" low="0"}}`,
		`ikesas{total="0" half-open="0"}`, "mallinfo{sbrk=",
		fmt.Sprintf(`sa-slots="%d" sa-slots-used="0"`, a.d.sad.used()+a.d.sad.nfree), `counters{out_packets="0"`} {
		if !strings.Contains(s, want) {
			t.Errorf("stats lack %s: %s", want, s)
		}
	}
	if _, ok := a.Command("load-keys", nil, nil); ok {
		t.Error("a command that does not exist was executed")
	}
}
