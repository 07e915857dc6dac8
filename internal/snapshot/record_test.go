package snapshot

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

func testRecord() Record {
	r := Record{
		ID:      keyid.ID{UUID: [16]byte{0: 0x01, 15: 0xff}},
		Account: 111122223333,
		Region:  "us-east-1",
		State:   kmsapi.StateEnabled,
		Current: 1,
	}
	for n := uint32(1); n <= 2; n++ {
		v := VersionRecord{Number: n, Salt: [32]byte{byte(n)}}
		v.MaterialID = MaterialID(r.Account, r.ID, n, &v.Salt)
		r.Versions = append(r.Versions, v)
	}
	return r
}

// The hash input is written out by hand here from docs/ciphertext.md §4.
func TestMaterialIDLayout(t *testing.T) {
	for _, mrk := range []bool{false, true} {
		id := keyid.ID{MultiRegion: mrk}
		form := "\x00"
		if mrk {
			form = "\x01"
		}
		for i := range id.UUID {
			id.UUID[i] = byte(i)
		}
		salt := [32]byte{31: 7}
		in := "keyplane key material v1" +
			"\x00\x19\xdf\x6e\x41\x4d" + // six bytes of the account, big-endian
			form + "\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f" +
			"\x00\x00\x01\x02" + string(salt[:])
		sum := sha256.Sum256([]byte(in))
		got := MaterialID(0x0019df6e414d, id, 0x102, &salt)
		if want := hex.EncodeToString(sum[:]); string(got[:]) != want {
			t.Errorf("multi-Region %v: got %s, want %s", mrk, got, want)
		}
	}
}

func TestRecordCheck(t *testing.T) {
	good := testRecord()
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func(*Record){
		"no version":           func(r *Record) { r.Versions = nil },
		"current beyond":       func(r *Record) { r.Current = 2 },
		"current negative":     func(r *Record) { r.Current = -1 },
		"no state":             func(r *Record) { r.State = 0 },
		"salt bit":             func(r *Record) { r.Versions[1].Salt[31] ^= 1 },
		"material ID":          func(r *Record) { r.Versions[0].MaterialID[0] ^= 1 },
		"other account":        func(r *Record) { r.Account++ },
		"other key":            func(r *Record) { r.ID.UUID[3]++ },
		"other form":           func(r *Record) { r.ID.MultiRegion = true },
		"version order":        func(r *Record) { r.Versions[0], r.Versions[1] = r.Versions[1], r.Versions[0] },
		"version number twice": func(r *Record) { r.Versions[1] = r.Versions[0] },
	} {
		r := testRecord()
		damage(&r)
		if err := r.Check(); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v, want ErrDamaged", name, err)
		}
	}
}

func TestRecordWipe(t *testing.T) {
	r := testRecord()
	r.Wipe()
	for i := range r.Versions {
		if r.Versions[i].Salt != [32]byte{} {
			t.Errorf("version %d keeps its salt", i)
		}
	}
}

// Expiry takes away what a key has its material for, and leaves a state that says more.
func TestStateAt(t *testing.T) {
	at := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for _, state := range kmsapi.KeyStates {
		want := state
		if state == kmsapi.StateEnabled || state == kmsapi.StateDisabled || state == kmsapi.StateUpdating {
			want = kmsapi.StatePendingImport
		}
		for _, c := range []struct {
			expires time.Time
			want    kmsapi.KeyState
		}{{time.Time{}, state}, {at.Add(1), state}, {at, want}, {at.Add(-1), want}} {
			if got := (&Key{State: state, Expires: c.expires}).StateAt(at); got != c.want {
				t.Errorf("%s that expires %v after: %s, want %s", state, c.expires.Sub(at), got, c.want)
			}
		}
	}
}

// A key in a custom key store has what its kind of store asks for, and a copy for each root of a cluster.
func TestRecordCheckInStore(t *testing.T) {
	resident := func(r *Record, root byte) *PrivateKey {
		p := &PrivateKey{Root: [8]byte{root}, Wrapped: []byte{root, 1, 2}}
		p.ID = PrivateKeyID(r.Account, r.ID, r.Spec, r.Usage, p)
		return p
	}
	external := func() *Record {
		r := testRecord()
		r.Store, r.Origin, r.Versions, r.Current = &KeyStore{ID: "cks-1", XksKeyID: "external"}, OriginExternalKeyStore, r.Versions[:1], 0
		return &r
	}
	cloud := func() *Record {
		r := testRecord()
		r.Store, r.Origin, r.Versions, r.Current = &KeyStore{ID: "cks-1"}, OriginCloudHSM, r.Versions[:1], 0
		r.Versions[0] = VersionRecord{Number: 1, Resident: resident(&r, 1), Copies: []*PrivateKey{resident(&r, 2), resident(&r, 3)}}
		return &r
	}
	for name, r := range map[string]*Record{"external": external(), "CloudHSM": cloud()} {
		if err := r.Check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, damage := range map[string]func() *Record{
		"derived in a CloudHSM key store": func() *Record { r := external(); r.Store.XksKeyID, r.Origin = "", OriginCloudHSM; return r },
		"resident in an external key store": func() *Record {
			r := cloud()
			r.Store.XksKeyID, r.Origin = "external", OriginExternalKeyStore
			return r
		},
		"copies of a key that is in no store": func() *Record { r := cloud(); r.Store, r.Origin = nil, "AWS_KMS"; return r },
		"a copy with the same root":           func() *Record { r := cloud(); r.Versions[0].Copies[1] = resident(r, 2); return r },
		"a copy with the first's root":        func() *Record { r := cloud(); r.Versions[0].Copies[1] = resident(r, 1); return r },
		"another key's copy":                  func() *Record { r := cloud(); r.Versions[0].Copies[0].Wrapped[2]++; return r },
		"missing material": func() *Record {
			r := cloud()
			r.State, r.Versions[0] = kmsapi.StatePendingDeletion, VersionRecord{Number: 1, Missing: true}
			return r
		},
		"asymmetric": func() *Record {
			r := external()
			r.Spec, r.Usage, r.Versions = "ECC_NIST_P256", "SIGN_VERIFY", nil
			r.State = kmsapi.StatePendingDeletion
			return r
		},
	} {
		if err := damage().Check(); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v, want ErrDamaged", name, err)
		}
	}
}
