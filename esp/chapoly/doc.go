// Package chapoly is ChaCha20-Poly1305 (RFC 8439) for the processors that Go's libraries
// have no fast code for: 32-bit MIPS of both endians, 32-bit ARM and 386. On all others
// [New] is golang.org/x/crypto's, which has assembly there or 64-bit multiplication.
//
// How a packet is sealed:
//
//  1. state: the key, the nonce and counter 0 become ChaCha20's sixteen words
//  2. one block of the key stream is Poly1305's one-time key (RFC 8439 section 2.6)
//  3. blocks: the key stream, word by word, is XORed into the payload, in place
//  4. sums: Poly1305 over associated data, ciphertext and their lengths (section 2.8)
//
// Opening does step 4 before step 3 and writes nothing if the tag is wrong.
//
// Steps 3 and 4 exist in Go for every processor, and in assembly for 32-bit MIPS and ARM; a
// [Routine] names them. The build tag purego leaves the assembly out. These processors
// read words at word boundaries only, so bytes that begin elsewhere pass through a small
// aligned buffer, at a cost of one or two instructions per octet.
//
// Time depends on lengths and alignment only: additions, rotations, exclusive-ors and
// 32 × 32 bit multiplications, no table, no branch on data. Processors whose multiplier
// ends early on small factors (ARM7TDMI, Cortex-M3) are not among those that postern is for.
//
// Nothing here asks the operating system. What a processor has beyond what Go was built
// for is told to [Best] by the caller; [SelfTest] finds out whether that was true:
//
//	chapoly.Use(chapoly.Best(cpu))
//	if err := chapoly.SelfTest(); err != nil {
//		// warn, then
//		chapoly.Use(chapoly.Plain)
//	}
package chapoly
