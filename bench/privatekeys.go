package main

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest/slowhsm"
	"github.com/keyplane/keyplane/hsm/p11"
	"github.com/keyplane/keyplane/internal/keyspec"
)

const (
	moduleName   = "the module alone"
	ofModuleMin  = 0.85
	warmName     = "SoftHSM, key at hand"
	coldName     = "SoftHSM, key unwrapped for each request"
	keySessions  = 2 // PKCS#11 sessions of keys, of keyplane and of the loop around the module alone
	coldKeys     = 64
	rawMessage   = "0123456789abcdef0123456789abcdef"
	privateTable = "private"
)

// privateKinds are the operations with private and secret keys that are measured.
var privateKinds = []struct {
	name, op  string
	spec      keyspec.Spec
	usage     keyspec.Usage
	algorithm keyspec.Algorithm
	mechanism hsm.Mechanism
}{
	{"ECDSA P-256", "Sign", keyspec.P256, keyspec.SignVerify, keyspec.ECDSASHA256, hsm.SignECDSA},
	{"RSA-2048 PSS", "Sign", keyspec.RSA2048, keyspec.SignVerify, keyspec.PSSSHA256, hsm.SignPSS256},
	{"Ed25519", "Sign", keyspec.Ed25519, keyspec.SignVerify, keyspec.Ed25519SHA512, hsm.SignEd25519},
	{"HMAC-256", "GenerateMac", keyspec.HMAC256, keyspec.GenerateVerifyMAC, keyspec.HMACSHA256, hsm.MAC},
	{"RSA-2048 OAEP SHA-1", "Decrypt", keyspec.RSA2048, keyspec.EncryptDecrypt, keyspec.OAEPSHA1, hsm.DecryptOAEP1},
}

// privateTable compares the operations with private and secret keys with what the module does when nothing but a loop calls it, on as many
// sessions: on SoftHSM, where both share the processors with the client, and with 1 ms added to each call, an HSM at the far end of a network.
// Then a key that is at hand with one that has to be unwrapped for each request.
func (p *plan) privateKeysTable() error {
	if err := os.Setenv("SOFTHSM2_CONF", filepath.Join(p.tmp, "softhsm", "softhsm2.conf")); err != nil { // this process opens the module too
		return err
	}
	slow, err := p.slowHSM(privateTable, slowhsm.Settings{})
	if err != nil {
		return err
	}
	config, err := p.config(privateTable, fmt.Sprintf("key_sessions_per_token: %d\nallow_software_keys: true\nquotas: off\n", keySessions))
	if err != nil {
		return err
	}
	server, err := startThrough(slow, func() (*target, error) {
		return startKeyplane(hsmName, p.keyplane, filepath.Join(p.tmp, "hsm-"+privateTable), slow.URI(), config...)
	})
	if err != nil {
		return err
	}
	defer server.stop()
	var cells []cell
	for _, latency := range []time.Duration{0, slowLatency} {
		suffix := ""
		if latency > 0 {
			suffix = ", 1 ms a call"
		}
		for _, k := range privateKinds {
			t := *server
			if t.bodies, err = t.privateBody(k.op, k.spec, k.usage, k.algorithm); err != nil {
				return fmt.Errorf("%s: %w", k.name, err)
			}
			set := func() error { return slow.Set(slowhsm.Settings{Latency: latency}) }
			cells = append(cells, cell{k.op, k.name, moduleName + suffix, func(d time.Duration) (measurement, error) {
				if err := set(); err != nil {
					return measurement{}, err
				}
				rate, err := startThrough(slow, func() (float64, error) { return p11.SpeedOf(slow.URI(), k.spec, k.mechanism, keySessions, d) })
				return measurement{PerSecond: rate}, err
			}}, cell{k.op, k.name, hsmName + suffix, func(d time.Duration) (measurement, error) {
				if err := set(); err != nil {
					return measurement{}, err
				}
				return t.measure(k.op, p.conns, d, p.tmp)
			}})
		}
	}
	defer func() { _ = slow.Set(slowhsm.Settings{}) }()
	for _, c := range []struct {
		name    string
		handles int
	}{{warmName, 2 * coldKeys}, {coldName, 1}} {
		t, bodies, err := p.startManyPrivate(c.name, c.handles)
		if err != nil {
			return err
		}
		defer t.stop()
		cells = append(cells, cell{"Sign", fmt.Sprintf("ECDSA P-256, %d keys", coldKeys), c.name, func(d time.Duration) (measurement, error) {
			return t.measureMany("Sign", func(i int) string { return bodies[i%coldKeys] }, 20*coldKeys, p.conns, d, p.tmp)
		}})
	}
	if err := p.alternate(privateTable, cells); err != nil {
		return err
	}
	for _, k := range privateKinds {
		for _, suffix := range []string{"", ", 1 ms a call"} {
			p.promise(fmt.Sprintf("%s with %s on %s%s, operations/s of the module alone", k.op, k.name, hsmName, suffix),
				p.ratio(privateTable, k.op, k.name, hsmName+suffix, moduleName+suffix, perSecond), atLeast, ofModuleMin)
		}
	}
	return nil
}

// privateBody makes a key and returns the body of a request that uses it.
func (t *target) privateBody(op string, s keyspec.Spec, u keyspec.Usage, a keyspec.Algorithm) (map[string]string, error) {
	var made struct{ KeyMetadata struct{ KeyId string } }
	if err := t.call("CreateKey", fmt.Sprintf(`{"KeySpec":%q,"KeyUsage":%q}`, s, u), &made); err != nil {
		return nil, err
	}
	id, message := made.KeyMetadata.KeyId, base64.StdEncoding.EncodeToString([]byte(rawMessage))
	switch op {
	case "Sign":
		return map[string]string{op: fmt.Sprintf(`{"KeyId":%q,"Message":%q,"MessageType":"RAW","SigningAlgorithm":%q}`, id, message, a)}, nil
	case "GenerateMac":
		return map[string]string{op: fmt.Sprintf(`{"KeyId":%q,"Message":%q,"MacAlgorithm":%q}`, id, message, a)}, nil
	}
	var sealed struct{ CiphertextBlob string }
	if err := t.call("Encrypt", fmt.Sprintf(`{"KeyId":%q,"Plaintext":%q,"EncryptionAlgorithm":%q}`, id, message, a), &sealed); err != nil {
		return nil, err
	}
	return map[string]string{op: fmt.Sprintf(`{"KeyId":%q,"CiphertextBlob":%q,"EncryptionAlgorithm":%q}`, id, sealed.CiphertextBlob, a)}, nil
}

// startManyPrivate starts a server that keeps so many unwrapped keys at hand, and makes coldKeys keys. It returns a request for each.
func (p *plan) startManyPrivate(name string, handles int) (*target, []string, error) {
	dir := fmt.Sprint(privateTable, "-", handles)
	config, err := p.config(dir, fmt.Sprintf("key_sessions_per_token: %d\nkey_handles_max: %d\nquotas: off\n", keySessions, handles))
	if err != nil {
		return nil, nil, err
	}
	t, err := p.startSoftHSM(dir, config...)
	if err != nil {
		return nil, nil, err
	}
	t.name = name
	bodies := make([]string, coldKeys)
	for i := range bodies {
		b, err := t.privateBody("Sign", keyspec.P256, keyspec.SignVerify, keyspec.ECDSASHA256)
		if err != nil {
			t.stop()
			return nil, nil, err
		}
		bodies[i] = b["Sign"]
	}
	return t, bodies, nil
}
