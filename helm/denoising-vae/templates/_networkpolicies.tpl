{{/* Parts of network policies. */}}

{{/* Head of a policy: (list $ "name-suffix" "selector of the pods as JSON"). */}}
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

{{/* Labels of the release's pods of one component, as JSON; of all components if it is empty. */}}
{{- define "dvae.pods" -}}
{{- include "dvae.selector" . | fromYaml | toJson -}}
{{- end -}}

{{- define "dvae.head" -}}
{{- merge (dict "denoising-vae/ray-node" "head") (include "dvae.selector" (list . "ray") | fromYaml) | toJson -}}
{{- end -}}

{{/* Peers by address: (list cidrs excepted). An exception must lie inside of the range. All do in the full range of their
address family; ranges nearly as large are rejected, since some exceptions would lie outside of them. */}}
{{- define "dvae.blocks" -}}
{{- $excepted := index . 1 -}}
{{- range $cidr := index . 0 }}
{{- $bits := int (regexFind "[0-9]+$" $cidr) -}}
{{- if and (gt $bits 0) (lt $bits 8) }}{{ fail (printf "networkPolicy: %s is too wide; give smaller ranges, or 0.0.0.0/0 or ::/0, from which networkPolicy.exceptCidrs are excluded" $cidr) }}{{ end }}
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

{{/* Peers of an external service: (list "path.of.the.value" value excepted). */}}
{{- define "dvae.elsewhere" -}}
{{- $value := index . 1 -}}
{{- if not (or $value.cidrs $value.podSelector $value.namespaceSelector) -}}
{{- fail (printf "%s: set its location by cidrs, podSelector or namespaceSelector" (index . 0)) -}}
{{- end -}}
{{- include "dvae.blocks" (list $value.cidrs (index . 2)) -}}
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
- to: {{- include "dvae.elsewhere" (list "networkPolicy.externalMlflow" .Values.networkPolicy.externalMlflow .Values.networkPolicy.exceptCidrs) | nindent 4 }}
  ports: {{ include "dvae.ports" (list .Values.networkPolicy.externalMlflow.port) }}
{{- end }}
{{- end -}}
