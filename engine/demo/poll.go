package demo

import (
	"encoding/binary"
	"fmt"
	"sync"
	"time"
)

const (
	pollEvery   = 10 * time.Millisecond
	pollTimeout = 2 * time.Second
	// The first registers hold the marker, those behind them what the client writes.
	markerRegs   = 8
	commandRegs  = 4
	firstCommand = uint16(markerRegs)
	numRegisters = 100
)

// polls is what a poller did. A poll is a read of all registers that matter; every
// tenth one comes with a write before it.
type polls struct {
	Sent, Good, Writes int
	Slowest            time.Duration // of the good ones
	Err                error         // of the first that failed
}

// markerValues are the registers that hold the marker.
func markerValues() []uint16 {
	v := make([]uint16, markerRegs)
	for i := range v {
		v[i] = binary.BigEndian.Uint16(marker[2*i:])
	}
	return v
}

// poller polls on a goroutine of its own.
type poller struct {
	m    *Modbus
	stop chan struct{}
	done sync.WaitGroup
	mu   sync.Mutex
	p    polls
}

// newPoller starts to poll the server behind m, which has to hold the marker.
func newPoller(m *Modbus) *poller {
	p := &poller{m: m, stop: make(chan struct{})}
	p.done.Go(func() {
		tick := time.NewTicker(pollEvery)
		defer tick.Stop()
		command := make([]uint16, commandRegs)
		for i := 0; ; i++ {
			select {
			case <-p.stop:
				return
			case <-tick.C:
			}
			began := time.Now()
			err := p.poll(i, command)
			took := time.Since(began)
			p.mu.Lock()
			p.p.Sent++
			if err == nil {
				p.p.Good++
				p.p.Slowest = max(p.p.Slowest, took)
			} else if p.p.Err == nil {
				p.p.Err = fmt.Errorf("poll %d: %w", i+1, err)
			}
			p.mu.Unlock()
			if err != nil {
				return // the stream is broken; the count of good polls tells
			}
		}
	})
	return p
}

// poll does poll number i; command is what the registers behind the marker hold.
func (p *poller) poll(i int, command []uint16) error {
	var err error
	switch i % 20 {
	case 0:
		command[0] = uint16(i)
		err = p.m.Write(firstCommand, command[0])
	case 10:
		for j := range command {
			command[j] = uint16(i + j)
		}
		err = p.m.WriteAll(firstCommand, command)
	}
	if err != nil {
		return err
	}
	if i%10 == 0 {
		p.mu.Lock()
		p.p.Writes++
		p.mu.Unlock()
	}
	got, err := p.m.Read(0, markerRegs+commandRegs)
	if err != nil {
		return err
	}
	for j, want := range append(markerValues(), command...) {
		if got[j] != want {
			return fmt.Errorf("register %d holds %#04x, want %#04x", j, got[j], want)
		}
	}
	return nil
}

// now returns what was done so far.
func (p *poller) now() polls {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.p
}

// end ends the polling and returns what was done.
func (p *poller) end() polls {
	close(p.stop)
	p.done.Wait()
	return p.now()
}
