// Package fetch gets small public files over HTTP: revocation lists (RFC 5280 section
// 4.2.1.13) and the answers of OCSP responders (RFC 6960 appendix A). It is a client of
// HTTP/1.1 (RFC 9110, RFC 9112) with one request for each connection, because package
// net/http would add two megabytes to the binary.
//
// There is no TLS. What is fetched carries a signature of its own, which whoever asked for it
// checks, and a server whose certificate needed a revocation list first would be a circle.
//
// The server is not trusted: every length has a bound, one deadline is over all, and what is
// not well-formed is refused rather than guessed at. The way of a request:
//
//	1 the URL is taken apart (url.go); only http:// can be
//	2 the host's name is resolved, its addresses are tried in turn (client.go)
//	3 one request leaves, "Connection: close" in it
//	4 status line, header, and the body by its framing (response.go)
//	5 a redirection starts again at 1, three times at most
//
// A [Queue] fetches so for the verdicts of package pki: few at once, each file once, with a cache.
package fetch

import "errors"

// Limits. What a device can afford for the body, the caller says.
const (
	maxURL       = 2048     // octets; no certificate needs more
	maxHeader    = 16 << 10 // octets of header, trailer and interim responses together
	maxFraming   = 64 << 10 // octets that chunks may cost beside what is in them
	maxRedirects = 3
	maxAddrs     = 4 // of a host, that are tried
)

// Errors of a fetch. Others are those of the caller's functions.
var (
	errURL       = errors.New("it is no URL that can be fetched")
	errScheme    = errors.New("only http:// can be fetched; what is fetched is signed, so that is no risk")
	errPlace     = errors.New("it points to an address that no server on the network has")
	errRedirects = errors.New("it is redirected too often")
	errNowhere   = errors.New("it is redirected without saying where to")
	errMethod    = errors.New("it is redirected to where a POST cannot go")
	errNoAddress = errors.New("its host has no address")

	errShort    = errors.New("the answer breaks off")
	errStatus   = errors.New("the answer is not HTTP")
	errHeader   = errors.New("the header of the answer is malformed")
	errLong     = errors.New("the header of the answer is too long")
	errLength   = errors.New("the answer contradicts itself about its length")
	errChunk    = errors.New("a chunk of the answer is malformed")
	errCoding   = errors.New("the answer is encoded in a way that was not asked for")
	errTooLarge = errors.New("the answer is larger than this device has room for")
)
