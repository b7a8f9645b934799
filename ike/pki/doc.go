// Package pki has the keys, certificates, signatures and trust decisions of IKEv2: what makes
// and checks the data of an AUTH payload (RFC 7296 3.8, RFC 7427, RFC 4754, RFC 8420), and what
// decides whether the certificates of a peer prove its identity (RFC 5280, RFC 4945), including
// revocation by CRL (RFC 5280) and OCSP (RFC 6960, RFC 4806).
//
// It does no I/O: no file, no socket, no clock, no goroutine, no randomness of its own. What it
// needs from the network it asks for ([Verdict.Need]), and is asked again with what was got. All
// of it is slow by the measure of a packet, so the machine calls it inside jobs.
//
// # When the clock is plainly wrong
//
// A router without a battery boots in 1970. [Request.Floor] is a time that has surely passed
// (say the newest NotBefore among our own certificates and CAs). While [Request.Now] is before
// it, the clock is not believed, and
//   - "not yet valid" is excused: the certificates are judged at the earliest time, not before
//     Floor, at which all of a chain have begun;
//   - CRLs and OCSP responses that are too old or from the future are taken as they are;
//   - "expired" is never excused: what ended before Floor ended;
//   - the verdict has a note that says so, for the log.
//
// With Floor zero the clock is always believed.
//
// # Limits
//
// A peer is not authenticated while its certificates are read. So their number and size, the
// number of signatures checked on the way to an anchor, the names compared, and the fetches
// asked for are all bounded by constants in limits.go; nothing is fetched before a chain ends at
// an anchor, so every URL comes from a CA that we trust.
package pki
