package control

import (
	"os/exec"
	"strings"
	"testing"
)

// plant answers as a daemon with one connection and one tunnel does.
func plant(name string, req *Message, stream func(string, *Message) error) (*Message, bool) {
	switch name {
	case CmdVersion:
		return new(Message).Set(KeyDaemon, "postern").Set(KeyVersion, "1.2.3").Set(KeySysname, "Linux").
			Set(KeyRelease, "6.1").Set(KeyMachine, "mips"), true
	case CmdStats:
		m := new(Message)
		m.Section(KeyUptime).Set(KeyRunning, "12 seconds").Set(KeySince, "Mar 01 12:00:00 2026")
		w := m.Section(KeyWorkers).Set(KeyTotal, "1").Set(KeyIdle, "1")
		w.Section(KeyActive).Set(KeyCritical, "0").Set(KeyHigh, "0").Set(KeyMedium, "0").Set(KeyLow, "0")
		m.Section(KeyQueues).Set(KeyCritical, "0").Set(KeyHigh, "0").Set(KeyMedium, "0").Set(KeyLow, "0")
		m.Set(KeyScheduled, "3")
		m.Section(KeyIKESAs).Set(KeyTotal, "1").Set(KeyHalfOpen, "0")
		return m.List(KeyPlugins, "ike", "esp"), true
	case CmdListConns:
		m := new(Message)
		c := m.Section("plant")
		c.List(KeyLocalAddrs, "%any").List(KeyRemoteAddrs, "192.0.2.2").Set(KeyVersion, "IKEv2").
			Set(KeyReauthTimeC, "0").Set(KeyRekeyTimeC, "14400").Set(KeyDPDDelay, "30")
		c.Section(KeyLocalAuth).Set(KeyClass, "pre-shared key").Set(KeyID, "a.example")
		c.Section(KeyRemoteAuth).Set(KeyClass, "pre-shared key").Set(KeyID, "b.example")
		c.Section(KeyChildren).Section("modbus").Set(KeyMode, "TUNNEL").Set(KeyRekeyTimeC, "3600").Set(KeyRekeyBytes, "0").
			Set(KeyRekeyPackets, "0").Set(KeyDPDAction, "restart").List(KeyLocalTS, "10.1.0.0/24").List(KeyRemoteTS, "10.2.0.0/24")
		_ = stream(EvListConn, m)
		return new(Message), true
	case CmdListSAs:
		m := new(Message)
		s := m.Section("plant")
		s.Set(KeyUniqueID, "7").Set(KeyVersion, "2").Set(KeyState, "ESTABLISHED").
			Set(KeyLocalHost, "192.0.2.1").Set(KeyLocalPort, "4500").Set(KeyLocalID, "a.example").
			Set(KeyRemoteHost, "192.0.2.2").Set(KeyRemotePort, "4500").Set(KeyRemoteID, "b.example").
			Set(KeyInitiator, "yes").Set(KeyInitiatorSPI, "00112233445566ff").Set(KeyResponderSPI, "8899aabbccddee00").
			Set(KeyEncrAlg, "AES_GCM_16").Set(KeyEncrKeysize, "128").Set(KeyPRFAlg, "PRF_HMAC_SHA2_256").Set(KeyDHGroup, "CURVE_25519").
			Set(KeyEstablished, "61").Set(KeyRekeyTime, "14000").List(KeyTasksActive, "CHILD_REKEY")
		s.Section(KeyChildSAs).Section("modbus-3").Set(KeyName, "modbus").Set(KeyUniqueID, "3").Set(KeyReqID, "1").
			Set(KeyState, "INSTALLED").Set(KeyMode, "TUNNEL").Set(KeyProtocol, "ESP").Set(KeyEncap, "yes").
			Set(KeySPIIn, "c1234567").Set(KeySPIOut, "cabcdef0").Set(KeyEncrAlg, "AES_GCM_16").Set(KeyEncrKeysize, "128").Set(KeyESN, "1").
			Set(KeyBytesIn, "1000").Set(KeyPacketsIn, "10").Set(KeyUseIn, "2").Set(KeyBytesOut, "2000").Set(KeyPacketsOut, "20").
			Set(KeyRekeyTime, "3000").Set(KeyLifeTime, "3600").Set(KeyInstallTime, "60").
			List(KeyLocalTS, "10.1.0.0/24").List(KeyRemoteTS, "10.2.0.0/24[tcp/502]")
		_ = stream(EvListSA, m)
		return new(Message), true
	case CmdInitiate:
		_ = stream(EvControlLog, new(Message).Set(KeyGroup, "IKE").Set(KeyLevel, "1").Set(KeyIKESAName, "plant").Set(KeyMsg, "initiating"))
		if req.Get(KeyChild) != "modbus" {
			return new(Message).Set(KeySuccess, "no").Set(KeyErrmsg, "no child "+req.Get(KeyChild)), true
		}
		return Success(), true
	case CmdTerminate:
		return Success().Set(KeyMatches, "1").Set(KeyTerminated, "1"), true
	case CmdRekey:
		return Success().Set(KeyMatches, "1"), true
	case CmdReload:
		return Success(), true
	}
	return nil, false
}

// TestSwanctlUnderstandsTheServer runs the real tool of strongSwan where it is installed.
func TestSwanctlUnderstandsTheServer(t *testing.T) {
	swanctl, err := exec.LookPath("swanctl")
	if err != nil {
		t.Skip("swanctl is not installed (Debian: strongswan-swanctl): the protocol is only tested against our own client")
	}
	s, path := start(t, handlerFunc(plant), Options{})
	for _, tc := range []struct {
		args string
		fail bool
		want []string
	}{
		{"--version --daemon", false, []string{"strongSwan 1.2.3 postern (Linux, 6.1, mips)"}},
		{"--stats", false, []string{"uptime: 12 seconds, since Mar 01 12:00:00 2026", "jobs scheduled: 3", "IKE_SAs: 1 total, 0 half-open", "loaded plugins: ike esp"}},
		{"--list-conns", false, []string{"plant: IKEv2, no reauthentication, rekeying every 14400s, dpd delay 30s", "local pre-shared key authentication:", "id: a.example",
			"modbus: TUNNEL, rekeying every 3600s, dpd action is restart", "local:  10.1.0.0/24"}},
		{"--list-sas", false, []string{"plant: #7, ESTABLISHED, IKEv2, 00112233445566ff_i* 8899aabbccddee00_r", "local  'a.example' @ 192.0.2.1[4500]",
			"AES_GCM_16-128/PRF_HMAC_SHA2_256/CURVE_25519", "established 61s ago, rekeying in 14000s", "active:  CHILD_REKEY",
			"modbus: #3, reqid 1, INSTALLED, TUNNEL-in-UDP, ESP:AES_GCM_16-128/ESN", "in  c1234567,   1000 bytes,    10 packets,     2s ago",
			"out cabcdef0,   2000 bytes,    20 packets\n", "remote 10.2.0.0/24[tcp/502]"}},
		{"--initiate --child modbus", false, []string{"[IKE] initiating", "initiate completed successfully"}},
		{"--initiate --child other", true, []string{"initiate failed: no child other"}},
		{"--terminate --ike plant", false, []string{"terminate completed successfully"}},
		{"--rekey --child modbus", false, []string{"rekey completed successfully"}},
		{"--reload-settings", false, nil},
		{"--list-algs", true, []string{"get-algorithms request failed"}},
	} {
		args := append(strings.Fields(tc.args), "--uri", "unix://"+path)
		out, err := exec.Command(swanctl, args...).CombinedOutput()
		if (err != nil) != tc.fail {
			t.Errorf("swanctl %s: %v\n%s", tc.args, err, out)
			continue
		}
		for _, w := range tc.want {
			if !strings.Contains(string(out), w) {
				t.Errorf("swanctl %s does not say %q but\n%s", tc.args, w, out)
			}
		}
	}
	eventually(t, "the end of swanctl's registrations", func() bool { return !s.Wanted(EvListSA) && !s.Wanted(EvControlLog) })
}
