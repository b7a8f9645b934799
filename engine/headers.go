package engine

import (
	"postern/engine/config"
	"postern/esp"
)

// What becomes of headers beyond what package esp does by itself, which is the default of a child
// in tunnel mode: the outer header has the traffic class and DF of the inner one. Step 6 of the
// way out and step 7 of the way in come here.
//
// Nothing here touches an inner hop limit: the kernel's forwarding has decremented it before the
// packet came to the TUN device, and does so again behind it.

// plainMost is the length of packets below which nobody looks at the path.
const plainMost = 65535

// headerBits are what the way in has to know of the headers of an SA, in one number, so that
// it costs no further cache line: the MSS of TCP over IPv4 (0: it stays), whether that of
// IPv6 is the same or 20 octets less, and whether DSCP and ECN are not as by default.
type headerBits uint32

const (
	mssBits  headerBits = 1<<16 - 1
	mssSame  headerBits = 1 << 16
	dscpIn   headerBits = 1 << 17
	ecnStays headerBits = 1 << 18
)

// mssLess is by how much IPv6's header is longer.
const mssLess = 20

// clamp lowers the MSS in a TCP SYN.
func (d *datapath) clamp(pkt []byte, b headerBits) {
	most4 := uint16(b & mssBits)
	most6 := most4
	if b&mssSame == 0 {
		most6 = max(most4, mssLess+1) - mssLess
	}
	if most4 != 0 && esp.ClampMSS(pkt, most4, most6) {
		d.counts.inc(cMSSClamped)
	}
}

// bitsOf returns the bits for an SA in a mode that carries packets of most octets at the longest.
func bitsOf(h *config.Headers, mode esp.Mode, most int) headerBits {
	var b headerBits
	switch {
	case h.MSS > 0:
		b = headerBits(h.MSS) | mssSame
	case h.MSS == config.MSSAuto && most < plainMost:
		b = headerBits(max(most-40, 88)) // headers of IPv4 and TCP without options (RFC 6691)
	}
	if mode != esp.Tunnel {
		return b
	}
	if h.DSCPIn {
		b |= dscpIn
	}
	if !h.ECN {
		b |= ecnStays
	}
	return b
}

// headersIn does step 7 for a packet in tunnel mode; in the other modes the header came from
// outside as a whole. ok is false if the packet has to be dropped.
func (d *datapath) headersIn(pkt []byte, b headerBits, outer uint8) (ok bool) {
	was := esp.TrafficClass(pkt)
	class := was
	if (was^outer)&esp.ECNMask != 0 && b&ecnStays == 0 {
		ecn, verdict := esp.CombineECN(was, outer)
		switch verdict {
		case esp.ECNDrop:
			d.counts.inc(cInECN)
			return false
		case esp.ECNOdd:
			d.counts.inc(cInECNOdd)
		}
		class = was&^esp.ECNMask | ecn
	}
	if b&dscpIn != 0 {
		class = class&esp.ECNMask | outer&^esp.ECNMask
	}
	if class != was {
		esp.SetTrafficClass(pkt, class)
	}
	return true
}

// outerHeader makes the outer header of a sealed packet in tunnel mode what the child asks for.
func (p *outerPath) outerHeader(to *esp.Datagram, cut bool) {
	class, df := to.TOS, to.DF
	if h := p.headers; h != nil && p.tunnel {
		class = h.DSCP[class>>2]<<2 | class&esp.ECNMask
		if !h.ECN {
			class &^= esp.ECNMask
		}
		switch h.DF {
		case config.DFSet:
			df = true
		case config.DFClear:
			df = false
		}
		to.TTL = h.HopLimit
	}
	if cut || p.blind && (p.headers == nil || p.headers.DF != config.DFSet) {
		df = false
	}
	if to.Whole && p.tunnel {
		esp.SetTrafficClass(to.Buf[:to.N], class)
		to.SetOuter(to.TTL, df)
	}
	to.TOS, to.DF = class, df
}
