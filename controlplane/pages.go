package controlplane

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// page is what a marker is bound to: one list operation with one filter in one account and Region.
type page struct {
	operation string
	account   keyid.Account
	region    string
	filter    string
}

const (
	markerVersion = 1
	markerTagLen  = 16
)

// marker is the opaque name of a position in the list: base64url of version (1) || tag (16) || position.
//
// The tag is a hash without a key. It keeps markers from being mixed up or altered by accident, which is all there is to keep: a position
// says no more than the list does, is parsed like any input, and the list behind it is authorized again.
func (p page) marker(position string) string {
	tag := p.tag(position)
	return base64.RawURLEncoding.EncodeToString(append(append([]byte{markerVersion}, tag[:]...), position...))
}

// position is the inverse: "" without a marker, InvalidMarkerException for one that this list did not give.
func (p page) position(marker *string) (string, error) {
	if marker == nil {
		return "", nil
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(*marker)
	if err != nil || len(b) <= 1+markerTagLen || b[0] != markerVersion {
		return "", kmsapi.E(kmsapi.InvalidMarker)
	}
	position := string(b[1+markerTagLen:])
	if tag := p.tag(position); string(tag[:]) != string(b[1:1+markerTagLen]) {
		return "", kmsapi.E(kmsapi.InvalidMarker)
	}
	return position, nil
}

func (p page) tag(position string) [markerTagLen]byte {
	b := []byte("keyplane marker v1")
	for _, s := range []string{p.operation, p.account.String(), p.region, p.filter, position} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	sum := sha256.Sum256(b)
	return [markerTagLen]byte(sum[:markerTagLen])
}

func pageSize(limit *int32, standard int) int {
	if limit == nil {
		return standard
	}
	return int(*limit)
}

// cut takes the page behind position out of a list that is in ascending order of its names.
func cut[T any](list []T, name func(T) string, position string, limit int) (page []T, more bool) {
	from := 0
	for position != "" && from < len(list) && name(list[from]) <= position {
		from++
	}
	to := min(from+limit, len(list))
	return list[from:to], to < len(list)
}
