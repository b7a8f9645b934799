package ike

import (
	"fmt"

	"postern/esp"
)

// ParseSuite returns what a proposal for ESP or AH in strongSwan's notation stands for where
// nobody negotiates: it must leave no choice, and have no group.
func ParseSuite(proto Protocol, text string) (esp.Suite, error) {
	ps, err := ParseProposal(proto, text, AESFirst)
	if err != nil {
		return esp.Suite{}, err
	}
	if len(ps) != 1 {
		return esp.Suite{}, fmt.Errorf("proposal %q: is more than one suite, write one such as aes256-sha256", text)
	}
	suite, group, err := ps[0].childSuite()
	switch {
	case err != nil:
		return suite, fmt.Errorf("proposal %q: must be one suite: %w", text, err)
	case group != DHNone:
		return suite, fmt.Errorf("proposal %q: has a group, but nothing is negotiated; leave it out", text)
	}
	return suite, nil
}
