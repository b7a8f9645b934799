package engine

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"postern/engine/config"
	"postern/engine/log"
	"postern/esp"
	"postern/ike"
)

// SAs that nobody negotiates (RFC 4301 section 4.5.1). The configuration has all of them, keys
// included; they are there as long as it names them. All of it runs on the IKE loop's goroutine,
// or before that starts.

// manualSA is a pair that is installed. Of its keys there is only a digest.
type manualSA struct {
	*config.Manual
	keys      [sha256.Size]byte
	installed time.Duration
	kept      *kept // nil: its numbers begin anew after a restart
}

// kept is what has been written down of an SA's numbers.
type kept struct {
	out, in seqID
	bound   uint64 // no number beyond it may leave
	top     uint64 // of the inbound window
}

// digest tells keys apart without keeping them.
func digest(m *config.Manual) (d [sha256.Size]byte) {
	h := sha256.New()
	for _, k := range [][]byte{m.In.EncrKey, m.In.IntegKey, m.Out.EncrKey, m.Out.IntegKey} {
		_, _ = h.Write([]byte{byte(len(k))})
		_, _ = h.Write(k)
	}
	h.Sum(d[:0])
	return d
}

// sameSA tells whether two ends differ in nothing but keys.
func sameSA(a, b *esp.SA) bool {
	return a.SPI == b.SPI && a.Proto == b.Proto && a.Mode == b.Mode && a.Suite == b.Suite && a.Local == b.Local && a.Remote == b.Remote &&
		a.Encap == b.Encap && a.ReplayWindow == b.ReplayWindow && slices.Equal(a.LocalTS, b.LocalTS) && slices.Equal(a.RemoteTS, b.RemoteTS)
}

// is tells whether the installed pair is that of the configuration.
func (s *manualSA) is(m *config.Manual) bool {
	return s.Name == m.Name && s.Keep == m.Keep && sameSA(&s.In, &m.In) && sameSA(&s.Out, &m.Out) && s.keys == digest(m)
}

// wipeManual overwrites the keys of a configuration.
func wipeManual(cfg *config.Config) {
	for _, m := range cfg.Manual {
		m.Wipe()
	}
}

// manualRoom tells whether the SAD can take the manual SAs of a configuration, before anything is
// changed for it.
func (e *Engine) manualRoom(cfg *config.Config) error {
	l := e.loop
	room := l.d.sad.nfree + len(l.manual)
	if len(cfg.Manual) > room {
		return fmt.Errorf("the table of SAs has room for %d manual ones at present, and the configuration has %d", room, len(cfg.Manual))
	}
	for _, m := range cfg.Manual {
		ours := slices.ContainsFunc(l.manual, func(s *manualSA) bool { return s.In.SPI == m.In.SPI })
		if !ours && l.d.sad.slot(m.In.SPI) != nil {
			return fmt.Errorf("spi_in 0x%x of manual SA %s is that of a negotiated SA at present: choose another", m.In.SPI, m.Name)
		}
	}
	return nil
}

// setManual makes the manual SAs those of a configuration, whose keys it overwrites. With anew,
// those that stay the same are made anew, too. What cannot be installed is logged, and its policy
// drops what it protects.
func (e *Engine) setManual(cfg *config.Config, anew bool) {
	l := e.loop
	var list []*manualSA
	for _, s := range l.manual {
		if !anew && slices.ContainsFunc(cfg.Manual, s.is) {
			list = append(list, s)
			continue
		}
		e.removeManual(s)
	}
	for _, m := range cfg.Manual {
		if slices.ContainsFunc(list, func(s *manualSA) bool { return s.Name == m.Name }) {
			continue
		}
		s, err := e.installManual(m)
		if err != nil {
			l.log.Log(log.Child, log.Error, "manual SA could not be installed: what it protects is dropped", log.Str("name", m.Name), log.Err(err))
			continue
		}
		list = append(list, s)
	}
	wipeManual(cfg)
	l.manual = list
}

// installManual puts both ends of a pair into the tables.
func (e *Engine) installManual(m *config.Manual) (*manualSA, error) {
	l := e.loop
	s := &manualSA{Manual: m, keys: digest(m), installed: l.now().Mono}
	if m.Keep {
		if err := e.keepNumbers(s); err != nil {
			return nil, err
		}
	} else {
		m.Out.IVSeed = make([]byte, 16)
		env{l}.Random(m.Out.IVSeed)
	}
	if err := l.d.sad.claim(m.In.SPI); err != nil {
		return nil, err
	}
	for _, sa := range []*esp.SA{&m.In, &m.Out} {
		if sa.Encap {
			sa.Local = netip.AddrPortFrom(sa.Local.Addr(), l.d.ports.NATT)
		}
		c := &ike.ChildSA{SA: *sa, Inbound: m.In.SPI, Conn: config.ManualConn, Child: m.Name}
		if err := l.install(c); err != nil {
			in, out := l.d.sad.release(m.In.SPI)
			l.retire(in, out)
			return nil, err
		}
	}
	l.log.Log(log.Child, log.Info, "manual SA installed", log.Str("name", m.Name), log.Str("suite", m.In.Suite.String()),
		log.Hex32("spi_in", m.In.SPI), log.Hex32("spi_out", m.Out.SPI))
	return s, nil
}

// removeManual takes a pair out of the tables.
func (e *Engine) removeManual(s *manualSA) {
	l := e.loop
	if s.kept != nil {
		e.settleNumbers(s)
	}
	in, out := l.d.sad.release(s.In.SPI)
	l.retire(in, out)
	l.log.Log(log.Child, log.Info, "manual SA removed", log.Str("name", s.Name))
}

// Sequence numbers that go on after a restart (RFC 4303 section 3.3.3): a block of them is written
// down as used before the first of it leaves. Whatever ends the daemon, the numbers begin behind
// the block then. A clean end writes down how many really were used.

const (
	// seqBlock is how many numbers are reserved at once: at 100,000 packets in a second, one
	// write in five seconds, and of 2^32 numbers a crash costs one in 4,096.
	seqBlock = 1 << 20
	// lastSeq is the last number of an SA without ESN.
	lastSeq = 1<<32 - 1
)

var errNoState = errors.New("there is no state directory to keep its sequence numbers in: see state_dir")

// seqIDs returns under which names the numbers of both directions are kept.
func seqIDs(m *config.Manual) (out, in seqID) {
	return seqIDOf('o', &m.Out), seqIDOf('i', &m.In)
}

// keepNumbers reserves the first numbers of a pair and sets where they go on.
func (e *Engine) keepNumbers(s *manualSA) error {
	if err := e.seqs.open(&e.keep); err != nil {
		return err
	}
	k := new(kept)
	k.out, k.in = seqIDs(s.Manual)
	from := e.seqs.get(k.out)
	if !s.Out.Suite.ESN {
		from = min(from, lastSeq)
	}
	k.top = e.seqs.get(k.in)
	k.bound = blockAfter(from, s.Out.Suite.ESN)
	if err := e.seqs.put(&e.keep, seqRecord{k.out, k.bound}, seqRecord{k.in, k.top}); err != nil {
		return err
	}
	s.kept = k
	s.In.Seq, s.Out.Seq = k.top, from
	s.Out.Soft.Packets, s.Out.Hard.Packets = dueAt(k.bound), k.bound
	return nil
}

// blockAfter returns up to where to reserve numbers, after n are gone.
func blockAfter(n uint64, esn bool) uint64 {
	if !esn {
		return min(n+seqBlock, lastSeq)
	}
	if n > 1<<64-1-seqBlock {
		return 1<<64 - 2 // all ones would be no limit
	}
	return n + seqBlock
}

// dueAt returns the number from which on the next block is to be reserved.
func dueAt(bound uint64) uint64 { return max(bound, seqBlock) - seqBlock/2 }

// reserveNumbers reserves the next block for the pair with that inbound SPI, if it is a manual one.
func (e *Engine) reserveNumbers(spi uint32) (manual bool) {
	l := e.loop
	i := slices.IndexFunc(l.manual, func(s *manualSA) bool { return s.In.SPI == spi })
	if i < 0 {
		return false
	}
	s := l.manual[i]
	slot := l.d.sad.slot(spi)
	if s.kept == nil || slot == nil || slot.out == nil {
		return true
	}
	next := blockAfter(s.kept.bound, s.Out.Suite.ESN)
	if next <= s.kept.bound {
		return true // they are at their end
	}
	if err := e.seqs.put(&e.keep, seqRecord{s.kept.out, next}); err != nil {
		l.log.Log(log.Child, log.Error, "manual SA stops soon: no more sequence numbers can be reserved; is the file system of state_dir full or read-only?",
			log.Str("name", s.Name), log.Err(err))
		return true
	}
	s.kept.bound = next
	o := slot.out
	o.out.Extend(dueAt(next), next)
	o.limits.soft.Store(0)
	o.limits.hard.Store(0)
	return true
}

// noteTops writes down how far the windows of manual SAs have come, once in a block: after a crash
// what came since then could be replayed once.
func (e *Engine) noteTops() {
	for _, s := range e.loop.manual {
		if s.kept == nil {
			continue
		}
		slot := e.loop.d.sad.slot(s.In.SPI)
		if slot == nil {
			continue
		}
		in := slot.in.Load()
		if in == nil || in.in.Top()-s.kept.top < seqBlock {
			continue
		}
		if top := in.in.Top(); e.seqs.put(&e.keep, seqRecord{s.kept.in, top}) == nil {
			s.kept.top = top
		}
	}
}

// settleNumbers lets a pair take no more numbers and writes down where they stand.
func (e *Engine) settleNumbers(s *manualSA) {
	slot := e.loop.d.sad.slot(s.In.SPI)
	if slot == nil || s.kept == nil {
		return
	}
	records := make([]seqRecord, 0, 2)
	if slot.out != nil {
		records = append(records, seqRecord{s.kept.out, slot.out.out.Stop()})
	}
	if in := slot.in.Load(); in != nil {
		records = append(records, seqRecord{s.kept.in, in.in.Top()})
	}
	if err := e.seqs.put(&e.keep, records...); err != nil {
		e.o.Log.Log(log.Child, log.Warn, "where the sequence numbers of a manual SA stand could not be written down: they go on with the next block",
			log.Str("name", s.Name), log.Err(err))
	}
	s.kept = nil
}

// settleAll is settleNumbers for the end.
func (e *Engine) settleAll() error {
	for _, s := range e.loop.manual {
		e.settleNumbers(s)
	}
	return nil
}
