package swanctl

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Section is a section with all that it takes from others, in the order in which swanctl goes
// through it: what the section says itself, then what it takes from the others, from left to
// right. The root's name is "".
type Section struct {
	Name     string
	At       Position // where it first begins
	Settings []Setting
	Sections []*Section
}

// Setting is a key with its value.
type Setting struct {
	Key   string
	Value string // may be a secret
	At    Position
	set   bool // false: "key =", which takes an inherited value away
}

// Get returns the value of key and whether there is one.
func (s *Section) Get(key string) (string, bool) {
	if s != nil {
		for i := range s.Settings {
			if s.Settings[i].Key == key {
				return s.Settings[i].Value, true
			}
		}
	}
	return "", false
}

// Sub returns the section of that name, nil if there is none.
func (s *Section) Sub(name string) *Section {
	if s != nil {
		for _, c := range s.Sections {
			if c.Name == name {
				return c
			}
		}
	}
	return nil
}

// Parse reads a configuration in strongSwan's syntax (strongswan.conf(5)) with all files that it
// includes. path is the file, or a directory with a swanctl.conf. The error is an *Error.
func Parse(path string) (*Section, error) {
	s, _, err := parse(confFile(path))
	return s, err
}

// confFile returns the file that is meant by a path.
func confFile(path string) string {
	if fi, err := os.Stat(path); err == nil && fi.IsDir() {
		return filepath.Join(path, "swanctl.conf")
	}
	return path
}

// parse also returns what is odd, but no error to swanctl either.
func parse(path string) (*Section, []*Error, error) {
	p := new(parser)
	root := &raw{at: Position{File: path}}
	if err := p.read(path, root, 0); err != nil {
		return nil, nil, err
	}
	t := &tree{root: root, warnings: p.warnings}
	s, err := t.merge("", []*raw{root}, 0)
	if err != nil {
		return nil, nil, err
	}
	for _, c := range root.sections {
		switch c.name {
		case "connections", "secrets", "pools", "authorities":
		default:
			if !c.used {
				t.warn(c.at, "nothing takes from the section %q, and it is none of connections, secrets, pools and authorities", c.name)
			}
		}
	}
	return s, t.warnings, nil
}

// tree follows the references.
type tree struct {
	root     *raw
	depth    int // of references that lead to references
	steps    int // settings and sections that were looked at
	elements int
	warnings []*Error
}

func (t *tree) warn(at Position, format string, args ...any) {
	t.warnings = append(t.warnings, &Error{at, fmt.Sprintf(format, args...), nil})
}

// whole returns the section and all that it takes from, also by way of others, the first of which
// to have a key decides.
func (t *tree) whole(s *raw) ([]*raw, error) {
	if s.whole != nil {
		return s.whole, nil
	}
	s.busy = true
	t.depth++
	list := []*raw{s}
	for _, r := range s.refs {
		if t.depth > maxInherited {
			return nil, &Error{r.at, fmt.Sprintf("more than %d references lead from one to the next", maxInherited), nil}
		}
		from, err := t.find(r)
		if err != nil {
			return nil, err
		}
		if from == nil {
			t.warn(r.at, "there is no section %q to take from", strings.Join(r.path, "."))
		}
		if list, err = t.add(list, from, r.at); err != nil {
			return nil, err
		}
	}
	s.busy = false
	t.depth--
	s.whole = list
	return list, nil
}

// find returns the sections that a reference leads to.
func (t *tree) find(r reference) ([]*raw, error) {
	list := []*raw{t.root}
	for _, name := range r.path {
		var next []*raw
		for _, s := range list {
			c := s.sub(name)
			if c == nil {
				continue
			}
			if c.busy {
				return nil, &Error{r.at, fmt.Sprintf("the reference to %q goes in a circle: take one of those that it leads over away", strings.Join(r.path, ".")), nil}
			}
			c.used = true
			all, err := t.whole(c)
			if err != nil {
				return nil, err
			}
			if next, err = t.add(next, all, r.at); err != nil {
				return nil, err
			}
		}
		list = next
	}
	return list, nil
}

// add appends those of more that list does not have yet.
func (t *tree) add(list, more []*raw, at Position) ([]*raw, error) {
next:
	for _, m := range more {
		for _, s := range list {
			if s == m {
				continue next
			}
		}
		if len(list) == maxInherited {
			return nil, &Error{at, fmt.Sprintf("a section takes from more than %d others", maxInherited), nil}
		}
		list = append(list, m)
	}
	return list, nil
}

// merge makes one section of several, the first of which to have a key decides.
func (t *tree) merge(name string, from []*raw, nest int) (*Section, error) {
	out := &Section{Name: name, At: from[0].at}
	if nest > maxNesting {
		return nil, &Error{out.At, fmt.Sprintf("with what it takes from others, the section is nested deeper than %d levels: does it take from one that it stands in?", maxNesting), nil}
	}
	var names []string
	subs := make(map[string][]*raw)
	seen := make(map[string]bool)
	for _, s := range from {
		for _, n := range s.settings {
			if err := t.count(n.At, seen[n.Key]); err != nil {
				return nil, err
			}
			if !seen[n.Key] && n.set {
				out.Settings = append(out.Settings, n)
			}
			seen[n.Key] = true
		}
		for _, c := range s.sections {
			all, err := t.whole(c)
			if err != nil {
				return nil, err
			}
			if err = t.count(c.at, subs[c.name] != nil); err != nil {
				return nil, err
			}
			if subs[c.name] == nil {
				names = append(names, c.name)
			}
			if subs[c.name], err = t.add(subs[c.name], all, c.at); err != nil {
				return nil, err
			}
		}
	}
	for _, n := range names {
		c, err := t.merge(n, subs[n], nest+1)
		if err != nil {
			return nil, err
		}
		out.Sections = append(out.Sections, c)
	}
	return out, nil
}

// count counts one more step, and one more element unless it was there already.
func (t *tree) count(at Position, again bool) error {
	if !again {
		t.elements++
	}
	if t.steps++; t.elements > maxElements || t.steps > maxSteps {
		return &Error{at, fmt.Sprintf("with what sections take from others, the configuration has more than %d sections and settings", maxElements), nil}
	}
	return nil
}
