package pkitool

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"

	"postern/engine/cli"
	"postern/ike/pki"
)

var issuePart = part{
	Command: cli.Command{
		Name:    "issue",
		Args:    "FILE",
		Summary: "issue a certificate",
		Help: `The authority in --ca issues a certificate for what FILE has: a request, whose
signature has to be right, a public or private key, or a certificate to be
renewed. The names come from --dn and --san; those that a request or an old
certificate asks for are taken only if --take says so. The authorities above it,
without the root, follow the certificate, as peers need them.

  postern pki issue plant.req --ca ca --take all --out plant.pem
  postern pki issue plant.key --ca ca --new --san plant.example \
    --dn "O=Weir, CN=plant" --out plant.pem

The peer's 'id' has to be one of these names, or the whole --dn. Windows and iOS
want --flag serverAuth of a gateway, and its address or DNS name as --san.`,
	},
	run: runIssue,
}

var selfPart = part{
	Command: cli.Command{
		Name:    "self",
		Args:    "KEY",
		Summary: "make a certificate that signs itself",
		Help: `Makes a certificate for the private key in KEY that no authority has signed: it
is worth something to peers that have the file itself (remote.certs).

  postern pki self plant.key --dn "CN=plant" --san plant.example \
    --out plant.pem`,
	},
	run: runSelf,
}

var reqPart = part{
	Command: cli.Command{
		Name:    "req",
		Args:    "KEY",
		Summary: "request a certificate",
		Help: `Makes a request (PKCS#10) for the private key in KEY, for an authority to issue
a certificate for. The key stays where it is.

  postern pki req plant.key --dn "O=Weir, CN=plant" --san plant.example \
    --out plant.req`,
	},
	run: runReq,
}

// subjectOptions are the names of a certificate or a request.
type subjectOptions struct {
	dn   *string
	sans list
}

func newSubjectOptions(o *cli.Options) *subjectOptions {
	s := &subjectOptions{dn: o.String("dn", "", "distinguished `NAME`: \"C=CH, O=Weir, CN=plant\"")}
	o.Var(&s.sans, "san", "further `NAME`: plant.example, 198.51.100.1, a@b.example, or with dns: ip: email: ahead; several times")
	return s
}

// read returns the names that were given.
func (s *subjectOptions) read() (dn []byte, n names, err error) {
	if *s.dn != "" {
		if dn, err = parseDN(*s.dn); err != nil {
			return nil, n, err
		}
	}
	n, err = parseNames(s.sans)
	return dn, n, err
}

var errNoName = usageError("it has no name: give --dn, --san or both")

// endEntity is the template of a certificate that is no authority's (RFC 4945 5.1.3).
func endEntity(dn []byte, n names) (*x509.Certificate, error) {
	if len(dn) == 0 {
		dn = emptyDN
	}
	if slices.Equal(dn, emptyDN) && n.empty() {
		return nil, errNoName
	}
	return &x509.Certificate{
		RawSubject: dn, DNSNames: n.dns, IPAddresses: n.ips, EmailAddresses: n.emails,
		KeyUsage: x509.KeyUsageDigitalSignature,
	}, nil
}

func runIssue(t *tool, cmd *cli.Command, args []string) error {
	o := cli.NewOptions(t.sys, cmd)
	dir := o.String("ca", "", "`DIR` of the authority")
	caPass := o.String("ca-passphrase-file", "", "`FILE` with the passphrase of the authority's key")
	pass := passOption(o, "the key in FILE")
	subject := newSubjectOptions(o)
	take := o.String("take", "", "take `WHAT` from the request: dn, san or all")
	fresh := o.Bool("new", false, "make the private key in FILE first, which must not exist")
	kind := typeOption(o)
	alone := o.Bool("no-chain", false, "leave out the authorities above")
	var flags, crls, ocsps list
	o.Var(&flags, "flag", "extended key `USE`: serverAuth, clientAuth, ipsecIKE, ikeIntermediate, ocspSigning; several times")
	o.Var(&crls, "crl", "`URI` of the authority's revocation list; several times")
	o.Var(&ocsps, "ocsp", "`URI` of its OCSP responder; several times")
	valid := validityOptions(o, defaultDays)
	out := outputOptions(o)
	rest, err := arguments(o, args, 1, 1)
	if err != nil {
		return err
	}
	if *dir == "" {
		return usageError("--ca is missing: name the folder of the authority; 'postern pki ca' makes one")
	}
	if err := out.ready(); err != nil {
		return err
	}
	dn, san, err := subject.read()
	if err != nil {
		return err
	}
	ca, err := t.openAuthority(*dir, *caPass)
	if err != nil {
		return err
	}
	defer ca.close()
	from, to, err := valid.span(t, ca.cert)
	if err != nil {
		return err
	}
	var asks wish
	if *fresh {
		if *take != "" {
			return usageError("--take is for requests, and --new makes a key")
		}
		if len(dn) == 0 && san.empty() {
			return errNoName
		}
		k, err := t.newKey(rest[0], *kind, false, false)
		if err != nil {
			return err
		}
		asks.key = k.Public()
		k.Wipe()
	} else if asks, err = readWish(rest[0], *pass); err != nil {
		return err
	}
	if dn, san, err = asks.take(t, *take, dn, san); err != nil {
		return err
	}
	tmpl, err := endEntity(dn, san)
	if err != nil {
		return err
	}
	tmpl.NotBefore, tmpl.NotAfter = from, to
	if err := addUsages(tmpl, flags); err != nil {
		return err
	}
	if tmpl.CRLDistributionPoints, err = uris("crl", crls); err != nil {
		return err
	}
	if tmpl.OCSPServer, err = uris("ocsp", ocsps); err != nil {
		return err
	}
	cert, err := ca.issue(tmpl, asks.key)
	if err != nil {
		return err
	}
	ders := [][]byte{cert.Raw}
	if !*alone && !*out.der {
		ders = append(ders, ca.chainDER()...)
	}
	t.note("issued to %s, serial number %s, until %s", subjectWords(cert), serialText(cert.SerialNumber), stamp(cert.NotAfter))
	return out.write(t, pemCert, ders...)
}

// issue makes a certificate and enters it into the index.
func (ca *authority) issue(tmpl *x509.Certificate, pub *pki.PublicKey) (*x509.Certificate, error) {
	if slices.Equal(tmpl.RawSubject, ca.cert.RawSubject) {
		return nil, usageError("--dn is the authority's own name; give the certificate another one")
	}
	if equalKeys(ca.cert.RawSubjectPublicKeyInfo, pub) {
		return nil, errors.New("this is the authority's own key; take another for the certificate")
	}
	cert, err := makeCert(tmpl, pub, ca, nil)
	if err != nil {
		return nil, err
	}
	return cert, ca.enter(cert)
}

// subjectWords is who a certificate is of.
func subjectWords(c *x509.Certificate) string {
	if !slices.Equal(c.RawSubject, emptyDN) {
		return pki.FormatDN(c.RawSubject)
	}
	n := names{c.DNSNames, c.IPAddresses, c.EmailAddresses}
	return cli.Clean(strings.Join(n.words(), ", "))
}

// wish is what a certificate is asked for with.
type wish struct {
	key  *pki.PublicKey
	from string // "request" or "certificate": which has names that can be taken
	dn   []byte
	san  names
	more bool // it asks for something that is not given
}

// readWish reads a request, a key or an old certificate.
func readWish(path, passFile string) (wish, error) {
	data, err := read(path)
	if err != nil {
		return wish{}, err
	}
	defer clear(data)
	list := objects(data)
	if len(list) == 0 {
		return wish{}, fmt.Errorf("%s: neither a request nor a key nor a certificate; 'postern pki req' makes a request", cli.Clean(path))
	}
	fail := func(err error) (wish, error) { return wish{}, fmt.Errorf("%s: %w", cli.Clean(path), err) }
	switch o := list[0]; o.what {
	case request:
		r, err := x509.ParseCertificateRequest(o.data)
		if err != nil {
			return fail(err)
		}
		if err := r.CheckSignature(); err != nil {
			return fail(fmt.Errorf("the request is not signed with its own key, so whoever made it may not have that: %w", err))
		}
		key, err := pki.ParsePublicKey(r.RawSubjectPublicKeyInfo)
		if err != nil {
			return fail(err)
		}
		return wish{
			key: key, from: "request", dn: r.RawSubject, san: names{r.DNSNames, r.IPAddresses, r.EmailAddresses},
			more: len(r.URIs) > 0 || slices.ContainsFunc(r.Extensions, notSAN),
		}, nil
	case certificate:
		c, err := x509.ParseCertificate(o.data)
		if err != nil {
			return fail(err)
		}
		key, err := pki.ParsePublicKey(c.RawSubjectPublicKeyInfo)
		if err != nil {
			return fail(err)
		}
		return wish{key: key, from: "certificate", dn: c.RawSubject, san: names{c.DNSNames, c.IPAddresses, c.EmailAddresses}, more: len(c.URIs) > 0}, nil
	case publicKey:
		key, err := pki.ParsePublicKey(o.data)
		if err != nil {
			return fail(err)
		}
		return wish{key: key}, nil
	case privateKey:
		k, err := readKey(path, passFile)
		if err != nil {
			return wish{}, err
		}
		defer k.Wipe()
		return wish{key: k.Public()}, nil
	}
	return fail(errors.New("a revocation list; name a request, a key or a certificate"))
}

// notSAN says whether an extension that a request asks for is other than names.
func notSAN(e pkix.Extension) bool { return !e.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17}) }

// take returns the names that a certificate gets: those given, and of those wished for what is
// taken. It says which were wished for and are not given.
func (w *wish) take(t *tool, what string, dn []byte, san names) ([]byte, names, error) {
	takeDN, takeSAN := what == "dn" || what == "all", what == "san" || what == "all"
	if what == "all" && slices.Equal(w.dn, emptyDN) {
		takeDN = false // all that there are
	}
	switch {
	case what != "" && !takeDN && !takeSAN:
		return nil, san, usageError(fmt.Sprintf("--take %s: write dn, san or all", cli.Clean(what)))
	case what != "" && w.from == "":
		return nil, san, usageError("--take is for requests and certificates; a key has no names: give --dn, --san or both")
	case w.from == "":
		return dn, san, nil
	case takeDN && len(dn) > 0:
		return nil, san, usageError("--dn and the name of the " + w.from + " cannot both be taken; leave one out")
	}
	asked := w.san.words()
	if !slices.Equal(w.dn, emptyDN) {
		asked = append([]string{"dn " + pki.FormatDN(w.dn)}, asked...)
	}
	wanted := cli.Clean(strings.Join(asked, "; "))
	if what == "" && len(dn) == 0 && san.empty() {
		return nil, san, usageError(fmt.Sprintf("the %s has these names: %s. Take them with --take dn, san or all, or give others with --dn and --san", w.from, wanted))
	}
	if takeDN {
		// A name that does not survive being written and read is not what it looks like.
		der, wild, err := pki.ParseDN(pki.FormatDN(w.dn))
		if slices.Equal(w.dn, emptyDN) {
			return nil, san, usageError("the " + w.from + " has no distinguished name; take only san, or give --dn")
		} else if err != nil || wild || !pki.MatchDN(der, w.dn) {
			return nil, san, usageError("the name of the " + w.from + " has parts that identities cannot have: " + pki.FormatDN(w.dn) + "; give another with --dn")
		}
		dn = w.dn
	}
	if takeSAN {
		// What a request has was never looked at: names of a form that is none are refused.
		for _, name := range append(slices.Clone(w.san.dns), w.san.emails...) {
			if _, err := parseNames([]string{name}); err != nil {
				return nil, san, err
			}
		}
		if len(san.dns)+len(san.ips)+len(san.emails)+len(asked) > maxNames {
			return nil, san, usageError(fmt.Sprintf("at most %d names fit into a certificate", maxNames))
		}
		san.dns = union(san.dns, w.san.dns)
		san.emails = union(san.emails, w.san.emails)
		for _, ip := range w.san.ips {
			if !slices.ContainsFunc(san.ips, ip.Equal) {
				san.ips = append(slices.Clone(san.ips), ip)
			}
		}
	}
	if !takeDN && !slices.Equal(w.dn, emptyDN) && !slices.Equal(w.dn, dn) || !takeSAN && !w.san.empty() {
		t.note("note: not all names of the %s are taken; it has %s", w.from, wanted)
	}
	if w.more {
		t.note("note: the %s asks for more than names, which is not given", w.from)
	}
	return dn, san, nil
}

// union is a with those of b that it lacks.
func union(a, b []string) []string {
	a = slices.Clone(a)
	for _, s := range b {
		if !slices.Contains(a, s) {
			a = append(a, s)
		}
	}
	return a
}

func runSelf(t *tool, cmd *cli.Command, args []string) error {
	o := cli.NewOptions(t.sys, cmd)
	subject := newSubjectOptions(o)
	pass := passOption(o, "the key")
	var flags list
	o.Var(&flags, "flag", "extended key `USE`: serverAuth, clientAuth, ipsecIKE, ikeIntermediate; several times")
	valid := validityOptions(o, defaultDays)
	out := outputOptions(o)
	rest, err := arguments(o, args, 1, 1)
	if err != nil {
		return err
	}
	dn, san, err := subject.read()
	if err != nil {
		return err
	}
	if len(dn) == 0 {
		return usageError(`--dn is missing: who signs has to have a name, as --dn "CN=plant"`)
	}
	tmpl, err := endEntity(dn, san)
	if err != nil {
		return err
	}
	if err := addUsages(tmpl, flags); err != nil {
		return err
	}
	if err := out.ready(); err != nil {
		return err
	}
	if tmpl.NotBefore, tmpl.NotAfter, err = valid.span(t, nil); err != nil {
		return err
	}
	k, err := readKey(rest[0], *pass)
	if err != nil {
		return err
	}
	defer k.Wipe()
	cert, err := makeCert(tmpl, k.Public(), nil, k.Signer())
	if err != nil {
		return err
	}
	return out.write(t, pemCert, cert.Raw)
}

func runReq(t *tool, cmd *cli.Command, args []string) error {
	o := cli.NewOptions(t.sys, cmd)
	subject := newSubjectOptions(o)
	pass := passOption(o, "the key")
	out := outputOptions(o)
	rest, err := arguments(o, args, 1, 1)
	if err != nil {
		return err
	}
	dn, san, err := subject.read()
	if err != nil {
		return err
	}
	if len(dn) == 0 {
		if san.empty() {
			return errNoName
		}
		dn = emptyDN
	}
	if err := out.ready(); err != nil {
		return err
	}
	k, err := readKey(rest[0], *pass)
	if err != nil {
		return err
	}
	defer k.Wipe()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		RawSubject: dn, DNSNames: san.dns, IPAddresses: san.ips, EmailAddresses: san.emails,
	}, k.Signer())
	if err != nil {
		return err
	}
	return out.write(t, pemRequest, der)
}
