package platform

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/songgao/water"
	"golang.org/x/sys/unix"
)

// The way of a packet:
//
//	1 ReadBatch waits until the kernel has a packet, then takes as many as are there
//	2 the engine seals them (or opens what came from the socket)
//	3 WriteBatch hands opened packets to the kernel, one write for each

const tunPath = "/dev/net/tun"

// tunBusyWait is how long a start waits for the kernel to take back the device of a
// process that was killed a moment ago.
const tunBusyWait = 2 * time.Second

// TUN is a TUN device: a network interface whose packets this process reads and writes.
// It vanishes with the process, however that ends. One goroutine may read and several
// may write at once; neither allocates.
type TUN struct {
	name   string
	file   *os.File
	rc     syscall.RawConn
	closed atomic.Bool

	// The reader's and the writers' call in flight. The closures are made once, since a
	// closure per call would be an allocation per call.
	rx  tunCall
	wmu sync.Mutex
	tx  tunCall
}

type tunCall struct {
	run   func(fd uintptr) bool
	bufs  [][]byte
	sizes []int
	off   int
	n     int
	err   error
}

// OpenTUN makes the TUN device, or takes over one of that name that nobody holds, sets
// its MTU (octets, 68 to 65535) and brings it up without any address. A name such as
// "tun%d" lets the kernel choose the number. The errors name what is missing: the kernel
// module, the privilege, or the interface that has the name already.
func OpenTUN(name string, mtu int) (*TUN, error) {
	if err := checkInterfaceName(name); err != nil {
		return nil, err
	}
	if mtu < 68 || mtu > 65535 {
		return nil, &OpError{Op: "open TUN device", Object: name, Err: fmt.Errorf("mtu %d is outside 68 to 65535", mtu)}
	}
	if err := checkTUNDevice(name); err != nil {
		return nil, err
	}
	nl, err := OpenNetlink()
	if err != nil {
		return nil, err
	}
	defer nl.Close()
	if l, err := nl.LinkByName(name); err == nil && l.Kind != "tun" {
		return nil, &OpError{
			Op: "open TUN device", Object: name, Err: unix.EEXIST,
			Hint: "an interface of another kind has this name; choose another name for the device",
		}
	}
	f, name, err := openWater(name)
	if err != nil {
		return nil, err
	}
	t := &TUN{name: name, file: f}
	if err := t.setUp(nl, mtu); err != nil {
		f.Close()
		return nil, err
	}
	return t, nil
}

func (t *TUN) setUp(nl *Netlink, mtu int) error {
	var err error
	if t.rc, err = t.file.SyscallConn(); err != nil {
		return &OpError{Op: "open TUN device", Object: t.name, Err: err}
	}
	t.rx.run = t.readReady
	t.tx.run = t.writeReady
	l, err := nl.LinkByName(t.name)
	if err != nil {
		return err
	}
	// The kernel would otherwise invent a link-local address and speak neighbour
	// discovery into the tunnel. Kernels without IPv6 refuse; they are silent anyway.
	_ = nl.SetAddrGenNone(l.Index)
	if err := nl.SetLinkMTU(l.Index, mtu); err != nil {
		return err
	}
	if err := nl.SetLinkUp(l.Index, true); err != nil {
		return err
	}
	// What comes out of the tunnel was checked against the selectors (RFC 4301 section
	// 5.2); reverse path filtering has nothing to add, and drops in silence where an
	// answer goes another way. Only 0 will do, for without an address on the interface
	// the loose kind (2) is as strict. Best effort: /proc/sys may be read-only.
	_ = os.WriteFile("/proc/sys/net/ipv4/conf/"+t.name+"/rp_filter", []byte("0"), 0)
	return nil
}

// Name returns the interface's name.
func (t *TUN) Name() string { return t.name }

// ReadBatch waits for a packet, then reads as many as are waiting, at most len(bufs):
// packet i is bufs[i][off:off+sizes[i]]. A packet that does not fit is cut off by the
// kernel, so each buffer has room for the MTU. After Close the error wraps os.ErrClosed.
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
		n, err := unix.Read(int(fd), c.bufs[c.n][c.off:])
		if err == unix.EINTR {
			continue
		}
		if err == unix.EAGAIN {
			return c.n > 0
		}
		if err != nil {
			// What was read before the error is delivered; the error comes again.
			if c.n == 0 {
				c.err = err
			}
			return true
		}
		c.sizes[c.n] = n
		c.n++
	}
	return true
}

// WriteBatch writes the packets bufs[i][off:] and returns how many the kernel took
// before the error, if any; the one at fault is the next. After Close the error wraps
// os.ErrClosed.
func (t *TUN) WriteBatch(bufs [][]byte, off int) (int, error) {
	t.wmu.Lock()
	defer t.wmu.Unlock()
	c := &t.tx
	c.bufs, c.off, c.n, c.err = bufs, off, 0, nil
	err := t.rc.Write(c.run)
	c.bufs = nil
	return t.result(c, err, "write to")
}

func (t *TUN) writeReady(fd uintptr) bool {
	c := &t.tx
	for c.n < len(c.bufs) {
		_, err := unix.Write(int(fd), c.bufs[c.n][c.off:])
		if err == unix.EINTR {
			continue
		}
		if err == unix.EAGAIN {
			return false
		}
		if err != nil {
			c.err = err
			return true
		}
		c.n++
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
	hint := ""
	switch {
	case errors.Is(err, unix.EBADFD):
		hint = "the interface was deleted; restart postern to make it again"
	case errors.Is(err, unix.EIO):
		hint = "the interface is down; set it up again: ip link set " + t.name + " up"
	}
	return &OpError{Op: op, Object: t.name, Err: err, Hint: hint}
}

// Close removes the device. A ReadBatch that waits returns.
func (t *TUN) Close() error {
	if t.closed.Swap(true) {
		return &OpError{Op: "close", Object: t.name, Err: os.ErrClosed}
	}
	return t.file.Close()
}

func checkInterfaceName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) >= unix.IFNAMSIZ || strings.ContainsAny(name, "/: \t\n\v\f\r") {
		return &OpError{
			Op: "open TUN device", Err: fmt.Errorf("%q is no name of an interface", name),
			Hint: fmt.Sprintf("use 1 to %d characters without space, slash or colon", unix.IFNAMSIZ-1),
		}
	}
	return nil
}

// checkTUNDevice looks before water leaps, so that the usual failures (no module, no
// privilege) are told apart and cost no descriptor.
func checkTUNDevice(name string) error {
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
		return nil
	}
	hint := "run as root or with CAP_NET_ADMIN"
	if err == unix.ENOENT || err == unix.ENODEV || err == unix.ENXIO {
		hint = "the kernel has no TUN: load the module (modprobe tun; on OpenWrt install kmod-tun), in a container pass the device in"
	}
	return &OpError{Op: "open TUN device " + name + ":", Object: tunPath, Err: err, Hint: hint}
}

// waterMu makes the hunt for a leaked descriptor safe when two devices are opened.
var waterMu sync.Mutex

// openWater opens the device and gives it what water leaves out: close-on-exec, and no
// descriptor left behind by a failure. A device that another process is still giving
// back is waited for. The device is not persistent, also if it was so before.
func openWater(name string) (*os.File, string, error) {
	waterMu.Lock()
	defer waterMu.Unlock()
	config := water.Config{DeviceType: water.TUN, PlatformSpecificParams: water.PlatformSpecificParams{Name: name}}
	for deadline := time.Now().Add(tunBusyWait); ; time.Sleep(20 * time.Millisecond) {
		before := tunDescriptors()
		// Nothing may fork between the open and close-on-exec.
		syscall.ForkLock.RLock()
		w, err := water.New(config)
		if err == nil {
			f := w.ReadWriteCloser.(*os.File)
			err = control(f, func(fd int) error {
				unix.CloseOnExec(fd)
				return unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 0)
			})
			syscall.ForkLock.RUnlock()
			if err != nil {
				f.Close()
				return nil, "", &OpError{Op: "open TUN device", Object: name, Err: err}
			}
			return f, w.Name(), nil
		}
		for fd := range tunDescriptors() {
			if !before[fd] {
				unix.Close(fd)
			}
		}
		syscall.ForkLock.RUnlock()
		if errors.Is(err, unix.EBUSY) && time.Now().Before(deadline) {
			continue
		}
		return nil, "", &OpError{Op: "open TUN device", Object: name, Err: err, Hint: waterHint(err)}
	}
}

func waterHint(err error) string {
	switch {
	case errors.Is(err, unix.EPERM):
		return "run as root or with CAP_NET_ADMIN"
	case errors.Is(err, unix.EBUSY):
		return "another process holds this device; stop it (is postern running already?) or choose another name"
	case errors.Is(err, unix.EINVAL):
		return "a TAP or multi-queue device has this name; delete it or choose another name"
	}
	return ""
}

// tunDescriptors lists the descriptors of this process that are open on /dev/net/tun.
func tunDescriptors() map[int]bool {
	fds := map[int]bool{}
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fds
	}
	for _, e := range dir {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && to == tunPath {
			var fd int
			if _, err := fmt.Sscan(e.Name(), &fd); err == nil {
				fds[fd] = true
			}
		}
	}
	return fds
}

// control runs f with the descriptor without making the file blocking, as Fd would.
func control(file *os.File, f func(fd int) error) error {
	rc, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := rc.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}
