package platform

import (
	"errors"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestLockFileIsForOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := LockFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := LockFile(path); !errors.Is(err, syscall.EAGAIN) || !strings.Contains(err.Error(), "another postern") {
		t.Errorf("a second lock: %v", err)
	}
	unlock()
	again, err := LockFile(path)
	if err != nil {
		t.Fatalf("after it was given back: %v", err)
	}
	again()
	if _, err := LockFile(filepath.Join(path, "no")); err == nil {
		t.Error("a file was locked in a folder that is none")
	}
}
