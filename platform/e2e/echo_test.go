//go:build linux

package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mark is what the tests put into packets, so that it can be looked for on the WAN.
const mark = "MARIGOLD"

// echoes sends echo requests from a namespace and keeps account of each answer. The ping
// program does not do: it stops waiting for the last answer after two round trips, which
// on a loaded machine is too soon, and does not say which ones are missing.
type echoes struct {
	t    *testing.T
	conn *net.IPConn
	to   netip.Addr
	id   uint16
	size int

	mu       sync.Mutex
	sent     []time.Time // by sequence number
	answered []bool
	took     []time.Duration // of those answered, in the order of the answers
	count    int             // of answered
	wg       sync.WaitGroup
	stopped  chan struct{}
}

// echoOptions differ from the usual.
type echoOptions struct {
	every time.Duration // between requests; 0: 20 ms
	wait  time.Duration // for the last answers; 0: 2 s
	size  int           // octets behind the ICMP header; 0: 56. Large ones are fragmented
	from  netip.Addr    // source address; zero: the kernel's choice
}

var echoIDs atomic.Uint32

// openEchoes opens a raw ICMP socket in the namespace.
func (s *site) openEchoes(ns string, to netip.Addr, o echoOptions) *echoes {
	s.t.Helper()
	e := &echoes{t: s.t, to: to, id: uint16(echoIDs.Add(1)), size: max(o.size, 56), stopped: make(chan struct{})}
	network := "ip4:icmp"
	if to.Is6() {
		network = "ip6:ipv6-icmp"
	}
	var from *net.IPAddr
	if o.from.IsValid() {
		from = &net.IPAddr{IP: o.from.AsSlice()}
	}
	err := inNamespace(ns, func() (err error) {
		if e.conn, err = net.ListenIP(network, from); err != nil {
			return err
		}
		raw, err := e.conn.SyscallConn()
		if err != nil {
			return err
		}
		// An answer that waits too long for this process would be taken for lost. Refused
		// without privileges, which do not matter then.
		raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20) })
		// Without this, a request larger than the path's MTU is refused and not fragmented.
		var opt error
		err = raw.Control(func(fd uintptr) {
			if to.Is6() {
				opt = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT)
			} else {
				opt = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
			}
		})
		return cmpErr(err, opt)
	})
	if err != nil {
		s.t.Fatalf("ICMP socket in %s: %v", ns, err)
	}
	s.t.Cleanup(func() { e.conn.Close() })
	e.wg.Add(1)
	go e.receive()
	return e
}

// cmpErr returns the first error that is one.
func cmpErr(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// request returns an echo request with the mark all over it.
func (e *echoes) request(seq uint16) []byte {
	typ := byte(8)
	if e.to.Is6() {
		typ = 128 // the kernel fills in its checksum
	}
	b := []byte{typ, 0, 0, 0, byte(e.id >> 8), byte(e.id), byte(seq >> 8), byte(seq)}
	b = append(b, bytes.Repeat([]byte(mark), e.size/len(mark)+1)[:e.size]...)
	if e.to.Is4() {
		var sum uint32
		for i := 0; i < len(b)-1; i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		if len(b)%2 == 1 {
			sum += uint32(b[len(b)-1]) << 8
		}
		for sum>>16 != 0 {
			sum = sum>>16 + sum&0xffff
		}
		binary.BigEndian.PutUint16(b[2:], ^uint16(sum))
	}
	return b
}

// send sends the next request. That the kernel refuses it (no route, prohibited) counts
// as an unanswered request.
func (e *echoes) send() {
	e.mu.Lock()
	seq := len(e.sent)
	e.sent = append(e.sent, time.Now())
	e.answered = append(e.answered, false)
	e.mu.Unlock()
	e.conn.WriteToIP(e.request(uint16(seq)), &net.IPAddr{IP: e.to.AsSlice()})
}

// receive takes the answers until the socket is closed.
func (e *echoes) receive() {
	defer e.wg.Done()
	b := make([]byte, 65536)
	want := byte(0)
	if e.to.Is6() {
		want = 129
	}
	for {
		n, _, err := e.conn.ReadFromIP(b)
		if err != nil {
			if ne, ok := err.(net.Error); ok && ne.Timeout() || strings.Contains(err.Error(), "closed") {
				return
			}
			continue // an ICMP error about an earlier request
		}
		if n != 8+e.size || b[0] != want || binary.BigEndian.Uint16(b[4:]) != e.id {
			continue
		}
		seq := int(binary.BigEndian.Uint16(b[6:]))
		e.mu.Lock()
		if seq < len(e.sent) && !e.answered[seq] && bytes.Equal(b[8:n], e.request(0)[8:]) {
			e.answered[seq] = true
			e.took = append(e.took, time.Since(e.sent[seq]))
			e.count++
		}
		e.mu.Unlock()
	}
}

// answers returns how many requests were answered so far.
func (e *echoes) answers() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.count
}

// finish waits for what is missing, closes the socket and returns the result.
func (e *echoes) finish(wait time.Duration) result {
	eventually(wait, func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.count == len(e.sent)
	})
	e.conn.Close()
	e.wg.Wait()
	r := result{to: e.to, sent: len(e.sent), answered: e.count}
	for i, ok := range e.answered {
		if !ok {
			r.missing = append(r.missing, fmt.Sprintf("#%d of %s", i, e.sent[i].UTC().Format("15:04:05.000")))
		}
	}
	return r
}

// result is what became of a number of echo requests.
type result struct {
	to             netip.Addr
	sent, answered int
	missing        []string // number and time of those without an answer
}

// lost returns how many were not answered.
func (r result) lost() int { return r.sent - r.answered }

func (r result) String() string {
	if r.lost() == 0 {
		return fmt.Sprintf("all of %d echo requests to %v were answered", r.sent, r.to)
	}
	return fmt.Sprintf("%d of %d echo requests to %v were answered; not %s", r.answered, r.sent, r.to,
		strings.Join(r.missing[:min(12, len(r.missing))], ", "))
}

// pings sends n echo requests from a namespace and waits for the answers.
func (s *site) pings(ns string, to netip.Addr, n int, o ...echoOptions) result {
	s.t.Helper()
	opt := echoOptions{}
	if len(o) > 0 {
		opt = o[0]
	}
	if opt.every == 0 {
		opt.every = 20 * time.Millisecond
	}
	if opt.wait == 0 {
		opt.wait = 2 * time.Second
	}
	e := s.openEchoes(ns, to, opt)
	for i := range n {
		if i > 0 {
			time.Sleep(opt.every)
		}
		e.send()
	}
	return e.finish(opt.wait)
}

// briefly is for echo requests whose answers are not to come.
var briefly = echoOptions{wait: 700 * time.Millisecond}

// mustPing fails the test unless all echo requests from a host of LAN A to one of LAN B, and
// back, are answered.
func (s *site) mustPing(t *testing.T, v6 bool, ds ...daemon) {
	t.Helper()
	to, back := hostB4, hostA4
	if v6 {
		to, back = hostB6, hostA6
	}
	if r := s.pings(s.lanA, to, 5); r.lost() != 0 {
		t.Errorf("LAN A to LAN B: %v%s", r, logs(ds...))
	}
	if r := s.pings(s.lanB, back, 5); r.lost() != 0 {
		t.Errorf("LAN B to LAN A: %v%s", r, logs(ds...))
	}
}

// pinger sends echo requests until it is stopped.
type pinger struct {
	*echoes
	end  chan struct{}
	idle chan struct{}
}

// startPinger sends rate echo requests per second.
func (s *site) startPinger(ns string, to netip.Addr, rate int, o ...echoOptions) *pinger {
	s.t.Helper()
	opt := echoOptions{}
	if len(o) > 0 {
		opt = o[0]
	}
	p := &pinger{s.openEchoes(ns, to, opt), make(chan struct{}), make(chan struct{})}
	go func() {
		defer close(p.idle)
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				p.send()
			case <-p.end:
				return
			}
		}
	}()
	return p
}

// stop ends it, waits for the last answers and returns the result. On a machine that has
// other things to do it goes on first until there is something to judge by.
func (p *pinger) stop() result {
	eventually(10*time.Second, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.sent) >= 60
	})
	close(p.end)
	<-p.idle
	return p.finish(2 * time.Second)
}
