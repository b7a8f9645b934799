package cli

import (
	"strconv"
	"strings"
	"time"

	"postern/board"
	"postern/engine/bench"
)

var benchCommand = Command{
	Name:    "bench",
	Summary: "measure what this device can carry",
	Help: `Measures each ESP transform on one core, then the whole way of a packet through
a gateway: TUN device, ESP, UDP, and back. It says which proposal this device
would choose, and which features of its kernel are in use.

Nothing on the device is changed: the TUN device of the measurement has neither
address nor route, stands in a network namespace of its own where the kernel has
them, and vanishes with the program. Without root, or CAP_NET_ADMIN and
CAP_NET_RAW, only the transforms are measured.

  postern bench
  postern bench -t 3 --json`,
	Run: runBench,
}

// How long a run may take, in seconds: with less nothing would be measured on a slow
// board, with more it would only get warm.
const (
	leastSeconds = 1
	mostSeconds  = 600
)

func runBench(sys *System, cmd *Command, args []string) int {
	o := newOptions(sys, cmd)
	asJSON := o.Bool("json", false, "print JSON")
	var seconds int
	o.IntVar(&seconds, "seconds", 10, "take about `N` seconds")
	o.IntVar(&seconds, "t", 10, "the same")
	if _, status, ok := o.parse(args, 0, 0); !ok {
		return status
	}
	if seconds < leastSeconds || seconds > mostSeconds {
		sys.errorf("bench: --seconds must be %d to %d, not %d", leastSeconds, mostSeconds, seconds)
		return ExitUsage
	}
	if sys.Bench == nil {
		sys.errorf("bench: this program was built without it")
		return ExitFailed
	}
	stop := make(chan struct{})
	if sys.Signals != nil {
		signals := sys.Signals()
		go func() { <-signals; close(stop) }()
	}
	b := sys.Bench()
	prof := board.ForRAM(b.Memory)
	if !*asJSON {
		sys.errorf("measuring for %d s", seconds)
	}
	r, err := bench.Run(b, bench.Options{Budget: time.Duration(seconds) * time.Second, Profile: prof, Stop: stop})
	if err != nil {
		sys.errorf("bench: %v", err)
		return ExitFailed
	}
	report := &benchReport{version: sys.Version, sys: &b, profile: prof.Name, Result: r}
	if *asJSON {
		_, err = sys.Stdout.Write(report.json())
	} else {
		_, err = sys.Stdout.Write([]byte(report.text()))
	}
	if err != nil {
		sys.errorf("bench: %v", err)
		return ExitFailed
	}
	return ExitOK
}

// benchReport is what a run found out, to be printed.
type benchReport struct {
	version, profile string
	sys              *bench.System
	*bench.Result
}

// label is wider here than in the tables of status.
const benchLabel = 11

func (r *benchReport) text() string {
	var b strings.Builder
	line := func(name, text string) {
		if text != "" {
			wrap(&b, pad(name, benchLabel), strings.Fields(clean(text))...)
		}
	}
	memory, model := "unknown", r.sys.Model
	if r.sys.Memory > 0 {
		memory = strconv.FormatUint(r.sys.Memory>>20, 10) + " MiB"
	}
	if model == "" {
		model = "unknown"
	}
	line("Processor", model+", "+count(r.sys.Cores, "core")+" ("+r.sys.Arch+")")
	line("ChaCha20", r.Routine+", constant time")
	line("AES", r.sys.AES.String())
	line("Memory", memory+"; board profile "+r.profile)
	line("TUN", r.TUNFeatures)
	line("UDP", r.UDPFeatures)

	b.WriteString("\n" +
		"ESP alone, one core             MB/s, 1400 B    kpkt/s, 1400 B      kpkt/s, 64 B\n" +
		"                               seal     open     seal     open     seal     open\n")
	for i := range r.Algorithms {
		a := &r.Algorithms[i]
		s, o := a.Large.Seal, a.Large.Open
		row(&b, a.Name, 9, per(bench.LargePacket*1e6, s), per(bench.LargePacket*1e6, o), per(1e9, s), per(1e9, o), per(1e9, a.Small.Seal), per(1e9, a.Small.Open))
	}
	if r.Share > 0 && r.Share < 90 {
		wrap(&b, "Note: ", strings.Fields("other programs had "+strconv.Itoa(100-r.Share)+
			" % of this core meanwhile; on an idle board the figures may be higher.")...)
	}

	b.WriteByte('\n')
	if len(r.Flows) > 0 {
		b.WriteString("The whole path, one core            Mbit/s            kpkt/s     µs per packet\n" + pad(r.PathSuite, benchName) +
			strings.Repeat("  send  recv  both", 3) + "\n")
		for _, f := range r.Flows {
			bits, s, o := int64(f.Payload)*8e6, f.Cost.Seal, f.Cost.Open
			row(&b, f.Name+", "+strconv.Itoa(f.Payload)+" B", 6,
				per(bits, s), per(bits, o), per(bits, s+o), per(1e9, s), per(1e9, o), per(1e9, s+o), s, o, s+o)
		}
		wrap(&b, "", strings.Fields(`Measured by turns: TUN device, ESP, UDP, loopback ("send"), UDP, ESP, TUN device
			("recv"); "both" is a core that sends and receives as much, each way. Forwarding,
			firewall and network driver are not in it and come on top.`)...)
	}
	if r.PathErr != nil {
		what := "What the board would carry was not measured: "
		if len(r.Flows) > 0 {
			what = "The rest was not measured: "
		}
		wrap(&b, "", strings.Fields(what+clean(r.PathErr.Error())+".")...)
	}

	if r.Choice.ESP != "" {
		b.WriteByte('\n')
		line("Would use", "esp "+r.Choice.ESP+", ike "+r.Choice.IKE)
		line("", r.Choice.Why+".")
		line("Offers", strings.Join(r.Choice.Order, ", "))
	}
	return b.String()
}

// benchName is how wide the names of the tables are.
const benchName = 26

// row writes a line of a table, its numbers in thousandths.
func row(b *strings.Builder, name string, width int, columns ...int64) {
	b.WriteString(pad(name, benchName))
	for _, c := range columns {
		b.WriteString(padLeft(figure(c), width))
	}
	b.WriteByte('\n')
}

// per returns how much is done in a second when n is done in cost nanoseconds, in 10⁻⁹ of
// n's unit; 0: unknown.
// Not inlined: it is called at many places, where only room counts.
//
//go:noinline
func per(n, cost int64) int64 {
	if cost <= 0 {
		return 0
	}
	return n / cost
}

// figure writes a number that is given in thousandths with three digits, or with all those
// before the point; "-" if it is 0.
func figure(v int64) string {
	div, digits := int64(1000), 0
	switch {
	case v <= 0:
		return "-"
	case v < 9995:
		div, digits = 10, 2
	case v < 99950:
		div, digits = 100, 1
	}
	s := strconv.FormatInt((v+div/2)/div, 10)
	if digits == 0 {
		return s
	}
	for len(s) <= digits {
		s = "0" + s
	}
	return s[:len(s)-digits] + "." + s[len(s)-digits:]
}

// json writes the same for a program, in whole numbers.
func (r *benchReport) json() []byte {
	var j jsonWriter
	cost := func(key string, octets int, c bench.Cost) {
		n, s, o := int64(octets), c.Seal, c.Open
		j.open(key, '{')
		j.ints("octets seal_ns open_ns seal_packets_per_s open_packets_per_s seal_octets_per_s open_octets_per_s both_octets_per_s",
			n, s, o, per(1e9, s), per(1e9, o), per(n*1e9, s), per(n*1e9, o), per(n*1e9, s+o))
		j.close('}')
	}
	j.open("", '{')
	j.named("version processor arch chacha20 aes board",
		r.version, r.sys.Model, r.sys.Arch, r.Routine, r.sys.AES.String(), r.profile)
	j.bool("aes_constant_time", r.sys.AES.ConstantTime())
	j.ints("cores memory_octets core_share_percent", int64(r.sys.Cores), int64(r.sys.Memory), int64(r.Share))
	j.open("algorithms", '[')
	for i := range r.Algorithms {
		a := &r.Algorithms[i]
		j.open("", '{')
		j.named("name suite", a.Name, a.Suite.String())
		cost("small", bench.SmallPacket, a.Small)
		cost("large", bench.LargePacket, a.Large)
		j.close('}')
	}
	j.close(']')
	j.open("path", '{')
	why := ""
	if r.PathErr != nil {
		why = r.PathErr.Error()
	}
	j.bool("measured", why == "")
	j.bool("own_namespace", r.Private)
	j.named("problem cipher tun udp", why, r.PathSuite, r.TUNFeatures, r.UDPFeatures)
	j.open("traffic", '[')
	for _, f := range r.Flows {
		j.open("", '{')
		j.str("name", f.Name)
		cost("packet", f.Payload, f.Cost)
		j.close('}')
	}
	j.close(']')
	j.close('}')
	j.open("choice", '{')
	j.named("esp ike why", r.Choice.ESP, r.Choice.IKE, r.Choice.Why)
	j.strs("offers", r.Choice.Order)
	j.close('}')
	j.close('}')
	return j.bytes()
}
