//go:build !linux

package platform

import "time"

// Sleep is time.Sleep.
func Sleep(d time.Duration) { time.Sleep(d) }

// Hurry does nothing.
func Hurry() {}
