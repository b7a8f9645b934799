package ike

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"postern/ike/pki"
)

// Making and checking AUTH payloads (RFC 7296 section 2.15, RFC 7427). What a shared key makes is
// made at once; signatures, and the certificates that come with them, are slow and leave as
// Work:
//
//	prove  -> [jobSign]  -> proven            ours
//	judge  -> [jobJudge] -> judged            the peer's
//	             |  ^
//	        OutFetch Fetched                  what tells whether a certificate was revoked

// proof is what an AUTH payload of ours holds: the method, and the data over each of the octets
// that were to be proved.
type proof struct {
	method AuthMethod
	data   [][]byte
	scheme string // of a signature, in charon's words
}

// prove proves octets by the round a of ours and hands the proof to proven, now or later.
func (m *Machine) prove(sa *ikeSA, lane int, a *Auth, local, remote ID, octets ...[]byte) {
	switch {
	case sa.resume.on:
		m.proven(sa, m.macProof(sa, nil, octets), nil)
	case a.Kind == AuthKindPSK:
		secret := findSecret(m.secrets, local, remote)
		if secret == nil {
			m.proven(sa, proof{}, ErrNoSecret)
			return
		}
		m.proven(sa, m.macProof(sa, secret.Key, octets), nil)
	case a.Key == nil:
		m.proven(sa, proof{}, ErrNoKey)
	case m.stapleFirst(sa, lane, a, local, remote, octets):
	default:
		st := &sa.init.auth
		w := &signWork{key: a.Key, octets: octets, offer: pki.Offer{Hashes: st.hashes, Methods: st.methods, PSS: a.Scheme.PSS, Only: a.Scheme.Hashes}}
		if st.staple != nil && st.staple.auth == a {
			w.staple = st.staple
		}
		m.env.Random(w.seed[:])
		m.startAuthWork(sa, lane, jobSign, authWork{sign: w})
	}
}

func (m *Machine) macProof(sa *ikeSA, psk []byte, octets [][]byte) proof {
	p := proof{method: AuthPSK}
	for _, o := range octets {
		p.data = append(p.data, sa.authData(psk, o, sa.initiator))
	}
	return p
}

// authWork is a Work that signs or verifies.
type authWork struct {
	sign  *signWork
	judge *judgeWork
}

// authResult is what came of it.
type authResult struct {
	proof   proof
	verdict judgement
	staple  int    // which of the answers of OCSP goes with our certificate; -1: none
	note    string // what they say against us
	err     error
}

// startAuthWork hands a signature out, to be made or verified.
func (m *Machine) startAuthWork(sa *ikeSA, lane int, j job, w authWork) {
	id := m.workID(sa, lane, j)
	m.out = append(m.out, Output{Kind: OutWork, Work: &Work{id: id, auth: &w}})
}

// workID notes that sa waits for a job, or a fetch, on the lane, and numbers it.
func (m *Machine) workID(sa *ikeSA, lane int, j job) uint64 {
	m.workSeq++
	id := m.workSeq<<24 | uint64(lane)<<20 | uint64(sa.slot)
	sa.jobs[lane], sa.jobIDs[lane] = j, id
	return id
}

func (w *authWork) run() *authResult {
	r := new(authResult)
	if w.sign != nil {
		r.proof, r.err = w.sign.run()
		if r.staple = -1; w.sign.staple != nil {
			r.staple, r.note = w.sign.staple.pick()
		}
	} else {
		r.verdict, r.err = w.judge.run()
	}
	return r
}

// signWork makes a signature over each of the octets.
type signWork struct {
	key    *pki.Key
	offer  pki.Offer
	octets [][]byte
	seed   [32]byte
	staple *stapling // nil: nothing goes with our certificate
}

func (w *signWork) run() (p proof, err error) {
	rand := seeded{seed: w.seed}
	for _, o := range w.octets {
		method, data, err := w.key.Sign(&w.offer, o, &rand)
		if err != nil {
			return proof{}, err
		}
		p.method, p.data = AuthMethod(method), append(p.data, data)
		p.scheme, _ = w.key.Public().Verify(method, data, nil, []pki.Hash{}) // which only names it
	}
	return p, nil
}

// seeded is a stream of octets that follow from a seed: SHA-256 of the seed and a counter. It
// lets a Work have randomness as its input, so that the machine stays the only one that asks
// for some.
type seeded struct {
	seed [32]byte
	n    uint64
	rest []byte
}

// Read fills b; it never fails.
func (s *seeded) Read(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		if len(s.rest) == 0 {
			sum := sha256.Sum256(binary.BigEndian.AppendUint64(append(make([]byte, 0, 40), s.seed[:]...), s.n))
			s.n++
			s.rest = sum[:]
		}
		k := copy(b, s.rest)
		b, s.rest = b[k:], s.rest[k:]
	}
	return n, nil
}

// claim is an AUTH payload of the peer's, with all that says whether it is good. cands are the
// rounds that it may be, each of one connection, the best first; it is good if it is good for
// one of them. They are copies: the machine may change a connection while a Work reads them.
type claim struct {
	peer   ID
	method AuthMethod
	data   []byte
	octets []byte
	more   bool // another round of the peer's follows
	evidence
	cands []candidate
	ppk   *PPK // that goes with all of them; nil: none
	got   []pki.Fetched
	asked int        // how often something was fetched
	trust *pki.Trust // the CAs and lists that the last verdict rests on
}

type candidate struct {
	conn  *Conn
	round Auth
	local ID // who we are there
}

// maxCandidates bounds the connections that one AUTH payload is tried for.
const maxCandidates = 16

// judgement is the verdict about a claim: for which candidate it is good, or what has to be
// fetched to know.
type judgement struct {
	which    int
	need     []pki.Fetch
	used     []int // of what was fetched
	notes    []string
	proof    Proof
	anchor   [keyIDLen]byte // the CA of Config.Trust that it rests on; zero: none of these
	notAfter time.Time
}

// judgeWork verifies a claim by certificates or public keys.
type judgeWork struct {
	*claim
	trust *pki.Trust
	now   time.Time
	floor time.Time

	checked pki.Checked // a stranger's certificates are looked at once, not once for each candidate
	tried   []tried
}

// tried is what came of a signature under a key and the hashes that are taken.
type tried struct {
	key    *pki.PublicKey
	only   []pki.Hash
	scheme string
	err    error
}

// verify checks the signature, once for each key and choice of hashes.
func (w *judgeWork) verify(key *pki.PublicKey, only []pki.Hash) (scheme string, err error) {
	for i := range w.tried {
		if t := &w.tried[i]; t.key.Equal(key) && (t.only == nil) == (only == nil) && slices.Equal(t.only, only) {
			return t.scheme, t.err
		}
	}
	scheme, err = key.Verify(uint8(w.method), w.data, w.octets, only)
	w.tried = append(w.tried, tried{key, only, scheme, err})
	return scheme, err
}

// judge has a claim by signature verified, and its outcome handed to judged.
func (m *Machine) judge(sa *ikeSA, lane int, c *claim) {
	sa.init.auth.claim = c
	c.trust = m.trust
	m.startAuthWork(sa, lane, jobJudge, authWork{judge: &judgeWork{claim: c, trust: m.trust, now: m.now.Wall, floor: m.floor}})
}

func (w *judgeWork) run() (judgement, error) {
	var first error
	var used []int
	for i := range w.cands {
		j, err := w.try(&w.cands[i])
		used = append(used, j.used...)
		if err == nil {
			j.used = used
			j.which = i
			j.proof.Kind, j.proof.ID = AuthKindPubkey, w.peer
			return j, nil
		}
		if first == nil {
			first = err
		}
	}
	if first == nil {
		first = ErrAuthMethod
	}
	return judgement{used: used}, &TrustError{w.peer, first}
}

// try verifies the claim under one round. The signature is looked at first: who does not hold
// the key of a certificate cannot have us fetch anything for it.
func (w *judgeWork) try(c *candidate) (j judgement, err error) {
	a := &c.round
	if len(a.Keys) > 0 && (len(w.certs) == 0 || w.key != nil || len(a.Pinned)+len(a.Anchors) == 0) {
		j.proof.Scheme, err = w.byKey(a)
		return j, err
	}
	if len(a.Pinned)+len(a.Anchors)+len(a.Known)+len(w.trust.KeyIDs()) == 0 {
		return j, ErrNoTrust
	}
	certs := w.certs
	if len(certs) == 0 {
		for _, x := range slices.Concat(a.Pinned, a.Known) {
			if x.Confirms(uint8(w.peer.Type), []byte(w.peer.Data)) == nil {
				certs = append(certs, x.Raw())
			}
		}
		if len(certs) == 0 {
			return j, ErrNoCert
		}
	}
	leaf, err := pki.ParseCert(certs[0])
	if err != nil {
		return j, fmt.Errorf("the peer's certificate cannot be read: %w", err)
	}
	key, err := leaf.Public()
	if err == nil {
		j.proof.Scheme, err = w.signed(a, key)
	}
	if err != nil {
		return j, fmt.Errorf("%w (certificate %s)", err, leaf.Subject())
	}
	v, err := w.trust.Verify(&pki.Request{
		Now: w.now, Floor: w.floor, Certs: certs, OCSP: w.ocsp, CRLs: w.crls,
		IDType: uint8(w.peer.Type), IDData: []byte(w.peer.Data),
		Pinned: a.Pinned, Known: a.Known, Anchors: a.Anchors, Revocation: a.Revocation, Got: w.got, Final: w.asked >= pki.MaxRounds, Checked: &w.checked,
	})
	if err != nil {
		if v != nil {
			j.used = v.Used
		}
		return j, err
	}
	if err := a.admits(v.Chain); err != nil {
		j.used = v.Used
		return j, err
	}
	if !v.Key.Equal(key) { // the chain is of another one than the first
		if j.proof.Scheme, err = w.signed(a, v.Key); err != nil {
			return j, err
		}
	}
	j.need, j.used, j.notes, j.notAfter, j.proof.Cert = v.Need, v.Used, v.Notes, v.NotAfter, v.Leaf.Subject()
	if n := len(v.Chain); n > 0 && len(a.Pinned)+len(a.Anchors) == 0 {
		if key, err := v.Chain[n-1].Public(); err == nil {
			j.anchor = key.KeyID()
		}
	}
	return j, nil
}

// admits checks what a round wants of the peer's chain beside the names of the CAs.
func (a *Auth) admits(chain []*pki.Cert) error {
	if a.CA != (ID{}) && !slices.ContainsFunc(chain[1:], func(c *pki.Cert) bool { return c.Confirms(uint8(a.CA.Type), []byte(a.CA.Data)) == nil }) {
		return fmt.Errorf("%w: no CA of %s is %s", ErrChain, chain[0].Subject(), a.CA)
	}
	for _, c := range chain[1:] {
		if key, err := c.Public(); err == nil && a.Scheme.weak(key) {
			return fmt.Errorf("%w: that of the CA %s is %s", ErrKeyKind, c.Subject(), key)
		}
	}
	for _, p := range a.Policies {
		if !pki.HasPolicy(chain, p) {
			return fmt.Errorf("%w: %s does not have the policy %s", ErrChain, chain[0].Subject(), p)
		}
	}
	return nil
}

// byKey verifies the claim by one of the public keys that are configured (RFC 7670).
func (w *judgeWork) byKey(a *Auth) (scheme string, err error) {
	keys := a.Keys
	if w.key != nil {
		sent, err := pki.ParsePublicKey(w.key)
		if err != nil {
			return "", err
		}
		i := slices.IndexFunc(keys, sent.Equal)
		if i < 0 {
			return "", ErrRawKey
		}
		keys = keys[i : i+1]
	}
	for _, k := range keys {
		var e error
		if scheme, e = w.signed(a, k); e == nil {
			return scheme, nil
		}
		if err == nil {
			err = e
		}
	}
	return "", err
}

// signed verifies the signature by a key.
func (w *judgeWork) signed(a *Auth, key *pki.PublicKey) (scheme string, err error) {
	if !a.Scheme.fits(key) {
		return "", fmt.Errorf("%w: its key is %s", ErrKeyKind, key)
	}
	scheme, err = w.verify(key, a.Scheme.Hashes)
	if err == nil && a.Scheme.PSS && !isPSS(scheme) {
		err = fmt.Errorf("%w: it is %s", ErrKeyKind, scheme)
	}
	return scheme, err
}

// isPSS tells whether a scheme's name says that it pads with PSS.
func isPSS(scheme string) bool { return strings.Contains(scheme, "PSS") }

// TrustError is a signature, or a certificate, that does not prove who the peer is.
type TrustError struct {
	Peer ID
	Err  error
}

// Error names the peer and the reason, which names the certificate.
func (e *TrustError) Error() string {
	return fmt.Sprintf("%v is not who it says: %v", e.Peer, e.Err)
}

// Unwrap returns the reason.
func (e *TrustError) Unwrap() error { return e.Err }

// ErrFetch is the outcome of a fetch that nobody made.
var ErrFetch = errors.New("it was not fetched")

// fetchMax is how long an attempt waits for a fetch: longer than one may take.
const fetchMax = 15 * time.Second

// fetch asks the caller for what tells whether certificates were revoked.
func (m *Machine) fetch(sa *ikeSA, lane int, need []pki.Fetch) {
	m.askFor(sa, lane, jobFetch, need)
}

// askFor has something fetched that the job j waits for.
func (m *Machine) askFor(sa *ikeSA, lane int, j job, need []pki.Fetch) {
	id := m.workID(sa, lane, j)
	if sa.initiator {
		m.arm(sa, tConnect, fetchMax) // an attempt has no other end to wait for
	}
	m.out = append(m.out, Output{Kind: OutFetch, FetchID: id, Fetches: need})
}

// Fetched takes what came of an OutFetch: an answer, or an error, to each of its Fetches. There
// has to be one call for each OutFetch, at the latest after ten seconds; what nobody waits for
// any more is dropped.
func (m *Machine) Fetched(now Time, id uint64, got []pki.Fetched) {
	m.now = now
	slot, lane := int(id&(1<<20-1)), int(id>>20&0xf)
	if slot >= len(m.sas) || lane >= numLanes {
		return
	}
	sa := &m.sas[slot]
	j := sa.jobs[lane]
	if sa.state != StateConnecting || j != jobFetch && j != jobStaple || sa.jobIDs[lane] != id {
		return
	}
	sa.jobs[lane] = jobNone
	if sa.initiator && sa.closeErr == nil {
		sa.timers[tConnect] = never
	}
	if j == jobStaple {
		m.stapled(sa, lane, got)
		m.finish()
		return
	}
	c := sa.init.auth.claim
	c.got = append(c.got, got...)
	c.asked++
	m.judge(sa, lane, c)
	m.finish()
}

// worked takes the result of a Work that signs or verifies.
func (m *Machine) worked(sa *ikeSA, j job, r *authResult) {
	if j == jobSign {
		sa.init.auth.ocsp = nil
		if s := sa.init.auth.staple; s != nil && r.staple >= 0 && r.staple < len(s.got) {
			sa.init.auth.ocsp = s.got[r.staple].Body
			m.keep(s.got, []int{r.staple})
		}
		if r.note != "" {
			m.event(Event{Kind: EvTrust, Conn: sa.connName(), IKE: sa.unique, Path: sa.path, Text: r.note})
		}
		m.proven(sa, r.proof, r.err)
		return
	}
	if sa.initiator {
		m.judgedAs(sa, laneOurs, r)
	} else {
		m.judgedAs(sa, lanePeers, r)
	}
}

// judgedAs looks at a verdict: what has to be fetched is, and else it goes on.
func (m *Machine) judgedAs(sa *ikeSA, lane int, r *authResult) {
	if c := sa.init.auth.claim; c.trust != m.trust {
		m.judge(sa, lane, c) // a CA may be trusted no more, or a list may name the certificate now
		return
	}
	for _, n := range r.verdict.notes {
		m.event(Event{Kind: EvTrust, Conn: sa.connName(), IKE: sa.unique, Path: sa.path, Text: n})
	}
	m.keep(sa.init.auth.claim.got, r.verdict.used)
	if c := sa.init.auth.claim; r.err == nil && len(r.verdict.need) > 0 {
		if c.asked < pki.MaxRounds {
			c.cands = c.cands[r.verdict.which:]
			m.fetch(sa, lane, r.verdict.need)
			return
		}
		r.err = &TrustError{c.peer, ErrFetch}
	}
	m.judged(sa, &r.verdict, r.err)
}
