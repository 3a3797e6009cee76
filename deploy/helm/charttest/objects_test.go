// What every variant must be: known to Helm and Kubernetes, and fit for restricted pod security.

package charttest

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/yannh/kubeconform/pkg/validator"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"sigs.k8s.io/yaml"
)

func TestLint(t *testing.T) {
	for name, v := range variants(t) {
		t.Run(name, func(t *testing.T) {
			for _, m := range lint.RunAll(chartDir, v, namespace).Messages {
				if m.Severity >= support.WarningSev {
					t.Error(m)
				}
			}
		})
	}
}

// newValidator knows the kinds of testdata/schemas, which schemas/main.go makes, and no others.
func newValidator(t *testing.T) validator.Validator {
	t.Helper()
	v, err := validator.New([]string{"testdata/schemas/{{ .ResourceKind }}{{ .KindSuffix }}.json"}, validator.Opts{Strict: true})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func validate(t *testing.T, v validator.Validator, o object) (errs []string) {
	t.Helper()
	doc, err := yaml.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range v.Validate(o.String(), io.NopCloser(bytes.NewReader(doc))) {
		if r.Status != validator.Valid {
			errs = append(errs, r.Err.Error())
		}
	}
	return errs
}

func TestSchemas(t *testing.T) {
	v := newValidator(t)
	for name, given := range variants(t) {
		t.Run(name, func(t *testing.T) {
			for _, o := range render(t, given) {
				if errs := validate(t, v, o); len(errs) > 0 {
					t.Errorf("%s: %s", o, strings.Join(errs, "; "))
				}
			}
		})
	}
	t.Run("misspelt", func(t *testing.T) {
		o := find(t, render(t, nil), "StatefulSet", fullname+"-server")
		at(o, "spec", "template", "spec").(map[string]any)["terminationGracePeriodSecond"] = 1
		if len(validate(t, v, o)) == 0 {
			t.Error("a field that there is not was accepted")
		}
	})
}

// Names, once for each kind, in the release's namespace, with the labels that everything has.
func TestObjects(t *testing.T) {
	clusterWide := []string{"PriorityClass"}
	for name, given := range variants(t) {
		t.Run(name, func(t *testing.T) {
			seen := map[string]bool{}
			for _, o := range render(t, given) {
				if seen[o.String()] {
					t.Errorf("%s is there twice", o)
				}
				seen[o.String()] = true
				if ns := text(o, "metadata", "namespace"); ns != namespace && !slices.Contains(clusterWide, o.kind()) {
					t.Errorf("%s is in namespace %q", o, ns)
				}
				for _, l := range []string{"app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/component", "app.kubernetes.io/version", "helm.sh/chart"} {
					if text(o, "metadata", "labels", l) == "" {
						t.Errorf("%s has no label %s", o, l)
					}
				}
			}
		})
	}
}

// Pods are as restricted pod security wants them, with nothing of the API server's in them, and bounded.
func TestPods(t *testing.T) {
	for name, given := range variants(t) {
		t.Run(name, func(t *testing.T) {
			for _, o := range render(t, given) {
				pod := podSpec(o)
				if pod == nil {
					continue
				}
				for want, got := range map[any]any{
					false:            at(pod, "automountServiceAccountToken"),
					"RuntimeDefault": at(pod, "securityContext", "seccompProfile", "type"),
					true:             at(pod, "securityContext", "runAsNonRoot"),
				} {
					if got != want {
						t.Errorf("%s: %v, not %v", o, got, want)
					}
				}
				if at(pod, "enableServiceLinks") != false {
					t.Errorf("%s: variables of Services may begin with ORCH_, and the programs refuse those that they do not know", o)
				}
				if len(list(pod, "containers")) == 0 {
					t.Errorf("%s has no containers", o)
				}
				mounts := map[string]bool{}
				for _, c := range containers(pod) {
					checkContainer(t, o, c, mounts)
				}
				for _, c := range list(o, "spec", "volumeClaimTemplates") {
					delete(mounts, text(c, "metadata", "name"))
				}
				checkVolumes(t, o, pod, given, mounts)
			}
		})
	}
}

func checkContainer(t *testing.T, o object, c any, mounts map[string]bool) {
	t.Helper()
	what := o.String() + " " + text(c, "name")
	security := at(c, "securityContext")
	if at(security, "allowPrivilegeEscalation") != false || at(security, "readOnlyRootFilesystem") != true || at(security, "runAsNonRoot") != true {
		t.Errorf("%s: %v", what, security)
	}
	if drop := list(security, "capabilities", "drop"); len(drop) != 1 || drop[0] != "ALL" {
		t.Errorf("%s keeps capabilities", what)
	}
	for _, r := range []string{"cpu", "memory", "ephemeral-storage"} {
		if at(c, "resources", "requests", r) == nil {
			t.Errorf("%s asks for no %s", what, r)
		}
	}
	if at(c, "resources", "limits", "memory") == nil {
		t.Errorf("%s has no limit of memory", what)
	}
	for _, m := range list(c, "volumeMounts") {
		mounts[text(m, "name")] = true
	}
}

// checkVolumes wants each mount to have a volume, and the other way round; emptyDirs to be bounded; and secrets to be read by few.
func checkVolumes(t *testing.T, o object, pod map[string]any, given values, mounts map[string]bool) {
	t.Helper()
	for _, v := range list(pod, "volumes") {
		name := text(v, "name")
		if !mounts[name] {
			t.Errorf("%s: nobody mounts %s", o, name)
		}
		delete(mounts, name)
		if e, ok := at(v, "emptyDir").(map[string]any); ok && e["sizeLimit"] == nil {
			t.Errorf("%s: %s has no bound", o, name)
		}
		for _, kind := range []string{"secret", "projected"} {
			if mode, _ := at(v, kind, "defaultMode").(float64); at(v, kind) != nil && (mode == 0 || int(mode)&0o007 != 0) {
				t.Errorf("%s: %s has mode %#o, and programs refuse secrets that everybody may read", o, name, int(mode))
			}
		}
		if at(v, "hostPath") != nil && at(given, "agent", "hostPath") == nil {
			t.Errorf("%s: %s is of the machine, which restricted pod security refuses", o, name)
		}
	}
	for m := range mounts {
		t.Errorf("%s: %s is mounted, and there is no such volume", o, m)
	}
}
