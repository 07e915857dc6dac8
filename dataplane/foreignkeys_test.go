package dataplane

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/blob"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/quota"
	"github.com/keyplane/keyplane/ratelimit"
)

// resourcesOf is what a record lists.
func resourcesOf(line string) string {
	i := strings.Index(line, `"resources"`)
	if i < 0 {
		return ""
	}
	return line[i:][:strings.IndexByte(line[i:], ']')]
}

// A caller whose pool is empty does not learn from another answer, or from its own trail, whether a key of another account exists, or of which spec it is.
func TestForeignKeysByQuota(t *testing.T) {
	for _, empty := range []ratelimit.Pool{quota.RSA, quota.Symmetric} {
		w := newWorld(t, worldConfig{quota: func(_ keyid.Account, p ratelimit.Pool, _ time.Time) bool { return p != empty }})
		w.addPrivateKey("rsa", kmsapi.StateEnabled, keyspec.RSA2048, keyspec.EncryptDecrypt)
		w.addKey("sym", kmsapi.StateEnabled, 1)
		w.addPrivateKey("foreignrsa", kmsapi.StateEnabled, keyspec.RSA2048, keyspec.EncryptDecrypt)
		asOther := signature{key: otherKey}
		w.audit.taken()
		ask := func(op, name, body string) string {
			r := w.do(w.sign(asOther, kmsapi.TargetPrefix+op, []byte(body)))
			answer := fmt.Sprint(r.status, " ", strings.ReplaceAll(string(r.body), keyID(name).String(), "ID"))
			for _, l := range w.audit.taken() {
				answer += strings.ReplaceAll(resourcesOf(l), keyID(name).String(), "ID")
			}
			return answer
		}
		for _, op := range []struct{ name, body string }{
			{"Encrypt", `{"KeyId":"ARN","Plaintext":"eA=="}`},
			{"Decrypt", `{"KeyId":"ARN","CiphertextBlob":"eA==","EncryptionAlgorithm":"RSAES_OAEP_SHA_1"}`},
			{"Sign", `{"KeyId":"ARN","Message":"eA==","SigningAlgorithm":"RSASSA_PSS_SHA_256"}`},
			{"Verify", `{"KeyId":"ARN","Message":"eA==","Signature":"eA==","SigningAlgorithm":"RSASSA_PSS_SHA_256"}`},
			{"GetPublicKey", `{"KeyId":"ARN"}`},
			{"ReEncrypt", `{"CiphertextBlob":"BLOB","DestinationKeyId":"DEST","DestinationEncryptionAlgorithm":"RSAES_OAEP_SHA_1"}`},
			{"ReEncrypt", `{"CiphertextBlob":"eA==","SourceKeyId":"ARN","SourceEncryptionAlgorithm":"RSAES_OAEP_SHA_1","DestinationKeyId":"DEST","DestinationEncryptionAlgorithm":"RSAES_OAEP_SHA_1"}`},
		} {
			var want string
			for _, name := range []string{"nobody", "rsa", "sym"} {
				h := blob.Header{Suite: blob.SuiteDerived, Account: ours, Key: keyID(name), KeyVersion: 1}
				sent := b64(append(h.Append(nil), make([]byte, 40)...))
				got := ask(op.name, name, strings.NewReplacer("ARN", keyARN(name), "BLOB", sent, "DEST", strings.Replace(keyARN("foreignrsa"), ours.String(), others.String(), 1)).Replace(op.body))
				if want == "" {
					want = got
				}
				if got != want {
					t.Errorf("%s with %s, pool %d empty: %s, but of one that does not exist %s", op.name, name, empty, got, want)
				}
			}
		}
	}
}

// A caller that may use another account's key is charged to the key's pool.
func TestForeignKeyCharged(t *testing.T) {
	var charged []ratelimit.Pool
	w := newWorld(t, worldConfig{quota: func(_ keyid.Account, p ratelimit.Pool, _ time.Time) bool {
		charged = append(charged, p)
		return p != quota.RSA
	}})
	k := w.addPrivateKey("rsa", kmsapi.StateEnabled, keyspec.RSA2048, keyspec.EncryptDecrypt)
	k.Policy = []byte(`{"Statement":{"Effect":"Allow","Principal":{"AWS":"` + others.String() + `"},"Action":"kms:*","Resource":"*"}}`)
	k.Bound = nil
	r := w.do(w.sign(signature{key: otherKey}, kmsapi.TargetPrefix+"Encrypt", []byte(`{"KeyId":"`+keyARN("rsa")+`","Plaintext":"eA==","EncryptionAlgorithm":"RSAES_OAEP_SHA_1"}`)))
	if !strings.Contains(string(r.body), "ThrottlingException") || len(charged) == 0 || charged[len(charged)-1] != quota.RSA {
		t.Errorf("%s, charged %v", r.body, charged)
	}
}

// Whoever has the public key can encrypt nothing at all; no plaintext of the service is that short.
func TestEmptyPlaintextRSA(t *testing.T) {
	w := newWorld(t, worldConfig{})
	k := w.addPrivateKey("rsa", kmsapi.StateEnabled, keyspec.RSA2048, keyspec.EncryptDecrypt)
	w.addKey("sym", kmsapi.StateEnabled, 1)
	c := b64(w.encryptOAEP(k, keyspec.OAEPSHA1, nil))
	for op, body := range map[string]string{
		"Decrypt":   `{"KeyId":%q,"EncryptionAlgorithm":"RSAES_OAEP_SHA_1","CiphertextBlob":%q}`,
		"ReEncrypt": `{"SourceKeyId":%q,"SourceEncryptionAlgorithm":"RSAES_OAEP_SHA_1","CiphertextBlob":%q,"DestinationKeyId":"` + keyID("sym").String() + `"}`,
	} {
		if r := w.do(w.call(op, fmt.Sprintf(body, k.ID, c))); !strings.Contains(string(r.body), "InvalidCiphertextException") {
			t.Errorf("%s: %s", op, r.body)
		}
	}
}

// faultyKeys flip a bit of every result.
type faultyKeys struct{ hsm.Keys }

func (f faultyKeys) Run(j *hsm.KeyJob, now time.Time) error {
	err := f.Keys.Run(j, now)
	if err == nil {
		j.Out[j.N-1] ^= 1
	}
	return err
}

// No wrong signature of an RSA key leaves: with one its factors could be found. Of other keys one in provedEvery is verified.
func TestFaultySignature(t *testing.T) {
	w := newWorld(t, worldConfig{})
	w.parts.Keys = faultyKeys{w.parts.Keys}
	for _, c := range []struct {
		spec      keyspec.Spec
		algorithm string
		refused   int // of provedEvery requests
	}{{keyspec.RSA2048, "RSASSA_PKCS1_V1_5_SHA_256", provedEvery}, {keyspec.RSA2048, "RSASSA_PSS_SHA_512", provedEvery}, {keyspec.Ed25519, "ED25519_SHA_512", 1}} {
		k := w.addPrivateKey("k-"+c.algorithm, kmsapi.StateEnabled, c.spec, keyspec.SignVerify)
		refused := 0
		for range provedEvery {
			r := w.do(w.call("Sign", fmt.Sprintf(`{"KeyId":%q,"Message":"eA==","SigningAlgorithm":%q}`, k.ID, c.algorithm)))
			if strings.Contains(string(r.body), "KMSInternalException") && !strings.Contains(string(r.body), "Signature") {
				refused++
			}
		}
		if refused != c.refused {
			t.Errorf("%s: %d refused, want %d", c.algorithm, refused, c.refused)
		}
	}
}
