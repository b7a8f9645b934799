package platformtest

import (
	"fmt"
	"os"
)

// TUN is a TUN device whose other side, the host's, is in the hands of a test: Send is
// what the host routes into the device, Receive is what comes out of it.
type TUN struct {
	name     string
	toEngine *ring
	toHost   *ring
}

// NewTUN makes a device that holds at most depth packets of at most size octets in each
// direction.
func NewTUN(name string, depth, size int) *TUN {
	return &TUN{name, newRing(depth, size), newRing(depth, size)}
}

// Send lets the host send a packet; false means that it was lost, since depth packets
// wait already or the device is closed.
func (t *TUN) Send(packet []byte) bool { return t.toEngine.put(packet, meta{}) }

// Receive copies the next packet for the host to buf; false means that there is none.
func (t *TUN) Receive(buf []byte) (int, bool) { return t.toHost.tryTake(buf) }

// ReceiveWait is Receive that waits for a packet. After Close it returns os.ErrClosed.
func (t *TUN) ReceiveWait(buf []byte) (int, error) {
	if err := t.toHost.wait(); err != nil {
		return 0, err
	}
	defer t.toHost.mu.Unlock()
	s := t.toHost.take()
	return copy(buf, s.buf[:s.n]), nil
}

// Waiting returns how many packets wait in each direction.
func (t *TUN) Waiting() (toEngine, toHost int) {
	toEngine, _ = t.toEngine.count()
	toHost, _ = t.toHost.count()
	return toEngine, toHost
}

// Lost returns how many packets each direction lost.
func (t *TUN) Lost() (toEngine, toHost int) {
	_, toEngine = t.toEngine.count()
	_, toHost = t.toHost.count()
	return toEngine, toHost
}

// Name returns the name that the device was made with.
func (t *TUN) Name() string { return t.name }

// ReadBatch waits for packets of the host's and returns at most len(bufs) of them:
// packet i is bufs[i][off:off+sizes[i]].
func (t *TUN) ReadBatch(bufs [][]byte, sizes []int, off int) (int, error) {
	if err := t.toEngine.wait(); err != nil {
		return 0, err
	}
	defer t.toEngine.mu.Unlock()
	n := 0
	for ; n < len(bufs) && n < len(sizes) && t.toEngine.n > 0; n++ {
		s := t.toEngine.take()
		sizes[n] = copy(bufs[n][off:], s.buf[:s.n])
	}
	return n, nil
}

// WriteBatch gives the host bufs[i][off:]. As the kernel it refuses what is no IP
// packet, and returns how many it took before.
func (t *TUN) WriteBatch(bufs [][]byte, off int) (int, error) {
	for i, b := range bufs {
		if len(b) <= off || b[off]>>4 != 4 && b[off]>>4 != 6 {
			return i, fmt.Errorf("write to %s: packet %d is neither IPv4 nor IPv6", t.name, i)
		}
		if !t.toHost.put(b[off:], meta{}) && t.isClosed() {
			return i, os.ErrClosed
		}
	}
	return len(bufs), nil
}

func (t *TUN) isClosed() bool {
	t.toHost.mu.Lock()
	defer t.toHost.mu.Unlock()
	return t.toHost.closed
}

// Close wakes everybody who waits.
func (t *TUN) Close() error {
	err := t.toEngine.close()
	t.toHost.close()
	return err
}
