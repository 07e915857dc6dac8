package iam

import (
	"encoding/base64"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/awsquery"
)

// input reads an operation's parameters. The first that is wrong stays in err; values read after it are not to be used.
type input struct {
	q   *awsquery.Query
	err error
}

func invalid(message string) error { return awsquery.NewError("ValidationError", message) }

func (in *input) fail(message string) {
	if in.err == nil {
		in.err = invalid(message)
	}
}

// constraint words a refusal as AWS's services do. A value is repeated only where that tells something.
func constraint(name, value, rule string) string {
	member := strings.ToLower(name[:1]) + name[1:]
	text := "1 validation error detected: Value "
	if value == "" {
		text += "null"
	} else {
		text += "'" + clip(value) + "'"
	}
	return text + " at '" + member + "' failed to satisfy constraint: Member must " + rule
}

// text is a parameter of least to most characters, "" if it is optional (least 0) and not there.
func (in *input) text(name string, least, most int) string {
	v, ok := in.q.Get(name)
	n := utf8.RuneCountInString(v)
	switch {
	case !ok && least > 0:
		in.fail(constraint(name, "", "not be null"))
	case ok && n < least:
		in.fail(constraint(name, v, "have length greater than or equal to "+strconv.Itoa(least)))
	case n > most:
		in.fail(constraint(name, v, "have length less than or equal to "+strconv.Itoa(most)))
	}
	return v
}

// optional is a parameter that is not there, or of least to most characters.
func (in *input) optional(name string, least, most int) string {
	if _, ok := in.q.Get(name); !ok {
		return ""
	}
	return in.text(name, max(least, 1), most)
}

func (in *input) nameForm(name, v string) string {
	if v != "" && !validName(v, utf8.RuneCountInString(v)) {
		in.fail("The specified value for " + strings.ToLower(name[:1]) + name[1:] + " is invalid. It must contain only alphanumeric characters and/or the following: +=,.@_-")
	}
	return v
}

// name is the name of a user, role or policy.
func (in *input) name(name string, most int) string { return in.nameForm(name, in.text(name, 1, most)) }

func (in *input) optionalName(name string, most int) string {
	return in.nameForm(name, in.optional(name, 1, most))
}

// path is Path or PathPrefix, "/" if it is not there. A prefix need not end with a slash.
func (in *input) path(name string) string {
	v, ok := in.q.Get(name)
	if !ok {
		return "/"
	}
	good := len(v) > 0 && len(v) <= 512 && v[0] == '/' && (name == "PathPrefix" || v[len(v)-1] == '/')
	for _, c := range []byte(v) {
		good = good && c >= '!' && c <= '~'
	}
	if !good {
		in.fail("The specified value for " + strings.ToLower(name[:1]) + name[1:] + " is invalid. It must begin and end with / and contain only alphanumeric characters and/or / characters.")
	}
	return v
}

// documentMax is the model's bound of policy documents, in characters.
const documentMax = 131_072

func (in *input) document(name string) string { return in.text(name, 1, documentMax) }

// number is an integer, or what it is by default.
func (in *input) number(name string, least, most, otherwise int) int {
	v, ok := in.q.Get(name)
	if !ok {
		return otherwise
	}
	n, err := strconv.Atoi(v)
	switch {
	case err != nil || v != strconv.Itoa(n):
		in.err = orElse(in.err, awsquery.NewError("MalformedInput", "Invalid Argument"))
	case n < least:
		in.fail(constraint(name, v, "have value greater than or equal to "+strconv.Itoa(least)))
	case n > most:
		in.fail(constraint(name, v, "have value less than or equal to "+strconv.Itoa(most)))
	}
	return n
}

func orElse(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

// oneOf is one of some words, the first if it is not there and optional.
func (in *input) oneOf(name string, required bool, words ...string) string {
	v, ok := in.q.Get(name)
	if !ok && !required {
		return words[0]
	}
	for _, w := range words {
		if v == w {
			return v
		}
	}
	in.fail(constraint(name, v, "satisfy enum value set: ["+strings.Join(words, ", ")+"]"))
	return v
}

// boundary is PermissionsBoundary.
func (in *input) boundary() string { return in.optional("PermissionsBoundary", 20, 2048) }

// tags are Tags, no two of one key but for its case.
func (in *input) tags() []store.Tag {
	var tags []store.Tag
	seen := map[string]bool{}
	for _, t := range in.q.Structs("Tags", "Key", "Value") {
		in.tagKey(t[0])
		if !tagText(t[1]) || utf8.RuneCountInString(t[1]) > 256 {
			in.fail("Tag value is invalid: it has at most 256 letters, digits, blanks or characters of _.:/=+-@")
		}
		low := strings.ToLower(t[0])
		if seen[low] {
			in.err = orElse(in.err, awsquery.NewError("InvalidInput", "Duplicate tag keys found. Please note that Tag keys are case insensitive."))
		}
		seen[low] = true
		tags = append(tags, store.Tag{Key: t[0], Value: t[1]})
	}
	if len(tags) > store.PrincipalTagsMax {
		in.fail(constraint("tags", strconv.Itoa(len(tags))+" members", "have length less than or equal to "+strconv.Itoa(store.PrincipalTagsMax)))
	}
	return tags
}

func (in *input) tagKeys() []string {
	keys := in.q.List("TagKeys")
	for _, k := range keys {
		in.tagKey(k)
	}
	if len(keys) > store.PrincipalTagsMax {
		in.fail(constraint("tagKeys", strconv.Itoa(len(keys))+" members", "have length less than or equal to "+strconv.Itoa(store.PrincipalTagsMax)))
	}
	return keys
}

func (in *input) tagKey(key string) {
	switch {
	case key == "" || utf8.RuneCountInString(key) > 128 || !tagText(key):
		in.fail("Tag key is invalid: it has 1 to 128 letters, digits, blanks or characters of _.:/=+-@")
	case len(key) >= 4 && strings.EqualFold(key[:4], "aws:"):
		in.err = orElse(in.err, awsquery.NewError("InvalidInput", "System tags cannot be added/updated/deleted by a requester."))
	}
}

func tagText(s string) bool {
	for _, c := range s {
		if !unicode.In(c, unicode.L, unicode.Z, unicode.N) && !strings.ContainsRune("_.:/=+-@", c) {
			return false
		}
	}
	return true
}

// page is MaxItems and Marker: how many, and after which name.
func (in *input) page() (limit int, after string) {
	limit = in.number("MaxItems", 1, 1000, 100)
	if marker, ok := in.q.Get("Marker"); ok {
		name, err := base64.RawURLEncoding.DecodeString(marker)
		if after = string(name); err != nil || !validName(after, 128) {
			in.fail("Invalid Marker.")
		}
	}
	return limit, after
}

// pageEnd writes whether there is more, behind the name that was last.
func (c *call) pageEnd(more bool, last string) {
	c.reply.Bool("IsTruncated", more)
	if more {
		c.reply.Text("Marker", base64.RawURLEncoding.EncodeToString([]byte(last)))
	}
}
