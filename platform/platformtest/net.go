package platformtest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"

	"postern/esp"
)

// protoESP stands for the raw sockets of IP protocol 50, which have no ports.
const (
	protoUDP = 17
	protoESP = 50
)

// meta is what travels beside a packet.
type meta struct {
	from, to netip.AddrPort
	tos      uint8
}

// Packet is a packet on its way through a Net. A hook may change everything but Proto;
// Payload may be changed in place, and is not valid after the hook.
type Packet struct {
	Proto    uint8 // 17, or 50 with ports 0
	From, To netip.AddrPort
	TOS      uint8
	Payload  []byte
}

// Verdict is what becomes of a packet.
type Verdict uint8

// The verdicts of a hook.
const (
	Pass      Verdict = iota
	Drop              // never arrives
	Duplicate         // arrives twice
	Hold              // arrives after the next packet that passes: the two change places
)

// Net is a network that joins hosts without delay. Its zero value is not usable.
// Any number of goroutines may send at once.
type Net struct {
	mu   sync.Mutex
	rng  *rand.Rand
	loss int // of 1000
	dup  int
	swap int
	hook func(*Packet) Verdict
	pkt  Packet // the one under way, so that a hook costs no allocation
	held struct {
		used bool
		buf  []byte
		p    Packet
	}
	socks []*Socket
	size  int
	stats Stats
}

// Stats counts what became of the packets.
type Stats struct {
	Sent       int
	Dropped    int // by chance or by the hook
	Duplicated int
	Held       int
	Unheard    int // nobody listens there
	Overflown  int // the receiver did not read
}

// NewNet makes a network whose chances depend on the seed, for packets of at most size
// octets.
func NewNet(seed uint64, size int) *Net {
	n := &Net{rng: rand.New(rand.NewPCG(seed, 0x706f737465726e)), size: size}
	n.held.buf = make([]byte, size)
	return n
}

// SetFaults sets how many of a thousand packets are lost, duplicated, and held back
// until another one has passed.
func (n *Net) SetFaults(loss, duplicate, reorder int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loss, n.dup, n.swap = loss, duplicate, reorder
}

// SetHook sets a function that sees each packet before the chances do; nil takes it
// away. It runs under the network's lock and must not send.
func (n *Net) SetHook(f func(*Packet) Verdict) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hook = f
}

// Stats returns the counts up to now.
func (n *Net) Stats() Stats {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stats
}

// Flush delivers the packet that is held back, if there is one.
func (n *Net) Flush() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.release()
}

// Host is a host of the network: a set of addresses.
type Host struct {
	net   *Net
	addrs []netip.Addr
	next  uint16 // for port 0
}

// Host adds a host with those addresses; of each family the first one is what it sends
// from when nothing else is said.
func (n *Net) Host(addrs ...string) *Host {
	h := &Host{net: n, next: 40000}
	for _, a := range addrs {
		h.addrs = append(h.addrs, netip.MustParseAddr(a))
	}
	return h
}

// socketDepth is how many packets wait for a reader.
const socketDepth = 256

// Socket is a UDP or raw ESP socket of a host.
type Socket struct {
	host *Host
	v6   bool
	// proto and port are what it listens on.
	proto uint8
	port  uint16
	in    *ring
}

// ListenUDP binds to a port on all the host's addresses of the family of addr, which is
// unspecified; port 0 chooses one.
func (h *Host) ListenUDP(addr netip.AddrPort) (*Socket, error) {
	if !addr.Addr().IsUnspecified() {
		return nil, fmt.Errorf("listen on %v: neither 0.0.0.0 nor :: was asked for", addr)
	}
	return h.listen(addr.Addr().Is6(), protoUDP, addr.Port())
}

// ListenESP opens a raw socket for ESP.
func (h *Host) ListenESP(v6 bool) (*Socket, error) { return h.listen(v6, protoESP, 0) }

func (h *Host) listen(v6 bool, proto uint8, port uint16) (*Socket, error) {
	n := h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if proto == protoUDP && port == 0 {
		port, h.next = h.next, h.next+1
	}
	for _, s := range n.socks {
		if s.host == h && s.v6 == v6 && s.proto == proto && s.port == port && proto == protoUDP {
			return nil, fmt.Errorf("bind UDP port %d: in use", port)
		}
	}
	s := &Socket{h, v6, proto, port, newRing(socketDepth, n.size)}
	n.socks = append(n.socks, s)
	return s, nil
}

// LocalPort returns the UDP port, 0 on a raw socket.
func (s *Socket) LocalPort() uint16 { return s.port }

// ReadBatch waits for datagrams and fills in N, Local, Remote and TOS of at most len(d).
// One that does not fit its Buf arrives with N 0.
func (s *Socket) ReadBatch(d []esp.Datagram) (int, error) {
	if err := s.in.wait(); err != nil {
		return 0, err
	}
	defer s.in.mu.Unlock()
	n := 0
	for ; n < len(d) && s.in.n > 0; n++ {
		m := s.in.take()
		d[n].N = 0
		if m.n <= len(d[n].Buf) {
			d[n].N = copy(d[n].Buf, m.buf[:m.n])
		}
		d[n].Local, d[n].Remote, d[n].TOS = m.meta.to.Addr(), m.meta.from, m.meta.tos
	}
	return n, nil
}

var (
	errFamily = errors.New("send: the peer is not of the socket's family")
	errSource = errors.New("send: the host does not have the source address")
	errLarge  = errors.New("send: larger than the network's packets")
)

// WriteBatch sends the datagrams, from Local where that is valid.
func (s *Socket) WriteBatch(d []esp.Datagram) (int, error) {
	for i := range d {
		if err := s.send(&d[i]); err != nil {
			return i, err
		}
	}
	return len(d), nil
}

func (s *Socket) send(d *esp.Datagram) error {
	if !d.Remote.Addr().IsValid() || d.Remote.Addr().Is6() != s.v6 {
		return errFamily
	}
	if d.N > s.host.net.size || d.N > len(d.Buf) {
		return errLarge
	}
	n := s.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.listening(s) {
		return os.ErrClosed
	}
	src, ok := s.host.source(s.v6, d.Local)
	if !ok {
		return errSource
	}
	to := d.Remote
	if s.proto == protoESP {
		to = netip.AddrPortFrom(to.Addr(), 0)
	}
	n.pkt = Packet{s.proto, netip.AddrPortFrom(src, s.port), to, d.TOS, d.Buf[:d.N]}
	n.pass(&n.pkt)
	n.pkt.Payload = nil
	return nil
}

func (n *Net) listening(s *Socket) bool {
	for _, x := range n.socks {
		if x == s {
			return true
		}
	}
	return false
}

func (h *Host) source(v6 bool, want netip.Addr) (netip.Addr, bool) {
	for _, a := range h.addrs {
		if a.Is6() == v6 && (!want.IsValid() || a == want) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

func (n *Net) has(h *Host, a netip.Addr) bool {
	for _, x := range h.addrs {
		if x == a {
			return true
		}
	}
	return false
}

// pass sends a packet through the hook and the chances; n.mu is held.
func (n *Net) pass(p *Packet) {
	n.stats.Sent++
	v := Pass
	if n.hook != nil {
		v = n.hook(p)
	}
	if v == Pass {
		v = n.chance()
	}
	switch v {
	case Drop:
		n.stats.Dropped++
		return
	case Hold:
		if !n.held.used {
			n.stats.Held++
			n.held.used, n.held.p = true, *p
			n.held.p.Payload = n.held.buf[:copy(n.held.buf, p.Payload)]
			return
		}
	case Duplicate:
		n.stats.Duplicated++
		n.deliver(p)
	}
	n.deliver(p)
	n.release()
}

// chance draws three numbers for each packet, whatever the rates are, so that a rate that
// changes does not change what happens to later packets.
func (n *Net) chance() Verdict {
	loss, dup, swap := n.rng.IntN(1000), n.rng.IntN(1000), n.rng.IntN(1000)
	switch {
	case loss < n.loss:
		return Drop
	case dup < n.dup:
		return Duplicate
	case swap < n.swap:
		return Hold
	}
	return Pass
}

func (n *Net) release() {
	if n.held.used {
		n.held.used = false
		n.deliver(&n.held.p)
	}
}

// deliver gives the packet to every socket that listens for it: to all raw ones, as the
// kernel does, and to the one that has the UDP port.
func (n *Net) deliver(p *Packet) {
	heard := false
	for _, s := range n.socks {
		if s.proto != p.Proto || s.port != p.To.Port() || s.v6 != p.To.Addr().Is6() || !n.has(s.host, p.To.Addr()) {
			continue
		}
		heard = true
		if !s.in.put(p.Payload, meta{p.From, p.To, p.TOS}) {
			n.stats.Overflown++
		}
	}
	if !heard {
		n.stats.Unheard++
	}
}

// Close wakes the reader; what is sent to the port afterwards is not heard.
func (s *Socket) Close() error {
	n := s.host.net
	n.mu.Lock()
	for i, x := range n.socks {
		if x == s {
			n.socks = append(n.socks[:i:i], n.socks[i+1:]...)
			break
		}
	}
	n.mu.Unlock()
	return s.in.close()
}
