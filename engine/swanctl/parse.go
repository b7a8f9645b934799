package swanctl

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Limits of what is read, so that a wrong name cannot fill the memory of a device with 16 MiB.
// The largest configuration that the largest board has room for stays far below them.
const (
	maxFileOctets  = 256 << 10 // of one file of the configuration
	maxTotalOctets = 1 << 20   // of all of them
	maxFiles       = 256
	maxIncludes    = 8     // files that include each other, one in the other
	maxNesting     = 16    // sections in sections
	maxElements    = 16384 // sections and settings, before and after references are followed
	maxSteps       = 1 << 18
	maxInherited   = 256   // sections that one section takes from
	maxName        = 255   // octets, the limit of VICI
	maxCredential  = 65535 // octets of a key or a certificate, the limit of VICI
	maxCredentials = 1024  // files in one directory
)

// Position is a place in a file of the configuration. Lines count from 1; line 0 is the whole file.
type Position struct {
	File string
	Line int
}

func (p Position) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

// Error is what is wrong at a place: it says what, and what to do. It never holds a value, as
// values may be secrets.
type Error struct {
	Position
	What string
	Err  error // of the system, or nil
}

func (e *Error) Error() string {
	s := e.Position.String() + ": " + e.What
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// raw is a section as it is written: what it takes from others is still only named.
type raw struct {
	name     string
	at       Position
	settings []Setting
	sections []*raw
	refs     []reference
	whole    []*raw // the section itself and what it takes from, in the order of precedence
	busy     bool   // whole is being found
	used     bool   // a reference leads here or further down
}

type reference struct {
	path []string
	at   Position
}

// sub returns the section of that name, nil if there is none.
func (s *raw) sub(name string) *raw {
	for _, c := range s.sections {
		if c.name == name {
			return c
		}
	}
	return nil
}

// set gives a key a value; where it already has one, that one's place stays.
func (s *raw) set(n Setting) {
	for i := range s.settings {
		if s.settings[i].Key == n.Key {
			s.settings[i] = n
			return
		}
	}
	s.settings = append(s.settings, n)
}

// parser reads a file and what it includes into one tree.
type parser struct {
	open     []string // files that include each other, the outermost first
	octets   int
	files    int
	elements int
	warnings []*Error
}

// read adds what is in the file at path to the section into.
func (p *parser) read(path string, into *raw, nest int) error {
	path = filepath.Clean(path)
	whole := Position{File: path}
	if slices.Contains(p.open, path) {
		return &Error{whole, "the file includes itself (" + strings.Join(append(p.open, path), ", ") + "): take one include away", nil}
	}
	if len(p.open) == maxIncludes {
		return &Error{whole, fmt.Sprintf("more than %d files include each other, one in the other", maxIncludes), nil}
	}
	if p.files++; p.files > maxFiles {
		return &Error{whole, fmt.Sprintf("more than %d files are included", maxFiles), nil}
	}
	text, err := readFile(path, maxFileOctets)
	if err != nil {
		return &Error{whole, "it cannot be read", err}
	}
	if p.octets += len(text); p.octets > maxTotalOctets {
		return &Error{whole, fmt.Sprintf("with this file the configuration has more than %d octets", maxTotalOctets), nil}
	}
	p.open = append(p.open, path)
	s := &scanner{p: p, text: strings.TrimPrefix(string(text), "\ufeff"), file: path, line: 1}
	clear(text)
	err = s.statements(into, nest, false)
	p.open = p.open[:len(p.open)-1]
	return err
}

var errTooLarge = errors.New("it is too large")

// readFile reads a regular file of at most limit octets.
func readFile(path string, limit int64) ([]byte, error) {
	// Before it is opened: with a FIFO that would wait until somebody writes.
	fi, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, bare(err)
	case !fi.Mode().IsRegular():
		return nil, errors.New("it is not a file")
	case fi.Size() > limit:
		return nil, errTooLarge
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, bare(err)
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, bare(err)
	}
	if int64(len(text)) > limit {
		return nil, errTooLarge
	}
	return text, nil
}

// bare takes the path from an error of the system: what wraps it names the file.
func bare(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// scanner walks over the text of one file.
type scanner struct {
	p    *parser
	text string
	off  int
	line int
	file string
}

func (s *scanner) at() Position { return Position{s.file, s.line} }

func (s *scanner) errorf(format string, args ...any) error {
	return &Error{s.at(), fmt.Sprintf(format, args...), nil}
}

// peek is the next octet, 0 at the end. (A NUL in the text is refused where it is met.)
func (s *scanner) peek() byte {
	if s.off < len(s.text) {
		return s.text[s.off]
	}
	return 0
}

// space skips spaces and tabs, and carriage returns wherever they are.
func (s *scanner) space() {
	for s.off < len(s.text) && strings.IndexByte(" \t\r", s.text[s.off]) >= 0 {
		s.off++
	}
}

// blank skips all that means nothing between names: space, ends of lines, comments.
func (s *scanner) blank() {
	for {
		s.space()
		switch s.peek() {
		case '\n':
			s.line++
			s.off++
		case '#':
			if n := strings.IndexByte(s.text[s.off:], '\n'); n >= 0 {
				s.off += n
			} else {
				s.off = len(s.text)
			}
		default:
			return
		}
	}
}

// count counts one more element.
func (s *scanner) count() error {
	if s.p.elements++; s.p.elements > maxElements {
		return s.errorf("the configuration has more than %d sections and settings", maxElements)
	}
	return nil
}

// statements reads what a section holds, up to its closing brace if it has one.
func (s *scanner) statements(into *raw, nest int, braces bool) error {
	first := s.at()
	for {
		s.blank()
		if s.off == len(s.text) {
			if braces {
				return &Error{first, "the section that begins here has no end: a '}' is missing", nil}
			}
			return nil
		}
		if s.peek() == '}' {
			if !braces {
				return s.errorf("a '}' without the '{' that goes with it, in this file")
			}
			s.off++
			return nil
		}
		at := s.at()
		name, err := s.name("a section or a setting")
		if err != nil {
			return err
		}
		if name == "include" && s.including() {
			if err = s.include(into, nest); err != nil {
				return err
			}
			continue
		}
		if err = s.count(); err != nil {
			return err
		}
		s.blank()
		switch s.peek() {
		case '=':
			s.off++
			n := Setting{Key: name, At: at}
			if n.Value, n.set, err = s.value(); err != nil {
				return err
			}
			into.set(n)
			continue
		case ':':
			s.off++
		case '{':
		default:
			return &Error{at, "behind the name comes '=' and a value, or '{' and what a section holds", nil}
		}
		if nest == maxNesting {
			return &Error{at, fmt.Sprintf("sections are nested deeper than %d levels", maxNesting), nil}
		}
		sec := into.sub(name)
		if sec == nil {
			sec = &raw{name: name, at: at}
			into.sections = append(into.sections, sec)
		}
		if err = s.references(sec); err != nil {
			return err
		}
		s.off++ // the brace
		if err = s.statements(sec, nest+1, true); err != nil {
			return err
		}
	}
}

// nameEnds are the octets that no name holds.
const nameEnds = "#{}:.,=\"\r\n\t "

// name reads the name of what.
func (s *scanner) name(what string) (string, error) {
	from := s.off
	for s.off < len(s.text) && strings.IndexByte(nameEnds, s.text[s.off]) < 0 {
		if c := s.text[s.off]; c <= ' ' || c > '~' {
			return "", s.errorf("names hold printable ASCII alone")
		}
		s.off++
	}
	switch n := s.off - from; {
	case n > maxName:
		return "", s.errorf("the name has more than %d octets", maxName)
	case n > 0:
		return s.text[from:s.off], nil
	case s.off == len(s.text):
		return "", s.errorf("the file ends where the name of %s is expected", what)
	case s.peek() == '"':
		return "", s.errorf("only values stand in quotes; here the name of %s is expected", what)
	}
	return "", s.errorf("a %q where the name of %s is expected", s.peek(), what)
}

// references reads the names of the sections that sec takes from, up to its opening brace.
func (s *scanner) references(sec *raw) error {
	more := s.text[s.off-1] == ':'
	for more {
		s.blank()
		r := reference{at: s.at()}
		for {
			name, err := s.name("the section to take from")
			if err != nil {
				return err
			}
			r.path = append(r.path, name)
			if s.peek() != '.' {
				break
			}
			s.off++
		}
		if err := s.count(); err != nil {
			return err
		}
		sec.refs = append(sec.refs, r)
		s.blank()
		if more = s.peek() == ','; more {
			s.off++
		}
	}
	if s.peek() != '{' {
		return s.errorf("behind the sections to take from comes '{'")
	}
	return nil
}

// value reads a value: words and quoted strings, with one space between them, up to the end of
// the line or a closing brace. ok is false if there is none.
func (s *scanner) value() (value string, ok bool, err error) {
	var b strings.Builder
	for {
		s.space()
		c := s.peek()
		if s.off == len(s.text) || c == '\n' || c == '#' || c == '}' {
			return b.String(), ok, nil
		}
		if ok {
			b.WriteByte(' ')
		}
		ok = true
		if c == '"' {
			if err = s.quoted(&b); err != nil {
				return "", false, err
			}
			continue
		}
		from := s.off
		for s.off < len(s.text) && strings.IndexByte("#}\"\r\n\t ", s.text[s.off]) < 0 {
			s.off++
		}
		word := s.text[from:s.off]
		if strings.IndexByte(word, 0) >= 0 {
			return "", false, s.errorf("a NUL character in a value: the file is damaged, or no text")
		}
		if word == "=" {
			s.p.warnings = append(s.p.warnings, &Error{s.at(), "a '=' within a value: the next setting begins on a line of its own", nil})
		}
		b.WriteString(word)
	}
}

// quoted reads a string in quotes, which may go over several lines.
func (s *scanner) quoted(b *strings.Builder) error {
	first := s.at()
	s.off++
	for s.off < len(s.text) {
		c := s.text[s.off]
		s.off++
		switch c {
		case '"':
			return nil
		case '\r':
			continue
		case 0:
			return s.errorf("a NUL character in a value: the file is damaged, or no text")
		case '\n':
			s.line++
		case '\\':
			if strings.HasPrefix(s.text[s.off:], "\r\n") {
				s.off++
			}
			if s.off == len(s.text) {
				continue
			}
			c = s.text[s.off]
			s.off++
			switch c {
			case '\n':
				s.line++ // the string goes on as if there were no line's end
				continue
			case 'n':
				c = '\n'
			case 'r':
				c = '\r'
			case 't':
				c = '\t'
			}
		}
		b.WriteByte(c)
	}
	return &Error{first, "the quotes that open here are never closed", nil}
}

// including tells whether the name include is followed by what to include: a setting may be
// called so, too.
func (s *scanner) including() bool {
	rest := s.text[s.off:]
	after := strings.TrimLeft(rest, " \t")
	return len(after) < len(rest) && !strings.HasPrefix(after, "=")
}

// include reads the files that a pattern stands for into the section.
func (s *scanner) include(into *raw, nest int) error {
	s.space()
	at := s.at()
	var b strings.Builder
	if s.peek() == '"' {
		if err := s.quoted(&b); err != nil {
			return err
		}
	} else {
		s.pattern(&b)
	}
	pattern := b.String()
	if pattern == "" || strings.IndexByte(pattern, 0) >= 0 {
		return &Error{at, "include needs the name of a file, or a pattern", nil}
	}
	if !filepath.IsAbs(pattern) {
		pattern = filepath.Join(escape(filepath.Dir(s.file)), pattern)
	}
	list, err := filepath.Glob(pattern)
	if err != nil {
		return &Error{at, "the pattern of this include is wrong", err}
	}
	list = slices.DeleteFunc(list, func(path string) bool { return hidden(pattern, path) })
	if len(list) == 0 && !strings.ContainsAny(pattern, "*?[") {
		s.p.warnings = append(s.p.warnings, &Error{at, "there is no file to include", nil})
	}
	for _, path := range list {
		if err = s.p.read(path, into, nest); err != nil {
			return err
		}
	}
	return nil
}

// pattern reads the pattern of an include that is not in quotes.
func (s *scanner) pattern(b *strings.Builder) {
	for s.off < len(s.text) {
		c := s.text[s.off]
		if strings.IndexByte("\"#}\r\n\t ", c) >= 0 {
			return
		}
		s.off++
		if c == '\\' && s.off < len(s.text) && strings.IndexByte("\"#} ", s.text[s.off]) >= 0 {
			c = s.text[s.off]
			s.off++
		}
		b.WriteByte(c)
	}
}

// escape returns a pattern that stands for the path alone.
func escape(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// hidden tells whether a wildcard has matched the dot of a hidden file or directory, which shells
// do not let it: editors leave such files beside those that they edit.
func hidden(pattern, path string) bool {
	want, have := strings.Split(pattern, "/"), strings.Split(path, "/")
	if len(want) != len(have) {
		return false
	}
	for i, h := range have {
		if strings.HasPrefix(h, ".") && !strings.HasPrefix(strings.TrimPrefix(want[i], `\`), ".") {
			return true
		}
	}
	return false
}
