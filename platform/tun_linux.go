package platform

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// The way of a packet:
//
//	1 ReadBatch waits until the kernel has a packet, then takes as many as are there,
//	  and makes MTU-sized packets of super-packets (tunvnet_linux.go, tungso_linux.go)
//	2 the engine seals them (or opens what came from the socket)
//	3 WriteBatch hands opened packets to the kernel, one write for each, or one for
//	  those that belong together (tungro_linux.go)

// TUN is a TUN device, or one of its queues: a network interface whose packets this
// process reads and writes. It vanishes with the process, however that ends. One goroutine
// may read and several may write at once; neither allocates. The queues of a device share
// nothing here.
type TUN struct {
	name     string
	file     *os.File
	rc       syscall.RawConn
	closed   atomic.Bool
	features tunFeatures
	dropped  atomic.Uint64

	// The reader's and the writers' call in flight. The closures are made once, since a
	// closure per call would be an allocation per call.
	rx  tunCall
	wmu sync.Mutex
	tx  tunCall

	vrx *vnetReader // nil: packets come and go without virtio headers
	vtx *vnetWriter
}

type tunCall struct {
	run   func(fd uintptr) bool
	bufs  [][]byte
	sizes []int
	off   int
	n     int
	err   error
}

// Name returns the interface's name.
func (t *TUN) Name() string { return t.name }

// Features names what was found to work when the device was opened, separated by spaces:
// virtio-headers, checksums, TSO4, TSO6, USO, multi-queue. It is "" if nothing was.
func (t *TUN) Features() string { return t.features.String() }

// Dropped returns how many reads of the kernel's packets were thrown away: a packet (or
// a segment of a super-packet, with all that follow it) did not fit the caller's buffer,
// or the header in front of it did not fit the packet.
func (t *TUN) Dropped() uint64 { return t.dropped.Load() }

// ReadBatch waits for a packet, then reads as many as are waiting, at most len(bufs):
// packet i is bufs[i][off:off+sizes[i]]. Each buffer has room for the MTU; a packet that
// does not fit is dropped, or cut off by a kernel without virtio headers. What is
// left of a super-packet when bufs are full comes first in the next call; a call ends behind
// the last segment of one where another as long would not fit. After Close the error wraps
// os.ErrClosed.
func (t *TUN) ReadBatch(bufs [][]byte, sizes []int, off int) (int, error) {
	c := &t.rx
	c.bufs, c.sizes, c.off, c.n, c.err = bufs, sizes, off, 0, nil
	err := t.rc.Read(c.run)
	c.bufs, c.sizes = nil, nil
	return t.result(c, err, "read from")
}

func (t *TUN) readReady(fd uintptr) bool {
	c := &t.rx
	for c.n < len(c.bufs) && c.n < len(c.sizes) {
		n, errno := read(fd, c.bufs[c.n][c.off:])
		switch errno {
		case 0:
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return c.n > 0
		default:
			// What was read before the error is delivered; the error comes again.
			if c.n == 0 {
				c.err = errno
			}
			return true
		}
		c.sizes[c.n] = n
		c.n++
	}
	return true
}

// WriteBatch writes the packets bufs[i][off:] and returns how many the kernel took
// before the error, if any; the one at fault is the next. The packets stay as they are;
// after an error alone their slices may have been put into another order, so that those
// that the kernel took come first. After Close the error wraps os.ErrClosed.
func (t *TUN) WriteBatch(bufs [][]byte, off int) (int, error) {
	t.wmu.Lock()
	defer t.wmu.Unlock()
	c := &t.tx
	c.bufs, c.off, c.n, c.err = bufs, off, 0, nil
	if t.vtx != nil {
		t.vtx.begin()
	}
	err := t.rc.Write(c.run)
	if t.vtx != nil {
		t.vtx.end(c)
	}
	c.bufs = nil
	return t.result(c, err, "write to")
}

func (t *TUN) writeReady(fd uintptr) bool {
	c := &t.tx
	for c.n < len(c.bufs) {
		switch _, errno := write(fd, c.bufs[c.n][c.off:]); errno {
		case 0:
			c.n++
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			c.err = errno
			return true
		}
	}
	return true
}

func (t *TUN) result(c *tunCall, err error, op string) (int, error) {
	if err == nil {
		err = c.err
	}
	if err == nil {
		return c.n, nil
	}
	return c.n, t.callError(op, err)
}

func (t *TUN) callError(op string, err error) error {
	if t.closed.Load() {
		return &OpError{Op: op, Object: t.name, Err: os.ErrClosed}
	}
	var errno syscall.Errno
	if !errors.As(err, &errno) && control(t.file, attached) == unix.EBADFD {
		// The poller noticed first, and says of this descriptor that it cannot be waited for.
		err = unix.EBADFD
	}
	hint := ""
	switch {
	case errors.Is(err, unix.EBADFD):
		hint = "the interface was deleted; restart postern to make it again"
	case errors.Is(err, unix.EIO):
		hint = "the interface is down; set it up again: ip link set " + t.name + " up"
	}
	return &OpError{Op: op, Object: t.name, Err: err, Hint: hint}
}

// attached fails with EBADFD if the descriptor's interface is gone.
func attached(fd int) error {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return err
	}
	return unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr)
}

// Close removes the device, or gives back the queue; with the last queue the device goes.
// A ReadBatch that waits returns.
func (t *TUN) Close() error {
	if t.closed.Swap(true) {
		return &OpError{Op: "close", Object: t.name, Err: os.ErrClosed}
	}
	return t.file.Close()
}
