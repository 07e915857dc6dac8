package archtest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var book = &rulebook{rules, topLevel, hotPath, notHot, guarded, exceptions}

func TestArchitecture(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	g := load(t, root)
	// The graph is what it claims to be: these edges are known to exist.
	if own := g.packages["internal/blob"]; own == nil || !slices.Contains(own.files["header.go"], ours("internal/keyid")) || !slices.Contains(own.deps, ours("internal/kmsapi")) {
		t.Fatal("the graph lacks internal/blob, its import of internal/keyid, or its dependency on internal/kmsapi")
	}
	for _, breach := range check(g, book) {
		t.Error(breach)
	}
}

// Every row of the rules is well formed: known packages, a reason, no package twice, and no more than the reason allows.
func TestRulesAreWellFormed(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range rules {
		if r.why == "" || r.pkg == "" || seen[r.pkg] {
			t.Errorf("%q: without reason, without name, or twice", r.pkg)
		}
		seen[r.pkg] = true
		top, _, _ := strings.Cut(r.pkg, "/")
		if !slices.Contains(topLevel, top) {
			t.Errorf("%s: unknown top-level folder", r.pkg)
		}
		for _, o := range r.ours {
			if o != "*" && book.ruleOf(o) == nil {
				t.Errorf("%s may import %s, which has no rule", r.pkg, o)
			}
			if o == r.pkg {
				t.Errorf("%s may import itself", r.pkg)
			}
		}
	}
	for _, name := range leaves {
		if r := book.ruleOf(name); r == nil || len(r.reach) == 0 && len(r.ours) > 0 {
			t.Errorf("%s is no leaf: it may reach everything", name)
		}
	}
	for _, e := range exceptions {
		if e.why == "" || !slices.Contains(guarded, e.imports) && !slices.Contains(notHot, e.imports) {
			t.Errorf("exception %+v: without reason, or for what is not refused", e)
		}
	}
}

// one is a graph of one package with one file.
func one(name, file string, imports, deps []string) *graph {
	return &graph{packages: map[string]*pkg{name: {files: map[string][]string{file: imports}, deps: deps}}}
}

// Each rule catches a breach of it, and lets pass what is next to it.
func TestBreachesAreCaught(t *testing.T) {
	for _, c := range []struct {
		name, pkg, file string
		imports, deps   []string
		want            string // in the one breach; "" for none
	}{
		{"planes sideways", "dataplane", "handle.go", []string{ours("controlplane")}, nil, "imports " + ours("controlplane")},
		{"planes sideways, back", "controlplane", "keys.go", []string{ours("dataplane")}, nil, "imports " + ours("dataplane")},
		{"planes sideways, through others", "dataplane", "handle.go", nil, []string{ours("controlplane/store")}, "depends on " + ours("controlplane/store")},
		{"data plane with net/http", "dataplane", "handle.go", []string{"net/http"}, nil, "imports net/http"},
		{"data plane with net", "dataplane", "server.go", []string{"net", "log/slog"}, nil, ""},
		{"data plane with storage", "dataplane", "admit.go", []string{"go.etcd.io/etcd/client/v3"}, nil, "imports go.etcd.io"},
		{"data plane with a token", "dataplane", "admit.go", []string{ours("hsm/p11")}, nil, "imports " + ours("hsm/p11")},
		{"data plane with hsm", "dataplane", "admit.go", []string{ours("hsm")}, nil, ""},
		{"control plane with fasthttp", "controlplane", "server.go", []string{"github.com/valyala/fasthttp"}, nil, "imports github.com/valyala/fasthttp"},
		{"control plane with batch", "controlplane", "server.go", []string{ours("batch")}, nil, "imports " + ours("batch")},
		{"control plane with net/http", "controlplane", "server.go", []string{"net/http", "fmt", "reflect"}, nil, ""},
		{"store with net/http", "controlplane/store", "etcd.go", []string{"net/http"}, nil, "imports net/http"},
		{"store with net/http through etcd", "controlplane/store", "etcd.go", []string{"go.etcd.io/etcd/server/v3/embed"}, []string{"net/http"}, ""},
		{"store with hsm", "controlplane/store", "etcd.go", []string{ours("hsm")}, nil, "imports " + ours("hsm")},
		{"batch with a leaf", "batch", "shard.go", []string{ours("internal/secret")}, nil, "imports " + ours("internal/secret")},
		{"batch with a library", "batch", "shard.go", []string{"golang.org/x/sync/errgroup"}, nil, "imports golang.org/x/sync"},
		{"hsm with the API", "hsm", "run.go", []string{ours("internal/kmsapi")}, nil, "imports " + ours("internal/kmsapi")},
		{"hsm with the API through others", "hsm", "run.go", nil, []string{ours("internal/kmsapi")}, "depends on " + ours("internal/kmsapi")},
		{"hsm with cgo through others", "hsm", "run.go", nil, []string{"runtime/cgo"}, "depends on runtime/cgo"},
		{"hsm with batch", "hsm", "run.go", []string{ours("batch")}, nil, "imports " + ours("batch")},
		{"hsm with an implementation", "hsm", "run.go", []string{ours("hsm/softtoken")}, nil, "imports " + ours("hsm/softtoken")},
		{"soft token with cgo", "hsm/softtoken", "token.go", []string{"C"}, nil, "imports C"},
		{"soft token with modules", "hsm/softtoken", "token.go", nil, []string{ours("hsm/p11")}, "depends on " + ours("hsm/p11")},
		{"cache with what it stores", "cache", "cache.go", []string{ours("internal/snapshot")}, nil, "imports " + ours("internal/snapshot")},
		{"rate limit with HTTP", "ratelimit", "limiter.go", []string{"net/http"}, nil, "imports net/http"},
		{"load test with the server", "loadtest", "run.go", nil, []string{ours("dataplane")}, "depends on " + ours("dataplane")},
		{"demo with the SDK", "internal/demo", "main.go", []string{"github.com/aws/aws-sdk-go-v2/service/kms"}, []string{"net/http"}, ""},
		{"demo with ours", "internal/demo", "main.go", []string{ours("internal/aesgcm")}, nil, "imports " + ours("internal/aesgcm")},
		{"leaf with a plane", "internal/sigv4", "verify.go", nil, []string{ours("dataplane")}, "depends on " + ours("dataplane")},
		{"leaf with HTTP", "internal/keyid", "id.go", nil, []string{"net/http"}, "depends on net/http"},
		{"leaf with hsm", "internal/snapshot", "build.go", nil, []string{ours("hsm")}, "depends on " + ours("hsm")},
		{"kmsapi with a leaf", "internal/kmsapi", "errors.go", []string{ours("internal/secret")}, nil, "imports " + ours("internal/secret")},
		{"kmsapi with net", "internal/kmsapi", "errors.go", []string{"net"}, nil, "imports net"},
		{"secret with a leaf", "internal/secret", "secret.go", []string{ours("internal/kmsapi")}, nil, "imports " + ours("internal/kmsapi")},
		{"key IDs with blobs", "internal/keyid", "id.go", []string{ours("internal/blob")}, nil, "imports " + ours("internal/blob")},
		{"a name as long as the pattern of all", "internal/xks", "answer.go", []string{ours("internal/awsjson")}, nil, ""},
		{"kdf with the cipher", "internal/kdf", "kdf.go", []string{ours("internal/aesgcm")}, nil, "imports " + ours("internal/aesgcm")},
		{"leaf without a row", "internal/novel", "a.go", []string{ours("internal/kmsapi")}, nil, ""},
		{"leaf without a row, too free", "internal/novel", "a.go", []string{ours("internal/sigv4")}, nil, "imports " + ours("internal/sigv4")},
		{"leaf without a row, with a library", "internal/novel", "a.go", []string{"golang.org/x/text/unicode/norm"}, nil, "imports golang.org/x/text"},
		{"a name that starts like a rule's", "internal/kmsapi2", "a.go", []string{ours("internal/kmsapi")}, nil, ""},
		{"node with everything", "internal/node", "start.go", []string{ours("hsm/p11"), "go.yaml.in/yaml/v3"}, nil, ""},
		{"node with the load test", "internal/node", "start.go", []string{ours("loadtest")}, nil, "imports " + ours("loadtest")},
		{"command", "cmd/keyplane", "main.go", []string{ours("dataplane"), "github.com/spf13/cobra"}, nil, ""},

		{"unsafe", "internal/sigv4", "verify.go", []string{"unsafe"}, nil, "imports unsafe"},
		{"unsafe in a command", "cmd/keyplane", "main.go", []string{"unsafe"}, nil, "imports unsafe"},
		{"unsafe where it belongs", "internal/bytesconv", "bytesconv.go", []string{"unsafe"}, nil, ""},
		{"cgo", "dataplane", "fast.go", []string{"C"}, nil, "imports C"},
		{"cgo in another file of aesgcm", "internal/aesgcm", "configure.go", []string{"C"}, nil, "imports C"},
		{"math/rand", "dataplane", "nonce.go", []string{"math/rand"}, nil, "imports math/rand"},
		{"math/rand/v2", "hsm/softtoken", "token.go", []string{"math/rand/v2"}, nil, "imports math/rand/v2"},
		{"math/rand/v2 of the load test", "loadtest", "run.go", []string{"math/rand/v2"}, nil, ""},
		{"crypto/rand", "dataplane", "nonce.go", []string{"crypto/rand"}, nil, ""},

		{"fmt on the hot path", "internal/blob", "header.go", []string{"fmt"}, nil, "hot path"},
		{"json on the hot path", "internal/awsjson", "scan.go", []string{"encoding/json"}, nil, "hot path"},
		{"reflect on the hot path", "internal/snapshot", "build.go", []string{"reflect"}, nil, "hot path"},
		{"log on the hot path", "internal/sigv4", "verify.go", []string{"log"}, nil, "hot path"},
		{"slog on the hot path", "dataplane", "decrypt.go", []string{"log/slog"}, nil, "hot path"},
		{"fmt beside the exception", "batch", "shard.go", []string{"fmt"}, nil, "hot path"},
		{"fmt elsewhere", "hsm", "run.go", []string{"fmt"}, nil, ""},

		{"unknown folder", "util", "a.go", nil, nil, "unknown top-level folder util"},
		{"unknown folder, below", "util/strings", "a.go", nil, nil, "unknown top-level folder util"},
		{"unknown package", "hsm/cloud", "a.go", nil, nil, "no rule names it"},
		{"root", "", "main.go", nil, nil, "the root"},
	} {
		b := *book
		b.exceptions = nil // those the graph does not use would be reported too
		for _, e := range exceptions {
			if slices.Contains(c.imports, e.imports) && (e.file == c.pkg+"/..." || e.file == c.pkg+"/"+c.file) {
				b.exceptions = append(b.exceptions, e)
			}
		}
		got := check(one(c.pkg, c.file, c.imports, c.deps), &b)
		switch {
		case c.want == "" && len(got) != 0:
			t.Errorf("%s: %q, want no breach", c.name, got)
		case c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)):
			t.Errorf("%s: %q, want one breach with %q", c.name, got, c.want)
		}
	}
}

func TestStaleExceptionsAreCaught(t *testing.T) {
	b := *book
	b.exceptions = []exception{{"batch/batcher.go", "fmt", "a reason"}, {"nowhere/...", "unsafe", "a reason"}}
	if got := check(one("batch", "batcher.go", []string{"fmt"}, nil), &b); len(got) != 0 {
		t.Errorf("an exception in use: %q", got)
	}
	if got := check(one("batch", "batcher.go", []string{"time"}, nil), &b); len(got) != 1 || !strings.Contains(got[0], "out of date") {
		t.Errorf("an exception out of use: %q", got)
	}
}

// The loader sees files that this platform does not build, and no tests, testdata or hidden folders.
func TestLoad(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":                         "module " + module + "\n\ngo 1.26\n",
		"internal/secret/secret.go":      "package secret\n\nimport _ \"errors\"\n",
		"internal/secret/plan9.go":       "//go:build plan9\n\npackage secret\n\nimport _ \"unsafe\"\n",
		"internal/secret/secret_test.go": "package secret\n\nimport _ \"math/rand\"\n",
		"internal/secret/testdata/x.go":  "package x\n\nimport _ \"math/rand\"\n",
		".hidden/x.go":                   "package x\n",
		"_scratch/x.go":                  "package x\n",
		"batch/doc.go":                   "package batch\n\nimport _ \"" + module + "/internal/secret\"\n",
	} {
		file := filepath.Join(root, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	g := load(t, root)
	if len(g.packages) != 2 {
		t.Errorf("%d packages, want 2", len(g.packages))
	}
	p := g.packages["internal/secret"]
	if p == nil || len(p.files) != 2 || !slices.Equal(p.files["plan9.go"], []string{"unsafe"}) {
		t.Fatalf("internal/secret: %+v", p)
	}
	if p := g.packages["batch"]; p == nil || !slices.Contains(p.deps, ours("internal/secret")) || !slices.Contains(p.deps, "errors") {
		t.Errorf("batch: %+v", p)
	}
	got := check(g, book)
	want := []string{
		"batch/batcher.go does not import fmt: the exception is out of date",
		"batch/doc.go imports " + ours("internal/secret") + ": standard library only: no keys, no HSM, no HTTP",
		"internal/secret/plan9.go imports unsafe: only files with an exception may",
	}
	if !slices.Equal(got, want) {
		t.Errorf("breaches %q, want %q", got, want)
	}
}
