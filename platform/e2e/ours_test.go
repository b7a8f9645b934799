//go:build linux

package e2e

import (
	"strings"

	"postern/engine/control"
)

// rawOurs is what "swanctl --raw" prints for a command, of a postern with the keys that charon does
// not have and swanctl therefore does not get. Of charon it is swanctl's own output.
func rawOurs(d daemon, option, event string) (string, error) {
	name := strings.TrimPrefix(option, "--")
	if d.kind() != "postern" {
		return command("swanctl", option, "--raw", "--uri", d.control())
	}
	c, err := control.Dial(strings.TrimPrefix(d.control(), "unix://"))
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	c.Ours = true
	var b strings.Builder
	write := func(what string, m *control.Message) {
		b.WriteString(what + " {")
		rawText(&b, m)
		b.WriteString("}\n")
	}
	var resp *control.Message
	if event == "" {
		resp, err = c.Call(name, nil)
	} else {
		resp, err = c.CallStream(name, event, nil, func(m *control.Message) error {
			write(event+" event", m)
			return nil
		})
	}
	if err != nil {
		return "", err
	}
	write(name+" reply", resp)
	return b.String(), nil
}

// rawText writes a message in swanctl's raw notation.
func rawText(b *strings.Builder, m *control.Message) {
	for i, e := range m.Elements() {
		if i > 0 {
			b.WriteByte(' ')
		}
		switch e.Kind {
		case control.KindValue:
			b.WriteString(e.Name + "=" + e.Value)
		case control.KindList:
			b.WriteString(e.Name + "=[" + strings.Join(e.Items, " ") + "]")
		case control.KindSection:
			b.WriteString(e.Name + " {")
			rawText(b, e.Section)
			b.WriteByte('}')
		}
	}
}
