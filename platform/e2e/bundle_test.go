//go:build linux

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// What 'postern pki bundle' writes is all that two gateways need: the left one brings the link up
// by itself, and their networks reach each other.
func TestBundleBringsUpALink(t *testing.T) {
	need(t, "ping", "swanctl")
	t.Parallel()
	s := newSite(t)
	f := pkiFolder{t, posternBinary(t), filepath.Join(s.dir, "pki")}
	if err := os.Mkdir(f.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	f.do("bundle", "@link", "--left", "north.example", "--left-addr", gwA4.String(), "--left-net", lanA4,
		"--right", "south.example", "--right-addr", gwB4.String(), "--right-net", lanB4)
	var ends [2]*postern
	for i, name := range []string{"south.example", "north.example"} {
		side := byte('b' - i)
		d := &postern{t: t, s: s, side: side, bin: f.bin, dir: filepath.Join(f.dir, "link", name)}
		// Two daemons of one machine cannot share a control socket; all else is as it was written.
		d.write(f.read("link/"+name+"/postern.toml") + fmt.Sprintf("\n[daemon]\ncontrol = %q\nstate_dir = %q\n", d.socket(), filepath.Join(d.dir, "state")))
		d.start()
		ends[i] = d
	}
	if !eventually(25*time.Second, func() bool {
		_, err := s.run(s.lanA, "ping", "-c1", "-W1", hostB4.String())
		return err == nil
	}) {
		t.Fatalf("the networks do not reach each other%s", logs(ends[1], ends[0]))
	}
}
