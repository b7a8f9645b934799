//go:build linux && peers

package e2e

import (
	"fmt"
	"io"
	"math"
	"slices"
	"testing"
)

// ratio is one comparison of two contenders. A wanted value of 0 means that the ratio is
// only told.
type ratio struct {
	what     string
	of       measure
	one, two string
	wanted   float64
	atMost   bool // less is better
}

// ratios are those that are told of each run, the wanted ones first.
var ratios = []ratio{
	{"one TCP stream", tcpOne, posternGCM, wireguardGo, 1.5, false},
	{"one TCP stream", tcpOne, posternChaCha, wireguardGo, 1.2, false},
	{"one TCP stream", tcpOne, posternGCM, strongSwan, 8, false},
	{"UDP, at capacity", udpRate, posternGCM, wireguardGo, 1.3, false},
	{"UDP, at capacity", udpRate, posternGCM, strongSwan, 1.6, false},
	{"UDP, overload", udpOver, posternGCM, wireguardGo, 1.3, false},
	{"UDP, overload", udpOver, posternGCM, strongSwan, 1.6, false},
	{"peak RSS, sender", rssA, posternGCM, wireguardGo, 0.1, true},
	{"peak RSS, receiver", rssB, posternGCM, wireguardGo, 0.1, true},
	{"one TCP stream", tcpOne, posternESP, posternGCM, 0, false},
	{"four TCP streams", tcpFour, posternGCM, wireguardGo, 0, false},
	{"four TCP streams", tcpFour, posternChaCha, wireguardGo, 0, false},
	{"four TCP streams", tcpFour, posternGCM, strongSwan, 0, false},
	{"UDP, at capacity", udpRate, posternChaCha, wireguardGo, 0, false},
	{"UDP, at capacity", udpRate, posternESP, posternGCM, 0, false},
	{"CPU time per GB", cpuGB, posternGCM, wireguardGo, 0, true},
	{"CPU time per GB", cpuGB, posternChaCha, wireguardGo, 0, true},
	{"CPU time per GB", cpuGB, posternGCM, strongSwan, 0, true},
	{"calls, TCP, sender", callsTCPA, posternGCM, wireguardGo, 0, true},
	{"calls, TCP, recvr", callsTCPB, posternGCM, wireguardGo, 0, true},
	{"calls, UDP, sender", callsUDPA, posternGCM, wireguardGo, 0, true},
	{"calls, UDP, recvr", callsUDPB, posternGCM, wireguardGo, 0, true},
	{"calls, TCP, sender", callsTCPA, posternGCM, strongSwan, 0, true},
	{"calls, UDP, sender", callsUDPA, posternGCM, strongSwan, 0, true},
}

// met tells whether a ratio is as it is wanted.
func (r ratio) met(value float64) bool {
	return r.wanted == 0 || r.atMost && value <= r.wanted || !r.atMost && value >= r.wanted
}

// compare returns the median of the rounds' ratios and the smallest and largest of them:
// what two contenders did in the same round was measured within the same minute.
func compare(one, two []float64) (middle, least, most float64, ok bool) {
	n := min(len(one), len(two))
	if n == 0 {
		return 0, 0, 0, false
	}
	q := make([]float64, n)
	for i := range q {
		q[i] = one[i] / two[i]
	}
	return median(q), slices.Min(q), slices.Max(q), true
}

// median of no values is not a number.
func median(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(v))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// column is one measure in a table.
type column struct {
	head, unit, format string
	of                 measure
}

// table prints the medians of some measures, a line for each contender.
func table(w io.Writer, all []*contender, title string, columns []column) {
	head, unit := fmt.Sprintf("%-18s", title), fmt.Sprintf("%-18s", "")
	for _, c := range columns {
		head += fmt.Sprintf("  %8s", c.head)
		unit += fmt.Sprintf("  %8s", c.unit)
	}
	fmt.Fprintf(w, "\n%s\n%s\n", head, unit)
	for _, c := range all {
		fmt.Fprintf(w, "%-18s", c.name)
		for _, col := range columns {
			cell := "-"
			if v := c.measured[col.of]; len(v) > 0 {
				cell = fmt.Sprintf(col.format, median(v))
			}
			fmt.Fprintf(w, "  %8s", cell)
		}
		fmt.Fprintln(w)
	}
}

// report prints the tables and returns how many wanted ratios are not met.
func report(w io.Writer, all []*contender) (missed int) {
	table(w, all, "medians", []column{
		{"TCP 1", "Mbit/s", "%.0f", tcpOne}, {"TCP 4", "Mbit/s", "%.0f", tcpFour},
		{"UDP", "kpps", "%.1f", udpRate}, {"overload", "kpps", "%.1f", udpOver}, {"of sent", "kpps", "%.1f", udpSent},
		{"CPU", "s/GB", "%.2f", cpuGB}, {"RSS A", "MiB", "%.1f", rssA}, {"RSS B", "MiB", "%.1f", rssB},
	})
	fmt.Fprintf(w, `
TCP and UDP go from A to B. UDP packets have %d octets: delivered with %d under way at most,
and delivered of those sent without regard to what passes. CPU is the time of both gateways
for 10^9 octets of one stream, RSS each gateway's peak over its whole life. bare-link has no
tunnel: more than that the tools do not do here.
`, udpPayload, *peersWindow)
	table(w, all, "system calls", []column{
		{"TCP 1, A", "per MB", "%.1f", callsTCPA}, {"TCP 1, B", "per MB", "%.1f", callsTCPB},
		{"UDP, A", "per MB", "%.1f", callsUDPA}, {"UDP, B", "per MB", "%.1f", callsUDPB},
	})
	fmt.Fprint(w, `
System calls of each gateway's process, all of its threads, for 10^6 octets of payload that
arrived; UDP as above, at capacity. Counted in runs of their own.

`)
	head := fmt.Sprintf("%-18s  %-18s   %-18s  %7s  %15s  %s\n", "ratios", "", "", "median", "rounds", "wanted")
	byName := map[string]*contender{}
	for _, c := range all {
		byName[c.name] = c
	}
	for _, r := range ratios {
		one, two := byName[r.one], byName[r.two]
		if one == nil || two == nil {
			continue
		}
		value, least, most, ok := compare(one.measured[r.of], two.measured[r.of])
		if !ok {
			continue
		}
		fmt.Fprint(w, head) // above the first, if there is any
		head = ""
		mark := ""
		if r.wanted != 0 {
			mark = map[bool]string{false: "at least ", true: "at most "}[r.atMost] + fmt.Sprintf("%.4g", r.wanted)
			if r.met(value) {
				mark += "  ok"
			} else {
				mark += "  NOT MET"
				missed++
			}
		}
		fmt.Fprintf(w, "%-18s  %-18s / %-18s  %7.2f  %6.2f to %5.2f  %s\n", r.what, r.one, r.two, value, least, most, mark)
	}
	if missed > 0 {
		fmt.Fprintf(w, "%d of the wanted ratios not met\n", missed)
	}
	return missed
}

// The arithmetic behind the tables, with figures that can be checked by head.
func TestPeersArithmetic(t *testing.T) {
	if m := median([]float64{9, 1, 4}); m != 4 {
		t.Errorf("the median of 9, 1 and 4 is %g, want 4", m)
	}
	if m := median([]float64{8, 1, 4, 2}); m != 3 {
		t.Errorf("the median of 8, 1, 4 and 2 is %g, want 3", m)
	}
	// Round by round: 2, 4 and 3, although the medians are 20 and 8.
	if m, least, most, ok := compare([]float64{20, 8, 36}, []float64{10, 2, 12}); !ok || m != 3 || least != 2 || most != 4 {
		t.Errorf("compared: %g (%g to %g, %v), want 3 (2 to 4)", m, least, most, ok)
	}
	if _, _, _, ok := compare(nil, []float64{1}); ok {
		t.Error("a ratio of what was not measured")
	}
	for _, c := range []struct {
		r     ratio
		value float64
		met   bool
	}{
		{ratio{wanted: 1.5}, 1.5, true}, {ratio{wanted: 1.5}, 1.49, false},
		{ratio{wanted: 0.1, atMost: true}, 0.1, true}, {ratio{wanted: 0.1, atMost: true}, 0.11, false},
		{ratio{}, 0.01, true},
	} {
		if got := c.r.met(c.value); got != c.met {
			t.Errorf("%g where %g is wanted (at most: %v): met=%v, want %v", c.value, c.r.wanted, c.r.atMost, got, c.met)
		}
	}
	only := func(s string) (n int) {
		for _, c := range contenders() {
			if c.wanted(s) {
				n++
			}
		}
		return n
	}
	if all, two, none := only(""), only("postern, wireguard"), only("nobody"); all != 6 || two != 4 || none != 0 {
		t.Errorf("selected: all %d, postern and wireguard %d, an unknown name %d; want 6, 4, 0", all, two, none)
	}
}
