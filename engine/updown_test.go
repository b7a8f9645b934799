package engine

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postern/engine/config"
	"postern/esp"
	"postern/ike"
)

// scriptHost runs no scripts and writes down which it was to run.
type scriptHost struct {
	mu   sync.Mutex
	ran  [][]string
	does func(ctx context.Context, env []string, line func([]byte)) error // nil: nothing
}

func (h *scriptHost) run(ctx context.Context, command string, env []string, line func([]byte)) error {
	h.mu.Lock()
	h.ran = append(h.ran, append([]string{command}, env...))
	h.mu.Unlock()
	if h.does == nil {
		return nil
	}
	return h.does(ctx, env, line)
}

// told returns what the scripts were told: verbs, each with the client networks of both sides.
func (h *scriptHost) told() (list []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.ran {
		list = append(list, of(r, "VERB")+" "+of(r, "MY_CLIENT")+" "+of(r, "PEER_CLIENT"))
	}
	return list
}

// of returns a variable of an environment, "(unset)" if it is not there.
func of(env []string, name string) string {
	for _, v := range env {
		if value, ok := strings.CutPrefix(v, "PLUTO_"+name+"="); ok {
			return value
		}
	}
	return "(unset)"
}

// updownLoop is a loop whose children all have a script.
func updownLoop(t *testing.T) (*testLoop, *scriptHost) {
	tl, h := newTestLoop(t), &scriptHost{}
	tl.updowns.of = func(conn, child string) config.Updown {
		if child == "plain" {
			return config.Updown{}
		}
		return config.Updown{Command: "/etc/updown " + child, HostAccess: child == "host"}
	}
	q := &tl.updowns.q
	q.run, q.log, q.room = h.run, tl.ikeLoop.log, 4
	q.link = func(remote netip.Addr) (string, error) {
		if remote != netip.MustParseAddr("192.0.2.2") {
			return "", errors.New("no way")
		}
		return "wan0", nil
	}
	return tl, h
}

// sa makes IKE SA number ike with one child of that number and name.
func (tl *testLoop) sa(unique, id uint32, name string) *ike.SAInfo {
	tl.m.sas = append(tl.m.sas, ike.SAInfo{
		Unique: unique, Conn: "c", State: ike.StateEstablished, Initiator: true,
		Path:    ike.Path{Local: netip.MustParseAddrPort("192.0.2.1:500"), Remote: netip.MustParseAddrPort("192.0.2.2:500")},
		LocalID: ike.ID{Type: ike.IDFQDN, Data: "a.example"}, RemoteID: ike.ID{Type: ike.IDFQDN, Data: "b.example"},
		Children: []ike.ChildInfo{{Unique: id, Name: name, LocalTS: sel("10.1.0.0/16"), RemoteTS: sel("10.2.0.0/16")}},
	})
	return &tl.m.sas[len(tl.m.sas)-1]
}

func (tl *testLoop) event2(kind ike.EventKind, unique, id, old uint32) {
	e := ike.Event{Kind: kind, Conn: "c", IKE: unique, ChildID: id, Old: old}
	for i := range tl.m.sas {
		for _, c := range tl.m.sas[i].Children {
			if c.Unique == id {
				e.Child = c.Name
			}
		}
	}
	tl.outputs(ike.Output{Kind: ike.OutEvent, Event: e})
}

func sels(prefixes ...string) (list []esp.Selector) {
	for _, p := range prefixes {
		list = append(list, sel(p)...)
	}
	return list
}

// said tells whether a line of the log has all these words.
func said(tl *testLoop, words ...string) bool {
	return slices.ContainsFunc(tl.text.all(), func(line string) bool {
		return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) })
	})
}

func wantTold(t *testing.T, h *scriptHost, want ...string) {
	t.Helper()
	synctest.Wait()
	if got := h.told(); !slices.Equal(got, want) {
		t.Errorf("the scripts were told %q, want %q", got, want)
	}
}

const (
	upNet   = "up-client 10.1.0.0/16 10.2.0.0/16"
	downNet = "down-client 10.1.0.0/16 10.2.0.0/16"
)

// A child that is rekeyed, whose IKE SA is rekeyed and moves, has one up and one down, and the down tells how
// things are then. What has no script, or stands beside another SA, has none.
func TestScriptsRunOnceUpAndOnceDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tl, h := updownLoop(t)
		sa := tl.sa(1, 10, "net")
		tl.event2(ike.EvChildUp, 1, 10, 0)
		wantTold(t, h, upNet)
		sa.Children[0].Unique = 11
		tl.event2(ike.EvChildRekeyed, 1, 11, 10)
		sa.Unique = 2
		tl.event2(ike.EvIKERekeyed, 2, 0, 1)
		sa.Path.Local = netip.MustParseAddrPort("192.0.2.9:4500")
		sa.Path.Remote = netip.MustParseAddrPort("192.0.2.3:4711")
		sa.NATPeer = true
		tl.event2(ike.EvMoved, 2, 0, 0)
		tl.event2(ike.EvChildDown, 2, 10, 0) // the one that was replaced
		wantTold(t, h, upNet)
		*sa = ike.SAInfo{} // events come when what they tell of has gone
		tl.event2(ike.EvChildDown, 2, 11, 0)
		tl.event2(ike.EvChildDown, 2, 11, 0)
		wantTold(t, h, upNet, downNet)
		for name, want := range map[string][2]string{
			"UNIQUEID": {"1", "2"}, "ME": {"192.0.2.1", "192.0.2.9"}, "PEER": {"192.0.2.2", "192.0.2.3"},
			"UDP_ENC": {"(unset)", "4711"}, "INTERFACE": {"wan0", "wan0"},
		} {
			if got := [2]string{of(h.ran[0], name), of(h.ran[1], name)}; got != want {
				t.Errorf("PLUTO_%s is %q up and down, want %q", name, got, want)
			}
		}

		tl.sa(3, 20, "plain")
		tl.event2(ike.EvChildUp, 3, 20, 0)
		tl.event2(ike.EvChildDown, 3, 20, 0)
		tl.sa(4, 21, "net").Children[0].Lane = 1
		tl.event2(ike.EvChildUp, 4, 21, 0)
		tl.event2(ike.EvChildDown, 4, 21, 0)
		tl.event2(ike.EvChildUp, 5, 22, 0) // gone already
		tl.event2(ike.EvChildDown, 5, 22, 0)
		tl.event2(ike.EvChildRekeyed, 5, 24, 23)
		wantTold(t, h, upNet, downNet)
		if len(tl.updowns.live) != 0 {
			t.Errorf("%d SAs are still followed", len(tl.updowns.live))
		}
		tl.updowns.q.stop(scriptEndTime, scriptKillTime)
	})
}

// One run for each pair that packets can have, and every variable of it.
func TestScriptIsToldWhatStrongSwanTells(t *testing.T) {
	p6 := ike.Path{Local: netip.MustParseAddrPort("[2001:db8::1]:4500"), Remote: netip.MustParseAddrPort("[2001:db8::2]:4500")}
	common := []string{"PLUTO_VERSION=1.1"}
	for _, c := range []struct {
		name   string
		change func(sa *ike.SAInfo)
		up     bool
		want   string // of each run: what stands between PLUTO_PROTO and the end
	}{
		{"net", func(sa *ike.SAInfo) {}, true, "up-client esp me=192.0.2.1 10.1.0.0/16 0 0 peer=192.0.2.2 10.2.0.0/16 0 0"},
		{"host", func(sa *ike.SAInfo) {
			sa.Children[0].LocalTS, sa.Children[0].RemoteTS = sel("192.0.2.1/32"), sel("192.0.2.2/32")
			sa.Children[0].Suite.Integ = esp.IntegHMACSHA256_128
		}, false, "down-host ah me=192.0.2.1 192.0.2.1/32 0 0 peer=192.0.2.2 192.0.2.2/32 0 0 HOST_ACCESS=1"},
		{"v6", func(sa *ike.SAInfo) {
			sa.Path = p6
			sa.Children[0].LocalTS, sa.Children[0].RemoteTS = sels("2001:db8::1/128", "fd01::/64"), sels("fd02::/64", "10.2.0.0/16")
		}, true, "up-host-v6 esp me=2001:db8::1 2001:db8::1/128 0 0 peer=2001:db8::2 fd02::/64 0 0" +
			"|up-client-v6 esp me=2001:db8::1 fd01::/64 0 0 peer=2001:db8::2 fd02::/64 0 0"},
		{"ports", func(sa *ike.SAInfo) {
			a, b := sels("10.1.0.0/16", "10.1.0.3/32"), sels("0.0.0.0/0", "10.2.0.7/32", "10.2.0.8/32")
			a[1].End = netip.MustParseAddr("10.1.0.9")
			a[0].Proto, a[0].StartPort, a[0].EndPort = esp.ProtoTCP, 0, 65535
			a[1].Proto, a[1].StartPort, a[1].EndPort = esp.ProtoICMP, 0x0304, 0x0304
			b[0].Proto, b[0].StartPort, b[0].EndPort = esp.ProtoTCP, 502, 502
			b[1].Proto, b[1].StartPort, b[1].EndPort = 0, 0, 65535
			b[2].Proto, b[2].StartPort, b[2].EndPort = esp.ProtoTCP, 2000, 3000
			sa.Children[0].LocalTS, sa.Children[0].RemoteTS = a, b
		}, true, "up-client esp me=192.0.2.1 10.1.0.0/16 0 6 peer=192.0.2.2 0.0.0.0/0 502 6" +
			"|up-client esp me=192.0.2.1 10.1.0.0/16 0 6 peer=192.0.2.2 10.2.0.7/32 0 0" +
			"|up-client esp me=192.0.2.1 10.1.0.0/16 0 6 peer=192.0.2.2 10.2.0.8/32 2000:3000 6" +
			"|up-client esp me=192.0.2.1 10.1.0.0/28 3 1 peer=192.0.2.2 10.2.0.7/32 4 0"},
		{"vips", func(sa *ike.SAInfo) {
			sa.LocalVIPs = []netip.Addr{netip.MustParseAddr("fd09::5"), netip.MustParseAddr("10.9.0.5"), netip.MustParseAddr("10.9.0.6")}
			sa.RemoteVIPs = []netip.Addr{netip.MustParseAddr("10.8.0.1")}
			sa.Children[0].Encap = true
		}, true, "up-client esp me=192.0.2.1 10.1.0.0/16 0 0 peer=192.0.2.2 10.2.0.0/16 0 0 " +
			"MY_SOURCEIP=fd09::5 MY_SOURCEIP6_1=fd09::5 MY_SOURCEIP4_1=10.9.0.5 MY_SOURCEIP4_2=10.9.0.6 PEER_SOURCEIP=10.8.0.1 PEER_SOURCEIP4_1=10.8.0.1 " +
			"UDP_ENC=500 DNS4_1=10.2.0.53 DNS6_1=fd02::53"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tl, h := updownLoop(t)
				sa := tl.sa(7, 70, c.name)
				c.change(sa)
				if c.name == "vips" {
					tl.assigned.of = map[string]*assignment{"c": {is: &ike.Assigned{Conn: "c", DNS: []netip.Addr{netip.MustParseAddr("10.2.0.53"), netip.MustParseAddr("fd02::53")}}}}
				}
				tl.event2(ike.EvChildUp, 7, 70, 0)
				if !c.up {
					synctest.Wait()
					h.ran = nil
					tl.event2(ike.EvChildDown, 7, 70, 0)
				}
				synctest.Wait()
				want := strings.Split(c.want, "|")
				if len(h.ran) != len(want) {
					t.Fatalf("%d runs, want %d: %q", len(h.ran), len(want), h.told())
				}
				for i, r := range h.ran {
					link := "wan0"
					if c.name == "v6" {
						link = "unknown"
					}
					if r[0] != "/etc/updown "+c.name {
						t.Errorf("run %d is of %q", i, r[0])
					}
					w := strings.Fields(want[i])
					lines := append(slices.Clone(common), "PLUTO_VERB="+w[0], "PLUTO_CONNECTION="+c.name, "PLUTO_INTERFACE="+link, "PLUTO_REQID=0",
						"PLUTO_PROTO="+w[1], "PLUTO_UNIQUEID=7",
						"PLUTO_ME="+w[2][3:], "PLUTO_MY_ID=a.example", "PLUTO_MY_CLIENT="+w[3], "PLUTO_MY_PORT="+w[4], "PLUTO_MY_PROTOCOL="+w[5],
						"PLUTO_PEER="+w[6][5:], "PLUTO_PEER_ID=b.example", "PLUTO_PEER_CLIENT="+w[7], "PLUTO_PEER_PORT="+w[8], "PLUTO_PEER_PROTOCOL="+w[9])
					for _, more := range w[10:] {
						lines = append(lines, "PLUTO_"+more)
					}
					if !slices.Equal(r[1:], lines) {
						t.Errorf("run %d is told\n%s\nwant\n%s", i, strings.Join(r[1:], "\n"), strings.Join(lines, "\n"))
					}
				}
				tl.updowns.q.stop(scriptEndTime, scriptKillTime)
			})
		})
	}
}

// While a script hangs nothing waits for it but other scripts, which follow in their order, and the hanging one is
// ended after its time.
func TestHangingScriptHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tl, h := updownLoop(t)
		h.does = func(ctx context.Context, env []string, line func([]byte)) error {
			if of(env, "VERB") == "up-client" && of(env, "UNIQUEID") == "1" {
				<-ctx.Done()
			}
			return ctx.Err()
		}
		for i := range uint32(2) {
			tl.sa(i+1, i+10, "net")
			tl.event2(ike.EvChildUp, i+1, i+10, 0)
		}
		tl.event2(ike.EvChildDown, 1, 10, 0)
		begin := time.Now()
		wantTold(t, h, upNet)
		time.Sleep(scriptTime - time.Millisecond)
		wantTold(t, h, upNet)
		time.Sleep(2 * time.Millisecond)
		wantTold(t, h, upNet, upNet, downNet)
		if id := of(h.ran[1], "UNIQUEID"); id != "2" {
			t.Errorf("the second run is for IKE SA %s, want 2", id)
		}
		if d := time.Since(begin); d > scriptTime+time.Second {
			t.Errorf("it took %v", d)
		}
		if !said(tl, "it takes too long", "verb=up-client", "conn=c child=net") {
			t.Errorf("the log does not say that the script was ended:\n%s", tl.text.all())
		}
		tl.updowns.q.stop(scriptEndTime, scriptKillTime)
	})
}

// Where more wait than there is room for, the rest is not run and the log says so; each up that was taken gets its
// down, and the queue holds no more than the two of them.
func TestFullScriptQueueKeepsUpsAndDownsTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tl, h := updownLoop(t)
		blocked := make(chan struct{})
		h.does = func(ctx context.Context, env []string, line func([]byte)) error {
			select {
			case <-blocked:
			case <-ctx.Done():
			}
			return nil
		}
		const many = 20
		for i := range uint32(many) {
			tl.sa(i+1, i+10, "net")
			tl.event2(ike.EvChildUp, i+1, i+10, 0)
			synctest.Wait()
		}
		for i := range uint32(many) {
			tl.event2(ike.EvChildDown, i+1, i+10, 0)
		}
		q := &tl.updowns.q
		if got, want := len(q.jobs), q.room+q.room+1; got != want {
			t.Errorf("%d jobs wait, want %d: the room for ups, and the downs of these and of the one that runs", got, want)
		}
		if n := strings.Count(strings.Join(tl.text.all(), ""), "too many are waiting"); n != 1 {
			t.Errorf("the log says %d times that there is no room, want once:\n%s", n, tl.text.all())
		}
		close(blocked)
		synctest.Wait()
		state := map[string]string{}
		for _, r := range h.ran {
			state[of(r, "UNIQUEID")] += of(r, "VERB") + " "
		}
		for id, verbs := range state {
			if verbs != "up-client down-client " {
				t.Errorf("IKE SA %s had %s", id, verbs)
			}
		}
		if len(state) != q.room+1 {
			t.Errorf("%d SAs had scripts, want %d", len(state), q.room+1)
		}
		q.stop(scriptEndTime, scriptKillTime)
	})
}

// At the end, what is up is taken down; what was never told up is left alone; and nobody waits longer than agreed.
func TestEndOfTheDaemonRunsTheDowns(t *testing.T) {
	for _, c := range []struct {
		name    string
		each    time.Duration // that a script takes
		took    time.Duration
		downs   int
		not     int
		ignores bool // the time limit
	}{
		{name: "in time", each: time.Second, took: 2 * time.Second, downs: 2},
		{name: "too slow", each: 2 * time.Second, took: scriptEndTime, downs: 2},
		{name: "far too slow", each: 9 * time.Second, took: scriptEndTime, downs: 1, not: 1},
		{name: "stuck", each: time.Hour, took: scriptEndTime + scriptKillTime, downs: 1, not: 1, ignores: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tl, h := updownLoop(t)
				for i := range uint32(2) {
					tl.sa(i+1, i+10, "net")
					tl.event2(ike.EvChildUp, i+1, i+10, 0)
				}
				wantTold(t, h, upNet, upNet)
				hang := make(chan struct{})
				h.does = func(ctx context.Context, env []string, line func([]byte)) error {
					end := ctx.Done()
					if c.ignores {
						end = nil
					}
					select {
					case <-time.After(c.each):
						return nil
					case <-end:
						return ctx.Err()
					case <-hang:
						return errors.New("still there")
					}
				}
				tl.event2(ike.EvChildDown, 1, 10, 0)
				synctest.Wait()
				tl.sa(3, 12, "net")
				tl.event2(ike.EvChildUp, 3, 12, 0)
				tl.event2(ike.EvChildDown, 2, 11, 0)
				tl.event2(ike.EvChildDown, 3, 12, 0)
				begin := time.Now()
				tl.updowns.q.stop(scriptEndTime, scriptKillTime)
				if d := time.Since(begin); d != c.took {
					t.Errorf("the end took %v, want %v", d, c.took)
				}
				if downs := h.told()[2:]; len(downs) != c.downs || slices.Contains(downs, upNet) {
					t.Errorf("at the end the scripts were told %q, want %d downs", downs, c.downs)
				}
				if told := said(tl, "have not ended in time", "not_run="+strconv.Itoa(c.not)); told != (c.took >= scriptEndTime) {
					t.Errorf("the log says that not all have ended: %v\n%s", told, tl.text.all())
				}
				if tl.updowns.q.push(updownJob{new(updownSA), false}) {
					t.Error("a script waits that nobody runs any more")
				}
				close(hang)
			})
		})
	}
	var q scriptQueue
	q.stop(0, 0) // nothing was ever run
}

// What a script says goes to the log, a bounded part of it, and so does how it ended.
func TestLogHasWhatScriptsSay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tl, h := updownLoop(t)
		tl.sa(1, 10, "net")
		h.does = func(ctx context.Context, env []string, line func([]byte)) error {
			for i := range maxScriptLines + 7 {
				line(fmt.Appendf(nil, "line %d of %s", i, of(env, "VERB")))
			}
			return errors.New("exit status 3")
		}
		tl.event2(ike.EvChildUp, 1, 10, 0)
		synctest.Wait()
		for _, want := range [][]string{
			{`msg="updown: line 0 of up-client"`, "level=info", "conn=c child=net"},
			{fmt.Sprintf(`msg="updown: line %d of up-client"`, maxScriptLines-1)},
			{"says too much", "left_out=7"},
			{"level=warn", "has failed", "verb=up-client", `err="exit status 3"`},
		} {
			if !said(tl, want...) {
				t.Errorf("no line of the log has %q:\n%s", want, tl.text.all())
			}
		}
		if n := strings.Count(strings.Join(tl.text.all(), ""), "updown: "); n != maxScriptLines {
			t.Errorf("%d lines of the script are in the log, want %d", n, maxScriptLines)
		}
		tl.updowns.q.stop(scriptEndTime, scriptKillTime)
	})
}
