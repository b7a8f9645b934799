//go:build linux

package e2e

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What is protected: selectors, children, address families, virtual addresses.
func TestSwanctlConfNetworks(t *testing.T) {
	// psk closes a connection's own part and gives the secret.
	const psk = `
    local { auth = psk
            id = <id> }
    remote { auth = psk
             id = <peerid> }
`
	const secret = `
secrets { ike { id-1 = a.weir.example
                id-2 = b.weir.example
                secret = lock-keeper } }
`
	runEnds(t, []endsConf{
		{name: "several children", text: `
connections {
  site {
    remote_addrs = <peer>
    mobike = no
    proposals = aes256gcm16-prfsha384-modp3072
` + psk + `
    children {
      first  { local_ts = <lan>
               remote_ts = <peerlan>
               esp_proposals = aes256gcm16 }
      second { local_ts = <second>
               remote_ts = <peersecond>
               esp_proposals = aes128-sha1, chacha20poly1305 }
      third  { local_ts = <lan6>
               remote_ts = <peerlan6>
               esp_proposals = aes256ccm12-x25519, aes192-sha384-ecp256 }
    }
  }
}
` + secret, a: map[string]string{"second": lanA4, "peersecond": lanC4}, b: map[string]string{"second": lanC4, "peersecond": lanA4},
			children: []string{"first", "second", "third"},
			flows: []flow{{from: 'a', to: hostB4}, {from: 'a', to: hostC4}, {from: 'a', to: hostB6},
				{from: 'b', to: hostA4}, {from: 'b', to: hostA4, src: hostC4}, {from: 'b', to: hostA6}},
			run: severalChildren},
		{name: "several selectors", text: `
connections {
  site {
    remote_addrs = <peer>
` + psk + `
    children {
      net {
        local_ts = <nets>
        remote_ts = <peernets>
      }
    }
  }
}
` + secret, a: map[string]string{"nets": "10.1.0.0/24, fd01::/64", "peernets": "10.2.0.0/24, 10.3.0.0/24, fd02::/64"},
			b: map[string]string{"nets": "10.2.0.0/24,10.3.0.0/24,fd02::/64", "peernets": "10.1.0.0/24,fd01::/64"},
			flows: []flow{{from: 'a', to: hostB4}, {from: 'a', to: hostC4}, {from: 'a', to: hostB6},
				{from: 'b', to: hostA4}, {from: 'b', to: hostA4, src: hostC4}, {from: 'b', to: hostA6}}},
		{name: "protocols and ports", text: `
connections {
  site {
    remote_addrs = <peer>
` + psk + `
    children {
      net {
        local_ts = <lan>[icmp]
        remote_ts = <peerlan>[icmp]
      }
      modbus {
        local_ts = <lan>[tcp<port>]
        remote_ts = <peerlan>[tcp<peerport>]
      }
      snmp {
        local_ts = <lan>[17/161-162]
        remote_ts = <peerlan>[udp/1024-65535]
      }
    }
  }
}
` + secret, a: map[string]string{"port": "", "peerport": "/502"}, b: map[string]string{"port": "/502", "peerport": ""},
			children: []string{"net", "modbus"}, check: modbusToo},
		{name: "narrowed", text: `
connections {
  site {
    remote_addrs = <peer>
` + psk + `
    children { net { local_ts = <nets>
                     remote_ts = <peernets> } }
  }
}
` + secret, a: map[string]string{"nets": "10.0.0.0/8", "peernets": "0.0.0.0/0"}, b: map[string]string{"nets": "10.2.0.0/24", "peernets": "10.1.0.0/24"},
			check: func(r *endsRun) {
				if c := installed(r.t, r.a, "net"); !slices.Equal(c.localTS, []string{lanA4}) || !slices.Equal(c.remoteTS, []string{lanB4}) {
					r.t.Errorf("%s: selectors %v %v", r.a.kind(), c.localTS, c.remoteTS)
				}
			}},
		{name: "IPv6 in IPv4", text: `
connections {
  site {
    version = 2
    local_addrs = <me>
    remote_addrs = <peer>
    encap = yes
` + psk + `
    children { net { local_ts = <lan6>
                     remote_ts = <peerlan6> } }
  }
}
` + secret, flows: flows6},
		{name: "IPv6 outside", outer6: true, text: `
connections {
  site {
    version = 2
    local_addrs = <me>
    remote_addrs = <peer>
` + psk + `
    children { net { local_ts = <lan6>
                     remote_ts = <peerlan6>
                     esp_proposals = aes256ctr-sha512-ecp384 } }
  }
}
` + secret, flows: flows6},
		{name: "IPv4 in IPv6", outer6: true, text: `
connections {
  site {
    remote_addrs = <peer>
    local { auth = psk }
    remote { auth = psk
             id = <peer> }
    children { net { local_ts = <lan>
                     remote_ts = <peerlan> } }
  }
}
secrets { ike { id = <peer>
                secret = by-address } }
`},
		{name: "host to host", text: `
# No selectors at all: the two gateways themselves.
connections {
  site {
    remote_addrs = <peer>
` + psk + `
    children { net { } }
  }
}
` + secret, flows: []flow{{from: 'A', to: gwB4}, {from: 'B', to: gwA4}}, check: func(r *endsRun) {
			if c := installed(r.t, r.a, "net"); !slices.Equal(c.localTS, []string{gwA4.String() + "/32"}) || !slices.Equal(c.remoteTS, []string{gwB4.String() + "/32"}) {
				r.t.Errorf("%s: selectors %v %v", r.a.kind(), c.localTS, c.remoteTS)
			}
		}},
		{name: "road warrior", text: `
# The same file on both ends.
connections {
  client {
    local_addrs = 198.51.100.1
    remote_addrs = 203.0.113.1
    vips = 0.0.0.0, ::
    local { auth = psk
            id = a.weir.example }
    remote { auth = psk
             id = b.weir.example }
    children { net { remote_ts = 10.2.0.0/24, fd02::/64 } }
  }
  gateway {
    local_addrs = 203.0.113.1
    pools = four, six
    unique = replace
    local { auth = psk
            id = b.weir.example }
    remote { auth = psk
             id = *.weir.example }
    children { net { local_ts = 10.2.0.0/24, fd02::/64
                     remote_ts = dynamic } }
  }
}
pools {
  four { addrs = 10.99.0.0/28
         dns = 10.2.0.53, 10.2.0.54
         nbns = 10.2.0.55 }
  six { addrs = fd99::10-fd99::20
        dns = fd02::53 }
}
` + secret, run: roadWarrior},
		{name: "chosen by identity", text: `
# Two connections between the same addresses.
connections {
  first {
    remote_addrs = <peer>
    local { auth = psk
            id = <id> }
    remote { auth = psk
             id = <peerid> }
    children { net { local_ts = <lan>
                     remote_ts = <peerlan> } }
  }
  second {
    remote_addrs = <peer>
    unique = keep
    local { auth = psk
            id = second.<id> }
    remote { auth = psk
             id = second.<peerid> }
    children { net6 { local_ts = <lan6>
                      remote_ts = <peerlan6> } }
  }
}
secrets {
  ike-first { id-1 = <id>
              id-2 = <peerid>
              secret = the-first }
  ike-second { id-1 = second.<id>
               id-2 = second.<peerid>
               secret = the-second }
}
`, children: []string{"net6", "net"}, conn: "second", flows: append(slices.Clone(flows4), flows6...), run: byIdentity},
		{name: "shunts", text: `
connections {
  site {
    remote_addrs = <peer>
` + psk + `
    children {
      net {
        local_ts = <lan>
        remote_ts = <peerlan>
      }
    }
  }
  shunts {
    children {
      never { local_ts = <lan>
              remote_ts = 192.168.77.0/24
              mode = drop
              start_action = trap }
      clear { local_ts = <lan>
              remote_ts = 192.168.78.0/24
              mode = pass
              start_action = trap }
    }
  }
}
` + secret, check: func(r *endsRun) {
			for _, d := range []*viciDaemon{r.a, r.b} {
				out, err := d.swanctl("--list-pols")
				if err != nil || !strings.Contains(out, "shunts/never, DROP") || !strings.Contains(out, "shunts/clear, PASS") {
					r.t.Errorf("%s: swanctl --list-pols: %v\n%s%s", d.kind(), err, out, logs(d))
				}
			}
			for _, ns := range []string{r.s.lanA, r.s.lanB} {
				if res := r.s.pings(ns, netip.MustParseAddr("192.168.77.7"), 1, briefly); res.answered > 0 {
					r.t.Errorf("what shall be dropped: %v", res)
				}
			}
		}},
	})
}

// severalChildren rekeys and terminates one of the children, and the others stay.
func severalChildren(r *endsRun) {
	r.up()
	before := r.agreeOn("three children", func(sas []ikeSA) bool { return len(sas) == 1 && len(sas[0].children) == 3 })
	for name, suite := range map[string]string{"first": "AES_GCM_16-256", "second": "AES_CBC-128/HMAC_SHA1_96", "third": "AES_CCM_12-256/CURVE_25519"} {
		if got := child4(before, name).suite(); got != suite {
			r.t.Errorf("child %s has %s, not %s", name, got, suite)
		}
	}
	r.traffic()
	r.must(r.b, "--rekey", "--child", "second")
	after := r.agreeOn("another second child", func(sas []ikeSA) bool {
		return len(sas) == 1 && len(sas[0].children) == 3 && child4(sas, "second").spiIn != child4(before, "second").spiIn
	})
	for _, name := range []string{"first", "third"} {
		if child4(after, name).spiIn != child4(before, name).spiIn {
			r.t.Errorf("child %s was rekeyed, too", name)
		}
	}
	r.must(r.a, "--terminate", "--child", "first", "--timeout", "20")
	r.agreeOn("two children", func(sas []ikeSA) bool {
		return len(sas) == 1 && len(sas[0].children) == 2 && child4(sas, "first").spiIn == ""
	})
	r.sends(r.c.flows[1], r.c.flows[2], r.c.flows[4], r.c.flows[5])
	r.must(r.b, "--initiate", "--child", "first", "--timeout", "30")
	r.agreeOn("three children again", func(sas []ikeSA) bool { return len(sas) == 1 && len(sas[0].children) == 3 })
	r.must(r.a, "--rekey", "--ike", "site")
	r.agreeOn("another IKE SA", func(sas []ikeSA) bool {
		return len(sas) == 1 && sas[0].spiI != before[0].spiI && len(sas[0].children) == 3
	})
	r.traffic()
	r.must(r.b, "--terminate", "--ike", "site", "--timeout", "20")
	r.gone("site")
}

// modbusToo: the second child is for TCP alone; the third, which nobody has initiated, is not there.
func modbusToo(r *endsRun) {
	sas, err := listSAs(r.a)
	if err != nil {
		r.t.Fatal(err)
	}
	c := child4(sas, "modbus")
	if !slices.Equal(c.localTS, []string{lanA4 + "[tcp]"}) || !slices.Equal(c.remoteTS, []string{lanB4 + "[tcp/502]"}) {
		r.t.Errorf("%s: selectors of modbus: %v %v", r.a.kind(), c.localTS, c.remoteTS)
	}
	if child4(sas, "snmp").spiIn != "" {
		r.t.Error("child snmp is up")
	}
}

// roadWarrior: the client has an address of each of the gateway's pools.
func roadWarrior(r *endsRun) {
	r.up()
	sas := r.agreeOn("virtual addresses", func(sas []ikeSA) bool {
		return len(sas) == 1 && len(sas[0].children) == 1 && len(sas[0].localVIPs) == 2
	})
	vips := sas[0].localVIPs
	var flows []flow
	for i, pool := range []string{"10.99.0.0/28", "fd99::/64"} {
		vip, err := netip.ParseAddr(vips[i])
		if err != nil || !netip.MustParsePrefix(pool).Contains(vip) {
			r.t.Fatalf("virtual address %q is not of pool %s", vips[i], pool)
		}
		to := hostB4
		if vip.Is6() {
			to = hostB6
		}
		flows = append(flows, flow{from: 'A', to: to}, flow{from: 'b', to: vip})
	}
	r.sends(flows...)
	out, err := r.b.swanctl("--list-pools", "--leases")
	if err != nil || len(matching(out, vips[0], "online", "a.weir.example")) != 1 || len(matching(out, vips[1], "online")) != 1 {
		r.t.Errorf("%s: swanctl --list-pools --leases: %v\n%s", r.b.kind(), err, out)
	}
	r.must(r.b, "--rekey", "--ike", "gateway")
	after := r.agreeOn("another IKE SA", func(now []ikeSA) bool { return len(now) == 1 && now[0].spiI != sas[0].spiI })
	if !slices.Equal(after[0].localVIPs, vips) {
		r.t.Errorf("virtual addresses %v after the IKE SA was rekeyed, %v before", after[0].localVIPs, vips)
	}
	r.must(r.a, "--rekey", "--child", "net")
	r.agreeOn("another CHILD SA", func(now []ikeSA) bool { return child4(now, "net").spiIn != child4(sas, "net").spiIn })
	r.sends(flows...)
	if r.a.name == kindCharon {
		// Only charon has a file of its own to keep these in here.
		text, _ := os.ReadFile(filepath.Join(r.a.dir, "daemon", "resolv.conf"))
		for _, dns := range []string{"10.2.0.53", "10.2.0.54", "fd02::53"} {
			if !strings.Contains(string(text), "nameserver "+dns) {
				r.t.Errorf("%s was not told of name server %s:\n%s", r.a.kind(), dns, text)
			}
		}
	}
	r.must(r.b, "--terminate", "--ike", "gateway", "--timeout", "20")
	r.gone("gateway")
	r.gone("client")
	if out, err := r.b.swanctl("--list-pools", "--leases"); err != nil || len(matching(out, vips[0], "offline", "a.weir.example")) != 1 {
		r.t.Errorf("%s: swanctl --list-pools --leases: %v\n%s", r.b.kind(), err, out)
	}
}

// byIdentity: each connection finds its own on the other side.
func byIdentity(r *endsRun) {
	r.up()
	sas := r.agreeOn("two IKE SAs", func(sas []ikeSA) bool { return len(sas) == 2 })
	for _, d := range []*viciDaemon{r.a, r.b} {
		sas, _ := listSAs(d)
		for conn, child := range map[string]string{"first": "net", "second": "net6"} {
			sa := sasNamed(sas, conn)
			if len(sa.children) != 1 || sa.children[0].name != child {
				r.t.Errorf("%s: connection %s: %+v", d.kind(), conn, sa)
			}
			if second := strings.HasPrefix(sa.remoteID, "second."); second != (conn == "second") {
				r.t.Errorf("%s: connection %s is with %s", d.kind(), conn, sa.remoteID)
			}
		}
	}
	r.traffic()
	r.must(r.b, "--terminate", "--ike", "first", "--timeout", "20")
	r.agreeOn("the second IKE SA alone", func(now []ikeSA) bool { return len(now) == 1 && now[0].spiI == sasNamed(sas, "second").spiI })
	r.sends(flows6...)
	r.must(r.a, "--terminate", "--ike", "second", "--timeout", "20")
	r.gone("first")
	r.gone("second")
}
