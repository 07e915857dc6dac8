package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keyplane/keyplane/internal/keyid"
)

// ManagedPolicy is the record of a customer managed policy. It has one version, v1. The counts are how often it is in use.
type ManagedPolicy struct {
	Account     keyid.Account
	Name        string
	ID          string // ANPA…
	Path        string
	Description string
	Document    string
	Created     time.Time
	Tags        []Tag // ascending by Key
	Attachments int   // users and roles that it is attached to
	Boundaries  int   // users and roles whose permissions boundary it is
	Revision    int64 // etcd mod revision; not part of the record
}

const managedPrefix = root + "iam/policy/"

func managedKey(a keyid.Account, name string) string {
	return managedPrefix + a.String() + "/" + strings.ToLower(name)
}

// ARN is the policy's ARN.
func (m *ManagedPolicy) ARN(partition string) string {
	return "arn:" + partition + ":iam::" + m.Account.String() + ":policy" + m.Path + m.Name
}

func (m *ManagedPolicy) check() error {
	if m.Account > keyid.AccountMax || !validName(m.Name, policyNameMax) || !validPath(m.Path) || !validUniqueID(m.ID, "ANPA") || m.Document == "" ||
		len(m.Document) > documentsBytesMax || m.Created.IsZero() || m.Attachments < 0 || m.Boundaries < 0 || !slices.IsSortedFunc(m.Tags, byFoldedKey) {
		return ErrDamaged
	}
	return nil
}

type storedManagedPolicy struct {
	Account     string `json:"account"`
	Name        string `json:"name"`
	ID          string `json:"id"`
	Path        string `json:"path"`
	Description string `json:"description,omitzero"`
	Document    string `json:"document"`
	Created     int64  `json:"created"`
	Tags        []Tag  `json:"tags,omitempty"`
	Attachments int    `json:"attachments,omitzero"`
	Boundaries  int    `json:"boundaries,omitzero"`
}

func encodeManagedPolicy(m *ManagedPolicy) ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	return encode(&storedManagedPolicy{
		Account: m.Account.String(), Name: m.Name, ID: m.ID, Path: m.Path, Description: m.Description, Document: m.Document,
		Created: m.Created.UnixMilli(), Tags: m.Tags, Attachments: m.Attachments, Boundaries: m.Boundaries,
	})
}

func decodeManagedPolicy(key string, value []byte, revision int64) (*ManagedPolicy, error) {
	var st storedManagedPolicy
	if err := decode(value, &st); err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	account, ok := keyid.ParseAccount([]byte(st.Account))
	m := &ManagedPolicy{
		Account: account, Name: st.Name, ID: st.ID, Path: st.Path, Description: st.Description, Document: st.Document,
		Created: time.UnixMilli(st.Created).UTC(), Tags: st.Tags, Attachments: st.Attachments, Boundaries: st.Boundaries, Revision: revision,
	}
	if !ok || m.check() != nil || managedKey(account, m.Name) != key {
		return nil, fmt.Errorf("%s: %w", key, ErrDamaged)
	}
	return m, nil
}

// CreatePolicy writes a new customer managed policy. ErrNotFound: no such account; ErrExists; ErrQuota.
func (s *Store) CreatePolicy(ctx context.Context, m *ManagedPolicy) error {
	switch {
	case nonSpace(m.Document) > ManagedPolicyMax || len(m.Document) > documentsBytesMax:
		return &Quota{"PolicySize", ManagedPolicyMax}
	case len(m.Tags) > PrincipalTagsMax:
		return &Quota{"Tags", PrincipalTagsMax}
	}
	m.Attachments, m.Boundaries = 0, 0
	value, err := encodeManagedPolicy(m)
	if err != nil {
		return err
	}
	key := managedKey(m.Account, m.Name)
	return s.inAccount(ctx, m.Account, func(a *Account) (bool, error) {
		if a.Policies++; a.Policies > PoliciesMax {
			return false, &Quota{"PoliciesPerAccount", PoliciesMax}
		}
		if _, _, err := s.get(ctx, key); !errors.Is(err, ErrNotFound) {
			if err == nil {
				err = ErrExists
			}
			return false, err
		}
		when, then, err := a.put()
		if err != nil {
			return false, err
		}
		ok, revision, err := s.commit(ctx, append(when, absent(key)), append(then, clientv3.OpPut(key, string(value))))
		m.Revision = revision
		return ok, err
	})
}

// ManagedPolicy reads the customer managed policy with an ARN, of whatever partition. ErrNotFound also for what is no such ARN.
func (s *Store) ManagedPolicy(ctx context.Context, arn string) (*ManagedPolicy, error) {
	account, name, ok := policyName(arn)
	if !ok {
		return nil, ErrNotFound
	}
	key := managedKey(account, name)
	value, revision, err := s.get(ctx, key)
	if err != nil {
		return nil, err
	}
	m, err := decodeManagedPolicy(key, value, revision)
	if err == nil && afterPartition(m.ARN("aws")) != afterPartition(arn) {
		return nil, ErrNotFound // another path, another case
	}
	return m, err
}

// PolicyNamed reads the managed policy of an account that has the name, in whatever case; ErrNotFound.
func (s *Store) PolicyNamed(ctx context.Context, a keyid.Account, name string) (*ManagedPolicy, error) {
	if !validName(name, policyNameMax) {
		return nil, ErrNotFound
	}
	key := managedKey(a, name)
	value, revision, err := s.get(ctx, key)
	if err != nil {
		return nil, err
	}
	return decodeManagedPolicy(key, value, revision)
}

// policyName takes arn:<partition>:iam::<account>:policy/<path><name> apart.
func policyName(arn string) (a keyid.Account, name string, ok bool) {
	rest, ok := strings.CutPrefix(afterPartition(arn), ":iam::")
	if !ok || len(rest) < 12 {
		return 0, "", false
	}
	a, ok = keyid.ParseAccount([]byte(rest[:12]))
	path, found := strings.CutPrefix(rest[12:], ":policy/")
	name = path[strings.LastIndexByte(path, '/')+1:]
	return a, name, ok && found && validName(name, policyNameMax)
}

// afterPartition is what follows the partition in an ARN, with its colon; "" for what is no ARN.
func afterPartition(arn string) string {
	rest, ok := strings.CutPrefix(arn, "arn:")
	i := strings.IndexByte(rest, ':')
	if !ok || i < 0 {
		return ""
	}
	return rest[i:]
}

// DeletePolicy removes the managed policy of the unique ID, which nobody uses (ErrInUse). ErrNotFound also for one that was made later under
// the name.
func (s *Store) DeletePolicy(ctx context.Context, arn, id string) error {
	account, _, ok := policyName(arn)
	if !ok {
		return ErrNotFound
	}
	return s.inAccount(ctx, account, func(a *Account) (bool, error) {
		m, err := s.ManagedPolicy(ctx, arn)
		if err == nil && m.ID != id {
			err = ErrNotFound
		}
		if err != nil {
			return false, err
		}
		if m.Attachments+m.Boundaries > 0 {
			return false, ErrInUse
		}
		a.Policies--
		when, then, err := a.put()
		if err != nil {
			return false, err
		}
		key := managedKey(account, m.Name)
		ok, _, err := s.commit(ctx, append(when, unchanged(key, m.Revision)), append(then, clientv3.OpDelete(key)))
		return ok, err
	})
}

// Policies lists an account's managed policies in ascending order of their names without regard to case, those after the name given ("": from
// the start), at most limit. more says that there are others behind them.
func (s *Store) Policies(ctx context.Context, a keyid.Account, after string, limit int) (list []*ManagedPolicy, more bool, err error) {
	more, err = s.list(ctx, managedPrefix+a.String()+"/", strings.ToLower(after), limit, func(key string, value []byte, revision int64) error {
		m, err := decodeManagedPolicy(key, value, revision)
		list = append(list, m)
		return err
	})
	return list, more, err
}

// AllPolicies reads every managed policy of all accounts. An error of use ends the walk.
func (s *Store) AllPolicies(ctx context.Context, use func(*ManagedPolicy) error, damaged ...func(error)) error {
	return s.walk(ctx, managedPrefix, spare(damaged, func(key string, value []byte, revision int64) error {
		m, err := decodeManagedPolicy(key, value, revision)
		if err != nil {
			return err
		}
		return use(m)
	}))
}

// putUses is the part of a transaction that keeps the counts of the managed policies with what a principal uses of them, before (nil: it was
// not there) and after (nil: it is no more). AWS's own policies (account "aws") are not counted; whether they exist is the caller's to know.
func (s *Store) putUses(ctx context.Context, before, after *Principal) (when []clientv3.Cmp, then []clientv3.Op, err error) {
	type change struct{ attachments, boundaries int }
	changes := map[string]*change{}
	count := func(p *Principal, by int) {
		if p == nil {
			return
		}
		at := func(arn string) *change {
			if changes[arn] == nil {
				changes[arn] = &change{}
			}
			return changes[arn]
		}
		for _, arn := range p.Attached {
			at(arn).attachments += by
		}
		if p.Boundary != "" {
			at(p.Boundary).boundaries += by
		}
	}
	count(before, -1)
	count(after, 1)
	account := keyid.Account(0)
	if after != nil {
		account = after.Account
	} else {
		account = before.Account
	}
	for arn, c := range changes {
		if *c == (change{}) || strings.HasPrefix(afterPartition(arn), ":iam::aws:policy/") {
			continue
		}
		m, err := s.ManagedPolicy(ctx, arn)
		if errors.Is(err, ErrNotFound) || err == nil && m.Account != account {
			return nil, nil, ErrNoPolicy
		}
		if err != nil {
			return nil, nil, err
		}
		m.Attachments += c.attachments
		m.Boundaries += c.boundaries
		value, err := encodeManagedPolicy(m)
		if err != nil {
			return nil, nil, err
		}
		key := managedKey(m.Account, m.Name)
		when, then = append(when, unchanged(key, m.Revision)), append(then, clientv3.OpPut(key, string(value)))
	}
	return when, then, nil
}
