package ike

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestIdentitiesInStrongSwansNotation(t *testing.T) {
	v4, v6 := string(octets(t, "0a090001")), string(octets(t, "20010db8000000000000000000000001"))
	for _, c := range []struct {
		in   string
		want ID
		out  string
	}{
		{"10.9.0.1", ID{IDIPv4, v4}, "10.9.0.1"},
		{"2001:db8::1", ID{IDIPv6, v6}, "2001:db8::1"},
		{"2001:DB8:0::1", ID{IDIPv6, v6}, "2001:db8::1"},
		{"ipv4:10.9.0.1", ID{IDIPv4, v4}, "10.9.0.1"},
		{"ipv4:#0a090001", ID{IDIPv4, v4}, "10.9.0.1"},
		{"ipv6:2001:db8::1", ID{IDIPv6, v6}, "2001:db8::1"},
		{"::ffff:10.9.0.1", ID{IDIPv6, string(octets(t, "00000000000000000000ffff0a090001"))}, "::ffff:10.9.0.1"},
		{"moon.example", ID{IDFQDN, "moon.example"}, "moon.example"},
		{"@moon.example", ID{IDFQDN, "moon.example"}, "moon.example"},
		{"fqdn:moon.example", ID{IDFQDN, "moon.example"}, "moon.example"},
		{"dns:moon.example", ID{IDFQDN, "moon.example"}, "moon.example"},
		{"fqdn:10.9.0.1", ID{IDFQDN, "10.9.0.1"}, "fqdn:10.9.0.1"},
		{"@%any", ID{IDFQDN, "%any"}, "fqdn:%any"},
		{"carol@moon.example", ID{IDRFC822, "carol@moon.example"}, "carol@moon.example"},
		{"@@carol@moon.example", ID{IDRFC822, "carol@moon.example"}, "carol@moon.example"},
		{"email:carol", ID{IDRFC822, "carol"}, "email:carol"},
		{"rfc822:carol@moon", ID{IDRFC822, "carol@moon"}, "carol@moon"},
		{"userfqdn:carol@moon", ID{IDRFC822, "carol@moon"}, "carol@moon"},
		{"@#0A0b0c", ID{IDKeyID, "\n\v\f"}, "@#0a0b0c"},
		{"keyid:site 7", ID{IDKeyID, "site 7"}, "keyid:site 7"},
		{"keyid:#73697465", ID{IDKeyID, "site"}, "keyid:site"},
		{"keyid:a=b", ID{IDKeyID, "a=b"}, "keyid:a=b"},
		{"some:thing", ID{IDKeyID, "some:thing"}, "keyid:some:thing"},
		{"asn1dn:#3000", ID{IDDERDN, "0\x00"}, "asn1dn:#3000"},
		{"asn1gn:#8201", ID{idDERGN, "\x82\x01"}, "asn1gn:#8201"},
		{"{11}:site", ID{IDKeyID, "site"}, "keyid:site"},
		{"{200}:#01", ID{200, "\x01"}, "{200}:#01"},
		{"{13}:", ID{idNull, ""}, "{13}:#"},
		{"%any", ID{}, "%any"},
		{"%any4", ID{}, "%any"},
		{"%any6", ID{}, "%any"},
		{"*", ID{}, "%any"},
		{"", ID{}, "%any"},
		{"0.0.0.0", ID{}, "%any"},
		{"::", ID{}, "%any"},
		{"ipv4:#00000000", ID{IDIPv4, "\x00\x00\x00\x00"}, "ipv4:#00000000"},
		{"fe80::1%eth0", ID{IDKeyID, "fe80::1%eth0"}, "keyid:fe80::1%eth0"},
	} {
		id, err := ParseIDString(c.in)
		if err != nil || id != c.want {
			t.Errorf("%q is %d %q, %v; want %d %q", c.in, id.Type, id.Data, err, c.want.Type, c.want.Data)
		}
		if got := id.String(); got != c.out {
			t.Errorf("%q is printed as %q, want %q", c.in, got, c.out)
		}
	}
}

func TestIdentitiesThatMakeNoSense(t *testing.T) {
	for in, want := range map[string]string{
		"moon=":                            "keyid:",
		"asn1dn:moon":                      "moon",
		"@#0a0":                            "hexadecimal",
		"@#":                               "0 octets",
		"keyid:":                           "0 octets",
		"@":                                "0 octets",
		"keyid:#xyz":                       "hexadecimal",
		"ipv4:moon":                        "not an address",
		"ipv4:2001:db8::1":                 "not an address",
		"ipv6:10.9.0.1":                    "not an address",
		"ipv4:#0a":                         "1 octets",
		"{0}:x":                            "not a type",
		"{256}:x":                          "not a type",
		"{x}:x":                            "not a type",
		"fqdn:" + strings.Repeat("x", 513): "513 octets",
	} {
		if id, err := ParseIDString(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q gives %v, %v; want an error with %q", in, id, err, want)
		}
	}
}

func TestPrintedIdentitiesCannotForgeALine(t *testing.T) {
	for _, id := range []ID{
		{IDFQDN, "moon\nlevel=info msg=\"all is well\""},
		{IDFQDN, "moon\x00.example"},
		{IDFQDN, "\x1b[2J"},
		{IDRFC822, "a@b\r"},
		{IDKeyID, "\x7f"},
		{IDKeyID, "\u202eevil"},
		{IDFQDN, "moon\xff"},
		{IDFQDN, "\u0085"},
		{IDDERDN, "0\x82\x00\n"},
		{77, "\n"},
		{IDKeyID, "#0a"},
		{IDFQDN, "#0a"},
		{IDFQDN, "a:#b"},
	} {
		s := id.String()
		for _, r := range s {
			if r < ' ' || r > '~' {
				t.Errorf("%d %q is printed as %q, with a character that must not reach a log", id.Type, id.Data, s)
			}
		}
		if back, err := ParseIDString(s); err != nil || back != id {
			t.Errorf("%q does not lead back to %d %q: %v, %v", s, id.Type, id.Data, back, err)
		}
	}
}

func TestIdentitiesOnTheWire(t *testing.T) {
	id, err := ParseID(octets(t, "02ffffff"+"6d6f6f6e"))
	if err != nil || id != (ID{IDFQDN, "moon"}) {
		t.Errorf("%v, %v; want the domain name moon", id, err)
	}
	if b := id.appendBody(nil); !bytes.Equal(b, octets(t, "02000000"+"6d6f6f6e")) {
		t.Errorf("written as %x", b)
	}
	if id, err := ParseID(octets(t, "0d000000"+"aabb")); err != nil || id != (ID{Type: idNull}) {
		t.Errorf("ID_NULL: %v, %v; its data must be ignored", id, err)
	}
	for what, s := range map[string]string{
		"nothing":                  "",
		"a header that is cut":     "010000",
		"type 0":                   "000000006d",
		"no data":                  "02000000",
		"IPv4 of 3 octets":         "010000000a0900",
		"IPv4 of 5 octets":         "010000000a09000101",
		"IPv6 of 4 octets":         "050000000a090001",
		"data longer than we keep": "02000000" + strings.Repeat("61", maxIDLen+1),
	} {
		if id, err := ParseID(octets(t, s)); !errors.Is(err, ErrSyntax) {
			t.Errorf("%s: %v, %v; want a syntax error", what, id, err)
		}
	}
}
