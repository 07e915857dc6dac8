package store

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/keyid"
)

// Grant is the record of one grant. It is never changed, only made and removed.
type Grant struct {
	authz.Grant         // ID, operations, constraints
	Key         KeyName // the key it is on
	Name        string  // "" for none
	Grantee     Party
	Retiring    Party         // ID "" for none
	Issuer      keyid.Account // of whoever made the grant
	Created     time.Time
	Revision    int64 // etcd mod revision; not part of the record
}

// Party is the grantee or the retiring principal of a grant. ID is what decides, a name as authz.Caller.Grantees has them: AIDA… of a user,
// AROA… of a role, AROA…:name of one of its sessions, 12 digits of an account, a service's name in lower case.
type Party struct {
	ID      string
	Shown   string // ARN or service name, as it was given
	Service bool
}

var (
	// ErrNoGrant says that the key exists and has no such grant.
	ErrNoGrant = errors.New("store: no such grant")
	// ErrGrantLimit says that the key has as many grants as it may.
	ErrGrantLimit = errors.New("store: the key has the maximum of grants")
	// ErrGranteeLimit says that the grants of the key to the grantee would be larger than authz.GrantSetMax.
	ErrGranteeLimit = errors.New("store: the grantee has the maximum of grants on the key")
)

// NewGrant is what CreateGrant is asked for.
type NewGrant struct {
	Key   KeyName
	Limit int  // the most grants that the key may have, the new one included
	Dry   bool // decide and check, but write nothing
	// Decide makes the grant, if it agrees to the key as it is; Key and Revision need not be filled. It may run several times; its error ends
	// the call and comes back as it is. parent is the grant on the same key that its agreement rests on, "" for none.
	Decide func(k *Key) (g *Grant, parent string, err error)
	// Done hears how the write ended, also that it was of unknown outcome, before anybody else of this process can change the key's grants;
	// with a nil error too of a grant that there was already. nil: nobody is told.
	Done func(*Grant, error)
}

// CreateGrant writes a grant. One with a name that the same account has given already to a grant that is equal in everything but ID and
// date is not made again: the older one is returned. ErrNotFound: no such key; ErrGrantLimit; ErrGranteeLimit.
func (s *Store) CreateGrant(ctx context.Context, in NewGrant) (*Grant, error) {
	n := in.Key
	unlock, err := s.keys.lock(ctx, n.key())
	if err != nil {
		return nil, err
	}
	defer unlock()
	var result *Grant
	err = retry(ctx, func() (bool, error) {
		k, more, err := s.keyAnd(ctx, n, n.grantCountKey())
		if err != nil {
			return false, err
		}
		defer k.Wipe()
		count, when, err := countGrants(n, more[0])
		if err != nil {
			return false, err
		}
		g, parent, err := in.Decide(k)
		if err != nil {
			return false, err
		}
		g.Key = n
		when = append(when, k.asRead()...)
		if parent != "" {
			when = append(when, present(n.grantKey(parent)))
		}
		if g.Name != "" {
			older, cmp, err := s.grantNamed(ctx, g)
			if err != nil {
				return false, err
			}
			if older != nil {
				if !in.Dry {
					done(in.Done, older, nil)
				}
				result = older
				return true, nil
			}
			when = append(when, cmp)
		}
		if count >= in.Limit {
			return false, ErrGrantLimit
		}
		size, err := s.granteeSize(ctx, n, g.Grantee.ID)
		if err != nil {
			return false, err
		}
		if size += g.Size(); size > authz.GrantSetMax {
			return false, ErrGranteeLimit
		}
		if in.Dry {
			result = g
			return true, nil
		}
		then, err := g.puts(count+1, size)
		if err != nil {
			return false, err
		}
		ok, revision, err := s.commit(ctx, append(when, absent(n.grantKey(g.ID))), then)
		if ok {
			g.Revision, result = revision, g
		}
		if ok || err != nil {
			done(in.Done, g, err)
		}
		return ok, err
	})
	return result, err
}

func done(tell func(*Grant, error), g *Grant, err error) {
	if tell != nil {
		tell(g, err)
	}
}

// grantNamed finds the grant that has g's name and is equal to it, or gives the compare that there is none.
func (s *Store) grantNamed(ctx context.Context, g *Grant) (*Grant, clientv3.Cmp, error) {
	at := g.nameKey()
	value, revision, err := s.get(ctx, at)
	if errors.Is(err, ErrNotFound) {
		return nil, absent(at), nil
	}
	if err != nil {
		return nil, clientv3.Cmp{}, err
	}
	var st storedName
	if err := decode(value, &st); err != nil {
		return nil, clientv3.Cmp{}, err
	}
	older, err := s.Grant(ctx, g.Key, st.Grant)
	if errors.Is(err, ErrNoGrant) { // removed since its name was read
		return nil, unchanged(at, revision), nil
	}
	if err == nil && older.nameKey() != at {
		err = ErrDamaged
	}
	return older, clientv3.Cmp{}, err
}

// granteeSize reads the sum of authz.Grant.Size over the grants of a key to a grantee. It changes only together with the key's counter of grants,
// which the caller has read before and compares. Grants that were made before there were sums have none: it is made of them.
func (s *Store) granteeSize(ctx context.Context, n KeyName, grantee string) (size int64, err error) {
	value, _, err := s.get(ctx, n.granteeSizeKey(grantee))
	if err == nil {
		var st storedSize
		if err = decode(value, &st); err == nil && st.Bytes < 0 {
			err = ErrDamaged
		}
		return st.Bytes, err
	}
	if !errors.Is(err, ErrNotFound) {
		return 0, err
	}
	list, err := s.Grants(ctx, n.Region, n.Account, n.ID, grantee)
	for i := range list {
		size += list[i].Size()
	}
	return size, err
}

// shrink is the part of a transaction that takes the grant out of the sum. One that is not there or damaged goes, and is made again when it is
// needed: it keeps nobody from removing a grant.
func (s *Store) shrink(ctx context.Context, g *Grant) (clientv3.Op, error) {
	at := g.Key.granteeSizeKey(g.Grantee.ID)
	value, _, err := s.get(ctx, at)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return clientv3.Op{}, err
	}
	var st storedSize
	if err != nil || decode(value, &st) != nil || st.Bytes <= g.Size() {
		return clientv3.OpDelete(at), nil
	}
	value, err = encode(&storedSize{Bytes: st.Bytes - g.Size()})
	return clientv3.OpPut(at, string(value)), err
}

// puts is what a transaction writes for the grant when the key has count grants with it, and those to its grantee have the size.
func (g *Grant) puts(count int, size int64) ([]clientv3.Op, error) {
	record, err := encodeGrant(g)
	if err != nil {
		return nil, err
	}
	entry, err := encode(g.granteeEntry())
	if err != nil {
		return nil, err
	}
	counter, err := encode(&storedCount{Grants: count})
	if err != nil {
		return nil, err
	}
	sum, err := encode(&storedSize{Bytes: size})
	if err != nil {
		return nil, err
	}
	then := []clientv3.Op{
		clientv3.OpPut(g.Key.grantKey(g.ID), string(record)), clientv3.OpPut(g.granteeKey(), string(entry)),
		clientv3.OpPut(g.Key.grantCountKey(), string(counter)),
		clientv3.OpPut(g.Key.granteeSizeKey(g.Grantee.ID), string(sum)),
	}
	if g.Retiring.ID != "" {
		then = append(then, clientv3.OpPut(g.retiringKey(), string([]byte{recordFormat})))
	}
	if g.Name != "" {
		name, err := encode(&storedName{Grant: g.ID})
		if err != nil {
			return nil, err
		}
		then = append(then, clientv3.OpPut(g.nameKey(), string(name)))
	}
	return then, nil
}

// OldGrant is what RemoveGrant is asked for.
type OldGrant struct {
	Key   KeyName
	ID    string
	Dry   bool                     // decide, but write nothing
	Allow func(*Key, *Grant) error // agrees to the key and the grant as they are; the grant is nil if there is none
	Done  func(*Grant, error)      // as NewGrant's
}

// RemoveGrant removes a grant, if Allow agrees, and returns it. ErrNotFound: no such key; ErrNoGrant, once Allow agreed.
func (s *Store) RemoveGrant(ctx context.Context, in OldGrant) (*Grant, error) {
	n, id := in.Key, in.ID
	if !validGrantID(id) {
		return nil, ErrNoGrant
	}
	unlock, err := s.keys.lock(ctx, n.key())
	if err != nil {
		return nil, err
	}
	defer unlock()
	var result *Grant
	err = retry(ctx, func() (bool, error) {
		k, more, err := s.keyAnd(ctx, n, n.grantCountKey(), n.grantKey(id))
		if err != nil {
			return false, err
		}
		defer k.Wipe()
		var g *Grant
		if more[1] != nil {
			if g, err = decodeGrant(n, id, more[1].Value, more[1].ModRevision); err != nil {
				return false, err
			}
		}
		if err := in.Allow(k, g); err != nil {
			return false, err
		}
		switch {
		case g == nil:
			return false, ErrNoGrant
		case in.Dry:
			result = g
			return true, nil
		}
		count, when, err := countGrants(n, more[0])
		if err != nil {
			return false, err
		}
		counter, err := encode(&storedCount{Grants: max(count-1, 0)})
		if err != nil {
			return false, err
		}
		sum, err := s.shrink(ctx, g)
		if err != nil {
			return false, err
		}
		then := []clientv3.Op{
			clientv3.OpDelete(n.grantKey(id)), clientv3.OpDelete(g.granteeKey()), clientv3.OpPut(n.grantCountKey(), string(counter)), sum,
		}
		if g.Retiring.ID != "" {
			then = append(then, clientv3.OpDelete(g.retiringKey()))
		}
		if g.Name != "" {
			then = append(then, clientv3.OpDelete(g.nameKey()))
		}
		ok, _, err := s.commit(ctx, append(append(when, k.asRead()...), unchanged(n.grantKey(id), g.Revision)), then)
		if ok {
			result = g
		}
		if ok || err != nil {
			done(in.Done, g, err)
		}
		return ok, err
	})
	return result, err
}

// deleteGrants is the part of a transaction that deletes a key which takes its grants. Entries in the index by retiring principal stay;
// RetirableGrants removes them when it meets them.
func (n KeyName) deleteGrants() []clientv3.Op {
	ops := []clientv3.Op{clientv3.OpDelete(n.grantCountKey())}
	for _, prefix := range []string{n.grantPrefix(), n.granteesPrefix(), n.granteeSizePrefix(), n.namePrefix()} {
		ops = append(ops, clientv3.OpDelete(prefix, clientv3.WithPrefix()))
	}
	return ops
}

// Grant reads one grant of a key; ErrNoGrant.
func (s *Store) Grant(ctx context.Context, n KeyName, id string) (*Grant, error) {
	if !validGrantID(id) {
		return nil, ErrNoGrant
	}
	value, revision, err := s.get(ctx, n.grantKey(id))
	if errors.Is(err, ErrNotFound) {
		return nil, ErrNoGrant
	}
	if err != nil {
		return nil, err
	}
	return decodeGrant(n, id, value, revision)
}

// KeyGrants lists a key's grants in ascending order of their IDs, those after the ID given ("": from the start), at most limit. more says
// that there are others behind them.
func (s *Store) KeyGrants(ctx context.Context, n KeyName, after string, limit int) (list []*Grant, more bool, err error) {
	prefix := n.grantPrefix()
	from := prefix
	if after != "" {
		from = n.grantKey(after) + "\x00"
	}
	resp, err := s.client.Get(ctx, from, clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)), clientv3.WithLimit(int64(limit)))
	if err != nil {
		return nil, false, fmt.Errorf("store: %w", err)
	}
	for _, kv := range resp.Kvs {
		g, err := decodeGrant(n, string(kv.Key[len(prefix):]), kv.Value, kv.ModRevision)
		if err != nil {
			return nil, false, err
		}
		list = append(list, g)
	}
	return list, resp.More, nil
}

// Grants reads the grants of a key to a grantee, one of authz.Caller.Grantees, linearizably and in ascending order of their IDs. None is no
// error, and neither is a key that does not exist.
func (s *Store) Grants(ctx context.Context, region string, a keyid.Account, id keyid.ID, grantee string) ([]authz.Grant, error) {
	n := KeyName{Region: region, Account: a, ID: id}
	prefix := n.granteePrefix(grantee)
	resp, err := s.client.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	list := make([]authz.Grant, 0, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		g, err := decodeGrantee(n, grantee, string(kv.Key[len(prefix):]), kv.Value)
		if err != nil {
			return nil, snapshotError(err)
		}
		list = append(list, g)
	}
	return list, nil
}

// RetirableGrants lists the grants of a Region, on keys of every account, whose retiring principal has the ID, in a fixed order: those after
// the position given ("": from the start), at most limit or retirableMax. next is the position of the last of those looked at, and more says
// that there may be others behind it; the list can be shorter than limit, or empty, all the same.
func (s *Store) RetirableGrants(ctx context.Context, region, retiring, after string, limit int) (list []*Grant, next string, looked int, more bool, err error) {
	prefix := retiringPrefix(region, retiring)
	from := prefix
	if after != "" {
		from = prefix + after + "\x00"
	}
	resp, err := s.client.Get(ctx, from, clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)), clientv3.WithLimit(int64(min(limit, retirableMax))),
		clientv3.WithKeysOnly())
	if err != nil || len(resp.Kvs) == 0 {
		if err != nil {
			err = fmt.Errorf("store: %w", err)
		}
		return nil, "", 0, false, err
	}
	names := make([]KeyName, len(resp.Kvs))
	ids := make([]string, len(resp.Kvs))
	ops := make([]clientv3.Op, len(resp.Kvs))
	for i, kv := range resp.Kvs {
		next = string(kv.Key[len(prefix):])
		var ok bool
		if names[i], ids[i], ok = parseRetiring(region, next); !ok {
			return nil, "", 0, false, ErrDamaged
		}
		ops[i] = clientv3.OpGet(names[i].grantKey(ids[i]))
	}
	records, err := s.client.Txn(ctx).Then(ops...).Commit()
	if err != nil {
		return nil, "", 0, false, fmt.Errorf("store: %w", err)
	}
	var gone []clientv3.Op
	for i, r := range records.Responses {
		kvs := r.GetResponseRange().Kvs
		if len(kvs) == 0 {
			// Index entries are written with their grants, and a grant's ID is not used again: this one's key was deleted.
			gone = append(gone, clientv3.OpDelete(string(resp.Kvs[i].Key)))
			continue
		}
		g, err := decodeGrant(names[i], ids[i], kvs[0].Value, kvs[0].ModRevision)
		if err == nil && g.Retiring.ID != retiring {
			err = ErrDamaged
		}
		if err != nil {
			return nil, "", 0, false, err
		}
		list = append(list, g)
	}
	if len(gone) > 0 {
		if _, _, err := s.commit(ctx, nil, gone); err != nil {
			return nil, "", 0, false, err
		}
	}
	return list, next, len(resp.Kvs), resp.More, nil
}

// retirableMax is what one transaction can read and delete: etcd allows 128 operations in one.
const retirableMax = 100

// parseRetiring reads what stands behind the prefix of an entry of the index by retiring principal.
func parseRetiring(region, rest string) (KeyName, string, bool) {
	parts := strings.Split(rest, "/")
	if len(parts) != 3 {
		return KeyName{}, "", false
	}
	account, accountOK := keyid.ParseAccount([]byte(parts[0]))
	id, idOK := keyid.ParseID([]byte(parts[1]))
	return KeyName{Region: region, Account: account, ID: id}, parts[2], accountOK && idOK && validGrantID(parts[2])
}

// ValidRetirable reports whether a position in RetirableGrants could have been one that it gave.
func ValidRetirable(position string) bool {
	_, _, ok := parseRetiring("", position)
	return ok
}

func (n KeyName) grantPrefix() string      { return root + "grant/" + n.path() + "/" }
func (n KeyName) grantKey(g string) string { return n.grantPrefix() + g }
func (n KeyName) grantCountKey() string    { return root + "grantcount/" + n.path() }
func (n KeyName) granteesPrefix() string   { return root + "grantee/" + n.path() + "/" }
func (n KeyName) granteePrefix(grantee string) string {
	return n.granteesPrefix() + hashed("grantee", grantee) + "/"
}
func (n KeyName) granteeSizePrefix() string { return root + "granteesize/" + n.path() + "/" }
func (n KeyName) granteeSizeKey(grantee string) string {
	return n.granteeSizePrefix() + hashed("grantee", grantee)
}
func (n KeyName) namePrefix() string { return root + "grantname/" + n.path() + "/" }

func retiringPrefix(region, retiring string) string {
	return root + "retiring/" + region + "/" + hashed("retiring", retiring) + "/"
}

func (g *Grant) granteeKey() string { return g.Key.granteePrefix(g.Grantee.ID) + g.ID }
func (g *Grant) retiringKey() string {
	return retiringPrefix(g.Key.Region, g.Retiring.ID) + g.Key.Account.String() + "/" + g.Key.ID.String() + "/" + g.ID
}

// nameKey is where a named grant is found again: by all that makes two grants the same.
func (g *Grant) nameKey() string {
	parts := []string{g.Name, g.Issuer.String(), strings.Join(g.Operations.Names(), ","), g.SourceARN}
	for _, p := range []Party{g.Grantee, g.Retiring} {
		parts = append(parts, p.ID, p.Shown)
	}
	for _, c := range []struct {
		has   bool
		pairs []authz.Pair
	}{{g.HasEquals, g.Equals}, {g.HasSubset, g.Subset}} {
		if !c.has {
			parts = append(parts, "none")
			continue
		}
		parts = append(parts, fmt.Sprint(len(c.pairs)))
		for _, p := range c.pairs {
			parts = append(parts, string(p.Key), string(p.Value))
		}
	}
	return g.Key.namePrefix() + hashed("name", parts...)
}

// hashed makes any text a name in etcd: SHA-256 in hex over what it is for and the parts, each with its length.
func hashed(what string, parts ...string) string {
	b := []byte("keyplane grant " + what + " v1")
	for _, p := range parts {
		b = binary.BigEndian.AppendUint32(b, uint32(len(p)))
		b = append(b, p...)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

const grantIDLen = 64

// validGrantID keeps grant IDs from reaching into other parts of the key space.
func validGrantID(id string) bool {
	for _, c := range []byte(id) {
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f') {
			return false
		}
	}
	return len(id) == grantIDLen
}

// ValidGrantID reports whether id has the form of a grant ID: 64 hexadecimal digits in lower case.
func ValidGrantID(id string) bool { return validGrantID(id) }

type storedCount struct {
	Grants int `json:"grants"`
}

// storedSize is the sum of authz.Grant.Size over the grants of a key to one grantee.
type storedSize struct {
	Bytes int64 `json:"bytes"`
}

type storedName struct {
	Grant string `json:"grant"`
}

// countGrants reads a key's counter of grants, nil for none, and gives the compare that it is still so.
func countGrants(n KeyName, kv *mvccpb.KeyValue) (int, []clientv3.Cmp, error) {
	if kv == nil {
		return 0, []clientv3.Cmp{absent(n.grantCountKey())}, nil
	}
	var st storedCount
	if err := decode(kv.Value, &st); err != nil {
		return 0, nil, err
	}
	return st.Grants, []clientv3.Cmp{unchanged(n.grantCountKey(), kv.ModRevision)}, nil
}

// storedTerms is what a grant allows: the part that decisions need.
type storedTerms struct {
	Operations []string     `json:"operations"`
	Equals     *storedPairs `json:"equals,omitzero"`
	Subset     *storedPairs `json:"subset,omitzero"`
	SourceARN  string       `json:"sourceArn,omitzero"`
}

// storedPairs are key, value, key, value … in ascending order of the keys.
type storedPairs []string

type storedGrant struct {
	storedTerms
	Key             string `json:"key"` // region/account/ID
	ID              string `json:"id"`
	Name            string `json:"name,omitzero"`
	Grantee         string `json:"grantee"`
	GranteeShown    string `json:"granteeShown"`
	GranteeService  bool   `json:"granteeService,omitzero"`
	Retiring        string `json:"retiring,omitzero"`
	RetiringShown   string `json:"retiringShown,omitzero"`
	RetiringService bool   `json:"retiringService,omitzero"`
	Issuer          string `json:"issuer"`
	Created         int64  `json:"created"`
}

// storedGrantee is an entry of the index by grantee: all that a decision needs, so that one read finds every grant to somebody.
type storedGrantee struct {
	storedTerms
	Key     string `json:"key"`
	ID      string `json:"id"`
	Grantee string `json:"grantee"`
}

func (g *Grant) terms() storedTerms {
	t := storedTerms{Operations: g.Operations.Names(), SourceARN: g.SourceARN}
	if g.HasEquals {
		t.Equals = storePairs(g.Equals)
	}
	if g.HasSubset {
		t.Subset = storePairs(g.Subset)
	}
	return t
}

func storePairs(pairs []authz.Pair) *storedPairs {
	st := storedPairs{}
	for _, p := range pairs {
		st = append(st, string(p.Key), string(p.Value))
	}
	return &st
}

// grant is the inverse of terms. What it does not know allows nothing: an operation without a name is damage.
func (t *storedTerms) grant(id string) (authz.Grant, error) {
	g := authz.Grant{ID: id, SourceARN: t.SourceARN, HasEquals: t.Equals != nil, HasSubset: t.Subset != nil}
	for _, name := range t.Operations {
		op := authz.ParseOperation(name)
		if op == 0 {
			return authz.Grant{}, ErrDamaged
		}
		g.Operations |= op
	}
	var ok1, ok2 bool
	g.Equals, ok1 = t.Equals.pairs()
	g.Subset, ok2 = t.Subset.pairs()
	if !ok1 || !ok2 || g.Operations == 0 || !validGrantID(id) {
		return authz.Grant{}, ErrDamaged
	}
	return g, nil
}

func (st *storedPairs) pairs() ([]authz.Pair, bool) {
	if st == nil {
		return nil, true
	}
	if len(*st)%2 != 0 {
		return nil, false
	}
	var list []authz.Pair
	for i := 0; i < len(*st); i += 2 {
		if i > 0 && (*st)[i-2] >= (*st)[i] {
			return nil, false
		}
		list = append(list, authz.Pair{Key: []byte((*st)[i]), Value: []byte((*st)[i+1])})
	}
	return list, true
}

func (g *Grant) granteeEntry() *storedGrantee {
	return &storedGrantee{storedTerms: g.terms(), Key: g.Key.path(), ID: g.ID, Grantee: g.Grantee.ID}
}

func decodeGrantee(n KeyName, grantee, id string, value []byte) (authz.Grant, error) {
	var st storedGrantee
	if err := decode(value, &st); err != nil {
		return authz.Grant{}, err
	}
	if st.Key != n.path() || st.ID != id || st.Grantee != grantee {
		return authz.Grant{}, ErrDamaged
	}
	return st.grant(id)
}

// encodeGrant holds the record's invariants by decoding what it encoded.
func encodeGrant(g *Grant) ([]byte, error) {
	value, err := encode(&storedGrant{
		storedTerms: g.terms(), Key: g.Key.path(), ID: g.ID, Name: g.Name,
		Grantee: g.Grantee.ID, GranteeShown: g.Grantee.Shown, GranteeService: g.Grantee.Service,
		Retiring: g.Retiring.ID, RetiringShown: g.Retiring.Shown, RetiringService: g.Retiring.Service,
		Issuer: g.Issuer.String(), Created: g.Created.UnixMilli(),
	})
	if err != nil {
		return nil, err
	}
	if _, err := decodeGrant(g.Key, g.ID, value, 0); err != nil {
		return nil, err
	}
	return value, nil
}

func decodeGrant(n KeyName, id string, value []byte, revision int64) (*Grant, error) {
	var st storedGrant
	if err := decode(value, &st); err != nil {
		return nil, err
	}
	issuer, ok := keyid.ParseAccount([]byte(st.Issuer))
	if !ok || st.Key != n.path() || st.ID != id || st.Grantee == "" || st.GranteeShown == "" || (st.Retiring == "") != (st.RetiringShown == "") {
		return nil, ErrDamaged
	}
	terms, err := st.grant(id)
	if err != nil {
		return nil, err
	}
	return &Grant{
		Grant: terms, Key: n, Name: st.Name,
		Grantee:  Party{ID: st.Grantee, Shown: st.GranteeShown, Service: st.GranteeService},
		Retiring: Party{ID: st.Retiring, Shown: st.RetiringShown, Service: st.RetiringService},
		Issuer:   issuer, Created: time.UnixMilli(st.Created).UTC(), Revision: revision,
	}, nil
}
