// A check of this package's source: applying a command may read nothing but the command and the state.

package state

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// forbiddenImports are packages whose answers differ from server to server, with the reason.
var forbiddenImports = map[string]string{
	"math/rand":                     "servers would draw different numbers; let the proposer draw and put it into the command",
	"math/rand/v2":                  "servers would draw different numbers; let the proposer draw and put it into the command",
	"crypto/rand":                   "servers would draw different numbers; let the proposer draw and put it into the command",
	"hash/maphash":                  "its seed differs from process to process",
	"os":                            "applying does no I/O",
	"net":                           "applying does no I/O",
	"syscall":                       "applying does no I/O",
	"os/exec":                       "applying does no I/O",
	"net/http":                      "applying does no I/O",
	"github.com/hashicorp/raft":     "the shell around this package knows raft",
	"golang.org/x/sys/unix":         "applying does no I/O",
	"github.com/hashicorp/raft-wal": "the shell around this package knows raft",
}

// forbiddenTime are the functions of package time that read a clock or wait for one.
var forbiddenTime = []string{"Now", "Since", "Until", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker", "Sleep"}

// nondeterminism lists what in the files may make two servers differ.
func nondeterminism(fset *token.FileSet, files []*ast.File, info *types.Info) (found []string) {
	report := func(n ast.Node, format string, args ...any) {
		p := fset.Position(n.Pos())
		found = append(found, fmt.Sprintf("%s:%d: %s", filepath.Base(p.Filename), p.Line, fmt.Sprintf(format, args...)))
	}
	for _, f := range files {
		sorted := map[ast.Expr]bool{} // maps.Keys(…) and maps.Values(…) that are sorted at once
		for _, i := range f.Imports {
			path, _ := strconv.Unquote(i.Path.Value)
			if why, ok := forbiddenImports[path]; ok {
				report(i, "imports %s: %s", path, why)
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.RangeStmt:
				if t := info.TypeOf(n.X); t != nil {
					if _, ok := t.Underlying().(*types.Map); ok {
						report(n, "ranges over a map, whose order differs")
					}
				}
			case *ast.GoStmt:
				report(n, "starts a goroutine, whose progress differs")
			case *ast.CallExpr:
				if pkg, name := callee(info, n); pkg == "slices" && strings.HasPrefix(name, "Sorted") {
					for _, a := range n.Args {
						sorted[a] = true
					}
				}
			}
			return true
		})
		ast.Inspect(f, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				if pkg, name := callee(info, call); pkg == "maps" && slices.Contains([]string{"Keys", "Values", "All"}, name) && !sorted[call] {
					report(call, "walks a map by maps.%s without slices.Sorted right around it", name)
				}
			}
			if id, ok := n.(*ast.Ident); ok {
				if o := info.Uses[id]; o != nil && o.Pkg() != nil && o.Pkg().Path() == "time" && o.Parent() == o.Pkg().Scope() && slices.Contains(forbiddenTime, o.Name()) {
					report(id, "uses time.%s: time travels inside commands", o.Name())
				}
			}
			return true
		})
	}
	return found
}

// callee returns the package and name of a called package-level function.
func callee(info *types.Info, call *ast.CallExpr) (pkg, name string) {
	fun := ast.Unparen(call.Fun)
	switch x := fun.(type) {
	case *ast.IndexExpr:
		fun = x.X
	case *ast.IndexListExpr:
		fun = x.X
	}
	if sel, ok := fun.(*ast.SelectorExpr); ok {
		if f, ok := info.Uses[sel.Sel].(*types.Func); ok && f.Pkg() != nil {
			return f.Pkg().Path(), f.Name()
		}
	}
	return "", ""
}

// exports finds the compiled export data of packages and of all that they import, by the go tool's cache.
func exports(t *testing.T, packages ...string) types.Importer {
	t.Helper()
	args := append([]string{"list", "-export", "-deps", "-f", "{{.ImportPath}}\t{{.Export}}"}, packages...)
	cmd := exec.Command("go", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, stderr.String())
	}
	file := map[string]string{}
	for line := range strings.Lines(string(out)) {
		path, export, _ := strings.Cut(strings.TrimSpace(line), "\t")
		file[path] = export
	}
	return importer.ForCompiler(token.NewFileSet(), "gc", func(path string) (io.ReadCloser, error) {
		if file[path] == "" {
			return nil, fmt.Errorf("no export data of %s", path)
		}
		return os.Open(file[path])
	})
}

func typed(t *testing.T, fset *token.FileSet, files []*ast.File, imports types.Importer) *types.Info {
	t.Helper()
	info := &types.Info{Types: map[ast.Expr]types.TypeAndValue{}, Uses: map[*ast.Ident]types.Object{}, Defs: map[*ast.Ident]types.Object{}}
	if _, err := (&types.Config{Importer: imports}).Check("checked", fset, files, info); err != nil {
		t.Fatalf("type check: %v", err)
	}
	return info
}

func TestThisPackageIsDeterministic(t *testing.T) {
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	fset := token.NewFileSet()
	var files []*ast.File
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	if len(files) < 15 {
		t.Fatalf("found only %d files; the check looks in the wrong place", len(files))
	}
	for _, f := range nondeterminism(fset, files, typed(t, fset, files, exports(t, "."))) {
		t.Error(f)
	}
}

// TestTheCheckFinds shows the check a file with one of each, which it must all find, and nothing more.
func TestTheCheckFinds(t *testing.T) {
	const bad = `package bad
import (
	"maps"
	"math/rand" // want
	"os" // want
	"slices"
	clock "time"
)
type set map[string]int
func f(m map[string]int, s set, l []int) (n int64) {
	for range m { n++ } // want
	for k := range s { n += int64(len(k)) } // want
	for _, x := range l { n += int64(x) }
	for _, k := range slices.Sorted(maps.Keys(m)) { n += int64(m[k]) }
	for k := range maps.Keys(m) { n += int64(len(k)) } // want
	n += int64(len(slices.Collect(maps.Values(s)))) // want
	n += clock.Now().Unix() // want
	now := clock.Now // want
	n += int64(clock.Since(now())) // want
	n += int64(clock.Duration(3) * clock.Second)
	n += clock.Unix(0, 0).UnixNano()
	go f(m, s, l) // want
	_ = os.Args
	return n + rand.Int63()
}
`
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, "bad.go", bad, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	got := nondeterminism(fset, []*ast.File{f}, typed(t, fset, []*ast.File{f}, exports(t, "maps", "math/rand", "os", "slices", "time")))
	lines := map[int]bool{}
	for _, g := range got {
		n, _ := strconv.Atoi(strings.Split(g, ":")[1])
		lines[n] = true
	}
	for i, text := range strings.Split(bad, "\n") {
		if want := strings.HasSuffix(text, "// want"); want != lines[i+1] {
			t.Errorf("line %d, found %v: %s", i+1, lines[i+1], text)
		}
	}
}
