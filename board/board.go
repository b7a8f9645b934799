// Package board says what a class of device can afford. Every table and buffer of the
// engine is sized once, at start, from a Profile; nothing grows after that.
package board

import "fmt"

// Profile is the budget of one class of device. All counts are fixed-size table
// entries; Buffers is a number of packet buffers of BufferSize octets. FlowCache and
// Buffers are what a data path of one worker has; each further worker has its own flow
// cache and its own share of the buffers.
type Profile struct {
	Name       string
	IKESAs     int // IKE SAs, half-open ones included
	HalfOpen   int // IKE SAs that an unauthenticated peer may hold
	Cookies    int // half-open IKE SAs from which on a COOKIE is asked for (RFC 7296 section 2.6)
	ChildSAs   int // CHILD SA pairs; a power of two
	Policies   int // SPD entries
	FlowCache  int // entries of the flow cache; a power of two
	Queue      int // packets that wait for an SA, over all policies; as many wait on the way in
	Buffers    int
	BufferSize int // octets, headroom and tailroom included
	Workers    int // goroutines for slow cryptography (DH)
	Queues     int // workers of the data path at most, one per core; 1 to 8
	Clients    int // control connections at once; one that is idle costs some 8 KiB
	MemoryMiB  int // soft limit of the Go heap
}

// Streams is how many CHILD SAs may have IP-TFS, each with a queue of its own.
func (p Profile) Streams() int { return max(p.ChildSAs/8, 1) }

// FetchOctets is how large a file may be that is fetched, a revocation list most of all; twice as
// much of such files is kept in memory. It takes several times its size to read one, and a list
// has some 40 octets for each certificate.
func (p Profile) FetchOctets() int {
	switch {
	case p.MemoryMiB < 8:
		return 256 << 10
	case p.MemoryMiB < 32:
		return 512 << 10
	}
	return 4 << 20
}

// ControlQueue is how many octets may wait for one control client that reads slowly, and for all of
// them together.
func (p Profile) ControlQueue() (one, all int) {
	all = p.MemoryMiB << 20 / 16
	return min(all/2, 256<<10), all
}

// ControlRequests is how many large requests of control clients are received or executed at once.
// One can take some four megabytes.
func (p Profile) ControlRequests() int { return min(max(p.MemoryMiB/8, 1), 4) }

// Fetches is how many fetches may wait for their turn, and how many of such files are kept.
func (p Profile) Fetches() int { return min(max(p.HalfOpen, 8), 64) }

// The profiles, smallest first. Tiny is for 32 MiB of RAM, Small for the 64 MiB
// router that postern is made for, Large for gateways with 256 MiB and more.
var (
	Tiny  = Profile{"tiny", 16, 8, 4, 32, 32, 256, 16, 32, 2048, 1, 1, 16, 6}
	Small = Profile{"small", 64, 32, 16, 128, 128, 1024, 64, 64, 2048, 1, 4, 64, 10}
	Large = Profile{"large", 1024, 256, 64, 2048, 1024, 8192, 256, 512, 2048, 2, 8, 256, 64}
)

// All lists the profiles, smallest first.
func All() []Profile { return []Profile{Tiny, Small, Large} }

// ByName returns the profile of that name.
func ByName(name string) (Profile, error) {
	for _, p := range All() {
		if p.Name == name {
			return p, nil
		}
	}
	return Profile{}, fmt.Errorf("no board profile %q: use tiny, small or large, or auto", name)
}

// ForRAM returns the profile for a device with that many octets of memory; 0 means
// unknown and gives Small.
func ForRAM(octets uint64) Profile {
	const mib = 1 << 20
	switch {
	case octets == 0:
		return Small
	case octets <= 40*mib:
		return Tiny
	case octets <= 200*mib:
		return Small
	}
	return Large
}
