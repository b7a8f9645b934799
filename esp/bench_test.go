package esp

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"fmt"
	"hash"
	"testing"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
)

// The benchmarks come in pairs of the same name: BenchmarkSeal/SUITE/SIZE beside
// BenchmarkBareSeal/SUITE/SIZE, and Open likewise. Bare is the cipher alone, with the HMAC
// where there is one, over the same octets of the same buffer.

var benchSizes = []int{64, 576, 1400}

func benchSuites(b *testing.B, run func(b *testing.B, s Suite, size int)) {
	for _, s := range allSuites() {
		// ESN costs the same under every cipher of a kind: one each is enough.
		if s.KeyBits == 192 || s.ESN && (s.KeyBits != 128 || s.Integ != IntegNone && s.Integ != IntegHMACSHA256_128) {
			continue
		}
		for _, size := range benchSizes {
			b.Run(fmt.Sprintf("%s/%d", testName(s), size), func(b *testing.B) {
				b.SetBytes(int64(size))
				b.ReportAllocs()
				run(b, s, size)
			})
		}
	}
}

// bare is a suite's cipher and HMAC as a program without ESP would hold them.
type bare struct {
	aead     cipher.AEAD
	enc, dec cbcMode
	mac      hash.Hash
	nonce    []byte
	iv       []byte
	tag      [64]byte
	icv      int
}

func newBare(b testing.TB, s Suite) *bare {
	sa := testSA(s, Out)
	c := &bare{nonce: make([]byte, 12), iv: make([]byte, 16), icv: s.shape().icv}
	var err error
	switch s.Encr {
	case EncrChaCha20Poly1305:
		c.aead, err = chacha20poly1305.New(sa.EncrKey[:32])
	case EncrAESGCM16:
		var block cipher.Block
		if block, err = aes.NewCipher(sa.EncrKey[:s.KeyBits/8]); err == nil {
			c.aead, err = cipher.NewGCM(block)
		}
	default:
		var block cipher.Block
		if block, err = aes.NewCipher(sa.EncrKey); err == nil {
			c.enc = cipher.NewCBCEncrypter(block, c.iv).(cbcMode)
			c.dec = cipher.NewCBCDecrypter(block, c.iv).(cbcMode)
			row, _ := s.Integ.row()
			c.mac = hmac.New(row.hash, sa.IntegKey)
		}
	}
	if err != nil {
		b.Fatal(err)
	}
	return c
}

// seal encrypts and authenticates the ciphertext pkt[front:tail], the ICV goes after it.
func (c *bare) seal(pkt []byte, front, tail int) {
	if c.aead != nil {
		c.aead.Seal(pkt[front:front], c.nonce, pkt[front:tail], pkt[:8])
		return
	}
	c.enc.SetIV(c.iv)
	c.enc.CryptBlocks(pkt[front:tail], pkt[front:tail])
	c.mac.Reset()
	c.mac.Write(pkt[:tail])
	copy(pkt[tail:tail+c.icv], c.mac.Sum(c.tag[:0]))
}

func (c *bare) open(pkt []byte, front, tail int) bool {
	if c.aead != nil {
		_, err := c.aead.Open(pkt[front:front], c.nonce, pkt[front:], pkt[:8])
		return err == nil
	}
	c.mac.Reset()
	c.mac.Write(pkt[:tail])
	if !hmac.Equal(pkt[tail:], c.mac.Sum(c.tag[:0])[:c.icv]) {
		return false
	}
	c.dec.SetIV(c.iv)
	c.dec.CryptBlocks(pkt[front:tail], pkt[front:tail])
	return true
}

// bounds returns where ciphertext and ICV lie in the packet of a payload of n octets.
func bounds(s Suite, n int) (front, tail, end int) {
	sh := s.shape()
	tail = sh.front + (n+trailerLen+sh.align-1)&^(sh.align-1)
	return sh.front, tail, tail + sh.icv
}

func BenchmarkSeal(b *testing.B) {
	benchSuites(b, func(b *testing.B, s Suite, size int) {
		o, _, _ := testPair(b, s, 64)
		buf := make([]byte, HeadRoom+size+TailRoom)
		for b.Loop() {
			if _, _, err := o.Seal(0, buf, HeadRoom, size, ProtoIPv4); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkBareSeal(b *testing.B) {
	benchSuites(b, func(b *testing.B, s Suite, size int) {
		c := newBare(b, s)
		front, tail, end := bounds(s, size)
		pkt := make([]byte, end)
		for b.Loop() {
			c.seal(pkt, front, tail)
		}
	})
}

// benchBatch is how many packets are opened between two readings of the clock. Opening
// destroys the packet, so that a fresh copy is needed each time, and copying is no part of
// what is measured.
const benchBatch = 32

func benchOpen(b *testing.B, size int, sealed [][]byte, open func(pkt []byte) bool, again func()) {
	work := make([][]byte, len(sealed))
	for i := range sealed {
		work[i] = make([]byte, len(sealed[i]))
	}
	var spent time.Duration
	n := 0
	for b.Loop() {
		n += len(work)
		for i := range work {
			copy(work[i], sealed[i])
		}
		again()
		from := time.Now()
		for _, pkt := range work {
			if !open(pkt) {
				b.Fatal("an authentic packet was rejected")
			}
		}
		spent += time.Since(from)
	}
	b.ReportMetric(float64(spent.Nanoseconds())/float64(n), "ns/op")
	b.ReportMetric(float64(size)*float64(n)/spent.Seconds()/1e6, "MB/s")
}

func BenchmarkOpen(b *testing.B) {
	benchSuites(b, func(b *testing.B, s Suite, size int) {
		o, in, _ := testPair(b, s, 64)
		sealed := make([][]byte, benchBatch)
		for i := range sealed {
			sealed[i] = seal(b, o, make([]byte, size), ProtoIPv4)
		}
		benchOpen(b, size, sealed, func(pkt []byte) bool {
			_, _, err := in.Open(0, pkt)
			return err == nil
		}, in.win.empty)
	})
}

// empty forgets what the window has seen, without allocating.
func (w *window) empty() {
	clear(w.ring)
	w.top.Store(0)
}

func BenchmarkBareOpen(b *testing.B) {
	benchSuites(b, func(b *testing.B, s Suite, size int) {
		c := newBare(b, s)
		front, tail, end := bounds(s, size)
		sealed := make([][]byte, benchBatch)
		for i := range sealed {
			sealed[i] = make([]byte, end)
			c.seal(sealed[i], front, tail)
		}
		benchOpen(b, size, sealed, func(pkt []byte) bool {
			return c.open(pkt, front, tail)
		}, func() {})
	})
}

func BenchmarkParseFlow(b *testing.B) {
	pkt := ipv4Packet(ProtoTCP, 0, 40)
	b.ReportAllocs()
	var f Flow
	for b.Loop() {
		if err := ParseFlow(pkt, true, &f); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkShare reports what share of the bare cipher's speed Seal and Open reach, in
// per cent. Both run in turns of one batch and the fastest batch of each counts, so that
// the figure holds on a machine that other programs use too.
func BenchmarkShare(b *testing.B) {
	benchSuites(b, func(b *testing.B, s Suite, size int) {
		b.SetBytes(0)
		o, in, _ := testPair(b, s, 64)
		c := newBare(b, s)
		front, tail, end := bounds(s, size)
		buf := make([]byte, HeadRoom+size+TailRoom)
		var ours, theirs, work [benchBatch][]byte
		for i := range ours {
			ours[i] = seal(b, o, make([]byte, size), ProtoIPv4)
			theirs[i], work[i] = make([]byte, end), make([]byte, end)
			c.seal(theirs[i], front, tail)
		}
		fastest := [4]time.Duration{1<<63 - 1, 1<<63 - 1, 1<<63 - 1, 1<<63 - 1}
		lap := func(i int, run func()) {
			from := time.Now()
			run()
			fastest[i] = min(fastest[i], time.Since(from))
		}
		for b.Loop() {
			lap(0, func() {
				for range benchBatch {
					if _, _, err := o.Seal(0, buf, HeadRoom, size, ProtoIPv4); err != nil {
						b.Fatal(err)
					}
				}
			})
			pkt := buf[HeadRoom-front:][:end]
			lap(1, func() {
				for range benchBatch {
					c.seal(pkt, front, tail)
				}
			})
			for i := range work {
				copy(work[i], ours[i])
			}
			in.win.empty()
			lap(2, func() {
				for _, pkt := range work {
					if _, _, err := in.Open(0, pkt); err != nil {
						b.Fatal(err)
					}
				}
			})
			for i := range work {
				copy(work[i], theirs[i])
			}
			lap(3, func() {
				for _, pkt := range work {
					if !c.open(pkt, front, tail) {
						b.Fatal("an authentic packet was rejected")
					}
				}
			})
		}
		b.ReportMetric(100*float64(fastest[1])/float64(fastest[0]), "%seal")
		b.ReportMetric(100*float64(fastest[3])/float64(fastest[2]), "%open")
	})
}
