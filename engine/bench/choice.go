package bench

import (
	"fmt"
	"slices"
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
func choose(sys *System, measured []Algorithm) (c Choice) {
	if sys.Proposals == nil {
		return c
	}
	c.IKE = first(sys.Proposals(ike.ProtoIKE)).String()
	offered := sys.Proposals(ike.ProtoESP)
	best := first(offered)
	c.ESP = strings.TrimSuffix(best.String(), "-noesn") // which is what its absence means
	for _, t := range best.Transforms {
		switch t.Type {
		case ike.TransformEncr:
			c.Suite.Encr, c.Suite.KeyBits = esp.EncrID(t.ID), t.KeyBits
		case ike.TransformInteg:
			c.Suite.Integ = esp.IntegID(t.ID)
		}
	}
	for _, p := range offered {
		for _, t := range p.Transforms {
			if t.Type == ike.TransformEncr {
				c.Order = append(c.Order, ike.Proposal{Proto: ike.ProtoESP, Transforms: []ike.Transform{t}}.String())
			}
		}
	}
	c.Why = why(c.Suite, measured, sys.AES)
	return c
}

// first returns the first proposal of the list, with the first transform of each type.
func first(list []ike.Proposal) (p ike.Proposal) {
	if len(list) == 0 {
		return p
	}
	p.Proto = list[0].Proto
	for _, t := range list[0].Transforms {
		if !slices.ContainsFunc(p.Transforms, func(have ike.Transform) bool { return have.Type == t.Type }) {
			p.Transforms = append(p.Transforms, t)
		}
	}
	return p
}

// both is the cost of a large packet at both ends.
func (a *Algorithm) both() int64 { return a.Large.Seal + a.Large.Open }

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
	case !mine.aes() && aes == AESConstant:
		timing = ", and AES has no instructions here"
	}
	ratio := 100 * other.both() / mine.both()
	switch {
	case ratio >= 105:
		return mine.Name + " is " + times(ratio) + " faster here than " + other.Name + timing
	case ratio > 95:
		return mine.Name + " is as fast here as " + other.Name + timing
	}
	return "it is preferred by default, though " + other.Name + " is " + times(100*mine.both()/other.both()) + " faster here" + timing
}

// times writes a ratio in hundredths.
// Not inlined: it is called at many places, where only room counts.
//
//go:noinline
func times(ratio int64) string {
	return fmt.Sprintf("%d.%d ×", ratio/100, ratio%100/10)
}
