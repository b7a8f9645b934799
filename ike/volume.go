package ike

import (
	"time"

	"postern/esp"
)

// Lifetimes in packets and octets (RFC 4301 section 4.4.2.1). Only the data path sees the
// traffic: it gets the limits with each SA, refuses what goes beyond the hard one, and tells
// by CmdLimit when one is reached. Both directions of a pair are measured, each for itself.

// volumeLimits returns the limits of a new CHILD SA: the soft ones with their jitter, each
// direction with its own so that two sides of the same configuration rarely rekey at once.
func (m *Machine) volumeLimits(c *Child) (soft, hard esp.Usage) {
	soft.Bytes, hard.Bytes = m.volumeLimit(c.RekeyBytes, c.LifeBytes, c.RandBytes)
	soft.Packets, hard.Packets = m.volumeLimit(c.RekeyPackets, c.LifePackets, c.RandPackets)
	return soft, hard
}

func (m *Machine) volumeLimit(rekey, life, rand uint64) (soft, hard uint64) {
	if rekey == 0 {
		return 0, life
	}
	if life == 0 {
		life = rekey + max(rekey/10, 1)
	}
	// A time of that many nanoseconds is as random as any other number.
	less := uint64(m.random(time.Duration(min(rand, rekey-1, 1<<62))))
	return rekey - less, life
}

// cmdLimit follows what the data path tells of a limit: the soft one has the CHILD SA
// rekeyed, the hard one is its end, as that of its time is.
func (m *Machine) cmdLimit(cmd *Command) {
	for i := range m.children {
		c := &m.children[i]
		if c.spiIn != cmd.SPI || c.state != ChildInstalled && c.state != ChildRekeying {
			continue
		}
		if cmd.Hard {
			m.fireChild(c, tcExpire)
		} else {
			m.fireChild(c, tcRekey)
		}
		return
	}
}
