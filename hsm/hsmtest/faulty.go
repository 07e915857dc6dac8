package hsmtest

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/hsm"
)

// Op is a call that a Faulty token can spoil.
type Op uint8

const (
	Round     Op = iota // Session.Round
	Open                // Token.OpenSession
	Reset               // Token.Reset
	OpenAudit           // Token.OpenAuditSession
	Sign                // AuditSession.Sign
	Use                 // KeySession.Use
	Load                // KeyToken.LoadKey
	Unload              // KeyToken.UnloadKey
	Generate            // KeyToken.GenerateKey
	Import              // ImportToken.ImportKey
	Export              // ImportToken.ExportKey
	Imports             // ImportToken.Imports
	ops
)

// Forever is a Fault's Times that never runs out.
const Forever = -1

// Fault is what happens to calls of one kind. Several effects may be in one fault; those that need the call's result let it run first.
type Fault struct {
	Op    Op
	Skip  int // calls that pass first
	Times int // calls it strikes; 0 means 1

	Delay time.Duration
	Hang  <-chan struct{} // the call does not go on before this is closed

	CKR            hsm.CKR // refused with this code
	Function       string  // from this function; "" means the one that such a call is for
	Err            error   // refused with this
	Wrong          bool    // one bit of every block, or of the signature, is flipped
	Short          bool    // the second half is missing
	Repeat         bool    // every block of random is the same
	LoseGeneration bool    // as if somebody had called Reset: all sessions are dead
	LogOut         bool    // every call is refused with CKR_USER_NOT_LOGGED_IN until a Reset
}

// Faulty is a token whose calls fail on a script. It is watched, as a module is: it does not pass on TokenInfo.InProcess.
type Faulty struct {
	hsm.Token
	lost      atomic.Uint64 // generations lost to faults
	loggedOut atomic.Bool
	loaded    atomic.Int64 // keys

	mu     sync.Mutex
	script []Fault
	calls  [ops]int
}

// NewFaulty wraps token. Without faults it does what token does.
func NewFaulty(token hsm.Token) *Faulty { return &Faulty{Token: token} }

// Add appends faults. Of the faults for one kind of call, the first strikes until it has run out.
func (f *Faulty) Add(faults ...Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, x := range faults {
		if x.Times == 0 {
			x.Times = 1
		}
		f.script = append(f.script, x)
	}
}

// Clear forgets all faults.
func (f *Faulty) Clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.script = nil
}

// Calls is how many calls of a kind there were.
func (f *Faulty) Calls(op Op) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[op]
}

// next is the fault for the call that begins now; the zero Fault is none.
func (f *Faulty) next(op Op) Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[op]++
	for i := range f.script {
		x := &f.script[i]
		if x.Op != op {
			continue
		}
		if x.Skip > 0 {
			x.Skip--
			return Fault{}
		}
		now := *x
		if x.Times > 0 {
			if x.Times--; x.Times == 0 {
				f.script = append(f.script[:i], f.script[i+1:]...)
			}
		}
		return now
	}
	return Fault{}
}

// before does what comes before the call; an error is instead of it.
func (f *Faulty) before(x Fault) error { return f.beforeIn(x, "C_Encrypt") }

// beforeIn is before for a call of another function.
func (f *Faulty) beforeIn(x Fault, function string) error {
	time.Sleep(x.Delay)
	if x.Hang != nil {
		<-x.Hang
	}
	if x.LoseGeneration {
		f.lost.Add(1)
	}
	if x.LogOut {
		f.loggedOut.Store(true)
	}
	if x.CKR != hsm.CKR_OK {
		if x.Function != "" {
			function = x.Function
		}
		return &hsm.Error{CKR: x.CKR, Function: function}
	}
	return x.Err
}

func (f *Faulty) Info() hsm.TokenInfo {
	info := f.Token.Info()
	info.InProcess = false
	return info
}

func (f *Faulty) Generation() uint64 { return f.Token.Generation() + f.lost.Load() }

func (f *Faulty) Reset() error {
	if err := f.before(f.next(Reset)); err != nil {
		return err
	}
	f.loggedOut.Store(false)
	return f.Token.Reset()
}

func (f *Faulty) OpenSession() (hsm.Session, error) {
	if err := f.before(f.next(Open)); err != nil {
		return nil, err
	}
	if f.loggedOut.Load() {
		return nil, &hsm.Error{CKR: hsm.CKR_USER_NOT_LOGGED_IN, Function: "C_GetSessionInfo"}
	}
	generation := f.Generation()
	s, err := f.Token.OpenSession()
	if err != nil {
		return nil, err
	}
	return &faultySession{Session: s, token: f, generation: generation}, nil
}

type faultySession struct {
	hsm.Session
	token      *Faulty
	generation uint64
}

func (s *faultySession) Round(in, out, random []byte) error {
	x := s.token.next(Round)
	err := s.token.before(x)
	switch {
	case err != nil:
	case s.token.loggedOut.Load():
		err = &hsm.Error{CKR: hsm.CKR_USER_NOT_LOGGED_IN, Function: "C_EncryptInit"}
	case s.generation != s.token.Generation():
		err = &hsm.Error{CKR: hsm.CKR_SESSION_HANDLE_INVALID, Function: "C_EncryptInit"}
	default:
		err = s.Session.Round(in, out, random)
	}
	if err != nil {
		clear(out)
		clear(random)
		return err
	}
	if x.Wrong {
		for i := 0; i < len(out); i += 16 {
			out[i] ^= 1
		}
	}
	if x.Short {
		clear(out[len(out)/2:])
		clear(random[len(random)/2:])
	}
	if x.Repeat {
		for i := range random {
			random[i] = byte(i % 16)
		}
	}
	return nil
}

func (f *Faulty) OpenAuditSession() (hsm.AuditSession, error) {
	if err := f.before(f.next(OpenAudit)); err != nil {
		return nil, err
	}
	if f.loggedOut.Load() {
		return nil, &hsm.Error{CKR: hsm.CKR_USER_NOT_LOGGED_IN, Function: "C_GetSessionInfo"}
	}
	generation := f.Generation()
	s, err := f.Token.OpenAuditSession()
	if err != nil {
		return nil, err
	}
	return &faultyAudit{AuditSession: s, token: f, generation: generation}, nil
}

type faultyAudit struct {
	hsm.AuditSession
	token      *Faulty
	generation uint64
}

func (s *faultyAudit) Sign(digest [32]byte) (sig [64]byte, err error) {
	x := s.token.next(Sign)
	if err := s.token.before(x); err != nil {
		return sig, err
	}
	switch {
	case s.token.loggedOut.Load():
		return sig, &hsm.Error{CKR: hsm.CKR_USER_NOT_LOGGED_IN, Function: "C_SignInit"}
	case s.generation != s.token.Generation():
		return sig, &hsm.Error{CKR: hsm.CKR_SESSION_HANDLE_INVALID, Function: "C_SignInit"}
	}
	if sig, err = s.AuditSession.Sign(digest); x.Wrong {
		sig[0] ^= 1
	}
	return sig, err
}
