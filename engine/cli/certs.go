package cli

import (
	"strings"

	"postern/engine/control"
)

var certsCommand = Command{
	Name:    "certs",
	Summary: "show certificates and public keys that are configured",
	Help: `Shows our certificates, those of CAs and peers that are trusted, and public keys
without a certificate: whose they are, and from when until when they are good.
What peers send is in 'postern status'.

  postern certs
  postern certs --json`,
	Run: runCerts,
}

// listedCert is a certificate or a bare public key as the daemon tells of it.
type listedCert struct {
	kind, flag, subject, from, until string
	ours                             bool
}

func runCerts(sys *System, cmd *Command, args []string) int {
	o := newOptions(sys, cmd)
	asJSON := o.Bool("json", false, "print JSON")
	return o.ask(sys, args, 0, 0, func(c *control.Client, _ []string) int {
		var list []listedCert
		if _, err := c.CallStream(control.CmdListCerts, control.EvListCert, nil, func(m *control.Message) error {
			if kind := m.Get(control.KeyCertType); kind != "X509" && kind != "PUBKEY" {
				return nil // revocation lists and the like
			}
			list = append(list, listedCert{m.Get(control.KeyCertType), m.Get(control.KeyCertFlag), m.Get(control.KeySubject),
				m.Get(control.KeyNotBefore), m.Get(control.KeyNotAfter), m.GetBool(control.KeyHasPrivate)})
			return nil
		}); err != nil {
			return complain(sys, "certs", err)
		}
		return show(sys, "certs", *asJSON, func() []byte { return certsJSON(list) }, func() string { return certsTable(list) })
	})
}

// certsTable writes certificates for a person, in lines of at most 80 characters.
func certsTable(list []listedCert) string {
	if len(list) == 0 {
		return "There are no certificates.\n"
	}
	var b strings.Builder
	for _, c := range list {
		whose := "peer"
		switch {
		case c.ours:
			whose = "ours"
		case c.flag == "CA":
			whose = "CA"
		}
		if c.kind == "PUBKEY" {
			wrap(&b, pad(whose, 5), words("a public key", clean(c.subject))...)
			continue
		}
		from, _, _ := strings.Cut(c.from, "T")
		until, _, _ := strings.Cut(c.until, "T")
		wrap(&b, pad(whose, 5), words("from", clean(from), "until", clean(until)+":", clean(c.subject))...)
	}
	return b.String()
}

func certsJSON(list []listedCert) []byte {
	var j jsonWriter
	j.open("", '{')
	j.open("certificates", '[')
	for _, c := range list {
		j.open("", '{')
		j.named("type flag subject not_before not_after", c.kind, c.flag, c.subject, c.from, c.until)
		j.bool("private_key", c.ours)
		j.close('}')
	}
	j.close(']')
	j.close('}')
	return j.bytes()
}
