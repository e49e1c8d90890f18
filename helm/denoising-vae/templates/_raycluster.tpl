{{/* The spec of a RayCluster. */}}
{{- define "dvae.rayClusterSpec" -}}
{{- $autoscaled := include "dvae.autoscaled" . -}}
rayVersion: {{ .Values.image.rayVersion | quote }}
upgradeStrategy: {type: Recreate} # otherwise a new image would wait for pods that are never deleted
authOptions:
  mode: token
  secretName: {{ .Values.auth.existingSecret | quote }}
{{- if $autoscaled }}
enableInTreeAutoscaling: true
autoscalerOptions:
  version: v2
  idleTimeoutSeconds: {{ int .Values.autoscaler.idleTimeoutSeconds }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  resources: {{- include "dvae.resources" .Values.autoscaler.resources | nindent 4 }}
  securityContext: {{- include "dvae.containerSecurity" . | nindent 4 }}
  env: {{- include "dvae.homeEnv" . | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
{{- end }}
{{- if .Values.head.gcsFaultTolerance.enabled }}
gcsFaultToleranceOptions:
  {{- with .Values.head.gcsFaultTolerance }}
  redisAddress: {{ .redisAddress | quote }}
  {{- if .usernameKey }}
  redisUsername:
    valueFrom: {secretKeyRef: {name: {{ .existingSecret | quote }}, key: {{ .usernameKey | quote }}}}
  {{- end }}
  {{- if .existingSecret }}
  redisPassword:
    valueFrom: {secretKeyRef: {name: {{ .existingSecret | quote }}, key: {{ .secretKey | quote }}}}
  {{- end }}
  {{- end }}
{{- end }}
headGroupSpec:
  rayStartParams:
    num-cpus: "0"
    dashboard-host: 0.0.0.0
    object-store-memory: {{ include "dvae.objectStore" .Values.head.shm | quote }}
  template:
    metadata:
      labels: {{- include "dvae.podLabels" (list . "ray" (dict "denoising-vae/ray-node" "head") .Values.head.podLabels) | nindent 8 }}
      {{- with .Values.head.annotations }}
      annotations: {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      serviceAccountName: {{ include "dvae.name" (list . "ray-head") }}
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
          env: {{- include "dvae.env" (list . "dvae.pipelineEnv" .Values.head.env) | nindent 12 }}
          lifecycle:
            preStop: {exec: {command: [python, -m, deploy, keep-logs]}} # before the logs are lost
          volumeMounts:
            - {name: tmp, mountPath: /tmp}
            - {name: shm, mountPath: /dev/shm}
            - {name: mirror, mountPath: /mirror}
            - {name: site, mountPath: /etc/dvae, readOnly: true}
            {{- with include "dvae.extraMounts" .Values.head }}{{ . | nindent 12 }}{{- end }}
      volumes:
        - {name: tmp, emptyDir: {}}
        - name: shm
          emptyDir: {medium: Memory, sizeLimit: {{ .Values.head.shm | quote }}}
        - name: mirror
          emptyDir: {sizeLimit: 1Gi}
        {{- include "dvae.siteVolume" . | nindent 8 }}
        {{- with include "dvae.extraVolumes" .Values.head }}{{ . | nindent 8 }}{{- end }}
workerGroupSpecs:
{{- range $name, $given := .Values.groups }}
{{- $group := include "dvae.group" (list $ $given) | fromJson }}
{{- if $group.enabled }}
{{- $resources := deepCopy $group.resources }}
{{- if $group.gpus }}{{ $_ := set $resources $group.gpuResource (int $group.gpus) }}{{ end }}
{{- $seconds := int $group.terminationGracePeriodSeconds }}
  - groupName: {{ $name | quote }}
    replicas: {{ int $group.min }}
    minReplicas: {{ int $group.min }}
    maxReplicas: {{ int $group.max }}
    {{- if and $autoscaled (not (kindIs "invalid" $group.idleTimeoutSeconds)) }}
    idleTimeoutSeconds: {{ int $group.idleTimeoutSeconds }}
    {{- end }}
    rayStartParams:
      {{- if $group.gpus }}
      # Ray's autoscaler takes a resource for GPUs only if its name ends in "gpu", and would never start such a pod.
      num-gpus: {{ int $group.gpus | toString | quote }}
      {{- end }}
      object-store-memory: {{ include "dvae.objectStore" $group.shm | quote }}
      resources: {{ printf "'{%q: 1}'" (printf "pool-%s" $name) | quote }}
    labels:
      denoising-vae/pool: {{ $name | quote }}
    template:
      metadata:
        labels: {{- include "dvae.podLabels" (list $ "ray" (dict "denoising-vae/ray-node" "worker" "denoising-vae/pool" $name) $group.podLabels) | nindent 10 }}
        {{- with $group.annotations }}
        annotations: {{- toYaml . | nindent 10 }}
        {{- end }}
      spec:
        serviceAccountName: {{ include "dvae.name" (list $ "ray") }}
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
            env: {{- include "dvae.env" (list $ "dvae.pipelineEnv" $group.env) | nindent 14 }}
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
              {{- with include "dvae.extraMounts" $group }}{{ . | nindent 14 }}{{- end }}
        volumes:
          - {name: tmp, emptyDir: {}}
          - name: shm
            emptyDir: {medium: Memory, sizeLimit: {{ $group.shm | quote }}}
          - name: mirror
            {{- include "dvae.disk" (list $ "ray" $group.mirror) | nindent 12 }}
          {{- include "dvae.siteVolume" $ | nindent 10 }}
          {{- with include "dvae.extraVolumes" $group }}{{ . | nindent 10 }}{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The spec for a RayJob's cluster: without an upgrade strategy and GCS fault tolerance, which it does not need. */}}
{{- define "dvae.shortLivedSpec" -}}
{{- omit (include "dvae.rayClusterSpec" . | fromYaml) "upgradeStrategy" "gcsFaultToleranceOptions" | toYaml -}}
{{- end -}}
