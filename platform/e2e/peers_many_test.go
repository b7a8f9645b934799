//go:build linux && peers

package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// manySAs is how many CHILD SAs the second of the two pairs has.
const manySAs = 1024

// manyAtMost is what a packet may cost with manySAs, in hundredths of what it costs with one.
const manyAtMost = 110

// manyTurns is how often each pair has its turn in one round: what else the machine does
// changes from second to second, so the turns are short and each round has many.
const manyTurns = 4

// TestPeersManySAs measures what a packet costs both gateways with one CHILD SA, and with
// 1,024 of them that each carry every 1,024th packet. The packets are the same, and so is
// the number of flows: they go to as many addresses in turn, which one SA covers together
// or each SA has one of. What it costs is the processor's time of both gateways: with what
// the kernel does in their system calls, the receiver's routing included.
func TestPeersManySAs(t *testing.T) {
	hosts := make([]netip.Addr, manySAs)
	for i := range hosts {
		hosts[i] = netip.AddrFrom4([4]byte{10, 2, byte(4 + i>>8), byte(i)})
	}
	pairs := []*contender{{name: "1 SA"}, {name: fmt.Sprintf("%d SAs", manySAs)}}
	for i, c := range pairs {
		ca, cb := pairSpecs(false, false)
		both(&ca, &cb, func(c *conn) { c.encap = true })
		ca.board, cb.board = "large", "large"
		a, b := &ca.conns[0], &cb.conns[0]
		a.children[0].remoteTS, b.children[0].localTS = []string{"10.2.4.0/22"}, []string{"10.2.4.0/22"}
		if i == 1 {
			one, other := a.children[0], b.children[0]
			a.children, b.children = nil, nil
			for k, h := range hosts {
				one.name, other.name = fmt.Sprint("net", k), fmt.Sprint("net", k)
				one.remoteTS, other.localTS = []string{h.String() + "/32"}, []string{h.String() + "/32"}
				a.children, b.children = append(a.children, one), append(b.children, other)
			}
		}
		c.s = newPair(t)
		c.s.ip(c.s.gwB, "route add local 10.2.4.0/22 dev lo\n")
		da, db := startPair(c.s, pair{"postern", "postern"}, ca, cb)
		begin := time.Now()
		mustInitiate(t, a.children[0].name, da, db)
		for _, ch := range a.children[1:] {
			if err := da.initiate(ch.name); err != nil {
				t.Fatalf("child %s: %v%s", ch.name, err, logs(da, db))
			}
		}
		fmt.Printf("up: %-10s in %.1f s\n", c.name, time.Since(begin).Seconds())
		c.a, c.b = processOf(da), processOf(db)
	}
	var ratios []float64
	for round := range max(*peersRounds, 3) {
		var spent, took [2]time.Duration
		var arrived [2]int64
		for turn := range 2 * manyTurns {
			k := ((turn+1)/2 + round) % 2 // 0 1 1 0 0 1 1 0, or the other way round
			c := pairs[k]
			var before, after time.Duration
			r, err := c.s.floodMany(hosts, udpPayload, *peersWindow, time.Duration(*peersSeconds)*time.Second/manyTurns,
				func() { before, _ = c.cpu() }, func() { after, _ = c.cpu() })
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			spent[k], arrived[k], took[k] = spent[k]+after-before, arrived[k]+r.arrived, took[k]+r.took
		}
		var cost [2]float64
		for k, c := range pairs {
			cost[k] = float64(spent[k].Nanoseconds()) / float64(arrived[k])
			fmt.Printf("round %d  %-10s %7.1f kpps, %6.0f ns of CPU for a packet, both gateways together\n",
				round+1, c.name, float64(arrived[k])/took[k].Seconds()/1e3, cost[k])
		}
		ratios = append(ratios, cost[1]/cost[0])
	}
	slices.Sort(ratios)
	median := ratios[len(ratios)/2]
	fmt.Printf("cost of a packet at %d SAs against 1 SA: %.2f × (at most %.2f), in the rounds %.2f to %.2f\n",
		manySAs, median, manyAtMost/100.0, ratios[0], ratios[len(ratios)-1])
	if median*100 > manyAtMost && *peersStrict {
		t.Errorf("a packet costs %.2f × with %d SAs", median, manySAs)
	}
}

// floodMany is floodBetween to several addresses in turn.
func (s *site) floodMany(to []netip.Addr, payload, window int, d time.Duration, begin, end func()) (flooded, error) {
	next := 0
	return s.floodAs(floodPlan{
		bind: netip.IPv4Unspecified(),
		aim: func(m *mmsg, n, port int) {
			for i := range n {
				m.names[i] = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: networkOrder(port), Addr: to[next].As4()}
				m.headers[i].Name, m.headers[i].Namelen = m.name(i), unix.SizeofSockaddrInet4
				next = (next + 1) % len(to)
			}
		},
	}, payload, window, d, begin, end)
}
