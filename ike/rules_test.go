package ike

import (
	"errors"
	"strings"
	"testing"
)

// shaped returns a parsed message with the payloads that are named, each with the least
// content that passes Parse; encrypted ones are put inside an SK payload.
func shaped(t testing.TB, ex Exchange, encrypted bool, payloads string) *Message {
	t.Helper()
	b := NewBuilder(nil, Header{SPIi: 1, SPIr: 2, Exchange: ex})
	if encrypted {
		b.BeginSK(0)
	}
	for _, name := range strings.Fields(payloads) {
		typ := PayloadType(0)
		for p := PayloadSA; p <= PayloadSKF; p++ {
			if p.String() == name {
				typ = p
			}
		}
		switch typ {
		case PayloadNone:
			t.Fatalf("the test names an unknown payload %q", name)
		case PayloadNotify:
			b.Notify(NotifyInitialContact, ProtoNone, nil, nil)
		case PayloadNonce:
			b.Nonce(make([]byte, 32))
		default:
			b.Raw(typ, false, make([]byte, 8))
		}
	}
	m := parsed(t, b.Finish())
	if encrypted {
		if err := m.ParseInner(m.SKNext, m.Find(PayloadSK).Body); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func TestMessagesOfTheRFCFitTheRules(t *testing.T) {
	const req, resp = false, true
	for _, c := range []struct {
		ex       Exchange
		response bool
		payloads string
	}{
		// Appendix C.1
		{ExchangeInit, req, "SA KE Nonce"},
		{ExchangeInit, req, "N SA KE Nonce N N V V N"},
		{ExchangeInit, req, "V Nonce KE SA"}, // the order is free (section 2.5)
		{ExchangeInit, resp, "SA KE Nonce N N N CERTREQ CERTREQ V N"},
		{ExchangeInit, resp, "N V N"},
		{ExchangeInit, resp, "N"},
		// C.2
		{ExchangeAuth, req, "IDi AUTH SA TSi TSr"},
		{ExchangeAuth, req, "IDi CERT CERT N CERTREQ IDr AUTH CP N N N N SA TSi TSr V N"},
		{ExchangeAuth, resp, "IDr AUTH SA TSi TSr"},
		{ExchangeAuth, resp, "IDr CERT AUTH CP N N SA TSi TSr N V"},
		{ExchangeAuth, resp, "IDr CERT AUTH N V N"}, // no CHILD SA
		{ExchangeAuth, resp, "N"},
		// RFC 6023
		{ExchangeAuth, req, "IDi IDr AUTH CP N"},
		{ExchangeAuth, resp, "IDr AUTH CP N"},
		// C.4
		{ExchangeCreateChild, req, "N CP N N SA Nonce KE TSi TSr V N"},
		{ExchangeCreateChild, req, "SA Nonce TSi TSr"},
		{ExchangeCreateChild, resp, "CP N SA Nonce KE TSi TSr N V"},
		{ExchangeCreateChild, resp, "N"},
		// C.5
		{ExchangeCreateChild, req, "SA Nonce KE V N"},
		{ExchangeCreateChild, resp, "SA Nonce KE V N"},
		// C.6
		{ExchangeInformational, req, ""},
		{ExchangeInformational, req, "N N D D CP"},
		{ExchangeInformational, resp, ""},
		{ExchangeInformational, resp, "N D CP V"},
	} {
		enc := c.ex != ExchangeInit
		m := shaped(t, c.ex, enc, c.payloads)
		if err := checkRules(m, c.ex, c.response, enc); err != nil {
			t.Errorf("%v with [%s], response %v: %v; RFC 7296 appendix C has such a message", c.ex, c.payloads, c.response, err)
		}
	}
}

func TestMessagesOutOfOrderBreakTheRules(t *testing.T) {
	const req, resp = false, true
	for _, c := range []struct {
		ex       Exchange
		response bool
		payloads string
		want     string
	}{
		{ExchangeInit, req, "", "SA is missing"},
		{ExchangeInit, req, "KE Nonce N", "SA is missing"},
		{ExchangeInit, req, "SA Nonce", "KE is missing"},
		{ExchangeInit, req, "SA KE", "Nonce is missing"},
		{ExchangeInit, req, "SA SA KE Nonce", "has 2 of SA, at most 1 are allowed"},
		{ExchangeInit, req, "SA KE KE Nonce", "has 2 of KE"},
		{ExchangeInit, req, "SA KE Nonce IDi", "has IDi, which does not belong there"},
		{ExchangeInit, req, "SA KE Nonce D", "has D, which"},
		{ExchangeInit, req, "N", "SA is missing"},
		{ExchangeInit, resp, "", "N is missing"},
		{ExchangeInit, resp, "V", "N is missing"},
		{ExchangeInit, resp, "SA KE", "Nonce is missing"},
		{ExchangeAuth, req, "IDi SA TSi TSr", "AUTH is missing"}, // a wish for EAP
		{ExchangeAuth, req, "AUTH SA TSi TSr", "IDi is missing"},
		{ExchangeAuth, req, "IDi AUTH SA TSi", "TSr is missing"},
		{ExchangeAuth, req, "IDi AUTH SA TSi TSr KE", "has KE, which"},
		{ExchangeAuth, req, "IDi AUTH SA TSi TSr Nonce", "has Nonce, which"},
		{ExchangeAuth, req, "N KE", "has KE, which"},
		{ExchangeAuth, resp, "IDr AUTH TSi TSr", "SA is missing"},
		{ExchangeAuth, resp, "AUTH SA TSi TSr", "IDr is missing"},
		{ExchangeAuth, resp, "KE", "has KE, which"},
		{ExchangeCreateChild, req, "SA TSi TSr", "Nonce is missing"},
		{ExchangeCreateChild, req, "SA Nonce TSi", "TSr is missing"},
		{ExchangeCreateChild, req, "SA Nonce KE KE TSi TSr", "has 2 of KE"},
		{ExchangeCreateChild, req, "N", "is missing"},
		{ExchangeCreateChild, req, "SA Nonce TSi TSr IDi", "has IDi, which"},
		{ExchangeCreateChild, resp, "", "N is missing"},
		{ExchangeInformational, req, "SA", "has SA, which"},
		{ExchangeInformational, req, "CP CP", "has 2 of CP"},
		{ExchangeInformational, resp, "AUTH", "has AUTH, which"},
		{42, req, "N", "unknown"},
		{ExchangeIntermediate, req, "N", "KE is missing"},
		{ExchangeFollowupKE, req, "KE", "N is missing"},
		{33, resp, "N", "unknown"},
	} {
		enc := c.ex != ExchangeInit
		err := checkRules(shaped(t, c.ex, enc, c.payloads), c.ex, c.response, enc)
		var r *RuleError
		if !errors.As(err, &r) || !errors.Is(err, ErrSyntax) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v with [%s], response %v: %v; want a RuleError that says %q", c.ex, c.payloads, c.response, err, c.want)
		}
	}
}

func TestProtectionIsPartOfTheRules(t *testing.T) {
	m := shaped(t, ExchangeAuth, false, "IDi AUTH SA TSi TSr")
	if err := checkRules(m, ExchangeAuth, false, true); err == nil {
		t.Error("IKE_AUTH in clear passes as encrypted")
	}
	if err := checkRules(m, ExchangeAuth, false, false); err == nil {
		t.Error("IKE_AUTH in clear passes: outside IKE_SA_INIT only notifies go in clear")
	}
	m = shaped(t, ExchangeInit, true, "SA KE Nonce")
	if err := checkRules(m, ExchangeInit, false, false); err == nil {
		t.Error("IKE_SA_INIT inside an Encrypted payload passes")
	}
	for _, ex := range []Exchange{ExchangeAuth, ExchangeCreateChild, ExchangeInformational} {
		if err := checkRules(shaped(t, ex, false, "N V"), ex, true, false); err != nil {
			t.Errorf("%v response with a notify in clear (INVALID_IKE_SPI): %v; RFC 7296 section 1.5 has it", ex, err)
		}
		if err := checkRules(shaped(t, ex, false, "N D"), ex, true, false); err == nil {
			t.Errorf("%v response in clear with a Delete payload passes", ex)
		}
	}
}
