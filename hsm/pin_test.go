package hsm

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadPIN(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pin")
	for content, want := range map[string]string{
		"1234\n": "1234", "1234": "1234", " 12 34 \n": " 12 34 ", "1234\r\n": "1234\r",
		strings.Repeat("a", pinMax): strings.Repeat("a", pinMax), strings.Repeat("a", pinMax) + "\n": strings.Repeat("a", pinMax),
		// Refused:
		"": "", "\n": "", "1\n2\n": "", "1\x002": "", strings.Repeat("a", pinMax+1): "", strings.Repeat("a", pinMax) + "\n\n": "",
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		pin, err := ReadPIN(path)
		if (err == nil) != (want != "") || string(pin.Expose()) != want {
			t.Errorf("%q: %q, %v", content, pin.Expose(), err)
		}
		if s := fmt.Sprint(pin, err); strings.Contains(s, "1234") {
			t.Errorf("the PIN prints: %s", s)
		}
	}
	for mode, ok := range map[os.FileMode]bool{0o600: true, 0o400: true, 0o700: true, 0o640: false, 0o604: false, 0o660: false, 0o601: false} {
		if err := os.WriteFile(path, []byte("1"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadPIN(path); (err == nil) != ok {
			t.Errorf("mode %o: %v", mode, err)
		}
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := ReadPIN(path + "-none"); err == nil {
		t.Error("a file that is not there")
	}
	if _, err := ReadPIN("/dev/null"); err == nil {
		t.Error("a device was read")
	}
}
