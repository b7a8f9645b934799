package vici

import (
	"strconv"

	"postern/engine/control"
	"postern/ike"
)

// getPools answers get-pools as charon does.
func (h Handler) getPools(req *control.Message) (*control.Message, error) {
	only, withLeases := req.Get(control.KeyName), req.GetBool(control.KeyLeases)
	m := new(control.Message)
	err := h.D.Do(func(l Loop) {
		l.Pools(func(p ike.PoolInfo) {
			if only != "" && p.Pool.Name != only {
				return
			}
			s := m.Section(p.Pool.Name)
			s.Set(control.KeyBase, p.Base.String()).SetInt(control.KeySize, p.Size).
				SetInt(control.KeyOnline, int64(p.Online)).SetInt(control.KeyOffline, int64(p.Offline))
			if withLeases {
				leases(l, s.Section(control.KeyLeases), p.Pool.Name)
			}
			if !ours(req) { // charon keeps its attributes to itself
				return
			}
			some := func(key string, list []string) {
				if len(list) > 0 {
					s.List(key, list...)
				}
			}
			some(control.KeyPoolDNS, Texts(p.Pool.DNS))
			some(control.KeyPoolNBNS, Texts(p.Pool.NBNS))
			some(control.KeyPoolSubnet, Texts(p.Pool.Subnets))
			some(control.KeyPoolDomains, p.Pool.Domains)
		})
	})
	return m, err
}

// maxLeasesShown is how many leases of a pool one answer holds: a message has an end.
const maxLeasesShown = 2000

func leases(l Loop, m *control.Message, pool string) {
	n := 0
	l.Leases(func(l ike.Lease) bool {
		if l.Pool != pool {
			return true
		}
		status := control.KeyOffline
		if l.Online {
			status = control.KeyOnline
		}
		m.Section(strconv.Itoa(n)).Set(control.KeyAddress, l.Addr.String()).
			Set(control.KeyIdentity, idName(l.ID)).Set(control.KeyStatus, status)
		n++
		return n < maxLeasesShown
	})
}
