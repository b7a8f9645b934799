package config

import (
	"strconv"
	"strings"

	"postern/ike"
)

// Classes are what a child has CHILD SAs of their own for: the DSCPs of the packets inside.
type Classes struct {
	Lane  [64]uint8 // of each DSCP: the place of its class among Names, from 1; 0: it has none
	Names []string  // the classes as they are written; 1 to ike.MaxLanes
}

// classes reads a list of classes, each a list of DSCPs and ranges of them such as "8,10-14".
func (s *scope) classes(n *node, c *child) {
	k := new(Classes)
	for _, e := range s.texts(n) {
		if len(k.Names) == ike.MaxLanes {
			s.problem(e.at, "join some in one class", "%s has more than %d classes", n.name, ike.MaxLanes)
			return
		}
		k.Names = append(k.Names, e.text)
		for _, part := range strings.Split(e.text, ",") {
			from, to, many := strings.Cut(strings.TrimSpace(part), "-")
			low, err := strconv.ParseUint(from, 10, 6)
			high := low
			if many && err == nil {
				high, err = strconv.ParseUint(to, 10, 6)
			}
			if err != nil || high < low {
				s.problem(e.at, `write DSCPs of 0 to 63 and ranges of them, such as "46" or "8,10-14"`, "%q is no class of packets", e.text)
				break
			}
			for v := low; v <= high; v++ {
				if k.Lane[v] != 0 {
					s.problem(e.at, "take it out of one", "DSCP %d is twice in %s", v, n.name)
					break
				}
				k.Lane[v] = uint8(len(k.Names))
			}
		}
	}
	c.Lanes, c.classes = len(k.Names), k
}

// checkLanes notes two kinds of SAs beside the first one that exclude each other.
func (l *loader) checkLanes(c *child) {
	if c.PerCPU && c.classes != nil {
		l.problem(where(c.t, "dscp_classes"), "take one of the two out: a CHILD SA is for a class or for a worker",
			"a child has dscp_classes or per_cpu_sas, not both")
	}
	if n := c.t.get("iptfs"); n != nil && c.Hiding.IPTFS != ike.IPTFSNo && (c.PerCPU || c.classes != nil) {
		l.problem(n.at, "take one of the two out", "child %s has several SAs, and iptfs sends all through one", c.Name)
	}
}
