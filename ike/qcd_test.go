package ike

import (
	"bytes"
	"net/netip"
	"testing"
	"time"
)

// qcdPair is a pair with quick crash detection, the tunnel up. Its configurations are kept
// for a restart.
type qcdPair struct {
	*pair
	cfg map[*host]Config
}

func newQCDPair(t testing.TB, change func(a, b *Conn)) *qcdPair {
	p := &qcdPair{newPair(t, change), map[*host]Config{}}
	for i, h := range []*host{p.a, p.b} {
		c := Config{Conns: []*Conn{h.m.conns[0].conn}, Secrets: h.m.secrets, QCDSecret: bytes.Repeat([]byte{byte(i + 1)}, qcdSecretLen)}
		p.cfg[h] = c
		if err := h.m.Configure(p.now, c); err != nil {
			t.Fatal(err)
		}
	}
	p.up()
	return p
}

// restart makes a host forget all but its configuration.
func (p *qcdPair) restart(h *host) {
	h.m = New(h, Limits{IKESAs: 16, HalfOpen: 8, Cookies: 6, ChildSAs: 16})
	h.spis, h.sas, h.out = map[uint32]bool{}, map[uint32]*ChildSA{}, nil
	if err := h.m.Configure(p.now, p.cfg[h]); err != nil {
		h.t.Fatal(err)
	}
}

// reached is the path by which h gets what its peer sends.
func reached(h, from *host) Path {
	return Path{Local: netip.AddrPortFrom(h.addr, 500), Remote: netip.AddrPortFrom(from.addr, 500)}
}

// answerTo hands b a datagram and returns the one answer, parsed, or nil.
func answerTo(t *testing.T, now Time, h *host, path Path, b []byte) *Message {
	t.Helper()
	h.m.Datagram(now, path, append([]byte(nil), b...))
	h.drain(now)
	out := h.out
	h.out = nil
	if len(out) == 0 {
		return nil
	}
	m := new(Message)
	if len(out) > 1 || m.Parse(out[0].Data) != nil {
		t.Fatalf("%d answers", len(out))
	}
	return m
}

// protected is a request as an IKE SA with those SPIs would send it.
func protected(h Header) []byte {
	h.Exchange = ExchangeInformational
	b := NewBuilder(nil, h)
	b.BeginSK(8)
	return append(b.Finish(), make([]byte, 24)...)
}

func fixLength(b []byte) []byte {
	b[26], b[27] = byte(len(b)>>8), byte(len(b))
	n := len(b) - headerLen
	b[headerLen+2], b[headerLen+3] = byte(n>>8), byte(n)
	return b
}

func TestRestartedPeerIsNoticedWithinARoundTripAndReplaced(t *testing.T) {
	for _, who := range []string{"responder", "initiator"} {
		for _, rekeyed := range []string{"", "by a", "by b"} {
			t.Run(who+" restarts, rekeyed "+rekeyed, func(t *testing.T) {
				p := newQCDPair(t, nil)
				if rekeyed != "" {
					h := map[string]*host{"by a": p.a, "by b": p.b}[rekeyed]
					h.m.Command(p.now, Command{Kind: CmdRekey, Tag: 7, Conn: "link"})
					p.run()
					p.done(h, 7, nil)
				}
				crashed, left := p.b, p.a
				if who == "initiator" {
					crashed, left = p.a, p.b
				}
				var spi uint32
				for _, s := range crashed.sas {
					if s.Dir == 0 {
						spi = s.SPI
					}
				}
				p.restart(crashed)
				left.events = nil
				// What it sees first is ESP.
				crashed.m.Command(p.now, Command{Kind: CmdInvalidSPI, SPI: inbound(left, spi), Path: reached(crashed, left)})
				at := p.now.Mono
				p.run()
				if p.now.Mono != at {
					t.Fatal("time has passed")
				}
				if n := left.count(EvIKEDown); n != 1 {
					t.Fatalf("the side that is left has %d IKE SAs down, want 1: it did not believe the token: %+v", n, left.events)
				}
				for _, e := range left.events {
					if e.Kind == EvIKEDown && e.Err != ErrPeerRestarted {
						t.Fatalf("the IKE SA is down because of %v, want %v", e.Err, ErrPeerRestarted)
					}
				}
				if left == p.a { // the side that connected connects again
					p.same(1)
				} else {
					p.same(0)
				}
			})
		}
	}
}

// inbound returns the SPI that h sends with.
func inbound(h *host, otherwise uint32) uint32 {
	for _, s := range h.sas {
		if s.Dir != 0 {
			return s.SPI
		}
	}
	return otherwise
}

func TestNoTokenIsShownForAnSAThatLives(t *testing.T) {
	p := newQCDPair(t, nil)
	sa := &p.b.m.sas[0]
	token := p.b.m.qcd.token(sa.spiI, sa.spiR)
	swapped := p.b.m.qcd.token(sa.spiR, sa.spiI)
	stranger := Path{Local: netip.AddrPortFrom(p.b.addr, 500), Remote: netip.MustParseAddrPort("198.51.100.66:500")}
	p.b.m.conns[0].conn.RemoteAddrs = nil // anybody may ask
	for name, h := range map[string]Header{
		"as it is":                  {SPIi: sa.spiI, SPIr: sa.spiR, Flags: FlagInitiator},
		"with the other role":       {SPIi: sa.spiI, SPIr: sa.spiR},
		"exchanged":                 {SPIi: sa.spiR, SPIr: sa.spiI, Flags: FlagInitiator},
		"exchanged, the other role": {SPIi: sa.spiR, SPIr: sa.spiI},
		"with another SPI":          {SPIi: 0x1234567800000001, SPIr: sa.spiR, Flags: FlagInitiator},
		"with another SPI, as ours": {SPIi: sa.spiR, SPIr: 0x1234567800000001},
	} {
		for _, path := range []Path{reached(p.b, p.a), stranger} {
			m := answerTo(t, p.now, p.b, path, fixLength(protected(h)))
			if m == nil {
				continue
			}
			m.EachNotify(func(n Notify) {
				if n.Type == NotifyQuickCrashDetection {
					t.Errorf("%s, from %v: a token is shown while the SA lives (its own: %v)", name, path.Remote,
						bytes.Equal(n.Data, token) || bytes.Equal(n.Data, swapped))
				}
			})
		}
		p.now.Mono += time.Second
	}
	// An SPI pair that is nobody's gets one, so the test can fail.
	m := answerTo(t, p.now, p.b, stranger, fixLength(protected(Header{SPIi: 0x1234567800000001, SPIr: 0x1234567800000002, Flags: FlagInitiator})))
	if n, ok := m.FindNotify(NotifyQuickCrashDetection); !ok || len(n.Data) != 32 {
		t.Fatalf("no token for an unknown IKE SA: %s", m.summary())
	}
	if body := m.Find(PayloadNotify).Body; body[1] != 0 {
		t.Fatal("INVALID_IKE_SPI has an SPI")
	}
	if m.Payloads[1].Body[0] != byte(ProtoIKE) || m.Payloads[1].Body[1] != 0 {
		t.Fatal("the token's notify must have protocol 1 and no SPI (RFC 6290 section 4.1)")
	}
}

// While our initial request is unanswered we do not know the responder's SPI, but somebody
// on the way does.
func TestNoTokenIsShownForAnSAThatIsJustBeingMade(t *testing.T) {
	p := newQCDPair(t, nil)
	p.a.m.Command(p.now, Command{Kind: CmdTerminate, Tag: 3, Conn: "link"})
	p.run()
	p.a.m.Command(p.now, Command{Kind: CmdInitiate, Tag: 4, Conn: "link"})
	p.a.drain(p.now)
	p.a.out = nil
	var sa *ikeSA
	for i := range p.a.m.sas {
		if p.a.m.sas[i].state == StateConnecting {
			sa = &p.a.m.sas[i]
		}
	}
	m := answerTo(t, p.now, p.a, reached(p.a, p.b), fixLength(protected(Header{SPIi: sa.spiI, SPIr: 77 << 20, Flags: FlagInitiator})))
	if m != nil {
		if _, ok := m.FindNotify(NotifyQuickCrashDetection); ok {
			t.Fatal("a token is shown for an SPI that we are connecting with: it will be that of a living SA")
		}
	}
}

func TestForgedTokensAndFloodsChangeNothing(t *testing.T) {
	p := newQCDPair(t, nil)
	sa := &p.a.m.sas[0]
	forge := func(tokens ...[]byte) []byte {
		b := NewBuilder(nil, Header{SPIi: sa.spiI, SPIr: sa.spiR, Exchange: ExchangeInformational, Flags: FlagResponse})
		b.Notify(NotifyInvalidIKESPI, ProtoNone, nil, nil)
		for _, x := range tokens {
			writeToken(b, x)
		}
		return b.Finish()
	}
	right := p.b.m.qcd.token(sa.spiI, sa.spiR)
	wrong := func(n int) []byte { return bytes.Repeat([]byte{7}, n) }
	p.a.events = nil
	for range 50 {
		for _, tokens := range [][][]byte{{wrong(32)}, {wrong(0)}, {wrong(15)}, {wrong(129)}, {right[:31]}, {append(append([]byte(nil), right...), 0)},
			{wrong(32), wrong(32), wrong(32), wrong(32), right}} {
			if m := answerTo(t, p.now, p.a, reached(p.a, p.b), forge(tokens...)); m != nil {
				t.Fatalf("a forged token is answered with %s", m.summary())
			}
		}
	}
	dropped := 0
	for _, e := range p.a.events {
		if e.Kind == EvDropped && e.Err == ErrWrongToken {
			dropped++
		}
	}
	if dropped != 350 {
		t.Fatalf("%d of 350 forged tokens were counted", dropped)
	}
	p.same(1)
	// The flood is over its share; the true one, fourth of four and from another address, counts.
	other := Path{Local: netip.AddrPortFrom(p.a.addr, 4500), Remote: netip.MustParseAddrPort("203.0.113.9:4500"), NATT: true}
	p.now.Mono += time.Second
	p.a.mangle = func(*Output) bool { return false }
	answerTo(t, p.now, p.a, other, forge(wrong(32), wrong(16), wrong(128), right))
	if p.a.count(EvIKEDown) != 1 || len(p.a.sas) != 0 {
		t.Fatal("the true token, which may come from any address, is not believed")
	}
}

func TestTokenOfAFormerSAEndsNothing(t *testing.T) {
	p := newQCDPair(t, nil)
	old := p.b.m.qcd.token(p.a.m.sas[0].spiI, p.a.m.sas[0].spiR)
	p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: 7, Conn: "link"})
	p.run()
	for i := range p.a.m.sas {
		if sa := &p.a.m.sas[i]; sa.state == StateEstablished {
			b := NewBuilder(nil, Header{SPIi: sa.spiI, SPIr: sa.spiR, Exchange: ExchangeInformational, Flags: FlagResponse})
			writeToken(b, old)
			answerTo(t, p.now, p.a, reached(p.a, p.b), b.Finish())
		}
	}
	p.run()
	p.same(1)
}

func TestHintsCauseAtMostOneCheckInAWhile(t *testing.T) {
	p := newQCDPair(t, nil)
	sa := &p.a.m.sas[0]
	spi := make([]byte, 4)
	copy(spi, be32(inbound(p.a, 0)))
	invalid := func() []byte {
		b := NewBuilder(nil, Header{Exchange: ExchangeInformational, Flags: FlagInitiator})
		b.Notify(NotifyInvalidSPI, ProtoNone, nil, spi)
		return b.Finish()
	}
	unknown := NewBuilder(nil, Header{SPIi: sa.spiI, SPIr: sa.spiR, Exchange: ExchangeInformational, Flags: FlagResponse})
	unknown.Notify(NotifyInvalidIKESPI, ProtoNone, nil, nil)
	plain := unknown.Finish()
	p.now.Mono += time.Minute
	sent := 0
	p.a.mangle = func(*Output) bool { sent++; return true }
	for range 100 {
		p.a.m.Datagram(p.now, reached(p.a, p.b), invalid())
		p.a.m.Datagram(p.now, reached(p.a, p.b), append([]byte(nil), plain...))
		p.run()
	}
	if sent != 1 {
		t.Fatalf("200 hints have caused %d messages, want one liveness check", sent)
	}
	// One from elsewhere, and one about no SA of ours, are none.
	p.now.Mono += time.Minute
	p.a.m.Datagram(p.now, Path{Local: netip.AddrPortFrom(p.a.addr, 500), Remote: netip.MustParseAddrPort("203.0.113.9:500")}, invalid())
	spi[0] ^= 1
	p.a.m.Datagram(p.now, reached(p.a, p.b), invalid())
	p.run()
	if sent != 1 {
		t.Fatalf("a hint from a stranger or about no SA of ours has caused a message")
	}
	p.same(1)
}

func TestFloodOfUnknownSPIsIsAnsweredAtALimitedRate(t *testing.T) {
	p := newQCDPair(t, nil)
	p.b.m.conns[0].conn.RemoteAddrs = nil
	n, tokens := 0, 0
	for i := range 1000 {
		h := Header{SPIi: uint64(i+1) << 20, SPIr: uint64(i+9) << 24, Flags: FlagInitiator}
		path := reached(p.b, p.a)
		if i%10 == 0 {
			path.Remote = netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), 500)
		}
		if m := answerTo(t, p.now, p.b, path, fixLength(protected(h))); m != nil {
			n++
			if _, ok := m.FindNotify(NotifyQuickCrashDetection); ok {
				tokens++
			}
		}
	}
	if tokens == 0 || tokens > 16*tokensPerSource || n > tokens+noticesPerSecond {
		t.Fatalf("%d answers, %d of them with tokens, to 1000 messages for unknown SPIs in a moment", n, tokens)
	}
	for range 100 {
		p.b.m.Command(p.now, Command{Kind: CmdInvalidSPI, SPI: 0x99887766, Path: reached(p.b, p.a)})
	}
	p.b.drain(p.now)
	if len(p.b.out) != 0 {
		t.Fatal("INVALID_SPI in clear while there is an IKE SA with the peer")
	}
	p.restart(p.b)
	for range 100 {
		p.b.m.Command(p.now, Command{Kind: CmdInvalidSPI, SPI: 0x99887766, Path: reached(p.b, p.a)})
	}
	p.b.drain(p.now)
	if len(p.b.out) != tokensPerSource {
		t.Fatalf("%d INVALID_SPI for 100 packets in a moment, want %d", len(p.b.out), tokensPerSource)
	}
	var m Message
	if err := m.Parse(p.b.out[0].Data); err != nil || m.Flags != FlagInitiator || m.SPIi != 0 || m.SPIr != 0 || m.ID != 0 {
		t.Fatalf("%v: %s, want a one-way INFORMATIONAL as in RFC 7296 section 1.5", err, m.summary())
	}
	if n, ok := m.FindNotify(NotifyInvalidSPI); !ok || !bytes.Equal(n.Data, []byte{0x99, 0x88, 0x77, 0x66}) {
		t.Fatalf("INVALID_SPI does not name the SPI: %x", n.Data)
	}
	p.b.out = nil
}

func TestWithoutASecretThereIsNoToken(t *testing.T) {
	p := newPair(t, nil)
	p.up()
	for _, h := range []*host{p.a, p.b} {
		if h.m.sas[0].qcd.set {
			t.Fatal("a token was given out though the extension is off")
		}
	}
	p.b.m.conns[0].conn.RemoteAddrs = nil
	m := answerTo(t, p.now, p.b, reached(p.b, p.a), fixLength(protected(Header{SPIi: 1 << 20, SPIr: 2 << 20, Flags: FlagInitiator})))
	if _, ok := m.FindNotify(NotifyQuickCrashDetection); ok {
		t.Fatal("a token is shown though the extension is off")
	}
}
