package controlplane

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/sigv4"
)

// The table has a handler for exactly what kmsapi says is built, and a key state row for exactly what concerns one key.
func TestHandlersAreTheBuiltOperations(t *testing.T) {
	n := 0
	for _, op := range kmsapi.Operations {
		want := op.Plane == kmsapi.ControlPlane && op.Built
		if (handlers[op.Name] != nil) != want {
			t.Errorf("%s: handler %v, want %v", op.Name, !want, want)
		}
		if want {
			n++
		}
		if _, row := matrix[op.Name]; row != (want && !slices.Contains([]string{"CreateKey", "ListKeys", "ListRetirableGrants"}, op.Name) && !strings.Contains(op.Name, "CustomKeyStore")) {
			t.Errorf("%s: key state row %v", op.Name, row)
		}
	}
	if n != len(handlers) {
		t.Errorf("%d handlers for %d operations", len(handlers), n)
	}
}

func TestUnknownOperations(t *testing.T) {
	e := newEnv(t)
	for i := range kmsapi.Operations {
		if op := &kmsapi.Operations[i]; op.Plane == kmsapi.DataPlane { // not ours to serve
			e.fails(op.Name, "{}", kmsapi.UnknownOperation, kmsapi.UnknownOperationText)
		}
	}
	for _, name := range []string{"", "createKey", "CreateKey ", "DropKey", strings.Repeat("x", 100)} {
		e.fails(name, "{}", kmsapi.UnknownOperation, kmsapi.UnknownOperationText)
	}
	// What does not exist is said to nobody who has not signed.
	unsigned := e.sign("DropKey", []byte("{}"))
	unsigned.Headers = unsigned.Headers[:len(unsigned.Headers)-1]
	if resp := e.Serve(t.Context(), &Request{Signed: unsigned}); resp.Code != kmsapi.MissingAuthenticationToken {
		t.Errorf("unsigned: %s", resp.Body)
	}
}

// Nothing is done for a request that nobody of the account signed.
func TestSignatureIsVerified(t *testing.T) {
	e := newEnv(t)
	m := e.create("{}")
	other := newEnv(t)
	e.published.take()
	serve := func(r *sigv4.Request) Response { return e.Serve(t.Context(), &Request{Signed: r}) }
	body := []byte(obj("KeyId", m.KeyId))

	unsigned := e.sign("DisableKey", body)
	unsigned.Headers = unsigned.Headers[:len(unsigned.Headers)-1]
	if resp := serve(unsigned); resp.Code != kmsapi.MissingAuthenticationToken {
		t.Errorf("unsigned: %s", resp.Body)
	}
	altered := e.sign("DisableKey", body)
	altered.Body = bytes.Replace(body, []byte("}"), []byte(" }"), 1)
	if resp := serve(altered); resp.Code != kmsapi.InvalidSignature {
		t.Errorf("altered body: %s", resp.Body)
	}
	retargeted := e.sign("DescribeKey", body)
	for i := range retargeted.Headers {
		if string(retargeted.Headers[i].Name) == "x-amz-target" {
			retargeted.Headers[i].Value = []byte("TrentService.DisableKey")
		}
	}
	if resp := serve(retargeted); resp.Code != kmsapi.InvalidSignature {
		t.Errorf("altered target: %s", resp.Body)
	}
	twice := e.sign("DescribeKey", body)
	twice.Headers = append([]sigv4.Header{{Name: []byte("x-amz-target"), Value: []byte("TrentService.DisableKey")}}, twice.Headers...)
	if resp := serve(twice); resp.Code == kmsapi.OK {
		t.Error("two targets were accepted")
	}
	late := e.sign("DisableKey", body)
	e.clock.add(6 * time.Minute)
	if resp := serve(late); resp.Code != kmsapi.InvalidSignature || !strings.Contains(string(resp.Body), "Signature expired") {
		t.Errorf("late: %s", resp.Body)
	}
	e.clock.add(-6 * time.Minute)
	if resp := serve(other.sign("DisableKey", body)); resp.Code != kmsapi.UnrecognizedClient {
		t.Errorf("access key that this server does not know: %s", resp.Body)
	}
	// An authentication failure comes before the body is looked at.
	broken := e.sign("DisableKey", []byte("{"))
	broken.Headers = broken.Headers[:len(broken.Headers)-1]
	if resp := serve(broken); resp.Code != kmsapi.MissingAuthenticationToken {
		t.Errorf("unsigned and broken: %s", resp.Body)
	}
	if got := e.describe(m.KeyId); got.KeyState != "Enabled" {
		t.Errorf("the key is %s", got.KeyState)
	}
	if got := e.published.take(); got != "" {
		t.Errorf("published %q", got)
	}
}

// Another account's administrator sees nothing of a key and cannot tell whether it exists.
func TestOtherAccount(t *testing.T) {
	owner, stranger := newEnv(t), newEnv(t)
	m := owner.create("{}")
	owner.ok("CreateAlias", aliasBody("alias/secret", m.KeyId), nil)
	alias := "arn:aws:kms:us-east-1:" + owner.account.String() + ":alias/secret"
	text := "User: arn:aws:iam::" + stranger.account.String() + ":user/administrator is not authorized to perform: kms:DescribeKey on this resource " +
		"because the resource does not exist in this Region, no resource-based policies allow access, or a resource-based policy explicitly denies access"
	for _, ref := range []string{m.Arn, strings.Replace(m.Arn, m.KeyId[:4], "0000", 1), alias, alias + "-none"} {
		stranger.fails("DescribeKey", obj("KeyId", ref), kmsapi.AccessDenied, text)
	}
	stranger.fails("DescribeKey", obj("KeyId", m.KeyId), kmsapi.NotFound, // by its ID it is looked up in the caller's account
		"Key 'arn:aws:kms:us-east-1:"+stranger.account.String()+":key/"+m.KeyId+"' does not exist")
	stranger.fails("DescribeKey", obj("KeyId", "alias/secret"), kmsapi.NotFound, "*")
	stranger.ok("CreateAlias", aliasBody("alias/secret", stranger.create("{}").KeyId), nil) // names are the account's own
	if got := owner.describe("alias/secret"); got.KeyId != m.KeyId {
		t.Errorf("the owner's alias leads to %v", got)
	}
}

// One verifier is of all Regions of a process; a Server does what was signed for its own.
func TestOtherRegion(t *testing.T) {
	e := newEnv(t)
	var err error
	if e.verifier, err = sigv4.New(sigv4.Config{Regions: []string{"us-east-1", "eu-west-1"}, Keys: e.cast}); err != nil {
		t.Fatal(err)
	}
	list := func(region string) Response {
		e.region = region
		signed := e.sign("ListKeys", []byte("{}"))
		e.region = "us-east-1"
		return e.Serve(t.Context(), &Request{Signed: signed, RequestID: "test", SourceIP: "127.0.0.1"})
	}
	if resp := list("us-east-1"); resp.Code != kmsapi.OK {
		t.Errorf("its own: %s", resp.Body)
	}
	if resp := list("eu-west-1"); resp.Code != kmsapi.InvalidSignature || !strings.Contains(string(resp.Body), "Credential should be scoped to a valid region, not 'eu-west-1'.") {
		t.Errorf("another: %v %s", resp.Code, resp.Body)
	}
}

// An access key that speaks for nobody may do nothing, and neither may a caller whose principal was deleted.
func TestNobodyIsAuthorized(t *testing.T) {
	e := newEnv(t)
	m := e.create("{}")
	user := e.user("u", statement("Allow", "kms:*", anyResource))
	user.describe(m.KeyId)
	user.who.Holder.Replace(nil)
	nobody := e.user("nobody")
	k, err := sigv4.NewAccessKey(nobody.keyID, []byte(e.secret), sigv4.Principal{Account: e.account, ARN: "arn:x"})
	if err != nil {
		t.Fatal(err)
	}
	e.cast.keys[nobody.keyID] = k
	for op, body := range map[string]string{
		"DescribeKey": obj("KeyId", m.KeyId), "ListKeys": "{}", "CreateKey": "{}", "PutKeyPolicy": obj("KeyId", m.KeyId, "Policy", keyPolicyOf(e)),
		"CreateGrant": obj("KeyId", m.KeyId, "GranteePrincipal", user.who.ARN, "Operations", []string{"Encrypt"}), "DeleteAlias": obj("AliasName", "alias/x"),
		"ListRetirableGrants": obj("RetiringPrincipal", user.who.ARN),
	} {
		user.fails(op, body, kmsapi.AccessDenied, "*")
		nobody.fails(op, body, kmsapi.AccessDenied, "*")
	}
}

// A panic in a handler is an internal error for its client and a log entry for the operator, with nothing of the request in either.
func TestPanicIsAnswered(t *testing.T) {
	e := newEnv(t)
	var out bytes.Buffer
	e.log = slog.New(slog.NewTextHandler(&out, nil))
	e.random = func([]byte) error { panic("sesame") }
	resp := e.Serve(t.Context(), &Request{Signed: e.sign("CreateKey", []byte(obj("Description", "sesame"))), RequestID: "id-1"})
	if resp.Code != kmsapi.KMSInternal || resp.Status != 500 || bytes.Contains(resp.Body, []byte("sesame")) {
		t.Errorf("%d %s", resp.Status, resp.Body)
	}
	if log := out.String(); !strings.Contains(log, "id-1") || !strings.Contains(log, "CreateKey") || !strings.Contains(log, "keys.go") || strings.Contains(log, "sesame") {
		t.Errorf("log: %s", log)
	}
	if resp := e.Serve(t.Context(), &Request{}); resp.Code != kmsapi.KMSInternal { // no signed request at all
		t.Errorf("%s", resp.Body)
	}
}

// A fault of the HSM that has an exception is answered with it; the log of one on our side has its cause.
func TestRandomFault(t *testing.T) {
	e := newEnv(t)
	var out bytes.Buffer
	e.log = slog.New(slog.NewTextHandler(&out, nil))
	for _, c := range []struct {
		code   kmsapi.Code
		logged bool
	}{{kmsapi.Throttling, false}, {kmsapi.KeyUnavailable, true}} {
		out.Reset()
		e.random = func([]byte) error { return fmt.Errorf("%w: the cause", kmsapi.E(c.code)) }
		e.fails("CreateKey", "{}", c.code, c.code.Text())
		if strings.Contains(out.String(), "the cause") != c.logged {
			t.Errorf("%s: log %q", c.code, &out)
		}
	}
}

// A store that does not answer in time is a dependency that timed out.
func TestStoreTimeout(t *testing.T) {
	e := newEnv(t)
	m := e.create("{}")
	e.published.take()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	resp := e.Serve(ctx, &Request{Signed: e.sign("DescribeKey", []byte(obj("KeyId", m.KeyId)))})
	if resp.Code != kmsapi.DependencyTimeout || resp.Status != 503 {
		t.Errorf("%d %s", resp.Status, resp.Body)
	}
	if !resp.Date.Equal(e.clock.now()) {
		t.Errorf("date %s", resp.Date)
	}
}

func TestNewChecksItsConfig(t *testing.T) {
	e := newEnv(t)
	good := Config{Region: "us-east-1", Store: shared, Verifier: e.verifier, Random: e.random, Root: e.Server.root, Publisher: e.published, Principals: e.cast}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Config){
		"store": func(c *Config) { c.Store = nil }, "verifier": func(c *Config) { c.Verifier = nil }, "random": func(c *Config) { c.Random = nil },
		"root": func(c *Config) { c.Root = nil }, "publisher": func(c *Config) { c.Publisher = nil },
		"principals": func(c *Config) { c.Principals = nil },
		"no region":  func(c *Config) { c.Region = "" }, "region": func(c *Config) { c.Region = "us/east" },
		"long region": func(c *Config) { c.Region = strings.Repeat("r", 33) },
	} {
		c := good
		spoil(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestBodies(t *testing.T) {
	e := newEnv(t)
	m := e.create("{}")
	id := `"KeyId":"` + m.KeyId + `"`
	nest := func(n int) string { return strings.Repeat(`{"a":`, n-1) + "{}" + strings.Repeat("}", n-1) }
	members := func(n int) string {
		var b strings.Builder
		for i := range n {
			b.WriteString(`,"m`)
			b.WriteString(strings.Repeat("x", i))
			b.WriteString(`":0`)
		}
		return b.String()
	}
	var out metadataReply
	for _, body := range []string{
		"{" + id + "}", " {" + id + " } \r\n", "{" + id + `,"keyid":1,"KEYID":[],"Extra":{"KeyId":7}}`, "{" + id + `,"GrantTokens":null}`,
		"{" + id + `,"x":` + nest(kmsapi.JSONDepthMax-1) + "}", "{" + id + members(kmsapi.JSONMembersMax-1) + "}",
		`{"KeyId":"\u` + "0061lias/b" + `"}`, "{" + id + "}" + strings.Repeat(" ", kmsapi.BodyMax-len(id)-2),
	} {
		if strings.Contains(body, "lias/b") {
			e.ok("CreateAlias", aliasBody("alias/b", m.KeyId), nil)
		}
		e.ok("DescribeKey", body, &out)
	}
	for _, c := range []struct {
		op, body string
		code     kmsapi.Code
		message  string
	}{
		{"DescribeKey", "{" + id + `,"x":` + nest(kmsapi.JSONDepthMax) + "}", kmsapi.Validation, "The request body is nested deeper than 32 levels"},
		{"DescribeKey", strings.Repeat("[", 60_000), kmsapi.Validation, "The request body is nested deeper than 32 levels"},
		{"DescribeKey", "{" + id + members(kmsapi.JSONMembersMax) + "}", kmsapi.Validation, "An object in the request body has more than 256 members"},
		{"DescribeKey", "{" + id + "," + id + "}", kmsapi.Serialization, "Duplicate field name"},
		{"DescribeKey", "{" + id + `,"x":{"a":1,"a":1}}`, kmsapi.Serialization, "Duplicate field name"},
		{"DescribeKey", "{" + id + `,"Key\u0049d":"x"}`, kmsapi.Serialization, "Duplicate field name"},
		{"DescribeKey", "{" + id, kmsapi.Serialization, "*"},
		{"DescribeKey", "{" + id + "}{}", kmsapi.Serialization, "*"},
		{"DescribeKey", "{" + id + "}x", kmsapi.Serialization, "*"},
		{"DescribeKey", "{" + id + ",}", kmsapi.Serialization, "*"},
		{"DescribeKey", "{'KeyId':1}", kmsapi.Serialization, "*"},
		{"DescribeKey", `{"KeyId":"` + "\xff" + `"}`, kmsapi.Serialization, "*"},
		{"DescribeKey", `{"KeyId":"\ud800"}`, kmsapi.Serialization, "*"},
		{"DescribeKey", "<KeyId/>", kmsapi.Serialization, "*"},
		{"DescribeKey", "[]", kmsapi.Serialization, "Start of list found where not expected"},
		{"DescribeKey", `"x"`, kmsapi.Serialization, "Expected null"},
		{"DescribeKey", "1", kmsapi.Serialization, "Expected null"},
		{"DescribeKey", `{"KeyId":1}`, kmsapi.Serialization, "NUMBER_VALUE can not be converted to a String"},
		{"DescribeKey", `{"KeyId":true}`, kmsapi.Serialization, "TRUE_VALUE can not be converted to a String"},
		{"DescribeKey", `{"KeyId":false}`, kmsapi.Serialization, "FALSE_VALUE can not be converted to a String"},
		{"DescribeKey", `{"KeyId":[]}`, kmsapi.Serialization, "Start of list found where not expected"},
		{"DescribeKey", `{"KeyId":{}}`, kmsapi.Serialization, "Start of structure or map found where not expected."},
		{"DescribeKey", "{" + id + `,"GrantTokens":"x"}`, kmsapi.Serialization, "Expected list or null"},
		{"ListKeys", `{"Limit":"1"}`, kmsapi.Serialization, "STRING_VALUE can not be converted to an Integer"},
		{"ListKeys", `{"Limit":1.5}`, kmsapi.Serialization, "NUMBER_VALUE can not be converted to an Integer"},
		{"ListKeys", `{"Limit":2147483648}`, kmsapi.Serialization, "NUMBER_VALUE can not be converted to an Integer"},
		{"ListKeys", `{"Limit":2147483647}`, kmsapi.Validation, "*"},
		{"CreateKey", `{"MultiRegion":"true"}`, kmsapi.Serialization, "STRING_VALUE can not be converted to a Boolean"},
		{"CreateKey", `{"Tags":["x"]}`, kmsapi.Serialization, "Expected null"},
		{"CreateKey", `{"Tags":[[]]}`, kmsapi.Serialization, "Start of list found where not expected"},
		{"DescribeKey", "", kmsapi.Validation, "*"},
		{"DescribeKey", "  ", kmsapi.Validation, "*"},
		{"DescribeKey", "null", kmsapi.Validation, "*"},
		{"DescribeKey", "\v", kmsapi.Serialization, "*"},
		{"DescribeKey", "{" + id + "}" + strings.Repeat(" ", kmsapi.BodyMax-len(id)-1), kmsapi.RequestEntityTooLarge, kmsapi.RequestEntityTooLarge.Text()},
	} {
		e.fails(c.op, c.body, c.code, c.message)
	}
}

// FuzzServe signs whatever body the fuzzer finds, for every operation: the reply is valid JSON, or empty on success, and never a server
// fault.
func FuzzServe(f *testing.F) {
	e := newEnv(f)
	var names []string
	for _, op := range kmsapi.Operations {
		if handlers[op.Name] != nil {
			names = append(names, op.Name)
		}
	}
	m := e.create("{}")
	for i := range names {
		f.Add(uint8(i), []byte(obj("KeyId", m.KeyId, "TargetKeyId", m.KeyId, "AliasName", "alias/f", "Limit", 1, "PolicyName", "default", "Policy", "{}",
			"Tags", tags("a", "b"), "TagKeys", []string{"a"}, "Description", "d", "PendingWindowInDays", 7)))
		f.Add(uint8(i), []byte(obj("KeyId", m.Arn, "GranteePrincipal", "arn:aws:iam::"+e.account.String()+":root", "Operations", describing, "Name", "n",
			"Constraints", raw(`{"EncryptionContextSubset":{"a":"b"},"EncryptionContextEquals":{},"SourceArn":"arn:aws:s3::111122223333:b"}`))))
		f.Add(uint8(i), []byte(obj("KeyId", m.Arn, "GrantId", strings.Repeat("0", 64), "DryRun", true)))
		f.Add(uint8(i), []byte(obj("GrantToken", newToken(&store.Grant{Grant: authz.Grant{ID: newGrantID()}, Key: e.name(m.KeyId)}), "RetiringPrincipal", "arn:aws:iam::1:root")))
		f.Add(uint8(i), []byte(`{"KeyId":null,"Limit":-1,"Marker":"AA","Tags":[null,{}],"TagKeys":[null]}`))
	}
	f.Add(uint8(0), []byte(`{"KeyId":"arn:aws:kms:us-east-1:111122223333:key/`+m.KeyId+`"}`))
	f.Add(uint8(1), []byte("{\"AliasName\":\"alias/\xff\"}"))
	f.Add(uint8(2), []byte(strings.Repeat("[", 40)))
	f.Fuzz(func(t *testing.T, op uint8, body []byte) {
		in := *e
		in.TB = t
		resp := in.call(names[int(op)%len(names)], string(body))
		if resp.Status >= 500 {
			t.Fatalf("%d %s", resp.Status, resp.Body)
		}
		if len(resp.Body) == 0 && resp.Code == kmsapi.OK {
			return
		}
		d := jsontext.NewDecoder(bytes.NewReader(resp.Body))
		if _, err := d.ReadValue(); err != nil {
			t.Fatalf("%v in %q", err, resp.Body)
		}
		if _, err := d.ReadToken(); err != io.EOF {
			t.Fatalf("more than one value in %q", resp.Body)
		}
	})
}
