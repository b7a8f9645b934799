package pki

// Hash is a hash function as SIGNATURE_HASH_ALGORITHMS numbers it (RFC 7427 4 and 7; Identity
// by RFC 8420 2).
type Hash uint16

const (
	SHA1     Hash = 1
	SHA2_256 Hash = 2
	SHA2_384 Hash = 3
	SHA2_512 Hash = 4
	Identity Hash = 5 // no hashing before the signature: Ed25519
)

// Hashes is what we verify, for our own SIGNATURE_HASH_ALGORITHMS, best first. SHA-1 is not
// among them (RFC 8247 3.2).
func Hashes() []Hash { return []Hash{SHA2_512, SHA2_384, SHA2_256, Identity} }

// String is "sha256" and so on, as swanctl.conf has it.
func (h Hash) String() string {
	switch h {
	case SHA1:
		return "sha1"
	case SHA2_256:
		return "sha256"
	case SHA2_384:
		return "sha384"
	case SHA2_512:
		return "sha512"
	case Identity:
		return "identity"
	}
	return "unknown hash"
}
