package pki

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Types of an identity (RFC 7296 3.5) that a certificate can prove.
const (
	idIPv4   = 1
	idFQDN   = 2
	idRFC822 = 3
	idIPv6   = 5
	idDN     = 9
)

// Cert is an X.509 certificate. It is immutable.
type Cert struct {
	x       *x509.Certificate
	key     *PublicKey
	keyErr  error
	subject string
}

// ParseCert reads one DER certificate, as a CERT payload of encoding 4 carries it. It keeps its
// own copy.
func ParseCert(der []byte) (*Cert, error) {
	if len(der) > MaxCertOctets {
		return nil, fmt.Errorf("a certificate of %d octets is too large", len(der))
	}
	x, err := x509.ParseCertificate(bytes.Clone(der))
	if err != nil {
		return nil, fmt.Errorf("damaged certificate: %s", clean(strings.TrimPrefix(err.Error(), "x509: ")))
	}
	return NewCert(x), nil
}

// NewCert takes a certificate of Go's library. It is kept, not copied.
func NewCert(x *x509.Certificate) *Cert {
	c := &Cert{x: x, subject: FormatDN(x.RawSubject)}
	if x.PublicKey == nil {
		c.keyErr = errors.New("the key is of a kind that is not known; RSA, ECDSA and Ed25519 are taken")
	} else {
		c.key, c.keyErr = newPublicKey(x.PublicKey, x.RawSubjectPublicKeyInfo)
	}
	return c
}

// ParseCerts reads the certificates of a file: PEM (one or more, other blocks are passed over)
// or one in DER.
func ParseCerts(data []byte) ([]*Cert, error) {
	if len(data) > maxFileOctets {
		return nil, errors.New("too large for a file of certificates")
	}
	if !bytes.Contains(data, []byte("-----BEGIN ")) {
		c, err := ParseCert(data)
		if err != nil {
			if kind := kindOfDER(data); kind != "" {
				return nil, fmt.Errorf("this is %s in DER, not a certificate", kind)
			}
			return nil, err
		}
		return []*Cert{c}, nil
	}
	var list []*Cert
	found := ""
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		switch block.Type {
		case "CERTIFICATE", "X509 CERTIFICATE":
			c, err := ParseCert(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("certificate %d of the file: %w", len(list)+1, err)
			}
			list = append(list, c)
		default:
			clear(block.Bytes) // perhaps a private key
			if found == "" {
				found = block.Type
			}
		}
	}
	switch {
	case len(list) > 0:
		return list, nil
	case found != "":
		return nil, fmt.Errorf("this is %s in PEM, not a certificate", kindOfPEM(found))
	}
	return nil, errors.New("damaged PEM: a BEGIN line, but no whole block")
}

// Raw is the certificate in DER. The caller must not change it.
func (c *Cert) Raw() []byte { return c.x.Raw }

// X509 is what Go's library made of it. The caller must not change it.
func (c *Cert) X509() *x509.Certificate { return c.x }

// Subject is the name as charon writes it: "C=CH, O=strongSwan, CN=moon"; "" if it is empty.
func (c *Cert) Subject() string { return c.subject }

// Issuer is the issuer's name in the same notation.
func (c *Cert) Issuer() string { return FormatDN(c.x.RawIssuer) }

// SubjectRFC4514 is the subject last first: "CN=moon,O=strongSwan,C=CH" (RFC 4514, except that
// values with separators stand in quotes).
func (c *Cert) SubjectRFC4514() string { return formatDN(c.x.RawSubject, ",", true) }

// RawSubject is the subject in DER. The caller must not change it.
func (c *Cert) RawSubject() []byte { return c.x.RawSubject }

// Names are the subject alternative names in words, for status and errors.
func (c *Cert) Names() []string {
	var list []string
	for _, n := range c.x.DNSNames {
		list = append(list, "DNS:"+clean(n))
	}
	for _, n := range c.x.EmailAddresses {
		list = append(list, "email:"+clean(n))
	}
	for _, n := range c.x.IPAddresses {
		a, _ := netip.AddrFromSlice(n)
		list = append(list, "IP:"+a.String())
	}
	for _, n := range c.x.URIs {
		list = append(list, "URI:"+clean(n.String()))
	}
	return list
}

// label is how errors call it.
func (c *Cert) label() string {
	if c.subject == "" {
		if names := c.Names(); len(names) > 0 {
			return `certificate "` + brief(names[0]) + `"`
		}
		return "certificate without a subject"
	}
	return `certificate "` + brief(c.subject) + `"`
}

// Public is the certificate's key; the error says which kind of key it has that we do not take.
func (c *Cert) Public() (*PublicKey, error) { return c.key, c.keyErr }

func (c *Cert) NotBefore() time.Time { return c.x.NotBefore }
func (c *Cert) NotAfter() time.Time  { return c.x.NotAfter }

// IsCA says whether it may issue certificates.
func (c *Cert) IsCA() bool { return c.x.BasicConstraintsValid && c.x.IsCA }

// SelfSigned says whether it names itself as its issuer (the signature is not looked at).
func (c *Cert) SelfSigned() bool { return bytes.Equal(c.x.RawSubject, c.x.RawIssuer) }

// Equal says whether both are the same certificate.
func (c *Cert) Equal(o *Cert) bool {
	return c == o || c != nil && o != nil && bytes.Equal(c.x.Raw, o.x.Raw)
}

// Confirms says whether the certificate proves an identity of IKE: the type and the data of an
// ID payload (RFC 7296 3.5). ID_IPV4_ADDR, ID_IPV6_ADDR, ID_FQDN and ID_RFC822_ADDR have to be
// among the subject alternative names, ID_DER_ASN1_DN has to be the subject (RFC 4945 3.1, but
// with the comparison of [EqualDN]); no wildcard has a meaning, whoever wrote it. The error
// says what the certificate names instead.
func (c *Cert) Confirms(idType uint8, idData []byte) error {
	asked := ""
	switch idType {
	case idIPv4, idIPv6:
		a, ok := netip.AddrFromSlice(idData)
		if !ok || a.Is4() != (idType == idIPv4) {
			return errors.New("the identity is no address")
		}
		for _, n := range c.x.IPAddresses {
			if bytes.Equal(n, idData) {
				return nil
			}
		}
		asked = a.String()
	case idFQDN, idRFC822:
		names := c.x.DNSNames
		if idType == idRFC822 {
			names = c.x.EmailAddresses
		}
		asked = string(idData)
		if asked == "" || clean(asked) != asked {
			return errors.New("the identity has characters that no name has")
		}
		for _, n := range names {
			if equalFold(n, asked) {
				return nil
			}
		}
	case idDN:
		name, ok := readDN(idData)
		if !ok || len(name) == 0 {
			return errors.New("the identity is no distinguished name")
		}
		if bytes.Equal(idData, c.x.RawSubject) || EqualDN(idData, c.x.RawSubject) {
			return nil
		}
		asked = FormatDN(idData)
	default:
		return fmt.Errorf("an identity of type %d cannot be proved by a certificate", idType)
	}
	names := c.Names()
	if len(names) > 8 {
		names = append(names[:8], "…")
	}
	asked = brief(asked)
	for i := range names {
		names[i] = brief(names[i])
	}
	if len(names) == 0 {
		return fmt.Errorf("%s does not name %q, and has no alternative names", c.label(), asked)
	}
	return fmt.Errorf("%s does not name %q, but %s", c.label(), asked, strings.Join(names, ", "))
}

// DefaultID is the identity that a certificate stands for if none is configured: the subject,
// or the first alternative name if that is empty. Type 0 means that it names nothing.
func (c *Cert) DefaultID() (idType uint8, idData []byte) {
	if name, ok := readDN(c.x.RawSubject); ok && len(name) > 0 {
		return idDN, c.x.RawSubject
	}
	switch {
	case len(c.x.DNSNames) > 0:
		return idFQDN, []byte(c.x.DNSNames[0])
	case len(c.x.EmailAddresses) > 0:
		return idRFC822, []byte(c.x.EmailAddresses[0])
	case len(c.x.IPAddresses) > 0:
		a := c.x.IPAddresses[0]
		if len(a) == 4 {
			return idIPv4, a
		}
		return idIPv6, a
	}
	return 0, nil
}
