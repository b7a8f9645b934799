package iketest

import "postern/ike"

// hiding has the children of a life agree on AGGFRAG payloads, or not; what one side requires the
// other has. It has a generator of its own, as dialing has.
func (l *life) hiding(seed uint64) {
	r := New(seed^0x41d1f6, false).Rand
	if r.IntN(2) == 0 {
		return
	}
	const no, yes, require = ike.IPTFSNo, ike.IPTFSYes, ike.IPTFSRequire
	fit := [][2]ike.AskIPTFS{{no, yes}, {yes, no}, {yes, yes}, {yes, require}, {require, yes}, {require, require}}
	for i, k := range l.cfgA.Conns[0].Children {
		x := fit[r.IntN(len(fit))]
		k.Hiding.IPTFS, l.cfgB.Conns[0].Children[i].Hiding.IPTFS = x[0], x[1]
		k.Hiding.NoFrags, k.Hiding.Mode = r.IntN(2) == 0, ike.IPTFSMode(r.IntN(3))
		l.tell("AGGFRAG payloads of %s: %d and %d", k.Name, x[0], x[1])
	}
}
