package fetch

import (
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"
)

// response is what a server has answered.
type response struct {
	status   int
	location string
	body     []byte // of status 200 only
}

// reader reads a response within its bounds.
type reader struct {
	src     io.Reader
	buf     [2048]byte
	r, w    int // what of buf is not yet read
	header  int // octets that lines of the header may still take
	framing int // octets that lines of chunks may still take
}

// readResponse reads the answer to one request of a connection that carries nothing else. Up to
// maxBody octets of body are taken. Only io and memory bound the time that it takes.
func readResponse(src io.Reader, maxBody int) (*response, error) {
	r := &reader{src: src, header: maxHeader, framing: maxFraming}
	for {
		h, err := r.head()
		if err != nil {
			return nil, err
		}
		// Interim responses (RFC 9110 section 15.2) go before the one that counts. That to
		// another protocol was not asked for.
		if h.status >= 200 {
			out := &response{status: h.status, location: h.location}
			if h.status == 200 {
				out.body, err = r.body(h, maxBody)
			}
			return out, err
		}
		if h.status == 101 {
			return nil, errStatus
		}
	}
}

// head is a status line with its header fields (RFC 9112 sections 4 and 5).
type head struct {
	old      bool // HTTP/1.0
	status   int
	location string
	length   int64 // -1: not said
	chunked  bool
	coded    bool // with a content coding
}

func (r *reader) head() (*head, error) {
	line, err := r.line(&r.header, errLong)
	if err != nil {
		return nil, err
	}
	h := &head{length: -1}
	// "HTTP/1.1 200 OK", the words free and their space often missing.
	if len(line) < 12 || string(line[:7]) != "HTTP/1." || line[8] != ' ' || len(line) > 12 && line[12] != ' ' {
		return nil, errStatus
	}
	switch line[7] {
	case '0':
		h.old = true
	case '1':
	default:
		return nil, errStatus
	}
	for _, c := range line[9:12] {
		if c < '0' || c > '9' {
			return nil, errStatus
		}
		h.status = h.status*10 + int(c-'0')
	}
	if h.status < 100 || h.status > 599 {
		return nil, errStatus
	}
	for {
		line, err := r.line(&r.header, errLong)
		if err != nil {
			return nil, err
		}
		if len(line) == 0 {
			return h, nil
		}
		if err := h.field(line); err != nil {
			return nil, err
		}
	}
}

// field takes a header field. Those that say where the body ends may say it once.
func (h *head) field(line []byte) error {
	name, value, ok := bytes.Cut(line, []byte(":"))
	// A line that begins with a space would go on with the one before (obs-fold), and a space
	// before the colon is how smuggled fields look: both are malformed (RFC 9112 section 5).
	if !ok || !isToken(name) {
		return errHeader
	}
	text := string(bytes.Trim(value, " \t"))
	for i := 0; i < len(text); i++ {
		if c := text[i]; c < ' ' && c != '\t' || c == 0x7f {
			return errHeader
		}
	}
	switch strings.ToLower(string(name)) {
	case "content-length":
		n, err := strconv.ParseUint(text, 10, 62)
		if err != nil || h.length >= 0 && h.length != int64(n) || h.chunked {
			return errLength
		}
		h.length = int64(n)
	case "transfer-encoding":
		// In HTTP/1.0 it means that somebody on the way has not understood the framing
		// (RFC 9112 section 6.1).
		if h.old || h.chunked || h.length >= 0 {
			return errLength
		}
		if !strings.EqualFold(text, "chunked") {
			return errCoding
		}
		h.chunked = true
	case "content-encoding":
		h.coded = h.coded || text != "" && !strings.EqualFold(text, "identity")
	case "location":
		if h.location != "" && h.location != text {
			return errHeader
		}
		h.location = text
	}
	return nil
}

// isToken tells whether b is the name of a field (RFC 9110 section 5.6.2).
func isToken(b []byte) bool {
	for _, c := range b {
		if (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') && bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), c) < 0 {
			return false
		}
	}
	return len(b) > 0
}

// body reads the body by the framing that the header tells of (RFC 9112 section 6.3).
func (r *reader) body(h *head, most int) ([]byte, error) {
	switch {
	case h.coded:
		return nil, errCoding
	case h.chunked:
		return r.chunks(most)
	case h.length > int64(most):
		return nil, errTooLarge
	case h.length >= 0:
		return r.take(nil, int(h.length))
	}
	var b []byte // until the server closes
	for {
		if r.r == r.w {
			switch err := r.fill(); {
			case errors.Is(err, io.EOF):
				return b, nil
			case err != nil:
				return nil, err
			}
		}
		if len(b)+r.w-r.r > most {
			return nil, errTooLarge
		}
		b = append(b, r.buf[r.r:r.w]...)
		r.r = r.w
	}
}

// chunks reads a chunked body (RFC 9112 section 7.1). What chunks say beside their length, and
// the trailer, mean nothing here.
func (r *reader) chunks(most int) ([]byte, error) {
	var b []byte
	for {
		line, err := r.line(&r.framing, errChunk)
		if err != nil {
			return nil, err
		}
		size, ext := line, []byte(nil)
		if i := bytes.IndexAny(line, "; \t"); i >= 0 {
			size, ext = line[:i], bytes.TrimLeft(line[i:], " \t")
		}
		if len(ext) > 0 && ext[0] != ';' {
			return nil, errChunk
		}
		if len(size) == 0 || len(size) > 8 {
			return nil, errChunk
		}
		n, err := strconv.ParseUint(string(size), 16, 32)
		if err != nil {
			return nil, errChunk
		}
		if n == 0 {
			break
		}
		if n > uint64(most-len(b)) {
			return nil, errTooLarge
		}
		if b, err = r.take(b, int(n)); err != nil {
			return nil, err
		}
		if line, err = r.line(&r.framing, errChunk); err != nil {
			return nil, err
		}
		if len(line) != 0 {
			return nil, errChunk
		}
	}
	for {
		line, err := r.line(&r.header, errLong)
		if err != nil {
			return nil, err
		}
		if len(line) == 0 {
			return b, nil
		}
		if name, _, ok := bytes.Cut(line, []byte(":")); !ok || !isToken(name) {
			return nil, errHeader
		}
	}
}

// take appends n octets to b. Memory is asked for as they come, not as they are announced.
func (r *reader) take(b []byte, n int) ([]byte, error) {
	for n > 0 {
		if r.r == r.w {
			if err := r.fill(); err != nil {
				return nil, short(err)
			}
		}
		part := min(n, r.w-r.r)
		b = append(b, r.buf[r.r:r.r+part]...)
		r.r += part
		n -= part
	}
	return b, nil
}

// line returns the next line without its end, CR LF or LF alone (RFC 9112 section 2.2). Its
// octets are taken off left; where they do not suffice, the error is over. The line
// is valid until the next read.
func (r *reader) line(left *int, over error) ([]byte, error) {
	for {
		if i := bytes.IndexByte(r.buf[r.r:r.w], '\n'); i >= 0 {
			line := r.buf[r.r : r.r+i]
			r.r += i + 1
			if *left -= i + 1; *left < 0 {
				return nil, over
			}
			return bytes.TrimSuffix(line, []byte("\r")), nil
		}
		if r.w-r.r > *left || r.w-r.r == len(r.buf) {
			return nil, over
		}
		if r.r > 0 { // make room behind what is there
			r.w = copy(r.buf[:], r.buf[r.r:r.w])
			r.r = 0
		}
		if err := r.fill(); err != nil {
			return nil, short(err)
		}
	}
}

// fill reads more behind what is there.
func (r *reader) fill() error {
	if r.r == r.w {
		r.r, r.w = 0, 0
	}
	for range 16 { // a reader that says nothing for ever is broken
		n, err := r.src.Read(r.buf[r.w:])
		r.w += n
		if n > 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// short says what the end of a connection means where more has to come.
func short(err error) error {
	if errors.Is(err, io.EOF) {
		return errShort
	}
	return err
}
