package ike

import (
	"crypto/subtle"
	"errors"
	"fmt"
)

// Why an SA ended, an attempt failed or a request was refused. These stand in the Err of
// events; the machine has gone on when one is told.
var (
	ErrTerminated    = errors.New("terminated")
	ErrReplaced      = errors.New("replaced by another one")
	ErrPeerDeleted   = errors.New("deleted by the peer")
	ErrInactive      = errors.New("nothing has passed for its inactivity time")
	ErrLifetime      = errors.New("lifetime is over")
	ErrPeerRestarted = errors.New("the peer has restarted and does not have the SA any more")
	ErrTimeout       = errors.New("the peer does not answer; check its address, that it runs, and that UDP ports 500 and 4500 pass")

	ErrTableFull = errors.New("no room in the SA table; choose a larger board profile")
	ErrNoRemote  = errors.New("no single remote address to connect to; set remote_addrs")
	ErrNoAddress = errors.New("the name has no addresses")
	ErrFamily    = errors.New("local_addrs has no address of the remote address's family")
	ErrNoRoute   = errors.New("no route to the peer")
	ErrNoSecret  = errors.New("no pre-shared key for this pair of identities; add one under [secrets]")
	ErrNoChild   = errors.New("the connection has no child to negotiate")
	ErrNoVIP     = errors.New("the peer assigns no virtual address; take vips out, or give its connection a pool of that address family")
	ErrNotFound  = errors.New("nothing of that name")

	ErrAddressGone = errors.New("this host's address has changed, and the peer does not follow (no MOBIKE)")
	ErrCookie2     = errors.New("the peer's answer does not have the COOKIE2 that was sent")

	ErrNoProposal  = errors.New("no proposal in common; compare the proposals of both sides")
	ErrSPISize     = errors.New("a proposal of the first exchange must not have an SPI")
	ErrGroup       = errors.New("key exchange does not use the chosen group")
	ErrKELength    = errors.New("public value of the key exchange has the wrong length")
	ErrNonce       = errors.New("SA, KE or nonce payload is missing or has the wrong length")
	ErrNoTS        = errors.New("traffic selectors are missing")
	ErrNoCP        = errors.New("the peer does not ask for a virtual address, and its connection has pools; add vips to its configuration")
	ErrPoolFull    = errors.New("no pool of the connection has a free address of that family; make them larger")
	ErrNotAssigned = errors.New("the peer's traffic selectors leave out the virtual address that it has assigned")

	ErrTSMismatch = errors.New("the peer's traffic selectors fit no child; compare local_ts and remote_ts of both sides")
	ErrAHNAT      = errors.New("AH does not pass a NAT, or UDP encapsulation: use ESP")
	ErrMode       = errors.New("the peer chose a mode that was not asked for")
	ErrIPTFS      = errors.New("the peer does not agree to IP-TFS, which this child requires; compare iptfs of both sides")
	ErrAddresses  = errors.New("the addresses of the two hosts have changed, and transport mode cannot follow")
	ErrWidened    = errors.New("the peer chose traffic selectors outside of those offered")
	ErrNoIdentity = errors.New("identity is missing")
	ErrControl    = errors.New("identity with control characters, or that is no name")
	ErrNoAuth     = errors.New("AUTH is missing: the peer wants EAP, or gave no reason")
	ErrAuthMethod = errors.New("the peer authenticates by another method than is configured; compare auth of both sides")
	ErrClosing    = errors.New("the SA in question is being closed")
	ErrRekeying   = errors.New("the IKE SA is being rekeyed")

	ErrChildless = errors.New("one side wants the IKE SA without a CHILD SA at first and the other does not; compare childless of both sides")
	ErrUnique    = errors.New("the peer is connected from another address, and unique is keep")

	ErrTooOften   = errors.New("the peer asks for new keys, IKE SAs or CHILD SAs too often")
	ErrNotDeleted = errors.New("the peer does not delete the SAs that it replaces")
	ErrTooMany    = errors.New("the peer has too many CHILD SAs already")
	ErrNotAlike   = errors.New("the peer has agreed to other algorithms or selectors than for the CHILD SA beside it")

	ErrUnprotected    = errors.New("message is not encrypted")
	ErrUnknownSPI     = errors.New("unknown SPI")
	ErrMessageID      = errors.New("message ID is not the one expected")
	ErrUnexpected     = errors.New("message does not fit the state")
	ErrRepeated       = errors.New("initial request of an IKE SA that is past it")
	ErrHalfOpen       = errors.New("too many half-open IKE SAs")
	ErrWrongToken     = errors.New("token of quick crash detection is not the one of the SA: forged, or of a former SA")
	ErrTooManyRetries = errors.New("too many COOKIE or INVALID_KE_PAYLOAD answers")
)

// NotifyError is an error that the peer reported (RFC 7296 section 3.10.1).
type NotifyError struct {
	Type NotifyType
	Why  string
}

// Error says what the peer reported, and for the frequent ones what to look at.
func (e *NotifyError) Error() string {
	s := "the peer answers " + e.Type.String()
	if e.Why != "" {
		return s + ": it " + e.Why
	}
	switch e.Type {
	case NotifyAuthenticationFailed:
		s += "; its log says why: compare the identities and the pre-shared keys or certificates of both sides"
	case NotifyNoProposalChosen:
		s += "; compare the proposals of both sides"
	case NotifyTSUnacceptable:
		s += "; compare local_ts and remote_ts of both sides"
	case NotifyInternalAddressFailure:
		s += "; it has no virtual address for us: look at the size of its pools, and whose addresses they keep"
	case NotifyFailedCPRequired:
		s += "; it wants to give us a virtual address: add vips to the connection"
	}
	return s
}

// VersionError is a message of another version of IKE.
type VersionError struct{ Major, Minor uint8 }

// Error names the version.
func (e *VersionError) Error() string {
	return fmt.Sprintf("IKE version %d.%d is not spoken here; set the peer to IKEv2", e.Major, e.Minor)
}

// IdentityError is an identity that fits no connection.
type IdentityError struct{ Got, Want ID }

// Error names both identities.
func (e *IdentityError) Error() string {
	if e.Want == (ID{}) {
		return fmt.Sprintf("no connection for a peer %v at this address", e.Got)
	}
	return fmt.Sprintf("the peer is %v, which does not go together with %v", e.Got, e.Want)
}

// AuthError is a wrong AUTH payload. PPK is the post-quantum pre-shared key that was in the keys.
type AuthError struct {
	Peer ID
	PPK  PPKID
}

// Error names the peer.
func (e *AuthError) Error() string {
	if e.PPK != (PPKID{}) {
		return fmt.Sprintf("%v does not have the same pre-shared key, or not the same PPK %v, as we have for it", e.Peer, e.PPK)
	}
	return fmt.Sprintf("%v does not have the same pre-shared key as we have for it", e.Peer)
}

// constantEqual compares secrets in constant time.
func constantEqual(a, b []byte) bool { return subtle.ConstantTimeCompare(a, b) == 1 }
