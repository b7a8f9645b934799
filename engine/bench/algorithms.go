package bench

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"postern/esp"
)

// algorithms are what is measured, in the order in which it is shown.
var algorithms = []Algorithm{
	{Name: "AES-128-GCM", Suite: esp.Suite{Encr: esp.EncrAESGCM16, KeyBits: 128}},
	{Name: "AES-256-GCM", Suite: esp.Suite{Encr: esp.EncrAESGCM16, KeyBits: 256}},
	{Name: "ChaCha20-Poly1305", Suite: esp.Suite{Encr: esp.EncrChaCha20Poly1305}},
	{Name: "AES-128-CBC, HMAC-SHA256", Suite: esp.Suite{Encr: esp.EncrAESCBC, KeyBits: 128, Integ: esp.IntegHMACSHA256_128}},
}

// mostPackets is the length of a round: a batch of the largest profile fills the caches as
// much.
const mostPackets = 32

// pair returns both ends of an SA of the suite with fresh keys.
func pair(s esp.Suite) (*esp.Outbound, *esp.Inbound, error) {
	encr, integ := s.KeyLens()
	sa := &esp.SA{SPI: 0x706f7374, Suite: s, EncrKey: make([]byte, encr), IntegKey: make([]byte, integ), ReplayWindow: replayWindow, Encap: true}
	_, _ = rand.Read(sa.EncrKey)
	_, _ = rand.Read(sa.IntegKey)
	sa.Dir = esp.Out
	out, err := esp.NewOutbound(sa, 1)
	if err != nil {
		return nil, nil, err
	}
	sa.Dir = esp.In
	in, err := esp.NewInbound(sa, 1)
	if err != nil {
		return nil, nil, err
	}
	return out, in, nil
}

// replayWindow is what the configuration has unless told otherwise.
const replayWindow = 128

// measureSuite seals and opens packets with payloads of size octets.
func measureSuite(sys *System, s esp.Suite, size int, budget time.Duration, stop <-chan struct{}) (Cost, error) {
	out, in, err := pair(s)
	if err != nil {
		return Cost{}, err
	}
	defer out.Wipe()
	defer in.Wipe()
	var bufs, sealed [mostPackets][]byte
	room := (esp.HeadRoom + size + esp.TailRoom + 3) &^ 3
	memory := make([]byte, mostPackets*room)
	for i := range bufs {
		bufs[i] = memory[i*room : (i+1)*room]
	}
	frames := 0
	return measure(sys.Now, budget, mostPackets, stop, func(n int) (r round, err error) {
		deeper(frames%depths, func() {
			r.packets = n
			began := sys.Now()
			for i := range n {
				start, end, e := out.Seal(0, bufs[i], esp.HeadRoom, size, esp.ProtoIPv4)
				if e != nil {
					err = fmt.Errorf("%s does not seal: %w", s, e)
					return
				}
				sealed[i] = bufs[i][start:end]
			}
			between := sys.Now()
			for i := range n {
				if _, _, e := in.Open(0, sealed[i]); e != nil {
					err = fmt.Errorf("%s does not open what it sealed: %w", s, e)
					return
				}
			}
			r.seal, r.open = between-began, sys.Now()-between
		})
		frames++
		return r, err
	})
}

// depths is at how many depths of the stack everything is measured by turns: the assembly
// of AES-GCM is up to a third slower on a stack whose address suits it badly, and no
// transform shall have better luck than the others.
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

// The addresses of the packets on the path: from a documentation network (RFC 5737), to an
// address for experiments (RFC 4727 section 2.4.2) that no host forwards, answers or
// complains about, since its scope is the link.
var (
	pathSource = netip.AddrFrom4([4]byte{192, 0, 2, 1})
	pathTarget = netip.AddrFrom4([4]byte{224, 0, 0, 254})
)
