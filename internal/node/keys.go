package node

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"time"

	"github.com/keyplane/keyplane/batch"
	"github.com/keyplane/keyplane/controlplane/keyring"
	"github.com/keyplane/keyplane/dataplane"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/softtoken"
	"github.com/keyplane/keyplane/internal/keyspec"
)

const (
	// keyRoundMax bounds the calls of one round of operations with keys. They run one after the other and end together, so few is better.
	keyRoundMax = 8
	// keyJobsMax bounds the jobs of one round: those that encrypt blocks under one key are one call.
	keyJobsMax = 64
	// keyTimeoutFactor is how much longer than a round of AES blocks one operation with a key may take.
	keyTimeoutFactor = 5
	// keyQueueFactor is how much longer than for a round of AES blocks an operation with a key may wait: an RSA signature takes a millisecond and more.
	keyQueueFactor = 20
)

// openKeys makes the key ring and says what it has found.
func (n *Node) openKeys(seal *sealer) error {
	cfg := &n.cfg
	ring := hsm.KeyRingConfig{
		Tokens: n.tokens, Timeout: keyTimeoutFactor * cfg.RoundTimeout, HandlesMax: cfg.KeyHandlesMax, Root: n.shards.Primary(), Logger: n.log,
	}
	if cfg.AllowSoftwareKeys {
		ring.Software = softwareKeys(seal)
	}
	var err error
	if n.keys, n.keyBatcher, err = newRing(cfg, ring); err != nil {
		return err
	}
	n.onClose(n.keys.Close)
	if n.keyBatcher != nil {
		n.onClose(n.keyBatcher.Close)
	}
	inHSM, inSoftware, nowhere := n.specs()
	n.log.Info("specs of private and HMAC keys", "hsm", strings.Join(inHSM, " "), "software", strings.Join(inSoftware, " "), "not_offered", strings.Join(nowhere, " "),
		"resident", n.resident())
	return nil
}

// newRing makes a key ring over the tokens of ring, with what joins its jobs into rounds; that is nil where no token offers keys.
func newRing(cfg *Config, ring hsm.KeyRingConfig) (*hsm.KeyRing, *batch.Batcher[hsm.KeyJob], error) {
	wait := keyQueueFactor * cfg.QueueTimeMax
	// As with rounds of AES blocks, the queue's estimate refuses; who was let in is served.
	ring.SessionsPerToken, ring.RoundMax, ring.QueueTimeMax, ring.Full = keySessionsPerToken(cfg, ring.Tokens), keyJobsMax, wait+ring.Timeout, batch.ErrFull
	var batcher *batch.Batcher[hsm.KeyJob]
	ring.Batch = func(shards int, run func(int, []*hsm.KeyJob)) (func(int, *hsm.KeyJob, time.Time) error, error) {
		var err error
		batcher, err = batch.NewJoining(batch.Config{Shards: shards, RoundMax: keyRoundMax, QueueMax: cfg.QueueMax, WaitMax: wait}, keyJobsMax, (*hsm.KeyJob).SameCall, run)
		if err != nil {
			return nil, err
		}
		return batcher.Do, nil
	}
	keys, err := hsm.NewKeyRing(ring)
	return keys, batcher, err
}

// ring is the key ring as the control plane has it.
func (n *Node) ring() keyring.Ring {
	ring := keyring.New(n.keys, dataplane.CodeOf)
	if n.cfg.ImportInsideOnly {
		ring = ring.InsideOnly()
	}
	return ring
}

// tellImportsAfter is how long a process has served before it asks what the HSM imports. Others that start with it, after all were down, need the processors first.
const tellImportsAfter = 10 * time.Second

// tellImportsLater is tellImports in tellImportsAfter.
func (n *Node) tellImportsLater(ctx context.Context) error {
	select {
	case <-time.After(tellImportsAfter):
		return n.tellImports(ctx)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// tellImports asks what the HSM imports before a client does, and says in the log by which way: where the material is in clear. That is half a second of a processor,
// most of it arithmetic on curves that proves what came out of the HSM: it begins once the process serves, and only where keys are imported.
func (n *Node) tellImports(ctx context.Context) error {
	for w := keyspec.WrapOAEP1; w <= keyspec.WrapRSAAES256; w++ {
		var inside, outside []string
		for _, s := range keyspec.Backing() {
			if ctx.Err() != nil {
				return nil
			}
			switch ok, in, err := n.keys.Imports(s, w); {
			case err != nil:
				n.log.Warn("it is not known yet what the HSM imports", "error", err)
				return nil
			case ok && in:
				inside = append(inside, s.String())
			case ok:
				outside = append(outside, s.String())
			}
		}
		n.log.Info("import of key material", "wrapping", w.String(), "clear_in_hsm_only", strings.Join(inside, " "), "clear_in_this_process", strings.Join(outside, " "),
			"import_inside_only", n.cfg.ImportInsideOnly)
	}
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

// resident says where symmetric keys are made that are keys of their own (docs/ciphertext.md §3, suite 0x02). AES256 is no spec of the API.
func (n *Node) resident() string {
	switch m, software := n.keys.Offers(keyspec.AES256); {
	case software:
		return "software"
	case m != 0:
		return "hsm"
	}
	return "not offered"
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
