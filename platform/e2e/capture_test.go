//go:build linux

package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// drainTime is how long the reader of a capture goes on when it is to stop, to take what is in
// the queue.
const drainTime = 200 * time.Millisecond

// snapLen is how much of a frame is kept: all of an ordinary one. What a sender hands to
// the link in one piece for the card to cut (GSO) is longer, and its start is enough.
const snapLen = 2048

// frame is one Ethernet frame on a link of wan.
type frame struct {
	link string // a0 towards gwa, b0 towards gwb
	at   time.Time
	data []byte
	wire int // octets on the wire
}

// capture records what passes on both links of wan from the moment it is made.
type capture struct {
	t      *testing.T
	dir    string
	stopF  atomic.Bool
	stopAt atomic.Int64 // UnixNano
	done   chan []frame
	fds    []int
	n      int
}

// capture starts recording.
func (s *site) capture() *capture {
	s.t.Helper()
	c := &capture{t: s.t, dir: s.dir, done: make(chan []frame, 2)}
	for _, link := range []string{"a0", "b0"} {
		var fd int
		err := inNamespace(s.wan, func() error {
			dev, err := net.InterfaceByName(link)
			if err != nil {
				return err
			}
			if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
				return fmt.Errorf("packet socket: %w", err)
			}
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
				return fmt.Errorf("buffer of the packet socket: %w", err)
			}
			// The kernel's time of each frame: the reader's own depends on what else runs.
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
				return fmt.Errorf("time stamps of the packet socket: %w", err)
			}
			// The timeout lets the reader see that it shall stop, after it has drained the queue.
			if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50000}); err != nil {
				return err
			}
			all := uint16(unix.ETH_P_ALL)
			return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8, Ifindex: dev.Index})
		})
		if err != nil {
			s.t.Fatalf("capture on %s: %v", link, err)
		}
		c.fds = append(c.fds, fd)
		c.n++
		go c.read(link, fd)
	}
	s.t.Cleanup(func() { c.stop() })
	return c
}

func (c *capture) read(link string, fd int) {
	var frames []frame
	buf, oob := make([]byte, snapLen), make([]byte, 64)
	for {
		// MSG_TRUNC: the length that the frame had, not that of the buffer.
		n, oobn, _, _, err := unix.Recvmsg(fd, buf, oob, unix.MSG_TRUNC)
		if err != nil {
			if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) && !c.stopF.Load() {
				continue
			}
			break
		}
		now := time.Now()
		if at := c.stopAt.Load(); at != 0 && now.Sub(time.Unix(0, at)) > drainTime {
			break // the traffic goes on without us
		}
		frames = append(frames, frame{link, stamp(oob[:oobn], now), bytes.Clone(buf[:min(n, len(buf))]), n})
	}
	if st, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil && st.Drops > 0 {
		c.t.Errorf("capture on %s lost %d frames: what it says about the others proves nothing", link, st.Drops)
	}
	unix.Close(fd)
	c.done <- frames
}

// stamp returns the time that the kernel tells of a frame, or another one if it tells none.
func stamp(oob []byte, or time.Time) time.Time {
	if len(oob) < unix.CmsgLen(16) {
		return or
	}
	h, b, _, err := unix.ParseOneSocketControlMessage(oob)
	if err != nil || h.Type != unix.SCM_TIMESTAMPNS || len(b) < 16 {
		return or
	}
	return time.Unix(int64(binary.NativeEndian.Uint64(b)), int64(binary.NativeEndian.Uint64(b[8:])))
}

// stop ends the recording, writes it to pcap files and returns it, in the order of time.
func (c *capture) stop() wire {
	if c.stopF.Swap(true) {
		return nil
	}
	c.stopAt.Store(time.Now().UnixNano())
	var frames []frame
	for range c.n {
		frames = append(frames, <-c.done...)
	}
	slices.SortStableFunc(frames, func(a, b frame) int { return a.at.Compare(b.at) })
	for _, link := range []string{"a0", "b0"} {
		if err := os.WriteFile(filepath.Join(c.dir, link+".pcap"), pcap(frames, link), 0o644); err != nil {
			c.t.Error(err)
		}
	}
	return classify(frames)
}

// pcap returns the frames of a link in libpcap's file format.
func pcap(frames []frame, link string) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 0xa1b2c3d4)
	b = binary.LittleEndian.AppendUint16(b, 2)
	b = binary.LittleEndian.AppendUint16(b, 4)
	b = append(b, make([]byte, 8)...)
	b = binary.LittleEndian.AppendUint32(b, snapLen)
	b = binary.LittleEndian.AppendUint32(b, 1) // Ethernet
	for _, f := range frames {
		if f.link == link {
			b = binary.LittleEndian.AppendUint32(b, uint32(f.at.Unix()))
			b = binary.LittleEndian.AppendUint32(b, uint32(f.at.Nanosecond()/1000))
			b = binary.LittleEndian.AppendUint32(b, uint32(len(f.data)))
			b = binary.LittleEndian.AppendUint32(b, uint32(f.wire))
			b = append(b, f.data...)
		}
	}
	return b
}

// wire is a recording of both links.
type wire []packet

// nothingInClear fails the test if anything but IKE, ESP and the links' own business
// (ARP, neighbour discovery) passed, or if one of the marks, which the test has put into
// what it sent, can be read anywhere. It also fails if no ESP passed in one of the directions,
// because then the recording proves nothing.
func (w wire) nothingInClear(t *testing.T, marks ...[]byte) {
	t.Helper()
	w.noClear(t, marks...)
	if n := w.count("a0", "b0", isESP); n == 0 {
		t.Errorf("no ESP went from gwa to gwb: %s", w.summary())
	}
	if n := w.count("b0", "a0", isESP); n == 0 {
		t.Errorf("no ESP went from gwb to gwa: %s", w.summary())
	}
}

// noClear is nothingInClear without the demand that ESP passed.
func (w wire) noClear(t *testing.T, marks ...[]byte) {
	t.Helper()
	var clear []string
	for i, p := range w {
		if p.class == classClear {
			clear = append(clear, fmt.Sprintf("frame %d on %s: %s", i, p.link, p.what))
		}
		for _, m := range marks {
			if bytes.Contains(p.data, m) {
				clear = append(clear, fmt.Sprintf("frame %d on %s: carries the test's mark %q", i, p.link, m))
			}
		}
	}
	if len(clear) > 0 {
		t.Errorf("%d frames went over the WAN in clear, the first: %s", len(clear), strings.Join(clear[:min(5, len(clear))], "; "))
	}
	w.uniqueSequence(t)
}

// noClearFrom fails the test if the gateway of that side let anything out in clear, or the
// mark with it, whatever the other one did.
func (w wire) noClearFrom(t *testing.T, side byte) {
	t.Helper()
	var clear []string
	for i, p := range w {
		if p.class == classClear && p.from() == side {
			clear = append(clear, fmt.Sprintf("frame %d on %s: %s", i, p.link, p.what))
		}
	}
	if len(clear) > 0 {
		t.Errorf("%d frames of side %c went over the WAN in clear, the first: %s", len(clear), side, strings.Join(clear[:min(5, len(clear))], "; "))
	}
}

// uniqueSequence fails the test if a sequence number was used twice under one SPI: with an
// AEAD that would give the key away (RFC 4106 section 3.1).
func (w wire) uniqueSequence(t *testing.T) {
	t.Helper()
	type key struct {
		link, src string
		spi, seq  uint32
	}
	seen := map[key]bool{}
	for _, p := range w {
		if isESP(p) && p.first {
			k := key{p.link, p.src.String(), p.spi, p.seq}
			if seen[k] {
				t.Errorf("sequence number %d was used twice under SPI %08x", p.seq, p.spi)
				return
			}
			seen[k] = true
		}
	}
}

// isESP tells whether a packet carries ESP, with or without UDP.
func isESP(p packet) bool { return p.class == classESP || p.class == classUDPESP }

// class returns a filter for one class.
func isClass(c class) func(packet) bool { return func(p packet) bool { return p.class == c } }

// count counts the packets that a filter takes and that go from one side of wan to the
// other, on the link where they arrive at wan; each is counted once.
func (w wire) count(from, _ string, ok func(packet) bool) int {
	n := 0
	for _, p := range w {
		if p.link == from && p.fromGateway(from) && ok(p) {
			n++
		}
	}
	return n
}

// ike returns the IKE messages of one exchange type that came from the gateway at that link.
func (w wire) ike(from string, exchange uint8) []packet {
	var out []packet
	for _, p := range w {
		if p.class == classIKE && p.link == from && p.fromGateway(from) && p.ike.exchange == exchange {
			out = append(out, p)
		}
	}
	return out
}

// summary counts the packets per class and link.
func (w wire) summary() string {
	n := map[string]int{}
	for _, p := range w {
		n[p.link+" "+p.class.String()]++
	}
	var out []string
	for k, v := range n {
		out = append(out, fmt.Sprintf("%s: %d", k, v))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// tsharkAgrees lets an independent program read a link's recording: it must find ESP in it
// and nothing that is not IKE, ESP, ARP or neighbour discovery.
func tsharkAgrees(t *testing.T, s *site, link string) {
	t.Helper()
	file := filepath.Join(s.dir, link+".pcap")
	out, err := command("tshark", "-n", "-r", file, "-Y",
		"!(isakmp || esp || udpencap || arp || (icmpv6.type >= 133 && icmpv6.type <= 137) || icmpv6.type == 143)",
		"-T", "fields", "-e", "frame.number", "-e", "_ws.col.Protocol", "-e", "_ws.col.Info")
	if err != nil {
		t.Errorf("tshark -r %s: %v\n%s", file, err, out)
	}
	if found := matching(dropRootWarning(out), ""); strings.TrimSpace(strings.Join(found, "")) != "" {
		t.Errorf("tshark found in %s what is neither IKE nor ESP: %s", file, tail(strings.Join(found, "\n"), 5))
	}
	out, err = command("tshark", "-n", "-r", file, "-Y", "esp", "-T", "fields", "-e", "esp.spi")
	if err != nil || strings.TrimSpace(dropRootWarning(out)) == "" {
		t.Errorf("tshark found no ESP in %s (%v)", file, err)
	}
}

// dropRootWarning takes out what tshark says when it is run as root.
func dropRootWarning(s string) string {
	var out []string
	for line := range strings.SplitSeq(s, "\n") {
		if !strings.HasPrefix(line, "Running as user") {
			out = append(out, line)
		}
	}
	return strings.Join(out, "\n")
}
