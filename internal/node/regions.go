package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keyplane/keyplane/controlplane"
	"github.com/keyplane/keyplane/controlplane/iam"
	"github.com/keyplane/keyplane/controlplane/quotas"
	"github.com/keyplane/keyplane/dataplane"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/planes"
	"github.com/keyplane/keyplane/internal/quota"
	"github.com/keyplane/keyplane/internal/sigv4"
	"github.com/keyplane/keyplane/ratelimit"
)

// region is what a node has of each of its Regions. Everything else, the data plane, the tokens, the store, the audit log and the principals, they share.
type region struct {
	name    string
	limits  *quotas.Quotas
	control *controlplane.Server
}

// pinRegions holds the data directory to its home Region, and to all that it has keys of: keys of a Region that is not served are not found, and what is
// due for them, their deletion, is not done.
func (n *Node) pinRegions(ctx context.Context) error {
	regions := n.cfg.AllRegions()
	home, err := n.store.Pinned(ctx, "region")
	if err != nil {
		return err
	}
	refusal := "holds the keys of Region %[2]s: start it with --region %[2]s, not %[3]s"
	if slices.Contains(regions, home) {
		refusal = "has %[2]s for its home Region: it is the first --region, not %[3]s"
	}
	if err := n.pin(ctx, "region", n.cfg.Region, refusal); err != nil {
		return err
	}
	used, err := n.store.KeyRegions(ctx)
	if err != nil {
		return err
	}
	for _, r := range used {
		if !slices.Contains(regions, r) {
			return fmt.Errorf("node: %s has keys of Region %s too: start it with --region %s besides", n.stateAt(), r, r)
		}
	}
	return nil
}

// openRegions makes n.regions, with their quotas. spread is nil where there is one process; then leaser is, too.
func (n *Node) openRegions(ctx context.Context, spread func(), leaser *planes.Leaser) error {
	for _, name := range n.cfg.AllRegions() {
		cfg := quotas.Config{
			Store: n.store, Region: name, Profile: quota.Profile(n.cfg.Quotas), First: n.account, Logger: n.log, Spread: spread,
		}
		if leaser != nil {
			cfg.Node = n.split.id
			cfg.Leaser = func(rate func(keyid.Account, ratelimit.Pool) ratelimit.Rate) ratelimit.Leaser {
				return leaser.In(name, rate)
			}
		}
		limits, err := quotas.New(cfg)
		if err != nil {
			return err
		}
		if leaser != nil {
			leaser.Renews(limits.Renew)
		}
		if n.shape != data {
			err = n.store.CountKeys(ctx, name)
		}
		if err := errors.Join(err, limits.Load(ctx)); err != nil {
			return err
		}
		n.background("quotas of "+name, limits.Run)
		n.regions = append(n.regions, &region{name: name, limits: limits})
	}
	return nil
}

// newVerifier accepts what is signed for one of the Regions. IAM and the global endpoint of STS are signed for us-east-1, wherever they are.
func newVerifier(regions []string, keys sigv4.KeySource) (*sigv4.Verifier, error) {
	global := regions
	if !slices.Contains(regions, "us-east-1") {
		global = append(slices.Clone(regions), "us-east-1")
	}
	return sigv4.New(sigv4.Config{
		Regions: regions, Keys: keys, Others: []sigv4.Service{
			{Name: "sts", Regions: global}, {Name: "iam", Regions: global}, {Name: quota.SigningName, Regions: regions},
		},
	})
}

// charge is dataplane.Parts.Quota.
func (n *Node) charge(region int, a keyid.Account, p ratelimit.Pool, now time.Time) bool {
	return n.regions[region].limits.Charge(a, p, now)
}

// serveControl is dataplane.Parts.Control: the control plane of the Region that the request is for.
func (n *Node) serveControl(region int, r *sigv4.Request, requestID, sourceIP string, tls *cloudtrail.TLSDetails) (status int, body []byte) {
	resp := n.regions[region].control.Serve(context.Background(), &controlplane.Request{
		Signed: r, RequestID: requestID, SourceIP: sourceIP, SecureTransport: n.cfg.TLSCert != "", TLS: tls,
	})
	return resp.Status, resp.Body
}

// makeManaged is dataplane.Parts.Managed.
func (n *Node) makeManaged(region int, _ *sigv4.Request, _ string, w *authz.Caller, alias string) error {
	return n.regions[region].control.Managed(context.Background(), w, alias)
}

// simulated is an iam.Keys. It is asked once the control planes are there: requests come after Start.
func (n *Node) simulated(ctx context.Context, ref keyid.Ref) (*iam.Key, error) {
	for _, at := range n.regions {
		if at.name == string(ref.Region) {
			return at.control.Simulated(ctx, ref)
		}
	}
	return nil, errors.New("node: a key of a Region of another server")
}

// publisher tells the data plane of this process what the control plane of a Region changed.
type publisher struct {
	data   *dataplane.Server
	region string
}

func (p publisher) KeyChanged(a keyid.Account, id keyid.ID) { p.data.KeyChanged(p.region, a, id) }

func (p publisher) AliasChanged(a keyid.Account, alias string) {
	p.data.AliasChanged(p.region, a, alias)
}

func (p publisher) GrantsChanged(a keyid.Account, id keyid.ID, grantee string) {
	p.data.GrantsChanged(p.region, a, id, grantee)
}

func (p publisher) GrantMade(a keyid.Account, id keyid.ID, grantee string, g *authz.Grant) {
	p.data.GrantMade(p.region, a, id, grantee, g)
}

func (p publisher) GrantRemoved(a keyid.Account, id keyid.ID, grantee, grant string) {
	p.data.GrantRemoved(p.region, a, id, grantee, grant)
}

func (p publisher) AccessKeyChanged(string) {} // iam.Table has it before it calls
func (p publisher) Spread()                 {} // there is one process
