package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"postern/esp"
)

const (
	ipv4Header = 20
	udpHeader  = 8
	tcpHeader  = 20
	// pathMTU is the TUN device's: a UDP packet with LargePacket octets of payload.
	pathMTU = LargePacket + ipv4Header + udpHeader
	// mostSegments is how many segments a TCP super-packet has at most: it has to fit
	// 65,535 octets.
	mostSegments = (1<<16 - 1 - ipv4Header - tcpHeader) / (pathMTU - ipv4Header - tcpHeader)
	// mostInjected is what Path.Inject takes at once.
	mostInjected = 128
	// pathPatience is what the path may take beyond its time. Where packets get lost, the
	// reader that counts on them would wait for ever.
	pathPatience = 3 * time.Second
)

// flows are what passes the path. Bulk packets come as the kernel hands over what a TCP of
// this host sends, or what it joined on reception: cut by the device.
var flows = []struct {
	name    string
	payload int
	bulk    bool
}{
	{"TCP in bulk", pathMTU - ipv4Header - tcpHeader, true},
	{"UDP", LargePacket, false},
	{"UDP", 200, false},
}

// runner is the sender and the receiver, with the batches of the profile.
type runner struct {
	now  func() time.Duration
	path *Path
	out  *esp.Outbound
	in   *esp.Inbound

	bufs    [][]byte // of the device's reader
	sizes   []int
	sending []esp.Datagram
	rbufs   [][]byte // of the socket's reader
	arrived []esp.Datagram
	inner   [][]byte
	flow    esp.Flow
	front   int // where the inner packet begins in an ESP packet
	local   []esp.Selector
	remote  []esp.Selector
}

// The shares of Profile.Buffers that the engine gives to the reader of the device and to
// that of a socket, and the least size of a socket's buffers.
const (
	shareTUN  = 4
	shareESP  = 4
	udpBuffer = 3072
)

// innerRoom is what the device may use in front of an inner packet: the headers of the
// shortest ESP packet.
const innerRoom = 16

// path measures all flows on a path that it makes.
func (r *Result) path(sys *System, o Options) (err error) {
	if sys.OpenPath == nil {
		return errors.New("there is no TUN device on this system")
	}
	if stopped(o.Stop) {
		return ErrStopped
	}
	suite := r.Choice.Suite
	if suite.Validate() != nil {
		suite = algorithms[0].Suite
	}
	p, err := sys.OpenPath(pathMTU)
	if err != nil {
		return err
	}
	// A read that waits hears of an end by the closing of what it reads.
	done, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-o.Stop:
		case <-done:
		case <-time.After(o.Budget + pathPatience):
		}
		_ = p.Close()
	}()
	defer func() {
		close(done)
		<-watched
		if e := p.Close(); err == nil {
			err = e
		}
		if stopped(o.Stop) {
			err = ErrStopped
		}
	}()
	r.PathSuite = suite.String()
	for _, a := range r.Algorithms {
		if a.Suite == suite {
			r.PathSuite = a.Name
		}
	}
	r.TUNFeatures, r.UDPFeatures, r.Private = p.TUNFeatures, p.UDPFeatures, p.Private
	run, err := newRunner(sys, p, suite, o.Profile.Buffers, o.Profile.BufferSize)
	if err != nil {
		return err
	}
	defer run.out.Wipe()
	defer run.in.Wipe()
	for _, f := range flows {
		c, err := run.measure(f.payload, f.bulk, o.Budget/partsFlow, o.Stop)
		if err != nil {
			return fmt.Errorf("%s of %d octets: %w", f.name, f.payload, err)
		}
		r.Flows = append(r.Flows, Flow{f.name, f.payload, c})
	}
	return nil
}

func newRunner(sys *System, p *Path, suite esp.Suite, buffers, size int) (*runner, error) {
	out, in, err := pair(suite)
	if err != nil {
		return nil, err
	}
	size = max(size, esp.HeadRoom+pathMTU+esp.TailRoom)
	r := &runner{now: sys.Now, path: p, out: out, in: in}
	start, _, err := out.Seal(0, make([]byte, esp.HeadRoom+esp.TailRoom), esp.HeadRoom, 0, esp.ProtoNoNext)
	if err != nil {
		return nil, err
	}
	r.front = esp.HeadRoom - start
	r.bufs = buffersOf(min(max(buffers/shareTUN, 2), mostInjected), size)
	r.sizes = make([]int, len(r.bufs))
	r.sending = make([]esp.Datagram, 0, len(r.bufs))
	r.rbufs = buffersOf(max(buffers/shareESP, 2), max(size, udpBuffer))
	r.arrived = make([]esp.Datagram, len(r.rbufs))
	r.inner = make([][]byte, 0, len(r.rbufs))
	// As the receiver sees it.
	r.local = []esp.Selector{{Start: pathTarget, End: pathTarget, EndPort: 65535}}
	r.remote = []esp.Selector{{Start: pathSource, End: pathSource, EndPort: 65535}}
	return r, nil
}

// Not inlined, as are others here: it is called at many places, where only room counts.
//
//go:noinline
func buffersOf(n, size int) [][]byte {
	size = (size + 3) &^ 3
	memory := make([]byte, n*size)
	bufs := make([][]byte, n)
	for i := range bufs {
		bufs[i] = memory[i*size : (i+1)*size : (i+1)*size]
	}
	return bufs
}

// measure sends packets of one kind by turns with their reception. What it takes to inject
// them is not counted.
func (r *runner) measure(payload int, bulk bool, budget time.Duration, stop <-chan struct{}) (Cost, error) {
	most, pkt, copies, segment := len(r.bufs), []byte(nil), len(r.bufs), 0
	if bulk {
		most, copies, segment = mostSegments, 1, payload
		pkt = tcpPacket(payload * most)
	} else {
		pkt = udpPacket(payload)
	}
	return measure(r.now, budget, most, stop, func(int) (round, error) {
		if err := r.path.Inject(pkt, copies, segment); err != nil {
			return round{}, err
		}
		began := r.now()
		n, err := r.send(most)
		if err != nil {
			return round{}, lost(err, n, most, "left the TUN device")
		}
		between := r.now()
		if n, err = r.receive(most); err != nil {
			return round{}, lost(err, n, most, "passed the tunnel")
		}
		return round{most, between - began, r.now() - between}, nil
	})
}

func lost(err error, n, of int, what string) error {
	return fmt.Errorf("only %d of %d packets %s: %w", n, of, what, err)
}

// send is the sender's work: read from the device, seal, write to the socket, as the
// engine does it; the flow is parsed, and not looked up.
func (r *runner) send(want int) (done int, err error) {
	self := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	for done < want {
		n, err := r.path.Device.ReadBatch(r.bufs, r.sizes, esp.HeadRoom)
		if err != nil {
			return done, err
		}
		r.sending = r.sending[:0]
		for i := range n {
			buf, size := r.bufs[i], r.sizes[i]
			// The kernel may have something of its own to say on a new device.
			if esp.ParseFlow(buf[esp.HeadRoom:esp.HeadRoom+size], true, &r.flow) != nil || r.flow.Remote != pathTarget {
				continue
			}
			start, end, err := r.out.Seal(0, buf, esp.HeadRoom, size, esp.ProtoIPv4)
			if err != nil {
				return done, err
			}
			r.sending = append(r.sending, esp.Datagram{Buf: buf[start:end], N: end - start, Local: self, Remote: r.path.To})
		}
		if _, err = r.path.Near.WriteBatch(r.sending); err != nil {
			return done, err
		}
		done += len(r.sending)
	}
	return done, nil
}

// receive is the receiver's work: read from the socket, open, check the selectors, write
// to the device.
func (r *runner) receive(want int) (done int, err error) {
	for done < want {
		for i := range r.arrived {
			r.arrived[i] = esp.Datagram{Buf: r.rbufs[i]}
		}
		n, err := r.path.Far.ReadBatch(r.arrived)
		if err != nil {
			return done, err
		}
		r.inner = r.inner[:0]
		for i := range n {
			pkt := r.arrived[i].Buf[:r.arrived[i].N]
			inner, next, err := r.in.Open(0, pkt)
			if err != nil {
				continue // anybody may send to an open port; what is missing in the end is lost
			}
			if inner, err = esp.CutInner(inner, next); err != nil {
				continue
			}
			if esp.ParseFlow(inner, false, &r.flow) != nil || !esp.MatchFlow(r.local, r.remote, &r.flow) {
				continue
			}
			r.inner = append(r.inner, pkt[r.front-innerRoom:r.front+len(inner)])
		}
		if _, err = r.path.Device.WriteBatch(r.inner, innerRoom); err != nil {
			return done, err
		}
		done += len(r.inner)
	}
	return done, nil
}

// ipPacket returns an IPv4 packet of the path without its payload, header checksum
// included, and the sum over the pseudo header.
func ipPacket(proto uint8, l4 int) (pkt []byte, pseudo uint32) {
	pkt = make([]byte, ipv4Header+l4)
	pkt[0], pkt[8], pkt[9] = 0x45, 64, proto
	binary.BigEndian.PutUint16(pkt[2:], uint16(len(pkt)))
	src, dst := pathSource.As4(), pathTarget.As4()
	copy(pkt[12:], src[:])
	copy(pkt[16:], dst[:])
	binary.BigEndian.PutUint16(pkt[10:], ^fold(sum(pkt[:ipv4Header])))
	return pkt, sum(pkt[12:20]) + uint32(proto) + uint32(l4)
}

// udpPacket returns a packet with its checksums.
func udpPacket(payload int) []byte {
	pkt, pseudo := ipPacket(esp.ProtoUDP, udpHeader+payload)
	udp := pkt[ipv4Header:]
	binary.BigEndian.PutUint16(udp, pathPort)
	binary.BigEndian.PutUint16(udp[2:], pathPort)
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	c := ^fold(pseudo + sum(udp))
	if c == 0 {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(udp[6:], c)
	return pkt
}

// tcpPacket returns a segment, or a super-packet, whose checksum is that of the pseudo
// header alone.
func tcpPacket(payload int) []byte {
	pkt, pseudo := ipPacket(esp.ProtoTCP, tcpHeader+payload)
	tcp := pkt[ipv4Header:]
	binary.BigEndian.PutUint16(tcp, pathPort)
	binary.BigEndian.PutUint16(tcp[2:], pathPort)
	tcp[12], tcp[13] = tcpHeader/4<<4, tcpACK
	binary.BigEndian.PutUint16(tcp[14:], 0xffff)
	binary.BigEndian.PutUint16(tcp[16:], fold(pseudo))
	return pkt
}

const (
	pathPort = 9 // discard
	tcpACK   = 0x10
)

//go:noinline
func sum(b []byte) (s uint32) {
	for ; len(b) > 1; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	return s
}

//go:noinline
func fold(s uint32) uint16 {
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}
