//go:build linux && peers

package e2e

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// measure is one thing that is measured of each contender.
type measure int

const (
	tcpOne    measure = iota // Mbit/s of payload
	tcpFour                  // the same, all streams together
	udpRate                  // packets delivered per second, in thousands, at capacity
	udpOver                  // the same under overload
	udpSent                  // packets sent per second under overload, in thousands
	cpuGB                    // CPU seconds of both gateways for 10^9 octets of one TCP stream
	rssA                     // MiB, the most in the life of the gateway that sends
	rssB                     // the same of the one that receives
	callsTCPA                // system calls of the gateway that sends, for 10^6 octets of one TCP stream
	callsTCPB                // the same of the one that receives
	callsUDPA                // and for 10^6 octets of UDP payload at capacity
	callsUDPB
	measures
)

// udpPayload is what polls and telemetry are made of.
const udpPayload = 200

// oneStream measures one TCP stream, and what the two gateways spend on it.
func (c *contender) oneStream(d time.Duration) (string, error) {
	before, err := c.cpu()
	if err != nil {
		return "", err
	}
	mbits, err := c.tcp(tcpOne, d, 1)
	if err != nil {
		return "", err
	}
	said := fmt.Sprintf("%7.0f Mbit/s", mbits)
	after, err := c.cpu()
	if err != nil || c.a == nil {
		return said, err
	}
	perGB := (after - before).Seconds() / (mbits * d.Seconds() / 8000)
	c.measured[cpuGB] = append(c.measured[cpuGB], perGB)
	return fmt.Sprintf("%s  %5.2f CPU s/GB", said, perGB), nil
}

// fourStreams measures four TCP streams at once.
func (c *contender) fourStreams(d time.Duration) (string, error) {
	mbits, err := c.tcp(tcpFour, d, 4)
	return fmt.Sprintf("%7.0f Mbit/s", mbits), err
}

// tcp runs iperf3 through the tunnel and books what arrived, in Mbit/s.
func (c *contender) tcp(m measure, d time.Duration, streams int) (float64, error) {
	r, err := c.s.iperf3(hostB4, "-B", hostA4.String(), "-t", strconv.Itoa(int(d.Seconds())), "-P", strconv.Itoa(streams))
	if err != nil {
		return 0, err
	}
	if r.mbits <= 0 {
		return 0, fmt.Errorf("nothing arrived")
	}
	c.measured[m] = append(c.measured[m], r.mbits)
	return r.mbits, nil
}

// cpu returns what both gateways have used so far.
func (c *contender) cpu() (time.Duration, error) {
	if c.a == nil {
		return 0, nil
	}
	a, err := c.a.cpuTime()
	if err != nil {
		return 0, err
	}
	b, err := c.b.cpuTime()
	return a + b, err
}

// memory books the peak memory of both gateways.
func (c *contender) memory() error {
	for m, p := range map[measure]*process{rssA: c.a, rssB: c.b} {
		if p == nil {
			continue
		}
		mib, err := p.peakRSS()
		if err != nil {
			return fmt.Errorf("peak memory of %s: %w", c.name, err)
		}
		c.measured[m] = []float64{mib}
	}
	return nil
}

// atCapacity measures how many small UDP packets per second pass when the load follows
// the gateways: there is always something to do for them, and nearly nothing to drop.
func (c *contender) atCapacity(d time.Duration) (string, error) {
	sent, received, err := c.s.flood(udpPayload, *peersWindow, d)
	if err != nil {
		return "", err
	}
	c.measured[udpRate] = append(c.measured[udpRate], received/1e3)
	return fmt.Sprintf("%7.1f kpps of %.1f sent", received/1e3, sent/1e3), nil
}

// overload measures how many still pass when far more are sent than can pass, and the
// sender takes its share of the processors from the gateways.
func (c *contender) overload(d time.Duration) (string, error) {
	sent, received, err := c.s.flood(udpPayload, 0, d)
	if err != nil {
		return "", err
	}
	c.measured[udpOver] = append(c.measured[udpOver], received/1e3)
	c.measured[udpSent] = append(c.measured[udpSent], sent/1e3)
	return fmt.Sprintf("%7.1f kpps of %.1f sent", received/1e3, sent/1e3), nil
}

// floodWarmUp is how long a flood runs before it counts.
const floodWarmUp = 300 * time.Millisecond

// giveUp is how long a window of packets waits for one to arrive before it takes them all
// for lost. It is longer than the scheduler keeps a gateway waiting.
const giveUp = 20 * time.Millisecond

// flood sends UDP packets from LAN A to LAN B for the time given and returns how many per
// second were sent and arrived. Many go with one system call, which costs the tools less;
// to the gateways they are as many packets. With a window of more than 0 no more than
// that many packets are under way: the sender waits for the receiver.
func (s *site) flood(payload, window int, d time.Duration) (sent, received float64, err error) {
	r, err := s.floodBetween(payload, window, d, func() {}, func() {})
	if err != nil {
		return 0, 0, err
	}
	return float64(r.sent) / r.took.Seconds(), float64(r.arrived) / r.took.Seconds(), nil
}

// flooded is what came of a flood, while it counted.
type flooded struct {
	sent, arrived int64
	took          time.Duration
}

// floodBetween is flood that calls begin and end where it begins and ends to count.
func (s *site) floodBetween(payload, window int, d time.Duration, begin, end func()) (flooded, error) {
	return s.floodAs(floodPlan{bind: hostB4}, payload, window, d, begin, end)
}

// floodPlan says where a flood goes.
type floodPlan struct {
	bind netip.Addr // the receiver's address
	// aim addresses the next n packets to the port; nil: all go to bind.
	aim func(m *mmsg, n, port int)
}

func (s *site) floodAs(plan floodPlan, payload, window int, d time.Duration, begin, end func()) (r flooded, err error) {
	var in, out int
	if err = inNamespace(s.lanB, func() (err error) {
		in, err = udpSocket(plan.bind.As4())
		return err
	}); err != nil {
		return r, err
	}
	defer unix.Close(in)
	bound, err := unix.Getsockname(in)
	if err != nil {
		return r, fmt.Errorf("the receiver's port: %w", err)
	}
	port := bound.(*unix.SockaddrInet4).Port
	if err = inNamespace(s.lanA, func() (err error) {
		if out, err = udpSocket(hostA4.As4()); err == nil && plan.aim == nil {
			err = unix.Connect(out, &unix.SockaddrInet4{Port: port, Addr: hostB4.As4()})
		}
		return err
	}); err != nil {
		return r, err
	}
	defer unix.Close(out)

	var (
		stop, quiet    atomic.Bool
		nOut, nIn      atomic.Int64
		outErr, inErr  error
		sender, taker  sync.WaitGroup
		stamp          = uint64(time.Now().UnixNano()) // tells this run's packets from an earlier one's
		receiveTimeout = unix.NsecToTimeval((100 * time.Millisecond).Nanoseconds())
	)
	if err = unix.SetsockoptTimeval(in, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &receiveTimeout); err != nil {
		return r, fmt.Errorf("SO_RCVTIMEO: %w", err)
	}
	taker.Go(func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var m mmsg
		m.init(64, payload+1) // one octet more shows packets that are too long
		for {
			n, err := m.call(unix.SYS_RECVMMSG, in, len(m.headers), unix.MSG_WAITFORONE)
			switch {
			case err == unix.EAGAIN: // the timeout
				if quiet.Load() {
					return
				}
			case err == unix.EINTR:
			case err != 0:
				inErr = fmt.Errorf("receive: %w", err)
				return
			}
			good := 0
			for i := range n {
				if int(m.headers[i].n) == payload && binary.BigEndian.Uint64(m.data[i]) == stamp {
					good++
				}
			}
			nIn.Add(int64(good))
		}
	})
	sender.Go(func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var m mmsg
		m.init(16, payload)
		for i := range m.data {
			binary.BigEndian.PutUint64(m.data[i], stamp)
		}
		var lost, seen int64 // given up on; nIn when it last changed
		moved := time.Now()
		for !stop.Load() {
			room := len(m.headers)
			if window > 0 {
				now := nIn.Load()
				switch {
				case now != seen:
					seen, moved = now, time.Now()
				case time.Since(moved) > giveUp:
					lost, moved = nOut.Load()-now, time.Now()
				}
				if room = min(room, window-int(nOut.Load()-lost-now)); room <= 0 {
					time.Sleep(20 * time.Microsecond)
					continue
				}
			}
			if plan.aim != nil {
				plan.aim(&m, room, port)
			}
			switch n, err := m.call(unix.SYS_SENDMMSG, out, room, 0); err {
			case 0:
				nOut.Add(int64(n))
			case unix.ENOBUFS, unix.EAGAIN, unix.EINTR, unix.ENOMEM: // full for a moment
			default:
				outErr = fmt.Errorf("send: %w", err)
				return
			}
		}
	})
	time.Sleep(floodWarmUp)
	begin()
	out0, in0, from := nOut.Load(), nIn.Load(), time.Now()
	time.Sleep(d)
	r = flooded{sent: nOut.Load() - out0, arrived: nIn.Load() - in0, took: time.Since(from)}
	end()
	stop.Store(true)
	sender.Wait()
	quiet.Store(true) // what is still under way must not meet the next run
	taker.Wait()
	switch {
	case outErr != nil:
		return r, outErr
	case inErr != nil:
		return r, inErr
	case r.arrived == 0:
		return r, fmt.Errorf("of %d packets of %d octets none arrived", r.sent, payload)
	}
	return r, nil
}

// udpSocket opens a blocking UDP socket with large buffers, bound to the address, in the
// thread's namespace.
func udpSocket(addr [4]byte) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	for _, option := range []int{unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
		if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 8<<20); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("larger socket buffers: %w", err)
		}
	}
	if err = unix.Bind(fd, &unix.SockaddrInet4{Addr: addr}); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("bind: %w", err)
	}
	return fd, nil
}

// mmsg is a batch of packets for sendmmsg and recvmmsg on a socket that is connected, or
// whose senders do not matter.
type mmsg struct {
	headers []mmsghdr
	vectors []unix.Iovec
	data    [][]byte
	names   []unix.RawSockaddrInet4
}

// mmsghdr is struct mmsghdr; Go pads it as C does.
type mmsghdr struct {
	unix.Msghdr
	n uint32
}

// init makes room for n packets of that size.
func (m *mmsg) init(n, size int) {
	m.headers, m.vectors, m.data = make([]mmsghdr, n), make([]unix.Iovec, n), make([][]byte, n)
	m.names = make([]unix.RawSockaddrInet4, n)
	for i := range n {
		m.data[i] = make([]byte, size)
		m.vectors[i].Base = &m.data[i][0]
		m.vectors[i].SetLen(size)
		m.headers[i].Iov = &m.vectors[i]
		m.headers[i].SetIovlen(1)
	}
}

// call hands the first n packets to the system call and returns how many it took.
func (m *mmsg) call(number uintptr, fd, n, flags int) (int, unix.Errno) {
	r, _, err := unix.Syscall6(number, uintptr(fd), uintptr(unsafe.Pointer(&m.headers[0])), uintptr(n), uintptr(flags), 0, 0)
	if err != 0 {
		return 0, err
	}
	return int(r), 0
}

// name returns where the system call finds the address of packet i.
func (m *mmsg) name(i int) *byte { return (*byte)(unsafe.Pointer(&m.names[i])) }

// networkOrder returns a port as it stands in a socket address.
func networkOrder(port int) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, uint16(port)))
}
