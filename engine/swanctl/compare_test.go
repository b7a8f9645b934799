package swanctl

import (
	"bytes"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"postern/engine/control"
)

// recorder is a daemon that takes everything, tells of things that nobody has loaded lately, and
// writes down what it is told.
type recorder struct {
	mu  sync.Mutex
	got []string
}

func (r *recorder) Command(name string, m *control.Message, _ func(string, *control.Message) error) (*control.Message, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, name+" "+m.String())
	switch name {
	case control.CmdGetKeys:
		return new(control.Message).List("keys", "0123", "4567"), true
	case control.CmdGetShared:
		return new(control.Message).List("keys", "ike-gone", "ike-1"), true
	case control.CmdGetAuthorities:
		return new(control.Message).List("authorities", "gone", "ca", "also-gone"), true
	case control.CmdGetConns:
		return new(control.Message).List("conns", "gone", "a"), true
	case control.CmdGetPools:
		m := new(control.Message)
		m.Section("gone").Set("base", "192.0.2.0")
		m.Section("p1").Set("base", "192.0.2.0")
		return m, true
	case control.CmdLoadKey, control.CmdLoadToken:
		sum := sha1.Sum([]byte(m.Get("data")))
		return control.Success().Set("id", hex.EncodeToString(sum[:])), true
	}
	return control.Success(), true
}

// tool is Debian's swanctl and a recorder that it talks to.
type tool struct {
	rec    *recorder
	socket string
}

func startTool(t *testing.T) *tool {
	t.Helper()
	if _, err := exec.LookPath("swanctl"); err != nil {
		t.Skip("swanctl is not installed (Debian: strongswan-swanctl): what it sends is not compared with what we send")
	}
	dir, err := os.MkdirTemp("", "vici") // t.TempDir can be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	tl := &tool{new(recorder), filepath.Join(dir, "s")}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tl.socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	srv := control.NewServer(l, tl.rec, control.Options{})
	go func() { _ = srv.Serve() }()
	t.Cleanup(func() { _ = srv.Close() })
	return tl
}

// load returns what swanctl sends for a configuration, and what it prints.
func (tl *tool) load(t *testing.T, conf string) (sent []string, stdout, stderr string) {
	t.Helper()
	tl.rec.mu.Lock()
	tl.rec.got = nil
	tl.rec.mu.Unlock()
	cmd := exec.Command("swanctl", "--load-all", "--noprompt", "--file", conf, "--uri", "unix://"+tl.socket)
	var out, bad bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &bad
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	tl.rec.mu.Lock()
	defer tl.rec.mu.Unlock()
	return tl.rec.got, out.String(), bad.String()
}

// ours is load with our own means.
func ours(t *testing.T, conf string) (sent []string, stdout, stderr string, err error) {
	t.Helper()
	set, err := Read(conf)
	if err != nil {
		return nil, "", "", err
	}
	rec := new(recorder)
	_, err = set.Load(func(name string, m *control.Message) (*control.Message, error) {
		resp, _ := rec.Command(name, m, nil)
		return resp, nil
	}, func(bad bool, line string) {
		if bad {
			stderr += line + "\n"
		} else {
			stdout += line + "\n"
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return rec.got, stdout, stderr, nil
}

// sortRuns sorts lines that follow each other and begin with the same word among words: files
// in a directory have no order for swanctl, and that of their names for us.
func sortRuns(lines []string, words ...string) []string {
	lines = slices.Clone(lines)
	for i := 0; i < len(lines); {
		first, _, _ := strings.Cut(lines[i], " ")
		j := i + 1
		for j < len(lines) && strings.HasPrefix(lines[j], first+" ") {
			j++
		}
		if slices.Contains(words, first) {
			slices.Sort(lines[i:j])
		}
		i = j
	}
	return lines
}

// same fails for each place where two lists differ.
func same(t *testing.T, what string, theirs, our []string) {
	t.Helper()
	clip := func(s string) string {
		if len(s) > 600 {
			return s[:600] + "..."
		}
		return s
	}
	for i := range max(len(theirs), len(our)) {
		a, b := "(nothing)", "(nothing)"
		if i < len(theirs) {
			a = theirs[i]
		}
		if i < len(our) {
			b = our[i]
		}
		if a != b {
			t.Errorf("%s %d:\nswanctl: %s\nours:    %s", what, i, clip(a), clip(b))
			return // what follows is out of step
		}
	}
}

func lines(s string) []string { return strings.Split(strings.TrimSpace(s), "\n") }

// write makes a file below dir.
func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const manyFeatures = `
# A comment, and sections that others take from.
defaults {
  version = 2   # behind a value, too
  proposals = aes128gcm16-prfsha256-x25519, aes256-sha256-modp2048 ,  default
  local {
    auth = pubkey
    certs = gw.pem
  }
}
kid { esp_proposals = aes128gcm16, aes256-sha256
 rekey_time = 1h }
connections {
  b : defaults {
    remote_addrs = 192.0.2.1, 192.0.2.2 , fe80::1%eth0
    remote-2 { id = "C=CH, O=x # no comment, CN=y"
      cacerts = ca.pem, %ABS%
      cert_policy = 1.2.3, 1.2.4
    }
  }
  a : defaults, connections.c {
    proposals =
    version =
    remote { auth = pubkey
       pubkeys = e.pem
       groups = a, b
       cert-x { file = /tmp/x.pem
       }
       cacert-y { handle = 1234
       slot = 3 }
    }
    children {
      two : kid { local_ts = 10.0.0.0/8, dynamic[tcp/http] ,
      hw_offload = no}
      one { remote_ts = 0.0.0.0/0
       label = "multi \
line \"q\" \t tab \q \\"
       empty = ""
       words = a   b	c   "d  e" f
       vips =
      }
    }
  }
  c { vips = 0.0.0.0, ::
   over_time = 10m
   local { auth=eap } }
   d
   # here, too

   {
     x = y }
}
connections { c { added = late
  vips = 192.0.2.77 } }
include conf.d/*.conf
include "conf.d/with space.inc"
secrets {
  ike-1 { secret = 0x0102ff
    id = a.example
    id-2 = b.example }
  ike-2 { secret = 0sAAEC/w== }
  ike-3 { secret = "plain text"
  id-x = %any }
  ike-4 { secret = 0x01:02:3 }
  ike-5 { secret = ""
    id = C=CH, O=x }
  eap-1 { secret = abc
   id = carol }
  xauth-1 { secret = x }
  ntlm-1 { secret = 0x00112233445566778899aabbccddeeff
    id = joe }
  ppk-1 { secret = 0X00112233445566778899aabbccddeeff
    id = ppk1 }
  private-1 { file = encrsa.pem
     secret = rsapw }
  private-2 { file = enced.pem
     secret = edpw }
  pkcs8-1 { file = ENC.pem
     secret-wrong = foo
     secret = bar }
  private-3 { file = gw.pem
     secret = notneeded }
  private-4 { file = wrong.pem
     secret = wrong }
  token-1 { slot = 1
   foo = x
   handle = 0102
   module = m
   pin = 1234 }
}
pools {
  p1 { addrs = 10.3.0.0/24
    dns = 192.0.2.1, 192.0.2.2
    split_include = 10.0.0.0/8
    28 = a, b }
  p2 { addrs = 2001:db8::/97 }
}
authorities {
  ca { cacert = ca.pem
    crl_uris = http://crl.example/a, http://crl.example/b
    ocsp_uris = http://ocsp.example
    cert_uri_base = http://certs.example/, x }
  file { file = /tmp/x.pem }
  token { handle = 11
  slot = 2
  module = m }
}
`

// credentials fills the directories beside a configuration.
func credentials(t *testing.T, dir string) {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is not installed: no keys to load")
	}
	openssl := func(args ...string) {
		t.Helper()
		cmd := exec.Command("openssl", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	for _, d := range []string{"x509", "x509ca", "x509ocsp", "x509aa", "x509ac", "x509crl", "pubkey", "private", "rsa", "ecdsa", "bliss", "pkcs8", "pkcs12", "x509/folder"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ec := []string{"-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "100"}
	openssl(append([]string{"req", "-x509", "-keyout", "ca.key", "-out", "x509ca/ca.pem", "-subj", "/CN=ca"}, ec...)...)
	openssl(append([]string{"req", "-x509", "-keyout", "private/gw.pem", "-out", "x509/gw.pem", "-subj", "/CN=gw"}, ec...)...)
	openssl("x509", "-in", "x509/gw.pem", "-outform", "der", "-out", "x509/gw.der")
	openssl("genrsa", "-traditional", "-out", "rsa/r.pem", "2048")
	openssl("ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", "ecdsa/e.pem")
	openssl("genpkey", "-algorithm", "ed25519", "-out", "pkcs8/ed.pem")
	openssl("pkcs8", "-topk8", "-v2", "aes-256-cbc", "-passout", "pass:bar", "-in", "ecdsa/e.pem", "-out", "pkcs8/enc.pem")
	openssl("pkcs8", "-topk8", "-v2", "aes-256-cbc", "-passout", "pass:rsapw", "-in", "rsa/r.pem", "-out", "private/encrsa.pem")
	openssl("pkcs8", "-topk8", "-v2", "aes-128-cbc", "-passout", "pass:edpw", "-in", "pkcs8/ed.pem", "-out", "private/enced.pem")
	openssl("pkcs8", "-topk8", "-v2", "aes-128-cbc", "-passout", "pass:right", "-in", "pkcs8/ed.pem", "-out", "private/wrong.pem")
	openssl("ec", "-in", "ecdsa/e.pem", "-pubout", "-out", "pubkey/e.pem")
	for name, text := range map[string]string{"x509ocsp/o": "ocsp", "x509aa/a": "aa", "x509ac/ac": "ac", "x509crl/c": "crl", "bliss/b": "bliss", "private/.hidden": "also loaded"} {
		write(t, dir, name, text)
	}
	if err := os.Symlink("../x509/gw.der", filepath.Join(dir, "x509/link.der")); err != nil {
		t.Fatal(err)
	}
}

// TestSwanctlSendsWhatRequestsMakes has Debian's swanctl load a directory with all that one can
// hold, and compares message by message and element by element with what we send.
func TestSwanctlSendsWhatRequestsMakes(t *testing.T) {
	tl := startTool(t)
	dir := t.TempDir()
	credentials(t, dir)
	write(t, dir, "conf.d/x.conf", "connections { e { version = 1\n} }")
	write(t, dir, "conf.d/.#x.conf", "connections { hidden { version = 1\n} }")
	write(t, dir, "conf.d/y.conf", "connections { include sub.inc\n }")
	write(t, dir, "conf.d/sub.inc", "f { version = 2 }")
	write(t, dir, "conf.d/with space.inc", "connections { g { x = include } }")
	conf := write(t, dir, "swanctl.conf", strings.ReplaceAll(manyFeatures, "%ABS%", filepath.Join(dir, "x509/gw.pem")))
	theirs, theirOut, theirErr := tl.load(t, conf)
	sent, out, bad, err := ours(t, conf)
	if err != nil {
		t.Fatal(err)
	}
	if len(theirs) < 30 {
		t.Fatalf("swanctl sent only %d messages: %s", len(theirs), theirErr)
	}
	same(t, "message", sortRuns(theirs, control.CmdLoadCert, control.CmdLoadKey), sortRuns(sent, control.CmdLoadCert, control.CmdLoadKey))
	same(t, "line of the output", sortRuns(lines(theirOut), "loaded"), sortRuns(lines(out), "loaded"))
	for _, w := range []string{"configured decryption secret for 'wrong.pem' invalid"} {
		if !strings.Contains(theirErr, w) {
			t.Errorf("swanctl says %q, not %q", theirErr, w)
		}
	}
	if !strings.Contains(bad, "wrong.pem: the configured secret does not open this key") {
		t.Errorf("the wrong passphrase is not reported: %s", bad)
	}

	// One file in each directory, so that their order can be compared, too.
	for _, name := range []string{"x509/gw.der", "x509/link.der", "private/encrsa.pem", "private/enced.pem", "private/wrong.pem", "private/.hidden", "pkcs8/ed.pem"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	theirs, theirOut, _ = tl.load(t, conf)
	if sent, out, _, err = ours(t, conf); err != nil {
		t.Fatal(err)
	}
	same(t, "message, one file of a kind,", theirs, sent)
	same(t, "line of the output, one file of a kind,", lines(theirOut), lines(out))
}

// TestSyntaxIsSwanctls compares what Debian's swanctl makes of odd texts with what we make of them.
func TestSyntaxIsSwanctls(t *testing.T) {
	tl := startTool(t)
	for name, text := range map[string]string{
		"dot in a key":            "connections { a { k.l = x } }",
		"key in quotes":           "connections { a { \"k l\" = x\n } }",
		"section in quotes":       "connections { \"a\" { k = x\n } }",
		"signs in values":         "connections { a { k = a=b{c:d,e.f\n l = x#y\n m = \"a#b\"#c\n n = a}\n b { o = \"x\"y\"z\"\n q = '\"' \n' } }\"\n } }",
		"no end":                  "connections { a { k = x } ",
		"an end too many":         "connections { a { k = x } } }",
		"lines between":           "connections\n{\na\n\n# c\n\n{ k\n\n= x\nl =\n} }",
		"value on the next line":  "connections { a { l =\n  y\n } }",
		"string over lines":       "connections { a { k = \"line1\nline2\"  after\n l = \"a\\\nb\" \"c\" \n m = \"a   \\\n   b\"\n n = \"x\\r\\n\\b\\f\\x\" \n p = \"\"\n q = \"\" \"\"\n r = \"a\"b\n s = 'x y'\n t = \"cr\\\\\"\n } }",
		"backslash at the end":    "connections { a { m = a \\\n   b\n } }",
		"open string":             "connections { a { k = \"line1\n } }",
		"open escape":             "connections { a { k = \"line1\\",
		"references":              "t { x = 1\n sub { y = 2 } }\nu : t { z = 3 }\nconnections { a : u { }\n b : t, u {}\n c : connections.a , nosuch { }\n e:u,t{ x= \n}\n f : \n   u\n  {}\n}",
		"references merge":        "connections { c { sub : t.s { q = 1\n }  sub : u { w = 1\n } } }\nt { s { r = 1\n } }\nu { w = 5\n v = 6\n }",
		"reference of a setting":  "connections { a { x : y = 3\n }}",
		"two colons":              "connections { a::b { x = 3\n } }",
		"signs in names":          "connections { 1-2_%$+*@!/()[]<>|&;'^~ { x = 3\n } }",
		"two settings in a line":  "connections { a { x = 1 y = 2 } }",
		"deep":                    "connections { a { s { s { s { s { s { x = 1\n}}}}}}}",
		"lists":                   "connections { a { local_addrs = 1.1.1.1,,  2.2.2.2 ,\n  vips = \n  LOCAL_TS = a, b\n  pools = \" a ,\tb \"\n  groups = ,\n  proposals = \"\"\n  ca = \"a, b\"\n } }",
		"comments":                "#c\n # d\nconnections { # e\n a { # f }\n  x = 1 # g }\n  y = 2 } # h\n} #",
		"comment at the end":      "connections { a { x = 1\n } }#",
		"nothing in it":           "connections { }",
		"no text":                 "",
		"only a name":             "connections { y = 2\n a { }\n b }",
		"reference to the root":   "t { x = 1\n }\nconnections { a : .t { }\n}",
		"three templates":         "connections {\n base { children { n { x = 1 \n   y = 2\n   } \n   m { z = 1\n   } } \n   local { auth = psk\n   } \n }\n a : connections.base { \n   remote { auth = psk\n   }\n   children { n : tmpl { x = \n     w = 3\n     } k { v = 1\n     } } }\n}\ntmpl { y = 7\n  w = 8\n  t = 9\n}",
		"repeated":                "connections { a { x = 1\n   s { y = 1\n   } \n   x = 2\n   s { z = 1\n     y = \n     } \n   t { u = 1\n   } } \n   a { x = \n   w = 5\n   } }",
		"references repeated":     "connections { a : t { } \n}\nconnections { a : u { } \n}\nt { x = 1\ny = 1\n}\nu { x = 2\nz = 1\n}",
		"inherited reference":     "connections { a : connections.b.k {}\n b : t { v = 1\n } }\nt { k { x = 1\n } }",
		"connections inherit":     "connections : t { a { x = 1\n } }\nt { b { y=1\n }\n z = 1\n a { z = 2\n }\n}",
		"nothing to take from":    "connections { a : { x = 1\n} }",
		"comma without more":      "connections { a : t, { x = 1\n} }",
		"comma without one":       "connections { a : t,, u { x = 1\n} }",
		"space around dots":       "connections { a : t . b { x = 1\n} }\nt { b { z = 1\n } }",
		"comment behind a colon":  "connections { a : t # comment\n { x = 1\n} } \nt { b { z = 1\n } }",
		"semicolon":               "connections { a { x = 1\n}; b {} }",
		"comma":                   "connections { a { x = 1\n}, b {} }",
		"comma in a key":          "connections { a { x, = 1\n} b {} }",
		"no key":                  "connections { a { = 1\n} b {} }",
		"no name":                 "connections { { x = 1\n} b {} }",
		"two names":               "connections { a b { x = 1\n} }",
		"two keys":                "connections { a { k x = 1\n} }",
		"sections in a line":      "connections { a { x = \"a\" } b { y = z} c { } }",
		"braces in quotes":        "connections { a { x = \"\n# no comment } {\n\" } }",
		"braces in a value":       "connections { a { x = {} } }",
		"comment behind a name":   "connections { a { x#c = 1\n} }",
		"equal signs":             "connections { a { x =#c\n y = \"a\\\n# b\"\n z ==1\n v = = 2\n} }",
		"tabs":                    "connections { a { x = \"a\tb\"\tc\td\n } }",
		"carriage returns":        "connections {\r\n a {\r\n x = 1\r\n y = \"a\r\nb\\\r\nc\"\r\n z = 1\r2\n }\r\n}\r\n",
		"taken away by another":   "connections { a : t { }\n}\nt : u { x =\n }\nu { x = 1\n y = 1\n}",
		"include":                 "connections { include a*.inc \n include \"q b.inc\"\n include nosuch/*.conf\n include nosuch.conf\n c { include c.inc } \n include = 5\n include=6\n include\t=7\n }",
		"include in a line":       "connections { a { x = 1\n } include c1.inc }",
		"include and more":        "connections { a { x = 1\n } include c1.inc z.inc\n}",
		"include, then a section": "connections { include \"c1.inc\" b { x = 1\n } include q\\ b.inc # c\n}",
		"include without end":     "include c1.inc",
		"name like include":       "connections { includex {\nx = 1\n} }",
		"include with classes":    "connections { include a[12].inc\n include ?1.inc\n }",
		"include a directory":     "connections { a { x = 1\n } }\ninclude sub/../a2.inc",
		"order of includes":       "connections { a { x = 0\n w = 1\n } include a*.inc\n a { y = 3\n } }",
		"secrets":                 "secrets { \n ike1 { secret = 0xabc\n }\n ike2 { secret = 0x01:02:ff \n }\n ike4 { secret = 0s\n }\n ike7 { secret = 0x\n }\n ike8 { secret = \"\"\n }\n ike10 { secret = 0SAQID\n   id = a\n   ids = b\n   id- = c, d\n   idx =\n   ID = e\n   secret2 = foo\n }\n IKE11 { secret = x\n }\n ike { secret = \"0sAQID\"\n sub { x = 1\n }\n }\n ike-1 { id = x\n }\n}",
		"pools and authorities":   "pools { p { addrs = a, b\n Dns = a , b\n ADDRS = x, y\n sub { x = 1\n }\n }\n }\nauthorities { a { crl_uris = a , b\n ocsp_uris = \n cert_uri_base = a, b\n foo = c, d\n Cacert = x\n sub { x = 1\n } }\n}",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			conf := write(t, dir, "swanctl.conf", text)
			write(t, dir, "a1.inc", "a { x = 1\n }")
			write(t, dir, "a2.inc", "a { x = 2\n y=2 }\ninclude sub/*.inc")
			write(t, dir, "q b.inc", "b { include=6\n }")
			write(t, dir, "c.inc", "z = 9")
			write(t, dir, "c1.inc", "y { z = 1 }")
			write(t, dir, "sub/1.inc", "s { x = 1 }")
			theirs, _, said := tl.load(t, conf)
			sent, _, _, err := ours(t, conf)
			if strings.Contains(said, "invalid config file") {
				var at *Error
				switch {
				case err == nil:
					t.Errorf("swanctl does not take it, we do: %s", said)
				case !errors.As(err, &at) || at.Line == 0 || !strings.Contains(err.Error(), at.What):
					t.Errorf("the error does not say where: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatalf("swanctl takes it: %v", err)
			}
			same(t, "message", theirs, sent)
		})
	}
}
