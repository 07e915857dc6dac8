package aesgcm

import (
	"errors"
	"strings"
	"testing"
)

func TestChoose(t *testing.T) {
	yes, no := func() bool { return true }, func() bool { return false }
	never := func() bool { t.Error("a library is loaded without need"); return false }
	hw := []string{"AES-NI", "PCLMULQDQ"}
	for _, c := range []struct {
		name               string
		portable           bool
		instructions       []string
		forced             bool
		libcrypto, bearssl func() bool
		want               path
	}{
		{"all there", false, hw, false, yes, never, pathLibcrypto},
		{"no libcrypto", false, hw, false, no, never, pathGo},
		{"portable", true, hw, false, never, yes, pathBearSSL},
		{"portable without the library", true, hw, false, never, no, pathNone},
		{"no instructions", false, nil, false, never, yes, pathBearSSL},
		{"no instructions, no library", false, nil, false, never, no, pathNone},
		{"instructions hidden", false, hw, true, never, yes, pathBearSSL},
		{"instructions hidden, no library", false, hw, true, never, no, pathNone},
	} {
		if got := choose(Options{Portable: c.portable}, c.instructions, c.forced, c.libcrypto, c.bearssl); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got.describe(hw), c.want.describe(hw))
		}
	}
}

func TestSoftwareForced(t *testing.T) {
	for _, c := range []struct {
		name, value string
		want        bool
	}{
		{"OPENSSL_ia32cap", "~0x200000200000000", true},
		{"OPENSSL_armcap", "0", true},
		{"GODEBUG", "cpu.aes=off", true},
		{"GODEBUG", "http2debug=1,cpu.all=off", true},
		{"GODEBUG", "http2debug=1", false},
		{"HOME", "cpu.", false},
	} {
		got := softwareForced(func(name string) string {
			if name == c.name {
				return c.value
			}
			return ""
		})
		if got != c.want {
			t.Errorf("%s=%s: %v", c.name, c.value, got)
		}
	}
}

// The portable path is BearSSL where it is installed and an error where it is not; never anything else.
func TestConfigure(t *testing.T) {
	defer active.Store(active.Load())
	key, nonce := new([KeyLen]byte), new([NonceLen]byte)

	err := Configure(Options{Portable: true})
	if loadBearSSL() {
		if err != nil || Path() != "bearssl (constant-time software)" {
			t.Fatalf("portable: %v, %s", err, Path())
		}
	} else {
		if !errors.Is(err, ErrNoConstantTime) || Path() != "none" {
			t.Fatalf("portable without libbearssl: %v, %s", err, Path())
		}
		for _, call := range []func(){
			func() { Seal(nil, key, nonce, nil, nil) },
			func() { Open(nil, key, nonce, make([]byte, TagLen), nil) },
		} {
			func() {
				defer func() {
					if recover() == nil {
						t.Error("works although Configure refused")
					}
				}()
				call()
			}()
		}
	}

	if len(hardware()) == 0 {
		t.Log("this CPU has no AES instructions: the default is the portable path")
		return
	}
	active.Store(uint32(pathUnset)) // the first message chooses
	if _, ok := Open(nil, key, nonce, Seal(nil, key, nonce, nil, nil), nil); !ok {
		t.Fatal("does not open")
	}
	want := "go ("
	if loadLibcrypto() {
		want = "libcrypto ("
	}
	if !strings.HasPrefix(Path(), want) {
		t.Errorf("the default path is %s, want %s…)", Path(), want)
	}
	active.Store(uint32(pathUnset))
	if !strings.HasPrefix(Path(), want) {
		t.Errorf("asked first, Path says %s", Path())
	}
}
