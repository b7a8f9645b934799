package platform

// socketFeatures are the abilities of the kernel that a socket makes use of at the moment.
// Each is found by trying, and given up alone when the kernel refuses it.
type socketFeatures struct {
	Segment  bool // UDP_SEGMENT: datagrams that are alike leave as one message
	Coalesce bool // UDP_GRO: datagrams that are alike may arrive as one message
	Batch    bool // sendmmsg and recvmmsg: one system call for many messages
	Steer    bool // SO_ATTACH_REUSEPORT_CBPF: the SPI decides which socket of a group gets a datagram
}

// String lists what is on, such as "UDP_SEGMENT UDP_GRO sendmmsg/recvmmsg"; "" if nothing is.
func (f socketFeatures) String() string {
	return names([]ability{
		{f.Segment, "UDP_SEGMENT"}, {f.Coalesce, "UDP_GRO"}, {f.Batch, "sendmmsg/recvmmsg"}, {f.Steer, "SPI-steering"},
	})
}
