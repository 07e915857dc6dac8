package node

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"time"

	"github.com/keyplane/keyplane/batch"
	"github.com/keyplane/keyplane/dataplane"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/softtoken"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/snapshot"
)

const (
	// keyRoundMax bounds the jobs of one round of operations with keys. They run one after the other and end together, so few is better.
	keyRoundMax = 8
	// keyTimeoutFactor is how much longer than a round of AES blocks one operation with a key may take.
	keyTimeoutFactor = 5
	// keyQueueFactor is how much longer than for a round of AES blocks an operation with a key may wait: an RSA signature takes a millisecond and more.
	keyQueueFactor = 20
)

// openKeys makes the key ring and says what it has found.
func (n *Node) openKeys(seal *sealer) error {
	cfg := &n.cfg
	wait := keyQueueFactor * cfg.QueueTimeMax
	// As with rounds of AES blocks, the queue's estimate refuses; who was let in is served.
	ring := hsm.KeyRingConfig{
		Tokens: n.tokens, SessionsPerToken: keySessionsPerToken(cfg, n.tokens), RoundMax: keyRoundMax, Timeout: keyTimeoutFactor * cfg.RoundTimeout,
		HandlesMax: cfg.KeyHandlesMax, QueueTimeMax: wait + keyTimeoutFactor*cfg.RoundTimeout, Full: batch.ErrFull, Root: n.shards.Primary(), Logger: n.log,
		Batch: func(shards int, run func(int, []*hsm.KeyJob)) (func(int, *hsm.KeyJob, time.Time) error, error) {
			var err error
			n.keyBatcher, err = batch.New(batch.Config{Shards: shards, RoundMax: keyRoundMax, QueueMax: cfg.QueueMax, WaitMax: wait}, run)
			if err != nil {
				return nil, err
			}
			return n.keyBatcher.Do, nil
		},
	}
	if cfg.AllowSoftwareKeys {
		ring.Software = softwareKeys(seal)
	}
	var err error
	if n.keys, err = hsm.NewKeyRing(ring); err != nil {
		return err
	}
	n.onClose(n.keys.Close)
	if n.keyBatcher != nil {
		n.onClose(n.keyBatcher.Close)
	}
	inHSM, inSoftware, nowhere := n.specs()
	n.log.Info("specs of private and HMAC keys", "hsm", strings.Join(inHSM, " "), "software", strings.Join(inSoftware, " "), "not_offered", strings.Join(nowhere, " "))
	return nil
}

// keySessionsPerToken is the setting, or its default.
func keySessionsPerToken(c *Config, tokens []hsm.Token) int {
	if c.KeySessionsPerToken > 0 {
		return c.KeySessionsPerToken
	}
	for _, t := range tokens {
		if !t.Info().Software {
			return 4
		}
	}
	return min(max(runtime.NumCPU(), 2), 8)
}

// specs says where keys of each spec are made.
func (n *Node) specs() (inHSM, inSoftware, nowhere []string) {
	for _, s := range keyspec.All() {
		switch m, software := n.keys.Offers(s); {
		case software:
			inSoftware = append(inSoftware, s.String())
		case m != 0:
			inHSM = append(inHSM, s.String())
		default:
			nowhere = append(nowhere, s.String())
		}
	}
	return inHSM, inSoftware, nowhere
}

// SoftwareSpecs are the specs whose keys are made outside of the HSM.
func (n *Node) SoftwareSpecs() []string {
	_, specs, _ := n.specs()
	return specs
}

// softwareKeyLabel and the name of the spec are what a software key is sealed to.
const softwareKeyLabel = "keyplane software key v1 "

// softwareKeys are keys in this process, sealed like access key secrets.
func softwareKeys(seal *sealer) softtoken.Keys {
	aad := func(s keyspec.Spec) []byte { return []byte(softwareKeyLabel + s.String()) }
	return softtoken.Keys{
		Seal: func(s keyspec.Spec, private []byte) ([]byte, error) { return seal.Seal(private, aad(s)) },
		Open: func(s keyspec.Spec, sealed []byte) ([]byte, error) {
			private, err := seal.Open(sealed, aad(s))
			if errors.Is(err, errSealed) {
				err = softtoken.ErrSealed
			}
			return private, err
		},
	}
}

// newKey makes a key for the control plane. An error wraps the exception that the data plane would answer.
func (n *Node) newKey(s keyspec.Spec) (*snapshot.PrivateKey, error) {
	k, public, err := n.keys.Generate(s)
	if errors.Is(err, hsm.ErrNotOffered) {
		return nil, kmsapi.New(kmsapi.UnsupportedOperation, fmt.Sprintf("The HSM of this service does not make keys of the spec %s.", s))
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", kmsapi.E(dataplane.CodeOf(err)), err)
	}
	return &snapshot.PrivateKey{Root: k.Root, Software: k.Software, Wrapped: k.Wrapped, Public: public}, nil
}
