// What the archives hold, that they are whole, and that they are the same every time.

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// built makes both images of small programs and returns the folder with the archives.
func built(t *testing.T, programs string, extra ...string) string {
	t.Helper()
	out := t.TempDir()
	roots := filepath.Join(out, "roots.pem")
	write(t, roots, []byte("-----BEGIN CERTIFICATE-----\n"))
	args := append([]string{
		"-binaries", programs, "-roots", roots, "-out", out, "-version", "v1.2.3", "-revision", "4f3c2b1a", "-created", "2026-01-02T05:04:05+02:00",
	}, extra...)
	var stdout bytes.Buffer
	if err := run(t.Context(), args, &stdout); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(stdout.String(), "ghcr.io/neolith/orchestrator:v1.2.3@sha256:") {
		t.Errorf("it says %q, which does not name the image", &stdout)
	}
	return out
}

// small is a compiled program, made once: packing it is what takes the time here.
var small struct {
	once  sync.Once
	bytes []byte
}

// programs gives a small program all names.
func programs(t *testing.T) string {
	t.Helper()
	small.once.Do(func() { small.bytes = compileSmall(t) })
	if small.bytes == nil {
		t.Fatal("there is no program to pack")
	}
	dir := t.TempDir()
	for _, p := range []string{"linux_amd64", "linux_arm64"} {
		if err := os.Mkdir(filepath.Join(dir, p), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"orchestrator", "node-agent", "orchctl"} {
			write(t, filepath.Join(dir, p, name), small.bytes)
		}
	}
	return dir
}

func compileSmall(t *testing.T) []byte {
	t.Helper()
	src := t.TempDir()
	write(t, filepath.Join(src, "go.mod"), []byte("module example.org/small\n\ngo 1.26\n"))
	write(t, filepath.Join(src, "main.go"), []byte("package main\n\nfunc main() { println(\"here\") }\n"))
	program := filepath.Join(src, "small")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, ".")
	cmd.Dir, cmd.Env = src, append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("compile: %v: %s", err, out)
	}
	b, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o755); err != nil {
		t.Fatal(err)
	}
}

// contents reads a tar archive.
func contents(t *testing.T, r io.Reader) (heads []*tar.Header, files map[string][]byte) {
	t.Helper()
	files = map[string][]byte{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return heads, files
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := files[h.Name]; twice {
			t.Errorf("%s is there twice", h.Name)
		}
		if files[h.Name], err = io.ReadAll(tr); err != nil {
			t.Fatal(err)
		}
		heads = append(heads, h)
	}
}

func open(t *testing.T, path string) map[string][]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, files := contents(t, f)
	return files
}

// follow reads what a descriptor names, and checks that it is that.
func follow(t *testing.T, layout map[string][]byte, d descriptor, into any) []byte {
	t.Helper()
	b, ok := layout["blobs/"+strings.ReplaceAll(d.Digest, ":", "/")]
	if !ok {
		t.Fatalf("%s is named and not there", d.Digest)
	}
	if digestOf(b) != d.Digest || int64(len(b)) != d.Size {
		t.Errorf("%s: there are %d bytes with digest %s, of %d", d.Digest, len(b), digestOf(b), d.Size)
	}
	if into != nil {
		if err := json.Unmarshal(b, into); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// unpacked is one platform's image, read back.
type unpacked struct {
	config ociConfig
	heads  map[string]*tar.Header
	files  map[string][]byte
}

// readBack follows an archive from its first file to the last byte of each layer.
func readBack(t *testing.T, path string) (images map[string]unpacked, reference string) {
	t.Helper()
	layout := open(t, path)
	var top, index ociIndex
	if err := json.Unmarshal(layout["index.json"], &top); err != nil {
		t.Fatal(err)
	}
	follow(t, layout, top.Manifests[0], &index)
	images = map[string]unpacked{}
	named := map[string]bool{"oci-layout": true, "index.json": true, "manifest.json": true}
	name := func(d descriptor) { named["blobs/"+strings.ReplaceAll(d.Digest, ":", "/")] = true }
	name(top.Manifests[0])
	for _, d := range index.Manifests {
		var m ociManifest
		u := unpacked{heads: map[string]*tar.Header{}, files: map[string][]byte{}}
		follow(t, layout, d, &m)
		follow(t, layout, m.Config, &u.config)
		name(d)
		name(m.Config)
		for i, l := range m.Layers {
			name(l)
			z, err := gzip.NewReader(bytes.NewReader(follow(t, layout, l, nil)))
			if err != nil {
				t.Fatal(err)
			}
			raw, err := io.ReadAll(z)
			if err != nil {
				t.Fatal(err)
			}
			if digestOf(raw) != u.config.RootFS.DiffIDs[i] {
				t.Errorf("layer %d unpacks to %s, not %s", i, digestOf(raw), u.config.RootFS.DiffIDs[i])
			}
			heads, files := contents(t, bytes.NewReader(raw))
			for _, h := range heads {
				u.heads[h.Name], u.files[h.Name] = h, files[h.Name]
			}
		}
		if len(u.config.RootFS.DiffIDs) != len(m.Layers) || len(u.config.History) != len(m.Layers) {
			t.Errorf("%d layers have %d digests and %d lines of history", len(m.Layers), len(u.config.RootFS.DiffIDs), len(u.config.History))
		}
		images[d.Platform.OS+"/"+d.Platform.Architecture] = u
	}
	for path := range layout {
		if !named[path] {
			t.Errorf("%s is there and nothing names it", path)
		}
	}
	checkDocker(t, layout, named, index.Manifests[0].Platform.Architecture)
	return images, top.Manifests[0].Annotations["io.containerd.image.name"]
}

// checkDocker looks at what engines read that know no layouts.
func checkDocker(t *testing.T, layout map[string][]byte, named map[string]bool, arch string) {
	t.Helper()
	var docker []struct {
		Config           string
		RepoTags, Layers []string
	}
	if err := json.Unmarshal(layout["manifest.json"], &docker); err != nil {
		t.Fatal(err)
	}
	for _, path := range append([]string{docker[0].Config}, docker[0].Layers...) {
		if !named[path] {
			t.Errorf("manifest.json names %s, which the layout does not", path)
		}
	}
	var c ociConfig
	if err := json.Unmarshal(layout[docker[0].Config], &c); err != nil || c.Architecture != arch {
		t.Errorf("manifest.json has an image for %q (%v), not for the first platform", c.Architecture, err)
	}
}

func TestImages(t *testing.T) {
	out := built(t, programs(t))
	for _, c := range []struct {
		name, data, binary string
		ports              int
	}{{"orchestrator", "var/lib/orchestrator/", "orchestrator", 6}, {"node-agent", "var/lib/node-agent/", "node-agent", 0}} {
		t.Run(c.name, func(t *testing.T) {
			images, reference := readBack(t, filepath.Join(out, c.name+".tar"))
			if reference != "ghcr.io/neolith/"+c.name+":v1.2.3" {
				t.Errorf("it is called %s", reference)
			}
			for _, platform := range []string{"linux/amd64", "linux/arm64"} {
				u, ok := images[platform]
				if !ok {
					t.Fatalf("there is no image for %s", platform)
				}
				checkImage(t, u, c.name, c.data, c.ports)
				beside, err := os.ReadFile(filepath.Join(out, c.name+"_"+strings.ReplaceAll(platform, "/", "_")+".spdx.json"))
				if err != nil || !bytes.Equal(beside, u.files["usr/share/sbom/"+c.name+".spdx.json"]) {
					t.Errorf("the bill of materials beside the image is not the one inside it (%v)", err)
				}
				checkBill(t, beside)
			}
		})
	}
}

func checkImage(t *testing.T, u unpacked, name, data string, ports int) {
	t.Helper()
	run := u.config.Config
	if run.User != "65532:65532" || !slices.Equal(run.Entrypoint, []string{"/" + name}) || len(run.ExposedPorts) != ports {
		t.Errorf("it runs %q as %q with ports %v", run.Entrypoint, run.User, run.ExposedPorts)
	}
	if l := run.Labels; l["org.opencontainers.image.version"] != "v1.2.3" || l["org.opencontainers.image.revision"] != "4f3c2b1a" || l["org.opencontainers.image.created"] != "2026-01-02T03:04:05Z" {
		t.Errorf("its labels are %v", l)
	}
	want := []string{
		"etc/", "etc/group", "etc/nsswitch.conf", "etc/passwd", "etc/ssl/", "etc/ssl/certs/", "etc/ssl/certs/ca-certificates.crt", "home/", "home/nonroot/",
		name, "orchctl", "tmp/", "usr/", "usr/share/", "usr/share/sbom/", "usr/share/sbom/" + name + ".spdx.json", "var/", "var/lib/", data,
	}
	var have []string
	for path, h := range u.heads {
		have = append(have, path)
		mode, owner := fs.FileMode(h.Mode), 0
		switch path {
		case "tmp/":
			if h.Mode != 0o1777 {
				t.Errorf("%s has mode %o", path, h.Mode)
			}
			mode = 0o755
		case "home/nonroot/", data:
			owner = 65532
		}
		if mode&0o022 != 0 || mode&^0o777 != 0 {
			t.Errorf("%s has mode %o: others may write it, or it gives rights away", path, h.Mode)
		}
		if h.Uid != owner || h.Gid != owner || h.ModTime.Unix() != 0 {
			t.Errorf("%s is of %d:%d and %s", path, h.Uid, h.Gid, h.ModTime)
		}
	}
	slices.Sort(want)
	slices.Sort(have)
	if !slices.Equal(have, want) {
		t.Errorf("it has %q,\nnot %q", have, want)
	}
	if !bytes.Contains(u.files["etc/passwd"], []byte("\nnonroot:x:65532:65532:")) {
		t.Errorf("/etc/passwd does not know the user: %s", u.files["etc/passwd"])
	}
}

func checkBill(t *testing.T, b []byte) {
	t.Helper()
	var d spdxDocument
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{d.ID: true}
	var names []string
	for _, p := range d.Packages {
		ids[p.ID] = true
		names = append(names, p.Name)
	}
	for _, f := range d.Files {
		ids[f.ID] = true
	}
	if len(ids) != 1+len(d.Packages)+len(d.Files) {
		t.Error("the bill of materials uses an id twice")
	}
	if !slices.Contains(names, "stdlib") || !slices.Contains(names, "example.org/small") {
		t.Errorf("the bill of materials lists %q; the module of the programs, or Go's own, is not there", names)
	}
	for _, r := range d.Relationships {
		if !ids[r.Element] || !ids[r.Related] {
			t.Errorf("the bill of materials relates %s and %s, and does not list both", r.Element, r.Related)
		}
	}
}

func TestSameInputSameBytes(t *testing.T) {
	p := programs(t)
	// One platform shows it; the other is of the same code.
	first, second := built(t, p, "-platforms", "linux/amd64"), built(t, p, "-platforms", "linux/amd64")
	for _, name := range []string{"orchestrator.tar", "node-agent.tar", "orchestrator_linux_amd64.spdx.json"} {
		a, err := os.ReadFile(filepath.Join(first, name))
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(second, name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a, b) {
			t.Errorf("%s came out differently", name)
		}
	}
	other := built(t, p, "-platforms", "linux/amd64", "-revision", "another")
	a, _ := os.ReadFile(filepath.Join(first, "orchestrator.tar"))
	b, err := os.ReadFile(filepath.Join(other, "orchestrator.tar"))
	if err != nil || bytes.Equal(a, b) {
		t.Errorf("another commit gave the same archive (%v)", err)
	}
}

func TestAddedFile(t *testing.T) {
	p := programs(t)
	out := built(t, p, "-platforms", "linux/amd64", "-add", "node-agent="+filepath.Join(p, "linux_amd64", "orchctl")+":/usr/local/bin/more")
	images, _ := readBack(t, filepath.Join(out, "node-agent.tar"))
	if h := images["linux/amd64"].heads["usr/local/bin/more"]; h == nil || h.Mode != 0o755 {
		t.Errorf("the file is not there: %v", h)
	}
	images, _ = readBack(t, filepath.Join(out, "orchestrator.tar"))
	if images["linux/amd64"].heads["usr/local/bin/more"] != nil {
		t.Error("the file is in another image, too")
	}
}

func TestRefusals(t *testing.T) {
	p := programs(t)
	roots := filepath.Join(t.TempDir(), "roots.pem")
	write(t, roots, nil)
	plain := t.TempDir()
	for _, arch := range []string{"linux_amd64", "linux_arm64"} {
		_ = os.Mkdir(filepath.Join(plain, arch), 0o755)
		for _, name := range []string{"orchestrator", "node-agent", "orchctl"} {
			write(t, filepath.Join(plain, arch, name), []byte("#!/bin/sh\n"))
		}
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"-roots", roots, "-binaries", p, "-version", "a/b"}, "image's tag"},
		{[]string{"-roots", roots, "-binaries", p, "-created", "yesterday"}, "not a time"},
		{[]string{"-roots", roots, "-binaries", p, "-platforms", "linux"}, "not OS/ARCH"},
		{[]string{"-roots", roots, "-binaries", p, "-platforms", "linux/riscv64"}, "no such file"},
		{[]string{"-roots", roots, "-binaries", p, "-add", "another=x:/y"}, "no image"},
		{[]string{"-roots", roots, "-binaries", p, "-add", "node-agent=x:y"}, "IMAGE=FILE:/PATH"},
		{[]string{"-roots", roots + "x", "-binaries", p}, "tools/roots"},
		{[]string{"-roots", roots, "-binaries", plain}, "must be a Go program"},
		{[]string{"-roots", roots, "more"}, "not a flag"},
	} {
		out := t.TempDir()
		err := run(t.Context(), append(c.args, "-out", out), io.Discard)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: it says %v, without %q", c.args, err, c.want)
		}
		if left, _ := filepath.Glob(filepath.Join(out, "*.tar*")); len(left) > 0 {
			t.Errorf("%q: it left %q", c.args, left)
		}
	}
}
