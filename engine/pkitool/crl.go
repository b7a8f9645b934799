package pkitool

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"slices"
	"strings"
	"time"

	"postern/engine/cli"
	"postern/ike/pki"
)

var crlPart = part{
	Command: cli.Command{
		Name:    "crl",
		Args:    "DIR",
		Summary: "revoke certificates, make a revocation list",
		Help: `Makes a new revocation list of the authority in DIR: ca.crl in DER, as web
servers offer it to peers, and crl.pem. --revoke and --serial add a certificate
to it first. A list is to be made anew before its time is over, at the latest.

  postern pki crl ca
  postern pki crl ca --revoke plant.pem --reason key-compromise
  postern pki crl ca --serial 5b0f42... --days 7

Peers find it where --crl of 'postern pki issue' said, or as a file that 'crls'
of an authority names.`,
	},
	run: runCRL,
}

func runCRL(t *tool, cmd *cli.Command, args []string) error {
	o := cli.NewOptions(t.sys, cmd)
	pass := passOption(o, "the authority's key")
	var files, serials list
	o.Var(&files, "revoke", "revoke the certificate in `FILE`; several times")
	o.Var(&serials, "serial", "revoke the certificate with the serial number `HEX`; several times")
	why := o.String("reason", "unspecified", "`WHY`: key-compromise, superseded, cessation-of-operation, ...")
	days := o.Int("days", defaultCRL, "the next list follows within `N` days")
	now := clockOption(o)
	rest, err := arguments(o, args, 1, 1)
	if err != nil {
		return err
	}
	if *days < 1 || *days > maxDays {
		return usageError(fmt.Sprintf("--days must be from 1 to %d, not %d", maxDays, *days))
	}
	r, err := parseReason(*why)
	if err != nil {
		return err
	}
	at, err := now.read(t)
	if err != nil {
		return err
	}
	ca, err := t.openAuthority(rest[0], *pass)
	if err != nil {
		return err
	}
	defer ca.close()
	if err := ca.mayMakeList(at); err != nil {
		return err
	}
	for _, f := range files {
		certs, err := readCerts(f)
		if err != nil {
			return err
		}
		c := certs[0]
		if !slices.Equal(c.RawIssuer, ca.cert.RawSubject) || c.CheckSignatureFrom(ca.cert) != nil {
			return fmt.Errorf("%s: this authority has not issued the certificate, but %s; revoke it there", cli.Clean(f), pki.FormatDN(c.RawIssuer))
		}
		if err := ca.revoke(t, serialText(c.SerialNumber), at, r); err != nil {
			return err
		}
	}
	for _, s := range serials {
		serial := strings.ToLower(strings.NewReplacer(":", "", " ", "").Replace(s))
		if len(serial)%2 == 1 {
			serial = "0" + serial
		}
		if !isSerial(serial) {
			return usageError(fmt.Sprintf("--serial %q is no serial number; write it in hexadecimal, as 'postern pki show' does", cli.Clean(s)))
		}
		for len(serial) > 2 && strings.HasPrefix(serial, "00") {
			serial = serial[2:]
		}
		if _, ok := ca.index.find(serial); !ok {
			return fmt.Errorf("the index of %s has no certificate with the serial number %s; 'postern pki show' tells a certificate's", cli.Clean(ca.dir), serial)
		}
		if err := ca.revoke(t, serial, at, r); err != nil {
			return err
		}
	}
	list, err := ca.makeList(at, *days)
	if err != nil {
		return err
	}
	n := len(list.RevokedCertificateEntries)
	t.note("%s: revocation list %d of %s, %d revoked, the next one due on %s",
		cli.Clean(ca.file(fileCRL)), list.Number, pki.FormatDN(ca.cert.RawSubject), n, stamp(list.NextUpdate))
	return nil
}

// revoke notes that a certificate is revoked.
func (ca *authority) revoke(t *tool, serial string, at time.Time, r reason) error {
	if old, ok := ca.index.isRevoked(serial); ok {
		t.note("note: %s has been revoked since %s (%s)", serial, stamp(old.at), reasonName(old.reason))
		return nil
	}
	ca.index.revoked = append(ca.index.revoked, revoked{serial, at, r.code})
	return nil
}

// mayMakeList says whether a list made now is younger than the last one, and valid.
func (ca *authority) mayMakeList(at time.Time) error {
	switch {
	case ca.cert.KeyUsage != 0 && ca.cert.KeyUsage&x509.KeyUsageCRLSign == 0:
		return errors.New("the authority's certificate does not let it sign revocation lists (keyUsage cRLSign); make a new authority")
	case at.After(ca.cert.NotAfter):
		return fmt.Errorf("the authority's certificate ended on %s, and nobody would take its list; make a new authority, or set the clock if it is not %s", stamp(ca.cert.NotAfter), stamp(at))
	case at.Before(ca.cert.NotBefore):
		return fmt.Errorf("the authority's certificate begins on %s, and it is %s by this device's clock: %w", stamp(ca.cert.NotBefore), stamp(at), errClock)
	}
	last, err := ca.lastList()
	switch {
	case err != nil:
		return err
	case last == nil:
		return nil
	case last.Number != nil && last.Number.IsInt64():
		// Also where the list is from elsewhere, or the index was restored from an old copy.
		ca.index.crl = max(ca.index.crl, last.Number.Int64())
	}
	if last.ThisUpdate.After(at) {
		return fmt.Errorf("the last list was made on %s, and it is %s by this device's clock: %w", stamp(last.ThisUpdate), stamp(at), errClock)
	}
	return nil
}

// lastList is the list that stands in the folder, nil if there is none.
func (ca *authority) lastList() (*x509.RevocationList, error) {
	path := ca.file(fileCRL)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	data, err := read(path)
	if err != nil {
		return nil, err
	}
	l, err := x509.ParseRevocationList(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; restore the file, or remove it if it was never given out", cli.Clean(path), err)
	}
	return l, nil
}

// makeList signs a list and writes it. Its number is used up before it is signed, so that no
// two lists ever have the same one (RFC 5280 5.2.3).
func (ca *authority) makeList(at time.Time, days int) (*x509.RevocationList, error) {
	ca.index.crl++
	if err := ca.save(); err != nil {
		return nil, err
	}
	tmpl := &x509.RevocationList{Number: big.NewInt(ca.index.crl), ThisUpdate: at, NextUpdate: at.AddDate(0, 0, days)}
	if tmpl.NextUpdate.After(latest) {
		tmpl.NextUpdate = latest
	}
	for _, r := range ca.index.revoked {
		b, err := hex.DecodeString(r.serial)
		if err != nil {
			return nil, err
		}
		tmpl.RevokedCertificateEntries = append(tmpl.RevokedCertificateEntries, x509.RevocationListEntry{
			SerialNumber: new(big.Int).SetBytes(b), RevocationTime: r.at, ReasonCode: r.reason,
		})
	}
	der, err := x509.CreateRevocationList(rand.Reader, tmpl, ca.cert, ca.key.Signer())
	if err != nil {
		return nil, err
	}
	l, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, err
	}
	if err := l.CheckSignatureFrom(ca.cert); err != nil {
		return nil, err
	}
	if err := ca.t.replace(ca.file(filePEM), pemText(pemCRL, der), modeOpen); err != nil {
		return nil, err
	}
	return l, ca.t.replace(ca.file(fileCRL), der, modeOpen)
}
