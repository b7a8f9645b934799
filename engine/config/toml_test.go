package config

import (
	"fmt"
	"strings"
	"testing"
)

// treeOf builds the tree of a text and returns the problems that TOML's syntax and rules
// find in it.
func treeOf(text string) (*node, Problems) {
	l := newLoader("test.toml", nil)
	root := l.tree([]byte(text))
	return root, l.problems.sorted()
}

// dump writes a tree in a short form of its own: {a=1 b={c=[x y]}}.
func dump(n *node) string {
	var parts []string
	switch n.kind {
	case kindTable:
		for _, e := range n.entries {
			parts = append(parts, e.name+"="+dump(e))
		}
		return "{" + strings.Join(parts, " ") + "}"
	case kindList, kindTables:
		for _, e := range n.list {
			parts = append(parts, dump(e))
		}
		return "[" + strings.Join(parts, " ") + "]"
	}
	return n.text
}

func TestTreeKeepsTheOrderOfTheFile(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"headers", "[b]\nx = 1\n[a]\ny = 2\n", "{b={x=1} a={y=2}}"},
		{"sub-table before its parent", "[a.b]\nx = 1\n[a]\ny = 2\n", "{a={b={x=1} y=2}}"},
		{"dotted keys", "a.b.c = 1\na.b.d = 2\na.e = 3\n", "{a={b={c=1 d=2} e=3}}"},
		{"header below a dotted table", "[a]\nb.c = 1\n[a.b.d]\ne = 2\n", "{a={b={c=1 d={e=2}}}}"},
		{"inline table", "a = { b = 1, c.d = 2 }\n", "{a={b=1 c={d=2}}}"},
		{"array of tables", "[[a]]\nb = 1\n[[a]]\nb = 2\n[a.c]\nd = 3\n", "{a=[{b=1} {b=2 c={d=3}}]}"},
		{"lists", "a = [\n 'x', # one\n \"y\",\n]\nb = [[1], [2]]\n", "{a=[x y] b=[[1] [2]]}"},
		{"quoted keys", "\"a b\" = 1\n'c.d' = 2\n", "{a b=1 c.d=2}"},
		{"mark of byte order and CRLF", "\ufeffa = 1\r\n[b]\r\nc = 2\r\n", "{a=1 b={c=2}}"},
		{"nothing", "", "{}"},
	} {
		root, problems := treeOf(c.text)
		if len(problems) > 0 {
			t.Errorf("%s: valid TOML was refused: %v", c.name, problems)
		} else if got := dump(root); got != c.want {
			t.Errorf("%s: the tree is %s, expected %s", c.name, got, c.want)
		}
	}
}

// TestTreeRefusesWhatTOMLForbids has, for each text, the places and words of the
// problems: TOML 1.0 says these documents are invalid though each line is well formed.
func TestTreeRefusesWhatTOMLForbids(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"key twice", "a = 1\na = 2\n", "2:1 a is already set in line 1"},
		{"key twice in different spelling", "a = 1\n\"a\" = 2\n", "2:1 a is already set in line 1"},
		{"key twice in a list's inline table", "a = [{ b = 1, b = 2 }]\n", "1:15 b is already set in line 1"},
		{"header twice", "[a]\n[b]\n[a]\n", "3:2 section [a] is already in line 1"},
		{"header of a key", "a = 1\n[a]\n", "2:2 [a] is already an integer in line 1"},
		{"header below a key", "a = 1\n[a.b]\n", "2:2 a is already an integer in line 1 and cannot get sections"},
		{"key of a header", "[a.b]\n[a]\nb = 1\n", "3:1 b is already set in line 1"},
		{"header of a dotted table", "a.b = 1\n[a]\n", "2:2 [a] is already made of dotted keys in line 1"},
		{"dotted key into a header", "[a.b]\nx = 1\n[a]\nb.y = 2\n", "4:1 b is already a section in line 1 and a dotted key cannot add to it"},
		{"dotted key into a value", "a = 1\na.b = 2\n", "2:1 a is already an integer in line 1 and a dotted key cannot add to it"},
		{"dotted key into an inline table", "a = { b = 1 }\na.c = 2\n", "2:1 a is already a section in braces in line 1 and a dotted key cannot add to it"},
		{"header into an inline table", "a = { b = 1 }\n[a.c]\n", "2:2 a is already a section in braces in line 1 and cannot get sections"},
		{"header of an inline table's dotted table", "a = { b.c = 1 }\n[a.b]\n", "2:2 a is already a section in braces in line 1 and cannot get sections"},
		{"list of tables of a table", "[a]\n[[a]]\n", "2:3 [[a]] is already a section in line 1"},
		{"list of tables of a list", "a = []\n[[a]]\n", "2:3 [[a]] is already a list in line 1"},
		{"table of a list of tables", "[[a]]\n[a]\n", "2:2 [a] is already a list of sections in line 1"},
	} {
		_, problems := treeOf(c.text)
		var got []string
		for _, p := range problems {
			got = append(got, fmt.Sprintf("%d:%d %s", p.Line, p.Col, p.What))
		}
		if strings.Join(got, "\n") != c.want {
			t.Errorf("%s: the problems are %q, expected %q", c.name, got, c.want)
		}
	}
}

// TestTreeGoesOnAfterASyntaxError checks that one bad line hides no other problem, and
// causes none in the lines after it.
func TestTreeGoesOnAfterASyntaxError(t *testing.T) {
	for _, c := range []struct{ name, text, want, places string }{
		{"missing value", "[a]\nb =\nc = 1\n", "{a={c=1}}", "2:4"},
		{"unquoted text", "[a]\nb = text\nc = 1\n[d]\ne = 2\n", "{a={c=1} d={e=2}}", "2:5"},
		{"text without end", "[a]\nb = \"text\nc = 1\n", "{a={c=1}}", "2:10"},
		{"list without end", "[a]\nb = [\n  \"x\",\n  \"y\"\n\n[d]\ne = 2\n", "{a={} d={e=2}}", "6:1"},
		{"bad element of a list", "a = [\n  \"x\",\n  y,\n  \"z=\",\n]\nb = 1\n", "{b=1}", "3:3"},
		{"long text without end", "a = \"\"\"\nb\nc = 1\n", "{c=1}", "1:1"},
		{"header without end", "[a\nb = 1\n[c]\nd = 2\n", "{b=1 c={d=2}}", "1:3"},
		{"two on a line", "a = 1 b = 2\nc = 3\n", "{c=3}", "1:7"},
		{"bad octets in a comment", "a = 1\n# \xff\nb = 2\n", "{a=1 b=2}", "2:3"},
		{"last line", "a = 1\nb", "{a=1}", "2:1"},
		{"several", "a = x\nb = 1\nc = y\nd = 2\n= 3\n", "{b=1 d=2}", "1:5 3:5 5:1"},
	} {
		root, problems := treeOf(c.text)
		var places []string
		for _, p := range problems {
			places = append(places, fmt.Sprintf("%d:%d", p.Line, p.Col))
		}
		if got := strings.Join(places, " "); got != c.places {
			t.Errorf("%s: problems at %q, expected them at %q: %v", c.name, got, c.places, problems)
		}
		if got := dump(root); got != c.want {
			t.Errorf("%s: the rest of the file became %s, expected %s", c.name, got, c.want)
		}
	}
}

func TestSyntaxErrorNamesTheBeginning(t *testing.T) {
	_, problems := treeOf("[a]\nb = [\n  \"x\"\n\n[d]\ne = 2\n")
	if len(problems) != 1 || !strings.Contains(problems[0].What, "in what begins in line 2") {
		t.Errorf("a list without end gives %v, expected one problem that names line 2, where it begins", problems)
	}
}

func TestTreeGivesUpOnWhatIsNoTOML(t *testing.T) {
	root, problems := treeOf(strings.Repeat("x = \"\n", 5000))
	if len(problems) != maxSyntaxErrors+1 {
		t.Errorf("%d problems, expected %d syntax errors and the word that it is enough", len(problems), maxSyntaxErrors)
	}
	if len(root.entries) != 0 {
		t.Errorf("the tree has %d entries of a file without any", len(root.entries))
	}
}

func TestPositionsCountCharacters(t *testing.T) {
	root, _ := treeOf("# é\n'é' = [ 'ü', 1 ]\n")
	list := root.entries[0]
	for i, want := range []pos{{2, 9}, {2, 14}} {
		if got := list.list[i].at; got != want {
			t.Errorf("element %d stands at %v, expected %v", i, got, want)
		}
	}
	if list.at != (pos{2, 7}) {
		t.Errorf("the list stands at %v, expected {2 7}", list.at)
	}
}

func TestDistanceCountsTypingErrors(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"local_addrs", "local_addrs", 0},
		{"local_adrs", "local_addrs", 1},
		{"lcoal_addrs", "local_addrs", 1}, // neighbours exchanged
		{"local-addrs", "local_addrs", 1},
		{"remote_addr", "remote_addrs", 1},
		{"rekeytime", "rekey_time", 1},
		{"localadrs", "local_addrs", 2},
		{"mode", "mtu", 3},
		{"", "id", 2},
		{"x", "a_long_name", 3}, // the limit
	} {
		if got := distance(c.a, c.b, 3); got != c.want {
			t.Errorf("distance(%q, %q) is %d, expected %d", c.a, c.b, got, c.want)
		}
	}
}
