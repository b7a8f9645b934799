//go:build linux

package vm

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
)

// algorithm is a suite as the configuration and as "ip xfrm" have it.
type algorithm struct {
	name       string
	encr       string // ip's words before the key; "": AH
	encrLen    int    // octets of key, with the salt
	tag        string // what follows the key of an AEAD
	integ      string
	integLen   int
	trunc      int // bits of ICV
	staticSafe bool
}

var integs = []algorithm{
	{name: "sha1", integ: "hmac(sha1)", integLen: 20, trunc: 96},
	{name: "sha256", integ: "hmac(sha256)", integLen: 32, trunc: 128},
	{name: "sha384", integ: "hmac(sha384)", integLen: 48, trunc: 192},
	{name: "sha512", integ: "hmac(sha512)", integLen: 64, trunc: 256},
	{name: "aesxcbc", integ: "xcbc(aes)", integLen: 16, trunc: 96},
	{name: "aescmac", integ: "cmac(aes)", integLen: 16, trunc: 96},
}

// ciphers lists the suites of ESP that both have.
func ciphers() (list []algorithm) {
	with := func(name, encr string, n int, i algorithm, safe bool) {
		i.name, i.encr, i.encrLen, i.staticSafe = name+"-"+i.name, encr, n, safe
		list = append(list, i)
	}
	with("aes128", "enc cbc(aes)", 16, integs[0], true)
	with("aes256", "enc cbc(aes)", 32, integs[1], true)
	with("aes192", "enc cbc(aes)", 24, integs[2], true)
	with("aes256", "enc cbc(aes)", 32, integs[3], true)
	with("aes128", "enc cbc(aes)", 16, integs[4], true)
	with("aes128", "enc cbc(aes)", 16, integs[5], true)
	with("null", "enc ecb(cipher_null)", 0, integs[1], true)
	with("aes256ctr", "enc rfc3686(ctr(aes))", 36, integs[1], false)
	for _, a := range []struct {
		name, kernel string
		n, bits      int
	}{
		{"aes128ccm8", "rfc4309(ccm(aes))", 19, 64}, {"aes192ccm12", "rfc4309(ccm(aes))", 27, 96}, {"aes256ccm16", "rfc4309(ccm(aes))", 35, 128},
		{"aes128gcm8", "rfc4106(gcm(aes))", 20, 64}, {"aes192gcm12", "rfc4106(gcm(aes))", 28, 96}, {"aes256gcm16", "rfc4106(gcm(aes))", 36, 128},
		{"aes128gmac", "rfc4543(gcm(aes))", 20, 128}, {"chacha20poly1305", "rfc7539esp(chacha20,poly1305)", 36, 128},
	} {
		list = append(list, algorithm{name: a.name, encr: "aead " + a.kernel, encrLen: a.n, tag: fmt.Sprint(a.bits)})
	}
	return list
}

// sa is one pair of SAs between the two.
type sa struct {
	alg        algorithm
	mode       string
	v6, inner6 bool // outside, and inside
	esn, encap bool
	proto      string // "": all
}

func (s *sa) ah() bool { return s.alg.encr == "" }

func (s *sa) String() string {
	words := []string{"ESP", s.mode, s.alg.name, family(s.v6)}
	if s.ah() {
		words[0] = "AH"
	}
	if s.inner6 != s.v6 {
		words = append(words, "around "+family(s.inner6))
	}
	if s.esn {
		words = append(words, "ESN")
	}
	if s.encap {
		words = append(words, "in UDP")
	}
	if s.proto != "" {
		words = append(words, "protocol "+s.proto)
	}
	return strings.Join(words, " ")
}

func family(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}

// coverage returns the SAs to try: every algorithm meets every mode and both families, and with
// them ESN and UDP encapsulation by turns, so that each mode and family has all four of their
// combinations.
func coverage() (list []sa) {
	for m, mode := range []string{"tunnel", "transport", "beet"} {
		for a, alg := range ciphers() {
			for f := range 2 {
				turn := a + m + 2*f
				list = append(list, sa{alg: alg, mode: mode, v6: f == 1, inner6: f == 1, esn: turn&1 == 1, encap: (turn>>1+a>>2)&1 == 1})
			}
		}
		if mode != "transport" {
			for f := range 2 {
				list = append(list, sa{alg: ciphers()[1], mode: mode, v6: f == 1, inner6: f == 0, encap: f == 0},
					sa{alg: ciphers()[13], mode: mode, v6: f == 1, inner6: f == 0, esn: true})
			}
		}
	}
	for m, mode := range []string{"tunnel", "transport"} {
		for a, alg := range integs {
			for f := range 2 {
				list = append(list, sa{alg: alg, mode: mode, v6: f == 1, inner6: f == 1, esn: (a+m+f)&1 == 1})
			}
		}
	}
	return list
}

// network writes what both ends need of one phase.
type network struct {
	x, p, toml strings.Builder // batches, and the configuration
	state      []byte          // sequence numbers that have been used
	cases      []vmCase
}

// Numbers just below 2^32, so that those with ESN go beyond it.
const (
	seqTop  = 0xffffffe0 // the windows have seen up to this
	seqLast = 0xfffffff0 // the senders have sent this
)

func (n *network) addr(pool string, i int, v6 bool, host int) string {
	if v6 {
		return fmt.Sprintf("fd00:%s::%x:%d", pool, i, host)
	}
	return fmt.Sprintf("10.%s.%d.%d", pool, i, host)
}

// keys returns the keys of a direction.
func (s *sa) keys(i int, dir string) (encr, integ []byte) {
	make := func(what string, n int) (out []byte) {
		for len(out) < n {
			h := sha256.Sum256(fmt.Appendf(nil, "%s %s %d %s %d", s, what, i, dir, len(out)))
			out = append(out, h[:]...)
		}
		return out[:n]
	}
	return make("encr", s.alg.encrLen), make("integ", s.alg.integLen)
}

// add lays out the i-th SA: x is the end of XFRM, p that of postern, which has one address outside
// and one inside for each family. It returns the outer addresses.
func (n *network) add(i int, s sa) (xo, po string) {
	xo, po = n.addr("0", i, s.v6, 1), n.addr("0", 0, s.v6, 2)
	xi, pi := xo, po
	bits, outer := "/32", "/16"
	if s.v6 {
		outer = "/64"
	}
	fmt.Fprintf(&n.x, "addr add %s%s dev x0%s\n", xo, outer, nodad(s.v6))
	if s.v6 {
		// A neighbour that has to be asked for would be asked through the SA.
		fmt.Fprintf(&n.p, "neigh add %s lladdr 02:00:00:00:00:01 dev p0 nud permanent\n", xo)
	}
	if s.mode != "transport" {
		xi, pi = n.addr("1", i, s.inner6, 1), n.addr("2", 0, s.inner6, 1)
		fmt.Fprintf(&n.x, "addr add %s dev lo%s\n", xi, nodad(s.inner6))
	}
	if s.inner6 {
		bits = "/128"
	}
	spiIn, spiOut := 0x1000+0x800*i, 0x900+i // as postern sees it; the first meet in one slot of its table
	keep := s.esn || !s.alg.staticSafe && !s.ah()

	protocol, flags := "esp", []string{}
	if s.ah() {
		if protocol = "ah"; !s.v6 {
			flags = append(flags, "align4")
		}
	}
	if s.esn {
		flags = append(flags, "esn")
	}
	if s.inner6 != s.v6 && s.mode == "tunnel" {
		flags = append(flags, "af-unspec")
	}
	fmt.Fprintf(&n.toml, "\n[manual.sa%d]\n# %s\nlocal_addrs = [%q]\nremote_addrs = [%q]\nspi_in = 0x%x\nspi_out = 0x%x\nmode = %q\n", i, &s, po, xo, spiIn, spiOut, s.mode)
	for _, d := range []struct {
		dir, src, dst, srcIn, dstIn string
		spi                         int
		seq                         string
	}{
		{"in", xo, po, xi, pi, spiIn, fmt.Sprintf("replay-oseq 0x%x", seqLast)},
		{"out", po, xo, pi, xi, spiOut, fmt.Sprintf("replay-seq 0x%x", seqTop)},
	} {
		encr, integ := s.keys(i, d.dir)
		fmt.Fprintf(&n.x, "xfrm state add src %s dst %s proto %s spi 0x%x reqid %d mode %s replay-window 64", d.src, d.dst, protocol, d.spi, i+1, s.mode)
		if s.esn {
			fmt.Fprintf(&n.x, " %s", d.seq)
		}
		if len(flags) > 0 {
			fmt.Fprintf(&n.x, " flag %s", strings.Join(flags, " "))
		}
		if s.alg.integ != "" {
			fmt.Fprintf(&n.x, " auth-trunc %s 0x%x %d", s.alg.integ, integ, s.alg.trunc)
			fmt.Fprintf(&n.toml, "integ_key_%s = \"0x%x\"\n", d.dir, integ)
		}
		if s.alg.encr != "" {
			key := fmt.Sprintf("0x%x", encr)
			if len(encr) == 0 {
				key = `""`
			} else {
				fmt.Fprintf(&n.toml, "encr_key_%s = \"0x%x\"\n", d.dir, encr)
			}
			fmt.Fprintf(&n.x, " %s %s %s", s.alg.encr, key, s.alg.tag)
		}
		if s.encap {
			n.x.WriteString(" encap espinudp 4500 4500 " + map[bool]string{false: "0.0.0.0", true: "::"}[s.v6])
		}
		if s.mode == "beet" {
			fmt.Fprintf(&n.x, " sel src %s%s dst %s%s", d.srcIn, bits, d.dstIn, bits)
		}
		n.x.WriteString("\n")
		sel := ""
		if s.proto != "" {
			sel = " proto " + s.proto
		}
		fmt.Fprintf(&n.x, "xfrm policy add src %s%s dst %s%s%s dir %s priority 10 tmpl src %s dst %s proto %s reqid %d mode %s\n",
			d.srcIn, bits, d.dstIn, bits, sel, map[string]string{"in": "out", "out": "in"}[d.dir], d.src, d.dst, protocol, i+1, s.mode)
		if s.encap && s.mode == "transport" && d.dir == "out" {
			// Or the policy would refuse the UDP around it; IKE daemons exempt their socket.
			fmt.Fprintf(&n.x, "xfrm policy add src %s dst %s proto 17 sport 4500 dport 4500 dir in priority 1 action allow\n", d.src, d.dst)
		}
		if s.esn {
			key, number := encr, uint64(seqTop)
			if len(key) == 0 {
				key = integ
			}
			if d.dir == "out" {
				number = seqLast
			}
			id := sha256.Sum256(append([]byte("postern sequence numbers"+d.dir[:1]), key...))
			n.state = binary.BigEndian.AppendUint64(append(n.state, id[:16]...), number)
		}
	}
	suite := s.alg.name
	if s.esn {
		suite += "-esn"
	}
	fmt.Fprintf(&n.toml, "%s_proposals = [%q]\n", protocol, suite)
	if s.encap {
		n.toml.WriteString("encap = true\n")
	}
	if keep {
		n.toml.WriteString("keep_sequence = true\n")
	} else {
		n.toml.WriteString("replay_window = 64\n")
	}
	ts := func(addr string) string {
		if s.proto != "" {
			addr += "[" + s.proto + "]"
		}
		return addr
	}
	fmt.Fprintf(&n.toml, "local_ts = [%q]\nremote_ts = [%q]\n", ts(pi), ts(xi))
	if s.proto == "" {
		n.cases = append(n.cases, vmCase{Name: s.String(), X: xi, P: pi, SA: fmt.Sprintf("sa%d", i)})
	}
	return xo, po
}

func nodad(v6 bool) string {
	if v6 {
		return " nodad"
	}
	return ""
}

// overlays adds tunnels of the kernels' own, in both namespaces, whose packets SAs in transport mode
// protect (RFC 4891).
func (n *network) overlays(i int) {
	gcm, cbc := ciphers()[13], ciphers()[1]
	for k, o := range []struct {
		s        sa
		link     string // with the local and the remote address in it
		v6, many bool
	}{
		{sa{alg: gcm, mode: "transport", proto: "47"}, "type gre local %s remote %s ttl 64", false, false},
		{sa{alg: cbc, mode: "transport", proto: "47"}, "type gre local %s key 7 ttl 64", false, true},
		{sa{alg: gcm, mode: "transport", proto: "41"}, "type sit local %s remote %s ttl 64", true, false},
		{sa{alg: integs[1], mode: "transport", proto: "41"}, "type sit local %s remote %s ttl 64", true, false},
	} {
		xo, po := n.add(i+k, o.s)
		dev := fmt.Sprintf("over%d", k)
		xi, pi, bits := fmt.Sprintf("10.9.%d.1", k), fmt.Sprintf("10.9.%d.2", k), "/24"
		if o.v6 {
			xi, pi, bits = fmt.Sprintf("fd09:%d::1", k), fmt.Sprintf("fd09:%d::2", k), "/64"
		}
		for _, end := range []struct {
			b                            *strings.Builder
			local, remote, inner, theirs string
		}{{&n.x, xo, po, xi, pi}, {&n.p, po, xo, pi, xi}} {
			args := []any{end.local, end.remote}
			if o.many {
				args = args[:1]
			}
			fmt.Fprintf(end.b, "link add %s "+o.link+"\nlink set %s up mtu 1300\naddr add %s%s dev %s%s\n",
				append(append([]any{dev}, args...), dev, end.inner, bits, dev, nodad(o.v6))...)
			if o.many { // whoever learns the way to the others, as NHRP does
				fmt.Fprintf(end.b, "neigh add %s lladdr %s dev %s nud permanent\n", end.theirs, end.remote, dev)
			}
		}
		name := map[bool]string{false: "GRE", true: "6in4"}[o.v6]
		if o.many {
			name = "mGRE"
		}
		n.cases = append(n.cases, vmCase{Name: name + " over " + o.s.String(), X: xi, P: pi, SA: fmt.Sprintf("sa%d", i+k)})
	}
}

// phase puts it together.
func (n *network) phase(name string) phase {
	dir := "/etc/postern-" + strings.ReplaceAll(name, " ", "-")
	state := dir + "/state"
	var x, p strings.Builder
	for f := range 2 {
		v6 := f == 1
		bits := map[bool]string{false: "/16", true: "/64"}[v6]
		fmt.Fprintf(&p, "addr add %s%s dev p0%s\naddr add %s dev lo%s\n", n.addr("0", 0, v6, 2), bits, nodad(v6), n.addr("2", 0, v6, 1), nodad(v6))
		fmt.Fprintf(&x, "addr add %s%s dev x0%s\nroute add %s dev x0\n", n.addr("0", 0, v6, 9), bits, nodad(v6), n.addr("2", 0, v6, 1))
	}
	fmt.Fprintf(&x, "neigh add %s lladdr 02:00:00:00:00:02 dev x0 nud permanent\n", n.addr("0", 0, true, 2))
	setup := []step{
		{"", "netns add x\nnetns add p\nlink add x0 netns x address 02:00:00:00:00:01 type veth peer name p0 netns p address 02:00:00:00:00:02\n"},
		{"x", "link set lo up\nlink set x0 up\n" + x.String() + n.x.String()},
		{"p", "link set lo up\nlink set p0 up\n" + p.String() + n.p.String()},
	}
	return phase{
		Name: name, Setup: setup, Cases: n.cases, Args: []string{"run", "-c", dir + "/postern.toml"},
		Files: map[string][]byte{
			dir + "/postern.toml": fmt.Appendf(nil, "[daemon]\nboard = \"large\"\nstate_dir = %q\n%s", state, n.toml.String()),
			state + "/manual.seq": append([]byte{1}, n.state...),
		},
	}
}

// Every mode and algorithm of Linux's XFRM, over both families, with and without ESN and UDP
// encapsulation, carries echoes, UDP and TCP to postern and back, under manual keys. Those with ESN
// pass the end of 32 bits on the way.
func TestEveryModeAndAlgorithmAgainstXFRM(t *testing.T) {
	var p plan
	list := coverage()
	for f := range 2 {
		var n network
		for _, s := range list {
			if s.v6 == (f == 1) {
				n.add(len(n.cases)+1, s)
			}
		}
		if f == 0 {
			n.overlays(len(n.cases) + 1)
		}
		p.Phases = append(p.Phases, n.phase("outside "+family(f == 1)))
	}
	p.Phases[1].Setup[0].Batch = "netns del x\nnetns del p\n" + p.Phases[1].Setup[0].Batch
	want := 0
	for _, ph := range p.Phases {
		want += len(ph.Cases)
	}
	passed, failed, console := boot(t, p, strings.Fields(modules))
	for name, why := range failed {
		t.Errorf("%s: %s", name, why)
	}
	if len(passed) != want {
		t.Errorf("%d of %d cases passed", len(passed), want)
	}
	if t.Failed() {
		t.Logf("the console:\n%s", console[max(0, len(console)-20000):])
	}
	fmt.Printf("virtual machine: %d of %d cases passed, each with echoes, UDP and TCP both ways\n", len(passed), want)
}

const modules = `tun veth dummy xfrm_user xfrm_algo xfrm_interface esp4 esp6 ah4 ah6 sit ip_gre tunnel4 tunnel6 xfrm4_tunnel xfrm6_tunnel
	gcm ccm ctr cbc ecb cmac xcbc hmac authenc authencesn echainiv seqiv crypto_null chacha20poly1305 chacha_generic poly1305_generic
	ghash-generic aes_generic sha1_generic sha256_generic sha512_generic drbg jitterentropy_rng ansi_cprng cryptd aesni-intel`
