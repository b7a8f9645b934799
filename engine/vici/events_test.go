package vici

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"postern/engine/control"
	"postern/esp"
	"postern/ike"
)

// viewer is a Loop for events: it knows no more of an SA than the machine.
type viewer struct{ Loop }

func (viewer) Now() time.Duration { return time.Hour }

func (viewer) View(sa *ike.SAInfo) SA {
	v := SA{SAInfo: *sa}
	for _, c := range sa.Children {
		v.Children = append(v.Children, Child{ChildInfo: c, ReqID: 1, In: c.Passed.In, Out: c.Passed.Out, LastIn: c.Passed.LastIn})
	}
	return v
}

// keysOf returns the keys of a message in their order, sections and lists as paths.
func keysOf(m *control.Message, at string) (out []string) {
	for _, e := range m.Elements() {
		out = append(out, at+e.Name)
		if e.Kind == control.KindSection {
			out = append(out, keysOf(e.Section, at+e.Name+".")...)
		}
	}
	return out
}

// What charon 5.9.8 sends of an IKE SA without NAT, and of a CHILD SA through which packets came.
const (
	ikeKeys = "uniqueid version state local-host local-port local-id remote-host remote-port remote-id initiator initiator-spi " +
		"responder-spi encr-alg encr-keysize integ-alg prf-alg dh-group"
	childKeys = "name uniqueid reqid state mode protocol encap spi-in spi-out encr-alg encr-keysize bytes-in packets-in use-in " +
		"bytes-out packets-out rekey-time life-time install-time local-ts remote-ts"
)

func sample() *ike.SAInfo {
	return &ike.SAInfo{
		Unique: 3, Conn: "pair", State: ike.StateEstablished, Initiator: true, Established: time.Minute, RekeyAt: 2 * time.Hour, ExpireAt: 3 * time.Hour,
		Path:  ike.Path{Local: netip.MustParseAddrPort("10.9.0.1:4500"), Remote: netip.MustParseAddrPort("10.9.0.2:4500")},
		Suite: ike.IKESuite{Encr: uint16(esp.EncrAESCBC), KeyBits: 256, Integ: uint16(esp.IntegHMACSHA256_128), PRF: ike.PRFHMACSHA256, DH: ike.MODP2048},
		Tasks: []string{"CHILD_REKEY", "IKE_DPD"}, Active: 1, LocalAuth: []ike.Proof{{}},
		Children: []ike.ChildInfo{{
			Unique: 7, Name: "net", State: ike.ChildInstalled, Encap: true, SPIIn: 1, SPIOut: 2, RekeyAt: 2 * time.Hour, ExpireAt: 3 * time.Hour,
			Suite: esp.Suite{Encr: esp.EncrAESGCM16, KeyBits: 128}, Fragments: true,
			Passed: ike.Traffic{In: esp.Usage{Bytes: 84, Packets: 1}, LastIn: time.Minute},
		}},
	}
}

func prefixed(at, keys string) string { return at + strings.ReplaceAll(keys, " ", " "+at) }

func TestEventsHaveCharonsKeysInItsOrder(t *testing.T) {
	v := Events{L: viewer{}}
	established := " established rekey-time tasks-queued tasks-active"
	for _, c := range []struct {
		name string
		e    ike.Event
		want string
	}{
		{"ike-updown", ike.Event{Kind: ike.EvIKEUp}, "up pair " + prefixed("pair.", ikeKeys+established)},
		{"ike-updown, down", ike.Event{Kind: ike.EvIKEDown}, "pair " + prefixed("pair.", ikeKeys+established)},
		{"ike-update", ike.Event{Kind: ike.EvMoved}, "local-host local-port remote-host remote-port pair " + prefixed("pair.", ikeKeys+established)},
		{"ike-rekey", ike.Event{Kind: ike.EvIKERekeyed}, "pair pair.old " + prefixed("pair.old.", ikeKeys+" tasks-queued tasks-active") +
			" pair.new " + prefixed("pair.new.", ikeKeys+established)},
		{"child-updown", ike.Event{Kind: ike.EvChildUp, Child: "net", ChildID: 7}, "up pair " + prefixed("pair.", ikeKeys+established+" child-sas") +
			" pair.child-sas.net-7 " + prefixed("pair.child-sas.net-7.", childKeys)},
		{"child-rekey", ike.Event{Kind: ike.EvChildRekeyed, Child: "net", ChildID: 7, Old: 7}, "pair " + prefixed("pair.", ikeKeys+established+" child-sas") +
			" pair.child-sas.net pair.child-sas.net.old " + prefixed("pair.child-sas.net.old.", childKeys) +
			" pair.child-sas.net.new " + prefixed("pair.child-sas.net.new.", childKeys)},
	} {
		c.e.IKE, c.e.Conn, c.e.SA, c.e.Was = 3, "pair", sample(), sample()
		if got := strings.Join(keysOf(v.message(&c.e), ""), " "); got != c.want {
			t.Errorf("%s: keys are\n%s\nwant charon's\n%s", c.name, got, c.want)
		}
	}
}

func TestEventsSayTheStatesThatCharonHasThen(t *testing.T) {
	v := Events{L: viewer{}}
	e := &ike.Event{Kind: ike.EvChildDown, Child: "net", ChildID: 7, SA: sample(), Err: ike.ErrTerminated}
	if got := v.message(e).Sub("pair").Sub("child-sas").Sub("net-7"); got.Get("state") != "DELETED" || got.Get("bytes-in") != "84" || got.Get("use-in") != "3540" {
		t.Errorf("a closed CHILD SA is %v, want DELETED with all that came through it", got)
	}
	e = &ike.Event{Kind: ike.EvIKERekeyed, SA: sample(), Was: sample()}
	if got := v.message(e).Sub("pair"); got.Sub("old").Get("state") != "REKEYING" || got.Sub("new").Get("state") != "ESTABLISHED" {
		t.Errorf("states of a rekeying of ours are %s and %s, want REKEYING and ESTABLISHED", got.Sub("old").Get("state"), got.Sub("new").Get("state"))
	}
	e.SA.Initiator = false
	if got := v.message(e).Sub("pair").Sub("old").Get("state"); got != "ESTABLISHED" {
		t.Errorf("the old IKE SA of the peer's rekeying is %s, want ESTABLISHED", got)
	}
	// Nothing but the event is left.
	e = &ike.Event{Kind: ike.EvChildDown, Conn: "pair", IKE: 3, Child: "net", ChildID: 9}
	if got := v.message(e).Sub("pair").Sub("child-sas").Sub("net-9").Get("uniqueid"); got != "9" {
		t.Errorf("uniqueid is %q, want 9", got)
	}
}

func TestAlertsHaveCharonsNames(t *testing.T) {
	for _, c := range []struct {
		e    ike.Event
		want string
	}{
		{ike.Event{Kind: ike.EvIKEUp}, ""},
		{ike.Event{Kind: ike.EvIKEDown, Err: ike.ErrTerminated}, ""},
		{ike.Event{Kind: ike.EvIKEDown, Err: ike.ErrTimeout}, "retransmit-send-timeout"},
		{ike.Event{Kind: ike.EvRetransmit}, "retransmit-send"},
		{ike.Event{Kind: ike.EvFailed, Err: ike.ErrTimeout}, "peer-init-unreachable"},
		{ike.Event{Kind: ike.EvFailed, Err: &ike.NotifyError{Type: ike.NotifyAuthenticationFailed}}, "local-auth-failed"},
		{ike.Event{Kind: ike.EvFailed, Err: &ike.NotifyError{Type: ike.NotifyNoProposalChosen}}, "proposal-mismatch-ike"},
		{ike.Event{Kind: ike.EvRefused, IKE: 2, Err: ike.ErrNoProposal}, "proposal-mismatch-child"},
		{ike.Event{Kind: ike.EvRefused, IKE: 2, Err: &ike.TrustError{Err: errors.New("no")}}, "peer-auth-failed"},
		{ike.Event{Kind: ike.EvRefused, IKE: 2, Err: ike.ErrTSMismatch}, "ts-mismatch"},
		{ike.Event{Kind: ike.EvDropped, Err: ike.ErrUnknownSPI}, "invalid-ike-spi"},
		{ike.Event{Kind: ike.EvFailed, Err: errors.New("something else")}, ""},
	} {
		if got := alertOf(&c.e); got != c.want {
			t.Errorf("event %d with %v is the alert %q, want %q", c.e.Kind, c.e.Err, got, c.want)
		}
	}
}

func TestNATIsShownAsCharonShowsIt(t *testing.T) {
	for _, c := range []struct {
		local, peer, fake bool
		want              string
	}{
		{false, false, false, ""}, {true, false, false, "nat-local nat-any"}, {false, true, false, "nat-remote nat-any"},
		{true, false, true, "nat-fake nat-any"}, {true, true, true, "nat-remote nat-any"},
	} {
		v := SA{SAInfo: ike.SAInfo{NATLocal: c.local, NATPeer: c.peer, NATFake: c.fake}}
		m := new(control.Message)
		v.Message(m, time.Hour, false)
		var got []string
		for _, k := range keysOf(m, "") {
			if strings.HasPrefix(k, "nat-") {
				got = append(got, k)
			}
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("NAT before us %v, before the peer %v, pretended %v: %q, want %q", c.local, c.peer, c.fake, s, c.want)
		}
	}
}
