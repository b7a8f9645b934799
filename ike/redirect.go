package ike

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Redirect (RFC 5685): a gateway sends a client to another gateway, in its answer to the
// first message, after it has authenticated the client, or at any time later. It changes
// nothing but the address that the client connects to: identities, secrets and selectors
// are those of the same connection.
//
//	gateway:  redirectInit, redirectAuth, cmdRedirect
//	client:   initRedirected, authRedirected, sessionRedirected -> connect

const (
	// maxRedirects and redirectPeriod keep a client out of loops (section 7).
	maxRedirects   = 5
	redirectPeriod = 300 * time.Second
	// redirectedMax is how long a client that was redirected in IKE_AUTH may take to delete
	// the IKE SA.
	redirectedMax = 30 * time.Second
)

// Types of a gateway's identity (section 9.2).
const (
	gatewayIPv4 = 1
	gatewayIPv6 = 2
	gatewayFQDN = 3
)

// Reasons not to follow a redirect, and the end of what was redirected.
var (
	ErrRedirected   = errors.New("redirected to another gateway")
	ErrRedirectLoop = errors.New("too many redirects in a short time: the gateways send us in a circle")
	ErrRedirectName = errors.New("the gateway sends us to a name, which is not looked up: have it send an address")
	ErrRedirectAddr = errors.New("the gateway sends us to an address that nobody can have")
	ErrRedirectFake = errors.New("redirect without the nonce of our request: not the gateway's")
	ErrNoRedirect   = errors.New("the peer did not say that it can be redirected, or it is the gateway")
)

// Gateway is where a client is sent: an address, or a domain name. The zero value is none.
type Gateway struct {
	Addr netip.Addr
	Name string // if Addr is not valid
}

// ParseGateway reads an address or a domain name; ok is false if it is neither.
func ParseGateway(s string) (g Gateway, ok bool) {
	if a, err := netip.ParseAddr(s); err == nil {
		a = a.Unmap()
		return Gateway{Addr: a}, a.Zone() == "" && !a.IsUnspecified() && !a.IsMulticast()
	}
	return Gateway{Name: s}, domainName(s)
}

// domainName tells whether s can be a fully qualified domain name.
func domainName(s string) bool {
	if len(s) == 0 || len(s) > 253 || strings.Trim(s, ".") != s {
		return false
	}
	for i := range len(s) {
		c := s[i] | 0x20
		if (c < 'a' || c > 'z') && (s[i] < '0' || s[i] > '9') && s[i] != '-' && s[i] != '.' {
			return false
		}
	}
	return true
}

// String returns the address or the name.
func (g Gateway) String() string {
	if g.Addr.IsValid() {
		return g.Addr.String()
	}
	return g.Name
}

// body returns the data of a REDIRECT or REDIRECTED_FROM notify:
//
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	| GW Ident Type |  GW Ident Len |   New Responder GW Identity   ~
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	~                           Nonce Data                          ~
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
func (g Gateway) body(nonce []byte) []byte {
	typ, id := byte(gatewayFQDN), []byte(g.Name)
	if g.Addr.IsValid() {
		if typ, id = gatewayIPv6, g.Addr.AsSlice(); g.Addr.Is4() {
			typ = gatewayIPv4
		}
	}
	return append(append([]byte{typ, byte(len(id))}, id...), nonce...)
}

// parseRedirect reads the data of a REDIRECT notify.
func parseRedirect(b []byte) (g Gateway, nonce []byte, err error) {
	c := cursor{b: b}
	typ := c.u8()
	id := c.take(int(c.u8()))
	nonce = c.rest()
	ok := c.ok()
	switch {
	case !ok:
	case typ == gatewayIPv4 && len(id) == 4, typ == gatewayIPv6 && len(id) == 16:
		g.Addr, _ = netip.AddrFromSlice(id)
		g.Addr = g.Addr.Unmap()
	case typ == gatewayFQDN && domainName(string(id)):
		g.Name = string(id)
	default:
		ok = false
	}
	if !ok {
		return Gateway{}, nil, syntax(PayloadNotify, "REDIRECT", errValue)
	}
	return g, nonce, nil
}

// redirectSA is an IKE SA's part: as gateway, that the client can be redirected; as
// client, that we have said so.
type redirectSA struct {
	able bool
}

// redirectState is a connection's part, as client. to is where the next attempt goes
// instead of to the configured addresses, from the gateway that said so. old is the IKE SA
// that the attempt is to replace.
type redirectState struct {
	to, from netip.Addr
	old      uint32
	at       []time.Duration // the last redirects that were followed
}

// count notes a redirect, or says why it is not to be followed.
func (r *redirectState) count(now time.Duration, g Gateway) error {
	switch {
	case !g.Addr.IsValid():
		return ErrRedirectName
	case g.Addr.IsUnspecified() || g.Addr.IsMulticast():
		return ErrRedirectAddr
	}
	r.at = slices.DeleteFunc(r.at, func(t time.Duration) bool { return now-t >= redirectPeriod })
	if len(r.at) >= maxRedirects {
		return ErrRedirectLoop
	}
	r.at = append(r.at, now)
	return nil
}

// redirectNotify tells the gateway that we can be redirected, or from where we have been.
func (m *Machine) redirectNotify(b *Builder, sa *ikeSA) {
	if sa.conns == nil || sa.conn.IgnoreRedirects {
		return
	}
	sa.redirect.able = true
	if r := &sa.conns.redirect; r.to.IsValid() {
		b.Notify(NotifyRedirectedFrom, ProtoNone, nil, Gateway{Addr: r.from}.body(nil))
		return
	}
	b.Notify(NotifyRedirectSupported, ProtoNone, nil, nil)
}

// redirectAble tells whether the initial request in m.msg says that its sender can be
// redirected.
func (m *Machine) redirectAble() bool {
	_, able := m.msg.FindNotify(NotifyRedirectSupported)
	_, from := m.msg.FindNotify(NotifyRedirectedFrom)
	return able || from
}

// redirectInit answers an initial request with a redirect where the addresses alone say
// that the client belongs elsewhere: who it is must not show before it is authenticated
// (section 11). Nothing is kept of the request.
func (m *Machine) redirectInit(p Path, h *Header, ni []byte) bool {
	var g Gateway
	found := false
	for _, s := range m.conns {
		if !m.matches(s.conn, p) {
			continue
		}
		if found && g != s.conn.RedirectTo {
			return false
		}
		g, found = s.conn.RedirectTo, true
	}
	if g == (Gateway{}) || g.Addr == p.Local.Addr() || !m.redirectAble() {
		return false
	}
	m.event(Event{Kind: EvRedirected, Path: p, Text: "sent to " + g.String()})
	m.notice(p, h, NotifyRedirect, g.body(ni))
	return true
}

// redirectAuth answers an authentic IKE_AUTH request with a redirect in the place of a
// CHILD SA, if the connection says so. prove writes how we authenticate.
func (m *Machine) redirectAuth(sa *ikeSA, p Path, prove func(*Builder)) bool {
	g := sa.conn.RedirectTo
	if g == (Gateway{}) || g.Addr == p.Local.Addr() || !sa.redirect.able {
		return false
	}
	m.event(Event{Kind: EvRedirected, Conn: sa.connName(), IKE: sa.unique, Path: p, Text: "sent to " + g.String()})
	m.redirectedSA(sa)
	m.arm(sa, tExpire, redirectedMax)
	m.respond(sa, p, ExchangeAuth, func(b *Builder) {
		prove(b)
		b.Notify(NotifyRedirect, ProtoNone, nil, g.body(nil))
	})
	return true
}

// redirectedSA makes an IKE SA one that is there only to be deleted.
func (m *Machine) redirectedSA(sa *ikeSA) {
	sa.state, sa.closeErr = StateEstablished, ErrRedirected
	sa.established, sa.lastIn = m.now.Mono, m.now.Mono
	sa.timers[tConnect] = never
	m.releaseSPI(sa.init.spiIn)
	sa.init.wipe()
}

// cmdRedirect sends clients away (section 5).
func (m *Machine) cmdRedirect(c *Command, w *waiter) error {
	err := ErrNotFound
	for i := range m.sas {
		sa := &m.sas[i]
		if sa.state != StateEstablished || sa.closeErr != nil || c.IKE != 0 && sa.unique != c.IKE || c.Conn != "" && sa.connName() != c.Conn {
			continue
		}
		if !sa.redirect.able || sa.origin.ours {
			if err != nil {
				err = ErrNoRedirect
			}
			continue
		}
		err = nil
		w.left++
		m.queue(sa, task{kind: taskRedirect, gateway: c.Gateway, waiters: []*waiter{w}})
	}
	return err
}

// initRedirected follows a redirect in the answer to our initial request. The answer is
// not authenticated: the nonce shows that it comes from somebody who has seen the request
// (section 3). handled is false if the message is something else.
func (m *Machine) initRedirected(sa *ikeSA, p Path) (handled bool) {
	n, ok := m.msg.FindNotify(NotifyRedirect)
	if !ok || !sa.redirect.able {
		return false
	}
	g, nonce, err := parseRedirect(n.Data)
	if err == nil && (m.msg.SPIr != 0 || !bytes.Equal(nonce, sa.ni)) {
		err = ErrRedirectFake
	}
	if err != nil {
		m.drop(p, err) // and wait for another answer
		return true
	}
	s := sa.conns
	if err := m.countRedirect(s, p, g); err != nil {
		m.destroy(sa, err)
		return true
	}
	sa.conns = nil
	m.destroy(sa, ErrRedirected)
	m.redirectConnect(s, p, g)
	return true
}

// countRedirect tells about a redirect and whether it is followed.
func (m *Machine) countRedirect(s *connState, p Path, g Gateway) error {
	err := s.redirect.count(m.now.Mono, g)
	m.event(Event{Kind: EvRedirected, Conn: s.conn.Name, Path: p, Text: "to " + g.String(), Err: err})
	return err
}

func (m *Machine) redirectConnect(s *connState, p Path, g Gateway) {
	s.redirect.to, s.redirect.from = g.Addr, p.Remote.Addr()
	s.dial.failed = 0 // a round of its own
	m.connect(s)
}

// authRedirected follows a redirect in the IKE_AUTH response, whose AUTH payload is good
// (section 6).
func (m *Machine) authRedirected(sa *ikeSA, p Path) (handled bool) {
	n, ok := m.msg.FindNotify(NotifyRedirect)
	if !ok || !sa.redirect.able {
		return false
	}
	s := sa.conns
	g, nonce, err := parseRedirect(n.Data)
	if err == nil && len(nonce) != 0 {
		err = syntax(PayloadNotify, "REDIRECT", errTrailing)
	}
	m.redirectedSA(sa)
	m.closeIKE(sa, ErrRedirected, nil)
	if err == nil {
		err = m.countRedirect(s, p, g)
	}
	if err != nil {
		m.attemptFailed(s, err)
		return true
	}
	m.redirectConnect(s, p, g)
	return true
}

// sessionRedirected follows a redirect in an INFORMATIONAL request (section 5). The present
// SAs stay until the new ones are there.
func (m *Machine) sessionRedirected(sa *ikeSA, p Path) {
	n, ok := m.msg.FindNotify(NotifyRedirect)
	s := m.stateOf(sa.conn)
	if !ok || s == nil || !sa.redirect.able || !sa.origin.ours || sa.state != StateEstablished || sa.closeErr != nil || m.attempt(s) != nil {
		return
	}
	g, nonce, err := parseRedirect(n.Data)
	if err == nil && len(nonce) != 0 {
		err = syntax(PayloadNotify, "REDIRECT", errTrailing)
	}
	if err != nil {
		m.drop(p, err)
		return
	}
	if m.countRedirect(s, p, g) != nil {
		return
	}
	from := m.findIKE(sa.reauth.old) // whose CHILD SAs were still to be made on this one, or nil
	for i := range m.children {
		c := &m.children[i]
		if c.state != ChildInstalled && c.state != ChildRekeying || c.ike != sa.slot && (from == nil || c.ike != from.slot) ||
			slices.ContainsFunc(s.wanted, func(w wish) bool { return w.cfg == c.cfg }) {
			continue
		}
		s.wanted = append(s.wanted, wish{cfg: c.cfg})
	}
	if len(s.wanted) == 0 {
		m.closeIKE(sa, ErrRedirected, nil)
		return
	}
	s.redirect.old = sa.unique
	m.redirectConnect(s, p, g)
}

// redirectEnds forgets where the last attempt was sent, with success or without: the next
// one begins with the configured addresses. With success the IKE SA before is closed.
func (m *Machine) redirectEnds(s *connState, up bool) {
	old := s.redirect.old
	s.redirect.to, s.redirect.from, s.redirect.old = netip.Addr{}, netip.Addr{}, 0
	if old == 0 || !up {
		return
	}
	for i := range m.sas {
		if o := &m.sas[i]; o.state == StateEstablished && o.unique == old {
			m.closeIKE(o, ErrReplaced, nil)
		}
	}
}
