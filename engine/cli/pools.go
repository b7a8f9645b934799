package cli

import (
	"strconv"
	"strings"

	"postern/engine/control"
)

var poolsCommand = Command{
	Name:    "pools",
	Args:    "[POOL]",
	Summary: "show address pools and who has what",
	Help: `Shows the pools of virtual addresses: how many are in use, how many more are
kept for clients that are away, and the leases. A lease of a client that is away
goes to another one only when nothing else is left.

  postern pools
  postern pools --json plant4`,
	Run: runPools,
}

// poolView is a pool as the daemon tells of it.
type poolView struct {
	name, base            string
	size, online, offline int64
	leases                []leaseView
}

type leaseView struct{ address, identity, status string }

func runPools(sys *System, cmd *Command, args []string) int {
	o := newOptions(sys, cmd)
	asJSON := o.Bool("json", false, "print JSON")
	return o.ask(sys, args, 0, 1, func(c *control.Client, rest []string) int {
		req := new(control.Message).Set(control.KeyLeases, "yes")
		if len(rest) > 0 {
			req.Set(control.KeyName, rest[0])
		}
		resp, err := c.Call(control.CmdGetPools, req)
		if err != nil {
			return complain(sys, "pools", err)
		}
		list := readPools(resp)
		if len(rest) > 0 && len(list) == 0 {
			sys.errorf("there is no pool %q", clean(rest[0]))
			return ExitFailed
		}
		return show(sys, "pools", *asJSON, func() []byte { return poolsJSON(list) }, func() string { return poolsTable(list) })
	})
}

func readPools(m *control.Message) (list []poolView) {
	for _, e := range m.Elements() {
		if e.Kind != control.KindSection {
			continue
		}
		p := poolView{name: e.Name, base: e.Section.Get(control.KeyBase)}
		p.size, _ = e.Section.GetInt(control.KeySize)
		p.online, _ = e.Section.GetInt(control.KeyOnline)
		p.offline, _ = e.Section.GetInt(control.KeyOffline)
		for _, l := range e.Section.Sub(control.KeyLeases).Elements() {
			if l.Kind == control.KindSection {
				p.leases = append(p.leases, leaseView{l.Section.Get(control.KeyAddress), l.Section.Get(control.KeyIdentity), l.Section.Get(control.KeyStatus)})
			}
		}
		list = append(list, p)
	}
	return list
}

// poolsTable writes pools for a person, in lines of at most 80 characters.
func poolsTable(list []poolView) string {
	if len(list) == 0 {
		return "There are no pools.\n"
	}
	var b strings.Builder
	for i, p := range list {
		if i > 0 {
			b.WriteByte('\n')
		}
		size := strconv.FormatInt(p.size, 10)
		if p.size >= 1<<40 {
			size = "very many"
		}
		wrap(&b, clean(p.name)+": ", words("from", clean(p.base)+",", size, "addresses,", strconv.FormatInt(p.online, 10), "in use,",
			strconv.FormatInt(p.offline, 10), "kept for clients that are away")...)
		for _, l := range p.leases {
			wrap(&b, "  "+pad(clean(l.address), 24)+" "+pad(clean(l.status), 8)+" ", words(clean(l.identity))...)
		}
	}
	return b.String()
}

func poolsJSON(list []poolView) []byte {
	var j jsonWriter
	j.open("", '{')
	j.open("pools", '[')
	for _, p := range list {
		j.open("", '{')
		j.named("name base", p.name, p.base)
		j.int("size", p.size)
		j.int("online", p.online)
		j.int("offline", p.offline)
		j.open("leases", '[')
		for _, l := range p.leases {
			j.open("", '{')
			j.named("address identity status", l.address, l.identity, l.status)
			j.close('}')
		}
		j.close(']')
		j.close('}')
	}
	j.close(']')
	j.close('}')
	return j.bytes()
}
