package vici

import (
	"postern/engine/config"
	"postern/engine/control"
)

// stream is what a command sends its events through; see control.Handler.
type stream = func(event string, m *control.Message) error

// command is a command of the protocol: its response, or why it failed.
type command struct {
	name string
	run  func(h Handler, req *control.Message, send stream) (*control.Message, error)
}

// commands are those that control clients have. load-token is one that is refused with a reason.
var commands = []command{
	{control.CmdVersion, tells(func(h Handler, _ *control.Message) *control.Message { return h.version() })},
	{control.CmdStats, answers(Handler.stats)},
	{control.CmdReload, tells(Handler.reload)},
	{control.CmdGetAlgs, tells(func(Handler, *control.Message) *control.Message { return getAlgorithms() })},
	{control.CmdGetCounts, answers(Handler.getCounters)},
	{control.CmdResetCount, answers(Handler.resetCounters)},

	{control.CmdListConns, Handler.listConns},
	{control.CmdListSAs, Handler.listSAs},
	{control.CmdListPols, Handler.listPolicies},
	{control.CmdListCerts, Handler.listCerts},
	{control.CmdListAuthorities, Handler.listAuthorities},
	{control.CmdListSPD, streams(Handler.listSPD)},
	{control.CmdTestPolicy, answers(Handler.testPolicy)},
	{control.CmdSAKeys, streams(Handler.saKeys)},

	{control.CmdInitiate, func(h Handler, req *control.Message, send stream) (*control.Message, error) {
		return control.Success(), h.initiate(req, send)
	}},
	{control.CmdTerminate, Handler.terminate},
	{control.CmdRekey, answers(Handler.rekey)},
	{control.CmdRedirect, answers(Handler.redirect)},
	{control.CmdInstall, does(Handler.install)},
	{control.CmdUninstall, does(Handler.uninstall)},

	{control.CmdLoadConn, does(Handler.loadConn)},
	{control.CmdUnloadConn, does(Handler.unloadConn)},
	{control.CmdGetConns, names(control.KeyConns, (*config.Loaded).ConnNames)},
	{control.CmdLoadShared, does(Handler.loadShared)},
	{control.CmdUnloadShared, does(Handler.unloadShared)},
	{control.CmdGetShared, names(control.KeyKeys, (*config.Loaded).SharedIDs)},
	{control.CmdLoadKey, answers(Handler.loadKey)},
	{control.CmdUnloadKey, does(Handler.unloadKey)},
	{control.CmdGetKeys, names(control.KeyKeys, (*config.Loaded).KeyIDs)},
	{control.CmdLoadToken, does(func(Handler, *control.Message) error { return errNoToken })},
	{control.CmdLoadCert, does(Handler.loadCert)},
	{control.CmdClearCreds, does(func(h Handler, _ *control.Message) error { return h.clearCreds() })},
	{control.CmdFlushCerts, does(Handler.flushCerts)},
	{control.CmdLoadPool, does(Handler.loadPool)},
	{control.CmdUnloadPool, does(Handler.unloadPool)},
	{control.CmdGetPools, answers(Handler.getPools)},
	{control.CmdLoadAuthority, does(Handler.loadAuthority)},
	{control.CmdUnloadAuthority, does(Handler.unloadAuthority)},
	{control.CmdGetAuthorities, names(control.KeyAuthorities, (*config.Loaded).Authorities)},
}

// does is a command of which there is nothing to tell but whether it went well.
func does(f func(Handler, *control.Message) error) func(Handler, *control.Message, stream) (*control.Message, error) {
	return func(h Handler, req *control.Message, _ stream) (*control.Message, error) {
		return control.Success(), f(h, req)
	}
}

// answers is one that streams nothing.
func answers(f func(Handler, *control.Message) (*control.Message, error)) func(Handler, *control.Message, stream) (*control.Message, error) {
	return func(h Handler, req *control.Message, _ stream) (*control.Message, error) { return f(h, req) }
}

// streams is one of which a request says nothing.
func streams(f func(Handler, stream) (*control.Message, error)) func(Handler, *control.Message, stream) (*control.Message, error) {
	return func(h Handler, _ *control.Message, send stream) (*control.Message, error) { return f(h, send) }
}

// tells is one whose response says itself whether it went well.
func tells(f func(Handler, *control.Message) *control.Message) func(Handler, *control.Message, stream) (*control.Message, error) {
	return func(h Handler, req *control.Message, _ stream) (*control.Message, error) { return f(h, req), nil }
}

// names is one that lists the names of what clients have loaded.
func names(key string, list func(*config.Loaded) []string) func(Handler, *control.Message, stream) (*control.Message, error) {
	return func(h Handler, _ *control.Message, _ stream) (*control.Message, error) {
		return new(control.Message).List(key, list(h.D.Loaded())...), nil
	}
}
