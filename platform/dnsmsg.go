package platform

import (
	"encoding/binary"
	"errors"
	"math"
	"net/netip"
	"strings"
	"time"
)

// DNS messages (RFC 1035 section 4), as far as a stub resolver needs them: a query for the
// addresses of one name, and the addresses out of its response.
//
//	 0  ID       2  QR|Opcode|AA|TC|RD|RA|Z|RCODE
//	 4  QDCOUNT  6  ANCOUNT   8  NSCOUNT  10  ARCOUNT
//	12  question: name, type, class; then records: name, type, class, TTL, length, data

const (
	dnsHeader   = 12
	dnsTypeA    = 1
	dnsCNAME    = 5
	dnsTypeAAAA = 28
	dnsClassIN  = 1

	dnsResponse  = 1 << 15
	dnsOpcode    = 15 << 11
	dnsTruncated = 1 << 9
	dnsRecursion = 1 << 8
	dnsRcode     = 15

	rcodeNXDomain = 3

	maxName     = 255 // octets of a name on the wire (RFC 1035 section 2.3.4)
	maxLabel    = 63
	maxPointers = 16 // of one compressed name: no server needs more than a few
	maxAnswers  = 64 // records of a response that are looked at
	maxAddrs    = 16 // addresses of one name
)

// Errors of a lookup.
var (
	errNoName    = errors.New("there is no such name")
	errNoAddrs   = errors.New("the name has no address")
	errBadName   = errors.New("it is not a name of the DNS")
	errTruncated = errors.New("the answer does not fit")
	errNotOurs   = errors.New("it is not the answer to the question")
	errBadAnswer = errors.New("the DNS server's answer is malformed")
	errRefused   = errors.New("the DNS server fails or refuses")
)

// appendName appends a name, with or without the dot at its end, as labels.
func appendName(b []byte, name string) ([]byte, error) {
	name = strings.TrimSuffix(name, ".")
	start := len(b)
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > maxLabel {
			return nil, errBadName
		}
		b = append(append(b, byte(len(label))), label...)
	}
	if b = append(b, 0); len(b)-start > maxName {
		return nil, errBadName
	}
	return b, nil
}

// appendQuery appends a query with recursion desired.
func appendQuery(b []byte, id uint16, name string, typ uint16) ([]byte, error) {
	b = binary.BigEndian.AppendUint16(b, id)
	b = binary.BigEndian.AppendUint16(b, dnsRecursion)
	b = append(b, 0, 1, 0, 0, 0, 0, 0, 0)
	b, err := appendName(b, name)
	if err != nil {
		return nil, err
	}
	b = binary.BigEndian.AppendUint16(b, typ)
	return binary.BigEndian.AppendUint16(b, dnsClassIN), nil
}

// dnsAnswer is what the DNS has said of a name: its addresses, and how long they are good for.
type dnsAnswer struct {
	list []netip.Addr
	ttl  time.Duration
}

// parseAnswer returns the addresses that a response has for the name and type of the
// query, following aliases. errNotOurs means that it belongs to something else: go on
// waiting. The other errors are errTruncated, errBadAnswer, errRefused, errNoName, errNoAddrs.
func parseAnswer(b []byte, id uint16, name string, typ uint16) (ans dnsAnswer, err error) {
	if len(b) < dnsHeader {
		return dnsAnswer{}, errNotOurs
	}
	flags := binary.BigEndian.Uint16(b[2:])
	if binary.BigEndian.Uint16(b) != id || flags&(dnsResponse|dnsOpcode) != dnsResponse || binary.BigEndian.Uint16(b[4:]) != 1 {
		return dnsAnswer{}, errNotOurs
	}
	asked, at, ok := readName(b, dnsHeader)
	if !ok || len(b)-at < 4 || asked != canonical(name) ||
		binary.BigEndian.Uint16(b[at:]) != typ || binary.BigEndian.Uint16(b[at+2:]) != dnsClassIN {
		return dnsAnswer{}, errNotOurs
	}
	at += 4
	switch rcode := flags & dnsRcode; {
	case flags&dnsTruncated != 0:
		return dnsAnswer{}, errTruncated
	case rcode == rcodeNXDomain:
		return dnsAnswer{}, errNoName
	case rcode != 0:
		return dnsAnswer{}, errRefused
	}
	// An alias stands before what it leads to, as all servers write it.
	ans.ttl = math.MaxInt32 * time.Second
	for range min(binary.BigEndian.Uint16(b[6:]), maxAnswers) {
		owner, next, ok := readName(b, at)
		if !ok || len(b)-next < 10 {
			return dnsAnswer{}, errBadAnswer
		}
		t, class := binary.BigEndian.Uint16(b[next:]), binary.BigEndian.Uint16(b[next+2:])
		ttl := time.Duration(int32(binary.BigEndian.Uint32(b[next+4:]))) * time.Second // RFC 2181 section 8: negative means 0
		n := int(binary.BigEndian.Uint16(b[next+8:]))
		next += 10
		if len(b)-next < n {
			return dnsAnswer{}, errBadAnswer
		}
		data := b[next : next+n]
		at = next + n
		if class != dnsClassIN || owner != asked {
			continue
		}
		switch {
		case t == dnsCNAME:
			target, end, ok := readName(b, next)
			if !ok || end != at {
				return dnsAnswer{}, errBadAnswer
			}
			asked, ans.ttl = target, min(ans.ttl, max(ttl, time.Second))
		case t == typ && (typ == dnsTypeA && n == 4 || typ == dnsTypeAAAA && n == 16):
			if a, _ := netip.AddrFromSlice(data); len(ans.list) < maxAddrs {
				ans.list = append(ans.list, a)
			}
			ans.ttl = min(ans.ttl, max(ttl, time.Second))
		case t == typ:
			return dnsAnswer{}, errBadAnswer
		}
	}
	if len(ans.list) == 0 {
		return dnsAnswer{}, errNoAddrs
	}
	return ans, nil
}

// readName reads a possibly compressed name at b[at:] (RFC 1035 section 4.1.4) and returns
// it in canonical form, and where it ends. A pointer leads backwards, so that there is no
// loop.
func readName(b []byte, at int) (name string, end int, ok bool) {
	var out []byte
	limit, pointers := at, 0
	for {
		if at >= len(b) {
			return "", 0, false
		}
		n := int(b[at])
		at++
		switch {
		case n == 0:
			if end == 0 {
				end = at
			}
			return string(out), end, true
		case n <= maxLabel:
			if len(b)-at < n || len(out)+n+1 > maxName {
				return "", 0, false
			}
			for _, c := range b[at : at+n] {
				if c == '.' {
					return "", 0, false // no name of a host has one inside a label
				}
				out = append(out, lower(c))
			}
			out = append(out, '.')
			at += n
		case n >= 0xc0:
			if at >= len(b) {
				return "", 0, false
			}
			to := (n&0x3f)<<8 | int(b[at])
			if end == 0 {
				end = at + 1
			}
			if pointers++; to >= limit || pointers > maxPointers {
				return "", 0, false
			}
			at, limit = to, to
		default:
			return "", 0, false
		}
	}
}

func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// canonical returns a name in lower case with a dot at its end.
func canonical(name string) string {
	b := []byte(strings.TrimSuffix(name, ".") + ".")
	for i := range b {
		b[i] = lower(b[i])
	}
	return string(b)
}
