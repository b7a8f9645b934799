// Package esp transforms packets: ESP (RFC 4303) and AH (RFC 4302) in tunnel and transport mode, ESP in
// BEET mode, the replay window, views of the IP headers inside, traffic selectors, and the
// descriptor of a security association.
// It is pure: no sockets, no clock, no goroutines, no randomness of its own, and no
// allocation per packet.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+ ----
//	|               Security Parameters Index (SPI)                 | ^
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+ |
//	|                Sequence number, low 32 bits                   | |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+ |
//	|        IV: 8 octets for an AEAD, 16 for AES-CBC               | |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+ | ICV
//	|        Payload: an IPv4 or IPv6 packet, perhaps followed      | | covers
//	~        by traffic-flow confidentiality padding                ~ | this
//	+               +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+ |
//	|               |  Padding: 1, 2, 3 ... (0 to 255 octets)       | |
//	+-+-+-+-+-+-+-+-+               +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+ |
//	|                               |  Pad length   |  Next header  | v
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+ ----
//	|        ICV: 8 to 32 octets                                    |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//
// Encrypted is what stands between the IV and the ICV. With extended sequence numbers the ICV
// also covers the number's high 32 bits, which are not sent.
//
// # The path of a packet
//
// Out, with the inner packet in a buffer that has HeadRoom before and TailRoom after it,
// HeadRoomWhole for AH:
//
//  1. ParseFlow reads the 5-tuple, MatchFlow finds the policy, the caller its SA
//  2. Check tells whether its SA can take it, Outbound.Reserve takes sequence numbers for a batch
//  3. SealPacket does what the SA's protocol and mode say. Of ESP's payload SealAt is the rest: it
//     writes header, IV, padding and trailer around it, encrypts it in place and adds the
//     ICV; Seal is Reserve and SealAt for one payload
//  4. the caller adds the outer header, unless it is there, and sends
//
// In, with the first octet being the SPI's, or the IP header's in front of AH:
//
//  1. Datagram.SPI, by which the caller finds the SA
//  2. OpenPacket undoes what SealPacket did. For ESP's payload it calls Inbound.Open, which asks the
//     window, verifies and decrypts in place, checks and cuts the padding, and moves the
//     window
//  3. ParseFlow and MatchFlow check that the packet is one that the SA may carry (RFC 4301
//     section 5.2, step 4)
//
// The files stand in that order: suite.go (what transforms exist and how long their parts
// are), keys.go (keys and the workers' scratch state), transform.go, packet.go, modes.go and ah.go
// (whole packets by mode and protocol), header.go, mutable.go, outbound.go, inbound.go, window.go,
// flow.go, match.go.
//
// # Concurrency
//
// An SA is made for a fixed number of workers. Each has its own scratch state, made when it
// first seals or opens, so that workers share only what does not change, one atomic
// counter for sequence numbers going out, and one short lock around the window coming in.
// Numbers are taken by one worker after the other and packets sealed side by side, so they
// may leave slightly out of order; that is what windows are for.
//
// # IVs
//
// For AEADs the IV is the 64-bit sequence number, which cannot repeat under one key; for CBC
// it is the sequence number encrypted under a key of its own, which nobody can predict. See
// cbcCipher.
//
// # What is left to others
//
// After 2^32 packets lost in a row the two ends disagree about the high half of extended
// sequence numbers. RFC 4303 appendix A3 has a search for the right one, which would have to
// keep a copy of each packet; here liveness checks and rekeying end such an SA long before.
package esp
