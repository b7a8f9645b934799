package main

import (
	"os"
	"runtime"
	"time"

	"postern/engine"
	"postern/engine/bench"
	"postern/engine/log"
	"postern/platform"
)

// benchSystem is what 'postern bench' measures: this device, with the routines that the
// daemon would take.
func benchSystem() bench.System {
	engine.ChooseCrypto(engine.CPU{MIPSRelease2: platform.MIPSRelease2()}, log.New(os.Stderr, log.Warn))
	start := time.Now()
	return bench.System{
		Model: platform.CPUModel(), Arch: runtime.GOARCH, Cores: runtime.NumCPU(),
		AES:        aesRoutine(),
		Memory:     platform.MemoryTotal(),
		Now:        func() time.Duration { return time.Since(start) },
		ThreadTime: platform.ThreadTime,
		Proposals:  engine.DefaultProposals,
		OpenPath:   openBenchPath,
	}
}

// aesRoutine tells how Go's library computes AES-GCM on this processor.
func aesRoutine() bench.AES {
	if platform.AESInstructions() {
		return bench.AESHardware
	}
	return bench.AESTables
}

func openBenchPath(mtu int) (*bench.Path, error) {
	p, err := platform.OpenBenchPath(mtu)
	if err != nil {
		return nil, err
	}
	return &bench.Path{
		Device: p.TUN, Near: p.Near, Far: p.Far, To: p.To(),
		Inject: p.Inject, Close: p.Close,
		TUNFeatures: p.TUN.Features(), UDPFeatures: p.Far.Features(),
		Private: p.Private(),
	}, nil
}
