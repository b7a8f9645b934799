package vici

import (
	"strings"
	"testing"

	"postern/engine/control"
	"postern/ike"
)

// counting is a Daemon that knows nothing but counters.
type counting struct {
	Daemon
	sets  map[string]*ike.Counters
	reset []string
}

// countingLoop is its loop.
type countingLoop struct {
	Loop
	d *counting
}

func (d *counting) Do(f func(Loop)) error { f(countingLoop{d: d}); return nil }

func (l countingLoop) Messages(visit func(string, *ike.Counters)) {
	for name, c := range l.d.sets {
		visit(name, c)
	}
}

func (l countingLoop) ResetMessages(conn string, each bool) {
	if each {
		conn = "each"
	}
	l.d.reset = append(l.d.reset, "reset "+conn)
}

func TestGetCountersAnswersAsCharon(t *testing.T) {
	d := &counting{sets: map[string]*ike.Counters{"": {ike.CountInvalid: 5}, "b": {ike.CountChildRekey: 2}, "a": {}}}
	h := Handler{d}
	get := func(req *control.Message) *control.Message {
		t.Helper()
		m, ok := h.Command(control.CmdGetCounts, req, nil)
		if !ok {
			t.Fatal("there is no such command")
		}
		return m
	}
	one := "ike-rekey-init ike-rekey-resp child-rekey invalid invalid-spi ike-init-in-req ike-init-in-resp ike-init-out-req " +
		"ike-init-out-resp ike-auth-in-req ike-auth-in-resp ike-auth-out-req ike-auth-out-resp create-child-in-req create-child-in-resp " +
		"create-child-out-req create-child-out-resp info-in-req info-in-resp info-out-req info-out-resp"
	all := get(new(control.Message))
	if got, want := strings.Join(keysOf(all, ""), " "), "counters counters. "+prefixed("counters..", one)+" success"; got != want {
		t.Errorf("keys are\n%s\nwant charon's\n%s", got, want)
	}
	if all.Sub("counters").Sub("").Get("invalid") != "5" {
		t.Errorf("counters of all messages are %v, want 5 invalid ones", all)
	}
	each := get(new(control.Message).Set("all", "yes"))
	if got, want := strings.Join(keysOf(each, ""), " "), "counters counters.a "+prefixed("counters.a.", one)+" counters.b "+
		prefixed("counters.b.", one)+" success"; got != want {
		t.Errorf("keys of each connection are\n%s\nwant\n%s", got, want)
	}
	if got := get(new(control.Message).Set("name", "b")); got.Sub("counters").Sub("b").Get("child-rekey") != "2" {
		t.Errorf("counters of one connection are %v, want 2 rekeyed CHILD SAs", got)
	}
	none := get(new(control.Message).Set("name", "nope"))
	if got := none.String(); got != `counters{} success="no" errmsg="no counters found for this connection"` {
		t.Errorf("counters of no connection are %s, want charon's error", got)
	}
	for _, req := range []*control.Message{new(control.Message), new(control.Message).Set("name", "a"), new(control.Message).Set("all", "yes")} {
		if m, _ := h.Command(control.CmdResetCount, req, nil); m.Get("success") != "yes" {
			t.Errorf("resetting: %v", m)
		}
	}
	if got := strings.Join(d.reset, ","); got != "reset ,reset a,reset each" {
		t.Errorf("was reset: %q", got)
	}
}

func TestGetAlgorithmsHasCharonsSectionsAndNames(t *testing.T) {
	m := getAlgorithms()
	var sections []string
	for _, e := range m.Elements() {
		sections = append(sections, e.Name)
	}
	if got := strings.Join(sections, " "); got != "encryption integrity aead hasher prf xof kdf drbg dh rng nonce-gen" {
		t.Errorf("sections are %q, want charon's", got)
	}
	for section, names := range map[string]string{
		"encryption": "AES_CBC AES_CTR NULL", "integrity": "HMAC_SHA2_256_128 AES_CMAC_96", "aead": "AES_GCM_16 AES_CCM_8 CHACHA20_POLY1305",
		"prf": "PRF_HMAC_SHA2_512", "dh": "CURVE_25519 MODP_2048 ECP_384 ML_KEM_768",
	} {
		for _, name := range strings.Fields(names) {
			if m.Sub(section).Get(name) != plugin {
				t.Errorf("%s is not in the section %s: %v", name, section, m.Sub(section))
			}
		}
	}
	if _, there := m.Sub("dh").Lookup("NONE"); there || m.Sub("encryption").Get("AES_GCM_16") != "" {
		t.Error("the absence of a group is listed, or an AEAD among the ciphers that need more")
	}
}
