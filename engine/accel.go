package engine

import (
	"postern/engine/log"
	"postern/esp/chapoly"
)

// chooseCrypto takes the fastest routines that the processor is said to have, after a test
// that it has them: where the flags are wrong, the plain code serves.
func chooseCrypto(cpu chapoly.CPU, lg *log.Logger) {
	best := chapoly.Best(cpu)
	err := chapoly.Use(best)
	if err == nil {
		err = chapoly.SelfTest()
	}
	if err == nil {
		lg.Log(log.ESP, log.Debug, "ChaCha20-Poly1305 is computed by", log.Str("routine", best.String()))
		return
	}
	lg.Log(log.ESP, log.Warn, "ChaCha20-Poly1305 falls back to plain code: the processor does not compute what its flags promise",
		log.Str("routine", best.String()), log.Err(err))
	_ = chapoly.Use(chapoly.Plain) // every program has it
}
