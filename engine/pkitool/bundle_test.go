package pkitool

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postern/engine/cli"
)

// bundleLine is a command line for a bundle; the further words replace options of the same name.
func bundleLine(dir string, more ...string) []string {
	options := []string{
		"--left", "north.example", "--left-addr", "198.51.100.1", "--left-net", "10.1.0.0/24",
		"--right", "south.example", "--right-addr", "203.0.113.1", "--right-net", "10.2.0.0/24",
	}
	line := []string{"bundle", dir}
	for i := 0; i < len(options); i += 2 {
		given := false
		for j := 0; j < len(more); j += 2 {
			given = given || more[j] == options[i]
		}
		if !given {
			line = append(line, options[i], options[i+1])
		}
	}
	for i := 0; i < len(more); i += 2 {
		if more[i+1] != "-" { // leave it out
			line = append(line, more[i], more[i+1])
		}
	}
	return line
}

func TestBundleIsTwoConfigurationsThatFit(t *testing.T) {
	b := newBench(t)
	b.ok(bundleLine("@link")...)
	for _, n := range []string{"north.example", "south.example"} {
		if m := mode(t, b.path("link/"+n+"/key.pem")); m != 0o600 {
			t.Errorf("the key of %s has mode %o", n, m)
		}
		if m := mode(t, b.path("link/"+n)); m != 0o700 {
			t.Errorf("the folder of %s has mode %o", n, m)
		}
		if err := b.verify("link/"+n+"/cert.pem", "link/"+n+"/ca.pem"); err != nil {
			t.Errorf("%s: %v", n, err)
		}
		if c := b.certs("link/" + n + "/cert.pem")[0]; c.DNSNames[0] != n || c.Subject.CommonName != n {
			t.Errorf("the certificate of %s is of %v", n, c.Subject)
		}
		if !bytes.Equal(b.read("link/"+n+"/ca.pem"), b.read("link/ca/ca.pem")) {
			t.Errorf("%s trusts somebody else", n)
		}
	}
	if bytes.Equal(b.read("link/north.example/key.pem"), b.read("link/south.example/key.pem")) {
		t.Error("both have the same key")
	}
	// Not a second time over it; with the authority that was made, another link.
	b.refused(cli.ExitFailed, "this exists already", bundleLine("@link")...)
	b.ok(bundleLine("@second", "--ca", "@link/ca", "--right", "west.example")...)
	if _, err := os.Stat(b.path("second/ca")); err == nil {
		t.Error("a new authority was made although one was given")
	}
	if err := b.verify("second/west.example/cert.pem", "link/ca/ca.pem"); err != nil {
		t.Error(err)
	}
	if x, err := parseIndex(b.read("link/ca/index")); err != nil || len(x.issued) != 4 {
		t.Errorf("%v: the authority does not know what it issued", err)
	}
}

func TestBundlesThatCannotBe(t *testing.T) {
	b := newBench(t)
	for words, more := range map[string][]string{
		"--left is missing":                                         {"--left", "-"},
		"--right-addr is missing":                                   {"--right-addr", "-"},
		"no DNS name; write left.site.example":                      {"--left", "a/b"},
		"no DNS name; write right.site.example":                     {"--right", "C=CH, CN=x"},
		"--left and --right are the same":                           {"--right", "North.example"},
		"take a longer name":                                        {"--left", "ca"},
		"neither side knows an address":                             {"--left-addr", "%any", "--right-addr", "%any"},
		"--left-addr and --right-addr are the same":                 {"--right-addr", "198.51.100.1"},
		"neither an address nor a DNS name nor %any":                {"--right-addr", "198.51.100.300"},
		"\"0.0.0.0\" is neither an address":                         {"--right-addr", "0.0.0.0"},
		"have to be of the same kind, IPv4 or IPv6":                 {"--right-addr", "2001:db8::1"},
		"is no prefix":                                              {"--left-net", "10.1.0.0"},
		"has bits behind its length; write 10.1.0.0/24":             {"--left-net", "10.1.0.1/24"},
		"overlap; each side needs its own":                          {"--right-net", "10.1.0.128/25"},
		"have to be of the same kinds":                              {"--right-net", "fd02::/64"},
		"a gateway alone fits with a gateway alone":                 {"--right-net", "-"},
		"--ca-passphrase-file is for the authority that --ca names": {"--ca-passphrase-file", "x"},
		"--days must be from 1":                                     {"--days", "-1"},
		"--type p1 is not known":                                    {"--type", "p1"},
	} {
		b.refused(cli.ExitUsage, words, bundleLine("@link", more...)...)
	}
	b.refused(cli.ExitFailed, "is not the folder of an authority", bundleLine("@link", "--ca", "@none")...)
	if list, _ := filepath.Glob(b.path("*")); len(list) > 0 {
		t.Errorf("refused bundles left %v", list)
	}
	// What was begun and cut off is not taken for a whole one, nor thrown away unasked.
	if err := os.Mkdir(b.path("link.new"), 0o700); err != nil {
		t.Fatal(err)
	}
	b.refused(cli.ExitFailed, "left over from a bundle that was not finished", bundleLine("@link")...)
	if _, err := os.Stat(b.path("link")); err == nil || strings.Contains(err.Error(), "permission") {
		t.Error("a folder was made")
	}
}
