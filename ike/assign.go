package ike

import (
	"net/netip"
	"time"
)

// Assigned is what a gateway has given us for a connection in a configuration payload (RFC
// 7296 section 2.19): the addresses that we have in its network, and how to live there. The
// caller puts it in place on this system when OutAssign brings it, changes it where a
// later OutAssign of the same connection differs, and takes it away with OutUnassign. It
// belongs to the connection, not to one IKE SA: it stays the same through rekeying,
// reauthentication that yields the same, and changes of the outer addresses.
//
// The caller must not change it. Every list is bounded by what one IKE message can hold
// and by the limits of cp.go; the order is the gateway's.
type Assigned struct {
	Conn string // the name of the connection
	IKE  uint32 // unique number of the IKE SA that has brought it

	Addrs        []netip.Addr   // our virtual addresses, none twice; at least one, of either family
	DNS          []netip.Addr   // resolvers (INTERNAL_IP4_DNS and INTERNAL_IP6_DNS)
	EncDNS       []EncryptedDNS // encrypted resolvers (RFC 9464)
	Domains      []string       // INTERNAL_DNS_DOMAIN: ask DNS for these and what is below them (RFC 8598 section 3.1); no final dot; empty: for everything
	TrustAnchors [][]byte       // INTERNAL_DNSSEC_TA (RFC 8598 section 3.2): key tag (2 octets), algorithm, digest type, digest in hexadecimal
	TrustNames   []string       // the domain that each of TrustAnchors is for, one of Domains
	Subnets      []netip.Prefix // networks behind the gateway (INTERNAL_IP4_SUBNET and INTERNAL_IP6_SUBNET); what is protected is up to the selectors

	Lifetime time.Duration // until the addresses have to be asked for again; 0: as long as the IKE SA
}

// EncryptedDNS is an encrypted resolver (RFC 9464 section 3.1): what the name of its
// certificate is, where it is, and which protocols it speaks.
type EncryptedDNS struct {
	Priority uint16       // from 1, the best first
	ADN      string       // authentication domain name, which its certificate must have; no final dot
	Addrs    []netip.Addr // of one family, at least one
	ALPN     []string     // "dot" (DNS over TLS), "h2" and "h3" (over HTTPS), "doq" (over QUIC)
	Port     uint16       // 0: that of the protocol (853, 443)
	DoHPath  string       // URI template of DNS over HTTPS, such as "/dns-query{?dns}"; "": none

	// Digests are hashes of the resolver's SubjectPublicKeyInfo (ENCDNS_DIGEST_INFO): its
	// certificate is good if one of them fits, whoever has issued it.
	Digests []DNSDigest
}

// DNSDigest is one hash of a certificate's SubjectPublicKeyInfo. Hash is the number of the
// algorithm in the registry of RFC 7427: 2 SHA2-256, 3 SHA2-384, 4 SHA2-512.
type DNSDigest struct {
	Hash uint16
	Sum  []byte
}
