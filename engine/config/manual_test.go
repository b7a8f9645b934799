package config

import (
	"fmt"
	"strings"
	"testing"

	"postern/board"
	"postern/esp"
	"postern/ike"
)

// manualText is a manual SA of that name, SPI and suite, with keys that nothing else has.
func manualText(name string, spi int, suite, more string) string {
	s, err := ike.ParseSuite(ike.ProtoESP, suite)
	if err != nil {
		panic(err)
	}
	text := fmt.Sprintf("[manual.%s]\nlocal_addrs = [\"192.0.2.1\"]\nremote_addrs = [\"192.0.2.2\"]\nspi_in = %d\nspi_out = %d\nesp_proposals = [%q]\nremote_ts = [\"10.%d.0.0/16\"]\n%s\n",
		name, spi, spi, suite, spi%250, more)
	encr, integ := s.KeyLens()
	for i, n := range []int{encr, integ} {
		for j, dir := range []string{"in", "out"} {
			if n > 0 {
				text += fmt.Sprintf("%s_key_%s = \"0x%04x%s\"\n", []string{"encr", "integ"}[i], dir, spi, strings.Repeat(fmt.Sprintf("%02x", 1+2*i+j), n-2))
			}
		}
	}
	return text
}

func TestProblemsOfManualSAs(t *testing.T) {
	const keys = "integ_key_in = \"" + manualKeyIn + "\"\ninteg_key_out = \"" + manualKeyOut + "\"\n"
	const ends = "local_addrs = [\"192.0.2.1\"]\nremote_addrs = [\"192.0.2.2\"]\nspi_in = 300\nspi_out = 300\n"
	const null = "esp_proposals = [\"null-sha1\"]\n"
	for _, c := range []struct{ name, text string }{
		{"nothing", "[manual.x] #! has no local_addrs #! has no remote_addrs #! has no spi_in #! has no spi_out #! either esp_proposals or ah_proposals"},
		{"two suites", "[manual.x]\n" + ends + keys + `esp_proposals = ["null-sha1", "aes128-sha1"] #! has 2 proposals, but nothing is negotiated`},
		{"a choice", "[manual.x]\n" + ends + keys + `esp_proposals = ["aes128-aes256-sha1"] #! must be one suite`},
		{"a group", "[manual.x]\n" + ends + keys + `esp_proposals = ["aes128-sha1-x25519"] #! has a group, but nothing is negotiated`},
		{"default", "[manual.x]\n" + ends + keys + `esp_proposals = ["default"] #! is more than one suite`},
		{"both protocols", "[manual.x] #! either esp_proposals or ah_proposals\n" + ends + keys + null + `ah_proposals = ["sha1"]`},
		{"AH in UDP", "[manual.x]\n" + ends + keys + "encap = true\n" + `ah_proposals = ["sha1"] #! AH cannot go through UDP`},
		{"AH in BEET", "[manual.x]\n" + ends + keys + "mode = \"beet\"\n" + `ah_proposals = ["sha1"] #! BEET is a mode of ESP alone`},
		{"a shunt", "[manual.x]\n" + ends + keys + null + `mode = "pass" #! makes no SA`},
		{"reserved SPI", "[manual.x]\nspi_in = 255 #! out of range; use 0x100\nspi_out = 0x100000000 #! out of range"},
		{"addresses", "[manual.x]\nlocal_addrs = [\"192.0.2.1\", \"192.0.2.3\"] #! has 2 addresses\nremote_addrs = [\"gw.example\"] #! is no address, and a manual SA cannot do without"},
		{"any", "[manual.x]\nremote_addrs = [\"%any\"] #! is no address\nlocal_addrs = [\"224.0.0.5\"] #! cannot be one end of a tunnel"},
		{"families", "[manual.x]\nlocal_addrs = [\"192.0.2.1\"]\nspi_in = 300\nspi_out = 300\n" + null + keys + `remote_addrs = ["2001:db8::1"] #! are of two address families`},
		{"the same", "[manual.x]\nlocal_addrs = [\"192.0.2.1\"]\nspi_in = 300\nspi_out = 300\n" + null + keys + `remote_addrs = ["192.0.2.1"] #! is in local_addrs and in remote_addrs`},
		{"key lengths", "[manual.x] #! has no integ_key_out\n" + ends + null + "integ_key_in = \"0x1234\" #! takes 20 octets of integ_key_in, not 2\nencr_key_in = \"0x12\" #! takes no encr_key_in"},
		{"not a key", "[manual.x]\n" + ends + null + "integ_key_in = \"secret\" #! integ_key_in is not a key in hexadecimal\ninteg_key_out = \"0x123\" #! integ_key_out is not a key"},
		{"transport of networks", "[manual.x]\n" + ends + null + keys + "mode = \"transport\"\nremote_ts = [\"10.0.0.0/8\"] #! is for packets between the two addresses"},
		{"BEET of networks", "[manual.x]\n" + ends + null + keys + "mode = \"beet\"\nremote_ts = [\"10.0.0.0/8\"] #! is for one address on each side"},
		{"selectors of two families", "[manual.x]\n" + ends + null + keys + "remote_ts = [\"fd00::/8\"] #! no packet fits"},
		{"counter mode", manualText("x", 300, "null-sha1", "") + strings.Replace(manualText("y", 301, "aes128gcm16", ""), "[\"aes128gcm16\"]", "[\"aes128gcm16\"] #! must not be used with keys that stay the same over a restart", 1)},
		{"ESN", strings.Replace(manualText("x", 300, "null-sha1-esn", ""), "[manual.x]", "[manual.x] #! the peer could not tell their upper half", 1)},
		{"one SPI twice", manualText("x", 300, "null-sha1", "") + strings.Replace(manualText("y", 300, "null-sha256", ""), "spi_in = 300\nspi_out = 300", "spi_in = 300 #! is that of manual SA x\nspi_out = 301", 1)},
		{"one key for both ways", strings.Replace(strings.ReplaceAll(manualText("x", 300, "aes128ctr-sha1", "keep_sequence = true"), "0202", "0101"), "[manual.x]", "[manual.x] #! use one key twice", 1)},
		{"one SPI at the peer", manualText("x", 300, "null-sha1", "") + strings.Replace(manualText("y", 301, "null-sha256", ""), "spi_out = 301", "spi_out = 300 #! at 192.0.2.2 is that of manual SA x", 1)},
		{"one number for two", manualText("x", 300, "null-sha1", "keep_sequence = true") + strings.Replace(strings.ReplaceAll(manualText("y", 301, "null-sha1", "keep_sequence = true"), "0x012d", "0x012c"), "[manual.y]", "[manual.y] #! send under one key", 1)},
		{"nowhere to keep", "[daemon]\nstate_dir = \"\"\n" + manualText("x", 300, "aes128gcm16", "keep_sequence = true #! state_dir is empty")},
		{"a connection of that name", manualText("x", 300, "null-sha1", "") + "[connections.manual] #! would be mistaken\nremote_addrs = [\"192.0.2.9\"]\n[connections.manual.children.c]\n" + baseSecret[:0] + "[secrets.a]\nsecret = \"an example of 24 octets.\"\n"},
		{"shadowed", manualText("x", 300, "null-sha1", "") + "[policies.p]\naction = \"protect\"\nchild = \"manual/y\" #! there is no child"},
		{"shadowed by another action", "[policies.p]\naction = \"bypass\"\n" + strings.Replace(manualText("x", 300, "null-sha1", ""), "[manual.x]", "[manual.x] #! manual SA x never decides: policy p", 1)},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse("test.toml", []byte(c.text), ike.AESFirst)
			problems, _ := err.(Problems)
			if err != nil && problems == nil {
				t.Fatal(err)
			}
			compare(t, "problem", c.text, problems)
			for _, p := range problems {
				if strings.Contains(p.String(), manualKeyIn[4:12]) {
					t.Errorf("a problem shows a key: %v", p)
				}
			}
		})
	}
}

func TestWarningsOfManualSAs(t *testing.T) {
	for _, text := range []string{
		manualText("x", 300, "null-sha1", "replay_window = 64 #! all that it sends will be taken for replays"),
		manualText("x", 300, "null-sha1-esn", "keep_sequence = true\nreplay_window = 0 #! replayed packets are not noticed"),
		manualText("x", 300, "aes128gcm16", "keep_sequence = true"),
		manualText("x", 300, "aes128-sha1", ""),
	} {
		c, err := Parse("test.toml", []byte(text), ike.AESFirst)
		if err != nil {
			t.Fatal(err)
		}
		compare(t, "warning", text, c.Warnings())
	}
}

// The file of the keys is looked at as that of any other secret, and its lines are known by
// number alone.
func TestKeyFileOfManualSAs(t *testing.T) {
	dir := t.TempDir()
	text := "[manual.x]\nlocal_addrs = [\"192.0.2.1\"]\nremote_addrs = [\"192.0.2.2\"]\nspi_in = 300\nspi_out = 300\nesp_proposals = [\"null-sha1\"]\nkey_file = \"k\"\n"
	path := write(t, dir, "c.toml", text, 0o644)
	for _, c := range []struct{ keys, want string }{
		{manualKeyFile, ""},
		{manualKeyFile + "\nother = 0x1234\n", "there is no key of the name in line 5 of the file"},
		{manualKeyFile + "\ninteg_key_in = 0x1234\n", "integ_key_in in line 5 of the file is there twice"},
		{"integ_key_in 0x1234\n", "in line 1 of the file is not a key in hexadecimal"},
		{"", "manual SA x has no integ_key_in"},
	} {
		write(t, dir, "k", c.keys, 0o600)
		_, err := Load(path, ike.AESFirst)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.keys, err, c.want)
		}
	}
	write(t, dir, "k", manualKeyFile, 0o640)
	if _, err := Load(path, ike.AESFirst); err == nil || !strings.Contains(err.Error(), "key_file names: the group or others can read or change it") {
		t.Errorf("a key file that others can read: %v", err)
	}
	inline := write(t, dir, "d.toml", manualText("x", 300, "null-sha1", ""), 0o644)
	if _, err := Load(inline, ike.AESFirst); err == nil || !strings.Contains(err.Error(), "name that in key_file") {
		t.Errorf("a configuration with keys that others can read: %v", err)
	}
}

func TestManualSAsHaveTheirPlaceInTheSPD(t *testing.T) {
	text := manualText("m", 301, "null-sha1", "") + manualText("n", 302, "null-sha1", "") +
		"[policies.p]\naction = \"protect\"\nchild = \"manual/n\"\nremote_ts = [\"10.52.1.0/24\"]\n" + baseConn + baseChild + baseSecret
	c, err := Parse("test.toml", []byte(text), ike.AESFirst)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range c.SPD(nil) {
		got = append(got, fmt.Sprint(e.Name, " ", e.Conn, "/", e.Child, " ", e.Manual, e.RemoteTS))
	}
	if want := "p manual/n true [10.52.1.0/24]| a/c false []| manual/m true [10.51.0.0/16]"; strings.Join(got, "|") != want {
		t.Errorf("the SPD is %s, want %s", strings.Join(got, "|"), want)
	}
	b := board.Tiny
	b.Policies, b.ChildSAs = 3, 2
	if err := c.Fits(b); err == nil || !strings.Contains(err.Error(), "3 children and manual SAs are more than the board") {
		t.Errorf("three SAs in a table of two: %v", err)
	}
	if b.ChildSAs = 4; c.Fits(b) != nil {
		t.Errorf("three SAs in a table of four: %v", c.Fits(b))
	}
	if !c.Manual[0].Out.Cycle || c.Manual[0].In.Proto != esp.ESP {
		t.Errorf("%+v", c.Manual[0].Out)
	}
}
