//go:build linux

package e2e

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"postern/platform"
)

// measured is what the JSON of the measurement is looked at for.
type measured struct {
	Algorithms []struct{ Name string }
	Path       struct {
		Measured bool
		Own      bool `json:"own_namespace"`
		Problem  string
		TUN, UDP string
		Traffic  []struct {
			Packet struct {
				Seal int64 `json:"seal_packets_per_s"`
				Open int64 `json:"open_packets_per_s"`
			}
		}
	}
	Choice struct{ ESP, Why string }
}

// noAdmin runs a program as root that may not make namespaces, and so has to measure in the
// one where it is.
var noAdmin = []string{"setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"}

// measureIn starts 'postern bench' in a network namespace.
func measureIn(t *testing.T, ns *platform.Namespace, wrapper []string, args ...string) (cmd *exec.Cmd, out, errs *bytes.Buffer) {
	t.Helper()
	line := append(append(append([]string(nil), wrapper...), posternBinary(t), "bench"), args...)
	cmd, out, errs = exec.Command(line[0], line[1:]...), new(bytes.Buffer), new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = out, errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd, out, errs
}

func newMeasureNS(t *testing.T) *platform.Namespace {
	t.Helper()
	ns, err := platform.NewNamespace()
	if err != nil {
		lacks(t, "no network namespace: %v", err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// measuring tells whether the device of the measurement is in the namespace.
func measuring(ns *platform.Namespace) bool {
	return ns.Netlink(func(nl *platform.Netlink) error { _, err := nl.LinkByName("pstbench0"); return err }) == nil
}

func TestMeasurementOfTheWholePath(t *testing.T) {
	need(t, "setpriv")
	t.Parallel()
	for name, wrapper := range map[string][]string{"in a namespace of its own": nil, "where it is": noAdmin} {
		ns := newMeasureNS(t)
		cmd, out, errs := measureIn(t, ns, wrapper, "-t", "1", "--json")
		if err := cmd.Wait(); err != nil {
			t.Fatalf("%s: %v\n%s%s", name, err, out, errs)
		}
		var m measured
		if err := json.Unmarshal(out.Bytes(), &m); err != nil {
			t.Fatal(err)
		}
		if !m.Path.Measured || m.Path.Own != (wrapper == nil) || len(m.Path.Traffic) != 3 || len(m.Algorithms) != 4 || m.Choice.ESP == "" || m.Choice.Why == "" {
			t.Errorf("%s: %s", name, out)
		}
		for _, f := range m.Path.Traffic {
			if f.Packet.Seal < 100 || f.Packet.Open < 100 {
				t.Errorf("%s: a few packets a second cannot be true: %s", name, out)
			}
		}
		if measuring(ns) {
			t.Errorf("%s: the device is still there", name)
		}
	}
}

func TestInterruptedMeasurementRemovesItsDevice(t *testing.T) {
	need(t, "setpriv")
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
		ns := newMeasureNS(t)
		cmd, out, errs := measureIn(t, ns, noAdmin, "-t", "5")
		if !eventually(20*time.Second, func() bool { return measuring(ns) }) {
			t.Fatalf("no device appears: %s%s", out, errs)
		}
		cmd.Process.Signal(sig)
		began := time.Now()
		err := cmd.Wait()
		if sig != syscall.SIGKILL && (exitCode(err) != 1 || out.Len() > 0 || !strings.Contains(errs.String(), "interrupted")) {
			t.Errorf("after %v it exits with %v:\n%s%s", sig, err, out, errs)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("after %v it goes on for %v", sig, took)
		}
		// What a killed process has left the kernel removes a moment after its end.
		if !eventually(2*time.Second, func() bool { return !measuring(ns) }) {
			t.Errorf("after %v the device is still there", sig)
		}
	}
}

func TestMeasurementWithoutPrivilegesSaysWhatIsMissing(t *testing.T) {
	need(t, "setpriv")
	t.Parallel()
	cmd, out, errs := measureIn(t, newMeasureNS(t), []string{"setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"}, "-t", "1")
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s%s", err, out, errs)
	}
	text := strings.Join(strings.Fields(out.String()), " ")
	for _, want := range []string{"was not measured:", "lacks CAP_NET_ADMIN", "run as root", "AES-128-GCM", "Would use"} {
		if !strings.Contains(text, want) {
			t.Errorf("the report lacks %q:\n%s", want, out)
		}
	}
}
