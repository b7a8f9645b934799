package engine

import (
	"postern/engine/log"
	"postern/esp/ctaes"
	"postern/ike"
)

// ChooseCrypto takes the routines that New would take on that processor, for measurements
// without an engine, and tells whether AES is computed by its instructions.
func ChooseCrypto(cpu CPU, lg *log.Logger) (aes bool) {
	chooseCrypto(cpu, nil, lg)
	return ctaes.Current() != ctaes.Sliced
}

// DefaultProposals returns what tells the proposals of the word "default" on that processor.
func DefaultProposals(cpu CPU) func(ike.Protocol) []ike.Proposal {
	return func(proto ike.Protocol) []ike.Proposal { return ike.DefaultProposals(proto, cpu.CipherOrder()) }
}
