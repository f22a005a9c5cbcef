{{- define "balance-sync.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- /* Objects' names. 50 characters leave room for what Kubernetes and the chart append. */ -}}
{{- define "balance-sync.fullname" -}}
{{- $name := include "balance-sync.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "balance-sync.selector" -}}
app.kubernetes.io/name: {{ include "balance-sync.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "balance-sync.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}
{{ include "balance-sync.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: balance-sync
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "balance-sync.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "balance-sync.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- /* The Prometheus job of this fleet. Rules aggregate by job, and BalanceSyncWorkerDown knows the workers by its name. An
autoscaler selects by it, so it is a valid value of a label. */ -}}
{{- define "balance-sync.job" -}}
{{- printf "balance-sync.%s.%s" .Release.Namespace (include "balance-sync.fullname" .) | trunc 63 | trimSuffix "-" | trimSuffix "." -}}
{{- end -}}

{{- define "balance-sync.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{- define "balance-sync.isShadow" -}}
{{- if eq .Values.profile "shadow" }}true{{ end -}}
{{- end -}}

{{- /* none, keda or hpa. One shadow looks at all tenants. */ -}}
{{- define "balance-sync.autoscaling" -}}
{{- if include "balance-sync.isShadow" . }}none{{ else }}{{ .Values.autoscaling.kind }}{{ end -}}
{{- end -}}

{{- define "balance-sync.minReplicas" -}}
{{- if include "balance-sync.isShadow" . -}}
1
{{- else if eq .Values.autoscaling.kind "none" -}}
{{- .Values.replicaCount | int -}}
{{- else -}}
{{- .Values.autoscaling.minReplicas | int -}}
{{- end -}}
{{- end -}}

{{- /* One variable per setting of `settings`: a dict of `prefix` and `values`. */ -}}
{{- define "balance-sync.settings" -}}
{{- range $key, $value := .values }}
{{- $name := printf "%s__%s" $.prefix (upper $key) }}
{{- if kindIs "map" $value }}
{{- include "balance-sync.settings" (dict "prefix" $name "values" $value) }}
{{- else if not (kindIs "invalid" $value) }}
- name: {{ $name }}
  value: {{ include "balance-sync.text" $value | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* Numbers of values are floats, and a million would be printed as 1e+06. */ -}}
{{- define "balance-sync.text" -}}
{{- if kindIs "slice" . -}}
{{- join "," . -}}
{{- else if and (kindIs "float64" .) (eq . (floor .)) -}}
{{- int64 . -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end -}}

{{- /* Variables of a worker, and of the test, which is configured as one. Variables of `env` override those of `envFrom`. */ -}}
{{- define "balance-sync.env" -}}
{{- if not (or .Values.admin.operatorTokenKey .Values.admin.readTokenKey) }}
{{- fail "admin.operatorTokenKey and admin.readTokenKey: one of them is needed, without a token a worker doesn't listen on a pod's address" }}
{{- end }}
{{- if or .Values.ledger.configMap .Values.ledger.secret }}
envFrom:
  {{- with .Values.ledger.configMap }}
  - configMapRef: {name: {{ . | quote }}}
  {{- end }}
  {{- with .Values.ledger.secret }}
  - secretRef: {name: {{ . | quote }}}
  {{- end }}
{{- end }}
env:
  {{- range .Values.ledger.secretVariables }}
  - name: {{ .name }}
    valueFrom: {secretKeyRef: {name: {{ .secret | quote }}, key: {{ .key | quote }}}}
  {{- end }}
  {{- $tokens := required "admin.tokenSecret: name of the Secret with the tokens of the HTTP interface; see docs/deploying.md" .Values.admin.tokenSecret }}
  {{- with .Values.admin.operatorTokenKey }}
  - name: BALANCE_SYNC__ADMIN__OPERATOR_TOKEN
    valueFrom: {secretKeyRef: {name: {{ $tokens | quote }}, key: {{ . | quote }}}}
  {{- end }}
  {{- with .Values.admin.readTokenKey }}
  - name: BALANCE_SYNC__ADMIN__READ_TOKEN
    valueFrom: {secretKeyRef: {name: {{ $tokens | quote }}, key: {{ . | quote }}}}
  {{- end }}
  {{- $own := dict
        "admin" (dict "listen" (printf "%s:%d" .Values.admin.address (int .Values.admin.port)))
        "log" (dict "format" "json")
        "supervisor" (dict "stop_deadline" (printf "%ds" (int .Values.stopDeadlineSeconds))) }}
  {{- if include "balance-sync.isShadow" . }}
  {{- /* worker.expected is a number of workers that write. */}}
  {{- $_ := set $own "worker" (dict "mode" "shadow") }}
  {{- with .Values.shadow.redisUsername }}
  {{- $_ := set $own "redis" (dict "username" .) }}
  - name: BALANCE_SYNC__REDIS__PASSWORD
    valueFrom: {secretKeyRef: {name: {{ required "shadow.redisSecret: name of the Secret with the password of shadow.redisUsername, or an empty shadow.redisUsername" $.Values.shadow.redisSecret | quote }}, key: {{ $.Values.shadow.redisPasswordKey | quote }}}}
  {{- end }}
  {{- else }}
  {{- $_ := set $own "worker" (dict "expected" (include "balance-sync.minReplicas" .)) }}
  {{- end }}
  {{- if hasKey (default dict .Values.settings.worker) "mode" }}
  {{- fail "settings.worker.mode: set profile instead, by which a shadow is one worker with a user of its own" }}
  {{- end }}
  {{- if hasKey (default dict .Values.settings.supervisor) "stop_deadline" }}
  {{- fail "settings.supervisor.stop_deadline: set stopDeadlineSeconds instead, which also sets the pod's grace period" }}
  {{- end }}
  {{- if hasKey (default dict .Values.settings.admin) "listen" }}
  {{- fail "settings.admin.listen: set admin.address and admin.port instead, which also set probes and Service" }}
  {{- end }}
  {{- with .Values.redisDirectory }}
  {{- if and .name (not .configMap) (not .entries) }}
  {{- fail "redisDirectory.configMap or redisDirectory.entries: one of them is needed, as redisDirectory.name is set" }}
  {{- end }}
  {{- if and (not .name) (or .configMap .entries) }}
  {{- fail "redisDirectory.name: the entry that this release serves is needed beside a directory" }}
  {{- end }}
  {{- if .name }}
  {{- $_ := set $own "redis" (dict "directory" "/etc/balance-sync-redis/directory.toml" "name" .name) }}
  {{- end }}
  {{- end }}
  {{- include "balance-sync.settings" (dict "prefix" "BALANCE_SYNC" "values" (mergeOverwrite $own (deepCopy .Values.settings))) | trim | nindent 2 }}
  {{- if .Values.configFile }}
  - name: BALANCE_SYNC_CONFIG
    value: /etc/balance-sync/balance-sync.toml
  {{- end }}
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "balance-sync.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
# Mounted password files are readable by this group.
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "balance-sync.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "balance-sync.mounts" -}}
{{- if or .Values.configFile .Values.redisDirectory.name .Values.extraVolumeMounts }}
volumeMounts:
  {{- if .Values.configFile }}
  - {name: config, mountPath: /etc/balance-sync, readOnly: true}
  {{- end }}
  {{- if .Values.redisDirectory.name }}
  # As a folder: a file that is mounted by itself would stay as it is when the ConfigMap changes.
  - {name: redis-directory, mountPath: /etc/balance-sync-redis, readOnly: true}
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "balance-sync.volumes" -}}
{{- if or .Values.configFile .Values.redisDirectory.name .Values.extraVolumes }}
volumes:
  {{- if .Values.configFile }}
  - name: config
    configMap: {name: {{ include "balance-sync.fullname" . }}-config}
  {{- end }}
  {{- if .Values.redisDirectory.name }}
  - name: redis-directory
    configMap: {name: {{ default (printf "%s-redis-directory" (include "balance-sync.fullname" .)) .Values.redisDirectory.configMap | quote }}}
  {{- end }}
  {{- with .Values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end -}}
