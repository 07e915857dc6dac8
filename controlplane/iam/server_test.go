package iam

import (
	"encoding/xml"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/awsquery"
	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/policy"
	"github.com/keyplane/keyplane/internal/sigv4"
)

// caller signs requests.
type caller struct {
	*api
	id, secretKey, token string
}

// api is a Server over an env; its first account is the env's.
type api struct {
	*env
	server   *Server
	verifier *sigv4.Verifier
	admin    *caller
	last     *cloudtrail.Record // of the last call
	secure   bool               // calls come over TLS
}

func newAPI(t testing.TB) *api { return newAPIIn(t, newEnv(t)) }

func newAPIIn(t testing.TB, e *env) *api {
	t.Helper()
	server, err := NewServer(ServerConfig{Table: e.table, First: e.account, Regions: []string{"us-east-1"}, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := sigv4.New(sigv4.Config{
		Regions: []string{"us-east-1"}, Keys: e.table, Others: []sigv4.Service{{Name: "sts", Regions: []string{"us-east-1"}}, {Name: "iam", Regions: []string{"us-east-1"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	a := &api{env: e, server: server, verifier: verifier}
	a.admin = a.as(e.keyID, e.secret, "")
	return a
}

func (a *api) as(id, secretKey, token string) *caller { return &caller{a, id, secretKey, token} }

// sign verifies a request that the caller signed.
func (w *caller) sign(service string, body []byte) (sigv4.Identity, kmsapi.Code) {
	w.Helper()
	r := &sigv4.Request{
		Method: []byte("POST"), Path: []byte("/"), Body: body,
		Headers: []sigv4.Header{
			{Name: []byte("content-type"), Value: []byte("application/x-www-form-urlencoded")},
			{Name: []byte("host"), Value: []byte("localhost:4599")},
			{Name: []byte("x-amz-date"), Value: sigv4.AppendDate(nil, w.clock.now())},
		},
	}
	if w.token != "" {
		r.Headers = append(r.Headers, sigv4.Header{Name: []byte("x-amz-security-token"), Value: []byte(w.token)})
	}
	key, err := sigv4.NewAccessKey(w.id, []byte(w.secretKey), sigv4.Principal{})
	if err != nil {
		w.Fatal(err)
	}
	var scratch sigv4.Scratch
	authorization, err := sigv4.AppendAuthorization(nil, key, "us-east-1", service, r, &scratch)
	if err != nil {
		w.Fatal(err)
	}
	r.Headers = append(r.Headers, sigv4.Header{Name: []byte("authorization"), Value: authorization})
	return w.verifier.Verify(r, &scratch, w.clock.now())
}

// do calls service:Action with the pairs name, value.
func (w *caller) do(action string, pairs ...string) (int, string) {
	w.Helper()
	service, name, _ := strings.Cut(action, ":")
	version := map[string]string{"sts": stsVersion, "iam": iamVersion}[service]
	form := url.Values{"Action": {name}, "Version": {version}}
	for i := 0; i < len(pairs); i += 2 {
		form.Add(pairs[i], pairs[i+1])
	}
	body := []byte(form.Encode())
	identity, code := w.sign(service, body)
	if code != kmsapi.OK {
		e := awsquery.FromKMS(kmsapi.E(code))
		return e.Status, string(awsquery.AppendError(nil, e, "test"))
	}
	status, reply := w.server.Serve(w.Context(), identity, service, body, "test", "127.0.0.1", w.secure, []byte("keyplane-test/1"), w.clock.now(), w.record())
	w.checkRecord(status, string(reply))
	if err := xml.Unmarshal(reply, new(struct{ XMLName xml.Name })); err != nil {
		w.Errorf("%s: %v in %s", action, err, reply)
	}
	return status, string(reply)
}

// ok calls what must succeed.
func (w *caller) ok(action string, pairs ...string) string {
	w.Helper()
	status, body := w.do(action, pairs...)
	if status != 200 {
		w.Fatalf("%s %q: %d %s", action, pairs, status, body)
	}
	return body
}

// fails calls what must be refused, with that message unless it is "*".
func (w *caller) fails(code string, message string, action string, pairs ...string) {
	w.Helper()
	status, body := w.do(action, pairs...)
	want := awsquery.NewError(code, "").Status
	if status != want || field(body, "Code") != code || message != "*" && field(body, "Message") != message {
		w.Errorf("%s %q: %d %s\nwant %d %s: %s", action, pairs, status, body, want, code, message)
	}
}

// field is the text of the first element of that name.
func field(body, name string) string {
	m := regexp.MustCompile("<" + name + ">([^<]*)</" + name + ">").FindStringSubmatch(body)
	if m == nil {
		return ""
	}
	return strings.NewReplacer("&lt;", "<", "&gt;", ">", "&#34;", `"`, "&amp;", "&").Replace(m[1])
}

// fields are the texts of all elements of that name, joined with blanks.
func fields(body, name string) string {
	var all []string
	for _, m := range regexp.MustCompile("<"+name+">([^<]*)</"+name+">").FindAllStringSubmatch(body, -1) {
		all = append(all, m[1])
	}
	return strings.Join(all, " ")
}

// credentials makes a caller of a reply with an access key or credentials.
func (a *api) credentials(body string) *caller {
	return a.as(field(body, "AccessKeyId"), field(body, "SecretAccessKey"), field(body, "SessionToken"))
}

// newUser makes a user with an access key, and a policy if it is not "".
func (a *api) newUser(name, document string) *caller {
	a.Helper()
	a.admin.ok("iam:CreateUser", "UserName", name)
	if document != "" {
		a.admin.ok("iam:PutUserPolicy", "UserName", name, "PolicyName", "p", "PolicyDocument", document)
	}
	return a.credentials(a.admin.ok("iam:CreateAccessKey", "UserName", name))
}

func allow(action, resource string) string {
	return `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"` + action + `","Resource":"` + resource + `"}]}`
}

func trust(principal, rest string) string {
	return `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":` + principal + `,"Action":["sts:AssumeRole","sts:TagSession","sts:SetSourceIdentity"]` + rest + `}]}`
}

func awsPrincipal(arn string) string { return `{"AWS":"` + arn + `"}` }

func TestGetCallerIdentity(t *testing.T) {
	a := newAPI(t)
	account := a.account.String()
	body := a.admin.ok("sts:GetCallerIdentity")
	if field(body, "Arn") != a.arn("user/administrator") || field(body, "Account") != account || !strings.HasPrefix(field(body, "UserId"), "AIDA") {
		t.Error(body)
	}
	if !strings.HasPrefix(body, `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>`) {
		t.Error(body)
	}
	// Nothing that a policy says keeps it from anybody.
	user := a.newUser("nobody", `{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"*","Resource":"*"}]}`)
	if got := field(user.ok("sts:GetCallerIdentity"), "Arn"); got != a.arn("user/nobody") {
		t.Error(got)
	}
	user.fails("AccessDenied", "User: "+a.arn("user/nobody")+" is not authorized to perform: iam:GetUser on resource: "+a.arn("user/nobody")+
		" with an explicit deny in an identity-based policy", "iam:GetUser")
	root := a.credentials(a.admin.ok("iam:CreateAccount", "AccountId", newAccount().String()))
	if body := root.ok("sts:GetCallerIdentity"); !strings.HasSuffix(field(body, "Arn"), ":root") || field(body, "UserId") != field(body, "Account") {
		t.Error(body)
	}
	for name, c := range map[string][2]string{
		"none":      {"MissingAction", ""},
		"unknown":   {"InvalidAction", "Action=Fly&Version=2011-06-15"},
		"version":   {"InvalidAction", "Action=GetCallerIdentity&Version=2010-05-08"},
		"twice":     {"MalformedQueryString", "Action=GetCallerIdentity&Version=2011-06-15&Version=2011-06-15"},
		"parameter": {"ValidationError", "Action=GetCallerIdentity&Version=2011-06-15&Odd=1"},
		"of IAM":    {"InvalidAction", "Action=ListUsers&Version=2011-06-15"},
	} {
		identity, _ := a.admin.sign("sts", []byte(c[1]))
		status, reply := a.server.Serve(t.Context(), identity, "sts", []byte(c[1]), "test", "127.0.0.1", false, nil, a.clock.now(), new(cloudtrail.Record))
		if status != 400 || field(string(reply), "Code") != c[0] {
			t.Errorf("%s: %d %s", name, status, reply)
		}
	}
	if status, reply := a.server.Serve(t.Context(), sigv4.Identity{}, "sts", []byte("Action=GetCallerIdentity&Version=2011-06-15"), "test", "", false, nil, a.clock.now(), new(cloudtrail.Record)); status != 403 {
		t.Errorf("nobody's request: %d %s", status, reply)
	}
}

// The flow of an operator: users, keys, what binds at once.
func TestUsers(t *testing.T) {
	a := newAPI(t)
	body := a.admin.ok("iam:CreateUser", "UserName", "Alice", "Path", "/team/", "Tags.member.1.Key", "k", "Tags.member.1.Value", "v")
	if field(body, "Arn") != a.arn("user/team/Alice") || !regexp.MustCompile("^AIDA[A-Z2-7]{17}$").MatchString(field(body, "UserId")) ||
		field(body, "CreateDate") != "2026-11-23T12:00:00Z" || field(body, "Key") != "k" {
		t.Error(body)
	}
	a.admin.fails("EntityAlreadyExists", "User with name aLICE already exists.", "iam:CreateUser", "UserName", "aLICE")
	a.admin.fails("NoSuchEntity", "The user with name alice cannot be found.", "iam:GetUser", "UserName", "alice")
	if got := a.admin.ok("iam:GetUser", "UserName", "Alice"); field(got, "UserId") != field(body, "UserId") {
		t.Error(got)
	}
	alice := a.credentials(a.admin.ok("iam:CreateAccessKey", "UserName", "Alice"))
	if !regexp.MustCompile("^AKIA[A-Z2-7]{16}$").MatchString(alice.id) || len(alice.secretKey) != 40 {
		t.Errorf("%s", alice.id)
	}
	alice.fails("AccessDenied", "User: "+a.arn("user/team/Alice")+" is not authorized to perform: iam:ListUsers on resource: "+a.arn("user/")+
		" because no identity-based policy allows the iam:ListUsers action", "iam:ListUsers")
	a.admin.ok("iam:PutUserPolicy", "UserName", "Alice", "PolicyName", "all", "PolicyDocument", allow("iam:*", "*"))
	alice.ok("iam:ListUsers")
	// Her own, without a name.
	if got := alice.ok("iam:GetUser"); field(got, "UserName") != "Alice" {
		t.Error(got)
	}
	second := alice.ok("iam:CreateAccessKey")
	alice.fails("LimitExceeded", "Cannot exceed quota for AccessKeysPerUser: 2", "iam:CreateAccessKey")
	if got := fields(alice.ok("iam:ListAccessKeys"), "AccessKeyId"); got != alice.id+" "+field(second, "AccessKeyId") {
		t.Error(got)
	}
	// An inactive key is dead at once, and comes back.
	other := a.credentials(second)
	other.ok("sts:GetCallerIdentity")
	a.admin.ok("iam:UpdateAccessKey", "UserName", "Alice", "AccessKeyId", other.id, "Status", "Inactive")
	other.fails("InvalidClientTokenId", "*", "sts:GetCallerIdentity")
	if got := fields(alice.ok("iam:ListAccessKeys"), "Status"); got != "Active Inactive" {
		t.Error(got)
	}
	if got := field(a.admin.ok("sts:GetAccessKeyInfo", "AccessKeyId", other.id), "Account"); got != a.account.String() {
		t.Error(got)
	}
	a.admin.ok("iam:UpdateAccessKey", "UserName", "Alice", "AccessKeyId", other.id, "Status", "Active")
	other.ok("sts:GetCallerIdentity")
	a.admin.fails("NoSuchEntity", "The Access Key with id "+other.id+" cannot be found.", "iam:DeleteAccessKey", "AccessKeyId", other.id)
	a.admin.fails("NoSuchEntity", "*", "iam:UpdateAccessKey", "AccessKeyId", other.id, "Status", "Inactive")
	a.admin.fails("ValidationError", "1 validation error detected: Value 'active' at 'status' failed to satisfy constraint: Member must satisfy enum value set: [Active, Inactive]",
		"iam:UpdateAccessKey", "UserName", "Alice", "AccessKeyId", other.id, "Status", "active")
	// Deleting: what she has has to go first.
	a.admin.fails("DeleteConflict", "Cannot delete entity, must delete access keys first.", "iam:DeleteUser", "UserName", "Alice")
	for _, id := range []string{other.id, alice.id} {
		a.admin.ok("iam:DeleteAccessKey", "UserName", "Alice", "AccessKeyId", id)
	}
	other.fails("InvalidClientTokenId", "*", "sts:GetCallerIdentity")
	a.admin.fails("DeleteConflict", "Cannot delete entity, must delete policies first.", "iam:DeleteUser", "UserName", "Alice")
	a.admin.ok("iam:DeleteUserPolicy", "UserName", "Alice", "PolicyName", "all")
	a.admin.fails("NoSuchEntity", "The user policy with name all cannot be found.", "iam:DeleteUserPolicy", "UserName", "Alice", "PolicyName", "all")
	a.admin.ok("iam:DeleteUser", "UserName", "Alice")
	a.admin.fails("NoSuchEntity", "*", "iam:DeleteUser", "UserName", "Alice")
	if again := a.admin.ok("iam:CreateUser", "UserName", "Alice", "Path", "/team/"); field(again, "UserId") == field(body, "UserId") {
		t.Error("a user made again has the ID of the former")
	}
	for name, pairs := range map[string][]string{
		"no name": {}, "empty name": {"UserName", ""}, "long name": {"UserName", strings.Repeat("n", 65)}, "slash": {"UserName", "a/b"}, "path": {"UserName", "b", "Path", "/x"},
		"path of 513": {"UserName", "b", "Path", "/" + strings.Repeat("p", 511) + "/"}, "odd": {"UserName", "b", "Odd", "1"},
		"tag key": {"UserName", "b", "Tags.member.1.Key", "", "Tags.member.1.Value", ""}, "long tag": {"UserName", "b", "Tags.member.1.Key", strings.Repeat("k", 129)},
		"long value": {"UserName", "b", "Tags.member.1.Key", "k", "Tags.member.1.Value", strings.Repeat("v", 257)},
	} {
		status, body := a.admin.do("iam:CreateUser", pairs...)
		if status != 400 || field(body, "Code") != "ValidationError" {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
	a.admin.fails("InvalidInput", "*", "iam:CreateUser", "UserName", "b", "Tags.member.1.Key", "k", "Tags.member.2.Key", "K")
	a.admin.fails("InvalidInput", "*", "iam:CreateUser", "UserName", "b", "Tags.member.1.Key", "AWS:k")
	a.admin.ok("iam:CreateUser", "UserName", strings.Repeat("n", 64), "Path", "/"+strings.Repeat("p", 510)+"/")
}

func TestPages(t *testing.T) {
	a := newAPI(t)
	for i := range 7 {
		a.admin.ok("iam:CreateUser", "UserName", fmt.Sprintf("u%d", i), "Path", []string{"/", "/a/"}[i%2])
	}
	var got []string
	marker := []string{}
	pages := 0
	for {
		body := a.admin.ok("iam:ListUsers", append([]string{"MaxItems", "3"}, marker...)...)
		got, pages = append(got, fields(body, "UserName")), pages+1
		if field(body, "IsTruncated") != "true" {
			break
		}
		marker = []string{"Marker", field(body, "Marker")}
	}
	if all := strings.Join(got, " "); all != "administrator u0 u1 u2 u3 u4 u5 u6" || pages != 3 {
		t.Errorf("%d pages: %s", pages, all)
	}
	if got := fields(a.admin.ok("iam:ListUsers", "PathPrefix", "/a"), "UserName"); got != "u1 u3 u5" {
		t.Error(got)
	}
	for _, bad := range [][]string{{"MaxItems", "0"}, {"MaxItems", "1001"}, {"Marker", "?"}, {"PathPrefix", "a"}} {
		a.admin.fails("ValidationError", "*", "iam:ListUsers", bad...)
	}
	a.admin.fails("MalformedInput", "*", "iam:ListUsers", "MaxItems", "+3")
}

// Policies: inline, managed, boundary, and that each binds from its reply on.
func TestPolicies(t *testing.T) {
	a := newAPI(t)
	user := a.newUser("u", "")
	can := func() bool { status, _ := user.do("iam:ListUsers"); return status == 200 }
	step := func(want bool, action string, pairs ...string) {
		t.Helper()
		a.admin.ok(action, pairs...)
		if can() != want {
			t.Errorf("after %s %q the user can: %v", action, pairs, !want)
		}
	}
	managed := a.admin.ok("iam:CreatePolicy", "PolicyName", "ListThem", "Path", "/p/", "Description", "d", "PolicyDocument", allow("iam:ListUsers", "*"))
	arn := field(managed, "Arn")
	if arn != a.arn("policy/p/ListThem") || field(managed, "DefaultVersionId") != "v1" {
		t.Error(managed)
	}
	a.admin.fails("EntityAlreadyExists", "A policy called listthem already exists. Duplicate names are not allowed.", "iam:CreatePolicy", "PolicyName", "listthem", "PolicyDocument", allow("*", "*"))
	step(true, "iam:AttachUserPolicy", "UserName", "u", "PolicyArn", arn)
	step(true, "iam:AttachUserPolicy", "UserName", "u", "PolicyArn", arn) // twice is once
	if got := a.admin.ok("iam:GetPolicy", "PolicyArn", arn); field(got, "AttachmentCount") != "1" || field(got, "PermissionsBoundaryUsageCount") != "0" {
		t.Error(got)
	}
	if got := fields(a.admin.ok("iam:ListAttachedUserPolicies", "UserName", "u"), "PolicyArn"); got != arn {
		t.Error(got)
	}
	a.admin.fails("DeleteConflict", "Cannot delete a policy attached to entities.", "iam:DeletePolicy", "PolicyArn", arn)
	step(false, "iam:PutUserPolicy", "UserName", "u", "PolicyName", "deny", "PolicyDocument", strings.Replace(allow("iam:*", "*"), "Allow", "Deny", 1))
	step(true, "iam:DeleteUserPolicy", "UserName", "u", "PolicyName", "deny")
	other := field(a.admin.ok("iam:CreatePolicy", "PolicyName", "Other", "PolicyDocument", allow("kms:*", "*")), "Arn")
	step(false, "iam:PutUserPermissionsBoundary", "UserName", "u", "PermissionsBoundary", other)
	user.fails("AccessDenied", "User: "+a.arn("user/u")+" is not authorized to perform: iam:ListUsers on resource: "+a.arn("user/")+
		" because no permissions boundary allows the iam:ListUsers action", "iam:ListUsers")
	if got := a.admin.ok("iam:GetUser", "UserName", "u"); field(got, "PermissionsBoundaryArn") != other {
		t.Error(got)
	}
	a.admin.fails("DeleteConflict", "*", "iam:DeletePolicy", "PolicyArn", other)
	step(true, "iam:PutUserPermissionsBoundary", "UserName", "u", "PermissionsBoundary", "arn:aws:iam::aws:policy/AdministratorAccess")
	step(true, "iam:DeleteUserPermissionsBoundary", "UserName", "u")
	a.admin.fails("NoSuchEntity", "User with name u does not have a permissions boundary.", "iam:DeleteUserPermissionsBoundary", "UserName", "u")
	a.admin.ok("iam:DeletePolicy", "PolicyArn", other)
	step(false, "iam:DetachUserPolicy", "UserName", "u", "PolicyArn", arn)
	a.admin.fails("NoSuchEntity", "*", "iam:DetachUserPolicy", "UserName", "u", "PolicyArn", arn)
	a.admin.ok("iam:DeletePolicy", "PolicyArn", arn)
	a.admin.fails("NoSuchEntity", "Policy "+arn+" was not found.", "iam:GetPolicy", "PolicyArn", arn)
	a.admin.fails("NoSuchEntity", "Policy "+arn+" does not exist or is not attachable.", "iam:AttachUserPolicy", "UserName", "u", "PolicyArn", arn)
	step(true, "iam:AttachUserPolicy", "UserName", "u", "PolicyArn", "arn:aws:iam::aws:policy/AdministratorAccess")
	a.admin.fails("NoSuchEntity", "*", "iam:AttachUserPolicy", "UserName", "u", "PolicyArn", "arn:aws:iam::aws:policy/Nothing")
	// Another account's policy is none.
	root := a.credentials(a.admin.ok("iam:CreateAccount"))
	foreign := field(root.ok("iam:CreatePolicy", "PolicyName", "P", "PolicyDocument", allow("*", "*")), "Arn")
	a.admin.fails("NoSuchEntity", "*", "iam:AttachUserPolicy", "UserName", "u", "PolicyArn", foreign)
	a.admin.fails("NoSuchEntity", "*", "iam:GetPolicy", "PolicyArn", foreign)
	a.admin.fails("NoSuchEntity", "*", "iam:DeletePolicy", "PolicyArn", foreign)
	a.admin.fails("AccessDenied", "*", "iam:DeletePolicy", "PolicyArn", "arn:aws:iam::aws:policy/AdministratorAccess")

	// Documents come back as they were given, escaped.
	document := "{\n  \"Version\": \"2012-10-17\",\n  \"Statement\": {\"Sid\": \"a\", \"Effect\": \"Allow\", \"Action\": \"kms:*\", \"Resource\": \"*\"}\n}"
	a.admin.ok("iam:PutUserPolicy", "UserName", "u", "PolicyName", "d", "PolicyDocument", document)
	got, err := url.QueryUnescape(field(a.admin.ok("iam:GetUserPolicy", "UserName", "u", "PolicyName", "d"), "PolicyDocument"))
	if err != nil || got != document {
		t.Errorf("%v %q", err, got)
	}
	if got := a.admin.ok("iam:ListUserPolicies", "UserName", "u"); fields(got, "member") != "d" {
		t.Error(got)
	}
	version := a.admin.ok("iam:GetPolicyVersion", "PolicyArn", "arn:aws:iam::aws:policy/AdministratorAccess", "VersionId", "v1")
	if got, err := url.QueryUnescape(field(version, "Document")); err != nil || got != administratorAccess {
		t.Errorf("%v %s", err, got)
	}
	a.admin.fails("NoSuchEntity", "*", "iam:GetPolicyVersion", "PolicyArn", "arn:aws:iam::aws:policy/AdministratorAccess", "VersionId", "v2")
	for name, bad := range map[string]string{"no JSON": "{", "with a principal": trust(awsPrincipal("*"), ""), "unknown operator": strings.Replace(allow("*", "*"), `"Effect"`, `"Condition":{"Like":{"a":"b"}},"Effect"`, 1)} {
		for _, action := range []string{"iam:PutUserPolicy", "iam:CreatePolicy"} {
			pairs := []string{"PolicyName", "bad", "PolicyDocument", bad}
			if action == "iam:PutUserPolicy" {
				pairs = append(pairs, "UserName", "u")
			}
			if status, body := a.admin.do(action, pairs...); status != 400 || field(body, "Code") != "MalformedPolicyDocument" {
				t.Errorf("%s, %s: %d %s", action, name, status, body)
			}
		}
	}
	if got := fields(a.admin.ok("iam:ListPolicies"), "PolicyName"); got != "AdministratorAccess" {
		t.Error(got)
	}
	if got := fields(a.admin.ok("iam:ListPolicies", "Scope", "Local"), "PolicyName"); got != "" {
		t.Error(got)
	}
}

// sized is a policy of n characters, of which none is white space.
func sized(n int) string {
	const head, tail, action = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":[`, `"a:b"],"Resource":"*"}]}`, `"a:b",`
	room := n - len(head) - len(tail)
	document := head + strings.Repeat(action, room/len(action)) + tail
	return strings.Replace(document, `"a:b"],`, `"a:b`+strings.Repeat("c", room%len(action))+`"],`, 1)
}

// Every quota at its limit and beyond.
func TestQuotas(t *testing.T) {
	a := newAPI(t)
	a.admin.ok("iam:CreateUser", "UserName", "u")
	put := func(name, document string) (int, string) {
		return a.admin.do("iam:PutUserPolicy", "UserName", "u", "PolicyName", name, "PolicyDocument", document)
	}
	half := store.InlinePolicyMax / 2
	for _, c := range []struct {
		name, document string
		code           string
	}{
		{"a", sized(half), ""}, {"b", sized(store.InlinePolicyMax - half), ""}, {"b", sized(store.InlinePolicyMax - half + 1), "LimitExceeded"},
		{"b", sized(store.InlinePolicyMax-half) + strings.Repeat(" ", 1000), ""}, {"c", sized(100), "LimitExceeded"},
	} {
		if status, body := put(c.name, c.document); (status == 200) != (c.code == "") || field(body, "Code") != c.code {
			t.Errorf("%s of %d: %d %s", c.name, len(c.document), status, body)
		}
	}
	a.admin.ok("iam:CreatePolicy", "PolicyName", "full", "PolicyDocument", sized(store.ManagedPolicyMax))
	a.admin.fails("LimitExceeded", "Cannot exceed quota for PolicySize: 6144", "iam:CreatePolicy", "PolicyName", "more", "PolicyDocument", sized(store.ManagedPolicyMax+1))
	for i := range store.AttachedMax {
		arn := field(a.admin.ok("iam:CreatePolicy", "PolicyName", fmt.Sprintf("p%d", i), "PolicyDocument", allow("*", "*")), "Arn")
		a.admin.ok("iam:AttachUserPolicy", "UserName", "u", "PolicyArn", arn)
	}
	a.admin.fails("LimitExceeded", "*", "iam:AttachUserPolicy", "UserName", "u", "PolicyArn", a.arn("policy/full"))
	var pairs []string
	for i := range store.PrincipalTagsMax {
		pairs = append(pairs, fmt.Sprintf("Tags.member.%d.Key", i+1), fmt.Sprintf("k%d", i), fmt.Sprintf("Tags.member.%d.Value", i+1), "v")
	}
	a.admin.ok("iam:TagUser", append([]string{"UserName", "u"}, pairs...)...)
	a.admin.ok("iam:TagUser", "UserName", "u", "Tags.member.1.Key", "K0", "Tags.member.1.Value", "other") // in place of k0
	a.admin.fails("LimitExceeded", "*", "iam:TagUser", "UserName", "u", "Tags.member.1.Key", "one more", "Tags.member.1.Value", "")
	a.admin.fails("ValidationError", "*", "iam:TagUser", append([]string{"UserName", "u", "Tags.member.51.Key", "x", "Tags.member.51.Value", ""}, pairs...)...)
	long := trust(awsPrincipal(trustAccount(a.account)), `,"Condition":{"StringEquals":{"sts:ExternalId":"X"}}`)
	long = strings.Replace(long, `"X"`, `"`+strings.Repeat("x", store.TrustPolicyMax-len(long)+1)+`"`, 1)
	a.admin.ok("iam:CreateRole", "RoleName", "full", "AssumeRolePolicyDocument", long)
	a.admin.fails("LimitExceeded", "*", "iam:CreateRole", "RoleName", "more", "AssumeRolePolicyDocument", strings.Replace(long, "xx", "xxx", 1))
}

func TestTags(t *testing.T) {
	a := newAPI(t)
	for _, kind := range []string{"User", "Role"} {
		name := []string{kind + "Name", "x"}
		if kind == "User" {
			a.admin.ok("iam:CreateUser", name...)
		} else {
			a.admin.ok("iam:CreateRole", append(name, "AssumeRolePolicyDocument", trust(awsPrincipal(a.account.String()), ""))...)
		}
		a.admin.ok("iam:Tag"+kind, append(name, "Tags.member.1.Key", "b", "Tags.member.1.Value", "2", "Tags.member.2.Key", "a", "Tags.member.2.Value", "1")...)
		a.admin.ok("iam:Tag"+kind, append(name, "Tags.member.1.Key", "B", "Tags.member.1.Value", "3")...)
		if body := a.admin.ok("iam:List"+kind+"Tags", name...); fields(body, "Key") != "a B" || fields(body, "Value") != "1 3" {
			t.Error(body)
		}
		s := a.table.Subject(a.arn(strings.ToLower(kind) + "/x"))
		if len(s.Tags) != 2 || s.Tags[1].Value != "3" {
			t.Errorf("%+v", s)
		}
		a.admin.ok("iam:Untag"+kind, append(name, "TagKeys.member.1", "b", "TagKeys.member.2", "none")...)
		if body := a.admin.ok("iam:List"+kind+"Tags", name...); fields(body, "Key") != "a" {
			t.Error(body)
		}
		a.admin.fails("ValidationError", "*", "iam:Tag"+kind, name...)
	}
}

func TestRoles(t *testing.T) {
	a := newAPI(t)
	user := a.newUser("u", "")
	arn := a.arn("role/r")
	body := a.admin.ok("iam:CreateRole", "RoleName", "r", "AssumeRolePolicyDocument", trust(awsPrincipal(a.arn("user/u")), ""), "Description", "d", "MaxSessionDuration", "7200")
	if field(body, "Arn") != arn || !regexp.MustCompile("^AROA[A-Z2-7]{17}$").MatchString(field(body, "RoleId")) || field(body, "MaxSessionDuration") != "7200" {
		t.Error(body)
	}
	session := a.credentials(user.ok("sts:AssumeRole", "RoleArn", arn, "RoleSessionName", "work"))
	if body := session.ok("sts:GetCallerIdentity"); field(body, "Arn") != "arn:aws:sts::"+a.account.String()+":assumed-role/r/work" || !strings.HasSuffix(field(body, "UserId"), ":work") {
		t.Error(body)
	}
	session.fails("ValidationError", "Must specify userName when calling with non-User credentials", "iam:GetUser")
	session.fails("AccessDenied", "*", "iam:ListRoles")
	a.admin.ok("iam:PutRolePolicy", "RoleName", "r", "PolicyName", "p", "PolicyDocument", allow("iam:ListRoles", "*"))
	if got := fields(session.ok("iam:ListRoles"), "RoleName"); got != "r" {
		t.Error(got)
	}
	// Security tokens: none, another session's, one with a long-term key.
	other := a.credentials(user.ok("sts:AssumeRole", "RoleArn", arn, "RoleSessionName", "work"))
	for name, w := range map[string]*caller{
		"no token": a.as(session.id, session.secretKey, ""), "another's": a.as(session.id, session.secretKey, other.token), "with a user's key": a.as(user.id, user.secretKey, session.token),
		"wrong": a.as(session.id, session.secretKey, session.token+"x"),
	} {
		if status, body := w.do("sts:GetCallerIdentity"); status != 403 || field(body, "Code") != "InvalidClientTokenId" {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
	// The trust policy names the user by ID: made again, it is somebody else.
	a.admin.ok("iam:DeleteAccessKey", "UserName", "u", "AccessKeyId", user.id)
	a.admin.ok("iam:DeleteUser", "UserName", "u")
	again := a.newUser("u", "")
	again.fails("AccessDenied", "User: "+a.arn("user/u")+" is not authorized to perform: sts:AssumeRole on resource: "+arn, "sts:AssumeRole", "RoleArn", arn, "RoleSessionName", "work")
	a.admin.ok("iam:UpdateAssumeRolePolicy", "RoleName", "r", "PolicyDocument", trust(awsPrincipal(a.arn("user/u")), ""))
	again.ok("sts:AssumeRole", "RoleArn", arn, "RoleSessionName", "work")
	if status, body := a.admin.do("iam:UpdateAssumeRolePolicy", "RoleName", "r", "PolicyDocument", trust(awsPrincipal(a.arn("user/none")), "")); status != 400 || field(body, "Code") != "MalformedPolicyDocument" {
		t.Errorf("%d %s", status, body)
	}
	// Deleted, its sessions are dead.
	a.admin.fails("DeleteConflict", "Cannot delete entity, must delete policies first.", "iam:DeleteRole", "RoleName", "r")
	a.admin.ok("iam:DeleteRolePolicy", "RoleName", "r", "PolicyName", "p")
	a.admin.ok("iam:DeleteRole", "RoleName", "r")
	session.fails("InvalidClientTokenId", "*", "sts:GetCallerIdentity")
	again.fails("AccessDenied", "User: "+a.arn("user/u")+" is not authorized to perform: sts:AssumeRole on resource: "+arn, "sts:AssumeRole", "RoleArn", arn, "RoleSessionName", "work")
	for _, bad := range [][]string{
		{"MaxSessionDuration", "3599"}, {"MaxSessionDuration", "43201"}, {"Description", strings.Repeat("d", 1001)},
	} {
		a.admin.fails("ValidationError", "*", "iam:CreateRole", append(bad, "RoleName", "x", "AssumeRolePolicyDocument", trust(awsPrincipal(a.account.String()), ""))...)
	}
	a.admin.fails("ValidationError", "*", "iam:CreateRole", "RoleName", "x")
}

// Who may assume a role: the trust policy's forms, and where an identity policy is needed too.
func TestAssumeRole(t *testing.T) {
	a := newAPI(t)
	account := a.account.String()
	foreign := newAccount()
	root := a.credentials(a.admin.ok("iam:CreateAccount", "AccountId", foreign.String()))
	root.ok("iam:CreateUser", "UserName", "f")
	root.ok("iam:CreateUser", "UserName", "fi")
	root.ok("iam:PutUserPolicy", "UserName", "fi", "PolicyName", "p", "PolicyDocument", allow("sts:*", "*"))
	who := map[string]*caller{
		"plain": a.newUser("plain", ""), "allowed": a.newUser("allowed", allow("sts:*", "*")), "root": root,
		"foreign": a.credentials(root.ok("iam:CreateAccessKey", "UserName", "f")), "foreign allowed": a.credentials(root.ok("iam:CreateAccessKey", "UserName", "fi")),
	}
	arnOf := func(a keyid.Account, rest string) string { return "arn:aws:iam::" + a.String() + ":" + rest }
	n := 0
	for _, c := range []struct {
		name, trust string
		pairs       []string
		allowed     string // who
	}{
		{"the account", trust(awsPrincipal(account), ""), nil, "allowed"},
		{"the account's root", trust(awsPrincipal(a.arn("root")), ""), nil, "allowed"},
		{"the users", trust(`{"AWS":["`+a.arn("user/plain")+`","`+a.arn("user/allowed")+`"]}`, ""), nil, "allowed plain"},
		{"anybody", trust(`"*"`, ""), nil, "allowed foreign allowed plain"},
		{"another account", trust(awsPrincipal(arnOf(foreign, "root")), ""), nil, "foreign allowed"},
		{"another's user", trust(awsPrincipal(arnOf(foreign, "user/fi")), ""), nil, "foreign allowed"},
		{"another's user who may not", trust(awsPrincipal(arnOf(foreign, "user/f")), ""), nil, ""},
		{"a service", trust(`{"Service":"s3.amazonaws.com"}`, ""), nil, ""},
		{"external ID", trust(awsPrincipal(account), `,"Condition":{"StringEquals":{"sts:ExternalId":"secret:1"}}`), []string{"ExternalId", "secret:1"}, "allowed"},
		{"wrong external ID", trust(awsPrincipal(account), `,"Condition":{"StringEquals":{"sts:ExternalId":"secret:1"}}`), []string{"ExternalId", "secret:2"}, ""},
		{"no external ID", trust(awsPrincipal(account), `,"Condition":{"StringEquals":{"sts:ExternalId":"secret:1"}}`), nil, ""},
		{"session name", trust(awsPrincipal(account), `,"Condition":{"StringLike":{"sts:RoleSessionName":"sess*"}}`), nil, "allowed"},
		{"another session name", trust(awsPrincipal(account), `,"Condition":{"StringLike":{"sts:RoleSessionName":"x*"}}`), nil, ""},
		{"its own name as session name", trust(`"*"`, `,"Condition":{"StringEquals":{"sts:RoleSessionName":"${aws:username}"}}`), []string{"RoleSessionName", "plain"}, "plain"},
		{"tags", trust(awsPrincipal(account), `,"Condition":{"StringEquals":{"aws:RequestTag/team":"red"}}`), []string{"Tags.member.1.Key", "team", "Tags.member.1.Value", "red"}, "allowed"},
		{"other tags", trust(awsPrincipal(account), `,"Condition":{"StringEquals":{"aws:RequestTag/team":"red"}}`), []string{"Tags.member.1.Key", "team", "Tags.member.1.Value", "blue"}, ""},
		{"source identity", trust(awsPrincipal(account), `,"Condition":{"StringEquals":{"sts:SourceIdentity":"me"}}`), []string{"SourceIdentity", "me"}, "allowed"},
		{"tags without sts:TagSession", strings.Replace(trust(awsPrincipal(account), ""), `,"sts:TagSession"`, "", 1), []string{"Tags.member.1.Key", "team", "Tags.member.1.Value", "red"}, ""},
		{"source identity without its action", strings.Replace(trust(awsPrincipal(account), ""), `,"sts:SetSourceIdentity"`, "", 1), []string{"SourceIdentity", "me"}, ""},
		{"denied", strings.Replace(trust(awsPrincipal(account), ""), "Allow", "Deny", 1), nil, ""},
	} {
		n++
		name := fmt.Sprintf("r%d", n)
		a.admin.ok("iam:CreateRole", "RoleName", name, "AssumeRolePolicyDocument", c.trust)
		for as, w := range who {
			// "allowed" is a part of "foreign allowed": compare with the names around it.
			want := strings.Contains(" "+strings.ReplaceAll(c.allowed, "foreign allowed", "foreign+allowed")+" ", " "+strings.ReplaceAll(as, " ", "+")+" ")
			pairs := append([]string{"RoleArn", a.arn("role/" + name)}, c.pairs...)
			if !strings.Contains(strings.Join(c.pairs, " "), "RoleSessionName") {
				pairs = append(pairs, "RoleSessionName", "session")
			}
			status, body := w.do("sts:AssumeRole", pairs...)
			if want != (status == 200) || !want && (status != 403 || field(body, "Code") != "AccessDenied") {
				t.Errorf("%s, %s: %d %s", c.name, as, status, body)
			}
			if !want && as != "root" && !strings.Contains(field(body, "Message"), "is not authorized to perform: sts:") {
				t.Errorf("%s, %s: %s", c.name, as, body)
			}
		}
	}
	root.fails("AccessDenied", "Roles may not be assumed by root accounts.", "sts:AssumeRole", "RoleArn", a.arn("role/r4"), "RoleSessionName", "session")
}

// Sessions: policies, tags, duration, chaining, what they carry.
func TestAssumedSessions(t *testing.T) {
	a := newAPI(t)
	user := a.newUser("u", "")
	for _, name := range []string{"one", "two"} {
		a.admin.ok("iam:CreateRole", "RoleName", name, "MaxSessionDuration", "7200", "AssumeRolePolicyDocument",
			trust(`{"AWS":["`+a.arn("user/u")+`","`+a.account.String()+`"]}`, ""))
		a.admin.ok("iam:PutRolePolicy", "RoleName", name, "PolicyName", "p", "PolicyDocument", `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":["iam:List*","sts:*"],"Resource":"*"}}`)
	}
	one, two := a.arn("role/one"), a.arn("role/two")
	assume := func(w *caller, arn string, pairs ...string) *caller {
		t.Helper()
		return a.credentials(w.ok("sts:AssumeRole", append([]string{"RoleArn", arn, "RoleSessionName", "session"}, pairs...)...))
	}
	limited := assume(user, one, "Policy", allow("iam:ListUsers", "*"))
	limited.ok("iam:ListUsers")
	limited.fails("AccessDenied", "User: arn:aws:sts::"+a.account.String()+":assumed-role/one/session is not authorized to perform: iam:ListRoles on resource: "+a.arn("role/")+
		" because no session policy allows the iam:ListRoles action", "iam:ListRoles")
	managed := field(a.admin.ok("iam:CreatePolicy", "PolicyName", "P", "PolicyDocument", allow("iam:ListRoles", "*")), "Arn")
	both := assume(user, one, "Policy", allow("iam:*", "*"), "PolicyArns.member.1.arn", managed)
	both.ok("iam:ListRoles")
	both.fails("AccessDenied", "*", "iam:ListUsers")
	// A session policy gives nothing that the role has not.
	wide := assume(user, one, "PolicyArns.member.1.arn", "arn:aws:iam::aws:policy/AdministratorAccess")
	wide.fails("AccessDenied", "*", "iam:CreateUser", "UserName", "x")
	wide.ok("iam:ListUsers")

	body := user.ok("sts:AssumeRole", "RoleArn", one, "RoleSessionName", "session", "DurationSeconds", "7200", "SourceIdentity", "alice", "Tags.member.1.Key", "team", "Tags.member.1.Value", "red")
	if field(body, "Expiration") != "2026-11-23T14:00:00Z" || field(body, "SourceIdentity") != "alice" || field(body, "PackedPolicySize") == "" ||
		field(body, "AssumedRoleId") != a.table.Subject(one).ID+":session" || field(body, "Arn") != "arn:aws:sts::"+a.account.String()+":assumed-role/one/session" {
		t.Error(body)
	}
	first := a.credentials(body)
	w := a.table.AccessKey([]byte(first.id)).Principal().Caller
	if w.Source != "alice" || len(w.Tags) != 1 || !w.TokenIssued.Equal(a.clock.now()) {
		t.Errorf("%+v", w)
	}
	// Chained: an hour at most; the source identity goes along, the tags do not.
	first.fails("ValidationError", "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining.",
		"sts:AssumeRole", "RoleArn", two, "RoleSessionName", "session", "DurationSeconds", "3601")
	second := assume(first, two, "DurationSeconds", "3600")
	if w := a.table.AccessKey([]byte(second.id)).Principal().Caller; w.Source != "alice" || len(w.Tags) != 0 {
		t.Errorf("%+v", w)
	}
	first.fails("AccessDenied", "*", "sts:AssumeRole", "RoleArn", two, "RoleSessionName", "session", "SourceIdentity", "bob")
	assume(first, two, "SourceIdentity", "alice")
	// Expired.
	a.clock.add(time.Hour - time.Millisecond)
	second.ok("sts:GetCallerIdentity")
	a.clock.add(time.Millisecond)
	second.fails("ExpiredToken", "*", "sts:GetCallerIdentity")
	first.ok("sts:GetCallerIdentity")

	for name, pairs := range map[string][]string{
		"short": {"DurationSeconds", "899"}, "long": {"DurationSeconds", "43201"}, "longer than the role's": {"DurationSeconds", "7201"},
		"session name of one": {"RoleSessionName", "s"}, "session name of 65": {"RoleSessionName", strings.Repeat("s", 65)}, "session name with a slash": {"RoleSessionName", "a/b"},
		"external ID of one": {"ExternalId", "e"}, "external ID of 1225": {"ExternalId", strings.Repeat("e", 1225)}, "external ID with a blank": {"ExternalId", "a b"},
		"policy of 2049": {"Policy", sized(2049)}, "another account's policy": {"PolicyArns.member.1.arn", "arn:aws:iam::111111111111:policy/P"},
		"no such policy": {"PolicyArns.member.1.arn", a.arn("policy/Q")}, "MFA": {"SerialNumber", "1234567890"}, "transitive tags": {"TransitiveTagKeys.member.1", "k"},
		"source identity of one": {"SourceIdentity", "s"},
	} {
		all := append([]string{"RoleArn", one}, pairs...)
		if pairs[0] != "RoleSessionName" {
			all = append(all, "RoleSessionName", "session")
		}
		if status, body := user.do("sts:AssumeRole", all...); status != 400 || field(body, "Code") != "ValidationError" {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
	var eleven []string
	for i := range 11 {
		eleven = append(eleven, fmt.Sprintf("PolicyArns.member.%d.arn", i+1), managed)
	}
	user.fails("ValidationError", "*", "sts:AssumeRole", append(eleven, "RoleArn", one, "RoleSessionName", "session")...)
	user.ok("sts:AssumeRole", append(eleven[:20], "RoleArn", one, "RoleSessionName", "session", "Policy", sized(2048), "ExternalId", strings.Repeat("e", 1224))...)
	user.fails("MalformedPolicyDocument", "*", "sts:AssumeRole", "RoleArn", one, "RoleSessionName", "session", "Policy", "{}x")
	for _, arn := range []string{"arn:aws:sts::" + a.account.String() + ":assumed-role/one/session", a.arn("user/u"), a.arn("role/none"), a.arn("role/path/one")} {
		user.fails("AccessDenied", "User: "+a.arn("user/u")+" is not authorized to perform: sts:AssumeRole on resource: "+arn, "sts:AssumeRole", "RoleArn", arn, "RoleSessionName", "session")
	}
}

func TestRegistry(t *testing.T) {
	a := newAPI(t)
	other, third := newAccount(), newAccount()
	root := a.credentials(a.admin.ok("iam:CreateAccount", "AccountId", other.String()))
	a.admin.ok("iam:CreateAccount", "AccountId", third.String())
	a.admin.fails("EntityAlreadyExists", "*", "iam:CreateAccount", "AccountId", other.String())
	a.admin.fails("ValidationError", "*", "iam:CreateAccount", "AccountId", "12345678901x")
	if got := field(a.admin.ok("iam:CreateAccount"), "AccountId"); !regexp.MustCompile("^[1-9][0-9]{11}$").MatchString(got) {
		t.Error(got)
	}
	if got := fields(a.admin.ok("iam:ListAccounts", "MaxItems", "1000"), "AccountId"); !strings.Contains(got, a.account.String()) || !strings.Contains(got, other.String()) {
		t.Error(got)
	}
	root.ok("iam:CreateUser", "UserName", "theirs")
	if got := root.ok("iam:GetUser"); field(got, "Arn") != "arn:aws:iam::"+other.String()+":root" {
		t.Error(got)
	}
	root.ok("iam:CreateAccessKey") // root's second
	root.fails("LimitExceeded", "*", "iam:CreateAccessKey")
	name := "storage" + a.account.String() + ".us-east-1.amazonaws.com"
	register := []string{"ServiceName", name, "Accounts.member.1", other.String(), "Accounts.member.2", a.account.String()}
	// Root of another account is nobody here; a user of the first needs the permission.
	for _, action := range []string{"CreateAccount", "ListAccounts", "ListServices"} {
		root.fails("AccessDenied", "User: arn:aws:iam::"+other.String()+":root is not authorized to perform: keyplane:"+action+" on resource: *", "iam:"+action)
	}
	root.fails("AccessDenied", "*", "iam:RegisterService", register...)
	operator := a.newUser("operator", allow("keyplane:*Service*", "*"))
	operator.fails("AccessDenied", "*", "iam:CreateAccount")
	service := a.credentials(operator.ok("iam:RegisterService", register...))
	operator.fails("EntityAlreadyExists", "*", "iam:RegisterService", register...)
	for _, bad := range [][]string{
		{"ServiceName", "nodots"}, {"ServiceName", "Upper.case"}, {"ServiceName", "a.b", "Accounts.member.1", "1"}, {"ServiceName", "a.b", "AllAccounts", "true", "Accounts.member.1", other.String()}, {"ServiceName", "a..b"},
	} {
		operator.fails("ValidationError", "*", "iam:RegisterService", bad...)
	}
	if got := operator.ok("iam:ListServices", "MaxItems", "1000"); !strings.Contains(fields(got, "ServiceName"), name) {
		t.Error(got)
	}
	if got := service.ok("sts:GetCallerIdentity"); field(got, "Arn") != name || field(got, "UserId") != name {
		t.Error(got)
	}
	service.fails("AccessDenied", "*", "iam:ListUsers")

	// Forward access sessions.
	root.ok("iam:CreateRole", "RoleName", "r", "AssumeRolePolicyDocument", trust(awsPrincipal(other.String()), ""))
	theirs, role := "arn:aws:iam::"+other.String()+":user/theirs", "arn:aws:iam::"+other.String()+":role/r"
	body := service.ok("sts:GetForwardAccessSession", "PrincipalArn", theirs, "DurationSeconds", "900")
	session := a.credentials(body)
	if field(body, "Expiration") != "2026-11-23T12:15:00Z" || field(body, "Arn") != theirs {
		t.Error(body)
	}
	w := a.table.AccessKey([]byte(session.id)).Principal().Caller
	if w.Kind != policy.User || w.ARN != theirs || w.Via != name || w.ViaName != "storage"+a.account.String()+".amazonaws.com" || w.TokenIssued.IsZero() || w.UserName != "theirs" {
		t.Errorf("%+v", w)
	}
	if got := session.ok("sts:GetCallerIdentity"); field(got, "Arn") != theirs {
		t.Error(got)
	}
	session.fails("AccessDenied", "*", "iam:GetUser") // it is for keys
	session.fails("AccessDenied", "*", "sts:GetForwardAccessSession", "PrincipalArn", theirs)
	ofRole := a.credentials(service.ok("sts:GetForwardAccessSession", "PrincipalArn", role))
	if w := a.table.AccessKey([]byte(ofRole.id)).Principal().Caller; w.Kind != policy.AssumedRole || w.ARN != "arn:aws:sts::"+other.String()+":assumed-role/r/"+name || w.RoleARN != role || w.Via != name {
		t.Errorf("%+v", w)
	}
	for _, arn := range []string{
		"arn:aws:iam::" + third.String() + ":root", "arn:aws:iam::" + other.String() + ":root", "arn:aws:iam::" + other.String() + ":user/none",
		"arn:aws:sts::" + other.String() + ":assumed-role/r/session", name + ".not.an.arn",
	} {
		service.fails("AccessDenied", "User: "+name+" is not authorized to perform: sts:GetForwardAccessSession on resource: "+arn, "sts:GetForwardAccessSession", "PrincipalArn", arn)
	}
	service.fails("ValidationError", "*", "sts:GetForwardAccessSession", "PrincipalArn", theirs, "DurationSeconds", "3601")
	a.admin.fails("AccessDenied", "*", "sts:GetForwardAccessSession", "PrincipalArn", a.arn("user/administrator"))
	// A third account, for which it is not registered.
	thirdUser := "arn:aws:iam::" + third.String() + ":user/x"
	if err := a.table.EnsureAdministrator(t.Context(), third); err != nil {
		t.Fatal(err)
	}
	service.fails("AccessDenied", "*", "sts:GetForwardAccessSession", "PrincipalArn", strings.Replace(thirdUser, "/x", "/administrator", 1))
	// Keys of services are administered like keys of users.
	second := a.credentials(a.admin.ok("iam:CreateAccessKey", "ServiceName", name))
	second.ok("sts:GetCallerIdentity")
	operator.fails("AccessDenied", "*", "iam:DeleteAccessKey", "ServiceName", name, "AccessKeyId", second.id)
	a.admin.ok("iam:DeleteAccessKey", "ServiceName", name, "AccessKeyId", second.id)
	second.fails("InvalidClientTokenId", "*", "sts:GetCallerIdentity")
	// Deregistered: its keys and the sessions that it was given are dead, also once it is registered again, and after a start.
	operator.ok("iam:DeregisterService", "ServiceName", name)
	operator.fails("NoSuchEntity", "*", "iam:DeregisterService", "ServiceName", name)
	dead := []*caller{service, session, ofRole}
	for _, w := range dead {
		w.fails("InvalidClientTokenId", "*", "sts:GetCallerIdentity")
	}
	operator.ok("iam:RegisterService", register...)
	next, err := NewTable(TableConfig{Store: a.table.store, Region: "us-east-1", Now: a.clock.now})
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, w := range dead {
		w.fails("InvalidClientTokenId", "*", "sts:GetCallerIdentity")
		if next.AccessKey([]byte(w.id)) != nil {
			t.Errorf("%s is back", w.id)
		}
	}
}

// aws:ResourceAccount of a role that is assumed is its own account: a Deny of everything abroad holds.
func TestForeignRoleIsAnotherAccounts(t *testing.T) {
	a := newAPI(t)
	b := newAPI(t)
	if err := a.table.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	u := a.newUser("u", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"},
	{"Effect":"Deny","Action":"*","Resource":"*","Condition":{"StringNotEquals":{"aws:ResourceAccount":"`+a.account.String()+`"}}}]}`)
	other := b.account
	tr := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::` + a.account.String() + `:root"},"Action":"sts:AssumeRole"}]}`
	if err := b.table.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.admin.ok("iam:CreateRole", "RoleName", "foreign", "AssumeRolePolicyDocument", tr)
	if err := a.table.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s, body := u.do("sts:AssumeRole", "RoleArn", "arn:aws:iam::"+other.String()+":role/foreign", "RoleSessionName", "sess"); s == 200 {
		t.Errorf("assumed a foreign role against the Deny: %s", field(body, "Arn"))
	}
}

// aws:SecureTransport is of each request: whoever has it on its way here has no endpoint of its own.
func TestSecureTransport(t *testing.T) {
	a := newAPI(t)
	u := a.newUser("u", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"iam:ListUsers","Resource":"*","Condition":{"Bool":{"aws:SecureTransport":"true"}}}]}`)
	u.fails("AccessDenied", "*", "iam:ListUsers")
	a.secure = true
	u.ok("iam:ListUsers")
}
