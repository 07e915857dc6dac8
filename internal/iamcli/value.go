package iamcli

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"net/url"
	"strconv"
	"strings"
)

// element is an XML element of an answer.
type element struct {
	name     string
	text     string
	children []*element
}

func parse(reply []byte) (*element, error) {
	d := xml.NewDecoder(bytes.NewReader(reply))
	var open []*element
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return nil, errors.New("no document")
		}
		if err != nil {
			return nil, err
		}
		switch t := token.(type) {
		case xml.StartElement:
			e := &element{name: t.Name.Local}
			if len(open) > 0 {
				above := open[len(open)-1]
				above.children = append(above.children, e)
			}
			open = append(open, e)
		case xml.CharData:
			if len(open) > 0 {
				open[len(open)-1].text += string(t)
			}
		case xml.EndElement:
			last := open[len(open)-1]
			if open = open[:len(open)-1]; len(open) == 0 {
				return last, nil
			}
		}
	}
}

func (e *element) child(name string) *element {
	if e != nil {
		for _, c := range e.children {
			if c.name == name {
				return c
			}
		}
	}
	return nil
}

func (e *element) content() string {
	if e == nil {
		return ""
	}
	return e.text
}

func (e *element) members() map[string]any {
	m := map[string]any{}
	for _, c := range e.children {
		m[c.name] = c.value()
	}
	return m
}

// The members that are no text: XML does not say so. Empty lists have no children to tell them by.
var (
	lists    = words("AccessKeyMetadata Accounts AttachedPolicies EvaluationResults MatchedStatements MissingContextValues Policies PolicyNames Roles Services Tags Users")
	numbers  = words("AttachmentCount MaxSessionDuration PackedPolicySize PermissionsBoundaryUsageCount Statement Policies Roles Users")
	booleans = words("AllAccounts IsAttachable IsDefaultVersion IsTruncated")
	policies = words("AssumeRolePolicyDocument Document PolicyDocument") // percent-encoded
)

func words(s string) map[string]bool {
	m := map[string]bool{}
	for _, w := range strings.Fields(s) {
		m[w] = true
	}
	return m
}

// value is the JSON value of an element, as AWS's command line shows it.
func (e *element) value() any {
	switch {
	case lists[e.name] && (len(e.children) > 0 || e.text == ""):
		all := []any{}
		for _, c := range e.children {
			all = append(all, c.value())
		}
		return all
	case len(e.children) > 0:
		return e.members()
	case numbers[e.name]:
		if n, err := strconv.Atoi(e.text); err == nil {
			return n
		}
	case booleans[e.name] && (e.text == "true" || e.text == "false"):
		return e.text == "true"
	case policies[e.name]:
		text, err := url.PathUnescape(e.text)
		if err == nil && json.Valid([]byte(text)) {
			return json.RawMessage(text)
		}
	}
	return e.text
}
