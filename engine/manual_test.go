package engine

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"postern/board"
	"postern/engine/control"
	"postern/esp"
)

func TestChosenSPIsThatMeetInOneSlot(t *testing.T) {
	s := newSAD(8, testRandom(1))
	for _, spi := range []uint32{0x1003, 0x1013, 0x1023} {
		if err := s.claim(spi); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.claim(0x1013); err == nil {
		t.Error("one SPI was given out twice")
	}
	slots := map[*sadSlot]bool{}
	for _, spi := range []uint32{0x1003, 0x1013, 0x1023} {
		slot := s.slot(spi)
		if slot == nil || slots[slot] {
			t.Fatalf("%x has no slot of its own", spi)
		}
		slots[slot] = true
		if err := s.addIn(&inSA{spi: spi}); err != nil {
			t.Fatal(err)
		}
		direct, other := s.lookup(spi), s.elsewhere(spi)
		if (direct == nil) == (spi == 0x1003) || (other == nil || other.spi != spi) && spi != 0x1003 {
			t.Errorf("%x is found at %v, and elsewhere at %v", spi, direct, other)
		}
		if s.elsewhere(spi+0x100) != nil {
			t.Errorf("%x is found", spi+0x100)
		}
	}
	if n := testing.AllocsPerRun(100, func() { s.elsewhere(0x1023) }); n != 0 {
		t.Errorf("to find an SA costs %v allocations", n)
	}
	var given []uint32
	for {
		spi, ok := s.alloc()
		if !ok {
			break
		}
		if slots[s.slot(spi)] || s.slot(spi) == nil {
			t.Errorf("%x shares a slot", spi)
		}
		given = append(given, spi)
	}
	if len(given) != 5 || s.claim(0x2000) == nil {
		t.Fatalf("%d SPIs were given out beside 3 of 8", len(given))
	}
	for _, spi := range given {
		if in, _ := s.release(spi); in != nil {
			t.Error("an SA that is not there")
		}
	}
	if in, _ := s.release(0x1013); in == nil || in.spi != 0x1013 || s.elsewhere(0x1013) != nil || s.elsewhere(0x1023) == nil {
		t.Error("the release of one SPI took the other, or nothing")
	}
	s.release(0x1003)
	s.release(0x1023)
	if s.displaced.Load() != nil || s.used() != 0 {
		t.Error("something is left")
	}
	// Every slot is given out once more, wherever it was taken from the ring.
	for range 8 {
		if _, ok := s.alloc(); !ok {
			t.Fatal("a slot was lost")
		}
	}
}

// An SPI that was chosen and is not in its own slot is never given out there.
func TestAllocPassesByChosenSPIs(t *testing.T) {
	n := 0
	s := newSAD(2, func(b []byte) { // 0x1000 three times, then 0x2000
		copy(b, []byte{0, 0, 0x10, 0})
		if n++; n > 3 {
			b[2] = 0x20
		}
	})
	if err := s.claim(0x3000); err != nil { // slot 0
		t.Fatal(err)
	}
	if err := s.claim(0x1000); err != nil { // slot 1
		t.Fatal(err)
	}
	s.release(0x3000)
	if spi, ok := s.alloc(); !ok || spi != 0x2000 || n != 4 {
		t.Errorf("%x was given out", spi)
	}
}

// manualEnds are both ends of manual SAs: each is name, SPI, suite and more lines.
func manualEnds(sas ...[4]string) (a, b string) {
	for i, sa := range sas {
		suite := "esp_proposals"
		if strings.HasPrefix(sa[2], "sha") {
			suite = "ah_proposals"
		}
		keys := func(in, out string) (s string) {
			encr, integ := 0, 0
			switch sa[2] {
			case "aes128gcm16", "aes128gcm16-esn":
				encr = 20
			case "aes128-sha256":
				encr, integ = 16, 32
			default:
				integ = 32
			}
			for _, d := range [][2]string{{"in", in}, {"out", out}} {
				if encr > 0 {
					s += fmt.Sprintf("encr_key_%s = \"0x%02x%s\"\n", d[0], i, strings.Repeat(d[1], encr-1))
				}
				if integ > 0 {
					s += fmt.Sprintf("integ_key_%s = \"0x%02x%s\"\n", d[0], i, strings.Repeat(d[1], integ-1))
				}
			}
			return s
		}
		const form = "[manual.%s]\nlocal_addrs = [\"%s\"]\nremote_addrs = [\"%s\"]\nspi_in = %s%s\nspi_out = %s%s\n%s = [\"%s\"]\nlocal_ts = [\"10.%d.%d.0/24\"]\nremote_ts = [\"10.%d.%d.0/24\"]\n%s\n%s"
		a += fmt.Sprintf(form, sa[0], "192.0.2.1", "192.0.2.2", sa[1], "1", sa[1], "2", suite, sa[2], 1, i, 2, i, sa[3], keys("11", "22"))
		b += fmt.Sprintf(form, sa[0], "192.0.2.2", "192.0.2.1", sa[1], "2", sa[1], "1", suite, sa[2], 2, i, 1, i, sa[3], keys("22", "11"))
	}
	return a, b
}

// manualHosts are an address range on both sides of the i-th SA.
func manualPacket(i int) []byte {
	return udp4(fmt.Sprintf("10.1.%d.5", i), fmt.Sprintf("10.2.%d.7", i), 1000, 502, 200)
}

// cross sends a packet through the i-th SA from a to b.
func cross(t *testing.T, a, b *running, i int) {
	t.Helper()
	n := len(b.host.tun.packets())
	pkt := manualPacket(i)
	a.host.tun.in <- pkt
	eventually(t, "the packet arrived", func() bool { return len(b.host.tun.packets()) > n })
	if got := b.host.tun.packets()[n]; !bytes.Equal(got, pkt) {
		t.Error("the packet arrived changed")
	}
}

// Manual SAs carry packets beside negotiated ones, also where their SPIs meet in a slot of the
// SAD; a reload takes them out, puts others in, and leaves the rest alone.
func TestManualSAsCarryPacketsAndFollowTheConfiguration(t *testing.T) {
	wire := &fakeWire{}
	sas := [][4]string{
		{"cbc", "0x100", "aes128-sha256", ""}, {"udp", "0x140", "aes128-sha256", "encap = true"}, // one slot of 32
		{"null", "0x200", "null-sha256", ""},
	}
	confA, confB := manualEnds(sas...)
	a := startEngine(t, wire.host("192.0.2.1"), parse(t, confA), board.Tiny)
	b := startEngine(t, wire.host("192.0.2.2"), parse(t, confB), board.Tiny)
	if a.d.sad.displaced.Load() == nil {
		t.Error("the SPIs do not meet in a slot: the test has lost its meaning")
	}
	for i := range sas {
		cross(t, a, b, i)
	}
	for _, m := range a.cfg.Manual {
		if m.In.EncrKey != nil || m.In.IntegKey != nil || m.Out.IntegKey != nil {
			t.Error("the configuration still has keys")
		}
	}
	_, list := a.command(control.CmdListSAs)
	if len(list) != 3 {
		t.Fatalf("list-sas shows %d, want 3: %v", len(list), list)
	}
	for _, want := range []string{"list-sa manual{", `version="0"`, `state="ESTABLISHED"`, `local-host="192.0.2.1"`, "child-sas{udp-0{", `state="INSTALLED"`,
		`mode="TUNNEL"`, `protocol="ESP"`, `encap="yes"`, `spi-in="00001401"`, `spi-out="00001402"`, `packets-out="1"`, `local-ts=["10.1.1.0/24"]`, `remote-ts=["10.2.1.0/24"]`} {
		if !strings.Contains(list[1], want) {
			t.Errorf("list-sas lacks %s: %s", want, list[1])
		}
	}
	if _, list := a.command(control.CmdListSAs, "ike", "manual", "child", "null"); len(list) != 1 || !strings.Contains(list[0], "null-0") {
		t.Errorf("the SA of one name: %v", list)
	}
	if _, conns := a.command(control.CmdListConns); len(conns) != 1 || !strings.Contains(conns[0], `manual{local_addrs=["192.0.2.1" "192.0.2.1" "192.0.2.1"]`) {
		t.Errorf("list-conns shows %v", conns)
	}
	if m, _ := a.command(control.CmdTestPolicy, "src", "10.1.1.5", "dst", "10.2.1.7", "proto", "17"); !strings.Contains(m, `fate="sa"`) || !strings.Contains(m, `child="udp"`) {
		t.Errorf("a packet's fate: %s", m)
	}
	if _, spd := a.command(control.CmdListSPD); len(spd) != 3 || !strings.Contains(spd[0], `packets-out="1"`) || !strings.Contains(spd[0], `sas="1"`) {
		t.Errorf("the SPD: %v", spd)
	}
	if m, _ := a.command(control.CmdSAKeys); !strings.Contains(m, "export_keys") {
		t.Errorf("keys are told: %s", m)
	}

	kept := a.d.sad.slot(0x2001).in.Load()
	sas = [][4]string{{"new", "0x300", "aes128-sha256", ""}, {"udp", "0x140", "null-sha256", ""}, sas[2]}
	confA, confB = manualEnds(sas...)
	for r, conf := range map[*running]string{a: confA, b: confB} {
		if err := r.Reload(parse(t, "[daemon]\ninterface = \"x\"\n"+conf)); err != nil {
			t.Fatalf("Reload: %v", err)
		}
	}
	if a.d.sad.used() != 3 || a.d.sad.slot(0x1001) != nil || a.d.sad.slot(0x2001).in.Load() != kept {
		t.Errorf("after the reload %d slots are used", a.d.sad.used())
	}
	for i := range sas {
		cross(t, a, b, i)
	}
	// Keys are told where they may be, of SAs that were there before as well.
	if err := a.Reload(parse(t, "[daemon]\nexport_keys = true\n"+confA)); err != nil {
		t.Fatal(err)
	}
	_, keys := a.command(control.CmdSAKeys)
	if len(keys) != 6 || !strings.Contains(strings.Join(keys, " "), "22222222") {
		t.Errorf("%d lines of keys", len(keys))
	}
	// A spi_in that a negotiated SA has is refused before anything changes.
	var spi uint32
	_ = a.loop.do(func() { spi, _ = a.d.sad.alloc() })
	bad := strings.Replace(confA, "spi_in = 0x3001", fmt.Sprintf("spi_in = %d", spi), 1)
	if err := a.Reload(parse(t, bad)); err == nil || !strings.Contains(err.Error(), "choose another") {
		t.Errorf("a spi_in that is taken: %v", err)
	}
	cross(t, a, b, 0)
	if err := a.Reload(parse(t, "")); err != nil || a.d.sad.used() != 1 {
		t.Errorf("an empty configuration leaves %d SAs: %v", a.d.sad.used(), err)
	}
	for _, line := range a.log.all() {
		if strings.Contains(line, "2222") {
			t.Errorf("the log shows a key: %s", line)
		}
	}
}

// With keep_sequence no number leaves twice under a key, however the daemon ends.
func TestKeptNumbersDoNotComeAgain(t *testing.T) {
	wire := &fakeWire{}
	confA, confB := manualEnds([4]string{"x", "0x100", "aes128gcm16-esn", "keep_sequence = true"})
	disk := map[string]*fakeState{"192.0.2.1": {kept: map[string][]byte{}}, "192.0.2.2": {kept: map[string][]byte{}}}
	start := func(addr, conf string) *running {
		h := wire.host(addr)
		system := h.os()
		system.OpenState = func(string) (State, error) { return disk[addr], nil }
		return startEngineOn(t, h, system, parse(t, conf), board.Tiny)
	}
	seq := func(r *running) (n uint64) {
		_ = r.loop.do(func() { n = r.d.sad.slot(0x1001).out.out.Seq() })
		return n
	}
	a, b := start("192.0.2.1", confA), start("192.0.2.2", confB)
	cross(t, a, b, 0)
	cross(t, a, b, 0)
	if n := seq(a); n != 2 {
		t.Fatalf("after 2 packets the last number is %d", n)
	}
	kept := func() (b []byte) {
		_ = a.loop.do(func() { b = bytes.Clone(disk["192.0.2.1"].kept[stateSeqs]) })
		return b
	}
	crashed := kept()
	a.end()
	a = start("192.0.2.1", confA)
	cross(t, a, b, 0)
	if n := seq(a); n != 3 {
		t.Errorf("after a clean end the numbers go on at %d, want 3", n)
	}
	if _, list := a.command(control.CmdListSAs); !strings.Contains(list[0], `packets-out="1"`) {
		t.Errorf("the packets of an earlier life are counted: %s", list[0])
	}
	// The next block is reserved in time, and what is reserved is on the disk first.
	reserved := func() (n uint64) {
		_ = a.loop.do(func() { n = a.seqs.get(a.loop.manual[0].kept.out) })
		return n
	}
	first := reserved()
	_ = a.loop.do(func() {
		a.d.sad.slot(0x1001).out.out.Reserve(int(dueAt(first)-3), 0)
	})
	cross(t, a, b, 0)
	eventually(t, "the next block was reserved", func() bool { return reserved() == first+seqBlock })
	list, err := decodeSeqs(kept())
	if err != nil || list[0].n != first+seqBlock {
		t.Errorf("on the disk: %v %v", list, err)
	}
	if left := a.d.sad.slot(0x1001).out.out.Left().Packets; left < seqBlock {
		t.Errorf("%d numbers are left", left)
	}
	// A disk that does not take the next block: no number passes beyond the last.
	_ = a.loop.do(func() {
		disk["192.0.2.1"].store = errors.New("no space")
		o := a.d.sad.slot(0x1001).out.out
		o.Reserve(int(o.Left().Packets), 0)
	})
	a.host.tun.in <- manualPacket(0)
	eventually(t, "the packet without a number was dropped", func() bool { return a.d.counts.get(cOutLimit) == 1 })
	_ = a.loop.do(func() { disk["192.0.2.1"].store = nil })
	a.end()

	// A crash: the file is that of the first start.
	disk["192.0.2.1"].kept[stateSeqs] = crashed
	a = start("192.0.2.1", confA)
	b2 := start("192.0.2.2", confB)
	cross(t, a, b2, 0)
	var top uint64
	_ = b2.loop.do(func() {
		b2.noteTops()
		list, _ := decodeSeqs(disk["192.0.2.2"].kept[stateSeqs])
		top = list[1].n
	})
	if top != seqBlock+1 {
		t.Errorf("the receiver's window is written down at %d after a whole block", top)
	}
	if n := seq(a); n != seqBlock+1 {
		t.Errorf("after a crash the numbers go on at %d, want those after the reserved block", n)
	}
	// The number belongs to the key: another name and SPI change nothing.
	a.end()
	other, _ := manualEnds([4]string{"y", "0x100", "aes128gcm16-esn", "keep_sequence = true\nreplay_window = 64"})
	a = start("192.0.2.1", other)
	if n := seq(a); n != seqBlock+1 {
		t.Errorf("under another name the key's numbers go on at %d", n)
	}
	a.end()
	// What cannot be read, or kept, is not used.
	for what, f := range map[string]func(s *fakeState){
		"damaged":    func(s *fakeState) { s.kept[stateSeqs] = []byte{9} },
		"unreadable": func(s *fakeState) { s.load = errors.New("exposed") },
		"full":       func(s *fakeState) { s.store = errors.New("no space") },
	} {
		s := &fakeState{kept: map[string][]byte{}}
		f(s)
		disk["192.0.2.1"] = s
		a = start("192.0.2.1", confA)
		a.host.tun.in <- manualPacket(0)
		eventually(t, what+": the packet was dropped", func() bool { return a.d.counts.get(cOutNoSA) == 1 })
		if a.d.sad.used() != 0 {
			t.Errorf("%s: the SA is there", what)
		}
		a.end()
	}
}

func TestKeptNumbersOfManyKeys(t *testing.T) {
	k, _ := newKeeper(&fakeState{kept: map[string][]byte{}}, 1)
	var f seqFile
	if f.put(k, seqRecord{}) == nil {
		t.Error("a file that was not read is written")
	}
	if err := f.open(k); err != nil {
		t.Fatal(err)
	}
	id := func(i int) seqID {
		return seqIDOf('o', &esp.SA{EncrKey: []byte{byte(i), byte(i >> 8)}})
	}
	for i := range maxSeqRecords {
		if err := f.put(k, seqRecord{id(i), uint64(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.put(k, seqRecord{id(maxSeqRecords), 1}); err == nil || !strings.Contains(err.Error(), "no room") {
		t.Errorf("one key too many: %v", err)
	}
	var again seqFile
	if err := again.open(k); err != nil {
		t.Fatal(err)
	}
	for i := range maxSeqRecords {
		if n := again.get(id(i)); n != uint64(i) {
			t.Fatalf("key %d stands at %d", i, n)
		}
	}
	if b, _ := k.dir.Load(stateSeqs); len(b) > 4<<10 {
		t.Errorf("the file has %d octets, more than a state directory takes", len(b))
	}
	for n, want := range map[uint64]uint64{0: seqBlock, lastSeq - 5: lastSeq, lastSeq: lastSeq} {
		if got := blockAfter(n, false); got != want {
			t.Errorf("after %d up to %d, want %d", n, got, want)
		}
	}
	if got := blockAfter(1<<64-10, true); got != 1<<64-2 {
		t.Errorf("the end of 64 bits: %d", got)
	}
}

func FuzzSeqFile(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{seqFileVersion})
	f.Add(append([]byte{seqFileVersion}, make([]byte, 2*seqRecordLen)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := decodeSeqs(b)
		if err == nil && len(b) != 1+len(list)*seqRecordLen || len(list) > maxSeqRecords {
			t.Errorf("%d octets gave %d records: %v", len(b), len(list), err)
		}
	})
}
