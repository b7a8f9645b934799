//go:build linux

package vm

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// kernelPackage is Debian's smallest kernel that has what is needed.
const kernelPackage = "linux-image-cloud-amd64"

// bootPatience bounds a boot with all that it tries. A machine that nothing else uses needs a
// fifth of it.
const bootPatience = 10 * time.Minute

// The plan, as package guest reads it.
type (
	plan struct {
		Modules []string
		Phases  []phase
		Scenes  []scene

		programs []string // names or paths of those that it needs beside ip
		plugins  []string // paths of libraries that programs load while they run
		memory   int      // MiB that the machine has; 0 is 512
	}
	scene struct {
		Name     string
		Setup    []step
		Files    map[string]file
		Services []service
		Checks   []check
		Watch    string
		Hidden   []byte
	}
	file struct {
		Mode uint32
		Data []byte
	}
	service struct {
		NS        string
		Env, Args []string
		Ready     string
		Lines     []string
	}
	check struct {
		Name              string
		Alone             bool
		Restart           []int
		NS                string
		Do                [][]string
		Asks              []ask
		From, To, Control string
		Between           [2]string
		Patience          int
	}
	ask struct {
		Args        []string
		Want, Never string
	}
	phase struct {
		Name  string
		Setup []step
		Files map[string][]byte
		Args  []string
		Cases []vmCase
	}
	step   struct{ NS, Batch string }
	vmCase struct{ Name, X, P, SA string }
)

// lacks skips the test for the reason given, or fails it where everything is required.
func lacks(t *testing.T, format string, args ...any) {
	t.Helper()
	if reason := fmt.Sprintf(format, args...); os.Getenv("CI") == "true" || os.Getenv("POSTERN_E2E") == "require" {
		t.Fatalf("%s, and CI=true or POSTERN_E2E=require says that every test has to run", reason)
	} else {
		t.Skip("skipped: " + reason)
	}
}

// command runs a program to its end.
func command(t *testing.T, dir string, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// kernel returns the image and the folder of the modules of Debian's kernel.
func kernel(t *testing.T) (image, modules string) {
	t.Helper()
	name := func() (string, error) {
		out, err := exec.Command("apt-cache", "depends", kernelPackage).CombinedOutput()
		m := regexp.MustCompile(`Depends: (linux-image-\S+)`).FindSubmatch(out)
		if err != nil || m == nil {
			return "", fmt.Errorf("apt-cache depends: %v %s", err, out)
		}
		return string(m[1]), nil
	}
	root := unpacked(t, kernelPackage, name)
	images, _ := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	trees, _ := filepath.Glob(filepath.Join(root, "lib", "modules", "*", "kernel"))
	if len(images) != 1 || len(trees) != 1 {
		t.Fatalf("%s holds no kernel", root)
	}
	return images[0], filepath.Dir(trees[0])
}

// unpacked returns the folder that holds a Debian package, which is named in full by the function
// where it has a shorter name here. It is unpacked once, below the user's cache directory, or
// POSTERN_VM_CACHE; that way also such packages can be had that cannot be installed here.
func unpacked(t *testing.T, short string, full func() (string, error)) (root string) {
	t.Helper()
	cache := os.Getenv("POSTERN_VM_CACHE")
	if cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			lacks(t, "there is nowhere to keep a kernel: %v; name a folder in POSTERN_VM_CACHE", err)
		}
		cache = filepath.Join(dir, "postern-vm")
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		lacks(t, "there is nowhere to keep a kernel: %v", err)
	}
	lock, err := os.Create(filepath.Join(cache, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	root = filepath.Join(cache, short)
	if _, err := os.Stat(root); err == nil {
		return root
	}
	next := root + ".new"
	if err := os.RemoveAll(next); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(next, 0o755); err != nil {
		t.Fatal(err)
	}
	fetch := func() (string, bool) {
		name := short
		if full != nil {
			var err error
			if name, err = full(); err != nil {
				return err.Error(), false
			}
		}
		cmd := exec.Command("apt-get", "download", "-q", name)
		cmd.Dir = next
		out, err := cmd.CombinedOutput()
		return fmt.Sprintf("apt-get download: %v %s", err, out), err == nil
	}
	why, ok := fetch()
	if !ok {
		_ = exec.Command("apt-get", "-q", "update").Run() // root alone may
		why, ok = fetch()
	}
	if !ok {
		lacks(t, "Debian's package %s cannot be had: %s", short, why)
	}
	debs, _ := filepath.Glob(filepath.Join(next, "*.deb"))
	command(t, next, nil, "dpkg-deb", "-x", debs[0], ".")
	_ = os.Remove(debs[0])
	if err := os.Rename(next, root); err != nil {
		t.Fatal(err)
	}
	return root
}

// moduleOrder returns the files of modules and of all that they depend on, each after what it
// needs. Names that the kernel does not have as modules are taken to be built in.
func moduleOrder(t *testing.T, dir string, names []string) (files []string) {
	t.Helper()
	paths := map[string]string{}
	plain := func(name string) string { return strings.ReplaceAll(name, "-", "_") }
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); ok && err == nil && !d.IsDir() {
			paths[plain(name)] = path
		}
		return err
	})
	if err != nil || len(paths) == 0 {
		t.Fatalf("there are no modules in %s: %v", dir, err)
	}
	done := map[string]bool{}
	var add func(name string)
	add = func(name string) {
		path := paths[plain(name)]
		if path == "" || done[path] {
			return
		}
		done[path] = true
		f, err := elf.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		info, err := f.Section(".modinfo").Data()
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range bytes.Split(info, []byte{0}) {
			if list, ok := bytes.CutPrefix(word, []byte("depends=")); ok && len(list) > 0 {
				for _, d := range strings.Split(string(list), ",") {
					add(d)
				}
			}
		}
		files = append(files, path)
	}
	for _, name := range names {
		add(name)
	}
	return files
}

// initramfs is a cpio archive in the form "newc".
type initramfs struct {
	bytes.Buffer
	made map[string]bool
}

// add adds a file, and the folders above it.
func (a *initramfs) add(name string, mode uint32, data []byte) {
	name = strings.TrimPrefix(name, "/")
	if a.made[name] {
		return
	}
	if dir := filepath.Dir(name); dir != "." {
		a.add(dir, syscall.S_IFDIR|0o755, nil)
	}
	if a.made == nil {
		a.made = map[string]bool{}
	}
	a.made[name] = true
	a.entry(name, mode, data)
}

func (a *initramfs) entry(name string, mode uint32, data []byte) {
	fmt.Fprintf(a, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", len(a.made), mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	a.WriteString(name + "\x00")
	a.pad()
	a.Write(data)
	a.pad()
}

func (a *initramfs) pad() {
	for a.Len()%4 != 0 {
		a.WriteByte(0)
	}
}

func (a *initramfs) file(t *testing.T, name, from string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	a.add(name, syscall.S_IFREG|0o755, data)
}

// program adds a program with the libraries that it is linked to. One that is named by its path is
// taken from there.
func (a *initramfs) program(t *testing.T, name string) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		lacks(t, "%s is not installed", name)
	}
	a.file(t, "bin/"+filepath.Base(name), path)
	a.libraries(t, path)
}

// libraries adds what a program or a library is linked to.
func (a *initramfs) libraries(t *testing.T, path string) {
	t.Helper()
	out := command(t, "", nil, "ldd", path)
	if strings.Contains(out, "not found") {
		lacks(t, "what %s is linked to is not all installed: %s", path, out)
	}
	for _, m := range regexp.MustCompile(`(?m)(?:=> )?(/\S+) \(0x`).FindAllStringSubmatch(out, -1) {
		a.file(t, m[1], m[1])
	}
}

// plugin adds a library that programs load by its name, with what it is linked to.
func (a *initramfs) plugin(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		lacks(t, "%s is not installed", path)
	}
	a.file(t, path, path)
	a.libraries(t, path)
}

// boot runs the plan in a machine of its own and returns what passed and what failed, by name, and
// all that its console said.
func boot(t *testing.T, p plan, modules []string) (passed []string, failed map[string]string, console string) {
	t.Helper()
	if testing.Short() {
		t.Skip("skipped: -short leaves out the virtual machine")
	}
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		lacks(t, "qemu-system-x86_64 is not installed; apt-get install qemu-system-x86")
	}
	image, tree := kernel(t)
	dir := t.TempDir()
	env := []string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64"}
	command(t, "../..", env, "go", "build", "-trimpath", "-o", dir+"/postern", ".")
	command(t, "../..", env, "go", "build", "-trimpath", "-o", dir+"/guest", "./platform/vm/guest")
	var root initramfs
	root.file(t, "init", dir+"/guest")
	root.file(t, "postern", dir+"/postern")
	for _, name := range append([]string{"ip"}, p.programs...) {
		root.program(t, name)
	}
	for _, path := range p.plugins {
		root.plugin(t, path)
	}
	// The kernel opens it for the first process before anything is mounted.
	root.add("dev", syscall.S_IFDIR|0o755, nil)
	for _, m := range moduleOrder(t, tree, modules) {
		name := "/modules/" + filepath.Base(m)
		root.file(t, name, m)
		p.Modules = append(p.Modules, name)
	}
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	root.add("plan.json", syscall.S_IFREG|0o600, text)
	root.made["TRAILER!!!"] = true
	root.entry("TRAILER!!!", 0, nil)
	initrd := filepath.Join(dir, "initrd")
	if err := os.WriteFile(initrd, root.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}

	if p.memory == 0 {
		p.memory = 512
	}
	ctx, cancel := context.WithTimeout(context.Background(), bootPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, qemu, "-M", "q35", "-cpu", "max", "-accel", "tcg", "-m", fmt.Sprint(p.memory), "-smp", "1",
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio",
		"-kernel", image, "-initrd", initrd, "-append", "console=ttyS0 panic=-1 quiet rdinit=/init")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	failed = map[string]string{}
	ended := false
	var all strings.Builder
	lines := bufio.NewScanner(out)
	lines.Buffer(make([]byte, 1<<20), 1<<20)
	for lines.Scan() {
		line := strings.TrimRight(lines.Text(), "\r")
		all.WriteString(line + "\n")
		mark, rest, _ := strings.Cut(line, "\t")
		switch {
		case mark == "@@pass":
			passed = append(passed, rest)
		case mark == "@@fail":
			name, why, _ := strings.Cut(rest, "\t")
			failed[name] = why
		case strings.HasPrefix(line, "@@error"):
			failed["the machine"] = line
		case line == "@@end":
			ended = true
		}
	}
	_ = cmd.Wait()
	if console = all.String(); !ended {
		t.Fatalf("the machine did not come to its end; its console:\n%s", console[max(0, len(console)-8000):])
	}
	return passed, failed, console
}
