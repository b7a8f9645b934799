package bench

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"postern/board"
	"postern/esp"
	"postern/ike"
)

// What the fakes take for a packet, and the clock for being read.
const (
	tick      = 10 * time.Microsecond
	fromTUN   = 1000
	toSocket  = 500
	fromSock  = 700
	toTUN     = 2000
	injection = 100 * time.Microsecond // must not be seen in any figure
)

// fakePath is a TUN device and two sockets in memory, on a virtual clock.
type fakePath struct {
	t        testing.TB
	clock    time.Duration
	queue    [][]byte // in the device
	wire     [][]byte // between the sockets
	wrote    int
	stray    []byte                      // comes out of the device ahead of the first packet
	lose     func(dgram int) bool        // on the wire
	change   func(dgram int, pkt []byte) // on the wire
	passed   int
	sent     [2][]byte // injected last: what has to come back for it, in turn
	closed   chan struct{}
	closings int
}

func newFakePath(t testing.TB) *fakePath { return &fakePath{t: t, closed: make(chan struct{})} }

func (f *fakePath) now() time.Duration { f.clock += tick; return f.clock }

func (f *fakePath) path() *Path {
	return &Path{
		Device: f, Near: fakeSocket{f, false}, Far: fakeSocket{f, true}, To: netip.MustParseAddrPort("127.0.0.1:4"),
		Inject: f.inject, TUNFeatures: "tun features", UDPFeatures: "udp features", Private: true,
		Close: func() error {
			if f.closings++; f.closings == 1 {
				close(f.closed)
			}
			return nil
		},
	}
}

func (f *fakePath) inject(pkt []byte, n, segment int) error {
	f.clock += injection
	if f.stray != nil {
		f.queue = append(f.queue, f.stray)
		f.stray = nil
	}
	if segment > 0 {
		n, pkt = (len(pkt)-ipv4Header-tcpHeader)/segment, tcpPacket(segment)
	}
	if n > mostInjected || len(pkt) > pathMTU {
		f.t.Errorf("%d packets of %d octets are injected at once", n, len(pkt))
	}
	for range n {
		f.queue = append(f.queue, pkt)
	}
	f.sent[0] = pkt
	return nil
}

// wait stands for a read that finds nothing.
func (f *fakePath) wait() error { <-f.closed; return os.ErrClosed }

func (f *fakePath) ReadBatch(bufs [][]byte, sizes []int, off int) (int, error) {
	if len(f.queue) == 0 {
		return 0, f.wait()
	}
	n := min(len(f.queue), len(bufs))
	for i := range n {
		sizes[i] = copy(bufs[i][off:], f.queue[i])
	}
	f.queue = f.queue[n:]
	f.clock += time.Duration(n) * fromTUN
	return n, nil
}

func (f *fakePath) WriteBatch(bufs [][]byte, off int) (int, error) {
	for _, b := range bufs {
		if !bytes.Equal(b[off:], f.sent[0]) {
			f.t.Fatalf("% x... came through the tunnel for % x...", b[off:off+40], f.sent[0][:40])
		}
	}
	f.wrote += len(bufs)
	f.clock += time.Duration(len(bufs)) * toTUN
	return len(bufs), nil
}

type fakeSocket struct {
	f   *fakePath
	far bool
}

func (s fakeSocket) WriteBatch(d []esp.Datagram) (int, error) {
	f := s.f
	for i := range d {
		if s.far || d[i].Remote.String() != "127.0.0.1:4" || !d[i].Local.IsLoopback() {
			f.t.Fatalf("a datagram goes from %v to %v", d[i].Local, d[i].Remote)
		}
		f.passed++
		if f.lose != nil && f.lose(f.passed) {
			continue
		}
		pkt := bytes.Clone(d[i].Buf[:d[i].N])
		if f.change != nil {
			f.change(f.passed, pkt)
		}
		f.wire = append(f.wire, pkt)
	}
	f.clock += time.Duration(len(d)) * toSocket
	return len(d), nil
}

func (s fakeSocket) ReadBatch(d []esp.Datagram) (int, error) {
	f := s.f
	if len(f.wire) == 0 {
		return 0, f.wait()
	}
	n := min(len(f.wire), len(d))
	for i := range n {
		d[i].N = copy(d[i].Buf, f.wire[i])
	}
	f.wire = f.wire[n:]
	f.clock += time.Duration(n) * fromSock
	return n, nil
}

// system is one with a path of the fake's.
func (f *fakePath) system() System {
	return System{Now: f.now, Proposals: func(p ike.Protocol) []ike.Proposal { return ike.DefaultProposals(p, ike.AESFirst) }, OpenPath: func(mtu int) (*Path, error) {
		if mtu != pathMTU {
			f.t.Errorf("a path for packets of %d octets is opened", mtu)
		}
		return f.path(), nil
	}}
}

const budget = 60 * time.Millisecond

func TestRunMeasuresEachHalfOfThePath(t *testing.T) {
	for _, prof := range board.All() {
		f := newFakePath(t)
		f.stray = make([]byte, 48) // the kernel's own: IPv6 without end
		f.stray[0] = 0x60
		r, err := Run(f.system(), Options{Budget: budget, Profile: prof})
		if err != nil || r.PathErr != nil {
			t.Fatal(err, r.PathErr)
		}
		if len(r.Algorithms) != 4 || len(r.Flows) != 3 || !r.Private || r.TUNFeatures != "tun features" || r.UDPFeatures != "udp features" {
			t.Fatalf("the result is %+v", r)
		}
		for _, a := range r.Algorithms {
			if a.Small.Seal <= 0 || a.Small.Open <= 0 || a.Large.Seal <= 0 || a.Large.Open <= 0 {
				t.Errorf("%s was not measured: %v, %v", a.Name, a.Small, a.Large)
			}
		}
		if f.wrote == 0 || f.wrote != f.passed {
			t.Errorf("%s: %d packets were sent, %d came back out of the tunnel", prof.Name, f.passed, f.wrote)
		}
		for i, flow := range r.Flows {
			n := int64(prof.Buffers / shareTUN)
			if i == 0 {
				n = mostSegments
			}
			want := Cost{fromTUN + toSocket + int64(tick)/n, fromSock + toTUN + int64(tick)/n}
			if d := flow.Cost.Seal - want.Seal; d < -1 || d > 1 {
				t.Errorf("%s, %s of %d octets: sending costs %d ns, want %d: injection is not part of it", prof.Name, flow.Name, flow.Payload, flow.Cost.Seal, want.Seal)
			}
			if d := flow.Cost.Open - want.Open; d < -1 || d > 1 {
				t.Errorf("%s, %s of %d octets: receiving costs %d ns, want %d", prof.Name, flow.Name, flow.Payload, flow.Cost.Open, want.Open)
			}
		}
		if f.closings == 0 {
			t.Error("the path is still open")
		}
	}
}

func TestRunWithoutAPathSaysWhy(t *testing.T) {
	f := newFakePath(t)
	sys := f.system()
	sys.OpenPath = func(int) (*Path, error) { return nil, errors.New("no privilege") }
	r, err := Run(sys, Options{Budget: budget, Profile: board.Small})
	if err != nil || len(r.Algorithms) != 4 || r.PathErr == nil || r.PathErr.Error() != "no privilege" || r.TUNFeatures != "" {
		t.Errorf("the result is %+v, %v", r, err)
	}
	sys.OpenPath = nil
	if r, err = Run(sys, Options{Budget: budget, Profile: board.Small}); err != nil || r.PathErr == nil {
		t.Errorf("on a system without TUN the result is %+v, %v", r, err)
	}
}

func TestLostPacketsEndTheMeasurementOfThePath(t *testing.T) {
	for name, hurt := range map[string]func(*fakePath){
		"lost":    func(f *fakePath) { f.lose = func(n int) bool { return n == 100 } },
		"damaged": func(f *fakePath) { f.change = func(n int, pkt []byte) { pkt[len(pkt)-1] ^= byte(n / 100 & 1) } },
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFakePath(t)
			hurt(f)
			began := time.Now()
			r, err := Run(f.system(), Options{Budget: budget, Profile: board.Small})
			if err != nil || r.PathErr == nil || len(r.Algorithms) != 4 {
				t.Fatalf("%s: the result is %+v, %v", name, r, err)
			}
			if s := r.PathErr.Error(); !strings.Contains(s, "packets passed the tunnel") {
				t.Errorf("%s: the error is %q and does not say what was lost", name, s)
			}
			if took := time.Since(began); took > budget+pathPatience {
				t.Errorf("%s: it gave up after %v", name, took)
			}
		})
	}
}

func TestStopClosesThePathAndEndsTheRun(t *testing.T) {
	f := newFakePath(t)
	stop := make(chan struct{})
	f.lose = func(n int) bool {
		if n == 200 {
			close(stop)
		}
		return n >= 200
	}
	r, err := Run(f.system(), Options{Budget: budget, Profile: board.Small, Stop: stop})
	if !errors.Is(err, ErrStopped) || r != nil || f.closings == 0 {
		t.Errorf("stopped while the path waits, it ends with %v, %v; the path was closed %d times", r, err, f.closings)
	}
	if _, err = Run(f.system(), Options{Budget: budget, Profile: board.Small, Stop: stop}); !errors.Is(err, ErrStopped) {
		t.Errorf("stopped before, it ends with %v", err)
	}
}

func TestInjectedPacketsAreWhole(t *testing.T) {
	for _, n := range []int{1, 200, LargePacket} {
		pkt := udpPacket(n)
		pseudo := sum(pkt[12:20]) + esp.ProtoUDP + uint32(n+udpHeader)
		if fold(sum(pkt[:ipv4Header])) != 0xffff || fold(pseudo+sum(pkt[ipv4Header:])) != 0xffff {
			t.Errorf("a UDP packet of %d octets has a wrong checksum", n)
		}
	}
	if n := len(tcpPacket(mostSegments * (pathMTU - ipv4Header - tcpHeader))); n > 65535 {
		t.Errorf("the super-packet has %d octets", n)
	}
	if !pathTarget.IsLinkLocalMulticast() {
		t.Errorf("%v might be forwarded", pathTarget)
	}
}
