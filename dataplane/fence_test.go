package dataplane

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/fence"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/xks"
)

// fencedWorld is a world whose process has a lease, which does not run out by itself, and that counts what is done in the HSM.
type fencedWorld struct {
	*world
	lease *fence.Lease
	jobs  atomic.Int64
	in    func() // called in the middle of each job for the HSM, unless nil
}

func newFencedWorld(t testing.TB) *fencedWorld {
	w := &fencedWorld{lease: new(fence.Lease)}
	w.extend()
	w.world = newWorld(t, worldConfig{plain: true, server: Config{Lease: w.lease}})
	w.job = func(j *hsm.Job) { w.did() }
	w.useErr = func() error { w.did(); return nil }
	w.audit.taken()
	return w
}

func (w *fencedWorld) extend() { w.lease.Extend(fence.Now() + time.Hour) }

func (w *fencedWorld) did() {
	w.jobs.Add(1)
	if w.in != nil {
		w.in()
	}
}

// fenceCases has a request of every operation of this plane that succeeds.
func fenceCases(w *fencedWorld) map[string][]byte {
	w.Helper()
	for _, name := range []string{"k1", "k2"} {
		w.addKey(name, kmsapi.StateEnabled, 1)
	}
	w.addPrivateKey("ec", kmsapi.StateEnabled, keyspec.P256, keyspec.SignVerify)
	w.addPrivateKey("agree", kmsapi.StateEnabled, keyspec.P256, keyspec.KeyAgreement)
	w.addPrivateKey("mac", kmsapi.StateEnabled, keyspec.HMAC256, keyspec.GenerateVerifyMAC)
	w.addPrivateKey("kem", kmsapi.StateEnabled, keyspec.MLKEM768, keyspec.EncapsulateDecapsulate)
	member := func(op, body, name string) string {
		w.Helper()
		r := w.do(w.call(op, body))
		var out map[string]any
		if err := json.Unmarshal(r.body, &out); err != nil || r.status != 200 {
			w.Fatalf("%s: %d %s", op, r.status, r.body)
		}
		return out[name].(string)
	}
	k1, k2, text := keyID("k1").String(), keyID("k2").String(), base64.StdEncoding.EncodeToString([]byte("a text"))
	id := func(name string) string { return `"KeyId":"` + keyID(name).String() + `"` }
	blob := member("Encrypt", `{"KeyId":"`+k1+`","Plaintext":"`+text+`"}`, "CiphertextBlob")
	sign := `{` + id("ec") + `,"Message":"` + text + `","SigningAlgorithm":"ECDSA_SHA_256"`
	mac := `{` + id("mac") + `,"Message":"` + text + `","MacAlgorithm":"HMAC_SHA_256"`
	bodies := map[string]string{
		"Encrypt":                             `{"KeyId":"` + k1 + `","Plaintext":"` + text + `"}`,
		"Decrypt":                             `{"CiphertextBlob":"` + blob + `"}`,
		"ReEncrypt":                           `{"CiphertextBlob":"` + blob + `","DestinationKeyId":"` + k2 + `"}`,
		"GenerateDataKey":                     `{"KeyId":"` + k1 + `","KeySpec":"AES_256"}`,
		"GenerateDataKeyWithoutPlaintext":     `{"KeyId":"` + k1 + `","KeySpec":"AES_256"}`,
		"GenerateDataKeyPair":                 `{"KeyId":"` + k1 + `","KeyPairSpec":"ECC_NIST_P256"}`,
		"GenerateDataKeyPairWithoutPlaintext": `{"KeyId":"` + k1 + `","KeyPairSpec":"ECC_NIST_P256"}`,
		"GenerateRandom":                      `{"NumberOfBytes":32}`,
		"Sign":                                sign + `}`,
		"Verify":                              sign + `,"Signature":"` + member("Sign", sign+`}`, "Signature") + `"}`,
		"GenerateMac":                         mac + `}`,
		"VerifyMac":                           mac + `,"Mac":"` + member("GenerateMac", mac+`}`, "Mac") + `"}`,
		"DeriveSharedSecret":                  `{` + id("agree") + `,"KeyAgreementAlgorithm":"ECDH","PublicKey":"` + member("GetPublicKey", `{`+id("agree")+`}`, "PublicKey") + `"}`,
		"GetPublicKey":                        `{` + id("ec") + `}`,
		"Encapsulate":                         `{` + id("kem") + `,"EncapsulationAlgorithm":"ML_KEM"}`,
		"Decapsulate": `{` + id("kem") + `,"EncapsulationAlgorithm":"ML_KEM","SharedSecretCiphertextBlob":"` +
			member("Encapsulate", `{`+id("kem")+`,"EncapsulationAlgorithm":"ML_KEM"}`, "SharedSecretCiphertextBlob") + `"}`,
	}
	cases := map[string][]byte{}
	for i := range operations {
		name := operations[i].Name
		if bodies[name] == "" {
			w.Fatalf("%s has no case here", name)
		}
		cases[name] = w.call(name, bodies[name])
		if r := w.do(cases[name]); r.status != 200 {
			w.Fatalf("%s: %d %s", name, r.status, r.body)
		}
	}
	w.audit.taken()
	return cases
}

// withoutHSM are the operations that ask no HSM.
var withoutHSM = []string{"Encapsulate", "GetPublicKey", "Verify"}

// wantFenced is a reply that says nothing but that it failed on our side.
func (w *fencedWorld) wantFenced(name string, r reply) {
	w.Helper()
	if r.status != 500 || r.exception() != "KMSInternalException" || bytes.Contains(r.body, []byte("laintext")) || bytes.Contains(r.body, []byte("Secret")) || len(r.body) > 200 {
		w.Errorf("%s: %d %s", name, r.status, r.body)
	}
	if !r.close {
		w.Errorf("%s: the client would try again at the same process", name)
	}
}

// While the lease has run out every operation is refused, nothing is done in the HSM, and the process is not ready.
func TestFencedOperations(t *testing.T) {
	w := newFencedWorld(t)
	cases := fenceCases(w)
	cases["an unknown key"] = w.call("Encrypt", `{"KeyId":"`+keyID("nobody").String()+`","Plaintext":"AAAA"}`)
	cases["a signature of nobody's"] = w.sign(signature{key: "AKIANOBODYNOBODYNOBO", secret: adminSecret}, kmsapi.TargetPrefix+"GenerateRandom", []byte(`{"NumberOfBytes":8}`))
	cases["an operation of the control plane"] = w.call("DescribeKey", `{}`)
	w.lease.End()
	w.records.mu.Lock()
	w.jobs.Store(0)
	reads := w.records.reads
	w.records.mu.Unlock()
	w.AllChanged() // what is not known would have to be read, and brought into the HSM
	for name, raw := range cases {
		w.wantFenced(name, w.do(raw))
	}
	if n := w.jobs.Load(); n != 0 {
		t.Errorf("%d jobs were done in the HSM", n)
	}
	if w.records.reads != reads {
		t.Error("the store was read")
	}
	if r := w.do([]byte("GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n")); r.status != 503 {
		t.Errorf("/readyz: %d %s", r.status, r.body)
	}
	for _, line := range w.audit.taken() {
		if !strings.Contains(line, "KMSInternalException") {
			t.Errorf("recorded as %s", line)
		}
	}
	w.extend()
	if r := w.do([]byte("GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n")); r.status != 200 {
		t.Errorf("/readyz: %d %s", r.status, r.body)
	}
	for _, name := range slices.Sorted(maps.Keys(cases))[:3] {
		if r := w.do(cases[name]); r.status != 200 {
			t.Errorf("%s with a lease again: %d %s", name, r.status, r.body)
		}
	}
}

// A lease that runs out while the HSM works: what it gave does not leave, and the record says so.
func TestLeaseEndsInHSM(t *testing.T) {
	w := newFencedWorld(t)
	cases := fenceCases(w)
	for name, raw := range cases {
		if slices.Contains(withoutHSM, name) {
			continue
		}
		w.extend()
		w.jobs.Store(0)
		w.in = w.lease.End
		r := w.do(raw)
		w.in = nil
		w.wantFenced(name, r)
		if w.jobs.Load() == 0 {
			t.Errorf("%s: nothing was done in the HSM: this shows nothing", name)
		}
		if lines := w.audit.taken(); len(lines) != 1 || !strings.Contains(lines[0], `"errorCode":"KMSInternalException"`) || !strings.Contains(lines[0], name) {
			t.Errorf("%s: recorded as %s", name, lines)
		}
	}
}

// A lease that runs out while the record is written: the reply does not leave. There is the one record, of the success that was not told.
func TestLeaseEndsInAudit(t *testing.T) {
	w := newFencedWorld(t)
	for name, raw := range fenceCases(w) {
		w.extend()
		w.audit.hook = w.lease.End
		r := w.do(raw)
		w.audit.hook = nil
		w.wantFenced(name, r)
		if lines := w.audit.taken(); len(lines) != 1 || strings.Contains(lines[0], "errorCode") {
			t.Errorf("%s: recorded as %s", name, lines)
		}
	}
}

// What changes while the HSM works is in the answer and in the record; what changes while that is written makes the answer an internal error.
func TestChangesInFlight(t *testing.T) {
	w := newFencedWorld(t)
	a := access{w.world}
	const admins = `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":{"AWS":"111122223333"},"Action":"kms:*","Resource":"*"}}`
	guest := user(w, others, "guest", allowAll)
	asGuest := w.as("AKIAGUEST", guest)
	fired := user(w, ours, "fired", allowAll)
	asFired := w.as("AKIAFIRED", fired)
	subject := fired.Holder.Subject()
	const data = "GenerateDataKey"
	state := func(s kmsapi.KeyState) func() {
		return func() {
			w.records.mu.Lock()
			w.records.keys[keyID("k1")].State = s
			w.records.mu.Unlock()
			w.KeyChanged(ours, keyID("k1"))
		}
	}
	for _, c := range []struct {
		name   string
		op     string
		sig    signature
		change func()
		want   string // "" for a success
	}{
		{"disabled", data, signature{}, state(kmsapi.StateDisabled), "DisabledException"},
		{"to be deleted", "Decrypt", signature{}, state(kmsapi.StatePendingDeletion), "KMSInvalidStateException"},
		{"the source disabled", "ReEncrypt", signature{}, state(kmsapi.StateDisabled), "DisabledException"},
		{"deleted", data, signature{}, func() {
			w.records.mu.Lock()
			delete(w.records.keys, keyID("k1"))
			w.records.mu.Unlock()
			w.KeyChanged(ours, keyID("k1"))
		}, "NotFoundException"},
		{"another policy", data, signature{}, func() { a.put("k1", strings.Replace(admins, "kms:*", "kms:Encrypt", 1)) }, "AccessDeniedException"},
		{"another policy of the source", "ReEncrypt", signature{}, func() { a.put("k1", strings.Replace(admins, "kms:*", "kms:Encrypt", 1)) }, "AccessDeniedException"},
		{"the grant revoked", data, asGuest, func() { a.grant("k1", "AIDAguest") }, "AccessDeniedException"},
		{"the user deleted", data, asFired, func() { fired.Holder.Replace(nil) }, "AccessDeniedException"},
		{"the user deleted, of no key", "GenerateRandom", asFired, func() { fired.Holder.Replace(nil) }, "AccessDeniedException"},
		{"nothing that matters", data, signature{}, state(kmsapi.StateEnabled), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			begin := func() []byte {
				w.addKey("k1", kmsapi.StateEnabled, 1)
				w.addKey("k2", kmsapi.StateEnabled, 1)
				a.put("k1", admins)
				a.grant("k1", "AIDAguest", authz.Grant{ID: "g", Operations: authz.OpGenerateDataKey})
				fired.Holder.Replace(subject)
				blob := base64.StdEncoding.EncodeToString(w.blob("k1", 1, nil, make([]byte, 32)))
				body := map[string]string{data: `{"KeyId":"` + keyARN("k1") + `","KeySpec":"AES_256"}`, "Decrypt": `{"CiphertextBlob":"` + blob + `"}`,
					"ReEncrypt": `{"CiphertextBlob":"` + blob + `","DestinationKeyId":"` + keyARN("k2") + `"}`, "GenerateRandom": `{"NumberOfBytes":8}`}[c.op]
				raw := w.sign(c.sig, kmsapi.TargetPrefix+c.op, []byte(body))
				if r := w.do(raw); r.status != 200 {
					t.Fatalf("before: %d %s", r.status, r.body)
				}
				w.audit.taken()
				return raw
			}
			raw, changed := begin(), false
			once := func() { // loading the key again is a job too
				if !changed {
					changed = true
					c.change()
				}
			}
			w.in = once
			r := w.do(raw)
			w.in = nil
			lines := w.audit.taken()
			if r.exception() != c.want || len(lines) != 1 || c.want != "" && (!strings.Contains(lines[0], `"errorCode":"`+c.want) || bytes.Contains(r.body, []byte("laintext\""))) {
				t.Errorf("in the HSM: %d %s, recorded as %s", r.status, r.body, lines)
			}
			if c.want == "" && r.status != 200 {
				t.Errorf("in the HSM: %d %s", r.status, r.body)
			}

			raw, changed = begin(), false
			w.audit.hook = once
			r = w.do(raw)
			w.audit.hook = nil
			if lines = w.audit.taken(); len(lines) != 1 || strings.Contains(lines[0], "errorCode") {
				t.Errorf("while it is recorded: recorded as %s", lines)
			}
			if c.want == "" {
				if r.status != 200 {
					t.Errorf("while it is recorded: %d %s", r.status, r.body)
				}
				return
			}
			w.wantFenced("while it is recorded", r)
		})
	}
}

// Without a lease a request that was decided is answered as it was decided.
func TestChangesInFlightWithoutLease(t *testing.T) {
	w := newWorld(t, worldConfig{plain: true})
	w.addKey("k1", kmsapi.StateEnabled, 1)
	raw := w.call("GenerateDataKey", `{"KeyId":"`+keyID("k1").String()+`","KeySpec":"AES_256"}`)
	if r := w.do(raw); r.status != 200 {
		t.Fatal(r.status)
	}
	w.job = func(*hsm.Job) {
		w.records.mu.Lock()
		w.records.keys[keyID("k1")].State = kmsapi.StateDisabled
		w.records.mu.Unlock()
		w.KeyChanged(ours, keyID("k1"))
	}
	if r := w.do(raw); r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
	if r := w.do(raw); r.exception() != "DisabledException" {
		t.Errorf("the next: %d %s", r.status, r.body)
	}
}

// The proxy of an external key store asks the same lease.
func TestFencedXKS(t *testing.T) {
	w := newFencedWorld(t)
	p := newProxy(w.world, nil)
	p.addKeys()
	plain := encryptBody(base64.StdEncoding.EncodeToString(make([]byte, 32)), nil)
	sealed := p.sealedBody(p.post("/keys/ext.k1/encrypt", plain), nil)
	describe := xksBody{"requestMetadata": metadata("DescribeKey", nil)}
	posts := map[string]xksBody{"/keys/ext.k1/encrypt": plain, "/keys/ext.k1/decrypt": sealed, "/keys/ext.k1/metadata": describe}
	wantFenced := func(path string) {
		t.Helper()
		r := p.post(path, posts[path])
		p.wants(r, 500, xks.Internal.Name())
		if !r.close {
			t.Errorf("%s: AWS KMS would try again at the same process", path)
		}
	}
	for path, body := range posts {
		if r := p.post(path, body); r.status != 200 || r.close {
			t.Fatalf("%s: %d %s, closed: %v", path, r.status, r.body, r.close)
		}
		w.lease.End()
		w.jobs.Store(0)
		wantFenced(path)
		if w.jobs.Load() != 0 {
			t.Errorf("%s: the HSM was asked", path)
		}
		w.extend()
		w.audit.hook = w.lease.End
		wantFenced(path)
		w.audit.hook = nil
		w.extend()
	}
	disable := func(s kmsapi.KeyState) {
		w.records.mu.Lock()
		w.records.keys[keyID("k1")].State = s
		w.records.mu.Unlock()
		w.KeyChanged(ours, keyID("k1"))
	}
	for _, path := range []string{"/keys/ext.k1/encrypt", "/keys/ext.k1/decrypt"} {
		w.in = w.lease.End
		wantFenced(path)
		w.extend()
		changed := false
		w.in = func() {
			if !changed {
				changed = true
				disable(kmsapi.StateDisabled)
			}
		}
		w.audit.taken()
		p.wants(p.post(path, posts[path]), xks.InvalidState.Status(), xks.InvalidState.Name())
		w.in = nil
		if lines := w.audit.taken(); len(lines) != 1 || !strings.Contains(lines[0], xks.InvalidState.Name()) {
			t.Errorf("recorded as %s", lines)
		}
		disable(kmsapi.StateEnabled)
		if r := p.post(path, posts[path]); r.status != 200 {
			t.Errorf("enabled again: %d %s", r.status, r.body)
		}
	}
}
