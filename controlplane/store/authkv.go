package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// authKV is between the package and etcd: it puts the trailer on every value that is written and takes it off every one that is read, so that no kind of record can
// forget it. A value that does not verify is damagedFormat to all above, which no decoder takes.
//
// A trailer needs the version that the value will have. Mostly the transaction compares the key's mod revision, or that it is not there, and then it is known what the value
// comes after (versions). Where it does not, authKV adds the compare. It does so in a transaction inside the caller's, so that a failure of its own, upon which it tries
// again, is not taken for one of the caller's.
type authKV struct {
	clientv3.KV // below
	versions    versions

	// key is nil until there is one. sealed says that values have trailers all the same: then only what is under meta is to be had, unverified (Store.Authenticate
	// verifies it later), and nothing can be put.
	key    atomic.Pointer[macKey]
	sealed atomic.Bool

	seen   atomic.Int64 // the highest revision that an answer had
	seenAt atomic.Int64 // when the last answer came, in nanoseconds
}

const (
	// seenFresh is how old the last answer may be for seen to be of use in a first value.
	seenFresh = 10 * time.Millisecond

	versionsMax = 1 << 14
)

var (
	errNoKey   = errors.New("store: its values are authenticated, and the key for that has not been opened")
	errCompare = errors.New("store: this transaction cannot be authenticated")
)

func newAuthKV(below clientv3.KV) *authKV {
	return &authKV{KV: below, versions: versions{m: map[string]version{}}}
}

// on is the key, if values have trailers that this process can make.
func (a *authKV) on() (*macKey, error) {
	key := a.key.Load()
	if key == nil && a.sealed.Load() {
		return nil, errNoKey
	}
	return key, nil
}

// version is where a key stands: all zero where it is not there.
type version struct {
	mod, version, create int64
}

// versions remembers those of keys that were read or written last.
type versions struct {
	mu   sync.Mutex
	m    map[string]version
	ring []string // its keys, the oldest at next once it is full
	next int
}

func (c *versions) get(key string) (version, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.m[key]
	return v, ok
}

// note keeps the newer one.
func (c *versions) note(key []byte, v version) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old, ok := c.m[string(key)]
	if ok {
		if v.mod > old.mod {
			c.m[string(key)] = v
		}
		return
	}
	k := string(key)
	if len(c.ring) < versionsMax {
		c.ring = append(c.ring, k)
	} else {
		delete(c.m, c.ring[c.next])
		c.ring[c.next] = k
		c.next = (c.next + 1) % versionsMax
	}
	c.m[k] = v
}

// saw is called with the revision of each answer.
func (a *authKV) saw(revision int64) {
	for {
		old := a.seen.Load()
		if revision <= old || a.seen.CompareAndSwap(old, revision) {
			break
		}
	}
	a.seenAt.Store(time.Now().UnixNano())
}

// read takes the trailer off a value that etcd gave, or puts damagedFormat in its place.
func (a *authKV) read(kv *mvccpb.KeyValue) {
	if kv == nil || plain(string(kv.Key)) {
		return
	}
	key := a.key.Load()
	switch {
	case key != nil:
		value, err := key.open(kv)
		if err != nil {
			clear(kv.Value)
			value = []byte{damagedFormat}
		}
		kv.Value = value
	case strings.HasPrefix(string(kv.Key), metaPrefix): // a pin, which is verified later
		if value, _, _, ok := split(kv.Value); ok {
			kv.Value = value
		} else if a.sealed.Load() {
			kv.Value = []byte{damagedFormat}
		}
	case a.sealed.Load():
		kv.Value = []byte{damagedFormat}
	}
}

// readAll does so with what a Get was answered.
func (a *authKV) readAll(op *clientv3.Op, kvs []*mvccpb.KeyValue) {
	for _, kv := range kvs {
		if a.key.Load() != nil && op.Rev() == 0 && !plain(string(kv.Key)) {
			a.versions.note(kv.Key, version{kv.ModRevision, kv.Version, kv.CreateRevision})
		}
		if !op.IsKeysOnly() {
			a.read(kv)
		}
	}
}

// mayRead refuses what cannot be verified yet.
func (a *authKV) mayRead(op *clientv3.Op) error {
	if op.IsGet() && !strings.HasPrefix(string(op.KeyBytes()), metaPrefix) && !op.IsKeysOnly() && !op.IsCountOnly() {
		_, err := a.on()
		return err
	}
	return nil
}

func (a *authKV) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	r, err := a.Do(ctx, clientv3.OpGet(key, opts...))
	return r.Get(), err
}

func (a *authKV) GetStream(ctx context.Context, key string, opts ...clientv3.OpOption) (clientv3.GetStreamChan, error) {
	return nil, fmt.Errorf("%w: a stream", errCompare) // nobody asks
}

func (a *authKV) Put(ctx context.Context, key, value string, opts ...clientv3.OpOption) (*clientv3.PutResponse, error) {
	r, err := a.Do(ctx, clientv3.OpPut(key, value, opts...))
	return r.Put(), err
}

func (a *authKV) Delete(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.DeleteResponse, error) {
	r, err := a.Do(ctx, clientv3.OpDelete(key, opts...))
	return r.Del(), err
}

func (a *authKV) Do(ctx context.Context, op clientv3.Op) (clientv3.OpResponse, error) {
	switch {
	case op.IsTxn():
		when, then, otherwise := op.Txn()
		resp, err := a.Txn(ctx).If(when...).Then(then...).Else(otherwise...).Commit()
		if err != nil {
			return clientv3.OpResponse{}, err
		}
		return resp.OpResponse(), nil
	case op.IsPut() && !plain(string(op.KeyBytes())):
		resp, err := a.Txn(ctx).Then(op).Commit()
		if err != nil {
			return clientv3.OpResponse{}, err
		}
		put := (*clientv3.PutResponse)(resp.Responses[0].GetResponsePut())
		put.Header = resp.Header
		return put.OpResponse(), nil
	}
	if err := a.mayRead(&op); err != nil {
		return clientv3.OpResponse{}, err
	}
	r, err := a.KV.Do(ctx, op)
	if err != nil {
		return r, err
	}
	switch {
	case op.IsGet():
		a.saw(r.Get().Header.Revision)
		a.readAll(&op, r.Get().Kvs)
	case op.IsPut():
		a.saw(r.Put().Header.Revision)
	case op.IsDelete():
		a.saw(r.Del().Header.Revision)
		for _, kv := range r.Del().PrevKvs {
			a.read(kv)
		}
	}
	return r, nil
}

func (a *authKV) Txn(ctx context.Context) clientv3.Txn { return &authTxn{a: a, ctx: ctx} }

type authTxn struct {
	a               *authKV
	ctx             context.Context
	when            []clientv3.Cmp
	then, otherwise []clientv3.Op
}

func (t *authTxn) If(cs ...clientv3.Cmp) clientv3.Txn {
	t.when = append(t.when, cs...)
	return t
}

func (t *authTxn) Then(ops ...clientv3.Op) clientv3.Txn {
	t.then = append(t.then, ops...)
	return t
}

func (t *authTxn) Else(ops ...clientv3.Op) clientv3.Txn {
	t.otherwise = append(t.otherwise, ops...)
	return t
}

// Commit runs the transaction with trailers. It takes puts in Then alone, and no transactions inside.
func (t *authTxn) Commit() (*clientv3.TxnResponse, error) {
	key, err := t.a.on()
	if err != nil {
		for _, op := range append(t.then[:len(t.then):len(t.then)], t.otherwise...) {
			if !strings.HasPrefix(string(op.KeyBytes()), metaPrefix) || op.IsPut() && !plain(string(op.KeyBytes())) || op.IsTxn() {
				return nil, err
			}
		}
	}
	if key == nil {
		resp, err := t.a.KV.Txn(t.ctx).If(t.when...).Then(t.then...).Else(t.otherwise...).Commit()
		return t.a.answered(resp, err, t.then, t.otherwise)
	}
	for _, op := range t.then {
		if op.IsTxn() {
			return nil, errCompare
		}
	}
	for _, op := range t.otherwise {
		if op.IsTxn() || op.IsPut() && !plain(string(op.KeyBytes())) {
			return nil, errCompare
		}
	}
	for i := range t.when {
		if c := t.when[i].GetCompare(); c.Target == etcdserverpb.Compare_VALUE && !plain(string(c.Key)) {
			return nil, errCompare
		}
	}
	pause := conflictPause
	for range attemptsMax {
		resp, again, err := t.attempt(key)
		if !again {
			return resp, err
		}
		select {
		case <-time.After(pause):
		case <-t.ctx.Done():
			return nil, t.ctx.Err()
		}
		pause = min(2*pause, 32*conflictPause)
	}
	return nil, ErrConflict
}

// put is one value that a transaction writes.
type put struct {
	op    int // which of then
	key   string
	after version
}

// attempt runs the transaction once. again: a key had another version than was thought, or it was not fresh enough.
func (t *authTxn) attempt(key *macKey) (resp *clientv3.TxnResponse, again bool, err error) {
	a := t.a
	puts, own, first, err := t.plan()
	if err != nil {
		return nil, false, err
	}
	if first && time.Now().UnixNano()-a.seenAt.Load() > int64(seenFresh) {
		if _, err := a.Get(t.ctx, formatKey, clientv3.WithKeysOnly()); err != nil {
			return nil, false, err
		}
	}
	seen := a.seen.Load()
	then := append([]clientv3.Op(nil), t.then...)
	for _, p := range puts {
		then[p.op].WithValueBytes(key.seal(p.key, at{p.after.version + 1, p.after.create}, seen, then[p.op].ValueBytes()))
	}
	if len(own) == 0 {
		resp, err = a.KV.Txn(t.ctx).If(t.when...).Then(then...).Else(t.otherwise...).Commit()
	} else {
		resp, err = a.KV.Txn(t.ctx).If(t.when...).Then(clientv3.OpTxn(own, then, nil)).Else(t.otherwise...).Commit()
		if err == nil && resp.Succeeded {
			inner := resp.Responses[0].GetResponseTxn()
			if !inner.Succeeded {
				return nil, true, a.refresh(t.ctx, puts)
			}
			resp.Responses = inner.Responses
		}
	}
	if resp, err = a.answered(resp, err, t.then, t.otherwise); err != nil || !resp.Succeeded {
		return resp, false, err
	}
	var late []put
	for _, p := range puts {
		revision := resp.Header.Revision
		if p.after.version == 0 {
			a.versions.note([]byte(p.key), version{revision, 1, revision})
			if revision-seen > key.window {
				late = append(late, p)
			}
		} else {
			a.versions.note([]byte(p.key), version{revision, p.after.version + 1, p.after.create})
		}
	}
	if len(late) > 0 {
		revision, err := a.repair(t.ctx, key, resp.Header.Revision, late, t.then)
		if err != nil {
			return nil, false, err
		}
		resp.Header.Revision = revision // what was committed is to be had from then on
	}
	return resp, false, nil
}

// plan says what each value comes after, and which compares that takes besides the caller's. first: one of the values is the first of its key.
func (t *authTxn) plan() (puts []put, own []clientv3.Cmp, first bool, err error) {
	a := t.a
	var unknown []int // of puts
	for i, op := range t.then {
		if !op.IsPut() || plain(string(op.KeyBytes())) {
			continue
		}
		p := put{op: i, key: string(op.KeyBytes())}
		known, have := a.versions.get(p.key)
		mod, compared := t.compared(p.key)
		switch {
		case compared && mod == 0: // it is not there
		case compared && have && known.mod == mod:
			p.after = known
		case compared:
			unknown = append(unknown, len(puts))
		default:
			p.after = known // or not there
			own = append(own, unchanged(p.key, known.mod))
		}
		puts = append(puts, p)
	}
	if len(unknown) > 0 {
		gets := make([]clientv3.Op, len(unknown))
		for i, p := range unknown {
			gets[i] = clientv3.OpGet(puts[p].key, clientv3.WithKeysOnly())
		}
		resp, err := a.KV.Txn(t.ctx).Then(gets...).Commit()
		if err != nil {
			return nil, nil, false, err
		}
		for i, r := range resp.Responses {
			p := &puts[unknown[i]]
			mod, _ := t.compared(p.key)
			// If it is another revision by now, this transaction does not put it.
			p.after = version{mod, math.MaxInt32, mod}
			if kvs := r.GetResponseRange().Kvs; len(kvs) == 1 && kvs[0].ModRevision == mod {
				p.after = version{mod, kvs[0].Version, kvs[0].CreateRevision}
				a.versions.note(kvs[0].Key, p.after)
			}
		}
	}
	for _, p := range puts {
		first = first || p.after.version == 0
	}
	return puts, own, first, nil
}

// compared is the mod revision that the transaction holds a key to, 0 if it has not to be there.
func (t *authTxn) compared(key string) (mod int64, ok bool) {
	for i := range t.when {
		c := t.when[i].GetCompare()
		if string(c.Key) != key || len(c.RangeEnd) > 0 || c.Result != etcdserverpb.Compare_EQUAL {
			continue
		}
		switch c.Target {
		case etcdserverpb.Compare_MOD:
			return c.GetModRevision(), true
		case etcdserverpb.Compare_CREATE:
			if c.GetCreateRevision() == 0 {
				return 0, true
			}
		case etcdserverpb.Compare_VERSION:
			if c.GetVersion() == 0 {
				return 0, true
			}
		}
	}
	return 0, false
}

// refresh reads where the keys of puts stand.
func (a *authKV) refresh(ctx context.Context, puts []put) error {
	gets := make([]clientv3.Op, len(puts))
	for i, p := range puts {
		gets[i] = clientv3.OpGet(p.key, clientv3.WithKeysOnly())
	}
	resp, err := a.KV.Txn(ctx).Then(gets...).Commit()
	if err != nil {
		return err
	}
	a.saw(resp.Header.Revision)
	for i, r := range resp.Responses {
		v := version{mod: 0}
		if kvs := r.GetResponseRange().Kvs; len(kvs) == 1 {
			v = version{kvs[0].ModRevision, kvs[0].Version, kvs[0].CreateRevision}
		}
		a.versions.set(puts[i].key, v)
	}
	return nil
}

// set replaces what is remembered, by an older one too: a key that was deleted is at 0 again.
func (c *versions) set(key string, v version) {
	c.deleted(key)
	c.note([]byte(key), v)
}

// deleted says that a key is gone. If it is back already, as the next transaction finds, that costs another attempt.
func (c *versions) deleted(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.m[key]; ok {
		c.m[key] = version{}
	}
}

// answered reads what a transaction was answered.
func (a *authKV) answered(resp *clientv3.TxnResponse, err error, then, otherwise []clientv3.Op) (*clientv3.TxnResponse, error) {
	if err != nil {
		return nil, err
	}
	a.saw(resp.Header.Revision)
	ops := then
	if !resp.Succeeded {
		ops = otherwise
	}
	for i, r := range resp.Responses {
		switch op := &ops[i]; {
		case op.IsGet():
			a.readAll(op, r.GetResponseRange().Kvs)
		case op.IsDelete():
			if op.RangeBytes() == nil {
				a.versions.deleted(string(op.KeyBytes()))
			}
			for _, kv := range r.GetResponseDeleteRange().PrevKvs {
				a.read(kv)
			}
		case op.IsPut():
			a.read(r.GetResponsePut().PrevKv)
		}
	}
	return resp, nil
}

// repairTime bounds the writing of late first values, which goes on when the caller has given up.
const repairTime = 10 * time.Second

// repair writes first values again that were created so long after they were made that they do not verify: as the second of their keys. It returns the revision of the last.
func (a *authKV) repair(ctx context.Context, key *macKey, revision int64, late []put, then []clientv3.Op) (last int64, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), repairTime)
	defer cancel()
	last = revision
	err = retry(ctx, func() (bool, error) {
		for _, p := range late {
			value := key.seal(p.key, at{2, revision}, 0, then[p.op].ValueBytes())
			resp, err := a.KV.Txn(ctx).If(unchanged(p.key, revision)).Then(clientv3.OpPut(p.key, string(value), clientv3.WithIgnoreLease())).Commit()
			if err != nil {
				return false, ctx.Err() // again
			}
			if resp.Succeeded {
				last = resp.Header.Revision
				a.saw(last)
				a.versions.note([]byte(p.key), version{last, 2, revision})
			}
		}
		return true, nil
	})
	return last, err
}

// authWatcher verifies what a watch tells.
type authWatcher struct {
	clientv3.Watcher
	a *authKV
}

// Watch passes on each answer after it verified it. Answers are lost only with ctx.
func (w *authWatcher) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	below := w.Watcher.Watch(ctx, key, opts...)
	out := make(chan clientv3.WatchResponse)
	go func() {
		defer close(out)
		for resp := range below {
			w.a.saw(resp.Header.GetRevision())
			for _, e := range resp.Events {
				// Copies: from an etcd in this process, other watches have the same.
				e.Kv, e.PrevKv = copyKV(e.Kv), copyKV(e.PrevKv)
				if e.Type == mvccpb.PUT {
					w.a.read(e.Kv)
				}
				w.a.read(e.PrevKv)
			}
			select {
			case out <- resp:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

func copyKV(kv *mvccpb.KeyValue) *mvccpb.KeyValue {
	if kv == nil {
		return nil
	}
	return &mvccpb.KeyValue{
		Key: kv.Key, Value: bytes.Clone(kv.Value), CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision, Version: kv.Version, Lease: kv.Lease,
	}
}
