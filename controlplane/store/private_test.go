package store

import (
	"bytes"
	"crypto/rand"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/internal/snapshot"
)

// newPrivate is a key of a spec with a private key, of bytes that are none, not stored yet.
func newPrivate(region, spec, usage string, public []byte) *Key {
	k := newKey(region)
	k.Spec, k.Usage, k.Versions, k.Current = spec, usage, nil, 0
	p := &snapshot.PrivateKey{Root: [8]byte{9, 8, 7}, Wrapped: make([]byte, 64), Public: public}
	rand.Read(p.Wrapped)
	p.ID = snapshot.PrivateKeyID(k.Account, k.ID, k.Spec, k.Usage, p)
	k.Private = p
	return k
}

// Keys with a private key are written and read as they are, by the data plane too, and a change of something else leaves it alone.
func TestPrivateKeyRecords(t *testing.T) {
	rsa, mac := newPrivate("private", "RSA_2048", "SIGN_VERIFY", []byte("public")), newPrivate("private", "HMAC_256", "GENERATE_VERIFY_MAC", nil)
	rsa.Private.Software = true
	rsa.Private.ID = snapshot.PrivateKeyID(rsa.Account, rsa.ID, rsa.Spec, rsa.Usage, rsa.Private)
	for _, k := range []*Key{rsa, mac} {
		if err := shared.CreateKey(t.Context(), k, 1000); err != nil {
			t.Fatal(err)
		}
		got, err := shared.UpdateKey(t.Context(), k.KeyName, func(k *Key) error { k.SetTag(Tag{"a", "1"}); return nil })
		if err != nil {
			t.Fatal(err)
		}
		got.Wipe()
		if got, err = shared.Key(t.Context(), k.KeyName); err != nil {
			t.Fatal(err)
		}
		k.Revision, k.Policy.Revision, k.Tags = got.Revision, got.Policy.Revision, []Tag{{"a", "1"}}
		if !reflect.DeepEqual(got, k) {
			t.Errorf("got  %+v %+v\nwant %+v %+v", got, got.Private, k, k.Private)
		}
		r, err := shared.KeyRecord(t.Context(), k.Region, k.Account, k.ID)
		if err != nil || len(r.Versions) != 0 || !reflect.DeepEqual(r.Private, k.Private) || r.Spec != k.Spec || r.Usage != k.Usage {
			t.Errorf("%v: record %+v", err, r)
		}
	}
	if rsa.Private == nil || len(rsa.Private.Wrapped) != 64 {
		t.Error("Wipe took the private key away")
	}
}

// A record whose private key, public key or name is another's is damaged, and so is one with what its spec has not.
func TestDamagedPrivateKeys(t *testing.T) {
	const spec, usage = "ECC_NIST_P256", "SIGN_VERIFY"
	other := newPrivate("damaged", spec, usage, []byte("another public key"))
	for name, spoil := range map[string]func(*Key){
		"wrapped of another key":       func(k *Key) { k.Private.Wrapped = other.Private.Wrapped },
		"public of another key":        func(k *Key) { k.Private.Public = other.Private.Public },
		"all of another key":           func(k *Key) { k.Private = other.Private },
		"ID":                           func(k *Key) { k.Private.ID[31] ^= 1 },
		"another key ID":               func(k *Key) { k.ID.UUID[0] ^= 1 },
		"another account":              func(k *Key) { k.Account++ },
		"none":                         func(k *Key) { k.Private = nil },
		"a version too":                func(k *Key) { addVersion(k, 1) },
		"a version instead":            func(k *Key) { k.Private = nil; addVersion(k, 1) },
		"another usage":                func(k *Key) { k.Usage = "GENERATE_VERIFY_MAC" },
		"HMAC with a public key":       func(k *Key) { k.Spec, k.Usage = "HMAC_256", "GENERATE_VERIFY_MAC" },
		"symmetric":                    func(k *Key) { k.Spec, k.Usage = "SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT" },
		"symmetric with a private key": func(k *Key) { k.Spec, k.Usage = "SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT"; addVersion(k, 1) },
		"unknown spec":                 func(k *Key) { k.Spec = "RSA_1024" },
		"no public key": func(k *Key) {
			k.Private.Public = nil
			k.Private.ID = snapshot.PrivateKeyID(k.Account, k.ID, k.Spec, k.Usage, k.Private)
		},
		"nothing wrapped": func(k *Key) {
			k.Private.Wrapped = nil
			k.Private.ID = snapshot.PrivateKeyID(k.Account, k.ID, k.Spec, k.Usage, k.Private)
		},
	} {
		k := newPrivate("damaged", spec, usage, []byte("public key"))
		if _, err := encodeKey(k); err != nil {
			t.Fatal(err)
		}
		spoil(k)
		if err := shared.CreateKey(t.Context(), k, 1000); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}

	// The same of what is in the store already.
	k := newPrivate("damaged", spec, usage, []byte("public key"))
	if err := shared.CreateKey(t.Context(), k, 1000); err != nil {
		t.Fatal(err)
	}
	good, _, err := shared.get(t.Context(), k.key())
	if err != nil {
		t.Fatal(err)
	}
	accepted := 0
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		got, err := decodeKey(k.KeyName, bad, 1)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("byte %d: %v", i, err)
			}
			continue
		}
		accepted++
		if p := got.Private; p == nil || p.ID != k.Private.ID || !bytes.Equal(p.Wrapped, k.Private.Wrapped) || !bytes.Equal(p.Public, k.Private.Public) ||
			got.KeyName != k.KeyName {
			t.Errorf("byte %d: a record with another private key was accepted", i)
		}
	}
	if accepted > 40 { // description, dates, root and the like
		t.Errorf("%d of %d changes were accepted", accepted, len(good))
	}
	for name, edit := range map[string][2]string{
		"short root": {`"root":"09`, `"root":"`}, "short ID": {`"private":{`, `"private":{"id":"00",`}, "unknown member": {`"private":{`, `"private":{"x":1,`},
		"null": {`"private":{`, `"private":null,"x":{`},
	} {
		bad := strings.Replace(string(good), edit[0], edit[1], 1)
		if _, err := decodeKey(k.KeyName, []byte(bad), 1); bad == string(good) || !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A record as versions before there were private keys wrote it, byte for byte, is read, and written again as it was.
func TestRecordsBeforePrivateKeys(t *testing.T) {
	k := newKey("old")
	copy(k.ID.UUID[:], "0123456789abcdef")
	k.Versions[0].Salt = [32]byte{31: 1}
	k.Versions[0].MaterialID = snapshot.MaterialID(k.Account, k.ID, 1, &k.Versions[0].Salt)
	want := "\x01" + `{"region":"old","account":"111122223333","id":"30313233-3435-3637-3839-616263646566","description":"d","state":"Enabled",` +
		`"spec":"SYMMETRIC_DEFAULT","usage":"ENCRYPT_DECRYPT","origin":"AWS_KMS","created":1795435200123,"versions":[{"number":1,` +
		`"root":"0102030000000000","salt":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE=","materialId":"` + string(k.Versions[0].MaterialID[:]) +
		`","created":1795435200123}],"current":1}`
	got, err := decodeKey(k.KeyName, []byte(want), 1)
	if err != nil {
		t.Fatal(err)
	}
	if got.Private != nil || got.Current != 1 || !reflect.DeepEqual(got.Versions[0], k.Versions[0]) {
		t.Errorf("got %+v", got)
	}
	if value, err := encodeKey(got); err != nil || string(value) != want {
		t.Errorf("%v: written again as\n%s\nwas\n%s", err, value, want)
	}
}
