package config

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"postern/esp"
)

// What two pairs of selectors have to do with each other is what packets say: ICMP has one type at both ends,
// and a packet shows its ports at both ends or at neither.
func TestPairsOfSelectorsAgreeWithPackets(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 7))
	a := netip.MustParseAddr("10.0.0.1")
	values := []uint16{0, 5, 9, 65535}
	random := func() []esp.Selector {
		var list []esp.Selector
		for range 1 + rng.IntN(2) {
			s := esp.Selector{Start: a, End: a, EndPort: 65535}
			if s.Proto = []uint8{0, 0, 1, 17, 47}[rng.IntN(5)]; esp.HasPorts(s.Proto) {
				switch i, j := rng.IntN(4), rng.IntN(4); rng.IntN(4) {
				case 0:
					s.StartPort, s.EndPort = opaqueStart, opaqueEnd
				case 1, 2:
					s.StartPort, s.EndPort = values[min(i, j)], values[max(i, j)]
				}
			}
			list = append(list, s)
		}
		return list
	}
	var packets []esp.Flow
	for _, proto := range []uint8{1, 2, 17, 47} {
		packets = append(packets, esp.Flow{Local: a, Remote: a, Proto: proto, NoPorts: true})
		for _, l := range append(values, 1, 7, 60000) {
			for _, r := range append(values, 1, 7, 60000) {
				if proto == 17 || proto == 1 && l == r {
					packets = append(packets, esp.Flow{Local: a, Remote: a, Proto: proto, LocalPort: l, RemotePort: r})
				}
			}
		}
	}
	covered, apart, empty := 0, 0, 0
	for range 4000 {
		wl, wr, nl, nr := random(), random(), random(), random()
		covers, some, both := true, false, false
		for i := range packets {
			w, n := esp.MatchFlow(wl, wr, &packets[i]), esp.MatchFlow(nl, nr, &packets[i])
			covers, some, both = covers && (w || !n), some || n, both || w && n
		}
		if got := joins(nl, nr); got != some {
			t.Fatalf("%v === %v: a packet fits: %v, want %v", nl, nr, got, some)
		}
		// It need not see that several pairs together cover one.
		if got := coversBoth(wl, wr, nl, nr); got && !(covers || !some) {
			t.Fatalf("%v === %v is said to cover %v === %v, and there is a packet that says otherwise", wl, wr, nl, nr)
		} else if covers && some && !got && len(wl)+len(wr) == 2 {
			t.Fatalf("%v === %v is said not to cover %v === %v", wl, wr, nl, nr)
		}
		got := false
		for _, w := range wl {
			for _, x := range wr {
				for _, n := range nl {
					for _, y := range nr {
						got = got || overlap(w, x, n, y)
					}
				}
			}
		}
		if got != both {
			t.Fatalf("%v === %v and %v === %v overlap: %v, want %v", wl, wr, nl, nr, got, both)
		}
		for n, is := range map[*int]bool{&covered: covers && some, &apart: !both, &empty: !some} {
			if is {
				*n++
			}
		}
	}
	if covered < 100 || apart < 100 || empty < 100 {
		t.Errorf("%d covered, %d apart, %d empty: this test proves little", covered, apart, empty)
	}
}

func TestShadowsOfTypesAndOpaquePortsAreSeen(t *testing.T) {
	entry := func(name, action, local, remote string) string {
		return "[policies." + name + "]\naction = \"" + action + "\"\nlocal_ts = [\"" + local + "\"]\nremote_ts = [\"" + remote + "\"]\n"
	}
	for _, c := range []struct {
		name          string
		first, second [2]string
		problem       string // "": none
	}{
		{"a type at one end, then at the other", [2]string{"10.0.0.0/8[icmp/8]", "0.0.0.0/0"}, [2]string{"10.0.0.0/8", "10.2.0.0/16[icmp/8]"}, "second never decides"},
		{"another type", [2]string{"10.0.0.0/8[icmp/8]", "0.0.0.0/0"}, [2]string{"10.0.0.0/8", "10.2.0.0/16[icmp/0]"}, ""},
		{"a code within types", [2]string{"10.0.0.0/8[icmp/2048-2303]", "0.0.0.0/0"}, [2]string{"10.0.0.0/8", "10.2.0.0/16[icmp/8(3)]"}, "second never decides"},
		{"ports before OPAQUE", [2]string{"10.0.0.0/8[udp/1-65535]", "0.0.0.0/0[udp]"}, [2]string{"10.0.0.0/8[udp/opaque]", "0.0.0.0/0"}, ""},
		{"all ports before OPAQUE", [2]string{"10.0.0.0/8[udp]", "0.0.0.0/0"}, [2]string{"10.0.0.0/8[udp/opaque]", "0.0.0.0/0"}, "second never decides"},
		{"OPAQUE at one end, then at the other", [2]string{"10.0.0.0/8[udp/opaque]", "0.0.0.0/0"}, [2]string{"10.0.0.0/8", "10.2.0.0/16[udp/opaque]"}, "second never decides"},
		{"OPAQUE before all ports", [2]string{"10.0.0.0/8[udp/opaque]", "0.0.0.0/0"}, [2]string{"10.0.0.0/8[udp]", "0.0.0.0/0"}, ""},
		{"two protocols", [2]string{"10.0.0.0/8[udp]", "0.0.0.0/0[tcp]"}, [2]string{"10.0.0.0/8", "0.0.0.0/0"}, "policy first has no local_ts and remote_ts that one packet can match"},
		{"two types", [2]string{"10.0.0.0/8[icmp/8]", "0.0.0.0/0[icmp/0]"}, [2]string{"10.0.0.0/8", "0.0.0.0/0"}, "policy first has no local_ts and remote_ts that one packet can match"},
		{"OPAQUE and a port", [2]string{"10.0.0.0/8[udp/opaque]", "0.0.0.0/0[udp/53]"}, [2]string{"10.0.0.0/8", "0.0.0.0/0"}, "policy first has no local_ts and remote_ts that one packet can match"},
	} {
		text := entry("first", "bypass", c.first[0], c.first[1]) + entry("second", "discard", c.second[0], c.second[1])
		_, err := newLoader("test.toml", noSecretFiles).load([]byte(text))
		if c.problem == "" && err != nil || c.problem != "" && (err == nil || !strings.Contains(err.Error(), c.problem)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.problem)
		}
	}
	_, err := newLoader("test.toml", noSecretFiles).load([]byte(`
[connections.a]
remote_addrs = ["198.51.100.7"]
[connections.a.children.c]
mode = "transport"
non_first_fragments = "also"
[connections.a.children.d]
local_ts = ["dynamic[udp]"]
remote_ts = ["10.2.0.0/24[tcp]"]
[connections.b.children.e]
mode = "drop"
local_ts = ["10.0.0.0/8[icmp/1]"]
remote_ts = ["10.2.0.0/24[icmp/2]"]
[secrets.any]
secret = "an example of 24 octets."
`))
	for _, want := range []string{`mode "transport" carries no fragments`, "child d has no local_ts and remote_ts that one packet", "child e has no local_ts and remote_ts that one packet"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
