// Package platformtest has a TUN device, sockets and policy routing in memory, with the
// methods that the engine wants of package platform's. Nothing here allocates for a packet,
// nothing looks at the clock, and what happens to a packet depends only on the seed and on
// the order of the calls.
package platformtest
