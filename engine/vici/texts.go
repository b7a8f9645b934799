package vici

import (
	"fmt"
	"strconv"
	"strings"

	"postern/ike"
)

// Texts writes each element of a list.
func Texts[T fmt.Stringer](list []T) []string {
	out := make([]string, len(list))
	for i := range list {
		out[i] = list[i].String()
	}
	return out
}

// EncTexts writes encrypted resolvers for people: name, addresses, protocols.
func EncTexts(list []ike.EncryptedDNS) (out []string) {
	for i := range list {
		d := &list[i]
		parts := append([]string{d.ADN}, Texts(d.Addrs)...)
		if d.Port != 0 {
			parts = append(parts, "port", strconv.Itoa(int(d.Port)))
		}
		out = append(out, strings.Join(append(parts, d.ALPN...), " "))
	}
	return out
}
