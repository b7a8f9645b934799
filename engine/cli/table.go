package cli

import (
	"fmt"
	"strconv"
	"strings"
)

// table writes the state for a person, in lines of at most 80 characters.
func (st *state) table() string {
	var b strings.Builder
	up, tunnels := 0, 0
	for _, c := range st.conns {
		if c.up() {
			up++
		}
		tunnels += c.tunnels()
	}
	wrap(&b, "", words("postern", clean(st.version)+",", "running for", clean(st.running)+";",
		count(len(st.conns), "connection")+",", strconv.Itoa(up), "up,", count(tunnels, "tunnel"))...)
	if p := &st.path; p.workers > 0 {
		line := []string{"data path:", count64(p.workers, "worker") + ",", count64(p.sockets, "socket")}
		if p.slots > 0 {
			line[len(line)-1] += ","
			line = append(line, strconv.FormatUint(p.used, 10)+" of", count64(p.slots, "SA slot"), "used")
		}
		for _, f := range [][2]string{{"TUN", p.tun}, {"UDP", p.udp}, {"ESP", p.esp}} {
			if f[1] != "" {
				line[len(line)-1] += ";"
				line = append(line, f[0]+":", clean(f[1]))
			}
		}
		wrap(&b, "", words(line...)...)
	}
	for _, c := range st.conns {
		b.WriteByte('\n')
		c.table(&b)
	}
	return b.String()
}

// words splits phrases at their blanks, so that lines can break there.
func words(phrases ...string) []string { return strings.Fields(strings.Join(phrases, " ")) }

// label is the column in which the values of a connection start.
const label = 10

func (c *conn) table(b *strings.Builder) {
	verdict := "down"
	if c.up() {
		verdict = "up"
	}
	if !c.configured {
		verdict += ", not in the configuration any more"
	}
	wrap(b, clean(c.name)+": ", words(verdict)...)
	if len(c.sas) == 0 {
		line(b, "local", join(", ", c.localID, strings.Join(c.local, ", ")))
		line(b, "remote", join(", ", c.remoteID, strings.Join(c.remote, ", ")))
	}
	for _, sa := range c.sas {
		sa.table(b)
	}
	for _, ch := range c.children {
		if ch.installed > 0 {
			continue
		}
		why := "no SA, waits for the peer or 'postern up'"
		switch ch.start {
		case "start":
			why = "no SA, is being brought up"
		case "trap":
			why = "no SA, waits for the first packet"
		}
		childLine(b, ch.name, why)
		selectors(b, ch.localTS, ch.remoteTS)
	}
}

// line writes a labelled line of a connection.
func line(b *strings.Builder, name, text string) {
	wrap(b, pad("  "+name, label), words(clean(text))...)
}

// join joins what is not empty.
func join(sep string, parts ...string) string {
	var some []string
	for _, p := range parts {
		if p != "" {
			some = append(some, p)
		}
	}
	return strings.Join(some, sep)
}

func (sa *ikeSA) table(b *strings.Builder) {
	head := "IKE SA #" + strconv.FormatUint(sa.id, 10) + " " + sa.state
	if sa.established >= 0 {
		head += " for " + span(sa.established)
	}
	role := "the peer started it"
	if sa.initiator {
		role = "we started it"
	}
	wrap(b, "  ", words(clean(join(", ", head, rekeys(sa.rekey, sa.life), role)))...)
	line(b, "local", who(sa.localID)+sa.localHost+behindNAT(sa.natLocal))
	line(b, "remote", who(sa.remoteID)+sa.remoteHost+behindNAT(sa.natRemote))
	if sa.suite != "" {
		line(b, "crypto", sa.suite)
	}
	if len(sa.localAuth)+len(sa.remoteAuth) > 0 {
		line(b, "proof", "ours: "+strings.Join(sa.localAuth, ", ")+"; the peer's: "+strings.Join(sa.remoteAuth, ", "))
	}
	line(b, "SPIs", sa.spiI+"_i "+sa.spiR+"_r")
	if len(sa.vips) > 0 {
		line(b, "our IP", strings.Join(sa.vips, " "))
	}
	if len(sa.given) > 0 {
		line(b, "its IP", strings.Join(sa.given, " "))
	}
	if len(sa.dns) > 0 {
		what := "all names"
		if len(sa.domains) > 0 {
			what = strings.Join(sa.domains, " ")
		}
		line(b, "DNS", strings.Join(sa.dns, " ")+" for "+what)
	}
	for _, d := range sa.encDNS {
		line(b, "DNS", "encrypted, offered only: "+d)
	}
	if len(sa.networks) > 0 {
		line(b, "networks", strings.Join(sa.networks, " "))
	}
	if len(sa.tasks) > 0 {
		line(b, "tasks", strings.Join(sa.tasks, " "))
	}
	for _, s := range sa.children {
		s.table(b)
	}
}

// who leads an address with the identity that is there, if it is known yet.
func who(id string) string {
	if id == "" || id == "%any" {
		return ""
	}
	return id + " at "
}

func behindNAT(yes bool) string {
	if yes {
		return ", behind a NAT"
	}
	return ""
}

// rekeys tells when an SA is replaced, or ends if it is not.
func rekeys(rekey, life int64) string {
	switch {
	case rekey >= 0:
		return "new keys in " + span(rekey)
	case life >= 0:
		return "ends in " + span(life)
	}
	return ""
}

// childLine starts the lines of a child: its name hangs out to the left.
func childLine(b *strings.Builder, name, text string) {
	head := pad("  "+clean(name), label-1) + " "
	if len(head) > label+20 {
		wrap(b, "  ", clean(name))
		head = strings.Repeat(" ", label)
	}
	wrap(b, head, words(text)...)
}

func (s *childSA) table(b *strings.Builder) {
	text := "CHILD SA #" + strconv.FormatUint(s.id, 10) + " " + s.state
	if s.install >= 0 {
		text += " for " + span(s.install)
	}
	how := s.protocol
	if s.encap {
		how += " in UDP"
	}
	if s.class != "" {
		how += ", DSCP " + s.class
	}
	if s.cpu != "" {
		how += ", CPU " + s.cpu
	}
	childLine(b, s.name, clean(join(", ", text, rekeys(s.rekey, s.life), how)))
	indent := strings.Repeat(" ", label)
	if s.suite != "" {
		wrap(b, indent, clean(s.suite))
	}
	selectors(b, s.localTS, s.remoteTS)
	if s.spiIn != "" {
		traffic(b, "in ", s.spiIn, s.bytesIn, s.packetsIn, s.useIn)
		traffic(b, "out", s.spiOut, s.bytesOut, s.packetsOut, s.useOut)
	}
}

// selectors writes what a child carries.
func selectors(b *strings.Builder, local, remote []string) {
	var w []string
	for _, s := range local {
		w = append(w, clean(s))
	}
	w = append(w, "===")
	for _, s := range remote {
		w = append(w, clean(s))
	}
	wrap(b, strings.Repeat(" ", label), w...)
}

func traffic(b *strings.Builder, dir, spi string, octets, packets uint64, use int64) {
	last := ""
	switch {
	case use >= 0:
		last = "  last " + span(use) + " ago"
	case packets == 0:
		last = "  nothing yet"
	}
	fmt.Fprintf(b, "%s%s %s  %s  %s%s\n", strings.Repeat(" ", label), dir, clean(spi),
		padLeft(size(octets), 7), padLeft(count64(packets, "packet"), 14), last)
}

func count64(n uint64, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.FormatUint(n, 10) + " " + noun + "s"
}

// json writes the state for a program. Times are seconds; what is not known is left out.
func (st *state) json() []byte {
	var j jsonWriter
	j.open("", '{')
	j.str("version", st.version)
	j.str("running", st.running)
	if p := &st.path; p.workers > 0 {
		j.open("data_path", '{')
		j.uint("workers", p.workers)
		j.uint("sockets", p.sockets)
		if p.slots > 0 {
			j.uint("sa_slots", p.slots)
			j.uint("sa_slots_used", p.used)
		}
		j.str("tun", p.tun)
		j.str("udp", p.udp)
		j.str("esp", p.esp)
		j.close('}')
	}
	j.open("connections", '[')
	for _, c := range st.conns {
		c.json(&j)
	}
	j.close(']')
	j.close('}')
	return j.bytes()
}

func (c *conn) json(j *jsonWriter) {
	j.open("", '{')
	j.str("name", c.name)
	j.bool("up", c.up())
	j.bool("configured", c.configured)
	j.strs("local_addrs", c.local)
	j.strs("remote_addrs", c.remote)
	j.str("local_id", c.localID)
	j.str("remote_id", c.remoteID)
	j.open("children", '[')
	for _, ch := range c.children {
		j.open("", '{')
		j.str("name", ch.name)
		j.str("start_action", ch.start)
		j.strs("local_ts", ch.localTS)
		j.strs("remote_ts", ch.remoteTS)
		j.int("sas", int64(ch.installed))
		j.close('}')
	}
	j.close(']')
	j.open("ike_sas", '[')
	for _, sa := range c.sas {
		sa.json(j)
	}
	j.close(']')
	j.close('}')
}

func (sa *ikeSA) json(j *jsonWriter) {
	j.open("", '{')
	j.int("id", int64(sa.id))
	j.str("state", sa.state)
	j.bool("initiator", sa.initiator)
	j.str("local", sa.localHost)
	j.str("remote", sa.remoteHost)
	j.str("local_id", sa.localID)
	j.str("remote_id", sa.remoteID)
	j.bool("nat_local", sa.natLocal)
	j.bool("nat_remote", sa.natRemote)
	j.str("spi_i", sa.spiI)
	j.str("spi_r", sa.spiR)
	j.str("crypto", sa.suite)
	if len(sa.localAuth)+len(sa.remoteAuth) > 0 {
		j.strs("local_auth", sa.localAuth)
		j.strs("remote_auth", sa.remoteAuth)
	}
	j.seconds("established_s", sa.established)
	j.seconds("rekey_in_s", sa.rekey)
	j.seconds("ends_in_s", sa.life)
	for _, l := range []struct {
		key  string
		list []string
	}{{"local_vips", sa.vips}, {"remote_vips", sa.given}, {"dns_servers", sa.dns}, {"dns_domains", sa.domains}, {"enc_dns", sa.encDNS}, {"internal_subnets", sa.networks}} {
		if len(l.list) > 0 {
			j.strs(l.key, l.list)
		}
	}
	j.strs("tasks", sa.tasks)
	j.open("child_sas", '[')
	for _, s := range sa.children {
		s.json(j)
	}
	j.close(']')
	j.close('}')
}

func (s *childSA) json(j *jsonWriter) {
	j.open("", '{')
	j.int("id", int64(s.id))
	j.str("name", s.name)
	j.str("state", s.state)
	j.str("mode", s.mode)
	j.str("protocol", s.protocol)
	j.bool("udp_encap", s.encap)
	j.str("spi_in", s.spiIn)
	j.str("spi_out", s.spiOut)
	if s.class != "" {
		j.str("dscp_class", s.class)
	}
	if s.cpu != "" {
		j.str("cpu", s.cpu)
	}
	j.str("crypto", s.suite)
	j.strs("local_ts", s.localTS)
	j.strs("remote_ts", s.remoteTS)
	j.uint("bytes_in", s.bytesIn)
	j.uint("packets_in", s.packetsIn)
	j.seconds("last_in_s", s.useIn)
	j.uint("bytes_out", s.bytesOut)
	j.uint("packets_out", s.packetsOut)
	j.seconds("last_out_s", s.useOut)
	j.seconds("installed_s", s.install)
	j.seconds("rekey_in_s", s.rekey)
	j.seconds("ends_in_s", s.life)
	j.close('}')
}

// seconds writes a time unless it is unknown.
func (j *jsonWriter) seconds(key string, v int64) {
	if v >= 0 {
		j.int(key, v)
	}
}
