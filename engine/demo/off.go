//go:build !demo

package demo

// Enabled tells whether the program carries the demonstration. Devices do without: what a
// false constant guards is not linked.
const Enabled = false
