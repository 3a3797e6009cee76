// The programs themselves: what the chart writes for them, they accept; and what they have settings for, the chart knows.

package charttest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"sigs.k8s.io/yaml"
)

// programs is the directory with orchestrator and node-agent: $PROGRAMS, or what is built from the source.
var programs = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv("PROGRAMS"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.MkdirTemp("", "charttest-")
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-o", dir+"/", "./cmd/orchestrator", "./cmd/node-agent")
	cmd.Dir, cmd.Stderr = "../../..", os.Stderr
	return dir, cmd.Run()
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := programs(); err == nil && os.Getenv("PROGRAMS") == "" {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

// runProgram runs one of them to its end, with nothing in its environment but env.
func runProgram(t *testing.T, env []string, name string, args ...string) (stdout string, err error) {
	t.Helper()
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(dir, name), args...)
	var out, errs bytes.Buffer
	cmd.Env, cmd.Stdout, cmd.Stderr = append([]string{"HOME=/tmp", "PATH=/bin"}, env...), &out, &errs
	if err = cmd.Run(); err != nil {
		t.Logf("%s %s: %s", name, strings.Join(args, " "), &errs)
	}
	return out.String(), err
}

// workloads are the objects that run the programs, with the program, its ConfigMap and the file in it.
var workloads = []struct{ suffix, program, file string }{
	{"-server", "orchestrator", "orchestrator.yaml"},
	{"-agent", "node-agent", "node-agent.yaml"},
}

var expansion = regexp.MustCompile(`\$\(([A-Z_]+)\)`)

// podEnv is a container's environment as the kubelet makes it for the first pod.
func podEnv(t *testing.T, o object, container any) (env []string) {
	t.Helper()
	known := map[string]string{}
	fields := map[string]string{"metadata.name": o.name() + "-0", "metadata.uid": "12345678-1234-1234-1234-123456789abc", "status.podIP": "10.1.2.3", "spec.nodeName": "machine-1.example"}
	if _, v6 := findEnv(container, "ORCH_ADVERTISE_GOSSIP"); strings.HasPrefix(v6, "[") {
		fields["status.podIP"] = "fd00::1"
	}
	for _, e := range list(container, "env") {
		name, value := text(e, "name"), text(e, "value")
		if field := text(e, "valueFrom", "fieldRef", "fieldPath"); field != "" {
			if value = fields[field]; value == "" {
				t.Errorf("%s: %s is of field %s, which is not known here", o, name, field)
			}
		}
		value = expansion.ReplaceAllStringFunc(value, func(s string) string {
			v, ok := known[s[2:len(s)-1]]
			if !ok {
				t.Errorf("%s: %s names %s, which is not said before it", o, name, s)
			}
			return v
		})
		known[name] = value
		env = append(env, name+"="+value)
	}
	return env
}

func findEnv(container any, name string) (bool, string) {
	for _, e := range list(container, "env") {
		if text(e, "name") == name {
			return true, text(e, "value")
		}
	}
	return false, ""
}

// workload is what runs a program: a StatefulSet or a DaemonSet.
func workload(objects []object, name string) object {
	for _, o := range objects {
		if o.name() == name && (o.kind() == "StatefulSet" || o.kind() == "DaemonSet") {
			return o
		}
	}
	return nil
}

// effective is a program's whole configuration, by its own word.
func effective(t *testing.T, objects []object, suffix, program, file string) values {
	t.Helper()
	o := workload(objects, fullname+suffix)
	if o == nil {
		return nil
	}
	path := filepath.Join(t.TempDir(), file)
	config := text(find(t, objects, "ConfigMap", fullname+suffix), "data", file)
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	shown, err := runProgram(t, podEnv(t, o, at(podSpec(o), "containers", 0)), program, "config", "print", "--config", path)
	if err != nil {
		t.Fatalf("%s refuses its settings: %v\n%s", program, err, config)
	}
	var v values
	if err := yaml.Unmarshal([]byte(shown), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// The programs accept what is written for them in each variant.
func TestPrograms(t *testing.T) {
	given := variants(t)
	given["numbers"] = merged(with("servers.settings.raft.snapshot_entries", 5000000.0), with("chunks.maxBytes", "6GiB"),
		with("agent.settings", values{"capabilities": values{"memory_bytes": 8589934592.0, "custom": []any{"tpu"}}, "labels": values{"pool": "1"}}))
	for name, v := range given {
		t.Run(name, func(t *testing.T) {
			objects := render(t, v)
			for _, w := range workloads {
				if effective(t, objects, w.suffix, w.program, w.file) == nil && (w.program == "orchestrator" || at(v, "agent", "enabled") != false) {
					t.Errorf("nothing runs %s", w.program)
				}
			}
		})
	}
}

// What the defaults come to, in the programs' own words.
func TestEffectiveSettings(t *testing.T) {
	objects := render(t, with("agent.settings.labels.pool", "big"))
	server := effective(t, objects, "-server", "orchestrator", "orchestrator.yaml")
	self := fullname + "-server-0." + fullname + "-servers.demo.svc.cluster.local"
	for path, want := range map[string]any{
		"name": fullname + "-server-0", "cluster": fullname, "bootstrap_expect": 3.0, "insecure": false,
		"advertise.raft": self + ":8076", "advertise.grpc": self + ":8077", "advertise.link": self + ":8078", "advertise.gossip": "10.1.2.3:8075",
		"listen.client": "0.0.0.0:8079", "auth.tokens": true, "log.format": "json",
		"tls.cert_file": "/var/run/orchestrator/tls/" + fullname + "-server-0.pem",
	} {
		wantAt(t, server, path, want)
	}
	if join := list(server, "join"); len(join) != 1 || join[0] != fullname+"-servers.demo.svc.cluster.local:8075" {
		t.Errorf("servers join %v", join)
	}
	agent := effective(t, objects, "-agent", "node-agent", "node-agent.yaml")
	for path, want := range map[string]any{
		"name": fullname + "-agent-0", "labels.pool": "big", "checkpoints.serve": "10.1.2.3:8080", "address": "10.1.2.3", "metrics.listen": "0.0.0.0:9078",
		"tls.key_file": "/var/run/orchestrator/tls/" + fullname + "-agent-0-key.pem",
	} {
		wantAt(t, agent, path, want)
	}
	// A machine is a node, whatever its pod is called; addresses of its family are in brackets.
	objects = render(t, variants(t)["daemonset"])
	agent = effective(t, objects, "-agent", "node-agent", "node-agent.yaml")
	wantAt(t, agent, "name", "machine-1.example")
	server = effective(t, objects, "-server", "orchestrator", "orchestrator.yaml")
	wantAt(t, server, "advertise.gossip", "[fd00::1]:8075")
	wantAt(t, server, "listen.raft", "[::]:8076")
}

func wantAt(t *testing.T, v values, path string, want any) {
	t.Helper()
	var keys []any
	for _, k := range strings.Split(path, ".") {
		keys = append(keys, k)
	}
	if got := at(v, keys...); got != want {
		t.Errorf("%s is %v, not %v", path, got, want)
	}
}

// charts own these settings; everything else that the programs have can be said in values, and nothing that they have not.
var owned = map[string][]string{
	"servers": {"name", "cluster", "data_dir", "insecure", "listen", "advertise", "bootstrap_expect", "join", "gossip_key_file", "tls", "auth", "chunks.store", "chunks.max_bytes", "chunks.s3", "providers", "recorder"},
	"agent":   {"name", "data_dir", "servers", "address", "insecure", "token_file", "tls", "secrets_dir", "metrics", "checkpoints.cache_dir", "checkpoints.serve", "sessions.drain_on_stop"},
}

func TestSchemaKnowsTheSettings(t *testing.T) {
	schema := readSchema(t)
	for component, program := range map[string]string{"servers": "orchestrator", "agent": "node-agent"} {
		shown, err := runProgram(t, nil, program, "config", "print")
		if err != nil {
			t.Fatal(err)
		}
		var has values
		if err := yaml.Unmarshal([]byte(shown), &has); err != nil {
			t.Fatal(err)
		}
		settings, _ := at(schema, "properties", component, "properties", "settings", "properties").(map[string]any)
		known := map[string]bool{}
		for section, s := range settings {
			inner, _ := at(s, "properties").(map[string]any)
			for k := range inner {
				known[section+"."+k] = true
			}
			if inner == nil { // a map of the user's own
				known[section] = true
			}
		}
		for _, key := range settingsOf(has) {
			section, _, _ := strings.Cut(key, ".")
			if slices.Contains(owned[component], key) || slices.Contains(owned[component], section) {
				continue
			}
			if !known[key] {
				t.Errorf("values.schema.json: %s.settings lacks %s, which %s has", component, key, program)
			}
			delete(known, key)
		}
		for _, key := range slices.Sorted(maps.Keys(known)) {
			t.Errorf("values.schema.json: %s.settings has %s, which %s has not", component, key, program)
		}
	}
}

// settingsOf are the paths of a configuration, two deep.
func settingsOf(v values) (keys []string) {
	for k, inner := range v {
		m, section := inner.(map[string]any)
		if !section || len(m) == 0 {
			keys = append(keys, k)
			continue
		}
		for kk := range m {
			keys = append(keys, k+"."+kk)
		}
	}
	slices.Sort(keys)
	return keys
}

func readSchema(t *testing.T) (s values) {
	t.Helper()
	b, err := os.ReadFile(chartDir + "/values.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// Every file that a program is told to read is mounted where it is told.
func TestFilesAreMounted(t *testing.T) {
	given := variants(t)
	given["keys of S3"] = s3(with("chunks.s3", values{"accessKey": "a", "secretKey": "b", "caSecret": "c"}))
	given["certificates of nodes"] = with("tls", values{"mode": "existingSecret", "existingSecret": "s", "existingNodeSecret": "n"})
	for name, v := range given {
		t.Run(name, func(t *testing.T) {
			objects := render(t, v)
			for _, w := range workloads {
				pod := podSpec(workload(objects, fullname+w.suffix))
				settings := effective(t, objects, w.suffix, w.program, w.file)
				files := pathsIn(settings)
				if len(files) == 0 {
					t.Errorf("%s is told of no file", w.program)
				}
				for key, path := range files {
					if !mounted(pod, path) {
						t.Errorf("%s: %s is %s, where nothing is mounted", w.program, key, path)
					}
				}
			}
		})
	}
}

// pathsIn are the settings that are paths.
func pathsIn(v values) map[string]string {
	found := map[string]string{}
	for k, inner := range v {
		switch inner := inner.(type) {
		case string:
			if strings.HasPrefix(inner, "/") {
				found[k] = inner
			}
		case map[string]any:
			for kk, path := range pathsIn(inner) {
				found[k+"."+kk] = path
			}
		case []any:
			for i, item := range inner {
				m, _ := item.(map[string]any)
				for kk, path := range pathsIn(m) {
					found[fmt.Sprintf("%s[%d].%s", k, i, kk)] = path
				}
			}
		}
	}
	return found
}

// mounted reports whether a path in a pod's program is of a volume; where that names its files, of one that it names.
func mounted(pod map[string]any, path string) bool {
	for _, m := range list(pod, "containers", 0, "volumeMounts") {
		rest, below := strings.CutPrefix(path, text(m, "mountPath"))
		if !below || rest != "" && rest[0] != '/' {
			continue
		}
		for _, v := range list(pod, "volumes") {
			items := list(v, "secret", "items")
			for _, source := range list(v, "projected", "sources") {
				items = append(items, list(source, "secret", "items")...)
			}
			if text(v, "name") != text(m, "name") || items == nil {
				continue
			}
			return slices.ContainsFunc(items, func(item any) bool { return "/"+text(item, "path") == rest })
		}
		return true
	}
	return false
}
