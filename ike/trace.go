package ike

import (
	"fmt"
	"strings"
)

// traceMessage tells about a message that is about to be sent, before it is encrypted.
func (m *Machine) traceMessage(verb string, p Path, sa *ikeSA, b []byte) {
	if m.Trace == nil || !m.Trace() {
		return
	}
	var t Message
	if err := t.Parse(b); err != nil {
		return
	}
	if t.SKOff != 0 && sa != nil && t.fragment() == nil {
		_ = t.ParseInner(t.SKNext, b[t.SKOff+payloadHdr+sa.sealer.ivLen():])
	}
	m.traced(verb, p, sa, &t)
}

// tracePayloads tells about the message in m.msg.
func (m *Machine) tracePayloads(verb string, p Path, sa *ikeSA) {
	if m.Trace != nil && m.Trace() {
		m.traced(verb, p, sa, &m.msg)
	}
}

func (m *Machine) traced(verb string, p Path, sa *ikeSA, t *Message) {
	e := Event{Kind: EvTrace, Path: p, Text: verb + " " + t.summary()}
	if sa != nil {
		e.Conn, e.IKE = sa.connName(), sa.unique
	}
	m.event(e)
}

// summary names a message's exchange, direction, message ID and payloads, as charon does:
// "IKE_AUTH request 1 [ IDi IDr AUTH SA TSi TSr N(INITIAL_CONTACT) ]".
func (m *Message) summary() string {
	var s strings.Builder
	kind := "request"
	if m.Flags&FlagResponse != 0 {
		kind = "response"
	}
	fmt.Fprintf(&s, "%v %s %d [", m.Exchange, kind, m.ID)
	for i := range m.Payloads {
		p := &m.Payloads[i]
		s.WriteByte(' ')
		if n, err := ParseNotify(p.Body); p.Type == PayloadNotify && err == nil {
			fmt.Fprintf(&s, "N(%v)", n.Type)
			continue
		}
		if d, err := ParseDelete(p.Body); p.Type == PayloadDelete && err == nil {
			fmt.Fprintf(&s, "D(%v", d.Proto)
			for _, spi := range d.SPIs {
				fmt.Fprintf(&s, " %08x", spi)
			}
			s.WriteByte(')')
			continue
		}
		if number, total, ok := p.numbers(); p.Type == PayloadSKF && ok {
			fmt.Fprintf(&s, "EF(%d/%d)", number, total)
			continue
		}
		s.WriteString(p.Type.String())
	}
	s.WriteString(" ]")
	return s.String()
}
