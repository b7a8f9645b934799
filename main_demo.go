//go:build demo

package main

import (
	"net/netip"

	"postern/engine/demo"
	"postern/platform"
)

func init() {
	extraCommands = append(extraCommands, demo.Command(demo.System{
		NewLab:     func() demo.Lab { return lab{platform.NewLab()} },
		Privileged: platform.LabPrivileged,
		Reexec:     platform.ReexecForLab,
	}))
}

// lab and host fit platform's types to the interfaces of the demonstration.
type (
	lab  struct{ *platform.Lab }
	host struct{ *platform.LabHost }
)

func (l lab) Host(name string) (demo.Host, error) {
	h, err := l.Lab.Host(name)
	if err != nil {
		return nil, err
	}
	return host{h}, nil
}

func (l lab) Connect(a demo.Host, aName string, aAddr netip.Prefix, b demo.Host, bName string, bAddr netip.Prefix) error {
	return l.Lab.Connect(a.(host).LabHost, aName, aAddr, b.(host).LabHost, bName, bAddr)
}

func (h host) Capture(device string) (demo.Capture, error) {
	c, err := h.LabHost.Capture(device)
	if err != nil {
		return nil, err
	}
	return c, nil
}
