package apitest

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"testing"
)

func encode(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// decryptBody is the request for a blob under the victim's context.
func decryptBody(blob []byte) string {
	return `{"CiphertextBlob":"` + encode(blob) + `","EncryptionContext":` + pairsAB + `}`
}

const (
	invalidCiphertext = "InvalidCiphertextException"
	accessDenied      = "AccessDeniedException"
)

// Offsets in a blob: docs/ciphertext.md §1.
const (
	blobAccount    = 2
	blobForm       = 8
	blobKeyID      = 9
	blobKeyVersion = 25
	blobNonce      = 29
	blobHeader     = 69
)

// testHostileBlob: a blob that is not exactly what was made never decrypts, and the refusal does not say what is wrong with it.
func testHostileBlob(t *testing.T, v *victim) {
	c := v.Client(t)
	named := func(blob []byte) string { return `{"KeyId":"` + v.keyID + `",` + decryptBody(blob)[1:] }

	for n := range v.blob {
		if n == 0 {
			continue // a missing value, which is another refusal
		}
		refusal(t, fmt.Sprintf("the first %d bytes", n), c.Do(t, "Decrypt", decryptBody(v.blob[:n])), invalidCiphertext)
		refusal(t, fmt.Sprintf("the last %d bytes", n), c.Do(t, "Decrypt", decryptBody(v.blob[len(v.blob)-n:])), invalidCiphertext)
		refusal(t, fmt.Sprintf("the first %d bytes and the key", n), c.Do(t, "Decrypt", named(v.blob[:n])), invalidCiphertext)
	}
	for _, more := range [][]byte{{0}, v.blob, make([]byte, 4096)} {
		refusal(t, fmt.Sprintf("%d bytes more", len(more)), c.Do(t, "Decrypt", decryptBody(append(bytes.Clone(v.blob), more...))), invalidCiphertext)
	}

	for i := range v.blob {
		for bit := range 8 {
			bad := bytes.Clone(v.blob)
			bad[i] ^= 1 << bit
			// A blob that names another account or key is not theirs to read, whether that key exists or not. An account of 10^12 or more
			// and a key ID form that is none are no blob.
			want := []string{invalidCiphertext}
			switch {
			case i >= blobAccount && i < blobForm, i == blobForm:
				want = []string{invalidCiphertext, accessDenied}
			case i >= blobKeyID && i < blobKeyVersion:
				want = []string{accessDenied}
			}
			refusal(t, fmt.Sprintf("bit %d of byte %d", bit, i), c.Do(t, "Decrypt", decryptBody(bad)), want...)
			if bit != i%8 {
				continue
			}
			want = []string{invalidCiphertext}
			if i >= blobAccount && i < blobKeyVersion {
				want = []string{invalidCiphertext, "IncorrectKeyException"}
			}
			refusal(t, fmt.Sprintf("bit %d of byte %d and the key", bit, i), c.Do(t, "Decrypt", named(bad)), want...)
			reEncrypt := `{"SourceKeyId":"` + v.keyARN + `","DestinationKeyId":"` + v.keyID + `","CiphertextBlob":"` + encode(bad) + `","SourceEncryptionContext":` + pairsAB + `}`
			refusal(t, fmt.Sprintf("ReEncrypt, bit %d of byte %d", bit, i), c.Do(t, "ReEncrypt", reEncrypt), want...)
		}
	}

	// Parts of two good blobs do not make a third.
	var made struct{ CiphertextBlob []byte }
	c.Do(t, "Encrypt", `{"KeyId":"`+v.keyID+`","Plaintext":"`+hello+`","EncryptionContext":`+pairsAB+`}`).Members(t, &made)
	for _, at := range []int{blobNonce, blobNonce + 12, blobNonce + 24, blobHeader, len(v.blob) - 16} {
		mixed := append(bytes.Clone(v.blob[:at]), made.CiphertextBlob[at:]...)
		what := fmt.Sprintf("two blobs joined at %d", at)
		if at == blobNonce { // all that differs is from the second blob: it is the second blob
			if r := c.Do(t, "Decrypt", decryptBody(mixed)); r.Status != 200 {
				t.Errorf("%s: %d %s", what, r.Status, r.Body)
			}
			continue
		}
		refusal(t, what, c.Do(t, "Decrypt", decryptBody(mixed)), invalidCiphertext)
	}
	zero := make([]byte, len(v.blob))
	refusal(t, "zeros", c.Do(t, "Decrypt", decryptBody(zero)), invalidCiphertext)

	// The context is a set of pairs, all of them bound.
	in := func(pairs string) string {
		return `{"CiphertextBlob":"` + encode(v.blob) + `","EncryptionContext":` + pairs + `}`
	}
	for _, wrong := range []string{
		`null`, `{}`, `{"a":"1"}`, `{"b":"2"}`, `{"a":"1","b":"3"}`, `{"a":"2","b":"1"}`, `{"a":"1","b":"2","c":""}`, `{"a":"1","B":"2"}`, `{"a":"1","b":"2 "}`,
		`{"a":"1b2"}`, `{"a1":"b2"}`, `{"":"a1b2"}`, `{"a":"\u0661","b":"2"}`,
	} {
		refusal(t, "context "+wrong, c.Do(t, "Decrypt", in(wrong)), invalidCiphertext)
	}
	refusal(t, "no context", c.Do(t, "Decrypt", `{"CiphertextBlob":"`+encode(v.blob)+`"}`), invalidCiphertext)
	for _, same := range []string{`{"a":"1","b":"2"}`, `{"b":"2","a":"1"}`, `{ "\u0062" : "\u0032" , "a" : "1" }`} {
		if r := c.Do(t, "Decrypt", in(same)); r.Status != 200 {
			t.Errorf("context %s: %d %s", same, r.Status, r.Body)
		}
	}
}
