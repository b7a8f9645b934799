//go:build !purego

#include "textflag.h"

// Words of 64 bits are summed up, and their sums overflow. But the sum of the upper halves
// does not, and with that the words' sum modulo 2^64 tells the one of the lower halves.
//
//	Y0, Y2   words, modulo 2^64
//	Y1, Y3   their upper halves
//	Y4, Y5   words that are read
//	Y6, Y7   their upper halves

// The mask that keeps the last n of 32 octets starts at octet n.
DATA lastOctets<>+0(SB)/8, $0
DATA lastOctets<>+8(SB)/8, $0
DATA lastOctets<>+16(SB)/8, $0
DATA lastOctets<>+24(SB)/8, $0
DATA lastOctets<>+32(SB)/8, $-1
DATA lastOctets<>+40(SB)/8, $-1
DATA lastOctets<>+48(SB)/8, $-1
DATA lastOctets<>+56(SB)/8, $-1
GLOBL lastOctets<>(SB), RODATA|NOPTR, $64

#define ADD(words, upper, sum, sumUpper) \
	VPSRLQ $32, words, upper         \
	VPADDQ words, sum, sum           \
	VPADDQ upper, sumUpper, sumUpper

// func sumVectors(p *byte, n int) uint64
TEXT ·sumVectors(SB), NOSPLIT, $0-24
	MOVQ p+0(FP), SI
	MOVQ n+8(FP), CX
	MOVQ CX, DX
	ANDQ $31, DX
	VPXOR Y0, Y0, Y0
	VPXOR Y1, Y1, Y1
	VPXOR Y2, Y2, Y2
	VPXOR Y3, Y3, Y3
	SUBQ $64, CX
	JB   rest

loop:
	VMOVDQU (SI), Y4
	VMOVDQU 32(SI), Y5
	ADD(Y4, Y6, Y0, Y1)
	ADD(Y5, Y7, Y2, Y3)
	ADDQ    $64, SI
	SUBQ    $64, CX
	JAE     loop

rest:
	TESTQ   $32, CX
	JZ      last
	VMOVDQU (SI), Y4
	ADD(Y4, Y6, Y0, Y1)
	ADDQ    $32, SI

	// DX octets are left. The 32 that end with them are there to be read.
last:
	VMOVDQU -32(SI)(DX*1), Y5
	LEAQ    lastOctets<>(SB), AX
	VPAND   (AX)(DX*1), Y5, Y5
	ADD(Y5, Y7, Y2, Y3)

	// Both halves of all words, then of four lanes one.
	VPADDQ       Y2, Y0, Y0
	VPADDQ       Y3, Y1, Y1
	VPSLLQ       $32, Y1, Y2
	VPSUBQ       Y2, Y0, Y0
	VPADDQ       Y1, Y0, Y0
	VEXTRACTI128 $1, Y0, X1
	VPADDQ       X1, X0, X0
	VPSRLDQ      $8, X0, X1
	VPADDQ       X1, X0, X0
	VMOVQ        X0, ret+16(FP)
	VZEROUPPER
	RET
