package cli

import (
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

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

// The columns of the tables: six numbers behind a name.
const (
	benchName   = 26
	benchColumn = 9
)

func (r *benchReport) text() string {
	var b strings.Builder
	line := func(name, text string) { wrap(&b, pad(name, label+1), words(clean(text))...) }
	model := r.sys.Model
	if model == "" {
		model = "unknown"
	}
	line("Processor", model+", "+count(r.sys.Cores, "core")+" ("+r.sys.Arch+")")
	line("ChaCha20", r.Routine+", constant time")
	line("AES", r.sys.AES.String())
	memory := "unknown"
	if r.sys.Memory > 0 {
		memory = strconv.FormatUint(r.sys.Memory>>20, 10) + " MiB"
	}
	line("Memory", memory+"; board profile "+r.profile)
	if r.TUNFeatures != "" {
		line("TUN", r.TUNFeatures)
		line("UDP", r.UDPFeatures)
	}

	b.WriteByte('\n')
	groups(&b, "ESP alone, one core", "MB/s, 1400 B", "kpkt/s, 1400 B", "kpkt/s, 64 B")
	row(&b, "", "seal", "open", "seal", "open", "seal", "open")
	for _, a := range r.Algorithms {
		row(&b, a.Name, figure(octetRate(bench.LargePacket, a.Large.Seal)/1e6), figure(octetRate(bench.LargePacket, a.Large.Open)/1e6),
			figure(rate(a.Large.Seal)/1e3), figure(rate(a.Large.Open)/1e3), figure(rate(a.Small.Seal)/1e3), figure(rate(a.Small.Open)/1e3))
	}
	if r.Share > 0 && r.Share < 0.9 {
		wrap(&b, "Note: ", words("other programs had", strconv.Itoa(int(math.Round(100*(1-r.Share)))),
			"% of this core meanwhile; on an idle board the figures are higher.")...)
	}

	b.WriteByte('\n')
	if len(r.Flows) > 0 {
		groups(&b, "The whole path, one core", "Mbit/s", "kpkt/s", "µs per packet")
		row(&b, r.PathSuite, "sends", "receives", "sends", "receives", "sends", "receives")
		for _, f := range r.Flows {
			row(&b, f.Name+", "+strconv.Itoa(f.Payload)+" B",
				figure(octetRate(f.Payload, f.Cost.Seal)*8/1e6), figure(octetRate(f.Payload, f.Cost.Open)*8/1e6),
				figure(rate(f.Cost.Seal)/1e3), figure(rate(f.Cost.Open)/1e3), figure(f.Cost.Seal/1e3), figure(f.Cost.Open/1e3))
		}
		var each []string
		for _, f := range r.Flows {
			each = append(each, figure(octetRate(f.Payload, f.Cost.Seal+f.Cost.Open)*8/1e6)+" ("+f.Name+", "+strconv.Itoa(f.Payload)+" B)")
		}
		wrap(&b, "", words("One core that sends and receives as much carries, in Mbit/s each way:", strings.Join(each, ", ")+".")...)
		wrap(&b, "", words("Measured by turns: TUN device, ESP, UDP, loopback, UDP, ESP, TUN device. Sends: the first half alone;",
			"receives: the second. Forwarding, firewall and network driver come on top.")...)
	}
	if r.PathErr != nil {
		what := "What the board would carry was not measured:"
		if len(r.Flows) > 0 {
			what = "The rest was not measured:"
		}
		wrap(&b, "", words(what, clean(r.PathErr.Error())+".")...)
	}

	if r.Choice.ESP != "" {
		b.WriteByte('\n')
		line("Would use", "esp "+r.Choice.ESP+", ike "+r.Choice.IKE)
		line("", r.Choice.Why+".")
		line("Offers", strings.Join(r.Choice.Order, ", "))
	}
	return b.String()
}

// groups writes what two columns each have in common.
func groups(b *strings.Builder, name string, groups ...string) {
	var columns []string
	for _, g := range groups {
		columns = append(columns, "", g)
	}
	row(b, name, columns...)
}

// row writes a line of a table. What is wider than its column takes of the one before.
func row(b *strings.Builder, name string, columns ...string) {
	s := pad(name, benchName)
	for _, c := range columns {
		over := max(0, utf8.RuneCountInString(c)+1-benchColumn)
		s = s[:len(s)-over] + padLeft(" "+c, benchColumn)
	}
	b.WriteString(s + "\n")
}

// rate returns how many packets of that cost, in nanoseconds, a second has; 0: unknown.
func rate(cost float64) float64 {
	if cost <= 0 {
		return 0
	}
	return 1e9 / cost
}

func octetRate(octets int, cost float64) float64 { return float64(octets) * rate(cost) }

// figure writes a number with three digits, or all before the point.
func figure(v float64) string {
	digits := 0
	switch {
	case v <= 0 || math.IsInf(v, 0) || math.IsNaN(v):
		return "-"
	case v < 9.995:
		digits = 2
	case v < 99.95:
		digits = 1
	}
	return strconv.FormatFloat(v, 'f', digits, 64)
}

// json writes the same for a program, in whole numbers.
func (r *benchReport) json() []byte {
	var j jsonWriter
	whole := func(key string, v float64) { j.int(key, int64(math.Round(v))) }
	cost := func(key string, octets int, c bench.Cost) {
		j.open(key, '{')
		j.int("octets", int64(octets))
		whole("seal_ns", c.Seal)
		whole("open_ns", c.Open)
		whole("seal_packets_per_s", rate(c.Seal))
		whole("open_packets_per_s", rate(c.Open))
		whole("seal_octets_per_s", octetRate(octets, c.Seal))
		whole("open_octets_per_s", octetRate(octets, c.Open))
		j.close('}')
	}
	j.open("", '{')
	j.str("version", r.version)
	j.str("processor", r.sys.Model)
	j.str("arch", r.sys.Arch)
	j.int("cores", int64(r.sys.Cores))
	j.str("chacha20", r.Routine)
	j.str("aes", r.sys.AES.String())
	j.bool("aes_constant_time", r.sys.AES.ConstantTime())
	j.uint("memory_octets", r.sys.Memory)
	j.str("board", r.profile)
	if r.Share > 0 {
		whole("core_share_percent", 100*r.Share)
	}
	j.open("algorithms", '[')
	for _, a := range r.Algorithms {
		j.open("", '{')
		j.str("name", a.Name)
		j.str("suite", a.Suite.String())
		cost("small", bench.SmallPacket, a.Small)
		cost("large", bench.LargePacket, a.Large)
		j.close('}')
	}
	j.close(']')
	j.open("path", '{')
	j.bool("measured", r.PathErr == nil)
	if r.PathErr != nil {
		j.str("reason", r.PathErr.Error())
	}
	if r.TUNFeatures != "" {
		j.str("suite", r.PathSuite)
		j.bool("own_namespace", r.Private)
		j.str("tun", r.TUNFeatures)
		j.str("udp", r.UDPFeatures)
		j.open("traffic", '[')
		for _, f := range r.Flows {
			j.open("", '{')
			j.str("name", f.Name)
			cost("packet", f.Payload, f.Cost)
			whole("send_bit_per_s", 8*octetRate(f.Payload, f.Cost.Seal))
			whole("receive_bit_per_s", 8*octetRate(f.Payload, f.Cost.Open))
			whole("both_ways_bit_per_s", 8*octetRate(f.Payload, f.Cost.Seal+f.Cost.Open))
			j.close('}')
		}
		j.close(']')
	}
	j.close('}')
	j.open("choice", '{')
	j.str("esp", r.Choice.ESP)
	j.str("ike", r.Choice.IKE)
	j.strs("offers", r.Choice.Order)
	j.str("why", r.Choice.Why)
	j.close('}')
	j.close('}')
	return j.bytes()
}
