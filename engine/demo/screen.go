package demo

import (
	"fmt"
	"strings"
	"time"
)

// results are what a demonstration found out.
type results struct {
	Status         string // what 'postern status' printed
	Handshake      time.Duration
	Polls          polls
	Rekey          time.Duration
	OldSPI, NewSPI string
	Wan, Lan       tally
	Octets         int64
	Stream         time.Duration
	Resident       [2]uint64
	Took           time.Duration
}

// judge returns an error if what was seen is not what a tunnel must do.
func (r *results) judge() error {
	switch p := &r.Polls; {
	case p.Err != nil:
		return fmt.Errorf("a poll was lost: %w", p.Err)
	case p.Good == 0 || p.Good != p.Sent:
		return fmt.Errorf("%d of %d polls were answered", p.Good, p.Sent)
	case r.Lan.Modbus == 0 || r.Lan.Marked == 0:
		return fmt.Errorf("the capture in the plant saw %d Modbus packets, %d of them readable: it cannot tell what was on the WAN",
			r.Lan.Modbus, r.Lan.Marked)
	case r.Wan.clear():
		return fmt.Errorf("clear text on the WAN: %s (%d packets of Modbus, %d with readable registers, %d others)",
			r.Wan.First, r.Wan.Modbus, r.Wan.Marked, r.Wan.Other)
	case r.Wan.ESP == 0 || r.Wan.IKE < 6:
		// IKE_SA_INIT, IKE_AUTH and CREATE_CHILD_SA, a request and a response each.
		return fmt.Errorf("the capture on the WAN saw %d ESP packets and %d IKE messages, which is too little for what was done", r.Wan.ESP, r.Wan.IKE)
	case r.Wan.ESP < 2*p.Good:
		return fmt.Errorf("%d ESP packets on the WAN cannot have carried %d polls", r.Wan.ESP, p.Good)
	}
	return nil
}

// screen writes the summary: at most 24 lines of 80 characters.
func (r *results) screen() string {
	var b strings.Builder
	b.WriteString("control room -- gateway A ==== WAN ==== gateway B -- plant\n")
	_, table, found := strings.Cut(r.Status, "\n\n")
	if !found {
		table = r.Status
	}
	b.WriteString("\nGateway A, 'postern status " + connName + "':\n" + strings.TrimRight(table, "\n") + "\n\n")
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-11s %s\n", name, fmt.Sprintf(format, args...))
	}
	row("handshake", "%s for IKE_SA_INIT and IKE_AUTH", millis(r.Handshake))
	row("Modbus/TCP", "%d of %d polls answered, %d writes, slowest %s", r.Polls.Good, r.Polls.Sent, r.Polls.Writes, millis(r.Polls.Slowest))
	row("rekeying", "%s until the new SA carried polls, SPI %s to %s", millis(r.Rekey), r.OldSPI, r.NewSPI)
	row("WAN", "%d packets: %d ESP, %d IKE, %d ARP and ND; nothing in clear", r.Wan.total(), r.Wan.ESP, r.Wan.IKE, r.Wan.Neighbour)
	row("plant", "%d packets of Modbus, %d with readable registers", r.Lan.Modbus, r.Lan.Marked)
	row("throughput", "%.0f Mbit/s through the tunnel, one TCP stream for %.1f s", float64(r.Octets)*8/1e6/r.Stream.Seconds(), r.Stream.Seconds())
	row("memory", "%.1f MB and %.1f MB resident", float64(r.Resident[0])/1e6, float64(r.Resident[1])/1e6)
	row("end", "both daemons ended when they were told to; %.1f s in all", r.Took.Seconds())
	return b.String()
}

func millis(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}
