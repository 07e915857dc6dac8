package apitest

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/keyplane/keyplane/internal/blob"
	"github.com/keyplane/keyplane/internal/kdf"
	"github.com/keyplane/keyplane/internal/kdf/xaes"
)

// wrap encrypts key material for a wrapping key by the command lines of the KMS developer guide ("Encrypt the key material"). It returns the file's name.
func (o *openssl) wrap(t *testing.T, algorithm, publicKey, material string) string {
	t.Helper()
	hash := map[bool]string{true: "sha256", false: "sha1"}[strings.HasSuffix(algorithm, "SHA_256")]
	encrypt := func(in string) []byte {
		t.Helper()
		out := filepath.Join(o.dir, "wrapped-by-rsa.bin")
		o.run(t, "pkeyutl", "-encrypt", "-in", in, "-inkey", publicKey, "-keyform", "DER", "-pubin", "-out", out,
			"-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:"+hash, "-pkeyopt", "rsa_mgf1_md:"+hash)
		return must(os.ReadFile(out))(t)
	}
	if strings.HasPrefix(algorithm, "RSAES_OAEP") {
		return o.file(t, "EncryptedKeyMaterial.bin", encrypt(material))
	}
	aesKey, wrapped := filepath.Join(o.dir, "aes-key.bin"), filepath.Join(o.dir, "key-material-wrapped.bin")
	o.run(t, "rand", "-out", aesKey, "32")
	o.run(t, "enc", "-id-aes256-wrap-pad", "-K", hex.EncodeToString(must(os.ReadFile(aesKey))(t)), "-iv", "A65959A6", "-in", material, "-out", wrapped)
	return o.file(t, "EncryptedKeyMaterial.bin", append(encrypt(aesKey), must(os.ReadFile(wrapped))(t)...))
}

// material makes key material as the developer guide does. public is the file of a private key's public half, "" for other material.
func (o *openssl) material(t *testing.T, spec types.KeySpec) (plain, public string) {
	t.Helper()
	plain = filepath.Join(o.dir, "PlaintextKeyMaterial.bin")
	switch spec {
	case types.KeySpecSymmetricDefault, types.KeySpecHmac256:
		o.run(t, "rand", "-out", plain, "32")
		return plain, ""
	case types.KeySpecRsa2048:
		o.run(t, "genpkey", "-algorithm", "rsa", "-pkeyopt", "rsa_keygen_bits:2048", "-out", plain+".pem")
	case types.KeySpecEccNistP256:
		o.run(t, "genpkey", "-algorithm", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", plain+".pem")
	}
	o.run(t, "pkcs8", "-topk8", "-outform", "der", "-nocrypt", "-in", plain+".pem", "-out", plain)
	public = filepath.Join(o.dir, "PublicKey.der")
	o.run(t, "pkey", "-in", plain, "-inform", "der", "-pubout", "-outform", "der", "-out", public)
	return plain, public
}

// importer does what a client does to import key material and to use it: with the SDK, or with the AWS CLI.
type importer interface {
	create(t *testing.T, spec types.KeySpec, usage types.KeyUsageType) (id string)
	parameters(t *testing.T, id, algorithm, spec string) (token, publicKey []byte)
	importFile(t *testing.T, id string, token []byte, encrypted string)
	encrypt(t *testing.T, id string, plaintext []byte) (ciphertext []byte)
	sign(t *testing.T, id, algorithm string, message []byte) (signature []byte)
	mac(t *testing.T, id string, message []byte) []byte
}

// imported are the kinds of key material, with how each is wrapped.
var imported = []struct {
	spec      types.KeySpec
	usage     types.KeyUsageType
	algorithm string
}{
	{types.KeySpecSymmetricDefault, types.KeyUsageTypeEncryptDecrypt, "RSAES_OAEP_SHA_256"},
	{types.KeySpecHmac256, types.KeyUsageTypeGenerateVerifyMac, "RSAES_OAEP_SHA_1"},
	{types.KeySpecRsa2048, types.KeyUsageTypeSignVerify, "RSA_AES_KEY_WRAP_SHA_256"},
	{types.KeySpecEccNistP256, types.KeyUsageTypeSignVerify, "RSA_AES_KEY_WRAP_SHA_1"},
}

// importsEverything imports keys that OpenSSL made and wrapped, and has them used: it is the very key that works.
func importsEverything(t *testing.T, c importer) {
	o := newOpenSSL(t)
	for _, k := range imported {
		plain, public := o.material(t, k.spec)
		id := c.create(t, k.spec, k.usage)
		token, wrapping := c.parameters(t, id, k.algorithm, "RSA_3072")
		c.importFile(t, id, token, o.wrap(t, k.algorithm, o.file(t, "WrappingPublicKey.bin", wrapping), plain))
		key, message := must(os.ReadFile(plain))(t), []byte("a message for "+id)
		switch k.spec {
		case types.KeySpecSymmetricDefault:
			if got := openXAES(t, key, c.encrypt(t, id, message)); !bytes.Equal(got, message) {
				t.Errorf("what the imported key encrypted opens to %q", got)
			}
		case types.KeySpecHmac256:
			h := hmac.New(sha256.New, key)
			h.Write(message)
			if !hmac.Equal(c.mac(t, id, message), h.Sum(nil)) {
				t.Error("the MAC is not that of the imported key")
			}
		default:
			algorithm := map[types.KeySpec]string{types.KeySpecRsa2048: "RSASSA_PKCS1_V1_5_SHA_256", types.KeySpecEccNistP256: "ECDSA_SHA_256"}[k.spec]
			signature := o.file(t, "signature", c.sign(t, id, algorithm, message))
			out := o.run(t, "dgst", "-sha256", "-keyform", "DER", "-verify", public, "-signature", signature, o.file(t, "message", message))
			equal(t, "openssl's verdict", strings.TrimSpace(string(out)), "Verified OK")
		}
	}
}

// openXAES decrypts a ciphertext without encryption context by docs/ciphertext.md with nothing but the key.
func openXAES(t *testing.T, key, ciphertext []byte) []byte {
	t.Helper()
	var h blob.Header
	sealed, ok := blob.Parse(ciphertext, &h)
	if !ok || h.Suite != blob.SuiteResident {
		t.Fatalf("a ciphertext of suite %d", h.Suite)
	}
	block := must(aes.NewCipher(key))(t)
	var none blob.Context
	aad := none.AppendTo(bytes.Clone(ciphertext[:blob.HeaderLen]))
	plaintext, ok := xaes.New(func(dst, src *[kdf.BlockLen]byte) { block.Encrypt(dst[:], src[:]) }).Open(nil, &h.Nonce, sealed, aad)
	if !ok {
		t.Fatal("the ciphertext does not open with the imported key")
	}
	return plaintext
}

// sdkImporter is AWS's SDK for Go.
type sdkImporter struct{ c *kms.Client }

func (s sdkImporter) create(t *testing.T, spec types.KeySpec, usage types.KeyUsageType) string {
	t.Helper()
	m := must(s.c.CreateKey(t.Context(), &kms.CreateKeyInput{Origin: types.OriginTypeExternal, KeySpec: spec, KeyUsage: usage}))(t).KeyMetadata
	if m.KeyState != types.KeyStatePendingImport || m.Origin != types.OriginTypeExternal || m.CurrentKeyMaterialId != nil {
		t.Errorf("%s: %+v", spec, m)
	}
	return *m.KeyId
}

func (s sdkImporter) parameters(t *testing.T, id, algorithm, spec string) (token, publicKey []byte) {
	t.Helper()
	out := must(s.c.GetParametersForImport(t.Context(), &kms.GetParametersForImportInput{
		KeyId: &id, WrappingAlgorithm: types.AlgorithmSpec(algorithm), WrappingKeySpec: types.WrappingKeySpec(spec),
	}))(t)
	if until := time.Until(*out.ParametersValidTo); until > 24*time.Hour || until < 23*time.Hour {
		t.Errorf("valid for %v", until)
	}
	return out.ImportToken, out.PublicKey
}

func (s sdkImporter) importFile(t *testing.T, id string, token []byte, encrypted string) {
	t.Helper()
	until := time.Now().Add(time.Hour)
	out := must(s.c.ImportKeyMaterial(t.Context(), &kms.ImportKeyMaterialInput{
		KeyId: &id, ImportToken: token, EncryptedKeyMaterial: must(os.ReadFile(encrypted))(t), ValidTo: &until,
	}))(t)
	m := must(s.c.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: &id}))(t).KeyMetadata
	if m.KeyState != types.KeyStateEnabled || m.ExpirationModel != types.ExpirationModelTypeKeyMaterialExpires || m.ValidTo == nil || m.ValidTo.Sub(until).Abs() > time.Second ||
		aws.ToString(m.CurrentKeyMaterialId) != aws.ToString(out.KeyMaterialId) || *out.KeyId != *m.Arn {
		t.Errorf("imported %+v, described as %+v", out, m)
	}
}

func (s sdkImporter) encrypt(t *testing.T, id string, plaintext []byte) []byte {
	t.Helper()
	return must(s.c.Encrypt(t.Context(), &kms.EncryptInput{KeyId: &id, Plaintext: plaintext}))(t).CiphertextBlob
}

func (s sdkImporter) sign(t *testing.T, id, algorithm string, message []byte) []byte {
	t.Helper()
	return must(s.c.Sign(t.Context(), &kms.SignInput{KeyId: &id, Message: message, SigningAlgorithm: types.SigningAlgorithmSpec(algorithm)}))(t).Signature
}

func (s sdkImporter) mac(t *testing.T, id string, message []byte) []byte {
	t.Helper()
	return must(s.c.GenerateMac(t.Context(), &kms.GenerateMacInput{KeyId: &id, Message: message, MacAlgorithm: types.MacAlgorithmSpecHmacSha256}))(t).Mac
}

// testImport is the import of every kind of material, on every token, and what is refused.
func testImport(t *testing.T, s *world) {
	c, ctx := s.sdk(t), t.Context()
	importsEverything(t, sdkImporter{c})

	o := newOpenSSL(t)
	sdk := sdkImporter{c}
	plain, _ := o.material(t, types.KeySpecSymmetricDefault)
	id, other := sdk.create(t, types.KeySpecSymmetricDefault, types.KeyUsageTypeEncryptDecrypt), sdk.create(t, types.KeySpecSymmetricDefault, types.KeyUsageTypeEncryptDecrypt)
	token, public := sdk.parameters(t, id, "RSAES_OAEP_SHA_256", "RSA_2048")
	wrapping := o.file(t, "WrappingPublicKey.bin", public)
	encrypted := must(os.ReadFile(o.wrap(t, "RSAES_OAEP_SHA_256", wrapping, plain)))(t)
	try := func(id string, token, encrypted []byte) error {
		_, err := c.ImportKeyMaterial(ctx, &kms.ImportKeyMaterialInput{
			KeyId: &id, ImportToken: token, EncryptedKeyMaterial: encrypted, ExpirationModel: types.ExpirationModelTypeKeyMaterialDoesNotExpire,
		})
		return err
	}
	refusedAs[*types.InvalidImportTokenException](t, try(other, token, encrypted))
	for at := 0; at < len(token); at += 31 {
		flipped := bytes.Clone(token)
		flipped[at] ^= 4
		refusedAs[*types.InvalidImportTokenException](t, try(id, flipped, encrypted))
	}
	for at := 0; at < len(encrypted); at += 23 {
		flipped := bytes.Clone(encrypted)
		flipped[at] ^= 4
		e := refusedAs[*types.InvalidCiphertextException](t, try(id, token, flipped))
		equal(t, "the message", e.ErrorMessage(), "")
	}
	for _, n := range []string{"1", "16", "31", "33", "64"} {
		o.run(t, "rand", "-out", plain+n, n)
		refusedAs[*types.InvalidCiphertextException](t, try(id, token, must(os.ReadFile(o.wrap(t, "RSAES_OAEP_SHA_256", wrapping, plain+n)))(t)))
	}
	refusedAs[*types.InvalidCiphertextException](t, try(id, token, must(os.ReadFile(o.wrap(t, "RSAES_OAEP_SHA_1", wrapping, plain)))(t)))
	equal(t, "KeyState", state(t, c, &id), types.KeyStatePendingImport)
	if err := try(id, token, encrypted); err != nil {
		t.Fatal(err)
	}
	ciphertext := sdk.encrypt(t, id, []byte("kept"))
	o.run(t, "rand", "-out", plain+"other", "32")
	refusedAs[*types.IncorrectKeyMaterialException](t, try(id, token, must(os.ReadFile(o.wrap(t, "RSAES_OAEP_SHA_256", wrapping, plain+"other")))(t)))

	deleted := must(c.DeleteImportedKeyMaterial(ctx, &kms.DeleteImportedKeyMaterialInput{KeyId: &id}))(t)
	equal(t, "KeyState", state(t, c, &id), types.KeyStatePendingImport)
	_, err := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: ciphertext})
	refusedAs[*types.KMSInvalidStateException](t, err)
	if err := try(id, token, encrypted); err != nil {
		t.Fatal(err)
	}
	m := must(c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &id}))(t).KeyMetadata
	equal(t, "CurrentKeyMaterialId", *m.CurrentKeyMaterialId, *deleted.KeyMaterialId)
	equal(t, "ExpirationModel", m.ExpirationModel, types.ExpirationModelTypeKeyMaterialDoesNotExpire)
	equal(t, "the plaintext", string(must(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: ciphertext}))(t).Plaintext), "kept")

	_, err = c.GetParametersForImport(ctx, &kms.GetParametersForImportInput{KeyId: newKey(t, c).KeyId, WrappingAlgorithm: "RSAES_OAEP_SHA_256", WrappingKeySpec: "RSA_2048"})
	refusedAs[*types.UnsupportedOperationException](t, err)
}

// cliImporter is Debian's awscli.
type cliImporter struct {
	*awsCLI
	dir string
}

func (c cliImporter) create(t *testing.T, spec types.KeySpec, usage types.KeyUsageType) string {
	t.Helper()
	var made struct {
		KeyMetadata struct{ KeyId, KeyState string }
	}
	c.ok(t, &made, "create-key", "--origin", "EXTERNAL", "--key-spec", string(spec), "--key-usage", string(usage))
	equal(t, "KeyState", made.KeyMetadata.KeyState, "PendingImport")
	return made.KeyMetadata.KeyId
}

func (c cliImporter) parameters(t *testing.T, id, algorithm, spec string) (token, publicKey []byte) {
	t.Helper()
	var out struct{ ImportToken, PublicKey []byte }
	c.ok(t, &out, "get-parameters-for-import", "--key-id", id, "--wrapping-algorithm", algorithm, "--wrapping-key-spec", spec)
	return out.ImportToken, out.PublicKey
}

func (c cliImporter) file(t *testing.T, content []byte) string {
	t.Helper()
	path := filepath.Join(c.dir, "blob.bin")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return "fileb://" + path
}

func (c cliImporter) importFile(t *testing.T, id string, token []byte, encrypted string) {
	t.Helper()
	c.ok(t, nil, "import-key-material", "--key-id", id, "--import-token", c.file(t, token), "--encrypted-key-material", "fileb://"+encrypted,
		"--expiration-model", "KEY_MATERIAL_EXPIRES", "--valid-to", time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
}

func (c cliImporter) encrypt(t *testing.T, id string, plaintext []byte) []byte {
	t.Helper()
	var out struct{ CiphertextBlob []byte }
	c.ok(t, &out, "encrypt", "--key-id", id, "--plaintext", c.file(t, plaintext))
	return out.CiphertextBlob
}

func (c cliImporter) sign(t *testing.T, id, algorithm string, message []byte) []byte {
	t.Helper()
	var out struct{ Signature []byte }
	c.ok(t, &out, "sign", "--key-id", id, "--message", c.file(t, message), "--signing-algorithm", algorithm)
	return out.Signature
}

func (c cliImporter) mac(t *testing.T, id string, message []byte) []byte {
	t.Helper()
	var out struct{ Mac []byte }
	c.ok(t, &out, "generate-mac", "--key-id", id, "--message", c.file(t, message), "--mac-algorithm", "HMAC_SHA_256")
	return out.Mac
}

func cliImport(t *testing.T, a *awsCLI) {
	c := cliImporter{a, t.TempDir()}
	importsEverything(t, c)
	id := c.create(t, types.KeySpecSymmetricDefault, types.KeyUsageTypeEncryptDecrypt)
	a.fails(t, "UnsupportedOperationException", "get-parameters-for-import", "--key-id", id, "--wrapping-algorithm", "RSAES_PKCS1_V1_5", "--wrapping-key-spec", "RSA_2048")
	a.fails(t, "InvalidImportTokenException", "import-key-material", "--key-id", id, "--import-token", "AAAA", "--encrypted-key-material", "AAAA",
		"--expiration-model", "KEY_MATERIAL_DOES_NOT_EXPIRE")
	a.fails(t, "ValidationException", "import-key-material", "--key-id", id, "--import-token", "AAAA", "--encrypted-key-material", "AAAA")
	a.ok(t, nil, "delete-imported-key-material", "--key-id", id)
}

// TestImportExpires: the material's date and the token's, by the server's clock.
func TestImportExpires(t *testing.T) {
	t.Parallel()
	clock := NewClock(time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC))
	s := Start(t, WithClock(clock))
	c, ctx, o := s.KMS(t), context.Background(), newOpenSSL(t)
	id := *must(c.CreateKey(ctx, &kms.CreateKeyInput{Origin: types.OriginTypeExternal}))(t).KeyMetadata.KeyId
	p := must(c.GetParametersForImport(ctx, &kms.GetParametersForImportInput{KeyId: &id, WrappingAlgorithm: "RSAES_OAEP_SHA_256", WrappingKeySpec: "RSA_2048"}))(t)
	plain, _ := o.material(t, types.KeySpecSymmetricDefault)
	encrypted := must(os.ReadFile(o.wrap(t, "RSAES_OAEP_SHA_256", o.file(t, "WrappingPublicKey.bin", p.PublicKey), plain)))(t)
	in := &kms.ImportKeyMaterialInput{KeyId: &id, ImportToken: p.ImportToken, EncryptedKeyMaterial: encrypted, ValidTo: aws.Time(clock.Now().Add(12 * time.Hour))}
	must(c.ImportKeyMaterial(ctx, in))(t)
	ciphertext := must(c.Encrypt(ctx, &kms.EncryptInput{KeyId: &id, Plaintext: []byte("x")}))(t).CiphertextBlob
	decrypts := func() error {
		_, err := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: ciphertext})
		return err
	}
	s.Work(t)
	clock.Advance(12*time.Hour - time.Second)
	s.Work(t)
	if err := decrypts(); err != nil {
		t.Fatal(err)
	}
	// Ahead of its time the key is out of use, and comes back.
	clock.Jump(2 * time.Second)
	s.Work(t)
	refusedAs[*types.KMSInvalidStateException](t, decrypts())
	clock.Jump(-2 * time.Second)
	s.Work(t)
	if err := decrypts(); err != nil {
		t.Fatal(err)
	}
	clock.Advance(time.Second)
	s.Work(t)
	refusedAs[*types.KMSInvalidStateException](t, decrypts())
	clock.Jump(-time.Hour)
	s.Work(t)
	refusedAs[*types.KMSInvalidStateException](t, decrypts()) // it is destroyed: by both clocks its time was over
	clock.Jump(time.Hour)

	in.ValidTo, in.ExpirationModel = nil, types.ExpirationModelTypeKeyMaterialDoesNotExpire
	clock.Advance(12*time.Hour - time.Millisecond)
	must(c.ImportKeyMaterial(ctx, in))(t)
	if err := decrypts(); err != nil {
		t.Fatal(err)
	}
	clock.Advance(time.Millisecond)
	_, err := c.ImportKeyMaterial(ctx, in)
	refusedAs[*types.ExpiredImportTokenException](t, err)
}

// TestImportKilled ends the process between the steps of an import, of a deletion and of an expiry: a key has its material whole or not at all, and what was begun is
// done by whoever asks again, or by the next worker.
func TestImportKilled(t *testing.T) {
	t.Parallel()
	ctx, o, dir := context.Background(), newOpenSSL(t), filepath.Join(t.TempDir(), "data")
	plain, _ := o.material(t, types.KeySpecSymmetricDefault)
	var id string
	in := &kms.ImportKeyMaterialInput{ExpirationModel: types.ExpirationModelTypeKeyMaterialDoesNotExpire}
	killed := func(p *Process, err error) {
		t.Helper()
		if code := p.Wait(t); code != -1 || err == nil {
			t.Fatalf("the process was not killed: status %d, %v\n%s", code, err, p.Output())
		}
	}
	p := Failing(t, dir, "import.unwrapped")
	c := p.KMS(t)
	id = *must(c.CreateKey(ctx, &kms.CreateKeyInput{Origin: types.OriginTypeExternal}))(t).KeyMetadata.KeyId
	parameters := must(c.GetParametersForImport(ctx, &kms.GetParametersForImportInput{KeyId: &id, WrappingAlgorithm: "RSAES_OAEP_SHA_256", WrappingKeySpec: "RSA_2048"}))(t)
	in.KeyId, in.ImportToken = &id, parameters.ImportToken
	in.EncryptedKeyMaterial = must(os.ReadFile(o.wrap(t, "RSAES_OAEP_SHA_256", o.file(t, "WrappingPublicKey.bin", parameters.PublicKey), plain)))(t)
	_, err := c.ImportKeyMaterial(ctx, in)
	killed(p, err)

	p = Failing(t, dir, "import.written")
	c = p.KMS(t)
	equal(t, "KeyState, not imported", state(t, c, &id), types.KeyStatePendingImport)
	_, err = c.ImportKeyMaterial(ctx, in)
	killed(p, err)

	p = Failing(t, dir, "import.deleted")
	c = p.KMS(t)
	equal(t, "KeyState, imported", state(t, c, &id), types.KeyStateEnabled)
	ciphertext := must(c.Encrypt(ctx, &kms.EncryptInput{KeyId: &id, Plaintext: []byte("kept")}))(t).CiphertextBlob
	equal(t, "what the imported key encrypted", string(openXAES(t, must(os.ReadFile(plain))(t), ciphertext)), "kept")
	_, err = c.DeleteImportedKeyMaterial(ctx, &kms.DeleteImportedKeyMaterialInput{KeyId: &id})
	killed(p, err)

	p = Command(t, dir)
	c = p.KMS(t)
	equal(t, "KeyState, deleted", state(t, c, &id), types.KeyStatePendingImport)
	expires := time.Now().Add(4 * time.Second)
	in.ExpirationModel, in.ValidTo = types.ExpirationModelTypeKeyMaterialExpires, &expires
	must(c.ImportKeyMaterial(ctx, in))(t)
	equal(t, "the plaintext", string(must(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: ciphertext}))(t).Plaintext), "kept")
	p.Kill(t)
	time.Sleep(time.Until(expires))
	for _, step := range []string{"expiry.recorded", "expiry.written"} {
		p = Failing(t, dir, step) // the worker's first turn is at the start
		killed(p, context.Canceled)
	}
	p = Command(t, dir)
	c = p.KMS(t)
	equal(t, "KeyState, expired", state(t, c, &id), types.KeyStatePendingImport)
	_, err = c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: ciphertext})
	refusedAs[*types.KMSInvalidStateException](t, err)
}
