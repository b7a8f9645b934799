package platform

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestFilesKeepWhatFits(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state", "crls")
	f, err := OpenFiles(dir, 3, 100)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Load("a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v where nothing is kept", err)
	}
	age := time.Now().Add(-time.Hour)
	store := func(name string, n int) {
		t.Helper()
		if err := f.Store(name, bytes.Repeat([]byte(name), n)); err != nil {
			t.Fatal(err)
		}
		age = age.Add(time.Minute) // not every file system has a fine clock
		if err := os.Chtimes(filepath.Join(dir, name), age, age); err != nil {
			t.Fatal(err)
		}
	}
	here := func(want string) {
		t.Helper()
		got := ""
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			got += e.Name()
			st, _ := e.Info()
			if st.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %v", e.Name(), st.Mode())
			}
		}
		if got != want {
			t.Errorf("the directory has %q, expected %q", got, want)
		}
	}
	store("a", 30)
	store("b", 30)
	store("c", 30)
	here("abc")
	store("a", 40) // in its own place, and the newest now
	here("abc")
	store("d", 10)
	here("acd") // three at most
	store("e", 60)
	here("de") // a hundred octets at most
	if b, err := f.Load("d"); err != nil || string(b) != "dddddddddd" {
		t.Errorf("%q, %v", b, err)
	}
	if f.Store("f", make([]byte, 101)) == nil {
		t.Error("a file larger than all may be was kept")
	}
	here("de")
	if err := os.WriteFile(filepath.Join(dir, "e.new"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	store("d", 20)
	here("de") // and what was cut short is gone
}

func TestFilesRefuseWhatOthersChange(t *testing.T) {
	dir := t.TempDir()
	f, err := OpenFiles(dir, 3, 100)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Store("a", []byte("a")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "a"), 0o622); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("a", filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "c"), make([]byte, 101), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b", "c"} {
		if b, err := f.Load(name); err == nil {
			t.Errorf("%s was taken: %q", name, b)
		}
	}
}
