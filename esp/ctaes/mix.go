package ctaes

// ShiftRows is never carried out. After i rounds the octet of row r and column c is where
// that of column c + i*r was at first, and everything else goes by that: the round keys
// are stored so, and MixColumns looks for the next row's octet i columns further. (The idea
// is that of A. Adomnicai and T. Peyrin, "Fixslicing AES-like ciphers", 2020.) What four
// rounds shift is nothing, so there are four kinds of MixColumns; mixN is for the rounds
// after which i is N modulo 4.

// turn returns the word in which the octets of the next row and of n columns on have come to
// every place: part of a row from n columns up, the rest from 4-n down. low is the first part.
func turn(x, n, low uint) uint {
	if n != 0 {
		y := x << (field - n*lanes)
		x = (x>>(n*lanes)^y)&low ^ y
	}
	return x>>field | x<<(wordBits-field)
}

// turn2 is turn of two rows and n columns.
func turn2(x, n, low uint) uint {
	if n != 0 {
		y := x << (2 * lanes)
		x = (x>>(2*lanes)^y)&low ^ y
	}
	return x>>(2*field) | x<<(2*field)
}

// lowColumns has n at n: the columns of every row that are below 4-n. They are variables, since
// the compiler makes constants of that size anew wherever they stand.
var lowColumns = [4]uint{ones, each * (1<<(3*lanes) - 1), each * (1<<(2*lanes) - 1), each * (1<<lanes - 1)}

func mix0(s, k *slice) {
	b0, b1, b2, b3 := turn(s[0], 0, 0), turn(s[1], 0, 0), turn(s[2], 0, 0), turn(s[3], 0, 0)
	b4, b5, b6, b7 := turn(s[4], 0, 0), turn(s[5], 0, 0), turn(s[6], 0, 0), turn(s[7], 0, 0)
	t0, t1, t2, t3 := s[0]^b0, s[1]^b1, s[2]^b2, s[3]^b3
	t4, t5, t6, t7 := s[4]^b4, s[5]^b5, s[6]^b6, s[7]^b7
	s[0] = k[0] ^ b0 ^ turn2(t0, 0, 0) ^ t7
	s[1] = k[1] ^ b1 ^ turn2(t1, 0, 0) ^ t0 ^ t7
	s[2] = k[2] ^ b2 ^ turn2(t2, 0, 0) ^ t1
	s[3] = k[3] ^ b3 ^ turn2(t3, 0, 0) ^ t2 ^ t7
	s[4] = k[4] ^ b4 ^ turn2(t4, 0, 0) ^ t3 ^ t7
	s[5] = k[5] ^ b5 ^ turn2(t5, 0, 0) ^ t4
	s[6] = k[6] ^ b6 ^ turn2(t6, 0, 0) ^ t5
	s[7] = k[7] ^ b7 ^ turn2(t7, 0, 0) ^ t6
}

func mix1(s, k *slice) {
	low, half := lowColumns[1], lowColumns[2]
	b0, b1, b2, b3 := turn(s[0], 1, low), turn(s[1], 1, low), turn(s[2], 1, low), turn(s[3], 1, low)
	b4, b5, b6, b7 := turn(s[4], 1, low), turn(s[5], 1, low), turn(s[6], 1, low), turn(s[7], 1, low)
	t0, t1, t2, t3 := s[0]^b0, s[1]^b1, s[2]^b2, s[3]^b3
	t4, t5, t6, t7 := s[4]^b4, s[5]^b5, s[6]^b6, s[7]^b7
	s[0] = k[0] ^ b0 ^ turn2(t0, 2, half) ^ t7
	s[1] = k[1] ^ b1 ^ turn2(t1, 2, half) ^ t0 ^ t7
	s[2] = k[2] ^ b2 ^ turn2(t2, 2, half) ^ t1
	s[3] = k[3] ^ b3 ^ turn2(t3, 2, half) ^ t2 ^ t7
	s[4] = k[4] ^ b4 ^ turn2(t4, 2, half) ^ t3 ^ t7
	s[5] = k[5] ^ b5 ^ turn2(t5, 2, half) ^ t4
	s[6] = k[6] ^ b6 ^ turn2(t6, 2, half) ^ t5
	s[7] = k[7] ^ b7 ^ turn2(t7, 2, half) ^ t6
}

func mix2(s, k *slice) {
	low := lowColumns[2]
	b0, b1, b2, b3 := turn(s[0], 2, low), turn(s[1], 2, low), turn(s[2], 2, low), turn(s[3], 2, low)
	b4, b5, b6, b7 := turn(s[4], 2, low), turn(s[5], 2, low), turn(s[6], 2, low), turn(s[7], 2, low)
	t0, t1, t2, t3 := s[0]^b0, s[1]^b1, s[2]^b2, s[3]^b3
	t4, t5, t6, t7 := s[4]^b4, s[5]^b5, s[6]^b6, s[7]^b7
	s[0] = k[0] ^ b0 ^ turn2(t0, 0, 0) ^ t7
	s[1] = k[1] ^ b1 ^ turn2(t1, 0, 0) ^ t0 ^ t7
	s[2] = k[2] ^ b2 ^ turn2(t2, 0, 0) ^ t1
	s[3] = k[3] ^ b3 ^ turn2(t3, 0, 0) ^ t2 ^ t7
	s[4] = k[4] ^ b4 ^ turn2(t4, 0, 0) ^ t3 ^ t7
	s[5] = k[5] ^ b5 ^ turn2(t5, 0, 0) ^ t4
	s[6] = k[6] ^ b6 ^ turn2(t6, 0, 0) ^ t5
	s[7] = k[7] ^ b7 ^ turn2(t7, 0, 0) ^ t6
}

func mix3(s, k *slice) {
	low, half := lowColumns[3], lowColumns[2]
	b0, b1, b2, b3 := turn(s[0], 3, low), turn(s[1], 3, low), turn(s[2], 3, low), turn(s[3], 3, low)
	b4, b5, b6, b7 := turn(s[4], 3, low), turn(s[5], 3, low), turn(s[6], 3, low), turn(s[7], 3, low)
	t0, t1, t2, t3 := s[0]^b0, s[1]^b1, s[2]^b2, s[3]^b3
	t4, t5, t6, t7 := s[4]^b4, s[5]^b5, s[6]^b6, s[7]^b7
	s[0] = k[0] ^ b0 ^ turn2(t0, 2, half) ^ t7
	s[1] = k[1] ^ b1 ^ turn2(t1, 2, half) ^ t0 ^ t7
	s[2] = k[2] ^ b2 ^ turn2(t2, 2, half) ^ t1
	s[3] = k[3] ^ b3 ^ turn2(t3, 2, half) ^ t2 ^ t7
	s[4] = k[4] ^ b4 ^ turn2(t4, 2, half) ^ t3 ^ t7
	s[5] = k[5] ^ b5 ^ turn2(t5, 2, half) ^ t4
	s[6] = k[6] ^ b6 ^ turn2(t6, 2, half) ^ t5
	s[7] = k[7] ^ b7 ^ turn2(t7, 2, half) ^ t6
}

// unmix is InvMixColumns with the octets where they are after i rounds. Its matrix is that of
// MixColumns times one that takes each column to a + 4*(a + the column turned by two).
func (s *slice) unmix(i int) {
	var t slice
	for j := range s {
		if i&1 == 0 {
			t[j] = s[j] ^ turn2(s[j], 0, 0)
		} else {
			t[j] = s[j] ^ turn2(s[j], 2, lowColumns[2])
		}
	}
	for range 2 { // times x, modulo x^8 + x^4 + x^3 + x + 1
		high := t[7]
		t[7], t[6], t[5], t[4], t[3], t[2], t[1], t[0] = t[6], t[5], t[4], t[3]^high, t[2]^high, t[1], t[0]^high, high
	}
	s.xor(&t)
	var none slice
	switch i & 3 {
	case 0:
		mix0(s, &none)
	case 1:
		mix1(s, &none)
	case 2:
		mix2(s, &none)
	case 3:
		mix3(s, &none)
	}
}
