// The logic of the templates: what depends on which value.

package charttest

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// podTemplate is what a workload's pods are made from, as text.
func podTemplate(t *testing.T, objects []object, name string) string {
	t.Helper()
	b, err := yaml.Marshal(at(workload(objects, name), "spec", "template"))
	if err != nil || len(b) < 100 {
		t.Fatalf("the pods of %s: %v", name, err)
	}
	return string(b)
}

// Pods are replaced when their settings change, and not when only their number does.
func TestWhatReplacesPods(t *testing.T) {
	server, agent := fullname+"-server", fullname+"-agent"
	was := render(t, nil)
	for name, c := range map[string]struct {
		values        values
		server, agent bool
	}{
		"five servers":           {with("servers.replicas", 5), false, false},
		"one server":             {with("servers.replicas", 1), false, false},
		"more nodes":             {with("agent.replicas", 7), false, false},
		"a setting of servers":   {with("servers.settings.link.lease", "20s"), true, false},
		"a setting of nodes":     {with("agent.settings.labels.a", "b"), false, true},
		"another name":           {with("clusterName", "prod"), true, false},
		"another image":          {with("image.tag", "2"), true, true},
		"another authority":      {with("tls", values{"mode": "existingSecret", "existingSecret": "s", "existingNodeSecret": "n"}), true, true},
		"a bucket":               {s3(values{}), true, false},
		"a limit of clients":     {with("servers.settings.gateway.max_in_flight", 7), true, false},
		"a provider":             {pools(values{"name": "moonshot", "keySecret": key}), true, false},
		"time to move":           {with("agent.drainOnStop", "9m"), false, true},
		"a budget of disruption": {with("agent.podDisruptionBudget.maxUnavailable", 2), false, false},
	} {
		is := render(t, c.values)
		for w, want := range map[string]bool{server: c.server, agent: c.agent} {
			if changed := podTemplate(t, was, w) != podTemplate(t, is, w); changed != want {
				t.Errorf("%s: pods of %s are replaced: %v, and should be: %v", name, w, changed, want)
			}
		}
	}
	// The file says the number nevertheless: it is read when the server starts for another reason.
	if c := text(find(t, render(t, with("servers.replicas", 5)), "ConfigMap", server), "data", "orchestrator.yaml"); !strings.Contains(c, "bootstrap_expect: 5") {
		t.Error(c)
	}
	keys := func(secret string) string {
		return podTemplate(t, render(t, s3(with("chunks.s3", values{"accessKey": "a", "secretKey": secret}))), server)
	}
	if keys("b") == keys("c") {
		t.Error("servers go on with the old key of the bucket")
	}
	c := loadChart(t)
	c.Metadata.Version = "9.9.9"
	files, err := renderChart(c, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	later, err := objectsOf(files)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []string{server, agent} {
		if podTemplate(t, was, w) != podTemplate(t, later, w) {
			t.Errorf("another version of the chart alone replaces the pods of %s", w)
		}
	}
}

// What is taken away by null is as if it were not given: what a release that was made by an older chart has not, either.
func TestNothingIsNothing(t *testing.T) {
	for _, path := range []string{"servers.settings", "agent.settings", "agent.podSecurityContext", "agent.containerSecurityContext", "servers.topologySpread", "agent.extraEnv",
		"commonLabels", "servers.podLabels", "agent.sessionSecretsFrom", "agent.drainOnStop", "networkPolicy.clientsFrom", "chunks.maxBytes", "providers", "providers.pools", "providers.budgets", "servers.settings.gateway", "backup.uploader", "servers.nodeSelector"} {
		if _, err := tryRender(t, with(path, nil), nil); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// Who runs sessions in a sandbox says so; the rest stays as it is.
func TestSandbox(t *testing.T) {
	pod := podSpec(workload(render(t, with("agent", values{"runtimeClassName": "gvisor", "podSecurityContext": values{"fsGroup": 7.0},
		"containerSecurityContext": values{"seccompProfile": values{"type": "Unconfined"}}})), fullname+"-agent"))
	for _, c := range []struct {
		want any
		path []any
	}{
		{"gvisor", []any{"runtimeClassName"}}, {7.0, []any{"securityContext", "fsGroup"}}, {true, []any{"securityContext", "runAsNonRoot"}},
		{"Unconfined", []any{"containers", 0, "securityContext", "seccompProfile", "type"}}, {true, []any{"containers", 0, "securityContext", "readOnlyRootFilesystem"}},
	} {
		if got := at(pod, c.path...); got != c.want {
			t.Errorf("%v is %v, not %v", c.path, got, c.want)
		}
	}
}

// A node has the time to move its sessions, and then to end.
func TestGracePeriod(t *testing.T) {
	for drain, want := range map[string]float64{"": 30, "20m": 1230, "1h30m5s": 5435, "45s": 75} {
		objects := render(t, with("agent.drainOnStop", drain))
		if got := at(podSpec(workload(objects, fullname+"-agent")), "terminationGracePeriodSeconds"); got != want {
			t.Errorf("%q: %v s, not %v", drain, got, want)
		}
		config := text(find(t, objects, "ConfigMap", fullname+"-agent"), "data", "node-agent.yaml")
		if (drain != "") != strings.Contains(config, "drain_on_stop: "+drain+"\n") {
			t.Errorf("%q:\n%s", drain, config)
		}
	}
}

// Servers start together and find each other before they are ready.
func TestServersFormACluster(t *testing.T) {
	objects := render(t, nil)
	set := find(t, objects, "StatefulSet", fullname+"-server")
	if p := text(set, "spec", "podManagementPolicy"); p != "Parallel" {
		t.Errorf("servers start %s, and each waits for the others", p)
	}
	headless := find(t, objects, "Service", text(set, "spec", "serviceName"))
	if text(headless, "spec", "clusterIP") != "None" || at(headless, "spec", "publishNotReadyAddresses") != true {
		t.Error("servers have no names before they are ready")
	}
	for _, s := range []object{headless, find(t, objects, "Service", fullname)} {
		checkSelects(t, s, set)
	}
	agents := workload(objects, fullname+"-agent")
	checkSelects(t, find(t, objects, "Service", text(agents, "spec", "serviceName")), agents)
}

// checkSelects wants a Service to choose a workload's pods, by ports that they have.
func checkSelects(t *testing.T, service, set object) {
	t.Helper()
	labels := at(set, "spec", "template", "metadata", "labels").(map[string]any)
	for k, v := range at(service, "spec", "selector").(map[string]any) {
		if labels[k] != v {
			t.Errorf("%s wants %s=%v, and the pods of %s have %v", service, k, v, set, labels[k])
		}
	}
	var ports []string
	for _, p := range list(podSpec(set), "containers", 0, "ports") {
		ports = append(ports, text(p, "name"))
	}
	for _, p := range list(service, "spec", "ports") {
		if !slices.Contains(ports, text(p, "targetPort")) {
			t.Errorf("%s goes to port %s, and %s has %v", service, text(p, "targetPort"), set, ports)
		}
	}
}

// Probes ask what they mean: started and alive is another question than ready.
func TestProbes(t *testing.T) {
	for scheme, v := range map[string]values{"HTTPS": nil, "HTTP": with("tls.mode", "off")} {
		for _, suffix := range []string{"-server", "-agent"} {
			c := at(podSpec(workload(render(t, v), fullname+suffix)), "containers", 0)
			for probe, path := range map[string]string{"startupProbe": "/health", "livenessProbe": "/health", "readinessProbe": "/ready"} {
				if got := text(c, probe, "httpGet", "path"); got != path {
					t.Errorf("%s: %s asks %s", suffix, probe, got)
				}
				if got := text(c, probe, "httpGet", "scheme"); suffix == "-server" && got != scheme {
					t.Errorf("%s: %s speaks %s, and the server %s", suffix, probe, got, scheme)
				}
			}
		}
	}
}

func TestWhatThereIs(t *testing.T) {
	for name, c := range map[string]struct {
		values values
		has    []string // as Kind/suffix
		lacks  []string
	}{
		"default": {nil, []string{"PodDisruptionBudget/-server", "PodDisruptionBudget/-agent", "NetworkPolicy/-server", "NetworkPolicy/-agent", "Pod/-test", "ServiceAccount/"},
			[]string{"HorizontalPodAutoscaler/-agent", "Ingress/", "HTTPRoute/", "ServiceMonitor/-server", "ConfigMap/-dashboard", "PriorityClass/-servers", "CronJob/-backup-hourly"}},
		"one server":      {with("servers.replicas", 1), nil, []string{"PodDisruptionBudget/-server"}}, // it would block every drain
		"no nodes":        {with("agent.enabled", false), nil, []string{"StatefulSet/-agent", "ConfigMap/-agent", "Service/-agents", "NetworkPolicy/-agent", "PodDisruptionBudget/-agent", "Pod/-test"}},
		"a DaemonSet":     {with("agent.kind", "DaemonSet"), []string{"DaemonSet/-agent"}, []string{"StatefulSet/-agent", "PodDisruptionBudget/-agent"}},
		"no TLS":          {with("tls.mode", "off"), []string{"Secret/-gossip"}, []string{"Secret/-ca", "Secret/-admin-token"}},
		"no policies":     {with("networkPolicy.enabled", false), nil, []string{"NetworkPolicy/-server", "NetworkPolicy/-agent", "NetworkPolicy/-jobs"}},
		"cert-manager":    {certManager(), []string{"Certificate/-server", "Certificate/-node"}, []string{"Secret/-ca"}},
		"backup":          {with("backup.enabled", true), []string{"CronJob/-backup-hourly", "CronJob/-backup-daily", "CronJob/-backup-weekly", "PersistentVolumeClaim/-backup"}, nil},
		"a claim":         {with("backup", values{"enabled": true, "persistence": values{"existingClaim": "c"}}), nil, []string{"PersistentVolumeClaim/-backup"}},
		"an uploader":     {with("backup", values{"enabled": true, "uploader": values{"image": "i"}}), nil, []string{"PersistentVolumeClaim/-backup"}},
		"keys of S3":      {s3(with("chunks.s3", values{"accessKey": "a", "secretKey": "b"})), []string{"Secret/-s3"}, nil},
		"role of S3":      {s3(values{}), nil, []string{"Secret/-s3"}},
		"a Gateway":       {with("httpRoute", values{"enabled": true, "parentRefs": []any{values{"name": "g"}}}), []string{"HTTPRoute/", "BackendTLSPolicy/", "ConfigMap/-ca"}, nil},
		"a plain Gateway": {merged(with("tls.mode", "off"), with("httpRoute", values{"enabled": true, "parentRefs": []any{values{"name": "g"}}})), []string{"HTTPRoute/"}, []string{"BackendTLSPolicy/"}},
		"an account":      {with("serviceAccount", values{"create": false, "name": "mine"}), nil, []string{"ServiceAccount/", "ServiceAccount/mine"}},
	} {
		t.Run(name, func(t *testing.T) {
			objects := render(t, c.values)
			for _, want := range c.has {
				kind, suffix, _ := strings.Cut(want, "/")
				find(t, objects, kind, fullname+suffix)
			}
			for _, not := range c.lacks {
				kind, suffix, _ := strings.Cut(not, "/")
				if has(objects, kind, fullname+suffix) {
					t.Errorf("there is a %s", not)
				}
			}
		})
	}
}

// What scales by itself must not be set back by each upgrade.
func TestAutoscalerOwnsTheNumber(t *testing.T) {
	objects := render(t, with("agent.autoscaling.enabled", true))
	if n := at(find(t, objects, "StatefulSet", fullname+"-agent"), "spec", "replicas"); n != nil {
		t.Errorf("the chart says %v", n)
	}
	find(t, objects, "HorizontalPodAutoscaler", fullname+"-agent")
}

// Only servers reach gossip and raft; the chart's own jobs stay clients where clients are named.
func TestWhoReachesServers(t *testing.T) {
	allowed := func(v values) map[string][]string { // by port: components, or * for everybody
		got := map[string][]string{}
		for _, rule := range list(find(t, render(t, v), "NetworkPolicy", fullname+"-server"), "spec", "ingress") {
			who := []string{"*"}
			if from := list(rule, "from"); from != nil {
				who = nil
				for _, f := range from {
					name := text(f, "podSelector", "matchLabels", "app.kubernetes.io/component")
					if name == "" {
						name = "others"
					}
					who = append(who, name)
				}
			}
			for _, p := range list(rule, "ports") {
				port := fmt.Sprint(at(p, "port"), "/", at(p, "protocol"))
				got[port] = append(got[port], who...)
			}
		}
		return got
	}
	others := []any{values{"namespaceSelector": values{}}}
	for name, c := range map[string]struct {
		values values
		want   map[string]string
	}{
		"default": {nil, map[string]string{"8075/TCP": "server", "8075/UDP": "server", "8076/TCP": "server", "8077/TCP": "server *", "8078/TCP": "server agent", "8079/TCP": "*"}},
		"named":   {with("networkPolicy", values{"clientsFrom": others, "nodesFrom": others}), map[string]string{"8077/TCP": "server others backup test", "8078/TCP": "server agent others", "8079/TCP": "others backup test", "8076/TCP": "server"}},
	} {
		got := allowed(c.values)
		for port, want := range c.want {
			if is := strings.Join(got[port], " "); is != want {
				t.Errorf("%s: %s is for %q, not %q", name, port, is, want)
			}
		}
	}
}

// Sessions may not have the machine's credentials.
func TestMetadataServiceIsBlocked(t *testing.T) {
	egress := fmt.Sprint(list(find(t, render(t, nil), "NetworkPolicy", fullname+"-agent"), "spec", "egress"))
	if !strings.Contains(egress, "except:[169.254.169.254/32]") || !strings.Contains(egress, "except:[fd00:ec2::254/128]") {
		t.Error(egress)
	}
}

// helm test passes where there is no test; so there must be one, and it must do what it says.
func TestHelmTest(t *testing.T) {
	steps := func(v values) (names []string) {
		pod := find(t, render(t, v), "Pod", fullname+"-test")
		if text(pod, "metadata", "annotations", "helm.sh/hook") != "test" {
			t.Error("the pod is no test")
		}
		for _, c := range containers(podSpec(pod)) {
			names = append(names, text(c, "name"))
		}
		return names
	}
	if got := strings.Join(steps(nil), " "); got != "spawn message migrate message-again terminate" {
		t.Error(got)
	}
	if got := strings.Join(steps(with("agent.replicas", 1)), " "); got != "spawn message terminate" { // there is nowhere to move
		t.Error(got)
	}
	pod := podSpec(find(t, render(t, with("tls.mode", "off")), "Pod", fullname+"-test"))
	if arg := list(pod, "initContainers", 0, "args")[0]; arg != "--insecure" {
		t.Errorf("without TLS orchctl refuses to go there; the first argument is %v", arg)
	}
}

func TestImages(t *testing.T) {
	digest := "sha256:" + strings.Repeat("a", 64)
	for name, c := range map[string]struct {
		values        values
		server, agent string
	}{
		"default":          {nil, "ghcr.io/neolith/orchestrator:0.1.0", "ghcr.io/neolith/node-agent:0.1.0"},
		"one tag":          {with("image.tag", "2"), "ghcr.io/neolith/orchestrator:2", "ghcr.io/neolith/node-agent:2"},
		"two tags":         {merged(with("image.tag", "2"), with("agent.image.tag", "3")), "ghcr.io/neolith/orchestrator:2", "ghcr.io/neolith/node-agent:3"},
		"a digest":         {with("image.digest", digest), "ghcr.io/neolith/orchestrator@" + digest, "ghcr.io/neolith/node-agent:0.1.0"},
		"another registry": {merged(with("image.repository", "r/o"), with("agent.image", values{"repository": "r/a", "digest": digest})), "r/o:0.1.0", "r/a@" + digest},
	} {
		objects := render(t, c.values)
		for suffix, want := range map[string]string{"-server": c.server, "-agent": c.agent} {
			if got := text(podSpec(workload(objects, fullname+suffix)), "containers", 0, "image"); got != want {
				t.Errorf("%s: %s, not %s", name, got, want)
			}
		}
	}
}

// orchctl --kube-release goes by what the client Service says.
func TestOrchctlFindsItsWay(t *testing.T) {
	for name, v := range map[string]values{"made": nil, "given": merged(with("secrets.adminToken.existingSecret", "a"), with("tls.generated.existingCASecret", "c")), "plain": with("tls.mode", "off")} {
		service := find(t, render(t, v), "Service", fullname)
		want := map[string][2]string{"made": {fullname + "-admin-token/token", fullname + "-ca/ca.crt"}, "given": {"a/token", "c/ca.crt"}}[name]
		for i, key := range []string{"neolith.github.io/admin-token", "neolith.github.io/ca"} {
			if got := text(service, "metadata", "annotations", key); got != want[i] {
				t.Errorf("%s: %s is %q, not %q", name, key, got, want[i])
			}
		}
	}
}

// What install prints says how to go on, and warns of what is for trying only.
func TestNotes(t *testing.T) {
	for name, c := range map[string]struct {
		values     values
		has, lacks []string
	}{
		"default":         {nil, []string{"helm test agents -n demo", "ORCHCTL_KUBE_NAMESPACE=demo ORCHCTL_KUBE_RELEASE=agents", "statefulset/" + fullname + "-agent", "-- /node-agent echo"}, []string{"WARNING", "NOTE"}},
		"for trying":      {merged(with("tls.mode", "off"), with("servers", values{"replicas": 1, "persistence": values{"enabled": false}})), []string{"tls.mode is off", "servers.persistence is off", "1 server and"}, nil},
		"nothing moves":   {with("agent.drainOnStop", ""), []string{"NOTE: agent.drainOnStop is empty"}, nil},
		"a proxy":         {with("ingress", values{"enabled": true, "hosts": []any{"a.example.org"}}), []string{"NOTE: servers.settings.gateway.trusted_proxies is empty", "through the Ingress"}, []string{"WARNING"}},
		"a trusted proxy": {merged(with("ingress", values{"enabled": true, "hosts": []any{"a.example.org"}}), with("servers.settings.gateway.trusted_proxies", []any{"10.0.0.0/8"})), nil, []string{"NOTE"}},
		"a DaemonSet":     {with("agent.kind", "DaemonSet"), []string{"a node agent on each machine", "daemonset/" + fullname + "-agent"}, nil},
		"nodes elsewhere": {with("agent.enabled", false), []string{"orchctl tokens create NODE --role node"}, []string{"helm test", "sessions spawn"}},
	} {
		notes := renderNotes(t, c.values)
		for _, s := range c.has {
			if !strings.Contains(notes, s) {
				t.Errorf("%s: nothing of %q in\n%s", name, s, notes)
			}
		}
		for _, s := range c.lacks {
			if strings.Contains(notes, s) {
				t.Errorf("%s: %q in\n%s", name, s, notes)
			}
		}
	}
}
