package platform

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestDialConnectsOverBothFamilies(t *testing.T) {
	for _, addr := range []string{"127.0.0.1", "::1"} {
		l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.ParseIP(addr)})
		if err != nil {
			t.Logf("%s: %v: not tried", addr, err)
			continue
		}
		defer l.Close()
		go func() {
			if c, err := l.Accept(); err == nil {
				_, _ = io.Copy(c, io.LimitReader(c, 5))
				_ = c.Close()
			}
		}()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		f, err := (&Dialer{unmarked: true}).Dial(ctx, l.Addr().(*net.TCPAddr).AddrPort())
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(f); err != nil || string(b) != "hello" {
			t.Fatalf("%s: read %q, %v", addr, b, err)
		}
	}
}

func TestDialSaysThatNobodyListens(t *testing.T) {
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.ParseIP("127.0.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	to := l.Addr().(*net.TCPAddr).AddrPort()
	l.Close()
	f, err := (&Dialer{unmarked: true}).Dial(context.Background(), to)
	if !errors.Is(err, unix.ECONNREFUSED) {
		t.Fatalf("got %v and error %v, expected that the connection is refused", f, err)
	}
}

// TestDialEndsWithItsContext connects to a listener whose queue is full, so that the kernel
// leaves the connection without an answer.
func TestDialEndsWithItsContext(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(sa.(*unix.SockaddrInet4).Port))
	d := &Dialer{unmarked: true}
	for range 8 {
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		f, err := d.Dial(ctx, to)
		cancel()
		if err != nil {
			var op *OpError
			if !errors.As(err, &op) || op.Err.Error() != "no answer" {
				t.Fatalf("error %v, expected that there is no answer", err)
			}
			return
		}
		defer f.Close()
	}
	t.Skip("the kernel takes connections beyond the queue's length")
}

// TestDialMarksItsPackets needs privileges: the mark is what lets packets pass by the tunnel.
func TestDialMarksItsPackets(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("marks need privileges")
	}
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.ParseIP("127.0.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := new(Dialer).Dial(context.Background(), l.Addr().(*net.TCPAddr).AddrPort())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rc, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = rc.Control(func(fd uintptr) {
		if mark, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK); mark != Mark || err != nil {
			t.Errorf("the socket has mark %#x (%v): its packets would go into the tunnel", mark, err)
		}
	})
}
