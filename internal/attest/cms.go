package attest

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
)

// Seal encrypts a plaintext to a key as AWS KMS does: the CMS EnvelopedData (RFC 5652 §6) of CiphertextForRecipient.
//
//	ContentInfo {
//	  enveloped-data, EnvelopedData { version 2,
//	    { KeyTransRecipientInfo { version 2, [0] subjectKeyIdentifier,
//	        RSAES-OAEP with SHA-256 and MGF1 with SHA-256, the key of the content } },
//	    EncryptedContentInfo { data, AES-256-CBC with its IV, [0] { OCTET STRING ciphertext } } } }
//
// The sequences around the content have indefinite lengths, BER and not DER, because AWS's do: the parser of AWS's SDK for enclaves knows nothing else
// (aws-nitro-enclaves-sdk-c, source/cms.c). subjectKeyIdentifier has 32 bytes, as AWS's, and is SHA-256 of the key's SubjectPublicKeyInfo; what AWS
// hashes is not known, and recipients have one key. AES-256-CBC is not authenticated: the document's key is the recipient's, and the connection is.
func Seal(pub *rsa.PublicKey, plaintext []byte) ([]byte, error) {
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, err
	}
	id := sha256.Sum256(spki)
	var secret struct {
		key [32]byte
		iv  [aes.BlockSize]byte
	}
	defer clear(secret.key[:])
	rand.Read(secret.key[:]) // never fails
	rand.Read(secret.iv[:])
	wrapped, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, pub, secret.key[:], nil)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(secret.key[:])
	if err != nil {
		return nil, err
	}
	padding := aes.BlockSize - len(plaintext)%aes.BlockSize
	content := make([]byte, len(plaintext)+padding)
	copy(content, plaintext)
	for i := len(plaintext); i < len(content); i++ {
		content[i] = byte(padding)
	}
	cipher.NewCBCEncrypter(block, secret.iv[:]).CryptBlocks(content, content)

	recipient := append(append([]byte{}, version2...), element(0x80, id[:])...)
	recipient = append(append(recipient, oaepSHA256...), element(asn1.TagOctetString, wrapped)...)

	b := make([]byte, 0, 512+len(wrapped)+len(content))
	b = append(append(append(b, indefinite(sequence)...), envelopedData...), indefinite(0xa0)...)
	b = append(append(append(b, indefinite(sequence)...), version2...), element(set, element(sequence, recipient))...)
	b = append(append(b, indefinite(sequence)...), data...)
	b = append(b, element(sequence, append(append([]byte{}, aes256CBC...), element(asn1.TagOctetString, secret.iv[:])...))...)
	b = append(append(b, indefinite(0xa0)...), element(asn1.TagOctetString, content)...)
	return append(b, make([]byte, 2*5)...), nil // ends of contents
}

// Constructed types of ASN.1, and what of the message is always the same.
const (
	sequence = 0x30
	set      = 0x31
)

var (
	version2      = element(asn1.TagInteger, []byte{2})
	envelopedData = oid(1, 2, 840, 113549, 1, 7, 3)
	data          = oid(1, 2, 840, 113549, 1, 7, 1)
	aes256CBC     = oid(2, 16, 840, 1, 101, 3, 4, 1, 42)

	sha256Identifier = element(sequence, append(oid(2, 16, 840, 1, 101, 3, 4, 2, 1), asn1.NullBytes...))
	mgf1SHA256       = element(sequence, append(oid(1, 2, 840, 113549, 1, 1, 8), sha256Identifier...))
	oaepSHA256       = element(sequence, append(oid(1, 2, 840, 113549, 1, 1, 7),
		element(sequence, append(element(0xa0, sha256Identifier), element(0xa1, mgf1SHA256)...))...))
)

func oid(arcs ...int) []byte {
	b, err := asn1.Marshal(asn1.ObjectIdentifier(arcs))
	if err != nil {
		panic(err) // the arcs are constants
	}
	return b
}

// indefinite is the start of a constructed element whose content ends with two zeros.
func indefinite(tag byte) []byte { return []byte{tag, 0x80} }

// element is an element of a definite length, of 65535 bytes at most.
func element(tag byte, content []byte) []byte {
	n := len(content)
	b := make([]byte, 0, n+4)
	switch {
	case n < 128:
		b = append(b, tag, byte(n))
	case n < 256:
		b = append(b, tag, 0x81, byte(n))
	default:
		b = append(b, tag, 0x82, byte(n>>8), byte(n))
	}
	return append(b, content...)
}
