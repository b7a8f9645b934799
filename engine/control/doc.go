// Package control speaks VICI, the control protocol of strongSwan's charon, in both
// roles, so that swanctl, govici and the exporters that people have work with postern.
//
// A packet is a length of four octets, a type, for some types a name, and a message.
// A client sends named requests, one at a time, and gets one response each; it
// registers for named events and gets those until it unregisters. Some commands stream
// events while they run, and only to the client that asked.
//
// The names of commands, events and keys stand in keys.go; the daemon's handler and
// the command line use the same constants.
package control
