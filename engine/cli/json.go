package cli

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// jsonWriter builds JSON (RFC 8259) by appending. The caller opens and closes objects
// and arrays in the right order; commas, quoting and indentation are done here.
type jsonWriter struct {
	b     []byte
	depth int
	some  bool // the innermost object or array has an element already
}

// element starts an element of the innermost object (with a key) or array (without).
func (j *jsonWriter) element(key string) {
	if j.some {
		j.b = append(j.b, ',')
	}
	if j.depth > 0 {
		j.newline()
	}
	if key != "" {
		j.quote(key)
		j.b = append(j.b, ": "...)
	}
	j.some = true
}

// Not inlined, as are others here: it is called at many places, where only room counts.
//
//go:noinline
func (j *jsonWriter) newline() {
	j.b = append(j.b, '\n')
	for range j.depth {
		j.b = append(j.b, "  "...)
	}
}

// open starts an object or an array: '{' or '['. key is "" at the top and in arrays.
//
//go:noinline
func (j *jsonWriter) open(key string, bracket byte) {
	j.element(key)
	j.b = append(j.b, bracket)
	j.depth++
	j.some = false
}

// close ends it: '}' or ']'.
//
//go:noinline
func (j *jsonWriter) close(bracket byte) {
	j.depth--
	if j.some {
		j.newline()
	}
	j.b = append(j.b, bracket)
	j.some = true
}

func (j *jsonWriter) str(key, v string) {
	j.element(key)
	j.quote(v)
}

func (j *jsonWriter) int(key string, v int64) {
	j.element(key)
	j.b = strconv.AppendInt(j.b, v, 10)
}

func (j *jsonWriter) uint(key string, v uint64) {
	j.element(key)
	j.b = strconv.AppendUint(j.b, v, 10)
}

func (j *jsonWriter) bool(key string, v bool) {
	j.element(key)
	j.b = strconv.AppendBool(j.b, v)
}

// strs writes an array of strings on one line.
func (j *jsonWriter) strs(key string, list []string) {
	j.element(key)
	j.b = append(j.b, '[')
	for i, s := range list {
		if i > 0 {
			j.b = append(j.b, ", "...)
		}
		j.quote(s)
	}
	j.b = append(j.b, ']')
}

// named writes strings under the keys, which stand in one string with blanks between.
func (j *jsonWriter) named(keys string, values ...string) {
	for i, k := range strings.Fields(keys) {
		j.str(k, values[i])
	}
}

// ints does the same with numbers.
func (j *jsonWriter) ints(keys string, values ...int64) {
	for i, k := range strings.Fields(keys) {
		j.int(k, values[i])
	}
}

// quote writes a string; octets that are no UTF-8 become U+FFFD, as JSON has no other way.
func (j *jsonWriter) quote(s string) {
	const hex = "0123456789abcdef"
	j.b = append(j.b, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			j.b = append(j.b, '\\', byte(r))
		case r == '\n':
			j.b = append(j.b, `\n`...)
		case r < 0x20 || r >= 0x7f && r < 0xa0:
			// The second range are control characters, too: legal in JSON, but not on a terminal.
			j.b = append(j.b, `\u00`...)
			j.b = append(j.b, hex[r>>4], hex[r&15])
		default:
			j.b = utf8.AppendRune(j.b, r)
		}
	}
	j.b = append(j.b, '"')
}

// bytes returns what was written, with an end of line.
func (j *jsonWriter) bytes() []byte { return append(j.b, '\n') }
