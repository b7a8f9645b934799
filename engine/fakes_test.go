package engine

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"postern/board"
	"postern/engine/log"
	"postern/esp"
	"postern/ike"
)

// fakeDevice is a TUN device: packets sent to in come out of ReadBatch, what is
// written is kept if keep is set.
type fakeDevice struct {
	in     chan []byte
	closed chan struct{}
	once   sync.Once
	fail   error // what ReadBatch answers instead, if set

	mu      sync.Mutex
	keep    bool
	written [][]byte
	wrote   int
	got     chan struct{}
}

func newFakeDevice() *fakeDevice {
	return &fakeDevice{in: make(chan []byte, 1024), closed: make(chan struct{}), keep: true, got: make(chan struct{}, 1)}
}

func (f *fakeDevice) Name() string     { return "fake0" }
func (f *fakeDevice) Features() string { return "fake-tun" }

func (f *fakeDevice) ReadBatch(bufs [][]byte, sizes []int, off int) (int, error) {
	if f.fail != nil {
		return 0, f.fail
	}
	select {
	case p := <-f.in:
		if p == nil { // see lose
			f.fail = errLost
			return 0, f.fail
		}
		sizes[0] = copy(bufs[0][off:], p)
		return 1, nil
	case <-f.closed:
		return 0, os.ErrClosed
	}
}

func (f *fakeDevice) WriteBatch(bufs [][]byte, off int) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wrote += len(bufs)
	if f.keep {
		for _, b := range bufs {
			f.written = append(f.written, append([]byte(nil), b[off:]...))
		}
	}
	select {
	case f.got <- struct{}{}:
	default:
	}
	return len(bufs), nil
}

func (f *fakeDevice) Close() error {
	f.once.Do(func() { close(f.closed) })
	return nil
}

// count returns how many packets were written.
func (f *fakeDevice) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.wrote
}

func (f *fakeDevice) packets() [][]byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([][]byte(nil), f.written...)
}

// fakeSocket keeps what is sent, and reads from in. route, if set, gets each datagram
// instead.
type fakeSocket struct {
	in     chan esp.Datagram
	closed chan struct{}
	once   sync.Once
	route  func(d *esp.Datagram)

	mu   sync.Mutex
	keep bool
	sent []esp.Datagram
	n    int
	err  error // what WriteBatch answers for the first datagram, if set
}

func newFakeSocket() *fakeSocket {
	return &fakeSocket{in: make(chan esp.Datagram, 1024), closed: make(chan struct{}), keep: true}
}

func (f *fakeSocket) Features() string { return "fake-socket" }

func (f *fakeSocket) ReadBatch(d []esp.Datagram) (int, error) {
	select {
	case p := <-f.in:
		d[0].N = copy(d[0].Buf, p.Buf[:p.N])
		d[0].Local, d[0].Remote, d[0].TOS, d[0].TTL, d[0].Whole = p.Local, p.Remote, p.TOS, p.TTL, p.Whole
		return 1, nil
	case <-f.closed:
		return 0, os.ErrClosed
	}
}

func (f *fakeSocket) WriteBatch(d []esp.Datagram) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		err := f.err
		f.err = nil
		return 0, err
	}
	f.n += len(d)
	for i := range d {
		if f.route != nil {
			f.route(&d[i])
			continue
		}
		if f.keep {
			c := d[i]
			c.Buf = append([]byte(nil), c.Buf[:c.N]...)
			f.sent = append(f.sent, c)
		}
	}
	return len(d), nil
}

func (f *fakeSocket) Close() error {
	f.once.Do(func() { close(f.closed) })
	return nil
}

func (f *fakeSocket) datagrams() []esp.Datagram {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]esp.Datagram(nil), f.sent...)
}

// testRandom returns a source of reproducible octets.
func testRandom(seed uint64) func([]byte) {
	r := rand.New(rand.NewPCG(seed, 1))
	return func(b []byte) {
		for i := range b {
			b[i] = byte(r.Uint32())
		}
	}
}

// testPath is a datapath over fakes, driven by hand. What hides a field of the datapath is
// that of its first worker.
type testPath struct {
	outer6 bool // addLoop uses IPv6 outside
	*datapath
	tun      *fakeDevice
	out      *outbound
	in       [numSocks]*inbound
	fakes    [numSocks]*fakeSocket
	now      time.Duration
	acquired []string
	busy     bool            // the IKE loop takes no wishes
	unknowns []unknownPacket // packets without an SA that the loop was told of
	limits   []string
	soft     esp.Usage // of the SAs that addLoop makes
	hard     esp.Usage
	flusher  *outbound
}

func newTestPath(t testing.TB, p board.Profile) *testPath {
	t.Helper()
	return newTestPathOf(t, p, 1)
}

// newTestPathOf has so many workers, all of which share the fakes.
func newTestPathOf(t testing.TB, p board.Profile, workers int) *testPath {
	t.Helper()
	d, err := newDatapath(p, workers, testRandom(7))
	if err != nil {
		t.Fatalf("newDatapath: %v", err)
	}
	tp := &testPath{datapath: d, tun: newFakeDevice(), out: d.out[0], now: time.Second}
	d.tuns = []Device{tp.tun}
	for s := range d.socks {
		tp.in[s] = d.in[s][0]
		tp.fakes[s] = newFakeSocket()
		d.socks[s] = []Socket{tp.fakes[s]}
	}
	d.log = log.New(discard{}, log.Error)
	d.clock = func() time.Duration { return tp.now }
	d.ports.IKE, d.ports.NATT = 500, 4500
	d.acquire = func(p *policy, f *esp.Flow) bool {
		if tp.busy {
			return false
		}
		tp.acquired = append(tp.acquired, p.conn+"/"+p.child)
		return true
	}
	d.limit = func(spi uint32, hard bool) bool {
		if !tp.busy {
			tp.limits = append(tp.limits, fmt.Sprintf("%08x %v", spi, hard))
		}
		return !tp.busy
	}
	d.moved = func(*inSA, ike.Path) bool { return !tp.busy }
	d.unknown = func(spi uint32, p ike.Path) bool {
		tp.unknowns = append(tp.unknowns, unknownPacket{spi, p})
		return !tp.busy
	}
	tp.flusher = newOutbound(d, d.ctxLoop(), make([][]byte, 1), flowCache{})
	return tp
}

// unknownPacket is a packet without an SA.
type unknownPacket struct {
	spi  uint32
	path ike.Path
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

// quiet makes the fakes count only, for measurements.
func (tp *testPath) quiet() {
	tp.tun.keep = false
	for _, s := range tp.fakes {
		s.keep = false
	}
}

func sel(prefix string) []esp.Selector {
	return []esp.Selector{esp.SelectorFromPrefix(netip.MustParsePrefix(prefix))}
}

func protect(conn, child, local, remote string) policySpec {
	return policySpec{Policy: esp.Policy{Action: esp.Protect, LocalTS: sel(local), RemoteTS: sel(remote)}, conn: conn, child: child, wait: true, acquire: true}
}

// testSuites are one AEAD of each kind and CBC with each kind of HMAC.
var testSuites = []esp.Suite{
	{Encr: esp.EncrAESGCM16, KeyBits: 128},
	{Encr: esp.EncrChaCha20Poly1305, ESN: true},
	{Encr: esp.EncrAESCBC, KeyBits: 128, Integ: esp.IntegHMACSHA196},
	{Encr: esp.EncrAESCBC, KeyBits: 256, Integ: esp.IntegHMACSHA256_128, ESN: true},
	{Encr: esp.EncrAESCCM8IIV, KeyBits: 128},
	{Encr: esp.EncrAESCTR, KeyBits: 128, Integ: esp.IntegAESCMAC96, ESN: true},
}

// testSA returns an SA whose keys follow from its SPI: the two ends have the same.
func testSA(s esp.Suite, dir esp.Direction, spi uint32, local, remote string) esp.SA {
	e, i := s.KeyLens()
	sa := esp.SA{SPI: spi, Dir: dir, Suite: s, EncrKey: make([]byte, e), IntegKey: make([]byte, i), ReplayWindow: 64}
	r := testRandom(uint64(spi))
	r(sa.EncrKey)
	r(sa.IntegKey)
	sa.Local = netip.MustParseAddrPort(local)
	sa.Remote = netip.MustParseAddrPort(remote)
	return sa
}

// addLoop installs a pair of SAs that are each other's peer: what the outbound SA
// seals, the inbound SA opens. The selectors are as seen from the outbound side.
func (tp *testPath) addLoop(t testing.TB, s esp.Suite, encap bool, conn, child, local, remote string, bind bool) (*inSA, *outSA) {
	t.Helper()
	spi, ok := tp.sad.alloc()
	if !ok {
		t.Fatal("SAD is full")
	}
	here, there := "192.0.2.1:4500", "192.0.2.2:4500"
	if tp.outer6 {
		here, there = "[2001:db8::1]:4500", "[2001:db8::2]:4500"
	}
	out := testSA(s, esp.Out, spi, here, there)
	out.Encap, out.Soft, out.Hard = encap, tp.soft, tp.hard
	o, err := esp.NewOutbound(&out, tp.outContexts())
	if err != nil {
		t.Fatal(err)
	}
	in := testSA(s, esp.In, spi, there, here)
	in.Soft, in.Hard = tp.soft, tp.hard
	i, err := esp.NewInbound(&in, tp.inContexts())
	if err != nil {
		t.Fatal(err)
	}
	osa := &outSA{suite: s, spi: spi, inbound: spi, out: o, localTS: sel(local), remoteTS: sel(remote), conn: conn, child: child, esn: s.ESN}
	isa := &inSA{spi: spi, in: i, localTS: sel(remote), remoteTS: sel(local), nets: netPairOf(sel(remote), sel(local)), conn: conn, child: child}
	isa.is.set(inEncap, encap)
	if o.Limited() {
		osa.limits, isa.limits = new(limits), new(limits)
	}
	osa.path.Store(tp.sad.pathOf(out.Proto, out.Local.Addr(), out.Remote, out.Encap))
	isa.remote.Store(tp.sad.remoteAt(in.Remote))
	if err := tp.sad.addIn(isa); err != nil {
		t.Fatal(err)
	}
	if _, err := tp.sad.addOut(osa); err != nil {
		t.Fatal(err)
	}
	if bind {
		tp.spd.bind(osa)
	}
	return isa, osa
}

// put places a packet into the TUN reader's batch.
func (tp *testPath) put(i int, pkt []byte) {
	tp.out.sizes[i] = copy(tp.out.bufs[i][headRoom:], pkt)
}

// send takes packets through the way out.
func (tp *testPath) send(pkts ...[]byte) {
	for i, p := range pkts {
		tp.put(i, p)
	}
	tp.out.batch(len(pkts))
}

// receive takes datagrams through the way in of a socket.
func (tp *testPath) receive(s sockID, ds ...esp.Datagram) {
	in := tp.in[s]
	for i, d := range ds {
		in.batch[i] = esp.Datagram{Buf: in.bufs[i], N: copy(in.bufs[i], d.Buf[:d.N]), Local: d.Local, Remote: d.Remote, TOS: d.TOS, TTL: d.TTL, Whole: d.Whole}
	}
	in.process(len(ds))
}

func (tp *testPath) want(t *testing.T, c counter, n uint64) {
	t.Helper()
	if got := tp.counts.get(c); got != n {
		t.Errorf("counter %s is %d, want %d", c, got, n)
	}
}

// udp4 is an IPv4 UDP packet of n octets.
func udp4(src, dst string, sport, dport uint16, n int) []byte {
	p := make([]byte, n)
	p[0], p[8], p[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(p[2:], uint16(n))
	s, d := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	copy(p[12:], s[:])
	copy(p[16:], d[:])
	binary.BigEndian.PutUint16(p[10:], checksum(p[:20]))
	binary.BigEndian.PutUint16(p[20:], sport)
	binary.BigEndian.PutUint16(p[22:], dport)
	binary.BigEndian.PutUint16(p[24:], uint16(n-20))
	for i := 28; i < n; i++ {
		p[i] = byte(i)
	}
	return p
}

// udp6 is an IPv6 UDP packet of n octets.
func udp6(src, dst string, sport, dport uint16, n int) []byte {
	p := make([]byte, n)
	p[0], p[6], p[7] = 0x60, 17, 64
	binary.BigEndian.PutUint16(p[4:], uint16(n-40))
	s, d := netip.MustParseAddr(src).As16(), netip.MustParseAddr(dst).As16()
	copy(p[8:], s[:])
	copy(p[24:], d[:])
	binary.BigEndian.PutUint16(p[40:], sport)
	binary.BigEndian.PutUint16(p[42:], dport)
	binary.BigEndian.PutUint16(p[44:], uint16(n-40))
	return p
}

// checksum is the Internet checksum (RFC 1071): 0 over a header that has its own.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
