//go:build linux

package vm

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
)

const frrDir = "/usr/lib/frr/"

// TestNHRPThroughPostern is a dynamic multipoint network (FRR's nhrpd with GRE, as in Linux) of a
// hub and two spokes. nhrpd has postern make SAs in transport mode when it needs them, by the
// control protocol that it speaks with charon: the spokes register with the hub through them, and
// one comes back after postern there was killed.
func TestNHRPThroughPostern(t *testing.T) {
	for _, name := range []string{frrDir + "zebra", frrDir + "nhrpd", "/bin/busybox"} {
		if _, err := os.Stat(name); err != nil {
			lacks(t, "%s is not installed; apt-get install frr busybox-static", name)
		}
	}
	shell, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	sc := scene{Name: "NHRP", Watch: "w", Hidden: []byte{syscall.IPPROTO_GRE}, Files: map[string]file{
		"/bin/sh":     {0o755, shell},
		"/etc/passwd": {0o644, []byte("root:x:0:0::/:/bin/sh\nfrr:x:92:92::/:/bin/sh\n")},
		"/etc/group":  {0o644, []byte("root:x:0:\nfrr:x:92:\nfrrvty:x:93:frr,root\n")},
		// Folders that have to be there.
		"/var/run/frr/none": {0o644, nil}, "/var/tmp/frr/none": {0o644, nil},
	}}
	var setup, wan strings.Builder
	setup.WriteString("netns add w\n")
	wan.WriteString("link set lo up\nlink add bridge type bridge\nlink set bridge up\n")
	const nodes = 3
	for i := 1; i <= nodes; i++ {
		ns, dir := fmt.Sprintf("n%d", i), fmt.Sprintf("/run/n%d", i)
		fmt.Fprintf(&setup, "netns add %[1]s\nlink add eth0 netns %[1]s type veth peer name to-%[1]s netns w\n", ns)
		fmt.Fprintf(&wan, "link set to-%[1]s master bridge\nlink set to-%[1]s up\n", ns)
		toml := fmt.Sprintf("[daemon]\nboard = \"small\"\ncontrol = %q\nstate_dir = %q\n", dir+"/charon.vici", dir+"/state")
		// No "tunnel source": it binds the GRE device to the WAN's, and what is bound to a device does
		// not ask the rules by which packets come to postern.
		nhrp := []string{"debug nhrp all", "interface mgre0", "ip nhrp network-id 1",
			"ip nhrp registration no-unique", "ip nhrp holdtime 60", "tunnel protection vici profile dmvpn"}
		// The first of the hub's peers is unknown: one connection is for all of them.
		peers := []int{0}
		if i > 1 {
			nhrp = append(nhrp, "ip nhrp nhs 10.255.0.1 nbma 192.0.2.1")
			peers = []int{5 - i, 1} // the wrong one first: what nhrpd wants is between two addresses
		}
		for _, p := range peers {
			name, remote, id := "spokes", "", ""
			if p != 0 {
				name, remote = fmt.Sprintf("to-%d", p), fmt.Sprintf("remote_addrs = [\"192.0.2.%d\"]\n", p)
				id = fmt.Sprintf("remote.id = \"n%d.example\"\n", p)
			}
			toml += fmt.Sprintf("[connections.%s]\nlocal_addrs = [\"192.0.2.%d\"]\n%slocal.id = \"n%d.example\"\n%s"+
				"[connections.%s.children.dmvpn]\nmode = \"transport\"\nlocal_ts = [\"dynamic[gre]\"]\nremote_ts = [\"dynamic[gre]\"]\nstart_action = \"none\"\n",
				name, i, remote, i, id, name)
		}
		toml += "[secrets.all]\nsecret = \"a secret that all of them know\"\n"
		sc.Files[dir+"/postern.toml"] = file{0o600, []byte(toml)}
		sc.Files[dir+"/bin/ipsec"] = file{0o755, []byte("#!/bin/sh\necho " + dir + "\n")} // nhrpd asks it for the socket's directory
		sc.Setup = append(sc.Setup, step{ns, fmt.Sprintf("link set lo up\nlink set eth0 up\naddr add 192.0.2.%[1]d/24 dev eth0\n"+
			"link add mgre0 type gre local 192.0.2.%[1]d key 42 ttl 64\nlink set mgre0 up mtu 1300\naddr add 10.255.0.%[1]d/32 dev mgre0\n", i)})
		frr := func(d string) service {
			return service{NS: ns, Env: []string{"PATH=" + dir + "/bin:/bin"}, Ready: dir + "/" + d + ".vty", Args: []string{"/bin/" + d,
				"-f", "/dev/null", "-P", "0", "-u", "root", "-g", "root", "-z", dir + "/zserv", "-i", dir + "/" + d + ".pid",
				"--vty_socket", dir, "--log", "stdout", "--log-level", "debug"}}
		}
		sc.Services = append(sc.Services, service{NS: ns, Args: []string{"/postern", "run", "-c", dir + "/postern.toml"}, Ready: dir + "/charon.vici"},
			frr("zebra"), frr("nhrpd"))
		sc.Services[len(sc.Services)-1].Lines = nhrp
	}
	sc.Setup = append([]step{{"", setup.String()}, {"w", wan.String()}}, sc.Setup...)
	ping := func(name string, from, to int, restart ...int) {
		addr := func(n int) string { return fmt.Sprintf("10.255.0.%d", n) }
		sc.Checks = append(sc.Checks, check{Name: name, NS: fmt.Sprintf("n%d", from), From: addr(from), To: addr(to), Restart: restart,
			Control: fmt.Sprintf("/run/n%d/charon.vici", from), Between: [2]string{fmt.Sprintf("192.0.2.%d/32[gre]", from), fmt.Sprintf("192.0.2.%d/32[gre]", to)}})
	}
	ping("a spoke registers with the hub", 2, 1)
	ping("the other does, too", 3, 1)
	ping("the hub finds the spoke", 1, 3)
	ping("a spoke comes back after postern was killed", 2, 1, 3)

	p := plan{Scenes: []scene{sc}, programs: []string{frrDir + "zebra", frrDir + "nhrpd"}}
	passed, failed, console := boot(t, p, strings.Fields(modules+" bridge ip_gre gre af_packet nfnetlink nfnetlink_log"))
	for name, why := range failed {
		t.Errorf("%s: %s", name, why)
	}
	if want := len(sc.Checks) + 1; len(passed) != want {
		t.Errorf("%d of %d passed: %q", len(passed), want, passed)
	}
	if t.Failed() {
		t.Logf("the console:\n%s", console[max(0, len(console)-40000):])
	}
	fmt.Printf("virtual machine: %s\n", strings.Join(passed, "; "))
}
