package pubkey

import (
	"math/big"
	"slices"
)

// The field and the constant d of edwards25519, and −1.
var (
	edwardsP    = decimal("57896044618658097711785492504343953926634992332820282019728792003956564819949")
	edwardsD    = decimal("37095705934669439343138083508754565189542113879843219016388785533085940283555")
	edwardsLess = new(big.Int).Sub(edwardsP, big.NewInt(1))
)

func decimal(s string) *big.Int {
	n, _ := new(big.Int).SetString(s, 10)
	return n
}

// smallOrder are the y coordinates of the points of order 4 and 8, little-endian. Those of order 1 and 2 have x = 0.
var smallOrder = [][]byte{
	make([]byte, 32),
	[]byte("\x26\xe8\x95\x8f\xc2\xb2\x27\xb0\x45\xc3\xf4\x89\xf2\xef\x98\xf0\xd5\xdf\xac\x05\xd3\xc6\x33\x39\xb1\x38\x02\x88\x6d\x53\xfc\x05"),
	[]byte("\xc7\x17\x6a\x70\x3d\x4d\xd8\x4f\xba\x3c\x0b\x76\x0d\x10\x67\x0f\x2a\x20\x53\xfa\x2c\x39\xcc\xc6\x4e\xc7\xfd\x77\x92\xac\x03\x7a"),
}

// edwardsPoint says whether 32 bytes are the canonical encoding (RFC 8032, 5.1.3) of a point that is not of small order. crypto/ed25519 takes keys
// that are not: with one of small order, signatures exist that verify for any message.
func edwardsPoint(raw []byte) bool {
	y := slices.Clone(raw)
	y[31] &= 0x7f
	if slices.ContainsFunc(smallOrder, func(bad []byte) bool { return string(bad) == string(y) }) {
		return false
	}
	slices.Reverse(y)
	n := new(big.Int).SetBytes(y)
	if n.Cmp(edwardsP) >= 0 {
		return false
	}
	square := n.Mul(n, n) // x² = (y² − 1) / (d·y² + 1), which is a square if and only if (y² − 1)·(d·y² + 1) is
	under := new(big.Int).Mul(square, edwardsD)
	under.Add(under, big.NewInt(1))
	square.Add(square, edwardsLess)
	return big.Jacobi(square.Mul(square, under).Mod(square, edwardsP), edwardsP) == 1 // 0 is x = 0: orders 1 and 2
}
