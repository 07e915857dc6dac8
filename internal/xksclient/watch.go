package xksclient

import (
	"context"
	"errors"
	"time"

	"github.com/keyplane/keyplane/internal/uuid"
	"github.com/keyplane/keyplane/internal/xks"
)

// Watch asks the proxy how it is, every so often (AWS KMS: "every few minutes"), until ctx is done, and logs what changed. It keeps the breaker informed while nobody uses the key store.
func (c *Client) Watch(ctx context.Context, every time.Duration) {
	ids := uuid.New()
	tick := time.NewTicker(every)
	defer tick.Stop()
	last := xks.OK
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var id [uuid.Len]byte
		ids.Fill(&id)
		_, err := c.Health(ctx, xks.KmsHealthCheck, string(id[:]))
		if ctx.Err() != nil {
			return
		}
		now := xks.OK
		var e *xks.Error
		if errors.As(err, &e) {
			now = e.Failure
		}
		if now != last {
			c.log.Warn("health of external key store proxy changed", "from", last.String(), "to", now.String())
			last = now
		}
	}
}
