package aggfrag

import "errors"

// Why something was dropped. What Put returns concerns one packet; what Push and Next
// return is one event each, to be counted.
var (
	// ErrFull: the queue has no room for the packet, which was dropped.
	ErrFull = errors.New("aggfrag: queue is full")

	// ErrMalformed: no IP packet, or one whose own length AGGFRAG cannot rely on. Nothing was queued.
	ErrMalformed = errors.New("aggfrag: not an IP packet of the length that its header says")

	// ErrShort: a payload shorter than its header. It counts as arrived, and ends a packet under way.
	ErrShort = errors.New("aggfrag: payload is shorter than its header")

	// ErrSubType: a payload of a format that RFC 9347 does not define. As ErrShort.
	ErrSubType = errors.New("aggfrag: payload of an unknown sub-type")

	// ErrLate: the payload's number has been given up or was here before. It is not looked at, but for
	// its header.
	ErrLate = errors.New("aggfrag: payload comes after its turn")

	// ErrNoRoom: a payload before its turn is longer than what can be held. It will count as lost.
	ErrNoRoom = errors.New("aggfrag: payload is too long to be held for its turn")

	// ErrLost: a payload that was lost took a part of a packet with it.
	ErrLost = errors.New("aggfrag: packet lost with a payload")

	// ErrOffset: the BlockOffset does not agree with what is missing of a packet, which is given up.
	// What follows is taken from the BlockOffset on.
	ErrOffset = errors.New("aggfrag: block offset contradicts the packet's length")

	// ErrType: a data block that is neither IPv4, IPv6 nor padding. The rest of the payload is dropped.
	ErrType = errors.New("aggfrag: data block of an unknown type")

	// ErrLength: a packet that is shorter than its own header by its length, or an IPv6 jumbogram, which has none.
	// The rest of the payload is dropped.
	ErrLength = errors.New("aggfrag: inner packet has an impossible length")

	// ErrTooLong: a packet in several payloads that is longer than the buffer for it, or comes though
	// fragments are not taken. It is passed over.
	ErrTooLong = errors.New("aggfrag: inner packet is too long to be reassembled")
)
