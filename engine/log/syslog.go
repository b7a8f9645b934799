package log

import (
	"net"
	"os"
	"strconv"
	"time"
)

// syslog sends lines to a local syslog daemon over a datagram socket (RFC 3164 as
// local senders use it: priority, time and tag, without the host name).
type syslog struct {
	path string
	conn *net.UnixConn
	buf  []byte
	next time.Time // no attempt before this
	told bool      // that lines go to standard error instead
}

const (
	// facilityDaemon is "system daemons" (RFC 3164 section 4.1.1).
	facilityDaemon = 3
	// syslogPatience is how long a line may wait for a syslog daemon that does not read.
	// The caller holds the logger, so it is short.
	syslogPatience = 20 * time.Millisecond
	// syslogRetry is the pause after a failed attempt, so that a dead syslog daemon costs nothing.
	syslogRetry = time.Second
)

// severity maps our levels to RFC 3164's.
var severity = [...]int{Error: 3, Warn: 4, Info: 6, Debug: 7}

// send returns false if the line could not be handed over.
func (s *syslog) send(t time.Time, level Level, line []byte) bool {
	if t.Before(s.next) && s.next.Sub(t) <= syslogRetry { // the second: the wall clock may jump back
		return false
	}
	sev := severity[Debug]
	if level >= 0 && int(level) < len(severity) {
		sev = severity[level]
	}
	b := append(s.buf[:0], '<')
	b = strconv.AppendInt(b, int64(facilityDaemon<<3|sev), 10)
	b = append(b, '>')
	b = t.AppendFormat(b, time.Stamp)
	b = append(b, " postern["...)
	b = strconv.AppendInt(b, int64(os.Getpid()), 10)
	b = append(b, "]: "...)
	b = append(b, line...)
	s.buf = b
	// The second attempt is for a syslog daemon that has restarted: its old socket
	// refuses, its new one is there.
	for range 2 {
		if s.conn == nil {
			c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: s.path, Net: "unixgram"})
			if err != nil {
				break
			}
			s.conn = c
		}
		_ = s.conn.SetWriteDeadline(time.Now().Add(syslogPatience))
		if _, err := s.conn.Write(b); err == nil {
			s.told = false
			return true
		}
		_ = s.conn.Close()
		s.conn = nil
	}
	s.next = t.Add(syslogRetry)
	return false
}
