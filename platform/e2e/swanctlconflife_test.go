//go:build linux

package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// lifeConf returns a text with a connection site and a child net, and more lines for each; <conn> and <child>
// are for what only one end has.
func lifeConf(conn, child string) string {
	return `
connections {
  site {
    remote_addrs = <peer>
    ` + conn + `
    local { auth = psk
            id = <id> }
    remote { auth = psk
             id = <peerid> }
    children {
      net { local_ts = <lan>
            remote_ts = <peerlan>
            ` + child + ` }
    }
  }
}
secrets { ike { id-1 = a.weir.example
                id-2 = b.weir.example
                secret = time-and-tide } }
`
}

// words makes the words of one end from pairs.
func words(kv ...string) map[string]string {
	w := map[string]string{}
	for i := 0; i < len(kv); i += 2 {
		w[kv[i]] = kv[i+1]
	}
	return w
}

// What starts and ends tunnels: actions, and what a user changes meanwhile.
func TestSwanctlConfActions(t *testing.T) {
	runEnds(t, []endsConf{
		{name: "trap", text: lifeConf("", "start_action = trap"), run: trapped},
		{name: "start, and start when closed", text: lifeConf("", "start_action = <start>\n close_action = <start>"),
			a: words("start", "start"), b: words("start", "none"), run: func(r *endsRun) {
				before := r.agree()
				r.traffic()
				r.must(r.b, "--terminate", "--child", "net", "--timeout", "20")
				r.agreeOn("a new CHILD SA, because close_action says so", func(sas []ikeSA) bool {
					spi := child4(sas, "net").spiIn
					return spi != "" && spi != child4(before, "net").spiIn
				})
				r.traffic()
			}},
		{name: "dead peer, restart", text: lifeConf("dpd_delay = 1s", "dpd_action = <action>"), a: words("action", "restart"), b: words("action", "restart"),
			run: deadPeer},
		{name: "childless", text: lifeConf("childless = force", "esp_proposals = aes128gcm16-x25519"), run: func(r *endsRun) {
			if r.a.name == kindPostern {
				r.up() // it initiates a connection together with its children
			} else {
				r.must(r.a, "--initiate", "--ike", "site", "--timeout", "30")
			}
			first := r.agreeOn("an IKE SA without children", func(sas []ikeSA) bool { return len(sas) == 1 && (r.a.name == kindPostern || len(sas[0].children) == 0) })
			r.up()
			sas := r.agreeOn("a child", func(sas []ikeSA) bool {
				return len(sas) == 1 && len(sas[0].children) == 1 && sas[0].spiI == first[0].spiI
			})
			if got := child4(sas, "net").suite(); got != "AES_GCM_16-128/CURVE_25519" {
				r.t.Errorf("the child has %s, not a key exchange of its own", got)
			}
			r.traffic()
			r.must(r.b, "--terminate", "--ike", "site", "--timeout", "20")
			r.gone("site")
		}},
		{name: "unique, replace", text: strings.Replace(lifeConf("unique = replace", ""), "connections {", `connections {
  again {
    local_addrs = 198.51.100.1
    remote_addrs = 203.0.113.1
    local { auth = psk
            id = a.weir.example }
    remote { auth = psk
             id = b.weir.example }
    children { net-again { local_ts = 10.1.0.0/24
                           remote_ts = 10.2.0.0/24 } }
  }`, 1), run: func(r *endsRun) {
			r.up()
			before := r.agree()
			r.must(r.a, "--initiate", "--child", "net-again", "--timeout", "30")
			r.agreeOn("one IKE SA, the second", func(sas []ikeSA) bool {
				return len(sas) == 1 && sas[0].conn == "again" && sas[0].spiI != before[0].spiI && len(sas[0].children) == 1
			})
			r.traffic()
		}},
		{name: "changed while up", text: lifeConf("", ""), run: changedWhileUp},
		{name: "updown", text: lifeConf("", "updown = <dir>/updown.sh\n hostaccess = yes"), files: func(*endsPKI, byte) swanctlDir {
			return swanctlDir{"updown.sh": "#!/bin/sh\nenv | sort | tr '\\n' ' ' >> <dir>/daemon/updown.log\necho >> <dir>/daemon/updown.log\n"}
		}, run: updownScript},
		{name: "trying on", text: lifeConf("keyingtries = 0", "start_action = <start>"), a: words("start", "none"), b: words("start", "none"), run: tryingOn},
	})
}

// What ends and renews SAs with time and traffic.
func TestSwanctlConfLifetimes(t *testing.T) {
	otherChild := func(r *endsRun, before []ikeSA) {
		r.agreeOn("another CHILD SA", func(sas []ikeSA) bool {
			spi := child4(sas, "net").spiIn
			return spi != "" && spi != child4(before, "net").spiIn
		})
	}
	runEnds(t, []endsConf{
		{name: "rekeyed by time", text: lifeConf("<ike>", "<esp>\n esp_proposals = aes128gcm16-modp2048"),
			a: words("ike", "rekey_time = 1h", "esp", "rekey_time = 2s\n life_time = 20s\n rand_time = 0s"),
			b: words("ike", "rekey_time = 3s\n over_time = 20s\n rand_time = 0s", "esp", "rekey_time = 1h"), run: func(r *endsRun) {
				r.up()
				before := r.agree()
				p := r.s.startPinger(r.s.lanA, hostB4, 25)
				otherChild(r, before)
				r.agreeOn("another IKE SA", func(sas []ikeSA) bool { return len(sas) == 1 && sas[0].spiI != before[0].spiI })
				if res := p.stop(); res.lost() > 0 {
					r.t.Errorf("while SAs were renewed: %v%s", res, logs(r.a, r.b))
				}
				r.must(r.b, "--terminate", "--ike", "site", "--timeout", "20")
				r.gone("site")
			}},
		{name: "reauthenticated", text: lifeConf("<ike>", ""),
			a: words("ike", "reauth_time = 3s\n rekey_time = 0s\n over_time = 20s\n rand_time = 0s"), b: words("ike", ""), run: func(r *endsRun) {
				r.up()
				before := r.agree()
				r.agreeOn("another IKE SA with another CHILD SA", func(sas []ikeSA) bool {
					return len(sas) == 1 && len(sas[0].children) == 1 && sas[0].spiI != before[0].spiI && sas[0].children[0].spiIn != child4(before, "net").spiIn
				})
				r.traffic()
			}},
		{name: "rekeyed by octets", text: lifeConf("", "rekey_bytes = 20000\n life_bytes = 60k\n rand_bytes = 0"), run: func(r *endsRun) {
			r.up()
			before := r.agree()
			// kernel-libipsec counts no octets, so it is postern that has to act.
			if r.a.name == kindPostern || r.b.name == kindPostern {
				if res := r.s.pings(r.s.lanA, hostB4, 30, echoOptions{size: 1000}); res.lost() > 0 {
					r.t.Error(res)
				}
				otherChild(r, before)
			}
			r.traffic()
			r.must(r.a, "--terminate", "--ike", "site", "--timeout", "20")
			r.gone("site")
		}},
		{name: "rekeyed by packets", text: lifeConf("", "rekey_packets = 100\n life_packets = 400\n rand_packets = 0"), run: func(r *endsRun) {
			r.up()
			before := r.agree()
			if r.a.name == kindPostern || r.b.name == kindPostern {
				if res := r.s.pings(r.s.lanB, hostA4, 110, echoOptions{every: 5 * time.Millisecond}); res.lost() > 0 {
					r.t.Error(res)
				}
				otherChild(r, before)
			}
			r.traffic()
			r.must(r.b, "--terminate", "--ike", "site", "--timeout", "20")
			r.gone("site")
		}},
		{name: "inactive", text: lifeConf("", "inactivity = <idle>"), a: words("idle", "2s"), b: words("idle", "2s"), run: func(r *endsRun) {
			r.up()
			r.agree()
			r.traffic()
			// postern closes an IKE SA with the last idle child, charon leaves it.
			r.agreeOn("no idle child", func(sas []ikeSA) bool { return len(sas) == 0 || len(sas) == 1 && len(sas[0].children) == 0 })
			r.up()
			r.agree()
			r.traffic()
		}},
		{name: "asked whether alive", text: lifeConf("dpd_delay = 1s", ""), run: func(r *endsRun) {
			r.up()
			r.agree()
			r.traffic()
			var a, b int
			if !eventually(20*time.Second, func() bool {
				w := r.s.capture()
				time.Sleep(1500 * time.Millisecond)
				all := w.stop()
				a, b = len(all.ike("a0", exInfo)), len(all.ike("b0", exInfo))
				return a > 0 && b > 0
			}) {
				r.t.Errorf("%d and %d INFORMATIONAL messages passed while the tunnel was idle", a, b)
			}
			r.must(r.a, "--terminate", "--ike", "site", "--timeout", "20")
			r.gone("site")
		}},
	})
}

// trapped: the first packet brings the tunnel up. kernel-libipsec has no traps of its own, so that the
// packet comes from behind postern.
func trapped(r *endsRun) {
	from, f := r.a, flows4[0]
	if r.b.name == kindPostern {
		from, f = r.b, flows4[1]
	}
	for _, d := range []*viciDaemon{r.a, r.b} {
		if out, err := d.swanctl("--list-pols", "--trap"); err != nil || !strings.Contains(out, "site/net, TUNNEL") {
			r.t.Errorf("%s: swanctl --list-pols --trap: %v\n%s", d.kind(), err, out)
		}
	}
	var before []ikeSA
	for range 2 {
		if from.name == kindCharon {
			r.must(from, "--initiate", "--child", "net", "--timeout", "30")
		} else if !eventually(25*time.Second, func() bool { return r.s.pings(r.nsOf(f), f.to, 1, echoOptions{wait: time.Second}).lost() == 0 }) {
			r.t.Fatalf("no packet got through%s", logs(r.a, r.b))
		}
		after := r.agreeOn("a tunnel", func(sas []ikeSA) bool {
			return len(sas) == 1 && len(sas[0].children) == 1 && (before == nil || sas[0].spiI != before[0].spiI)
		})
		before = after
		r.traffic()
		r.must(r.a, "--terminate", "--ike", "site", "--timeout", "20")
		r.gone("site")
	}
}

// deadPeer: charon, which is told to give up soon, notices that the other end says nothing, and restarts the child.
func deadPeer(r *endsRun) {
	r.up()
	before := r.agree()
	r.traffic()
	watcher, dead := r.a, r.b
	if r.a.name == kindPostern {
		watcher, dead = r.b, r.a
	}
	dead.freeze()
	defer dead.p.cmd.Process.Signal(syscall.SIGCONT)
	if !eventually(25*time.Second, func() bool {
		sas, err := listSAs(watcher)
		return err == nil && !slices.ContainsFunc(sas, func(sa ikeSA) bool { return sa.spiI == before[0].spiI })
	}) {
		r.t.Fatalf("%s did not notice that its peer is gone%s", watcher.kind(), logs(watcher))
	}
	dead.p.cmd.Process.Signal(syscall.SIGCONT)
	if !eventually(30*time.Second, func() bool {
		for _, d := range []*viciDaemon{watcher, dead} {
			sas, err := listSAs(d)
			if err != nil || !slices.ContainsFunc(inUse(sas), func(sa ikeSA) bool { return sa.spiI != before[0].spiI && len(sa.children) > 0 }) {
				return false
			}
		}
		return true
	}) {
		r.t.Fatalf("the tunnel did not come back%s", logs(r.a, r.b))
	}
	r.traffic()
}

// changedWhileUp: what is loaded anew changes nothing that is up; a new child finds the IKE SA that there is.
func changedWhileUp(r *endsRun) {
	r.up()
	before := r.agree()
	more := *r.c
	more.text = strings.Replace(r.c.text, "children {", "children {\n net6 { local_ts = <lan6>\n remote_ts = <peerlan6> }", 1)
	for _, d := range []*viciDaemon{r.a, r.b} {
		d.replace(more.of(d.side, d.dir, r.p))
	}
	same := func(sas []ikeSA) bool {
		return len(sas) == 1 && sas[0].spiI == before[0].spiI && child4(sas, "net").spiIn == child4(before, "net").spiIn
	}
	r.agreeOn("what was up before the change", same)
	r.must(r.b, "--initiate", "--child", "net6", "--timeout", "30")
	r.agreeOn("one more child", func(sas []ikeSA) bool { return same(sas) && len(sas[0].children) == 2 })
	r.sends(append(slices.Clone(flows4), flows6...)...)
	for _, d := range []*viciDaemon{r.a, r.b} {
		d.replace(r.c.of(d.side, d.dir, r.p))
		if out, err := d.swanctl("--list-conns"); err != nil || strings.Contains(out, "net6") || !strings.Contains(out, "net: TUNNEL") {
			r.t.Errorf("%s: swanctl --list-conns after net6 was taken out again: %v\n%s", d.kind(), err, out)
		}
	}
	if err := r.a.initiate("net6"); err == nil {
		r.t.Errorf("%s initiates a child that was unloaded", r.a.kind())
	}
	r.agreeOn("what was up before the change", same)
	r.sends(flows4...)
	r.must(r.a, "--terminate", "--ike", "site", "--timeout", "20")
	r.gone("site")
}

// tryingOn: what is initiated while the peer cannot be reached comes up when it can.
func tryingOn(r *endsRun) {
	const givesUp = "giving up after 3 retransmits"
	r.s.cut(true)
	if out, err := r.a.swanctl("--initiate", "--child", "net", "--timeout", "1"); err == nil {
		r.t.Errorf("initiated over a link that is cut: %s", out)
	}
	// charon gives up its first try about 7 s after it began it.
	if r.a.name == kindCharon && !eventually(25*time.Second, func() bool {
		return len(matching(r.a.log(), givesUp)) > 0
	}) {
		r.t.Errorf("charon did not give up its first try%s", logs(r.a))
	}
	r.s.cut(false)
	r.agree()
	r.traffic()
	r.must(r.a, "--terminate", "--ike", "site", "--timeout", "20")
	r.gone("site")
}

// updownScript: both daemons call the script with the same variables, with the sides exchanged.
func updownScript(r *endsRun) {
	r.up()
	r.agree()
	r.traffic()
	r.must(r.b, "--terminate", "--ike", "site", "--timeout", "20")
	r.gone("site")
	called := map[byte][]map[string]string{}
	for _, d := range []*viciDaemon{r.a, r.b} {
		var runs []map[string]string
		if !eventually(20*time.Second, func() bool {
			text, _ := os.ReadFile(filepath.Join(d.dir, "daemon", "updown.log"))
			runs = nil
			for line := range strings.SplitSeq(strings.TrimSpace(string(text)), "\n") {
				env := map[string]string{}
				for field := range strings.SplitSeq(line, " PLUTO_") {
					if k, v, ok := strings.Cut(strings.TrimPrefix(field, "PLUTO_"), "="); ok {
						env[k] = strings.TrimSpace(v)
					}
				}
				runs = append(runs, env)
			}
			return len(runs) == 2
		}) {
			r.t.Fatalf("%s ran the script %d times, not twice: %v%s", d.kind(), len(runs), runs, logs(d))
		}
		called[d.side] = runs
	}
	for i, verb := range []string{"up-client", "down-client"} {
		a, b := called['a'][i], called['b'][i]
		for _, v := range []struct{ what, a, b, want string }{
			{"verb", a["VERB"], b["VERB"], verb},
			{"connection", a["CONNECTION"], b["CONNECTION"], "net"},
			{"address of a", a["ME"], b["PEER"], gwA4.String()},
			{"address of b", a["PEER"], b["ME"], gwB4.String()},
			{"network of a", a["MY_CLIENT"], b["PEER_CLIENT"], lanA4},
			{"network of b", a["PEER_CLIENT"], b["MY_CLIENT"], lanB4},
			{"identity of a", a["MY_ID"], b["PEER_ID"], "a.weir.example"},
			{"identity of b", a["PEER_ID"], b["MY_ID"], "b.weir.example"},
			{"host access", a["HOST_ACCESS"], b["HOST_ACCESS"], "1"},
			{"protocol", a["PROTO"], b["PROTO"], "esp"},
		} {
			if v.a != v.want || v.b != v.want {
				r.t.Errorf("call %d: %s: a (%s) says %q, b (%s) says %q, expected %q", i+1, v.what, r.a.kind(), v.a, r.b.kind(), v.b, v.want)
			}
		}
		if ka, kb := slices.Sorted(maps.Keys(a)), slices.Sorted(maps.Keys(b)); fmt.Sprint(ka) != fmt.Sprint(kb) {
			r.t.Errorf("call %d: variables of a: %v; of b: %v", i+1, ka, kb)
		}
	}
}
