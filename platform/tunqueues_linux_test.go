package platform

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func openQueues(t testing.TB, ns *Namespace, n int) []*TUN {
	t.Helper()
	needTUN(t)
	var queues []*TUN
	in(t, ns, func() (err error) { queues, err = OpenTUNQueues("pt0", 1400, n); return err })
	t.Cleanup(func() { closeQueues(t, queues) })
	return queues
}

func closeQueues(t testing.TB, queues []*TUN) {
	t.Helper()
	for _, q := range queues {
		if err := q.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	}
}

func exists(ns *Namespace) bool {
	return ns.Netlink(func(nl *Netlink) error { _, err := nl.LinkByName("pt0"); return err }) == nil
}

// hostUDP is a socket of the host at 10.9.0.1.
func hostUDP(t testing.TB, ns *Namespace, port int) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	in(t, ns, func() (err error) {
		conn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 9, 0, 1), Port: port})
		return err
	})
	t.Cleanup(func() { conn.Close() })
	return conn
}

// readFrom waits for packets of a queue; nil if none comes in that time.
func readFrom(t testing.TB, q *TUN, bufs int, limit time.Duration) [][]byte {
	t.Helper()
	b, sizes := buffers(bufs, 1500), make([]int, bufs)
	q.file.SetReadDeadline(time.Now().Add(limit))
	defer q.file.SetReadDeadline(time.Time{})
	n, err := q.ReadBatch(b, sizes, 0)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	for i := range n {
		b[i] = b[i][:sizes[i]]
	}
	return b[:n]
}

func TestTUNQueuesShareTheFlows(t *testing.T) {
	ns := newNS(t)
	queues := openQueues(t, ns, 3)
	if len(queues) != 3 || !strings.Contains(queues[2].Features(), "multi-queue") {
		t.Fatalf("%d queues, want 3; features %q", len(queues), queues[0].Features())
	}
	addAddr(t, ns, "pt0", "10.9.0.1/24")
	conn := hostUDP(t, ns, 4000)
	const flows, packets = 64, 5
	for i := range packets {
		for f := range flows {
			to := netip.AddrPortFrom(netip.MustParseAddr("10.9.0.2"), uint16(5000+f))
			if _, err := conn.WriteToUDPAddrPort([]byte(fmt.Sprintf("%d/%d", f, i)), to); err != nil {
				t.Fatal(err)
			}
		}
	}
	home := map[string]int{} // queue of each flow
	next := map[string]int{}
	for k, q := range queues {
		got := 0
		for p := readFrom(t, q, 8, time.Second); len(p) > 0; p = readFrom(t, q, 8, 50*time.Millisecond) {
			for _, b := range p {
				flow, number, _ := strings.Cut(string(b[28:]), "/")
				if was, seen := home[flow]; seen && was != k {
					t.Errorf("flow %s came out of queues %d and %d: its packets overtake each other", flow, was, k)
				}
				if number != fmt.Sprint(next[flow]) {
					t.Errorf("packet %s of flow %s, want %d", number, flow, next[flow])
				}
				home[flow] = k
				next[flow]++
				got++
			}
		}
		if got == 0 {
			t.Errorf("queue %d carried none of %d flows", k, flows)
		}
	}
	for f := range flows {
		if n := next[fmt.Sprint(f)]; n != packets {
			t.Errorf("%d of %d packets of flow %d came out", n, packets, f)
		}
	}
}

func TestTUNFlowFollowsItsOtherDirection(t *testing.T) {
	ns := newNS(t)
	queues := openQueues(t, ns, 3)
	addAddr(t, ns, "pt0", "10.9.0.1/24")
	conn := hostUDP(t, ns, 4000)
	local := netip.MustParseAddrPort("10.9.0.1:4000")
	for f := range 8 {
		peer := netip.AddrPortFrom(netip.MustParseAddr("10.9.0.2"), uint16(5000+f))
		for i := range 4 {
			k := (f + i*i) % len(queues)
			if _, err := queues[k].WriteBatch([][]byte{udp4(peer, local, "in")}, 0); err != nil {
				t.Fatal(err)
			}
			var b [16]byte
			conn.SetReadDeadline(time.Now().Add(5 * time.Second))
			if n, from, err := conn.ReadFromUDPAddrPort(b[:]); err != nil || string(b[:n]) != "in" || from != peer {
				t.Fatalf("what queue %d brought in arrived as %q from %v, %v", k, b[:n], from, err)
			}
			if _, err := conn.WriteToUDPAddrPort([]byte("out"), peer); err != nil {
				t.Fatal(err)
			}
			if p := readFrom(t, queues[k], 4, 2*time.Second); len(p) != 1 || string(p[0][28:]) != "out" {
				t.Errorf("flow %d, written to queue %d: %d packets came back there, want 1", f, k, len(p))
			}
		}
	}
}

// One call brings many datagrams in and one read takes many out, on every queue.
func TestTUNQueuesCarrySuperPackets(t *testing.T) {
	ns := newNS(t)
	queues := openQueues(t, ns, 3)
	if !queues[0].features.USO {
		t.Skipf("this kernel has only: %s", queues[0].Features())
	}
	addAddr(t, ns, "pt0", "10.9.0.1/24")
	conn := hostUDP(t, ns, 4000)
	rc, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	rc.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1) })
	if err != nil {
		t.Skipf("no UDP_GRO: %v", err)
	}
	for k, q := range queues {
		peer := netip.AddrPortFrom(netip.MustParseAddr("10.9.0.2"), uint16(5000+k))
		var out [][]byte
		for i := range 10 {
			p := udp4(peer, netip.MustParseAddrPort("10.9.0.1:4000"), text(i, 1000))
			p[6] = 0x40 // DF: all may have the identification 0
			putIPv4Checksum(p[:20])
			native.PutUint16(p[26:], ^fold(sumBytes(p[20:], sumPseudoHeader(p, false, unix.IPPROTO_UDP, len(p)-20))))
			out = append(out, p)
		}
		if n, err := q.WriteBatch(out, 0); n != 10 || err != nil {
			t.Fatalf("queue %d: WriteBatch = %d, %v", k, n, err)
		}
		b := make([]byte, 1<<16)
		conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		if n, err := conn.Read(b); n != 10*1000 || err != nil || string(b[9000:10000]) != text(9, 1000) {
			t.Errorf("queue %d: %d octets came in at once, %v, want ten datagrams of 1000", k, n, err)
		}
		var size [2]byte
		native.PutUint16(size[:], 1000)
		oob := make([]byte, unix.CmsgSpace(2))
		h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
		h.Level, h.Type = unix.SOL_UDP, unix.UDP_SEGMENT
		h.SetLen(unix.CmsgLen(2))
		copy(oob[unix.CmsgLen(0):], size[:])
		if _, _, err := conn.WriteMsgUDPAddrPort(b[:10*1000], oob, peer); err != nil {
			t.Skipf("no UDP_SEGMENT: %v", err)
		}
		p := readFrom(t, q, 4, 2*time.Second)
		if len(p) != 4 || !q.vrx.rest.more() {
			t.Errorf("queue %d: %d packets were read, want the first four of a super-packet", k, len(p))
			continue
		}
		p = append(p, readFrom(t, q, 8, 2*time.Second)...)
		if len(p) != 10 || string(p[9][28:]) != text(9, 1000) {
			t.Errorf("queue %d: %d packets out of the super-packet, want 10", k, len(p))
		}
		for _, p := range p {
			verify(t, p)
		}
	}
}

func TestTwoHostsTalkOverQueues(t *testing.T) {
	for _, c := range []struct {
		name     string
		n        [2]int
		vnet     bool
		offloads int
	}{
		{"all", [2]int{3, 2}, true, allOffloads},
		{"checksums", [2]int{2, 2}, true, unix.TUN_F_CSUM},
		{"no virtio headers", [2]int{2, 3}, false, allOffloads},
	} {
		t.Run(c.name, func(t *testing.T) {
			var ns [2]*Namespace
			var tun [2][]*TUN
			for i := range ns {
				ns[i] = newNS(t)
				needTUN(t)
				in(t, ns[i], func() (err error) {
					tun[i], err = openTUNWith("pt0", 1400, c.n[i], c.vnet, c.offloads)
					return err
				})
				addAddr(t, ns[i], "pt0", fmt.Sprintf("10.9.0.%d/24", i+1), fmt.Sprintf("fd09::%d/64", i+1))
				if len(tun[i]) != c.n[i] || tun[i][0].features.VNetHdr != c.vnet || !tun[i][0].features.MultiQueue {
					t.Fatalf("%d queues with %q", len(tun[i]), tun[i][0].Features())
				}
			}
			// What comes out of a queue goes into one of the other device, as workers would do it.
			var wg sync.WaitGroup
			var relays [2][3]relay
			for i := range tun {
				for k, q := range tun[i] {
					wg.Go(func() { relays[i][k].run(t, q, tun[1-i][k%len(tun[1-i])], 1400, 8) })
				}
			}
			for k := range 12 {
				for _, addr := range []string{"10.9.0.2", "fd09::2"} {
					to := netip.AddrPortFrom(netip.MustParseAddr(addr), uint16(4000+k))
					if k%4 == 0 {
						talkTCP(t, ns[0], ns[1], to)
					} else {
						talkUDP(t, ns[0], ns[1], to)
					}
				}
			}
			var wrong, packets, dropped int64
			for i := range tun {
				for k, q := range tun[i] {
					q.Close()
					wrong += relays[i][k].wrong.Load()
					packets += relays[i][k].packets.Load()
					dropped += int64(q.Dropped())
				}
			}
			wg.Wait()
			if wrong != 0 || dropped != 0 {
				t.Errorf("of %d packets %d had wrong checksums, %d were dropped", packets, wrong, dropped)
			}
			for k := range tun[0] {
				if relays[0][k].packets.Load() == 0 {
					t.Errorf("queue %d carried nothing", k)
				}
			}
		})
	}
}

func TestTUNQueuesCloseOneByOne(t *testing.T) {
	ns := newNS(t)
	queues := openQueues(t, ns, 3)
	addAddr(t, ns, "pt0", "10.9.0.1/24")
	conn := hostUDP(t, ns, 4000)
	for left := len(queues); left > 0; left-- {
		k := []int{1, 0, 2}[3-left] // the first is not special
		done := make(chan error)
		go func() {
			_, err := queues[k].ReadBatch(buffers(1, 1500), make([]int, 1), 0)
			done <- err
		}()
		time.Sleep(20 * time.Millisecond)
		if err := queues[k].Close(); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-done:
			if !errors.Is(err, os.ErrClosed) {
				t.Errorf("ReadBatch of queue %d after Close: %v, want os.ErrClosed", k, err)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("ReadBatch of queue %d still waits after Close", k)
		}
		if exists(ns) != (left > 1) {
			t.Fatalf("with %d queues left the device exists: %v", left-1, exists(ns))
		}
		if left == 1 {
			break
		}
		for f := range 32 {
			if _, err := conn.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(netip.MustParseAddr("10.9.0.2"), uint16(5000+f))); err != nil {
				t.Fatal(err)
			}
		}
		got := 0
		for i, q := range queues {
			if q.closed.Load() {
				continue
			}
			n := 0
			for p := readFrom(t, q, 8, time.Second); len(p) > 0; p = readFrom(t, q, 8, 50*time.Millisecond) {
				n += len(p)
			}
			if n == 0 {
				t.Errorf("queue %d carries nothing after queue %d was closed", i, k)
			}
			got += n
		}
		if got != 32 {
			t.Errorf("%d of 32 packets came out of the queues that are left", got)
		}
	}
}

// leave makes a persistent device that nobody holds, as a killed process may.
func leave(t *testing.T, ns *Namespace, flags uint16) {
	t.Helper()
	in(t, ns, func() error {
		f, err := attach("pt0", flags)
		if err != nil {
			return err
		}
		defer f.Close()
		return control(f, func(fd int) error { return unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1) })
	})
}

func TestTUNOpensAgainWithAnotherNumberOfQueues(t *testing.T) {
	ns := newNS(t)
	needTUN(t)
	for _, n := range []int{3, 1, 2, 4, 1} {
		queues := openQueues(t, ns, n)
		if len(queues) != n || strings.Contains(queues[0].Features(), "multi-queue") != (n > 1) {
			t.Errorf("%d queues with %q, want %d", len(queues), queues[0].Features(), n)
		}
		closeQueues(t, queues)
		if exists(ns) {
			t.Fatalf("the device is there after its %d queues were closed", n)
		}
	}
	// What is left behind is taken over as it is, and gone afterwards.
	const multi = unix.IFF_MULTI_QUEUE
	for _, c := range []struct {
		flags uint16
		n     int
		want  int
	}{{0, 1, 1}, {0, 3, 1}, {multi, 1, 1}, {multi, 3, 3}, {unix.IFF_VNET_HDR, 2, 1}, {unix.IFF_VNET_HDR | multi, 2, 2}} {
		for _, vnet := range []bool{true, false} {
			leave(t, ns, c.flags)
			var queues []*TUN
			in(t, ns, func() (err error) { queues, err = openTUNWith("pt0", 1400, c.n, vnet, allOffloads); return err })
			if len(queues) != c.want || queues[0].features.VNetHdr != vnet {
				t.Errorf("%d queues of a device with flags %#x: %d with %q, want %d", c.n, c.flags, len(queues), queues[0].Features(), c.want)
			}
			closeQueues(t, queues)
			if exists(ns) {
				t.Fatalf("the device that was left with flags %#x is there after Close", c.flags)
			}
		}
	}
}

// The kernel would let another process add queues of its own.
func TestTUNQueuesOfAnotherProcessAreNotJoined(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ held, n int }{{3, 1}, {3, 2}} {
		ns := newNS(t)
		needTUN(t)
		child := holdTUNQueues(t, ns, "pt0", c.held)
		in(t, ns, func() error {
			queues, err := OpenTUNQueues("pt0", 1400, c.n)
			if !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "another process holds this device") {
				t.Errorf("%d queues of a device of which another process holds %d: %v, want EBUSY and what to do", c.n, c.held, err)
				closeQueues(t, queues)
			}
			return nil
		})
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if queues := openQueues(t, ns, c.n); len(queues) != c.n {
			t.Errorf("after the kill there are %d queues, want %d: the device of the dead was taken over", len(queues), c.n)
		}
	}
}

// Two processes that open the device in the same moment, each as the first.
func TestTUNQueuesAreNotSharedByARace(t *testing.T) {
	for _, n := range []int{1, 2} {
		ns := newNS(t)
		needTUN(t)
		var nl *Netlink
		in(t, ns, func() (err error) { nl, err = OpenNetlink(); return err })
		defer nl.Close()
		d := &tunOpener{nl: nl, multi: true, vnet: true}
		in(t, ns, func() error {
			file, name, features, err := d.first("pt0")
			if err != nil {
				return err
			}
			if l, err := nl.LinkByName("pt0"); err != nil || !l.carrier || l.queues == 0 {
				t.Skipf("the kernel does not tell of queues: %+v, %v", l, err)
			}
			other, err := attach("pt0", d.flags())
			if err != nil {
				return err
			}
			defer other.Close()
			if err := d.fill(file, name, features, n); !errors.Is(err, unix.EBUSY) {
				t.Errorf("%d queues beside one of another process: %v, want EBUSY", n, err)
			}
			return nil
		})
		if exists(ns) {
			t.Error("the device is still there when both have given up")
		}
	}
}

func TestTUNWithMoreQueuesThanTheKernelHas(t *testing.T) {
	ns := newNS(t)
	queues := openQueues(t, ns, 300)
	if len(queues) < 2 || len(queues) >= 300 {
		t.Errorf("%d queues, want as many as the kernel has", len(queues))
	}
}

// A discipline for each queue that could be costs a small router's memory.
func TestTUNQueuesHaveNoDisciplineOfTheirOwn(t *testing.T) {
	ns := newNS(t)
	openQueues(t, ns, 2)
	err := ns.Netlink(func(nl *Netlink) error {
		r := ifInfo(unix.RTM_GETLINK, 0, 0, 0, 0)
		r.attrString(unix.IFLA_IFNAME, "pt0")
		m, err := nl.get(r, "look up", "pt0")
		if err != nil {
			return err
		}
		for a := (attrs{rest: m.body[unix.SizeofIfInfomsg:]}); a.next(); {
			if a.typ == unix.IFLA_QDISC && a.str() != "noqueue" {
				t.Errorf("the queueing discipline is %q, want noqueue", a.str())
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestTUNQueuesOfNoNumberAreRefused(t *testing.T) {
	for _, n := range []int{-1, 0} {
		if _, err := OpenTUNQueues("pt0", 1400, n); err == nil || !strings.Contains(err.Error(), "queues were asked for") {
			t.Errorf("%d queues: %v, want that it is out of range", n, err)
		}
	}
}

func TestTUNErrorsSayWhatHappenedToTheDevice(t *testing.T) {
	for _, c := range []struct {
		n    int
		vnet bool
	}{{1, true}, {1, false}, {3, true}, {3, false}} {
		ns := newNS(t)
		needTUN(t)
		var queues []*TUN
		in(t, ns, func() (err error) { queues, err = openTUNWith("pt0", 1400, c.n, c.vnet, allOffloads); return err })
		addAddr(t, ns, "pt0", "10.9.0.1/24")
		conn := hostUDP(t, ns, 4000)
		row := build(packetSpec{flags: tcpACK}.run(4, 1000)...)
		link := func(f func(nl *Netlink, index int) error) {
			t.Helper()
			err := ns.Netlink(func(nl *Netlink) error {
				l, err := nl.LinkByName("pt0")
				if err == nil {
					err = f(nl, l.Index)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		type result struct {
			queue, n int
			err      error
		}
		done := make(chan result, 100)
		for k, q := range queues {
			go func() {
				for {
					n, err := q.ReadBatch(buffers(4, 1500), make([]int, 4), 0)
					done <- result{k, n, err}
					if err != nil {
						return
					}
				}
			}()
		}
		link(func(nl *Netlink, index int) error { return nl.SetLinkUp(index, false) })
		for k, q := range queues {
			if n, err := q.WriteBatch(append([][]byte(nil), row...), 0); n != 0 || !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), "ip link set pt0 up") {
				t.Errorf("%v, queue %d: write to a device that is down: %d, %v, want EIO and what to do", c, k, n, err)
			}
		}
		select {
		case r := <-done:
			t.Errorf("%v: a read of a device that is down: %+v, want that it waits", c, r)
		case <-time.After(50 * time.Millisecond):
		}
		// Up again, it goes on as if nothing had been.
		link(func(nl *Netlink, index int) error { return nl.SetLinkUp(index, true) })
		for k, q := range queues {
			if n, err := q.WriteBatch(append([][]byte(nil), row...), 0); n != len(row) || err != nil {
				t.Errorf("%v, queue %d: after the device came up again: %d, %v", c, k, n, err)
			}
		}
		in(t, ns, func() error {
			_, err := conn.WriteToUDPAddrPort([]byte("x"), netip.MustParseAddrPort("10.9.0.2:9"))
			return err
		})
		select {
		case r := <-done:
			if r.n != 1 || r.err != nil {
				t.Errorf("%v: a read after the device came up again: %+v, want a packet", c, r)
			}
		case <-time.After(5 * time.Second):
			t.Errorf("%v: no packet came out after the device came up again", c)
		}
		link(func(nl *Netlink, index int) error {
			return nl.do(ifInfo(unix.RTM_DELLINK, 0, index, 0, 0), "delete", "pt0")
		})
		for range queues {
			select {
			case r := <-done:
				if !errors.Is(r.err, unix.EBADFD) || !strings.Contains(r.err.Error(), "the interface was deleted") {
					t.Errorf("%v, queue %d: read of a deleted device: %d, %v, want EBADFD and what to do", c, r.queue, r.n, r.err)
				}
			case <-time.After(5 * time.Second):
				t.Fatalf("%v: a reader does not notice that the device was deleted", c)
			}
		}
		for k, q := range queues {
			if n, err := q.WriteBatch(append([][]byte(nil), row...), 0); n != 0 || !errors.Is(err, unix.EBADFD) || !strings.Contains(err.Error(), "the interface was deleted") {
				t.Errorf("%v, queue %d: write to a deleted device: %d, %v, want EBADFD and what to do", c, k, n, err)
			}
			if err := q.Close(); err != nil {
				t.Errorf("%v, queue %d: Close of a deleted device: %v", c, k, err)
			}
		}
	}
}

// Joined or not, a write that the kernel has no room for waits.
func TestTUNWriteWaitsForRoom(t *testing.T) {
	ns := newNS(t)
	for _, q := range openQueues(t, ns, 2) {
		if err := control(q.file, func(fd int) error { return unix.IoctlSetPointerInt(fd, unix.TUNSETSNDBUF, 1) }); err != nil {
			t.Fatal(err)
		}
		p := build(packetSpec{flags: tcpACK}.run(100, 1000)...)
		within(t, 10*time.Second, "write", func() {
			for range 20 {
				if n, err := q.WriteBatch(append([][]byte(nil), p...), 0); n != len(p) || err != nil {
					t.Errorf("WriteBatch = %d, %v, want %d", n, err, len(p))
				}
			}
		})
	}
}
