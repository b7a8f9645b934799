package ike

// Version numbers and lengths of the IKE header (RFC 7296 section 3.1).
const (
	versionMajor = 2
	versionMinor = 0
	headerLen    = 28
	payloadHdr   = 4
)

// Flags of the IKE header (RFC 7296 section 3.1).
const (
	FlagInitiator = 0x08
	FlagVersion   = 0x10
	FlagResponse  = 0x20
)

// Exchange is an exchange type (RFC 7296 section 3.1).
type Exchange uint8

// The exchanges.
const (
	ExchangeInit          Exchange = 34
	ExchangeAuth          Exchange = 35
	ExchangeCreateChild   Exchange = 36
	ExchangeInformational Exchange = 37
	ExchangeSessionResume Exchange = 38 // RFC 5723
	ExchangeIntermediate  Exchange = 43 // RFC 9242
	ExchangeFollowupKE    Exchange = 44 // RFC 9370
)

// PayloadType is a payload's number (RFC 7296 section 3.2).
type PayloadType uint8

// The payloads.
const (
	PayloadNone    PayloadType = 0
	PayloadSA      PayloadType = 33
	PayloadKE      PayloadType = 34
	PayloadIDi     PayloadType = 35
	PayloadIDr     PayloadType = 36
	PayloadCert    PayloadType = 37
	PayloadCertReq PayloadType = 38
	PayloadAuth    PayloadType = 39
	PayloadNonce   PayloadType = 40
	PayloadNotify  PayloadType = 41
	PayloadDelete  PayloadType = 42
	PayloadVendor  PayloadType = 43
	PayloadTSi     PayloadType = 44
	PayloadTSr     PayloadType = 45
	PayloadSK      PayloadType = 46
	PayloadCP      PayloadType = 47
	PayloadEAP     PayloadType = 48
	PayloadSKF     PayloadType = 53 // RFC 7383
)

// Protocol is a security protocol identifier (RFC 7296 section 3.3.1).
type Protocol uint8

// The protocols.
const (
	ProtoNone Protocol = 0
	ProtoIKE  Protocol = 1
	ProtoAH   Protocol = 2
	ProtoESP  Protocol = 3
)

// TransformType is a transform type (RFC 7296 section 3.3.2).
type TransformType uint8

// The transform types.
const (
	TransformEncr  TransformType = 1
	TransformPRF   TransformType = 2
	TransformInteg TransformType = 3
	TransformDH    TransformType = 4
	TransformESN   TransformType = 5
	TransformAddKE TransformType = 6 // ADDKE1; up to ADDKE7 they follow each other (RFC 9370)
)

// PRFID is a pseudorandom function (IANA transform type 2).
type PRFID uint16

// The PRFs.
const (
	PRFHMACSHA1   PRFID = 2
	PRFAES128XCBC PRFID = 4 // RFC 4434
	PRFHMACSHA256 PRFID = 5
	PRFHMACSHA384 PRFID = 6
	PRFHMACSHA512 PRFID = 7
	PRFAES128CMAC PRFID = 8 // RFC 4615
)

// DHGroup is a key exchange method (IANA transform type 4).
type DHGroup uint16

// The groups.
const (
	DHNone     DHGroup = 0
	MODP2048   DHGroup = 14
	MODP3072   DHGroup = 15
	MODP4096   DHGroup = 16
	ECP256     DHGroup = 19
	ECP384     DHGroup = 20
	ECP521     DHGroup = 21
	Curve25519 DHGroup = 31
	MLKEM768   DHGroup = 36 // draft-ietf-ipsecme-ikev2-mlkem section 4
	MLKEM1024  DHGroup = 37
)

// AuthMethod is an authentication method (RFC 7296 section 3.8).
type AuthMethod uint8

// The methods.
const (
	AuthRSA       AuthMethod = 1
	AuthPSK       AuthMethod = 2
	AuthECDSA256  AuthMethod = 9  // RFC 4754
	AuthECDSA384  AuthMethod = 10 // RFC 4754
	AuthECDSA521  AuthMethod = 11 // RFC 4754
	AuthSignature AuthMethod = 14 // RFC 7427
)

// IDType is an identification type (RFC 7296 section 3.5).
type IDType uint8

// The identification types.
const (
	IDNone   IDType = 0
	IDIPv4   IDType = 1
	IDFQDN   IDType = 2
	IDRFC822 IDType = 3
	IDIPv6   IDType = 5
	IDDERDN  IDType = 9
	IDKeyID  IDType = 11
)

// ID is an identity: its type and its data as they stand in an ID payload. The zero
// value is no identity. Data never holds more than maxIDLen octets. Compare
// with Equal.
type ID struct {
	Type IDType
	Data string
}

// IKESuite is what two peers agreed on for an IKE SA. Encr, KeyBits and Integ use the
// numbers of package esp, which are the same registry.
type IKESuite struct {
	Encr    uint16
	KeyBits uint16
	Integ   uint16 // 0 with an AEAD
	PRF     PRFID
	DH      DHGroup
	KE      AddKE // what comes after IKE_SA_INIT, or after CREATE_CHILD_SA when it is rekeyed
}
