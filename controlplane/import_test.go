package controlplane

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/snapshot"
)

type parametersReply struct {
	KeyId             string
	ImportToken       []byte
	PublicKey         []byte
	ParametersValidTo float64
}

type importReply struct{ KeyId, KeyMaterialId string }

func (e *env) parametersBody(keyID string) string {
	return obj("KeyId", keyID, "WrappingAlgorithm", "RSAES_OAEP_SHA_256", "WrappingKeySpec", "RSA_2048")
}

// token is an import token for a key, with what the fake HSM needs of one.
func (e *env) token(keyID string) []byte {
	e.Helper()
	var out parametersReply
	e.ok("GetParametersForImport", e.parametersBody(keyID), &out)
	return out.ImportToken
}

// importBody asks for the import of material, of a key of fakeKeys, that does not expire unless with says so.
func (e *env) importBody(keyID, material string, with ...any) string {
	e.Helper()
	return importing64(keyID, e.token(keyID), material, with...)
}

func importing64(keyID string, token []byte, material string, with ...any) string {
	pairs := []any{"KeyId", keyID, "ImportToken", token, "EncryptedKeyMaterial", base64.StdEncoding.EncodeToString([]byte(material))}
	expires := false
	for i := 0; i < len(with); i += 2 {
		expires = expires || with[i] == "ValidTo" || with[i] == "ExpirationModel"
	}
	if !expires {
		with = append(with, "ExpirationModel", materialStays)
	}
	return obj(append(pairs, with...)...)
}

// external is a new key of origin EXTERNAL into which each of the materials was imported, in that order.
func (e *env) external(body string, materials ...string) wire {
	e.Helper()
	with := body[1 : len(body)-1]
	if with != "" {
		with = "," + with
	}
	m := e.create(`{"Origin":"EXTERNAL"` + with + "}")
	for _, material := range materials {
		e.put(m.KeyId, material)
	}
	return m
}

// put imports material and returns its ID.
func (e *env) put(keyID, material string, with ...any) string {
	e.Helper()
	var out importReply
	e.ok("ImportKeyMaterial", e.importBody(keyID, material, with...), &out)
	if out.KeyId != e.keyARN(e.name(keyID)) {
		e.Errorf("KeyId is %s", out.KeyId)
	}
	return out.KeyMaterialId
}

func (e *env) putFails(keyID, material string, code kmsapi.Code, message string, with ...any) {
	e.Helper()
	e.fails("ImportKeyMaterial", e.importBody(keyID, material, with...), code, message)
}

// The table of the developer guide, written out here once more: what of the offered algorithms fits which key spec under which wrapping key.
func TestGetParametersForImport(t *testing.T) {
	e := newEnv(t)
	oaep, hybrid := []string{"RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256"}, []string{"RSA_AES_KEY_WRAP_SHA_1", "RSA_AES_KEY_WRAP_SHA_256"}
	asked := 0
	for spec, c := range map[string]struct {
		usage string
		fits  []string
	}{
		"SYMMETRIC_DEFAULT": {"ENCRYPT_DECRYPT", oaep}, "HMAC_224": {"GENERATE_VERIFY_MAC", oaep}, "HMAC_512": {"GENERATE_VERIFY_MAC", oaep},
		"RSA_2048": {"SIGN_VERIFY", hybrid}, "RSA_4096": {"ENCRYPT_DECRYPT", hybrid}, "ECC_NIST_P256": {"SIGN_VERIFY", append(oaep, hybrid...)},
		"ECC_NIST_P521": {"KEY_AGREEMENT", append(oaep, hybrid...)}, "ECC_SECG_P256K1": {"SIGN_VERIFY", append(oaep, hybrid...)},
		"ECC_NIST_EDWARDS25519": {"SIGN_VERIFY", append(oaep, hybrid...)},
	} {
		m := e.external(obj("KeySpec", spec, "KeyUsage", c.usage))
		if m.KeyState != "PendingImport" || m.Enabled || m.Origin != "EXTERNAL" || m.CurrentKeyMaterialId != "" || m.ExpirationModel != "" {
			t.Errorf("%s: %+v", spec, m)
		}
		for _, w := range wrappingAlgorithms {
			for _, wrapping := range wrappingKeySpecs {
				e.made = nil
				body := obj("KeyId", m.Arn, "WrappingAlgorithm", w, "WrappingKeySpec", wrapping)
				want := "WrappingAlgorithm " + w + " with WrappingKeySpec " + wrapping + " is not valid for the key material of KMS keys with KeySpec " + spec + "."
				switch {
				case w == "RSAES_PKCS1_V1_5" || w == "SM2PKE":
					want = "WrappingAlgorithm " + w + " is not supported."
				case wrapping == "SM2":
					want = "WrappingKeySpec SM2 is not supported."
				case slices.Contains(c.fits, w) && (spec != "ECC_NIST_P521" || wrapping != "RSA_2048" || slices.Contains(hybrid, w)):
					asked++
					var out parametersReply
					e.ok("GetParametersForImport", body, &out)
					if out.KeyId != m.Arn || out.ParametersValidTo != 1795435200.123+86400 || len(out.PublicKey) != keyspec.Of(wrapping).Info().Public ||
						fmt.Sprint(e.made) != "["+wrapping+"]" {
						t.Errorf("%s: %+v, made %v", body, out, e.made)
					}
					continue
				}
				e.fails("GetParametersForImport", body, kmsapi.UnsupportedOperation, want)
				if e.made != nil {
					t.Errorf("%s: a refused request made %v", body, e.made)
				}
			}
		}
	}
	if asked != 3*2*3+2*2*3+4*4*3-2 {
		t.Errorf("%d combinations are offered", asked)
	}

	m := e.external("{}")
	e.fails("GetParametersForImport", obj("KeyId", m.KeyId, "WrappingAlgorithm", "X"), kmsapi.Validation, "2 validation errors detected: Value 'X' at "+
		"'wrappingAlgorithm' failed to satisfy constraint: Member must satisfy enum value set: ["+strings.Join(wrappingAlgorithms, ", ")+
		"]; Value null at 'wrappingKeySpec' failed to satisfy constraint: Member must not be null")
	e.keys = nil
	e.fails("GetParametersForImport", e.parametersBody(m.KeyId), kmsapi.UnsupportedOperation,
		"The HSM of this service does not import keys with RSAES_OAEP_SHA_256 into KMS keys with KeySpec SYMMETRIC_DEFAULT.")
	e.fails("CreateKey", obj("Origin", "EXTERNAL"), kmsapi.UnsupportedOperation,
		"The HSM of this service does not import key material into KMS keys with KeySpec SYMMETRIC_DEFAULT.")
}

// Wrapping keys are made one at a time; who waits too long, or has too many waiting, is told to come again, and others are served.
func TestWrappingKeysTakeTurns(t *testing.T) {
	e := newEnv(t)
	m := e.external("{}")
	begun, proceed := make(chan struct{}, 16), make(chan struct{})
	e.keys = fakeKeys{make: func(s keyspec.Spec) (*snapshot.PrivateKey, error) {
		begun <- struct{}{}
		<-proceed
		return &snapshot.PrivateKey{Wrapped: []byte("w"), Public: []byte("p")}, nil
	}}
	codes := make(chan kmsapi.Code, 16)
	var callers sync.WaitGroup
	ask := func() {
		callers.Go(func() { codes <- e.call("GetParametersForImport", e.parametersBody(m.KeyId)).Code })
	}
	ask()
	<-begun
	for range wrappingQueue {
		ask() // all but one of them find a place in the queue
	}
	if code := <-codes; code != kmsapi.Throttling {
		t.Errorf("beyond the queue: %s", code)
	}
	if len(begun) != 0 {
		t.Error("two wrapping keys are made at a time")
	}
	close(proceed)
	callers.Wait()
	for range wrappingQueue {
		if code := <-codes; code != kmsapi.OK {
			t.Errorf("in the queue: %s", code)
		}
	}
	if code := e.call("GetParametersForImport", e.parametersBody(m.KeyId)).Code; code != kmsapi.OK || len(e.wrapping.waiting) != 0 || e.wrapping.making {
		t.Errorf("afterwards: %s, %v wait", code, e.wrapping.waiting)
	}
}

// An account with many requests delays another by one key, not by all of them. Who gives up leaves no gap.
func TestWrappingTurnsAreFair(t *testing.T) {
	var w WrappingSeats
	waiting := func() (n int) {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, q := range w.waiting {
			n += len(q.turns)
		}
		return n
	}
	turns, proceed := make(chan keyid.Account, 16), make(chan struct{})
	var requests sync.WaitGroup
	ask := func(ctx context.Context, a keyid.Account) {
		before := waiting()
		requests.Go(func() {
			if !w.enter(ctx, a) {
				turns <- 0
				return
			}
			turns <- a
			<-proceed
			w.leave()
		})
		for waiting() == before {
			runtime.Gosched()
		}
	}
	if !w.enter(t.Context(), 1) {
		t.Fatal("nobody is served")
	}
	impatient, giveUp := context.WithCancel(t.Context())
	ask(impatient, 3)
	for range wrappingQueue - 1 {
		ask(t.Context(), 1)
	}
	if w.enter(t.Context(), 1) {
		t.Error("an account has more requests than it may")
	}
	ask(t.Context(), 2)
	ask(t.Context(), 2)
	giveUp()
	if a := <-turns; a != 0 {
		t.Errorf("%d is served beside another", a)
	}
	w.leave()
	var order []keyid.Account
	for range wrappingQueue + 1 {
		order = append(order, <-turns)
		proceed <- struct{}{}
	}
	requests.Wait()
	if want := []keyid.Account{1, 2, 1, 2, 1}; !slices.Equal(order, want) || w.making || waiting() != 0 {
		t.Errorf("served in the order %v, want %v; %d wait", order, want, waiting())
	}
}

// slowImports takes all of an operation's time to say what the HSM imports, as it does when it finds out.
type slowImports struct {
	fakeKeys
	over func()
}

func (k slowImports) Imports(keyspec.Spec, keyspec.Wrapping) (bool, error) {
	k.over()
	return true, nil
}

func TestImportsTakesLong(t *testing.T) {
	e := newEnv(t)
	m := e.external("{}")
	for op, body := range map[string]string{"CreateKey": obj("Origin", "EXTERNAL"), "GetParametersForImport": e.parametersBody(m.KeyId)} {
		ctx, cancel := context.WithCancel(t.Context())
		e.keys = slowImports{fakeKeys{make: e.makeKey}, cancel}
		if resp := e.Serve(ctx, &Request{Signed: e.sign(op, []byte(body)), RequestID: "late"}); resp.Code != kmsapi.OK {
			t.Errorf("%s: %s", op, resp.Body)
		}
	}
}

// versions is what the record has of a key's versions: number, state of the material, description.
func (e *env) versions(keyID string) string {
	e.Helper()
	k, err := e.store.Key(e.Context(), e.name(keyID))
	if err != nil {
		e.Fatal(err)
	}
	defer k.Wipe()
	text := fmt.Sprintf("%s current %d", k.State, k.Current)
	for i := range k.Versions {
		v := &k.Versions[i]
		text += fmt.Sprintf(", %d", v.Number)
		switch {
		case v.Missing:
			text += " missing"
		case v.Import.Expired:
			text += " expired"
		}
		if v.Import.Description != "" {
			text += " " + v.Import.Description
		}
	}
	return text
}

func (e *env) has(keyID, want string) {
	e.Helper()
	if got := e.versions(keyID); got != want {
		e.Errorf("got %s, want %s", got, want)
	}
}

func (e *env) deleteMaterial(keyID string, with ...any) string {
	e.Helper()
	var out importReply
	e.ok("DeleteImportedKeyMaterial", obj(append([]any{"KeyId", keyID}, with...)...), &out)
	if out.KeyId != e.keyARN(e.name(keyID)) {
		e.Errorf("KeyId is %s", out.KeyId)
	}
	return out.KeyMaterialId
}

// The materials of a symmetric encryption key: which are taken as new, which as those that the key has.
func TestImportTypes(t *testing.T) {
	e := newEnv(t)
	m := e.external("{}")
	id := m.KeyId
	existing, renewed := []any{"ImportType", existingMaterial}, []any{"ImportType", newMaterial}
	with := func(list []any, more ...any) []any { return append(slices.Clone(list), more...) }

	e.putFails(id, "one", kmsapi.IncorrectKeyMaterial, otherMaterial, existing...)
	e.putFails(id, "one", kmsapi.Validation, "KeyMaterialId must not be set if the ImportType is NEW_KEY_MATERIAL", "KeyMaterialId", strings.Repeat("a", 64))
	e.putFails(id, "bad one", kmsapi.InvalidCiphertext, "")
	e.has(id, "PendingImport current 0")

	one := e.put(id, "one", "KeyMaterialDescription", "the first")
	e.has(id, "Enabled current 1, 1 the first")
	if d := e.describe(id); d.CurrentKeyMaterialId != one || !d.Enabled || d.ExpirationModel != materialStays || d.ValidTo != 0 {
		t.Errorf("%+v", d)
	}
	// The same again is the same, with or without its ID, and keeps its description unless there is another.
	for _, how := range [][]any{nil, existing, with(existing, "KeyMaterialId", one), {"KeyMaterialId", one}} {
		if got := e.put(id, "one", how...); got != one {
			t.Errorf("%v: imported %s", how, got)
		}
	}
	e.has(id, "Enabled current 1, 1 the first")
	e.put(id, "one", "KeyMaterialDescription", "1")
	e.has(id, "Enabled current 1, 1 1")
	e.putFails(id, "two", kmsapi.IncorrectKeyMaterial, otherMaterial)
	e.putFails(id, "two", kmsapi.IncorrectKeyMaterial, otherMaterial, with(existing, "KeyMaterialId", one)...)
	e.putFails(id, "one", kmsapi.IncorrectKeyMaterial, otherMaterial, with(existing, "KeyMaterialId", strings.Repeat("0", 64))...)
	e.putFails(id, "one", kmsapi.IncorrectKeyMaterial, knownMaterial, renewed...)
	e.putFails(id, "two", kmsapi.Validation, "KeyMaterialId must not be set if the ImportType is NEW_KEY_MATERIAL", with(renewed, "KeyMaterialId", one)...)

	// Another one waits for its rotation, and only one does.
	two := e.put(id, "two", renewed...)
	e.has(id, "Enabled current 1, 1 1, 2")
	if d := e.describe(id); d.CurrentKeyMaterialId != one {
		t.Errorf("%+v", d)
	}
	e.putFails(id, "two", kmsapi.IncorrectKeyMaterial, knownMaterial, renewed...)
	if got := e.put(id, "two", "KeyMaterialDescription", "2"); got != two {
		t.Errorf("imported %s", got)
	}
	token := e.token(id)
	resp := e.call("ImportKeyMaterial", importing64(id, token, "three", renewed...))
	three := regexp.MustCompile(`New key material \(id: ([0-9a-f]{64})\) cannot be imported into KMS key (\S+), because another key material \(id: ([0-9a-f]{64})\) is pending rotation\.`).
		FindSubmatch(resp.Body)
	if resp.Code != kmsapi.KMSInvalidState || three == nil || string(three[2]) != id || string(three[3]) != two {
		t.Fatalf("%s", resp.Body)
	}
	// It is not the key's yet: taken away it leaves the key as it is, and nothing behind.
	if got := e.deleteMaterial(id, "KeyMaterialId", two); got != two {
		t.Errorf("deleted %s", got)
	}
	e.has(id, "Enabled current 1, 1 1")
	if got := e.put(id, "three", renewed...); got != string(three[1]) {
		t.Errorf("imported %s, refused as %s", got, three[1])
	}
	e.has(id, "Enabled current 1, 1 1, 2")
	e.fails("DeleteImportedKeyMaterial", obj("KeyId", id, "KeyMaterialId", two), kmsapi.NotFound,
		"Key material (id: "+two+") is not associated with KMS key "+id+".")

	// All that is permanent has to be there.
	e.rotate(id)
	e.has(id, "Enabled current 2, 1 1, 2")
	e.deleteMaterial(id, "KeyMaterialId", one)
	e.has(id, "PendingImport current 2, 1 missing 1, 2")
	if got := e.deleteMaterial(id); got != string(three[1]) {
		t.Errorf("deleted %s", got)
	}
	e.has(id, "PendingImport current 2, 1 missing 1, 2 missing")
	if d := e.describe(id); d.CurrentKeyMaterialId != string(three[1]) || d.ExpirationModel != "" {
		t.Errorf("%+v", d)
	}
	e.deleteMaterial(id) // it is gone already
	e.put(id, "three")
	e.has(id, "PendingImport current 2, 1 missing 1, 2")
	e.putFails(id, "two", kmsapi.IncorrectKeyMaterial, otherMaterial)
	e.put(id, "one")
	e.has(id, "Enabled current 2, 1 1, 2")

	// Two keys with the same material have different IDs of it.
	if other := e.external("{}", "one"); other.KeyId == id || e.describe(other.KeyId).CurrentKeyMaterialId == one {
		t.Error("a material ID does not depend on the KMS key")
	}
}

// rotate makes the material that waits the current one, as RotateKeyOnDemand does.
func (e *env) rotate(keyID string) {
	e.Helper()
	k, err := e.store.UpdateKey(e.Context(), e.name(keyID), func(k *store.Key) error {
		k.Current = k.Versions[len(k.Versions)-1].Number
		return nil
	})
	if err != nil {
		e.Fatal(err)
	}
	k.Wipe()
}

// What deletion, disabling and material do to each other.
func TestImportStates(t *testing.T) {
	e := newEnv(t)
	m := e.external("{}", "one")
	id, self := m.KeyId, obj("KeyId", m.KeyId)
	state := func(want string) {
		t.Helper()
		if d := e.describe(id); d.KeyState != want {
			t.Errorf("%s, want %s", d.KeyState, want)
		}
	}
	e.published.take()
	e.deleteMaterial(id)
	if got := e.published.take(); got != "key "+id+"\n" {
		t.Errorf("published %q", got)
	}
	state("PendingImport")
	e.fails("EnableKey", self, kmsapi.KMSInvalidState, m.Arn+" is pending import.")
	body := e.importBody(id, "one")
	e.published.take()
	e.ok("ImportKeyMaterial", body, new(importReply))
	if got := e.published.take(); got != "key "+id+"\n" {
		t.Errorf("published %q", got)
	}
	state("Enabled")
	e.ok("DisableKey", self, nil)
	e.put(id, "one") // a new date, say
	state("Disabled")
	e.deleteMaterial(id)
	e.put(id, "one")
	state("Enabled")

	e.ok("ScheduleKeyDeletion", self, &struct {
		KeyId, KeyState     string
		DeletionDate        float64
		PendingWindowInDays int
	}{})
	e.deleteMaterial(id)
	state("PendingDeletion")
	e.ok("CancelKeyDeletion", self, &cancelKeyDeletionOut{})
	state("PendingImport")
	e.put(id, "one")
	state("Enabled")
}

// Material that waits for a rotation, coming or going, does not enable a key that was disabled when its material expired; only its own material does.
func TestPendingMaterialDoesNotEnable(t *testing.T) {
	e := newEnvIn(t, shared, "eu-import-2")
	m := e.external("{}")
	one := e.put(m.KeyId, "one", e.in(60)...)
	e.expires()
	e.ok("DisableKey", obj("KeyId", m.KeyId), nil)
	e.clock.jump(time.Minute)
	e.expires()
	e.has(m.KeyId, "PendingImport current 1, 1 expired")
	two := e.put(m.KeyId, "two", "ImportType", newMaterial)
	back := func(want string) {
		t.Helper()
		e.clock.jump(-time.Minute)
		e.expires()
		if d := e.describe(m.KeyId); d.KeyState != want {
			t.Errorf("%s, want %s", d.KeyState, want)
		}
		e.clock.jump(time.Minute)
		e.expires()
	}
	back("Disabled")
	e.deleteMaterial(m.KeyId, "KeyMaterialId", two)
	back("Disabled")
	e.deleteMaterial(m.KeyId, "KeyMaterialId", one)
	e.put(m.KeyId, "one")
	e.has(m.KeyId, "Enabled current 1, 1")
}

// A rotation was asked for to the material that waited then. Whatever is imported in its place has to be asked for again.
func TestRotationIsToItsMaterial(t *testing.T) {
	e := newEnvIn(t, shared, "eu-import-3")
	m := e.external("{}", "one")
	two := e.put(m.KeyId, "two", "ImportType", newMaterial)
	e.ok("RotateKeyOnDemand", obj("KeyId", m.KeyId), &rotateKeyOnDemandOut{})
	e.deleteMaterial(m.KeyId, "KeyMaterialId", two)
	e.put(m.KeyId, "three", "ImportType", newMaterial)
	e.work()
	e.has(m.KeyId, "Enabled current 1, 1, 2")
	e.ok("RotateKeyOnDemand", obj("KeyId", m.KeyId), &rotateKeyOnDemandOut{})
	e.work()
	e.has(m.KeyId, "Enabled current 2, 1, 2")
}

// Another key has one material for ever.
func TestImportPrivateKeys(t *testing.T) {
	e := newEnv(t)
	for _, c := range [][2]string{{"RSA_2048", "SIGN_VERIFY"}, {"ECC_NIST_P256", "KEY_AGREEMENT"}, {"HMAC_256", "GENERATE_VERIFY_MAC"}} {
		m := e.external(obj("KeySpec", c[0], "KeyUsage", c[1]))
		algorithm := "RSAES_OAEP_SHA_256"
		if c[0] == "RSA_2048" {
			algorithm = "RSA_AES_KEY_WRAP_SHA_256"
		}
		put := func(material string, with ...any) string {
			var out parametersReply
			e.ok("GetParametersForImport", obj("KeyId", m.KeyId, "WrappingAlgorithm", algorithm, "WrappingKeySpec", "RSA_3072"), &out)
			return importing64(m.KeyId, out.ImportToken, material, with...)
		}
		fails := func(material string, code kmsapi.Code, message string, with ...any) {
			t.Helper()
			e.fails("ImportKeyMaterial", put(material, with...), code, message)
		}
		for member, value := range map[string]string{"ImportType": newMaterial, "KeyMaterialDescription": "d", "KeyMaterialId": strings.Repeat("a", 64)} {
			fails("one", kmsapi.Validation, member+" is supported only for symmetric encryption KMS keys", member, value)
		}
		fails("bad", kmsapi.InvalidCiphertext, "")
		for range 2 {
			var out importReply
			e.ok("ImportKeyMaterial", put("one"), &out)
			if out != (importReply{KeyId: m.Arn}) {
				t.Errorf("%s: %+v", c[0], out)
			}
			if d := e.describe(m.KeyId); d.KeyState != "Enabled" || d.CurrentKeyMaterialId != "" || d.ExpirationModel != materialStays {
				t.Errorf("%s: %+v", c[0], d)
			}
			fails("two", kmsapi.IncorrectKeyMaterial, otherMaterial)
			e.fails("DeleteImportedKeyMaterial", obj("KeyId", m.KeyId, "KeyMaterialId", strings.Repeat("a", 64)), kmsapi.Validation,
				"KeyMaterialId is supported only for symmetric encryption KMS keys")
			if got := e.deleteMaterial(m.KeyId); got != "" {
				t.Errorf("deleted %s", got)
			}
			e.deleteMaterial(m.KeyId)
			if d := e.describe(m.KeyId); d.KeyState != "PendingImport" || d.ExpirationModel != "" {
				t.Errorf("%s: %+v", c[0], d)
			}
			fails("two", kmsapi.IncorrectKeyMaterial, otherMaterial)
		}
	}
}

// What is wrong with ValidTo is said to those who may import, and of a key that could take material: what the model forbids comes before that, and so do
// authorisation and the key's state.
func TestImportValidityComesLater(t *testing.T) {
	e := newEnv(t)
	m := e.external("{}")
	token := e.token(m.KeyId)
	e.ok("ScheduleKeyDeletion", obj("KeyId", m.KeyId), &map[string]any{})
	for validTo, recorded := range map[float64]string{1: "Jan 1, 1970, 12:00:01 AM", 1e300: "Dec 31, 9999, 11:59:59 PM", -1e300: "Jan 1, 0, 12:00:00 AM"} {
		e.trail.take()
		import64 := func(key, material string) string { return importing64(key, token, material, "ValidTo", validTo) }
		e.fails("ImportKeyMaterial", import64(m.KeyId, ""), kmsapi.Validation,
			"1 validation error detected: Value at 'encryptedKeyMaterial' failed to satisfy constraint: Member must have length greater than or equal to 1")
		e.fails("ImportKeyMaterial", import64(strings.Replace(m.Arn, e.account.String(), "999999999999", 1), "one"), kmsapi.AccessDenied, "*")
		e.fails("ImportKeyMaterial", import64(m.KeyId, "one"), kmsapi.KMSInvalidState, m.Arn+" is pending deletion.")
		for _, r := range e.trail.take() {
			if got := r["requestParameters"].(map[string]any)["validTo"]; got != recorded {
				t.Errorf("%v is recorded as %v", validTo, got)
			}
		}
	}
}

func TestImportValidity(t *testing.T) {
	e := newEnv(t)
	m := e.external("{}")
	token, now := e.token(m.KeyId), 1795435200.123
	const year = 365 * 86400
	for _, c := range []struct {
		model, validTo any
		want           string
	}{
		{nil, nil, "A validTo date must be set if the ExpirationModel is KEY_MATERIAL_EXPIRES"},
		{materialExpires, nil, "A validTo date must be set if the ExpirationModel is KEY_MATERIAL_EXPIRES"},
		{materialStays, now + 1000, "A validTo date must not be set if the ExpirationModel is KEY_MATERIAL_DOES_NOT_EXPIRE"},
		{materialExpires, now, "The validTo date must be in the future"},
		{nil, now - 1, "The validTo date must be in the future"},
		{nil, 0, "The validTo date must be in the future"},
		{nil, raw("-1e300"), "The validTo date must be in the future"},
		{nil, now + year + .001, "The validTo date must be at most 365 days in the future"},
		{nil, raw("1e300"), "The validTo date must be at most 365 days in the future"},
	} {
		pairs := []any{"KeyId", m.KeyId, "ImportToken", token, "EncryptedKeyMaterial", []byte("one")}
		if c.model != nil {
			pairs = append(pairs, "ExpirationModel", c.model)
		}
		if c.validTo != nil {
			pairs = append(pairs, "ValidTo", c.validTo)
		}
		e.fails("ImportKeyMaterial", obj(pairs...), kmsapi.Validation, c.want)
	}
	e.has(m.KeyId, "PendingImport current 0")
	for _, validTo := range []any{now + year, raw("1.7955E9"), 1795435200.124} { // clients print both forms of numbers
		e.ok("ImportKeyMaterial", importing64(m.KeyId, token, "one", "ValidTo", validTo), new(importReply))
		d := e.describe(m.KeyId)
		if want := map[any]float64{raw("1.7955E9"): 1.7955e9}[validTo]; d.ExpirationModel != materialExpires || want != 0 && d.ValidTo != want || want == 0 && d.ValidTo != validTo {
			t.Errorf("%v: %+v", validTo, d)
		}
	}
	// The earliest of all that are the key's counts; that of material that waits for its rotation does not.
	e.ok("ImportKeyMaterial", importing64(m.KeyId, token, "one", "ValidTo", now+500), new(importReply))
	e.ok("ImportKeyMaterial", importing64(m.KeyId, token, "two", "ValidTo", now+200, "ImportType", newMaterial), new(importReply))
	if d := e.describe(m.KeyId); d.ValidTo != now+500 {
		t.Errorf("%+v", d)
	}
	e.rotate(m.KeyId)
	if d := e.describe(m.KeyId); d.ValidTo != now+200 || d.ExpirationModel != materialExpires {
		t.Errorf("%+v", d)
	}
	e.ok("ImportKeyMaterial", importing64(m.KeyId, token, "two"), new(importReply))
	if d := e.describe(m.KeyId); d.ValidTo != now+500 || d.ExpirationModel != materialExpires {
		t.Errorf("one expires, one does not: %+v", d)
	}
	e.ok("ImportKeyMaterial", importing64(m.KeyId, token, "one"), new(importReply))
	if d := e.describe(m.KeyId); d.ValidTo != 0 || d.ExpirationModel != materialStays {
		t.Errorf("%+v", d)
	}
}

func TestImportConstraints(t *testing.T) {
	e := newEnv(t)
	m := e.external("{}")
	long := make([]byte, kmsapi.CiphertextBlobMax+1)
	for body, want := range map[string]string{
		obj("KeyId", m.KeyId): "2 validation errors detected: Value null at 'importToken' failed to satisfy constraint: Member must not be null; " +
			"Value null at 'encryptedKeyMaterial' failed to satisfy constraint: Member must not be null",
		obj("KeyId", m.KeyId, "ImportToken", "", "EncryptedKeyMaterial", long): "2 validation errors detected: Value at 'importToken' failed to satisfy constraint: Member " +
			"must have length greater than or equal to 1; Value at 'encryptedKeyMaterial' failed to satisfy constraint: Member must have length less than or equal to 6144",
		obj("KeyId", m.KeyId, "ImportToken", "AAAA", "EncryptedKeyMaterial", "AAAA", "ExpirationModel", "NEVER", "ImportType", "OLD", "KeyMaterialDescription", "", "KeyMaterialId", "A"): "5 " +
			"validation errors detected: Value 'NEVER' at 'expirationModel' failed to satisfy constraint: Member must satisfy enum value set: [KEY_MATERIAL_EXPIRES, " +
			"KEY_MATERIAL_DOES_NOT_EXPIRE]; Value 'OLD' at 'importType' failed to satisfy constraint: Member must satisfy enum value set: [NEW_KEY_MATERIAL, " +
			"EXISTING_KEY_MATERIAL]; Value '' at 'keyMaterialDescription' failed to satisfy constraint: Member must satisfy regular expression pattern: ^[a-zA-Z0-9:/_\\s.-]+$; " +
			"Value 'A' at 'keyMaterialId' failed to satisfy constraint: Member must have length greater than or equal to 64; Value 'A' at 'keyMaterialId' failed to " +
			"satisfy constraint: Member must satisfy regular expression pattern: ^[a-f0-9]+$",
	} {
		want, _ := json.Marshal(want)
		e.fails("ImportKeyMaterial", body, kmsapi.Validation, strings.Trim(strings.ReplaceAll(string(want), `\\`, `\`), `"`))
	}
	for _, blob := range []string{"****", "AAA", "AA==AA==", "AA\n=="} {
		e.fails("ImportKeyMaterial", obj("KeyId", m.KeyId, "ImportToken", blob, "EncryptedKeyMaterial", "AAAA"), kmsapi.Serialization, "STRING_VALUE can not be converted to a Blob")
	}
	e.fails("ImportKeyMaterial", obj("KeyId", m.KeyId, "ImportToken", "AAAA", "EncryptedKeyMaterial", "AAAA", "ValidTo", "tomorrow"), kmsapi.Serialization, "*")
	e.fails("DeleteImportedKeyMaterial", obj("KeyId", m.KeyId, "KeyMaterialId", strings.Repeat("g", 64)), kmsapi.Validation, "*")
}

// A token is good for one KMS key, for a day.
func TestImportTokens(t *testing.T) {
	e := newEnv(t)
	m, other := e.external("{}"), e.external("{}")
	token := e.token(m.KeyId)
	try := func(what, keyID string, token []byte, code kmsapi.Code, message string) {
		t.Helper()
		if resp := e.call("ImportKeyMaterial", importing64(keyID, token, "one")); resp.Code != code ||
			code != kmsapi.OK && string(resp.Body) != string(kmsapi.AppendErrorBody(nil, code, []byte(message))) {
			t.Errorf("%s: %s", what, resp.Body)
		}
	}
	try("another key's", other.KeyId, token, kmsapi.InvalidImportToken, invalidToken)
	try("garbage", m.KeyId, []byte("garbage"), kmsapi.InvalidImportToken, invalidToken)
	try("zeros", m.KeyId, make([]byte, len(token)), kmsapi.InvalidImportToken, invalidToken)
	try("cut", m.KeyId, token[:len(token)-1], kmsapi.InvalidImportToken, invalidToken)
	try("longer", m.KeyId, append(bytes.Clone(token), 0), kmsapi.InvalidImportToken, invalidToken)
	for at := 0; at < len(token); at += 7 {
		flipped := bytes.Clone(token)
		flipped[at] ^= 1 << (at % 8)
		try(fmt.Sprintf("bit flip at %d", at), m.KeyId, flipped, kmsapi.InvalidImportToken, invalidToken)
	}
	// What another use of the same sealer made, and what another version of the token would be.
	for _, text := range []string{"secret", "{}", `{"algorithm":"RSAES_OAEP_SHA_256","spec":"RSA_2048","expires":9999999999999,"root":"AAAAAAAAAAA=","wrapped":"AAAA","more":1}`} {
		sealed, err := e.sealer.Seal([]byte(text), boundTo(e.name(m.KeyId)))
		if err != nil {
			t.Fatal(err)
		}
		try(text, m.KeyId, sealed, kmsapi.InvalidImportToken, invalidToken)
	}
	e.clock.add(24*time.Hour - time.Millisecond)
	try("in its last moment", m.KeyId, token, kmsapi.OK, "")
	e.clock.add(time.Millisecond)
	try("expired", m.KeyId, token, kmsapi.ExpiredImportToken, "The import token has expired.")
	try("another key's, expired", other.KeyId, token, kmsapi.InvalidImportToken, invalidToken)
	e.has(other.KeyId, "PendingImport current 0")

	// A sealer that does not answer is no fault of the token's.
	e.sealer = failingSealer{}
	e.fails("ImportKeyMaterial", importing64(m.KeyId, token, "one"), kmsapi.KMSInternal, kmsapi.KMSInternal.Text())
}

type failingSealer struct{ store.Sealer }

func (failingSealer) Open(_, _ []byte) ([]byte, error) { return nil, errors.New("CKR_DEVICE_ERROR") }

func TestImportConditions(t *testing.T) {
	e := newEnv(t)
	m := e.external("{}")
	condition := func(c string) string { return `"Resource":"*","Condition":` + c }
	user := e.user("importer",
		statement("Allow", "kms:GetParametersForImport", condition(`{"StringEquals":{"kms:WrappingAlgorithm":"RSAES_OAEP_SHA_256","kms:WrappingKeySpec":"RSA_4096"}}`)),
		statement("Allow", "kms:ImportKeyMaterial", condition(`{"StringEquals":{"kms:ExpirationModel":"KEY_MATERIAL_EXPIRES"},"NumericLessThan":{"kms:ValidTo":"1795435300"}}`)))
	denied := func(op, body string) {
		t.Helper()
		user.fails(op, body, kmsapi.AccessDenied, "*")
	}
	denied("GetParametersForImport", e.parametersBody(m.KeyId))
	var out parametersReply
	user.ok("GetParametersForImport", obj("KeyId", m.KeyId, "WrappingAlgorithm", "RSAES_OAEP_SHA_256", "WrappingKeySpec", "RSA_4096"), &out)
	denied("ImportKeyMaterial", importing64(m.KeyId, out.ImportToken, "one"))
	denied("ImportKeyMaterial", importing64(m.KeyId, out.ImportToken, "one", "ValidTo", 1795435300.5))
	user.ok("ImportKeyMaterial", importing64(m.KeyId, out.ImportToken, "one", "ValidTo", 1795435299.5), new(importReply))
}

// realMaterial is a key of the KMS key's spec, made outside.
func realMaterial(t testing.TB, spec string) hsmtest.Material {
	t.Helper()
	if spec == kmsapi.SymmetricDefault {
		return hsmtest.MakeMaterial(t, keyspec.AES256)
	}
	return hsmtest.MakeMaterial(t, keyspec.Of(spec))
}

// wrapFor has the server make a wrapping key and wraps with Go's library.
func (e *env) wrapFor(keyID string, w keyspec.Wrapping, wrapping string) (token []byte, wrap func(plain []byte) string) {
	e.Helper()
	var out parametersReply
	e.ok("GetParametersForImport", obj("KeyId", keyID, "WrappingAlgorithm", w.String(), "WrappingKeySpec", wrapping), &out)
	if len(out.ImportToken) > kmsapi.CiphertextBlobMax || len(out.PublicKey) > 4096 {
		e.Errorf("%s: a token of %d bytes, a public key of %d", wrapping, len(out.ImportToken), len(out.PublicKey))
	}
	key, err := x509.ParsePKIXPublicKey(out.PublicKey)
	if err != nil {
		e.Fatal(err)
	}
	return out.ImportToken, func(plain []byte) string { return string(hsmtest.WrapMaterial(e, w, key.(*rsa.PublicKey), plain)) }
}

// Keys of every spec come into the HSM, wrapped as clients wrap them, and are the keys that they were; what is wrong with the material is one answer.
func TestImportInHSM(t *testing.T) {
	e := newEnv(t)
	e.useHSM()
	hybrid, oaep := []keyspec.Wrapping{keyspec.WrapRSAAES1, keyspec.WrapRSAAES256}, []keyspec.Wrapping{keyspec.WrapOAEP1, keyspec.WrapOAEP256}
	for i, c := range []struct {
		spec, usage, wrapping string
		with                  []keyspec.Wrapping
	}{
		{"SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", "RSA_2048", oaep}, {"HMAC_224", "GENERATE_VERIFY_MAC", "RSA_2048", oaep}, {"HMAC_512", "GENERATE_VERIFY_MAC", "RSA_2048", oaep},
		{"RSA_2048", "SIGN_VERIFY", "RSA_2048", hybrid}, {"ECC_NIST_P256", "SIGN_VERIFY", "RSA_2048", oaep}, {"ECC_NIST_P384", "KEY_AGREEMENT", "RSA_2048", hybrid},
		{"ECC_NIST_P521", "SIGN_VERIFY", "RSA_3072", oaep}, {"ECC_SECG_P256K1", "SIGN_VERIFY", "RSA_2048", oaep}, {"ECC_NIST_EDWARDS25519", "SIGN_VERIFY", "RSA_2048", hybrid},
	} {
		m := e.external(obj("KeySpec", c.spec, "KeyUsage", c.usage))
		material, other := realMaterial(t, c.spec), realMaterial(t, c.spec)
		w := c.with[i%2]
		token, wrap := e.wrapFor(m.KeyId, w, c.wrapping)
		good := wrap(material.Plain)
		bad := map[string]string{
			"cut": good[:len(good)-1], "longer": good + "0", "a byte less": wrap(material.Plain[:len(material.Plain)-1]), "a byte more": wrap(append(bytes.Clone(material.Plain), 0)),
			"text": wrap([]byte("material")),
		}
		for at := 0; at < len(good); at += len(good)/5 + 1 {
			flipped := []byte(good)
			flipped[at] ^= 0x40
			bad[fmt.Sprintf("bit flip at %d", at)] = string(flipped)
		}
		if s := keyspec.Of(c.spec); s.Info().Family == keyspec.EC {
			bad["another curve"] = wrap(hsmtest.MakeMaterial(t, keyspec.Ed25519).Plain)
		}
		for what, b := range bad {
			if resp := e.call("ImportKeyMaterial", importing64(m.KeyId, token, b)); string(resp.Body) != `{"__type":"InvalidCiphertextException"}` || resp.Status != 400 {
				t.Errorf("%s, %s: %s", c.spec, what, resp.Body)
			}
		}
		e.has(m.KeyId, "PendingImport current 0")
		var first, again importReply
		e.ok("ImportKeyMaterial", importing64(m.KeyId, token, good), &first)
		e.isMaterial(m.KeyId, &material)
		e.fails("ImportKeyMaterial", importing64(m.KeyId, token, wrap(other.Plain)), kmsapi.IncorrectKeyMaterial, otherMaterial)
		e.deleteMaterial(m.KeyId)
		e.fails("ImportKeyMaterial", importing64(m.KeyId, token, wrap(other.Plain)), kmsapi.IncorrectKeyMaterial, otherMaterial)
		if i%3 == 0 {
			token, wrap = e.wrapFor(m.KeyId, c.with[(i+1)%2], c.wrapping)
			e.fails("ImportKeyMaterial", importing64(m.KeyId, token, good), kmsapi.InvalidCiphertext, "") // for another wrapping key
		}
		e.ok("ImportKeyMaterial", importing64(m.KeyId, token, wrap(material.Plain)), &again)
		e.isMaterial(m.KeyId, &material)
		if first != again || (first.KeyMaterialId != "") != (c.spec == kmsapi.SymmetricDefault) {
			t.Errorf("%s: imported %+v and %+v", c.spec, first, again)
		}
	}
	if testing.Short() {
		return
	}
	m := e.external("{}")
	token, wrap := e.wrapFor(m.KeyId, keyspec.WrapOAEP256, "RSA_4096")
	material := realMaterial(t, "SYMMETRIC_DEFAULT")
	e.ok("ImportKeyMaterial", importing64(m.KeyId, token, wrap(material.Plain)), new(importReply))
	e.isMaterial(m.KeyId, &material)
}

// isMaterial says that the KMS key's backing key is that material.
func (e *env) isMaterial(keyID string, m *hsmtest.Material) {
	e.Helper()
	k, err := e.store.Key(e.Context(), e.name(keyID))
	if err != nil {
		e.Fatal(err)
	}
	p := k.Private
	if k.Spec == kmsapi.SymmetricDefault {
		p = k.Versions[0].Resident
	}
	if m.Public != nil {
		if !bytes.Equal(p.Public, m.Public) {
			e.Errorf("%s: another public key", k.Spec)
		}
		return
	}
	var want [32]byte
	if k.Spec == kmsapi.SymmetricDefault {
		block, err := aes.NewCipher(m.Plain)
		if err != nil {
			e.Fatal(err)
		}
		block.Encrypt(want[:16], []byte(snapshot.ResidentBlocks[:16]))
		block.Encrypt(want[16:], []byte(snapshot.ResidentBlocks[16:]))
	} else {
		h := hmac.New(map[string]func() hash.Hash{"HMAC_224": sha256.New224, "HMAC_512": sha512.New}[k.Spec], m.Plain)
		h.Write([]byte(snapshot.ResidentBlocks))
		copy(want[:], h.Sum(nil))
	}
	if got, err := e.keys.Images(m.Spec, p); err != nil || *got != want {
		e.Errorf("%s: images %x, want %x, %v", k.Spec, got, want, err)
	}
}
