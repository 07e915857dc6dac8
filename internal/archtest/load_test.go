package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// load reads the graph of the module at root. Imports come from every Go file, so that no build tag hides one; dependencies from go list,
// as this platform builds with cgo and without.
func load(t *testing.T, root string) *graph {
	t.Helper()
	g := &graph{packages: map[string]*pkg{}}
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			// What the go command does not look into either.
			if n := d.Name(); file != root && (n == "testdata" || n == "vendor" || n[0] == '.' || n[0] == '_') {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return nil
		}
		imports, err := importsOf(file)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone since the walk began
		}
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(file))
		if err != nil {
			return err
		}
		name := filepath.ToSlash(dir)
		if name == "." {
			name = ""
		}
		if g.packages[name] == nil {
			g.packages[name] = &pkg{files: map[string][]string{}}
		}
		g.packages[name].files[filepath.Base(file)] = imports
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, cgo := range []string{"CGO_ENABLED=1", "CGO_ENABLED=0"} {
		addDeps(t, g, root, cgo)
	}
	return g
}

func importsOf(file string) ([]string, error) {
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
	if err != nil {
		return nil, err
	}
	var imports []string
	for _, spec := range f.Imports {
		imp, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return nil, err
		}
		imports = append(imports, imp)
	}
	return imports, nil
}

func addDeps(t *testing.T, g *graph, root, env string) {
	t.Helper()
	// -e: a package that does not build in one of the two settings still has dependencies.
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Deps", "./...")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), env)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.Bytes())
	}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath string
			Deps       []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		own := g.packages[strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")]
		if own == nil {
			continue // a package of tests only
		}
		for _, dep := range p.Deps {
			if !slices.Contains(own.deps, dep) {
				own.deps = append(own.deps, dep)
			}
		}
	}
}
