package attest_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/keyplane/keyplane/internal/attest"
	at "github.com/keyplane/keyplane/internal/attest/attesttest"
)

func plaintext(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func TestSeal(t *testing.T) {
	other := at.NewRecipient(t)
	for _, n := range []int{0, 1, 15, 16, 17, 32, 48, 255, 1024, 2400, 4095, 4096} {
		want := plaintext(n)
		sealed, err := attest.Seal(&recipient().PublicKey, want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := at.Open(recipient(), sealed)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes: %x for %x, %v\n%x", n, got, want, err, sealed)
		}
		if len(sealed) > 6144 {
			t.Errorf("%d bytes become %d, more than CiphertextForRecipient has", n, len(sealed))
		}
		again, err := attest.Seal(&recipient().PublicKey, want)
		if err != nil || bytes.Equal(again, sealed) {
			t.Errorf("%d bytes are sealed in the same way twice, %v", n, err)
		}
		if n >= 15 && bytes.Contains(sealed, want) {
			t.Errorf("the plaintext of %d bytes is in the message", n)
		}
		// Another key opens nothing.
		if got, err := at.Open(other, sealed); err == nil {
			t.Errorf("another key opened %x", got)
		}
	}
}

// The largest plaintext to the largest key fits into the member.
func TestSealLargest(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 4096)
	if err != nil {
		t.Fatal(err)
	}
	want := plaintext(4096)
	sealed, err := attest.Seal(&key.PublicKey, want)
	if err != nil || len(sealed) > 6144 {
		t.Fatalf("%d bytes, %v", len(sealed), err)
	}
	if got, err := at.Open(key, sealed); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%x, %v", got, err)
	}
}

// openssl reads the same message.
func TestSealOpenSSL(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatalf("%v: run make deps", err)
	}
	dir := t.TempDir()
	der, err := x509.MarshalPKCS8PrivateKey(recipient())
	if err != nil {
		t.Fatal(err)
	}
	keyFile := filepath.Join(dir, "key.pem")
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{1, 16, 32, 2400, 4096} {
		want := plaintext(n)
		sealed, err := attest.Seal(&recipient().PublicKey, want)
		if err != nil {
			t.Fatal(err)
		}
		message, out := filepath.Join(dir, "message"), filepath.Join(dir, "plaintext")
		if err := os.WriteFile(message, sealed, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(openssl, "cms", "-decrypt", "-binary", "-inform", "DER", "-in", message, "-inkey", keyFile, "-out", out)
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%d bytes: %v: %s", n, err, text)
		}
		if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes: %x for %x, %v", n, got, want, err)
		}
	}
}
