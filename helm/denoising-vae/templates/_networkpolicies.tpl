{{/* The parts that policies are made of. */}}

{{/* Head of a policy: (list $ "its-door" "selector of the pods as JSON"). */}}
{{- define "dvae.policy" -}}
{{- $top := index . 0 -}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "dvae.fullname" $top }}-{{ index . 1 }}
  labels: {{- include "dvae.labels" (list $top "network-policy") | nindent 4 }}
spec:
  podSelector: {matchLabels: {{ index . 2 }}}
{{- end -}}

{{/* Labels of the release's pods of one component, as JSON; of all of them when it is empty. */}}
{{- define "dvae.pods" -}}
{{- include "dvae.selector" . | fromYaml | toJson -}}
{{- end -}}

{{- define "dvae.head" -}}
{{- merge (dict "denoising-vae/ray-node" "head") (include "dvae.selector" (list . "ray") | fromYaml) | toJson -}}
{{- end -}}

{{/* Peers by address: (list cidrs excepted). An exception counts where it lies inside of the range: of 0.0.0.0/0. */}}
{{- define "dvae.blocks" -}}
{{- $excepted := index . 1 -}}
{{- range index . 0 }}
- ipBlock:
    cidr: {{ . }}
    {{- if and (eq . "0.0.0.0/0") $excepted }}
    except: {{ toJson $excepted }}
    {{- end }}
{{- end }}
{{- end -}}

{{- define "dvae.ports" -}}
{{- $ports := list -}}
{{- range . -}}{{- $ports = append $ports (dict "port" (int .) "protocol" "TCP") -}}{{- end -}}
{{- toJson $ports -}}
{{- end -}}

{{/* Peers of a service that lies elsewhere: (list "path.of.the.value" value). */}}
{{- define "dvae.elsewhere" -}}
{{- $value := index . 1 -}}
{{- if not (or $value.cidrs $value.podSelector $value.namespaceSelector) -}}
{{- fail (printf "%s: say where it is, by cidrs, podSelector or namespaceSelector" (index . 0)) -}}
{{- end -}}
{{- include "dvae.blocks" (list $value.cidrs list) -}}
{{- if or $value.podSelector $value.namespaceSelector }}
- podSelector: {matchLabels: {{ toJson $value.podSelector }}}
  {{- with $value.namespaceSelector }}
  namespaceSelector: {matchLabels: {{ toJson . }}}
  {{- end }}
{{- end }}
{{- end -}}

{{/* The way out to MLflow, wherever it is. */}}
{{- define "dvae.mlflowDoor" -}}
{{- if .Values.mlflow.enabled }}
- to: [{podSelector: {matchLabels: {{ include "dvae.pods" (list . "mlflow") }}}}]
  ports: [{port: 5000, protocol: TCP}]
{{- else }}
- to: {{- include "dvae.elsewhere" (list "networkPolicy.externalMlflow" .Values.networkPolicy.externalMlflow) | nindent 4 }}
  ports: {{ include "dvae.ports" (list .Values.networkPolicy.externalMlflow.port) }}
{{- end }}
{{- end -}}
