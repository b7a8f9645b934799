package config

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io/fs"
	"strings"

	"postern/ike"
)

// secret is a pre-shared key while it is read.
type secret struct {
	ike.Secret
	t *node
}

// minSecretLen is the length below which a key can be guessed by whoever records one
// handshake as the responder (RFC 7296 section 2.15 asks for keys with as much
// entropy as the strongest key that is negotiated).
const minSecretLen = 16

func (s *scope) openSecret(n *node) *scope {
	sec := &secret{t: n, Secret: ike.Secret{Name: n.name}}
	s.secrets = append(s.secrets, sec)
	return &scope{loader: s.loader, secret: sec}
}

// inlineSecret reads a key that stands in the configuration.
func (s *scope) inlineSecret(n *node) {
	s.exposedKey(n)
	s.key(n, []byte(n.text))
	n.text = ""
}

// exposedKey notes that the configuration holds a key and is open to others.
func (s *scope) exposedKey(n *node) {
	if s.exposed {
		s.problem(n.at, "chmod 600 the file, or put the key into a file of its own and name that in "+keyFileOf(n),
			"the group or others can read or change this file, and it holds a secret")
	}
}

// keyFileOf is the key that names the file in which the key n may stand as well.
func keyFileOf(n *node) string {
	if n.name == "secret" {
		return "secret_file"
	}
	return "key_file"
}

// fileSecret reads a key that has a file of its own. Its path stays out of the
// problems, because it happens that somebody writes the key itself there.
func (s *scope) fileSecret(n *node) {
	if data, ok := s.secretFile(n); ok {
		s.key(n, data)
	}
}

// secretFile reads the file that n names, from the place of the configuration.
func (s *scope) secretFile(n *node) (data []byte, ok bool) {
	data, err := s.readSecret(s.inFolder(n.text))
	if err != nil {
		s.unreadableKey(n, err)
	}
	return data, err == nil
}

// unreadableKey notes that the file that n names cannot be used.
func (s *scope) unreadableKey(n *node, err error) {
	hint := "name a file with the key in it"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		hint = "a relative name starts in the folder of the configuration"
	case errors.Is(err, errExposed):
		hint = "chmod 600 the file"
	case errors.Is(err, fs.ErrPermission):
		hint = "run as root, or give the file to the user that postern runs as"
	}
	s.problem(n.at, hint, "cannot read the file that %s names: %v", n.name, reason(err))
}

// key takes the key of a secret.
func (s *scope) key(n *node, text []byte) {
	key := s.decoded(n, text)
	if len(key) > 0 && len(key) < minSecretLen {
		s.warn(n.at, `"postern psk" makes a good one`, "the key is only %d octets long and can be guessed; use %d or more",
			len(key), minSecretLen)
	}
	s.secret.Key = key
}

// decoded returns what stands for a key: "0x" and hexadecimal, "0s" and base64, or a text; nil if
// it is none.
func (s *scope) decoded(n *node, text []byte) []byte {
	key := text
	var err error
	if hexed, ok := bytes.CutPrefix(text, []byte("0x")); ok {
		key = make([]byte, hex.DecodedLen(len(hexed)))
		if _, err = hex.Decode(key, hexed); err != nil {
			s.problem(n.at, "use an even number of the digits 0-9 and a-f", "the key after 0x is not hexadecimal")
		}
	} else if based, ok := bytes.CutPrefix(text, []byte("0s")); ok {
		b := strings.TrimRight(string(based), "=")
		if key, err = base64.RawStdEncoding.DecodeString(b); err != nil {
			s.problem(n.at, "use the letters of standard base64", "the key after 0s is not base64")
		}
	}
	if err == nil && len(key) == 0 {
		s.problem(n.at, `"postern psk" makes a good one`, "the key is empty")
	}
	if err != nil {
		return nil
	}
	return key
}

// readSecretFile returns what stands in a secret's file, less one final newline. It
// refuses files that are open to others, and whatever is not a plain file of
// sensible length.
func readSecretFile(path string) ([]byte, error) {
	data, err := readPrivateFile(path, maxSecretLen)
	if line, ok := bytes.CutSuffix(data, []byte("\n")); ok {
		data = bytes.TrimSuffix(line, []byte("\r"))
	}
	return data, err
}
