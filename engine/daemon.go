package engine

import (
	"time"

	"postern/engine/config"
	"postern/engine/control"
	"postern/engine/log"
	"postern/engine/vici"
	"postern/esp"
	"postern/ike"
	"postern/ike/pki"
)

// listen opens the control socket, so that a second daemon ends before it has touched
// anything.
func (e *Engine) listen(undo *undoList) (*control.Listener, error) {
	if e.cfg.Daemon.Control == "" {
		return nil, nil
	}
	l, err := control.Listen(e.cfg.Daemon.Control)
	if err != nil {
		return nil, err
	}
	undo.add("control socket", l.Close)
	return l, nil
}

// serve answers control clients until the end. It is called before the loop runs.
func (e *Engine) serve(l *control.Listener, undo *undoList) {
	prof := &e.o.Profile
	one, all := prof.ControlQueue()
	ctl := control.NewServer(l, vici.Handler{D: daemon{e}}, control.Options{
		Clients: prof.Clients, Queue: one, Total: all, Large: prof.ControlRequests(), Log: e.o.Log})
	ctl.OnWanted((&vici.LogEvents{Log: e.o.Log, Server: ctl}).Follow)
	e.ctl, e.loop.onEvent = ctl, vici.Events{L: onLoop{e}, Server: ctl}.Event
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := ctl.Serve(); err != nil {
			e.o.Log.Log(log.Daemon, log.Error, "the control socket does not answer any more", log.Err(err))
		}
	}()
	undo.add("control server", func() error {
		err := ctl.Close()
		<-served
		return err
	})
}

// Command runs the command of a control client as if it had come through the socket. It may be
// called from any goroutine but the loop's. See control.Handler.
func (e *Engine) Command(name string, req *control.Message, stream func(string, *control.Message) error) (*control.Message, bool) {
	return vici.Handler{D: daemon{e}}.Command(name, req, stream)
}

// daemon is what control clients see of the engine.
type daemon struct{ e *Engine }

func (d daemon) Do(f func(vici.Loop)) error { return d.e.loop.do(func() { f(onLoop(d)) }) }
func (d daemon) Busy() int                  { return int(d.e.loop.busy.Load()) }
func (d daemon) Counters() []vici.Counter   { return d.e.Counters() }
func (d daemon) Reload() error              { return d.e.reloadAll() }
func (d daemon) Log() *log.Logger           { return d.e.o.Log }
func (d daemon) Loaded() *config.Loaded     { return d.e.loads.now() }

func (d daemon) Load(how ike.Change, change func(*config.Loaded) (*config.Loaded, error)) error {
	return d.e.load(how, change)
}

func (d daemon) About() vici.About {
	o, f := &d.e.o, &d.e.features
	return vici.About{
		Version: o.Version, Kernel: o.Kernel, Start: d.e.start, Workers: max(o.Profile.Workers, 1), HalfOpen: o.Profile.HalfOpen,
		PathWorkers: f.workers, PathSockets: f.sockets, TUN: f.tun, UDP: f.udp, ESP: f.esp,
	}
}

// onLoop is the engine on the goroutine of the loop.
type onLoop struct{ e *Engine }

func (o onLoop) Now() time.Duration                  { return o.e.loop.now().Mono }
func (o onLoop) Config() *config.Config              { return o.e.cfg }
func (o onLoop) List(visit func(*ike.SAInfo) bool)   { o.e.loop.m.List(visit) }
func (o onLoop) Pools(visit func(ike.PoolInfo))      { o.e.loop.m.Pools(visit) }
func (o onLoop) Leases(visit func(ike.Lease) bool)   { o.e.loop.m.Leases(visit) }
func (o onLoop) View(sa *ike.SAInfo) vici.SA         { return o.e.loop.view(sa) }
func (o onLoop) Manual() []vici.SA                   { return o.e.loop.viewManual() }
func (o onLoop) Policies() []vici.Policy             { return o.e.d.spd.view() }
func (o onLoop) Entries() []vici.Entry               { return o.e.loop.viewSPD() }
func (o onLoop) Forget(tag uint64)                   { o.e.loop.forget(tag) }
func (o onLoop) Fate(f *esp.Flow, in bool) vici.Fate { return o.e.loop.fate(f, in) }
func (o onLoop) Keys() (lines []string, kept bool)   { return o.e.loop.keys() }

func (o onLoop) Messages(visit func(string, *ike.Counters)) { o.e.loop.m.Counters(visit) }
func (o onLoop) ResetMessages(conn string, each bool)       { o.e.loop.m.ResetCounters(conn, each) }
func (o onLoop) Install(conn, child string) (found bool, err error) {
	return o.e.install(conn, child)
}
func (o onLoop) Uninstall(conn, child string) (found bool, err error) {
	return o.e.uninstall(conn, child)
}
func (o onLoop) Revocation(visit func(pki.FetchKind, []byte)) { o.e.loop.fetches.Cached(visit) }
func (o onLoop) Flush(kind pki.FetchKind)                     { o.e.loop.fetches.Flush(kind) }

func (o onLoop) Command(c ike.Command, done func(error)) (tag uint64) {
	return o.e.loop.command(c, done)
}

func (o onLoop) Usage() vici.Usage {
	l := o.e.loop
	return vici.Usage{Jobs: len(l.jobs), Slots: len(l.d.sad.slots), UsedSlots: l.d.sad.used()}
}
