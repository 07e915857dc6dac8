package controlplane

import (
	"context"
	"strconv"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/lastuse"
	"github.com/keyplane/keyplane/internal/policy"
	"github.com/keyplane/keyplane/internal/uuid"
)

// LastUses knows the last use of each key: *lastuse.Index.
type LastUses interface {
	Last(region string, a keyid.Account, id keyid.ID) (lastuse.Use, bool)
	Start() time.Time // since when every use is known
}

type keyLastUsage struct {
	Operation         string
	Timestamp         timestamp
	CloudTrailEventId string
	KmsRequestId      string
}

type getKeyLastUsageOut struct {
	KeyId             string
	KeyLastUsage      any // keyLastUsage, or an empty object
	TrackingStartDate timestamp
	KeyCreationDate   timestamp
}

// noLastUses is the refusal of a server that keeps no audit log: it has nothing to answer from.
const noLastUses = "GetKeyLastUsage needs an audit log, and this server keeps none."

// GetKeyLastUsage: the last successful cryptographic operation with a key, by the audit log. A use is there within moments of its reply.
func (s *Server) getKeyLastUsage(ctx context.Context, c *call, in *keyIn) (getKeyLastUsageOut, error) {
	n, err := s.keyName(c, *in.KeyId)
	if err != nil {
		return getKeyLastUsageOut{}, err
	}
	k, err := s.view(ctx, c, n)
	if err != nil {
		return getKeyLastUsageOut{}, err
	}
	defer k.Wipe()
	if s.lastUses == nil {
		return getKeyLastUsageOut{}, kmsapi.New(kmsapi.UnsupportedOperation, noLastUses)
	}
	out := getKeyLastUsageOut{KeyId: s.keyARN(n), KeyLastUsage: struct{}{}, KeyCreationDate: timestamp{k.Created}}
	if u, ok := s.lastUses.Last(n.Region, n.Account, n.ID); ok {
		out.KeyLastUsage = keyLastUsage{
			Operation: u.Operation.String(), Timestamp: timestamp{time.Unix(u.Seconds, 0)},
			CloudTrailEventId: string(uuid.Append(nil, &u.EventID)), KmsRequestId: string(uuid.Append(nil, &u.RequestID)),
		}
	}
	if out.TrackingStartDate = (timestamp{s.lastUses.Start()}); k.Created.After(out.TrackingStartDate.Time) { // asked after Last: what was forgotten between is before it
		out.TrackingStartDate = out.KeyCreationDate
	}
	return out, nil
}

// trailing is kms:TrailingDaysWithoutKeyUsage: the whole days since the last use of a key, absent where none is known.
func (s *Server) trailing(n store.KeyName, now time.Time) []authz.ExtraValue {
	if s.lastUses == nil {
		return nil
	}
	u, ok := s.lastUses.Last(n.Region, n.Account, n.ID)
	if !ok {
		return nil
	}
	days := max(now.Sub(time.Unix(u.Seconds, 0)), 0) / day
	return []authz.ExtraValue{{Key: policy.KMSTrailingDaysWithoutKeyUsage, Value: strconv.FormatInt(int64(days), 10)}}
}
