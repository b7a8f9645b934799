package platform

// TUNFeatures says what a TUN device does with many packets at once. Each was tried on
// the running kernel.
type TUNFeatures struct {
	VNetHdr  bool // virtio headers: TCP is coalesced on the way to the kernel
	Checksum bool // the kernel leaves checksums to postern
	TSO4     bool // TCP over IPv4 comes in super-packets
	TSO6     bool // TCP over IPv6 does
	USO      bool // UDP does, and is coalesced on the way to the kernel (Linux 6.2)
}

// String lists what is on, such as "virtio headers, checksums, TSO4, TSO6, USO", or "none".
func (f TUNFeatures) String() string {
	s := ""
	for _, e := range []struct {
		on   bool
		name string
	}{{f.VNetHdr, "virtio headers"}, {f.Checksum, "checksums"}, {f.TSO4, "TSO4"}, {f.TSO6, "TSO6"}, {f.USO, "USO"}} {
		if !e.on {
			continue
		}
		if s != "" {
			s += ", "
		}
		s += e.name
	}
	if s == "" {
		return "none"
	}
	return s
}
