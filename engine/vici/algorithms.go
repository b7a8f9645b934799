package vici

import (
	"postern/engine/control"
	"postern/esp"
	"postern/ike"
)

// plugin stands where charon names the plugin that does something.
const plugin = "postern"

// algorithmSections are what get-algorithms has beside what proposals name: charon's sections in
// its order, with what is always there. drbg and xof are used by nothing here.
var algorithmSections = [...]struct {
	name  string
	fixed []string
}{
	{"encryption", nil},
	{"integrity", nil},
	{"aead", nil},
	{"hasher", []string{"HASH_SHA1", "HASH_SHA2_256", "HASH_SHA2_384", "HASH_SHA2_512", "HASH_IDENTITY"}},
	{"prf", nil},
	{"xof", nil},
	{"kdf", []string{"KDF_PRF", "KDF_PRF_PLUS"}},
	{"drbg", nil},
	{"dh", nil},
	{"rng", []string{"RNG_WEAK", "RNG_STRONG", "RNG_TRUE"}},
	{"nonce-gen", []string{"NONCE_GEN"}},
}

// algorithmName returns the section and the name of an algorithm of proposals.
func algorithmName(t ike.TransformType, id uint16) (section, name string) {
	switch t {
	case ike.TransformEncr:
		e := esp.EncrID(id)
		for _, bits := range []uint16{0, 128} { // alone it will do
			if (esp.Suite{Encr: e, KeyBits: bits}).Validate() == nil {
				return "aead", e.String()
			}
		}
		return "encryption", e.String()
	case ike.TransformInteg:
		return "integrity", esp.IntegID(id).String()
	case ike.TransformPRF:
		return "prf", ike.PRFID(id).String()
	case ike.TransformDH:
		if id == uint16(ike.DHNone) {
			break
		}
		return "dh", ike.DHGroup(id).String()
	}
	return "", ""
}

func getAlgorithms() *control.Message {
	m := new(control.Message)
	for _, a := range algorithmSections {
		s := m.Section(a.name)
		ike.Algorithms(func(t ike.TransformType, id uint16) {
			if section, name := algorithmName(t, id); section == a.name {
				s.Set(name, plugin)
			}
		})
		for _, name := range a.fixed {
			s.Set(name, plugin)
		}
	}
	return m
}

// machine returns what uname says of a processor that Go calls arch, where that is another word.
func machine(arch string) string {
	for _, w := range [][2]string{{"amd64", "x86_64"}, {"arm64", "aarch64"}, {"386", "i686"}, {"arm", "armv7l"}, {"mipsle", "mips"},
		{"mips64le", "mips64"}, {"loong64", "loongarch64"}} {
		if w[0] == arch {
			return w[1]
		}
	}
	return arch
}
