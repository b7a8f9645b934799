//go:build linux

package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
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

// The leak test: packets of every class that selectors can tell apart are sent without pause, in both
// directions, while everything happens to the daemons that can happen to them. What the SPD
// protects or discards is never seen on the WAN in clear:
//
//   - from the moment on when the daemon has answered for the first time, since nothing knows the
//     policies before;
//   - whatever becomes of it but an orderly end, which takes the policies back.
//
// Each packet says in its payload which class it is of, and when it was sent. So a packet that is in
// clear is judged by what held when it was sent, however late it was read.

// fate is what the SPD does with a class.
type fate uint8

const (
	protected fate = iota
	discarded
	passes // in clear
)

// leakClass is traffic that one selector is for. Ports and addresses are as A sends; B sends the
// answers.
type leakClass struct {
	name         string
	fate         fate
	a, b         string // addresses; "" is the gateway's own, of packets that its kernel makes
	proto        uint8
	aPort, bPort uint16 // of ICMP the type, and the code
	frags        int    // in so many fragments; 0: whole
}

// The children, [policies] and what they make of the classes. The order of [policies] matters for
// what begins with "ports".
var leakClasses = []leakClass{
	{name: "prefix, ICMP", a: "10.1.10.5", b: "10.2.10.5", proto: 1, aPort: 8 << 8},
	{name: "prefix, UDP", a: "10.1.10.5", b: "10.2.10.5", proto: 17, aPort: 4000, bPort: 161},
	{name: "prefix, TCP", a: "10.1.10.5", b: "10.2.10.5", proto: 6, aPort: 4000, bPort: 502},
	{name: "prefix, another protocol", a: "10.1.10.5", b: "10.2.10.5", proto: 99},
	{name: "prefix, fragments", a: "10.1.10.5", b: "10.2.10.5", proto: 17, aPort: 4000, bPort: 161, frags: 3},
	{name: "range", a: "10.1.11.20", b: "10.2.11.20", proto: 17, aPort: 1, bPort: 2},
	{name: "protocol", a: "10.1.12.5", b: "10.2.12.5", proto: 17, aPort: 1, bPort: 2},
	{name: "protocol, fragments", a: "10.1.12.5", b: "10.2.12.5", proto: 17, aPort: 1, bPort: 2, frags: 2},
	{name: "protocol, another one", fate: passes, a: "10.1.12.5", b: "10.2.12.5", proto: 1, aPort: 8 << 8},
	{name: "ports", a: "10.1.13.5", b: "10.2.13.5", proto: 6, aPort: 4000, bPort: 5005},
	{name: "ports, others", fate: discarded, a: "10.1.13.5", b: "10.2.13.5", proto: 6, aPort: 4000, bPort: 6000},
	{name: "ports, another protocol", fate: passes, a: "10.1.13.5", b: "10.2.13.5", proto: 17, aPort: 4000, bPort: 5005},
	{name: "ports, fragments", a: "10.1.20.5", b: "10.2.20.5", proto: 17, aPort: 4000, bPort: 5005, frags: 2},
	{name: "ICMP type", a: "10.1.14.5", b: "10.2.14.5", proto: 1, aPort: 8 << 8},
	{name: "ICMP type, another one", fate: discarded, a: "10.1.14.5", b: "10.2.14.5", proto: 1, aPort: 13 << 8},
	{name: "IPv6", a: "fd01:0:0:1::5", b: "fd02:0:0:1::5", proto: 17, aPort: 1, bPort: 2},
	{name: "IPv6, fragments", a: "fd01:0:0:1::5", b: "fd02:0:0:1::5", proto: 17, aPort: 1, bPort: 2, frags: 2},
	{name: "IPv6, discard", fate: discarded, a: "fd01:0:0:2::5", b: "fd02:0:0:2::5", proto: 17, aPort: 1, bPort: 2},
	{name: "trap", a: "10.1.15.5", b: "10.2.15.5", proto: 17, aPort: 1, bPort: 2},
	{name: "host to host", proto: 17, aPort: leakPort, bPort: leakPort},
	{name: "host to network", b: "10.2.19.5", proto: 17, aPort: leakPort, bPort: 9},
	{name: "bypass", fate: passes, a: "10.1.16.5", b: "10.2.16.5", proto: 17, aPort: 1, bPort: 2},
	{name: "discard", fate: discarded, a: "10.1.17.5", b: "10.2.17.5", proto: 17, aPort: 1, bPort: 2},
	{name: "no entry", fate: passes, a: "10.1.18.5", b: "10.2.18.5", proto: 17, aPort: 1, bPort: 2},
}

// leakPort is that of the UDP traffic between the gateways themselves.
const leakPort = 7777

// leakSpecs are the configurations, without [policies].
func leakSpecs() (a, b spec) {
	a, b = pairSpecs(false, false)
	sides := func(own, other string) []child {
		return []child{
			{name: "net", localTS: []string{own + "10.0/24"}, remoteTS: []string{other + "10.0/24"}, start: "start"},
			{name: "range", localTS: []string{own + "11.10-" + own + "11.29"}, remoteTS: []string{other + "11.10-" + other + "11.29"}, start: "start"},
			{name: "proto", localTS: []string{own + "12.0/24[udp]"}, remoteTS: []string{other + "12.0/24[udp]"}, start: "start"},
			{name: "ports", start: "start"},
			{name: "pieces", fragments: "also", start: "start"},
			{name: "icmp", localTS: []string{own + "14.0/24[icmp/8]"}, remoteTS: []string{other + "14.0/24[icmp/8]"}, start: "start"},
			{name: "six", start: "start"},
			{name: "trap", localTS: []string{own + "15.0/24"}, remoteTS: []string{other + "15.0/24"}, start: "trap"},
			{name: "road", start: "trap"},
			{name: "hosts", localTS: []string{fmt.Sprintf("dynamic[udp/%d]", leakPort)}, remoteTS: []string{fmt.Sprintf("dynamic[udp/%d]", leakPort)}, mode: "transport", start: "trap"},
		}
	}
	a.conns[0].children, b.conns[0].children = sides("10.1.", "10.2."), sides("10.2.", "10.1.")
	open, narrow := []string{"10.1.13.0/24[tcp]"}, []string{"10.2.13.0/24[tcp/5000-5010]"}
	pieces := [2][]string{{"10.1.20.0/24[udp/4000]"}, {"10.2.20.0/24[udp/5000-5010]"}}
	six := [2][]string{{"fd01:0:0:1::/64"}, {"fd02:0:0:1::/64"}}
	for i, n := range []*spec{&a, &b} {
		for j := range n.conns[0].children {
			switch ch := &n.conns[0].children[j]; ch.name {
			case "ports":
				ch.localTS, ch.remoteTS = open, narrow
				open, narrow = narrow, open
			case "road":
				if ch.localTS, ch.remoteTS = []string{"dynamic"}, []string{"10.2.19.0/24"}; i == 1 {
					ch.localTS, ch.remoteTS = ch.remoteTS, ch.localTS
				}
			case "pieces":
				ch.localTS, ch.remoteTS = pieces[i], pieces[1-i]
			case "six":
				ch.localTS, ch.remoteTS = six[i], six[1-i]
			}
			n.conns[0].children[j].esp = usualESP
		}
		n.conns[0].mobike, n.conns[0].dpdDelay = "yes", time.Second
		n.retryTimeout, n.retryTries, n.retryBase = time.Second, 2, 1
	}
	a.conns[0].local = "%any"
	return a, b
}

// leakTable is the rest of the SPD, which comes before the children that it does not name. own is the
// beginning of this side's addresses.
func leakTable(own, other string) string {
	return strings.NewReplacer("OWN", own, "OTHER", other).Replace(`
[policies.ports]
action = "protect"
child = "site/ports"
[policies.other-ports]
action = "discard"
local_ts = ["10.OWN.13.0/24[tcp]"]
remote_ts = ["10.OTHER.13.0/24[tcp]"]
[policies.beside-ports]
action = "bypass"
local_ts = ["10.OWN.13.0/24"]
remote_ts = ["10.OTHER.13.0/24"]
[policies.beside-proto]
action = "bypass"
local_ts = ["10.OWN.12.0/24[icmp]"]
remote_ts = ["10.OTHER.12.0/24[icmp]"]
[policies.open]
action = "bypass"
local_ts = ["10.OWN.16.0/24"]
remote_ts = ["10.OTHER.16.0/24"]
[policies.closed]
action = "discard"
local_ts = ["10.OWN.17.0/24", "fd0OWN:0:0:2::/64"]
remote_ts = ["10.OTHER.17.0/24", "fd0OTHER:0:0:2::/64"]
`)
}

// A payload is made of this again and again:
//
//	LEAK | class | direction | KS | when it was sent, in nanoseconds (8)
const leakUnit = 16

func leakMark(class int, from byte, at time.Time) []byte {
	b := append([]byte("LEAK"), byte('a'+class), from, 'K', 'S')
	return binary.BigEndian.AppendUint64(b, uint64(at.UnixNano()))
}

// readMark finds a mark; ok is false if there is none.
func readMark(b []byte) (class int, from byte, at time.Time, ok bool) {
	for {
		i := bytes.Index(b, []byte("LEAK"))
		if i < 0 || len(b) < i+leakUnit {
			return 0, 0, at, false
		}
		b = b[i:]
		if class = int(b[4]) - 'a'; class >= 0 && class < len(leakClasses) && b[6] == 'K' && b[7] == 'S' {
			return class, b[5], time.Unix(0, int64(binary.BigEndian.Uint64(b[8:]))), true
		}
		b = b[1:]
	}
}

// packets returns the IP packets, or fragments, of one sending.
func (c *leakClass) packets(class int, from byte, id uint16) [][]byte {
	src, dst, sport, dport := gwA4, netip.MustParseAddr(c.b), c.aPort, c.bPort
	if c.a != "" {
		src = netip.MustParseAddr(c.a)
	}
	if from == 'b' {
		src, dst = dst, src
		if c.proto != 1 {
			sport, dport = dport, sport
		}
	}
	size := 96
	if c.frags > 0 {
		size = 1000*c.frags - 200
	}
	var l4 []byte
	switch c.proto {
	case 1:
		l4 = []byte{byte(sport >> 8), byte(sport), 0, 0, 1, 1, byte(id >> 8), byte(id)}
	case 17:
		l4 = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, sport), dport)
		l4 = append(binary.BigEndian.AppendUint16(l4, uint16(8+size)), 0, 0)
	case 6:
		l4 = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, sport), dport)
		l4 = append(l4, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 16, 0, 0, 0, 0, 0)
	}
	l4 = append(l4, bytes.Repeat(leakMark(class, from, time.Now()), size/leakUnit)...)
	if c.proto == 1 {
		binary.BigEndian.PutUint16(l4[2:], internetSum(l4))
	}
	if src.Is6() { // a checksum of 0 is not allowed there
		pseudo := append(append(src.AsSlice(), dst.AsSlice()...), 0, 0, 0, c.proto)
		pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(l4)))
		binary.BigEndian.PutUint16(l4[6:], internetSum(append(pseudo, l4...)))
	}
	if c.frags == 0 {
		return [][]byte{ipPacketOf(src, dst, c.proto, id, 0, false, false, l4)}
	}
	var list [][]byte
	for off := 0; off < len(l4); off += 992 {
		end := min(off+992, len(l4))
		list = append(list, ipPacketOf(src, dst, c.proto, id, off, end < len(l4), true, l4[off:end]))
	}
	return list
}

func internetSum(b []byte) uint16 {
	var sum uint32
	for i, x := range b {
		sum += uint32(x) << (8 * (1 - i%2))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// ipPacketOf returns a packet, or a fragment of one.
func ipPacketOf(src, dst netip.Addr, proto uint8, id uint16, off int, more, fragment bool, l4 []byte) []byte {
	if src.Is4() {
		h := []byte{0x45, 0, 0, 0, byte(id >> 8), byte(id), byte(off / 8 >> 8), byte(off / 8), 64, proto, 0, 0}
		if more {
			h[6] |= 0x20
		}
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(l4)))
		h = append(append(h, src.AsSlice()...), dst.AsSlice()...)
		binary.BigEndian.PutUint16(h[10:], internetSum(h))
		return append(h, l4...)
	}
	if fragment {
		f := binary.BigEndian.AppendUint16([]byte{proto, 0}, uint16(off))
		if more {
			f[3] |= 1
		}
		l4 = append(append(f, 0, 0, byte(id>>8), byte(id)), l4...)
		proto = 44
	}
	h := binary.BigEndian.AppendUint16([]byte{0x60, 0, 0, 0}, uint16(len(l4)))
	h = append(append(append(h, proto, 64), src.AsSlice()...), dst.AsSlice()...)
	return append(h, l4...)
}

// leakBench is a site with the traffic of all classes.
type leakBench struct {
	*site
	t    *testing.T
	a, b *postern
	sa   spec
	sb   spec

	stop    chan struct{}
	running sync.WaitGroup
	rec     *capture
	// arrived counts, for each class and sender, what has reached the other side.
	arrived [2][]atomic.Int64
}

// newLeakBench starts the traffic and the recording, and no daemon.
func newLeakBench(t *testing.T) *leakBench {
	p := pair{"postern", "postern"}
	ready(t, p)
	l := &leakBench{site: newSite(t), t: t, stop: make(chan struct{})}
	l.ip(l.wan, "route add 10.1.0.0/16 via 198.51.100.1\nroute add 10.2.0.0/16 via 203.0.113.1\nroute add fd01::/48 via 2001:db8:a::1\nroute add fd02::/48 via 2001:db8:b::1\n")
	l.ip(l.gwA, "route add 10.1.0.0/16 via 10.1.0.10\nroute add fd01::/48 via fd01::10\n")
	l.ip(l.gwB, "route add 10.2.0.0/16 via 10.2.0.10\nroute add fd02::/48 via fd02::10\n")
	l.sa, l.sb = leakSpecs()
	l.a, l.b = newPostern(l.site, 'a', l.sa), newPostern(l.site, 'b', l.sb)
	l.a.write(l.a.toml(l.sa) + leakTable("1", "2"))
	l.b.write(l.b.toml(l.sb) + leakTable("2", "1"))
	for i := range l.arrived {
		l.arrived[i] = make([]atomic.Int64, len(leakClasses))
	}
	l.rec = l.capture()
	// All sockets are there before the first packet.
	var loops []func()
	loops = append(loops, l.side('a', l.lanA, l.gwA, gwB4)...)
	loops = append(loops, l.side('b', l.lanB, l.gwB, gwA4)...)
	for _, f := range loops {
		l.running.Go(f)
	}
	t.Cleanup(l.end)
	return l
}

// end stops the traffic.
func (l *leakBench) end() {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.running.Wait()
}

// leakEvery is the time between two packets of a class.
const leakEvery = 20 * time.Millisecond

// side returns what sends and counts the traffic of one side. Its sockets end with the test.
func (l *leakBench) side(from byte, lan, gw string, peer netip.Addr) []func() {
	l.t.Helper()
	var raw4, raw6, tap int
	var host *net.UDPConn
	err := inNamespace(lan, func() (err error) {
		if raw4, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err != nil {
			return err
		}
		if raw6, err = unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err != nil {
			return err
		}
		if tap, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		dev, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		all := uint16(unix.ETH_P_ALL)
		return cmpErr(unix.SetsockoptTimeval(tap, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50000}),
			unix.SetsockoptInt(tap, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20),
			unix.Bind(tap, &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8, Ifindex: dev.Index}))
	})
	if err == nil {
		err = inNamespace(gw, func() (err error) {
			host, err = net.ListenUDP("udp4", &net.UDPAddr{Port: leakPort})
			return err
		})
	}
	if err != nil {
		l.t.Fatalf("traffic of side %c: %v", from, err)
	}
	l.t.Cleanup(func() { l.end(); unix.Close(raw4); unix.Close(raw6); unix.Close(tap); host.Close() })
	ended := func() bool {
		select {
		case <-l.stop:
			return true
		default:
			return false
		}
	}
	send := func() {
		for id := uint16(1); !ended(); id++ {
			for i := range leakClasses {
				c := &leakClasses[i]
				if to := peer; c.a == "" && (from == 'a' || c.b == "") {
					if c.b != "" {
						to = netip.MustParseAddr(c.b)
					}
					_, _ = host.WriteToUDPAddrPort(bytes.Repeat(leakMark(i, from, time.Now()), 6), netip.AddrPortFrom(to, c.bPort))
					continue
				}
				for _, pkt := range c.packets(i, from, id) {
					if pkt[0]>>4 == 4 {
						_ = unix.Sendto(raw4, pkt, 0, &unix.SockaddrInet4{Addr: [4]byte(pkt[16:20])})
					} else {
						_ = unix.Sendto(raw6, pkt, 0, &unix.SockaddrInet6{Addr: [16]byte(pkt[24:40])})
					}
				}
			}
			time.Sleep(leakEvery)
		}
	}
	count := func(b []byte) {
		if class, sender, _, ok := readMark(b); ok && sender != from {
			l.arrived[sender-'a'][class].Add(1)
		}
	}
	fromLAN := func() {
		buf := make([]byte, snapLen)
		for !ended() {
			n, at, err := unix.Recvfrom(tap, buf, 0)
			if link, ok := at.(*unix.SockaddrLinklayer); err == nil && ok && link.Pkttype != unix.PACKET_OUTGOING {
				count(buf[:n])
			}
		}
	}
	fromHost := func() {
		buf := make([]byte, snapLen)
		for !ended() {
			_ = host.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			n, err := host.Read(buf)
			if err == nil {
				count(buf[:n])
			} else if ne := net.Error(nil); !errors.As(err, &ne) || !ne.Timeout() {
				time.Sleep(time.Millisecond) // an ICMP error about what was sent
			}
		}
	}
	return []func(){send, fromLAN, fromHost}
}

// carried waits until packets of every class that is protected, or passes, have arrived on the other
// side, in both directions.
func (l *leakBench) carried(when string) {
	l.t.Helper()
	const enough = 3
	var before [2][]int64
	for i := range l.arrived {
		for j := range l.arrived[i] {
			before[i] = append(before[i], l.arrived[i][j].Load())
		}
	}
	var missing []string
	if !eventually(40*time.Second, func() bool {
		missing = missing[:0]
		for i := range l.arrived {
			for j := range leakClasses {
				if leakClasses[j].fate != discarded && l.arrived[i][j].Load() < before[i][j]+enough {
					missing = append(missing, fmt.Sprintf("%s from %c", leakClasses[j].name, 'a'+i))
				}
			}
		}
		return len(missing) == 0
	}) {
		l.t.Fatalf("%s: these classes are not carried, so that nothing about them is proven: %s%s", when, strings.Join(missing, "; "), logs(l.a, l.b))
	}
}
