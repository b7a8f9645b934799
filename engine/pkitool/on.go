//go:build !nopki

package pkitool

// Enabled tells whether the program carries the commands. What a false constant guards is not
// linked.
const Enabled = true
