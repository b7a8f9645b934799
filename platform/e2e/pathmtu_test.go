//go:build linux

package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// narrow makes wan a router that forwards packets of no more than mtu octets between the gateways,
// and says so to those who send longer ones.
func (s *site) narrow(mtu int) {
	s.t.Helper()
	s.ip(s.wan, fmt.Sprintf(`
route replace 198.51.100.0/24 dev a0 mtu lock %[1]d
route replace 203.0.113.0/24 dev b0 mtu lock %[1]d
route replace 2001:db8:a::/64 dev a0 proto kernel metric 256 mtu lock %[1]d
route replace 2001:db8:b::/64 dev b0 proto kernel metric 256 mtu lock %[1]d
`, mtu))
}

// with adds keys to every child of the configuration.
func (d *postern) with(c spec, keys string) *postern {
	d.write(strings.ReplaceAll(d.toml(c), "\nstart_action = ", "\n"+keys+"\nstart_action = "))
	return d
}

// grown waits until a counter is at least n.
func (d *postern) grown(name string, n int) bool {
	return eventually(20*time.Second, func() bool { return d.counters()[name] >= n })
}

// tooBig sends gateway A an ICMP message as of a router in wan about a packet of A's in ESP.
func (s *site) tooBig(spi uint32, from, to netip.Addr, mtu uint16) {
	s.t.Helper()
	quoted := make([]byte, 28)
	quoted[0], quoted[8], quoted[9] = 0x45, 64, 50
	binary.BigEndian.PutUint16(quoted[2:], 1400)
	copy(quoted[12:], from.AsSlice())
	copy(quoted[16:], to.AsSlice())
	binary.BigEndian.PutUint32(quoted[20:], spi)
	b := append([]byte{3, 4, 0, 0, 0, 0, byte(mtu >> 8), byte(mtu)}, quoted...)
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[2:], ^uint16(sum))
	if err := inNamespace(s.wan, func() error {
		c, err := net.ListenIP("ip4:icmp", nil)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.WriteToIP(b, &net.IPAddr{IP: gwA4.AsSlice()})
		return err
	}); err != nil {
		s.t.Fatalf("ICMP from wan: %v", err)
	}
}

// A router in the middle takes packets of 1300 octets. TCP, whose packets have DF, passes with MSS
// clamping and without, large datagrams without DF arrive, and what somebody forges changes
// nothing.
func TestPathMTU(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name           string
		outer6, inner6 bool
		encap          bool
		keys           string
		mode, ah       string
	}{
		{name: "ESP", keys: "mss = 0"},
		{name: "ESP clamped"},
		{name: "ESP cut after", keys: "mss = 0\nfragment = \"after\""},
		{name: "UDP", encap: true, keys: "mss = 0"},
		{name: "ESP IPv6", outer6: true, inner6: true, keys: "mss = 0"},
		{name: "UDP IPv4 in IPv6", outer6: true, encap: true},
		{name: "ESP transport", mode: "transport", keys: "mss = 0"},
		{name: "AH tunnel", ah: "sha256"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ready(t, pair{"postern", "postern"}, "iperf3")
			s := newSite(t)
			s.narrow(1300)
			ca, cb := pairSpecs(c.outer6, c.inner6)
			both(&ca, &cb, func(n *conn) {
				n.encap = c.encap
				ch := &n.children[0]
				if ch.mode, ch.ah = c.mode, c.ah; c.mode != "" {
					ch.localTS, ch.remoteTS = []string{"dynamic"}, []string{"dynamic"}
				}
			})
			b, a := newPostern(s, 'b', cb).with(cb, c.keys), newPostern(s, 'a', ca).with(ca, c.keys)
			b.start()
			a.start()
			mustInitiate(t, "net", a, b)
			to, from, nsA, nsB := hostB4, hostA4, s.lanA, s.lanB
			switch {
			case c.inner6:
				to, from = hostB6, hostA6
			case c.mode != "":
				to, from, nsA, nsB = gwB4, gwA4, s.gwA, s.gwB
			}
			if err := s.tcpBetween(nsA, nsB, to); err != nil {
				t.Fatalf("TCP: %v\n%v\n%v%s", err, a.counters(), b.counters(), logs(a, b))
			}
			if !a.grown("icmp_too_big", 1) { // the hosts behind B know it from the connection's own MSS
				t.Errorf("nobody has learned of the path: %v%s", a.counters(), logs(a, b))
			}
			if clamped := a.counters()["mss_clamped"] > 0; clamped != !strings.Contains(c.keys, "mss = 0") {
				t.Errorf("MSS was clamped: %v", clamped)
			}
			for _, d := range []*postern{a, b} {
				if n := d.counters()["out_drop_send_error"]; n > 0 {
					t.Errorf("%d packets could not be sent%s", n, logs(d))
				}
			}
			if c.mode != "" {
				return // it takes whole packets alone
			}
			// The hosts have learned, too.
			for _, lan := range []string{nsA, nsB} {
				for _, family := range []string{"-4", "-6"} {
					_, _ = command("ip", "-n", lan, family, "route", "flush", "cache")
				}
			}
			// In IPv6 nobody cuts on the way: who has not learned yet loses what is too long.
			large, may := echoOptions{size: 4000, wait: 10 * time.Second}, 0
			if c.outer6 {
				large.wait, large.every, may = 4*time.Second, 100*time.Millisecond, 3
			}
			if r := s.pings(nsA, to, 6, large); r.lost() > may {
				t.Errorf("4000 octets: %v\n%v\n%v%s", r, a.counters(), b.counters(), logs(a, b))
			}
			if r := s.pings(nsB, from, 6, large); r.lost() > may {
				t.Errorf("4000 octets back: %v\n%v\n%v%s", r, a.counters(), b.counters(), logs(a, b))
			}
			if c.outer6 || c.encap || c.ah != "" {
				return
			}
			was := a.counters()
			if was["out_cut_before"] > 0 == strings.Contains(c.keys, "after") || was["out_cut_after"] > 0 != strings.Contains(c.keys, "after") {
				t.Errorf("%d packets were cut before they were sealed, %d after", was["out_cut_before"], was["out_cut_after"])
			}
			spi := a.outboundSPI()
			for _, forged := range []struct {
				spi      uint32
				from, to netip.Addr
			}{{spi + 1, gwA4, gwB4}, {spi, gwA4, wanB4}, {spi, hostA4, gwB4}} {
				s.tooBig(forged.spi, forged.from, forged.to, 700)
			}
			if !a.grown("icmp_drop_forged", was["icmp_drop_forged"]+3) {
				t.Errorf("what was forged is not counted: %v%s", a.counters(), logs(a))
			}
			if now := a.counters()["icmp_too_big"]; now != was["icmp_too_big"] {
				t.Errorf("what was forged is followed%s", logs(a))
			}
			s.tooBig(spi, gwA4, gwB4, 900)
			if !a.grown("icmp_too_big", was["icmp_too_big"]+1) {
				t.Errorf("what shows a packet of an SA is not followed: %v%s", a.counters(), logs(a))
			}
			if err := s.tcpBetween(s.lanA, s.lanB, to); err != nil {
				t.Errorf("TCP with 900 octets: %v%s", err, logs(a, b))
			}
		})
	}
}

// outboundSPI is the SPI of the one CHILD SA through which the daemon sends.
func (d *postern) outboundSPI() uint32 {
	d.t.Helper()
	out, err := d.cli("status", "--json")
	_, text, ok := strings.Cut(out, `"spi_out": "`)
	var spi uint32
	if _, serr := fmt.Sscanf(text, "%08x", &spi); err != nil || !ok || serr != nil {
		d.t.Fatalf("postern status does not tell the SPI: %v, %v\n%s", err, serr, out)
	}
	return spi
}

// strongSwan's ESP in user space knows no path MTU. What we clamp and tell is enough for both
// directions.
func TestPathMTUFacingCharon(t *testing.T) {
	p := pair{"postern", "charon"}
	ready(t, p, "iperf3")
	s := newSite(t)
	s.narrow(1300)
	ca, cb := pairSpecs(false, false)
	both(&ca, &cb, func(n *conn) { n.encap = true })
	a, b := startPair(s, p, ca, cb)
	mustInitiate(t, "net", a, b)
	if err := s.tcpBetween(s.lanA, s.lanB, hostB4); err != nil {
		t.Fatalf("TCP: %v%s", err, logs(a, b))
	}
	if d := a.(*postern); !d.grown("icmp_too_big", 1) || d.counters()["mss_clamped"] == 0 {
		t.Errorf("the path was not learned, or no MSS clamped: %v%s", d.counters(), logs(a, b))
	}
	// What charon sends is cut by its kernel once that has learned the path, from the first answers.
	if r := s.pings(s.lanA, hostB4, 8, echoOptions{size: 4000, every: 100 * time.Millisecond, wait: 4 * time.Second}); r.lost() > 3 {
		t.Errorf("4000 octets: %v%s", r, logs(a, b))
	}
}
