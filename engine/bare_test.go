package engine

import (
	"fmt"
	"strings"
	"testing"

	"postern/board"
	"postern/engine/control"
)

// A client that names the connection alone gets the IKE SA alone, with the peer's consent.
func TestInitiateWithoutAChildBringsUpTheIKESAAlone(t *testing.T) {
	for _, never := range []bool{false, true} {
		wire := &fakeWire{}
		a := startEngine(t, wire.host("192.0.2.1"), parse(t, fmt.Sprintf(confA, "", "aes128gcm16", "none")), board.Tiny)
		text := confB
		if never {
			text = strings.Replace(text, "remote_addrs", "childless = \"never\"\nremote_addrs", 1)
		}
		startEngine(t, wire.host("192.0.2.2"), parse(t, text), board.Tiny)
		const name = "plant"
		resp, _ := a.command(control.CmdInitiate, "ike", name, "loglevel", "-1")
		if never {
			if want := `success="no" errmsg="establishing IKE_SA '` + name + "' failed: one side wants"; !strings.HasPrefix(resp, want) {
				t.Errorf("the peer does not take part: %s", resp)
			}
			continue
		}
		_, sas := a.command(control.CmdListSAs)
		if all := strings.Join(sas, "\n"); resp != `success="yes"` || len(sas) != 1 || !strings.Contains(all, `state="ESTABLISHED"`) || !strings.Contains(all, "child-sas{}") {
			t.Errorf("initiate answers %s, the SAs are %s", resp, all)
		}
		if resp, _ = a.command(control.CmdInitiate, "child", "net", "loglevel", "-1"); resp != `success="yes"` || a.d.sad.used() != 1 {
			t.Errorf("the child afterwards: %s, %d CHILD SAs", resp, a.d.sad.used())
		}
	}
}
