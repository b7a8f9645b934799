//go:build !(amd64 || arm64)

package platform

// AESInstructions returns false: Go's library knows none for AES-GCM on this processor.
func AESInstructions() bool { return false }
