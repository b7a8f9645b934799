//go:build linux

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
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Scene is a network with daemons in it, and the pairs of addresses between which echoes have to
// pass.
type Scene struct {
	Name     string
	Setup    []Step
	Files    map[string]File
	Services []Service
	Pings    []Ping
	// Watch names the namespace in which no GRE may be seen in clear, and ESP has to be.
	Watch string
}

// File is a file to be written.
type File struct {
	Mode uint32
	Data []byte
}

// Service is a daemon.
type Service struct {
	NS    string
	Env   []string
	Args  []string
	Ready string // the file that tells that it runs
	// Lines are configured through FRR's socket Ready once the daemon runs.
	Lines []string
}

// Ping is a pair of addresses. Before it, the services with these numbers are killed and started
// again. Control is the socket of a postern that has to have carried the echoes.
type Ping struct {
	Name     string
	NS       string
	From, To string
	Restart  []int
	Control  string
	Between  [2]string // the outer addresses of the SA that carries them
}

// scenePatience bounds how long routing protocols may take to find a way: nhrpd waits two minutes
// before it asks again.
const scenePatience = 4 * time.Minute

// daemon is a Service that runs.
type daemon struct {
	*Service
	cmd *exec.Cmd
	log string
}

// prepare runs the steps and writes the files.
func prepare(steps []Step, files map[string]File) error {
	for _, s := range steps {
		if err := s.run(); err != nil {
			return err
		}
	}
	for name, f := range files {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, f.Data, os.FileMode(f.Mode)); err != nil {
			return err
		}
	}
	return nil
}

func (s *Scene) run() error {
	if err := prepare(s.Setup, s.Files); err != nil {
		return err
	}
	var seen [256]atomic.Int64
	if err := watch(s.Watch, &seen); err != nil {
		return fmt.Errorf("watching %s: %w", s.Watch, err)
	}
	failed := false
	daemons := make([]*daemon, len(s.Services))
	defer func() {
		for _, d := range daemons {
			if d == nil {
				continue
			}
			d.kill()
			if text, _ := os.ReadFile(d.log); failed {
				fmt.Printf("%s in %s:\n%s\n", d.Args[0], d.NS, text[max(0, len(text)-6000):])
			}
		}
	}()
	for i := range s.Services {
		daemons[i] = &daemon{Service: &s.Services[i], log: fmt.Sprintf("/tmp/service.%d", i)}
		if err := daemons[i].start(); err != nil {
			failed = true
			return err
		}
	}
	for _, p := range s.Pings {
		err := func() error {
			for _, i := range p.Restart {
				daemons[i].kill()
				if err := daemons[i].start(); err != nil {
					return err
				}
			}
			return p.try()
		}()
		if err != nil {
			failed = true
			fmt.Printf("@@fail\t%s: %s\t%v\n", s.Name, p.Name, strings.ReplaceAll(err.Error(), "\n", " | "))
			break // what follows needs it
		}
		fmt.Printf("@@pass\t%s: %s\n", s.Name, p.Name)
	}
	clear, protected := seen[unix.IPPROTO_GRE].Load(), seen[unix.IPPROTO_ESP].Load()
	if clear != 0 || protected == 0 {
		failed = true
		fmt.Printf("@@fail\t%s: nothing in clear\t%d packets of GRE were in clear in %s, and %d of ESP\n", s.Name, clear, s.Watch, protected)
	} else {
		fmt.Printf("@@pass\t%s: nothing in clear\n", s.Name)
	}
	return nil
}

func (d *daemon) start() error {
	_ = os.Remove(d.Ready)
	out, err := os.OpenFile(d.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	d.cmd = exec.Command(d.Args[0], d.Args[1:]...)
	d.cmd.Stdout, d.cmd.Stderr = out, out
	d.cmd.Env = append(os.Environ(), d.Env...)
	if err := inNS(d.NS, d.cmd.Start); err != nil {
		return fmt.Errorf("%s: %w", d.Args[0], err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if _, err := os.Stat(d.Ready); err == nil {
			return d.configure()
		}
		var status syscall.WaitStatus
		if pid, _ := syscall.Wait4(d.cmd.Process.Pid, &status, syscall.WNOHANG, nil); pid > 0 || time.Now().After(end) {
			text, _ := os.ReadFile(d.log)
			return fmt.Errorf("%s in %s did not start: %s", d.Args[0], d.NS, text)
		}
	}
}

// configure does what FRR's vtysh does: each command ends with a zero octet, and each answer with
// three and the status, where 0 is success and 2 a warning.
func (d *daemon) configure() error {
	if len(d.Lines) == 0 {
		return nil
	}
	c, err := net.Dial("unix", d.Ready)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	r := bufio.NewReader(c)
	for _, line := range slices.Concat([]string{"enable", "configure terminal"}, d.Lines, []string{"end"}) {
		if _, err := c.Write(append([]byte(line), 0)); err != nil {
			return err
		}
		var answer []byte
		for len(answer) < 4 || !bytes.Equal(answer[len(answer)-4:len(answer)-1], []byte{0, 0, 0}) {
			b, err := r.ReadByte()
			if err != nil {
				return fmt.Errorf("%q: %w after %q", line, err, answer)
			}
			answer = append(answer, b)
		}
		if status := answer[len(answer)-1]; status != 0 && status != 2 {
			return fmt.Errorf("%q: status %d, %q", line, status, answer)
		}
	}
	return nil
}

func (d *daemon) kill() {
	if d.cmd != nil && d.cmd.Process != nil {
		_ = d.cmd.Process.Kill()
		_ = d.cmd.Wait()
	}
}

func (p *Ping) try() error {
	from, err := netip.ParseAddr(p.From)
	if err != nil {
		return err
	}
	to, err := netip.ParseAddr(p.To)
	if err != nil {
		return err
	}
	before, _, _ := p.carried()
	err = fmt.Errorf("never tried")
	for end := time.Now().Add(scenePatience); err != nil && time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		err = ping(p.NS, from, to)
	}
	if err != nil {
		return err
	}
	after, status, err := p.carried()
	if err == nil && after <= before {
		err = fmt.Errorf("%d packets before and %d after: the SA between %s has not carried the echo: %s", before, after, strings.Join(p.Between[:], " and "), status)
	}
	return err
}

// carried returns how many packets the SAs between the two hosts have carried both ways.
func (p *Ping) carried() (n uint64, out []byte, err error) {
	if out, err = exec.Command("/postern", "status", "--socket", p.Control, "--json").CombinedOutput(); err != nil {
		return 0, out, fmt.Errorf("%w: %s", err, out)
	}
	var status struct {
		Connections []struct {
			IKESAs []struct {
				Children []struct {
					Local  []string `json:"local_ts"`
					Remote []string `json:"remote_ts"`
					In     uint64   `json:"packets_in"`
					Out    uint64   `json:"packets_out"`
				} `json:"child_sas"`
			} `json:"ike_sas"`
		}
	}
	if err := json.Unmarshal(out, &status); err != nil {
		return 0, out, err
	}
	for _, c := range status.Connections {
		for _, s := range c.IKESAs {
			for _, ch := range s.Children {
				if slices.Equal(ch.Local, []string{p.Between[0] + "/32[gre]"}) && slices.Equal(ch.Remote, []string{p.Between[1] + "/32[gre]"}) {
					n += min(ch.In, ch.Out)
				}
			}
		}
	}
	return n, out, nil
}

// watch counts the IPv4 packets that all devices of a namespace see, by their protocol.
func watch(ns string, seen *[256]atomic.Int64) error {
	return inNS(ns, func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		if err != nil {
			return err
		}
		go func() {
			b := make([]byte, 2048)
			for {
				n, err := unix.Read(fd, b)
				if err == unix.EINTR {
					continue
				}
				if err != nil {
					return
				}
				if n >= 20 && b[0]>>4 == 4 {
					seen[b[9]].Add(1)
				}
			}
		}()
		return nil
	})
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }
