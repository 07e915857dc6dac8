package xks

import (
	"github.com/keyplane/keyplane/internal/awsjson"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// API is one of the four.
type API uint8

const (
	GetHealthStatus API = iota
	GetKeyMetadata
	Encrypt
	Decrypt
)

// action is the last element of the path.
func (a API) action() string { return [...]string{"/health", "/metadata", "/encrypt", "/decrypt"}[a] }

// String is the name of the API, for logs.
func (a API) String() string {
	return [...]string{"GetHealthStatus", "GetKeyMetadata", "Encrypt", "Decrypt"}[a]
}

// Path is the path of a request, below a valid XksProxyUriPath. key is a valid key ID; GetHealthStatus has none.
func (a API) Path(base, key string) string {
	if a == GetHealthStatus {
		return base + a.action()
	}
	return base + "/keys/" + key + a.action()
}

// append appends the member requestMetadata, of a body's object that it begins.
func (m *Metadata) append(dst []byte) []byte {
	dst = append(dst, `{"requestMetadata":{`...)
	first := true
	for _, member := range [...]struct{ name, value string }{
		{"awsPrincipalArn", m.Principal}, {"awsSourceVpc", m.SourceVpc}, {"awsSourceVpce", m.SourceVpce}, {"kmsKeyArn", m.KeyARN}, {"kmsOperation", m.Operation},
		{"kmsRequestId", m.RequestID}, {"kmsViaService", m.ViaService},
	} {
		if member.value == "" {
			continue
		}
		if !first {
			dst = append(dst, ',')
		}
		first = false
		dst = kmsapi.AppendString(dst, member.name)
		dst = append(dst, ':')
		dst = kmsapi.AppendString(dst, member.value)
	}
	return append(dst, '}')
}

func appendBlob(dst []byte, name string, value []byte) []byte {
	dst = append(dst, ',')
	dst = kmsapi.AppendString(dst, name)
	dst = append(dst, ':')
	return awsjson.AppendBase64(dst, value)
}

// AppendRequest appends the body of GetHealthStatus or GetKeyMetadata, which have no other member than requestMetadata.
func AppendRequest(dst []byte, m *Metadata) []byte { return append(m.append(dst), '}') }

// AppendEncrypt appends the body of Encrypt, which asks for a CDIV. plaintext is at most PlaintextMax long, aad AADMax.
func AppendEncrypt(dst []byte, m *Metadata, plaintext, aad []byte) []byte {
	dst = m.append(dst)
	dst = appendBlob(dst, "plaintext", plaintext)
	dst = appendAAD(dst, aad)
	return append(dst, `,"encryptionAlgorithm":"`+AlgorithmAESGCM+`","ciphertextDataIntegrityValueAlgorithm":"`+AlgorithmCDIV+`"}`...)
}

// AppendDecrypt appends the body of Decrypt.
func AppendDecrypt(dst []byte, m *Metadata, s *Sealed, aad []byte) []byte {
	dst = m.append(dst)
	dst = appendBlob(dst, "ciphertext", s.Ciphertext)
	if len(s.Metadata) > 0 {
		dst = appendBlob(dst, "ciphertextMetadata", s.Metadata)
	}
	dst = appendBlob(dst, "initializationVector", s.IV)
	dst = appendBlob(dst, "authenticationTag", s.Tag)
	dst = appendAAD(dst, aad)
	return append(dst, `,"encryptionAlgorithm":"`+AlgorithmAESGCM+`"}`...)
}

func appendAAD(dst, aad []byte) []byte {
	if len(aad) == 0 {
		return dst
	}
	return appendBlob(dst, "additionalAuthenticatedData", aad)
}
