package cli

import (
	"fmt"

	"postern/engine/control"
)

var saCommand = Command{
	Name:    "sa",
	Args:    "keys",
	Summary: "print the keys of CHILD SAs for Wireshark",
	Help: `Prints the keys of the ESP SAs as lines of Wireshark's table esp_sa, which also
tshark takes. The daemon has them only with export_keys = true in [daemon], and
only of the SAs that were made since. Who has them can read the traffic.

  postern sa keys > ~/.config/wireshark/esp_sa
  tshark -o esp.enable_encryption_decode:TRUE -r wan.pcap`,
	Run: runSA,
}

func runSA(sys *System, cmd *Command, args []string) int {
	o := newOptions(sys, cmd)
	return o.ask(sys, args, 1, 1, func(c *control.Client, rest []string) int {
		if rest[0] != "keys" {
			sys.errorf("sa: %q is not known: write keys", clean(rest[0]))
			return ExitUsage
		}
		resp, err := c.CallStream(control.CmdSAKeys, control.EvSAKey, nil, func(m *control.Message) error {
			fmt.Fprintln(sys.Stdout, m.Get(control.KeyLine))
			return nil
		})
		if err == nil {
			err = control.Check(control.CmdSAKeys, resp)
		}
		if err != nil {
			return complain(sys, "sa keys", err)
		}
		return ExitOK
	})
}
