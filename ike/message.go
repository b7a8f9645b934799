package ike

// maxPayloads bounds the payloads of one message. The busiest legitimate messages are
// IKE_SA_INIT from peers that announce a dozen vendor IDs, and IKE_AUTH with a chain of
// certificates, every notify that there is and a list of MOBIKE addresses; none comes near.
const maxPayloads = 64

// Payload is one payload of a message without its generic header (RFC 7296 section 3.2).
//
//	                     1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	| Next Payload  |C|  RESERVED   |         Payload Length        |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
type Payload struct {
	Type     PayloadType
	Critical bool   // as received; it means nothing on a payload that we know
	Body     []byte // aliases the datagram, or what was decrypted
}

// Message is a parsed message: views into the datagram that it was parsed from, valid
// as long as the datagram is. A Message is reused by parsing into it again, which
// allocates nothing. It must not be copied: Payloads points into it.
type Message struct {
	Header
	// Payloads holds the payloads of known types in their order, at most maxPayloads.
	// An Encrypted payload is its last member until ParseInner replaces it.
	Payloads []Payload
	// SKOff is the offset of the generic header of the SK or SKF payload in the
	// datagram, or 0 if the message is not encrypted.
	SKOff int
	// SKNext is the type of the first payload inside the SK payload; PayloadNone if it
	// is empty (and, with SKF, in every fragment but the first).
	SKNext PayloadType

	outer  int // payloads in front of the SK payload
	raw    []byte
	inner  []byte // what ParseInner has read
	skBits byte   // of the SK payload's generic header: critical and reserved
	store  [maxPayloads]Payload
}

// known tells whether we understand payloads of type t (RFC 7296 section 3.2: types 1 to
// 32 were IKEv1's and are not used). Understood means parsed as a payload; exchanges say
// in rules.go which of them they take.
func (t PayloadType) known() bool {
	return t >= PayloadSA && t <= PayloadEAP || t == PayloadSKF
}

// Parse reads the datagram b: the header and the chain of payloads up to its end or to an
// Encrypted payload, which has to be the last. Unknown payloads are skipped. Reserved
// fields and bits are ignored. The contents of Notify and Nonce payloads are checked as
// ParseNotify and ParseNonce do; those of the others are left to their parsers.
//
// The error is ErrVersion, a *SyntaxError, or, if all else is in order, a *CriticalError;
// with the last the message is complete and may still be worked on.
func (m *Message) Parse(b []byte) error {
	m.Payloads, m.SKOff, m.SKNext, m.outer, m.raw = m.store[:0], 0, PayloadNone, 0, b
	var err error
	if m.Header, err = ParseHeader(b); err != nil {
		return err
	}
	if m.Major != versionMajor {
		return ErrVersion
	}
	return m.chain(m.Next, b[headerLen:], true)
}

// ParseInner reads the payloads that an SK payload held: next is the type of the first
// (SKNext of this message, or of the first fragment), b is the decrypted chain without
// padding. They take the place of the SK payload in Payloads. The message must have been
// parsed with an Encrypted payload. Errors are those of Parse.
func (m *Message) ParseInner(next PayloadType, b []byte) error {
	m.Payloads, m.inner = m.Payloads[:m.outer], b
	return m.chain(next, b, false)
}

// chain appends the payloads in b, the first of which is of type next.
func (m *Message) chain(next PayloadType, b []byte, outer bool) error {
	c := cursor{b: b}
	var critical error
	for next != PayloadNone {
		off := len(m.raw) - c.left()
		t := next
		next = PayloadType(c.u8())
		crit := c.u8()&0x80 != 0
		n := int(c.u16())
		if !c.ok() {
			return syntax(t, "generic header", errShort)
		}
		body := c.take(n - payloadHdr)
		if !c.ok() {
			return syntax(t, "generic header", errLength)
		}
		if !t.known() {
			if crit && critical == nil {
				critical = &CriticalError{Type: t}
			}
			continue
		}
		if len(m.Payloads) == maxPayloads {
			return syntax(t, "payload", errTooMany)
		}
		if err := check(t, body); err != nil {
			return err
		}
		if t == PayloadSK || t == PayloadSKF {
			if !outer {
				return syntax(t, "payload inside an Encrypted payload", errValue)
			}
			m.SKOff, m.SKNext, m.outer = off, next, len(m.Payloads)
			next = PayloadNone
		}
		m.Payloads = append(m.Payloads, Payload{Type: t, Critical: crit, Body: body})
	}
	if c.left() != 0 {
		return syntax(PayloadNone, "last payload", errTrailing)
	}
	return critical
}

// check looks into the payloads that many exchanges carry and that no exchange should
// have to find malformed in the middle of its work.
func check(t PayloadType, body []byte) error {
	var err error
	switch t {
	case PayloadNotify:
		_, err = ParseNotify(body)
	case PayloadNonce:
		_, err = ParseNonce(body)
	}
	return err
}

// Encrypted tells whether the message has an SK or SKF payload.
func (m *Message) Encrypted() bool { return m.SKOff != 0 }

// Find returns the first payload of type t, or nil.
func (m *Message) Find(t PayloadType) *Payload {
	for i := range m.Payloads {
		if m.Payloads[i].Type == t {
			return &m.Payloads[i]
		}
	}
	return nil
}

// FindNotify returns the first Notify payload of type t.
func (m *Message) FindNotify(t NotifyType) (Notify, bool) {
	for i := range m.Payloads {
		if m.Payloads[i].Type == PayloadNotify {
			if n, err := ParseNotify(m.Payloads[i].Body); err == nil && n.Type == t {
				return n, true
			}
		}
	}
	return Notify{}, false
}

// EachNotify calls f with every Notify payload in order.
func (m *Message) EachNotify(f func(Notify)) {
	for i := range m.Payloads {
		if m.Payloads[i].Type == PayloadNotify {
			if n, err := ParseNotify(m.Payloads[i].Body); err == nil {
				f(n)
			}
		}
	}
}
