package platform

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"math"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	shell = "/bin/sh"
	// usualPath is the PATH of scripts where the daemon has none.
	usualPath = "/usr/sbin:/usr/bin:/sbin:/bin"
	// maxScriptLine bounds a line of output in octets: one that is longer comes in pieces.
	maxScriptLine = 256
	// lateOutput is how long what the shell has left behind may still say something: a program in the
	// background may keep the pipe open for ever.
	lateOutput = 200 * time.Millisecond
)

// RunScript has the shell run a command in the root directory, with that environment and the PATH of this
// process, and nothing else of it: no descriptors, no terminal, no other process group. What it writes to
// either output is given to line, line by line without its end, or in pieces of 256 octets, until RunScript
// returns; the octets are line's for the call alone. RunScript returns when the shell has ended; what that has
// left running in the background goes on, with nobody who reads what it says. If ctx ends before the shell does,
// the whole process group is killed, and the error wraps ctx.Err(). A shell that ends with another status than 0
// is an error, too.
func RunScript(ctx context.Context, command string, env []string, line func(text []byte)) error {
	fail := func(err error) error { return &OpError{Op: "run", Object: "script", Err: err} }
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	defer func() { _ = r.Close() }()
	null, err := os.OpenFile(os.DevNull, os.O_RDONLY, 0)
	if err != nil {
		_ = w.Close()
		return fail(err)
	}
	keepDescriptors()
	p, err := os.StartProcess(shell, []string{shell, "-c", command}, &os.ProcAttr{
		Dir:   "/",
		Files: []*os.File{null, w, w},
		Env:   append([]string{"PATH=" + cmp.Or(os.Getenv("PATH"), usualPath)}, env...),
		Sys:   &syscall.SysProcAttr{Setpgid: true},
	})
	_ = w.Close()
	_ = null.Close()
	if err != nil {
		return fail(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		splitLines(r, line)
	}()
	alive := context.AfterFunc(ctx, func() { _ = unix.Kill(-p.Pid, unix.SIGKILL) })
	st, err := p.Wait()
	killed := !alive()
	_ = r.SetReadDeadline(time.Now().Add(lateOutput))
	<-read
	switch {
	case err == nil && st.Success():
		return nil
	case killed:
		err = ctx.Err()
	case err == nil:
		err = errors.New(st.String())
	}
	return fail(err)
}

// keepDescriptors lets no descriptor pass on to programs that this process starts, those among them with which it
// was started itself: a script that inherits one keeps open what we close.
func keepDescriptors() {
	const first = 3
	if unix.CloseRange(first, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	// Before Linux 5.11.
	list, _ := os.ReadDir("/proc/self/fd")
	for _, e := range list {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd >= first {
			unix.CloseOnExec(fd)
		}
	}
}

// splitLines gives what it reads to line until it can read no more.
func splitLines(r io.Reader, line func([]byte)) {
	var buf [maxScriptLine]byte
	n := 0
	for {
		m, err := r.Read(buf[n:])
		n += m
		rest := buf[:n]
		for {
			text, after, whole := bytes.Cut(rest, []byte{'\n'})
			if !whole && len(rest) < len(buf) && (err == nil || len(rest) == 0) {
				break
			}
			line(text)
			rest = after
		}
		if n = copy(buf[:], rest); err != nil {
			return
		}
	}
}
