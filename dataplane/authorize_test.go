package dataplane

import (
	"bytes"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/policy"
	"github.com/keyplane/keyplane/internal/snapshot"
)

// access runs operations as callers and says what came of them.
type access struct {
	*world
}

// try is the outcome of one request: "ok", or the exception and its message.
func (w access) try(sig signature, op, body string, header ...string) string {
	w.Helper()
	r := w.do(w.sign(sig, kmsapi.TargetPrefix+op, []byte(body), header...))
	if r.status == 200 {
		return "ok"
	}
	_, message, _ := strings.Cut(string(r.body), `essage":"`)
	return strings.TrimSuffix(r.exception()+" "+strings.TrimSuffix(message, `"}`), " ")
}

func (w access) want(sig signature, op, body, want string, header ...string) {
	w.Helper()
	if got := w.try(sig, op, body, header...); got != want {
		w.Errorf("%s %s: %s\nwant %s", op, body, got, want)
	}
}

// put gives a key a policy, as PutKeyPolicy would.
func (w access) put(name, document string) {
	w.Helper()
	w.records.mu.Lock()
	k := w.records.keys[keyID(name)]
	k.Policy = []byte(document)
	w.records.mu.Unlock()
	w.KeyChanged(k.Account, k.ID)
}

// grant gives a key's grants to a grantee, as CreateGrant and RevokeGrant would.
func (w access) grant(name, grantee string, grants ...authz.Grant) {
	w.records.mu.Lock()
	k := w.records.keys[keyID(name)]
	w.records.grants[k.Region+k.Account.String()+k.ID.String()+grantee] = grants
	w.records.mu.Unlock()
	w.GrantsChanged(k.Account, k.ID, grantee)
}

const notAbroad = " on this resource because the resource does not exist in this Region, no resource-based policies allow access, or a resource-based policy explicitly denies access"

func refusedAbroad(c *authz.Caller, action string) string {
	return "AccessDeniedException User: " + c.ARN + " is not authorized to perform: kms:" + action + notAbroad
}

func refused(c *authz.Caller, action, key, why string) string {
	return "AccessDeniedException User: " + c.ARN + " is not authorized to perform: kms:" + action + " on resource: " + keyARN(key) + " " + why
}

// What authz decides is asked, on the key, the caller and the words that go with it. That it decides well is its own tests' business.
func TestAuthorize(t *testing.T) {
	w := access{newWorld(t, worldConfig{plain: true})}
	w.addKey("k1", kmsapi.StateEnabled, 1)
	w.addKey("k2", kmsapi.StateEnabled, 1)
	w.addKey("foreign", kmsapi.StateEnabled, 1)
	w.records.aliases["alias/a"] = keyID("k1")
	id1, id2 := keyID("k1").String(), keyID("k2").String()

	reader := user(t, ours, "reader", `{"Version":"2012-10-17","Statement":[
		{"Effect":"Allow","Action":["kms:GenerateDataKey","kms:Encrypt"],"Resource":"`+keyARN("k1")+`","Condition":{"StringEquals":{"kms:EncryptionContext:tenant":"t1"}}},
		{"Effect":"Allow","Action":"kms:Decrypt","Resource":"*","Condition":{"StringLike":{"kms:RequestAlias":"alias/*"}}},
		{"Effect":"Allow","Action":"kms:ReEncrypt*","Resource":"*","Condition":{"Bool":{"kms:ReEncryptOnSameKey":"true"}}},
		{"Effect":"Deny","Action":"kms:*","Resource":"*","Condition":{"StringEquals":{"kms:EncryptionContext:Tenant":"secret"}}}]}`)
	nobody := user(t, ours, "nobody")
	guest := user(t, others, "guest", allowAll)
	asReader, asNobody, asGuest := w.as("AKIAREADER", reader), w.as("AKIANOBODY", nobody), w.as("AKIAGUEST", guest)
	admin := signature{}

	const t1, secret = `"EncryptionContext":{"tenant":"t1"}`, `"EncryptionContext":{"tenant":"secret"}`
	data := func(key, context string) string {
		return `{"KeyId":"` + key + `","KeySpec":"AES_256"` + context + `}`
	}
	w.want(admin, "GenerateDataKey", data(id1, ""), "ok")
	w.want(asReader, "GenerateDataKey", data(id1, ","+t1), "ok")
	w.want(asReader, "GenerateDataKey", data(id1, ""), refused(reader, "GenerateDataKey", "k1", "because no identity-based policy allows the kms:GenerateDataKey action"))
	w.want(asReader, "GenerateDataKey", data(id1, ","+secret), refused(reader, "GenerateDataKey", "k1", "with an explicit deny in an identity-based policy"))
	w.want(asReader, "GenerateDataKey", data(id2, ","+t1), refused(reader, "GenerateDataKey", "k2", "because no identity-based policy allows the kms:GenerateDataKey action"))
	w.want(asReader, "GenerateDataKeyWithoutPlaintext", data(id1, ","+t1), refused(reader, "GenerateDataKeyWithoutPlaintext", "k1", "because no identity-based policy allows the kms:GenerateDataKeyWithoutPlaintext action"))
	w.want(asReader, "Encrypt", `{"KeyId":"`+id1+`","Plaintext":"AAAA",`+t1+`}`, "ok")
	w.want(asReader, "GenerateRandom", `{"NumberOfBytes":8}`, "AccessDeniedException User: "+reader.ARN+
		" is not authorized to perform: kms:GenerateRandom on resource: * because no identity-based policy allows the kms:GenerateRandom action")
	w.want(admin, "GenerateRandom", `{"NumberOfBytes":8}`, "ok")

	// The key that only a ciphertext names, and how the request names it.
	blob := base64.StdEncoding.EncodeToString(w.blob("k1", 1, map[string]string{"tenant": "t1"}, make([]byte, 32)))
	w.want(asReader, "Decrypt", `{"CiphertextBlob":"`+blob+`",`+t1+`,"KeyId":"alias/a"}`, "ok")
	w.want(asReader, "Decrypt", `{"CiphertextBlob":"`+blob+`",`+t1+`}`, refused(reader, "Decrypt", "k1", "because no identity-based policy allows the kms:Decrypt action"))
	w.want(asNobody, "Decrypt", `{"CiphertextBlob":"`+blob+`",`+t1+`}`, refused(nobody, "Decrypt", "k1", "because no identity-based policy allows the kms:Decrypt action"))
	again := `{"CiphertextBlob":"` + blob + `","Source` + t1[1:] + `,"DestinationKeyId":"`
	w.want(asReader, "ReEncrypt", again+id1+`"}`, "ok")
	w.want(asReader, "ReEncrypt", again+id2+`"}`, refused(reader, "ReEncryptFrom", "k1", "because no identity-based policy allows the kms:ReEncryptFrom action"))
	w.want(asReader, "ReEncrypt", again+id1+`","DestinationEncryptionContext":{"tenant":"secret"}}`, refused(reader, "ReEncryptTo", "k1", "with an explicit deny in an identity-based policy"))

	// Another account: nothing is said of what exists there, until its key policy lets the caller in.
	for _, key := range []string{"k1", "never made"} {
		w.want(asGuest, "GenerateDataKey", data(keyARN(key), ""), refusedAbroad(guest, "GenerateDataKey"))
	}
	w.want(asGuest, "Encrypt", `{"KeyId":"arn:aws:kms:us-east-1:111122223333:alias/a","Plaintext":"AAAA"}`, refusedAbroad(guest, "Encrypt"))
	w.want(asGuest, "Encrypt", `{"KeyId":"arn:aws:kms:us-east-1:111122223333:alias/none","Plaintext":"AAAA"}`, refusedAbroad(guest, "Encrypt"))
	w.want(asGuest, "GenerateDataKey", data(id1, ""), "NotFoundException Key '"+string(keyid.AppendKeyARN(nil, "aws", testRegion, others, keyID("k1")))+"' does not exist")
	w.want(asGuest, "Decrypt", `{"CiphertextBlob":"`+blob+`",`+t1+`}`, "AccessDeniedException "+textForeignBlob)
	w.put("k1", `{"Version":"2012-10-17","Statement":[
		{"Sid":"home","Effect":"Allow","Principal":{"AWS":"111122223333"},"Action":"kms:*","Resource":"*"},
		{"Sid":"guests","Effect":"Allow","Principal":{"AWS":"444455556666"},"Action":["kms:Decrypt","kms:GenerateDataKey"],"Resource":"*"},
		{"Effect":"Deny","Principal":"*","Action":"kms:*","Resource":"*","Condition":{"StringEquals":{"kms:EncryptionContext:tenant":"burnt"}}}]}`)
	w.want(asGuest, "GenerateDataKey", data(keyARN("k1"), ""), "ok")
	w.want(asGuest, "Decrypt", `{"CiphertextBlob":"`+blob+`",`+t1+`}`, "ok")
	w.want(asGuest, "Encrypt", `{"KeyId":"`+keyARN("k1")+`","Plaintext":"AAAA"}`, refusedAbroad(guest, "Encrypt"))
	w.want(asGuest, "GenerateDataKey", data(keyARN("k1"), `,"EncryptionContext":{"tenant":"burnt"}`), refusedAbroad(guest, "GenerateDataKey"))
	w.want(admin, "GenerateDataKey", data(keyARN("k1"), `,"EncryptionContext":{"tenant":"burnt"}`),
		"AccessDeniedException User: "+userARN(ours, "administrator")+" is not authorized to perform: kms:GenerateDataKey on resource: "+keyARN("k1")+" with an explicit deny in a resource-based policy")

	// A key policy that leaves nothing to the account.
	w.put("k2", `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":{"AWS":"`+nobody.ARN+`"},"Action":"kms:Encrypt","Resource":"*"}}`)
	w.want(asNobody, "Encrypt", `{"KeyId":"`+id2+`","Plaintext":"AAAA"}`, "ok")
	w.want(admin, "Encrypt", `{"KeyId":"`+id2+`","Plaintext":"AAAA"}`, "AccessDeniedException User: "+userARN(ours, "administrator")+
		" is not authorized to perform: kms:Encrypt on resource: "+keyARN("k2")+" because no resource-based policy allows the kms:Encrypt action")

	// A policy that cannot be read lets nobody in.
	w.records.keys[keyID("k2")].Bound = map[string]string{}
	w.put("k2", `{"Version":"2012-10-17","Statement":{"Effect":"Perhaps"}}`)
	w.want(asNobody, "Encrypt", `{"KeyId":"`+id2+`","Plaintext":"AAAA"}`, refused(nobody, "Encrypt", "k2", "because no resource-based policy allows the kms:Encrypt action"))

	// A user who was deleted, or made anew under the same name, is not who the policy named.
	w.records.keys[keyID("k2")].Bound = map[string]string{nobody.ARN: "AIDAformer"}
	w.put("k2", `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":{"AWS":"`+nobody.ARN+`"},"Action":"kms:Encrypt","Resource":"*"}}`)
	w.want(asNobody, "Encrypt", `{"KeyId":"`+id2+`","Plaintext":"AAAA"}`, refused(nobody, "Encrypt", "k2", "because no resource-based policy allows the kms:Encrypt action"))
	w.records.keys[keyID("k2")].Bound = map[string]string{nobody.ARN: nobody.ID}
	w.KeyChanged(ours, keyID("k2"))
	w.want(asNobody, "Encrypt", `{"KeyId":"`+id2+`","Plaintext":"AAAA"}`, "ok")
	nobody.Holder.Replace(nil)
	w.want(asNobody, "Encrypt", `{"KeyId":"`+id2+`","Plaintext":"AAAA"}`, refused(nobody, "Encrypt", "k2", "because no identity-based policy allows the kms:Encrypt action"))
}

// Grants are read once for each key and grantee, and a change of them holds for the next request.
func TestGrants(t *testing.T) {
	w := access{newWorld(t, worldConfig{plain: true})}
	w.addKey("k1", kmsapi.StateEnabled, 1)
	worker := session(t, ours, "worker", "s1")
	guest := user(t, others, "guest")
	asWorker, asGuest := w.as("AKIAWORKER", worker), w.as("AKIAGUEST", guest)
	data := func(context string) string {
		return `{"KeyId":"` + keyARN("k1") + `","KeySpec":"AES_256"` + context + `}`
	}
	denied := refused(worker, "GenerateDataKey", "k1", "because no identity-based policy allows the kms:GenerateDataKey action")

	w.want(asWorker, "GenerateDataKey", data(""), denied)
	before := w.records.reads
	for range 3 {
		w.want(asWorker, "GenerateDataKey", data(""), denied)
	}
	if n := w.records.reads - before; n != 0 {
		t.Errorf("that there are no grants was read %d times again", n)
	}
	free := authz.Grant{ID: "free", Operations: authz.OpGenerateDataKey}
	bound := authz.Grant{ID: "bound", Operations: authz.OpGenerateDataKey | authz.OpDecrypt, HasSubset: true, Subset: []authz.Pair{{Key: []byte("a"), Value: []byte("1")}}}
	w.grant("k1", "AROAworker:s1", bound)
	w.want(asWorker, "GenerateDataKey", data(`,"EncryptionContext":{"a":"1","b":"2"}`), "ok")
	w.want(asWorker, "GenerateDataKey", data(`,"EncryptionContext":{"a":"2"}`), denied)
	w.want(asWorker, "GenerateDataKey", data(""), denied)
	w.grant("k1", "AROAworker", bound, free)
	w.want(asWorker, "GenerateDataKey", data(""), "ok")
	w.grant("k1", "AROAworker")
	w.want(asWorker, "GenerateDataKey", data(""), denied)
	w.want(asGuest, "GenerateDataKey", data(""), refusedAbroad(guest, "GenerateDataKey"))
	w.grant("k1", "AIDAguest", free)
	w.want(asGuest, "GenerateDataKey", data(""), "ok")
	w.want(asGuest, "GenerateDataKeyWithoutPlaintext", data(""), refusedAbroad(guest, "GenerateDataKeyWithoutPlaintext"))

	// An explicit Deny is stronger.
	w.put("k1", `{"Version":"2012-10-17","Statement":{"Effect":"Deny","Principal":{"AWS":"`+guest.ARN+`"},"Action":"kms:Gen*","Resource":"*"}}`)
	w.want(asGuest, "GenerateDataKey", data(""), refusedAbroad(guest, "GenerateDataKey"))

	// A store that does not answer allows nothing and is no refusal.
	w.put("k1", delegating(ours))
	w.want(asWorker, "GenerateDataKey", data(""), denied)
	w.GrantsChanged(ours, keyID("k1"), "AROAworker")
	w.records.err = errors.New("no store")
	w.want(asWorker, "GenerateDataKey", data(""), "KMSInternalException "+kmsapi.KMSInternal.Text())
	w.records.err = nil
}

// One grant that is made or removed changes what is known of a grantee's grants, and holds for the next request, without reading them again.
func TestGrantChanges(t *testing.T) {
	w := access{newWorld(t, worldConfig{plain: true})}
	w.addKey("k1", kmsapi.StateEnabled, 1)
	worker := session(t, ours, "worker", "s1")
	asWorker := w.as("AKIAWORKER", worker)
	data := func(tenant string) string {
		return `{"KeyId":"` + keyARN("k1") + `","KeySpec":"AES_256","EncryptionContext":{"tenant":"` + tenant + `"}}`
	}
	denied := refused(worker, "GenerateDataKey", "k1", "because no identity-based policy allows the kms:GenerateDataKey action")
	grant := func(tenant string) authz.Grant {
		return authz.Grant{ID: "grant of " + tenant, Operations: authz.OpGenerateDataKey, HasEquals: true, Equals: []authz.Pair{{Key: []byte("tenant"), Value: []byte(tenant)}}}
	}
	var many []authz.Grant
	for i := range 1000 {
		many = append(many, grant(strconv.Itoa(i)))
	}
	w.grant("k1", "AROAworker", many...)
	w.want(asWorker, "GenerateDataKey", data("999"), "ok")
	w.want(asWorker, "GenerateDataKey", data("one"), denied)
	before := w.records.reads
	one := grant("one")
	for range 3 {
		w.GrantMade(ours, keyID("k1"), "AROAworker", &one)
		w.want(asWorker, "GenerateDataKey", data("one"), "ok")
		w.want(asWorker, "GenerateDataKey", data("999"), "ok")
		w.GrantRemoved(ours, keyID("k1"), "AROAworker", one.ID)
		w.want(asWorker, "GenerateDataKey", data("one"), denied)
		w.GrantRemoved(ours, keyID("k1"), "AROAworker", "grant of 998")
		w.want(asWorker, "GenerateDataKey", data("998"), denied)
	}
	// The first grant to somebody who has none, which is known too, and the last.
	w.GrantMade(ours, keyID("k1"), "AROAworker:s1", &one)
	w.want(asWorker, "GenerateDataKey", data("one"), "ok")
	w.GrantRemoved(ours, keyID("k1"), "AROAworker:s1", one.ID)
	w.want(asWorker, "GenerateDataKey", data("one"), denied)
	if n := w.records.reads - before; n != 0 {
		t.Errorf("%d reads", n)
	}
}

// What a registered service says of its caller counts; what anybody else says does not.
func TestServices(t *testing.T) {
	w := access{newWorld(t, worldConfig{plain: true})}
	w.addKey("k1", kmsapi.StateEnabled, 1)
	w.put("k1", `{"Version":"2012-10-17","Statement":[
		{"Effect":"Allow","Principal":{"Service":"store.example.com"},"Action":"kms:*","Resource":"*","Condition":{"ArnLike":{"aws:SourceArn":"arn:aws:store:*:111122223333:bucket/*"},"StringEquals":{"aws:SourceAccount":"111122223333"}}},
		{"Effect":"Allow","Principal":{"AWS":"*"},"Action":"kms:Encrypt","Resource":"*","Condition":{"StringEquals":{"kms:ViaService":"store.us-east-1.example.com","kms:CallerAccount":"111122223333"},"ForAnyValue:StringEquals":{"aws:CalledVia":"store.example.com"}}}]}`)
	store := service("store.us-east-1.example.com", "store.example.com")
	alice := user(t, ours, "alice")
	via := user(t, ours, "alice")
	via.Via, via.ViaName = "store.us-east-1.example.com", "store.example.com"
	asStore, asAlice, asVia := w.as("AKIASTORE", store), w.as("AKIAALICE", alice), w.as("AKIAVIA", via)
	body := `{"KeyId":"` + keyARN("k1") + `","Plaintext":"AAAA"}`
	arn, account := "x-amz-source-arn: arn:aws:store:us-east-1:111122223333:bucket/b", "x-amz-source-account: 111122223333"

	w.want(asStore, "Encrypt", body, "ok", arn, account)
	w.want(asStore, "Encrypt", body, refusedAbroad(store, "Encrypt"))
	w.want(asStore, "Encrypt", body, refusedAbroad(store, "Encrypt"), "x-amz-source-arn: arn:aws:store:us-east-1:999922223333:bucket/b", account)
	noPolicy := refused(alice, "Encrypt", "k1", "because no resource-based policy allows the kms:Encrypt action")
	w.want(asAlice, "Encrypt", body, noPolicy)
	w.want(asAlice, "Encrypt", body, noPolicy, arn, account)
	w.want(asVia, "Encrypt", body, "ok")
	w.want(asStore, "GenerateRandom", `{"NumberOfBytes":8}`, "AccessDeniedException User: store.us-east-1.example.com is not authorized to perform: kms:GenerateRandom"+notAbroad)
}

// A request to IAM or STS goes to the control plane whatever its target, and comes back as XML; one to KMS does not get there by its form.
func TestOtherServicesAreForwarded(t *testing.T) {
	seen := 0
	var body []byte
	w := newWorld(t, worldConfig{plain: true, control: func(r *signedRequest, _, _ string, _ *cloudtrail.TLSDetails) (int, []byte) {
		seen++
		body = []byte("<GetCallerIdentityResponse/>")
		return 200, body
	}})
	raw := w.sign(signature{service: "sts"}, "", []byte("Action=GetCallerIdentity&Version=2011-06-15"))
	r := w.do(raw)
	if len(bytes.Trim(body, "\x00")) != 0 {
		t.Errorf("the control plane's reply, which may hold a secret, is still there: %q", body)
	}
	if r.status != 200 || string(r.body) != "<GetCallerIdentityResponse/>" || r.header.Get("Content-Type") != "text/xml" || seen != 1 {
		t.Errorf("%d %q %s, seen %d times", r.status, r.header.Get("Content-Type"), r.body, seen)
	}
	r = w.do(w.sign(signature{service: "sts"}, kmsapi.TargetPrefix+"GenerateRandom", []byte(`{"NumberOfBytes":8}`)))
	if seen != 2 || r.status != 200 {
		t.Errorf("a KMS operation signed for STS: %d %s, seen %d times", r.status, r.body, seen)
	}
}

// ReEncrypt answers alike for a source of another account that exists and for one that does not, whatever its destination.
func TestReEncryptTellsNothing(t *testing.T) {
	w := access{newWorld(t, worldConfig{plain: true})}
	w.addKey("k1", kmsapi.StateEnabled, 1)
	ghost := w.addKey("ghost", kmsapi.StateEnabled, 1)
	w.records.keys[keyID("gone")] = ghost
	guest := user(t, others, "guest", allowAll)
	as := w.as("AKIAGUEST", guest)
	blob := func(name string) string { return base64.StdEncoding.EncodeToString(w.blob(name, 1, nil, []byte("x"))) }
	there, gone := blob("k1"), blob("ghost")
	delete(w.records.keys, keyID("ghost"))
	delete(w.records.keys, keyID("gone"))
	for _, dest := range []string{"alias/none", "00000000-0000-0000-0000-000000000000"} {
		a := w.try(as, "ReEncrypt", `{"CiphertextBlob":"`+there+`","DestinationKeyId":"`+dest+`"}`)
		b := w.try(as, "ReEncrypt", `{"CiphertextBlob":"`+gone+`","DestinationKeyId":"`+dest+`"}`)
		if a != b {
			t.Errorf("blob, dest %s:\nexists: %s\nabsent: %s", dest, a, b)
		}
		a = w.try(as, "ReEncrypt", `{"CiphertextBlob":"AAAA","SourceKeyId":"`+keyARN("k1")+`","DestinationKeyId":"`+dest+`"}`)
		b = w.try(as, "ReEncrypt", `{"CiphertextBlob":"AAAA","SourceKeyId":"`+keyARN("ghost")+`","DestinationKeyId":"`+dest+`"}`)
		if a != b {
			t.Errorf("SourceKeyId, dest %s:\nexists: %s\nabsent: %s", dest, a, b)
		}
	}
}

// A grant on a key of another account does not reach beyond the boundary and the session policies of who has it.
func TestForeignGrantWithinLimits(t *testing.T) {
	w := access{newWorld(t, worldConfig{plain: true})}
	w.addKey("k1", kmsapi.StateEnabled, 1) // ours, the stranger's
	s := session(t, others, "app", "s1")
	none := parse(t, policy.IdentityPolicy, `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*"}]}`)
	s.Session = none
	s.Holder = authz.NewHolder(&authz.Subject{Principal: s.Principal, Name: "app", Boundary: none[0]})
	as := w.as("AKIAGUEST", s)
	w.grant("k1", "AROAapp:s1", authz.Grant{ID: "g", Operations: authz.OpEncrypt})
	if got := w.try(as, "Encrypt", `{"KeyId":"`+keyARN("k1")+`","Plaintext":"AAAA"}`); got == "ok" {
		t.Errorf("foreign grant: a session whose identity, boundary and session policies all lack kms: may encrypt under a stranger's key")
	}
}

// A policy counts against the bound of the cache once, and a long one is not shared.
func TestPoliciesAreCounted(t *testing.T) {
	var table policyTable
	quietly := func(string, error, ...any) {}
	record := func(document string) *snapshot.Record {
		return &snapshot.Record{Account: ours, Policy: []byte(document), Bound: map[string]string{"arn:aws:iam::111122223333:root": "111122223333"}}
	}
	short := delegating(ours)
	long := strings.Replace(short, "{", "{"+strings.Repeat(" ", sharedMax), 1)
	first, size := table.compile(record(short), quietly)
	second, none := table.compile(record(short), quietly)
	if first != second || size < int64(len(short)) || none != 0 {
		t.Errorf("a policy of two keys: same %t, sizes %d and %d", first == second, size, none)
	}
	a, sizeA := table.compile(record(long), quietly)
	b, sizeB := table.compile(record(long), quietly)
	if a == b || sizeA < int64(len(long)) || sizeA != sizeB || len(table.byDoc) != 1 {
		t.Errorf("a long policy: same %t, sizes %d and %d, %d kept", a == b, sizeA, sizeB, len(table.byDoc))
	}
	for i := range policiesMax + 10 {
		table.compile(record(strings.Repeat(" ", i%sharedMax/2)+short), quietly)
	}
	if len(table.byDoc) > policiesMax {
		t.Errorf("%d policies kept, at most %d", len(table.byDoc), policiesMax)
	}
}
