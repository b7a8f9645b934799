// Package platform makes every call to the operating system: the TUN device, the UDP
// and raw sockets, rtnetlink, policy routing, queries to name servers, what the processor has,
// files of state, privileges. It satisfies the interfaces that the engine declares without
// importing it. Linux is the system that it is made for; elsewhere every constructor returns
// an error that wraps [ErrUnsupported].
//
// Package platformtest beside it has the same things in memory, for tests.
package platform

// TUNName is the name of the device when the configuration gives none.
const TUNName = "postern0"
