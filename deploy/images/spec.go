// What is in the images: the only place that says so.

package main

import (
	"fmt"
	"path/filepath"
	"time"
)

// nonroot is the user that everything runs as, the one of distroless images.
const nonroot = 65532

// platform is what a binary is for.
type platform struct{ os, arch string }

func (p platform) String() string { return p.os + "/" + p.arch }

// spec is one image.
type spec struct {
	name, title string
	program     string     // what it runs
	others      []string   // programs that it has beside it
	base        []fileSpec // what all of it stands on
	ports       []string
}

// specs are the images of the project.
func specs(roots []byte) []spec {
	return []spec{
		{
			name: "orchestrator", title: "A server of a cluster of agent sessions", program: "orchestrator", others: []string{"orchctl"},
			base:  base(roots, "var/lib/orchestrator"),
			ports: []string{"8075/tcp", "8075/udp", "8076/tcp", "8077/tcp", "8078/tcp", "8079/tcp"},
		},
		{
			name: "node-agent", title: "A node that runs agent sessions", program: "node-agent", others: []string{"orchctl"},
			base: base(roots, "var/lib/node-agent"),
		},
	}
}

func known(name string) bool {
	for _, s := range specs(nil) {
		if s.name == name {
			return true
		}
	}
	return false
}

// base is a system that has nothing but what programs look for: who they are, whom to trust, and where they may write.
func base(roots []byte, data string) []fileSpec {
	user := fmt.Sprintf("root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n"+
		"nonroot:x:%[1]d:%[1]d:nonroot:/home/nonroot:/sbin/nologin\n", nonroot)
	group := fmt.Sprintf("root:x:0:\nnobody:x:65534:\nnonroot:x:%d:\n", nonroot)
	return []fileSpec{
		{path: "etc", dir: true, mode: 0o755},
		{path: "etc/group", content: []byte(group), mode: 0o644},
		{path: "etc/nsswitch.conf", content: []byte("hosts: files dns\n"), mode: 0o644},
		{path: "etc/passwd", content: []byte(user), mode: 0o644},
		{path: "etc/ssl", dir: true, mode: 0o755},
		{path: "etc/ssl/certs", dir: true, mode: 0o755},
		{path: "etc/ssl/certs/ca-certificates.crt", content: roots, mode: 0o644},
		{path: "home", dir: true, mode: 0o755},
		{path: "home/nonroot", dir: true, mode: 0o700, owner: nonroot},
		{path: "tmp", dir: true, mode: 0o1777},
		{path: "var", dir: true, mode: 0o755},
		{path: "var/lib", dir: true, mode: 0o755},
		{path: data, dir: true, mode: 0o700, owner: nonroot},
	}
}

// labels are what tools show of an image.
func (s *spec) labels(o *options) map[string]string {
	l := map[string]string{
		"org.opencontainers.image.created":       o.created.UTC().Format(time.RFC3339),
		"org.opencontainers.image.description":   s.title,
		"org.opencontainers.image.documentation": "https://github.com/neolith/orchestrator/blob/main/docs/operating/kubernetes.md",
		"org.opencontainers.image.licenses":      "Apache-2.0",
		"org.opencontainers.image.source":        "https://github.com/neolith/orchestrator",
		"org.opencontainers.image.title":         s.name,
		"org.opencontainers.image.url":           "https://github.com/neolith/orchestrator",
		"org.opencontainers.image.vendor":        "The orchestrator authors",
		"org.opencontainers.image.version":       o.version,
	}
	if o.revision != "" {
		l["org.opencontainers.image.revision"] = o.revision
	}
	return l
}

// fileLayer is a file that is a layer of its own.
type fileLayer struct{ path, source string }

// build puts the image together for one platform: what changes least comes first, so that a new version shares most of
// what was pulled before. It returns the bill of materials, too.
func (s *spec) build(o *options, p platform, added []fileLayer) (*image, []byte, error) {
	img := &image{platform: p, labels: s.labels(o), created: o.created, entrypoint: "/" + s.program, ports: s.ports, packer: o.packed}
	if err := img.addLayer("what programs look for", s.base); err != nil {
		return nil, nil, err
	}
	b := bill{name: s.name, version: o.version, platform: p, created: o.created}
	for _, f := range s.base {
		if !f.dir {
			b.addFile("/"+f.path, f.content)
		}
	}
	var files []fileLayer
	for _, program := range append(append([]string{}, s.others...), s.program) {
		files = append(files, fileLayer{"/" + program, filepath.Join(o.binaries, p.os+"_"+p.arch, program)})
	}
	for _, f := range append(files, added...) {
		content, err := readBinary(f.source)
		if err != nil {
			return nil, nil, err
		}
		if err := img.addLayer(f.path, withParents(fileSpec{path: f.path[1:], content: content, mode: 0o755})); err != nil {
			return nil, nil, err
		}
		if err := b.addBinary(f.path, content); err != nil {
			return nil, nil, err
		}
	}
	doc, err := b.document()
	if err != nil {
		return nil, nil, err
	}
	return img, doc, img.addLayer("bill of materials", withParents(fileSpec{path: "usr/share/sbom/" + s.name + ".spdx.json", content: doc, mode: 0o644}))
}
