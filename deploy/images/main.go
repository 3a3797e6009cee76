// Command images builds the project's container images without a container engine: static binaries for each platform,
// layers, an image index, and a bill of materials, as archives that registries and engines take.
//
//	go run ./deploy/images -version v1.2.3 -roots ca-certificates.pem -out dist/images
//
// NAME.tar is an OCI layout with an index of all platforms. `ctr images import`, `podman load`, `skopeo copy
// oci-archive:NAME.tar` and `docker load` read it; an engine that does not know layouts takes the image of the first
// platform from it. NAME_OS_ARCH.spdx.json says what is inside, and is in the image, too.
//
// The same source, toolchain and flags give the same digests: layers hold no times, and owners and orders are fixed.
//
// What is in which image stands in spec.go. The rest follows the road of the bytes: build.go compiles, layer.go packs,
// sbom.go lists, oci.go describes and writes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "images:", err)
		}
		os.Exit(1)
	}
}

// options are one run.
type options struct {
	out, binaries, roots string
	repository           string
	version, revision    string
	created              time.Time
	platforms            []platform
	added                map[string][]addedFile // by the image's name
	packed               packer
}

// addedFile is a file from this machine's disk that is put into an image, for tests.
type addedFile struct{ source, path string }

// run is the whole program.
func run(ctx context.Context, args []string, stdout io.Writer) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	roots, err := os.ReadFile(o.roots)
	if err != nil {
		return fmt.Errorf("read the certificate authorities: %w; make them with `go run -C tools/roots .`", err)
	}
	if o.binaries == "" {
		o.binaries = filepath.Join(o.out, "bin")
		if err := compile(ctx, o.platforms, o.version, o.binaries); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return fmt.Errorf("make the folder of images: %w", err)
	}
	for _, s := range specs(roots) {
		if err := o.image(s, stdout); err != nil {
			return fmt.Errorf("image %s: %w", s.name, err)
		}
	}
	return nil
}

// image builds one image for all platforms and writes it.
func (o *options) image(s spec, stdout io.Writer) error {
	files := make([]fileLayer, 0, len(o.added[s.name]))
	for _, a := range o.added[s.name] {
		files = append(files, fileLayer{path: a.path, source: a.source})
	}
	made := archive{reference: o.repository + "/" + s.name + ":" + o.version, tag: o.version}
	for _, p := range o.platforms {
		img, bill, err := s.build(o, p, files)
		if err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		made.images = append(made.images, img)
		name := filepath.Join(o.out, s.name+"_"+p.os+"_"+p.arch+".spdx.json")
		if err := os.WriteFile(name, bill, 0o644); err != nil {
			return fmt.Errorf("write the bill of materials: %w", err)
		}
	}
	made.annotations = s.labels(o)
	path := filepath.Join(o.out, s.name+".tar")
	digest, err := made.write(path)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s@%s\n", made.reference, digest)
	for _, img := range made.images {
		fmt.Fprintf(stdout, "  %-12s %s  %.1f MB, %.1f MB unpacked\n", img.platform, img.manifest.digest, mb(img.compressed()), mb(img.unpacked()))
	}
	return nil
}

func mb(n int64) float64 { return float64(n) / 1e6 }

func parse(args []string) (*options, error) {
	o := &options{added: map[string][]addedFile{}, packed: packer{}}
	f := flag.NewFlagSet("images", flag.ContinueOnError)
	f.StringVar(&o.out, "out", "dist/images", "the folder that the archives are written to")
	f.StringVar(&o.binaries, "binaries", "", "a folder with OS_ARCH/PROGRAM; they are compiled when it is not given")
	f.StringVar(&o.roots, "roots", "dist/ca-certificates.pem", "a PEM file with the certificate authorities to trust")
	f.StringVar(&o.repository, "repository", "ghcr.io/neolith", "the registry and path before the images' names")
	f.StringVar(&o.version, "version", "dev", "the images' tag, and the version that the programs show")
	f.StringVar(&o.revision, "revision", "", "the commit that they are built from")
	created := f.String("created", "1970-01-01T00:00:00Z", "when, as a label: the commit's time, so that builds can be repeated")
	platforms := f.String("platforms", "linux/amd64,linux/arm64", "what to build for")
	f.Func("add", "IMAGE=FILE:/PATH: puts one more file into an image (for tests)", func(s string) error {
		name, rest, ok := strings.Cut(s, "=")
		source, path, ok2 := strings.Cut(rest, ":")
		if !ok || !ok2 || !strings.HasPrefix(path, "/") || filepath.Clean(path) != path {
			return fmt.Errorf("%q is not IMAGE=FILE:/PATH", s)
		}
		o.added[name] = append(o.added[name], addedFile{source, path})
		return nil
	})
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("%q is not a flag; see -help", f.Arg(0))
	}
	var err error
	if o.created, err = time.Parse(time.RFC3339, *created); err != nil {
		return nil, fmt.Errorf("-created: %q is not a time as in 2006-01-02T15:04:05Z", *created)
	}
	for _, s := range strings.Split(*platforms, ",") {
		goos, arch, ok := strings.Cut(s, "/")
		if !ok || goos == "" || arch == "" {
			return nil, fmt.Errorf("-platforms: %q is not OS/ARCH", s)
		}
		o.platforms = append(o.platforms, platform{goos, arch})
	}
	for name := range o.added {
		if !known(name) {
			return nil, fmt.Errorf("-add: there is no image %q", name)
		}
	}
	return o, checkTag(o.version)
}

var validTag = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)

// checkTag refuses what no registry takes.
func checkTag(tag string) error {
	if !validTag.MatchString(tag) {
		return fmt.Errorf("-version: %q cannot be an image's tag; use letters, digits, '.', '-' and '_'", tag)
	}
	return nil
}
