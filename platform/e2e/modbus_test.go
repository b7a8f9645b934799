//go:build linux

package e2e

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
)

// Modbus function codes and exception codes (Modbus Application Protocol V1.1b3, chapters
// 6 and 7).
const (
	readHolding   = 3
	readInput     = 4
	writeSingle   = 6
	writeMultiple = 16

	illegalFunction = 1
	illegalAddress  = 2
	illegalValue    = 3
)

// modbusServer is a Modbus/TCP device with 1000 holding and 1000 input registers. Holding
// register n holds n at first, input register n holds 10000+n.
type modbusServer struct {
	mu       sync.Mutex
	holding  [1000]uint16
	input    [1000]uint16
	requests int
	conns    map[net.Conn]bool
	listener net.Listener
}

// startModbus starts the device in a namespace on port 502.
func (s *site) startModbus(ns string, addr netip.Addr) *modbusServer {
	s.t.Helper()
	m := newModbus()
	if err := inNamespace(ns, func() (err error) {
		m.listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 502)))
		return err
	}); err != nil {
		s.t.Fatalf("Modbus server: %v", err)
	}
	go m.serve()
	s.t.Cleanup(m.close)
	return m
}

func newModbus() *modbusServer {
	m := &modbusServer{conns: map[net.Conn]bool{}}
	for i := range m.holding {
		m.holding[i], m.input[i] = uint16(i), uint16(10000+i)
	}
	return m
}

func (m *modbusServer) serve() {
	for {
		c, err := m.listener.Accept()
		if err != nil {
			return
		}
		m.mu.Lock()
		m.conns[c] = true
		m.mu.Unlock()
		go m.talk(c)
	}
}

func (m *modbusServer) close() {
	m.listener.Close()
	m.mu.Lock()
	defer m.mu.Unlock()
	for c := range m.conns {
		c.Close()
	}
}

// seen returns how many requests have come.
func (m *modbusServer) seen() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.requests
}

// register returns a holding register.
func (m *modbusServer) register(i int) uint16 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.holding[i]
}

// talk answers requests. MBAP header: transaction, protocol 0, length of unit and PDU.
func (m *modbusServer) talk(c net.Conn) {
	defer c.Close()
	var head [7]byte
	for {
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(head[4:]))
		if binary.BigEndian.Uint16(head[2:]) != 0 || n < 2 || n > 254 {
			return
		}
		pdu := make([]byte, n-1)
		if _, err := io.ReadFull(c, pdu); err != nil {
			return
		}
		answer := m.answer(pdu)
		out := append(head[:4:4], 0, 0, head[6])
		binary.BigEndian.PutUint16(out[4:], uint16(1+len(answer)))
		if _, err := c.Write(append(out, answer...)); err != nil {
			return
		}
	}
}

// answer handles one request PDU.
func (m *modbusServer) answer(pdu []byte) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.requests++
	refuse := func(code byte) []byte { return []byte{pdu[0] | 0x80, code} }
	if len(pdu) < 5 {
		return refuse(illegalValue)
	}
	start, value := int(binary.BigEndian.Uint16(pdu[1:])), binary.BigEndian.Uint16(pdu[3:])
	count := int(value)
	switch pdu[0] {
	case readHolding, readInput:
		regs := &m.holding
		if pdu[0] == readInput {
			regs = &m.input
		}
		if count < 1 || count > 125 || len(pdu) != 5 {
			return refuse(illegalValue)
		}
		if start+count > len(regs) {
			return refuse(illegalAddress)
		}
		out := []byte{pdu[0], byte(2 * count)}
		for _, r := range regs[start : start+count] {
			out = binary.BigEndian.AppendUint16(out, r)
		}
		return out
	case writeSingle:
		if start >= len(m.holding) {
			return refuse(illegalAddress)
		}
		m.holding[start] = value
		return pdu[:5]
	case writeMultiple:
		if count < 1 || count > 123 || len(pdu) != 6+2*count || int(pdu[5]) != 2*count {
			return refuse(illegalValue)
		}
		if start+count > len(m.holding) {
			return refuse(illegalAddress)
		}
		for i := range count {
			m.holding[start+i] = binary.BigEndian.Uint16(pdu[6+2*i:])
		}
		return pdu[:5]
	}
	return refuse(illegalFunction)
}

func TestModbusServerAnswersAsTheSpecificationSays(t *testing.T) {
	m := newModbus()
	for _, c := range []struct {
		name     string
		ask, say string
	}{
		{"read two holding registers", "\x03\x00\x07\x00\x02", "\x03\x04\x00\x07\x00\x08"},
		{"read an input register", "\x04\x00\x01\x00\x01", "\x04\x02\x27\x11"},
		{"write one register", "\x06\x00\x09\xca\xfe", "\x06\x00\x09\xca\xfe"},
		{"and read it back", "\x03\x00\x09\x00\x01", "\x03\x02\xca\xfe"},
		{"write two registers", "\x10\x00\x14\x00\x02\x04\x01\x02\x03\x04", "\x10\x00\x14\x00\x02"},
		{"and read them back", "\x03\x00\x14\x00\x02", "\x03\x04\x01\x02\x03\x04"},
		{"another function", "\x01\x00\x00\x00\x01", "\x81\x01"},
		{"past the last register", "\x03\x03\xe7\x00\x02", "\x83\x02"},
		{"too many registers", "\x03\x00\x00\x00\x7e", "\x83\x03"},
		{"write with a wrong count", "\x10\x00\x00\x00\x02\x02\x00\x00", "\x90\x03"},
		{"a short request", "\x03\x00", "\x83\x03"},
	} {
		if got := string(m.answer([]byte(c.ask))); got != c.say {
			t.Errorf("%s: got % x, want % x", c.name, got, c.say)
		}
	}
}
