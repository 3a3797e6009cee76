// Sessions as files: what export writes, what import takes and refuses, and workspaces that begin with files.

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/client/clienttest"
	"github.com/neolith/orchestrator/internal/exitcode"
	"github.com/neolith/orchestrator/serializer"
	"github.com/neolith/orchestrator/serializer/archive"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// testKey writes a key that is the same in every run, and returns its fingerprint.
func testKey(t *testing.T, path string, seed byte) string {
	t.Helper()
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return archive.Fingerprint(publicOf(key))
}

// home is where the rig's person lives.
func (r *rig) home() string {
	for _, kv := range r.env {
		if h, ok := strings.CutPrefix(kv, "HOME="); ok {
			return h
		}
	}
	return ""
}

// withLedger is a rig with a session that has two checkpoints, and a place for files.
func withLedger(t *testing.T) (r *rig, id, dir string) {
	t.Helper()
	r = newRig(t)
	id = r.must("sessions spawn --name ledger --env A=1 -o name -- ./ledger --book 'a b'")
	r.must("sessions checkpoint ledger")
	r.must("sessions send ledger one")
	r.must("sessions checkpoint ledger")
	return r, id, t.TempDir()
}

func TestExportAndImport(t *testing.T) {
	r, id, dir := withLedger(t)
	file := filepath.Join(dir, "ledger.orchsession")
	res := r.run("sessions export ledger -f " + file)
	keyPath := filepath.Join(r.home(), ".config", "orchctl", "signing.key")
	key, err := archive.LoadKey(keyPath)
	if err != nil {
		t.Fatal(err)
	}
	mine := archive.Fingerprint(publicOf(key))
	if res.code != 0 || !strings.HasPrefix(res.out, "exported checkpoint 2 of session/"+id+" to "+file+": ") || !strings.HasSuffix(res.out, "signed by "+mine+"\n") ||
		!strings.Contains(res.err, "made your signing key, "+keyPath+", "+mine) {
		t.Fatalf("%+v", res)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st.Mode(), err)
	}
	if res := r.run("sessions export ledger -f " + file); res.code != exitcode.Refused || !strings.Contains(res.err, "is there already; give --force") || res.err != "" && strings.Contains(res.err, "made your signing key") {
		t.Errorf("%+v", res)
	}
	if got := r.must("sessions export ledger --force --checkpoint 1 -o name -f " + file); got != file {
		t.Error(got)
	}
	if got := r.must("sessions export ledger --force --quiet -o json -f " + file); !strings.Contains(got, `"checkpoint": 2`) || !strings.Contains(got, mine) {
		t.Error(got)
	}

	// On another cluster, for the same person: one's own key is trusted.
	there := newRig(t)
	there.env[0] = r.env[0]
	if res := there.run("sessions import " + file + " --dry-run"); res.code != 0 || !strings.Contains(res.out, mine+" (trusted: your own key)") || there.c.Sessions() != 0 {
		t.Errorf("%+v", res)
	}
	res = there.run("sessions import " + file + " --name moved --wait --idempotency-key k")
	made := clienttest.ID("session", 1)
	if want := "session/" + made + " imported from checkpoint 2 of session/" + id + " on node-1\n"; res.code != 0 || res.out != want {
		t.Errorf("%+v, want %q", res, want)
	}
	if got := there.must("sessions import " + file + " --name moved --idempotency-key k -o name"); got != made || there.c.Sessions() != 1 {
		t.Error("the same key made", got)
	}
	got := there.must("sessions get moved -o json")
	for _, want := range []string{`"A": "1"`, `"a b"`, `"sequence": "2"`} {
		if !strings.Contains(got, want) {
			t.Errorf("%s lacks %s", got, want)
		}
	}
	if res := there.run("sessions import " + file + " --name moved"); res.code != exitcode.Refused || !strings.Contains(res.err, "is taken") {
		t.Errorf("%+v", res)
	}
}

// TestExportToAPipe: what goes to standard output is the archive alone, and import reads it from standard input.
func TestExportToAPipe(t *testing.T) {
	r, id, _ := withLedger(t)
	res := r.run("sessions export ledger -f -")
	if res.code != 0 || !strings.Contains(res.err, "exported checkpoint 2 of session/"+id) {
		t.Fatalf("%q", res.err)
	}
	if got := r.runIn("sessions import - -o name", strings.NewReader(res.out)); got.code != 0 || got.out != clienttest.ID("session", 2)+"\n" {
		t.Errorf("%+v", got)
	}
	t.Chdir(t.TempDir())
	if got := r.must("sessions export ledger -o name"); got != "ledger-2.orchsession" {
		t.Error(got)
	}
	// An export that breaks off leaves nothing.
	r.c.Inject("ExportSession", clienttest.Fault{Err: clienttest.Lost(), AfterMessages: 2})
	if res := r.run("sessions export ledger -f broken"); res.code == 0 || !strings.Contains(res.err, "broke off") {
		t.Errorf("%+v", res)
	}
	left, err := os.ReadDir(".")
	if err != nil || len(left) != 1 {
		t.Errorf("%v %v", left, err)
	}
}

// TestImportTrusts: an unknown signer is refused with the fingerprint and what to do, and taken by each of the ways to name one.
func TestImportTrusts(t *testing.T) {
	r, _, dir := withLedger(t)
	file, key := filepath.Join(dir, "x"), filepath.Join(dir, "key")
	signer := testKey(t, key, 7)
	r.must("sessions export ledger -f " + file + " --key " + key)
	there := newRig(t)
	res := there.run("sessions import " + file)
	if res.code != exitcode.Refused || !strings.Contains(res.err, "it is signed by "+signer) || !strings.Contains(res.err, "give --signer "+signer) || there.c.Sessions() != 0 {
		t.Errorf("%+v", res)
	}
	if res := there.run("sessions import " + file + " --dry-run"); res.code != 0 || !strings.Contains(res.out, signer+" (not trusted: give --signer") {
		t.Errorf("%+v", res)
	}
	there.must("sessions import " + file + " --signer " + signer)
	public, err := archive.LoadKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text, err := archive.PublicKeyPEM(publicOf(public))
	if err != nil {
		t.Fatal(err)
	}
	pub := filepath.Join(dir, "key.pub")
	if err := os.WriteFile(pub, text, 0o644); err != nil {
		t.Fatal(err)
	}
	there.must("sessions import " + file + " --signer " + pub)
	if res := there.run("sessions import " + file + " --signer " + file); res.code != exitcode.Usage || !strings.Contains(res.err, "give a fingerprint (SHA256:…), or a file with a public key") {
		t.Errorf("%+v", res)
	}
	config := filepath.Join(there.home(), ".config", "orchctl", "config.yaml")
	if err := os.MkdirAll(filepath.Dir(config), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, []byte("trusted_signers: ["+signer+"]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	there.must("sessions import " + file)
	if got := there.c.Sessions(); got != 3 {
		t.Errorf("%d sessions", got)
	}
	there.must("context set lab --addr 127.0.0.1:8077") // which keeps what it does not know of
	if b, err := os.ReadFile(config); err != nil || !strings.Contains(string(b), signer) {
		t.Errorf("%s %v", b, err)
	}
	if err := os.WriteFile(config, []byte("trusted_signers: [me]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]string{
		"sessions import " + file:                        `"me" is not a fingerprint`,
		"sessions import " + file + " --signer SHA256:x": "is not a fingerprint",
		"sessions import nowhere":                        "is not a fingerprint",
		"sessions import " + file + " --name UPPER":      "--name:",
	} {
		if res := there.run(line); res.code != exitcode.Usage || !strings.Contains(res.err, want) {
			t.Errorf("%s: %+v", line, res)
		}
	}
}

// TestImportRefusesWhatIsDamaged: cut off, changed, or no archive: nothing is made.
func TestImportRefusesWhatIsDamaged(t *testing.T) {
	r, _, dir := withLedger(t)
	file := filepath.Join(dir, "x")
	r.must("sessions export ledger -f " + file)
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(whole)
	flipped[len(flipped)/2] ^= 1
	before := r.c.Sessions()
	for name, content := range map[string][]byte{"half": whole[:len(whole)/2], "all but a byte": whole[:len(whole)-1], "flipped": flipped, "empty": {}, "text": []byte("hello"), "more": append(bytes.Clone(whole), 0)} {
		res := r.runIn("sessions import - --quiet", bytes.NewReader(content))
		if res.code != exitcode.Failed && res.code != exitcode.Refused || !strings.HasPrefix(res.err, "orchctl: sessions import") || strings.Count(res.err, "\n") != 1 {
			t.Errorf("%s: %+v", name, res)
		}
		if r.runIn("sessions import - --dry-run", bytes.NewReader(content)).code == 0 {
			t.Errorf("%s: a dry run sees nothing wrong", name)
		}
	}
	if got := r.c.Sessions(); got != before {
		t.Errorf("%d sessions were made", got-before)
	}
}

// TestGoldenExchange holds what a dry run, a comparison and the lists print.
func TestGoldenExchange(t *testing.T) {
	r, _, dir := withLedger(t)
	testKey(t, filepath.Join(r.home(), ".config", "orchctl", "signing.key"), 3)
	file := filepath.Join(dir, "x")
	r.must("sessions export ledger -f " + file)
	goldenForms(t, r, "sessions-import-dry-run", "sessions import --quiet --dry-run --name ledger-2 "+file)
	goldenForms(t, r, "sessions-checkpoints-diff", "sessions checkpoints diff ledger")
	goldenForms(t, r, "sessions-checkpoints-list", "sessions checkpoints list ledger")
}

func TestCheckpointsCommands(t *testing.T) {
	r, id, _ := withLedger(t)
	r.must("sessions checkpoint ledger")
	if res := r.run("sessions checkpoints diff ledger 1 3 -o name"); res.code != 0 || res.out != "workspace/file-2\nworkspace/file-3\nworkspace/notes\n" {
		t.Errorf("%+v", res)
	}
	if res := r.run("sessions checkpoints diff ledger"); res.code != 0 || !strings.Contains(res.err, "from checkpoint 2 to 3") {
		t.Errorf("%+v", res)
	}
	for _, c := range []struct {
		line, want string
		code       int
	}{
		{"sessions checkpoints diff ledger 9", "keeps no checkpoint 9", 3},
		{"sessions checkpoints diff ledger soon", `FROM: "soon" is neither`, 2},
		{"sessions checkpoints diff nobody", "there is no session", 3},
		{"sessions checkpoints delete ledger", "got 1 arguments", 2},
		{"sessions checkpoints delete ledger 3", "is the newest", 4},
		{"sessions checkpoints delete ledger 1 2 --idempotency-key k", "is for one checkpoint", 2},
	} {
		if res := r.run(c.line); res.code != c.code || !strings.Contains(res.err, c.want) {
			t.Errorf("%s: %+v", c.line, res)
		}
	}
	if got := r.must("sessions checkpoints delete ledger 1 2"); got != "session/"+id+" keeps checkpoint 1 no longer\nsession/"+id+" keeps checkpoint 2 no longer" {
		t.Error(got)
	}
	if got := r.must("sessions checkpoints ledger -o name"); got != "3" {
		t.Error(got)
	}
}

// TestSpawnWithAWorkspace: from a directory and from an archive, with a plain word about what is left out.
func TestSpawnWithAWorkspace(t *testing.T) {
	r := newRig(t)
	dir := filepath.Join(t.TempDir(), "work")
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sub", "a"), []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	res := r.run("sessions spawn --workspace " + dir + " --name w --wait --idempotency-key k -- make test")
	if res.code != 0 || res.out != "session/"+clienttest.ID("session", 1)+" spawned on node-1\n" || !strings.Contains(res.err, "warning: out is not in the workspace: a link that does not stay inside the tree") {
		t.Errorf("%+v", res)
	}
	if got := r.must("sessions spawn --workspace " + dir + " --name w --idempotency-key k -o name --quiet -- make test"); got != clienttest.ID("session", 1) {
		t.Error("a repetition made", got)
	}
	check := func(name string) {
		t.Helper()
		r.c.Change(clienttest.ID("session", r.c.Sessions()), func(s *apiv1.Session) {
			id, err := chunk.Parse(s.GetCheckpoint().GetManifest())
			if err != nil {
				t.Fatal(err)
			}
			m, _, err := serializer.LoadManifest(t.Context(), &r.c.Chunks, id)
			if err != nil || len(m.Roots) != 1 || m.Turn != 0 || m.OutputLine != 0 || m.Root("workspace") == nil {
				t.Fatalf("%s: %v %v", name, m, err)
			}
			found := false
			for _, e := range m.Roots[0].Entries {
				found = found || e.Path == "sub/a" && e.Size == 5 && e.Mode == 0o600
			}
			if !found || s.GetSpec().GetCommand()[0] != "make" || s.GetName() != name {
				t.Errorf("%s: %v", name, s)
			}
		})
	}
	check("w")
	file := filepath.Join(t.TempDir(), "work.tar.gz")
	if err := os.WriteFile(file, tarball(t, "sub/a", "hello"), 0o644); err != nil {
		t.Fatal(err)
	}
	r.must("sessions spawn --workspace " + file + " --name packed -- make")
	check("packed")
	if res := r.run("sessions spawn --workspace /nonexistent/x -- make"); res.code != exitcode.NotFound && res.code != exitcode.Usage || r.c.Sessions() != 2 {
		t.Errorf("%+v", res)
	}
}

func tarball(t *testing.T, name, content string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, err := range []error{
		w.WriteHeader(&tar.Header{Name: filepath.Dir(name) + "/", Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(1, 0)}),
		w.WriteHeader(&tar.Header{Name: name, Size: int64(len(content)), Mode: 0o600, ModTime: time.Unix(1, 0)}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := fmt.Fprint(w, content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
