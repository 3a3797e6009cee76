// Package config loads a program's settings: strictly, once, and so that each value can say where it came from.
//
// A program describes its settings as a struct, whose constructor sets every default:
//
//	type Config struct {
//		Link struct {
//			Lease time.Duration `yaml:"lease" help:"how long an answered heartbeat lets sessions run"`
//		} `yaml:"link"`
//		Token string `yaml:"token" secret:"true" help:"…"`
//	}
//
// The sources, in rising order of precedence, are the defaults, a YAML file, the environment (ORCH_ and the key's path
// with "_": ORCH_LINK_LEASE) and flags (the path with "-": --link-lease). A Load either gives a value that is whole and
// checked, or one error of kind fault.Invalid that names the file, line, key, reason and remedy:
//
//	config: /etc/orchestrator.yaml:12: link.leese: unknown key; did you mean link.lease?
//
// Settings are strings, booleans, whole and decimal numbers, durations ("12s"), sizes (Bytes, "64MiB"), whatever reads
// itself from text (encoding.TextUnmarshaler), lists of these (in the environment and in flags: joined by commas),
// map[string]string (there: k=v joined by commas), and lists of structs (file only). The package never guesses a type,
// and never ignores what it does not know.
//
// Merging is viper's; nothing else in the house imports it. Reading is not: viper lower-cases keys and forgets lines, so
// each source is parsed here, to the setting's own type, before viper sees it.
package config
