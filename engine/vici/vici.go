package vici

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"time"

	"postern/engine/config"
	"postern/engine/control"
	"postern/engine/log"
	"postern/ike"
)

// Handler executes the commands of control clients, with charon's names, keys and
// texts. Each runs on its client's goroutine and asks the IKE loop for what it needs.
type Handler struct{ D Daemon }

// Command implements control.Handler.
func (h Handler) Command(name string, req *control.Message, stream func(string, *control.Message) error) (*control.Message, bool) {
	i := slices.IndexFunc(commands, func(c command) bool { return c.name == name })
	if i < 0 {
		return nil, false
	}
	h.noteOrder(name, req)
	resp, err := commands[i].run(h, req, stream)
	if err != nil {
		resp = control.Failure(err)
	}
	return resp, true
}

// reload answers our own client with each problem by itself, others with all of them in one text.
func (h Handler) reload(req *control.Message) *control.Message {
	err := h.D.Reload()
	if err == nil {
		return control.Success()
	}
	ps, ok := errors.AsType[config.Problems](err)
	if !ok || !ours(req) {
		return control.Failure(err)
	}
	texts := make([]string, len(ps))
	for i := range ps {
		texts[i] = ps[i].String()
	}
	return control.Failure(errProblems).List(control.KeyProblems, texts...)
}

var errProblems = errors.New("the configuration has problems, and the one before stays")

func (h Handler) version() *control.Message {
	about := h.D.About()
	sysname := runtime.GOOS
	if sysname == "linux" {
		sysname = "Linux"
	}
	return new(control.Message).
		Set(control.KeyDaemon, "postern").
		Set(control.KeyVersion, about.Version).
		Set(control.KeySysname, sysname).
		Set(control.KeyRelease, about.Kernel).
		Set(control.KeyMachine, machine(runtime.GOARCH))
}

func (h Handler) stats(req *control.Message) (*control.Message, error) {
	total, half := 0, 0
	var load Usage
	if err := h.D.Do(func(l Loop) {
		total, half = count(l)
		load = l.Usage()
	}); err != nil {
		return nil, err
	}
	about := h.D.About()
	workers, busy := int64(about.Workers), int64(h.D.Busy())
	levels := func(m *control.Message, medium int64) {
		m.SetInt(control.KeyCritical, 0).SetInt(control.KeyHigh, 0).SetInt(control.KeyMedium, medium).SetInt(control.KeyLow, 0)
	}
	m := new(control.Message)
	m.Section(control.KeyUptime).
		Set(control.KeyRunning, uptime(time.Since(about.Start))).
		Set(control.KeySince, about.Start.Format("Jan 02 15:04:05 2006"))
	w := m.Section(control.KeyWorkers).SetInt(control.KeyTotal, workers).SetInt(control.KeyIdle, workers-busy)
	levels(w.Section(control.KeyActive), busy)
	levels(m.Section(control.KeyQueues), int64(load.Jobs))
	m.SetInt(control.KeyScheduled, 0)
	m.Section(control.KeyIKESAs).SetInt(control.KeyTotal, int64(total)).SetInt(control.KeyHalfOpen, int64(half))
	m.List(control.KeyPlugins, plugin)
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	m.Section(control.KeyMallinfo).
		SetUint(control.KeySbrk, mem.Sys-mem.HeapReleased).SetUint(control.KeyMmap, 0).
		SetUint(control.KeyUsed, mem.HeapInuse).SetUint(control.KeyFree, mem.HeapIdle-mem.HeapReleased)
	if !ours(req) { // charon has none of the data path
		return m, nil
	}
	m.Section(control.KeyDataPath).
		SetInt(control.KeyWorkers, int64(about.PathWorkers)).SetInt(control.KeySockets, int64(about.PathSockets)).
		Set(control.KeyTUN, about.TUN).Set(control.KeyUDP, about.UDP).Set(control.KeyESP, about.ESP).
		SetInt(control.KeySlots, int64(load.Slots)).SetInt(control.KeySlotsUsed, int64(load.UsedSlots))
	c := m.Section("counters")
	for _, v := range h.D.Counters() {
		c.SetUint(v.Name, v.Value)
	}
	return m, nil
}

// ours tells whether a client knows the keys that charon does not have.
func ours(req *control.Message) bool { return req.GetBool(control.KeyOurs) }

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
func count(l Loop) (total, half int) {
	l.List(func(sa *ike.SAInfo) bool {
		total++
		if sa.State == ike.StateConnecting {
			half++
		}
		return true
	})
	return total, half
}

// waitPoll is how often a command that waits looks whether its client is still there.
const waitPoll = 500 * time.Millisecond

// wait streams log lines until done yields count outcomes, the time is over (0: never)
// or the client has gone. It returns how many came without an error and the first error.
func (h Handler) wait(w *logWatch, count int, done <-chan error, timeout time.Duration, stream func(string, *control.Message) error) (good, ended int, err error) {
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
func (h Handler) watch(req *control.Message, conn string, timeout int64) *logWatch {
	w := &logWatch{lines: make(chan *control.Message, watchDepth), cancel: func() {}}
	most := int64(1)
	if v, ok := req.GetInt(control.KeyLogLevel); ok {
		most = v
	}
	if timeout < 0 || most < 0 {
		return w
	}
	w.cancel = h.D.Log().Subscribe(log.Debug, func(l *log.Line) {
		if int64(l.Grade) > most || conn != "" && l.Conn != "" && l.Conn != conn {
			return
		}
		select {
		case w.lines <- logMessage(l, false):
		default:
		}
	})
	return w
}

func (h Handler) initiate(req *control.Message, stream func(string, *control.Message) error) error {
	child, conn := req.Get(control.KeyChild), req.Get(control.KeyIKE)
	timeout, _ := req.GetInt(control.KeyTimeout)
	kind, name := "CHILD_SA", child
	if child == "" {
		kind, name = "IKE_SA", conn
	}
	if name == "" {
		return errors.New("missing configuration name")
	}
	halfOpen := h.D.About().HalfOpen
	var err error
	if lerr := h.D.Do(func(l Loop) {
		if conn, err = between(&l.Config().IKE, conn, child, req.Get(control.KeyMyHost), req.Get(control.KeyOtherHost)); err != nil {
			return
		}
		if conn == "" {
			err = fmt.Errorf("%s config '%s' not found", kind, name)
		} else if _, half := count(l); req.GetBool("init-limits") && half >= halfOpen {
			err = fmt.Errorf("establishing %s '%s' not possible at the moment due to limits", kind, name)
		}
	}); lerr != nil || err != nil {
		return errors.Join(lerr, err)
	}
	w := h.watch(req, conn, timeout)
	defer w.cancel()
	done, tag := make(chan error, 1), uint64(0)
	if err := h.D.Do(func(l Loop) {
		tag = l.Command(ike.Command{Kind: ike.CmdInitiate, Conn: conn, Child: child, Bare: child == "" && !ours(req)}, func(err error) { done <- err })
	}); err != nil {
		return err
	}
	if timeout < 0 {
		return nil
	}
	_, ended, err := h.wait(w, 1, done, time.Duration(timeout)*time.Millisecond, stream)
	switch {
	case ended == 0:
		_ = h.D.Do(func(l Loop) { l.Forget(tag) })
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

// selected reads a selection; one that is the zero value names nothing. A number that is none must
// not stand for all.
func selected(req *control.Message) (s selection, err error) {
	s = selection{conn: req.Get(control.KeyIKE), child: req.Get(control.KeyChild)}
	for _, n := range []struct {
		key string
		to  *uint32
	}{{control.KeyIKEID, &s.ike}, {control.KeyChildID, &s.id}} {
		if text := req.Get(n.key); text != "" {
			v, bad := strconv.ParseUint(text, 10, 32)
			if bad != nil {
				return s, fmt.Errorf("%s %.32q is no number of an SA", n.key, text)
			}
			*n.to = uint32(v)
		}
	}
	return s, nil
}

// children tells whether the selection is about CHILD SAs.
func (s *selection) children() bool { return s.child != "" || s.id != 0 }

// find returns one command for each SA that the selection matches. It runs on the loop.
func (s *selection) find(l Loop, kind ike.CommandKind) []ike.Command {
	var out []ike.Command
	l.List(func(sa *ike.SAInfo) bool {
		if s.conn != "" && sa.Conn != s.conn || s.ike != 0 && sa.Unique != s.ike {
			return true
		}
		if !s.children() {
			out = append(out, ike.Command{Kind: kind, IKE: sa.Unique})
			return true
		}
		for i := range sa.Children {
			c := &sa.Children[i]
			if (s.child == "" || c.Name == s.child) && (s.id == 0 || c.Unique == s.id) && c.State < ike.ChildRekeyed {
				out = append(out, ike.Command{Kind: kind, IKE: sa.Unique, ChildID: c.Unique})
			}
		}
		return true
	})
	return out
}

func (h Handler) terminate(req *control.Message, stream func(string, *control.Message) error) (*control.Message, error) {
	s, err := selected(req)
	if err != nil {
		return nil, err
	}
	if s == (selection{}) {
		return nil, errors.New("missing terminate selector")
	}
	timeout, _ := req.GetInt(control.KeyTimeout)
	w := h.watch(req, s.conn, timeout)
	defer w.cancel()
	var tags []uint64
	var done chan error
	matches, wished := 0, false
	if err := h.D.Do(func(l Loop) {
		cmds := s.find(l, ike.CmdTerminate)
		matches = len(cmds)
		done = make(chan error, matches+1)
		for _, c := range cmds {
			c.Force = req.GetBool(control.KeyForce)
			tags = append(tags, l.Command(c, func(err error) { done <- err }))
		}
		if s.ike == 0 && s.id == 0 {
			// What is only wanted so far (the next attempt is being waited for) ends as well.
			tag := l.Command(ike.Command{Kind: ike.CmdTerminate, Conn: s.conn, Child: s.child}, func(err error) {
				wished = err == nil && matches == 0
			})
			l.Forget(tag)
		}
	}); err != nil {
		return nil, err
	}
	good := matches
	if timeout >= 0 && !req.GetBool(control.KeyForce) {
		good, _, _ = h.wait(w, matches, done, time.Duration(timeout)*time.Millisecond, stream)
	}
	_ = h.D.Do(func(l Loop) {
		for _, t := range tags {
			l.Forget(t)
		}
	})
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

func (h Handler) rekey(req *control.Message) (*control.Message, error) {
	s, err := selected(req)
	if err != nil {
		return nil, err
	}
	if s == (selection{}) {
		return nil, errors.New("missing rekey selector")
	}
	kind := ike.CmdRekey
	if req.GetBool(control.KeyReauth) && !s.children() {
		kind = ike.CmdReauth
	}
	matches := 0
	if err := h.D.Do(func(l Loop) {
		cmds := s.find(l, kind)
		matches = len(cmds)
		for _, c := range cmds {
			l.Forget(l.Command(c, func(error) {}))
		}
	}); err != nil {
		return nil, err
	}
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
