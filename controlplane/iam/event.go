package iam

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/keyplane/keyplane/internal/awsquery"
	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/keyid"
)

// What audit records show of requests to IAM and STS and of their replies, under the same names with a small first letter. What is not listed is
// never shown: SecretAccessKey and SessionToken are not.
var (
	textsShown = strings.Fields("UserName RoleName PolicyName PolicyArn PolicyDocument AssumeRolePolicyDocument PermissionsBoundary Path PathPrefix " +
		"Description MaxSessionDuration VersionId Scope OnlyAttached AccessKeyId Status Marker MaxItems AccountId ServiceName AllAccounts PolicySourceArn " +
		"CallerArn RoleArn RoleSessionName DurationSeconds ExternalId SourceIdentity Policy PrincipalArn")
	listsShown = strings.Fields("TagKeys Accounts ActionNames ResourceArns")

	elementsShown = strings.Fields("UserName UserId Arn Path CreateDate RoleName RoleId AssumeRolePolicyDocument Description MaxSessionDuration " +
		"AccessKeyId Status PolicyName PolicyId DefaultVersionId AttachmentCount IsAttachable UpdateDate Key Value AccountId ServiceName AllAccounts " +
		"Expiration AssumedRoleId SourceIdentity PackedPolicySize PermissionsBoundaryArn PermissionsBoundaryType Accounts")
)

// readOnly is CloudTrail's: of STS everything, as on AWS.
func readOnly(service, name string) bool {
	return service == "sts" || strings.HasPrefix(name, "Get") || strings.HasPrefix(name, "List") || strings.HasPrefix(name, "Simulate")
}

// describe fills what the record of a call says besides who made it. q is nil where the body could not be read, name empty where there is no
// such operation.
func describe(r *cloudtrail.Record, service, name string, q *awsquery.Query, reply []byte, refused *awsquery.Error) {
	if refused != nil {
		r.ErrorCode, r.ErrorMessage = refused.Code, []byte(refused.Message)
	}
	if name == "" {
		return
	}
	r.Name, r.ReadOnly = name, readOnly(service, name)
	if q != nil {
		r.RequestParameters = parameters(q)
		if arn, ok := q.Get("RoleArn"); ok && name == "AssumeRole" {
			r.AddResource([]byte(arn), accountOf(arn))
			r.Resources[0].Type = "AWS::IAM::Role"
		}
	}
	if refused == nil && (!r.ReadOnly || name == "AssumeRole" || name == "GetForwardAccessSession") {
		r.ResponseElements = elements(reply)
	}
}

// Event says which operation a request is for that is refused before Serve is asked, as one whose signature is wrong: its name and whether it only reads, "" if the body
// names none. The name is that of an operation and never the client's text.
func (s *Server) Event(service string, body []byte) (name string, only bool) {
	q, err := awsquery.Parse(body)
	if err != nil {
		return "", false
	}
	name, _ = q.Get("Action")
	operations := iamOperations
	if service == "sts" {
		operations = stsOperations
	}
	if operations[name] == nil {
		return "", false
	}
	return name, readOnly(service, name)
}

// accountOf is the account of an ARN, 000000000000 where it has none.
func accountOf(arn string) keyid.Account {
	parts := strings.SplitN(arn, ":", 6)
	if len(parts) < 6 {
		return 0
	}
	a, _ := keyid.ParseAccount([]byte(parts[4]))
	return a
}

func lowerFirst(name string) string { return strings.ToLower(name[:1]) + name[1:] }

// parameters is the JSON object of a request's parameters, nil for none.
func parameters(q *awsquery.Query) []byte {
	b := []byte{'{'}
	for _, name := range textsShown {
		if v, ok := q.Get(name); ok {
			b = cloudtrail.AppendMember(b, lowerFirst(name), []byte(v))
		}
	}
	for _, name := range listsShown {
		if list := q.List(name); len(list) > 0 {
			b = append(cloudtrail.AppendName(b, lowerFirst(name)), '[')
			for i, v := range list {
				if i > 0 {
					b = append(b, ',')
				}
				b = cloudtrail.AppendString(b, []byte(v))
			}
			b = append(b, ']')
		}
	}
	b = appendStructs(b, q, "Tags", "Key", "Value")
	b = appendStructs(b, q, "PolicyArns", "arn")
	if len(b) == 1 {
		return nil
	}
	return append(b, '}')
}

func appendStructs(b []byte, q *awsquery.Query, name string, fields ...string) []byte {
	list := q.Structs(name, fields...)
	if len(list) == 0 {
		return b
	}
	b = append(cloudtrail.AppendName(b, lowerFirst(name)), '[')
	for i, values := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '{')
		for j, v := range values {
			b = cloudtrail.AppendMember(b, lowerFirst(fields[j]), []byte(v))
		}
		b = append(b, '}')
	}
	return append(b, ']')
}

// elements is the JSON object of what a reply has within its <…Result>, nil for nothing.
func elements(reply []byte) []byte {
	d := xml.NewDecoder(bytes.NewReader(reply))
	for {
		token, err := d.Token()
		if err != nil {
			return nil
		}
		if start, ok := token.(xml.StartElement); ok && strings.HasSuffix(start.Name.Local, "Result") {
			b, err := appendElement(nil, d, start.Name.Local)
			if err != nil || len(b) == 0 || b[0] != '{' {
				return nil
			}
			return b
		}
	}
}

var errElement = errors.New("iam: an element ends early")

// appendElement appends the value of the element that has begun: a list if its children are <member>, an object if it has others, else a text.
// It appends nothing for what is not shown.
func appendElement(dst []byte, d *xml.Decoder, name string) ([]byte, error) {
	var text []byte
	start, last := len(dst), byte(0) // last ends what was begun
	for {
		token, err := d.Token()
		if err == io.EOF {
			err = errElement
		}
		if err != nil {
			return dst, err
		}
		switch t := token.(type) {
		case xml.CharData:
			text = append(text, t...)
		case xml.StartElement:
			child := t.Name.Local
			if last == 0 {
				if last = '}'; child == "member" {
					last = ']'
				}
				dst = append(dst, last-2)
			}
			before := len(dst)
			switch {
			case last == '}':
				dst = cloudtrail.AppendName(dst, lowerFirst(child))
			case dst[before-1] != '[':
				dst = append(dst, ',')
			}
			if last == ']' {
				child = name // texts of a list are shown where the list is
			}
			value := len(dst)
			if dst, err = appendElement(dst, d, child); err != nil {
				return dst, err
			}
			if len(dst) == value {
				dst = dst[:before]
			}
		case xml.EndElement:
			switch {
			case last != 0 && len(dst) == start+1:
				return dst[:start], nil // nothing of it is shown
			case last != 0:
				return append(dst, last), nil
			case !slices.Contains(elementsShown, name):
				return dst, nil
			}
			if at, err := time.Parse(time.RFC3339, string(text)); err == nil {
				return cloudtrail.AppendDate(dst, at.Unix()), nil
			}
			return cloudtrail.AppendString(dst, text), nil
		}
	}
}
