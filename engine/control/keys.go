package control

// DefaultPath is where the daemon's control socket is unless the configuration says
// otherwise.
const DefaultPath = "/run/postern.sock"

// CharonPath is where strongSwan's daemon has its control socket, and where its clients (swanctl,
// nhrpd, exporters) look for one. It is ours if a swanctl.conf is all of the configuration.
const CharonPath = "/run/charon.vici"

// Commands, with charon's names and meanings. Requests and responses are those of the
// VICI protocol's description; what is listed with them are the keys that we take and
// send. Times are whole seconds (a few are milliseconds, and say so), numbers decimal,
// SPIs hexadecimal without prefix: 16 digits for IKE, 8 for ESP. Conditions that do not
// hold (KeyEncap, KeyInitiator, KeyNATLocal and so on) are left out, never "no": swanctl
// takes their presence for a yes.
const (
	CmdVersion    = "version"         // {} => daemon, version, sysname, release, machine
	CmdStats      = "stats"           // {} => uptime{running since} workers{} queues{} scheduled ikesas{total half-open} plugins[] mallinfo{}; ours: data-path{} counters{}
	CmdReload     = "reload-settings" // {} => success, errmsg, problems[]
	CmdInitiate   = "initiate"        // child, ike (alone: without children, or all of them for who knows KeyOurs), timeout (ms; 0 waits, -1 does not), init-limits, loglevel, my-host, other-host => success, errmsg; streams control-log
	CmdTerminate  = "terminate"       // child, ike, child-id, ike-id, force, timeout (ms), loglevel => success, matches, terminated, errmsg; streams control-log
	CmdRekey      = "rekey"           // child, ike, child-id, ike-id, reauth => success, matches, errmsg
	CmdRedirect   = "redirect"        // ike, ike-id, peer-ip (address, subnet or range), peer-id (with *), gateway => success, matches, errmsg
	CmdListSAs    = "list-sas"        // ike, ike-id, child, child-id => {}; streams list-sa
	CmdListConns  = "list-conns"      // ike => {}; streams list-conn
	CmdListPols   = "list-policies"   // drop, pass, trap, child, ike => {}; streams list-policy
	CmdListSPD    = "list-spd"        // ours: {} => {}; streams list-spd-entry
	CmdTestPolicy = "test-policy"     // ours: src, dst, proto (number), sport, dport (absent: not to be seen), direction => <an entry, if any> fate, child-sa{}
	CmdGetPools   = "get-pools"       // leases (yes), name => <pool>{base size online offline leases{} and the attributes}
	CmdGetAlgs    = "get-algorithms"  // {} => encryption{} integrity{} aead{} and so on: <algorithm> = <who computes it>
	CmdGetCounts  = "get-counters"    // name, all (yes) => counters{<name>{...}} success, errmsg
	CmdResetCount = "reset-counters"  // name, all (yes) => success
	CmdListCerts  = "list-certs"      // type (X509, PUBKEY, X509_CRL, OCSP_RESPONSE, ANY), flag (NONE, CA, ANY), subject => {}; streams list-cert
	CmdSAKeys     = "sa-keys"         // ours: {} => success, errmsg; streams sa-key
)

// Commands that change or list what clients have loaded, beside the configuration file. Each
// answers with success and errmsg unless something else is said.
const (
	CmdLoadConn        = "load-conn"        // <connection>{as in swanctl.conf, with certificates for files}
	CmdUnloadConn      = "unload-conn"      // name
	CmdGetConns        = "get-conns"        // {} => conns[]
	CmdLoadShared      = "load-shared"      // id, type (IKE, PPK, EAP, XAUTH, NTLM), data, owners[]
	CmdUnloadShared    = "unload-shared"    // id
	CmdGetShared       = "get-shared"       // {} => keys[], their ids
	CmdLoadKey         = "load-key"         // type, data => success, errmsg, id
	CmdUnloadKey       = "unload-key"       // id
	CmdGetKeys         = "get-keys"         // {} => keys[], their ids
	CmdLoadToken       = "load-token"       // refused
	CmdLoadCert        = "load-cert"        // type, flag, data
	CmdLoadPool        = "load-pool"        // <pool>{addrs and attributes[]}
	CmdUnloadPool      = "unload-pool"      // name
	CmdLoadAuthority   = "load-authority"   // <authority>{cacert crl_uris[] ocsp_uris[]}
	CmdUnloadAuthority = "unload-authority" // name
	CmdGetAuthorities  = "get-authorities"  // {} => authorities[]
	CmdListAuthorities = "list-authorities" // name => {}; streams list-authority
	CmdClearCreds      = "clear-creds"      // {}: keys, certificates, revocation lists and secrets
	CmdFlushCerts      = "flush-certs"      // type: what was fetched
	CmdInstall         = "install"          // child, ike
	CmdUninstall       = "uninstall"        // child, ike
)

// Keys of these commands.
const (
	KeyConns       = "conns"
	KeyKeys        = "keys"
	KeyAuthorities = "authorities"
	KeyCredID      = "id"
	KeyType        = "type"
	KeyCACert      = "cacert"
	KeyCRLURIs     = "crl_uris"
	KeyOCSPURIs    = "ocsp_uris"
)

// Events, with charon's names.
const (
	EvLog           = "log"            // group, level, thread, ikesa-name, ikesa-uniqueid, msg
	EvControlLog    = "control-log"    // the same without thread, during initiate and terminate
	EvListSA        = "list-sa"        // <connection>{an IKE SA; child-sas{} must be its last element}
	EvListConn      = "list-conn"      // <connection>{local_addrs[] remote_addrs[] version ... children{}}
	EvListPolicy    = "list-policy"    // <connection>/<child>{child ike mode local-ts[] remote-ts[]}
	EvListSPD       = "list-spd-entry" // ours: number, name, action, direction, ike, child, local-ts[] remote-ts[], counters
	EvListCert      = "list-cert"      // type, flag, has_privkey, data (DER), subject of a key; ours, with X509: subject, not-before, not-after (RFC 3339)
	EvListAuthority = "list-authority" // <authority>{cacert crl_uris[] ocsp_uris[]}
	EvSAKey         = "sa-key"         // ours: line, of Wireshark's table esp_sa
	EvIKEUpDown     = "ike-updown"     // up (only if so), <connection>{an IKE SA without child-sas}
	EvIKERekey      = "ike-rekey"      // <connection>{old{} new{}}
	EvIKEUpdate     = "ike-update"     // local-host, local-port, remote-host, remote-port, <connection>{an IKE SA}: it has moved
	EvChildUpDown   = "child-updown"   // up (only if so), <connection>{... child-sas{the one}}
	EvChildRekey    = "child-rekey"    // <connection>{... child-sas{<name>{old{} new{}}}}
	EvAlert         = "alert"          // type, ikesa{<connection>{an IKE SA without child-sas}} if it is about one
)

// Events lists the events that a client can register for.
func Events() []string {
	return []string{EvLog, EvControlLog, EvListSA, EvListConn, EvListPolicy, EvListSPD, EvListCert, EvListAuthority, EvSAKey,
		EvIKEUpDown, EvIKERekey, EvIKEUpdate, EvChildUpDown, EvChildRekey, EvAlert,
		EvChildInstalled, EvChildRekeyedState, EvChildDestroying}
}

// Keys of responses that tell how a command went.
const (
	KeySuccess    = "success"  // yes or no
	KeyErrmsg     = "errmsg"   // why not
	KeyProblems   = "problems" // list; ours: what is wrong in the configuration that reload-settings read
	KeyMatches    = "matches"
	KeyTerminated = "terminated"
)

// Keys of requests.
const (
	KeyOurs     = "postern"  // yes: the client knows the keys that charon does not have, and gets them
	KeyIKE      = "ike"      // name of a connection
	KeyChild    = "child"    // name of a CHILD SA's configuration
	KeyIKEID    = "ike-id"   // unique number
	KeyChildID  = "child-id" // unique number
	KeyTimeout  = "timeout"  // milliseconds
	KeyForce    = "force"    // yes: do not wait for the peer's answer to the delete
	KeyAll      = "all"      // yes
	KeyLogLevel = "loglevel" // charon's: 0 errors, 1 what happens, 2 and above for developers
	KeyPeerIP   = "peer-ip"
	KeyPeerID   = "peer-id"
	KeyGateway  = "gateway"
	KeyReauth   = "reauth"
)

// Keys of version.
const (
	KeyDaemon  = "daemon"
	KeyVersion = "version" // also an IKE SA's ("2") and a connection's ("IKEv2")
	KeySysname = "sysname"
	KeyRelease = "release"
	KeyMachine = "machine"
)

// Keys of stats.
const (
	KeyUptime    = "uptime" // section
	KeyRunning   = "running"
	KeySince     = "since"
	KeyWorkers   = "workers" // section
	KeyQueues    = "queues"  // section
	KeyTotal     = "total"
	KeyIdle      = "idle"
	KeyActive    = "active" // section
	KeyCritical  = "critical"
	KeyHigh      = "high"
	KeyMedium    = "medium"
	KeyLow       = "low"
	KeyScheduled = "scheduled"
	KeyIKESAs    = "ikesas" // section
	KeyHalfOpen  = "half-open"
	KeyPlugins   = "plugins"  // list
	KeyMallinfo  = "mallinfo" // section
	KeySbrk      = "sbrk"
	KeyMmap      = "mmap"
	KeyUsed      = "used"
	KeyFree      = "free"
	KeyDataPath  = "data-path" // section, ours
	KeySockets   = "sockets"
	KeyTUN       = "tun"
	KeyUDP       = "udp"
	KeyESP       = "esp"
	KeySlots     = "sa-slots"      // pairs of ESP SAs that there is room for
	KeySlotsUsed = "sa-slots-used" // also by those on their way in and out
)

// Keys of an IKE SA in list-sa and the ike and child events.
const (
	KeyUniqueID     = "uniqueid" // also a CHILD SA's
	KeyState        = "state"    // also a CHILD SA's
	KeyLocalHost    = "local-host"
	KeyLocalPort    = "local-port"
	KeyLocalID      = "local-id"
	KeyRemoteHost   = "remote-host"
	KeyRemotePort   = "remote-port"
	KeyRemoteID     = "remote-id"
	KeyInitiator    = "initiator" // yes, or absent
	KeyInitiatorSPI = "initiator-spi"
	KeyResponderSPI = "responder-spi"
	KeyNATLocal     = "nat-local"  // yes, or absent
	KeyNATRemote    = "nat-remote" // yes, or absent
	KeyNATAny       = "nat-any"    // yes, or absent
	KeyEncrAlg      = "encr-alg"   // also a CHILD SA's, as the next three
	KeyEncrKeysize  = "encr-keysize"
	KeyIntegAlg     = "integ-alg" // absent with an AEAD
	KeyIntegKeysize = "integ-keysize"
	KeyPRFAlg       = "prf-alg"
	KeyDHGroup      = "dh-group"         // of a CHILD SA: absent without PFS
	KeyPPK          = "ppk"              // yes, if a post-quantum pre-shared key is in its keys, or absent
	KeyPPKID        = "ppk-id"           // which; charon does not say
	KeyLocalProofs  = "local-auth"       // list, a text for each round: "pre-shared key"; ours, as the next
	KeyRemoteProofs = "remote-auth"      // "public key ECDSA_WITH_SHA256_DER C=CH, CN=gw"
	KeyEstablished  = "established"      // seconds ago; only once established
	KeyRekeyTime    = "rekey-time"       // in so many seconds; absent if never; also a CHILD SA's
	KeyReauthTime   = "reauth-time"      // absent: we do not reauthenticate by time
	KeyLifeTime     = "life-time"        // in so many seconds; also a CHILD SA's
	KeyLocalVIPs    = "local-vips"       // list, absent when empty: addresses that the peer has assigned to us
	KeyRemoteVIPs   = "remote-vips"      // the same: that we have given to the peer
	KeyDNSServers   = "dns-servers"      // list, absent when empty, as the rest of what it has assigned (ours): those that are asked
	KeyDNSDomains   = "dns-domains"      // the domains that they are asked for; absent: all, if there are servers
	KeyEncDNS       = "enc-dns"          // encrypted ones, which nobody here is told of: name, addresses, protocols
	KeyNetworks     = "internal-subnets" // networks behind the peer
	KeyTasksQueued  = "tasks-queued"     // lists, absent when empty
	KeyTasksActive  = "tasks-active"
	KeyTasksPassive = "tasks-passive"
	KeyChildSAs     = "child-sas" // section of sections "<name>-<uniqueid>", the last element
)

// KeyAdditionalKE returns the key of the n-th additional key exchange (RFC 9370), 1 to 7: absent
// where there was none; also a CHILD SA's.
func KeyAdditionalKE(n int) string { return "ke" + string(rune('0'+n)) + "-alg" }

// Keys of a CHILD SA within KeyChildSAs.
const (
	KeyName        = "name"
	KeyReqID       = "reqid"
	KeyMode        = "mode"      // TUNNEL
	KeyProtocol    = "protocol"  // ESP
	KeyEncap       = "encap"     // yes, or absent
	KeyFragments   = "fragments" // yes, or absent: later fragments follow their first one (ours alone)
	KeySPIIn       = "spi-in"
	KeySPIOut      = "spi-out"
	KeyPerCPU      = "per-cpu-sas" // yes, or absent
	KeyCPU         = "cpu"         // the worker that an SA is for, from 0
	KeyDSCPClass   = "dscp-class"  // what an SA is for, as it is configured
	KeyESN         = "esn"         // 1, or absent
	KeyBytesIn     = "bytes-in"
	KeyPacketsIn   = "packets-in"
	KeyUseIn       = "use-in" // seconds since the last packet; absent if there was none
	KeyBytesOut    = "bytes-out"
	KeyPacketsOut  = "packets-out"
	KeyUseOut      = "use-out"
	KeyInstallTime = "install-time" // seconds ago
	KeyLocalTS     = "local-ts"     // list
	KeyRemoteTS    = "remote-ts"    // list
)

// Keys of a connection in list-conn. Their underscores are charon's.
const (
	KeyLocalAddrs   = "local_addrs"  // list; "%any" if any
	KeyRemoteAddrs  = "remote_addrs" // list
	KeyReauthTimeC  = "reauth_time"  // seconds, 0 never; also a child's, as the next
	KeyRekeyTimeC   = "rekey_time"
	KeyUnique       = "unique"    // UNIQUE_NO ...
	KeyDPDDelay     = "dpd_delay" // seconds
	KeyPPKIDC       = "ppk_id"    // absent if none
	KeyPPKRequired  = "ppk_required"
	KeyLocalAuth    = "local-1"    // section: class, id, certs; local-2 and so on for further rounds
	KeyRemoteAuth   = "remote-1"   // section: class, id, certs, cacerts, revocation
	KeyClass        = "class"      // "pre-shared key" or "public key"
	KeyCerts        = "certs"      // list of subjects
	KeyCACerts      = "cacerts"    // list of subjects
	KeyRevocation   = "revocation" // GOOD or SKIPPED; absent if only what is known to be revoked is refused
	KeyGroups       = "groups"
	KeyCertPolicy   = "cert_policy"
	KeyPriority     = "priority"
	KeyID           = "id"
	KeyChildren     = "children" // section of sections, each a child
	KeyRekeyBytes   = "rekey_bytes"
	KeyRekeyPackets = "rekey_packets"
	KeyDPDAction    = "dpd_action" // clear, trap, restart
	KeyCloseAction  = "close_action"
	KeyStartAction  = "start_action" // none, trap, start; ours
)

// Keys of list-policies, list-spd and test-policy.
const (
	KeyTrap      = "trap" // yes in a request: those of that kind
	KeyPass      = "pass"
	KeyDrop      = "drop"
	KeyNumber    = "number" // of the entry, from 1
	KeyAction    = "action" // protect, bypass, discard
	KeyDirection = "direction"
	KeyInterface = "interface" // the TUN device of its own, or absent
	KeyDynamic   = "dynamic"   // yes, or absent: CHILD SAs add selectors
	KeySAs       = "sas"       // CHILD SAs bound to the entry
	KeyLine      = "line"      // of sa-key
	KeyDiscarded = "discarded"
	KeyInClear   = "in-clear" // arrived in clear and should not have
	KeySrc       = "src"
	KeyDst       = "dst"
	KeyProto     = "proto"
	KeySport     = "sport"
	KeyDport     = "dport"
	KeyFate      = "fate"     // what becomes of the packet: Fate...
	KeyChildSA   = "child-sa" // section: ike, child, uniqueid, spi-in or spi-out
)

// What becomes of a packet that test-policy asks about.
const (
	FateNone    = "none"    // no entry selects it
	FateBypass  = "bypass"  //
	FateDiscard = "discard" //
	FateSA      = "sa"      // a CHILD SA carries it
	FateAcquire = "acquire" // it waits for a CHILD SA, and asks for one
	FateWait    = "wait"    // it waits for a CHILD SA that is being brought up
	FateNoSA    = "no-sa"   // it has to be protected, and nothing does
)

// Keys of the log events.
const (
	KeyGroup     = "group"  // of charon's: DMN, IKE, CHD, CFG, KNL, NET, ENC, ESP
	KeyLevel     = "level"  // charon's numbers, as KeyLogLevel
	KeyThread    = "thread" // 0: there are none here that could be told apart
	KeyIKESAName = "ikesa-name"
	KeyIKESAID   = "ikesa-uniqueid"
	KeyMsg       = "msg"
	KeyUp        = "up"    // yes, or absent
	KeyIKESA     = "ikesa" // section, of an alert
)

// Keys of get-pools, which has a section for each pool, in charon's order; the attributes are
// lists, absent when empty.
const (
	KeyBase        = "base" // the first address
	KeySize        = "size"
	KeyOnline      = "online"
	KeyOffline     = "offline"
	KeyLeases      = "leases" // section of sections "0", "1", …: address, identity, status; also asks for it
	KeyAddress     = "address"
	KeyIdentity    = "identity"
	KeyStatus      = "status" // "online" or "offline"
	KeyPoolDNS     = "dns"
	KeyPoolNBNS    = "nbns"
	KeyPoolSubnet  = "subnet"
	KeyPoolDomains = "internal_dns_domain"
)

// Keys of list-certs and list-cert.
const (
	KeyCertType   = "type"
	KeyCertFlag   = "flag"
	KeySubject    = "subject"
	KeyHasPrivate = "has_privkey" // yes, if we have the private key
	KeyCertData   = "data"
	KeyNotBefore  = "not-before"
	KeyNotAfter   = "not-after"
)
