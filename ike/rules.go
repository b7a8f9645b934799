package ike

// Which payloads make up which message (RFC 7296 sections 1.2 to 1.5 and appendix C; RFC
// 6023 for an IKE SA without a CHILD SA). The tables count; what the payloads say is for
// the code of the exchange.

// rule bounds how often a payload occurs in a message.
type rule struct {
	t        PayloadType
	min, max int
}

// shape is one way in which a message may be made up. A payload that has no rule in it
// must not be there. Vendor IDs need no rule: they may always be there and mean nothing.
type shape []rule

// maxCerts bounds the certificates of a message, and the requests for some.
const maxCerts = 16

var (
	anyNotify  = rule{PayloadNotify, 0, maxPayloads}
	someNotify = rule{PayloadNotify, 1, maxPayloads}
	anyCert    = rule{PayloadCert, 0, maxCerts}
	anyCertReq = rule{PayloadCertReq, 0, maxCerts}
	maybeCP    = rule{PayloadCP, 0, 1}
)

func must(t PayloadType) rule  { return rule{t, 1, 1} }
func maybe(t PayloadType) rule { return rule{t, 0, 1} }

// notifiesOnly is a message of nothing but notifies: a demand for a cookie or another
// group, an error, and what is sent in clear because no IKE SA could protect it
// (RFC 7296 section 1.5).
var (
	notifiesOnly = shape{someNotify}
	inClear      = []shape{notifiesOnly}
)

// shapes lists what an exchange's messages may look like, requests then responses, by
// the exchange's number counted from that of IKE_SA_INIT. A message has to fit one of
// them; if it fits none, the error is about the one that it comes closest to.
var shapes = [...][2][]shape{
	{ // IKE_SA_INIT
		{{must(PayloadSA), must(PayloadKE), must(PayloadNonce), anyNotify}},
		{{must(PayloadSA), must(PayloadKE), must(PayloadNonce), anyCertReq, anyNotify}, notifiesOnly},
	},
	{ // IKE_AUTH
		{
			{must(PayloadIDi), anyCert, anyCertReq, maybe(PayloadIDr), must(PayloadAuth), maybeCP,
				must(PayloadSA), must(PayloadTSi), must(PayloadTSr), anyNotify},
			{must(PayloadIDi), anyCert, anyCertReq, maybe(PayloadIDr), must(PayloadAuth), maybeCP, anyNotify}, // childless, or a later round
			{anyNotify}, // for a later round of the responder's (RFC 4739 section 2.5)
		},
		{
			{must(PayloadIDr), anyCert, must(PayloadAuth), maybeCP,
				must(PayloadSA), must(PayloadTSi), must(PayloadTSr), anyNotify},
			{must(PayloadIDr), anyCert, must(PayloadAuth), maybeCP, anyNotify},        // childless, or no CHILD SA, or not the last round
			{maybeCP, must(PayloadSA), must(PayloadTSi), must(PayloadTSr), anyNotify}, // after the responder's last round
			{anyNotify},
		},
	},
	{ // CREATE_CHILD_SA
		{
			{must(PayloadSA), must(PayloadNonce), maybe(PayloadKE), maybeCP,
				must(PayloadTSi), must(PayloadTSr), anyNotify}, // CHILD SA
			{must(PayloadSA), must(PayloadNonce), must(PayloadKE), anyNotify}, // IKE SA
		},
		{
			{must(PayloadSA), must(PayloadNonce), maybe(PayloadKE), maybeCP,
				must(PayloadTSi), must(PayloadTSr), anyNotify},
			{must(PayloadSA), must(PayloadNonce), must(PayloadKE), anyNotify},
			notifiesOnly,
		},
	},
	{ // INFORMATIONAL
		{{anyNotify, {PayloadDelete, 0, maxPayloads}, maybeCP}},
		{{anyNotify, {PayloadDelete, 0, maxPayloads}, maybeCP}},
	},
	{ // IKE_SESSION_RESUME (RFC 5723 section 4.3.2)
		{{must(PayloadNonce), someNotify}},
		{{must(PayloadNonce), anyNotify}, notifiesOnly},
	},
	ExchangeIntermediate - ExchangeInit: { // for an additional key exchange (RFC 9370 section 2.2.2)
		{{must(PayloadKE), anyNotify}},
		{{must(PayloadKE), anyNotify}, notifiesOnly},
	},
	ExchangeFollowupKE - ExchangeInit: { // RFC 9370 section 2.2.4
		{{must(PayloadKE), someNotify}},
		{{must(PayloadKE), anyNotify}, notifiesOnly},
	},
}

// known tells whether we take part in an exchange.
func (e Exchange) known() bool {
	return e >= ExchangeInit && int(e-ExchangeInit) < len(shapes) && shapes[e-ExchangeInit][0] != nil
}

// checkRules tells whether the payloads of a parsed message are those of exchange ex.
// encrypted says whether they came in an Encrypted payload (and ParseInner has put them
// in its place), in which case none may stand in front of it in clear. Outside
// IKE_SA_INIT and IKE_SESSION_RESUME a message in clear can only hold notifies. The error is a *RuleError; of an
// exchange that we do not know, every message breaks the rules.
func checkRules(m *Message, ex Exchange, response bool, encrypted bool) error {
	why := ""
	switch {
	case encrypted && !m.Encrypted():
		why = "is in clear, but must be encrypted"
	case !encrypted && m.Encrypted():
		why = "is encrypted, but must be in clear"
	case encrypted && m.outer > 0:
		why = "has payloads in clear in front of the Encrypted payload"
	case !ex.known():
		why = "the exchange type is unknown"
	}
	if why != "" {
		return &RuleError{Exchange: ex, Response: response, Why: why}
	}
	dir := 0
	if response {
		dir = 1
	}
	list := shapes[ex-ExchangeInit][dir]
	if !encrypted && ex != ExchangeInit && ex != ExchangeSessionResume {
		list = inClear
	}
	var counts [256]uint8 // maxPayloads fits
	for i := range m.Payloads {
		counts[m.Payloads[i].Type]++
	}
	best, fault := -1, rule{}
	for _, s := range list {
		faults, first := s.check(&counts)
		if faults == 0 {
			return nil
		}
		if best < 0 || faults < best {
			best, fault = faults, first
		}
	}
	return &RuleError{Exchange: ex, Response: response, Payload: fault.t, Count: int(counts[fault.t]),
		Min: fault.min, Max: fault.max}
}

// check returns how many of the rules the counts break, and the first of them: a payload
// that is missing or too many before one that must not be there.
func (s shape) check(counts *[256]uint8) (faults int, first rule) {
	var ruled [256]bool
	ruled[PayloadVendor] = true
	broken := func(r rule) {
		if faults == 0 {
			first = r
		}
		faults++
	}
	for _, r := range s {
		ruled[r.t] = true
		if n := int(counts[r.t]); n < r.min || n > r.max {
			broken(r)
		}
	}
	for t, n := range counts {
		if n > 0 && !ruled[t] {
			broken(rule{t: PayloadType(t)})
		}
	}
	return faults, first
}
