// Package e2e holds no code but tests: it runs the postern binary between real network
// namespaces, against itself and against strongSwan, and carries real traffic.
//
// Every test builds a site of its own, five namespaces in a row:
//
//	lana ---- gwa ---- wan ---- gwb ---- lanb
//	10.1.0.10     198.51.100.1   203.0.113.1     10.2.0.10
//	fd01::10      2001:db8:a::1  2001:db8:b::1   fd02::10
//
// wan is a plain router, or a NAT router that hides gwa. It knows no route to the two
// LANs, and both gateways have it as their default route: a packet that ought to be in the
// tunnel and is not shows up on its links, where every test records what passes. The
// daemon on a gateway is postern or Debian's charon with the plugin kernel-libipsec (ESP
// in user space, always in UDP). gwa is the one that initiates, unless a test says otherwise.
//
// The tests need root, /dev/net/tun and the Debian packages that .ci/packages lists.
// What is missing skips the tests that need it and says so; with CI=true or
// POSTERN_E2E=require in the environment it fails them instead. Further environment:
//
//	POSTERN_BIN=FILE   test this binary instead of building the module's main package
//	POSTERN_E2E_KEEP=1 keep the work folder of failed tests (configurations, logs, captures)
//	POSTERN_E2E_LONG=1 outages of the WAN that last 60 s instead of 20 s
//	POSTERN_E2E_PAIRS  run the matrix with these pairs only: postern-postern,
//	                   postern-charon, charon-postern, charon-charon (initiator first)
//
// How long a tunnel takes to work again after this and that is logged in lines that begin with
// "recovery:": with -v, grep makes a table of them.
//
// Namespaces are named pt-PID-N-ROLE; a run removes what a killed run has left.
package e2e
