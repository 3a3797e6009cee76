// What a session goes on from, in its row: few have it, so its messages are written and read by the generated code.

package state

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/session"
)

func appendSaved(b []byte, s *session.Session) ([]byte, error) {
	for _, c := range s.Checkpoints {
		m, err := deterministic.Marshal(checkpointToRow(c))
		if err != nil {
			return nil, err
		}
		b = protowire.AppendBytes(protowire.AppendTag(b, 22, protowire.BytesType), m)
	}
	b = appendNumber(b, 23, s.Turns)
	b = appendNumber(b, 24, s.CheckpointRequest)
	b = appendNumber(b, 25, s.CheckpointAnswered)
	if s.Migration != nil {
		m, err := deterministic.Marshal(migrationToRow(s.Migration))
		if err != nil {
			return nil, err
		}
		b = protowire.AppendBytes(protowire.AppendTag(b, 26, protowire.BytesType), m)
	}
	var at session.Captured
	if s.Captured != nil {
		at = *s.Captured
	}
	b = appendNumber(b, 27, at.Sequence)
	b = appendNumber(b, 28, at.Turn)
	b = appendNumber(b, 29, at.OutputLine)
	b = appendNumber(b, 30, s.LostLine)
	b = appendNumber(b, 31, uint64(s.LostEpoch))
	b = appendNumber(b, 32, uint64(s.UnsavedSince))
	if s.Left {
		b = appendNumber(b, 33, 1)
	}
	b = appendNumber(b, 34, uint64(s.RestoreFailures))
	b = appendNumber(b, 35, s.RewindTo)
	b = appendNumber(b, 36, s.Move)
	b = appendNumber(b, 37, uint64(at.Time))
	b = appendText(b, 38, s.CheckpointError)
	return appendNumber(b, 39, uint64(s.RestartsForgiven)), nil
}

// capturedOf is the capture of a session that is being read.
func capturedOf(s *session.Session) *session.Captured {
	if s.Captured == nil {
		s.Captured = new(session.Captured)
	}
	return s.Captured
}

func savedNumber(s *session.Session, num protowire.Number, v uint64) {
	switch num {
	case 23:
		s.Turns = v
	case 24:
		s.CheckpointRequest = v
	case 25:
		s.CheckpointAnswered = v
	case 27:
		capturedOf(s).Sequence = v
	case 28:
		capturedOf(s).Turn = v
	case 29:
		capturedOf(s).OutputLine = v
	case 30:
		s.LostLine = v
	case 31:
		s.LostEpoch = uint32(v)
	case 32:
		s.UnsavedSince = int64(v)
	case 33:
		s.Left = v != 0
	case 34:
		s.RestoreFailures = uint16(v)
	case 35:
		s.RewindTo = v
	case 36:
		s.Move = v
	case 37:
		capturedOf(s).Time = int64(v)
	}
}

// saved reads a part that is a message.
func (r *sessionReader) saved(s *session.Session, num protowire.Number, b []byte) error {
	if num == 22 {
		var row clusterv1.CheckpointRow
		if err := proto.Unmarshal(b, &row); err != nil {
			return err
		}
		if len(row.GetManifest()) != len(session.ManifestID{}) {
			return fmt.Errorf("checkpoint %d of session %s names its manifest with %d bytes", row.GetSequence(), s.ID, len(row.GetManifest()))
		}
		s.Checkpoints = append(s.Checkpoints, checkpointFromRow(&row, r.intern))
		return nil
	}
	var row clusterv1.MigrationRow
	if err := proto.Unmarshal(b, &row); err != nil {
		return err
	}
	s.Migration = migrationFromRow(&row, r.intern)
	return nil
}

func checkpointToRow(c *session.Checkpoint) *clusterv1.CheckpointRow {
	return &clusterv1.CheckpointRow{
		Sequence: c.Sequence, Manifest: c.Manifest[:], Turn: c.Turn, OutputLine: c.OutputLine, CreateTime: c.CreateTime, Bytes: c.Bytes,
		Chunks: c.Chunks, Epoch: c.Epoch, Keeps: c.Keeps, BytesSent: c.BytesSent, BytesReused: c.BytesReused,
	}
}

func checkpointFromRow(r *clusterv1.CheckpointRow, in *interner) *session.Checkpoint {
	c := &session.Checkpoint{
		Sequence: r.GetSequence(), Manifest: session.ManifestID(r.GetManifest()), Turn: r.GetTurn(), OutputLine: r.GetOutputLine(),
		CreateTime: r.GetCreateTime(), Bytes: r.GetBytes(), Chunks: r.GetChunks(), Epoch: r.GetEpoch(),
		BytesSent: r.GetBytesSent(), BytesReused: r.GetBytesReused(),
	}
	for _, k := range r.GetKeeps() {
		c.Keeps = append(c.Keeps, in.str(k))
	}
	return c
}

func migrationToRow(m *session.Migration) *clusterv1.MigrationRow {
	return &clusterv1.MigrationRow{
		Number: m.Number, State: uint32(m.State), Source: m.Source, Target: m.Target, Cold: m.Cold, Rounds: m.Rounds,
		BytesSent: m.BytesSent, BytesReused: m.BytesReused, StartTime: m.StartTime, HeldTime: m.HeldTime, EndTime: m.EndTime,
		Epoch: m.Epoch, Error: m.Error, Copied: manifestBytes(m.Copied), Prepared: m.Prepared,
	}
}

func manifestBytes(id session.ManifestID) []byte {
	if id == (session.ManifestID{}) {
		return nil
	}
	return id[:]
}

func migrationFromRow(r *clusterv1.MigrationRow, in *interner) *session.Migration {
	var copied session.ManifestID
	copy(copied[:], r.GetCopied())
	return &session.Migration{
		Copied: copied, Prepared: r.GetPrepared(),
		Number: r.GetNumber(), State: session.MigrationState(r.GetState()), Source: in.str(r.GetSource()), Target: in.str(r.GetTarget()),
		Cold: r.GetCold(), Rounds: r.GetRounds(), BytesSent: r.GetBytesSent(), BytesReused: r.GetBytesReused(), StartTime: r.GetStartTime(),
		HeldTime: r.GetHeldTime(), EndTime: r.GetEndTime(), Epoch: r.GetEpoch(), Error: in.str(r.GetError()),
	}
}
