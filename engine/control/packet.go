package control

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// MaxPacket is the longest packet in octets, its length field not counted: charon's limit.
const MaxPacket = 512 << 10

// Op is the type of a packet.
type Op uint8

// The packet types. CmdRequest, EventRegister, EventUnregister and Event carry a
// name; CmdRequest, CmdResponse and Event carry a message.
const (
	CmdRequest      Op = 0
	CmdResponse     Op = 1
	CmdUnknown      Op = 2
	EventRegister   Op = 3
	EventUnregister Op = 4
	EventConfirm    Op = 5
	EventUnknown    Op = 6
	Event           Op = 7
)

var opNames = [...]string{"CMD_REQUEST", "CMD_RESPONSE", "CMD_UNKNOWN", "EVENT_REGISTER",
	"EVENT_UNREGISTER", "EVENT_CONFIRM", "EVENT_UNKNOWN", "EVENT"}

// String returns the protocol's name of the packet type.
func (o Op) String() string {
	if int(o) < len(opNames) {
		return opNames[o]
	}
	return fmt.Sprintf("packet type %d", uint8(o))
}

func (o Op) named() bool {
	return o == CmdRequest || o == EventRegister || o == EventUnregister || o == Event
}

// Packet is one packet. Body is the encoded message and aliases what was parsed.
type Packet struct {
	Op   Op
	Name string
	Body []byte
}

// ErrPacket is what every error about the framing of packets wraps. After it, the
// rest of the stream means nothing and the connection has to be closed.
var ErrPacket = errors.New("not a VICI packet")

// AppendPacket appends a packet with its length field to dst:
//
//	+-----------------+----+-----------+----------+-------------+
//	| length, 4 octets| op | name len. | name ... | message ... |
//	+-----------------+----+-----------+----------+-------------+
//
// where the name stands only in packets that have one. A nil message is an empty one.
func AppendPacket(dst []byte, op Op, name string, m *Message) ([]byte, error) {
	start := len(dst)
	dst = append(dst, 0, 0, 0, 0, byte(op))
	if op.named() {
		if len(name) > maxName {
			return dst[:start], fmt.Errorf("%s: a name of %d octets, the limit is %d", op, len(name), maxName)
		}
		dst = append(dst, byte(len(name)))
		dst = append(dst, name...)
	}
	dst, err := m.Append(dst)
	if err != nil {
		return dst[:start], err
	}
	n := len(dst) - start - 4
	if n > MaxPacket {
		return dst[:start], fmt.Errorf("%s %s: %d octets, the limit is %d", op, name, n, MaxPacket)
	}
	binary.BigEndian.PutUint32(dst[start:], uint32(n))
	return dst, nil
}

// ParsePacket splits what stands behind a length field.
func ParsePacket(b []byte) (Packet, error) {
	if len(b) == 0 {
		return Packet{}, fmt.Errorf("%w: it is empty", ErrPacket)
	}
	p := Packet{Op: Op(b[0]), Body: b[1:]}
	if int(p.Op) >= len(opNames) {
		return p, fmt.Errorf("%w: unknown %s", ErrPacket, p.Op)
	}
	if !p.Op.named() {
		return p, nil
	}
	if len(b) < 2 || int(b[1]) > len(b)-2 {
		return p, fmt.Errorf("%w: the name of %s is cut off", ErrPacket, p.Op)
	}
	n := int(b[1])
	if !printable(b[2 : 2+n]) {
		return p, fmt.Errorf("%w: the name of %s is not printable ASCII", ErrPacket, p.Op)
	}
	p.Name, p.Body = string(b[2:2+n]), b[2+n:]
	return p, nil
}

// readChunk is how much is allocated ahead of what has really arrived, so that a
// client cannot take half a megabyte with four octets.
const readChunk = 4096

// ReadPacket reads one packet into buf, which it may grow, and returns the grown
// buffer for the next call; the packet's body aliases it.
func ReadPacket(r io.Reader, buf []byte) (Packet, []byte, error) {
	buf = append(buf[:0], 0, 0, 0, 0)
	if _, err := io.ReadFull(r, buf); err != nil {
		return Packet{}, buf, err
	}
	left, err := packetLength(buf)
	if err != nil {
		return Packet{}, buf, err
	}
	return readBody(r, left, buf)
}

// packetLength reads the length field.
func packetLength(head []byte) (int, error) {
	n := binary.BigEndian.Uint32(head)
	if n > MaxPacket {
		return 0, fmt.Errorf("%w: %d octets announced, the limit is %d", ErrPacket, n, MaxPacket)
	}
	return int(n), nil
}

// readBody reads what stands behind a length field of left octets into buf, as ReadPacket does.
func readBody(r io.Reader, left int, buf []byte) (Packet, []byte, error) {
	buf = buf[:0]
	for left > 0 {
		n := min(left, readChunk)
		have := len(buf)
		if cap(buf)-have < n {
			buf = append(buf, make([]byte, n)...)
		} else {
			buf = buf[:have+n]
		}
		if _, err := io.ReadFull(r, buf[have:]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return Packet{}, buf, err
		}
		left -= n
	}
	p, err := ParsePacket(buf)
	return p, buf, err
}
