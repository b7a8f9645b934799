package esp

import (
	"crypto/subtle"
	"encoding/binary"
	"fmt"
)

//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	| Next header   |  Length       |          Reserved: 0          |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|               Security Parameters Index (SPI)                 |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                Sequence number, low 32 bits                   |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|        ICV: IV of 8 octets for GMAC, ICV of 12 to 32,         |
//	~        padding to 4 octets under IPv4, 8 under IPv6           ~
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//
// AH (RFC 4302) covers the whole packet: the headers before it as cover writes them, itself with
// zeros for IV and ICV, all that follows, and with extended sequence numbers their high half.

const (
	ahFixedLen = 12
	maxAHICV   = maxICVLen + 4 // with padding
)

// ahShape is where the parts of the ICV field lie, in octets.
type ahShape struct {
	iv, icv int
}

// length returns the octets of AH in a packet of either IP version (RFC 4302 section 3.3.3.2.1).
func (s ahShape) length(v6 bool) int {
	n := ahFixedLen + s.iv + s.icv
	if v6 {
		return (n + 7) &^ 7
	}
	return (n + 3) &^ 3
}

// ahScratch is a worker's state for an SA of AH.
type ahScratch struct {
	shape ahShape
	esn   bool
	mac   mac
	iv    ivMAC // the same, if it takes an IV
	seqh  [4]byte
	tag   [maxMACLen]byte
	ah    [ahFixedLen + maxAHICV]byte
	head  [maxPrefix]byte
}

func newAHScratch(row *integRow, key []byte, esn bool) (*ahScratch, error) {
	m, err := row.newMAC(key)
	if err != nil {
		return nil, err
	}
	c := &ahScratch{shape: ahShape{row.iv, row.icv}, esn: esn, mac: m}
	if row.iv != 0 {
		c.iv = m.(ivMAC)
	}
	return c, nil
}

// seal and open would be ESP's: nothing finds room for them, see noPacket.
func (c *ahScratch) seal([]byte, uint64, int, int)      {}
func (c *ahScratch) open([]byte, uint64, int, int) bool { return false }

// ah returns worker ctx's state for an SA of AH.
func (k *keyring) ah(first *slots, ctx int) (*ahScratch, error) {
	c, err := k.get(first, ctx)
	if err != nil {
		return nil, err
	}
	return c.do.(*ahScratch), nil
}

// validate is Validate or ValidateAH, whichever speaks of the suite.
func (s Suite) validate() error {
	if s.Encr == EncrNone {
		return s.ValidateAH()
	}
	return s.Validate()
}

// ValidateAH tells whether the suite is one of AH: an integrity transform alone.
func (s Suite) ValidateAH() error {
	if s.Encr != EncrNone {
		return fmt.Errorf("esp: AH does not encrypt, leave %s out", s.Encr)
	}
	if _, ok := s.Integ.row(); !ok {
		return fmt.Errorf("esp: AH needs an integrity transform and %d is not supported, use HMAC_SHA2_256_128", uint16(s.Integ))
	}
	if s.KeyBits != 0 {
		return fmt.Errorf("esp: AH has no cipher for keys of %d bits: leave it out", s.KeyBits)
	}
	return nil
}

// icv computes the ICV of a packet: head is what cover wrote, ah the header that follows it, body
// the rest. The result is the whole output of the mac; it is valid until the next call.
func (c *ahScratch) icv(head, ah, body []byte, seq uint64) []byte {
	s := c.shape
	h := c.ah[:len(ah)]
	copy(h, ah)
	clear(h[ahFixedLen : ahFixedLen+s.iv+s.icv])
	c.mac.Reset()
	if c.iv != nil {
		c.iv.SetIV(ah[ahFixedLen : ahFixedLen+s.iv])
	}
	c.mac.Write(head)
	c.mac.Write(h)
	c.mac.Write(body)
	if c.esn {
		binary.BigEndian.PutUint32(c.seqh[:], uint32(seq>>32))
		c.mac.Write(c.seqh[:])
	}
	return c.mac.Sum(c.tag[:0])
}

// sealAH does what a plan says, for AH.
func (o *Outbound) sealAH(ctx int, seq uint64, buf []byte, off int, pl *plan, d *Datagram) error {
	c, err := o.keys.ah(&o.slots, ctx)
	if err != nil {
		return err
	}
	s := c.shape
	n := s.length(pl.v6)
	pkt := buf[pl.body-n-pl.head : pl.body+pl.n]
	p := &pl.p
	if o.form.mode == Transport {
		copy(pkt, buf[off:off+p.n])
		identify(pkt, seq)
		p.fix(pkt, ProtoAH)
	} else {
		h := pl.header(d, ProtoAH, seq)
		h.put(pkt)
		*p = prefix{v6: pl.v6, n: pl.head, nextAt: nextAt(pl.v6), next: ProtoAH, total: len(pkt)}
	}

	ah := pkt[pl.head : pl.head+n]
	clear(ah)
	ah[0], ah[1] = pl.next, uint8(n/4-2)
	binary.BigEndian.PutUint32(ah[4:], o.spi)
	binary.BigEndian.PutUint32(ah[8:], uint32(seq))
	if s.iv != 0 {
		// It never repeats under one key, which is all that GMAC asks for (RFC 4543 section 3.1).
		binary.BigEndian.PutUint64(ah[ahFixedLen:], seq)
	}
	head, err := p.cover(c.head[:], pkt, len(pkt), false)
	if err != nil {
		return err
	}
	tag := c.icv(head, ah, pkt[pl.head+n:], seq)
	copy(ah[ahFixedLen+s.iv:], tag[:s.icv])
	pl.deliver(d, pkt)
	return nil
}

// openAH is OpenPacket for AH.
func (in *Inbound) openAH(ctx int, d *Datagram, room int) ([]byte, error) {
	c, err := in.keys.ah(&in.slots, ctx)
	if err != nil {
		return nil, err
	}
	if !d.Whole {
		return nil, ErrHeaders
	}
	pkt := d.Buf[:d.N]
	var p prefix
	if err := p.find(pkt, ProtoAH); err != nil {
		return nil, err
	}
	pkt = pkt[:p.total]
	d.readHeader()
	f := in.form
	n, at := c.shape.length(p.v6), p.n+p.skip
	end := at + n // of AH
	if len(pkt) < end || (int(pkt[at+1])+2)*4 != n {
		return nil, ErrShort
	}
	start := end // of the result
	if f.mode == Transport {
		start -= p.n
	}
	if start < room && room+len(pkt)-start > len(d.Buf) {
		return nil, ErrNoRoom
	}
	ah := pkt[at:end]
	seq, ok := in.admit(binary.BigEndian.Uint32(ah[8:]))
	if !ok {
		return nil, ErrReplay
	}
	head, err := p.cover(c.head[:], pkt, len(pkt)-p.skip, true)
	if err != nil {
		return nil, err
	}
	s := c.shape
	tag := c.icv(head, ah, pkt[end:], seq)
	if subtle.ConstantTimeCompare(tag[:s.icv], ah[ahFixedLen+s.iv:][:s.icv]) != 1 {
		return nil, ErrAuth
	}
	if err := in.accept(seq, len(pkt)-start, true); err != nil {
		return nil, err
	}

	next, inner := ah[0], pkt[start:]
	if f.mode == Transport {
		copy(inner, pkt[:p.n])
		p.fix(inner, next)
	} else if inner, err = cut(inner, next); err != nil {
		return nil, err
	}
	return behind(d.Buf, start, len(inner), room), nil
}

// behind returns the n octets at buf[start] with room octets in front of them, and moves them if
// there are not so many.
func behind(buf []byte, start, n, room int) []byte {
	if start < room {
		copy(buf[room:], buf[start:start+n])
		start = room
	}
	return buf[start-room : start+n]
}

// nextAt returns where an IP header without extension headers names what follows.
func nextAt(v6 bool) int {
	if v6 {
		return 6
	}
	return 9
}
