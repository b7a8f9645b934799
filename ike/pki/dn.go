package pki

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// String types that cryptobyte has no name for.
const (
	tagNumeric   = asn1.Tag(18)
	tagT61       = asn1.T61String
	tagIA5       = asn1.IA5String
	tagVisible   = asn1.Tag(26)
	tagUniversal = asn1.Tag(28)
	tagBMP       = asn1.Tag(30)
)

// attributes are the short names of strongSwan's notation. Several names of one attribute stand
// together; the first is written.
var attributes = []struct {
	name, oid string
	tag       asn1.Tag // of the value; 0: PrintableString if it fits, else UTF8String
}{
	{"C", oidName + "\x06", asn1.PrintableString},
	{"ST", oidName + "\x08", 0},
	{"L", oidName + "\x07", 0},
	{"O", oidName + "\x0a", 0},
	{"OU", oidName + "\x0b", 0},
	{"CN", oidName + "\x03", 0},
	{"E", oidEmail, tagIA5},
	{"Email", oidEmail, tagIA5},
	{"emailAddress", oidEmail, tagIA5},
	{"SN", oidName + "\x05", asn1.PrintableString},
	{"serialNumber", oidName + "\x05", asn1.PrintableString},
	{"S", oidName + "\x04", 0},
	{"T", oidName + "\x0c", 0},
	{"D", oidName + "\x0d", 0},
	{"N", oidName + "\x29", 0},
	{"G", oidName + "\x2a", 0},
	{"I", oidName + "\x2b", 0},
	{"dnQualifier", oidName + "\x2e", asn1.PrintableString},
	{"STREET", oidName + "\x09", 0},
	{"postalCode", oidName + "\x11", 0},
	{"UID", "\x09\x92\x26\x89\x93\xf2\x2c\x64\x01\x01", 0},
	{"DC", "\x09\x92\x26\x89\x93\xf2\x2c\x64\x01\x19", tagIA5},
	{"UN", oidPKCS9 + "\x02", tagIA5},
	{"unstructuredName", oidPKCS9 + "\x02", tagIA5},
	{"EN", "\x60\x86\x48\x01\x86\xf8\x42\x03\x01\x03", 0},
	{"employeeNumber", "\x60\x86\x48\x01\x86\xf8\x42\x03\x01\x03", 0},
}

const (
	oidName  = "\x55\x04" // 2.5.4, of which follow
	oidPKCS9 = "\x2a\x86\x48\x86\xf7\x0d\x01\x09"
	oidEmail = oidPKCS9 + "\x01"
)

// ParseDN reads a distinguished name in strongSwan's notation, "C=CH, O=strongSwan, CN=moon" (or
// "/C=CH/O=strongSwan/CN=moon"), into DER. Attributes are the usual short names, in any case, or
// OIDs in digits; a value with a separator in it stands in double quotes or has a backslash
// before it; "#" and hexadecimal digits are a value in DER. Each attribute becomes an RDN of its
// own. wild says that a value is "*".
func ParseDN(text string) (der []byte, wild bool, err error) {
	if len(text) > maxDNOctets {
		return nil, false, errors.New("the distinguished name is too long")
	}
	sep := byte(',')
	rest := strings.TrimSpace(text)
	if strings.HasPrefix(rest, "/") {
		sep, rest = '/', rest[1:]
	}
	if rest == "" {
		return nil, false, errors.New("the distinguished name is empty")
	}
	var rdns []byte
	for more := true; more; {
		name, after, ok := strings.Cut(rest, "=")
		name = strings.TrimSpace(name)
		if !ok || name == "" {
			return nil, false, fmt.Errorf("distinguished name: %q is not of the form attribute=value", strings.TrimSpace(rest))
		}
		var value string
		var quoted bool
		if value, quoted, rest, more, err = dnValue(after, sep); err != nil {
			return nil, false, err
		}
		oid, tag := "", asn1.Tag(0)
		for _, a := range attributes {
			if strings.EqualFold(a.name, name) {
				oid, tag = a.oid, a.tag
				break
			}
		}
		if oid == "" {
			if oid = dottedOID(name); oid == "" {
				return nil, false, fmt.Errorf("distinguished name: %q is no attribute that is known; others are written as an OID in digits", name)
			}
		}
		rdn, err := dnRDN(oid, tag, value, quoted)
		if err != nil {
			return nil, false, fmt.Errorf("distinguished name: %s=: %w", name, err)
		}
		wild = wild || value == "*" && !quoted
		rdns = append(rdns, rdn...)
	}
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(rdns) })
	der, err = b.Bytes()
	return der, wild, err
}

// dnValue reads one value and says whether another attribute follows.
func dnValue(s string, sep byte) (value string, quoted bool, rest string, more bool, err error) {
	s = strings.TrimLeft(s, " \t")
	var v []byte
	keep := 0 // octets of v that are not to be trimmed
	i := 0
	if strings.HasPrefix(s, `"`) {
		quoted = true
		for i = 1; i < len(s) && s[i] != '"'; i++ {
			if s[i] == '\\' && i+1 < len(s) {
				i++
			}
			v = append(v, s[i])
		}
		if i >= len(s) {
			return "", false, "", false, errors.New("distinguished name: a double quote is not closed")
		}
		keep = len(v)
		i++
	}
	for ; i < len(s) && s[i] != sep; i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			i++
			v = append(v, s[i])
			keep = len(v)
		case quoted && s[i] != ' ' && s[i] != '\t':
			return "", false, "", false, errors.New("distinguished name: something follows a closing double quote")
		default:
			v = append(v, s[i])
		}
	}
	for len(v) > keep && (v[len(v)-1] == ' ' || v[len(v)-1] == '\t') {
		v = v[:len(v)-1]
	}
	if i < len(s) {
		return string(v), quoted, s[i+1:], true, nil
	}
	return string(v), quoted, "", false, nil
}

// dnRDN is one attribute and value as a RelativeDistinguishedName.
func dnRDN(oid string, tag asn1.Tag, value string, quoted bool) ([]byte, error) {
	var element []byte
	if strings.HasPrefix(value, "#") && !quoted {
		var err error
		element, err = hex.DecodeString(value[1:])
		in := cryptobyte.String(element)
		var skip cryptobyte.String
		var any asn1.Tag
		if err != nil || !in.ReadAnyASN1(&skip, &any) || !in.Empty() {
			return nil, errors.New("after # comes one value of DER in hexadecimal digits")
		}
	} else {
		if !utf8.ValidString(value) {
			return nil, errors.New("the value is not UTF-8")
		}
		printable := !strings.ContainsFunc(value, func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(" '()+,-./:=?", r))
		})
		ascii := !strings.ContainsFunc(value, func(r rune) bool { return r >= 0x80 })
		switch {
		case tag == 0 && printable:
			tag = asn1.PrintableString
		case tag == 0, tag == asn1.PrintableString && !printable, tag == tagIA5 && !ascii:
			tag = asn1.UTF8String
		}
	}
	var b cryptobyte.Builder
	b.AddASN1(asn1.SET, func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(asn1.OBJECT_IDENTIFIER, func(b *cryptobyte.Builder) { b.AddBytes([]byte(oid)) })
			if element != nil {
				b.AddBytes(element)
			} else {
				b.AddASN1(tag, func(b *cryptobyte.Builder) { b.AddBytes([]byte(value)) })
			}
		})
	})
	return b.Bytes()
}

// dottedOID encodes "2.5.4.3"; "" if it is none.
func dottedOID(s string) string {
	parts := strings.Split(s, ".")
	if len(parts) < 2 || len(parts) > 32 {
		return ""
	}
	var out []byte
	var first uint64
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 10, 31)
		switch {
		case err != nil || i == 0 && n > 2 || i == 1 && first < 2 && n > 39:
			return ""
		case i == 0:
			first = n
			continue
		case i == 1:
			n += first * 40
		}
		for shift := 35; shift > 0; shift -= 7 {
			if n>>shift != 0 {
				out = append(out, byte(n>>shift)|0x80)
			}
		}
		out = append(out, byte(n&0x7f))
	}
	return string(out)
}

// oidDots is the other way round.
func oidDots(oid []byte) string {
	var b strings.Builder
	n, first := uint64(0), true
	for i, c := range oid {
		if n > 1<<40 || i > 64 {
			return "?"
		}
		n = n<<7 | uint64(c&0x7f)
		if c&0x80 != 0 {
			continue
		}
		if first {
			top := min(n/40, 2)
			b.WriteString(strconv.FormatUint(top, 10))
			n -= top * 40
			first = false
		}
		b.WriteByte('.')
		b.WriteString(strconv.FormatUint(n, 10))
		n = 0
	}
	return b.String()
}

// ava is one attribute and its value.
type ava struct {
	oid   cryptobyte.String
	tag   asn1.Tag
	value cryptobyte.String
}

// readDN takes a DER name apart; each RDN is a list with at least one attribute.
func readDN(der []byte) ([][]ava, bool) {
	if len(der) > maxDNOctets {
		return nil, false
	}
	in := cryptobyte.String(der)
	var seq cryptobyte.String
	if !in.ReadASN1(&seq, asn1.SEQUENCE) || !in.Empty() {
		return nil, false
	}
	var name [][]ava
	for !seq.Empty() {
		var set cryptobyte.String
		if !seq.ReadASN1(&set, asn1.SET) || set.Empty() {
			return nil, false
		}
		var rdn []ava
		for !set.Empty() {
			var one cryptobyte.String
			var a ava
			if !set.ReadASN1(&one, asn1.SEQUENCE) || !one.ReadASN1(&a.oid, asn1.OBJECT_IDENTIFIER) || len(a.oid) == 0 ||
				!one.ReadAnyASN1(&a.value, &a.tag) || !one.Empty() {
				return nil, false
			}
			rdn = append(rdn, a)
		}
		name = append(name, rdn)
	}
	return name, true
}

// text is the value as a string; ok is false for what is none.
func (a *ava) text() (string, bool) {
	v := []byte(a.value)
	switch a.tag {
	case asn1.UTF8String:
		return string(v), utf8.Valid(v)
	case asn1.PrintableString, tagIA5, tagNumeric, tagVisible:
		for _, c := range v {
			if c >= 0x80 {
				return "", false
			}
		}
		return string(v), true
	case tagT61: // in practice Latin-1
		r := make([]rune, len(v))
		for i, c := range v {
			r[i] = rune(c)
		}
		return string(r), true
	case tagBMP:
		if len(v)%2 != 0 {
			return "", false
		}
		u := make([]uint16, len(v)/2)
		for i := range u {
			u[i] = uint16(v[2*i])<<8 | uint16(v[2*i+1])
		}
		return string(utf16.Decode(u)), true
	case tagUniversal:
		if len(v)%4 != 0 {
			return "", false
		}
		r := make([]rune, len(v)/4)
		for i := range r {
			r[i] = rune(v[4*i])<<24 | rune(v[4*i+1])<<16 | rune(v[4*i+2])<<8 | rune(v[4*i+3])
		}
		return string(r), true
	}
	return "", false
}

// PlainDN tells whether der is a distinguished name whose texts have no control characters.
func PlainDN(der []byte) bool {
	name, ok := readDN(der)
	for _, rdn := range name {
		for i := range rdn {
			if text, isText := rdn[i].text(); isText && strings.ContainsFunc(text, unicode.IsControl) {
				return false
			}
		}
	}
	return ok
}

// FormatDN writes a DER name in the notation that [ParseDN] reads, for status and logs; a value that
// is no text, or has characters that do not print, is in hexadecimal (RFC 4514 section 2.4), so that
// different names never look the same. What is no name gives "(not a distinguished name)". The
// attributes of an RDN with several stand with "+" between them, which ParseDN does not read.
func FormatDN(der []byte) string { return formatDN(der, ", ", false) }

func formatDN(der []byte, sep string, reverse bool) string {
	name, ok := readDN(der)
	if !ok {
		return "(not a distinguished name)"
	}
	if reverse {
		slices.Reverse(name)
	}
	var b strings.Builder
	for i, rdn := range name {
		for j, a := range rdn {
			switch {
			case j > 0 && sep == ",":
				b.WriteByte('+')
			case j > 0:
				b.WriteString(" + ")
			case i > 0:
				b.WriteString(sep)
			}
			at := ""
			for _, known := range attributes {
				if known.oid == string(a.oid) {
					at = known.name
					break
				}
			}
			if at == "" {
				at = oidDots(a.oid)
			}
			b.WriteString(at)
			b.WriteByte('=')
			v, ok := a.text()
			switch {
			case !ok || clean(v) != v:
				b.WriteByte('#')
				var raw cryptobyte.Builder
				raw.AddASN1(a.tag, func(b *cryptobyte.Builder) { b.AddBytes(a.value) })
				element, _ := raw.Bytes()
				b.WriteString(hex.EncodeToString(element))
			case strings.ContainsAny(v, `,"\`) || strings.HasPrefix(v, "#") || strings.HasPrefix(v, " ") || strings.HasSuffix(v, " "):
				b.WriteByte('"')
				b.WriteString(strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(v))
				b.WriteByte('"')
			default:
				b.WriteString(v)
			}
		}
	}
	return b.String()
}

// clean makes a text of a stranger fit for a log: what does not print becomes "?".
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !strconv.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// brief shortens a name for a log line: a stranger may have one of any length.
func brief(s string) string {
	const most = 160
	if len(s) <= most {
		return s
	}
	n := most
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// MatchDN compares two DER names, RDN by RDN in their order: attribute types exactly, values
// without regard to the case of ASCII letters, to the string's ASN.1 type and to the number of
// spaces (after RFC 5280 7.1). A value "*" in pattern matches any value. Names that are not well
// formed match nothing.
func MatchDN(pattern, der []byte) bool { return compareDN(pattern, der, true) }

// EqualDN is [MatchDN] without a meaning of "*".
func EqualDN(a, b []byte) bool { return compareDN(a, b, false) }

func compareDN(pattern, der []byte, wild bool) bool {
	p, ok := readDN(pattern)
	d, ok2 := readDN(der)
	if !ok || !ok2 || len(p) != len(d) {
		return false
	}
	for i := range p {
		if len(p[i]) != len(d[i]) || len(p[i]) > 8 {
			return false
		}
		// The order within an RDN follows from the encoding, which string types change.
		var taken [8]bool
		for j := range p[i] {
			found := false
			for k := range d[i] {
				if !taken[k] && p[i][j].matches(&d[i][k], wild) {
					taken[k], found = true, true
					break
				}
			}
			if !found {
				return false
			}
		}
	}
	return true
}

func (a *ava) matches(o *ava, wild bool) bool {
	if string(a.oid) != string(o.oid) {
		return false
	}
	s, ok := a.text()
	if wild && ok && s == "*" {
		return true
	}
	t, ok2 := o.text()
	if !ok || !ok2 {
		return a.tag == o.tag && string(a.value) == string(o.value)
	}
	return foldDN(s) == foldDN(t)
}

// foldDN lowers ASCII letters only (other alphabets have letters that look alike and fold into
// one another), and makes one space of many.
func foldDN(s string) string {
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == ' ' && (len(b) == 0 || b[len(b)-1] == ' ') {
			continue
		}
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		b = append(b, c)
	}
	if len(b) > 0 && b[len(b)-1] == ' ' {
		b = b[:len(b)-1]
	}
	return string(b)
}

// equalFold compares without regard to the case of ASCII letters.
func equalFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := 0; i < len(a); i++ {
		x, y := a[i], b[i]
		if x >= 'A' && x <= 'Z' {
			x += 'a' - 'A'
		}
		if y >= 'A' && y <= 'Z' {
			y += 'a' - 'A'
		}
		if x != y {
			return false
		}
	}
	return true
}
