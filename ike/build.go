package ike

import (
	"encoding/binary"
	"slices"

	"postern/esp"
)

// Builder writes a message by appending it to a caller's slice: the header, then each
// payload in the order of the calls, with the chain of Next Payload fields kept up to
// date and reserved fields and bits zero. With BeginSK the payloads after it are the
// content of an Encrypted payload. Finish ends it.
//
//	b := NewBuilder(buf[:0], Header{SPIi: spi, Exchange: ExchangeInit, Flags: FlagInitiator})
//	b.SA(proposals)
//	b.KE(group, public)
//	b.Nonce(ni)
//	msg := b.Finish()
//
// The slice is the caller's; the Builder must not be used after Finish.
type Builder struct {
	b     []byte
	start int // where the message begins in b
	next  int // where the type of the next payload has to be written
	sk    int // offset of the SK payload in the message, or 0
	err   error
}

// NewBuilder starts a message behind dst with the header h. Its version, Next and Length
// need not be set: the version is always ours.
func NewBuilder(dst []byte, h Header) *Builder {
	b := new(Builder)
	b.Reset(dst, h)
	return b
}

// Reset starts another message, as NewBuilder does.
func (b *Builder) Reset(dst []byte, h Header) {
	*b = Builder{start: len(dst), next: len(dst) + offNext}
	e := binary.BigEndian
	dst = e.AppendUint64(dst, h.SPIi)
	dst = e.AppendUint64(dst, h.SPIr)
	dst = append(dst, 0, versionMajor<<4|versionMinor, byte(h.Exchange), h.Flags)
	dst = e.AppendUint32(dst, h.ID)
	b.b = e.AppendUint32(dst, 0)
}

// begin appends the generic header of a payload of type t and returns its offset in b.b.
func (b *Builder) begin(t PayloadType) int {
	off := len(b.b)
	b.b[b.next] = byte(t)
	b.next = off
	b.b = append(b.b, 0, 0, 0, 0)
	return off
}

// end fills in the length of the payload that starts at off.
func (b *Builder) end(off int) { b.putLen(off+2, len(b.b)-off) }

// putLen writes a 16-bit length or count at off. One that does not fit belongs to a
// message that Finish refuses for its size.
func (b *Builder) putLen(off, n int) {
	binary.BigEndian.PutUint16(b.b[off:], uint16(n))
}

func (b *Builder) fail(err error) {
	if b.err == nil {
		b.err = err
	}
}

// SA appends a Security Association payload with the proposals ps. One whose Num is 0
// gets its place in the list, counted from 1, as number.
func (b *Builder) SA(ps []Proposal) {
	off := b.begin(PayloadSA)
	for i := range ps {
		b.proposal(&ps[i], proposalNum(ps, i), i == len(ps)-1)
	}
	b.end(off)
}

// proposal appends one Proposal substructure.
func (b *Builder) proposal(p *Proposal, num uint8, last bool) {
	if len(p.SPI) > 255 || len(p.Transforms) > 255 {
		b.fail(errTooBig)
		return
	}
	off := len(b.b)
	b.b = append(b.b, moreProposals, 0, 0, 0, num, byte(p.Proto), byte(len(p.SPI)), byte(len(p.Transforms)))
	if last {
		b.b[off] = 0
	}
	b.b = append(b.b, p.SPI...)
	e := binary.BigEndian
	for i, t := range p.Transforms {
		more, n := byte(moreTransforms), uint16(transformLen)
		if i == len(p.Transforms)-1 {
			more = 0
		}
		if t.KeyBits != 0 {
			n += attributeLen
		}
		b.b = append(b.b, more, 0)
		b.b = e.AppendUint16(b.b, n)
		b.b = append(b.b, byte(t.Type), 0)
		b.b = e.AppendUint16(b.b, t.ID)
		if t.KeyBits != 0 {
			b.b = e.AppendUint16(b.b, attributeTV|attributeKeyLength)
			b.b = e.AppendUint16(b.b, t.KeyBits)
		}
	}
	b.putLen(off+2, len(b.b)-off)
}

// KE appends a Key Exchange payload.
func (b *Builder) KE(g DHGroup, pub []byte) {
	off := b.begin(PayloadKE)
	b.b = binary.BigEndian.AppendUint16(b.b, uint16(g))
	b.b = append(b.b, 0, 0)
	b.b = append(b.b, pub...)
	b.end(off)
}

// Nonce appends a Nonce payload; n has 16 to 256 octets.
func (b *Builder) Nonce(n []byte) { b.Raw(PayloadNonce, false, n) }

// ID appends an Identification payload; t is PayloadIDi or PayloadIDr.
func (b *Builder) ID(t PayloadType, id ID) {
	off := b.begin(t)
	b.b = id.appendBody(b.b)
	b.end(off)
}

// Auth appends an Authentication payload.
func (b *Builder) Auth(m AuthMethod, data []byte) {
	off := b.begin(PayloadAuth)
	b.b = append(b.b, byte(m), 0, 0, 0)
	b.b = append(b.b, data...)
	b.end(off)
}

// Notify appends a Notify payload. Without an SPI the protocol is sent as zero.
func (b *Builder) Notify(t NotifyType, proto Protocol, spi, data []byte) {
	if len(spi) == 0 {
		proto = ProtoNone
	}
	if len(spi) > 255 {
		b.fail(errTooBig)
		return
	}
	off := b.begin(PayloadNotify)
	b.b = append(b.b, byte(proto), byte(len(spi)))
	b.b = binary.BigEndian.AppendUint16(b.b, uint16(t))
	b.b = append(b.b, spi...)
	b.b = append(b.b, data...)
	b.end(off)
}

// Delete appends a Delete payload: of the IKE SA (ProtoIKE, spis is ignored) or of the
// CHILD SAs whose inbound SPIs are spis.
func (b *Builder) Delete(proto Protocol, spis []uint32) {
	size := byte(4)
	if proto == ProtoIKE {
		size, spis = 0, nil
	}
	off := b.begin(PayloadDelete)
	b.b = append(b.b, byte(proto), size, 0, 0)
	b.putLen(off+payloadHdr+2, len(spis))
	for _, spi := range spis {
		b.b = binary.BigEndian.AppendUint32(b.b, spi)
	}
	b.end(off)
}

// TS appends a Traffic Selector payload; t is PayloadTSi or PayloadTSr. There may be 255
// selectors, and all have to be Valid.
func (b *Builder) TS(t PayloadType, ts []esp.Selector) {
	if len(ts) > maxSelectors {
		b.fail(errTooBig)
		return
	}
	off := b.begin(t)
	b.b = append(b.b, byte(len(ts)), 0, 0, 0)
	for i := range ts {
		if !ts[i].Valid() {
			b.fail(errSelector)
			return
		}
		b.b = appendSelector(b.b, &ts[i])
	}
	b.end(off)
}

// Vendor appends a Vendor ID payload.
func (b *Builder) Vendor(v []byte) { b.Raw(PayloadVendor, false, v) }

// Raw appends a payload of any type. The critical bit is zero on all payloads that RFC
// 7296 defines (section 3.2).
func (b *Builder) Raw(t PayloadType, critical bool, body []byte) {
	off := b.begin(t)
	if critical {
		b.b[off+1] = 0x80
	}
	b.b = append(b.b, body...)
	b.end(off)
}

// BeginSK starts the Encrypted payload: its generic header and ivLen zero octets where
// the cipher will put the initialization vector. All payloads from here on are inside it.
// There may be one in a message.
func (b *Builder) BeginSK(ivLen int) {
	b.sk = b.begin(PayloadSK) - b.start
	b.b = slices.Grow(b.b, ivLen)
	n := len(b.b)
	b.b = b.b[:n+ivLen]
	clear(b.b[n:])
}

// SKOff returns the offset of the SK payload's generic header from the first octet of the
// message, or 0 if there is none.
func (b *Builder) SKOff() int { return b.sk }

// Err returns the first thing that did not fit, or nil.
func (b *Builder) Err() error { return b.err }

// Finish fills in the lengths and returns dst with the message behind it; nil if
// something did not fit its length field (see Err). The Encrypted payload ends with the
// last payload inside it; the cipher appends padding and checksum, and corrects both
// lengths.
func (b *Builder) Finish() []byte {
	n := len(b.b) - b.start
	if b.sk != 0 {
		b.end(b.start + b.sk)
	}
	if n > 0xFFFF {
		b.fail(errTooBig)
	}
	if b.err != nil {
		return nil
	}
	binary.BigEndian.PutUint32(b.b[b.start+offLength:], uint32(n))
	return b.b
}
