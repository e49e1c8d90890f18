{{/* Parts shared by the containers of MLflow's pod. */}}
{{- define "dvae.mlflowEnv" -}}
{{ include "dvae.homeEnv" . }}
- {name: MLFLOW_SERVER_ENABLE_JOB_EXECUTION, value: "false"}
{{- if .Values.mlflow.database.existingSecret }}
{{ include "dvae.secretEnv" (list "MLFLOW_BACKEND_STORE_URI" .Values.mlflow.database.existingSecret "uri") }}
{{- else }}
- {name: MLFLOW_BACKEND_STORE_URI, value: "sqlite:////data/mlflow.db"}
{{- end }}
{{- with .Values.mlflow.basicAuth }}
{{- if .enabled }}
- {name: MLFLOW_AUTH_CONFIG_PATH, value: /run/mlflow/basic_auth.ini}
{{ include "dvae.secretEnv" (list "MLFLOW_AUTH_ADMIN_USERNAME" .existingSecret "admin-username") }}
{{ include "dvae.secretEnv" (list "MLFLOW_AUTH_ADMIN_PASSWORD" .existingSecret "admin-password") }}
{{ include "dvae.secretEnv" (list "MLFLOW_FLASK_SERVER_SECRET_KEY" .existingSecret "flask-secret") }}
{{- end }}
{{- end }}
{{ include "dvae.s3Env" . }}
{{- end -}}

{{/* Those of the init container that makes MLflow's users. */}}
{{- define "dvae.mlflowUsersEnv" -}}
{{ include "dvae.mlflowEnv" . }}
{{ include "dvae.secretEnv" (list "PODS_USERNAME" .Values.mlflow.basicAuth.existingSecret "username") }}
{{ include "dvae.secretEnv" (list "PODS_PASSWORD" .Values.mlflow.basicAuth.existingSecret "password") }}
{{- end -}}

{{/* Requests and limits. /tmp counts as the pod's ephemeral storage unless it is a volume of its own. */}}
{{- define "dvae.mlflowResources" -}}
{{- $resources := deepCopy .Values.mlflow.resources -}}
{{- $disk := index $resources "ephemeral-storage" -}}
{{- if and $disk (not .Values.mlflow.tmp.storageClassName) -}}
{{- $bytes := add (int64 (include "dvae.bytes" $disk)) (int64 (include "dvae.bytes" .Values.mlflow.tmp.size)) -}}
{{- $_ := set $resources "ephemeral-storage" (printf "%dMi" (div $bytes 1048576)) -}}
{{- end -}}
{{- include "dvae.resources" $resources -}}
{{- end -}}

{{- define "dvae.mlflowMounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: run, mountPath: /run/mlflow}
{{- if not .Values.mlflow.database.existingSecret }}
- {name: data, mountPath: /data}
{{- end }}
{{- if .Values.caBundle }}
- {name: site, mountPath: /etc/dvae, readOnly: true}
{{- end }}
{{- with include "dvae.extraMounts" .Values.mlflow }}
{{ . }}
{{- end }}
{{- end -}}

{{/* Allowed Host headers: the service's short and long names, localhost for probes, and those in the values. */}}
{{- define "dvae.allowedHosts" -}}
{{- $name := printf "%s-mlflow" (include "dvae.fullname" .) -}}
{{- $space := .Release.Namespace -}}
{{- $hosts := list "localhost" "localhost:5000" -}}
{{- range list $name (printf "%s.%s" $name $space) (printf "%s.%s.svc" $name $space) (printf "%s.%s.svc.cluster.local" $name $space) -}}
{{- $hosts = concat $hosts (list . (printf "%s:5000" .)) -}}
{{- end -}}
{{- concat $hosts .Values.mlflow.allowedHosts | join "," -}}
{{- end -}}
