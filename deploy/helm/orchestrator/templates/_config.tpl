{{/* The settings of both programs, as YAML. */}}

{{/* orchestrator.yaml. What only matters while a cluster is formed is left out unless .forming: what is left is what a change of which
must restart servers, and a change of their number is none. */}}
{{- define "orchestrator.serverConfig" -}}
{{- $v := .root.Values -}}
{{- $any := include "orchestrator.any" .root -}}
{{- $tls := include "orchestrator.tls" .root -}}
{{- $c := dict
  "cluster" (include "orchestrator.clusterName" .root)
  "data_dir" "/var/lib/orchestrator/data"
  "listen" (dict "gossip" (printf "%s:8075" $any) "raft" (printf "%s:8076" $any) "grpc" (printf "%s:8077" $any) "link" (printf "%s:8078" $any) "client" (printf "%s:8079" $any))
  "gossip_key_file" "/var/run/orchestrator/gossip/gossip-key"
  "log" (dict "format" "json")
-}}
{{- if .forming -}}
{{- $_ := set $c "bootstrap_expect" (int $v.servers.replicas) -}}
{{- if gt (int $v.servers.replicas) 1 -}}
{{- $_ := set $c "join" (list (printf "%s:8075" (include "orchestrator.serverDomain" .root))) -}}
{{- end -}}
{{- end -}}
{{- if not $tls -}}
{{- $_ := set $c "insecure" true -}}
{{- $_ := set $c "auth" (dict "tokens" false) -}}
{{- else -}}
{{- $_ := set $c "auth" (dict "tokens" true "bootstrap_token_file" "/var/run/orchestrator/admin/token") -}}
{{- if eq $v.tls.mode "generated" -}}
{{- $_ := set $c "tls" (dict "ca_file" "/var/run/orchestrator/tls/ca.pem") -}}
{{- else -}}
{{- $_ := set $c "tls" (dict "ca_file" "/var/run/orchestrator/tls/ca.crt" "cert_file" "/var/run/orchestrator/tls/tls.crt" "key_file" "/var/run/orchestrator/tls/tls.key") -}}
{{- end -}}
{{- end -}}
{{- $chunks := dict "store" $v.chunks.store -}}
{{- with $v.chunks.maxBytes }}{{ $_ := set $chunks "max_bytes" . }}{{ end -}}
{{- if eq $v.chunks.store "s3" -}}
{{- $s3 := dict "endpoint" $v.chunks.s3.endpoint "bucket" $v.chunks.s3.bucket -}}
{{- with $v.chunks.s3.prefix }}{{ $_ := set $s3 "prefix" . }}{{ end -}}
{{- with $v.chunks.s3.region }}{{ $_ := set $s3 "region" . }}{{ end -}}
{{- if $v.chunks.s3.insecure }}{{ $_ := set $s3 "insecure" true }}{{ end -}}
{{- if include "orchestrator.s3Secret" .root -}}
{{- $_ := set $s3 "access_key_file" "/var/run/orchestrator/s3/access-key" -}}
{{- $_ := set $s3 "secret_key_file" "/var/run/orchestrator/s3/secret-key" -}}
{{- end -}}
{{- if $v.chunks.s3.caSecret }}{{ $_ := set $s3 "ca_file" "/var/run/orchestrator/s3-ca/ca.crt" }}{{ end -}}
{{- $_ := set $chunks "s3" $s3 -}}
{{- end -}}
{{- $_ := set $c "chunks" $chunks -}}
{{- $more := deepCopy (default dict $v.servers.settings) -}}
{{- include "orchestrator.whole" $more -}}
{{- mergeOverwrite $c $more | toYaml -}}
{{- end -}}

{{/* node-agent.yaml. */}}
{{- define "orchestrator.agentConfig" -}}
{{- $v := .Values -}}
{{- $any := include "orchestrator.any" . -}}
{{- $tls := include "orchestrator.tls" . -}}
{{- $c := dict
  "data_dir" "/var/lib/node-agent/data"
  "servers" (list (printf "%s:8078" (include "orchestrator.host" .)))
  "metrics" (dict "listen" (printf "%s:9078" $any) "public" true)
  "log" (dict "format" "json")
-}}
{{- if not $tls -}}
{{- $_ := set $c "insecure" true -}}
{{- else -}}
{{- if eq $v.tls.mode "generated" -}}
{{- $_ := set $c "tls" (dict "ca_file" "/var/run/orchestrator/tls/ca.pem") -}}
{{- else if and (eq $v.tls.mode "existingSecret") (not $v.tls.existingNodeSecret) -}}
{{- $_ := set $c "tls" (dict "ca_file" "/var/run/orchestrator/tls/ca.crt") -}}
{{- else -}}
{{- $_ := set $c "tls" (dict "ca_file" "/var/run/orchestrator/tls/ca.crt" "cert_file" "/var/run/orchestrator/tls/tls.crt" "key_file" "/var/run/orchestrator/tls/tls.key") -}}
{{- end -}}
{{- end -}}
{{- with $v.agent.tokenSecret }}{{ $_ := set $c "token_file" "/var/run/orchestrator/token/token" }}{{ end -}}
{{- with $v.agent.sessionSecretsFrom }}{{ $_ := set $c "secrets_dir" "/var/run/orchestrator/secrets" }}{{ end -}}
{{- with $v.agent.drainOnStop }}{{ $_ := set $c "sessions" (dict "drain_on_stop" .) }}{{ end -}}
{{- $more := deepCopy (default dict $v.agent.settings) -}}
{{- include "orchestrator.whole" $more -}}
{{- mergeOverwrite $c $more | toYaml -}}
{{- end -}}

{{/* Whether nodes fetch from each other: they must know each other, by certificates. */}}
{{- define "orchestrator.agentsServe" -}}
{{- $t := .Values.tls -}}
{{- if or (has $t.mode (list "generated" "certManager" "off")) $t.existingNodeSecret }}true{{ end -}}
{{- end -}}

{{/* Makes the numbers in sections of settings whole: Helm's own are floating, and a million would be written 1e+06. */}}
{{- define "orchestrator.whole" -}}
{{- range $settings := . -}}
{{- range $key, $value := $settings -}}
{{- if kindIs "float64" $value -}}{{- $_ := set $settings $key (int64 $value) -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
