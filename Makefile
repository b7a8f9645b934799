# postern: build and check. `make demo` and `make test` do all the set-up they need.

GO       ?= go
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  := -s -w -X main.version=$(VERSION)

# What no packet passes through is compiled without inlining: a twentieth of the binary on MIPS.
# Of Go's library the same for all but what packets and the arithmetic of handshakes meet (which
# must stay out: net/netip, sync, bytes, syscall, internal/poll, the ciphers, hashes and fields).
COLD := postern/engine/config postern/engine/cli postern/engine/control postern/engine/vici postern/engine/swanctl postern/engine/bench \
	postern/engine/log postern/engine/pkitool postern/engine/fetch postern/ike postern/ike/pki postern/ike/pool \
	postern/esp/aggfrag github.com/pelletier/go-toml/v2/... fmt \
	net net/url time context os os/signal os/exec io/fs internal/filepathlite path/filepath \
	reflect internal/fmtsort strconv internal/strconv strings sort flag internal/bisect internal/godebug \
	encoding/asn1 encoding/base64 encoding/hex encoding/pem math/big crypto/x509 crypto/x509/pkix \
	golang.org/x/crypto/cryptobyte vendor/golang.org/x/crypto/cryptobyte \
	crypto/ecdh crypto/ecdsa crypto/ed25519 crypto/elliptic crypto/rsa crypto/internal/fips140hash \
	crypto/internal/fips140/ecdh crypto/internal/fips140/ecdsa crypto/internal/fips140/ed25519 \
	crypto/internal/fips140/rsa

BUILD    := $(GO) build -trimpath -ldflags '$(LDFLAGS)' $(foreach p,$(COLD),-gcflags=$(p)=-l)
OUT      := build

SUDO     := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
FUZZTIME ?= 5s

export CGO_ENABLED = 0

# os/arch[/variant] as Go names them: arm has GOARM, the 32-bit mips GOMIPS.
TARGETS := linux/amd64 linux/arm64 linux/arm/5 linux/arm/6 linux/arm/7 \
	linux/mips/softfloat linux/mipsle/softfloat linux/mips64/softfloat linux/mips64le/softfloat \
	linux/riscv64 linux/386/softfloat

# The processors whose tests run under user-mode emulation: big-endian, MIPS, ARM.
EMULATED := mips/softfloat mipsle/softfloat arm/5

# variant: GOARM for arm, GOMIPS and GOMIPS64 for mips, GO386 for 386.
define env
GOOS=linux GOARCH=$(word 1,$(subst /, ,$(1))) $(if $(word 2,$(subst /, ,$(1))),\
$(if $(filter arm,$(word 1,$(subst /, ,$(1)))),GOARM,\
$(if $(filter 386,$(word 1,$(subst /, ,$(1)))),GO386,\
$(if $(filter mips64%,$(word 1,$(subst /, ,$(1)))),GOMIPS64,GOMIPS)))=$(word 2,$(subst /, ,$(1))))
endef
name = $(subst /,-,$(1))

.PHONY: all build demo test check deps bench budget icount cross emulate e2e race size lint fuzz clean

all: build

build:
	$(BUILD) -o $(OUT)/postern .

# Two gateways, a WAN and a Modbus link on one machine; no root needed where user
# namespaces are allowed.
demo:
	@$(BUILD) -tags demo -o $(OUT)/postern-demo .
	@$(OUT)/postern-demo demo

# All checks, from lint to the end-to-end tests against strongSwan. Installs what is missing.
test: deps lint check budget race fuzz cross emulate icount size e2e vm
	@echo "make test: all checks passed"

# Debian's packages; nothing happens where all of them are there.
deps:
	@.ci/deps

# Unit tests, vectors, the simulation, and the privileged tests of single parts.
check: deps
	@.ci/gotest $$($(GO) list ./... | grep -v -e /e2e -e platform/vm)
	@.ci/gotest -tags demo .
	@.ci/gotest -tags noswanctl ./engine/cli

race: deps
	@echo "with the race detector:"; CGO_ENABLED=1 .ci/gotest -race -short ./engine/... ./ike/... ./esp/aggfrag ./esp/ctaes

fuzz:
	@.ci/fuzz $(FUZZTIME)

# The compilers' and linters' opinion; the linter is a tool of the build, not a dependency.
lint:
	@test -z "$$(gofmt -l .)" || { echo "not formatted (run gofmt -w):"; gofmt -l .; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags demo ./...
	$(GO) vet -tags nopki .
	$(GO) vet -tags noswanctl . ./engine/cli ./engine/swanctl
	$(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...

cross:
	@set -e; $(foreach t,$(TARGETS:linux/%=%),echo "build linux/$(t)"; \
		$(call env,$(t)) $(BUILD) -o $(OUT)/postern-$(call name,$(t)) .; )

# The pure packages on other processors.
emulate: deps
	@set -e; $(foreach t,$(EMULATED),echo "test ./esp/... ./ike on $(t)"; \
		$(call env,$(t)) .ci/gotest -short -exec qemu-$(subst mipsle,mipsel,$(word 1,$(subst /, ,$(t))))-static ./esp/... ./ike; )
	@echo "test ./esp/chapoly on arm/7, on MIPS32 release 1, and without assembly on mips"
	@$(call env,arm/7) .ci/gotest -short -exec qemu-arm-static ./esp/chapoly
	@QEMU_CPU=4Kc $(call env,mipsle/softfloat) .ci/gotest -short -exec qemu-mipsel-static ./esp/chapoly
	@$(call env,mips/softfloat) .ci/gotest -short -tags purego -exec qemu-mips-static ./esp/chapoly
	@echo "test ./esp/ctaes on arm64 and riscv64"
	@$(call env,arm64) .ci/gotest -short -exec qemu-aarch64-static ./esp/ctaes
	@$(call env,riscv64) .ci/gotest -short -exec qemu-riscv64-static ./esp/ctaes

# Stripped and compressed size for each target, and the budget; and what control clients and the
# parser for swanctl.conf cost on mipsle.
size: cross
	@$(call env,mipsle/softfloat) $(BUILD) -tags noswanctl -o $(OUT)/parts/noswanctl .
	@$(call env,mipsle/softfloat) $(subst -s -w,,$(BUILD)) -o $(OUT)/parts/symbols .
	@.ci/size $(OUT)

# Throughput and allocations, beside the bare ciphers in the same run, and the budget.
bench:
	@.ci/bench

# What sealing and opening may cost above the bare cipher, and policies more than one; some
# seconds.
budget:
	@.ci/budget
	@.ci/lookups

# Side by side with wireguard-go and strongSwan, by turns on this machine, as root; some
# minutes. BENCH_ONLY=postern,wireguard selects contenders, PEERSFLAGS has what
# build/peers.test -help lists: -rounds 5 -seconds 3 -runs "TCP, 1" …
.PHONY: bench-peers
bench-peers: deps
	@$(GO) vet -tags peers ./platform/e2e
	@$(GO) test -tags peers -c -o $(OUT)/peers.test ./platform/e2e
	@cd platform/e2e && POSTERN_E2E=require $(abspath $(OUT))/peers.test -test.run '^TestPeers' -test.timeout 2h $(PEERSFLAGS)

# Instructions per octet of ChaCha20-Poly1305 on 32-bit MIPS and ARM, of AES-GCM on processors
# without AES instructions, and the budgets.
icount: deps
	@.ci/icount/run

e2e: deps
	@echo "end to end:"; POSTERN_E2E=require .ci/gotest -count=1 -timeout 30m ./platform/e2e

# What policies protect is never seen in clear on the WAN, whatever happens to the daemons; as
# root, half a minute. "make test" does it as well.
.PHONY: leak
leak: deps
	@POSTERN_E2E=require .ci/gotest -count=1 -run '^Test(Leak|NothingLeaks|ClearText|KilledDaemon)' ./platform/e2e

# Against Linux's own IPsec, in a virtual machine that boots Debian's kernel (qemu without
# acceleration); some minutes. The kernel is kept below ~/.cache or in POSTERN_VM_CACHE.
.PHONY: vm
vm: deps
	@POSTERN_E2E=require $(GO) test -v -count=1 -timeout 20m ./platform/vm

clean:
	rm -rf $(OUT)
