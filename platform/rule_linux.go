package platform

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// PortRange is an inclusive range of ports; the zero value means any port. The kernel
// takes no range that begins with port 0.
type PortRange struct{ First, Last uint16 }

// Rule is a rule of the policy routing (ip-rule(8)). Values can be compared: two are
// the same rule when all fields are.
type Rule struct {
	V6         bool
	Priority   uint32 // low is first
	From, To   netip.Prefix
	Mark, Mask uint32
	Invert     bool // matches what all the rest together does not match
	IPProto    uint8
	SPort      PortRange
	DPort      PortRange
	IIF        string
	Action     uint8  // FR_ACT_*
	Table      uint32 // of FR_ACT_TO_TBL
	Goto       uint32 // of FR_ACT_GOTO: the priority to go on at
	Protocol   uint8  // who made it: RTPROT_*

	// Group, if not 0, is the table that has a route in place of this rule; then it is
	// not in the kernel's list of rules, but one without To that looks that table up.
	Group uint32
}

// String names the rule as ip(8) does.
func (r Rule) String() string {
	s := fmt.Sprintf("%d:", r.Priority)
	if r.Group != 0 {
		s += fmt.Sprintf(" (in table %d)", r.Group)
	}
	if r.V6 {
		s = "IPv6 " + s
	}
	if r.Invert {
		s += " not"
	}
	if r.From.IsValid() {
		s += " from " + r.From.String()
	}
	if r.To.IsValid() {
		s += " to " + r.To.String()
	}
	if r.Mask != 0 {
		s += fmt.Sprintf(" fwmark %#x/%#x", r.Mark, r.Mask)
	}
	if r.IIF != "" {
		s += " iif " + r.IIF
	}
	if r.IPProto != 0 {
		s += fmt.Sprintf(" ipproto %d", r.IPProto)
	}
	if r.SPort != (PortRange{}) {
		s += fmt.Sprintf(" sport %d-%d", r.SPort.First, r.SPort.Last)
	}
	if r.DPort != (PortRange{}) {
		s += fmt.Sprintf(" dport %d-%d", r.DPort.First, r.DPort.Last)
	}
	switch r.Action {
	case unix.FR_ACT_TO_TBL:
		return s + fmt.Sprintf(" lookup %d", r.Table)
	case unix.FR_ACT_GOTO:
		return s + fmt.Sprintf(" goto %d", r.Goto)
	case unix.FR_ACT_NOP:
		return s + " nop"
	case unix.FR_ACT_BLACKHOLE:
		return s + " blackhole"
	case unix.FR_ACT_UNREACHABLE:
		return s + " unreachable"
	}
	return s + fmt.Sprintf(" action %d", r.Action)
}

func ruleRequest(typ, flags uint16, r Rule) *request {
	var hdrFlags uint32
	if r.Invert {
		hdrFlags = unix.FIB_RULE_INVERT
	}
	q := newRequest(typ, flags).
		raw(family(r.V6), byte(max(r.To.Bits(), 0)), byte(max(r.From.Bits(), 0)), 0, tableByte(r.Table), 0, 0, r.Action).
		u32(hdrFlags)
	q.attrU32(unix.FRA_PRIORITY, r.Priority)
	q.attrU8(unix.FRA_PROTOCOL, r.Protocol)
	if r.From.IsValid() && r.From.Bits() > 0 {
		q.attrAddr(unix.FRA_SRC, r.From.Addr())
	}
	if r.To.IsValid() && r.To.Bits() > 0 {
		q.attrAddr(unix.FRA_DST, r.To.Addr())
	}
	if r.Mask != 0 {
		q.attrU32(unix.FRA_FWMARK, r.Mark)
		q.attrU32(unix.FRA_FWMASK, r.Mask)
	}
	if r.IIF != "" {
		q.attrString(unix.FRA_IIFNAME, r.IIF)
	}
	if r.IPProto != 0 {
		q.attrU8(unix.FRA_IP_PROTO, r.IPProto)
	}
	putPorts(q, unix.FRA_SPORT_RANGE, r.SPort)
	putPorts(q, unix.FRA_DPORT_RANGE, r.DPort)
	if r.Table != 0 {
		q.attrU32(unix.FRA_TABLE, r.Table)
	}
	if r.Action == unix.FR_ACT_GOTO {
		q.attrU32(unix.FRA_GOTO, r.Goto)
	}
	return q
}

func putPorts(q *request, typ uint16, p PortRange) {
	if p == (PortRange{}) {
		return
	}
	var b [4]byte
	native.PutUint16(b[:], p.First)
	native.PutUint16(b[2:], p.Last)
	q.attr(typ, b[:])
}

// AddRule adds a rule behind those of its priority. One that is there already is there
// twice then: NLM_F_EXCL would not do, for it takes a more special rule for the same.
func (c *Netlink) AddRule(r Rule) error {
	return c.do(ruleRequest(unix.RTM_NEWRULE, unix.NLM_F_CREATE, r), "add rule", r.String())
}

// DeleteRule takes a rule away: the first one of its priority that has everything that r
// names, and may have more. The error wraps ENOENT if there is none.
func (c *Netlink) DeleteRule(r Rule) error {
	return c.do(ruleRequest(unix.RTM_DELRULE, 0, r), "delete rule", r.String())
}

// Rules lists the rules of one family in their order. A kernel without that family
// gives an error that wraps EAFNOSUPPORT or EOPNOTSUPP.
func (c *Netlink) Rules(v6 bool) ([]Rule, error) {
	ms, err := c.dump(newRequest(unix.RTM_GETRULE, 0).raw(family(v6), 0, 0, 0, 0, 0, 0, 0).u32(0), "rules")
	if err != nil {
		return nil, err
	}
	var list []Rule
	for _, m := range ms {
		if m.typ != unix.RTM_NEWRULE || len(m.body) == 0 || m.body[0] != family(v6) {
			continue
		}
		r, err := parseRule(m.body)
		if err != nil {
			return nil, opError("list", "rules", err)
		}
		list = append(list, r)
	}
	return list, nil
}

// parseRule reads a fib_rule_hdr: family, destination and source length, tos, table,
// two reserved octets, action, flags.
func parseRule(b []byte) (Rule, error) {
	if len(b) < unix.SizeofRtMsg {
		return Rule{}, errNetlinkShort
	}
	r := Rule{
		V6: b[0] == unix.AF_INET6, Table: uint32(b[4]), Action: b[7],
		Invert: native.Uint32(b[8:])&unix.FIB_RULE_INVERT != 0,
	}
	to, from := b[1], b[2]
	a := attrs{rest: b[unix.SizeofRtMsg:]}
	for a.next() {
		switch a.typ {
		case unix.FRA_DST:
			r.To = a.prefix(to)
		case unix.FRA_SRC:
			r.From = a.prefix(from)
		case unix.FRA_PRIORITY:
			r.Priority = a.u32()
		case unix.FRA_FWMARK:
			r.Mark = a.u32()
		case unix.FRA_FWMASK:
			r.Mask = a.u32()
		case unix.FRA_TABLE:
			r.Table = a.u32()
		case unix.FRA_GOTO:
			r.Goto = a.u32()
		case unix.FRA_IIFNAME:
			r.IIF = a.str()
		case unix.FRA_IP_PROTO:
			r.IPProto = a.u8()
		case unix.FRA_PROTOCOL:
			r.Protocol = a.u8()
		case unix.FRA_SPORT_RANGE:
			r.SPort = a.ports()
		case unix.FRA_DPORT_RANGE:
			r.DPort = a.ports()
		}
	}
	return r, a.err
}

func (a *attrs) ports() PortRange {
	b := a.want(4)
	if b == nil {
		return PortRange{}
	}
	return PortRange{native.Uint16(b), native.Uint16(b[2:])}
}
