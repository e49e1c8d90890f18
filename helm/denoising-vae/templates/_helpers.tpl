{{/* Names, labels, addresses and environment shared by several objects. Nothing here is rendered by itself. Whatever comes
from a value or a release's name is quoted where it is printed: YAML reads `on`, `1234` or `0123` as something else. */}}

{{/* A name of at most 40 characters, so that KubeRay has room for its suffixes. What is longer ends in a hash of the whole:
two releases whose names begin alike would else be one. */}}
{{- define "dvae.short" -}}
{{- if le (len .) 40 -}}{{- . | trimSuffix "-" -}}
{{- else -}}{{- printf "%s-%s" (. | trunc 31 | trimSuffix "-") (. | sha256sum | trunc 8) -}}{{- end -}}
{{- end -}}

{{- define "dvae.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- include "dvae.short" .Values.fullnameOverride -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}{{- include "dvae.short" .Release.Name -}}
{{- else -}}{{- include "dvae.short" (printf "%s-%s" .Release.Name $name) -}}{{- end -}}
{{- end -}}
{{- end -}}

{{/* An object's name, in quotes: (list $ "suffix"), or (list $) for the plain name. */}}
{{- define "dvae.name" -}}
{{- prepend (rest .) (include "dvae.fullname" (first .)) | join "-" | quote -}}
{{- end -}}

{{/* Selector labels: (list $ "component"). */}}
{{- define "dvae.selector" -}}
app.kubernetes.io/name: denoising-vae
app.kubernetes.io/instance: {{ (index . 0).Release.Name | quote }}
{{- with index . 1 }}
app.kubernetes.io/component: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* An object's labels: (list $ "component"), or (list $ "component" more) with labels of its own. */}}
{{- define "dvae.labels" -}}
{{- $top := index . 0 -}}
{{- $own := dict "app.kubernetes.io/version" $top.Chart.AppVersion "app.kubernetes.io/managed-by" $top.Release.Service "app.kubernetes.io/part-of" "denoising-vae" "helm.sh/chart" (printf "%s-%s" $top.Chart.Name $top.Chart.Version) -}}
{{- $more := dict -}}
{{- if gt (len .) 2 -}}{{- $more = index . 2 -}}{{- end -}}
{{- mergeOverwrite (deepCopy $top.Values.commonLabels) $more $own (include "dvae.selector" (list $top (index . 1)) | fromYaml) | toYaml -}}
{{- end -}}

{{/* A pod's labels: (list $ "component" more podLabels). No label of the values takes the place of one of the chart's, by
which network policies and services find their pods. */}}
{{- define "dvae.podLabels" -}}
{{- $top := index . 0 -}}
{{- mergeOverwrite (deepCopy $top.Values.commonLabels) (index . 3) (index . 2) (include "dvae.selector" . | fromYaml) | toYaml -}}
{{- end -}}

{{- define "dvae.image" -}}
{{- if .Values.image.digest -}}{{ printf "%s@%s" .Values.image.repository .Values.image.digest | quote }}
{{- else -}}{{ printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) | quote }}{{- end -}}
{{- end -}}

{{/* The head's service, named by KubeRay. */}}
{{- define "dvae.dashboard" -}}
http://{{ include "dvae.fullname" . }}-head-svc:8265
{{- end -}}

{{- define "dvae.mlflowUri" -}}
{{- if .Values.mlflow.enabled -}}http://{{ include "dvae.fullname" . }}-mlflow:5000
{{- else -}}{{ .Values.mlflow.externalUri }}{{- end -}}
{{- end -}}

{{/* A value as text. Integers in YAML reach a template as floats, which would print as 8.388608e+06. */}}
{{- define "dvae.text" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) }}{{ printf "%.0f" . }}{{ else }}{{ . }}{{ end -}}
{{- end -}}

{{/* An argument of a command, in quotes. Kubernetes replaces $(NAME) in it, and takes $$ for $. */}}
{{- define "dvae.argument" -}}
{{- . | replace "$" "$$" | quote -}}
{{- end -}}

{{/* A variable whose value is a Secret's: (list "NAME" "secret" "key"). */}}
{{- define "dvae.secretEnv" -}}
- name: {{ index . 0 }}
  valueFrom: {secretKeyRef: {name: {{ index . 1 | quote }}, key: {{ index . 2 | quote }}}}
{{- end -}}

{{/* Variables of the values: NAME: text, or NAME: {valueFrom: ...}. */}}
{{- define "dvae.givenEnv" -}}
{{- range $name, $value := . }}
{{- if kindIs "map" $value }}
- {name: {{ $name | quote }}, valueFrom: {{ toJson $value.valueFrom }}}
{{- else }}
- {name: {{ $name | quote }}, value: {{ include "dvae.text" $value | quote }}}
{{- end }}
{{- end }}
{{- end -}}

{{/* Variables with others over them, each as a whole: (list below above), as JSON. Helm's own merge would make one valueFrom
of two, and take "", 0 and false for nothing. */}}
{{- define "dvae.over" -}}
{{- $all := deepCopy (index . 0) -}}
{{- range $name, $value := index . 1 -}}{{- $_ := set $all $name $value -}}{{- end -}}
{{- toJson $all -}}
{{- end -}}

{{/* A container's variables: the chart's, those of s3.env, and the pod's own, which come before those of s3.env:
(list $ "template of the chart's" env). */}}
{{- define "dvae.env" -}}
{{- $top := index . 0 -}}
{{ include (index . 1) $top }}
{{- include "dvae.givenEnv" (include "dvae.over" (list $top.Values.s3.env (index . 2)) | fromJson) }}
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
{{ include "dvae.secretEnv" (list "AWS_ACCESS_KEY_ID" . "AWS_ACCESS_KEY_ID") }}
{{ include "dvae.secretEnv" (list "AWS_SECRET_ACCESS_KEY" . "AWS_SECRET_ACCESS_KEY") }}
{{- end }}
{{- if .Values.caBundle }}
{{- range list "AWS_CA_BUNDLE" "REQUESTS_CA_BUNDLE" "SSL_CERT_FILE" }}
- {name: {{ . }}, value: /etc/dvae/ca.crt}
{{- end }}
{{- end }}
{{- end -}}

{{/* Of every container: the root file system is read-only, and the user may have no home. */}}
{{- define "dvae.homeEnv" -}}
- {name: HOME, value: /tmp}
{{- end -}}

{{/* Environment variables of every pod that runs the pipeline. */}}
{{- define "dvae.pipelineEnv" -}}
- {name: DVAE_SITE, value: /etc/dvae/site.yaml}
{{ include "dvae.homeEnv" . }}
- {name: MPLCONFIGDIR, value: /tmp/matplotlib}
{{- with .Values.image.digest }}
- {name: DVAE_IMAGE_DIGEST, value: {{ . | quote }}}
{{- end }}
{{ include "dvae.s3Env" . }}
{{- $users := ternary (ternary .Values.mlflow.basicAuth.existingSecret "" .Values.mlflow.basicAuth.enabled) .Values.mlflow.externalSecret .Values.mlflow.enabled }}
{{- with $users }}
{{ include "dvae.secretEnv" (list "MLFLOW_TRACKING_USERNAME" . "username") }}
{{ include "dvae.secretEnv" (list "MLFLOW_TRACKING_PASSWORD" . "password") }}
{{- end }}
{{- end -}}

{{/* Beside the pipeline's, those of `deploy retrain`. */}}
{{- define "dvae.retrainEnv" -}}
- {name: RAY_API_SERVER_ADDRESS, value: {{ include "dvae.dashboard" . | quote }}}
{{ include "dvae.secretEnv" (list "RAY_AUTH_TOKEN" .Values.auth.existingSecret "auth_token") }}
{{ include "dvae.pipelineEnv" . }}
{{- end -}}

{{/* A group's values merged over the defaults, with the selectors and tolerations of spot nodes. */}}
{{- define "dvae.group" -}}
{{- $top := index . 0 -}}
{{- $own := index . 1 -}}
{{- $group := mergeOverwrite (deepCopy $top.Values.groupDefaults) (deepCopy $own) -}}
{{- $_ := set $group "env" (include "dvae.over" (list $top.Values.groupDefaults.env ($own.env | default dict)) | fromJson) -}}
{{- if $group.spot.enabled -}}
{{- $_ := set $group "nodeSelector" (mergeOverwrite $group.nodeSelector $group.spot.nodeSelector) -}}
{{- $_ := set $group "tolerations" (concat $group.tolerations $group.spot.tolerations) -}}
{{- end -}}
{{- toJson $group -}}
{{- end -}}

{{- define "dvae.autoscaled" -}}
{{- if and .Values.autoscaler.enabled (or (not .Values.kueue.enabled) .Values.kueue.elastic) -}}true{{- end -}}
{{- end -}}

{{/* The device of training and what follows: as site.extra has it, else by the trainers' groups. Ray would go by the nodes
that it has, and a pool may begin with none. */}}
{{- define "dvae.device" -}}
{{- $gpus := 0 -}}
{{- range $stage := list "train-tokenizer" "train-sit" -}}
{{- $gpus = add $gpus (int (include "dvae.group" (list $ (index $.Values.groups (index $.Values.stagePools $stage))) | fromJson).gpus) -}}
{{- end -}}
{{- $extra := .Values.site.extra.cluster | default dict -}}
{{- $extra.device | default (ternary "cuda" "cpu" (gt (int $gpus) 0)) -}}
{{- end -}}
