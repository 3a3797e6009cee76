// Package charttest tests the chart in deploy/helm/orchestrator without a cluster.
//
// It renders the chart by Helm's own engine, once with the defaults and once with each of its ci/*-values.yaml, and asks of
// what comes out:
//
//	lint          Helm has nothing to say, be it only a warning
//	schemas       Kubernetes (testdata/schemas, strict) and the makers of the custom resources know every field
//	programs      orchestrator and node-agent themselves accept their settings, with the environment of their pods
//	security      every pod is fit for restricted pod security
//	secrets       are made once, and what was made is what the programs take
//	bad values    are refused, with what to do
//	score         kube-score finds nothing that is not explained here
//
// It is a module of its own: what it needs is none of the product's business. make chart-test runs it.
package charttest
