package dataplane

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/internal/aesgcm"
	"github.com/keyplane/keyplane/internal/invariants"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/snapshot"
)

// importKey brings an AES key of known bytes into the token.
func importKey(t testing.TB, token hsm.Token, raw []byte) (wrapped []byte) {
	t.Helper()
	imports := token.(hsm.ImportToken)
	private, spki, err := imports.GenerateKey(keyspec.RSA2048)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		t.Fatal(err)
	}
	material, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, public.(*rsa.PublicKey), raw, nil)
	if err != nil {
		t.Fatal(err)
	}
	wrapped, _, err = imports.ImportKey(keyspec.AES256, keyspec.RSA2048, private, keyspec.WrapOAEP256, material)
	if err != nil {
		t.Fatal(err)
	}
	return wrapped
}

func takes(token hsm.ImportToken) bool {
	ok, _, _ := token.Imports(keyspec.AES256, keyspec.WrapOAEP256)
	return ok
}

type hexBytes []byte

func (h *hexBytes) UnmarshalJSON(b []byte) (err error) {
	*h, err = hex.DecodeString(strings.Trim(string(b), `"`))
	return err
}

// The published vectors of XAES-256-GCM, on the way of a request under an imported key of their bytes: the message key is the one that opens them, and a reply
// that the plane makes is what the construction gives.
func TestResidentVectors(t *testing.T) {
	raw, err := os.ReadFile("../internal/kdf/xaes/testdata/xaes_256_gcm.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors struct {
		Tests []struct {
			Key, Nonce, AAD, Msg, Kx hexBytes
			Sealed                   hexBytes `json:"ct_and_tag"`
		}
	}
	if err := json.Unmarshal(raw, &vectors); err != nil || len(vectors.Tests) != 2 {
		t.Fatalf("%d vectors, %v", len(vectors.Tests), err)
	}
	for _, kind := range tokenKinds {
		t.Run(kind.name, func(t *testing.T) {
			token := kind.open(t)
			if imports, ok := token.(hsm.ImportToken); !ok || !takes(imports) {
				t.Fatal("the token imports no AES keys like this")
			}
			w := newWorld(t, worldConfig{tokens: []hsm.Token{token}, ring: true})
			for i, c := range vectors.Tests {
				k := w.addKey(fmt.Sprint("vector", i), kmsapi.StateEnabled, 1)
				w.setResident(k, 0, importKey(t, w.bare, c.Key))
				out := w.ask("Encrypt", "CiphertextBlob EncryptionAlgorithm KeyId", `{"KeyId":%q,"Plaintext":%q}`, k.ID, b64(c.Msg))
				if _, _, got, ok := w.open(out.CiphertextBlob, nil); !ok || !bytes.Equal(got, c.Msg) {
					t.Errorf("vector %d: %x opens to %x", i, out.CiphertextBlob, got)
				}

				r := w.requests.acquire()
				r.now, r.region = time.Now(), &w.regions[0]
				if r.key, err = w.key(r, k.Account, k.ID); err != nil {
					t.Fatal(err)
				}
				r.blob.Nonce = [24]byte(c.Nonce)
				d, code := w.wantBlobKey(r, current(r.key))
				if code == kmsapi.OK {
					code = w.round(r)
				}
				if code != kmsapi.OK || !bytes.Equal(messageKey(d)[:], c.Kx) {
					t.Fatalf("vector %d: %v, key %x, want %x", i, code, messageKey(d), c.Kx)
				}
				if got, ok := aesgcm.Open(nil, messageKey(d), gcmNonce(&r.blob.Nonce), c.Sealed, c.AAD); !ok || !bytes.Equal(got, c.Msg) {
					t.Errorf("vector %d: %x, %t", i, got, ok)
				}
				w.requests.release(r)
			}
		})
	}
}

// Every combination of keys on the two sides of ReEncrypt, old versions and present ones.
func TestResidentReEncrypt(t *testing.T) {
	w := newWorld(t, worldConfig{})
	for name, add := range map[string]func(string, kmsapi.KeyState, int) *snapshot.Record{"derived": w.addKey, "resident": w.addResidentKey} {
		add(name+"-a", kmsapi.StateEnabled, 2)
		add(name+"-b", kmsapi.StateEnabled, 2)
	}
	mixed := w.addResidentKey("mixed", kmsapi.StateEnabled, 3) // no key is made like this; it is nothing special either
	derived := w.addKey("mixed-derived", kmsapi.StateEnabled, 3)
	mixed.Versions[1] = derived.Versions[1]
	mixed.Versions[1].MaterialID = snapshot.MaterialID(mixed.Account, mixed.ID, 2, &mixed.Versions[1].Salt)
	w.must(mixed.Check())
	rsaKey := w.addPrivateKey("rsa", kmsapi.StateEnabled, keyspec.RSA2048, keyspec.EncryptDecrypt)
	names := []string{"derived-a", "derived-b", "resident-a", "resident-b", "mixed"}
	for _, source := range names {
		for number := 1; number <= len(w.records.keys[keyID(source)].Versions); number++ {
			for _, dest := range names {
				text := []byte(fmt.Sprint(source, number, " to ", dest))
				out := w.ask("ReEncrypt", "CiphertextBlob DestinationEncryptionAlgorithm DestinationKeyMaterialId KeyId SourceEncryptionAlgorithm SourceKeyId SourceKeyMaterialId",
					`{"CiphertextBlob":%q,"SourceEncryptionContext":{"a":"1"},"DestinationKeyId":%q,"DestinationEncryptionContext":{"b":"2"}}`,
					b64(w.blob(source, number, map[string]string{"a": "1"}, text)), keyID(dest))
				key, version, got, ok := w.open(out.CiphertextBlob, map[string]string{"b": "2"})
				if !ok || key != keyID(dest) || int(version) != len(w.records.keys[key].Versions) || !bytes.Equal(got, text) {
					t.Errorf("%s: under version %d of %v: %q", text, version, key, got)
				}
			}
			text := []byte(fmt.Sprint(source, number, " to RSA"))
			out := w.ask("ReEncrypt", "CiphertextBlob DestinationEncryptionAlgorithm KeyId SourceEncryptionAlgorithm SourceKeyId SourceKeyMaterialId",
				`{"CiphertextBlob":%q,"DestinationKeyId":%q,"DestinationEncryptionAlgorithm":"RSAES_OAEP_SHA_256"}`, b64(w.blob(source, number, nil, text)), rsaKey.ID)
			if got := w.mustUse(rsaKey, hsm.DecryptOAEP256, out.CiphertextBlob); !bytes.Equal(got, text) {
				t.Errorf("%s: %q", text, got)
			}
		}
		text := []byte("RSA to " + source)
		out := w.ask("ReEncrypt", "CiphertextBlob DestinationEncryptionAlgorithm DestinationKeyMaterialId KeyId SourceEncryptionAlgorithm SourceKeyId",
			`{"SourceKeyId":%q,"SourceEncryptionAlgorithm":"RSAES_OAEP_SHA_256","CiphertextBlob":%q,"DestinationKeyId":%q}`, rsaKey.ID, b64(w.encryptOAEP(rsaKey, keyspec.OAEPSHA256, text)), keyID(source))
		if _, _, got, ok := w.open(out.CiphertextBlob, nil); !ok || !bytes.Equal(got, text) {
			t.Errorf("%s: %q", text, got)
		}
	}
}

// Data keys and pairs, the refusals of a dry run, and what a blob may say.
func TestResidentOperations(t *testing.T) {
	w := newWorld(t, worldConfig{})
	k := w.addResidentKey("own", kmsapi.StateEnabled, 2)
	w.addKey("k1", kmsapi.StateEnabled, 2)
	id, material := k.ID.String(), string(k.Versions[1].MaterialID[:])
	opens := func(blob, want []byte) {
		t.Helper()
		if _, version, got, ok := w.open(blob, map[string]string{"a": "1"}); !ok || version != 2 || want != nil && !bytes.Equal(got, want) {
			t.Errorf("version %d, %x, want %x", version, got, want)
		}
	}
	seen := map[string]bool{}
	for range 20 {
		out := w.ask("GenerateDataKey", "CiphertextBlob Plaintext KeyId KeyMaterialId", `{"KeyId":%q,"NumberOfBytes":65,"EncryptionContext":{"a":"1"}}`, id)
		opens(out.CiphertextBlob, out.Plaintext)
		nonce := string(out.CiphertextBlob[29:53])
		if len(out.Plaintext) != 65 || out.KeyMaterialId != material || seen[nonce] || seen[string(out.Plaintext)] || nonce == string(make([]byte, 24)) {
			t.Errorf("%+v", out)
		}
		seen[nonce], seen[string(out.Plaintext)] = true, true
	}
	opens(w.ask("GenerateDataKeyWithoutPlaintext", "CiphertextBlob KeyId KeyMaterialId", `{"KeyId":%q,"KeySpec":"AES_256","EncryptionContext":{"a":"1"}}`, id).CiphertextBlob, nil)
	pair := w.ask("GenerateDataKeyPair", "KeyId KeyMaterialId KeyPairSpec PrivateKeyCiphertextBlob PrivateKeyPlaintext PublicKey",
		`{"KeyId":%q,"KeyPairSpec":"ECC_NIST_P256","EncryptionContext":{"a":"1"}}`, id)
	opens(pair.PrivateKeyCiphertextBlob, pair.PrivateKeyPlaintext)
	if pair.KeyMaterialId != material || !matches(t, keyspec.P256, pair.PrivateKeyPlaintext, pair.PublicKey) {
		t.Errorf("%+v", pair)
	}

	blob := w.blob("own", 1, nil, []byte("hello"))
	if out := w.ask("Decrypt", "EncryptionAlgorithm KeyId KeyMaterialId Plaintext", `{"CiphertextBlob":%q}`, b64(blob)); string(out.Plaintext) != "hello" ||
		out.KeyMaterialId != string(k.Versions[0].MaterialID[:]) || out.KeyId != keyARN("own") {
		t.Errorf("%+v", out)
	}
	w.refused("DryRunOperationException", "GenerateDataKey", `{"KeyId":%q,"KeySpec":"AES_256","DryRun":true}`, id)
	w.refused("DryRunOperationException", "Decrypt", `{"CiphertextBlob":%q,"DryRun":true}`, b64(blob))
	w.refused("DryRunOperationException", "ReEncrypt", `{"CiphertextBlob":%q,"DestinationKeyId":%q,"DryRun":true}`, b64(blob), id)
	w.refused("InvalidCiphertextException", "Decrypt", `{"CiphertextBlob":%q,"EncryptionContext":{"a":"2"}}`, b64(blob))
	w.refused("IncorrectKeyException", "Decrypt", `{"CiphertextBlob":%q,"KeyId":%q}`, b64(blob), keyID("k1"))
	for i := range blob {
		bad := bytes.Clone(blob)
		if bad[i] ^= 1; i >= 2 && i < 25 {
			continue // another account, or another key
		}
		w.refused("InvalidCiphertextException", "Decrypt", `{"CiphertextBlob":%q}`, b64(bad))
		w.refused("InvalidCiphertextException", "ReEncrypt", `{"CiphertextBlob":%q,"DestinationKeyId":%q}`, b64(bad), keyID("k1"))
	}
	// The suite is that of the version, not only well formed.
	for _, name := range []string{"own", "k1"} {
		bad := w.blob(name, 1, nil, []byte("hello"))
		bad[1] ^= 3
		r := w.do(w.call("Decrypt", `{"CiphertextBlob":"`+b64(bad)+`"}`))
		if r.exception() != "InvalidCiphertextException" {
			t.Errorf("%s in the other suite: %d %s", name, r.status, r.body)
		}
	}
}

// Versions that wait for their rotation decrypt and do not encrypt; those that do not exist do neither. A record may have no version that is there.
func TestResidentVersions(t *testing.T) {
	w := newWorld(t, worldConfig{})
	k := w.addResidentKey("own", kmsapi.StateEnabled, 3)
	k.Current = 1
	next := w.blob("own", 3, nil, []byte("made elsewhere"))
	if out := w.ask("Decrypt", "EncryptionAlgorithm KeyId KeyMaterialId Plaintext", `{"CiphertextBlob":%q}`, b64(next)); string(out.Plaintext) != "made elsewhere" {
		t.Errorf("%+v", out)
	}
	out := w.ask("Encrypt", "CiphertextBlob EncryptionAlgorithm KeyId", `{"KeyId":%q,"Plaintext":"aGVsbG8="}`, k.ID)
	if _, version, _, ok := w.open(out.CiphertextBlob, nil); !ok || version != 2 {
		t.Errorf("encrypted under version %d", version)
	}
	next[28] = 4
	w.refused("InvalidCiphertextException", "Decrypt", `{"CiphertextBlob":%q}`, b64(next))

	// A replica key may lack the version that its primary key rotates to next.
	next[28] = 3
	replica := *k
	replica.Versions = slices.Clone(k.Versions)
	replica.Versions[2] = snapshot.VersionRecord{Number: 3, MaterialID: k.Versions[2].MaterialID, Missing: true}
	w.must(replica.Check())
	put := func(k *snapshot.Record) {
		w.records.mu.Lock()
		w.records.keys[k.ID] = k
		w.records.mu.Unlock()
		w.KeyChanged(ours, k.ID)
	}
	put(&replica)
	w.refused("KMSInvalidStateException", "Decrypt", `{"CiphertextBlob":%q}`, b64(next))
	out = w.ask("Encrypt", "CiphertextBlob EncryptionAlgorithm KeyId", `{"KeyId":%q,"Plaintext":"aGVsbG8="}`, k.ID)
	if _, version, _, ok := w.open(out.CiphertextBlob, nil); !ok || version != 2 {
		t.Errorf("encrypted under version %d", version)
	}
	lacking := replica
	if lacking.Current = 2; lacking.Check() == nil {
		t.Error("an enabled key may lack the version that encrypts")
	}
	put(k)

	blob := w.blob("own", 1, nil, []byte("hello"))
	for _, versions := range [][]snapshot.VersionRecord{nil, {{Number: 1, Missing: true}, {Number: 2, Missing: true}}} {
		gone := *k
		gone.State, gone.Versions, gone.Current = kmsapi.StatePendingImport, versions, len(versions)-1
		w.must(gone.Check())
		put(&gone)
		w.refused("KMSInvalidStateException", "Decrypt", `{"CiphertextBlob":%q}`, b64(blob))
		w.refused("KMSInvalidStateException", "Encrypt", `{"KeyId":%q,"Plaintext":"aGVsbG8="}`, k.ID)
		w.refused("KMSInvalidStateException", "ReEncrypt", `{"CiphertextBlob":%q,"DestinationKeyId":%q}`, b64(blob), k.ID)
	}
}

// From the moment at which its material expires a key is pending import, also in a view that was made before, whether the control plane has come to note it or not.
func TestMaterialExpires(t *testing.T) {
	w := newWorld(t, worldConfig{})
	own := w.addResidentKey("own", kmsapi.StateEnabled, 1)
	signs := w.addPrivateKey("signs", kmsapi.StateEnabled, keyspec.P256, keyspec.SignVerify)
	blob := w.blob("own", 1, nil, []byte("hello"))
	until := func(d time.Duration) time.Time {
		date := time.Now().Add(d)
		w.records.mu.Lock()
		own.Expires, signs.Expires = date, date
		w.records.mu.Unlock()
		w.KeyChanged(ours, own.ID)
		w.KeyChanged(ours, signs.ID)
		return date
	}
	calls := func(want string) {
		t.Helper()
		for op, body := range map[string]string{
			"Decrypt": fmt.Sprintf(`{"CiphertextBlob":%q}`, b64(blob)), "Encrypt": fmt.Sprintf(`{"KeyId":%q,"Plaintext":"aGVsbG8="}`, own.ID),
			"Sign": fmt.Sprintf(`{"KeyId":%q,"Message":"aGVsbG8=","SigningAlgorithm":"ECDSA_SHA_256"}`, signs.ID),
		} {
			if got := w.do(w.call(op, body)).exception(); got != want {
				t.Errorf("%s: %s, want %s", op, got, want)
			}
		}
		if got := w.do(w.call("GetPublicKey", fmt.Sprintf(`{"KeyId":%q}`, signs.ID))).exception(); got != "" {
			t.Errorf("GetPublicKey: %s", got)
		}
	}
	until(time.Hour)
	calls("")
	date, before := until(300*time.Millisecond), 0
	for time.Now().Before(date) {
		r := w.do(w.call("Decrypt", fmt.Sprintf(`{"CiphertextBlob":%q}`, b64(blob))))
		if got := r.exception(); got == "" {
			before++
		} else if time.Now().Before(date) {
			t.Errorf("too early: %s", got)
		}
	}
	t.Logf("%d requests before", before)
	calls("KMSInvalidStateException")
	until(-time.Hour)
	calls("KMSInvalidStateException")
}

// A key of the HSM that is not the version's is told by its material ID, whoever has put it there and named it right. It does not take the other versions away.
func TestResidentSwapped(t *testing.T) {
	w := newWorld(t, worldConfig{})
	a, b := w.addResidentKey("a", kmsapi.StateEnabled, 2), w.addResidentKey("b", kmsapi.StateEnabled, 2)
	blob := func(number int) string { return b64(w.blob("a", number, nil, []byte("hello"))) }
	first, second := blob(1), blob(2)
	for name, from := range map[string]*snapshot.VersionRecord{"another key's": &b.Versions[0], "another version's": &a.Versions[1]} {
		swapped := *a
		swapped.Versions = slices.Clone(a.Versions)
		p := &snapshot.PrivateKey{Root: from.Resident.Root, Wrapped: from.Resident.Wrapped}
		swapped.Versions[0].Resident = p
		if p.ID = from.Resident.ID; name == "another key's" && swapped.Check() == nil {
			t.Errorf("%s: the record is taken with another key's ID", name)
		}
		p.ID = snapshot.PrivateKeyID(a.Account, a.ID, a.Spec, a.Usage, p)
		w.must(swapped.Check())
		w.records.mu.Lock()
		w.records.keys[a.ID] = &swapped
		w.records.mu.Unlock()
		w.KeyChanged(ours, a.ID)
		for range 2 {
			w.refused("KMSInternalException", "Decrypt", `{"CiphertextBlob":%q}`, first)
			if out := w.ask("Decrypt", "EncryptionAlgorithm KeyId KeyMaterialId Plaintext", `{"CiphertextBlob":%q}`, second); string(out.Plaintext) != "hello" {
				t.Errorf("%s: %+v", name, out)
			}
			w.ask("Encrypt", "CiphertextBlob EncryptionAlgorithm KeyId", `{"KeyId":%q,"Plaintext":"aGVsbG8="}`, a.ID)
		}
		swapped.Current = 0
		w.KeyChanged(ours, a.ID)
		w.refused("KMSInternalException", "Encrypt", `{"KeyId":%q,"Plaintext":"aGVsbG8="}`, a.ID)
	}
}

// What the HSM says is answered as for private keys. Nothing of it is the client's fault.
func TestResidentErrors(t *testing.T) {
	w := newWorld(t, worldConfig{})
	k := w.addResidentKey("own", kmsapi.StateEnabled, 1)
	blob := b64(w.blob("own", 1, nil, []byte("hello")))
	var failing error
	w.useErr = func() error { return failing }
	for _, warm := range []bool{false, true} {
		for _, c := range []struct {
			err  error
			want string
		}{
			{&hsm.Error{CKR: hsm.CKR_DATA_LEN_RANGE, Function: "C_Encrypt"}, "KMSInternalException"},
			{&hsm.Error{CKR: hsm.CKR_ENCRYPTED_DATA_INVALID, Function: "C_Encrypt"}, "KMSInternalException"},
			{hsm.ErrTimeout, "DependencyTimeoutException"}, {hsm.ErrUnavailable, "KeyUnavailableException"}, {hsm.ErrNoRoot, "KeyUnavailableException"},
			{hsm.ErrNotOffered, "UnsupportedOperationException"},
		} {
			failing = c.err
			w.refused(c.want, "Decrypt", `{"CiphertextBlob":%q}`, blob)
			w.refused(c.want, "GenerateDataKey", `{"KeyId":%q,"KeySpec":"AES_256"}`, k.ID)
			w.refused(c.want, "ReEncrypt", `{"CiphertextBlob":%q,"DestinationKeyId":%q}`, blob, k.ID)
		}
		if failing = nil; warm {
			break
		}
		w.ask("Decrypt", "EncryptionAlgorithm KeyId KeyMaterialId Plaintext", `{"CiphertextBlob":%q}`, blob)
	}

	without := newWorld(t, worldConfig{})
	without.parts.Keys = nil
	own := without.addKey("own", kmsapi.StateEnabled, 1)
	own.Versions = k.Versions
	without.refused("UnsupportedOperationException", "Encrypt", `{"KeyId":%q,"Plaintext":"aGVsbG8="}`, own.ID)
}

// Keys leave the HSM and come back without anybody's noticing: evicted by others, lost, forgotten, gone with the token's generation. Many requests at once.
func TestResidentKeysComeBack(t *testing.T) {
	faulty := hsmtest.NewFaulty(softToken)
	w := newWorld(t, worldConfig{ringTokens: []hsm.Token{faulty}, handlesMax: 2})
	var blobs []string
	for i := range 4 {
		name := fmt.Sprint("own", i)
		w.addResidentKey(name, kmsapi.StateEnabled, 2)
		for number := 1; number <= 2; number++ {
			blobs = append(blobs, b64(w.blob(name, number, nil, []byte(name))))
		}
	}
	var done atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for client := range 4 {
		c := w.connect()
		wg.Go(func() {
			for n := client; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				r, err := c.do(w.call("Decrypt", `{"CiphertextBlob":"`+blobs[n%len(blobs)]+`"}`))
				// Where the race detector makes all of it slow, a client can come while every session is opened anew, and is told to try again.
				for began := time.Now(); invariants.Enabled && err == nil && time.Since(began) < time.Second && bytes.Contains(r.body, []byte("KeyUnavailableException")); {
					time.Sleep(time.Millisecond)
					r, err = c.do(w.call("Decrypt", `{"CiphertextBlob":"`+blobs[n%len(blobs)]+`"}`))
				}
				if err != nil || r.status != 200 || !bytes.Contains(r.body, []byte(`"Plaintext":"`+b64([]byte(fmt.Sprint("own", n%len(blobs)/2)))+`"`)) {
					t.Errorf("%v: %d %s", err, r.status, r.body)
					return
				}
				done.Add(1)
			}
		})
	}
	for i := range 40 {
		switch i % 4 {
		case 0:
			faulty.Add(hsmtest.Fault{Op: hsmtest.Use, CKR: hsm.CKR_KEY_HANDLE_INVALID})
		case 1:
			if err := faulty.Reset(); err != nil {
				t.Error(err)
			}
		case 2:
			w.KeyChanged(ours, keyID(fmt.Sprint("own", i%3)))
		case 3:
			w.ring.Forget(w.records.keys[keyID("own1")].Versions[i%2].Resident.ID)
		}
		for from := done.Load(); done.Load() < from+8 && !t.Failed(); {
			time.Sleep(time.Millisecond)
		}
	}
	close(stop)
	wg.Wait()
	if st := w.ring.Stats().Handles[0]; st.Evicted == 0 || st.Loads < 40 || st.Loaded > 4 {
		t.Errorf("%+v", st)
	}
}

// The HSM keeps no key, and the process no offset, of a view that nobody uses any more.
func TestResidentViewsAreWiped(t *testing.T) {
	w := newWorld(t, worldConfig{plain: true})
	k := w.addResidentKey("own", kmsapi.StateEnabled, 2)
	w.ask("ReEncrypt", "CiphertextBlob DestinationEncryptionAlgorithm DestinationKeyMaterialId KeyId SourceEncryptionAlgorithm SourceKeyId SourceKeyMaterialId",
		`{"CiphertextBlob":%q,"DestinationKeyId":%q}`, b64(w.blob("own", 1, nil, []byte("hello"))), k.ID)
	view := w.cached("own")
	if w.ring.Stats().Handles[0].Loaded != 2 || len(view.resident) != 2 {
		t.Fatalf("%+v, %d resident versions", w.ring.Stats().Handles[0], len(view.resident))
	}
	for i := range view.resident {
		if offset := view.resident[i].offset.Load(); offset == nil || *offset == [16]byte{} {
			t.Fatalf("version %d has no offset", i)
		}
	}
	w.KeyChanged(ours, k.ID)
	for i := range view.resident {
		if *view.resident[i].offset.Load() != [16]byte{} {
			t.Errorf("the offset of version %d is left", i)
		}
	}
	if st := w.ring.Stats().Handles[0]; st.Loaded != 0 {
		t.Errorf("keys are left: %+v", st)
	}
}

// Of a key with many versions only those that are used come into the HSM.
func TestResidentOldVersionsAreLazy(t *testing.T) {
	w := newWorld(t, worldConfig{})
	k := w.addResidentKey("own", kmsapi.StateEnabled, 50)
	old := b64(w.blob("own", 7, nil, []byte("hello")))
	for _, v := range k.Versions {
		w.ring.Forget(v.Resident.ID)
	}
	before := w.ring.Stats().Handles[0].Loads
	w.ask("Encrypt", "CiphertextBlob EncryptionAlgorithm KeyId", `{"KeyId":%q,"Plaintext":"aGVsbG8="}`, k.ID)
	w.ask("Decrypt", "EncryptionAlgorithm KeyId KeyMaterialId Plaintext", `{"CiphertextBlob":%q}`, old)
	if n := w.ring.Stats().Handles[0].Loads - before; n != 2 {
		t.Errorf("%d keys were brought into the HSM for two versions", n)
	}
}

// A token that says it has encrypted blocks, and gives others' images, makes no ciphertext that nobody can read, and refuses nobody's as bad. It is used for keys no
// more, and the next one that has the roots does the work.
func TestResidentWrongAnswers(t *testing.T) {
	for _, op := range []string{"Encrypt", "GenerateDataKey", "Decrypt", "ReEncrypt to itself", "ReEncrypt to a derived key"} {
		t.Run(op, func(t *testing.T) {
			tokens := []*hsmtest.Faulty{hsmtest.NewFaulty(softToken), hsmtest.NewFaulty(softToken)}
			w := newWorld(t, worldConfig{ringTokens: []hsm.Token{tokens[0], tokens[1]}})
			k := w.addResidentKey("own", kmsapi.StateEnabled, 1)
			derived := w.addKey("k1", kmsapi.StateEnabled, 1)
			blob := b64(w.blob("own", 1, nil, []byte("hello")))
			w.ask("Decrypt", "EncryptionAlgorithm KeyId KeyMaterialId Plaintext", `{"CiphertextBlob":%q}`, blob)
			name, _, _ := strings.Cut(op, " ")
			body := map[string]string{
				"Encrypt":                    fmt.Sprintf(`{"KeyId":%q,"Plaintext":%q}`, k.ID, b64([]byte("hello"))),
				"GenerateDataKey":            fmt.Sprintf(`{"KeyId":%q,"KeySpec":"AES_256"}`, k.ID),
				"Decrypt":                    fmt.Sprintf(`{"CiphertextBlob":%q}`, blob),
				"ReEncrypt to itself":        fmt.Sprintf(`{"CiphertextBlob":%q,"DestinationKeyId":%q}`, blob, k.ID),
				"ReEncrypt to a derived key": fmt.Sprintf(`{"CiphertextBlob":%q,"DestinationKeyId":%q}`, blob, derived.ID),
			}[op]
			tokens[0].Add(hsmtest.Fault{Op: hsmtest.Use, Wrong: true})
			var replies []struct{ CiphertextBlob, Plaintext []byte }
			calls := 0
			for range 16 {
				r := w.do(w.call(name, body))
				var out struct{ CiphertextBlob, Plaintext []byte }
				if err := json.Unmarshal(r.body, &out); r.status != 200 || err != nil {
					t.Fatalf("%d %s", r.status, r.body)
				}
				if replies = append(replies, out); len(replies) == 8 { // its turn has come
					calls = tokens[0].Calls(hsmtest.Use)
				}
			}
			if err := w.ring.Healthy(); !errors.Is(err, hsm.ErrWrong) {
				t.Fatalf("after a wrong answer: %v", err)
			}
			if n := tokens[0].Calls(hsmtest.Use); n != calls {
				t.Error("the token is asked again")
			}
			for _, out := range replies {
				want, got := []byte("hello"), out.Plaintext
				if op == "GenerateDataKey" {
					want = out.Plaintext
				}
				if op != "Decrypt" {
					_, _, got, _ = w.open(out.CiphertextBlob, nil)
				}
				if len(got) == 0 || !bytes.Equal(got, want) {
					t.Errorf("%q", got)
				}
			}
			tokens[1].Add(hsmtest.Fault{Op: hsmtest.Use, Wrong: true})
			for range 2 {
				w.refused("KeyUnavailableException", name, "%s", body)
			}
			w.ask("Encrypt", "CiphertextBlob EncryptionAlgorithm KeyId", `{"KeyId":%q,"Plaintext":"aGVsbG8="}`, derived.ID)
		})
	}
	t.Run("both", func(t *testing.T) {
		tokens := []*hsmtest.Faulty{hsmtest.NewFaulty(softToken), hsmtest.NewFaulty(softToken)}
		w := newWorld(t, worldConfig{ringTokens: []hsm.Token{tokens[0], tokens[1]}})
		k := w.addResidentKey("own", kmsapi.StateEnabled, 1)
		w.ask("Encrypt", "CiphertextBlob EncryptionAlgorithm KeyId", `{"KeyId":%q,"Plaintext":"aGVsbG8="}`, k.ID)
		for _, f := range tokens {
			f.Add(hsmtest.Fault{Op: hsmtest.Use, Wrong: true})
		}
		w.refused("KMSInternalException", "Encrypt", `{"KeyId":%q,"Plaintext":"aGVsbG8="}`, k.ID)
	})
}
