package ike

import (
	"strings"
	"testing"
)

func TestSuitesThatNobodyNegotiates(t *testing.T) {
	for _, c := range []struct {
		proto      Protocol
		text, want string // the suite, or a part of the error behind "!"
	}{
		{ProtoESP, "aes256-sha256", "AES_CBC_256/HMAC_SHA2_256_128"},
		{ProtoESP, "aes128gcm16-esn", "AES_GCM_16_128/ESN"},
		{ProtoESP, "null-aescmac", "NULL/AES_CMAC_96"},
		{ProtoAH, "sha384-noesn", "HMAC_SHA2_384_192"},
		{ProtoAH, "aes256gmac-esn", "AES_256_GMAC/ESN"},
		{ProtoESP, "aes128-aes256-sha1", "!must be one suite"},
		{ProtoESP, "aes128gcm16-esn-noesn", "!must be one suite"},
		{ProtoESP, "aes128gcm16-x25519", "!has a group"},
		{ProtoESP, "default", "!more than one suite"},
		{ProtoESP, "aes128", "!has no integrity algorithm"},
		{ProtoAH, "aes128", "!is a cipher"},
	} {
		s, err := ParseSuite(c.proto, c.text)
		words, bad := strings.CutPrefix(c.want, "!")
		if bad != (err != nil) || bad && !strings.Contains(err.Error(), words) || !bad && s.String() != words {
			t.Errorf("%v %s: %v, %v; want %s", c.proto, c.text, s, err, c.want)
		}
	}
}
