// Package swanctl reads strongSwan's swanctl.conf and the directories beside it, and makes the
// VICI commands of it that the program swanctl would send to the daemon: boards without that
// program keep their configuration. It reads files and does nothing else; who loads what it has
// read is the caller (see Load).
//
// The way of a configuration through the package:
//
//  1. parse.go: text → sections with their settings, files included
//  2. tree.go: what sections take from others by reference
//  3. requests.go: the commands, with the contents of certificates and keys
//  4. load.go: what is sent in which order, and what is unloaded afterwards
//
// The build tag noswanctl leaves all of it out.
package swanctl
