// Package cli is the command line: it parses arguments, runs the daemon, and is a
// client of its control socket. What belongs to the operating system comes in through
// System.
package cli

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"postern/board"
	"postern/engine/bench"
	"postern/engine/config"
	"postern/engine/control"
	"postern/engine/log"
	"postern/ike"
)

// Exit statuses. They are part of the interface: scripts and watchdogs depend on them.
const (
	ExitOK       = 0
	ExitFailed   = 1 // it did not work; standard error says why
	ExitUsage    = 2 // the command line is wrong
	ExitNoDaemon = 3 // no daemon answers on the control socket
	ExitDown     = 4 // status CONN: the tunnel is not up
	ExitConfig   = 5 // the configuration has errors
	ExitSystem   = 6 // privileges or a device are missing
)

const exitHelp = `Exit status:
  0  done
  1  it did not work, standard error says why
  2  the command line is wrong
  3  no daemon answers on the control socket
  4  status CONN: the tunnel is not up
  5  the configuration has errors
  6  privileges or a device are missing
`

// DefaultConfig is the configuration that run loads unless told otherwise.
const DefaultConfig = "/etc/postern/postern.toml"

// Daemon is the running engine.
type Daemon interface {
	// Run works until stop is closed, and then undoes what it did to the system.
	Run(stop <-chan struct{}) error
	// Reload changes over to another configuration, keeping what did not change.
	Reload(cfg *config.Config) error
	// Running is closed when the daemon takes commands.
	Running() <-chan struct{}
	// Command runs a command as if a control client had sent it. See control.Handler.
	Command(name string, req *control.Message, stream func(string, *control.Message) error) (*control.Message, bool)
	// OnReload has f called when a control client wants the configuration read again, after
	// the file has been. It is called before Run.
	OnReload(f func() error)
}

// System is what the program is given by main. Stdout, Stderr and Version must be set;
// what only run needs may be nil for other commands.
type System struct {
	Stdout, Stderr io.Writer
	Version        string
	// NewDaemon prepares the daemon; path is the file that cfg was loaded from, "" if there is none.
	NewDaemon func(path string, cfg *config.Config, prof board.Profile, lg *log.Logger) (Daemon, error)
	// MemoryTotal is the device's RAM in octets, 0 if unknown.
	MemoryTotal func() uint64
	// Ciphers is what "default" stands for among proposals on this processor.
	Ciphers ike.CipherOrder
	// Privileges returns nil if this process may open devices and raw sockets, and
	// otherwise an error that says what it lacks.
	Privileges func() error
	// Harden keeps keys out of core dumps and out of other processes' reach. It is
	// called before the first secret is read; a failure is logged and no more.
	Harden func() error
	// Signals starts the delivery of the hang-up, interrupt and termination signals.
	Signals func() <-chan os.Signal
	// Bench finds out what bench measures, and makes the choices that the daemon would.
	Bench func() bench.System
	// Commands are the commands that a build adds.
	Commands []Command
}

// Command is one subcommand. Run gets the command itself, whose help it may have to
// print, and the arguments behind its name; it returns the exit status.
type Command struct {
	Name    string
	Args    string // of the synopsis: "CONN [CHILD]"
	Summary string // one line of the overview
	Help    string // what it does, with an example
	Run     func(sys *System, cmd *Command, args []string) int
}

// commands are those of every build, in the order of the overview.
func commands() []Command {
	return []Command{
		runCommand, checkCommand, statusCommand, policyCommand, poolsCommand, certsCommand, saCommand, upCommand, downCommand, redirectCommand, reloadCommand, swanctlCommand,
		benchCommand, versionCommand, pskCommand,
	}
}

// Main runs the command that args (without the program's name) ask for and returns
// the exit status.
func Main(args []string, sys System) int {
	if len(args) == 0 {
		overview(sys.Stderr, &sys)
		return ExitUsage
	}
	name, rest := args[0], args[1:]
	switch name {
	case "help", "-h", "-help", "--help":
		if len(rest) > 0 && rest[0] != "help" {
			name, rest = rest[0], append(rest[1:], "--help")
			break
		}
		overview(sys.Stdout, &sys)
		return ExitOK
	case "-v", "-version", "--version":
		name = "version"
	}
	for _, c := range append(commands(), sys.Commands...) {
		if c.Name == name {
			return c.Run(&sys, &c, rest)
		}
	}
	sys.errorf("there is no command %q: 'postern help' lists them", name)
	return ExitUsage
}

func overview(w io.Writer, sys *System) {
	var b strings.Builder
	b.WriteString("postern brings up IPsec tunnels (IKEv2, ESP, AH).\n\nUsage: postern COMMAND [ARGUMENTS]\n\n")
	for _, c := range append(commands(), sys.Commands...) {
		fmt.Fprintf(&b, "  %-24s %s\n", strings.TrimSpace(c.Name+" "+c.Args), c.Summary)
	}
	fmt.Fprintf(&b, "  %-24s %s\n", "help [COMMAND]", "say more, with an example")
	b.WriteString("\n" + exitHelp)
	_, _ = io.WriteString(w, b.String())
}

// errorf writes an error for the user. Text that came from elsewhere must already be clean.
// Not inlined: it is called at many places, where only room counts.
//
//go:noinline
func (s *System) errorf(format string, args ...any) {
	fmt.Fprintf(s.Stderr, "postern: "+format+"\n", args...)
}

func (s *System) printf(format string, args ...any) {
	fmt.Fprintf(s.Stdout, format, args...)
}

// options is a flag set that lets options stand behind arguments, too.
type options struct {
	*flag.FlagSet
	sys *System
	cmd *Command
}

// newOptions returns the option parser of a command.
func newOptions(sys *System, cmd *Command) *options {
	o := &options{FlagSet: flag.NewFlagSet(cmd.Name, flag.ContinueOnError), sys: sys, cmd: cmd}
	o.SetOutput(io.Discard)
	o.Usage = func() {}
	return o
}

// errHelp ends a command whose help was asked for.
var errHelp = errors.New("help")

// parse returns the arguments that are no options, of which there must be between
// least and most. If it returns false, the command ends with the status.
func (o *options) parse(args []string, least, most int) (rest []string, status int, ok bool) {
	err := func() error {
		for len(args) > 0 {
			if err := o.Parse(args); err != nil {
				if errors.Is(err, flag.ErrHelp) {
					return errHelp
				}
				return err
			}
			left := o.Args()
			if used := len(args) - len(left); used > 0 && args[used-1] == "--" {
				rest = append(rest, left...)
				break
			}
			if len(left) == 0 {
				break
			}
			rest = append(rest, left[0])
			args = left[1:]
		}
		switch {
		case len(rest) < least:
			return fmt.Errorf("%s is missing", argName(o.cmd.Args, len(rest)))
		case len(rest) > most:
			return fmt.Errorf("%q is one argument too many", rest[most])
		}
		return nil
	}()
	switch err {
	case nil:
		return rest, ExitOK, true
	case errHelp:
		o.help(o.sys.Stdout)
		return nil, ExitOK, false
	}
	o.sys.errorf("%s: %v", o.cmd.Name, err)
	fmt.Fprintf(o.sys.Stderr, "Usage: postern %s\n'postern help %s' says more.\n", o.synopsis(), o.cmd.Name)
	return nil, ExitUsage, false
}

// argName returns the name of the nth argument in a synopsis.
func argName(synopsis string, n int) string {
	for _, w := range strings.Fields(synopsis) {
		if strings.HasPrefix(w, "[-") || strings.HasPrefix(w, "-") {
			continue
		}
		if n == 0 {
			return w
		}
		n--
	}
	return "an argument"
}

func (o *options) synopsis() string {
	s := strings.TrimSpace(o.cmd.Name + " " + o.cmd.Args)
	all := s
	o.VisitAll(func(f *flag.Flag) {
		if len(f.Name) > 1 {
			all += " [" + dashed(f) + "]"
		}
	})
	if len("Usage: postern "+all) > width {
		return s + " [OPTIONS]" // a list follows, or is a command away
	}
	return all
}

// dashed returns an option as it is typed, with the name of its value.
func dashed(f *flag.Flag) string {
	value, _ := flag.UnquoteUsage(f)
	dash := "--"
	if len(f.Name) == 1 {
		dash = "-"
	}
	if value != "" {
		value = " " + value
	}
	return dash + f.Name + value
}

func (o *options) help(w io.Writer) {
	var b strings.Builder
	fmt.Fprintf(&b, "Usage: postern %s\n\n%s\n", o.synopsis(), strings.TrimSpace(o.cmd.Help))
	head := "\nOptions:\n"
	o.VisitAll(func(f *flag.Flag) {
		_, usage := flag.UnquoteUsage(f)
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" {
			usage += " (default " + f.DefValue + ")"
		}
		b.WriteString(head)
		wrap(&b, "  "+pad(dashed(f), 20)+" ", words(usage)...)
		head = ""
	})
	_, _ = io.WriteString(w, b.String())
}

// NoArguments parses the command line of an added command that has neither options nor
// arguments. If ok is false, the command ends with the status.
func NoArguments(sys *System, cmd *Command, args []string) (status int, ok bool) {
	_, status, ok = newOptions(sys, cmd).parse(args, 0, 0)
	return status, ok
}
