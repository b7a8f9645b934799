//go:build (amd64 || arm64) && !purego

package ctaes

import (
	"runtime"

	"golang.org/x/sys/cpu"
)

// Detect finds out what the processor has. The conditions are those under which the library
// uses the instructions.
func Detect() CPU {
	if runtime.GOARCH == "arm64" {
		return CPU{AES: cpu.ARM64.HasAES && cpu.ARM64.HasPMULL}
	}
	return CPU{AES: cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ && cpu.X86.HasSSE41 && cpu.X86.HasSSSE3, Wide: detectWide()}
}
