package sigv4

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

func TestNewAccessKey(t *testing.T) {
	for _, c := range []struct {
		id, secret string
		ok         bool
	}{
		{"A", "s", true},
		{strings.Repeat("A", 128), strings.Repeat("s", 128), true},
		{strings.Repeat("A", 129), "s", false},
		{"A", strings.Repeat("s", 129), false},
		{"", "s", false},
		{"A", "", false},
		{"A/B", "s", false},
		{"A_b9", "s", true},
	} {
		if k, err := NewAccessKey(c.id, []byte(c.secret), Principal{}); (err == nil) != c.ok || (k != nil) != c.ok {
			t.Errorf("%q %q: %v", c.id, c.secret, err)
		}
	}
}

// The key of "Examples of how to derive a signing key for Signature Version 4", AWS General Reference.
func TestDeriveKey(t *testing.T) {
	words := deriveKey([]byte("AWS4wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"), []byte("20150830"), "us-east-1", "iam")
	const want = "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9"
	if got := fmt.Sprintf("%016x%016x%016x%016x", words[0], words[1], words[2], words[3]); got != want {
		t.Fatalf("%s, want %s", got, want)
	}
}

func TestAccessKeyCopiesSecret(t *testing.T) {
	v, _ := testVerifier(t)
	mine := []byte(testSecret)
	k, err := NewAccessKey(testID, mine, Principal{})
	if err != nil {
		t.Fatal(err)
	}
	clear(mine)
	if _, code, _ := verify(t, v, signWith(t, k, testRegion, "kms", unsigned(testNow)), testNow); code != kmsapi.OK {
		t.Fatal(code)
	}
}

func TestAccessKeyPrintsNoSecret(t *testing.T) {
	v, k := testVerifier(t)
	id, code, _ := verify(t, v, signWith(t, k, testRegion, "kms", unsigned(testNow)), testNow)
	if code != kmsapi.OK {
		t.Fatal(code)
	}
	signing, ok := k.signingKey(0, []byte("20261123"), testRegion, "kms")
	if !ok {
		t.Fatal("no signing key")
	}
	forbidden := []string{testSecret, fmt.Sprintf("%x", testSecret), fmt.Sprint([]byte(testSecret)), strings.Trim(fmt.Sprint([]byte(testSecret)), "[]"),
		fmt.Sprint(signing[0]), fmt.Sprintf("%x", signing[0])}
	var out strings.Builder
	for _, x := range []any{k, id, v} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			fmt.Fprintf(&out, verb+"\n", x)
		}
		b, err := json.Marshal(x)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(b)
		slog.New(slog.NewTextHandler(&out, nil)).Info("", "x", x)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("", "x", x)
	}
	for _, s := range forbidden {
		if strings.Contains(out.String(), s) {
			t.Errorf("output has %q", s)
		}
	}
}

func TestAccessKeyWipe(t *testing.T) {
	v, k := testVerifier(t)
	r := signWith(t, k, testRegion, "kms", unsigned(testNow))
	if _, code, _ := verify(t, v, r, testNow); code != kmsapi.OK {
		t.Fatal(code)
	}
	held := k.secret.Expose()
	var derived []*signingKey
	for i := range k.slots {
		if sk := k.slots[i].Load(); sk != nil {
			derived = append(derived, sk)
		}
	}
	if len(derived) == 0 {
		t.Fatal("no signing key is kept")
	}
	k.Wipe()
	k.Wipe()
	for _, c := range held {
		if c != 0 {
			t.Fatal("the secret is still there")
		}
	}
	for _, sk := range derived {
		for i := range sk.words {
			if sk.words[i].Load() != 0 {
				t.Fatal("a signing key is still there")
			}
		}
	}
	for i := range k.slots {
		if k.slots[i].Load() != nil {
			t.Fatal("a signing key is still kept")
		}
	}
	if _, code, _ := verify(t, v, r, testNow); code != kmsapi.UnrecognizedClient {
		t.Fatalf("after Wipe: %v", code)
	}
	var s Scratch
	if _, err := AppendAuthorization(nil, k, testRegion, "kms", unsigned(testNow), &s); err == nil {
		t.Fatal("a wiped key signs")
	}
}

// A reader that loads words while they are wiped sees that, whatever the order.
func TestSigningKeyDead(t *testing.T) {
	k := mustKey(t, testID, testSecret)
	date := []byte("20261123")
	if _, ok := k.signingKey(0, date, testRegion, "kms"); !ok {
		t.Fatal("no signing key")
	}
	sk := k.slots[0].Load()
	if _, ok := sk.read(date, testRegion, "kms"); !ok {
		t.Fatal("not readable")
	}
	for _, scope := range [][3]string{{"20261124", testRegion, "kms"}, {"20261123", "us-east-1", "kms"}, {"20261123", testRegion, "iam"}} {
		if _, ok := sk.read([]byte(scope[0]), scope[1], scope[2]); ok {
			t.Errorf("read for scope %q", scope)
		}
	}
	sk.kill()
	if _, ok := sk.read(date, testRegion, "kms"); ok {
		t.Fatal("a dead key was read")
	}
	// The holder derives again.
	if _, ok := k.signingKey(0, date, testRegion, "kms"); !ok || k.slots[0].Load() == sk {
		t.Fatal("not derived again")
	}
}

// A month of days leaves two signing keys for a region, and all others wiped.
func TestSigningKeysBounded(t *testing.T) {
	v, k := testVerifier(t)
	seen := map[*signingKey]bool{}
	for day := range 30 {
		now := testNow.AddDate(0, 0, day)
		if _, code, _ := verify(t, v, signWith(t, k, testRegion, "kms", unsigned(now)), now); code != kmsapi.OK {
			t.Fatal(code)
		}
		for i := range k.slots {
			if sk := k.slots[i].Load(); sk != nil {
				seen[sk] = true
			}
		}
	}
	alive := 0
	for sk := range seen {
		if !sk.dead.Load() {
			alive++
		} else if sk.words[0].Load()|sk.words[1].Load()|sk.words[2].Load()|sk.words[3].Load() != 0 {
			t.Error("an evicted signing key is not wiped")
		}
	}
	// The signer keeps its keys under region 0 and the verifier under the index of the region, 1 here: two days each.
	if alive != 4 || len(seen) != 60 {
		t.Fatalf("%d signing keys alive of %d", alive, len(seen))
	}
}

// The key source is asked only for what can be an access key ID, and an unknown key takes the dummy's way to the end.
func TestUnknownKeyDoesTheSameWork(t *testing.T) {
	asked := 0
	source := sourceFunc(func(id []byte) *AccessKey { asked++; return nil })
	v := mustVerifier(t, Config{Regions: []string{testRegion}, Keys: source})
	r := signWith(t, mustKey(t, testID, testSecret), testRegion, "kms", unsigned(testNow))
	var s Scratch
	if _, code := v.Verify(r, &s, testNow); code != kmsapi.UnrecognizedClient || asked != 1 {
		t.Fatalf("%v, asked %d times", code, asked)
	}
	if len(s.canon) == 0 {
		t.Fatal("no canonical request was made")
	}
	kept := 0
	for i := range v.dummy.slots {
		if v.dummy.slots[i].Load() != nil {
			kept++
		}
	}
	if kept != 1 {
		t.Fatalf("the dummy derived %d keys", kept)
	}
	swap(t, r, testID, strings.Repeat("A", accessKeyIDMax+1))
	if _, code := v.Verify(r, &s, testNow); code != kmsapi.UnrecognizedClient || asked != 1 {
		t.Fatalf("%v, asked %d times", code, asked)
	}
	swap(t, r, strings.Repeat("A", accessKeyIDMax+1), strings.Repeat("A", accessKeyIDMax))
	if _, code := v.Verify(r, &s, testNow); code != kmsapi.UnrecognizedClient || asked != 2 {
		t.Fatalf("%v, asked %d times", code, asked)
	}
	// Not even who knows the dummy's secret gets in as nobody.
	if _, code, _ := verify(t, v, signWith(t, v.dummy, testRegion, "kms", unsigned(testNow)), testNow); code != kmsapi.UnrecognizedClient {
		t.Fatal(code)
	}
}

type sourceFunc func([]byte) *AccessKey

func (f sourceFunc) AccessKey(id []byte) *AccessKey { return f(id) }

// Many goroutines verify requests of both sides of midnight, while one key is wiped. With the race detector this also shows that signing
// keys are replaced and wiped safely under their readers.
func TestConcurrentDayChange(t *testing.T) {
	midnight := time.Date(2026, 12, 31, 24, 0, 0, 0, time.UTC)
	good, revoked := mustKey(t, testID, testSecret), mustKey(t, "AKIAREVOKED", "other secret")
	v := mustVerifier(t, Config{Regions: []string{"us-east-1", testRegion}, Keys: keyTable{good.ID(): good, revoked.ID(): revoked}})
	var requests, doomed []*Request
	for _, region := range []string{"us-east-1", testRegion} {
		for _, offset := range []time.Duration{-4 * time.Minute, -time.Second, 0, 4 * time.Minute} {
			requests = append(requests, signWith(t, good, region, "kms", unsigned(midnight.Add(offset))))
			doomed = append(doomed, signWith(t, revoked, region, "kms", unsigned(midnight.Add(offset))))
		}
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			var s Scratch
			gone := false
			for i := range 500 {
				id, code := v.Verify(requests[(i+g)%len(requests)], &s, midnight)
				if code != kmsapi.OK || id.AccessKeyID() != testID {
					t.Errorf("%v %s", code, s.Message())
					return
				}
				switch _, code := v.Verify(doomed[(i+g)%len(doomed)], &s, midnight); {
				case code == kmsapi.UnrecognizedClient:
					gone = true
				case code != kmsapi.OK:
					t.Errorf("revoked key: %v", code)
					return
				case gone:
					t.Error("a wiped key came back")
					return
				}
				if g == 0 && i == 250 {
					revoked.Wipe()
				}
				// Other days evict, so that readers meet keys that die.
				far := midnight.AddDate(0, 0, 2*(i%3))
				if _, ok := good.signingKey(uint(far.Unix()/86400)&1, AppendDate(nil, far)[:8], "us-east-1", "kms"); !ok {
					t.Error("no signing key")
					return
				}
			}
			if !gone && g == 0 {
				t.Error("the wiped key was accepted to the end")
			}
		})
	}
	wg.Wait()
}
