package ike

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// resumePair is a pair with resumption, a being the client, the tunnel up.
func resumePair(t testing.TB, change func(a, b *Conn)) *qcdPair {
	p := &qcdPair{newPair(t, func(a, b *Conn) {
		for _, c := range []*Conn{a, b} {
			c.Resumption, c.KeyingTries = true, 0
			c.Children[0].DPDAction = ActionRestart
		}
		if change != nil {
			change(a, b)
		}
	}), map[*host]Config{}}
	p.now.Wall = time.Unix(clockSet+1_000_000, 0)
	for i, h := range []*host{p.a, p.b} {
		c := Config{Conns: []*Conn{h.m.conns[0].conn}, Secrets: h.m.secrets, QCDSecret: bytes.Repeat([]byte{byte(i + 1)}, qcdSecretLen)}
		p.cfg[h] = c
		if err := h.m.Configure(p.now, c); err != nil {
			t.Fatal(err)
		}
	}
	p.b.m.SetTicketKeys([]TicketKey{{[8]byte{1}, [32]byte{2}}})
	p.up()
	return p
}

// restartGateway makes b forget all but its configuration and its secrets.
func (p *qcdPair) restartGateway() {
	keys := p.b.m.tickets.keys
	p.restart(p.b)
	for _, k := range keys {
		p.b.m.SetTicketKeys([]TicketKey{k.TicketKey})
	}
}

// lose makes a believe that b has restarted.
func (p *qcdPair) lose() {
	p.a.m.peerRestarted(p.a.m.established(p.a.m.conns[0].conn))
}

// exchanges notes which exchanges h starts.
func exchanges(h *host) *[]string {
	var list []string
	h.mangle = func(o *Output) bool {
		if d, err := ParseHeader(o.Data); err == nil && d.Flags&FlagResponse == 0 {
			list = append(list, d.Exchange.String())
		}
		return true
	}
	return &list
}

func wantExchanges(t *testing.T, got *[]string, want string) {
	t.Helper()
	if s := strings.Join(*got, " "); s != want {
		t.Fatalf("the client started %q, want %q", s, want)
	}
}

func resumedUp(h *host) bool {
	for i := len(h.events) - 1; i >= 0; i-- {
		if e := &h.events[i]; e.Kind == EvIKEUp {
			return e.Text != ""
		}
	}
	return false
}

func TestLostSessionGoesOnByItsTicket(t *testing.T) {
	for _, suite := range []string{"aes128gcm16-prfsha256-x25519", "aes256-sha512-modp2048", "chacha20poly1305-prfsha384-ecp256"} {
		p := resumePair(t, func(a, b *Conn) {
			a.Proposals, b.Proposals = mustProposals(t, ProtoIKE, suite), mustProposals(t, ProtoIKE, suite)
		})
		for i := range 3 { // each resumed session gets a ticket of its own
			jobs := p.a.m.workSeq + p.b.m.workSeq
			sent := exchanges(p.a)
			if i != 1 {
				p.restartGateway() // else the gateway still has the session, and drops it
			}
			p.lose()
			p.run()
			wantExchanges(t, sent, "IKE_SESSION_RESUME IKE_AUTH")
			if i == 1 && p.a.m.workSeq+p.b.m.workSeq != jobs {
				t.Fatal("a resumption computed a key exchange")
			}
			p.same(1)
			if !resumedUp(p.a) || !resumedUp(p.b) {
				t.Fatal("the sides do not say that the session was resumed")
			}
			for _, h := range []*host{p.a, p.b} {
				n := 0
				h.m.List(func(*SAInfo) bool { n++; return true })
				if n != 1 {
					t.Fatalf("%v has %d IKE SAs after a resumption, want 1", h.addr, n)
				}
			}
			p.a.m.Command(p.now, Command{Kind: CmdRekey, Tag: uint64(100 + i), Conn: "link", Child: "net"})
			p.run()
			p.done(p.a, uint64(100+i), nil)
			p.pass(2 * linger)
		}
	}
}

// The keys of RFC 5723 section 5.1, computed by hand.
func TestResumedKeysAreThoseOfTheRFC(t *testing.T) {
	p := resumePair(t, nil)
	old := append([]byte(nil), p.a.m.sas[0].keys.d...)
	p.restartGateway()
	p.lose()
	p.run()
	sa := p.a.m.established(p.a.m.conns[0].conn)
	seed := PRFHMACSHA256.sum(old, append(append([]byte("Resumption"), sa.ni...), sa.nr...))
	if want := sa.suite.deriveKeys(seed, sa.ni, sa.nr, sa.spiI, sa.spiR); !bytes.Equal(want.d, sa.keys.d) || bytes.Equal(old, sa.keys.d) {
		t.Fatal("SK_d is not prf+(prf(SK_d_old, \"Resumption\" | Ni | Nr), Ni | Nr | SPIi | SPIr)")
	}
}

func TestRefusedTicketLeadsToAFullExchange(t *testing.T) {
	for name, c := range map[string]struct {
		change func(p *qcdPair)
		err    error
	}{
		"expired":         {func(p *qcdPair) { p.now.Wall = p.now.Wall.Add(25 * time.Hour) }, errTicketOld},
		"clock not set":   {func(p *qcdPair) { p.now.Wall = time.Unix(1000, 0) }, errTicketClock},
		"clock went back": {func(p *qcdPair) { p.now.Wall = p.now.Wall.Add(-time.Hour) }, errTicketClock},
		"other key":       {func(p *qcdPair) { p.b.m.SetTicketKeys([]TicketKey{{[8]byte{9}, [32]byte{2}}}) }, errTicketKey},
		"forged key":      {func(p *qcdPair) { p.b.m.SetTicketKeys([]TicketKey{{[8]byte{1}, [32]byte{3}}}) }, errTicketSeal},
		"no key":          {func(p *qcdPair) { p.b.m.SetTicketKeys(nil) }, errTicketKey},
		"tampered":        {func(p *qcdPair) { t := p.a.m.sas[0].resume.ticket.opaque; t[len(t)-1] ^= 1 }, errTicketSeal},
		"cut":             {func(p *qcdPair) { t := p.a.m.sas[0].resume.ticket; t.opaque = t.opaque[:20] }, errTicketForm},
		"other version":   {func(p *qcdPair) { p.a.m.sas[0].resume.ticket.opaque[0]++ }, errTicketForm},
		"switched off":    {func(p *qcdPair) { p.b.m.conns[0].conn.Resumption = false }, errTicketRefused},
		"renamed":         {func(p *qcdPair) { p.b.m.conns[0].conn.Name = "other" }, errTicketRefused},
		"new secret": {func(p *qcdPair) {
			s := []Secret{{Key: []byte("the new secret")}}
			p.a.m.secrets, p.b.m.secrets = s, s
		}, errTicketRefused},
		"suite not wanted any more": {func(p *qcdPair) {
			c := p.b.m.conns[0].conn
			c.Proposals = mustProposals(p.a.t, ProtoIKE, "aes256gcm16-prfsha384-x25519")
			p.a.m.conns[0].conn.Proposals = c.Proposals
		}, errTicketRefused},
		"used": {func(p *qcdPair) { p.b.m.revoke(p.b.m.sas[0].resume.nonce) }, errTicketUsed},
	} {
		t.Run(name, func(t *testing.T) {
			p := resumePair(t, nil)
			c.change(p)
			p.b.events = nil
			sent := exchanges(p.a)
			p.lose()
			p.run()
			wantExchanges(t, sent, "IKE_SESSION_RESUME IKE_SA_INIT IKE_AUTH")
			found := false
			for _, e := range p.b.events {
				found = found || e.Kind == EvRefused && e.Text == "TICKET_NACK" && e.Err == c.err
			}
			if !found {
				t.Fatalf("the gateway did not refuse the ticket because of %q: %+v", c.err, p.b.events)
			}
			if p.a.count(EvNotResumed) != 1 || p.a.count(EvFailed) != 0 {
				t.Fatal("the client does not go on with a full exchange in the same attempt")
			}
			p.same(1)
		})
	}
}

func TestGatewayThatDoesNotKnowTheExchangeGetsAFullOne(t *testing.T) {
	p := resumePair(t, nil)
	sent := exchanges(p.a)
	note := p.a.mangle
	p.a.mangle = func(o *Output) bool {
		note(o)
		h, _ := ParseHeader(o.Data)
		return h.Exchange != ExchangeSessionResume
	}
	p.restartGateway()
	p.lose()
	p.pass(15 * time.Second)
	wantExchanges(t, sent, "IKE_SESSION_RESUME IKE_SESSION_RESUME IKE_SA_INIT IKE_AUTH")
	p.same(1)
}

func TestTicketGoesWithItsSession(t *testing.T) {
	for name, end := range map[string]func(p *qcdPair){
		"closed by the client":  func(p *qcdPair) { p.a.m.Command(p.now, Command{Kind: CmdTerminate, Conn: "link"}) },
		"closed by the gateway": func(p *qcdPair) { p.b.m.Command(p.now, Command{Kind: CmdTerminate, Conn: "link"}) },
		"closed, no answer": func(p *qcdPair) {
			p.b.mangle = func(*Output) bool { return false }
			p.a.m.Command(p.now, Command{Kind: CmdTerminate, Conn: "link"})
			p.pass(10 * time.Minute)
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := resumePair(t, nil)
			nonce := p.b.m.sas[0].resume.nonce
			end(p)
			p.run()
			if p.a.m.conns[0].ticket != nil {
				t.Fatal("the client keeps the ticket of a session that was closed (RFC 5723 section 6.2)")
			}
			if name == "closed, no answer" {
				return
			}
			for _, n := range p.b.m.tickets.used {
				if n == nonce {
					return
				}
			}
			t.Fatal("the gateway would still take the ticket of a session that was closed")
		})
	}
}

// A close that still waits for the answer to another request when the peer is given up.
func TestTicketOfASessionThatIsBeingClosedIsNotKept(t *testing.T) {
	p := resumePair(t, nil)
	p.b.mangle = func(*Output) bool { return false }
	p.a.m.Command(p.now, Command{Kind: CmdRekey, Conn: "link", Child: "net"})
	p.a.m.Command(p.now, Command{Kind: CmdTerminate, Conn: "link"})
	p.pass(10 * time.Minute)
	if len(p.a.sas) != 0 || p.a.m.conns[0].ticket != nil {
		t.Fatal("the client keeps the ticket of a session that the user has closed")
	}
}

// The gateway drops the session that goes on, whether the client says INITIAL_CONTACT or not.
func TestResumedSessionTakesThePlaceOfTheOneBefore(t *testing.T) {
	p := resumePair(t, nil)
	a := &p.a.m.sas[9] // another IKE SA, so that the client cannot say it
	*a = ikeSA{slot: 9, state: StateRekeyed, localID: p.a.m.sas[0].localID, peerID: p.a.m.sas[0].peerID}
	a.timers.clear()
	p.b.events = nil
	p.lose()
	p.run()
	if n := p.b.count(EvIKEDown); n != 1 || !resumedUp(p.b) {
		t.Fatalf("the gateway has %d IKE SAs down, want the one that goes on", n)
	}
	*a = ikeSA{slot: 9}
	a.timers.clear()
	p.pass(2 * linger)
	p.same(1)
}

func TestRekeyedSessionGetsANewTicket(t *testing.T) {
	for name, by := range map[string]func(p *qcdPair) *host{
		"by the client":  func(p *qcdPair) *host { return p.a },
		"by the gateway": func(p *qcdPair) *host { return p.b },
	} {
		t.Run(name, func(t *testing.T) {
			p := resumePair(t, nil)
			h := by(p)
			h.m.Command(p.now, Command{Kind: CmdRekey, Tag: 7, Conn: "link"})
			p.run()
			p.done(h, 7, nil)
			p.restartGateway()
			sent := exchanges(p.a)
			p.lose()
			p.run()
			wantExchanges(t, sent, "IKE_SESSION_RESUME IKE_AUTH")
			p.same(1)
		})
	}
}

func TestTicketIsRenewedBeforeItIsTooOld(t *testing.T) {
	p := resumePair(t, nil)
	first := append([]byte(nil), p.a.m.sas[0].resume.ticket.opaque...)
	p.now.Wall = p.now.Wall.Add(19 * time.Hour)
	p.pass(19 * time.Hour)
	if bytes.Equal(first, p.a.m.sas[0].resume.ticket.opaque) {
		t.Fatal("after 19 of 24 hours the client has the same ticket")
	}
}

func TestResumptionTakesCookiesAndHalfOpenPlacesAsIKESAInitDoes(t *testing.T) {
	p := resumePair(t, nil)
	p.b.m.cookieFrom = 0
	sent := exchanges(p.a)
	p.lose()
	p.run()
	wantExchanges(t, sent, "IKE_SESSION_RESUME IKE_SESSION_RESUME IKE_AUTH")
	p.same(1)
	// A stolen ticket, shown again and again, takes no more than the places of one host.
	ticket := p.a.m.sas[0].resume
	for i := range p.a.m.sas {
		if p.a.m.sas[i].state == StateEstablished {
			ticket = p.a.m.sas[i].resume
		}
	}
	p.b.m.cookieFrom = 1000
	for i := range 200 {
		b := NewBuilder(nil, Header{SPIi: uint64(i+1) << 32, Exchange: ExchangeSessionResume, Flags: FlagInitiator})
		b.Nonce(bytes.Repeat([]byte{byte(i)}, 32))
		b.Notify(NotifyTicketOpaque, ProtoNone, nil, ticket.ticket.opaque)
		answerTo(t, p.now, p.b, reached(p.b, p.a), b.Finish())
	}
	half := 0
	for i := range p.b.m.sas {
		if p.b.m.sas[i].state == StateConnecting {
			half++
		}
	}
	if half == 0 || half > p.b.m.halfOpenPerHost() {
		t.Fatalf("%d half-open IKE SAs of one host that shows a stolen ticket, want up to %d", half, p.b.m.halfOpenPerHost())
	}
	p.pass(2 * halfOpenLife)
	p.same(1)
}

// Who has copied a ticket does not have the keys that go with it.
func TestStolenTicketDoesNotOpenASession(t *testing.T) {
	p := resumePair(t, nil)
	p.a.m.sas[0].resume.ticket.skd[0] ^= 1
	p.b.events = nil
	p.lose()
	p.run()
	if p.b.count(EvIKEUp) != 0 || p.b.m.sas[0].state != StateEstablished || p.b.m.tickets.next != 0 {
		t.Fatal("a client without SK_d was let in, or has used up the ticket of the one that has it")
	}
}

func TestPolicyThatChangesBetweenTheExchangesIsObeyed(t *testing.T) {
	p := resumePair(t, nil)
	p.b.events = nil
	changed := false
	p.b.mangle = func(o *Output) bool {
		if h, _ := ParseHeader(o.Data); h.Exchange == ExchangeSessionResume {
			p.b.m.conns[0].conn.Resumption, changed = false, true
		}
		return true
	}
	sent := exchanges(p.a)
	p.lose()
	p.pass(20 * time.Second)
	if !changed || p.b.count(EvRefused) == 0 {
		t.Fatal("the session was resumed although the configuration forbids it by now")
	}
	wantExchanges(t, sent, "IKE_SESSION_RESUME IKE_AUTH IKE_SA_INIT IKE_AUTH")
	p.same(1)
}

func TestNoTicketWithoutResumption(t *testing.T) {
	for name, c := range map[string]func(a, b *Conn){
		"client":  func(a, b *Conn) { a.Resumption = false },
		"gateway": func(a, b *Conn) { b.Resumption = false },
	} {
		p := resumePair(t, c)
		if p.a.m.sas[0].resume.ticket != nil || p.b.m.sas[0].resume.issued {
			t.Errorf("%s without resumption, but a ticket was given", name)
		}
		sent := exchanges(p.a)
		p.lose()
		p.run()
		wantExchanges(t, sent, "IKE_SA_INIT IKE_AUTH")
	}
}

func FuzzTicket(f *testing.F) {
	m := New(&host{t: f}, Limits{})
	m.SetTicketKeys([]TicketKey{{}})
	k := &m.tickets.keys[0]
	s := sessionState{issued: 1, expires: 2, conn: "c", client: ID{IDFQDN, "a"}, gateway: ID{IDFQDN, "b"}, skd: make([]byte, 32),
		suite: IKESuite{Encr: 20, KeyBits: 128, PRF: PRFHMACSHA256, DH: Curve25519}}
	f.Add(k.seal(&s)[ticketHead:], true)
	f.Add([]byte("anything"), false)
	f.Fuzz(func(t *testing.T, b []byte, sealed bool) {
		head := append([]byte{ticketVersion}, make([]byte, ticketHead-1)...)
		if sealed {
			b = append(head, b...)
		} else { // what somebody with the key could make
			b = k.aead.Seal(head, head[9:ticketHead], b, head[:9])
		}
		got, _, err := m.tickets.open(b)
		if err == nil {
			if again, _, err := m.tickets.open(k.seal(got)); err != nil || again.conn != got.conn || !bytes.Equal(again.skd, got.skd) {
				t.Fatalf("a ticket that opens does not survive being sealed again: %v", err)
			}
		}
	})
}

// A gateway may have a ticket, but not at once.
func TestTicketIsAskedForAgainAfterAnAcknowledgement(t *testing.T) {
	p := resumePair(t, nil)
	m, sa := p.a.m, &p.a.m.sas[0]
	first := append([]byte(nil), sa.resume.ticket.opaque...)
	b := NewBuilder(nil, Header{})
	b.Notify(NotifyTicketAck, ProtoNone, nil, nil)
	if err := m.msg.Parse(b.Finish()); err != nil {
		t.Fatal(err)
	}
	sa.resume.asked = true
	m.takeTicket(sa)
	p.pass(2 * ticketLater)
	if bytes.Equal(first, sa.resume.ticket.opaque) {
		t.Fatal("no ticket was asked for after TICKET_ACK")
	}
}
