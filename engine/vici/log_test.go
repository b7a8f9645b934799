package vici

import (
	"bytes"
	"net"
	"testing"
	"time"

	"postern/engine/control"
	"postern/engine/log"
)

func TestLogEventHasCharonsKeysAndGoesToWhoAsks(t *testing.T) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: t.TempDir() + "/s", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	lg := log.New(new(bytes.Buffer), log.Error)
	lines := &LogEvents{Log: lg}
	lines.Server = control.NewServer(l, Handler{}, control.Options{Log: lg})
	lines.Server.OnWanted(lines.Follow)
	ended := make(chan error, 1)
	go func() { ended <- lines.Server.Serve() }()
	defer func() { _ = lines.Server.Close(); <-ended }()
	if lg.Enabled(log.IKE, log.Info) {
		t.Error("lines are built before anybody listens")
	}
	c, err := control.Dial(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got := make(chan *control.Message, 8)
	go func() { _ = c.Listen(func(_ string, m *control.Message) error { got <- m; return nil }, control.EvLog) }()
	for end := time.Now().Add(20 * time.Second); !lg.Enabled(log.IKE, log.Info); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a client has registered for the log, and no lines are built for it")
		}
	}
	lg.Log(log.IKE, log.Debug, "more than is sent")
	lg.Log(log.IKE, log.Info, "IKE SA established", log.At(log.Audit), log.Str("conn", "plant"), log.Int("ike", 4))
	lg.Log(log.Kernel, log.Warn, "no route")
	for _, want := range []*control.Message{
		new(control.Message).Set("group", "IKE").Set("level", "0").Set("thread", "0").Set("ikesa-name", "plant").
			Set("ikesa-uniqueid", "4").Set("msg", "IKE SA established: conn=plant ike=4"),
		new(control.Message).Set("group", "KNL").Set("level", "1").Set("thread", "0").Set("msg", "no route"),
	} {
		select {
		case m := <-got:
			a, _ := m.Append(nil)
			b, _ := want.Append(nil)
			if !bytes.Equal(a, b) {
				t.Errorf("log event is %q, want %q: clients know charon's keys and order", a, b)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("a line has not come")
		}
	}
	_ = c.Close()
	for end := time.Now().Add(20 * time.Second); lg.Enabled(log.IKE, log.Info); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("lines are built on for a client that has gone")
		}
	}
}
