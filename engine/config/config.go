// Package config reads postern's configuration: a TOML file whose sections and keys
// have the names of strongSwan's swanctl.conf. It is strict. An unknown key, a bad
// value or a contradiction is a Problem with its place in the file and what to write
// instead, and all problems of a file are found in one go.
//
// The way of a file through the package:
//
//  1. toml.go: text → tree of tables and values with positions; TOML's own rules
//  2. schema.go: the tree is walked along a table of sections and keys
//  3. value.go, ts.go, secret.go: one value → what the field wants
//  4. check.go: defaults that depend on other values, and what contradicts what
//  5. policy.go: the SPD that follows from [policies] and the children; table.go reads the
//     first, order.go finds what its order leaves without effect
//
// What control clients load in the words of VICI joins it (see [Loaded] and [Config.With]):
//
//  1. loaded.go: messages → what was loaded, and what can be said of each by itself
//  2. with.go: each message → the same tree, which is walked along the same table; charon.go
//     has the keys that VICI has otherwise
//  3. creds.go: which certificates, keys and CAs go with which connection
//  4. check.go, policy.go and order.go again, over both together
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sort"
	"strings"
	"time"

	"postern/board"
	"postern/engine/log"
	"postern/ike"
	"postern/ike/pki"
)

// Defaults. Where they are not strongSwan's, the reason stands beside them.
const (
	defaultInterface = "postern0"
	defaultControl   = "/run/postern.sock"
	// On OpenWrt /var is gone after a restart and /etc is not.
	defaultStateDir  = "/etc/postern/state"
	defaultIKEPort   = 500
	defaultNATTPort  = 4500
	defaultKeepAlive = 20 * time.Second
	autoBoard        = "auto"

	// strongSwan has liveness checks switched off. A router in the field has nobody who
	// restarts a tunnel after the far end lost power, so we look after a silent peer;
	// half a minute is also often enough to keep the NAT mappings of mobile carriers.
	defaultDPDDelay = 30 * time.Second

	// strongSwan gives up after one attempt; a site that nobody visits must not.
	defaultKeyingTries = 0

	defaultIKERekey   = 4 * time.Hour
	defaultChildRekey = time.Hour

	defaultRetryTimeout = 4 * time.Second
	defaultRetryBase    = 1.8
	defaultRetryTries   = 5
	defaultFragmentSize = 1280

	// strongSwan's 32 and the RFC's 64 are less than what the kernel moves in one piece: with
	// UDP_SEGMENT that is up to 64 packets, and two such messages can pass each other
	// on the way. Twice 64 costs eight octets more per SA.
	defaultReplayWindow = 128

	// RFC 9347 section 2.4.2.1 leaves it to the user; a minute is no burst.
	defaultTripTime = time.Minute
)

// Limits of what is read, so that a wrong file name cannot fill a small memory.
const (
	maxFileLen   = 256 << 10 // octets; about two thousand connections
	maxSecretLen = 4 << 10   // octets of a secret's file
)

// Config is a whole configuration file. Values that the file leaves out have their
// defaults.
type Config struct {
	File   string
	Daemon Daemon
	Log    Log
	IKE    ike.Config
	Manual []*Manual

	warnings Problems
	marks    []mark                // one per child, in the order of Policies
	fixed    map[*ike.Child]uint32 // priorities that clients have fixed
	table    []tableEntry
	shunts   []shunt
	headers  map[string]*Headers // by headersKey
	updowns  map[string]Updown   // likewise
	devices  []Device
	domains  map[string][]string // of DNSDomains
	// authorities are all of what [Config.With] returned.
	authorities []*authority
	read        fileParts // for With
	elements    []string  // names of elements that clients have loaded; see pos.loaded
	parts       map[int]*part
}

// Daemon is the section [daemon].
type Daemon struct {
	Interface  string // name of the TUN device
	MTU        int    // of the TUN device; 0: computed
	Board      string // "auto", or the name of a board.Profile
	IKEPort    uint16
	NATTPort   uint16
	KeepAlive  time.Duration // the longest silence towards a NAT; 0: no keepalives
	ExportKeys bool          // the control socket tells the keys of CHILD SAs
	Control    string        // path of the control socket
	DNS        DNSMode       // who is told of name servers
	DNSFile    string        // with DNSFile and DNSDnsmasq
	StateDir   string        // directory for what survives a restart; "": nothing does
	QCD        bool          // quick crash detection (RFC 6290)
}

// Log is the section [log]: where lines go, and how much of each area is written.
type Log struct {
	Target        string // "stderr" or "syslog"
	IKE, ESP, Net log.Level
}

// mark remembers where a child and its connection stand in the file, and what of the child is
// not the machine's.
type mark struct {
	conn, child pos
	classes     *Classes
	priority    uint32 // strongSwan's: the smaller one comes first; 0: in the order of the file
}

// Problem is one thing that is wrong in a file: where (Line and Col count from 1, Col
// in characters), what, and what to write instead. In what a control client has loaded File is the
// name of the element, and Line is 0. It never holds a secret.
type Problem struct {
	File      string
	Line, Col int
	What      string
	Hint      string
}

// String returns the problem in one line, as compilers print theirs.
func (p Problem) String() string {
	s := fmt.Sprintf("%s:%d:%d: %s", p.File, p.Line, p.Col, p.What)
	switch {
	case p.Line == 0:
		s = p.File + ": " + p.What
	case p.Col == 0:
		s = fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.What)
	}
	if p.Hint != "" {
		s += "; " + p.Hint
	}
	return s
}

// Problems are all the problems of one file, sorted by their place.
type Problems []Problem

// Error returns one line per problem.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// sorted puts the problems into the order of the file.
func (ps Problems) sorted() Problems {
	sort.SliceStable(ps, func(i, j int) bool {
		a, b := &ps[i], &ps[j]
		return a.Line < b.Line || a.Line == b.Line && a.Col < b.Col
	})
	return ps
}

// Load reads the configuration file at path. The error is Problems with everything
// that is wrong in the file, or an error about the file itself. A file that holds a
// secret must not be open to the group or to others. What "default" stands for among
// proposals follows order.
func Load(path string, order ike.CipherOrder) (*Config, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, fileError(path, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fileError(path, err)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFileLen+1))
	if err != nil {
		return nil, fileError(path, err)
	}
	defer clear(data)
	l := newLoader(path, readSecretFile)
	l.order = order
	l.exposed = st.Mode().Perm()&openToOthers != 0
	return l.load(data)
}

// Parse reads a configuration from data as Load does; file is its name in problems and the place
// from which the relative names of secret files start. The error is Problems.
func Parse(file string, data []byte, order ike.CipherOrder) (*Config, error) {
	l := newLoader(file, readSecretFile)
	l.order = order
	return l.load(data)
}

// Warnings returns what is allowed but unwise, in the order of the file.
func (c *Config) Warnings() []Problem { return c.warnings }

// Fits tells whether the profile's tables have room for the configuration. The error
// is Problems.
func (c *Config) Fits(p board.Profile) error {
	var ps Problems
	hint := "take connections or children out, or choose a bigger board in [daemon]"
	if n := len(c.IKE.Conns); n > p.IKESAs {
		at := pos{1, 1}
		for i, seen := 0, 0; i < len(c.marks) && seen <= p.IKESAs; i++ {
			if i == 0 || c.marks[i].conn != c.marks[i-1].conn {
				at, seen = c.marks[i].conn, seen+1
			}
		}
		ps = append(ps, Problem{c.File, at.line, at.col,
			fmt.Sprintf("%d connections are more than the board %q has room for (%d)", n, p.Name, p.IKESAs), hint})
	}
	if n, room := len(c.marks)+len(c.Manual), min(p.Policies, p.ChildSAs); len(c.Manual) > 0 && len(c.marks) <= room && n > room {
		at := c.Manual[room-len(c.marks)].at
		ps = append(ps, Problem{c.File, at.line, at.col,
			fmt.Sprintf("%d children and manual SAs are more than the board %q has room for (%d)", n, p.Name, room), hint})
	}
	if room := min(p.Policies, p.ChildSAs); len(c.marks) > room {
		at := c.marks[room].child
		ps = append(ps, Problem{c.File, at.line, at.col,
			fmt.Sprintf("%d children are more than the board %q has room for (%d)", len(c.marks), p.Name, room), hint})
	}
	for i, n, at := 0, 0, c.marks; n <= p.Streams() && i < len(at); i++ {
		if c.child(i).Hiding.IPTFS == ike.IPTFSNo {
			continue
		}
		if n++; n > p.Streams() {
			ps = append(ps, Problem{c.File, at[i].child.line, at[i].child.col,
				fmt.Sprintf("more children have iptfs than the board %q has room for (%d)", p.Name, p.Streams()), "take iptfs out of some, or choose a bigger board in [daemon]"})
		}
	}
	if n := c.entries(); n > p.Policies && len(c.marks) <= p.Policies {
		at := pos{1, 1}
		if len(c.table) > 0 {
			at = c.table[min(len(c.table), p.Policies)-1].at
		}
		ps = append(ps, Problem{c.File, at.line, at.col,
			fmt.Sprintf("%d policies are more than the board %q has room for (%d)", n, p.Name, p.Policies), "take some out, or choose a bigger board in [daemon]"})
	}
	ps = append(ps, c.fitDevices(p)...)
	if len(ps) == 0 {
		return nil
	}
	return c.placed(ps).sorted()
}

// child returns the child that marks[i] is of.
func (c *Config) child(i int) *ike.Child {
	for _, conn := range c.IKE.Conns {
		if i < len(conn.Children) {
			return conn.Children[i]
		}
		i -= len(conn.Children)
	}
	return new(ike.Child)
}

// loader is the state of reading one file.
type loader struct {
	cfg        *Config
	problems   Problems
	conns      []*conn
	secrets    []*secret
	ppks       []*ppk
	table      []*tableEntry
	manuals    []*manual
	pools      []*poolTable
	readSecret func(path string) ([]byte, error)
	order      ike.CipherOrder // of the default proposals
	headers    *Headers        // of the last child
	updowns    map[string]Updown
	exposed    bool // the file itself is open to others
	broken     bool // TOML's syntax or rules are violated: something may be missing

	authorities   []*authority
	vici          *dialect                                    // of what clients have loaded; nil: a file is read
	soft          bool                                        // problems are but warnings
	intermediates []*pki.Cert                                 // that come with our own certificates
	readKey       func(path string, most int) ([]byte, error) // nil: readPrivateFile
	readPublic    func(path string, most int) ([]byte, error) // nil: readPublicFile
}

func newLoader(file string, readSecret func(string) ([]byte, error)) *loader {
	c := &Config{
		File: file,
		Daemon: Daemon{
			Interface: defaultInterface,
			Board:     autoBoard,
			IKEPort:   defaultIKEPort,
			NATTPort:  defaultNATTPort,
			KeepAlive: defaultKeepAlive,
			Control:   defaultControl,
			StateDir:  defaultStateDir,
			QCD:       true,
		},
		Log: Log{Target: "stderr", IKE: log.Info, ESP: log.Info, Net: log.Info},
	}
	return &loader{cfg: c, readSecret: readSecret}
}

func (l *loader) load(data []byte) (*Config, error) {
	if len(data) > maxFileLen {
		return nil, fmt.Errorf("%s is larger than %d KiB and cannot be a configuration: name the right file",
			l.cfg.File, maxFileLen>>10)
	}
	root := l.tree(data)
	l.walk(rootSection, root, &scope{loader: l})
	l.check(root)
	if len(l.problems) > 0 {
		return nil, l.problems.sorted()
	}
	l.cfg.read = fileParts{l.order, l.conns, l.pools, l.authorities, l.intermediates, new(memo)}
	l.cfg.warnings = l.cfg.warnings.sorted()
	return l.cfg, nil
}

// problem notes that something at that place is wrong. The arguments must not come
// from a secret.
func (l *loader) problem(at pos, hint, format string, args ...any) {
	if l.soft {
		l.warn(at, hint, format, args...)
		return
	}
	l.problems = append(l.problems, Problem{l.cfg.File, at.line, at.col, fmt.Sprintf(format, args...), hint})
}

func (l *loader) warn(at pos, hint, format string, args ...any) {
	if l.soft && !at.loaded() {
		return // it was said when the file was read
	}
	l.cfg.warnings = append(l.cfg.warnings, Problem{l.cfg.File, at.line, at.col, fmt.Sprintf(format, args...), hint})
}

// reason takes the operation and the path off an error of package os.
func reason(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}

// fileError says what to do when the configuration cannot be read.
func fileError(path string, err error) error {
	hint := "name the right file"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		hint = "write one (the samples in configs/ are a start) or name another file"
	case errors.Is(err, fs.ErrPermission):
		hint = "run as root, or give the file to the user that postern runs as"
	}
	return fmt.Errorf("cannot read the configuration %s: %w; %s", path, reason(err), hint)
}
