package demo

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"postern/engine/cli"
	"postern/engine/control"
)

// How long the parts of the demonstration take. Together with the rest they stay well
// below limit.
const (
	pollBefore   = 1500 * time.Millisecond
	pollAfter    = 1500 * time.Millisecond
	streamFor    = 2 * time.Second
	readyWithin  = 5 * time.Second
	rekeyWithin  = 5 * time.Second
	goneWithin   = 5 * time.Second
	dialPatience = 3 * time.Second
	limit        = 18 * time.Second
)

// Options are what a demonstration is run with.
type Options struct {
	Lab      Lab
	Self     string // path of this program, which is started as the daemon
	Dir      string // an empty directory for configurations, sockets and logs
	Version  string
	Out      io.Writer // gets the summary
	Progress io.Writer // gets a line per step
}

// demo is one run.
type demo struct {
	Options
	ctx     context.Context
	s       *site
	gateway [2]*daemon
	r       results
}

// Run builds the site, shows what it does, and writes the summary. It ends early when
// ctx does. An error says what did not work.
func Run(ctx context.Context, o Options) (err error) {
	began := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the demo did not end within %v", limit))
	defer cancel()
	d := &demo{Options: o, ctx: ctx}
	defer func() {
		// What failed comes first; how the daemons ended after it is of less interest.
		for _, g := range d.gateway {
			if g == nil {
				continue
			}
			if e := g.end(); err == nil {
				err = e
			}
		}
		if err == nil {
			d.r.Took = time.Since(began)
			_, err = io.WriteString(d.Out, d.r.screen())
		}
	}()
	d.step("building the site: five hosts, four networks")
	if d.s, err = build(o.Lab); err != nil {
		return err
	}
	return d.show()
}

func (d *demo) step(format string, args ...any) {
	fmt.Fprintf(d.Progress, "demo: "+format+"\n", args...)
}

// sleep waits unless the demonstration is over.
func (d *demo) sleep(t time.Duration) error {
	select {
	case <-time.After(t):
		return nil
	case <-d.ctx.Done():
		return context.Cause(d.ctx)
	}
}

// show is what happens between the start of the daemons and their end.
func (d *demo) show() error {
	clients, err := d.startDaemons()
	if err != nil {
		return err
	}
	defer func() {
		for _, c := range clients {
			_ = c.Close()
		}
	}()
	a := clients[0]

	wanCap, err := d.s.router.Capture("to-a")
	if err != nil {
		return fmt.Errorf("capture on the WAN: %w", err)
	}
	wan := newWatch(wanCap)
	// The same eyes look at the plant's side, where the registers must be readable: it
	// shows that they would have been seen on the WAN.
	lanCap, err := d.s.gwB.Capture("lan0")
	if err != nil {
		return fmt.Errorf("capture in the plant: %w", err)
	}
	lan := newWatch(lanCap)

	d.step("negotiating IKE SA and CHILD SA")
	if d.r.Handshake, err = initiate(a); err != nil {
		return err
	}
	d.step("polling the plant over Modbus/TCP, and rekeying meanwhile")
	if err = d.pollAndRekey(a); err != nil {
		return err
	}
	if d.r.Wan, err = wan.end(); err != nil {
		return fmt.Errorf("WAN: %w", err)
	}
	if d.r.Lan, err = lan.end(); err != nil {
		return fmt.Errorf("plant: %w", err)
	}
	if err = d.r.judge(); err != nil {
		return err
	}
	d.step("measuring throughput with one TCP stream")
	if d.r.Octets, d.r.Stream, err = d.stream(); err != nil {
		return fmt.Errorf("throughput: %w", err)
	}
	for i, g := range d.gateway {
		if d.r.Resident[i], err = g.resident(); err != nil {
			return fmt.Errorf("memory of %s: %w", g.name, err)
		}
	}
	return d.status()
}

// startDaemons starts the daemon on both gateways and connects to their control sockets.
func (d *demo) startDaemons() (clients [2]*control.Client, err error) {
	d.step("starting the daemon on both gateways")
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails
	key := "0s" + base64.StdEncoding.EncodeToString(secret)
	for i, g := range []struct {
		host                               Host
		name                               string
		local, remote, localNet, remoteNet netip.Prefix
		localID, remoteID                  string
	}{
		{d.s.gwA, "gateway-a", gatewayAWAN, gatewayBWAN, controlNet, plantNet, "a.example", "b.example"},
		{d.s.gwB, "gateway-b", gatewayBWAN, gatewayAWAN, plantNet, controlNet, "b.example", "a.example"},
	} {
		text := configText(filepath.Join(d.Dir, g.name+".sock"), key, g.local, g.remote, g.localNet, g.remoteNet, g.localID, g.remoteID)
		if d.gateway[i], err = startDaemon(g.host, d.Self, d.Dir, g.name, text); err != nil {
			return clients, err
		}
	}
	ctx, cancel := context.WithTimeoutCause(d.ctx, readyWithin, errors.New("a daemon did not get ready"))
	defer cancel()
	for i, g := range d.gateway {
		if clients[i], err = g.dial(ctx); err != nil {
			return clients, err
		}
		_ = clients[i].SetDeadline(time.Now().Add(limit))
		if _, err = clients[i].Call(control.CmdVersion, nil); err != nil {
			return clients, fmt.Errorf("%s: %w: %s", g.name, err, g.lastLines())
		}
	}
	return clients, nil
}

// initiate brings the tunnel up and returns how long that took.
func initiate(c *control.Client) (time.Duration, error) {
	req := new(control.Message).Set(control.KeyIKE, connName).Set(control.KeyChild, childName).
		SetInt(control.KeyTimeout, readyWithin.Milliseconds()).Set(control.KeyLogLevel, "-1")
	began := time.Now()
	resp, err := c.Call(control.CmdInitiate, req)
	took := time.Since(began)
	if err == nil {
		err = control.Check(control.CmdInitiate, resp)
	}
	return took, err
}

// pollAndRekey polls, has new keys negotiated meanwhile, and looks that the new SA is
// the one that carries the polls.
func (d *demo) pollAndRekey(c *control.Client) error {
	server := NewRegisters(numRegisters)
	copy(server.regs, markerValues())
	l, err := d.s.plant.Listen(netip.AddrPortFrom(plant.Addr(), portModbus))
	if err != nil {
		return fmt.Errorf("the plant's Modbus server: %w", err)
	}
	defer func() { _ = l.Close() }()
	go server.Serve(l)
	conn, err := d.s.control.Dial(netip.AddrPortFrom(plant.Addr(), portModbus), dialPatience)
	if err != nil {
		return fmt.Errorf("Modbus through the tunnel: %w", err)
	}
	defer func() { _ = conn.Close() }()
	p := newPoller(NewModbus(conn, pollTimeout))
	ended := false
	defer func() {
		if !ended {
			p.end()
		}
	}()
	if err = d.sleep(pollBefore); err != nil {
		return err
	}
	old, err := installed(c)
	if err != nil {
		return err
	}
	if old.spiIn == "" {
		return errors.New("gateway-a lists no CHILD SA that carries traffic")
	}
	began := time.Now()
	resp, err := c.Call(control.CmdRekey, new(control.Message).Set(control.KeyIKE, connName).Set(control.KeyChild, childName))
	if err == nil {
		err = control.Check(control.CmdRekey, resp)
	}
	if err != nil {
		return fmt.Errorf("rekeying: %w", err)
	}
	for {
		sa, err := installed(c)
		if err != nil {
			return err
		}
		if sa.spiIn != "" && sa.spiIn != old.spiIn && sa.packetsIn > 0 {
			d.r.OldSPI, d.r.NewSPI = old.spiIn, sa.spiIn
			d.r.Rekey = time.Since(began)
			break
		}
		if time.Since(began) > rekeyWithin {
			return fmt.Errorf("no new CHILD SA carries the polls %v after rekeying (SPI %s before, %s now)", rekeyWithin, old.spiIn, sa.spiIn)
		}
		if err = d.sleep(2 * time.Millisecond); err != nil {
			return err
		}
	}
	if err = d.sleep(pollAfter); err != nil {
		return err
	}
	ended = true
	d.r.Polls = p.end()
	return nil
}

// stream sends from the plant to the control room as fast as the tunnel takes it, and
// returns how much arrived in which time.
func (d *demo) stream() (octets int64, took time.Duration, err error) {
	const port = 5001
	l, err := d.s.control.Listen(netip.AddrPortFrom(controlRoom.Addr(), port))
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = l.Close() }()
	type arrived struct {
		n    int64
		took time.Duration
		err  error
	}
	got := make(chan arrived, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			got <- arrived{err: err}
			return
		}
		defer func() { _ = c.Close() }()
		began := time.Now()
		n, err := drain(c)
		got <- arrived{n, time.Since(began), err}
	}()
	c, err := d.s.plant.Dial(netip.AddrPortFrom(controlRoom.Addr(), port), dialPatience)
	if err != nil {
		return 0, 0, err
	}
	stop := context.AfterFunc(d.ctx, func() { _ = c.Close() })
	defer stop()
	buf := bytes.Repeat(marker, 4096)
	for began := time.Now(); time.Since(began) < streamFor; {
		_ = c.SetWriteDeadline(time.Now().Add(dialPatience))
		if _, err = c.Write(buf); err != nil {
			_ = c.Close()
			if d.ctx.Err() != nil {
				err = context.Cause(d.ctx)
			}
			return 0, 0, err
		}
	}
	if err = c.Close(); err != nil {
		return 0, 0, err
	}
	select {
	case a := <-got:
		return a.n, a.took, a.err
	case <-d.ctx.Done():
		return 0, 0, context.Cause(d.ctx)
	}
}

// drain reads to the end. Unlike io.Copy it may not let the kernel discard the data.
func drain(c net.Conn) (n int64, err error) {
	buf := make([]byte, 256<<10)
	for {
		_ = c.SetReadDeadline(time.Now().Add(dialPatience))
		k, err := c.Read(buf)
		n += int64(k)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return n, err
		}
	}
}

// status asks gateway A as its administrator would, once the replaced CHILD SA is gone:
// the daemon keeps it for a while for packets that were on their way.
func (d *demo) status() error {
	for began := time.Now(); ; {
		var out, errs bytes.Buffer
		code := cli.Main([]string{"status", connName, "--socket", d.gateway[0].socket},
			cli.System{Stdout: &out, Stderr: &errs, Version: d.Version})
		if code != cli.ExitOK {
			return fmt.Errorf("status says that the tunnel is not up (%d): %s%s", code, out.Bytes(), errs.Bytes())
		}
		d.r.Status = out.String()
		if strings.Count(d.r.Status, "CHILD SA") == 1 {
			return nil
		}
		if time.Since(began) > goneWithin {
			return fmt.Errorf("the replaced CHILD SA is still there %v after everything else:\n%s", goneWithin, d.r.Status)
		}
		if err := d.sleep(50 * time.Millisecond); err != nil {
			return err
		}
	}
}

// Interrupted is the cause of a context that a signal ended.
type Interrupted struct{ Signal os.Signal }

// Error names the signal.
func (e Interrupted) Error() string { return "interrupted: " + e.Signal.String() }
