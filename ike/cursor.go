package ike

import "encoding/binary"

// cursor reads big-endian fields from the front of a slice. Its error is sticky: after
// a read past the end every further read yields zero and ok stays false, so that a
// parser can read a whole structure and check once. It is the only place of the codec
// that compares lengths with what is there; slices that it hands out alias the input
// and have no capacity beyond their length.
type cursor struct {
	b     []byte
	short bool
}

// ok tells whether every read so far was within bounds.
func (c *cursor) ok() bool { return !c.short }

// left returns the number of octets that have not been read; 0 after an overrun.
func (c *cursor) left() int { return len(c.b) }

// take returns the next n octets, or nil if there are fewer.
func (c *cursor) take(n int) []byte {
	if n < 0 || n > len(c.b) {
		c.short, c.b = true, nil
		return nil
	}
	v := c.b[:n:n]
	c.b = c.b[n:]
	return v
}

// rest returns all that is left.
func (c *cursor) rest() []byte { return c.take(len(c.b)) }

// sub returns a cursor over the next n octets; it has the error of a failed take.
func (c *cursor) sub(n int) cursor {
	v := c.take(n)
	return cursor{b: v, short: c.short}
}

func (c *cursor) skip(n int) { c.take(n) }

func (c *cursor) u8() uint8 {
	if v := c.take(1); v != nil {
		return v[0]
	}
	return 0
}

func (c *cursor) u16() uint16 {
	if v := c.take(2); v != nil {
		return binary.BigEndian.Uint16(v)
	}
	return 0
}

func (c *cursor) u32() uint32 {
	if v := c.take(4); v != nil {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}

func (c *cursor) u64() uint64 {
	if v := c.take(8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}
