package demo

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Modbus/TCP (Modbus Application Protocol 1.1b3, and Messaging on TCP/IP 1.0b). A
// message is a header (MBAP) and a protocol data unit:
//
//	+-------------+----------+--------+------+----------+----------+
//	| transaction | protocol | length | unit | function | data ... |
//	|      2      |    2     |   2    |  1   |    1     |          |
//	+-------------+----------+--------+------+----------+----------+
//
// The length counts from the unit on.
const (
	mbapLen = 7
	maxPDU  = 253

	fnReadHolding   = 3
	fnWriteSingle   = 6
	fnWriteMultiple = 16
	fnException     = 0x80

	maxReadRegisters  = 125
	maxWriteRegisters = 123
)

// Exception codes.
const (
	illegalFunction = 1
	illegalAddress  = 2
	illegalValue    = 3
)

// Exception is a Modbus exception that a server answered with.
type Exception uint8

// Error names the exception as the specification does.
func (e Exception) Error() string {
	switch e {
	case illegalFunction:
		return "modbus: illegal function"
	case illegalAddress:
		return "modbus: illegal data address"
	case illegalValue:
		return "modbus: illegal data value"
	}
	return fmt.Sprintf("modbus: exception %d", uint8(e))
}

var errModbus = errors.New("not a Modbus/TCP message")

// readADU reads one message into buf, which must hold mbapLen+maxPDU octets, and
// returns its transaction, unit and PDU; the PDU aliases buf.
func readADU(r io.Reader, buf []byte) (transaction uint16, unit byte, pdu []byte, err error) {
	if _, err = io.ReadFull(r, buf[:mbapLen]); err != nil {
		return 0, 0, nil, err
	}
	n := int(binary.BigEndian.Uint16(buf[4:])) - 1
	if binary.BigEndian.Uint16(buf[2:]) != 0 || n < 1 || n > maxPDU {
		return 0, 0, nil, errModbus
	}
	if _, err = io.ReadFull(r, buf[mbapLen:mbapLen+n]); err != nil {
		return 0, 0, nil, err
	}
	return binary.BigEndian.Uint16(buf), buf[6], buf[mbapLen : mbapLen+n], nil
}

// appendADU appends a message.
func appendADU(dst []byte, transaction uint16, unit byte, pdu []byte) []byte {
	dst = binary.BigEndian.AppendUint16(dst, transaction)
	dst = append(dst, 0, 0)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(pdu)+1))
	dst = append(dst, unit)
	return append(dst, pdu...)
}

// Registers are the holding registers of a Modbus server. They may be used from
// several goroutines.
type Registers struct {
	mu   sync.Mutex
	regs []uint16
}

// NewRegisters returns n registers that hold 0.
func NewRegisters(n int) *Registers { return &Registers{regs: make([]uint16, n)} }

// answer executes a request and appends the response PDU to dst.
func (r *Registers) answer(dst, req []byte) []byte {
	fail := func(code byte) []byte { return append(dst, req[0]|fnException, code) }
	switch req[0] {
	case fnReadHolding:
		if len(req) != 5 {
			return fail(illegalValue)
		}
		addr, n := int(binary.BigEndian.Uint16(req[1:])), int(binary.BigEndian.Uint16(req[3:]))
		if n < 1 || n > maxReadRegisters {
			return fail(illegalValue)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if addr+n > len(r.regs) {
			return fail(illegalAddress)
		}
		dst = append(dst, req[0], byte(2*n))
		for _, v := range r.regs[addr : addr+n] {
			dst = binary.BigEndian.AppendUint16(dst, v)
		}
		return dst
	case fnWriteSingle:
		if len(req) != 5 {
			return fail(illegalValue)
		}
		addr := int(binary.BigEndian.Uint16(req[1:]))
		r.mu.Lock()
		defer r.mu.Unlock()
		if addr >= len(r.regs) {
			return fail(illegalAddress)
		}
		r.regs[addr] = binary.BigEndian.Uint16(req[3:])
		return append(dst, req...)
	case fnWriteMultiple:
		if len(req) < 6 {
			return fail(illegalValue)
		}
		addr, n := int(binary.BigEndian.Uint16(req[1:])), int(binary.BigEndian.Uint16(req[3:]))
		if n < 1 || n > maxWriteRegisters || int(req[5]) != 2*n || len(req) != 6+2*n {
			return fail(illegalValue)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if addr+n > len(r.regs) {
			return fail(illegalAddress)
		}
		for i := range n {
			r.regs[addr+i] = binary.BigEndian.Uint16(req[6+2*i:])
		}
		return append(dst, req[:5]...)
	}
	return fail(illegalFunction)
}

// maxModbusClients bounds the connections of a server.
const maxModbusClients = 8

// Serve answers Modbus/TCP clients until l is closed.
func (r *Registers) Serve(l net.Listener) {
	places := make(chan struct{}, maxModbusClients)
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		select {
		case places <- struct{}{}:
			go func() {
				defer func() { <-places }()
				defer func() { _ = c.Close() }()
				r.serve(c)
			}()
		default:
			_ = c.Close()
		}
	}
}

// serve answers one client until it leaves or breaks the protocol.
func (r *Registers) serve(c io.ReadWriter) {
	in := make([]byte, mbapLen+maxPDU)
	var pdu, out []byte
	for {
		t, unit, req, err := readADU(c, in)
		if err != nil {
			return
		}
		pdu = r.answer(pdu[:0], req)
		out = appendADU(out[:0], t, unit, pdu)
		if _, err = c.Write(out); err != nil {
			return
		}
	}
}

// Modbus is a Modbus/TCP client. It is for one goroutine.
type Modbus struct {
	conn    net.Conn
	timeout time.Duration
	next    uint16
	in, out []byte
}

// NewModbus returns a client over conn that waits so long for each response.
func NewModbus(conn net.Conn, timeout time.Duration) *Modbus {
	return &Modbus{conn: conn, timeout: timeout, in: make([]byte, mbapLen+maxPDU)}
}

// call sends a request PDU and returns the response's data behind the function code,
// valid until the next call.
func (m *Modbus) call(req []byte) ([]byte, error) {
	m.next++
	m.out = appendADU(m.out[:0], m.next, 1, req)
	if err := m.conn.SetDeadline(time.Now().Add(m.timeout)); err != nil {
		return nil, err
	}
	if _, err := m.conn.Write(m.out); err != nil {
		return nil, err
	}
	t, _, pdu, err := readADU(m.conn, m.in)
	switch {
	case err != nil:
		return nil, err
	case t != m.next:
		return nil, fmt.Errorf("%w: response %d to request %d", errModbus, t, m.next)
	case pdu[0] == req[0]|fnException && len(pdu) == 2:
		return nil, Exception(pdu[1])
	case pdu[0] != req[0]:
		return nil, fmt.Errorf("%w: function %d in answer to function %d", errModbus, pdu[0], req[0])
	}
	return pdu[1:], nil
}

// Read reads n holding registers from addr on (function 3).
func (m *Modbus) Read(addr uint16, n int) ([]uint16, error) {
	req := binary.BigEndian.AppendUint16([]byte{fnReadHolding}, addr)
	data, err := m.call(binary.BigEndian.AppendUint16(req, uint16(n)))
	if err != nil {
		return nil, err
	}
	if len(data) != 1+2*n || int(data[0]) != 2*n {
		return nil, fmt.Errorf("%w: %d octets for %d registers", errModbus, len(data)-1, n)
	}
	regs := make([]uint16, n)
	for i := range regs {
		regs[i] = binary.BigEndian.Uint16(data[1+2*i:])
	}
	return regs, nil
}

// Write writes one holding register (function 6).
func (m *Modbus) Write(addr, value uint16) error {
	req := binary.BigEndian.AppendUint16([]byte{fnWriteSingle}, addr)
	return m.echoed(binary.BigEndian.AppendUint16(req, value), 4)
}

// WriteAll writes holding registers from addr on (function 16).
func (m *Modbus) WriteAll(addr uint16, values []uint16) error {
	req := binary.BigEndian.AppendUint16([]byte{fnWriteMultiple}, addr)
	req = binary.BigEndian.AppendUint16(req, uint16(len(values)))
	req = append(req, byte(2*len(values)))
	for _, v := range values {
		req = binary.BigEndian.AppendUint16(req, v)
	}
	return m.echoed(req, 4)
}

// echoed sends a request whose response repeats its first n octets of data.
func (m *Modbus) echoed(req []byte, n int) error {
	data, err := m.call(req)
	if err != nil {
		return err
	}
	if string(data) != string(req[1:1+n]) {
		return fmt.Errorf("%w: the response does not repeat the request", errModbus)
	}
	return nil
}

// Close ends the connection.
func (m *Modbus) Close() error { return m.conn.Close() }
