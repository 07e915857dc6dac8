package node

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/keyplane/keyplane/batch"
	"github.com/keyplane/keyplane/controlplane/keyring"
	"github.com/keyplane/keyplane/dataplane"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/pubkey"
)

// onlyHMAC is a token that offers HMAC keys.
type onlyHMAC struct{ hsm.KeyToken }

func (o onlyHMAC) Keys(s keyspec.Spec) hsm.Mechanisms {
	if s.Info().Family != keyspec.HMAC {
		return 0
	}
	return o.KeyToken.Keys(s)
}

// ringOn is a node that is nothing but its key ring.
func ringOn(t *testing.T, allow bool, tokens ...hsm.Token) (n *Node, log *bytes.Buffer) {
	t.Helper()
	log = new(bytes.Buffer)
	n = &Node{cfg: testConfig(t), log: slog.New(slog.NewTextHandler(log, nil)), tokens: tokens}
	n.cfg.AllowSoftwareKeys, n.cfg.QueueTimeMax, n.cfg.RoundTimeout = allow, 10*time.Second, 10*time.Second
	shards, err := hsm.NewShards(hsm.ShardsConfig{Tokens: tokens, SessionsPerToken: 1, RoundMax: 8})
	if err != nil {
		t.Fatal(err)
	}
	n.shards = shards
	t.Cleanup(func() {
		for i := len(n.undo) - 1; i >= 0; i-- {
			n.undo[i]()
		}
		shards.Close()
	})
	if err := n.openKeys(sealerOn(t, tokens...)); err != nil {
		t.Fatal(err)
	}
	return n, log
}

// use makes a key as the control plane does, and does with it what can be done.
func use(t *testing.T, n *Node, s keyspec.Spec) *hsm.Key {
	t.Helper()
	p, err := keyring.New(n.keys, dataplane.CodeOf).New(s)
	if err != nil {
		t.Fatal(err)
	}
	var public *pubkey.Key
	if s.Info().Public > 0 {
		if public, err = pubkey.Parse(s, p.Public); err != nil {
			t.Fatal(err)
		}
	}
	k := &hsm.Key{ID: [32]byte{byte(s)}, Spec: s, Root: p.Root, Software: p.Software, Wrapped: p.Wrapped}
	offers, software := n.keys.Offers(s)
	if offers != hsm.MechanismsOf(s) || software != p.Software || p.ID != [32]byte{} {
		t.Errorf("%v: offers %b, software %t, made %+v", s, offers, software, p)
	}
	for m := hsm.NoMechanism + 1; m < 32; m++ {
		if !offers.Has(m) {
			continue
		}
		if err := hsmtest.CheckKey(s, m, public, func(in, out []byte) (int, error) {
			j := &hsm.KeyJob{Key: k, Mechanism: m, In: in, Out: out}
			err := n.keys.Run(j, time.Now())
			return j.N, err
		}); err != nil {
			t.Errorf("%v, mechanism %d: %v", s, m, err)
		}
	}
	return k
}

// TestKeysOfTheSoftToken: every spec, none of them in software in the sense of the setting.
func TestKeysOfTheSoftToken(t *testing.T) {
	n, log := ringOn(t, false, tokenA)
	for _, s := range []keyspec.Spec{keyspec.RSA2048, keyspec.P384, keyspec.Secp256k1, keyspec.Ed25519, keyspec.HMAC224, keyspec.MLDSA65, keyspec.MLKEM768, keyspec.AES256} {
		if k := use(t, n, s); k.Software {
			t.Errorf("%v is in software", s)
		}
	}
	if len(n.SoftwareSpecs()) > 0 || !strings.Contains(log.String(), `software="" not_offered="" resident=hsm`) || strings.Contains(log.String(), "AES_256") {
		t.Errorf("%v; %s", n.SoftwareSpecs(), log)
	}
}

func TestSoftwareKeysAreAskedFor(t *testing.T) {
	token := onlyHMAC{tokenA}
	n, log := ringOn(t, false, token)
	use(t, n, keyspec.HMAC256)
	var e *kmsapi.Error
	if _, err := keyring.New(n.keys, dataplane.CodeOf).New(keyspec.P256); !errors.As(err, &e) || e.Code != kmsapi.UnsupportedOperation {
		t.Errorf("without leave: %v", err)
	}
	if len(n.SoftwareSpecs()) > 0 || !strings.Contains(log.String(), "hsm=\"HMAC_224 HMAC_256 HMAC_384 HMAC_512\"") {
		t.Errorf("%v; %s", n.SoftwareSpecs(), log)
	}

	allowed, _ := ringOn(t, true, token)
	if k := use(t, allowed, keyspec.HMAC256); k.Software {
		t.Error("in software although the token offers it")
	}
	var k *hsm.Key
	for _, s := range []keyspec.Spec{keyspec.RSA4096, keyspec.P521, keyspec.Secp256k1, keyspec.Ed25519, keyspec.MLDSA87, keyspec.MLKEM1024, keyspec.P256} {
		if k = use(t, allowed, s); !k.Software || k.Root != allowed.shards.Primary() {
			t.Errorf("%v: %+v", s, k)
		}
	}
	if got := strings.Join(allowed.SoftwareSpecs(), " "); !strings.HasPrefix(got, "RSA_2048 ") || strings.Contains(got, "HMAC") {
		t.Errorf("software: %s", got)
	}

	sign := func(n *Node, k *hsm.Key) error {
		return n.keys.Run(&hsm.KeyJob{Key: k, Mechanism: hsm.SignECDSA, In: make([]byte, 32), Out: make([]byte, 96)}, time.Now())
	}
	// After a restart with another leave, in another process with the same token, with another token, as another spec, and damaged.
	if err := sign(n, k); hsm.Outcome(err) != hsm.Unavailable {
		t.Errorf("without leave: %v", err)
	}
	again, _ := ringOn(t, true, token)
	if err := sign(again, k); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	other, log := ringOn(t, true, onlyHMAC{tokenB})
	if err := sign(other, k); hsm.Outcome(err) != hsm.Unavailable || !strings.Contains(log.String(), "does not unseal") {
		t.Errorf("with another token: %v; %s", err, log)
	}
	spec := *k
	spec.Spec = keyspec.P384
	if err := sign(again, &spec); hsm.Outcome(err) != hsm.Unavailable {
		t.Errorf("as another spec: %v", err)
	}
	damaged := *k
	damaged.ID, damaged.Wrapped = [32]byte{200}, bytes.Clone(k.Wrapped)
	damaged.Wrapped[len(damaged.Wrapped)-1] ^= 1
	if err := sign(again, &damaged); hsm.Outcome(err) != hsm.Unavailable {
		t.Errorf("damaged: %v", err)
	}
}

// TestNewKeyErrors: the control plane learns what the data plane would tell its client.
func TestNewKeyErrors(t *testing.T) {
	f := hsmtest.NewFaulty(tokenA)
	n, _ := ringOn(t, false, f)
	for _, c := range []struct {
		fault hsmtest.Fault
		want  kmsapi.Code
	}{
		{hsmtest.Fault{CKR: hsm.CKR_TEMPLATE_INCONSISTENT}, kmsapi.KMSInternal},
		{hsmtest.Fault{Err: hsm.ErrKeyRefused}, kmsapi.KMSInternal},
		{hsmtest.Fault{CKR: hsm.CKR_DEVICE_MEMORY, Times: 2}, kmsapi.Throttling},
		{hsmtest.Fault{CKR: hsm.CKR_DEVICE_REMOVED}, kmsapi.KeyUnavailable},
	} {
		c.fault.Op = hsmtest.Generate
		f.Add(c.fault)
		var e *kmsapi.Error
		if _, err := keyring.New(n.keys, dataplane.CodeOf).New(keyspec.HMAC256); !errors.As(err, &e) || e.Code != c.want {
			t.Errorf("%v: %v", c.fault.CKR, err)
		}
		f.Clear()
	}
}

// TestImportInsideOnly: where it is set nothing comes in that is in clear in this process, also with a token of a time when it was not; the log says what does.
func TestImportInsideOnly(t *testing.T) {
	n, log := ringOn(t, false, tokenA)
	p, err := n.ring().New(keyspec.RSA2048)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.ParsePKIXPublicKey(p.Public)
	if err != nil {
		t.Fatal(err)
	}
	material := hsmtest.WrapMaterial(t, keyspec.WrapOAEP256, public.(*rsa.PublicKey), make([]byte, 32))
	if ok, err := n.ring().Imports(keyspec.AES256, keyspec.WrapOAEP256); !ok || err != nil {
		t.Errorf("%t, %v", ok, err)
	}
	if _, err := n.ring().Import(keyspec.AES256, keyspec.RSA2048, p, keyspec.WrapOAEP256, material); err != nil {
		t.Error(err)
	}
	n.cfg.ImportInsideOnly = true
	if ok, err := n.ring().Imports(keyspec.AES256, keyspec.WrapOAEP256); ok || err != nil {
		t.Errorf("inside only: %t, %v", ok, err)
	}
	var e *kmsapi.Error
	if _, err := n.ring().Import(keyspec.AES256, keyspec.RSA2048, p, keyspec.WrapOAEP256, material); !errors.As(err, &e) || e.Code != kmsapi.UnsupportedOperation {
		t.Errorf("inside only: %v", err)
	}
	if err := n.tellImports(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := log.String(); !strings.Contains(s, `wrapping=RSAES_OAEP_SHA_256 clear_in_hsm_only="" clear_in_this_process="`) || !strings.Contains(s, "import_inside_only=true") {
		t.Error(s)
	}
}

func TestKeysOfANode(t *testing.T) {
	cfg := testConfig(t)
	cfg.AllowSoftwareKeys = true
	n, err := Start(t.Context(), cfg, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	k := use(t, n, keyspec.Ed25519)
	st := n.Stats()
	if st.Keys.Generated != 1 || st.Keys.Handles[0].Loads != 1 || st.KeyBatch.Jobs != 2 || st.Keys.Offers["ECC_NIST_EDWARDS25519"] != "hsm" {
		t.Errorf("%+v, %+v", st.Keys, st.KeyBatch)
	}
	n.Close()
	if err := n.keys.Run(&hsm.KeyJob{Key: k, Mechanism: hsm.SignEd25519, Out: make([]byte, 64)}, time.Now()); err != batch.ErrClosed && hsm.Outcome(err) != hsm.Unavailable {
		t.Errorf("after Close: %v", err)
	}
}
