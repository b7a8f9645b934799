package config

import (
	"fmt"
	"testing"
)

func headersOf(c *Config) *Headers {
	h, _ := c.Headers(c.IKE.Conns[0].Name, firstChild(c).Name)
	return h
}

func init() {
	for name, k := range map[string]struct {
		text string
		want any
		get  func(h *Headers) any
	}{
		"df":        {`"set"`, DFSet, func(h *Headers) any { return h.DF }},
		"copy_df":   {`false`, DFClear, func(h *Headers) any { return h.DF }},
		"copy_dscp": {`"in"`, "true 0 0", func(h *Headers) any { return fmt.Sprint(h.DSCPIn, h.DSCP[46], h.DSCP[0]) }},
		"dscp":      {`10`, "10 10", func(h *Headers) any { return fmt.Sprint(h.DSCP[46], h.DSCP[0]) }},
		"dscp_map":  {`["46:34", "0:8"]`, "34 8 10", func(h *Headers) any { return fmt.Sprint(h.DSCP[46], h.DSCP[0], h.DSCP[10]) }},
		"copy_ecn":  {`false`, false, func(h *Headers) any { return h.ECN }},
		"hop_limit": {`200`, uint8(200), func(h *Headers) any { return h.HopLimit }},
		"fragment":  {`"after"`, true, func(h *Headers) any { return h.After }},
		"mss":       {`1200`, 1200, func(h *Headers) any { return h.MSS }},
	} {
		test := keyTests["daemon.mtu"]
		test.text, test.want = k.text, k.want
		test.get = func(c *Config) any { return k.get(headersOf(c)) }
		keyTests[childSection.path+"."+name] = test
	}
}

func TestHeadersOfAChildThatSaysNothing(t *testing.T) {
	c := mustParse(t, fmt.Sprintf(minimal, "", ""))
	if got := *headersOf(c); got != DefaultHeaders() {
		t.Errorf("they are %+v, expected the defaults", got)
	}
	if h, ok := c.Headers("a", "none"); ok || h != nil {
		t.Error("a child that is not there has headers")
	}
	for _, k := range []struct {
		text string
		got  func(h *Headers) any
		want any
	}{
		{`copy_df = true`, func(h *Headers) any { return h.DF }, DFCopy},
		{`df = "clear"`, func(h *Headers) any { return h.DF }, DFClear},
		{`mss = 0`, func(h *Headers) any { return h.MSS }, 0},
		{`mss = "auto"`, func(h *Headers) any { return h.MSS }, MSSAuto},
		{"copy_dscp = \"no\"\ndscp = 63\ndscp_map = [\"46:0\"]", func(h *Headers) any { return fmt.Sprint(h.DSCPIn, h.DSCP[46], h.DSCP[0]) }, "false 0 63"},
		{`copy_dscp = "yes"`, func(h *Headers) any { return fmt.Sprint(h.DSCPIn, h.DSCP[46]) }, "true 46"},
	} {
		c := mustParse(t, fmt.Sprintf(minimal, "", k.text))
		if got := k.got(headersOf(c)); got != k.want {
			t.Errorf("%s gives %v, expected %v", k.text, got, k.want)
		}
	}
}

// Thousands of children that follow each other with the same are pointers to one value.
func TestChildrenWithEqualHeadersShareThem(t *testing.T) {
	c := mustParse(t, fmt.Sprintf(minimal, "", "")+`
[connections.a.children.d]
remote_ts = ["10.3.0.0/24"]
mss = 1000
[connections.a.children.e]
remote_ts = ["10.4.0.0/24"]
[connections.a.children.f]
remote_ts = ["10.5.0.0/24"]
`)
	one, _ := c.Headers("a", "c")
	two, _ := c.Headers("a", "d")
	three, _ := c.Headers("a", "e")
	four, _ := c.Headers("a", "f")
	if three != four || two == one || *one != *three || two.MSS != 1000 {
		t.Errorf("the children have %p, %p and %p", one, two, three)
	}
}

func TestHeaderProblems(t *testing.T) {
	for _, child := range []string{
		`df = "keep" #! use "copy", "set" or "clear"`,
		"df = \"copy\"\ncopy_df = true #! say the same thing",
		"df = \"set\"\nfragment = \"after\" #! cannot be fragmented after",
		"copy_dscp = \"yes\"\ndscp = 3 #! is either copied or 3",
		`dscp = 64 #! use 0 to 63`,
		`dscp_map = ["46"] #! is no pair of DSCPs`,
		`dscp_map = ["46:64"] #! is no pair of DSCPs`,
		`dscp_map = ["46:3", "46:4"] #! the inner DSCP 46 is twice`,
		`hop_limit = 256 #! use 1 to 255`,
		`mss = 87 #! use 88 to 8960`,
		`mss = "large" #! use "auto"`,
		`fragment = "never" #! use "before" or "after"`,
		"mode = \"transport\"\nremote_ts = [\"dynamic\"]\nhop_limit = 9 #! is for tunnel mode",
		"mode = \"beet\"\nremote_ts = [\"dynamic\"]\ncopy_ecn = false #! is for tunnel mode",
		"mode = \"transport\"\nremote_ts = [\"dynamic\"]\nmss = 1200\nfragment = \"after\"",
	} {
		text := baseConn + "[connections.a.children.c]\nlocal_ts = [\"dynamic\"]\n" + child + `
[secrets.a]
id = ["b.example"]
secret = "an example of 24 octets."
`
		_, err := newLoader("test.toml", noSecretFiles).load([]byte(text))
		got, _ := err.(Problems)
		compare(t, "problem", text, got)
	}
}
