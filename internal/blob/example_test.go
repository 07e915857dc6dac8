package blob_test

import (
	"fmt"

	"github.com/keyplane/keyplane/internal/blob"
	"github.com/keyplane/keyplane/internal/keyid"
)

// The additional data of a message is its header and the canonical encryption context, appended to one buffer.
func ExampleParse() {
	h := blob.Header{Suite: blob.SuiteDerived, Account: 111122223333, Key: keyid.ID{UUID: [16]byte{0: 0x12, 15: 0x34}}, KeyVersion: 1}
	ciphertextBlob := append(h.Append(nil), make([]byte, 32+blob.TagLen)...) // where aesgcm.Seal appends

	var got blob.Header
	sealed, ok := blob.Parse(ciphertextBlob, &got)
	fmt.Println(ok, got == h, len(sealed))

	var context blob.Context
	context.Add([]byte("tenant"), []byte("42"))
	aad := append([]byte(nil), ciphertextBlob[:blob.HeaderLen]...)
	aad = context.AppendTo(aad)
	fmt.Printf("%x\n", aad[blob.HeaderLen:])

	_, ok = blob.Parse(ciphertextBlob[:blob.Overhead], &got)
	fmt.Println(ok)
	// Output:
	// true true 48
	// 0001000674656e616e7400023432
	// false
}
