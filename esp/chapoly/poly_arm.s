//go:build arm && !purego

#include "textflag.h"

// Poly1305 as in sumPlain. The sum's limbs h are R0 to R4, p is R5. A row's products add up
// in two registers of R6 to R9 and R11, of which the lower one is the row's result and the
// upper one begins the next row. R12 and R14 hold the factor: what there is of r and r*5/4
// finds no place in registers. R10 is g; R11 may be used as in chacha_arm.s.
#define ROW(hi, lo, f0, f1, f2, f3) \
	MOVW	f0(R5), R12; \
	MOVW	f1(R5), R14; \
	MULALU	R12, R0, (hi, lo); \
	MOVW	f2(R5), R12; \
	MULALU	R14, R1, (hi, lo); \
	MOVW	f3(R5), R14; \
	MULALU	R12, R2, (hi, lo); \
	MULALU	R14, R3, (hi, lo)

// Where poly has r and r*5/4.
#define r0 20
#define r1 24
#define r2 28
#define r3 32
#define t1 36
#define t2 40
#define t3 44

// func sumAssembly(p *poly, m *uint32, n int)
TEXT ·sumAssembly(SB), NOSPLIT, $4-12
	MOVW	p+0(FP), R5
	MOVW	0(R5), R0
	MOVW	4(R5), R1
	MOVW	8(R5), R2
	MOVW	12(R5), R3
	MOVW	16(R5), R4
	MOVW	m+4(FP), R11

block:
	// h += block + 2^128
	MOVW	0(R11), R6
	MOVW	4(R11), R7
	MOVW	8(R11), R8
	MOVW	12(R11), R9
	ADD	$16, R11
	MOVW	R11, m+4(FP)
	ADD.S	R6, R0
	ADC.S	R7, R1
	ADC.S	R8, R2
	ADC.S	R9, R3
	ADC	$1, R4

	MOVW	$0, R6
	MOVW	$0, R7
	ROW(R7, R6, r0, t3, t2, t1)

	// R14 is t1.
	MOVW	$0, R8
	MULALU	R14, R4, (R8, R7)
	ROW(R8, R7, r1, r0, t3, t2)

	// R14 is t2.
	MOVW	$0, R9
	MULALU	R14, R4, (R9, R8)
	ROW(R9, R8, r2, r1, r0, t3)

	// R14 is t3.
	MOVW	$0, R11
	MULALU	R14, R4, (R11, R9)
	ROW(R11, R9, r3, r2, r1, r0)

	// R14 is r0.
	MULA	R14, R4, R11, R12

	// What is 2^130 and more is worth five times as much at the bottom.
	BIC	$3, R12, R14
	ADD	R12>>2, R14
	AND	$3, R12, R4
	MOVW	m+4(FP), R11
	MOVW	n+8(FP), R12
	ADD.S	R14, R6, R0
	ADC.S	$0, R7, R1
	ADC.S	$0, R8, R2
	ADC.S	$0, R9, R3
	ADC	$0, R4
	SUB.S	$1, R12
	MOVW	R12, n+8(FP)
	BNE	block

	MOVW	R0, 0(R5)
	MOVW	R1, 4(R5)
	MOVW	R2, 8(R5)
	MOVW	R3, 12(R5)
	MOVW	R4, 16(R5)
	RET
