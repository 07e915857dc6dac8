package loadtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kms"
)

// setupAttempts is how often the SDK tries a set-up call: creating many keys on AWS meets its request quotas.
const setupAttempts = 8

// site is the endpoints of a run and how to speak to them.
type site struct {
	dialers     []*dialer // one per endpoint
	credentials aws.CredentialsProvider
	api         *kms.Client // for set-up and clean-up, at the first endpoint that answers
	transport   *http.Transport
}

func (s *site) close() { s.transport.CloseIdleConnections() }

// connectSite resolves Region, endpoint and credentials through the AWS chain and writes into cfg what was left open there.
// It asks for the credentials at once, so that missing ones are the first thing a user hears of.
func connectSite(ctx context.Context, cfg *Config) (*site, error) {
	var options []func(*awsconfig.LoadOptions) error
	if cfg.Region != "" {
		options = append(options, awsconfig.WithRegion(cfg.Region))
	}
	chain, err := awsconfig.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("AWS configuration: %w", err)
	}
	if err := resolve(cfg, &chain); err != nil {
		return nil, err
	}
	chain.Region = cfg.Region
	if _, err := chain.Credentials.Retrieve(ctx); err != nil {
		return nil, fmt.Errorf("AWS credentials: %w", err)
	}
	s := &site{credentials: chain.Credentials}
	for _, url := range cfg.Endpoints {
		to, err := parseEndpoint(url)
		if err != nil {
			return nil, err
		}
		d, err := newDialer(to, cfg.CAFile, cfg.Timeout)
		if err != nil {
			return nil, err
		}
		s.dialers = append(s.dialers, d)
	}
	first, err := s.reachable(ctx)
	if err != nil {
		return nil, err
	}
	s.transport = &http.Transport{ // no proxy: requests go to the endpoints and nowhere else
		TLSClientConfig:     first.roots.Clone(),
		MaxIdleConnsPerHost: setupParallel,
		IdleConnTimeout:     30 * time.Second,
	}
	s.api = kms.NewFromConfig(chain, func(o *kms.Options) {
		o.BaseEndpoint = aws.String(first.to.url)
		o.RetryMaxAttempts = setupAttempts
		o.HTTPClient = &http.Client{
			Transport:     s.transport,
			Timeout:       cfg.Timeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	})
	return s, nil
}

// reachable is the first endpoint that takes a connection. The SDK would repeat its call to a wrong address for half a minute.
func (s *site) reachable(ctx context.Context) (*dialer, error) {
	failed := make([]error, len(s.dialers))
	_ = parallel(ctx, len(failed), func(ctx context.Context, i int) error {
		conn, err := s.dialers[i].dial(ctx)
		if err != nil {
			failed[i] = fmt.Errorf("cannot connect to %s: %w", s.dialers[i].to.url, err)
			return nil
		}
		conn.Close()
		return nil
	})
	if err := ctx.Err(); err != nil { // then some were not asked
		return nil, err
	}
	if i := slices.Index(failed, nil); i >= 0 {
		return s.dialers[i], nil
	}
	return nil, errors.Join(failed...)
}

// resolve fills in Region, Endpoints and CAFile.
func resolve(cfg *Config, chain *aws.Config) error {
	if len(cfg.Endpoints) == 0 {
		cfg.Endpoints = []string{""}
	}
	first := cmp.Or(cfg.Endpoints[0], os.Getenv("AWS_ENDPOINT_URL_KMS"), os.Getenv("AWS_ENDPOINT_URL"), aws.ToString(chain.BaseEndpoint))
	cfg.Region = cmp.Or(cfg.Region, chain.Region)
	cfg.CAFile = cmp.Or(cfg.CAFile, os.Getenv("AWS_CA_BUNDLE"))
	if cfg.Region == "" {
		if first == "" {
			return errors.New("no endpoint and no Region: name one with --endpoint or --region")
		}
		cfg.Region = "us-east-1" // keyplane's own default
	}
	cfg.Endpoints = append([]string{cmp.Or(first, regionalEndpoint(cfg.Region))}, cfg.Endpoints[1:]...)
	return nil
}
