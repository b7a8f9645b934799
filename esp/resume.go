package esp

// What keys need that are used again after a restart, as manual ones are (RFC 4303 sections 2.2 and
// 3.3.3): numbers that go on where they stood.

// Extend moves the limits in packets of an SA that has limits, as SA.Soft and SA.Hard are: to a
// place from which on Due asks again, and one beyond which nothing passes. They are sequence
// numbers, neither of which may be less than what it was.
func (o *Outbound) Extend(soft, hard uint64) {
	if o.lim == nil {
		return
	}
	o.lim.mu.Lock()
	defer o.lim.mu.Unlock()
	o.lim.soft.Packets, o.lim.hard.Packets = soft, hard
}

// Top returns the highest sequence number that has been accepted; 0: none yet.
func (in *Inbound) Top() uint64 { return in.win.top.Load() }

// resume makes top the highest number of a window that is new, and all below it seen.
func (w *window) resume(top uint64) {
	w.top.Store(top)
	if top == 0 || w.size == 0 {
		return
	}
	for i := range w.ring {
		w.ring[i] = 1<<wordBits - 1
	}
	// What follows top in its word is still to come; other words are cleared when it gets there.
	w.ring[uint32(top>>wordShift)&w.mask] >>= wordBits - 1 - top%wordBits
}

// Stop lets an SA that has limits take no more numbers, and returns the last one that it took.
func (o *Outbound) Stop() uint64 {
	if o.lim == nil {
		return o.seq.Load()
	}
	o.lim.mu.Lock()
	defer o.lim.mu.Unlock()
	o.lim.hard.Packets = o.seq.Load()
	return o.lim.hard.Packets
}
