package main

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/keyplane/keyplane/hsm/hsmtest/slowhsm"
)

const (
	residentTable = "resident"
	derivedName   = "SoftHSM, derived key"
	residentName  = "SoftHSM, resident key"
	residentMin   = 0.50
)

// residentKeysTable compares a symmetric key that is derived with one that is a key of its own in the HSM, as imported and multi-Region keys are: on SoftHSM,
// and with 1 ms added to each call. One key is all the load: what shares calls into the HSM is the key's own requests.
func (p *plan) residentKeysTable() error {
	slow, err := p.slowHSM(residentTable, slowhsm.Settings{})
	if err != nil {
		return err
	}
	config, err := p.config(residentTable, "quotas: off\n")
	if err != nil {
		return err
	}
	server, err := startThrough(slow, func() (*target, error) {
		return startKeyplane(hsmName, p.keyplane, filepath.Join(p.tmp, "hsm-"+residentTable), slow.URI(), config...)
	})
	if err != nil {
		return err
	}
	defer server.stop()
	resident := *server
	if resident.bodies, err = server.importedBodies(); err != nil {
		return err
	}
	latencies := []struct {
		suffix string
		time.Duration
	}{{"", 0}, {", 1 ms a call", slowLatency}}
	ops := []string{"GenerateDataKey", "Decrypt"}
	var cells []cell
	for _, latency := range latencies {
		for _, op := range ops {
			for name, t := range map[string]*target{derivedName: server, residentName: &resident} {
				cells = append(cells, cell{op, "64 connections" + latency.suffix, name, func(d time.Duration) (measurement, error) {
					if err := slow.Set(slowhsm.Settings{Latency: latency.Duration}); err != nil {
						return measurement{}, err
					}
					return t.measure(op, p.conns, d, p.tmp)
				}})
			}
		}
	}
	defer func() { _ = slow.Set(slowhsm.Settings{}) }()
	if err := p.alternate(residentTable, cells); err != nil {
		return err
	}
	for _, latency := range latencies {
		for _, op := range ops {
			p.promise(fmt.Sprintf("%s under a resident key%s, requests/s of a derived one", op, latency.suffix),
				p.ratio(residentTable, op, "64 connections"+latency.suffix, residentName, derivedName, perSecond), atLeast, residentMin)
		}
	}
	return nil
}

// importedBodies are requests under a key whose material was imported.
func (t *target) importedBodies() (map[string]string, error) {
	var made struct{ KeyMetadata struct{ KeyId string } }
	if err := t.call("CreateKey", `{"Origin":"EXTERNAL"}`, &made); err != nil {
		return nil, err
	}
	id := made.KeyMetadata.KeyId
	var parameters struct{ ImportToken, PublicKey []byte }
	if err := t.call("GetParametersForImport", fmt.Sprintf(`{"KeyId":%q,"WrappingAlgorithm":"RSAES_OAEP_SHA_256","WrappingKeySpec":"RSA_2048"}`, id), &parameters); err != nil {
		return nil, err
	}
	public, err := x509.ParsePKIXPublicKey(parameters.PublicKey)
	if err != nil {
		return nil, err
	}
	wrapping, ok := public.(*rsa.PublicKey)
	if !ok {
		return nil, errors.New("the wrapping key is no RSA key")
	}
	material := make([]byte, 32)
	_, _ = rand.Read(material) // it does not fail
	wrapped, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, wrapping, material, nil)
	if err != nil {
		return nil, err
	}
	encode := base64.StdEncoding.EncodeToString
	if _, err := t.post("ImportKeyMaterial", fmt.Sprintf(`{"KeyId":%q,"ImportToken":%q,"EncryptedKeyMaterial":%q,"ExpirationModel":"KEY_MATERIAL_DOES_NOT_EXPIRE"}`,
		id, encode(parameters.ImportToken), encode(wrapped))); err != nil {
		return nil, err
	}
	var sealed struct{ CiphertextBlob string }
	if err := t.call("GenerateDataKey", dataKeyBody(id, 32), &sealed); err != nil {
		return nil, err
	}
	return map[string]string{"GenerateDataKey": dataKeyBody(id, 32), "Decrypt": fmt.Sprintf(`{"CiphertextBlob":%q}`, sealed.CiphertextBlob)}, nil
}
