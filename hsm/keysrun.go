package hsm

import (
	"crypto/subtle"
	"errors"
	"strings"
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/internal/invariants"
	"github.com/keyplane/keyplane/internal/kdf"
	"github.com/keyplane/keyplane/internal/keyspec"
)

// keyConfig is what makes Shards run rounds of KeyJobs. Their lanes prove themselves, and answer for canaries, with an AES block as all others
// do; their tokens are KeyTokens and their sessions KeySessions.
type keyConfig struct {
	handlesMax int
	offers     []*offers // by token
}

// keyClaim is what a round remembers of a job it has taken.
type keyClaim struct {
	ticket    uint64
	key       *Key
	mechanism Mechanism
	done      bool // it has had its turn
	in        int  // bytes of In
	k1        [blockLen]byte
}

// holds says that the job is still the one that was taken.
func (c *keyClaim) holds(j *KeyJob) bool {
	return j.ticket.Load() == c.ticket && j.Key == c.key && j.Mechanism == c.mechanism
}

// handIn gives the job a ticket. It reports false if the job is handed in already.
func (j *KeyJob) handIn() (ticket uint64, ok bool) {
	ticket = tickets.Add(1)
	ok = j.ticket.CompareAndSwap(0, ticket)
	invariants.Check(ok, "a job was handed in twice")
	return ticket, ok
}

// check holds a job to its limits.
func (j *KeyJob) check() error {
	k := j.Key
	if k == nil || k.Spec.Info().Family == 0 || len(j.In) > KeyInMax || len(j.Out) < k.Spec.Info().Result || !MechanismsOf(k.Spec).Has(j.Mechanism) {
		return ErrJob
	}
	if n := len(j.In); j.Mechanism == EncryptBlocks && (n == 0 || n > k.Spec.Info().Result || n%blockLen != 0) {
		return ErrJob
	}
	return nil
}

// unusable is the error of a key that could not be brought into the token. What the token said of the wrapped key is no fault of the client's
// data, so nobody finds it in here.
type unusable struct{ cause error }

func (u *unusable) Error() string        { return "hsm: the key is unusable: " + u.cause.Error() }
func (u *unusable) Is(target error) bool { return target == ErrUnavailable }

// use is one operation on a lane.
type use struct {
	key       LoadedKey
	spec      keyspec.Spec
	mechanism Mechanism
	n         int // bytes of out
}

// useKey is the call into the session.
func (l *lane) useKey() (err error) {
	session, ok := l.session.(KeySession)
	if !ok {
		return ErrNotOffered
	}
	u := &l.use
	if u.n, err = session.Use(u.key, u.spec, u.mechanism, l.in, l.out); err == nil &&
		(u.n < 0 || u.n > len(l.out) || u.mechanism == EncryptBlocks && u.n != len(l.in)) {
		err = ErrWrong
	}
	return err
}

// runKeys runs one round on a shard and leaves an outcome in every job. One caller per shard at a time: it is batch's run function. It returns
// within a few RoundTimeouts for each job whatever the module does, and keeps nothing of the jobs.
//
// Each job is one call, on the lane's own memory; jobs of EncryptBlocks under one key are one call together, with a block more whose image is known. After an error
// the class decides (class.go), as in Run: if the fault was the session's or the handle's, the job is run once more on the replacement; otherwise a job in its first
// attempt gets an error that is Retryable.
func (s *Shards) runKeys(n int, round []*KeyJob) {
	sh := s.shards[n]
	sh.mu.Lock()
	ended := false
	defer func() {
		if !ended {
			// A panic, which the caller of batch recovers: what the round left in the lane must not meet the next one's jobs.
			sh.drop()
			sh.slot.kick()
		}
		clear(sh.keyClaims) // of keys, and what they are proved with
		sh.mu.Unlock()
	}()
	for len(round) > s.cfg.RoundMax {
		round[len(round)-1].Err = ErrJob
		round = round[:len(round)-1]
	}
	sh.keyClaims = sh.keyClaims[:0]
	for _, j := range round {
		sh.keyClaims = append(sh.keyClaims, keyClaim{ticket: j.ticket.Load(), key: j.Key, mechanism: j.Mechanism, in: len(j.In), k1: j.K1})
		j.N, j.Err = 0, sh.admitKey(j)
	}
	sh.rounds.Add(1)
	for i, j := range round {
		if c := &sh.keyClaims[i]; !c.done && j.Err == nil {
			s.runGroup(sh, round, i)
		}
	}
	ended = true
}

// admitKey checks a job's limits and that the shard's token can do it.
func (sh *shard) admitKey(j *KeyJob) error {
	switch err := j.check(); {
	case err != nil:
		return err
	case j.Key.Software || j.Key.Root != sh.slot.root:
		return ErrNoRoot
	case sh.slot.offers.of(j.Key.Spec) == 0:
		return ErrUnavailable
	case !sh.slot.offers.of(j.Key.Spec).Has(j.Mechanism):
		return ErrNotOffered
	}
	return nil
}

// SameCall says that a round runs two jobs in one call: blocks under one key.
func (j *KeyJob) SameCall(other *KeyJob) bool {
	a, b := j.Key, other.Key
	return j.Mechanism == EncryptBlocks && other.Mechanism == EncryptBlocks && a != nil && b != nil && (a == b || a.ID == b.ID && a.Spec == b.Spec)
}

// runGroup runs those jobs of the round that have the first one's key: one look-up of the handle serves them.
func (s *Shards) runGroup(sh *shard, round []*KeyJob, first int) {
	g := group{key: sh.keyClaims[first].key, handles: sh.slot.handles}
	defer g.release() // also after a panic
	for i := first; i < len(round); i++ {
		if !sh.turn(&g, round, i) {
			continue
		}
		sh.together = append(sh.together[:0], i)
		if sh.keyClaims[i].mechanism == EncryptBlocks {
			sh.gather(&g, round, i)
		}
		s.runTogether(sh, &g, round)
	}
}

// turn says that job i of the round is one of the group's, and to be run now; it has no other turn.
func (sh *shard) turn(g *group, round []*KeyJob, i int) bool {
	c, j := &sh.keyClaims[i], round[i]
	if c.done || c.key == nil || c.key != g.key && (c.key.ID != g.key.ID || c.key.Spec != g.key.Spec) {
		return false
	}
	c.done = true
	return c.holds(j) && j.Err == nil
}

// gather takes the group's further jobs of EncryptBlocks for the call of job first, as many as the lane has memory for besides the known block.
func (sh *shard) gather(g *group, round []*KeyJob, first int) {
	for i, room := first+1, KeyInMax-blockLen-sh.keyClaims[first].in; i < len(round); i++ {
		if c := &sh.keyClaims[i]; c.mechanism == EncryptBlocks && c.in <= room && sh.turn(g, round, i) {
			sh.together = append(sh.together, i)
			room -= c.in
		}
	}
}

// group is a key of a round and its handle, nil while it is not lent.
type group struct {
	key     *Key
	handles *handles
	handle  *handle
}

func (g *group) release() {
	if g.handle != nil {
		g.handles.release(g.handle)
		g.handle = nil
	}
}

// lose gives up a handle that the token does not know any more.
func (g *group) lose() {
	if g.handle != nil {
		g.handles.lose(g.handle)
		g.release()
	}
}

// losesKey says that the token does not know the job's key any more. An object handle can be that of something else, such as the secret that was
// derived, but where the function takes none but the key's.
func (e *Error) losesKey() bool {
	switch e.CKR {
	case CKR_KEY_HANDLE_INVALID:
		return true
	case CKR_OBJECT_HANDLE_INVALID:
		switch e.Function {
		case "C_Sign", "C_Decrypt", "C_Encrypt", "C_DeriveKey", "C_DecapsulateKey":
			return true
		}
		return strings.HasSuffix(e.Function, "Init")
	}
	return false
}

// runTogether runs the jobs of sh.together in one call, and once more if that may help.
func (s *Shards) runTogether(sh *shard, g *group, round []*KeyJob) {
	sh.jobs.Add(uint64(len(sh.together)))
	for again := false; ; again = true {
		if s.closed.Load() {
			for _, i := range sh.together {
				round[i].Err = ErrUnavailable
			}
			return
		}
		if err := s.ready(sh); err != nil {
			sh.failKeys(round, err, true)
			return
		}
		loading, err := sh.tryKeys(g, round)
		if err == nil {
			return
		}
		sh.failures.Add(1)
		retry, err := s.reactKey(sh, err, loading, len(sh.together))
		if e, ok := errors.AsType[*Error](err); ok && e.losesKey() {
			g.lose()
		}
		if retry == nowhere || retry == elsewhere || again {
			sh.failKeys(round, err, retry != nowhere && !again)
			return
		}
		// The jobs that have had their second chance on another shard do not get a third one here.
		once := sh.together[:0]
		for _, i := range sh.together {
			if j := round[i]; j.Attempt > 0 {
				sh.failKey(&sh.keyClaims[i], j, err, false)
			} else {
				once = append(once, i)
			}
		}
		if sh.together = once; len(once) == 0 {
			return
		}
		sh.retries.Add(uint64(len(once)))
	}
}

// tryKeys looks the handle up, makes the call and delivers, unless the image of the known block is wrong: what is encrypted under another key, or a wrong one, nobody
// would ever decrypt. On an error nothing is delivered; loading says that it came before the jobs' own call. It wipes the lane in any case, but for a lane whose call
// has not come back: that one wipes itself, and has the handle till then.
func (sh *shard) tryKeys(g *group, round []*KeyJob) (loading bool, err error) {
	if g.handle != nil && g.handle.key.Generation != sh.slot.token.Generation() {
		g.release() // the token was reset since
	}
	if g.handle == nil {
		if g.handle, err = g.handles.acquire(g.key); err != nil {
			return true, err
		}
	}
	l := sh.lane
	l.in = l.in[:0]
	left, known := 0, false
	for _, i := range sh.together {
		switch c, j := &sh.keyClaims[i], round[i]; {
		case !c.holds(j):
			c.in, c.k1 = 0, [blockLen]byte{}
		case len(j.In) != c.in:
			invariants.Check(false, "a job was changed while it was handed in")
			j.Err = ErrReused
			c.in, c.key, c.k1 = 0, nil, [blockLen]byte{}
		default:
			l.in = append(l.in, j.In...)
			left++
			known = known || c.k1 != [blockLen]byte{}
		}
	}
	if left == 0 {
		return false, nil
	}
	mechanism := sh.keyClaims[sh.together[0]].mechanism
	if known = known && mechanism == EncryptBlocks; known {
		l.in = append(l.in, knownBlock...)
	}
	l.out = l.out[:g.key.Spec.Info().Result]
	if mechanism == EncryptBlocks {
		l.out = l.out[:max(len(l.out), len(l.in))]
	}
	l.use = use{key: g.handle.key, spec: g.key.Spec, mechanism: mechanism}
	if err = l.do(opUse); l.abandoned {
		l.orphan, g.handle = g.handle, nil
		return false, err
	}
	jobs := l.use.n // bytes of their results
	if err == nil && known {
		jobs -= blockLen
		if !sh.confirmKey((*[blockLen]byte)(l.out[jobs:])) {
			err = ErrWrong
		}
	}
	if err == nil {
		sh.deliverKeys(round, l.out[:jobs])
	}
	l.use = use{}
	l.wipe()
	return false, err
}

// knownBlock is the input whose image is known of a key whose K1 is: L.
const knownBlock = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// confirmKey compares the image of the known block with what the jobs of sh.together know of their key, and says whether it is that.
func (sh *shard) confirmKey(image *[blockLen]byte) bool {
	var k1 [blockLen]byte
	kdf.SubkeyK1(&k1, image)
	right := 1
	for _, i := range sh.together {
		if c := &sh.keyClaims[i]; c.k1 != [blockLen]byte{} {
			right &= subtle.ConstantTimeCompare(k1[:], c.k1[:])
		}
	}
	clear(k1[:])
	return right == 1
}

// deliverKeys gives the jobs of a call their results: one job all of it, of several each the images of its blocks, whatever has become of the others.
func (sh *shard) deliverKeys(round []*KeyJob, out []byte) {
	for _, i := range sh.together {
		c, j, result := &sh.keyClaims[i], round[i], out
		if c.mechanism == EncryptBlocks {
			result, out = out[:c.in], out[c.in:]
		}
		if c.holds(j) {
			j.N = copy(j.Out, result)
		}
	}
}

// where says where a job that failed may be run once more.
type where uint8

const (
	nowhere where = iota
	here
	elsewhere
)

// reactKey does what the table says after the call of some jobs failed and returns the error that they get if they are not run again.
func (s *Shards) reactKey(sh *shard, err error, loading bool, jobs int) (where, error) {
	other, isWaited := err.(*waited)
	if isWaited {
		err = other.cause
	}
	c := classOf(err)
	switch {
	case errors.Is(err, ErrNotOffered):
		return nowhere, err
	case loading && (errors.Is(err, ErrKeyRefused) || c.Has(actD)):
		return s.refuseKey(sh, err, isWaited, jobs)
	case isWaited && !c.Has(actL|actH):
		// One call has failed, and whoever made it does what is to be done: it counts once, and this session is not touched.
		if c.Has(actR) && s.budget(jobs) {
			return elsewhere, err
		}
		return nowhere, err
	case c.Has(actD):
		// Not counted as the token's fault: whoever sends bad data would take the token from everybody.
		if c.Has(actCanary) && s.distrust(sh, err) {
			return elsewhere, ErrUnavailable
		}
		return nowhere, err
	}
	if s.react(sh, err) {
		return here, err
	}
	if c.Has(actR) && s.budget(jobs) {
		return elsewhere, err
	}
	return nowhere, err
}

// refuseKey is for a stored key that the token does not take: a canary, an alarm, and the next replica, where there is one, may know better.
func (s *Shards) refuseKey(sh *shard, err error, isWaited bool, jobs int) (where, error) {
	if !isWaited {
		if s.distrust(sh, err) {
			return elsewhere, ErrUnavailable
		}
		sh.slot.alarm("a stored key does not unwrap, or is not what was stored", err)
	}
	if s.hasReplica(sh.slot) && s.budget(jobs) {
		return elsewhere, &unusable{err}
	}
	return nowhere, &unusable{err}
}

// distrust asks the canary after err, which may be the token's fault, and takes the slot out if the answer is bad.
func (s *Shards) distrust(sh *shard, err error) bool {
	bad := s.canaryWithin(sh.slot, canaryEvery)
	if bad == nil || noVerdict(bad) {
		return false
	}
	s.judge(sh.slot, bad)
	sh.slot.quarantine(err)
	sh.drop()
	return true
}

// distrusted asks the canary of a slot that blames what it was given, and takes the slot out if the answer is bad.
func (s *Shards) distrusted(sl *slot) bool {
	bad := s.canaryWithin(sl, canaryEvery)
	if bad == nil || noVerdict(bad) {
		return false
	}
	s.judge(sl, bad)
	sl.quarantine(bad)
	return true
}

// hasReplica says whether another slot with the same root serves.
func (s *Shards) hasReplica(sl *slot) bool {
	for _, other := range s.slots {
		if other != sl && other.root == sl.root && other.anyServing() {
			return true
		}
	}
	return false
}

// failKeys is failKey for the jobs of sh.together.
func (sh *shard) failKeys(round []*KeyJob, err error, other bool) {
	for _, i := range sh.together {
		sh.failKey(&sh.keyClaims[i], round[i], err, other)
	}
}

// failKey leaves err in the job; where other is true, a job in its first attempt may go to another shard.
func (sh *shard) failKey(c *keyClaim, j *KeyJob, err error, other bool) {
	if !c.holds(j) {
		return
	}
	j.Err = err
	if other && j.Attempt == 0 {
		if err == ErrUnavailable {
			j.Err = unavailableHere
		} else {
			j.Err = &refusal{err}
		}
		sh.retries.Add(1)
	}
}

// newHandles makes the slot's loaded keys.
func (s *Shards) newHandles(sl *slot, max int) *handles {
	token := sl.token.(KeyToken)
	return newHandles(max,
		func(k *Key) (LoadedKey, error) { return s.loadKey(sl, token, k) },
		func(k LoadedKey) {
			if !sl.watched {
				_ = token.UnloadKey(k) // in this process's memory: it does not fail
				return
			}
			select {
			case sl.unloads <- k:
			default: // it is gone with the token's generation
				sl.alarm("a key stays loaded: too many wait to be unloaded", ErrTimeout)
			}
		},
		token.Generation)
}

// unloadsMax bounds the keys that wait to be unloaded from one token.
const unloadsMax = 4096

// unloader unloads keys one after the other, so that nobody else waits where that hangs. One goroutine per slot, until Close: the keys that are left
// go with the token's sessions.
func (s *Shards) unloader(sl *slot) {
	defer s.workers.Done()
	token := sl.token.(KeyToken)
	for {
		select {
		case <-s.stop:
			return
		case k := <-sl.unloads:
			// A key that the token does not give up is gone with its generation. There is nobody to tell but of a call that hangs.
			if err := s.bounded(sl, func() error { return token.UnloadKey(k) }); errors.Is(err, ErrTimeout) {
				s.judge(sl, err)
			}
		}
	}
}

// loadKey loads a key, waiting at most RoundTimeout. One that comes later is unloaded again.
func (s *Shards) loadKey(sl *slot, token KeyToken, k *Key) (LoadedKey, error) {
	var loaded LoadedKey
	var over atomic.Bool // for whoever comes second, of the call that ends and the caller who does not wait any more
	err := s.bounded(sl, func() (err error) {
		if loaded, err = token.LoadKey(k.Spec, k.Wrapped); err == nil && over.Swap(true) {
			return token.UnloadKey(loaded)
		}
		return err
	})
	if errors.Is(err, ErrTimeout) && !over.Swap(true) || err != nil && !errors.Is(err, ErrTimeout) {
		return LoadedKey{}, err
	}
	return loaded, nil // in time, or a moment later
}

// made is what a call gives that makes a key, brings one in, or wraps one for another token.
type made struct{ wrapped, public []byte }

// making is such a call.
type making func(token KeyToken) (made, error)

// answers says whether an error is the token's answer to what it was asked for, and no fault of anybody's but the caller's.
func answers(err error) bool {
	return errors.Is(err, ErrNotOffered) || errors.Is(err, ErrMaterial) || errors.Is(err, ErrPeerKey) || errors.Is(err, ErrUnavailable)
}

// makeKey makes a key in the slot's token. It is called on a goroutine of its own.
func (s *Shards) makeKey(sl *slot, call making) (m made, err error) {
	token := sl.token.(KeyToken)
	for again := false; ; again = true {
		gen := token.Generation()
		m, err = call(token)
		c := classOf(err)
		if err == nil || answers(err) {
			return m, err
		}
		if again || !c.Has(actL|actH) || c.Has(actQ) || s.reset(sl, gen) != nil {
			break
		}
	}
	if errors.Is(err, ErrKeyRefused) {
		sl.alarm("the token does not protect a key that it made or took", err)
		return made{}, err
	}
	s.judge(sl, err)
	if classOf(err).Has(actD) { // of data that the token itself has made
		sl.alarm("a key that the token wrapped does not unwrap", err)
		err = &unusable{err}
	}
	return made{}, err
}

// pickKey chooses a serving shard for a job with the key and counts the job there: an idle one, else the one with the fewest jobs, since
// operations are slow and one key may be all the load there is. It avoids shard full, whose queue is, shard not, on which the job failed, and
// before that the rest of not's slot; -1 is none.
func (s *Shards) pickKey(k *Key, m Mechanism, not, full int, hint uint64) (int, error) {
	err := ErrNoRoot
	best, least := -1, int32(0)
	for n, i := 0, int(hint%uint64(len(s.shards))); n < len(s.shards); n, i = n+1, (i+1)%len(s.shards) {
		sh := s.shards[i]
		switch {
		case sh.slot.root != k.Root:
			continue
		case sh.slot.offers.of(k.Spec) == 0: // it has made the key, and cannot tell now
			sh.slot.offers.askSoon(k.Spec)
			err = ErrUnavailable
			continue
		case !sh.slot.offers.of(k.Spec).Has(m):
			if err != ErrUnavailable {
				err = ErrNotOffered
			}
			continue
		case !sh.serving():
			err = ErrUnavailable
			continue
		}
		jobs := sh.waiting.Load()
		if not >= 0 && sh.slot == s.shards[not].slot {
			jobs += 1 << 20
		}
		if i == not || i == full {
			jobs += 1 << 21
		}
		if jobs == 0 && sh.waiting.CompareAndSwap(0, 1) {
			return i, nil
		}
		if best < 0 || jobs < least {
			best, least = i, jobs
		}
	}
	if best < 0 {
		return 0, err
	}
	s.shards[best].waiting.Add(1)
	return best, nil
}

var errGenerateTimeout = errors.Join(ErrTimeout, errors.New("hsm: the token makes no key in time"))

// makeOn is makeKey, waited for until the timer of timeout fires. The caller has a seat of the slot, which is given back when the call ends,
// however late.
func (s *Shards) makeOn(sl *slot, spec keyspec.Spec, call making, late <-chan time.Time, timeout time.Duration) (made, error) {
	type outcome struct {
		made
		err error
	}
	done := make(chan outcome, 1)
	from := time.Now()
	s.workers.Add(1)
	go func() {
		defer s.workers.Done()
		defer func() { <-sl.making }()
		var o outcome
		o.made, o.err = s.makeKey(sl, call)
		done <- o
	}()
	select {
	case o := <-done:
		return o.made, o.err
	case <-late:
		sl.alarm("no key in time", errGenerateTimeout, "spec", spec.String())
		if time.Since(from) >= timeout/2 { // else the time went by before its turn came
			s.judge(sl, errGenerateTimeout)
		}
		return made{}, errGenerateTimeout
	}
}
