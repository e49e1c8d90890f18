{{/* Parts of pods. */}}

{{/* What holds for every pod and container whatever the values say; _validate.tpl refuses values that say otherwise. */}}
{{- define "dvae.podSecurity" -}}
{{- merge (dict "runAsNonRoot" true) (deepCopy .Values.podSecurityContext) (dict "seccompProfile" (dict "type" "RuntimeDefault")) | toYaml -}}
{{- end -}}

{{- define "dvae.containerSecurity" -}}
{{- merge (dict "allowPrivilegeEscalation" false "readOnlyRootFilesystem" true "runAsNonRoot" true "capabilities" (dict "drop" (list "ALL"))) (deepCopy .Values.securityContext) | toYaml -}}
{{- end -}}

{{/* Requests equal to limits: KubeRay passes the limits to Ray, and memory cannot be overcommitted. */}}
{{- define "dvae.resources" -}}
requests: {{ toJson . }}
limits: {{ toJson . }}
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
priorityClassName: {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "dvae.pull" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "dvae.siteVolume" -}}
- name: site
  configMap: {name: {{ include "dvae.name" (list . "site") }}}
{{- end -}}

{{/* What a volume of a size is: one of its own where a storage class is given, else an emptyDir:
(list $ "component" {size, storageClassName}). */}}
{{- define "dvae.disk" -}}
{{- $disk := index . 2 -}}
{{- if $disk.storageClassName -}}
ephemeral:
  volumeClaimTemplate:
    metadata:
      labels: {{- include "dvae.podLabels" (list (index . 0) (index . 1) dict dict) | nindent 8 }}
    spec:
      accessModes: [ReadWriteOnce]
      storageClassName: {{ $disk.storageClassName | quote }}
      resources: {requests: {storage: {{ $disk.size | quote }}}}
{{- else -}}
emptyDir: {sizeLimit: {{ $disk.size | quote }}}
{{- end -}}
{{- end -}}

{{/* Volumes and mounts of the values, below the chart's own. */}}
{{- define "dvae.extraVolumes" -}}
{{- range .extraVolumes }}
- {{ if hasKey . "emptyDir" }}{{ dict "name" .name "emptyDir" (.emptyDir | default dict) | toJson }}{{ else }}{{ toJson . }}{{ end }}
{{- end }}
{{- end -}}

{{- define "dvae.extraMounts" -}}
{{- with .extraVolumeMounts }}{{ toYaml . }}{{- end }}
{{- end -}}

{{/* Bytes of a quantity. */}}
{{- define "dvae.bytes" -}}
{{- $text := include "dvae.text" . -}}
{{- $units := dict "" 1 "k" 1000 "K" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- mulf (float64 (regexFind "^[0-9.]+" $text)) (index $units (regexFind "[kKMGT]?i?$" $text)) | int64 -}}
{{- end -}}

{{/* Bytes of Ray's object store: 95% of /dev/shm. Ray's default is 30% of the memory, on disk if /dev/shm is smaller. */}}
{{- define "dvae.objectStore" -}}
{{- div (mul (int64 (include "dvae.bytes" .)) 95) 100 -}}
{{- end -}}
