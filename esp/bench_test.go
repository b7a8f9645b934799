package esp

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"fmt"
	"runtime"
	"testing"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"postern/esp/ctaes"
)

// The benchmarks come in pairs of the same name: BenchmarkSeal/SUITE/SIZE beside
// BenchmarkBareSeal/SUITE/SIZE, and Open likewise. Bare is the cipher alone, with the HMAC
// where there is one, over the same octets of the same buffer. BenchmarkShare runs both sides
// by turns and reports the share that is left; on a busy machine it is the one to go by.

var benchSizes = []int{64, 576, 1400}

// benchBatch is how many packets are handled between two readings of the clock.
const benchBatch = 32

func benchSuites(b *testing.B, run func(b *testing.B, s Suite, size int)) {
	for _, s := range allSuites() {
		if benchSkips(s) {
			continue
		}
		for _, size := range benchSizes {
			b.Run(fmt.Sprintf("%s/%d", testName(s), size), func(b *testing.B) {
				b.ReportAllocs()
				run(b, s, size)
			})
		}
	}
}

// benchSkips tells which suites cost what others do: ESN is the same under every cipher of a kind,
// so that one each is enough.
func benchSkips(s Suite) bool {
	r, _ := s.Encr.row()
	if s.Encr == EncrNone {
		return s.Integ == IntegAES192GMAC || s.ESN && s.Integ != IntegHMACSHA256_128
	}
	return s.KeyBits == 192 || s.ESN && (s.KeyBits != 128 || s.Integ != IntegNone && s.Integ != IntegHMACSHA256_128 || r.implicit || r.icv%16 != 0)
}

// bare is a suite's cipher and MAC as a program without ESP would hold them: the library's, or
// package ctaes's where the library has none.
type bare struct {
	aead     cipher.AEAD
	enc, dec func(text []byte)
	mac      mac
	nonce    []byte
	tag      [64]byte
	icv      int
}

func newBare(b testing.TB, s Suite) *bare {
	sa := testSA(s, Out)
	row, _ := s.Encr.row()
	key := sa.EncrKey[:len(sa.EncrKey)-row.salt]
	c := &bare{icv: s.shape().icv, enc: func([]byte) {}, dec: func([]byte) {}}
	var err error
	block := func() (k cipher.Block) {
		k, err = aes.NewCipher(key)
		return k
	}
	switch {
	case row.kind == kindChaPoly:
		c.aead, err = chacha20poly1305.New(key)
	case row.kind == kindGCM && row.icv == 16:
		c.aead, err = cipher.NewGCM(block())
	case row.kind == kindGCM:
		c.aead, err = ctaes.NewGCMWithTagSize(key, row.icv)
	case row.kind == kindCCM:
		c.aead, err = ctaes.NewCCM(key, row.icv)
	case row.kind == kindGMAC:
		c.mac, err = ctaes.NewGMAC(key, make([]byte, 4))
	case row.kind == kindCBC:
		iv := make([]byte, 16)
		enc, dec := cipher.NewCBCEncrypter(block(), iv).(cbcMode), cipher.NewCBCDecrypter(block(), iv).(cbcMode)
		c.enc = func(text []byte) { enc.SetIV(iv); enc.CryptBlocks(text, text) }
		c.dec = func(text []byte) { dec.SetIV(iv); dec.CryptBlocks(text, text) }
	case row.kind == kindCTR:
		ctr, nonce := ctaes.NewCTR(block()), make([]byte, 12)
		c.enc = func(text []byte) { ctr.XORKeyStream(text, nonce) }
		c.dec = c.enc
	}
	if err == nil && c.aead == nil && c.mac == nil {
		integ, _ := s.Integ.row()
		c.mac, err = integ.newMAC(sa.IntegKey)
	}
	if err != nil {
		b.Fatal(err)
	}
	if c.aead != nil {
		c.nonce = make([]byte, c.aead.NonceSize())
	}
	return c
}

// seal encrypts and authenticates the ciphertext pkt[front:tail], the ICV goes after it.
func (c *bare) seal(pkt []byte, front, tail int) {
	if c.aead != nil {
		c.aead.Seal(pkt[front:front], c.nonce, pkt[front:tail], pkt[:8])
		return
	}
	c.enc(pkt[front:tail])
	c.mac.Reset()
	_, _ = c.mac.Write(pkt[:tail])
	copy(pkt[tail:tail+c.icv], c.mac.Sum(c.tag[:0]))
}

func (c *bare) open(pkt []byte, front, tail int) bool {
	if c.aead != nil {
		_, err := c.aead.Open(pkt[front:front], c.nonce, pkt[front:], pkt[:8])
		return err == nil
	}
	c.mac.Reset()
	_, _ = c.mac.Write(pkt[:tail])
	if !hmac.Equal(pkt[tail:], c.mac.Sum(c.tag[:0])[:c.icv]) {
		return false
	}
	c.dec(pkt[front:tail])
	return true
}

// bounds returns where ciphertext and ICV lie in the packet of a payload of n octets.
func bounds(s Suite, n int) (front, tail, end int) {
	sh := s.shape()
	tail = sh.front + (n+trailerLen+sh.align-1)&^(sh.align-1)
	return sh.front, tail, tail + sh.icv
}

// depths is at how many depths of the stack everything is measured. The assembly of AES-GCM is
// up to a third slower on a stack whose address suits it badly, and the depth of the calls
// decides that; without this, two ways of calling the same cipher would be compared.
const depths = 8

// deeper calls f from a stack that is deeper by some frames.
//
//go:noinline
func deeper(frames int, f func()) {
	if frames == 0 {
		f()
		return
	}
	deeper(frames-1, f)
	runtime.KeepAlive(&f)
}

// timeBatches measures run, which handles benchBatch packets, without prepare.
func timeBatches(b *testing.B, size int, prepare, run func()) {
	var spent time.Duration
	n := 0
	for frames := 0; b.Loop(); frames++ {
		prepare()
		deeper(frames%depths, func() {
			from := time.Now()
			run()
			spent += time.Since(from)
		})
		n += benchBatch
	}
	b.ReportMetric(float64(spent.Nanoseconds())/float64(n), "ns/op")
	b.ReportMetric(float64(size)*float64(n)/spent.Seconds()/1e6, "MB/s")
}

// sides is both sides of a comparison with what they work on. A run handles benchBatch
// packets. Opening destroys a packet, so that fresh copies are needed before.
type sides struct {
	seal, bareSeal, open, bareOpen func()
	fresh, bareFresh               func()
}

func newSides(b *testing.B, s Suite, size int) *sides {
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
	return &sides{
		seal: func() {
			for range benchBatch {
				if _, _, err := o.Seal(0, buf, HeadRoom, size, ProtoIPv4); err != nil {
					b.Fatal(err)
				}
			}
		},
		bareSeal: func() {
			for range benchBatch {
				c.seal(buf[HeadRoom-front:], front, tail)
			}
		},
		fresh: func() {
			for i := range work {
				copy(work[i], ours[i])
			}
			in.win.empty()
		},
		open: func() {
			for _, pkt := range work {
				if _, _, err := in.Open(0, pkt); err != nil {
					b.Fatal(err)
				}
			}
		},
		bareFresh: func() {
			for i := range work {
				copy(work[i], theirs[i])
			}
		},
		bareOpen: func() {
			for _, pkt := range work {
				if !c.open(pkt, front, tail) {
					b.Fatal("an authentic packet was rejected")
				}
			}
		},
	}
}

func BenchmarkSeal(b *testing.B) {
	benchSuites(b, func(b *testing.B, s Suite, size int) {
		timeBatches(b, size, func() {}, newSides(b, s, size).seal)
	})
}

func BenchmarkBareSeal(b *testing.B) {
	benchSuites(b, func(b *testing.B, s Suite, size int) {
		timeBatches(b, size, func() {}, newSides(b, s, size).bareSeal)
	})
}

func BenchmarkOpen(b *testing.B) {
	benchSuites(b, func(b *testing.B, s Suite, size int) {
		d := newSides(b, s, size)
		timeBatches(b, size, d.fresh, d.open)
	})
}

func BenchmarkBareOpen(b *testing.B) {
	benchSuites(b, func(b *testing.B, s Suite, size int) {
		d := newSides(b, s, size)
		timeBatches(b, size, d.bareFresh, d.bareOpen)
	})
}

// BenchmarkShare reports the speeds and what share of the bare cipher's Seal and Open reach, in
// per cent. Both run in turns of one batch and the fastest batch of each counts, so that
// the figure holds on a machine that other programs use too.
func BenchmarkShare(b *testing.B) {
	if before := ctaes.Current(); before == ctaes.Wide {
		defer ctaes.Use(before)
		_ = ctaes.Use(ctaes.Library) // which the bare cipher is, and which Wide would leave far behind
	}
	benchSuites(b, func(b *testing.B, s Suite, size int) {
		d := newSides(b, s, size)
		const none = time.Duration(1<<63 - 1)
		fastest := [4]time.Duration{none, none, none, none}
		for frames := 0; b.Loop(); frames++ {
			for i, run := range [4]func(){d.seal, d.bareSeal, d.open, d.bareOpen} {
				switch i {
				case 2:
					d.fresh()
				case 3:
					d.bareFresh()
				}
				deeper(frames%depths, func() {
					from := time.Now()
					run()
					fastest[i] = min(fastest[i], time.Since(from))
				})
			}
		}
		for i, name := range [4]string{"sealMB/s", "bareSealMB/s", "openMB/s", "bareOpenMB/s"} {
			b.ReportMetric(float64(size)*benchBatch/fastest[i].Seconds()/1e6, name)
		}
		b.ReportMetric(100*float64(fastest[1])/float64(fastest[0]), "%seal")
		b.ReportMetric(100*float64(fastest[3])/float64(fastest[2]), "%open")
	})
}

// empty forgets what the window has seen, without allocating.
func (w *window) empty() {
	clear(w.ring)
	w.top.Store(0)
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
