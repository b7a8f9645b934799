package ike

import "postern/ike/pki"

// keep tells the caller which of what it has fetched was authentic and of use, so that it need
// not be fetched again for the next peer. What nobody has vouched for would let whoever answers
// in the server's place decide for how long nothing better is asked for.
func (m *Machine) keep(got []pki.Fetched, used []int) {
	var kept []pki.Fetched
	for _, i := range used {
		if i >= 0 && i < len(got) && len(got[i].Body) > 0 {
			kept = append(kept, got[i])
		}
	}
	if len(kept) > 0 {
		m.out = append(m.out, Output{Kind: OutKeep, Kept: kept})
	}
}
