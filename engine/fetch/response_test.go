package fetch

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

const testBody = 64 << 10

func TestResponsesThatAreTaken(t *testing.T) {
	for name, c := range map[string]struct{ in, body string }{
		"length":           {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello"},
		"more than length": {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more", "hello"},
		"length twice":     {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\ncontent-length: 5\r\n\r\nhello", "hello"},
		"empty":            {"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ""},
		"until the end":    {"HTTP/1.0 200 OK\r\nContent-type: application/ocsp-response\r\n\r\nhello", "hello"},
		"no words":         {"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello", "hello"},
		"LF alone":         {"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello", "hello"},
		"identity":         {"HTTP/1.1 200 OK\r\nContent-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello", "hello"},
		"chunks":           {"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\nhe\r\n3;a=\"b\"\r\nllo\r\n0\r\n\r\n", "hello"},
		"chunks, trailer":  {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n00000005 ; x\r\nhello\r\n0\r\nExpires: never\r\n\r\n", "hello"},
		"interim":          {"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello"},
	} {
		for _, src := range []io.Reader{strings.NewReader(c.in), iotest.OneByteReader(strings.NewReader(c.in)), iotest.DataErrReader(strings.NewReader(c.in))} {
			r, err := readResponse(src, testBody)
			if err != nil || r.status != 200 || string(r.body) != c.body {
				t.Errorf("%s: %+v, %v", name, r, err)
			}
		}
	}
}

func TestResponsesThatAreRefused(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	for name, c := range map[string]struct {
		in   string
		want error
	}{
		"nothing":                  {"", errShort},
		"another protocol":         {"SSH-2.0-OpenSSH_9.2\r\n", errStatus},
		"HTTP/2":                   {"HTTP/2.0 200 OK\r\n\r\n", errStatus},
		"HTTP/1.9":                 {"HTTP/1.9 200 OK\r\n\r\n", errStatus},
		"a status of two digits":   {"HTTP/1.1 20 OK\r\n\r\n", errStatus},
		"a status of four digits":  {"HTTP/1.1 2000 OK\r\n\r\n", errStatus},
		"a status of no meaning":   {"HTTP/1.1 999 OK\r\n\r\n", errStatus},
		"switching protocols":      {"HTTP/1.1 101 Switching\r\n\r\n", errStatus},
		"interim for ever":         {strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 2000), errLong},
		"an endless status line":   {"HTTP/1.1 200 " + strings.Repeat("O", 1<<20), errLong},
		"an endless header line":   {ok + "X: " + strings.Repeat("a", 1<<20), errLong},
		"an endless header":        {ok + strings.Repeat("X: a\r\n", 1<<16), errLong},
		"a folded line":            {ok + "X: a\r\n b\r\n\r\n", errHeader},
		"a space before the colon": {ok + "Content-Length : 5\r\n\r\nhello", errHeader},
		"no colon":                 {ok + "Content-Length\r\n\r\n", errHeader},
		"no name":                  {ok + ": 5\r\n\r\n", errHeader},
		"a NUL":                    {ok + "X: a\x00b\r\n\r\n", errHeader},
		"a CR inside":              {ok + "X: a\rContent-Length: 5\r\n\r\nhello", errHeader},
		"an escape in Location":    {"HTTP/1.1 302 Found\r\nLocation: http://x/\x1b[2J\r\n\r\n", errHeader},
		"two Locations":            {"HTTP/1.1 302 Found\r\nLocation: http://x/\r\nLocation: http://y/\r\n\r\n", errHeader},
		"a header that breaks off": {ok + "Content-Le", errShort},
		"no length":                {ok + "Content-Length:\r\n\r\n", errLength},
		"a negative length":        {ok + "Content-Length: -5\r\n\r\nhello", errLength},
		"a signed length":          {ok + "Content-Length: +5\r\n\r\nhello", errLength},
		"a length in hex":          {ok + "Content-Length: 0x5\r\n\r\nhello", errLength},
		"a list of lengths":        {ok + "Content-Length: 5, 5\r\n\r\nhello", errLength},
		"two lengths":              {ok + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", errLength},
		"a length that overflows":  {ok + "Content-Length: 18446744073709551621\r\n\r\nhello", errLength},
		"a length too large":       {ok + "Content-Length: 65537\r\n\r\n", errTooLarge},
		"less than the length":     {ok + "Content-Length: 6\r\n\r\nhello", errShort},
		"too long until the end":   {ok + "\r\n" + strings.Repeat("a", testBody+1), errTooLarge},
		"chunks and length":        {ok + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", errLength},
		"length and chunks":        {ok + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", errLength},
		"chunks twice":             {ok + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", errLength},
		"chunks in HTTP/1.0":       {"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", errLength},
		"another coding":           {ok + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", errCoding},
		"a coding that hides":      {ok + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", errCoding},
		"compressed":               {ok + "Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello", errCoding},
		"a chunk without length":   {ok + "Transfer-Encoding: chunked\r\n\r\n\r\n", errChunk},
		"a negative chunk":         {ok + "Transfer-Encoding: chunked\r\n\r\n-1\r\n", errChunk},
		"a chunk with 0x":          {ok + "Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n", errChunk},
		"a chunk that overflows":   {ok + "Transfer-Encoding: chunked\r\n\r\n100000005\r\nhello\r\n0\r\n\r\n", errChunk},
		"a chunk too large":        {ok + "Transfer-Encoding: chunked\r\n\r\nffffffff\r\nhello\r\n0\r\n\r\n", errTooLarge},
		"chunks too large":         {ok + "Transfer-Encoding: chunked\r\n\r\n" + strings.Repeat("8000\r\n"+strings.Repeat("a", 0x8000)+"\r\n", 3), errTooLarge},
		"a chunk without its end":  {ok + "Transfer-Encoding: chunked\r\n\r\n5\r\nhelloo\r\n0\r\n\r\n", errChunk},
		"two numbers":              {ok + "Transfer-Encoding: chunked\r\n\r\n5 5\r\nhello\r\n0\r\n\r\n", errChunk},
		"an endless chunk line":    {ok + "Transfer-Encoding: chunked\r\n\r\n5;" + strings.Repeat("a", 1<<20), errChunk},
		"lines of chunks for ever": {ok + "Transfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1;"+strings.Repeat("a", 1000)+"\r\na\r\n", 100), errChunk},
		"an endless trailer":       {ok + "Transfer-Encoding: chunked\r\n\r\n0\r\n" + strings.Repeat("X: a\r\n", 1<<16), errLong},
		"a trailer that is none":   {ok + "Transfer-Encoding: chunked\r\n\r\n0\r\nhello\r\n\r\n", errHeader},
		"chunks that break off":    {ok + "Transfer-Encoding: chunked\r\n\r\n5\r\nhel", errShort},
		"no last chunk":            {ok + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", errShort},
		"no end of the trailer":    {ok + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n", errShort},
	} {
		src := strings.NewReader(c.in)
		r, err := readResponse(src, testBody)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: error %v with %+v, expected %v", name, err, r, c.want)
		}
		if read := len(c.in) - src.Len(); read > maxHeader+maxFraming+testBody+4096 {
			t.Errorf("%s: %d octets were read", name, read)
		}
	}
}

// TestBodyIsNotBelievedBeforeItComes has a server announce much and send little.
func TestBodyIsNotBelievedBeforeItComes(t *testing.T) {
	const announced = 64 << 20
	allocated := testing.Benchmark(func(b *testing.B) {
		for range b.N {
			if _, err := readResponse(strings.NewReader("HTTP/1.1 200 OK\r\nContent-Length: 67108864\r\n\r\nhello"), announced); !errors.Is(err, errShort) {
				b.Fatal(err)
			}
		}
	}).AllocedBytesPerOp()
	if allocated > 64<<10 {
		t.Errorf("%d octets were allocated for five", allocated)
	}
}

func TestReaderWithoutProgressEnds(t *testing.T) {
	if _, err := readResponse(iotest.ErrReader(nil), testBody); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("error %v, expected that there is no progress", err)
	}
}

func FuzzResponse(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
		"HTTP/1.0 200 OK\r\n\r\nhello",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;a=b\r\nllo\r\n0\r\nX: y\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 302 Found\r\nLocation: /x\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		const most = 100
		r, err := readResponse(bytes.NewReader(b), most)
		one, oneErr := readResponse(iotest.OneByteReader(bytes.NewReader(b)), most)
		if (err == nil) != (oneErr == nil) || err == nil && (r.status != one.status || r.location != one.location || !bytes.Equal(r.body, one.body)) {
			t.Fatalf("what comes at once is %+v (%v), octet by octet %+v (%v)", r, err, one, oneErr)
		}
		if err != nil {
			return
		}
		if len(r.body) > most || r.status < 200 || r.status > 599 || r.status != 200 && r.body != nil {
			t.Fatalf("status %d with %d octets", r.status, len(r.body))
		}
		from := target{host: "h", path: "/p"}
		if to, err := from.follow(r.location); err == nil {
			if again, err := parse(to.String()); err != nil || again != to {
				t.Fatalf("location %q: %+v, and again %+v (%v)", r.location, to, again, err)
			}
		}
	})
}
