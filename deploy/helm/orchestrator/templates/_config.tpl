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
{{- $_ := set $c "providers" (include "orchestrator.providers" .root | fromYaml) -}}
{{- $_ := set $c "recorder" (include "orchestrator.recorder" .root | fromYaml) -}}
{{- mergeOverwrite $c (deepCopy (default dict $v.servers.settings)) | toYaml -}}
{{- end -}}

{{/* The section providers of orchestrator.yaml: keySecret and caSecret are files there, by the number of the pool and of its endpoint. */}}
{{- define "orchestrator.providers" -}}
{{- $p := default dict .Values.providers -}}
{{- $dir := "/var/run/orchestrator/providers" -}}
{{- $pools := list -}}
{{- range $i, $given := $p.pools -}}
{{- $pool := omit (deepCopy $given) "keySecret" "caSecret" "endpoints" -}}
{{- if $given.keySecret -}}{{- $_ := set $pool "key_file" (printf "%s/%d/key" $dir $i) -}}{{- end -}}
{{- if $given.caSecret -}}{{- $_ := set $pool "ca_file" (printf "%s/%d/ca.crt" $dir $i) -}}{{- end -}}
{{- $endpoints := list -}}
{{- range $n, $e := $given.endpoints -}}
{{- $endpoint := omit (deepCopy $e) "keySecret" -}}
{{- if $e.keySecret -}}{{- $_ := set $endpoint "key_file" (printf "%s/%d/key-%d" $dir $i $n) -}}{{- end -}}
{{- $endpoints = append $endpoints $endpoint -}}
{{- end -}}
{{- if $endpoints -}}{{- $_ := set $pool "endpoints" $endpoints -}}{{- end -}}
{{- $pools = append $pools $pool -}}
{{- end -}}
{{- dict "attempts_max" (int (default 4 $p.attemptsMax)) "pools" $pools "budgets" (default list $p.budgets) | toYaml -}}
{{- end -}}

{{/* The Secrets of providers as the sources of a volume; empty where there are none. */}}
{{- define "orchestrator.providerSources" -}}
{{- range $i, $pool := (default dict .Values.providers).pools -}}
{{- with $pool.keySecret }}
- secret: {name: {{ .name }}, items: [{key: {{ .key | quote }}, path: {{ $i }}/key}]}
{{- end }}
{{- with $pool.caSecret }}
- secret: {name: {{ . }}, items: [{key: ca.crt, path: {{ $i }}/ca.crt}]}
{{- end }}
{{- range $n, $e := $pool.endpoints }}
{{- with $e.keySecret }}
- secret: {name: {{ .name }}, items: [{key: {{ .key | quote }}, path: {{ $i }}/key-{{ $n }}}]}
{{- end }}
{{- end }}
{{- end -}}
{{- end -}}

{{/* The section recorder of orchestrator.yaml. Its files are in the data directory, as they are by default. */}}
{{- define "orchestrator.recorder" -}}
{{- $r := .Values.recorder -}}
{{- $c := dict
  "sink" $r.sink
  "max_payload_bytes" $r.maxPayloadBytes
  "redact" (default list $r.redact)
  "spool" (dict "max_bytes" $r.spool.maxBytes "alarm_percent" (int $r.spool.alarmPercent) "when_full" $r.spool.whenFull "sync_every" $r.spool.syncEvery)
  "retention" (dict "max_bytes" $r.maxBytes "max_age" $r.maxAge)
-}}
{{- if eq $r.sink "postgres" -}}
{{- $_ := set $c "postgres" (dict "url_file" "/var/run/orchestrator/recorder/url" "max_conns" (int $r.postgres.maxConns) "timeout" $r.postgres.timeout) -}}
{{- end -}}
{{- toYaml $c -}}
{{- end -}}

{{/* A size such as 8GiB or a quantity such as 10Gi, in whole MiB. */}}
{{- define "orchestrator.mebibytes" -}}
{{- if kindIs "string" . -}}
{{- $mebibytes := dict "" 0.00000095367431640625 "k" 0.00095367431640625 "K" 0.00095367431640625 "Ki" 0.0009765625 "M" 0.95367431640625 "Mi" 1.0
  "G" 953.67431640625 "Gi" 1024.0 "T" 953674.31640625 "Ti" 1048576.0 "P" 953674316.40625 "Pi" 1073741824.0 "E" 953674316406.25 "Ei" 1099511627776.0 -}}
{{- mulf (regexFind "^[0-9.]+" . | float64) (get $mebibytes (regexFind "[A-Za-z]*$" . | trimSuffix "B")) | int64 -}}
{{- else -}}
{{- divf . 1048576.0 | int64 -}}
{{- end -}}
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
{{- mergeOverwrite $c (deepCopy (default dict $v.agent.settings)) | toYaml -}}
{{- end -}}

{{/* Whether nodes fetch from each other: they must know each other, by certificates. */}}
{{- define "orchestrator.agentsServe" -}}
{{- $t := .Values.tls -}}
{{- if or (has $t.mode (list "generated" "certManager" "off")) $t.existingNodeSecret }}true{{ end -}}
{{- end -}}
