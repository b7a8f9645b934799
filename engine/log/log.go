// Package log writes the daemon's log: one line of key=value pairs per thing that
// happened, to standard error or to syslog.
//
//	time=2026-03-01T12:00:00.000Z level=info area=ike conn=plant child=modbus msg="CHILD SA established" spi_in=c1234567
//
// What a peer chooses (identities, vendor IDs, error texts) is quoted and escaped, so
// that it can neither start a line of its own nor pass for another key. A line below
// its area's level costs one atomic load and no allocation.
package log

import (
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Area is a part of the daemon with a level of its own.
type Area uint8

// The areas.
const (
	IKE Area = iota // negotiation, authentication, SAs
	ESP             // the data path
	Net             // devices, routes, sockets, the control socket
	numAreas
)

var areaNames = [numAreas]string{"ike", "esp", "net"}

// String returns the area's name as it stands in a line.
func (a Area) String() string {
	return areaNames[a.base()]
}

// Areas lists the areas.
func Areas() []Area { return []Area{IKE, ESP, Net} }

// maxLine bounds a line in octets, its end included: RFC 3164 section 4.1 allows 1024,
// of which the syslog header takes some 40.
const maxLine = 980

// Logger writes lines. All its methods may be called from any goroutine; a nil Logger
// writes nothing. The zero value writes errors to standard error.
type Logger struct {
	levels levels
	subs   atomic.Pointer[[]*subscriber]

	mu   sync.Mutex // guards what follows, and keeps lines whole
	buf  []byte     // the line that is being built
	out  io.Writer
	sys  *syslog
	now  func() time.Time
	lost uint64 // lines that nobody took
}

type subscriber struct {
	level Level
	fn    func(*Line)
}

// New returns a logger that writes to w (nil: standard error) with the given level in
// all areas.
func New(w io.Writer, level Level) *Logger {
	l := &Logger{out: w}
	l.SetAll(level)
	return l
}

// NewSyslog returns a logger that sends its lines to the syslog daemon behind the
// socket at path ("": /dev/log), and to standard error while there is none.
func NewSyslog(path string, level Level) *Logger {
	if path == "" {
		path = "/dev/log"
	}
	l := New(os.Stderr, level)
	l.sys = &syslog{path: path}
	return l
}

// SetClock replaces the wall clock, for tests.
func (l *Logger) SetClock(now func() time.Time) {
	l.mu.Lock()
	l.now = now
	l.mu.Unlock()
}

// SetLevel changes the level of one area, at once and for all goroutines.
func (l *Logger) SetLevel(a Area, level Level) {
	if l != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.levels.write[a.base()].Store(int32(level))
		l.levels.settle(l.subscribers())
	}
}

// SetAll changes the level of every area.
func (l *Logger) SetAll(level Level) {
	for _, a := range Areas() {
		l.SetLevel(a, level)
	}
}

// Enabled tells whether a line of that area and level would be written or go to a subscriber.
// It is for callers that would have to work for a field's value.
func (l *Logger) Enabled(a Area, level Level) bool {
	return l != nil && int32(level) <= l.levels.build[a.base()].Load()
}

// Writes tells whether a line of that area and level would be written, subscribers aside.
func (l *Logger) Writes(a Area, level Level) bool {
	return l != nil && int32(level) <= l.levels.write[a.base()].Load()
}

// Log writes one line. Fields named conn and child stand ahead of the message.
func (l *Logger) Log(a Area, level Level, msg string, fields ...Field) {
	if !l.Enabled(a, level) {
		return
	}
	l.write(a, level, msg, fields)
}

// Subscribe has fn called with every line up to the level, whether it is written or not. fn
// runs on the goroutine that logs: it must return at once, must not log, and must not change
// the line. cancel ends the subscription; fn may still be running when it returns.
func (l *Logger) Subscribe(level Level, fn func(*Line)) (cancel func()) {
	s := &subscriber{level, fn}
	l.changeSubs(func(old []*subscriber) []*subscriber { return append(old, s) })
	return func() {
		l.changeSubs(func(old []*subscriber) []*subscriber {
			for i := range old {
				if old[i] == s {
					return append(old[:i], old[i+1:]...)
				}
			}
			return old
		})
	}
}

// subscribers returns those that there are. The list is never changed.
func (l *Logger) subscribers() []*subscriber {
	if p := l.subs.Load(); p != nil {
		return *p
	}
	return nil
}

// changeSubs publishes a changed copy of the subscribers.
func (l *Logger) changeSubs(change func([]*subscriber) []*subscriber) {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := change(append([]*subscriber(nil), l.subscribers()...))
	l.subs.Store(nil)
	if len(list) != 0 {
		l.subs.Store(&list)
	}
	l.levels.settle(list)
}

// timeFormat is RFC 3339 in UTC with milliseconds.
const timeFormat = "2006-01-02T15:04:05.000Z"

func (l *Logger) write(a Area, level Level, msg string, fields []Field) {
	if l.Writes(a, level) {
		l.print(a, level, msg, fields)
	}
	var built *Line
	for _, s := range l.subscribers() {
		if level > s.level {
			continue
		}
		if built == nil {
			built = line(a, level, msg, fields)
		}
		s.fn(built)
	}
}

// print writes a line to where the log goes.
func (l *Logger) print(a Area, level Level, msg string, fields []Field) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now
	if l.now != nil {
		now = l.now
	}
	t := now()
	b := l.buf[:0]
	b = append(b, "time="...)
	b = t.UTC().AppendFormat(b, timeFormat)
	b = append(b, ' ')
	head := len(b)
	b = append(b, "level="...)
	b = append(b, level.String()...)
	b = append(b, " area="...)
	b = append(b, a.String()...)
	for i := range fields {
		if fields[i].leads() {
			b = fields[i].append(b)
		}
	}
	b = append(b, ` msg=`...)
	b = appendValue(b, msg)
	for i := range fields {
		if !fields[i].leads() {
			b = fields[i].append(b)
		}
		if len(b) >= maxLine {
			break
		}
	}
	if len(b) >= maxLine {
		b = append(trim(b, maxLine-len(" cut=yes")-1), " cut=yes"...)
	}
	b = append(b, '\n')
	l.buf = b
	if l.sys == nil || !l.sys.send(t, level, b[head:len(b)-1]) {
		out := l.out
		if out == nil {
			out = os.Stderr
		}
		if l.sys != nil && !l.sys.told {
			l.sys.told = true
			_, _ = io.WriteString(out, "postern: no syslog daemon at "+l.sys.path+": logging to standard error\n")
		}
		if _, err := out.Write(b); err != nil {
			l.lost++
		}
	}
}

// trim shortens b to at most n octets without cutting a character in two.
func trim(b []byte, n int) []byte {
	for n > 0 && b[n]&0xc0 == 0x80 {
		n--
	}
	return b[:n]
}

// Lost returns how many lines could be written nowhere.
func (l *Logger) Lost() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost
}
