package config

import (
	"testing"

	"postern/ike"
)

func TestPoolProblems(t *testing.T) {
	const conn = `[connections.a]
pools = ["p"]
[connections.a.children.c]
local_ts = ["10.2.0.0/24"]
[secrets.a]
secret = "an example of 24 octets."
`
	for name, text := range map[string]string{
		"addresses": conn + `[pools.p]
addrs = ["10.9.0.1/24"]                #! has bits of a host set
[pools.q]
addrs = ["10.9.0.9-10.9.0.1"]          #! ends before it starts
[pools.r]
addrs = ["10.9.0.0/24", "10.9.0.200-10.9.1.9"] #! has addresses in common
[pools.s]
addrs = ["224.0.0.0/24"]               #! that no client can have
[pools.t]                              #! pool t has no addresses
dns = ["10.1.0.1"]
[pools.u]
addrs = ["10.9.0.0/24", "fd00::/64"]   #! addresses of both families
[pools.v]
addrs = ["fd00:5::/64"]                #! addresses of both families
leases = ["x@y.example=10.9.0.5"]
`,
		"leases": conn + `[pools.p]
addrs = ["10.9.0.0/24"]
leases = ["alice"]                     #! has no =
[pools.q]
leases = ["alice@x.example=10.9.0"]    #! is not an address
[pools.r]
leases = ["%any=10.9.0.1"]             #! is not one identity
[pools.s]
leases = ["a.example=10.9.0.1", "b.example=10.9.0.1"] #! twice in leases
`,
		"what clients are told": conn + `[pools.p]
addrs = ["10.9.0.0/24"]
nbns = ["fd00::1"]                     #! NetBIOS has no IPv6
dns_domains = ["bad domain"]           #! is no domain
subnet = ["10.1.0.1/8"]                #! has bits of a host set
enc_dns = ["10.0.0.1"]                 #! has no address
dnssec_ta = ["corp.example 1 2"]       #! five parts
[pools.q]
addrs = ["10.8.0.0/24"]
dns_domains = ["corp.example"]         #! no resolver
[pools.r]
addrs = ["10.7.0.0/24"]
dns = ["10.1.0.1"]
dns_domains = ["corp.example"]
dnssec_ta = ["corp.example 1 8 2 00", "other.example 1 8 2 00"] #! is not in dns_domains
[pools.s]
addrs = ["10.6.0.0/24"]
dnssec_ta = ["corp.example 1 8 2 0g"]  #! is no trust anchor
`,
		"connections": `[pools.p]
addrs = ["10.9.0.0/24"]
[connections.a]
remote_addrs = ["198.51.100.7"]
pools = ["p", "q"]                     #! there is no pool "q" #! it asks for addresses or gives some
vips = ["0.0.0.0"]
[connections.a.children.c]
local_ts = ["10.2.0.0/24"]
[connections.b]
remote_addrs = ["198.51.100.8"]
pools = ["p", "p"]                     #! twice in pools
[connections.c]
remote_addrs = ["198.51.100.9"]
pools = ["p"]
[connections.c.children.c]
mode = "transport"                     #! need tunnel mode
start_action = "start"                 #! has to call the peer
[secrets.a]
secret = "an example of 24 octets."
`,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse("test.toml", []byte(text), ike.AESFirst)
			ps, _ := err.(Problems)
			compare(t, "problem", text, ps)
		})
	}
}
