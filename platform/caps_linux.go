package platform

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// CheckPrivileges tells whether this process may do what the daemon needs, before
// anything is changed: CAP_NET_ADMIN for the TUN device, the marks and the rules, and
// with rawESP also CAP_NET_RAW. The error names what is missing. It looks at the
// capabilities of the process in its own user namespace, so it also lets pass root of a
// container that was given none of the network; what then fails names itself.
func CheckPrivileges(rawESP bool) error {
	var data [2]unix.CapUserData
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return &OpError{Op: "read", Object: "capabilities of this process", Err: err}
	}
	has := func(c uint) bool { return data[c/32].Effective&(1<<(c%32)) != 0 }
	return missingCaps(has(unix.CAP_NET_ADMIN), has(unix.CAP_NET_RAW) || !rawESP)
}

func missingCaps(admin, raw bool) error {
	var what string
	switch {
	case admin && raw:
		return nil
	case !admin && !raw:
		what = "CAP_NET_ADMIN (TUN device, routing rules) and CAP_NET_RAW (ESP without UDP)"
	case !admin:
		what = "CAP_NET_ADMIN (TUN device, routing rules)"
	default:
		what = "CAP_NET_RAW (ESP without UDP)"
	}
	return &OpError{
		Op: "start", Err: fmt.Errorf("%w: this process lacks %s", unix.EPERM, what),
		Hint: "run as root, or give the binary the capability: setcap cap_net_admin,cap_net_raw,cap_net_bind_service+ep",
	}
}

// HardenProcess keeps keys out of core dumps and out of reach of other processes of
// the same user: no core files, not dumpable, so no ptrace either. Call it first.
func HardenProcess() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return &OpError{Op: "set", Object: "core file limit to 0", Err: err}
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return &OpError{Op: "forbid", Object: "core dumps", Err: err}
	}
	return nil
}

// MemoryTotal returns the usable RAM in octets, 0 if the kernel does not tell.
func MemoryTotal() uint64 {
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) != nil {
		return 0
	}
	return uint64(si.Totalram) * uint64(max(si.Unit, 1))
}
