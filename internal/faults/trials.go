package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	iamtypes "github.com/aws/aws-sdk-go-v2/service/iam/types"

	"github.com/keyplane/keyplane/internal/cluster"
)

// trialCounts are of trials: of changes that were acknowledged, after which nothing may be done any more at any node.
type trialCounts struct {
	acknowledged, faulty, refused, unavailable, unsure atomic.Int64
}

// undecided reports whether a refusal says nothing of what was asked for: there is too much to do, or a clock is wrong, of the client or the server. Nothing was done.
func undecided(code string) bool {
	return code == "ThrottlingException" || code == "InvalidSignatureException" || code == "SignatureDoesNotMatch"
}

// iamClient is a client of IAM's API, which does not retry.
func (r *run) iamClient(n int) *iam.Client {
	return iam.New(iam.Options{
		Region: cluster.Region, BaseEndpoint: aws.String("http://" + r.endpoints()[0]), HTTPClient: r.named(n), Retryer: aws.NopRetryer{},
		Credentials: credentials.NewStaticCredentialsProvider(r.AccessKeyID, r.Secret, ""),
	})
}

// makeUser makes the user whom only grants let do anything.
func (r *run) makeUser(ctx context.Context) (err error) {
	r.user, r.userARN, _, err = r.newUser(ctx, "grantee")
	return err
}

func (r *run) newUser(ctx context.Context, name string) (who identity, arn, keyID string, err error) {
	c := r.iamClient(0)
	user, err := c.CreateUser(ctx, &iam.CreateUserInput{UserName: &name})
	if err != nil {
		return identity{}, "", "", err
	}
	key, err := c.CreateAccessKey(ctx, &iam.CreateAccessKeyInput{UserName: &name})
	if err != nil {
		return identity{}, "", "", err
	}
	who, err = newIdentity(*key.AccessKey.AccessKeyId, *key.AccessKey.SecretAccessKey)
	return who, *user.User.Arn, *key.AccessKey.AccessKeyId, err
}

// trialer tries changes of things of its own: that once a change is acknowledged, no node does what it has ended.
type trialer struct {
	*run
	n           int
	key, other  string
	alias       string
	admins      []*client // of one node each
	users       []*client // likewise
	any         *client
	staff       []*client // of a user whose access key comes and goes
	iam         *iam.Client
	name, keyID string // of that user
}

// newTrialer makes what the n-th trialer needs.
func (r *run) newTrialer(ctx context.Context, n int) (*trialer, error) {
	t := &trialer{run: r, n: n, alias: fmt.Sprint("alias/trial-", n), any: r.roaming(r.admin, n, trialTimeout), iam: r.iamClient(n), name: fmt.Sprint("staff-", n)}
	for _, key := range []*string{&t.key, &t.other} {
		var k keyReply
		if err := r.must(t.any, "CreateKey", m{}, &k); err != nil {
			return nil, err
		}
		*key = k.KeyMetadata.KeyId
	}
	staff, arn, keyID, err := r.newUser(ctx, t.name)
	if err != nil {
		return nil, err
	}
	t.keyID = keyID
	if err := r.must(t.any, "CreateGrant", m{"KeyId": t.other, "GranteePrincipal": arn, "Operations": []string{"Encrypt"}}, nil); err != nil {
		return nil, err
	}
	for i := range r.Datas {
		t.admins = append(t.admins, r.of(r.admin, i, trialTimeout))
		t.users = append(t.users, r.of(r.user, i, trialTimeout))
		t.staff = append(t.staff, r.of(staff, i, trialTimeout))
	}
	return t, nil
}

// work makes trials until the run ends.
func (t *trialer) work(ctx context.Context) error {
	rnd := t.source(t.n)
	defer func() {
		for _, c := range append(append(append(t.admins, t.users...), t.staff...), t.any) {
			c.close()
		}
	}()
	for !t.stopped() {
		t.rest(rnd)
		how := before(rnd.IntN(3))
		var err error
		switch p := rnd.IntN(20); {
		case p < 10:
			err = t.disable(how)
		case p < 12:
			err = t.delete(how)
		case p < 14:
			err = t.move(how)
		case p < 16:
			err = t.unname(how)
		case p < 19:
			err = t.revoke(how)
		default:
			err = t.lock(ctx, how)
		}
		if err != nil {
			return err
		}
		if rnd.IntN(4) == 0 {
			t.any.next()
		}
	}
	return nil
}

// before is what nodes do before the change of a trial.
type before int

const (
	nothing before = iota // what they know of the thing is from earlier, or they know nothing
	use                   // what is then not to be done any more, once: they know what they need for it
	useOn                 // the same all the time, so that they load what changes
)

// against makes a change and then has every node do what is not to be done any more: a reply that says it is done, to a request that was sent after the change was
// acknowledged, is a violation, but where stale says that it is none.
func (t *trialer) against(what string, clients []*client, op string, in any, how before, stale func(*outcome) bool, change func() outcome, codes ...string) bool {
	var acknowledged, over atomic.Bool
	ready := make(chan struct{})
	var all sync.WaitGroup
	if how == use {
		for _, c := range clients {
			all.Go(func() {
				o := c.do(op, in, nil)
				t.answered.add(op, &o)
			})
		}
		all.Wait()
	}
	for node, c := range clients {
		all.Go(func() {
			if how != useOn {
				<-ready
			}
			for !over.Load() || acknowledged.Load() {
				after := acknowledged.Load()
				o := c.do(op, in, nil)
				t.answered.add(op, &o)
				switch {
				case !after:
					continue
				case o.ok() && stale(&o):
					t.found(useAfter, "%s: node %d has done %s after it was acknowledged: request %s, sent at %v", what, node, op, o.id, o.began.UTC())
				case o.ok():
					t.trialsOf.refused.Add(1) // it did what is right now
				case o.unsure() || undecided(o.code):
					t.trialsOf.unavailable.Add(1)
				default:
					t.trialsOf.refused.Add(1)
					if !strings.Contains(" "+strings.Join(codes, " ")+" ", " "+o.code+" ") {
						t.found(unexpected, "%s: node %d answers %s with %v", what, node, op, &o)
					}
				}
				return
			}
		})
	}
	kind := t.tally.kind()
	o := change()
	if o.ok() {
		t.trialsOf.acknowledged.Add(1)
		if kind != "none" {
			t.trialsOf.faulty.Add(1)
		}
		acknowledged.Store(true)
	} else {
		t.trialsOf.unsure.Add(1)
		over.Store(true)
	}
	close(ready)
	all.Wait()
	return o.ok()
}

func always(*outcome) bool { return true }

// change is a request that is sent once.
func (t *trialer) change(op string, in any) func() outcome {
	return func() outcome {
		kind := t.tally.kind()
		o := t.any.do(op, in, nil)
		t.answered.add(op, &o)
		if op == "DisableKey" && o.ok() && kind == "none" && t.tally.kind() == "none" {
			t.disabling.add(o.ended.Sub(o.began))
		}
		return o
	}
}

func (t *trialer) encrypt(key string) m { return m{"KeyId": key, "Plaintext": []byte("trial")} }

func (t *trialer) disable(how before) error {
	t.against("DisableKey", t.admins, "Encrypt", t.encrypt(t.key), how, always, t.change("DisableKey", m{"KeyId": t.key}), "DisabledException")
	return t.enable()
}

// enable makes the key usable whatever it is. A change that came to nothing, and is done later, disables it again: the next trial does not mind.
func (t *trialer) enable() error {
	if o, err := t.insist(t.any, "EnableKey", m{"KeyId": t.key}, nil); err != nil || o.ok() {
		return err
	}
	if _, err := t.insist(t.any, "CancelKeyDeletion", m{"KeyId": t.key}, nil); err != nil {
		return err
	}
	_, err := t.insist(t.any, "EnableKey", m{"KeyId": t.key}, nil)
	return err
}

func (t *trialer) delete(how before) error {
	t.against("ScheduleKeyDeletion", t.admins, "Encrypt", t.encrypt(t.key), how, always, t.change("ScheduleKeyDeletion", m{"KeyId": t.key, "PendingWindowInDays": 30}),
		"KMSInvalidStateException")
	if _, err := t.insist(t.any, "CancelKeyDeletion", m{"KeyId": t.key}, nil); err != nil {
		return err
	}
	return t.enable()
}

// renew makes an alias of its own name, to that key, for a trial: names of earlier trials may still be changed by what came to nothing then.
func (t *trialer) renew(key string) (string, error) {
	name := fmt.Sprint(t.alias, "-", time.Now().UnixNano())
	o, err := t.insist(t.any, "CreateAlias", m{"AliasName": name, "TargetKeyId": key}, nil)
	if err == nil && !o.ok() && o.code != "AlreadyExistsException" {
		err = fmt.Errorf("CreateAlias: %v", &o)
	}
	return name, err
}

func (t *trialer) move(how before) error {
	name, err := t.renew(t.key)
	if err != nil {
		return err
	}
	atOld := func(o *outcome) bool { return strings.Contains(string(o.body), t.key) }
	t.against("UpdateAlias", t.admins, "Encrypt", t.encrypt(name), how, atOld, t.change("UpdateAlias", m{"AliasName": name, "TargetKeyId": t.other}),
		"DisabledException", "NotFoundException")
	_, err = t.insist(t.any, "DeleteAlias", m{"AliasName": name}, nil)
	return err
}

func (t *trialer) unname(how before) error {
	name, err := t.renew(t.key)
	if err != nil {
		return err
	}
	t.against("DeleteAlias", t.admins, "Encrypt", t.encrypt(name), how, always, t.change("DeleteAlias", m{"AliasName": name}), "NotFoundException", "DisabledException")
	return nil
}

func (t *trialer) revoke(how before) error {
	var g struct{ GrantId string }
	o, err := t.insist(t.any, "CreateGrant", m{"KeyId": t.key, "GranteePrincipal": t.userARN, "Operations": []string{"Encrypt"}, "Name": fmt.Sprint("trial-", t.n)}, &g)
	if err != nil || !o.ok() {
		return err
	}
	// Named, so that one that was made without an answer is the same grant.
	t.against("RevokeGrant", t.users, "Encrypt", t.encrypt(t.key), how, always, t.change("RevokeGrant", m{"KeyId": t.key, "GrantId": g.GrantId}), "AccessDeniedException", "DisabledException")
	return nil
}

// lock takes a user's access key out of use, and puts it back.
func (t *trialer) lock(ctx context.Context, how before) error {
	set := func(status iamtypes.StatusType) outcome {
		ctx, cancel := context.WithTimeout(ctx, trialTimeout)
		defer cancel()
		_, err := t.iam.UpdateAccessKey(ctx, &iam.UpdateAccessKeyInput{UserName: &t.name, AccessKeyId: &t.keyID, Status: status})
		if err != nil {
			return outcome{err: err}
		}
		return outcome{status: http.StatusOK}
	}
	t.against("UpdateAccessKey", t.staff, "Encrypt", t.encrypt(t.other), how, always, func() outcome { return set(iamtypes.StatusTypeInactive) },
		"UnrecognizedClientException", "InvalidClientTokenId", "AccessDeniedException")
	for began := time.Now(); time.Since(began) < settleMax; time.Sleep(20 * time.Millisecond) {
		if o := set(iamtypes.StatusTypeActive); o.ok() {
			return nil
		}
	}
	return errors.New("an access key is not put back into use")
}
