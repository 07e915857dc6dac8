package aesgcm

import (
	"errors"
	"os"
	"strings"
	"sync/atomic"

	"github.com/klauspost/cpuid/v2"
)

// Options choose the path. The zero value takes the fastest one that is constant time on this machine.
type Options struct {
	Portable bool // take the constant-time software path whatever the CPU has
}

// ErrNoConstantTime says that no implementation here is constant time: the CPU has no AES and carry-less multiplication instructions (or
// Options.Portable leaves them out), and libbearssl cannot be loaded.
var ErrNoConstantTime = errors.New("aesgcm: no constant-time AES-256-GCM: without AES instructions (or with portable crypto) the library libbearssl.so.0 is needed (Debian package libbearssl0)")

type path uint32

const (
	pathUnset path = iota
	pathNone       // Configure refused
	pathLibcrypto
	pathGo
	pathBearSSL
)

// active is the path in use: written by Configure, read by every message.
var active atomic.Uint32

// Configure chooses the path for the process. It is for start-up, before the first message: messages under way keep the path they began
// with. Without a call, the first message chooses as Configure(Options{}) does. On an error Seal and Open panic.
func Configure(o Options) error {
	p := choose(o, hardware(), softwareForced(os.Getenv), loadLibcrypto, loadBearSSL)
	active.Store(uint32(p))
	if p == pathNone {
		return ErrNoConstantTime
	}
	return nil
}

// choose is Configure without the machine. The libraries are loaded only when they are asked for.
func choose(o Options, instructions []string, forced bool, libcrypto, bearssl func() bool) path {
	switch {
	case !o.Portable && len(instructions) > 0 && !forced && libcrypto():
		return pathLibcrypto
	case !o.Portable && len(instructions) > 0 && !forced:
		return pathGo
	case bearssl():
		return pathBearSSL
	}
	return pathNone
}

// current returns the path in use, choosing it if need be.
func current() path {
	p := path(active.Load())
	if p == pathUnset {
		_ = Configure(Options{}) // what it refuses, the panic below says
		p = path(active.Load())
	}
	if p == pathNone {
		panic(ErrNoConstantTime.Error())
	}
	return p
}

// Path describes the path in use for the log at start, as "libcrypto (AES-NI, PCLMULQDQ, VAES)"; "none" when Configure refused.
func Path() string {
	p := path(active.Load())
	if p == pathUnset {
		_ = Configure(Options{}) // shown as "none"
		p = path(active.Load())
	}
	return p.describe(hardware())
}

func (p path) describe(instructions []string) string {
	switch p {
	case pathLibcrypto:
		return "libcrypto (" + strings.Join(instructions, ", ") + ")"
	case pathGo:
		return "go (" + strings.Join(instructions, ", ") + ")"
	case pathBearSSL:
		return "bearssl (constant-time software)"
	}
	return "none"
}

// hardware names the instructions that make AES-GCM constant time in libcrypto and in Go's standard library, or nothing where one of those
// they need is missing. Go's conditions are the stricter ones (crypto/internal/fips140/aes/gcm, gcm_asm.go).
func hardware() []string {
	cpu := &cpuid.CPU
	switch {
	case cpu.Supports(cpuid.AESNI, cpuid.CLMUL, cpuid.SSE4, cpuid.SSSE3):
		names := []string{"AES-NI", "PCLMULQDQ"}
		if cpu.Supports(cpuid.VAES, cpuid.VPCLMULQDQ) {
			names = append(names, "VAES")
		}
		return names
	case cpu.Supports(cpuid.AESARM, cpuid.PMULL):
		return []string{"ARMv8 AES", "PMULL"}
	}
	return nil
}

// softwareForced says whether the environment hides CPU features from libcrypto or from Go, after which neither can be trusted to take
// its constant-time code.
func softwareForced(getenv func(string) string) bool {
	return getenv("OPENSSL_ia32cap") != "" || getenv("OPENSSL_armcap") != "" || strings.Contains(getenv("GODEBUG"), "cpu.")
}
