package vici

import (
	"testing"

	"postern/engine/control"
	"postern/engine/control/controltest"
)

// fuzzed are the commands that read more than one value of their request.
var fuzzed = []string{"load-conn", "load-shared", "load-key", "load-cert", "load-pool", "load-authority", "unload-conn", "unload-shared", "unload-key",
	"unload-pool", "unload-authority", "list-conns", "list-certs", "list-authorities", "list-policies", "list-sas", "get-pools", "flush-certs",
	"install", "uninstall", "redirect", "rekey", "terminate", "initiate", "test-policy", "stats"}

// Whatever a client sends, it gets an answer, and what was loaded before is there as it was if that
// is an error.
func FuzzCommands(f *testing.F) {
	for i, req := range []*control.Message{
		homeConn("home"), controltest.Message("id=a", "type=IKE", "data=xxxxxxxxxxxxxxxxxxxxxxxxxx", "owners[]=a,b"), controltest.Message("type=X509", "flag=CA", "data=x"),
		controltest.Message("p.addrs=10.0.0.0/24", "p.dns[]=10.0.0.1"), controltest.Message("ike=home", "timeout=-1"), controltest.Message("src=10.1.0.1", "dst=10.2.0.1", "proto=6"),
	} {
		b, err := req.Append(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), b)
	}
	f.Fuzz(func(t *testing.T, which uint8, body []byte) {
		req, err := control.Decode(body)
		if err != nil {
			return
		}
		d := newFake(t, fileConf)
		if got, _ := d.run("load-conn", homeConn("kept")); got != yesText {
			t.Fatal(got)
		}
		before := d.loaded
		name := fuzzed[int(which)%len(fuzzed)]
		if name == control.CmdInitiate || name == control.CmdTerminate {
			req.Set(control.KeyTimeout, "-1") // nothing is to be waited for
		}
		resp, ok := Handler{D: d}.Command(name, req, func(_ string, m *control.Message) error {
			if m != nil {
				if _, err := m.Append(nil); err != nil {
					t.Errorf("%s streams what cannot be sent: %v", name, err)
				}
			}
			return nil
		})
		if !ok || resp == nil {
			t.Fatalf("%s has no answer", name)
		}
		if _, err := resp.Append(nil); err != nil {
			t.Errorf("%s answers what cannot be sent: %v", name, err)
		}
		// Of several sections those before a bad one stay.
		if resp.Get(control.KeySuccess) == "no" && d.loaded != before && len(req.Elements()) == 1 {
			t.Errorf("%s has changed something and answers %s", name, resp)
		}
	})
}
