package cli

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// count writes a number with its noun: "1 child", "2 children".
func count(n int, noun string) string {
	if n != 1 {
		if noun == "child" {
			noun = "children"
		} else {
			noun += "s"
		}
	}
	return strconv.Itoa(n) + " " + noun
}

// span writes a number of seconds with at most two units.
func span(s int64) string {
	if s < 0 {
		s = 0
	}
	d, h, m := s/86400, s/3600%24, s/60%60
	switch {
	case d > 0 && h > 0:
		return fmt.Sprintf("%d d %d h", d, h)
	case d > 0:
		return fmt.Sprintf("%d d", d)
	case h > 0 && m > 0:
		return fmt.Sprintf("%d h %d min", h, m)
	case h > 0:
		return fmt.Sprintf("%d h", h)
	case m > 0:
		return fmt.Sprintf("%d min", m)
	}
	return fmt.Sprintf("%d s", s)
}

// size writes a number of octets with three digits and a decimal unit.
func size(n uint64) string {
	units := []string{"B", "kB", "MB", "GB", "TB", "PB", "EB"}
	if n < 1000 {
		return strconv.FormatUint(n, 10) + " B"
	}
	v, u := float64(n), 0
	for v >= 999.5 && u < len(units)-1 {
		v /= 1000
		u++
	}
	digits := 0
	switch {
	case v < 9.995:
		digits = 2
	case v < 99.95:
		digits = 1
	}
	return strconv.FormatFloat(v, 'f', digits, 64) + " " + units[u]
}

// clean makes text that a peer or a file has chosen safe for a terminal and for a
// line of its own.
func clean(s string) string {
	ok := true
	for _, r := range s {
		if r == utf8.RuneError || !strconv.IsPrint(r) {
			ok = false
		}
	}
	if ok {
		return s
	}
	q := strconv.Quote(s)
	return q[1 : len(q)-1]
}

// width of the lines that are printed.
const width = 80

// wrap writes the words with single blanks between them, behind a first line's head
// and below it at the same column, in lines of at most width characters. A word that
// does not fit into a line stands in a line of its own, cut where the line ends.
func wrap(b *strings.Builder, head string, words ...string) {
	indent := utf8.RuneCountInString(head)
	b.WriteString(head)
	at := indent
	for i, w := range words {
		n := utf8.RuneCountInString(w)
		if i > 0 {
			if at+1+n > width {
				newLine(b, indent)
				at = indent
			} else {
				b.WriteByte(' ')
				at++
			}
		}
		for at+n > width {
			cut := 0
			for range width - at {
				_, l := utf8.DecodeRuneInString(w[cut:])
				cut += l
			}
			b.WriteString(w[:cut])
			newLine(b, indent)
			w, at = w[cut:], indent
			n = utf8.RuneCountInString(w)
		}
		b.WriteString(w)
		at += n
	}
	b.WriteByte('\n')
}

func newLine(b *strings.Builder, indent int) {
	b.WriteByte('\n')
	b.WriteString(strings.Repeat(" ", indent))
}

// pad fills s up with blanks to n characters.
// Not inlined, as are others here: it is called at many places, where only room counts.
//
//go:noinline
func pad(s string, n int) string {
	return s + strings.Repeat(" ", max(0, n-utf8.RuneCountInString(s)))
}

// padLeft is pad with the blanks ahead.
//
//go:noinline
func padLeft(s string, n int) string {
	return strings.Repeat(" ", max(0, n-utf8.RuneCountInString(s))) + s
}
