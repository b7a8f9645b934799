//go:build (amd64 || arm64) && !purego

package esp

import "unsafe"

// prefetches tells that Prefetch does something: what prepares it can be left out otherwise.
const prefetches = true

// fetchLines has the processor fetch n cache lines from p on, n at least 1. It waits for nothing, and
// addresses that nobody may read do no harm.
//
//go:noescape
func fetchLines(p unsafe.Pointer, n int)
