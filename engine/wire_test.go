package engine

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"postern/board"
	"postern/engine/config"
	"postern/engine/log"
	"postern/esp"
	"postern/ike"
)

// fakeWire connects the sockets of several hosts. It loses nothing unless told to.
type fakeWire struct {
	mu    sync.Mutex
	hosts map[netip.Addr]*fakeHost
	cut   bool
	seen  func(from, to netip.AddrPort, b []byte)
}

// fakeHost is an operating system with one address on a wire.
type fakeHost struct {
	wire  *fakeWire
	addr  netip.Addr
	tun   *fakeDevice
	noESP error // what ListenESP answers, if set
	udp   error // what ListenUDP answers, if set
	mtu   int

	mu       sync.Mutex
	socks    map[uint16]*fakeSocket // by port; 0: raw ESP
	opened   []*fakeSocket
	policies []esp.Policy
	applied  int
	cleared  int
	applyErr error
	tuns     map[string]*fakeDevice    // those beside tun
	inner    map[string][]netip.Prefix // devices inside tunnels and their addresses
	innerErr error
	noRoute  bool
	watches  []*fakeWatch
}

// fakeWatch tells of the changes that are sent to it.
type fakeWatch struct {
	changes chan error
	closed  chan struct{}
	once    sync.Once
}

func (f *fakeWatch) Wait() error {
	select {
	case err := <-f.changes:
		return err
	case <-f.closed:
		return os.ErrClosed
	}
}

func (f *fakeWatch) Close() error {
	f.once.Do(func() { close(f.closed) })
	return nil
}

func (h *fakeHost) watch() (AddressWatch, error) {
	w := &fakeWatch{changes: make(chan error, 64), closed: make(chan struct{})}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.watches = append(h.watches, w)
	return w, nil
}

func (w *fakeWire) host(addr string) *fakeHost {
	h := &fakeHost{wire: w, addr: netip.MustParseAddr(addr), tun: newFakeDevice(), socks: map[uint16]*fakeSocket{}}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.hosts == nil {
		w.hosts = map[netip.Addr]*fakeHost{}
	}
	w.hosts[h.addr] = h
	return h
}

func (h *fakeHost) os() OS {
	return OS{
		OpenTUN:     h.openTUN,
		ListenUDP:   func(a netip.AddrPort, n int) ([]Socket, error) { return one(h.listen(a.Addr().Is4(), a.Port(), h.udp)) },
		ListenESP:   func(v6 bool) (Socket, error) { return h.listen(!v6, 0, h.noESP) },
		ListenAH:    func(v6 bool) (Socket, error) { return newFakeSocket(), nil },
		Network:     (*fakeNetwork)(h),
		MemoryTotal: func() uint64 { return 0 },

		WatchAddresses: h.watch,
	}
}

func (h *fakeHost) openTUN(name string, mtu, queues int) ([]Device, error) {
	h.mtu = mtu
	if !strings.HasPrefix(name, "ipsec") {
		return []Device{h.tun}, nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.tuns == nil {
		h.tuns = map[string]*fakeDevice{}
	}
	h.tuns[name] = newFakeDevice()
	return []Device{h.tuns[name]}, nil
}

// one is a list of one socket.
func one(s Socket, err error) ([]Socket, error) {
	if err != nil {
		return nil, err
	}
	return []Socket{s}, nil
}

func (h *fakeHost) listen(v4 bool, port uint16, err error) (Socket, error) {
	if err != nil {
		return nil, err
	}
	s := newFakeSocket()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.opened = append(h.opened, s)
	if v4 == h.addr.Is4() {
		h.socks[port] = s
		s.route = func(d *esp.Datagram) { h.wire.carry(h, port, d) }
	}
	return s, nil
}

// carry brings a datagram to its host.
func (w *fakeWire) carry(from *fakeHost, port uint16, d *esp.Datagram) {
	w.mu.Lock()
	to, cut, seen := w.hosts[d.Remote.Addr()], w.cut, w.seen
	w.mu.Unlock()
	src := netip.AddrPortFrom(from.addr, port)
	if seen != nil {
		seen(src, d.Remote, d.Buf[:d.N])
	}
	if to == nil || cut {
		return
	}
	to.mu.Lock()
	s := to.socks[d.Remote.Port()]
	to.mu.Unlock()
	if s == nil {
		return
	}
	c := esp.Datagram{Buf: append([]byte(nil), d.Buf[:d.N]...), N: d.N, Local: to.addr, Remote: src, TOS: d.TOS}
	select {
	case s.in <- c:
	default:
	}
}

// fakeNetwork is the host's routing.
type fakeNetwork fakeHost

func (n *fakeNetwork) Apply(device string, p []esp.Policy) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.applied++
	if n.applyErr != nil {
		return n.applyErr
	}
	n.policies = p
	return nil
}

func (n *fakeNetwork) SetDevice(device string, addrs, had []netip.Prefix) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.inner == nil {
		n.inner = map[string][]netip.Prefix{}
	}
	if !slices.Equal(n.inner[device], had) {
		return fmt.Errorf("%s has %v, not %v", device, n.inner[device], had)
	}
	n.inner[device] = addrs
	return n.innerErr
}

func (n *fakeNetwork) ForgetDevice(device string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.inner, device)
}

func (n *fakeNetwork) Clear() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cleared++
	n.policies = nil
	return nil
}

func (n *fakeNetwork) Source(remote netip.Addr) (netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.noRoute || remote.Is4() != n.addr.Is4() {
		return netip.Addr{}, fmt.Errorf("no route to %s", remote)
	}
	return n.addr, nil
}

// parse reads a configuration and leaves out the control socket.
func parse(t testing.TB, text string) *config.Config {
	t.Helper()
	cfg, err := config.Parse("test.toml", []byte(text), ike.AESFirst)
	if err != nil {
		t.Fatalf("configuration: %v", err)
	}
	cfg.Daemon.Control = ""
	return cfg
}

// running is an engine that runs.
type running struct {
	*Engine
	t    testing.TB
	host *fakeHost
	stop chan struct{}
	done chan error
	log  *logLines
	once sync.Once
}

// logLines keeps what is logged.
type logLines struct {
	mu    sync.Mutex
	lines []string
}

func (l *logLines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(b))
	return len(b), nil
}

func (l *logLines) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.lines...)
}

// startEngine runs an engine on the host until end or the test's end.
func startEngine(t testing.TB, h *fakeHost, cfg *config.Config, prof board.Profile) *running {
	t.Helper()
	return startEngineOn(t, h, h.os(), cfg, prof)
}

// startEngineOn is the same with another operating system than the host's own.
func startEngineOn(t testing.TB, h *fakeHost, system OS, cfg *config.Config, prof board.Profile) *running {
	t.Helper()
	lines := &logLines{}
	e, err := New(Options{OS: system, Config: cfg, Profile: prof, Log: log.New(lines, log.Debug), Version: "1.2.3", CPU: CPU{AES: true}})
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	r := &running{Engine: e, t: t, host: h, stop: make(chan struct{}), done: make(chan error, 1), log: lines}
	go func() { r.done <- e.Run(r.stop) }()
	select {
	case <-e.running:
	case err := <-r.done:
		t.Fatalf("Run: %v", err)
	}
	t.Cleanup(r.end)
	return r
}

// end stops the engine and waits for it.
func (r *running) end() {
	r.once.Do(func() {
		close(r.stop)
		if err := <-r.done; err != nil {
			r.t.Errorf("Run: %v", err)
		}
		if r.t.Failed() {
			for _, l := range r.log.all() {
				r.t.Logf("%s %s", r.host.addr, l)
			}
		}
	})
}

// command runs a VICI command and returns its response and the events that it streamed.
func (r *running) command(name string, kv ...string) (resp string, events []string) {
	req := newMessage(kv...)
	m, ok := r.Engine.Command(name, req, func(ev string, m *messageT) error {
		if m != nil {
			events = append(events, ev+" "+m.String())
		}
		return nil
	})
	if !ok {
		r.t.Fatalf("there is no command %q", name)
	}
	return m.String(), events
}
