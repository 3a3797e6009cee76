// How fast trees are captured and restored. The store is in memory and checks nothing, so that the figures are this package's.

package serializer_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/neolith/orchestrator/serializer"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// fast is a store that takes everything on trust.
type fast struct{ frames sync.Map }

func (s *fast) Missing(_ context.Context, ids []chunk.ID) (missing []chunk.ID, err error) {
	for _, id := range ids {
		if _, ok := s.frames.Load(id); !ok {
			missing = append(missing, id)
		}
	}
	return missing, nil
}

func (s *fast) Put(_ context.Context, id chunk.ID, frame []byte) error {
	s.frames.Store(id, bytes.Clone(frame))
	return nil
}

func (s *fast) Get(_ context.Context, id chunk.ID) ([]byte, error) {
	f, ok := s.frames.Load(id)
	if !ok {
		return nil, os.ErrNotExist
	}
	return bytes.Clone(f.([]byte)), nil
}

// prose returns text that compresses about as source code does.
func prose(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 2))
	b := make([]byte, 0, n+32)
	for len(b) < n {
		b = fmt.Appendf(b, "%x ", r.Uint32()>>(4*(r.Uint32()%6)))
		if r.Uint32()%9 == 0 {
			b = append(b, "return fmt.Errorf(\n\t"...)
		}
	}
	return b[:n]
}

// workspace makes files of sizes around the average, in directories of fifty, written an hour ago.
func workspace(b testing.TB, files, average int) string {
	b.Helper()
	dir := b.TempDir()
	text := prose(1, 8<<20)
	r := rand.New(rand.NewPCG(3, 3))
	old := time.Now().Add(-time.Hour)
	for i := range files {
		sub := filepath.Join(dir, fmt.Sprintf("pkg%03d", i/50))
		if i%50 == 0 {
			must(b, os.MkdirAll(sub, 0o755))
		}
		n := average/4 + r.IntN(average*3/2)
		at := r.IntN(len(text) - n)
		content := bytes.Clone(text[at : at+n])
		for j := 0; j < n; j += 97 { // no two alike
			content[j] = byte('a' + r.IntN(26))
		}
		p := filepath.Join(sub, fmt.Sprintf("file%05d.go", i))
		must(b, os.WriteFile(p, content, 0o644))
		must(b, os.Chtimes(p, old, old))
	}
	return dir
}

func capture(b testing.TB, store serializer.Sink, dir string, index *serializer.Index) *serializer.Captured {
	c, err := serializer.Capture(context.Background(), store, serializer.CaptureOptions{Roots: []serializer.Root{{Name: "workspace", Dir: dir}}, Previous: index})
	must(b, err)
	return c
}

// whole is a capture as an agent makes it: with the manifest stored and the index saved.
func whole(b testing.TB, store serializer.Sink, dir string, index *serializer.Index) (*serializer.Captured, serializer.Stored) {
	c := capture(b, store, dir, index)
	s, err := serializer.StoreManifest(context.Background(), store, manifest(c))
	must(b, err)
	must(b, c.Index.Save(filepath.Join(os.TempDir(), "bench-index")))
	return c, s
}

func BenchmarkCapture(b *testing.B) {
	dir := workspace(b, 2000, 50<<10)
	defer os.Remove(filepath.Join(os.TempDir(), "bench-index"))
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			c, _ := whole(b, &fast{}, dir, nil)
			b.SetBytes(c.Stats.Bytes)
			b.ReportMetric(float64(c.Stats.BytesSent), "sent-B")
			b.ReportMetric(float64(c.Stats.ChunksTotal), "chunks")
		}
	})
	b.Run("tar-zstd", func(b *testing.B) {
		for b.Loop() {
			if out, err := exec.Command("sh", "-c", "tar -C "+dir+" -cf - . | zstd -q -T2 -3 > "+filepath.Join(b.TempDir(), "x")).CombinedOutput(); err != nil {
				b.Skip(err, string(out))
			}
		}
	})
	settle(b, dir)
	store := &fast{}
	c, _ := whole(b, store, dir, nil)
	b.Run("one-percent-changed", func(b *testing.B) {
		for round := uint64(0); b.Loop(); round++ {
			b.StopTimer()
			for i := range 20 {
				p := filepath.Join(dir, fmt.Sprintf("pkg%03d", 2*i), fmt.Sprintf("file%05d.go", 100*i+7))
				must(b, os.WriteFile(p, prose(round*100+uint64(i), 50<<10), 0o644))
			}
			b.StartTimer()
			next, s := whole(b, store, dir, c.Index)
			c = next
			b.ReportMetric(float64(c.Stats.BytesSent+s.Sent), "sent-B")
			b.ReportMetric(100*float64(c.Stats.BytesSent+s.Sent)/float64(c.Stats.Bytes), "%-of-bytes")
		}
	})
	m := manifest(c)
	b.Run("restore", func(b *testing.B) {
		b.SetBytes(c.Stats.Bytes)
		for b.Loop() {
			_, err := serializer.Restore(b.Context(), store, m, "workspace", filepath.Join(b.TempDir(), "out"), serializer.RestoreOptions{NoSync: true})
			must(b, err)
		}
	})
	b.Run("restore-staged", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			base := b.TempDir()
			r, err := serializer.Restore(b.Context(), store, m, "workspace", filepath.Join(base, "staged"), serializer.RestoreOptions{NoSync: true})
			must(b, err)
			must(b, os.WriteFile(filepath.Join(dir, "pkg000", "file00001.go"), prose(uint64(time.Now().UnixNano()), 50<<10), 0o644))
			c = capture(b, store, dir, c.Index)
			b.StartTimer()
			_, err = serializer.Restore(b.Context(), store, manifest(c), "workspace", filepath.Join(base, "out"),
				serializer.RestoreOptions{NoSync: true, Staged: &serializer.Staged{Dir: filepath.Join(base, "staged"), Restored: r}})
			must(b, err)
		}
	})
}

func BenchmarkUnchanged(b *testing.B) {
	dir, store := workspace(b, 50_000, 1<<10), &fast{}
	defer os.Remove(filepath.Join(os.TempDir(), "bench-index"))
	settle(b, dir)
	c, _ := whole(b, store, dir, nil)
	b.Run("50000-files", func(b *testing.B) {
		for b.Loop() {
			next, s := whole(b, store, dir, c.Index)
			c = next
			if c.Stats.FilesRead > 0 {
				b.Fatalf("%+v", c.Stats)
			}
			b.ReportMetric(float64(s.Bytes), "manifest-B")
		}
	})
}
