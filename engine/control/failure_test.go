package control

import (
	"errors"
	"testing"
)

// swanctl shows a text with a line end as octets, which nobody can read.
func TestFailureIsOneLine(t *testing.T) {
	err := errors.Join(errors.New("local_addrs: no such address"), errors.New("proposals: no such cipher"))
	if got, want := Failure(err).Get(KeyErrmsg), "local_addrs: no such address; proposals: no such cipher"; got != want {
		t.Errorf("the reason is %q, expected %q", got, want)
	}
}
