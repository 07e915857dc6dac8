// Package xks is the wire form of the XKS proxy API, version 1: what AWS KMS sends to the proxy of an external key store, and what comes back
// (github.com/aws/aws-kms-xksproxy-api-spec, version 1.0.3). The client is internal/xksclient, the server dataplane's.
//
//	xks.go      what both sides talk about, limits
//	valid.go    what may be the identifiers, the address and the credentials of a key store
//	failure.go  the table: a proxy's errors, and what KMS makes of them and of other failures
//	cdiv.go     the ciphertext data integrity value
//	request.go  requests, written
//	answer.go   answers, read
//
// It knows no HTTP and no signatures, starts no goroutine and reads no clock.
package xks

// Metadata is the requestMetadata of a request. Empty members are left out.
type Metadata struct {
	Principal  string // awsPrincipalArn
	SourceVpc  string // awsSourceVpc
	SourceVpce string // awsSourceVpce
	KeyARN     string // kmsKeyArn: of Encrypt and Decrypt
	Operation  string // kmsOperation
	RequestID  string // kmsRequestId
	ViaService string // kmsViaService
}

// Limits of the API, in bytes.
const (
	PlaintextMax    = 4300 // and of the ciphertext, which is as long
	AADMax          = 8192
	MetadataMax     = 20 // ciphertextMetadata
	TagLen          = 16
	IVMin           = 12 // or IVMax, nothing between
	IVMax           = 16
	ErrorMessageMax = 511 // of printable ASCII
	ArnMax          = 2048
	KeyUsagesMax    = 10
	FleetMax        = 10 // ekmFleetDetails
)

// SigningName is the service that requests are signed for.
const SigningName = "kms-xks-proxy"

// Values of members.
const (
	AlgorithmAESGCM = "AES_GCM" // encryptionAlgorithm
	AlgorithmCDIV   = "SHA_256" // ciphertextDataIntegrityValueAlgorithm
	KeySpecAES256   = "AES_256" // keySpec
	UsageEncrypt    = "ENCRYPT" // keyUsage
	UsageDecrypt    = "DECRYPT"
	StatusEnabled   = "ENABLED" // keyStatus
	StatusDisabled  = "DISABLED"
)

// KmsHealthCheck is the kmsOperation of the health checks that no call of KMS's API is the reason for.
const KmsHealthCheck = "KmsHealthCheck"

// Sealed is what Encrypt answers and Decrypt is given.
type Sealed struct {
	IV         []byte // 12 or 16 bytes
	Ciphertext []byte // as long as the plaintext
	Tag        []byte // 16 bytes
	Metadata   []byte // ciphertextMetadata, at most 20 bytes; may be empty
}

// Valid says whether the lengths are those of the API.
func (s *Sealed) Valid() bool {
	n := len(s.Ciphertext)
	return n > 0 && n <= PlaintextMax && (len(s.IV) == IVMin || len(s.IV) == IVMax) && len(s.Tag) == TagLen && len(s.Metadata) <= MetadataMax
}
