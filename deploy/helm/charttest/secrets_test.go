// Secrets: made once, kept, and good for what they are for.

package charttest

import (
	"context"
	"encoding/base64"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
)

// cluster is what templates may look up, by kind and name. It implements engine.ClientProvider.
type cluster map[string]object

// GetClientFor implements engine.ClientProvider.
func (c cluster) GetClientFor(_, kind string) (dynamic.NamespaceableResourceInterface, bool, error) {
	return lookup{cluster: c, kind: kind}, true, nil
}

// lookup answers Get; what else there is would be a mistake of the chart, and panics.
type lookup struct {
	dynamic.NamespaceableResourceInterface
	cluster cluster
	kind    string
}

// Namespace implements dynamic.NamespaceableResourceInterface.
func (l lookup) Namespace(string) dynamic.ResourceInterface { return l }

// Get implements dynamic.ResourceInterface.
func (l lookup) Get(_ context.Context, name string, _ metav1.GetOptions, _ ...string) (*unstructured.Unstructured, error) {
	o, ok := l.cluster[l.kind+"/"+name]
	if !ok {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: l.kind}, name)
	}
	return &unstructured.Unstructured{Object: o}, nil
}

// secrets are those of a rendering, by name.
func secrets(objects []object) map[string]object {
	found := map[string]object{}
	for _, o := range objects {
		if o.kind() == "Secret" {
			found[o.name()] = o
		}
	}
	return found
}

// decoded is one value of a Secret.
func decoded(t *testing.T, o object, key string) string {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(text(o, "data", key))
	if err != nil || len(b) == 0 {
		t.Fatalf("%s: %s: %v", o, key, err)
	}
	return string(b)
}

func TestSecretsAreMadeOnce(t *testing.T) {
	first := secrets(render(t, nil))
	names := slices.Sorted(maps.Keys(first))
	if want := []string{fullname + "-admin-token", fullname + "-ca", fullname + "-gossip"}; !slices.Equal(names, want) {
		t.Fatalf("the Secrets are %v, not %v", names, want)
	}
	there := cluster{}
	for name, o := range first {
		there["Secret/"+name] = o
		if text(o, "metadata", "annotations", "helm.sh/resource-policy") != "keep" {
			t.Errorf("%s goes with the release, and its volumes stay", name)
		}
	}
	again, err := tryRender(t, nil, there)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := secrets(render(t, nil))
	for name, o := range first {
		for key := range at(o, "data").(map[string]any) {
			was := text(o, "data", key)
			if now := text(secrets(again)[name], "data", key); now != was {
				t.Errorf("%s: %s was changed by an upgrade", name, key)
			}
			if other := text(elsewhere[name], "data", key); other == was {
				t.Errorf("%s: %s is the same for every release", name, key)
			}
		}
	}
}

// What was lost of a Secret is made anew, and half an authority is none.
func TestSecretsAreMended(t *testing.T) {
	first := secrets(render(t, nil))[fullname+"-ca"]
	half := object{"kind": "Secret", "data": values{"ca.crt": text(first, "data", "ca.crt")}}
	objects, err := tryRender(t, nil, cluster{"Secret/" + fullname + "-ca": half, "Secret/" + fullname + "-gossip": {"kind": "Secret"}})
	if err != nil {
		t.Fatal(err)
	}
	now := secrets(objects)
	if text(now[fullname+"-ca"], "data", "ca.crt") == text(first, "data", "ca.crt") {
		t.Error("a new key was put beside an old certificate")
	}
	decoded(t, now[fullname+"-gossip"], "gossip-key")
}

func TestExistingSecretsAreTaken(t *testing.T) {
	objects := render(t, merged(with("secrets.gossipKey.existingSecret", "g"), with("secrets.adminToken.existingSecret", "a"), with("tls.generated.existingCASecret", "c")))
	if made := secrets(objects); len(made) > 0 {
		t.Errorf("made: %v", made)
	}
	server := podSpec(find(t, objects, "StatefulSet", fullname+"-server"))
	var mounted []string
	for _, v := range list(server, "volumes") {
		if name := text(v, "secret", "secretName"); name != "" {
			mounted = append(mounted, name)
		}
	}
	slices.Sort(mounted)
	if want := []string{"a", "c", "g"}; !slices.Equal(mounted, want) {
		t.Errorf("the servers mount %v, not %v", mounted, want)
	}
}

// The programs take what was made: the key has 32 bytes, the token is one, and the authority signs what pods ask of it.
func TestSecretsAreGood(t *testing.T) {
	objects := render(t, nil)
	made := secrets(objects)
	for name, c := range map[string]struct{ key, is string }{
		"-gossip":      {"gossip-key", `^[0-9a-f]{64}$`},
		"-admin-token": {"token", `^orch_[a-z2-7]{10}_[a-z2-7]{52}$`},
	} {
		if v := decoded(t, made[fullname+name], c.key); !regexp.MustCompile(c.is).MatchString(v) {
			t.Errorf("%s: %q", name, v)
		}
	}
	for _, w := range workloads {
		o := workload(objects, fullname+w.suffix)
		dir := authority(t, podSpec(o), made)
		issuer := at(podSpec(o), "initContainers", 0)
		var args []string
		for _, a := range list(issuer, "command")[1:] {
			arg := strings.ReplaceAll(a.(string), "$(POD_NAME)", o.name()+"-0")
			arg = strings.ReplaceAll(arg, "/var/run/orchestrator/ca", dir)
			args = append(args, strings.ReplaceAll(arg, "/var/run/orchestrator/tls", filepath.Join(dir, "tls")))
		}
		for range 2 { // a pod may start again on the same volume
			if _, err := runProgram(t, nil, "orchestrator", args...); err != nil {
				t.Fatal(err)
			}
		}
		// The names are those that the settings say.
		for _, env := range podEnv(t, o, at(podSpec(o), "containers", 0)) {
			if name, path, _ := strings.Cut(env, "="); strings.HasPrefix(name, "ORCH_TLS_") {
				if _, err := os.Stat(strings.Replace(path, "/var/run/orchestrator/tls", filepath.Join(dir, "tls"), 1)); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
	}
}

// authority is the directory with the authority, as the pod's init container sees it.
func authority(t *testing.T, pod map[string]any, made map[string]object) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, v := range list(pod, "volumes") {
		if text(v, "name") != "ca" {
			continue
		}
		for _, item := range list(v, "secret", "items") {
			value := decoded(t, made[text(v, "secret", "secretName")], text(item, "key"))
			if err := os.WriteFile(filepath.Join(dir, text(item, "path")), []byte(value), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

// The authority's key is nowhere but in what signs with it, and in no container that runs sessions.
func TestTheAuthorityStaysAway(t *testing.T) {
	for name, v := range variants(t) {
		for _, o := range render(t, v) {
			pod := podSpec(o)
			keys := map[string]bool{}
			for _, volume := range list(pod, "volumes") {
				if strings.Contains(fmt.Sprint(at(volume, "secret", "items")), "ca.key") {
					keys[text(volume, "name")] = true
				}
			}
			for _, c := range list(pod, "containers") {
				for _, m := range list(c, "volumeMounts") {
					if keys[text(m, "name")] {
						t.Errorf("%s: %s: %s mounts the authority's key", name, o, text(c, "name"))
					}
				}
			}
		}
	}
}
