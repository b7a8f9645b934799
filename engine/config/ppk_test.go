package config

import (
	"strings"
	"testing"

	"postern/ike"
)

const ppkText = `secret = "an example of a key of 32 octets."` + "\n"

// ppkConn is baseConn with these lines about its PPK.
func ppkConn(lines string) string {
	return strings.Replace(baseConn, "[connections.a.remote]", lines+"[connections.a.remote]", 1)
}

func TestProblemsOfPPKs(t *testing.T) {
	for _, c := range []struct{ name, text string }{
		{"no key", ppkConn("ppk_id = \"x\"\n") + baseChild + baseSecret + "[ppks.x] #! ppk x has no key; write secret = \"…\" or secret_file = \"…\"\n"},
		{"two keys", ppkConn("ppk_id = \"x\"\n") + baseChild + baseSecret + "[ppks.x]\n" + ppkText + "secret_file = \"f\" #! ppk x has both secret and secret_file\n"},
		{"not a key", ppkConn("ppk_id = \"x\"\n") + baseChild + baseSecret + "[ppks.x]\nsecret = \"0xyz\" #! the key after 0x is not hexadecimal\n"},
		{"an empty key", ppkConn("ppk_id = \"x\"\n") + baseChild + baseSecret + "[ppks.x]\nsecret = \"\" #! the key is empty\n"},
		{"the same id", ppkConn("ppk_id = \"x\"\n") + baseChild + baseSecret + "[ppks.x]\n" + ppkText + "[ppks.y]\nid = \"x\" #! ppks y and x (line 11) have the same id\n" + ppkText},
		{"no such id", ppkConn("ppk_id = \"z\" #! no ppk has the id \"z\" of connection a; add a section [ppks.NAME]\n") + baseChild + baseSecret + "[ppks.x]\n" + ppkText},
		{"another type", ppkConn("ppk_id = \"opaque:x\" #! no ppk has the id \"opaque:x\"\n") + baseChild + baseSecret + "[ppks.x]\n" + ppkText},
		{"no id at all", ppkConn("ppk_required = true #! connection a requires a ppk and has no ppk_id\n") + baseChild + baseSecret},
		{"an empty id", ppkConn("ppk_id = \"opaque:\" #! is no name of a post-quantum pre-shared key\n") + baseChild + baseSecret},
		{"a long id", ppkConn("ppk_id = \""+strings.Repeat("x", 256)+"\" #! is no name of a post-quantum pre-shared key\n") + baseChild + baseSecret},
		{"any as an id", baseConn + baseChild + baseSecret + "[ppks.x]\nid = \"%any\" #! is no name of a post-quantum pre-shared key\n" + ppkText},
		{"any of none", ppkConn("ppk_id = \"%any\" #! there are no ppks for the peers of connection a\n") + baseChild + baseSecret},
		{"any for calling", ppkConn("ppk_id = \"%any\" #! connection a calls its peer, and ppk_required cannot be met\nppk_required = true\n") + baseChild + "start_action = \"start\"\n" + baseSecret + "[ppks.x]\n" + ppkText},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := newLoader("test.toml", func(string) ([]byte, error) { return []byte("an example of a key of 32 octets."), nil }).load([]byte(c.text))
			ps, _ := err.(Problems)
			compare(t, "problem", c.text, ps)
		})
	}
}

func TestWarningsOfPPKs(t *testing.T) {
	for _, c := range []struct{ name, text string }{
		{"none", ppkConn("ppk_id = \"x\"\n") + baseChild + baseSecret + "[ppks.x]\n" + ppkText},
		{"any", ppkConn("ppk_id = \"%any\"\n") + baseChild + baseSecret + "[ppks.x]\n" + ppkText + "[ppks.y]\n" + ppkText},
		{"short", ppkConn("ppk_id = \"x\"\n") + baseChild + baseSecret + "[ppks.x]\nsecret = \"an example of 24 octets.\" #! only 24 octets long; RFC 8784 asks for 256 bits, which are 32; \"postern psk\" makes a good one\n"},
		{"for nobody", ppkConn("ppk_id = \"x\"\n") + baseChild + baseSecret + "[ppks.x]\n" + ppkText + "[ppks.y] #! no connection uses ppk y\n" + ppkText},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := mustParse(t, c.text)
			compare(t, "warning", c.text, cfg.Warnings())
		})
	}
}

func TestAnyPPK(t *testing.T) {
	c := mustParse(t, ppkConn("ppk_id = \"%any\"\n")+baseChild+baseSecret+"[ppks.x]\n"+ppkText+"[ppks.y]\nid = \"z\"\n"+ppkText)
	if conn := c.IKE.Conns[0]; !conn.PPKAny || conn.PPK != (ike.PPKID{}) || len(c.IKE.PPKs) != 2 {
		t.Errorf("ppk_id %%any gives %v, %q and %d ppks", conn.PPKAny, conn.PPK, len(c.IKE.PPKs))
	}
}
