// What a configuration accepts, refuses and says of itself.

package config

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"pgregory.net/rapid"

	"github.com/neolith/orchestrator/internal/fault"
)

type testConfig struct {
	DataDir string     `yaml:"data_dir" help:"where everything is kept"`
	Level   slog.Level `yaml:"log_level"`
	Link    struct {
		Lease  time.Duration `yaml:"lease" help:"how long"`
		Renew  time.Duration `yaml:"renew"`
		Frame  Bytes         `yaml:"frame"`
		Queue  uint32        `yaml:"queue"`
		Offset int           `yaml:"offset"`
		Ratio  float64       `yaml:"ratio"`
	} `yaml:"link"`
	TLS struct {
		Insecure bool `yaml:"insecure"`
	} `yaml:"tls"`
	Join      []string          `yaml:"join"`
	Waits     []time.Duration   `yaml:"waits"`
	Labels    map[string]string `yaml:"labels"`
	Token     string            `yaml:"token" secret:"true"`
	Key       Bytes             `yaml:"key" secret:"true"`
	Providers []provider        `yaml:"providers"`
	Skipped   chan int          `yaml:"-"`
}

type provider struct {
	Name string        `yaml:"name"`
	Key  string        `yaml:"key" secret:"true"`
	Wait time.Duration `yaml:"wait"`
}

func (c *testConfig) Validate() error {
	if c.Link.Renew >= c.Link.Lease {
		return Bad("link.renew", "%s is not below link.lease (%s); make it a quarter", c.Link.Renew, c.Link.Lease)
	}
	return nil
}

func defaults() testConfig {
	var c testConfig
	c.DataDir, c.Link.Lease, c.Link.Renew, c.Link.Frame, c.Link.Queue = "/var/lib", 12*time.Second, 3*time.Second, 64<<20, 1000
	c.Join = []string{"a:1"}
	return c
}

// load loads the text of a file with an environment, and returns the file's name.
func load(t *testing.T, text string, env ...string) (*Loaded[testConfig], string, error) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := Load(defaults(), Options{File: name, Environ: append([]string{}, env...)})
	return l, name, err
}

func TestPrecedenceAndOrigins(t *testing.T) {
	name := filepath.Join(t.TempDir(), "c.yaml")
	text := "log_level: debug\nlink:\n  lease: 20s\n  frame: 1.5MiB\n  queue: 7\njoin: [x:1, 'y:2']\nlabels: {Zone/A.b: eu-1}\n"
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	fs := pflag.NewFlagSet("x", pflag.ContinueOnError)
	if err := Flags(fs, defaults()); err != nil {
		t.Fatal(err)
	}
	if err := fs.Parse([]string{"--link-lease=40s", "--tls-insecure", "--waits", "1s,2s"}); err != nil {
		t.Fatal(err)
	}
	l, err := Load(defaults(), Options{File: name, Flags: fs, Environ: []string{
		"ORCH_LINK_LEASE=30s", "ORCH_LINK_QUEUE=8", "ORCH_SESSION_ID=s", "ORCH_NODE=n", "ORCH_WORKSPACE=/", "ORCHCTL_ADDR=x", "PATH=/bin", "ORCH_TOKEN=hush",
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := defaults()
	want.Level, want.Link.Lease, want.Link.Frame, want.Link.Queue = slog.LevelDebug, 40*time.Second, 3<<19, 8
	want.Join, want.Labels = []string{"x:1", "y:2"}, map[string]string{"Zone/A.b": "eu-1"}
	want.TLS.Insecure, want.Waits, want.Token = true, []time.Duration{time.Second, 2 * time.Second}, "hush"
	if !reflect.DeepEqual(l.Config, want) {
		t.Fatalf("got  %+v\nwant %+v", l.Config, want)
	}
	for key, want := range map[string]string{
		"data_dir": "default", "link.lease": "--link-lease", "link.queue": "ORCH_LINK_QUEUE", "link.frame": name + ":4", "labels": name + ":7",
	} {
		if got := l.Origin(key).String(); got != want {
			t.Errorf("origin of %s: %s, want %s", key, got, want)
		}
	}
	if fs.Lookup("token") != nil {
		t.Error("a secret has a flag")
	}
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct{ name, text, env, want string }{
		{"typo", "link:\n  leese: 1s\n", "", "FILE:2: link.leese: unknown key; did you mean link.lease?"},
		{"swap", "lnik:\n  lease: 1s\n", "", "FILE:1: lnik: unknown key; did you mean link?"},
		{"wrong place", "lease: 1s\n", "", "FILE:1: lease: unknown key; did you mean link.lease?"},
		{"nothing near", "completely: 1s\n", "", `FILE:1: completely: unknown key; "config print" lists all keys`},
		{"upper case", "Data_Dir: x\n", "", "FILE:1: Data_Dir: unknown key; did you mean data_dir?"},
		{"merge key", "<<: {data_dir: x}\n", "", `FILE:1: <<: unknown key; "config print" lists all keys`},
		{"twice", "data_dir: a\nlink: {lease: 9s}\ndata_dir: b\n", "", "FILE:3: data_dir: is set twice; the first is on line 1"},
		{"section twice", "link: {lease: 9s}\nlink: {queue: 1}\n", "", "FILE:2: link: is set twice; the first is on line 1"},
		{"no unit", "link:\n  lease: 12\n", "", `FILE:2: link.lease: "12" has no unit; write 12s for seconds, or ms, m, h`},
		{"no duration", "link:\n  lease: soon\n", "", `FILE:2: link.lease: "soon" is not a duration; write 500ms, 12s, 5m or 1h30m`},
		{"negative", "link:\n  lease: -1s\n", "", `FILE:2: link.lease: "-1s" is negative`},
		{"size", "link:\n  frame: 64Mb\n", "", `FILE:2: link.frame: "64Mb" is not a size; write bytes or a unit, such as 64MiB`},
		{"quoted number", "link:\n  queue: '7'\n", "", "FILE:2: link.queue: is text, not a number; remove the quotes"},
		{"negative number", "link:\n  queue: -7\n", "", `FILE:2: link.queue: "-7" is not a whole number from 0 on`},
		{"range", "link:\n  queue: 5000000000\n", "", "FILE:2: link.queue: 5000000000 is out of range"},
		{"not whole", "link:\n  offset: 1.5\n", "", `FILE:2: link.offset: "1.5" is not a whole number`},
		{"nan", "link:\n  ratio: .nan\n", "", `FILE:2: link.ratio: ".nan" is not a number`},
		{"bool", "tls:\n  insecure: yes\n", "", `FILE:2: tls.insecure: "yes" is neither true nor false`},
		{"bool for text", "data_dir: true\n", "", `FILE:1: data_dir: is "true", not text; put it into quotes`},
		{"list for text", "data_dir: [a]\n", "", "FILE:1: data_dir: is a list; give one value"},
		{"text for list", "join: a\n", "", `FILE:1: join: is "a"; give a list, such as [a, b]`},
		{"text for section", "link: 3\n", "", `FILE:1: link: is "3"; it holds settings, as "key: value" lines`},
		{"list for all", "- a\n", "", `FILE:1: is a list; it holds settings, as "key: value" lines`},
		{"empty", "data_dir:\n", "", "FILE:1: data_dir: is empty; give a value, or remove the line for the default"},
		{"list entry", "waits:\n  - 1s\n  - 2\n", "", `FILE:3: waits[1]: "2" has no unit; write 2s for seconds, or ms, m, h`},
		{"struct entry", "providers:\n  - name: a\n    weit: 1s\n", "", "FILE:3: providers[0].weit: unknown key; did you mean wait?"},
		{"map twice", "labels: {a: b, a: c}\n", "", "FILE:1: labels.a: is set twice"},
		{"map value", "labels: {a: [b]}\n", "", "FILE:1: labels.a: is a list; give one value"},
		{"not yaml", "a: b\n\tc: d\n", "", "FILE:2: is not YAML: found a tab character that violates indentation"},
		{"two documents", "data_dir: a\n---\ndata_dir: b\n", "", "FILE:2: a second YAML document begins here; a configuration is one document"},
		{"level", "log_level: loud\n", "", `FILE:1: log_level: slog: level string "loud": unknown name`},
		{"contradiction", "link:\n  lease: 2s\n  renew: 2s\n", "", "FILE:3: link.renew: 2s is not below link.lease (2s); make it a quarter"},
		{"contradiction with a default", "link:\n  lease: 2s\n", "", "link.renew: 3s is not below link.lease (2s); make it a quarter"},
		{"env typo", "", "ORCH_LINK_LEESE=1s", "ORCH_LINK_LEESE: unknown variable; did you mean ORCH_LINK_LEASE?"},
		{"env unknown", "", "ORCH_WHATEVER=1s", "ORCH_WHATEVER: unknown variable; unset it"},
		{"env value", "", "ORCH_LINK_LEASE=1", `ORCH_LINK_LEASE: link.lease: "1" has no unit; write 1s for seconds, or ms, m, h`},
		{"env empty", "", "ORCH_LINK_LEASE=", "ORCH_LINK_LEASE: link.lease: is empty; give a value, or leave it out for the default"},
		{"env structs", "", "ORCH_PROVIDERS=x", "ORCH_PROVIDERS: providers: can be given in the file only"},
		{"env map", "", "ORCH_LABELS=a=b,c", `ORCH_LABELS: labels: "c" is not key=value`},
		{"env secret", "", "ORCH_KEY=hush", "ORCH_KEY: key: the value (not shown) is not a config.Bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var env []string
			if c.env != "" {
				env = []string{c.env}
			}
			_, name, err := load(t, c.text, env...)
			if err == nil {
				t.Fatal("accepted")
			}
			if got, want := err.Error(), "config: "+strings.ReplaceAll(c.want, "FILE", name); got != want {
				t.Errorf("\ngot  %s\nwant %s", got, want)
			}
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("kind %s", fault.KindOf(err))
			}
		})
	}
}

func TestAccepted(t *testing.T) {
	for _, text := range []string{
		"", "# nothing\n", "link:\n  # lease: 1s\n", "data_dir: 8075\n", "link: {frame: 1048576, ratio: 2}\n",
		"join: []\n", "data_dir: &d /x\ntoken: *d\n", "---\ndata_dir: x\n", "\ufeffdata_dir: x\n",
	} {
		if _, _, err := load(t, text); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestMissingAndLargeFile(t *testing.T) {
	_, err := Load(defaults(), Options{File: "/nowhere/c.yaml", Environ: []string{}})
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "/nowhere/c.yaml: no such file") {
		t.Errorf("missing: %v", err)
	}
	_, _, err = load(t, "# "+strings.Repeat("x", maxFileBytes))
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "larger than 1MiB") {
		t.Errorf("large: %v", err)
	}
}

func TestPrint(t *testing.T) {
	l, name, err := load(t, "link:\n  lease: 1m\njoin: [a, b]\nproviders:\n  - {name: 'no', key: sesame, wait: 1s}\nlabels: {B: 'true', a: x}\n", "ORCH_TOKEN=hush")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := l.Print(&out); err != nil {
		t.Fatal(err)
	}
	got := strings.ReplaceAll(out.String(), name, "FILE")
	want := `data_dir: /var/lib # default
log_level: INFO # default
link:
  lease: 1m # FILE:2
  renew: 3s # default
  frame: 64MiB # default
  queue: 1000 # default
  offset: 0 # default
  ratio: 0 # default
tls:
  insecure: false # default
join: [a, b] # FILE:3
waits: [] # default
labels: {B: "true", a: x} # FILE:6
token: "********" # ORCH_TOKEN
key: "0" # default
providers: # FILE:4
  - name: no
    key: "********"
    wait: 1s
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if strings.Contains(out.String(), "hush") || strings.Contains(out.String(), "sesame") {
		t.Error("a secret was printed")
	}
}

// What Print writes is read as the same configuration.
func TestPrintRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := defaults()
		c.DataDir = rapid.String().Filter(func(s string) bool { return strings.ToValidUTF8(s, "") == s && yamlText(s) }).Draw(rt, "dir")
		c.Link.Lease = time.Duration(rapid.Int64Range(int64(time.Minute), 1<<62).Draw(rt, "lease"))
		c.Link.Frame = Bytes(rapid.Int64Range(0, 1<<62).Draw(rt, "frame"))
		c.Link.Ratio = rapid.Float64().Draw(rt, "ratio")
		c.Link.Offset = rapid.Int().Draw(rt, "offset")
		c.Join = rapid.SliceOfN(rapid.SampledFrom([]string{"a", "true", "12", "~", "", "x: y", "#", "null", "a,b", "'", "1_0"}), 1, 4).Draw(rt, "join")
		l := &Loaded[testConfig]{Config: c, origins: map[string]Origin{}}
		l.schema, _ = newSchema(reflect.TypeFor[testConfig]())
		name := filepath.Join(t.TempDir(), "p.yaml")
		f, err := os.Create(name)
		if err != nil {
			rt.Fatal(err)
		}
		if err := l.Print(f); err != nil {
			rt.Fatal(err)
		}
		if err := f.Close(); err != nil {
			rt.Fatal(err)
		}
		back, err := Load(testConfig{}, Options{File: name, Environ: []string{}})
		if err != nil {
			text, _ := os.ReadFile(name)
			rt.Fatalf("%v\n%s", err, text)
		}
		back.Config.Waits, back.Config.Labels, back.Config.Providers = nil, nil, nil // printed as [] and {}
		if !reflect.DeepEqual(back.Config, c) {
			rt.Fatalf("got  %+v\nwant %+v", back.Config, c)
		}
	})
}

// yamlText reports whether YAML can hold the text at all.
func yamlText(s string) bool {
	for _, r := range s {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0xfeff || r > 0xfffd {
			return false
		}
	}
	return true
}

func TestOpenSecretWarns(t *testing.T) {
	name := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(name, []byte("token: hush\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	l, err := Load(defaults(), Options{File: name, Environ: []string{}})
	if err != nil {
		t.Fatal(err)
	}
	if len(l.Warnings) != 1 || !strings.Contains(l.Warnings[0], "mode 0644") {
		t.Errorf("warnings %q", l.Warnings)
	}
	if l, _, _ := load(t, "token: hush\n"); len(l.Warnings) != 0 {
		t.Errorf("warned of a closed file: %q", l.Warnings)
	}
}

// A struct that cannot be a configuration is refused for the program's author, and is not the user's fault.
func TestSchemaDefects(t *testing.T) {
	check := func(name string, err error, want string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) || fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	_, err := Keys[struct{ A int }]()
	check("no tag", err, "needs a yaml tag")
	_, err = Keys[struct {
		A struct {
			B int `yaml:"b"`
		} `yaml:"a"`
		C int `yaml:"a_b"`
	}]()
	check("same variable", err, "a.b and a_b are both ORCH_A_B")
	_, err = Keys[struct {
		A *int `yaml:"a"`
	}]()
	check("pointer", err, "cannot be a *int")
	_, err = Keys[struct {
		Node string `yaml:"node"`
	}]()
	check("reserved", err, "ORCH_NODE is set inside sessions")
	_, err = Keys[int]()
	check("no struct", err, "is not a struct")
	check("flag taken", Flags(func() *pflag.FlagSet {
		fs := pflag.NewFlagSet("x", pflag.ContinueOnError)
		fs.String("join", "", "")
		return fs
	}(), defaults()), "--join is taken")
}

func TestBytes(t *testing.T) {
	for text, want := range map[string]Bytes{"0": 0, "1": 1, "10B": 10, "1KiB": 1024, "1.5GiB": 3 << 29, "2 MB": 2e6, "8TiB": 8 << 40, "9223372036854775807": 1<<63 - 1} {
		got, err := ParseBytes(text)
		if err != nil || got != want {
			t.Errorf("%s: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "x", "-1", "-1MiB", "1.5", "0.3KiB", "9000000TiB", "1e400", "NaN", "Inf", "0x10", "1_0", "MiB"} {
		if got, err := ParseBytes(text); err == nil {
			t.Errorf("%q: accepted as %d", text, got)
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		b := Bytes(rapid.Int64Range(0, 1<<62).Draw(rt, "b"))
		if back, err := ParseBytes(b.String()); err != nil || back != b {
			rt.Fatalf("%d is written %s and read %d, %v", b, b, back, err)
		}
	})
}
