package ike

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// pcapIP is a recording whose packets begin with the IP header.
func pcapIP() []byte {
	b := binary.LittleEndian.AppendUint32(nil, 0xa1b2c3d4)
	b = append(b, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, 65535)
	return binary.LittleEndian.AppendUint32(b, 101)
}

// record appends a datagram of IKE over IPv4.
func record(b []byte, p Path, data []byte) []byte {
	n := 20 + 8 + len(data)
	for _, v := range []int{1, 0, n, n} {
		b = binary.LittleEndian.AppendUint32(b, uint32(v))
	}
	b = append(b, 0x45, 0, byte(n>>8), byte(n), 0, 0, 0, 0, 64, 17, 0, 0)
	b = append(b, p.Local.Addr().AsSlice()...)
	b = append(b, p.Remote.Addr().AsSlice()...)
	for _, v := range []uint16{p.Local.Port(), p.Remote.Port(), uint16(n - 20), 0} {
		b = binary.BigEndian.AppendUint16(b, v)
	}
	return append(b, data...)
}

// An independent program reads our fragments, decrypts them and puts them together.
func TestTsharkReadsOurFragments(t *testing.T) {
	tshark, err := exec.LookPath("tshark")
	if err != nil {
		t.Skip("tshark is not here; apt-get install tshark")
	}
	for _, c := range [][3]string{
		{"aes128gcm16-prfsha256-x25519", "AES-GCM-128 with 16 octet ICV [RFC5282]", "NONE [RFC4306]"},
		{"aes256-sha256-x25519", "AES-CBC-256 [RFC3602]", "HMAC_SHA2_256_128 [RFC4868]"},
	} {
		p := newPair(t, wideChild(40, func(a, b *Conn) {
			fragmentSizes(400, 400)(a, b)
			a.Proposals = mustProposals(t, ProtoIKE, c[0])
			b.Proposals = a.Proposals
		}))
		pcap := pcapIP()
		var want []string
		for _, h := range []*host{p.a, p.b} {
			h.mangle = func(o *Output) bool {
				pcap = record(pcap, o.Path, o.Data)
				if hd, _, number, total := partOf(t, o.Data); number > 0 {
					want = append(want, fmt.Sprintf("%d|%d|%d|%d", hd.ID, hd.Flags, number, total))
				}
				return true
			}
		}
		p.up()
		p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: 2, Conn: "link", Child: "net"})
		p.run()
		p.done(p.a, 2, nil)
		file := filepath.Join(t.TempDir(), "ike.pcap")
		if err := os.WriteFile(file, pcap, 0o600); err != nil {
			t.Fatal(err)
		}
		sa := &p.a.m.sas[0]
		keys := fmt.Sprintf(`uat:ikev2_decryption_table:%016x,%016x,%x,%x,"%s",%x,%x,"%s"`,
			sa.spiI, sa.spiR, sa.keys.ei, sa.keys.er, c[1], sa.keys.ai, sa.keys.ar, c[2])
		read := func(args ...string) []string {
			out, err := exec.Command(tshark, append([]string{"-n", "-r", file, "-o", keys, "-T", "fields", "-E", "separator=|"}, args...)...).Output()
			if err != nil {
				t.Fatalf("tshark: %v: %s", err, err.(*exec.ExitError).Stderr)
			}
			return strings.Fields(string(out))
		}
		got := read("-Y", "isakmp.frag.number", "-e", "isakmp.messageid", "-e", "isakmp.flags", "-e", "isakmp.frag.number", "-e", "isakmp.frag.total")
		for i := range got { // hexadecimal to decimal
			var id, flags, number, total int
			_, _ = fmt.Sscanf(strings.ReplaceAll(got[i], "|", " "), "%v %v %v %v", &id, &flags, &number, &total)
			got[i] = fmt.Sprintf("%d|%d|%d|%d", id, flags, number, total)
		}
		if !slices.Equal(got, want) || len(want) < 8 {
			t.Errorf("%s: tshark reads the fragments %v, want %v", c[0], got, want)
		}
		// In the last fragment of each message it shows the whole.
		whole := read("-Y", "isakmp.reassembled.length", "-e", "isakmp.exchangetype", "-e", "isakmp.flag_r", "-e", "isakmp.fragment.count", "-e", "isakmp.ts.number")
		if len(whole) != 4 {
			t.Errorf("%s: tshark puts %d messages together, want IKE_AUTH and CREATE_CHILD_SA in both directions: %v", c[0], len(whole), whole)
		}
		for _, w := range whole {
			if !strings.HasSuffix(w, "|40,40") {
				t.Errorf("%s: in a message that tshark puts together it sees %s, want two payloads of 40 selectors", c[0], w)
			}
		}
		if bad := read("-Y", "isakmp.fragment_number.invalid || _ws.malformed || _ws.expert.severity >= 0x600000", "-e", "frame.number", "-e", "_ws.expert.message"); len(bad) != 0 {
			t.Errorf("%s: tshark finds fault with %v", c[0], bad)
		}
	}
}
