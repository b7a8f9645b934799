package engine

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"postern/engine/config"
	"postern/engine/log"
	"postern/engine/vici"
	"postern/ike"
)

// The name servers that gateways assign. Which names they are asked for:
//
//   - If the connection protects everything: all. What the gateway says of domains is ignored then
//     (RFC 8598 section 8).
//   - Else the domains that the gateway names, as far as the connection's dns_domains allow them
//     (RFC 8598 section 5), or those themselves if the gateway names none (section 3.2). A domain
//     belongs to one connection, the first in the configuration (section 8).
//   - A server that no policy of the connection protects is asked for nothing: what is
//     internal would travel in clear.
//
// DNSSEC trust anchors are not used: that takes a list of domains which are allowed to have some
// (RFC 8598 section 6), and a validating resolver behind it. Encrypted resolvers (RFC 9464) are
// listed by status alone.

const (
	// maxDNSServers and maxDNSDomains bound what is taken of one connection and of all.
	maxDNSServers = 8
	maxDNSDomains = 64
	// dnsEndTime bounds how long the end of the daemon waits for the programs that manage name
	// servers; each of them has five seconds.
	dnsEndTime = 6 * time.Second
)

// dnsChoice is which servers of a connection are asked, and for what.
type dnsChoice struct {
	servers []netip.Addr
	all     bool     // for all names
	domains []string // or for these

	unprotected []netip.Addr // servers that are not asked
	refused     []string     // domains that are not allowed; as the gateway wrote them
	taken       []string     // domains of another connection
}

// choose decides for every connection.
func (s *assignments) choose(e *Engine) {
	owner := map[string]bool{}
	for _, conn := range e.cfg.IKE.Conns {
		if st := e.loop.assignedTo(conn.Name); st != nil {
			st.dns = e.loop.chooseDNS(st.is, e.cfg.DNSDomains(conn.Name), owner)
		}
	}
}

func (l *ikeLoop) chooseDNS(a *ike.Assigned, allowed []string, owner map[string]bool) (c dnsChoice) {
	const port = 53
	for _, server := range a.DNS {
		switch {
		case !server.IsGlobalUnicast() || server.Is4In6() || server.Zone() != "" || slices.Contains(c.servers, server) || len(c.servers) == maxDNSServers:
		case !l.protects(a.Conn, server, port):
			c.unprotected = append(c.unprotected, server)
		default:
			c.servers = append(c.servers, server)
		}
	}
	if len(c.servers) == 0 {
		return c
	}
	names, anyName := a.Domains, slices.Contains(allowed, ".")
	switch {
	case l.everything(a.Conn), len(names) == 0 && anyName:
		c.all = true
		return c
	case len(names) == 0:
		names = allowed
	}
	for _, text := range names {
		name, ok := config.DomainName(text)
		switch {
		case !ok || !anyName && !slices.ContainsFunc(allowed, func(d string) bool { return name == d || strings.HasSuffix(name, "."+d) }):
			c.refused = append(c.refused, text)
		case slices.Contains(c.domains, name):
		case owner[name] || len(owner) >= maxDNSDomains:
			c.taken = append(c.taken, name)
		default:
			owner[name] = true
			c.domains = append(c.domains, name)
		}
	}
	return c
}

// report says what is not used of what a gateway has assigned.
func (c *dnsChoice) report(e *Engine, a *ike.Assigned) {
	say := func(level log.Level, what, key, v string) {
		if v != "" {
			e.o.Log.Log(log.Net, level, what, log.Str("conn", a.Conn), log.Str(key, v))
		}
	}
	say(log.Warn, "name servers of the gateway are not asked: no policy of the connection protects the way to them; put their addresses into remote_ts",
		"servers", join(c.unprotected))
	say(log.Warn, "domains that the gateway names are not asked there: allow them in dns_domains if they are meant to", "domains", strings.Join(c.refused, " "))
	say(log.Warn, "domains that the gateway names belong to another connection already, or there are too many", "domains", strings.Join(c.taken, " "))
	if len(c.servers) > 0 && !c.all && len(c.domains) == 0 {
		say(log.Info, "name servers of the gateway are not asked: not everything goes through the tunnel, and no domain is theirs; name some in dns_domains",
			"servers", join(c.servers))
	}
	if len(a.EncDNS) > 0 {
		say(log.Info, "the gateway offers encrypted name servers, which this system is not told of", "servers", strings.Join(vici.EncTexts(a.EncDNS), ", "))
	}
	if len(a.TrustAnchors) > 0 {
		say(log.Info, "DNSSEC trust anchors of the gateway are not used", "domains", strings.Join(a.TrustNames, " "))
	}
}

// dnsWish is what the system's name servers are to be.
type dnsWish struct {
	how          config.DNSMode
	file, device string
	all          []netip.Addr
	domains      map[string][]netip.Addr
}

// wish returns what follows from the choices of all connections.
func (s *assignments) wish(cfg *config.Config, device string) dnsWish {
	w := dnsWish{how: cfg.Daemon.DNS, file: cfg.Daemon.DNSFile, device: device}
	for _, conn := range cfg.IKE.Conns {
		st := s.of[conn.Name]
		if st == nil || st.is == nil {
			continue
		}
		if st.dns.all {
			for _, a := range st.dns.servers {
				if !slices.Contains(w.all, a) && len(w.all) < maxDNSServers {
					w.all = append(w.all, a)
				}
			}
		}
		for _, name := range st.dns.domains {
			if w.domains == nil {
				w.domains = map[string][]netip.Addr{}
			}
			w.domains[name] = st.dns.servers
		}
	}
	return w
}

func (w *dnsWish) empty() bool { return len(w.all) == 0 && len(w.domains) == 0 }

// same tells whether both are told in the same place.
func (w *dnsWish) same(v *dnsWish) bool {
	return w.how == v.how && w.file == v.file && w.device == v.device
}

// dnsTeller tells the system of name servers, on a goroutine of its own that there is once there
// was something to tell: programs may take seconds. Its methods are for the IKE loop, and for one
// goroutine when that has ended.
type dnsTeller struct {
	set  func(how, file, device string, all []netip.Addr, domains map[string][]netip.Addr) error
	log  *log.Logger
	next chan dnsWish  // the latest that is not taken yet
	done chan struct{} // closed when the goroutine has ended; nil: there is none
	last dnsWish
}

// forget takes away what an earlier process has set.
func (t *dnsTeller) forget(how, file, device string) {
	if t.set == nil {
		return
	}
	if err := t.set(how, file, device, nil, nil); err != nil {
		t.log.Log(log.Kernel, log.Warn, "name servers of the run before could not be taken away", log.Err(err))
	}
}

// tell has a wish fulfilled, unless it is that of before.
func (t *dnsTeller) tell(w dnsWish) {
	if w.same(&t.last) && slices.Equal(w.all, t.last.all) && maps.EqualFunc(w.domains, t.last.domains, slices.Equal) {
		return
	}
	t.push(w)
}

// again has the last wish fulfilled once more: what others write they write without our lines.
func (t *dnsTeller) again() {
	if t.last.how == config.DNSFile && !t.last.empty() {
		t.push(t.last)
	}
}

func (t *dnsTeller) push(w dnsWish) {
	if t.set == nil || t.done == nil && (w.how == config.DNSNone || w.empty()) {
		return
	}
	t.last = w
	if t.done == nil {
		t.next, t.done = make(chan dnsWish, 1), make(chan struct{})
		go t.run()
	}
	select {
	case <-t.next: // nobody needs that any more
	default:
	}
	t.next <- w
}

// stop takes everything away and ends the goroutine.
func (t *dnsTeller) stop(w dnsWish) {
	if t.done == nil {
		return
	}
	t.push(w)
	close(t.next)
	select {
	case <-t.done:
	case <-time.After(dnsEndTime):
		t.log.Log(log.Kernel, log.Warn, "name servers may be left behind: what manages them has not ended in time")
	}
	t.done = nil
}

// run fulfils wishes until there are no more to come.
func (t *dnsTeller) run() {
	defer close(t.done)
	var now dnsWish
	said := ""
	for w := range t.next {
		if now.how != config.DNSNone && !now.same(&w) && !now.empty() {
			t.forget(now.how.String(), now.file, now.device)
		}
		if now = w; w.how == config.DNSNone {
			continue
		}
		text := ""
		if err := t.set(w.how.String(), w.file, w.device, w.all, w.domains); err != nil {
			if text = err.Error(); text != said {
				t.log.Log(log.Kernel, log.Error, "the name servers that a gateway has assigned could not be made known", log.Err(err))
			}
		}
		said = text
	}
}
