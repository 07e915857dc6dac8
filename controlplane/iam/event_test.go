package iam

import (
	"strings"
	"testing"

	"github.com/go-json-experiment/json"

	"github.com/keyplane/keyplane/internal/cloudtrail"
)

func (a *api) record() *cloudtrail.Record {
	a.last = &cloudtrail.Record{Source: cloudtrail.IAM, EventID: [36]byte([]byte(strings.Repeat("0", 36)))}
	return a.last
}

// checkRecord holds what is so of every record: strict JSON, an error exactly where the reply is one, and none of the reply's secrets.
func (a *api) checkRecord(status int, reply string) {
	a.Helper()
	line := a.last.Append(nil)
	if err := json.Unmarshal(line, new(map[string]any)); err != nil {
		a.Errorf("%v in %s", err, line)
	}
	if a.last.ErrorCode != field(reply, "Code") || (a.last.ErrorCode == "") != (status == 200) {
		a.Errorf("error %q in the record of %d %s", a.last.ErrorCode, status, reply)
	}
	for _, secret := range []string{field(reply, "SecretAccessKey"), field(reply, "SessionToken")} {
		if secret != "" && strings.Contains(string(line), secret) {
			a.Errorf("a secret is shown: %s", line)
		}
	}
}

// event is the last record without what the caller of Serve knows.
func (a *api) event() string {
	text := a.last.Name
	if a.last.ReadOnly {
		text += " readOnly"
	}
	for _, part := range []string{a.last.ErrorCode, string(a.last.RequestParameters), string(a.last.ResponseElements)} {
		if part != "" {
			text += " " + part
		}
	}
	for _, r := range a.last.Resources[:a.last.Count] {
		text += " " + r.Type + " " + r.Account.String() + " " + string(r.ARN)
	}
	return text
}

func TestRecords(t *testing.T) {
	a := newAPI(t)
	expect := func(want string) {
		t.Helper()
		if got := a.event(); got != strings.ReplaceAll(want, "ACCOUNT", a.account.String()) {
			t.Errorf("\n got %s\nwant %s", got, want)
		}
	}
	now := string(cloudtrail.AppendDate(nil, a.clock.now().Unix()))

	body := a.admin.ok("iam:CreateUser", "UserName", "u", "Path", "/p/", "Tags.member.1.Key", "k", "Tags.member.1.Value", "v")
	expect(`CreateUser {"userName":"u","path":"/p/","tags":[{"key":"k","value":"v"}]} {"user":{"path":"/p/","userName":"u","userId":"` + field(body, "UserId") +
		`","arn":"arn:aws:iam::ACCOUNT:user/p/u","createDate":` + now + `,"tags":[{"key":"k","value":"v"}]}}`)
	a.admin.do("iam:CreateUser", "UserName", "u")
	expect(`CreateUser EntityAlreadyExists {"userName":"u"}`)
	body = a.admin.ok("iam:CreateAccessKey", "UserName", "u")
	expect(`CreateAccessKey {"userName":"u"} {"accessKey":{"userName":"u","accessKeyId":"` + field(body, "AccessKeyId") + `","status":"Active","createDate":` + now + `}}`)
	a.admin.ok("iam:ListUsers")
	expect(`ListUsers readOnly`)
	document := `{"Version":"2012-10-17","Statement":[]}`
	a.admin.do("iam:PutUserPolicy", "UserName", "u", "PolicyName", "n", "PolicyDocument", document)
	quoted, err := json.Marshal(document)
	if err != nil {
		t.Fatal(err)
	}
	if got := a.event(); !strings.Contains(got, `"policyDocument":`+string(quoted)) {
		t.Error(got)
	}
	a.admin.do("iam:DropUser", "UserName", "u", "Password", "sesame")
	expect(" InvalidAction")
	a.admin.do("iam:DeleteUser", "UserName", "u", "Password", "sesame") // not a parameter of it
	expect(`DeleteUser ValidationError {"userName":"u"}`)

	a.admin.ok("iam:CreateUser", "UserName", "w")
	body = a.admin.ok("iam:CreateAccessKey", "UserName", "w")
	w := a.as(field(body, "AccessKeyId"), field(body, "SecretAccessKey"), "")
	a.admin.ok("iam:CreateRole", "RoleName", "r", "AssumeRolePolicyDocument", trust(awsPrincipal(a.arn("user/w")), ""))
	body = w.ok("sts:AssumeRole", "RoleArn", a.arn("role/r"), "RoleSessionName", "work", "ExternalId", "x1")
	id := field(body, "AssumedRoleId")
	expect(`AssumeRole readOnly {"roleArn":"arn:aws:iam::ACCOUNT:role/r","roleSessionName":"work","externalId":"x1"} {"credentials":{"accessKeyId":"` +
		field(body, "AccessKeyId") + `","expiration":` + string(cloudtrail.AppendDate(nil, a.clock.now().Unix()+3600)) +
		`},"assumedRoleUser":{"assumedRoleId":"` + id + `","arn":"arn:aws:sts::ACCOUNT:assumed-role/r/work"}} AWS::IAM::Role ACCOUNT arn:aws:iam::ACCOUNT:role/r`)
	w.do("sts:GetCallerIdentity")
	expect(`GetCallerIdentity readOnly`)
}

// A reply that is not as ours are shows nothing.
func TestElements(t *testing.T) {
	for reply, want := range map[string]string{
		"<R><XResult><Arn>a</Arn><Secret>s</Secret><Users><member><Arn>b</Arn></member><member>c</member></Users><Accounts><member>c</member><member>d</member></Accounts><E></E></XResult></R>": `{"arn":"a","users":[{"arn":"b"}],"accounts":["c","d"]}`,
		"<R><XResult></XResult></R>": "", "<R><XResult><Secret>s</Secret></XResult></R>": "", "<R><XResult>text</XResult></R>": "", "<R><XResult><Arn>a": "",
		"<R><ResponseMetadata><Arn>a</Arn></ResponseMetadata></R>": "", "": "", "not XML": "",
		"<R><XResult><member>a</member></XResult></R>": "",
	} {
		if got := string(elements([]byte(reply))); got != want {
			t.Errorf("%s: %s, want %s", reply, got, want)
		}
	}
}
