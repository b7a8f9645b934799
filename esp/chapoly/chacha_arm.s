//go:build arm && !purego

#include "textflag.h"

// ChaCha20 with 13 registers for 16 words. R0 to R3 are words 0 to 3 and R4 to R7 words 4
// to 7; of words 8 to 11 two at a time are in R8 and R9, of words 12 to 15 three in R11, R12
// and R14, the others in the frame. R10 is g. R11 is the assembler's own register, which it
// needs for constants and offsets that do not fit an instruction: there are none here.
//
// The second operand of an instruction may be rotated on its way, so rotations are not
// carried out but kept in mind: between quarter rounds, words 4 to 7 lack a rotation to the
// right by 25 and words 12 to 15 one by 24.
#define c8 c8_-36(SP)
#define c9 c9_-32(SP)
#define c10 c10_-28(SP)
#define c11 c11_-24(SP)
#define d12 d12_-20(SP)
#define d13 d13_-16(SP)
#define d14 d14_-12(SP)
#define d15 d15_-8(SP)
#define round round_-4(SP)

// Two quarter rounds (RFC 8439 section 2.1) in step: a rotated operand is not ready at once.
#define QUARTERS(a, b, c, d, A, B, C, D) \
	ADD	b@>25, a; \
	ADD	B@>25, A; \
	EOR	d@>24, a, d; \
	EOR	D@>24, A, D; \
	ADD	d@>16, c; \
	ADD	D@>16, C; \
	EOR	b@>25, c, b; \
	EOR	B@>25, C, B; \
	ADD	b@>20, a; \
	ADD	B@>20, A; \
	EOR	d@>16, a, d; \
	EOR	D@>16, A, D; \
	ADD	d@>24, c; \
	ADD	D@>24, C; \
	EOR	b@>20, c, b; \
	EOR	B@>20, C, B

// OUT takes a word of the sum, adds the state's and meets the data. The operand sum is r,
// with the rotation that it lacks.
#define OUT(off, sum, r) \
	MOVW	off(R8), R12; \
	MOVW	off(R9), R14; \
	ADD	sum, R12, r; \
	EOR	R14, r; \
	MOVW	r, off(R11)

// func xorAssembly(dst, src *uint32, n int, s *state)
TEXT ·xorAssembly(SB), NOSPLIT, $36-16
block:
	MOVW	s+12(FP), R12
	MOVW	$10, R0
	MOVW	R0, round
	MOVW	40(R12), R0
	MOVW	44(R12), R1
	MOVW	60(R12), R2
	MOVW	R2@>8, R2
	MOVW	R0, c10
	MOVW	R1, c11
	MOVW	R2, d15
	MOVW	0(R12), R0
	MOVW	4(R12), R1
	MOVW	8(R12), R2
	MOVW	12(R12), R3
	MOVW	16(R12), R4
	MOVW	20(R12), R5
	MOVW	24(R12), R6
	MOVW	28(R12), R7
	MOVW	32(R12), R8
	MOVW	36(R12), R9
	MOVW	48(R12), R11
	MOVW	56(R12), R14
	MOVW	52(R12), R12
	MOVW	R4@>7, R4
	MOVW	R5@>7, R5
	MOVW	R6@>7, R6
	MOVW	R7@>7, R7
	MOVW	R11@>8, R11
	MOVW	R12@>8, R12
	MOVW	R14@>8, R14

doubleRound:
	QUARTERS(R0, R4, R8, R11, R1, R5, R9, R12)
	MOVW	R8, c8
	MOVW	round, R8
	MOVW	R9, c9
	MOVW	R12, d13
	SUB.S	$1, R8	// nothing up to the branch changes the flags
	MOVW	R8, round
	MOVW	c10, R8
	MOVW	c11, R9
	MOVW	d15, R12
	QUARTERS(R2, R6, R8, R14, R3, R7, R9, R12)
	QUARTERS(R0, R5, R8, R12, R1, R6, R9, R11)
	MOVW	R8, c10
	MOVW	R9, c11
	MOVW	R12, d15
	MOVW	c8, R8
	MOVW	c9, R9
	MOVW	d13, R12
	QUARTERS(R2, R7, R8, R12, R3, R4, R9, R14)
	BNE	doubleRound

	MOVW	R8, c8
	MOVW	R9, c9
	MOVW	R11, d12
	MOVW	R12, d13
	MOVW	R14, d14
	MOVW	s+12(FP), R8
	MOVW	src+4(FP), R9
	MOVW	dst+0(FP), R11
	OUT(0, R0, R0)
	OUT(4, R1, R1)
	OUT(8, R2, R2)
	OUT(12, R3, R3)
	OUT(16, R4@>25, R4)
	OUT(20, R5@>25, R5)
	OUT(24, R6@>25, R6)
	OUT(28, R7@>25, R7)
	MOVW	c8, R0
	MOVW	c9, R1
	MOVW	c10, R2
	MOVW	c11, R3
	MOVW	d12, R4
	MOVW	d13, R5
	MOVW	d14, R6
	MOVW	d15, R7
	OUT(32, R0, R0)
	OUT(36, R1, R1)
	OUT(40, R2, R2)
	OUT(44, R3, R3)
	OUT(48, R4@>24, R4)
	OUT(52, R5@>24, R5)
	OUT(56, R6@>24, R6)
	OUT(60, R7@>24, R7)

	MOVW	48(R8), R0
	MOVW	n+8(FP), R1
	ADD	$1, R0
	ADD	$64, R9
	ADD	$64, R11
	MOVW	R0, 48(R8)
	MOVW	R9, src+4(FP)
	MOVW	R11, dst+0(FP)
	SUB.S	$1, R1
	MOVW	R1, n+8(FP)
	BNE	block
	RET
