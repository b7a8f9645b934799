package platform

import (
	"errors"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// labReexecEnv marks the child of TestLabWorksForAnOrdinaryUser.
const labReexecEnv = "POSTERN_TEST_LAB_CHILD"

// threeHosts are a left and a right host with a router between.
func threeHosts(t *testing.T) (left, router, right *LabHost) {
	t.Helper()
	if !LabPrivileged() {
		t.Skip("needs CAP_SYS_ADMIN: the lab makes network namespaces")
	}
	lab := NewLab()
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	host := func(name string) *LabHost {
		h, err := lab.Host(name)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	left, router, right = host("left"), host("router"), host("right")
	p, ip := netip.MustParsePrefix, netip.MustParseAddr
	if err := errors.Join(
		lab.Connect(left, "l0", p("10.1.0.2/24"), router, "r0", p("10.1.0.1/24")),
		lab.Connect(router, "r1", p("10.2.0.1/24"), right, "r0", p("10.2.0.2/24")),
		left.Route(p("0.0.0.0/0"), ip("10.1.0.1")),
		right.Route(p("10.1.0.0/24"), ip("10.2.0.1")),
		router.Forward(),
	); err != nil {
		t.Fatal(err)
	}
	return left, router, right
}

func TestLabRoutesBetweenItsHosts(t *testing.T) {
	left, router, right := threeHosts(t)
	capture, err := router.Capture("r1")
	if err != nil {
		t.Fatal(err)
	}
	l, err := right.Listen(netip.MustParseAddrPort("10.2.0.2:5020"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			io.Copy(c, c)
			c.Close()
		}
	}()
	c, err := left.Dial(netip.MustParseAddrPort("10.2.0.2:5020"), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if host, _, _ := strings.Cut(c.LocalAddr().String(), ":"); host != "10.1.0.2" {
		t.Errorf("connected from %s, want 10.1.0.2", host)
	}
	var b [64]byte
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Write([]byte("over the router")); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(b[:]); err != nil || string(b[:n]) != "over the router" {
		t.Fatalf("read %q, %v", b[:n], err)
	}
	// The capture saw it pass, in both directions, as IP packets.
	there, back := false, false
	within(t, 5*time.Second, "capture", func() {
		buf := make([]byte, 2048)
		for !there || !back {
			typ, n, err := capture.Next(buf)
			if err != nil {
				t.Error(err)
				return
			}
			if p := buf[:n]; typ == unix.ETH_P_IP && p[0]>>4 == 4 && strings.HasSuffix(string(p), "over the router") {
				there = there || string(p[12:16]) == "\x0a\x01\x00\x02"
				back = back || string(p[12:16]) == "\x0a\x02\x00\x02"
			}
		}
	})
	if lost, err := capture.Lost(); lost != 0 || err != nil {
		t.Errorf("Lost() = %d, %v, want 0", lost, err)
	}
	done := make(chan error)
	go func() {
		for {
			if _, _, err := capture.Next(make([]byte, 64)); err != nil {
				done <- err
				return
			}
		}
	}()
	time.Sleep(20 * time.Millisecond)
	capture.Close()
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Next after Close: %v, want os.ErrClosed", err)
	}
}

func TestLabStartsProgramsOnTheHost(t *testing.T) {
	_, router, _ := threeHosts(t)
	cmd := exec.Command("/bin/cat", "/proc/net/dev")
	var out strings.Builder
	cmd.Stdout = &out
	if err := router.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if s := out.String(); !strings.Contains(s, "r0:") || !strings.Contains(s, "r1:") {
		t.Errorf("the program sees\n%swant r0 and r1", s)
	}
	if b, _ := os.ReadFile("/proc/net/dev"); strings.Contains(string(b), "r0:") {
		t.Error("this process stayed on the host")
	}
}

// The test runs itself as nobody, which then runs itself as root of a user namespace.
func TestLabWorksForAnOrdinaryUser(t *testing.T) {
	t.Parallel()
	if os.Getenv(labReexecEnv) != "" {
		if os.Getenv(labEnv) == "" {
			code, err := ReexecForLab(os.Args[1:])
			if err != nil {
				t.Skip(err)
			}
			os.Exit(code)
		}
		left, _, _ := threeHosts(t)
		if _, err := left.Dial(netip.MustParseAddrPort("10.2.0.2:9"), 5*time.Second); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("dial: %v, want ECONNREFUSED by the host behind the router", err)
		}
		needTUN(t)
		if err := left.ns.Do(func() error {
			tun, err := OpenTUN("pt0", 1400)
			if err != nil {
				return err
			}
			defer tun.Close()
			n, err := OpenNetwork()
			if err != nil {
				return err
			}
			defer n.Close()
			_, err1 := ListenUDP(any4)
			_, err2 := ListenESP(false)
			return errors.Join(n.Apply("pt0", testPolicies()), n.Clear(), err1, err2, CheckPrivileges(true))
		}); err != nil {
			t.Error(err)
		}
		t.Log("the lab worked")
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root to become another user")
	}
	// nobody cannot read the test binary where go test put it.
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "postern-lab-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(dir+"/lab.test", exe, 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(dir+"/lab.test", "-test.run=^TestLabWorksForAnOrdinaryUser$", "-test.v")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), labReexecEnv+"=1")
	cmd.SysProcAttr = asNobody()
	out, err := cmd.CombinedOutput()
	if strings.Contains(string(out), "--- SKIP") {
		t.Skipf("user namespaces are not to be had:\n%s", out)
	}
	if err != nil || !strings.Contains(string(out), "the lab worked") {
		t.Errorf("as nobody: %v\n%s", err, out)
	}
}

// asNobody runs a child without any privilege.
func asNobody() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
}
