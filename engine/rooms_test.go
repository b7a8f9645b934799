package engine

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestRoomsImportOnlyWhatTheyMay holds the design: which room may import which, and which
// modules anybody may.
func TestRoomsImportOnlyWhatTheyMay(t *testing.T) {
	may := map[string][]string{
		"esp":      {},
		"ike":      {"esp"},
		"platform": {"esp"},
		"board":    {},
		"engine":   {"ike", "esp", "board"},
		"":         {"engine", "board", "platform"}, // main.go
	}
	modules := []string{"golang.org/x/crypto/", "golang.org/x/sys/", "github.com/songgao/water", "github.com/pelletier/go-toml/v2/", "filippo.io/bigmod"}
	never := []string{"net/http", "log/slog", "log", "C"}
	files := 0
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		rel, _ := filepath.Rel("..", path)
		rel = filepath.ToSlash(rel)
		room, _, sub := strings.Cut(rel, "/")
		if !sub {
			room = ""
		}
		if _, known := may[room]; !known {
			t.Errorf("%s is in no room of the design", rel)
			return nil
		}
		files++
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range f.Imports {
			name, _ := strconv.Unquote(spec.Path.Value)
			if ours, ok := strings.CutPrefix(name, "postern/"); ok {
				to, _, _ := strings.Cut(ours, "/")
				if to != room && !slices.Contains(may[room], to) {
					t.Errorf("%s imports %s: the design does not let %q import %q", rel, name, room, to)
				}
				continue
			}
			if slices.Contains(never, name) {
				t.Errorf("%s imports %s, which costs more than it brings on a device", rel, name)
			}
			first, _, _ := strings.Cut(name, "/")
			if strings.Contains(first, ".") && !slices.ContainsFunc(modules, func(m string) bool { return strings.HasPrefix(name+"/", m) }) {
				t.Errorf("%s imports %s, a module that the design does not list", rel, name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 50 {
		t.Fatalf("only %d files were looked at", files)
	}
}

// TestMachineHasNoClockSocketOrGoroutine holds what makes package ike testable in virtual time.
func TestMachineHasNoClockSocketOrGoroutine(t *testing.T) {
	list, err := filepath.Glob("../ike/*.go")
	if err != nil || len(list) == 0 {
		t.Fatal("no files of ike: ", err)
	}
	for _, path := range list {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, spec := range f.Imports {
			switch name, _ := strconv.Unquote(spec.Path.Value); name {
			case "net", "os", "syscall", "crypto/rand", "math/rand", "math/rand/v2", "log", "context":
				t.Errorf("%s imports %s: the machine takes everything from its caller", path, name)
			}
		}
	}
}
