package hsm

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/internal/keyspec"
)

// askEvery is how often a token is asked again for the sake of jobs.
const askEvery = time.Second

// offers is what one token is known to do with keys of each spec. Nothing is no last word: a token says it too when it could not find out, and is
// asked again. Something stays.
type offers struct {
	token  KeyToken
	asked  *sync.WaitGroup // questions that are not answered yet
	bySpec []offer
}

type offer struct {
	known   atomic.Uint32 // Mechanisms
	askedAt atomic.Int64  // Unix time in nanoseconds
	asking  chan struct{} // capacity 1: single flight
}

func newOffers(token KeyToken, known []Mechanisms, asked *sync.WaitGroup) *offers {
	o := &offers{token: token, asked: asked, bySpec: make([]offer, len(known))}
	for s, m := range known {
		o.bySpec[s].known.Store(uint32(m))
		o.bySpec[s].askedAt.Store(time.Now().UnixNano())
		o.bySpec[s].asking = make(chan struct{}, 1)
	}
	return o
}

func (o *offers) of(s keyspec.Spec) Mechanisms { return Mechanisms(o.bySpec[s].known.Load()) }

// ask asks the token again unless it is known to offer something, false if there is no answer in time.
func (o *offers) ask(s keyspec.Spec, late <-chan time.Time) bool {
	if o.of(s) != 0 {
		return true
	}
	select {
	case o.bySpec[s].asking <- struct{}{}:
	case <-late:
		return false
	}
	answered := o.start(s)
	select {
	case <-answered:
		return true
	case <-late:
		return false
	}
}

// due says that the last question is askEvery ago.
func (o *offers) due(s keyspec.Spec) bool {
	return o.of(s) == 0 && time.Now().UnixNano()-o.bySpec[s].askedAt.Load() >= int64(askEvery)
}

// askSoon asks without waiting for the answer, at most once in askEvery.
func (o *offers) askSoon(s keyspec.Spec) {
	if !o.due(s) {
		return
	}
	select {
	case o.bySpec[s].asking <- struct{}{}:
		o.start(s)
	default: // somebody does
	}
}

// start puts the question on a goroutine of its own, since the module may hang. The caller has taken asking.
func (o *offers) start(s keyspec.Spec) (answered <-chan struct{}) {
	done := make(chan struct{})
	of := &o.bySpec[s]
	of.askedAt.Store(time.Now().UnixNano())
	o.asked.Add(1)
	go func() {
		defer o.asked.Done()
		defer close(done)
		defer func() { <-of.asking }()
		if of.known.Load() == 0 {
			of.known.Store(uint32(o.token.Keys(s) & MechanismsOf(s)))
		}
	}()
	return done
}
