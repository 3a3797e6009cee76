// What clients have of servers: the gateway's limits, providers of models with keys from Secrets, and the record of what they do.

package charttest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// printed is a program's configuration without any settings: its defaults.
func printed(t *testing.T, program string, args ...string) (has values) {
	t.Helper()
	shown, err := runProgram(t, nil, program, append([]string{"config", "print"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal([]byte(shown), &has); err != nil {
		t.Fatal(err)
	}
	return has
}

// What values.yaml shows as limits of the gateway are the program's own: who reads the one knows the other.
func TestLimitsAreTheProgramsOwn(t *testing.T) {
	want := fmt.Sprint(printed(t, "orchestrator")["gateway"])
	server := effective(t, render(t, nil), "-server", "orchestrator", "orchestrator.yaml")
	if got := fmt.Sprint(server["gateway"]); got != want {
		t.Errorf("the chart's defaults make\n%s\nand the program's are\n%s", got, want)
	}
	// A limit that is given reaches the program, however large, and leaves the others.
	objects := render(t, merged(variants(t)["gateway"], with("servers.settings.gateway.rate.global_burst", 1000000.0))) // as Helm reads numbers
	if config := text(find(t, objects, "ConfigMap", fullname+"-server"), "data", "orchestrator.yaml"); !strings.Contains(config, "global_burst: 1000000\n") {
		t.Error(config)
	}
	server = effective(t, objects, "-server", "orchestrator", "orchestrator.yaml")
	for path, want := range map[string]any{
		"gateway.max_connections": 5000.0, "gateway.rate.global_burst": 1000000.0, "gateway.rate.user_per_second": 50.0, "gateway.max_argument_bytes": "10MiB",
		"gateway.max_frame_bytes": "8MiB", "gateway.call_timeout": "10m", "gateway.hello_timeout": "15s",
	} {
		wantAt(t, server, path, want)
	}
	if got := fmt.Sprint(at(server, "gateway", "trusted_proxies")); got != "[10.42.0.0/16 fd00:42::/48]" {
		t.Error(got)
	}
}

// Nothing that is exposed makes anybody's word about addresses believed.
func TestExposureTrustsNobody(t *testing.T) {
	for _, name := range []string{"s3", "ha"} { // an Ingress, an HTTPRoute
		server := effective(t, render(t, variants(t)[name]), "-server", "orchestrator", "orchestrator.yaml")
		if got := list(server, "gateway", "trusted_proxies"); len(got) > 0 {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// Keys and authorities of providers are files of Secrets, and the program is told where.
func TestProvidersHaveTheirKeys(t *testing.T) {
	objects := render(t, variants(t)["providers"])
	server := effective(t, objects, "-server", "orchestrator", "orchestrator.yaml")
	pod := podSpec(find(t, objects, "StatefulSet", fullname+"-server"))
	secretOf := map[string]string{} // by path
	for _, v := range list(pod, "volumes") {
		for _, source := range list(v, "projected", "sources") {
			for _, item := range list(source, "secret", "items") {
				secretOf["/var/run/orchestrator/providers/"+text(item, "path")] = text(source, "secret", "name") + "/" + text(item, "key")
			}
		}
	}
	pools := list(server, "providers", "pools")
	got := map[string]string{}
	for _, p := range pools {
		name := text(p, "name")
		got[name] = secretOf[text(p, "key_file")]
		got[name+" authority"] = secretOf[text(p, "ca_file")]
		for i, e := range list(p, "endpoints") {
			got[fmt.Sprintf("%s %d", name, i)] = secretOf[text(e, "key_file")]
		}
	}
	maps.DeleteFunc(got, func(_, secret string) bool { return secret == "" })
	want := map[string]string{"moonshot": "provider-keys/moonshot", "zhipuai 0": "provider-keys/zhipuai-1", "zhipuai 1": "zhipuai-second/api-key", "claude": "claude/api-key", "inside authority": "models-ca/ca.crt"}
	if !maps.Equal(got, want) {
		t.Errorf("keys are\n%v, not\n%v", got, want)
	}
	if len(secretOf) != len(want) {
		t.Errorf("mounted are %v", secretOf)
	}
	for path, want := range map[string]any{"providers.attempts_max": 6.0} {
		wantAt(t, server, path, want)
	}
	for got, want := range map[any]any{
		at(pools[3], "max_in_flight"): 32.0, at(pools[2], "tokens_per_minute"): 2000000.0, at(pools[0], "models", 0, "input_price"): 0.6, at(pools[1], "endpoints", 1, "weight"): 2.0,
		at(server, "providers", "budgets", 0, "tokens_per_day"): 50000000.0, at(server, "providers", "budgets", 0, "cost_per_day"): 20.0,
	} {
		if got != want {
			t.Errorf("%v, not %v", got, want)
		}
	}
	// The file is for people, too.
	config := text(find(t, objects, "ConfigMap", fullname+"-server"), "data", "orchestrator.yaml")
	for _, bad := range []string{"e+0", "Secret", "null"} {
		if strings.Contains(config, bad) {
			t.Errorf("%q in\n%s", bad, config)
		}
	}
	if !strings.Contains(config, "tokens_per_day: 50000000\n") {
		t.Error(config)
	}
	// Without providers there is no volume of them.
	if pod := podSpec(find(t, render(t, nil), "StatefulSet", fullname+"-server")); strings.Contains(fmt.Sprint(pod), "providers") {
		t.Errorf("%v", list(pod, "volumes"))
	}
}

// The schema knows each setting of a provider that the program has, and no other; keys and authorities by their Secrets.
func TestSchemaKnowsProviders(t *testing.T) {
	objects := render(t, pools(own(values{"endpoints": []any{values{"url": "https://m/v1"}}})))
	server := effective(t, objects, "-server", "orchestrator", "orchestrator.yaml")
	schema := readSchema(t)
	pool := at(schema, "$defs", "pool", "properties")
	for what, c := range map[string]struct{ program, schema any }{
		"a provider":  {at(server, "providers", "pools", 0), pool},
		"an endpoint": {at(server, "providers", "pools", 0, "endpoints", 0), at(pool, "endpoints", "items", "properties")},
		"a model":     {at(server, "providers", "pools", 0, "models", 0), at(pool, "models", "items", "properties")},
	} {
		has, _ := c.program.(map[string]any)
		known, _ := c.schema.(map[string]any)
		for _, key := range slices.Sorted(maps.Keys(has)) {
			if known[key] == nil {
				t.Errorf("%s: the schema lacks %s", what, key)
			}
		}
		for _, key := range slices.Sorted(maps.Keys(known)) {
			if _, there := has[key]; !there && key != "keySecret" && key != "caSecret" {
				t.Errorf("%s: the schema has %s, and the program has not", what, key)
			}
		}
		if len(has) < 3 {
			t.Errorf("%s: %v", what, has)
		}
	}
}

// Where records go, and what of them the volume holds, reaches the program; nothing of the record is elsewhere than in its data directory.
func TestRecords(t *testing.T) {
	has := printed(t, "orchestrator")["recorder"].(map[string]any)
	// Every setting of the program can be given, but for where its files are.
	objects := render(t, variants(t)["recorder-postgres"])
	var written values
	if err := yaml.Unmarshal([]byte(text(find(t, objects, "ConfigMap", fullname+"-server"), "data", "orchestrator.yaml")), &written); err != nil {
		t.Fatal(err)
	}
	own := []string{"postgres.url", "spool.dir", "sqlite.file", "sqlite"}
	given, settings := settingsOf(at(written, "recorder").(map[string]any)), settingsOf(has)
	given = append(given, own...)
	for _, key := range settings {
		if !slices.Contains(given, key) {
			t.Errorf("recorder.%s cannot be given", key)
		}
	}
	server := effective(t, objects, "-server", "orchestrator", "orchestrator.yaml")
	for path, want := range map[string]any{
		"recorder.sink": "postgres", "recorder.postgres.url_file": "/var/run/orchestrator/recorder/url",
		"recorder.postgres.max_conns": 8.0, "recorder.postgres.timeout": "10s", "recorder.spool.max_bytes": "4GiB", "recorder.spool.when_full": "block",
	} {
		wantAt(t, server, path, want)
	}
	server = effective(t, render(t, variants(t)["recorder"]), "-server", "orchestrator", "orchestrator.yaml")
	for path, want := range map[string]any{
		"recorder.sink": "sqlite", "recorder.retention.max_bytes": "20GiB", "recorder.max_payload_bytes": "256KiB", "recorder.spool.alarm_percent": 50.0,
		"recorder.spool.when_full": "drop-and-count", "recorder.spool.sync_every": "20ms", "recorder.spool.dir": "", "recorder.sqlite.file": "", "recorder.postgres.url_file": "",
	} {
		wantAt(t, server, path, want)
	}
	if age := text(server, "recorder", "retention", "max_age"); age != "8760h" {
		t.Error(age)
	}
	// The defaults are the program's own, but for what a volume of the default size has room for.
	server = effective(t, render(t, nil), "-server", "orchestrator", "orchestrator.yaml")
	wantAt(t, server, "recorder.retention.max_bytes", "1GiB")
	wantAt(t, server, "recorder.spool.max_bytes", "256MiB")
	for _, key := range settings {
		path := []any{}
		for _, k := range strings.Split(key, ".") {
			path = append(path, k)
		}
		if got, want := fmt.Sprint(at(server["recorder"], path...)), fmt.Sprint(at(has, path...)); got != want && key != "retention.max_bytes" && key != "spool.max_bytes" {
			t.Errorf("recorder.%s is %s in values.yaml, and %s in the program", key, got, want)
		}
	}
	// A database's URL is in no object that the chart makes, and nobody but the servers mounts its Secret.
	var mounting []string
	for _, o := range objects {
		for _, v := range list(podSpec(o), "volumes") {
			if text(v, "secret", "secretName") == "recorder-database" {
				mounting = append(mounting, o.String())
			}
		}
	}
	if got := strings.Join(mounting, " "); got != "StatefulSet/"+fullname+"-server" {
		t.Errorf("the database's Secret is mounted by %q", got)
	}
	for _, sink := range []string{"sqlite", "none"} {
		if s := fmt.Sprint(podSpec(find(t, render(t, with("recorder.sink", sink)), "StatefulSet", fullname+"-server"))); strings.Contains(s, "name:recorder") {
			t.Errorf("%s mounts %s", sink, s)
		}
	}
}

// Sizes of settings and of volumes are compared, whatever they are written in.
func TestVolumesHaveRoom(t *testing.T) {
	for _, c := range []struct {
		size, records any
		fits          bool
	}{
		{"10Gi", "8961MiB", false}, {"10Gi", "8960MiB", true}, {"10Gi", 8589934592.0, true}, {"10Gi", 9663676416.0, false}, {"10G", "8GiB", true}, {"10G", "8400MiB", false},
		{"10240Mi", "8GiB", true}, {"1.5Gi", "1GiB", true}, {"1.3Gi", "1GiB", false}, {"1Ti", "500GiB", true}, {10737418240.0, "8GiB", true}, {"10Gi", "8GB", true},
	} {
		_, err := tryRender(t, merged(with("servers.persistence.size", c.size), with("recorder.maxBytes", c.records)), nil)
		if fits := err == nil; fits != c.fits {
			t.Errorf("%v of records in %v: %v", c.records, c.size, err)
		}
	}
}
