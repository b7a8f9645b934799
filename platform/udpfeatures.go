package platform

// Features are the abilities of the kernel that a socket makes use of at the moment. Each
// is found by trying, and given up alone when the kernel refuses it.
type Features struct {
	Segment  bool // UDP_SEGMENT: datagrams that are alike leave as one message
	Coalesce bool // UDP_GRO: datagrams that are alike may arrive as one message
	Batch    bool // sendmmsg and recvmmsg: one system call for many messages
}

// String lists what is on, "none" if nothing is.
func (f Features) String() string {
	s := ""
	for _, c := range []struct {
		on   bool
		name string
	}{{f.Segment, "UDP_SEGMENT"}, {f.Coalesce, "UDP_GRO"}, {f.Batch, "sendmmsg/recvmmsg"}} {
		if !c.on {
			continue
		}
		if s != "" {
			s += ", "
		}
		s += c.name
	}
	if s == "" {
		return "none"
	}
	return s
}
