package authztest

import (
	"bytes"
	"encoding/json"
	"strings"
)

// Kinds of callers.
const (
	Root        = "Root"
	User        = "User"
	AssumedRole = "AssumedRole"
	Service     = "Service"
)

// Tag is a tag of a principal, a session or a key.
type Tag struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// Caller is who asks, with all that belongs to it but its policies.
type Caller struct {
	Kind        string `json:"kind"`
	Account     string `json:"account"` // 12 digits; of a Service: the account that it was registered by
	ARN         string `json:"arn"`     // of a session arn:aws:sts::…; of a Service its name
	RoleARN     string `json:"role_arn,omitzero"`
	ID          string `json:"id"`            // AIDA…, AROA…, the account; of a Service its name
	Name        string `json:"name,omitzero"` // of a user: aws:username; of a session its session name
	Tags        []Tag  `json:"tags,omitzero"`
	SessionTags []Tag  `json:"session_tags,omitzero"`
	TokenIssued string `json:"token_issued,omitzero"` // RFC 3339
	Source      string `json:"source_identity,omitzero"`
	Via         string `json:"via,omitzero"` // service with its Region that calls for the caller
	Deleted     bool   `json:"deleted,omitzero"`
}

// Grant is a grant on the key in question.
type Grant struct {
	Grantee    string            `json:"grantee"`             // ARN, or name of a service
	GranteeID  string            `json:"grantee_id,omitzero"` // the grantee's unique ID at creation; "" its present one
	Operations []string          `json:"operations"`
	Equals     map[string]string `json:"equals,omitzero"`
	Subset     map[string]string `json:"subset,omitzero"`
	SourceARN  string            `json:"source_arn,omitzero"`
}

// Document is the text of a policy. In JSON it is the policy itself, or a string where the text would not come back as it was.
type Document []byte

// MarshalJSON writes the document.
func (d Document) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	if json.Compact(&b, d) == nil && bytes.Equal(b.Bytes(), d) && d[0] == '{' {
		return d, nil
	}
	return json.Marshal(string(d))
}

// UnmarshalJSON reads it.
func (d *Document) UnmarshalJSON(b []byte) error {
	if b[0] != '"' {
		*d = bytes.Clone(b)
		return nil
	}
	var s string
	err := json.Unmarshal(b, &s)
	*d = Document(s)
	return err
}

// World is what is stored: who the caller is, policies and grants.
type World struct {
	Caller    Caller     `json:"caller"`
	KeyPolicy Document   `json:"key_policy,omitzero"` // nil: the operation asks none
	Identity  []Document `json:"identity,omitzero"`
	Boundary  Document   `json:"boundary,omitzero"`
	Session   []Document `json:"session,omitzero"`
	Grants    []Grant    `json:"grants,omitzero"`

	// Bind has the unique IDs of principals when the key policy was put, where they are not the present ones; "" for one that does not exist.
	Bind map[string]string `json:"bind,omitzero"`
}

// KeyFacts are properties of the key in question.
type KeyFacts struct {
	Spec               string   `json:"spec"`
	Usage              string   `json:"usage"`
	Origin             string   `json:"origin"`
	MultiRegion        bool     `json:"multi_region,omitzero"`
	MultiRegionKeyType string   `json:"multi_region_key_type,omitzero"`
	Tags               []Tag    `json:"tags,omitzero"`
	Aliases            []string `json:"aliases,omitzero"`
}

// Extra is one value of a condition key that only some operations have. Key is written as in a policy: aws:RequestTag/team.
type Extra struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// Request is one question about a World.
type Request struct {
	Action    string    `json:"action"`   // kms:Decrypt
	Resource  string    `json:"resource"` // ARN, or * where there is none
	Owner     string    `json:"owner"`    // account of the resource
	Key       *KeyFacts `json:"key,omitzero"`
	Now       string    `json:"now"` // RFC 3339
	SourceIP  string    `json:"source_ip,omitzero"`
	Plain     bool      `json:"plain,omitzero"` // without TLS
	UserAgent string    `json:"user_agent,omitzero"`
	Region    string    `json:"region,omitzero"`

	SourceARN     string `json:"source_arn,omitzero"`
	SourceAccount string `json:"source_account,omitzero"`

	EncryptionContext   map[string]string `json:"encryption_context,omitzero"` // nil: the operation has none
	EncryptionAlgorithm string            `json:"encryption_algorithm,omitzero"`
	RequestAlias        string            `json:"request_alias,omitzero"`
	ReEncrypt           bool              `json:"re_encrypt,omitzero"`
	SameKey             bool              `json:"same_key,omitzero"`
	Extra               []Extra           `json:"extra,omitzero"`
}

// Answers that a Case can want.
const (
	Allow     = "allow"
	Deny      = "deny"
	Malformed = "malformed" // a document is refused when it is parsed
)

// Case is one question with its answer.
type Case struct {
	Name string `json:"name"`
	World
	Request
	Want   string `json:"want"`
	Reason string `json:"reason,omitzero"` // the one reason that is right; "" where several are
}

// boundID is the unique ID that a principal of the key policy was bound to, ok false if there is no such principal. Principals other than
// the caller's have IDs of their own.
func (w *World) boundID(arn string) (id string, ok bool) {
	if id, ok := w.Bind[arn]; ok {
		return id, id != ""
	}
	return w.presentID(arn), true
}

func (w *World) presentID(arn string) string {
	c := &w.Caller
	switch {
	case arn == c.ARN, c.RoleARN != "" && arn == c.RoleARN:
		return c.ID
	case strings.HasSuffix(arn, ":root"):
		return strings.Split(arn, ":")[4]
	case c.RoleARN != "" && strings.HasPrefix(arn, c.ARN[:strings.LastIndexByte(c.ARN, '/')+1]):
		return c.ID // another session of the caller's role
	}
	return "AIDA:" + arn
}
