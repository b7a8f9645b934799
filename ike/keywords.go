package ike

import (
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"

	"postern/esp"
)

// keyword is a word of strongSwan's notation of proposals.
type keyword struct {
	name string
	Transform
}

func encr(id esp.EncrID, bits uint16) Transform {
	return Transform{Type: TransformEncr, ID: uint16(id), KeyBits: bits}
}
func integ(id esp.IntegID) Transform { return Transform{Type: TransformInteg, ID: uint16(id)} }
func prf(id PRFID) Transform         { return Transform{Type: TransformPRF, ID: uint16(id)} }
func group(id DHGroup) Transform     { return Transform{Type: TransformDH, ID: uint16(id)} }

// aesModes are the modes of AES: each has a word for each key length, such as "aes128ctr". Of
// several for one transform the first is the one that we print.
var aesModes = [...]struct {
	suffix string
	id     esp.EncrID
}{
	{"", esp.EncrAESCBC},
	{"gcm16", esp.EncrAESGCM16}, {"gcm", esp.EncrAESGCM16}, {"gcm128", esp.EncrAESGCM16},
	{"gcm12", esp.EncrAESGCM12}, {"gcm96", esp.EncrAESGCM12},
	{"gcm8", esp.EncrAESGCM8}, {"gcm64", esp.EncrAESGCM8},
	{"ccm16", esp.EncrAESCCM16}, {"ccm", esp.EncrAESCCM16}, {"ccm128", esp.EncrAESCCM16},
	{"ccm12", esp.EncrAESCCM12}, {"ccm96", esp.EncrAESCCM12},
	{"ccm8", esp.EncrAESCCM8}, {"ccm64", esp.EncrAESCCM8},
	{"ctr", esp.EncrAESCTR},
	{"gmac", esp.EncrNullAuthAESGMAC},
	{"gcm16iiv", esp.EncrAESGCM16IIV}, // strongSwan has no words for implicit IVs
	{"ccm8iiv", esp.EncrAESCCM8IIV},
}

// keywords are the words that we know.
var keywords = append(aesWords(), otherWords[:]...)

// aesWords returns the words of aesModes.
func aesWords() (ks []keyword) {
	for _, m := range aesModes {
		for bits := uint16(128); bits <= 256; bits += 64 {
			ks = append(ks, keyword{"aes" + strconv.Itoa(int(bits)) + m.suffix, encr(m.id, bits)})
		}
	}
	return ks
}

// Algorithms visits the algorithms that there are, each once, in the order in which they stand
// among the words of proposals.
func Algorithms(visit func(t TransformType, id uint16)) {
	seen := make(map[[2]uint16]bool, len(keywords))
	for _, k := range keywords {
		if id := [2]uint16{uint16(k.Type), k.ID}; !seen[id] {
			seen[id] = true
			visit(k.Type, k.ID)
		}
	}
}

// otherWords follow the same rule where there are several for one transform.
var otherWords = [...]keyword{
	{"aes", encr(esp.EncrAESCBC, 128)},
	{"chacha20poly1305", encr(esp.EncrChaCha20Poly1305, 0)},
	{"chacha20poly1305iiv", encr(esp.EncrChaCha20Poly1305IIV, 0)},
	{"null", encr(esp.EncrNull, 0)},
	{"sha1", integ(esp.IntegHMACSHA196)},
	{"sha256", integ(esp.IntegHMACSHA256_128)},
	{"sha384", integ(esp.IntegHMACSHA384_192)},
	{"sha512", integ(esp.IntegHMACSHA512_256)},
	{"sha", integ(esp.IntegHMACSHA196)},
	{"sha2_256", integ(esp.IntegHMACSHA256_128)},
	{"sha2_384", integ(esp.IntegHMACSHA384_192)},
	{"sha2_512", integ(esp.IntegHMACSHA512_256)},
	{"aesxcbc", integ(esp.IntegAESXCBC96)},
	{"aescmac", integ(esp.IntegAESCMAC96)},
	{"prfsha1", prf(PRFHMACSHA1)},
	{"prfsha256", prf(PRFHMACSHA256)},
	{"prfsha384", prf(PRFHMACSHA384)},
	{"prfsha512", prf(PRFHMACSHA512)},
	{"prfaesxcbc", prf(PRFAES128XCBC)},
	{"prfaescmac", prf(PRFAES128CMAC)},
	{"x25519", group(Curve25519)},
	{"curve25519", group(Curve25519)},
	{"ecp256", group(ECP256)},
	{"ecp384", group(ECP384)},
	{"ecp521", group(ECP521)},
	{"modp2048", group(MODP2048)},
	{"modp3072", group(MODP3072)},
	{"modp4096", group(MODP4096)},
	{"mlkem768", group(MLKEM768)},
	{"mlkem1024", group(MLKEM1024)},
	{"modpnone", group(DHNone)},
	{"esn", Transform{Type: TransformESN, ID: withESN}},
	{"noesn", Transform{Type: TransformESN, ID: noESN}},
}

// prfOf is the PRF with the hash or cipher of an integrity algorithm, 0 if there is none.
func prfOf(id uint16) PRFID {
	switch esp.IntegID(id) {
	case esp.IntegHMACSHA196:
		return PRFHMACSHA1
	case esp.IntegHMACSHA256_128:
		return PRFHMACSHA256
	case esp.IntegHMACSHA384_192:
		return PRFHMACSHA384
	case esp.IntegHMACSHA512_256:
		return PRFHMACSHA512
	case esp.IntegAESXCBC96:
		return PRFAES128XCBC
	case esp.IntegAESCMAC96:
		return PRFAES128CMAC
	}
	return 0
}

// wordOrder is the order in which the types of transforms are kept and printed.
var wordOrder = [...]TransformType{TransformEncr, TransformInteg, TransformPRF, TransformDH, TransformESN,
	6, 7, 8, 9, 10, 11, 12}

// ParseProposal reads strongSwan's notation of a proposal for IKE, ESP or AH: words joined
// by hyphens, alternatives of one kind in order of preference, or "default" for
// DefaultProposals of the order. The rules are strongSwan's:
//
//   - A proposal has ciphers that protect integrity themselves, or ciphers that go with
//     an integrity algorithm, never both sorts.
//   - For IKE a missing PRF is that of the integrity algorithm. Beside an AEAD an
//     integrity algorithm names nothing but the PRF.
//   - For IKE there is a group; for ESP groups ask for PFS.
//   - A key exchange method behind ke1_ to ke7_ is for an additional key exchange after that
//     with the group (RFC 9370), and ke1_none to ke7_none let it be left out. No method can be
//     used twice.
//   - For ESP and AH without esn or noesn it is noesn.
//   - For AH there is an integrity algorithm and no cipher, and no default.
//
// The result is one proposal, except for "default". Errors name the word at fault.
func ParseProposal(proto Protocol, s string, order CipherOrder) ([]Proposal, error) {
	if s == "default" && proto != ProtoAH {
		return DefaultProposals(proto, order), nil
	}
	p := Proposal{Proto: proto}
	for _, word := range strings.Split(s, "-") {
		t, ok := wordTransform(word)
		if !ok {
			return nil, fmt.Errorf("proposal %q: unknown word %q; known are %s", s, word, knownWords(proto))
		}
		if proto == ProtoAH {
			t = t.forAH()
		}
		switch {
		case t.Type == TransformEncr && proto == ProtoAH:
			return nil, fmt.Errorf("proposal %q: %q is a cipher, and AH does not encrypt; leave it out, or use ESP", s, word)
		case t.Type == TransformEncr && proto == ProtoIKE && espOnly(t.ID):
			return nil, fmt.Errorf("proposal %q: %q is for ESP, never for an IKE SA; write aes128gcm16 instead", s, word)
		case t.Type == TransformESN && proto == ProtoIKE:
			return nil, fmt.Errorf("proposal %q: %q is for ESP, an IKE SA has no such sequence numbers; leave it out", s, word)
		case t.Type == TransformPRF && proto != ProtoIKE:
			return nil, fmt.Errorf("proposal %q: %q is for IKE, %v has no pseudorandom function; leave it out", s, word, proto)
		case t == group(DHNone) && proto == ProtoIKE:
			return nil, fmt.Errorf("proposal %q: an IKE SA cannot do without a group; write x25519 instead of %q", s, word)
		case t == group(MLKEM1024) && proto == ProtoIKE:
			return nil, fmt.Errorf("proposal %q: the first message of an IKE SA cannot be split, and with %q it does not fit into a datagram; write x25519-ke1_mlkem1024", s, word)
		case p.has(t):
			return nil, fmt.Errorf("proposal %q: %q is there twice", s, word)
		}
		p.Transforms = append(p.Transforms, t)
	}
	if err := p.complete(); err != nil {
		return nil, fmt.Errorf("proposal %q: %w", s, err)
	}
	return []Proposal{p}, nil
}

// gmacs are AES-GMAC for AH, whose key lengths have numbers of their own (RFC 4543 section 5.4).
var gmacs = map[Transform]Transform{
	encr(esp.EncrNullAuthAESGMAC, 128): integ(esp.IntegAES128GMAC),
	encr(esp.EncrNullAuthAESGMAC, 192): integ(esp.IntegAES192GMAC),
	encr(esp.EncrNullAuthAESGMAC, 256): integ(esp.IntegAES256GMAC),
}

// forAH returns what a word means for AH.
func (t Transform) forAH() Transform {
	if g, ok := gmacs[t]; ok {
		return g
	}
	return t
}

// complete adds what a written proposal implies, sorts it by type, and refuses what
// makes no sense.
func (p *Proposal) complete() error {
	aeads, others := 0, 0
	none := p.has(encr(esp.EncrNull, 0))
	for _, t := range p.Transforms {
		if t.Type == TransformEncr {
			if combined(t.ID) {
				aeads++
			} else {
				others++
			}
		}
	}
	switch {
	case p.Proto == ProtoAH:
		if !p.hasType(TransformInteg) {
			return fmt.Errorf("has no integrity algorithm; add sha256")
		}
	case aeads+others == 0:
		return fmt.Errorf("has no cipher; add aes128gcm16, chacha20poly1305 or aes256")
	case aeads > 0 && others > 0:
		return fmt.Errorf("has ciphers with and without integrity of their own; make two proposals of it")
	case none && !p.hasType(TransformInteg):
		return fmt.Errorf("has null without an integrity algorithm, which would protect nothing; add sha256")
	case others > 0 && !p.hasType(TransformInteg):
		return fmt.Errorf("has no integrity algorithm; add sha256")
	case aeads > 0 && p.Proto == ProtoESP && p.hasType(TransformInteg):
		return fmt.Errorf("has an integrity algorithm, but its ciphers protect integrity themselves; leave it out")
	case p.Proto == ProtoIKE && !p.hasType(TransformPRF) && !p.hasType(TransformInteg):
		return fmt.Errorf("has no pseudorandom function; add prfsha256")
	case p.Proto == ProtoIKE && !p.hasType(TransformDH):
		return fmt.Errorf("has no group; add x25519, ecp256 or modp3072")
	case !p.hasType(TransformDH) && slices.ContainsFunc(p.Transforms, func(t Transform) bool { return t.Type.additional() }):
		return fmt.Errorf("has an additional key exchange and no group for the first one; add x25519")
	}
	if _, ok := chooseMethods(p, p, DHNone, false); !ok {
		return fmt.Errorf("has additional key exchanges for which only methods are left that the others use; give each one of its own")
	}
	if p.Proto == ProtoIKE && !p.hasType(TransformPRF) {
		p.Transforms = append(p.Transforms, p.derivedPRFs()...)
	}
	if aeads > 0 {
		p.Transforms = slices.DeleteFunc(p.Transforms, func(t Transform) bool { return t.Type == TransformInteg })
	}
	if p.Proto != ProtoIKE && !p.hasType(TransformESN) {
		p.Transforms = append(p.Transforms, Transform{Type: TransformESN, ID: noESN})
	}
	sort.SliceStable(p.Transforms, func(i, j int) bool { return p.Transforms[i].Type < p.Transforms[j].Type })
	return nil
}

// derivedPRFs returns the PRFs that go with the proposal's integrity algorithms.
func (p *Proposal) derivedPRFs() (ts []Transform) {
	for _, t := range p.Transforms {
		if t.Type == TransformInteg && prfOf(t.ID) != 0 {
			ts = append(ts, prf(prfOf(t.ID)))
		}
	}
	return ts
}

// knownWords lists the words for a protocol, without synonyms.
func knownWords(proto Protocol) string {
	var words []string
	for i, k := range keywords {
		if proto != ProtoIKE && k.Type == TransformPRF || proto == ProtoAH && k.forAH().Type == TransformEncr ||
			proto == ProtoIKE && (k.Type == TransformESN || k.Transform == group(DHNone) || k.Type == TransformEncr && espOnly(k.ID)) ||
			slices.ContainsFunc(keywords[:i], func(o keyword) bool { return o.Transform == k.Transform }) {
			continue
		}
		words = append(words, k.name)
	}
	words = append(words, "ke1_none")
	if proto != ProtoAH {
		words = append(words, "default")
	}
	return strings.Join(words, ", ")
}

// String returns the proposal in strongSwan's notation: ParseProposal gives it back if it
// came from there. Transforms without a word of their own are written as type and number
// ("encr_3", "encr_23_128", "dh_2"), those with an attribute that is not understood with "?".
func (p Proposal) String() string {
	derived := p.derivedPRFs()
	var words []string
	for _, kind := range wordOrder {
		var ts []Transform
		for _, t := range p.Transforms {
			if t.Type == kind {
				ts = append(ts, t)
			}
		}
		implied := kind == TransformPRF && len(ts) > 0 && slices.Equal(ts, derived) ||
			kind == TransformESN && len(ts) == 1 && ts[0].ID == noESN ||
			kind == TransformInteg && len(ts) == 1 && ts[0].ID == 0
		if implied {
			continue
		}
		for _, t := range ts {
			words = append(words, t.String())
		}
	}
	for _, t := range p.Transforms {
		if !slices.Contains(wordOrder[:], t.Type) {
			words = append(words, t.String())
		}
	}
	return strings.Join(words, "-")
}

// String returns strongSwan's word for the transform, or its type and number.
func (t Transform) String() string {
	if t.Type.additional() {
		return t.additionalWord()
	}
	for _, k := range keywords {
		if k.Transform == t || k.forAH() == t {
			return k.name
		}
	}
	s := strings.ToLower(t.Type.String()) + "_" + strconv.Itoa(int(t.ID))
	switch t.KeyBits {
	case 0:
		return s
	case badAttr:
		return s + "?"
	}
	return s + "_" + strconv.Itoa(int(t.KeyBits))
}
