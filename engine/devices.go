package engine

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"

	"postern/engine/config"
	"postern/engine/log"
	"postern/esp"
)

// Children with a TUN device of their own, whose key "interface" names it: the system's
// routes decide what goes into the device, and that is what its children protect, within their
// selectors. What comes through their SAs comes out of that device and no other. Nothing is
// told to Network.Apply about them, so what arrives in clear from their remote_ts is not
// dropped by us: there, too, the routes decide, and a firewall can tell by the device what
// was protected. Entries of the SPD without a device come before all routes: what they protect
// does not go into the device, and what comes out of it and belongs into their SAs is dropped
// like anything else that arrives in clear.
//
// The tunnel's own packets follow the system's routes as well, since only the policies' rules
// let them pass. A route to the peer must not lead into the device; where the default route
// does, the peer needs one of its own, or the default route a table of its own, from which a
// rule keeps our mark (platform.Mark). Otherwise no path to the peer is found, and what
// still goes round is dropped and counted.
//
// A device has one goroutine, which does what a worker does (out.go) among the device's own
// entries of the SPD. Inbound, the readers of the sockets write to it (in.go). A CHILD SA
// belongs to its device for good: a child that gets another one gets other SAs, too. So an SA
// is never used by a device's goroutine and by a worker at once, and they can share a
// number in package esp.

// childDevice is such a device. It outlives its TUN device, which somebody may delete: a
// reload makes that again, and the SAs go on.
type childDevice struct {
	name  string
	tun   atomic.Pointer[Device] // nil: it is gone
	out   *outbound
	addrs []netip.Prefix // that we have given it; the IKE loop's
}

const (
	// deviceCache is the size of a device's flow cache: a look-up among its few entries costs
	// little more.
	deviceCache = 64
	// deviceShare is the part of a worker's buffers that a device has, so that a board which
	// affords few devices affords their buffers.
	deviceShare = 2
)

// newChildDevice returns a device without its TUN device, the n-th one.
func (d *datapath) newChildDevice(name string, n int) *childDevice {
	v := &childDevice{name: name}
	// One by one: they change hands with those of the queue, and must not keep each other.
	bufs := make([][]byte, max(len(d.out[0].bufs)/deviceShare, 4))
	for i := range bufs {
		bufs[i] = make([]byte, d.pool.size)
	}
	cache := newFlowCache(deviceCache, rand.Uint64())
	cache.via = v
	v.out = newOutbound(d, n%d.workers, bufs, cache)
	v.out.via = v
	return v
}

// openDevices opens the devices of a configuration that are not there, and gives these their
// addresses. Also after an error, it returns those that wait for followDevices now.
func (e *Engine) openDevices(cfg *config.Config) (opened []*childDevice, err error) {
	l := e.loop
	for _, want := range cfg.Devices() {
		v := l.devices[want.Name]
		if v == nil {
			v = l.d.newChildDevice(want.Name, len(l.devices))
		}
		if v.tun.Load() == nil {
			tuns, err := e.o.OS.OpenTUN(want.Name, e.mtu, 1)
			if err == nil && len(tuns) == 0 {
				err = errors.New("it has no queue")
			}
			if err != nil {
				return opened, fmt.Errorf("TUN device %s: %w", want.Name, err)
			}
			e.o.OS.Network.ForgetDevice(want.Name) // one that was lost
			v.addrs = nil
			v.tun.Store(&tuns[0])
			l.devices[want.Name] = v
			opened = append(opened, v)
			if err := e.readdressDevice(v, want.Addrs); err != nil {
				return opened, err
			}
		}
	}
	return opened, nil
}

// readdressDevice gives a device these addresses and takes back the others that we gave it.
func (e *Engine) readdressDevice(v *childDevice, want []netip.Prefix) error {
	want = slices.Concat(want, e.virtualOn(v.name))
	if err := e.o.OS.Network.SetDevice(v.name, want, v.addrs); err != nil {
		return fmt.Errorf("TUN device %s: %w", v.name, err)
	}
	v.addrs = want
	return nil
}

// followDevices starts to read the devices that were opened, closes those that the
// configuration does not have, and brings the addresses of the others up to date.
func (e *Engine) followDevices(cfg *config.Config, opened []*childDevice) {
	for _, v := range opened {
		e.devReaders.Go(func() { e.readDevice(v) })
	}
	kept := map[string]bool{}
	for _, want := range cfg.Devices() {
		kept[want.Name] = true
		if v := e.loop.devices[want.Name]; v != nil {
			if err := e.readdressDevice(v, want.Addrs); err != nil {
				e.o.Log.Log(log.Kernel, log.Error, "a device could not be given its addresses", log.Err(err))
			}
		}
	}
	e.closeDevices(kept)
}

// closeDevices takes the other devices away.
func (e *Engine) closeDevices(kept map[string]bool) {
	for name, v := range e.loop.devices {
		if kept[name] {
			continue
		}
		delete(e.loop.devices, name)
		if tun := v.tun.Swap(nil); tun != nil {
			_ = (*tun).Close()
		}
		e.o.OS.Network.ForgetDevice(name)
	}
}

// readDevice seals what comes out of a device until that is closed or lost.
func (e *Engine) readDevice(v *childDevice) {
	tun := v.tun.Load()
	if tun == nil {
		return
	}
	err := v.out.run(*tun)
	if err == nil || !v.tun.CompareAndSwap(tun, nil) {
		return
	}
	e.o.Log.Log(log.Kernel, log.Error, "a TUN device is lost, and its children carry nothing: reload the settings to make it again",
		log.Str("device", v.name), log.Err(err))
	_ = (*tun).Close()
}

// deviceOf returns the device of an SA that is being made. One that is not there any more is
// one into which nothing goes and out of which nothing comes.
func (l *ikeLoop) deviceOf(name string) *childDevice {
	if name == "" {
		return nil
	}
	if v := l.devices[name]; v != nil {
		return v
	}
	return &childDevice{name: name}
}

// dropLooped takes packets of the tunnel itself out of those that have an SA: where the way
// to the peer leads into the device, each would come back as a longer one, for ever.
func (o *outbound) dropLooped() {
	d := o.d
	kept := o.found[:0]
	for _, i := range o.found {
		p := &o.pkts[i]
		if f, to := &p.flow.Flow, p.sa.path.Load(); f.Remote != to.remote.Addr() || f.Local != to.local || !d.outer(f) {
			kept = append(kept, i)
			continue
		}
		d.counts.inc(cOutLoop)
		if d.mayNote(noteLoop, o.now) {
			d.log.Log(log.Net, log.Warn, "packet dropped: the route to the peer leads into the tunnel's own device; give the peer's address a route of its own",
				log.Str("device", o.via.name), log.Addr("peer", p.flow.Remote))
		}
	}
	o.found = kept
}

// outer tells whether a flow looks like the outside of a tunnel from here: ESP, AH, or UDP from
// one of our ports, of which a fragment may show none.
func (d *datapath) outer(f *esp.Flow) bool {
	switch f.Proto {
	case esp.ProtoESP, esp.ProtoAH:
		return true
	case esp.ProtoUDP:
		return f.NoPorts || f.LocalPort == d.ports.NATT || f.LocalPort == d.ports.IKE
	}
	return false
}

// route does step 8 for a packet of an SA that has a device of its own.
func (in *inbound) route(v *childDevice, pkt []byte) {
	if v != in.via {
		in.deliverApart()
		in.via = v
	}
	in.apart = append(in.apart, pkt)
}

// deliverApart does step 9 for such packets.
func (in *inbound) deliverApart() {
	n := uint64(len(in.apart))
	if n == 0 {
		return
	}
	in.d.counts.add(cInPackets, n)
	if tun := in.via.tun.Load(); tun != nil {
		in.write(*tun, in.apart)
	} else {
		in.d.counts.add(cInNoDevice, n)
	}
	in.apart, in.via = in.apart[:0], nil
}
