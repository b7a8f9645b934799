// Command postern brings up IPsec tunnels: IKEv2 and ESP in one static binary for
// routers and industrial gateways. 'postern help' lists its commands.
package main

import (
	"context"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"postern/board"
	"postern/engine"
	"postern/engine/bench"
	"postern/engine/cli"
	"postern/engine/config"
	"postern/engine/demo"
	"postern/engine/log"
	"postern/engine/pkitool"
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
		Ciphers:     cpu().CipherOrder(),
		// Without CAP_NET_RAW ESP still travels in UDP, and the engine says so.
		Privileges: func() error { return platform.CheckPrivileges(false) },
		Harden:     platform.HardenProcess,
		Signals: func() <-chan os.Signal {
			// A daemon outlives whoever reads its standard error. To ignore the signal would have the
			// programs that it starts ignore it as well, which a pipe in a script is not made for.
			signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
			ch := make(chan os.Signal, 4)
			signal.Notify(ch, syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM)
			return ch
		},
		Bench:    benchSystem,
		Commands: commands(),
	}))
}

// cpu is what the processor has.
func cpu() engine.CPU {
	return engine.CPU{MIPSRelease2: platform.MIPSRelease2(), AES: platform.AES(), WideAES: platform.WideAES()}
}

// commands are those that only some builds have.
func commands() []cli.Command {
	var list []cli.Command
	if pkitool.Enabled {
		list = append(list, pkitool.Command(pkitool.System{Now: time.Now, Lock: platform.LockFile, Replace: platform.ReplaceFile, Rename: platform.Rename}))
	}
	if demo.Enabled {
		list = append(list, demo.Command(demo.System{
			NewLab:     func() demo.Lab { return lab{platform.NewLab()} },
			Privileged: platform.LabPrivileged,
			Reexec:     platform.ReexecForLab,
		}))
	}
	return list
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
		OpenTUN: func(name string, mtu, queues int) ([]engine.Device, error) {
			d, err := platform.OpenTUNQueues(name, mtu, queues)
			return each(d, func(t *platform.TUN) engine.Device { return t }), err
		},
		ListenUDP: func(addr netip.AddrPort, n int) ([]engine.Socket, error) {
			s, err := platform.ListenUDPGroup(addr, n)
			return each(s, func(s *platform.Socket) engine.Socket { return s }), err
		},
		ListenAH: func(v6 bool) (engine.Socket, error) {
			s, err := platform.ListenAH(v6)
			if err != nil {
				return nil, err
			}
			return s, nil
		},
		ListenESP: func(v6 bool) (engine.Socket, error) {
			s, err := platform.ListenESP(v6)
			if err != nil {
				return nil, err // not a nil *Socket inside the interface
			}
			return s, nil
		},
		ListenICMP: func(v6 bool) (engine.Socket, error) {
			s, err := platform.ListenICMP(v6)
			if err != nil {
				return nil, err
			}
			return s, nil
		},
		LinkMTU:   network.LinkMTU,
		LinkTo:    network.LinkTo,
		RunScript: platform.RunScript,
		SetMTU:    network.SetMTU,
		Network:   network,
		Addresses: network.Addresses,
		WatchAddresses: func() (engine.AddressWatch, error) {
			w, err := platform.WatchAddresses()
			if err != nil {
				return nil, err
			}
			return w, nil
		},
		OpenState: func(dir string) (engine.State, error) {
			s, err := platform.OpenState(dir)
			if err != nil {
				return nil, err
			}
			return s, nil
		},
		OpenFiles: func(dir string, count int, octets int64) (engine.Files, error) {
			f, err := platform.OpenFiles(dir, count, octets)
			if err != nil {
				return nil, err
			}
			return f, nil
		},
		Dial: func(ctx context.Context, to netip.AddrPort) (engine.Stream, error) {
			f, err := new(platform.Dialer).Dial(ctx, to)
			if err != nil {
				return nil, err
			}
			return f, nil
		},
		Resolve:     new(platform.Resolver).Resolve,
		SetDNS:      platform.SetDNS,
		Sleep:       platform.Sleep,
		Hurry:       platform.Hurry,
		MemoryTotal: platform.MemoryTotal,
	}
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease") // only shown, so it may be missing
	e, err := engine.New(engine.Options{
		OS: system, Config: cfg, Path: path, Profile: prof, Log: lg,
		Version: version, Kernel: strings.TrimSpace(string(release)),
		CPU: cpu(),
	})
	if err != nil {
		_ = network.Close()
		return nil, err
	}
	return daemon{e, network}, nil
}

// each returns what f makes of every element.
func each[T, I any](from []T, f func(T) I) []I {
	to := make([]I, len(from))
	for i := range from {
		to[i] = f(from[i])
	}
	return to
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

// benchSystem is what 'postern bench' measures: this device, with the routines that the
// daemon would take.
func benchSystem() bench.System {
	processor, aes := cpu(), bench.AESConstant
	if engine.ChooseCrypto(processor, log.New(os.Stderr, log.Warn)) {
		aes = bench.AESHardware
	}
	start := time.Now()
	return bench.System{
		Model: platform.CPUModel(), Arch: runtime.GOARCH, Cores: runtime.NumCPU(),
		AES:        aes,
		Memory:     platform.MemoryTotal(),
		Now:        func() time.Duration { return time.Since(start) },
		ThreadTime: platform.ThreadTime,
		Proposals:  engine.DefaultProposals(processor),
		OpenPath:   openBenchPath,
	}
}

func openBenchPath(mtu int) (*bench.Path, error) {
	p, err := platform.OpenBenchPath(mtu)
	if err != nil {
		return nil, err
	}
	return &bench.Path{
		Device: p.TUN, Near: p.Near, Far: p.Far, To: p.To(),
		Inject: p.Inject, Close: p.Close,
		TUNFeatures: p.TUN.Features(), UDPFeatures: p.Far.Features(),
		Private: p.Private(),
	}, nil
}
