package p11

import (
	"bytes"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/hsm/hsmtest/slowhsm"
)

// A round gives the same whether it is an operation of its own, a part of one, or the first part after a renewal.
func TestStreamSameAsSingle(t *testing.T) {
	for name, uri := range map[string]func(testing.TB) string{"SoftHSM": hsmtest.SoftHSM, "NSS": hsmtest.NSS} {
		t.Run(name, func(t *testing.T) {
			token := opener(t, uri(t))(t).(*Token)
			defer token.Close()
			open := func(streaming int32, age time.Duration) *session {
				token.streaming.Store(streaming)
				token.streamAge = age
				s, err := token.OpenSession()
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { s.Close() })
				return s.(*session)
			}
			plain := open(streamsNo, 0)
			if open(streamsUnknown, 0); token.streaming.Load() != streamsYes {
				t.Fatal("the module does not stream")
			}
			stream := open(streamsYes, time.Hour)
			for _, age := range []time.Duration{time.Hour, 0, time.Hour} {
				token.streamAge = age
				for _, blocks := range []int{1, 2, 7, 6*256 + 1, 3} {
					in := make([]byte, 16*blocks)
					for i := range in {
						in[i] = byte(i >> 3 * blocks)
					}
					var got [2][]byte
					for i, s := range []*session{plain, stream} {
						began := s.began
						got[i] = make([]byte, len(in))
						random := make([]byte, 32)
						if err := s.Round(in, got[i], random); err != nil {
							t.Fatal(err)
						}
						if bytes.Equal(random, make([]byte, 32)) {
							t.Error("no random")
						}
						if again := s.began != began; s == stream && again != (age == 0 || began.IsZero()) || s == plain && again {
							t.Errorf("age %v: an operation was begun: %v", age, again)
						}
						if err := s.Round(nil, nil, random); err != nil { // random alone leaves the operation alone
							t.Fatal(err)
						}
					}
					if !bytes.Equal(got[0], got[1]) {
						t.Errorf("%d blocks, age %v: the results differ", blocks, age)
					}
				}
			}
		})
	}
}

// A module without C_EncryptUpdate, or whose C_GenerateRandom does not work beside an active operation, is used by C_EncryptInit and C_Encrypt.
func TestStreamRefused(t *testing.T) {
	for name, f := range map[string]slowhsm.Fault{
		"no C_EncryptUpdate": {Function: "C_EncryptUpdate", Nth: 1, Onwards: true, CKR: hsm.CKR_FUNCTION_NOT_SUPPORTED},
		"no second part":     {Function: "C_EncryptUpdate", Nth: 2, CKR: hsm.CKR_OPERATION_NOT_INITIALIZED},
		"no C_EncryptFinal":  {Function: "C_EncryptFinal", Nth: 1, Onwards: true, CKR: hsm.CKR_FUNCTION_NOT_SUPPORTED},
		"no random beside":   {Function: "C_GenerateRandom", Nth: 2, CKR: hsm.CKR_OPERATION_ACTIVE},
	} {
		t.Run(name, func(t *testing.T) {
			slow := slowhsm.Over(t, hsmtest.SoftHSM(t), slowhsm.Settings{})
			token := opener(t, slow.URI())(t).(*Token)
			defer token.Close()
			setSlow(t, slow, slowhsm.Settings{Faults: []slowhsm.Fault{f}})
			for range 2 {
				s, err := token.OpenSession()
				if err != nil {
					t.Fatal(err)
				}
				out := make([]byte, 16)
				for range 3 {
					if err := s.Round([]byte(hsm.RootIDBlock), out, make([]byte, 16)); err != nil {
						t.Fatal(err)
					}
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}
			if token.streaming.Load() != streamsNo {
				t.Error("it is taken for one that streams")
			}
		})
	}
}
