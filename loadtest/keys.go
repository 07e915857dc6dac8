package loadtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// AliasPrefix and a number name the keys a run finds or creates.
const AliasPrefix = kmsapi.AliasPrefix + "keyplane-loadtest-"

const setupParallel = 16 // calls at a time during set-up and clean-up

// key is one KMS key of a run.
type key struct {
	id  string // how requests name it
	arn string // how replies name it
}

// keyring finds, creates and at the end removes the keys of one run.
type keyring struct {
	api *kms.Client

	mu      sync.Mutex
	created []createdKey // guarded by mu; what clean removes, zero values left out
}

type createdKey struct{ alias, arn string }

// open returns the keys named by ids, or else n keys under the load test's own aliases.
func (k *keyring) open(ctx context.Context, ids []string, n int) ([]key, error) {
	if len(ids) > 0 {
		n = len(ids)
	}
	keys := make([]key, n)
	err := parallel(ctx, n, func(ctx context.Context, i int) (err error) {
		if len(ids) > 0 {
			keys[i], err = k.describe(ctx, ids[i])
			keys[i].id = ids[i]
			return err
		}
		keys[i], err = k.findOrCreate(ctx, AliasPrefix+strconv.Itoa(i))
		return err
	})
	return keys, err
}

// describe refuses a key that cannot encrypt now.
func (k *keyring) describe(ctx context.Context, id string) (key, error) {
	out, err := k.api.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &id})
	if err != nil {
		return key{}, fmt.Errorf("DescribeKey %s: %w", id, err)
	}
	m := out.KeyMetadata
	if m == nil || m.Arn == nil {
		return key{}, fmt.Errorf("DescribeKey %s: no key metadata in the reply", id)
	}
	if m.KeyState != types.KeyStateEnabled || m.KeySpec != types.KeySpecSymmetricDefault {
		return key{}, fmt.Errorf("key %s is %s with key spec %s; an Enabled SYMMETRIC_DEFAULT key is needed", id, m.KeyState, m.KeySpec)
	}
	return key{id: *m.Arn, arn: *m.Arn}, nil
}

func (k *keyring) findOrCreate(ctx context.Context, alias string) (key, error) {
	found, err := k.describe(ctx, alias)
	var missing *types.NotFoundException
	if !errors.As(err, &missing) {
		return found, err
	}
	ctx = context.WithoutCancel(ctx) // a creation cut off half way would leave a key that clean-up does not know
	out, err := k.api.CreateKey(ctx, &kms.CreateKeyInput{Description: aws.String("keyplane loadtest")})
	if err != nil {
		return key{}, fmt.Errorf("CreateKey: %w", err)
	}
	if out.KeyMetadata == nil || out.KeyMetadata.Arn == nil {
		return key{}, errors.New("CreateKey: no key metadata in the reply")
	}
	arn := *out.KeyMetadata.Arn
	at := k.remember(createdKey{arn: arn})
	_, err = k.api.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: &alias, TargetKeyId: &arn})
	var exists *types.AlreadyExistsException
	if errors.As(err, &exists) {
		return k.yield(ctx, at, alias, arn)
	}
	if err != nil {
		return key{}, fmt.Errorf("CreateAlias %s: %w", alias, err)
	}
	k.nameCreated(at, alias)
	return key{id: arn, arn: arn}, nil
}

// yield uses the key that alias has already. Where another load test was faster that one serves both, and ours is not needed; it may
// also be ours, when the SDK repeated a call whose answer was lost.
func (k *keyring) yield(ctx context.Context, at int, alias, arn string) (key, error) {
	found, err := k.describe(ctx, alias)
	if err != nil {
		return key{}, err
	}
	if found.arn == arn {
		k.nameCreated(at, alias)
		return found, nil
	}
	k.forget(at)
	return found, k.schedule(ctx, arn)
}

func (k *keyring) remember(c createdKey) (at int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.created = append(k.created, c)
	return len(k.created) - 1
}

func (k *keyring) nameCreated(at int, alias string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.created[at].alias = alias
}

// forget leaves a key out of clean-up.
func (k *keyring) forget(at int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.created[at] = createdKey{}
}

func (k *keyring) schedule(ctx context.Context, arn string) error {
	_, err := k.api.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: &arn, PendingWindowInDays: aws.Int32(kmsapi.PendingWindowMin)})
	if err != nil {
		return fmt.Errorf("ScheduleKeyDeletion %s: %w", arn, err)
	}
	return nil
}

// clean deletes the aliases and schedules the deletion of the keys that this run created, and of no others.
func (k *keyring) clean(ctx context.Context) (removed int, err error) {
	k.mu.Lock()
	created := slices.DeleteFunc(k.created, func(c createdKey) bool { return c == createdKey{} })
	k.created = nil
	k.mu.Unlock()
	err = parallel(ctx, len(created), func(ctx context.Context, i int) error {
		if created[i].alias != "" { // first the alias, so that a later run does not find a key on its way out
			if _, err := k.api.DeleteAlias(ctx, &kms.DeleteAliasInput{AliasName: &created[i].alias}); err != nil {
				return fmt.Errorf("DeleteAlias %s: %w", created[i].alias, err)
			}
		}
		return k.schedule(ctx, created[i].arn)
	})
	return len(created), err
}

// targets makes the requests of a run, one per key, unsigned.
func (k *keyring) targets(ctx context.Context, op *operation, keys []key, payload int) ([]*target, error) {
	if !op.keyed {
		keys = make([]key, 1)
	}
	targets := make([]*target, len(keys))
	err := parallel(ctx, len(keys), func(ctx context.Context, i int) error {
		t := &target{keyARN: keys[i].arn}
		var data []byte
		if op.encrypts() || op.decrypts() {
			data = make([]byte, payload)
			rand.Read(data)
		}
		if op.decrypts() {
			t.plaintext = data
			out, err := k.api.Encrypt(ctx, &kms.EncryptInput{KeyId: &keys[i].id, Plaintext: data})
			if err != nil {
				return fmt.Errorf("encrypting with %s: %w", keys[i].id, err)
			}
			data = out.CiphertextBlob
		}
		t.body = op.appendBody(nil, keys[i].id, data, payload)
		targets[i] = t
		return nil
	})
	return targets, err
}

// parallel calls f for 0 to n-1, a few at a time, and returns the first error; after one it starts no more.
func parallel(ctx context.Context, n int, f func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan int)
	var running sync.WaitGroup
	for range min(n, setupParallel) {
		running.Go(func() {
			for i := range next {
				if err := f(ctx, i); err != nil {
					cancel(err)
				}
			}
		})
	}
feed:
	for i := range n {
		select {
		case next <- i:
		case <-ctx.Done():
			break feed
		}
	}
	close(next)
	running.Wait()
	return context.Cause(ctx)
}
