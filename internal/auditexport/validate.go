package auditexport

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	faultsMax = 100      // further ones are counted
	digestMax = 64 << 20 // bytes of a digest, uncompressed
)

// ValidateReport is what Validate found.
type ValidateReport struct {
	Chains, Digests, Files int
	Records                int64
	Fingerprints           []string // of the keys that signed
	Faults                 []string
	More                   int // faults beyond those
}

// ReadPublicKeys reads a file of the form of digest-public-keys.json.
func ReadPublicKeys(file string) ([]PublicKey, error) {
	var keys publicKeys
	if err := readJSON(file, &keys); err != nil {
		return nil, err
	}
	return keys.PublicKeyList, nil
}

type validator struct {
	dir    string
	keys   map[string]*rsa.PublicKey
	seen   map[string]bool // log and digest files of the chain, by path below dir
	logs   map[string]bool // log files that are there
	used   map[string]bool // fingerprints
	report ValidateReport
}

// Validate walks every chain of a directory from its newest digest to its first and checks hashes, signatures, places and gaps, and that no log or
// digest file is there that the chains do not name. The keys decide: kept elsewhere, they also tell a tree that somebody has made anew. That the newest
// digests are gone shows only where export-state.json is as the last export left it.
func Validate(ctx context.Context, dir string, keys []PublicKey) (ValidateReport, error) {
	v := &validator{dir: dir, keys: map[string]*rsa.PublicKey{}, seen: map[string]bool{}, logs: map[string]bool{}, used: map[string]bool{}}
	for _, k := range keys {
		public, err := x509.ParsePKCS1PublicKey(k.Value)
		if err != nil || fingerprint(k.Value) != k.Fingerprint || public.N.BitLen() < 2048 {
			return v.report, fmt.Errorf("auditexport: the public key with the fingerprint %q is none", k.Fingerprint)
		}
		v.keys[k.Fingerprint] = public
	}
	chains, err := v.list()
	if err != nil {
		return v.report, err
	}
	var s state
	if err := readJSON(filepath.Join(dir, stateFile), &s); err != nil && !errors.Is(err, os.ErrNotExist) {
		return v.report, err
	}
	for name := range s.Chains {
		if chains[name] == nil {
			v.fault("%s: there is no digest file, and the last export left %s", name, s.Chains[name].Object)
		}
	}
	for _, name := range sortedKeys(chains) {
		if err := v.chain(ctx, name, chains[name], s.Chains[name].Object); err != nil {
			return v.report, err
		}
	}
	for _, name := range sortedKeys(v.logs) {
		if !v.seen[name] {
			v.fault("%s: no digest names this file", name)
		}
	}
	v.report.Chains = len(chains)
	v.report.Fingerprints = sortedKeys(v.used)
	return v.report, nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (v *validator) fault(format string, args ...any) {
	if len(v.report.Faults) == faultsMax {
		v.report.More++
		return
	}
	v.report.Faults = append(v.report.Faults, fmt.Sprintf(format, args...))
}

// list finds the files, and the digests of each chain in the order of their end.
func (v *validator) list() (map[string][]string, error) {
	chains := map[string][]string{}
	err := fs.WalkDir(os.DirFS(v.dir), "AWSLogs", func(name string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir():
			return nil
		}
		parts := strings.Split(name, "/") // AWSLogs, account, kind, Region, year, month, day, file
		switch {
		case !e.Type().IsRegular() || len(parts) != 8:
			v.fault("%s: not a file of an export", name)
		case parts[2] == "CloudTrail":
			v.logs[name] = true
		case parts[2] == "CloudTrail-Digest" && strings.HasSuffix(name, ".json.gz"):
			c := parts[1] + "/" + parts[3]
			chains[c] = append(chains[c], name)
		case parts[2] == "CloudTrail-Digest" && strings.HasSuffix(name, ".json.gz"+sigSuffix):
		default:
			v.fault("%s: not a file of an export", name)
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("auditexport: there is no export in %s", v.dir)
	}
	for _, digests := range chains {
		slices.SortFunc(digests, func(a, b string) int { return strings.Compare(end(a), end(b)) })
	}
	return chains, err
}

// end is the time stamp at the end of a digest file's name.
func end(name string) string {
	name = strings.TrimSuffix(name, ".json.gz")
	return name[strings.LastIndexByte(name, '_')+1:]
}

// expected is what the digest after this one says of it. The newest one has none.
type expected struct{ object, hash, signature, end string }

// chain walks one chain. newest is what the state says, "" if nothing.
func (v *validator) chain(ctx context.Context, name string, digests []string, newest string) error {
	next := digests[len(digests)-1]
	if newest != "" && next != newest {
		v.fault("%s: the newest digest file is %s, the last export's was %s", name, next, newest)
	}
	var want *expected
	for next != "" {
		if err := ctx.Err(); err != nil {
			return err
		}
		if v.seen[next] {
			v.fault("%s: the chain comes back to this digest", next)
			break
		}
		v.seen[next] = true
		d, ok := v.digest(ctx, name, next, want)
		if !ok {
			break // nothing that it says of the one before can be trusted
		}
		if d.PreviousDigestS3Object == nil {
			break
		}
		want = &expected{*d.PreviousDigestS3Object, *d.PreviousDigestHashValue, *d.PreviousDigestSignature, d.DigestStartTime}
		next = want.object
		if !slices.Contains(digests, next) {
			v.fault("%s: the digest before %s is missing", next, d.DigestS3Object)
			break
		}
	}
	for _, d := range digests {
		if !v.seen[d] {
			v.fault("%s: the chain from the newest digest does not come here", d)
		}
	}
	return nil
}

// digest checks one digest, its log files included. ok: it is authentic.
func (v *validator) digest(ctx context.Context, chainName, name string, want *expected) (d digest, ok bool) {
	text, err := v.read(name)
	if err != nil {
		v.fault("%s: %v", name, err)
		return d, false
	}
	sum := sha256.Sum256(text)
	hash := hex.EncodeToString(sum[:])
	var sig sidecar
	if err := readJSON(filepath.Join(v.dir, name+sigSuffix), &sig); err != nil {
		v.fault("%s: its signature: %v", name, err)
		return d, false
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil || dec.More() {
		v.fault("%s: not a digest file: %v", name, err)
		return d, false
	}
	account, region, _ := strings.Cut(chainName, "/")
	start, serr := time.Parse(extended, d.DigestStartTime)
	stop, eerr := time.Parse(extended, d.DigestEndTime)
	links := 0
	for _, p := range []*string{d.PreviousDigestS3Bucket, d.PreviousDigestS3Object, d.PreviousDigestHashValue, d.PreviousDigestHashAlgorithm, d.PreviousDigestSignature} {
		if p != nil {
			links++
		}
	}
	switch {
	case d.DigestS3Object != name:
		v.fault("%s: it says that its place is %s", name, d.DigestS3Object)
	case d.AWSAccountID != account || !strings.HasPrefix(path.Base(name), account+"_CloudTrail-Digest_"+region+"_"):
		v.fault("%s: it is of another account or Region", name)
	case serr != nil || eerr != nil || !start.Before(stop) || stop.Sub(start) > time.Hour || stop.UTC().Format(endStamp) != end(name):
		v.fault("%s: it covers %q to %q", name, d.DigestStartTime, d.DigestEndTime)
	case links != 0 && links != 5 || links == 5 && (*d.PreviousDigestHashAlgorithm != hashName || *d.PreviousDigestS3Bucket != d.DigestS3Bucket):
		v.fault("%s: its link to the digest before is incomplete", name)
	case d.DigestSignatureAlgorithm != signatureName || sig.Algorithm != signatureName:
		v.fault("%s: it is signed with %q, not %s", name, d.DigestSignatureAlgorithm, signatureName)
	case v.keys[d.DigestPublicKeyFingerprint] == nil:
		v.fault("%s: it is signed by a key that is not known, %q", name, d.DigestPublicKeyFingerprint)
	case !v.signed(&d, hash, sig.Signature):
		v.fault("%s: the signature is not valid", name)
	case want != nil && want.hash != hash:
		v.fault("%s: the digest after it has another hash of it", name)
	case want != nil && want.signature != sig.Signature:
		v.fault("%s: the digest after it has another signature of it", name)
	case want != nil && want.end != d.DigestEndTime:
		v.fault("%s: it ends at %s, and the digest after it begins at %s", name, d.DigestEndTime, want.end)
	default:
		ok = true
	}
	v.report.Digests++
	v.used[d.DigestPublicKeyFingerprint] = true
	if !ok {
		return d, false
	}
	prefix := "AWSLogs/" + account + "/CloudTrail/" + region + "/"
	for _, f := range d.LogFiles {
		switch {
		case ctx.Err() != nil:
			return d, true
		case !strings.HasPrefix(f.S3Object, prefix) || f.S3Bucket != d.DigestS3Bucket || f.HashAlgorithm != hashName:
			v.fault("%s: %s names %s", name, chainName, f.S3Object)
		case v.seen[f.S3Object]:
			v.fault("%s: two digests name it", f.S3Object)
		case !v.logs[f.S3Object]:
			v.fault("%s: missing, %s names it", f.S3Object, name)
		default:
			v.logFile(f)
		}
		v.seen[f.S3Object] = true
	}
	return d, true
}

func (v *validator) signed(d *digest, hash, signature string) bool {
	raw, err := hex.DecodeString(signature)
	if err != nil || hex.EncodeToString(raw) != signature {
		return false
	}
	sum := sha256.Sum256(stringToSign(d.DigestEndTime, d.DigestS3Bucket, d.DigestS3Object, hash, d.PreviousDigestSignature))
	return rsa.VerifyPKCS1v15(v.keys[d.DigestPublicKeyFingerprint], crypto.SHA256, sum[:], raw) == nil
}

// read uncompresses a digest.
func (v *validator) read(name string) ([]byte, error) {
	var b bytes.Buffer
	err := v.inflate(name, &b, digestMax)
	return b.Bytes(), err
}

// inflate writes what is compressed in a file to w, at most so many bytes.
func (v *validator) inflate(name string, w io.Writer, most int64) error {
	f, err := os.Open(filepath.Join(v.dir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	n, err := io.Copy(w, io.LimitReader(z, most+1))
	if err == nil && n > most {
		err = fmt.Errorf("longer than %d bytes", most)
	}
	return err
}

// logFile checks a log file's hash, and then, of what is authentic, counts the records.
func (v *validator) logFile(f logEntry) {
	v.report.Files++
	h := sha256.New()
	if err := v.inflate(f.S3Object, h, 2*fileMax); err != nil {
		v.fault("%s: %v", f.S3Object, err)
		return
	}
	if hex.EncodeToString(h.Sum(nil)) != f.HashValue {
		v.fault("%s: its hash is not that of the digest", f.S3Object)
		return
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(v.inflate(f.S3Object, w, 2*fileMax)) }()
	n, err := countRecords(r)
	r.Close()
	if err != nil {
		v.fault("%s: not a log file: %v", f.S3Object, err)
	}
	v.report.Records += n
}

// countRecords reads {"Records":[…]}.
func countRecords(r io.Reader) (n int64, err error) {
	d := json.NewDecoder(r)
	for _, want := range []json.Token{json.Delim('{'), "Records", json.Delim('[')} {
		if t, err := d.Token(); err != nil || t != want {
			return 0, errors.New("no Records")
		}
	}
	for d.More() {
		var record json.RawMessage
		if err := d.Decode(&record); err != nil {
			return n, err
		}
		n++
	}
	for _, want := range []json.Token{json.Delim(']'), json.Delim('}')} {
		if t, err := d.Token(); err != nil || t != want {
			return n, errors.New("the end of Records is missing")
		}
	}
	return n, nil
}
