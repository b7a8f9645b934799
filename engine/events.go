package engine

import (
	"errors"
	"time"

	"postern/engine/log"
	"postern/ike"
)

// eventInterval and eventKeys bound the lines that unauthenticated peers can provoke:
// one per kind, connection and reason in each interval.
const (
	eventInterval = 10 * time.Second
	eventKeys     = 32
)

// eventLine is what the log says of an event.
type eventLine struct {
	level   log.Level
	msg     string
	limited bool // anybody can cause it at any rate
}

// eventLines is indexed by ike.EventKind. An empty message is not logged.
var eventLines = [...]eventLine{
	ike.EvIKEUp:        {log.Info, "IKE SA established", false},
	ike.EvIKEDown:      {log.Info, "IKE SA closed", false},
	ike.EvIKERekeyed:   {log.Info, "IKE SA rekeyed", false},
	ike.EvChildUp:      {log.Info, "CHILD SA established, the tunnel is up", false},
	ike.EvChildDown:    {log.Info, "CHILD SA closed", false},
	ike.EvChildRekeyed: {log.Info, "CHILD SA rekeyed", false},
	ike.EvDone:         {}, // the command's own affair
	ike.EvInitiate:     {log.Info, "connecting to the peer", false},
	ike.EvFailed:       {log.Warn, "the tunnel could not be established", false},
	ike.EvRetransmit:   {log.Debug, "no answer yet, request repeated", false},
	ike.EvNotify:       {log.Warn, "the peer reports an error", true},
	ike.EvRefused:      {log.Warn, "the peer's request was refused", true},
	ike.EvDropped:      {log.Info, "IKE message dropped", true},
	ike.EvCookies:      {log.Warn, "many unfinished connection attempts: cookies are demanded from now on", false},
	ike.EvTrace:        {log.Debug, "message", false},
	ike.EvNAT:          {log.Info, "there is a NAT on the way, ESP goes through UDP", false},
	ike.EvRedirected:   {log.Info, "redirect to another gateway", true},
	ike.EvLeased:       {log.Info, "virtual addresses given to the peer", false},
	ike.EvAssigned:     {log.Info, "the peer has assigned virtual addresses", false},
	ike.EvNotResumed:   {log.Info, "the session cannot go on, a new one is negotiated", false},
	ike.EvMoved:        {log.Info, "the peer has moved to another address, the tunnels follow", false},
	ike.EvRoamed:       {log.Info, "moved to another path, the tunnels stay up", false},
	ike.EvStranded:     {log.Warn, "no address, route or link leads to the peer: the tunnels are kept until one does; look at cable, modem and DHCP", false},
	ike.EvTrust:        {log.Warn, "a certificate is doubtful", true},
	ike.EvResolved:     {log.Info, "the peer's name resolves to", false},
	ike.EvNoPPK:        {log.Warn, "the tunnel is up without its post-quantum pre-shared key: who records it may read it one day", false},
}

// retransmitsToTell is how many requests in a row the peer leaves unanswered before the
// log says so to everybody: one or two are lost on every mobile link.
const retransmitsToTell = 3

// event does what follows from an event: it ends waiting commands, writes the log and
// tells the control clients.
func (l *ikeLoop) event(e *ike.Event) {
	if e.Kind == ike.EvDone {
		if done := l.waiters[e.Tag]; done != nil {
			delete(l.waiters, e.Tag)
			done(e.Err)
		}
		return
	}
	l.countEvent(e)
	l.logEvent(e)
	l.updown(e)
	if l.onEvent != nil {
		l.onEvent(e)
	}
}

// eventText returns the level and the message of an event; "" if there is none.
func eventText(e *ike.Event) (log.Level, string) {
	if int(e.Kind) >= len(eventLines) {
		return log.Debug, ""
	}
	line := &eventLines[e.Kind]
	switch {
	case e.Kind == ike.EvDropped && late(e.Err):
		return log.Debug, line.msg
	case e.Kind == ike.EvTrace:
		return line.level, e.Text
	case e.Kind == ike.EvRetransmit && e.Count >= retransmitsToTell:
		return log.Info, "the peer does not answer, request repeated"
	case (e.Kind == ike.EvIKEDown || e.Kind == ike.EvChildDown) && !expected(e.Err):
		return log.Warn, line.msg
	case e.Kind == ike.EvCookies && e.Count == 0:
		return log.Info, "fewer unfinished connection attempts: cookies are not demanded any more"
	case e.Kind == ike.EvRedirected && e.Err != nil:
		return log.Warn, "redirect to another gateway is not followed"
	case e.Kind == ike.EvStranded && e.Count == 0:
		return log.Info, "there is a way to the peer again"
	case e.Kind == ike.EvFailed && e.Delay != 0 && stillNameless(e.Err):
		return log.Debug, line.msg // it has been told, and goes on every two seconds
	case e.Kind == ike.EvInitiate && e.Old != 0:
		return line.level, "connecting to the peer anew, to authenticate again"
	case e.Kind == ike.EvFailed && e.Old != 0:
		return log.Warn, "the peer could not be authenticated again; the tunnel goes on until its IKE SA ends"
	case e.Kind == ike.EvFailed && e.Delay == 0:
		return log.Error, line.msg + " and is not tried again: initiate it when the cause is removed"
	}
	return line.level, line.msg
}

// late tells whether a message was dropped because it came twice or too late, as happens on
// every network.
func late(err error) bool {
	return errors.Is(err, ike.ErrMessageID) || errors.Is(err, ike.ErrUnexpected) || errors.Is(err, ike.ErrRepeated)
}

// stillNameless tells whether an attempt failed because a name could not be resolved, as
// it could not before.
func stillNameless(err error) bool {
	r, ok := errors.AsType[*ike.ResolveError](err)
	return ok && r.Times > 1
}

// expected tells whether an SA's end is part of ordinary life.
func expected(err error) bool {
	return err == nil || errors.Is(err, ike.ErrTerminated) || errors.Is(err, ike.ErrReplaced) || errors.Is(err, ike.ErrPeerDeleted) ||
		errors.Is(err, ike.ErrInactive)
}

// dropCounters tell which counter has the messages that were dropped for a reason; the rest is
// in cIKEDropOther.
var dropCounters = []struct {
	err error
	c   counter
}{
	{ike.ErrUnknownSPI, cIKEDropSPI}, {ike.ErrMessageID, cIKEDropMessageID},
	{ike.ErrUnexpected, cIKEDropState}, {ike.ErrRepeated, cIKEDropState},
	{ike.ErrSyntax, cIKEDropMalformed}, {ike.ErrUnprotected, cIKEDropMalformed}, {ike.ErrVersion, cIKEDropMalformed},
	{ike.ErrNonce, cIKEDropMalformed}, {ike.ErrIntegrity, cIKEDropForged}, {ike.ErrWrongToken, cIKEDropForged},
	{ike.ErrHalfOpen, cIKEDropFull}, {ike.ErrTableFull, cIKEDropFull},
}

// countEvent counts what a peer, or somebody who plays one, has tried in vain.
func (l *ikeLoop) countEvent(e *ike.Event) {
	switch e.Kind {
	case ike.EvDropped:
		for _, d := range dropCounters {
			if errors.Is(e.Err, d.err) {
				l.d.counts.inc(d.c)
				return
			}
		}
		l.d.counts.inc(cIKEDropOther)
	case ike.EvRefused:
		l.d.counts.inc(cIKERefused)
		if errors.Is(e.Err, ike.ErrTooOften) {
			l.d.counts.inc(cIKERefusedOften)
		}
	case ike.EvRedirected:
		if e.Err != nil {
			l.d.counts.inc(cIKERedirectRefused)
		}
	}
}

// logEvent writes the line of an event.
func (l *ikeLoop) logEvent(e *ike.Event) {
	level, msg := eventText(e)
	if msg == "" || !l.log.Enabled(log.IKE, level) {
		return
	}
	suppressed := 0
	if eventLines[e.Kind].limited {
		key := string([]byte{byte(e.Kind)}) + e.Conn
		if e.Err != nil {
			key += "\x00" + e.Err.Error()
		}
		var ok bool
		if suppressed, ok = l.limit.Allow(key, l.now().Mono); !ok {
			return
		}
	}
	f := make([]log.Field, 0, 13)
	str := func(key, v string) {
		if v != "" {
			f = append(f, log.Str(key, v))
		}
	}
	num := func(key string, v int) {
		if v != 0 {
			f = append(f, log.Int(key, v))
		}
	}
	str("conn", e.Conn)
	str("child", e.Child)
	num("ike", int(e.IKE))
	num("child_id", int(e.ChildID))
	num("replaces", int(e.Old))
	if e.Path.Remote.IsValid() {
		f = append(f, log.AddrPort("peer", e.Path.Remote))
	}
	switch e.Kind {
	case ike.EvRoamed:
		f = append(f, log.AddrPort("local", e.Path.Local))
	case ike.EvInitiate, ike.EvFailed:
		num("attempt", e.Count)
	case ike.EvRetransmit:
		num("repeated", e.Count)
	case ike.EvCookies:
		num("half_open", e.Count)
	}
	str("suite", e.Suite)
	num("suppressed", suppressed)
	if e.Delay > 0 {
		f = append(f, log.Dur("next_in", e.Delay))
	}
	if e.Kind != ike.EvTrace {
		str("text", e.Text)
	}
	area, f := place(e.Kind, append(f, log.Err(e.Err)))
	l.log.Log(area, level, msg, f...)
}
