package engine

import (
	"postern/engine/log"
	"postern/esp/chapoly"
	"postern/ike"
)

// ChooseCrypto takes the routines that New would take on that processor, for measurements
// without an engine.
func ChooseCrypto(cpu CPU, lg *log.Logger) {
	chooseCrypto(chapoly.CPU{Rotate: cpu.MIPSRelease2}, lg)
}

// DefaultProposals are those of the word "default" on this device.
func DefaultProposals(proto ike.Protocol) []ike.Proposal { return ike.DefaultProposals(proto) }
