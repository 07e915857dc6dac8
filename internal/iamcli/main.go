package iamcli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const usage = `usage: keyplane iam COMMAND [--endpoint URL] [--region REGION] [FLAGS]

Calls IAM and STS of a running keyplane, with the credentials of AWS_SHARED_CREDENTIALS_FILE and AWS_PROFILE or the environment, and prints the
answer as JSON. Flags are those of the AWS command line; file://PATH stands for a file's content, lists are separated with blanks.

  --endpoint URL            default AWS_ENDPOINT_URL, else http://127.0.0.1:4599
  --region REGION           default that of the AWS configuration, else us-east-1
  --credentials-file PATH   where an access key is made: write it there, as an AWS shared-credentials file (0600), and not to stdout

`

// Main is `keyplane iam`. It returns the exit status: 0 success, 1 failure or refusal, 2 usage.
func Main(args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, Usage())
		return 2
	}
	if slices.Contains([]string{"help", "--help", "-h"}, args[0]) {
		fmt.Fprint(stdout, Usage())
		return 0
	}
	c := find(args[0])
	if c == nil {
		fmt.Fprintf(stderr, "keyplane iam: there is no command %q; keyplane iam --help lists them\n", args[0])
		return 2
	}
	if slices.Contains(args[1:], "--help") || slices.Contains(args[1:], "-h") {
		fmt.Fprintf(stdout, "usage: keyplane iam %s\n", c.usage())
		return 0
	}
	r, err := c.read(args[1:])
	if err != nil {
		fmt.Fprintf(stderr, "keyplane iam %s: %v\nusage: keyplane iam %s\n", c.name(), err, c.usage())
		return 2
	}
	if err := c.run(context.Background(), r, stdout); err != nil {
		var refused *Refused
		if errors.As(err, &refused) {
			fmt.Fprintln(stderr, refused)
		} else {
			fmt.Fprintf(stderr, "keyplane iam %s: %v\n", c.name(), err)
		}
		return 1
	}
	return 0
}

// Usage lists the commands.
func Usage() string {
	var lines []string
	for i := range commands {
		lines = append(lines, "  "+commands[i].usage())
	}
	slices.Sort(lines)
	return usage + strings.Join(lines, "\n") + "\n"
}

func (c *command) usage() string {
	line := c.name()
	for _, o := range c.options {
		f := "--" + o.flag()
		switch o.kind {
		case text:
			f += " VALUE"
		case list:
			f += " VALUE ..."
		case tags:
			f += " Key=K,Value=V ..."
		case documents:
			f += " JSON|file://PATH ..."
		case entries:
			f += " ContextKeyName=K,ContextKeyValues=V,ContextKeyType=T ..."
		case arns:
			f += " arn=ARN ..."
		}
		if !o.required {
			f = "[" + f + "]"
		}
		line += " " + f
	}
	if c.credentials {
		line += " [--credentials-file PATH]"
	}
	return line
}

// request is what a command line asks for.
type request struct {
	endpoint, region, credentialsFile string
	parameters                        url.Values
	paged                             bool // --max-items or --marker: the caller turns the pages
}

// read reads a command's flags: --name VALUE … or --name=VALUE.
func (c *command) read(args []string) (*request, error) {
	r := &request{parameters: url.Values{}}
	given, err := split(args)
	if err != nil {
		return nil, err
	}
	own := map[string]*string{"endpoint": &r.endpoint, "endpoint-url": &r.endpoint, "region": &r.region}
	if c.credentials {
		own["credentials-file"] = &r.credentialsFile
	}
	seen := map[string]bool{}
	for _, g := range given {
		if seen[g.name] {
			return nil, fmt.Errorf("--%s is given twice", g.name)
		}
		seen[g.name] = true
		if to := own[g.name]; to != nil {
			if len(g.values) != 1 || g.values[0] == "" {
				return nil, fmt.Errorf("--%s takes one value", g.name)
			}
			*to = g.values[0]
			continue
		}
		i := slices.IndexFunc(c.options, func(o option) bool { return o.flag() == g.name })
		if i < 0 {
			return nil, fmt.Errorf("there is no flag --%s", g.name)
		}
		if err := c.options[i].put(r.parameters, g.values); err != nil {
			return nil, fmt.Errorf("--%s: %w", g.name, err)
		}
		r.paged = r.paged || g.name == "max-items" || g.name == "marker"
	}
	for _, o := range c.options {
		if o.required && !seen[o.flag()] {
			return nil, fmt.Errorf("--%s is missing", o.flag())
		}
	}
	return r, nil
}

type given struct {
	name   string
	values []string
}

func split(args []string) (all []given, err error) {
	for _, a := range args {
		name, ok := strings.CutPrefix(a, "--")
		switch {
		case ok:
			name, value, has := strings.Cut(name, "=")
			g := given{name: name}
			if has {
				g.values = []string{value}
			}
			all = append(all, g)
		case len(all) == 0:
			return nil, fmt.Errorf("unexpected argument %q", a)
		default:
			last := &all[len(all)-1]
			last.values = append(last.values, a)
		}
	}
	return all, nil
}

// put writes the parameters of a flag's values.
func (o option) put(p url.Values, values []string) error {
	member := func(i int) string { return o.parameter + ".member." + strconv.Itoa(i+1) }
	switch o.kind {
	case flagOnly:
		if len(values) > 0 {
			return errors.New("it takes no value")
		}
		p.Set(o.parameter, "true")
		return nil
	case text:
		if len(values) != 1 {
			return errors.New("it takes one value")
		}
		v, err := content(values[0])
		p.Set(o.parameter, v)
		return err
	}
	if len(values) == 0 {
		return errors.New("it takes one or more values")
	}
	for i, v := range values {
		switch o.kind {
		case list:
			p.Set(member(i), v)
		case documents:
			document, err := content(v)
			if err != nil {
				return err
			}
			p.Set(member(i), document)
		case entries:
			if err := putEntry(p, member(i), v); err != nil {
				return err
			}
		case arns:
			p.Set(member(i)+".arn", strings.TrimPrefix(v, "arn="))
		case tags:
			key, value, ok := strings.Cut(v, ",Value=")
			key, named := strings.CutPrefix(key, "Key=")
			if !ok || !named {
				return errors.New("a tag is written Key=K,Value=V")
			}
			p.Set(member(i)+".Key", key)
			p.Set(member(i)+".Value", value)
		}
	}
	return nil
}

// putEntry writes one context entry, in the shorthand of AWS's command line: what follows ContextKeyValues= up to the next name are its values.
func putEntry(p url.Values, member, shorthand string) error {
	name, values := "", 0
	for part := range strings.SplitSeq(shorthand, ",") {
		if key, value, ok := strings.Cut(part, "="); ok && slices.Contains([]string{"ContextKeyName", "ContextKeyType", "ContextKeyValues"}, key) {
			name, part = key, value
		}
		switch name {
		case "":
			return errors.New("an entry is written ContextKeyName=K,ContextKeyValues=V,ContextKeyType=T")
		case "ContextKeyValues":
			values++
			p.Set(member+"."+name+".member."+strconv.Itoa(values), part)
		default:
			p.Set(member+"."+name, part)
		}
	}
	return nil
}

// content is a value as it stands, or that of the file it names.
func content(v string) (string, error) {
	path, ok := strings.CutPrefix(v, "file://")
	if !ok {
		return v, nil
	}
	b, err := os.ReadFile(path)
	return string(b), err
}

// run calls the action, turns the pages and prints the answer.
func (c *command) run(ctx context.Context, r *request, stdout io.Writer) error {
	client, err := NewClient(ctx, r.endpoint, r.region)
	if err != nil {
		return err
	}
	var file *os.File
	if r.credentialsFile != "" { // before anything is made whose secret could not be kept
		if file, err = os.CreateTemp(filepath.Dir(r.credentialsFile), ".credentials-"); err != nil {
			return err
		}
		defer os.Remove(file.Name())
		defer file.Close()
	}
	result, err := client.Call(ctx, c.service, c.action, r.parameters)
	for err == nil && !r.paged && result["IsTruncated"] == true {
		err = client.next(ctx, c, r, result)
	}
	if err != nil {
		return err
	}
	if !r.paged {
		delete(result, "IsTruncated")
	}
	if file != nil {
		if err := save(file, r.credentialsFile, result); err != nil {
			// The secret is shown only once: better on the terminal than nowhere.
			return errors.Join(err, show(stdout, result))
		}
	}
	return show(stdout, result)
}

// next adds the page that follows to result.
func (c *Client) next(ctx context.Context, cmd *command, r *request, result map[string]any) error {
	marker, _ := result["Marker"].(string)
	if marker == "" {
		return errors.New("the server said that there is more, but not where")
	}
	r.parameters.Set("Marker", marker)
	page, err := c.Call(ctx, cmd.service, cmd.action, r.parameters)
	if err != nil {
		return err
	}
	delete(result, "Marker")
	for name, v := range page {
		if more, ok := v.([]any); ok {
			before, _ := result[name].([]any)
			result[name] = append(before, more...)
		} else {
			result[name] = v
		}
	}
	return nil
}

// show prints nothing for an action without a result.
func show(w io.Writer, result map[string]any) error {
	if len(result) == 0 {
		return nil
	}
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "    ")
	return e.Encode(result)
}

// save writes the access key of a result as the default profile, and takes the secrets out of the result. The file comes into being whole.
func save(file *os.File, path string, result map[string]any) error {
	for _, name := range []string{"AccessKey", "Credentials"} {
		key, _ := result[name].(map[string]any)
		if key == nil {
			continue
		}
		lines := "[default]\n"
		for _, m := range [][2]string{{"aws_access_key_id", "AccessKeyId"}, {"aws_secret_access_key", "SecretAccessKey"}, {"aws_session_token", "SessionToken"}} {
			if v, _ := key[m[1]].(string); v != "" {
				lines += m[0] + " = " + v + "\n"
			}
		}
		if err := file.Chmod(0o600); err != nil {
			return err
		}
		if _, err := file.WriteString(lines); err != nil {
			return err
		}
		if err := file.Sync(); err != nil {
			return err
		}
		if err := os.Rename(file.Name(), path); err != nil {
			return err
		}
		delete(key, "SecretAccessKey")
		delete(key, "SessionToken")
		return nil
	}
	return errors.New("the answer has no access key")
}
