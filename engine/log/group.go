package log

import "sync/atomic"

// Areas with a group of their own. The group tells what a line is about in strongSwan's
// division, which control clients know; it is no part of the line's text.
const (
	Daemon    = Net | 1<<areaBits // DMN: start and end, the control socket
	Config    = Net | 2<<areaBits // CFG: what is configured
	IKEConfig = IKE | 2<<areaBits
	Kernel    = Net | 3<<areaBits // KNL: devices, addresses, routes
	Child     = ESP | 4<<areaBits // CHD: how CHILD SAs are set up and kept
	Messages  = IKE | 5<<areaBits // ENC: messages and their payloads
	Packets   = IKE | 6<<areaBits // NET: what comes from the network and is no good

	areaBits = 2
	areaMask = 1<<areaBits - 1
)

// The first are those of areas without a group of their own.
var (
	areaGroups  = [...]string{IKE: "IKE", ESP: "ESP", Net: "NET"}
	otherGroups = [...]string{"", "DMN", "CFG", "KNL", "CHD", "ENC", "NET"}
)

// group returns strongSwan's name of the area's group.
func (a Area) group() string {
	if g := a >> areaBits; g != 0 && int(g) < len(otherGroups) {
		return otherGroups[g]
	}
	return areaGroups[a.base()]
}

// base is the area without its group, which has the level.
func (a Area) base() Area { return min(a&areaMask, numAreas-1) }

// Grade is how much detail a line brings, in strongSwan's numbers: 0 what an audit needs, 1
// what happens, 2 more of it; 3 and 4 are data, of which no line consists here.
type Grade int8

// The grades.
const (
	Audit Grade = iota
	Control
	More
)

// gradeOf is what a line of the level has unless it says otherwise.
func gradeOf(level Level) Grade {
	switch {
	case level <= Error:
		return Audit
	case level < Debug:
		return Control
	}
	return More
}

// At gives a line a grade of its own. It leaves no trace in the line's text.
func At(g Grade) Field { return Field{kind: kindGrade, num: uint64(g)} }

// Line is a line as a subscriber gets it.
type Line struct {
	Group string // of strongSwan's: DMN, CFG, IKE and so on
	Grade Grade
	Conn  string // the connection that it is about; "" if about none
	IKE   uint32 // the unique number of the IKE SA that it is about; 0 if about none
	// Text is the message and then the pairs key=value, without time, level and area. It is
	// escaped as the line is.
	Text string
}

// line builds what subscribers get.
func line(a Area, level Level, msg string, fields []Field) *Line {
	l := &Line{Group: a.group(), Grade: gradeOf(level)}
	b := append(appendEscaped(make([]byte, 0, 256), cut(msg)), ':')
	head := len(b)
	for i := range fields {
		f := &fields[i]
		switch {
		case f.kind == kindGrade:
			l.Grade = Grade(f.num)
			continue
		case f.key == "conn" && f.kind == kindStr:
			l.Conn = f.str
		case f.key == "ike" && f.kind == kindInt:
			l.IKE = uint32(f.num)
		}
		if len(b) < maxLine {
			b = f.append(b)
		}
	}
	switch {
	case len(b) == head:
		b = b[:head-1]
	case len(b) > maxLine:
		b = append(trim(b, maxLine-len(" cut=yes")), " cut=yes"...)
	}
	l.Text = string(b)
	return l
}

// levels are how much is written of each area, and how much is built: the latter is more
// while a subscriber wants more.
type levels struct {
	write, build [numAreas]atomic.Int32
}

// settle follows a change of what is written or wanted. The caller holds the lock.
func (l *levels) settle(subs []*subscriber) {
	for a := range l.build {
		most := l.write[a].Load()
		for _, s := range subs {
			most = max(most, int32(s.level))
		}
		l.build[a].Store(most)
	}
}
