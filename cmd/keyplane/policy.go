package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/iamcli"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/policy"
	"github.com/keyplane/keyplane/internal/simulate"
)

const policyUsage = `usage: keyplane policy simulate --principal ARN --action kms:ACTION [--key ARN] [--context K=V,K=V ...]
           asks a running server, with its policies and grants: --endpoint, --region and credentials as for keyplane iam
       keyplane policy simulate --principal ARN --action kms:ACTION --key ARN [--context K=V,K=V ...]
           --key-policy FILE [--identity-policy FILE ...] [--boundary FILE] [--session-policy FILE ...]
           evaluates these files alone; needs no server

Exit status: 0 allowed, 1 error, 2 usage, 3 denied.
`

// statusDenied is the exit status of a simulation whose answer is no.
const statusDenied = 3

// question is what the flags of policy simulate say.
type question struct {
	principal, role, action, key      string
	context                           list
	keyPolicy, boundary               string
	identityPolicies, sessionPolicies list
	endpoint, region                  string
	asJSON                            bool
}

// policyCommand is `keyplane policy`.
func policyCommand(args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, policyUsage)
		return 2
	}
	switch args[0] {
	case "simulate":
	case "help", "--help", "-h":
		fmt.Fprint(stdout, policyUsage)
		return 0
	default:
		fmt.Fprintf(stderr, "keyplane policy: there is no command %q\n%s", args[0], policyUsage)
		return 2
	}
	var q question
	fs := flag.NewFlagSet("keyplane policy simulate", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() { fmt.Fprint(stderr, policyUsage, "\n"); fs.PrintDefaults() }
	fs.StringVar(&q.principal, "principal", "", "`ARN` of a user, a role session, an account's root user; of a role: any session of it. A service's name without a server")
	fs.StringVar(&q.role, "role-arn", "", "`ARN` of the session's role, if the role has a path; without a server")
	fs.StringVar(&q.action, "action", "", "permission, kms:Decrypt")
	fs.StringVar(&q.key, "key", "", "`ARN` of the KMS key or of an alias")
	fs.Var(&q.context, "context", "condition keys, `K=V,K=V`; may be repeated, and K too for several values: kms:EncryptionContext:tenant=a")
	fs.StringVar(&q.keyPolicy, "key-policy", "", "`FILE`")
	fs.Var(&q.identityPolicies, "identity-policy", "`FILE`, may be repeated")
	fs.StringVar(&q.boundary, "boundary", "", "`FILE` of the permissions boundary")
	fs.Var(&q.sessionPolicies, "session-policy", "`FILE`, may be repeated")
	fs.StringVar(&q.endpoint, "endpoint", "", "`URL` (default AWS_ENDPOINT_URL, else http://127.0.0.1:4599)")
	fs.StringVar(&q.region, "region", "", "`REGION` of the server (default that of the AWS configuration, else us-east-1)")
	fs.BoolVar(&q.asJSON, "json", false, "print JSON")
	if err := fs.Parse(args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if q.principal == "" || q.action == "" || fs.NArg() > 0 {
		fmt.Fprint(stderr, policyUsage)
		return 2
	}
	entries, err := readContext(q.context)
	if err != nil {
		fmt.Fprintln(stderr, "keyplane policy simulate:", err)
		return 2
	}
	ask := q.online
	if q.keyPolicy != "" || q.boundary != "" || len(q.identityPolicies)+len(q.sessionPolicies) > 0 {
		ask = q.offline
	}
	a, err := ask(entries)
	if err != nil {
		var refused *iamcli.Refused
		if errors.As(err, &refused) {
			fmt.Fprintln(stderr, refused)
		} else {
			fmt.Fprintln(stderr, "keyplane policy simulate:", err)
		}
		return 1
	}
	if err := q.show(stdout, &a); err != nil {
		fmt.Fprintln(stderr, "keyplane policy simulate:", err)
		return 1
	}
	if a.Decision != simulate.Allowed {
		return statusDenied
	}
	return 0
}

func (q *question) show(w io.Writer, a *simulate.Answer) error {
	if q.asJSON {
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		return e.Encode(a)
	}
	word := "denied"
	if a.Decision == simulate.Allowed {
		word = "allowed"
	}
	_, err := fmt.Fprintf(w, "%s  %s\n", word, a.Reason)
	return err
}

// readContext reads K=V,K=V. A comma belongs to the value unless a condition key of ours follows it.
func readContext(flags []string) (entries []simulate.Entry, err error) {
	at := map[string]int{}
	for _, f := range flags {
		last := -1
		for part := range strings.SplitSeq(f, ",") {
			key, value, ok := strings.Cut(part, "=")
			if known, _ := policy.ParseKey(key); last >= 0 && (!ok || known == policy.UnknownKey) {
				values := entries[last].Values
				values[len(values)-1] += "," + part
				continue
			}
			if !ok || key == "" {
				return nil, fmt.Errorf("--context %s: not of the form K=V", f)
			}
			if _, there := at[key]; !there {
				at[key] = len(entries)
				entries = append(entries, simulate.Entry{Key: key})
			}
			last = at[key]
			entries[last].Values = append(entries[last].Values, value)
		}
	}
	return entries, nil
}

// online asks IAM's SimulatePrincipalPolicy.
func (q *question) online(entries []simulate.Entry) (a simulate.Answer, err error) {
	ctx := context.Background()
	client, err := iamcli.NewClient(ctx, q.endpoint, q.region)
	if err != nil {
		return a, err
	}
	p := url.Values{"PolicySourceArn": {q.principal}, "ActionNames.member.1": {q.action}}
	if q.key != "" {
		p.Set("ResourceArns.member.1", q.key)
	}
	if who, err := readPrincipal(q.principal, q.role); err == nil && who.Kind == policy.AssumedRole && who.ARN == q.principal {
		p.Set("PolicySourceArn", who.RoleARN)
		p.Set("CallerArn", q.principal)
	}
	for i, e := range entries {
		member := "ContextEntries.member." + strconv.Itoa(i+1) + "."
		p.Set(member+"ContextKeyName", e.Key)
		p.Set(member+"ContextKeyType", "string")
		for j, v := range e.Values {
			p.Set(member+"ContextKeyValues.member."+strconv.Itoa(j+1), v)
		}
	}
	result, err := client.Call(ctx, "iam", "SimulatePrincipalPolicy", p)
	if err != nil {
		return a, err
	}
	list, _ := result["EvaluationResults"].([]any)
	if len(list) != 1 {
		return a, errors.New("the server did not answer one question with one result")
	}
	r, _ := list[0].(map[string]any)
	a.Decision, _ = r["EvalDecision"].(string)
	if a.Reason, _ = r["EvalReason"].(string); a.Reason == "" {
		a.Reason = a.Decision
	}
	a.Grant, _ = r["GrantId"].(string)
	if matched, _ := r["MatchedStatements"].([]any); len(matched) > 0 {
		m, _ := matched[0].(map[string]any)
		a.Statement, _ = m["Statement"].(int)
		a.Sid, _ = m["Sid"].(string)
	}
	return a, nil
}

// offline evaluates the files.
func (q *question) offline(entries []simulate.Entry) (a simulate.Answer, err error) {
	who, err := readPrincipal(q.principal, q.role)
	if err != nil {
		return a, err
	}
	action, ok := simulate.Find(q.action)
	if !ok {
		return a, fmt.Errorf("%s is no permission of KMS", q.action)
	}
	subject := &authz.Subject{Principal: who.Principal}
	var policies []simulate.Named
	read := func(file string, kind policy.Kind, words string) (*policy.Policy, error) {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		p, err := policy.Parse(b, kind, nil)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		policies = append(policies, simulate.Named{Policy: p, ID: file, Words: words})
		return p, nil
	}
	for _, file := range q.identityPolicies {
		p, err := read(file, policy.IdentityPolicy, "identity policy "+strconv.Quote(file))
		if err != nil {
			return a, err
		}
		subject.Identity = append(subject.Identity, p)
	}
	for _, file := range q.sessionPolicies {
		p, err := read(file, policy.IdentityPolicy, "session policy "+strconv.Quote(file))
		if err != nil {
			return a, err
		}
		who.Session = append(who.Session, p)
	}
	if q.boundary != "" {
		if subject.Boundary, err = read(q.boundary, policy.IdentityPolicy, "the permissions boundary"); err != nil {
			return a, err
		}
	}
	who.Holder = authz.NewHolder(subject)
	c := authz.Context{Caller: who, Now: time.Now()}
	ask := &authz.Question{Caller: who, Action: action, Owner: who.Account, Resource: []byte("*"), Alone: true, Context: &c, Scratch: &policy.Scratch{}}
	var facts *authz.KeyFacts
	if q.key != "" {
		ref, fault := keyid.Parse([]byte(q.key))
		alias := fault == keyid.None && ref.Kind == keyid.AliasARN && simulate.OnAlias(action)
		if !alias && (fault != keyid.None || ref.Kind != keyid.KeyARN) {
			return a, errors.New("--key has to be the ARN of a key")
		}
		ask.Resource, ask.Owner, c.Region = []byte(q.key), ref.Account, string(ref.Region)
		if !alias {
			facts = &authz.KeyFacts{Account: ref.Account, Spec: "SYMMETRIC_DEFAULT", Usage: "ENCRYPT_DECRYPT", Origin: "AWS_KMS", MultiRegion: ref.ID.MultiRegion}
			c.Key, ask.Alone = facts, false
			if q.keyPolicy == "" {
				return a, errors.New("--key-policy is missing")
			}
			if ask.Policy, err = read(q.keyPolicy, policy.KeyPolicy, "the key policy"); err != nil {
				return a, err
			}
		}
	}
	switch {
	case simulate.Keyless(action):
		if q.keyPolicy != "" || q.key != "" {
			return a, fmt.Errorf("%s concerns no key: leave --key and --key-policy out", action.Name)
		}
	case q.key == "":
		return a, fmt.Errorf("%s concerns a key: --key is missing", action.Name)
	}
	if err := simulate.Fill(&c, who, facts, action.Name, entries); err != nil {
		return a, err
	}
	return simulate.Ask(ask, policies)
}

// readPrincipal is whom an ARN names, without IDs: nobody knows them here. role is the ARN of a session's role, "" for one without a path.
func readPrincipal(arn, role string) (*authz.Caller, error) {
	w := &authz.Caller{Principal: policy.Principal{ARN: arn}}
	if !strings.HasPrefix(arn, "arn:") {
		if !strings.Contains(arn, ".") {
			return nil, errors.New("--principal has to be an ARN or a service's name")
		}
		w.Kind, w.UserID = policy.Service, arn
		return w, nil
	}
	parts := strings.SplitN(arn, ":", 6)
	if len(parts) != 6 {
		return nil, errors.New("--principal is no ARN of a user, a role, a role session or a root user")
	}
	var ok bool
	w.Account, ok = keyid.ParseAccount([]byte(parts[4]))
	typ, name, _ := strings.Cut(parts[5], "/")
	iamARN := strings.Join([]string{"arn", parts[1], "iam", "", parts[4], ""}, ":")
	last := name[strings.LastIndexByte(name, '/')+1:]
	switch service := parts[2]; {
	case !ok || parts[3] != "":
		ok = false
	case service == "iam" && parts[5] == "root":
		w.Kind, w.ID, w.UserID = policy.Root, parts[4], parts[4]
	case service == "iam" && typ == "user" && last != "":
		w.Kind, w.UserName = policy.User, last
	case service == "iam" && typ == "role" && last != "":
		w.Kind, w.RoleARN, w.TokenIssued = policy.AssumedRole, arn, time.Now()
		w.ARN = strings.Join([]string{"arn", parts[1], "sts", "", parts[4], "assumed-role/" + last + "/simulated"}, ":")
	case service == "sts" && typ == "assumed-role":
		r, session, two := strings.Cut(name, "/")
		ok = two && r != "" && session != "" && !strings.Contains(session, "/")
		w.Kind, w.RoleARN, w.TokenIssued = policy.AssumedRole, iamARN+"role/"+r, time.Now()
		if role != "" {
			ok = ok && strings.HasPrefix(role, iamARN+"role/") && strings.HasSuffix(role, "/"+r)
			w.RoleARN = role
		}
	default:
		ok = false
	}
	if !ok {
		return nil, errors.New("--principal is no ARN of a user, a role, a role session or a root user")
	}
	return w, nil
}
