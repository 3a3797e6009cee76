// The record of what happens: its sink, its spool, and who keeps it.

package main

import (
	"cmp"
	"context"
	"path/filepath"

	"github.com/neolith/orchestrator/gateway"
	"github.com/neolith/orchestrator/gateway/record"
	"github.com/neolith/orchestrator/gateway/tools"
	"github.com/neolith/orchestrator/internal/supervise"
	"github.com/neolith/orchestrator/recorder"
	"github.com/neolith/orchestrator/recorder/sinks"
)

// recorderDir is where the record is in the data directory, unless its settings say otherwise.
const recorderDir = "recorder"

// openRecorder opens the record, unless there is to be none. It must be open before the log is: what the log replays is looked through for what
// the record lacks.
func (s *server) openRecorder(ctx context.Context) (err error) {
	cfg := s.cfg.Recorder
	if cfg.Sink == recorder.SinkNone {
		return nil
	}
	cfg.Spool.Dir = cmp.Or(cfg.Spool.Dir, filepath.Join(s.cfg.DataDir, recorderDir, "spool"))
	cfg.SQLite.File = cmp.Or(cfg.SQLite.File, filepath.Join(s.cfg.DataDir, recorderDir, "interactions.db"))
	if s.sink, err = sinks.Open(ctx, cfg, s.log); err != nil {
		return err
	}
	if s.recorder, err = recorder.Open(recorder.Options{Config: cfg, Sink: s.sink, Logger: s.log, Registerer: s.registry}); err != nil {
		return err
	}
	s.feed, err = record.NewFeed(record.FeedOptions{State: s.store, Recorder: s.recorder, Leads: s.leads, Logger: s.log, Registerer: s.registry})
	return err
}

// leads says whether this server leads, and when to ask again.
func (s *server) leads() (bool, <-chan struct{}) {
	l, changed := s.node.Leader()
	return l.Self && l.Ready, changed
}

// record is what the API needs of the record; nil where there is none.
func (s *server) record() *gateway.Record {
	if s.recorder == nil {
		return nil
	}
	return &gateway.Record{Recorder: s.recorder, Senders: s.feed, Sink: s.sink, Shared: s.cfg.Recorder.Sink == recorder.SinkPostgres}
}

// recorded are the tools of which each call is recorded.
func (s *server) recorded(set *tools.Set) *tools.Set {
	if s.recorder == nil {
		return set
	}
	return set.Observed(record.NewTools(s.recorder, s.api.Caller, s.ops.FindSession))
}

// recorderDaemons are what the record takes: to keep it, and to look through the log.
func (s *server) recorderDaemons() []supervise.Daemon {
	if s.recorder == nil {
		return nil
	}
	return []supervise.Daemon{
		{Name: "recorder", Run: s.recorder.Serve, Queue: func() (depth, limit int64) {
			st := s.recorder.State()
			return st.SpoolBytes + st.QueueBytes, st.SpoolMaxBytes
		}},
		{Name: "recorder-feed", Run: s.feed.Run},
	}
}

// releaseRecord ends all waiting for room in the record.
func (s *server) releaseRecord() {
	if s.recorder != nil {
		s.recorder.Release()
	}
}

// closeRecorder makes durable what was recorded. Nobody may record any more.
func (s *server) closeRecorder() {
	if s.feed != nil {
		s.feed.Close()
	}
	if s.recorder != nil {
		if err := s.recorder.Close(); err != nil {
			s.log.Error("close the record", "error", err)
		}
	}
	if s.sink != nil {
		if err := s.sink.Close(); err != nil {
			s.log.Warn("close the record's database", "error", err)
		}
	}
}
