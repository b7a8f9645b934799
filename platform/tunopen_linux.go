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
// not have of [TUNFeatures] is done without.
func OpenTUN(name string, mtu int) (*TUN, error) {
	return openTUNWith(name, mtu, true, allOffloads)
}

// openTUNWith is OpenTUN that tries only some of what a kernel may have.
func openTUNWith(name string, mtu int, vnet bool, offloads int) (*TUN, error) {
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
	t := new(TUN)
	if err := t.open(name, vnet, offloads); err != nil {
		return nil, err
	}
	if err := t.setUp(nl, mtu); err != nil {
		t.file.Close()
		return nil, err
	}
	return t, nil
}

// open opens the device with virtio headers where that works.
func (t *TUN) open(name string, vnet bool, offloads int) error {
	waterMu.Lock()
	defer waterMu.Unlock()
	var err error
	if t.file, t.name, err = openWater(name, vnet); err != nil || !vnet {
		return err
	}
	// water knows no virtio headers, and what it opened cannot be given them afterwards:
	// the device outlives its descriptor and is opened again.
	t.file.Close()
	if t.file, err = attach(t.name, unix.IFF_VNET_HDR); err == nil {
		if err = control(t.file, setVNetHdr); err == nil {
			err = control(t.file, func(fd int) error {
				t.features = setOffloads(fd, offloads)
				return unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 0)
			})
			if err == nil {
				t.features.VNetHdr = true
				t.vrx, t.vtx = new(vnetReader), new(vnetWriter)
				t.vtx.plan.tcp, t.vtx.plan.udp = true, t.features.USO
				return nil
			}
		}
		t.file.Close()
	}
	t.features = TUNFeatures{}
	if t.file, err = attach(t.name, 0); err != nil {
		return &OpError{Op: "open TUN device", Object: t.name, Err: err, Hint: waterHint(err)}
	}
	err = control(t.file, func(fd int) error {
		setOffloads(fd, 0)
		return unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 0)
	})
	if err != nil {
		t.file.Close()
		return &OpError{Op: "open TUN device", Object: t.name, Err: err}
	}
	return nil
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

// setVNetHdr checks that the kernel puts a header in front of the packets, and makes it
// the one that is expected, whatever an earlier owner of the device had.
func setVNetHdr(fd int) error {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr); err != nil {
		return err
	}
	if ifr.Uint16()&unix.IFF_VNET_HDR == 0 {
		return unix.EOPNOTSUPP // the kernel ignores flags that it does not know
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
func setOffloads(fd, wanted int) TUNFeatures {
	var f TUNFeatures
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

func (t *TUN) setUp(nl *Netlink, mtu int) error {
	var err error
	if t.rc, err = t.file.SyscallConn(); err != nil {
		return &OpError{Op: "open TUN device", Object: t.name, Err: err}
	}
	t.rx.run = t.readReady
	t.tx.run = t.writeReady
	if t.vrx != nil {
		t.rx.run = t.readReadyVNet
		t.tx.run = t.writeReadyVNet
	}
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
// back is waited for. A device that is not to persist does not, also if it did so before.
// waterMu is held.
func openWater(name string, persist bool) (*os.File, string, error) {
	config := water.Config{DeviceType: water.TUN, PlatformSpecificParams: water.PlatformSpecificParams{Name: name, Persist: persist}}
	for deadline := time.Now().Add(tunBusyWait); ; time.Sleep(20 * time.Millisecond) {
		before := tunDescriptors()
		// Nothing may fork between the open and close-on-exec.
		syscall.ForkLock.RLock()
		w, err := water.New(config)
		if err == nil {
			f := w.ReadWriteCloser.(*os.File)
			err = control(f, func(fd int) error {
				unix.CloseOnExec(fd)
				if persist {
					return nil
				}
				setOffloads(fd, 0)
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
