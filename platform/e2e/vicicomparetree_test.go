//go:build linux

package e2e

import (
	"cmp"
	"fmt"
	"hash/crc32"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// vnode is an element of what swanctl printed: of a message with all its order kept, or a line of
// text beside the messages.
type vnode struct {
	kind  vkind
	name  string // of a message what it is: "list-sa event"; of a line of text ""
	value string // of a value or text; a list's items, joined by spaces as --raw has them
	kids  []vnode
}

type vkind string

const (
	vValue   vkind = "value"
	vList    vkind = "list"
	vSection vkind = "section"
	vText    vkind = "text"
)

// vMessage begins a message; log events are called "log" alone.
var vMessage = regexp.MustCompile(`^(log|[a-z-]+ (?:event|reply)) \{`)

// parseVICI reads what swanctl prints with --raw or --pretty; other lines become texts.
func parseVICI(out string) ([]vnode, error) {
	var nodes []vnode
	for out != "" {
		line, rest, _ := strings.Cut(out, "\n")
		m := vMessage.FindStringSubmatch(line)
		switch {
		case m == nil:
			if line != "" {
				nodes = append(nodes, vnode{kind: vText, value: line})
			}
			out = rest
		case len(m[0]) == len(line):
			n := vnode{kind: vSection, name: m[1]}
			var err error
			if out, err = n.pretty(rest, "  "); err != nil {
				return nil, fmt.Errorf("%s: %w", m[1], err)
			}
			nodes = append(nodes, n)
		default:
			if !strings.HasSuffix(line, "}") {
				return nil, fmt.Errorf("the message ends without a brace: %s", line)
			}
			n := vnode{kind: vSection, name: m[1]}
			if left, err := n.raw(line[len(m[0]) : len(line)-1]); err != nil || left != "" {
				return nil, fmt.Errorf("not understood: %q (%v) in: %s", left, err, line)
			}
			nodes, out = append(nodes, n), rest
		}
	}
	return nodes, nil
}

var (
	vName    = `[A-Za-z0-9_.%:/-]*`
	vSubRaw  = regexp.MustCompile(`^(` + vName + `) \{`)
	vListRaw = regexp.MustCompile(`^(` + vName + `)=\[`)
	vLeafRaw = regexp.MustCompile(`^(` + vName + `)=`)
)

// vNext tells whether s can be what follows an element of a section in the raw notation.
func vNext(s string) bool {
	if s == "" || s[0] == '}' {
		return true
	}
	return s[0] == ' ' && (vSubRaw.MatchString(s[1:]) || vLeafRaw.MatchString(s[1:]))
}

// raw reads the elements of a section and returns what follows the last of them. The notation
// quotes nothing: a value ends where another element could begin, but for names (a part of a
// distinguished name follows a comma) and texts for people, which always stand last.
func (n *vnode) raw(s string) (string, error) {
	for s != "" && s[0] != '}' {
		if m := vSubRaw.FindStringSubmatch(s); m != nil {
			sub := vnode{kind: vSection, name: m[1]}
			rest, err := sub.raw(s[len(m[0]):])
			if err != nil {
				return rest, err
			}
			if rest == "" {
				return "", fmt.Errorf("section %q does not end", m[1])
			}
			n.kids, s = append(n.kids, sub), strings.TrimPrefix(rest[1:], " ")
			// A section may have no name: its two spaces must not become one.
			if strings.HasPrefix(rest, "}  {") {
				s = rest[2:]
			}
			continue
		}
		m, end := vListRaw.FindStringSubmatch(s), 0
		kind := vValue
		switch {
		case m != nil && m[1] != "msg" && m[1] != "errmsg":
			kind = vList
			for end = len(m[0]); ; end++ {
				if end == len(s) {
					return s, fmt.Errorf("list %q does not end", m[1])
				}
				if s[end] == ']' && vNext(s[end+1:]) {
					break
				}
			}
		default:
			if m = vLeafRaw.FindStringSubmatch(s); m == nil {
				return s, fmt.Errorf("no element begins here")
			}
			end = len(m[0])
			if m[1] == "msg" || m[1] == "errmsg" {
				end = len(s)
			}
			for end < len(s) && (!vNext(s[end:]) || s[end-1] == ',') {
				end++
			}
		}
		n.kids = append(n.kids, vnode{kind: kind, name: m[1], value: s[len(m[0]):end]})
		if kind == vList {
			end++
		}
		s = strings.TrimPrefix(s[end:], " ")
	}
	return s, nil
}

// pretty reads the lines of a section, indented as given, and returns those after its end.
func (n *vnode) pretty(s, indent string) (string, error) {
	for s != "" {
		line, rest, _ := strings.Cut(s, "\n")
		if line == indent[2:]+"}" {
			return rest, nil
		}
		text, ok := strings.CutPrefix(line, indent)
		if !ok {
			return s, fmt.Errorf("the line %q is not in a section indented by %d", line, len(indent))
		}
		key, value, ok := strings.Cut(text, " = ")
		switch {
		case ok && value == "[":
			list := vnode{kind: vList, name: key}
			var items []string
			for {
				if line, rest, ok = strings.Cut(rest, "\n"); !ok {
					return "", fmt.Errorf("list %q does not end", key)
				}
				if line == indent+"]" {
					break
				}
				items = append(items, strings.TrimPrefix(line, indent+"  "))
			}
			list.value = strings.Join(items, " ")
			n.kids = append(n.kids, list)
		case ok:
			n.kids = append(n.kids, vnode{kind: vValue, name: key, value: value})
		case strings.HasSuffix(text, " {"):
			sub := vnode{kind: vSection, name: strings.TrimSuffix(text, " {")}
			var err error
			if rest, err = sub.pretty(rest, indent+"  "); err != nil {
				return rest, err
			}
			n.kids = append(n.kids, sub)
		default:
			return s, fmt.Errorf("not an element: %q", line)
		}
		s = rest
	}
	return "", fmt.Errorf("section %q does not end", n.name)
}

// at returns the first element of that path, nil if there is none.
func (n *vnode) at(path ...string) *vnode {
	for _, name := range path {
		i := slices.IndexFunc(n.kids, func(k vnode) bool { return k.name == name })
		if i < 0 {
			return nil
		}
		n = &n.kids[i]
	}
	return n
}

// vshape compares two values that need not be equal: it returns what is wrong with the second,
// "" if nothing is.
type vshape func(want, got string) string

// sameHex takes hexadecimal numbers of the same length: SPIs. None (zero) is not some.
func sameHex(want, got string) string {
	zero := func(s string) bool { return strings.Trim(s, "0") == "" }
	if !hexOnly.MatchString(got) || len(want) != len(got) {
		return fmt.Sprintf("is no hexadecimal number of %d digits", len(want))
	}
	if zero(want) != zero(got) {
		return "is zero on one side only"
	}
	return ""
}

var hexOnly = regexp.MustCompile(`^[0-9a-f]+$`)

// someNumber takes any whole number.
func someNumber(want, got string) string {
	if _, err := strconv.ParseInt(got, 10, 64); err != nil {
		return "is not a whole number"
	}
	return ""
}

// nearNumber takes whole numbers of about the same size, which shows that the unit is the same: a loaded
// machine is slow and the daemons spread their rekeyings over a tenth of the time.
func nearNumber(want, got string) string {
	w, err1 := strconv.ParseInt(want, 10, 64)
	g, err2 := strconv.ParseInt(got, 10, 64)
	if err1 != nil || err2 != nil {
		return "is not a whole number"
	}
	if (w < 0) != (g < 0) || math.Abs(float64(w-g)) > 30+0.25*float64(max(w, g)) {
		return "is far from it"
	}
	return ""
}

// sameZero takes whole numbers that are both zero or both not: packets sent again count twice.
func sameZero(want, got string) string {
	if w := someNumber("", got); w != "" {
		return w
	}
	if (want == "0") != (got == "0") {
		return "is zero on one side only"
	}
	return ""
}

// someWord takes any text without a space.
func someWord(want, got string) string {
	if got == "" || strings.Contains(got, " ") {
		return "is not one word"
	}
	return ""
}

// printable takes any text for people, but not none, and not one that swanctl shows as octets.
func printable(want, got string) string {
	if got == "" || strings.HasPrefix(got, "0x") || strings.ContainsAny(got, "\n\t") {
		return "is nothing that swanctl shows as text"
	}
	return ""
}

// sinceTime takes charon's notation of the time at which a daemon started.
func sinceTime(want, got string) string {
	if !regexp.MustCompile(`^[A-Z][a-z]{2} \d\d \d\d:\d\d:\d\d \d{4}$`).MatchString(got) {
		return "is no such time"
	}
	return ""
}

// aSpan takes a number with a unit: "1 second", "2 minutes".
func aSpan(want, got string) string {
	if !regexp.MustCompile(`^(1 (second|minute|hour|day)|\d+ (seconds|minutes|hours|days))$`).MatchString(got) {
		return "is no span of time"
	}
	return ""
}

// listOfWords takes a list of at least one word.
func listOfWords(want, got string) string {
	if strings.TrimSpace(got) == "" {
		return "is empty"
	}
	return ""
}

// vShapes are the values that are compared by shape: by what their path (without the numbers of
// repeated messages) matches, the first one of the table. All others have to be equal.
var vShapes = []struct {
	path  *regexp.Regexp
	shape vshape
}{
	{regexp.MustCompile(`(^|/)(initiator-spi|responder-spi|spi-in|spi-out)$`), sameHex},
	{regexp.MustCompile(`^(list-sa|ike-\w+|child-\w+) event/.*/(established|rekey-time|reauth-time|life-time|install-time|use-in|use-out)$`), nearNumber},
	{regexp.MustCompile(`/reqid$`), someNumber},
	{regexp.MustCompile(`/(bytes|packets)-(in|out)$`), nearNumber},
	{regexp.MustCompile(`^version reply/(daemon|version)$`), someWord},
	{regexp.MustCompile(`^stats reply/uptime/running$`), aSpan},
	{regexp.MustCompile(`^stats reply/uptime/since$`), sinceTime},
	{regexp.MustCompile(`^stats reply/plugins$`), listOfWords},
	{regexp.MustCompile(`^stats reply/ikesas/`), nil},
	{regexp.MustCompile(`^stats reply/`), someNumber},
	{regexp.MustCompile(`^get-algorithms reply/`), someWord}, // the plugin that has it
	{regexp.MustCompile(`^counters reply/counters/`), sameZero},
	{regexp.MustCompile(`^load-(conn|cert|key|token|pool|authority|shared) reply/errmsg$`), printable}, // ours say what is wrong with which element
}

func shapeOf(path string) vshape {
	if s, ok := shapesFound.Load(path); ok {
		return s.(vshape)
	}
	var found vshape
	plain := vNumbers.ReplaceAllString(path, "")
	for _, s := range vShapes {
		if s.path.MatchString(plain) {
			found = s.shape
			break
		}
	}
	shapesFound.Store(path, found)
	return found
}

var (
	vNumbers    = regexp.MustCompile(`#\d+`)
	shapesFound sync.Map // by path: there are few of them and many comparisons
)

// vdiff is a difference between what charon and another daemon answered.
type vdiff struct {
	path string // "list-sa event/site/child-sas/net-1/spi-in"; the second of a name has "#2"
	what string // "missing", "extra", "order", "kind", "value"
	text string // for people
}

func (d vdiff) String() string { return d.path + ": " + d.what + ": " + d.text }

// compareVICI compares two lists of elements in order and returns the differences of the second.
func compareVICI(want, got []vnode) []vdiff { return compareElements("", want, got) }

func compareElements(at string, want, got []vnode) []vdiff {
	var diffs []vdiff
	paths := func(nodes []vnode) (list []string, by map[string]*vnode) {
		count, by := map[string]int{}, map[string]*vnode{}
		for i := range nodes {
			name := cmp.Or(nodes[i].name, `""`)
			if nodes[i].kind == vText {
				name = fmt.Sprintf("text %q", maskText(nodes[i].value)) // lines have nothing else to go by
			}
			switch name { // to tell which of them is missing, not only how many
			case "list-cert event":
				if data := nodes[i].at("data"); data != nil {
					name += fmt.Sprintf(" %08x", crc32.ChecksumIEEE([]byte(data.value)))
				}
			case "list-policy event":
				if len(nodes[i].kids) == 1 {
					name += " " + nodes[i].kids[0].name
				}
			}
			count[name]++
			if n := count[name]; n > 1 {
				name += fmt.Sprint("#", n)
			}
			if at != "" {
				name = at + "/" + name
			}
			list, by[name] = append(list, name), &nodes[i]
		}
		return list, by
	}
	wantList, wantBy := paths(want)
	gotList, gotBy := paths(got)
	for _, p := range wantList {
		if gotBy[p] == nil {
			diffs = append(diffs, vdiff{p, "missing", "charon has " + wantBy[p].brief()})
		}
	}
	for _, p := range gotList {
		if wantBy[p] == nil {
			diffs = append(diffs, vdiff{p, "extra", "charon has nothing; here " + gotBy[p].brief()})
		}
	}
	both := func(list []string, other map[string]*vnode) []string {
		return slices.DeleteFunc(slices.Clone(list), func(p string) bool { return other[p] == nil })
	}
	wantBoth, gotBoth := both(wantList, gotBy), both(gotList, wantBy)
	for i, p := range wantBoth {
		if gotBoth[i] != p {
			diffs = append(diffs, vdiff{p, "order", "here stands " + gotBoth[i]})
			break
		}
	}
	for _, p := range wantBoth {
		diffs = append(diffs, compareElement(p, wantBy[p], gotBy[p])...)
	}
	return diffs
}

func compareElement(path string, want, got *vnode) []vdiff {
	if want.kind != got.kind {
		return []vdiff{{path, "kind", fmt.Sprintf("charon has a %s, here is a %s", want.kind, got.kind)}}
	}
	switch shape := shapeOf(path); {
	case want.kind == vSection:
		return compareElements(path, want.kids, got.kids)
	case want.kind == vText:
	case shape != nil:
		if wrong := shape(want.value, got.value); wrong != "" {
			return []vdiff{{path, "value", fmt.Sprintf("charon's %q, here %q, which %s", want.value, got.value, wrong)}}
		}
	case want.value != got.value:
		return []vdiff{{path, "value", fmt.Sprintf("charon's %q, here %q", want.value, got.value)}}
	}
	return nil
}

// maskText leaves of a line for people what does not depend on time, chance and traffic.
func maskText(s string) string {
	for _, m := range textMasks {
		s = m.is.ReplaceAllString(s, m.becomes)
	}
	return s
}

var textMasks = []struct {
	is      *regexp.Regexp
	becomes string
}{
	{regexp.MustCompile(`\b[0-9a-f]{16}_([ir])`), "SPI_$1"},
	{regexp.MustCompile(`\b(in |out) +[0-9a-f]{8}\b`), "$1 SPI"},
	{regexp.MustCompile(` +\d+ (bytes|packets)\b`), " N $1"},
	{regexp.MustCompile(`, +\d+s ago\b`), ", Ns ago"},
	{regexp.MustCompile(`\b\d+s( ago)?\b`), "Ns$1"},
	{regexp.MustCompile(`\breqid \d+`), "reqid N"},
	{regexp.MustCompile(`\(expires in \d+ (seconds|minutes|hours|days)`), "(expires in N $1"},
	{regexp.MustCompile(`^uptime: (1 second|\d+ (seconds|minutes)), since [A-Z][a-z]{2} \d\d \d\d:\d\d:\d\d \d{4}$`), "uptime: TIME"},
	{regexp.MustCompile(`^mallinfo: sbrk \d+, mmap \d+, used \d+, free \d+$`), "mallinfo: N"},
	{regexp.MustCompile(`^worker threads: \d+ total, \d+ idle, working: \d+/\d+/\d+/\d+$`), "worker threads: N"},
	{regexp.MustCompile(`^(job queues: )\d+/\d+/\d+/\d+$`), "${1}N"},
	{regexp.MustCompile(`^jobs scheduled: \d+$`), "jobs scheduled: N"},
	{regexp.MustCompile(`^loaded plugins: .+$`), "loaded plugins: P"},
	{regexp.MustCompile(`^(  [A-Z0-9_]+)\[[a-z0-9-]+\]$`), "$1[P]"},
	{regexp.MustCompile(`^(  [a-z-]+ +: )\d+$`), "${1}N"},
	{regexp.MustCompile(`^strongSwan [0-9.]+ charon \(Linux, |^strongSwan \S+ \S+ \(Linux, `), "strongSwan VERSION DAEMON (Linux, "},
}

// brief shows an element in a line.
func (n *vnode) brief() string {
	s := n.render()
	if len(s) > 160 {
		s = s[:160] + "…"
	}
	return s
}

// render writes an element as --raw does.
func (n *vnode) render() string {
	switch n.kind {
	case vText:
		return n.value
	case vValue:
		return n.name + "=" + n.value
	case vList:
		return n.name + "=[" + n.value + "]"
	}
	var kids []string
	for i := range n.kids {
		kids = append(kids, n.kids[i].render())
	}
	return n.name + " {" + strings.Join(kids, " ") + "}"
}

const (
	vRawExample = `list-sa event {site {uniqueid=1 version=2 state=ESTABLISHED local-id=C=CH, O=Weir and Lock, CN=a.example initiator-spi=2edf0acb5f535b41 established=3 child-sas {net-1 {name=net spi-in=a17340e5 bytes-in=84 local-ts=[10.1.0.0/24[tcp/502] fd01::/64[udp]] remote-ts=[] label=} more-2 {name=more}}}}
list-sas reply {}
counters reply {counters { {invalid=0 info=2} site {invalid=1 info=1}} success=yes}
log {group=IKE level=1 msg=CHILD_SA net{1} established, a=b c {d}}
install completed successfully
terminate reply {success=no matches=0 errmsg=no {such} SA = none}
`
	vPrettyExample = `list-sa event {
  site {
    uniqueid = 1
    version = 2
    state = ESTABLISHED
    local-id = C=CH, O=Weir and Lock, CN=a.example
    initiator-spi = 2edf0acb5f535b41
    established = 3
    child-sas {
      net-1 {
        name = net
        spi-in = a17340e5
        bytes-in = 84
        local-ts = [
          10.1.0.0/24[tcp/502]
          fd01::/64[udp]
        ]
        remote-ts = [
        ]
        label = ` + `
      }
      more-2 {
        name = more
      }
    }
  }
}
list-sas reply {
}
counters reply {
  counters {
     {
      invalid = 0
      info = 2
    }
    site {
      invalid = 1
      info = 1
    }
  }
  success = yes
}
log {
  group = IKE
  level = 1
  msg = CHILD_SA net{1} established, a=b c {d}
}
install completed successfully
terminate reply {
  success = no
  matches = 0
  errmsg = no {such} SA = none
}
`
)

// Both notations give the same tree, and it holds what was written.
func TestVICINotationsAreRead(t *testing.T) {
	raw, err := parseVICI(vRawExample)
	if err != nil {
		t.Fatal(err)
	}
	pretty, err := parseVICI(vPrettyExample)
	if err != nil {
		t.Fatal(err)
	}
	if len(raw) != 6 || raw[4].kind != vText {
		t.Fatalf("six messages became %d", len(raw))
	}
	var again strings.Builder
	for i := range raw {
		if diffs := compareVICI(raw[i:i+1], pretty[i:i+1]); len(diffs) > 0 {
			t.Errorf("--raw and --pretty of the same message differ: %v", diffs)
		}
		again.WriteString(raw[i].render() + "\n")
	}
	if got := again.String(); got != vRawExample {
		t.Errorf("written again it is another text:\n%s", got)
	}
	if n := raw[0].at("site", "child-sas", "net-1", "local-ts"); n == nil || n.value != "10.1.0.0/24[tcp/502] fd01::/64[udp]" {
		t.Errorf("the list was read as %v", n)
	}
	if n := raw[2].at("counters", "", "info"); n == nil || n.value != "2" {
		t.Errorf("the section without a name was read as %v", n)
	}
	for _, bad := range []string{"list-sa event {site {a=b}", "list-sa event {\n  a = b\n", "list-sa event {\n  a = [\n    x\n", "list-sa event {\na = b\n}\n", "list-sa event {a=[b}"} {
		if n, err := parseVICI(bad); err == nil {
			t.Errorf("%q was read as %v", bad, n)
		}
	}
}

// Whatever is done to a tree, wherever it is done, shows as a difference.
func TestDoctoredVICITreeDiffers(t *testing.T) {
	nodes, err := parseVICI(vRawExample)
	if err != nil {
		t.Fatal(err)
	}
	if n, missed := doctorVICI(nodes); len(missed) > 0 || n < 100 {
		t.Errorf("of %d ways to spoil the tree these went unseen: %q", n, missed)
	}
	if diffs := compareVICI(nodes, nodes); len(diffs) > 0 {
		t.Errorf("the same tree differs: %v", diffs)
	}
}

// doctorVICI spoils the tree at each place in each way that matters, and returns how many trees that made and
// which of them compare as equal to the original.
func doctorVICI(nodes []vnode) (tried int, missed []string) {
	var walk func(path string, list []vnode, put func([]vnode) []vnode)
	walk = func(path string, list []vnode, put func([]vnode) []vnode) {
		try := func(what string, changed []vnode) {
			tried++
			if len(compareVICI(nodes, put(changed))) == 0 {
				missed = append(missed, path+": "+what)
			}
		}
		for i, n := range list {
			name := path + "/" + n.name
			with := func(c ...vnode) []vnode { return slices.Concat(list[:i], c, list[i+1:]) }
			try("without "+n.name, with())
			try("twice "+n.name, with(n, n))
			if n.kind == vText {
				continue
			}
			renamed, odd := n, n
			renamed.name += "x"
			try("another name for "+n.name, with(renamed))
			if i+1 < len(list) && list[i+1].name != n.name {
				swapped := slices.Clone(list)
				swapped[i], swapped[i+1] = swapped[i+1], swapped[i]
				try("another order at "+n.name, swapped)
			}
			odd.kind = map[vkind]vkind{vValue: vList, vList: vValue, vSection: vValue}[n.kind]
			try("another kind of "+n.name, with(odd))
			if n.kind == vSection {
				walk(name, n.kids, func(kids []vnode) []vnode {
					m := n
					m.kids = kids
					return put(with(m))
				})
				continue
			}
			odd = n
			odd.value = "no such, 1 thing" // no shape but a text for people allows it
			if shape := shapeOf(strings.TrimPrefix(name, "/")); shape == nil || shape(n.value, odd.value) != "" {
				try("another value of "+n.name, with(odd))
			}
		}
	}
	walk("", nodes, func(l []vnode) []vnode { return l })
	return tried, missed
}
