package pki

import (
	"crypto/x509"
	"time"
)

// Cert is an X.509 certificate. It is immutable.
type Cert struct{ x *x509.Certificate }

// ParseCert reads one DER certificate, as a CERT payload of encoding 4 carries it. It keeps its
// own copy.
func ParseCert(der []byte) (*Cert, error) { return nil, errNotYet }

// ParseCerts reads the certificates of a file: PEM (one or more, other blocks are passed over)
// or one in DER.
func ParseCerts(data []byte) ([]*Cert, error) { return nil, errNotYet }

// Raw is the certificate in DER. The caller must not change it.
func (c *Cert) Raw() []byte { return nil }

// X509 is what Go's library made of it. The caller must not change it.
func (c *Cert) X509() *x509.Certificate { return c.x }

// Subject and Issuer are the names as charon writes them: "C=CH, O=strongSwan, CN=moon".
func (c *Cert) Subject() string { return "" }
func (c *Cert) Issuer() string  { return "" }

// SubjectRFC4514 is the subject in RFC 4514's words, last first: "CN=moon,O=strongSwan,C=CH".
func (c *Cert) SubjectRFC4514() string { return "" }

// RawSubject is the subject in DER. The caller must not change it.
func (c *Cert) RawSubject() []byte { return nil }

// Names are the subject alternative names in words, for status and errors.
func (c *Cert) Names() []string { return nil }

// Public is the certificate's key; the error says which kind of key it has that we do not take.
func (c *Cert) Public() (*PublicKey, error) { return nil, errNotYet }

func (c *Cert) NotBefore() time.Time { return time.Time{} }
func (c *Cert) NotAfter() time.Time  { return time.Time{} }

// IsCA says whether it may issue certificates.
func (c *Cert) IsCA() bool { return false }

// SelfSigned says whether its issuer is itself (the signature is not looked at).
func (c *Cert) SelfSigned() bool { return false }

func (c *Cert) Equal(o *Cert) bool { return false }

// Confirms says whether the certificate proves an identity of IKE: the type and the data of an
// ID payload (RFC 7296 3.5). ID_IPV4_ADDR, ID_IPV6_ADDR, ID_FQDN and ID_RFC822_ADDR have to be
// among the subject alternative names, ID_DER_ASN1_DN has to be the subject (RFC 4945 3.1); no
// wildcard is looked at. The error says what the certificate names instead.
func (c *Cert) Confirms(idType uint8, idData []byte) error { return errNotYet }

// DefaultID is the identity that a certificate stands for if none is configured: the subject,
// or the first alternative name if that is empty. Type 0 means that it names nothing.
func (c *Cert) DefaultID() (idType uint8, idData []byte) { return 0, nil }
