// Package telemetry is how a program speaks of itself: its log, its metrics and its version.
//
// The log is log/slog, injected everywhere and never global: one line for each event that matters, coloured text on a
// terminal and JSON otherwise. StdLogger and package hclogger lead the logs of libraries into it.
//
// Metrics are in a registry of the program's own (NewRegistry), begin with orchestrator_ (or node_agent_), and pass the
// rules of `promtool check metrics`, which package metricstest applies in tests. What is read off a part when it is scraped goes through Gauge
// and Counter.
package telemetry
