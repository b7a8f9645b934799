//go:build linux

package e2e

import (
	"crypto/rand"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"
)

// stranger is a UDP socket in wan that sends IKE messages of its own making.
type stranger struct {
	t    *testing.T
	conn *net.UDPConn
	to   netip.AddrPort
}

// stranger opens a socket in wan towards a port of gwb.
func (s *site) stranger(port uint16) *stranger {
	s.t.Helper()
	x := &stranger{t: s.t, to: netip.AddrPortFrom(gwB4, port)}
	if err := inNamespace(s.wan, func() (err error) {
		x.conn, err = net.ListenUDP("udp4", &net.UDPAddr{})
		return err
	}); err != nil {
		s.t.Fatalf("socket in wan: %v", err)
	}
	s.t.Cleanup(func() { x.conn.Close() })
	return x
}

// send sends one datagram.
func (x *stranger) send(b []byte) {
	x.t.Helper()
	if _, err := x.conn.WriteToUDPAddrPort(b, x.to); err != nil {
		x.t.Fatalf("send to %v: %v", x.to, err)
	}
}

// receive returns the next datagram, nil if none comes in time.
func (x *stranger) receive(d time.Duration) []byte {
	b := make([]byte, 4096)
	x.conn.SetReadDeadline(time.Now().Add(d))
	n, _, err := x.conn.ReadFromUDPAddrPort(b)
	if err != nil {
		return nil
	}
	return b[:n]
}

// drain throws away what has come.
func (x *stranger) drain() {
	for x.receive(50*time.Millisecond) != nil {
	}
}

// notifies reads the notify types of an answer to IKE_SA_INIT.
func notifies(b []byte) []uint16 {
	var p packet
	p.ikeMessage(b)
	return p.ike.notifies
}

// ikeInit returns an IKE_SA_INIT request for the bench's usual suite (AES-GCM-16-128,
// PRF_HMAC_SHA2_256, Curve25519), as somebody sends it who never means to go on.
func ikeInit(spi uint64) []byte {
	transform := func(last bool, typ byte, id uint16, attr ...byte) []byte {
		more := byte(3)
		if last {
			more = 0
		}
		b := []byte{more, 0, 0, byte(8 + len(attr)), typ, 0, byte(id >> 8), byte(id)}
		return append(b, attr...)
	}
	prop := []byte{0, 0, 0, 0, 1, 1, 0, 3}
	prop = append(prop, transform(false, 1, 20, 0x80, 14, 0, 128)...)
	prop = append(prop, transform(false, 2, 5)...)
	prop = append(prop, transform(true, 4, 31)...)
	binary.BigEndian.PutUint16(prop[2:], uint16(len(prop)))
	ke := append([]byte{0, 31, 0, 0}, random(32)...)
	return ikeMessage(spi, exInit, 0x20, 33, payload(34, prop), payload(40, ke), payload(0, random(32)))
}

// payload puts the generic header in front of a payload's body.
func payload(next byte, body []byte) []byte {
	return append([]byte{next, 0, byte((len(body) + 4) >> 8), byte(len(body) + 4)}, body...)
}

// ikeMessage returns a request of the initiator's with message ID 0.
func ikeMessage(spi uint64, exchange, version, next byte, payloads ...[]byte) []byte {
	b := binary.BigEndian.AppendUint64(nil, spi)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0, next, version, exchange, 0x08, 0, 0, 0, 0, 0, 0, 0, 0)
	for _, p := range payloads {
		b = append(b, p...)
	}
	binary.BigEndian.PutUint32(b[24:], uint32(len(b)))
	return b
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}
