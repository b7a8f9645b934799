package ike

import (
	"slices"
	"testing"
	"time"
)

// FuzzMachine drives a responder with what a network and an authenticated, hostile peer
// can send. The input is a list of steps: an octet for what to do, one for the length,
// then the data.
func FuzzMachine(f *testing.F) {
	// Real first messages, so that the fuzzer starts behind the first checks.
	seedPair := newPair(f, nil)
	var first []byte
	seedPair.a.mangle = func(o *Output) bool { first = o.Data; return false }
	seedPair.a.m.Command(seedPair.now, Command{Kind: CmdInitiate})
	seedPair.run()
	step := func(kind byte, data []byte) []byte { return append([]byte{kind, byte(len(data))}, data...) }
	f.Add(step(0, first[:min(255, len(first))]))
	b := NewBuilder(nil, Header{})
	b.Delete(ProtoESP, []uint32{1, 2, 3})
	b.Notify(NotifyRekeySA, ProtoESP, []byte{1, 2, 3, 4}, nil)
	chain := b.Finish()[headerLen:]
	f.Add(append(step(3, append([]byte{byte(PayloadDelete)}, chain...)), step(4, nil)...))
	f.Add(step(2, append([]byte{byte(PayloadDelete)}, chain...)))
	// A DELETE in two fragments, the second one first; numbers that cannot be; a larger total.
	part := func(number, total, next byte, content []byte) []byte {
		return step(6, append([]byte{number, total, next}, content...))
	}
	f.Add(slices.Concat(part(2, 2, 0, chain[5:]), part(1, 2, byte(PayloadDelete), chain[:5]), part(1, 2, byte(PayloadDelete), chain[:5])))
	f.Add(slices.Concat(part(0, 1, 0, nil), part(3, 2, 0, nil), part(1, 2, byte(PayloadNotify), chain), part(3, 3, 0, nil), step(4, []byte{61})))
	b = NewBuilder(nil, Header{})
	b.Notify(NotifyRedirect, ProtoNone, nil, Gateway{Name: "gw.example"}.body(nil))
	b.Notify(NotifyTicketRequest, ProtoNone, nil, nil)
	b.Notify(NotifyTicketLTOpaque, ProtoNone, nil, make([]byte, 40))
	writeToken(b, make([]byte, 32))
	f.Add(step(3, append([]byte{byte(PayloadNotify)}, b.Finish()[headerLen:]...)))
	b = NewBuilder(nil, Header{SPIi: 1, Exchange: ExchangeSessionResume, Flags: FlagInitiator})
	b.Nonce(make([]byte, 32))
	b.Notify(NotifyTicketOpaque, ProtoNone, nil, make([]byte, 80))
	f.Add(step(0, b.Finish()))

	u := NewBuilder(nil, Header{})
	u.Notify(NotifyUpdateSAAddresses, ProtoNone, nil, nil)
	u.Notify(NotifyAdditionalIP4Address, ProtoNone, nil, []byte{192, 0, 2, 9})
	u.Notify(NotifyCookie2, ProtoNone, nil, []byte("12345678"))
	u.Notify(NotifyNoNATsAllowed, ProtoNone, nil, noNATs(seedPair.a.m.sas[0].path.Local, seedPair.a.m.sas[0].path.Remote))
	chain = u.Finish()[headerLen:]
	f.Add(append(step(3, append([]byte{byte(PayloadNotify)}, chain...)), append(step(5, []byte{0, 0, 0, 0, 0}), step(4, []byte{1, 2, 3})...)...))

	f.Fuzz(func(t *testing.T, in []byte) {
		p := newPair(t, func(a, b *Conn) { a.MOBIKE, b.MOBIKE = true, true })
		p.up()
		p.a.mangle = func(*Output) bool { return false } // a's own machine keeps silent
		peer := &p.a.m.sas[0]
		path := Path{Local: peer.path.Remote, Remote: peer.path.Local, NATT: peer.path.NATT}
		for steps := 0; len(in) >= 2 && steps < 64; steps++ {
			kind, n := in[0], min(int(in[1]), len(in)-2)
			data := append([]byte(nil), in[2:2+n]...)
			in = in[2+n:]
			switch kind % 7 {
			case 0: // anything at all
				p.b.m.Datagram(p.now, path, data)
			case 1: // anything, with a header that leads to the IKE SA
				h := peer.header(Exchange(34+kind%5), uint32(kind), kind&1 != 0)
				msg := append(NewBuilder(nil, h).Finish(), data...)
				msg[27] = byte(len(msg))
				msg[26] = byte(len(msg) >> 8)
				p.b.m.Datagram(p.now, path, msg)
			case 2, 3: // authentic messages with any content
				if n == 0 {
					continue
				}
				sa := p.b.m.lookup(&Header{SPIi: peer.spiI, SPIr: peer.spiR, Flags: FlagInitiator})
				if sa == nil {
					return
				}
				ex := []Exchange{ExchangeInformational, ExchangeCreateChild, ExchangeAuth}[int(kind)%3]
				h := peer.header(ex, sa.recvID, false)
				if kind&0x80 != 0 {
					h = peer.header(ex, sa.req.id, true)
				}
				b := NewBuilder(nil, h)
				b.BeginSK(peer.sealer.ivLen())
				msg := b.Finish()
				msg[b.SKOff()] = data[0] // the type of the first payload
				msg = append(msg, data[1:]...)
				msg = peer.sealer.seal(msg, b.SKOff(), b.SKOff()+payloadHdr, p.a.Random)
				p.b.m.Datagram(p.now, path, msg)
			case 4:
				p.now.Mono += time.Duration(n) * time.Second
				p.b.m.Timeout(p.now)
			case 5:
				kinds := [...]CommandKind{CmdInitiate, CmdTerminate, CmdAcquire, CmdRekey, CmdMoved, CmdAddresses}
				p.b.m.Command(p.now, Command{Kind: kinds[n%len(kinds)], Tag: 7, Conn: "link", Child: "net"})
			case 6: // authentic fragments of anything
				sa := p.b.m.lookup(&Header{SPIi: peer.spiI, SPIr: peer.spiR, Flags: FlagInitiator})
				if n < 3 || sa == nil {
					continue
				}
				b := NewBuilder(nil, peer.header(Exchange(36+kind>>7), sa.recvID, false))
				b.BeginSK(0)
				msg, off := b.Finish(), b.SKOff()
				msg[offNext], msg[off] = byte(PayloadSKF), data[2]
				msg = append(msg, 0, data[0], 0, data[1])
				msg = append(msg, make([]byte, peer.sealer.ivLen())...)
				msg = append(msg, data[3:]...)
				p.b.m.Datagram(p.now, path, peer.sealer.seal(msg, off, off+payloadHdr+fragmentHdr, p.a.Random))
			}
			p.b.drain(p.now)
			p.b.out, p.b.events = nil, nil
			used := 0
			for i := range p.b.m.children {
				if p.b.m.children[i].state != ChildFree {
					used++
				}
			}
			if len(p.b.spis) > len(p.b.m.children)+2*len(p.b.m.sas) || len(p.b.sas) > 2*used {
				t.Fatalf("%d SPIs and %d SAs for %d CHILD SAs", len(p.b.spis), len(p.b.sas), used)
			}
		}
	})
}
