package cli

import (
	"fmt"
	"strconv"
	"strings"

	"postern/engine/config"
	"postern/engine/control"
	"postern/esp"
	"postern/ike"
)

var policyCommand = Command{
	Name:    "policy",
	Args:    "[test PACKET]",
	Summary: "show the policies in order, or which decides",
	Help: `Shows the table of policies (SPD) in its order, which decides, with what each
has done. What is bypassed goes past the daemon and only the kernel sees it.

With 'test' it says which policy decides about a packet that goes out, or with
--in about one that comes in, and which CHILD SA carries it. PACKET is SRC DST
PROTO [SPORT DPORT]; for ICMP, type and code stand for the ports. Without ports
it is a packet that shows none, such as a later fragment whose first one is not
known. With -c a file gives the answer, and no daemon is asked.

  postern policy
  postern policy test 10.0.1.5 10.0.2.7 tcp 40000 502
  postern policy test -c new.toml --in 203.0.113.9 10.0.1.5 icmp 8`,
	Run: runPolicy,
}

// spdEntry is one entry of the SPD, from the daemon or from a file.
type spdEntry struct {
	number        uint64
	name          string
	action, dir   string
	conn, child   string
	dynamic       bool
	device        string // of its own
	local, remote []string

	counted                        bool // the daemon has told the following
	sas                            uint64
	packets, packetsIn, packetsOut uint64
	bytesIn, bytesOut              uint64
	discarded, inClear             uint64
}

func runPolicy(sys *System, cmd *Command, args []string) int {
	o := newOptions(sys, cmd)
	asJSON := o.Bool("json", false, "print JSON")
	in := o.Bool("in", false, "test a packet that comes in")
	file := o.String("c", "", "ask the configuration `FILE`, not the daemon")
	socket := socketOption(o)
	rest, status, ok := o.parse(args, 0, 6)
	if !ok {
		return status
	}
	test := len(rest) > 0
	var flow esp.Flow
	if test {
		if rest[0] != "test" {
			sys.errorf("policy: %q is not known: write test, or nothing", clean(rest[0]))
			return ExitUsage
		}
		var err error
		if flow, err = config.ParseFlow(rest[1:], *in); err != nil {
			sys.errorf("policy test: %v", err)
			return ExitUsage
		}
	} else if *in {
		sys.errorf("policy: --in goes with test")
		return ExitUsage
	}
	var ask asker = askDaemon(*socket)
	if *file != "" {
		ask = askFile(*file)
	}
	if test {
		d, status := ask.test(sys, &flow, *in)
		if d == nil {
			return status
		}
		return show(sys, "policy", *asJSON, d.json, func() string { return d.text(*in) })
	}
	list, status := ask.list(sys)
	if status != ExitOK {
		return status
	}
	return show(sys, "policy", *asJSON, func() []byte { return spdJSON(list) }, func() string { return spdTable(list) })
}

// decision is what becomes of one packet.
type decision struct {
	entry    *spdEntry // nil: none selects it
	fate     string
	sa       string // "conn/child"
	unique   string
	spi      string
	fromFile bool
}

// asker is who knows the policies.
type asker interface {
	list(sys *System) ([]*spdEntry, int)
	test(sys *System, f *esp.Flow, in bool) (*decision, int)
}

// askDaemon asks the daemon with that control socket.
type askDaemon string

func (a askDaemon) list(sys *System) ([]*spdEntry, int) {
	c, status := dialDaemon(sys, string(a), patience)
	if c == nil {
		return nil, status
	}
	defer func() { _ = c.Close() }()
	var list []*spdEntry
	resp, err := c.CallStream(control.CmdListSPD, control.EvListSPD, nil, func(m *control.Message) error {
		list = append(list, readEntry(m))
		return nil
	})
	if err == nil {
		err = control.Check(control.CmdListSPD, resp)
	}
	if err != nil {
		return nil, complain(sys, "policy", err)
	}
	return list, ExitOK
}

func (a askDaemon) test(sys *System, f *esp.Flow, in bool) (*decision, int) {
	c, status := dialDaemon(sys, string(a), patience)
	if c == nil {
		return nil, status
	}
	defer func() { _ = c.Close() }()
	src, dst, sport, dport, dir := f.Local, f.Remote, f.LocalPort, f.RemotePort, esp.OnlyOut
	if in {
		src, dst, sport, dport, dir = dst, src, dport, sport, esp.OnlyIn
	}
	req := new(control.Message).Set(control.KeySrc, src.String()).Set(control.KeyDst, dst.String()).
		SetUint(control.KeyProto, uint64(f.Proto)).Set(control.KeyDirection, dir.String())
	if !f.NoPorts {
		req.SetUint(control.KeySport, uint64(sport)).SetUint(control.KeyDport, uint64(dport))
	}
	m, err := c.Call(control.CmdTestPolicy, req)
	if err == nil {
		err = control.Check(control.CmdTestPolicy, m)
	}
	if err != nil {
		return nil, complain(sys, "policy test", err)
	}
	d := &decision{fate: m.Get(control.KeyFate)}
	if d.fate != control.FateNone {
		d.entry = readEntry(m)
	}
	if d.fate == control.FateSA {
		s := m.Sub(control.KeyChildSA)
		d.sa, d.unique = s.Get(control.KeyIKE)+"/"+s.Get(control.KeyChild), s.Get(control.KeyUniqueID)
		d.spi = join("", s.Get(control.KeySPIIn), s.Get(control.KeySPIOut))
	}
	return d, ExitOK
}

func readEntry(m *control.Message) *spdEntry {
	number := func(key string) uint64 { n, _ := m.GetUint(key); return n }
	e := &spdEntry{
		number: number(control.KeyNumber), name: m.Get(control.KeyName),
		action: m.Get(control.KeyAction), dir: m.Get(control.KeyDirection),
		conn: m.Get(control.KeyIKE), child: m.Get(control.KeyChild),
		dynamic: m.GetBool(control.KeyDynamic), device: m.Get(control.KeyInterface),
		local: m.Items(control.KeyLocalTS), remote: m.Items(control.KeyRemoteTS),
		counted: true, sas: number(control.KeySAs),
		packetsOut: number(control.KeyPacketsOut), packetsIn: number(control.KeyPacketsIn),
		bytesOut: number(control.KeyBytesOut), bytesIn: number(control.KeyBytesIn),
		discarded: number(control.KeyDiscarded), inClear: number(control.KeyInClear),
	}
	e.packets = e.packetsOut + e.packetsIn + e.discarded
	return e
}

// askFile asks a configuration file.
type askFile string

func (a askFile) entries(sys *System) ([]config.Entry, int) {
	cfg, err := loadConfig(sys, string(a))
	if err != nil {
		sys.errorf("%v", err)
		return nil, ExitConfig
	}
	return cfg.SPD(nil), ExitOK
}

func (a askFile) list(sys *System) ([]*spdEntry, int) {
	entries, status := a.entries(sys)
	list := make([]*spdEntry, len(entries))
	for i := range entries {
		list[i] = fileEntry(i, &entries[i])
	}
	return list, status
}

func (a askFile) test(sys *System, f *esp.Flow, in bool) (*decision, int) {
	entries, status := a.entries(sys)
	if status != ExitOK {
		return nil, status
	}
	d := &decision{fate: control.FateNone, fromFile: true}
	i := config.Decide(entries, f, in)
	if i < 0 {
		return d, ExitOK
	}
	e := &entries[i]
	d.entry = fileEntry(i, e)
	switch {
	case e.Action == esp.Bypass:
		d.fate = control.FateBypass
	case e.Action == esp.Discard:
		d.fate = control.FateDiscard
	case e.Manual:
		d.fate, d.sa = control.FateSA, e.Conn+"/"+e.Child
	case in || e.Carrier == nil:
		d.fate = control.FateNoSA
	case e.Carrier.StartAction == ike.StartTrap || e.Carrier.DPDAction == ike.ActionTrap || e.Carrier.CloseAction == ike.ActionTrap:
		d.fate = control.FateAcquire
	case e.Carrier.StartAction == ike.StartStart:
		d.fate = control.FateWait
	default:
		d.fate = control.FateNoSA
	}
	return d, ExitOK
}

func fileEntry(i int, e *config.Entry) *spdEntry {
	out := &spdEntry{number: uint64(i + 1), name: e.Name, action: e.Action.String(), dir: e.Dir.String(),
		conn: e.Conn, child: e.Child, dynamic: e.Dynamic, device: e.Device}
	for _, s := range e.LocalTS {
		out.local = append(out.local, s.String())
	}
	for _, s := range e.RemoteTS {
		out.remote = append(out.remote, s.String())
	}
	return out
}

// carrier is the child of an entry, for people.
func (e *spdEntry) carrier() string {
	switch {
	case e.conn != "":
		return clean(e.conn + "/" + e.child)
	case e.action == esp.Protect.String():
		return "any SA"
	}
	return "-"
}

// selectors writes what the entry selects.
func (e *spdEntry) selectors(b *strings.Builder) {
	var w []string
	if e.device != "" {
		w = append(words("what is routed into"), clean(e.device)+":")
	}
	if len(e.local) == 0 || len(e.remote) == 0 {
		wrap(b, "    ", append(w, words("what its CHILD SAs select")...)...)
		return
	}
	for _, s := range e.local {
		w = append(w, clean(s))
	}
	w = append(w, "===")
	for _, s := range e.remote {
		w = append(w, clean(s))
	}
	if e.dynamic {
		w = append(w, words("and what its CHILD SAs select")...)
	}
	wrap(b, "    ", w...)
}

// spdTable writes the entries for a person.
func spdTable(list []*spdEntry) string {
	if len(list) == 0 {
		return "There are no policies: nothing is protected.\n"
	}
	var b strings.Builder
	counts := list[0].counted
	line := func(number, name, action, dir, carrier, sas, packets string) {
		s := padLeft(number, 3) + " " + pad(name, 18) + " "
		if len(name) > 18 {
			s = s[:len(s)-1] + "\n" + strings.Repeat(" ", 23)
		}
		s += pad(action, 8) + " " + pad(dir, 5) + " " + pad(carrier, 22)
		if counts {
			s += padLeft(sas, 4) + padLeft(packets, 15)
		}
		b.WriteString(strings.TrimRight(s, " ") + "\n")
	}
	line("#", "NAME", "ACTION", "WAY", "CHILD", "SAs", "PACKETS")
	for _, e := range list {
		sas, packets := "-", strconv.FormatUint(e.packets, 10)
		switch e.action {
		case esp.Protect.String():
			sas = strconv.FormatUint(e.sas, 10)
		case esp.Bypass.String():
			packets = "kernel"
		}
		name := clean(e.name)
		if name == "" {
			name = "-"
		}
		line(strconv.FormatUint(e.number, 10), name, e.action, e.dir, e.carrier(), sas, packets)
		e.selectors(&b)
		if e.inClear > 0 {
			fmt.Fprintf(&b, "    %s arrived in clear and should not have\n", count64(e.inClear, "packet"))
		}
	}
	return b.String()
}

// text says for a person what decides about a packet, and why.
func (d *decision) text(in bool) string {
	var b strings.Builder
	e := d.entry
	if e == nil {
		wrap(&b, "", words("no policy selects it: the system's own routing has it, in clear unless that leads into the device of a child; should it reach the tunnel's device, it is dropped")...)
		return b.String()
	}
	head := "policy " + strconv.FormatUint(e.number, 10)
	if e.name != "" {
		head += " " + clean(e.name)
	}
	head += " decides: " + e.action + ", direction " + e.dir
	if e.carrier() != "-" {
		head += ", child " + e.carrier()
	}
	wrap(&b, "", words(head)...)
	e.selectors(&b)
	var what string
	switch d.fate {
	case control.FateBypass:
		what = "it passes in clear"
	case control.FateDiscard:
		what = "it is dropped"
	case control.FateAcquire:
		what = "it waits, and the daemon asks for a CHILD SA of " + e.carrier()
	case control.FateWait:
		what = "it waits for a CHILD SA of " + e.carrier() + ", which is to be up at all times"
	case control.FateSA:
		what = "the CHILD SA "
		if in {
			what = "it has to come through the CHILD SA "
		}
		what += clean(d.sa)
		if d.unique != "" {
			what += " #" + clean(d.unique)
		}
		what += ", SPI " + clean(d.spi)
		if !in {
			what += ", carries it"
		} else {
			what += "; in clear it is dropped"
		}
	default:
		what = "it has to be protected, and there is no CHILD SA that does: it is dropped"
		if in {
			what = "it has to come through a CHILD SA, and there is none: it is dropped"
		}
		if d.fromFile {
			what = "it is dropped unless there is a CHILD SA that fits"
			if in {
				what = "it is dropped unless it comes through a CHILD SA that fits"
			}
		}
	}
	wrap(&b, "    ", words(what)...)
	return b.String()
}

// json writes an entry for a program. What only the daemon knows is left out without one.
func (e *spdEntry) json(j *jsonWriter) {
	j.int("number", int64(e.number))
	j.str("name", e.name)
	j.str("action", e.action)
	j.str("direction", e.dir)
	j.str("connection", e.conn)
	j.str("child", e.child)
	if e.device != "" {
		j.str("interface", e.device)
	}
	j.bool("dynamic", e.dynamic)
	j.strs("local_ts", e.local)
	j.strs("remote_ts", e.remote)
	if !e.counted {
		return
	}
	switch e.action {
	case esp.Bypass.String():
		j.str("counted_by", "kernel")
		return
	case esp.Protect.String():
		j.uint("sas", e.sas)
		j.uint("packets_out", e.packetsOut)
		j.uint("bytes_out", e.bytesOut)
		j.uint("packets_in", e.packetsIn)
		j.uint("bytes_in", e.bytesIn)
	default:
		j.uint("packets_discarded", e.discarded)
	}
	j.uint("packets_in_clear", e.inClear)
}

func spdJSON(list []*spdEntry) []byte {
	var j jsonWriter
	j.open("", '{')
	j.open("policies", '[')
	for _, e := range list {
		j.open("", '{')
		e.json(&j)
		j.close('}')
	}
	j.close(']')
	j.close('}')
	return j.bytes()
}

func (d *decision) json() []byte {
	var j jsonWriter
	j.open("", '{')
	j.str("fate", d.fate)
	if d.entry != nil {
		d.entry.counted = false
		j.open("policy", '{')
		d.entry.json(&j)
		j.close('}')
	}
	if d.sa != "" {
		j.open("child_sa", '{')
		j.str("name", d.sa)
		j.str("id", d.unique)
		j.str("spi", d.spi)
		j.close('}')
	}
	j.close('}')
	return j.bytes()
}
