//go:build !purego

#include "textflag.h"

// A vector of 64 octets holds four blocks. GHASH works on blocks with their octets reversed.
//
//	Z0–Z3    counter blocks, key stream; then products
//	Z4       the next four counter blocks, octets reversed
//	Z5       4 in each block's counter
//	Z6–Z8    sums of products: bits 0 to 127, 64 to 191, 128 to 255
//	X9       GHASH so far
//	Z10–Z13  text, then ciphertext with octets reversed
//	Z14      the polynomial
//	Z15      powers of H
//	Z16–Z25  round keys 0 to 9, Z26–Z29 those from 10 on of longer keys, Z30 the last
//	Z31      how to reverse octets
//
// Offsets in wideKey:
#define ROUND_KEYS 320
#define ROUNDS     560

DATA reverse<>+0(SB)/8, $0x08090a0b0c0d0e0f
DATA reverse<>+8(SB)/8, $0x0001020304050607
GLOBL reverse<>(SB), RODATA|NOPTR, $16

DATA poly<>+0(SB)/8, $1
DATA poly<>+8(SB)/8, $0xc200000000000000
GLOBL poly<>(SB), RODATA|NOPTR, $16

// What is added to the counter of the tag's mask for the first four blocks, and for the next.
DATA first<>+0(SB)/8, $1
DATA first<>+8(SB)/8, $0
DATA first<>+16(SB)/8, $2
DATA first<>+24(SB)/8, $0
DATA first<>+32(SB)/8, $3
DATA first<>+40(SB)/8, $0
DATA first<>+48(SB)/8, $4
DATA first<>+56(SB)/8, $0
GLOBL first<>(SB), RODATA|NOPTR, $64

DATA four<>+0(SB)/8, $4
DATA four<>+8(SB)/8, $0
GLOBL four<>(SB), RODATA|NOPTR, $16

// One round of Z0 to Z3.
#define ROUND4(key) \
	VAESENC key, Z0, Z0; \
	VAESENC key, Z1, Z1; \
	VAESENC key, Z2, Z2; \
	VAESENC key, Z3, Z3

// The rounds of Z0 that every length of key has, but for the last.
#define NINE_ROUNDS \
	VAESENC Z17, Z0, Z0; \
	VAESENC Z18, Z0, Z0; \
	VAESENC Z19, Z0, Z0; \
	VAESENC Z20, Z0, Z0; \
	VAESENC Z21, Z0, Z0; \
	VAESENC Z22, Z0, Z0; \
	VAESENC Z23, Z0, Z0; \
	VAESENC Z24, Z0, Z0; \
	VAESENC Z25, Z0, Z0

// The reduction of Z6 to Z8, modulo the polynomial, lane by lane, to Z8.
#define REDUCE \
	VPCLMULQDQ $0x01, Z6, Z14, Z0; \
	VPSHUFD    $0x4e, Z6, Z6;      \
	VPTERNLOGQ $0x96, Z0, Z6, Z7;  \
	VPCLMULQDQ $0x01, Z7, Z14, Z0; \
	VPSHUFD    $0x4e, Z7, Z7;      \
	VPTERNLOGQ $0x96, Z0, Z7, Z8

// The sum of the lanes of Z8, to X9.
#define SUM_LANES \
	VEXTRACTI64X4 $1, Z8, Y0; \
	VPXOR         Y0, Y8, Y8; \
	VEXTRACTI128  $1, Y8, X0; \
	VPXOR         X0, X8, X9

// Adds the products of text and Z15 to Z6, Z7 and Z8.
#define ADD_PRODUCTS(text) \
	VPCLMULQDQ $0x00, Z15, text, Z0; \
	VPCLMULQDQ $0x01, Z15, text, Z1; \
	VPCLMULQDQ $0x10, Z15, text, Z2; \
	VPCLMULQDQ $0x11, Z15, text, Z3; \
	VPXORQ     Z0, Z6, Z6;           \
	VPTERNLOGQ $0x96, Z1, Z2, Z7;    \
	VPXORQ     Z3, Z8, Z8

// Multiplies X9 by X15.
#define MULTIPLY \
	VPCLMULQDQ $0x00, X15, X9, X6; \
	VPCLMULQDQ $0x01, X15, X9, X7; \
	VPCLMULQDQ $0x10, X15, X9, X1; \
	VPCLMULQDQ $0x11, X15, X9, X8; \
	VPXOR      X1, X7, X7;         \
	VPCLMULQDQ $0x01, X6, X14, X0; \
	VPSHUFD    $0x4e, X6, X6;      \
	VPXOR      X6, X7, X7;         \
	VPXOR      X0, X7, X7;         \
	VPCLMULQDQ $0x01, X7, X14, X0; \
	VPSHUFD    $0x4e, X7, X7;      \
	VPXOR      X7, X8, X8;         \
	VPXOR      X0, X8, X9

// func widePowers(k *wideKey)
TEXT ·widePowers(SB), NOSPLIT, $0-8
	MOVQ k+0(FP), AX
	VMOVDQU poly<>(SB), X14
	VMOVDQU 240(AX), X15
	VMOVDQA X15, X9
	MOVQ $224, BX

power:
	MULTIPLY
	VMOVDQU X9, (AX)(BX*1)
	SUBQ $16, BX
	JGE  power
	VZEROUPPER
	RET

// func wideCrypt(k *wideKey, dst, src *byte, n int, additional *byte, na int, first, tag *[16]byte, open bool)
TEXT ·wideCrypt(SB), NOSPLIT, $0-65
	MOVQ k+0(FP), AX
	MOVQ dst+8(FP), DI
	MOVQ src+16(FP), SI
	MOVQ n+24(FP), CX
	MOVQ additional+32(FP), R8
	MOVQ na+40(FP), R9
	MOVQ first+48(FP), R10
	MOVQ tag+56(FP), R11
	MOVBLZX open+64(FP), R12

	VBROADCASTI32X4 reverse<>(SB), Z31
	VBROADCASTI32X4 poly<>(SB), Z14
	VBROADCASTI32X4 four<>(SB), Z5
	MOVQ ROUNDS(AX), BX
	VBROADCASTI32X4 (ROUND_KEYS+0)(AX), Z16
	VBROADCASTI32X4 (ROUND_KEYS+16)(AX), Z17
	VBROADCASTI32X4 (ROUND_KEYS+32)(AX), Z18
	VBROADCASTI32X4 (ROUND_KEYS+48)(AX), Z19
	VBROADCASTI32X4 (ROUND_KEYS+64)(AX), Z20
	VBROADCASTI32X4 (ROUND_KEYS+80)(AX), Z21
	VBROADCASTI32X4 (ROUND_KEYS+96)(AX), Z22
	VBROADCASTI32X4 (ROUND_KEYS+112)(AX), Z23
	VBROADCASTI32X4 (ROUND_KEYS+128)(AX), Z24
	VBROADCASTI32X4 (ROUND_KEYS+144)(AX), Z25
	VBROADCASTI32X4 (ROUND_KEYS+160)(AX), Z26
	VBROADCASTI32X4 (ROUND_KEYS+176)(AX), Z27
	VBROADCASTI32X4 (ROUND_KEYS+192)(AX), Z28
	VBROADCASTI32X4 (ROUND_KEYS+208)(AX), Z29
	MOVQ BX, DX
	SHLQ $4, DX
	VBROADCASTI32X4 ROUND_KEYS(AX)(DX*1), Z30

	// The tag's mask, which waits where the tag will be, and the counters behind it.
	VBROADCASTI32X4 (R10), Z4
	VPXORQ  Z16, Z4, Z0
	VPSHUFB Z31, Z4, Z4
	VPADDD  first<>(SB), Z4, Z4
	NINE_ROUNDS
	CMPQ BX, $12
	JB   mask
	VAESENC Z26, Z0, Z0
	VAESENC Z27, Z0, Z0
	JE   mask
	VAESENC Z28, Z0, Z0
	VAESENC Z29, Z0, Z0

mask:
	VAESENCLAST Z30, Z0, Z0
	VMOVDQU X0, (R11)

	// The associated data, block by block.
	VPXOR X9, X9, X9
	MOVQ  R9, R13
	JMP   additionalNext

additionalBlock:
	MOVQ $16, DX
	CMPQ R13, DX
	CMOVQLT R13, DX
	MOVQ $-1, R14
	BZHIQ DX, R14, R14
	KMOVQ R14, K1
	VMOVDQU8.Z (R8), K1, Z10
	VPSHUFB Z31, Z10, Z10
	VPXOR   X10, X9, X9
	VMOVDQU 240(AX), X15
	MULTIPLY
	ADDQ DX, R8
	SUBQ DX, R13

additionalNext:
	TESTQ R13, R13
	JNE   additionalBlock

	MOVQ CX, R13
	CMPQ R13, $256
	JB   tail

	// Sixteen blocks a time.
chunk:
	VMOVDQU64 (SI), Z10
	VMOVDQU64 64(SI), Z11
	VMOVDQU64 128(SI), Z12
	VMOVDQU64 192(SI), Z13
	VPSHUFB Z31, Z4, Z0
	VPADDD  Z5, Z4, Z4
	VPSHUFB Z31, Z4, Z1
	VPADDD  Z5, Z4, Z4
	VPSHUFB Z31, Z4, Z2
	VPADDD  Z5, Z4, Z4
	VPSHUFB Z31, Z4, Z3
	VPADDD  Z5, Z4, Z4
	VPXORQ  Z16, Z0, Z0
	VPXORQ  Z16, Z1, Z1
	VPXORQ  Z16, Z2, Z2
	VPXORQ  Z16, Z3, Z3
	ROUND4(Z17)
	ROUND4(Z18)
	ROUND4(Z19)
	ROUND4(Z20)
	ROUND4(Z21)
	ROUND4(Z22)
	ROUND4(Z23)
	ROUND4(Z24)
	ROUND4(Z25)
	CMPQ BX, $12
	JB   chunkLast
	ROUND4(Z26)
	ROUND4(Z27)
	JE   chunkLast
	ROUND4(Z28)
	ROUND4(Z29)

chunkLast:
	VAESENCLAST Z30, Z0, Z0
	VAESENCLAST Z30, Z1, Z1
	VAESENCLAST Z30, Z2, Z2
	VAESENCLAST Z30, Z3, Z3
	VPXORQ  Z10, Z0, Z0
	VPXORQ  Z11, Z1, Z1
	VPXORQ  Z12, Z2, Z2
	VPXORQ  Z13, Z3, Z3
	VMOVDQU64 Z0, (DI)
	VMOVDQU64 Z1, 64(DI)
	VMOVDQU64 Z2, 128(DI)
	VMOVDQU64 Z3, 192(DI)
	TESTQ R12, R12
	JNE   chunkHash
	VMOVDQA64 Z0, Z10
	VMOVDQA64 Z1, Z11
	VMOVDQA64 Z2, Z12
	VMOVDQA64 Z3, Z13

chunkHash:
	VPSHUFB Z31, Z10, Z10
	VPSHUFB Z31, Z11, Z11
	VPSHUFB Z31, Z12, Z12
	VPSHUFB Z31, Z13, Z13
	VPXORQ  Z9, Z10, Z10
	VMOVDQU64 (AX), Z15
	VPCLMULQDQ $0x00, Z15, Z10, Z6
	VPCLMULQDQ $0x01, Z15, Z10, Z7
	VPCLMULQDQ $0x10, Z15, Z10, Z0
	VPCLMULQDQ $0x11, Z15, Z10, Z8
	VPXORQ  Z0, Z7, Z7
	VMOVDQU64 64(AX), Z15
	ADD_PRODUCTS(Z11)
	VMOVDQU64 128(AX), Z15
	ADD_PRODUCTS(Z12)
	VMOVDQU64 192(AX), Z15
	ADD_PRODUCTS(Z13)
	REDUCE
	SUM_LANES
	ADDQ $256, SI
	ADDQ $256, DI
	SUBQ $256, R13
	CMPQ R13, $256
	JAE  chunk

	// What is left, in pieces of four blocks: each block with the power of H that fits its place
	// from the end. Behind the first power come zeros, for blocks that are not there.
tail:
	TESTQ R13, R13
	JE    lengths
	LEAQ  15(R13), DX
	SHRQ  $4, DX
	NEGQ  DX
	ADDQ  $16, DX
	SHLQ  $4, DX
	LEAQ  (AX)(DX*1), R8 // the powers
	VPXORQ Z6, Z6, Z6
	VPXORQ Z7, Z7, Z7
	VPXORQ Z8, Z8, Z8

piece:
	MOVQ $64, DX
	CMPQ R13, DX
	CMOVQLT R13, DX
	MOVQ $-1, R14
	BZHIQ DX, R14, R14
	KMOVQ R14, K1
	VMOVDQU8.Z (SI), K1, Z10
	VPSHUFB Z31, Z4, Z0
	VPADDD  Z5, Z4, Z4
	VPXORQ  Z16, Z0, Z0
	NINE_ROUNDS
	CMPQ BX, $12
	JB   pieceLast
	VAESENC Z26, Z0, Z0
	VAESENC Z27, Z0, Z0
	JE   pieceLast
	VAESENC Z28, Z0, Z0
	VAESENC Z29, Z0, Z0

pieceLast:
	VAESENCLAST Z30, Z0, Z0
	VPXORQ  Z10, Z0, Z0
	VMOVDQU8 Z0, K1, (DI)
	TESTQ R12, R12
	JNE   pieceHash
	VMOVDQU8.Z Z0, K1, Z10

pieceHash:
	VPSHUFB Z31, Z10, Z10
	VPXORQ  Z9, Z10, Z10 // of the first piece alone
	VPXOR   X9, X9, X9
	VMOVDQU64 (R8), Z15
	ADD_PRODUCTS(Z10)
	ADDQ $64, R8
	ADDQ DX, SI
	ADDQ DX, DI
	SUBQ DX, R13
	JNE  piece
	REDUCE
	SUM_LANES

	// The lengths in bits, and the tag.
lengths:
	SHLQ $3, CX
	SHLQ $3, R9
	VMOVQ CX, X10
	VPINSRQ $1, R9, X10, X10
	VPXOR X10, X9, X9
	VMOVDQU 240(AX), X15
	MULTIPLY
	VPSHUFB X31, X9, X9
	VPXOR (R11), X9, X9
	VMOVDQU X9, (R11)
	VZEROUPPER
	RET
