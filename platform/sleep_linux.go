package platform

import (
	"time"

	"golang.org/x/sys/unix"
)

// Sleep returns after d, and not earlier. Unlike time.Sleep, whose precision depends on what else
// the process does, it keeps a thread waiting in the kernel.
func Sleep(d time.Duration) {
	left := unix.NsecToTimespec(int64(d))
	for d > 0 && unix.Nanosleep(&left, &left) == unix.EINTR {
	}
}

// Hurry gives the thread that calls it precedence over others of the system, if the process may,
// and has its timers end on time: it is woken sooner where there is much to do. The goroutine
// should keep the thread.
func Hurry() {
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), -10)
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
}
