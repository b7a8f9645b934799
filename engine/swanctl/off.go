//go:build noswanctl

package swanctl

// Enabled tells whether the program can read swanctl.conf. What a false constant guards is not
// linked.
const Enabled = false
