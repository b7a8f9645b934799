package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postern/ike/pki/pkitest"
)

// sampleFiles makes the files with certificates and keys that a sample names: of a root, an
// intermediate CA, and an end entity with the id of its section.
func sampleFiles(t *testing.T, dir, text string) {
	t.Helper()
	root, problems := treeOf(text)
	if len(problems) > 0 {
		return // which loading it tells
	}
	anchor := pkitest.Root("sample root")
	mid := anchor.Issue(pkitest.Spec{Name: "sample CA", CA: true})
	put := func(name string, data []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	texts := func(n *node, key string) (out []string) {
		if n = n.get(key); n == nil {
			return nil
		}
		for _, e := range n.list {
			out = append(out, e.text)
		}
		return out
	}
	conns := root.get("connections")
	if conns == nil {
		return
	}
	for _, c := range conns.entries {
		for _, side := range c.entries {
			if side.kind != kindTable || side.get("auth") == nil || side.get("auth").text != "pubkey" {
				continue
			}
			name := "any"
			if id := side.get("id"); id != nil {
				name = id.text
			}
			who := pkitest.Spec{Name: name}
			if strings.Contains(name, "@") {
				who.Emails = []string{name}
			}
			leaf := mid.Issue(who)
			certs := texts(side, "certs")
			for i, file := range certs {
				switch {
				case len(certs) == 1: // as 'postern pki issue' writes it
					put(file, append(leaf.PEM(), mid.PEM()...))
				case i == 0:
					put(file, leaf.PEM())
				default:
					put(file, mid.PEM())
				}
			}
			if key := side.get("key"); key != nil {
				put(key.text, leaf.KeyPEM())
			}
			for _, file := range texts(side, "cacerts") {
				put(file, anchor.PEM())
			}
		}
	}
}
