package archtest

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

const module = "github.com/keyplane/keyplane"

// ours is the import path of a package of this module.
func ours(pkg string) string { return module + "/" + pkg }

// graph is what there is to check.
type graph struct {
	packages map[string]*pkg // of this module, by path below it; "" is the root
}

type pkg struct {
	files map[string][]string // non-test files, by name, and what each imports
	deps  []string            // everything it depends on without its tests
}

// rulebook is all of rules_test.go in one value, so that tests can check others.
type rulebook struct {
	rules      []rule
	topLevel   []string
	hotPath    []string
	notHot     []string
	guarded    []string
	exceptions []exception
}

// check returns every breach, sorted, each naming package or file, what is wrong, and the reason of the rule.
func check(g *graph, book *rulebook) []string {
	var breaches []string
	add := func(format string, args ...any) { breaches = append(breaches, fmt.Sprintf(format, args...)) }
	used := map[exception]bool{}
	for name, p := range g.packages {
		top, _, _ := strings.Cut(name, "/")
		if name == "" {
			add("the root of the repository holds Go files: packages live in folders")
			continue
		}
		if !slices.Contains(book.topLevel, top) {
			add("%s: unknown top-level folder %s; give it a rule or a place below a known one", name, top)
			continue
		}
		r := book.ruleOf(name)
		if r == nil {
			add("%s: no rule names it; give it a row", name)
			continue
		}
		for file, imports := range p.files {
			for _, imp := range imports {
				if why := book.refuses(r, name, path.Join(name, file), imp, used); why != "" {
					add("%s/%s imports %s: %s", name, file, imp, why)
				}
			}
		}
		for _, dep := range p.deps {
			for _, banned := range r.reach {
				if below(dep, banned) {
					add("%s depends on %s: %s", name, dep, r.why)
				}
			}
		}
	}
	for _, e := range book.exceptions {
		folder := path.Dir(e.file)
		if _, exists := g.packages[folder]; exists && !used[e] {
			add("%s does not import %s: the exception is out of date", e.file, e.imports)
		}
	}
	slices.Sort(breaches)
	return breaches
}

// ruleOf is the rule that names the package, else the one with the longest pattern that matches, or nil.
func (book *rulebook) ruleOf(name string) *rule {
	var best *rule
	for i := range book.rules {
		r := &book.rules[i]
		if r.pkg == name {
			return r
		}
		if tree, isTree := strings.CutSuffix(r.pkg, "/..."); isTree && below(name, tree) && (best == nil || len(r.pkg) > len(best.pkg)) {
			best = r
		}
	}
	return best
}

// refuses says why the file of the package must not import imp, or "".
func (book *rulebook) refuses(r *rule, name, file, imp string, used map[exception]bool) string {
	hot := slices.Contains(book.hotPath, name) && slices.Contains(book.notHot, imp)
	if hot || slices.Contains(book.guarded, imp) {
		for _, e := range book.exceptions {
			tree, isTree := strings.CutSuffix(e.file, "/...")
			if e.imports == imp && (e.file == file || isTree && path.Dir(file) == tree) {
				used[e] = true
				return ""
			}
		}
		if hot {
			return "not in a package of the hot path"
		}
		return "only files with an exception may"
	}
	if slices.Contains(r.not, imp) {
		return r.why
	}
	if local, ok := strings.CutPrefix(imp, module+"/"); ok {
		if slices.Contains(r.ours, "*") || slices.Contains(r.ours, local) {
			return ""
		}
		return r.why
	}
	if isStandard(imp) {
		return ""
	}
	for _, t := range r.third {
		if t == "*" || below(imp, t) {
			return ""
		}
	}
	return r.why
}

// below says whether p is tree or lies in it.
func below(p, tree string) bool {
	rest, ok := strings.CutPrefix(p, tree)
	return ok && (rest == "" || rest[0] == '/')
}

// isStandard goes by the dot that the first element of every other import path has.
func isStandard(imp string) bool {
	first, _, _ := strings.Cut(imp, "/")
	return !strings.Contains(first, ".")
}
