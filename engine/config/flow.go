package config

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"postern/esp"
)

// ParseFlow reads a packet as it is asked about: source, destination, protocol by name or
// number, and either two ports, or of ICMP and of a mobility header the type and, unless 0, the code. Without them the packet is
// one whose ports cannot be seen, such as a later fragment. in says that it comes in, so that
// its destination is on our side.
func ParseFlow(words []string, in bool) (f esp.Flow, err error) {
	if len(words) < 3 || len(words) > 5 {
		return f, errors.New("a packet is written SRC DST PROTO, and two ports or an ICMP type and code behind that")
	}
	src, err1 := netip.ParseAddr(words[0])
	dst, err2 := netip.ParseAddr(words[1])
	for i, err := range []error{err1, err2} {
		if err != nil {
			return f, fmt.Errorf("%q is no address", words[i])
		}
	}
	if src, dst = src.Unmap().WithZone(""), dst.Unmap().WithZone(""); src.BitLen() != dst.BitLen() {
		return f, fmt.Errorf("%s and %s are of two address families", src, dst)
	}
	proto, ok := parseProto(words[2])
	if !ok || proto == 0 && words[2] != "0" {
		return f, fmt.Errorf("%q is no protocol: use tcp, udp, icmp, icmpv6, sctp, gre or a number up to 255", words[2])
	}
	f = esp.Flow{Local: src, Remote: dst, Proto: proto, NoPorts: true}
	if ports := words[3:]; len(ports) > 0 {
		f.NoPorts = false
		if err := readPorts(&f, ports); err != nil {
			return f, err
		}
	}
	if in {
		f.Local, f.Remote, f.LocalPort, f.RemotePort = f.Remote, f.Local, f.RemotePort, f.LocalPort
	}
	return f, nil
}

func readPorts(f *esp.Flow, words []string) error {
	if !esp.HasPorts(f.Proto) {
		return fmt.Errorf("protocol %s has no ports", esp.ProtoName(f.Proto))
	}
	icmp := hasTypes(f.Proto)
	bits := 16
	if icmp {
		bits = 8
	}
	var n [2]uint64
	for i, w := range words {
		var err error
		if n[i], err = strconv.ParseUint(w, 10, bits); err != nil {
			return fmt.Errorf("%q is no number up to %d", w, 1<<bits-1)
		}
	}
	switch {
	case icmp:
		f.LocalPort = uint16(n[0]<<8 | n[1])
		f.RemotePort = f.LocalPort
	case len(words) < 2:
		return errors.New("a packet has two ports: name both or none")
	default:
		f.LocalPort, f.RemotePort = uint16(n[0]), uint16(n[1])
	}
	return nil
}
