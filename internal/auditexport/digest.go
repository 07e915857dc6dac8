package auditexport

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

const (
	hashName      = "SHA-256"
	signatureName = "SHA256withRSA"
)

// digest is a digest file. Pointers are null where there is nothing.
type digest struct {
	AWSAccountID                string     `json:"awsAccountId"`
	DigestStartTime             string     `json:"digestStartTime"`
	DigestEndTime               string     `json:"digestEndTime"`
	DigestS3Bucket              string     `json:"digestS3Bucket"`
	DigestS3Object              string     `json:"digestS3Object"`
	DigestPublicKeyFingerprint  string     `json:"digestPublicKeyFingerprint"`
	DigestSignatureAlgorithm    string     `json:"digestSignatureAlgorithm"`
	NewestEventTime             *string    `json:"newestEventTime"`
	OldestEventTime             *string    `json:"oldestEventTime"`
	PreviousDigestS3Bucket      *string    `json:"previousDigestS3Bucket"`
	PreviousDigestS3Object      *string    `json:"previousDigestS3Object"`
	PreviousDigestHashValue     *string    `json:"previousDigestHashValue"`
	PreviousDigestHashAlgorithm *string    `json:"previousDigestHashAlgorithm"`
	PreviousDigestSignature     *string    `json:"previousDigestSignature"`
	LogFiles                    []logEntry `json:"logFiles"`
}

// sidecar is a .sig file.
type sidecar struct {
	Signature string `json:"x-amz-meta-signature"`
	Algorithm string `json:"x-amz-meta-signature-algorithm"`
}

// link is what the next digest says of this one.
type link struct {
	Object    string `json:"object"`
	Hash      string `json:"hash"`
	Signature string `json:"signature"`
	End       int64  `json:"end"`
}

// stringToSign is CloudTrail's: end, place, hash, previous signature.
func stringToSign(end, bucket, object, hash string, previous *string) []byte {
	before := "null"
	if previous != nil {
		before = *previous
	}
	return []byte(strings.Join([]string{end, bucket + "/" + object, hash, before}, "\n"))
}

func fingerprint(pkcs1 []byte) string {
	sum := sha256.Sum256(pkcs1)
	return hex.EncodeToString(sum[:])
}

// digests ends the time since the last digests at end, for every chain that has begun.
func (x *exporter) digests(end int64) error {
	start := x.state.Since
	chains := make(map[string]chain, len(x.state.Chains)+len(x.done))
	for name := range x.state.Chains {
		account, region, _ := strings.Cut(name, "/")
		chains[name] = chain{account, region}
	}
	for c := range x.done {
		chains[c.String()] = c
	}
	names := make([]string, 0, len(chains))
	for name := range chains {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := x.digest(chains[name], start, end); err != nil {
			return err
		}
	}
	clear(x.done)
	x.state.Since = end
	return nil
}

// digest writes one digest file and its signature.
func (x *exporter) digest(c chain, start, end int64) error {
	pkcs1 := x509.MarshalPKCS1PublicKey(&x.cfg.Key.PublicKey)
	t := utc(end)
	d := digest{
		AWSAccountID: c.Account, DigestStartTime: utc(start).Format(extended), DigestEndTime: t.Format(extended), DigestS3Bucket: x.cfg.Bucket,
		DigestS3Object: fmt.Sprintf("AWSLogs/%s/CloudTrail-Digest/%s/%s/%s_CloudTrail-Digest_%s_%s_%s_%s.json.gz", c.Account, c.Region, t.Format(day),
			c.Account, c.Region, x.cfg.Trail, c.Region, t.Format(endStamp)),
		DigestPublicKeyFingerprint: fingerprint(pkcs1), DigestSignatureAlgorithm: signatureName, LogFiles: x.done[c],
	}
	if d.LogFiles == nil {
		d.LogFiles = []logEntry{}
	}
	for i := range d.LogFiles {
		f := &d.LogFiles[i]
		if d.NewestEventTime == nil || f.NewestEventTime > *d.NewestEventTime {
			d.NewestEventTime = &f.NewestEventTime
		}
		if d.OldestEventTime == nil || f.OldestEventTime < *d.OldestEventTime {
			d.OldestEventTime = &f.OldestEventTime
		}
	}
	if before, ok := x.state.Chains[c.String()]; ok {
		algorithm := hashName
		d.PreviousDigestS3Bucket, d.PreviousDigestS3Object = &x.cfg.Bucket, &before.Object
		d.PreviousDigestHashValue, d.PreviousDigestHashAlgorithm, d.PreviousDigestSignature = &before.Hash, &algorithm, &before.Signature
	}
	text, err := json.Marshal(d)
	if err != nil {
		return err
	}
	hash, err := x.stage(d.DigestS3Object, bytes.NewReader(text))
	if err != nil {
		return err
	}
	sum := sha256.Sum256(stringToSign(d.DigestEndTime, d.DigestS3Bucket, d.DigestS3Object, hash, d.PreviousDigestSignature))
	signature, err := rsa.SignPKCS1v15(nil, x.cfg.Key, crypto.SHA256, sum[:])
	if err != nil {
		return err
	}
	s := sidecar{hex.EncodeToString(signature), signatureName}
	sig, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := x.stageRaw(d.DigestS3Object+sigSuffix, func(w io.Writer) error { _, err := w.Write(append(sig, '\n')); return err }); err != nil {
		return err
	}
	x.report.Digests++
	x.state.Chains[c.String()] = link{d.DigestS3Object, hash, s.Signature, end}
	x.state.use(pkcs1, start, end)
	return nil
}
