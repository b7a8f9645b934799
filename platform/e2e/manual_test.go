//go:build linux

package e2e

import (
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// manualPair starts postern at both gateways with manual SAs. The format gets, in this order: our and
// the peer's address, our and the peer's LAN, our and the peer's SPI, our and the peer's digit of keys.
func manualPair(s *site, form string) (a, b *postern) {
	s.t.Helper()
	a, b = newPostern(s, 'a', spec{}), newPostern(s, 'b', spec{})
	a.write(a.toml(spec{}) + fmt.Sprintf(form, gwA4, gwB4, lanA4, lanB4, 0x1001, 0x1002, "1", "2"))
	b.write(b.toml(spec{}) + fmt.Sprintf(form, gwB4, gwA4, lanB4, lanA4, 0x1002, 0x1001, "2", "1"))
	a.start()
	b.start()
	return a, b
}

// manualForm is a manual SA with the suite, 16 octets of integrity key and the octets given of
// cipher key, and more lines.
func manualForm(suite string, encr int, more string) string {
	form := "\n[manual.net]\nlocal_addrs = [\"%[1]s\"]\nremote_addrs = [\"%[2]s\"]\nlocal_ts = [\"%[3]s\", \"239.1.2.3\"]\nremote_ts = [\"%[4]s\", \"239.1.2.3\"]\nspi_in = %[5]d\nspi_out = %[6]d\n" + more
	form += fmt.Sprintf("\nesp_proposals = [%q]\n", suite)
	for i, dir := range []string{"in", "out"} {
		key := func(n int) string { return "\"0x" + strings.Repeat(fmt.Sprintf("%%[%d]s", 7+i), 2*n) + "\"\n" }
		form += "encr_key_" + dir + " = " + key(encr)
		if strings.Contains(suite, "-sha") {
			form += "integ_key_" + dir + " = " + key(32)
		}
	}
	return form
}

// Manual SAs carry the traffic of two LANs and of a group, are seen by swanctl, and change with a
// reload.
func TestManualSAs(t *testing.T) {
	t.Parallel()
	need(t, "swanctl")
	s := newSite(t)
	a, b := manualPair(s, manualForm("aes128-sha256", 16, ""))
	w := s.capture()
	if r := s.pings(s.lanA, hostB4, 5); r.lost() > 0 {
		t.Fatalf("%v%s", r, logs(a, b))
	}
	if r := s.pings(s.lanB, hostA4, 5); r.lost() > 0 {
		t.Errorf("back: %v%s", r, logs(a, b))
	}
	out, err := command("swanctl", "--list-sas", "--uri", a.control())
	for _, want := range []string{"manual: #0, ESTABLISHED, IKEv0", "net: #0, reqid 1, INSTALLED, TUNNEL, ESP:AES_CBC-128/HMAC_SHA2_256_128", "in  00001001", "out 00001002"} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("swanctl --list-sas: %v: no %q in\n%s", err, want, out)
		}
	}
	out, err = a.cli("status")
	if err != nil || !strings.Contains(out, "manual") || !strings.Contains(out, "INSTALLED") || strings.Contains(out, "not in the configuration") {
		t.Errorf("status: %v: %s", err, out)
	}
	if err := s.group(s.gwA, s.gwB, [4]byte{}); err != nil {
		t.Errorf("to the group: %v%s", err, logs(a, b))
	}
	if err := s.group(s.gwA, s.gwB, [4]byte{10, 1, 0, 1}); err != nil {
		t.Errorf("to the group: %v%s", err, logs(a, b))
	}
	if err := s.group(s.gwB, s.gwA, [4]byte{10, 2, 0, 1}); err != nil {
		t.Errorf("to the group and back: %v%s", err, logs(a, b))
	}
	got := w.stop()
	got.nothingInClear(t, []byte(mark), []byte(groupText))
	got.uniqueSequence(t)

	// Other keys at one end: nothing passes until the other end has them, too.
	form := manualForm("aes256-sha256", 32, "")
	a.write(a.toml(spec{}) + fmt.Sprintf(form, gwA4, gwB4, lanA4, lanB4, 0x1001, 0x1002, "3", "4"))
	b.write(b.toml(spec{}) + fmt.Sprintf(form, gwB4, gwA4, lanB4, lanA4, 0x1002, 0x1001, "4", "3"))
	for i, d := range []*postern{a, b} {
		if out, err := command("swanctl", "--reload-settings", "--uri", d.control()); err != nil {
			t.Errorf("reload: %v: %s", err, out)
		}
		if r := s.pings(s.lanA, hostB4, 3); i == 0 && r.lost() != 3 || i == 1 && r.lost() > 0 {
			t.Errorf("%d ends with the new keys: %v%s", i+1, r, logs(a, b))
		}
	}
}

// A counter mode under static keys sends no number twice, whatever ends the daemon, and its peer
// takes what comes after.
func TestManualCounterModeSurvivesKills(t *testing.T) {
	t.Parallel()
	need(t, "swanctl")
	s := newSite(t)
	a, b := manualPair(s, manualForm("aes128gcm16-esn", 20, "keep_sequence = true"))
	w := s.capture()
	for i, end := range []func(){func() {}, a.kill, b.kill, func() { a.stop() }, a.kill} {
		end()
		for _, d := range []*postern{a, b} {
			if !d.alive() {
				d.start()
			}
		}
		if r := s.pings(s.lanA, hostB4, 4); r.lost() > 0 {
			t.Fatalf("after %d ends: %v%s", i, r, logs(a, b))
		}
	}
	got := w.stop()
	got.uniqueSequence(t)
	got.nothingInClear(t, []byte(mark))
}

const groupText = "what the group is told"

// group sends from one namespace to the group, which a program in the other has joined on the
// tunnel's device, until it arrives. Without an address the sender leaves everything to the routes. A
// socket that is bound to one has to name the device, as programs for groups do: else the system
// takes the device that has the address, whatever the routes say.
func (s *site) group(from, to string, src [4]byte) error {
	group := [4]byte{239, 1, 2, 3}
	var rx int
	err := inNamespace(to, func() (err error) {
		if rx, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		dev, err := net.InterfaceByName("postern0")
		if err != nil {
			return err
		}
		if err := unix.Bind(rx, &unix.SockaddrInet4{Port: 5004, Addr: group}); err != nil {
			return err
		}
		return unix.SetsockoptIPMreqn(rx, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, &unix.IPMreqn{Multiaddr: group, Ifindex: int32(dev.Index)})
	})
	if err != nil {
		return err
	}
	defer unix.Close(rx)
	var tx int
	err = inNamespace(from, func() (err error) {
		if tx, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil || src == [4]byte{} {
			return err
		}
		dev, err := net.InterfaceByName("postern0")
		if err != nil {
			return err
		}
		if err := unix.Bind(tx, &unix.SockaddrInet4{Addr: src}); err != nil {
			return err
		}
		return unix.SetsockoptIPMreqn(tx, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(dev.Index)})
	})
	if err != nil {
		return err
	}
	defer unix.Close(tx)
	buf := make([]byte, 100)
	if eventually(20*time.Second, func() bool {
		err = unix.Sendto(tx, []byte(groupText), 0, &unix.SockaddrInet4{Port: 5004, Addr: group})
		n, _, rerr := unix.Recvfrom(rx, buf, syscall.MSG_DONTWAIT)
		return rerr == nil && string(buf[:n]) == groupText
	}) {
		return nil
	}
	return fmt.Errorf("nothing has arrived in 20 s: %v", err)
}
