package control

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
)

// example is the structure that the protocol's description uses as its example.
func example() (*Message, []byte) {
	m := new(Message).Set("key1", "value1")
	s := m.Section("section1")
	s.Section("sub-section").Set("key2", "value2")
	s.List("list1", "item1", "item2")
	var w []byte
	name := func(kind byte, n string) { w = append(append(w, kind, byte(len(n))), n...) }
	value := func(v string) { w = append(append(w, 0, byte(len(v))), v...) }
	name(3, "key1")
	value("value1")
	name(1, "section1")
	name(1, "sub-section")
	name(3, "key2")
	value("value2")
	w = append(w, 2)
	name(4, "list1")
	w = append(w, 5)
	value("item1")
	w = append(w, 5)
	value("item2")
	w = append(w, 6, 2)
	return m, w
}

func TestMessageIsEncodedAsTheDescriptionSays(t *testing.T) {
	m, want := example()
	got, err := m.Append([]byte("ahead"))
	if err != nil || !bytes.Equal(got, append([]byte("ahead"), want...)) {
		t.Fatalf("encoded to\n%q, %v, want\n%q behind what was there", got, err, want)
	}
	back, err := Decode(want)
	if err != nil || !reflect.DeepEqual(back, m) {
		t.Fatalf("decoded to %v, %v, want %v", back, err, m)
	}
	if v := back.Sub("section1").Sub("sub-section").Get("key2"); v != "value2" {
		t.Errorf("key2 reads %q", v)
	}
	if l := back.Sub("section1").Items("list1"); len(l) != 2 || l[1] != "item2" {
		t.Errorf("list1 reads %q", l)
	}
	if v, ok := back.Sub("none").Sub("below").Lookup("k"); v != "" || ok {
		t.Error("what is not there must read as nothing")
	}
}

func TestSetReplacesInPlace(t *testing.T) {
	m := new(Message).Set("a", "1").SetInt("b", -2).SetUint("c", 3).SetBool("d", true)
	m.Set("a", "9").SetBool("d", false)
	if got := m.String(); got != `a="9" b="-2" c="3" d="no"` {
		t.Errorf("message is %s", got)
	}
	if v, ok := m.GetInt("b"); v != -2 || !ok {
		t.Errorf("b = %d, %v", v, ok)
	}
	if _, ok := m.GetUint("b"); ok {
		t.Error("-2 passes for an unsigned number")
	}
	if m.GetBool("d") || !new(Message).Set("d", "yes").GetBool("d") {
		t.Error("yes and no are mixed up")
	}
}

func TestDecodeRefusesWhatIsNoMessage(t *testing.T) {
	deep := strings.Repeat("\x01\x01s", maxDepth+1) + strings.Repeat("\x02", maxDepth+1)
	fits := strings.Repeat("\x01\x01s", maxDepth) + strings.Repeat("\x02", maxDepth)
	if _, err := Decode([]byte(fits)); err != nil {
		t.Errorf("%d levels are refused: %v", maxDepth, err)
	}
	for _, tc := range []struct{ in, element, reason string }{
		{"\x02", "", "never started"},
		{"\x01\x04conn", "conn", "no end"},
		{"\x01\x04conn\x02\x02", "", "never started"},
		{"\x01", "", "name is missing"},
		{"\x03\x05ab", "", "name is cut off"},
		{"\x03\x02a\n\x00\x00", "", "printable"},
		{"\x03\x02ab", "ab", "length is missing"},
		{"\x03\x02ab\x00\x03xy", "ab", "value is cut off"},
		{"\x04\x02ab", "ab", "list has no end"},
		{"\x04\x02ab\x05\x00\x01x", "ab", "list has no end"},
		{"\x04\x02ab\x05\x00", "ab", "length is missing"},
		{"\x04\x02ab\x03\x01c\x00\x00\x06", "ab", "inside a list"},
		{"\x04\x02ab\x02", "ab", "inside a list"},
		{"\x05\x00\x01x", "", "outside a list"},
		{"\x06", "", "never started"},
		{"\x01\x04conn\x00", "conn", "unknown element type 0"},
		{"\x07", "", "unknown element type 7"},
		{deep, "s", "too deep"},
		{strings.Repeat("\x03\x00\x00\x00", maxElements+1), "", "too many"},
		{"\x04\x01l" + strings.Repeat("\x05\x00\x00", maxElements+1) + "\x06", "l", "too many"},
	} {
		m, err := Decode([]byte(tc.in))
		var se *SyntaxError
		if !errors.As(err, &se) || se.Element != tc.element || !strings.Contains(se.Reason, tc.reason) {
			t.Errorf("Decode(%.40q) = %v, %v, want an error about element %q: %q", tc.in, m, err, tc.element, tc.reason)
		}
	}
}

func TestAppendRefusesWhatDoesNotFit(t *testing.T) {
	long := strings.Repeat("x", maxValue)
	if _, err := new(Message).Set(long[:maxName], long).List("l", long).Append(nil); err != nil {
		t.Errorf("the longest name and value are refused: %v", err)
	}
	deep := new(Message)
	for m, i := deep, 0; i <= maxDepth; i++ {
		m = m.Section("s")
	}
	for _, m := range []*Message{
		new(Message).Set(long[:maxName+1], ""),
		new(Message).Set("k", long+"x"),
		new(Message).List("k", "a", long+"x"),
		deep,
	} {
		if b, err := m.Append(nil); err == nil {
			t.Errorf("%d octets were encoded of a message that cannot be", len(b))
		}
	}
	big := new(Message)
	for range MaxPacket/maxValue + 1 {
		big.List("l", long)
	}
	if b, err := AppendPacket([]byte("kept"), CmdResponse, "", big); err == nil || string(b) != "kept" {
		t.Errorf("a packet over the limit: %d octets, %v, want an error and the buffer as it was", len(b), err)
	}
}

func TestPacketsSurviveTheStream(t *testing.T) {
	m, body := example()
	var stream []byte
	for op := CmdRequest; op <= Event; op++ {
		msg := m
		if op >= EventRegister && op <= EventUnknown || op == CmdUnknown {
			msg = nil
		}
		var err error
		if stream, err = AppendPacket(stream, op, "list-sa", msg); err != nil {
			t.Fatal(err)
		}
	}
	r := iotest.OneByteReader(bytes.NewReader(stream))
	var buf []byte
	for op := CmdRequest; op <= Event; op++ {
		var p Packet
		var err error
		if p, buf, err = ReadPacket(r, buf); err != nil {
			t.Fatalf("%s: %v", op, err)
		}
		wantName, wantBody := "", []byte{}
		if op.named() {
			wantName = "list-sa"
		}
		if op == CmdRequest || op == CmdResponse || op == Event {
			wantBody = body
		}
		if p.Op != op || p.Name != wantName || !bytes.Equal(p.Body, wantBody) {
			t.Errorf("%s %q with %q came out as %s %q with %q", op, wantName, wantBody, p.Op, p.Name, p.Body)
		}
	}
	if _, _, err := ReadPacket(r, buf); err != io.EOF {
		t.Errorf("at the end: %v, want EOF", err)
	}
}

func TestReadPacketRefusesBadFraming(t *testing.T) {
	for name, in := range map[string]string{
		"too long":        "\x00\x08\x00\x01\x00",
		"empty":           "\x00\x00\x00\x00",
		"unknown type":    "\x00\x00\x00\x01\x08",
		"no name":         "\x00\x00\x00\x01\x00",
		"name cut off":    "\x00\x00\x00\x04\x00\x03ab",
		"name with a NUL": "\x00\x00\x00\x04\x03\x02a\x00",
	} {
		if _, _, err := ReadPacket(strings.NewReader(in), nil); !errors.Is(err, ErrPacket) {
			t.Errorf("%s: %v, want an error that wraps ErrPacket", name, err)
		}
	}
	for _, in := range []string{"\x00", "\x00\x00\x00\x04", "\x00\x00\x00\x04\x00\x01"} {
		if _, _, err := ReadPacket(strings.NewReader(in), nil); err != io.ErrUnexpectedEOF {
			t.Errorf("%q: %v, want an unexpected end", in, err)
		}
	}
}

func TestAnnouncedLengthAloneCostsNoMemory(t *testing.T) {
	_, buf, err := ReadPacket(strings.NewReader("\x00\x08\x00\x00only a little"), nil)
	if err != io.ErrUnexpectedEOF || cap(buf) > 4*readChunk {
		t.Errorf("%v, %d octets allocated for 17 that came: a client could take half a megabyte with four octets", err, cap(buf))
	}
}

func FuzzDecode(f *testing.F) {
	_, w := example()
	f.Add(w)
	f.Add([]byte{})
	f.Add([]byte("\x01\x04conn\x02"))
	f.Add([]byte("\x04\x02ab\x05\x00\x01x\x06"))
	f.Add([]byte("\x03\x01k\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Decode(b)
		if err != nil {
			if !errors.As(err, new(*SyntaxError)) {
				t.Fatalf("the error is no *SyntaxError: %v", err)
			}
			return
		}
		out, err := m.Append(nil)
		if err != nil || !bytes.Equal(out, b) {
			t.Fatalf("%q decodes and encodes to %q, %v", b, out, err)
		}
	})
}

func FuzzReadPacket(f *testing.F) {
	m, _ := example()
	for op := CmdRequest; op <= Event; op++ {
		b, err := AppendPacket(nil, op, "list-sa", m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)-1])
	}
	f.Add([]byte("\xff\xff\xff\xff\x00\x07version"))
	f.Add([]byte("\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		p, buf, err := ReadPacket(r, nil)
		if cap(buf) > 4*(len(b)+readChunk) {
			t.Fatalf("%d octets allocated for %d that came", cap(buf), len(b))
		}
		if err != nil {
			if !errors.Is(err, ErrPacket) && err != io.EOF && err != io.ErrUnexpectedEOF {
				t.Fatalf("the error is %v", err)
			}
			return
		}
		whole := b[:len(b)-r.Len()]
		if again, _, err := ReadPacket(bytes.NewReader(whole), buf); err != nil || again.Op != p.Op || again.Name != p.Name {
			t.Fatalf("%q reads as %s %q, and a second time as %s %q, %v", whole, p.Op, p.Name, again.Op, again.Name, err)
		}
	})
}
