package auditexport

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// validate is Validate with the keys that the exporter had.
func validate(t testing.TB, dir string) ValidateReport {
	t.Helper()
	pkcs1 := x509.MarshalPKCS1PublicKey(&testKey().PublicKey)
	r, err := Validate(t.Context(), dir, []PublicKey{{Value: pkcs1, Fingerprint: fingerprint(pkcs1)}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// delivered is the files of the layout, in order.
func delivered(t testing.TB, dir string) (logs, digests, sigs []string) {
	t.Helper()
	for name := range tree(t, dir) {
		switch {
		case strings.HasSuffix(name, sigSuffix):
			sigs = append(sigs, name)
		case strings.Contains(name, "CloudTrail-Digest"):
			digests = append(digests, name)
		case strings.HasPrefix(name, "AWSLogs/"):
			logs = append(logs, name)
		}
	}
	slices.Sort(logs)
	slices.Sort(digests)
	slices.Sort(sigs)
	return logs, digests, sigs
}

// rewrite changes what is in a file, compressed or not.
func rewrite(t testing.TB, name string, change func([]byte) []byte) {
	t.Helper()
	b := mustRead(t, name)
	if strings.HasSuffix(name, ".gz") {
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if b, err = io.ReadAll(z); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		w := gzip.NewWriter(&out)
		if _, err := w.Write(change(b)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		b = out.Bytes()
	} else {
		b = change(b)
	}
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func mustRead(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Every file of a tree, changed in every way: something is always found, and nothing once it is put back.
func TestTampering(t *testing.T) {
	dir := t.TempDir()
	cfg := config(dir, sample()[:40])
	mustExport(t, cfg)
	mustExport(t, config(dir, sample()[:80]))
	logs, digests, sigs := delivered(t, dir)
	if r := validate(t, dir); len(r.Faults) != 0 || len(logs) < 12 || len(digests) < 8 {
		t.Fatalf("%q", r.Faults)
	}
	path := func(name string) string { return filepath.Join(dir, name) }
	found := func(what, name, want string) {
		t.Helper()
		want = strings.TrimSuffix(want, sigSuffix) // faults name the digest
		if r := validate(t, dir); len(r.Faults) == 0 {
			t.Errorf("%s: %s: not found", name, what)
		} else if !strings.Contains(strings.Join(r.Faults, "\n"), want) {
			t.Errorf("%s: %s: %q, want %q", name, what, r.Faults, want)
		}
	}
	changes := map[string]func([]byte) []byte{
		"first byte":  func(b []byte) []byte { b[0] ^= 1; return b },
		"middle":      func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"last byte":   func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"cut":         func(b []byte) []byte { return b[:len(b)-1] },
		"emptied":     func([]byte) []byte { return nil },
		"longer":      func(b []byte) []byte { return append(b, ' ') },
		"a longer id": func(b []byte) []byte { return bytes.Replace(b, []byte("0"), []byte("00"), 1) },
	}
	for _, name := range slices.Concat(logs, digests, sigs) {
		was := mustRead(t, path(name))
		for what, change := range changes {
			if strings.HasSuffix(name, sigSuffix) && (what == "last byte" || what == "longer" || what == "cut") {
				continue // the line's end, which means nothing
			}
			rewrite(t, path(name), change)
			found(what, name, name)
			if err := os.WriteFile(path(name), was, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(path(name), was[:len(was)/2], 0o600); err != nil { // compressed bytes
			t.Fatal(err)
		}
		found("half of it", name, name)
		if err := os.Remove(path(name)); err != nil {
			t.Fatal(err)
		}
		found("removed", name, "")
		if err := os.WriteFile(path(name), was, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	swap := func(a, b string) {
		t.Helper()
		x, y := mustRead(t, path(a)), mustRead(t, path(b))
		if err := os.WriteFile(path(a), y, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path(b), x, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, list := range [][]string{logs, digests, sigs} {
		for i := range len(list) - 1 {
			swap(list[i], list[i+1])
			found("swapped with the next", list[i], list[i])
			swap(list[i], list[i+1])
		}
	}
	// A whole digest, with its signature, in the place of another, or twice.
	for i := range len(digests) - 1 {
		swap(digests[i], digests[i+1])
		swap(sigs[i], sigs[i+1])
		found("swapped with the next, signature too", digests[i], "its place is")
		swap(sigs[i], sigs[i+1])
		swap(digests[i], digests[i+1])
	}
	for _, name := range []string{logs[0], digests[0]} {
		copied := strings.Replace(name, "2026/11/26/", "2026/11/25/", 1)
		if err := os.MkdirAll(filepath.Dir(path(copied)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path(copied), mustRead(t, path(name)), 0o600); err != nil {
			t.Fatal(err)
		}
		found("a copy elsewhere", name, copied)
		if err := os.Remove(path(copied)); err != nil {
			t.Fatal(err)
		}
	}
	for _, extra := range []string{"AWSLogs/x", "AWSLogs/111122223333/Other/us-east-1/2026/11/26/x", strings.TrimSuffix(digests[0], ".json.gz") + ".txt"} {
		if err := os.MkdirAll(filepath.Dir(path(extra)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path(extra), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		found("a strange file", extra, extra+": not a file of an export")
		if err := os.Remove(path(extra)); err != nil {
			t.Fatal(err)
		}
	}
	// The newest digest goes with its log files and its signature: the state tells.
	last := digests[len(digests)-1]
	var d digest
	rewrite(t, path(last), func(b []byte) []byte {
		if err := json.Unmarshal(b, &d); err != nil {
			t.Fatal(err)
		}
		return b
	})
	gone := []string{last, last + sigSuffix}
	for _, f := range d.LogFiles {
		gone = append(gone, f.S3Object)
	}
	kept := map[string][]byte{}
	for _, name := range gone {
		kept[name] = mustRead(t, path(name))
		if err := os.Remove(path(name)); err != nil {
			t.Fatal(err)
		}
	}
	found("the newest digest and all it names", last, "the last export's was "+last)
	for name, b := range kept {
		if err := os.WriteFile(path(name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if r := validate(t, dir); len(r.Faults) != 0 {
		t.Errorf("all is put back: %q", r.Faults)
	}
}

// Who has no key of ours can make a tree anew that is valid by its own keys, and not by ours.
func TestMadeAnew(t *testing.T) {
	dir := t.TempDir()
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	cfg := config(dir, sample()[:50])
	cfg.Key = other
	mustExport(t, cfg)
	mustValidate(t, dir)
	if r := validate(t, dir); !strings.Contains(strings.Join(r.Faults, "\n"), "signed by a key that is not known") {
		t.Errorf("%q", r.Faults)
	}
	// A key of the wrong name, or no key.
	pkcs1 := x509.MarshalPKCS1PublicKey(&testKey().PublicKey)
	for _, k := range []PublicKey{{Value: pkcs1, Fingerprint: "x"}, {Value: pkcs1[1:], Fingerprint: fingerprint(pkcs1[1:])}} {
		if _, err := Validate(t.Context(), dir, []PublicKey{k}); err == nil {
			t.Errorf("key %q was accepted", k.Fingerprint)
		}
	}
	if _, err := Validate(t.Context(), t.TempDir(), nil); err == nil || !strings.Contains(err.Error(), "there is no export") {
		t.Errorf("an empty directory: %v", err)
	}
}

// A digest that the key's holder signed, with a start later than the end of the one before, is a gap all the same.
func TestGap(t *testing.T) {
	dir := t.TempDir()
	mustExport(t, config(dir, sample()[:50]))
	var s state
	if err := readJSON(filepath.Join(dir, stateFile), &s); err != nil {
		t.Fatal(err)
	}
	s.Since += 60
	s.Clock += 60
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, stateFile), b, 0o600); err != nil {
		t.Fatal(err)
	}
	mustExport(t, config(dir, sample()[:100]))
	if r := validate(t, dir); !strings.Contains(strings.Join(r.Faults, "\n"), "and the digest after it begins at") {
		t.Errorf("%q", r.Faults)
	}
}

func TestDigestKey(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "key.pem")
	first, err := DigestKey(file)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 || first.N.BitLen() != keyBits {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if again, err := DigestKey(file); err != nil || !again.Equal(first) {
		t.Errorf("another key: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "digest-key.new-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	write := func(typ string, der []byte) {
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(first))
	if again, err := DigestKey(file); err != nil || !again.Equal(first) {
		t.Errorf("PKCS #1: %v", err)
	}
	if err := os.Chmod(file, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := DigestKey(file); err == nil || !strings.Contains(err.Error(), "want a regular file with permissions 0600") {
		t.Errorf("0640: %v", err)
	}
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	write("PRIVATE KEY", []byte("no key"))
	if _, err := DigestKey(file); err == nil {
		t.Error("garbage in PEM")
	}
	if err := os.WriteFile(file, []byte("no PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := DigestKey(file); err == nil {
		t.Error("garbage")
	}
}

func TestCommands(t *testing.T) {
	base := t.TempDir()
	dir, key, records := filepath.Join(base, "out"), filepath.Join(base, "key.pem"), filepath.Join(base, "records")
	write := func(list [][]byte) {
		if err := os.WriteFile(records, append(bytes.Join(list, []byte("\n")), '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(sample()[:100])
	run := func(status int, stdout, stderr string, f func(args []string, out, errs io.Writer) int, args ...string) {
		t.Helper()
		var out, errs bytes.Buffer
		if got := f(args, &out, &errs); got != status || !strings.Contains(out.String(), stdout) || !strings.Contains(errs.String(), stderr) {
			t.Errorf("%v: status %d, want %d\n%s\n%s", args, got, status, &out, &errs)
		}
	}
	export := func(args []string, out, errs io.Writer) int { return Main(args, out, errs, nil) }
	run(2, "", "usage:", export)
	run(2, "", "usage:", export, "--dir", dir, "--records", records)
	run(2, "", "usage:", export, "--log", "x")
	run(0, "", "-digest-key", export, "--help")
	run(2, "", "usage:", MainValidate)
	run(1, "", "no such file", MainValidate, dir)
	run(1, "", "no such file", export, "--dir", dir, "--digest-key", key, "--records", records+"x")
	run(0, "100 records exported, 10 copies", "", export, "--dir", dir, "--digest-key", key, "--records", records)
	run(0, "\nvalid", "", MainValidate, dir)
	run(0, "0 records exported, 0 copies", "", export, "--dir", dir, "--digest-key", key, "--records", records)
	write(sample()[:99])
	run(1, "", "there are 99 records, and more were exported already", export, "--dir", dir, "--digest-key", key, "--records", records)
	write(sample())
	run(0, "300 records exported", "", export, "--dir", dir, "--digest-key", key, "--records", records)
	run(0, "\nvalid", "", MainValidate, dir)
	other := filepath.Join(base, "keys.json")
	if err := os.WriteFile(other, []byte(`{"PublicKeyList":[]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	run(1, "NOT VALID", "signed by a key that is not known", MainValidate, dir, "--public-keys", other)
	// From a log, by what opens it.
	logs := func(args []string, out, errs io.Writer) int {
		return Main(args, out, errs, func(_ context.Context, name string) (Source, error) {
			if name != "the log" {
				return nil, os.ErrNotExist
			}
			return source(sample()), nil
		})
	}
	run(2, "", "usage:", logs, "--dir", dir+"2", "--digest-key", key, "--records", records, "--log", "the log")
	run(1, "", "does not exist", logs, "--dir", dir+"2", "--digest-key", key, "--log", "no log")
	run(0, "400 records exported", "", logs, "--dir", dir+"2", "--digest-key", key, "--log", "the log")
}

func TestLines(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "a\nb\nc": "b c", "a\nb\n": "b", "a": "there are 1 records", strings.Repeat("x", recordMax+2): "token too long",
	} {
		var got []string
		for r, err := range Lines(strings.NewReader(in))(min(1, uint64(len(in)))) {
			if err != nil {
				got = append(got, err.Error())
				break
			}
			got = append(got, string(r))
		}
		if text := strings.Join(got, " "); text != want && (want == "" || !strings.Contains(text, want)) {
			t.Errorf("%.10q: %q, want %q", in, text, want)
		}
	}
}

// A digest file is what somebody else may have written: no text of one may panic or be taken for authentic.
func FuzzDigest(f *testing.F) {
	dir := f.TempDir()
	mustExport(f, config(dir, sample()[1:2]))
	_, digests, _ := delivered(f, dir)
	name := digests[0]
	rewrite(f, filepath.Join(dir, name), func(b []byte) []byte { f.Add(bytes.Clone(b)); return b })
	f.Add([]byte(`{"previousDigestS3Object":"x","logFiles":[{}]}`))
	f.Add([]byte(`null`))
	was := mustRead(f, filepath.Join(dir, name))
	f.Fuzz(func(t *testing.T, text []byte) {
		rewrite(t, filepath.Join(dir, name), func(b []byte) []byte {
			if bytes.Equal(b, text) {
				return b
			}
			return text
		})
		r := validate(t, dir)
		changed := !bytes.Equal(text, plain(t, was))
		if changed != (len(r.Faults) > 0) {
			t.Fatalf("changed %v: %q", changed, r.Faults)
		}
		if err := os.WriteFile(filepath.Join(dir, name), was, 0o600); err != nil {
			t.Fatal(err)
		}
	})
}

func plain(t testing.TB, compressed []byte) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(compressed))
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
