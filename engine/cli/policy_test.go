package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postern/engine/control"
)

// policyDaemon knows three policies and answers what it is asked to test.
type policyDaemon struct {
	asked  chan *control.Message
	answer *control.Message
}

func (d *policyDaemon) Command(name string, req *control.Message, stream func(string, *control.Message) error) (*control.Message, bool) {
	switch name {
	case control.CmdListSPD:
		entry := func(number int64, name, action, dir string) *control.Message {
			m := new(control.Message).SetInt(control.KeyNumber, number)
			if name != "" {
				m.Set(control.KeyName, name)
			}
			return m.Set(control.KeyAction, action).Set(control.KeyDirection, dir).
				List(control.KeyLocalTS, "10.0.1.0/24").List(control.KeyRemoteTS, "0.0.0.0/0", "::/0")
		}
		for _, m := range []*control.Message{
			entry(1, "", "protect", "both").Set(control.KeyIKE, "plant").Set(control.KeyChild, "n\x1bet").Set(control.KeyDynamic, "yes").
				SetInt(control.KeySAs, 2).SetInt(control.KeyPacketsOut, 1000).SetInt(control.KeyPacketsIn, 234).SetInt(control.KeyInClear, 7),
			entry(2, "https", "bypass", "out"),
			entry(3, "require", "protect", "in").SetInt(control.KeySAs, 0),
			entry(4, "a-name-that-is-longer-than-its-column", "discard", "both").SetInt(control.KeyDiscarded, 9).SetInt(control.KeyInClear, 1),
		} {
			_ = stream(control.EvListSPD, m)
		}
		return new(control.Message), true
	case control.CmdTestPolicy:
		d.asked <- req
		return d.answer, true
	}
	return nil, false
}

func TestPolicyPrintsTheTable(t *testing.T) {
	path := serve(t, &policyDaemon{})
	status, out, errs := call(System{}, "policy", "--socket", path)
	want := `  # NAME               ACTION   WAY   CHILD                  SAs        PACKETS
  1 -                  protect  both  plant/n\x1bet            2           1234
    10.0.1.0/24 === 0.0.0.0/0 ::/0 and what its CHILD SAs select
    7 packets arrived in clear and should not have
  2 https              bypass   out   -                        -         kernel
    10.0.1.0/24 === 0.0.0.0/0 ::/0
  3 require            protect  in    any SA                   0              0
    10.0.1.0/24 === 0.0.0.0/0 ::/0
  4 a-name-that-is-longer-than-its-column
                       discard  both  -                        -              9
    10.0.1.0/24 === 0.0.0.0/0 ::/0
    1 packet arrived in clear and should not have
`
	if status != ExitOK || errs != "" || out != want {
		t.Errorf("policy exits with %d, %q, and prints\n%s\nwant\n%s", status, errs, out, want)
	}
	status, out, _ = call(System{}, "policy", "--json", "--socket", path)
	var got struct {
		Policies []struct {
			Number, SAs                    int
			Name, Action, Direction, Child string
			Dynamic                        bool
			CountedBy                      string `json:"counted_by"`
			Out                            int    `json:"packets_out"`
			In                             int    `json:"packets_in"`
			Clear                          int    `json:"packets_in_clear"`
			Discarded                      int    `json:"packets_discarded"`
		}
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || status != ExitOK || len(got.Policies) != 4 {
		t.Fatalf("policy --json: %d, %v\n%s", status, err, out)
	}
	p := got.Policies
	if p[0].Out != 1000 || p[0].In != 234 || p[0].Clear != 7 || p[0].SAs != 2 || !p[0].Dynamic || p[1].CountedBy != "kernel" || p[3].Discarded != 9 {
		t.Errorf("policy --json says %+v", p)
	}
}

func TestPolicyTestAsksTheDaemon(t *testing.T) {
	entry := func() *control.Message {
		return control.Success().SetInt(control.KeyNumber, 3).Set(control.KeyName, "plant").Set(control.KeyAction, "protect").Set(control.KeyDirection, "both").
			Set(control.KeyIKE, "plant").Set(control.KeyChild, "net").List(control.KeyLocalTS, "10.0.1.0/24").List(control.KeyRemoteTS, "10.0.2.0/24")
	}
	withSA := func(key string) *control.Message {
		m := entry().Set(control.KeyFate, control.FateSA)
		m.Section(control.KeyChildSA).Set(control.KeyIKE, "plant").Set(control.KeyChild, "net").Set(control.KeyUniqueID, "4").Set(key, "c0ffee00")
		return m
	}
	head := "policy 3 plant decides: protect, direction both, child plant/net\n    10.0.1.0/24 === 10.0.2.0/24\n    "
	for _, c := range []struct {
		args   string
		answer *control.Message
		asked  string
		want   string
	}{
		{"10.0.1.5 10.0.2.7 tcp 40000 502", withSA(control.KeySPIOut), `src="10.0.1.5" dst="10.0.2.7" proto="6" direction="out" sport="40000" dport="502"`,
			head + "the CHILD SA plant/net #4, SPI c0ffee00, carries it\n"},
		{"--in 10.0.2.7 10.0.1.5 udp 502 40000", withSA(control.KeySPIIn), `src="10.0.2.7" dst="10.0.1.5" proto="17" direction="in" sport="502" dport="40000"`,
			head + "it has to come through the CHILD SA plant/net #4, SPI c0ffee00; in clear it\n    is dropped\n"},
		{"10.0.1.5 10.0.2.7 icmp 3 4", entry().Set(control.KeyFate, control.FateAcquire), `proto="1" direction="out" sport="772" dport="772"`,
			head + "it waits, and the daemon asks for a CHILD SA of plant/net\n"},
		{"fd00::1 fd00::2 47", control.Success().Set(control.KeyFate, control.FateNone), `proto="47" direction="out"`,
			"no policy selects it: the system's own routing has it, in clear unless that\nleads into the device of a child; should it reach the tunnel's device, it is\ndropped\n"},
		{"10.0.1.5 10.0.2.7 udp", entry().Set(control.KeyFate, control.FateNoSA), `proto="17" direction="out"`,
			head + "it has to be protected, and there is no CHILD SA that does: it is dropped\n"},
	} {
		d := &policyDaemon{asked: make(chan *control.Message, 1), answer: c.answer}
		status, out, errs := call(System{}, append([]string{"policy", "test", "--socket", serve(t, d)}, strings.Fields(c.args)...)...)
		if status != ExitOK || errs != "" || out != c.want {
			t.Errorf("policy test %s exits with %d, %q, and prints\n%s\nwant\n%s", c.args, status, errs, out, c.want)
		}
		if req := (<-d.asked).String(); !strings.Contains(req, c.asked) {
			t.Errorf("policy test %s asks %s, want %s", c.args, req, c.asked)
		}
	}
}

func TestPolicyTestOfAFileNeedsNoDaemon(t *testing.T) {
	text, err := os.ReadFile("../../configs/policy-table.toml")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "p.toml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"10.0.1.5 10.0.2.7 tcp 40000 502":       "policy 1 plant decides: protect",
		"10.0.1.5 9.9.9.9 6 40000 443":          "policy 2 https decides: bypass, direction both\n",
		"--in 9.9.9.9 10.0.1.5 tcp 40000 443":   "policy 3 https-here decides: bypass",
		"--in 9.9.9.9 10.0.1.5 icmp 8":          "policy 4 require decides: protect, direction in, child any SA",
		"10.0.1.5 9.9.9.9 icmp 8":               "policy 5 rest decides: bypass",
		"--json 10.0.1.5 10.0.2.7 tcp 1 2":      `"fate": "acquire"`,
		"--in --json 10.0.9.5 10.0.1.7 tcp 1 2": `"fate": "no-sa"`,
	} {
		status, out, errs := call(System{}, append([]string{"policy", "test", "-c", path}, strings.Fields(args)...)...)
		if status != ExitOK || !strings.Contains(out, want) {
			t.Errorf("policy test %s: %d, %q\n%s\nwant %q", args, status, errs, out, want)
		}
	}
	if status, out, _ := call(System{}, "policy", "-c", path); status != ExitOK || strings.Count(out, "===") != 5 || strings.Contains(out, "PACKETS") {
		t.Errorf("policy -c: %d\n%s\nwant the 5 entries and no counts", status, out)
	}
	for _, c := range []struct {
		args string
		want int
	}{
		{"-c /nowhere", ExitConfig},
		{"show", ExitUsage},
		{"--in", ExitUsage},
		{"test 10.0.1.5 10.0.2.7", ExitUsage},
		{"test 10.0.1.5 fd00::1 tcp", ExitUsage},
		{"test 10.0.1.5 10.0.2.7 tcp 1", ExitUsage},
		{"test 10.0.1.5 10.0.2.7 tcp 1 70000", ExitUsage},
		{"test 10.0.1.5 10.0.2.7 gre 1 2", ExitUsage},
		{"test 10.0.1.5 10.0.2.7 nonsense", ExitUsage},
		{"test a b tcp", ExitUsage},
	} {
		if status, _, errs := call(System{}, append([]string{"policy"}, strings.Fields(c.args)...)...); status != c.want || errs == "" {
			t.Errorf("policy %s exits with %d and %q, want %d and a reason", c.args, status, errs, c.want)
		}
	}
}
