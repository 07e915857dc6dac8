package hsmtest

import (
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyspec"
)

// TestImportOpenSSL imports keys that the openssl program makes and wraps, by the command lines that AWS KMS documents. want is as in TestImportToken.
func TestImportOpenSSL(t *testing.T, open func(t testing.TB) hsm.Token, want map[keyspec.Spec]Importing) {
	token := open(t).(hsm.ImportToken)
	t.Cleanup(func() { mustClose(t, token) })
	private, public, err := token.GenerateKey(keyspec.RSA3072)
	if err != nil {
		t.Fatal(err)
	}
	for s, made := range map[keyspec.Spec][]string{
		keyspec.AES256: {"rand", "-out", "key", "32"}, keyspec.HMAC224: {"rand", "-out", "key", "28"}, keyspec.HMAC512: {"rand", "-out", "key", "64"},
		keyspec.P256:      {"genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "pem"},
		keyspec.P384:      {"genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384", "-out", "pem"},
		keyspec.P521:      {"genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521", "-out", "pem"},
		keyspec.Secp256k1: {"genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:secp256k1", "-out", "pem"},
		keyspec.Ed25519:   {"genpkey", "-algorithm", "ed25519", "-out", "pem"},
		keyspec.RSA2048:   {"genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", "pem"},
	} {
		for w := range want[s].Wrappings {
			t.Run(s.String()+"/"+w.String(), func(t *testing.T) {
				o := openssl{t, t.TempDir()}
				o.run(made...)
				if s.Info().Public != 0 {
					o.run("pkcs8", "-topk8", "-nocrypt", "-in", "pem", "-outform", "DER", "-out", "key")
				}
				m := Material{Spec: s, Plain: o.read("key")}
				if s.Info().Public != 0 {
					o.run("pkey", "-inform", "DER", "-in", "key", "-pubout", "-outform", "DER", "-out", "public")
					m.Public = o.read("public")
				}
				o.write("wrapping", public)
				wrapped, spki, err := token.ImportKey(s, keyspec.RSA3072, private, w, o.wrap(w, "key"))
				if err != nil {
					t.Fatal(err)
				}
				if string(spki) != string(m.Public) {
					t.Errorf("public half %x, want %x", spki, m.Public)
				}
				CheckImported(t, token, &m, wrapped)
			})
		}
	}
}

// openssl runs the program in a folder.
type openssl struct {
	t   *testing.T
	dir string
}

func (o openssl) run(arguments ...string) {
	o.t.Helper()
	c := exec.Command("openssl", arguments...)
	c.Dir = o.dir
	if text, err := c.CombinedOutput(); err != nil {
		o.t.Fatalf("openssl %q: %v (if it is missing: run make deps)\n%s", arguments, err, text)
	}
}

func (o openssl) read(name string) []byte {
	o.t.Helper()
	b, err := os.ReadFile(filepath.Join(o.dir, name))
	if err != nil {
		o.t.Fatal(err)
	}
	return b
}

func (o openssl) write(name string, b []byte) {
	o.t.Helper()
	if err := os.WriteFile(filepath.Join(o.dir, name), b, 0o600); err != nil {
		o.t.Fatal(err)
	}
}

// wrap wraps a file for the public key in the file "wrapping".
func (o openssl) wrap(w keyspec.Wrapping, name string) []byte {
	o.t.Helper()
	hash := "sha256"
	if w == keyspec.WrapOAEP1 || w == keyspec.WrapRSAAES1 {
		hash = "sha1"
	}
	encrypt := func(in string) []byte {
		o.run("pkeyutl", "-encrypt", "-in", in, "-out", "rsa", "-inkey", "wrapping", "-keyform", "DER", "-pubin",
			"-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:"+hash, "-pkeyopt", "rsa_mgf1_md:"+hash)
		return o.read("rsa")
	}
	if !hsm.Hybrid(w) {
		return encrypt(name)
	}
	o.run("rand", "-out", "aes", "32")
	o.run("enc", "-id-aes256-wrap-pad", "-K", hex.EncodeToString(o.read("aes")), "-iv", "A65959A6", "-in", name, "-out", "wrapped")
	return append(encrypt("aes"), o.read("wrapped")...)
}
