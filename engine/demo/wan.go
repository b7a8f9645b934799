package demo

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
)

// marker stands in the registers that are polled, so that it is in the clear text of
// every response, and must not be in anything that leaves a gateway.
var marker = []byte("POSTERN-CLEARTXT")

// EtherTypes and IP protocols that a capture tells apart.
const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherIPv6 = 0x86dd

	protoTCP    = 6
	protoUDP    = 17
	protoESP    = 50
	protoICMPv6 = 58

	portIKE    = 500
	portNATT   = 4500
	portModbus = 502
)

// tally is what a capture saw.
type tally struct {
	ESP, IKE, Neighbour int    // ESP packets, IKE datagrams, ARP and neighbour discovery
	Modbus              int    // TCP segments from or to the Modbus port
	Marked              int    // packets in which the marker can be read
	Other               int    // anything else
	First               string // the first that is neither ESP nor IKE nor of neighbours
}

// clear tells whether a packet could be read that should have been protected.
func (t *tally) clear() bool { return t.Modbus+t.Marked+t.Other > 0 }

func (t *tally) total() int { return t.ESP + t.IKE + t.Neighbour + t.Modbus + t.Other }

// add counts one packet.
func (t *tally) add(etherType uint16, p []byte) {
	what := t.classify(etherType, p)
	if bytes.Contains(p, marker) {
		t.Marked++
		what += " with readable registers"
		if t.First == "" {
			t.First = what
		}
	}
}

func (t *tally) classify(etherType uint16, p []byte) string {
	switch {
	case etherType == etherARP:
		t.Neighbour++
		return "ARP"
	case etherType == etherIPv6 && len(p) >= 40 && p[6] == protoICMPv6, etherType == etherIPv6 && len(p) >= 48 && p[6] == 0 && p[40] == protoICMPv6:
		t.Neighbour++ // multicast listener reports come with a hop-by-hop header
		return "ICMPv6"
	case etherType == etherIPv4 && len(p) >= 20 && int(p[0]&15)*4 <= len(p) && p[0]&15 >= 5:
		proto, rest := p[9], p[int(p[0]&15)*4:]
		var from, to uint16
		if (proto == protoTCP || proto == protoUDP) && len(rest) >= 4 && binary.BigEndian.Uint16(p[6:])&0x1fff == 0 {
			from, to = binary.BigEndian.Uint16(rest), binary.BigEndian.Uint16(rest[2:])
		}
		switch {
		case proto == protoESP:
			t.ESP++
			return "ESP"
		case proto == protoUDP && from == portNATT && to == portNATT && len(rest) > 12 && binary.BigEndian.Uint32(rest[8:]) != 0:
			t.ESP++ // RFC 3948: no marker of four zero octets
			return "ESP in UDP"
		case proto == protoUDP && (from == portIKE && to == portIKE || from == portNATT && to == portNATT):
			t.IKE++
			return "IKE"
		case proto == protoTCP && (from == portModbus || to == portModbus):
			t.Modbus++
			return t.note(fmt.Sprintf("Modbus/TCP from %s to %s", addr4(p[12:]), addr4(p[16:])))
		}
		t.Other++
		return t.note(fmt.Sprintf("IP protocol %d from %s:%d to %s:%d", proto, addr4(p[12:]), from, addr4(p[16:]), to))
	}
	t.Other++
	return t.note(fmt.Sprintf("a frame of type %#04x, %d octets", etherType, len(p)))
}

func (t *tally) note(what string) string {
	if t.First == "" {
		t.First = what
	}
	return what
}

func addr4(b []byte) netip.Addr { return netip.AddrFrom4([4]byte(b[:4])) }

// watch counts what a capture sees on a goroutine of its own.
type watch struct {
	c    Capture
	done sync.WaitGroup
	t    tally
	err  error
}

func newWatch(c Capture) *watch {
	w := &watch{c: c}
	w.done.Go(func() {
		buf := make([]byte, 65536)
		for {
			etherType, n, err := c.Next(buf)
			if err != nil {
				if !errors.Is(err, os.ErrClosed) {
					w.err = err
				}
				return
			}
			w.t.add(etherType, buf[:n])
		}
	})
	return w
}

// end ends the capture and returns what it saw. Frames that it missed are an error: they
// could have been anything.
func (w *watch) end() (tally, error) {
	lost, err := w.c.Lost()
	if cerr := w.c.Close(); err == nil {
		err = cerr
	}
	w.done.Wait()
	switch {
	case w.err != nil:
		return w.t, fmt.Errorf("capture: %w", w.err)
	case err != nil:
		return w.t, fmt.Errorf("capture: %w", err)
	case lost > 0:
		return w.t, fmt.Errorf("the capture missed %d frames: run the demo again on a machine with less to do", lost)
	}
	return w.t, nil
}
