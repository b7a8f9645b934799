package platform

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
)

// A netlink message, all integers in the host's byte order (RFC 3549 section 2.2):
//
//	 0                   1                   2                   3
//	+-------------------------------------------------------------+
//	|                          Length                             |
//	+------------------------------+------------------------------+
//	|            Type              |           Flags              |
//	+------------------------------+------------------------------+
//	|                      Sequence Number                        |
//	+-------------------------------------------------------------+
//	|                      Process ID (PID)                       |
//	+-------------------------------------------------------------+
//	| family header, then attributes: length, type, value, padded to 4

var native = binary.NativeEndian

var errNetlinkShort = errors.New("netlink: a message or attribute is cut short")

//go:noinline
func nlAlign(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

// nlMessage is one message as it was received; body aliases the receive buffer.
type nlMessage struct {
	typ   uint16
	flags uint16
	seq   uint32
	pid   uint32
	body  []byte
}

// nextMessage cuts the first message off b.
func nextMessage(b []byte) (m nlMessage, rest []byte, err error) {
	if len(b) < unix.SizeofNlMsghdr {
		return m, nil, errNetlinkShort
	}
	n := native.Uint32(b)
	if n < unix.SizeofNlMsghdr || uint64(n) > uint64(len(b)) {
		return m, nil, errNetlinkShort
	}
	m = nlMessage{
		typ: native.Uint16(b[4:]), flags: native.Uint16(b[6:]),
		seq: native.Uint32(b[8:]), pid: native.Uint32(b[12:]),
		body: b[unix.SizeofNlMsghdr:n],
	}
	return m, b[min(nlAlign(int(n)), len(b)):], nil
}

// attrs is a cursor over attributes. An error sticks: the loop over next ends and err
// tells why. The getters are for the attribute that next found.
type attrs struct {
	rest []byte
	typ  uint16
	val  []byte
	err  error
}

// next steps to the next attribute.
func (a *attrs) next() bool {
	if a.err != nil || len(a.rest) == 0 {
		return false
	}
	if len(a.rest) < unix.SizeofRtAttr {
		a.err = errNetlinkShort
		return false
	}
	n := int(native.Uint16(a.rest))
	if n < unix.SizeofRtAttr || n > len(a.rest) {
		a.err = errNetlinkShort
		return false
	}
	a.typ = native.Uint16(a.rest[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
	a.val = a.rest[unix.SizeofRtAttr:n]
	a.rest = a.rest[min(nlAlign(n), len(a.rest)):]
	return true
}

// want returns the value if it has exactly n octets.
//
//go:noinline
func (a *attrs) want(n int) []byte {
	if len(a.val) != n {
		a.err = errNetlinkShort
		return nil
	}
	return a.val
}

func (a *attrs) u8() uint8 {
	if b := a.want(1); b != nil {
		return b[0]
	}
	return 0
}

//go:noinline
func (a *attrs) u32() uint32 {
	if b := a.want(4); b != nil {
		return native.Uint32(b)
	}
	return 0
}

// str is a C string.
func (a *attrs) str() string {
	for i, c := range a.val {
		if c == 0 {
			return string(a.val[:i])
		}
	}
	return string(a.val)
}

// addr is an address of either family.
func (a *attrs) addr() netip.Addr {
	ip, ok := netip.AddrFromSlice(a.val)
	if !ok {
		a.err = errNetlinkShort
	}
	return ip
}

func (a *attrs) prefix(bits uint8) netip.Prefix {
	ip := a.addr()
	if !ip.IsValid() {
		return netip.Prefix{}
	}
	if int(bits) > ip.BitLen() {
		a.err = errNetlinkShort
		return netip.Prefix{}
	}
	return netip.PrefixFrom(ip, int(bits))
}

// nested is a cursor over the attributes inside this one.
func (a *attrs) nested() attrs { return attrs{rest: a.val} }

// request builds one message. The header's length, sequence and flags are set when it
// is sent. Its methods and those of attrs are called from everywhere and where time does not
// matter: they are not inlined, for the binary's size.
type request struct{ b []byte }

//go:noinline
func newRequest(typ, flags uint16) *request {
	r := &request{b: make([]byte, unix.SizeofNlMsghdr, 256)}
	native.PutUint16(r.b[4:], typ)
	native.PutUint16(r.b[6:], flags|unix.NLM_F_REQUEST)
	return r
}

//go:noinline
func (r *request) raw(b ...byte) *request {
	r.b = append(r.b, b...)
	return r
}

//go:noinline
func (r *request) u32(v uint32) *request {
	r.b = native.AppendUint32(r.b, v)
	return r
}

//go:noinline
func (r *request) attr(typ uint16, val []byte) {
	r.b = native.AppendUint16(r.b, uint16(unix.SizeofRtAttr+len(val)))
	r.b = native.AppendUint16(r.b, typ)
	r.b = append(r.b, val...)
	r.pad()
}

//go:noinline
func (r *request) pad() {
	for len(r.b)%unix.NLMSG_ALIGNTO != 0 {
		r.b = append(r.b, 0)
	}
}

func (r *request) attrU8(typ uint16, v uint8) { r.attr(typ, []byte{v}) }

func (r *request) attrU32(typ uint16, v uint32) {
	var b [4]byte
	native.PutUint32(b[:], v)
	r.attr(typ, b[:])
}

func (r *request) attrString(typ uint16, s string) { r.attr(typ, append([]byte(s), 0)) }

func (r *request) attrAddr(typ uint16, a netip.Addr) { r.attr(typ, a.AsSlice()) }

// nest begins an attribute that holds attributes; end closes it.
func (r *request) nest(typ uint16) (start int) {
	start = len(r.b)
	r.attr(typ|unix.NLA_F_NESTED, nil)
	return start
}

func (r *request) end(start int) { native.PutUint16(r.b[start:], uint16(len(r.b)-start)) }

// finish sets the lengths and numbers of the header.
func (r *request) finish(seq uint32, flags uint16) []byte {
	native.PutUint32(r.b, uint32(len(r.b)))
	native.PutUint16(r.b[6:], native.Uint16(r.b[6:])|flags)
	native.PutUint32(r.b[8:], seq)
	return r.b
}

// parseNetlinkError reads the body of an NLMSG_ERROR message: the kernel's errno (0 is
// an acknowledgement) and, when there are extended acknowledgements, its own words.
func parseNetlinkError(m nlMessage) (errno unix.Errno, words string, err error) {
	if len(m.body) < 4+unix.SizeofNlMsghdr {
		return 0, "", errNetlinkShort
	}
	code := int32(native.Uint32(m.body))
	if code > 0 {
		return 0, "", errNetlinkShort
	}
	if m.flags&unix.NLM_F_ACK_TLVS == 0 {
		return unix.Errno(-int64(code)), "", nil
	}
	// Unless capped, the whole request follows its header, before the attributes.
	skip := 4 + unix.SizeofNlMsghdr
	if m.flags&unix.NLM_F_CAPPED == 0 {
		n := native.Uint32(m.body[4:])
		if n < unix.SizeofNlMsghdr || uint64(n) > uint64(len(m.body)-4) {
			return 0, "", errNetlinkShort
		}
		skip = min(4+nlAlign(int(n)), len(m.body))
	}
	a := attrs{rest: m.body[skip:]}
	for a.next() {
		if a.typ == unix.NLMSGERR_ATTR_MSG {
			words = a.str()
		}
	}
	return unix.Errno(-int64(code)), words, a.err
}
