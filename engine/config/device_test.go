package config

import (
	"fmt"
	"strings"
	"testing"

	"postern/board"
)

// devicesText is a connection with children that have devices of their own.
func devicesText(children ...string) string {
	s := "[connections.a]\nremote_addrs = [\"198.51.100.7\"]\n[secrets.a]\nsecret = \"an example of 24 octets.\"\n"
	for i, c := range children {
		s += fmt.Sprintf("[connections.a.children.c%d]\nlocal_ts = [\"0.0.0.0/0\"]\nremote_ts = [\"0.0.0.0/0\"]\n%s\n", i, c)
	}
	return s
}

func TestChildrenWithDevicesOfTheirOwnDoNotCompete(t *testing.T) {
	c := mustParse(t, devicesText("interface = \"ipsec0\"\ninterface_addrs = [\"10.255.0.1/30\"]", `interface = "ipsec1"`, ""))
	// Only that the peer cannot tell them apart.
	w := c.Warnings()
	for i, name := range []string{"c1", "c2"} {
		if len(w) != 2 || !strings.Contains(w[i].String(), "children c0 and "+name+" of connection a differ in nothing that the peer sees") {
			t.Fatalf("three children with the same selectors on three devices cause the warnings %v", w)
		}
	}
	spd := c.SPD(nil)
	if len(spd) != 3 || spd[0].Device != "ipsec0" || spd[1].Device != "ipsec1" || spd[2].Device != "" {
		t.Fatalf("the SPD is %+v, want two entries of devices and one without", spd)
	}
	flow, err := ParseFlow(strings.Fields("10.0.0.1 10.0.0.2 tcp 1 2"), false)
	if err != nil {
		t.Fatal(err)
	}
	if i := Decide(spd, &flow, false); i != 2 {
		t.Errorf("entry %d decides, want the one without a device, 2: routes decide about the others", i)
	}
	if got := fmt.Sprint(c.Devices()); !strings.HasPrefix(got, "[{ipsec0 [10.255.0.1/30] ") || len(c.Devices()) != 2 {
		t.Errorf("the devices are %s", got)
	}
	// Two on one device do.
	_, err = newLoader("test.toml", noSecretFiles).load([]byte(devicesText(`interface = "ipsec0"`, `interface = "ipsec0"`)))
	if err == nil || !strings.Contains(err.Error(), "never gets a packet") {
		t.Errorf("two children with the same selectors on one device: %v", err)
	}
}

func TestDeviceProblems(t *testing.T) {
	for _, c := range []struct {
		child, more string
		want        string
	}{
		{`interface = "postern0"`, "", "test.toml:8:13: postern0 is the device of [daemon], into which the policies lead; give the child another one"},
		{`interface = "tun%d"`, "", `"tun%d" cannot be the name of an interface`},
		{`interface_addrs = ["10.0.0.1/30"]`, "", "child c0 has no device that could have addresses; write interface"},
		{"interface = \"ipsec0\"\ninterface_addrs = [\"10.0.0.1\"]", "", `"10.0.0.1" is no address of a device with the length of its network`},
		{"interface = \"ipsec0\"\ninterface_addrs = [\"ff02::1/64\"]", "", `"ff02::1/64" is no address of a device with the length of its network`},
		{"interface = \"ipsec0\"\ninterface_addrs = [\"10.0.0.1/30\", \"10.0.0.1/30\"]", "", "test.toml:9:35: \"10.0.0.1/30\" is no address"},
		{"interface = \"ipsec0\"\nmode = \"pass\"", "", "interface means nothing in a child with mode \"pass\""},
		{`interface = "ipsec0"`, "[policies.p]\naction = \"protect\"\nchild = \"a/c0\"\n", "the routes into ipsec0 decide what child c0 protects, and no policy does"},
	} {
		_, err := newLoader("test.toml", noSecretFiles).load([]byte(devicesText(c.child) + c.more))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s%s:\n%v\nwant in it: %s", c.child, c.more, err, c.want)
		}
	}
	text := strings.Replace(devicesText("interface = \"ipsec0\"\nmode = \"transport\""), "local_ts = [\"0.0.0.0/0\"]\nremote_ts = [\"0.0.0.0/0\"]", "", 1)
	_, err := newLoader("test.toml", noSecretFiles).load([]byte(text))
	if err == nil || !strings.Contains(err.Error(), `mode "transport" and a device of its own do not go together`) {
		t.Errorf("transport mode with a device: %v", err)
	}
}

func TestBoardBoundsTheDevices(t *testing.T) {
	var children []string
	for i := range board.Tiny.Devices() + 1 {
		children = append(children, fmt.Sprintf("interface = \"ipsec%d\"", i))
	}
	if err := mustParse(t, devicesText(children[1:]...)).Fits(board.Tiny); err != nil {
		t.Errorf("%d devices do not fit the board that has room for as many: %v", len(children)-1, err)
	}
	err := mustParse(t, devicesText(children...)).Fits(board.Tiny)
	if err == nil || !strings.Contains(err.Error(), "test.toml:16:13: 3 devices of children are more than the board \"tiny\" has room for (2)") {
		t.Errorf("one device more: %v", err)
	}
}
