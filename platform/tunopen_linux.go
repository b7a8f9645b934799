package platform

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/songgao/water"
	"golang.org/x/sys/unix"
)

const tunPath = "/dev/net/tun"

// tunBusyWait is how long a start waits for the kernel to take back the device of a
// process that was killed a moment ago.
const tunBusyWait = 2 * time.Second

// OpenTUN makes the TUN device, or takes over one of that name that nobody holds, sets
// its MTU (octets, 68 to 65535) and brings it up without any address. A name such as
// "tun%d" lets the kernel choose the number. The errors name what is missing: the kernel
// module, the privilege, or the interface that has the name already. What a kernel does
// not have of what [TUN.Features] names is done without.
func OpenTUN(name string, mtu int) (*TUN, error) {
	queues, err := openTUNWith(name, mtu, 1, true, allOffloads)
	if err != nil {
		return nil, err
	}
	return queues[0], nil
}

// OpenTUNQueues is [OpenTUN] with n queues: each result reads and writes through a queue of
// its own, and the device is gone when the last of them is closed. Packets of a flow come
// out of the queue through which the opposite direction of it was last written; until
// something was, a hash of the flow decides. Fewer than n queues come back where the kernel
// gives no more, and one where it knows no queues or where the device that is taken over
// was made without. With n of 1 the device has no queues but its one.
func OpenTUNQueues(name string, mtu, n int) ([]*TUN, error) {
	return openTUNWith(name, mtu, n, true, allOffloads)
}

// openTUNWith is OpenTUNQueues that tries only some of what a kernel may have.
func openTUNWith(name string, mtu, n int, vnet bool, offloads int) ([]*TUN, error) {
	if err := checkInterfaceName(name); err != nil {
		return nil, err
	}
	if mtu < 68 || mtu > 65535 {
		return nil, &OpError{Op: "open TUN device", Object: name, Err: fmt.Errorf("mtu %d is outside 68 to 65535", mtu)}
	}
	if n < 1 {
		return nil, &OpError{Op: "open TUN device", Object: name, Err: fmt.Errorf("%d queues were asked for", n)}
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
	d := &tunOpener{nl: nl, multi: n > 1, vnet: vnet, offloads: offloads}
	if err := d.open(name, n); err != nil {
		return nil, err
	}
	if err := d.setUp(mtu); err != nil {
		d.close()
		return nil, err
	}
	return d.queues, nil
}

// tunOpener is a device that is being opened.
type tunOpener struct {
	nl       *Netlink
	multi    bool // with IFF_MULTI_QUEUE
	vnet     bool // with virtio headers
	offloads int
	queues   []*TUN
}

func (d *tunOpener) close() {
	for _, t := range d.queues {
		t.file.Close()
	}
}

// flags are those that every queue of the device is attached with.
func (d *tunOpener) flags() uint16 {
	var f uint16
	if d.multi {
		f |= unix.IFF_MULTI_QUEUE
	}
	if d.vnet {
		f |= unix.IFF_VNET_HDR
	}
	return f
}

// open opens the device and up to n queues of it, with virtio headers where that works.
func (d *tunOpener) open(name string, n int) error {
	waterMu.Lock()
	defer waterMu.Unlock()
	file, name, features, err := d.first(name)
	if err != nil {
		return err
	}
	return d.fill(file, name, features, n)
}

// fill makes the queues, of which the first is open.
func (d *tunOpener) fill(file *os.File, name string, features tunFeatures, n int) error {
	d.queues = append(d.queues, &TUN{name: name, file: file})
	for d.multi && len(d.queues) < n {
		// The kernel has a largest number, and may lack the memory for less.
		file, err := attach(name, d.flags())
		if err != nil {
			break
		}
		d.queues = append(d.queues, &TUN{name: name, file: file})
	}
	features.MultiQueue = len(d.queues) > 1
	for _, t := range d.queues {
		t.features = features
		if d.vnet {
			t.vrx, t.vtx = new(vnetReader), new(vnetWriter)
			t.vtx.plan.tcp, t.vtx.plan.udp = true, features.USO
		}
	}
	// Anybody with the privilege may add queues; of two that do so at once each would get a
	// part of the packets.
	if l, err := d.nl.LinkByName(name); err == nil && d.multi && l.queues > len(d.queues) {
		d.close()
		return &OpError{Op: "open TUN device", Object: name, Err: unix.EBUSY, Hint: waterHint(unix.EBUSY)}
	}
	return nil
}

// first opens the device's first queue, which determines the headers of all, and makes
// the device vanish with its last.
func (d *tunOpener) first(name string) (*os.File, string, tunFeatures, error) {
	var features tunFeatures
	file, name, err := d.openWater(name)
	if err != nil || !d.vnet {
		return file, name, features, err
	}
	// water knows no virtio headers, and what it opened cannot be given them afterwards:
	// the device outlives its descriptor and is opened again.
	file.Close()
	if file, err = attach(name, d.flags()); err == nil {
		if err = control(file, setVNetHdr); err == nil {
			err = control(file, func(fd int) error {
				features = setOffloads(fd, d.offloads)
				return unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 0)
			})
			if err == nil {
				features.VNetHdr = true
				return file, name, features, nil
			}
		}
		file.Close()
	}
	d.vnet = false
	if file, err = attach(name, d.flags()); err != nil {
		return nil, name, features, &OpError{Op: "open TUN device", Object: name, Err: err, Hint: waterHint(err)}
	}
	err = control(file, func(fd int) error {
		setOffloads(fd, 0)
		return unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 0)
	})
	if err != nil {
		file.Close()
		return nil, name, features, &OpError{Op: "open TUN device", Object: name, Err: err}
	}
	return file, name, tunFeatures{}, nil
}

// attach opens the device that is there.
func attach(name string, flags uint16) (*os.File, error) {
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), tunPath), nil
}

// tunFlags returns the flags that the device has: the kernel ignores those that it does
// not know, and those of a queue that is not the first.
func tunFlags(fd int) (uint16, error) {
	ifr, err := unix.NewIfreq("")
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr)
	}
	if err != nil {
		return 0, err
	}
	return ifr.Uint16(), nil
}

// setVNetHdr checks that the kernel puts a header in front of the packets, and makes it
// the one that is expected, whatever an earlier owner of the device had.
func setVNetHdr(fd int) error {
	flags, err := tunFlags(fd)
	if err != nil {
		return err
	}
	if flags&unix.IFF_VNET_HDR == 0 {
		return unix.EOPNOTSUPP
	}
	// The machine's byte order is the default; the calls are newer than the header.
	_ = unix.IoctlSetPointerInt(fd, unix.TUNSETVNETLE, 0)
	_ = unix.IoctlSetPointerInt(fd, unix.TUNSETVNETBE, 0)
	return unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, vnetHdrSize)
}

// allOffloads is what the kernel may leave to postern.
const allOffloads = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_USO4 | unix.TUN_F_USO6

// setOffloads asks for each of the wanted offloads, and tells which the kernel took. It
// takes those for segmentation only together with the one for checksums, and the two for
// UDP only together.
func setOffloads(fd, wanted int) tunFeatures {
	var f tunFeatures
	_ = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, 0) // an earlier owner's
	on := 0
	for _, try := range []struct {
		bits int
		flag *bool
	}{
		{unix.TUN_F_CSUM, &f.Checksum},
		{unix.TUN_F_TSO4, &f.TSO4},
		{unix.TUN_F_TSO6, &f.TSO6},
		{unix.TUN_F_USO4 | unix.TUN_F_USO6, &f.USO},
	} {
		if wanted&try.bits != try.bits || unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, on|try.bits) != nil {
			continue
		}
		on |= try.bits
		*try.flag = true
	}
	return f
}

func (d *tunOpener) setUp(mtu int) error {
	for _, t := range d.queues {
		var err error
		if t.rc, err = t.file.SyscallConn(); err != nil {
			return &OpError{Op: "open TUN device", Object: t.name, Err: err}
		}
		t.rx.run, t.tx.run = t.readReady, t.writeReady
		if t.vrx != nil {
			t.rx.run, t.tx.run = t.readReadyVNet, t.writeReadyVNet
		}
	}
	nl, name := d.nl, d.queues[0].name
	l, err := nl.LinkByName(name)
	if err != nil {
		return err
	}
	// The kernel would otherwise invent a link-local address and speak neighbour
	// discovery into the tunnel. Kernels without IPv6 refuse; they are silent anyway.
	_ = nl.SetAddrGenNone(l.Index)
	if err := nl.SetLinkMTU(l.Index, mtu); err != nil {
		return err
	}
	if d.multi && !l.Up() {
		// The kernel's default would be a discipline for each of the 256 queues that the
		// device could have, 3.5 MB in all, and none of them ever holds a packet: a TUN device
		// takes all at once. Best effort: a kernel may be built without disciplines.
		_ = nl.SetNoQueue(l.Index)
	}
	if err := nl.SetLinkUp(l.Index, true); err != nil {
		return err
	}
	// What comes out of the tunnel was checked against the selectors (RFC 4301 section
	// 5.2); reverse path filtering has nothing to add, and drops in silence where an
	// answer goes another way. Only 0 will do, for without an address on the interface
	// the loose kind (2) is as strict. Best effort: /proc/sys may be read-only.
	_ = os.WriteFile("/proc/sys/net/ipv4/conf/"+name+"/rp_filter", []byte("0"), 0)
	return nil
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
// back is waited for. Where the device that is there was made the other way, with queues
// or without, it is taken over as it is. If it is not to be opened again for virtio headers
// the device does not persist, also if it did so before. waterMu is held.
func (d *tunOpener) openWater(name string) (*os.File, string, error) {
	other := false
	for deadline := time.Now().Add(tunBusyWait); ; time.Sleep(20 * time.Millisecond) {
		f, made, err := d.tryWater(name)
		switch {
		case err == nil:
			return f, made, nil
		case errors.Is(err, unix.EINVAL) && !other:
			other, d.multi = true, !d.multi
			continue
		case errors.Is(err, unix.EBUSY) && time.Now().Before(deadline):
			continue
		}
		return nil, "", &OpError{Op: "open TUN device", Object: name, Err: err, Hint: waterHint(err)}
	}
}

// tryWater is one try of openWater.
func (d *tunOpener) tryWater(name string) (*os.File, string, error) {
	if d.multi {
		// The kernel would take us for another queue of whoever holds the device. One that
		// nobody holds has no carrier.
		if l, err := d.nl.LinkByName(name); err == nil && l.carrier {
			return nil, "", unix.EBUSY
		}
	}
	before := tunDescriptors()
	// Nothing may fork between the open and close-on-exec.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	w, err := water.New(water.Config{DeviceType: water.TUN, PlatformSpecificParams: water.PlatformSpecificParams{
		Name: name, Persist: d.vnet, MultiQueue: d.multi,
	}})
	if err != nil {
		for fd := range tunDescriptors() {
			if !before[fd] {
				unix.Close(fd)
			}
		}
		return nil, "", err
	}
	f := w.ReadWriteCloser.(*os.File)
	err = control(f, func(fd int) error {
		unix.CloseOnExec(fd)
		flags, err := tunFlags(fd)
		if err != nil {
			return err
		}
		d.multi = flags&unix.IFF_MULTI_QUEUE != 0
		if d.vnet {
			return nil
		}
		setOffloads(fd, 0)
		return unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 0)
	})
	if err != nil {
		f.Close()
		return nil, "", err
	}
	return f, w.Name(), nil
}

func waterHint(err error) string {
	switch {
	case errors.Is(err, unix.EPERM):
		return "run as root or with CAP_NET_ADMIN"
	case errors.Is(err, unix.EBUSY):
		return "another process holds this device; stop it (is postern running already?) or choose another name"
	case errors.Is(err, unix.EINVAL):
		return "a TAP device has this name; delete it or choose another name"
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
