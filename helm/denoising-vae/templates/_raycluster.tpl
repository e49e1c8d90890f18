{{/* The spec of a RayCluster. */}}
{{- define "dvae.rayClusterSpec" -}}
{{- include "dvae.checkShm" (list "head" .Values.head) -}}
{{- $autoscaled := include "dvae.autoscaled" . -}}
rayVersion: {{ .Values.image.rayVersion | quote }}
upgradeStrategy: {type: Recreate} # otherwise a new image would wait for pods that are never deleted
authOptions:
  mode: token
  secretName: {{ .Values.auth.existingSecret }}
{{- if $autoscaled }}
enableInTreeAutoscaling: true
autoscalerOptions:
  version: v2
  idleTimeoutSeconds: {{ int .Values.autoscaler.idleTimeoutSeconds }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  resources: {{- include "dvae.resources" .Values.autoscaler.resources | nindent 4 }}
  securityContext: {{- include "dvae.containerSecurity" . | nindent 4 }}
  env:
    - {name: HOME, value: /tmp}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
{{- end }}
{{- if .Values.head.gcsFaultTolerance.enabled }}
gcsFaultToleranceOptions:
  redisAddress: {{ required "head.gcsFaultTolerance.redisAddress: set the address of Redis" .Values.head.gcsFaultTolerance.redisAddress | quote }}
  {{- if .Values.head.gcsFaultTolerance.usernameKey }}
  redisUsername:
    valueFrom: {secretKeyRef: {name: {{ required "head.gcsFaultTolerance.existingSecret: set the name of the Secret with the user" .Values.head.gcsFaultTolerance.existingSecret }}, key: {{ .Values.head.gcsFaultTolerance.usernameKey }}}}
  {{- end }}
  {{- with .Values.head.gcsFaultTolerance.existingSecret }}
  redisPassword:
    valueFrom: {secretKeyRef: {name: {{ . }}, key: {{ $.Values.head.gcsFaultTolerance.secretKey }}}}
  {{- end }}
{{- end }}
headGroupSpec:
  rayStartParams:
    num-cpus: "0"
    dashboard-host: 0.0.0.0
    object-store-memory: {{ include "dvae.objectStore" .Values.head.shm | quote }}
  template:
    metadata:
      labels: {{- include "dvae.selector" (list . "ray") | nindent 8 }}
        denoising-vae/ray-node: head
      {{- with .Values.head.annotations }}
      annotations: {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      serviceAccountName: {{ include "dvae.fullname" . }}-ray-head
      automountServiceAccountToken: {{ if $autoscaled }}true{{ else }}false{{ end }}
      terminationGracePeriodSeconds: 60
      securityContext: {{- include "dvae.podSecurity" . | nindent 8 }}
      {{- with include "dvae.pull" . }}{{ . | nindent 6 }}{{- end }}
      {{- with include "dvae.scheduling" .Values.head }}{{ . | nindent 6 }}{{- end }}
      {{- if $autoscaled }}
      restartPolicy: Never
      # As process 1 of a container, Ray's autoscaler ignores SIGTERM: each head would end only after its grace period.
      shareProcessNamespace: true
      {{- end }}
      containers:
        - name: ray-head
          image: {{ include "dvae.image" . }}
          imagePullPolicy: {{ .Values.image.pullPolicy }}
          securityContext: {{- include "dvae.containerSecurity" . | nindent 12 }}
          resources: {{- include "dvae.resources" .Values.head.resources | nindent 12 }}
          ports:
            - {name: gcs-server, containerPort: 6379}
            - {name: dashboard, containerPort: 8265}
            - {name: client, containerPort: 10001}
            - {name: metrics, containerPort: 8080}
          env: {{- include "dvae.pipelineEnv" . | nindent 12 }}
          lifecycle:
            preStop: {exec: {command: [python, -m, deploy, keep-logs]}} # before the logs are lost
          volumeMounts:
            - {name: tmp, mountPath: /tmp}
            - {name: shm, mountPath: /dev/shm}
            - {name: mirror, mountPath: /mirror}
            - {name: site, mountPath: /etc/dvae, readOnly: true}
      volumes:
        - {name: tmp, emptyDir: {}}
        - name: shm
          emptyDir: {medium: Memory, sizeLimit: {{ .Values.head.shm }}}
        - name: mirror
          emptyDir: {sizeLimit: 1Gi}
        {{- include "dvae.siteVolume" . | nindent 8 }}
workerGroupSpecs:
{{- range $name, $given := .Values.groups }}
{{- $group := include "dvae.group" (list $ $given) | fromJson }}
{{- if $group.enabled }}
{{- if gt (int $group.min) (int $group.max) }}{{ fail (printf "groups.%s: min %v exceeds max %v" $name $group.min $group.max) }}{{ end }}
{{- include "dvae.checkShm" (list (printf "groups.%s" $name) $group) }}
{{- if and (hasKey $group.resources "ephemeral-storage") (not $group.mirror.storageClassName) }}
{{- fail (printf "groups.%s.resources.ephemeral-storage: the mirror would count against it and the pod would be evicted; remove it, or set the mirror's storageClassName" $name) }}
{{- end }}
{{- if and $group.spot.enabled (not $group.spot.nodeSelector) (not $group.spot.tolerations) }}
{{- fail (printf "groups.%s.spot: select the spot nodes by nodeSelector or tolerations" $name) }}
{{- end }}
{{- $resources := deepCopy $group.resources }}
{{- if $group.gpus }}{{ $_ := set $resources $group.gpuResource (int $group.gpus) }}{{ end }}
{{- $seconds := int $group.terminationGracePeriodSeconds }}
  - groupName: {{ $name }}
    replicas: {{ int $group.min }}
    minReplicas: {{ int $group.min }}
    maxReplicas: {{ int $group.max }}
    {{- if and $autoscaled (not (kindIs "invalid" $group.idleTimeoutSeconds)) }}
    idleTimeoutSeconds: {{ int $group.idleTimeoutSeconds }}
    {{- end }}
    rayStartParams:
      object-store-memory: {{ include "dvae.objectStore" $group.shm | quote }}
      resources: {{ printf "'{%q: 1}'" (printf "pool-%s" $name) | quote }}
    labels:
      denoising-vae/pool: {{ $name }}
    template:
      metadata:
        labels: {{- include "dvae.selector" (list $ "ray") | nindent 10 }}
          denoising-vae/ray-node: worker
          denoising-vae/pool: {{ $name }}
        {{- with $group.annotations }}
        annotations: {{- toYaml . | nindent 10 }}
        {{- end }}
      spec:
        serviceAccountName: {{ include "dvae.fullname" $ }}-ray
        automountServiceAccountToken: false
        terminationGracePeriodSeconds: {{ $seconds }}
        securityContext: {{- include "dvae.podSecurity" $ | nindent 10 }}
        {{- with include "dvae.pull" $ }}{{ . | nindent 8 }}{{- end }}
        {{- with include "dvae.scheduling" $group }}{{ . | nindent 8 }}{{- end }}
        {{- if $autoscaled }}
        restartPolicy: Never
        {{- end }}
        {{- with $group.topologySpread }}
        topologySpreadConstraints:
        {{- range . }}
          - {{ merge (deepCopy .) (dict "labelSelector" (dict "matchLabels" (dict "app.kubernetes.io/instance" $.Release.Name "denoising-vae/pool" $name))) | toJson }}
        {{- end }}
        {{- end }}
        containers:
          - name: ray-worker
            image: {{ include "dvae.image" $ }}
            imagePullPolicy: {{ $.Values.image.pullPolicy }}
            securityContext: {{- include "dvae.containerSecurity" $ | nindent 14 }}
            resources: {{- include "dvae.resources" $resources | nindent 14 }}
            ports:
              - {name: metrics, containerPort: 8080}
            env: {{- include "dvae.pipelineEnv" $ | nindent 14 }}
              {{- range $key, $value := $group.env }}
              - {name: {{ $key | quote }}, value: {{ include "dvae.text" $value | quote }}}
              {{- end }}
            lifecycle:
              preStop:
                exec:
                  # Drain this Ray node, then upload its logs; ten seconds of the grace period are left for the upload.
                  command: [python, -m, deploy, drain, --seconds, {{ sub $seconds 10 | max 5 | quote }}]
            volumeMounts:
              - {name: tmp, mountPath: /tmp}
              - {name: shm, mountPath: /dev/shm}
              - {name: mirror, mountPath: /mirror}
              - {name: site, mountPath: /etc/dvae, readOnly: true}
        volumes:
          - {name: tmp, emptyDir: {}}
          - name: shm
            emptyDir: {medium: Memory, sizeLimit: {{ $group.shm }}}
          - name: mirror
            {{- if $group.mirror.storageClassName }}
            ephemeral:
              volumeClaimTemplate:
                metadata:
                  labels: {{- include "dvae.selector" (list $ "ray") | nindent 20 }}
                spec:
                  accessModes: [ReadWriteOnce]
                  storageClassName: {{ $group.mirror.storageClassName }}
                  resources: {requests: {storage: {{ $group.mirror.size }}}}
            {{- else }}
            emptyDir: {sizeLimit: {{ $group.mirror.size }}}
            {{- end }}
          {{- include "dvae.siteVolume" $ | nindent 10 }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The spec for a RayJob's cluster: without an upgrade strategy and GCS fault tolerance, which it does not need. */}}
{{- define "dvae.shortLivedSpec" -}}
{{- omit (include "dvae.rayClusterSpec" . | fromYaml) "upgradeStrategy" "gcsFaultToleranceOptions" | toYaml -}}
{{- end -}}

{{/* /dev/shm counts as memory of the pod, so it must be smaller: (list "path.of.the.value" value). */}}
{{- define "dvae.checkShm" -}}
{{- $shm := int64 (include "dvae.bytes" (index . 1).shm) -}}
{{- $memory := int64 (include "dvae.bytes" (index . 1).resources.memory) -}}
{{- if ge $shm $memory }}{{ fail (printf "%s.shm: %s is not less than the memory (%v), which includes it" (index . 0) (index . 1).shm (index . 1).resources.memory) }}{{ end -}}
{{- end -}}

{{- define "dvae.bytes" -}}
{{- $text := include "dvae.text" . -}}
{{- $units := dict "" 1 "k" 1000 "K" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- mulf (float64 (regexFind "^[0-9.]+" $text)) (index $units (regexFind "[kKMGT]?i?$" $text)) | int64 -}}
{{- end -}}

{{/* Bytes of Ray's object store: 95% of /dev/shm, given in Mi or Gi. Ray's default is 30% of the memory, on disk if
/dev/shm is smaller. */}}
{{- define "dvae.objectStore" -}}
{{- $unit := ternary 1073741824 1048576 (hasSuffix "Gi" .) -}}
{{- div (mul (int64 (regexFind "^[0-9]+" .)) $unit 95) 100 -}}
{{- end -}}
