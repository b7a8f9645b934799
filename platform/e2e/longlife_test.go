//go:build linux

package e2e

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// A life of many keys, compressed by short lifetimes.
const (
	lifeConns    = 4                // IKE SAs between the two gateways
	lifeChildren = 2                // CHILD SAs of each
	lifeSpan     = 36 * time.Second // how long keys are changed
	lifeMore     = 12 * time.Second // … and how much longer at most until there are enough
	lifeRekey    = time.Second      // the shortest that postern takes
	lifeKeys     = 200              // CHILD rekeyings on each side at least
	lifeIKEKeys  = 100              // IKE rekeyings on each side at least
	lifeGrowth   = 1 << 10          // KiB that the end may have more than the first tenth
	lifeThreads  = 2                // threads that the Go runtime may have added
)

// lifeSpecs returns many connections between the two gateways, each with its own
// identities, and the LANs behind its children.
func lifeSpecs() (a, b spec) {
	pa, pb := pairSpecs(false, false)
	n := 0
	for i := range lifeConns {
		ca, cb := pa.conns[0], pb.conns[0]
		idA, idB := fmt.Sprintf("a%d.example", i), fmt.Sprintf("b%d.example", i)
		ca.name, ca.localID, ca.remoteID = fmt.Sprint("site", i), idA, idB
		cb.name, cb.localID, cb.remoteID = ca.name, idB, idA
		ca.rekeyTime, cb.rekeyTime = lifeRekey, lifeRekey
		ca.children, cb.children = nil, nil
		for range lifeChildren {
			x := child{name: fmt.Sprint("net", n), localTS: []string{lifeNet('a', n)}, remoteTS: []string{lifeNet('b', n)}, esp: usualESP + "-x25519", rekeyTime: lifeRekey, start: "start"}
			ca.children = append(ca.children, x)
			x.localTS, x.remoteTS, x.start = x.remoteTS, x.localTS, "none"
			cb.children = append(cb.children, x)
			n++
		}
		a.conns, b.conns = append(a.conns, ca), append(b.conns, cb)
	}
	// What leaks a place in a table of that size does not get far.
	a.board, b.board = "small", "small"
	return a, b
}

// lifeHost is the host of side and child n; lifeNet is its LAN.
func lifeHost(side byte, n int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, map[byte]byte{'a': 100, 'b': 200}[side], byte(n), 10})
}

func lifeNet(side byte, n int) string {
	return netip.PrefixFrom(lifeHost(side, n), 24).Masked().String()
}

// lifeTimes gives a configuration with short rekey times hard lifetimes that a peer which
// is busy now and then does not reach; or, for the end, long rekey times.
func lifeTimes(toml string, short bool) string {
	r := strings.NewReplacer(`over_time = "1s"`, `over_time = "30s"`, `life_time = "4s"`, `life_time = "30s"`)
	if !short {
		r = strings.NewReplacer(`rekey_time = "1s"`, `rekey_time = "4h"`, `over_time = "1s"`, `over_time = "30s"`, `life_time = "4s"`, `life_time = "5h"`)
	}
	return r.Replace(toml)
}

// lifeSAs tells what is wrong with the SAs of the two sides; "" if they are those that are
// configured and belong together.
func lifeSAs(a, b daemon) string {
	out := map[string]string{} // of a, by its SPIs seen from b
	for _, d := range []daemon{a, b} {
		sas, err := listSAs(d)
		if err != nil {
			return err.Error()
		}
		var names []string
		for _, sa := range sas {
			if sa.state != "ESTABLISHED" {
				return fmt.Sprintf("of %d IKE SAs, %s #%s is %s", len(sas), sa.conn, sa.unique, sa.state)
			}
			for _, c := range sa.children {
				if c.state != "INSTALLED" {
					return fmt.Sprintf("CHILD SA %s is %s", c.name, c.state)
				}
				names = append(names, c.name)
				if d == a {
					out[c.spiOut+c.spiIn] = c.name
				} else if out[c.spiIn+c.spiOut] != c.name {
					return fmt.Sprintf("CHILD SA %s of one side is not one of the other's", c.name)
				}
			}
		}
		slices.Sort(names)
		if len(sas) != lifeConns || len(names) != lifeConns*lifeChildren || len(slices.Compact(names)) != lifeConns*lifeChildren {
			return fmt.Sprintf("%d IKE SAs and these CHILD SAs: %v", len(sas), names)
		}
	}
	return ""
}

// lifeWatch samples a process.
type lifeWatch struct {
	d      *postern
	mu     sync.Mutex
	all    []vitals
	ended  chan struct{}
	isOver sync.WaitGroup
}

func watchLife(d *postern) *lifeWatch {
	w := &lifeWatch{d: d, ended: make(chan struct{})}
	w.isOver.Go(func() {
		for {
			select {
			case <-w.ended:
				return
			case <-time.After(100 * time.Millisecond):
			}
			v := d.p.vitals()
			w.mu.Lock()
			w.all = append(w.all, v)
			w.mu.Unlock()
		}
	})
	return w
}

// peak is the most that was resident in a part of the time.
func peak(vs []vitals) (kib int) {
	for _, v := range vs {
		kib = max(kib, v.rss)
	}
	return kib
}

// Half an hour's worth and more of new keys, for the IKE SAs and for the CHILD SAs, which
// both sides want at the same moment again and again (RFC 7296 section 2.8.1 and 2.25),
// under traffic through every CHILD SA. Not an echo is lost, and in the end there are the SAs,
// the memory, the threads and the descriptors of the beginning.
func TestLongLife(t *testing.T) {
	p := pair{"postern", "postern"}
	ready(t, p)
	s := newSite(t)
	for n := range lifeConns * lifeChildren {
		s.ip(s.lanA, fmt.Sprintf("addr add %v/32 dev lo\n", lifeHost('a', n)))
		s.ip(s.lanB, fmt.Sprintf("addr add %v/32 dev lo\n", lifeHost('b', n)))
	}
	s.ip(s.gwA, "route add 10.100.0.0/16 via 10.1.0.10\n")
	s.ip(s.gwB, "route add 10.200.0.0/16 via 10.2.0.10\n")
	ca, cb := lifeSpecs()
	b, a := newPostern(s, 'b', cb), newPostern(s, 'a', ca)
	texts := map[*postern]string{a: a.toml(ca), b: b.toml(cb)}
	for _, d := range []*postern{b, a} {
		d.write(lifeTimes(texts[d], true))
		d.start()
	}
	up := func(d daemon) bool {
		names := map[string]bool{}
		sas, _ := listSAs(d)
		for _, sa := range sas {
			for _, c := range sa.children {
				names[c.name] = true
			}
		}
		return len(names) == lifeConns*lifeChildren
	}
	if !eventually(10*time.Second, func() bool { return up(a) && up(b) }) {
		t.Fatalf("not all the tunnels are up%s", logs(a, b))
	}
	counted := map[*postern]map[string]int{a: a.counters(), b: b.counters()}
	rec := s.capture()
	var pings []*pinger
	for n := range lifeConns * lifeChildren {
		rate := map[int]int{0: 100, 1: 200}[n]
		pings = append(pings, s.startPinger(s.lanA, lifeHost('b', n), max(rate, 10), echoOptions{from: lifeHost('a', n)}))
	}
	begin := time.Now()
	watches := map[*postern]*lifeWatch{a: watchLife(a), b: watchLife(b)}
	time.Sleep(lifeSpan / 10)
	first := map[*postern]vitals{a: a.p.vitals(), b: b.p.vitals()}
	time.Sleep(time.Until(begin.Add(lifeSpan)))
	// A busy machine needs some more: whoever is told to come back later does so after seconds.
	changed := func(d *postern) [2]int {
		return [2]int{len(matching(d.log(), "CHILD SA rekeyed")), len(matching(d.log(), "IKE SA rekeyed"))}
	}
	enough := func(n [2]int) bool { return n[0] >= lifeKeys && n[1] >= lifeIKEKeys }
	eventually(lifeMore, func() bool { return enough(changed(a)) && enough(changed(b)) })
	span := time.Since(begin)
	last := map[*postern]vitals{a: a.p.vitals(), b: b.p.vitals()}
	keys := map[*postern][2]int{}
	for d, w := range watches {
		close(w.ended)
		w.isOver.Wait()
		keys[d] = changed(d)
		d.write(lifeTimes(texts[d], false))
		if out, err := d.cli("reload"); err != nil {
			t.Errorf("postern reload: %v\n%s%s", err, out, logs(d))
		}
	}
	wrong := ""
	if !eventually(20*time.Second, func() bool { wrong = lifeSAs(a, b); return wrong == "" }) {
		t.Errorf("with the keys changed no more there are not the SAs that are configured: %s%s", wrong, logs(a, b))
	}
	settled := time.Since(begin) - span
	sent := 0
	for n, ping := range pings {
		r := ping.stop()
		sent += r.sent
		if r.lost() != 0 {
			t.Errorf("through CHILD SA net%d: %v", n, r)
		}
	}
	rec.stop().noClear(t, []byte(mark))
	t.Logf("%d echoes in %v; with the keys changed no more, %.1f s until only the configured SAs are left", sent, span.Round(time.Second), settled.Seconds())
	for _, d := range []*postern{a, b} {
		side, all := string(d.side), watches[d].all
		end := d.p.vitals()
		t.Logf("%s: %d CHILD and %d IKE rekeyings", side, keys[d][0], keys[d][1])
		t.Logf("%s: resident after a tenth %d KiB (at most %d in it), after all %d KiB (at most %d in the last tenth), at most %d; at rest %d KiB",
			side, first[d].rss, peak(all[:len(all)/10]), last[d].rss, peak(all[len(all)*9/10:]), peak(all), end.rss)
		t.Logf("%s: after a tenth %v", side, first[d])
		t.Logf("%s: at rest %v", side, end)
		var told []string
		now := d.counters()
		for _, k := range slices.Sorted(maps.Keys(now)) {
			n := now[k] - counted[d][k]
			if n != 0 {
				told = append(told, fmt.Sprintf("%s %d", k, n))
			}
			// The kernel's own multicasts on the device have no policy.
			if n != 0 && k != "out_drop_no_policy" && (strings.HasPrefix(k, "in_drop_") || strings.HasPrefix(k, "out_drop_")) {
				t.Errorf("%s: the counter %s has moved by %d, and nothing was to be dropped", side, k, n)
			}
		}
		t.Logf("%s: counters: %s", side, strings.Join(told, ", "))
		for _, what := range []string{"CHILD SA closed", "IKE SA closed", "could not be established"} {
			if lines := matching(d.log(), what); len(lines) > 0 {
				t.Errorf("%s: %d lines say %q, and nothing was to end: %s", side, len(lines), what, lines[0])
			}
		}
		if !enough(keys[d]) {
			t.Errorf("%s: %d CHILD and %d IKE rekeyings, want %d and %d at least%s", side, keys[d][0], keys[d][1], lifeKeys, lifeIKEKeys, logs(d))
		}
		if end.rss > first[d].rss+lifeGrowth {
			t.Errorf("%s: %d KiB resident at the end, %d after a tenth of the time: want %d more at most", side, end.rss, first[d].rss, lifeGrowth)
		}
		if end.threads > first[d].threads+lifeThreads || end.descriptors != first[d].descriptors {
			t.Errorf("%s: at rest %v, after a tenth of the time %v: want no more threads (but %d) and the same descriptors", side, end, first[d], lifeThreads)
		}
	}
}
