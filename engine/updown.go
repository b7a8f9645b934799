package engine

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"postern/engine/config"
	"postern/engine/log"
	"postern/esp"
	"postern/ike"
)

// The scripts of children (the key updown), as strongSwan's plugin of that name runs them: one run for each
// pair of selectors when a CHILD SA has come up, and one for each when it has gone down; none when it is
// rekeyed, or moves with its IKE SA to other addresses. What comes from the peer is in the environment only.
// Unlike there, nobody waits for a script: they run one after the other on a goroutine of their own.

const (
	// scriptTime bounds a run. Scripts set routes and firewall rules, which takes far less, even where they
	// wait for the firewall's lock; all others wait while one hangs.
	scriptTime = 10 * time.Second
	// scriptEndTime is how long after it was told to end the daemon waits for the scripts that are still to
	// run, and scriptLeastTime how long it does so even if the peers have taken all of that: some service
	// managers kill after five seconds, and the routes have to be undone before.
	scriptEndTime   = closeTime
	scriptLeastTime = 500 * time.Millisecond
	// scriptKillTime is how long a script that was killed may take to be gone; one that the kernel holds
	// fast is left behind.
	scriptKillTime = 200 * time.Millisecond
	// maxScriptLines bounds what the log takes of one run.
	maxScriptLines = 64
)

// scriptArea is the area of the log that has what scripts say and how they end.
const scriptArea = log.Child

// updownSA is what a script is told about a CHILD SA. Whoever has one only reads it: when something changes, the
// IKE loop makes another.
type updownSA struct {
	config.Updown
	conn, child           string
	reqid                 int
	proto                 esp.Protocol
	unique                uint32 // of the IKE SA
	path                  ike.Path
	encap                 bool // ESP goes in UDP
	localID, remoteID     ike.ID
	localTS, remoteTS     []esp.Selector
	localVIPs, remoteVIPs []netip.Addr
	dns                   []netip.Addr
	link                  *string // the interface towards the peer when it came up; the worker's
}

// updowns follows the CHILD SAs that have scripts. It belongs to the IKE loop.
type updowns struct {
	of   func(conn, child string) config.Updown // nil: nobody has any
	live map[uint32]*updownSA                   // that have come up, by number
	q    scriptQueue
}

// updown has scripts run for what an event tells.
func (l *ikeLoop) updown(e *ike.Event) {
	u := &l.updowns
	switch e.Kind {
	case ike.EvChildUp:
		if u.of == nil {
			return
		}
		script := u.of(e.Conn, e.Child)
		if script.Command == "" {
			return
		}
		sa := &updownSA{Updown: script, link: new(string)}
		// An SA beside another one for the same packets is nothing that a script has to do with.
		if !l.describe(sa, e.IKE, e.ChildID) {
			return
		}
		if !u.q.push(updownJob{sa, true}) {
			if more, ok := l.limit.Allow("updown "+e.Conn, l.now().Mono); ok {
				l.log.Log(scriptArea, log.Error, "the updown script is not run, neither now nor when the child goes down: too many are waiting; make it faster",
					log.Str("conn", e.Conn), log.Str("child", e.Child), log.Int("suppressed", more))
			}
			return
		}
		if u.live == nil {
			u.live = map[uint32]*updownSA{}
		}
		u.live[e.ChildID] = sa
	case ike.EvChildRekeyed:
		if sa := u.live[e.Old]; sa != nil {
			delete(u.live, e.Old)
			u.live[e.ChildID] = l.described(sa, e.IKE, e.ChildID)
		}
	case ike.EvIKERekeyed, ike.EvMoved, ike.EvRoamed, ike.EvAssigned:
		for id, sa := range u.live {
			if sa.unique == e.IKE || e.Kind == ike.EvIKERekeyed && sa.unique == e.Old {
				u.live[id] = l.described(sa, e.IKE, id)
			}
		}
	case ike.EvChildDown:
		if sa := u.live[e.ChildID]; sa != nil {
			delete(u.live, e.ChildID)
			u.q.push(updownJob{sa, false})
		}
	}
}

// described returns sa as it is now; as it was if it is gone already.
func (l *ikeLoop) described(sa *updownSA, unique, id uint32) *updownSA {
	is := *sa
	if l.describe(&is, unique, id) {
		return &is
	}
	return sa
}

// describe fills in what there is to tell about a CHILD SA, and returns false if it is not there.
//
//go:noinline
func (l *ikeLoop) describe(sa *updownSA, unique, id uint32) (found bool) {
	l.m.List(func(i *ike.SAInfo) bool {
		if i.Unique != unique {
			return true
		}
		at := slices.IndexFunc(i.Children, func(c ike.ChildInfo) bool { return c.Unique == id })
		if at < 0 || i.Children[at].Lane > 0 {
			return false
		}
		found = true
		c := &i.Children[at]
		sa.conn, sa.child, sa.reqid, sa.proto = i.Conn, c.Name, l.reqid(i.Conn, c.Name), protocolOf(&c.Suite)
		sa.unique, sa.path, sa.localID, sa.remoteID = i.Unique, i.Path, i.LocalID, i.RemoteID
		sa.encap = c.Encap || i.NATLocal || i.NATPeer
		sa.localTS, sa.remoteTS = slices.Clone(c.LocalTS), slices.Clone(c.RemoteTS)
		sa.localVIPs, sa.remoteVIPs = slices.Clone(i.LocalVIPs), slices.Clone(i.RemoteVIPs)
		sa.dns = nil
		if st := l.assignedTo(i.Conn); st != nil && i.Initiator {
			sa.dns = st.is.DNS[:min(len(st.is.DNS), maxDNSServers)]
		}
		return false
	})
	return found
}

// protocolOf tells AH from ESP by what was agreed on.
func protocolOf(s *esp.Suite) esp.Protocol {
	if s.Encr == esp.EncrNone && s.Integ != esp.IntegNone {
		return esp.AH
	}
	return esp.ESP
}

// pairs calls f for each pair of selectors that packets can have.
func (sa *updownSA) pairs(f func(local, remote *esp.Selector)) {
	for i := range sa.localTS {
		for j := range sa.remoteTS {
			a, b := &sa.localTS[i], &sa.remoteTS[j]
			if a.Start.Is4() == b.Start.Is4() && (a.Proto == b.Proto || a.Proto == 0 || b.Proto == 0) {
				f(a, b)
			}
		}
	}
}

// variables are an environment.
type variables []string

//go:noinline
func (v *variables) set(name, value string) { *v = append(*v, "PLUTO_"+name+"="+value) }

//go:noinline
func (v *variables) number(name string, n int) { v.set(name, strconv.Itoa(n)) }

// addrs numbers the addresses of each family.
func (v *variables) addrs(name string, list []netip.Addr) {
	var n [2]int
	for _, a := range list {
		family, i := "4_", 0
		if a.Is6() {
			family, i = "6_", 1
		}
		n[i]++
		v.set(name+family+strconv.Itoa(n[i]), a.String())
	}
}

// side says who is on one side.
func (v *variables) side(host, name string, addr netip.Addr, id ike.ID, ts *esp.Selector, port string) {
	v.set(host, addr.String())
	v.set(name+"_ID", id.String())
	v.set(name+"_CLIENT", network(ts).String())
	v.set(name+"_PORT", port)
	v.number(name+"_PROTOCOL", int(ts.Proto))
}

// virtual says which virtual addresses one side has.
func (v *variables) virtual(name string, list []netip.Addr) {
	if len(list) > 0 {
		v.set(name, list[0].String())
	}
	v.addrs(name, list)
}

// env returns the variables of one run, but PATH, in strongSwan's order.
func (sa *updownSA) env(up bool, a, b *esp.Selector) []string {
	var v variables
	me, peer := sa.path.Local.Addr().Unmap(), sa.path.Remote.Addr().Unmap()
	v.set("VERSION", "1.1")
	v.set("VERB", verb(up, a, me))
	v.set("CONNECTION", sa.child)
	v.set("INTERFACE", *sa.link)
	v.number("REQID", sa.reqid)
	proto := "esp"
	if sa.proto == esp.AH {
		proto = "ah"
	}
	v.set("PROTO", proto)
	v.number("UNIQUEID", int(sa.unique))
	v.side("ME", "MY", me, sa.localID, a, scriptPort(a, b, true))
	v.side("PEER", "PEER", peer, sa.remoteID, b, scriptPort(b, a, false))
	v.virtual("MY_SOURCEIP", sa.localVIPs)
	v.virtual("PEER_SOURCEIP", sa.remoteVIPs)
	if sa.encap {
		v.number("UDP_ENC", int(sa.path.Remote.Port()))
	}
	v.addrs("DNS", sa.dns)
	if sa.HostAccess {
		v.set("HOST_ACCESS", "1")
	}
	return v
}

// verb says what has happened to whom: a selector that is our own address is the host, any other its clients.
func verb(up bool, a *esp.Selector, me netip.Addr) string {
	v := "down"
	if up {
		v = "up"
	}
	if a.Start == me && a.End == me {
		v += "-host"
	} else {
		v += "-client"
	}
	if a.Start.Is6() {
		v += "-v6"
	}
	return v
}

// network returns the smallest network that holds the addresses of a selector.
func network(s *esp.Selector) netip.Prefix {
	for bits := s.Start.BitLen(); ; bits-- {
		if p, err := s.Start.Prefix(bits); err != nil || p.Contains(s.End) {
			return p
		}
	}
}

// scriptPort writes the ports of a selector; of ICMP, the type on our side and the code on the peer's, whichever of
// the selectors has them.
func scriptPort(s, other *esp.Selector, local bool) string {
	if p := max(s.Proto, other.Proto); p == esp.ProtoICMP || p == esp.ProtoICMPv6 {
		port := max(s.StartPort, other.StartPort)
		if local {
			return strconv.Itoa(int(port >> 8))
		}
		return strconv.Itoa(int(port & 0xff))
	}
	v := strconv.Itoa(int(s.StartPort))
	if s.StartPort != s.EndPort && (s.StartPort != 0 || s.EndPort != 65535) {
		v += ":" + strconv.Itoa(int(s.EndPort))
	}
	return v
}

// updownJob is what the scripts of a CHILD SA are to be told.
type updownJob struct {
	sa *updownSA
	up bool
}

// scriptQueue runs scripts in the order in which they were asked for, on a goroutine that there is once there was
// one to run. push and stop are for one goroutine at a time.
type scriptQueue struct {
	run  func(ctx context.Context, command string, env []string, line func([]byte)) error
	link func(remote netip.Addr) (string, error) // nil: unknown
	log  *log.Logger
	room int // SAs that have come up and whose scripts may wait

	mu     sync.Mutex
	jobs   []updownJob
	ending bool
	wake   chan struct{}
	done   chan struct{}   // closed when the goroutine has ended; nil: there is none
	ctx    context.Context // what runs is killed when it ends
	cancel context.CancelFunc
}

// push puts a job behind the others. False: there is no room for it, or the end has come. For what has gone down
// there always is room: there are no more of these than have waited to be told that they are up, and than are in
// the tables.
func (q *scriptQueue) push(j updownJob) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ending || j.up && len(q.jobs) >= q.room {
		return false
	}
	q.jobs = append(q.jobs, j)
	if q.done == nil {
		q.wake, q.done = make(chan struct{}, 1), make(chan struct{})
		q.ctx, q.cancel = context.WithCancel(context.Background())
		go q.work()
	}
	select {
	case q.wake <- struct{}{}:
	default:
	}
	return true
}

// work runs scripts until stop.
func (q *scriptQueue) work() {
	defer close(q.done)
	for {
		q.mu.Lock()
		var j updownJob
		if len(q.jobs) > 0 && q.ctx.Err() == nil {
			j = q.jobs[0]
			q.jobs[0] = updownJob{}
			if q.jobs = q.jobs[1:]; len(q.jobs) == 0 {
				q.jobs = nil // nor the memory of a storm
			}
		}
		over := q.ending
		q.mu.Unlock()
		switch {
		case j.sa != nil:
			q.tell(j)
		case over:
			return
		default:
			<-q.wake
		}
	}
}

// tell runs the scripts of a job.
func (q *scriptQueue) tell(j updownJob) {
	sa := j.sa
	if j.up {
		*sa.link = "unknown"
		if q.link != nil {
			if name, err := q.link(sa.path.Remote.Addr().Unmap()); err == nil && name != "" {
				*sa.link = name
			}
		}
	}
	sa.pairs(func(a, b *esp.Selector) {
		lines := 0
		ctx, cancel := context.WithTimeout(q.ctx, scriptTime)
		defer cancel()
		field := func(more ...log.Field) []log.Field {
			return append([]log.Field{log.Str("conn", sa.conn), log.Str("child", sa.child)}, more...)
		}
		err := q.run(ctx, sa.Command, sa.env(j.up, a, b), func(text []byte) {
			if lines++; lines <= maxScriptLines {
				q.log.Log(scriptArea, log.Info, "updown: "+string(text), field()...)
			}
		})
		if lines > maxScriptLines {
			q.log.Log(scriptArea, log.Warn, "the updown script says too much for the log", field(log.Int("left_out", lines-maxScriptLines))...)
		}
		text := "the updown script has failed"
		if errors.Is(err, context.DeadlineExceeded) {
			text = "the updown script was ended: it takes too long; let it do in the background what does"
		}
		if err != nil {
			q.log.Log(scriptArea, log.Warn, text, field(log.Str("verb", verb(j.up, a, sa.path.Local.Addr().Unmap())), log.Err(err))...)
		}
	})
}

// stop lets run what has been up and is down now, within a bounded time, and ends the goroutine.
func (q *scriptQueue) stop(patience, kill time.Duration) {
	q.mu.Lock()
	if q.done == nil {
		q.mu.Unlock()
		return
	}
	// Of what has not been told that it is up nobody needs to hear any more.
	never := map[*string]bool{}
	for _, j := range q.jobs {
		if j.up {
			never[j.sa.link] = true
		}
	}
	q.jobs = slices.DeleteFunc(q.jobs, func(j updownJob) bool { return never[j.sa.link] })
	q.ending = true
	q.mu.Unlock()
	close(q.wake)
	defer q.cancel()
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case <-q.done:
		return
	case <-late.C:
	}
	q.cancel()
	late.Reset(kill)
	select {
	case <-q.done:
	case <-late.C:
	}
	q.mu.Lock()
	left := len(q.jobs)
	q.mu.Unlock()
	q.log.Log(scriptArea, log.Warn, "updown scripts have not ended in time: what they had to take back may be left behind", log.Int("not_run", left))
}
