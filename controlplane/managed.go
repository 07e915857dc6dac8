package controlplane

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/snapshot"
)

// AWS managed keys: alias/aws/s3 of an account is the alias of the key that the registered service s3.<Region>.amazonaws.com, or s3.amazonaws.com, uses for the account's
// principals where they name no other. It is made when it is first used. Who may use it, and that nobody may change it, is its key policy's doing.

// managedRotationDays is the period at which every AWS managed key rotates.
const managedRotationDays = 365

// managedService is the service for whose AWS managed key an alias stands, without Region; "" for any other alias.
func (s *Server) managedService(a keyid.Account, alias string) string {
	label, reserved := strings.CutPrefix(alias, kmsapi.AliasReservedPrefix)
	if !reserved || label == "" {
		return ""
	}
	return s.principals.Service(label, s.region, a)
}

// viaServices are the two names under which a service may be registered for the Region: without a Region, which is what service is, and with it.
func (s *Server) viaServices(service string) [2]string {
	label, domain, _ := strings.Cut(service, ".")
	return [2]string{service, label + "." + s.region + "." + domain}
}

// managedPolicy is AWS's key policy of an AWS managed key: its account's principals use it through the service, and see it. AWS names the service with its
// Region only.
func (s *Server) managedPolicy(service string, a keyid.Account) string {
	label, _, _ := strings.Cut(service, ".")
	via := s.viaServices(service)
	return `{"Version":"2012-10-17","Id":"auto-` + label + `-1","Statement":[` +
		`{"Sid":"Allow access through ` + label + ` for all principals in the account that are authorized to use ` + label + `","Effect":"Allow","Principal":{"AWS":"*"},` +
		`"Action":["kms:Encrypt","kms:Decrypt","kms:ReEncrypt*","kms:GenerateDataKey*","kms:CreateGrant","kms:DescribeKey"],"Resource":"*",` +
		`"Condition":{"StringEquals":{"kms:CallerAccount":"` + a.String() + `","kms:ViaService":["` + via[0] + `","` + via[1] + `"]}}},` +
		`{"Sid":"Allow direct access to key metadata to the account","Effect":"Allow","Principal":{"AWS":"arn:` + s.partition + `:iam::` + a.String() + `:root"},` +
		`"Action":["kms:Describe*","kms:Get*","kms:List*","kms:RevokeGrant"],"Resource":"*"}]}`
}

// Managed makes the AWS managed key of an alias ("alias/aws/…") of the caller's account, if there is none yet and the alias is that of the service through
// which the caller calls. The data plane, which asks, finds the alias afterwards, or there is none.
func (s *Server) Managed(ctx context.Context, w *authz.Caller, alias string) error {
	service := s.managedService(w.Account, alias)
	if via := s.viaServices(service); service == "" || !slices.Contains(via[:], w.Via) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return s.makeManaged(ctx, w.Account, alias, service, s.now().UTC().Truncate(time.Millisecond), func(*store.Key) error { return nil })
}

// makeManaged makes the AWS managed key of an alias that did not exist a moment ago, if allow agrees to what it will be. It is no error if somebody else
// makes it: one of them does.
func (s *Server) makeManaged(ctx context.Context, a keyid.Account, alias, service string, now time.Time, allow func(*store.Key) error) error {
	label, _, _ := strings.Cut(service, ".")
	k := &store.Key{
		KeyName: store.KeyName{Region: s.region, Account: a}, Description: "Default key that protects my " + label + " data when no other key is defined",
		State: kmsapi.StateEnabled, Spec: kmsapi.SymmetricDefault, Usage: kmsapi.EncryptDecrypt, Origin: originKMS, Created: now, Manager: store.AWS,
		Current: 1, Versions: []store.Version{{VersionRecord: snapshot.VersionRecord{Number: 1}, Created: now}}, Aliases: []string{alias},
		Rotation: store.Rotation{Enabled: true, Period: managedRotationDays, Next: now.AddDate(0, 0, managedRotationDays)},
	}
	defer k.Wipe()
	bypass := true
	var err error
	if k.Policy, err = s.newPolicy(nil, k, "", []byte(s.managedPolicy(service, a)), &bypass); err != nil {
		return fmt.Errorf("controlplane: the key policy of an AWS managed key: %w", err)
	}
	if err := s.draw(k, nil); err != nil {
		return err
	}
	if err := allow(k); err != nil {
		return err
	}
	err = s.store.CreateManagedKey(ctx, k, func() error { return s.auditCreation(s.keyARN(k.KeyName), a, now) })
	s.publishKey(k.KeyName, err)
	s.publishAlias(a, alias, err) // also of one that somebody else has made, and may not have published yet
	if errors.Is(err, store.ErrExists) {
		s.publisher.Spread() // who asked looks for it now
		return nil
	}
	return err
}
