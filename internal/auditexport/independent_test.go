package auditexport

import (
	"bytes"
	"compress/gzip"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"
)

// independent checks an export with nothing of this package's code but the test's own records: it is written from CloudTrail's documentation, as
// `aws cloudtrail validate-logs` proceeds. Every record must be in its recipient's files once.
func independent(t testing.TB, dir string, records [][]byte) {
	t.Helper()
	bad := func(format string, args ...any) { t.Helper(); t.Errorf(format, args...) }
	var published struct{ PublicKeyList []map[string]any }
	text, err := os.ReadFile(filepath.Join(dir, "digest-public-keys.json"))
	if err != nil || json.Unmarshal(text, &published) != nil {
		t.Fatal(err)
	}
	keys := map[string]*rsa.PublicKey{}
	for _, k := range published.PublicKeyList {
		der, err := base64.StdEncoding.DecodeString(k["Value"].(string))
		if err != nil {
			t.Fatal(err)
		}
		if keys[k["Fingerprint"].(string)], err = x509.ParsePKCS1PublicKey(der); err != nil {
			t.Fatal(err)
		}
	}
	inflate := func(name string) []byte {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		z.Multistream(false) // readers of one member see all
		b, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	hash := func(b []byte) string { s := sha256.Sum256(b); return hex.EncodeToString(s[:]) }

	digestName := regexp.MustCompile(`^AWSLogs/(\d{12})/CloudTrail-Digest/([a-z0-9-]+)/(\d{4}/\d\d/\d\d)/(\d{12})_CloudTrail-Digest_([a-z0-9-]+)_keyplane_([a-z0-9-]+)_(\d{8}T\d{6}Z)\.json\.gz$`)
	logName := regexp.MustCompile(`^AWSLogs/(\d{12})/CloudTrail/([a-z0-9-]+)/(\d{4}/\d\d/\d\d)/(\d{12})_CloudTrail_([a-z0-9-]+)_(\d{8}T\d{4}Z)_[A-Za-z0-9]{16}\.json\.gz$`)
	newest, digests, logs := map[string]string{}, map[string]bool{}, map[string]bool{}
	err = fs.WalkDir(os.DirFS(dir), "AWSLogs", func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || filepath.Ext(name) == ".sig" {
			return err
		}
		if m := digestName.FindStringSubmatch(name); m != nil && m[1] == m[4] && m[2] == m[5] && m[2] == m[6] {
			digests[name] = true
			newest[m[1]+" "+m[2]] = max(newest[m[1]+" "+m[2]], name) // they differ in their date only
		} else if m := logName.FindStringSubmatch(name); m != nil && m[1] == m[4] && m[2] == m[5] {
			logs[name] = true
		} else {
			bad("%s is of no known form", name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}

	delivered := map[string][]map[string]any{} // records by recipient
	var ends []string
	for chain, name := range newest {
		var next map[string]any
		for first := true; name != ""; first = false {
			body := inflate(name)
			var d map[string]any
			var meta map[string]string
			sig, err := os.ReadFile(filepath.Join(dir, name+".sig"))
			if err != nil || json.Unmarshal(sig, &meta) != nil || json.Unmarshal(body, &d) != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if !digests[name] {
				bad("%s is named twice or missing", name)
			}
			delete(digests, name)
			m := digestName.FindStringSubmatch(name)
			end, err := time.Parse(time.RFC3339, d["digestEndTime"].(string))
			start, serr := time.Parse(time.RFC3339, d["digestStartTime"].(string))
			if err != nil || serr != nil || end.Format("20060102T150405Z") != m[7] || end.Format("2006/01/02") != m[3] || !start.Before(end) || end.Sub(start) > time.Hour {
				bad("%s: %v to %v", name, d["digestStartTime"], d["digestEndTime"])
			}
			if first {
				ends = append(ends, d["digestEndTime"].(string))
			}
			if d["awsAccountId"] != m[1] || d["digestS3Object"] != name || d["digestS3Bucket"] != "keyplane-audit" || meta["x-amz-meta-signature-algorithm"] != "SHA256withRSA" {
				bad("%s: %v", name, d)
			}
			previous, _ := d["previousDigestSignature"].(string)
			if d["previousDigestSignature"] == nil {
				previous = "null"
			}
			signed := fmt.Sprintf("%s\n%s/%s\n%s\n%s", d["digestEndTime"], d["digestS3Bucket"], d["digestS3Object"], hash(body), previous)
			sum := sha256.Sum256([]byte(signed))
			raw, err := hex.DecodeString(meta["x-amz-meta-signature"])
			key := keys[d["digestPublicKeyFingerprint"].(string)]
			if err != nil || key == nil || rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], raw) != nil {
				bad("%s: signature", name)
			}
			if next != nil && (next["previousDigestHashValue"] != hash(body) || next["previousDigestHashAlgorithm"] != "SHA-256" ||
				next["previousDigestSignature"] != meta["x-amz-meta-signature"] || next["digestStartTime"] != d["digestEndTime"]) {
				bad("%s: the link to it is broken", name)
			}
			var oldest, latest string
			for _, f := range d["logFiles"].([]any) {
				f := f.(map[string]any)
				object := f["s3Object"].(string)
				if !logs[object] {
					bad("%s is named twice or missing", object)
					continue
				}
				delete(logs, object)
				content := inflate(object)
				if f["hashValue"] != hash(content) || f["hashAlgorithm"] != "SHA-256" || f["s3Bucket"] != "keyplane-audit" {
					bad("%s: hash", object)
				}
				var file struct{ Records []map[string]any }
				dec := json.NewDecoder(bytes.NewReader(content))
				dec.DisallowUnknownFields()
				if err := dec.Decode(&file); err != nil || len(file.Records) == 0 {
					bad("%s: %v", object, err)
				}
				o, l := "9", ""
				for _, r := range file.Records {
					when := r["eventTime"].(string)
					o, l = min(o, when), max(l, when)
					if got := fmt.Sprint(r["recipientAccountId"], " ", r["awsRegion"]); got != chain {
						bad("%s has a record of %s", object, got)
					}
					delivered[m[1]] = append(delivered[m[1]], r)
				}
				if f["oldestEventTime"] != o || f["newestEventTime"] != l {
					bad("%s: %v to %v, want %s to %s", object, f["oldestEventTime"], f["newestEventTime"], o, l)
				}
				if oldest == "" || o < oldest {
					oldest = o
				}
				latest = max(latest, l)
			}
			if latest == "" && (d["newestEventTime"] != nil || d["oldestEventTime"] != nil) || latest != "" && (d["newestEventTime"] != latest || d["oldestEventTime"] != oldest) {
				bad("%s: %v to %v, want %s to %s", name, d["oldestEventTime"], d["newestEventTime"], oldest, latest)
			}
			next = d
			name, _ = d["previousDigestS3Object"].(string)
		}
	}
	if len(digests) > 0 || len(logs) > 0 {
		bad("not named: %v %v", digests, logs)
	}
	slices.Sort(ends)
	if len(ends) > 0 && ends[0] != ends[len(ends)-1] {
		bad("the chains end at %v", ends)
	}

	// Every record is delivered once to its recipient, and what an owner gets belongs to one.
	count, shared := map[string]int{}, map[string]int{}
	for account, list := range delivered {
		for _, r := range list {
			count[account+" "+r["eventID"].(string)]++
			if id, ok := r["sharedEventID"].(string); ok {
				shared[id]++
			}
		}
	}
	want := 0
	for _, line := range records {
		var r struct {
			EventID    string
			Recipient  string `json:"recipientAccountId"`
			ResourceOf []struct {
				Account string `json:"accountId"`
			} `json:"resources"`
		}
		if json.Unmarshal(line, &r) != nil || r.Recipient == "" {
			continue
		}
		want++
		if n := count[r.Recipient+" "+r.EventID]; n != 1 {
			bad("record %s of %s was delivered %d times", r.EventID, r.Recipient, n)
		}
		for _, o := range r.ResourceOf {
			if o.Account != r.Recipient {
				want++
			}
		}
	}
	if len(count) != want {
		bad("%d records were delivered, want %d", len(count), want)
	}
	for id, n := range shared {
		if n != 2 {
			bad("shared event %s has %d records", id, n)
		}
	}
}
