package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/keyplane/keyplane/controlplane"
	"github.com/keyplane/keyplane/controlplane/replication"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/keyspec"
)

// ReplicationConfig is how multi-Region keys come to Regions of other processes. Between the Regions of one process they come without it.
type ReplicationConfig struct {
	// Listen is the address, host:port, at which other processes' Regions reach those of this one. Default none. Without TLS what goes over it can be read, but no
	// key material, which is wrapped by one HSM for the other; nor can it be changed, because every message is signed (docs/replication.md).
	Listen string `yaml:"listen"`
	// TLSCert and TLSKey are PEM files of that address's certificate chain and private key. Default none: plain HTTP.
	TLSCert string `yaml:"tls_cert"`
	TLSKey  string `yaml:"tls_key"`
	// CA is a PEM file of the certificates by which those of peers at https:// URLs are verified, and no others. Default none: those of the system.
	CA string `yaml:"ca"`
	// Peers are the Regions of other processes. Default none.
	Peers []ReplicationPeer `yaml:"peers"`
}

// ReplicationPeer is one Region of another process.
type ReplicationPeer struct {
	Region string `yaml:"region"`
	// URL is where that process listens for this, http:// or https://.
	URL string `yaml:"url"`
	// PublicKey is the Region's replication key, as that process logs it and keeps it in its data directory's replication-keys.
	PublicKey string `yaml:"public_key"`
}

func (c *ReplicationConfig) validate(own []string, bad func(string, ...any)) {
	if c.Listen != "" {
		if _, _, err := net.SplitHostPort(c.Listen); err != nil {
			bad("replication.listen: %q is not host:port", c.Listen)
		}
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		bad("replication.tls_cert and tls_key: both or neither")
	}
	seen := map[string]bool{}
	for i, p := range c.Peers {
		switch {
		case !validRegion(p.Region):
			bad("replication.peers[%d].region: %q is not a Region name like us-east-1", i, p.Region)
		case slices.Contains(own, p.Region):
			bad("replication.peers[%d].region: %s is a Region of this process", i, p.Region)
		case seen[p.Region]:
			bad("replication.peers[%d].region: %s is listed twice", i, p.Region)
		case keyid.Partition(p.Region) != keyid.Partition(own[0]):
			bad("replication.peers[%d].region: %s and %s are of different partitions", i, own[0], p.Region)
		}
		seen[p.Region] = true
		if u, err := url.Parse(p.URL); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			bad("replication.peers[%d].url: not http:// or https:// and where the other process listens", i)
		}
		if der, err := base64.StdEncoding.DecodeString(p.PublicKey); err != nil {
			bad("replication.peers[%d].public_key: not base64", i)
		} else if _, err := replication.ParsePublicKey(der); err != nil {
			bad("replication.peers[%d].public_key: %v", i, err)
		}
	}
}

// ReplicationKeysFile is the file in the data directory that has the replication public key of each Region, for other processes' configurations.
const ReplicationKeysFile = "replication-keys"

const (
	// peerTimeout bounds one exchange with another process, in which an HSM may make an RSA key.
	peerTimeout = 35 * time.Second
	// replicationPath is where messages are posted to.
	replicationPath = "/replication/1"
)

// replicationKey is a Region's key as the store keeps it (Pin): wrapped by the token, like a KMS key.
type replicationKey struct {
	Root     []byte `json:"root"`
	Software bool   `json:"software"`
	Wrapped  []byte `json:"wrapped"`
	Public   []byte `json:"public"` // DER
}

// openReplication gives each Region its key and its peers: nil where there are neither other Regions nor anything configured. The Servers come later; messages
// find them when they are there.
func (n *Node) openReplication(ctx context.Context) (map[string]*controlplane.Replication, error) {
	cfg := &n.cfg.Replication
	if len(n.regions) < 2 && cfg.Listen == "" && len(cfg.Peers) == 0 {
		return nil, nil
	}
	out, public := map[string]*controlplane.Replication{}, map[string][]byte{}
	var lines strings.Builder
	for _, at := range n.regions {
		k, err := n.replicationKey(ctx, at.name)
		if errors.Is(err, hsm.ErrNotOffered) && cfg.Listen == "" && len(cfg.Peers) == 0 {
			n.log.Warn("multi-Region keys do not come to other Regions: no token makes keys of the spec ECC_NIST_P384")
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("node: the replication key of Region %s: %w", at.name, err)
		}
		own, err := replication.ParsePublicKey(k.Public)
		if err != nil {
			return nil, err
		}
		out[at.name], public[at.name] = &controlplane.Replication{Sign: n.signReplication(k), Public: own}, k.Public
		text := base64.StdEncoding.EncodeToString(k.Public)
		n.log.Info("replication key", "region", at.name, "publicKey", text)
		fmt.Fprintln(&lines, at.name, text)
	}
	if err := os.WriteFile(filepath.Join(n.cfg.DataDir, ReplicationKeysFile), []byte(lines.String()), 0o644); err != nil {
		return nil, err
	}
	client := n.replicationTLS.client()
	n.onClose(client.CloseIdleConnections)
	for _, at := range n.regions {
		r := out[at.name]
		for _, other := range n.regions {
			if other == at {
				continue
			}
			key, err := replication.ParsePublicKey(public[other.name])
			if err != nil {
				return nil, err
			}
			r.Peers = append(r.Peers, replication.Peer{Region: other.name, Public: key, Local: true, Send: func(ctx context.Context, b []byte) ([]byte, error) {
				return other.control.Replicate(ctx, b)
			}})
		}
		for _, p := range cfg.Peers {
			der, err := base64.StdEncoding.DecodeString(p.PublicKey)
			if err != nil {
				return nil, err
			}
			key, err := replication.ParsePublicKey(der)
			if err != nil {
				return nil, err
			}
			r.Peers = append(r.Peers, replication.Peer{Region: p.Region, Public: key, Send: post(client, strings.TrimSuffix(p.URL, "/")+replicationPath)})
		}
	}
	return out, nil
}

// replicationKey is the key of a Region, made at the first start that needs it.
func (n *Node) replicationKey(ctx context.Context, region string) (*replicationKey, error) {
	name := "replication-key/" + region
	kept, err := n.store.Pinned(ctx, name)
	if err != nil {
		return nil, err
	}
	if kept == "" {
		k, public, err := n.keys.Generate(keyspec.P384)
		if err != nil {
			return nil, err
		}
		b, err := json.Marshal(&replicationKey{Root: k.Root[:], Software: k.Software, Wrapped: k.Wrapped, Public: public})
		if err != nil {
			return nil, err
		}
		if kept, err = n.store.Pin(ctx, name, string(b)); err != nil {
			return nil, err
		}
	}
	k := new(replicationKey)
	if err := json.Unmarshal([]byte(kept), k); err != nil || len(k.Root) != len(hsm.RootID{}) {
		return nil, errors.New("what the store keeps of it is damaged")
	}
	return k, nil
}

// signReplication signs digests with a Region's key, in the HSM.
func (n *Node) signReplication(k *replicationKey) replication.Sign {
	key := &hsm.Key{
		ID: sha256.Sum256(append([]byte("keyplane replication key v1"), k.Wrapped...)), Spec: keyspec.P384, Root: hsm.RootID(k.Root), Software: k.Software, Wrapped: k.Wrapped,
	}
	return func(digest []byte) ([]byte, error) {
		j := hsm.KeyJob{Key: key, Mechanism: hsm.SignECDSA, In: digest, Out: make([]byte, keyspec.P384.Info().Result)}
		if err := n.keys.Run(&j, time.Now()); err != nil {
			return nil, err
		}
		half := j.N / 2
		return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(j.Out[:half]), new(big.Int).SetBytes(j.Out[half:j.N])})
	}
}

// post sends envelopes to another process.
func post(client *http.Client, to string) func(context.Context, []byte) ([]byte, error) {
	return func(ctx context.Context, envelope []byte) ([]byte, error) {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(envelope))
		if err != nil {
			return nil, err
		}
		r.Header.Set("Content-Type", "application/octet-stream")
		resp, err := client.Do(r)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(io.LimitReader(resp.Body, replication.EnvelopeMax+1))
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("it answers with status %d", resp.StatusCode)
		}
		return b, err
	}
}
