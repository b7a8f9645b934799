package vici

import (
	"slices"
	"strings"
	"testing"

	"postern/engine/control/controltest"
)

// strongSwan's clients that name no child want the IKE SA alone; ours want all children.
func TestInitiateWithoutAChild(t *testing.T) {
	for req, want := range map[string]string{
		"ike=office": "office/ alone", "ike=office child=net": "office/net", "child=net": "office/net",
		"ike=office postern=yes": "office/", "ike=office child=net postern=yes": "office/net",
	} {
		d := newFake(t, fileConf)
		if got, _ := d.run("initiate", controltest.Message(strings.Fields(req)...)); got != yesText || !slices.Equal(d.said, []string{want}) {
			t.Errorf("initiate %s answers %s, and asks the machine for %q, want %q", req, got, d.said, want)
		}
	}
}
