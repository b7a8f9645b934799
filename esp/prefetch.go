package esp

import (
	"crypto/cipher"
	"unsafe"
)

// Where the packets of many SAs follow each other, what a packet costs is the time that the memory
// of its SA takes to arrive, a dozen cache lines one after the other. Who has a batch of packets knows
// early which SAs they need, and asks for their memory some packets ahead:
//
//  1. Prefetch, for an Outbound or Inbound itself
//  2. its Near, when that is there: the worker's scratch
//  3. its Ahead, when that is there: the state of the cipher
//
// None of it changes anything, and on processors where it is not worth while it costs nothing.

// Prefetch has the processor fetch the n cache lines from that on in which p points, n at least 1.
func Prefetch(p unsafe.Pointer, n int) {
	if prefetches {
		fetchLines(p, n)
	}
}

// cipherLines is how many cache lines the state of an AEAD has: the library's AES-GCM, key schedules
// and table, fills twelve.
const cipherLines = 12

// near fetches worker ctx's scratch.
func (s *slots) near(ctx int) {
	if prefetches && uint(ctx) < uint(len(s)) {
		fetchLines(unsafe.Pointer(s[ctx].Load()), 1)
	}
}

// ahead fetches the state of worker ctx's AEAD. Where it is not in the scratch itself, an interface holds a
// pointer to it.
func (s *slots) ahead(ctx int) {
	if !prefetches || uint(ctx) >= uint(len(s)) {
		return
	}
	if c := s[ctx].Load(); c != nil && c.aead.aead != nil {
		fetchLines((*struct{ typ, data unsafe.Pointer })(unsafe.Pointer(&c.aead.aead)).data, cipherLines)
	}
}

var _ [unsafe.Sizeof(struct{ typ, data unsafe.Pointer }{})]byte = [unsafe.Sizeof(cipher.AEAD(nil))]byte{}

// Near fetches what Ahead and SealPacket read first for worker ctx.
func (o *Outbound) Near(ctx int) { o.slots.near(ctx) }

// Ahead fetches what SealPacket reads most of for worker ctx.
func (o *Outbound) Ahead(ctx int) { o.slots.ahead(ctx) }

// Near fetches what Ahead and OpenPacket read first for worker ctx.
func (in *Inbound) Near(ctx int) { in.slots.near(ctx) }

// Ahead fetches what OpenPacket reads most of for worker ctx.
func (in *Inbound) Ahead(ctx int) { in.slots.ahead(ctx) }
