//go:build amd64 || arm64

package platform

import (
	"runtime"

	"golang.org/x/sys/cpu"
)

// AESInstructions tells whether Go's library computes AES-GCM with instructions of this
// processor.
func AESInstructions() bool {
	if runtime.GOARCH == "amd64" {
		return cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ
	}
	return cpu.ARM64.HasAES && cpu.ARM64.HasPMULL
}
