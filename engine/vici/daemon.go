// Package vici answers control clients in the words of strongSwan's control protocol: the
// commands of package control, with charon's names, keys, order, units and texts, and the events
// that tell what happens to SAs. It knows the daemon by the interface Daemon alone.
package vici

import (
	"net/netip"
	"time"

	"postern/engine/config"
	"postern/engine/log"
	"postern/esp"
	"postern/ike"
	"postern/ike/pki"
)

// Daemon is what the commands need of the daemon. Methods may be called from any goroutine.
type Daemon interface {
	// Do runs f on the goroutine that owns the IKE machine, and returns when it has. What it
	// gives to f is valid there and until f returns. It must not be called from within f. An
	// error means that the daemon is about to end, and f did not run.
	Do(f func(Loop)) error
	// About tells what stays the same as long as the daemon runs.
	About() About
	// Busy is how many of the workers compute now.
	Busy() int
	// Counters returns the data path's counters, in a fixed order.
	Counters() []Counter
	// Reload reads the daemon's configuration again: its file, of which an error means that
	// nothing has changed, and then what stands beside it.
	Reload() error
	// Load changes what clients have loaded, one change at a time; how says what it is about.
	// Loaded is what they have loaded so far. An error means that nothing has changed.
	Load(how ike.Change, change func(*config.Loaded) (*config.Loaded, error)) error
	Loaded() *config.Loaded
	// Log is where lines can be subscribed to; nil: there is no log.
	Log() *log.Logger
}

// Loop is the daemon as seen from the goroutine that owns the IKE machine. Nothing of it may be
// called from elsewhere, or block.
type Loop interface {
	// Now is the daemon's monotonic time, as in ike.Time.
	Now() time.Duration
	// Config is the configuration that runs. Nobody changes it.
	Config() *config.Config
	// List visits the IKE SAs until visit returns false. What it points to is valid during
	// the visit.
	List(visit func(*ike.SAInfo) bool)
	// View adds to an IKE SA what the data path knows of it.
	View(*ike.SAInfo) SA
	// Manual returns the manual SAs, each below an IKE SA that only stands for its addresses.
	Manual() []SA
	// Command gives a command to the machine and has done called with its outcome, now or
	// later, on this goroutine. Forget gives up waiting for it by the tag.
	Command(c ike.Command, done func(error)) (tag uint64)
	Forget(tag uint64)
	// Policies returns the SPD's entries as the configuration has them, in a list that is the
	// caller's, with selectors that are not. Entries returns them with what they have done.
	Policies() []Policy
	Entries() []Entry
	// Fate tells what becomes of a packet that goes out or comes in.
	Fate(f *esp.Flow, in bool) Fate
	// Pools visits the address pools, Leases their leases until visit returns false.
	Pools(visit func(ike.PoolInfo))
	Leases(visit func(ike.Lease) bool)
	// Install adds the policy of a child by hand, so that packets bring up its SA, and Uninstall
	// takes it away. conn may be "" for any. found is false if there is no such child, or no
	// policy of it. An error means that nothing has changed.
	Install(conn, child string) (found bool, err error)
	Uninstall(conn, child string) (found bool, err error)
	// Revocation visits the revocation lists and the answers of OCSP responders that were fetched
	// and proved authentic, as they were fetched: nobody changes them. Flush forgets those of a
	// kind.
	Revocation(visit func(kind pki.FetchKind, body []byte))
	Flush(kind pki.FetchKind)
	// Usage tells what is queued and how full the tables are.
	Usage() Usage
	// Messages visits the counters of IKE messages: those of all under the name "", then those of
	// each connection that has any. ResetMessages sets those of a connection to nothing, or with
	// "" those of all, or with each those of every connection.
	Messages(visit func(conn string, c *ike.Counters))
	ResetMessages(conn string, each bool)
	// Keys returns the keys of all SAs as lines of Wireshark's table esp_sa, if they are kept.
	Keys() (lines []string, kept bool)
}

// About is what stays the same as long as a daemon runs.
type About struct {
	Version, Kernel string
	Start           time.Time
	Workers         int // that compute for the IKE machine
	HalfOpen        int // how many IKE SAs may be on their way at once
	// Of the data path: workers on the way out, sockets on the way in, and what device and
	// sockets can do, in words.
	PathWorkers, PathSockets int
	TUN, UDP, ESP            string
}

// Counter is the name and the value of a counter.
type Counter struct {
	Name  string
	Value uint64
}

// Usage is how much of a daemon is in use.
type Usage struct {
	Jobs             int // computations that wait for a worker
	Slots, UsedSlots int // pairs of ESP SAs that there is room for, and that are in use
}

// SA is an IKE SA with what the data path knows of its CHILD SAs.
type SA struct {
	ike.SAInfo
	Manual   bool // it stands for a manual SA: there is no IKE SA
	Children []Child
	Assigned *ike.Assigned // by the peer, to us; nil: nothing is
	// DNSServers are those that are asked, for DNSDomains or, if it is empty, for all names.
	DNSServers []netip.Addr
	DNSDomains []string
}

// Child is a CHILD SA with its traffic. Times are on Loop's clock, 0 for never.
type Child struct {
	ike.ChildInfo
	ReqID           int
	In, Out         esp.Usage
	LastIn, LastOut time.Duration
	Class           string // of packets that the SA is for; "": none, or not known
}

// Policy is an entry of the SPD as the configuration has it.
type Policy struct {
	esp.Policy
	Number      int    // from 1
	Conn, Child string // "": the entry belongs to none
	Mode        esp.Mode
	Trap        bool   // packets ask for an SA, because somebody wants it so
	Dynamic     bool   // CHILD SAs add selectors
	Device      string // TUN device of its own; "": none
}

// Entry is an entry of the SPD with what it has done, in packets and octets of inner packets.
type Entry struct {
	Policy
	SAs                                      int
	OutPackets, OutBytes, InPackets, InBytes uint64
	Discarded, InClear                       uint64
}

// Fate is what becomes of a packet. Entry is the first that selects it, nil if none does; its
// selectors are those that match. What is one of control.Fate...; Conn to SPI tell of the SA if
// there is one, ID only of outbound ones.
type Fate struct {
	Entry       *Policy
	What        string
	Conn, Child string
	ID, SPI     uint32
}
