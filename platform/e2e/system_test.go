//go:build linux

package e2e

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// exitOf returns the exit status that an error carries, -1 if none.
func exitOf(err error) int {
	var e *exec.ExitError
	if errors.As(err, &e) {
		return e.ExitCode()
	}
	return -1
}

// Exit statuses of postern, as "postern help" lists them.
const (
	exitFailed = 1
	exitSystem = 6
)

// refusesToStart runs postern with something missing: it ends at once with that status,
// says why in one line that holds all the words, and has changed nothing.
func refusesToStart(t *testing.T, s *site, d *postern, status int, words []string, wrapper ...string) {
	t.Helper()
	before := s.settled(d.ns())
	p := d.launch(wrapper...)
	if !p.wait(10 * time.Second) {
		t.Fatalf("postern goes on without what it needs:\n%s", p.text())
	}
	if got := p.cmd.ProcessState.ExitCode(); got != status {
		t.Errorf("exit status %d, want %d; it said:\n%s", got, status, p.text())
	}
	said := strings.TrimSpace(p.text())
	var errs []string
	for line := range strings.SplitSeq(said, "\n") {
		// Log lines of a lower level may stand before it.
		if !strings.Contains(line, "level=info") && !strings.Contains(line, "level=debug") && !strings.Contains(line, " info ") {
			errs = append(errs, line)
		}
	}
	if len(errs) != 1 {
		t.Errorf("%d lines on the way out, want one:\n%s", len(errs), said)
	}
	if len(matching(said, words...)) == 0 {
		t.Errorf("no line names %q:\n%s", words, said)
	}
	if after := s.routing(d.ns()); after != before {
		t.Errorf("postern could not start and has changed the system:\n%s", difference(before, after))
	}
	if _, err := os.Stat(d.socket()); err == nil {
		t.Errorf("the control socket is left behind")
	}
}

func TestStartWithoutTunDevice(t *testing.T) {
	need(t, "mount")
	t.Parallel()
	s := newSite(t)
	ca, _ := pairSpecs(false, false)
	refusesToStart(t, s, newPostern(s, 'a', ca), exitSystem, []string{"/dev/net/tun"},
		"sh", "-ec", `mount -t tmpfs tmpfs /dev/net; exec "$@"`, "sh")
}

func TestStartWithPortInUse(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		network string
		port    int
	}{{"500", "udp4", 500}, {"4500", "udp4", 4500}, {"500 of IPv6", "udp6", 500}} {
		t.Run(c.name, func(t *testing.T) {
			need(t)
			t.Parallel()
			s := newSite(t)
			var held *net.UDPConn
			if err := inNamespace(s.gwA, func() (err error) {
				held, err = net.ListenUDP(c.network, &net.UDPAddr{Port: c.port})
				return err
			}); err != nil {
				t.Fatal(err)
			}
			defer held.Close()
			ca, _ := pairSpecs(false, false)
			refusesToStart(t, s, newPostern(s, 'a', ca), exitFailed, []string{"port", strings.Fields(c.name)[0]})
		})
	}
}

// A second daemon beside the first is refused and does not hurt the first.
func TestSecondDaemonIsRefused(t *testing.T) {
	p := pair{"postern", "postern"}
	ready(t, p)
	s := newSite(t)
	ca, cb := pairSpecs(false, false)
	a, b := startPair(s, p, ca, cb)
	mustInitiate(t, "net", a, b)
	second := *a.(*postern)
	second.logs = []string{second.dir + "/none"}
	second.launch()
	if !second.p.wait(10*time.Second) || second.p.cmd.ProcessState.ExitCode() == 0 {
		t.Errorf("a second postern with the same configuration goes on:\n%s", second.p.text())
	}
	s.mustPing(t, false, a, b)
	if _, err := a.(*postern).cli("status"); err != nil {
		t.Errorf("the first daemon's control socket is gone: %v", err)
	}
}

func TestStartWithoutPrivileges(t *testing.T) {
	need(t, "setpriv")
	t.Parallel()
	s := newSite(t)
	ca, _ := pairSpecs(false, false)
	d := newPostern(s, 'a', ca)
	const nobody = 65534
	for _, f := range []string{d.dir, d.configFile()} {
		if err := os.Chown(f, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	refusesToStart(t, s, d, exitSystem, []string{"root"},
		"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--")
}

// Root in name only: a container that has taken the capability to administer networks.
func TestStartWithoutNetAdmin(t *testing.T) {
	need(t, "setpriv")
	t.Parallel()
	s := newSite(t)
	ca, _ := pairSpecs(false, false)
	refusesToStart(t, s, newPostern(s, 'a', ca), exitSystem, []string{"CAP_NET_ADMIN"},
		"setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--")
}

func TestStatus(t *testing.T) {
	p := pair{"postern", "postern"}
	ready(t, p)
	s := newSite(t)
	ca, cb := pairSpecs(false, false)
	a, b := startPair(s, p, ca, cb)
	d := a.(*postern)
	if out, err := d.cli("status", "site"); exitOf(err) != 4 {
		t.Errorf("status of a connection that is down: %v, want exit status 4:\n%s", err, out)
	}
	mustInitiate(t, "net", a, b)
	s.mustPing(t, false, a, b)
	out, err := d.cli("status")
	if err != nil {
		t.Fatalf("postern status: %v\n%s", err, out)
	}
	for line := range strings.SplitSeq(out, "\n") {
		if n := utf8.RuneCountInString(line); n > 80 {
			t.Errorf("a line of %d columns, want at most 80: %s", n, line)
		}
	}
	for _, want := range []string{"site", "net", gwB4.String(), lanA4, lanB4, "b.example"} {
		if !strings.Contains(out, want) {
			t.Errorf("postern status does not show %s:\n%s", want, out)
		}
	}
	out, err = d.cli("status", "--json")
	var v any
	if err != nil {
		t.Fatalf("postern status --json: %v\n%s", err, out)
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatalf("postern status --json prints no JSON: %v\n%s", err, out)
	}
	var leaves []string
	walk(v, &leaves)
	for _, want := range []string{"site", "net", "ESTABLISHED", "INSTALLED", "AES_GCM_16-128", lanA4, lanB4, installed(t, a, "net").spiIn} {
		if !slices.Contains(leaves, want) {
			t.Errorf("postern status --json does not hold %q: %s", want, out)
		}
	}
}

// walk collects the strings of a JSON document.
func walk(v any, out *[]string) {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			*out = append(*out, k)
			walk(e, out)
		}
	case []any:
		for _, e := range v {
			walk(e, out)
		}
	case string:
		*out = append(*out, v)
	}
}

// Datagrams that mean no good, while a tunnel is up: it goes on, the daemon neither dies nor
// fills the log, and what RFC 7296 wants answered is answered.
func TestHostileDatagrams(t *testing.T) {
	p := pair{"postern", "postern"}
	ready(t, p)
	s := newSite(t)
	ca, cb := pairSpecs(false, false)
	cb.conns[0].remote = "%any"
	a, b := startPair(s, p, ca, cb)
	mustInitiate(t, "net", a, b)
	x, y := s.stranger(500), s.stranger(4500)
	before := len(strings.Split(b.log(), "\n"))

	// A higher major version is told the highest that we speak (section 2.5). First, because
	// such answers are limited in number.
	x.send(ikeMessage(0x5555, exInit, 0x30, 0, nil))
	if got := x.receive(time.Second); len(got) < 28 || got[17] != 0x20 || !slices.Equal(notifiesAnywhere(got), []uint16{notifyInvalidMajor}) {
		t.Errorf("IKE version 3 was answered with % x, want INVALID_MAJOR_VERSION", got)
	}

	good := ikeInit(0x0102030405060708)
	for n := range len(good) { // every truncation, with the length of the whole and with its own
		x.send(good[:n])
		if n >= 28 {
			cut := slices.Clone(good[:n])
			cut[26], cut[27] = byte(n>>8), byte(n)
			x.send(cut)
		}
	}
	for i := range good { // every octet flipped
		bad := slices.Clone(good)
		bad[i] ^= 0xff
		x.send(bad)
	}
	for _, n := range []int{0, 1, 3, 4, 7, 8, 27, 28, 100, 1400, 9000, 60000} {
		x.send(make([]byte, n))
		y.send(make([]byte, n))
		x.send(random(n))
		y.send(random(n))
		y.send(append(make([]byte, 4), random(n)...))
	}
	spi, _ := parseSPI(installed(t, b, "net").spiIn)
	for range 50 { // forged ESP with the right SPI
		y.send(append([]byte{byte(spi >> 24), byte(spi >> 16), byte(spi >> 8), byte(spi), 0, 0, 1, 0}, random(80)...))
	}
	x.drain()

	x.send(ikeMessage(0x5556, exInfo, 0x20, 0, nil))
	if got := x.receive(300 * time.Millisecond); got != nil && got[17] != 0x20 {
		t.Errorf("INFORMATIONAL without an SA was answered with % x", got)
	}
	s.mustPing(t, false, a, b)
	if !b.alive() {
		t.Fatalf("postern has died%s", logs(b))
	}
	if lines := len(strings.Split(b.log(), "\n")) - before; lines > 60 {
		t.Errorf("%d log lines for a thousand hostile datagrams, want a few%s", lines, logs(b))
	}
	if sa := established(t, b); len(sa.children) != 1 {
		t.Errorf("the tunnel has suffered: %+v", sa)
	}
}

// notifiesAnywhere reads the notifies of an unprotected message, whatever its exchange.
func notifiesAnywhere(b []byte) []uint16 {
	c := slices.Clone(b)
	c[18] = exInit
	return notifies(c)
}

// parseSPI reads an SPI as list-sas writes it.
func parseSPI(s string) (spi uint32, ok bool) {
	for _, c := range s {
		d := strings.IndexRune("0123456789abcdef", c)
		if d < 0 {
			return 0, false
		}
		spi = spi<<4 | uint32(d)
	}
	return spi, len(s) == 8
}
