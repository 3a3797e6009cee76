{{/* Names, labels, images, and what servers, nodes and jobs have in common. */}}

{{- define "orchestrator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "orchestrator.clusterName" -}}
{{- default (include "orchestrator.fullname" .) .Values.clusterName -}}
{{- end -}}

{{- define "orchestrator.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "orchestrator.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "orchestrator.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: orchestrator
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels of pods: nothing that a new version of the chart changes, for every change of them replaces the pods. */}}
{{- define "orchestrator.podLabels" -}}
{{ include "orchestrator.selector" . }}
app.kubernetes.io/part-of: orchestrator
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- with .own }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* An image: the servers', or the one given as .own. */}}
{{- define "orchestrator.image" -}}
{{- $g := .root.Values.image -}}
{{- $i := default $g .own -}}
{{- if $i.digest -}}
{{- printf "%s@%s" $i.repository $i.digest -}}
{{- else -}}
{{- printf "%s:%s" $i.repository ($i.tag | default $g.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "orchestrator.serviceAccount" -}}
{{- default (ternary (include "orchestrator.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{/* The domain under which the pods of the servers are found, one by one. */}}
{{- define "orchestrator.serverDomain" -}}
{{- printf "%s-servers.%s.svc.%s" (include "orchestrator.fullname" .) .Release.Namespace .Values.clusterDomain -}}
{{- end -}}

{{/* The address of the Service in front of the servers. */}}
{{- define "orchestrator.host" -}}
{{- printf "%s.%s.svc.%s" (include "orchestrator.fullname" .) .Release.Namespace .Values.clusterDomain -}}
{{- end -}}

{{/* Names under which servers are reached, one a line; of certificates. */}}
{{- define "orchestrator.hosts" -}}
{{- $full := include "orchestrator.fullname" . -}}
{{ include "orchestrator.host" . }}
{{ $full }}.{{ .Release.Namespace }}.svc
{{ $full }}.{{ .Release.Namespace }}
{{ $full }}
localhost
{{- range .Values.tls.extraHosts }}
{{ . }}
{{- end }}
{{- end -}}

{{- define "orchestrator.tls" -}}{{ if ne .Values.tls.mode "off" }}true{{ end }}{{- end -}}

{{/* The Secret that holds ca.crt, whatever made it. */}}
{{- define "orchestrator.caSecret" -}}
{{- $full := include "orchestrator.fullname" . -}}
{{- if eq .Values.tls.mode "generated" }}{{ .Values.tls.generated.existingCASecret | default (printf "%s-ca" $full) }}{{ else if eq .Values.tls.mode "certManager" }}{{ $full }}-server-tls{{ else }}{{ .Values.tls.existingSecret }}{{ end -}}
{{- end -}}

{{- define "orchestrator.gossipSecret" -}}{{ .Values.secrets.gossipKey.existingSecret | default (printf "%s-gossip" (include "orchestrator.fullname" .)) }}{{- end -}}
{{- define "orchestrator.adminSecret" -}}{{ .Values.secrets.adminToken.existingSecret | default (printf "%s-admin-token" (include "orchestrator.fullname" .)) }}{{- end -}}

{{/* The Secret with the bucket's keys; empty where servers find their own. */}}
{{- define "orchestrator.s3Secret" -}}
{{- $s3 := .Values.chunks.s3 -}}
{{- if eq .Values.chunks.store "s3" }}{{ if $s3.existingSecret }}{{ $s3.existingSecret }}{{ else if $s3.accessKey }}{{ include "orchestrator.fullname" . }}-s3{{ end }}{{ end -}}
{{- end -}}

{{- define "orchestrator.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "orchestrator.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Spread constraints with the component's selector. */}}
{{- define "orchestrator.spread" -}}
{{- $selector := include "orchestrator.selector" . | fromYaml -}}
{{- range .constraints }}
{{ list (merge (dict "labelSelector" (dict "matchLabels" $selector)) .) | toYaml }}
{{- end }}
{{- end -}}

{{/* The address that listens everywhere, of the family. */}}
{{- define "orchestrator.any" -}}{{ ternary "[::]" "0.0.0.0" (eq .Values.ipFamily "IPv6") }}{{- end -}}

{{/* This pod's address in host:port, of the family. */}}
{{- define "orchestrator.podIP" -}}{{ ternary "[$(POD_IP)]" "$(POD_IP)" (eq .Values.ipFamily "IPv6") }}{{- end -}}

{{/* A duration such as 1h20m as seconds. */}}
{{- define "orchestrator.seconds" -}}
{{- $h := regexFind "[0-9]+h" . | trimSuffix "h" | int -}}
{{- $m := regexFind "[0-9]+m" . | trimSuffix "m" | int -}}
{{- $s := regexFind "[0-9]+s" . | trimSuffix "s" | int -}}
{{- add (mul $h 3600) (mul $m 60) $s -}}
{{- end -}}

{{/* The container that gives a pod its certificate, in mode generated: .role, and the .hosts of a server. */}}
{{- define "orchestrator.issuer" -}}
- name: certificate
  image: {{ include "orchestrator.image" (dict "root" .root) }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command:
    - /orchestrator
    - ca
    - issue
    - --dir=/var/run/orchestrator/ca
    - --role={{ .role }}
    - --name=$(POD_NAME)
    {{- range .hosts }}
    - --host={{ . }}
    {{- end }}
    - --validity={{ .root.Values.tls.generated.validity }}
    - --out=/var/run/orchestrator/tls
    - --replace
  env:
    - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
  resources:
    requests: {cpu: 10m, memory: 32Mi, ephemeral-storage: 8Mi}
    limits: {cpu: 500m, memory: 64Mi, ephemeral-storage: 16Mi}
  securityContext: {{- include "orchestrator.containerSecurity" .root | nindent 4 }}
  volumeMounts:
    - {name: ca, mountPath: /var/run/orchestrator/ca, readOnly: true}
    - {name: tls, mountPath: /var/run/orchestrator/tls}
{{- end -}}

{{/* The volumes with a pod's certificate: .role is server or node. */}}
{{- define "orchestrator.tlsVolumes" -}}
{{- $v := .root.Values -}}
{{- $own := eq .role "server" -}}
{{- if eq $v.tls.mode "generated" }}
- name: ca
  secret:
    secretName: {{ include "orchestrator.caSecret" .root }}
    defaultMode: 0440
    items: [{key: ca.crt, path: ca.pem}, {key: ca.key, path: ca-key.pem}]
- name: tls
  emptyDir: {medium: Memory, sizeLimit: 1Mi}
{{- else if eq $v.tls.mode "certManager" }}
- name: tls
  secret: {secretName: {{ include "orchestrator.fullname" .root }}-{{ .role }}-tls, defaultMode: 0440}
{{- else if eq $v.tls.mode "existingSecret" }}
- name: tls
  {{- if or $own $v.tls.existingNodeSecret }}
  secret: {secretName: {{ ternary $v.tls.existingSecret $v.tls.existingNodeSecret $own }}, defaultMode: 0440}
  {{- else }}
  secret: {secretName: {{ $v.tls.existingSecret }}, defaultMode: 0440, items: [{key: ca.crt, path: ca.crt}]}
  {{- end }}
{{- end }}
{{- end -}}

{{/* The names of the files in /var/run/orchestrator/tls, as environment: they are named after the pod when it got them as it started. */}}
{{- define "orchestrator.tlsEnv" -}}
{{- if eq .Values.tls.mode "generated" }}
- {name: ORCH_TLS_CERT_FILE, value: /var/run/orchestrator/tls/$(POD_NAME).pem}
- {name: ORCH_TLS_KEY_FILE, value: /var/run/orchestrator/tls/$(POD_NAME)-key.pem}
{{- end }}
{{- end -}}

{{/* What says to whom orchctl goes in a pod of the chart, and as whom. */}}
{{- define "orchestrator.orchctlEnv" -}}
- {name: HOME, value: /tmp}
- {name: ORCHCTL_ADDR, value: "{{ include "orchestrator.host" . }}:8077"}
{{- if include "orchestrator.tls" . }}
- {name: ORCHCTL_TOKEN_FILE, value: /var/run/orchestrator/token/token}
- {name: ORCHCTL_TLS_CA, value: /var/run/orchestrator/ca/ca.crt}
{{- end }}
{{- end -}}

{{- define "orchestrator.orchctlMounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if include "orchestrator.tls" . }}
- {name: token, mountPath: /var/run/orchestrator/token, readOnly: true}
- {name: ca, mountPath: /var/run/orchestrator/ca, readOnly: true}
{{- end }}
{{- end -}}

{{/* .secret holds the token. */}}
{{- define "orchestrator.orchctlVolumes" -}}
- name: tmp
  emptyDir: {sizeLimit: 64Mi}
{{- if include "orchestrator.tls" .root }}
- name: token
  secret: {secretName: {{ .secret }}, defaultMode: 0440, items: [{key: token, path: token}]}
- name: ca
  secret: {secretName: {{ include "orchestrator.caSecret" .root }}, defaultMode: 0440, items: [{key: ca.crt, path: ca.crt}]}
{{- end }}
{{- end -}}

{{/* What all pods say alike. */}}
{{- define "orchestrator.pod" -}}
serviceAccountName: {{ include "orchestrator.serviceAccount" . }}
automountServiceAccountToken: false
# Variables of Services may begin with ORCH_, which are settings.
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The data of a Secret that is there already, as a map; empty when it is not, or where nothing may be looked up. */}}
{{- define "orchestrator.there" -}}
{{- get (default (dict) (lookup "v1" "Secret" .root.Release.Namespace .name)) "data" | default (dict) | toYaml -}}
{{- end -}}

{{- define "orchestrator.keep" -}}
{{- if .Values.secrets.keep }}
annotations:
  helm.sh/resource-policy: keep
{{- end }}
{{- end -}}

{{/* So many characters of base32, as tokens are made of. Of 512 letters and digits some 470 are left. */}}
{{- define "orchestrator.base32" -}}
{{- regexReplaceAll "[^a-z2-7]" (randAlphaNum 512 | lower) "" | trunc . -}}
{{- end -}}

{{/* A container that runs orchctl: its args and mounts are added. */}}
{{- define "orchestrator.orchctl" -}}
image: {{ include "orchestrator.image" (dict "root" .root) }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
command: [/orchctl]
env:
  {{- include "orchestrator.orchctlEnv" .root | nindent 2 }}
resources: {{- toYaml .resources | nindent 2 }}
securityContext: {{- include "orchestrator.containerSecurity" .root | nindent 2 }}
{{- end -}}

{{/* The container that checks what was saved. */}}
{{- define "orchestrator.inspect" -}}
- name: check
  {{- include "orchestrator.orchctl" (dict "root" .root "resources" .root.Values.backup.resources) | nindent 2 }}
  args: [cluster, snapshot, inspect, /backup/{{ .name }}.snapshot]
  volumeMounts:
    {{- include "orchestrator.orchctlMounts" .root | nindent 4 }}
    - {name: backup, mountPath: /backup, readOnly: true}
{{- end -}}
