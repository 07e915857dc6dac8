package iam

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/policy"
	"github.com/keyplane/keyplane/internal/sigv4"
)

// Table is what requests are verified and decided against: the active access keys and live sessions, and the principals behind them. It is a
// sigv4.KeySource: looking up an access key allocates nothing. All methods are safe for concurrent use.
type Table struct {
	store     *store.Store
	partition string
	changed   func(id string)
	spread    func()
	now       func() time.Time
	log       *slog.Logger
	loaded    *Table // the table that this one, while it is loaded, takes the place of
	spare     bool

	mu       sync.Mutex // held from a read of the store to the new table, so that tables follow the store's order
	keys     atomic.Pointer[map[string]*sigv4.AccessKey]
	sessions sessions

	names      sync.RWMutex // guards the maps below; their values are immutable but for the Holders
	accounts   map[keyid.Account]*principal
	principals map[store.PrincipalName]*principal
	services   map[string]*principal
	policies   map[string]managed // managed policies by ARN, so that all who have one share it

	unsettled unsettled
	ended     ended
}

// principal is one user, role, root user or service.
type principal struct {
	policy.Principal // as authz.Subject has it
	name             string
	holder           *authz.Holder

	unique     string         // what access keys and sessions are bound to: the ID, also of a service
	next       *authz.Subject // while a table is loaded: what the holder, which is in use, is to hold; nil: it is the holder's already
	trust      *policy.Policy // of a role
	maxSession time.Duration  // of a role
	service    *store.Service // of a service
}

// TableConfig is what a Table is made of. Store and Region are required.
type TableConfig struct {
	Store   *store.Store
	Region  string          // decides the partition of principals' ARNs
	Changed func(id string) // called after an access key changed in the table, before the change is acknowledged; nil: nobody else to tell
	// Spread returns when every process has what this one has read and written of the store. It is called before a change is acknowledged. nil: there are no others.
	Spread func()
	// Spare has Load take a record that is damaged for one that is gone, as Apply does, and tell it in the log. Without it Load fails. Of several processes, all would
	// end for one record.
	Spare  bool
	Now    func() time.Time // nil: time.Now
	Logger *slog.Logger     // nil: slog.Default
}

// NewTable makes an empty table. Load fills it.
func NewTable(cfg TableConfig) (*Table, error) {
	if cfg.Store == nil || !validRegion(cfg.Region) {
		return nil, errors.New("iam: a table needs a store and a Region")
	}
	t := &Table{store: cfg.Store, partition: keyid.Partition(cfg.Region), changed: cfg.Changed, spread: cfg.Spread, now: cfg.Now, log: cfg.Logger, spare: cfg.Spare}
	if t.changed == nil {
		t.changed = func(string) {}
	}
	if t.spread == nil {
		t.spread = func() {}
	}
	if t.now == nil {
		t.now = time.Now
	}
	if t.log == nil {
		t.log = slog.Default()
	}
	t.empty()
	t.unsettled.again, t.unsettled.arrived = map[string]func(context.Context) error{}, make(chan struct{}, 1)
	t.ended.arrived = make(chan struct{}, 1)
	return t, nil
}

// empty makes the maps of a table that nobody uses yet.
func (t *Table) empty() {
	t.keys.Store(&map[string]*sigv4.AccessKey{})
	t.sessions.init()
	t.accounts, t.principals = map[keyid.Account]*principal{}, map[store.PrincipalName]*principal{}
	t.services, t.policies = map[string]*principal{}, map[string]managed{}
}

// validRegion is the control plane's rule for names of Regions.
func validRegion(r string) bool {
	for _, c := range []byte(r) {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') {
			return false
		}
	}
	return len(r) > 0 && len(r) <= 32
}

// AccessKey is the active access key, or the temporary one, with that ID; nil if there is none.
func (t *Table) AccessKey(id []byte) *sigv4.AccessKey {
	if k := (*t.keys.Load())[string(id)]; k != nil {
		return k
	}
	return t.sessions.get(id)
}

// Bind is the unique ID of the user, role, role session or account that an ARN names now: a policy.Binder over all accounts.
func (t *Table) Bind(arn string) (id string, ok bool) {
	p, _ := t.find(arn)
	if p == nil || p.Kind == policy.Service {
		return "", false
	}
	return p.ID, true
}

// IsService reports whether a service is registered under a name in lower case: with its Region, or without, as grants and policies may name it.
func (t *Table) IsService(name string) bool {
	t.names.RLock()
	defer t.names.RUnlock()
	if t.services[name] != nil {
		return true
	}
	for full := range t.services { // few, and asked when a grant is made
		if withoutRegion(full) == name {
			return true
		}
	}
	return false
}

// Service is the name, without Region, of the service registered for the account whose first label is the one given, under a name with the Region, without
// one, or both; "" if there is none. The store registers no two of them, of earlier ones it is the first in the order of their names.
func (t *Table) Service(label, region string, a keyid.Account) (name string) {
	t.names.RLock()
	defer t.names.RUnlock()
	for full, p := range t.services {
		first, in, domain := store.ServiceParts(full)
		if first != label || in != "" && in != region || !p.service.ActsFor(a) {
			continue
		}
		if short := first + "." + domain; name == "" || short < name {
			name = short
		}
	}
	return name
}

// Subject is the principal that an ARN names now, of a role session its role, of a registered service's name the service; nil if there is none.
func (t *Table) Subject(arn string) *authz.Subject {
	p, _ := t.find(arn)
	if p == nil {
		return nil
	}
	return p.holder.Subject()
}

// Caller is whom an access key of that principal would speak for, of a role session one without session policies; nil if there is no such
// principal. A role's ARN alone is nobody who calls.
func (t *Table) Caller(arn string) *authz.Caller {
	p, session := t.find(arn)
	if p == nil || p.Kind == policy.AssumedRole && session == "" {
		return nil
	}
	return t.caller(p, session)
}

// find resolves an ARN, or a service's name. session is the name of a role session.
func (t *Table) find(arn string) (p *principal, session string) {
	t.names.RLock()
	defer t.names.RUnlock()
	rest, ok := strings.CutPrefix(arn, "arn:"+t.partition+":")
	if !ok {
		return t.services[arn], ""
	}
	service, rest, _ := strings.Cut(rest, "::")
	digits, resource, _ := strings.Cut(rest, ":")
	account, ok := keyid.ParseAccount([]byte(digits))
	if !ok {
		return nil, ""
	}
	kind, path, _ := strings.Cut(resource, "/")
	switch {
	case service == "iam" && resource == "root":
		p = t.accounts[account]
	case service == "iam" && (kind == "user" || kind == "role"):
		n := store.PrincipalName{Kind: store.User, Account: account, Name: path[strings.LastIndexByte(path, '/')+1:]}
		if kind == "role" {
			n.Kind = store.Role
		}
		if p = t.principals[n]; p != nil && p.ARN != arn && p.RoleARN != arn {
			p = nil // another path
		}
	case service == "sts" && kind == "assumed-role":
		role, name, _ := strings.Cut(path, "/")
		if validSessionName(name) {
			p, session = t.principals[store.PrincipalName{Kind: store.Role, Account: account, Name: role}], name
		}
	}
	return p, session
}

// Load reads everything and replaces the table, also while it serves: after changes that nobody can tell any more (store.ErrHistory). Who is still there keeps
// the Holder, so that requests under way are decided by what was read; who is gone has no rights from then on, and what was revoked is dead when Load returns. A
// request whose signature is being verified meanwhile may be refused: the caller sees to it that nobody is served (fence.Lease). On an error the table stays.
func (t *Table) Load(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sessions.load()
	next := &Table{store: t.store, partition: t.partition, now: t.now, log: t.log, loaded: t, spare: t.spare}
	next.empty()
	if err := next.fill(ctx); err != nil {
		next.wipe()
		t.sessions.loaded()
		return fmt.Errorf("iam: loading principals: %w", err)
	}
	t.names.Lock()
	succeed(t.accounts, next.accounts)
	succeed(t.principals, next.principals)
	succeed(t.services, next.services)
	t.accounts, t.principals, t.services, t.policies = next.accounts, next.principals, next.services, next.policies
	t.names.Unlock()
	old := t.keys.Swap(next.keys.Load())
	for _, k := range *old {
		k.Wipe()
	}
	t.sessions.take(&next.sessions)
	return nil
}

// heir gives a principal that was read the Holder of the one of its name, if it is the same one. What it is to hold is in force with succeed.
func heir(old, p *principal) *principal {
	if old != nil && old.unique == p.unique {
		p.next, p.holder = p.holder.Subject(), old.holder
	}
	return p
}

// succeed puts in force what the heirs in next are, and ends who has none.
func succeed[K comparable](old, next map[K]*principal) {
	for n, p := range old {
		if h := next[n]; h == nil || h.holder != p.holder {
			p.holder.Replace(nil)
		}
	}
	for _, p := range next {
		if p.next != nil {
			p.holder.Replace(p.next)
			p.next = nil
		}
	}
}

// wipe clears the secrets of a table that nobody uses.
func (t *Table) wipe() {
	for _, k := range *t.keys.Load() {
		k.Wipe()
	}
	t.sessions.take(nil)
}

// replace puts k, or nothing if k is nil, in the place of the access key id. mu is held.
func (t *Table) replace(id string, k *sigv4.AccessKey) {
	table := maps.Clone(*t.keys.Load())
	old := table[id]
	if k == nil {
		delete(table, id)
	} else {
		table[id] = k
	}
	t.keys.Store(&table)
	if old != nil {
		old.Wipe()
	}
}
