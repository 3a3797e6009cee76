// Rendering: the chart, its variants, and the objects that come out.

package charttest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

const (
	chartDir  = "../orchestrator"
	release   = "agents"
	namespace = "demo"
	// fullname is what the chart makes of the release's name.
	fullname = "agents-orchestrator"
)

// values are what is given beside the chart's own.
type values = map[string]any

// object is a Kubernetes object.
type object map[string]any

func (o object) kind() string { return text(o, "kind") }
func (o object) name() string { return text(o, "metadata", "name") }
func (o object) String() string {
	return o.kind() + "/" + o.name()
}

// at walks maps by their keys, and lists by their index; nil when there is nothing.
func at(v any, path ...any) any {
	for _, p := range path {
		switch k := p.(type) {
		case string:
			switch m := v.(type) {
			case map[string]any:
				v = m[k]
			case object:
				v = m[k]
			default:
				return nil
			}
		case int:
			l, _ := v.([]any)
			if k >= len(l) {
				return nil
			}
			v = l[k]
		}
	}
	return v
}

func text(v any, path ...any) string {
	s, _ := at(v, path...).(string)
	return s
}

func list(v any, path ...any) []any {
	l, _ := at(v, path...).([]any)
	return l
}

// loadChart reads the chart as Helm packages it: .helmignore counts.
func loadChart(t *testing.T) *chart.Chart {
	t.Helper()
	c, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// variants are the values of ci/, and none.
func variants(t *testing.T) map[string]values {
	t.Helper()
	all := map[string]values{"default": {}}
	files, err := filepath.Glob(chartDir + "/ci/*-values.yaml")
	if err != nil || len(files) < 5 {
		t.Fatalf("%d files in ci/: %v", len(files), err)
	}
	for _, f := range files {
		v, err := common.ReadValuesFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimSuffix(filepath.Base(f), "-values.yaml")] = v
	}
	return all
}

// renderFiles renders the chart; nothing is in the cluster unless there says so.
func renderFiles(t *testing.T, v values, there engine.ClientProvider) (files map[string]string, err error) {
	t.Helper()
	return renderChart(loadChart(t), v, there)
}

func renderChart(c *chart.Chart, v values, there engine.ClientProvider) (files map[string]string, err error) {
	all, err := util.ToRenderValues(c, v, common.ReleaseOptions{Name: release, Namespace: namespace, IsInstall: true, Revision: 1}, common.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	if there == nil {
		files, err = engine.Render(c, all)
	} else {
		files, err = engine.RenderWithClientProvider(c, all, there)
	}
	if err != nil {
		return nil, err
	}
	for name, text := range files {
		if strings.Contains(text, "<no value>") {
			return nil, fmt.Errorf("%s names a value that there is not", name)
		}
	}
	return files, nil
}

// tryRender is renderFiles as objects.
func tryRender(t *testing.T, v values, there engine.ClientProvider) ([]object, error) {
	t.Helper()
	files, err := renderFiles(t, v, there)
	if err != nil {
		return nil, err
	}
	return objectsOf(files)
}

func objectsOf(files map[string]string) (objects []object, err error) {
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if filepath.Ext(name) != ".yaml" {
			continue
		}
		docs, err := parse(files[name])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		objects = append(objects, docs...)
	}
	return objects, nil
}

// render renders what must render.
func render(t *testing.T, v values) []object {
	t.Helper()
	objects, err := tryRender(t, v, nil)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

// renderNotes is what install prints.
func renderNotes(t *testing.T, v values) string {
	t.Helper()
	files, err := renderFiles(t, v, nil)
	if err != nil {
		t.Fatal(err)
	}
	return files["orchestrator/templates/NOTES.txt"]
}

func parse(file string) (objects []object, err error) {
	for r := utilyaml.NewYAMLReader(bufio.NewReader(strings.NewReader(file))); ; {
		doc, err := r.Read()
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, err
		}
		var o object
		if err := yaml.UnmarshalStrict(doc, &o); err != nil { // a key that is there twice is an error
			return nil, err
		}
		if len(o) > 0 {
			objects = append(objects, o)
		}
	}
}

// find returns the object of a kind and name.
func find(t *testing.T, objects []object, kind, name string) object {
	t.Helper()
	for _, o := range objects {
		if o.kind() == kind && o.name() == name {
			return o
		}
	}
	t.Fatalf("there is no %s/%s among %v", kind, name, objects)
	return nil
}

func has(objects []object, kind, name string) bool {
	return slices.ContainsFunc(objects, func(o object) bool { return o.kind() == kind && o.name() == name })
}

// podSpec returns the pods' spec of whatever makes pods; nil of anything else.
func podSpec(o object) map[string]any {
	path := []any{"spec", "template", "spec"}
	switch o.kind() {
	case "Pod":
		path = []any{"spec"}
	case "CronJob":
		path = append([]any{"spec", "jobTemplate"}, path...)
	case "StatefulSet", "DaemonSet", "Job":
	default:
		return nil
	}
	m, _ := at(o, path...).(map[string]any)
	return m
}

// containers are all of a pod's, those of its beginning first.
func containers(pod map[string]any) []any {
	return append(slices.Clone(list(pod, "initContainers")), list(pod, "containers")...)
}

// with is a value at a path such as servers.replicas.
func with(path string, value any) values {
	parts := strings.Split(path, ".")
	for _, p := range slices.Backward(parts) {
		value = map[string]any{p: value}
	}
	return value.(values)
}

// merged is all of them, the later ones first.
func merged(all ...values) values {
	out := values{}
	for _, v := range all {
		mergeInto(out, v)
	}
	return out
}

func mergeInto(to, from values) {
	for k, v := range from {
		if m, ok := v.(map[string]any); ok {
			inner, _ := to[k].(map[string]any)
			inner = maps.Clone(inner)
			if inner == nil {
				inner = map[string]any{}
			}
			mergeInto(inner, m)
			to[k] = inner
			continue
		}
		to[k] = v
	}
}
