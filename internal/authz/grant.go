package authz

import "bytes"

// Operations is a set of grant operations.
type Operations uint32

// Grant operations, as the API spells them.
const (
	OpDecrypt Operations = 1 << iota
	OpEncrypt
	OpGenerateDataKey
	OpGenerateDataKeyWithoutPlaintext
	OpReEncryptFrom
	OpReEncryptTo
	OpSign
	OpVerify
	OpGetPublicKey
	OpCreateGrant
	OpRetireGrant
	OpDescribeKey
	OpGenerateDataKeyPair
	OpGenerateDataKeyPairWithoutPlaintext
	OpGenerateMac
	OpVerifyMac
	OpDeriveSharedSecret
	OpEncapsulate
	OpDecapsulate
)

// operationNames are in the order of the bits.
var operationNames = [...]string{
	"Decrypt", "Encrypt", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext", "ReEncryptFrom", "ReEncryptTo", "Sign", "Verify",
	"GetPublicKey", "CreateGrant", "RetireGrant", "DescribeKey", "GenerateDataKeyPair", "GenerateDataKeyPairWithoutPlaintext",
	"GenerateMac", "VerifyMac", "DeriveSharedSecret", "Encapsulate", "Decapsulate",
}

// ParseOperation is the grant operation of a name, 0 if there is none.
func ParseOperation(name string) Operations {
	for i, n := range operationNames {
		if n == name {
			return 1 << i
		}
	}
	return 0
}

// Names are the operations' names in the order of the API's enum.
func (o Operations) Names() []string {
	var names []string
	for i, n := range operationNames {
		if o&(1<<i) != 0 {
			names = append(names, n)
		}
	}
	return names
}

// Pair is one pair of an encryption context.
type Pair struct{ Key, Value []byte }

// Grant is one grant as decisions need it. Immutable.
type Grant struct {
	ID         string // 64 hexadecimal digits
	Operations Operations
	Equals     []Pair // EncryptionContextEquals, ascending by Key; HasEquals tells an empty one from none
	Subset     []Pair // EncryptionContextSubset, ascending by Key
	HasEquals  bool
	HasSubset  bool
	SourceARN  string // Constraints.SourceArn; "" for none
}

// Pairs is an encryption context: its pairs in ascending byte order of their keys, no key twice. *blob.Context is one.
type Pairs interface {
	Len() int
	Pair(i int) (key, value []byte)
}

// contextFree are the granted operations that constraints on the encryption context do not concern; a grant that is made by one that
// may only make grants has constraints at least as strict, which its maker checks.
const contextFree = OpDescribeKey | OpRetireGrant | OpCreateGrant

// allows reports whether the grant holds for one operation of a request.
func (g *Grant) allows(op Operations, c *Context) bool {
	if g.Operations&op == 0 {
		return false
	}
	if g.SourceARN != "" && op != OpRetireGrant && g.SourceARN != string(c.SourceArn) {
		return false
	}
	if op&contextFree != 0 || !g.HasEquals && !g.HasSubset {
		return true
	}
	n := 0
	if c.EncryptionContext != nil {
		n = c.EncryptionContext.Len()
	}
	if g.HasEquals && n != len(g.Equals) {
		return false
	}
	return (!g.HasEquals || contains(c.EncryptionContext, n, g.Equals)) && (!g.HasSubset || contains(c.EncryptionContext, n, g.Subset))
}

// contains reports whether a context of n pairs has all of want. Both are in ascending order of their keys.
func contains(context Pairs, n int, want []Pair) bool {
	i := 0
	for j := range want {
		for ; ; i++ {
			if i == n {
				return false
			}
			key, value := context.Pair(i)
			if d := bytes.Compare(key, want[j].Key); d > 0 {
				return false
			} else if d == 0 {
				if !bytes.Equal(value, want[j].Value) {
					return false
				}
				i++
				break
			}
		}
	}
	return true
}
