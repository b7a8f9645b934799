package config

import (
	"fmt"
	"net/netip"
	"slices"

	"postern/board"
	"postern/esp"
)

// Device is a TUN device that children have of their own.
type Device struct {
	Name  string
	Addrs []netip.Prefix // addresses of ours, with the lengths of their networks

	at pos
}

// Devices returns the devices of the children, each once, in the order of the file.
func (c *Config) Devices() []Device { return c.devices }

// deviceAddrs reads addresses with the lengths of their networks.
func (s *scope) deviceAddrs(n *node, to *[]netip.Prefix) {
	for _, e := range s.texts(n) {
		p, err := netip.ParsePrefix(e.text)
		if err != nil || p.Addr().Is4In6() || p.Addr().IsUnspecified() || p.Addr().IsMulticast() || slices.Contains(*to, p) {
			s.problem(e.at, `write each address once, such as "10.255.0.1/30"`, "%q is no address of a device with the length of its network, or is there twice", e.text)
			continue
		}
		*to = append(*to, p)
	}
}

// addDevice adds the child's device to the list, or its addresses to the device that others
// have already.
func (l *loader) addDevice(c *child) {
	if c.Interface == "" {
		return
	}
	i := 0
	for i < len(l.cfg.devices) && l.cfg.devices[i].Name != c.Interface {
		i++
	}
	if i == len(l.cfg.devices) {
		l.cfg.devices = append(l.cfg.devices, Device{Name: c.Interface, at: where(c.t, "interface")})
	}
	// The same address twice is no error of the system's.
	l.cfg.devices[i].Addrs = append(l.cfg.devices[i].Addrs, c.addrs...)
}

// checkDevice notes what does not go with a device of a child's own.
func (l *loader) checkDevice(c *child) {
	if n := c.t.get("interface_addrs"); n != nil && c.t.get("interface") == nil {
		l.problem(n.key, `write interface = "ipsec0" beside it`, "child %s has no device that could have addresses", c.Name)
	}
	if c.Interface == "" || !good(c.t, "interface", "mode") {
		return
	}
	if c.Interface == l.cfg.Daemon.Interface {
		l.problem(where(c.t, "interface"), "give the child another one, such as \"ipsec0\"",
			"%s is the device of [daemon], into which the policies lead", c.Interface)
	}
	if c.Mode != esp.Tunnel {
		l.problem(where(c.t, "mode"), `write mode = "tunnel", or take interface out`,
			"mode %q and a device of its own do not go together: what is routed into it has other addresses than the tunnel", modeWords[c.mode])
	}
	if n := c.t.get("per_cpu_sas"); n != nil && c.PerCPU {
		l.problem(n.at, "take one of the two out", "a device of its own has one worker, so per_cpu_sas does nothing for child %s", c.Name)
	}
}

// fitDevices notes the first device that a board has no room for.
func (c *Config) fitDevices(p board.Profile) Problems {
	if room := p.Devices(); len(c.devices) > room {
		at := c.devices[room].at
		return Problems{{c.File, at.line, at.col,
			fmt.Sprintf("%d devices of children are more than the board %q has room for (%d)", len(c.devices), p.Name, room),
			"let children share one, or choose a bigger board in [daemon]"}}
	}
	return nil
}
