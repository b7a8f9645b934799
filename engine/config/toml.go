package config

import (
	"bytes"
	"errors"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2/unstable"
)

// pos is a place in the file; both count from 1, col in characters.
type pos struct{ line, col int }

// kind is the TOML type of a node.
type kind uint8

const (
	kindString kind = iota
	kindInteger
	kindFloat
	kindBool
	kindDate
	kindList
	kindTable
	kindTables // an array of tables: [[name]]
)

var kindNames = [...]string{"a text", "an integer", "a fraction", "a boolean", "a date", "a list", "a section", "a list of sections"}

func (k kind) String() string { return kindNames[k] }

// origin tells how a table came to be, which decides who may still add to it.
type origin uint8

const (
	byPath   origin = iota // on the way to a longer header: a header of its own may follow
	byHeader               // by its own header: no second one
	byDotted               // by a dotted key: only dotted keys and headers of sub-tables may add
	byInline               // in braces: closed
)

// node is a value or a table of the file. Everything in it is a copy.
type node struct {
	kind    kind
	name    string // its key; "" for elements of lists
	key     pos    // where the key stands first
	at      pos    // where the value stands
	text    string // of scalars: the string's content, or the token
	list    []*node
	entries []*node // of tables, in the order of the file
	index   map[string]*node
	origin  origin
	bad     bool // a problem with it has been noted
}

func newTable(name string, at pos, o origin) *node {
	return &node{kind: kindTable, name: name, key: at, at: at, origin: o}
}

// get returns the entry of that name, or nil.
func (n *node) get(name string) *node { return n.index[name] }

func (n *node) add(e *node) {
	if n.index == nil {
		n.index = make(map[string]*node)
	}
	n.index[e.name] = e
	n.entries = append(n.entries, e)
}

// maxSyntaxErrors bounds the work on a file that is not TOML at all; each error can
// cost a scan to the end of the file.
const maxSyntaxErrors = 20

// document is the state of building a tree.
type document struct {
	*loader
	data  []byte
	lines []int // offset of each line
	base  int   // offset in data at which the parser's own input begins
	p     unstable.Parser
	root  *node
	cur   *node // the table of the last header

	lastOffset int // what where was asked for last, and its answer
	lastPlace  pos
}

// tree builds the tree of tables from the text. The parser below checks the syntax;
// what may be defined once, and by whom it may be added to, is checked here (TOML 1.0,
// "Keys", "Table", "Inline Table", "Array of Tables").
func (l *loader) tree(data []byte) *node {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	d := &document{loader: l, data: data, lines: []int{0}, root: newTable("", pos{1, 1}, byHeader)}
	d.cur = d.root
	for i, c := range data {
		if c == '\n' {
			d.lines = append(d.lines, i+1)
		}
	}
	for range maxSyntaxErrors {
		d.p.Reset(data[d.base:])
		end := d.base
		for d.p.NextExpression() {
			end = d.expression(d.p.Expression())
		}
		err := d.p.Error()
		if err == nil {
			return d.root
		}
		l.broken = true
		next := d.syntax(err, end)
		if next < 0 {
			return d.root
		}
		d.base = next
	}
	l.problem(d.where(d.base), "is this a TOML file?",
		"%d syntax errors are enough: the file was not read from here on", maxSyntaxErrors)
	return d.root
}

// where turns an offset in the file into a place. Most calls go forward within a line,
// of which no part is counted twice then.
func (d *document) where(offset int) pos {
	i := sort.SearchInts(d.lines, offset+1) - 1
	p, from := pos{i + 1, 1}, d.lines[i]
	if d.lastPlace.line == p.line && d.lastOffset <= offset {
		p, from = d.lastPlace, d.lastOffset
	}
	p.col += utf8.RuneCount(d.data[from:offset])
	d.lastPlace, d.lastOffset = p, offset
	return p
}

// of returns where a node of the parser stands.
func (d *document) of(n *unstable.Node) pos { return d.where(d.base + int(n.Raw.Offset)) }

// expression takes a header or a key with its value into the tree and returns the
// offset of the end of its line.
func (d *document) expression(n *unstable.Node) int {
	parts, end := d.keyParts(n.Key())
	switch n.Kind {
	case unstable.Table:
		d.cur = d.header(parts, false)
	case unstable.ArrayTable:
		d.cur = d.header(parts, true)
	case unstable.KeyValue:
		d.assign(d.cur, parts, n.Value(), end)
		end = d.base + int(n.Raw.Offset+n.Raw.Length)
	}
	if i := bytes.IndexByte(d.data[end:], '\n'); i >= 0 {
		return end + i
	}
	return len(d.data)
}

// keyPart is one part of a dotted key.
type keyPart struct {
	name string
	at   pos
}

func (d *document) keyParts(it unstable.Iterator) (parts []keyPart, end int) {
	for it.Next() {
		n := it.Node()
		parts = append(parts, keyPart{string(n.Data), d.of(n)})
		end = d.base + int(n.Raw.Offset+n.Raw.Length)
	}
	return parts, end
}

// dotted writes a key for people.
func dotted(parts []keyPart) string {
	names := make([]string, len(parts))
	for i, p := range parts {
		names[i] = shown(p.name)
	}
	return strings.Join(names, ".")
}

// shown returns a key as the file would have it.
func shown(name string) string {
	for i := 0; i < len(name); i++ {
		if !isBare(name[i]) {
			return strconv.Quote(name)
		}
	}
	if name == "" {
		return `""`
	}
	return name
}

func isBare(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_'
}

// header finds or makes the table that [a.b.c] or [[a.b.c]] opens. A second header adds
// to the table of the first, after the problem is noted; where there is no table to add
// to, the keys below go into one that is no part of the tree.
func (d *document) header(parts []keyPart, many bool) *node {
	t := d.root
	for i, part := range parts[:len(parts)-1] {
		next := t.get(part.name)
		switch {
		case next == nil:
			next = newTable(part.name, part.at, byPath)
			t.add(next)
		case next.kind == kindTables:
			next = next.list[len(next.list)-1]
		case next.kind != kindTable || next.origin == byInline:
			d.problem(part.at, "keep one of the two", "%s is already %s in line %d and cannot get sections",
				dotted(parts[:i+1]), closedName(next), next.key.line)
			return d.lost(part.at)
		}
		t = next
	}
	last := parts[len(parts)-1]
	have := t.get(last.name)
	if many {
		if have == nil {
			have = &node{kind: kindTables, name: last.name, key: last.at, at: last.at}
			t.add(have)
		}
		if have.kind != kindTables {
			d.problem(last.at, "keep one of the two", "[[%s]] is already %s in line %d", dotted(parts), closedName(have), have.key.line)
			return d.lost(last.at)
		}
		e := newTable("", last.at, byHeader)
		have.list = append(have.list, e)
		return e
	}
	switch {
	case have == nil:
		have = newTable(last.name, last.at, byHeader)
		t.add(have)
	case have.kind == kindTable && have.origin == byPath:
		have.origin, have.at = byHeader, last.at
	case have.kind == kindTable && have.origin == byHeader:
		d.problem(last.at, "put the keys of both under one header", "section [%s] is already in line %d", dotted(parts), have.at.line)
	default:
		d.problem(last.at, "keep one of the two", "[%s] is already %s in line %d", dotted(parts), closedName(have), have.key.line)
		return d.lost(last.at)
	}
	return have
}

// lost returns a table for keys that have no place in the tree.
func (d *document) lost(at pos) *node {
	d.broken = true
	return newTable("", at, byHeader)
}

// closedName says what a node is that a header or a dotted key cannot add to.
func closedName(n *node) string {
	if n.kind == kindTable {
		switch n.origin {
		case byInline:
			return "a section in braces"
		case byDotted:
			return "made of dotted keys"
		}
	}
	return n.kind.String()
}

// assign puts a value into table t under a key of one or more parts, which ends at
// offset end.
func (d *document) assign(t *node, parts []keyPart, v *unstable.Node, end int) {
	for i, part := range parts[:len(parts)-1] {
		next := t.get(part.name)
		if next == nil {
			next = newTable(part.name, part.at, byDotted)
			t.add(next)
		} else if next.kind != kindTable || next.origin != byDotted {
			d.problem(part.at, "put the key below the section's header", "%s is already %s in line %d and a dotted key cannot add to it",
				dotted(parts[:i+1]), closedName(next), next.key.line)
			d.broken = true
			return
		}
		t = next
	}
	last := parts[len(parts)-1]
	if have := t.get(last.name); have != nil {
		d.problem(last.at, "keep one of the two", "%s is already set in line %d", dotted(parts), have.key.line)
		have.bad = true
		return
	}
	at := d.where(d.valueOffset(end))
	n := d.value(v, at)
	n.name, n.key = last.name, last.at
	t.add(n)
}

// valueOffset returns where the value begins whose key ends at that offset.
func (d *document) valueOffset(end int) int {
	for end < len(d.data) && (d.data[end] == ' ' || d.data[end] == '\t' || d.data[end] == '=') {
		end++
	}
	return end
}

var kindOf = map[unstable.Kind]kind{
	unstable.String: kindString, unstable.Integer: kindInteger, unstable.Float: kindFloat, unstable.Bool: kindBool,
	unstable.LocalDate: kindDate, unstable.LocalTime: kindDate, unstable.LocalDateTime: kindDate, unstable.DateTime: kindDate,
}

// value copies a value out of the parser. The parser bounds how deep values nest.
func (d *document) value(v *unstable.Node, at pos) *node {
	switch v.Kind {
	case unstable.Array:
		n := &node{kind: kindList, at: at}
		for it := v.Children(); it.Next(); {
			e := it.Node()
			where := at // the parser has no place for a list within a list
			if e.Kind != unstable.Array {
				where = d.of(e)
			}
			n.list = append(n.list, d.value(e, where))
		}
		return n
	case unstable.InlineTable:
		n := newTable("", at, byDotted)
		for it := v.Children(); it.Next(); {
			e := it.Node()
			parts, end := d.keyParts(e.Key())
			d.assign(n, parts, e.Value(), end)
		}
		n.seal()
		return n
	}
	return &node{kind: kindOf[v.Kind], at: at, text: string(v.Data)}
}

// seal closes a table in braces and those that its dotted keys made.
func (n *node) seal() {
	if n.kind != kindTable {
		return
	}
	n.origin = byInline
	for _, e := range n.entries {
		e.seal()
	}
}

// syntaxHints say what to do about the parser's errors, by a part of their text. What,
// where it is there, stands for the parser's words.
var syntaxHints = []struct{ part, what, hint string }{
	{"quoted", "a text without quotes", quoteHint},
	{"start of value", "a text without quotes, or no value", quoteHint},
	{"expected keyword", "a text without quotes", quoteHint},
	{"expected newline", "", `write one key = value per line, texts in quotes`},
	{"expected '='", "", `write key = value`},
	{"start of key", "", `write key = value; a comment starts with #`},
	{"array", "", `lists are written ["a", "b"]`},
	{"inline table", "", `write it as a section of its own: [name]`},
	{"table name", "", `sections are written [name]`},
	{"unterminated", "", `close the text with the quote that opens it`},
	{"not terminated", "", `close the text with the quotes that open it`},
	{"new lines", "", `close the text with the quote that opens it`},
	{"escape", "", `write \\ for a backslash, or put the text into 'single quotes'`},
	{"UTF-8", "", `save the file as UTF-8`},
	{"carriage return", "", `end lines with LF or CRLF`},
}

const quoteHint = `write key = "text"`

// syntax notes an error of the parser, whose last good expression ended at offset end,
// and returns the offset of the next line that looks like the start of an expression,
// or -1.
func (d *document) syntax(err error, end int) int {
	start := d.skipBlank(end)
	at := start
	msg := err.Error()
	if pe, ok := errors.AsType[*unstable.ParserError](err); ok {
		// The place is given as a part of the input; what never ends is better shown at
		// its beginning than at the end of the file.
		open := strings.Contains(msg, "terminated") || strings.Contains(msg, "incomplete")
		if o := cap(d.data) - cap(pe.Highlight); !open && o >= d.base && o <= len(d.data) {
			at = o
		}
		msg = unquoted(pe.Message)
	}
	hint := ""
	for _, h := range syntaxHints {
		if strings.Contains(msg, h.part) {
			hint = h.hint
			if h.what != "" {
				msg = h.what
			}
			break
		}
	}
	if first, here := d.where(start).line, d.where(at).line; first < here {
		msg += ", in what begins in line " + strconv.Itoa(first)
	}
	d.problem(d.where(at), hint, "%s", msg)

	line := sort.SearchInts(d.lines, min(start, at)+1) // index of the line after
	for ; line < len(d.lines); line++ {
		if startsExpression(d.data[d.lines[line]:]) {
			return d.lines[line]
		}
	}
	return -1
}

// skipBlank returns where the first expression at or after offset o begins.
func (d *document) skipBlank(o int) int {
	for o < len(d.data) {
		switch d.data[o] {
		case ' ', '\t', '\r', '\n':
			o++
		case '#':
			i := bytes.IndexByte(d.data[o:], '\n')
			if i < 0 {
				return len(d.data)
			}
			o += i
		default:
			return o
		}
	}
	return o
}

// startsExpression tells whether a line looks like "key =" or "[name". It is only used
// to go on after an error, where lines may belong to a list that was given up.
func startsExpression(b []byte) bool {
	if i := bytes.IndexByte(b, '\n'); i >= 0 {
		b = b[:i]
	}
	b = bytes.TrimLeft(b, " \t")
	header := len(b) > 0 && b[0] == '['
	b = bytes.TrimLeft(b, "[")
	i := 0
	for i < len(b) && (isBare(b[i]) || b[i] == '.') {
		i++
	}
	rest := bytes.TrimLeft(b[i:], " \t")
	if header {
		return i > 0 && (b[0] < '0' || b[0] > '9') && bytes.HasPrefix(rest, []byte("]"))
	}
	return i > 0 && bytes.HasPrefix(rest, []byte("="))
}

// unquoted takes the character that a message of the parser shows ("U+0068 'h'") out
// of it: it can be a secret's.
func unquoted(msg string) string {
	i := strings.Index(msg, "U+")
	if i < 0 {
		return msg
	}
	rest := strings.TrimLeft(msg[i+2:], "0123456789ABCDEF")
	if strings.HasPrefix(rest, " '") {
		_, n := utf8.DecodeRuneInString(rest[2:])
		rest = strings.TrimPrefix(rest[2+n:], "'")
	}
	head := strings.TrimSuffix(strings.TrimRight(msg[:i], " :"), " but got")
	return head + rest
}
