package config

import (
	"bytes"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"postern/engine/fetch"
	"postern/ike/pki"
)

// Limits of the files of an authority. A list that is larger than what the largest board
// fetches belongs to a CA whose list nobody here could fetch either.
const (
	maxCertFile = 64 << 10 // octets
	maxCRLFile  = 4 << 20
)

// maxURIs bounds the URIs of each kind that an authority can have.
const maxURIs = 4

// authority is a CA while it is read.
type authority struct {
	t *node
	pki.Authority
	lists []*node // of crls, in the order of CRLs
}

var authoritySection = &section{
	path: "authorities.NAME",
	doc:  "a CA that peers' certificates may lead to, and where it tells which of them are revoked",
	keys: []key{
		{"cacert", aText, `the file with its certificate, PEM or DER; relative to the configuration`,
			(*scope).caCert},
		{"crls", aList, `files with its revocation lists, PEM or DER; none`,
			(*scope).crlFiles},
		{"crl_uris", aList, `where its revocation list is to be had, "http://…", beside what certificates say; none`,
			func(s *scope, n *node) { s.uris(n, &s.authority.CRLURIs) }},
		{"ocsp_uris", aList, `where its OCSP responder is, "http://…", beside what certificates say; none`,
			func(s *scope, n *node) { s.uris(n, &s.authority.OCSPURIs) }},
	},
}

func (s *scope) openAuthority(n *node) *scope {
	a := &authority{t: n}
	s.authorities = append(s.authorities, a)
	return &scope{loader: s.loader, authority: a}
}

// caCert reads the certificate of an authority.
func (s *scope) caCert(n *node) {
	data, ok := s.publicFile(n, n.text, maxCertFile)
	if !ok {
		return
	}
	list, err := pki.ParseCerts(data)
	if err != nil {
		s.problem(n.at, "name the file with the certificate of the CA, in PEM or DER", "%s holds no certificate: %v", shownPath(n.text), err)
		return
	}
	if len(list) != 1 {
		s.problem(n.at, "give each CA a section of its own; intermediate ones that peers send along need none",
			"%s holds %d certificates", shownPath(n.text), len(list))
		return
	}
	// What makes it useless has its place here, and not with the authority that comes last.
	if _, err := pki.NewTrust([]pki.Authority{{Cert: list[0]}}, nil); err != nil {
		s.problem(n.at, "", "%s is no CA to be trusted: %v", shownPath(n.text), err)
		return
	}
	s.authority.Cert = list[0]
}

// crlFiles reads the revocation lists of an authority.
func (s *scope) crlFiles(n *node) {
	s.eachFile(n, maxCRLFile, "revocation list", func(e *node, data []byte) error {
		list, err := pki.ParseCRL(data)
		if err == nil {
			s.authority.CRLs = append(s.authority.CRLs, list)
			s.authority.lists = append(s.authority.lists, e)
		}
		return err
	})
}

// uris reads where something can be fetched.
func (s *scope) uris(n *node, to *[]string) {
	for _, e := range s.texts(n) {
		switch err := fetch.Check(e.text); {
		case err != nil:
			s.problem(e.at, `write "http://crl.example/ca.crl"`, "%s cannot be used: %v", shown(e.text), err)
		case slices.Contains(*to, e.text):
			s.problem(e.at, "keep one of the two", "%s stands here twice", e.text)
		case len(*to) == maxURIs:
			s.problem(e.at, "the first one that answers suffices", "more than %d URIs", maxURIs)
			return
		default:
			*to = append(*to, e.text)
		}
	}
}

// finishTrust makes of the authorities what the machine trusts.
func (l *loader) finishTrust() {
	if len(l.authorities) == 0 && len(l.intermediates) == 0 {
		return
	}
	now := time.Now()
	var list []pki.Authority
	for _, a := range l.authorities {
		if a.Cert == nil {
			if good(a.t, "cacert") && !l.broken {
				l.problem(a.t.key, "name the file with its certificate in cacert", "the authority %s has no cacert", a.t.name)
			}
			continue
		}
		l.checkAuthority(a, now)
		l.floor([]*pki.Cert{a.Cert})
		list = append(list, a.Authority)
	}
	trust, err := pki.NewTrust(list, l.intermediates)
	if err != nil {
		// Each authority has been looked at by itself, so it is about all of them.
		at := pos{1, 1}
		if len(l.authorities) > 0 {
			at = l.authorities[0].t.key
		}
		l.problem(at, "", "the authorities cannot be used: %v", err)
		return
	}
	l.cfg.IKE.Trust = trust
}

// checkAuthority looks at what an authority's files say. A clock that has not been set says
// nothing about them.
func (l *loader) checkAuthority(a *authority, now time.Time) {
	if end := a.Cert.NotAfter(); now.After(end) {
		l.warn(where(a.t, "cacert"), "get the new certificate of the CA",
			"the certificate of the CA %s ended on %s: no certificate of it is accepted", a.Cert.Subject(), day(end))
	}
	for i, c := range a.CRLs {
		at := a.lists[i].at
		if !bytes.Equal(c.RawIssuer(), a.Cert.RawSubject()) {
			// Of an intermediate CA, perhaps, that only peers send along.
			l.warn(at, "put it under its own CA, unless that is one below this", "%s is the revocation list of another CA, %s, and counts for what that one has issued",
				shownPath(a.lists[i].text), c.Issuer())
		} else if err := c.CheckSignature(a.Cert); err != nil {
			l.problem(at, "put it under the CA that made it", "%s is no revocation list of %s: %v", shownPath(a.lists[i].text), a.Cert.Subject(), err)
			continue
		}
		if next := c.NextUpdate(); !next.IsZero() && now.After(next) {
			l.warn(at, "get the new one from the CA, or name its place in crl_uris",
				"the revocation list of %s ended on %s: what it lists stays revoked, and nothing else is known to be good by it", c.Issuer(), day(next))
		}
	}
}

// day writes a time for people.
func day(t time.Time) string { return t.UTC().Format("2006-01-02") }

// shownPath returns the name of a file for a problem, without what could do harm on a terminal.
func shownPath(path string) string { return shown(filepath.Base(path)) }

// publicFile reads the file that n names, from the place of the configuration. It is no
// secret, but whoever can change it decides whom we trust.
func (s *scope) publicFile(n *node, path string, most int) (data []byte, ok bool) {
	read := s.readPublic
	if read == nil {
		read = readPublicFile
	}
	data, err := read(s.inFolder(path), most)
	if err == nil {
		return data, true
	}
	hint := "name a file of at most " + sizeWords(most)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		hint = "a relative name starts in the folder of the configuration"
	case errors.Is(err, errChangeable):
		hint = "chmod go-w the file"
	case errors.Is(err, fs.ErrPermission):
		hint = "run as root, or give the file to the user that postern runs as"
	}
	s.problem(n.at, hint, "cannot read %s: %v", shownPath(path), reason(err))
	return nil, false
}

func sizeWords(n int) string {
	if n >= 1<<20 {
		return strconv.Itoa(n>>20) + " MiB"
	}
	return strconv.Itoa(n>>10) + " KiB"
}
