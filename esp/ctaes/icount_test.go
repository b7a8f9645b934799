//go:build icount && linux

package ctaes

import (
	"crypto/aes"
	"crypto/cipher"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"
	"testing"
)

// TestCountInstructions is run by .ci/icount/run in an emulator that counts what this thread
// executes between two marks. It writes to standard error, as the emulator does, so that
// each count follows its name.
func TestCountInstructions(t *testing.T) {
	const (
		mark    = 0x69636e74 // no such file descriptor; .ci/icount/plugin.c looks for it
		packets = 200
		octets  = 1400
	)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))

	key, nonce := make([]byte, 16), make([]byte, NonceSize)
	buf := make([]byte, 1500)
	count := func(name string, f func()) {
		f()
		os.Stderr.WriteString("count " + strconv.Itoa(packets*octets) + " " + name + "\n")
		syscall.Close(mark)
		for range packets {
			f()
		}
		syscall.Close(mark)
	}
	run := func(name string, a cipher.AEAD, b cipher.Block) {
		count("seal, "+name, func() { a.Seal(buf[16:16], nonce, buf[16:16+octets], buf[:8]) })
		sealed := a.Seal(nil, nonce, buf[16:16+octets], buf[:8])
		count("open, "+name, func() {
			copy(buf[16:], sealed) // not free, but the same for all
			if _, err := a.Open(buf[16:16], nonce, buf[16:16+len(sealed)], buf[:8]); err != nil {
				t.Fatal(err)
			}
		})
		const whole = octets &^ (blockLen - 1)
		enc, dec := cipher.NewCBCEncrypter(b, key), cipher.NewCBCDecrypter(b, key)
		count("CBC encrypt, "+name, func() { enc.CryptBlocks(buf[:whole], buf[:whole]) })
		count("CBC decrypt, "+name, func() { dec.CryptBlocks(buf[:whole], buf[:whole]) })
	}
	lib, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	libGCM, err := cipher.NewGCM(lib)
	if err != nil {
		t.Fatal(err)
	}
	run("library", libGCM, lib)
	ours, err := newBlock(key)
	if err != nil {
		t.Fatal(err)
	}
	run("constant time", newGCM(ours, Overhead), ours)
	var y hash
	g := newGCM(ours, Overhead).(*gcm)
	count("GHASH", func() { y.padded(&g.hash, buf[16:16+octets]) })
}
