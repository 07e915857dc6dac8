package dataplane

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/attest/attesttest"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// The authority and the enclave's key of all tests.
var (
	authorityOnce sync.Once
	theAuthority  *attesttest.Authority

	recipientKey = sync.OnceValue(func() *rsa.PrivateKey {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		return key
	})
)

func authority(t testing.TB) *attesttest.Authority {
	authorityOnce.Do(func() { theAuthority = attesttest.New(t, time.Now()) })
	return theAuthority
}

// registers are 16 PCRs, of 48 bytes each; the first one's are all pcr0, the others' their index.
func registers(pcr0 byte) [][]byte {
	list := make([][]byte, 16)
	for i := range list {
		list[i] = bytes.Repeat([]byte{byte(i)}, 48)
	}
	list[0] = bytes.Repeat([]byte{pcr0}, 48)
	return list
}

func document(t testing.TB, pcr0 byte, age time.Duration) []byte {
	return authority(t).Document(t, &recipientKey().PublicKey, registers(pcr0), time.Now().Add(-age))
}

// tpmDocument is of an instance with a NitroTPM: registers 0 to 23, of their index.
func tpmDocument(t testing.TB) []byte {
	a := authority(t)
	list := make([][2][]byte, 24)
	for i := range list {
		list[i] = [2][]byte{attesttest.Uint(uint64(i)), attesttest.Bytes(bytes.Repeat([]byte{byte(i)}, 48))}
	}
	fields := attesttest.Without(a.Fields(t, &recipientKey().PublicKey, registers(0), time.Now()), "pcrs")
	fields = attesttest.Set(fields, "module_id", attesttest.Text("i-0123456789abcdef0-tpm0000000000000000"))
	return a.Sign(t, attesttest.Payload(attesttest.Set(fields, "nitrotpm_pcrs", attesttest.Map(list...))))
}

func recipientOf(document []byte) string {
	return `"Recipient":{"KeyEncryptionAlgorithm":"RSAES_OAEP_SHA_256","AttestationDocument":"` + base64.StdEncoding.EncodeToString(document) + `"}`
}

// pcr is a register of document as conditions and records have it.
func pcr(b byte) string { return hex.EncodeToString(bytes.Repeat([]byte{b}, 48)) }

// What an enclave gets only its key can read: the same that the caller would have got in clear.
func TestRecipient(t *testing.T) {
	w := newWorld(t, worldConfig{server: Config{AttestationRoots: authority(t).Roots(t)}})
	w.addKey("k1", kmsapi.StateEnabled, 1)
	k1 := keyID("k1").String()
	long := bytes.Repeat([]byte("0123456789abcdef"), 256) // the largest plaintext
	for name, doc := range map[string][]byte{"enclave": document(t, 7, 0), "NitroTPM": tpmDocument(t)} {
		to := recipientOf(doc)
		for _, c := range []struct {
			op, body string
			members  string // of the reply, in their order
			want     func(out map[string]string) []byte
		}{
			{"Decrypt", `{"CiphertextBlob":"` + base64.StdEncoding.EncodeToString(w.blob("k1", 1, nil, long)) + `",` + to + `}`,
				"EncryptionAlgorithm KeyId CiphertextForRecipient", func(map[string]string) []byte { return long }},
			{"Decrypt", `{"CiphertextBlob":"` + base64.StdEncoding.EncodeToString(w.blob("k1", 1, nil, []byte("x"))) + `",` + to + `}`,
				"EncryptionAlgorithm KeyId CiphertextForRecipient", func(map[string]string) []byte { return []byte("x") }},
			{"GenerateDataKey", `{"KeyId":"` + k1 + `","KeySpec":"AES_256",` + to + `}`,
				"CiphertextBlob CiphertextForRecipient KeyId", func(out map[string]string) []byte {
					sealed, _ := base64.StdEncoding.DecodeString(out["CiphertextBlob"])
					_, _, plaintext, ok := w.open(sealed, nil)
					if !ok || len(plaintext) != 32 {
						t.Fatalf("%s: CiphertextBlob: %x, %v", name, plaintext, ok)
					}
					return plaintext
				}},
			{"GenerateRandom", `{"NumberOfBytes":1024,` + to + `}`, "CiphertextForRecipient", nil},
		} {
			r := w.do(w.call(c.op, c.body))
			var out map[string]string
			if err := json.Unmarshal(r.body, &out); err != nil || r.status != 200 {
				t.Fatalf("%s: %s: %d %s", name, c.op, r.status, r.body)
			}
			if got := memberNames(t, r.body); got != c.members {
				t.Errorf("%s: %s: members %s, want %s", name, c.op, got, c.members)
			}
			sealed, err := base64.StdEncoding.DecodeString(out["CiphertextForRecipient"])
			if err != nil || len(sealed) > kmsapi.CiphertextBlobMax {
				t.Fatalf("%s: %s: %d bytes, %v", name, c.op, len(sealed), err)
			}
			got, err := attesttest.Open(recipientKey(), sealed)
			if err != nil {
				t.Fatalf("%s: %s: %v", name, c.op, err)
			}
			if c.want == nil {
				if len(got) != 1024 || bytes.Count(got, []byte{0}) > 100 {
					t.Errorf("%s: %s: %x", name, c.op, got)
				}
			} else if want := c.want(out); !bytes.Equal(got, want) {
				t.Errorf("%s: %s: %x, want %x", name, c.op, got, want)
			}
		}
	}
}

func memberNames(t testing.TB, body []byte) string {
	d := json.NewDecoder(bytes.NewReader(body))
	var names []string
	for depth := 0; ; {
		token, err := d.Token()
		if err != nil {
			break
		}
		if token == json.Delim('{') {
			depth++
			continue
		}
		if name, ok := token.(string); ok {
			names = append(names, name)
			if _, err := d.Token(); err != nil {
				t.Fatal(err)
			}
		}
	}
	return strings.Join(names, " ")
}

// Conditions about the document decide, with what an attested document says and nothing else.
func TestRecipientConditions(t *testing.T) {
	a := access{newWorld(t, worldConfig{server: Config{AttestationRoots: authority(t).Roots(t)}})}
	enclave, other, tpm := recipientOf(document(t, 7, 0)), recipientOf(document(t, 8, 0)), recipientOf(tpmDocument(t))
	for i, c := range []struct {
		name      string
		condition string
		allowed   []string // of enclave, other, tpm, none
	}{
		{"image", `"StringEqualsIgnoreCase":{"kms:RecipientAttestation:ImageSha384":"` + strings.ToUpper(pcr(7)) + `"}`, []string{"enclave"}},
		{"lower-case image", `"StringEquals":{"kms:RecipientAttestation:ImageSha384":"` + pcr(7) + `"}`, []string{"enclave"}},
		{"upper-case image", `"StringEquals":{"kms:RecipientAttestation:ImageSha384":"` + strings.ToUpper(pcr(0xab)) + `"}`, nil},
		{"PCR0", `"StringEquals":{"kms:RecipientAttestation:PCR0":"` + pcr(8) + `"}`, []string{"other"}},
		{"PCR3", `"StringEquals":{"kms:RecipientAttestation:PCR3":"` + pcr(3) + `"}`, []string{"enclave", "other"}},
		{"PCR15", `"StringEquals":{"kms:recipientattestation:pcr15":"` + pcr(15) + `"}`, []string{"enclave", "other"}},
		{"PCR16", `"Null":{"kms:RecipientAttestation:PCR16":"false"}`, nil},
		{"both", `"StringEquals":{"kms:RecipientAttestation:PCR3":"` + pcr(3) + `","kms:RecipientAttestation:PCR0":"` + pcr(7) + `"}`, []string{"enclave"}},
		{"NitroTPM", `"StringEquals":{"kms:RecipientAttestation:NitroTPMPCR4":"` + pcr(4) + `"}`, []string{"tpm"}},
		{"NitroTPM 23", `"StringEquals":{"kms:RecipientAttestation:NitroTPMPCR23":"` + pcr(23) + `"}`, []string{"tpm"}},
		{"no image", `"Null":{"kms:RecipientAttestation:ImageSha384":"true"}`, []string{"tpm", "none"}},
		{"any image", `"StringLike":{"kms:RecipientAttestation:ImageSha384":"*"}`, []string{"enclave", "other"}},
		{"another register", `"StringEquals":{"kms:RecipientAttestation:PCR1":"` + pcr(7) + `"}`, nil},
	} {
		name := fmt.Sprintf("k%d", i)
		a.addKey(name, kmsapi.StateEnabled, 1).Policy = []byte(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"*"},"Action":"kms:*","Resource":"*","Condition":{` + c.condition + `}}]}`)
		a.KeyChanged(ours, keyID(name))
		allowed := map[string]bool{}
		for _, n := range c.allowed {
			allowed[n] = true
		}
		blob := base64.StdEncoding.EncodeToString(a.blob(name, 1, nil, []byte("x")))
		for who, to := range map[string]string{"enclave": "," + enclave, "other": "," + other, "tpm": "," + tpm, "none": ""} {
			for _, call := range [][2]string{
				{"Decrypt", `{"CiphertextBlob":"` + blob + `"` + to + `}`}, {"GenerateDataKey", `{"KeyId":"` + keyID(name).String() + `","KeySpec":"AES_256"` + to + `}`},
			} {
				r := a.do(a.call(call[0], call[1]))
				if want := map[bool]string{true: "", false: "AccessDeniedException"}[allowed[who]]; r.exception() != want || (want == "") != (r.status == 200) {
					t.Errorf("%s: %s for %s: %d %s", c.name, call[0], who, r.status, r.body)
				}
			}
		}
	}
}

// A document that is not valid is refused in the same words whatever is wrong with it, and says nothing of keys: not that one exists, and not that the
// caller may use it. Without roots none is valid.
func TestRecipientRefused(t *testing.T) {
	var log bytes.Buffer
	with := newWorld(t, worldConfig{server: Config{AttestationRoots: authority(t).Roots(t)}})
	with.cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	without := newWorld(t, worldConfig{})
	a := authority(t)
	stranger := attesttest.New(t, time.Now())
	damaged := document(t, 7, 0)
	damaged[len(damaged)-1] ^= 1
	for _, w := range []*world{with, without} {
		w.addKey("k1", kmsapi.StateEnabled, 1)
		w.addKey("off", kmsapi.StateDisabled, 1)
		w.addKey("foreign", kmsapi.StateEnabled, 1)
		blob := base64.StdEncoding.EncodeToString(w.blob("k1", 1, nil, []byte("a plaintext that stays here")))
		w.audit.taken()
		for name, doc := range map[string][]byte{
			"garbage": {0, 0, 0}, "stale": document(t, 7, 6*time.Minute), "of tomorrow": document(t, 7, -24*time.Hour), "damaged": damaged,
			"another authority's": stranger.Document(t, &recipientKey().PublicKey, registers(7), time.Now()),
			"without a key":       a.Sign(t, attesttest.Payload(attesttest.Without(a.Fields(t, &recipientKey().PublicKey, registers(7), time.Now()), "public_key"))),
		} {
			want := reply{status: 400, body: []byte(`{"__type":"ValidationException","message":"` + textBadDocument + `"}`)}
			if w == without {
				want.body = []byte(`{"__type":"UnsupportedOperationException","message":"` + textNoRoots + `"}`)
			}
			to := "," + recipientOf(doc) + "}"
			for _, call := range [][2]string{
				{"Decrypt", `{"CiphertextBlob":"` + blob + `"` + to}, {"Decrypt", `{"CiphertextBlob":"AAAA"` + to}, {"GenerateRandom", `{"NumberOfBytes":8` + to},
				{"GenerateDataKey", `{"KeySpec":"AES_256","KeyId":"` + keyID("k1").String() + `"` + to}, {"GenerateDataKey", `{"KeySpec":"AES_256","KeyId":"` + keyID("off").String() + `"` + to},
				{"GenerateDataKey", `{"KeySpec":"AES_256","KeyId":"` + keyARN("foreign") + `"` + to}, {"GenerateDataKey", `{"KeySpec":"AES_256","KeyId":"` + keyARN("foreign-none") + `"` + to},
				{"GenerateDataKey", `{"KeySpec":"AES_256","KeyId":"alias/none","DryRun":true` + to},
			} {
				if r := w.do(w.call(call[0], call[1])); r.status != want.status || !bytes.Equal(r.body, want.body) {
					t.Errorf("%s: %s: %d %s", name, call[1][:min(len(call[1]), 120)], r.status, r.body)
				}
			}
		}
		for _, line := range w.audit.taken() {
			if strings.Contains(line, "attestationDocument") || !strings.Contains(line, "errorCode") {
				t.Errorf("the record of a refusal: %s", line)
			}
		}
	}
	for _, reason := range []string{"it is too old", "is in the future", "signature is not valid", "do not lead to a configured root", "public_key is missing", "not a COSE_Sign1"} {
		if !strings.Contains(log.String(), reason) {
			t.Errorf("the log does not say %q:\n%s", reason, log.String())
		}
	}
}

// Records say to whom the reply was sealed, of refusals too, and nothing of the document besides.
func TestRecipientRecords(t *testing.T) {
	w := newWorld(t, worldConfig{server: Config{AttestationRoots: authority(t).Roots(t)}})
	k := w.addKey("k1", kmsapi.StateEnabled, 1)
	w.addKey("off", kmsapi.StateDisabled, 1)
	w.audit.taken()
	enclave := map[string]any{"attestationDocumentModuleId": "i-0123456789abcdef0-enc0123456789abcdef", "attestationDocumentEnclaveImageDigest": pcr(7),
		"attestationDocumentEnclavePCR1": pcr(1), "attestationDocumentEnclavePCR2": pcr(2), "attestationDocumentEnclavePCR3": pcr(3),
		"attestationDocumentEnclavePCR4": pcr(4), "attestationDocumentEnclavePCR8": pcr(8)}
	tpm := map[string]any{"attestationDocumentModuleId": "i-0123456789abcdef0-tpm0000000000000000", "attestationDocumentNitroTPMPCR4": pcr(4), "attestationDocumentNitroTPMPCR7": pcr(7),
		"attestationDocumentNitroTPMPCR8": pcr(8), "attestationDocumentNitroTPMPCR9": pcr(9), "attestationDocumentNitroTPMPCR16": pcr(16), "attestationDocumentNitroTPMPCR23": pcr(23)}
	doc, tpmDoc := document(t, 7, 0), tpmDocument(t)
	material := string(k.Versions[0].MaterialID[:])
	for _, c := range []struct {
		op, body string
		code     string
		want     map[string]any
	}{
		{"GenerateDataKey", `{"KeyId":"` + keyARN("k1") + `","KeySpec":"AES_256",` + recipientOf(doc) + `}`, "", map[string]any{"keyMaterialId": material, "recipient": enclave}},
		{"GenerateDataKey", `{"KeyId":"` + keyARN("k1") + `","KeySpec":"AES_256",` + recipientOf(tpmDoc) + `}`, "", map[string]any{"keyMaterialId": material, "recipient": tpm}},
		{"GenerateRandom", `{"NumberOfBytes":8,` + recipientOf(doc) + `}`, "", map[string]any{"recipient": enclave}},
		{"GenerateDataKey", `{"KeyId":"` + keyARN("off") + `","KeySpec":"AES_256",` + recipientOf(doc) + `}`, "DisabledException", map[string]any{"recipient": enclave}},
		{"GenerateDataKey", `{"KeyId":"` + keyARN("k1") + `","KeySpec":"AES_256","DryRun":true,` + recipientOf(doc) + `}`, "DryRunOperationException", map[string]any{"recipient": enclave}},
	} {
		if r := w.do(w.call(c.op, c.body)); r.exception() != c.code {
			t.Fatalf("%s: %s", c.op, r.body)
		}
		lines := w.audit.taken()
		var got map[string]any
		if len(lines) != 1 || json.Unmarshal([]byte(lines[0]), &got) != nil {
			t.Fatalf("%q", lines)
		}
		if !reflect.DeepEqual(got["additionalEventData"], any(c.want)) {
			t.Errorf("%s: %v, want %v", c.op, got["additionalEventData"], c.want)
		}
		if strings.Contains(lines[0], base64.StdEncoding.EncodeToString(doc)[:40]) || strings.Contains(lines[0], "CiphertextForRecipient") {
			t.Errorf("the record has the document or the reply: %s", lines[0])
		}
	}
}
