package engine

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"postern/board"
	"postern/engine/control"
)

// A client that counts the CHILD SAs between two hosts, as nhrpd does, is told of each one's
// beginning and end, the new one's first.
func TestClientsAreToldOfTheStatesOfChildSAs(t *testing.T) {
	wire := &fakeWire{}
	a, path := withControl(t, wire.host("192.0.2.1"), fmt.Sprintf(confA, "", "aes128gcm16", "none"))
	startEngine(t, wire.host("192.0.2.2"), parse(t, confB), board.Tiny)
	c, err := control.Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	listener, err := control.Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	events := make(chan string, 100)
	go func() {
		_ = listener.Listen(func(ev string, m *control.Message) error {
			events <- ev + " " + m.String()
			return nil
		}, "child-state-installed", "child-state-rekeyed", "child-state-destroying")
	}()
	eventually(t, "the client is registered", func() bool { return a.ctl.Wanted(control.EvChildDestroying) })
	call := func(name string, kv ...string) {
		t.Helper()
		if resp, err := c.Call(name, newMessage(kv...)); err != nil || control.Check(name, resp) != nil {
			t.Fatalf("%s: %v (%v)", name, err, resp)
		}
	}
	want := func(event, child, state string, more ...string) {
		t.Helper()
		select {
		case got := <-events:
			// nhrpd finds the CHILD SA by its depth, and the hosts beside the section.
			head := event + ` plant{uniqueid="1"`
			tail := fmt.Sprintf(`child-sas{%s{name="net" uniqueid=%q`, child, child[len("net-"):])
			for _, w := range append(more, head, `local-host="192.0.2.1"`, `remote-host="192.0.2.2"`, tail, `state="`+state+`"`) {
				if !strings.Contains(got, w) {
					t.Errorf("event lacks %s:\n%s", w, got)
				}
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("%s of %s did not come", event, child)
		}
	}
	// What nhrpd sends.
	call(control.CmdInitiate, "child", "net", "timeout", "-1", "async", "1", "init-limits", "1", "my-host", "192.0.2.1", "other-host", "192.0.2.2")
	want("child-state-installed", "net-1", "INSTALLED", `local-id="a.example"`, `remote-id="b.example"`)
	call(control.CmdRekey, "child", "net")
	want("child-state-installed", "net-2", "INSTALLED", `local-id="a.example"`, `remote-id="b.example"`)
	want("child-state-rekeyed", "net-1", "REKEYED")
	want("child-state-destroying", "net-1", "DELETING")
	call(control.CmdTerminate, "ike-id", "1")
	want("child-state-destroying", "net-2", "DELETING")
}
