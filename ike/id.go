package ike

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"postern/ike/pki"
)

// maxIDLen bounds the data of an identity: domain names and mail addresses end at 254
// octets, distinguished names seldom pass 300, and every IKE SA keeps two of them.
const maxIDLen = 512

// MaxID is the most octets that the data of an identity can have.
const MaxID = maxIDLen

// Identification types that only the codec knows.
const (
	idDERGN IDType = 10
	idNull  IDType = 13 // RFC 7619
)

// ParseID reads the body of an Identification payload (RFC 7296 section 3.5): a type
// other than 0, and data of 1 to maxIDLen octets, 4 of an IPv4 and 16 of an IPv6 address.
// The data of ID_NULL is ignored (RFC 7619 section 2.2). The result is a copy.
//
//	                     1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|   ID Type     |                 RESERVED                      |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	~                   Identification Data                         ~
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
func ParseID(b []byte) (ID, error) {
	c := cursor{b: b}
	t := IDType(c.u8())
	c.skip(3)
	if !c.ok() {
		return ID{}, syntax(PayloadNone, "identity", errShort)
	}
	data := c.rest()
	if t == idNull {
		data = nil
	}
	if err := checkID(t, len(data)); err != nil {
		return ID{}, err
	}
	return ID{Type: t, Data: string(data)}, nil
}

// parsePeerID is ParseID for what a peer says of itself: names with control characters are
// refused, since no honest one has any, and people are to read them.
func parsePeerID(b []byte) (ID, error) {
	id, err := ParseID(b)
	if err != nil {
		return id, err
	}
	switch id.Type {
	case IDFQDN, IDRFC822:
		if strings.ContainsFunc(id.Data, unicode.IsControl) {
			err = ErrControl
		}
	case IDDERDN:
		if !pki.PlainDN([]byte(id.Data)) {
			err = ErrControl
		}
	}
	return id, err
}

// checkID says whether n octets can be the data of an identity of type t.
func checkID(t IDType, n int) error {
	switch {
	case t == IDNone:
		return syntax(PayloadNone, "type of an identity", errValue)
	case n > maxIDLen, n == 0 && t != idNull, t == IDIPv4 && n != 4, t == IDIPv6 && n != 16:
		return syntax(PayloadNone, "data of an identity", errLength)
	}
	return nil
}

// appendBody appends the identity as the body of an Identification payload, which is
// what enters the AUTH payload (RFC 7296 section 2.15: RestOfIDPayload).
func (id ID) appendBody(b []byte) []byte {
	b = append(b, byte(id.Type), 0, 0, 0)
	return append(b, id.Data...)
}

// idPrefixes are strongSwan's prefixes that say the type of an identity. Of several for
// one type the first is the one that we print.
var idPrefixes = [...]struct {
	name string
	t    IDType
}{
	{"ipv4", IDIPv4},
	{"ipv6", IDIPv6},
	{"fqdn", IDFQDN},
	{"dns", IDFQDN},
	{"email", IDRFC822},
	{"rfc822", IDRFC822},
	{"userfqdn", IDRFC822},
	{"keyid", IDKeyID},
	{"asn1dn", IDDERDN},
	{"asn1gn", idDERGN},
}

// ParseIDString reads an identity as strongSwan writes it:
//
//	10.9.0.1, 2001:db8::1        addresses
//	moon.example, @moon.example  a fully qualified domain name
//	user@example, @@user@example a mail address
//	@#0a0b0c                     a key ID in hexadecimal
//	keyid:text, fqdn:, dns:, email:, rfc822:, userfqdn:, ipv4:, ipv6:, asn1dn:, asn1gn:
//	                             the type, then the data as text; after "#" in hexadecimal
//	{13}:text                    the type's number
//	C=CH, O=plant, CN=pump 1     a distinguished name; in a pattern a value may be *
//	%any, %any4, %any6, *, 0.0.0.0, :: or nothing
//	                             the zero ID: any identity
//
// Another text with a colon is a key ID.
func ParseIDString(s string) (ID, error) {
	switch s {
	case "", "%any", "%any4", "%any6", "*", "0.0.0.0", "::", "0::0":
		return ID{}, nil
	}
	id, err := parseIDString(s)
	if err != nil {
		return ID{}, fmt.Errorf("identity %s: %w", strconv.Quote(s), err)
	}
	if checkID(id.Type, len(id.Data)) != nil {
		return ID{}, fmt.Errorf("identity %s: %v data cannot have %d octets", strconv.Quote(s), id.Type, len(id.Data))
	}
	return id, nil
}

func parseIDString(s string) (ID, error) {
	if name, data, ok := strings.Cut(s, ":"); ok {
		for _, p := range idPrefixes {
			if name == p.name {
				return typedID(p.t, data)
			}
		}
		if num, ok := strings.CutPrefix(name, "{"); ok && strings.HasSuffix(num, "}") {
			n, err := strconv.ParseUint(strings.TrimSuffix(num, "}"), 10, 8)
			if err != nil || n == 0 {
				return ID{}, fmt.Errorf("%s is not a type from 1 to 255", name)
			}
			return typedID(IDType(n), data)
		}
	}
	rest, at := strings.CutPrefix(s, "@")
	switch {
	case at && strings.HasPrefix(rest, "#"):
		return typedID(IDKeyID, rest)
	case at && strings.HasPrefix(rest, "@"):
		return ID{IDRFC822, rest[1:]}, nil
	case at:
		return ID{IDFQDN, rest}, nil
	case strings.Contains(s, "="):
		return dnID(s)
	case strings.Contains(s, "@"):
		return ID{IDRFC822, s}, nil
	}
	if id, ok := addrID(s); ok {
		return id, nil
	}
	if strings.Contains(s, ":") {
		return ID{IDKeyID, s}, nil
	}
	return ID{IDFQDN, s}, nil
}

// typedID makes the identity of a type from what stands behind its prefix.
func typedID(t IDType, data string) (ID, error) {
	if h, ok := strings.CutPrefix(data, "#"); ok {
		b, err := hex.DecodeString(strings.ReplaceAll(h, ":", ""))
		if err != nil {
			return ID{}, fmt.Errorf("what follows # must be hexadecimal digits in pairs")
		}
		return ID{t, string(b)}, nil
	}
	switch t {
	case IDIPv4, IDIPv6:
		if id, ok := addrID(data); ok && id.Type == t {
			return id, nil
		}
		return ID{}, fmt.Errorf("%s is not an address of that type", strconv.Quote(data))
	case IDDERDN:
		return dnID(data)
	case idDERGN:
		return ID{}, fmt.Errorf("write # and the DER encoding in hexadecimal")
	}
	return ID{t, data}, nil
}

// dnID makes an identity of a distinguished name in strongSwan's notation.
func dnID(s string) (ID, error) {
	der, _, err := pki.ParseDN(s)
	if err != nil {
		return ID{}, fmt.Errorf("%w; a key ID with an equals sign needs keyid: before it", err)
	}
	return ID{IDDERDN, string(der)}, nil
}

// addrID makes an identity of an address in its textual form.
func addrID(s string) (ID, bool) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil || a.Zone() != "":
		return ID{}, false
	case a.Is4():
		b := a.As4()
		return ID{IDIPv4, string(b[:])}, true
	}
	b := a.As16()
	return ID{IDIPv6, string(b[:])}, true
}

// Equal tells whether two identities are the same. The letters of names and mail
// addresses count the same in both cases, as they do in the DNS (RFC 4945 section 3.1), and
// distinguished names as RFC 5280 section 7.1 compares them.
func (id ID) Equal(o ID) bool {
	if id.Type == IDFQDN || id.Type == IDRFC822 {
		return id.Type == o.Type && strings.EqualFold(id.Data, o.Data)
	}
	if id.Type == IDDERDN && o.Type == IDDERDN && id.Data != o.Data {
		// Both ways: an asterisk stands for itself here.
		return pki.MatchDN([]byte(id.Data), []byte(o.Data)) && pki.MatchDN([]byte(o.Data), []byte(id.Data))
	}
	return id == o
}

// String returns the identity as ParseIDString reads it. What the peer chose cannot
// forge a log line: data with anything in it that cannot be printed is in hexadecimal.
func (id ID) String() string {
	if id == (ID{}) {
		return "%any"
	}
	hexed := "#" + hex.EncodeToString([]byte(id.Data))
	switch {
	case id.Type == IDIPv4 && len(id.Data) == 4, id.Type == IDIPv6 && len(id.Data) == 16:
		a, _ := netip.AddrFromSlice([]byte(id.Data))
		if !a.IsUnspecified() {
			return a.String()
		}
	case id.Type == IDDERDN:
		text := pki.FormatDN([]byte(id.Data))
		if back, _, err := pki.ParseDN(text); err == nil && string(back) == id.Data && printable(text) {
			return text
		}
	case id.Type == IDKeyID && !printable(id.Data):
		return "@" + hexed
	case id.Type == IDFQDN || id.Type == IDRFC822:
		if back, err := ParseIDString(id.Data); err == nil && back == id && printable(id.Data) {
			return id.Data
		}
	}
	text := id.Data
	if !printable(text) || strings.HasPrefix(text, "#") || !isText(id.Type) {
		text = hexed
	}
	for _, p := range idPrefixes {
		if p.t == id.Type {
			return p.name + ":" + text
		}
	}
	return "{" + strconv.Itoa(int(id.Type)) + "}:" + text
}

// isText tells whether data of the type is text by nature or by custom.
func isText(t IDType) bool { return t == IDFQDN || t == IDRFC822 || t == IDKeyID }

// printable tells whether s can stand in a log line as it is.
func printable(s string) bool {
	for _, r := range s {
		if r == utf8.RuneError || !strconv.IsPrint(r) {
			return false
		}
	}
	return true
}
