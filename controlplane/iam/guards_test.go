package iam

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
)

const allowAll = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}`

// A Deny that guards against more rights holds: on the policy that is attached, on the tags of who is changed.
func TestGuardsHold(t *testing.T) {
	a := newAPI(t)
	u := a.newUser("ops", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"iam:*","Resource":"*"},
	{"Effect":"Deny","Action":["iam:AttachUserPolicy","iam:AttachRolePolicy"],"Resource":"*","Condition":{"ArnEquals":{"iam:PolicyARN":"arn:aws:iam::aws:policy/AdministratorAccess"}}},
	{"Effect":"Deny","Action":["iam:DeleteUser","iam:CreateAccessKey"],"Resource":"*","Condition":{"StringEquals":{"aws:ResourceTag/protected":"yes"}}}]}`)
	if s, b := u.do("iam:AttachUserPolicy", "UserName", "ops", "PolicyArn", "arn:aws:iam::aws:policy/AdministratorAccess"); s == 200 {
		t.Errorf("Deny with iam:PolicyARN does not hold: %d %s", s, b)
	}
	a.admin.ok("iam:CreateUser", "UserName", "boss", "Tags.member.1.Key", "protected", "Tags.member.1.Value", "yes")
	if s, b := u.do("iam:CreateAccessKey", "UserName", "boss"); s == 200 {
		t.Errorf("Deny with aws:ResourceTag does not hold: %d", s)
		_ = b
	}
}

// What a session may carry is bounded in bytes, white space included.
func TestSessionPoliciesAreBounded(t *testing.T) {
	a := newAPI(t)
	a.admin.ok("iam:CreateRole", "RoleName", "r", "AssumeRolePolicyDocument", `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":{"AWS":"`+a.arn("root")+`"},"Action":"sts:AssumeRole"}}`)
	args := []string{"RoleArn", a.arn("role/r"), "RoleSessionName", "sess"}
	for i := range 10 {
		n := string(rune('0' + i + 1))
		if i == 9 {
			n = "10"
		}
		s, b := a.admin.do("iam:CreatePolicy", "PolicyName", "pad"+n, "PolicyDocument", allowAll+strings.Repeat(" ", 15_000))
		if s != 200 {
			t.Fatalf("%d %s", s, field(b, "Message"))
		}
		args = append(args, "PolicyArns.member."+n+".arn", a.arn("policy/pad"+n))
	}
	s, b := a.admin.do("sts:AssumeRole", args...)
	if s != 400 || field(b, "Code") != "PackedPolicyTooLarge" {
		t.Errorf("ten padded policies: %d %s", s, field(b, "Code"))
	}
	if s, b = a.admin.do("sts:AssumeRole", args[:4+2*2]...); s != 400 || field(b, "Code") != "PackedPolicyTooLarge" {
		t.Errorf("two padded policies: %d %s", s, field(b, "Code"))
	}
	if s, b = a.admin.do("sts:AssumeRole", args[:4+2]...); s != 200 {
		t.Errorf("one padded policy: %d %s", s, b)
	}
}

// Another source identity than the session's is refused without telling whether the role exists.
func TestSourceIdentityTellsNothing(t *testing.T) {
	a := newAPI(t)
	trust := `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":{"AWS":"` + a.arn("root") + `"},"Action":["sts:AssumeRole","sts:SetSourceIdentity"]}}`
	a.admin.ok("iam:CreateRole", "RoleName", "r", "AssumeRolePolicyDocument", trust)
	b := a.admin.ok("sts:AssumeRole", "RoleArn", a.arn("role/r"), "RoleSessionName", "sess", "SourceIdentity", "alice")
	w := a.as(field(b, "AccessKeyId"), field(b, "SecretAccessKey"), field(b, "SessionToken"))
	a.admin.ok("iam:CreateRole", "RoleName", "secret", "AssumeRolePolicyDocument", `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":{"Service":"x.y.z"},"Action":"sts:AssumeRole"}}`)
	_, there := w.do("sts:AssumeRole", "RoleArn", a.arn("role/secret"), "RoleSessionName", "sess", "SourceIdentity", "mallory")
	_, not := w.do("sts:AssumeRole", "RoleArn", a.arn("role/absent"), "RoleSessionName", "sess", "SourceIdentity", "mallory")
	if x, y := strings.Replace(field(there, "Message"), "secret", "X", 1), strings.Replace(field(not, "Message"), "absent", "X", 1); x != y {
		t.Errorf("existence leaks:\n%s\n%s", x, y)
	}
}

// DeletePolicy and CreatePolicy have committed but not published yet when AttachUserPolicy runs.
func TestPolicyMadeAgain(t *testing.T) {
	a := newAPI(t)
	ctx := t.Context()
	a.admin.ok("iam:CreateUser", "UserName", "u")
	a.admin.ok("iam:CreatePolicy", "PolicyName", "m", "PolicyDocument", allowAll)
	arn := a.arn("policy/m")
	old, err := a.table.store.ManagedPolicy(ctx, arn)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.table.store.DeletePolicy(ctx, arn, old.ID); err != nil {
		t.Fatal(err)
	}
	m := &store.ManagedPolicy{Account: a.account, Name: "m", Path: "/", ID: newID("ANPA"), Created: a.clock.now(),
		Document: `{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"*","Resource":"*"}]}`}
	if err := a.table.store.CreatePolicy(ctx, m); err != nil {
		t.Fatal(err)
	}
	b := a.admin.ok("iam:CreateAccessKey", "UserName", "u")
	w := a.as(field(b, "AccessKeyId"), field(b, "SecretAccessKey"), "")
	a.admin.ok("iam:AttachUserPolicy", "UserName", "u", "PolicyArn", arn)
	if err := a.table.publishPolicy(ctx, arn, nil); err != nil { // both publish now
		t.Fatal(err)
	}
	if s, _ := w.do("iam:ListUsers"); s == 200 {
		t.Error("the user still has the deleted policy's Allow, for ever")
	}
}

// Somebody else's removal has committed and is not published yet. Whoever is answered that there is nothing any more is told the truth.
func TestGoneIsGone(t *testing.T) {
	for _, c := range []struct{ action, param string }{
		{"iam:DeleteAccessKey", "AccessKeyId"}, {"iam:UpdateAccessKey", "AccessKeyId"}, {"iam:GetUser", ""}, {"iam:DeleteUser", ""}, {"iam:PutUserPolicy", ""},
	} {
		a := newAPI(t)
		w := a.newUser("u", allowAll)
		n := store.PrincipalName{Kind: store.User, Account: a.account, Name: "u"}
		remove := []error{a.table.store.RemoveAccessKey(t.Context(), store.Owner{Account: a.account, User: "u"}, w.id)}
		pairs := []string{"UserName", "u"}
		switch {
		case c.param != "":
			pairs = append(pairs, c.param, w.id)
			if c.action == "iam:UpdateAccessKey" {
				pairs = append(pairs, "Status", "Inactive")
			}
		default:
			p, err := a.table.store.UpdatePrincipal(t.Context(), n, func(p *store.Principal) error { p.Inline = nil; return nil })
			remove = append(remove, err, a.table.store.DeletePrincipal(t.Context(), n, p.ID))
			if c.action == "iam:PutUserPolicy" {
				pairs = append(pairs, "PolicyName", "p", "PolicyDocument", allowAll)
			}
		}
		if err := errors.Join(remove...); err != nil {
			t.Fatal(err)
		}
		a.admin.fails("NoSuchEntity", "*", c.action, pairs...)
		if s, _ := w.do("sts:GetCallerIdentity"); s == 200 {
			t.Errorf("%s told that it is gone, but the access key still signs in", c.action)
		}
	}
}

// Sessions of a deleted role do not count.
func TestSessionsOfDeletedRole(t *testing.T) {
	a := newAPI(t)
	r := a.role("r", trustAccount(a.account))
	a.begin(r, "sess")
	a.admin.ok("iam:DeleteRole", "RoleName", "r")
	a.table.sessions.mu.Lock()
	n := a.table.sessions.counts[a.account]
	a.table.sessions.mu.Unlock()
	if n != 0 {
		t.Errorf("%d sessions of a deleted role count against SessionsMax until they expire", n)
	}
}

// The records of a deleted role's sessions are deleted too, and of no others.
func TestRecordsOfEndedSessions(t *testing.T) {
	a := newAPI(t)
	r, other := a.role("r", trustAccount(a.account)), a.role("other", trustAccount(a.account))
	const many = 105 // more than one transaction
	for range many {
		a.begin(r, "sess")
	}
	stays := a.begin(other, "sess")
	records := func() (ids []string) {
		if err := a.table.store.Sessions(t.Context(), func(v *store.Session) error {
			v.Secret.Wipe()
			if v.Principal.Account == a.account {
				ids = append(ids, v.ID)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return ids
	}
	if n := len(records()); n != many+1 {
		t.Fatalf("%d records", n)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- a.table.Run(ctx) }()
	a.admin.ok("iam:DeleteRole", "RoleName", "r")
	for deadline := time.Now().Add(time.Minute); len(records()) > 1 && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	if ids := records(); len(ids) != 1 || ids[0] != stays.id {
		t.Errorf("%d records are left", len(ids))
	}
	stop()
	<-done
}

// A Deny on the tags of a managed policy, of a role that is assumed and of a simulated principal holds, and one on the user agent.
func TestGuardsSeeTagsAndUserAgent(t *testing.T) {
	a := newAPI(t)
	protected := []string{"Tags.member.1.Key", "protected", "Tags.member.1.Value", "yes"}
	trusted := `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":{"AWS":"` + a.arn("root") + `"},"Action":"sts:AssumeRole"}}`
	for _, name := range []string{"open", "closed"} {
		tags := protected
		if name == "open" {
			tags = nil
		}
		a.admin.ok("iam:CreatePolicy", append([]string{"PolicyName", name, "PolicyDocument", allowAll}, tags...)...)
		a.admin.ok("iam:CreateRole", append([]string{"RoleName", name, "AssumeRolePolicyDocument", trusted}, tags...)...)
	}
	for _, c := range []struct{ name, condition string }{
		{"aws", `"StringEquals":{"aws:ResourceTag/protected":"yes"}`},
		{"iam", `"StringEquals":{"iam:ResourceTag/protected":"yes"}`},
	} {
		u := a.newUser(c.name, `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"},
			{"Effect":"Deny","Action":"*","Resource":"*","Condition":{`+c.condition+`}}]}`)
		for name, ok := range map[string]bool{"open": true, "closed": false} {
			for action, pairs := range map[string][]string{
				"iam:GetPolicy":               {"PolicyArn", a.arn("policy/" + name)},
				"iam:GetPolicyVersion":        {"PolicyArn", a.arn("policy/" + name), "VersionId", "v1"},
				"iam:GetRole":                 {"RoleName", name},
				"iam:SimulatePrincipalPolicy": {"PolicySourceArn", a.arn("role/" + name), "ActionNames.member.1", "iam:GetUser"},
				"sts:AssumeRole":              {"RoleArn", a.arn("role/" + name), "RoleSessionName", "session"},
			} {
				if ok {
					u.ok(action, pairs...)
				} else {
					u.fails("AccessDenied", "*", action, pairs...)
				}
			}
		}
		u.fails("AccessDenied", "*", "iam:DeletePolicy", "PolicyArn", a.arn("policy/closed"))
		u.fails("NoSuchEntity", "*", "iam:GetPolicy", "PolicyArn", a.arn("policy/absent"))
	}
	for agent, ok := range map[string]bool{"keyplane-test/*": false, "other/*": true} {
		u := a.newUser("agent"+agent[:1], `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"},
			{"Effect":"Deny","Action":"*","Resource":"*","Condition":{"StringLike":{"aws:UserAgent":"`+agent+`"}}}]}`)
		if ok {
			u.ok("iam:ListUsers")
		} else {
			u.fails("AccessDenied", "*", "iam:ListUsers")
		}
	}
}

// A Deny on iam:PermissionsBoundary sees the boundary that is asked for, else the one that there is.
func TestGuardsSeeBoundaries(t *testing.T) {
	a := newAPI(t)
	a.admin.ok("iam:CreatePolicy", "PolicyName", "limit", "PolicyDocument", allowAll)
	limit := a.arn("policy/limit")
	u := a.newUser("ops", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"},
		{"Effect":"Deny","Action":["iam:CreateUser","iam:PutUserPolicy","iam:PutUserPermissionsBoundary"],"Resource":"*",
			"Condition":{"StringNotEquals":{"iam:PermissionsBoundary":"`+limit+`"}}},
		{"Effect":"Deny","Action":"iam:DeleteUserPermissionsBoundary","Resource":"*","Condition":{"StringEquals":{"iam:PermissionsBoundary":"`+limit+`"}}}]}`)
	administrator := "arn:aws:iam::aws:policy/AdministratorAccess"
	a.admin.ok("iam:CreateUser", "UserName", "free")
	u.ok("iam:CreateUser", "UserName", "made", "PermissionsBoundary", limit)
	u.ok("iam:PutUserPolicy", "UserName", "made", "PolicyName", "p", "PolicyDocument", allowAll)
	u.ok("iam:PutUserPermissionsBoundary", "UserName", "made", "PermissionsBoundary", limit)
	u.fails("AccessDenied", "*", "iam:CreateUser", "UserName", "none")
	u.fails("AccessDenied", "*", "iam:CreateUser", "UserName", "none", "PermissionsBoundary", administrator)
	u.fails("AccessDenied", "*", "iam:PutUserPolicy", "UserName", "free", "PolicyName", "p", "PolicyDocument", allowAll)
	u.fails("AccessDenied", "*", "iam:PutUserPermissionsBoundary", "UserName", "made", "PermissionsBoundary", administrator)
	u.fails("AccessDenied", "*", "iam:DeleteUserPermissionsBoundary", "UserName", "made")
}
