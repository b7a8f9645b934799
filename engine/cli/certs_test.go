package cli

import (
	"encoding/json"
	"testing"

	"postern/engine/control"
)

// certDaemon has a certificate of each kind, and a bare key.
type certDaemon struct{ empty bool }

func (d certDaemon) Command(name string, _ *control.Message, stream func(string, *control.Message) error) (*control.Message, bool) {
	if name != control.CmdListCerts {
		return nil, false
	}
	for _, c := range []struct{ flag, subject, ours string }{
		{"NONE", "C=CH, CN=gw.example", "yes"}, {"CA", "CN=b\x1bad", ""}, {"NONE", "CN=pump.example", ""},
	} {
		if d.empty {
			return new(control.Message), true
		}
		m := new(control.Message).Set(control.KeyCertType, "X509").Set(control.KeyCertFlag, c.flag)
		if c.ours != "" {
			m.Set(control.KeyHasPrivate, c.ours)
		}
		_ = stream(control.EvListCert, m.Set(control.KeyCertData, "DER").Set(control.KeySubject, c.subject).
			Set(control.KeyNotBefore, "2026-01-01T00:00:00Z").Set(control.KeyNotAfter, "2028-01-01T00:00:00Z"))
	}
	_ = stream(control.EvListCert, new(control.Message).Set(control.KeyCertType, "PUBKEY").Set(control.KeyCertData, "DER"))
	return new(control.Message), true
}

func TestCertificatesAreShown(t *testing.T) {
	path := serve(t, certDaemon{})
	status, out, errs := call(System{}, "certs", "--socket", path)
	const want = `ours from 2026-01-01 until 2028-01-01: C=CH, CN=gw.example
CA   from 2026-01-01 until 2028-01-01: CN=b\x1bad
peer from 2026-01-01 until 2028-01-01: CN=pump.example
peer a public key
`
	if status != ExitOK || out != want {
		t.Errorf("status %d, %s\n%s\nwant\n%s", status, errs, out, want)
	}
	status, out, _ = call(System{}, "certs", "--socket", path, "--json")
	var v struct {
		Certificates []struct {
			Type, Flag, Subject string
			PrivateKey          bool   `json:"private_key"`
			NotAfter            string `json:"not_after"`
		}
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil || status != ExitOK || len(v.Certificates) != 4 || !v.Certificates[0].PrivateKey ||
		v.Certificates[1].PrivateKey || v.Certificates[1].Flag != "CA" || v.Certificates[2].NotAfter != "2028-01-01T00:00:00Z" || v.Certificates[3].Type != "PUBKEY" {
		t.Errorf("status %d, %v: %s", status, err, out)
	}
	if status, out, _ = call(System{}, "certs", "--socket", serve(t, certDaemon{empty: true})); status != ExitOK || out != "There are no certificates.\n" {
		t.Errorf("without any: status %d, %s", status, out)
	}
}
