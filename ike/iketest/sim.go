// Package iketest runs IKE machines against each other in virtual time: over a network
// that loses, repeats, delays and reorders datagrams, through NATs that change their
// mind, across partitions and restarts. Each host keeps a real SAD out of the machine's
// outputs and sends real ESP through it, so that two sides which believe in a CHILD SA
// have to prove that they mean the same one.
//
// Everything random comes from the seed: a seed that fails fails again, and its run can
// be told as a ladder of messages.
package iketest

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"postern/ike"
)

// Sim is one simulated network with its hosts. It is for one goroutine.
type Sim struct {
	Seed uint64
	Rand *rand.Rand // for whoever writes a scenario

	// Block, if it is set, tells between which addresses nothing passes.
	Block func(src, dst netip.Addr) bool
	// Names is the DNS; a name without addresses is one that cannot be resolved.
	Names map[string][]netip.Addr

	// IgnoreEvents leaves it unchecked whether the machines' events agree with their tables.
	IgnoreEvents bool
	// Several lets a child have several CHILD SAs, where there are lanes.
	Several bool

	now     time.Duration
	queue   eventQueue
	order   uint64
	err     error
	ladder  *ladder
	hosts   []*Host
	links   map[[2]*Host]*Link
	packets []*packet
	flying  int // IKE datagrams on their way
	working int // jobs that have not come back

	datagrams uint64
	stats     Stats
}

// Stats counts what has happened in a simulation, so that a test can tell that it tested
// something.
type Stats struct {
	Sent, Lost, Doubled, Overtaken int // IKE datagrams
	Fragments                      int // of those sent: parts of a message
	Packets, Opened                int // inner packets sealed, and accepted by the peer
	Stray                          int // ESP packets for an SA that has gone, or not come yet
	Installed                      int // CHILD SAs, counted on each side
	Jobs                           int
	Resumed                        int // IKE SAs that came about by a ticket, counted on each side
	Restarted                      int // peers whose restart was proved
	Roamed                         int // moves of IKE SAs to another path of ours
	Redirected                     int // clients sent away, and being sent away
	Loops                          int // redirects that were not followed, because there had been too many
	Acquired                       int // packets that asked for an SA
	Grown                          int // packets that asked for an SA for their lane
	Idle                           int // SAs closed because nothing passed
	Reauths                        int // attempts to authenticate anew
	Mixed                          int // IKE SAs with a post-quantum pre-shared key in their keys, in the end
}

// Link is one direction of the way between two hosts. Each datagram takes Delay and a
// random part of Jitter, so that those sent within Jitter overtake each other.
type Link struct {
	Loss, Dup     float64 // probabilities
	Delay, Jitter time.Duration
	Cut           bool // nothing passes
}

// New makes a simulation. With trace it writes down what happens, for Ladder; that
// changes nothing of it.
func New(seed uint64, trace bool) *Sim {
	s := &Sim{
		Seed:  seed,
		Rand:  rand.New(rand.NewPCG(seed, 0x706f737465726e)),
		links: map[[2]*Host]*Link{},
	}
	if trace {
		s.ladder = &ladder{}
	}
	return s
}

// Now returns the virtual time since the simulation began.
func (s *Sim) Now() time.Duration { return s.now }

// Err returns the first violation of an invariant, or nil.
func (s *Sim) Err() error { return s.err }

// Stats returns the counters.
func (s *Sim) Stats() Stats { return s.stats }

// Fail notes a violation, with the time. Only the first one counts; Run stops at it.
func (s *Sim) Fail(format string, args ...any) {
	if s.err == nil {
		s.err = fmt.Errorf("%v: %s", s.now.Round(time.Millisecond), fmt.Sprintf(format, args...))
		s.note("FAIL: %s", fmt.Sprintf(format, args...))
	}
}

// Link returns the direction from one host to another.
func (s *Sim) Link(from, to *Host) *Link {
	k := [2]*Host{from, to}
	if s.links[k] == nil {
		s.links[k] = &Link{Delay: 10 * time.Millisecond}
	}
	return s.links[k]
}

// After runs f when the delay d has passed.
func (s *Sim) After(d time.Duration, f func()) {
	s.order++
	heap.Push(&s.queue, event{s.now + max(d, 0), s.order, f})
}

// Run lets virtual time pass until the given time, or until something is wrong.
func (s *Sim) Run(until time.Duration) error {
	for s.err == nil && len(s.queue) > 0 && s.queue[0].at <= until {
		e := heap.Pop(&s.queue).(event)
		s.now = e.at
		e.run()
	}
	if s.err == nil {
		s.now = max(s.now, until)
	}
	return s.err
}

// RunUntil lets virtual time pass until the condition holds, looking after every step of
// a second, and tells whether it came to hold within the limit.
func (s *Sim) RunUntil(limit time.Duration, cond func() bool) bool {
	end := s.now + limit
	for s.err == nil && !cond() {
		if s.now >= end {
			return false
		}
		if s.Run(min(s.now+time.Second, end)) != nil {
			return false
		}
	}
	return s.err == nil
}

// Quiet tells whether nothing is going on: no IKE datagram on its way, no job out, no
// exchange running or waiting, and no SA between states.
func (s *Sim) Quiet() bool {
	if s.flying > 0 || s.working > 0 {
		return false
	}
	for _, h := range s.hosts {
		if !h.quiet() {
			return false
		}
	}
	return true
}

// between returns a random duration in [0, d).
func (s *Sim) between(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return time.Duration(s.Rand.Int64N(int64(d)))
}

func (s *Sim) chance(p float64) bool { return p > 0 && s.Rand.Float64() < p }

// note writes a line into the ladder.
func (s *Sim) note(format string, args ...any) {
	if s.ladder != nil {
		s.ladder.add(s.now, fmt.Sprintf(format, args...))
	}
}

// Ladder returns what happened, line by line; empty without trace.
func (s *Sim) Ladder() string {
	if s.ladder == nil {
		return ""
	}
	return s.ladder.String()
}

// event is something that is due.
type event struct {
	at    time.Duration
	order uint64 // of its making: events of one time run in that order
	run   func()
}

type eventQueue []event

func (q eventQueue) Len() int      { return len(q) }
func (q eventQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q eventQueue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].order < q[j].order
}
func (q *eventQueue) Push(x any) { *q = append(*q, x.(event)) }
func (q *eventQueue) Pop() any {
	old := *q
	e := old[len(old)-1]
	old[len(old)-1] = event{}
	*q = old[:len(old)-1]
	return e
}

// work runs a job after the time that the host takes for one.
func (s *Sim) work(h *Host, w *ike.Work) {
	s.working++
	s.stats.Jobs++
	epoch := h.epoch
	s.After(s.between(h.WorkTime), func() {
		s.working--
		if h.epoch != epoch {
			return // it was another life of the host
		}
		r := w.Run()
		h.step(func(now ike.Time) { h.M.Done(now, r) })
	})
}
