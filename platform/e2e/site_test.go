//go:build linux

package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// The addresses of a site; every site has the same, in namespaces of its own.
var (
	hostA4, hostA6 = netip.MustParseAddr("10.1.0.10"), netip.MustParseAddr("fd01::10")
	hostB4, hostB6 = netip.MustParseAddr("10.2.0.10"), netip.MustParseAddr("fd02::10")
	// The second LAN behind gwb: the same host, another address.
	hostC4 = netip.MustParseAddr("10.3.0.10")
	gwA4   = netip.MustParseAddr("198.51.100.1")
	gwA6   = netip.MustParseAddr("2001:db8:a::1")
	gwB4   = netip.MustParseAddr("203.0.113.1")
	gwB6   = netip.MustParseAddr("2001:db8:b::1")
	wanB4  = netip.MustParseAddr("203.0.113.254") // wan's own on that link
	// A host behind wan, where wan is a gateway, too.
	guestA4 = netip.MustParseAddr("10.9.0.10")
	nat4    = netip.MustParseAddr("203.0.113.254") // what gwb sees of gwa behind a NAT
)

const (
	lanA4, lanA6 = "10.1.0.0/24", "fd01::/64"
	lanB4, lanB6 = "10.2.0.0/24", "fd02::/64"
	lanC4        = "10.3.0.0/24"
)

var siteCount atomic.Int64

// site is five namespaces in a row, as the package's comment draws them.
type site struct {
	t                         *testing.T
	dir                       string // files of this site
	lanA, gwA, wan, gwB, lanB string // names of the namespaces
}

// newSite lays out a site and removes it at the end of the test.
func newSite(t *testing.T) *site {
	t.Helper()
	n := siteCount.Add(1)
	s := &site{t: t, dir: filepath.Join(workDir, fmt.Sprint(n))}
	if err := os.Mkdir(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	name := func(role string) string { return fmt.Sprintf("pt-%d-%d-%s", os.Getpid(), n, role) }
	s.lanA, s.gwA, s.wan, s.gwB, s.lanB = name("lana"), name("gwa"), name("wan"), name("gwb"), name("lanb")
	all := []string{s.lanA, s.gwA, s.wan, s.gwB, s.lanB}
	t.Cleanup(func() {
		for _, ns := range all {
			killInside(ns)
			command("ip", "netns", "del", ns)
		}
		if t.Failed() && os.Getenv("POSTERN_E2E_KEEP") != "" {
			t.Logf("files of this site: %s", s.dir)
		}
	})
	var b strings.Builder
	for _, ns := range all {
		fmt.Fprintln(&b, "netns add", ns)
	}
	s.ip("", b.String())
	// Before any address exists: no duplicate address detection (it delays), no router
	// solicitations (they are noise), and routers forward.
	for _, ns := range all {
		for _, dev := range []string{"all", "default"} {
			s.sysctl(ns, "net/ipv6/conf/"+dev+"/accept_dad", "0")
			s.sysctl(ns, "net/ipv6/conf/"+dev+"/router_solicitations", "0")
			s.sysctl(ns, "net/ipv6/conf/"+dev+"/accept_ra", "0")
		}
		if ns != s.lanA && ns != s.lanB {
			s.sysctl(ns, "net/ipv4/ip_forward", "1")
			s.sysctl(ns, "net/ipv6/conf/all/forwarding", "1")
		}
	}
	s.ip("", fmt.Sprintf(`
link add eth0 netns %[1]s type veth peer name lan0 netns %[2]s
link add wan0 netns %[2]s type veth peer name a0 netns %[3]s
link add b0 netns %[3]s type veth peer name wan0 netns %[4]s
link add lan0 netns %[4]s type veth peer name eth0 netns %[5]s
`, s.lanA, s.gwA, s.wan, s.gwB, s.lanB))
	s.ip(s.lanA, `
link set lo up
link set eth0 up
addr add 10.1.0.10/24 dev eth0
addr add fd01::10/64 dev eth0
route add default via 10.1.0.1
route add default via fd01::1
`)
	s.ip(s.gwA, `
link set lo up
link set lan0 up
link set wan0 up
addr add 10.1.0.1/24 dev lan0
addr add fd01::1/64 dev lan0
addr add 198.51.100.1/24 dev wan0
addr add 2001:db8:a::1/64 dev wan0
route add default via 198.51.100.254
route add default via 2001:db8:a::fe
`)
	s.ip(s.wan, `
link set lo up
link set a0 up
link set b0 up
addr add 198.51.100.254/24 dev a0
addr add 2001:db8:a::fe/64 dev a0
addr add 203.0.113.254/24 dev b0
addr add 2001:db8:b::fe/64 dev b0
`)
	s.ip(s.gwB, `
link set lo up
link set lan0 up
link set wan0 up
addr add 10.2.0.1/24 dev lan0
addr add 10.3.0.1/24 dev lan0
addr add fd02::1/64 dev lan0
addr add 203.0.113.1/24 dev wan0
addr add 2001:db8:b::1/64 dev wan0
route add default via 203.0.113.254
route add default via 2001:db8:b::fe
`)
	s.ip(s.lanB, `
link set lo up
link set eth0 up
addr add 10.2.0.10/24 dev eth0
addr add 10.3.0.10/24 dev eth0
addr add fd02::10/64 dev eth0
route add default via 10.2.0.1
route add default via fd02::1
`)
	return s
}

// ip runs a batch of ip commands, in a namespace or ("") outside.
func (s *site) ip(ns, batch string) {
	s.t.Helper()
	args := []string{"-batch", "-"}
	if ns != "" {
		args = append([]string{"-n", ns}, args...)
	}
	if out, err := commandInput(batch, "ip", args...); err != nil {
		s.t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// sysctl sets a kernel variable of a namespace.
func (s *site) sysctl(ns, name, value string) {
	s.t.Helper()
	err := inNamespace(ns, func() error { return os.WriteFile("/proc/sys/"+name, []byte(value), 0) })
	if err != nil {
		s.t.Fatalf("%s in %s: %v", name, ns, err)
	}
}

// run runs a program in a namespace to its end.
func (s *site) run(ns, name string, args ...string) (string, error) {
	return command("ip", append([]string{"netns", "exec", ns, name}, args...)...)
}

// nft loads rules into a namespace.
func (s *site) nft(ns, rules string) {
	s.t.Helper()
	if out, err := commandInput(rules, "ip", "netns", "exec", ns, "nft", "-f", "-"); err != nil {
		s.t.Fatalf("nft in %s: %v\n%s", ns, err, out)
	}
}

// hideA makes wan a NAT router: what comes from gwa leaves towards gwb under wan's own
// address and another port, and nothing from outside gets in that gwa has not asked for.
func (s *site) hideA() {
	s.t.Helper()
	s.nft(s.wan, `
table ip nat {
  chain post {
    type nat hook postrouting priority 100;
    oifname "b0" meta l4proto udp masquerade to :20000-40000 random
    oifname "b0" masquerade
  }
}
table ip filter {
  chain forward {
    type filter hook forward priority 0; policy drop;
    iifname "a0" accept
    ct state established,related accept
  }
}
`)
}

// cut makes wan drop everything between the gateways, or (false) lets it pass again.
func (s *site) cut(on bool) {
	s.t.Helper()
	if on {
		s.nft(s.wan, `
table inet cut {
  chain forward { type filter hook forward priority -10; policy drop; }
}
`)
		return
	}
	s.nft(s.wan, "delete table inet cut\n")
}

// addr returns the site's address of that side and family.
func gwAddr(side byte, v6 bool) netip.Addr {
	switch {
	case side == 'a' && v6:
		return gwA6
	case side == 'a':
		return gwA4
	case v6:
		return gwB6
	}
	return gwB4
}

// settled is routing once the kernel has done with the links that were just made.
func (s *site) settled(ns string) string {
	s.t.Helper()
	var r string
	stable := 0
	if !eventually(10*time.Second, func() bool {
		if last := s.routing(ns); last == r && !strings.Contains(last, "linkdown") && !strings.Contains(last, "DOWN") {
			stable++
		} else {
			r, stable = last, 0
		}
		return stable >= 15
	}) {
		s.t.Fatalf("the links of %s do not settle:\n%s", ns, r)
	}
	return r
}

// routing returns what a namespace's kernel is told about routing and links: it must be
// the same before a daemon starts and after it has ended.
func (s *site) routing(ns string) string {
	s.t.Helper()
	var b strings.Builder
	for _, args := range [][]string{
		{"-4", "rule"}, {"-6", "rule"}, {"-4", "route", "show", "table", "all"},
		{"-6", "route", "show", "table", "all"}, {"-br", "link"}, {"-br", "addr"},
	} {
		out, err := command("ip", append([]string{"-n", ns}, args...)...)
		// A table that never had a route does not exist, which is fine.
		if err != nil && !strings.Contains(out, "FIB table does not exist") {
			s.t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		fmt.Fprintf(&b, "# ip %s\n%s", strings.Join(args, " "), out)
	}
	return b.String()
}
