package controlplane

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/snapshot"
	"github.com/keyplane/keyplane/internal/xks"
)

const (
	originCloudHSM = snapshot.OriginCloudHSM
	originXKS      = snapshot.OriginExternalKeyStore

	notConnected = "The request was rejected because the custom key store is not connected. Connect the custom key store and try the request again."
	xksKeyInUse  = "The request was rejected because the XksKeyId is already associated with another KMS key in this external key store. Each KMS key in an external key store must be associated with a different external key."
)

// keyStoreOf names the key store that a key is in, which has one.
func keyStoreOf(k *store.Key) store.KeyStoreName {
	return store.KeyStoreName{Region: k.Region, Account: k.Account, ID: k.Store.ID}
}

// state is a key's state as everybody sees it: that of its record, but Unavailable if it would be Enabled or Disabled and its key store is not connected.
// EnableKey and DisableKey change the record, and so what shows when the key store is back.
func (s *Server) state(k *store.Key) kmsapi.KeyState {
	if k.Store == nil || k.State != kmsapi.StateEnabled && k.State != kmsapi.StateDisabled {
		return k.State
	}
	if s.keyStores == nil || !s.keyStores.Connected(keyStoreOf(k)) {
		return kmsapi.StateUnavailable
	}
	return k.State
}

// inKeyStore refuses parameters of CreateKey that do not go with its Origin, or with keys in custom key stores, of which spec is the spec.
func (in *createKeyIn) inKeyStore(spec string) error {
	switch origin := deref(in.Origin); {
	case origin != originCloudHSM && origin != originXKS:
		if in.CustomKeyStoreId != nil {
			return kmsapi.New(kmsapi.Validation, "CustomKeyStoreId is valid only with Origin AWS_CLOUDHSM or EXTERNAL_KEY_STORE.")
		}
		if in.XksKeyId != nil {
			return kmsapi.New(kmsapi.Validation, "XksKeyId is valid only with Origin EXTERNAL_KEY_STORE.")
		}
		return nil
	case in.CustomKeyStoreId == nil:
		return required("CustomKeyStoreId", "Origin "+origin)
	case origin == originCloudHSM && in.XksKeyId != nil:
		return kmsapi.New(kmsapi.Validation, "XksKeyId is valid only with Origin EXTERNAL_KEY_STORE.")
	case origin == originXKS && in.XksKeyId == nil:
		return required("XksKeyId", "Origin "+origin)
	case origin == originXKS && !xks.ValidKeyID(*in.XksKeyId): // "." and ".." go into no URI
		return kmsapi.New(kmsapi.Validation, "The XksKeyId is not valid.")
	case spec != kmsapi.SymmetricDefault:
		return kmsapi.New(kmsapi.UnsupportedOperation, "KeySpec "+spec+" is not valid for KMS keys in custom key stores.")
	case in.MultiRegion != nil && *in.MultiRegion:
		return kmsapi.New(kmsapi.UnsupportedOperation, "MultiRegion is not valid for KMS keys in custom key stores.")
	}
	return nil
}

// storeMaterial makes what a draft in a custom key store begins with: a key in the cluster, which it returns with the images of the key, or nothing but the
// proxy's word that the external key is fit. limit is the most keys that the account may have.
func (s *Server) storeMaterial(ctx context.Context, c *call, k *store.Key, limit int) (cluster string, images *[32]byte, err error) {
	n := keyStoreOf(k)
	ks, err := s.store.KeyStore(ctx, n)
	if err != nil {
		return "", nil, keyStoreError(err)
	}
	if (ks.Type == store.ExternalKeyStore) != k.Store.External() {
		return "", nil, kmsapi.New(kmsapi.UnsupportedOperation, "Origin "+k.Origin+" is not valid for KMS keys in a custom key store of type "+ks.Type+".")
	}
	if ks.State != store.Connected || s.keyStores == nil || !s.keyStores.Connected(n) {
		return "", nil, kmsapi.New(kmsapi.CustomKeyStoreInvalidState, notConnected)
	}
	count, err := s.store.KeyCount(ctx, s.region, k.Account)
	if err != nil {
		return "", nil, err
	}
	if count >= limit { // decided again in the transaction, as is all of this
		return "", nil, keyLimit()
	}
	if !k.Store.External() {
		// As with keys of the default store, the HSM may take longer than the rest of an operation: a member that was just connected takes seconds to be ready for keys.
		making, cancel := context.WithTimeout(context.WithoutCancel(ctx), clusterKeyTimeout)
		defer cancel()
		copies, images, err := s.keyStores.NewKey(making, n)
		if err != nil {
			return "", nil, faultError(err)
		}
		k.Versions[0].Resident, k.Versions[0].Copies = copies[0], copies[1:]
		return ks.Cluster, images, nil
	}
	taken, err := s.store.XksKeyTaken(ctx, n, k.Store.XksKeyID)
	if err != nil {
		return "", nil, err
	}
	if taken {
		return "", nil, kmsapi.New(kmsapi.XksKeyAlreadyInUse, xksKeyInUse)
	}
	m := &xks.Metadata{Operation: c.op.Name, RequestID: c.request.RequestID}
	if w := c.principal(); w != nil {
		m.Principal, m.ViaService = w.PrincipalARN(), w.Via
	}
	return "", nil, s.keyStores.XksKey(ctx, n, k.Store.XksKeyID, m)
}

// clusterKeyTimeout bounds the making of a key in a cluster.
const clusterKeyTimeout = 30 * time.Second

// copiesOf is the resident version of a key in a CloudHSM key store as the cluster has it.
func copiesOf(v *store.Version) []*snapshot.PrivateKey {
	return append([]*snapshot.PrivateKey{v.Resident}, v.Copies...)
}

// noteKeyIn is what the record of CreateKey and ScheduleKeyDeletion says of the key's key store.
func (c *call) noteKeyIn(k *store.Key, cluster string) {
	if k.Store == nil {
		return
	}
	c.details = appendStore(nil, k, cluster)
	if k.Store.External() {
		return
	}
	if backing := backingKey(k); c.op.Name == "CreateKey" {
		c.details = cloudtrail.AppendMember(c.details, "backingKey", append(backing, '}'))
	} else {
		c.details = cloudtrail.AppendMember(c.details, "backingKeys", append(append([]byte{'['}, backing...), "}]"...))
	}
}

// appendStore begins additionalEventData of a key in a custom key store.
func appendStore(dst []byte, k *store.Key, cluster string) []byte {
	dst = cloudtrail.AppendMember(append(dst, '{'), "customKeyStoreId", []byte(k.Store.ID))
	if cluster != "" {
		dst = cloudtrail.AppendMember(dst, "clusterId", []byte(cluster))
	}
	if k.Store.External() {
		dst = cloudtrail.AppendMember(dst, "xksKeyId", []byte(k.Store.XksKeyID))
	}
	return dst
}

// backingKey is the beginning of a JSON object, which CloudTrail has as a text: of handles, which AWS names too, there are none that last.
func backingKey(k *store.Key) []byte {
	return cloudtrail.AppendMember([]byte{'{'}, "backingKeyId", k.Versions[0].MaterialID[:])
}

// clusterOf is the CloudHsmClusterId of a key in a CloudHSM key store, "" of others.
func (s *Server) clusterOf(ctx context.Context, k *store.Key) (string, error) {
	if k.Store == nil || k.Store.External() {
		return "", nil
	}
	ks, err := s.store.KeyStore(ctx, keyStoreOf(k))
	if err != nil {
		return "", err
	}
	return ks.Cluster, nil
}

const (
	// repairTurn bounds how long the worker gives copies to members in one turn, and repairPage how many keys of one key store it looks at before it goes to the next.
	repairTurn = 10 * time.Second
	repairPage = 200
)

// repairStores gives members of clusters the keys that they lack and others have: a member that was away when keys were made. It goes through the keys of all
// connected key stores, some of one and then some of another, from where the last turn ended. A key store that cannot be repaired does not keep the others from it.
func (s *Server) repairStores(ctx context.Context) error {
	if s.keyStores == nil || !s.repairing.TryLock() {
		return nil
	}
	defer s.repairing.Unlock()
	list, damaged := s.store.KeyStores(ctx, s.region)
	from, todo := map[store.KeyStoreName]*keyid.ID{}, []store.KeyStoreName{}
	for _, ks := range list {
		if n := ks.KeyStoreName; ks.Type == store.CloudHSM && ks.State == store.Connected && s.keyStores.Connected(n) {
			from[n], todo = s.repaired[n], append(todo, n)
		}
	}
	s.repaired = from
	turn, cancel := context.WithTimeout(ctx, repairTurn)
	defer cancel()
	errs := []error{damaged}
	for len(todo) > 0 && turn.Err() == nil {
		todo = slices.DeleteFunc(todo, func(n store.KeyStoreName) bool {
			next, err := s.repairSome(turn, n, from[n])
			if from[n] = next; err != nil && turn.Err() == nil {
				errs = append(errs, fmt.Errorf("repairing the keys of custom key store %s: %w", n.ID, err))
			}
			return err != nil || next == nil
		})
	}
	return errors.Join(errs...)
}

// failsMax is how many keys of a page nobody takes before the rest is left for the next turn. A key that one member takes and another one does not is not one of them.
const failsMax = 3

// repairSome looks at some keys of one key store, those after the one given. next is where to go on, nil for the start: all were looked at.
func (s *Server) repairSome(ctx context.Context, n store.KeyStoreName, after *keyid.ID) (next *keyid.ID, err error) {
	ids, more, err := s.store.KeysOf(ctx, n, after, repairPage)
	if err != nil {
		return after, err
	}
	var errs []error // of those that failed, and the first of the others
	fails := 0
	for i := range ids {
		added, err := s.repairKey(ctx, store.KeyName{Region: n.Region, Account: n.Account, ID: ids[i]})
		if err != nil && !added {
			fails++
		}
		if err != nil && (!added || len(errs) == 0) {
			errs = append(errs, err)
		}
		if fails > failsMax || ctx.Err() != nil {
			return &ids[i], errors.Join(errs...)
		}
	}
	if more {
		next = &ids[len(ids)-1]
	}
	return next, errors.Join(errs...)
}

// repairKey adds the copies of one key that members of its cluster lack. err may be that of one member where another one has been given its copy.
func (s *Server) repairKey(ctx context.Context, n store.KeyName) (added bool, err error) {
	k, err := s.store.Key(ctx, n)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer k.Wipe()
	return s.repairCopies(ctx, k)
}

// completeCopies gives a key that was just made to members of its cluster that have come back meanwhile. What it cannot, the worker does.
func (s *Server) completeCopies(ctx context.Context, k *store.Key) {
	if _, err := s.repairCopies(ctx, k); err != nil {
		s.log.Warn("a new KMS key is not on an HSM of its cluster that came back meanwhile; it is tried again", "key", s.keyARN(k.KeyName), "error", err.Error())
	}
}

// repairCopies is repairKey of a key that has been read. One that lacks no copy costs next to nothing.
func (s *Server) repairCopies(ctx context.Context, k *store.Key) (added bool, err error) {
	if k.Store == nil || len(k.Versions) != 1 || k.Versions[0].Resident == nil {
		return false, nil
	}
	n := k.KeyName
	all, added, fault := s.keyStores.Repair(ctx, keyStoreOf(k), copiesOf(&k.Versions[0]))
	if !added {
		return false, fault
	}
	first := k.Versions[0].Resident
	changed, err := s.store.UpdateKey(ctx, n, func(k *store.Key) error {
		v := &k.Versions[0]
		if v.Resident.ID != first.ID {
			return store.ErrConflict
		}
		roots := map[[8]byte]bool{v.Resident.Root: true}
		for _, p := range v.Copies {
			roots[p.Root] = true
		}
		copies := v.Copies[:len(v.Copies):len(v.Copies)]
		for _, p := range all {
			if !roots[p.Root] {
				roots[p.Root], copies = true, append(copies, named(k, p))
			}
		}
		v.Copies = copies
		return nil
	})
	s.publishKey(n, err)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	changed.Wipe()
	s.log.Info("a KMS key in a CloudHSM cluster has copies on more of its HSMs", "key", s.keyARN(n), "copies", len(all))
	return true, fault // of a member that did not take it
}

// auditDeletionOf leaves the record of the deletion of a key that is there still (service event DeleteKey), before it: without it the deletion is postponed. One
// that then fails has a record for each time it is tried.
func (s *Server) auditDeletionOf(ctx context.Context, k *store.Key, now time.Time) error {
	var more []byte
	if k.Store != nil {
		cluster, err := s.clusterOf(ctx, k)
		if err != nil {
			return err
		}
		more = appendStore(nil, k, cluster)
		if !k.Store.External() {
			backing := append([]byte{'['}, backingKey(k)...)
			more = cloudtrail.AppendMember(more, "backingKeys", append(backing[:len(backing):len(backing)], "}]"...))
			more = cloudtrail.AppendMember(more, "backingKeysDeletionStatus", append(cloudtrail.AppendMember(backing, "deletionStatus", []byte("SUCCESS")), "}]"...))
		}
		more = append(more, '}')
	}
	return s.auditDeletion(s.keyARN(k.KeyName), k.Account, now, more)
}
