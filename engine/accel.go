package engine

import (
	"slices"

	"postern/engine/log"
	"postern/esp/chapoly"
	"postern/esp/ctaes"
	"postern/ike"
)

// chooseCrypto takes the fastest routines in constant time that the processor is said to
// have, after a test that it has them: where the flags are wrong, the plain code serves. It
// tells which ciphers follow from that.
func chooseCrypto(cpu CPU, conns []*ike.Conn, lg *log.Logger) {
	rotate := []chapoly.Routine{chapoly.Best(chapoly.CPU{Rotate: cpu.MIPSRelease2}), chapoly.Plain}
	choose("ChaCha20-Poly1305", slices.Compact(rotate), chapoly.Use, chapoly.SelfTest, lg)
	choose("AES", ctaes.Routines(ctaes.CPU{AES: cpu.AES, Wide: cpu.WideAES}), ctaes.Use, ctaes.SelfTest, lg)

	why := "the processor has AES instructions"
	if !cpu.AES {
		why = "the processor has no AES instructions"
	}
	lg.Log(log.IKEConfig, log.Info, "default proposals prefer", log.Str("ciphers", cpu.CipherOrder().String()), log.Str("why", why))
	if name := namesAES(conns, cpu.CipherOrder()); !cpu.AES && name != "" {
		lg.Log(log.IKEConfig, log.Info, "AES is configured by name: without AES instructions it is computed in constant time, and slower than chacha20poly1305",
			log.Str("connection", name))
	}
}

// choose uses the first of the routines for a cipher that passes its test. The last is the one that
// every program has.
func choose[R interface {
	comparable
	String() string
}](cipher string, routines []R, use func(R) error, test func() error, lg *log.Logger) {
	for i, r := range routines {
		last := i == len(routines)-1
		err := use(r)
		if err == nil {
			err = test()
		}
		switch {
		case err == nil:
			lg.Log(log.ESP, log.Debug, cipher+" is computed by", log.Str("routine", r.String()))
			return
		case last:
			lg.Log(log.ESP, log.Error, cipher+" is computed wrongly: the processor or this program is broken, packets will be lost", log.Err(err))
		default:
			lg.Log(log.ESP, log.Warn, cipher+" falls back: the processor does not compute what its flags promise",
				log.Str("routine", r.String()), log.Str("instead", routines[i+1].String()), log.Err(err))
		}
	}
}

// namesAES returns the first connection that has AES in a proposal of its own, "" if only
// default ones have it.
func namesAES(conns []*ike.Conn, order ike.CipherOrder) string {
	var known []string
	for _, proto := range []ike.Protocol{ike.ProtoIKE, ike.ProtoESP} {
		for _, p := range ike.DefaultProposals(proto, order) {
			known = append(known, p.String())
		}
	}
	named := func(p ike.Proposal) bool {
		return slices.ContainsFunc(p.Transforms, ike.Transform.IsAES) && !slices.Contains(known, p.String())
	}
	for _, c := range conns {
		if slices.ContainsFunc(c.Proposals, named) ||
			slices.ContainsFunc(c.Children, func(ch *ike.Child) bool { return slices.ContainsFunc(ch.Proposals, named) }) {
			return c.Name
		}
	}
	return ""
}
