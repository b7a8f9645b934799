package ike

import (
	"fmt"
	"slices"

	"postern/esp"
)

// Limits of a Security Association payload. A configuration that spells out every
// combination as a proposal of its own stays below the first, one that lists all that
// IANA has ever assigned in one proposal below the second; together they bound what an
// unauthenticated peer can make chooseProposal compare.
const (
	maxProposals  = 64
	maxTransforms = 128
)

// Lengths and markers of the substructures (RFC 7296 sections 3.3.1, 3.3.2, 3.3.5).
const (
	proposalLen        = 8
	transformLen       = 8
	attributeLen       = 4
	moreProposals      = 2
	moreTransforms     = 3
	attributeTV        = 0x8000
	attributeKeyLength = 14
)

// badAttr is the KeyBits of a transform that came with an attribute that we do not
// understand, so that it must not be chosen (RFC 7296 section 3.3.6). It is no key
// length of any cipher, hence equal to nothing that we are configured with.
const badAttr = 0xFFFF

// noESN and withESN are the IDs of transform type 5 (RFC 7296 section 3.3.2).
const (
	noESN   = 0
	withESN = 1
)

// Transform is one algorithm of a proposal. KeyBits is the Key Length attribute, 0 if
// there is none.
type Transform struct {
	Type    TransformType
	ID      uint16
	KeyBits uint16
}

// Proposal is a set of algorithms, on the wire and in the configuration. Several
// transforms of one type are alternatives in order of preference. With Num 0 a proposal
// is numbered by its place in the list when it is sent.
type Proposal struct {
	Num        uint8
	Proto      Protocol
	SPI        []byte // empty, or 8 octets for IKE, 4 for ESP and AH
	Transforms []Transform
}

// proposalNum returns the number of ps[i] on the wire.
func proposalNum(ps []Proposal, i int) uint8 {
	if ps[i].Num != 0 {
		return ps[i].Num
	}
	return uint8(i + 1)
}

// ParseSA reads the body of a Security Association payload: at least one proposal and
// at most maxProposals, with rising numbers; a SyntaxError otherwise. SPIs are views of
// b. The SPI of ESP and AH has 4 octets, that of IKE 0 (IKE_SA_INIT) or 8 (rekeying).
// Transforms and types that we do not know stay in, so that chooseProposal and
// checkChosen find that they cannot take them (RFC 7296 section 3.3.6).
//
//	                     1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	| Last Substruc |   RESERVED    |         Proposal Length       |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	| Proposal Num  |  Protocol ID  |    SPI Size   |Num  Transforms|
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	~                        SPI (variable)                         ~
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	~                        <Transforms>                           ~
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
func ParseSA(b []byte) ([]Proposal, error) {
	c := cursor{b: b}
	var ps []Proposal
	for more := true; more; {
		if len(ps) == maxProposals {
			return nil, syntax(PayloadSA, "proposal", errTooMany)
		}
		mark := c.u8()
		c.skip(1)
		n := int(c.u16())
		if !c.ok() {
			return nil, syntax(PayloadSA, "proposal", errShort)
		}
		s := c.sub(n - 4)
		if !c.ok() {
			return nil, syntax(PayloadSA, "proposal", errLength)
		}
		if more = mark == moreProposals; mark != 0 && !more {
			return nil, syntax(PayloadSA, "Last Substruc field of a proposal", errValue)
		}
		p, err := parseProposal(s)
		if err != nil {
			return nil, err
		}
		if p.Num == 0 || len(ps) > 0 && p.Num <= ps[len(ps)-1].Num {
			return nil, syntax(PayloadSA, "proposal number", errValue)
		}
		ps = append(ps, p)
	}
	if c.left() != 0 {
		return nil, syntax(PayloadSA, "last proposal", errTrailing)
	}
	return ps, nil
}

// parseProposal reads a Proposal substructure from its number on.
func parseProposal(c cursor) (Proposal, error) {
	p := Proposal{Num: c.u8(), Proto: Protocol(c.u8())}
	size, count := int(c.u8()), int(c.u8())
	p.SPI = c.take(size)
	if !c.ok() {
		return p, syntax(PayloadSA, "proposal", errShort)
	}
	if p.Proto == ProtoIKE && size != 0 && size != 8 || (p.Proto == ProtoESP || p.Proto == ProtoAH) && size != 4 {
		return p, syntax(PayloadSA, "SPI size of a proposal", errValue)
	}
	if count > maxTransforms {
		return p, syntax(PayloadSA, "transform", errTooMany)
	}
	if c.left() < count*transformLen {
		return p, syntax(PayloadSA, "number of transforms", errLength)
	}
	p.Transforms = make([]Transform, 0, count)
	for i := range count {
		mark := c.u8()
		c.skip(1)
		n := int(c.u16())
		s := c.sub(n - 4)
		if !c.ok() {
			return p, syntax(PayloadSA, "transform", errLength)
		}
		if want := i < count-1; mark != 0 && mark != moreTransforms || (mark != 0) != want {
			return p, syntax(PayloadSA, "Last Substruc field of a transform", errValue)
		}
		t, err := parseTransform(s)
		if err != nil {
			return p, err
		}
		p.Transforms = append(p.Transforms, t)
	}
	if c.left() != 0 {
		return p, syntax(PayloadSA, "last transform", errTrailing)
	}
	return p, nil
}

// parseTransform reads a Transform substructure from its type on.
//
//	                     1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	| Last Substruc |   RESERVED    |        Transform Length       |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|Transform Type |   RESERVED    |          Transform ID         |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	~                      Transform Attributes                     ~
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
func parseTransform(c cursor) (Transform, error) {
	t := Transform{Type: TransformType(c.u8())}
	c.skip(1)
	t.ID = c.u16()
	if !c.ok() {
		return t, syntax(PayloadSA, "transform", errShort)
	}
	for c.left() != 0 {
		kind, value := c.u16(), c.u16()
		if kind&attributeTV == 0 {
			c.skip(int(value))
		}
		if !c.ok() {
			return t, syntax(PayloadSA, "transform attribute", errLength)
		}
		if kind != attributeTV|attributeKeyLength || value == 0 || t.KeyBits != 0 {
			// unknown, a key length in the wrong format, or a second one
			t.KeyBits = badAttr
			continue
		}
		t.KeyBits = value
	}
	return t, nil
}

// has tells whether t is among the transforms of p.
func (p *Proposal) has(t Transform) bool { return slices.Contains(p.Transforms, t) }

// hasType tells whether p has a transform of type t.
func (p *Proposal) hasType(t TransformType) bool {
	return slices.ContainsFunc(p.Transforms, func(x Transform) bool { return x.Type == t })
}

// allows is has, but a type that may be left out counts as offered with the ID 0: no
// integrity algorithm, no group, no extended sequence numbers.
func (p *Proposal) allows(t Transform) bool {
	return p.has(t) || t == Transform{Type: t.Type} && optional(p.Proto, t.Type) && !p.hasType(t.Type)
}

// optional tells whether proposals of the protocol may lack the transform type (RFC 7296
// section 3.3.3). ESN is mandatory in ESP there; we read its absence as "no ESN".
func optional(proto Protocol, t TransformType) bool {
	switch t {
	case TransformInteg:
		return true
	case TransformDH, TransformESN:
		return proto != ProtoIKE
	}
	return t.additional() // RFC 9370 section 2.2.1
}

// combined tells whether an encryption transform protects integrity itself, so that it
// goes without an integrity transform or with NONE (RFC 5282 section 8): the AES modes
// CCM and GCM with their three ICV lengths, GMAC, Camellia's CCM, ChaCha20-Poly1305, and what of
// these has an implicit IV.
func combined(encr uint16) bool {
	return encr >= 14 && encr <= 21 && encr != 17 || encr >= 25 && encr <= 31
}

// types are the transform types that a protocol's proposals consist of, in the order in
// which a choice lists them; all others make a proposal unacceptable.
func types(proto Protocol) []TransformType {
	switch proto {
	case ProtoIKE:
		return ikeTypes[:]
	case ProtoESP:
		return espTypes[:]
	case ProtoAH:
		return ahTypes[:]
	}
	return nil
}

var (
	ikeTypes = [...]TransformType{TransformEncr, TransformPRF, TransformInteg, TransformDH, 6, 7, 8, 9, 10, 11, 12}
	espTypes = [...]TransformType{TransformEncr, TransformInteg, TransformDH, TransformESN, 6, 7, 8, 9, 10, 11, 12}
	ahTypes  = [...]TransformType{TransformInteg, TransformDH, TransformESN, 6, 7, 8, 9, 10, 11, 12}
)

// chooseProposal is the responder's choice (RFC 7296 sections 2.7 and 3.3). It takes the
// first of local that fits any of offered, and in it the first alternative of each type
// that the offer has too; key lengths have to be equal. The result has the number and a
// copy of the SPI of the offer, and exactly one transform of each type that the offer
// has. An AEAD goes with an offer of the integrity algorithm NONE or of none at all; a
// missing ESN transform means no ESN, and stays missing in the result.
//
// prefer is the group of the request's KE payload, DHNone if there is none: it is chosen
// if both sides allow it, whatever its place. When the result has another group the
// request has to be answered with INVALID_KE_PAYLOAD. With ignoreDH the groups do not
// matter and none is chosen: the first CHILD SA has no exchange of its own (section 1.2).
func chooseProposal(local, offered []Proposal, prefer DHGroup, ignoreDH bool) (p Proposal, ok bool) {
	for i := range local {
		for j := range offered {
			if p, ok = fit(&local[i], &offered[j], prefer, ignoreDH); ok {
				p.Num = proposalNum(offered, j)
				return p, true
			}
		}
	}
	return Proposal{}, false
}

// fit chooses from the offer o what the local proposal l allows.
func fit(l, o *Proposal, prefer DHGroup, ignoreDH bool) (Proposal, bool) {
	known := types(o.Proto)
	if l.Proto != o.Proto || known == nil {
		return Proposal{}, false
	}
	for _, t := range o.Transforms {
		if !slices.Contains(known, t.Type) {
			return Proposal{}, false
		}
	}
	for _, lead := range l.Transforms {
		if lead.Type != known[0] || lead.ID == 0 || !o.has(lead) {
			continue
		}
		if ts, ok := fitRest(l, o, lead, prefer, ignoreDH); ok {
			return Proposal{Proto: o.Proto, SPI: slices.Clone(o.SPI), Transforms: ts}, true
		}
	}
	return Proposal{}, false
}

// fitRest chooses what goes with lead, the encryption transform, or in AH the integrity transform.
func fitRest(l, o *Proposal, lead Transform, prefer DHGroup, ignoreDH bool) ([]Transform, bool) {
	methods, ok := chooseMethods(l, o, prefer, ignoreDH)
	if !ok {
		return nil, false
	}
	ts := make([]Transform, 0, len(ikeTypes))
	ts = append(ts, lead)
	for _, kind := range types(o.Proto)[1:] {
		t, ok := Transform{Type: kind}, false
		switch {
		case kind == TransformInteg && combined(lead.ID):
			ok = o.allows(t)
		case kind == TransformInteg:
			t, ok = first(l, o, kind, func(t Transform) bool { return t.ID != 0 })
		case (kind == TransformDH || kind.additional()) && ignoreDH:
			// A group in such an offer is against section 1.2 and has no effect.
			if !o.has(t) {
				continue
			}
			ok = true
		case kind == TransformDH || kind.additional():
			t, ok = methods.transform(kind), true
		default:
			t, ok = first(l, o, kind, nil)
		}
		if !ok {
			return nil, false
		}
		if o.hasType(kind) {
			ts = append(ts, t)
		}
	}
	return ts, true
}

// first returns the first transform of a type in l, among those that f accepts, that o
// allows too. Without any in l, it is the ID 0 where that is allowed.
func first(l, o *Proposal, kind TransformType, f func(Transform) bool) (Transform, bool) {
	none := Transform{Type: kind}
	for _, t := range l.Transforms {
		if t.Type == kind && (f == nil || f(t)) && o.allows(t) {
			return t, true
		}
	}
	return none, (f == nil || f(none)) && l.allows(none) && o.allows(none)
}

// checkChosen is the initiator's check of the responder's choice (RFC 7296 section 2.7):
// it has the number and protocol of one of what we offered, nothing that was not in it,
// and exactly one transform of each type. Saying NONE of a type and leaving it out is the
// same. Whether the SPI is as long as the exchange needs it is for the caller.
func checkChosen(chosen Proposal, offered []Proposal) (ok bool) {
	for i := range offered {
		o := &offered[i]
		if proposalNum(offered, i) != chosen.Num || o.Proto != chosen.Proto {
			continue
		}
		for j, t := range chosen.Transforms {
			if !o.allows(t) || slices.ContainsFunc(chosen.Transforms[:j], func(x Transform) bool { return x.Type == t.Type }) {
				return false
			}
		}
		for _, t := range o.Transforms {
			if !chosen.hasType(t.Type) && !(optional(o.Proto, t.Type) && o.allows(Transform{Type: t.Type})) {
				return false
			}
		}
		return true
	}
	return false
}

// pick returns the one transform of each type of a chosen proposal, indexed by type.
func (p *Proposal) pick() (ts picked, err error) {
	for _, t := range p.Transforms {
		if !slices.Contains(types(p.Proto), t.Type) {
			return ts, fmt.Errorf("ike: transform type %v does not belong into a proposal for %v", t.Type, p.Proto)
		}
		if ts[t.Type].Type != 0 {
			return ts, fmt.Errorf("ike: a choice for %v has more than one transform of type %v", p.Proto, t.Type)
		}
		if t.KeyBits != 0 && t.Type != TransformEncr {
			return ts, fmt.Errorf("ike: transform %v %d has a key length", t.Type, t.ID)
		}
		ts[t.Type] = t
	}
	return ts, nil
}

// ikeSuite returns the suite of a chosen proposal for an IKE SA; an error if it is not
// a choice, or not one that we can do.
func (p Proposal) ikeSuite() (IKESuite, error) {
	ts, err := p.pick()
	if err != nil || p.Proto != ProtoIKE {
		return IKESuite{}, orProto(err, p.Proto)
	}
	s := IKESuite{
		Encr:    ts[TransformEncr].ID,
		KeyBits: ts[TransformEncr].KeyBits,
		Integ:   ts[TransformInteg].ID,
		PRF:     PRFID(ts[TransformPRF].ID),
		DH:      DHGroup(ts[TransformDH].ID),
		KE:      ts.additional(),
	}
	return s, s.validate()
}

// childSuite returns the suite of a chosen proposal for a CHILD SA with ESP or AH, and its group
// (DHNone without PFS); an error if it is not a choice, or not one that we can do.
func (p Proposal) childSuite() (esp.Suite, DHGroup, error) {
	ts, err := p.pick()
	if err != nil || p.Proto != ProtoESP && p.Proto != ProtoAH {
		return esp.Suite{}, DHNone, orProto(err, p.Proto)
	}
	s := esp.Suite{
		Encr:    esp.EncrID(ts[TransformEncr].ID),
		KeyBits: ts[TransformEncr].KeyBits,
		Integ:   esp.IntegID(ts[TransformInteg].ID),
		ESN:     ts[TransformESN].ID == withESN,
	}
	group := DHGroup(ts[TransformDH].ID)
	if id := ts[TransformESN].ID; id > withESN {
		return s, group, fmt.Errorf("ike: sequence numbers of kind %d are not supported", id)
	}
	if group != DHNone && !group.known() {
		return s, group, fmt.Errorf("ike: group %v is not supported", group)
	}
	if err := ts.additional().validate(group); err != nil {
		return s, group, err
	}
	if p.Proto == ProtoAH {
		return s, group, s.ValidateAH()
	}
	return s, group, s.Validate()
}

func orProto(err error, p Protocol) error {
	if err == nil {
		err = fmt.Errorf("ike: a proposal for %v where another protocol is due", p)
	}
	return err
}
