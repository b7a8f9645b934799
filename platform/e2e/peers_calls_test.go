//go:build linux && peers

package e2e

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// callCounter counts the system calls of a process, as the kernel's tracepoint at their
// entry sees them. Counting so costs some ten nanoseconds each. A tracer such as strace
// stops the process twice for each, makes it slower by orders of magnitude, and so makes
// batches larger: it would measure another program.
type callCounter struct{ fds []int }

// countCalls starts to count for all threads that the process has, and for those that
// they start.
func countCalls(p *process) (*callCounter, error) {
	event, err := callsTracepoint()
	if err != nil {
		return nil, err
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.cmd.Process.Pid))
	if err != nil {
		return nil, err
	}
	c := new(callCounter)
	attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_TRACEPOINT, Size: unix.PERF_ATTR_SIZE_VER0, Config: event, Bits: unix.PerfBitInherit}
	for _, thread := range threads {
		fd, err := unix.PerfEventOpen(&attr, atoi(thread.Name()), -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
		if err == unix.ESRCH {
			continue // it has ended meanwhile
		}
		if err != nil {
			c.close()
			return nil, fmt.Errorf("perf_event_open: %w", err)
		}
		c.fds = append(c.fds, fd)
	}
	return c, nil
}

// read returns the calls so far.
func (c *callCounter) read() (n uint64, err error) {
	for _, fd := range c.fds {
		var b [8]byte
		if got, err := unix.Read(fd, b[:]); err != nil || got != len(b) {
			return 0, fmt.Errorf("read a counter: %d octets, %w", got, err)
		}
		n += binary.NativeEndian.Uint64(b[:])
	}
	return n, nil
}

func (c *callCounter) close() {
	for _, fd := range c.fds {
		unix.Close(fd)
	}
}

// callsTracepoint returns the kernel's number of the tracepoint that every system call
// passes. The file system that tells it is mounted for that moment only.
func callsTracepoint() (uint64, error) {
	dir := filepath.Join(workDir, "tracefs")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, err
	}
	if err := unix.Mount("tracefs", dir, "tracefs", 0, ""); err != nil {
		return 0, fmt.Errorf("the kernel has no tracepoints: mount tracefs: %w", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	b, err := os.ReadFile(filepath.Join(dir, "events/raw_syscalls/sys_enter/id"))
	if err != nil {
		return 0, fmt.Errorf("the kernel does not trace system calls: %w", err)
	}
	return uint64(atoi(strings.TrimSpace(string(b)))), nil
}

// counting runs f, which returns how many octets of payload arrived, and books the system
// calls of each gateway per 10^6 of them.
func (c *contender) counting(a, b measure, f func(begin, end func()) (octets float64, err error)) (string, error) {
	if c.a == nil {
		return "no gateways", nil
	}
	var calls [2]float64
	var counters [2]*callCounter
	for i, p := range []*process{c.a, c.b} {
		var err error
		if counters[i], err = countCalls(p); err != nil {
			return "not counted: " + err.Error(), nil
		}
		defer counters[i].close()
	}
	var failed error
	note := func(sign float64) func() {
		return func() {
			for i := range counters {
				n, err := counters[i].read()
				if err != nil {
					failed = err
				}
				calls[i] += sign * float64(n)
			}
		}
	}
	octets, err := f(note(-1), note(1))
	if err = cmpErr(err, failed); err != nil {
		return "", err
	}
	for i, m := range []measure{a, b} {
		c.measured[m] = append(c.measured[m], calls[i]/(octets/1e6))
	}
	return fmt.Sprintf("%7.1f system calls/MB of the sender, %.1f of the receiver; %.0f MB", calls[0]/(octets/1e6), calls[1]/(octets/1e6), octets/1e6), nil
}

// streamCalls counts for one TCP stream.
func (c *contender) streamCalls(d time.Duration) (string, error) {
	return c.counting(callsTCPA, callsTCPB, func(begin, end func()) (float64, error) {
		begin()
		defer end()
		r, err := c.s.iperf3(hostB4, "-B", hostA4.String(), "-t", itoa(int(d.Seconds())))
		return r.mbits * d.Seconds() * 1e6 / 8, err
	})
}

// packetCalls counts for small UDP packets at capacity.
func (c *contender) packetCalls(d time.Duration) (string, error) {
	return c.counting(callsUDPA, callsUDPB, func(begin, end func()) (float64, error) {
		r, err := c.s.floodBetween(udpPayload, *peersWindow, d, begin, end)
		return float64(r.arrived) * udpPayload, err
	})
}
