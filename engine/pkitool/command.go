// Package pkitool is the command 'postern pki': keys, certificates, requests and revocation
// lists, and a small certificate authority in a folder. It makes what IKEv2 wants of a
// certificate (RFC 4945) and nothing else, works without other programs, and checks every
// certificate it has made as a peer would before it hands it out.
//
// An authority is a folder:
//
//	ca.pem      its certificate, and behind it those of the authorities above, without the root
//	root.pem    of an intermediate authority: the root, which peers have to trust
//	ca.key      its private key (PKCS#8)
//	index       what it has issued and revoked, and the number of its last revocation list
//	certs/      a copy of every certificate, by serial number
//	ca.crl      its last revocation list in DER, as web servers offer it; crl.pem is the same
//	lock        held while a command changes something
//
// ca.pem and ca.key may come from elsewhere: an index is made where there is none. What is
// issued is in the index before it is anywhere else, so nothing exists that cannot be revoked;
// every file is replaced as a whole, and synced, so that a power cut leaves the old or the new one.
package pkitool

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"postern/engine/cli"
)

// System is what the commands need of the operating system.
type System struct {
	// Now is the time of day.
	Now func() time.Time
	// Lock takes a file for this process alone, without waiting; the error says what to do.
	Lock func(path string) (unlock func(), err error)
	// Replace writes a file as a whole: after a power cut either it or what was there is found.
	Replace func(path string, data []byte, mode fs.FileMode) error
	// Rename gives a file or folder another name, which survives a power cut.
	Rename func(from, to string) error
}

// tool is one run of a command.
type tool struct {
	sys *cli.System
	os  System
}

// part is one of the commands behind pki.
type part struct {
	cli.Command
	run func(t *tool, cmd *cli.Command, args []string) error
}

// parts are the commands in the order of the overview.
func parts() []part {
	return []part{keyPart, caPart, issuePart, reqPart, selfPart, crlPart, bundlePart, showPart}
}

// Command returns the command pki.
func Command(s System) cli.Command {
	return cli.Command{
		Name:    "pki",
		Args:    "WHAT ...",
		Summary: "make keys and certificates, be an authority",
		Run: func(sys *cli.System, cmd *cli.Command, args []string) int {
			t := &tool{sys: sys, os: s}
			if len(args) == 0 {
				t.print(sys.Stderr, overview())
				return cli.ExitUsage
			}
			switch args[0] {
			case "help", "-h", "-help", "--help":
				if len(args) < 2 {
					t.print(sys.Stdout, overview())
					return cli.ExitOK
				}
				args = []string{args[1], "--help"}
			}
			for _, p := range parts() {
				if p.Name == args[0] {
					p.Name = "pki " + p.Name
					return t.status(&p.Command, p.run(t, &p.Command, args[1:]))
				}
			}
			return t.status(cmd, usageError("there is no command 'pki "+cli.Clean(args[0])+"': 'postern help pki' lists them"))
		},
	}
}

func overview() string {
	var b strings.Builder
	b.WriteString("postern pki makes keys and certificates for IPsec, and is a small authority.\n\nUsage: postern pki WHAT ...\n\n")
	for _, p := range parts() {
		fmt.Fprintf(&b, "  %s %s\n", cli.Pad(p.Name+" "+p.Args, 24), p.Summary)
	}
	b.WriteString(`
A link between two gateways in one step:

  postern pki bundle link --left north.example --left-addr 198.51.100.1 \
    --left-net 10.1.0.0/24 --right south.example --right-addr 203.0.113.1 \
    --right-net 10.2.0.0/24

Step by step, with the device's key never leaving the device:

  postern pki ca ca --dn "O=Weir, CN=Weir CA"      # on a machine kept safe
  postern pki key plant.key                        # on the device
  postern pki req plant.key --dn "O=Weir, CN=plant" --san plant.example \
    --out plant.req
  postern pki issue plant.req --ca ca --take all --out plant.pem
  postern pki crl ca --revoke plant.pem --reason key-compromise

'postern help pki WHAT' says more.
`)
	return b.String()
}

// usageError is an error of the command line.
type usageError string

func (e usageError) Error() string { return string(e) }

// ended is an exit status that has been explained already.
type ended int

func (e ended) Error() string { return "" }

// status tells an error and returns the exit status.
func (t *tool) status(cmd *cli.Command, err error) int {
	if err == nil {
		return cli.ExitOK
	}
	if e, ok := errors.AsType[ended](err); ok {
		return int(e)
	}
	var b strings.Builder
	cli.Wrap(&b, "postern: ", strings.Fields(cmd.Name+": "+err.Error())...)
	t.print(t.sys.Stderr, b.String())
	if _, ok := errors.AsType[usageError](err); ok {
		return cli.ExitUsage
	}
	return cli.ExitFailed
}

// arguments parses a command line.
func arguments(o *cli.Options, args []string, least, most int) ([]string, error) {
	rest, status, ok := o.ParseArgs(args, least, most)
	if !ok {
		return nil, ended(status)
	}
	return rest, nil
}

// note says on standard error what was done, or what should be known.
func (t *tool) note(format string, args ...any) {
	var b strings.Builder
	cli.Wrap(&b, "", strings.Fields(fmt.Sprintf(format, args...))...)
	t.print(t.sys.Stderr, b.String())
}

// list is an option that may be given several times.
type list []string

func (l *list) String() string     { return "" }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }
