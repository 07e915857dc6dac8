package dataplane

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/snapshot"
	"github.com/keyplane/keyplane/ratelimit"
)

// away is our administrator in the other Region.
var away = signature{region: awayRegion}

// addAway puts a key with the ID of another, and versions of its own, into the other Region.
func (w *world) addAway(k *snapshot.Record) *snapshot.Record {
	w.Helper()
	c := *k
	c.Region, c.Versions = awayRegion, slices.Clone(k.Versions)
	for i := range c.Versions {
		v := &c.Versions[i]
		v.Salt = sha256.Sum256(v.Salt[:])
		v.MaterialID = snapshot.MaterialID(c.Account, c.ID, v.Number, &v.Salt)
	}
	w.must(c.Check())
	w.records.mu.Lock()
	defer w.records.mu.Unlock()
	w.records.away[c.ID] = &c
	return &c
}

// usedIn is the Region of the key that a request for Encrypt used, with the ciphertext, or the exception.
func (w *world) usedIn(sig signature, id string) (region, ciphertext string) {
	w.Helper()
	r := w.do(w.sign(sig, kmsapi.TargetPrefix+"Encrypt", []byte(`{"KeyId":"`+id+`","Plaintext":"aGVsbG8="}`)))
	if r.status != 200 {
		return r.exception(), ""
	}
	var out struct {
		KeyId          string
		CiphertextBlob []byte
	}
	w.must(json.Unmarshal(r.body, &out))
	return strings.Split(out.KeyId, ":")[3], base64.StdEncoding.EncodeToString(out.CiphertextBlob)
}

// A key ID and an alias that two Regions have mean each Region's own, also when they are cached, and a change in one is none in the other.
func TestRegions(t *testing.T) {
	w := newWorld(t, worldConfig{plain: true})
	k := w.addKey("mrk1", kmsapi.StateEnabled, 1)
	w.addAway(k)
	other := w.addAway(w.addKey("k2", kmsapi.StateEnabled, 1))
	w.records.aliases["alias/a"], w.records.aliases[awayRegion+"alias/a"] = k.ID, other.ID
	used := func(sig signature, id, want string) (ciphertext string) {
		t.Helper()
		got, ciphertext := w.usedIn(sig, id)
		if got != want {
			t.Errorf("%s in %q: %s, want %s", id, sig.region, got, want)
		}
		return ciphertext
	}
	home := signature{}
	id := k.ID.String()
	awayARN := string(keyid.AppendKeyARN(nil, "aws", awayRegion, ours, k.ID))
	var atHome, atAway string
	for range 2 { // read, then cached
		atHome, atAway = used(home, id, testRegion), used(away, id, awayRegion)
		used(home, keyARN("mrk1"), testRegion)
		used(away, awayARN, awayRegion)
		used(home, awayARN, "NotFoundException")
		used(away, keyARN("mrk1"), "NotFoundException")
		used(home, "alias/a", testRegion)
		used(away, "alias/a", awayRegion)
		used(away, "arn:aws:kms:"+testRegion+":"+ours.String()+":alias/a", "NotFoundException")
	}
	decrypts := func(sig signature, ciphertext, want string) {
		t.Helper()
		if got := w.do(w.sign(sig, kmsapi.TargetPrefix+"Decrypt", []byte(`{"CiphertextBlob":"`+ciphertext+`"}`))).exception(); got != want {
			t.Errorf("Decrypt in %q: %q, want %q", sig.region, got, want)
		}
	}
	decrypts(home, atHome, "")
	decrypts(away, atAway, "")
	decrypts(home, atAway, "InvalidCiphertextException") // the same key ID, another salt
	decrypts(away, atHome, "InvalidCiphertextException")

	loads := w.keys.Loads()
	w.records.mu.Lock()
	disabled := *w.records.away[k.ID]
	disabled.State = kmsapi.StateDisabled
	w.records.away[k.ID] = &disabled
	w.records.mu.Unlock()
	w.KeyChanged(ours, k.ID) // at home, where nothing is new
	w.Server.KeyChanged("sa-east-1", ours, k.ID)
	used(home, id, testRegion)
	used(away, id, awayRegion)
	w.Server.KeyChanged(awayRegion, ours, k.ID)
	used(home, id, testRegion)
	used(away, id, "DisabledException")
	if n := w.keys.Loads() - loads; n != 2 {
		t.Errorf("%d loads, want one for each change", n)
	}
	w.records.mu.Lock()
	delete(w.records.aliases, awayRegion+"alias/a")
	w.records.mu.Unlock()
	w.AliasChanged(ours, "alias/a")
	used(away, "alias/a", awayRegion)
	w.Server.AliasChanged(awayRegion, ours, "alias/a")
	used(away, "alias/a", "NotFoundException")
	used(home, "alias/a", testRegion)
}

// Grants are on the key of one Region.
func TestRegionGrants(t *testing.T) {
	w := newWorld(t, worldConfig{plain: true})
	k := w.addKey("mrk1", kmsapi.StateEnabled, 1)
	w.addAway(k)
	guest := w.as("AKIAGUEST", user(w, ours, "guest"))
	guestAway := guest
	guestAway.region = awayRegion
	used := func(sig signature, want string) {
		t.Helper()
		if got, _ := w.usedIn(sig, k.ID.String()); got != want {
			t.Errorf("in %q: %s, want %s", sig.region, got, want)
		}
	}
	g := authz.Grant{ID: "g", Operations: authz.OpEncrypt}
	used(guest, "AccessDeniedException")
	used(guestAway, "AccessDeniedException")
	w.records.mu.Lock()
	w.records.grants[awayRegion+ours.String()+k.ID.String()+"AIDAguest"] = []authz.Grant{g}
	w.records.mu.Unlock()
	w.GrantsChanged(ours, k.ID, "AIDAguest")
	used(guestAway, "AccessDeniedException") // that there is none is cached
	w.Server.GrantsChanged(awayRegion, ours, k.ID, "AIDAguest")
	used(guestAway, awayRegion)
	used(guest, "AccessDeniedException")
	w.Server.GrantRemoved(testRegion, ours, k.ID, "AIDAguest", "g")
	used(guestAway, awayRegion)
	w.Server.GrantRemoved(awayRegion, ours, k.ID, "AIDAguest", "g")
	used(guestAway, "AccessDeniedException")
	w.Server.GrantMade(awayRegion, ours, k.ID, "AIDAguest", &g)
	used(guestAway, awayRegion)
	used(guest, "AccessDeniedException")
}

// What a request is charged to, handed on to and recorded as is its Region's; a condition sees it.
func TestRegionOfRequests(t *testing.T) {
	w := newWorld(t, worldConfig{plain: true,
		quota:     func(keyid.Account, ratelimit.Pool, time.Time) bool { return true },
		awayQuota: func(_ keyid.Account, p ratelimit.Pool, _ time.Time) bool { return false }})
	k := w.addKey("mrk1", kmsapi.StateEnabled, 1)
	w.addAway(k)
	for _, c := range []struct {
		sig    signature
		region string
		index  int64
		want   string
	}{
		{signature{}, testRegion, 0, testRegion},
		{away, awayRegion, 1, "ThrottlingException"},
	} {
		w.audit.taken()
		if got, _ := w.usedIn(c.sig, k.ID.String()); got != c.want {
			t.Errorf("Encrypt in %s: %s, want %s", c.region, got, c.want)
		}
		if lines := w.audit.taken(); len(lines) != 1 || !strings.Contains(lines[0], `"awsRegion":"`+c.region+`"`) {
			t.Errorf("records of %s: %v", c.region, lines)
		}
		w.forwarded.Store(-1)
		w.do(w.sign(c.sig, kmsapi.TargetPrefix+"ListKeys", []byte(`{}`)))
		if n := w.forwarded.Load(); n != c.index {
			t.Errorf("ListKeys in %s was handed to the control plane of Region %d", c.region, n)
		}
	}
	w.audit.taken()
	w.do(w.sign(signature{region: awayRegion, none: true}, kmsapi.TargetPrefix+"Encrypt", []byte(`{}`)))
	w.do(w.sign(signature{region: "sa-east-1"}, kmsapi.TargetPrefix+"Encrypt", []byte(`{}`)))
	for _, line := range w.audit.taken() {
		if !strings.Contains(line, `"awsRegion":"`+testRegion+`"`) {
			t.Errorf("a record that is not the home Region's: %s", line)
		}
	}
	w.do(w.sign(signature{service: "sts"}, "", []byte("Action=GetCallerIdentity")))
	if n := w.forwarded.Load(); n != 0 {
		t.Errorf("STS was handed to the control plane of Region %d", n)
	}
}

// A condition on aws:RequestedRegion is about the Region that the request was signed for.
func TestRequestedRegion(t *testing.T) {
	w := newWorld(t, worldConfig{plain: true})
	k := w.addKey("mrk1", kmsapi.StateEnabled, 1)
	w.addAway(k)
	sig := w.as("AKIAREGIONAL", user(w, ours, "regional", `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"kms:*","Resource":"*",`+
		`"Condition":{"StringEquals":{"aws:RequestedRegion":"`+awayRegion+`"}}}}`))
	if got, _ := w.usedIn(sig, k.ID.String()); got != "AccessDeniedException" {
		t.Errorf("at home: %s", got)
	}
	sig.region = awayRegion
	if got, _ := w.usedIn(sig, k.ID.String()); got != awayRegion {
		t.Errorf("away: %s", got)
	}
}

// A server whose verifier is of more Regions than it refuses what is signed for the others.
func TestVerifierOfOtherRegions(t *testing.T) {
	w := newWorld(t, worldConfig{plain: true})
	k := w.addKey("mrk1", kmsapi.StateEnabled, 1)
	w.addAway(k)
	w.Server.regions = w.Server.regions[:1]
	if got, _ := w.usedIn(away, k.ID.String()); got != "KMSInternalException" {
		t.Errorf("a Region that is not the server's: %s", got)
	}
	if got, _ := w.usedIn(signature{}, k.ID.String()); got != testRegion {
		t.Errorf("the server's Region: %s", got)
	}
}

// Names in the caches differ between Regions, accounts and forms of key IDs, and keep their length.
func TestCacheNames(t *testing.T) {
	w := newWorld(t, worldConfig{plain: true})
	seen := map[string]bool{}
	for i := range w.regions {
		for _, a := range []keyid.Account{0, 1, keyid.AccountMax} {
			for _, id := range []keyid.ID{keyID("k1"), keyID("mrk1"), {UUID: keyID("k1").UUID, MultiRegion: true}} {
				name := string(w.regions[i].appendKeyName(nil, a, id))
				if seen[name] || len(name) != keyNameLen {
					t.Errorf("Region %d, account %s, key %s: %x", i, a, id, name)
				}
				seen[name] = true
			}
		}
	}
}
