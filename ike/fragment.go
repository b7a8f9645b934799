package ike

import (
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"time"
)

// IKE fragmentation (RFC 7383): an encrypted message that does not fit into one datagram of
// the agreed size travels as several, each protected by itself, so that nothing depends on
// IP fragments, which many networks drop.
//
// Sending:
//
//	protected -> split     the inner payloads are cut into chunks, each one is sealed
//	sendParts              all of them leave together, at every retransmission
//	shrink                 no answer: the same message again, in smaller fragments
//
// Receiving:
//
//	open -> openFragment   numbers and message ID are checked, then the fragment's ICV, then
//	                       it is kept; the last one makes the message whole
//	dropFragments          what stays incomplete is forgotten
//
// A fragment has its numbers between the generic header of the SKF payload and the IV:
//
//	                     1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	| Next Payload  |C|  RESERVED   |         Payload Length        |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|        Fragment Number        |        Total Fragments        |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

// Fragmentation says whether the large messages of a connection travel in fragments. The
// zero value is strongSwan's default.
type Fragmentation uint8

// The choices, named as strongSwan names them.
const (
	FragmentYes    Fragmentation = iota // send and receive fragments if the peer can do both
	FragmentAccept                      // say that we can, and send none
	FragmentNo                          // do not say so; the peer must not send any then
)

const (
	// fragmentSize is the default for the size of the IP datagrams that hold fragments:
	// every path of IPv6 passes it, and nearly every path of IPv4 (RFC 7383 section 2.5.1
	// recommends it for the former).
	fragmentSize = 1280
	// fragmentLow is the size to which a message that gets no answer is cut: what RFC 7383
	// section 2.5.1 recommends for IPv4. There is one step, as section 2.5.2 wants the
	// search for the path's MTU coarse.
	fragmentLow = 576
	// fragmentTries is after how many transmissions without an answer that step is taken.
	// With the default timers that is 11 s after the first.
	fragmentTries = 2
	// chunkMin is the least that a fragment has room for, padding included, whatever size is
	// configured.
	chunkMin = 32
)

// Limits of reassembly. Each IKE SA has at most as many requests and responses in the making
// as its windows allow, and only ones whose message ID is due.
const (
	// maxFragments is the most pieces that one message may come in: 32 KiB in fragments of
	// the smallest size that is sensible take 70.
	maxFragments = 255
	// maxReassembled is the most octets of inner payloads, for all messages of one direction
	// of an IKE SA together: three certificates with keys and signatures of post-quantum size
	// fit. RFC 7383 section 5 wants it below 64 KiB.
	maxReassembled = 32 << 10
	// maxHalfOpenFragments is the most memory for peers that have not authenticated, all of
	// them together. What comes then takes the place of the set that was begun first.
	maxHalfOpenFragments = 128 << 10
	// fragmentLife is how long an incomplete message waits for the rest. It outlasts four
	// transmissions with the default timers.
	fragmentLife = time.Minute

	fragmentHdr = 4 // Fragment Number and Total Fragments
)

// Errors of receiving a fragment. Nothing advanced but as ErrOversize says.
var (
	ErrFragment = errors.New("fragment that does not belong to a message due now, or has impossible numbers")
	ErrOversize = errors.New("the peer's message is larger than one of its kind can be; the IKE SA is closed")

	// errPart means that there is nothing to process: the fragment was kept, or is one that
	// we have.
	errPart = errors.New("part of a message")
)

// fragments is what an IKE SA knows of fragmentation.
type fragments struct {
	on   bool             // both sides have said that they can
	size int              // of IP datagrams, where that is below the configured size, on this path; 0: as configured
	in   [2][]*reassembly // the peer's requests, and its responses; the oldest first
}

// reassembly is a message of which not all fragments are there.
type reassembly struct {
	id       uint32
	exchange Exchange
	total    uint16
	next     PayloadType // of the first inner payload; only the first fragment tells
	bits     byte        // of the first fragment's payload: critical and reserved
	buf      []byte      // contents in the order of arrival
	parts    []part
	largest  int  // datagram
	clear    bool // there was a payload in clear in front of a fragment
	err      error
	expires  time.Duration
}

// part is where the content of one fragment lies in the buffer.
type part struct {
	number   uint16
	from, to int
}

// announces tells whether the connection says that it can do fragmentation.
func (c *Conn) announces() bool { return c.Fragmentation != FragmentNo }

// fragmentNotify says that we can do fragmentation.
func fragmentNotify(b *Builder) { b.Notify(NotifyFragmentationSupported, ProtoNone, nil, nil) }

// agreed tells whether the peer says so in m.msg, and we do.
func (m *Machine) agreed(ours bool) bool {
	_, theirs := m.msg.FindNotify(NotifyFragmentationSupported)
	return ours && theirs
}

// inherit returns what the IKE SA that replaces this one starts with: only IKE_SA_INIT
// negotiates. How large fragments may be is found out anew now and then: what made them
// small may have been a loss.
func (f *fragments) inherit() fragments { return fragments{on: f.on} }

// otherPath forgets what is known of a path that is left: another one may have room for more.
func (f *fragments) otherPath(was, now Path) {
	if !sameHost(was.Local, now.Local) || !sameHost(was.Remote, now.Remote) {
		f.size = 0
	}
}

// sendsFragments tells whether what is too large is to be split.
func (sa *ikeSA) sendsFragments() bool {
	return sa.frag.on && (sa.conn == nil || sa.conn.Fragmentation == FragmentYes)
}

// fragmentSize returns the size that IP datagrams with fragments may have.
func (sa *ikeSA) fragmentSize() int {
	size := fragmentSize
	if sa.conn != nil && sa.conn.FragmentSize > 0 {
		size = sa.conn.FragmentSize
	}
	if sa.frag.size > 0 {
		size = min(size, sa.frag.size)
	}
	return size
}

// ipOverhead returns how many octets of an IP datagram along p are not the IKE message: the
// IP header without options, that of UDP, and the non-ESP marker.
func (p *Path) ipOverhead() int {
	n := 20 + 8
	if !p.Remote.Addr().Is4() {
		n = 40 + 8
	}
	if p.NATT {
		n += 4
	}
	return n
}

// protected builds an encrypted message, in fragments if it has to be. cut is the length of
// each of its datagrams but the last; 0 if there is one.
func (m *Machine) protected(sa *ikeSA, h Header, fill func(*Builder)) (data []byte, cut int) {
	msg, skOff := m.plain(sa, h, fill)
	if h.Exchange == ExchangeIntermediate {
		sa.cover(!h.Response(), coveredOf(msg, skOff, sa.sealer.ivLen()))
	}
	limit := math.MaxInt
	if sa.sendsFragments() {
		limit = sa.fragmentSize() - sa.path.ipOverhead()
	}
	inner := len(msg) - skOff - payloadHdr - sa.sealer.ivLen()
	if inner > sa.sealer.room(limit-skOff-payloadHdr) {
		return m.split(sa, msg, skOff, limit)
	}
	return sa.sealer.seal(msg, skOff, skOff+payloadHdr, m.env.Random), 0
}

// split returns msg, which is ready to be sealed and has no payload in front of the
// Encrypted one, as fragments of at most limit octets, one behind the other; as a whole if
// there would be one.
func (m *Machine) split(sa *ikeSA, msg []byte, skOff, limit int) (data []byte, cut int) {
	s := sa.sealer
	ivOff := skOff + payloadHdr + fragmentHdr
	chunk := max(s.room(limit-ivOff), s.room(s.ivLen()+s.icvLen+chunkMin))
	inner := msg[skOff+payloadHdr+s.ivLen():]
	total := (len(inner) + chunk - 1) / chunk
	if total < 2 {
		return s.seal(msg, skOff, skOff+payloadHdr, m.env.Random), 0
	}
	cut = ivOff + s.ivLen() + chunk + 1 + s.icvLen // a full chunk needs no padding
	data = make([]byte, 0, total*cut)
	for i := range total {
		f := data[i*cut : i*cut : (i+1)*cut]
		f = append(f, msg[:skOff+payloadHdr]...)
		f[offNext] = byte(PayloadSKF)
		if i > 0 {
			f[skOff] = byte(PayloadNone)
		}
		f = binary.BigEndian.AppendUint16(f, uint16(i+1))
		f = binary.BigEndian.AppendUint16(f, uint16(total))
		f = f[:ivOff+s.ivLen()] // seal fills the IV in
		f = append(f, inner[i*chunk:min(len(inner), (i+1)*chunk)]...)
		if f = s.seal(f, skOff, ivOff, m.env.Random); f == nil {
			return nil, 0
		}
		data = data[:i*cut+len(f)]
	}
	return data, cut
}

// nextDatagram returns the first datagram of data, and the others.
func nextDatagram(data []byte, cut int) (first, rest []byte) {
	if cut == 0 || cut >= len(data) {
		return data, nil
	}
	return data[:cut], data[cut:]
}

// sendParts sends a message, all its datagrams. fresh is set when that is done for the first
// time.
func (m *Machine) sendParts(p Path, sa *ikeSA, data []byte, cut int, fresh bool) {
	for fragmented := cut != 0; len(data) > 0; {
		var d []byte
		d, data = nextDatagram(data, cut)
		if fragmented && fresh {
			m.traceMessage("sending", p, sa, d)
		}
		m.send(p, d)
	}
}

// shrink returns one of our messages in smaller fragments, if that is possible and may help
// to get it through; ok is false if not. The content is taken out of the sealed message: so
// nothing has to be kept in clear for it.
func (m *Machine) shrink(sa *ikeSA, data []byte, cut int) (smaller []byte, newCut int, ok bool) {
	first, _ := nextDatagram(data, cut)
	over := sa.path.ipOverhead()
	if !sa.sendsFragments() || sa.fragmentSize() <= fragmentLow || len(first)+over <= fragmentLow {
		return nil, 0, false
	}
	ivOff := headerLen + payloadHdr
	switch PayloadType(first[offNext]) {
	case PayloadSK:
	case PayloadSKF:
		ivOff += fragmentHdr
	default:
		return nil, 0, false
	}
	ivLen := sa.sealer.ivLen()
	msg := append(make([]byte, 0, len(data)), first[:headerLen+payloadHdr]...)
	msg = append(msg, first[ivOff:ivOff+ivLen]...)
	before := 0
	for rest := data; len(rest) > 0; before++ {
		var d []byte
		d, rest = nextDatagram(rest, cut)
		inner, err := sa.sealer.open(append([]byte(nil), d...), headerLen, ivOff)
		if err != nil {
			return nil, 0, false
		}
		msg = append(msg, inner...)
	}
	smaller, newCut = m.split(sa, msg, headerLen, fragmentLow-over)
	clear(msg)
	// The receiver tells the new set from the old by its larger number of fragments.
	if newCut == 0 || (len(smaller)+newCut-1)/newCut <= before {
		return nil, 0, false
	}
	sa.frag.size = fragmentLow
	return smaller, newCut, true
}

// shrinkRequest makes our unanswered request smaller and tells whether it is.
func (m *Machine) shrinkRequest(sa *ikeSA) bool {
	data, cut, ok := m.shrink(sa, sa.req.data, sa.req.cut)
	if ok {
		sa.req.data, sa.req.cut = data, cut
		sa.req.before += sa.req.tries
		sa.req.tries = 0 // the timers start over (RFC 7383 section 2.5.2)
	}
	return ok
}

// repeatReply sends a response once more. A peer that asks for it again and again most likely
// does not get it: then it goes in smaller fragments.
func (m *Machine) repeatReply(sa *ikeSA, p Path, r *reply) {
	if r.again++; r.again == fragmentTries {
		m.withFormerKeys(sa, func() {
			if data, cut, ok := m.shrink(sa, r.data, r.cut); ok {
				r.data, r.cut = data, cut
			}
		})
	}
	m.sendParts(p, sa, r.data, r.cut, false)
}

// fragment returns the SKF payload of the message, or nil if it is no fragment.
func (m *Message) fragment() *Payload {
	if n := len(m.Payloads); n > 0 && m.SKOff != 0 && m.Payloads[n-1].Type == PayloadSKF {
		return &m.Payloads[n-1]
	}
	return nil
}

// numbers returns Fragment Number and Total Fragments of an SKF payload.
func (p *Payload) numbers() (number, total uint16, ok bool) {
	c := cursor{b: p.Body}
	number, total = c.u16(), c.u16()
	return number, total, c.ok() && number > 0 && number <= total
}

// openFragment takes the fragment in m.msg, whose datagram is b. When it makes a message
// whole, that message stands in m.msg as if it had come in one piece. authentic and err are
// those of open; with errPart there is nothing to do. outer is what parsing found in clear.
//
// What costs nothing is checked first: a fragment that is not due, or that we have, is not
// even decrypted, and nothing is kept of one that is not authentic.
func (m *Machine) openFragment(sa *ikeSA, b []byte, outer error) (authentic bool, err error) {
	h := &m.msg.Header
	number, total, ok := m.msg.fragment().numbers()
	if !ok || !sa.frag.on || sa.opener == nil || total > maxFragments {
		return false, ErrFragment
	}
	dir := 0
	if h.Response() {
		dir = 1
	}
	again, err := m.fragmentDue(sa, number)
	if err != nil {
		return false, err
	}
	r := sa.frag.find(dir, h.ID)
	switch {
	case r == nil || again:
	case h.Exchange != r.exchange:
		return false, ErrFragment
	case total < r.total, total == r.total && r.has(number):
		return false, errPart // of an earlier set, or a duplicate
	}
	inner, err := sa.openerOf(h).open(b, m.msg.SKOff, m.msg.SKOff+payloadHdr+fragmentHdr)
	if err != nil {
		return false, err
	}
	if again {
		m.msg.Payloads = m.msg.Payloads[:0]
		return true, nil // request repeats the response
	}
	m.tracePayloads("received", sa.path, sa)
	if r == nil || total > r.total {
		sa.frag.drop(dir, r)
		r = &reassembly{id: h.ID, exchange: h.Exchange, total: total, expires: m.now.Mono + fragmentLife}
		sa.frag.in[dir] = append(sa.frag.in[dir], r)
		if sa.timers[tFragments] == never {
			m.arm(sa, tFragments, fragmentLife)
		}
	}
	if len(r.buf)+len(inner) > maxReassembled {
		m.destroy(sa, ErrOversize) // RFC 7383 section 5
		return false, ErrOversize
	}
	sa.frag.room(dir, r, len(inner))
	m.roomForFragments(sa, len(inner))
	if number == 1 {
		r.next, r.bits = m.msg.SKNext, b[m.msg.SKOff+1]
	}
	if r.err == nil {
		r.err = outer
	}
	r.clear = r.clear || m.msg.outer > 0
	r.largest = max(r.largest, len(b))
	r.parts = append(r.parts, part{number, len(r.buf), len(r.buf) + len(inner)})
	r.buf = append(r.buf, inner...)
	if len(r.parts) < int(total) {
		return true, errPart
	}
	sa.frag.drop(dir, r)
	return true, m.whole(sa, r)
}

// fragmentDue tells whether a fragment of the message in m.msg is of use now; if not, err is
// why, or errPart where that is nothing to talk about. again is set for one of a request that
// has been answered, of which the first fragment alone asks for the response (RFC 7383
// section 2.6.1).
func (m *Machine) fragmentDue(sa *ikeSA, number uint16) (again bool, err error) {
	h := &m.msg.Header
	if h.Response() {
		sa.recallID(h.ID)
		switch {
		case !sa.req.active || h.ID != sa.req.id || h.Exchange != sa.req.exchange:
			return false, ErrMessageID
		case sa.jobs[laneOurs] != jobNone:
			return false, errPart // the whole message is there
		}
		return false, nil
	}
	switch {
	case sa.replyTo(h.ID) != nil:
		if number != 1 {
			return false, errPart
		}
		return true, nil
	case !sa.inWindow(h.ID):
		return false, ErrMessageID
	case sa.computing(h.ID):
		return false, errPart
	case !sa.expects(h.Exchange):
		return false, ErrUnexpected
	}
	return false, nil
}

// whole puts a complete message into m.msg, in place of its last fragment.
func (m *Machine) whole(sa *ikeSA, r *reassembly) error {
	if n := r.largest + sa.path.ipOverhead(); r.total > 1 && !m.msg.Response() && n < sa.fragmentSize() {
		// The peer has its reasons, and what it sends gets through: so will our answer.
		sa.frag.size = max(n, min(fragmentLow, sa.fragmentSize()))
	}
	m.msg.outer, m.msg.SKNext, m.msg.skBits = 0, r.next, r.bits
	if err := m.msg.ParseInner(r.next, r.merged()); err != nil {
		return err
	}
	if r.clear {
		m.msg.outer = 1 // checkRules has something to say about that
	}
	return r.err
}

// find returns the message of that ID in the making, or nil.
func (f *fragments) find(dir int, id uint32) *reassembly {
	for _, r := range f.in[dir] {
		if r.id == id {
			return r
		}
	}
	return nil
}

// drop takes a message out, because it is complete or will not be.
func (f *fragments) drop(dir int, r *reassembly) {
	f.in[dir] = slices.DeleteFunc(f.in[dir], func(o *reassembly) bool { return o == r })
}

// room sees to it that all messages of one direction together stay within what one may be,
// when r grows by n octets. Those that were begun first go.
func (f *fragments) room(dir int, r *reassembly, n int) {
	sum := n
	for _, o := range f.in[dir] {
		sum += len(o.buf)
	}
	f.in[dir] = slices.DeleteFunc(f.in[dir], func(o *reassembly) bool {
		if o == r || sum <= maxReassembled {
			return false
		}
		sum -= len(o.buf)
		return true
	})
}

// has tells whether a fragment is there already.
func (r *reassembly) has(number uint16) bool {
	for i := range r.parts {
		if r.parts[i].number == number {
			return true
		}
	}
	return false
}

// merged returns the contents in the order of their numbers.
func (r *reassembly) merged() []byte {
	sorted := true
	var at [maxFragments + 1]part
	for i, p := range r.parts {
		sorted = sorted && int(p.number) == i+1
		at[p.number] = p
	}
	if sorted {
		return r.buf
	}
	b := make([]byte, 0, len(r.buf))
	for n := 1; n <= int(r.total); n++ {
		b = append(b, r.buf[at[n].from:at[n].to]...)
	}
	return b
}

// size returns how much memory a reassembly takes.
func (r *reassembly) size() int { return cap(r.buf) + 32*cap(r.parts) }

// roomForFragments sees to it that what unauthenticated peers have sent stays within its
// limit when n octets for sa join it. The sets that were begun first go: those of a peer that
// means it are complete within a moment.
func (m *Machine) roomForFragments(sa *ikeSA, n int) {
	if sa.state != StateConnecting || sa.initiator {
		return
	}
	for {
		sum := n
		var oldest *ikeSA
		for i := range m.sas {
			o := &m.sas[i]
			if o.state != StateConnecting || o.initiator || len(o.frag.in[0]) == 0 {
				continue
			}
			sum += o.frag.in[0][0].size() // their window is one
			if o != sa && (oldest == nil || o.frag.in[0][0].expires < oldest.frag.in[0][0].expires) {
				oldest = o
			}
		}
		if sum <= maxHalfOpenFragments || oldest == nil {
			return
		}
		oldest.frag.in[0] = nil
	}
}

// dropFragments forgets messages that have stayed incomplete for too long. Whoever wants an
// answer sends all of it again.
func (m *Machine) dropFragments(sa *ikeSA) {
	for i := range sa.frag.in {
		sa.frag.in[i] = slices.DeleteFunc(sa.frag.in[i], func(r *reassembly) bool { return r.expires <= m.now.Mono })
		for _, r := range sa.frag.in[i] {
			m.arm(sa, tFragments, min(r.expires, sa.timers[tFragments])-m.now.Mono)
		}
	}
}
