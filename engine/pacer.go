package engine

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"time"

	"postern/esp"
	"postern/ike"
)

// pacer sends the packets of all streams, each at its time, and passes on what has waited for AGGFRAG
// payloads that did not come.
//
//  1. wait for the stream that is due first, as long as lead before its time
//  2. make its packets: whether there is anything to put into them must not show in when they leave
//  3. sleep the rest to the nanosecond, as far as the system can
//  4. send them
//
// The times are at equal distances, and a little later by chance; they follow from each other and
// not from when something was done. run is its goroutine; run and step are for it alone.
type pacer struct {
	d     *datapath
	sleep func(time.Duration) // precisely
	// random returns a number from 0 to n-1.
	random func(n int64) int64
	hurry  func()        // gives the thread precedence; nil: it has been, or cannot be
	woken  chan struct{} // there is something to do before its time

	bufs  [][]byte // for a burst; nil: there was no stream yet
	batch []esp.Datagram
	in    *inbound // for what has waited

	mu      sync.Mutex
	most    int // streams
	nBufs   int
	streams []*stream
	waiting []*unpacker // with payloads that wait for others before them
}

const (
	// lead is how long before their time packets are made.
	lead = 2 * time.Millisecond
	// leastTick is the least time between two bursts of a stream.
	leastTick = time.Millisecond
	// reorderWait is how long a payload waits for those before it.
	reorderWait = 50 * time.Millisecond
	// reorderWindow is how many may come before one that precedes them (RFC 9347 section 2.2.3).
	reorderWindow = 3
	// unpackRoom is what a reader has for packets out of AGGFRAG payloads until it writes them.
	unpackRoom = 32 << 10
)

func newPacer(d *datapath, streams, bufs int) *pacer {
	return &pacer{d: d, sleep: time.Sleep, random: rand.Int64N, woken: make(chan struct{}, 1), most: streams, nBufs: bufs}
}

// kick has the pacer look again at what is due.
func (p *pacer) kick() {
	select {
	case p.woken <- struct{}{}:
	default:
	}
}

// list returns the streams, which are the IKE loop's to read.
func (p *pacer) list() []*stream { return p.streams } // only the loop changes them

// room tells whether there may be another stream. While children change over to another configuration they
// have two.
func (p *pacer) room() bool { return len(p.streams) < 2*p.most }

func (p *pacer) add(s *stream) {
	p.mu.Lock()
	if p.bufs == nil {
		p.bufs = newPool(p.nBufs, p.d.pool.size).take(p.nBufs)
		p.batch = make([]esp.Datagram, 0, p.nBufs)
	}
	p.streams = append(p.streams, s)
	p.mu.Unlock()
}

// use has s go on through sa.
func (p *pacer) use(s *stream, sa *outSA) {
	p.mu.Lock()
	s.sa = sa
	p.mu.Unlock()
	p.kick()
}

// leave ends the use of sa, in favour of other, or the stream with it if that is nil.
func (p *pacer) leave(s *stream, sa, other *outSA) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.sa == sa {
		if s.sa = other; other != nil && other.standby {
			s.sa = nil
		}
	}
	if other == nil {
		s.gone.Store(true)
		if i := slices.Index(p.streams, s); i >= 0 {
			p.streams = slices.Delete(p.streams, i, i+1)
		}
	}
}

// await has u looked after until its payloads have waited long enough. The caller holds u's lock.
func (p *pacer) await(u *unpacker) {
	if u.queued {
		return
	}
	u.queued = true
	p.mu.Lock()
	p.waiting = append(p.waiting, u)
	p.mu.Unlock()
	p.kick()
}

// first returns the stream that is due first and the SA through which it sends (nil: none is),
// and when that or something else is due; 0: nothing is.
func (p *pacer) first(now time.Duration) (s *stream, sa *outSA, at time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, x := range p.streams {
		if x.sa == nil || x.stopped.Load() {
			continue
		}
		x.begin(now)
		if x.hide.Mode == ike.IPTFSCongestion {
			x.hasten(p.nBufs)
		}
		due := x.next
		if x.asked.Load() {
			due = now
		}
		if due != 0 && (at == 0 || due < at) {
			s, sa, at = x, x.sa, due
		}
	}
	return s, sa, at
}

// step sends what is due, or will be within lead, and returns when it is to be called again; 0: when it is
// kicked.
func (p *pacer) step(now time.Duration) time.Duration {
	again := p.giveUp(now)
	s, sa, at := p.first(now)
	if s == nil || at-now > lead {
		if s != nil && (again == 0 || at-lead < again) {
			again = at - lead
		}
		return again
	}
	n := len(p.bufs)
	aggregate := s.hide.Mode == ike.IPTFSAggregate
	if aggregate {
		s.asked.Store(false) // before looking what there is
		if packets, _ := s.pack.Queued(); packets == 0 && (s.next == 0 || s.next > now) {
			if again == 0 || s.next < again {
				again = s.next
			}
			return max(again, now)
		}
	} else {
		n, _ = s.burst(n)
	}
	if p.hurry != nil && !aggregate { // with the first packets that have to leave on time
		runtime.LockOSThread() // for good: it ends with the goroutine
		p.hurry()
		// A processor of Go's own, so that it does not wait until the workers let go of one of theirs.
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 1)
		p.hurry = nil
	}
	p.batch = s.seal(sa, n, max(at, now), p.bufs, p.batch[:0])
	work := -now
	if wait := at - p.d.clock(); wait > 0 {
		p.sleep(wait)
		work -= wait
	}
	if sock := s.path.sock; len(p.batch) > 0 {
		if len(p.d.socks[sock]) == 0 {
			p.d.counts.add(cOutNoSocket, uint64(len(p.batch)))
		} else {
			p.d.write(sock, 0, p.batch, cOutSendError)
		}
	}
	now = p.d.clock()
	if tick := s.follow(now, len(p.bufs)); tick > 0 && work+now > tick {
		p.sleep(work + now) // too slow for the rate: the others want a half of the processor
		now = p.d.clock()
	}
	s.watch(now)
	if packets, _ := s.pack.Queued(); aggregate && packets > 0 {
		s.asked.Store(true)
	}
	return now
}

// giveUp takes what has waited too long and returns when it is to be called again; 0: nothing waits.
func (p *pacer) giveUp(now time.Duration) (next time.Duration) {
	p.mu.Lock()
	list := p.waiting
	p.waiting = nil
	p.mu.Unlock()
	for _, u := range list {
		u.mu.Lock()
		at, ok := u.re.Deadline()
		if ok && at <= now {
			if p.in == nil {
				p.in = newInbound(p.d, sockNATT4, 0, make([][]byte, shareIKE))
			}
			p.in.now = now
			u.re.Tick(now)
			p.in.unpack(u)
			p.in.deliver()
			at, ok = u.re.Deadline()
		}
		u.queued = ok
		u.mu.Unlock()
		if !ok {
			continue
		}
		p.mu.Lock()
		p.waiting = append(p.waiting, u)
		p.mu.Unlock()
		if next == 0 || at < next {
			next = at
		}
	}
	return next
}

// run paces until stop is closed.
func (p *pacer) run(stop <-chan struct{}) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		now := p.d.clock()
		next := p.step(now)
		wait := idleWake
		if next != 0 {
			wait = max(next-p.d.clock(), 0)
		}
		timer.Reset(wait)
		select {
		case <-stop:
			return
		case <-p.woken:
		case <-timer.C:
		}
	}
}
