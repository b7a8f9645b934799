package ike

// CipherOrder is which ciphers the word "default" stands for, and in which order. It follows
// from what the processor computes fast and in constant time. The zero value is good
// everywhere.
type CipherOrder uint8

const (
	// ChaChaFirst is for processors without AES instructions, which compute AES slowly:
	// AES-GCM has to be asked for by name. An IKE SA takes ChaCha20-Poly1305 only. ESP has
	// AES-CBC as a last resort, since strongSwan's default for ESP does not have
	// ChaCha20-Poly1305 (5.9; its default for IKE has it).
	ChaChaFirst CipherOrder = iota
	// AESFirst is for processors with AES instructions: AES-GCM, ChaCha20-Poly1305 for peers
	// without them, AES-CBC.
	AESFirst
)

// String says for people what "default" prefers.
func (o CipherOrder) String() string {
	if o == AESFirst {
		return "AES-GCM, then ChaCha20-Poly1305, then AES-CBC"
	}
	return "ChaCha20-Poly1305, and AES-CBC for ESP only"
}

// The proposals of the word "default", in order of preference. Groups are in the order
// of their cost on a small router; SHA-1 has to be asked for (RFC 8247 sections 2.2, 2.3).
const (
	defaultPRFs   = "-prfsha256-prfsha384-prfsha512-"
	defaultGroups = "x25519-ecp256-ecp384-ecp521-modp3072-modp4096-modp2048"
	defaultKE     = "-ke1_mlkem768-ke1_mlkem1024"
	defaultAEADs  = "aes128gcm16-aes256gcm16-chacha20poly1305"
	defaultCBC    = "aes128-aes256-sha256-sha384-sha512-"
	defaultESPCBC = "aes128-aes256-sha256-sha384-sha512-noesn-esn"
)

var (
	defaultIKE = [...][]string{
		ChaChaFirst: {
			"chacha20poly1305" + defaultPRFs + defaultGroups + defaultKE,
			"chacha20poly1305" + defaultPRFs + defaultGroups,
		},
		AESFirst: {
			defaultAEADs + defaultPRFs + defaultGroups + defaultKE,
			defaultCBC + defaultGroups + defaultKE,
			defaultAEADs + defaultPRFs + defaultGroups,
			defaultCBC + defaultGroups,
		},
	}
	defaultESP = [...][]string{
		ChaChaFirst: {"chacha20poly1305-noesn-esn", defaultESPCBC},
		AESFirst:    {"aes128gcm16-aes256gcm16-chacha20poly1305-noesn-esn", defaultESPCBC},
	}
)

// DefaultProposals returns what "default" stands for: one proposal with AEADs and perhaps
// one with CBC and HMAC, which may not be mixed (RFC 7296 section 3.3, RFC 5282 section 8).
// Those for IKE come twice, first with ML-KEM as an additional key exchange (RFC 9370), then
// without: a peer that does not know the transform skips the proposals that have it. It is
// a proposal and not an alternative, so that whoever knows it takes it.
// Those for ESP ask for no PFS, as strongSwan's. It is nil for other protocols than IKE
// and ESP. Whatever the orders of two sides, their defaults have a proposal in common.
func DefaultProposals(proto Protocol, order CipherOrder) []Proposal {
	if order > AESFirst {
		order = ChaChaFirst
	}
	var list []string
	switch proto {
	case ProtoIKE:
		list = defaultIKE[order]
	case ProtoESP:
		list = defaultESP[order]
	}
	var ps []Proposal
	for _, s := range list {
		p, err := ParseProposal(proto, s, order)
		if err != nil {
			panic(err) // a constant of this file is wrong; the tests parse it
		}
		ps = append(ps, p...)
	}
	return ps
}

// IsAES tells whether the transform is a cipher made of AES.
func (t Transform) IsAES() bool {
	if t.Type != TransformEncr {
		return false
	}
	for _, m := range aesModes {
		if uint16(m.id) == t.ID {
			return true
		}
	}
	return false
}
