// Package ctaes is AES-GCM and AES (SP 800-38D, FIPS 197) in constant time for the processors
// without instructions for it. Go's library uses tables there, and which octets of a table
// are in the cache tells an attacker who measures times about the key. With the
// instructions, [NewGCM] and [NewCipher] are the library's; a [Routine] says which. The library
// computes one block with each instruction: on amd64 with vectors of four blocks AES-GCM is this
// package's own, too ([Wide]), which halves the time of a packet.
//
// How a packet is sealed:
//
//  1. stream: nonce and counter become blocks, as many as a word has lanes
//  2. put, transpose: the blocks become a slice, bit by bit
//  3. encrypt: sub, mixN and a round key, round by round, all lanes at once
//  4. transpose, get: the slice becomes key stream, which is XORed into the payload
//  5. hash: GHASH over associated data, ciphertext and their lengths
//
// Opening does step 5 before step 4 has touched the payload, and writes nothing if the tag is
// wrong.
//
// # Constant time
//
// What is secret are the key, what is expanded from it, the state of AES, the key stream, H and
// the sums of GHASH, and the text. None of them decides anything: every index, every loop's
// end and every branch follows from lengths, lane, round and nonce. sub, mixN and transpose
// are straight lines of and, or, exclusive-or and shifts by constants; the S-box is a circuit,
// also in the key's expansion. The only arrays indexed by a variable are the round keys (by
// round), a slice (by lane) and what is public. A test looks for branches and divisions in what
// the compiler makes of it. Tags are compared by crypto/subtle.
//
// GHASH multiplies without carries by multiplying integers of which three of four bits are
// masked out. That takes constant time where integer multiplication does, as on MIPS 24K and
// 74K, ARM926 and ARM11, Cortex-A, and 64-bit processors. It does not where the
// multiplier ends early on small factors: MIPS 4K, ARM7TDMI, ARM9TDMI, XScale, Cortex-M3, some
// small RISC-V cores. There it leaks which masked factors are small, those of H among them;
// AES-CBC with HMAC is the cipher that multiplies nothing.
//
// # CBC
//
// NewCipher serves CBC as well: its keys deserve no less, and all it takes beside what GCM needs is
// the inverse round. Decryption fills all lanes. Encryption cannot, since every block
// waits for the one before: most of every word is idle, and an octet costs two to four
// times what it costs in GCM's key stream. It is for peers that have nothing better.
//
// Nothing here asks the operating system. [SelfTest] finds out whether what the flags
// promise is true:
//
//	for _, r := range ctaes.Routines(cpu) {
//		if ctaes.Use(r) == nil && ctaes.SelfTest() == nil {
//			break
//		}
//		// warn, and go on with the next
//	}
package ctaes
