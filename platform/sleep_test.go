package platform

import (
	"testing"
	"time"
)

func TestSleepIsNotTooShort(t *testing.T) {
	for _, d := range []time.Duration{-time.Second, 0, time.Nanosecond, 300 * time.Microsecond, 2 * time.Millisecond} {
		start := time.Now()
		Sleep(d)
		if got := time.Since(start); got < d {
			t.Errorf("a sleep of %v took %v", d, got)
		}
	}
}
