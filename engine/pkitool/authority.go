package pkitool

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"postern/engine/cli"
	"postern/ike/pki"
)

// Files of an authority, see the comment of the package.
const (
	fileCert  = "ca.pem"
	fileRoot  = "root.pem"
	fileKey   = "ca.key"
	fileIndex = "index"
	fileLock  = "lock"
	dirCerts  = "certs"
	fileCRL   = "ca.crl"
	filePEM   = "crl.pem"
)

// authority is an opened folder. It is this process's alone until it is closed.
type authority struct {
	t      *tool
	dir    string
	cert   *x509.Certificate
	chain  []*x509.Certificate // cert and those above it, without the root; empty for a root
	root   *x509.Certificate
	key    *pki.Key
	index  *index
	unlock func()
}

func (ca *authority) file(name string) string { return filepath.Join(ca.dir, name) }

// close gives the folder to others and wipes the key.
func (ca *authority) close() {
	if ca.key != nil {
		ca.key.Wipe()
	}
	if ca.unlock != nil {
		ca.unlock()
	}
}

// openAuthority opens the folder of an authority.
func (t *tool) openAuthority(dir, passFile string) (*authority, error) {
	if st, err := os.Stat(filepath.Join(dir, fileCert)); err != nil || !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not the folder of an authority, it has no %s; 'postern pki ca' makes one", cli.Clean(dir), fileCert)
	}
	ca := &authority{t: t, dir: dir}
	var err error
	if ca.unlock, err = t.os.Lock(ca.file(fileLock)); err != nil {
		return nil, err
	}
	if err := ca.load(passFile); err != nil {
		ca.close()
		return nil, err
	}
	return ca, nil
}

func (ca *authority) load(passFile string) error {
	certs, err := readCerts(ca.file(fileCert))
	if err != nil {
		return err
	}
	ca.cert, ca.root = certs[0], certs[0]
	if !selfSigned(ca.cert) {
		roots, err := readCerts(ca.file(fileRoot))
		if err != nil {
			return fmt.Errorf("of an intermediate authority the root is needed: %w", err)
		}
		ca.chain, ca.root = certs, roots[0]
	}
	if ca.key, err = readKey(ca.file(fileKey), passFile); err != nil {
		return err
	}
	switch {
	case !equalKeys(ca.cert.RawSubjectPublicKeyInfo, ca.key.Public()):
		return fmt.Errorf("%s is not the key of the certificate in %s: restore the right one", ca.file(fileKey), ca.file(fileCert))
	case !ca.cert.IsCA || ca.cert.KeyUsage != 0 && ca.cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return fmt.Errorf("%s is not the certificate of an authority; 'postern pki ca' makes one", ca.file(fileCert))
	}
	ca.index, err = loadIndex(ca.file(fileIndex))
	return err
}

// enter notes a certificate that is about to be given out, and keeps a copy.
func (ca *authority) enter(cert *x509.Certificate) error {
	serial := serialText(cert.SerialNumber)
	ca.index.issued = append(ca.index.issued, issued{
		serial: serial, from: cert.NotBefore.UTC(), to: cert.NotAfter.UTC(), subject: pki.FormatDN(cert.RawSubject),
	})
	if err := ca.save(); err != nil {
		return err
	}
	if err := os.Mkdir(ca.file(dirCerts), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fileError(ca.file(dirCerts), err)
	}
	return ca.t.replace(ca.file(filepath.Join(dirCerts, serial+".pem")), pemText(pemCert, cert.Raw), modeOpen)
}

func (ca *authority) save() error {
	return ca.t.replace(ca.file(fileIndex), ca.index.text(), modeSecret)
}

// chainDER is what goes behind a certificate of this authority.
func (ca *authority) chainDER() [][]byte {
	var list [][]byte
	for _, c := range ca.chain {
		list = append(list, c.Raw)
	}
	return list
}

// readCerts reads the certificates of a file.
func readCerts(path string) ([]*x509.Certificate, error) {
	data, err := read(path)
	if err != nil {
		return nil, err
	}
	certs, err := pki.ParseCerts(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cli.Clean(path), err)
	}
	var list []*x509.Certificate
	for _, c := range certs {
		list = append(list, c.X509())
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%s: no certificate is in it; name the right file", cli.Clean(path))
	}
	return list, nil
}

// selfSigned says whether a certificate is its own issuer.
func selfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, c.RawSubject) && c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil
}

// later is a time at which a certificate and all authorities above it are valid: the start of the
// youngest of them.
func later(cert *x509.Certificate, ca *authority) time.Time {
	at := cert.NotBefore
	for _, c := range append([]*x509.Certificate{ca.root}, ca.chain...) {
		if c.NotBefore.After(at) {
			at = c.NotBefore
		}
	}
	return at
}
