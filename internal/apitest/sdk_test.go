package apitest

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"
)

// world is a node and the operations that succeeded on it through the SDK, so that none can be forgotten (TestTokens).
type world struct {
	*Server
	mu      sync.Mutex
	reached map[string]bool
}

// sdk is KMS, counted.
func (w *world) sdk(t *testing.T) *kms.Client {
	return w.KMS(t, func(o *kms.Options) {
		o.APIOptions = append(o.APIOptions, func(stack *middleware.Stack) error {
			return stack.Initialize.Add(middleware.InitializeMiddlewareFunc("keyplane-reached", w.count), middleware.After)
		})
	})
}

func (w *world) count(ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler) (middleware.InitializeOutput, middleware.Metadata, error) {
	out, meta, err := next.HandleInitialize(ctx, in)
	if err == nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.reached == nil {
			w.reached = make(map[string]bool)
		}
		w.reached[awsmiddleware.GetOperationName(ctx)] = true
	}
	return out, meta, err
}

// must returns v, or fails the test.
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// newKey makes a key and returns its metadata.
func newKey(t *testing.T, c *kms.Client) *types.KeyMetadata {
	t.Helper()
	out := must(c.CreateKey(t.Context(), &kms.CreateKeyInput{}))(t)
	return out.KeyMetadata
}

// refusedAs fails the test unless err is the SDK's type of an exception, and returns it.
func refusedAs[E error](t *testing.T, err error) E {
	t.Helper()
	var e E
	if !errors.As(err, &e) {
		t.Errorf("got %v, want a %T", err, e)
	}
	return e
}

// refusedWith fails the test unless err carries that exception's name.
func refusedWith(t *testing.T, err error, code string) {
	t.Helper()
	var e smithy.APIError
	if !errors.As(err, &e) || e.ErrorCode() != code {
		t.Errorf("got %v, want %s", err, code)
	}
}

// equal compares two values of a reply.
func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s is %v, want %v", what, got, want)
	}
}

// isMaterialID reports whether s has the form of a key material ID: 64 hex digits.
func isMaterialID(s *string) bool {
	return s != nil && len(*s) == 64 && strings.Trim(*s, "0123456789abcdef") == ""
}

// aliasOf makes an alias name that no other test has.
func aliasOf(t *testing.T, name string) string {
	return "alias/" + strings.NewReplacer("/", "-", "#", "-").Replace(t.Name()) + "-" + name
}

var symmetric = types.EncryptionAlgorithmSpecSymmetricDefault

func str(s string) *string { return aws.String(s) }

// decodes reads JSON and reports whether it was.
func decodes(b []byte, v any) bool { return json.Unmarshal(b, v) == nil }
