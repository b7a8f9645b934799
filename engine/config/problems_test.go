package config

import (
	"fmt"
	"sort"
	"strings"
	"testing"

	"postern/board"
	"postern/ike"
)

// marked takes the expectations out of a text: "#! words" at the end of a line says
// that the line has a problem with these words in it, each "#!" one.
func marked(text string) (want []string) {
	for i, line := range strings.Split(text, "\n") {
		marks := strings.Split(line, "#!")
		for _, m := range marks[1:] {
			want = append(want, fmt.Sprintf("%03d %s", i+1, strings.TrimSpace(m)))
		}
	}
	sort.Strings(want)
	return want
}

// compare matches problems with what the marks of a text expect: as many, on the same
// lines, with the words in them.
func compare(t *testing.T, kind, text string, got []Problem) {
	t.Helper()
	want := marked(text)
	left := append([]Problem(nil), got...)
	for _, w := range want {
		var line int
		var words string
		_, _ = fmt.Sscanf(w, "%d", &line)
		words = w[4:]
		found := false
		for i, p := range left {
			if p.Line == line && strings.Contains(p.What+"; "+p.Hint, words) {
				left = append(left[:i], left[i+1:]...)
				found = true
				break
			}
		}
		if !found {
			t.Errorf("no %s in line %d says %q", kind, line, words)
		}
	}
	for _, p := range left {
		t.Errorf("a %s that nobody expected: %v", kind, p)
	}
}

// base are the parts of a configuration without problems.
const (
	baseConn = `[connections.a]
remote_addrs = ["198.51.100.7"]
[connections.a.remote]
id = "b.example"
`
	baseChild = `[connections.a.children.c]
remote_ts = ["10.2.0.0/24"]
`
	baseSecret = `[secrets.a]
id = ["b.example"]
secret = "an example of 24 octets."
`
)

func TestProblemsHaveTheirLine(t *testing.T) {
	for _, c := range []struct{ name, text string }{
		{"unknown keys", `
daemon_name = "x"                  #! unknown key daemon_name; the top of the file has daemon, log, connections, authorities, policies, pools, manual, secrets, ppks
[deamon]                           #! unknown section deamon: did you mean daemon?
[daemon]
interfaces = "x"                   #! unknown key interfaces: did you mean interface?
colour = "red"                     #! unknown key colour; [daemon] has interface, mtu, board
[connections.a]
local_adrs = ["192.0.2.1"]         #! unknown key local_adrs: did you mean local_addrs?
replay_window = 64                 #! unknown key replay_window in [connections.NAME]; it belongs into [connections.NAME.children.CHILD]
id = "a"                           #! it belongs into [connections.NAME.local] or [connections.NAME.remote] or [secrets.NAME]
[connections.a.child.c]            #! unknown section child; [connections.NAME] has
[connections.a.loacl]              #! unknown section loacl: did you mean local?
[connections.a.children.c]
"a key" = 1                        #! unknown key "a key"
`},
		{"values of the wrong type", `
daemon = 1                         #! daemon must be a section [daemon], not an integer
log = ["x"]                        #! log must be a section [log], not a list
[connections]
remote_addrs = ["192.0.2.1"]       #! remote_addrs in [connections] must be a section with a name: [connections.NAME], not a list
[connections.a]
local_addrs = "192.0.2.1"          #! local_addrs must be a list of texts: ["…", "…"], not a text
remote_addrs = [1, "192.0.2.1"]    #! remote_addrs holds an integer
remote_port = "500"                #! remote_port must be a whole number without quotes, not a text
encap = "yes"                      #! encap must be true or false without quotes, not a text
keyingtries = 1.5                  #! keyingtries must be a whole number without quotes, not a fraction
rekey_time = 1979-05-27            #! rekey_time must be a duration: "30s", "5m", "4h", "1d" or a number of seconds, not a date
proposals = { a = 1 }              #! proposals must be a list of texts: ["…", "…"], not a section
[[secrets]]                        #! secrets must be sections with names: [secrets.NAME], not a list of sections
`},
		{"[[connections.a]]", `
[[connections.a]]                  #! a in [connections] must be a section with a name: [connections.NAME], not a list of sections
`},
		{"names of sections", `
[connections."a b"]                #! "a b" is no name for a section; use letters, digits, - and _
[connections.""]                   #! "" is no name for a section
[connections."a.b"]
[secrets.` + strings.Repeat("x", 65) + `] #! is no name for a section
`},
		{"daemon", `
[daemon]
interface = "a-name-of-16-let"     #! has 16 characters; use at most 15
mtu = 575                          #! mtu 575 is out of range; use 576 to 1500
board = "huge"                     #! no board profile "huge": use tiny, small or large, or auto
ike_port = 65536                   #! ike_port 65536 is out of range; use 1 to 65535
natt_port = 0                      #! natt_port 0 is out of range; use 1 to 65535
control = "` + "/" + strings.Repeat("x", 107) + `" #! the path of the control socket has 108 octets; use at most 107
`},
		{"interface with a slash", "[daemon]\ninterface = \"a/b\" #! cannot be the name of an interface\n"},
		{"interface of dots", "[daemon]\ninterface = \"..\" #! cannot be the name of an interface\n"},
		{"interface with a format", "[daemon]\ninterface = \"tun%d\" #! cannot be the name of an interface\n"},
		{"no interface", "[daemon]\ninterface = \"\" #! cannot be the name of an interface\n"},
		{"relative state directory", "[daemon]\nstate_dir = \"state\" #! is no directory; write a path from the root\n"},
		{"relative socket", "[daemon]\ncontrol = \"postern.sock\" #! cannot be the control socket; write a path from the root\n"},
		{"huge number", "[daemon]\nmtu = 99999999999999999999 #! mtu does not fit into 64 bits\n"},
		{"equal ports", "[daemon]\nike_port = 4500\nnatt_port = 4500 #! ike_port and natt_port are both 4500; give them different ports\n"},
		{"port equal to the default", "[daemon]\nike_port = 4500 #! ike_port and natt_port are both 4500\n"},
		{"log", `
[log]
target = "file"                    #! target "file" is not known; use "stderr" or "syslog"
ike = "verbose"                    #! no log level "verbose": use error, warn, info, debug
`},
		{"addresses", `
[connections.a]
local_addrs = ["gw.example",       #! "gw.example" is not an address; write an IPv4 or IPv6 address
  "fe80::1%eth0",                  #! cannot be one end of a tunnel
  "0.0.0.0",                       #! "0.0.0.0" is not the address of a host; write "%any"
  "::ffff:192.0.2.1",              #! write "192.0.2.1"
  "224.0.0.1",                     #! cannot be one end of a tunnel
  "192.0.2.1", "192.0.2.1",        #! 192.0.2.1 is twice in local_addrs
]
remote_addrs = ["10.0.0.1/8",      #! has bits of a host set; write "10.0.0.0/8" for the network or "10.0.0.1/32" for the host
  "10.0.0.0/33",                   #! "10.0.0.0/33" is not a prefix
  "192.0.2.9", "192.0.2.9/32",     #! "192.0.2.9/32" is twice in remote_addrs
]
[connections.b]
local_addrs = ["%any", "::1"]      #! local_addrs has "%any" beside addresses
remote_addrs = ["gw..example",     #! "gw..example" is not an address
  "192.0.2.256",                   #! "192.0.2.256" is not an address
  "-gw.example",                   #! "-gw.example" is not an address
  "gw.example", "GW.example",      #! "GW.example" is twice in remote_addrs
]
[connections.e]
remote_addrs = []                  #! remote_addrs is empty; leave the key out to get the default
[connections.c]
local_addrs = ["192.0.2.1"]        #! local_addrs and remote_addrs of connection c have no address family in common
remote_addrs = ["2001:db8::1"]
[connections.d]
local_addrs = ["192.0.2.1"]
remote_addrs = ["192.0.2.1"]       #! 192.0.2.1 is in local_addrs and in remote_addrs
[secrets.any]
secret = "an example of 24 octets."
`},
		{"numbers and times", baseSecret + `
[connections.a]
remote_addrs = ["198.51.100.7"]
dpd_delay = "half an hour"         #! dpd_delay "half an hour" is not a duration; write "30s", "5m", "4h", "1d"
keyingtries = -1                   #! keyingtries -1 is out of range
rekey_time = "-4h"                 #! rekey_time "-4h" is not a duration
over_time = -5                     #! over_time "-5" is not a duration
rand_time = 9223372036854775808    #! rand_time does not fit into 64 bits
retransmit_timeout = "99ms"        #! retransmit_timeout "99ms" is out of range; use "100ms" to "60s"
retransmit_base = 0.5              #! retransmit_base 0.5 is out of range; use 1 to 10
retransmit_tries = 0               #! retransmit_tries 0 is out of range; use 1 to 30
fragmentation = "force"            #! fragmentation "force" is for IKEv1: an IKEv2 peer must not be sent fragments before it has said that it takes them; write "yes", which is what it means in IKEv2
fragment_size = 500                #! fragment_size 500 is out of range; use 576 to 1500
retransmit_limit = "99ms"          #! retransmit_limit "99ms" is out of range; use "100ms" or more, or 0
retransmit_jitter = 21             #! retransmit_jitter 21 is out of range; use 0 to 20
[connections.a.children.c]
replay_window = 63                 #! replay_window 63 is out of range; use 64 to 4096
life_time = "2h 30m"               #! life_time "2h 30m" is not a duration
[connections.b]
fragmentation = "sometimes"        #! fragmentation "sometimes" is not known; use "yes", "accept" or "no"
retransmit_base = nan              #! retransmit_base nan is out of range
retransmit_timeout = "1e3s"        #! retransmit_timeout "1e3s" is not a duration
`},
		{"order of times", baseSecret + `
[connections.a]
rekey_time = "4h"
rand_time = "4h"                   #! rand_time 4h is not less than rekey_time 4h; make rand_time the shorter one
[connections.a.remote]
id = "b.example"
[connections.a.children.c]
life_time = "1h"                   #! life_time 1h is not longer than rekey_time 1h; make life_time longer
[connections.a.children.d]
remote_ts = ["10.3.0.0/24"]
rekey_time = "90m"
life_time = "30m"                  #! life_time 30m is not longer than rekey_time 90m
[connections.a.children.e]
remote_ts = ["10.4.0.0/24"]
rekey_time = "90s"
rand_time = "2m"                   #! rand_time 2m is not less than rekey_time 90s
[connections.a.children.f]
remote_ts = ["10.5.0.0/24"]
life_time = 0                      #! life_time 0s is not longer than rekey_time 1h
`},
		{"redirect to what is no gateway", baseSecret + `
[connections.a]
remote_addrs = ["198.51.100.7"]
redirect_to = "192.0.2.0/24"           #! "192.0.2.0/24" is no gateway; write one address or a domain name
[connections.a.remote]
id = "b.example"
[connections.a.children.c]
remote_ts = ["10.2.0.0/24"]
`},
		{"order of reauthentication", baseSecret + `
[connections.a]
reauth_time = "10m"
rand_time = "10m"                  #! rand_time 10m is not less than reauth_time 10m; make rand_time the shorter one
[connections.a.remote]
id = "b.example"
` + baseChild},
		{"idle and for ever", baseSecret + baseConn + baseChild + `
start_action = "start"
inactivity = "10m"                 #! inactivity closes what start_action "start" keeps up for ever; write start_action = "trap"
`},
		{"order of volumes", baseSecret + baseConn + baseChild + `
rekey_bytes = "20M"
life_bytes = 20000000              #! life_bytes 20000000 is not more than rekey_bytes 20971520; make life_bytes larger
rekey_packets = 1000
rand_packets = 1000                #! rand_packets 1000 is not less than rekey_packets 1000; make rand_packets the smaller one
`},
		{"hiding", baseSecret + baseConn + baseChild + `
tfc_padding = "most"               #! tfc_padding "most" is not known; write "mtu", or a number without quotes
dummy = "1ms"                      #! dummy is too short; use "10ms" or more, or 0 for none
[connections.a.children.d]
remote_ts = ["10.3.0.1"]
mode = "beet"
tfc_padding = 1000                 #! tfc_padding is for tunnel mode alone, not "beet"; write mode = "tunnel", or take it out
[connections.a.children.e]
remote_ts = ["10.4.0.0/24"]
ah_proposals = ["sha256"]
dummy = "1s"                       #! dummy hides traffic in ESP; AH hides nothing; use esp_proposals, or take it out
[connections.a.children.f]
remote_ts = ["10.5.0.0/24"]
tfc_padding = -1                   #! tfc_padding -1 is out of range; use 0 to 65535
[connections.a.children.g]
remote_ts = ["10.6.0.0/24"]
iptfs = "yes"                      #! iptfs "yes" is not known; write "require", or true or false without quotes
iptfs_rate = "2T"                  #! iptfs_rate 2T is no rate; write bits per second from 2000 to "40G"
[connections.a.children.h]
remote_ts = ["10.7.0.0/24"]
iptfs_size = 1000                  #! iptfs_size does nothing without iptfs; write iptfs = true or "require" as well
[connections.a.children.i]
remote_ts = ["10.8.0.0/24"]
iptfs = true                       #! iptfs in mode "congestion" sends all the time, and iptfs_rate does not say how much at most; write iptfs_rate = "2M"
[connections.a.children.j]
remote_ts = ["10.9.0.0/24"]
iptfs = "require"
iptfs_mode = "aggregate"
iptfs_rate = 1000000               #! iptfs_rate is for packets that leave all the time
iptfs_trip_loss = 5                #! iptfs in mode "aggregate" does not go on in spite of losses
[connections.a.children.k]
remote_ts = ["10.10.0.1"]
local_ts = ["10.11.0.1"]
mode = "transport"
iptfs = true                       #! iptfs is for tunnel mode alone, not "transport"
iptfs_rate = 1999                  #! iptfs_rate 1999 is no rate
[connections.a.children.l]
remote_ts = ["10.12.0.0/24"]
iptfs = true
iptfs_rate = "40001M"              #! iptfs_rate 40001M is no rate
iptfs_size = 200                   #! iptfs_size 200 is out of range; use 256 to 1500
[connections.a.children.m]
remote_ts = ["10.13.0.0/24"]
iptfs = true
iptfs_rate = "100k"
inactivity = "1h"                  #! inactivity never comes while iptfs sends all the time
`},
		{"volumes", baseSecret + baseConn + baseChild + `
rekey_bytes = 9999                 #! rekey_bytes "9999" is too little; use 0 for no limit, or 10000 and more
life_bytes = "5T"                  #! life_bytes "5T" is not a number of octets or packets
rand_bytes = "9999999999G"         #! rand_bytes "9999999999G" is not a number
rekey_packets = -100               #! rekey_packets "-100" is not a number
life_packets = "k"                 #! life_packets "k" is not a number
`},
		{"words", baseSecret + `
[connections.a]
remote_addrs = ["198.51.100.7"]
[connections.a.local]
auth = "secret"                    #! auth "secret" is not known; use "psk"
[connections.a.remote]
id = "%any"                        #! "%any" is not one identity; leave it out for any
[connections.a.children.c]
start_action = "Start"             #! start_action "Start" is not known; use "none", "trap" or "start"
dpd_action = "hold"                #! dpd_action "hold" is not known; use "clear", "trap" or "restart"
close_action = "none"              #! close_action "none" is not known
`},
		{"proposals", baseConn + baseSecret + `
[connections.a.children.c]
esp_proposals = ["aes128gcm16-x25519", "aes128gcm61-x25519"] #! aes128gcm61
[connections.b]
proposals = ["aes256-sha256-modp2048",
  "rot13-sha1",                    #! rot13
  "default", "default"]            #! "default" is twice in proposals; take one out
`},
		{"identities", `
[connections.a.local]
id = "@#0x"                        #! "@#0x"
[connections.a.remote]
id = ""                            #! "" is not one identity; leave it out for any
[secrets.a]
id = ["b.example", "c.example", "{256}:x"] #! {256}
secret = "an example of 24 octets."
`},
		{"selectors", baseConn + baseSecret + `
[connections.a.children.c]
local_ts = ["10.1.0.0/24[tcp/502", #! does not end with ]; write "10.1.0.5/32[tcp/502]"
  "10.1.0.9-10.1.0.1",             #! ends before it starts; write "10.1.0.1-10.1.0.9"
  "10.1.0.9-2001:db8::1",          #! goes from one address family to the other
  "plant",                         #! "plant" is not an address, a prefix or a range
  "10.1.0.5[modbus]",              #! unknown protocol "modbus"
  "10.1.0.5[tcp/modbus]",          #! "modbus" is not a port; write a number from 0 to 65535
  "10.1.0.5[tcp/9-1]",             #! the ports "9-1" end before they start; write 1-9
  "10.1.0.5[gre/1]",               #! protocol "gre" has no ports
  "10.1.0.5[any/53]",              #! protocol "any" has no ports
  "10.1.0.5[icmp/3(256)]",         #! "3(256)" is not a port
  "10.1.0.5/24",                   #! has bits of a host set
  "",                              #! "" is not an address, a prefix or a range
]
remote_ts = ["10.0.0.1", "10.0.0.1/32"] #! "10.0.0.1/32" is twice in remote_ts
`},
		{"a long list", baseConn + baseSecret + "[connections.a.children.c]\nremote_ts = [" +
			strings.Repeat(`"10.0.0.1",`, 33) + "] #! remote_ts has 33 elements; the most is 32\n"},
		{"local_ts alone", baseConn + baseSecret + `
[connections.a.children.c]         #! child c has local_ts but no remote_ts; write remote_ts = ["…"] with what is behind the peer
local_ts = ["10.1.0.0/24"]
`},
		{"families of a child", baseConn + baseSecret + `
[connections.a.children.c]
local_ts = ["10.1.0.0/24", "dynamic"]
remote_ts = ["2001:db8::/32"]
[connections.v6]
local_addrs = ["2001:db8::7"]
remote_addrs = ["2001:db8::8"]
[connections.v6.remote]
id = "b.example"
[connections.v6.children.c]
remote_ts = ["10.0.0.0/8"]         #! child c has no local_ts and remote_ts of one address family, so no packet fits
[connections.v6.children.d]
local_ts = ["10.1.0.0/24"]
remote_ts = ["dynamic"]            #! child d has no local_ts and remote_ts of one address family
[connections.v6.children.e]
local_ts = ["10.1.0.0/24", "2001:db8:1::/64"]
remote_ts = ["dynamic"]
`},
		{"calling nobody", baseSecret + `
[connections.a]
remote_addrs = ["%any"]
[connections.a.children.c]
start_action = "start"             #! start_action "start" has to call the peer, but remote_addrs of connection a names no single address; put an address into remote_addrs, or write start_action = "none"
[connections.b]
remote_addrs = ["10.0.0.0/8"]
[connections.b.children.c]
start_action = "trap"              #! start_action "trap" has to call the peer
dpd_action = "restart"             #! or write dpd_action = "clear"
close_action = "trap"              #! or write close_action = "clear"
[connections.c.children.c]
dpd_action = "clear"
start_action = "none"
`},
		{"trap without knowing for what", baseSecret + `
[connections.a]
remote_addrs = ["192.0.2.1", "10.0.0.0/8"]
[connections.a.remote]
id = "b.example"
[connections.a.children.c]
start_action = "trap"              #! start_action "trap" cannot tell which packets to wait for
[connections.a.children.d]
start_action = "trap"
remote_ts = ["10.3.0.0/24"]
`},
		{"equal ids", `
[connections.a.local]
id = "b.example"
[connections.a.remote]
id = "b.example"                   #! both sides of connection a have the id b.example; give each side its own id
` + baseSecret},
		{"no secret", `
[connections.a]                    #! no secret fits connection a; add a section [secrets.a] with id = ["a.example", "b.example"] and the key
[connections.a.local]
id = "a.example"
[connections.a.remote]
id = "b.example"
[connections.b]                    #! no secret fits connection b; add a section [secrets.b] with id = ["c.example"] and the key
[connections.b.remote]
id = "c.example"
[secrets.other]
id = ["a.example", "d.example"]
secret = "an example of 24 octets."
`},
		{"no secret at all", `
[connections.a]                    #! no secret fits connection a; add a section [secrets.a] with an id and the key
`},
		{"secrets", baseConn + `
[secrets.none]                     #! secret none has no key; write secret = "…" or secret_file = "…"
id = ["b.example"]
[secrets.both]
secret = "an example of 24 octets."
secret_file = "x"                  #! cannot read the file that secret_file names #! secret both has both secret and secret_file
[secrets.hex]
id = ["d.example"]
secret = "0x012"                   #! the key after 0x is not hexadecimal
[secrets.base64]
id = ["e.example"]
secret = "0s*"                     #! the key after 0s is not base64
[secrets.empty]
id = ["f.example"]
secret = ""                        #! the key is empty
[secrets.empty2]
id = ["g.example"]
secret = "0x"                      #! the key is empty
[secrets.number]
id = ["h.example"]
secret = 1234                      #! secret must be a text in quotes, not an integer
[secrets.same]
id = ["b.example"]                 #! secrets same and none (line 6) are for the same identities
secret = "an example of 24 octets."
`},
		{"children of equal selectors", baseConn + baseChild + `
[connections.a.children.d]
remote_ts = ["10.2.0.0-10.2.0.255"] #! child d of connection a has the selectors of child c of connection a (line 5) and never gets a packet
[connections.b]
remote_addrs = ["198.51.100.7"]
[connections.b.remote]
id = "b.example"
[connections.b.children.e]
local_ts = ["10.1.0.0/24", "10.9.0.0/24"]
remote_ts = ["10.3.0.0/24[udp]"]
[connections.b.children.f]
local_ts = ["10.9.0.0/24", "10.1.0.0/24"]
remote_ts = ["10.3.0.0/24[17]"]    #! child f of connection b has the selectors of child e of connection b (line 14)
` + baseSecret},
		{"what goes around ESP", baseConn + `
[connections.a.children.c]
mode = "transport"
local_ts = ["dynamic[esp]"]        #! which only AH can; write ah_proposals
remote_ts = ["dynamic[esp]"]
[connections.b]
remote_addrs = ["198.51.100.9"]
[connections.b.remote]
id = "b.example"
[connections.b.children.d]
mode = "transport"
ah_proposals = ["sha256"]
local_ts = ["dynamic[esp]"]
remote_ts = ["dynamic[esp]"]
[connections.b.children.e]
local_ts = ["10.1.0.0/24[esp]"]
remote_ts = ["10.2.0.0/24[esp]"]
` + baseSecret},
		{"many at once", `
[daemon]
mtu = 1                            #! mtu 1 is out of range
interface = tun0                   #! a text without quotes; write key = "text"
[connections.a]
dpd_dealy = 3                      #! did you mean dpd_delay?
dpd_delay = 3
dpd_delay = 4                      #! dpd_delay is already set in line 7
[connections.a.children.c]
remote_ts = ["10.2.0.0/240"]       #! "10.2.0.0/240" is not a prefix
[connections.a.children.c]         #! section [connections.a.children.c] is already in line 9
start_action = "now"               #! start_action "now" is not known
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := newLoader("test.toml", noSecretFiles).load([]byte(c.text))
			got, ok := err.(Problems)
			if !ok {
				t.Fatalf("the error is %v (%T), expected Problems", err, err)
			}
			compare(t, "problem", c.text, got)
		})
	}
}

func TestWarnings(t *testing.T) {
	for _, c := range []struct{ name, text string }{
		{"nothing to do", "[daemon] #! there are no connections, so nothing is protected\n"},
		{"none", baseConn + baseChild + baseSecret},
		{"connection without children", baseConn + baseSecret},
		{"short key", baseConn + `
[secrets.a]
secret = "fifteen octets."         #! the key is only 15 octets long and can be guessed; use 16 or more
[secrets.b]
id = ["b.example"]
secret = "0x0123456789abcdef"      #! the key is only 8 octets long
`},
		{"no replay check", baseConn + baseChild + `replay_window = 0 #! replayed packets are not noticed; write 64 or more
[connections.a.children.d]
remote_ts = ["10.3.0.0/24"]
esp_proposals = ["aes128gcm16-esn"]
replay_window = 0                  #! take esn out of esp_proposals
` + baseSecret},
		{"hidden twice", baseConn + baseChild + `iptfs = true #! tfc_padding and dummy do nothing where iptfs is in use
iptfs_rate = "1G"
tfc_padding = "mtu"
` + baseSecret},
		{"whole packets in small ones", baseConn + baseChild + `iptfs = true
iptfs_rate = "1G"
iptfs_dont_frag = true
iptfs_size = 1399 #! iptfs_dont_frag with packets of 1399 octets drops longer ones
` + baseSecret},
		{"secret for nobody", baseConn + baseSecret + `
[secrets.b]
id = ["c.example", "d.example"]    #! no connection uses secret b; compare its id with those of the connections
secret = "an example of 24 octets."
`},
		{"wide before narrow", baseConn + baseChild + `
[connections.a.children.d]
remote_ts = ["10.2.0.128/25[tcp/502]"]
local_ts = ["10.1.0.0/24"]
[connections.a.children.e]
remote_ts = ["10.2.0.200", "10.2.0.130/32"]
local_ts = ["10.1.0.7"]
[connections.b]
remote_addrs = ["198.51.100.7"]
[connections.b.remote]
id = "b.example"
[connections.b.children.f]
local_ts = ["10.1.0.9[tcp]"]
remote_ts = ["10.2.0.129[tcp/502]", "10.2.0.130[tcp/502]"] #! child f of connection b never gets a packet: child d of connection a (line 8) takes them all; put the narrower child (and its connection) first
` + baseSecret},
		{"peers at unknown addresses", `
[connections.a.remote]
id = "a.example"
[connections.a.children.c]
local_ts = ["10.0.0.0/8"]
remote_ts = ["dynamic"]
[connections.b.remote]
id = "b.example"
[connections.b.children.c]
local_ts = ["10.0.0.0/8"]
remote_ts = ["dynamic"]
[secrets.any]
secret = "an example of 24 octets."
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := mustParse(t, c.text)
			compare(t, "warning", c.text, cfg.Warnings())
		})
	}
}

func TestBoardWithoutRoomForIPTFS(t *testing.T) {
	var b strings.Builder
	b.WriteString("[secrets.x]\nsecret = \"an example of 24 octets.\"\n[connections.c]\nremote_addrs = [\"192.0.2.1\"]\n")
	for i := range board.Tiny.Streams() + 1 {
		fmt.Fprintf(&b, "[connections.c.children.d%d]\nremote_ts = [\"10.%d.0.0/24\"]\niptfs = true\niptfs_mode = \"aggregate\"\n", i, i)
	}
	cfg := mustParse(t, b.String())
	if err := cfg.Fits(board.Small); err != nil {
		t.Errorf("the board small has room for 5 children with iptfs, but: %v", err)
	}
	want := `test.toml:21:25: more children have iptfs than the board "tiny" has room for (4); take iptfs out of some, or choose a bigger board in [daemon]`
	if err := cfg.Fits(board.Tiny); err == nil || err.Error() != want {
		t.Errorf("Fits says %v, want %s", err, want)
	}
}

// TestSecretsThatFit has pairs of identities as the machine would try them.
func TestSecretsThatFit(t *testing.T) {
	for _, c := range []struct {
		local, remote, addrs, ids, action string
		fits                              bool
	}{
		{"a", "b", `"192.0.2.1"`, `["a", "b"]`, "none", true},
		{"a", "b", `"192.0.2.1"`, `["b"]`, "none", true},
		{"a", "b", `"192.0.2.1"`, `["a"]`, "none", true},
		{"a", "b", `"192.0.2.1"`, `["a", "b", "c"]`, "none", true},
		{"a", "b", `"192.0.2.1"`, `["a", "c"]`, "none", false},
		{"a", "b", `"192.0.2.1"`, `["b", "c"]`, "none", false},
		{"a", "b", `"192.0.2.1"`, `["c"]`, "none", false},
		{"a", "", `"192.0.2.1"`, `["a", "c"]`, "none", true},
		{"a", "", `"192.0.2.1"`, `["a", "c"]`, "start", true},
		{"a", "", `"192.0.2.1"`, `["c"]`, "none", true},
		{"a", "", `"192.0.2.1"`, `["c"]`, "start", false}, // we call and do not know that it is c
		{"a", "", `"192.0.2.1"`, `["c", "d"]`, "none", false},
		{"", "b", `"192.0.2.1"`, `["b"]`, "start", true},
		{"", "b", `"192.0.2.1"`, `["192.0.2.200", "b"]`, "start", true}, // perhaps our address
		{"", "b", `"192.0.2.1"`, `["192.0.2.200"]`, "start", true},
		{"", "b", `"192.0.2.1"`, `["c.example"]`, "start", false},
	} {
		text := "[connections.x]\nremote_addrs = [" + c.addrs + "]\n"
		if c.local != "" {
			text += "[connections.x.local]\nid = \"" + c.local + "\"\n"
		}
		if c.remote != "" {
			text += "[connections.x.remote]\nid = \"" + c.remote + "\"\n"
		}
		text += "[connections.x.children.y]\nstart_action = \"" + c.action + "\"\n"
		text += "[secrets.x]\nsecret = \"an example of 24 octets.\"\nid = " + c.ids + "\n"
		_, err := newLoader("test.toml", noSecretFiles).load([]byte(text))
		if (err == nil) != c.fits {
			t.Errorf("secret %s for local %q and remote %q (%s): fits %v, expected %v: %v", c.ids, c.local, c.remote, c.action, err == nil, c.fits, err)
		}
	}
}

func TestProblemsAreSortedAndHaveOneLineEach(t *testing.T) {
	_, err := Parse("x.toml", []byte("[connections.a]\n[daemon]\nmtu = 1\nfoo = 1\n"), ike.AESFirst)
	want := `x.toml:1:14: no secret fits connection a; add a section [secrets.a] with an id and the key
x.toml:3:7: mtu 1 is out of range; use 576 to 1500
x.toml:4:1: unknown key foo; [daemon] has interface, mtu, board, ike_port, natt_port, keep_alive, control, state_dir, qcd, dns, dns_file, export_keys`
	if err == nil || err.Error() != want {
		t.Errorf("the error is\n%v\nexpected\n%s", err, want)
	}
}

func TestBoardWithoutRoom(t *testing.T) {
	var b strings.Builder
	b.WriteString("[daemon]\nboard = \"tiny\"\n[secrets.x]\nsecret = \"an example of 24 octets.\"\n")
	for i := range board.Tiny.IKESAs + 1 {
		fmt.Fprintf(&b, "[connections.c%d]\nremote_addrs = [\"192.0.2.%d\"]\n", i, i+1)
		for j := range 2 {
			fmt.Fprintf(&b, "[connections.c%d.children.d%d]\nremote_ts = [\"10.%d.%d.0/24\"]\n", i, j, i, j)
		}
	}
	_, err := Parse("x.toml", []byte(b.String()), ike.AESFirst)
	want := []string{
		`x.toml:101:14: 17 connections are more than the board "tiny" has room for (16); `,
		`x.toml:103:27: 34 children are more than the board "tiny" has room for (32); `,
	}
	got, _ := err.(Problems)
	if len(got) != len(want) {
		t.Fatalf("the problems are %v, expected %d", err, len(want))
	}
	for i, w := range want {
		if !strings.HasPrefix(got[i].String(), w) {
			t.Errorf("problem %d is %v, expected %s…", i, got[i], w)
		}
	}
	cfg := mustParse(t, strings.Replace(b.String(), `board = "tiny"`, "", 1))
	if err := cfg.Fits(board.Small); err != nil {
		t.Errorf("the board small has room for 17 connections with 34 children, but: %v", err)
	}
	if err := cfg.Fits(board.Tiny); err == nil {
		t.Error("the board tiny has no room for 17 connections, but Fits does not say so")
	}
}
