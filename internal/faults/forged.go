package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/keyplane/keyplane/internal/cluster"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/planes"
	"github.com/keyplane/keyplane/internal/planetls"
	"github.com/keyplane/keyplane/internal/sigv4"
)

// forge sends what the administrator has not signed: to a node, and as a node that has fallen into wrong hands, with its certificate, to a control plane.
func (r *run) forge(ctx context.Context, c *client) error {
	var k keyReply
	if err := r.must(c, "CreateKey", m{}, &k); err != nil {
		return err
	}
	forger, err := newIdentity(r.AccessKeyID, "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
	if err != nil {
		return err
	}
	direct := r.roaming(forger, 0, trialTimeout)
	defer direct.close()
	if o := direct.do("DisableKey", m{"KeyId": k.KeyMetadata.KeyId}, nil); o.ok() {
		r.found(forgedWorked, "a node has done a DisableKey that nobody signed: %v", &o)
	}
	if r.split {
		if err := r.forgeAsNode(ctx, forger, k.KeyMetadata.KeyId); err != nil {
			return err
		}
	}
	var now keyReply
	if err := r.must(c, "DescribeKey", m{"KeyId": k.KeyMetadata.KeyId}, &now); err != nil {
		return err
	}
	if now.KeyMetadata.KeyState != enabled {
		r.found(forgedWorked, "a key is %s after requests that nobody signed", now.KeyMetadata.KeyState)
	}
	return nil
}

func (r *run) forgeAsNode(ctx context.Context, forger identity, key string) error {
	dir := r.Certificates(r.Datas[0].Name)
	tls, err := planetls.Client(planetls.Files{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem"), CA: filepath.Join(dir, "ca.pem")}, planetls.RoleControl)
	if err != nil {
		return err
	}
	var urls []string
	for _, n := range r.Controls {
		urls = append(urls, "https://"+n.Endpoint)
	}
	node, err := planes.NewClient(planes.ClientConfig{URLs: urls, TLS: tls})
	if err != nil {
		return err
	}
	defer node.Close()
	body, err := json.Marshal(m{"KeyId": key})
	if err != nil {
		return err
	}
	signed := &sigv4.Request{Method: []byte("POST"), Path: []byte("/"), Body: body, Headers: []sigv4.Header{
		{Name: []byte("content-type"), Value: []byte(kmsapi.ContentType)}, {Name: []byte("host"), Value: []byte("kms.example")},
		{Name: []byte("x-amz-date"), Value: sigv4.AppendDate(nil, date())}, {Name: []byte("x-amz-target"), Value: []byte(kmsapi.TargetPrefix + "DisableKey")},
	}}
	var scratch sigv4.Scratch
	auth, err := sigv4.AppendAuthorization(nil, forger.key, cluster.Region, kmsapi.SigningName, signed, &scratch)
	if err != nil {
		return err
	}
	signed.Headers = append(signed.Headers, sigv4.Header{Name: []byte("authorization"), Value: auth})
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	status, answer, err := node.Request(ctx, &planes.Request{Region: cluster.Region, Signed: signed, RequestID: "00000000-0000-4000-8000-000000000000", SourceIP: "127.0.0.1"}, false)
	switch {
	case err != nil:
		return fmt.Errorf("a request as a node: %w", err)
	case status == 200:
		r.found(forgedWorked, "a control plane has done a DisableKey that nobody signed: %s", answer)
	case status >= 500:
		return errors.Join(errors.New("a request as a node"), fmt.Errorf("%d %s", status, answer))
	}
	return nil
}
