package config

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"postern/ike"
)

// write puts a file into a folder with exactly that mode.
func write(t *testing.T, dir, name, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // WriteFile's mode is subject to the umask
		t.Fatal(err)
	}
	return path
}

func TestLoadRefusesASecretThatOthersCanRead(t *testing.T) {
	dir := t.TempDir()
	text := baseConn + baseChild + baseSecret
	for _, c := range []struct {
		mode os.FileMode
		ok   bool
	}{{0o600, true}, {0o400, true}, {0o700, true}, {0o640, false}, {0o604, false}, {0o620, false}, {0o644, false}} {
		path := write(t, dir, "c.toml", text, c.mode)
		_, err := Load(path, ike.AESFirst)
		switch {
		case c.ok && err != nil:
			t.Errorf("mode %o was refused: %v", c.mode, err)
		case !c.ok && err == nil:
			t.Errorf("mode %o was accepted for a file that holds a secret", c.mode)
		case !c.ok && !strings.HasPrefix(err.Error(), path+":9:10: the group or others can read or change this file, and it holds a secret; chmod 600"):
			t.Errorf("mode %o gives %q, expected the place of the secret and what to do", c.mode, err)
		}
		_ = os.Remove(path)
	}
	path := write(t, dir, "open.toml", baseConn+baseChild+"[secrets.a]\nsecret_file = \"a.key\"\n", 0o644)
	write(t, dir, "a.key", "an example of 24 octets.", 0o600)
	if _, err := Load(path, ike.AESFirst); err != nil {
		t.Errorf("a configuration without secrets may be readable by all, but: %v", err)
	}
}

func TestLoadErrorsSayWhatToDo(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ path, words string }{
		{filepath.Join(dir, "missing.toml"), "no such file or directory; write one"},
		{dir, "it is not a regular file; name the right file"},
		{fifo, "it is not a regular file"},
		{"/dev/zero", "it is not a regular file"},
		{write(t, dir, "big.toml", strings.Repeat("# nothing\n", 30000), 0o600), "is larger than 256 KiB"},
	} {
		_, err := Load(c.path, ike.AESFirst)
		if err == nil || !strings.Contains(err.Error(), c.words) || !strings.Contains(err.Error(), c.path) {
			t.Errorf("Load(%s) gives %v, expected the path and %q", c.path, err, c.words)
		}
	}
	if _, err := Load(filepath.Join(dir, "missing.toml"), ike.AESFirst); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the error of a missing file is %v and does not wrap fs.ErrNotExist", err)
	}
}

func TestSecretsAreDecoded(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []byte
	}{
		{"text", `"an example of 24 octets."`, []byte("an example of 24 octets.")},
		{"text with blanks and umlauts", `" ä long enough key "`, []byte(" ä long enough key ")},
		{"escapes", `"tab\tquote\"back\\slash"`, []byte("tab\tquote\"back\\slash")},
		{"literal", `'back\slash is one of it'`, []byte(`back\slash is one of it`)},
		{"hexadecimal", `"0x00FFab0102030405060708090a0b0c0d0e"`, []byte{0, 0xff, 0xab, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}},
		{"base64", `"0sAAECAwQFBgcICQoLDA0ODxA="`, []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}},
		{"base64 without padding", `"0sAAECAwQFBgcICQoLDA0ODxA"`, []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}},
	} {
		cfg := mustParse(t, baseConn+baseChild+"[secrets.a]\nsecret = "+c.text+"\n")
		if got := cfg.IKE.Secrets[0].Key; !bytes.Equal(got, c.want) {
			t.Errorf("%s: the key is %x, expected %x", c.name, got, c.want)
		}
	}
}

func TestSecretFiles(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "keys"), 0o700); err != nil {
		t.Fatal(err)
	}
	text := baseConn + baseChild + "[secrets.a]\nsecret_file = "
	for _, c := range []struct {
		name, content string
		want          string
	}{
		{"plain", "an example of 24 octets.", "an example of 24 octets."},
		{"newline", "an example of 24 octets.\n", "an example of 24 octets."},
		{"newline of DOS", "an example of 24 octets.\r\n", "an example of 24 octets."},
		{"one newline only", "an example of 24 octets.\n\n", "an example of 24 octets.\n"},
		{"hexadecimal", "0x30313233343536373839414243444546\n", "0123456789ABCDEF"},
	} {
		write(t, dir, "keys/a.key", c.content, 0o600)
		path := write(t, dir, "c.toml", text+"\"keys/a.key\"\n", 0o644)
		cfg, err := Load(path, ike.AESFirst)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		} else if got := string(cfg.IKE.Secrets[0].Key); got != c.want {
			t.Errorf("%s: the key is %q, expected %q", c.name, got, c.want)
		}
	}
	absolute := write(t, t.TempDir(), "b.key", "an example of 24 octets.", 0o400)
	if _, err := Load(write(t, dir, "c.toml", text+"\""+absolute+"\"\n", 0o600), ike.AESFirst); err != nil {
		t.Errorf("a secret file with an absolute name and mode 400 was refused: %v", err)
	}
	for _, c := range []struct {
		name, file, content, words string
		mode                       os.FileMode
	}{
		{"group", "g.key", "an example of 24 octets.", "the group or others can read or change it; chmod 600 the file", 0o640},
		{"others", "o.key", "an example of 24 octets.", "the group or others can read or change it", 0o604},
		{"empty", "e.key", "\n", "the key is empty", 0o600},
		{"large", "l.key", strings.Repeat("x", maxSecretLen+1), "it is too large for a key", 0o600},
	} {
		write(t, dir, c.file, c.content, c.mode)
		_, err := Load(write(t, dir, "c.toml", text+"\""+c.file+"\"\n", 0o600), ike.AESFirst)
		if err == nil || !strings.Contains(err.Error(), c.words) || !strings.Contains(err.Error(), ":8:15: ") {
			t.Errorf("%s: the error is %v, expected line 8, column 15 and %q", c.name, err, c.words)
		}
	}
	_, err := Load(write(t, dir, "c.toml", text+"\"missing.key\"\n", 0o600), ike.AESFirst)
	if err == nil || !strings.Contains(err.Error(), "no such file or directory; a relative name starts in the folder of the configuration") {
		t.Errorf("a missing secret file gives %v", err)
	}
}

// TestNoSecretInAnError writes a secret made of characters that no message has into all the
// wrong places.
func TestNoSecretInAnError(t *testing.T) {
	const key = "ŹǨҖẞ☂♞Ψβ1234☃Ж§¶"
	conn := baseConn + baseChild + "[secrets.a]\n"
	for _, text := range []string{
		"secret = " + key,
		"secret = ☂" + key,
		"secret = \"" + key,
		"secret = '" + key,
		"secret = \"\"\"" + key,
		"secret = \"" + key + "\\" + key + "\"",
		"secret = \"" + key + "\" " + key,
		"secret = \"" + key + "\"" + key,
		"secret = \"" + key + "\nx = 1",
		"secret = [\"" + key + "\"]",
		"secret = { x = \"" + key + "\" }",
		"secret = \"0x" + key + "\"",
		"secret = \"0s" + key + "\"",
		"secret " + key,
		"secret : " + key,
		"secert = \"" + key + "\"",
		"secret_file = \"" + key + "\"",
		"secret_file = \"/" + key + "\"",
		"secret_file = \"" + key + "\\u0000\"",
		"secret = \"" + key + "\"\nsecret_file = \"" + key + "\"",
		"secret = \"" + key + "\"\nsecret = \"" + key + "\"",
		"secret = \"" + key + "\"\n[secrets.b]\nsecret = \"" + key + "\"",
		"secret.x = \"" + key + "\"",
		"[secrets]\nx = \"" + key + "\"",
		"[secrets.b]\nid = [\"b.example\"]\nsecret = \"" + key[:8] + "\"\nmtu = 1",
	} {
		l := newLoader("test.toml", readSecretFile)
		l.exposed = true
		_, err := l.load([]byte(conn + text + "\n"))
		if err == nil {
			t.Errorf("a configuration with %q is accepted: the test needs errors", text)
			continue
		}
		said := err.Error()
		for _, w := range l.cfg.warnings {
			said += "\n" + w.String()
		}
		if i := strings.IndexAny(said, "ŹǨҖẞ☂♞Ψβ☃Ж§¶"); i >= 0 || strings.Contains(said, "1234") || strings.Contains(said, "U+") {
			t.Errorf("with %q the error shows a part of the secret:\n%s", text, said)
		}
	}
}
