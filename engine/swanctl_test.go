package engine

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"postern/board"
	"postern/engine/control"
)

// withControl starts an engine with a control socket and returns the socket's path.
func withControl(t *testing.T, h *fakeHost, text string) (*running, string) {
	t.Helper()
	cfg := parse(t, text)
	cfg.Daemon.Control = filepath.Join(t.TempDir(), "vici")
	r := startEngine(t, h, cfg, board.Tiny)
	eventually(t, "the control socket answers", func() bool {
		c, err := control.Dial(cfg.Daemon.Control)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	return r, cfg.Daemon.Control
}

func TestSwanctlDrivesTheEngine(t *testing.T) {
	swanctl, err := exec.LookPath("swanctl")
	if err != nil {
		t.Skip("swanctl is not installed (Debian: strongswan-swanctl): the commands are only tested without it")
	}
	wire := &fakeWire{}
	_, path := withControl(t, wire.host("192.0.2.1"), fmt.Sprintf(confA, "encap = true", "aes128gcm16-x25519-esn", "none"))
	startEngine(t, wire.host("192.0.2.2"), parse(t, confB), board.Tiny)
	run := func(args string) (string, error) {
		out, err := exec.Command(swanctl, append(strings.Fields(args), "--uri", "unix://"+path)...).CombinedOutput()
		return string(out), err
	}
	for _, c := range []struct {
		args string
		fail bool
		want []string
	}{
		{"--version --daemon", false, []string{"strongSwan 1.2.3 postern (Linux, "}},
		{"--stats", false, []string{"uptime: ", "worker threads: 1 total, 1 idle", "IKE_SAs: 0 total, 0 half-open", "mallinfo: sbrk "}},
		{"--list-conns", false, []string{"plant: IKEv2, no reauthentication, rekeying every 14400s", "local:  %any", "remote: 192.0.2.2",
			"local pre-shared key authentication:", "id: a.example", "net: TUNNEL, rekeying every 3600s", "local:  10.1.0.0/16 2001:db8:1::/48"}},
		{"--initiate --child nett", true, []string{"initiate failed: CHILD_SA config 'nett' not found"}},
		{"--initiate --child net", false, []string{"[IKE] ", "CHILD SA established", "initiate completed successfully"}},
		{"--list-sas", false, []string{"plant: #1, ESTABLISHED, IKEv2, ", "_i* ", "local  'a.example' @ 192.0.2.1[4500]", "remote 'b.example' @ 192.0.2.2[4500]",
			"AES_GCM_16-128/PRF_HMAC_SHA2_256/CURVE_25519", "established 0s ago, rekeying in ",
			"net: #1, reqid 1, INSTALLED, TUNNEL-in-UDP, ESP:AES_GCM_16-128/ESN", "installed 0s ago, rekeying in ", "0 bytes,     0 packets",
			"local  10.1.0.0/16 2001:db8:1::/48", "remote 10.2.0.0/16 2001:db8:2::/48"}},
		{"--rekey --child net", false, []string{"rekey completed successfully"}},
		{"--redirect --gateway 192.0.2.9", true, []string{"missing redirect selector"}},
		{"--redirect --ike plant --gateway 192.0.2.0/24", true, []string{"unsupported gateway identity"}},
		{"--redirect --peer-ip 192.0.2.5-192.0.2.9 --gateway 192.0.2.9", true, []string{"no matching SAs to redirect found"}},
		{"--redirect --peer-id *.test --gateway 192.0.2.9", true, []string{"no matching SAs to redirect found"}},
		// The far end is the gateway here.
		{"--redirect --peer-ip 192.0.2.0/24 --peer-id *.example --gateway 192.0.2.9", true, []string{"did not say that it can be redirected"}},
		{"--terminate --ike plant", false, []string{"terminate completed successfully"}},
		{"--terminate --ike plant", true, []string{"terminate failed: no matching SAs to terminate found"}},
		{"--reload-settings", true, []string{"does not know its configuration file"}},
	} {
		out, err := run(c.args)
		if (err != nil) != c.fail {
			t.Errorf("swanctl %s: %v\n%s", c.args, err, out)
		}
		for _, w := range c.want {
			if !strings.Contains(out, w) {
				t.Errorf("swanctl %s lacks %q:\n%s", c.args, w, out)
			}
		}
	}
}

func TestControlClientsLeaveNothingBehind(t *testing.T) {
	before := runtime.NumGoroutine()
	wire := &fakeWire{}
	a, path := withControl(t, wire.host("192.0.2.1"), fmt.Sprintf(confA, "", "aes128gcm16", "none"))
	b := startEngine(t, wire.host("192.0.2.2"), parse(t, confB), board.Tiny)
	c, err := control.Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := control.Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	events := make(chan string, 100)
	go func() {
		_ = listener.Listen(func(ev string, m *control.Message) error {
			events <- ev + " " + m.String()
			return nil
		}, control.EvIKEUpDown, control.EvChildUpDown, control.EvChildRekey)
	}()
	eventually(t, "the client is registered", func() bool { return a.ctl.Wanted(control.EvChildRekey) })
	call := func(name string, kv ...string) {
		t.Helper()
		if resp, err := c.Call(name, newMessage(kv...)); err != nil {
			t.Fatalf("%s: %v (%v)", name, err, resp)
		}
	}
	call(control.CmdInitiate, "child", "net", "loglevel", "-1")
	call(control.CmdRekey, "child", "net")
	eventually(t, "the CHILD SA is rekeyed", func() bool {
		_, sas := a.command(control.CmdListSAs)
		return len(sas) == 1 && strings.Contains(sas[0], "net-2{")
	})
	call(control.CmdTerminate, "ike", "plant", "loglevel", "-1")
	call(control.CmdStats)
	_ = c.Close()
	var all strings.Builder
	for last := ""; !strings.HasPrefix(last, "ike-updown plant{"); {
		select {
		case last = <-events:
			all.WriteString(last + "\n")
		case <-time.After(5 * time.Second):
			t.Fatalf("the end of the IKE SA was not told:\n%s", all.String())
		}
	}
	_ = listener.Close()
	for _, want := range []string{`ike-updown up="yes" plant{uniqueid="1"`, `child-updown up="yes" plant{uniqueid="1"`, "child-sas{net-1{name=\"net\"",
		`child-rekey plant{`, `net{old{name="net" uniqueid="1"`, `new{name="net" uniqueid="2"`} {
		if !strings.Contains(all.String(), want) {
			t.Errorf("the events lack %s:\n%s", want, all.String())
		}
	}
	a.end()
	b.end()
	eventually(t, "every goroutine has ended", func() bool { return runtime.NumGoroutine() <= before })
}
