package sigv4_test

import (
	"fmt"
	"time"

	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/sigv4"
)

// oneKey is a KeySource of one access key.
type oneKey struct{ key *sigv4.AccessKey }

func (o oneKey) AccessKey(id []byte) *sigv4.AccessKey {
	if string(id) != o.key.ID() {
		return nil
	}
	return o.key
}

// A client signs a request and the server finds out who it is.
func ExampleVerifier_Verify() {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	alice := sigv4.Principal{Account: 111122223333, ARN: "arn:aws:iam::111122223333:user/alice", UserName: "alice"}
	key, err := sigv4.NewAccessKey("AKIAIOSFODNN7EXAMPLE", []byte("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"), alice)
	if err != nil {
		panic(err)
	}
	r := &sigv4.Request{
		Method: []byte("POST"),
		Path:   []byte("/"),
		Headers: []sigv4.Header{
			{Name: []byte("host"), Value: []byte("kms.us-east-1.amazonaws.com")},
			{Name: []byte("x-amz-date"), Value: sigv4.AppendDate(nil, now)},
			{Name: []byte("x-amz-target"), Value: []byte("TrentService.ListKeys")},
		},
		Body: []byte("{}"),
	}
	var s sigv4.Scratch
	authorization, err := sigv4.AppendAuthorization(nil, key, "us-east-1", "kms", r, &s)
	if err != nil {
		panic(err)
	}
	r.Headers = append(r.Headers, sigv4.Header{Name: []byte("authorization"), Value: authorization})

	v, err := sigv4.New(sigv4.Config{Regions: []string{"us-east-1"}, Keys: oneKey{key}})
	if err != nil {
		panic(err)
	}
	if id, code := v.Verify(r, &s, now); code == kmsapi.OK {
		fmt.Println(id.Principal().ARN)
	}
	_, code := v.Verify(r, &s, now.Add(6*time.Minute))
	fmt.Printf("%v: %s\n", code, s.Message())
	// Output:
	// arn:aws:iam::111122223333:user/alice
	// InvalidSignatureException: Signature expired: 20261123T120000Z is now earlier than 20261123T120100Z (20261123T120600Z - 5 min.)
}
