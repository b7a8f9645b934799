package engine

import (
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"time"

	"postern/engine/config"
	"postern/engine/control"
	"postern/engine/log"
	"postern/ike"
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
	ctl := control.NewServer(l, viciHandler{e}, control.Options{Clients: e.o.Profile.Clients, Log: e.o.Log})
	e.ctl, e.loop.onEvent = ctl, viciEvents{e.loop, ctl}.event
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := ctl.Serve(); err != nil {
			e.o.Log.Log(log.Net, log.Error, "the control socket does not answer any more", log.Err(err))
		}
	}()
	undo.add("control server", func() error {
		err := ctl.Close()
		<-served
		return err
	})
}

// viciHandler executes the commands of control clients, with charon's names, keys and
// texts. Each runs on its client's goroutine and asks the IKE loop for what it needs.
type viciHandler struct{ e *Engine }

// Command implements control.Handler.
func (h viciHandler) Command(name string, req *control.Message, stream func(string, *control.Message) error) (*control.Message, bool) {
	var resp *control.Message
	var err error
	switch name {
	case control.CmdVersion:
		resp = h.version()
	case control.CmdStats:
		resp, err = h.stats()
	case control.CmdReload:
		resp, err = control.Success(), h.reload()
	case control.CmdListConns:
		resp, err = h.listConns(req, stream)
	case control.CmdListSAs:
		resp, err = h.listSAs(req, stream)
	case control.CmdListPols:
		resp, err = h.listPolicies(req, stream)
	case control.CmdListSPD:
		resp, err = h.listSPD(stream)
	case control.CmdTestPolicy:
		resp, err = h.testPolicy(req)
	case control.CmdGetPools:
		resp, err = h.getPools(req)
	case control.CmdListCerts:
		resp, err = h.listCerts(req, stream)
	case control.CmdSAKeys:
		resp, err = h.saKeys(stream)
	case control.CmdInitiate:
		resp, err = control.Success(), h.initiate(req, stream)
	case control.CmdTerminate:
		resp, err = h.terminate(req, stream)
	case control.CmdRekey:
		resp, err = h.rekey(req)
	case control.CmdRedirect:
		resp, err = h.redirect(req)
	default:
		return nil, false
	}
	if err != nil {
		return control.Failure(err), true
	}
	return resp, true
}

func (h viciHandler) version() *control.Message {
	sysname := runtime.GOOS
	if sysname == "linux" {
		sysname = "Linux"
	}
	return new(control.Message).
		Set(control.KeyDaemon, "postern").
		Set(control.KeyVersion, h.e.o.Version).
		Set(control.KeySysname, sysname).
		Set(control.KeyRelease, h.e.o.Kernel).
		Set(control.KeyMachine, runtime.GOARCH)
}

func (h viciHandler) stats() (*control.Message, error) {
	total, half, jobs, slots, used := 0, 0, 0, 0, 0
	if err := h.e.loop.do(func() {
		total, half = h.e.loop.count()
		jobs = len(h.e.loop.jobs)
		slots, used = len(h.e.d.sad.slots), h.e.d.sad.used()
	}); err != nil {
		return nil, err
	}
	workers, busy := int64(max(h.e.o.Profile.Workers, 1)), int64(h.e.loop.busy.Load())
	levels := func(m *control.Message, medium int64) {
		m.SetInt(control.KeyCritical, 0).SetInt(control.KeyHigh, 0).SetInt(control.KeyMedium, medium).SetInt(control.KeyLow, 0)
	}
	m := new(control.Message)
	m.Section(control.KeyUptime).
		Set(control.KeyRunning, uptime(time.Since(h.e.start))).
		Set(control.KeySince, h.e.start.Format("Jan 02 15:04:05 2006"))
	w := m.Section(control.KeyWorkers).SetInt(control.KeyTotal, workers).SetInt(control.KeyIdle, workers-busy)
	levels(w.Section(control.KeyActive), busy)
	levels(m.Section(control.KeyQueues), int64(jobs))
	m.SetInt(control.KeyScheduled, 0)
	m.Section(control.KeyIKESAs).SetInt(control.KeyTotal, int64(total)).SetInt(control.KeyHalfOpen, int64(half))
	m.List(control.KeyPlugins)
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	m.Section(control.KeyMallinfo).
		SetUint(control.KeySbrk, mem.Sys-mem.HeapReleased).SetUint(control.KeyMmap, 0).
		SetUint(control.KeyUsed, mem.HeapInuse).SetUint(control.KeyFree, mem.HeapIdle-mem.HeapReleased)
	// Ours: charon has none of the data path.
	f := &h.e.features
	m.Section(control.KeyDataPath).
		SetInt(control.KeyWorkers, int64(f.workers)).SetInt(control.KeySockets, int64(f.sockets)).
		Set(control.KeyTUN, f.tun).Set(control.KeyUDP, f.udp).Set(control.KeyESP, f.esp).
		SetInt(control.KeySlots, int64(slots)).SetInt(control.KeySlotsUsed, int64(used))
	c := m.Section("counters")
	for _, v := range h.e.Counters() {
		c.SetUint(v.Name, v.Value)
	}
	return m, nil
}

// uptime writes a span as charon does, in its largest unit of which there are at least two.
func uptime(d time.Duration) string {
	for _, u := range []struct {
		d    time.Duration
		name string
	}{{24 * time.Hour, "days"}, {time.Hour, "hours"}, {time.Minute, "minutes"}} {
		if d >= 2*u.d {
			return strconv.Itoa(int(d/u.d)) + " " + u.name
		}
	}
	return strconv.Itoa(int(d/time.Second)) + " seconds"
}

// count returns how many IKE SAs there are, and how many of them are not established.
func (l *ikeLoop) count() (total, half int) {
	l.m.List(func(sa *ike.SAInfo) bool {
		total++
		if sa.State == ike.StateConnecting {
			half++
		}
		return true
	})
	return total, half
}

func (h viciHandler) reload() error {
	e := h.e
	if e.o.Path == "" {
		return errors.New("the daemon does not know its configuration file: restart it instead")
	}
	cfg, err := config.Load(e.o.Path, e.o.CPU.CipherOrder())
	if err != nil {
		return err
	}
	var was config.Log
	if err := e.loop.do(func() { was = e.cfg.Log }); err != nil {
		return err
	}
	if err := e.Reload(cfg); err != nil {
		return err
	}
	// A level that was given on the command line stays unless the file changed it.
	for _, a := range []struct {
		area    log.Area
		was, is log.Level
	}{{log.IKE, was.IKE, cfg.Log.IKE}, {log.ESP, was.ESP, cfg.Log.ESP}, {log.Net, was.Net, cfg.Log.Net}} {
		if a.was != a.is {
			e.o.Log.SetLevel(a.area, a.is)
		}
	}
	e.o.Log.Log(log.Net, log.Info, "configuration reloaded", log.Int("connections", len(cfg.IKE.Conns)))
	return nil
}

// waitPoll is how often a command that waits looks whether its client is still there.
const waitPoll = 500 * time.Millisecond

// wait streams log lines until done yields count outcomes, the time is over (0: never)
// or the client has gone. It returns how many came without an error and the first error.
func (h viciHandler) wait(w *logWatch, count int, done <-chan error, timeout time.Duration, stream func(string, *control.Message) error) (good, ended int, err error) {
	poll := time.NewTicker(waitPoll)
	defer poll.Stop()
	var late <-chan time.Time
	if timeout > 0 {
		t := time.NewTimer(timeout)
		defer t.Stop()
		late = t.C
	}
	for ended < count {
		select {
		case e := <-done:
			ended++
			if e == nil {
				good++
			} else if err == nil {
				err = e
			}
		case m := <-w.lines:
			if e := stream(control.EvControlLog, m); e != nil {
				return good, ended, e
			}
		case <-poll.C:
			if e := stream("", nil); e != nil {
				return good, ended, e
			}
		case <-late:
			return good, ended, err
		}
	}
	for len(w.lines) > 0 { // what was logged before the end
		if e := stream(control.EvControlLog, <-w.lines); e != nil {
			break
		}
	}
	return good, ended, err
}

// logWatch collects the log lines of one command for its client.
type logWatch struct {
	lines  chan *control.Message
	cancel func()
}

// watchDepth bounds the lines that wait for a client that reads slowly; the rest it misses.
const watchDepth = 64

// watch collects lines about the connection ("" for any) up to charon's level of the request.
func (h viciHandler) watch(req *control.Message, conn string, timeout int64) *logWatch {
	w := &logWatch{lines: make(chan *control.Message, watchDepth), cancel: func() {}}
	most := int64(1)
	if v, ok := req.GetInt(control.KeyLogLevel); ok {
		most = v
	}
	if timeout < 0 || most < 0 {
		return w
	}
	mine := " conn=" + conn + " "
	w.cancel = h.e.o.Log.Subscribe(func(area log.Area, level log.Level, text string) {
		charon := int64(1)
		switch level {
		case log.Error:
			charon = 0
		case log.Debug:
			charon = 2
		}
		if charon > most || conn != "" && strings.Contains(text, " conn=") && !strings.Contains(text, mine) {
			return
		}
		if _, rest, ok := strings.Cut(text, "area="); ok { // level and area have keys of their own
			if _, line, ok := strings.Cut(rest, " "); ok {
				text = line
			}
		}
		m := new(control.Message).Set(control.KeyGroup, strings.ToUpper(area.String())).SetInt(control.KeyLevel, charon)
		if conn != "" {
			m.Set(control.KeyIKESAName, conn)
		}
		select {
		case w.lines <- m.Set(control.KeyMsg, text):
		default:
		}
	})
	return w
}

func (h viciHandler) initiate(req *control.Message, stream func(string, *control.Message) error) error {
	child, conn := req.Get(control.KeyChild), req.Get(control.KeyIKE)
	timeout, _ := req.GetInt(control.KeyTimeout)
	kind, name := "CHILD_SA", child
	if child == "" {
		kind, name = "IKE_SA", conn
	}
	if name == "" {
		return errors.New("missing configuration name")
	}
	e, l := h.e, h.e.loop
	var err error
	if lerr := l.do(func() {
		if conn = findChild(&e.cfg.IKE, conn, child); conn == "" {
			err = fmt.Errorf("%s config '%s' not found", kind, name)
		} else if _, half := l.count(); req.GetBool("init-limits") && half >= e.o.Profile.HalfOpen {
			err = fmt.Errorf("establishing %s '%s' not possible at the moment due to limits", kind, name)
		}
	}); lerr != nil || err != nil {
		return errors.Join(lerr, err)
	}
	w := h.watch(req, conn, timeout)
	defer w.cancel()
	done, tag := make(chan error, 1), uint64(0)
	if err := l.do(func() {
		tag = l.command(ike.Command{Kind: ike.CmdInitiate, Conn: conn, Child: child}, func(err error) { done <- err })
	}); err != nil {
		return err
	}
	if timeout < 0 {
		return nil
	}
	_, ended, err := h.wait(w, 1, done, time.Duration(timeout)*time.Millisecond, stream)
	switch {
	case ended == 0:
		_ = l.do(func() { l.forget(tag) })
		if err == nil {
			err = fmt.Errorf("%s '%s' not established after %dms", kind, name, timeout)
		}
		return err
	case err != nil:
		return fmt.Errorf("establishing %s '%s' failed: %w", kind, name, err)
	}
	return nil
}

// findChild returns the name of the first connection that is called conn ("": any) and
// has the child ("": none in particular), or "".
func findChild(cfg *ike.Config, conn, child string) string {
	for _, c := range cfg.Conns {
		if conn != "" && c.Name != conn {
			continue
		}
		if child == "" {
			return c.Name
		}
		for _, ch := range c.Children {
			if ch.Name == child {
				return c.Name
			}
		}
	}
	return ""
}

// selection is what terminate and rekey are about.
type selection struct {
	conn, child string
	ike, id     uint32
}

// selected reads a selection; ok is false if the request names nothing.
func selected(req *control.Message) (s selection, ok bool) {
	i, _ := req.GetUint(control.KeyIKEID)
	c, _ := req.GetUint(control.KeyChildID)
	s = selection{req.Get(control.KeyIKE), req.Get(control.KeyChild), uint32(i), uint32(c)}
	return s, s != selection{}
}

// children tells whether the selection is about CHILD SAs.
func (s *selection) children() bool { return s.child != "" || s.id != 0 }

// find returns one command for each SA that the selection matches. It runs on the loop.
func (s *selection) find(l *ikeLoop, kind ike.CommandKind) []ike.Command {
	var out []ike.Command
	l.m.List(func(sa *ike.SAInfo) bool {
		if s.conn != "" && sa.Conn != s.conn || s.ike != 0 && sa.Unique != s.ike {
			return true
		}
		if !s.children() {
			out = append(out, ike.Command{Kind: kind, IKE: sa.Unique})
			return true
		}
		for i := range sa.Children {
			c := &sa.Children[i]
			if (s.child == "" || c.Name == s.child) && (s.id == 0 || c.Unique == s.id) && c.State != ike.ChildRekeyed && c.State != ike.ChildDeleting {
				out = append(out, ike.Command{Kind: kind, IKE: sa.Unique, ChildID: c.Unique})
			}
		}
		return true
	})
	return out
}

func (h viciHandler) terminate(req *control.Message, stream func(string, *control.Message) error) (*control.Message, error) {
	s, ok := selected(req)
	if !ok {
		return nil, errors.New("missing terminate selector")
	}
	timeout, _ := req.GetInt(control.KeyTimeout)
	w := h.watch(req, s.conn, timeout)
	defer w.cancel()
	l := h.e.loop
	var tags []uint64
	var done chan error
	matches, wished := 0, false
	if err := l.do(func() {
		cmds := s.find(l, ike.CmdTerminate)
		matches = len(cmds)
		done = make(chan error, matches+1)
		for _, c := range cmds {
			c.Force = req.GetBool(control.KeyForce)
			tags = append(tags, l.command(c, func(err error) { done <- err }))
		}
		if s.ike == 0 && s.id == 0 {
			// What is only wanted so far (the next attempt is being waited for) ends as well.
			tag := l.command(ike.Command{Kind: ike.CmdTerminate, Conn: s.conn, Child: s.child}, func(err error) {
				wished = err == nil && matches == 0
			})
			l.forget(tag)
		}
	}); err != nil {
		return nil, err
	}
	good := matches
	if timeout >= 0 && !req.GetBool(control.KeyForce) {
		good, _, _ = h.wait(w, matches, done, time.Duration(timeout)*time.Millisecond, stream)
	}
	_ = l.do(func() {
		for _, t := range tags {
			l.forget(t)
		}
	})
	var err error
	switch {
	case matches == 0 && !wished:
		err = errors.New("no matching SAs to terminate found")
	case good < matches && matches == 1:
		err = errors.New("terminating SA failed")
	case good < matches:
		err = errors.New("not all matching SAs could be terminated")
	}
	m := outcome(err, matches)
	m.SetInt(control.KeyTerminated, int64(good))
	return withReason(m, err), nil
}

func (h viciHandler) rekey(req *control.Message) (*control.Message, error) {
	s, ok := selected(req)
	if !ok {
		return nil, errors.New("missing rekey selector")
	}
	kind := ike.CmdRekey
	if req.GetBool(control.KeyReauth) && !s.children() {
		kind = ike.CmdReauth
	}
	l, matches := h.e.loop, 0
	if err := l.do(func() {
		cmds := s.find(l, kind)
		matches = len(cmds)
		for _, c := range cmds {
			l.forget(l.command(c, func(error) {}))
		}
	}); err != nil {
		return nil, err
	}
	var err error
	if matches == 0 {
		err = errors.New("no matching SAs to rekey found")
	}
	return withReason(outcome(err, matches), err), nil
}

func outcome(err error, matches int) *control.Message {
	return new(control.Message).SetBool(control.KeySuccess, err == nil).SetInt(control.KeyMatches, int64(matches))
}

func withReason(m *control.Message, err error) *control.Message {
	if err != nil {
		m.Set(control.KeyErrmsg, err.Error())
	}
	return m
}
