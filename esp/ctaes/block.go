package ctaes

import (
	"encoding/binary"
	"math/bits"
	"strconv"
)

// subConstant is what SubBytes adds to every octet. MixColumns leaves it as it is, and so the
// round keys from the first on have it in them.
const subConstant = 0x63636363

// block is AES with one key: a round key for every round and one before, as slices with
// the key in each lane. It does not change, any number of goroutines may use it.
type block struct {
	keys []slice
}

// expand expands a key of 16, 24 or 32 octets (FIPS 197 section 5.2) in constant time. w are the
// little-endian columns of the round keys, four for each of the rounds and one before.
func expand(key []byte) (w [4 * 15]uint32, rounds int, err error) {
	n := len(key) / 4
	switch len(key) {
	case 16, 24, 32:
	default:
		return w, 0, keySizeError(len(key))
	}
	rounds = n + 6
	for i := range n {
		w[i] = binary.LittleEndian.Uint32(key[4*i:])
	}
	rcon := uint32(1)
	for i := n; i < 4*(rounds+1); i++ {
		t := w[i-1]
		switch {
		case i%n == 0:
			t = subWord(bits.RotateLeft32(t, -8)) ^ rcon
			rcon = rcon<<1 ^ rcon>>7*0x11b
		case n > 6 && i%n == 4:
			t = subWord(t)
		}
		w[i] = w[i-n] ^ t
	}
	return w, rounds, nil
}

// newBlock makes slices of an expanded key.
func newBlock(key []byte) (*block, error) {
	w, rounds, err := expand(key)
	if err != nil {
		return nil, err
	}
	defer clear(w[:])
	b := &block{keys: make([]slice, rounds+1)}
	for i := range b.keys {
		var c [4]uint32
		for col := range c {
			for row := range 4 {
				c[col] |= w[4*i+(col-i*row)&3] & (0xff << (8 * row))
			}
			if i > 0 {
				c[col] ^= subConstant
			}
		}
		for lane := range lanes {
			b.keys[i].put(lane, &c)
		}
		b.keys[i].transpose()
	}
	return b, nil
}

// subWord is SubWord of the key expansion.
func subWord(x uint32) uint32 {
	s := slice{uint(x)}
	s.transpose()
	s.sub()
	s.transpose()
	return uint32(s[0]) ^ subConstant
}

// encrypt encrypts all lanes, from put to get.
func (b *block) encrypt(s *slice) {
	k := b.keys
	s.transpose()
	s.xor(&k[0])
	last := len(k) - 1
	for i := 1; ; i += 4 {
		s.sub()
		if i == last {
			break // AES-192 ends a round later than here, the others two
		}
		mix1(s, &k[i])
		s.sub()
		if i+1 == last {
			break
		}
		mix2(s, &k[i+1])
		s.sub()
		mix3(s, &k[i+2])
		s.sub()
		if i+3 == last {
			break
		}
		mix0(s, &k[i+3])
	}
	s.xor(&k[last])
	s.transpose()
	if last&3 != 0 {
		s.align()
	}
}

// align carries out twice ShiftRows on words of octets: after 10 and 14 rounds it is what four
// times would undo, and so it serves in both directions.
func (s *slice) align() {
	if wordBits == 64 {
		// Columns c and c + 2 lie beside each other; rows 1 and 3.
		const oddRows = 0xff<<field&ones + 0xff<<(3*field)&ones
		for i, x := range s {
			t := (x ^ x>>8) & oddRows
			s[i] = x ^ t ^ t<<8
		}
		return
	}
	for i := range 4 {
		t := (s[i] ^ s[i+4]) & 0xff00ff00
		s[i] ^= t
		s[i+4] ^= t
	}
}

// decrypt decrypts all lanes, from put to get.
func (b *block) decrypt(s *slice) {
	k := b.keys
	last := len(k) - 1
	if last&3 != 0 {
		s.align()
	}
	s.transpose()
	s.xor(&k[last])
	for i := last - 1; i >= 0; i-- {
		s.inverseSub()
		if i == 0 {
			break
		}
		s.xor(&k[i])
		s.unmix(i)
	}
	s.xor(&k[0])
	s.transpose()
}

// BlockSize is part of cipher.Block.
func (b *block) BlockSize() int { return blockLen }

// Encrypt encrypts one block, in one lane of two or four: what CBC costs, where every block
// waits for the one before.
func (b *block) Encrypt(dst, src []byte) {
	var s slice
	s.one(src)
	b.encrypt(&s)
	s.only(dst)
}

// Decrypt decrypts one block. NewCBCDecrypter fills all lanes.
func (b *block) Decrypt(dst, src []byte) {
	var s slice
	s.one(src)
	b.decrypt(&s)
	s.only(dst)
}

func (s *slice) one(src []byte) {
	var c [4]uint32
	load(&c, src)
	s.put(0, &c)
}

func (s *slice) only(dst []byte) {
	var c [4]uint32
	s.get(0, &c)
	store(dst, &c)
}

func load(c *[4]uint32, b []byte) {
	_ = b[blockLen-1]
	for i := range c {
		c[i] = binary.LittleEndian.Uint32(b[4*i:])
	}
}

func store(b []byte, c *[4]uint32) {
	_ = b[blockLen-1]
	for i := range c {
		binary.LittleEndian.PutUint32(b[4*i:], c[i])
	}
}

type keySizeError int

func (n keySizeError) Error() string {
	return "ctaes: the key has " + strconv.Itoa(int(n)) + " octets, it must have 16, 24 or 32"
}

type macKeySizeError int

func (n macKeySizeError) Error() string {
	return "ctaes: the key has " + strconv.Itoa(int(n)) + " octets, XCBC takes 16"
}

type saltSizeError int

func (n saltSizeError) Error() string {
	return "ctaes: the salt has " + strconv.Itoa(int(n)) + " octets, GMAC takes 4"
}

type tagSizeError int

func (n tagSizeError) Error() string {
	return "ctaes: no tags of " + strconv.Itoa(int(n)) + " octets, they have 8, 12 or 16"
}
