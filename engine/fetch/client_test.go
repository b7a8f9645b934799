package fetch

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// servers are what answers on addresses, without a network: each gets the request and says
// the answer.
type servers map[string]func(request string) string

// client returns one that knows the servers, and names after "name=address address".
func (s servers) client(names ...string) *Client {
	return &Client{
		Resolve: func(_ context.Context, name string) ([]netip.Addr, time.Duration, error) {
			for _, n := range names {
				if n, list, _ := strings.Cut(n, "="); n == name {
					var addrs []netip.Addr
					for _, a := range strings.Fields(list) {
						addrs = append(addrs, netip.MustParseAddr(a))
					}
					return addrs, 0, nil
				}
			}
			return nil, 0, errors.New("there is no such name")
		},
		Dial: func(ctx context.Context, to netip.AddrPort) (Conn, error) {
			serve := s[to.String()]
			if serve == nil {
				<-ctx.Done() // nobody answers there
				return nil, ctx.Err()
			}
			near, far := net.Pipe()
			go func() {
				defer far.Close()
				r := bufio.NewReader(far)
				var request strings.Builder
				length := 0
				for {
					line, err := r.ReadString('\n')
					if err != nil {
						return
					}
					request.WriteString(line)
					_, _ = fmt.Sscanf(line, "Content-Length: %d", &length)
					if line == "\r\n" {
						break
					}
				}
				body := make([]byte, length)
				_, _ = io.ReadFull(r, body)
				request.Write(body)
				answer := serve(request.String())
				if answer == "" {
					_, _ = far.Read(make([]byte, 1)) // silence, until the client goes
				}
				_, _ = io.WriteString(far, answer)
			}()
			return near, nil
		},
	}
}

func withBody(s string) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(s), s)
}

func says(s string) func(string) string { return func(string) string { return s } }

func (c *Client) do(t *testing.T, patience time.Duration, r *Request) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r.Max = testBody
	b, err := c.Do(ctx, r)
	return string(b), err
}

func TestGetAndPost(t *testing.T) {
	var got string
	c := servers{"192.0.2.1:80": func(r string) string { got = r; return withBody("hello") }}.client("crl.example=192.0.2.1")
	if b, err := c.do(t, time.Minute, &Request{URL: "http://crl.example/ca.crl"}); b != "hello" || err != nil {
		t.Fatalf("%q, %v", b, err)
	}
	want := "GET /ca.crl HTTP/1.1\r\nHost: crl.example\r\nUser-Agent: postern\r\nAccept: */*\r\nAccept-Encoding: identity\r\nConnection: close\r\n\r\n"
	if got != want {
		t.Errorf("sent %q, expected %q", got, want)
	}
	if b, err := c.do(t, time.Minute, &Request{URL: "http://crl.example", Post: []byte("abc"), Type: "application/ocsp-request"}); b != "hello" || err != nil {
		t.Fatalf("%q, %v", b, err)
	}
	want = "POST / HTTP/1.1\r\nHost: crl.example\r\nUser-Agent: postern\r\nAccept: */*\r\nAccept-Encoding: identity\r\nConnection: close\r\n" +
		"Content-Type: application/ocsp-request\r\nContent-Length: 3\r\n\r\nabc"
	if got != want {
		t.Errorf("sent %q, expected %q", got, want)
	}
}

func TestRedirectionsAreFollowedThreeTimes(t *testing.T) {
	for n := 1; n <= 5; n++ {
		s := servers{}
		for i := range n {
			s[fmt.Sprintf("192.0.2.%d:80", i)] = says(fmt.Sprintf("HTTP/1.1 302 Found\r\nLocation: http://192.0.2.%d/x\r\n\r\n", i+1))
		}
		s[fmt.Sprintf("192.0.2.%d:80", n)] = says(withBody("here"))
		b, err := s.client().do(t, time.Minute, &Request{URL: "http://192.0.2.0/"})
		if n <= maxRedirects && (b != "here" || err != nil) || n > maxRedirects && !errors.Is(err, errRedirects) {
			t.Errorf("%d redirections: %q, %v", n, b, err)
		}
	}
}

func TestRedirectionsThatAreNotFollowed(t *testing.T) {
	local := servers{"127.0.0.1:80": says(withBody("secret")), "169.254.169.254:80": says(withBody("secret")), "[::1]:80": says(withBody("secret"))}
	for to, want := range map[string]error{
		"https://192.0.2.1/":      errScheme,
		"file:///etc/passwd":      errScheme,
		"":                        errNowhere,
		"http://127.0.0.1/":       errPlace,
		"http://[::1]/":           errPlace,
		"http://[::ffff:7f00:1]/": errPlace,
		"http://localhost/":       errPlace,
		"http://169.254.169.254/": errPlace,
		"http://224.0.0.1/":       errPlace,
		"http://0.0.0.0/":         errPlace,
	} {
		local["192.0.2.1:80"] = says("HTTP/1.1 301 Moved\r\nLocation: " + to + "\r\n\r\n")
		b, err := local.client("localhost=127.0.0.1").do(t, time.Minute, &Request{URL: "http://192.0.2.1/"})
		if !errors.Is(err, want) {
			t.Errorf("to %q: %q, error %v, expected %v", to, b, err, want)
		}
	}
	// What the configuration names may be on this host.
	if b, err := local.client().do(t, time.Minute, &Request{URL: "http://127.0.0.1/"}); b != "secret" || err != nil {
		t.Errorf("a server of this host that was asked for: %q, %v", b, err)
	}
}

func TestPostIsRedirectedAsPost(t *testing.T) {
	s := servers{
		"192.0.2.1:80": says("HTTP/1.1 307 Temporary Redirect\r\nLocation: /y\r\n\r\n"),
		"192.0.2.2:80": says("HTTP/1.1 303 See Other\r\nLocation: /y\r\n\r\n"),
	}
	s["192.0.2.1:80"] = func(r string) string {
		if strings.HasPrefix(r, "POST /y ") && strings.HasSuffix(r, "\r\n\r\nabc") {
			return withBody("good")
		}
		return "HTTP/1.1 307 Temporary Redirect\r\nLocation: /y\r\n\r\n"
	}
	if b, err := s.client().do(t, time.Minute, &Request{URL: "http://192.0.2.1/", Post: []byte("abc")}); b != "good" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := s.client().do(t, time.Minute, &Request{URL: "http://192.0.2.2/", Post: []byte("abc")}); !errors.Is(err, errMethod) {
		t.Errorf("error %v, expected %v", err, errMethod)
	}
}

func TestAddressesAreTriedInTurn(t *testing.T) {
	s := servers{"[2001:db8::2]:80": says(withBody("six"))}
	b, err := s.client("crl.example=192.0.2.1 2001:db8::2").do(t, 2*time.Second, &Request{URL: "http://crl.example/"})
	if b != "six" || err != nil {
		t.Errorf("%q, %v: the second address was not tried", b, err)
	}
}

func TestServersThatAreTooSlow(t *testing.T) {
	drip := func(c *Client) *Client {
		dial := c.Dial
		c.Dial = func(ctx context.Context, to netip.AddrPort) (Conn, error) {
			conn, err := dial(ctx, to)
			return &dripping{Conn: conn}, err
		}
		return c
	}
	for name, c := range map[string]*Client{
		"nobody there": servers{}.client(),
		"silence":      servers{"192.0.2.1:80": says("")}.client(),
		"a slow drip":  drip(servers{"192.0.2.1:80": says("HTTP/1.1 200 OK\r\n" + strings.Repeat("X: y\r\n", 1000))}.client()),
	} {
		began := time.Now()
		_, err := c.do(t, 300*time.Millisecond, &Request{URL: "http://192.0.2.1/ca.crl"})
		if err == nil || !strings.Contains(err.Error(), "does not answer in time") || !strings.HasPrefix(err.Error(), "http://192.0.2.1/ca.crl: ") {
			t.Errorf("%s: error %v", name, err)
		}
		if d := time.Since(began); d > 20*time.Second {
			t.Errorf("%s: it took %v", name, d)
		}
	}
}

// dripping lets one octet through at a time, as slowly as a server can that wants to be waited for.
type dripping struct{ Conn }

func (d *dripping) Read(b []byte) (int, error) {
	time.Sleep(5 * time.Millisecond)
	return d.Conn.Read(b[:1])
}

func TestStatusIsTold(t *testing.T) {
	c := servers{"192.0.2.1:80": says("HTTP/1.1 404 Not \x1b[2J here\r\n\r\n")}.client()
	_, err := c.do(t, time.Minute, &Request{URL: "http://192.0.2.1/ca.crl"})
	if err == nil || err.Error() != "http://192.0.2.1/ca.crl: the server answers with status 404" {
		t.Errorf("error %q", err)
	}
}

func TestErrorsHoldNothingThatATerminalObeys(t *testing.T) {
	c := servers{"192.0.2.1:80": says("HTTP/1.1 302 Found\r\nLocation: ldap://" + strings.Repeat("\xff", 500) + "\r\n\r\n")}.client()
	for _, url := range []string{"http://192.0.2.1/", "http://192.0.2.1/\x1b[2J", strings.Repeat("\x00", 5000)} {
		_, err := c.do(t, time.Minute, &Request{URL: url})
		if err == nil {
			t.Fatalf("%q could be fetched", url)
		}
		for _, r := range err.Error() {
			if r < ' ' || r >= 0x7f {
				t.Errorf("%q: the error has %q in it", url, r)
				break
			}
		}
		if len(err.Error()) > 400 {
			t.Errorf("the error is %d octets long", len(err.Error()))
		}
	}
}
