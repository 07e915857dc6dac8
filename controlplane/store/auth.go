package store

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"strings"
	"sync"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// Every value under /keyplane/1/ but those of plain ends with a trailer that only who has the HSM's root can make, so that whoever can write to etcd but does not
// have the root can neither forge a value, nor edit one, nor put one in another's place, nor put an older one back:
//
//	value ‖ seen (8) ‖ HMAC-SHA-256 (32) ‖ trailerMagic
//
// over a label, the key in etcd, the value's version (how often the key was put since it was created), the revision at which the key was created, seen, and the value.
// The HMAC's key is random, of this store and epoch alone, and in etcd sealed under the HSM's root (identity.go). Lengths are big endian, and in front of what they are of.
//
// That an older value does not verify is because of the version, which etcd counts up with every put, and of the revision at which the key was created, which tells one
// life of the key from the next. The first value of a key is made before it is known at which revision the key will be created: in its stead it has seen, a revision that
// the store has reached, and verifies only where the key was created within firstWindow revisions after it. That is how long a value that was the first of its key can be
// put back after the key was deleted; one that came to be later than that is written again (authKV.repair). Of later values seen is zero.
//
// What no trailer tells is that a key is missing, and that all of the store is older than it was: what a process has seen of it (floor.go) does tell the latter.
const (
	macLabel     = "keyplane value 1"
	trailerMagic = "\xa1KP1"
	trailerLen   = 8 + sha256.Size + len(trailerMagic)

	// firstWindow is some hundreds: the more, the longer a first value can be put back; the fewer, the more often one has to be written twice.
	firstWindow = 512
)

// damagedFormat is the whole value, to all of the package, of a key whose value does not verify: no record begins with it.
const damagedFormat = 0xff

// plain are the keys without a trailer: the first two are read before there is a key for it, and the second is authenticated by itself; the third says nothing.
func plain(key string) bool {
	return key == formatKey || key == identityKey || key == barrierKey || !strings.HasPrefix(key, root)
}

// errUnauthenticated says that a value does not verify.
var errUnauthenticated = errors.New("store: the value was not written by this system, or not here, or has been replaced since")

// macKey makes and verifies trailers. Safe for concurrent use.
type macKey struct {
	hashes sync.Pool
	window int64
}

func newMACKey(key []byte) *macKey {
	own := append([]byte(nil), key...)
	return &macKey{window: firstWindow, hashes: sync.Pool{New: func() any { return hmac.New(sha256.New, own) }}}
}

// at is where a value stands: version 1 with create unknown is the first of its key.
type at struct {
	version, create int64
}

func (k *macKey) sum(out []byte, key string, where at, seen int64, value []byte) []byte {
	h := k.hashes.Get().(hash.Hash)
	defer k.hashes.Put(h)
	h.Reset()
	var b [8 + len(macLabel) + 8*4]byte
	head := append(b[:0], macLabel...)
	head = binary.BigEndian.AppendUint64(head, uint64(len(key)))
	_, _ = h.Write(head)
	_, _ = h.Write([]byte(key))
	if where.version == 1 {
		where.create = 0
	}
	head = binary.BigEndian.AppendUint64(b[:0], uint64(where.version))
	head = binary.BigEndian.AppendUint64(head, uint64(where.create))
	head = binary.BigEndian.AppendUint64(head, uint64(seen))
	_, _ = h.Write(head)
	_, _ = h.Write(value)
	return h.Sum(out)
}

// seal returns value with its trailer, as the version'th of its key. seen counts for the first only.
func (k *macKey) seal(key string, where at, seen int64, value []byte) []byte {
	if where.version != 1 {
		seen = 0
	}
	out := make([]byte, 0, len(value)+trailerLen)
	out = append(out, value...)
	out = binary.BigEndian.AppendUint64(out, uint64(seen))
	out = k.sum(out, key, where, seen, value)
	return append(out, trailerMagic...)
}

// split takes the trailer off, unverified. ok is false if there is none.
func split(sealed []byte) (value []byte, seen int64, mac []byte, ok bool) {
	n := len(sealed) - trailerLen
	if n < 0 || string(sealed[len(sealed)-len(trailerMagic):]) != trailerMagic {
		return nil, 0, nil, false
	}
	return sealed[:n:n], int64(binary.BigEndian.Uint64(sealed[n:])), sealed[n+8 : n+8+sha256.Size], true
}

// open verifies a key's value as etcd has it and returns it without the trailer.
func (k *macKey) open(kv *mvccpb.KeyValue) ([]byte, error) {
	value, seen, mac, ok := split(kv.Value)
	if !ok || kv.Version < 1 {
		return nil, errUnauthenticated
	}
	if kv.Version == 1 {
		if seen < 0 || kv.CreateRevision <= seen || kv.CreateRevision-seen > k.window {
			return nil, errUnauthenticated
		}
	} else if seen != 0 {
		return nil, errUnauthenticated
	}
	var b [sha256.Size]byte
	if !hmac.Equal(mac, k.sum(b[:0], string(kv.Key), at{kv.Version, kv.CreateRevision}, seen, value)) {
		return nil, errUnauthenticated
	}
	return value, nil
}
