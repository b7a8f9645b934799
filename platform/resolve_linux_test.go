package platform

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// dnsServer answers queries over UDP and TCP on one port of an address.
type dnsServer struct {
	t      *testing.T
	port   uint16
	answer func(name string, typ uint16, tcp bool) []byte // what follows the question, its first four octets the flags and count; nil: silence
	asked  atomic.Int32
	spoil  func(reply []byte) [][]byte // what is sent instead over UDP
}

func record(name string, typ uint16, data []byte) []byte {
	b, _ := appendName(nil, name)
	b = binary.BigEndian.AppendUint16(b, typ)
	b = append(b, 0, dnsClassIN, 0, 0, 0, 60)
	b = binary.BigEndian.AppendUint16(b, uint16(len(data)))
	return append(b, data...)
}

// says builds what answer returns.
func says(flags uint16, records ...[]byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, dnsResponse|flags)
	b = binary.BigEndian.AppendUint16(b, uint16(len(records)))
	for _, r := range records {
		b = append(b, r...)
	}
	return b
}

func (s *dnsServer) reply(q []byte, tcp bool) []byte {
	name, end, ok := readName(q, dnsHeader)
	if !ok || len(q) != end+4 || binary.BigEndian.Uint16(q[2:]) != dnsRecursion {
		s.t.Errorf("malformed query % x", q)
		return nil
	}
	s.asked.Add(1)
	a := s.answer(strings.TrimSuffix(name, "."), binary.BigEndian.Uint16(q[end:]), tcp)
	if a == nil {
		return nil
	}
	r := append([]byte(nil), q[:2]...)
	r = append(r, a[:2]...)
	r = append(r, 0, 1, a[2], a[3], 0, 0, 0, 0)
	r = append(r, q[dnsHeader:]...)
	return append(r, a[4:]...)
}

func startDNS(t *testing.T, addr string, port int, answer func(name string, typ uint16, tcp bool) []byte) *dnsServer {
	t.Helper()
	u, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(addr), Port: port})
	if err != nil {
		t.Fatal(err)
	}
	port = u.LocalAddr().(*net.UDPAddr).Port
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.ParseIP(addr), Port: port})
	if err != nil {
		u.Close()
		t.Fatal(err)
	}
	s := &dnsServer{t: t, port: uint16(port), answer: answer}
	done := make(chan struct{}, 2)
	go func() {
		defer func() { done <- struct{}{} }()
		var buf [2000]byte
		for {
			n, from, err := u.ReadFromUDPAddrPort(buf[:])
			if err != nil {
				return
			}
			r := s.reply(buf[:n], false)
			list := [][]byte{r}
			if s.spoil != nil && r != nil {
				list = s.spoil(r)
			}
			for _, r := range list {
				if r != nil {
					_, _ = u.WriteToUDPAddrPort(r, from)
				}
			}
		}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			var size [2]byte
			if _, err := io.ReadFull(c, size[:]); err == nil {
				q := make([]byte, binary.BigEndian.Uint16(size[:]))
				if _, err := io.ReadFull(c, q); err == nil {
					if r := s.reply(q, true); r != nil {
						_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(r))), r...))
					}
				}
			}
			c.Close()
		}
	}()
	t.Cleanup(func() {
		u.Close()
		l.Close()
		<-done
		<-done
	})
	return s
}

// resolver returns one that reads the texts as its files.
func (s *dnsServer) resolver(conf, hosts string) *Resolver {
	dir := s.t.TempDir()
	r := &Resolver{Hosts: filepath.Join(dir, "hosts"), Conf: filepath.Join(dir, "resolv.conf"), port: s.port, unmarked: true}
	for path, text := range map[string]string{r.Hosts: hosts, r.Conf: conf} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	return r
}

func (s *dnsServer) resolve(r *Resolver, name string, d time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	list, _, err := r.Resolve(ctx, name)
	var texts []string
	for _, a := range list {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, " "), err
}

func ip(s string) []byte { return netip.MustParseAddr(s).AsSlice() }

// dnsZone answers for gw.example.net with addresses of both families, through an alias for
// alias.example.net, and knows no other name.
func dnsZone(name string, typ uint16, tcp bool) []byte {
	var alias [][]byte
	switch name {
	case "alias.example.net":
		target, _ := appendName(nil, "GW.example.net")
		alias = [][]byte{record(name, dnsCNAME, target)}
	case "gw.example.net":
	case "empty.example.net":
		return says(0)
	case "broken.example.net":
		return says(2)
	case "big.example.net":
		if !tcp {
			return says(dnsTruncated)
		}
	default:
		return says(rcodeNXDomain)
	}
	owner := "gw.example.net"
	if name == "big.example.net" {
		owner = name
	}
	if typ == dnsTypeA {
		return says(0, append(alias, record("other.example.net", dnsTypeA, ip("203.0.113.66")), record(owner, dnsTypeA, ip("192.0.2.9")), record(owner, dnsTypeA, ip("192.0.2.8")))...)
	}
	return says(0, append(alias, record(owner, dnsTypeAAAA, ip("2001:db8::9")))...)
}

func TestResolverReadsFilesAndServers(t *testing.T) {
	s := startDNS(t, "127.0.0.1", 0, dnsZone)
	const both = "192.0.2.9 192.0.2.8 2001:db8::9"
	for _, c := range []struct {
		what, conf, hosts, name, want string
		err                           error
	}{
		{"a name", "nameserver 127.0.0.1\n", "", "gw.example.net", both, nil},
		{"in capitals, with a dot", "nameserver 127.0.0.1\n", "", "GW.Example.Net.", both, nil},
		{"an alias", "nameserver 127.0.0.1\n", "", "alias.example.net", both, nil},
		{"an answer that only fits TCP", "nameserver 127.0.0.1\n", "", "big.example.net", both, nil},
		{"no file at all means the own host", "", "", "gw.example.net", both, nil},
		{"the search list", "search nowhere.test example.net\nnameserver 127.0.0.1\n", "", "gw", both, nil},
		{"a domain", "domain example.net # ours\nnameserver 127.0.0.1\n", "", "gw", both, nil},
		{"few dots", "search net\noptions ndots:2\nnameserver 127.0.0.1\n", "", "gw.example", both, nil},
		{"the hosts file first", "nameserver 127.0.0.1\n", "# x\n2001:db8::1 gw.example.net\n192.0.2.1 y GW.example.net # z\n", "gw.example.net", "192.0.2.1 2001:db8::1", nil},
		{"no such name", "nameserver 127.0.0.1\n", "", "nothing.example.net", "", errNoName},
		{"a name without addresses", "nameserver 127.0.0.1\n", "", "empty.example.net", "", errNoAddrs},
		{"a server that fails", "nameserver 127.0.0.1\n", "", "broken.example.net", "", errRefused},
		{"no name at all", "nameserver 127.0.0.1\n", "", "a..b", "", errBadName},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			got, err := s.resolve(s.resolver(c.conf, c.hosts), c.name, 500*time.Millisecond)
			if got != c.want || !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
				t.Errorf("%q is %q (%v), want %q (%v)", c.name, got, err, c.want, c.err)
			}
		})
	}
}

// A server that is silent or not there costs a second, the next one answers.
func TestResolverTriesTheServersInTurn(t *testing.T) {
	quiet := startDNS(t, "127.0.0.2", 0, func(string, uint16, bool) []byte { return nil })
	s := startDNS(t, "127.0.0.1", int(quiet.port), dnsZone)
	for _, first := range []string{"127.0.0.2", "127.0.0.3"} {
		began := time.Now()
		got, err := s.resolve(s.resolver("nameserver "+first+"\nnameserver 127.0.0.1\n", ""), "gw.example.net", 5*time.Second)
		if err != nil || got == "" {
			t.Errorf("with %s before the good server: %v", first, err)
		}
		if d := time.Since(began); d > 2*time.Second {
			t.Errorf("with %s before the good server the answer took %v, want about a second at most", first, d)
		}
	}
}

// While nobody answers, the resolver goes on asking, and returns soon after somebody does.
func TestResolverOutlastsASilentServer(t *testing.T) {
	var works atomic.Bool
	s := startDNS(t, "127.0.0.1", 0, func(name string, typ uint16, tcp bool) []byte {
		if !works.Load() {
			return nil
		}
		return dnsZone(name, typ, tcp)
	})
	r := s.resolver("nameserver 127.0.0.1\n", "")
	if _, err := s.resolve(r, "gw.example.net", 300*time.Millisecond); err == nil || !strings.Contains(err.Error(), "127.0.0.1: no answer") {
		t.Errorf("a silent server: %v, want its address and that it does not answer", err)
	}
	var since atomic.Int64
	time.AfterFunc(1200*time.Millisecond, func() { works.Store(true); since.Store(time.Now().UnixNano()) })
	if _, err := s.resolve(r, "gw.example.net", 5*time.Second); err != nil {
		t.Errorf("after the server woke up: %v", err)
	}
	if d := time.Since(time.Unix(0, since.Load())); d > 1500*time.Millisecond {
		t.Errorf("the answer came %v after the server woke up, want about a second", d)
	}
	if n := s.asked.Load(); n > 10 {
		t.Errorf("%d queries in three seconds: two a second are enough", n)
	}
}

// A refusal is no reason to ask in a loop, and the end of the context is obeyed at once.
func TestResolverDoesNotSpin(t *testing.T) {
	s := startDNS(t, "127.0.0.1", 0, dnsZone)
	r := s.resolver("nameserver 127.0.0.1\n", "")
	began := time.Now()
	_, _ = s.resolve(r, "broken.example.net", 500*time.Millisecond)
	if n := s.asked.Load(); n > 2 {
		t.Errorf("%d queries within half a second to a server that refuses, want the two of one round", n)
	}
	if d := time.Since(began); d > time.Second {
		t.Errorf("the lookup took %v beyond a context of half a second", d)
	}
}

// What an attacker guesses is not believed: wrong ID, another question, no response.
func TestResolverWaitsForTheAnswerToItsQuestion(t *testing.T) {
	s := startDNS(t, "127.0.0.1", 0, dnsZone)
	evil := func(r []byte, change func([]byte)) []byte {
		r = slices.Clone(r)
		for i := 0; i+4 <= len(r); i++ {
			if string(r[i:i+4]) == string(ip("192.0.2.9")) {
				copy(r[i:], ip("203.0.113.6"))
			}
		}
		change(r)
		return r
	}
	s.spoil = func(r []byte) [][]byte {
		return [][]byte{
			evil(r, func(b []byte) { b[0] ^= 1 }),
			evil(r, func(b []byte) { b[2] &^= 0x80 }),
			evil(r, func(b []byte) { b[13] ^= 1 }),
			evil(r, func(b []byte) { b[5] = 0 }),
			r[:7],
			r,
		}
	}
	got, err := s.resolve(s.resolver("nameserver 127.0.0.1\n", ""), "gw.example.net", time.Second)
	if err != nil || !strings.HasPrefix(got, "192.0.2.9 ") {
		t.Errorf("among forged answers the right one was not found: %q, %v", got, err)
	}
}

func TestCompressedNamesCannotLoop(t *testing.T) {
	q, _ := appendQuery(nil, 7, "a.b", dnsTypeA)
	for name, b := range map[string][]byte{
		"itself":        {0xc0, 12},
		"forward":       {0xc0, 40, 0, 0, 0, 0, 0},
		"cut":           {3, 'a'},
		"reserved bits": {0x80, 1},
		"too long":      slices.Repeat([]byte{1, 'a'}, 200),
	} {
		msg := append(slices.Clone(q[:dnsHeader]), b...)
		if n, _, ok := readName(msg, dnsHeader); ok {
			t.Errorf("%s: read as %q, want a refusal", name, n)
		}
	}
}

func FuzzParseAnswer(f *testing.F) {
	q, _ := appendQuery(nil, 7, "gw.example.net", dnsTypeA)
	s := &dnsServer{answer: dnsZone}
	f.Add(s.reply(q, false))
	q2, _ := appendQuery(nil, 7, "alias.example.net", dnsTypeA)
	f.Add(s.reply(q2, false))
	f.Add([]byte{0, 7, 0x80, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0xc0, 12})
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, typ := range []uint16{dnsTypeA, dnsTypeAAAA} {
			ans, err := parseAnswer(b, 7, "gw.example.net", typ)
			list := ans.list
			if err == nil && (ans.ttl < time.Second || ans.ttl > 1<<31*time.Second) {
				t.Fatalf("good for %v", ans.ttl)
			}
			if (err == nil) != (len(list) > 0) || len(list) > maxAddrs {
				t.Fatalf("%d addresses, error %v", len(list), err)
			}
			for _, a := range list {
				if a.Is4() != (typ == dnsTypeA) {
					t.Fatalf("%v for a question of type %d", a, typ)
				}
			}
		}
	})
}

// How long an answer is good for is the least of its records, of both kinds, aliases too.
func TestAnswersSayHowLongTheyAreGoodFor(t *testing.T) {
	lives := func(r []byte, name string, ttl uint32) []byte {
		n, _ := appendName(nil, name)
		binary.BigEndian.PutUint32(r[len(n)+4:], ttl)
		return r
	}
	for _, c := range []struct {
		what           string
		alias, a, aaaa uint32
		want           time.Duration
	}{
		{"the address of IPv4", 500, 300, 400, 300 * time.Second},
		{"that of IPv6", 500, 400, 200, 200 * time.Second},
		{"the alias", 50, 400, 200, 50 * time.Second},
		{"not to be kept", 50, 0, 20, time.Second},
		{"negative", 50, 1 << 31, 20, time.Second},
	} {
		s := startDNS(t, "127.0.0.1", 0, func(name string, typ uint16, tcp bool) []byte {
			target, _ := appendName(nil, "gw.example.net")
			alias := lives(record(name, dnsCNAME, target), name, c.alias)
			other := lives(record("other.example.net", typ, ip("203.0.113.66")), "other.example.net", 1)
			if typ == dnsTypeA {
				return says(0, alias, other, lives(record("gw.example.net", typ, ip("192.0.2.9")), "gw.example.net", c.a))
			}
			return says(0, alias, lives(record("gw.example.net", typ, ip("2001:db8::9")), "gw.example.net", c.aaaa))
		})
		r := s.resolver("nameserver 127.0.0.1\n", "192.0.2.77 fixed.example.net\n")
		list, ttl, err := r.Resolve(t.Context(), "alias.example.net")
		if err != nil || len(list) != 2 || ttl != c.want {
			t.Errorf("%s: %v for %v, %v; want two addresses for %v", c.what, list, ttl, err, c.want)
		}
		if _, ttl, err := r.Resolve(t.Context(), "fixed.example.net"); err != nil || ttl != 0 {
			t.Errorf("an address of the hosts file is good for %v, %v; want 0, unknown", ttl, err)
		}
	}
}
