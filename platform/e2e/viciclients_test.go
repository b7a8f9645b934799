//go:build linux

package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// viciClient speaks the control protocol by itself, so that it can do what no decent client does.
type viciClient struct{ net.Conn }

func dialVICI(d *postern) (*viciClient, error) {
	c, err := net.Dial("unix", d.socket())
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return &viciClient{c}, nil
}

// send sends a packet; keys and values follow each other.
func (c *viciClient) send(op byte, name string, kv ...string) error {
	b := append([]byte{0, 0, 0, 0, op, byte(len(name))}, name...)
	for i := 0; i < len(kv); i += 2 {
		b = append(append(b, 3, byte(len(kv[i]))), kv[i]...)
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(kv[i+1]))), kv[i+1]...)
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	_, err := c.Write(b)
	return err
}

// next returns the next packet's type and what follows it.
func (c *viciClient) next() (op byte, body []byte, err error) {
	var n [4]byte
	if _, err = io.ReadFull(c, n[:]); err != nil {
		return 0, nil, err
	}
	body = make([]byte, binary.BigEndian.Uint32(n[:]))
	if _, err = io.ReadFull(c, body); err != nil || len(body) == 0 {
		return 0, nil, errors.Join(err, errors.New("an empty packet"))
	}
	return body[0], body[1:], nil
}

// await returns the next packet of that type.
func (c *viciClient) await(op byte) ([]byte, error) {
	for {
		got, body, err := c.next()
		if err != nil || got == op {
			return body, err
		}
		if got != vEvent {
			return nil, fmt.Errorf("packet type %d, want %d", got, op)
		}
	}
}

// call runs a command to its response, which has to be a success if it says anything about it.
func (c *viciClient) call(name string, kv ...string) error {
	if err := c.send(vCmdRequest, name, kv...); err != nil {
		return err
	}
	body, err := c.await(vCmdResponse)
	if err == nil && strings.Contains(string(body), "success\x00\x02no") {
		err = fmt.Errorf("%s: %q", name, body)
	}
	return err
}

func (c *viciClient) register(events ...string) error {
	for _, e := range events {
		if err := c.send(vEventRegister, e); err != nil {
			return err
		}
		if _, err := c.await(vEventConfirm); err != nil {
			return fmt.Errorf("registering for %s: %w", e, err)
		}
	}
	return nil
}

// viciCrowd is many control clients of a daemon, of several kinds.
type viciCrowd struct {
	t     *testing.T
	d     *postern
	stop  chan struct{}
	wg    sync.WaitGroup
	mu    sync.Mutex
	calls int
}

// over waits a while and tells whether it is time to end.
func (w *viciCrowd) over(d time.Duration) bool {
	select {
	case <-w.stop:
		return true
	case <-time.After(d):
		return false
	}
}

var crowdEvents = []string{"log", "list-sa", "ike-updown", "ike-rekey", "child-updown", "child-rekey"}

// startCrowd starts 200 clients.
func startCrowd(t *testing.T, d *postern) *viciCrowd {
	t.Helper()
	w := &viciCrowd{t: t, d: d, stop: make(chan struct{})}
	ready := make(chan error, 200)
	run := func(n int, client func(c *viciClient, i int)) {
		for i := range n {
			w.wg.Go(func() {
				c, err := dialVICI(d)
				if err == nil {
					err = c.register(crowdEvents...)
				}
				ready <- err
				if err != nil {
					return
				}
				defer func() { c.Close() }()
				client(c, i)
			})
		}
	}
	// Those that listen to everything and read it.
	run(90, func(c *viciClient, i int) {
		_ = c.SetDeadline(time.Time{})
		go func() { <-w.stop; c.Close() }()
		for {
			if _, _, err := c.next(); err != nil {
				return
			}
		}
	})
	// Those that ask again and again for what takes the most, and never read.
	run(40, func(c *viciClient, i int) {
		if u, ok := c.Conn.(*net.UnixConn); ok {
			_ = u.SetReadBuffer(1)
		}
		for !w.over(50 * time.Millisecond) {
			_ = c.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
			if err := c.send(vCmdRequest, "list-sas"); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				<-w.stop // it has been cut off, as it deserves
				return
			}
		}
	})
	// Those that ask and leave before the answer, and come again.
	run(30, func(c *viciClient, i int) {
		for !w.over(200 * time.Millisecond) {
			_ = c.send(vCmdRequest, "list-sas")
			c.Close()
			next, err := dialVICI(d)
			if err != nil {
				t.Errorf("a client that came again: %v", err)
				return
			}
			c = next
			_ = c.send(vEventRegister, "list-sa")
		}
		c.Close()
	})
	// Those that begin a packet and do not end it.
	run(10, func(c *viciClient, i int) {
		_, _ = c.Write([]byte("\x00\x00\x10\x00\x00\x08list"))
		<-w.stop
	})
	// And those that ask for something and get it.
	run(30, func(c *viciClient, i int) {
		for !w.over(300 * time.Millisecond) {
			_ = c.SetDeadline(time.Now().Add(30 * time.Second))
			if err := c.call([]string{"list-sas", "stats", "list-conns"}[i%3]); err != nil {
				t.Errorf("a client that reads was not answered: %v", err)
				return
			}
			w.mu.Lock()
			w.calls++
			w.mu.Unlock()
		}
	})
	for range 200 {
		if err := <-ready; err != nil {
			t.Fatalf("a client of 200 was not let in: %v%s", err, logs(d))
		}
	}
	return w
}

// answered returns how many calls of those that read were answered.
func (w *viciCrowd) answered() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.calls
}

// end has all of them leave.
func (w *viciCrowd) end() {
	close(w.stop)
	w.wg.Wait()
}

// TestTwoHundredControlClients: 200 clients at once, many of them rude, and yet tunnels are made and
// keys renewed as fast as without, no packet is lost or late, and afterwards the daemon holds
// what it held before. (Times of this machine do not count, only how they compare in one run.)
func TestTwoHundredControlClients(t *testing.T) {
	p := pair{"postern", "postern"}
	ready(t, p)
	s := newSite(t)
	ca, cb := pairSpecs(false, false)
	ca.board = "large"
	for i, sp := range []*spec{&ca, &cb} {
		two := sp.conns[0].children[0]
		two.name, two.localTS, two.remoteTS = "six", []string{[]string{lanA6, lanB6}[i]}, []string{[]string{lanB6, lanA6}[i]}
		sp.conns[0].children = append(sp.conns[0].children, two)
	}
	b := startPostern(s, 'b', cb)
	a := startPostern(s, 'a', ca)
	mustInitiate(t, "net", a, b)
	type figures struct{ child, rekey, echo time.Duration }
	median := func(d []time.Duration) time.Duration {
		if len(d) == 0 {
			t.Fatalf("nothing was measured%s", logs(a, b))
		}
		slices.Sort(d)
		return d[len(d)/2]
	}
	measure := func(when string) (f figures) {
		t.Helper()
		c, err := dialVICI(a)
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		defer c.Close()
		// The rekeying has ended when its event comes.
		l, err := dialVICI(a)
		if err == nil {
			err = l.register("child-rekey")
		}
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		defer l.Close()
		ping := s.startPinger(s.lanA, hostB4, 100)
		var made, rekeyed []time.Duration
		for range 8 {
			start := time.Now()
			err := c.call("initiate", "child", "six")
			made = append(made, time.Since(start))
			if err == nil {
				err = c.call("terminate", "child", "six")
			}
			start = time.Now()
			if err == nil {
				err = c.call("rekey", "child", "net")
			}
			if err == nil {
				_, err = l.await(vEvent)
			}
			rekeyed = append(rekeyed, time.Since(start))
			if err != nil {
				t.Fatalf("%s: %v%s", when, err, logs(a, b))
			}
		}
		if r := ping.stop(); r.lost() != 0 {
			t.Errorf("%s: %v%s", when, r, logs(a, b))
		}
		return figures{median(made), median(rekeyed), median(ping.took)}
	}
	without := measure("alone")
	// The first crowd makes the heap as large as it gets.
	first := startCrowd(t, a)
	measure("among the first 200 clients")
	if !eventually(20*time.Second, func() bool { return first.answered() >= 60 }) {
		t.Errorf("30 clients that ask and read got %d answers", first.answered())
	}
	first.end()
	left := func() bool { return a.p.vitals().descriptors <= 40 }
	if !eventually(20*time.Second, left) {
		t.Fatalf("the clients have left and yet: %v", a.p.vitals())
	}
	before := a.p.vitals()
	w := startCrowd(t, a)
	with := measure("among 200 clients")
	w.end()
	again := measure("alone again")
	var after vitals
	if !eventually(20*time.Second, func() bool {
		after = a.p.vitals()
		return after.descriptors <= before.descriptors && after.rss <= before.rss+4<<10
	}) {
		t.Errorf("before 200 clients %v, after them %v", before, after)
	}
	for _, m := range []struct {
		what          string
		without, with time.Duration
	}{
		{"a CHILD SA took", max(without.child, again.child), with.child},
		{"rekeying took", max(without.rekey, again.rekey), with.rekey},
		{"an echo took", max(without.echo, again.echo), with.echo},
	} {
		// Two processors for the daemons, the clients and the test: a multiple is the scheduler's. What
		// waits for a client that does not read takes seconds.
		if m.with > 10*m.without+100*time.Millisecond {
			t.Errorf("%s %v alone and %v among 200 clients", m.what, m.without, m.with)
		}
	}
	fmt.Printf("200 control clients: a CHILD SA %v, without them %v; rekeying %v, %v; an echo %v, %v; %d KiB resident, before %d\n",
		with.child, without.child, with.rekey, without.rekey, with.echo, without.echo, after.rss, before.rss)
}

// TestControlSocketIsForRootAlone: whatever the umask is, nobody else gets through to the daemon.
func TestControlSocketIsForRootAlone(t *testing.T) {
	need(t, "setpriv", "swanctl")
	s := newSite(t)
	ca, _ := pairSpecs(false, false)
	d := newPostern(s, 'a', ca)
	d.launch("sh", "-c", `umask 0; exec "$0" "$@"`)
	if !eventually(20*time.Second, func() bool {
		_, err := command("swanctl", "--stats", "--uri", d.control())
		return err == nil || !d.p.alive()
	}) || !d.p.alive() {
		t.Fatalf("postern does not answer root%s", logs(d))
	}
	fi, err := os.Stat(d.socket())
	if err != nil || fi.Mode() != os.ModeSocket|0o600 {
		t.Errorf("the control socket is %v, %v, want a socket with mode 0600", fi.Mode(), err)
	}
	os.Chmod(d.dir, 0o755)
	for _, who := range [][]string{
		{"--reuid", "65534", "--regid", "65534", "--clear-groups"},
		{"--reuid", "65534", "--regid", "0", "--clear-groups"}, // root's group is not root
	} {
		args := append(who, "--", "swanctl", "--stats", "--uri", d.control())
		if out, err := command("setpriv", args...); err == nil || !strings.Contains(out, "Permission denied") {
			t.Errorf("setpriv %s: %v\n%s\nwant a refusal", strings.Join(args, " "), err, out)
		}
	}
	// A daemon that was killed leaves its socket behind, which the next one replaces, with the same mode.
	d.kill()
	if _, err := os.Stat(d.socket()); err != nil {
		t.Fatalf("the killed daemon has left no socket, so that nothing is tested: %v", err)
	}
	d.start()
	if fi, err = os.Stat(d.socket()); err != nil || fi.Mode() != os.ModeSocket|0o600 {
		t.Errorf("the new control socket is %v, %v, want a socket with mode 0600", fi.Mode(), err)
	}
}

// TestBadControlInput: what is no VICI is answered with the reason, while a tunnel goes on.
func TestBadControlInput(t *testing.T) {
	p := pair{"postern", "postern"}
	ready(t, p)
	s := newSite(t)
	ca, cb := pairSpecs(false, false)
	a, b := startPair(s, p, ca, cb)
	mustInitiate(t, "net", a, b)
	d := a.(*postern)
	before := d.p.vitals()
	ping := s.startPinger(s.lanA, hostB4, 50)
	frame := func(b string) string { return string(binary.BigEndian.AppendUint32(nil, uint32(len(b)))) + b }
	request := func(name, message string) string { return frame("\x00" + string(rune(len(name))) + name + message) }
	for _, tc := range []struct{ what, in, want string }{
		{"4 GiB by the header", "\xff\xff\xff\xff\x00\x07version", "4294967295 octets announced"},
		{"sections without end", request("list-sas", strings.Repeat("\x01\x03abc", 60000)), `"abc": sections are nested too deep`},
		{"a truncated element", request("initiate", "\x03\x05child\x00\x09net"), `octet 7, "child": the value is cut off`},
		{"a list in a list", request("initiate", "\x04\x01a\x04\x01b\x06\x06"), `octet 3, "a": element type 4 inside a list`},
		{"an end without a beginning", request("list-sas", "\x02"), "never started"},
		{"half a packet type", frame("\x63"), "unknown packet type 99"},
		{"a response", frame("\x01"), "which only a daemon sends"},
		{"nothing named", request("initiate", ""), "missing configuration name"},
		{"nothing of that name", request("initiate", "\x03\x05child\x00\x04none"), "'none' not found"},
		{"a configuration that contradicts itself", request("load-conn", "\x01\x03bad\x03\x0blocal_addrs\x00\x09192.0.2.1\x03\x0cremote_addrs\x00\x09192.0.2.1"+
			"\x01\x05local\x03\x02id\x00\x01a\x02\x01\x06remote\x03\x02id\x00\x01b\x02\x02"), "connections.bad.remote_addrs: 192.0.2.1 is in local_addrs and in remote_addrs"},
		{"an unknown key", request("load-conn", "\x01\x03bad\x03\x07frobnic\x00\x01x\x02"), "frobnic"},
		{"addresses of nobody", request("initiate", "\x03\x05child\x00\x03net\x03\x0aother-host\x00\x09192.0.2.9"), "is between %any and 192.0.2.9"},
	} {
		c, err := dialVICI(d)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = c.Write([]byte(tc.in)); err != nil {
			t.Errorf("%s: %v", tc.what, err)
		}
		if body, err := c.await(vCmdResponse); err != nil || !strings.Contains(string(body), "success\x00\x02no") || !strings.Contains(string(body), tc.want) {
			t.Errorf("%s is answered with %q, %v, want success = no and %q", tc.what, body, err, tc.want)
		}
		c.Close()
	}
	c, err := dialVICI(d)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for op, in := range map[byte]string{2: request("frobnicate", ""), 6: frame("\x03\x04none")} {
		if _, err := c.Write([]byte(in)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.await(op); err != nil {
			t.Errorf("an unknown name: %v, want packet type %d", err, op)
		}
	}
	if r := ping.stop(); r.lost() != 0 {
		t.Errorf("meanwhile %v%s", r, logs(a, b))
	}
	if v := d.p.vitals(); v.rss > before.rss+8<<10 {
		t.Errorf("before bad input %v, after it %v", before, v)
	}
}
