package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/secret"
)

// Session is the record of temporary credentials, with their secret in the clear: a role session, or a forward access session of a user or a
// role. Whoever holds one wipes the secret. Times have millisecond resolution.
type Session struct {
	ID          string // ASIA…
	Principal   PrincipalName
	PrincipalID string   // AROA… or AIDA…, as it was when the session began
	Name        string   // RoleSessionName; "" of a user
	Policies    []string // session policies
	Tags        []Tag
	Source      string // source identity
	Via         string // the registered service that these credentials were given to; "" for the principal's own
	ViaID       string // its ID, as it was when they were given
	Issued      time.Time
	Expires     time.Time
	Token       [sha256.Size]byte // of the session token
	Secret      secret.Bytes
}

const (
	sessionPrefix = root + "iam/session/"

	// SessionGrace is how long a session's record outlives it, so that who uses it hears that it expired and not that it never was.
	SessionGrace = 15 * time.Minute

	sessionPoliciesMax = 12 // one inline, ten managed, one of the session it was made from
)

func sessionKey(a keyid.Account, id string) string { return sessionPrefix + a.String() + "/" + id }

type storedSession struct {
	ID           string   `json:"id"`
	Account      string   `json:"account"`
	Kind         string   `json:"kind"` // user, role
	Principal    string   `json:"principal"`
	PrincipalID  string   `json:"principalId"`
	Name         string   `json:"name,omitzero"`
	Policies     []string `json:"policies,omitempty"`
	Tags         []Tag    `json:"tags,omitempty"`
	Source       string   `json:"source,omitzero"`
	Via          string   `json:"via,omitzero"`
	ViaID        string   `json:"viaId,omitzero"`
	Issued       int64    `json:"issued"`
	Expires      int64    `json:"expires"`
	Token        []byte   `json:"token"` // SHA-256
	SealedSecret []byte   `json:"sealedSecret,omitempty"`
}

// aad binds a sealed secret to all else of the record: an edited session does not open.
func (st *storedSession) aad() ([]byte, error) {
	rest := *st
	rest.SealedSecret = nil
	text, err := json.Marshal(&rest)
	if err != nil {
		return nil, fmt.Errorf("store: encoding a session: %w", err)
	}
	sum := sha256.Sum256(text)
	return append([]byte("keyplane session v1"), sum[:]...), nil
}

func (v *Session) check() error {
	documents := 0
	for _, p := range v.Policies {
		documents += len(p)
	}
	role := v.Principal.Kind == Role
	if !validAccessKeyID(v.ID) || !role && v.Principal.Kind != User || !validName(v.Principal.Name, nameMax) || v.Principal.Account > keyid.AccountMax ||
		!validUniqueID(v.PrincipalID, v.Principal.Kind.idPrefix()) || role != validName(v.Name, nameMax) || v.Secret.Len() == 0 ||
		len(v.Policies) > sessionPoliciesMax || documents > documentsBytesMax || len(v.Tags) > PrincipalTagsMax || (v.Via == "") != (v.ViaID == "") || !v.Expires.After(v.Issued) {
		return errors.New("store: not a valid session")
	}
	return nil
}

// PutSession writes new temporary credentials, which vanish some time after they expire (SessionGrace).
func (s *Store) PutSession(ctx context.Context, v *Session, now time.Time) error {
	if s.sealer == nil {
		return ErrNoSealer
	}
	if err := v.check(); err != nil {
		return err
	}
	kind := "user"
	if v.Principal.Kind == Role {
		kind = "role"
	}
	st := storedSession{
		ID: v.ID, Account: v.Principal.Account.String(), Kind: kind, Principal: v.Principal.Name, PrincipalID: v.PrincipalID, Name: v.Name,
		Policies: v.Policies, Tags: v.Tags, Source: v.Source, Via: v.Via, ViaID: v.ViaID, Issued: v.Issued.UnixMilli(),
		Expires: v.Expires.UnixMilli(), Token: v.Token[:],
	}
	aad, err := st.aad()
	if err != nil {
		return err
	}
	if st.SealedSecret, err = s.sealer.Seal(v.Secret.Expose(), aad); err != nil {
		return fmt.Errorf("store: sealing a session: %w", err)
	}
	value, err := encode(&st)
	if err != nil {
		return err
	}
	lease, err := s.client.Grant(ctx, int64((v.Expires.Sub(now)+SessionGrace)/time.Second)+1)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	key := sessionKey(v.Principal.Account, v.ID)
	ok, _, err := s.commit(ctx, []clientv3.Cmp{absent(key)}, []clientv3.Op{clientv3.OpPut(key, string(value), clientv3.WithLease(lease.ID))})
	if err == nil && !ok {
		err = ErrExists
	}
	return err // a lease that holds nothing ends by itself
}

// DeleteSessions deletes session records, a hundred in a transaction; one that is not there is no error.
func (s *Store) DeleteSessions(ctx context.Context, names []SessionName) error {
	for batch := range slices.Chunk(names, removeMax) {
		var then []clientv3.Op
		for _, n := range batch {
			then = append(then, clientv3.OpDelete(sessionKey(n.Account, n.ID)))
		}
		if _, _, err := s.commit(ctx, nil, then); err != nil {
			return err
		}
	}
	return nil
}

// SessionName names a session's record.
type SessionName struct {
	Account keyid.Account
	ID      string // ASIA…
}

// Sessions reads and opens every session that has not vanished. use owns each that it gets; its error ends the walk.
func (s *Store) Sessions(ctx context.Context, use func(*Session) error, damaged ...func(error)) error {
	return s.walk(ctx, sessionPrefix, spare(damaged, func(key string, value []byte, _ int64) error {
		v, err := s.openSession(key, value)
		if err != nil {
			return err
		}
		return use(v)
	}))
}

// Session reads and opens temporary credentials; ErrNotFound if there are none of that name.
func (s *Store) Session(ctx context.Context, n SessionName) (*Session, error) {
	if !validAccessKeyID(n.ID) {
		return nil, ErrNotFound
	}
	key := sessionKey(n.Account, n.ID)
	value, _, err := s.get(ctx, key)
	if err != nil {
		return nil, err
	}
	return s.openSession(key, value)
}

func (s *Store) openSession(key string, value []byte) (*Session, error) {
	if s.sealer == nil {
		return nil, ErrNoSealer
	}
	var st storedSession
	if err := decode(value, &st); err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	account, ok := keyid.ParseAccount([]byte(st.Account))
	kind, known := map[string]PrincipalKind{"user": User, "role": Role}[st.Kind]
	if !ok || !known || len(st.Token) != sha256.Size || sessionKey(account, st.ID) != key {
		return nil, fmt.Errorf("%s: %w", key, ErrDamaged)
	}
	aad, err := st.aad()
	if err != nil {
		return nil, err
	}
	plain, err := s.sealer.Open(st.SealedSecret, aad)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, unsealed(err))
	}
	v := &Session{
		ID: st.ID, Principal: PrincipalName{Kind: kind, Account: account, Name: st.Principal}, PrincipalID: st.PrincipalID, Name: st.Name,
		Policies: st.Policies, Tags: st.Tags, Source: st.Source, Via: st.Via, ViaID: st.ViaID, Issued: time.UnixMilli(st.Issued).UTC(),
		Expires: time.UnixMilli(st.Expires).UTC(), Token: [sha256.Size]byte(st.Token), Secret: secret.New(plain),
	}
	if err := v.check(); err != nil {
		v.Secret.Wipe()
		return nil, fmt.Errorf("%s: %w", key, ErrDamaged)
	}
	return v, nil
}
