package loadtest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// authorize returns the Authorization header.
func authorize(credentials *aws.Credentials, region string, at time.Time, headers [][2]string, body []byte) (string, error) {
	r, err := http.NewRequest("POST", "https://host/", nil)
	if err != nil {
		return "", err
	}
	for _, h := range headers {
		if h[0] == "Host" {
			r.Host = h[1]
			continue
		}
		r.Header.Set(h[0], h[1])
	}
	sum := sha256.Sum256(body)
	err = v4.NewSigner().SignHTTP(context.Background(), *credentials, r, hex.EncodeToString(sum[:]), kmsapi.SigningName, region, at)
	return r.Header.Get("Authorization"), err
}
