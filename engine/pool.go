package engine

// bufferAlign is what the ciphers want of a payload's address on 32-bit processors.
const bufferAlign = 4

// minUDPBuffer is the least size of a buffer into which a UDP socket reads. RFC 7296
// section 2 asks that IKE messages of 3000 octets be taken.
const minUDPBuffer = 3072

// pool hands out the buffers of one size that the engine will ever have. All are cut
// from one piece of memory at start, each at a multiple of bufferAlign. Whoever takes a
// buffer owns it for good: afterwards buffers only change hands, one for one, between
// the readers' batches and the queues, so that nothing is allocated, nothing is
// returned, and nothing can run out.
type pool struct {
	size int // of a buffer
	step int // from one to the next
	rest []byte
}

// poolStagger is what lies between buffers. Their sizes are powers of two, more or less: side
// by side, the same part of each would go to the same few places of the processor's
// cache, and a batch would push itself out of it.
const poolStagger = 64

// newPool returns a pool of n buffers of size octets.
func newPool(n, size int) *pool {
	size = (size + bufferAlign - 1) &^ (bufferAlign - 1)
	step := size + poolStagger
	return &pool{size: size, step: step, rest: make([]byte, n*step)}
}

// take returns the next n buffers. It is called at start alone; to take more than there
// are is a mistake in the sums of newDatapath.
func (p *pool) take(n int) [][]byte {
	bufs := make([][]byte, n)
	for i := range bufs {
		bufs[i] = p.rest[:p.size:p.size]
		p.rest = p.rest[p.step:]
	}
	return bufs
}

// left returns how many buffers nobody has taken.
func (p *pool) left() int { return len(p.rest) / p.step }
