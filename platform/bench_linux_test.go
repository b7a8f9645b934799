package platform

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"postern/esp"
)

// benchNames lists the devices of the measurement in the namespace of the caller.
func benchNames(t *testing.T) (names []string) {
	t.Helper()
	nl, err := OpenNetlink()
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	for _, name := range []string{"pstbench0", "pstbench1"} {
		if _, err := nl.LinkByName(name); err == nil {
			names = append(names, name)
		}
	}
	return names
}

// openBench opens the path for a test, in its own namespace or, with here, in ns itself.
func openBench(t *testing.T, ns *Namespace, here bool) *BenchPath {
	t.Helper()
	needTUN(t)
	p := new(BenchPath)
	in(t, ns, func() (err error) {
		if here {
			return p.open(1428)
		}
		p, err = OpenBenchPath(1428)
		return err
	})
	t.Cleanup(func() { p.Close() })
	return p
}

var (
	benchFrom = netip.MustParseAddrPort("192.0.2.1:9")
	benchTo   = netip.MustParseAddrPort("224.0.0.254:9")
)

func TestBenchPathCarriesPacketsThroughAllItsParts(t *testing.T) {
	for _, here := range []bool{false, true} {
		ns := newNS(t)
		p := openBench(t, ns, here)
		if p.Private() == here {
			t.Fatalf("private is %v, with here = %v", p.Private(), here)
		}
		pkt := udp4(benchFrom, benchTo, strings.Repeat("x", 1400))
		const n = injectBatch
		within(t, 5*time.Second, "carry packets", func() {
			if err := p.Inject(pkt, n, 0); err != nil {
				t.Error(err)
				return
			}
			bufs, sizes := make([][]byte, 16), make([]int, 16)
			for i := range bufs {
				bufs[i] = make([]byte, 24+1500)
			}
			for got := 0; got < n; {
				k, err := p.TUN.ReadBatch(bufs, sizes, 24)
				if err != nil {
					t.Error(err)
					return
				}
				var d []esp.Datagram
				for i := range k {
					if b := bufs[i][24 : 24+sizes[i]]; bytes.Equal(b, pkt) {
						d = append(d, esp.Datagram{Buf: b, N: len(b), Remote: p.To(), Local: p.To().Addr()})
					}
				}
				if _, err := p.Near.WriteBatch(d); err != nil {
					t.Error(err)
					return
				}
				got += len(d)
			}
			for got := 0; got < n; {
				d := make([]esp.Datagram, len(bufs))
				for i := range d {
					d[i].Buf = make([]byte, 3072)
				}
				k, err := p.Far.ReadBatch(d)
				if err != nil {
					t.Error(err)
					return
				}
				var out [][]byte
				for i := range k {
					if !bytes.Equal(d[i].Buf[:d[i].N], pkt) {
						t.Errorf("%d octets arrived, not those that were sent", d[i].N)
					}
					out = append(out, append(make([]byte, 16), pkt...))
				}
				if _, err := p.TUN.WriteBatch(out, 16); err != nil {
					t.Error(err)
					return
				}
				got += k
			}
		})
	}
}

func TestBenchInjectsSegmentsToCut(t *testing.T) {
	p := openBench(t, newNS(t), false)
	const mss, n = 1388, 45
	pkt := make([]byte, 40+n*mss)
	udp := udp4(benchFrom, benchTo, strings.Repeat("x", len(pkt)-28)) // for its IPv4 header
	copy(pkt, udp[:20])
	pkt[9] = 6
	binary.BigEndian.PutUint16(pkt[10:], 0)
	binary.BigEndian.PutUint16(pkt[10:], ^fold16(pkt[:20], 0))
	pkt[32], pkt[33] = 5<<4, 0x10
	binary.BigEndian.PutUint16(pkt[36:], fold16(pkt[12:20], 6+uint32(len(pkt)-20)))
	if err := p.Inject(pkt, 1, mss); err != nil {
		t.Fatal(err)
	}
	bufs, sizes := make([][]byte, 8), make([]int, 8)
	for i := range bufs {
		bufs[i] = make([]byte, 1500)
	}
	within(t, 5*time.Second, "read the segments", func() {
		for got := 0; got < n; {
			k, err := p.TUN.ReadBatch(bufs, sizes, 0)
			if err != nil {
				t.Error(err)
				return
			}
			for i := range k {
				b := bufs[i][:sizes[i]]
				if b[9] != 6 {
					continue
				}
				if len(b) != 40+mss || binary.BigEndian.Uint32(b[24:]) != uint32(got*mss) ||
					fold16(b[20:], fold32(b[12:20])+6+uint32(len(b)-20)) != 0xffff {
					t.Errorf("segment %d has %d octets, sequence number %d and perhaps a wrong checksum", got, len(b), binary.BigEndian.Uint32(b[24:]))
					return
				}
				got++
			}
		}
	})
}

func fold32(b []byte) (s uint32) {
	for ; len(b) > 1; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	return s
}

func fold16(b []byte, s uint32) uint16 {
	s += fold32(b)
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// What the measurement writes into the kernel must end there, also on a router that
// forwards everything to a default route: neither forwarded, nor answered.
func TestBenchPacketsAreNeitherForwardedNorAnswered(t *testing.T) {
	ns := newNS(t)
	wan := openTUN(t, ns, "wan0", 1500)
	addAddr(t, ns, "wan0", "198.51.100.1/24")
	err := ns.Netlink(func(nl *Netlink) error {
		l, err := nl.LinkByName("wan0")
		if err != nil {
			return err
		}
		return nl.AddRoute(Route{Dst: netip.MustParsePrefix("0.0.0.0/0"), Index: l.Index, Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST})
	})
	if err != nil {
		t.Fatal(err)
	}
	in(t, ns, func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) })
	p := openBench(t, ns, true)

	write := func(to string) {
		t.Helper()
		pkt := append(make([]byte, 16), udp4(benchFrom, netip.MustParseAddrPort(to), "x")...)
		for range 20 {
			if n, err := p.TUN.WriteBatch([][]byte{pkt}, 16); n != 1 || err != nil {
				t.Fatal(n, err)
			}
		}
	}
	// What leaves by the WAN: packets of ours, and complaints to their source.
	var seen []string
	leaving := func() int {
		seen = nil
		if err := wan.file.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		bufs, sizes := make([][]byte, 8), make([]int, 8)
		for i := range bufs {
			bufs[i] = make([]byte, 2048)
		}
		for {
			n, err := wan.ReadBatch(bufs, sizes, 0)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return len(seen)
			}
			if err != nil {
				t.Fatal(err)
			}
			for i := range n {
				b := bufs[i][:sizes[i]]
				from, to := benchFrom.Addr().AsSlice(), benchTo.Addr().AsSlice()
				if bytes.Contains(b, from) || bytes.Contains(b, to) {
					seen = append(seen, netip.AddrFrom4([4]byte(b[16:20])).String())
				}
			}
		}
	}
	write("203.0.113.1:9")
	if leaving() == 0 {
		t.Fatal("this host forwards nothing, so the test proves nothing")
	}
	write(benchTo.String())
	if n := leaving(); n != 0 {
		t.Errorf("%d packets left the host, to %v", n, seen)
	}
}

func TestBenchPathLeavesNothing(t *testing.T) {
	ns := newNS(t)
	for _, here := range []bool{false, true} {
		p := openBench(t, ns, here)
		in(t, ns, func() error {
			if names := benchNames(t); (len(names) > 0) != here {
				t.Errorf("with here = %v the caller's namespace has the devices %q", here, names)
			}
			return nil
		})
		// A read that waits ends, and so does everything after it.
		ended := make(chan error, 1)
		go func() {
			_, err := p.Far.ReadBatch([]esp.Datagram{{Buf: make([]byte, 100)}})
			ended <- err
		}()
		time.Sleep(20 * time.Millisecond)
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if err := p.Close(); err != nil {
			t.Errorf("the second Close fails: %v", err)
		}
		if err := <-ended; !errors.Is(err, os.ErrClosed) {
			t.Errorf("the reader that waited got %v", err)
		}
		if err := p.Inject(udp4(benchFrom, benchTo, "x"), 1, 0); err == nil {
			t.Error("a closed path takes packets")
		}
		in(t, ns, func() error {
			if names := benchNames(t); len(names) > 0 {
				t.Errorf("left behind: %q", names)
			}
			return nil
		})
	}
}

const benchHolderEnv = "POSTERN_TEST_HOLD_BENCH"

// TestBenchHolder is no test, but the process that TestKilledBenchLeavesNothing kills.
func TestBenchHolder(t *testing.T) {
	if os.Getenv(benchHolderEnv) == "" {
		t.Skip("is the child of another test")
	}
	p := new(BenchPath)
	if err := p.open(1428); err != nil {
		t.Fatal(err)
	}
	os.Stdout.WriteString("holding\n")
	time.Sleep(time.Minute)
}

func TestKilledBenchLeavesNothing(t *testing.T) {
	ns := newNS(t)
	needTUN(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestBenchHolder$")
	cmd.Env = append(os.Environ(), benchHolderEnv+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in(t, ns, cmd.Start)
	b := make([]byte, 8)
	if _, err := io.ReadFull(out, b); err != nil || string(b) != "holding\n" {
		rest, _ := io.ReadAll(out)
		t.Fatalf("the child says %q%s", b, rest)
	}
	in(t, ns, func() error {
		if names := benchNames(t); !slices.Equal(names, []string{"pstbench0"}) {
			t.Errorf("the child's devices are %q", names)
		}
		return nil
	})
	cmd.Process.Kill()
	cmd.Wait()
	in(t, ns, func() error {
		if names := benchNames(t); len(names) > 0 {
			t.Errorf("left behind: %q", names)
		}
		return nil
	})
}

func TestCPUModelIsFoundOnEveryArchitecture(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{"processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel\t\t: 17\nmodel name\t: AMD EPYC 9R14\n", "AMD EPYC 9R14"},
		{"system type\t\t: MediaTek MT7628AN ver:1 eco:2\nmachine\t\t\t: Router\nprocessor\t\t: 0\ncpu model\t\t: MIPS 24KEc V5.5\n", "MIPS 24KEc V5.5"},
		{"processor\t: 0\nmodel name\t: ARMv7 Processor rev 5 (v7l)\nHardware\t: Allwinner sun8i Family\n", "ARMv7 Processor rev 5 (v7l)"},
		{"processor\t: 0\nBogoMIPS\t: 38.40\nHardware\t: Some Board\n", "Some Board"},
		{"processor\t: 0\nhart\t\t: 0\nuarch\t\t: sifive,u74-mc\n", "sifive,u74-mc"},
		{"processor\t: 0\nBogoMIPS\t: 48.00\n", ""},
		{"model name\t:\n", ""},
		{"", ""},
	} {
		if got := cpuModel([]byte(tc.text)); got != tc.want {
			t.Errorf("of %q the model is %q, want %q", tc.text, got, tc.want)
		}
	}
}

// The clock is the thread's own, so the test keeps to one, and works until the clock has moved
// however seldom that thread gets a processor.
func TestThreadTimeIsOfTheThreadThatWorks(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	began := ThreadTime()
	for at := time.Now(); ThreadTime() <= began; {
		if time.Since(at) > 30*time.Second {
			t.Fatal("a thread that works has had no processor")
		}
	}
}
