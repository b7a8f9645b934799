package engine

import (
	"bytes"
	"net/netip"
	"time"

	"postern/engine/log"
	"postern/ike"
)

// The leases of address pools: kept over a restart, and shown.

// stateLeases is the name under which leases are kept.
const stateLeases = "pool.leases"

const (
	// leaseInterval is the least time between two writes of the leases, which may go to flash.
	// The first change after a quiet time is written at once, so that a crash costs little.
	leaseInterval = 5 * time.Second
	// maxLeaseFile bounds what is kept; where leases do not fit, the oldest are left out. It is
	// what the state directory takes.
	maxLeaseFile = 64 << 10
	// maxLeaseOwner bounds the identities that are kept.
	maxLeaseOwner = 255
)

// leaseKeeper writes the leases down. It belongs to the loop.
type leaseKeeper struct {
	changed bool
	next    time.Duration // not before
	last    []byte        // what is kept
	writing chan struct{} // closed when the present write has ended; nil: there is none
}

// due tells when the leases are to be written, if they are.
func (k *leaseKeeper) due() (at time.Duration, ok bool) { return k.next, k.changed }

// saveLeases writes the leases down if they have changed and it is time. The write itself, which
// may wait for a slow flash, is made beside the loop.
func (e *Engine) saveLeases(now time.Duration) {
	k := &e.loop.leases
	if !k.changed || now < k.next {
		return
	}
	k.next = now + leaseInterval
	if k.writing != nil {
		select {
		case <-k.writing:
		default:
			return // once more later
		}
	}
	k.changed, k.writing = false, nil
	b := e.encodeLeases()
	if bytes.Equal(b, k.last) || e.keep.dir == nil {
		return
	}
	k.last = b
	done := make(chan struct{})
	k.writing = done
	go func() {
		defer close(done)
		e.storeLeases(b)
	}()
}

// settleLeases writes down what is left to write, when the loop has ended.
func (e *Engine) settleLeases() error {
	k := &e.loop.leases
	if k.writing != nil {
		<-k.writing
	}
	if b := e.encodeLeases(); k.changed && !bytes.Equal(b, k.last) && e.keep.dir != nil {
		k.last = b
		e.storeLeases(b)
	}
	return nil
}

func (e *Engine) storeLeases(b []byte) {
	if err := e.keep.dir.Store(stateLeases, b); err != nil {
		e.o.Log.Log(log.Config, log.Warn, "the leases of the address pools cannot be kept over a restart: is the file system full or read-only?",
			log.Str("name", stateLeases), log.Err(err))
	}
}

// The kept form: a version, then for each lease, the oldest first, the pool, the type of the
// identity, the identity and the address, each text with its length in front.
const leaseFileVersion = 1

func (e *Engine) encodeLeases() []byte {
	var list [][]byte
	size := 1
	e.loop.m.Leases(func(l ike.Lease) bool {
		if len(l.ID.Data) > maxLeaseOwner || len(l.Pool) > 255 {
			return true
		}
		addr := l.Addr.AsSlice()
		r := make([]byte, 0, 4+len(l.Pool)+len(l.ID.Data)+len(addr))
		r = append(append(r, byte(len(l.Pool))), l.Pool...)
		r = append(r, byte(l.ID.Type))
		r = append(append(r, byte(len(l.ID.Data))), l.ID.Data...)
		r = append(append(r, byte(len(addr))), addr...)
		list, size = append(list, r), size+len(r)
		return true
	})
	for size > maxLeaseFile {
		size -= len(list[0])
		list = list[1:]
	}
	return append([]byte{leaseFileVersion}, bytes.Join(list, nil)...)
}

// decodeLeases reads what encodeLeases has written, as far as it makes sense.
func decodeLeases(b []byte) (list []ike.Lease) {
	if len(b) == 0 || b[0] != leaseFileVersion {
		return nil
	}
	ok := true
	b = b[1:]
	text := func() []byte {
		if len(b) == 0 || len(b) <= int(b[0]) {
			ok, b = false, nil
			return nil
		}
		t := b[1 : 1+int(b[0])]
		b = b[1+int(b[0]):]
		return t
	}
	for len(b) > 0 {
		var l ike.Lease
		l.Pool = string(text())
		if len(b) == 0 {
			break
		}
		l.ID.Type = ike.IDType(b[0])
		b = b[1:]
		l.ID.Data = string(text())
		addr, is := netip.AddrFromSlice(text())
		if !ok || !is {
			break
		}
		l.Addr = addr
		list = append(list, l)
	}
	return list
}

// loadLeases hands the kept leases to the configuration of the machine's first start.
func (e *Engine) loadLeases(cfg *ike.Config) {
	if len(cfg.Pools) > 0 {
		cfg.Leases = decodeLeases(e.keep.load(stateLeases))
	}
}
