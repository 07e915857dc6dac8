package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"sync/atomic"

	"github.com/keyplane/keyplane/controlplane"
	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/awsquery"
	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/planeca"
	"github.com/keyplane/keyplane/internal/planes"
	"github.com/keyplane/keyplane/internal/planetls"
	"github.com/keyplane/keyplane/internal/sigv4"
	"github.com/keyplane/keyplane/ratelimit"
)

// quotaLeases is the work of handing out shares of request quotas, as store.Own has it. No Region has a name with a dot.
const quotaLeases = "quota.leases"

// StartControl brings up a control plane of a cluster and returns when it serves. The configuration has its defaults and is valid (ValidateControl).
func StartControl(ctx context.Context, cfg Config, log *slog.Logger) (*Node, error) {
	return start(ctx, cfg, control, log, (*Node).startControl)
}

// StartData brings up a data node of a cluster and returns when it serves. The configuration has its defaults and is valid (ValidateData).
func StartData(ctx context.Context, cfg Config, log *slog.Logger) (*Node, error) {
	return start(ctx, cfg, data, log, (*Node).startDataNode)
}

func (n *Node) startControl(ctx context.Context) error {
	if err := n.prepare(); err != nil {
		return err
	}
	if err := n.identify(planetls.RoleControl); err != nil {
		return err
	}
	c := n.split
	renewer := new(lateHandler)
	if err := n.listenForPlanes(renewer); err != nil {
		return err
	}
	if err := n.findControl(); err != nil {
		return err
	}
	if err := n.openSharedStore(ctx); err != nil {
		return err
	}
	if err := n.openHSM(ctx); err != nil {
		return err
	}
	if err := n.store.Rebury(ctx); err != nil {
		return err
	}
	if err := n.openKeyRing(); err != nil {
		return err
	}
	if err := n.openPrincipals(ctx, n.spread); err != nil {
		return err
	}
	n.background("principals", n.principals.Run)
	n.phase("starting: custom key stores are not loaded")
	if err := n.openKeyStores(ctx, n.clock.Now); err != nil {
		return err
	}
	n.phase("starting: quotas are not loaded")
	if err := n.openRegions(ctx, n.spread, n.newLeaser()); err != nil {
		return err
	}
	if err := n.openControl(ctx, c.lastUses, func(string) controlplane.Publisher { return waiting{n} }); err != nil {
		return err
	}
	if err := n.follow(ctx); err != nil {
		return err
	}
	if err := n.ensureAdminOnce(ctx); err != nil {
		return err
	}
	n.background("quota leases", c.leases.Run)
	n.background("shares of quotas", c.leaser.Run)
	if n.records != nil {
		n.saveLastUses(c.lastUses.Index)
	}
	if err := n.serveReplication(); err != nil {
		return err
	}
	for _, at := range n.regions {
		n.background("the worker of "+at.name, at.control.Run)
	}
	if err := n.openCA(renewer); err != nil {
		return err
	}
	if err := n.serveStats(n.cfg.StatsSocket); err != nil {
		return err
	}
	c.server.Start()
	n.state.Store(nil)
	n.background("asking what the HSM imports", n.tellImportsLater)
	return nil
}

func (n *Node) startDataNode(ctx context.Context) error {
	if err := n.prepare(); err != nil {
		return err
	}
	if err := n.identify(planetls.RoleData); err != nil {
		return err
	}
	c := n.split
	if err := n.listenForClients(c.lease); err != nil {
		return err
	}
	if err := n.findControl(); err != nil {
		return err
	}
	if err := n.openSharedStore(ctx); err != nil {
		return err
	}
	if err := n.openHSM(ctx); err != nil {
		return err
	}
	if err := n.openKeyRing(); err != nil {
		return err
	}
	if err := n.openPrincipals(ctx, nil); err != nil {
		return err
	}
	n.background("principals", n.principals.Run)
	n.phase("starting: custom key stores are not loaded")
	if err := n.openKeyStores(ctx, n.clock.Now); err != nil {
		return err
	}
	n.phase("starting: quotas are not loaded")
	if err := n.openRegions(ctx, nil, n.newLeaser()); err != nil {
		return err
	}
	if err := n.follow(ctx); err != nil {
		return err
	}
	n.background("shares of quotas", c.leaser.Run)
	if n.lastUses != nil {
		n.background("telling last uses", func(ctx context.Context) error { return c.client.TellUses(ctx, n.lastUses) })
	}
	if err := n.startData(n.askControl, n.askManaged); err != nil {
		return err
	}
	if err := n.serveXKS(ctx); err != nil {
		return err
	}
	if err := n.renewCertificate(nil); err != nil {
		return err
	}
	if err := n.serveStats(n.cfg.StatsSocket); err != nil {
		return err
	}
	n.state.Store(nil)
	return nil
}

// listenForPlanes makes the listener of a control plane, which answers probes only until it is started.
func (n *Node) listenForPlanes(renew http.Handler) error {
	c := n.split
	var err error
	if c.lastUses, err = planes.OpenLastUses(filepath.Join(n.cfg.DataDir, "lastuse-nodes")); err != nil {
		n.log.Warn("the last uses of keys at nodes that are gone are not known any more", "error", err)
	}
	if c.leases, err = planes.NewLeases(planes.LeasesConfig{
		Own:   func(ctx context.Context) (context.Context, func(), error) { return n.store.Own(ctx, quotaLeases) },
		Nodes: n.memberNames, Rate: n.rateOf, Logger: n.log,
	}); err != nil {
		return err
	}
	tlsConfig, err := c.source.Server(planetls.Roles...)
	if err != nil {
		return err
	}
	if c.server, err = planes.NewServer(planes.ServerConfig{
		TLS: tlsConfig, Ready: n.ready, Takes: func() bool { return n.state.Load() == nil && c.lease.Valid() },
		Request: n.answerRequest, Managed: n.answerManaged, Member: n.isMember, Applied: func(incarnation string, revision int64) { n.barrier.Tell(incarnation, revision) },
		Settle: func(ctx context.Context, revision int64) { n.barrier.Wait(ctx, revision) },
		Leases: c.leases, Uses: c.lastUses.Take, Revoked: c.revoked, Renew: renew, Logger: n.log,
	}); err != nil {
		return err
	}
	if n.ln, err = net.Listen("tcp", n.cfg.Planes.Listen); err != nil {
		return errors.Join(err, store.InUse(n.cfg.DataDir))
	}
	go func() { n.served <- c.server.Serve(&handshakeLimit{Listener: n.ln, limit: handshakes}) }()
	n.onClose(func() {
		ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
		defer cancel()
		n.logIf("draining", c.server.Shutdown(ctx))
		err := <-n.served
		n.served <- err
		n.logIf("serving", err)
	})
	return nil
}

// ensureAdminOnce is ensureAdmin where several control planes start: the first one makes credentials, in its data directory.
func (n *Node) ensureAdminOnce(ctx context.Context) error {
	if !adminInEnvironment() {
		first, err := n.store.Pin(ctx, "credentials-of", n.split.id)
		if err != nil || first != n.split.id {
			return err
		}
	}
	return ensureAdmin(ctx, n.principals, n.store, n.account, n.cfg.DataDir)
}

// openCA has the control plane renew certificates, if one of its tokens holds the key of the CA.
func (n *Node) openCA(at *lateHandler) error {
	ca, err := planeca.Open(n.tokens, n.cfg.Planes.CA)
	if errors.Is(err, planeca.ErrNoKey) {
		ca, err = nil, nil
		n.log.Info("certificates are not renewed here: no token holds the key of the CA", "ca", n.cfg.Planes.CA)
	}
	if err != nil {
		return err
	}
	if ca != nil {
		n.onClose(func() { n.logIf("closing the CA", ca.Close()) })
	}
	handler := planeca.RenewHandler(ca, planeca.RenewOptions{Revoked: n.split.revoked, Logger: n.log})
	at.handler.Store(&handler)
	return n.renewCertificate(ca)
}

// isMember says whether a stream is told by whom it says.
func (n *Node) isMember(ctx context.Context, role, id, incarnation string) error {
	members, _, err := n.store.Members(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(members, func(m store.Member) bool { return m.Incarnation == incarnation && m.Role == role && m.ID == id }) {
		return errors.New("node: no such member")
	}
	return nil
}

// rateOf is planes.LeasesConfig.Rate.
func (n *Node) rateOf(region string, a keyid.Account, p ratelimit.Pool) (ratelimit.Rate, bool) {
	for _, at := range n.regions {
		if at.name == region {
			return at.limits.Rate(a, p), true
		}
	}
	return 0, false
}

// answerRequest is planes.ServerConfig.Request.
func (n *Node) answerRequest(ctx context.Context, node string, r *planes.Request) (status int, body []byte) {
	for _, at := range n.regions {
		if at.name == r.Region {
			resp := at.control.Serve(ctx, &controlplane.Request{
				Signed: r.Signed, RequestID: r.RequestID, SourceIP: r.SourceIP, SecureTransport: r.SecureTransport, TLS: r.TLS,
			})
			return resp.Status, resp.Body
		}
	}
	n.log.Error("a data node serves a Region that this control plane does not: they need the same Regions", "node", node, "region", r.Region)
	return errorReply(r.Signed, r.RequestID, kmsapi.KMSInternal)
}

// answerManaged is planes.ServerConfig.Managed.
func (n *Node) answerManaged(ctx context.Context, _ string, r *planes.Request, alias string) error {
	for _, at := range n.regions {
		if at.name == r.Region {
			return at.control.ManagedFor(ctx, r.Signed, alias)
		}
	}
	return fmt.Errorf("node: there is no Region %q here", r.Region)
}

// askControl is dataplane.Parts.Control: a control plane answers. Where none does the data plane refuses the request, and records that.
func (n *Node) askControl(region int, signed *sigv4.Request, requestID, sourceIP string, tls *cloudtrail.TLSDetails) (status int, body []byte) {
	r := &planes.Request{Region: n.regions[region].name, Signed: signed, RequestID: requestID, SourceIP: sourceIP, SecureTransport: n.cfg.TLSCert != "", TLS: tls}
	status, body, err := n.split.client.Request(context.Background(), r, planes.ReadOnly(r))
	if err != nil {
		n.log.Warn("a request to the control plane is not answered", "requestId", requestID, "error", err)
		return 0, nil
	}
	return status, body
}

// askManaged is dataplane.Parts.Managed.
func (n *Node) askManaged(region int, signed *sigv4.Request, requestID string, _ *authz.Caller, alias string) error {
	return n.split.client.Managed(context.Background(), &planes.Request{Region: n.regions[region].name, Signed: signed, RequestID: requestID}, alias)
}

// errorReply is an exception in the form of the service that the request is for.
func errorReply(signed *sigv4.Request, requestID string, code kmsapi.Code) (status int, body []byte) {
	for i := range signed.Headers {
		if h := &signed.Headers[i]; string(h.Name) == "content-type" && len(h.Value) >= len(formType) && string(h.Value[:len(formType)]) == formType {
			e := awsquery.FromKMS(kmsapi.E(code))
			return e.Status, awsquery.AppendError(nil, e, requestID)
		}
	}
	return code.Status(), kmsapi.AppendErrorBody(nil, code, []byte(code.Text()))
}

// formType is the content type of requests to IAM and STS.
const formType = "application/x-www-form-urlencoded"

// lateHandler is a handler that is there later.
type lateHandler struct{ handler atomic.Pointer[http.Handler] }

func (l *lateHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := l.handler.Load()
	if h == nil {
		http.Error(w, "starting", http.StatusServiceUnavailable)
		return
	}
	(*h).ServeHTTP(w, r)
}
