package log

import (
	"fmt"
	"strings"
)

// Level is how much a line matters. A logger writes the lines of its area's level and
// of those before it.
type Level int8

// The levels, the gravest first.
const (
	Error Level = iota // something does not work and somebody has to act
	Warn               // something is odd, or was refused
	Info               // what a person who looks after the site wants to read
	Debug              // for developers
)

var levelNames = [...]string{"error", "warn", "info", "debug"}

// String returns the level's name as ParseLevel takes it.
func (l Level) String() string {
	if l >= 0 && int(l) < len(levelNames) {
		return levelNames[l]
	}
	return fmt.Sprintf("level(%d)", int8(l))
}

// ParseLevel returns the level of that name.
func ParseLevel(s string) (Level, error) {
	for i, n := range levelNames {
		if s == n {
			return Level(i), nil
		}
	}
	return 0, fmt.Errorf("no log level %q: use %s", s, strings.Join(levelNames[:], ", "))
}
