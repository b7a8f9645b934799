package platform

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fakeKernel is a device with virtio headers whose other end is a socket in the hands of
// the test; a message of it is what one call moves.
func fakeKernel(t testing.TB) (*TUN, int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.SetNonblock(fds[0], true)
	tun := &TUN{name: "fake", file: os.NewFile(uintptr(fds[0]), "fake"), vrx: new(vnetReader), vtx: new(vnetWriter)}
	if tun.rc, err = tun.file.SyscallConn(); err != nil {
		t.Fatal(err)
	}
	tun.rx.run, tun.tx.run = tun.readReadyVNet, tun.writeReadyVNet
	tun.vtx.plan.tcp, tun.vtx.plan.udp = true, true
	t.Cleanup(func() { tun.Close(); unix.Close(fds[1]) })
	return tun, fds[1]
}

// withHeader is what one read brings.
func withHeader(h vnetHdr, p []byte) []byte {
	b := make([]byte, vnetHdrSize, vnetHdrSize+len(p))
	h.encode(b)
	return append(b, p...)
}

func sendTo(t testing.TB, fd int, b []byte) {
	t.Helper()
	if n, err := unix.Write(fd, b); n != len(b) || err != nil {
		t.Fatalf("the kernel's end wrote %d of %d octets: %v", n, len(b), err)
	}
}

func buffers(n, size int) [][]byte {
	bufs := make([][]byte, n)
	for i := range bufs {
		bufs[i] = make([]byte, size)
	}
	return bufs
}

func TestSegmentsThatAreLeftComeWithTheNextRead(t *testing.T) {
	tun, kernel := fakeKernel(t)
	s := packetSpec{flags: tcpACK | tcpPSH, seq: 5, id: 1, payload: random(rand.New(rand.NewPCG(1, 1)), 9*1000+7)}
	h, p := s.super(1000)
	want := split(t, h, p)
	plain := packetSpec{udp: true, payload: []byte("after it")}.build()
	sendTo(t, kernel, withHeader(h, p))
	sendTo(t, kernel, withHeader(vnetHdr{}, plain))
	want = append(want, plain)
	bufs, sizes := buffers(4, 24+1200), make([]int, 4)
	var counts []int
	for i := 0; len(want) > 0; i++ {
		off := 24 * (i % 2)
		n, err := tun.ReadBatch(bufs, sizes, off)
		if err != nil || n > len(want) {
			t.Fatalf("ReadBatch = %d, %v with %d packets to come", n, err, len(want))
		}
		for j := range n {
			if !bytes.Equal(bufs[j][off:off+sizes[j]], want[j]) {
				t.Fatalf("read % x\nwant % x", bufs[j][off:off+sizes[j]], want[j])
			}
		}
		want = want[n:]
		counts = append(counts, n)
	}
	if fmt.Sprint(counts) != "[4 4 2 1]" || tun.Dropped() != 0 {
		t.Errorf("reads of four brought %v and dropped %d, want [4 4 2 1] and 0: the second packet might have been as long", counts, tun.Dropped())
	}
}

// A super-packet that is torn over two reads leaves in two batches, and the other end's kernel
// has two packets of it.
func TestSuperPacketsComeWholeWhereTheyFit(t *testing.T) {
	for _, c := range []struct {
		room     int
		segments []int // of each packet
		want     string
	}{
		{10, []int{5, 5, 5}, "[10 5]"},
		{9, []int{5, 5, 5}, "[5 5 5]"},
		{9, []int{1, 5, 5}, "[6 5]"},  // one segment: no super-packet
		{9, []int{5, 1, 1}, "[5 2]"},  // what comes next cannot be foreseen
		{9, []int{3, 5, 5}, "[8 5]"},  // there was room for three more, and so for five
		{4, []int{5, 5}, "[4 1 4 1]"}, // each is larger than any read
		{6, []int{10, 1}, "[6 4 1]"},  //
		{12, []int{4, 4, 4, 4}, "[12 4]"},
	} {
		tun, kernel := fakeKernel(t)
		var want [][]byte
		for i, n := range c.segments {
			s := packetSpec{flags: tcpACK, seq: 5, id: uint16(i), payload: random(rand.New(rand.NewPCG(1, uint64(i))), n*100)}
			h, p := s.super(100)
			if n == 1 {
				h = vnetHdr{}
				p = s.build()
				want = append(want, p)
			} else {
				want = append(want, split(t, h, p)...)
			}
			sendTo(t, kernel, withHeader(h, p))
		}
		bufs, sizes := buffers(c.room, 200), make([]int, c.room)
		var got [][]byte
		var counts []int
		for len(got) < len(want) {
			n, err := tun.ReadBatch(bufs, sizes, 0)
			if err != nil {
				t.Fatal(err)
			}
			for i := range n {
				got = append(got, bytes.Clone(bufs[i][:sizes[i]]))
			}
			counts = append(counts, n)
		}
		assertSame(t, got, want)
		if s := fmt.Sprint(counts); s != c.want {
			t.Errorf("packets of %v segments: reads with room for %d brought %s, want %s", c.segments, c.room, s, c.want)
		}
	}
}

func TestWhatDoesNotFitIsDroppedAndCounted(t *testing.T) {
	tun, kernel := fakeKernel(t)
	s := packetSpec{udp: true, payload: make([]byte, 3000)}
	h, p := s.super(1000)
	lie := h
	lie.gsoSize = 0
	big, bigPacket := s.super(2000)
	good := packetSpec{payload: []byte("good")}.build()
	for _, m := range [][]byte{
		{1, 2, 3},                      // not even a header
		withHeader(vnetHdr{}, nil),     // no packet
		withHeader(lie, p),             //
		withHeader(vnetHdr{gso: 9}, p), //
		withHeader(vnetHdr{}, p),       // a packet longer than the buffer
		withHeader(big, bigPacket),     // segments longer than the buffer
		withHeader(vnetHdr{flags: 1, csumStart: 60000}, good),
		withHeader(h, make([]byte, superBuffer+100)), // longer than any packet
	} {
		sendTo(t, kernel, m)
	}
	sendTo(t, kernel, withHeader(vnetHdr{}, good))
	bufs, sizes := buffers(4, 1200), make([]int, 4)
	n, err := tun.ReadBatch(bufs, sizes, 0)
	if n != 1 || err != nil || !bytes.Equal(bufs[0][:sizes[0]], good) {
		t.Fatalf("ReadBatch = %d, %v, want the one good packet", n, err)
	}
	if d := tun.Dropped(); d != 8 {
		t.Errorf("%d packets were counted as dropped, want 8", d)
	}
}

func TestWritesAreJoinedAndBuffersStay(t *testing.T) {
	tun, kernel := fakeKernel(t)
	var specs []packetSpec
	for flow := range byte(3) {
		specs = append(specs, packetSpec{flags: tcpACK, flow: flow}.run(60, 300)...) // beyond one window
	}
	for _, off := range []int{0, 16} {
		p := build(specs...)
		bufs := make([][]byte, len(p))
		for i := range p {
			bufs[i] = append(bytes.Repeat([]byte{0xee}, off), p[i]...)
		}
		if n, err := tun.WriteBatch(bufs, off); n != len(p) || err != nil {
			t.Fatalf("WriteBatch = %d, %v, want %d", n, err, len(p))
		}
		var got [][]byte
		messages := 0
		for ; len(got) < len(p); messages++ {
			b := make([]byte, 1<<17)
			n, err := unix.Read(kernel, b)
			if err != nil {
				t.Fatal(err)
			}
			var h vnetHdr
			h.decode((*[vnetHdrSize]byte)(b))
			got = append(got, split(t, h, b[vnetHdrSize:n])...)
		}
		assertSame(t, got, p)
		if messages != 4 {
			t.Errorf("%d writes, want 4: three flows, one of them over the end of a window", messages)
		}
		for i := range p {
			if !bytes.Equal(bufs[i][off:], p[i]) || !bytes.Equal(bufs[i][:off], bytes.Repeat([]byte{0xee}, off)) {
				t.Fatalf("the caller's buffer %d was changed", i)
			}
		}
	}
}

// The socket takes no message as long as the joined packet would be.
func TestWhatTheKernelRefusesJoinedGoesApart(t *testing.T) {
	tun, kernel := fakeKernel(t)
	control(tun.file, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1) })
	p := build(packetSpec{flags: tcpACK}.run(20, 1000)...)
	bufs := append([][]byte(nil), p...)
	go func() {
		if n, err := tun.WriteBatch(bufs, 0); n != len(p) || err != nil {
			t.Errorf("WriteBatch = %d, %v, want %d", n, err, len(p))
		}
		tun.Close()
	}()
	for i := range p {
		b := make([]byte, 1<<17)
		n, err := unix.Read(kernel, b)
		if n < vnetHdrSize || err != nil || !bytes.Equal(b[vnetHdrSize:n], p[i]) {
			t.Fatalf("message %d is of %d octets, %v, want packet %d", i, n, err, i)
		}
	}
}

func TestAfterAnErrorWrittenPacketsComeFirst(t *testing.T) {
	a, b := packetSpec{flags: tcpACK, flow: 1}.run(3, 10), packetSpec{flags: tcpACK, flow: 2}.run(2, 10)
	p := build(a[0], b[0], a[1], b[1], a[2])
	v := new(vnetWriter)
	v.plan.tcp = true
	v.begin()
	c := &tunCall{bufs: append([][]byte(nil), p...), err: unix.EIO}
	v.window(c.bufs, 0)
	v.written[0], v.written[2], v.written[4] = true, true, true
	v.written[1] = true
	v.group, v.apart, v.at = 1, true, 3 // the second of the second flow
	v.end(c)
	if c.n != 4 {
		t.Errorf("%d packets are said to be written, want 4", c.n)
	}
	for i, want := range []int{0, 1, 2, 4, 3} {
		if !bytes.Equal(c.bufs[i], p[want]) {
			t.Errorf("place %d has another packet than %d", i, want)
		}
	}
	c = &tunCall{bufs: append([][]byte(nil), p...), err: unix.EIO}
	v.begin()
	v.window(c.bufs, 0)
	v.written[0], v.written[2], v.written[4] = true, true, true
	v.group = 1
	v.end(c)
	if c.n != 3 || !bytes.Equal(c.bufs[1], p[2]) || !bytes.Equal(c.bufs[2], p[4]) || !bytes.Equal(c.bufs[3], p[1]) || !bytes.Equal(c.bufs[4], p[3]) {
		t.Errorf("%d packets are said to be written, want 3, and the one at fault behind them", c.n)
	}
}

func TestSuperPacketsDoNotAllocate(t *testing.T) {
	tun, kernel := fakeKernel(t)
	h, p := packetSpec{flags: tcpACK, payload: make([]byte, 30000)}.super(1000)
	m := withHeader(h, p)
	bufs, sizes := buffers(64, 1200), make([]int, 64)
	if n := testing.AllocsPerRun(100, func() {
		sendTo(t, kernel, m)
		if n, err := tun.ReadBatch(bufs, sizes, 24); n != 30 || err != nil {
			t.Fatalf("ReadBatch = %d, %v, want 30", n, err)
		}
	}); n != 0 {
		t.Errorf("a read of a super-packet allocates %v times, want 0", n)
	}
	out := build(append(packetSpec{flags: tcpACK}.run(20, 1000), packetSpec{udp: true, v6: true}.run(20, 200)...)...)
	into := make([]byte, 1<<17)
	if n := testing.AllocsPerRun(100, func() {
		if n, err := tun.WriteBatch(out, 0); n != len(out) || err != nil {
			t.Fatalf("WriteBatch = %d, %v, want %d", n, err, len(out))
		}
		for range 2 {
			if _, err := unix.Read(kernel, into); err != nil {
				t.Fatal(err)
			}
		}
	}); n != 0 {
		t.Errorf("a joined write allocates %v times, want 0", n)
	}
}

// relay carries packets between two devices and looks at each on its way.
type relay struct {
	packets, wrong, supers atomic.Int64
}

func (r *relay) run(t *testing.T, from, to *TUN, mtu, bufs int) {
	b, sizes := buffers(bufs, 24+mtu), make([]int, bufs)
	out := make([][]byte, 0, bufs)
	for {
		n, err := from.ReadBatch(b, sizes, 24)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			t.Error(err)
			return
		}
		out = out[:0]
		for i := range n {
			p := b[i][24 : 24+sizes[i]]
			l4, proto := transport(p)
			if fold(sumBytes(p[l4:], sumPseudoHeader(p, l4 == 40, proto, len(p)-l4))) != 0xffff {
				r.wrong.Add(1)
			}
			out = append(out, b[i][8:24+sizes[i]])
		}
		r.packets.Add(int64(n))
		if from.vrx != nil && from.vrx.rest.more() {
			r.supers.Add(1)
		}
		for w := 0; w < len(out); {
			k, err := to.WriteBatch(out[w:], 16)
			if w += k; err != nil {
				if !errors.Is(err, os.ErrClosed) {
					t.Error(err)
				}
				return
			}
		}
	}
}

func TestTwoHostsTalkOverARelayWithAnyFeatures(t *testing.T) {
	for _, c := range []struct {
		name     string
		vnet     bool
		offloads int
		super    bool
	}{
		{"all", true, allOffloads, true},
		{"TSO4 alone", true, unix.TUN_F_CSUM | unix.TUN_F_TSO4, true},
		{"checksums", true, unix.TUN_F_CSUM, false},
		{"virtio headers", true, 0, false},
		{"nothing", false, allOffloads, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			const mtu = 1400
			var ns [2]*Namespace
			var tun [2]*TUN
			for i := range ns {
				ns[i] = newNS(t)
				needTUN(t)
				in(t, ns[i], func() error {
					queues, err := openTUNWith("pt0", mtu, 1, c.vnet, c.offloads)
					if err == nil {
						tun[i] = queues[0]
					}
					return err
				})
				addAddr(t, ns[i], "pt0", fmt.Sprintf("10.9.0.%d/24", i+1), fmt.Sprintf("fd09::%d/64", i+1))
			}
			f := tun[0].features
			t.Log("features: ", f)
			if f.VNetHdr != c.vnet || f.TSO4 && (!c.vnet || c.offloads&unix.TUN_F_TSO4 == 0) || f.USO && c.offloads != allOffloads {
				t.Errorf("features are %s", f)
			}
			var r relay
			var wg sync.WaitGroup
			for i := range tun {
				wg.Go(func() { r.run(t, tun[i], tun[1-i], mtu, 8) })
			}
			for _, addr := range []string{"10.9.0.2", "fd09::2"} {
				talkTCP(t, ns[0], ns[1], netip.AddrPortFrom(netip.MustParseAddr(addr), 4000))
				talkUDP(t, ns[0], ns[1], netip.AddrPortFrom(netip.MustParseAddr(addr), 4001))
			}
			tun[0].Close()
			tun[1].Close()
			wg.Wait()
			if n := r.wrong.Load(); n != 0 {
				t.Errorf("%d of %d packets had wrong checksums", n, r.packets.Load())
			}
			if n := r.supers.Load(); (n > 0) != (c.super && f.TSO4) {
				t.Errorf("%d super-packets were seen with %s", n, f)
			}
			if n := tun[0].Dropped() + tun[1].Dropped(); n != 0 {
				t.Errorf("%d packets were dropped", n)
			}
		})
	}
}

// talkTCP sends data from a to b, and checks it.
func talkTCP(t *testing.T, a, b *Namespace, addr netip.AddrPort) {
	t.Helper()
	data := random(rand.New(rand.NewPCG(7, 8)), 1<<16)
	const rounds = 64
	var l *net.TCPListener
	in(t, b, func() (err error) { l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr)); return err })
	defer l.Close()
	go func() {
		var c net.Conn
		err := a.Do(func() (err error) { c, err = net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(addr)); return err })
		if err != nil {
			t.Error(err)
			l.Close()
			return
		}
		for range rounds {
			c.Write(data)
		}
		c.Close()
	}()
	l.SetDeadline(time.Now().Add(10 * time.Second))
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	got := make([]byte, len(data))
	for i := range rounds {
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("TCP to %v: block %d arrived damaged or not at all: %v", addr, i, err)
		}
	}
}

// talkUDP sends datagrams from a to b, some by one call for many, and checks them.
func talkUDP(t *testing.T, a, b *Namespace, addr netip.AddrPort) {
	t.Helper()
	var from, to *net.UDPConn
	in(t, b, func() (err error) { to, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr)); return err })
	defer to.Close()
	in(t, a, func() (err error) { from, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addr)); return err })
	defer from.Close()
	data := random(rand.New(rand.NewPCG(9, uint64(addr.Port()))), 12*1000+300)
	oob := make([]byte, unix.CmsgSpace(2))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
	h.Level, h.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	native.PutUint16(oob[unix.CmsgLen(0):], 1000)
	to.SetDeadline(time.Now().Add(10 * time.Second))
	for range 3 {
		if _, _, err := from.WriteMsgUDP(data, oob, nil); err != nil {
			t.Skipf("no UDP_SEGMENT: %v", err)
		}
		for i := range 13 {
			want := data[i*1000 : min(i*1000+1000, len(data))]
			var b [2000]byte
			if n, err := to.Read(b[:]); err != nil || !bytes.Equal(b[:n], want) {
				t.Fatalf("UDP to %v: datagram %d arrived damaged or not at all: %d octets, %v", addr, i, n, err)
			}
		}
	}
}

// What an earlier owner made of a persistent device must not change how it is spoken to.
func TestTUNTakesOverADeviceWithOtherHeaders(t *testing.T) {
	for _, vnet := range []bool{true, false} {
		ns := newNS(t)
		needTUN(t)
		in(t, ns, func() error {
			fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			ifr, err := unix.NewIfreq("pt0")
			if err != nil {
				return err
			}
			ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
			return errors.Join(unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr), unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, 12),
				unix.IoctlSetPointerInt(fd, unix.TUNSETVNETLE, 1), unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4),
				unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1))
		})
		var queues []*TUN
		in(t, ns, func() (err error) { queues, err = openTUNWith("pt0", 1400, 1, vnet, 0); return err })
		tun := queues[0]
		addAddr(t, ns, "pt0", "10.9.0.1/24")
		in(t, ns, func() error {
			c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.MustParseAddrPort("10.9.0.2:9")))
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte("hello"))
			return err
		})
		bufs, sizes := buffers(1, 1500), make([]int, 1)
		n, err := tun.ReadBatch(bufs, sizes, 0)
		if n != 1 || err != nil || sizes[0] != 33 {
			t.Fatalf("with virtio headers %v: ReadBatch = %d of %d octets, %v, want a packet of 33", vnet, n, sizes[0], err)
		}
		verify(t, bufs[0][:33])
		tun.Close()
		if err := ns.Netlink(func(nl *Netlink) error { _, err := nl.LinkByName("pt0"); return err }); !errors.Is(err, unix.ENODEV) {
			t.Errorf("the device after Close: %v, want ENODEV", err)
		}
	}
}

func TestFeaturesAreNamed(t *testing.T) {
	if s := (tunFeatures{}).String(); s != "" {
		t.Errorf("no features are called %q", s)
	}
	s := tunFeatures{true, true, true, true, true, true}.String()
	if want := "virtio-headers checksums TSO4 TSO6 USO multi-queue"; s != want {
		t.Errorf("all features are %q, want %q", s, want)
	}
}
