package pki

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"hash"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/crypto/pbkdf2"
)

// parseEncrypted reads an EncryptedPrivateKeyInfo (RFC 5958 3) under PBES2 (RFC 8018 6.2).
func parseEncrypted(der, passphrase []byte) (*Key, error) {
	damaged := errors.New("damaged encrypted private key")
	in := cryptobyte.String(der)
	var seq, params, sealed cryptobyte.String
	if !in.ReadASN1(&seq, asn1.SEQUENCE) || !in.Empty() {
		return nil, damaged
	}
	oid, p, ok := readAlg(&seq)
	if !ok || !seq.ReadASN1(&sealed, asn1.OCTET_STRING) || !seq.Empty() {
		return nil, damaged
	}
	if string(oid) != oidPBES2 {
		if bytes.HasPrefix(oid, []byte(oidPBES1)) || bytes.HasPrefix(oid, []byte(oidPKCS12)) {
			return nil, errors.New("the key is encrypted the old way (PBES1 or PKCS#12), which is not read: convert it with openssl pkcs8 -topk8 -v2 aes256")
		}
		return nil, damaged
	}
	if !p.ReadASN1(&params, asn1.SEQUENCE) {
		return nil, damaged
	}
	kdf, kdfParams, ok := readAlg(&params)
	if !ok {
		return nil, damaged
	}
	enc, encParams, ok := readAlg(&params)
	if !ok || !params.Empty() {
		return nil, damaged
	}
	switch {
	case string(kdf) == oidScrypt:
		return nil, errors.New("the key is encrypted with scrypt, which is not read: convert it with openssl pkcs8 -topk8 -v2 aes256")
	case string(kdf) != oidPBKDF2:
		return nil, damaged
	case string(enc) == oid3DES:
		return nil, errors.New("the key is encrypted with 3DES, which is not read: convert it with openssl pkcs8 -topk8 -v2 aes256")
	}
	size := 0
	if rest, is := bytes.CutPrefix(enc, []byte(oidAES)); is && len(rest) == 1 {
		size = map[byte]int{2: 16, 22: 24, 42: 32}[rest[0]]
	}
	var iv cryptobyte.String
	if size == 0 || !encParams.ReadASN1(&iv, asn1.OCTET_STRING) || len(iv) != aes.BlockSize {
		return nil, errors.New("the key is encrypted with a cipher other than AES-CBC, which is not read")
	}

	// PBKDF2-params: salt, iterationCount, keyLength OPTIONAL, prf DEFAULT hmacWithSHA1.
	var kp, salt cryptobyte.String
	var rounds, length int
	if !kdfParams.ReadASN1(&kp, asn1.SEQUENCE) || !kp.ReadASN1(&salt, asn1.OCTET_STRING) || !kp.ReadASN1Integer(&rounds) {
		return nil, damaged
	}
	if kp.PeekASN1Tag(asn1.INTEGER) && (!kp.ReadASN1Integer(&length) || length != size) {
		return nil, damaged
	}
	prf := SHA1
	if !kp.Empty() {
		oid, np, ok := readAlg(&kp)
		rest, is := bytes.CutPrefix(oid, []byte(oidHMAC))
		if !ok || !is || len(rest) != 1 || !absentOrNull(np) || !kp.Empty() {
			return nil, damaged
		}
		if prf = (map[byte]Hash{7: SHA1, 9: SHA2_256, 10: SHA2_384, 11: SHA2_512})[rest[0]]; prf == 0 {
			return nil, errors.New("the key is encrypted with a hash that is not known")
		}
	}
	if rounds < 1 || rounds > maxIterations {
		return nil, fmt.Errorf("the encrypted key wants %d rounds of PBKDF2; at most %d are done", rounds, maxIterations)
	}
	if len(sealed) == 0 || len(sealed)%aes.BlockSize != 0 {
		return nil, damaged
	}
	if len(passphrase) == 0 {
		return nil, fmt.Errorf("the private key is encrypted: a %w is needed", ErrPassphrase)
	}

	key := pbkdf2.Key(passphrase, salt, rounds, size, func() hash.Hash { return prf.function().New() })
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	plain := bytes.Clone(sealed)
	defer clear(plain)
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(plain, plain)
	wrong := fmt.Errorf("the %w does not open the private key", ErrPassphrase)
	n := int(plain[len(plain)-1])
	if n < 1 || n > aes.BlockSize || !bytes.Equal(plain[len(plain)-n:], bytes.Repeat([]byte{byte(n)}, n)) {
		return nil, wrong
	}
	plain = plain[:len(plain)-n]
	// Padding fits by chance once in 256 times: then it is no sequence either.
	whole := cryptobyte.String(plain)
	if !whole.ReadASN1(&seq, asn1.SEQUENCE) || !whole.Empty() {
		return nil, wrong
	}
	return parsePKCS8(plain)
}
