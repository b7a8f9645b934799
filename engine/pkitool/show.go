package pkitool

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"strconv"
	"strings"
	"time"

	"postern/engine/cli"
	"postern/ike/pki"
)

var showPart = part{
	Command: cli.Command{
		Name:    "show",
		Args:    "FILE...",
		Summary: "tell what keys, certificates and lists say",
		Help: `Tells in words what is in files: certificates, requests, revocation lists,
public and private keys, PEM or DER. Of a private key only the public half is
told. "key id" is SHA-1 of the public key, by which IKE asks for certificates.

  postern pki show /etc/postern/*.pem
  postern pki show --json plant.pem`,
	},
	run: runShow,
}

// fact is one line of what is told: its name in words and in JSON, and one or more values.
type fact struct {
	name, key string
	values    []string
	json      func(j *cli.JSON, f *fact) // how it is written for programs
}

// The ways to write a fact for programs; that of most is a string.
func jsonString(j *cli.JSON, f *fact) { j.Str(f.key, f.values[0]) }
func jsonList(j *cli.JSON, f *fact)   { j.Strs(f.key, f.values) }
func jsonNumber(j *cli.JSON, f *fact) {
	n, _ := strconv.ParseInt(f.values[0], 10, 64)
	j.Int(f.key, n)
}

// jsonEntries writes what was revoked, whose three parts have blanks between them in words.
func jsonEntries(j *cli.JSON, f *fact) {
	j.Begin(f.key, '[')
	for _, v := range f.values {
		p := strings.SplitN(v, " ", 3)
		j.Begin("", '{')
		j.Str("serial", p[0])
		j.Str("time", p[1])
		j.Str("reason", p[2])
		j.End('}')
	}
	j.End(']')
}

// facts are what is told of one object.
type facts struct {
	file, kind string
	lines      []fact
	warnings   []string
}

func (f *facts) add(name, key string, values ...string) {
	f.lines = append(f.lines, fact{name, key, values, jsonString})
}

// many adds a list, if something is in it.
func (f *facts) many(name, key string, values []string) {
	if len(values) > 0 {
		f.lines = append(f.lines, fact{name, key, values, jsonList})
	}
}

func (f *facts) warn(format string, args ...any) {
	f.warnings = append(f.warnings, fmt.Sprintf(format, args...))
}

func runShow(t *tool, cmd *cli.Command, args []string) error {
	o := cli.NewOptions(t.sys, cmd)
	asJSON := o.Bool("json", false, "print JSON")
	pass := passOption(o, "a private key")
	now := clockOption(o)
	rest, err := arguments(o, args, 1, 1000)
	if err != nil {
		return err
	}
	at := t.os.Now().UTC()
	if *now.now != "" {
		if at, err = now.read(t); err != nil {
			return err
		}
	}
	var all []facts
	var errs []error
	for _, path := range rest {
		some, err := tell(path, *pass, at)
		if err != nil {
			errs = append(errs, err)
		}
		all = append(all, some...)
	}
	text := factsText(all)
	if *asJSON {
		text = factsJSON(all)
	}
	t.print(t.sys.Stdout, text)
	for _, err := range errs[:max(0, len(errs)-1)] {
		_ = t.status(cmd, err)
	}
	if len(errs) > 0 {
		return errs[len(errs)-1]
	}
	return nil
}

// tell returns what is in a file.
func tell(path, passFile string, now time.Time) ([]facts, error) {
	data, mode, err := readMode(path)
	if err != nil {
		return nil, err
	}
	defer clear(data)
	list := objects(data)
	if len(list) == 0 {
		return nil, fmt.Errorf("%s: no key, certificate, request or revocation list is in it", cli.Clean(path))
	}
	var all []facts
	for _, o := range list {
		f := facts{file: path}
		if err := f.tell(o, path, passFile, mode, now); err != nil {
			return all, fmt.Errorf("%s: %w", cli.Clean(path), err)
		}
		all = append(all, f)
	}
	return all, nil
}

func (f *facts) tell(o object, path, passFile string, mode fs.FileMode, now time.Time) error {
	switch o.what {
	case certificate:
		c, err := x509.ParseCertificate(o.data)
		if err != nil {
			return err
		}
		f.certificate(c, now)
	case request:
		r, err := x509.ParseCertificateRequest(o.data)
		if err != nil {
			return err
		}
		f.request(r)
	case revocations:
		l, err := x509.ParseRevocationList(o.data)
		if err != nil {
			return err
		}
		f.revocations(l, now)
	case publicKey:
		p, err := pki.ParsePublicKey(o.data)
		if err != nil {
			return err
		}
		f.kind = "public key"
		f.key(p)
	case privateKey:
		f.kind = "private key"
		if mode.Perm()&0o077 != 0 {
			f.warn("others can read or change this file: chmod 600 it")
		}
		var pass []byte
		if passFile != "" {
			data, err := readSecret(passFile)
			if err != nil {
				return err
			}
			defer clear(data)
			pass = []byte(strings.TrimRight(string(data), "\r\n"))
			defer clear(pass)
		}
		k, err := pki.ParseKey(o.data, pass)
		if errors.Is(err, pki.ErrPassphrase) && len(pass) == 0 {
			f.add("protected", "protected", "yes; --passphrase-file FILE tells more")
			return nil
		}
		if err != nil {
			return err
		}
		defer k.Wipe()
		f.key(k.Public())
	}
	return nil
}

// key tells a public key.
func (f *facts) key(p *pki.PublicKey) {
	f.add("key", "key", p.String())
	id := p.KeyID()
	f.add("key id", "key_id", hex.EncodeToString(id[:]))
	sum := sha256.Sum256(p.SPKI())
	f.add("key SHA-256", "key_sha256", hex.EncodeToString(sum[:]))
}

// spki tells a key that may be of a kind that we do not take.
func (f *facts) spki(der []byte) {
	p, err := pki.ParsePublicKey(der)
	if err != nil {
		f.add("key", "key", "not usable: "+err.Error())
		f.warn("the key cannot be used: %v", err)
		return
	}
	f.key(p)
}

func (f *facts) certificate(c *x509.Certificate, now time.Time) {
	f.kind = "certificate"
	f.add("subject", "subject", dnWords(c.RawSubject))
	f.add("issuer", "issuer", dnWords(c.RawIssuer))
	f.alternatives(names{c.DNSNames, c.IPAddresses, c.EmailAddresses}, len(c.URIs))
	f.add("serial", "serial", serialWords(c.SerialNumber))
	f.add("valid from", "not_before", c.NotBefore.UTC().Format(time.RFC3339))
	f.add("valid until", "not_after", c.NotAfter.UTC().Format(time.RFC3339))
	switch left := c.NotAfter.Sub(now); {
	case now.Before(earliest):
		f.warn("the clock of this device says %s, so it cannot be told whether the certificate is valid", stamp(now))
	case left < 0:
		f.warn("it ended on %s: issue a new one", stamp(c.NotAfter))
	case c.NotBefore.After(now):
		f.warn("it begins only on %s", stamp(c.NotBefore))
	case left < soon:
		f.warn("it ends in %d days: issue a new one before", int(left/(24*time.Hour)))
	}
	f.spki(c.RawSubjectPublicKeyInfo)
	if c.IsCA {
		f.lines = append(f.lines, fact{"authority", "ca", []string{"yes"}, func(j *cli.JSON, f *fact) { j.Bool(f.key, true) }})
		if c.MaxPathLen > 0 || c.MaxPathLenZero {
			f.lines = append(f.lines, fact{"path length", "path_length", []string{strconv.Itoa(c.MaxPathLen)}, jsonNumber})
		}
		if c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0 {
			f.warn("an authority that may not sign certificates (keyUsage keyCertSign) is none")
		}
	}
	f.many("key usage", "key_usage", keyUsageNames(c.KeyUsage))
	f.many("extended use", "extended_key_usage", usageNames(c))
	f.many("may issue", "permitted", constraints(c.PermittedDNSDomains, c.PermittedIPRanges, c.PermittedEmailAddresses))
	f.many("may not issue", "excluded", constraints(c.ExcludedDNSDomains, c.ExcludedIPRanges, c.ExcludedEmailAddresses))
	f.many("CRL at", "crl_uris", cleanAll(c.CRLDistributionPoints))
	f.many("OCSP at", "ocsp_uris", cleanAll(c.OCSPServer))
	f.add("signed with", "signature", c.SignatureAlgorithm.String())
	switch c.SignatureAlgorithm {
	case x509.MD5WithRSA, x509.SHA1WithRSA, x509.ECDSAWithSHA1, x509.DSAWithSHA1:
		if !selfSigned(c) {
			f.warn("signatures with %s can be forged, and are refused: issue a new one", c.SignatureAlgorithm)
		}
	}
	f.add("subject key", "subject_key_id", orNone(hex.EncodeToString(c.SubjectKeyId)))
	f.add("issuer's key", "authority_key_id", orNone(hex.EncodeToString(c.AuthorityKeyId)))
	sum := sha256.Sum256(c.Raw)
	f.add("SHA-256", "sha256", hex.EncodeToString(sum[:]))
	if !c.IsCA && len(c.DNSNames)+len(c.IPAddresses)+len(c.EmailAddresses) == 0 {
		f.warn("it has no alternative name, so the peer's id can only be its whole subject")
	}
}

func (f *facts) alternatives(n names, uris int) {
	f.many("names", "names", cleanAll(n.words()))
	if uris > 0 {
		f.add("URIs", "uris", strconv.Itoa(uris)+", which are no identities of IKE")
	}
}

func (f *facts) request(r *x509.CertificateRequest) {
	f.kind = "request"
	f.add("subject", "subject", dnWords(r.RawSubject))
	f.alternatives(names{r.DNSNames, r.IPAddresses, r.EmailAddresses}, len(r.URIs))
	f.spki(r.RawSubjectPublicKeyInfo)
	f.add("signed with", "signature", r.SignatureAlgorithm.String())
	if err := r.CheckSignature(); err != nil {
		f.warn("it is not signed with its own key, so whoever made it may not have that: issue nothing for it")
	}
}

func (f *facts) revocations(l *x509.RevocationList, now time.Time) {
	f.kind = "revocation list"
	f.add("issuer", "issuer", dnWords(l.RawIssuer))
	if l.Number != nil {
		f.add("number", "number", l.Number.String())
	}
	f.add("made", "this_update", l.ThisUpdate.UTC().Format(time.RFC3339))
	if l.NextUpdate.IsZero() {
		f.add("next", "next_update", "not told")
	} else {
		f.add("next", "next_update", l.NextUpdate.UTC().Format(time.RFC3339))
		if now.After(l.NextUpdate) && !now.Before(earliest) {
			f.warn("the next list was due on %s: 'postern pki crl' makes one", stamp(l.NextUpdate))
		}
	}
	f.add("signed with", "signature", l.SignatureAlgorithm.String())
	f.add("issuer's key", "authority_key_id", orNone(hex.EncodeToString(l.AuthorityKeyId)))
	f.lines = append(f.lines, fact{"revoked", "revoked_count", []string{strconv.Itoa(len(l.RevokedCertificateEntries))}, jsonNumber})
	var entries []string
	for _, e := range l.RevokedCertificateEntries {
		entries = append(entries, serialWords(e.SerialNumber)+" "+e.RevocationTime.UTC().Format(time.RFC3339)+" "+reasonName(e.ReasonCode))
	}
	f.lines = append(f.lines, fact{"", "revoked", entries, jsonEntries})
}

// serialWords is a serial number as --serial takes it; some authorities use 0 or less.
func serialWords(n *big.Int) string {
	if n.Sign() <= 0 {
		return n.String()
	}
	return serialText(n)
}

func dnWords(der []byte) string {
	if string(der) == string(emptyDN) {
		return "(none)"
	}
	return pki.FormatDN(der)
}

func orNone(s string) string {
	if s == "" {
		return "(none)"
	}
	return s
}

func cleanAll(list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = cli.Clean(s)
	}
	return out
}

// keyUsageNames are the bits of keyUsage (RFC 5280 4.2.1.3) in their order.
func keyUsageNames(u x509.KeyUsage) []string {
	var list []string
	for i, name := range strings.Fields("digitalSignature nonRepudiation keyEncipherment dataEncipherment keyAgreement keyCertSign cRLSign encipherOnly decipherOnly") {
		if u&(1<<i) != 0 {
			list = append(list, name)
		}
	}
	return list
}

func constraints(dns []string, ips []*net.IPNet, mails []string) []string {
	var list []string
	for _, d := range dns {
		list = append(list, "dns:"+cli.Clean(d))
	}
	for _, p := range ips {
		list = append(list, "ip:"+p.String())
	}
	for _, m := range mails {
		list = append(list, "email:"+cli.Clean(m))
	}
	return list
}

// factsText writes for people, in lines of 80 characters.
func factsText(all []facts) string {
	const column = 14
	var b strings.Builder
	for i, f := range all {
		if i > 0 {
			b.WriteByte('\n')
		}
		cli.Wrap(&b, "", strings.Fields(cli.Clean(f.file)+": "+f.kind)...)
		for _, l := range f.lines {
			head := "  " + cli.Pad(l.name, column)
			if l.name == "" { // entries of a table
				for _, v := range l.values {
					cli.Wrap(&b, head, strings.Fields(v)...)
				}
				continue
			}
			cli.Wrap(&b, head, strings.Fields(strings.Join(l.values, ", "))...)
		}
		for _, w := range f.warnings {
			cli.Wrap(&b, "  "+cli.Pad("warning", column), strings.Fields(w)...)
		}
	}
	return b.String()
}

// factsJSON writes the same for programs, as an array.
func factsJSON(all []facts) string {
	var j cli.JSON
	j.Begin("", '[')
	for _, f := range all {
		j.Begin("", '{')
		j.Str("file", f.file)
		j.Str("kind", f.kind)
		for _, l := range f.lines {
			l.json(&j, &l)
		}
		j.Strs("warnings", f.warnings)
		j.End('}')
	}
	j.End(']')
	return string(j.Bytes())
}
