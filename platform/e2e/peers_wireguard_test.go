//go:build linux && peers

package e2e

import (
	"crypto/ecdh"
	"crypto/rand"
	"debug/buildinfo"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// wireguardPort is where both ends listen; each has a namespace of its own.
const wireguardPort = 51820

// startWireGuard starts wireguard-go on both gateways, with its own MTU, and tells each
// of the other.
func startWireGuard(s *site) (a, b *process, version string) {
	s.t.Helper()
	bin := wireguardBinary(s.t)
	version = "version unknown" // of a binary that Go did not build from a module
	if info, err := buildinfo.ReadFile(bin); err == nil {
		version = info.Main.Path + " " + info.Main.Version + ", " + info.GoVersion
	}
	var keys [2]*ecdh.PrivateKey
	for i := range keys {
		var err error
		if keys[i], err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			s.t.Fatal(err)
		}
	}
	var p [2]*process
	for i, side := range []struct {
		ns, far string
		own     netip.Addr
		peer    netip.Addr
	}{
		{s.gwA, lanB4, hostA4, gwB4},
		{s.gwB, lanA4, hostB4, gwA4},
	} {
		dir := filepath.Join(s.dir, fmt.Sprintf("wireguard-%d", i))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			s.t.Fatal(err)
		}
		// Its control socket is always under /run, which is a folder of ours here.
		p[i] = startIn(s.t, side.ns, filepath.Join(dir, "out"), []string{"LOG_LEVEL=error"},
			"sh", "-ec", `mount --bind "$1" /run; exec "$2" -f wg0`, "sh", dir, bin)
		socket := filepath.Join(dir, "wireguard", "wg0.sock")
		settings := fmt.Sprintf("private_key=%x\nlisten_port=%d\nreplace_peers=true\npublic_key=%x\nendpoint=%s\nreplace_allowed_ips=true\nallowed_ip=%s\n",
			keys[i].Bytes(), wireguardPort, keys[1-i].PublicKey().Bytes(), netip.AddrPortFrom(side.peer, wireguardPort), side.far)
		var err error
		if !eventually(10*time.Second, func() bool {
			err = wireguardSet(socket, settings)
			return err == nil || !p[i].alive()
		}) || err != nil {
			s.t.Fatalf("wireguard-go did not start: %v\n%s", err, p[i].text())
		}
		s.ip(side.ns, fmt.Sprintf("link set wg0 up\nroute add %s dev wg0 src %s\n", side.far, side.own))
	}
	return p[0], p[1], version
}

// wireguardSet does one "set" of wireguard-go's control protocol: lines of key=value up
// to an empty one, answered by errno=0.
func wireguardSet(socket, settings string) error {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c, "set=1\n"+settings+"\n"); err != nil {
		return fmt.Errorf("configure wireguard-go: %w", err)
	}
	buf := make([]byte, 256)
	n, err := c.Read(buf)
	if err != nil {
		return fmt.Errorf("wireguard-go's answer: %w", err)
	}
	if answer := strings.TrimSpace(string(buf[:n])); answer != "errno=0" {
		return fmt.Errorf("wireguard-go refuses its configuration: %s", answer)
	}
	return nil
}

// wireguardBinary returns WIREGUARD_GO, or builds the newest release that the Go proxy has.
func wireguardBinary(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("WIREGUARD_GO"); path != "" {
		return path
	}
	cmd := exec.Command("go", "install", "-trimpath", "-ldflags=-s -w", "golang.zx2c4.com/wireguard@latest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOBIN="+workDir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("wireguard-go does not build (or name one with WIREGUARD_GO=FILE): %v\n%s", err, out)
	}
	return filepath.Join(workDir, "wireguard")
}
