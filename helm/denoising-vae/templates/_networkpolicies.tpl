{{/* Parts of network policies. */}}

{{/* Head of a policy: (list $ "name-suffix" "selector of the pods as JSON"). */}}
{{- define "dvae.policy" -}}
{{- $top := index . 0 -}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "dvae.name" (list $top (index . 1)) }}
  labels: {{- include "dvae.labels" (list $top "network-policy") | nindent 4 }}
spec:
  podSelector: {matchLabels: {{ index . 2 }}}
{{- end -}}

{{/* Labels of the release's pods of one component, as JSON; of all components if it is empty. */}}
{{- define "dvae.pods" -}}
{{- include "dvae.selector" . | fromYaml | toJson -}}
{{- end -}}

{{- define "dvae.head" -}}
{{- merge (dict "denoising-vae/ray-node" "head") (include "dvae.selector" (list . "ray") | fromYaml) | toJson -}}
{{- end -}}

{{/* Peers by address: (list cidrs excepted). An exception must lie inside of the range. All do in the full range of their
address family; _validate.tpl rejects ranges nearly as large, since some exceptions would lie outside of them. */}}
{{- define "dvae.blocks" -}}
{{- $excepted := index . 1 -}}
{{- range $cidr := index . 0 }}
{{- $bits := int (regexFind "[0-9]+$" $cidr) }}
- ipBlock:
    cidr: {{ $cidr | quote }}
    {{- if eq $bits 0 }}
    {{- $inside := list }}
    {{- range $excepted }}{{ if eq (contains ":" .) (contains ":" $cidr) }}{{ $inside = append $inside . }}{{ end }}{{ end }}
    except: {{ toJson $inside }}
    {{- end }}
{{- end }}
{{- end -}}

{{- define "dvae.ports" -}}
{{- $ports := list -}}
{{- range . -}}{{- $ports = append $ports (dict "port" (int .) "protocol" "TCP") -}}{{- end -}}
{{- toJson $ports -}}
{{- end -}}

{{/* Peers of an external service: (list value excepted). */}}
{{- define "dvae.elsewhere" -}}
{{- $value := index . 0 -}}
{{- include "dvae.blocks" (list $value.cidrs (index . 1)) -}}
{{- if or $value.podSelector $value.namespaceSelector }}
- podSelector: {matchLabels: {{ toJson $value.podSelector }}}
  {{- with $value.namespaceSelector }}
  namespaceSelector: {matchLabels: {{ toJson . }}}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Egress to MLflow, in this release or external. */}}
{{- define "dvae.mlflowDoor" -}}
{{- if .Values.mlflow.enabled }}
- to: [{podSelector: {matchLabels: {{ include "dvae.pods" (list . "mlflow") }}}}]
  ports: [{port: 5000, protocol: TCP}]
{{- else }}
- to: {{- include "dvae.elsewhere" (list .Values.networkPolicy.externalMlflow .Values.networkPolicy.exceptCidrs) | nindent 4 }}
  ports: {{ include "dvae.ports" (list .Values.networkPolicy.externalMlflow.port) }}
{{- end }}
{{- end -}}
