package vici

import (
	"errors"

	"postern/engine/control"
	"postern/ike"
	"postern/ike/pki"
)

// alertReasons are the names of charon's alerts for what an attempt or a request fails for.
var alertReasons = []struct {
	err  error
	name string
}{
	{ike.ErrTimeout, "peer-init-unreachable"},
	{ike.ErrNoRoute, "peer-addr-failed"},
	{ike.ErrNoAddress, "peer-addr-failed"},
	{ike.ErrNoSecret, "local-auth-failed"},
	{ike.ErrNoKey, "local-auth-failed"},
	{ike.ErrNoProposal, "proposal-mismatch-ike"},
	{ike.ErrTSMismatch, "ts-mismatch"},
	{ike.ErrUnique, "unique-keep"},
	{ike.ErrPoolFull, "vip-failure"},
	{ike.ErrNoVIP, "vip-failure"},
	{ike.ErrNoCP, "vip-failure"},
	{pki.ErrRevoked, "cert-revoked"},
	{pki.ErrExpired, "cert-expired"},
	{ike.ErrNoTrust, "cert-no-issuer"},
	{ike.ErrNoCert, "peer-auth-failed"},
	{ike.ErrAuthMethod, "peer-auth-failed"},
	{ike.ErrRawKey, "peer-auth-failed"},
}

// alertNotifies are those of what the peer reports.
var alertNotifies = []struct {
	t    ike.NotifyType
	name string
}{
	{ike.NotifyAuthenticationFailed, "local-auth-failed"},
	{ike.NotifyNoProposalChosen, "proposal-mismatch-ike"},
	{ike.NotifyTSUnacceptable, "ts-mismatch"},
	{ike.NotifyInternalAddressFailure, "vip-failure"},
	{ike.NotifyFailedCPRequired, "vip-failure"},
}

// alertOf returns charon's name of the alert that an event is, "" if it is none.
func alertOf(e *ike.Event) string {
	switch e.Kind {
	case ike.EvRetransmit:
		return "retransmit-send"
	case ike.EvIKEDown:
		switch {
		case errors.Is(e.Err, ike.ErrTimeout):
			return "retransmit-send-timeout"
		case errors.Is(e.Err, ike.ErrLifetime):
			return "ike-sa-expired"
		}
		return ""
	case ike.EvDropped:
		switch {
		case errors.Is(e.Err, ike.ErrUnknownSPI):
			return "invalid-ike-spi"
		case errors.Is(e.Err, ike.ErrSyntax), errors.Is(e.Err, ike.ErrIntegrity):
			return "parse-error-body"
		}
		return ""
	case ike.EvFailed, ike.EvRefused, ike.EvNotify:
	default:
		return ""
	}
	if n, ok := errors.AsType[*ike.NotifyError](e.Err); ok {
		for _, a := range alertNotifies {
			if a.t == n.Type {
				return ofChild(a.name, e)
			}
		}
	}
	for _, a := range alertReasons {
		if errors.Is(e.Err, a.err) {
			return ofChild(a.name, e)
		}
	}
	if _, ok := errors.AsType[*ike.ResolveError](e.Err); ok {
		return "peer-addr-failed"
	}
	for _, is := range []func(error) bool{isError[*ike.AuthError], isError[*ike.IdentityError], isError[*ike.TrustError]} {
		if is(e.Err) {
			return "peer-auth-failed"
		}
	}
	return ""
}

func isError[E error](err error) bool { _, ok := errors.AsType[E](err); return ok }

// ofChild tells a proposal of a CHILD SA from one of the IKE SA: the latter comes first.
func ofChild(name string, e *ike.Event) string {
	if name == "proposal-mismatch-ike" && e.IKE != 0 && e.Kind != ike.EvFailed {
		return "proposal-mismatch-child"
	}
	return name
}

// alert sends the alert of an IKE event, if it is one. Anybody can provoke some: who reads slowly
// misses them.
func (v Events) alert(e *ike.Event) {
	if !v.Server.Wanted(control.EvAlert) {
		return
	}
	name := alertOf(e)
	if name == "" {
		return
	}
	m := new(control.Message).Set(control.KeyAlertType, name)
	sa := e.SA
	if sa == nil && e.IKE != 0 {
		v.L.List(func(i *ike.SAInfo) bool {
			if i.Unique == e.IKE {
				sa = i
			}
			return sa == nil
		})
	}
	if sa != nil {
		view := v.L.View(sa)
		view.Message(m.Section(control.KeyIKESA).Section(view.name()), v.L.Now(), false)
	}
	v.Server.Spare(control.EvAlert, m)
}
