package log

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 5e6, time.FixedZone("CET", 3600))

func fixed(b *bytes.Buffer, level Level) *Logger {
	l := New(b, level)
	l.SetClock(func() time.Time { return noon })
	return l
}

func TestLineHasTimeLevelAreaAndConnectionFirst(t *testing.T) {
	var b bytes.Buffer
	l := fixed(&b, Info)
	l.Log(IKE, Info, "CHILD SA established", Hex32("spi_in", 0xc1234567), Str("conn", "plant"), Str("child", "modbus"),
		Hex64("spi_i", 0xab), Int("tries", -2), Uint("bytes", 1<<63), Dur("rtt", 12345678*time.Nanosecond), Bool("nat", true),
		Addr("from", netip.MustParseAddr("192.0.2.1")), AddrPort("to", netip.MustParseAddrPort("[2001:db8::1]:500")),
		Err(errors.New("no answer")), Err(nil))
	want := `time=2026-03-01T11:00:00.005Z level=info area=ike conn=plant child=modbus msg="CHILD SA established" ` +
		`spi_in=c1234567 spi_i=00000000000000ab tries=-2 bytes=9223372036854775808 rtt=12ms nat=yes from=192.0.2.1 ` +
		`to=[2001:db8::1]:500 err="no answer"` + "\n"
	if b.String() != want {
		t.Errorf("line is\n%swant\n%s", b.String(), want)
	}
}

func TestPeerChosenTextStaysOneValueOfOneLine(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"gw.example", `gw.example`},
		{"", `""`},
		{"a b", `"a b"`},
		{"x\ntime=2026 level=error msg=forged", `"x\ntime=2026 level=error msg=forged"`},
		{"x\r\ty", `"x\r\ty"`},
		{`a" level="b`, `"a\" level=\"b"`},
		{`c:\d`, `"c:\\d"`},
		{"k=v", `"k=v"`},
		{"\x1b[2Jgone", `"\x1b[2Jgone"`},
		{"\x00\x7f", `"\x00\x7f"`},
		{"bad\xff\xfe", `"bad\xff\xfe"`},
		{"caf\u00e9", "\"caf\u00e9\""},
		{"a\u202eb\u2028c", `"a\u202eb\u2028c"`},
		{"\U000e0041", `"\U000e0041"`},
		{"\ufffd", "\"\ufffd\""},
	} {
		var b bytes.Buffer
		fixed(&b, Info).Log(IKE, Info, "m", Str("id", tc.in))
		want := "time=2026-03-01T11:00:00.005Z level=info area=ike msg=m id=" + tc.want + "\n"
		if b.String() != want {
			t.Errorf("value %q gives\n%swant\n%s", tc.in, b.String(), want)
		}
	}
}

func TestLongValuesAndLinesAreCut(t *testing.T) {
	var b bytes.Buffer
	l := fixed(&b, Info)
	l.Log(IKE, Info, "m", Str("id", strings.Repeat("\u00e9", maxValue)), Str("next", "seen"))
	if s := b.String(); !strings.Contains(s, "\u00e9...\"") || !strings.HasSuffix(s, " next=seen\n") {
		t.Errorf("a long value must end in dots and leave room for the next: %q", s)
	}
	b.Reset()
	var fields []Field
	for range 20 {
		fields = append(fields, Str("k", strings.Repeat("\x01", maxValue)))
	}
	l.Log(IKE, Info, "m", fields...)
	if s := b.String(); len(s) > maxLine || !strings.HasSuffix(s, " cut=yes\n") || strings.Count(s, "\n") != 1 {
		t.Errorf("a long line must be one line of at most %d octets that says cut=yes, is %d: ...%q", maxLine, len(s), s[len(s)-20:])
	}
}

func TestLevelIsPerAreaAndChangesAtRunTime(t *testing.T) {
	var b bytes.Buffer
	l := fixed(&b, Info)
	l.SetLevel(ESP, Debug)
	l.Log(IKE, Debug, "no")
	l.Log(ESP, Debug, "yes")
	l.SetLevel(ESP, Error)
	l.Log(ESP, Warn, "no")
	if got := strings.Count(b.String(), "\n"); got != 1 || !strings.Contains(b.String(), "msg=yes") {
		t.Errorf("only the ESP debug line may pass while ESP is at debug, got:\n%s", b.String())
	}
	var none *Logger
	none.Log(IKE, Error, "a nil logger writes nothing")
	none.SetAll(Debug)
	if none.Enabled(IKE, Error) {
		t.Error("a nil logger says it would write")
	}
	var zero Logger
	if !zero.Enabled(IKE, Error) || zero.Enabled(IKE, Warn) {
		t.Error("the zero logger must let errors pass, and nothing else")
	}
}

func TestSuppressedLineCostsNoAllocation(t *testing.T) {
	l := New(&bytes.Buffer{}, Error)
	err := errors.New("x")
	a := netip.MustParseAddrPort("192.0.2.1:500")
	name := strings.Clone("plant")
	if n := testing.AllocsPerRun(100, func() {
		l.Log(ESP, Debug, "dropped", Str("conn", name), Hex32("spi", 7), Int("n", 3), Dur("d", time.Second), Err(err), AddrPort("from", a), Addr("a", a.Addr()))
	}); n != 0 {
		t.Errorf("a line below its level allocates %v times, want 0: debug lines in the data path would cost", n)
	}
}

// listenSyslog stands for a syslog daemon.
func listenSyslog(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func receive(t *testing.T, c *net.UnixConn) string {
	t.Helper()
	b := make([]byte, 4096)
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, err := c.Read(b)
	if err != nil {
		t.Fatalf("no syslog line came: %v", err)
	}
	return string(b[:n])
}

func TestSyslogReconnectsAndFallsBackToStandardError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	d := listenSyslog(t, path)
	var fallback bytes.Buffer
	l := NewSyslog(path, Info)
	l.out = &fallback
	now := noon
	l.SetClock(func() time.Time { return now })

	l.Log(IKE, Error, "first", Str("conn", "plant"))
	head := "<27>Mar  1 12:00:00 postern["
	if got := receive(t, d); !strings.HasPrefix(got, head) || !strings.HasSuffix(got, "]: level=error area=ike conn=plant msg=first") {
		t.Errorf("syslog got %q, want %q... (daemon facility, error severity) and the line without its time", got, head)
	}
	// The syslog daemon restarts between two lines.
	_ = d.Close()
	_ = os.Remove(path)
	d = listenSyslog(t, path)
	l.Log(IKE, Info, "second")
	if got := receive(t, d); !strings.HasPrefix(got, "<30>") || !strings.HasSuffix(got, "msg=second") {
		t.Errorf("after its restart syslog got %q", got)
	}
	// It goes away.
	_ = d.Close()
	_ = os.Remove(path)
	l.Log(IKE, Info, "third")
	l.Log(IKE, Info, "fourth")
	want := "postern: no syslog daemon at " + path + ": logging to standard error\n"
	if s := fallback.String(); !strings.HasPrefix(s, want) || strings.Count(s, "no syslog") != 1 ||
		!strings.Contains(s, "msg=third") || !strings.Contains(s, "msg=fourth") {
		t.Errorf("without syslog the lines must go to standard error after one notice, got:\n%s", s)
	}
	// It comes back, and is asked again after the pause.
	d = listenSyslog(t, path)
	defer func() { _ = d.Close() }()
	now = now.Add(2 * syslogRetry)
	l.Log(IKE, Info, "fifth")
	if got := receive(t, d); !strings.HasSuffix(got, "msg=fifth") {
		t.Errorf("after its return syslog got %q", got)
	}
}

func TestStuckSyslogDoesNotHoldTheLogger(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	d := listenSyslog(t, path) // which never reads
	defer func() { _ = d.Close() }()
	var fallback bytes.Buffer
	l := NewSyslog(path, Info)
	l.out = &fallback
	l.SetClock(func() time.Time { return noon })
	start := time.Now()
	for range 5000 {
		l.Log(IKE, Info, "flood")
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("5000 lines to a syslog daemon that does not read took %v: the daemon would stall", took)
	}
	if !strings.Contains(fallback.String(), "msg=flood") {
		t.Error("lines that syslog does not take must go to standard error")
	}
}

func TestLimiterLetsOneLinePerKeyAndIntervalPass(t *testing.T) {
	l := NewLimiter(10*time.Second, 2)
	check := func(key string, at time.Duration, wantN int, wantOK bool) {
		t.Helper()
		if n, ok := l.Allow(key, at); n != wantN || ok != wantOK {
			t.Errorf("%s at %v: got %d, %v, want %d, %v", key, at, n, ok, wantN, wantOK)
		}
	}
	check("a", 0, 0, true)
	check("a", time.Second, 0, false)
	check("b", time.Second, 0, true)
	check("a", 9*time.Second, 0, false)
	check("a", 10*time.Second, 2, true)
	// The table is full: further keys share one place.
	check("c", 10*time.Second, 0, true)
	check("d", 10*time.Second, 0, false)
	check("b", 10500*time.Millisecond, 0, false)
	// b's interval is over: its place is free, and what it held back is counted with the rest.
	check("e", 11*time.Second, 0, true)
	check("f", 20*time.Second, 0, true)
	check("g", 20*time.Second, 2, true)
}

func TestLimiterIsBoundedWhateverThePeerSends(t *testing.T) {
	l := NewLimiter(time.Second, 16)
	passed := 0
	for i := range 10000 {
		if _, ok := l.Allow(string(rune(i+256)), 0); ok {
			passed++
		}
	}
	if passed != 17 || len(l.slots) != 16 {
		t.Errorf("of 10000 keys at once %d lines passed and %d are remembered, want 17 and 16", passed, len(l.slots))
	}
}

func TestParseLevelNamesWhatExists(t *testing.T) {
	for _, lv := range []Level{Error, Warn, Info, Debug} {
		if got, err := ParseLevel(lv.String()); err != nil || got != lv {
			t.Errorf("ParseLevel(%q) = %v, %v", lv, got, err)
		}
	}
	if _, err := ParseLevel("loud"); err == nil || !strings.Contains(err.Error(), "error, warn, info, debug") {
		t.Errorf("ParseLevel(loud): %v, want an error that lists the levels", err)
	}
}
