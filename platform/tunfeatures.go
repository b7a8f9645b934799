package platform

import "strings"

// tunFeatures says what a TUN device does with many packets at once. Each was tried on
// the running kernel.
type tunFeatures struct {
	VNetHdr    bool // virtio headers: TCP is coalesced on the way to the kernel
	Checksum   bool // the kernel leaves checksums to postern
	TSO4       bool // TCP over IPv4 comes in super-packets
	TSO6       bool // TCP over IPv6 does
	USO        bool // UDP does, and is coalesced on the way to the kernel (Linux 6.2)
	MultiQueue bool // the device has several queues
}

// String lists what is on, such as "virtio-headers checksums TSO4 TSO6 USO multi-queue";
// "" if nothing is.
func (f tunFeatures) String() string {
	return names([]ability{
		{f.VNetHdr, "virtio-headers"}, {f.Checksum, "checksums"}, {f.TSO4, "TSO4"}, {f.TSO6, "TSO6"}, {f.USO, "USO"},
		{f.MultiQueue, "multi-queue"},
	})
}

type ability struct {
	on   bool
	name string
}

// names joins the names of what is on.
func names(abilities []ability) string {
	var on []string
	for _, a := range abilities {
		if a.on {
			on = append(on, a.name)
		}
	}
	return strings.Join(on, " ")
}
