package platform

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestStateIsKeptForTheOwnerAlone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "state")
	s, err := OpenState(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load("x"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("what was never stored gives %v, want fs.ErrNotExist", err)
	}
	for _, text := range []string{"first", "second"} {
		if err := s.Store("x", []byte(text)); err != nil {
			t.Fatal(err)
		}
		if b, err := s.Load("x"); err != nil || string(b) != text {
			t.Fatalf("%q, %v; want %q", b, err, text)
		}
	}
	for path, want := range map[string]fs.FileMode{dir: 0o700, filepath.Join(dir, "x"): 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s has mode %v (%v), want %v: it holds secrets", path, st.Mode().Perm(), err, want)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if b, err := s.Load("x"); err == nil {
		t.Errorf("a secret that others could read is used: %q", b)
	}
	if err := os.WriteFile(filepath.Join(dir, "big"), make([]byte, maxStateLen+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load("big"); err == nil {
		t.Error("a file beyond the limit is read")
	}
	if err := os.Symlink("x", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load("link"); err == nil {
		t.Error("a symbolic link is followed")
	}
}

func TestStateIsForOneProcessAtATime(t *testing.T) {
	dir := t.TempDir()
	s, err := OpenState(dir)
	if err != nil {
		t.Fatal(err)
	}
	if o, err := OpenState(dir); err == nil {
		_ = o.Close()
		t.Fatal("two have the same secrets: each could be made to show the tokens of the other")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	o, err := OpenState(dir)
	if err != nil {
		t.Fatalf("after the first has gone: %v", err)
	}
	_ = o.Close()
}
