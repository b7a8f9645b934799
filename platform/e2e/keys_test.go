//go:build linux

package e2e

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What postern sends is what the RFCs say, as an independent program reads it: tshark, with the
// keys that `postern sa keys` tells, checks every ICV of a capture and finds the echoes inside, each
// of their octets as it was sent.
func TestKeysDecryptACapture(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		esp, mode string
		encap     bool
	}{
		{"aes128gcm16", "tunnel", false},
		{"aes256gcm16", "transport", false},
		{"aes256gcm8", "beet", false},
		{"aes128gcm12", "tunnel", true},
		{"aes256-sha512", "tunnel", false},
		{"aes128-sha1", "transport", true},
		{"aes192ctr-sha384", "tunnel", false},
		{"null-sha256", "tunnel", false},
	} {
		t.Run(c.esp+" "+c.mode, func(t *testing.T) {
			need(t, "tshark")
			p := pair{"postern", "postern"}
			ready(t, p)
			s := newSite(t)
			ca, cb := pairSpecs(false, false)
			suite(&ca, &cb, usualIKE, c.esp)
			ns, to := s.lanA, hostB4
			for i, n := range []*spec{&ca, &cb} {
				n.exportKeys, n.conns[0].encap = true, c.encap
				ch := &n.conns[0].children[0]
				ch.mode = c.mode
				switch {
				case c.mode == "transport":
					ns, to = s.gwA, gwB4
					ch.localTS, ch.remoteTS = []string{"dynamic"}, []string{"dynamic"}
				case c.mode == "beet" && i == 0:
					ch.localTS, ch.remoteTS = []string{hostA4.String()}, []string{hostB4.String()}
				case c.mode == "beet":
					ch.localTS, ch.remoteTS = []string{hostB4.String()}, []string{hostA4.String()}
				}
			}
			a, b := startPair(s, p, ca, cb)
			mustInitiate(t, "net", a, b)
			w := s.capture()
			const echoes = 20
			if r := s.pings(ns, to, echoes); r.lost() > 0 {
				t.Fatalf("%v%s", r, logs(a, b))
			}
			w.stop()
			keys, err := a.(*postern).cli("sa", "keys")
			if err != nil || strings.Count(keys, "\n") != 2 {
				t.Fatalf("the keys of two SAs: %v: %d lines", err, strings.Count(keys, "\n"))
			}
			home := t.TempDir()
			if err := os.MkdirAll(filepath.Join(home, "wireshark"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(home, "wireshark", "esp_sa"), []byte(keys), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := command("env", "XDG_CONFIG_HOME="+home, "tshark", "-n", "-r", filepath.Join(s.dir, "a0.pcap"),
				"-o", "esp.enable_encryption_decode:TRUE", "-o", "esp.enable_authentication_check:TRUE",
				"-Y", "icmp.type == 8 || icmp.type == 0", "-T", "fields", "-e", "icmp.seq", "-e", "icmp.type", "-e", "data.data", "-e", "esp.icv_good", "-e", "icmp.checksum.status")
			if err != nil {
				t.Fatalf("tshark: %v: %s", err, out)
			}
			seen := map[string]bool{}
			want := hex.EncodeToString([]byte(mark))
			for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
				f := strings.Split(line, "\t")
				if len(f) < 5 || !strings.Contains(f[2], want) || f[4] != "1" {
					continue // tshark writes remarks of its own between the lines
				}
				if strings.Contains(f[3], "0") || strings.Contains(f[3], "False") {
					t.Errorf("tshark finds the ICV wrong: %s", line)
				}
				seen[f[0]+"/"+f[1]] = true
			}
			if len(seen) != 2*echoes {
				t.Errorf("tshark decrypts %d echo requests and replies of %d: %s", len(seen), 2*echoes, tail(out, 3))
			}
			if other, err := command(a.(*postern).bin, "sa", "keys", "--socket", filepath.Join(t.TempDir(), "none")); err == nil {
				t.Errorf("keys without a daemon: %s", other)
			}
		})
	}
}

// Nobody learns the keys unless the configuration says so.
func TestKeysAreNotTold(t *testing.T) {
	p := pair{"postern", "postern"}
	ready(t, p)
	s := newSite(t)
	ca, cb := pairSpecs(false, false)
	a, b := startPair(s, p, ca, cb)
	mustInitiate(t, "net", a, b)
	if out, err := a.(*postern).cli("sa", "keys"); err == nil || strings.Contains(out, "0x") || !strings.Contains(out, "export_keys") {
		t.Errorf("sa keys: %v: %s", err, out)
	}
}
