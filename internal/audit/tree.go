package audit

import (
	"crypto/sha256"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

const tileHeight = 8 // levels of the tree in a level of tiles: c2sp.org/tlog-tiles

// tree is the right edge of a Merkle tree (RFC 6962 §2.1): the roots of its complete subtrees, all that is needed to add a leaf. It does not
// allocate; golang.org/x/mod/sumdb/tlog is asked for everything that is not done for each record.
type tree struct {
	size  uint64
	edge  [64]tlog.Hash // edge[l] is the root of a subtree of 2^l leaves if that bit of size is set
	store func(level int, h tlog.Hash)
}

// leafHash is the hash of the record of an entry, which it changes: the low byte of the length becomes the prefix of a leaf.
func leafHash(entry []byte) tlog.Hash {
	entry[1] = 0
	return sha256.Sum256(entry[1:])
}

func nodeHash(left, right *tlog.Hash) tlog.Hash {
	var b [1 + 2*tlog.HashSize]byte
	b[0] = 1
	copy(b[1:], left[:])
	copy(b[1+tlog.HashSize:], right[:])
	return sha256.Sum256(b[:])
}

// add appends a complete subtree of 2^level leaves; size must be a multiple of that. store hears of the hashes above h that belong into tiles,
// with their level of tiles.
func (t *tree) add(level int, h tlog.Hash) {
	n := t.size >> level
	t.size += 1 << level
	for ; n&1 == 1; n >>= 1 {
		h = nodeHash(&t.edge[level], &h)
		level++
		if level%tileHeight == 0 && t.store != nil {
			t.store(level/tileHeight, h)
		}
	}
	t.edge[level] = h
}

// root is the hash of the tree.
func (t *tree) root() tlog.Hash {
	if t.size == 0 {
		return sha256.Sum256(nil)
	}
	low := bits.TrailingZeros64(t.size)
	h := t.edge[low]
	for rest := t.size &^ (1 << low); rest != 0; rest &= rest - 1 {
		h = nodeHash(&t.edge[bits.TrailingZeros64(rest)], &h)
	}
	return h
}

// restore sets the tree to the first size leaves of what r stores.
func (t *tree) restore(size uint64, r tlog.HashReader) error {
	var levels []int
	var indexes []int64
	for rest := size; rest != 0; rest &= rest - 1 {
		level := bits.TrailingZeros64(rest)
		levels = append(levels, level)
		indexes = append(indexes, tlog.StoredHashIndex(level, int64(size>>level)-1))
	}
	hashes, err := r.ReadHashes(indexes)
	if err != nil {
		return err
	}
	t.size = size
	for i, level := range levels {
		t.edge[level] = hashes[i]
	}
	return nil
}
