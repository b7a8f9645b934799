package cli

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"postern/engine/bench"
	"postern/esp"
	"postern/ike"
)

// benchSample is the report of a small router, as a run may have found it.
func benchSample() *benchReport {
	return &benchReport{
		version: "1.2.3", profile: "small",
		sys: &bench.System{Model: "MIPS 24KEc V5.5", Arch: "mipsle", Cores: 1, AES: bench.AESConstant, Memory: 59 << 20},
		Result: &bench.Result{
			Routine: "assembly with rotate", Share: 83,
			Algorithms: []bench.Algorithm{
				{Name: "AES-128-GCM", Suite: esp.Suite{Encr: esp.EncrAESGCM16, KeyBits: 128}, Small: bench.Cost{Seal: 70_100, Open: 71_200}, Large: bench.Cost{Seal: 812_345, Open: 830_000}},
				{Name: "AES-256-GCM", Suite: esp.Suite{Encr: esp.EncrAESGCM16, KeyBits: 256}, Small: bench.Cost{Seal: 80_100, Open: 81_200}, Large: bench.Cost{Seal: 1_012_345, Open: 1_030_000}},
				{Name: "ChaCha20-Poly1305", Suite: esp.Suite{Encr: esp.EncrChaCha20Poly1305}, Small: bench.Cost{Seal: 16_000, Open: 17_000}, Large: bench.Cost{Seal: 101_000, Open: 103_000}},
				{Name: "AES-128-CBC, HMAC-SHA256", Suite: esp.Suite{Encr: esp.EncrAESCBC, KeyBits: 128, Integ: esp.IntegHMACSHA256_128}, Small: bench.Cost{Seal: 60_000, Open: 61_000}, Large: bench.Cost{Seal: 520_000, Open: 530_000}},
			},
			PathSuite: "ChaCha20-Poly1305", TUNFeatures: "virtio headers, checksums, TSO4, TSO6", UDPFeatures: "UDP_SEGMENT, UDP_GRO, sendmmsg/recvmmsg", Private: true,
			Flows: []bench.Flow{
				{Name: "TCP in bulk", Payload: 1388, Cost: bench.Cost{Seal: 140_000, Open: 160_000}},
				{Name: "UDP", Payload: 1400, Cost: bench.Cost{Seal: 180_000, Open: 190_000}},
				{Name: "UDP", Payload: 200, Cost: bench.Cost{Seal: 98_000, Open: 110_000}},
			},
			Choice: bench.Choice{
				IKE: "chacha20poly1305-prfsha256-x25519", ESP: "chacha20poly1305", Order: []string{"chacha20poly1305", "aes128gcm16", "aes256gcm16", "aes128", "aes256"},
				Suite: esp.Suite{Encr: esp.EncrChaCha20Poly1305},
				Why:   "ChaCha20-Poly1305 is 5.1 × faster here than AES-128-CBC, HMAC-SHA256, and AES has no instructions here",
			},
		},
	}
}

func TestBenchReportOnOneScreen(t *testing.T) {
	r := benchSample()
	out := r.text()
	golden := filepath.Join("testdata", "bench.golden")
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(golden, []byte(out), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if out != string(want) {
		t.Errorf("the report is\n%s\nwant (UPDATE_GOLDEN=1 accepts it)\n%s", out, want)
	}
	onScreen(t, out)

	r.sys.Model, r.sys.Memory, r.Share = strings.Repeat("Very Long Name of a Processor ", 8)+"\x1b[2J", 0, 100
	r.Flows, r.PathErr = r.Flows[:1], errors.New(strings.Repeat("something is missing ", 10)+"\x1b[2J")
	out = r.text()
	onScreen(t, out)
	if strings.Contains(out, "\x1b") || strings.Contains(out, "Note") || !strings.Contains(out, "Memory     unknown") || !strings.Contains(out, "The rest was not measured: something") {
		t.Errorf("a stranger report is\n%s", out)
	}
}

func onScreen(t *testing.T, out string) {
	t.Helper()
	for i, l := range strings.Split(out, "\n") {
		if n := utf8.RuneCountInString(l); n > width || i > 35 {
			t.Errorf("line %d has %d characters: %q", i+1, n, l)
		}
	}
}

func TestBenchFigures(t *testing.T) {
	for v, want := range map[int64]string{
		-1: "-", 0: "-", 1: "0.00", 5: "0.01", 999: "1.00", 1234: "1.23", 9994: "9.99", 9995: "10.0", 12_340: "12.3",
		99_949: "99.9", 99_950: "100", 123_400: "123", 123_500: "124", 12_345_678: "12346",
	} {
		if got := figure(v); got != want {
			t.Errorf("%d thousandths are written %q, want %q", v, got, want)
		}
	}
}

func TestBenchJSONSaysTheSame(t *testing.T) {
	r := benchSample()
	type packet struct {
		Octets  int   `json:"octets"`
		SealNS  int64 `json:"seal_ns"`
		OpenNS  int64 `json:"open_ns"`
		SealPPS int64 `json:"seal_packets_per_s"`
		OpenBPS int64 `json:"open_octets_per_s"`
		Both    int64 `json:"both_octets_per_s"`
	}
	var got struct {
		Version, Processor, Arch, ChaCha20, AES, Board string
		ConstantTime                                   bool  `json:"aes_constant_time"`
		Memory                                         int64 `json:"memory_octets"`
		Cores                                          int
		Share                                          int `json:"core_share_percent"`
		Algorithms                                     []struct {
			Name, Suite  string
			Small, Large packet
		}
		Path struct {
			Measured                  bool
			Own                       bool `json:"own_namespace"`
			Problem, Cipher, TUN, UDP string
			Traffic                   []struct {
				Name   string
				Packet packet
			}
		}
		Choice struct {
			ESP, IKE, Why string
			Offers        []string
		}
	}
	if err := json.Unmarshal(r.json(), &got); err != nil {
		t.Fatalf("%v in\n%s", err, r.json())
	}
	if got.Version != "1.2.3" || got.Processor != r.sys.Model || got.Board != "small" || got.ChaCha20 != r.Routine || got.AES != r.sys.AES.String() ||
		!got.ConstantTime || got.Memory != 59<<20 || got.Cores != 1 || got.Share != 83 || got.Arch != "mipsle" {
		t.Errorf("the head is %+v", got)
	}
	if a := got.Algorithms; len(a) != 4 || a[2].Suite != "CHACHA20_POLY1305" || a[2].Small.SealNS != 16_000 ||
		a[2].Large != (packet{1400, 101_000, 103_000, 9900, 13_592_233, 6_862_745}) {
		t.Errorf("the algorithms are %+v", a)
	}
	if p := got.Path; !p.Measured || !p.Own || p.Problem != "" || p.Cipher != "ChaCha20-Poly1305" || p.TUN != r.TUNFeatures || p.UDP != r.UDPFeatures ||
		len(p.Traffic) != 3 || p.Traffic[2].Packet.OpenNS != 110_000 {
		t.Errorf("the path is %+v", p)
	}
	if c := got.Choice; c.ESP != "chacha20poly1305" || c.Why != r.Choice.Why || len(c.Offers) != 5 {
		t.Errorf("the choice is %+v", c)
	}
	r.PathErr = errors.New("no privilege")
	if err := json.Unmarshal(r.json(), &got); err != nil || got.Path.Measured || got.Path.Problem != "no privilege" {
		t.Errorf("without a path it says %+v, %v", got.Path, err)
	}
}

// benchFake is a device without TUN whose clock goes on by itself.
func benchFake() bench.System {
	var at time.Duration
	return bench.System{
		Arch: "test", Cores: 1, Proposals: func(p ike.Protocol) []ike.Proposal { return ike.DefaultProposals(p, ike.AESFirst) },
		Now:      func() time.Duration { at += time.Millisecond; return at },
		OpenPath: func(int) (*bench.Path, error) { return nil, errors.New("this process lacks everything") },
	}
}

func TestBenchCommandWithoutPrivileges(t *testing.T) {
	sys := System{Bench: benchFake}
	for _, args := range [][]string{{"bench", "-t", "1"}, {"bench", "--seconds=2"}, {"bench"}} {
		status, out, errs := call(sys, args...)
		if status != ExitOK || !strings.Contains(out, "AES-128-GCM") || !strings.Contains(strings.Join(strings.Fields(out), " "), "was not measured: this process lacks everything.") ||
			!strings.HasPrefix(errs, "postern: measuring for ") {
			t.Errorf("%v: status %d, %q\n%s", args, status, errs, out)
		}
		onScreen(t, out)
	}
	status, out, errs := call(sys, "bench", "-t", "1", "--json")
	if status != ExitOK || errs != "" || !json.Valid([]byte(out)) {
		t.Errorf("--json: status %d, %q\n%s", status, errs, out)
	}
	if _, more, _ := call(sys, "bench", "-t", "1", "--json"); more != out {
		t.Errorf("the same clock gives\n%s and then\n%s", out, more)
	}
}

func TestBenchCommandRefusesAndFails(t *testing.T) {
	for _, args := range [][]string{{"-t", "0"}, {"-t", "601"}, {"--seconds", "-5"}, {"-t", "x"}, {"more"}} {
		status, out, errs := call(System{Bench: benchFake}, append([]string{"bench"}, args...)...)
		if status != ExitUsage || out != "" || errs == "" {
			t.Errorf("%q: status %d, %q, %q", args, status, out, errs)
		}
	}
	if status, out, errs := call(System{}, "bench"); status != ExitFailed || out != "" || errs == "" {
		t.Errorf("without the parts that measure: status %d, %q, %q", status, out, errs)
	}
}

func TestInterruptedBenchPrintsNoReport(t *testing.T) {
	signals := make(chan os.Signal, 1)
	sys := System{
		Signals: func() <-chan os.Signal { return signals },
		Bench: func() bench.System {
			b := benchFake()
			b.Now = func() time.Duration { return 0 } // would take for ever
			signals <- syscall.SIGTERM
			return b
		},
	}
	status, out, errs := call(sys, "bench", "-t", "1")
	if status != ExitFailed || out != "" || !strings.Contains(errs, "interrupted") {
		t.Errorf("interrupted: status %d, %q, %q", status, out, errs)
	}
}
