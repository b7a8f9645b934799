package pkitool

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"postern/engine/cli"
)

var bundlePart = part{
	Command: cli.Command{
		Name:    "bundle",
		Args:    "DIR",
		Summary: "make both halves of a link",
		Help: `Makes all that two gateways need for a link between them: in DIR, which must not
exist, a folder for each with postern.toml, its key, its certificate and the
authority's. Carry each to /etc/postern of its gateway, in a way that nobody
reads along, and remove it here. The certificates come from the authority in
--ca, or from a new one in DIR/ca: keep that, it revokes and renews.

  postern pki bundle link --left north.example --left-addr 198.51.100.1 \
    --left-net 10.1.0.0/24 --right south.example --right-addr %any \
    --right-net 10.2.0.0/24

The left side starts the link, unless the address of the right one is %any (not
known): then that does.`,
	},
	run: runBundle,
}

// half is one of the two gateways of a link.
type half struct {
	side string // left, right
	name string // identity, and the name of its folder
	addr string // "%any" or an address or a DNS name
	nets []string
	conn string // name of the connection, after the peer
}

// Files of a half, as its configuration names them.
const (
	halfConfig = "postern.toml"
	halfCert   = "cert.pem"
	halfKey    = "key.pem"
	halfCA     = "ca.pem"
)

const anyAddr = "%any"

func runBundle(t *tool, cmd *cli.Command, args []string) error {
	o := cli.NewOptions(t.sys, cmd)
	var given [2]struct {
		name, addr *string
		nets       list
	}
	for i, side := range []string{"left", "right"} {
		g := &given[i]
		g.name = o.String(side, "", "DNS `NAME` that is the identity of the "+side+" gateway")
		g.addr = o.String(side+"-addr", "", "its `ADDRESS` or DNS name for the other; %any: not known")
		o.Var(&g.nets, side+"-net", "`PREFIX` behind it; several times; none: the gateway alone")
	}
	caDir := o.String("ca", "", "`DIR` of an authority instead of a new one")
	caPass := o.String("ca-passphrase-file", "", "`FILE` with the passphrase of the authority's key")
	kind := typeOption(o)
	valid := validityOptions(o, defaultDays)
	rest, err := arguments(o, args, 1, 1)
	if err != nil {
		return err
	}
	var halves [2]half
	for i, side := range []string{"left", "right"} {
		g := given[i]
		if halves[i], err = newHalf(side, *g.name, *g.addr, g.nets); err != nil {
			return err
		}
	}
	if err := pairUp(&halves[0], &halves[1]); err != nil {
		return err
	}
	dir := filepath.Clean(rest[0])
	if _, err := os.Lstat(dir); err == nil {
		return fmt.Errorf("%s: this exists already; name a folder that does not", cli.Clean(dir))
	}
	// All is made under another name first: the folder is there as a whole or not at all.
	work := dir + ".new"
	if err := os.Mkdir(work, 0o700); err != nil {
		if os.IsExist(err) {
			return fmt.Errorf("%s: left over from a bundle that was not finished, or another is being made; remove the folder", cli.Clean(work))
		}
		return fileError(work, err)
	}
	err = t.bundle(work, *caDir, *caPass, *kind, valid, halves)
	if err == nil {
		if err = t.os.Rename(work, dir); err != nil {
			err = fileError(dir, err)
		}
	}
	if err != nil {
		_ = os.RemoveAll(work)
		return err
	}
	keep := *caDir
	if keep == "" {
		keep = filepath.Join(dir, "ca")
	}
	for _, h := range halves {
		t.note("%s: for the %s gateway, to be its /etc/postern", cli.Clean(filepath.Join(dir, h.name)), h.side)
	}
	t.note("%s: the authority; keep it from others, it renews and revokes", cli.Clean(keep))
	return nil
}

// newHalf checks what was said of one side.
func newHalf(side, name, addr string, nets []string) (half, error) {
	h := half{side: side, name: name, addr: addr}
	switch {
	case name == "":
		return h, usageError("--" + side + " is missing: name the " + side + " gateway, as " + side + ".site.example")
	case !hostName(name):
		return h, usageError(fmt.Sprintf("--%s %q is no DNS name; write %s.site.example", side, cli.Clean(name), side))
	case name == "ca" || name == "." || name == "..":
		return h, usageError("--" + side + " " + name + ": take a longer name")
	case addr == "":
		return h, usageError("--" + side + "-addr is missing: where the other side finds it, or %any")
	}
	if addr != anyAddr {
		// 198.51.100.300 has the form of a DNS name as well, and is meant as an address.
		last := addr[strings.LastIndexByte(addr, '.')+1:]
		a, err := netip.ParseAddr(addr)
		switch {
		case err == nil && a.Zone() == "" && !a.IsUnspecified() && !a.IsMulticast():
		case err == nil || !hostName(addr) || strings.Trim(last, "0123456789") == "":
			return h, usageError(fmt.Sprintf("--%s-addr %q is neither an address nor a DNS name nor %%any", side, cli.Clean(addr)))
		}
	}
	for _, n := range nets {
		p, err := netip.ParsePrefix(n)
		if err != nil {
			return h, usageError(fmt.Sprintf("--%s-net %q is no prefix; write 10.1.0.0/24", side, cli.Clean(n)))
		}
		if p != p.Masked() {
			return h, usageError(fmt.Sprintf("--%s-net %s has bits behind its length; write %s", side, p, p.Masked()))
		}
		h.nets = append(h.nets, p.String())
	}
	return h, nil
}

// pairUp checks what the two halves have to agree on, and names their connections.
func pairUp(l, r *half) error {
	switch {
	case strings.EqualFold(l.name, r.name):
		return usageError("--left and --right are the same; each gateway has its own name")
	case l.addr == anyAddr && r.addr == anyAddr:
		return usageError("neither side knows an address of the other; give --left-addr or --right-addr")
	case l.addr == r.addr:
		return usageError("--left-addr and --right-addr are the same; each gateway has its own")
	}
	left, err1 := netip.ParseAddr(l.addr)
	right, err2 := netip.ParseAddr(r.addr)
	if err1 == nil && err2 == nil && left.Is4() != right.Is4() {
		return usageError("--left-addr and --right-addr have to be of the same kind, IPv4 or IPv6")
	}
	for _, a := range l.nets {
		for _, b := range r.nets {
			if netip.MustParsePrefix(a).Overlaps(netip.MustParsePrefix(b)) {
				return usageError(fmt.Sprintf("%s on the left and %s on the right overlap; each side needs its own addresses", a, b))
			}
		}
	}
	if !sameFamilies(l.nets, r.nets) {
		return usageError("--left-net and --right-net have to be of the same kinds, IPv4, IPv6 or both; a gateway alone fits with a gateway alone")
	}
	l.conn, r.conn = connName(r.name), connName(l.name)
	return nil
}

// sameFamilies says whether the prefixes of one side have something to talk to on the other.
func sameFamilies(a, b []string) bool {
	kinds := func(list []string) (v4, v6 bool) {
		for _, s := range list {
			is4 := netip.MustParsePrefix(s).Addr().Is4()
			v4, v6 = v4 || is4, v6 || !is4
		}
		return v4, v6
	}
	a4, a6 := kinds(a)
	b4, b6 := kinds(b)
	return a4 == b4 && a6 == b6
}

// connName is what a side calls its link: the first part of the peer's name.
func connName(peer string) string {
	name, _, _ := strings.Cut(strings.ToLower(peer), ".")
	return name
}

// bundle makes the folder.
func (t *tool) bundle(dir, caDir, caPass, kind string, valid validity, halves [2]half) error {
	var ca *authority
	var err error
	if caDir != "" {
		ca, err = t.openAuthority(caDir, caPass)
	} else {
		if caPass != "" {
			return usageError("--ca-passphrase-file is for the authority that --ca names")
		}
		years := defaultCADays
		all := valid
		all.days = &years
		none := ""
		all.to = &none
		if *valid.days > years {
			all.days = valid.days
		}
		ca, err = t.newAuthority(filepath.Join(dir, "ca"), caOptions{
			dn: "CN=" + halves[0].name + " and " + halves[1].name, kind: kind, pathLen: 0, valid: all,
		})
	}
	if err != nil {
		return err
	}
	defer ca.close()
	for i := range halves {
		if err := t.writeHalf(filepath.Join(dir, halves[i].name), ca, kind, valid, &halves[i], &halves[1-i]); err != nil {
			return err
		}
	}
	return nil
}

// writeHalf makes the folder of one gateway.
func (t *tool) writeHalf(dir string, ca *authority, kind string, valid validity, h, peer *half) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fileError(dir, err)
	}
	dn, err := parseDN("CN=" + h.name)
	if err != nil {
		return err
	}
	tmpl, err := endEntity(dn, names{dns: []string{h.name}})
	if err != nil {
		return err
	}
	if tmpl.NotBefore, tmpl.NotAfter, err = valid.span(t, ca.cert); err != nil {
		return err
	}
	k, err := t.newKey(filepath.Join(dir, halfKey), kind, false, false)
	if err != nil {
		return err
	}
	defer k.Wipe()
	cert, err := ca.issue(tmpl, k.Public())
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		data []byte
	}{
		{halfCert, pemText(pemCert, append([][]byte{cert.Raw}, ca.chainDER()...)...)},
		{halfCA, pemText(pemCert, ca.root.Raw)},
		{halfConfig, []byte(h.config(peer))},
	} {
		if err := t.create(filepath.Join(dir, f.name), f.data, modeOpen, false); err != nil {
			return err
		}
	}
	return nil
}

// config is the configuration of a half. All that stands in it has been checked: names, addresses
// and prefixes need no escapes in TOML.
func (h *half) config(peer *half) string {
	var b strings.Builder
	quoted := func(list []string) string { return `["` + strings.Join(list, `", "`) + `"]` }
	fmt.Fprintf(&b, "# %s: its end of the link to %s.\n\n[connections.%s]\n", h.name, peer.name, h.conn)
	if a, err := netip.ParseAddr(h.addr); err == nil {
		fmt.Fprintf(&b, "local_addrs = [\"%s\"]                # leave out if it is behind a NAT\n", a)
	}
	fmt.Fprintf(&b, "remote_addrs = [\"%s\"]\n", peer.addr)
	fmt.Fprintf(&b, "\n[connections.%s.local]\nauth = \"pubkey\"\nid = \"%s\"\ncerts = [\"%s\"]\nkey = \"%s\"\n", h.conn, h.name, halfCert, halfKey)
	fmt.Fprintf(&b, "\n[connections.%s.remote]\nauth = \"pubkey\"\nid = \"%s\"\ncacerts = [\"%s\"]\n", h.conn, peer.name, halfCA)
	fmt.Fprintf(&b, "\n[connections.%s.children.lan]\n", h.conn)
	if len(h.nets) > 0 {
		fmt.Fprintf(&b, "local_ts = %s\nremote_ts = %s\n", quoted(h.nets), quoted(peer.nets))
	}
	switch {
	case peer.addr == anyAddr:
		b.WriteString("start_action = \"none\"                      # the other side calls\n")
	case h.side == "left" || h.addr == anyAddr:
		// Of two that know each other one starts the link, so that there are not two of it.
		b.WriteString("start_action = \"start\"\ndpd_action = \"restart\"\nclose_action = \"restart\"\n")
	case len(h.nets) == 0:
		b.WriteString("start_action = \"none\"                      # the other side starts\n")
	default:
		b.WriteString("start_action = \"trap\"                      # when there is something to send\n")
	}
	return b.String()
}
