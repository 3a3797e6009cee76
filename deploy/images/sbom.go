// The bill of materials: what Go wrote into the binaries about themselves, as an SPDX 2.3 document.

package main

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// bill is what is in one image for one platform.
type bill struct {
	name, version string
	platform      platform
	created       time.Time

	packages []spdxPackage
	files    []spdxFile
	relates  []spdxRelationship
}

type spdxDocument struct {
	Version       string             `json:"spdxVersion"`
	DataLicense   string             `json:"dataLicense"`
	ID            string             `json:"SPDXID"`
	Name          string             `json:"name"`
	Namespace     string             `json:"documentNamespace"`
	CreationInfo  spdxCreation       `json:"creationInfo"`
	Packages      []spdxPackage      `json:"packages"`
	Files         []spdxFile         `json:"files"`
	Relationships []spdxRelationship `json:"relationships"`
}

type spdxCreation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type spdxPackage struct {
	ID               string            `json:"SPDXID"`
	Name             string            `json:"name"`
	Version          string            `json:"versionInfo"`
	DownloadLocation string            `json:"downloadLocation"`
	LicenseConcluded string            `json:"licenseConcluded"`
	LicenseDeclared  string            `json:"licenseDeclared"`
	Copyright        string            `json:"copyrightText"`
	FilesAnalyzed    bool              `json:"filesAnalyzed"`
	Purpose          string            `json:"primaryPackagePurpose"`
	Checksums        []spdxChecksum    `json:"checksums,omitempty"`
	References       []spdxExternalRef `json:"externalRefs,omitempty"`
}

type spdxFile struct {
	ID               string         `json:"SPDXID"`
	Name             string         `json:"fileName"`
	Checksums        []spdxChecksum `json:"checksums"`
	LicenseConcluded string         `json:"licenseConcluded"`
	Copyright        string         `json:"copyrightText"`
}

type spdxChecksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type spdxExternalRef struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type spdxRelationship struct {
	Element string `json:"spdxElementId"`
	Related string `json:"relatedSpdxElement"`
	Type    string `json:"relationshipType"`
}

const (
	documentID  = "SPDXRef-DOCUMENT"
	imageID     = "SPDXRef-Image"
	noAssertion = "NOASSERTION"
)

// addFile lists a file of the image, and returns its id.
func (b *bill) addFile(path string, content []byte) string {
	f := spdxFile{ID: spdxID("File", path), Name: "." + path, LicenseConcluded: noAssertion, Copyright: noAssertion, Checksums: []spdxChecksum{{"SHA256", strings.TrimPrefix(digestOf(content), "sha256:")}}}
	b.files = append(b.files, f)
	b.relate(imageID, f.ID, "CONTAINS")
	return f.ID
}

// addBinary lists a program and the modules that it was built from.
func (b *bill) addBinary(path string, content []byte) error {
	file := b.addFile(path, content)
	info, err := buildinfo.Read(bytes.NewReader(content))
	if err != nil {
		return fmt.Errorf("read what %s was built from: %w; it must be a Go program", path, err)
	}
	if v, ok := strings.CutPrefix(info.GoVersion, "go"); ok {
		b.relate(file, b.addModule(&debug.Module{Path: "stdlib", Version: v}), "STATIC_LINK")
	}
	main := info.Main
	main.Version, main.Sum = b.version, ""
	if main.Path == "" {
		main.Path = info.Path
	}
	b.relate(file, b.addModule(&main), "GENERATED_FROM")
	for _, m := range info.Deps {
		for m.Replace != nil {
			m = m.Replace
		}
		b.relate(file, b.addModule(m), "STATIC_LINK")
	}
	return nil
}

// addModule lists a module once, and returns its id.
func (b *bill) addModule(m *debug.Module) string {
	id := spdxID("Module", m.Path+"@"+m.Version)
	if slices.ContainsFunc(b.packages, func(p spdxPackage) bool { return p.ID == id }) {
		return id
	}
	p := spdxPackage{
		ID: id, Name: m.Path, Version: m.Version, DownloadLocation: noAssertion, LicenseConcluded: noAssertion, LicenseDeclared: noAssertion, Copyright: noAssertion, Purpose: "LIBRARY",
		References: []spdxExternalRef{{"PACKAGE-MANAGER", "purl", "pkg:golang/" + m.Path + "@" + strings.ReplaceAll(m.Version, "+", "%2B")}},
	}
	// go.sum's h1 is a SHA-256 of the hashes of the module's files.
	if sum, ok := strings.CutPrefix(m.Sum, "h1:"); ok {
		if raw, err := base64.StdEncoding.DecodeString(sum); err == nil {
			p.Checksums = []spdxChecksum{{"SHA256", hex.EncodeToString(raw)}}
		}
	}
	b.packages = append(b.packages, p)
	return id
}

func (b *bill) relate(from, to, how string) {
	b.relates = append(b.relates, spdxRelationship{from, to, how})
}

// document is the whole. Its namespace is made of its content, as everything else in it.
func (b *bill) document() ([]byte, error) {
	image := spdxPackage{
		ID: imageID, Name: b.name, Version: b.version, DownloadLocation: noAssertion, LicenseConcluded: noAssertion, LicenseDeclared: "Apache-2.0",
		Copyright: noAssertion, Purpose: "CONTAINER",
	}
	slices.SortFunc(b.packages, func(x, y spdxPackage) int { return strings.Compare(x.ID, y.ID) })
	d := spdxDocument{
		Version: "SPDX-2.3", DataLicense: "CC0-1.0", ID: documentID, Name: b.name + "-" + b.version + "-" + b.platform.os + "-" + b.platform.arch,
		CreationInfo: spdxCreation{b.created.UTC().Format(time.RFC3339), []string{"Tool: deploy/images"}},
		Packages:     append([]spdxPackage{image}, b.packages...), Files: b.files,
		Relationships: append([]spdxRelationship{{documentID, imageID, "DESCRIBES"}}, b.relates...),
	}
	raw, err := json.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("write the bill of materials: %w", err)
	}
	sum := sha256.Sum256(raw)
	d.Namespace = "https://github.com/neolith/orchestrator/sbom/" + d.Name + "-" + hex.EncodeToString(sum[:16])
	if raw, err = json.MarshalIndent(d, "", " "); err != nil {
		return nil, fmt.Errorf("write the bill of materials: %w", err)
	}
	return append(raw, '\n'), nil
}

var notInID = regexp.MustCompile(`[^A-Za-z0-9.-]+`)

// spdxID is an id as SPDX allows them. Different names that look alike in it are told apart by a hash.
func spdxID(kind, name string) string {
	plain := strings.Trim(notInID.ReplaceAllString(name, "-"), "-")
	sum := sha256.Sum256([]byte(name))
	return "SPDXRef-" + kind + "-" + plain + "-" + hex.EncodeToString(sum[:4])
}
