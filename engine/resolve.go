package engine

import (
	"context"
	"errors"
	"net/netip"
	"time"
)

// Lookups of peers' names. The machine says what to look up, goroutines of a bounded
// number do it, and the loop hands the answers back.

const (
	// lookupPatience bounds one lookup. Within it the resolver asks once a second.
	lookupPatience = 4 * time.Second
	// maxLookups bounds those under way at once. While the DNS is silent the other names
	// wait for their turn, and as soon as it answers that takes no time.
	maxLookups = 8
)

var errNoResolver = errors.New("names cannot be resolved here: write addresses into remote_addrs")

// answer is what became of a lookup.
type answer struct {
	name  string
	addrs []netip.Addr
	ttl   time.Duration // 0: unknown
	err   error
}

// lookups is the loop's side of it.
type lookups struct {
	resolve func(ctx context.Context, name string) ([]netip.Addr, time.Duration, error)
	waiting []string // in the order in which the machine asked; it asks for each name once
	running int
	answers chan answer
	ctx     context.Context // ends with the loop
	cancel  context.CancelFunc
}

func newLookups() lookups {
	ctx, cancel := context.WithCancel(context.Background())
	return lookups{answers: make(chan answer), ctx: ctx, cancel: cancel}
}

// ask starts a lookup, or has it wait for its turn.
func (k *lookups) ask(name string) {
	k.waiting = append(k.waiting, name)
	k.start()
}

// answered notes that an answer came, and starts what has waited.
func (k *lookups) answered() {
	k.running--
	k.start()
}

func (k *lookups) start() {
	for len(k.waiting) > 0 && k.running < maxLookups {
		name := k.waiting[0]
		k.waiting = k.waiting[1:]
		k.running++
		go k.look(name)
	}
}

// look looks one name up.
func (k *lookups) look(name string) {
	a := answer{name: name, err: errNoResolver}
	if k.resolve != nil {
		ctx, cancel := context.WithTimeout(k.ctx, lookupPatience)
		a.addrs, a.ttl, a.err = k.resolve(ctx, name)
		cancel()
	}
	select {
	case k.answers <- a:
	case <-k.ctx.Done():
	}
}
