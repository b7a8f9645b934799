package cli

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"runtime"
)

var versionCommand = Command{
	Name:    "version",
	Summary: "print the version",
	Help: `Prints the version of this program and what it was built for.

  postern version --json`,
	Run: runVersion,
}

func runVersion(sys *System, cmd *Command, args []string) int {
	o := newOptions(sys, cmd)
	asJSON := o.Bool("json", false, "print JSON")
	if _, status, ok := o.parse(args, 0, 0); !ok {
		return status
	}
	if !*asJSON {
		sys.printf("postern %s (%s/%s, %s)\n", sys.Version, runtime.GOOS, runtime.GOARCH, runtime.Version())
		return ExitOK
	}
	var j jsonWriter
	j.open("", '{')
	j.str("version", sys.Version)
	j.str("os", runtime.GOOS)
	j.str("arch", runtime.GOARCH)
	j.str("go", runtime.Version())
	j.close('}')
	_, _ = sys.Stdout.Write(j.bytes())
	return ExitOK
}

// Bounds of a generated key in bits: less can be guessed, more is of no use with any
// PRF that is negotiated.
const (
	minKeyBits = 128
	maxKeyBits = 512
)

var pskCommand = Command{
	Name:    "psk",
	Summary: "print a fresh pre-shared key",
	Help: `Prints a fresh random key, in the form that both postern and strongSwan read,
and how to use it. Only the key goes to standard output:

  (umask 077; postern psk > /etc/postern/plant.key)`,
	Run: runPSK,
}

func runPSK(sys *System, cmd *Command, args []string) int {
	o := newOptions(sys, cmd)
	bits := o.Int("bits", 256, fmt.Sprintf("strength `N` in bits, %d to %d", minKeyBits, maxKeyBits))
	if _, status, ok := o.parse(args, 0, 0); !ok {
		return status
	}
	if *bits < minKeyBits || *bits > maxKeyBits || *bits%8 != 0 {
		sys.errorf("psk: --bits must be a multiple of 8 from %d to %d, not %d", minKeyBits, maxKeyBits, *bits)
		return ExitUsage
	}
	key := make([]byte, *bits/8)
	_, _ = rand.Read(key) // never fails: Go ends the program if the system has no randomness
	text := "0s" + base64.StdEncoding.EncodeToString(key)
	clear(key)
	if _, err := fmt.Fprintln(sys.Stdout, text); err != nil {
		sys.errorf("psk: %v", err)
		return ExitFailed
	}
	fmt.Fprint(sys.Stderr, `
Put it into the configuration of both sides, in files with mode 600:

  [secrets.NAME]
  id = ["our identity", "the peer's identity"]
  secret = "the key, with its 0s"

strongSwan takes it as 'secret = ...' in a section 'ike-NAME' of 'secrets' in
swanctl.conf. Bring it to the other side in a way that nobody can read along.
`)
	return ExitOK
}
