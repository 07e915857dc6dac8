package iamcli

import "strings"

// kind is what a flag's values become.
type kind uint8

const (
	text      kind = iota // one parameter; file://PATH is the file's content
	flagOnly              // no value: "true"
	list                  // values: Name.member.N
	tags                  // Key=k,Value=v …: Name.member.N.Key, .Value
	arns                  // arn=… or the ARN alone: Name.member.N.arn
	documents             // list of values that may be file://PATH
	entries               // ContextKeyName=k,ContextKeyValues=v,ContextKeyType=t …: ContextEntries.member.N.…
)

// option is one flag of a command: --user-name of the parameter UserName.
type option struct {
	parameter string
	kind      kind
	required  bool
}

// flag is the parameter's name as AWS's command line spells it.
func (o option) flag() string { return dashed(o.parameter) }

// command is one action.
type command struct {
	service, action string
	options         []option
	credentials     bool // the answer holds an access key or temporary credentials
}

func (c *command) name() string { return dashed(c.action) }

// dashed is PutUserPolicy as put-user-policy.
func dashed(s string) string {
	var b strings.Builder
	for i, c := range []byte(s) {
		if c >= 'A' && c <= 'Z' {
			if c += 'a' - 'A'; i > 0 {
				b.WriteByte('-')
			}
		}
		b.WriteByte(c)
	}
	return b.String()
}

// commands are all actions of the server. An option is written as its parameter, with * if it is required and the kind behind a colon.
var commands = func() []command {
	row := func(service, action string, options ...string) command {
		c := command{service: service, action: action}
		for _, o := range options {
			name, k, _ := strings.Cut(o, ":")
			name, required := strings.CutSuffix(name, "*")
			c.options = append(c.options, option{name, map[string]kind{"": text, "flag": flagOnly, "list": list, "tags": tags, "arns": arns, "entries": entries, "documents": documents}[k], required})
		}
		return c
	}
	withCredentials := func(c command) command {
		c.credentials = true
		return c
	}
	all := []command{
		withCredentials(row("iam", "CreateAccount", "AccountId")),
		row("iam", "ListAccounts", "MaxItems", "Marker"),
		withCredentials(row("iam", "RegisterService", "ServiceName*", "AllAccounts:flag", "Accounts:list")),
		row("iam", "DeregisterService", "ServiceName*"),
		row("iam", "ListServices", "MaxItems", "Marker"),

		withCredentials(row("iam", "CreateAccessKey", "UserName", "ServiceName")),
		row("iam", "DeleteAccessKey", "AccessKeyId*", "UserName", "ServiceName"),
		row("iam", "UpdateAccessKey", "AccessKeyId*", "Status*", "UserName", "ServiceName"),
		row("iam", "ListAccessKeys", "UserName", "ServiceName", "MaxItems", "Marker"),

		row("iam", "CreateUser", "UserName*", "Path", "PermissionsBoundary", "Tags:tags"),
		row("iam", "GetUser", "UserName"),
		row("iam", "CreateRole", "RoleName*", "AssumeRolePolicyDocument*", "Path", "Description", "MaxSessionDuration", "PermissionsBoundary", "Tags:tags"),
		row("iam", "GetRole", "RoleName*"),
		row("iam", "UpdateAssumeRolePolicy", "RoleName*", "PolicyDocument*"),

		row("iam", "CreatePolicy", "PolicyName*", "PolicyDocument*", "Path", "Description", "Tags:tags"),
		row("iam", "GetPolicy", "PolicyArn*"),
		row("iam", "GetPolicyVersion", "PolicyArn*", "VersionId*"),
		row("iam", "ListPolicies", "Scope", "OnlyAttached:flag", "PathPrefix", "MaxItems", "Marker"),
		row("iam", "DeletePolicy", "PolicyArn*"),

		row("iam", "SimulatePrincipalPolicy", "PolicySourceArn*", "ActionNames*:list", "ResourceArns:list", "CallerArn", "ContextEntries:entries",
			"PolicyInputList:documents", "PermissionsBoundaryPolicyInputList:documents", "ResourcePolicy", "MaxItems", "Marker"),

		row("sts", "GetCallerIdentity"),
		row("sts", "GetAccessKeyInfo", "AccessKeyId*"),
		withCredentials(row("sts", "AssumeRole", "RoleArn*", "RoleSessionName*", "DurationSeconds", "Policy", "PolicyArns:arns", "ExternalId", "SourceIdentity", "Tags:tags")),
		withCredentials(row("sts", "GetForwardAccessSession", "PrincipalArn*", "DurationSeconds")),
	}
	for _, who := range []string{"User", "Role"} {
		name := who + "Name*"
		all = append(all,
			row("iam", "List"+who+"s", "PathPrefix", "MaxItems", "Marker"),
			row("iam", "Delete"+who, name),
			row("iam", "Put"+who+"Policy", name, "PolicyName*", "PolicyDocument*"),
			row("iam", "Get"+who+"Policy", name, "PolicyName*"),
			row("iam", "Delete"+who+"Policy", name, "PolicyName*"),
			row("iam", "List"+who+"Policies", name, "MaxItems", "Marker"),
			row("iam", "Attach"+who+"Policy", name, "PolicyArn*"),
			row("iam", "Detach"+who+"Policy", name, "PolicyArn*"),
			row("iam", "ListAttached"+who+"Policies", name, "PathPrefix", "MaxItems", "Marker"),
			row("iam", "Put"+who+"PermissionsBoundary", name, "PermissionsBoundary*"),
			row("iam", "Delete"+who+"PermissionsBoundary", name),
			row("iam", "Tag"+who, name, "Tags*:tags"),
			row("iam", "Untag"+who, name, "TagKeys*:list"),
			row("iam", "List"+who+"Tags", name, "MaxItems", "Marker"),
		)
	}
	return all
}()

func find(name string) *command {
	for i := range commands {
		if commands[i].name() == name {
			return &commands[i]
		}
	}
	return nil
}

// Actions are the actions of a service that there are commands for.
func Actions(service string) (names []string) {
	for i := range commands {
		if commands[i].service == service {
			names = append(names, commands[i].action)
		}
	}
	return names
}
