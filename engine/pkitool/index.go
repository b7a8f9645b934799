package pkitool

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// index is what an authority remembers: a text of lines, the first naming the form,
//
//	postern-pki-index 1
//	crl 3
//	issued 5b0f… 2026-11-22T08:30:00Z 2029-02-24T08:30:00Z C=CH, O=Weir, CN=plant
//	revoked 5b0f… 2026-12-01T07:00:00Z 1
//
// with the number of the last revocation list; serial, validity and subject of what was issued;
// and serial, time and reason (RFC 5280 5.3.1) of what was revoked.
type index struct {
	crl     int64
	issued  []issued
	revoked []revoked
}

type issued struct {
	serial   string // hexadecimal, lower case, as serialText writes it
	from, to time.Time
	subject  string
}

type revoked struct {
	serial string
	at     time.Time
	reason int
}

const (
	indexHead = "postern-pki-index 1"
	// maxSerial is the length of a serial number in octets (RFC 5280 4.1.2.2).
	maxSerial = 20
	// maxIndex bounds the file; a small authority has room for 50,000 certificates in it.
	maxIndex = 8 << 20
)

var errIndex = errors.New("restore the file from a copy")

// parseIndex reads an index. The error names the line.
func parseIndex(data []byte) (*index, error) {
	x := &index{}
	n := 0
	known := map[string]bool{}
	gone := map[string]bool{}
	fail := func(what string) (*index, error) {
		return nil, fmt.Errorf("line %d: %s: %w", n, what, errIndex)
	}
	if len(data) > maxIndex {
		return fail("the index is too large")
	}
	for line := range strings.Lines(string(data)) {
		n++
		line = strings.TrimSuffix(line, "\n")
		if n == 1 {
			if line != indexHead {
				return fail("this is no index that this version writes")
			}
			continue
		}
		f := strings.SplitN(line, " ", 5)
		switch {
		case f[0] == "crl" && len(f) == 2:
			v, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil || v < 0 {
				return fail("the number of a revocation list is no number")
			}
			x.crl = v
		case f[0] == "issued" && len(f) == 5:
			from, err1 := time.Parse(time.RFC3339, f[2])
			to, err2 := time.Parse(time.RFC3339, f[3])
			if err1 != nil || err2 != nil || !isSerial(f[1]) || known[f[1]] {
				return fail("what was issued is not told as it should be")
			}
			known[f[1]] = true
			x.issued = append(x.issued, issued{f[1], from.UTC(), to.UTC(), f[4]})
		case f[0] == "revoked" && len(f) == 4:
			at, err := time.Parse(time.RFC3339, f[2])
			code, err2 := strconv.Atoi(f[3])
			if err != nil || err2 != nil || code < 0 || code > 10 || !isSerial(f[1]) || gone[f[1]] {
				return fail("what was revoked is not told as it should be")
			}
			gone[f[1]] = true
			x.revoked = append(x.revoked, revoked{f[1], at.UTC(), code})
		default:
			return fail("this line is of no known kind")
		}
	}
	if n == 0 {
		return fail("the index is empty")
	}
	return x, nil
}

// text writes the index as parseIndex reads it.
func (x *index) text() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\ncrl %d\n", indexHead, x.crl)
	for _, i := range x.issued {
		fmt.Fprintf(&b, "issued %s %s %s %s\n", i.serial, i.from.Format(time.RFC3339), i.to.Format(time.RFC3339), i.subject)
	}
	for _, r := range x.revoked {
		fmt.Fprintf(&b, "revoked %s %s %d\n", r.serial, r.at.Format(time.RFC3339), r.reason)
	}
	return b.Bytes()
}

// find returns what was issued with that serial number.
func (x *index) find(serial string) (issued, bool) {
	i := slices.IndexFunc(x.issued, func(i issued) bool { return i.serial == serial })
	if i < 0 {
		return issued{}, false
	}
	return x.issued[i], true
}

// isRevoked returns since when a serial number is revoked.
func (x *index) isRevoked(serial string) (revoked, bool) {
	i := slices.IndexFunc(x.revoked, func(r revoked) bool { return r.serial == serial })
	if i < 0 {
		return revoked{}, false
	}
	return x.revoked[i], true
}

// isSerial says whether a text is a serial number as serialText writes it.
func isSerial(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) > 0 && len(b) <= maxSerial && s == strings.ToLower(s)
}

// loadIndex reads the index of a folder; where there is none the authority came from elsewhere
// and has issued nothing yet that is known.
func loadIndex(path string) (*index, error) {
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &index{}, nil
	case err != nil:
		return nil, fileError(path, err)
	}
	x, err := parseIndex(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return x, nil
}
