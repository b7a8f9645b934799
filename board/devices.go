package board

// Devices returns how many TUN devices children may have of their own. Each takes some 80 KiB
// (a super-packet of the kernel and a few buffers), on the large profile twice that, and is
// made when a configuration asks for it.
func (p Profile) Devices() int { return min(max(p.IKESAs/8, 2), 32) }
