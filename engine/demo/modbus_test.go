package demo

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net"
	"testing"
	"time"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The exchanges of the Modbus specification's examples (sections 6.3, 6.6 and 6.12),
// and what must be refused.
func TestServerAnswersAsTheSpecificationSays(t *testing.T) {
	r := NewRegisters(200)
	r.regs[107], r.regs[108], r.regs[109] = 0x022b, 0x0000, 0x0064
	for _, tc := range []struct{ name, req, resp string }{
		{"read 108 to 110", "03006b0003", "0306022b00000064"},
		{"write register 2", "0600010003", "0600010003"},
		{"write two from 2 on", "100001000204000a0102", "1000010002"},
		{"read them back", "0300010002", "0304000a0102"},
		{"the last register", "0300c70001", "03020000"},
		{"beyond the last", "0300c70002", "8302"},
		{"write beyond the last", "0600c80001", "8602"},
		{"write two over the end", "1000c70002040001" + "0001", "9002"},
		{"no register", "0300000000", "8303"},
		{"too many registers", "030000007e", "8303"},
		{"too short", "03000000", "8303"},
		{"too long", "030000000100", "8303"},
		{"octet count does not fit", "10000100020300010001", "9003"},
		{"unknown function", "2b0e0100", "ab01"},
	} {
		if got := r.answer(nil, unhex(t, tc.req)); !bytes.Equal(got, unhex(t, tc.resp)) {
			t.Errorf("%s: %s is answered with %x, want %s", tc.name, tc.req, got, tc.resp)
		}
	}
}

func TestClientAndServerUnderstandEachOther(t *testing.T) {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go NewRegisters(100).Serve(l)
	conn, err := net.DialTCP("tcp4", nil, l.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	m := NewModbus(conn, 5*time.Second)
	defer func() { _ = m.Close() }()
	if err = m.Write(7, 0xbeef); err != nil {
		t.Error(err)
	}
	if err = m.WriteAll(8, []uint16{1, 2, 3}); err != nil {
		t.Error(err)
	}
	got, err := m.Read(6, 5)
	if err != nil || len(got) != 5 || got[0] != 0 || got[1] != 0xbeef || got[4] != 3 {
		t.Errorf("read %x, %v, want 0, beef, 1, 2, 3", got, err)
	}
	var e Exception
	if _, err = m.Read(99, 2); !errors.As(err, &e) || e != illegalAddress {
		t.Errorf("reading over the end gives %v, want an illegal address", err)
	}
	if _, err = m.Read(0, 1); err != nil {
		t.Errorf("the connection does not outlive an exception: %v", err)
	}
}

func TestClientNoticesWrongAnswers(t *testing.T) {
	for name, resp := range map[string]string{
		"another transaction": "00020000000501" + "03020001",
		"another function":    "00010000000501" + "06020001",
		"too few registers":   "00010000000501" + "03020001",
		"another protocol":    "00010001000501" + "03020001",
		"no data":             "000100000001" + "01",
	} {
		ours, theirs := net.Pipe()
		go func() {
			b := make([]byte, 64)
			_, _ = theirs.Read(b)
			_, _ = theirs.Write(unhex(t, resp))
		}()
		if regs, err := NewModbus(ours, 5*time.Second).Read(0, 2); !errors.Is(err, errModbus) {
			t.Errorf("%s: %x, %v, want an error", name, regs, err)
		}
		_ = ours.Close()
		_ = theirs.Close()
	}
}

// stream is a connection with fixed input.
type stream struct {
	in  *bytes.Reader
	out bytes.Buffer
}

func (s *stream) Read(b []byte) (int, error)  { return s.in.Read(b) }
func (s *stream) Write(b []byte) (int, error) { return s.out.Write(b) }

func FuzzModbusServer(f *testing.F) {
	for _, s := range []string{"000100000006010300000001", "00010000000601060001ffff", "00010000000b0110000100020400010002", "0001000000020103", "000100000001"} {
		b, err := hex.DecodeString(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &stream{in: bytes.NewReader(b)}
		NewRegisters(16).serve(s)
		// Whatever came in, what goes out are whole responses.
		buf := make([]byte, mbapLen+maxPDU)
		for s.out.Len() > 0 {
			if _, _, pdu, err := readADU(&s.out, buf); err != nil || len(pdu) < 2 {
				t.Fatalf("%x is answered with what is no response: %v", b, err)
			}
		}
	})
}
