package ike

import (
	"net/netip"
	"time"

	"postern/esp"
	"postern/ike/pki"
)

// Time is one reading of both clocks. Mono is the time since an arbitrary start and
// never goes back; every timer uses it. Wall may be wrong or zero on a router that has
// booted without a clock.
type Time struct {
	Mono time.Duration
	Wall time.Time
}

// Path is the pair of addresses that a datagram travels between. NATT marks the
// NAT traversal sockets (port 4500 by default), where the caller takes off and puts on
// the four zero octets of the non-ESP marker (RFC 3948 section 2.2).
type Path struct {
	Local, Remote netip.AddrPort
	NATT          bool
}

// Env is what the machine asks of its surroundings and cannot get as input. Calls are
// synchronous, cheap, and never call back into the machine.
type Env interface {
	// Random fills b from a cryptographically secure source.
	Random(b []byte)
	// AllocSPI reserves a slot of the inbound SAD and returns its SPI (never below
	// 256); ok is false when the table is full. The SPI should be one whose packets come to
	// that worker of the data path, counted from 1; 0: any.
	AllocSPI(worker uint8) (spi uint32, ok bool)
	// FreeSPI gives back an SPI that AllocSPI returned. An SA that was added under it
	// is deleted by a DelSA output first.
	FreeSPI(spi uint32)
	// Usage returns what passed through the CHILD SA with that inbound SPI: in and
	// out, and when the last packet arrived and left (on the monotonic clock; 0 if none did).
	Usage(spi uint32) (in, out esp.Usage, lastIn, lastOut time.Duration)
	// Source returns the local address from which packets to remote leave; false if they
	// do not, because there is no route or its link is down.
	Source(remote netip.Addr) (netip.Addr, bool)
	// Addresses returns the addresses of this host; known is false where the system does
	// not tell. The list is the machine's to read until its next call.
	Addresses() (list []netip.Addr, known bool)
}

// Limits sizes the machine's tables; they never grow.
type Limits struct {
	IKESAs   int // IKE SAs of every state
	HalfOpen int // IKE SAs as responder before the peer has authenticated
	Cookies  int // half-open IKE SAs from which on a COOKIE is demanded
	ChildSAs int // CHILD SAs over all IKE SAs
	Leases   int // that each address pool remembers; never less than 64
	AggFrags int // CHILD SAs with AGGFRAG payloads among them, those that are replaced aside; 0: as many
}

// Ports are our own UDP ports; zero fields mean 500 and 4500.
type Ports struct {
	IKE, NATT uint16
}

// Config is all that the machine is configured with. The machine copies connections and
// children and keeps what their fields point to, which the caller must not change
// afterwards. The same pointer to a connection again says that nothing of it is another.
type Config struct {
	Conns   []*Conn
	Secrets []Secret
	PPKs    []PPK // no two with the same ID
	Ports   Ports
	// Encap forces UDP encapsulation on every connection, where IP protocol 50 cannot be
	// sent or received here.
	Encap bool
	// QCDSecret makes the tokens of quick crash detection (RFC 6290): 32 random octets that
	// survive a restart. Without it neither tokens are given out nor taken.
	QCDSecret []byte
	// Trust is whom we believe that a certificate is true; nil: nobody, beside what a round names.
	Trust *pki.Trust
	// Floor is a time that has surely passed: a wall clock before it is wrong, and what is said
	// about such clocks in package pki holds.
	Floor time.Time
	// Pools are what clients get virtual addresses from. Leases, as Machine.Leases told them
	// in an earlier life, let them get the same ones; only new pools take them.
	Pools  []Pool
	Leases []Lease
	// Change says what differs from the configuration before.
	Change Change
}

// Change says how much of a configuration differs from the one before it.
type Change uint8

// The kinds of change.
const (
	ChangeAny   Change = iota // anything may; what is to be started and is not up is tried again
	ChangeConns               // only connections that differ are started
	ChangeCreds               // only credentials: SAs that rest on what is gone stay, and nothing is started
)

// StartAction says when a CHILD SA is negotiated.
type StartAction uint8

// The start actions, named as strongSwan names them.
const (
	StartNone  StartAction = iota // only when asked for
	StartTrap                     // when the first packet wants it
	StartStart                    // at once, and for ever
)

// PeerAction says what follows when the peer is found dead (DPDAction) or closes the
// CHILD SA (CloseAction).
type PeerAction uint8

// The actions, named as strongSwan names them.
const (
	ActionClear   PeerAction = iota // delete and forget
	ActionTrap                      // delete and wait for a packet
	ActionRestart                   // delete and negotiate again
)

// Conn is one connection: how to reach and authenticate a peer. The names are those
// of strongSwan's swanctl.conf.
type Conn struct {
	Name        string
	LocalAddrs  []netip.Addr   // addresses of ours to use; empty: whatever the route says
	LocalNets   []netip.Prefix // as responder, further ones; as initiator whatever the route says if LocalAddrs is empty
	RemoteAddrs []netip.Prefix // the peer's; empty, without names: any, which only a responder can use
	RemoteNames []PeerName     // names whose addresses count like RemoteAddrs
	RemotePort  uint16         // 0: 500, or 4500 where NAT traversal asks for it
	// LocalID and RemoteID are the identities of the first round of authentication. Ours, if
	// zero, is the name of our certificate, or else our address; the peer's, if zero, is any
	// that proves itself; it may be a pattern (see ID.Admits).
	LocalID    ID
	RemoteID   ID
	LocalAuth  []Auth     // how we prove who we are, at most MaxRounds times; empty: once, by a pre-shared key
	RemoteAuth []Auth     // how the peer has to; empty as before
	SendCert   SendCert   // when to send our certificates
	NoCertReq  bool       // ask for no certificates
	Proposals  []Proposal // IKE, in order of preference
	Encap      bool       // force UDP encapsulation even without a NAT
	MOBIKE     bool       // let the SAs move to other addresses (RFC 4555)

	// DPDDelay is after what time a peer is asked whether it lives that has sent nothing
	// authentic since a packet was sent to it; 0: never. A dead peer is so found at the latest
	// DPDDelay and all retransmissions (165 s by default) after the first packet that it did
	// not answer, or four times DPDDelay and the retransmissions after its last one where
	// nothing was sent. Behind a NAT in front of us, with MOBIKE, we ask after one DPDDelay
	// there, too: only so a new mapping of the NAT is noticed (RFC 4555 section 3.8).
	DPDDelay     time.Duration
	Unique       UniquePolicy
	Childless    Childless
	KeyingTries  int           // attempts to establish; 0: for ever
	RekeyTime    time.Duration // of the IKE SA; 0: never
	ReauthTime   time.Duration // both sides authenticate anew, make before break; 0: never
	OverTime     time.Duration // added to RekeyTime and ReauthTime: the IKE SA is closed then; 0: a tenth of the longer one
	RandTime     time.Duration // random part subtracted from both
	RetryTimeout time.Duration // first retransmission; 0: 4 s (strongSwan's)
	RetryBase    float64       // factor between retransmissions; 0: 1.8
	RetryTries   int           // retransmissions before the peer counts as dead; 0: 5
	RetryLimit   time.Duration // no retransmission waits longer; 0: no limit. While packets wait, none waits longer than 2 s
	RetryJitter  int           // percent, up to 20, by which one may come earlier, by chance

	Fragmentation Fragmentation // of large messages (RFC 7383)
	FragmentSize  int           // octets of the IP datagrams that hold fragments; 0: 1280
	// Resumption lets a lost session go on by a ticket (RFC 5723): as client we ask for
	// one, as gateway we give one. It spares both sides the Diffie-Hellman exchange. Who
	// gets hold of the gateway's ticket keys can read what a resumed session carries.
	Resumption bool
	// RedirectTo, as gateway, is where clients that can be redirected are sent (RFC 5685),
	// unless it is the very address that they have come to.
	RedirectTo Gateway
	// IgnoreRedirects, as client, stays with the configured addresses.
	IgnoreRedirects bool

	// PPK names the post-quantum pre-shared key of the connection among Config.PPKs (RFC
	// 8784); zero: none. With PPKAny a peer that calls us may have any of them. With
	// PPKRequired there is no IKE SA without one, and a resumed one only if the session had one.
	PPK                 PPKID
	PPKAny, PPKRequired bool
	// VIPs, as client, are the virtual addresses to ask the peer for; an unspecified one: any of
	// that family. Dynamic selectors of ours are those that it assigns (RFC 7296 section 2.19).
	VIPs []netip.Addr
	// Pools, as gateway, names the pools that the peer gets virtual addresses from: for each
	// address the first one of its family that has one. Dynamic selectors of the peer are these.
	// A peer that asks for none gets no CHILD SA.
	Pools []string

	Children []*Child
}

// PeerName is a name of the peer in the DNS. At is how many of RemoteAddrs come before it
// in the order in which the peer's addresses are called.
type PeerName struct {
	Name string
	At   int
}

// Child is one CHILD SA of a connection.
type Child struct {
	Name         string
	Mode         esp.Mode // to ask for as initiator, and to grant as responder; else it is tunnel mode
	Fragments    bool     // in tunnel mode, agree that later fragments follow their first one (RFC 4301 section 7.3)
	LocalTS      []TS
	RemoteTS     []TS
	Proposals    []Proposal // ESP
	RekeyTime    time.Duration
	LifeTime     time.Duration // hard limit; 0: 110 % of RekeyTime
	RandTime     time.Duration
	RekeyBytes   uint64 // octets of inner packets in one direction, as the next; 0: no limit
	LifeBytes    uint64 // hard limit; 0: 110 % of RekeyBytes
	RandBytes    uint64 // random part subtracted from RekeyBytes
	RekeyPackets uint64 // 0: no limit
	LifePackets  uint64 // hard limit; 0: 110 % of RekeyPackets
	RandPackets  uint64
	Inactivity   time.Duration // closed when nothing has passed for so long, and with the last one the IKE SA; 0: never
	KeepIKE      bool          // Inactivity leaves the IKE SA alone
	Hiding       Hiding        // of what is sent
	ReplayWindow int
	StartAction  StartAction
	DPDAction    PeerAction
	CloseAction  PeerAction

	// Lanes is how many SAs with the same selectors, 0 to MaxLanes, are made beside the first
	// one when packets ask for them; which packets go through which of them is the caller's
	// affair. With PerCPU each belongs to one worker, which is negotiated (RFC 9611); Lanes is
	// the number of workers then, 0 if there is but one.
	Lanes     int
	PerCPU    bool
	Interface string // of the device that its SAs are to have; handed on in ChildSA
}

// TS is a traffic selector of the configuration. Dynamic stands for the address of
// that side of the IKE SA; Proto and the ports still apply.
type TS struct {
	Dynamic bool
	esp.Selector
}

// CommandKind names what a Command asks for.
type CommandKind uint8

// The commands.
const (
	CmdInitiate    CommandKind = iota // bring up Conn's Child ("" means all of its children, or with Bare none)
	CmdTerminate                      // close the SAs that Conn, Child, IKE and ChildID select
	CmdAcquire                        // a packet (Flow) waits for Conn's Child; told every second while packets come
	CmdReauth                         // authenticate anew, make before break, the IKE SAs that Conn and IKE select
	CmdRekey                          // rekey what Conn, Child, IKE and ChildID select
	CmdMoved                          // an authentic packet of the CHILD SA with inbound SPI came along Path
	CmdRedirect                       // send the peers of the IKE SAs that Conn and IKE select to Gateway
	CmdInvalidSPI                     // a packet for SPI, which is no SA of ours, came along Path
	CmdLimit                          // the pair with inbound SPI has reached its soft limit, or with Hard its hard one
	CmdAddresses                      // this host's addresses, routes or links have changed
	CmdUnreachable                    // the system knows no way along Path
)

// Command is a wish of the user or of the data path. Its outcome is an Event of kind
// EvDone with the same Tag (one per command, after the SAs in question are up, gone, or
// given up), unless Tag is 0. An empty name or zero number selects everything.
type Command struct {
	Kind    CommandKind
	Tag     uint64
	Conn    string
	Child   string
	IKE     uint32 // unique number of an IKE SA
	ChildID uint32 // unique number of a CHILD SA
	Flow    esp.Flow
	SPI     uint32
	Path    Path
	Gateway Gateway
	Force   bool // CmdTerminate of whole IKE SAs: do not wait for the peer
	Bare    bool // CmdInitiate without Child: the IKE SA alone; one that is up already is as good
	Hard    bool // CmdLimit

	// Grow says that the packet of CmdAcquire goes through some SA of the child, and would
	// rather go through one of Lane: that it cannot be had is no failure.
	Grow bool
	Lane uint8
}

// OutputKind names what an Output asks the caller to do.
type OutputKind uint8

// The outputs.
const (
	OutSend     OutputKind = iota // send Data along Path
	OutAddSA                      // put SA into the SAD and bind it to its policy
	OutDelSA                      // take the SA with SPI and Dir out of the SAD
	OutUseSA                      // from now on protect with the outbound SA of SPI
	OutMoveSA                     // from now on send what the pair of Inbound protects along Path
	OutWork                       // run Work and hand its result to Done
	OutEvent                      // Event happened
	OutFetch                      // get Fetches from the network and hand them to Fetched with FetchID
	OutKeep                       // Kept, of what was handed to Fetched, is authentic: it may serve others, too
	OutResolve                    // look up the addresses of Name and hand them to Resolved
	OutAssign                     // Assigned is what the gateway of Assigned.Conn has given us, from now on
	OutUnassign                   // what was assigned to the connection Name holds no more
	OutLeases                     // Machine.Leases tells something else than before
)

// Output is one thing the caller has to do. Outputs come in an order that must be
// kept: the inbound SA exists before the response that announces it leaves. Data and
// Work are valid until the next call into the machine other than Next.
type Output struct {
	Kind  OutputKind
	Path  Path
	Data  []byte
	Add   *ChildSA
	SPI   uint32 // OutDelSA, OutUseSA, OutMoveSA: of the outbound SA
	Dir   esp.Direction
	Work  *Work
	Event Event
	Encap bool // OutMoveSA: ESP goes in UDP
	Name  string

	FetchID  uint64
	Fetches  []pki.Fetch
	Kept     []pki.Fetched
	Assigned *Assigned

	// Inbound is the SPI of the pair's inbound SA, for OutDelSA and OutUseSA: outbound
	// SPIs are the peers' choice, and two peers may have chosen the same one.
	Inbound uint32
}

// ChildSA is one direction of a new CHILD SA. Inbound is the SPI of the pair's inbound SA,
// the key under which Usage is asked for. An outbound SA with Standby set
// is kept aside until OutUseSA names it: the peer that rekeys has not yet told that it
// can receive on it (RFC 7296 section 2.8).
type ChildSA struct {
	esp.SA
	Inbound uint32 // SPI of the pair's inbound SA
	Conn    string
	Child   string
	IKE     uint32 // unique number of the IKE SA
	ID      uint32 // unique number of the CHILD SA
	Standby bool
	// Fragments: though the selectors are for some ports, fragments after the first one pass
	// where the first one passed, both ways.
	Fragments bool
	Lane      uint8 // of Child.Lanes, from 1; 0: the SA for whatever has no lane
	PerCPU    bool  // Lane is the only worker that may send through it; 0: all may

	Interface string // Child.Interface when the SA was made
	Hiding    Hiding // of an outbound SA: as configured, less what the peer does not take
	AggFrag   AggFrag
}

// EventKind names an event.
type EventKind uint8

// The events. The comment tells which fields of Event they fill beside Conn, IKE and Path.
const (
	EvIKEUp        EventKind = iota // an IKE SA is established; Text says how, if it was resumed
	EvIKEDown                       // and is gone; Err says why
	EvIKERekeyed                    // Old is the unique number of the replaced one
	EvChildUp                       // Child, ChildID
	EvChildDown                     // Child, ChildID, Err
	EvChildRekeyed                  // Child, ChildID, Old
	EvDone                          // a command ended: Tag, Err
	EvInitiate                      // an attempt to establish starts; Count is its number; Old is the IKE SA that is reauthenticated
	EvFailed                        // an attempt failed: Err; Delay until the next one, 0 if none; Old as in EvInitiate
	EvRetransmit                    // Count of this request so far
	EvNotify                        // the peer reported an error: Err
	EvRefused                       // we answered the peer with an error: Err
	EvDropped                       // a datagram was dropped: Err
	EvCookies                       // COOKIE demands switched on (Count 1) or off (0)
	EvTrace                         // Text: one line about a message, when Trace is on
	EvNAT                           // a NAT was found: Text says where
	EvLeased                        // the peer has got virtual addresses: Text
	EvAssigned                      // the peer has assigned virtual addresses to us, or others than before: Text
	EvNotResumed                    // a ticket was refused or not answered, a full exchange follows: Err
	EvRedirected                    // a client is sent to another gateway, or we are: Text; Err: why we do not go
	EvMoved                         // the peer's address changed; Path is the new one
	EvRoamed                        // we have moved to another path, which is Path
	EvStranded                      // no way leads to the peer (Count 1), or one does again (0)
	EvTrust                         // what is noteworthy about a certificate that was looked at: Text
	EvResolved                      // a peer's name resolves again, or differently: Text
	EvNoPPK                         // an IKE SA goes without the post-quantum pre-shared key that its connection has: Err
)

// Event is something that a log, a control client or a metric wants to know. It never
// holds a key.
type Event struct {
	Kind    EventKind
	Tag     uint64
	Conn    string
	Child   string
	IKE     uint32
	ChildID uint32
	Old     uint32
	Path    Path
	Count   int
	Delay   time.Duration
	Text    string
	Suite   string // what was agreed on, of an SA that is up or rekeyed
	Err     error
	// SA, of the events that tell that an SA is up, down, rekeyed, moved or roamed, is the IKE SA
	// as it was then, with the CHILD SAs that the event is about; Was is the IKE SA that it
	// replaces. nil: there is none any more.
	SA, Was *SAInfo
}

// SAInfo is a snapshot of an IKE SA for list-sas.
type SAInfo struct {
	Unique            uint32
	Conn              string
	State             State
	Initiator         bool
	SPIi, SPIr        uint64
	Path              Path
	LocalID, RemoteID ID
	NATLocal, NATPeer bool // which side is behind a NAT
	NATFake           bool // we are not, in truth: the peer is made to believe so
	Encap             bool
	Suite             IKESuite
	PPK               PPKID         // the post-quantum pre-shared key that is in its keys; zero: none
	Established       time.Duration // on the monotonic clock; 0 while connecting
	RekeyAt, ExpireAt time.Duration // 0: never
	ReauthAt          time.Duration // 0: never
	Children          []ChildInfo
	Tasks             []string     // what is going on or waiting: "IKE_AUTH", "CHILD_REKEY"
	Active            int          // how many of Tasks are going on; they are the first ones
	LocalAuth         []Proof      // how we have proved who we are, round by round
	RemoteAuth        []Proof      // and the peer
	Passive           []string     // what the peer has begun and not ended
	Window            int          // requests that the peer takes at once (RFC 7296 section 2.3)
	LocalVIPs         []netip.Addr // virtual addresses that we have of the peer
	RemoteVIPs        []netip.Addr // that the peer has of us
}

// ChildInfo is a snapshot of a CHILD SA.
type ChildInfo struct {
	Unique            uint32
	Name              string
	State             ChildState
	Mode              esp.Mode
	SPIIn, SPIOut     uint32
	Suite             esp.Suite
	DH                DHGroup // 0 without PFS
	KE                AddKE   // beside that
	Encap             bool
	Fragments         bool // as of a ChildSA
	LocalTS, RemoteTS []esp.Selector
	Installed         time.Duration
	RekeyAt, ExpireAt time.Duration
	Lane              uint8   // as of a ChildSA
	PerCPU            bool    // the peer and we have agreed to have one for each CPU
	Passed            Traffic // in an Event: what had passed then; the caller's tables may not have it any more
}

// Traffic is what has passed through a CHILD SA, as Env.Usage tells it.
type Traffic struct {
	In, Out         esp.Usage
	LastIn, LastOut time.Duration
}
