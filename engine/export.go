package engine

import (
	"encoding/hex"
	"fmt"

	"postern/esp"
	"postern/ike"
)

// Keys for whoever decrypts a capture of this host's packets. They are kept only where the
// configuration asks for it (export_keys), beside the SA and no longer than it, and given to
// nobody but clients of the control socket.

// wiresharkEncr and wiresharkInteg are the names in Wireshark's table of ESP SAs (esp_sa); what it
// does not know cannot be decrypted there.
var (
	wiresharkEncr = map[esp.EncrID]string{
		esp.EncrNull: "NULL", esp.EncrAESCBC: "AES-CBC [RFC3602]", esp.EncrAESCTR: "AES-CTR [RFC3686]",
		esp.EncrAESGCM8: "AES-GCM with 8 octet ICV [RFC4106]", esp.EncrAESGCM12: "AES-GCM with 12 octet ICV [RFC4106]",
		esp.EncrAESGCM16: "AES-GCM with 16 octet ICV [RFC4106]",
	}
	wiresharkInteg = map[esp.IntegID]string{
		esp.IntegNone: "NULL", esp.IntegHMACSHA196: "HMAC-SHA-1-96 [RFC2404]",
		esp.IntegHMACSHA256_128: "HMAC-SHA-256-128 [RFC4868]", esp.IntegHMACSHA384_192: "HMAC-SHA-384-192 [RFC4868]",
		esp.IntegHMACSHA512_256: "HMAC-SHA-512-256 [RFC4868]", esp.IntegAESXCBC96: "ANY 96 bit authentication [no checking]",
		esp.IntegAESCMAC96: "ANY 96 bit authentication [no checking]",
	}
)

// exportLen is more octets than any line has: two keys in hexadecimal and the names.
const exportLen = 512

// exported returns the SA as a line of esp_sa, for any addresses, since they may change; nil if
// Wireshark has no name for its algorithms.
func exported(sa *esp.SA) []byte {
	encr, integ := wiresharkEncr[sa.Suite.Encr], wiresharkInteg[sa.Suite.Integ]
	if sa.Proto != esp.ESP || encr == "" || integ == "" {
		return nil
	}
	family := "IPv4"
	if sa.Remote.Addr().Unmap().Is6() {
		family = "IPv6"
	}
	line := make([]byte, 0, exportLen) // that it may not grow and leave a copy behind
	line = fmt.Appendf(line, `"%s","*","*","0x%08x","%s","`, family, sa.SPI, encr)
	line = appendKey(line, sa.EncrKey)
	line = fmt.Appendf(line, `","%s","`, integ)
	line = appendKey(line, sa.IntegKey)
	return append(line, '"')
}

// exported is what an SA that is made now keeps.
func (l *ikeLoop) exported(c *ike.ChildSA) []byte {
	if !l.exportKeys {
		return nil
	}
	return exported(&c.SA)
}

// setExport takes over export_keys. Switched off, it forgets what was kept.
func (l *ikeLoop) setExport(on bool) {
	l.exportKeys = on
	if on {
		return
	}
	for i := range l.d.sad.slots {
		slot := &l.d.sad.slots[i]
		if in := slot.in.Load(); in != nil {
			clear(in.export)
			in.export = nil
		}
		if slot.out != nil {
			clear(slot.out.export)
			slot.out.export = nil
		}
	}
}

func appendKey(line, key []byte) []byte {
	if len(key) == 0 {
		return line
	}
	return hex.AppendEncode(append(line, "0x"...), key)
}
