//go:build (mips || mipsle) && !purego

#include "textflag.h"

// Poly1305 as in sumPlain. The sum's limbs h are R1 to R5, r is R6 to R9, r*5/4 is R10 to
// R12. HI and LO add up the products of a row: the assembler does not know MADDU, which
// every MIPS32 has, so it is written as a word and takes the registers' numbers.
#define MADDU(a, b) WORD $(0x70000001 | a<<21 | b<<16)

#define M R13
#define N R14
#define T R15
#define U R16
#define MASK R17
#define ZERO R0

// LITTLE turns a big-endian processor's word round, with 0x00ff00ff in MASK.
#ifdef GOARCH_mipsle
#define LITTLE(r)
#else
#define LITTLE(r) \
	SRL	$8, r, U; \
	AND	MASK, U; \
	AND	MASK, r; \
	SLL	$8, r, r; \
	OR	U, r; \
	SRL	$16, r, U; \
	SLL	$16, r, r; \
	OR	U, r
#endif

// ADDLIMB adds the message's word and the carry in R18 to a limb, and leaves the carry.
#define ADDLIMB(off, h) \
	MOVW	off(M), T; \
	LITTLE(T); \
	ADDU	T, h; \
	SGTU	T, h, U; \
	ADDU	R18, h; \
	SGTU	R18, h, R18; \
	OR	U, R18

// func sumAssembly(p *poly, m *uint32, n int)
TEXT ·sumAssembly(SB), NOSPLIT, $0-12
	MOVW	p+0(FP), T
	MOVW	m+4(FP), M
	MOVW	n+8(FP), N
#ifdef GOARCH_mips
	MOVW	$0x00ff00ff, MASK
#endif
	MOVW	0(T), R1
	MOVW	4(T), R2
	MOVW	8(T), R3
	MOVW	12(T), R4
	MOVW	16(T), R5
	MOVW	20(T), R6
	MOVW	24(T), R7
	MOVW	28(T), R8
	MOVW	32(T), R9
	MOVW	36(T), R10
	MOVW	40(T), R11
	MOVW	44(T), R12

block:
	// h += block + 2^128
	MOVW	0(M), T
	LITTLE(T)
	ADDU	T, R1
	SGTU	T, R1, R18
	ADDLIMB(4, R2)
	ADDLIMB(8, R3)
	ADDLIMB(12, R4)
	ADDU	R18, R5
	ADDU	$1, R5

	// Four rows of products; what a row has above its 32 bits begins the next one.
	MULU	R1, R6
	MADDU(2, 12)
	MADDU(3, 11)
	MADDU(4, 10)
	ADDU	$-1, N
	ADDU	$16, M
	MOVW	LO, R19
	MOVW	HI, T

	MOVW	T, LO
	MOVW	ZERO, HI
	MADDU(1, 7)
	MADDU(2, 6)
	MADDU(3, 12)
	MADDU(4, 11)
	MADDU(5, 10)
	MOVW	LO, R20
	MOVW	HI, T

	MOVW	T, LO
	MOVW	ZERO, HI
	MADDU(1, 8)
	MADDU(2, 7)
	MADDU(3, 6)
	MADDU(4, 12)
	MADDU(5, 11)
	MOVW	LO, R21
	MOVW	HI, T

	MOVW	T, LO
	MOVW	ZERO, HI
	MADDU(1, 9)
	MADDU(2, 8)
	MADDU(3, 7)
	MADDU(4, 6)
	MADDU(5, 12)
	MOVW	LO, R22
	MOVW	HI, T
	MUL	R5, R6, R5
	ADDU	T, R5

	// What is 2^130 and more is worth five times as much at the bottom.
	SRL	$2, R5, T
	SLL	$2, T, U
	ADDU	T, U
	AND	$3, R5
	ADDU	U, R19, R1
	SGTU	U, R1, T
	ADDU	T, R20, R2
	SGTU	T, R2, T
	ADDU	T, R21, R3
	SGTU	T, R3, T
	ADDU	T, R22, R4
	SGTU	T, R4, T
	ADDU	T, R5
	BNE	N, block

	MOVW	p+0(FP), T
	MOVW	R1, 0(T)
	MOVW	R2, 4(T)
	MOVW	R3, 8(T)
	MOVW	R4, 12(T)
	MOVW	R5, 16(T)
	RET
