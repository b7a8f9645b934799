package platform

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// asWord is a folded sum as it stands in a packet: what the machine's byte order is does not
// matter for it.
func asWord(sum uint64) uint16 {
	var b [2]byte
	native.PutUint16(b[:], fold(sum))
	return binary.BigEndian.Uint16(b[:])
}

// refSums are the checksums of RFC 1071 of b[:0], b[:1] and so on to all of b, one octet after
// the other.
func refSums(b []byte) []uint16 {
	sums := make([]uint16, 1, len(b)+1)
	var sum uint32
	for i, v := range b {
		if i%2 == 0 {
			sum += uint32(v) << 8
		} else {
			sum += uint32(v)
		}
		sum = sum>>16 + sum&0xffff
		sums = append(sums, uint16(sum))
	}
	return sums
}

// sums are the ways to sum up octets.
var sums = []struct {
	name string
	sum  func(b []byte, acc uint64) uint64
}{
	{"sumBytes", sumBytes},
	{"sumPlain", sumPlain},
}

func TestSumOfAnyAlignmentAndLength(t *testing.T) {
	const longest, addresses = 9000, 33
	r := rand.New(rand.NewPCG(1, 2))
	for _, c := range []struct {
		name string
		room []byte
	}{
		{"random octets", random(r, longest+addresses)},
		{"ones", bytes.Repeat([]byte{0xff}, longest+addresses)},
		{"zeros", make([]byte, longest+addresses)},
	} {
		for at := range addresses {
			want := refSums(c.room[at : at+longest])
			for n := range longest + 1 {
				for _, s := range sums {
					if got := asWord(s.sum(c.room[at:at+n], 0)); got != want[n] {
						t.Fatalf("%s of %d %s at address %d is %04x, want %04x", s.name, n, c.name, at, got, want[n])
					}
				}
			}
		}
	}
	if got := fold(sumBytes(bytes.Repeat([]byte{0xff}, maxPacket+1), 1<<40)); got == 0 {
		t.Error("a sum of many ones folded to 0")
	}
}

// The pages around what is summed up may be another's, or nobody's.
func TestSumReadsNothingElse(t *testing.T) {
	page := betweenHoles(t)
	for n := range 300 {
		for _, b := range [][]byte{page[:n], page[len(page)-n:]} {
			for _, s := range sums {
				if got := s.sum(b, 1); got != 1 {
					t.Fatalf("%s of %d zeros on top of 1 is %d", s.name, n, got)
				}
			}
		}
	}
}

// betweenHoles returns a page of zeros between two that nobody may read or write.
func betweenHoles(t *testing.T) []byte {
	size := os.Getpagesize()
	m, err := unix.Mmap(-1, 0, 3*size, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(m) })
	page := m[size : 2*size : 2*size]
	if err := unix.Mprotect(page, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		t.Fatal(err)
	}
	return page
}

// FuzzSum sums up octets at any address, on top of any sum.
func FuzzSum(f *testing.F) {
	f.Add([]byte{}, uint8(0), uint64(0))
	f.Add(bytes.Repeat([]byte{0xff}, 127), uint8(2), uint64(1<<40))
	f.Add(random(rand.New(rand.NewPCG(5, 6)), 1448), uint8(7), uint64(0xffff))
	f.Fuzz(func(t *testing.T, b []byte, at uint8, acc uint64) {
		acc >>= 16 // as much as a sum of sums can be
		b = append(make([]byte, at, int(at)+len(b)), b...)[at:]
		before := binary.BigEndian.AppendUint16(nil, asWord(acc))
		want := refChecksum(before, b)
		for _, s := range sums {
			if got := asWord(s.sum(b, acc)); got != want {
				t.Errorf("%s of %d octets at address %d on top of %x is %04x, want %04x", s.name, len(b), at, acc, got, want)
			}
		}
	})
}
