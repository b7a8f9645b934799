package platform

import (
	"math/bits"
	"runtime"
	"unsafe"
)

// The Internet checksum (RFC 1071). Sums are kept in the machine's byte order, in which
// the checksum fields are read and written, too: the sum of swapped words is the swapped
// sum, so nothing is swapped per word. A sum is folded once, at its end.

// anyAddress tells that a load of any address is one instruction, as one of an aligned
// address is.
const anyAddress = runtime.GOARCH == "amd64" || runtime.GOARCH == "arm64" || runtime.GOARCH == "386"

// minVectors is the least number of octets that sumVectors takes; it is faster from there on.
const minVectors = 32

// sumBytes adds b, which starts at an even octet of what is summed up, to acc.
func sumBytes(b []byte, acc uint64) uint64 {
	switch {
	case anyAddress && len(b) < minVectors:
		return sumShort(b, acc)
	case vectors && len(b) >= minVectors:
		if last := len(b) - 1; last%2 == 0 {
			acc += lastOctet(b[last])
		}
		return acc + sumVectors(unsafe.SliceData(b), len(b)&^1)
	}
	return sumPlain(b, acc)
}

// sumPlain is sumBytes for every processor. What it loads is aligned: on MIPS and RISC-V the
// compiler makes four loads of each other one.
func sumPlain(b []byte, acc uint64) uint64 {
	if len(b) == 0 {
		return acc
	}
	at := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	if at&1 != 0 {
		// Words of the rest pair each octet with its other neighbour.
		rest := fold(sumPlain(b[1:], 0))
		return acc + uint64(bits.ReverseBytes16(rest)) + lastOctet(b[0])
	}
	if at&2 != 0 && len(b) >= 2 {
		acc += uint64(native.Uint16(b))
		b = b[2:]
	}
	if bits.UintSize == 64 && len(b) >= 64 {
		if uintptr(unsafe.Pointer(unsafe.SliceData(b)))&4 != 0 {
			acc += uint64(native.Uint32(b))
			b = b[4:]
		}
		w := unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/8)
		b = b[len(w)*8:]
		acc = sumWords(w, acc)
	}
	if len(b) >= 32 {
		w := unsafe.Slice((*uint32)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/32*8)
		b = b[len(w)*4:]
		var acc2 uint64
		for len(w) >= 8 {
			acc += uint64(w[0])
			acc2 += uint64(w[1])
			acc += uint64(w[2])
			acc2 += uint64(w[3])
			acc += uint64(w[4])
			acc2 += uint64(w[5])
			acc += uint64(w[6])
			acc2 += uint64(w[7])
			w = w[8:]
		}
		acc += acc2
	}
	return sumShort(b, acc)
}

// sumShort is sumPlain for few octets, which start at a multiple of four unless anyAddress.
func sumShort(b []byte, acc uint64) uint64 {
	for _, v := range unsafe.Slice((*uint32)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/4) {
		acc += uint64(v)
	}
	b = b[len(b)&^3:]
	if len(b) >= 2 {
		acc += uint64(native.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		acc += lastOctet(b[0])
	}
	return acc
}

// sumWords adds w to acc with end-around carry, eight octets per addition, and brings
// the sum to 33 bits, so that there is room again for what comes to it.
func sumWords(w []uint64, acc uint64) uint64 {
	var acc2, c, c2, carries uint64
	for len(w) >= 8 {
		acc, c = bits.Add64(acc, w[0], 0)
		acc, c = bits.Add64(acc, w[1], c)
		acc, c = bits.Add64(acc, w[2], c)
		acc, c = bits.Add64(acc, w[3], c)
		carries += c
		acc2, c2 = bits.Add64(acc2, w[4], 0)
		acc2, c2 = bits.Add64(acc2, w[5], c2)
		acc2, c2 = bits.Add64(acc2, w[6], c2)
		acc2, c2 = bits.Add64(acc2, w[7], c2)
		carries += c2
		w = w[8:]
	}
	acc, c = bits.Add64(acc, acc2, 0)
	carries += c
	acc, c = bits.Add64(acc, carries, 0)
	acc += c
	for _, v := range w {
		acc, c = bits.Add64(acc, v, 0)
		acc += c
	}
	return acc>>32 + acc&0xffffffff
}

// lastOctet is the word of an octet that a zero follows.
func lastOctet(b byte) uint64 {
	return uint64(native.Uint16([]byte{b, 0}))
}

// fold brings a sum to 16 bits with end-around carry. It is 0 only for a sum of zeros.
func fold(acc uint64) uint16 {
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>16 + acc&0xffff
	acc = acc>>16 + acc&0xffff
	return uint16(acc>>16 + acc&0xffff)
}

// putIPv4Checksum fills in the checksum of the IPv4 header h.
func putIPv4Checksum(h []byte) {
	native.PutUint16(h[10:], 0)
	native.PutUint16(h[10:], ^fold(sumBytes(h, 0)))
}

// sumPseudoHeader is the sum of a packet's addresses, its protocol, and the n octets
// behind its IP header (RFC 9293 section 3.1, RFC 8200 section 8.1).
func sumPseudoHeader(p []byte, v6 bool, proto uint8, n int) uint64 {
	acc := uint64(networkPort(uint16(proto))) + uint64(networkPort(uint16(n)))
	if v6 {
		return sumBytes(p[8:40], acc)
	}
	return sumBytes(p[12:20], acc)
}
