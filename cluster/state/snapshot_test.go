// Snapshots: what is restored, what is refused, and the one of the first release that must always load.

package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/protobuf/proto"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/queue"
)

var update = flag.Bool("update", false, "write testdata/v3.snapshot anew; only before a format is released")

// full returns a state with rows in every table.
func full(t testing.TB) *Store {
	t.Helper()
	h, s := newHistory(5), New(smallLimits())
	for n := 0; n < 700 || !inEveryStatus(s.View().Stats().Calls); n++ {
		if s.Apply(s.Index()+1, h.batch(s.View())); n > 2000 {
			t.Fatalf("some status has no call: %+v", s.View().Stats())
		}
	}
	st := s.View().Stats()
	if st.Messages == 0 || st.DeadLetters == 0 || st.Tokens == 0 || st.IdempotencyKeys == 0 || st.Events == 0 || st.Nodes == 0 || st.Conversations == 0 {
		t.Fatalf("a table is empty: %+v", st)
	}
	return s
}

func inEveryStatus(n CallCounts) bool {
	return n.Of(queue.Queued) > 0 && n.Of(queue.Running) > 0 && n.Of(queue.Ended) > 0 && n.Of(queue.Dead) > 0
}

func TestGoldenSnapshotsLoad(t *testing.T) {
	if *update {
		if err := os.WriteFile(filepath.Join("testdata", "v3.snapshot"), persisted(t, full(t).View()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for version := range uint32(rowsVersion) {
		t.Run(fmt.Sprintf("version %d", version+1), func(t *testing.T) { goldenLoads(t, version+1) })
	}
}

func goldenLoads(t *testing.T, version uint32) {
	path := filepath.Join("testdata", fmt.Sprintf("v%d.snapshot", version))
	golden, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := New(smallLimits())
	if err := s.Restore(bytes.NewReader(golden)); err != nil {
		t.Fatalf("a snapshot of version %d does not load any more: %v", version, err)
	}
	v := s.View()
	checkInvariants(t, v)
	sum, err := InspectSnapshot(bytes.NewReader(golden))
	if err != nil {
		t.Fatal(err)
	}
	var messages uint64 // with those that are kept
	for range v.keptAndAll() {
		messages++
	}
	want := map[string]uint64{
		tableSessions: v.Stats().Phases.Total(), "messages": messages, tableDead: v.Stats().DeadLetters, tableNodes: v.Stats().Nodes,
		tableTokens: v.Stats().Tokens, "idempotency": v.Stats().IdempotencyKeys, tableEvents: v.Stats().Events,
		tableCalls: v.Stats().Calls.Total(), tableClients: v.Stats().Clients, tableConversations: v.Stats().Conversations,
	}
	for _, table := range sum.Tables {
		since := map[string]uint32{tableCalls: rowsWithoutCall + 1, tableClients: rowsWithoutCall + 1, tableConversations: rowsWithoutTalk + 1}
		if known := version >= since[table.Name]; known && (table.Rows == 0 || table.Bytes == 0) {
			t.Errorf("the golden snapshot has no %s", table.Name)
		}
		if n, ok := want[table.Name]; ok && n != table.Rows {
			t.Errorf("%s: %d rows, %d restored", table.Name, table.Rows, n)
		}
	}
	if sum.Version != version || sum.ClusterID != v.ClusterID() || sum.Index != v.Index() || sum.Time != v.Time() || v.Index() == 0 {
		t.Errorf("summary %+v", sum)
	}
	// What is read is what was written, as long as nothing was added to the rows.
	if !bytes.Equal(golden, persisted(t, v)) {
		t.Errorf("the restored state writes other bytes")
	}
}

func TestRestoreRefusesWhatIsDamaged(t *testing.T) {
	good := persisted(t, full(t).View())
	old := New(smallLimits())
	h := newHistory(6)
	for range 50 {
		old.Apply(old.Index()+1, h.batch(old.View()))
	}
	before := persisted(t, old.View())
	refuse := func(what string, b []byte) {
		t.Helper()
		if err := old.Restore(bytes.NewReader(b)); err == nil {
			t.Fatalf("%s: was restored", what)
		} else if !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.FailedPrecondition) {
			t.Fatalf("%s: an error without a kind: %v", what, err)
		}
		if _, err := InspectSnapshot(bytes.NewReader(b)); err == nil {
			t.Fatalf("%s: was inspected without a word", what)
		}
	}
	// Every byte of the beginning, where versions and the header lie, and others all over.
	step := len(good)/150 + 1
	for i := range 64 {
		flipped := bytes.Clone(good)
		flipped[i] ^= 1 << (i % 8)
		refuse("a flipped bit", flipped)
	}
	for i := 0; i < len(good); i += step {
		flipped := bytes.Clone(good)
		flipped[i] ^= 1 << (i % 8)
		refuse("a flipped bit", flipped)
		refuse("a truncation", good[:i])
	}
	for _, cut := range []int{1, 7, 8, 9, 12} {
		refuse("a truncation", good[:len(good)-cut])
	}
	refuse("a longer file", append(bytes.Clone(good), 0))
	refuse("another file", []byte("package state // this is no snapshot at all"))
	if !bytes.Equal(before, persisted(t, old.View())) {
		t.Error("a refused snapshot changed the state")
	}
	old.Apply(old.Index()+1, h.batch(old.View()))
	checkInvariants(t, old.View())
}

// TestRestoreOfMoreRowsThanOneTransaction: a restore writes in pieces.
func TestRestoreOfMoreRowsThanOneTransaction(t *testing.T) {
	s, r := New(DefaultLimits()), New(DefaultLimits())
	runSessions(t, s, 0, 2*restoreRows+100, true)
	snapshot := persisted(t, s.View())
	if err := r.Restore(bytes.NewReader(snapshot)); err != nil {
		t.Fatal(err)
	}
	checkInvariants(t, r.View())
	if !bytes.Equal(snapshot, persisted(t, r.View())) || s.View().Stats() != r.View().Stats() {
		t.Errorf("%+v was restored as %+v", s.View().Stats(), r.View().Stats())
	}
}

// reframe writes a snapshot with another framing version or another header, whole in every other way.
func reframe(t *testing.T, framing uint32, h *clusterv1.SnapshotHeader, rows ...*clusterv1.SnapshotRow) []byte {
	t.Helper()
	b := binary.BigEndian.AppendUint32([]byte(snapshotMagic), framing)
	add := func(m proto.Message) {
		p, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		b = append(binary.AppendUvarint(b, uint64(len(p))), p...)
	}
	add(h)
	for _, r := range rows {
		add(r)
	}
	add(&clusterv1.SnapshotRow{Row: &clusterv1.SnapshotRow_Trailer{Trailer: &clusterv1.SnapshotTrailer{Rows: uint64(len(rows))}}})
	return binary.BigEndian.AppendUint64(b, xxhash.Sum64(b))
}

func TestRestoreRefusesWhatItCannotUnderstand(t *testing.T) {
	session := func(r *clusterv1.SessionRow) *clusterv1.SnapshotRow {
		return &clusterv1.SnapshotRow{Row: &clusterv1.SnapshotRow_Session{Session: r}}
	}
	talk := func(id string) *clusterv1.SnapshotRow {
		return &clusterv1.SnapshotRow{Row: &clusterv1.SnapshotRow_Conversation{Conversation: &clusterv1.ConversationRow{Key: &clusterv1.ConversationKey{Namespace: "n", Owner: "o", Id: id}}}}
	}
	for name, c := range map[string]struct {
		bytes []byte
		kind  fault.Kind
		want  string
	}{
		"newer rows":    {reframe(t, 1, &clusterv1.SnapshotHeader{Version: 4}), fault.FailedPrecondition, "a release that reads version 4"},
		"newer framing": {reframe(t, 3, &clusterv1.SnapshotHeader{Version: 1}), fault.FailedPrecondition, "a release that reads version 3"},
		"no version":    {reframe(t, 1, &clusterv1.SnapshotHeader{}), fault.Invalid, "damaged"},
		"unknown row":   {reframe(t, 1, &clusterv1.SnapshotHeader{Version: 1}, &clusterv1.SnapshotRow{}), fault.Invalid, "kind that this release does not know"},
		"no id":         {reframe(t, 1, &clusterv1.SnapshotHeader{Version: 1}, session(&clusterv1.SessionRow{Phase: 1})), fault.Invalid, "without id"},
		"a talk twice":  {reframe(t, 1, &clusterv1.SnapshotHeader{Version: 3}, talk("a"), talk("a")), fault.Invalid, "comes twice"},
		"a talk early":  {reframe(t, 1, &clusterv1.SnapshotHeader{Version: 3}, talk("b"), talk("a")), fault.Invalid, "out of order"},
		"a talk's id":   {reframe(t, 1, &clusterv1.SnapshotHeader{Version: 3}, talk("a b")), fault.Invalid, "conversation_id"},
		"phase 99":      {reframe(t, 1, &clusterv1.SnapshotHeader{Version: 1}, session(&clusterv1.SessionRow{Id: "a", Phase: 99})), fault.Invalid, "phase 99"},
	} {
		t.Run(name, func(t *testing.T) {
			err := New(DefaultLimits()).Restore(bytes.NewReader(c.bytes))
			if !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	short := reframe(t, 1, &clusterv1.SnapshotHeader{Version: 1}, &clusterv1.SnapshotRow{Row: &clusterv1.SnapshotRow_Trailer{Trailer: &clusterv1.SnapshotTrailer{Rows: 3}}})
	if err := New(DefaultLimits()).Restore(bytes.NewReader(short)); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "0 rows, and its trailer says 3") {
		t.Errorf("a trailer that counts otherwise: %v", err)
	}
	s := New(DefaultLimits())
	if err := s.Restore(bytes.NewReader(reframe(t, 1, &clusterv1.SnapshotHeader{Version: 1, Index: 9}))); err != nil || s.Index() != 9 {
		t.Errorf("an empty snapshot: %v", err)
	}
}

func TestRestoreIsTold(t *testing.T) {
	from := full(t)
	m := newMachine(t)
	m.ok(spawn("s", ""))
	sub, _ := m.Subscribe()
	defer sub.Close()
	view := m.View()
	if err := m.Restore(bytes.NewReader(persisted(t, from.View()))); err != nil {
		t.Fatal(err)
	}
	c, err := sub.Next(t.Context())
	if err != nil || !c.Restored || c.Index != from.Index() {
		t.Errorf("told %+v, %v", c, err)
	}
	if view.Session("s") == nil || m.View().Session("s") != nil || m.Index() != from.Index() {
		t.Error("the old view lost its rows, or the new one has them")
	}
}

type failingWriter struct{ left int }

var errFull = errors.New("disk full")

func (w *failingWriter) Write(b []byte) (int, error) {
	if w.left -= len(b); w.left < 0 {
		return 0, errFull
	}
	return len(b), nil
}

func TestPersistTellsWhatFailed(t *testing.T) {
	v := full(t).View()
	size := len(persisted(t, v))
	for _, room := range []int{0, size / 2, size - 1} {
		if err := v.Persist(&failingWriter{room}); !errors.Is(err, errFull) {
			t.Errorf("with room for %d bytes: %v", room, err)
		}
	}
}
