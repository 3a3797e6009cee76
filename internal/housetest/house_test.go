// The rules of the house, each as a test.

package housetest

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// fix mends what can be mended without thought: go test ./internal/housetest -fix
var fix = flag.Bool("fix", false, "put the empty lines in that are missing")

const module = "github.com/neolith/orchestrator"

// floors is the plan of the house, from the ground up. A room may import rooms of lower floors (floors may be skipped),
// and its own parts; not rooms beside or above it.
var floors = [][]string{
	{"internal/fault", "telemetry", "api/proto"},
	{"session", "internal/config", "serializer/chunk"},
	{"loadbalancer", "auth", "queue", "serializer", "chunks", "provider", "recorder", "ui"},
	{"internal/pbconv"},
	{"cluster", "nodelink", "client"},
	{"router", "queue/dispatch"},
	{"leader", "agent"},
	{"gateway", "gateway/tools"},
	{"gateway/socket", "gateway/mcp", "gateway/record"},
	{"cmd", "sim", "test", "bench"},
}

// anywhere are rooms that have no floor: small helpers that know none of the house but helpers.
var anywhere = []string{"internal", "telemetry", "api/proto"}

// pkg is what go list says of a package.
type pkg struct {
	ImportPath string
	Dir        string
	Name       string
	GoFiles    []string
	CgoFiles   []string
	TestGoFiles, XTestGoFiles,
	IgnoredGoFiles []string
	Imports []string
	Error   *struct{ Err string }
}

// list runs go list in the module's root.
func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-e", "-json=ImportPath,Dir,Name,GoFiles,CgoFiles,TestGoFiles,XTestGoFiles,IgnoredGoFiles,Imports,Error"}, args...)...)
	cmd.Dir = filepath.Join("..", "..")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v: %s", cmd.Args, err, &stderr)
	}
	var all []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) == 0 {
		t.Fatal("go list found nothing")
	}
	return all
}

// room returns the path of a package within the module; false when it is of another one.
func room(importPath string) (string, bool) {
	if importPath == module {
		return ".", true
	}
	return strings.CutPrefix(importPath, module+"/")
}

// within reports whether a package lies in a room or is it.
func within(path, room string) bool { return path == room || strings.HasPrefix(path, room+"/") }

// floorOf returns a package's floor and the room it lies in; the most specific entry counts. -1 when it has none.
func floorOf(path string) (floor int, room string) {
	floor = -1
	for i, rooms := range floors {
		for _, r := range rooms {
			if within(path, r) && len(r) > len(room) {
				floor, room = i, r
			}
		}
	}
	return floor, room
}

// judge returns what is wrong with one import, "" when nothing is.
func judge(from, to string) string {
	fromFloor, fromRoom := floorOf(from)
	toFloor, toRoom := floorOf(to)
	free := slices.ContainsFunc(anywhere, func(r string) bool { return within(to, r) })
	switch {
	case fromFloor < 0 && within(from, "internal"):
		if !free {
			return "internal is for helpers that know nothing of the house; give the package a floor in internal/housetest, or move it"
		}
		return ""
	case fromFloor < 0:
		return fmt.Sprintf("%s has no floor; say in internal/housetest where it stands", from)
	case fromRoom == toRoom, toFloor < 0 && free:
		return ""
	case toFloor < 0:
		return fmt.Sprintf("%s has no floor; say in internal/housetest where it stands", to)
	case toFloor == fromFloor:
		return "rooms of one floor do not know each other; let the one that needs something declare an interface, and a room above join them"
	case toFloor > fromFloor:
		return "imports run downward; let the lower room declare an interface, or move what both need down"
	}
	return ""
}

func TestImportsRunDownward(t *testing.T) {
	for _, p := range list(t, "./...") {
		from, ok := room(p.ImportPath)
		if !ok || within(from, "internal/deps") {
			continue
		}
		for _, imp := range p.Imports {
			if to, ours := room(imp); ours {
				if why := judge(from, to); why != "" {
					t.Errorf("%s imports %s: %s", from, to, why)
				}
			}
		}
	}
}

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		from, to string
		good     bool
	}{
		{"gateway", "leader", true}, {"cmd/orchestrator", "cluster", true}, {"agent/driver/process", "agent/shim", true},
		{"router", "cluster/state", true}, {"session", "internal/fault", true}, {"auth", "telemetry", true}, {"cluster", "internal/pbconv", true},
		{"internal/pbconv", "session", true}, {"cluster", "internal/anything", true}, {"internal/x", "internal/fault", true},
		{"gateway/socket", "gateway/tools", true}, {"gateway/tools", "gateway", false}, {"gateway/mcp", "gateway/socket", false},
		{"leader", "gateway", false}, {"cluster", "nodelink", false}, {"session", "auth", false}, {"session", "internal/pbconv", false},
		{"internal/x", "session", false}, {"nowhere", "session", false}, {"cmd/orchctl", "nowhere", false}, {"telemetry", "session", false},
		{"agent", "leader", false}, {"sessions", "session", false},
	} {
		if why := judge(c.from, c.to); (why == "") != c.good {
			t.Errorf("%s imports %s: judged %q", c.from, c.to, why)
		}
	}
}

// forbidden are packages that a program must not link, however indirectly.
var forbidden = []struct{ program, what, why string }{
	{"cmd/node-agent", "github.com/hashicorp/raft", "a node takes no part in consensus, and its agent stays small"},
	{"cmd/node-agent", "github.com/hashicorp/memberlist", "a node knows servers by its link only"},
	{"cmd/node-agent", module + "/cluster", "a node knows the control plane by its link only"},
	{"cmd/node-agent", "k8s.io/client-go", "what runs in a cluster of Kubernetes speaks to none of its parts: it has no rights there"},
	{"cmd/orchestrator", "k8s.io/client-go", "what runs in a cluster of Kubernetes speaks to none of its parts: it has no rights there"},
	{"cmd/orchctl", "github.com/hashicorp/raft", "orchctl is a client"},
	{"cmd/orchctl", module + "/cluster", "orchctl is a client"},
	{"cmd/orchctl", module + "/agent", "orchctl is a client"},
	{"agent/shim/cmd/shim", "google.golang.org/grpc", "a shim runs beside each session: its memory and its start count a thousandfold"},
	{"agent/shim/cmd/shim", "google.golang.org/protobuf", "a shim runs beside each session: its memory and its start count a thousandfold"},
	{"agent/shim/cmd/shim", "net/http", "a shim runs beside each session: its memory and its start count a thousandfold"},
}

// allowed are packages inside a forbidden room that a program may link all the same, with the reason.
var allowed = map[string]string{
	"cmd/orchctl " + module + "/cluster/state": "'cluster snapshot inspect' reads a file where no server runs; the reader is pure and links no raft",
}

func TestProgramsLinkNothingForbidden(t *testing.T) {
	deps := map[string][]pkg{}
	for _, f := range forbidden {
		if _, err := os.Stat(filepath.Join("..", "..", f.program)); errors.Is(err, os.ErrNotExist) {
			continue // a program that is not there links nothing
		}
		if deps[f.program] == nil {
			deps[f.program] = list(t, "-deps", "./"+f.program)
		}
		for _, p := range deps[f.program] {
			if within(p.ImportPath, f.what) && allowed[f.program+" "+p.ImportPath] == "" {
				t.Errorf("%s links %s: %s (go mod why, or go list -deps, shows the way)", f.program, p.ImportPath, f.why)
			}
		}
	}
}

func TestOnlyConfigImportsViper(t *testing.T) {
	for _, p := range list(t, "./...") {
		if path, _ := room(p.ImportPath); slices.Contains(p.Imports, "github.com/spf13/viper") && path != "internal/config" && path != "internal/deps" {
			t.Errorf("%s imports viper: it lower-cases keys, guesses types and races; load settings through internal/config", path)
		}
	}
}

// source is a Go file that somebody wrote.
type source struct {
	pkg  string
	name string
	file *ast.File
	test bool
}

// sources parses every file that is not generated.
func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	fset := token.NewFileSet()
	for _, p := range list(t, "./...") {
		files := slices.Concat(p.GoFiles, p.CgoFiles, p.TestGoFiles, p.XTestGoFiles, p.IgnoredGoFiles)
		for _, name := range files {
			path := filepath.Join(p.Dir, name)
			f, err := parser.ParseFile(fset, path, nil, parser.ParseComments|parser.PackageClauseOnly)
			if err != nil {
				t.Errorf("%s: %v", path, err)
				continue
			}
			if ast.IsGenerated(f) {
				continue
			}
			dir, _ := room(p.ImportPath)
			all = append(all, source{pkg: dir, name: filepath.Join(dir, name), file: f, test: strings.HasSuffix(name, "_test.go")})
		}
	}
	return all
}

// A package is introduced once. Other files open with a comment of their own, apart from the package clause by an empty
// line: go doc would run them all together otherwise.
func TestOnePackageComment(t *testing.T) {
	introduced := map[string][]string{}
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		introduced[s.pkg] = append(introduced[s.pkg], "") // the package has files
		if s.file.Doc == nil {
			continue
		}
		text := s.file.Doc.Text()
		word := "Package " + s.file.Name.Name + " "
		if s.file.Name.Name == "main" {
			word = "Command " + filepath.Base(s.pkg) + " "
		}
		if !strings.HasPrefix(text, word) {
			if *fix {
				s.detachComment(t)
			} else {
				t.Errorf("%s: its opening comment touches the package clause and would become part of the package's comment; put an empty line between them (go test ./internal/housetest -fix does)", s.name)
			}
			continue
		}
		introduced[s.pkg] = append(introduced[s.pkg], s.name)
	}
	for pkg, files := range introduced {
		files = slices.DeleteFunc(files, func(f string) bool { return f == "" })
		switch {
		case len(files) == 0:
			t.Errorf("%s: no comment introduces it to a stranger: begin one file with \"// Package …\" (\"// Command …\" for a program)", pkg)
		case len(files) > 1:
			t.Errorf("%s: introduced %d times, by %s; keep one", pkg, len(files), strings.Join(files, ", "))
		}
	}
}

// detachComment puts an empty line before the package clause.
func (s source) detachComment(t *testing.T) {
	t.Helper()
	path := filepath.Join("..", "..", s.name)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	clause := []byte("\npackage " + s.file.Name.Name + "\n")
	if err := os.WriteFile(path, bytes.Replace(text, clause, append([]byte("\n"), clause...), 1), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestEveryFileSaysWhatItIsFor(t *testing.T) {
	for _, s := range sources(t) {
		said := false
		for _, c := range s.file.Comments {
			if c.Pos() < s.file.Package && len(strings.Fields(c.Text())) >= 3 { // Text leaves out directives such as go:build
				said = true
			}
		}
		if !said {
			t.Errorf("%s: does not open with a comment that says what it is for", s.name)
		}
	}
}
