package cli

import (
	"encoding/json"
	"strings"
	"testing"

	"postern/engine/control"
)

// poolDaemon has one pool.
type poolDaemon struct{}

func (poolDaemon) Command(name string, req *control.Message, _ func(string, *control.Message) error) (*control.Message, bool) {
	m := new(control.Message)
	if only := req.Get(control.KeyName); name != control.CmdGetPools || only != "" && only != "p4" {
		return m, name == control.CmdGetPools
	}
	s := m.Section("p4").Set(control.KeyBase, "10.9.0.1").SetInt(control.KeySize, 254).SetInt(control.KeyOnline, 1).SetInt(control.KeyOffline, 1)
	l := s.Section(control.KeyLeases)
	l.Section("0").Set(control.KeyAddress, "10.9.0.7").Set(control.KeyIdentity, "b\x1bad.example").Set(control.KeyStatus, "offline")
	l.Section("1").Set(control.KeyAddress, "10.9.0.1").Set(control.KeyIdentity, "a.example").Set(control.KeyStatus, "online")
	return m, true
}

func TestPoolsAreShown(t *testing.T) {
	path := serve(t, poolDaemon{})
	status, out, errs := call(System{}, "pools", "--socket", path)
	const want = `p4: from 10.9.0.1, 254 addresses, 1 in use, 1 kept for clients that are away
  10.9.0.7                 offline  b\x1bad.example
  10.9.0.1                 online   a.example
`
	if status != ExitOK || out != want {
		t.Errorf("status %d, %s\n%s\nwant\n%s", status, errs, out, want)
	}
	status, out, _ = call(System{}, "pools", "--socket", path, "--json", "p4")
	var v struct {
		Pools []struct {
			Name   string
			Size   int
			Leases []struct{ Address, Identity, Status string }
		}
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil || status != ExitOK || len(v.Pools) != 1 || v.Pools[0].Size != 254 ||
		len(v.Pools[0].Leases) != 2 || v.Pools[0].Leases[1].Identity != "a.example" {
		t.Errorf("status %d, %v: %s", status, err, out)
	}
	if status, _, errs = call(System{}, "pools", "--socket", path, "none"); status != ExitFailed || !strings.Contains(errs, `no pool "none"`) {
		t.Errorf("a pool that is not there: status %d, %s", status, errs)
	}
}

func TestStatusShowsTheAddressesGiven(t *testing.T) {
	sa := readIKESA(new(control.Message).Set(control.KeyState, "ESTABLISHED").List(control.KeyRemoteVIPs, "10.9.0.1", "fd00:9::1"))
	var b strings.Builder
	sa.table(&b)
	if !strings.Contains(b.String(), "its IP  10.9.0.1 fd00:9::1\n") {
		t.Errorf("the table does not show the client's addresses:\n%s", b.String())
	}
	var j jsonWriter
	j.open("", '{')
	sa.json(&j)
	j.close('}')
	if !strings.Contains(string(j.bytes()), `"remote_vips"`) {
		t.Errorf("the JSON does not show the client's addresses: %s", j.bytes())
	}
}
