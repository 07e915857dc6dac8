package attesttest

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
)

// Open reads the CMS EnvelopedData of CiphertextForRecipient strictly, in the form that AWS gives it, and decrypts it with the recipient's key.
func Open(key *rsa.PrivateKey, message []byte) ([]byte, error) {
	r := &ber{rest: message}
	r.enter(0x30)
	r.want(0x06, "2a864886f70d010703") // id-envelopedData
	r.enter(0xa0)
	r.enter(0x30)
	r.want(0x02, "02")

	// One recipient: SET OF, of one KeyTransRecipientInfo, in DER.
	recipients := &ber{rest: r.element(0x31)}
	info := &ber{rest: recipients.element(0x30)}
	recipients.done(&r.err)
	info.want(0x02, "02")
	id := info.element(0x80)
	// RSAES-OAEP { [0] SHA-256 NULL, [1] MGF1 { SHA-256 NULL } }
	info.want(0x30, "06092a864886f70d010107"+"302f"+"a00f300d06096086480165030402010500"+"a11c301a06092a864886f70d010108"+"300d06096086480165030402010500")
	wrapped := info.element(0x04)
	info.done(&r.err)

	r.enter(0x30)
	r.want(0x06, "2a864886f70d010701") // id-data
	algorithm := &ber{rest: r.element(0x30)}
	algorithm.want(0x06, "60864801650304012a") // AES-256-CBC
	iv := algorithm.element(0x04)
	algorithm.done(&r.err)
	r.enter(0xa0)
	content := r.element(0x04)
	for range 5 {
		r.want(0, "")
	}
	r.done(&r.err)
	if r.err != nil {
		return nil, r.err
	}

	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	if want := sha256.Sum256(spki); !bytes.Equal(id, want[:]) {
		return nil, errors.New("another key's identifier")
	}
	secret, err := rsa.DecryptOAEP(sha256.New(), nil, key, wrapped, nil)
	if err != nil {
		return nil, err
	}
	if len(secret) != 32 || len(iv) != aes.BlockSize || len(content) == 0 || len(content)%aes.BlockSize != 0 {
		return nil, fmt.Errorf("lengths of key, IV and content: %d, %d, %d", len(secret), len(iv), len(content))
	}
	block, err := aes.NewCipher(secret)
	if err != nil {
		return nil, err
	}
	plain := make([]byte, len(content))
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(plain, content)
	n := int(plain[len(plain)-1])
	if n < 1 || n > aes.BlockSize || !bytes.Equal(plain[len(plain)-n:], bytes.Repeat([]byte{byte(n)}, n)) {
		return nil, errors.New("padding")
	}
	return plain[:len(plain)-n], nil
}

// ber reads elements one after the other; after an error it reads nothing.
type ber struct {
	rest []byte
	err  error
}

// enter reads the start of an element of indefinite length.
func (r *ber) enter(tag byte) {
	if r.err == nil && !bytes.HasPrefix(r.rest, []byte{tag, 0x80}) {
		r.err = fmt.Errorf("no element %#x of indefinite length at %x", tag, r.rest)
	}
	if r.err == nil {
		r.rest = r.rest[2:]
	}
}

// element reads an element of definite length, which is DER, and returns its content.
func (r *ber) element(tag byte) []byte {
	if r.err != nil {
		return nil
	}
	if len(r.rest) >= 2 && r.rest[0] == 0 && r.rest[1] == 0 && tag == 0 {
		r.rest = r.rest[2:]
		return nil
	}
	var v asn1.RawValue
	rest, err := asn1.Unmarshal(r.rest, &v)
	if err == nil && v.FullBytes[0] != tag {
		err = fmt.Errorf("element %#x where %#x is expected", v.FullBytes[0], tag)
	}
	if r.err = err; err != nil {
		return nil
	}
	r.rest = rest
	return v.Bytes
}

// want reads an element whose content is known.
func (r *ber) want(tag byte, content string) {
	if got := r.element(tag); r.err == nil && hex.EncodeToString(got) != content {
		r.err = fmt.Errorf("element %#x is %x, not %s", tag, got, content)
	}
}

// done reports what went wrong, also that something is left.
func (r *ber) done(err *error) {
	if r.err == nil && len(r.rest) > 0 {
		r.err = fmt.Errorf("%d bytes too many", len(r.rest))
	}
	if *err == nil {
		*err = r.err
	}
}
