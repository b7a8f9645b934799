// Package ike is the IKEv2 protocol (RFC 7296) without input or output: datagrams,
// timers and commands go in; datagrams, SA changes, jobs and events come out. It opens
// no socket, reads no clock, starts no goroutine and writes no log, so that a test can
// run two machines against each other in virtual time.
//
//	         Datagram  Command  Timeout  Done  Fetched, Resolved
//	                \      |       |      |     /
//	cursor, message   +------v--------v-----+      msgid: message IDs, retransmission,
//	payload, rules -->|       Machine       |<---- response cache
//	                  | ikeSA[]   childSA[] |      timer: deadlines
//	proposal, ts, id  +----------+----------+      task: what we want to do next
//	                             |
//	  init  resume  intermediate  auth  child  followup  rekey  info  mobike
//	                             |                          one file per exchange
//	            rounds  prove  certs  staple                who is there
//	            remote  assign                              addresses for clients
//	                             |
//	                          Next() -> Send, AddSA, DelSA, UseSA, MoveSA, Work,
//	                                    Fetch, Resolve, Assign, Event
//
// Both roles of an exchange stand in one file. The tables of IKE SAs and CHILD SAs are
// of fixed size; an IKE SPI of ours carries its slot in the low bits, so that finding
// the SA of a datagram is one index and one compare.
//
// Our own requests are tasks: they wait in the IKE SA's queue until the peer's window has room
// (RFC 7296 section 2.3, window.go), and those that could collide run one after the other. Slow
// cryptography leaves as Work; while it is out, the exchange waits and retransmissions of the
// request in question are dropped.
//
// Nothing that an unauthenticated peer sends makes a table grow: half-open IKE SAs are
// capped, over all and for each source address, and from a threshold on a peer has to
// show with a COOKIE that it receives what we send to its address.
package ike
