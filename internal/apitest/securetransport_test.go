package apitest

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"os"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// TestSecureTransport: a key policy's aws:SecureTransport is true of a connection with TLS and false of one without, for both planes.
func TestSecureTransport(t *testing.T) {
	certFile, keyFile := xksCertificate(t, t.TempDir())
	ca := must(os.ReadFile(certFile))(t)
	s := Start(t)
	ctx, plain := t.Context(), s.KMS(t)
	key := newKey(t, plain)
	policy := `{"Version":"2012-10-17","Statement":[
		{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::` + Account + `:root"},"Action":["kms:PutKeyPolicy","kms:Decrypt"],"Resource":"*"},
		{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::` + Account + `:root"},"Action":["kms:GenerateDataKey","kms:DescribeKey"],"Resource":"*","Condition":{"Bool":{"aws:SecureTransport":"true"}}},
		{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::` + Account + `:root"},"Action":["kms:Encrypt","kms:GetKeyPolicy"],"Resource":"*","Condition":{"Bool":{"aws:SecureTransport":"false"}}}]}`
	must(plain.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: key.KeyId, Policy: &policy}))(t)

	check := func(c *kms.Client, secure bool) {
		t.Helper()
		_, generate := c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: key.KeyId, KeySpec: types.DataKeySpecAes256})
		_, describe := c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: key.KeyId})
		_, encrypt := c.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("p")})
		_, get := c.GetKeyPolicy(ctx, &kms.GetKeyPolicyInput{KeyId: key.KeyId})
		for name, is := range map[string]struct {
			err     error
			allowed bool
		}{
			"GenerateDataKey, secure only": {generate, secure}, "DescribeKey, secure only": {describe, secure}, "Encrypt, insecure only": {encrypt, !secure}, "GetKeyPolicy, insecure only": {get, !secure},
		} {
			if is.allowed {
				if is.err != nil {
					t.Errorf("%s: %v", name, is.err)
				}
				continue
			}
			refusedWith(t, is.err, "AccessDeniedException")
		}
	}
	check(plain, false)

	s.cfg.TLSCert, s.cfg.TLSKey = certFile, keyFile
	s.Restart(t)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: XKSHost}}
	t.Cleanup(transport.CloseIdleConnections)
	check(s.KMS(t, func(o *kms.Options) {
		o.BaseEndpoint, o.HTTPClient = aws.String("https://"+s.Addr), &http.Client{Transport: transport, Timeout: exchangeTimeout}
	}), true)
}
