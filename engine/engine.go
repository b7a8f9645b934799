// Package engine runs the tunnels: it is the only place with goroutines, tables and
// loops. It gets the operating system through the interfaces in os.go, the IKE
// protocol from package ike and the packet transforms from package esp.
//
// The goroutines, whose number does not depend on peers or SAs:
//
//   - the workers of the data path, one per core up to Profile.Queues: each reads its own
//     queue of the TUN device, seals and sends through its own sockets (out.go); what they
//     share is the order of each SA's packets (turns.go)
//   - one per socket reads, opens and writes to the TUN device's queues (in.go); on the
//     NAT-T port each worker has a socket
//   - one per TUN device that children have of their own reads it, seals and sends
//     (devices.go); the board profile bounds their number
//   - one is the IKE loop: it owns the IKE machine and the writing side of the
//     tables (ikeloop.go, install.go)
//   - Profile.Workers compute for it what is slow
//   - one per address family reads what routers say of packets that were too long (toobig.go)
//   - one sends what IP-TFS has made of packets, at its times (pacer.go)
//   - one waits for changes of the host's addresses (addresses.go)
//   - one writes down the leases of address pools, only while it does (pools.go)
//   - one tells who manages name servers of those that gateways assign, once one has (dns.go)
//   - one runs the scripts of children, once one has come up that has any (updown.go)
//   - up to maxLookups look up names of peers, only while they do (resolve.go)
//   - two at most fetch what tells of revoked certificates, and one puts it on the disk, only
//     while they do (fetching.go)
//   - one accepts control clients, and three at most serve each of them (daemon.go)
package engine

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"postern/board"
	"postern/engine/config"
	"postern/engine/control"
	"postern/engine/log"
	"postern/engine/vici"
	"postern/esp"
	"postern/ike"
)

// Options are what an Engine is made of.
type Options struct {
	OS      OS
	Config  *config.Config
	Path    string // of the configuration file, for reload-settings; "": that is refused
	Profile board.Profile
	Log     *log.Logger // nil: no log
	Version string
	Kernel  string // release of the kernel, for the version command
	CPU     CPU
}

// CPU is what package platform found out about the processor.
type CPU struct {
	MIPSRelease2 bool // it has the instructions of MIPS32 release 2
	AES          bool // it has instructions for AES and GCM, and the library uses them
	WideAES      bool // it has those on vectors of 64 octets as well
}

// CipherOrder returns what "default" is to stand for among proposals.
func (c CPU) CipherOrder() ike.CipherOrder {
	if c.AES {
		return ike.AESFirst
	}
	return ike.ChaChaFirst
}

// Engine is the daemon. Run it once; Reload may be called from any goroutine while it
// runs.
type Engine struct {
	o     Options
	d     *datapath
	loop  *ikeLoop
	start time.Time
	ctl   *control.Server // nil: none; set before running is closed

	// cfg is the configuration that runs. The IKE loop's, once it runs.
	cfg      *config.Config
	loads    loads
	traps    traps
	mtu      int
	features features // of the data path; set before running is closed
	keep     keeper
	// qcdSecret is ike.Config.QCDSecret, whether it is used or not.
	qcdSecret []byte
	tickets   ticketKeys
	seqs      seqFile
	running   chan struct{} // closed when the loop takes calls
	onReload  func() error  // see OnReload; nil: nothing
	// devReaders are those of the children's devices.
	devReaders sync.WaitGroup
}

// New checks the configuration against the board profile and makes tables and buffers.
// It changes nothing in the system. Errors say what does not fit and what to do.
func New(o Options) (*Engine, error) {
	if err := o.Config.Fits(o.Profile); err != nil {
		return nil, err
	}
	mtu, err := tunnelMTU(o.Config, o.Profile)
	if err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = log.New(io.Discard, log.Error)
	}
	chooseCrypto(o.CPU, o.Config.IKE.Conns, o.Log)
	e := &Engine{o: o, cfg: o.Config, mtu: mtu, start: time.Now(), running: make(chan struct{})}
	e.loads.file = o.Config
	e.loads.known(o.Config)
	now := func() ike.Time {
		t := time.Now()
		// Never 0, which says "never" in many places.
		return ike.Time{Mono: t.Sub(e.start) + time.Second, Wall: t}
	}
	var l *ikeLoop
	workers := min(runtime.GOMAXPROCS(0), max(o.Profile.Queues, 1))
	d, err := newDatapath(o.Profile, workers, func(b []byte) { env{l}.Random(b) })
	if err != nil {
		return nil, err
	}
	l = newIKELoop(d, o.OS.Network, o.Log, now)
	m := ike.New(env{l}, ike.Limits{
		IKESAs: o.Profile.IKESAs, HalfOpen: o.Profile.HalfOpen, Cookies: o.Profile.Cookies, ChildSAs: o.Profile.ChildSAs,
		AggFrags: o.Profile.Streams(), Leases: 2 * o.Profile.IKESAs,
	})
	m.Trace = l.traces
	l.m, l.readdress, l.addrs.ask, l.lookups.resolve = m, e.readdress, o.OS.Addresses, o.OS.Resolve
	l.assign, l.unassign = e.assign, e.unassign
	l.fetches = l.newFetches(o.OS, o.Profile)
	l.links.of, l.links.set = o.OS.LinkMTU, o.OS.SetMTU
	l.mtu = mtu
	l.keepAlive, l.exportKeys = o.Config.Daemon.KeepAlive, o.Config.Daemon.ExportKeys
	l.rotate = func() { e.rotateTicketKeys(e.cfg) }
	l.saveLeases = e.saveLeases
	l.reserve, l.noteTops = e.reserveNumbers, e.noteTops
	if q := &l.updowns.q; o.OS.RunScript != nil {
		q.run, q.link, q.log, q.room = o.OS.RunScript, o.OS.LinkTo, o.Log, o.Profile.ChildSAs
		l.updowns.of = func(conn, child string) config.Updown { return e.cfg.Updown(conn, child) }
	}
	d.log, d.acquire, d.moved, d.ports = o.Log, l.acquire, l.moved, o.Config.IKE.Ports
	d.unknown, d.grow = l.unknown, l.grow
	d.limit = l.limited
	if o.OS.Sleep != nil {
		d.pacer.sleep, d.pacer.hurry = o.OS.Sleep, o.OS.Hurry
	}
	d.clock = func() time.Duration { return now().Mono }
	e.d, e.loop = d, l
	return e, nil
}

// Run works until stop is closed, then closes the SAs with their peers, undoes what it
// did to the system, and returns nil. An error says what could not be had, after
// everything was undone, or what was lost while running.
func (e *Engine) Run(stop <-chan struct{}) (err error) {
	var undo undoList
	defer undo.run(e)
	listener, err := e.listen(&undo)
	if err != nil {
		return err
	}
	if err := e.openSockets(&undo); err != nil {
		return err
	}
	e.openICMP(&undo)
	tuns, err := e.o.OS.OpenTUN(e.cfg.Daemon.Interface, e.mtu, e.d.workers)
	if err == nil && len(tuns) == 0 {
		err = errors.New("it has no queue")
	}
	if err != nil {
		return fmt.Errorf("TUN device %s: %w", e.cfg.Daemon.Interface, err)
	}
	for _, tun := range tuns {
		undo.add("TUN device", tun.Close)
	}
	e.d.tuns = tuns[:min(len(tuns), e.d.workers)]
	e.loop.device = tuns[0].Name()
	e.loop.links.now = e.mtu
	e.loop.links.configure(e.cfg, e.mtu)
	undo.add("TUN devices of children", func() error { e.closeDevices(nil); return nil })
	devices, err := e.openDevices(e.cfg)
	if err != nil {
		return err
	}

	watch := e.watchAddresses(&undo)
	e.openState(&undo)
	e.cleanAssigned()
	e.openFiles()

	// The kernel must know what to protect before the first connection starts, or the
	// first packets would leave in clear.
	spec, err := e.policySpecs(e.cfg)
	if err != nil {
		return err
	}
	e.d.spd.set(spec)
	undo.add("routes", e.o.OS.Network.Clear)
	undo.add("assigned addresses", e.dropAssigned)
	e.loop.applied = e.d.spd.policies()
	if err := e.o.OS.Network.Apply(e.loop.device, e.loop.applied); err != nil {
		return fmt.Errorf("the routes for the policies could not be set: %w", err)
	}
	e.rotateTicketKeys(e.cfg)
	e.loop.fetches.SetTrust(e.cfg.IKE.Trust)
	ikeCfg := e.ikeConfig(e.cfg)
	e.loadLeases(&ikeCfg)
	undo.add("leases", e.settleLeases)
	if err := e.loop.m.Configure(e.loop.now(), ikeCfg); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	e.loop.drain()
	e.setManual(e.cfg, false)
	undo.add("sequence numbers", e.settleAll)
	e.o.Log.Log(log.Daemon, log.Info, "ready", log.Str("device", e.loop.device), log.Int("mtu", e.mtu))
	e.features = e.d.features()
	e.o.Log.Log(log.Daemon, log.Info, "data path", e.features.fields()...)

	// From here the goroutines own the fields.
	var readers, workers sync.WaitGroup
	lost := make(chan error, len(e.d.tuns))
	stopLoop, stopWorkers := make(chan struct{}), make(chan struct{})
	for w, tun := range e.d.tuns {
		readers.Go(func() {
			if err := e.d.out[w].run(tun); err != nil {
				lost <- fmt.Errorf("the TUN device %s is lost: %w", e.loop.device, err)
			}
		})
	}
	e.followDevices(e.cfg, devices)
	for s := range e.d.socks {
		for i, sock := range e.d.socks[s] {
			readers.Go(func() { e.d.in[s][i].run(sock) })
		}
	}
	for v, sock := range e.loop.links.icmp {
		if sock != nil {
			readers.Go(func() {
				(&tooBigReader{d: e.d, v6: v == 1, tell: e.loop.links.tell}).run(sock)
			})
		}
	}
	if watch != nil {
		readers.Go(func() { e.followAddresses(watch) })
	}
	workers.Go(func() { e.d.pacer.run(stopWorkers) })
	for range max(e.o.Profile.Workers, 1) {
		workers.Go(func() { e.loop.work(stopWorkers) })
	}
	if listener != nil {
		e.serve(listener, &undo)
	}
	close(e.running)
	go e.loop.run(stopLoop)

	select {
	case <-stop:
	case err = <-lost:
	}
	close(stopLoop)
	told := time.Now()
	<-e.loop.stopped
	e.loop.updowns.q.stop(max(scriptEndTime-time.Since(told), scriptLeastTime), scriptKillTime)
	undo.run(e) // closes what the readers wait for
	readers.Wait()
	e.devReaders.Wait()
	close(stopWorkers)
	workers.Wait()
	e.loop.wipe()
	return err
}

// undoList takes back what was done, the last first.
type undoList struct {
	steps []undoStep
}

type undoStep struct {
	what string
	f    func() error
}

//go:noinline
func (u *undoList) add(what string, f func() error) {
	u.steps = append(u.steps, undoStep{what, f})
}

func (u *undoList) run(e *Engine) {
	for len(u.steps) > 0 {
		s := u.steps[len(u.steps)-1]
		u.steps = u.steps[:len(u.steps)-1]
		if err := s.f(); err != nil && !errors.Is(err, os.ErrClosed) && !errors.Is(err, net.ErrClosed) {
			e.o.Log.Log(log.Daemon, log.Warn, "could not be undone at the end", log.Str("what", s.what), log.Err(err))
		}
	}
}

// openSockets opens every socket that can be had. What a system without IPv6 or without
// raw sockets lacks is a warning, as long as IKE can be spoken at all; that a port is
// taken or forbidden is an error.
func (e *Engine) openSockets(undo *undoList) error {
	keep := func(s sockID, socks []Socket) {
		for _, sock := range socks {
			undo.add(s.String()+" socket", sock.Close)
		}
		e.d.socks[s] = socks[:min(len(socks), len(e.d.in[s]))]
	}
	var missing error
	for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		for _, s := range []struct {
			id   sockID
			port uint16
		}{{sockIKE4, e.d.ports.IKE}, {sockNATT4, e.d.ports.NATT}} {
			id, addr := s.id.family(any), netip.AddrPortFrom(any, s.port)
			socks, err := e.o.OS.ListenUDP(addr, len(e.d.in[id]))
			if err == nil {
				keep(id, socks)
			} else {
				if !familyMissing(err) {
					return fmt.Errorf("%s socket, port %d: %w", id, s.port, err)
				}
				missing = errors.Join(missing, err)
				e.o.Log.Log(log.Net, log.Warn, "peers of this address family cannot be reached: the system does not have it",
					log.Str("socket", id.String()), log.Err(err))
			}
		}
	}
	if !e.d.canIKE(sockIKE4) && !e.d.canIKE(sockIKE6) {
		return fmt.Errorf("neither IPv4 nor IPv6 is available for IKE: %w", missing)
	}
	for _, raw := range []struct {
		id     sockID
		listen func(v6 bool) (Socket, error)
		words  string
	}{
		{sockESP4, e.o.OS.ListenESP, "no raw socket for ESP: all connections use UDP encapsulation; give the daemon CAP_NET_RAW for IP protocol 50"},
		{sockAH4, e.o.OS.ListenAH, "no raw socket for AH: it cannot be used; give the daemon CAP_NET_RAW for IP protocol 51"},
	} {
		for v := range sockID(2) {
			if !e.d.canIKE(sockIKE4 + v) {
				continue
			}
			sock, err := raw.listen(v == 1)
			if err != nil {
				e.o.Log.Log(log.Net, log.Warn, raw.words, log.Str("socket", (raw.id+v).String()), log.Err(err))
				continue
			}
			keep(raw.id+v, []Socket{sock})
		}
	}
	return nil
}

// canIKE tells whether both UDP sockets of the family of s, an IKE socket, are there.
func (d *datapath) canIKE(s sockID) bool {
	return len(d.socks[s]) > 0 && len(d.socks[s+sockNATT4-sockIKE4]) > 0
}

// familyMissing tells whether an error means that the kernel does not have the address family.
func familyMissing(err error) bool {
	return errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EPROTONOSUPPORT)
}

// policySpecs returns the SPD's entries that follow from a configuration.
func (e *Engine) policySpecs(cfg *config.Config) ([]policySpec, error) {
	var spec []policySpec
	for _, entry := range cfg.SPDOf(e.o.OS.Network.Source, e.loop.assigned.virtual) {
		s := policySpec{Policy: entry.Policy, conn: entry.Conn, child: entry.Child, dynamic: entry.Dynamic, via: e.loop.devices[entry.Device]}
		installed, byHand := e.traps.of(entry.Conn, entry.Child)
		if c := entry.Carrier; c != nil {
			s.mode, s.trap = c.Mode, installed
			trap := c.StartAction == ike.StartTrap || c.DPDAction == ike.ActionTrap || c.CloseAction == ike.ActionTrap
			if byHand {
				trap = installed
			} else {
				s.trap = c.StartAction == ike.StartTrap
			}
			// What is to be up at all times is asked for, too: that packets wait makes attempts come faster.
			s.wait = trap || c.StartAction == ike.StartStart
			s.acquire = s.wait
			if entry.Loaded && !s.wait {
				// As strongSwan's users know it, a child that nobody has asked for leaves
				// packets alone: its entry comes and goes with its SAs.
				s.dynamic, s.LocalTS, s.RemoteTS = true, nil, nil
			}
			s.lanes = e.lanes(c, entry.Classes)
		} else {
			s.shunt = entry.Conn != "" && !entry.Manual
			if s.shunt && byHand && !installed || entry.Parked && !installed {
				continue
			}
		}
		spec = append(spec, s)
	}
	return spec, e.d.spd.check(spec)
}

// reconfigure changes over to another configuration, of which how says how much is another one.
// Connections that stay the same keep their SAs. An error means that nothing has changed.
func (e *Engine) reconfigure(cfg *config.Config, how ike.Change) error {
	select {
	case <-e.running:
	default:
		return errors.New("the daemon is not running yet")
	}
	defer wipeManual(cfg)
	if err := cfg.Fits(e.o.Profile); err != nil {
		return err
	}
	mtu, err := tunnelMTU(cfg, e.o.Profile)
	if err != nil {
		return err
	}
	if lerr := e.loop.do(func() { err = e.change(cfg, mtu, how) }); lerr != nil {
		return lerr
	}
	return err
}

// change is reconfigure's part on the loop. Manual SAs are of the file alone.
func (e *Engine) change(cfg *config.Config, mtu int, how ike.Change) (err error) {
	l, s := e.loop, e.d.spd
	defer e.holdAssigned()()
	devices, err := e.openDevices(cfg)
	defer func() {
		if err != nil {
			e.followDevices(e.cfg, devices)
		}
	}()
	if err != nil {
		return err
	}
	spec, err := e.policySpecs(cfg)
	if err != nil {
		return err
	}
	if how == ike.ChangeAny {
		if err := e.manualRoom(cfg); err != nil {
			return err
		}
	}
	// First the kernel, so that what a new connection protects never leaves in clear.
	list := s.plainPolicies(s.compile(spec))
	if how == ike.ChangeAny || !equalPolicies(list, l.applied) {
		if err := l.net.Apply(l.device, list); err != nil {
			l.apply()
			return fmt.Errorf("the routes for the policies could not be set: %w", err)
		}
	}
	ikeCfg := e.ikeConfig(cfg)
	ikeCfg.Change = how
	if err := l.m.Configure(l.now(), ikeCfg); err != nil {
		l.apply()
		return err
	}
	e.rotateTicketKeys(cfg)
	l.fetches.SetTrust(cfg.IKE.Trust)
	s.set(spec)
	e.followDevices(cfg, devices)
	l.rejudge()
	if l.applied = list; !equalPolicies(list, s.policies()) {
		l.apply() // an SA that ended took a policy of its own with it
	}
	l.drain()
	l.out.flush()
	l.keepAlive = cfg.Daemon.KeepAlive
	anew := cfg.Daemon.ExportKeys && !l.exportKeys // the old ones have no keys to export
	l.setExport(cfg.Daemon.ExportKeys)
	if how == ike.ChangeAny {
		e.setManual(cfg, anew)
	}
	e.tellRestart(cfg, mtu)
	l.links.configure(cfg, mtu)
	l.fitAll()
	wipeReplaced(e.cfg, cfg)
	e.traps.keep(e.cfg, cfg)
	l.keepReqids()
	e.cfg = cfg
	return nil
}

// wipeReplaced overwrites the secrets of a configuration that the one in its place does not share. A
// PPK that was only read again stays: handshakes that are under way compare it.
func wipeReplaced(was, is *config.Config) {
	kept := map[*byte]bool{}
	each := func(c *config.Config, visit func(key []byte, ppk bool)) {
		for _, s := range c.IKE.Secrets {
			if len(s.Key) > 0 {
				visit(s.Key, false)
			}
		}
		for _, p := range c.IKE.PPKs {
			if len(p.Key) > 0 {
				visit(p.Key, true)
			}
		}
	}
	each(is, func(key []byte, _ bool) { kept[&key[0]] = true })
	again := func(key []byte) bool {
		return slices.ContainsFunc(is.IKE.PPKs, func(p ike.PPK) bool { return subtle.ConstantTimeCompare(p.Key, key) == 1 })
	}
	each(was, func(key []byte, ppk bool) {
		if !kept[&key[0]] && !(ppk && again(key)) {
			clear(key)
		}
	})
}

// ikeConfig is what the machine gets of a configuration: the ports stay those of the open
// sockets, and where a raw socket is missing ESP has to go through UDP.
func (e *Engine) ikeConfig(cfg *config.Config) ike.Config {
	c := cfg.IKE
	c.Ports = e.d.ports
	for _, conn := range c.Conns {
		for _, ch := range conn.Children {
			if ch.PerCPU {
				ch.Lanes = e.ownLanes()
			}
		}
	}
	if cfg.Daemon.QCD {
		c.QCDSecret = e.qcdSecret
	}
	for s := sockESP4; s <= sockESP6; s++ {
		if len(e.d.socks[s]) == 0 && e.d.canIKE(sockIKE4+s-sockESP4) {
			c.Encap = true
		}
	}
	return c
}

// tellRestart names what a reload cannot change.
func (e *Engine) tellRestart(cfg *config.Config, mtu int) {
	was, is := &e.cfg.Daemon, &cfg.Daemon
	tell := func(changed bool, key string) {
		if changed {
			e.o.Log.Log(log.Config, log.Warn, "a changed setting takes effect after a restart only", log.Str("setting", key))
		}
	}
	tell(was.Interface != is.Interface, "interface")
	tell(mtu != e.mtu && e.loop.links.set == nil, "mtu")
	tell(was.Board != is.Board, "board")
	tell(was.IKEPort != is.IKEPort, "ike_port")
	tell(was.NATTPort != is.NATTPort, "natt_port")
	tell(was.Control != is.Control, "control")
	tell(was.StateDir != is.StateDir, "state_dir")
	is.IKEPort, is.NATTPort = was.IKEPort, was.NATTPort
	cfg.IKE.Ports = e.cfg.IKE.Ports
}

// wipe forgets the keys of whatever is left, when nobody uses the tables any more.
func (l *ikeLoop) wipe() {
	for i := range l.d.sad.slots {
		slot := &l.d.sad.slots[i]
		if in := slot.in.Swap(nil); in != nil {
			in.in.Wipe()
		}
		if slot.out != nil {
			slot.out.out.Wipe()
			slot.out = nil
		}
	}
}

// Counters returns the data path's counters, in a fixed order. It may be called from
// any goroutine.
func (e *Engine) Counters() []vici.Counter {
	out := make([]vici.Counter, numCounters)
	for c := range numCounters {
		out[c] = vici.Counter{Name: c.String(), Value: e.d.counts.get(c)}
	}
	return out
}

// features are what the data path of this system has: how many workers on the way out and
// sockets on the way in, and what device and sockets found by trying.
type features struct {
	workers, sockets int
	tun, udp, esp    string
}

// features gathers them from the open device and sockets.
func (d *datapath) features() features {
	f := features{workers: len(d.tuns), tun: d.tuns[0].Features()}
	for s, socks := range d.socks {
		if len(socks) == 0 {
			continue
		}
		switch s := sockID(s); {
		case s >= sockAH4:
		case s >= sockESP4:
			f.esp = socks[0].Features()
		case s.carriesESP():
			f.sockets = max(f.sockets, len(socks))
			f.udp = socks[0].Features()
		}
	}
	return f
}

// fields are the features for the log; what there is none of is left out.
func (f *features) fields() []log.Field {
	list := []log.Field{log.Int("workers", f.workers), log.Int("sockets", f.sockets)}
	for _, e := range [][2]string{{"tun", f.tun}, {"udp", f.udp}, {"esp", f.esp}} {
		if s := strings.TrimSpace(e[1]); s != "" {
			list = append(list, log.Str(e[0], s))
		}
	}
	return list
}

// MTU returns the MTU that the TUN device has at the start.
func (e *Engine) MTU() int { return e.mtu }

const (
	// pathMTU is what an outer path is expected to carry.
	pathMTU = 1500
	// outerHeaders are the largest outer headers: IPv6 and UDP.
	outerHeaders = 40 + 8
	// minMTU is what IPv6 demands of a link (RFC 8200 section 5).
	minMTU = 1280
)

// tunnelMTU returns the MTU of the TUN device: what is configured, or the largest that
// every suite of the configuration can carry over an Ethernet path.
func tunnelMTU(cfg *config.Config, p board.Profile) (int, error) {
	most := p.BufferSize - headRoom - esp.TailRoom
	if mtu := cfg.Daemon.MTU; mtu > 0 {
		if mtu > most {
			return 0, fmt.Errorf("mtu %d does not fit the buffers of the board profile %q: use at most %d", mtu, p.Name, most)
		}
		return mtu, nil
	}
	path := pathMTU - nestOctets(cfg.IKE.Conns)
	mtu := path - outerHeaders
	for _, conn := range cfg.IKE.Conns {
		for _, child := range conn.Children {
			for _, prop := range child.Proposals {
				for _, sa := range proposedSAs(&prop) {
					// In tunnel mode, whatever the child has: the peer may not agree to another.
					sa.Remote = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
					if n := child.Hiding.Longest(&sa, path); n > 0 {
						mtu = min(mtu, n)
					}
				}
			}
		}
	}
	for _, m := range cfg.Manual {
		if n := m.Out.MaxPacket(pathMTU); n > 0 {
			mtu = min(mtu, n)
		}
	}
	return min(max(mtu, minMTU), most), nil
}

// proposedSAs returns the protocols and suites that can come of a proposal, with the largest
// encapsulation. Sequence numbers do not matter here: they add nothing to a packet.
func proposedSAs(p *ike.Proposal) []esp.SA {
	var out []esp.SA
	for _, e := range p.Transforms {
		if p.Proto == ike.ProtoAH && e.Type == ike.TransformInteg {
			out = append(out, esp.SA{Proto: esp.AH, Suite: esp.Suite{Integ: esp.IntegID(e.ID)}})
		}
		if e.Type != ike.TransformEncr {
			continue
		}
		s := esp.Suite{Encr: esp.EncrID(e.ID), KeyBits: e.KeyBits}
		out = append(out, esp.SA{Suite: s, Encap: true})
		for _, i := range p.Transforms {
			if i.Type == ike.TransformInteg && i.ID != 0 {
				s.Integ = esp.IntegID(i.ID)
				out = append(out, esp.SA{Suite: s, Encap: true})
			}
		}
	}
	return out
}
