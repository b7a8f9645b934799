package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"postern/engine/control"
)

// patience is how long a daemon may take to answer what it can answer at once.
const patience = 10 * time.Second

var statusCommand = Command{
	Name:    "status",
	Args:    "[CONN]",
	Summary: "show connections, their SAs and their traffic",
	Help: `Shows every connection with its IKE SAs and CHILD SAs. With CONN only that one,
and the exit status is 4 if its tunnel is not up: no IKE SA is established, no
CHILD SA carries traffic, or a child with start_action = "start" has none.

  postern status
  postern status plant >/dev/null || reboot-modem
  postern status --json | jsonfilter -e '@.connections[*].up'`,
	Run: runStatus,
}

var upCommand = Command{
	Name:    "up",
	Args:    "CONN [CHILD]",
	Summary: "bring up a connection, or one child of it",
	Help: `Has the daemon negotiate the SAs of CONN, or only those of its CHILD, and waits
until they carry traffic. What is up already stays as it is.

  postern up plant modbus --timeout 20s`,
	Run: runUp,
}

var downCommand = Command{
	Name:    "down",
	Args:    "CONN [CHILD]",
	Summary: "close a connection, or one child of it",
	Help: `Has the daemon close the SAs of CONN, or only those of its CHILD, and tell the
peer. They come back with 'postern up', or when the peer or a packet wants them.

  postern down plant`,
	Run: runDown,
}

var reloadCommand = Command{
	Name:    "reload",
	Summary: "have the daemon read its configuration again",
	Help: `Has the daemon read its configuration file again. Connections that did not
change keep their SAs. If the file has errors the daemon keeps what it has.

  postern check && postern reload`,
	Run: runReload,
}

var redirectCommand = Command{
	Name:    "redirect",
	Args:    "CONN GATEWAY",
	Summary: "send the clients of a connection to another gateway",
	Help: `Has the daemon tell the clients that are connected by CONN to go to GATEWAY, an
address or a domain name (RFC 5685). They keep their tunnel until they have one
there. Those that did not say that they can be redirected stay.

  postern redirect service 192.0.2.2`,
	Run: runRedirect,
}

// socketOption adds the option that names the daemon's control socket: "" stands for those that
// it has by default.
func socketOption(o *options) *string {
	return o.String("socket", "", "control `PATH` of the daemon (default "+control.DefaultPath+", then "+control.CharonPath+")")
}

// ask reads the command line, which has between least and most arguments, connects to the daemon
// and has run do the rest; it returns the exit status.
func (o *options) ask(sys *System, args []string, least, most int, run func(c *control.Client, rest []string) int) int {
	socket := socketOption(o)
	rest, status, ok := o.parse(args, least, most)
	if !ok {
		return status
	}
	c, status := dialDaemon(sys, *socket, patience)
	if c == nil {
		return status
	}
	defer func() { _ = c.Close() }()
	return run(c, rest)
}

// show writes the answer to a command, as JSON or as text for people, and returns the exit status.
func show(sys *System, cmd string, asJSON bool, json func() []byte, text func() string) int {
	var err error
	if asJSON {
		_, err = sys.Stdout.Write(json())
	} else {
		_, err = io.WriteString(sys.Stdout, text())
	}
	if err != nil {
		return complain(sys, cmd, err)
	}
	return ExitOK
}

// dialDaemon connects to the daemon; if it fails, the command ends with the status.
func dialDaemon(sys *System, path string, limit time.Duration) (*control.Client, int) {
	first := path
	if first == "" {
		first = control.DefaultPath
	}
	c, err := control.Dial(first)
	if path == "" && errors.Is(err, control.ErrNotRunning) {
		var second error
		if c, second = control.Dial(control.CharonPath); !errors.Is(second, control.ErrNotRunning) {
			err = second
		}
	}
	switch {
	case err == nil:
		c.Ours = true
		if limit > 0 {
			_ = c.SetDeadline(time.Now().Add(limit))
		}
		return c, ExitOK
	case errors.Is(err, control.ErrNotRunning):
		sys.errorf("%v: start it with 'postern run', or name its socket with --socket", err)
		return nil, ExitNoDaemon
	case errors.Is(err, os.ErrPermission):
		sys.errorf("%v: run this as root", err)
		return nil, ExitSystem
	}
	sys.errorf("%v", err)
	return nil, ExitNoDaemon
}

// complain reports why a command to the daemon failed and returns the exit status.
func complain(sys *System, what string, err error) int {
	var refused *control.CommandError
	switch {
	case errors.As(err, &refused):
		sys.errorf("%s: %s", what, lines(refused.Reason))
	case errors.Is(err, os.ErrDeadlineExceeded):
		sys.errorf("%s: the daemon did not answer in time: look into its log", what)
	case errors.Is(err, control.ErrClosed):
		sys.errorf("%s: %v", what, err)
		return ExitNoDaemon
	default:
		sys.errorf("%s: %v", what, err)
	}
	return ExitFailed
}

// lines cleans a text that may have several lines.
func lines(s string) string {
	parts := strings.Split(s, "\n")
	for i := range parts {
		parts[i] = clean(parts[i])
	}
	return strings.Join(parts, "\n")
}

func runStatus(sys *System, cmd *Command, args []string) int {
	o := newOptions(sys, cmd)
	asJSON := o.Bool("json", false, "print JSON")
	return o.ask(sys, args, 0, 1, func(c *control.Client, rest []string) int {
		name := ""
		if len(rest) == 1 {
			name = rest[0]
		}
		st, err := collect(c, name)
		if err != nil {
			return complain(sys, "status", err)
		}
		if name != "" && len(st.conns) == 0 {
			sys.errorf("status: there is no connection %q: 'postern status' lists them", clean(name))
			return ExitFailed
		}
		if status := show(sys, "status", *asJSON, st.json, st.table); status != ExitOK {
			return status
		}
		if name != "" && !st.conns[0].up() {
			return ExitDown
		}
		return ExitOK
	})
}

func runUp(sys *System, cmd *Command, args []string) int {
	o := newOptions(sys, cmd)
	timeout := o.Duration("timeout", 30*time.Second, "wait that `LONG` for the SAs; 0 waits for ever")
	return negotiate(sys, o, args, timeout, control.CmdInitiate, "is up")
}

func runDown(sys *System, cmd *Command, args []string) int {
	o := newOptions(sys, cmd)
	timeout := o.Duration("timeout", 10*time.Second, "wait that `LONG` for the peer; 0 waits for ever")
	return negotiate(sys, o, args, timeout, control.CmdTerminate, "is down")
}

// negotiate runs initiate or terminate, and shows what happens meanwhile.
func negotiate(sys *System, o *options, args []string, timeout *time.Duration, command, done string) int {
	socket := socketOption(o)
	quiet := o.Bool("quiet", false, "do not show what happens meanwhile")
	rest, status, ok := o.parse(args, 1, 2)
	if !ok {
		return status
	}
	if *timeout < 0 {
		sys.errorf("%s: --timeout must not be negative", o.cmd.Name)
		return ExitUsage
	}
	limit := *timeout + patience
	if *timeout == 0 {
		limit = 0
	}
	c, status := dialDaemon(sys, *socket, limit)
	if c == nil {
		return status
	}
	defer func() { _ = c.Close() }()
	req := new(control.Message).Set(control.KeyIKE, rest[0])
	what := rest[0]
	if len(rest) == 2 {
		req.Set(control.KeyChild, rest[1])
		what += " " + rest[1]
	}
	req.SetInt(control.KeyTimeout, timeout.Milliseconds())
	level := "1"
	if *quiet {
		level = "-1"
	}
	req.Set(control.KeyLogLevel, level)
	resp, err := c.CallStream(command, control.EvControlLog, req, func(m *control.Message) error {
		if !*quiet {
			fmt.Fprintf(sys.Stderr, "[%s] %s\n", clean(m.Get(control.KeyGroup)), clean(m.Get(control.KeyMsg)))
		}
		return nil
	})
	if err == nil {
		err = control.Check(command, resp)
	}
	if err != nil {
		return complain(sys, o.cmd.Name+" "+clean(what), err)
	}
	sys.printf("%s %s\n", clean(what), done)
	return ExitOK
}

func runRedirect(sys *System, cmd *Command, args []string) int {
	o := newOptions(sys, cmd)
	return o.ask(sys, args, 2, 2, func(c *control.Client, rest []string) int {
		resp, err := c.Call(control.CmdRedirect, new(control.Message).Set(control.KeyIKE, rest[0]).Set(control.KeyGateway, rest[1]))
		if err == nil {
			err = control.Check(control.CmdRedirect, resp)
		}
		if err != nil {
			return complain(sys, "redirect "+clean(rest[0]), err)
		}
		n, _ := resp.GetInt(control.KeyMatches)
		sys.printf("%d told to go to %s\n", n, clean(rest[1]))
		return ExitOK
	})
}

func runReload(sys *System, cmd *Command, args []string) int {
	o := newOptions(sys, cmd)
	return o.ask(sys, args, 0, 0, func(c *control.Client, _ []string) int {
		resp, err := c.Call(control.CmdReload, nil)
		if err == nil {
			err = control.Check(control.CmdReload, resp)
		}
		if err != nil {
			status := complain(sys, "reload", err)
			if problems := resp.Items(control.KeyProblems); len(problems) > 0 {
				for _, p := range problems {
					fmt.Fprintln(sys.Stderr, clean(p))
				}
				return ExitConfig
			}
			return status
		}
		sys.printf("the daemon has read its configuration again\n")
		return ExitOK
	})
}
