package engine

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"postern/board"
	"postern/esp"
)

// nestGateways are two gateways: what the one sends, the other gets.
type nestGateways struct {
	from, to *testPath
	a, b     netip.Addr
	out, in  *ikeLoop
}

var (
	nestESP = esp.Suite{Encr: esp.EncrAESGCM16, KeyBits: 128}
	nestAH  = esp.Suite{Integ: esp.IntegHMACSHA256_128}
)

func nestSel(a netip.Addr, proto uint8) []esp.Selector {
	return []esp.Selector{{Proto: proto, EndPort: 65535, Start: a, End: a}}
}

// newNest has a tunnel "net" for everything, and policies that have AH of child "ah" go around it.
func newNest(t *testing.T, v6 bool) *nestGateways {
	t.Helper()
	n := &nestGateways{from: newTestPath(t, board.Small), to: newTestPath(t, board.Small)}
	n.a, n.b = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	if v6 {
		n.a, n.b = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	}
	n.out, n.in = &ikeLoop{d: n.from.datapath}, &ikeLoop{d: n.to.datapath}
	for i, tp := range []*testPath{n.from, n.to} {
		local, remote := n.a, n.b
		if i == 1 {
			local, remote = remote, local
		}
		ah := policySpec{Policy: esp.Policy{Action: esp.Protect, LocalTS: nestSel(local, esp.ProtoESP), RemoteTS: nestSel(remote, esp.ProtoESP)},
			conn: "c", child: "ah", wait: true, acquire: true}
		net := policySpec{Policy: esp.Policy{Action: esp.Protect, LocalTS: nestAll(), RemoteTS: nestAll()}, conn: "c", child: "net"}
		tp.spd.set([]policySpec{ah, net})
	}
	return n
}

func nestAll() []esp.Selector { return append(sel("0.0.0.0/0"), sel("::/0")...) }

// add installs an SA for the way from the one to the other.
func (n *nestGateways) add(t *testing.T, child string, sa esp.SA, ts func(a netip.Addr) []esp.Selector) (*outSA, *inSA) {
	t.Helper()
	spi, ok := n.to.sad.alloc()
	back, ok2 := n.from.sad.alloc()
	if !ok || !ok2 {
		t.Fatal("SAD is full")
	}
	e, i := sa.Suite.KeyLens()
	sa.SPI, sa.ReplayWindow = spi, 64
	sa.EncrKey, sa.IntegKey = bytes.Repeat([]byte{1}, e), bytes.Repeat([]byte{2}, i)
	sa.LocalTS, sa.RemoteTS = ts(n.a), ts(n.b)
	out, in := sa, sa
	out.Dir, out.Local, out.Remote = esp.Out, netip.AddrPortFrom(n.a, 4500), netip.AddrPortFrom(n.b, 4500)
	in.Dir, in.Local, in.Remote, in.LocalTS, in.RemoteTS = esp.In, out.Remote, out.Local, out.RemoteTS, out.LocalTS
	o, err := esp.NewOutbound(&out, n.from.outContexts())
	if err != nil {
		t.Fatal(err)
	}
	p, err := esp.NewInbound(&in, n.to.inContexts())
	if err != nil {
		t.Fatal(err)
	}
	osa := &outSA{spi: spi, proto: sa.Proto, inbound: back, out: o, localTS: out.LocalTS, remoteTS: out.RemoteTS, conn: "c", child: child}
	osa.path.Store(n.out.pathOf(sa.Proto, n.a, out.Remote, sa.Encap))
	if o.Limited() {
		osa.limits = new(limits)
	}
	if _, err := n.from.sad.addOut(osa); err != nil {
		t.Fatal(err)
	}
	n.from.spd.bind(osa)
	isa := &inSA{spi: spi, proto: sa.Proto, in: p, localTS: in.LocalTS, remoteTS: in.RemoteTS, conn: "c", child: child}
	isa.remote.Store(&in.Remote)
	isa.is.set(inEncap, sa.Encap)
	n.in.nestIn(isa, n.b)
	if err := n.to.sad.addIn(isa); err != nil {
		t.Fatal(err)
	}
	return osa, isa
}

func (n *nestGateways) addESP(t *testing.T, sa esp.SA) (*outSA, *inSA) {
	return n.add(t, "net", sa, func(netip.Addr) []esp.Selector { return nestAll() })
}

func (n *nestGateways) addAH(t *testing.T, child string, sa esp.SA) (*outSA, *inSA) {
	sa.Proto, sa.Mode = esp.AH, esp.Transport
	if sa.Suite == (esp.Suite{}) {
		sa.Suite = nestAH
	}
	return n.add(t, child, sa, func(a netip.Addr) []esp.Selector { return nestSel(a, esp.ProtoESP) })
}

// carry takes packets from the one to the other and returns what was on the wire.
func (n *nestGateways) carry(pkts ...[]byte) []esp.Datagram {
	for _, s := range n.from.fakes {
		s.sent = nil
	}
	n.from.send(pkts...)
	var all []esp.Datagram
	for s := sockNATT4; s < numSocks; s++ {
		for _, d := range n.from.fakes[s].datagrams() {
			all = append(all, d)
			n.deliver(s, d)
		}
	}
	return all
}

func (n *nestGateways) deliver(s sockID, d esp.Datagram) {
	port := d.Remote.Port()
	d.Local, d.Remote = n.b, netip.AddrPortFrom(n.a, port)
	n.to.receive(s, d)
}

// AH goes around ESP in one datagram, of one header, and the receiver takes both off.
func TestAHGoesAroundESP(t *testing.T) {
	worst := esp.Suite{Encr: esp.EncrAESCBC, KeyBits: 256, Integ: esp.IntegHMACSHA512_256}
	for _, c := range []struct {
		name    string
		v6      bool
		mode    esp.Mode
		esp, ah esp.Suite
	}{
		{"tunnel", false, esp.Tunnel, nestESP, nestAH},
		{"tunnel IPv6", true, esp.Tunnel, nestESP, nestAH},
		{"tunnel, the longest headers", false, esp.Tunnel, worst, esp.Suite{Integ: esp.IntegHMACSHA512_256, ESN: true}},
		{"tunnel IPv6, the longest headers", true, esp.Tunnel, worst, esp.Suite{Integ: esp.IntegHMACSHA512_256}},
		{"transport", false, esp.Transport, nestESP, nestAH},
		{"transport IPv6", true, esp.Transport, nestESP, esp.Suite{Integ: esp.IntegAES256GMAC}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNest(t, c.v6)
			out, _ := n.addESP(t, esp.SA{Suite: c.esp, Mode: c.mode})
			ah, _ := n.addAH(t, "ah", esp.SA{Suite: c.ah})
			src, dst := "10.1.0.5", "10.2.0.5"
			if c.mode == esp.Transport {
				src, dst = n.a.String(), n.b.String()
			}
			pack, at := udp4, 9
			if c.v6 {
				pack, at = udp6, 6
				if c.mode == esp.Tunnel {
					src, dst = "fd01::5", "fd02::5"
				}
			}
			var pkts [][]byte
			for i := range 4 {
				pkt := pack(src, dst, 1000, uint16(i), 400)
				if !c.v6 {
					binary.BigEndian.PutUint16(pkt[4:], 77) // of its own: the system gives one to 0
					pkt[10], pkt[11] = 0, 0
					binary.BigEndian.PutUint16(pkt[10:], checksum(pkt[:20]))
				}
				pkts = append(pkts, pkt)
			}
			wire := n.carry(pkts...)
			if len(wire) != 4 {
				t.Fatalf("%d datagrams left, want 4; counters: %v", len(wire), n.from.nonZero())
			}
			head := 20
			if c.v6 {
				head = 40
			}
			for i, d := range wire {
				b := d.Buf[:d.N]
				if !d.Whole || b[at] != esp.ProtoAH || b[head] != esp.ProtoESP {
					t.Fatalf("the datagram is not IP | AH | ESP: %x", b[:head+1])
				}
				if binary.BigEndian.Uint32(b[head+4:]) != ah.spi || binary.BigEndian.Uint32(b[head+8:]) != uint32(i+1) {
					t.Errorf("AH has SPI %x and number %x, want %08x and %d", b[head+4:head+8], b[head+8:head+12], ah.spi, i+1)
				}
				if e := b[head+int(b[head+1]+2)*4:]; binary.BigEndian.Uint32(e) != out.spi {
					t.Errorf("behind AH is SPI %x, want that of ESP, %08x", e[:4], out.spi)
				}
			}
			if got := n.to.tun.packets(); !slices.EqualFunc(got, pkts, bytes.Equal) {
				t.Errorf("%d packets arrived, want the 4 that were sent; counters: %v", len(got), n.to.nonZero())
			}
			if u, _ := n.from.turns.usage(ah); u.Packets != 4 || u.Bytes < 4*400 {
				t.Errorf("AH has counted %+v, want 4 packets with ESP's headers", u)
			}
			for _, tp := range []*testPath{n.from, n.to} {
				for _, what := range tp.nonZero() {
					if bytes.Contains([]byte(what), []byte("drop")) {
						t.Errorf("dropped: %s", what)
					}
				}
			}
		})
	}
}

func TestNestedPacketsCostNoAllocation(t *testing.T) {
	n := newNest(t, false)
	n.addESP(t, esp.SA{Suite: nestESP})
	n.addAH(t, "ah", esp.SA{})
	pkt := udp4("10.1.0.5", "10.2.0.5", 1, 2, 1300)
	n.carry(pkt)
	n.from.quiet()
	n.to.quiet()
	const rounds = 30
	var wire [][]byte
	n.from.fakes[sockAH4].route = func(d *esp.Datagram) { wire = append(wire, bytes.Clone(d.Buf[:d.N])) }
	for range rounds + 1 {
		n.from.send(pkt)
	}
	n.from.fakes[sockAH4].route = nil
	if got := testing.AllocsPerRun(rounds, func() { n.from.send(pkt) }); got != 0 {
		t.Errorf("sealing allocates %v times, want 0", got)
	}
	in, k, before := n.to.in[sockAH4], 0, n.to.counts.get(cInPackets)
	if got := testing.AllocsPerRun(rounds, func() {
		in.batch[0] = esp.Datagram{Buf: in.bufs[0], N: copy(in.bufs[0], wire[k]), Local: n.b, Remote: netip.AddrPortFrom(n.a, 0), Whole: true}
		in.process(1)
		k++
	}); got != 0 {
		t.Errorf("opening allocates %v times, want 0", got)
	}
	if got := n.to.counts.get(cInPackets) - before; got != rounds+1 {
		t.Errorf("%d packets were opened, want %d: %v", got, rounds+1, n.to.nonZero())
	}
}

// Where a policy demands AH, ESP never leaves without it.
func TestESPWaitsForTheAHAroundIt(t *testing.T) {
	n := newNest(t, false)
	pkt := udp4("10.1.0.5", "10.2.0.5", 1, 2, 300)
	n.addESP(t, esp.SA{Suite: nestESP})
	if wire := n.carry(pkt); len(wire) != 0 {
		t.Fatalf("%d datagrams left without AH", len(wire))
	}
	n.from.want(t, cOutNoSA, 1)
	if !slices.Equal(n.from.acquired, []string{"c/ah"}) {
		t.Errorf("asked for %v, want the SA of AH", n.from.acquired)
	}
	ah, _ := n.addAH(t, "ah", esp.SA{Hard: esp.Usage{Packets: 2}})
	if wire := n.carry(pkt, pkt, pkt); len(wire) != 2 {
		t.Errorf("%d datagrams left, want the 2 that AH may carry", len(wire))
	}
	n.from.want(t, cOutLimit, 1)
	n.from.spd.unbind(ah)
	if wire := n.carry(pkt); len(wire) != 0 {
		t.Errorf("%d datagrams left after AH has gone", len(wire))
	}
}

// Every way past the AH that a policy demands is closed.
func TestBareESPIsRefusedWhereAHIsDemanded(t *testing.T) {
	n := newNest(t, false)
	pkt := udp4("10.1.0.5", "10.2.0.5", 1, 2, 300)
	out, in := n.addESP(t, esp.SA{Suite: nestESP})
	plain := func() esp.Datagram {
		buf := append(append(make([]byte, 100), pkt...), make([]byte, esp.TailRoom)...)
		d := esp.Datagram{Local: n.a, Remote: netip.AddrPortFrom(n.b, 0)}
		seq, _ := out.out.Reserve(1, len(pkt))
		if err := out.out.SealPacket(0, seq, buf, 100, len(pkt), &d); err != nil {
			t.Fatal(err)
		}
		return d
	}
	refused := uint64(0)
	check := func(what string) {
		t.Helper()
		refused++
		n.to.want(t, cInBare, refused)
		if got := n.to.tun.count(); got != 0 {
			t.Errorf("%s: %d packets arrived", what, got)
		}
	}
	n.deliver(sockESP4, plain())
	check("bare ESP")
	n.deliver(sockNATT4, plain())
	check("ESP in UDP")

	// In an SA of AH that is another child's.
	n.addAH(t, "other", esp.SA{})
	n.from.spd.set([]policySpec{{Policy: n.from.spd.spec[0].Policy, conn: "c", child: "other"}, n.from.spd.spec[1]})
	if wire := n.carry(pkt); len(wire) != 1 {
		t.Fatalf("%d datagrams left, want 1: %v", len(wire), n.from.nonZero())
	}
	check("ESP in another AH")

	// In the right one, but ESP is another peer's.
	n.addAH(t, "ah", esp.SA{})
	n.from.spd.set([]policySpec{{Policy: n.from.spd.spec[0].Policy, conn: "c", child: "ah"}, n.from.spd.spec[1]})
	elsewhere, at := netip.MustParseAddrPort("192.0.2.77:4500"), in.remote.Load()
	in.remote.Store(&elsewhere)
	n.carry(pkt)
	check("ESP of another peer")
	in.remote.Store(at)

	if n.carry(pkt); n.to.tun.count() != 1 {
		t.Errorf("what is right did not arrive: %v", n.to.nonZero())
	}
}

// Without such an entry nothing is nested, whatever else the policies say; and a change of them
// reaches the SAs that are there.
func TestOnlyAnEntryThatNamesESPNests(t *testing.T) {
	n := newNest(t, false)
	out, in := n.addESP(t, esp.SA{Suite: nestESP})
	if !out.path.Load().nested || !in.is.has(inAround) {
		t.Fatal("an entry that names ESP does not nest it")
	}
	pkt := udp4("10.1.0.5", "10.2.0.5", 1, 2, 300)
	for name, first := range map[string]policySpec{
		"all protocols": {Policy: esp.Policy{Action: esp.Protect, LocalTS: nestSel(n.a, 0), RemoteTS: nestSel(n.b, 0)}},
		"bypass":        {Policy: esp.Policy{Action: esp.Bypass, LocalTS: nestSel(n.a, esp.ProtoESP), RemoteTS: nestSel(n.b, esp.ProtoESP)}},
		"another host":  {Policy: esp.Policy{Action: esp.Protect, LocalTS: nestSel(n.a.Next().Next(), esp.ProtoESP), RemoteTS: nestSel(n.b, esp.ProtoESP)}},
	} {
		first.conn, first.child = "c", "first"
		n.from.spd.set([]policySpec{first, n.from.spd.spec[1]})
		first.LocalTS, first.RemoteTS = first.RemoteTS, first.LocalTS
		n.to.spd.set([]policySpec{first, n.to.spd.spec[1]})
		n.out.rejudge()
		n.in.nestIn(in, n.b)
		if p := out.path.Load(); p.nested || p.sock != sockESP4 || in.is.has(inAround) {
			t.Errorf("%s: nested by %v, %v and demanded %v", name, p.nested, p.sock, in.is.has(inAround))
		}
	}
	before := n.to.tun.count()
	if wire := n.carry(pkt); len(wire) != 1 || wire[0].Whole || n.to.tun.count() != before+1 {
		t.Errorf("%d datagrams left, and %d packets arrived", len(wire), n.to.tun.count()-before)
	}
}

// What is in AH and looks like ESP, but is none that is known, goes nowhere.
func TestStrangersInAHAreDropped(t *testing.T) {
	n := newNest(t, false)
	ah, _ := n.addAH(t, "ah", esp.SA{})
	for i, body := range [][]byte{bytes.Repeat([]byte{9}, 40), {1, 2}, nil, binary.BigEndian.AppendUint32(nil, ah.spi)} {
		pkt := udp4(n.a.String(), n.b.String(), 1, 2, 28)[:20]
		pkt = append(pkt, body...)
		pkt[5], pkt[9] = 9, esp.ProtoESP
		binary.BigEndian.PutUint16(pkt[2:], uint16(len(pkt)))
		pkt[10], pkt[11] = 0, 0
		binary.BigEndian.PutUint16(pkt[10:], checksum(pkt[:20]))
		buf := append(append(make([]byte, 100), pkt...), make([]byte, esp.TailRoom)...)
		d := esp.Datagram{Local: n.a, Remote: netip.AddrPortFrom(n.b, 0)}
		seq, _ := ah.out.Reserve(1, len(pkt))
		if err := ah.out.SealPacket(0, seq, buf, 100, len(pkt), &d); err != nil {
			t.Fatal(err)
		}
		n.deliver(sockAH4, d)
		n.to.want(t, cInUnknownSPI, uint64(i+1))
	}
	if got := n.to.tun.count(); got != 0 {
		t.Errorf("%d packets arrived", got)
	}
}

// ESP in UDP cannot have AH around it: nothing leaves, rather than less than the policy asks for.
func TestESPInUDPIsNotSentWhereAHIsDemanded(t *testing.T) {
	n := newNest(t, false)
	n.addESP(t, esp.SA{Suite: nestESP, Encap: true})
	n.addAH(t, "ah", esp.SA{})
	if wire := n.carry(udp4("10.1.0.5", "10.2.0.5", 1, 2, 300)); len(wire) != 0 {
		t.Errorf("%d datagrams left", len(wire))
	}
	n.from.want(t, cOutUnfit, 1)
}

// Two workers seal for the same pair of SAs: numbers of both stay in order on the wire.
func TestNestedPacketsKeepTheirOrderOverWorkers(t *testing.T) {
	n := newNest(t, false)
	n.from = newTestPathOf(t, board.Small, 2)
	n.out = &ikeLoop{d: n.from.datapath}
	n.from.spd.set(newNest(t, false).from.spd.spec)
	n.addESP(t, esp.SA{Suite: nestESP})
	n.addAH(t, "ah", esp.SA{})
	done := make(chan struct{})
	const batches, size = 200, 4
	for w, o := range n.from.datapath.out {
		go func() {
			defer func() { done <- struct{}{} }()
			for range batches {
				for i := range size {
					o.sizes[i] = copy(o.bufs[i][headRoom:], udp4("10.1.0.5", fmt.Sprintf("10.2.0.%d", w), 1, 2, 100))
				}
				o.batch(size)
			}
		}()
	}
	<-done
	<-done
	wire := n.from.fakes[sockAH4].datagrams()
	if len(wire) != 2*batches*size {
		t.Fatalf("%d datagrams left, want %d: %v", len(wire), 2*batches*size, n.from.nonZero())
	}
	last := [2]uint32{}
	for _, d := range wire {
		ah := d.Buf[20:d.N]
		e := ah[int(ah[1]+2)*4:]
		for i, seq := range []uint32{binary.BigEndian.Uint32(ah[8:]), binary.BigEndian.Uint32(e[4:])} {
			if seq != last[i]+1 {
				t.Fatalf("number %d follows %d", seq, last[i])
			}
			last[i] = seq
		}
	}
}

// The limit in octets of the SA around holds for each packet, in their order.
func TestLimitOfTheAHAroundHolds(t *testing.T) {
	n := newNest(t, false)
	n.addESP(t, esp.SA{Suite: nestESP})
	small, large := udp4("10.1.0.5", "10.2.0.5", 1, 2, 100), udp4("10.1.0.5", "10.2.0.5", 1, 2, 180)
	n.addAH(t, "ah", esp.SA{Hard: esp.Usage{Bytes: 2*(100+nestMost) + 30}})
	wire := n.carry(small, large, small)
	if len(wire) != 2 || wire[0].N != wire[1].N {
		t.Errorf("%d datagrams left, want those of the two short packets", len(wire))
	}
	n.from.want(t, cOutLimit, 1)
}

// An SA of ESP does not stand in for AH.
func TestESPDoesNotGoAroundESP(t *testing.T) {
	n := newNest(t, false)
	n.addESP(t, esp.SA{Suite: nestESP})
	n.add(t, "ah", esp.SA{Suite: nestESP, Mode: esp.Transport}, func(a netip.Addr) []esp.Selector { return nestSel(a, esp.ProtoESP) })
	if wire := n.carry(udp4("10.1.0.5", "10.2.0.5", 1, 2, 300)); len(wire) != 0 {
		t.Errorf("%d datagrams left", len(wire))
	}
	n.from.want(t, cOutNoSA, 1)
}

// The device's MTU leaves room for AH around ESP.
func TestMTULeavesRoomForAHAroundESP(t *testing.T) {
	mtu := func(more string) int {
		cfg := parse(t, `
[connections.gw]
remote_addrs = ["192.0.2.2"]
[connections.gw.local]
id = "a.example"
[connections.gw.children.net]
local_ts = ["10.1.0.0/16"]
remote_ts = ["10.2.0.0/16"]
esp_proposals = ["aes128gcm16"]
`+more+`
[secrets.x]
secret = "correct horse battery staple 42"
`)
		n, err := tunnelMTU(cfg, board.Large)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	ah := func(ts string) string {
		return `[connections.gw.children.ah]
mode = "transport"
ah_proposals = ["sha256"]
local_ts = ["` + ts + `"]
remote_ts = ["` + ts + `"]`
	}
	without, with := mtu(ah("dynamic[udp]")), mtu(ah("dynamic[esp]"))
	// AH with an ICV of 16 octets: 12 + 16, padded to 8 under IPv6.
	if without-with != 32 {
		t.Errorf("the MTU is %d without AH around ESP and %d with it, want 32 octets between them", without, with)
	}
}

// What comes in AH before its own SA is held as ESP alone is, and remembers that it came in AH.
func TestNestedPacketsWaitForTheirSA(t *testing.T) {
	n := newNest(t, false)
	_, sa := n.addESP(t, esp.SA{Suite: nestESP})
	_, ah := n.addAH(t, "ah", esp.SA{})
	n.in.early = newInbound(n.to.datapath, sockNATT4, n.to.ctxEarly(), make([][]byte, n.to.held.share))
	pkt := udp4("10.1.0.5", "10.2.0.5", 1, 2, 300)
	hideSA := func(sa *inSA) {
		n.to.sad.delIn(sa.spi)
		n.to.sad.awaited[sa.spi&n.to.sad.mask].Store(sa.spi)
	}
	hide := func() { hideSA(sa) }
	hide()
	wire := n.carry(pkt, pkt)
	n.to.want(t, cInHeld, 2)
	if err := n.in.publish(sa); err != nil {
		t.Fatal(err)
	}
	if got := n.to.tun.packets(); len(got) != 2 || !bytes.Equal(got[1], pkt) {
		t.Fatalf("%d packets arrived, want the 2 that were held: %v", len(got), n.to.nonZero())
	}
	// One that is held without AH is refused all the same.
	hide()
	d := wire[0]
	head := 20 + int(d.Buf[21]+2)*4
	bare := esp.Datagram{Buf: d.Buf[head:], N: d.N - head, Remote: d.Remote}
	n.deliver(sockESP4, bare)
	n.to.want(t, cInHeld, 3)
	if err := n.in.publish(sa); err != nil {
		t.Fatal(err)
	}
	n.to.want(t, cInBare, 1)
	// And one in the AH of somebody else, for an SA that is his.
	hide()
	n.carry(pkt)
	elsewhere := netip.MustParseAddrPort("192.0.2.77:4500")
	sa.remote.Store(&elsewhere)
	if err := n.in.publish(sa); err != nil {
		t.Fatal(err)
	}
	n.to.want(t, cInBare, 2)
	// Held for AH, and then for ESP: that is too long, since the queue does not take back what it gives.
	hide()
	hideSA(ah)
	n.carry(pkt)
	if err := n.in.publish(ah); err != nil {
		t.Fatal(err)
	}
	n.to.want(t, cInUnknownSPI, 1)
	if got := n.to.tun.count(); got != 2 {
		t.Errorf("%d packets arrived", got)
	}
}
