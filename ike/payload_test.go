package ike

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestKEPayload(t *testing.T) {
	g, pub, err := ParseKE(octets(t, "001fffffaabbcc"))
	if g != Curve25519 || !bytes.Equal(pub, octets(t, "aabbcc")) || err != nil {
		t.Errorf("group %v, %x, %v", g, pub, err)
	}
	for _, s := range []string{"", "001f", "001f00", "001f0000"} {
		if _, _, err := ParseKE(octets(t, s)); !errors.Is(err, ErrSyntax) {
			t.Errorf("KE %q: %v; want a syntax error", s, err)
		}
	}
}

func TestAuthPayload(t *testing.T) {
	m, data, err := ParseAuth(octets(t, "02ffffffaabbcc"))
	if m != AuthPSK || !bytes.Equal(data, octets(t, "aabbcc")) || err != nil {
		t.Errorf("method %v, %x, %v", m, data, err)
	}
	for _, s := range []string{"", "020000", "02000000"} {
		if _, _, err := ParseAuth(octets(t, s)); !errors.Is(err, ErrSyntax) {
			t.Errorf("AUTH %q: %v; want a syntax error", s, err)
		}
	}
}

func TestNonceLengths(t *testing.T) {
	for n, want := range map[int]bool{0: false, 15: false, 16: true, 32: true, 256: true, 257: false} {
		if _, err := ParseNonce(make([]byte, n)); (err == nil) != want {
			t.Errorf("nonce of %d octets: %v; RFC 7296 section 3.9 allows 16 to 256", n, err)
		}
	}
}

func TestDeletePayload(t *testing.T) {
	for s, want := range map[string]Delete{
		"01000000":                           {Proto: ProtoIKE},
		"03040002" + "00000100" + "fffffffe": {Proto: ProtoESP, SPISize: 4, SPIs: []uint32{256, 0xFFFFFFFE}},
		"02040001" + "00000100":              {Proto: ProtoAH, SPISize: 4, SPIs: []uint32{256}},
		"03040000":                           {Proto: ProtoESP, SPISize: 4},
		"09020002" + "aabbccdd":              {Proto: 9, SPISize: 2},
	} {
		d, err := ParseDelete(octets(t, s))
		if err != nil || d.Proto != want.Proto || d.SPISize != want.SPISize || !slices.Equal(d.SPIs, want.SPIs) {
			t.Errorf("%s: %+v, %v; want %+v", s, d, err, want)
		}
	}
	for what, s := range map[string]string{
		"nothing":                     "",
		"a header that is cut":        "030400",
		"one SPI of two":              "0304000200000100",
		"two SPIs of one":             "030400010000010000000200",
		"half an SPI":                 "030400010000",
		"an IKE SA with SPIs":         "010800010000000000000001",
		"an IKE SA with a count":      "01000001",
		"ESP with SPIs of 8 octets":   "030800010000000000000001",
		"a count without SPIs":        "0300ffff",
		"more SPIs than there may be": "03040401" + strings.Repeat("00000100", maxDeleteSPIs+1),
	} {
		if d, err := ParseDelete(octets(t, s)); !errors.Is(err, ErrSyntax) {
			t.Errorf("%s: %+v, %v; want a syntax error", what, d, err)
		}
	}
	b := NewBuilder(nil, Header{})
	b.Delete(ProtoIKE, []uint32{1, 2})
	b.Delete(ProtoESP, []uint32{0x01020304, 5})
	got := b.Finish()[headerLen:]
	if want := octets(t, "2a000008"+"01000000"+"00000010"+"03040002"+"01020304"+"00000005"); !bytes.Equal(got, want) {
		t.Errorf("written:\n got %x\nwant %x", got, want)
	}
}

func TestNotifyPayload(t *testing.T) {
	n, err := ParseNotify(octets(t, "03044009"+"01020304"+"aabb"))
	if err != nil || n.Proto != ProtoESP || n.Type != NotifyRekeySA || !bytes.Equal(n.Data, octets(t, "aabb")) {
		t.Errorf("%+v, %v", n, err)
	}
	if spi, ok := n.SPI32(); spi != 0x01020304 || !ok {
		t.Errorf("SPI %#x, %v", spi, ok)
	}
	n, err = ParseNotify(octets(t, "01000011"+"001f"))
	if err != nil || n.Proto != ProtoNone || n.Type != NotifyInvalidKEPayload || len(n.SPI) != 0 {
		t.Errorf("%+v, %v; without an SPI the protocol must be ignored", n, err)
	}
	if _, ok := n.SPI32(); ok {
		t.Error("an SPI is found where there is none")
	}
	b := NewBuilder(nil, Header{})
	b.Notify(NotifyCookie, ProtoIKE, nil, []byte{1})
	b.Notify(NotifyChildSANotFound, ProtoESP, octets(t, "0a0b0c0d"), nil)
	got := b.Finish()[headerLen:]
	if want := octets(t, "29000009"+"00004006"+"01"+"0000000c"+"0304002c"+"0a0b0c0d"); !bytes.Equal(got, want) {
		t.Errorf("written:\n got %x\nwant %x", got, want)
	}
}

func TestNotifyNames(t *testing.T) {
	for typ, want := range map[NotifyType]string{
		1: "UNSUPPORTED_CRITICAL_PAYLOAD", 4: "INVALID_IKE_SPI", 5: "INVALID_MAJOR_VERSION", 7: "INVALID_SYNTAX",
		9: "INVALID_MESSAGE_ID", 11: "INVALID_SPI", 14: "NO_PROPOSAL_CHOSEN", 17: "INVALID_KE_PAYLOAD",
		24: "AUTHENTICATION_FAILED", 34: "SINGLE_PAIR_REQUIRED", 35: "NO_ADDITIONAL_SAS",
		36: "INTERNAL_ADDRESS_FAILURE", 37: "FAILED_CP_REQUIRED", 38: "TS_UNACCEPTABLE", 39: "INVALID_SELECTORS",
		43: "TEMPORARY_FAILURE", 44: "CHILD_SA_NOT_FOUND", 47: "STATE_NOT_FOUND",
		16384: "INITIAL_CONTACT", 16385: "SET_WINDOW_SIZE", 16386: "ADDITIONAL_TS_POSSIBLE", 16387: "IPCOMP_SUPPORTED",
		16388: "NAT_DETECTION_SOURCE_IP", 16389: "NAT_DETECTION_DESTINATION_IP", 16390: "COOKIE",
		16391: "USE_TRANSPORT_MODE", 16392: "HTTP_CERT_LOOKUP_SUPPORTED", 16393: "REKEY_SA",
		16394: "ESP_TFC_PADDING_NOT_SUPPORTED", 16395: "NON_FIRST_FRAGMENTS_ALSO", 16396: "MOBIKE_SUPPORTED",
		16400: "UPDATE_SA_ADDRESSES", 16403: "AUTH_LIFETIME", 16406: "REDIRECT_SUPPORTED", 16413: "TICKET_OPAQUE",
		16417: "EAP_ONLY_AUTHENTICATION", 16418: "CHILDLESS_IKEV2_SUPPORTED", 16419: "QUICK_CRASH_DETECTION",
		16423: "IPSEC_REPLAY_COUNTER_SYNC", 16429: "GROUP_SENDER", 16430: "IKEV2_FRAGMENTATION_SUPPORTED",
		16431: "SIGNATURE_HASH_ALGORITHMS", 16435: "USE_PPK", 16438: "INTERMEDIATE_EXCHANGE_SUPPORTED",
		16441: "ADDITIONAL_KEY_EXCHANGE", 16442: "USE_AGGFRAG", 16444: "SA_RESOURCE_INFO", 16446: "PPK_IDENTITY_KEY",
		0: "ERROR_0", 2: "ERROR_2", 50: "ERROR_50", 16383: "ERROR_16383", 16447: "STATUS_16447", 65535: "STATUS_65535",
	} {
		if got := typ.String(); got != want {
			t.Errorf("notify %d is %s; IANA's registry has %s", uint16(typ), got, want)
		}
		if typ.IsError() != (typ < 16384) {
			t.Errorf("notify %d: IsError %v", uint16(typ), typ.IsError())
		}
	}
	if len(statusNames) != int(NotifyPPKIdentityKey-NotifyInitialContact)+1 {
		t.Errorf("%d names of status types for the range 16384 to %d", len(statusNames), NotifyPPKIdentityKey)
	}
}

func TestNamesOfNumbers(t *testing.T) {
	for got, want := range map[string]string{
		ExchangeInit.String():          "IKE_SA_INIT",
		ExchangeInformational.String(): "INFORMATIONAL",
		Exchange(42).String():          "EXCHANGE_42",
		PayloadNone.String():           "NONE",
		PayloadSA.String():             "SA",
		PayloadNonce.String():          "Nonce",
		PayloadEAP.String():            "EAP",
		PayloadSKF.String():            "SKF",
		PayloadType(49).String():       "PAYLOAD_49",
		PayloadType(1).String():        "PAYLOAD_1",
		ProtoESP.String():              "ESP",
		Protocol(7).String():           "PROTO_7",
		TransformDH.String():           "DH",
		TransformType(12).String():     "ADDKE7",
		TransformType(13).String():     "TRANSFORM_13",
		AuthPSK.String():               "pre-shared key",
		AuthMethod(200).String():       "AUTH_200",
		IDFQDN.String():                "ID_FQDN",
		IDType(6).String():             "ID_6",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestErrorsSayWhatIsWrong(t *testing.T) {
	_, err := ParseNotify(octets(t, "03ff4009"))
	if got, want := err.Error(), "ike: malformed N payload: the SPI has a length that does not fit"; got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if !errors.Is(err, errLength) || errors.Is(err, errShort) {
		t.Errorf("%v does not lead to its cause", err)
	}
	if got, want := (&CriticalError{200}).Error(), "ike: payload type 200 is unknown and marked as critical"; got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	_, err = ParseID(octets(t, "010000000a"))
	if got, want := err.Error(), "ike: malformed message: the data of an identity has a length that does not fit"; got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}
