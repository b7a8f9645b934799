package iketest

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"postern/esp"
	"postern/ike"
	"postern/ike/pki/pkitest"
)

// handshakes are the variants that BenchmarkHandshake measures: IKE proposals, and what else the
// two sides have.
var handshakes = []struct {
	name, ike string
	change    func(a, b *ike.Config)
}{
	{"PSK, X25519", "aes128gcm16-prfsha256-x25519", nil},
	{"PSK, X25519 with ML-KEM-768", "aes128gcm16-prfsha256-x25519-ke1_mlkem768", nil},
	{"PSK, X25519, PPK", "aes128gcm16-prfsha256-x25519", withPPK},
	{"PSK, ECP-256", "aes128gcm16-prfsha256-ecp256", nil},
	{"PSK, MODP-2048", "aes128-sha256-modp2048", nil},
	{"ECDSA P-256, X25519", "aes128gcm16-prfsha256-x25519", withCerts(pkitest.P256)},
	{"ECDSA P-256, X25519 with ML-KEM-768", "aes128gcm16-prfsha256-x25519-ke1_mlkem768", withCerts(pkitest.P256)},
	{"RSA-2048, X25519", "aes128gcm16-prfsha256-x25519", withCerts(pkitest.RSA2048)},
	{"RSA-2048, X25519 with ML-KEM-768", "aes128gcm16-prfsha256-x25519-ke1_mlkem768", withCerts(pkitest.RSA2048)},
}

// withCerts lets both sides authenticate with a certificate of that kind, below an intermediate CA
// and a root of ECDSA P-256, without questions of revocation.
func withCerts(kind pkitest.Kind) func(a, b *ike.Config) {
	return func(a, b *ike.Config) {
		root := pkitest.Root("bench root")
		mid := root.Issue(pkitest.Spec{Name: "bench CA", CA: true, Kind: pkitest.P256})
		for _, c := range []*ike.Config{a, b} {
			conn := c.Conns[0]
			own := mid.Issue(pkitest.Spec{Name: conn.LocalID.Data, Kind: kind})
			conn.LocalAuth = []ike.Auth{{Kind: ike.AuthKindPubkey, Key: own.Key, Certs: own.Chain()}}
			conn.RemoteAuth = []ike.Auth{{Kind: ike.AuthKindPubkey}}
			c.Trust, c.Floor = pkitest.Trust(root), pkitest.From
		}
	}
}

// withPPK gives both sides a post-quantum pre-shared key that they must use.
func withPPK(a, b *ike.Config) {
	ppk := ike.PPK{ID: ike.PPKID{Type: ike.PPKIDFixed, Data: "bench"}, Key: make([]byte, 32)}
	for _, c := range []*ike.Config{a, b} {
		c.PPKs, c.Conns[0].PPK, c.Conns[0].PPKRequired = []ike.PPK{ppk}, ppk.ID, true
	}
}

// BenchmarkHandshake lets two machines come together, by IKE_SA_INIT and IKE_AUTH with a CHILD
// SA, and part again, over a wire that costs nothing, on one processor: run it with -cpu 1. Only
// coming together counts, with all cryptography of both sides. What each side needs is
// measured on its own: "responder/s" is one second by what the responder needs for one handshake,
// in the best of ten parts of the run, garbage collection included; so many handshakes one
// core of a gateway has time for. The same for the initiator. Allocations are those of both
// sides, octets and datagrams those of all messages, without UDP and IP headers.
func BenchmarkHandshake(b *testing.B) {
	for _, h := range handshakes {
		b.Run(h.name, func(b *testing.B) {
			w := newWire(b, h.ike, h.change)
			w.measured(3)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			w.together()
			runtime.ReadMemStats(&after)
			w.apart()
			b.ReportMetric(float64(w.octets), "octets")
			b.ReportMetric(float64(w.datagrams), "datagrams")
			b.ReportMetric(float64(after.Mallocs-before.Mallocs), "mallocs")
			const parts = 10
			var best [2]time.Duration
			for range parts {
				n := max(1, b.N/parts)
				w.ends[0].spent, w.ends[1].spent = 0, 0
				w.measured(n)
				for i := range w.ends {
					if d := w.ends[i].spent / time.Duration(n); best[i] == 0 || d < best[i] {
						best[i] = d
					}
				}
			}
			b.ReportMetric(float64(time.Second)/float64(best[0]), "initiator/s")
			b.ReportMetric(float64(time.Second)/float64(best[1]), "responder/s")
		})
	}
}

// TestHandshakesOfTheBenchmark checks that what the benchmark measures is a handshake.
func TestHandshakesOfTheBenchmark(t *testing.T) {
	for _, h := range handshakes {
		w := newWire(t, h.ike, h.change)
		w.measured(3)
		if w.datagrams < 4 || w.octets < 600 || w.octets > 8000 {
			t.Errorf("%s: %d datagrams with %d octets make a handshake", h.name, w.datagrams, w.octets)
		}
		for i := range w.ends {
			if w.ends[i].spent <= 0 || w.ends[i].added != 2*3 {
				t.Errorf("%s: end %d needs %v and has added %d SAs in 3 handshakes", h.name, i, w.ends[i].spent, w.ends[i].added)
			}
		}
	}
}

// wire is two machines and what is on its way between them.
type wire struct {
	t         testing.TB
	ends      [2]wireEnd
	now       ike.Time
	mute      bool // the time that calls take does not count
	datagrams int
	octets    int // of the last handshake, as datagrams
}

// wireEnd is one machine, with the least of surroundings.
type wireEnd struct {
	m     *ike.Machine
	rnd   *rand.ChaCha8
	addr  netip.Addr
	spis  uint32
	spent time.Duration
	added int
	tag   uint64 // of the last command that ended
	err   error
	mail  []ike.Output
}

func newWire(t testing.TB, proposal string, change func(a, b *ike.Config)) *wire {
	w := &wire{t: t, now: ike.Time{Mono: time.Hour, Wall: pkitest.From.AddDate(1, 0, 0)}}
	addrs := [2]netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}
	names := [2]string{"a.example", "b.example"}
	nets := [2]ike.TS{{Selector: esp.SelectorFromPrefix(netip.MustParsePrefix("10.1.0.0/24"))}, {Selector: esp.SelectorFromPrefix(netip.MustParsePrefix("10.2.0.0/24"))}}
	var cfg [2]ike.Config
	for i := range cfg {
		o := 1 - i
		cfg[i] = ike.Config{
			Conns: []*ike.Conn{{
				Name: connName, LocalAddrs: []netip.Addr{addrs[i]}, RemoteAddrs: []netip.Prefix{netip.PrefixFrom(addrs[o], 32)},
				LocalID: identity(names[i]), RemoteID: identity(names[o]), Proposals: proposals(ike.ProtoIKE, proposal),
				Children: []*ike.Child{{Name: "net", LocalTS: []ike.TS{nets[i]}, RemoteTS: []ike.TS{nets[o]},
					Proposals: proposals(ike.ProtoESP, "aes128gcm16"), ReplayWindow: 64}},
			}},
			Secrets: []ike.Secret{{Key: []byte("a shared secret for the benchmark")}},
		}
	}
	if change != nil {
		change(&cfg[0], &cfg[1])
	}
	for i := range w.ends {
		e := &w.ends[i]
		e.addr, e.rnd = addrs[i], rand.NewChaCha8([32]byte{byte(i)})
		e.m = ike.New(e, ike.Limits{IKESAs: 16, HalfOpen: 8, Cookies: 8, ChildSAs: 16})
	}
	for i := range w.ends {
		w.ends[i].m.Configure(w.now, cfg[i])
	}
	w.run()
	return w
}

// measured makes n handshakes, and counts the time until both have their SAs.
func (w *wire) measured(n int) {
	for range n {
		w.together()
		w.apart()
	}
}

// together makes a handshake.
func (w *wire) together() {
	w.datagrams, w.octets = 0, 0
	w.command(ike.Command{Kind: ike.CmdInitiate, Conn: connName})
}

// apart ends what together has made, without counting that.
func (w *wire) apart() {
	octets, datagrams := w.octets, w.datagrams
	w.mute = true
	w.command(ike.Command{Kind: ike.CmdTerminate, Conn: connName})
	w.now.Mono += time.Hour // for whoever counts how often a peer comes
	for i := range w.ends {
		w.ends[i].m.Timeout(w.now)
	}
	w.run()
	w.octets, w.datagrams, w.mute = octets, datagrams, false
}

func (w *wire) command(c ike.Command) {
	e := &w.ends[0]
	c.Tag = e.tag + 1
	w.call(e, func() { e.m.Command(w.now, c) })
	w.run()
	if e.tag != c.Tag || e.err != nil {
		w.t.Fatalf("the command ended with %v (%v)", e.err, e.tag == c.Tag)
	}
}

// call makes a call into a machine, or computes what it asks for, and counts the time.
func (w *wire) call(e *wireEnd, f func()) {
	start := time.Now()
	f()
	if !w.mute {
		e.spent += time.Since(start)
	}
}

// run carries datagrams until there are none.
func (w *wire) run() {
	for {
		for i := range w.ends {
			w.drain(&w.ends[i])
		}
		if len(w.ends[0].mail)+len(w.ends[1].mail) == 0 {
			return
		}
		for i := range w.ends {
			mail, to := w.ends[i].mail, &w.ends[1-i]
			w.ends[i].mail = nil
			for _, o := range mail {
				w.datagrams++
				w.octets += len(o.Data)
				p := ike.Path{Local: o.Path.Remote, Remote: o.Path.Local, NATT: o.Path.NATT}
				w.call(to, func() { to.m.Datagram(w.now, p, o.Data) })
				w.drain(to)
			}
		}
	}
}

// drain does what a machine asks for; its jobs at once, when it asks for nothing else.
func (w *wire) drain(e *wireEnd) {
	var jobs []*ike.Work
	for {
		o, ok := e.m.Next()
		switch {
		case !ok && len(jobs) == 0:
			return
		case !ok:
			job := jobs[0]
			jobs = jobs[1:]
			w.call(e, func() { e.m.Done(w.now, job.Run()) })
		case o.Kind == ike.OutSend:
			o.Data = append([]byte(nil), o.Data...)
			e.mail = append(e.mail, o)
		case o.Kind == ike.OutWork:
			jobs = append(jobs, o.Work)
		case o.Kind == ike.OutAddSA:
			e.added++
		case o.Kind == ike.OutEvent && o.Event.Kind == ike.EvDone:
			e.tag, e.err = o.Event.Tag, o.Event.Err
		}
	}
}

// The machine's surroundings.

func (e *wireEnd) Random(b []byte) { e.rnd.Read(b) }

func (e *wireEnd) AllocSPI(uint8) (uint32, bool) {
	e.spis++
	return binary.BigEndian.Uint32([]byte{1, byte(e.spis >> 16), byte(e.spis >> 8), byte(e.spis)}), true
}

func (e *wireEnd) FreeSPI(uint32) {}

func (e *wireEnd) Usage(uint32) (in, out esp.Usage, lastIn, lastOut time.Duration) { return }

func (e *wireEnd) Source(netip.Addr) (netip.Addr, bool) { return e.addr, true }

func (e *wireEnd) Addresses() ([]netip.Addr, bool) { return nil, false }
