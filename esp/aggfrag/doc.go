// Package aggfrag is the payload of AGGFRAG mode (RFC 9347): inner packets are put one behind the
// other and cut where a payload ends, so that every ESP packet of an SA can have the same size and
// leave at its own time, whatever traffic there is. IP-TFS is that with a constant rate.
// It is pure as package esp is: no sockets, no clock (the caller tells the time), no goroutines, and
// no allocation after something has been made.
//
// Out: workers [Packer.Put] inner packets into a bounded queue; whoever paces the SA
//
//  1. asks [Control.Out] for the congestion information of the header, if it is to be sent
//  2. has [Packer.Fill] write a payload: header, blocks, padding
//  3. seals it with next header [NextHeader] and sends it
//
// In, for what Open gave back with that next header:
//
//  1. [Reassembler.Push] reads the header and puts payloads into order
//  2. [Control.In] takes the congestion information, and counts what is missing
//  3. [Reassembler.Next], until there is nothing more, gives the inner packets, of which nothing
//     but their length has been checked
//
// A packet of an SA cannot be sent on with another one (section 2.2.3): where an SA has been
// replaced, [Packer.Restart] begins again with the packet that was under way, [Control.Rekeyed]
// with the sequence numbers, and the new SA gets a Reassembler of its own.
//
// The files stand in that order: header.go, packer.go, reassembler.go, loss.go (what a
// receiver reports), control.go (the rate that follows from it, and the circuit breaker).
//
// Congestion marks: the outer header of an AGGFRAG packet is Not-ECT and its DF bit and DSCP
// are not the inner packets' (sections 2.2.5 and 3.1).
package aggfrag
