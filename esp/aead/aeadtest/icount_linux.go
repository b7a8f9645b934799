package aeadtest

import (
	"crypto/cipher"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"
	"testing"

	"postern/esp/aead"
)

// Octets is how many a packet has whose instructions are counted.
const Octets = 1400

// Counter has an emulator that .ci/icount/run starts count what this thread executes. It writes
// to standard error, as the emulator does, so that each count follows its name.
type Counter struct{ t *testing.T }

// NewCounter binds the test to its thread, and keeps the garbage collector away, to its end.
func NewCounter(t *testing.T) Counter {
	runtime.LockOSThread()
	percent := debug.SetGCPercent(-1)
	t.Cleanup(func() { debug.SetGCPercent(percent) })
	return Counter{t}
}

// Count counts what f executes, which handles Octets octets.
func (Counter) Count(name string, f func()) {
	const (
		mark    = 0x69636e74 // no such file descriptor; .ci/icount/plugin.c looks for it
		packets = 200
	)
	f()
	os.Stderr.WriteString("count " + strconv.Itoa(packets*Octets) + " " + name + "\n")
	syscall.Close(mark)
	for range packets {
		f()
	}
	syscall.Close(mark)
}

// SealAndOpen counts both, in place.
func (c Counter) SealAndOpen(name string, a cipher.AEAD) {
	buf, nonce := make([]byte, 1500), make([]byte, aead.NonceSize)
	c.Count("seal, "+name, func() { a.Seal(buf[16:16], nonce, buf[16:16+Octets], buf[:8]) })
	sealed := a.Seal(nil, nonce, buf[16:16+Octets], buf[:8])
	c.Count("open, "+name, func() {
		copy(buf[16:], sealed) // not free, but the same for all
		if _, err := a.Open(buf[16:16], nonce, buf[16:16+len(sealed)], buf[:8]); err != nil {
			c.t.Fatal(err)
		}
	})
}
