package platform

import (
	"bytes"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// CPUModel returns the processor's name as /proc/cpuinfo has it, "" where it has none.
func CPUModel() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	return cpuModel(b)
}

// cpuModel finds the name in the text of /proc/cpuinfo. Every architecture writes it in
// a line of its own; ARM has only the board's there, at the end.
func cpuModel(cpuinfo []byte) string {
	for _, want := range []string{"model name", "cpu model", "uarch", "Hardware"} {
		for line := range bytes.Lines(cpuinfo) {
			key, value, _ := bytes.Cut(line, []byte(":"))
			if v := bytes.TrimSpace(value); string(bytes.TrimSpace(key)) == want && len(v) > 0 {
				return string(v)
			}
		}
	}
	return ""
}

// ThreadTime returns how long the calling thread has had a processor, 0 if the kernel
// does not tell.
func ThreadTime() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
