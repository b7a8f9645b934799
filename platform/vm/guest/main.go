//go:build linux

// Command guest is the first process of the virtual machine in which package vm tests: it does
// what the plan beside it says, tells the console how that went, and ends the machine.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Plan is what the machine does. The test that writes it has the same types.
type Plan struct {
	Modules []string // files, in the order in which they are loaded
	Phases  []Phase
	Scenes  []Scene
}

// Phase is one configuration of both ends with what is tried under it.
type Phase struct {
	Name  string
	Setup []Step            // before postern starts
	Files map[string][]byte // written first, for root alone
	Args  []string          // of postern, which runs in namespace p
	Cases []Case
}

// Step is a batch for ip in one namespace.
type Step struct {
	NS    string
	Batch string
}

// Case is one pair of addresses between which all has to pass.
type Case struct {
	Name string
	X, P string // the addresses in namespaces x and p
	SA   string // name of the manual SA that has to carry it
}

func main() {
	fmt.Println("@@start")
	err := run()
	if err != nil {
		fmt.Println("@@error", strings.ReplaceAll(err.Error(), "\n", " | "))
	}
	fmt.Println("@@end")
	time.Sleep(200 * time.Millisecond) // the console is slow
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

func run() error {
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/run"}, {"tmpfs", "/tmp"}} {
		_ = os.MkdirAll(m[1], 0o755)
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	_ = os.Setenv("PATH", "/bin")
	_ = os.MkdirAll("/run/netns", 0o755)
	b, err := os.ReadFile("/plan.json")
	if err != nil {
		return err
	}
	var plan Plan
	if err := json.Unmarshal(b, &plan); err != nil {
		return err
	}
	for _, m := range plan.Modules {
		f, err := os.Open(m)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		_ = f.Close()
		if err != nil && err != unix.EEXIST {
			fmt.Printf("%s was not loaded: %v\n", m, err) // what needs it will say so
		}
	}
	for i := range plan.Phases {
		if err := plan.Phases[i].run(); err != nil {
			return fmt.Errorf("%s: %w", plan.Phases[i].Name, err)
		}
	}
	for i := range plan.Scenes {
		if err := plan.Scenes[i].run(); err != nil {
			return fmt.Errorf("%s: %w", plan.Scenes[i].Name, err)
		}
	}
	return nil
}

func (p *Phase) run() error {
	files := make(map[string]File, len(p.Files))
	for name, text := range p.Files {
		files[name] = File{0o600, text}
	}
	if err := prepare(p.Setup, files); err != nil {
		return err
	}
	for _, v := range []struct {
		domain int
		addr   unix.Sockaddr
	}{{unix.AF_INET, &unix.SockaddrInet4{Port: 4500}}, {unix.AF_INET6, &unix.SockaddrInet6{Port: 4500}}} {
		fd, err := encapSocket(v.domain, v.addr)
		if err != nil {
			return fmt.Errorf("UDP encapsulation: %w", err)
		}
		defer func() { _ = unix.Close(fd) }()
	}
	log, err := os.Create("/tmp/log")
	if err != nil {
		return err
	}
	cmd := exec.Command("/postern", p.Args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := inNS("p", cmd.Start); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for start := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		if _, err := os.Stat("/run/postern.sock"); err == nil {
			if out, err := exec.Command("/postern", "status").CombinedOutput(); err == nil && len(out) > 0 {
				break
			}
		}
		select {
		case err = <-ended:
		default:
			if time.Since(start) < time.Minute {
				continue
			}
		}
		text, _ := os.ReadFile("/tmp/log")
		return fmt.Errorf("postern did not start: %w %s", err, text)
	}
	failed := 0
	for i := range p.Cases {
		c := &p.Cases[i]
		if err := c.try(); err != nil {
			failed++
			fmt.Printf("@@fail\t%s: %s\t%v\n", p.Name, c.Name, err)
			continue
		}
		fmt.Printf("@@pass\t%s: %s\n", p.Name, c.Name)
	}
	if err := p.counted(); err != nil {
		failed++
		fmt.Printf("@@fail\t%s: every SA was used\t%v\n", p.Name, err)
	}
	stat := inX(func() ([]byte, error) { return os.ReadFile("/proc/thread-self/net/xfrm_stat") })
	for _, line := range strings.Split(stat, "\n") {
		if f := strings.Fields(line); len(f) == 2 && f[1] != "0" {
			fmt.Printf("%s: XFRM counts %s %s\n", p.Name, f[0], f[1])
		}
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err = <-ended:
	case <-time.After(time.Minute):
		_ = cmd.Process.Kill()
		err = fmt.Errorf("it does not end")
	}
	if text, _ := os.ReadFile("/tmp/log"); failed > 0 || err != nil {
		if len(text) > 12<<10 {
			text = text[len(text)-12<<10:]
		}
		fmt.Printf("postern's log:\n%s\n", text)
	}
	if err != nil {
		return fmt.Errorf("postern ended with: %w", err)
	}
	return nil
}

// run feeds a batch to ip.
func (s *Step) run() error {
	var args []string
	if s.NS != "" {
		args = []string{"-n", s.NS}
	}
	cmd := exec.Command("ip", append(args, "-batch", "-")...)
	cmd.Stdin = strings.NewReader(s.Batch)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip in namespace %q: %w: %s", s.NS, err, out)
	}
	return nil
}

// inNS calls f on a thread in the namespace.
func inNS(ns string, f func() error) error {
	errs := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		fd, err := unix.Open("/run/netns/"+ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			_ = unix.Close(fd)
		}
		if err == nil {
			err = f()
		}
		errs <- err
	}()
	return <-errs
}

// inX returns what f reads in namespace x.
func inX(f func() ([]byte, error)) (text string) {
	_ = inNS("x", func() error {
		b, err := f()
		text = string(b)
		return err
	})
	return text
}

// encapSocket makes the socket with which the kernel takes ESP in UDP, in namespace x.
func encapSocket(domain int, addr unix.Sockaddr) (fd int, err error) {
	err = inNS("x", func() error {
		if fd, err = unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if domain == unix.AF_INET6 {
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
				return err
			}
		}
		if err := unix.Bind(fd, addr); err != nil {
			return err
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_ENCAP, unix.UDP_ENCAP_ESPINUDP)
	})
	return fd, err
}

// patience bounds what has to pass, which takes milliseconds where nothing is lost.
const patience = 20 * time.Second

// try sends echoes, UDP and TCP both ways.
func (c *Case) try() error {
	x, err := netip.ParseAddr(c.X)
	if err != nil {
		return err
	}
	p, err := netip.ParseAddr(c.P)
	if err != nil {
		return err
	}
	for _, way := range []struct {
		from, to string
		src, dst netip.Addr
	}{{"x", "p", x, p}, {"p", "x", p, x}} {
		if err := ping(way.from, way.src, way.dst); err != nil {
			return fmt.Errorf("echo from %s: %w", way.from, err)
		}
		if err := udp(way.from, way.to, way.src, way.dst); err != nil {
			return fmt.Errorf("UDP from %s: %w", way.from, err)
		}
		if err := tcp(way.from, way.to, way.src, way.dst); err != nil {
			return fmt.Errorf("TCP from %s: %w", way.from, err)
		}
	}
	return nil
}

// ping sends echo requests until one is answered.
func ping(ns string, src, dst netip.Addr) error {
	network, request, answer := "ip4:1", byte(8), byte(0)
	if src.Is6() {
		network, request, answer = "ip6:58", 128, 129
	}
	var conn net.PacketConn
	err := inNS(ns, func() (err error) {
		conn, err = net.ListenPacket(network, src.String())
		return err
	})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	msg := append([]byte{request, 0, 0, 0, 0x7e, 0x57, 0, 1}, bytes.Repeat([]byte("postern"), 11)...)
	if src.Is4() { // the system sums up ICMPv6
		sum := uint32(0)
		for i := 0; i < len(msg); i += 2 {
			sum += uint32(msg[i]) << 8
			if i+1 < len(msg) {
				sum += uint32(msg[i+1])
			}
		}
		sum = sum&0xffff + sum>>16
		sum = ^(sum&0xffff + sum>>16)
		msg[2], msg[3] = byte(sum>>8), byte(sum)
	}
	buf := make([]byte, 2000)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if _, err := conn.WriteTo(msg, &net.IPAddr{IP: dst.AsSlice()}); err != nil {
			return err
		}
		for _ = conn.SetReadDeadline(time.Now().Add(2 * time.Second)); ; {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				break
			}
			if n == len(msg) && buf[0] == answer && bytes.Equal(buf[4:n], msg[4:]) && from.String() == dst.String() {
				return nil
			}
		}
	}
	return fmt.Errorf("no answer within %v", patience)
}

// port is that of the echo servers.
const port = 7007

// udp has a datagram sent back by an echo server.
func udp(from, to string, src, dst netip.Addr) error {
	var server, client *net.UDPConn
	err := inNS(to, func() (err error) {
		server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(dst, port)))
		return err
	})
	if err != nil {
		return err
	}
	defer func() { _ = server.Close() }()
	go func() {
		buf := make([]byte, 2000)
		for {
			n, from, err := server.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = server.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	err = inNS(from, func() (err error) {
		client, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(src, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(dst, port)))
		return err
	})
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	msg := bytes.Repeat([]byte("datagram "), 67)
	buf := make([]byte, 2000)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		_, _ = client.Write(msg)
		_ = client.SetReadDeadline(time.Now().Add(2 * time.Second))
		if n, err := client.Read(buf); err == nil && bytes.Equal(buf[:n], msg) {
			return nil
		}
	}
	return fmt.Errorf("no answer within %v", patience)
}

// tcp has some segments sent back by an echo server.
func tcp(from, to string, src, dst netip.Addr) error {
	var server *net.TCPListener
	err := inNS(to, func() (err error) {
		server, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(dst, port)))
		return err
	})
	if err != nil {
		return err
	}
	defer func() { _ = server.Close() }()
	go func() {
		for {
			c, err := server.AcceptTCP()
			if err != nil {
				return
			}
			go func() {
				_, _ = bufio.NewReader(c).WriteTo(c)
				_ = c.Close()
			}()
		}
	}()
	var client net.Conn
	err = inNS(from, func() (err error) {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(src, 0)), Timeout: patience}
		client, err = d.Dial("tcp", netip.AddrPortFrom(dst, port).String())
		return err
	})
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	msg := bytes.Repeat([]byte("a stream of octets "), 400)
	_ = client.SetDeadline(time.Now().Add(patience))
	go func() { _, _ = client.Write(msg) }()
	back := make([]byte, len(msg))
	for n := 0; n < len(back); {
		m, err := client.Read(back[n:])
		if err != nil {
			return fmt.Errorf("after %d octets: %w", n, err)
		}
		n += m
	}
	if !bytes.Equal(back, msg) {
		return fmt.Errorf("the octets came back changed")
	}
	return nil
}

// counted looks whether every SA has carried packets both ways, and nothing was found wrong.
func (p *Phase) counted() error {
	out, err := exec.Command("/postern", "status", "--json").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	var status struct {
		Connections []struct {
			IKESAs []struct {
				Children []struct {
					Name string
					In   uint64 `json:"packets_in"`
					Out  uint64 `json:"packets_out"`
				} `json:"child_sas"`
			} `json:"ike_sas"`
		}
	}
	if err := json.Unmarshal(out, &status); err != nil {
		return err
	}
	used := map[string]bool{}
	for _, c := range status.Connections {
		for _, s := range c.IKESAs {
			for _, ch := range s.Children {
				used[ch.Name] = ch.In >= 10 && ch.Out >= 10
			}
		}
	}
	for i := range p.Cases {
		if !used[p.Cases[i].SA] {
			return fmt.Errorf("%s has not carried what was sent: %s", p.Cases[i].SA, out[:min(len(out), 600)])
		}
	}
	return nil
}
