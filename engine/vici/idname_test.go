package vici

import (
	"testing"

	"postern/ike"
)

// Identities are written as charon does, for whoever compares.
func TestIdentitiesAreWrittenAsCharonDoes(t *testing.T) {
	for text, want := range map[string]string{
		"@#0a0b0c": "0a:0b:0c", "@#00": "00", "keyid:weir-7": "weir-7", "gw.example": "gw.example", "192.0.2.1": "192.0.2.1", "C=CH, CN=gw": "C=CH, CN=gw",
	} {
		id, err := ike.ParseIDString(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := idName(id); got != want {
			t.Errorf("%s is written as %s, expected %s", text, got, want)
		}
	}
}
