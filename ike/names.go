package ike

import "strconv"

// Names of the registries' numbers, for logs and errors. They are those of the RFCs,
// which are charon's as well.

// String returns the exchange's name.
func (e Exchange) String() string {
	switch e {
	case ExchangeInit:
		return "IKE_SA_INIT"
	case ExchangeAuth:
		return "IKE_AUTH"
	case ExchangeCreateChild:
		return "CREATE_CHILD_SA"
	case ExchangeInformational:
		return "INFORMATIONAL"
	case ExchangeSessionResume:
		return "IKE_SESSION_RESUME"
	case ExchangeIntermediate:
		return "IKE_INTERMEDIATE"
	case ExchangeFollowupKE:
		return "IKE_FOLLOWUP_KE"
	}
	return "EXCHANGE_" + strconv.Itoa(int(e))
}

var payloadNames = [...]string{"SA", "KE", "IDi", "IDr", "CERT", "CERTREQ", "AUTH", "Nonce", "N",
	"D", "V", "TSi", "TSr", "SK", "CP", "EAP"}

// String returns the payload's notation in RFC 7296 section 3.2 (the nonce's, which
// depends on who sends it, as "Nonce").
func (t PayloadType) String() string {
	switch {
	case t == PayloadNone:
		return "NONE"
	case t >= PayloadSA && int(t-PayloadSA) < len(payloadNames):
		return payloadNames[t-PayloadSA]
	case t == PayloadSKF:
		return "SKF"
	}
	return "PAYLOAD_" + strconv.Itoa(int(t))
}

var protocolNames = [...]string{"NONE", "IKE", "AH", "ESP"}

// String returns the protocol's name.
func (p Protocol) String() string { return enumName(protocolNames[:], int(p), "PROTO") }

var transformNames = [...]string{"", "ENCR", "PRF", "INTEG", "DH", "ESN", "ADDKE1", "ADDKE2", "ADDKE3", "ADDKE4", "ADDKE5", "ADDKE6", "ADDKE7"}

// String returns the abbreviation of RFC 7296 section 3.3.2.
func (t TransformType) String() string { return enumName(transformNames[:], int(t), "TRANSFORM") }

var authNames = [...]string{
	1:  "RSA digital signature",
	2:  "pre-shared key",
	3:  "DSS digital signature",
	9:  "ECDSA with SHA-256 on P-256",
	10: "ECDSA with SHA-384 on P-384",
	11: "ECDSA with SHA-512 on P-521",
	12: "generic secure password",
	13: "NULL",
	14: "digital signature",
}

// String returns the method's name, after IANA's registry.
func (m AuthMethod) String() string { return enumName(authNames[:], int(m), "AUTH") }

var idTypeNames = [...]string{"NONE", "ID_IPV4_ADDR", "ID_FQDN", "ID_RFC822_ADDR", "",
	"ID_IPV6_ADDR", "", "", "", "ID_DER_ASN1_DN", "ID_DER_ASN1_GN", "ID_KEY_ID", "ID_FC_NAME", "ID_NULL"}

// String returns the registry's name of the identification type.
func (t IDType) String() string { return enumName(idTypeNames[:], int(t), "ID") }
