package config

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"postern/engine/control"
	"postern/esp"
)

// What a client sends again as it is changes nothing, and that is seen without reading it all; what
// differs in anything is another one.
func TestLoadingTheSameAgainIsNoChange(t *testing.T) {
	conn := func(remote string) *control.Message {
		m := new(control.Message)
		m.List("remote_addrs", remote)
		m.Section("children").Section("net").List("remote_ts", "10.2.0.0/16")
		return m
	}
	secret := func(id, data string, owners ...string) *control.Message {
		return new(control.Message).Set("id", id).Set("type", "IKE").Set("data", data).List("owners", owners...)
	}
	pool := func(addrs string) *control.Message { return new(control.Message).Set("addrs", addrs) }
	l, err := (*Loaded)(nil).LoadConn("a", conn("192.0.2.2"))
	if err == nil {
		l, err = l.LoadShared(secret("s", "a secret of some length", "x", "y"))
	}
	if err == nil {
		l, err = l.LoadPool("p", pool("10.9.0.0/24"))
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		what string
		same bool
		load func() (*Loaded, error)
	}{
		{"the same connection", true, func() (*Loaded, error) { return l.LoadConn("a", conn("192.0.2.2")) }},
		{"another address", false, func() (*Loaded, error) { return l.LoadConn("a", conn("192.0.2.3")) }},
		{"another name", false, func() (*Loaded, error) { return l.LoadConn("b", conn("192.0.2.2")) }},
		{"a deeper change", false, func() (*Loaded, error) {
			m := conn("192.0.2.2")
			m.Sub("children").Sub("net").Set("mode", "tunnel")
			return l.LoadConn("a", m)
		}},
		{"the same secret", true, func() (*Loaded, error) { return l.LoadShared(secret("s", "a secret of some length", "x", "y")) }},
		{"another key", false, func() (*Loaded, error) { return l.LoadShared(secret("s", "a secret of some lengtH", "x", "y")) }},
		{"another owner", false, func() (*Loaded, error) { return l.LoadShared(secret("s", "a secret of some length", "x", "z")) }},
		{"another id", false, func() (*Loaded, error) { return l.LoadShared(secret("t", "a secret of some length", "x", "y")) }},
		{"the same pool", true, func() (*Loaded, error) { return l.LoadPool("p", pool("10.9.0.0/24")) }},
		{"other addresses", false, func() (*Loaded, error) { return l.LoadPool("p", pool("10.9.1.0/24")) }},
	} {
		if got, err := step.load(); err != nil || (got == l) != step.same {
			t.Errorf("%s: no change is %v, want %v (%v)", step.what, got == l, step.same, err)
		}
	}
}

// The quick look at the addresses loses no pair of which one covers the other.
func TestNearLosesNothing(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	list := func() (out []esp.Selector) {
		for range 1 + r.IntN(3) {
			a := netip.AddrFrom4([4]byte{10, byte(r.IntN(2)), byte(r.IntN(2)), 0})
			if r.IntN(5) == 0 {
				a = netip.AddrFrom16([16]byte{0xfd, byte(r.IntN(2))})
			}
			s := esp.SelectorFromPrefix(netip.PrefixFrom(a, 14+r.IntN(8)).Masked())
			if r.IntN(3) == 0 {
				s.Proto = 17
			}
			out = append(out, s)
		}
		return out
	}
	seen := 0
	for range 20000 {
		wl, wr, nl, nr := list(), list(), list(), list()
		some := false
		all := !eachPair(nl, nr, func(a, b *esp.Selector) bool {
			if a.Start.BitLen() != b.Start.BitLen() {
				return false
			}
			some = true
			return !eachPair(wl, wr, func(c, d *esp.Selector) bool { return c.Contains(*a) && d.Contains(*b) })
		}) && some
		want := all || covers(wl, nl) && covers(wr, nr)
		if want {
			seen++
		}
		if got := coversBoth(wl, wr, nl, nr); got != want {
			t.Fatalf("%v %v covers %v %v: %v, want %v", wl, wr, nl, nr, got, want)
		}
	}
	if seen < 100 {
		t.Errorf("only %d of them cover", seen)
	}
}
