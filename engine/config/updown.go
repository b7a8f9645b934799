package config

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// Updown is the script of a child. The zero value is none.
type Updown struct {
	// Command is for the shell, which runs it when a CHILD SA has come up and when it has gone down.
	Command string
	// HostAccess has it told that this host itself is to be let through, for scripts that care.
	HostAccess bool
}

// Updown returns the script of a child; the zero value if it has none, or if there is no such child.
func (c *Config) Updown(conn, child string) Updown { return c.updowns[headersKey(conn, child)] }

// maxCommand bounds a command in octets: more belongs into a script.
const maxCommand = 1024

// updownKeys are the keys of a child's script, with strongSwan's names.
var updownKeys = []key{
	{"updown", aText, `a script for /bin/sh, with its path from the root and its arguments, that runs when the child has come up or gone down, for each pair of selectors; PLUTO_VERB and the other variables are those of strongSwan's; it has ten seconds; none`,
		func(s *scope, n *node) { s.command(n, &s.child.updown.Command) }},
	{"hostaccess", aSwitch, `the script is told PLUTO_HOST_ACCESS=1; false`,
		func(s *scope, n *node) { s.boolean(n, &s.child.updown.HostAccess) }},
}

// command reads a command of the shell.
func (s *scope) command(n *node, to *string) {
	text := strings.TrimSpace(n.text)
	if !goodCommand(text) {
		s.problem(n.at, "put it into a script and write the path of that", "%s must be one line without control characters, of at most %d octets", n.name, maxCommand)
		return
	}
	*to = text
	switch what, hint, unwise := scriptProblem(text); {
	case what == "":
	case unwise:
		s.warn(n.at, hint, "%s: %s", n.name, what)
	case s.vici == nil: // LoadConn has looked at it; that it is gone by now must not be in the way of other changes
		s.problem(n.at, hint, "%s: %s", n.name, what)
	}
}

// goodCommand tells whether a command is one line of sensible length.
func goodCommand(text string) bool {
	return len(text) <= maxCommand && !strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// scriptProblem looks at the file that a command means, as far as that can be told without the shell: a
// program's path without quotes and the like. It says what is wrong, or only unwise, and what to do;
// "" is nothing.
func scriptProblem(command string) (what, hint string, unwise bool) {
	program, _, _ := strings.Cut(strings.TrimSpace(command), " ")
	if !goodCommand(program) || !strings.Contains(program, "/") || strings.ContainsAny(program, "\"'`$\\|&;<>(){}*?[]~=#!") {
		return "", "", false // in PATH, or the shell's own affair
	}
	hint = "write the path of an executable file, from the root, and then its arguments"
	if program[0] != '/' {
		return strconv.Quote(clipName(program)) + " depends on the directory in which the daemon runs", hint, false
	}
	st, err := os.Stat(program)
	switch {
	case err != nil && !errors.Is(err, fs.ErrPermission):
		return program + " cannot be run: " + reason(err).Error(), hint, false
	case err != nil: // who checks the configuration need not be who runs it
	case !st.Mode().IsRegular():
		return program + " is not a file", hint, false
	case st.Mode().Perm()&0o111 == 0:
		return program + " is not executable", "chmod 755 it", false
	case st.Mode().Perm()&0o022 != 0:
		return "the group or others can change " + program + ", which the daemon runs with all its rights", "chmod 755 it", true
	}
	return "", "", false
}

// finishUpdown keeps the script of a child.
func (l *loader) finishUpdown(c *child) {
	if c.updown == (Updown{}) {
		return
	}
	if c.updown.Command == "" {
		if n := c.t.get("updown"); n == nil || !n.bad {
			l.warn(where(c.t, "hostaccess"), "add updown, or take it out", "hostaccess means nothing without a script")
		}
		return
	}
	if l.updowns == nil {
		// What the loader adds to may be a configuration that others read.
		l.updowns = map[string]Updown{}
		for name, u := range l.cfg.updowns {
			l.updowns[name] = u
		}
		l.cfg.updowns = l.updowns
	}
	l.updowns[headersKey(c.conn.Name, c.Name)] = c.updown
}
