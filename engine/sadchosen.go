package engine

import "fmt"

// SPIs that somebody chose, for SAs that are not negotiated. Each takes the slot that its low bits
// name where that is free, and any other where it is not. Only packets of the latter, and of SPIs
// that do not exist, come to the small table of where these are.

// at returns the index of the slot that spi has, if it has any.
func (s *sad) at(spi uint32) uint32 {
	if m := s.displaced.Load(); m != nil {
		if i, ok := (*m)[spi]; ok {
			return i
		}
	}
	return spi & s.mask
}

// elsewhere returns the inbound SA of an SPI that is not in its own slot, or nil. It may be called
// from any goroutine.
func (s *sad) elsewhere(spi uint32) *inSA {
	if s.displaced.Load() == nil {
		return nil
	}
	if sa := s.slots[s.at(spi)].in.Load(); sa != nil && sa.spi == spi {
		return sa
	}
	return nil
}

// claim reserves a slot for an SPI of the caller's choice.
func (s *sad) claim(spi uint32) error {
	switch {
	case s.slot(spi) != nil:
		return fmt.Errorf("SPI 0x%08x is in use", spi)
	case s.nfree == 0:
		return fmt.Errorf("the table of SAs has no room: choose a larger board")
	}
	n := 0 // which of the free ones
	for i := range s.nfree {
		if s.free[(s.head+i)%len(s.free)] == spi&s.mask {
			n = i
		}
	}
	i := s.free[(s.head+n)%len(s.free)]
	for ; n > 0; n-- { // the others keep their order
		s.free[(s.head+n)%len(s.free)] = s.free[(s.head+n-1)%len(s.free)]
	}
	s.head = (s.head + 1) % len(s.free)
	s.nfree--
	s.slots[i].spi = spi
	s.displace(spi, i, true)
	return nil
}

// displace notes that spi has slot i, or has it no more.
func (s *sad) displace(spi, i uint32, is bool) {
	if i == spi&s.mask {
		return
	}
	m := map[uint32]uint32{}
	if was := s.displaced.Load(); was != nil {
		for k, v := range *was {
			m[k] = v
		}
	}
	if delete(m, spi); is {
		m[spi] = i
	}
	if len(m) == 0 {
		s.displaced.Store(nil)
		return
	}
	s.displaced.Store(&m)
}
