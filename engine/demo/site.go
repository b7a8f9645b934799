package demo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"postern/engine/control"
)

// The networks of the demonstration: private ones inside (RFC 1918), those for
// documentation outside (RFC 5737).
var (
	controlNet = netip.MustParsePrefix("10.1.0.0/24")
	plantNet   = netip.MustParsePrefix("10.2.0.0/24")
	wanA       = netip.MustParsePrefix("192.0.2.0/24")
	wanB       = netip.MustParsePrefix("198.51.100.0/24")

	controlRoom  = at(controlNet, 10)
	gatewayALAN  = at(controlNet, 1)
	gatewayAWAN  = at(wanA, 2)
	routerA      = at(wanA, 1)
	routerB      = at(wanB, 1)
	gatewayBWAN  = at(wanB, 2)
	gatewayBLAN  = at(plantNet, 1)
	plant        = at(plantNet, 10)
	defaultRoute = netip.MustParsePrefix("0.0.0.0/0")
)

// at returns host number n of an IPv4 network, with its prefix.
func at(net netip.Prefix, n byte) netip.Prefix {
	a := net.Addr().As4()
	a[3] = n
	return netip.PrefixFrom(netip.AddrFrom4(a), net.Bits())
}

// The connection and the child that both gateways are configured with.
const (
	connName  = "site"
	childName = "field"
)

// site is what the demonstration builds.
type site struct {
	control, gwA, router, gwB, plant Host
}

// build makes hosts, networks and routes. The routes of the control room and the plant
// lead to the gateways; what becomes of the packets there is the daemon's business.
func build(l Lab) (*site, error) {
	s := &site{}
	for _, h := range []struct {
		host *Host
		name string
	}{{&s.control, "control"}, {&s.gwA, "gateway-a"}, {&s.router, "router"}, {&s.gwB, "gateway-b"}, {&s.plant, "plant"}} {
		var err error
		if *h.host, err = l.Host(h.name); err != nil {
			return nil, fmt.Errorf("host %s: %w", h.name, err)
		}
	}
	for _, c := range []struct {
		a     Host
		aName string
		aAddr netip.Prefix
		b     Host
		bName string
		bAddr netip.Prefix
	}{
		{s.control, "eth0", controlRoom, s.gwA, "lan0", gatewayALAN},
		{s.gwA, "wan0", gatewayAWAN, s.router, "to-a", routerA},
		{s.router, "to-b", routerB, s.gwB, "wan0", gatewayBWAN},
		{s.gwB, "lan0", gatewayBLAN, s.plant, "eth0", plant},
	} {
		if err := l.Connect(c.a, c.aName, c.aAddr, c.b, c.bName, c.bAddr); err != nil {
			return nil, fmt.Errorf("cable %s to %s: %w", c.aAddr.Addr(), c.bAddr.Addr(), err)
		}
	}
	for _, r := range []struct {
		h   Host
		via netip.Prefix
	}{{s.control, gatewayALAN}, {s.gwA, routerA}, {s.gwB, routerB}, {s.plant, gatewayBLAN}} {
		if err := r.h.Route(defaultRoute, r.via.Addr()); err != nil {
			return nil, fmt.Errorf("route via %s: %w", r.via.Addr(), err)
		}
	}
	for _, h := range []Host{s.gwA, s.router, s.gwB} {
		if err := h.Forward(); err != nil {
			return nil, fmt.Errorf("forwarding: %w", err)
		}
	}
	return s, nil
}

// configText returns the configuration of one gateway.
func configText(socket, key string, local, remote, localNet, remoteNet netip.Prefix, localID, remoteID string) string {
	return fmt.Sprintf(`[daemon]
control = %q
state_dir = ""

[connections.%s]
local_addrs = [%q]
remote_addrs = [%q]

[connections.%[2]s.local]
id = %[5]q

[connections.%[2]s.remote]
id = %[6]q

[connections.%[2]s.children.%[7]s]
local_ts = [%[8]q]
remote_ts = [%[9]q]

[secrets.%[2]s]
id = [%[5]q, %[6]q]
secret = %[10]q
`, socket, connName, local.Addr(), remote.Addr(), localID, remoteID, childName, localNet, remoteNet, key)
}

// daemon is the real daemon on one gateway.
type daemon struct {
	name   string
	socket string
	log    string
	cmd    *exec.Cmd
	exited chan error // closed after the one result
	result error
}

// startDaemon writes the configuration and starts the program self with it.
func startDaemon(h Host, self, dir, name, text string) (*daemon, error) {
	d := &daemon{name: name, socket: filepath.Join(dir, name+".sock"), log: filepath.Join(dir, name+".log"), exited: make(chan error, 1)}
	conf := filepath.Join(dir, name+".toml")
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return nil, err
	}
	out, err := os.Create(d.log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }()
	d.cmd = exec.Command(self, "run", "-c", conf)
	d.cmd.Stdout, d.cmd.Stderr = out, out
	if err = h.Start(d.cmd); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	go func() {
		d.result = d.cmd.Wait()
		close(d.exited)
	}()
	return d, nil
}

// dial connects to the daemon's control socket as soon as it is there.
func (d *daemon) dial(ctx context.Context) (*control.Client, error) {
	for {
		c, err := control.Dial(d.socket)
		if err == nil {
			return c, nil
		}
		if !errors.Is(err, control.ErrNotRunning) {
			return nil, err
		}
		select {
		case <-d.exited:
			return nil, fmt.Errorf("the daemon of %s ended (%v): %s", d.name, d.result, d.lastLines())
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// endPatience is how long a daemon may take to end.
const endPatience = 5 * time.Second

// end asks the daemon to end and waits; after a while it does not ask any more.
func (d *daemon) end() error {
	select {
	case <-d.exited:
		return fmt.Errorf("the daemon of %s had ended already (%v): %s", d.name, d.result, d.lastLines())
	default:
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.exited:
		if d.result != nil {
			return fmt.Errorf("the daemon of %s ended with %w: %s", d.name, d.result, d.lastLines())
		}
		return nil
	case <-time.After(endPatience):
		_ = d.cmd.Process.Kill()
		<-d.exited
		return fmt.Errorf("the daemon of %s did not end within %v and was killed", d.name, endPatience)
	}
}

// lastLines returns the end of the daemon's log.
func (d *daemon) lastLines() string {
	b, err := os.ReadFile(d.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return "\n" + strings.Join(lines[max(0, len(lines)-6):], "\n")
}

// resident returns the memory that the daemon occupies, in octets.
func (d *daemon) resident() (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/%d/status does not tell VmRSS", d.cmd.Process.Pid)
}

// childSA is what the demonstration wants to know of the CHILD SA.
type childSA struct {
	spiIn     string
	packetsIn uint64
}

// installed asks for the newest CHILD SA that carries traffic.
func installed(c *control.Client) (sa childSA, err error) {
	newest := uint64(0)
	_, err = c.CallStream(control.CmdListSAs, control.EvListSA, nil, func(m *control.Message) error {
		for _, e := range m.Sub(connName).Sub(control.KeyChildSAs).Elements() {
			id, _ := e.Section.GetUint(control.KeyUniqueID)
			if e.Section.Get(control.KeyState) == "INSTALLED" && id >= newest {
				newest = id
				sa.spiIn = e.Section.Get(control.KeySPIIn)
				sa.packetsIn, _ = e.Section.GetUint(control.KeyPacketsIn)
			}
		}
		return nil
	})
	return sa, err
}
