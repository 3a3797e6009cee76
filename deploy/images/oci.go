// Images as the OCI image specification describes them, and the archive that they are written to.

package main

import (
	"archive/tar"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Media types.
const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// blob is content under its digest.
type blob struct {
	digest string
	bytes  []byte
}

func newBlob(b []byte) blob { return blob{digestOf(b), b} }

// path is where a layout keeps it.
func (b *blob) path() string { return "blobs/" + strings.ReplaceAll(b.digest, ":", "/") }

// describe is how other content names it.
func (b *blob) describe(mediaType string) descriptor {
	return descriptor{MediaType: mediaType, Digest: b.digest, Size: int64(len(b.bytes))}
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    *ociPlatform      `json:"platform,omitempty"`
}

type ociPlatform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

type ociIndex struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	Manifests     []descriptor      `json:"manifests"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

type ociManifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	Config        descriptor        `json:"config"`
	Layers        []descriptor      `json:"layers"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

type ociConfig struct {
	Created      string       `json:"created"`
	Architecture string       `json:"architecture"`
	OS           string       `json:"os"`
	Config       ociRun       `json:"config"`
	RootFS       ociRootFS    `json:"rootfs"`
	History      []ociHistory `json:"history"`
}

type ociRun struct {
	User         string              `json:"User"`
	ExposedPorts map[string]struct{} `json:"ExposedPorts,omitempty"`
	Env          []string            `json:"Env"`
	Entrypoint   []string            `json:"Entrypoint"`
	WorkingDir   string              `json:"WorkingDir"`
	Labels       map[string]string   `json:"Labels"`
}

type ociRootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

type ociHistory struct {
	Created   string `json:"created"`
	CreatedBy string `json:"created_by"`
}

// image is one image for one platform.
type image struct {
	platform   platform
	labels     map[string]string
	created    time.Time
	entrypoint string
	ports      []string
	layers     []*layer
	packer     packer

	config, manifest blob // once it is sealed
}

func (img *image) addLayer(note string, files []fileSpec) error {
	l, err := img.packer.pack(note, files)
	if err != nil {
		return err
	}
	img.layers = append(img.layers, l)
	return nil
}

// seal describes the image.
func (img *image) seal() error {
	created := img.created.UTC().Format(time.RFC3339)
	c := ociConfig{
		Created: created, Architecture: img.platform.arch, OS: img.platform.os, RootFS: ociRootFS{Type: "layers"},
		Config: ociRun{
			User: strconv.Itoa(nonroot) + ":" + strconv.Itoa(nonroot), Env: []string{"PATH=/:/usr/local/bin:/usr/bin:/bin", "HOME=/home/nonroot"},
			Entrypoint: []string{img.entrypoint}, WorkingDir: "/", Labels: img.labels,
		},
	}
	for _, p := range img.ports {
		if c.Config.ExposedPorts == nil {
			c.Config.ExposedPorts = map[string]struct{}{}
		}
		c.Config.ExposedPorts[p] = struct{}{}
	}
	m := ociManifest{SchemaVersion: 2, MediaType: typeManifest, Annotations: img.labels}
	for _, l := range img.layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, l.diffID)
		c.History = append(c.History, ociHistory{created, l.note})
		m.Layers = append(m.Layers, l.describe(typeLayer))
	}
	var err error
	if img.config, err = jsonBlob(c); err != nil {
		return err
	}
	m.Config = img.config.describe(typeConfig)
	img.manifest, err = jsonBlob(m)
	return err
}

// compressed is what is pulled, in bytes.
func (img *image) compressed() (n int64) {
	for _, l := range img.layers {
		n += int64(len(l.bytes))
	}
	return n
}

// unpacked is what it takes on a node, in bytes.
func (img *image) unpacked() (n int64) {
	for _, l := range img.layers {
		n += l.unpackedSize
	}
	return n
}

// archive is what is written: one image for several platforms.
type archive struct {
	reference   string // with registry and tag
	tag         string
	annotations map[string]string
	images      []*image
}

// write makes the file and returns the digest of the index of platforms, under which a registry knows the image.
func (a *archive) write(path string) (digest string, err error) {
	platforms := ociIndex{SchemaVersion: 2, MediaType: typeIndex, Annotations: a.annotations}
	blobs := map[string]blob{}
	for _, img := range a.images {
		if err := img.seal(); err != nil {
			return "", err
		}
		d := img.manifest.describe(typeManifest)
		d.Platform = &ociPlatform{img.platform.arch, img.platform.os}
		platforms.Manifests = append(platforms.Manifests, d)
		for _, b := range []blob{img.config, img.manifest} {
			blobs[b.path()] = b
		}
		for _, l := range img.layers {
			blobs[l.path()] = l.blob
		}
	}
	index, err := jsonBlob(platforms)
	if err != nil {
		return "", err
	}
	blobs[index.path()] = index
	d := index.describe(typeIndex)
	d.Annotations = map[string]string{"io.containerd.image.name": a.reference, "org.opencontainers.image.ref.name": a.tag}
	layout, err := a.heads(d)
	if err != nil {
		return "", err
	}
	temporary, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.new")
	if err != nil {
		return "", fmt.Errorf("write the archive: %w", err)
	}
	defer func() { _ = os.Remove(temporary.Name()) }() // it is gone when all went well
	err = writeTar(temporary, append(layout, sorted(blobs)...))
	if err = cmp.Or(err, temporary.Chmod(0o644), temporary.Close()); err != nil {
		return "", fmt.Errorf("write the archive: %w", err)
	}
	return index.digest, os.Rename(temporary.Name(), path)
}

// entry is a file of the archive.
type entry struct {
	name string
	blob []byte
}

// heads are the files that lead to the blobs: those of a layout, and the one that engines read which know no layouts.
func (a *archive) heads(index descriptor) ([]entry, error) {
	first := a.images[0]
	docker := []map[string]any{{"Config": first.config.path(), "RepoTags": []string{a.reference}, "Layers": paths(first.layers)}}
	var out []entry
	for _, h := range []struct {
		name    string
		content any
	}{
		{"oci-layout", map[string]string{"imageLayoutVersion": "1.0.0"}},
		{"index.json", ociIndex{SchemaVersion: 2, MediaType: typeIndex, Manifests: []descriptor{index}}},
		{"manifest.json", docker},
	} {
		b, err := jsonBlob(h.content)
		if err != nil {
			return nil, err
		}
		out = append(out, entry{h.name, b.bytes})
	}
	return out, nil
}

func paths(layers []*layer) (out []string) {
	for _, l := range layers {
		out = append(out, l.path())
	}
	return out
}

func sorted(blobs map[string]blob) (out []entry) {
	for _, path := range slices.Sorted(maps.Keys(blobs)) {
		out = append(out, entry{path, blobs[path].bytes})
	}
	return out
}

func writeTar(to io.Writer, entries []entry) error {
	w := tar.NewWriter(to)
	for _, e := range entries {
		h := &tar.Header{Format: tar.FormatUSTAR, Typeflag: tar.TypeReg, Name: e.name, Mode: 0o644, Size: int64(len(e.blob)), ModTime: time.Unix(0, 0)}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := w.Write(e.blob); err != nil {
			return err
		}
	}
	return w.Close()
}

func jsonBlob(v any) (blob, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return blob{}, fmt.Errorf("describe the image: %w", err)
	}
	return newBlob(b), nil
}
