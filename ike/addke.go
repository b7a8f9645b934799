package ike

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// Additional key exchanges (RFC 9370): a proposal may want up to seven beside that with the
// group, so that the keys depend on all of them. Those of a new IKE SA travel in
// IKE_INTERMEDIATE (intermediate.go), those of CREATE_CHILD_SA in IKE_FOLLOWUP_KE
// (followup.go). The transform types ADDKE1 to ADDKE7 take the same methods as that of the
// group.

// maxAddKE is how many additional key exchanges there can be.
const maxAddKE = 7

// AddKE are the methods of the additional key exchanges by the number of their transform
// type, ADDKE1 first; DHNone stands for none. They take place in this order.
type AddKE [maxAddKE]DHGroup

// additional tells whether a transform type is one of ADDKE1 to ADDKE7.
func (t TransformType) additional() bool { return t >= TransformAddKE && t < TransformAddKE+maxAddKE }

// list returns the methods that take place, in their order.
func (k AddKE) list() (methods []DHGroup) {
	for _, g := range k {
		if g != DHNone {
			methods = append(methods, g)
		}
	}
	return methods
}

// transforms returns the methods that take place as they stand in a proposal.
func (k AddKE) transforms() (ts []Transform) {
	for i, g := range k {
		if g != DHNone {
			ts = append(ts, Transform{Type: TransformAddKE + TransformType(i), ID: uint16(g)})
		}
	}
	return ts
}

// String returns the methods in charon's words, each behind a slash: "/KE1_ML_KEM_768".
func (k AddKE) String() string {
	s := ""
	for i, g := range k {
		if g != DHNone {
			s += fmt.Sprintf("/KE%d_%s", i+1, g)
		}
	}
	return s
}

// appendTo appends the methods for read: an octet in which the bits of the types that take part
// are set, that of ADDKE1 first, and two octets for each.
func (k AddKE) appendTo(b []byte) []byte {
	at := len(b)
	b = append(b, 0)
	for i, g := range k {
		if g != DHNone {
			b[at] |= 1 << i
			b = binary.BigEndian.AppendUint16(b, uint16(g))
		}
	}
	return b
}

// read reads what appendTo has written.
func (k *AddKE) read(c *cursor) {
	bits := c.u8()
	for i := range k {
		if bits>>i&1 != 0 {
			k[i] = DHGroup(c.u16())
		}
	}
}

// validate checks a choice beside that of the first method: all are known, none is there
// twice (RFC 9370 section 2.2.1), and none without a first one (section 2.2.4).
func (k AddKE) validate(first DHGroup) error {
	used := []DHGroup{first}
	for _, g := range k.list() {
		switch {
		case first == DHNone:
			return fmt.Errorf("ike: additional key exchange %s without a first one", g)
		case !g.known():
			return fmt.Errorf("ike: key exchange method %s is not supported", g)
		case slices.Contains(used, g):
			return fmt.Errorf("ike: key exchange method %s is chosen twice", g)
		}
		used = append(used, g)
	}
	return nil
}

// picked are the transforms of a choice, by their types.
type picked [TransformAddKE + maxAddKE]Transform

// additional returns the additional key exchanges of a choice.
func (ts *picked) additional() (k AddKE) {
	for i := range k {
		k[i] = DHGroup(ts[int(TransformAddKE)+i].ID)
	}
	return k
}

// additional returns the additional key exchanges of a chosen proposal.
func (p *Proposal) additional() AddKE {
	ts, err := p.pick()
	if err != nil {
		return AddKE{}
	}
	return ts.additional()
}

// withoutAddKE returns the proposals in which no transform of the types ADDKE1 to ADDKE7
// stands: to those who have not agreed on IKE_INTERMEDIATE such a transform is unknown (RFC 9370
// section 2.2.1), even if it is NONE.
func withoutAddKE(ps []Proposal) []Proposal {
	return slices.DeleteFunc(slices.Clone(ps), func(p Proposal) bool { return p.adds() })
}

// adds tells whether a proposal has a transform of the types ADDKE1 to ADDKE7.
func (p *Proposal) adds() bool {
	return slices.ContainsFunc(p.Transforms, func(t Transform) bool { return t.Type.additional() })
}

// offersAddKE tells whether one of the proposals has such a transform.
func offersAddKE(ps []Proposal) bool {
	return slices.ContainsFunc(ps, func(p Proposal) bool { return p.adds() })
}

// methods are the key exchange methods of a choice: that of the group, then the additional ones.
type methods [1 + maxAddKE]DHGroup

// transform returns what the choice has of a type.
func (c *methods) transform(t TransformType) Transform {
	if t == TransformDH {
		return Transform{Type: t, ID: uint16(c[0])}
	}
	return Transform{Type: t, ID: uint16(c[1+t-TransformAddKE])}
}

// methodSteps bounds how many methods chooseMethods tries. A configuration that leaves a
// choice for each of the seven needs some dozens.
const methodSteps = 1000

// chooseMethods chooses the key exchange methods that the local proposal l and the offer o
// both allow: each the first of l that is not used already, since none may be used twice (RFC
// 9370 section 2.2.1), and prefer for the group if that is allowed. Where a first choice
// leaves a later one without a method, the next is tried. With ignore there is nothing to choose.
func chooseMethods(l, o *Proposal, prefer DHGroup, ignore bool) (c methods, ok bool) {
	if ignore {
		return c, true
	}
	steps := 0
	var from func(at int) bool
	from = func(at int) bool {
		if at == len(c) {
			return true
		}
		kind := TransformDH
		if at > 0 {
			kind = TransformAddKE + TransformType(at-1)
		}
		try := func(t Transform) bool {
			g := DHGroup(t.ID)
			if steps++; steps > methodSteps || g != DHNone && slices.Contains(c[:at], g) || at > 0 && g != DHNone && c[0] == DHNone {
				return false
			}
			c[at] = g
			return from(at + 1)
		}
		want := Transform{Type: kind, ID: uint16(prefer)}
		if at == 0 && l.allows(want) && o.allows(want) && try(want) {
			return true
		}
		for _, t := range l.Transforms {
			if t.Type == kind && o.allows(t) && try(t) {
				return true
			}
		}
		none := Transform{Type: kind}
		return !l.has(none) && l.allows(none) && o.allows(none) && try(none)
	}
	return c, from(0)
}

// wordTransform returns what a word of strongSwan's notation stands for: one of keywords, or a
// key exchange method or "none" behind ke1_ to ke7_.
func wordTransform(word string) (Transform, bool) {
	kind := TransformDH
	name := word
	if len(word) > 4 && strings.HasPrefix(word, "ke") && word[2] >= '1' && word[2] < '1'+maxAddKE && word[3] == '_' {
		kind = TransformAddKE + TransformType(word[2]-'1')
		if name = word[4:]; name == "none" {
			return Transform{Type: kind}, true
		}
	}
	i := slices.IndexFunc(keywords, func(k keyword) bool { return k.name == name })
	if i < 0 {
		return Transform{}, false
	}
	t := keywords[i].Transform
	if kind != TransformDH {
		if t.Type != TransformDH || t.ID == 0 {
			return Transform{}, false
		}
		t.Type = kind
	}
	return t, true
}

// additionalWord returns the word of a transform for an additional key exchange.
func (t Transform) additionalWord() string {
	s := fmt.Sprintf("ke%d_", t.Type-TransformAddKE+1)
	if t.ID == 0 && t.KeyBits == 0 {
		return s + "none"
	}
	t.Type = TransformDH
	return s + t.String()
}
