package vici

import (
	"sync"

	"postern/engine/control"
	"postern/engine/log"
)

// logMessage writes a line of the log, in charon's order. Only the event that goes to everybody
// tells of threads.
func logMessage(l *log.Line, thread bool) *control.Message {
	m := new(control.Message).Set(control.KeyGroup, l.Group).SetInt(control.KeyLevel, int64(l.Grade))
	if thread {
		m.SetInt(control.KeyThread, 0)
	}
	if l.Conn != "" {
		m.Set(control.KeyIKESAName, l.Conn)
	}
	if l.IKE != 0 {
		m.SetUint(control.KeyIKESAID, uint64(l.IKE))
	}
	return m.Set(control.KeyMsg, l.Text)
}

// noteOrder tells whoever reads the log that a client has ordered something, as charon does.
func (h Handler) noteOrder(name string, req *control.Message) {
	switch name {
	case control.CmdInitiate, control.CmdTerminate, control.CmdRekey, control.CmdRedirect:
		f := []log.Field{log.At(log.Control), log.Str("command", name)}
		for _, key := range []string{control.KeyIKE, control.KeyChild, control.KeyIKEID, control.KeyChildID} {
			if v := req.Get(key); v != "" {
				f = append(f, log.Str(key, v))
			}
		}
		h.D.Log().Log(log.Config, log.Debug, "a control client asks", f...)
	}
}

// LogEvents sends the lines of the log to the clients that have registered for them, up to the
// grade that charon sends. Who reads slowly misses some.
type LogEvents struct {
	Log    *log.Logger
	Server *control.Server

	mu     sync.Mutex
	cancel func() // nil: nobody listens
}

// Follow is for the server's OnWanted: lines are built only while somebody wants them.
func (e *LogEvents) Follow(event string) {
	if event != control.EvLog || e.Log == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch on := e.Server.Wanted(event); {
	case on && e.cancel == nil:
		e.cancel = e.Log.Subscribe(log.Debug, func(l *log.Line) {
			if l.Grade <= log.Control {
				e.Server.Spare(control.EvLog, logMessage(l, true))
			}
		})
	case !on && e.cancel != nil:
		e.cancel()
		e.cancel = nil
	}
}
