package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keyplane/keyplane/internal/keyid"
)

// Quotas of one account. Names, numbers and sizes are IAM's default quotas, but that a user may have inline policies of the size of a role's,
// because there are no groups to put them in.
const (
	UsersMax          = 5000
	RolesMax          = 1000
	PoliciesMax       = 1500      // customer managed policies
	InlinePolicyMax   = 10_240    // characters that are no white space, of all inline policies of a user or role
	ManagedPolicyMax  = 6144      // likewise, of one managed policy
	TrustPolicyMax    = 2048      // likewise
	AttachedMax       = 10        // managed policies attached to a user or role
	PrincipalTagsMax  = 50        // of a user or role
	AccessKeysMax     = 2         // of a user, a root user, a service
	documentsBytesMax = 128 << 10 // all documents of one record, with white space
	nameMax           = 64
	policyNameMax     = 128
	pathMax           = 512
	OwnedKeysMax      = 1000 // access keys of one principal, with what older versions left
)

var (
	// ErrQuota says that the account, the user or the role has as many or as much of it as it can have.
	ErrQuota = errors.New("store: a quota is reached")
	// ErrInUse says that what is to be deleted still has what has to be deleted or detached first.
	ErrInUse = errors.New("store: the record is in use")
	// ErrNoPolicy says that a managed policy that is to be attached does not exist.
	ErrNoPolicy = errors.New("store: no such managed policy")
)

// A Quota is an ErrQuota that says which: Name as IAM has it, and how much or how many there can be.
type Quota struct {
	Name string
	Max  int
}

func (q *Quota) Error() string        { return fmt.Sprintf("store: quota %s of %d is reached", q.Name, q.Max) }
func (q *Quota) Is(target error) bool { return target == ErrQuota }

// PrincipalKind tells users from roles.
type PrincipalKind uint8

const (
	User PrincipalKind = iota + 1
	Role
)

func (k PrincipalKind) prefix() string {
	switch k {
	case User:
		return root + "iam/user/"
	case Role:
		return root + "iam/role/"
	}
	panic("store: a principal is a user or a role")
}

func (k PrincipalKind) idPrefix() string {
	if k == Role {
		return "AROA"
	}
	return "AIDA"
}

// PrincipalName names a user or a role. Names that differ in case only are one name for uniqueness and two for look-ups, as in IAM.
type PrincipalName struct {
	Kind    PrincipalKind
	Account keyid.Account
	Name    string
}

func (n PrincipalName) key() string {
	return n.Kind.prefix() + n.Account.String() + "/" + strings.ToLower(n.Name)
}

// Principal is the record of a user or a role. Times have millisecond resolution.
type Principal struct {
	PrincipalName
	ID       string // AIDA… of a user, AROA… of a role
	Path     string // "/" or "/…/"
	Created  time.Time
	Inline   []Document // inline policies, ascending by Name
	Attached []string   // ARNs of managed policies, ascending
	Boundary string     // ARN of a managed policy; "" for none
	Tags     []Tag      // ascending by Key; keys that differ in case only are one

	AccessKeys []string // of a user: IDs, in the order they were made

	Description string        // of a role
	Trust       string        // of a role: its trust policy
	TrustBound  []Bound       // of a role: whom the trust policy names, as it was when it was put
	MaxSession  time.Duration // of a role
	Revision    int64         // etcd mod revision; not part of the record
	_           struct{}      // literals name their fields
}

// Document is a policy document with its name.
type Document struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

// Bound is the unique ID that an ARN had when a policy that names it was put.
type Bound struct {
	ARN string `json:"arn"`
	ID  string `json:"id"`
}

// ARN is the principal's ARN.
func (p *Principal) ARN(partition string) string {
	kind := ":user"
	if p.Kind == Role {
		kind = ":role"
	}
	return "arn:" + partition + ":iam::" + p.Account.String() + kind + p.Path + p.Name
}

func (p *Principal) clone() *Principal {
	c := *p
	c.Inline, c.Attached, c.Tags = slices.Clone(p.Inline), slices.Clone(p.Attached), slices.Clone(p.Tags)
	c.AccessKeys, c.TrustBound = slices.Clone(p.AccessKeys), slices.Clone(p.TrustBound)
	return &c
}

// PutInline adds an inline policy or replaces the one of that name.
func (p *Principal) PutInline(d Document) {
	i, found := slices.BinarySearchFunc(p.Inline, d, byDocumentName)
	if found {
		p.Inline[i] = d
		return
	}
	p.Inline = slices.Insert(p.Inline, i, d)
}

// InlineNamed is the inline policy of that name.
func (p *Principal) InlineNamed(name string) (Document, bool) {
	i, found := slices.BinarySearchFunc(p.Inline, Document{Name: name}, byDocumentName)
	if !found {
		return Document{}, false
	}
	return p.Inline[i], true
}

// RemoveInline removes the inline policy of that name and reports whether there was one.
func (p *Principal) RemoveInline(name string) bool {
	i, found := slices.BinarySearchFunc(p.Inline, Document{Name: name}, byDocumentName)
	if found {
		p.Inline = slices.Delete(p.Inline, i, i+1)
	}
	return found
}

func byDocumentName(a, b Document) int { return strings.Compare(a.Name, b.Name) }

// Attach attaches a managed policy. Attaching one twice is once.
func (p *Principal) Attach(arn string) {
	if i, found := slices.BinarySearch(p.Attached, arn); !found {
		p.Attached = slices.Insert(p.Attached, i, arn)
	}
}

// Detach detaches a managed policy and reports whether it was attached.
func (p *Principal) Detach(arn string) bool {
	i, found := slices.BinarySearch(p.Attached, arn)
	if found {
		p.Attached = slices.Delete(p.Attached, i, i+1)
	}
	return found
}

// SetTag adds a tag or overwrites the one whose key differs in case at most.
func (p *Principal) SetTag(t Tag) {
	i, found := slices.BinarySearchFunc(p.Tags, t, byFoldedKey)
	if found {
		p.Tags[i] = t
		return
	}
	p.Tags = slices.Insert(p.Tags, i, t)
}

// RemoveTag removes the tag with the key, if there is one.
func (p *Principal) RemoveTag(key string) {
	if i, found := slices.BinarySearchFunc(p.Tags, Tag{Key: key}, byFoldedKey); found {
		p.Tags = slices.Delete(p.Tags, i, i+1)
	}
}

func byFoldedKey(a, b Tag) int {
	return strings.Compare(strings.ToLower(a.Key), strings.ToLower(b.Key))
}

// nonSpace is the length of a document as IAM counts it.
func nonSpace(text string) int {
	n := 0
	for _, c := range text {
		if c != ' ' && c != '\t' && c != '\r' && c != '\n' {
			n++
		}
	}
	return n
}

// quotas holds what one user or role may have. It is asked of what is written; what is read may be older than a quota.
func (p *Principal) quotas() error {
	inline := 0
	for _, d := range p.Inline {
		inline += nonSpace(d.Text)
	}
	switch {
	case inline > InlinePolicyMax:
		return &Quota{"InlinePolicySize", InlinePolicyMax}
	case nonSpace(p.Trust) > TrustPolicyMax:
		return &Quota{"ACLSizePerRole", TrustPolicyMax}
	case len(p.Attached) > AttachedMax:
		return &Quota{"AttachedPolicies", AttachedMax}
	case len(p.Tags) > PrincipalTagsMax:
		return &Quota{"Tags", PrincipalTagsMax}
	case p.documents() > documentsBytesMax:
		return &Quota{"PolicyBytes", documentsBytesMax}
	}
	return nil
}

func (p *Principal) documents() int {
	n := len(p.Trust)
	for _, d := range p.Inline {
		n += len(d.Text)
	}
	return n
}

// check holds the record's own invariants, before it is written and after it is read.
func (p *Principal) check() error {
	user := p.Kind == User
	switch {
	case !user && p.Kind != Role, !validName(p.Name, nameMax), !validPath(p.Path), !validUniqueID(p.ID, p.Kind.idPrefix()), p.Created.IsZero(),
		user && (p.Trust != "" || p.Description != "" || len(p.TrustBound) > 0 || p.MaxSession != 0), !user && (p.Trust == "" || p.MaxSession <= 0),
		!user && len(p.AccessKeys) > 0, len(p.AccessKeys) > OwnedKeysMax, p.documents() > documentsBytesMax:
		return ErrDamaged
	case !slices.IsSortedFunc(p.Inline, byDocumentName) || !slices.IsSorted(p.Attached) || !slices.IsSortedFunc(p.Tags, byFoldedKey):
		return ErrDamaged
	}
	for _, id := range p.AccessKeys {
		if !validAccessKeyID(id) {
			return ErrDamaged
		}
	}
	for i := range p.Inline {
		if !validName(p.Inline[i].Name, policyNameMax) || i > 0 && p.Inline[i].Name == p.Inline[i-1].Name {
			return ErrDamaged
		}
	}
	return nil
}

// validName is IAM's form of a name: letters, digits and +=,.@_-
func validName(name string, most int) bool {
	for _, c := range []byte(name) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("+=,.@_-", c) >= 0) {
			return false
		}
	}
	return len(name) > 0 && len(name) <= most
}

// validPath is "/" or printable ASCII without blanks between slashes.
func validPath(path string) bool {
	for _, c := range []byte(path) {
		if c < '!' || c > '~' {
			return false
		}
	}
	return len(path) > 0 && len(path) <= pathMax && path[0] == '/' && path[len(path)-1] == '/'
}

// validUniqueID is a prefix and 16 or 17 upper-case base32 digits.
func validUniqueID(id, prefix string) bool {
	digits, ok := strings.CutPrefix(id, prefix)
	for _, c := range []byte(digits) {
		if !(c >= 'A' && c <= 'Z' || c >= '2' && c <= '7') {
			return false
		}
	}
	return ok && (len(digits) == 16 || len(digits) == 17)
}

type storedPrincipal struct {
	Account     string     `json:"account"`
	Name        string     `json:"name"`
	ID          string     `json:"id"`
	Path        string     `json:"path"`
	Created     int64      `json:"created"`
	Inline      []Document `json:"inline,omitempty"`
	Attached    []string   `json:"attached,omitempty"`
	Boundary    string     `json:"boundary,omitzero"`
	Tags        []Tag      `json:"tags,omitempty"`
	AccessKeys  []string   `json:"accessKeys,omitempty"`
	Description string     `json:"description,omitzero"`
	Trust       string     `json:"trust,omitzero"`
	TrustBound  []Bound    `json:"trustBound,omitempty"`
	MaxSession  int64      `json:"maxSession,omitzero"` // seconds
}

func encodePrincipal(p *Principal) ([]byte, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	return encode(&storedPrincipal{
		Account: p.Account.String(), Name: p.Name, ID: p.ID, Path: p.Path, Created: p.Created.UnixMilli(), Inline: p.Inline, Attached: p.Attached,
		Boundary: p.Boundary, Tags: p.Tags, AccessKeys: p.AccessKeys, Description: p.Description, Trust: p.Trust, TrustBound: p.TrustBound,
		MaxSession: int64(p.MaxSession / time.Second),
	})
}

func decodePrincipal(kind PrincipalKind, key string, value []byte, revision int64) (*Principal, error) {
	var st storedPrincipal
	if err := decode(value, &st); err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	account, ok := keyid.ParseAccount([]byte(st.Account))
	if !ok || st.MaxSession < 0 || st.MaxSession > 1<<31 {
		return nil, fmt.Errorf("%s: %w", key, ErrDamaged)
	}
	p := &Principal{
		PrincipalName: PrincipalName{Kind: kind, Account: account, Name: st.Name}, ID: st.ID, Path: st.Path, Created: time.UnixMilli(st.Created).UTC(),
		Inline: st.Inline, Attached: st.Attached, Boundary: st.Boundary, Tags: st.Tags, AccessKeys: st.AccessKeys, Description: st.Description,
		Trust: st.Trust, TrustBound: st.TrustBound, MaxSession: time.Duration(st.MaxSession) * time.Second, Revision: revision,
	}
	if err := p.check(); err != nil || p.key() != key {
		return nil, fmt.Errorf("%s: %w", key, ErrDamaged)
	}
	return p, nil
}

// CreatePrincipal writes a new user or role. ErrNotFound: no such account; ErrExists; ErrQuota; ErrNoPolicy.
func (s *Store) CreatePrincipal(ctx context.Context, p *Principal) error {
	if err := p.quotas(); err != nil {
		return err
	}
	return s.inAccount(ctx, p.Account, func(a *Account) (bool, error) {
		count, most, name := &a.Users, UsersMax, "UsersPerAccount"
		if p.Kind == Role {
			count, most, name = &a.Roles, RolesMax, "RolesPerAccount"
		}
		if *count >= most {
			return false, &Quota{name, most}
		}
		*count++
		value, err := encodePrincipal(p)
		if err != nil {
			return false, err
		}
		when, then, err := s.putUses(ctx, nil, p)
		if err != nil {
			return false, err
		}
		if _, _, err := s.get(ctx, p.key()); !errors.Is(err, ErrNotFound) {
			if err == nil {
				err = ErrExists
			}
			return false, err
		}
		w, t, err := a.put()
		if err != nil {
			return false, err
		}
		when, then = append(append(when, w...), absent(p.key())), append(append(then, t...), clientv3.OpPut(p.key(), string(value)))
		ok, revision, err := s.commit(ctx, when, then)
		p.Revision = revision
		return ok, err
	})
}

// Principal reads a user or role.
func (s *Store) Principal(ctx context.Context, n PrincipalName) (*Principal, error) {
	if !validName(n.Name, nameMax) {
		return nil, ErrNotFound
	}
	value, revision, err := s.get(ctx, n.key())
	if err != nil {
		return nil, err
	}
	p, err := decodePrincipal(n.Kind, n.key(), value, revision)
	if err == nil && p.PrincipalName != n {
		return nil, ErrNotFound // another case
	}
	return p, err
}

// UpdatePrincipal changes a user or role. change decides on the record as it is and edits it; it may run several times and must not touch
// name, path, ID or access keys. Its error ends the update and comes back as it is. Managed policies that are attached or made the boundary
// must exist (ErrNoPolicy).
func (s *Store) UpdatePrincipal(ctx context.Context, n PrincipalName, change func(*Principal) error) (*Principal, error) {
	var result *Principal
	err := s.serial(ctx, n.Account, func() (bool, error) {
		old, err := s.Principal(ctx, n)
		if err != nil {
			return false, err
		}
		p := old.clone()
		if err := change(p); err != nil {
			return false, err
		}
		if err := p.quotas(); err != nil {
			return false, err
		}
		before, err := encodePrincipal(old)
		if err != nil {
			return false, err
		}
		after, err := encodePrincipal(p)
		if err != nil {
			return false, err
		}
		result = p
		if bytes.Equal(before, after) {
			return true, nil
		}
		when, then, err := s.putUses(ctx, old, p)
		if err != nil {
			return false, err
		}
		ok, revision, err := s.commit(ctx, append(when, unchanged(n.key(), old.Revision)), append(then, clientv3.OpPut(n.key(), string(after))))
		p.Revision = revision
		return ok, err
	})
	if err != nil {
		return nil, err
	}
	return result, nil
}

// DeletePrincipal removes the user or role of the unique ID, which has neither access keys nor policies (ErrInUse). A boundary goes with it.
// ErrNotFound also for one that was made later under the name.
func (s *Store) DeletePrincipal(ctx context.Context, n PrincipalName, id string) error {
	return s.inAccount(ctx, n.Account, func(a *Account) (bool, error) {
		p, err := s.Principal(ctx, n)
		if err == nil && p.ID != id {
			err = ErrNotFound
		}
		if err != nil {
			return false, err
		}
		if len(p.AccessKeys)+len(p.Inline)+len(p.Attached) > 0 {
			return false, ErrInUse
		}
		if n.Kind == Role {
			a.Roles--
		} else {
			a.Users--
		}
		when, then, err := s.putUses(ctx, p, nil)
		if err != nil {
			return false, err
		}
		w, t, err := a.put()
		if err != nil {
			return false, err
		}
		ok, _, err := s.commit(ctx, append(append(when, w...), unchanged(n.key(), p.Revision)), append(append(then, t...), clientv3.OpDelete(n.key())))
		return ok, err
	})
}

// Principals lists an account's users or roles in ascending order of their names without regard to case, those after the name given ("": from
// the start), at most limit. more says that there are others behind them.
func (s *Store) Principals(ctx context.Context, kind PrincipalKind, a keyid.Account, after string, limit int) (list []*Principal, more bool, err error) {
	more, err = s.list(ctx, kind.prefix()+a.String()+"/", strings.ToLower(after), limit, func(key string, value []byte, revision int64) error {
		p, err := decodePrincipal(kind, key, value, revision)
		list = append(list, p)
		return err
	})
	return list, more, err
}

// AllPrincipals reads every user and every role of all accounts. An error of use ends the walk.
func (s *Store) AllPrincipals(ctx context.Context, use func(*Principal) error, damaged ...func(error)) error {
	for _, kind := range []PrincipalKind{User, Role} {
		if err := s.walk(ctx, kind.prefix(), spare(damaged, func(key string, value []byte, revision int64) error {
			p, err := decodePrincipal(kind, key, value, revision)
			if err != nil {
				return err
			}
			return use(p)
		})); err != nil {
			return err
		}
	}
	return nil
}
