package controlplane

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/granttoken"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/quota"
	"github.com/keyplane/keyplane/internal/sigv4"
)

type grantWire struct {
	KeyId, GrantId, Name, GranteePrincipal, RetiringPrincipal, IssuingAccount, GranteeServicePrincipal, RetiringServicePrincipal string

	CreationDate float64
	Operations   []string
	Constraints  *struct {
		EncryptionContextSubset, EncryptionContextEquals map[string]string
		SourceArn                                        string
	}
}

// grantReply is ListGrants' reply as a client reads it.
type grantReply struct {
	Grants     []grantWire
	NextMarker string
	Truncated  bool
}

func (r *grantReply) ids() (ids []string) {
	for _, g := range r.Grants {
		ids = append(ids, g.GrantId)
	}
	return ids
}

func (e *env) grants(pairs ...any) grantReply {
	e.Helper()
	var out grantReply
	e.ok("ListGrants", obj(pairs...), &out)
	return out
}

// grant makes a grant on a key to a principal.
func (e *env) grant(key, grantee string, operations []string, pairs ...any) createGrantOut {
	e.Helper()
	var out createGrantOut
	e.ok("CreateGrant", obj(append([]any{"KeyId", key, "GranteePrincipal", grantee, "Operations", operations}, pairs...)...), &out)
	if t, ok := granttoken.Parse([]byte(out.GrantToken)); !ok || t.GrantID() != out.GrantId || !strings.HasSuffix(key, t.Key.String()) {
		e.Fatalf("not a token of the grant: %+v", out)
	}
	return out
}

var describing = []string{"DescribeKey"}

func (e *env) sees(key string) bool {
	e.Helper()
	resp := e.call("DescribeKey", obj("KeyId", key))
	if resp.Code != kmsapi.OK && resp.Code != kmsapi.AccessDenied {
		e.Errorf("%s", resp.Body)
	}
	return resp.Code == kmsapi.OK
}

func TestGrantLife(t *testing.T) {
	e := newEnv(t)
	m := e.create("{}")
	user, retiring := e.user("user"), e.user("retiring")
	e.published.take()
	g := e.grant(m.KeyId, user.who.ARN, []string{"Decrypt", "Encrypt", "Decrypt"}, "Name", "n:/_-1", "RetiringPrincipal", retiring.who.ARN,
		"Constraints", raw(`{"EncryptionContextSubset":{"b":"ü","a":""}}`))
	if got := e.published.take(); got != "grant "+m.KeyId+" "+user.who.ID+" has "+g.GrantId+"\n" {
		t.Errorf("published %q", got)
	}
	list := e.grants("KeyId", m.KeyId)
	if len(list.Grants) != 1 || list.Truncated || list.NextMarker != "" {
		t.Fatalf("%+v", list)
	}
	got := list.Grants[0]
	if got.KeyId != m.Arn || got.GrantId != g.GrantId || got.Name != "n:/_-1" || got.GranteePrincipal != user.who.ARN || got.RetiringPrincipal != retiring.who.ARN ||
		got.IssuingAccount != "arn:aws:iam::"+e.account.String()+":root" || got.CreationDate != 1795435200.123 ||
		fmt.Sprint(got.Operations) != "[Decrypt Encrypt]" || fmt.Sprint(got.Constraints.EncryptionContextSubset) != "map[a: b:ü]" ||
		got.Constraints.EncryptionContextEquals != nil || got.Constraints.SourceArn != "" || got.GranteeServicePrincipal != "" || got.RetiringServicePrincipal != "" {
		t.Errorf("%+v %+v", got, got.Constraints)
	}
	if resp := e.call("ListGrants", obj("KeyId", m.KeyId)); strings.Contains(string(resp.Body), "ServicePrincipal") || strings.Contains(string(resp.Body), "Equals") {
		t.Errorf("absent members are there: %s", resp.Body)
	}
	// Without a name there is an empty one, and no constraints that nobody gave.
	plain := e.grant(m.Arn, user.who.ARN, []string{"DescribeKey"}, "Constraints", raw("{}"))
	if resp := e.call("ListGrants", obj("KeyId", m.KeyId, "GrantId", plain.GrantId)); !strings.Contains(string(resp.Body), `"Name":""`) || strings.Contains(string(resp.Body), "Constraints") {
		t.Errorf("%s", resp.Body)
	}
	if !user.sees(m.KeyId) {
		t.Error("a grant does not hold at once")
	}
	e.published.take()
	e.ok("RevokeGrant", obj("KeyId", m.KeyId, "GrantId", plain.GrantId), nil)
	if got := e.published.take(); got != "grant "+m.KeyId+" "+user.who.ID+" has no more "+plain.GrantId+"\n" {
		t.Errorf("published %q", got)
	}
	if user.sees(m.KeyId) {
		t.Error("a revoked grant holds")
	}
	retiring.ok("RetireGrant", obj("GrantToken", g.GrantToken), nil)
	if got := e.published.take(); got != "grant "+m.KeyId+" "+user.who.ID+" has no more "+g.GrantId+"\n" {
		t.Errorf("published %q", got)
	}
	gone := "Grant ID " + g.GrantId + " is not found."
	retiring.fails("RetireGrant", obj("GrantToken", g.GrantToken), kmsapi.NotFound, gone)
	e.fails("RetireGrant", obj("KeyId", m.Arn, "GrantId", g.GrantId), kmsapi.NotFound, gone)
	e.fails("RevokeGrant", obj("KeyId", m.Arn, "GrantId", g.GrantId), kmsapi.NotFound, gone)
	if list := e.grants("KeyId", m.KeyId); len(list.Grants) != 0 {
		t.Errorf("%+v", list)
	}
}

func TestServiceGrant(t *testing.T) {
	e := newEnv(t)
	m := e.create("{}")
	admin := "arn:aws:iam::" + e.account.String() + ":user/administrator"
	body := func(pairs ...any) string {
		return obj(append([]any{"KeyId", m.KeyId, "GranteeServicePrincipal", "S3.us-east-1.amazonaws.com", "Operations", describing}, pairs...)...)
	}
	source := "arn:aws:s3:us-east-1:111122223333:bucket"
	constraints := raw(`{"SourceArn":"` + source + `"}`)
	var g createGrantOut
	for _, unregistered := range []string{"s3.us-east-1.amazonaws.com", "s3.amazonaws.com"} {
		refused := "ARN does not refer to a valid principal: " + unregistered
		e.fails("CreateGrant", obj("KeyId", m.KeyId, "GranteeServicePrincipal", unregistered, "Operations", describing, "Constraints", constraints, "RetiringPrincipal", admin), kmsapi.InvalidArn, refused)
		e.fails("CreateGrant", obj("KeyId", m.KeyId, "GranteePrincipal", admin, "Operations", describing, "RetiringServicePrincipal", unregistered), kmsapi.InvalidArn, refused)
	}
	e.registered("s3.us-east-1.amazonaws.com", "s3.amazonaws.com")
	e.ok("CreateGrant", body("Constraints", constraints, "RetiringServicePrincipal", "s3.amazonaws.com"), &g)
	entry := e.grants("KeyId", m.KeyId).Grants[0]
	if entry.GranteeServicePrincipal != "S3.us-east-1.amazonaws.com" || entry.RetiringServicePrincipal != "s3.amazonaws.com" || entry.GranteePrincipal != "" ||
		entry.RetiringPrincipal != "" || entry.Constraints.SourceArn != source {
		t.Errorf("%+v", entry)
	}
	registrar := e.elsewhere()
	service := registrar.service("s3.us-east-1.amazonaws.com")
	describe := func(arn string) kmsapi.Code {
		signed := service.sign("DescribeKey", []byte(obj("KeyId", m.Arn)), sigv4.Header{Name: []byte("x-amz-source-arn"), Value: []byte(arn)})
		return service.Serve(t.Context(), &Request{Signed: signed}).Code
	}
	if describe(source) != kmsapi.OK || describe(source+"2") != kmsapi.AccessDenied || describe("") != kmsapi.AccessDenied {
		t.Error("SourceArn does not hold")
	}
	registrar.service("sqs.us-east-1.amazonaws.com").fails("RetireGrant", obj("GrantToken", g.GrantToken), kmsapi.AccessDenied, "*")
	registrar.service("s3.amazonaws.com").ok("RetireGrant", obj("GrantToken", g.GrantToken), nil)

	for _, c := range []struct{ body, message string }{
		{body("RetiringPrincipal", admin), "A grant to a service principal must have the grant constraint SourceArn."},
		{body("Constraints", constraints), "A grant to a service principal must have a RetiringPrincipal or RetiringServicePrincipal."},
		{body("Constraints", constraints, "RetiringPrincipal", admin, "RetiringServicePrincipal", "s3.amazonaws.com"),
			"You cannot specify RetiringPrincipal and RetiringServicePrincipal in the same request."},
		{body("Constraints", constraints, "RetiringPrincipal", admin, "GranteePrincipal", admin), "You must specify either GranteePrincipal or GranteeServicePrincipal."},
	} {
		e.fails("CreateGrant", c.body, kmsapi.Validation, c.message)
	}
	e.ok("CreateGrant", body("Constraints", constraints, "RetiringPrincipal", admin), &g)
	e.fails("ListGrants", obj("KeyId", m.KeyId, "GranteeServicePrincipal", "s3.us-east-1.amazonaws.com"), kmsapi.Validation, "GranteeServicePrincipal can be used by service principals only.")
	e.ok("PutKeyPolicy", obj("KeyId", m.KeyId, "Policy", keyPolicyOf(e, `{"Effect":"Allow","Principal":{"Service":"s3.us-east-1.amazonaws.com"},"Action":"kms:ListGrants","Resource":"*"}`)), nil)
	e.grant(m.KeyId, admin, describing)
	if got := service.grants("KeyId", m.Arn, "GranteeServicePrincipal", "s3.us-east-1.amazonaws.com"); fmt.Sprint(got.ids()) != fmt.Sprint([]string{g.GrantId}) {
		t.Errorf("%+v", got)
	}
	service.fails("ListRetirableGrants", obj("RetiringServicePrincipal", "s3.us-east-1.amazonaws.com"), kmsapi.AccessDenied, "*")
}

func TestCreateGrantRefusals(t *testing.T) {
	e := newEnv(t)
	m := e.create("{}")
	admin := "arn:aws:iam::" + e.account.String() + ":user/administrator"
	e.published.take()
	body := func(pairs ...any) string {
		m := map[string]any{"KeyId": m.KeyId, "GranteePrincipal": admin, "Operations": describing}
		for i := 0; i < len(pairs); i += 2 {
			if m[pairs[i].(string)] = pairs[i+1]; pairs[i+1] == nil {
				delete(m, pairs[i].(string))
			}
		}
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	context := func(pairs, length int) map[string]any {
		c := map[string]string{}
		for i := range pairs {
			c[fmt.Sprint(i)] = strings.Repeat("ü", length)
		}
		return map[string]any{"EncryptionContextEquals": c}
	}
	const one = "1 validation error detected: "
	for _, c := range []struct {
		body    string
		code    kmsapi.Code
		message string
	}{
		{"{}", kmsapi.Validation, "2 validation errors detected: Value null at 'keyId' failed to satisfy constraint: Member must not be null; " +
			"Value null at 'operations' failed to satisfy constraint: Member must not be null"},
		{body("Operations", []string{"Encrypt", "Destroy"}), kmsapi.Validation, one + "Value 'Destroy' at 'operations.2.member' failed to satisfy constraint: " +
			"Member must satisfy enum value set: [" + strings.Join(grantOperations.Names(), ", ") + "]"},
		{body("Operations", []any{nil}), kmsapi.Validation, one + "Value null at 'operations.1.member' failed to satisfy constraint: Member must not be null"},
		{body("GranteePrincipal", "a b"), kmsapi.Validation, one + `Value 'a b' at 'granteePrincipal' failed to satisfy constraint: Member must satisfy regular expression pattern: ^[\w+=,.@:/-]+$`},
		{body("RetiringPrincipal", strings.Repeat("a", 257)), kmsapi.Validation, "*"},
		{body("Name", "ü"), kmsapi.Validation, one + `Value 'ü' at 'name' failed to satisfy constraint: Member must satisfy regular expression pattern: ^[a-zA-Z0-9:/_-]+$`},
		{body("Name", strings.Repeat("n", kmsapi.GrantNameMax+1)), kmsapi.Validation, "*"},
		{body("GranteePrincipal", nil, "GranteeServicePrincipal", "s3.amazonaws"), kmsapi.Validation, one + `Value 's3.amazonaws' at 'granteeServicePrincipal' failed to ` +
			`satisfy constraint: Member must satisfy regular expression pattern: ^([A-Za-z0-9\-]+)\.([A-Za-z0-9\-]+)(\.[A-Za-z0-9\-]+)+$`},
		{body("Constraints", map[string]any{"SourceArn": "arn:aws:s3:::bucket-of-mine"}), kmsapi.Validation, one + "Value 'arn:aws:s3:::bucket-of-mine' at 'constraints.sourceArn' " +
			"failed to satisfy constraint: Member must satisfy regular expression pattern: ^arn:aws[a-z0-9-]*:[a-z0-9-]+:[a-z0-9-]*:[0-9]{12}:.+$"},
		{body("Constraints", map[string]any{"SourceArn": "arn:aws:s3::1111"}), kmsapi.Validation, "*"},
		{body("Constraints", map[string]any{"EncryptionContextSubset": map[string]any{"a": nil}}), kmsapi.Validation, one + "Value null at " +
			"'constraints.encryptionContextSubset.a.member' failed to satisfy constraint: Member must not be null"},
		{body("Constraints", map[string]any{"EncryptionContextSubset": map[string]any{"a": 1}}), kmsapi.Serialization, "NUMBER_VALUE can not be converted to a String"},
		{body("Constraints", map[string]any{"EncryptionContextSubset": "x"}), kmsapi.Serialization, "Expected null"},
		{body("Constraints", "x"), kmsapi.Serialization, "Expected null"},
		{body("GrantTokens", []string{"1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11"}), kmsapi.Validation, "*"},

		{body("GranteePrincipal", nil), kmsapi.Validation, "You must specify either GranteePrincipal or GranteeServicePrincipal."},
		{body("Operations", []string{}), kmsapi.Validation, "A grant must have at least one operation."},
		{body("Constraints", context(kmsapi.GrantPairsMax+1, 1)), kmsapi.Validation, "A grant constraint can have at most 8 encryption context pairs."},
		{body("Constraints", context(1, kmsapi.GrantValueMax+1)), kmsapi.Validation, "An encryption context value in a grant constraint can have at most 384 characters."},

		{body("KeyId", "alias/x"), kmsapi.NotFound, "*"},
		{body("KeyId", strings.Repeat("0", 8)+m.KeyId[8:]), kmsapi.NotFound, "*"},
		{body("GrantTokens", []string{"x"}), kmsapi.InvalidGrantToken, ""},
		{body("Operations", []string{"Decrypt", "Sign"}), kmsapi.Validation, "Grant operation Sign is not valid for a KMS key with KeySpec SYMMETRIC_DEFAULT and KeyUsage ENCRYPT_DECRYPT."},
		{body("Operations", []string{"GetPublicKey"}), kmsapi.Validation, "*"},
		{body("GranteePrincipal", admin+"2"), kmsapi.InvalidArn, "ARN does not refer to a valid principal: " + admin + "2"},
		{body("GranteePrincipal", e.account.String()), kmsapi.InvalidArn, "*"},
		{body("GranteePrincipal", "arn:aws:iam::"+e.account.String()+":group/administrators"), kmsapi.InvalidArn, "*"},
		{body("RetiringPrincipal", "arn:aws:iam::999999999999:root"), kmsapi.InvalidArn, "*"},
		{body("RetiringPrincipal", "s3.amazonaws.com"), kmsapi.InvalidArn, "*"},
	} {
		e.fails("CreateGrant", c.body, c.code, c.message)
		if c.body != "{}" {
			e.fails("CreateGrant", strings.Replace(c.body, "{", `{"DryRun":true,`, 1), c.code, "*")
		}
	}
	if got := e.published.take(); got != "" {
		t.Errorf("published %q", got)
	}
	for _, fine := range []string{
		body("Constraints", context(kmsapi.GrantPairsMax, kmsapi.GrantValueMax)), body("Name", strings.Repeat("n", kmsapi.GrantNameMax)),
		body("Operations", []string{"Encrypt", "Decrypt", "ReEncryptFrom", "ReEncryptTo", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext", "GenerateDataKeyPair",
			"GenerateDataKeyPairWithoutPlaintext", "CreateGrant", "RetireGrant", "DescribeKey"}),
		body("GrantTokens", []string{}), body("Constraints", map[string]any{"SourceArn": "arn:aws-cn:s3:x-1:111122223333:" + strings.Repeat("x", kmsapi.SourceArnMax-31)}),
	} {
		if resp := e.call("CreateGrant", fine); resp.Code != kmsapi.OK {
			t.Errorf("%.300s: %s", fine, resp.Body)
		}
	}
}

// What each spec and usage can be granted.
func TestGrantsSuitKeys(t *testing.T) {
	every := "CreateGrant DescribeKey RetireGrant"
	for key, want := range map[[2]string]string{
		{"SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT"}:  "Decrypt Encrypt GenerateDataKey GenerateDataKeyPair GenerateDataKeyPairWithoutPlaintext GenerateDataKeyWithoutPlaintext ReEncryptFrom ReEncryptTo",
		{"RSA_2048", "ENCRYPT_DECRYPT"}:           "Decrypt Encrypt GetPublicKey ReEncryptFrom ReEncryptTo",
		{"RSA_2048", "SIGN_VERIFY"}:               "GetPublicKey Sign Verify",
		{"ECC_NIST_P256", "KEY_AGREEMENT"}:        "DeriveSharedSecret GetPublicKey",
		{"HMAC_256", "GENERATE_VERIFY_MAC"}:       "GenerateMac VerifyMac",
		{"ML_KEM_768", "ENCAPSULATE_DECAPSULATE"}: "Decapsulate Encapsulate GetPublicKey",
		{"ML_DSA_44", "SIGN_VERIFY"}:              "GetPublicKey Sign Verify",
		{"ECC_NIST_P256", "UNKNOWN"}:              "GetPublicKey",
	} {
		var got []string
		for _, op := range grantOperations.Names() {
			if suits(&authz.Grant{Operations: authz.ParseOperation(op)}, key[0], key[1]) == nil {
				got = append(got, op)
			}
		}
		all := append(strings.Fields(want), strings.Fields(every)...)
		slices.Sort(all)
		slices.Sort(got)
		if !slices.Equal(got, all) {
			t.Errorf("%v: %v, want %v", key, got, all)
		}
		constrained := &authz.Grant{Operations: authz.OpDescribeKey, HasSubset: true}
		if err := suits(constrained, key[0], key[1]); (err == nil) != (key[0] == "SYMMETRIC_DEFAULT") {
			t.Errorf("%v with a context: %v", key, err)
		}
	}
}

// Whom a grant is for: DescribeKey through it, and by nothing else.
func TestGrantees(t *testing.T) {
	e := newEnv(t)
	m := e.create("{}")
	far := e.elsewhere()
	may := statement("Allow", "kms:DescribeKey", anyResource)
	callers := map[string]*env{
		"user": e.user("one"), "user with": e.user("two", may), "session": e.session("role", "s1"), "other session": e.session("role", "s2"),
		"session of another role": e.session("role2", "s1"), "root": e.root(e.account), "far user": far.user("one"), "far user with": far.user("two", may),
		"far session": far.session("role", "s1"), "far session with": far.session("role3", "s1", may), "far root": far,
	}
	always := []string{"user with", "root"} // whom the default key policy lets by their account
	for grantee, want := range map[string][]string{
		callers["user"].who.ARN:                        {"user"},
		callers["session"].who.RoleARN:                 {"session", "other session"},
		callers["session"].who.ARN:                     {"session"},
		"arn:aws:iam::" + e.account.String() + ":root": {}, // those of always
		callers["far user"].who.ARN:                    {"far user"},
		callers["far session"].who.RoleARN:             {"far session"},
		callers["far session"].who.ARN:                 {"far session"},
		far.who.ARN:                                    {"far user with", "far session with", "far root"},
	} {
		g := e.grant(m.KeyId, grantee, describing)
		for name, who := range callers {
			if got, want := who.sees(m.Arn), slices.Contains(want, name) || slices.Contains(always, name); got != want {
				t.Errorf("granted to %s: %s %v, want %v", grantee, name, got, want)
			}
		}
		e.ok("RevokeGrant", obj("KeyId", m.KeyId, "GrantId", g.GrantId), nil)
		for name, who := range callers {
			if got, want := who.sees(m.Arn), slices.Contains(always, name); got != want {
				t.Errorf("revoked from %s: %s %v, want %v", grantee, name, got, want)
			}
		}
	}
	// A grant is to the principal that had the name when it was made.
	user := callers["user"]
	e.grant(m.KeyId, user.who.ARN, describing)
	w := *user.who
	w.ID, w.Grantees = "AIDAANOTHER", [3]string{"AIDAANOTHER", "", e.account.String()}
	if !user.sees(m.Arn) || e.as(&w).sees(m.Arn) {
		t.Error("a user of the same name made later has the grant")
	}
	// No grant overrides a Deny.
	denied := e.user("denied", statement("Deny", "kms:DescribeKey", anyResource))
	e.grant(m.KeyId, denied.who.ARN, describing)
	if denied.sees(m.Arn) {
		t.Error("a grant overrides a Deny")
	}
}

func TestCovers(t *testing.T) {
	pairs := func(s string) (list []authz.Pair) {
		for _, p := range strings.Fields(s) {
			k, v, _ := strings.Cut(p, "=")
			list = append(list, authz.Pair{Key: []byte(k), Value: []byte(v)})
		}
		return list
	}
	// A grant is written ops | equals | subset | source; "-" for no constraint.
	parse := func(s string) *authz.Grant {
		f := strings.Split(s, "|")
		g := &authz.Grant{Equals: pairs(strings.TrimSpace(f[1])), Subset: pairs(strings.TrimSpace(f[2])), SourceARN: strings.TrimSpace(f[3])}
		for _, op := range strings.Fields(f[0]) {
			g.Operations |= authz.ParseOperation(op)
		}
		g.HasEquals, g.HasSubset = strings.TrimSpace(f[1]) != "-", strings.TrimSpace(f[2]) != "-"
		if !g.HasEquals {
			g.Equals = nil
		}
		if !g.HasSubset {
			g.Subset = nil
		}
		return g
	}
	for _, c := range []struct {
		parent, child string
		want          bool
	}{
		{"Decrypt|-|-|", "Decrypt|-|-|", true}, {"Decrypt CreateGrant|-|-|", "Decrypt|-|-|", true}, {"Decrypt|-|-|", "Decrypt Encrypt|-|-|", false},
		{"Decrypt|-|-|", "Encrypt|-|-|", false}, {"Decrypt|-|-|", "Decrypt|a=1|-|", true}, {"Decrypt|-|-|", "Decrypt|-|a=1|", true}, {"Decrypt|-|-|", "Decrypt|-|-|arn", true},
		{"Decrypt|-|a=1|", "Decrypt|-|-|", false}, {"Decrypt|-|a=1|", "Decrypt|-|a=1|", true}, {"Decrypt|-|a=1|", "Decrypt|-|a=1 b=2|", true},
		{"Decrypt|-|a=1 b=2|", "Decrypt|-|a=1|", false}, {"Decrypt|-|a=1|", "Decrypt|-|a=2|", false}, {"Decrypt|-|a=1|", "Decrypt|-|A=1|", false},
		{"Decrypt|-|a=1|", "Decrypt|a=1|-|", true}, {"Decrypt|-|a=1|", "Decrypt|a=1 b=2|-|", true}, {"Decrypt|-|a=1|", "Decrypt|b=2|-|", false},
		{"Decrypt|-|a=1 b=2|", "Decrypt|a=1 b=2|a=1|", true}, {"Decrypt|-|a=1|", "Decrypt||-|", false}, {"Decrypt|-||", "Decrypt|-|-|", false}, {"Decrypt|-||", "Decrypt|-||", true},
		{"Decrypt|a=1|-|", "Decrypt|a=1|-|", true}, {"Decrypt|a=1|-|", "Decrypt|-|a=1|", false}, {"Decrypt|a=1|-|", "Decrypt|-|-|", false},
		{"Decrypt|a=1|-|", "Decrypt|a=1 b=2|-|", false}, {"Decrypt|a=1|-|", "Decrypt|a=2|-|", false}, {"Decrypt||-|", "Decrypt||-|", true}, {"Decrypt||-|", "Decrypt|a=1|-|", false},
		{"Decrypt|a=1|-|", "Decrypt|a=1|b=2|", true}, {"Decrypt|a=1|b=2|", "Decrypt|a=1|-|", false}, {"Decrypt|a=1 b=2|b=2|", "Decrypt|a=1 b=2|-|", true},
		{"Decrypt|-|-|arn", "Decrypt|-|-|arn", true}, {"Decrypt|-|-|arn", "Decrypt|-|-|", false}, {"Decrypt|-|-|arn", "Decrypt|-|-|arn2", false},
	} {
		if got := covers(parse(c.parent), parse(c.child)); got != c.want {
			t.Errorf("%s covers %s: %v", c.parent, c.child, got)
		}
	}
}

// Whoever may make grants by a grant alone gives on no more than that; by a key policy there is no such limit.
func TestChildGrants(t *testing.T) {
	e := newEnv(t)
	m := e.create("{}")
	maker, child := e.user("maker"), e.user("child")
	context := raw(`{"EncryptionContextSubset":{"a":"1"}}`)
	e.grant(m.KeyId, maker.who.ARN, []string{"Encrypt", "CreateGrant"})
	parent := e.grant(m.KeyId, maker.who.ARN, []string{"CreateGrant", "DescribeKey", "Decrypt"}, "Constraints", context)
	denied := "User: " + maker.who.ARN + " is not authorized to perform: kms:CreateGrant on resource: " + m.Arn + " because no identity-based policy allows the kms:CreateGrant action"
	body := func(operations []string, pairs ...any) string {
		return obj(append([]any{"KeyId", m.KeyId, "GranteePrincipal", child.who.ARN, "Operations", operations}, pairs...)...)
	}
	for _, refused := range []string{
		body([]string{"Decrypt"}), body([]string{"GenerateDataKey"}), body([]string{"RetireGrant"}), body([]string{"Encrypt", "Decrypt"}, "Constraints", context),
		body([]string{"Decrypt"}, "Constraints", raw(`{"EncryptionContextSubset":{"a":"2"}}`)), body([]string{"Decrypt"}, "Constraints", raw(`{"EncryptionContextEquals":{}}`)),
	} {
		maker.fails("CreateGrant", refused, kmsapi.AccessDenied, denied)
	}
	for _, fine := range []string{
		body([]string{"Encrypt"}), body([]string{"Encrypt", "CreateGrant"}), body([]string{"Decrypt", "DescribeKey", "CreateGrant"}, "Constraints", context),
		body([]string{"Decrypt"}, "Constraints", raw(`{"EncryptionContextSubset":{"a":"1","b":"2"}}`)),
		body([]string{"Decrypt"}, "Constraints", raw(`{"EncryptionContextEquals":{"b":"2","a":"1"}}`), "GrantTokens", []string{parent.GrantToken}),
	} {
		maker.ok("CreateGrant", fine, &createGrantOut{})
	}
	if !child.sees(m.KeyId) {
		t.Error("the child grant does not hold")
	}
	child.fails("CreateGrant", body([]string{"Decrypt"}), kmsapi.AccessDenied, "*")
	child.ok("CreateGrant", body([]string{"Decrypt"}, "Constraints", context), &createGrantOut{}) // a grandchild
	// A child outlives its parent; it is a grant like others. Nobody makes another.
	e.ok("RevokeGrant", obj("KeyId", m.KeyId, "GrantId", parent.GrantId), nil)
	if !child.sees(m.KeyId) {
		t.Error("the child grant went with its parent")
	}
	maker.fails("CreateGrant", body([]string{"Decrypt"}, "Constraints", context), kmsapi.AccessDenied, denied)
	e.user("policy", statement("Allow", "kms:CreateGrant", anyResource)).ok("CreateGrant", body([]string{"Decrypt"}), &createGrantOut{})
	// From another account, on a grant alone.
	far := e.elsewhere().user("far")
	e.grant(m.KeyId, far.who.ARN, []string{"CreateGrant", "DescribeKey"})
	far.grant(m.Arn, child.who.ARN, describing)
	list := e.grants("KeyId", m.KeyId)
	if !slices.ContainsFunc(list.Grants, func(g grantWire) bool {
		return g.IssuingAccount == "arn:aws:iam::"+far.account.String()+":root"
	}) {
		t.Errorf("nothing was issued by the other account: %+v", list)
	}
}

// Tokens: any of this server is taken, whatever it names; anything else is refused where the operation has an exception for it.
func TestGrantTokens(t *testing.T) {
	e := newEnv(t)
	m, other := e.create("{}"), e.create("{}")
	user := e.user("user")
	g := e.grant(m.KeyId, user.who.ARN, []string{"DescribeKey", "CreateGrant", "RetireGrant"})
	elsewhere := e.grant(other.KeyId, user.who.ARN, describing)
	again := e.grant(m.KeyId, user.who.ARN, describing, "Name", "n")
	if same := e.grant(m.KeyId, user.who.ARN, describing, "Name", "n"); same.GrantId != again.GrantId || same.GrantToken == again.GrantToken {
		t.Errorf("%+v and %+v: want one ID and two tokens", same, again)
	}
	var out metadataReply
	user.ok("DescribeKey", obj("KeyId", m.KeyId, "GrantTokens", []string{g.GrantToken, elsewhere.GrantToken}), &out)
	user.ok("CreateGrant", obj("KeyId", m.KeyId, "GranteePrincipal", user.who.ARN, "Operations", describing, "GrantTokens", []string{elsewhere.GrantToken, g.GrantToken}), &createGrantOut{})
	for _, bad := range []string{"x", g.GrantToken[1:], g.GrantToken + "A", strings.ToLower(g.GrantToken), strings.Repeat("A", granttoken.Len), strings.Repeat("A", kmsapi.GrantTokenMax)} {
		user.fails("RetireGrant", obj("GrantToken", bad), kmsapi.InvalidGrantToken, "")
		user.fails("CreateGrant", obj("KeyId", m.KeyId, "GranteePrincipal", user.who.ARN, "Operations", describing, "GrantTokens", []string{g.GrantToken, bad}), kmsapi.InvalidGrantToken, "")
	}
	user.fails("RetireGrant", obj("GrantToken", strings.Repeat("A", kmsapi.GrantTokenMax+1)), kmsapi.Validation, "*")
	// A token is no permission: one of a grant to somebody else does not help.
	e.user("thief").fails("DescribeKey", obj("KeyId", m.KeyId, "GrantTokens", []string{g.GrantToken}), kmsapi.AccessDenied, "*")
	e.user("thief").fails("RetireGrant", obj("GrantToken", g.GrantToken), kmsapi.AccessDenied, "*")
}

func TestGrantNames(t *testing.T) {
	e := newEnv(t)
	m := e.create("{}")
	user := e.user("user")
	base := []any{"Name", "n", "RetiringPrincipal", user.who.ARN, "Constraints", raw(`{"EncryptionContextEquals":{"a":"1","b":"2"}}`)}
	first := e.grant(m.KeyId, user.who.ARN, []string{"Encrypt", "Decrypt"}, base...)
	e.clock.add(time.Hour)
	if g := e.grant(m.Arn, user.who.ARN, []string{"Decrypt", "Encrypt"}, "Name", "n", "RetiringPrincipal", user.who.ARN, "Constraints", raw(`{"EncryptionContextEquals":{"b":"2","a":"1"}}`)); g.GrantId != first.GrantId {
		t.Error("the same grant was made twice")
	}
	e.fails("CreateGrant", obj(append([]any{"KeyId", m.KeyId, "GranteePrincipal", user.who.ARN, "Operations", []string{"Encrypt", "Decrypt"}, "DryRun", true}, base...)...), kmsapi.DryRunOperation, "*")
	if g := e.grant(m.KeyId, user.who.ARN, []string{"Encrypt"}, base...); g.GrantId == first.GrantId {
		t.Error("other operations, the same grant")
	}
	if a, b := e.grant(m.KeyId, user.who.ARN, describing), e.grant(m.KeyId, user.who.ARN, describing); a.GrantId == b.GrantId {
		t.Error("grants without a name are one")
	}
	var group sync.WaitGroup
	ids := make([]string, 16)
	for i := range ids {
		group.Go(func() {
			var out createGrantOut
			e.ok("CreateGrant", obj("KeyId", m.KeyId, "GranteePrincipal", user.who.ARN, "Operations", describing, "Name", "parallel"), &out)
			ids[i] = out.GrantId
		})
	}
	group.Wait()
	if slices.Sort(ids); ids[0] != ids[len(ids)-1] {
		t.Errorf("one name, several grants: %v", slices.Compact(ids))
	}
	if n := len(e.grants("KeyId", m.KeyId).Grants); n != 5 {
		t.Errorf("%d grants", n)
	}
}

func TestGrantLimit(t *testing.T) {
	e := newEnv(t)
	if n := e.quotaOf(e.account, quota.GrantsPerKey); n != 50_000 {
		t.Errorf("the limit is %d", n)
	}
	e.quotas = &fixedQuotas{max: map[string]int{quota.GrantsPerKey: 5}}
	m := e.create("{}")
	user := e.user("user")
	named := e.grant(m.KeyId, user.who.ARN, describing, "Name", "n")
	body := obj("KeyId", m.KeyId, "GranteePrincipal", user.who.ARN, "Operations", describing)
	var group sync.WaitGroup
	codes := make([]kmsapi.Code, 16)
	for i := range codes {
		group.Go(func() { codes[i] = e.call("CreateGrant", body).Code })
	}
	group.Wait()
	made := 0
	for _, c := range codes {
		if c == kmsapi.OK {
			made++
		} else if c != kmsapi.LimitExceeded {
			t.Error(c)
		}
	}
	list := e.grants("KeyId", m.KeyId)
	if made != 4 || len(list.Grants) != 5 {
		t.Errorf("%d made, %d there", made, len(list.Grants))
	}
	e.fails("CreateGrant", body, kmsapi.LimitExceeded, "The key "+m.Arn+" has reached the limit of grants.")
	e.fails("CreateGrant", strings.Replace(body, "{", `{"DryRun":true,`, 1), kmsapi.LimitExceeded, "*")
	if g := e.grant(m.KeyId, user.who.ARN, describing, "Name", "n"); g.GrantId != named.GrantId {
		t.Error("at the limit, a grant of the same name is another")
	}
	user.fails("CreateGrant", body, kmsapi.AccessDenied, "*")
	e.ok("RevokeGrant", obj("KeyId", m.KeyId, "GrantId", list.Grants[0].GrantId), nil)
	e.grant(m.KeyId, user.who.ARN, describing)
	e.grant(e.create("{}").KeyId, user.who.ARN, describing) // other keys count for themselves
}

// Who may retire a grant: the retiring principal, the grantee if the grant says so, and whom the issuing account lets.
func TestRetireGrant(t *testing.T) {
	e := newEnv(t)
	far := e.elsewhere()
	retire := statement("Allow", "kms:RetireGrant", anyResource)
	// The Deny knows whose key it is.
	policy := keyPolicyOf(e, `{"Effect":"Allow","Principal":"*","Action":["kms:CreateGrant","kms:RetireGrant"],"Resource":"*"},`+
		`{"Effect":"Deny","Principal":"*","Action":"kms:RetireGrant","Resource":"*","Condition":{"StringNotEquals":{"aws:ResourceAccount":"`+e.account.String()+`"}}}`)
	m := e.create(obj("Policy", policy))
	callers := map[string]*env{
		"retiring": e.user("retiring"), "grantee": e.user("grantee"), "bystander": e.user("bystander"), "allowed": e.user("allowed", retire), "root": e.root(e.account),
		"session": e.session("r", "s"), "far": far.user("far"), "far allowed": far.user("allowed", retire), "far root": far,
		"far session": far.session("r", "s"), "denied": e.user("denied", statement("Deny", "kms:RetireGrant", anyResource)),
	}
	maker := map[string]*env{"e": e, "far": far.user("maker", statement("Allow", "kms:CreateGrant", anyResource))}
	arn := func(name string) string { return callers[name].who.ARN }
	issuers := map[string][]string{"e": {"allowed", "root"}, "far": {"far allowed", "far root"}}
	for i, c := range []struct {
		maker, grantee, retiring string
		operations               []string
		may                      []string
	}{
		{"e", arn("grantee"), "", describing, nil},
		{"e", arn("grantee"), "", []string{"RetireGrant"}, []string{"grantee"}},
		{"e", arn("grantee"), arn("retiring"), describing, []string{"retiring"}},
		{"e", arn("grantee"), arn("retiring"), []string{"RetireGrant", "DescribeKey"}, []string{"retiring", "grantee"}},
		{"e", callers["session"].who.RoleARN, arn("far"), []string{"RetireGrant"}, []string{"session", "far"}},
		{"e", arn("grantee"), callers["far session"].who.RoleARN, describing, []string{"far session"}},
		{"e", arn("grantee"), callers["far session"].who.ARN, describing, []string{"far session"}},
		{"e", arn("grantee"), far.who.ARN, describing, []string{"far allowed", "far root"}},
		{"e", arn("denied"), arn("denied"), []string{"RetireGrant"}, nil},
		{"far", arn("grantee"), "", describing, nil},
		{"far", arn("grantee"), arn("retiring"), describing, []string{"retiring"}},
	} {
		may := append(issuers[c.maker], c.may...)
		for name, who := range callers {
			pairs := []any{"Constraints", raw(`{"EncryptionContextSubset":{"a":"1"}}`)}
			if c.retiring != "" {
				pairs = append(pairs, "RetiringPrincipal", c.retiring)
			}
			g := maker[c.maker].grant(m.Arn, c.grantee, c.operations, pairs...)
			body := obj("GrantToken", g.GrantToken)
			if i%2 == 0 {
				body = obj("KeyId", m.Arn, "GrantId", g.GrantId)
			}
			dry := strings.Replace(body, "{", `{"DryRun":true,`, 1)
			if !slices.Contains(may, name) {
				who.fails("RetireGrant", body, kmsapi.AccessDenied, "*")
				who.fails("RetireGrant", dry, kmsapi.AccessDenied, "*")
				continue
			}
			who.fails("RetireGrant", dry, kmsapi.DryRunOperation, kmsapi.DryRunOperation.Text())
			who.ok("RetireGrant", body, nil)
		}
	}
	// A Deny of the key policy holds, with the grant's context for conditions to see.
	retiring := callers["retiring"]
	make := func(value string) createGrantOut {
		return e.grant(m.Arn, arn("grantee"), describing, "RetiringPrincipal", retiring.who.ARN, "Constraints", raw(`{"EncryptionContextEquals":{"a":"`+value+`"}}`))
	}
	kept, free := make("1"), make("2")
	byFar := e.grant(m.Arn, arn("grantee"), describing, "RetiringPrincipal", arn("far"), "Constraints", raw(`{"EncryptionContextEquals":{"a":"1"}}`))
	e.ok("PutKeyPolicy", obj("KeyId", m.Arn, "Policy", keyPolicyOf(e, `{"Effect":"Deny","Principal":"*","Action":"kms:RetireGrant","Resource":"*","Condition":{"StringEquals":{"kms:EncryptionContext:a":"1"}}}`)), nil)
	retiring.fails("RetireGrant", obj("GrantToken", kept.GrantToken), kmsapi.AccessDenied, "User: "+retiring.who.ARN+" is not authorized to perform: kms:RetireGrant on resource: "+m.Arn+
		" with an explicit deny in a resource-based policy")
	callers["far"].fails("RetireGrant", obj("GrantToken", byFar.GrantToken), kmsapi.AccessDenied, notThere(arn("far"), "RetireGrant"))
	retiring.ok("RetireGrant", obj("GrantToken", free.GrantToken), nil)

	// How a grant is named.
	const either = "You must specify either GrantToken, or KeyId and GrantId."
	for body, want := range map[string]struct {
		code    kmsapi.Code
		message string
	}{
		"{}": {kmsapi.Validation, either}, obj("KeyId", m.Arn): {kmsapi.Validation, either}, obj("GrantId", kept.GrantId): {kmsapi.Validation, either},
		obj("GrantToken", kept.GrantToken, "KeyId", m.Arn):          {kmsapi.Validation, either},
		obj("GrantToken", kept.GrantToken, "GrantId", kept.GrantId): {kmsapi.Validation, either},
		obj("KeyId", m.KeyId, "GrantId", kept.GrantId):              {kmsapi.InvalidArn, "Invalid arn '" + m.KeyId + "'"},
		obj("KeyId", "alias/x", "GrantId", kept.GrantId):            {kmsapi.NotFound, "*"},
		obj("KeyId", m.Arn, "GrantId", "x"):                         {kmsapi.InvalidGrantID, "Invalid grant ID x"},
		obj("KeyId", m.Arn, "GrantId", strings.Repeat("x", 129)):    {kmsapi.Validation, "*"},
		obj("KeyId", m.Arn, "GrantId", strings.Repeat("0", 64)):     {kmsapi.NotFound, "*"},
		obj("KeyId", "", "GrantId", kept.GrantId):                   {kmsapi.Validation, "*"},
	} {
		e.fails("RetireGrant", body, want.code, want.message)
	}
	// Nothing is said of a foreign key: no such key, no such grant and no permission are one.
	want := notThere(arn("far allowed"), "RetireGrant")
	for _, body := range []string{
		obj("KeyId", m.Arn, "GrantId", kept.GrantId), obj("KeyId", m.Arn, "GrantId", strings.Repeat("0", 64)),
		obj("KeyId", strings.Replace(m.Arn, m.KeyId[:8], "00000000", 1), "GrantId", kept.GrantId), obj("GrantToken", kept.GrantToken),
	} {
		callers["far allowed"].fails("RetireGrant", body, kmsapi.AccessDenied, want)
	}
}

func TestRevokeGrant(t *testing.T) {
	e := newEnv(t)
	m, other := e.create("{}"), e.create("{}")
	user := e.user("user")
	g := e.grant(m.KeyId, user.who.ARN, []string{"RetireGrant"})
	e.published.take()
	body := obj("KeyId", m.KeyId, "GrantId", g.GrantId)
	user.fails("RevokeGrant", body, kmsapi.AccessDenied, "*") // RetireGrant is not RevokeGrant
	e.user("retirer", statement("Allow", "kms:RetireGrant", anyResource)).fails("RevokeGrant", body, kmsapi.AccessDenied, "*")
	e.fails("RevokeGrant", obj("KeyId", m.KeyId, "GrantId", g.GrantId, "DryRun", true), kmsapi.DryRunOperation, "*")
	e.fails("RevokeGrant", obj("KeyId", other.KeyId, "GrantId", g.GrantId), kmsapi.NotFound, "Grant ID "+g.GrantId+" is not found.")
	e.fails("RevokeGrant", obj("KeyId", other.KeyId, "GrantId", g.GrantId, "DryRun", true), kmsapi.NotFound, "*")
	for _, bad := range []string{"x", strings.ToUpper(g.GrantId), g.GrantId[1:], "../" + g.GrantId} {
		if bad != g.GrantId {
			e.fails("RevokeGrant", obj("KeyId", m.KeyId, "GrantId", bad), kmsapi.InvalidGrantID, "Invalid grant ID "+bad)
		}
	}
	e.fails("RevokeGrant", obj("KeyId", m.KeyId), kmsapi.Validation, "1 validation error detected: Value null at 'grantId' failed to satisfy constraint: Member must not be null")
	e.fails("RevokeGrant", obj("KeyId", m.KeyId, "GrantId", ""), kmsapi.Validation, "*")
	if got := e.published.take(); got != "" || len(e.grants("KeyId", m.KeyId).Grants) != 1 {
		t.Errorf("refusals published %q", got)
	}
	e.user("revoker", statement("Allow", "kms:RevokeGrant", anyResource)).ok("RevokeGrant", body, nil)
	// Two that revoke one grant: one of them does.
	g = e.grant(m.KeyId, user.who.ARN, describing)
	var group sync.WaitGroup
	codes := make([]kmsapi.Code, 8)
	for i := range codes {
		group.Go(func() { codes[i] = e.call("RevokeGrant", obj("KeyId", m.KeyId, "GrantId", g.GrantId)).Code })
	}
	group.Wait()
	slices.Sort(codes)
	if codes[0] != kmsapi.OK || codes[1] != kmsapi.NotFound || codes[7] != kmsapi.NotFound {
		t.Errorf("%v", codes)
	}
}

func TestListGrants(t *testing.T) {
	e := newEnv(t)
	m, other := e.create("{}"), e.create("{}")
	a, b := e.user("a"), e.user("b")
	var ids, ofB []string
	for i := range 7 {
		who := a
		if i%3 == 0 {
			who = b
		}
		g := e.grant(m.KeyId, who.who.ARN, describing)
		if ids = append(ids, g.GrantId); who == b {
			ofB = append(ofB, g.GrantId)
		}
	}
	slices.Sort(ids)
	slices.Sort(ofB)
	foreign := e.grant(other.KeyId, a.who.ARN, describing)
	pages := func(want int, pairs ...any) (found []string) {
		t.Helper()
		marker := ""
		for n := 1; ; n++ {
			in := append([]any{"KeyId", m.KeyId}, pairs...)
			if marker != "" {
				in = append(in, "Marker", marker)
			}
			out := e.grants(in...)
			found = append(found, out.ids()...)
			if marker = out.NextMarker; out.Truncated != (marker != "") {
				t.Fatalf("%+v", out)
			}
			if !out.Truncated {
				if n != want {
					t.Errorf("%v: %d pages, want %d", pairs, n, want)
				}
				return found
			}
		}
	}
	for _, c := range []struct {
		pairs []any
		pages int
		want  []string
	}{
		{nil, 1, ids}, {[]any{"Limit", 3}, 3, ids}, {[]any{"Limit", 7}, 1, ids}, {[]any{"Limit", 6}, 2, ids}, {[]any{"Limit", 100}, 1, ids}, {[]any{"Limit", 1}, 7, ids},
		{[]any{"GranteePrincipal", b.who.ARN}, 1, ofB}, {[]any{"GrantId", ids[2]}, 1, ids[2:3]}, {[]any{"GrantId", foreign.GrantId}, 1, nil},
		{[]any{"GrantId", ofB[0], "GranteePrincipal", b.who.ARN}, 1, ofB[:1]}, {[]any{"GrantId", ofB[0], "GranteePrincipal", a.who.ARN}, 1, nil},
		{[]any{"GranteePrincipal", "arn:aws:iam::999999999999:root"}, 1, nil},
	} {
		if got := pages(c.pages, c.pairs...); !slices.Equal(got, c.want) {
			t.Errorf("%v: %v, want %v", c.pairs, got, c.want)
		}
	}
	first := e.grants("KeyId", m.KeyId, "GranteePrincipal", b.who.ARN, "Limit", 2)
	if !first.Truncated || !slices.Equal(first.ids(), ofB[:2]) {
		t.Errorf("%+v", first)
	}
	if rest := e.grants("KeyId", m.KeyId, "GranteePrincipal", b.who.ARN, "Limit", 2, "Marker", first.NextMarker); rest.Truncated || !slices.Equal(rest.ids(), ofB[2:]) {
		t.Errorf("%+v", rest)
	}
	// A marker is for the list that gave it.
	marker := e.grants("KeyId", m.KeyId, "Limit", 1).NextMarker
	for _, body := range []string{
		obj("KeyId", other.KeyId, "Marker", marker), obj("KeyId", m.KeyId, "Marker", marker, "GranteePrincipal", b.who.ARN), obj("KeyId", m.KeyId, "Marker", marker[1:]),
		obj("KeyId", m.KeyId, "Marker", "x"), obj("KeyId", m.KeyId, "Marker", first.NextMarker),
	} {
		e.fails("ListGrants", body, kmsapi.InvalidMarker, "*")
	}
	e.fails("ListRetirableGrants", obj("RetiringPrincipal", a.who.ARN, "Marker", marker), kmsapi.InvalidMarker, "*")
	for _, limit := range []int{0, 101} {
		e.fails("ListGrants", obj("KeyId", m.KeyId, "Limit", limit), kmsapi.Validation, "*")
		e.fails("ListRetirableGrants", obj("RetiringPrincipal", a.who.ARN, "Limit", limit), kmsapi.Validation, "*")
	}
	e.fails("ListGrants", obj("KeyId", m.KeyId, "GrantId", "x"), kmsapi.InvalidGrantID, "Invalid grant ID x")
	// The last grant of a page may be gone when the next is asked for.
	e.ok("RevokeGrant", obj("KeyId", m.KeyId, "GrantId", ids[0]), nil)
	if got := e.grants("KeyId", m.KeyId, "Marker", marker); !slices.Equal(got.ids(), ids[1:]) {
		t.Errorf("%v", got.ids())
	}
}

func TestListRetirableGrants(t *testing.T) {
	e := deletionEnv(t, "eu-test-9")
	far := e.elsewhere()
	retiring := e.session("role", "s")
	admin := "arn:aws:iam::" + e.account.String() + ":user/administrator"
	keys := []*env{e, e, far}
	var ids []string
	var arns []string
	for i, owner := range keys {
		m := owner.create("{}")
		arns = append(arns, m.Arn)
		for range 3 {
			ids = append(ids, owner.grant(m.KeyId, admin, describing, "RetiringPrincipal", retiring.who.RoleARN).GrantId)
		}
		owner.grant(m.KeyId, admin, describing, "RetiringPrincipal", retiring.who.ARN)
		owner.grant(m.KeyId, retiring.who.RoleARN, []string{"RetireGrant"}) // a grantee is no retiring principal
		if i == 1 {
			owner.ok("ScheduleKeyDeletion", obj("KeyId", m.KeyId, "PendingWindowInDays", 7), &map[string]any{})
		}
	}
	slices.Sort(ids)
	list := func(limit int) (found, of []string) {
		t.Helper()
		for marker := raw("null"); ; {
			var out grantReply
			e.ok("ListRetirableGrants", obj("RetiringPrincipal", retiring.who.RoleARN, "Limit", limit, "Marker", marker), &out)
			if len(out.Grants) > limit || out.Truncated && len(out.Grants) < limit {
				t.Errorf("%d grants in a page of %d, and more %v", len(out.Grants), limit, out.Truncated)
			}
			for _, g := range out.Grants {
				if g.RetiringPrincipal != retiring.who.RoleARN {
					t.Errorf("%+v", g)
				}
				of = append(of, g.KeyId)
			}
			if found = append(found, out.ids()...); !out.Truncated {
				slices.Sort(found)
				slices.Sort(of)
				return found, slices.Compact(of)
			}
			marker = raw(`"` + out.NextMarker + `"`)
		}
	}
	slices.Sort(arns)
	for _, limit := range []int{1, 4, 9, 100} {
		if got, of := list(limit); !slices.Equal(got, ids) || !slices.Equal(of, arns) {
			t.Errorf("limit %d: %v of %v", limit, got, of)
		}
	}
	var out grantReply
	e.ok("ListRetirableGrants", obj("RetiringPrincipal", retiring.who.ARN), &out)
	if len(out.Grants) != 3 {
		t.Errorf("of the session: %+v", out)
	}
	e.work()
	e.clock.add(8 * 24 * time.Hour)
	if err := e.deleteDue(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, of := list(2); len(got) != 6 || len(of) != 2 {
		t.Errorf("after a key was deleted: %v of %v", got, of)
	}
	// The permission is one on the principal, in the caller's account.
	one := e.user("one", statement("Allow", "kms:ListRetirableGrants", `"Resource":"`+retiring.who.RoleARN+`"`))
	one.ok("ListRetirableGrants", obj("RetiringPrincipal", retiring.who.RoleARN), &out)
	one.fails("ListRetirableGrants", obj("RetiringPrincipal", retiring.who.ARN), kmsapi.AccessDenied, "*")
	far.fails("ListRetirableGrants", obj("RetiringPrincipal", retiring.who.RoleARN), kmsapi.AccessDenied, notThere(far.who.ARN, "ListRetirableGrants"))
	far.fails("ListRetirableGrants", obj("RetiringPrincipal", "arn:aws:iam::"+e.account.String()+":user/nobody"), kmsapi.AccessDenied, notThere(far.who.ARN, "ListRetirableGrants"))
	e.fails("ListRetirableGrants", obj("RetiringPrincipal", "arn:aws:iam::"+e.account.String()+":user/nobody"), kmsapi.InvalidArn, "*")
	for _, bad := range []string{"x", "arn:aws:iam::x:user/u", "s3.amazonaws.com"} {
		e.fails("ListRetirableGrants", obj("RetiringPrincipal", bad), kmsapi.InvalidArn, "ARN does not refer to a valid principal: "+bad)
	}
	const either = "You must specify either RetiringPrincipal or RetiringServicePrincipal."
	e.fails("ListRetirableGrants", "{}", kmsapi.Validation, either)
	e.fails("ListRetirableGrants", obj("RetiringPrincipal", admin, "RetiringServicePrincipal", "s3.amazonaws.com"), kmsapi.Validation, either)
	e.fails("ListRetirableGrants", obj("RetiringServicePrincipal", "s3.amazonaws.com"), kmsapi.AccessDenied, "*")
}

// A deleted key takes its grants with it.
func TestDeletedKeyHasNoGrants(t *testing.T) {
	e := deletionEnv(t, "eu-test-8")
	m := e.create("{}")
	user := e.user("user")
	for range 20 {
		e.grant(m.KeyId, user.who.ARN, describing)
	}
	g := e.grant(m.KeyId, user.who.ARN, []string{"RetireGrant"}, "RetiringPrincipal", user.who.ARN, "Name", "n")
	e.ok("ScheduleKeyDeletion", obj("KeyId", m.KeyId, "PendingWindowInDays", 7), &map[string]any{})
	e.grants("KeyId", m.KeyId) // still there
	e.work()
	e.clock.add(8 * 24 * time.Hour)
	if err := e.deleteDue(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := e.name(m.KeyId)
	list, _, err := shared.KeyGrants(t.Context(), n, "", 100)
	byGrantee, err2 := shared.Grants(t.Context(), n.Region, n.Account, n.ID, user.who.ID)
	if len(list) != 0 || len(byGrantee) != 0 || err != nil || err2 != nil {
		t.Errorf("%d and %d grants are left, %v, %v", len(list), len(byGrantee), err, err2)
	}
	gone := "Key '" + m.Arn + "' does not exist"
	e.fails("ListGrants", obj("KeyId", m.KeyId), kmsapi.NotFound, gone)
	e.fails("RevokeGrant", obj("KeyId", m.KeyId, "GrantId", g.GrantId), kmsapi.NotFound, gone)
	e.fails("RetireGrant", obj("GrantToken", g.GrantToken), kmsapi.NotFound, gone)
}

// What became of a grant is told before the reply, and again where the outcome was not known.
func TestUncertainGrantsArePublished(t *testing.T) {
	e := newEnv(t)
	g := &store.Grant{Key: e.name(e.create("{}").KeyId), Grantee: store.Party{ID: "AIDA1"}}
	e.published.take()
	e.publishMade(g, fmt.Errorf("%w: timeout", store.ErrUncertain))
	e.publishRemoved(g, store.ErrConflict)
	want := "grant " + g.Key.ID.String() + " AIDA1\n"
	if got := e.published.take(); got != want {
		t.Errorf("published %q", got)
	}
	e.unsettled.mu.Lock()
	defer e.unsettled.mu.Unlock()
	for _, tell := range e.unsettled.again {
		tell()
	}
	if got := e.published.take(); got != want {
		t.Errorf("published again %q", got)
	}
}

// A removal of unknown outcome that is asked for again, and turns out to have been applied, is published before the answer.
func TestRemovalThatIsRetriedIsPublished(t *testing.T) {
	e := newEnv(t)
	m, other := e.create("{}"), e.create("{}")
	user := e.user("user")
	for _, settling := range []bool{false, true} {
		for name, args := range map[string]func(g createGrantOut) string{
			"RevokeGrant": func(g createGrantOut) string { return obj("KeyId", m.KeyId, "GrantId", g.GrantId) },
			"RetireGrant": func(g createGrantOut) string { return obj("GrantToken", g.GrantToken) },
		} {
			g := e.grant(m.KeyId, user.who.ARN, describing)
			removed, err := shared.RemoveGrant(t.Context(), store.OldGrant{Key: e.name(m.KeyId), ID: g.GrantId, Allow: func(*store.Key, *store.Grant) error { return nil }})
			if err != nil {
				t.Fatal(err)
			}
			e.publishRemoved(removed, store.ErrUncertain)
			e.publishRemoved(&store.Grant{Key: e.name(other.KeyId), Grantee: removed.Grantee}, store.ErrUncertain)
			if settling {
				e.unsettled.next()
			}
			e.published.take()
			e.fails(name, args(g), kmsapi.NotFound, "Grant ID "+g.GrantId+" is not found.")
			if got, want := e.published.take(), "grant "+removed.Key.ID.String()+" "+removed.Grantee.ID+"\n"; got != want {
				t.Errorf("%s, settling %v: published %q, want %q", name, settling, got, want)
			}
			e.unsettled.next()
			e.unsettled.done()
		}
	}
}

// One grantee's grants on one key are bounded together, another grantee's apart.
func TestGranteeLimit(t *testing.T) {
	e := newEnv(t)
	m := e.create("{}")
	user, other := e.user("user"), e.user("other")
	fill := func(bytes int) error {
		_, err := shared.CreateGrant(t.Context(), store.NewGrant{Key: e.name(m.KeyId), Limit: kmsapi.GrantsPerKeyMax, Decide: func(*store.Key) (*store.Grant, string, error) {
			return &store.Grant{
				Grant: authz.Grant{
					ID: newGrantID(), Operations: authz.OpDecrypt, HasEquals: true, Equals: []authz.Pair{{Key: []byte("k"), Value: []byte(strings.Repeat("v", bytes))}},
				},
				Grantee: store.Party{ID: user.who.ID, Shown: user.who.ARN}, Issuer: e.account, Created: time.UnixMilli(1),
			}, "", nil
		}})
		return err
	}
	for _, bytes := range []int{500_000, 10_000, 300} { // larger than a request can ask for, so that it does not take long
		n := 0
		for ; n < 100; n++ {
			if err := fill(bytes); errors.Is(err, store.ErrGranteeLimit) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
		if n == 100 {
			t.Fatalf("there is no limit, %d bytes a grant", bytes)
		}
	}
	body := func(e *env) string {
		return obj("KeyId", m.KeyId, "GranteePrincipal", e.who.ARN, "Operations", describing, "Constraints", map[string]any{"EncryptionContextEquals": map[string]string{"k": strings.Repeat("v", kmsapi.GrantValueMax)}})
	}
	e.fails("CreateGrant", body(user), kmsapi.LimitExceeded, "The grants on the key "+m.Arn+" to this grantee would be too large together.")
	e.ok("CreateGrant", body(other), new(map[string]any))
}

// The members of the five operations are the service model's.
func TestGrantShapes(t *testing.T) {
	b, err := os.ReadFile("../internal/kmsapi/testdata/kms-model.json")
	if err != nil {
		t.Fatal(err)
	}
	var model struct {
		Shapes map[string]struct {
			Required []string
			Members  map[string]json.RawMessage
			Enum     []string
		}
	}
	if err := json.Unmarshal(b, &model); err != nil {
		t.Fatal(err)
	}
	for shape, v := range map[string]any{
		"CreateGrantRequest": createGrantIn{}, "ListGrantsRequest": listGrantsIn{}, "ListRetirableGrantsRequest": listRetirableGrantsIn{},
		"RetireGrantRequest": retireGrantIn{}, "RevokeGrantRequest": revokeGrantIn{}, "CreateGrantResponse": createGrantOut{}, "ListGrantsResponse": listGrantsOut{},
		"GrantListEntry": grantListEntry{}, "GrantConstraints": grantConstraintsIn{},
	} {
		var got, want []string
		for _, f := range reflect.VisibleFields(reflect.TypeOf(v)) {
			got = append(got, f.Name)
		}
		for name := range model.Shapes[shape].Members {
			want = append(want, name)
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) || len(want) == 0 {
			t.Errorf("%s has %v, the model %v", shape, got, want)
		}
	}
	if got := grantOperations.Names(); !slices.Equal(got, model.Shapes["GrantOperation"].Enum) {
		t.Errorf("operations %v, the model has %v", got, model.Shapes["GrantOperation"].Enum)
	}
}
