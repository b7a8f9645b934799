package platform

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Of the kernel's headers if_link.h, if_tun.h, veth.h and pkt_sched.h; x/sys has no names for them.
const (
	addrGenNone  = 1          // IN6_ADDR_GEN_MODE_NONE
	vethInfoPeer = 1          // VETH_INFO_PEER
	tcRoot       = 0xffffffff // TC_H_ROOT
	tunNumQueues = 8          // IFLA_TUN_NUM_QUEUES (Linux 4.17)
)

// Link is a network interface.
type Link struct {
	Index int
	Name  string
	Kind  string // "tun", "veth"; "" for hardware and loopback
	MTU   int
	Flags uint32 // IFF_*

	carrier bool // something is at the other end; of a TUN device: somebody holds it
	queues  int  // of a TUN device: those that are attached; 0 if the kernel does not tell
}

// Up tells whether the interface is switched on.
func (l Link) Up() bool { return l.Flags&unix.IFF_UP != 0 }

// Addr is an address of an interface.
type Addr struct {
	Index  int
	Prefix netip.Prefix // the address itself and the length of its network's prefix
	Scope  uint8        // RT_SCOPE_*
	Flags  uint32       // IFA_F_*
}

// usable tells whether the host may send from the address to anywhere.
func (a Addr) usable() bool {
	const not = unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED | unix.IFA_F_DEPRECATED
	return a.Scope < unix.RT_SCOPE_LINK && a.Flags&not == 0 && !a.Prefix.Addr().IsLoopback()
}

// ifInfo begins the message of a link: family, type, index, flags, mask of the flags.
func ifInfo(typ, flags uint16, index int, set, change uint32) *request {
	return newRequest(typ, flags).raw(unix.AF_UNSPEC, 0, 0, 0).u32(uint32(index)).u32(set).u32(change)
}

// LinkByName looks an interface up. The error wraps ENODEV if there is none.
func (c *Netlink) LinkByName(name string) (Link, error) {
	r := ifInfo(unix.RTM_GETLINK, 0, 0, 0, 0)
	r.attrString(unix.IFLA_IFNAME, name)
	m, err := c.get(r, "look up interface", name)
	if err != nil {
		return Link{}, err
	}
	l, err := parseLink(m.body)
	return l, opError("look up interface", name, err)
}

func parseLink(b []byte) (Link, error) {
	if len(b) < unix.SizeofIfInfomsg {
		return Link{}, errNetlinkShort
	}
	l := Link{Index: int(int32(native.Uint32(b[4:]))), Flags: native.Uint32(b[8:])}
	a := attrs{rest: b[unix.SizeofIfInfomsg:]}
	for a.next() {
		switch a.typ {
		case unix.IFLA_IFNAME:
			l.Name = a.str()
		case unix.IFLA_MTU:
			l.MTU = int(a.u32())
		case unix.IFLA_CARRIER:
			l.carrier = a.u8() != 0
		case unix.IFLA_LINKINFO:
			in := a.nested()
			for in.next() {
				switch in.typ {
				case unix.IFLA_INFO_KIND:
					l.Kind = in.str()
				case unix.IFLA_INFO_DATA:
					if l.Kind == "tun" {
						l.queues = tunQueues(in.nested())
					}
				}
			}
			if in.err != nil {
				return l, in.err
			}
		}
	}
	return l, a.err
}

func tunQueues(a attrs) int {
	for a.next() {
		if a.typ == tunNumQueues {
			return int(a.u32())
		}
	}
	return 0
}

// SetLinkUp switches an interface on or off.
func (c *Netlink) SetLinkUp(index int, up bool) error {
	flags, op := uint32(0), "set down interface"
	if up {
		flags, op = unix.IFF_UP, "set up interface"
	}
	return c.do(ifInfo(unix.RTM_NEWLINK, 0, index, flags, unix.IFF_UP), op, fmt.Sprint(index))
}

// SetLinkMTU sets the MTU in octets.
func (c *Netlink) SetLinkMTU(index, mtu int) error {
	r := ifInfo(unix.RTM_NEWLINK, 0, index, 0, 0)
	r.attrU32(unix.IFLA_MTU, uint32(mtu))
	return c.do(r, "set mtu of interface", fmt.Sprint(index))
}

// SetAddrGenNone keeps the kernel from giving the interface IPv6 addresses of its own.
func (c *Netlink) SetAddrGenNone(index int) error {
	r := ifInfo(unix.RTM_NEWLINK, 0, index, 0, 0)
	spec := r.nest(unix.IFLA_AF_SPEC)
	inet6 := r.nest(unix.AF_INET6)
	r.attrU8(unix.IFLA_INET6_ADDR_GEN_MODE, addrGenNone)
	r.end(inet6)
	r.end(spec)
	return c.do(r, "silence IPv6 on interface", fmt.Sprint(index))
}

// SetNoQueue makes an interface pass packets to its driver at once, without a queueing
// discipline before it (tc-qdisc's noqueue).
func (c *Netlink) SetNoQueue(index int) error {
	r := newRequest(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_REPLACE).raw(unix.AF_UNSPEC, 0, 0, 0)
	r.u32(uint32(index)).u32(0).u32(tcRoot).u32(0) // struct tcmsg: interface, handle, parent, info
	r.attrString(unix.TCA_KIND, "noqueue")
	return c.do(r, "set queueing discipline of interface", fmt.Sprint(index))
}

// AddVeth makes a pair of virtual Ethernet interfaces, each in the network namespace
// that a descriptor stands for (of /proc/PID/ns/net); -1 is that of the connection.
func (c *Netlink) AddVeth(name string, ns int, peer string, peerNS int) error {
	r := ifInfo(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, 0, 0, 0)
	r.attrString(unix.IFLA_IFNAME, name)
	r.attrNamespace(ns)
	info := r.nest(unix.IFLA_LINKINFO)
	r.attrString(unix.IFLA_INFO_KIND, "veth")
	data := r.nest(unix.IFLA_INFO_DATA)
	other := r.nest(vethInfoPeer)
	r.raw(make([]byte, unix.SizeofIfInfomsg)...)
	r.attrString(unix.IFLA_IFNAME, peer)
	r.attrNamespace(peerNS)
	r.end(other)
	r.end(data)
	r.end(info)
	return c.do(r, "make interfaces", name+" and "+peer)
}

// MoveLink moves an interface to the network namespace that a descriptor stands for.
func (c *Netlink) MoveLink(index, ns int) error {
	r := ifInfo(unix.RTM_NEWLINK, 0, index, 0, 0)
	r.attrNamespace(ns)
	return c.do(r, "move interface", fmt.Sprint(index))
}

func (r *request) attrNamespace(ns int) {
	if ns >= 0 {
		r.attrU32(unix.IFLA_NET_NS_FD, uint32(ns))
	}
}

// DeleteLink removes an interface.
func (c *Netlink) DeleteLink(index int) error {
	return c.do(ifInfo(unix.RTM_DELLINK, 0, index, 0, 0), "delete interface", fmt.Sprint(index))
}

func family(v6 bool) byte {
	if v6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

func addrRequest(typ, flags uint16, a Addr) *request {
	ip := a.Prefix.Addr()
	r := newRequest(typ, flags).raw(family(ip.Is6()), byte(a.Prefix.Bits()), byte(a.Flags), a.Scope).u32(uint32(a.Index))
	r.attrAddr(unix.IFA_LOCAL, ip)
	r.attrAddr(unix.IFA_ADDRESS, ip)
	if a.Flags > 0xff {
		r.attrU32(unix.IFA_FLAGS, a.Flags)
	}
	return r
}

// AddAddr gives an interface an address. IFA_F_NODAD in its flags makes an IPv6
// address usable at once. An address that is there already is no error.
func (c *Netlink) AddAddr(a Addr) error {
	err := c.do(addrRequest(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, a), "add address", a.Prefix.String())
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// DeleteAddr takes an address away.
func (c *Netlink) DeleteAddr(a Addr) error {
	return c.do(addrRequest(unix.RTM_DELADDR, 0, a), "delete address", a.Prefix.String())
}

// Addrs lists the addresses of one family.
func (c *Netlink) Addrs(v6 bool) ([]Addr, error) {
	ms, err := c.dump(newRequest(unix.RTM_GETADDR, 0).raw(family(v6), 0, 0, 0).u32(0), "addresses")
	if err != nil {
		return nil, err
	}
	var list []Addr
	for _, m := range ms {
		// Kernels that have no such family answer with all the families that they have.
		if m.typ != unix.RTM_NEWADDR || len(m.body) == 0 || m.body[0] != family(v6) {
			continue
		}
		a, err := parseAddr(m.body)
		if err != nil {
			return nil, opError("list", "addresses", err)
		}
		list = append(list, a)
	}
	return list, nil
}

func parseAddr(b []byte) (Addr, error) {
	if len(b) < unix.SizeofIfAddrmsg {
		return Addr{}, errNetlinkShort
	}
	bits := b[1]
	addr := Addr{Flags: uint32(b[2]), Scope: b[3], Index: int(int32(native.Uint32(b[4:])))}
	a := attrs{rest: b[unix.SizeofIfAddrmsg:]}
	local := false
	for a.next() {
		switch a.typ {
		case unix.IFA_LOCAL:
			// On a point-to-point interface IFA_ADDRESS is the peer's.
			addr.Prefix, local = a.prefix(bits), true
		case unix.IFA_ADDRESS:
			if p := a.prefix(bits); !local {
				addr.Prefix = p
			}
		case unix.IFA_FLAGS:
			addr.Flags = a.u32()
		}
	}
	return addr, a.err
}
