package vici

import (
	"errors"
	"net/netip"
	"strings"

	"postern/engine/control"
	"postern/ike"
)

// redirect sends the clients that the request selects to another gateway. As charon, it
// does not wait for them.
func (h Handler) redirect(req *control.Message) (*control.Message, error) {
	s, err := selected(req)
	if err != nil {
		return nil, err
	}
	ip, id := req.Get(control.KeyPeerIP), req.Get(control.KeyPeerID)
	if req.Get(control.KeyGateway) == "" {
		return nil, errors.New("missing target gateway")
	}
	g, ok := ike.ParseGateway(req.Get(control.KeyGateway))
	if !ok {
		return nil, errors.New("unsupported gateway identity")
	}
	inside, ok := peerIPs(ip)
	if !ok {
		return nil, errors.New("invalid peer IP selector")
	}
	if s == (selection{}) && ip == "" && id == "" {
		return nil, errors.New("missing redirect selector")
	}
	matches, failed := 0, error(nil)
	if err := h.D.Do(func(l Loop) {
		var list []uint32
		l.List(func(sa *ike.SAInfo) bool {
			if sa.State == ike.StateEstablished && (s.conn == "" || sa.Conn == s.conn) && (s.ike == 0 || sa.Unique == s.ike) &&
				inside(sa.Path.Remote.Addr()) && fitsID(id, sa.RemoteID.String()) {
				list = append(list, sa.Unique)
			}
			return true
		})
		matches = len(list)
		for _, unique := range list {
			// One that cannot be redirected says so at once.
			l.Forget(l.Command(ike.Command{Kind: ike.CmdRedirect, IKE: unique, Gateway: g}, func(err error) { failed = err }))
		}
	}); err != nil {
		return nil, err
	}
	if matches == 0 {
		failed = errors.New("no matching SAs to redirect found")
	}
	return withReason(outcome(failed, matches), failed), nil
}

// peerIPs reads an address, a subnet or a range "from-to"; "" takes any address.
func peerIPs(s string) (inside func(netip.Addr) bool, ok bool) {
	if s == "" {
		return func(netip.Addr) bool { return true }, true
	}
	if p, err := netip.ParsePrefix(s); err == nil {
		return func(a netip.Addr) bool { return p.Contains(a.Unmap()) }, true
	}
	low, high, ranged := strings.Cut(s, "-")
	if !ranged {
		high = low
	}
	from, err1 := netip.ParseAddr(low)
	to, err2 := netip.ParseAddr(high)
	return func(a netip.Addr) bool {
		a = a.Unmap()
		return a.Is4() == from.Is4() && from.Compare(a) <= 0 && a.Compare(to) <= 0
	}, err1 == nil && err2 == nil && from.Is4() == to.Is4()
}

// fitsID tells whether an identity fits a pattern, whose first character may be an asterisk
// that stands for anything.
func fitsID(pattern, id string) bool {
	if rest, ok := strings.CutPrefix(pattern, "*"); ok {
		return strings.HasSuffix(id, rest)
	}
	return pattern == "" || pattern == id
}
