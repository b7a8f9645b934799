package log

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestSubscriberSeesLinesUntilCancelled(t *testing.T) {
	var b bytes.Buffer
	l := fixed(&b, Info)
	var got []string
	cancel := l.Subscribe(Warn, func(n *Line) {
		got = append(got, fmt.Sprintf("%s %d %q %d %s", n.Group, n.Grade, n.Conn, n.IKE, n.Text))
	})
	other := l.Subscribe(Error, func(*Line) {})
	l.Log(Net, Warn, "one", Str("conn", "c"), Int("ike", 7), Int("n", 1), Err(nil))
	l.Log(Net, Info, "beyond what is wanted")
	cancel()
	cancel()
	l.Log(Net, Warn, "two")
	other()
	if want := `NET 1 "c" 7 one: conn=c ike=7 n=1`; len(got) != 1 || got[0] != want {
		t.Errorf("subscriber saw %q, want only %q", got, want)
	}
	if l.subs.Load() != nil {
		t.Error("cancelled subscribers stay behind")
	}
}

func TestGroupAndGradeAreNoTextOfTheLine(t *testing.T) {
	var b bytes.Buffer
	l := fixed(&b, Info)
	var got []string
	defer l.Subscribe(Debug, func(n *Line) { got = append(got, fmt.Sprintf("%s %d %s", n.Group, n.Grade, n.Text)) })()
	l.Log(Child, Info, "up", At(Audit))
	l.Log(IKE, Error, "wrong", Err(errors.New("no key")))
	l.Log(Messages, Debug, "fine", At(Control))
	l.Log(Config, Info, "read")
	want := []string{"CHD 0 up", `IKE 0 wrong: err="no key"`, "ENC 1 fine", "CFG 1 read"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("subscriber saw %q, want %q", got, want)
	}
	for _, s := range []string{"area=esp msg=up\n", "area=net msg=read\n"} {
		if !strings.Contains(b.String(), s) {
			t.Errorf("the log has %q, want a line that ends with %q: the group is no part of it", b.String(), s)
		}
	}
	if strings.Contains(b.String(), "fine") {
		t.Error("a line for the subscriber alone was written, too")
	}
}

func TestSubscriberRaisesWhatIsBuiltNotWhatIsWritten(t *testing.T) {
	var b bytes.Buffer
	l := fixed(&b, Error)
	n := 0
	cancel := l.Subscribe(Info, func(*Line) { n++ })
	if !l.Enabled(ESP, Info) || l.Enabled(ESP, Debug) || l.Writes(ESP, Info) {
		t.Errorf("with a subscriber for info: enabled %v, debug %v, written %v; want yes, no, no",
			l.Enabled(ESP, Info), l.Enabled(ESP, Debug), l.Writes(ESP, Info))
	}
	l.SetLevel(ESP, Warn) // must not take the subscriber's share away
	l.Log(ESP, Info, "seen")
	cancel()
	l.Log(ESP, Info, "not seen")
	if n != 1 || b.Len() != 0 {
		t.Errorf("subscriber saw %d lines and the log has %q, want 1 and none", n, b.String())
	}
	if l.Enabled(ESP, Info) || !l.Enabled(ESP, Warn) {
		t.Error("without the subscriber the area's own level does not hold again")
	}
}

func TestSubscribersTextStaysOneLineOfBoundedLength(t *testing.T) {
	l := fixed(&bytes.Buffer{}, Info)
	var got string
	defer l.Subscribe(Info, func(n *Line) { got = n.Text })()
	l.Log(IKE, Info, "IKE_AUTH [ \x1b[2J\n ]", Str("a", "x\ny"), Str("b", strings.Repeat("\x01", 400)), Str("c", strings.Repeat("z", 400)))
	if strings.ContainsAny(got, "\n\x1b\x01") {
		t.Errorf("text %q has control characters: a peer could write lines of its own", got)
	}
	if len(got) > maxLine || !strings.HasSuffix(got, " cut=yes") {
		t.Errorf("text has %d octets and ends with %q, want at most %d and a note that it was cut", len(got), got[len(got)-10:], maxLine)
	}
}
