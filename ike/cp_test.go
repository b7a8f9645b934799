package ike

import (
	"bytes"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// cpBody returns the body of a Configuration payload.
func cpBody(t CFGType, list ...Attr) []byte {
	b := NewBuilder(nil, Header{Exchange: ExchangeInformational})
	b.CP(t, list)
	return b.Finish()[headerLen+payloadHdr:]
}

// readCP parses a payload that must be sound.
func readCP(t testing.TB, body []byte) CP {
	t.Helper()
	cp, err := ParseCP(body)
	if err != nil {
		t.Fatalf("% x: %v", body, err)
	}
	return cp
}

func TestConfigurationPayloadOnTheWire(t *testing.T) {
	got := cpBody(CFGReply, addrAttr(AttrIP4Address, AttrIP6Address, addrs("10.9.0.5")[0]), addrAttr(AttrIP4Address, AttrIP6Address, addrs("::")[0]),
		addrAttr(AttrIP4Address, AttrIP6Address, addrs("2001:db8::5")[0]), subnetAttr(netip.MustParsePrefix("10.1.2.3/20")),
		subnetAttr(netip.MustParsePrefix("fd00:1::7/48")), Attr{AttrDNSDomain, []byte("x.test")})
	want := []byte{2, 0, 0, 0,
		0, 1, 0, 4, 10, 9, 0, 5,
		0, 8, 0, 0,
		0, 8, 0, 17, 0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 128,
		0, 13, 0, 8, 10, 1, 0, 0, 255, 255, 240, 0,
		0, 15, 0, 17, 0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 48,
		0, 25, 0, 6, 'x', '.', 't', 'e', 's', 't'}
	if !bytes.Equal(got, want) {
		t.Errorf("% x, want\n% x", got, want)
	}
	as := readCP(t, got).assigned(1, 1)
	if !slices.Equal(as.Addrs, addrs("10.9.0.5", "2001:db8::5")) || len(as.Subnets) != 2 || as.Subnets[0] != netip.MustParsePrefix("10.1.0.0/20") ||
		as.Subnets[1] != netip.MustParsePrefix("fd00:1::/48") || !slices.Equal(as.Domains, []string{"x.test"}) {
		t.Errorf("read as %+v", as)
	}
}

func TestMalformedConfigurationPayloads(t *testing.T) {
	for name, body := range map[string][]byte{
		"nothing":                      {},
		"half a header":                {1, 0, 0},
		"half an attribute's header":   {1, 0, 0, 0, 0, 1, 0},
		"a value that is too short":    {1, 0, 0, 0, 0, 1, 0, 4, 10, 0, 0},
		"an address of 3 octets":       {2, 0, 0, 0, 0, 1, 0, 3, 10, 0, 0},
		"an IPv6 address without bits": append([]byte{2, 0, 0, 0, 0, 8, 0, 16}, make([]byte, 16)...),
		"a subnet without a mask":      {2, 0, 0, 0, 0, 13, 0, 4, 10, 0, 0, 0},
		"half a type":                  {2, 0, 0, 0, 0, 14, 0, 3, 0, 1, 0},
		"a length beyond everything":   {2, 0, 0, 0, 0, 99, 255, 255, 1},
	} {
		if _, err := ParseCP(body); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	// The reserved bit is ignored, and so is what we do not know.
	cp := readCP(t, []byte{1, 9, 9, 9, 0x80, 1, 0, 0, 0x40, 0, 0, 2, 1, 2, 0, 7, 0, 1, 'x'})
	if !cp.has(AttrIP4Address) || !cp.has(AttrVersion) || cp.has(AttrIP6Address) {
		t.Error("attributes are not found")
	}
}

// A gateway that sends nonsense, or more than was asked for, fills neither memory nor files.
func TestUselessAttributesAreLeftOut(t *testing.T) {
	var list []Attr
	for _, a := range addrs("0.0.0.0", "224.0.0.1", "127.0.0.1", "255.255.255.255", "10.9.0.5", "10.9.0.5", "10.9.0.6") {
		list = append(list, Attr{AttrIP4Address, a.AsSlice()}, Attr{AttrIP4DNS, a.AsSlice()})
	}
	list = append(list, Attr{AttrIP6Address, append(netip.MustParseAddr("::ffff:10.0.0.1").AsSlice(), 64)},
		Attr{AttrIP4Subnet, []byte{10, 0, 0, 0, 255, 0, 255, 0}}, Attr{AttrIP6Subnet, append(make([]byte, 16), 129)})
	for _, d := range []string{"", ".", "a..b", "a b.test", "a\nserver 6.6.6.6", "a.test\x00", "-a.test", "a-.test", "/etc/passwd", "#x", strings.Repeat("a", 64) + ".test",
		strings.Repeat("abc.", 63) + "abcd", "A.Test.", "xn--bcher-kva.example", "_tcp.test"} {
		list = append(list, Attr{AttrDNSDomain, []byte(d)})
	}
	for range 300 {
		list = append(list, Attr{AttrEncDNS4, (&EncryptedDNS{Priority: 1, ADN: "d.test", Addrs: addrs("10.0.0.1")}).appendBody(nil)})
	}
	as := readCP(t, cpBody(CFGReply, list...)).assigned(1, 1)
	if !slices.Equal(as.Addrs, addrs("10.9.0.5")) {
		t.Errorf("addresses %v, want the first one that a host can have", as.Addrs)
	}
	if !slices.Equal(as.DNS, addrs("10.9.0.5", "10.9.0.6")) || len(as.Subnets) != 0 || len(as.EncDNS) != maxResolvers {
		t.Errorf("resolvers %v, subnets %v, %d encrypted resolvers", as.DNS, as.Subnets, len(as.EncDNS))
	}
	if want := []string{"a.test", "xn--bcher-kva.example", "_tcp.test"}; !slices.Equal(as.Domains, want) {
		t.Errorf("domains %q, want %q", as.Domains, want)
	}
	list = nil
	for i := range 1000 {
		list = append(list, Attr{AttrDNSDomain, []byte("d" + string(rune('a'+i%26)) + string(rune('a'+i/26)) + ".test")},
			Attr{AttrDNSSECTA, append([]byte{1, 2, 8, 2}, "00ff"...)}, Attr{AttrIP4Subnet, []byte{10, byte(i), byte(i >> 8), 0, 255, 255, 255, 0}},
			Attr{AttrIP4DNS, []byte{10, 0, byte(i >> 8), byte(i)}})
	}
	as = readCP(t, cpBody(CFGReply, list...)).assigned(1, 1)
	if len(as.Domains) != maxDomains || len(as.TrustAnchors) != maxTrustAnchors || len(as.Subnets) != maxSubnets || len(as.DNS) != maxResolvers {
		t.Errorf("%d domains, %d anchors, %d subnets, %d resolvers: a limit does not hold", len(as.Domains), len(as.TrustAnchors), len(as.Subnets), len(as.DNS))
	}
}

// A trust anchor belongs to the domain right before it, or to none (RFC 8598 section 4.2).
func TestTrustAnchorsBelongToTheDomainBefore(t *testing.T) {
	ta := func(n byte, hex string) Attr { return Attr{AttrDNSSECTA, append([]byte{0, n, 8, 2}, hex...)} }
	as := readCP(t, cpBody(CFGReply, ta(1, "aa"), Attr{AttrDNSDomain, []byte("a.test")}, ta(2, "bb"), ta(3, "CC"), ta(9, "no hex"), ta(8, ""),
		Attr{AttrIP4DNS, []byte{10, 0, 0, 1}}, ta(4, "dd"), Attr{AttrDNSDomain, []byte("bad name")}, ta(5, "ee"), Attr{AttrDNSDomain, []byte("b.test")}, ta(6, "ff"))).assigned(0, 0)
	var got []string
	for i, a := range as.TrustAnchors {
		got = append(got, as.TrustNames[i]+string('0'+rune(a[1])))
	}
	if want := []string{"a.test2", "a.test3", "b.test6"}; !slices.Equal(got, want) {
		t.Errorf("anchors %q, want %q", got, want)
	}
}

func TestEncryptedResolversOnTheWire(t *testing.T) {
	e := EncryptedDNS{Priority: 2, ADN: "dns.example.org", Addrs: addrs("10.0.0.53", "10.0.0.54"), ALPN: []string{"dot", "h2"}, Port: 8853, DoHPath: "/dns-query{?dns}"}
	body := e.appendBody(nil)
	want := "\x00\x02\x02\x0f\x0a\x00\x00\x35\x0a\x00\x00\x36dns.example.org\x00\x01\x00\x07\x03dot\x02h2\x00\x03\x00\x02\x22\x95\x00\x07\x00\x10/dns-query{?dns}"
	if string(body) != want {
		t.Errorf("%q, want\n%q", body, want)
	}
	sum := bytes.Repeat([]byte{7}, 32)
	digest := (&DNSDigest{2, sum}).appendDigest(nil, "dns.example.org")
	six := EncryptedDNS{Priority: 1, ADN: "six.example.org", Addrs: addrs("fd00::53"), ALPN: []string{"doq"}}
	as := readCP(t, cpBody(CFGReply, Attr{AttrEncDNSHash, digest}, Attr{AttrEncDNS4, body}, Attr{AttrEncDNS6, six.appendBody(nil)},
		Attr{AttrEncDNSHash, (&DNSDigest{3, sum}).appendDigest(nil, "")})).assigned(1, 1)
	e.Digests = []DNSDigest{{2, sum}}
	if !reflect.DeepEqual(as.EncDNS, []EncryptedDNS{six, e}) {
		t.Errorf("read as %+v", as.EncDNS)
	}
	for name, bad := range map[string]string{
		"priority 0":          "\x00\x00\x01\x01\x0a\x00\x00\x01a",
		"no address":          "\x00\x01\x00\x01a",
		"no name":             "\x00\x01\x01\x00\x0a\x00\x00\x01",
		"a name of two lines": "\x00\x01\x01\x03\x0a\x00\x00\x01a\nb",
		"a short address":     "\x00\x01\x01\x01\x0a\x00",
		"an address hint":     "\x00\x01\x01\x01\x0a\x00\x00\x01a\x00\x04\x00\x04\x0a\x00\x00\x02",
		"keys out of order":   "\x00\x01\x01\x01\x0a\x00\x00\x01a\x00\x03\x00\x02\x00\x35\x00\x01\x00\x00",
		"an unknown demand":   "\x00\x01\x01\x01\x0a\x00\x00\x01a\x00\x00\x00\x02\x00\x09",
		"a short port":        "\x00\x01\x01\x01\x0a\x00\x00\x01a\x00\x03\x00\x01\x35",
		"a long protocol":     "\x00\x01\x01\x01\x0a\x00\x00\x01a\x00\x01\x00\x02\x05a",
		"a path of two lines": "\x00\x01\x01\x01\x0a\x00\x00\x01a\x00\x07\x00\x03/\na",
		"a cut parameter":     "\x00\x01\x01\x01\x0a\x00\x00\x01a\x00\x07\x00",
		"multicast":           "\x00\x01\x01\x01\xe0\x00\x00\x01a",
		"nothing":             "",
	} {
		if e, ok := parseEncDNS(&Attr{AttrEncDNS4, []byte(bad)}); ok {
			t.Errorf("%s is taken: %+v", name, e)
		}
	}
}

func TestEncryptedResolverAsText(t *testing.T) {
	got, err := ParseEncryptedDNS("dns.example.org 10.0.0.53 10.0.0.54 alpn=dot,h2 port=8853 dohpath=/dns-query{?dns} sha256=" + strings.Repeat("0a", 32))
	want := EncryptedDNS{ADN: "dns.example.org", Addrs: addrs("10.0.0.53", "10.0.0.54"), ALPN: []string{"dot", "h2"}, Port: 8853, DoHPath: "/dns-query{?dns}",
		Digests: []DNSDigest{{2, bytes.Repeat([]byte{10}, 32)}}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	for _, bad := range []string{"", "10.0.0.53", "dns.test", "dns.test 10.0.0.1 fd00::1", "dns.test 10.0.0.1 port=0", "dns.test 10.0.0.1 port=x", "dns.test 0.0.0.0",
		"dns.test 10.0.0.1 alpn=", "dns.test 10.0.0.1 dohpath=x", "dns.test 10.0.0.1 sha256=00", "dns.test 10.0.0.1 colour=red", "dns.test fe80::1%eth0",
		"dns.test" + strings.Repeat(" 10.0.0.1", 9)} {
		if e, err := ParseEncryptedDNS(bad); err == nil {
			t.Errorf("%q is taken: %+v", bad, e)
		}
	}
}

// Whatever a gateway sends, what we take of it is within its bounds and of use.
func FuzzCP(f *testing.F) {
	e := EncryptedDNS{Priority: 1, ADN: "d.test", Addrs: addrs("10.0.0.53"), ALPN: []string{"dot"}, Port: 1, DoHPath: "/q"}
	f.Add(cpBody(CFGReply, Attr{AttrIP4Address, []byte{10, 0, 0, 1}}, Attr{AttrDNSDomain, []byte("a.test")}, Attr{AttrDNSSECTA, []byte("\x00\x01\x08\x02ab")}))
	f.Add(cpBody(CFGReply, Attr{AttrEncDNS4, e.appendBody(nil)}, Attr{AttrEncDNSHash, (&DNSDigest{2, make([]byte, 32)}).appendDigest(nil, "d.test")}))
	f.Add(cpBody(CFGRequest, Attr{AttrIP6Address, make([]byte, 17)}, subnetAttr(netip.MustParsePrefix("10.0.0.0/8")), subnetAttr(netip.MustParsePrefix("fd00::/8"))))
	f.Fuzz(func(t *testing.T, body []byte) {
		cp, err := ParseCP(body)
		if err != nil {
			return
		}
		var list []Attr
		cp.Each(func(a Attr) bool { list = append(list, a); return true })
		if again := readCP(t, cpBody(cp.Type, list...)); again.Type != cp.Type || len(again.attrs) != len(cp.attrs) {
			t.Fatalf("% x is written as % x", body, again.attrs)
		}
		as := cp.assigned(2, 1)
		if len(as.Addrs) > 3 || len(as.DNS) > maxResolvers || len(as.EncDNS) > maxResolvers || len(as.Domains) > maxDomains ||
			len(as.TrustAnchors) > maxTrustAnchors || len(as.TrustAnchors) != len(as.TrustNames) || len(as.Subnets) > maxSubnets {
			t.Fatalf("more than the limits: %+v", as)
		}
		for _, a := range slices.Concat(as.Addrs, as.DNS) {
			if !usable(a) {
				t.Fatalf("the address %v is of no use", a)
			}
		}
		for _, d := range as.Domains {
			if !GoodDomain(d) {
				t.Fatalf("the domain %q is none", d)
			}
		}
		for _, n := range as.TrustNames {
			if !slices.Contains(as.Domains, n) {
				t.Fatalf("a trust anchor for %q, which is no domain", n)
			}
		}
		for i := range as.EncDNS {
			e := &as.EncDNS[i]
			a := Attr{AttrEncDNS4, e.appendBody(nil)}
			if e.Addrs[0].Is6() {
				a.Type = AttrEncDNS6
			}
			again, ok := parseEncDNS(&a)
			again.Digests = e.Digests
			if !ok || !reflect.DeepEqual(again, *e) {
				t.Fatalf("%+v is written and read as %+v", e, again)
			}
		}
	})
}
