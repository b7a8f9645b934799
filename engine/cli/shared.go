package cli

import "strings"

// What packages share that add commands with options: the same command lines, tables and JSON.

// Options is the option parser of a command; options may stand behind arguments, too.
type Options = options

// NewOptions returns the option parser of a command. cmd.Name may have several words.
func NewOptions(sys *System, cmd *Command) *Options { return newOptions(sys, cmd) }

// ParseArgs returns the arguments that are no options, of which there must be between
// least and most. If ok is false, the command ends with the status; help was given.
func (o *options) ParseArgs(args []string, least, most int) (rest []string, status int, ok bool) {
	return o.parse(args, least, most)
}

// Wrap writes words behind a head in lines of at most 80 characters, the further lines below
// the first word.
func Wrap(b *strings.Builder, head string, words ...string) { wrap(b, head, words...) }

// Clean makes text that somebody else has chosen safe for a terminal and for a line of its own.
func Clean(s string) string { return clean(s) }

// Pad fills s up with blanks to n characters.
func Pad(s string, n int) string { return pad(s, n) }

// JSON builds JSON by appending. Begin and End have to match.
type JSON struct{ w jsonWriter }

// Begin starts an object ('{') or an array ('['). key is "" at the top and in arrays.
func (j *JSON) Begin(key string, bracket byte) { j.w.open(key, bracket) }

// End ends it: '}' or ']'.
func (j *JSON) End(bracket byte) { j.w.close(bracket) }

// Str adds a string.
func (j *JSON) Str(key, v string) { j.w.str(key, v) }

// Strs adds an array of strings.
func (j *JSON) Strs(key string, list []string) { j.w.strs(key, list) }

// Int adds a number.
func (j *JSON) Int(key string, v int64) { j.w.int(key, v) }

// Bool adds true or false.
func (j *JSON) Bool(key string, v bool) { j.w.bool(key, v) }

// Bytes returns what was written, with an end of line.
func (j *JSON) Bytes() []byte { return j.w.bytes() }
