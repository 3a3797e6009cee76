// Command schemas makes the schemas that the chart's objects are checked against: of the kinds that it uses and no others, strict,
// without descriptions. It takes them from the modules of Kubernetes and of the custom resources' makers, so that the tests need
// neither those modules nor a network.
//
//	go run ./schemas        (in deploy/helm/charttest; writes testdata/schemas)
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

// Where the schemas come from.
const (
	kubernetes = "k8s.io/kubernetes@v1.37.2"
	swagger    = "api/openapi-spec/swagger.json"
	out        = "testdata/schemas"
)

// kinds of Kubernetes itself, by the names of their definitions.
var kinds = []string{
	"io.k8s.api.apps.v1.DaemonSet", "io.k8s.api.apps.v1.StatefulSet", "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler", "io.k8s.api.batch.v1.CronJob",
	"io.k8s.api.core.v1.ConfigMap", "io.k8s.api.core.v1.PersistentVolumeClaim", "io.k8s.api.core.v1.Pod", "io.k8s.api.core.v1.Secret",
	"io.k8s.api.core.v1.Service", "io.k8s.api.core.v1.ServiceAccount", "io.k8s.api.networking.v1.Ingress", "io.k8s.api.networking.v1.NetworkPolicy",
	"io.k8s.api.policy.v1.PodDisruptionBudget", "io.k8s.api.scheduling.v1.PriorityClass",
}

// custom resources: the module, and the file of the definition in it.
var custom = [][2]string{
	{"github.com/cert-manager/cert-manager@v1.21.2", "deploy/crds/cert-manager.io_certificates.yaml"},
	{"sigs.k8s.io/gateway-api@v1.5.1", "config/crd/standard/gateway.networking.k8s.io_httproutes.yaml"},
	{"sigs.k8s.io/gateway-api@v1.5.1", "config/crd/standard/gateway.networking.k8s.io_backendtlspolicies.yaml"},
	{"github.com/prometheus-operator/prometheus-operator@v0.85.0", "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml"},
}

type schema = map[string]any

func main() {
	log.SetFlags(0)
	log.SetPrefix("schemas: ")
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	if err := os.RemoveAll(out); err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	if err := builtIn(); err != nil {
		return err
	}
	for _, c := range custom {
		if err := customResource(c[0], c[1]); err != nil {
			return fmt.Errorf("%s %s: %w", c[0], c[1], err)
		}
	}
	return nil
}

// read returns a file of a module, which is downloaded for it.
func read(module, file string) ([]byte, error) {
	text, err := exec.Command("go", "mod", "download", "-json", module).Output()
	if err != nil {
		return nil, fmt.Errorf("download %s: %w: %s", module, err, text)
	}
	var m struct{ Dir string }
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, err
	}
	return os.ReadFile(filepath.Join(m.Dir, file))
}

func builtIn() error {
	text, err := read(kubernetes, swagger)
	if err != nil {
		return err
	}
	var all struct{ Definitions map[string]schema }
	if err := json.Unmarshal(text, &all); err != nil {
		return err
	}
	either := schema{"type": []string{"string", "number"}}
	all.Definitions["io.k8s.apimachinery.pkg.util.intstr.IntOrString"] = either
	all.Definitions["io.k8s.apimachinery.pkg.api.resource.Quantity"] = either
	used := map[string]schema{}
	for _, name := range kinds {
		d := all.Definitions[name]
		if d == nil {
			return fmt.Errorf("%s: there is no definition of that name", name)
		}
		group, version, kind := whatIs(name)
		collect(name, all.Definitions, used)
		ref := schema{"$ref": "_definitions.json#/definitions/" + name}
		if err := write(file(group, version, kind), schema{"allOf": []any{ref, typeMeta(group, version, kind)}}); err != nil {
			return err
		}
	}
	return write("_definitions.json", schema{"definitions": used})
}

// whatIs is the group, version and kind of a definition such as io.k8s.api.apps.v1.StatefulSet.
func whatIs(name string) (group, version, kind string) {
	parts := strings.Split(strings.TrimPrefix(name, "io.k8s.api."), ".")
	group, version, kind = parts[0], parts[1], parts[2]
	switch group {
	case "core":
		group = ""
	case "networking", "scheduling":
		group += ".k8s.io"
	}
	return group, version, kind
}

// typeMeta wants the kind to be said; a claim inside a StatefulSet may leave its own out.
func typeMeta(group, version, kind string) schema {
	if group != "" {
		version = group + "/" + version
	}
	return schema{"required": []string{"apiVersion", "kind"}, "properties": schema{"apiVersion": schema{"const": version}, "kind": schema{"const": kind}}}
}

// file is where kubeconform looks for a kind.
func file(group, version, kind string) string {
	name := strings.ToLower(kind)
	if group != "" {
		name += "-" + strings.Split(group, ".")[0]
	}
	return name + "-" + version + ".json"
}

// collect adds a definition and all that it refers to.
func collect(name string, from, to map[string]schema) {
	if to[name] != nil {
		return
	}
	d := from[name]
	to[name] = d
	strict(d)
	var refs func(v any)
	refs = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if r, ok := v["$ref"].(string); ok {
				collect(strings.TrimPrefix(r, "#/definitions/"), from, to)
			}
			for _, inner := range v {
				refs(inner)
			}
		case []any:
			for _, inner := range v {
				refs(inner)
			}
		}
	}
	refs(d)
}

// strict forbids fields that a schema does not name, and drops what says nothing to a checker.
func strict(s schema) {
	for k := range s {
		if k == "description" || k == "format" || k == "default" || k == "example" || strings.HasPrefix(k, "x-kubernetes-") && k != "x-kubernetes-preserve-unknown-fields" && k != "x-kubernetes-int-or-string" {
			if _, text := s[k].(string); text || k == "default" || strings.HasPrefix(k, "x-") {
				delete(s, k)
			}
		}
	}
	if s["x-kubernetes-int-or-string"] == true {
		delete(s, "x-kubernetes-int-or-string")
		delete(s, "anyOf")
		delete(s, "pattern")
		s["type"] = []string{"string", "number"}
	}
	if p, ok := s["properties"].(map[string]any); ok {
		if s["additionalProperties"] == nil && s["x-kubernetes-preserve-unknown-fields"] != true {
			s["additionalProperties"] = false
		}
		for _, inner := range p {
			if m, ok := inner.(map[string]any); ok {
				strict(m)
			}
		}
	}
	for _, k := range []string{"items", "additionalProperties"} {
		if m, ok := s[k].(map[string]any); ok {
			strict(m)
		}
	}
}

func customResource(module, name string) error {
	text, err := read(module, name)
	if err != nil {
		return err
	}
	var crd struct {
		Spec struct {
			Group    string
			Names    struct{ Kind string }
			Versions []struct {
				Name    string
				Storage bool
				Schema  struct{ OpenAPIV3Schema schema }
			}
		}
	}
	if err := yaml.Unmarshal(text, &crd); err != nil {
		return err
	}
	for _, v := range crd.Spec.Versions {
		s := v.Schema.OpenAPIV3Schema
		strict(s)
		s["properties"].(map[string]any)["metadata"] = schema{"type": "object"}
		if err := write(file(crd.Spec.Group, v.Name, crd.Spec.Names.Kind), schema{"allOf": []any{s, typeMeta(crd.Spec.Group, v.Name, crd.Spec.Names.Kind)}}); err != nil {
			return err
		}
	}
	return nil
}

func write(name string, s schema) error {
	s["$schema"] = "http://json-schema.org/draft-07/schema#"
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, name), b.Bytes(), 0o644)
}
