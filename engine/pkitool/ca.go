package pkitool

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"postern/engine/cli"
	"postern/ike/pki"
)

var caPart = part{
	Command: cli.Command{
		Name:    "ca",
		Args:    "DIR",
		Summary: "make a certificate authority",
		Help: `Makes an authority in the folder DIR, which must not exist or be empty: a key,
a certificate that it signs itself or that the authority in --parent signs, and
an index of what it issues. Peers need its ca.pem, or for an intermediate one
its root.pem. Keep the folder where no attacker gets to, and a copy of it.

  postern pki ca ca --dn "C=CH, O=Weir, CN=Weir CA"
  postern pki ca north --parent ca --dn "C=CH, O=Weir, CN=North" \
    --permit dns:north.example

--permit and --exclude limit what names the authority may give: dns:DOMAIN with
all below it, ip:PREFIX, email:DOMAIN.`,
	},
	run: runCA,
}

// caOptions is what an authority shall be.
type caOptions struct {
	dn, kind, key, pass string
	pathLen             int
	permit, exclude     []string
	crls, ocsps         []string
	valid               validity
	parent              *authority
}

// anyLength is the path length that limits nothing.
const anyLength = -1

func runCA(t *tool, cmd *cli.Command, args []string) error {
	o := cli.NewOptions(t.sys, cmd)
	dn := o.String("dn", "", "the authority's `NAME`: \"C=CH, O=Weir, CN=Weir CA\"")
	kind := typeOption(o)
	key := o.String("key", "", "take the private key in `FILE` instead of a new one")
	pass := passOption(o, "--key")
	parent := o.String("parent", "", "the authority in `DIR` signs the certificate")
	parentPass := o.String("parent-passphrase-file", "", "`FILE` with the passphrase of the parent's key")
	pathLen := o.Int("pathlen", anyLength-1, "at most `N` authorities below this one; -1: any number (an intermediate one: 0)")
	var permit, exclude, crls, ocsps list
	o.Var(&permit, "permit", "`NAMES` that it may issue, and no others; several times")
	o.Var(&exclude, "exclude", "`NAMES` that it may not issue; several times")
	o.Var(&crls, "crl", "`URI` of the parent's revocation list; several times")
	o.Var(&ocsps, "ocsp", "`URI` of the parent's OCSP responder; several times")
	valid := validityOptions(o, defaultCADays)
	rest, err := arguments(o, args, 1, 1)
	if err != nil {
		return err
	}
	if *dn == "" {
		return usageError(`--dn is missing: name the authority, as --dn "O=Weir, CN=Weir CA"`)
	}
	c := caOptions{
		dn: *dn, kind: *kind, key: *key, pass: *pass, pathLen: *pathLen,
		permit: permit, exclude: exclude, crls: crls, ocsps: ocsps, valid: valid,
	}
	if c.pathLen < anyLength {
		c.pathLen = anyLength
		if *parent != "" {
			c.pathLen = 0
		}
	}
	if *parent != "" {
		if c.parent, err = t.openAuthority(*parent, *parentPass); err != nil {
			return err
		}
		defer c.parent.close()
	}
	ca, err := t.newAuthority(rest[0], c)
	if err != nil {
		return err
	}
	defer ca.close()
	peers := fileCert
	if c.parent != nil {
		peers = fileRoot
	}
	t.note("%s: a new authority, %s, until %s; what it issues is trusted by who has %s",
		cli.Clean(rest[0]), pki.FormatDN(ca.cert.RawSubject), stamp(ca.cert.NotAfter), cli.Clean(ca.file(peers)))
	return nil
}

// newAuthority makes the folder of an authority and opens it.
func (t *tool) newAuthority(dir string, c caOptions) (*authority, error) {
	subject, err := parseDN(c.dn)
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		RawSubject:            subject,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            c.pathLen,
		MaxPathLenZero:        c.pathLen == 0,
	}
	var issuer *x509.Certificate
	if c.parent != nil {
		issuer = c.parent.cert
		if err := mayIssueCA(issuer, tmpl); err != nil {
			return nil, err
		}
		if slices.Equal(subject, issuer.RawSubject) {
			return nil, usageError("--dn is the parent's own name; give the new authority another one")
		}
	} else if len(c.crls)+len(c.ocsps) > 0 {
		return nil, usageError("--crl and --ocsp say where a certificate's revocation is looked up; that of a root is not")
	}
	if tmpl.NotBefore, tmpl.NotAfter, err = c.valid.span(t, issuer); err != nil {
		return nil, err
	}
	if err := addConstraints(tmpl, c.permit, c.exclude); err != nil {
		return nil, err
	}
	if tmpl.CRLDistributionPoints, err = uris("crl", c.crls); err != nil {
		return nil, err
	}
	if tmpl.OCSPServer, err = uris("ocsp", c.ocsps); err != nil {
		return nil, err
	}
	key, data, err := c.newKey()
	if err != nil {
		return nil, err
	}
	defer clear(data)
	ca := &authority{t: t, dir: dir, key: key, index: &index{}}
	if err := ca.layOut(t, tmpl, c.parent, data); err != nil {
		ca.close()
		return nil, err
	}
	return ca, nil
}

// newKey makes the authority's key or reads that which is given, and returns it as PEM as well.
func (c *caOptions) newKey() (*pki.Key, []byte, error) {
	if c.key != "" {
		k, err := readKey(c.key, c.pass)
		if err != nil {
			return nil, nil, err
		}
		data, err := privatePEM(k.Signer(), false)
		return k, data, err
	}
	if c.pass != "" {
		return nil, nil, usageError("--passphrase-file is for the key that --key names")
	}
	signer, err := newSigner(c.kind)
	if err != nil {
		return nil, nil, err
	}
	data, err := privatePEM(signer, false)
	if err != nil {
		return nil, nil, err
	}
	k, err := parseKey(fileKey, data, nil)
	return k, data, err
}

// layOut makes the certificate and the folder. The certificate is written last: a folder that has
// one is complete.
func (ca *authority) layOut(t *tool, tmpl *x509.Certificate, parent *authority, key []byte) error {
	var err error
	if ca.cert, err = makeCert(tmpl, ca.key.Public(), parent, ca.key.Signer()); err != nil {
		return err
	}
	ca.root = ca.cert
	if parent != nil {
		ca.root, ca.chain = parent.root, append([]*x509.Certificate{ca.cert}, parent.chain...)
	}
	if err := emptyDir(ca.dir); err != nil {
		return err
	}
	if ca.unlock, err = t.os.Lock(ca.file(fileLock)); err != nil {
		return err
	}
	if err := t.create(ca.file(fileKey), key, modeSecret, false); err != nil {
		return err
	}
	if err := ca.save(); err != nil {
		return err
	}
	ders := [][]byte{ca.cert.Raw}
	if parent != nil {
		if err := parent.enter(ca.cert); err != nil {
			return err
		}
		if err := t.create(ca.file(fileRoot), pemText(pemCert, ca.root.Raw), modeOpen, false); err != nil {
			return err
		}
		ders = ca.chainDER()
	}
	return t.create(ca.file(fileCert), pemText(pemCert, ders...), modeOpen, false)
}

// emptyDir makes a folder for the owner alone, or finds one that is empty.
func emptyDir(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		list, err := os.ReadDir(dir)
		if err != nil {
			return fileError(dir, err)
		}
		if len(list) > 0 {
			return fmt.Errorf("%s: something is in this folder already; name another, or one that is empty", cli.Clean(dir))
		}
		return nil
	}
	if err != nil {
		return fileError(dir, err)
	}
	return nil
}

// mayIssueCA says whether an authority may have another below it.
func mayIssueCA(issuer, tmpl *x509.Certificate) error {
	if issuer.MaxPathLen < 0 || issuer.MaxPathLen == 0 && !issuer.MaxPathLenZero {
		return nil
	}
	switch {
	case issuer.MaxPathLen == 0:
		return errors.New("the parent's path length is 0: it may issue certificates, but no authorities; take the one above it")
	case tmpl.MaxPathLen < 0 || tmpl.MaxPathLen >= issuer.MaxPathLen:
		return usageError(fmt.Sprintf("the parent's path length is %d: give --pathlen below that", issuer.MaxPathLen))
	}
	return nil
}

// addConstraints puts name constraints (RFC 5280 4.2.1.10) into a template.
func addConstraints(x *x509.Certificate, permit, exclude []string) error {
	for i, texts := range [][]string{permit, exclude} {
		dns, ips, mails, option := &x.PermittedDNSDomains, &x.PermittedIPRanges, &x.PermittedEmailAddresses, "permit"
		if i == 1 {
			dns, ips, mails, option = &x.ExcludedDNSDomains, &x.ExcludedIPRanges, &x.ExcludedEmailAddresses, "exclude"
		}
		for _, text := range texts {
			kind, value, _ := strings.Cut(text, ":")
			ok := false
			switch kind {
			case "dns":
				if ok = hostName(value); ok {
					*dns = append(*dns, value)
				}
			case "email":
				if ok = hostName(value); ok {
					*mails = append(*mails, value)
				}
			case "ip":
				p, err := netip.ParsePrefix(value)
				if ok = err == nil; ok {
					p = p.Masked()
					*ips = append(*ips, &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())})
				}
			}
			if !ok {
				return usageError(fmt.Sprintf("--%s %q: write dns:DOMAIN, email:DOMAIN or ip:PREFIX", option, cli.Clean(text)))
			}
			x.PermittedDNSDomainsCritical = true // of all of them
		}
	}
	return nil
}
