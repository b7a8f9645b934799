package cli

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postern/engine/control"
)

// call runs one command line and returns what came of it.
func call(sys System, args ...string) (status int, stdout, stderr string) {
	var out, errs bytes.Buffer
	sys.Stdout, sys.Stderr = &out, &errs
	if sys.Version == "" {
		sys.Version = "1.2.3"
	}
	status = Main(args, sys)
	return status, out.String(), errs.String()
}

func TestHelpNamesEveryCommandAndExitStatus(t *testing.T) {
	extra := System{Commands: []Command{{Name: "extra", Summary: "added by a build tag", Run: func(*System, *Command, []string) int { return 42 }}}}
	status, out, errs := call(extra, "help")
	if status != ExitOK || errs != "" {
		t.Errorf("help exits with %d, %q on standard error", status, errs)
	}
	for _, c := range commands() {
		if !strings.Contains(out, "\n  "+c.Name) || !strings.Contains(out, c.Summary) {
			t.Errorf("help does not name %s", c.Name)
		}
	}
	if !strings.Contains(out, "added by a build tag") || !strings.Contains(out, "4  status CONN") {
		t.Errorf("help lacks an added command or the exit statuses:\n%s", out)
	}
	for i, l := range strings.Split(out, "\n") {
		if len(l) > width {
			t.Errorf("line %d of help is longer than %d characters: %q", i+1, width, l)
		}
	}
	if status, _, _ = call(extra, "extra"); status != 42 {
		t.Errorf("an added command does not run: exit status %d", status)
	}
	if status, _, errs = call(extra); status != ExitUsage || errs != out {
		t.Errorf("without arguments: status %d and %q, want %d and the overview on standard error", status, errs, ExitUsage)
	}
}

func TestEveryCommandHasHelpWithAnExample(t *testing.T) {
	for _, c := range commands() {
		for _, args := range [][]string{{c.Name, "-h"}, {c.Name, "--help"}, {"help", c.Name}} {
			status, out, errs := call(System{}, args...)
			if status != ExitOK || errs != "" || !strings.HasPrefix(out, "Usage: postern "+c.Name) {
				t.Errorf("%v: status %d, %q, %q", args, status, out, errs)
			}
			if !strings.Contains(out, "\n  ") || !strings.Contains(out, "  "+exampleOf(c.Name)) {
				t.Errorf("%v has no example:\n%s", args, out)
			}
			for _, l := range strings.Split(out, "\n") {
				if len(l) > width && !strings.HasPrefix(l, "Usage") {
					t.Errorf("%v: a line is longer than %d characters: %q", args, width, l)
				}
			}
		}
	}
}

func exampleOf(name string) string {
	if name == "psk" {
		return "(umask 077; postern psk"
	}
	if name == "reload" {
		return "postern check"
	}
	return "postern " + name
}

func TestWrongCommandLinesExitWith2AndSayWhy(t *testing.T) {
	for _, tc := range []struct{ args, want string }{
		{"nonsense", `no command "nonsense"`},
		{"up", "CONN is missing"},
		{"down", "CONN is missing"},
		{"redirect a", "GATEWAY is missing"},
		{"up a b c", `"c" is one argument too many`},
		{"status a b", `"b" is one argument too many`},
		{"reload now", `"now" is one argument too many`},
		{"status --colour", "flag provided but not defined: -colour"},
		{"up a --timeout soon", "invalid value"},
		{"up a --timeout -1s", "must not be negative"},
		{"run --log-level loud", `no log level "loud"`},
		{"psk --bits 64", "128 to 512"},
		{"psk --bits 129", "multiple of 8"},
		{"psk --bits 1024", "128 to 512"},
		{"help nonsense", `no command "nonsense"`},
	} {
		status, out, errs := call(System{}, strings.Fields(tc.args)...)
		if status != ExitUsage || out != "" || !strings.Contains(errs, tc.want) {
			t.Errorf("postern %s: status %d, %q, %q, want %d and %q on standard error", tc.args, status, out, errs, ExitUsage, tc.want)
		}
	}
}

func TestOptionsMayStandBehindArguments(t *testing.T) {
	cmd := Command{Name: "x", Args: "A [B]"}
	for _, tc := range []struct {
		args string
		rest string
		set  bool
	}{
		{"a b --on", "a b", true}, {"--on a b", "a b", true}, {"a --on b", "a b", true},
		{"a -- --on", "a --on", false}, {"-- --on a", "--on a", false}, {"a", "a", false},
	} {
		o := newOptions(&System{}, &cmd)
		on := o.Bool("on", false, "")
		rest, _, ok := o.parse(strings.Fields(tc.args), 1, 2)
		if !ok || strings.Join(rest, " ") != tc.rest || *on != tc.set {
			t.Errorf("%q: arguments %q, on %v, ok %v, want %q, %v", tc.args, rest, *on, ok, tc.rest, tc.set)
		}
	}
}

func TestVersionIsPrinted(t *testing.T) {
	for _, args := range [][]string{{"version"}, {"--version"}, {"-v"}} {
		if status, out, _ := call(System{}, args...); status != ExitOK || !strings.HasPrefix(out, "postern 1.2.3 (") {
			t.Errorf("%v: status %d, %q", args, status, out)
		}
	}
	_, out, _ := call(System{}, "version", "--json")
	var v struct{ Version, OS, Arch, Go string }
	if err := json.Unmarshal([]byte(out), &v); err != nil || v.Version != "1.2.3" || v.OS == "" || v.Arch == "" || v.Go == "" {
		t.Errorf("version --json prints %q: %v", out, err)
	}
}

func TestPSKIsFreshAndAsStrongAsAsked(t *testing.T) {
	seen := map[string]bool{}
	for _, tc := range []struct {
		args []string
		n    int
	}{{[]string{"psk"}, 32}, {[]string{"psk"}, 32}, {[]string{"psk", "--bits", "512"}, 64}, {[]string{"psk", "--bits=128"}, 16}} {
		status, out, errs := call(System{}, tc.args...)
		key, found := strings.CutPrefix(strings.TrimSuffix(out, "\n"), "0s")
		raw, err := base64.StdEncoding.DecodeString(key)
		if status != ExitOK || !found || err != nil || len(raw) != tc.n {
			t.Errorf("%v: status %d, %d octets, %v, want %d octets in base64 behind 0s", tc.args, status, len(raw), err, tc.n)
		}
		if seen[key] {
			t.Errorf("%v printed the same key twice", tc.args)
		}
		seen[key] = true
		if strings.Contains(errs, key) || !strings.Contains(errs, "[secrets.NAME]") {
			t.Error("standard error must say how to use the key, and must not repeat it")
		}
	}
}

func TestWithoutDaemonClientsExitWith3(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none")
	for _, args := range [][]string{{"status"}, {"up", "a"}, {"down", "a"}, {"redirect", "a", "192.0.2.1"}, {"reload"}} {
		status, out, errs := call(System{}, append(args, "--socket", path)...)
		if status != ExitNoDaemon || out != "" || !strings.Contains(errs, "postern run") || !strings.Contains(errs, path) {
			t.Errorf("%v: status %d, %q, %q, want %d and what to do", args, status, out, errs, ExitNoDaemon)
		}
	}
}

// fakeDaemon answers like a daemon whose connections and SAs are given.
type fakeDaemon struct {
	conns, sas []*control.Message
	reload     *control.Message
	got        chan *control.Message
}

func (d *fakeDaemon) Command(name string, req *control.Message, stream func(string, *control.Message) error) (*control.Message, bool) {
	switch name {
	case control.CmdVersion:
		return new(control.Message).Set(control.KeyDaemon, "postern").Set(control.KeyVersion, "1.2.3"), true
	case control.CmdStats:
		m := new(control.Message)
		m.Section(control.KeyUptime).Set(control.KeyRunning, "2 hours").Set(control.KeySince, "x")
		m.Section(control.KeyDataPath).SetInt(control.KeyWorkers, 2).SetInt(control.KeySockets, 1).
			SetInt(control.KeySlots, 64).SetInt(control.KeySlotsUsed, 5).
			Set(control.KeyTUN, "vnet tso4").Set(control.KeyUDP, "gso gro").Set(control.KeyESP, "")
		return m, true
	case control.CmdListConns:
		for _, m := range d.conns {
			_ = stream(control.EvListConn, m)
		}
		return new(control.Message), true
	case control.CmdListSAs:
		for _, m := range d.sas {
			_ = stream(control.EvListSA, m)
		}
		return new(control.Message), true
	case control.CmdInitiate, control.CmdTerminate:
		d.got <- req
		_ = stream(control.EvControlLog, new(control.Message).Set(control.KeyGroup, "IKE").Set(control.KeyMsg, "peer says \x1b[2J"))
		if req.Get(control.KeyIKE) != "plant" {
			return control.Failure(errors.New("no connection \"" + req.Get(control.KeyIKE) + "\"")), true
		}
		return control.Success(), true
	case control.CmdRedirect:
		if req.Get(control.KeyIKE) != "plant" || req.Get(control.KeyGateway) != "192.0.2.9" {
			return control.Failure(errors.New("no matching SAs to redirect found")), true
		}
		return control.Success().SetInt(control.KeyMatches, 3), true
	case control.CmdReload:
		return d.reload, true
	}
	return nil, false
}

// serve runs the daemon's control socket.
func serve(t *testing.T, h control.Handler) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vici")
	l, err := control.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := control.NewServer(l, h, control.Options{})
	go func() { _ = s.Serve() }()
	t.Cleanup(func() { _ = s.Close() })
	return path
}

func listConn(name, localID, remoteID, remote string, children ...func(*control.Message)) *control.Message {
	m := new(control.Message)
	c := m.Section(name)
	c.List(control.KeyLocalAddrs, "%any").List(control.KeyRemoteAddrs, remote).Set(control.KeyVersion, "IKEv2")
	c.Section(control.KeyLocalAuth).Set(control.KeyClass, "pre-shared key").Set(control.KeyID, localID)
	c.Section(control.KeyRemoteAuth).Set(control.KeyClass, "pre-shared key").Set(control.KeyID, remoteID)
	ch := c.Section(control.KeyChildren)
	for _, f := range children {
		f(ch)
	}
	return m
}

func confChild(name, start, local string, remote ...string) func(*control.Message) {
	return func(m *control.Message) {
		m.Section(name).Set(control.KeyMode, "TUNNEL").Set(control.KeyStartAction, start).
			List(control.KeyLocalTS, local).List(control.KeyRemoteTS, remote...)
	}
}

func listSA(conn, state string, set func(sa *control.Message), children ...func(*control.Message)) *control.Message {
	m := new(control.Message)
	s := m.Section(conn)
	s.Set(control.KeyUniqueID, "7").Set(control.KeyVersion, "2").Set(control.KeyState, state).
		Set(control.KeyLocalHost, "192.0.2.1").Set(control.KeyLocalPort, "4500").Set(control.KeyLocalID, "a.example").
		Set(control.KeyRemoteHost, "2001:db8::2").Set(control.KeyRemotePort, "4500").Set(control.KeyRemoteID, "b.example").
		Set(control.KeyInitiatorSPI, "00112233445566ff").Set(control.KeyResponderSPI, "8899aabbccddee00")
	set(s)
	cs := s.Section(control.KeyChildSAs)
	for _, f := range children {
		f(cs)
	}
	return m
}

func childSAOf(name string, set func(*control.Message)) func(*control.Message) {
	return func(m *control.Message) {
		c := m.Section(name+"-3").Set(control.KeyName, name).Set(control.KeyUniqueID, "3").Set(control.KeyReqID, "1").
			Set(control.KeyState, "INSTALLED").Set(control.KeyMode, "TUNNEL").Set(control.KeyProtocol, "ESP").
			Set(control.KeySPIIn, "c1234567").Set(control.KeySPIOut, "cabcdef0").Set(control.KeyEncrAlg, "AES_GCM_16").Set(control.KeyEncrKeysize, "128").
			Set(control.KeyBytesIn, "0").Set(control.KeyPacketsIn, "0").Set(control.KeyBytesOut, "123456789").Set(control.KeyPacketsOut, "104857").
			Set(control.KeyUseOut, "2").Set(control.KeyRekeyTime, "3000").Set(control.KeyLifeTime, "3600").Set(control.KeyInstallTime, "60").
			List(control.KeyLocalTS, "10.1.0.0/24").List(control.KeyRemoteTS, "10.2.0.0/24[tcp/502]")
		set(c)
	}
}

// site is a daemon with one of everything that status has to show.
func site() *fakeDaemon {
	long := []string{"10.200.100.0/24[tcp/502]", "10.200.101.0/24[tcp/502]", "10.200.102.0/24[udp/161]", "2001:db8:1234:5678::/64"}
	return &fakeDaemon{
		got: make(chan *control.Message, 1),
		conns: []*control.Message{
			listConn("plant", "a.example", "b.example", "2001:db8::2",
				confChild("modbus", "start", "10.1.0.0/24", "10.2.0.0/24[tcp/502]"),
				confChild("snmp-of-all-the-stations-in-the-field", "trap", "10.1.0.0/24", long...)),
			listConn("backup", "a.example", "", "198.51.100.7", confChild("all", "none", "10.1.0.0/24", "10.9.0.0/16")),
			listConn("slow", "a.example", "c.example", "203.0.113.9", confChild("only", "start", "dynamic", "dynamic")),
		},
		sas: []*control.Message{
			listSA("plant", "ESTABLISHED", func(s *control.Message) {
				s.Set(control.KeyInitiator, "yes").Set(control.KeyNATRemote, "yes").
					Set(control.KeyEncrAlg, "AES_CBC").Set(control.KeyEncrKeysize, "256").Set(control.KeyIntegAlg, "HMAC_SHA2_256_128").
					Set(control.KeyPRFAlg, "PRF_HMAC_SHA2_256").Set(control.KeyDHGroup, "CURVE_25519").
					Set(control.KeyEstablished, "61").Set(control.KeyRekeyTime, "14000").List(control.KeyTasksActive, "CHILD_REKEY")
			}, childSAOf("modbus", func(c *control.Message) { c.Set(control.KeyEncap, "yes").Set(control.KeyESN, "1") })),
			listSA("slow", "CONNECTING", func(s *control.Message) {
				s.Set(control.KeyLocalID, "%any").Set(control.KeyRemoteID, "c.example\n\x1b[31m"+strings.Repeat("long", 20))
			}),
			listSA("gone", "ESTABLISHED", func(s *control.Message) {
				s.Set(control.KeyEstablished, "200000").Set(control.KeyLifeTime, "5")
			}, childSAOf("old", func(c *control.Message) { c.Set(control.KeyState, "REKEYED") })),
		},
	}
}

func TestStatusSaysWhatAnSAIsFor(t *testing.T) {
	for _, c := range []struct{ key, text, json string }{
		{control.KeyDSCPClass, "DSCP 8,10-14", `"dscp_class":"8,10-14"`}, {control.KeyCPU, "CPU 3", `"cpu":"3"`},
	} {
		d := site()
		value := strings.Fields(c.text)[1]
		d.sas = []*control.Message{listSA("plant", "ESTABLISHED", func(*control.Message) {}, childSAOf("modbus", func(m *control.Message) { m.Set(c.key, value) }))}
		path := serve(t, d)
		if _, out, _ := call(System{}, "status", "--socket", path); !strings.Contains(out, c.text) {
			t.Errorf("status does not say %q:\n%s", c.text, out)
		}
		_, out, _ := call(System{}, "status", "--json", "--socket", path)
		if !strings.Contains(strings.ReplaceAll(out, ": ", ":"), c.json) {
			t.Errorf("status --json does not say %s:\n%s", c.json, out)
		}
	}
}

// Nobody has to guess whether the key exchange had more than its group.
func TestStatusNamesAdditionalKeyExchanges(t *testing.T) {
	d := site()
	d.sas = []*control.Message{listSA("plant", "ESTABLISHED", func(m *control.Message) {
		m.Set(control.KeyEncrAlg, "AES_GCM_16").Set(control.KeyDHGroup, "CURVE_25519")
		m.Set(control.KeyAdditionalKE(1), "ML_KEM_768").Set(control.KeyAdditionalKE(7), "ECP_256")
	}, childSAOf("modbus", func(*control.Message) {}))}
	_, out, _ := call(System{}, "status", "--socket", serve(t, d))
	if want := "AES_GCM_16/CURVE_25519/KE1_ML_KEM_768/KE7_ECP_256"; !strings.Contains(out, want) {
		t.Errorf("status does not say %s:\n%s", want, out)
	}
}

func TestStatusFitsInto80ColumnsAndShowsEverything(t *testing.T) {
	path := serve(t, site())
	status, out, errs := call(System{}, "status", "--socket", path)
	if status != ExitOK || errs != "" {
		t.Fatalf("status exits with %d, %q", status, errs)
	}
	golden := filepath.Join("testdata", "status.golden")
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
		t.Errorf("status prints\n%s\nwant\n%s", out, want)
	}
	for i, l := range strings.Split(out, "\n") {
		if len(l) > 80 || strings.ContainsAny(l, "\x1b\t") || strings.TrimRight(l, " ") != l {
			t.Errorf("line %d is longer than 80 columns, ends in blanks or holds control characters: %q", i+1, l)
		}
	}
}

func TestStatusOfOneConnectionTellsWhetherItIsUp(t *testing.T) {
	path := serve(t, site())
	for name, want := range map[string]int{"plant": ExitOK, "backup": ExitDown, "slow": ExitDown, "gone": ExitDown, "nonsense": ExitFailed} {
		status, out, errs := call(System{}, "status", name, "--socket", path)
		if status != want {
			t.Errorf("status %s exits with %d, want %d\n%s%s", name, status, want, out, errs)
		}
		if want != ExitFailed && (strings.Count(out, "\n\n") != 1 || !strings.Contains(out, "\n"+name+": ")) {
			t.Errorf("status %s does not show exactly that connection:\n%s", name, out)
		}
	}
}

func TestTunnelIsUpOnlyIfWhatIsStartedIsThere(t *testing.T) {
	d := site()
	d.conns[0] = listConn("plant", "a", "b", "192.0.2.2", confChild("modbus", "start", "x", "y"), confChild("snmp", "start", "x", "y"))
	path := serve(t, d)
	if status, out, _ := call(System{}, "status", "plant", "--socket", path); status != ExitDown {
		t.Errorf("a started child has no SA, but status exits with %d:\n%s", status, out)
	}
}

func TestStatusJSONHoldsTheSame(t *testing.T) {
	path := serve(t, site())
	status, out, _ := call(System{}, "status", "--json", "--socket", path)
	type child struct {
		ID                   int
		Name, State, Crypto  string
		UDPEncap             bool   `json:"udp_encap"`
		SPIIn                string `json:"spi_in"`
		BytesOut, PacketsOut int    `json:"-"`
		Out                  int    `json:"bytes_out"`
		LastIn               *int   `json:"last_in_s"`
		LastOut              *int   `json:"last_out_s"`
	}
	var v struct {
		Version     string
		Connections []struct {
			Name       string
			Up         bool
			Configured bool
			Children   []struct {
				Name     string
				RemoteTS []string `json:"remote_ts"`
				SAs      int
			}
			IKESAs []struct {
				State    string
				Remote   string
				RemoteID string  `json:"remote_id"`
				Children []child `json:"child_sas"`
			} `json:"ike_sas"`
		}
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil || status != ExitOK {
		t.Fatalf("status %d, no JSON: %v\n%s", status, err, out)
	}
	if len(v.Connections) != 4 || !v.Connections[0].Up || v.Connections[1].Up || v.Connections[3].Configured {
		t.Fatalf("the connections are not those of the daemon: %+v", v.Connections)
	}
	p := v.Connections[0]
	c := p.IKESAs[0].Children[0]
	if p.IKESAs[0].Remote != "[2001:db8::2]:4500" || c.SPIIn != "c1234567" || c.Out != 123456789 || !c.UDPEncap || c.LastIn != nil || *c.LastOut != 2 {
		t.Errorf("the SAs are not those of the daemon: %+v", p.IKESAs[0])
	}
	if p.Children[0].SAs != 1 || p.Children[1].SAs != 0 || len(p.Children[1].RemoteTS) != 4 {
		t.Errorf("the children are not those of the daemon: %+v", p.Children)
	}
	if id := v.Connections[2].IKESAs[0].RemoteID; !strings.HasPrefix(id, "c.example\n\x1b[31mlong") {
		t.Errorf("an identity with control characters comes out as %q", id)
	}
}

func TestUpAndDownPassOnWhatIsAsked(t *testing.T) {
	d := site()
	path := serve(t, d)
	for _, tc := range []struct{ args, want, out string }{
		{"up plant", `ike="plant" timeout="30000" loglevel="1"`, "plant is up\n"},
		{"up plant modbus --timeout 1500ms", `ike="plant" child="modbus" timeout="1500" loglevel="1"`, "plant modbus is up\n"},
		{"up plant --timeout 0 --quiet", `ike="plant" timeout="0" loglevel="-1"`, "plant is up\n"},
		{"down plant modbus", `ike="plant" child="modbus" timeout="10000" loglevel="1"`, "plant modbus is down\n"},
	} {
		status, out, errs := call(System{}, append(strings.Fields(tc.args), "--socket", path)...)
		if got := (<-d.got).String(); got != tc.want+` postern="yes"` || status != ExitOK || out != tc.out {
			t.Errorf("postern %s asks %s, exits with %d, %q, want %s and %q", tc.args, got, status, out, tc.want, tc.out)
		}
		if want := "[IKE] peer says \\x1b[2J\n"; (errs == want) == strings.Contains(tc.args, "quiet") {
			t.Errorf("postern %s shows %q meanwhile", tc.args, errs)
		}
	}
	status, out, errs := call(System{}, "up", "elsewhere", "--socket", path)
	<-d.got
	if status != ExitFailed || out != "" || !strings.Contains(errs, `up elsewhere: no connection "elsewhere"`) {
		t.Errorf("a refused up exits with %d, %q, %q", status, out, errs)
	}
}

func TestReloadTellsConfigurationErrorsApart(t *testing.T) {
	for _, tc := range []struct {
		resp *control.Message
		want int
		say  string
	}{
		{control.Success(), ExitOK, ""},
		{control.Failure(errors.New("busy")), ExitFailed, "reload: busy"},
		{control.Failure(errors.New("bad file")).List(control.KeyProblems, "a.toml:3:1: unknown key", "a.toml:9:1: b"), ExitConfig, "a.toml:9:1: b\n"},
	} {
		d := site()
		d.reload = tc.resp
		status, _, errs := call(System{}, "reload", "--socket", serve(t, d))
		if status != tc.want || !strings.Contains(errs, tc.say) {
			t.Errorf("the daemon says %v: status %d, %q, want %d and %q", tc.resp, status, errs, tc.want, tc.say)
		}
	}
}

// mute takes a command, tells so, and never answers.
type mute struct{ asked, end chan struct{} }

func (m mute) Command(string, *control.Message, func(string, *control.Message) error) (*control.Message, bool) {
	m.asked <- struct{}{}
	<-m.end
	return nil, false
}

func TestDaemonThatEndsMeanwhileIsReported(t *testing.T) {
	m := mute{make(chan struct{}, 1), make(chan struct{})}
	defer close(m.end)
	path := filepath.Join(t.TempDir(), "vici")
	l, err := control.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := control.NewServer(l, m, control.Options{})
	go func() { _ = s.Serve() }()
	go func() {
		<-m.asked
		_ = s.Close()
	}()
	status, _, errs := call(System{}, "status", "--socket", path)
	if status != ExitNoDaemon || !strings.Contains(errs, "closed the connection") {
		t.Errorf("status %d, %q, want %d and the reason", status, errs, ExitNoDaemon)
	}
}

func TestSpansAndSizesAreReadable(t *testing.T) {
	for s, want := range map[int64]string{-5: "0 s", 0: "0 s", 59: "59 s", 60: "1 min", 3599: "59 min", 3600: "1 h", 3660: "1 h 1 min",
		86400: "1 d", 90000: "1 d 1 h", 1e6: "11 d 13 h"} {
		if got := span(s); got != want {
			t.Errorf("%d seconds are %q, want %q", s, got, want)
		}
	}
	for n, want := range map[uint64]string{0: "0 B", 999: "999 B", 1000: "1.00 kB", 9994: "9.99 kB", 9995: "10.0 kB", 99949: "99.9 kB",
		99950: "100 kB", 999499: "999 kB", 999500: "1.00 MB", 123456789: "123 MB", 1 << 63: "9.22 EB"} {
		if got := size(n); got != want {
			t.Errorf("%d octets are %q, want %q", n, got, want)
		}
	}
}

func TestJSONWriterQuotesEverything(t *testing.T) {
	var all strings.Builder
	for r := rune(0); r < 0x300; r++ {
		all.WriteRune(r)
	}
	for _, s := range []string{"", all.String(), "\u2028\U0001f512", "a\xffb"} {
		var j jsonWriter
		j.open("", '{')
		j.str("k"+s, s)
		j.open("list", '[')
		j.close(']')
		j.strs("strs", []string{s, s})
		j.close('}')
		var v map[string]any
		if err := json.Unmarshal(j.bytes(), &v); err != nil {
			t.Errorf("%q: %v\n%s", s, err, j.b)
			continue
		}
		want := strings.ToValidUTF8(s, "\ufffd")
		if v["k"+want] != want || v["strs"].([]any)[1] != want || len(v["list"].([]any)) != 0 {
			t.Errorf("%q comes back as %q", s, v)
		}
		if i := bytes.IndexFunc(j.b, func(r rune) bool { return r < ' ' && r != '\n' || r >= 0x7f && r < 0xa0 }); i >= 0 {
			t.Errorf("%q is written with the control character %#x", s, j.b[i])
		}
	}
}

func TestRedirectSaysHowManyWereTold(t *testing.T) {
	path := serve(t, &fakeDaemon{})
	if status, out, _ := call(System{}, "redirect", "plant", "192.0.2.9", "--socket", path); status != ExitOK || out != "3 told to go to 192.0.2.9\n" {
		t.Errorf("status %d, %q", status, out)
	}
	if status, _, errs := call(System{}, "redirect", "plan", "192.0.2.9", "--socket", path); status != ExitFailed || !strings.Contains(errs, "no matching SAs") {
		t.Errorf("status %d, %q", status, errs)
	}
}
