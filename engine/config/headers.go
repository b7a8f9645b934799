package config

import (
	"strconv"
	"strings"
)

// DF says what the outer header's DF bit is.
type DF uint8

// What DF can be (RFC 4301 section 8.1).
const (
	DFCopy  DF = iota // that of the inner header; set over IPv6
	DFSet             // set
	DFClear           // clear: routers may cut
)

// MSSAuto is the MSS that fits the SA and its path.
const MSSAuto = -1

// Headers is what a child does with the headers of packets in tunnel mode, and in every mode with
// those that do not fit the path. The zero value is not the default, see DefaultHeaders.
type Headers struct {
	DF       DF
	After    bool      // what may be fragmented is, once it is sealed; else before
	HopLimit uint8     // of the outer header; 0: the system's
	ECN      bool      // RFC 6040's normal mode; else its compatibility mode
	DSCPIn   bool      // the inner header gets the outer DSCP
	DSCP     [64]uint8 // the outer DSCP for each inner one
	MSS      int       // of TCP, at most; 0: as it is; MSSAuto
}

// DefaultHeaders returns the headers of a child that says nothing of them.
func DefaultHeaders() Headers {
	h := Headers{ECN: true, MSS: MSSAuto}
	for i := range h.DSCP {
		h.DSCP[i] = uint8(i)
	}
	return h
}

// Headers returns those of a child, false if there is no such child. They are the caller's to read.
func (c *Config) Headers(conn, child string) (*Headers, bool) {
	h, ok := c.headers[headersKey(conn, child)]
	return h, ok
}

// headersKey names a child; names have no slashes.
func headersKey(conn, child string) string { return conn + "/" + child }

var (
	dfWords       = []string{DFCopy: "copy", DFSet: "set", DFClear: "clear"}
	copyDSCPWords = []string{"out", "in", "yes", "no"}
	cutWords      = []string{"before", "after"}
	aNumberOrAuto = &typ{[]kind{kindInteger, kindString}, `a whole number, or "auto"`}
)

// headerKeys are the keys of a child that say what becomes of headers.
var headerKeys = []key{
	{"df", aText, `the outer header's DF bit: "copy" of the inner one, "set" or "clear"; "copy"`,
		func(s *scope, n *node) { s.word(n, dfWords, func(i int) { s.child.headers.DF = DF(i) }) }},
	{"copy_df", aSwitch, `the same in strongSwan's words: true is "copy", false "clear"`,
		func(s *scope, n *node) {
			if n.text != "true" {
				s.child.headers.DF = DFClear
			}
		}},
	{"copy_dscp", aText, `DSCP is copied from the inner header to the outer one ("out"), back ("in"), "yes" for both, or "no"; "out"`,
		func(s *scope, n *node) {
			s.word(n, copyDSCPWords, func(i int) {
				s.child.headers.DSCPIn = i == 1 || i == 2
				s.child.dscpOut = i == 0 || i == 2
			})
		}},
	{"dscp", aNumber, `the outer DSCP of all packets, 0 to 63`,
		func(s *scope, n *node) { s.number(n, 0, 63, &s.child.dscp) }},
	{"dscp_map", aList, `the outer DSCP for some inner ones, before all else: ["46:34", "0:8"]`,
		func(s *scope, n *node) { s.dscpMap(n) }},
	{"copy_ecn", aSwitch, `ECN is copied to the outer header, and marks of it carried back (RFC 6040); true`,
		func(s *scope, n *node) { s.boolean(n, &s.child.headers.ECN) }},
	{"hop_limit", aNumber, `the outer header's TTL or hop limit, 1 to 255; 0: the system's; 0`,
		func(s *scope, n *node) {
			v := int(s.child.headers.HopLimit)
			s.zeroOr(n, 1, 255, &v)
			s.child.headers.HopLimit = uint8(v)
		}},
	{"fragment", aText, `packets without DF that are larger than the path are cut "before" they are sealed, in tunnel mode, or "after"; "before"`,
		func(s *scope, n *node) {
			s.word(n, cutWords, func(i int) { s.child.headers.After = i == 1 })
		}},
	// Linux takes no smaller MSS.
	{"mss", aNumberOrAuto, `TCP connections through the child announce that at most, 88 to 8960; "auto": what fits; 0: as they are; "auto"`,
		func(s *scope, n *node) { s.mss(n, &s.child.headers.MSS) }},
}

func (s *scope) mss(n *node, to *int) {
	if n.kind != kindString {
		s.zeroOr(n, 88, 8960, to)
		return
	}
	s.word(n, []string{"auto"}, func(int) { *to = MSSAuto })
}

// dscpMap reads pairs of inner and outer DSCP.
func (s *scope) dscpMap(n *node) {
	for _, e := range s.texts(n) {
		in, out, ok := strings.Cut(e.text, ":")
		from, err := strconv.ParseUint(in, 10, 6)
		to, err2 := strconv.ParseUint(out, 10, 6)
		switch {
		case !ok || err != nil || err2 != nil:
			s.problem(e.at, `write the inner and the outer DSCP, 0 to 63, such as "46:34"`, "%q is no pair of DSCPs", e.text)
		case s.child.dscpMap[from] != 0:
			s.problem(e.at, "take one out", "the inner DSCP %d is twice in %s", from, n.name)
		default:
			s.child.dscpMap[from] = uint8(to) + 1
		}
	}
}

// headerState is what is known of a child's headers while it is read.
type headerState struct {
	headers Headers
	dscpOut bool
	dscp    int       // -1: not set
	dscpMap [64]uint8 // plus 1; 0: not set
}

func newHeaderState() headerState {
	return headerState{headers: DefaultHeaders(), dscpOut: true, dscp: -1}
}

// finishHeaders puts together what the keys say.
func (l *loader) finishHeaders(c *child) {
	h := &c.headers
	for i := range h.DSCP {
		switch {
		case c.dscpMap[i] != 0:
			h.DSCP[i] = c.dscpMap[i] - 1
		case c.dscp >= 0:
			h.DSCP[i] = uint8(c.dscp)
		case !c.dscpOut:
			h.DSCP[i] = 0
		}
	}
	// Most children have the same as the one before: they share it.
	if l.headers == nil || *l.headers != *h {
		own := *h
		l.headers = &own
	}
	if l.cfg.headers == nil {
		l.cfg.headers = map[string]*Headers{}
	}
	l.cfg.headers[headersKey(c.conn.Name, c.Name)] = l.headers
}

// checkHeaders notes keys that contradict each other, or that a mode has no use for.
func (l *loader) checkHeaders(c *child) {
	both := func(a, b string) bool { return c.t.get(a) != nil && c.t.get(b) != nil && good(c.t, a, b) }
	if both("df", "copy_df") {
		l.problem(where(c.t, "copy_df"), "write one of them", "df and copy_df say the same thing")
	}
	if both("df", "fragment") && c.headers.DF == DFSet && c.headers.After {
		l.problem(where(c.t, "fragment"), `write df = "copy" or fragment = "before"`, "what has DF set cannot be fragmented after it was sealed")
	}
	if both("dscp", "copy_dscp") && c.dscpOut {
		l.problem(where(c.t, "dscp"), `take it out, or write copy_dscp = "in" or "no"`, "the outer DSCP is either copied or %d", c.dscp)
	}
	if c.mode == modeTunnel || l.vici != nil {
		return
	}
	for _, name := range []string{"df", "copy_df", "copy_dscp", "dscp", "dscp_map", "copy_ecn", "hop_limit"} {
		if n := c.t.get(name); n != nil && !n.bad {
			l.problem(n.key, `take it out, or write mode = "tunnel"`, "%s is for tunnel mode: mode %q has no outer header of its own", name, modeWords[c.mode])
		}
	}
}
