package log

import (
	"net/netip"
	"strconv"
	"time"
	"unicode/utf8"
)

// Field is one key=value pair of a line. Fields are made by the functions below and
// are formatted only if the line is written. Keys are constants of the program: they
// are written as they are.
type Field struct {
	key  string
	kind fieldKind
	num  uint64
	str  string
	err  error
	addr netip.AddrPort
}

type fieldKind uint8

const (
	kindStr fieldKind = iota
	kindInt
	kindUint
	kindHex32
	kindHex64
	kindBool
	kindDur
	kindErr
	kindAddr
	kindAddrPort
	kindGrade // no part of the text
)

// Str is a text; it may come from a peer: whatever it holds, it stays one value of one line.
func Str(key, value string) Field { return Field{key: key, kind: kindStr, str: value} }

// Int is a signed number.
func Int(key string, v int) Field { return Field{key: key, kind: kindInt, num: uint64(int64(v))} }

// Uint is an unsigned number.
func Uint(key string, v uint64) Field { return Field{key: key, kind: kindUint, num: v} }

// Hex32 is a number in eight hexadecimal digits, as an ESP SPI is written.
func Hex32(key string, v uint32) Field { return Field{key: key, kind: kindHex32, num: uint64(v)} }

// Hex64 is a number in sixteen hexadecimal digits, as an IKE SPI is written.
func Hex64(key string, v uint64) Field { return Field{key: key, kind: kindHex64, num: v} }

// Bool is yes or no.
func Bool(key string, v bool) Field {
	f := Field{key: key, kind: kindBool}
	if v {
		f.num = 1
	}
	return f
}

// Dur is a time span, rounded to milliseconds if it is longer than one.
func Dur(key string, d time.Duration) Field { return Field{key: key, kind: kindDur, num: uint64(d)} }

// Err is an error, under the key err. A nil error leaves no trace in the line.
func Err(err error) Field { return Field{key: "err", kind: kindErr, err: err} }

// Addr is an address without a port.
func Addr(key string, a netip.Addr) Field {
	return Field{key: key, kind: kindAddr, addr: netip.AddrPortFrom(a, 0)}
}

// AddrPort is an address with a port.
func AddrPort(key string, a netip.AddrPort) Field {
	return Field{key: key, kind: kindAddrPort, addr: a}
}

// leads tells which fields stand ahead of the message: those by which lines are
// searched and sorted.
func (f *Field) leads() bool { return f.key == "conn" || f.key == "child" }

// append writes " key=value".
func (f *Field) append(b []byte) []byte {
	if f.kind == kindErr && f.err == nil || f.kind == kindGrade {
		return b
	}
	b = append(b, ' ')
	b = append(b, f.key...)
	b = append(b, '=')
	switch f.kind {
	case kindStr:
		return appendValue(b, f.str)
	case kindInt:
		return strconv.AppendInt(b, int64(f.num), 10)
	case kindUint:
		return strconv.AppendUint(b, f.num, 10)
	case kindHex32:
		return appendHex(b, f.num, 8)
	case kindHex64:
		return appendHex(b, f.num, 16)
	case kindBool:
		if f.num != 0 {
			return append(b, "yes"...)
		}
		return append(b, "no"...)
	case kindDur:
		d := time.Duration(f.num)
		if d > time.Millisecond || d < -time.Millisecond {
			d = d.Round(time.Millisecond)
		}
		return append(b, d.String()...)
	case kindErr:
		return appendValue(b, f.err.Error())
	case kindAddr:
		return appendValue(b, f.addr.Addr().String())
	case kindAddrPort:
		return appendValue(b, f.addr.String())
	}
	return append(b, '?')
}

func appendHex(b []byte, v uint64, digits int) []byte {
	const hex = "0123456789abcdef"
	for shift := (digits - 1) * 4; shift >= 0; shift -= 4 {
		b = append(b, hex[v>>shift&15])
	}
	return b
}

// maxValue bounds one value, in octets before escaping: an identity has at most 256,
// and what is longer would push the rest of the line out.
const maxValue = 320

// appendValue writes s bare if it is one unmistakable word, and otherwise in quotes
// with everything escaped that could end the line, close the quotes or move a
// terminal's cursor.
func appendValue(b []byte, s string) []byte {
	short := cut(s)
	if len(short) == len(s) && bare(s) {
		return append(b, s...)
	}
	b = appendEscaped(append(b, '"'), short)
	if len(short) < len(s) {
		b = append(b, "..."...)
	}
	return append(b, '"')
}

// cut shortens a value to maxValue octets, without cutting a character in two.
func cut(s string) string {
	if len(s) <= maxValue {
		return s
	}
	n := maxValue
	for n > maxValue-utf8.UTFMax && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// appendEscaped writes s with everything escaped that could end the line, close quotes or move
// a terminal's cursor.
func appendEscaped(b []byte, s string) []byte {
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n <= 1:
			b = append(b, `\x`...)
			b = appendHex(b, uint64(s[i]), 2)
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r == '\n':
			b = append(b, `\n`...)
		case r == '\r':
			b = append(b, `\r`...)
		case r == '\t':
			b = append(b, `\t`...)
		case strconv.IsPrint(r):
			b = append(b, s[i:i+n]...)
		case r < 0x80:
			b = append(b, `\x`...)
			b = appendHex(b, uint64(r), 2)
		case r < 0x10000:
			b = append(b, `\u`...)
			b = appendHex(b, uint64(r), 4)
		default:
			b = append(b, `\U`...)
			b = appendHex(b, uint64(r), 8)
		}
		i += n
	}
	return b
}

// bare tells whether s can stand without quotes.
func bare(s string) bool {
	if s == "" {
		return false
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '"' || c == '=' || c == '\\' {
			return false
		}
	}
	return true
}
