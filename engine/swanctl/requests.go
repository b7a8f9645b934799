package swanctl

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"postern/engine/control"
	"postern/ike/pki"
)

// Request is a command to the daemon, as swanctl sends it.
type Request struct {
	Command string
	Message *control.Message // nil if Err is set
	// Name is the section or the file that it is about, Kind what swanctl calls a key or a secret
	// in its messages: "ike", "private", "RSA".
	Name, Kind string
	// Err is why there is no message: a file that a connection or an authority names cannot be read.
	Err error
}

// Set is what a configuration has to load.
type Set struct {
	Requests []Request // in the order of swanctl --load-all: credentials, authorities, pools, connections
	// Warnings are what swanctl only reports, or ignores in silence, before it goes on.
	Warnings []*Error

	root *Section
}

// Find returns where the element that a path leads to stands ("connections.a.local.id"), or else
// the innermost section on the way there.
func (s *Set) Find(path string) (Position, bool) {
	sec := s.root
	for sec != nil {
		name, rest, more := strings.Cut(path, ".")
		if next := sec.Sub(name); next != nil && more {
			sec, path = next, rest
			continue
		} else if next != nil {
			return next.At, true
		}
		for i := range sec.Settings {
			if strings.EqualFold(sec.Settings[i].Key, name) {
				return sec.Settings[i].At, true
			}
		}
		return sec.At, sec != s.root
	}
	return Position{}, false
}

// Read reads a configuration with the credentials in the directories beside it and returns
// what swanctl --load-all --noprompt would send for it: load-cert, load-key, load-token,
// load-shared, load-authority, load-pool and load-conn. path is the file, or the directory with a
// swanctl.conf. Files in a directory come in the order of their names. The error, if the
// configuration itself cannot be read, is an *Error.
func Read(path string) (*Set, error) {
	path = confFile(path)
	root, warnings, err := parse(path)
	if err != nil {
		return nil, err
	}
	b := &builder{Set: Set{Warnings: warnings, root: root}, dir: filepath.Dir(path)}
	b.certificates()
	b.keys()
	b.secrets()
	b.sections("authorities", control.CmdLoadAuthority, b.authority)
	b.sections("pools", control.CmdLoadPool, b.pool)
	b.sections("connections", control.CmdLoadConn, func(m *control.Message, s *Section) error { return b.conn(m, s, 0) })
	return &b.Set, nil
}

// builder makes the requests of one configuration.
type builder struct {
	Set
	dir string
}

func (b *builder) warn(at Position, err error, format string, args ...any) {
	b.Warnings = append(b.Warnings, &Error{at, fmt.Sprintf(format, args...), err})
}

func (b *builder) add(command, kind, name string, m *control.Message) {
	b.Requests = append(b.Requests, Request{Command: command, Message: m, Name: name, Kind: kind})
}

// certDirs are the directories with certificates and their like, and what is in them as the
// daemon is told.
var certDirs = []struct{ dir, kind, flag string }{
	{"x509", "X509", "NONE"},
	{"x509ca", "X509", "CA"},
	{"x509ocsp", "X509", "OCSP"},
	{"x509aa", "X509", "AA"},
	{"x509ac", "X509_AC", ""},
	{"x509crl", "X509_CRL", ""},
	{"pubkey", "PUBKEY", ""},
}

func (b *builder) certificates() {
	for _, d := range certDirs {
		b.files(d.dir, func(path, _ string, data []byte) {
			m := new(control.Message).Set(control.KeyCertType, d.kind)
			if d.flag != "" {
				m.Set(control.KeyCertFlag, d.flag)
			}
			b.add(control.CmdLoadCert, "", path, m.Set(control.KeyCertData, string(data)))
		})
	}
}

// keyDirs are the directories with private keys, and the type of those that the daemon is to
// decrypt or to tell apart itself.
var keyDirs = []struct{ dir, kind string }{
	{"private", "any"},
	{"rsa", "rsa"},
	{"ecdsa", "ecdsa"},
	{"bliss", "bliss"},
	{"pkcs8", "any"},
}

func (b *builder) keys() {
	for _, d := range keyDirs {
		b.files(d.dir, func(path, name string, data []byte) {
			kind, typ := d.dir, d.kind
			if k, der := b.decrypt(d.dir, path, name, data); k != "" {
				kind, typ = k, k
				clear(data)
				data = der
			}
			b.add(control.CmdLoadKey, kind, path, new(control.Message).Set(control.KeyCertType, typ).Set(control.KeyCertData, string(data)))
			clear(data)
		})
	}
	b.files("pkcs12", func(path, name string, data []byte) {
		clear(data)
		b.warn(Position{File: path}, nil, "PKCS#12 is not read: take it apart with 'openssl pkcs12 -in %s -nokeys -out x509/NAME.pem' and 'openssl pkcs12 -in %s -nocerts -noenc -out private/NAME.pem'", name, name)
	})
}

// decrypt returns a private key in clear, and its kind, if the configuration has the secret for it.
// As with swanctl, a key that needs none is taken apart all the same.
func (b *builder) decrypt(dir, path, name string, data []byte) (kind string, der []byte) {
	var failed error
	for _, s := range b.secretSections() {
		file, ok := s.Get("file")
		if !ok || !strings.HasPrefix(s.Name, dir) || !strings.EqualFold(file, name) {
			continue
		}
		for _, n := range s.Settings {
			if !strings.HasPrefix(n.Key, "secret") {
				continue
			}
			key, err := pki.ParseKey(data, []byte(n.Value))
			if err == nil {
				kind, der, err = key.DER()
				key.Wipe()
			}
			if err == nil {
				return kind, der
			}
			failed = err
		}
	}
	if failed != nil {
		b.warn(Position{File: path}, failed, "the configured secret does not open this key")
	}
	return "", nil
}

func (b *builder) secretSections() []*Section {
	if s := b.root.Sub("secrets"); s != nil {
		return s.Sections
	}
	return nil
}

// secretTypes are the kinds of sections in secrets, by their prefixes. Those that are true are
// loaded as shared secrets; the others go with files or tokens.
var secretTypes = []struct {
	prefix string
	shared bool
}{
	{"eap", true}, {"xauth", true}, {"ntlm", true}, {"ike", true}, {"ppk", true},
	{"private", false}, {"rsa", false}, {"ecdsa", false}, {"bliss", false},
	{"pkcs8", false}, {"pkcs12", false}, {"token", false},
}

func (b *builder) secrets() {
	var shared []Request
	if s := b.root.Sub("secrets"); s != nil {
		b.stray(s.Settings, "secrets")
	}
	for _, s := range b.secretSections() {
		b.strays(s.Sections, "a secret")
		i := slices.IndexFunc(secretTypes, func(t struct {
			prefix string
			shared bool
		}) bool {
			return strings.HasPrefix(s.Name, t.prefix)
		})
		switch {
		case i < 0:
			b.warn(s.At, nil, "ignoring unsupported secret '%s'", s.Name)
		case secretTypes[i].prefix == "token":
			m := new(control.Message)
			for _, n := range s.Settings {
				m.Set(n.Key, n.Value) // the daemon knows its keys
			}
			b.add(control.CmdLoadToken, "", s.Name, m)
		case secretTypes[i].shared:
			if m := b.shared(s, secretTypes[i].prefix); m != nil {
				shared = append(shared, Request{Command: control.CmdLoadShared, Message: m, Name: s.Name, Kind: secretTypes[i].prefix})
			}
		}
	}
	b.Requests = append(b.Requests, shared...)
}

// shared returns the message that loads a shared secret, nil if there is none.
func (b *builder) shared(s *Section, kind string) *control.Message {
	value, ok := s.Get("secret")
	if !ok {
		b.warn(s.At, nil, "missing secret in '%s', ignored", s.Name)
		return nil
	}
	data, err := secretOctets(value)
	if err != nil {
		b.warn(s.At, err, "the secret of '%s' is ignored", s.Name)
		return nil
	}
	owners := []string{}
	for _, n := range s.Settings {
		switch {
		case strings.HasPrefix(n.Key, "id"):
			owners = append(owners, n.Value)
		case n.Key != "secret":
			b.warn(n.At, nil, "a secret of this kind has no key %q", n.Key)
		}
	}
	m := new(control.Message).Set(control.KeyCredID, s.Name).Set(control.KeyCertType, kind).Set(control.KeyCertData, data)
	return m.List("owners", owners...)
}

// secretOctets returns what a secret stands for: 0x begins hexadecimal, 0s Base64. Its errors hold
// nothing of it.
func secretOctets(value string) (string, error) {
	if len(value) < 2 || value[0] != '0' {
		return value, nil
	}
	digits := value[2:]
	switch value[1] {
	case 'x', 'X':
		groups := strings.Split(digits, ":")
		for i := range groups {
			if len(groups[i])%2 == 1 {
				groups[i] = "0" + groups[i]
			}
		}
		b, err := hex.DecodeString(strings.Join(groups, ""))
		if err != nil {
			return "", errors.New("behind 0x stand others than hexadecimal digits")
		}
		return string(b), nil
	case 's', 'S':
		b, err := base64.StdEncoding.DecodeString(digits)
		if err != nil {
			b, err = base64.RawStdEncoding.DecodeString(digits)
		}
		if err != nil {
			return "", errors.New("what stands behind 0s is not Base64")
		}
		return string(b), nil
	}
	return value, nil
}

// files calls fn with every file in a directory of credentials, by name.
func (b *builder) files(dir string, fn func(path, name string, data []byte)) {
	dir = filepath.Join(b.dir, dir)
	list, err := os.ReadDir(dir)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			b.warn(Position{File: dir}, bare(err), "the directory cannot be read")
		}
		return
	}
	if len(list) > maxCredentials {
		b.warn(Position{File: dir}, nil, "of %d files only %d are taken", len(list), maxCredentials)
		list = list[:maxCredentials]
	}
	for _, e := range list {
		path := filepath.Join(dir, e.Name())
		fi, err := os.Stat(path)
		if err == nil && !fi.Mode().IsRegular() {
			continue // a directory
		}
		data, err := readFile(path, maxCredential)
		if err != nil {
			b.warn(Position{File: path}, err, "the file is skipped")
			continue
		}
		fn(path, e.Name(), data)
	}
}

// sections makes a request of every section in one of the root's.
func (b *builder) sections(name, command string, fill func(*control.Message, *Section) error) {
	all := b.root.Sub(name)
	if all == nil {
		return
	}
	b.stray(all.Settings, name)
	for _, s := range all.Sections {
		r := Request{Command: command, Name: s.Name}
		m := new(control.Message)
		if r.Err = fill(m.Section(s.Name), s); r.Err == nil {
			r.Message = m
		}
		b.Requests = append(b.Requests, r)
	}
}

// stray and strays report what stands where swanctl does not look.
func (b *builder) stray(list []Setting, where string) {
	for _, n := range list {
		b.warn(n.At, nil, "the key %q means nothing directly in %s", n.Key, where)
	}
}

func (b *builder) strays(list []*Section, where string) {
	for _, s := range list {
		b.warn(s.At, nil, "the section %q means nothing in %s", s.Name, where)
	}
}

func (b *builder) authority(m *control.Message, s *Section) error {
	b.strays(s.Sections, "an authority")
	for _, n := range s.Settings {
		switch n.Key {
		case "cacert":
			data, err := b.named("x509ca", n.Value, n, "ca")
			if err != nil {
				return err
			}
			m.Set(n.Key, data)
		case "crl_uris", "ocsp_uris":
			m.List(n.Key, items(n.Value)...)
		default:
			m.Set(n.Key, n.Value)
		}
	}
	return nil
}

func (b *builder) pool(m *control.Message, s *Section) error {
	b.strays(s.Sections, "a pool")
	for _, n := range s.Settings {
		if n.Key == "addrs" {
			m.Set(n.Key, n.Value)
		} else {
			m.List(n.Key, items(n.Value)...)
		}
	}
	return nil
}

// connLists are the keys of connections whose values are lists.
var connLists = []string{"local_addrs", "remote_addrs", "proposals", "esp_proposals", "ah_proposals", "local_ts",
	"remote_ts", "vips", "pools", "groups", "cert_policy"}

// connFiles are those whose values are lists of files, and the directories of relative names.
var connFiles = []struct{ key, dir string }{{"certs", "x509"}, {"cacerts", "x509ca"}, {"pubkeys", "pubkey"}}

// maxSections is how deep the sections of a message may be nested, below the connection's own.
const maxSections = 7

func (b *builder) conn(m *control.Message, s *Section, nest int) error {
settings:
	for _, n := range s.Settings {
		for _, f := range connFiles {
			if !strings.EqualFold(n.Key, f.key) {
				continue
			}
			list := []string{}
			for _, file := range items(n.Value) {
				data, err := b.named(f.dir, file, n, f.key)
				if err != nil {
					return err
				}
				list = append(list, data)
			}
			m.List(n.Key, list...)
			continue settings
		}
		if slices.ContainsFunc(connLists, func(key string) bool { return strings.EqualFold(n.Key, key) }) {
			m.List(n.Key, items(n.Value)...)
		} else {
			m.Set(n.Key, n.Value)
		}
	}
	for _, c := range s.Sections {
		if nest == maxSections {
			return &Error{c.At, "sections are nested deeper than a connection has them", nil}
		}
		if err := b.conn(m.Section(c.Name), c, nest+1); err != nil {
			return err
		}
	}
	return nil
}

// named returns what is in a file that a setting names.
func (b *builder) named(dir, file string, n Setting, kind string) (string, error) {
	if !filepath.IsAbs(file) {
		file = filepath.Join(b.dir, dir, file)
	}
	data, err := readFile(file, maxCredential)
	if err != nil {
		return "", &Error{n.At, fmt.Sprintf("loading %s certificate '%s' failed", kind, file), err}
	}
	return string(data), nil
}

// items returns the items of a list with commas. As with swanctl, spaces around them and empty
// ones do not count.
func items(value string) []string {
	list := []string{}
	for _, v := range strings.Split(value, ",") {
		if v = strings.Trim(v, " "); v != "" {
			list = append(list, v)
		}
	}
	return list
}
