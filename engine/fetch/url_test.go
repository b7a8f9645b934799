package fetch

import (
	"errors"
	"strings"
	"testing"
)

func TestURLsThatCanBeFetched(t *testing.T) {
	for _, c := range []struct{ url, host, name, addr, path string }{
		{"http://crl.example/ca.crl", "crl.example", "crl.example", "", "/ca.crl"},
		{"HTTP://crl.example", "crl.example", "crl.example", "", "/"},
		{"http://crl.example:80/a?b=c#part", "crl.example", "crl.example", "", "/a?b=c"},
		{"http://crl.example:/a", "crl.example", "crl.example", "", "/a"},
		{"http://crl.example?b", "crl.example", "crl.example", "", "/?b"},
		{"http://192.0.2.7:8080/x%20y", "192.0.2.7:8080", "", "192.0.2.7", "/x%20y"},
		{"http://[2001:db8::1]:81/", "[2001:db8::1]:81", "", "2001:db8::1", "/"},
		{"http://[2001:db8::1]", "[2001:db8::1]", "", "2001:db8::1", "/"},
	} {
		u, err := parse(c.url)
		if err != nil {
			t.Errorf("%s: %v", c.url, err)
			continue
		}
		addr := ""
		if u.addr.IsValid() {
			addr = u.addr.String()
		}
		if u.host != c.host || u.name != c.name || addr != c.addr || u.path != c.path {
			t.Errorf("%s: %+v", c.url, u)
		}
	}
}

func TestURLsThatCannotBeFetched(t *testing.T) {
	for url, want := range map[string]error{
		"":                                                  errURL,
		"crl.example/ca.crl":                                errURL,
		"https://crl.example/ca.crl":                        errScheme,
		"ldap://ds.example/cn=CA":                           errScheme,
		"file:///etc/shadow":                                errScheme,
		"http:///ca.crl":                                    errURL,
		"http://user:word@crl.example/":                     errURL,
		"http://crl.example:0/":                             errURL,
		"http://crl.example:65536/":                         errURL,
		"http://crl.example:+80/":                           errURL,
		"http://crl.example:8x/":                            errURL,
		"http://[2001:db8::1/":                              errURL,
		"http://[2001:db8::1]x/":                            errURL,
		"http://[fe80::1%eth0]/":                            errURL,
		"http://[192.0.2.1]/":                               errURL,
		"http://2001:db8::1/":                               errURL,
		"http://crl.example/a b":                            errURL,
		"http://crl.example/a\r\nHost: other":               errURL,
		"http://crl.example/\x1b[2J":                        errURL,
		"http://crl.ex\u00e4mple/":                          errURL,
		"http://crl$example/":                               errURL,
		"http://crl.example/<script>":                       errURL,
		"http://crl.example/" + strings.Repeat("a", maxURL): errURL,
		"http://" + strings.Repeat("a", 254) + "/":          errURL,
	} {
		if err := Check(url); !errors.Is(err, want) {
			t.Errorf("%.60q: error %v, expected %v", url, err, want)
		}
	}
}

func TestLocationsLeadFromTheirPage(t *testing.T) {
	from, err := parse("http://crl.example:81/pki/ca.crl?v=2")
	if err != nil {
		t.Fatal(err)
	}
	for location, want := range map[string]string{
		"http://other.example/x": "http://other.example/x",
		"//other.example/x":      "http://other.example/x",
		"/x":                     "http://crl.example:81/x",
		"new.crl":                "http://crl.example:81/pki/new.crl",
		"?v=3":                   "http://crl.example:81/pki/ca.crl?v=3",
		"new?u=http://x":         "http://crl.example:81/pki/new?u=http://x",
	} {
		if to, err := from.follow(location); err != nil || to.String() != want {
			t.Errorf("%s leads to %s (%v), expected %s", location, to.String(), err, want)
		}
	}
	for location, want := range map[string]error{
		"": errNowhere, "https://crl.example/": errScheme, "mailto:x": errURL, "//": errURL, "/a b": errURL,
	} {
		if _, err := from.follow(location); !errors.Is(err, want) {
			t.Errorf("%q: error %v, expected %v", location, err, want)
		}
	}
}
