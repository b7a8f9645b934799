package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"postern/engine/cli"
)

// System is what the command needs of the operating system.
type System struct {
	NewLab func() Lab
	// Privileged tells whether this process may make hosts.
	Privileged func() bool
	// Reexec runs this program again where it may, and returns its exit status.
	Reexec func(args []string) (int, error)
}

// dirEnv tells the process that Reexec starts where its directory is.
const dirEnv = "POSTERN_DEMO_DIR"

// leash is the socket in the directory through which the first process holds the
// second: when the connection ends, the demonstration ends.
const leash = "leash"

// Command returns the command that runs the demonstration.
func Command(s System) cli.Command {
	return cli.Command{
		Name:    "demo",
		Summary: "show a tunnel between two gateways, on this machine",
		Help: `Builds a control room, two gateways and a plant out of network namespaces, runs
the daemon on both gateways, polls the plant over Modbus/TCP through the tunnel,
rekeys meanwhile, and measures. It takes about ten seconds, needs no root where
user namespaces are allowed, touches nothing outside, and leaves nothing behind.

  postern demo`,
		Run: func(sys *cli.System, cmd *cli.Command, args []string) int {
			if status, ok := cli.NoArguments(sys, cmd, args); !ok {
				return status
			}
			return run(sys, s)
		},
	}
}

// run is the command in the first process, and in the one that Reexec starts.
func run(sys *cli.System, s System) int {
	fail := func(err error) int {
		fmt.Fprintf(sys.Stderr, "postern: demo: %v\n", err)
		return cli.ExitFailed
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	signals := sys.Signals()
	go func() { cancel(Interrupted{<-signals}) }()

	if dir := os.Getenv(dirEnv); dir != "" {
		if err := hold(dir, cancel); err != nil {
			return fail(err)
		}
		if err := start(ctx, sys, s, dir); err != nil {
			return fail(err)
		}
		return cli.ExitOK
	}
	dir, err := os.MkdirTemp("", "postern-demo")
	if err != nil {
		return fail(err)
	}
	defer func() {
		if err := os.RemoveAll(dir); err != nil {
			_ = fail(err)
		}
	}()
	if s.Privileged() {
		if err = start(ctx, sys, s, dir); err != nil {
			return fail(err)
		}
		return cli.ExitOK
	}
	if err = keep(ctx, dir); err != nil {
		return fail(err)
	}
	if err = os.Setenv(dirEnv, dir); err != nil {
		return fail(err)
	}
	status, err := s.Reexec([]string{"demo"})
	if err != nil {
		_ = fail(err)
		return cli.ExitSystem
	}
	return status
}

// start runs the demonstration in this process.
func start(ctx context.Context, sys *cli.System, s System, dir string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	lab := s.NewLab()
	err = Run(ctx, Options{Lab: lab, Self: self, Dir: dir, Version: sys.Version, Out: sys.Stdout, Progress: sys.Stderr})
	return errors.Join(err, lab.Close())
}

// keep offers the leash, and lets go of it when ctx ends.
func keep(ctx context.Context, dir string) error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, leash), Net: "unix"})
	if err != nil {
		return err
	}
	go func() {
		c, err := l.Accept()
		<-ctx.Done()
		if err == nil {
			_ = c.Close()
		}
		_ = l.Close()
	}()
	return nil
}

// hold takes the leash: when it goes, the demonstration is cancelled.
func hold(dir string, cancel context.CancelCauseFunc) error {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(dir, leash), Net: "unix"})
	if err != nil {
		return err
	}
	go func() {
		_, _ = c.Read(make([]byte, 1))
		cancel(errors.New("interrupted"))
	}()
	return nil
}
