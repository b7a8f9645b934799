package ike

import "strconv"

// Notify is a Notify payload (RFC 7296 section 3.10).
//
//	                     1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|  Protocol ID  |   SPI Size    |      Notify Message Type      |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	~                Security Parameter Index (SPI)                 ~
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	~                       Notification Data                       ~
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
type Notify struct {
	Proto Protocol // ProtoNone if there is no SPI: it means nothing then
	SPI   []byte   // aliases the payload
	Type  NotifyType
	Data  []byte // aliases the payload
}

// ParseNotify reads the body of a Notify payload. The error is a *SyntaxError.
func ParseNotify(b []byte) (Notify, error) {
	c := cursor{b: b}
	n := Notify{Proto: Protocol(c.u8())}
	size := int(c.u8())
	n.Type = NotifyType(c.u16())
	if !c.ok() {
		return Notify{}, syntax(PayloadNotify, "header", errShort)
	}
	n.SPI = c.take(size)
	if !c.ok() {
		return Notify{}, syntax(PayloadNotify, "SPI", errLength)
	}
	n.Data = c.rest()
	if size == 0 {
		// "MUST be sent as zero and MUST be ignored on receipt"
		n.Proto = ProtoNone
	}
	return n, nil
}

// SPI32 returns the SPI of a notify about a CHILD SA; ok is false if it has none of four
// octets.
func (n *Notify) SPI32() (spi uint32, ok bool) {
	if len(n.SPI) != 4 {
		return 0, false
	}
	c := cursor{b: n.SPI}
	return c.u32(), true
}

// NotifyType is a notify message type (RFC 7296 section 3.10.1 and IANA's "IKEv2 Notify
// Message Error Types" and "Status Types").
type NotifyType uint16

// The error types.
const (
	NotifyUnsupportedCriticalPayload NotifyType = 1
	NotifyInvalidIKESPI              NotifyType = 4
	NotifyInvalidMajorVersion        NotifyType = 5
	NotifyInvalidSyntax              NotifyType = 7
	NotifyInvalidMessageID           NotifyType = 9
	NotifyInvalidSPI                 NotifyType = 11
	NotifyNoProposalChosen           NotifyType = 14
	NotifyInvalidKEPayload           NotifyType = 17
	NotifyAuthenticationFailed       NotifyType = 24
	NotifySinglePairRequired         NotifyType = 34
	NotifyNoAdditionalSAs            NotifyType = 35
	NotifyInternalAddressFailure     NotifyType = 36
	NotifyFailedCPRequired           NotifyType = 37
	NotifyTSUnacceptable             NotifyType = 38
	NotifyInvalidSelectors           NotifyType = 39
	NotifyUnacceptableAddresses      NotifyType = 40 // RFC 4555
	NotifyUnexpectedNATDetected      NotifyType = 41 // RFC 4555
	NotifyUseAssignedHoA             NotifyType = 42 // RFC 5026
	NotifyTemporaryFailure           NotifyType = 43
	NotifyChildSANotFound            NotifyType = 44
	NotifyInvalidGroupID             NotifyType = 45 // RFC 9838
	NotifyAuthorizationFailed        NotifyType = 46 // RFC 9838
	NotifyStateNotFound              NotifyType = 47 // RFC 9370
	NotifyTSMaxQueue                 NotifyType = 48 // RFC 9611
	NotifyRegistrationFailed         NotifyType = 49 // RFC 9838
)

// The status types.
const (
	NotifyInitialContact             NotifyType = 16384
	NotifySetWindowSize              NotifyType = 16385
	NotifyAdditionalTSPossible       NotifyType = 16386
	NotifyIPCompSupported            NotifyType = 16387
	NotifyNATDetectionSourceIP       NotifyType = 16388
	NotifyNATDetectionDestinationIP  NotifyType = 16389
	NotifyCookie                     NotifyType = 16390
	NotifyUseTransportMode           NotifyType = 16391
	NotifyHTTPCertLookupSupported    NotifyType = 16392
	NotifyRekeySA                    NotifyType = 16393
	NotifyESPTFCPaddingNotSupported  NotifyType = 16394
	NotifyNonFirstFragmentsAlso      NotifyType = 16395
	NotifyMOBIKESupported            NotifyType = 16396 // RFC 4555
	NotifyAdditionalIP4Address       NotifyType = 16397 // RFC 4555
	NotifyAdditionalIP6Address       NotifyType = 16398 // RFC 4555
	NotifyNoAdditionalAddresses      NotifyType = 16399 // RFC 4555
	NotifyUpdateSAAddresses          NotifyType = 16400 // RFC 4555
	NotifyCookie2                    NotifyType = 16401 // RFC 4555
	NotifyNoNATsAllowed              NotifyType = 16402 // RFC 4555
	NotifyAuthLifetime               NotifyType = 16403 // RFC 4478
	NotifyMultipleAuthSupported      NotifyType = 16404 // RFC 4739
	NotifyAnotherAuthFollows         NotifyType = 16405 // RFC 4739
	NotifyRedirectSupported          NotifyType = 16406 // RFC 5685
	NotifyRedirect                   NotifyType = 16407 // RFC 5685
	NotifyRedirectedFrom             NotifyType = 16408 // RFC 5685
	NotifyTicketLTOpaque             NotifyType = 16409 // RFC 5723
	NotifyTicketRequest              NotifyType = 16410 // RFC 5723
	NotifyTicketAck                  NotifyType = 16411 // RFC 5723
	NotifyTicketNack                 NotifyType = 16412 // RFC 5723
	NotifyTicketOpaque               NotifyType = 16413 // RFC 5723
	NotifyLinkID                     NotifyType = 16414 // RFC 5739
	NotifyUseWESPMode                NotifyType = 16415 // RFC 5840
	NotifyROHCSupported              NotifyType = 16416 // RFC 5857
	NotifyEAPOnlyAuthentication      NotifyType = 16417 // RFC 5998
	NotifyChildlessIKEv2Supported    NotifyType = 16418 // RFC 6023
	NotifyQuickCrashDetection        NotifyType = 16419 // RFC 6290
	NotifyMessageIDSyncSupported     NotifyType = 16420 // RFC 6311
	NotifyReplayCounterSyncSupported NotifyType = 16421 // RFC 6311
	NotifyMessageIDSync              NotifyType = 16422 // RFC 6311
	NotifyReplayCounterSync          NotifyType = 16423 // RFC 6311
	NotifySecurePasswordMethods      NotifyType = 16424 // RFC 6467
	NotifyPSKPersist                 NotifyType = 16425 // RFC 6631
	NotifyPSKConfirm                 NotifyType = 16426 // RFC 6631
	NotifyERXSupported               NotifyType = 16427 // RFC 6867
	NotifyIFOMCapability             NotifyType = 16428 // 3GPP TS 24.303
	NotifyGroupSender                NotifyType = 16429 // RFC 9838
	NotifyFragmentationSupported     NotifyType = 16430 // RFC 7383
	NotifySignatureHashAlgorithms    NotifyType = 16431 // RFC 7427
	NotifyCloneIKESASupported        NotifyType = 16432 // RFC 7791
	NotifyCloneIKESA                 NotifyType = 16433 // RFC 7791
	NotifyPuzzle                     NotifyType = 16434 // RFC 8019
	NotifyUsePPK                     NotifyType = 16435 // RFC 8784
	NotifyPPKIdentity                NotifyType = 16436 // RFC 8784
	NotifyNoPPKAuth                  NotifyType = 16437 // RFC 8784
	NotifyIntermediateSupported      NotifyType = 16438 // RFC 9242
	NotifyIP4Allowed                 NotifyType = 16439 // RFC 8983
	NotifyIP6Allowed                 NotifyType = 16440 // RFC 8983
	NotifyAdditionalKeyExchange      NotifyType = 16441 // RFC 9370
	NotifyUseAGGFRAG                 NotifyType = 16442 // RFC 9347
	NotifySupportedAuthMethods       NotifyType = 16443 // RFC 9593
	NotifySAResourceInfo             NotifyType = 16444 // RFC 9611
	NotifyUsePPKInt                  NotifyType = 16445 // RFC 9867
	NotifyPPKIdentityKey             NotifyType = 16446 // RFC 9867

	NotifyUseBEETMode NotifyType = 40961 // private; strongSwan's, of draft-nikander-esp-beet-mode

	firstStatus = NotifyInitialContact
)

// errorNames and statusNames are indexed by the type; statusNames from firstStatus on.
// The spelling is that of IANA's registry.
var errorNames = [...]string{
	NotifyUnsupportedCriticalPayload: "UNSUPPORTED_CRITICAL_PAYLOAD",
	NotifyInvalidIKESPI:              "INVALID_IKE_SPI",
	NotifyInvalidMajorVersion:        "INVALID_MAJOR_VERSION",
	NotifyInvalidSyntax:              "INVALID_SYNTAX",
	NotifyInvalidMessageID:           "INVALID_MESSAGE_ID",
	NotifyInvalidSPI:                 "INVALID_SPI",
	NotifyNoProposalChosen:           "NO_PROPOSAL_CHOSEN",
	NotifyInvalidKEPayload:           "INVALID_KE_PAYLOAD",
	NotifyAuthenticationFailed:       "AUTHENTICATION_FAILED",
	NotifySinglePairRequired:         "SINGLE_PAIR_REQUIRED",
	NotifyNoAdditionalSAs:            "NO_ADDITIONAL_SAS",
	NotifyInternalAddressFailure:     "INTERNAL_ADDRESS_FAILURE",
	NotifyFailedCPRequired:           "FAILED_CP_REQUIRED",
	NotifyTSUnacceptable:             "TS_UNACCEPTABLE",
	NotifyInvalidSelectors:           "INVALID_SELECTORS",
	NotifyUnacceptableAddresses:      "UNACCEPTABLE_ADDRESSES",
	NotifyUnexpectedNATDetected:      "UNEXPECTED_NAT_DETECTED",
	NotifyUseAssignedHoA:             "USE_ASSIGNED_HoA",
	NotifyTemporaryFailure:           "TEMPORARY_FAILURE",
	NotifyChildSANotFound:            "CHILD_SA_NOT_FOUND",
	NotifyInvalidGroupID:             "INVALID_GROUP_ID",
	NotifyAuthorizationFailed:        "AUTHORIZATION_FAILED",
	NotifyStateNotFound:              "STATE_NOT_FOUND",
	NotifyTSMaxQueue:                 "TS_MAX_QUEUE",
	NotifyRegistrationFailed:         "REGISTRATION_FAILED",
}

var statusNames = [...]string{
	"INITIAL_CONTACT",
	"SET_WINDOW_SIZE",
	"ADDITIONAL_TS_POSSIBLE",
	"IPCOMP_SUPPORTED",
	"NAT_DETECTION_SOURCE_IP",
	"NAT_DETECTION_DESTINATION_IP",
	"COOKIE",
	"USE_TRANSPORT_MODE",
	"HTTP_CERT_LOOKUP_SUPPORTED",
	"REKEY_SA",
	"ESP_TFC_PADDING_NOT_SUPPORTED",
	"NON_FIRST_FRAGMENTS_ALSO",
	"MOBIKE_SUPPORTED",
	"ADDITIONAL_IP4_ADDRESS",
	"ADDITIONAL_IP6_ADDRESS",
	"NO_ADDITIONAL_ADDRESSES",
	"UPDATE_SA_ADDRESSES",
	"COOKIE2",
	"NO_NATS_ALLOWED",
	"AUTH_LIFETIME",
	"MULTIPLE_AUTH_SUPPORTED",
	"ANOTHER_AUTH_FOLLOWS",
	"REDIRECT_SUPPORTED",
	"REDIRECT",
	"REDIRECTED_FROM",
	"TICKET_LT_OPAQUE",
	"TICKET_REQUEST",
	"TICKET_ACK",
	"TICKET_NACK",
	"TICKET_OPAQUE",
	"LINK_ID",
	"USE_WESP_MODE",
	"ROHC_SUPPORTED",
	"EAP_ONLY_AUTHENTICATION",
	"CHILDLESS_IKEV2_SUPPORTED",
	"QUICK_CRASH_DETECTION",
	"IKEV2_MESSAGE_ID_SYNC_SUPPORTED",
	"IPSEC_REPLAY_COUNTER_SYNC_SUPPORTED",
	"IKEV2_MESSAGE_ID_SYNC",
	"IPSEC_REPLAY_COUNTER_SYNC",
	"SECURE_PASSWORD_METHODS",
	"PSK_PERSIST",
	"PSK_CONFIRM",
	"ERX_SUPPORTED",
	"IFOM_CAPABILITY",
	"GROUP_SENDER",
	"IKEV2_FRAGMENTATION_SUPPORTED",
	"SIGNATURE_HASH_ALGORITHMS",
	"CLONE_IKE_SA_SUPPORTED",
	"CLONE_IKE_SA",
	"PUZZLE",
	"USE_PPK",
	"PPK_IDENTITY",
	"NO_PPK_AUTH",
	"INTERMEDIATE_EXCHANGE_SUPPORTED",
	"IP4_ALLOWED",
	"IP6_ALLOWED",
	"ADDITIONAL_KEY_EXCHANGE",
	"USE_AGGFRAG",
	"SUPPORTED_AUTH_METHODS",
	"SA_RESOURCE_INFO",
	"USE_PPK_INT",
	"PPK_IDENTITY_KEY",
}

// IsError tells whether the notify reports that something failed: types below 16384.
// Unknown ones count as errors as well (RFC 7296 section 3.10.1).
func (t NotifyType) IsError() bool { return t < firstStatus }

// String returns IANA's name of the type, or its class and number if it has none.
func (t NotifyType) String() string {
	if !t.IsError() {
		if i := int(t - firstStatus); i < len(statusNames) {
			return statusNames[i]
		}
		return "STATUS_" + strconv.Itoa(int(t))
	}
	return enumName(errorNames[:], int(t), "ERROR")
}
