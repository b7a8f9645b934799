package bench

import (
	"strconv"
	"strings"

	"postern/esp"
	"postern/ike"
)

// Choice is what the device would use with a peer that takes anything.
type Choice struct {
	IKE, ESP string   // in strongSwan's notation
	Order    []string // the ESP ciphers in the order in which they are offered
	Suite    esp.Suite
	Why      string // from what was measured
}

// choose takes the first alternative of everything in the proposals of this device.
func choose(sys System, measured []Algorithm) (c Choice) {
	if sys.Proposals == nil {
		return c
	}
	first := func(proto ike.Protocol) (p ike.Proposal) {
		list := sys.Proposals(proto)
		if len(list) == 0 {
			return p
		}
		p = list[0]
		var one []ike.Transform
		seen := map[ike.TransformType]bool{}
		for _, t := range p.Transforms {
			if !seen[t.Type] {
				one = append(one, t)
			}
			seen[t.Type] = true
		}
		p.Transforms = one
		return p
	}
	c.IKE = first(ike.ProtoIKE).String()
	best := first(ike.ProtoESP)
	c.ESP = strings.TrimSuffix(best.String(), "-noesn") // which is what its absence means
	for _, t := range best.Transforms {
		switch t.Type {
		case ike.TransformEncr:
			c.Suite.Encr, c.Suite.KeyBits = esp.EncrID(t.ID), t.KeyBits
		case ike.TransformInteg:
			c.Suite.Integ = esp.IntegID(t.ID)
		}
	}
	for _, p := range sys.Proposals(ike.ProtoESP) {
		for _, t := range p.Transforms {
			if t.Type == ike.TransformEncr {
				c.Order = append(c.Order, ike.Proposal{Proto: ike.ProtoESP, Transforms: []ike.Transform{t}}.String())
			}
		}
	}
	c.Why = why(c.Suite, measured, sys.AES)
	return c
}

// both is the cost of a large packet at both ends.
func (a *Algorithm) both() float64 { return a.Large.Seal + a.Large.Open }

func (a *Algorithm) aes() bool { return a.Suite.Encr != esp.EncrChaCha20Poly1305 }

// why compares the chosen cipher with the fastest other one of another kind (a longer key
// of the same cipher tells nothing), and says what is known of the time that AES takes.
func why(chosen esp.Suite, measured []Algorithm, aes AES) string {
	var mine, other *Algorithm
	for i := range measured {
		if measured[i].Suite == chosen {
			mine = &measured[i]
		}
	}
	if mine == nil {
		return "it is the first of the default proposals; it was not measured"
	}
	for i := range measured {
		a := &measured[i]
		if a.Suite.Encr != chosen.Encr && (other == nil || a.both() < other.both()) {
			other = a
		}
	}
	if other == nil || mine.both() <= 0 || other.both() <= 0 {
		return "it is the first of the default proposals"
	}
	timing := ""
	switch {
	case aes == AESUnknown:
	case mine.aes() && aes == AESHardware:
		timing = ", and the processor has instructions for AES"
	case mine.aes() && !aes.ConstantTime():
		timing = "; but AES takes tables here, whose time depends on the key"
	case !mine.aes() && !aes.ConstantTime():
		timing = ", and AES takes tables here, whose time depends on the key"
	case !mine.aes() && aes == AESConstant:
		timing = ", and AES has no instructions here"
	}
	ratio := other.both() / mine.both()
	switch {
	case ratio >= 1.05:
		return mine.Name + " is " + times(ratio) + " faster here than " + other.Name + timing
	case ratio > 1/1.05:
		return mine.Name + " is as fast here as " + other.Name + timing
	}
	return "it is preferred by default, though " + other.Name + " is " + times(1/ratio) + " faster here" + timing
}

func times(ratio float64) string {
	digits := 1
	if ratio < 1.5 {
		digits = 2
	}
	return strconv.FormatFloat(ratio, 'f', digits, 64) + " ×"
}
