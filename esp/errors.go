package esp

import (
	"errors"
	"fmt"
)

// What Seal, Open and the header views can answer. Each says whether the SA's state
// has advanced, because a caller that retries or counts has to know.
var (
	// ErrSeqExhausted: the last sequence number has been used (RFC 4303 section
	// 3.3.3). Nothing was sealed, and the counter stays where it is for ever: rekey.
	ErrSeqExhausted = errors.New("esp: sequence numbers are used up, rekey the SA")

	// ErrExpired: the packet would go beyond the SA's hard limit in packets or octets (RFC
	// 4301 section 4.4.2.1). Nothing was sealed or accepted, and no packet of that size ever
	// will be: replace the SA.
	ErrExpired = errors.New("esp: SA has reached its hard limit")

	// ErrNoRoom: the payload leaves less than HeadRoom before it or TailRoom after it
	// than this packet needs. No sequence number was used and the buffer is as it was.
	ErrNoRoom = errors.New("esp: no room around the payload, leave HeadRoom and TailRoom")

	// ErrShort: the packet is too short for its suite, or its ciphertext is not whole
	// blocks. No state advanced and the packet is as it was.
	ErrShort = errors.New("esp: packet is truncated")

	// ErrReplay: the sequence number was seen before or is left of the window (RFC 4303
	// section 3.4.3). The window did not move. With extended sequence numbers a packet left
	// of the window gives ErrAuth instead: its number reads as one far ahead (appendix A2.2).
	ErrReplay = errors.New("esp: replayed or too old")

	// ErrAuth: the ICV does not fit (RFC 4303 section 3.4.4.1). No state advanced; the
	// packet's content may have been overwritten.
	ErrAuth = errors.New("esp: integrity check failed")

	// ErrPadding: an authentic packet whose padding is not 1, 2, 3 ... or is longer than
	// the packet (RFC 4303 section 3.4.4.1). The window has advanced: the sequence number
	// is spent.
	ErrPadding = errors.New("esp: authentic packet with malformed padding")

	// ErrWiped: the SA's keys are gone. No state advanced.
	ErrWiped = errors.New("esp: SA was deleted, its keys are wiped")

	// ErrHeaders: the IP header, its options or its extension headers are malformed or such
	// that AH or ESP cannot stand behind them, or there is no header where one is needed.
	// Nothing was sealed or opened, no state advanced.
	ErrHeaders = errors.New("esp: IP options or extension headers that the SA cannot carry")

	// ErrFragment: transport mode, BEET and AH take whole packets alone (RFC 4302 section 3.4.1, RFC 4303
	// sections 3.1.1 and 3.4.1): reassemble first, or use tunnel mode. No state advanced.
	ErrFragment = errors.New("esp: fragment where only a whole packet may be, reassemble it first")

	// ErrAddresses: the packet's addresses are not those that transport mode or BEET have, or the
	// outer ones are missing or of two families. Nothing was sealed.
	ErrAddresses = errors.New("esp: packet's addresses are not the SA's")

	// ErrTooLong: sealed, the packet would be longer than its IP header can say. Nothing was sealed.
	ErrTooLong = errors.New("esp: sealed packet would be longer than IP allows")

	// ErrDummy: an authentic packet that only hides traffic (RFC 4303 section 2.6): to be dropped
	// in silence. The window has advanced.
	ErrDummy = errors.New("esp: dummy packet")

	// ErrNextHeader: an authentic packet in tunnel mode that carries something else than IPv4 or
	// IPv6. The window has advanced.
	ErrNextHeader = errors.New("esp: tunnel mode packet without an IP packet inside")

	// ErrMalformed: an inner packet whose headers contradict themselves or are truncated.
	ErrMalformed = errors.New("esp: malformed inner packet")

	// ErrChain, which is an ErrMalformed: an inner packet with more IPv6 extension headers than
	// anyone needs.
	ErrChain = fmt.Errorf("%w: too many extension headers", ErrMalformed)
)
