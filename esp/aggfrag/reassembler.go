package aggfrag

import "time"

// MaxReorder is the largest reorder window, in payloads: what several paths of a fast link confuse,
// and 90 KiB of buffers at most sizes.
const MaxReorder = 64

// DefaultReorder is the window that RFC 9347 section 2.2.3 names where nothing is known.
const DefaultReorder = 3

// Limits bounds a Reassembler. It takes Reorder times Payload octets, and Inner more.
type Limits struct {
	// Reorder is how many payloads may arrive before one that should precede them: 0 to MaxReorder. 0: what
	// is not there in time is lost.
	Reorder int

	// Payload is the longest payload, in octets, that can wait for its turn. In their turn they may be
	// longer.
	Payload int

	// Inner is the longest inner packet, in octets, that is put together from several payloads: up to
	// 65535. 0: none is, and the peer has been told so.
	Inner int

	// Wait is how long a payload waits for those before it; 0: until the window has moved past
	// them. With it, Deadline and Tick must be used.
	Wait time.Duration
}

// Reassembler makes inner packets of the payloads of one SA (RFC 9347 section 2.5): in order, or not at
// all. Replays must have been dropped before.
//
//	lost or done | expect              expect+Reorder |
//	   ... . . . |    ?    2    ?    4                | 9 moves the window
//
// After each Push or Tick, Next must be called until there is nothing more. One goroutine at
// a time may use it, from Push to the last Next. Times are the caller's, of a clock that never goes back.
type Reassembler struct {
	wait   time.Duration
	expect uint64 // the number of the next payload
	floor  uint64 // payloads below it are not waited for
	lost   uint64

	fresh payload   // the one that has been pushed, if it is still to be seen to
	slots []payload // those that wait, at their number modulo the window
	held  int       // how many do

	blocks []byte // of the payload at hand, what has not been looked at

	part []byte // of a packet that is under way, its first have octets
	have int
	need int // its length; 0: not known yet
}

// payload is one that waits for its turn. In a slot it owns its buffer; a fresh one is the caller's.
type payload struct {
	full   bool
	broken bool // its header was no good: of it is known only that it arrived
	offset int
	seq    uint64
	at     time.Duration // when it arrived
	blocks []byte
}

// NewReassembler makes a Reassembler for an SA whose first sequence number is 1. What is out of
// the limits' ranges is moved into them.
func NewReassembler(l Limits) *Reassembler {
	window, size, inner := max(0, min(l.Reorder, MaxReorder)), max(0, l.Payload-HeaderLen), max(0, min(l.Inner, maxInner))
	r := &Reassembler{wait: l.Wait, expect: 1, slots: make([]payload, window)}
	buf := make([]byte, window*size+inner)
	for i := range r.slots {
		r.slots[i].blocks, buf = buf[:0:size], buf[size:]
	}
	r.part = buf
	return r
}

// Push takes the payload of the packet with the given sequence number, all 64 bits of it, and reads its
// header into h, which is valid unless the error is ErrShort or ErrSubType: congestion
// information counts when it arrives. After ErrLate, ErrShort and ErrSubType nothing of the
// payload itself is used.
//
// The payload is the caller's, and must stay as it is until Next has answered that there is nothing more.
func (r *Reassembler) Push(now time.Duration, seq uint64, p []byte, h *Header) error {
	for r.fresh.full || len(r.blocks) > 0 { // Next has not been called to the end
		r.Next()
	}
	r.Tick(now)
	blocks, err := h.Parse(p)
	if seq < r.expect {
		if err == nil {
			err = ErrLate
		}
		return err
	}
	if ahead := seq - r.expect; ahead > 0 {
		if ahead > uint64(len(r.slots)) {
			r.floor = max(r.floor, seq-uint64(len(r.slots)))
		} else if s := r.slot(seq); s.full && s.seq == seq {
			return ErrLate
		}
	}
	r.fresh = payload{full: true, broken: err != nil, offset: int(h.BlockOffset), seq: seq, at: now, blocks: blocks}
	return err
}

// Next returns the next inner packet. nil and an error tell that something had to be dropped: call it
// again. nil and no error: there is nothing more for now.
//
// The packet may be changed, but not what is around it. It lies in the payload that was pushed or in a
// buffer of r, and is valid until Next or Push is called again.
func (r *Reassembler) Next() ([]byte, error) {
	for {
		if pkt, err := r.block(); pkt != nil || err != nil {
			return pkt, err
		}
		if p := r.take(); p != nil {
			if pkt, err := r.open(p); pkt != nil || err != nil {
				return pkt, err
			}
			continue
		}
		if r.expect < r.floor {
			if r.skip() {
				return nil, ErrLost
			}
			continue
		}
		return nil, r.park()
	}
}

// Deadline returns when Tick must be called; ok is false if nothing waits, or waits for ever.
func (r *Reassembler) Deadline() (at time.Duration, ok bool) {
	if r.held == 0 || r.wait == 0 {
		return 0, false
	}
	first := true
	for i := range r.slots {
		if s := &r.slots[i]; s.full && (first || s.at < at) {
			at, first = s.at, false
		}
	}
	return at + r.wait, true
}

// Tick gives up the payloads that others have waited for too long. Next returns what follows them.
func (r *Reassembler) Tick(now time.Duration) {
	if r.held == 0 || r.wait == 0 {
		return
	}
	for i := range r.slots {
		if s := &r.slots[i]; s.full && now-s.at >= r.wait {
			r.floor = max(r.floor, s.seq)
		}
	}
}

// Lost returns how many payloads have been given up.
func (r *Reassembler) Lost() uint64 { return r.lost }

func (r *Reassembler) slot(seq uint64) *payload { return &r.slots[seq%uint64(len(r.slots))] }

// lowest returns the lowest number among the payloads that are here and wait. There is one.
func (r *Reassembler) lowest() uint64 {
	seq := ^uint64(0)
	if r.fresh.full {
		seq = r.fresh.seq
	}
	for i := range r.slots {
		if r.slots[i].full {
			seq = min(seq, r.slots[i].seq)
		}
	}
	return seq
}

// take takes the payload whose turn it is; nil: it is not here. What it returns stays as it is
// until the next payload is parked.
func (r *Reassembler) take() *payload {
	p := &r.fresh
	if !p.full || p.seq != r.expect {
		if r.held == 0 {
			return nil
		}
		if p = r.slot(r.expect); !p.full || p.seq != r.expect {
			return nil
		}
		r.held--
	}
	p.full = false
	r.expect++
	return p
}

// skip gives up what is missing below floor and tells whether a packet went with it.
func (r *Reassembler) skip() bool {
	to := r.floor
	if r.held > 0 || r.fresh.full {
		to = min(to, r.lowest())
	}
	r.lost += to - r.expect
	r.expect = to
	return r.abandon()
}

// park copies a fresh payload into its slot, to wait for its turn.
func (r *Reassembler) park() error {
	p := &r.fresh
	if !p.full {
		return nil
	}
	p.full = false
	s := r.slot(p.seq)
	if len(p.blocks) > cap(s.blocks) {
		return ErrNoRoom
	}
	blocks := s.blocks[:len(p.blocks)]
	copy(blocks, p.blocks)
	*s = *p
	s.full, s.blocks = true, blocks
	r.held++
	return nil
}

// abandon gives up the packet that is under way and tells whether there was one.
func (r *Reassembler) abandon() bool {
	had := r.have > 0
	r.have, r.need = 0, 0
	return had
}

// open begins with a payload: what belongs to the packet under way is added to it. Where
// the two do not agree, the BlockOffset is believed (RFC 9347 section 2.5).
//
// A payload of padding alone may come between the parts of a packet and changes nothing, and so
// does an empty one (sections 2.2.3 and 2.2.4).
func (r *Reassembler) open(p *payload) ([]byte, error) {
	if p.broken {
		if r.abandon() {
			return nil, ErrLost
		}
		return nil, nil
	}
	b := p.blocks
	if len(b) == 0 || p.offset == 0 && b[0]>>4 == blockPad {
		return nil, nil
	}
	n := min(p.offset, len(b))
	r.blocks = b[n:]
	if r.have == 0 {
		return nil, nil
	}
	total := r.have + p.offset
	if p.offset == 0 || r.need > 0 && r.need != total {
		r.abandon()
		return nil, ErrOffset
	}
	if total > len(r.part) {
		r.abandon()
		return nil, ErrTooLong
	}
	r.have += copy(r.part[r.have:], b[:n])
	if r.need == 0 {
		need, err := blockLen(r.part[:r.have])
		if err == nil && need != 0 && need != total {
			err = ErrOffset
		}
		if err == nil && need == 0 && n == p.offset {
			err = ErrLength // it has ended before its length
		}
		if err != nil {
			r.abandon()
			return nil, err
		}
		r.need = need
	}
	if n < p.offset {
		return nil, nil
	}
	r.abandon()
	return r.part[:total:total], nil
}

// block takes the next data block of the payload at hand. Without a result there was none, or only
// the beginning of one.
func (r *Reassembler) block() ([]byte, error) {
	b := r.blocks
	if len(b) == 0 {
		return nil, nil
	}
	r.blocks = nil
	switch b[0] >> 4 {
	case blockPad:
		return nil, nil
	case blockIPv4, blockIPv6:
	default:
		return nil, ErrType
	}
	n, err := blockLen(b)
	switch {
	case err != nil:
		return nil, err
	case n > 0 && n <= len(b):
		r.blocks = b[n:]
		return b[:n:n], nil
	case max(n, len(b)) > len(r.part):
		return nil, ErrTooLong
	}
	r.have, r.need = copy(r.part, b), n
	return nil, nil
}
