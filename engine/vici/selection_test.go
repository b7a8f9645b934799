package vici

import (
	"strings"
	"testing"

	"postern/engine/control"
	"postern/engine/control/controltest"
	"postern/ike"
)

func TestNumberThatIsNoneDoesNotStandForAll(t *testing.T) {
	d := newFake(t, fileConf)
	d.sas = []ike.SAInfo{{Unique: 1, Conn: "site", State: ike.StateEstablished, Children: []ike.ChildInfo{{Unique: 1, Name: "net"}}}}
	for _, req := range []string{"ike-id=x", "child-id=-1", "ike-id=4294967297", "child-id=1.5"} {
		for _, name := range []string{"terminate", "rekey", "redirect", "list-sas"} {
			got, events := d.run(name, controltest.Message("ike=site", req, "timeout=-1", "gateway=192.0.2.1"))
			if want := `success="no" errmsg="` + strings.Split(req, "=")[0]; !strings.HasPrefix(got, want) || len(d.said)+len(events) > 0 {
				t.Errorf("%s with %s answers %s, and does %v: want %s", name, req, got, d.said, want)
			}
		}
	}
	if d.run("terminate", controltest.Message("ike=site", "ike-id=1", "timeout=-1")); len(d.said) == 0 {
		t.Error("a number that is one selects nothing")
	}
}

func TestCredentialThatIsThereTwiceIsRefused(t *testing.T) {
	b, err := controltest.Message("type=IKE", "data=the first of two secrets").Append(nil)
	if err == nil {
		b, err = controltest.Message("data=the second of two secrets").Append(b)
	}
	if err != nil {
		t.Fatal(err)
	}
	req, err := control.Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := newFake(t, fileConf).run("load-shared", req); got != `success="no" errmsg="data is there twice"` {
		t.Errorf("two secrets in one message are answered with %s", got)
	}
}
