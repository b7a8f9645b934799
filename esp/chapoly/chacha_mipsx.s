//go:build (mips || mipsle) && !purego

#include "textflag.h"

// ChaCha20 with all of the state in registers: R1 to R16 are its words 0 to 15. Beside
// them, dst, src, the blocks that are left, the state's address and the double rounds that are
// left; T and U for whatever comes up. REGTMP (R23) is left to the assembler.
#define DST R17
#define SRC R18
#define N R19
#define STATE R20
#define ROUND R21
#define T R22
#define U R24
#define MASK R25

// Rotations to the left; the first is of release 2, the second of any.
#define ROTL_ROTATE(n, r) \
	ROTR	$(32-n), r, r
#define ROTL_SHIFT(n, r) \
	SLL	$n, r, T; \
	SRL	$(32-n), r, r; \
	OR	T, r

#define QUARTER(rotl, a, b, c, d) \
	ADDU	b, a; \
	XOR	a, d; \
	rotl(16, d); \
	ADDU	d, c; \
	XOR	c, b; \
	rotl(12, b); \
	ADDU	b, a; \
	XOR	a, d; \
	rotl(8, d); \
	ADDU	d, c; \
	XOR	c, b; \
	rotl(7, b)

#define DOUBLEROUND(rotl) \
	QUARTER(rotl, R1, R5, R9, R13); \
	QUARTER(rotl, R2, R6, R10, R14); \
	QUARTER(rotl, R3, R7, R11, R15); \
	QUARTER(rotl, R4, R8, R12, R16); \
	QUARTER(rotl, R1, R6, R11, R16); \
	QUARTER(rotl, R2, R7, R12, R13); \
	QUARTER(rotl, R3, R8, R9, R14); \
	QUARTER(rotl, R4, R5, R10, R15)

#define LOADSTATE \
	MOVW	0(STATE), R1; \
	MOVW	4(STATE), R2; \
	MOVW	8(STATE), R3; \
	MOVW	12(STATE), R4; \
	MOVW	16(STATE), R5; \
	MOVW	20(STATE), R6; \
	MOVW	24(STATE), R7; \
	MOVW	28(STATE), R8; \
	MOVW	32(STATE), R9; \
	MOVW	36(STATE), R10; \
	MOVW	40(STATE), R11; \
	MOVW	44(STATE), R12; \
	MOVW	48(STATE), R13; \
	MOVW	52(STATE), R14; \
	MOVW	56(STATE), R15; \
	MOVW	60(STATE), R16

// The key stream is a row of little-endian words. Big-endian processors turn theirs round
// before they meet the data, with 0x00ff00ff in MASK.
#ifdef GOARCH_mipsle
#define SETMASK
#else
#define LITTLE_ROTATE(r) \
	ROTR	$24, r, U; \
	ROTR	$8, r, r; \
	XOR	r, U; \
	AND	MASK, U; \
	XOR	U, r
#define LITTLE_SHIFT(r) \
	SRL	$8, r, U; \
	AND	MASK, U; \
	AND	MASK, r; \
	SLL	$8, r, r; \
	OR	U, r; \
	SRL	$16, r, U; \
	SLL	$16, r, r; \
	OR	U, r
#define SETMASK \
	MOVW	$0x00ff00ff, MASK
#endif

// The word r, number off/4, becomes key stream and meets the data.
#ifdef GOARCH_mipsle
#define OUT(little, off, r) \
	MOVW	off(STATE), T; \
	MOVW	off(SRC), U; \
	ADDU	T, r; \
	XOR	U, r; \
	MOVW	r, off(DST)
#else
#define OUT(little, off, r) \
	MOVW	off(STATE), T; \
	ADDU	T, r; \
	little(r); \
	MOVW	off(SRC), U; \
	XOR	U, r; \
	MOVW	r, off(DST)
#endif

#define OUTALL(little) \
	OUT(little, 0, R1); \
	OUT(little, 4, R2); \
	OUT(little, 8, R3); \
	OUT(little, 12, R4); \
	OUT(little, 16, R5); \
	OUT(little, 20, R6); \
	OUT(little, 24, R7); \
	OUT(little, 28, R8); \
	OUT(little, 32, R9); \
	OUT(little, 36, R10); \
	OUT(little, 40, R11); \
	OUT(little, 44, R12); \
	OUT(little, 48, R13); \
	OUT(little, 52, R14); \
	OUT(little, 56, R15); \
	OUT(little, 60, R16)

#define ARGUMENTS \
	MOVW	dst+0(FP), DST; \
	MOVW	src+4(FP), SRC; \
	MOVW	n+8(FP), N; \
	MOVW	s+12(FP), STATE; \
	SETMASK

#define COUNT \
	MOVW	48(STATE), T; \
	ADDU	$1, T; \
	MOVW	T, 48(STATE); \
	ADDU	$64, SRC; \
	ADDU	$64, DST; \
	ADDU	$-1, N

// func xorShift(dst, src *uint32, n int, s *state)
TEXT ·xorShift(SB), NOSPLIT, $0-16
	ARGUMENTS
shiftBlock:
	LOADSTATE
	MOVW	$10, ROUND
shiftRound:
	ADDU	$-1, ROUND
	DOUBLEROUND(ROTL_SHIFT)
	BNE	ROUND, shiftRound
	OUTALL(LITTLE_SHIFT)
	COUNT
	BNE	N, shiftBlock
	RET

// func xorRotate(dst, src *uint32, n int, s *state)
TEXT ·xorRotate(SB), NOSPLIT, $0-16
	ARGUMENTS
rotateBlock:
	LOADSTATE
	MOVW	$10, ROUND
rotateRound:
	ADDU	$-1, ROUND
	DOUBLEROUND(ROTL_ROTATE)
	BNE	ROUND, rotateRound
	OUTALL(LITTLE_ROTATE)
	COUNT
	BNE	N, rotateBlock
	RET
