package platform

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// newNS makes a network namespace for a test, or skips it and says why.
func newNS(t testing.TB) *Namespace {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: the test makes a network namespace of its own")
	}
	ns, err := NewNamespace()
	if err != nil {
		t.Skipf("needs network namespaces: %v", err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// in runs f inside the namespace and fails the test with its error.
func in(t testing.TB, ns *Namespace, f func() error) {
	t.Helper()
	if err := ns.Do(f); err != nil {
		t.Fatal(err)
	}
}

func needTUN(t testing.TB) {
	t.Helper()
	if err := checkTUNDevice("test"); err != nil {
		t.Skipf("needs a TUN device: %v", err)
	}
}

func openTUN(t testing.TB, ns *Namespace, name string, mtu int) *TUN {
	t.Helper()
	needTUN(t)
	var tun *TUN
	in(t, ns, func() (err error) { tun, err = OpenTUN(name, mtu); return err })
	t.Cleanup(func() {
		if err := tun.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	return tun
}

func addAddr(t testing.TB, ns *Namespace, device string, prefixes ...string) {
	t.Helper()
	err := ns.Netlink(func(nl *Netlink) error {
		l, err := nl.LinkByName(device)
		if err != nil {
			return err
		}
		for _, p := range prefixes {
			a := Addr{Index: l.Index, Prefix: netip.MustParsePrefix(p)}
			if a.Prefix.Addr().Is6() {
				a.Flags = 0x02 // IFA_F_NODAD
			}
			if err := nl.AddAddr(a); err != nil {
				return err
			}
		}
		return nl.SetLinkUp(l.Index, true)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// cable joins two namespaces.
func cable(t testing.TB, a *Namespace, aName string, b *Namespace, bName string) {
	t.Helper()
	err := a.Netlink(func(nl *Netlink) error {
		return control(b.f, func(fd int) error { return nl.AddVeth(aName, -1, bName, fd) })
	})
	if err != nil {
		t.Fatal(err)
	}
}

// udp4 makes an IPv4 UDP packet without a UDP checksum.
func udp4(src, dst netip.AddrPort, payload string) []byte {
	p := make([]byte, 28+len(payload))
	p[0], p[8], p[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	s, d := src.Addr().As4(), dst.Addr().As4()
	copy(p[12:], s[:])
	copy(p[16:], d[:])
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum))
	binary.BigEndian.PutUint16(p[20:], src.Port())
	binary.BigEndian.PutUint16(p[22:], dst.Port())
	binary.BigEndian.PutUint16(p[24:], uint16(8+len(payload)))
	copy(p[28:], payload)
	return p
}

// within fails the test if f has not returned in that time.
func within(t testing.TB, limit time.Duration, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(limit):
		t.Fatalf("%s: nothing within %v", what, limit)
	}
}

func capArg(h *unix.CapUserHeader) uintptr   { return uintptr(unsafe.Pointer(h)) }
func capData(d *[2]unix.CapUserData) uintptr { return uintptr(unsafe.Pointer(d)) }
