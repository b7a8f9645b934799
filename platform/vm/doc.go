// Package vm tests what needs another kernel than that of the host: postern against Linux's own
// XFRM. It boots one of Debian's kernels in qemu, without acceleration, and has no code of its own
// beside its tests and the program in guest, which is the machine's first process.
package vm
