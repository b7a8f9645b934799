//go:build linux

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestStarOfTheSamples runs configs/hub.toml and configs/spoke.toml: two spokes reach each other
// through the hub, and nothing of it is on the WAN in clear.
func TestStarOfTheSamples(t *testing.T) {
	ready(t, pair{"postern", "postern"})
	s := newSite(t)
	s.ip(s.wan, "addr add 192.0.2.1/32 dev lo\n")
	sample := func(side byte, name string, replace ...string) *postern {
		text, err := os.ReadFile(filepath.Join("..", "..", "configs", name))
		if err != nil {
			t.Fatal(err)
		}
		d := newPostern(s, side, spec{conns: []conn{{}}})
		d.write(fmt.Sprintf("[daemon]\ncontrol = %q\nstate_dir = %q\n", d.socket(), filepath.Join(d.dir, "state")) +
			strings.NewReplacer(replace...).Replace(string(text)))
		d.start()
		return d
	}
	c := s.capture()
	hub := sample('w', "hub.toml")
	one := sample('a', "spoke.toml")
	two := sample('b', "spoke.toml", "spoke1", "spoke2", "10.1.0.0/16", "10.2.0.0/16", "EXAMPLE-put-the-output-of-postern-psk-here", "EXAMPLE-and-another-one-for-each-spoke")
	for _, d := range []*postern{one, two} {
		if !eventually(20*time.Second, func() bool {
			ch := children(d, "star")
			return len(ch) == 1 && ch[0].state == "INSTALLED"
		}) {
			t.Fatalf("a spoke does not come up%s", logs(hub, one, two))
		}
	}
	s.mustPing(t, false, hub, one, two)
	if in, out := children(hub, "star"), children(one, "star"); len(in) != 2 || len(out) != 1 || out[0].packetsOut != 10 {
		t.Errorf("the hub has %+v, the spoke %+v after ten echo requests and their answers%s", in, out, logs(hub, one, two))
	}
	c.stop().nothingInClear(t, []byte(mark))
}
