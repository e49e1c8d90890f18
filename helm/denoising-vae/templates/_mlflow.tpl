{{/* Parts shared by the containers of MLflow's pod. */}}
{{- define "dvae.mlflowEnv" -}}
- {name: HOME, value: /tmp}
- {name: MLFLOW_SERVER_ENABLE_JOB_EXECUTION, value: "false"}
{{- if .Values.mlflow.database.existingSecret }}
- name: MLFLOW_BACKEND_STORE_URI
  valueFrom: {secretKeyRef: {name: {{ .Values.mlflow.database.existingSecret }}, key: uri}}
{{- else }}
- {name: MLFLOW_BACKEND_STORE_URI, value: "sqlite:////data/mlflow.db"}
{{- end }}
{{- with .Values.mlflow.basicAuth }}
{{- if .enabled }}
- {name: MLFLOW_AUTH_CONFIG_PATH, value: /run/mlflow/basic_auth.ini}
- name: MLFLOW_AUTH_ADMIN_USERNAME
  valueFrom: {secretKeyRef: {name: {{ .existingSecret }}, key: admin-username}}
- name: MLFLOW_AUTH_ADMIN_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ .existingSecret }}, key: admin-password}}
- name: MLFLOW_FLASK_SERVER_SECRET_KEY
  valueFrom: {secretKeyRef: {name: {{ .existingSecret }}, key: flask-secret}}
{{- end }}
{{- end }}
{{ include "dvae.s3Env" . }}
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
