package iketest

import (
	"fmt"
	"strings"
	"time"

	"postern/esp"
	"postern/ike"
)

// ladder is the story of a simulation.
type ladder struct {
	lines     []string
	mark      int               // what stands before it is told in full
	summaries map[string]string // of datagrams by content, so that a repetition is named too
}

func (l *ladder) add(at time.Duration, text string) {
	l.lines = append(l.lines, fmt.Sprintf("%10.3f  %s", at.Seconds(), text))
}

// String returns the lines; of a long story what stands around the mark and at the end.
func (l *ladder) String() string {
	const tail = 100
	lines, head := l.lines, max(l.mark+60, 300)
	if len(lines) > head+tail {
		gap := fmt.Sprintf("            ... %d lines ...", len(lines)-head-tail)
		lines = append(append(append([]string(nil), lines[:head]...), gap), lines[len(lines)-tail:]...)
	}
	return strings.Join(lines, "\n") + "\n"
}

// remember keeps the machine's own words about a message that it sends.
func (l *ladder) remember(data []byte, trace string) {
	if l.summaries == nil {
		l.summaries = map[string]string{}
	}
	l.summaries[string(data)] = trace
}

// summary names a datagram: by what its sender said of it, or else by its header.
func (l *ladder) summary(d *datagram) string {
	if d.kind == esps {
		return fmt.Sprintf("ESP %08x", esp.SPIOf(d.data))
	}
	if t, ok := l.summaries[string(d.data)]; ok {
		return t
	}
	h, err := ike.ParseHeader(d.data)
	if err != nil {
		return fmt.Sprintf("%d octets that are no IKE message", len(d.data))
	}
	kind := "request"
	if h.Flags&ike.FlagResponse != 0 {
		kind = "response"
	}
	return fmt.Sprintf("%v %s %d [ %v ]", h.Exchange, kind, h.ID, h.Next)
}

// tell writes an event of a machine into the ladder.
func (h *Host) tell(e *ike.Event) {
	if h.sim.ladder == nil {
		return
	}
	var what string
	switch e.Kind {
	case ike.EvIKEUp:
		what = "IKE SA up"
	case ike.EvIKEDown:
		what = "IKE SA down"
	case ike.EvIKERekeyed:
		what = fmt.Sprintf("IKE SA takes the place of #%d", e.Old)
	case ike.EvChildUp:
		what = "CHILD SA up"
	case ike.EvChildDown:
		what = "CHILD SA down"
	case ike.EvChildRekeyed:
		what = fmt.Sprintf("CHILD SA takes the place of {%d}", e.Old)
	case ike.EvDone:
		what = fmt.Sprintf("command %d ended", e.Tag)
	case ike.EvInitiate:
		what = fmt.Sprintf("attempt %d", e.Count)
	case ike.EvFailed:
		what = fmt.Sprintf("attempt %d failed, next in %v", e.Count, e.Delay.Round(time.Millisecond))
	case ike.EvRetransmit:
		what = fmt.Sprintf("retransmission %d of %s", e.Count, e.Text)
	case ike.EvNotify:
		what = "peer's error"
	case ike.EvRefused:
		what = "refused " + e.Text
	case ike.EvDropped:
		what = "dropped a datagram"
	case ike.EvCookies:
		what = fmt.Sprintf("cookies %d", e.Count)
	case ike.EvNAT:
		what = "NAT " + e.Text
	case ike.EvRedirected:
		what = "redirect " + e.Text
	case ike.EvNotResumed:
		what = "cannot resume"
	case ike.EvMoved:
		what = "peer moved"
	case ike.EvRoamed:
		what = fmt.Sprintf("moved to %v > %v", e.Path.Local, e.Path.Remote)
	case ike.EvStranded:
		what = fmt.Sprintf("stranded %d", e.Count)
	default:
		what = fmt.Sprintf("event %d %s", e.Kind, e.Text)
	}
	if e.Child != "" {
		what += " " + e.Child
	}
	if e.ChildID != 0 {
		what += fmt.Sprintf(" {%d}", e.ChildID)
	}
	if e.IKE != 0 {
		what += fmt.Sprintf(" #%d", e.IKE)
	}
	if e.Err != nil {
		what += ": " + e.Err.Error()
	}
	h.note("%s", what)
}

// Mark makes the ladder tell everything up to here in full.
func (s *Sim) Mark() {
	if s.ladder != nil {
		s.ladder.mark = len(s.ladder.lines)
	}
}

func (h *Host) note(format string, args ...any) {
	if h.sim.ladder != nil {
		h.sim.note("%-4s * %s", h.Name, fmt.Sprintf(format, args...))
	}
}
