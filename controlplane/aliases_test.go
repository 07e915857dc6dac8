package controlplane

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

type aliasEntry struct {
	AliasName, AliasArn, TargetKeyId string
	CreationDate, LastUpdatedDate    float64
}

type aliasReply struct {
	Aliases    []aliasEntry
	NextMarker string
	Truncated  bool
}

func aliasBody(name, target string) string { return obj("AliasName", name, "TargetKeyId", target) }

func (e *env) aliases(body string) aliasReply {
	e.Helper()
	var out aliasReply
	e.ok("ListAliases", body, &out)
	return out
}

func TestAliasLife(t *testing.T) {
	e := newEnv(t)
	a, b := e.create("{}"), e.create("{}")
	e.published.take()

	// Both keys are published as well: conditions can ask for a key's aliases.
	e.ok("CreateAlias", aliasBody("alias/x", a.Arn), nil)
	if got := e.published.take(); got != "key "+a.KeyId+"\nalias alias/x\n" {
		t.Errorf("published %q", got)
	}
	arn := "arn:aws:kms:us-east-1:" + e.account.String() + ":alias/x"
	want := aliasEntry{"alias/x", arn, a.KeyId, 1795435200.123, 1795435200.123}
	if got := e.aliases("{}"); len(got.Aliases) != 1 || got.Aliases[0] != want || got.Truncated {
		t.Errorf("listed %+v", got)
	}
	e.fails("CreateAlias", aliasBody("alias/x", b.KeyId), kmsapi.AlreadyExists, "An alias with the name "+arn+" already exists")
	e.fails("CreateAlias", aliasBody("alias/x", a.KeyId), kmsapi.AlreadyExists, "An alias with the name "+arn+" already exists")

	// Published although they changed nothing: the call that made the alias might not have published yet, and these tell that it is there.
	if got := e.published.take(); got != "alias alias/x\nalias alias/x\n" {
		t.Errorf("published %q", got)
	}

	e.clock.add(time.Second)
	e.ok("UpdateAlias", aliasBody("alias/x", b.KeyId), nil)
	if got := e.published.take(); got != "key "+b.KeyId+"\nkey "+a.KeyId+"\nalias alias/x\n" {
		t.Errorf("published %q", got)
	}
	want.TargetKeyId, want.LastUpdatedDate = b.KeyId, 1795435201.123
	if got := e.aliases(obj("KeyId", b.Arn)); len(got.Aliases) != 1 || got.Aliases[0] != want {
		t.Errorf("listed %+v", got)
	}
	if got := e.aliases(obj("KeyId", a.KeyId)); len(got.Aliases) != 0 {
		t.Errorf("the old key still lists %+v", got)
	}
	if got, err := shared.AliasTarget(t.Context(), e.region, e.account, "alias/x"); err != nil || got.String() != b.KeyId {
		t.Errorf("AliasTarget: %v %v", got, err)
	}
	e.ok("UpdateAlias", aliasBody("alias/x", b.KeyId), nil) // to the key it points at
	if got := e.describe("alias/x"); got.KeyId != b.KeyId {
		t.Errorf("the alias leads to %v", got)
	}

	e.ok("DeleteAlias", obj("AliasName", "alias/x"), nil)
	if got := e.published.take(); got != "key "+b.KeyId+"\nkey "+b.KeyId+"\nalias alias/x\nalias alias/x\n" {
		t.Errorf("published %q", got)
	}
	e.fails("DeleteAlias", obj("AliasName", "alias/x"), kmsapi.NotFound, "Alias "+arn+" is not found.")
	e.fails("UpdateAlias", aliasBody("alias/x", a.KeyId), kmsapi.NotFound, "Alias "+arn+" is not found.")
	e.fails("DescribeKey", obj("KeyId", "alias/x"), kmsapi.NotFound, "Alias "+arn+" is not found.")
	// Published: the call that deleted the alias might not have published yet, and these two tell that it is gone.
	if got := e.published.take(); got != "alias alias/x\nalias alias/x\n" {
		t.Errorf("refusals published %q", got)
	}
	e.ok("CreateAlias", aliasBody("alias/x", a.KeyId), nil) // the name is free again
}

func TestAliasNames(t *testing.T) {
	e := newEnv(t)
	m := e.create("{}")
	const (
		prefix  = `Alias must start with the prefix "alias/". Please see https://docs.aws.amazon.com/kms/latest/developerguide/kms-alias.html`
		pattern = " at 'aliasName' failed to satisfy constraint: Member must satisfy regular expression pattern: ^[a-zA-Z0-9:/_-]+$"
		longest = "1 validation error detected: Value at 'aliasName' failed to satisfy constraint: Member must have length less than or equal to 256"
	)
	for _, good := range []string{"alias/a", "alias/A-b_c/d/", "alias/" + strings.Repeat("n", 249), "alias/" + strings.Repeat("n", 250), "alias/aws", "alias/aws-x/y"} {
		e.ok("CreateAlias", aliasBody(good, m.KeyId), nil)
		e.ok("UpdateAlias", aliasBody(good, m.KeyId), nil)
		if got := e.describe(good); got.KeyId != m.KeyId {
			t.Errorf("%s leads to %v", good, got)
		}
		e.ok("DeleteAlias", obj("AliasName", good), nil)
	}
	for _, c := range []struct {
		name    string
		code    kmsapi.Code // of CreateAlias
		message string
		missing bool // the others do not find it
	}{
		{"alias/" + strings.Repeat("n", 251), kmsapi.Validation, longest, false},
		{"", kmsapi.Validation, "1 validation error detected: Value '' at 'aliasName' failed to satisfy constraint: Member must have length greater than or equal to 1", false},
		{"alias/é", kmsapi.Validation, "1 validation error detected: Value 'alias/é'" + pattern, false},
		{"alias/a b", kmsapi.Validation, "1 validation error detected: Value 'alias/a b'" + pattern, false},
		{"name", kmsapi.Validation, prefix, false},
		{"Alias/a", kmsapi.Validation, prefix, false},
		{"alias/aws/s3", kmsapi.NotAuthorized, "The prefix alias/aws/ is reserved for AWS managed keys.", false},
		{"alias/", kmsapi.InvalidAliasName, "alias/ contains invalid characters for an alias", true},
		{"alias/a:b", kmsapi.InvalidAliasName, "alias/a:b contains invalid characters for an alias", true},
	} {
		e.fails("CreateAlias", aliasBody(c.name, m.KeyId), c.code, c.message)
		if c.missing {
			c.code, c.message = kmsapi.NotFound, "Alias arn:aws:kms:us-east-1:"+e.account.String()+":"+c.name+" is not found."
		}
		e.fails("UpdateAlias", aliasBody(c.name, m.KeyId), c.code, c.message)
		e.fails("DeleteAlias", obj("AliasName", c.name), c.code, c.message)
	}
	if got := e.aliases("{}"); len(got.Aliases) != 0 {
		t.Errorf("left over: %v", got)
	}
}

func TestAliasTargets(t *testing.T) {
	e := newEnv(t)
	m := e.create("{}")
	e.ok("CreateAlias", aliasBody("alias/old", m.KeyId), nil)
	arn := strings.TrimSuffix(m.Arn, m.KeyId)
	missing := "12345678-1234-4234-8234-123456789012"
	for op, name := range map[string]string{"CreateAlias": "alias/new", "UpdateAlias": "alias/old"} {
		e.fails(op, aliasBody(name, missing), kmsapi.NotFound, "Key '"+arn+missing+"' does not exist")
		e.fails(op, aliasBody(name, "alias/old"), kmsapi.Validation, "Aliases must refer to keys. Not aliases")
		e.fails(op, aliasBody(name, strings.Replace(arn, ":key/", ":alias/old", 1)), kmsapi.Validation, "Aliases must refer to keys. Not aliases")
		// These two do not model InvalidArnException.
		e.fails(op, aliasBody(name, "arn:aws:kms:us-east-1"), kmsapi.NotFound, "Invalid arn 'arn:aws:kms:us-east-1'")
		e.fails(op, aliasBody(name, "x"), kmsapi.NotFound, "Invalid keyId 'x'")
		e.fails(op, aliasBody(name, strings.Replace(m.Arn, "us-east-1", "eu-west-3", 1)), kmsapi.NotFound, "Invalid arn eu-west-3")
		e.fails(op, aliasBody(name, strings.Replace(m.Arn, e.account.String(), "999999999999", 1)), kmsapi.AccessDenied, "*")
		e.fails(op, "{}", kmsapi.Validation, "2 validation errors detected: Value null at 'aliasName' failed to satisfy constraint: Member must "+
			"not be null; Value null at 'targetKeyId' failed to satisfy constraint: Member must not be null")
	}
	e.fails("DeleteAlias", "{}", kmsapi.Validation,
		"1 validation error detected: Value null at 'aliasName' failed to satisfy constraint: Member must not be null")
}

// TestKindsOfKeys moves aliases between keys of every kind.
func TestKeyClass(t *testing.T) {
	for spec, want := range map[string]string{"ECC_NIST_P256": "asymmetric", "RSA_4096": "asymmetric", "HMAC_512": "HMAC", "SYMMETRIC_DEFAULT": "symmetric"} {
		if got := keyClass(spec); got != want {
			t.Errorf("keyClass(%s) = %s", spec, got)
		}
	}
}

func TestAliasesPerKeyLimit(t *testing.T) {
	e := newEnv(t)
	full, other := e.create("{}"), e.create("{}")
	for i := range kmsapi.AliasesPerKeyMax {
		e.ok("CreateAlias", aliasBody(fmt.Sprintf("alias/%02d", i), full.KeyId), nil)
	}
	limit := "The key " + full.Arn + " has reached the limit of 50 aliases."
	e.fails("CreateAlias", aliasBody("alias/more", full.KeyId), kmsapi.LimitExceeded, limit)
	e.ok("CreateAlias", aliasBody("alias/other", other.KeyId), nil)
	e.fails("UpdateAlias", aliasBody("alias/other", full.KeyId), kmsapi.LimitExceeded, limit)
	e.ok("UpdateAlias", aliasBody("alias/07", full.KeyId), nil) // stays where it is: no room needed
	e.ok("UpdateAlias", aliasBody("alias/07", other.KeyId), nil)
	e.ok("UpdateAlias", aliasBody("alias/other", full.KeyId), nil)
	if got := e.aliases(obj("KeyId", full.KeyId)); len(got.Aliases) != kmsapi.AliasesPerKeyMax || got.Truncated {
		t.Errorf("%d aliases, truncated %v", len(got.Aliases), got.Truncated)
	}
}

func TestListAliasesPages(t *testing.T) {
	e := newEnv(t)
	a, b := e.create("{}"), e.create("{}")
	var all, ofA []string
	for i := range 60 {
		name, target := fmt.Sprintf("alias/n/%02d", i), b.KeyId
		all = append(all, name)
		if i%2 == 0 {
			target, ofA = a.KeyId, append(ofA, name)
		}
		e.ok("CreateAlias", aliasBody(name, target), nil)
	}
	walk := func(filter, limit string) (names []string, pages int) {
		marker := ""
		for {
			out := e.aliases("{" + strings.Trim(filter+limit+marker, ",") + "}")
			pages++
			for _, a := range out.Aliases {
				names = append(names, a.AliasName)
			}
			if !out.Truncated {
				return names, pages
			}
			marker = `"Marker":` + string(kmsapi.AppendString(nil, out.NextMarker))
		}
	}
	for _, c := range []struct {
		filter, limit string
		want          []string
		pages         int
	}{
		{"", "", all, 2}, {"", `"Limit":100,`, all, 1}, {"", `"Limit":59,`, all, 2}, {"", `"Limit":60,`, all, 1}, {"", `"Limit":7,`, all, 9},
		{`"KeyId":"` + a.KeyId + `",`, "", ofA, 1}, {`"KeyId":"` + a.Arn + `",`, `"Limit":1,`, ofA, 30}, {`"KeyId":"` + a.KeyId + `",`, `"Limit":29,`, ofA, 2},
		{`"KeyId":null,`, `"Limit":100,`, all, 1},
	} {
		names, pages := walk(c.filter, c.limit)
		if fmt.Sprint(names) != fmt.Sprint(c.want) || pages != c.pages {
			t.Errorf("%s%s: %d aliases in %d pages, want %d in %d", c.filter, c.limit, len(names), pages, len(c.want), c.pages)
		}
	}
	e.fails("ListAliases", obj("Limit", 101), kmsapi.Validation,
		"1 validation error detected: Value '101' at 'limit' failed to satisfy constraint: Member must have value less than or equal to 100")
	e.fails("ListAliases", obj("Limit", 0, "KeyId", ""), kmsapi.Validation, "2 validation errors detected: Value '' at 'keyId' failed to satisfy "+
		"constraint: Member must have length greater than or equal to 1; Value '0' at 'limit' failed to satisfy constraint: Member must have "+
		"value greater than or equal to 1")
}

// Of many who create the same alias at once exactly one wins, and key record and alias agree who.
func TestConcurrentCreateAlias(t *testing.T) {
	e := newEnv(t)
	const n = 40
	keys := make([]wire, n)
	for i := range keys {
		keys[i] = e.create("{}")
	}
	codes := make([]kmsapi.Code, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { codes[i] = e.call("CreateAlias", aliasBody("alias/race", keys[i].KeyId)).Code })
	}
	wg.Wait()
	winner := ""
	for i, code := range codes {
		switch {
		case code == kmsapi.OK && winner == "":
			winner = keys[i].KeyId
		case code != kmsapi.AlreadyExists:
			t.Errorf("%d: %s", i, code)
		}
	}
	if got := e.describe("alias/race"); got.KeyId != winner {
		t.Errorf("%s won, the alias leads to %s", winner, got.KeyId)
	}
	for _, k := range keys {
		if got := e.aliases(obj("KeyId", k.KeyId)); (len(got.Aliases) == 1) != (k.KeyId == winner) {
			t.Errorf("key %s lists %v", k.KeyId, got.Aliases)
		}
	}
}

// An alias that many move to and fro at once ends at one key, which alone lists it.
func TestConcurrentUpdateAlias(t *testing.T) {
	e := newEnv(t)
	keys := []wire{e.create("{}"), e.create("{}"), e.create("{}")}
	e.ok("CreateAlias", aliasBody("alias/race", keys[0].KeyId), nil)
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			if resp := e.call("UpdateAlias", aliasBody("alias/race", keys[i%3].KeyId)); resp.Code != kmsapi.OK {
				t.Errorf("%d: %s", i, resp.Body)
			}
		})
	}
	wg.Wait()
	target := e.describe("alias/race").KeyId
	for _, k := range keys {
		if got := e.aliases(obj("KeyId", k.KeyId)); (len(got.Aliases) == 1) != (k.KeyId == target) {
			t.Errorf("key %s lists %v, the alias leads to %s", k.KeyId, got.Aliases, target)
		}
	}
}

func TestMarkers(t *testing.T) {
	e := newEnv(t)
	a, b := e.create("{}"), e.create("{}")
	for i := range 3 {
		e.ok("CreateAlias", aliasBody(fmt.Sprintf("alias/%d", i), a.KeyId), nil)
	}
	e.ok("TagResource", obj("KeyId", a.KeyId, "Tags", tags("a", "", "b", "", "c", "")), nil)
	e.ok("TagResource", obj("KeyId", b.KeyId, "Tags", tags("a", "", "b", "")), nil)

	// One marker of each list, and the lists they are good for.
	type list struct{ op, filter string }
	lists := []list{
		{"ListKeys", ""}, {"ListAliases", ""}, {"ListAliases", `"KeyId":"` + a.KeyId + `",`},
		{"ListResourceTags", `"KeyId":"` + a.KeyId + `",`}, {"ListResourceTags", `"KeyId":"` + b.KeyId + `",`},
	}
	marker := func(e *env, l list) string {
		var out struct {
			NextMarker          string
			Truncated           bool
			Keys, Tags, Aliases []any
			PolicyNames         []string
		}
		e.ok(l.op, "{"+l.filter+`"Limit":1}`, &out)
		if !out.Truncated || out.NextMarker == "" {
			t.Fatalf("%v: no marker", l)
		}
		return out.NextMarker
	}
	use := func(e *env, l list, m string) kmsapi.Code {
		return e.call(l.op, "{"+l.filter+`"Limit":1,"Marker":`+string(kmsapi.AppendString(nil, m))+"}").Code
	}
	for i, from := range lists {
		m := marker(e, from)
		for j, to := range lists {
			if got := use(e, to, m); (got == kmsapi.OK) != (i == j) || i != j && got != kmsapi.InvalidMarker {
				t.Errorf("a marker of %v for %v: %s", from, to, got)
			}
		}
		for at := range len(m) {
			for _, c := range []byte{m[at] ^ 1, 'A', '=', '+', '/', ' '} {
				if bad := m[:at] + string(rune(c)) + m[at+1:]; bad != m {
					if got := use(e, from, bad); got != kmsapi.InvalidMarker {
						t.Errorf("%v: marker %q altered at %d: %s", from, bad, at, got)
					}
				}
			}
		}
		for _, bad := range []string{m + "A", m[:len(m)-1], m + "=", " " + m, "x", strings.Repeat("A", kmsapi.MarkerMax)} {
			if got := use(e, from, bad); got != kmsapi.InvalidMarker {
				t.Errorf("%v: marker %q: %s", from, bad, got)
			}
		}
		for _, bad := range []string{"", strings.Repeat("A", kmsapi.MarkerMax+1), "Ā", "\n"} {
			if got := use(e, from, bad); got != kmsapi.Validation {
				t.Errorf("%v: marker %q: %s", from, bad, got)
			}
		}
	}

	// A marker of another account's list, and one with a good tag on a position that is none.
	other := newEnv(t)
	other.create("{}")
	other.create("{}")
	if got := use(e, lists[0], marker(other, lists[0])); got != kmsapi.InvalidMarker {
		t.Errorf("another account's marker: %s", got)
	}
	p := page{operation: "ListKeys", account: e.account, region: e.region}
	if got := use(e, lists[0], p.marker("not-a-key-ID")); got != kmsapi.InvalidMarker {
		t.Errorf("position that is no key ID: %s", got)
	}
	p.operation = "ListAliases"
	if got := use(e, lists[1], p.marker("alias/../../x\x00")); got != kmsapi.InvalidMarker {
		t.Errorf("position that is no alias: %s", got)
	}
	// The position itself may be gone.
	p.operation = "ListKeys"
	if got := use(e, lists[0], p.marker(keyid.ID{}.String())); got != kmsapi.OK {
		t.Errorf("position of a key that is gone: %s", got)
	}
	e.fails("ListKeyPolicies", obj("KeyId", a.KeyId, "Marker", "x"), kmsapi.InvalidMarker, kmsapi.InvalidMarker.Text())
}
