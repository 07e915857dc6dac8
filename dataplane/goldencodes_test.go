package dataplane

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// Every exception that the sources of this plane, of the signature verifier and of the scanner name occurs in a golden file, and no other.
func TestGoldenHasEveryCode(t *testing.T) {
	produced := map[string]bool{}
	for _, dir := range []string{".", "../internal/sigv4", "../internal/awsjson"} {
		for name := range codesNamed(t, dir) {
			produced[name] = true
		}
	}
	if len(produced) < 20 {
		t.Fatalf("%d codes in the sources: they are not read as they should be", len(produced))
	}
	seen := map[string]bool{}
	files, _ := filepath.Glob("testdata/*/*.txt")
	exception := regexp.MustCompile(`"__type":"(\w+)"`)
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range exception.FindAllSubmatch(b, -1) {
			seen[string(m[1])] = true
			if kmsapi.CodeOf(string(m[1])) == kmsapi.OK {
				t.Errorf("%s: there is no %s", f, m[1])
			}
		}
	}
	for name := range produced {
		if !seen[name] {
			t.Errorf("no golden file has %s", name)
		}
	}
	for name := range seen {
		if !produced[name] {
			t.Errorf("golden files have %s, which no source names", name)
		}
	}
}

// codesNamed finds the codes that a package's sources use, by their names on the wire.
func codesNamed(t *testing.T, dir string) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	files, _ := filepath.Glob(filepath.Join(dir, "*.go"))
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), f, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := s.X.(*ast.Ident); ok && x.Name == "kmsapi" {
					wire := s.Sel.Name + "Exception"
					if s.Sel.Name == "RequestHeaderTooLarge" {
						wire = "RequestHeaderFieldsTooLargeException"
					}
					if kmsapi.CodeOf(wire) != kmsapi.OK {
						names[wire] = true
					}
				}
			}
			return true
		})
	}
	return names
}
