package config

import (
	"slices"
	"strings"
	"testing"
)

// FuzzParse feeds any octets to the parser. Whatever it makes of them, it must end, give
// problems that stand in the file, or a configuration that keeps its promises.
func FuzzParse(f *testing.F) {
	for _, text := range samples(f) {
		f.Add([]byte(text))
	}
	for _, text := range []string{
		baseConn + baseChild + baseSecret,
		"a = [[[[[{b=[{c.d=1}]}]]]]]", "[a.b]\n[[a.c]]\n[a]\n", "\"\"=''\n", "a=\"\\u00e9\\x41\"\r\n", "[daemon]\nmtu=0x5_dc\n",
		"[secrets.x]\nsecret_file=\"f\"\nid=[\"@#0102\"]\n", "x = '''\n'''", "\ufeff#", "[connections.a]\nremote_addrs=[\"::/0\",\"%any\"]\n",
		tableBase + "[policies.a]\naction = \"protect\"\nchild = \"a/net\"\nlocal_ts = [\"10.0.1.1-10.0.1.9[icmp/8]\"]\n[policies.b]\naction = \"bypass\"\ndirection = \"in\"\n",
	} {
		f.Add([]byte(text))
	}
	public := publicFiles(f)
	f.Add([]byte("[authorities.a]\ncacert = \"a.pem\"\ncrls = [\"a.crl\", \"text\"]\ncrl_uris = [\"http://x.example/\"]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		files := func(path string) ([]byte, error) {
			if len(path)%2 == 0 {
				return []byte("what the file holds"), nil
			}
			return nil, errExposed
		}
		l := newLoader("f", files)
		l.readPublic = public
		cfg, err := l.load(data)
		if err != nil {
			checkProblems(t, data, err)
			return
		}
		policies := cfg.Policies(nil)
		i := 0
		for _, c := range cfg.IKE.Conns {
			if c.Name == "" || len(c.Proposals) == 0 || c.RandTime >= c.RekeyTime && c.RekeyTime > 0 {
				t.Errorf("a connection that the machine cannot use: %+v", c)
			}
			for _, ch := range c.Children {
				if ch.Name == "" || len(ch.Proposals) == 0 || len(ch.LocalTS) == 0 || len(ch.RemoteTS) == 0 {
					t.Errorf("a child that the machine cannot use: %+v", ch)
				}
				if ch.RekeyTime > 0 && (ch.LifeTime <= ch.RekeyTime || ch.RandTime >= ch.RekeyTime) {
					t.Errorf("rekey_time %v, life_time %v and rand_time %v do not go together", ch.RekeyTime, ch.LifeTime, ch.RandTime)
				}
				for _, ts := range append(policies[i].LocalTS, policies[i].RemoteTS...) {
					if !ts.Valid() {
						t.Errorf("a policy with the selector %v", ts)
					}
				}
				i++
			}
		}
		list := cfg.SPD(nil)
		if len(list) != cfg.entries() {
			t.Errorf("the SPD has %d entries and %d are counted", len(list), cfg.entries())
		}
		for _, e := range list {
			for _, ts := range append(slices.Clip(e.LocalTS), e.RemoteTS...) {
				if !ts.Valid() {
					t.Errorf("entry %s with the selector %v", e.placeName(), ts)
				}
			}
			if len(e.LocalTS)+len(e.RemoteTS) == 0 && !e.Dynamic {
				t.Errorf("entry %s selects nothing and nothing can add to it", e.placeName())
			}
		}
		for _, s := range cfg.IKE.Secrets {
			if len(s.Key) == 0 {
				t.Errorf("the secret %s is empty", s.Name)
			}
		}
		if len(cfg.IKE.Conns) > 0 && len(cfg.IKE.Secrets) == 0 {
			t.Error("there are connections and no secrets")
		}
	})
}

// checkProblems checks that an error is about places that the file has, in their order.
func checkProblems(t *testing.T, data []byte, err error) {
	if len(data) > maxFileLen {
		return
	}
	problems, ok := err.(Problems)
	if !ok || len(problems) == 0 {
		t.Fatalf("the error is %T %v, expected Problems", err, err)
	}
	lines := strings.Split(string(data), "\n")
	for i, p := range problems {
		if p.Line < 1 || p.Line > len(lines) || p.Col < 1 || p.Col > len(lines[p.Line-1])+1 {
			t.Errorf("%v is not in the file of %d lines", p, len(lines))
		}
		if strings.ContainsAny(p.String(), "\n\x00\x1b") {
			t.Errorf("%q is more than a line of text", p.String())
		}
		if i > 0 && (p.Line < problems[i-1].Line || p.Line == problems[i-1].Line && p.Col < problems[i-1].Col) {
			t.Errorf("%v stands after %v", p, problems[i-1])
		}
	}
}
