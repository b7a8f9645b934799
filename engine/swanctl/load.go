package swanctl

import (
	"fmt"
	"slices"

	"postern/engine/control"
)

// Call sends a command to the daemon and returns its response. An error means that the daemon
// could not be asked, or does not know the command.
type Call func(command string, m *control.Message) (*control.Message, error)

// Say is told what Load does, in swanctl's words; bad are those that swanctl writes to standard
// error.
type Say func(bad bool, line string)

// Load loads what a configuration has into the daemon and unloads what an earlier one had and this
// one does not have any more, in the order of swanctl --load-all. What the daemon refuses is
// reported, and the rest loads; failed is how many authorities, pools and connections it was, or
// could not be sent. (swanctl leaves out connections if an authority or a pool fails.) An error is
// Call's, and ends it.
func (s *Set) Load(call Call, say Say) (failed int, err error) {
	l := &loader{call: call, say: say}
	for _, w := range s.Warnings {
		say(true, w.Error())
	}
	l.credentials(s.Requests)
	failed += l.part(s.Requests, control.CmdLoadAuthority, control.CmdGetAuthorities, control.CmdUnloadAuthority, "authority", "authorities")
	failed += l.part(s.Requests, control.CmdLoadPool, control.CmdGetPools, control.CmdUnloadPool, "pool", "pools")
	failed += l.part(s.Requests, control.CmdLoadConn, control.CmdGetConns, control.CmdUnloadConn, "connection", "connections")
	return failed, l.err
}

// loader is one run of Load. Once a call has failed it does nothing any more.
type loader struct {
	call Call
	say  Say
	err  error
}

func (l *loader) ask(command string, m *control.Message) *control.Message {
	if l.err != nil {
		return nil
	}
	resp, err := l.call(command, m)
	if err != nil {
		l.err = fmt.Errorf("%s request failed: %w", command, err)
		return nil
	}
	return resp
}

// try sends a command that may be refused, and tells how it went.
func (l *loader) try(command string, m *control.Message, bad string) (*control.Message, bool) {
	resp := l.ask(command, m)
	if l.err != nil {
		return nil, false
	}
	if resp.Get(control.KeySuccess) == "yes" {
		return resp, true
	}
	l.say(true, bad+" failed: "+resp.Get(control.KeyErrmsg))
	return resp, false
}

// credentials loads keys, certificates and secrets, and unloads keys and secrets that are gone.
// (Certificates stay until the credentials are cleared: nothing names them.)
func (l *loader) credentials(list []Request) {
	keys := l.ask(control.CmdGetKeys, nil).Items(control.KeyKeys)
	shared := l.ask(control.CmdGetShared, nil).Items(control.KeyKeys)
	for _, r := range list {
		switch r.Command {
		case control.CmdLoadCert:
			if _, ok := l.try(r.Command, r.Message, "loading '"+r.Name+"'"); ok {
				l.say(false, "loaded certificate from '"+r.Name+"'")
			}
		case control.CmdLoadKey, control.CmdLoadToken:
			resp, ok := l.try(r.Command, r.Message, "loading '"+r.Name+"'")
			if !ok {
				continue
			}
			id := resp.Get(control.KeyCredID)
			keys = without(keys, id)
			if r.Command == control.CmdLoadToken {
				l.say(false, "loaded key "+r.Name+" from token [keyid: "+id+"]")
			} else {
				l.say(false, "loaded "+r.Kind+" key from '"+r.Name+"'")
			}
		case control.CmdLoadShared:
			shared = without(shared, r.Name)
			if _, ok := l.try(r.Command, r.Message, "loading shared secret"); ok {
				l.say(false, "loaded "+r.Kind+" secret '"+r.Name+"'")
			}
		}
	}
	for _, id := range keys {
		l.try(control.CmdUnloadKey, new(control.Message).Set(control.KeyCredID, id), "unloading key '"+id+"'")
	}
	for _, id := range shared {
		l.try(control.CmdUnloadShared, new(control.Message).Set(control.KeyCredID, id), "unloading shared secret '"+id+"'")
	}
}

// part loads what goes with one command, unloads what the daemon has beyond it, and returns how
// many were not loaded.
func (l *loader) part(list []Request, load, get, unload, one, many string) int {
	resp := l.ask(get, nil)
	gone := resp.Items(many)
	switch get {
	case control.CmdGetConns:
		gone = resp.Items(control.KeyConns)
	case control.CmdGetPools:
		for _, e := range resp.Elements() {
			if e.Kind == control.KindSection {
				gone = append(gone, e.Name)
			}
		}
	}
	found, loaded, unloaded := 0, 0, 0
	for _, r := range list {
		if r.Command != load {
			continue
		}
		found++
		gone = without(gone, r.Name)
		if r.Err != nil {
			l.say(true, r.Err.Error())
		} else if _, ok := l.try(load, r.Message, "loading "+one+" '"+r.Name+"'"); ok {
			loaded++
			l.say(false, "loaded "+one+" '"+r.Name+"'")
		}
	}
	for _, name := range gone {
		if _, ok := l.try(unload, new(control.Message).Set(control.KeyName, name), "unloading "+one+" '"+name+"'"); ok {
			unloaded++
		}
	}
	switch {
	case l.err != nil:
	case found == 0:
		l.say(get == control.CmdGetAuthorities, fmt.Sprintf("no %s found, %d unloaded", many, unloaded))
	case loaded == found:
		l.say(false, fmt.Sprintf("successfully loaded %d %s, %d unloaded", loaded, many, unloaded))
	default:
		l.say(true, fmt.Sprintf("loaded %d of %d %s, %d failed to load, %d unloaded", loaded, found, many, found-loaded, unloaded))
	}
	return found - loaded
}

// without returns the list without name.
func without(list []string, name string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return s == name })
}
