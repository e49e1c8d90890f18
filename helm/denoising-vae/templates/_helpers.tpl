{{/* Names, labels and parts shared by several objects. Nothing here is rendered by itself. */}}

{{- define "dvae.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}{{- end -}}
{{- end -}}
{{- end -}}

{{/* Selector labels: (list $ "component"). */}}
{{- define "dvae.selector" -}}
app.kubernetes.io/name: denoising-vae
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
{{- with index . 1 }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{- define "dvae.labels" -}}
{{- $top := index . 0 -}}
{{ include "dvae.selector" . }}
app.kubernetes.io/version: {{ $top.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $top.Release.Service }}
app.kubernetes.io/part-of: denoising-vae
helm.sh/chart: {{ printf "%s-%s" $top.Chart.Name $top.Chart.Version }}
{{- end -}}

{{- define "dvae.image" -}}
{{- if .Values.image.digest -}}{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}{{- end -}}
{{- end -}}

{{/* The head's service, named by KubeRay. */}}
{{- define "dvae.dashboard" -}}
http://{{ include "dvae.fullname" . }}-head-svc:8265
{{- end -}}

{{- define "dvae.mlflowUri" -}}
{{- if .Values.mlflow.enabled -}}http://{{ include "dvae.fullname" . }}-mlflow:5000
{{- else -}}{{ .Values.mlflow.externalUri }}{{- end -}}
{{- end -}}

{{- define "dvae.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "dvae.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Requests equal to limits: KubeRay passes the limits to Ray, and memory cannot be overcommitted. */}}
{{- define "dvae.resources" -}}
requests: {{ toJson . }}
limits: {{ toJson . }}
{{- end -}}

{{/* A value as text. Integers in YAML reach a template as floats, which would print as 8.388608e+06. */}}
{{- define "dvae.text" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) }}{{ printf "%.0f" . }}{{ else }}{{ . }}{{ end -}}
{{- end -}}

{{- define "dvae.scheduling" -}}
{{- with .nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with .tolerations }}
tolerations: {{ toJson . }}
{{- end }}
{{- with .affinity }}
affinity: {{ toJson . }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{- define "dvae.pull" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Environment variables of S3 clients, as AWS SDKs read them. */}}
{{- define "dvae.s3Env" -}}
- {name: AWS_REGION, value: {{ .Values.s3.region | quote }}}
- {name: AWS_DEFAULT_REGION, value: {{ .Values.s3.region | quote }}}
- {name: AWS_EC2_METADATA_DISABLED, value: "true"}
{{- with .Values.s3.endpoint }}
- {name: AWS_ENDPOINT_URL, value: {{ . | quote }}}
{{- end }}
{{- with .Values.s3.existingSecret }}
- name: AWS_ACCESS_KEY_ID
  valueFrom: {secretKeyRef: {name: {{ . }}, key: AWS_ACCESS_KEY_ID}}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom: {secretKeyRef: {name: {{ . }}, key: AWS_SECRET_ACCESS_KEY}}
{{- end }}
{{- range $name, $value := .Values.s3.env }}
- {name: {{ $name | quote }}, value: {{ include "dvae.text" $value | quote }}}
{{- end }}
{{- if .Values.caBundle }}
{{- range list "AWS_CA_BUNDLE" "REQUESTS_CA_BUNDLE" "SSL_CERT_FILE" }}
- {name: {{ . }}, value: /etc/dvae/ca.crt}
{{- end }}
{{- end }}
{{- end -}}

{{/* Environment variables of every pod that runs the pipeline. */}}
{{- define "dvae.pipelineEnv" -}}
- {name: DVAE_SITE, value: /etc/dvae/site.yaml}
- {name: HOME, value: /tmp}
- {name: MPLCONFIGDIR, value: /tmp/matplotlib}
{{- with .Values.image.digest }}
- {name: DVAE_IMAGE_DIGEST, value: {{ . | quote }}}
{{- end }}
{{ include "dvae.s3Env" . }}
{{- $users := ternary (ternary .Values.mlflow.basicAuth.existingSecret "" .Values.mlflow.basicAuth.enabled) .Values.mlflow.externalSecret .Values.mlflow.enabled }}
{{- with $users }}
- name: MLFLOW_TRACKING_USERNAME
  valueFrom: {secretKeyRef: {name: {{ . }}, key: username}}
- name: MLFLOW_TRACKING_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ . }}, key: password}}
{{- end }}
{{- end -}}

{{- define "dvae.siteVolume" -}}
- name: site
  configMap: {name: {{ include "dvae.fullname" . }}-site}
{{- end -}}

{{/* A group's values merged over the defaults, with the selectors and tolerations of spot nodes. */}}
{{- define "dvae.group" -}}
{{- $top := index . 0 -}}
{{- $group := mergeOverwrite (deepCopy $top.Values.groupDefaults) (deepCopy (index . 1)) -}}
{{- if $group.spot.enabled -}}
{{- $_ := set $group "nodeSelector" (merge (deepCopy $group.spot.nodeSelector) $group.nodeSelector) -}}
{{- $_ := set $group "tolerations" (concat $group.tolerations $group.spot.tolerations) -}}
{{- end -}}
{{- toJson $group -}}
{{- end -}}

{{- define "dvae.autoscaled" -}}
{{- if and .Values.autoscaler.enabled (or (not .Values.kueue.enabled) .Values.kueue.elastic) -}}true{{- end -}}
{{- end -}}
