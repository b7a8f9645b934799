// Command postern brings up IPsec tunnels: IKEv2 and ESP in one static binary for
// routers and industrial gateways. 'postern help' lists its commands.
package main

import (
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"postern/board"
	"postern/engine"
	"postern/engine/cli"
	"postern/engine/config"
	"postern/engine/demo"
	"postern/engine/log"
	"postern/platform"
)

// version is set when a release is linked: -ldflags "-X main.version=1.2.3".
var version = "dev"

func main() {
	os.Exit(cli.Main(os.Args[1:], cli.System{
		Stdout:      os.Stdout,
		Stderr:      os.Stderr,
		Version:     version,
		NewDaemon:   newDaemon,
		MemoryTotal: platform.MemoryTotal,
		// Without CAP_NET_RAW ESP still travels in UDP, and the engine says so.
		Privileges: func() error { return platform.CheckPrivileges(false) },
		Harden:     platform.HardenProcess,
		Signals: func() <-chan os.Signal {
			// A daemon outlives whoever reads its standard error.
			signal.Ignore(syscall.SIGPIPE)
			ch := make(chan os.Signal, 4)
			signal.Notify(ch, syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM)
			return ch
		},
		Commands: commands(),
	}))
}

// commands are those that only some builds have.
func commands() []cli.Command {
	if !demo.Enabled {
		return nil
	}
	return []cli.Command{demo.Command(demo.System{
		NewLab:     func() demo.Lab { return lab{platform.NewLab()} },
		Privileged: platform.LabPrivileged,
		Reexec:     platform.ReexecForLab,
	})}
}

// daemon is the engine and what has to be closed after it.
type daemon struct {
	*engine.Engine
	network *platform.Network
}

func (d daemon) Run(stop <-chan struct{}) error {
	defer func() { _ = d.network.Close() }()
	return d.Engine.Run(stop)
}

func newDaemon(path string, cfg *config.Config, prof board.Profile, lg *log.Logger) (cli.Daemon, error) {
	network, err := platform.OpenNetwork()
	if err != nil {
		return nil, err
	}
	system := engine.OS{
		OpenTUN: func(name string, mtu int) (engine.Device, error) {
			d, err := platform.OpenTUN(name, mtu)
			if err != nil {
				return nil, err // not a nil *TUN inside the interface
			}
			return d, nil
		},
		ListenUDP: func(addr netip.AddrPort) (engine.Socket, error) {
			s, err := platform.ListenUDP(addr)
			if err != nil {
				return nil, err
			}
			return s, nil
		},
		ListenESP: func(v6 bool) (engine.Socket, error) {
			s, err := platform.ListenESP(v6)
			if err != nil {
				return nil, err
			}
			return s, nil
		},
		Network: network,
		WatchAddresses: func() (engine.AddressWatch, error) {
			w, err := platform.WatchAddresses()
			if err != nil {
				return nil, err
			}
			return w, nil
		},
		Resolve:     new(platform.Resolver).Resolve,
		MemoryTotal: platform.MemoryTotal,
	}
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease") // only shown, so it may be missing
	e, err := engine.New(engine.Options{
		OS: system, Config: cfg, Path: path, Profile: prof, Log: lg,
		Version: version, Kernel: strings.TrimSpace(string(release)),
		CPU: engine.CPU{MIPSRelease2: platform.MIPSRelease2()},
	})
	if err != nil {
		_ = network.Close()
		return nil, err
	}
	return daemon{e, network}, nil
}

// lab and host fit platform's types to the interfaces of the demonstration.
type (
	lab  struct{ *platform.Lab }
	host struct{ *platform.LabHost }
)

func (l lab) Host(name string) (demo.Host, error) {
	h, err := l.Lab.Host(name)
	if err != nil {
		return nil, err
	}
	return host{h}, nil
}

func (l lab) Connect(a demo.Host, aName string, aAddr netip.Prefix, b demo.Host, bName string, bAddr netip.Prefix) error {
	return l.Lab.Connect(a.(host).LabHost, aName, aAddr, b.(host).LabHost, bName, bAddr)
}

func (h host) Capture(device string) (demo.Capture, error) {
	c, err := h.LabHost.Capture(device)
	if err != nil {
		return nil, err
	}
	return c, nil
}
