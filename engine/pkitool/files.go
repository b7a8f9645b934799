package pkitool

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"postern/engine/cli"
	"postern/ike/pki"
)

// maxFile bounds what is read: revocation lists are the largest files that make sense here.
const maxFile = 16 << 20

// Modes of files: what others may read, and what not.
const (
	modeOpen   fs.FileMode = 0o644
	modeSecret fs.FileMode = 0o600
)

func (t *tool) print(w io.Writer, text string) { _, _ = io.WriteString(w, text) }

// fileError says which file, and what to do where that can be known.
func fileError(path string, err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = pe.Err
	}
	if le, ok := errors.AsType[*os.LinkError](err); ok {
		err = le.Err
	}
	hint := ""
	switch {
	case errors.Is(err, fs.ErrNotExist):
		hint = "; name one that exists"
	case errors.Is(err, fs.ErrPermission):
		hint = "; run this as its owner or as root"
	}
	return fmt.Errorf("%s: %w%s", cli.Clean(path), err, hint)
}

// read returns what stands in a file.
func read(path string) ([]byte, error) {
	data, _, err := readMode(path)
	return data, err
}

// readSecret is read for what nobody else may be able to read.
func readSecret(path string) ([]byte, error) {
	data, mode, err := readMode(path)
	if err == nil && mode.Perm()&0o077 != 0 {
		clear(data)
		return nil, fmt.Errorf("%[1]s: others can read or change this file, and it holds a secret: chmod 600 %[1]s", cli.Clean(path))
	}
	return data, err
}

func readMode(path string) ([]byte, fs.FileMode, error) {
	// Looked at before it is opened: opening a FIFO or a device can block or have effects.
	st, err := os.Stat(path)
	if err != nil {
		return nil, 0, fileError(path, err)
	}
	if !st.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("%s: this is no file; name a file", cli.Clean(path))
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, fileError(path, err)
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	switch {
	case err != nil:
		return nil, 0, fileError(path, err)
	case len(data) > maxFile:
		return nil, 0, fmt.Errorf("%s: larger than any key or certificate; name the right file", cli.Clean(path))
	case len(data) == 0:
		return nil, 0, fmt.Errorf("%s: the file is empty; name the right file", cli.Clean(path))
	}
	return data, st.Mode(), nil
}

// readKey reads a private key; passFile names a file with its passphrase, or is "".
func readKey(path, passFile string) (*pki.Key, error) {
	var pass []byte
	if passFile != "" {
		data, err := readSecret(passFile)
		if err != nil {
			return nil, err
		}
		defer clear(data)
		pass = bytes.TrimRight(data, "\r\n")
	}
	data, err := readSecret(path)
	if err != nil {
		return nil, err
	}
	defer clear(data)
	return parseKey(path, data, pass)
}

// parseKey reads a private key from the content of a file.
func parseKey(path string, data, pass []byte) (*pki.Key, error) {
	k, err := pki.ParseKey(data, pass)
	switch {
	case err == nil:
		return k, nil
	case errors.Is(err, pki.ErrPassphrase) && len(pass) == 0:
		return nil, fmt.Errorf("%s: the key is protected: give --passphrase-file FILE with its passphrase", cli.Clean(path))
	}
	return nil, fmt.Errorf("%s: %w", cli.Clean(path), err)
}

// free says whether a file may be written: nothing is there, or nothing in it, as a power cut
// leaves it between taking the name and writing.
func free(path string, force bool) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fileError(path, err)
	case !st.Mode().IsRegular():
		return fmt.Errorf("%s: something other than a file has this name; take another", cli.Clean(path))
	case st.Size() == 0 || force:
		return nil
	}
	return fmt.Errorf("%s: this file exists; take another name, or --force to overwrite it", cli.Clean(path))
}

// create writes a file that is not there yet, unless force is set, as a whole and synced.
func (t *tool) create(path string, data []byte, mode fs.FileMode, force bool) error {
	if err := free(path, force); err != nil {
		return err
	}
	// The name is taken before it is written to: of two processes one fails.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	switch {
	case err == nil:
		_ = f.Close()
	case !errors.Is(err, fs.ErrExist):
		return fileError(path, err)
	default:
		// Empty, or to be overwritten; what took the name meanwhile is not.
		if err := free(path, force); err != nil {
			return err
		}
	}
	return t.replace(path, data, mode)
}

// replace writes a file as a whole: after a power cut either it or what was there before is found.
func (t *tool) replace(path string, data []byte, mode fs.FileMode) error {
	if err := t.os.Replace(path, data, mode); err != nil {
		return fileError(path, err)
	}
	return nil
}

// output is where a command leaves what it made.
type output struct {
	file  *string
	der   *bool
	force *bool
}

func outputOptions(o *cli.Options) output {
	return output{
		file:  o.String("out", "", "write to `FILE`, which must not exist, instead of standard output"),
		der:   o.Bool("der", false, "write DER instead of PEM"),
		force: o.Bool("force", false, "overwrite the file"),
	}
}

// ready finds out before anything is made whether it can be written.
func (out output) ready() error {
	if *out.file == "" {
		if *out.force {
			return usageError("--force says that a file may be overwritten: name it with --out")
		}
		return nil
	}
	return free(*out.file, *out.force)
}

// write writes the first of the DER objects, or as PEM all.
func (out output) write(t *tool, kind string, objects ...[]byte) error {
	data := objects[0]
	if !*out.der {
		data = pemText(kind, objects...)
	}
	if *out.file == "" {
		_, err := t.sys.Stdout.Write(data)
		return err
	}
	return t.create(*out.file, data, modeOpen, *out.force)
}

// pemText writes DER objects as PEM (RFC 7468).
func pemText(kind string, objects ...[]byte) []byte {
	var b []byte
	for _, der := range objects {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})...)
	}
	return b
}

// Labels of PEM blocks (RFC 7468).
const (
	pemCert    = "CERTIFICATE"
	pemRequest = "CERTIFICATE REQUEST"
	pemCRL     = "X509 CRL"
	pemPublic  = "PUBLIC KEY"
	pemPrivate = "PRIVATE KEY"
)

// what is a kind of object that files hold.
type what uint8

const (
	unknown what = iota
	certificate
	request
	revocations
	publicKey
	privateKey
)

// object is one object of a file: as DER, but private keys as they stand there, because old forms
// of PEM say in their head how they are protected.
type object struct {
	what what
	data []byte
}

// objects takes a file apart, PEM or DER. Blocks of PEM that are none of ours are passed over.
func objects(data []byte) []object {
	var list []object
	found := false
	for rest := data; ; {
		block, next := pem.Decode(rest)
		if block == nil {
			break
		}
		found = true
		whole := rest[:len(rest)-len(next)]
		rest = next
		switch kind := block.Type; {
		case kind == pemCert || kind == "X509 CERTIFICATE":
			list = append(list, object{certificate, block.Bytes})
		case kind == pemRequest || kind == "NEW CERTIFICATE REQUEST":
			list = append(list, object{request, block.Bytes})
		case kind == pemCRL || kind == "CRL":
			list = append(list, object{revocations, block.Bytes})
		case strings.HasSuffix(kind, "PUBLIC KEY"):
			list = append(list, object{publicKey, whole})
		case strings.HasSuffix(kind, "PRIVATE KEY"):
			clear(block.Bytes)
			list = append(list, object{privateKey, whole})
		}
	}
	if !found {
		if w := derKind(data); w != unknown {
			list = append(list, object{w, data})
		}
	}
	return list
}
