package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// revokedPrefix has the certificates of members that are not to be taken any more, by their serial numbers.
const revokedPrefix = root + "revoked/"

// serialMax is how long a serial number may be: 20 bytes (RFC 5280 §4.1.2.2), in hexadecimal.
const serialMax = 40

// ErrSerial says that a text is no serial number.
var ErrSerial = errors.New("store: a serial number is 1 to 40 hexadecimal digits in small letters, without zeros in front")

// Revoked is a certificate that was revoked.
type Revoked struct {
	Serial string    // hexadecimal, as fmt's %x of a big.Int
	At     time.Time // by the clock of who did; zero where the record is damaged
	Of     string    // whose it is, <role>/<node>, where that was known
}

type storedRevoked struct {
	Serial string `json:"serial"`
	At     int64  `json:"at"` // in milliseconds
	Of     string `json:"of,omitempty"`
}

func validSerial(s string) bool {
	if s == "" || len(s) > serialMax || s[0] == '0' {
		return false
	}
	for _, c := range []byte(s) {
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f') {
			return false
		}
	}
	return true
}

// Revoke has a certificate refused by all members from now on. One that is revoked stays so, as it was. ErrSerial.
func (s *Store) Revoke(ctx context.Context, r Revoked) error {
	if !validSerial(r.Serial) {
		return ErrSerial
	}
	value, err := encode(&storedRevoked{r.Serial, milli(r.At), r.Of})
	if err != nil {
		return err
	}
	key := revokedPrefix + r.Serial
	_, _, err = s.commit(ctx, []clientv3.Cmp{absent(key)}, []clientv3.Op{clientv3.OpPut(key, string(value))})
	return err
}

// Revocations calls use for every certificate that was revoked. A record that is damaged counts: to be refused is the worst that it can do to anybody; damaged is told of it. An error of use ends the walk.
func (s *Store) Revocations(ctx context.Context, use func(Revoked) error, damaged func(error)) error {
	return s.walk(ctx, revokedPrefix, func(key string, value []byte, _ int64) error {
		r := Revoked{Serial: key[len(revokedPrefix):]}
		if !validSerial(r.Serial) {
			damaged(fmt.Errorf("%s: %w", key, ErrDamaged))
			return nil // no certificate has it
		}
		var st storedRevoked
		err := decode(value, &st)
		if err == nil && st.Serial != r.Serial {
			err = ErrDamaged
		}
		if err != nil {
			damaged(fmt.Errorf("%s: %w", key, err))
		} else {
			r.At, r.Of = fromMilli(st.At), st.Of
		}
		return use(r)
	})
}
