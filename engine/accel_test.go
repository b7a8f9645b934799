package engine

import (
	"errors"
	"strings"
	"testing"

	"postern/board"
	"postern/engine/config"
	"postern/engine/log"
	"postern/esp/chapoly"
	"postern/esp/ctaes"
	"postern/ike"
)

// keepRoutines gives the other tests back what they had.
func keepRoutines(t *testing.T) {
	aes, chacha := ctaes.Current(), chapoly.Current()
	t.Cleanup(func() { _, _ = ctaes.Use(aes), chapoly.Use(chacha) })
}

// AES is computed in constant time on every processor, what "default" means follows from it,
// and the log says so once, without a warning.
func TestProcessorDecidesCiphers(t *testing.T) {
	keepRoutines(t)
	named := strings.Replace(confB, "[connections.center.local]", "proposals = [\"aes128gcm16-prfsha256-x25519\", \"default\"]\n[connections.center.local]", 1)
	namedESP := strings.Replace(confB, "remote_ts =", "esp_proposals = [\"aes256-sha256\"]\nremote_ts =", 1)
	for _, c := range []struct {
		name, conf string
		cpu        CPU
		routine    ctaes.Routine
		lines      []string
	}{
		{"AES instructions", named, CPU{AES: true}, ctaes.Library,
			[]string{"default proposals prefer", "AES-GCM, then ChaCha20-Poly1305", "has AES instructions"}},
		{"none", confB, CPU{}, ctaes.Sliced, []string{"default proposals prefer", "ChaCha20-Poly1305, and AES-CBC for ESP only", "has no AES instructions"}},
		{"none, AES named for IKE", named, CPU{}, ctaes.Sliced, []string{"has no AES instructions", "AES is configured by name", "center"}},
		{"none, AES named for ESP", namedESP, CPU{}, ctaes.Sliced, []string{"has no AES instructions", "AES is configured by name", "center"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg, err := config.Parse("test.toml", []byte(c.conf), c.cpu.CipherOrder())
			if err != nil {
				t.Fatal(err)
			}
			lines := &logLines{}
			h := (&fakeWire{}).host("192.0.2.1")
			if _, err := New(Options{OS: h.os(), Config: cfg, Profile: board.Tiny, CPU: c.cpu, Log: log.New(lines, log.Info)}); err != nil {
				t.Fatal(err)
			}
			if ctaes.Current() != c.routine {
				t.Errorf("AES is computed by the %s, expected the %s", ctaes.Current(), c.routine)
			}
			all := strings.Join(lines.all(), "")
			for _, want := range c.lines {
				if strings.Count(all, want) != 1 {
					t.Errorf("the log should say %q once:\n%s", want, all)
				}
			}
			if byName := strings.Contains(all, "by name"); byName != (len(c.lines) > 2 && strings.Contains(c.lines[1], "by name")) {
				t.Errorf("AES by name is mentioned: %v\n%s", byName, all)
			}
			if strings.Contains(strings.ToLower(all), "warn") {
				t.Errorf("that is no reason for a warning:\n%s", all)
			}
		})
	}
}

// A processor whose flags are wrong must neither lose packets nor be silent about it.
func TestRoutineThatFailsItsTestIsNotUsed(t *testing.T) {
	bad := errors.New("seals differently")
	all := []ctaes.Routine{ctaes.Wide, ctaes.Library, ctaes.Sliced}
	for _, c := range []struct {
		name     string
		routines []ctaes.Routine
		useErr   map[ctaes.Routine]error
		testErr  map[ctaes.Routine]error
		want     string
		lines    []string
	}{
		{"good", all[1:], nil, nil, "library", []string{"AES is computed by"}},
		{"wrong", all[1:], nil, map[ctaes.Routine]error{ctaes.Library: bad}, "library, constant-time code", []string{"falls back", "computed by"}},
		{"not there", all[1:], map[ctaes.Routine]error{ctaes.Library: errors.New("no such routine")}, nil, "library, constant-time code", []string{"falls back", "computed by"}},
		{"the widest wrong", all, nil, map[ctaes.Routine]error{ctaes.Wide: bad}, "vector AES, library", []string{"falls back", "computed by"}},
		{"both wrong", all, nil, map[ctaes.Routine]error{ctaes.Wide: bad, ctaes.Library: bad}, "vector AES, library, constant-time code", []string{"falls back", "falls back", "computed by"}},
		{"plain code wrong", all[2:], nil, map[ctaes.Routine]error{ctaes.Sliced: bad}, "constant-time code", []string{"broken"}},
	} {
		lines := &logLines{}
		var used []string
		var now ctaes.Routine
		choose("AES", c.routines, func(r ctaes.Routine) error {
			now, used = r, append(used, r.String())
			return c.useErr[r]
		}, func() error { return c.testErr[now] }, log.New(lines, log.Debug))
		if got := strings.Join(used, ", "); got != c.want {
			t.Errorf("%s: uses %s, expected %s", c.name, got, c.want)
		}
		said := lines.all()
		if len(said) != len(c.lines) {
			t.Errorf("%s: the log says %q, expected %q", c.name, said, c.lines)
			continue
		}
		for i, line := range said {
			if !strings.Contains(line, c.lines[i]) {
				t.Errorf("%s: the log says %q, expected %q", c.name, line, c.lines[i])
			}
		}
	}
}

func TestCipherOrderOfProcessor(t *testing.T) {
	if (CPU{}).CipherOrder() != ike.ChaChaFirst || (CPU{AES: true}).CipherOrder() != ike.AESFirst {
		t.Error("the order of the ciphers does not follow the processor")
	}
}
