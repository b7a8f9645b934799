package engine

import "sync/atomic"

// counter names one of the engine's counters. Each drop has a reason of its own, so
// that "it does not work" can be told apart from "it does not work because".
type counter uint8

// The counters: what passed, then what did not and why.
const (
	cOutPackets         counter = iota // sealed and handed to a socket
	cOutBytes                          // of inner packets
	cInPackets                         // opened and handed to the TUN device
	cInBytes                           // of inner packets
	cOutMalformed                      // from the TUN device, not an IP packet
	cOutNoPolicy                       // no SPD entry: RFC 4301 section 5.1 says drop
	cOutDiscard                        // a DISCARD entry
	cOutBypass                         // a BYPASS entry: the kernel should not have routed it here
	cInClear                           // came in clear and should have been protected, or not at all (RFC 4301 section 5.2)
	cOutNoSA                           // had no SA and was not queued
	cOutQueued                         // had no SA and was queued
	cOutQueueFull                      // pushed out of the queue by a newer packet
	cOutExpired                        // waited too long in the queue
	cOutSequence                       // the SA has used up its sequence numbers
	cOutLimit                          // beyond the hard limit of the SA in packets or octets
	cOutTooBig                         // does not fit the buffer once sealed
	cOutFragment                       // a fragment, which the SA's mode cannot carry
	cOutChain                          // more IPv6 extension headers than anyone needs
	cOutFragMalformed                  // a fragment that no datagram has
	cOutFragTiny                       // a first fragment that ends before its ports
	cOutFragFirst                      // a later fragment whose first one is not known, where that matters
	cOutFragRefused                    // a later fragment, whose SA takes the first one alone
	cOutFragClear                      // a fragment that is not to be protected, which the kernel could not know
	cFragsForgotten                    // first fragments that others have pushed out of the table
	cOutUnfit                          // headers or addresses that the SA's mode cannot carry
	cOutNoSocket                       // no socket of the family or kind that the SA needs
	cOutSendError                      // the socket refused it
	cOutLoop                           // a packet of the tunnel itself, routed into the device that the tunnel is for
	cOutDummy                          // dummy packets (RFC 4303 section 2.6)
	cOutStream                         // packets with AGGFRAG payloads (RFC 9347)
	cOutStreamPad                      // … in which there was nothing but padding
	cOutStreamLate                     // … that did not leave because it was too late for them
	cOutStreamFull                     // the queue for AGGFRAG payloads was full
	cOutStreamBig                      // does not fit an AGGFRAG payload, and may not be cut
	cOutStreamStopped                  // the circuit breaker has stopped the stream, or it is over
	cAcquire                           // SAs asked for because a packet wanted one
	cAcquireLost                       // … which the IKE loop was too busy to take
	cInHeld                            // came before their SA, and were held
	cInKeepalive                       // NAT keepalives (RFC 3948 section 2.3)
	cInShort                           // shorter than its headers
	cInUnknownSPI                      // no such SA
	cInHoldFull                        // came before their SA, and were one too many
	cInExpired                         // waited too long for their SA
	cInReleased                        // waited for an SA that did not come about
	cInHeaders                         // IP headers before AH or ESP that cannot stand there
	cInNoRoom                          // longer than a buffer once opened
	cInBare                            // without the AH around it that a policy demands
	cInReplay                          // seen before, or left of the window
	cInAuth                            // integrity check failed
	cInLimit                           // authentic, but beyond the hard limit of the SA
	cInPadding                         // authentic, but its padding is wrong
	cInNextHeader                      // authentic, but what it carries is not IPv4 or IPv6
	cInMalformed                       // authentic, but its inner packet is malformed
	cInChain                           // authentic, but its inner packet has more extension headers than anyone needs
	cInFragMalformed                   // a fragment that no datagram has
	cInFragTiny                        // a fragment that could hide or change ports and flags (RFC 1858, RFC 3128)
	cInFragOverlap                     // a fragment that overlaps another one of its datagram
	cInFragFirst                       // a later fragment whose first one has not come through the SA
	cInFragRefused                     // a later fragment through an SA that is not for such ones
	cInSelectors                       // inner addresses are not the SA's (RFC 4301 section 5.2)
	cInPolicy                          // within the SA's selectors, but an earlier SPD entry discards or bypasses it
	cInDummy                           // dummy packets (RFC 4303 section 2.6)
	cInECN                             // congestion was marked on a packet that cannot carry the mark (RFC 6040)
	cInAgg                             // AGGFRAG payloads (RFC 9347)
	cInAggLost                         // … that did not come in time
	cInAggHeader                       // AGGFRAG payloads that are too short, or of an unknown kind
	cInAggLate                         // AGGFRAG payloads behind their turn
	cInAggRoom                         // AGGFRAG payloads before their turn, too long to be held
	cInAggPart                         // packets of which a part was lost
	cInAggOffset                       // packets whose parts contradict each other
	cInAggType                         // neither IP nor padding in an AGGFRAG payload
	cInAggLength                       // packets in AGGFRAG payloads that lie about their length
	cInAggTooLong                      // packets too long to be put together
	cInMoved                           // from another address than the SA's peer has
	cInDeviceError                     // the TUN device refused it
	cInNoDevice                        // the device of its child is gone
	cIKEIn                             // IKE datagrams received
	cIKEOut                            // IKE datagrams sent
	cIKEShort                          // shorter than an IKE header
	cIKEQueueFull                      // the IKE loop did not keep up
	cIKESendError                      // the socket refused it
	cIKEDropSPI                        // IKE messages for an IKE SA that is not here
	cIKEDropMessageID                  // replayed, out of the window, or answers to nothing that was asked
	cIKEDropState                      // messages that do not fit the state, or come again
	cIKEDropMalformed                  // against the format, or not encrypted where they have to be
	cIKEDropForged                     // that fail the integrity check, or have another's token
	cIKEDropFull                       // for which there is no room among half-open IKE SAs
	cIKEDropOther                      // for other reasons, which the log tells
	cIKERefused                        // requests that were answered with an error
	cIKERefusedOften                   // … because the peer asks too often; also among the former
	cIKERedirectRefused                // redirects that were not followed: loops, forged ones
	cFetched                           // files fetched that tell of revoked certificates
	cFetchFailed                       // … that could not be fetched
	cReadErrors                        // reads from sockets that failed
	cOutPathMTU                        // must not be fragmented, and is longer than its path carries
	cOutAnswers                        // … of which their senders were told
	cOutAnswerRate                     // … and were not, because there were too many
	cOutCutBefore                      // longer than the path: cut, and each piece sealed
	cOutCutAfter                       // longer than the path: to be cut once sealed
	cMSSClamped                        // TCP SYNs whose MSS was lowered
	cInECNOdd                          // outer and inner ECN fields that should not meet (RFC 6040 section 4.2)
	cTooBig                            // ICMP messages that made a path smaller
	cTooBigForged                      // … which show no packet of an SA that is here
	cTooBigStale                       // … which say what is known, or cannot be
	cTooBigRate                        // … which are too many, or the IKE loop was too busy
	numCounters
)

var counterNames = [numCounters]string{
	cOutPackets:    "out_packets",
	cOutBytes:      "out_bytes",
	cInPackets:     "in_packets",
	cInBytes:       "in_bytes",
	cOutMalformed:  "out_drop_malformed",
	cOutNoPolicy:   "out_drop_no_policy",
	cOutDiscard:    "out_drop_discard",
	cOutBypass:     "out_drop_bypass",
	cInClear:       "in_drop_clear",
	cOutNoSA:       "out_drop_no_sa",
	cOutQueued:     "out_queued",
	cOutQueueFull:  "out_drop_queue_full",
	cOutExpired:    "out_drop_expired",
	cOutSequence:   "out_drop_sequence",
	cOutLimit:      "out_drop_limit",
	cOutTooBig:     "out_drop_too_big",
	cOutFragment:   "out_drop_fragment",
	cOutUnfit:      "out_drop_unfit",
	cOutNoSocket:   "out_drop_no_socket",
	cOutSendError:  "out_drop_send_error",
	cOutLoop:       "out_drop_loop",
	cOutDummy:      "out_dummy",
	cOutStream:     "out_iptfs",
	cAcquire:       "acquires",
	cAcquireLost:   "acquires_lost",
	cInHeld:        "in_held",
	cInKeepalive:   "in_keepalives",
	cInShort:       "in_drop_short",
	cInUnknownSPI:  "in_drop_unknown_spi",
	cInHoldFull:    "in_drop_hold_full",
	cInExpired:     "in_drop_expired",
	cInReleased:    "in_drop_released",
	cInHeaders:     "in_drop_headers",
	cInNoRoom:      "in_drop_too_big",
	cInBare:        "in_drop_bare",
	cInReplay:      "in_drop_replay",
	cInAuth:        "in_drop_auth",
	cInLimit:       "in_drop_limit",
	cInPadding:     "in_drop_padding",
	cInNextHeader:  "in_drop_next_header",
	cInMalformed:   "in_drop_malformed",
	cInSelectors:   "in_drop_selectors",
	cInPolicy:      "in_drop_policy",
	cInDummy:       "in_dummy",
	cInECN:         "in_drop_ecn",
	cInMoved:       "in_moved",
	cInDeviceError: "in_drop_device_error",
	cInNoDevice:    "in_drop_no_device",
	cIKEIn:         "ike_in",
	cIKEOut:        "ike_out",
	cIKEShort:      "ike_drop_short",
	cIKEQueueFull:  "ike_drop_queue_full",
	cIKESendError:  "ike_drop_send_error",

	cOutChain:         "out_drop_header_chain",
	cOutFragMalformed: "out_drop_fragment_malformed",
	cOutFragTiny:      "out_drop_fragment_tiny",
	cOutFragFirst:     "out_drop_fragment_no_first",
	cOutFragRefused:   "out_drop_fragment_refused",
	cOutFragClear:     "out_drop_fragment_clear",
	cFragsForgotten:   "fragments_forgotten",
	cInChain:          "in_drop_header_chain",
	cInFragMalformed:  "in_drop_fragment_malformed",
	cInFragTiny:       "in_drop_fragment_tiny",
	cInFragOverlap:    "in_drop_fragment_overlap",
	cInFragFirst:      "in_drop_fragment_no_first",
	cInFragRefused:    "in_drop_fragment_refused",
	cOutStreamPad:     "out_iptfs_padding",
	cOutStreamLate:    "out_iptfs_late",
	cOutStreamFull:    "out_drop_iptfs_full",
	cOutStreamBig:     "out_drop_iptfs_too_big",
	cOutStreamStopped: "out_drop_iptfs_stopped",
	cInAgg:            "in_iptfs",
	cInAggLost:        "in_iptfs_lost",
	cInAggHeader:      "in_drop_iptfs_header",
	cInAggLate:        "in_drop_iptfs_late",
	cInAggRoom:        "in_drop_iptfs_room",
	cInAggPart:        "in_drop_iptfs_part",
	cInAggOffset:      "in_drop_iptfs_offset",
	cInAggType:        "in_drop_iptfs_type",
	cInAggLength:      "in_drop_iptfs_length",
	cInAggTooLong:     "in_drop_iptfs_too_long",

	cIKEDropSPI:         "ike_drop_unknown_spi",
	cIKEDropMessageID:   "ike_drop_message_id",
	cIKEDropState:       "ike_drop_state",
	cIKEDropMalformed:   "ike_drop_malformed",
	cIKEDropForged:      "ike_drop_forged",
	cIKEDropFull:        "ike_drop_full",
	cIKEDropOther:       "ike_drop_other",
	cIKERefused:         "ike_refused",
	cIKERefusedOften:    "ike_refused_too_often",
	cIKERedirectRefused: "ike_redirects_refused",
	cFetched:            "fetched",
	cFetchFailed:        "fetch_failed",
	cReadErrors:         "read_errors",

	cOutPathMTU:    "out_drop_path_mtu",
	cOutAnswers:    "out_icmp_too_big",
	cOutAnswerRate: "out_icmp_too_many",
	cOutCutBefore:  "out_cut_before",
	cOutCutAfter:   "out_cut_after",
	cMSSClamped:    "mss_clamped",
	cInECNOdd:      "in_ecn_odd",
	cTooBig:        "icmp_too_big",
	cTooBigForged:  "icmp_drop_forged",
	cTooBigStale:   "icmp_drop_stale",
	cTooBigRate:    "icmp_drop_rate",
}

// String returns the counter's name in statistics.
func (c counter) String() string { return counterNames[c] }

// counters are written by every goroutine of the data path and read by anybody.
type counters [numCounters]atomic.Uint64

func (c *counters) inc(i counter)           { c[i].Add(1) }
func (c *counters) add(i counter, n uint64) { c[i].Add(n) }
func (c *counters) get(i counter) uint64    { return c[i].Load() }
