//go:build linux

package e2e

import "testing"

// The ends prove themselves with secrets: identities of all kinds, and which secret is whose.
func TestSwanctlConfSecrets(t *testing.T) {
	runEnds(t, []endsConf{
		{name: "addresses", text: `
connections {
  site {
    remote_addrs = <peer>
    local { auth = psk }
    remote { auth = psk
             id = <peer> }
    children { net { local_ts = <lan>
                     remote_ts = <peerlan>
                     esp_proposals = aes128gcm16 } }
  }
}
secrets { ike { secret = "a secret with spaces, commas and # signs" } }
`},
		{name: "names", text: `
# CBC with HMAC, groups of both kinds, PFS.
connections {
  site {
    version = 2
    local_addrs = <me>
    remote_addrs = <peer>
    proposals = aes256-sha512-modp2048, aes128-sha256-ecp256
    local {
      auth = psk
      id = <id>
    }
    remote {
      auth = psk
      id = <peerid>
    }
    children {
      net {
        local_ts = <lan>
        remote_ts = <peerlan>
        esp_proposals = aes256-sha512-modp3072
      }
    }
  }
}
secrets {
  ike-site {
    id-one = a.weir.example
    id-other = b.weir.example
    secret = 0x7468652077656972
  }
}
`},
		{name: "mail and key id", otherIDs: true, text: `
connections {
  site {
    remote_addrs = <peer>
    proposals = aes128ctr-sha256-prfsha256-ecp384
    local { auth = psk
            id = <mine> }
    remote { auth = psk
             id = <theirs> }
    children { net { local_ts = <lan>
                     remote_ts = <peerlan>
                     esp_proposals = aes128ctr-sha256 } }
  }
}
secrets {
  ike-1 {
    id-1 = keeper@weir.example
    id-2 = "@#6c6f636b2d37"
    secret = 0sdGhpc3RsZQ==
  }
}
`, a: map[string]string{"mine": "keeper@weir.example", "theirs": `"@#6c6f636b2d37"`},
			b: map[string]string{"mine": `"@#6c6f636b2d37"`, "theirs": "keeper@weir.example"}},
		{name: "distinguished names", text: `
connections {
  site {
    remote_addrs = <peer>
    proposals = aes256ccm16-prfsha384-ecp521
    local { auth = psk
            id = "C=CH, O=Weir and Lock, CN=<side>" }
    remote { auth = psk
             id = "C=CH, O=Weir and Lock, CN=<peerside>" }
    children { net { local_ts = <lan>
                     remote_ts = <peerlan>
                     esp_proposals = aes256ccm16 } }
  }
}
secrets { ike { id-1 = "C=CH, O=Weir and Lock, CN=*"
                secret = under-the-bridge } }
`},
		{name: "wildcards", text: `
connections {
  site {
    local_addrs = %any
    remote_addrs = <peer>, 0.0.0.0/0
    proposals = chacha20poly1305-prfsha256-curve25519
    local { auth = psk
            id = <id> }
    remote { auth = psk
             id = *.weir.example }
    children { net { local_ts = <lan>
                     remote_ts = <peerlan>
                     esp_proposals = chacha20poly1305 } }
  }
}
secrets { ike-all { id = *.weir.example
                    secret = for-all-of-us } }
`},
		{name: "best secret", text: `
# The wrong ones have fewer of the two owners.
connections {
  site {
    remote_addrs = <peer>
    local { auth = psk
            id = <id> }
    remote { auth = psk
             id = <peerid> }
    children { net { local_ts = <lan>
                     remote_ts = <peerlan> } }
  }
}
secrets {
  ike-1 { secret = wrong-<side> }
  ike-2 { id = <id>
          secret = wrong-too-<side> }
  ike-3 { id-a = a.weir.example
          id-b = b.weir.example
          secret = right }
  ike-4 { id = *.example
          secret = wrong-as-well-<side> }
  ike-5 { id-1 = <id>
          id-2 = c.weir.example
          secret = wrong-again-<side> }
}
`},
		{name: "wrong secret", text: `
connections {
  site {
    remote_addrs = <peer>
    local { auth = psk
            id = <id> }
    remote { auth = psk
             id = <peerid> }
    children { net { local_ts = <lan>
                     remote_ts = <peerlan> } }
  }
}
secrets { ike { secret = mine-is-<side> } }
`, fails: []string{"AUTH"}},
		{name: "post-quantum secret", text: `
connections {
  site {
    remote_addrs = <peer>
    ppk_id = weir@ppk.example
    ppk_required = yes
    local { auth = psk
            id = <id> }
    remote { auth = psk
             id = <peerid> }
    children { net { local_ts = <lan>
                     remote_ts = <peerlan>
                     esp_proposals = aes256gcm16-x25519 } }
  }
}
secrets {
  ike { secret = thistle }
  ppk-1 { id = weir@ppk.example
          secret = 0s1WeVWxxLuyrUIs5ZtxUDrJtGuf9DI9lLlkVNmyPJfjA= }
  ppk-2 { id = other@ppk.example
          secret = 0x0001020304 }
}
`, check: func(r *endsRun) {
			if sa := established(r.t, r.a); !sa.ppk {
				r.t.Errorf("%s does not say that it uses a PPK", r.a.kind())
			}
		}},
		{name: "one file", text: `
# Each end takes the connection whose addresses are its own.
connections {
  here-to-there {
    local_addrs = 198.51.100.1
    remote_addrs = 203.0.113.1
    local { auth = psk
            id = a.weir.example }
    remote { auth = psk
             id = b.weir.example }
    children { net { local_ts = 10.1.0.0/24
                     remote_ts = 10.2.0.0/24 } }
  }
  there-to-here {
    local_addrs = 203.0.113.1
    remote_addrs = 198.51.100.1
    local { auth = psk
            id = b.weir.example }
    remote { auth = psk
             id = a.weir.example }
    children { net-back { local_ts = 10.2.0.0/24
                          remote_ts = 10.1.0.0/24 } }
  }
}
secrets { ike { id-1 = a.weir.example
                id-2 = b.weir.example
                secret = one-for-both } }
`, run: oneFile},
		{name: "references and includes", text: `
# Comments; sections that only others refer to.
include parts/defaults.conf
connections {
  site : common {
    local { id = <id> }   # beside what it has from there
    remote {
      id = <peerid>
    }
    children {
      net : lans.net {
        esp_proposals = "aes256-sha256,\
                         aes128-sha256"
        rekey_time = 30m
      }
    }
  }
}
include parts/secret*.conf
`, files: func(*endsPKI, byte) swanctlDir {
			return swanctlDir{
				"parts/defaults.conf": `
common {
  remote_addrs = <peer>
  proposals = aes128-sha256-x25519, default
  rekey_time = 2h
  local { auth = psk }
  remote { auth = psk }
}
lans {
  net {
    local_ts = <lan>
    remote_ts = <peerlan>
    esp_proposals = null
    life_time = 3h
  }
}
`,
				"parts/secret-1.conf": "secrets { ike-1 { id = <id>\n secret = \"split \\\"up\\\"\" } }\n",
				"parts/secret-2.conf": "secrets { ike-2 { id = <id>\n id-2 = <peerid>\n secret = \"in two files\" } }\n",
			}
		}},
		{name: "defaults", text: `
connections {
  site {
    remote_addrs = <peer>
    local {
      auth = psk
      id = <id>
    }
    remote {
      auth = psk
      id = <peerid>
    }
    proposals = default
    children {
      net {
        local_ts = <lan>
        remote_ts = <peerlan>
        esp_proposals = default
        mode = tunnel
        policies = yes
        rekey_bytes = 0
        replay_window = 64
        copy_df = yes
        copy_ecn = yes
        copy_dscp = out
        hw_offload = no
        ipcomp = no
        sha256_96 = no
      }
    }
    aggressive = no
    pull = yes
    dscp = 000000
    encap = no
    mobike = yes
    dpd_timeout = 0s
    fragmentation = yes
    childless = allow
    send_certreq = yes
    send_cert = ifasked
    keyingtries = 1
    unique = no
    reauth_time = 0s
    rekey_time = 4h
    over_time = 24m
    rand_time = 5m
  }
}
secrets { ike { secret = defaults } }
`},
	})
}

// oneFile: side a has the first of the two connections, side b the second, from the same text.
func oneFile(r *endsRun) {
	r.up()
	r.agree()
	r.traffic()
	r.must(r.a, "--terminate", "--ike", "here-to-there", "--timeout", "20")
	r.gone("here-to-there")
	r.gone("there-to-here")
	if err := r.b.initiate("net-back"); err != nil {
		r.t.Fatalf("%s: %v%s", r.b.kind(), err, logs(r.a, r.b))
	}
	r.agree()
	r.traffic()
	r.must(r.a, "--terminate", "--child", "net", "--timeout", "20")
	r.agreeOn("no child", func(sas []ikeSA) bool { return len(sas) == 1 && len(sas[0].children) == 0 })
	r.must(r.b, "--terminate", "--ike", "there-to-here", "--timeout", "20")
	r.gone("there-to-here")
	r.gone("here-to-there")
}

// The ends prove themselves with certificates or keys.
func TestSwanctlConfCertificates(t *testing.T) {
	kinds := func(a, b keyKind) func(p *endsPKI, side byte) swanctlDir {
		return func(p *endsPKI, side byte) swanctlDir {
			if side == 'a' {
				return p.ours(side, a)
			}
			return p.ours(side, b)
		}
	}
	const usual = `
connections {
  site {
    remote_addrs = <peer>
    send_cert = always
    local { auth = pubkey
            certs = <side>.pem
            id = <id> }
    remote { auth = pubkey
             id = <peerid> }
    children { net { local_ts = <lan>
                     remote_ts = <peerlan>
                     esp_proposals = chacha20poly1305-modp2048, aes128gcm16 } }
  }
}
`
	runEnds(t, []endsConf{
		{name: "ECDSA", text: usual, files: kinds(ecdsa256, ecdsa384)},
		{name: "RSA, small fragments", text: `
connections {
  site {
    remote_addrs = <peer>
    fragmentation = force
    encap = yes
    local { auth = ike:rsa-sha384-sha256
            certs = <side>.pem
            id = gw-<side>@weir.example }
    remote { auth = ike:rsa-sha256-sha384
             id = gw-<peerside>@weir.example }
    children { net { local_ts = <lan>
                     remote_ts = <peerlan> } }
  }
}
`, files: kinds(rsa3072, rsa3072)},
		{name: "RSA-PSS", text: `
connections {
  site {
    remote_addrs = <peer>
    fragmentation = no
    local { auth = ike:rsa/pss-sha384
            certs = <side>.pem
            id = "C=CH, O=Weir and Lock, CN=<side>.weir.example" }
    remote { auth = ike:rsa/pss-sha384
             id = "C=CH, O=Weir and Lock, CN=*"
             cacerts = root.pem }
    children { net { local_ts = <lan>
                     remote_ts = <peerlan> } }
  }
}
`, files: kinds(rsa2048, rsa2048)},
		{name: "Ed25519, strict CRL", text: `
connections {
  site {
    remote_addrs = <peer>
    send_certreq = yes
    local { auth = pubkey
            certs = <side>.pem }
    remote { auth = pubkey
             revocation = strict
             id = "C=CH, O=Weir and Lock, CN=<peerside>.weir.example" }
    children { net { local_ts = <lan>
                     remote_ts = <peerlan> } }
  }
}
`, files: func(p *endsPKI, side byte) swanctlDir {
			return p.ours(side, ed25519K).with(p.lists())
		}},
		{name: "revoked", text: `
connections {
  site {
    remote_addrs = <peer>
    local { auth = pubkey
            certs = <side>.pem
            id = <id> }
    remote { auth = pubkey
             id = <peerid>
             revocation = strict }
    children { net { local_ts = <lan>
                     remote_ts = <peerlan> } }
  }
}
`, files: func(p *endsPKI, side byte) swanctlDir {
			return p.ours(side, ecdsa256).with(p.lists(p.cert('a', ecdsa256)))
		}, fails: []string{"revoked", "AUTH"}},
		{name: "raw keys", text: `
connections {
  site {
    remote_addrs = <peer>
    local { auth = pubkey
            pubkeys = <side>.pub
            id = <id> }
    remote { auth = pubkey
             pubkeys = <peerside>.pub
             id = <peerid> }
    children { net { local_ts = <lan>
                     remote_ts = <peerlan> } }
  }
}
`, files: func(p *endsPKI, side byte) swanctlDir {
			return swanctlDir{
				"pubkey/a.pub":                     p.cert('a', ed25519K).publicPEM(),
				"pubkey/b.pub":                     p.cert('b', ecdsa256).publicPEM(),
				"private/" + string(side) + ".key": p.cert(side, map[byte]keyKind{'a': ed25519K, 'b': ecdsa256}[side]).keyPEM(),
			}
		}},
		{name: "certificate never sent", text: `
connections {
  site {
    remote_addrs = <peer>
    send_cert = never
    send_certreq = no
    local-gateway { auth = ecdsa-sha256
                    certs = <side>.pem
                    id = <id> }
    remote-gateway { auth = ecdsa
                     certs = <peerside>.pem
                     id = <peerid> }
    children { net { local_ts = <lan>
                     remote_ts = <peerlan> } }
  }
}
`, files: func(p *endsPKI, side byte) swanctlDir {
			other := byte('a' + 'b' - side)
			return p.ours(side, ecdsa256).with(swanctlDir{
				"x509/" + string(other) + ".pem": p.cert(other, ecdsa256).certPEM(),
				"x509ca/other.pem":               p.authority(other).certPEM(),
			})
		}},
		{name: "certificate and secret", text: `
connections {
  site {
    remote_addrs = <peer>
    local { auth = <auth>
            id = <id> }
    remote { auth = <peerauth>
             id = <peerid> }
    children { net { local_ts = <lan>
                     remote_ts = <peerlan> } }
  }
}
secrets { ike { id = a.weir.example
                secret = only-a-has-no-certificate } }
`, a: map[string]string{"auth": "psk", "peerauth": "pubkey"}, b: map[string]string{"auth": "pubkey\n certs = b.pem", "peerauth": "psk"},
			files: kinds(ecdsa256, ecdsa256)},
		{name: "two rounds", otherIDs: true, text: `
connections {
  site {
    remote_addrs = <peer>
    local-second {
      round = 2
      auth = psk
      id = second.<id>
    }
    local-first {
      round = 1
      auth = pubkey
      certs = <side>.pem
      id = <id>
    }
    remote-first {
      round = 1
      auth = pubkey
      id = <peerid>
    }
    remote-second {
      round = 2
      auth = psk
      id = second.<peerid>
    }
    children { net { local_ts = <lan>
                     remote_ts = <peerlan> } }
  }
}
secrets { ike { id-1 = second.a.weir.example
                id-2 = second.b.weir.example
                secret = twice } }
`, files: kinds(ecdsa256, ed25519K)},
		{name: "authority, pinned", text: `
connections {
  site {
    remote_addrs = <peer>
    local { auth = pubkey
            cert-1 { file = <dir>/x509/<side>.pem }
            id = <id> }
    remote { auth = pubkey
             id = %any
             cacert-1 { file = <dir>/x509ca/root.pem } }
    children { net { local_ts = <lan>
                     remote_ts = <peerlan> } }
  }
}
authorities {
  weir {
    cacert = root.pem
  }
}
`, files: kinds(ecdsa384, ecdsa521)},
		{name: "other authority", text: `
connections {
  site {
    remote_addrs = <peer>
    local { auth = pubkey
            certs = <side>.pem
            id = <id> }
    remote { auth = pubkey
             id = <peerid>
             cacerts = stranger.pem }
    children { net { local_ts = <lan>
                     remote_ts = <peerlan> } }
  }
}
`, files: func(p *endsPKI, side byte) swanctlDir {
			return p.ours(side, ecdsa256).with(swanctlDir{"x509ca/stranger.pem": p.stranger.certPEM()})
		}, fails: []string{"AUTH"}},
	})
}

// lists returns revocation lists of all authorities, in which these are revoked.
func (p *endsPKI) lists(revoked ...*credential) swanctlDir {
	d := swanctlDir{"x509crl/root.pem": p.root.crl(1)}
	for _, ca := range []*credential{p.north, p.south} {
		var mine []*credential
		for _, c := range revoked {
			if c.issuer == ca {
				mine = append(mine, c)
			}
		}
		d["x509crl/"+ca.name+".pem"] = ca.crl(int64(1+len(revoked)), mine...)
	}
	return d
}
