//go:build !(amd64 || arm64) || purego

package ctaes

// Detect finds out what the processor has: nothing that the library would use.
func Detect() CPU { return CPU{} }
