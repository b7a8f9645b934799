//go:build linux

package e2e

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// vitals is what a process holds of the system.
type vitals struct {
	rss, peak   int // KiB resident: now, and at most so far
	threads     int
	descriptors int
}

func (v vitals) String() string {
	return fmt.Sprintf("%d KiB resident (at most %d so far), %d threads, %d descriptors", v.rss, v.peak, v.threads, v.descriptors)
}

// vitals reads them; zero values if the process has ended.
func (p *process) vitals() vitals {
	var v vitals
	dir := fmt.Sprintf("/proc/%d/", p.cmd.Process.Pid)
	b, _ := os.ReadFile(dir + "status")
	for line := range strings.SplitSeq(string(b), "\n") {
		name, rest, _ := strings.Cut(line, ":")
		n, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(rest, "kB")))
		if err != nil {
			continue
		}
		switch name {
		case "VmRSS":
			v.rss = n
		case "VmHWM":
			v.peak = n
		case "Threads":
			v.threads = n
		}
	}
	fds, _ := os.ReadDir(dir + "fd")
	v.descriptors = len(fds)
	return v
}

// counters asks postern for its counters.
func (d *postern) counters() map[string]int {
	d.t.Helper()
	out, err := rawOurs(d, "--stats", "")
	if err != nil {
		d.t.Fatalf("stats: %v\n%s%s", err, out, logs(d))
	}
	_, text, ok := strings.Cut(out, "{")
	root, err := parseRaw(strings.TrimSuffix(strings.TrimSpace(text), "}"))
	if !ok || err != nil {
		d.t.Fatalf("what stats says cannot be read: %v\n%s", err, out)
	}
	n := map[string]int{}
	for i, name := range root.names {
		if name == "counters" {
			for k, v := range root.sections[i].values {
				n[k] = atoi(v)
			}
		}
	}
	if len(n) == 0 {
		d.t.Fatalf("stats shows no counters:\n%s", out)
	}
	return n
}

// rawSender sends whole IPv4 packets from wan, whatever their source.
type rawSender struct {
	fd   int
	sent atomic.Int64
}

func (s *site) rawSender() *rawSender {
	s.t.Helper()
	r := new(rawSender)
	if err := inNamespace(s.wan, func() (err error) {
		r.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	}); err != nil {
		s.t.Fatalf("raw socket in wan: %v", err)
	}
	s.t.Cleanup(func() { unix.Close(r.fd) })
	return r
}

// send sends a packet to gwb; the kernel completes its header. A full queue is no error.
func (r *rawSender) send(pkt []byte) error {
	err := unix.Sendto(r.fd, pkt, 0, &unix.SockaddrInet4{Addr: gwB4.As4()})
	switch err {
	case nil:
		r.sent.Add(1)
	case unix.ENOBUFS, unix.EAGAIN, unix.EINTR, unix.ENOMEM:
		err = nil
	}
	return err
}

// ipv4To makes an IPv4 packet to gwb.
func ipv4To(src [4]byte, proto byte, body []byte) []byte {
	b := make([]byte, 20, 20+len(body))
	b[0], b[8], b[9] = 0x45, 64, proto
	copy(b[12:], src[:])
	dst := gwB4.As4()
	copy(b[16:], dst[:])
	b = append(b, body...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	return b
}

// udpTo makes a UDP packet to a port of gwb, without a checksum.
func udpTo(src [4]byte, from, to uint16, body []byte) []byte {
	u := make([]byte, 8, 8+len(body))
	binary.BigEndian.PutUint16(u[0:], from)
	binary.BigEndian.PutUint16(u[2:], to)
	binary.BigEndian.PutUint16(u[4:], uint16(8+len(body)))
	return ipv4To(src, 17, append(u, body...))
}

// hostile makes the packets of the flood, one kind after the other, from addresses of
// 198.18.0.0/15, which is set aside for such tests (RFC 2544).
type hostile struct {
	rnd     *rand.Rand
	inits   [][]byte // valid IKE_SA_INIT requests
	replays [][]byte // packets of the peer's that have arrived before
	spi     uint32   // of the tunnel under attack
	kind    int
}

// hostileKinds are the kinds of packets, in their order.
var hostileKinds = []string{
	"random octets to 500", "random octets to 4500", "ESP of unknown SPIs in UDP", "ESP of unknown SPIs", "replays",
	"IKE_SA_INIT to 500", "IKE_SA_INIT to 4500", "IKE_AUTH of unknown SAs", "truncated messages", "keepalives", "forged ESP of the tunnel",
}

func newHostile(seed uint64, replays [][]byte, spi uint32) *hostile {
	h := &hostile{rnd: rand.New(rand.NewPCG(seed, 0x5eed)), replays: replays, spi: spi, kind: int(seed)}
	for range 64 {
		h.inits = append(h.inits, ikeInit(1))
	}
	return h
}

func (h *hostile) random(n int) []byte {
	b := make([]byte, n)
	for i := 0; i < n; i += 8 {
		var w [8]byte
		binary.LittleEndian.PutUint64(w[:], h.rnd.Uint64())
		copy(b[i:], w[:])
	}
	return b
}

// init returns a request that nobody has sent before.
func (h *hostile) init() []byte {
	b := slices.Clone(h.inits[h.rnd.IntN(len(h.inits))])
	binary.BigEndian.PutUint64(b, h.rnd.Uint64()|1)
	binary.BigEndian.PutUint64(b[len(b)-8:], h.rnd.Uint64()) // the end of the nonce
	return b
}

// packet returns the next packet.
func (h *hostile) packet() []byte {
	src := [4]byte{198, byte(18 + h.rnd.IntN(2)), byte(h.rnd.IntN(256)), byte(1 + h.rnd.IntN(254))}
	port := uint16(1024 + h.rnd.IntN(60000))
	marker := make([]byte, 4)
	esp := func() []byte {
		b := h.random(16 + h.rnd.IntN(1300))
		b[0] |= 1 // not the marker
		return b
	}
	h.kind++
	switch h.kind % len(hostileKinds) {
	case 0:
		return udpTo(src, port, 500, h.random(h.rnd.IntN(1400)))
	case 1:
		return udpTo(src, port, 4500, h.random(h.rnd.IntN(1400)))
	case 2:
		return udpTo(src, port, 4500, esp())
	case 3:
		return ipv4To(src, 50, esp())
	case 4:
		return slices.Clone(h.replays[h.rnd.IntN(len(h.replays))])
	case 5:
		return udpTo(src, port, 500, h.init())
	case 6:
		return udpTo(src, port, 4500, append(marker, h.init()...))
	case 7:
		m := ikeMessage(h.rnd.Uint64(), exAuth, 0x20, 46, payload(35, h.random(16+h.rnd.IntN(600))))
		binary.BigEndian.PutUint64(m[8:], h.rnd.Uint64())
		m[23] = 1
		return udpTo(src, port, 4500, append(marker, m...))
	case 8:
		m := h.init()
		n := h.rnd.IntN(len(m))
		if n >= 28 && n%2 == 0 { // half of them say the length that they have
			binary.BigEndian.PutUint32(m[24:], uint32(n))
		}
		return udpTo(src, port, 500, m[:n])
	case 9:
		return udpTo(src, port, 4500, []byte{0xff})
	}
	b := esp()
	binary.BigEndian.PutUint32(b, h.spi)
	return udpTo(gwA4.As4(), 4500, 4500, b)
}

// What a daemon of the small board may take at most, and how much a flood may add to it.
const (
	floodPeakKiB    = 20 << 10
	floodGrowthKiB  = 8 << 10
	floodSlackKiB   = 2 << 10 // that the second half of the flood may add to the first
	floodThreads    = 6
	floodPeersLimit = 60 * time.Second // for the honest peer to get in
	floodLeast      = 5 * time.Second
)

// A gateway is flooded from the WAN with everything that reaches its sockets, as fast as
// the machine can. It takes no more memory, threads or descriptors for that, its tunnel
// goes on, and another peer that answers its cookies still gets in.
func TestFloodFromTheWAN(t *testing.T) {
	// Alone at first: it takes a processor for itself, which other tests would feel.
	need(t, "swanctl")
	s := newSite(t)
	ca, cb := pairSpecs(false, false)
	both(&ca, &cb, func(c *conn) { c.encap = true })
	cb.board = "small"
	guestB := cb.conns[0]
	guestB.name, guestB.remote, guestB.localID, guestB.remoteID = "guests", "%any", "b.example", "guest.example"
	guestB.psk = "thistle-harbour-twenty-two"
	guestB.children = []child{{name: "guest", localTS: []string{lanC4}, remoteTS: []string{"10.9.0.0/24"}, esp: usualESP, start: "none"}}
	cb.conns = append(cb.conns, guestB)
	guest := spec{retryTimeout: time.Second, retryTries: 30, retryBase: 1, conns: []conn{guestB}}
	g := &guest.conns[0]
	g.name, g.local, g.remote, g.localID, g.remoteID = "site", wanB4.String(), gwB4.String(), "guest.example", "b.example"
	g.children = []child{{name: "guest", localTS: []string{"10.9.0.0/24"}, remoteTS: []string{lanC4}, esp: usualESP, start: "none"}}
	// Answers to the flood's senders go nowhere.
	s.ip(s.wan, "route add blackhole 198.18.0.0/15\naddr add 10.9.0.10/32 dev lo\n")
	a, bd := startPair(s, pair{"postern", "postern"}, ca, cb)
	b := bd.(*postern)
	w := startPostern(s, 'w', guest)
	mustInitiate(t, "net", a, b)

	rec := s.capture()
	s.mustPing(t, false, a, b)
	var replays [][]byte
	for _, k := range rec.stop() {
		if k.link == "a0" && k.fromGateway("a0") && isESP(k) {
			b := k.data[14:]
			b[26], b[27] = 0, 0 // on such a link the UDP checksum was not yet made
			replays = append(replays, b)
		}
	}
	if len(replays) < 5 {
		t.Fatalf("only %d packets to replay were recorded", len(replays))
	}
	spi, _ := parseSPI(installed(t, b, "net").spiIn)
	ping := s.startPinger(s.lanA, hostB4, 50)
	time.Sleep(500 * time.Millisecond)
	before, counted, lines := b.p.vitals(), b.counters(), len(strings.Split(b.log(), "\n"))

	flood := s.rawSender()
	var stop atomic.Bool
	var senders sync.WaitGroup
	senders.Go(func() {
		h := newHostile(1, replays, spi)
		for !stop.Load() {
			if err := flood.send(h.packet()); err != nil {
				t.Errorf("the flood: %v", err)
				return
			}
		}
	})
	worst := before
	var half atomic.Int64 // KiB at most until then
	var watch sync.WaitGroup
	watch.Go(func() {
		for !stop.Load() {
			v := b.p.vitals()
			worst = vitals{max(worst.rss, v.rss), max(worst.peak, v.peak), max(worst.threads, v.threads), max(worst.descriptors, v.descriptors)}
			time.Sleep(20 * time.Millisecond)
		}
	})
	begin := time.Now()
	time.AfterFunc(floodLeast/2, func() { half.Store(int64(b.p.vitals().peak)) })
	time.Sleep(time.Second) // by now there are more half-open IKE SAs than go without a cookie
	pinged := ping.answers()
	in := make(chan error, 1)
	go func() { in <- w.initiate("guest") }()
	select {
	case err := <-in:
		if err != nil {
			t.Errorf("an honest peer does not get in during the flood: %v%s", err, logs(w, b))
		}
	case <-time.After(floodPeersLimit):
		t.Errorf("an honest peer does not get in during %v of flood%s", floodPeersLimit, logs(w, b))
	}
	gotIn := time.Since(begin) - time.Second
	through := s.pings(s.wan, hostC4, 20, echoOptions{from: guestA4})
	time.Sleep(time.Until(begin.Add(floodLeast)))
	took := time.Since(begin)
	pinged = ping.answers() - pinged
	stop.Store(true)
	senders.Wait()
	watch.Wait()
	sent := flood.sent.Load()
	result := ping.stop()
	time.Sleep(300 * time.Millisecond)
	after, now := b.p.vitals(), b.counters()

	t.Logf("%d packets in %.1f s, %.0f a second; an honest peer got in within %.2f s; through its tunnel, %d of %d pings; through the first, %d of %d",
		sent, took.Seconds(), float64(sent)/took.Seconds(), gotIn.Seconds(), through.answered, through.sent, result.answered, result.sent)
	t.Logf("before: %v", before)
	t.Logf("worst:  %v; in the first half %d KiB", worst, half.Load())
	t.Logf("after:  %v", after)
	var told []string
	for _, k := range slices.Sorted(maps.Keys(now)) {
		if d := now[k] - counted[k]; d != 0 {
			told = append(told, fmt.Sprintf("%s %d", k, d))
		}
	}
	t.Logf("counters: %s", strings.Join(told, ", "))

	if !b.alive() || after.rss == 0 {
		t.Fatalf("postern has ended%s", logs(b))
	}
	if max(worst.peak, after.peak) > floodPeakKiB || worst.rss-before.rss > floodGrowthKiB {
		t.Errorf("memory: before %v, at worst %v; want %d KiB at most, and %d more than before at most", before, worst, floodPeakKiB, floodGrowthKiB)
	}
	if first := int(half.Load()); first == 0 || worst.peak > first+floodSlackKiB {
		t.Errorf("memory: %d KiB at most in the first %v of the flood, %d in all of it: it goes on to grow", first, floodLeast/2, worst.peak)
	}
	if worst.threads > before.threads+floodThreads {
		t.Errorf("threads: before %d, at worst %d; want %d more at most", before.threads, worst.threads, floodThreads)
	}
	if worst.descriptors > before.descriptors+6 || after.descriptors > before.descriptors+1 {
		t.Errorf("descriptors: before %d, at worst %d, after %d; want no more afterwards", before.descriptors, worst.descriptors, after.descriptors)
	}
	if result.answered*2 < result.sent || pinged == 0 {
		t.Errorf("through the tunnel, %v; want half of them at least%s", result, logs(b))
	}
	if through.answered*2 < through.sent {
		t.Errorf("through the honest peer's tunnel, %v; want half of them at least", through)
	}
	for _, c := range []string{"in_drop_unknown_spi", "in_drop_replay", "in_drop_auth", "in_drop_short", "in_keepalives", "ike_in", "ike_drop_short"} {
		if now[c] == counted[c] {
			t.Errorf("the counter %s has not moved, and the flood had what it counts", c)
		}
	}
	if n := len(strings.Split(b.log(), "\n")) - lines; n > 80 {
		t.Errorf("the flood made %d log lines, want a few%s", n, logs(b))
	}
	if n := len(matching(b.log(), "cookie")); n == 0 {
		t.Errorf("postern's log does not say that cookies are asked for%s", logs(b))
	}
	s.mustPing(t, false, a, b)
	t.Parallel() // what follows is but waiting
	// What the flood has opened half goes away by itself, so that strangers find room again;
	// the two IKE SAs stay.
	if !eventually(60*time.Second, func() bool {
		sas, err := listSAs(b)
		return err == nil && len(sas) == 2
	}) {
		sas, err := listSAs(b)
		t.Errorf("a minute after the flood postern has %d IKE SAs (%v), want the 2 of its peers", len(sas), err)
	}
}

// Carrying bulk makes no garbage: the collector has nothing to do.
func TestBulkMakesNoGarbage(t *testing.T) {
	p := pair{"postern", "postern"}
	ready(t, p, "iperf3")
	s := newSite(t)
	ca, cb := pairSpecs(false, false)
	both(&ca, &cb, func(c *conn) { c.encap = true })
	var ds [2]*postern
	for i, c := range []spec{ca, cb} {
		ds[i] = newPostern(s, byte('a'+i), c)
		ds[i].env = []string{"GODEBUG=gctrace=1"}
		ds[i].start()
	}
	a, b := ds[0], ds[1]
	mustInitiate(t, "net", a, b)
	s.mustPing(t, false, a, b)
	runs := func(d *postern) (n int) {
		for _, line := range matching(d.log(), "gc ", "@", "clock") {
			if strings.HasPrefix(line, "gc ") {
				n++
			}
		}
		return n
	}
	beforeA, beforeB := runs(a), runs(b)
	r, err := s.iperf3(hostB4, "-t", "3")
	if err != nil {
		t.Fatalf("TCP through the tunnel: %v%s", err, logs(a, b))
	}
	gcA, gcB := runs(a)-beforeA, runs(b)-beforeB
	t.Logf("%.0f Mbit/s for 3 s; the collector ran %d times in the sender (%d before), %d times in the receiver (%d before)", r.mbits, gcA, beforeA, gcB, beforeB)
	if gcA > 4 || gcB > 4 {
		t.Errorf("the collector ran %d and %d times during 3 s of bulk, want 4 at most: a packet makes garbage", gcA, gcB)
	}
	if beforeA == 0 || beforeB == 0 { // each start makes one, which shows that they show
		t.Errorf("no collection shows in what the daemons print: GODEBUG=gctrace=1 has not reached them%s", logs(a))
	}
}
