package config

import (
	"strings"
	"testing"

	"postern/ike"
)

// dscpLanes returns the lanes of some DSCPs.
func dscpLanes(c *Config) any {
	var k *Classes
	for _, e := range c.SPD(nil) {
		if e.Carrier == firstChild(c) {
			k = e.Classes
		}
	}
	if k == nil {
		return nil
	}
	if firstChild(c).Lanes != len(k.Names) {
		return "the machine knows another number of classes"
	}
	var out []uint8
	for _, dscp := range []int{63, 46, 0, 3, 7, 16} {
		out = append(out, k.Lane[dscp])
	}
	return out
}

func TestClassesThatAreNone(t *testing.T) {
	for _, c := range []struct{ list, want string }{
		{`["64"]`, `"64" is no class of packets; write DSCPs of 0 to 63 and ranges of them`},
		{`["ef"]`, `"ef" is no class of packets`},
		{`[""]`, `"" is no class of packets`},
		{`["1,,2"]`, `"1,,2" is no class of packets`},
		{`["9-8"]`, `"9-8" is no class of packets`},
		{`["1-"]`, `"1-" is no class of packets`},
		{`["-1"]`, `"-1" is no class of packets`},
		{`["46", "40-50"]`, `DSCP 46 is twice in dscp_classes; take it out of one`},
		{`["46,46"]`, `DSCP 46 is twice in dscp_classes`},
		{`["1","2","3","4","5","6","7","8","9"]`, `dscp_classes has more than 8 classes; join some in one class`},
		{`[]`, `dscp_classes is empty`},
		{"[\"46\"]\nper_cpu_sas = true", `a child has dscp_classes or per_cpu_sas, not both; take one of the two out`},
	} {
		_, err := Parse("x.toml", []byte(baseSecret+baseConn+baseChild+"dscp_classes = "+c.list+"\n"), ike.AESFirst)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("dscp_classes = %s: %v, want %s", c.list, err, c.want)
		}
	}
}
