// Values that cannot work are refused, with what to do.

package charttest

import (
	"strings"
	"testing"
)

func TestBadValues(t *testing.T) {
	for name, c := range map[string]struct {
		values values
		says   []string // all of them
	}{
		"two servers":                        {with("servers.replicas", 2), []string{"/servers/replicas", "one of 1, 3, 5"}},
		"four servers":                       {with("servers.replicas", 4), []string{"/servers/replicas", "one of 1, 3, 5"}},
		"a typo":                             {with("agent.replcas", 2), []string{"/agent", "'replcas' not allowed"}},
		"a typo in the settings of a server": {with("servers.settings.link.leas", "12s"), []string{"/servers/settings/link", "'leas' not allowed"}},
		"a setting that the chart makes":     {with("servers.settings.listen", values{}), []string{"'listen' not allowed"}},
		"a time without unit":                {with("servers.settings.link.lease", "12"), []string{"/servers/settings/link/lease"}},
		"a strategy":                         {with("servers.settings.placement.strategy", "best"), []string{"/servers/settings/placement/strategy", "spread"}},
		"a tag that is a number":             {with("image.tag", 2), []string{"/image/tag", "want string"}},
		"a digest":                           {with("image.digest", "latest"), []string{"/image/digest"}},
		"an env that is none":                {with("agent.extraEnv", []any{values{"value": "x"}}), []string{"/agent/extraEnv/0", "name"}},

		"three servers without volumes": {with("servers.persistence.enabled", false), []string{"servers.persistence.enabled is false with 3 servers", "servers.replicas=1"}},
		"S3 without bucket":             {merged(with("chunks.store", "s3"), with("chunks.s3.endpoint", "s3.example.org")), []string{"chunks.s3.bucket is empty", "chunks.store=dir"}},
		"S3 without endpoint":           {merged(with("chunks.store", "s3"), with("chunks.s3.bucket", "b")), []string{"chunks.s3.endpoint is empty", "host:port"}},
		"an endpoint with a scheme":     {with("chunks.s3.endpoint", "https://s3.example.org"), []string{"/chunks/s3/endpoint"}},
		"a bucket that is not used":     {with("chunks.s3.bucket", "b"), []string{"chunks.store is dir", "chunks.store=s3"}},
		"S3 with a bound":               {s3(with("chunks.maxBytes", "8GiB")), []string{"chunks.maxBytes", "leave maxBytes empty"}},
		"half of the keys":              {s3(with("chunks.s3.accessKey", "a")), []string{"belong together"}},
		"keys twice":                    {s3(with("chunks.s3", values{"accessKey": "a", "secretKey": "b", "existingSecret": "c"})), []string{"give one of them"}},
		"an authority without TLS":      {s3(with("chunks.s3", values{"insecure": true, "caSecret": "c"})), []string{"leave out one of them"}},

		"Postgres without its Secret":     {with("recorder.sink", "postgres"), []string{"recorder.postgres.existingSecret is empty", "key url", "recorder.sink=sqlite"}},
		"a database that is not used":     {with("recorder.postgres.existingSecret", "s"), []string{"recorder.sink is sqlite", "recorder.sink=postgres"}},
		"a database for nothing":          {with("recorder", values{"sink": "none", "postgres": values{"existingSecret": "s"}}), []string{"recorder.sink is none"}},
		"a sink that there is not":        {with("recorder.sink", "mysql"), []string{"/recorder/sink", "postgres"}},
		"records that fill the volume":    {with("recorder.maxBytes", "9GiB"), []string{"servers.persistence.size is 10Gi", "9472MiB", "recorder.maxBytes"}},
		"a spool that fills the volume":   {merged(with("recorder.sink", "none"), with("recorder", values{"sink": "postgres", "spool": values{"maxBytes": "9728MiB"}, "postgres": values{"existingSecret": "s"}})), []string{"servers.persistence.size is 10Gi", "9728MiB waiting"}},
		"records and chunks that fill it": {with("chunks.maxBytes", "8GiB"), []string{"chunks.maxBytes (8192MiB)", "less than a tenth"}},
		"a small volume":                  {with("servers.persistence.size", "1G"), []string{"servers.persistence.size is 1G", "larger volumes"}},
		"records without a bound":         {with("recorder.maxBytes", 0), []string{"recorder.maxBytes is 0", "such as 1GiB"}},
		"a spool of nothing":              {with("recorder.spool.maxBytes", "1MiB"), []string{"below 32MiB"}},
		"a policy that there is not":      {with("recorder.spool.whenFull", "drop"), []string{"/recorder/spool/whenFull", "drop-and-count"}},
		"no recorder at all":              {with("recorder.sink", nil), []string{"/recorder", "sink"}},

		"a provider without its key":       {pools(values{"name": "moonshot"}), []string{"providers.pools[0] (moonshot) answers nobody without a key", "keySecret: {name: …, key: …}"}},
		"an endpoint without its key":      {pools(values{"name": "zhipuai", "endpoints": []any{values{"keySecret": key}, values{"weight": 2}}}), []string{"(zhipuai) answers nobody", "endpoints[1].keySecret"}},
		"a key in a file":                  {pools(values{"name": "moonshot", "key_file": "/etc/key"}), []string{"pods have none of yours", "keySecret: {name: …, key: …}"}},
		"an authority in a file":           {pools(own(values{"ca_file": "/etc/ca"})), []string{"pods have none of yours", "caSecret"}},
		"a key of an endpoint in a file":   {pools(values{"name": "moonshot", "endpoints": []any{values{"key_file": "/etc/key"}}}), []string{"in endpoints[0]", "keySecret"}},
		"keys in two places":               {pools(values{"name": "moonshot", "keySecret": key, "endpoints": []any{values{"keySecret": key}}}), []string{"a keySecret and endpoints"}},
		"a Secret without the key's name":  {pools(values{"name": "moonshot", "keySecret": values{"name": "s"}}), []string{"/providers/pools/0/keySecret", "key"}},
		"a key itself":                     {pools(values{"name": "moonshot", "keySecret": "sk-1234"}), []string{"/providers/pools/0/keySecret", "want object"}},
		"a provider twice":                 {pools(own(nil), own(nil)), []string{"providers.pools[1] (inside) is there twice", "several endpoints"}},
		"a provider that nobody knows":     {pools(values{"name": "inside", "keySecret": key}), []string{"/providers/pools/0", "dialect"}},
		"a provider that is nowhere":       {pools(values{"name": "inside", "dialect": "openai", "models": []any{values{"name": "m"}}}), []string{"/providers/pools/0", "url"}},
		"a typo in a provider":             {pools(own(values{"max_inflight": 3})), []string{"'max_inflight' not allowed"}},
		"a key in a URL":                   {pools(own(values{"url": "https://u:hush@x/v1"})), []string{"/providers/pools/0/url"}},
		"a budget of nobody":               {with("providers.budgets", []any{values{"tokens_per_day": 1}}), []string{"/providers/budgets/0", "tenant"}},
		"a proxy that is no address":       {with("servers.settings.gateway.trusted_proxies", []any{"ingress-nginx"}), []string{"/servers/settings/gateway/trusted_proxies/0"}},
		"providers where they were before": {with("servers.settings.providers.pools", []any{}), []string{"'providers' not allowed"}},

		"cert-manager without issuer":       {with("tls.mode", "certManager"), []string{"tls.certManager.issuerRef.name is empty", "name an Issuer"}},
		"an issuer without cert-manager":    {with("tls.certManager.issuerRef.name", "x"), []string{"tls.mode is generated", "tls.mode=certManager"}},
		"TLS without Secret":                {with("tls.mode", "existingSecret"), []string{"tls.existingSecret is empty", "tls.crt, tls.key and ca.crt"}},
		"a Secret without its mode":         {with("tls.existingSecret", "x"), []string{"tls.mode=existingSecret"}},
		"an authority without its mode":     {merged(with("tls.mode", "off"), with("tls.generated.existingCASecret", "x")), []string{"tls.mode=generated"}},
		"nodes that nobody knows":           {with("tls", values{"mode": "existingSecret", "existingSecret": "x"}), []string{"neither a certificate nor a token", "agent.tokenSecret"}},
		"tokens in plain text":              {merged(with("tls.mode", "off"), with("agent.tokenSecret", "x")), []string{"plain text", "tls.mode=generated"}},
		"a backup in plain text":            {merged(with("tls.mode", "off"), with("backup.enabled", true)), []string{"backup.enabled needs TLS", "disable the backup"}},
		"a backup that is never made":       {merged(with("backup.enabled", true), with("backup.schedules.hourly", nil), with("backup.schedules.daily", nil), with("backup.schedules.weekly", nil)), []string{"/backup/schedules"}},
		"a directory of a StatefulSet":      {with("agent.hostPath", "/data"), []string{"agent.kind=DaemonSet"}},
		"a DaemonSet that scales":           {merged(with("agent.kind", "DaemonSet"), with("agent.autoscaling.enabled", true)), []string{"as many pods as there are machines"}},
		"no nodes that scale":               {merged(with("agent.enabled", false), with("agent.autoscaling.enabled", true)), []string{"agent.enabled is false"}},
		"bounds that cross":                 {with("agent.autoscaling", values{"enabled": true, "minReplicas": 5, "maxReplicas": 2}), []string{"above maxReplicas"}},
		"a drain of no time":                {with("agent.drainOnStop", "0m"), []string{"leave it empty"}},
		"a drain that is no time":           {with("agent.drainOnStop", "soon"), []string{"/agent/drainOnStop"}},
		"an Ingress of any host":            {with("ingress.enabled", true), []string{"ingress.hosts is empty"}},
		"a route from nowhere":              {with("httpRoute.enabled", true), []string{"httpRoute.parentRefs is empty"}},
		"a route that cannot know servers":  {merged(certManager(), with("httpRoute", values{"enabled": true, "parentRefs": []any{values{"name": "g"}}})), []string{"httpRoute.backendCAConfigMap"}},
		"no time for a server to end":       {with("servers", values{"preStopSleepSeconds": 20, "terminationGracePeriodSeconds": 30}), []string{"terminationGracePeriodSeconds is too short"}},
		"names too long for gossip":         {with("clusterDomain", strings.Repeat("long.", 14)+"example"), []string{"above 125 characters", "fullnameOverride"}},
		"a name that is no name":            {with("fullnameOverride", "Agents"), []string{"/fullnameOverride"}},
		"an image without a name":           {with("agent.image.repository", ""), []string{"/agent/image/repository"}},
		"a test that runs nothing":          {with("test.command", []any{}), []string{"/test/command"}},
		"a certificate that is not checked": {merged(with("tls.mode", "off"), with("httpRoute.backendCAConfigMap", "x")), []string{"no certificate to check"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := tryRender(t, c.values, nil)
			if err == nil {
				t.Fatal("was accepted")
			}
			for _, s := range c.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("does not say %q: %v", s, err)
				}
			}
		})
	}
}

// key is where a key is.
var key = values{"name": "s", "key": "k"}

// pools are providers; own is one that is not shipped.
func pools(all ...values) values {
	list := []any{}
	for _, p := range all {
		list = append(list, p)
	}
	return with("providers.pools", list)
}

func own(more values) values {
	return merged(values{"name": "inside", "dialect": "openai", "url": "https://models/v1", "models": []any{values{"name": "m"}}}, more)
}

func s3(more values) values {
	return merged(with("chunks", values{"store": "s3", "s3": values{"endpoint": "s3.example.org", "bucket": "b"}}), more)
}

func certManager() values {
	return with("tls", values{"mode": "certManager", "certManager": values{"issuerRef": values{"name": "x"}}})
}

// One server must not be what is left of three: alone it has no majority.
func TestServersMayNotBecomeOne(t *testing.T) {
	there := cluster{"StatefulSet/" + fullname + "-server": {"apiVersion": "apps/v1", "kind": "StatefulSet", "spec": values{"replicas": int64(3)}}}
	one := merged(with("servers.replicas", 1))
	if _, err := tryRender(t, one, there); err == nil || !strings.Contains(err.Error(), "there are 3 servers") || !strings.Contains(err.Error(), "snapshot save") {
		t.Errorf("3 to 1: %v", err)
	}
	for _, n := range []int{3, 5} {
		if _, err := tryRender(t, with("servers.replicas", n), there); err != nil {
			t.Errorf("3 to %d: %v", n, err)
		}
	}
	if _, err := tryRender(t, one, cluster{}); err != nil {
		t.Errorf("a new one: %v", err)
	}
}
