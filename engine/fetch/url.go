package fetch

import (
	"net/netip"
	"strconv"
	"strings"
)

// target is a URL taken apart (RFC 3986, RFC 9110 section 4.2.1).
type target struct {
	host string     // as the Host field has it, with its port unless that is 80
	name string     // of the host; "" where addr is valid
	addr netip.Addr // of the host, if the URL has an address
	port uint16
	path string // and query
}

// String returns the URL.
func (t *target) String() string { return "http://" + t.host + t.path }

// Check tells whether a URL is one that can be fetched. The error says why it is not.
func Check(url string) error {
	_, err := parse(url)
	return err
}

// parse takes a URL apart. What stands in it is printed in logs and sent in a request as it
// is, so it has to be of characters that can do no harm there.
func parse(s string) (t target, err error) {
	if len(s) > maxURL {
		return t, errURL
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`"<>\^{|}`+"`", c) >= 0 {
			return t, errURL
		}
	}
	const scheme = "http://"
	if len(s) < len(scheme) || !strings.EqualFold(s[:len(scheme)], scheme) {
		if strings.Contains(s, "://") {
			return t, errScheme
		}
		return t, errURL
	}
	s, _, _ = strings.Cut(s[len(scheme):], "#")
	end := strings.IndexAny(s, "/?")
	if end < 0 {
		end = len(s)
	}
	authority, path := s[:end], s[end:]
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	t.path = path
	return t, t.authority(authority)
}

// authority reads host and port.
func (t *target) authority(s string) error {
	t.port = 80
	host, port := s, ""
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return errURL
		}
		host, port = s[:end+1], s[end+1:]
		a, err := netip.ParseAddr(s[1:end])
		if err != nil || !a.Is6() || a.Zone() != "" {
			return errURL
		}
		t.addr = a.Unmap()
	} else if i := strings.IndexByte(s, ':'); i >= 0 {
		host, port = s[:i], s[i:]
	}
	if port != "" && port != ":" {
		n, err := strconv.ParseUint(port[1:], 10, 16)
		if port[0] != ':' || err != nil || n == 0 {
			return errURL
		}
		t.port = uint16(n)
	}
	if !t.addr.IsValid() {
		if a, err := netip.ParseAddr(host); err == nil && a.Is4() {
			t.addr = a
		} else if goodHost(host) {
			t.name = host
		} else {
			return errURL
		}
	}
	t.host = host
	if t.port != 80 {
		t.host += ":" + strconv.Itoa(int(t.port))
	}
	return nil
}

// goodHost tells whether a name can be asked of the DNS.
func goodHost(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c != '-' && c != '.' && c != '_' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
			return false
		}
	}
	return true
}

// follow returns where a Location field of t's answer leads (RFC 9110 section 10.2.2).
func (t *target) follow(location string) (target, error) {
	head, _, _ := strings.Cut(location, "?")
	path, _, _ := strings.Cut(t.path, "?")
	switch {
	case location == "":
		return target{}, errNowhere
	case strings.HasPrefix(location, "//"):
		return parse("http:" + location)
	case strings.HasPrefix(location, "/"):
		return parse("http://" + t.host + location)
	case strings.HasPrefix(location, "?"):
		return parse("http://" + t.host + path + location)
	case strings.Contains(head, ":"):
		return parse(location)
	}
	return parse("http://" + t.host + path[:strings.LastIndexByte(path, '/')+1] + location)
}
