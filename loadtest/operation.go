package loadtest

import (
	"encoding/base64"
	"strconv"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// operation is one row of what can be sent.
type operation struct {
	name       string
	keyed      bool // the request names a KMS key
	payloadMax int  // bytes
	plaintext  bool // the reply has Plaintext: of payload bytes, or for Decrypt the one encrypted during set-up
	blob       bool // the reply has CiphertextBlob
}

var operations = []operation{
	{name: "GenerateDataKey", keyed: true, payloadMax: dataKeyBytesMax, plaintext: true, blob: true},
	{name: "GenerateDataKeyWithoutPlaintext", keyed: true, payloadMax: dataKeyBytesMax, blob: true},
	{name: "Encrypt", keyed: true, payloadMax: kmsapi.PlaintextMax, blob: true},
	{name: "Decrypt", keyed: true, payloadMax: kmsapi.PlaintextMax, plaintext: true},
	{name: "GenerateRandom", payloadMax: kmsapi.RandomBytesMax, plaintext: true},
}

// Operations are the names Config.Operation accepts.
func Operations() []string {
	names := make([]string, len(operations))
	for i := range operations {
		names[i] = operations[i].name
	}
	return names
}

func findOperation(name string) *operation {
	for i := range operations {
		if operations[i].name == name {
			return &operations[i]
		}
	}
	return nil
}

// decrypts reports whether the operation needs ciphertexts, made during set-up.
func (op *operation) decrypts() bool { return op.plaintext && op.keyed && !op.blob }

// encrypts reports whether the request carries a plaintext.
func (op *operation) encrypts() bool { return op.blob && op.payloadMax == kmsapi.PlaintextMax }

// appendBody appends the request's JSON. data is the plaintext for Encrypt and the ciphertext blob for Decrypt, unused otherwise.
func (op *operation) appendBody(dst []byte, keyID string, data []byte, payload int) []byte {
	dst = append(dst, '{')
	if op.keyed {
		dst = append(dst, `"KeyId":`...)
		dst = kmsapi.AppendString(dst, keyID)
		dst = append(dst, ',')
	}
	switch {
	case op.decrypts():
		dst = append(dst, `"CiphertextBlob":"`...)
		dst = base64.StdEncoding.AppendEncode(dst, data)
		dst = append(dst, '"')
	case op.encrypts():
		dst = append(dst, `"Plaintext":"`...)
		dst = base64.StdEncoding.AppendEncode(dst, data)
		dst = append(dst, '"')
	case op.keyed && payload == 32:
		dst = append(dst, `"KeySpec":"AES_256"`...) // what almost every envelope-encrypting client sends
	default:
		dst = append(dst, `"NumberOfBytes":`...)
		dst = strconv.AppendInt(dst, int64(payload), 10)
	}
	return append(dst, '}')
}
