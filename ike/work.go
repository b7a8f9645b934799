package ike

// Work is a slow computation that the caller runs, on any goroutine, with Run. Its
// result goes back into the machine with Done. A Work may be dropped: the exchange
// that waits for it then ends by its timeout.
type Work struct {
	id    uint64
	group DHGroup
	seed  []byte
	pair  *keyPair
	peer  []byte
	auth  *authWork // a signature, instead of all that
}

// Result is what a Work came to. It holds secrets.
type Result struct {
	id     uint64
	pair   *keyPair
	shared []byte
	auth   *authResult
	err    error
}

// Run makes or verifies a signature, or makes a key pair unless there is one, and computes the
// shared secret if the peer's public value is known. It touches nothing but the Work. All
// randomness is in the Work, except that of the responder's half of ML-KEM, which is Go's own
// (kem.go).
func (w *Work) Run() Result {
	if w.auth != nil {
		return Result{id: w.id, auth: w.auth.run()}
	}
	r := Result{id: w.id, pair: w.pair}
	if r.pair == nil && w.peer != nil && w.group.encapsulates() {
		r.pair, r.shared, r.err = encapsulate(w.group, w.peer)
		return r
	}
	if r.pair == nil {
		r.pair, r.err = newKeyPair(w.group, w.seed)
		clear(w.seed)
		if r.err != nil {
			return r
		}
	}
	if w.peer != nil {
		r.shared, r.err = r.pair.shared(w.peer)
	}
	return r
}

// job is where an exchange waits for a Work.
type job uint8

const (
	jobNone         job = iota
	jobInitPair         // initiator: our key pair for IKE_SA_INIT
	jobInitShared       // initiator: g^ir of IKE_SA_INIT
	jobInitResponse     // responder: key pair and g^ir of IKE_SA_INIT
	jobReqPair          // initiator: our key pair for CREATE_CHILD_SA
	jobReqShared        // initiator: g^ir of CREATE_CHILD_SA
	jobRespond          // responder: key pair and g^ir of CREATE_CHILD_SA
	jobSign             // our signature for IKE_AUTH
	jobJudge            // the peer's signature and certificates
	jobFetch            // not a Work: what tells whether these certificates were revoked
	jobStaple           // nor this: what tells the same of ours

	// The same of an additional key exchange in IKE_INTERMEDIATE, and in IKE_FOLLOWUP_KE.
	jobInterPair
	jobInterShared
	jobInterRespond
	jobFollowPair
	jobFollowShared
	jobFollowRespond
)

// The two jobs that the requests at hand of an IKE SA can have out at once: one for our
// request, one for the peer's. The number of the lane is part of the Work's id.
const (
	laneOurs = iota
	lanePeers
	numLanes
)

// startWork hands a computation for sa out. A job that is already out on the lane is
// forgotten: its result will no longer be recognised.
func (m *Machine) startWork(sa *ikeSA, lane int, j job, group DHGroup, pair *keyPair, peer []byte) {
	m.workSeq++
	id := m.workSeq<<24 | uint64(lane)<<20 | uint64(sa.slot)
	w := &Work{id: id, group: group, pair: pair}
	if pair == nil && (peer == nil || !group.encapsulates()) {
		w.seed = make([]byte, group.seedLen())
		m.env.Random(w.seed)
	}
	if peer != nil {
		w.peer = append([]byte(nil), peer...)
	}
	sa.jobs[lane], sa.jobIDs[lane] = j, id
	m.out = append(m.out, Output{Kind: OutWork, Work: w})
}

// Done takes the result of a Work. A result that nobody waits for any more is dropped.
func (m *Machine) Done(now Time, r Result) {
	m.now = now
	slot, lane := int(r.id&(1<<20-1)), int(r.id>>20&0xf)
	if slot >= len(m.sas) || lane >= numLanes {
		return
	}
	sa := &m.sas[slot]
	if sa.state != StateFree {
		sa.recallJob(lane, r.id)
	}
	if sa.state == StateFree || sa.jobs[lane] == jobNone || sa.jobIDs[lane] != r.id {
		r.pair.wipe()
		clear(r.shared)
		return
	}
	j := sa.jobs[lane]
	sa.jobs[lane] = jobNone
	switch j {
	case jobInitPair:
		m.initSend(sa, r)
	case jobInitShared:
		m.initKeyed(sa, r)
	case jobInitResponse:
		m.initRespond(sa, r)
	case jobReqPair:
		m.createSend(sa, r)
	case jobReqShared:
		m.createKeyed(sa, r)
	case jobRespond:
		m.createRespond(sa, r)
	case jobSign, jobJudge:
		m.worked(sa, j, r.auth)
	case jobInterPair:
		m.interSend(sa, r)
	case jobInterShared:
		m.interKeyed(sa, r)
	case jobInterRespond:
		m.interRespond(sa, r)
	case jobFollowPair:
		m.followSend(sa, r)
	case jobFollowShared:
		m.followKeyed(sa, r)
	case jobFollowRespond:
		m.followRespond(sa, r)
	}
	clear(r.shared)
	m.finish()
}
