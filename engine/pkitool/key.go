package pkitool

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"

	"postern/engine/cli"
	"postern/ike/pki"
)

// keyKind is a kind of private key that is made here.
type keyKind struct {
	name string
	make func() (crypto.Signer, error)
}

func ecdsaKey(c elliptic.Curve) func() (crypto.Signer, error) {
	return func() (crypto.Signer, error) { return ecdsa.GenerateKey(c, rand.Reader) }
}

func rsaKey(bits int) func() (crypto.Signer, error) {
	return func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, bits) }
}

// keyKinds are the kinds that IKE peers have in common (RFC 7427, RFC 8420).
var keyKinds = []keyKind{
	{"p256", ecdsaKey(elliptic.P256())},
	{"p384", ecdsaKey(elliptic.P384())},
	{"p521", ecdsaKey(elliptic.P521())},
	{"ed25519", func() (crypto.Signer, error) {
		_, k, err := ed25519.GenerateKey(rand.Reader)
		return k, err
	}},
	{"rsa2048", rsaKey(2048)},
	{"rsa3072", rsaKey(3072)},
	{"rsa4096", rsaKey(4096)},
}

// defaultKind is small and fast, and every implementation knows it.
const defaultKind = "p256"

func typeOption(o *cli.Options) *string {
	return o.String("type", defaultKind, "`KIND` of key: "+kindNames())
}

func passOption(o *cli.Options, whose string) *string {
	return o.String("passphrase-file", "", "`FILE` with the passphrase of "+whose+", if it has one")
}

var keyPart = part{
	Command: cli.Command{
		Name:    "key",
		Args:    "FILE",
		Summary: "make a private key",
		Help: `Makes a private key in FILE (PKCS#8, mode 600), which must not exist. Or, with
--public, prints the public half of the key in FILE: what 'pubkeys' of a
connection takes, and 'postern pki issue'. ECDSA P-256 is a good choice; RSA
takes a small processor minutes to make, and is for peers that know nothing
else.

  postern pki key plant.key --type ed25519
  postern pki key plant.key --public --out plant.pub`,
	},
	run: runKey,
}

func runKey(t *tool, cmd *cli.Command, args []string) error {
	o := cli.NewOptions(t.sys, cmd)
	kind := typeOption(o)
	public := o.Bool("public", false, "print the public half of the key in FILE")
	pass := passOption(o, "the key")
	out := outputOptions(o)
	rest, err := arguments(o, args, 1, 1)
	if err != nil {
		return err
	}
	if *public {
		if err := out.ready(); err != nil {
			return err
		}
		k, err := readKey(rest[0], *pass)
		if err != nil {
			return err
		}
		defer k.Wipe()
		return out.write(t, pemPublic, k.Public().SPKI())
	}
	switch {
	case *out.file != "":
		return usageError("--out is for --public; the key goes to FILE")
	case *pass != "":
		return usageError("--passphrase-file is for --public; keys are made without, and kept from others by their mode")
	}
	if err := free(rest[0], *out.force); err != nil {
		return err
	}
	k, err := t.newKey(rest[0], *kind, *out.der, *out.force)
	if err != nil {
		return err
	}
	defer k.Wipe()
	t.note("%s: a new key, %s; nobody else may read it", cli.Clean(rest[0]), k.Public())
	return nil
}

// newKey makes a private key in a file.
func (t *tool) newKey(path, kind string, der, force bool) (*pki.Key, error) {
	signer, err := newSigner(kind)
	if err != nil {
		return nil, err
	}
	data, err := privatePEM(signer, der)
	if err != nil {
		return nil, err
	}
	defer clear(data)
	if err := t.create(path, data, modeSecret, force); err != nil {
		return nil, err
	}
	return parseKey(path, data, nil)
}
