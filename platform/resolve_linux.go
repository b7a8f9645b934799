package platform

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A stub resolver for the names of peers, in place of the one of package net, which would
// add a third of a megabyte to the binary and could not send past the tunnel. Its way:
//
//	1 /etc/hosts
//	2 /etc/resolv.conf, read anew each time: on a router the uplink writes it. Our own lines in
//	  it do not count (dns_linux.go), and where it names this host alone, the servers that the
//	  forwarder on this host has from the uplink come behind it
//	3 each name of the search list, each server in turn: A and AAAA at once, over UDP from
//	  a fresh port with a random ID, over TCP if the answer was cut
//	4 what does not answer within a second gives way to the next server; and again, until
//	  the context ends
//
// Its sockets carry the mark of the tunnel's own packets: the peer's name is needed before
// there is a tunnel, and if its server were behind that tunnel both would wait for ever.

const (
	dnsPort      = 53
	dnsPatience  = time.Second // for one server
	dnsTCPLimit  = 16 << 10    // octets of a response over TCP
	maxServers   = 3           // the C libraries' limits
	maxSearch    = 6
	maxConfFile  = 64 << 10 // octets of a file that are read
	resolverHint = "check the name, and that the servers in /etc/resolv.conf can be reached"
)

// Resolver looks names up. The zero value reads the usual files; it may be used from
// several goroutines.
type Resolver struct {
	Hosts, Conf string   // "": /etc/hosts and /etc/resolv.conf
	uplinks     []string // for tests; nil: uplinkFiles
	port        uint16   // for tests; 0: 53
	unmarked    bool     // for tests without privileges
}

// uplinkFiles are where a forwarder on this host finds its own servers: dnsmasq of OpenWrt,
// systemd-resolved, NetworkManager, dnsmasq with resolvconf. What the forwarder sends carries no
// mark, so where a tunnel protects everything it gets no answer while that is down.
var uplinkFiles = []string{
	"/tmp/resolv.conf.d/resolv.conf.auto", "/run/systemd/resolve/resolv.conf",
	"/run/NetworkManager/no-stub-resolv.conf", "/run/dnsmasq/resolv.conf",
}

// Resolve returns the addresses of a name, IPv4 before IPv6, in the order of the server, and
// how long the server says that they are good for, at least a second; 0 where a file has them.
// It tries until ctx ends; that a name does not exist, or has no address, is an error at once.
func (r *Resolver) Resolve(ctx context.Context, name string) ([]netip.Addr, time.Duration, error) {
	a, err := r.resolve(ctx, name)
	if err != nil {
		return nil, 0, &OpError{Op: "resolve", Object: name, Err: err, Hint: resolverHint}
	}
	return a.list, a.ttl, nil
}

func (r *Resolver) resolve(ctx context.Context, name string) (dnsAnswer, error) {
	if _, err := appendName(nil, name); err != nil {
		return dnsAnswer{}, err
	}
	if list := r.fromHosts(name); len(list) > 0 {
		return dnsAnswer{list: list}, nil
	}
	var last error
	for {
		conf := r.readConf()
		began := time.Now()
		a, err := r.round(ctx, &conf, name)
		if err == nil || errors.Is(err, errNoName) || errors.Is(err, errNoAddrs) {
			return a, err
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		// A server that refuses at once is not asked in a loop.
		pause := time.NewTimer(dnsPatience - min(time.Since(began), dnsPatience))
		select {
		case <-ctx.Done():
			pause.Stop()
			return dnsAnswer{}, last
		case <-pause.C:
		}
	}
}

// round asks for each name that is meant, until one exists.
func (r *Resolver) round(ctx context.Context, conf *resolvConf, name string) (a dnsAnswer, err error) {
	missing := errNoName
	for _, full := range conf.candidates(name) {
		a, err = r.ask(ctx, conf, full)
		switch {
		case errors.Is(err, errNoAddrs):
			missing = errNoAddrs
		case !errors.Is(err, errNoName):
			return a, err
		}
	}
	return dnsAnswer{}, missing
}

// ask asks the servers in turn for a full name.
func (r *Resolver) ask(ctx context.Context, conf *resolvConf, name string) (a dnsAnswer, err error) {
	for _, server := range conf.servers {
		if ctx.Err() != nil {
			break
		}
		a, err = r.exchange(ctx, server, name)
		if err == nil || errors.Is(err, errNoName) || errors.Is(err, errNoAddrs) {
			return a, err
		}
		err = fmt.Errorf("DNS server %s: %w", server, err)
	}
	if err == nil {
		err = context.Cause(ctx)
	}
	return dnsAnswer{}, err
}

// question is one of the two queries for a name.
type question struct {
	typ  uint16
	id   uint16
	data []byte
	conn *os.File
	dnsAnswer
	err error
}

// exchange asks one server for both kinds of addresses at once.
func (r *Resolver) exchange(ctx context.Context, server netip.Addr, name string) (dnsAnswer, error) {
	deadline := time.Now().Add(dnsPatience)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	qs := [2]question{{typ: dnsTypeA}, {typ: dnsTypeAAAA}}
	for i := range qs {
		q := &qs[i]
		var id [2]byte
		_, _ = rand.Read(id[:])
		q.id = binary.BigEndian.Uint16(id[:])
		if q.data, q.err = appendQuery(nil, q.id, name, q.typ); q.err != nil {
			return dnsAnswer{}, q.err
		}
		if q.conn, q.err = r.dial(unix.SOCK_DGRAM, server, deadline); q.err != nil {
			continue
		}
		defer q.conn.Close()
		defer context.AfterFunc(ctx, func() { _ = q.conn.SetDeadline(time.Unix(1, 0)) })()
		_, q.err = q.conn.Write(q.data)
	}
	for i := range qs {
		q := &qs[i]
		if q.err == nil {
			q.dnsAnswer, q.err = q.answer(name)
		}
		if errors.Is(q.err, errTruncated) {
			q.dnsAnswer, q.err = r.overTCP(ctx, server, q, name, deadline)
		}
		if errors.Is(q.err, errNoName) {
			return dnsAnswer{}, q.err // for all types (RFC 8020)
		}
	}
	a, aaaa := &qs[0], &qs[1]
	switch {
	case a.err == nil && aaaa.err == nil:
		return dnsAnswer{append(a.list, aaaa.list...), min(a.ttl, aaaa.ttl)}, nil
	case a.err == nil: // one of the two is enough
		return a.dnsAnswer, nil
	case aaaa.err == nil:
		return aaaa.dnsAnswer, nil
	case !errors.Is(a.err, errNoAddrs):
		return dnsAnswer{}, a.err
	}
	return dnsAnswer{}, aaaa.err
}

// answer reads what comes back over UDP until it is the answer.
func (q *question) answer(name string) (dnsAnswer, error) {
	var buf [1500]byte
	for {
		n, err := q.conn.Read(buf[:])
		if err != nil {
			return dnsAnswer{}, plain(err)
		}
		a, err := parseAnswer(buf[:n], q.id, name, q.typ)
		if !errors.Is(err, errNotOurs) {
			return a, err
		}
	}
}

// overTCP asks again over TCP (RFC 7766), where messages have their length before them.
func (r *Resolver) overTCP(ctx context.Context, server netip.Addr, q *question, name string, deadline time.Time) (a dnsAnswer, err error) {
	conn, err := r.dial(unix.SOCK_STREAM, server, deadline)
	if err != nil {
		return a, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(q.data))), q.data...)); err != nil {
		return a, plain(err)
	}
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return a, plain(err)
	}
	n := int(binary.BigEndian.Uint16(size[:]))
	if n > dnsTCPLimit {
		return a, errTruncated
	}
	buf := make([]byte, n)
	if _, err := io.ReadFull(conn, buf); err != nil {
		return a, plain(err)
	}
	a, err = parseAnswer(buf, q.id, name, q.typ)
	if errors.Is(err, errNotOurs) {
		err = errBadAnswer
	}
	return a, err
}

// plain makes an error of a file that of the network.
func plain(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.New("no answer")
	}
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// dial connects a marked socket of its own port to the server, so that the kernel drops
// what comes from elsewhere and tells when nobody is there.
func (r *Resolver) dial(typ int, server netip.Addr, deadline time.Time) (*os.File, error) {
	fd, err := unix.Socket(int(family(server.Is6())), typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if !r.unmarked {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, Mark)
	}
	port := r.port
	if port == 0 {
		port = dnsPort
	}
	if err == nil {
		err = unix.Connect(fd, sockaddr(server, port))
	}
	if err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return nil, err
	}
	// A write waits until the connection is there.
	f := os.NewFile(uintptr(fd), "DNS server")
	return f, f.SetDeadline(deadline)
}

func sockaddr(ip netip.Addr, port uint16) unix.Sockaddr {
	if ip = ip.Unmap(); ip.Is4() {
		return &unix.SockaddrInet4{Port: int(port), Addr: ip.As4()}
	}
	var z zones
	return &unix.SockaddrInet6{Port: int(port), Addr: ip.As16(), ZoneId: z.index(ip)}
}

// fromHosts looks a name up in the hosts file.
func (r *Resolver) fromHosts(name string) (list []netip.Addr) {
	path := r.Hosts
	if path == "" {
		path = "/etc/hosts"
	}
	var six []netip.Addr
	eachLine(path, func(f []string) {
		a, err := netip.ParseAddr(f[0])
		if err != nil {
			return
		}
		for _, h := range f[1:] {
			if canonical(h) != canonical(name) || len(list)+len(six) == maxAddrs {
				continue
			}
			if a.Is4() {
				list = append(list, a)
			} else {
				six = append(six, a)
			}
		}
	})
	return append(list, six...)
}

// resolvConf is what resolv.conf says.
type resolvConf struct {
	servers []netip.Addr
	search  []string
	ndots   int
}

func (r *Resolver) readConf() resolvConf {
	path := r.Conf
	if path == "" {
		path = "/etc/resolv.conf"
	}
	c := resolvConf{ndots: 1}
	eachLine(path, func(f []string) {
		switch f[0] {
		case "nameserver":
			c.addServer(f)
		case "domain", "search": // the last one counts
			c.search = nil
			for _, s := range f[1:] {
				if _, err := appendName(nil, s); err == nil && len(c.search) < maxSearch {
					c.search = append(c.search, s)
				}
			}
		case "options":
			for _, o := range f[1:] {
				if v, ok := strings.CutPrefix(o, "ndots:"); ok {
					if n, err := strconv.Atoi(v); err == nil {
						c.ndots = min(max(n, 0), 15)
					}
				}
			}
		}
	})
	if len(c.servers) == 0 { // as the C libraries have it
		c.servers = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	}
	if !slices.ContainsFunc(c.servers, func(a netip.Addr) bool { return !a.IsLoopback() }) {
		files := r.uplinks
		if files == nil {
			files = uplinkFiles
		}
		for _, path := range files {
			eachLine(path, func(f []string) {
				if f[0] == "nameserver" {
					c.addServer(f)
				}
			})
		}
	}
	return c
}

// addServer takes the server of a line, if there is room and it is new.
func (c *resolvConf) addServer(words []string) {
	if len(words) > 1 && len(c.servers) < maxServers {
		if a, err := netip.ParseAddr(words[1]); err == nil && !slices.Contains(c.servers, a) {
			c.servers = append(c.servers, a)
		}
	}
}

// candidates returns the full names that a name may stand for.
func (c *resolvConf) candidates(name string) []string {
	if strings.HasSuffix(name, ".") {
		return []string{name}
	}
	var list []string
	for _, s := range c.search {
		full := name + "." + s
		if _, err := appendName(nil, full); err == nil {
			list = append(list, full)
		}
	}
	if strings.Count(name, ".") >= c.ndots {
		return append([]string{name}, list...)
	}
	return append(list, name)
}

// eachLine calls f with the words of each line of a file that has any. Comments and lines of
// ours are left out, and so is what lies beyond maxConfFile. A file that cannot be read has no lines.
func eachLine(path string, f func(words []string)) {
	file, err := os.Open(path)
	if err != nil {
		return
	}
	defer file.Close()
	data, _ := io.ReadAll(io.LimitReader(file, maxConfFile))
	if bytes.Contains(data, []byte(dnsBegin)) {
		data = []byte(withoutOurs(string(data)))
	}
	for line := range bytes.Lines(data) {
		if i := bytes.IndexAny(line, "#;"); i >= 0 {
			line = line[:i]
		}
		if words := strings.Fields(string(line)); len(words) > 0 {
			f(words)
		}
	}
}
