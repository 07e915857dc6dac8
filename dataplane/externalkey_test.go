package dataplane

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/snapshot"
	"github.com/keyplane/keyplane/internal/xks"
)

const externalID, cloudID = "cks-00000000000000001", "cks-00000000000000002"

// What an external key store's key makes opens with both keys, by other code, and with no less. The proxy is told what it is to be told, and sees no plaintext.
func TestExternalOperations(t *testing.T) {
	w := newWorld(t, worldConfig{})
	store := w.addExternalStore(externalID)
	k := w.inStore(w.addKey("ext", kmsapi.StateEnabled, 1), store)
	id, material := k.ID.String(), string(k.Versions[0].MaterialID[:])
	context := map[string]string{"a": "1"}
	call := func(op, kms string, blob []byte) xksCall {
		t.Helper()
		calls := store.taken()
		if len(calls) != 1 {
			t.Fatalf("%d calls", len(calls))
		}
		c := calls[0]
		want := xks.Metadata{Principal: userARN(ours, "administrator"), KeyARN: keyARN("ext"), Operation: kms, RequestID: c.m.RequestID}
		digest := sha256.Sum256(canonical(context))
		if c.op != op || c.key != k.Store.XksKeyID || c.m != want || !requestIDForm.MatchString(c.m.RequestID) || !bytes.Equal(c.aad, slices.Concat(blob[:69], digest[:])) {
			t.Errorf("%+v", c)
		}
		return c
	}
	check := func(kms string, blob, want []byte) {
		t.Helper()
		if key, version, got, ok := w.open(blob, context); !ok || key != k.ID || version != 1 || want != nil && !bytes.Equal(got, want) || blob[1] != 3 {
			t.Errorf("version %d, %x, want %x", version, got, want)
		}
		c := call("Encrypt", kms, blob)
		if len(want) > 15 && bytes.Contains(c.plaintext, want[:16]) || len(blob) != 69+1+12+16+1+len(c.plaintext) {
			t.Errorf("%s: the proxy is given %x", kms, c.plaintext)
		}
		out := w.ask("Decrypt", "EncryptionAlgorithm KeyId KeyMaterialId Plaintext", `{"CiphertextBlob":%q,"EncryptionContext":{"a":"1"}}`, b64(blob))
		if want != nil && !bytes.Equal(out.Plaintext, want) || out.KeyMaterialId != material || out.KeyId != keyARN("ext") {
			t.Errorf("%+v", out)
		}
		call("Decrypt", "Decrypt", blob)
	}
	for _, n := range []int{1, 32, 4096} {
		text := bytes.Repeat([]byte("x"), n)
		out := w.ask("Encrypt", "CiphertextBlob EncryptionAlgorithm KeyId", `{"KeyId":%q,"Plaintext":%q,"EncryptionContext":{"a":"1"}}`, id, b64(text))
		check("Encrypt", out.CiphertextBlob, text)
	}
	out := w.ask("GenerateDataKey", "CiphertextBlob Plaintext KeyId KeyMaterialId", `{"KeyId":%q,"NumberOfBytes":65,"EncryptionContext":{"a":"1"}}`, id)
	check("GenerateDataKey", out.CiphertextBlob, out.Plaintext)
	out = w.ask("GenerateDataKeyWithoutPlaintext", "CiphertextBlob KeyId KeyMaterialId", `{"KeyId":%q,"KeySpec":"AES_256","EncryptionContext":{"a":"1"}}`, id)
	check("GenerateDataKeyWithoutPlaintext", out.CiphertextBlob, nil)
	if len(out.CiphertextBlob) != 147 {
		t.Errorf("a data key of 32 bytes is %d bytes, docs/ciphertext.md says 147", len(out.CiphertextBlob))
	}
	// Ours is the oracle's.
	blob := w.blob("ext", 1, context, []byte("hello"))
	if out := w.ask("Decrypt", "EncryptionAlgorithm KeyId KeyMaterialId Plaintext", `{"CiphertextBlob":%q,"KeyId":%q,"EncryptionContext":{"a":"1"}}`, b64(blob), id); string(out.Plaintext) != "hello" {
		t.Errorf("%+v", out)
	}
	// Other IVs and metadata come back to the proxy as it gave them.
	for _, n := range []int{1, 20} {
		store.set(func(s *externalStore) { s.ivLen, s.meta = 16, bytes.Repeat([]byte{7}, n) })
		out := w.ask("Encrypt", "CiphertextBlob EncryptionAlgorithm KeyId", `{"KeyId":%q,"Plaintext":"aGVsbG8="}`, id)
		store.taken()
		if out := w.ask("Decrypt", "EncryptionAlgorithm KeyId KeyMaterialId Plaintext", `{"CiphertextBlob":%q}`, b64(out.CiphertextBlob)); string(out.Plaintext) != "hello" {
			t.Errorf("%+v", out)
		}
		if c := store.taken()[0]; len(c.sealed.IV) != 16 || !bytes.Equal(c.sealed.Metadata, bytes.Repeat([]byte{7}, n)) || len(out.CiphertextBlob) != 69+1+16+16+1+n+21 {
			t.Errorf("%+v", c)
		}
	}
}

// Through a service, the proxy hears of it.
func TestExternalViaService(t *testing.T) {
	w := newWorld(t, worldConfig{})
	store := w.addExternalStore(externalID)
	k := w.inStore(w.addKey("ext", kmsapi.StateEnabled, 1), store)
	c := *user(t, ours, "administrator", allowAll)
	c.Via, c.ViaName = "s3.us-east-1.amazonaws.com", "s3.amazonaws.com"
	via := w.as("AKIAVIA", &c)
	if r := w.do(w.sign(via, kmsapi.TargetPrefix+"GenerateDataKey", []byte(`{"KeyId":"`+k.ID.String()+`","KeySpec":"AES_256"}`))); r.status != 200 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	if calls := store.taken(); len(calls) != 1 || calls[0].m.ViaService != c.Via || calls[0].m.Principal != c.ARN {
		t.Errorf("%+v", calls)
	}
}

// Of a session the proxy hears the role, as aws:PrincipalArn has it: its owner's rules and logs are for those. Of a service it hears the name.
func TestExternalPrincipal(t *testing.T) {
	w := newWorld(t, worldConfig{})
	store := w.addExternalStore(externalID)
	k := w.inStore(w.addKey("ext", kmsapi.StateEnabled, 1), store)
	k.Policy = []byte(`{"Statement":[{"Effect":"Allow","Principal":{"AWS":"` + ours.String() + `"},"Action":"kms:*","Resource":"*"},{"Effect":"Allow","Principal":{"Service":"s3.amazonaws.com"},"Action":"kms:*","Resource":"*"}]}`)
	blob := w.blob("ext", 1, nil, []byte("hello"))
	store.taken()
	for want, by := range map[string]signature{
		"arn:aws:iam::" + ours.String() + ":role/app": w.as("ASIAAPP", session(t, ours, "app", "s1", allowAll)),
		userARN(ours, "dora"):                         w.as("AKIADORA", user(t, ours, "dora", allowAll)),
		"s3.amazonaws.com":                            w.as("AKIASERVICE", service("s3.amazonaws.com", "s3.amazonaws.com")),
	} {
		for op, body := range map[string]string{
			"GenerateDataKey": `{"KeyId":"` + keyARN("ext") + `","KeySpec":"AES_256"}`, "Decrypt": `{"CiphertextBlob":"` + b64(blob) + `","KeyId":"` + keyARN("ext") + `"}`,
		} {
			if r := w.do(w.sign(by, kmsapi.TargetPrefix+op, []byte(body))); r.status != 200 {
				t.Fatalf("%s of %s: %d %s", op, want, r.status, r.body)
			}
		}
		calls := store.taken()
		if len(calls) != 2 {
			t.Fatalf("%s: %d calls", want, len(calls))
		}
		for _, c := range calls {
			if c.m.Principal != want {
				t.Errorf("%s: the proxy hears of %s", want, c.m.Principal)
			}
		}
	}
}

// Each combination of keys on the two sides, with those of custom key stores of both kinds.
func TestExternalReEncrypt(t *testing.T) {
	w := newWorld(t, worldConfig{})
	store, cloud := w.addExternalStore(externalID), w.addCluster(cloudID)
	w.inStore(w.addKey("ext-a", kmsapi.StateEnabled, 1), store)
	w.inStore(w.addKey("ext-b", kmsapi.StateEnabled, 1), store)
	w.inStore(w.addKey("cloud-a", kmsapi.StateEnabled, 1), cloud)
	w.inStore(w.addKey("cloud-b", kmsapi.StateEnabled, 1), cloud)
	w.addKey("derived", kmsapi.StateEnabled, 1)
	w.addResidentKey("resident", kmsapi.StateEnabled, 1)
	rsaKey := w.addPrivateKey("rsa", kmsapi.StateEnabled, keyspec.RSA2048, keyspec.EncryptDecrypt)
	names := []string{"ext-a", "ext-b", "cloud-a", "cloud-b", "derived", "resident"}
	external := func(name string) int {
		if w.records.keys[keyID(name)].Store.External() {
			return 1
		}
		return 0
	}
	for _, source := range names {
		for _, dest := range names {
			text := []byte(fmt.Sprint(source, " to ", dest))
			store.taken()
			out := w.ask("ReEncrypt", "CiphertextBlob DestinationEncryptionAlgorithm DestinationKeyMaterialId KeyId SourceEncryptionAlgorithm SourceKeyId SourceKeyMaterialId",
				`{"CiphertextBlob":%q,"SourceEncryptionContext":{"a":"1"},"DestinationKeyId":%q,"DestinationEncryptionContext":{"b":"2"}}`,
				b64(w.blob(source, 1, map[string]string{"a": "1"}, text)), keyID(dest))
			calls := store.taken()
			if len(calls) != external(source)+external(dest) {
				t.Errorf("%s: %d calls", text, len(calls))
			}
			for _, c := range calls {
				if c.m.Operation != "ReEncrypt" || c.op == "Encrypt" && c.m.KeyARN != keyARN(dest) || c.op == "Decrypt" && c.m.KeyARN != keyARN(source) || bytes.Contains(c.plaintext, text) {
					t.Errorf("%s: %+v", text, c)
				}
			}
			if key, _, got, ok := w.open(out.CiphertextBlob, map[string]string{"b": "2"}); !ok || key != keyID(dest) || !bytes.Equal(got, text) {
				t.Errorf("%s: under %v: %q", text, key, got)
			}
		}
		if source != "ext-a" && source != "cloud-a" {
			continue
		}
		text := []byte(source + " to RSA and back")
		out := w.ask("ReEncrypt", "CiphertextBlob DestinationEncryptionAlgorithm KeyId SourceEncryptionAlgorithm SourceKeyId SourceKeyMaterialId",
			`{"CiphertextBlob":%q,"DestinationKeyId":%q,"DestinationEncryptionAlgorithm":"RSAES_OAEP_SHA_256"}`, b64(w.blob(source, 1, nil, text)), rsaKey.ID)
		if got := w.mustUse(rsaKey, hsm.DecryptOAEP256, out.CiphertextBlob); !bytes.Equal(got, text) {
			t.Errorf("%s: %q", text, got)
		}
		out = w.ask("ReEncrypt", "CiphertextBlob DestinationEncryptionAlgorithm DestinationKeyMaterialId KeyId SourceEncryptionAlgorithm SourceKeyId",
			`{"SourceKeyId":%q,"SourceEncryptionAlgorithm":"RSAES_OAEP_SHA_256","CiphertextBlob":%q,"DestinationKeyId":%q}`, rsaKey.ID, b64(out.CiphertextBlob), keyID(source))
		if _, _, got, ok := w.open(out.CiphertextBlob, nil); !ok || !bytes.Equal(got, text) {
			t.Errorf("%s: %q", text, got)
		}
	}
}

// No bit of a blob can be changed, whoever notices: this process before it asks the proxy, the proxy, or this process afterwards.
func TestExternalBits(t *testing.T) {
	w := newWorld(t, worldConfig{plain: true})
	store := w.addExternalStore(externalID)
	k := w.inStore(w.addKey("ext", kmsapi.StateEnabled, 1), store)
	w.addKey("k1", kmsapi.StateEnabled, 1)
	store.set(func(s *externalStore) { s.meta = []byte("key_version=1") })
	blob := w.ask("Encrypt", "CiphertextBlob EncryptionAlgorithm KeyId", `{"KeyId":%q,"Plaintext":"aGVsbG8=","EncryptionContext":{"a":"1"}}`, k.ID).CiphertextBlob
	c := w.connect()
	ask := func(op, format string, args ...any) reply {
		t.Helper()
		r, err := c.do(w.call(op, fmt.Sprintf(format, args...)))
		w.must(err)
		return r
	}
	const damaged = `{"__type":"KMSInvalidStateException","message":"The external key store proxy rejected the request because the specified ciphertext or encryption context is corrupted, missing, or otherwise invalid."}`
	seen := map[string]int{}
	for bit := range 8 * len(blob) {
		bad := bytes.Clone(blob)
		bad[bit/8] ^= 1 << (bit % 8)
		store.taken()
		r := ask("Decrypt", `{"CiphertextBlob":%q,"EncryptionContext":{"a":"1"}}`, b64(bad))
		asked := len(store.taken()) > 0
		switch at := bit / 8; {
		case at >= 2 && at < 25: // another account or key, or none
			if e := r.exception(); e != "AccessDeniedException" && e != "InvalidCiphertextException" || asked {
				t.Errorf("bit %d: %d %s", bit, r.status, r.body)
			}
		case at < 41 || at >= 53 && at < 69: // header: another key version, message key or commitment
			if r.exception() != "InvalidCiphertextException" || asked {
				t.Errorf("bit %d: %d %s, proxy asked %t", bit, r.status, r.body, asked)
			}
		default: // our own nonce, and all that is the proxy's
			if r.exception() != "InvalidCiphertextException" && string(r.body) != damaged || asked != (string(r.body) == damaged) {
				t.Errorf("bit %d: %d %s, proxy asked %t", bit, r.status, r.body, asked)
			}
		}
		seen[r.exception()]++
		if e := ask("ReEncrypt", `{"CiphertextBlob":%q,"SourceEncryptionContext":{"a":"1"},"DestinationKeyId":%q}`, b64(bad), keyID("k1")).exception(); e != r.exception() {
			t.Errorf("bit %d: ReEncrypt %s", bit, e)
		}
	}
	t.Log(seen)
	for n := range len(blob) {
		if r := ask("Decrypt", `{"CiphertextBlob":%q,"EncryptionContext":{"a":"1"}}`, b64(append(bytes.Clone(blob[:n]), make([]byte, 0)...))); n > 0 && r.status == 200 {
			t.Errorf("cut to %d bytes it decrypts", n)
		}
	}
	for _, bad := range [][]byte{append(bytes.Clone(blob), 0), append(bytes.Clone(blob), blob...)} {
		if r := ask("Decrypt", `{"CiphertextBlob":%q,"EncryptionContext":{"a":"1"}}`, b64(bad)); r.status == 200 {
			t.Errorf("%x decrypts", bad)
		}
	}
	for _, context := range []string{`{}`, `{"a":"2"}`, `{"a":"1","b":""}`} {
		if r := ask("Decrypt", `{"CiphertextBlob":%q,"EncryptionContext":%s}`, b64(blob), context); string(r.body) != damaged {
			t.Errorf("%s: %d %s", context, r.status, r.body)
		}
	}
	if r := ask("Decrypt", `{"CiphertextBlob":%q,"EncryptionContext":{"a":"1"}}`, b64(blob)); r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
	if r := ask("Decrypt", `{"CiphertextBlob":%q,"KeyId":%q,"EncryptionContext":{"a":"1"}}`, b64(blob), keyID("k1")); r.exception() != "IncorrectKeyException" {
		t.Errorf("%d %s", r.status, r.body)
	}
}

// Blobs of one suite are no blobs of another, whatever is done to them.
func TestExternalSuites(t *testing.T) {
	w := newWorld(t, worldConfig{})
	store := w.addExternalStore(externalID)
	w.inStore(w.addKey("ext", kmsapi.StateEnabled, 1), store)
	w.addKey("k1", kmsapi.StateEnabled, 1)
	twice, once := w.blob("ext", 1, nil, []byte("hello")), w.blob("k1", 1, nil, []byte("hello"))
	inner, err := store.Decrypt(w.records.keys[keyID("ext")].Store.XksKeyID, &xks.Metadata{}, &xks.Sealed{IV: twice[70:82], Tag: twice[82:98], Ciphertext: twice[99:]},
		func() []byte { sum := sha256.Sum256([]byte{0, 0}); return slices.Concat(twice[:69], sum[:]) }())
	w.must(err)
	store.taken()
	for name, bad := range map[string][]byte{
		"the inner ciphertext":                append(bytes.Clone(twice[:69]), inner...),
		"the inner ciphertext, as suite 1":    slices.Concat([]byte{1, 1}, twice[2:69], inner),
		"all of it, as suite 1":               slices.Concat([]byte{1, 1}, twice[2:]),
		"all of it, as suite 2":               slices.Concat([]byte{1, 2}, twice[2:]),
		"another key's, as suite 3":           slices.Concat([]byte{1, 3}, once[2:]),
		"another key's, in what a proxy adds": slices.Concat([]byte{1, 3}, once[2:69], twice[69:99], once[69:]),
	} {
		if r := w.do(w.call("Decrypt", `{"CiphertextBlob":"`+b64(bad)+`"}`)); r.exception() != "InvalidCiphertextException" || len(store.taken()) != 0 {
			t.Errorf("%s: %d %s", name, r.status, r.body)
		}
	}
}

// A dry run has no call to the proxy, and says what can be said without.
func TestExternalDryRun(t *testing.T) {
	w := newWorld(t, worldConfig{})
	store := w.addExternalStore(externalID)
	k := w.inStore(w.addKey("ext", kmsapi.StateEnabled, 1), store)
	w.addKey("k1", kmsapi.StateEnabled, 1)
	w.addPrivateKey("rsa", kmsapi.StateEnabled, keyspec.RSA2048, keyspec.EncryptDecrypt)
	blob := w.blob("ext", 1, nil, make([]byte, 190))
	long := w.blob("ext", 1, nil, make([]byte, 191)) // one more than OAEP takes
	bad := bytes.Clone(blob)
	bad[53] ^= 1
	for _, c := range []struct{ want, op, body string }{
		{"DryRunOperation", "Encrypt", fmt.Sprintf(`{"KeyId":%q,"Plaintext":"eA=="`, k.ID)},
		{"DryRunOperation", "GenerateDataKey", fmt.Sprintf(`{"KeyId":%q,"KeySpec":"AES_256"`, k.ID)},
		{"DryRunOperation", "GenerateDataKeyWithoutPlaintext", fmt.Sprintf(`{"KeyId":%q,"KeySpec":"AES_256"`, k.ID)},
		{"DryRunOperation", "Decrypt", fmt.Sprintf(`{"CiphertextBlob":%q`, b64(blob))},
		{"DryRunOperation", "Decrypt", fmt.Sprintf(`{"CiphertextBlob":%q,"EncryptionContext":{"un":"known"}`, b64(blob))},
		{"InvalidCiphertext", "Decrypt", fmt.Sprintf(`{"CiphertextBlob":%q`, b64(bad))},
		{"DryRunOperation", "ReEncrypt", fmt.Sprintf(`{"CiphertextBlob":%q,"DestinationKeyId":%q`, b64(blob), keyID("k1"))},
		{"DryRunOperation", "ReEncrypt", fmt.Sprintf(`{"CiphertextBlob":%q,"DestinationKeyId":%q`, b64(w.blob("k1", 1, nil, []byte("hello"))), k.ID)},
		{"DryRunOperation", "ReEncrypt", fmt.Sprintf(`{"CiphertextBlob":%q,"DestinationKeyId":%q,"DestinationEncryptionAlgorithm":"RSAES_OAEP_SHA_256"`, b64(blob), keyID("rsa"))},
		{"Validation", "ReEncrypt", fmt.Sprintf(`{"CiphertextBlob":%q,"DestinationKeyId":%q,"DestinationEncryptionAlgorithm":"RSAES_OAEP_SHA_256"`, b64(long), keyID("rsa"))},
		{"InvalidCiphertext", "ReEncrypt", fmt.Sprintf(`{"CiphertextBlob":%q,"DestinationKeyId":%q`, b64(bad), keyID("k1"))},
	} {
		w.refused(c.want+"Exception", c.op, "%s", c.body+`,"DryRun":true}`)
	}
	if calls := store.taken(); len(calls) != 0 {
		t.Errorf("%+v", calls)
	}
}

// What a proxy fails with is the caller's to read; a dishonest one gets nothing believed. Nothing of what failed stays for the next request.
func TestExternalErrors(t *testing.T) {
	w := newWorld(t, worldConfig{})
	store := w.addExternalStore(externalID)
	k := w.inStore(w.addKey("ext", kmsapi.StateEnabled, 1), store)
	blob := b64(w.blob("ext", 1, map[string]string{"a": "1"}, []byte("hello")))
	corrupt := xks.BadCiphertext.At(xks.AtCrypto)
	answers := func(name string, code kmsapi.Code, text string, ops ...string) {
		t.Helper()
		for _, op := range ops {
			body := map[string]string{"Encrypt": fmt.Sprintf(`{"KeyId":%q,"Plaintext":"aGVsbG8="}`, k.ID), "GenerateDataKey": fmt.Sprintf(`{"KeyId":%q,"KeySpec":"AES_256"}`, k.ID),
				"Decrypt": `{"CiphertextBlob":"` + blob + `","EncryptionContext":{"a":"1"}}`}[op]
			want := string(kmsapi.AppendErrorBody(nil, code, []byte(text)))
			if r := w.do(w.call(op, body)); string(r.body) != want {
				t.Errorf("%s: %s: %d %s, want %s", name, op, r.status, r.body, want)
			}
		}
	}
	for _, f := range []xks.Failure{xks.TimedOut, xks.AccessDenied, xks.Throttling, xks.Malformed, xks.KeyNotFound} {
		e := f.At(xks.AtCrypto)
		store.set(func(s *externalStore) { s.fail = xks.Fail(f, xks.AtCrypto, errors.New("of the proxy")) })
		answers(f.String(), kmsapi.KMSInvalidState, e.Message, "Encrypt", "GenerateDataKey", "Decrypt")
	}
	store.set(func(s *externalStore) { s.fail = errors.New("a secret of ours") })
	answers("another error", kmsapi.KMSInternal, kmsapi.KMSInternal.Text(), "Encrypt", "GenerateDataKey", "Decrypt")
	store.set(func(s *externalStore) { s.fail = nil })
	for name, returns := range map[string]func([]byte) []byte{
		"a bit":     func(b []byte) []byte { b[0] ^= 1; return b },
		"less":      func(b []byte) []byte { return b[:len(b)-1] },
		"more":      func(b []byte) []byte { return append(b, 0) },
		"nothing":   func([]byte) []byte { return nil },
		"a tag":     func(b []byte) []byte { return b[len(b)-16:] },
		"all zeros": func(b []byte) []byte { return make([]byte, len(b)) },
	} {
		store.set(func(s *externalStore) { s.returns = returns })
		answers(name, kmsapi.KMSInvalidState, corrupt.Message, "Decrypt")
	}
	store.set(func(s *externalStore) { s.returns = nil })
	for name, spoil := range map[string]func(*xks.Sealed){
		"no IV": func(s *xks.Sealed) { s.IV = nil }, "long IV": func(s *xks.Sealed) { s.IV = make([]byte, 13) }, "short tag": func(s *xks.Sealed) { s.Tag = s.Tag[1:] },
		"metadata": func(s *xks.Sealed) { s.Metadata = make([]byte, 21) }, "longer": func(s *xks.Sealed) { s.Ciphertext = append(s.Ciphertext, 0) },
		"shorter": func(s *xks.Sealed) { s.Ciphertext = s.Ciphertext[1:] },
	} {
		store.set(func(s *externalStore) { s.spoil = spoil })
		answers(name, kmsapi.KMSInternal, kmsapi.KMSInternal.Text(), "Encrypt", "GenerateDataKey")
	}
	store.set(func(s *externalStore) { s.spoil = nil })
	// A proxy that does not authenticate what it is told to: this process does.
	store.set(func(s *externalStore) { s.ignores.aad, s.ignores.meta = true, true })
	ignorant := w.ask("Encrypt", "CiphertextBlob EncryptionAlgorithm KeyId", `{"KeyId":%q,"Plaintext":"aGVsbG8=","EncryptionContext":{"a":"1"}}`, k.ID).CiphertextBlob
	if r := w.do(w.call("Decrypt", `{"CiphertextBlob":"`+b64(ignorant)+`","EncryptionContext":{"a":"2"}}`)); string(r.body) != string(kmsapi.AppendErrorBody(nil, kmsapi.KMSInvalidState, []byte(corrupt.Message))) {
		t.Errorf("%d %s", r.status, r.body)
	}
	if out := w.ask("Decrypt", "EncryptionAlgorithm KeyId KeyMaterialId Plaintext", `{"CiphertextBlob":%q,"EncryptionContext":{"a":"1"}}`, b64(ignorant)); string(out.Plaintext) != "hello" {
		t.Errorf("%+v", out)
	}
}

// A request that waits for a proxy keeps nobody else waiting: the one session's rounds go on, also for the same key's dry runs and for other keys.
func TestExternalHoldsNothing(t *testing.T) {
	w := newWorld(t, worldConfig{sessions: 1, roundMax: 1})
	store := w.addExternalStore(externalID)
	k := w.inStore(w.addKey("ext", kmsapi.StateEnabled, 1), store)
	w.addKey("k1", kmsapi.StateEnabled, 1)
	w.addResidentKey("own", kmsapi.StateEnabled, 1)
	const waiters = 20
	arrived, release := make(chan struct{}, waiters), make(chan struct{})
	store.set(func(s *externalStore) { s.hold = func() { arrived <- struct{}{}; <-release } })
	done := make(chan reply, waiters)
	for range waiters {
		c := w.connect()
		go func() {
			r, _ := c.do(w.call("Encrypt", fmt.Sprintf(`{"KeyId":%q,"Plaintext":"aGVsbG8="}`, k.ID)))
			done <- r
		}()
	}
	for range waiters {
		select {
		case <-arrived:
		case <-time.After(20 * time.Second):
			t.Fatal("a request does not come to the proxy while others wait for theirs")
		}
	}
	for _, name := range []string{"k1", "own"} {
		w.ask("GenerateDataKey", "CiphertextBlob Plaintext KeyId KeyMaterialId", `{"KeyId":%q,"KeySpec":"AES_256"}`, keyID(name))
	}
	w.refused("DryRunOperationException", "Encrypt", `{"KeyId":%q,"Plaintext":"aGVsbG8=","DryRun":true}`, k.ID)
	w.audit.taken()
	w.KeyChanged(ours, k.ID) // their views stay with those who use them
	close(release)
	for range waiters {
		if r := <-done; r.status != 200 {
			t.Errorf("%d %s", r.status, r.body)
		}
	}
	if n := len(w.audit.taken()); n != waiters {
		t.Errorf("%d records after the proxy has answered, want %d", n, waiters)
	}
}

// A blob that is made and read with known keys is always the same one: docs/ciphertext.md in bytes. The expected
// bytes were made by another implementation, in Python.
func TestExternalVector(t *testing.T) {
	w := newWorld(t, worldConfig{})
	store := w.addExternalStore(externalID)
	k := w.addKey("vector", kmsapi.StateEnabled, 1)
	var messageKey [48]byte
	var nonce [24]byte
	for i := range messageKey {
		messageKey[i] = byte(i)
	}
	for i := range nonce {
		nonce[i] = 0x80 + byte(i)
	}
	w.inStore(k, store)
	w.records.mu.Lock()
	k.Store = &snapshot.KeyStore{ID: externalID, XksKeyID: "vector"}
	w.records.mu.Unlock()
	w.job = func(j *hsm.Job) {
		for i := range j.N {
			j.Derive[i].Nonce, j.Derive[i].Out = nonce, messageKey
		}
	}
	store.set(func(s *externalStore) {
		s.meta, s.random = []byte("key_version=1"), func(n int) []byte { return bytes.Repeat([]byte{0x5a}, n) }
	})
	out := w.ask("Encrypt", "CiphertextBlob EncryptionAlgorithm KeyId", `{"KeyId":%q,"Plaintext":"aGVsbG8=","EncryptionContext":{"tenant":"42"}}`, k.ID)
	if got := fmt.Sprintf("%x", out.CiphertextBlob); got != externalVector {
		t.Errorf("the blob is\n%s, want\n%s", got, externalVector)
	}
	if out := w.ask("Decrypt", "EncryptionAlgorithm KeyId KeyMaterialId Plaintext", `{"CiphertextBlob":%q,"EncryptionContext":{"tenant":"42"}}`, b64(out.CiphertextBlob)); string(out.Plaintext) != "hello" {
		t.Errorf("%+v", out)
	}
}

const externalVector = "01030019df6690e5001fea0924ddb74248988255bae2d9a19e00000001808182838485868788898a8b8c8d8e8f9091929394959697202122232425262728292a2b2c2d2e2f" +
	"0c5a5a5a5a5a5a5a5a5a5a5a5a90f6814dcc847530dcb44be1dda3e1d50d6b65795f76657273696f6e3d31946572511c4dfe353a8bfe68f31a0a1fe362e022a8"
