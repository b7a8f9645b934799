//go:build linux

package vm

import (
	"fmt"
	"strings"
	"testing"
)

// openiked is a scene with OpenIKED's iked as the peer. Debian's speaks PF_KEY with the kernel, and
// is built so that of the ciphers for ESP only AES-CBC with HMAC-SHA1, -SHA2-384 or -SHA2-512 can be
// put there: AEADs are dropped from its configuration without a word, and SHA2-256 fails after it
// has answered that it takes it.
type openiked struct {
	*peers
	conf strings.Builder // iked.conf
}

func newOpeniked(t *testing.T) *openiked {
	k := &openiked{peers: newPeers(t, "iked")}
	k.conf.WriteString("set fragmentation\n")
	k.Files["/etc/passwd"] = file{0o644, []byte("root:x:0:0::/:/bin/sh\n_iked:x:130:130::/var/lib/openiked/empty:/bin/false\n")}
	k.Files["/etc/group"] = file{0o644, []byte("root:x:0:\n_iked:x:130:\n")}
	// Folders that have to be there.
	for _, name := range []string{"/var/run", "/var/lib/openiked/empty", "/etc/iked/crls", "/etc/iked/certs", "/etc/iked/pubkeys/fqdn"} {
		k.Files[name+"/none"] = file{Mode: 0o644}
	}
	k.Services[servicePeer] = service{NS: "b", Ready: "/var/run/iked.sock", Args: []string{"/bin/iked", "-d", "-v", "-f", "/etc/iked.conf"}}

	k.pki(t, "ca", "ca", "--dn", "O=Weir, CN=Weir CA")
	k.pki(t, "key", "local.key")
	k.copy(t, "/etc/iked/ca/ca.crt", "ca/ca.pem")
	k.copy(t, "/run/a/ca.pem", "ca/ca.pem")
	k.copy(t, "/etc/iked/private/local.key", "local.key")
	k.pki(t, "key", "local.key", "--public", "--out", "local.pub")
	k.copy(t, "/etc/iked/local.pub", "local.pub")
	return k
}

// policy is iked's side of a connection. What is left out: it waits for postern, in tunnel mode, for
// the IPv4 hosts behind both gateways, with iked's own proposals for IKE and AES-256 with
// HMAC-SHA2-512 for ESP; it is nN.peer and postern nN.postern, with the key of all.
type policy struct {
	active, transport bool
	flows             string // "from ... to ..."
	ikesa, childsa    string // algorithms
	ids               string // "srcid ... dstid ..."
	rest              string // what follows these
	address           string // "config ..." or "request ..."
	certificates      bool
}

// connection adds connection n on both sides.
func (k *openiked) connection(n int, conn, child string, p policy) {
	k.peers.connection(n, conn, child)
	local, peer := fmt.Sprintf("10.9.%d.2", n), fmt.Sprintf("10.9.%d.1", n)
	if strings.Contains(conn, "fd09:") {
		local, peer = fmt.Sprintf("fd09:%d::2", n), fmt.Sprintf("fd09:%d::1", n)
	}
	or := func(s, otherwise string) string {
		if s == "" {
			return otherwise
		}
		return s
	}
	words := []string{"ikev2", fmt.Sprintf("%q", fmt.Sprintf("n%d", n)), map[bool]string{true: "active"}[p.active],
		map[bool]string{true: "transport"}[p.transport], "esp", or(p.flows, fmt.Sprintf("from 10.2.%[1]d.1/32 to 10.1.%[1]d.1/32", n)),
		"local", local, "peer", peer, p.ikesa, "childsa", or(p.childsa, "enc aes-256 auth hmac-sha2-512"),
		or(p.ids, fmt.Sprintf("srcid n%[1]d.peer dstid n%[1]d.postern", n)), p.rest}
	if !p.certificates {
		words = append(words, "psk", fmt.Sprintf("%q", peerSecret))
	}
	k.conf.WriteString(strings.Join(append(words, p.address), " ") + "\n")
}

// certificates makes certificates of both sides for connection n, that of postern with a key of that
// kind, and returns the lines for postern.
func (k *openiked) certificates(t *testing.T, n int, kind string) string {
	t.Helper()
	ours, theirs := fmt.Sprintf("n%d.postern", n), fmt.Sprintf("n%d.peer", n)
	k.pki(t, "issue", ours+".key", "--new", "--type", kind, "--ca", "ca", "--san", ours, "--dn", "O=Weir, CN="+ours, "--out", ours+".pem")
	k.pki(t, "issue", "local.key", "--ca", "ca", "--san", theirs, "--dn", "O=Weir, CN="+theirs, "--out", theirs+".pem")
	k.copy(t, "/run/a/"+ours+".pem", ours+".pem")
	k.copy(t, "/run/a/"+ours+".key", ours+".key")
	k.copy(t, "/etc/iked/certs/"+theirs+".crt", theirs+".pem")
	return fmt.Sprintf("local.auth = \"pubkey\"\nlocal.certs = [\"/run/a/%[1]s.pem\"]\nlocal.key = \"/run/a/%[1]s.key\"\n"+
		"remote.auth = \"pubkey\"\nremote.cacerts = [\"/run/a/ca.pem\"]\nlocal.id = %[1]q\nremote.id = %[2]q\n", ours, theirs)
}

// said asks whether postern's log says that of a connection.
func said(conn, what string) ask { return says(servicePostern, "conn="+conn+" .*"+what) }

// up adds checks that postern brings up connection n, and that echoes pass both ways.
func (k *openiked) up(name string, n int) {
	k.upBetween(name, n, fmt.Sprintf("10.1.%d.1", n), fmt.Sprintf("10.2.%d.1", n))
}

func (k *openiked) upBetween(name string, n int, ours, theirs string) {
	k.add(check{Name: name + ": postern initiates", Do: [][]string{posternDoes("up", fmt.Sprintf("n%d", n), "--timeout", "50s")}})
	k.echoesBetween(name, ours, theirs)
}

func (k *openiked) run(t *testing.T) {
	k.Files["/etc/iked.conf"] = file{0o600, []byte(k.conf.String())}
	root := unpacked(t, "openiked", nil)
	k.peers.run(t, plan{plugins: []string{"/usr/lib/x86_64-linux-gnu/ossl-modules/legacy.so"}, programs: []string{root + "/usr/sbin/iked", root + "/usr/sbin/ikectl"}})
}

func ikectl(args ...string) []string {
	return append([]string{"/bin/ikectl"}, args...)
}

// TestPeerIked has postern and OpenIKED's iked make SAs with each other. What iked gets wrong is left
// out: it takes no certificates of intermediate authorities; after an INVALID_KE_PAYLOAD to its
// rekeying of a CHILD SA it names the SPI of the other direction, and to a new CHILD SA it rekeys the
// IKE SA; with several CHILD SAs each has all flows of the policy, and it sends through any of them;
// of public keys without certificates it knows other encodings than that of RFC 7670; IPv4 inside IPv6
// and the other way do not work with PF_KEY in Linux, nor does it change the addresses of an SA, so
// that after MOBIKE has moved the IKE SA the CHILD SAs stay behind until new ones are made.
func TestPeerIked(t *testing.T) {
	const esp = "esp_proposals = [\"aes256-sha512\"]\n"
	k := newOpeniked(t)

	k.connection(1, "", "", policy{active: true})
	// iked begins two seconds after it has its configuration; before that it forgets what others began.
	k.Checks = append(k.Checks, check{Name: "PSK: iked initiates", Patience: 60, Asks: []ask{{Args: posternDoes("status", "n1"), Want: `ESTABLISHED(.|\n)*INSTALLED`}}})
	k.echoes("PSK, by iked", 1)
	k.add(check{Name: "PSK: iked deletes", NS: "b", Patience: 60, Do: [][]string{ikectl("reset", "id", "FQDN/n1.postern")},
		Asks: []ask{{Args: posternDoes("status", "n1"), Never: "ESTABLISHED"}}})
	k.up("PSK", 1)
	k.add(check{Name: "PSK: postern deletes", NS: "b", Patience: 60, Do: [][]string{posternDoes("down", "n1")},
		Asks: []ask{{Args: ikectl("show", "sa"), Never: "n1.postern"}}})

	// Neither side's first group is the other's, in all exchanges.
	k.connection(2, "rekey_time = \"10s\"\nover_time = \"5m\"\nrand_time = \"1s\"\n", "esp_proposals = [\"aes256-sha512-ecp256-ecp384\"]\nrekey_time = \"6s\"\nlife_time = \"5m\"\nrand_time = \"1s\"\n",
		policy{ikesa: "ikesa enc aes-256 auth hmac-sha2-256 group ecp384", childsa: "enc aes-256 auth hmac-sha2-512 group ecp384"})
	k.up("another group", 2)
	k.connection(3, "proposals = [\"aes256gcm16-prfsha256-ecp521\"]\n", "esp_proposals = [\"aes256-sha512-modp2048\"]\n",
		policy{childsa: "enc aes-256 auth hmac-sha2-512 group modp2048", rest: "ikelifetime 14 lifetime 8"})
	k.up("rekeying by iked", 3)

	k.connection(4, k.certificates(t, 4, "rsa4096")+"fragment_size = 576\n", esp, policy{certificates: true})
	k.up("RSA, in fragments", 4)
	k.connection(5, k.certificates(t, 5, "p384"), esp, policy{certificates: true, active: true})
	k.echoes("ECDSA, by iked", 5)
	k.connection(6, k.certificates(t, 6, "rsa2048"), esp, policy{certificates: true, rest: "rsa"})
	k.up("RSA with SHA-1 for iked's part", 6)

	k.connection(7, "encap = true\nmobike = false\n", "esp_proposals = [\"aes128-sha1\"]\nmode = \"transport\"\nlocal_ts = [\"dynamic\"]\nremote_ts = [\"dynamic\"]\n",
		policy{transport: true, flows: "from 10.9.7.2/32 to 10.9.7.1/32", childsa: "enc aes-128 auth hmac-sha1"})
	k.upBetween("transport mode in UDP", 7, "10.9.7.1", "10.9.7.2")
	k.connection(8, "local_addrs = [\"fd09:8::1\"]\nremote_addrs = [\"fd09:8::2\"]\n", esp+"local_ts = [\"fd01:8::1/128\"]\nremote_ts = [\"fd02:8::1/128\"]\n",
		policy{flows: "from fd02:8::1/128 to fd01:8::1/128"})
	k.upBetween("IPv6", 8, "fd01:8::1", "fd02:8::1")

	// iked answers with all flows: one is narrower than what postern asks for, the other beside it.
	k.connection(9, "local.id = \"10.9.9.1\"\nremote.id = \"10.9.9.2\"\n", esp+"local_ts = [\"10.1.9.1/32\"]\nremote_ts = [\"10.2.9.0/24\"]\n",
		policy{ids: "srcid 10.9.9.2 dstid 10.9.9.1", flows: "from 10.2.9.1/32 to 10.1.9.0/24 from 10.2.109.1/32 to 10.1.9.1/32"})
	k.up("two flows", 9)

	k.connection(10, "vips = [\"10.3.10.7\"]\nlocal.id = \"device@n10.postern\"\nremote.id = \"n10.peer\"\n", esp+"local_ts = [\"dynamic\"]\nremote_ts = [\"10.2.10.1/32\"]\n",
		policy{ids: "srcid n10.peer dstid device@n10.postern", flows: "from 10.2.10.1/32 to dynamic", address: "config address 10.3.10.0/24 config name-server 10.2.10.1"})
	k.upBetween("an address for postern", 10, "10.3.10.7", "10.2.10.1")
	k.toml.WriteString("[pools.v4]\nleases = [\"n11.peer=10.4.11.7\"]\n")
	k.b.WriteString("link add dummy0 type dummy\nlink set dummy0 up\n")
	k.connection(11, "pools = [\"v4\"]\n", esp+"local_ts = [\"10.1.11.1/32\"]\nremote_ts = [\"dynamic\"]\n",
		policy{active: true, flows: "from dynamic to 10.1.11.1/32", address: "request address any iface dummy0"})
	k.echoesBetween("an address for iked", "10.1.11.1", "10.4.11.7")

	k.connection(12, "dpd_delay = \"2s\"\nretransmit_timeout = \"1s\"\nretransmit_tries = 2\n", esp+"start_action = \"start\"\n", policy{})
	k.echoes("postern starts", 12)
	k.connection(13, "", esp+"start_action = \"start\"\n", policy{active: true})
	k.echoes("both start", 13)

	k.connection(14, "local_addrs = [\"10.9.14.1\", \"10.9.14.3\"]\nremote_addrs = [\"10.9.14.2\"]\n", esp, policy{})
	k.a.WriteString("addr add 10.9.14.3/32 dev eth0\nroute add 10.9.14.2/32 dev eth0\n")
	k.up("MOBIKE", 14)
	k.add(check{Name: "MOBIKE: an address goes", NS: "a", Patience: 60, Do: [][]string{{"/bin/ip", "addr", "del", "10.9.14.1/24", "dev", "eth0"}},
		Asks: []ask{{Args: posternDoes("status", "n14"), Want: "10.9.14.3:4500"}, {Args: ikectl("show", "sa"), Want: "10.9.14.2:4500->10.9.14.3:4500"}}})

	k.add(check{Name: "rekeying", Patience: 60, Asks: []ask{said("n2", "IKE SA rekeyed"), said("n2", "CHILD SA rekeyed"), said("n3", "IKE SA rekeyed"), said("n3", "CHILD SA rekeyed")}})
	k.echoes("after rekeying by postern", 2)
	k.echoes("after rekeying by iked", 3)

	k.add(check{Name: "iked is killed", Restart: []int{servicePeer}})
	k.add(check{Name: "postern finds that iked was killed", Patience: 60, Asks: []ask{{Args: ikectl("show", "sa"), Want: "n12.postern"}}})
	k.echoes("after iked was killed", 12)
	k.add(check{Name: "postern is killed", Restart: []int{servicePostern}})
	k.echoes("after postern was killed", 12)
	k.run(t)
}
