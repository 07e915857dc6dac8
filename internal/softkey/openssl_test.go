package softkey

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/pubkey"
)

// openssl runs the program in a folder of its own, with files of the contents, and gives what it writes to the file "out".
func openssl(t *testing.T, files map[string][]byte, arguments ...string) []byte {
	t.Helper()
	program, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatalf("%v: run make deps", err)
	}
	dir := t.TempDir()
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := exec.Command(program, arguments...)
	c.Dir = dir
	if text, err := c.CombinedOutput(); err != nil {
		t.Fatalf("openssl %q: %v: %s", arguments, err, text)
	}
	b, err := os.ReadFile(filepath.Join(dir, "out"))
	if err != nil {
		return nil
	}
	return b
}

// OpenSSL reads our private keys, finds them in order, and makes the same public keys of them.
func TestOpenSSLReadsPairs(t *testing.T) {
	for _, s := range keyspec.All() {
		if !s.Info().Pair || s.Info().Family == keyspec.MLKEM { // ML-KEM comes with OpenSSL 3.5
			continue
		}
		private, public := generated()[s].private, generated()[s].public
		if got := openssl(t, map[string][]byte{"key": private}, "pkey", "-inform", "DER", "-in", "key", "-check", "-pubout", "-outform", "DER", "-out", "out"); !bytes.HasSuffix(got, public) {
			t.Errorf("%s: public key %x, want %x", s, got, public)
		}
		openssl(t, map[string][]byte{"key": public}, "pkey", "-pubin", "-inform", "DER", "-in", "key", "-pubcheck", "-noout")
	}
	for _, s := range []keyspec.Spec{keyspec.MLKEM512, keyspec.MLKEM768, keyspec.MLKEM1024} {
		spki, pkcs8, err := GeneratePair(s)
		if err != nil {
			t.Fatal(err)
		}
		openssl(t, map[string][]byte{"key": spki}, "asn1parse", "-inform", "DER", "-in", "key")
		openssl(t, map[string][]byte{"key": pkcs8}, "asn1parse", "-inform", "DER", "-in", "key")
	}
}

// Signatures of ours verify with OpenSSL, and OpenSSL's with ours.
func TestOpenSSLSignatures(t *testing.T) {
	message := []byte("a message for both")
	hash := map[int]string{32: "sha256", 48: "sha384", 64: "sha512"}
	for _, c := range []struct {
		s keyspec.Spec
		a keyspec.Algorithm
	}{
		{keyspec.RSA2048, keyspec.PKCS1SHA256}, {keyspec.RSA3072, keyspec.PKCS1SHA384}, {keyspec.RSA4096, keyspec.PKCS1SHA512},
		{keyspec.RSA2048, keyspec.PSSSHA256}, {keyspec.RSA3072, keyspec.PSSSHA384}, {keyspec.RSA4096, keyspec.PSSSHA512},
		{keyspec.P256, keyspec.ECDSASHA256}, {keyspec.P384, keyspec.ECDSASHA384}, {keyspec.P521, keyspec.ECDSASHA512}, {keyspec.Secp256k1, keyspec.ECDSASHA256},
		{keyspec.Ed25519, keyspec.Ed25519SHA512},
	} {
		k, public := must(t, c.s)
		in, ok := pubkey.Prepare(c.a, pubkey.RAW, public, message, make([]byte, pubkey.PreparedMax))
		if !ok {
			t.Fatal("not prepared")
		}
		ours := pubkey.AppendSignature(nil, c.a, do(t, k, opOf[c.a], in))
		options := []string{"-rawin"}
		if c.s.Info().Family != keyspec.Edwards {
			options = append(options, "-digest", hash[c.a.Info().Digest])
		}
		if op := opOf[c.a]; op == SignPSS256 || op == SignPSS384 || op == SignPSS512 {
			options = append(options, "-pkeyopt", "rsa_padding_mode:pss", "-pkeyopt", "rsa_pss_saltlen:digest")
		}
		files := map[string][]byte{"private": generated()[c.s].private, "public": generated()[c.s].public, "message": message, "sig": ours}
		openssl(t, files, append([]string{"pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey", "public", "-in", "message", "-sigfile", "sig"}, options...)...)
		theirs := openssl(t, files, append([]string{"pkeyutl", "-sign", "-keyform", "DER", "-inkey", "private", "-in", "message", "-out", "out"}, options...)...)
		if !public.Verify(c.a, pubkey.RAW, message, theirs) {
			t.Errorf("%s, %s: a signature of OpenSSL's does not verify: %x", c.s, c.a, theirs)
		}
	}
}

func TestOpenSSLEncryption(t *testing.T) {
	plaintext := []byte("a plaintext for both")
	for _, s := range []keyspec.Spec{keyspec.RSA2048, keyspec.RSA3072, keyspec.RSA4096} {
		for a, hash := range map[keyspec.Algorithm]string{keyspec.OAEPSHA1: "sha1", keyspec.OAEPSHA256: "sha256"} {
			k, public := must(t, s)
			options := []string{"-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:" + hash, "-pkeyopt", "rsa_mgf1_md:" + hash, "-keyform", "DER", "-in", "in", "-out", "out"}
			c := make([]byte, s.Info().Public)
			if _, err := public.EncryptOAEP(a, plaintext, c); err != nil {
				t.Fatal(err)
			}
			files := map[string][]byte{"private": generated()[s].private, "public": generated()[s].public, "in": c}
			if got := openssl(t, files, append([]string{"pkeyutl", "-decrypt", "-inkey", "private"}, options...)...); !bytes.Equal(got, plaintext) {
				t.Errorf("%s, %s: OpenSSL decrypts to %x", s, a, got)
			}
			files["in"] = plaintext
			theirs := openssl(t, files, append([]string{"pkeyutl", "-encrypt", "-pubin", "-inkey", "public"}, options...)...)
			op := DecryptOAEP1
			if a == keyspec.OAEPSHA256 {
				op = DecryptOAEP256
			}
			if got := do(t, k, op, theirs); !bytes.Equal(got, plaintext) {
				t.Errorf("%s, %s: OpenSSL's ciphertext decrypts to %x", s, a, got)
			}
			em, ok := rawRSA(k.rsa, theirs)
			out := make([]byte, s.PlaintextMax(a))
			if n, good := pubkey.DecodeOAEP(a, em, out); !ok || !good || !bytes.Equal(out[:n], plaintext) {
				t.Errorf("%s, %s: OpenSSL's block decodes to %x", s, a, out[:n])
			}
		}
	}
}

func TestOpenSSLAgreementAndMAC(t *testing.T) {
	for _, s := range []keyspec.Spec{keyspec.P256, keyspec.P384, keyspec.P521} {
		k, public := must(t, s)
		private, peer, err := Generate(s)
		if err != nil {
			t.Fatal(err)
		}
		point, err := public.Peer(peer)
		if err != nil {
			t.Fatal(err)
		}
		files := map[string][]byte{"private": private, "public": generated()[s].public}
		theirs := openssl(t, files, "pkeyutl", "-derive", "-keyform", "DER", "-inkey", "private", "-peerform", "DER", "-peerkey", "public", "-out", "out")
		if got := do(t, k, DeriveECDH, point); !bytes.Equal(got, theirs) {
			t.Errorf("%s: %x, OpenSSL has %x", s, got, theirs)
		}
	}
	for s, hash := range map[keyspec.Spec]string{keyspec.HMAC224: "SHA224", keyspec.HMAC256: "SHA256", keyspec.HMAC384: "SHA384", keyspec.HMAC512: "SHA512"} {
		k, _ := must(t, s)
		key := fmt.Sprintf("hexkey:%s", hex.EncodeToString(generated()[s].private))
		theirs := openssl(t, map[string][]byte{"in": []byte("a message")}, "mac", "-digest", hash, "-macopt", key, "-in", "in", "-binary", "-out", "out", "HMAC")
		if got := do(t, k, MAC, []byte("a message")); !bytes.Equal(got, theirs) {
			t.Errorf("%s: %x, OpenSSL has %x", s, got, theirs)
		}
	}
}
