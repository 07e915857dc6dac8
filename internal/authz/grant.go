package authz

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
