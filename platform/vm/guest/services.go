//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Scene is a network with daemons in it, and what is checked in it, in this order. A check that
// fails ends the scene unless it is Alone.
type Scene struct {
	Name     string
	Setup    []Step
	Files    map[string]File
	Services []Service
	Checks   []Check
	// Watch names the namespace in which no packet of the protocols Hidden may be seen in clear, and
	// ESP has to be, by itself or in UDP.
	Watch  string
	Hidden []byte
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

// Check is what is done and then has to hold, in the order of the fields. Each may be left out.
type Check struct {
	Name  string
	Alone bool // what follows does not need it
	// The services with these numbers are killed and started again.
	Restart []int
	// NS is the namespace in which the following runs, that of the first process where it is empty.
	NS string
	// Do holds programs with their arguments that run once each, one after the other, and have to
	// succeed.
	Do [][]string
	// Asks are run again and again until each says what it has to.
	Asks []Ask
	// An echo has to come back to From from To. Where Control is set, the CHILD SAs of the postern
	// with that socket whose selectors are those of Between have to have carried it.
	From, To string
	Control  string
	Between  [2]string
	Patience int // seconds for each of the Asks and for the echo; 0 is scenePatience
}

// Ask is a program whose output has to match the regular expression Want, and not Never.
type Ask struct {
	Args        []string
	Want, Never string
}

// scenePatience bounds how long routing protocols may take to find a way: nhrpd waits two minutes
// before it asks again.
const scenePatience = 4 * time.Minute

// serviceLog is how many octets of the end of a service's log are shown when something failed.
const serviceLog = 16 << 10

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
	var seen counts
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
				fmt.Printf("%s in %s:\n%s\n", d.Args[0], d.NS, text[max(0, len(text)-serviceLog):])
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
	for i := range s.Checks {
		c := &s.Checks[i]
		err := c.prepare(daemons)
		if err == nil {
			err = c.try()
		}
		if err != nil {
			failed = true
			fmt.Printf("@@fail\t%s: %s\t%v\n", s.Name, c.Name, strings.ReplaceAll(err.Error(), "\n", " | "))
			if !c.Alone {
				break // what follows needs it
			}
			continue
		}
		fmt.Printf("@@pass\t%s: %s\n", s.Name, c.Name)
	}
	clear, protected := int64(0), seen.protected.Load()
	for _, protocol := range s.Hidden {
		clear += seen.inner[protocol].Load()
	}
	if clear != 0 || protected == 0 {
		failed = true
		fmt.Printf("@@fail\t%s: nothing in clear\t%d packets of protocols %d were in clear in %s, and %d of ESP\n", s.Name, clear, s.Hidden, s.Watch, protected)
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

// prepare kills and starts services.
func (c *Check) prepare(daemons []*daemon) error {
	for _, i := range c.Restart {
		daemons[i].kill()
	}
	for _, i := range c.Restart {
		if err := daemons[i].start(); err != nil {
			return err
		}
	}
	return nil
}

func (c *Check) try() error {
	patience := time.Duration(c.Patience) * time.Second
	if patience == 0 {
		patience = scenePatience
	}
	for _, args := range c.Do {
		if out, err := output(c.NS, args); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	for i := range c.Asks {
		if err := c.Asks[i].try(c.NS, patience); err != nil {
			return err
		}
	}
	if c.From == "" {
		return nil
	}
	from, err := netip.ParseAddr(c.From)
	if err != nil {
		return err
	}
	to, err := netip.ParseAddr(c.To)
	if err != nil {
		return err
	}
	before := uint64(0)
	if c.Control != "" {
		before, _, _ = c.carried()
	}
	for end := time.Now().Add(patience); ; time.Sleep(200 * time.Millisecond) {
		if err = ping(c.NS, from, to); err == nil || time.Now().After(end) {
			break
		}
	}
	if err != nil || c.Control == "" {
		return err
	}
	after, status, err := c.carried()
	if err == nil && after <= before {
		err = fmt.Errorf("%d packets before and %d after: the SA between %s has not carried the echo: %s", before, after, strings.Join(c.Between[:], " and "), status)
	}
	return err
}

// commandPatience bounds each run of a program of a check.
const commandPatience = time.Minute

// output runs a program in a namespace to its end.
func output(ns string, args []string) (out []byte, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandPatience)
	defer cancel()
	run := func() error {
		out, err = exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
		return nil
	}
	if ns == "" {
		_ = run()
	} else if e := inNS(ns, run); e != nil {
		err = e
	}
	return out, err
}

func (a *Ask) try(ns string, patience time.Duration) error {
	want, err := regexp.Compile(a.Want)
	if err != nil {
		return err
	}
	never, err := regexp.Compile(a.Never)
	if err != nil {
		return err
	}
	for end := time.Now().Add(patience); ; time.Sleep(200 * time.Millisecond) {
		out, err := output(ns, a.Args)
		if want.Match(out) && (a.Never == "" || !never.Match(out)) {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%[1]s: after %[4]v it does not say %[2]q without %[3]q, but (%[5]v): %[6]s", strings.Join(a.Args, " "), a.Want, a.Never, patience, err, out[max(0, len(out)-4000):])
		}
	}
}

// carried returns how many packets the SAs with the selectors Between have carried both ways.
func (c *Check) carried() (n uint64, out []byte, err error) {
	if out, err = exec.Command("/postern", "status", "--socket", c.Control, "--json").CombinedOutput(); err != nil {
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
	for _, conn := range status.Connections {
		for _, s := range conn.IKESAs {
			for _, ch := range s.Children {
				if slices.Equal(ch.Local, c.Between[:1]) && slices.Equal(ch.Remote, c.Between[1:]) {
					n += min(ch.In, ch.Out)
				}
			}
		}
	}
	return n, out, nil
}

// counts holds numbers of packets, as a network between the daemons saw them.
type counts struct {
	inner     [256]atomic.Int64 // by the protocol that the IP header names
	protected atomic.Int64      // ESP, by itself or in UDP
}

// watch counts the IP packets that all devices of a namespace see. Of IPv6 it takes the first header
// to be the only one.
func watch(ns string, seen *counts) error {
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
				seen.add(b[:n])
			}
		}()
		return nil
	})
}

func (c *counts) add(packet []byte) {
	var protocol byte
	var rest []byte
	switch {
	case len(packet) >= 20 && packet[0]>>4 == 4 && len(packet) >= int(packet[0]&15)*4:
		protocol, rest = packet[9], packet[int(packet[0]&15)*4:]
	case len(packet) >= 40 && packet[0]>>4 == 6:
		protocol, rest = packet[6], packet[40:]
	default:
		return
	}
	// Of ICMP echoes alone are for the tunnel: neighbours are found in clear, and gateways told in
	// clear that a daemon does not run yet.
	switch {
	case len(rest) == 0:
	case protocol == unix.IPPROTO_ICMP && rest[0] != 0 && rest[0] != 8, protocol == unix.IPPROTO_ICMPV6 && rest[0] != 128 && rest[0] != 129:
		return
	}
	c.inner[protocol].Add(1)
	// RFC 3948 section 2.2: what is not ESP begins with the non-ESP marker, or is a keepalive.
	inUDP := protocol == unix.IPPROTO_UDP && len(rest) >= 16 && bytes.Equal(rest[2:4], []byte{4500 >> 8, 4500 & 255}) && !bytes.Equal(rest[8:12], make([]byte, 4))
	if inUDP || protocol == unix.IPPROTO_ESP {
		c.protected.Add(1)
	}
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }
