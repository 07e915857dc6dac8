package auditkey

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
)

// rekor is the public key of Sigstore's log, as c2sp.org/signed-note's type 0x02 was first used: its key ID, c0d23d6a, is the beginning of the
// log ID that Sigstore publishes.
const rekor = "rekor.sigstore.dev+c0d23d6a+AjBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABNhtmPtrWm3U1eQXBogSMdGvXwBcK5AW5i0hrZLOC96l+smGNM7nwZ4QvFK/4sueRoVj//QP22Ni4Qt9DPfkWLc="

// softKey is a Key of the standard library.
type softKey struct{ *ecdsa.PrivateKey }

func (k softKey) Public() *ecdsa.PublicKey { return &k.PublicKey }
func (k softKey) Sign(digest []byte) ([]byte, error) {
	return ecdsa.SignASN1(rand.Reader, k.PrivateKey, digest)
}

func newKey(t testing.TB, c elliptic.Curve) softKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return softKey{k}
}

func TestKnownKey(t *testing.T) {
	name, public, err := ParseVerifierKey(rekor)
	if err != nil || name != "rekor.sigstore.dev" {
		t.Fatalf("%q, %v", name, err)
	}
	v, err := NewVerifier(name, public)
	if err != nil || v.KeyHash() != 0xc0d23d6a {
		t.Fatalf("key ID %08x, %v", v.KeyHash(), err)
	}
}

func TestNote(t *testing.T) {
	const name = "keyplane.example/us-east-1"
	k := newKey(t, elliptic.P256())
	s, err := NewSigner(name, k)
	if err != nil {
		t.Fatal(err)
	}
	v, err := NewVerifier(name, k.Public())
	if err != nil {
		t.Fatal(err)
	}
	if s.Name() != name || v.Name() != name || s.KeyHash() != v.KeyHash() {
		t.Error("signer and verifier differ")
	}
	const text = "keyplane.example/us-east-1\n7\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"
	signed, err := note.Sign(&note.Note{Text: text}, s)
	if err != nil {
		t.Fatal(err)
	}
	n, err := note.Open(signed, note.VerifierList(v))
	if err != nil || n.Text != text || len(n.Sigs) != 1 {
		t.Fatalf("%+v, %v", n, err)
	}
	// Another key of the same name, another name, another text.
	other, _ := NewVerifier(name, newKey(t, elliptic.P256()).Public())
	renamed, _ := NewVerifier(name+"x", k.Public())
	for what, list := range map[string]note.Verifiers{"another key": note.VerifierList(other), "another name": note.VerifierList(renamed)} {
		if _, err := note.Open(signed, list); err == nil {
			t.Errorf("%s: verified", what)
		}
	}
	for i := range len(text) - 1 {
		changed := append([]byte(nil), signed...)
		changed[i] ^= 1
		if _, err := note.Open(changed, note.VerifierList(v)); err == nil {
			t.Errorf("byte %d of the text changed: verified", i)
		}
	}
	// The signature is DER, not r || s.
	sig, err := base64.StdEncoding.DecodeString(n.Sigs[0].Base64)
	if err != nil || len(sig) < 12 || sig[4] != 0x30 {
		t.Errorf("signature %x, %v", sig, err)
	}
	text2, err := VerifierKey(name, k.Public())
	if err != nil {
		t.Fatal(err)
	}
	if back, public, err := ParseVerifierKey(text2); err != nil || back != name || !public.Equal(k.Public()) {
		t.Errorf("%s does not come back: %v", text2, err)
	}
	p, err := PEM(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	block, rest := pem.Decode(p)
	if parsed, err := x509.ParsePKIXPublicKey(block.Bytes); err != nil || len(rest) > 0 || !k.Public().Equal(parsed) {
		t.Errorf("PEM: %v", err)
	}
}

func TestRefused(t *testing.T) {
	k := newKey(t, elliptic.P256())
	for _, name := range []string{"", "a b", "a+b", "a\n", "a\x00", "a\u00a0b", "a\xff", strings.Repeat("n", nameMax+1)} {
		if _, err := NewSigner(name, k); err == nil {
			t.Errorf("name %q", name)
		}
	}
	if _, err := NewSigner("n", newKey(t, elliptic.P384())); err == nil {
		t.Error("a key on P-384")
	}
	if _, err := NewVerifier("n", nil); err == nil {
		t.Error("no key")
	}
	// An Ed25519 key under type 0x02, a P-384 one, trailing bytes.
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	wrap := func(typ byte, public any, tail ...byte) string {
		der, err := x509.MarshalPKIXPublicKey(public)
		if err != nil {
			t.Fatal(err)
		}
		der = append(der, tail...)
		sum := sha256.Sum256(der)
		return fmt.Sprintf("n+%x+%s", sum[:4], base64.StdEncoding.EncodeToString(append([]byte{typ}, der...)))
	}
	if _, _, err := ParseVerifierKey(wrap(2, k.Public())); err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(rekor, "+")
	encoded := strings.Join(parts[2:], "+") // base64 has + too
	for what, text := range map[string]string{
		"empty": "", "one part": "rekor.sigstore.dev", "two parts": "rekor.sigstore.dev+c0d23d6a", "no name": rekor[len(parts[0]):],
		"wrong key ID":      strings.Replace(rekor, "c0d23d6a", "c0d23d6b", 1),
		"key ID in capital": strings.Replace(rekor, "c0d23d6a", "C0D23D6A", 1),
		"short key ID":      strings.Replace(rekor, "c0d23d6a", "c0d23d6", 1),
		"newline":           rekor + "\n", "space": " " + rekor, "no padding": strings.TrimSuffix(rekor, "="),
		"loose base64": parts[0] + "+" + parts[1] + "+" + strings.Replace(encoded, "WLc=", "WLd=", 1),
		"base64 lines": parts[0] + "+" + parts[1] + "+" + encoded[:8] + "\n" + encoded[8:],
		"type 0x01":    wrap(1, k.Public()), "Ed25519": wrap(2, ed), "P-384": wrap(2, newKey(t, elliptic.P384()).Public()),
		"trailing byte": wrap(2, k.Public(), 0),
	} {
		if name, _, err := ParseVerifierKey(text); err == nil {
			t.Errorf("%s: %q was accepted as %q", what, text, name)
		}
	}
}

func FuzzVerifierKey(f *testing.F) {
	f.Add(rekor)
	f.Add("n+00000000+Ag==")
	f.Add("++")
	f.Fuzz(func(t *testing.T, text string) {
		name, public, err := ParseVerifierKey(text)
		if err != nil {
			return
		}
		if again, err := VerifierKey(name, public); err != nil || again != text {
			t.Fatalf("%q came back as %q, %v", text, again, err)
		}
		if _, err := NewVerifier(name, public); err != nil {
			t.Fatal(err)
		}
	})
}
