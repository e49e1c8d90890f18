{{/* Every refusal of this chart: what values.schema.json cannot say, since it takes several values, the release's name or
the cluster to see. A message has the value's path, what is wrong with it, and what to do. */}}

{{- define "dvae.validate" -}}
{{- include "dvae.validateCluster" . -}}
{{- include "dvae.validateNeeded" . -}}
{{- include "dvae.validateGroups" . -}}
{{- include "dvae.validateStages" . -}}
{{- include "dvae.validateRetrain" . -}}
{{- include "dvae.validateNetwork" . -}}
{{- include "dvae.validateSecurity" . -}}
{{- include "dvae.validateLabels" . -}}
{{- include "dvae.validateEnvironments" . -}}
{{- include "dvae.validateVolumes" . -}}
{{- end -}}

{{/* RayCronJob exists since KubeRay 1.6. Without a cluster (helm template) neither kind is known. */}}
{{- define "dvae.validateCluster" -}}
{{- if and (.Capabilities.APIVersions.Has "ray.io/v1/RayCluster") (not (.Capabilities.APIVersions.Has "ray.io/v1/RayCronJob")) -}}
{{- fail "KubeRay's CRDs in this cluster are older than 1.6: apply newer ones, then upgrade its operator (docs/operations.md, Upgrade)" -}}
{{- end -}}
{{- end -}}

{{- define "dvae.validateNeeded" -}}
{{- if not .Values.site.root -}}{{- fail "site.root: set the location of the artifacts, s3://BUCKET/PREFIX" -}}{{- end -}}
{{- if .Values.site.extra.root -}}{{- fail "site.extra.root: set site.root, which MLflow's artifacts go by too" -}}{{- end -}}
{{- range $path, $uri := dict "site.root" .Values.site.root "mlflow.artifactRoot" .Values.mlflow.artifactRoot -}}
{{- if regexMatch "[#?]" $uri -}}{{- fail (printf "%s: %s contains # or ?, where most programs take the path to end; choose another prefix" $path $uri) -}}{{- end -}}
{{- end -}}
{{- if not .Values.auth.existingSecret -}}{{- fail "auth.existingSecret: set the name of the Secret with Ray's token under auth_token" -}}{{- end -}}
{{- if and .Values.kueue.enabled (not .Values.kueue.queueName) -}}{{- fail "kueue.queueName: set the name of a LocalQueue" -}}{{- end -}}
{{- $name := include "dvae.fullname" . -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- fail (printf "fullnameOverride: %q is not a valid Service name (letters, digits and -, starting with a letter); choose another, or another release name" $name) -}}
{{- end -}}
{{- with .Values.mlflow -}}
{{- if and (not .enabled) (not .externalUri) -}}{{- fail "mlflow.externalUri: set the URI of MLflow, or enable MLflow in this release with mlflow.enabled" -}}{{- end -}}
{{- if and .enabled .basicAuth.enabled (not .basicAuth.existingSecret) -}}{{- fail "mlflow.basicAuth.existingSecret: set the name of the Secret with users and passwords" -}}{{- end -}}
{{- end -}}
{{- with .Values.head.gcsFaultTolerance -}}
{{- if and .enabled (not .redisAddress) -}}{{- fail "head.gcsFaultTolerance.redisAddress: set the address of Redis" -}}{{- end -}}
{{- if and .enabled .usernameKey (not .existingSecret) -}}{{- fail "head.gcsFaultTolerance.existingSecret: set the name of the Secret with the user" -}}{{- end -}}
{{- end -}}
{{- end -}}

{{- define "dvae.validateGroups" -}}
{{- include "dvae.checkMemory" (list "head" .Values.head) -}}
{{- include "dvae.checkDisk" (list "head" .Values.head (dict "size" "1Gi")) -}}
{{- $enabled := 0 -}}
{{- range $name, $given := .Values.groups -}}
{{- $group := include "dvae.group" (list $ $given) | fromJson -}}
{{- if $group.enabled -}}
{{- $enabled = add1 $enabled -}}
{{- include "dvae.checkGroup" (list (printf "groups.%s" $name) $group) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.kueue.enabled (or (gt (int $enabled) 7) (hasKey .Values.groups "head")) -}}
{{- fail "groups: Kueue takes at most 7 groups, and none named head" -}}
{{- end -}}
{{- end -}}

{{/* (list "path.of.the.group" group). */}}
{{- define "dvae.checkGroup" -}}
{{- $path := index . 0 -}}
{{- $group := index . 1 -}}
{{- if not (and $group.resources.cpu $group.resources.memory) -}}{{- fail (printf "%s.resources: set cpu and memory" $path) -}}{{- end -}}
{{- if gt (int $group.min) (int $group.max) -}}{{- fail (printf "%s: min %v exceeds max %v" $path $group.min $group.max) -}}{{- end -}}
{{- include "dvae.checkMemory" . -}}
{{- include "dvae.checkDisk" (list $path $group $group.mirror) -}}
{{- if and $group.spot.enabled (not $group.spot.nodeSelector) (not $group.spot.tolerations) -}}
{{- fail (printf "%s.spot: select the spot nodes by nodeSelector or tolerations" $path) -}}
{{- end -}}
{{- range $name, $_ := $group.resources -}}
{{- if or (eq $name $group.gpuResource) (regexMatch "/gpu([.-].*)?$|/mig-|^gpu\\.intel\\.com/(i915|xe)$" $name) -}}
{{- fail (printf "%s.resources.%s: give the number of GPUs by %s.gpus, which Ray is told too, and their resource's name by %s.gpuResource" $path $name $path $path) -}}
{{- end -}}
{{- end -}}
{{- if and (gt (int $group.gpus) 1) (regexMatch "/mig-|\\.shared$" $group.gpuResource) -}}
{{- fail (printf "%s.gpus: %v of %s in a pod are no more than one to a process: CUDA sees the first MIG slice alone, and shares of one GPU are one device. Set gpus to 1 and raise %s.max" $path $group.gpus $group.gpuResource $path) -}}
{{- end -}}
{{- end -}}

{{/* /dev/shm holds Ray's object store, whose least is 75Mi, and counts as memory of the pod: (list "path" value). */}}
{{- define "dvae.checkMemory" -}}
{{- $path := index . 0 -}}
{{- $value := index . 1 -}}
{{- if lt (int64 (include "dvae.objectStore" $value.shm)) 78643200 -}}
{{- fail (printf "%s.shm: %s is too small: Ray keeps its objects in 95%% of it and does not start with less than 75Mi; set 80Mi or more" $path $value.shm) -}}
{{- end -}}
{{- if ge (int64 (include "dvae.bytes" $value.shm)) (int64 (include "dvae.bytes" $value.resources.memory)) -}}
{{- fail (printf "%s.shm: %s is not less than the memory (%v), which includes it" $path $value.shm $value.resources.memory) -}}
{{- end -}}
{{- end -}}

{{/* An emptyDir on disk counts as ephemeral storage of its pod: (list "path" value mirror). */}}
{{- define "dvae.checkDisk" -}}
{{- $disk := index (index . 1).resources "ephemeral-storage" -}}
{{- $mirror := index . 2 -}}
{{- if and $disk (not $mirror.storageClassName) -}}
{{- if le (int64 (include "dvae.bytes" $disk)) (int64 (include "dvae.bytes" $mirror.size)) -}}
{{- fail (printf "%s.resources.ephemeral-storage: %s is not more than the mirror (%s), which counts against it, so the pod would be evicted; raise it by what logs and /tmp need, %s" (index . 0) $disk $mirror.size (ternary "remove it, or set the mirror's storageClassName" "or remove it" (hasKey $mirror "storageClassName"))) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "dvae.validateStages" -}}
{{- range $stage, $pool := .Values.stagePools -}}
{{- if not (hasKey $.Values.groups $pool) -}}
{{- fail (printf "stagePools.%s: unknown group %q; use one of %s" $stage $pool (keys $.Values.groups | sortAlpha | join ", ")) -}}
{{- end -}}
{{- if not (include "dvae.group" (list $ (index $.Values.groups $pool)) | fromJson).enabled -}}
{{- fail (printf "stagePools.%s: group %q is not enabled" $stage $pool) -}}
{{- end -}}
{{- end -}}
{{- $device := include "dvae.device" . -}}
{{- range $stage, $pool := omit .Values.stagePools "prepare" "classifier" "register" -}}
{{- $group := include "dvae.group" (list $ (index $.Values.groups $pool)) | fromJson -}}
{{- if ne (eq $device "cuda") (gt (int $group.gpus) 0) -}}
{{- fail (printf "stagePools.%s: group %q has %v GPUs per pod, but the device of such stages is %s (from the trainers' groups, or site.extra.cluster.device)" $stage $pool $group.gpus $device) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "dvae.validateRetrain" -}}
{{- $own := .Values.retrain -}}
{{- if $own.enabled -}}
{{- if not (or $own.preset $own.config) -}}{{- fail "retrain.preset: set the name of a preset, or define one under retrain.config" -}}{{- end -}}
{{- if and $own.preset $own.config -}}{{- fail "retrain.config: set either retrain.config or retrain.preset; name a parent preset with retrain.config.extends" -}}{{- end -}}
{{- if not .Values.rayCluster.enabled -}}{{- fail "retrain.enabled: requires the standing cluster; set rayCluster.enabled" -}}{{- end -}}
{{- if not (include "dvae.autoscaled" .) -}}
{{- range $stage, $pool := .Values.stagePools -}}
{{- if not (include "dvae.group" (list $ (index $.Values.groups $pool)) | fromJson).min -}}
{{- fail (printf "groups.%s.min: the cluster has no autoscaler, so %s would wait forever; set it to 1 or more" $pool $stage) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "dvae.validateNetwork" -}}
{{- $policy := .Values.networkPolicy -}}
{{- if $policy.enabled -}}
{{- $used := dict "s3" true "redis" .Values.head.gcsFaultTolerance.enabled "postgres" (and .Values.mlflow.enabled .Values.mlflow.database.existingSecret) "externalMlflow" (not .Values.mlflow.enabled) -}}
{{- range $name, $on := $used -}}
{{- $place := index $policy $name -}}
{{- if and $on (not (or $place.cidrs $place.podSelector $place.namespaceSelector)) -}}
{{- fail (printf "networkPolicy.%s: set its location by cidrs, podSelector or namespaceSelector" $name) -}}
{{- end -}}
{{- end -}}
{{- range concat $policy.s3.cidrs $policy.redis.cidrs $policy.postgres.cidrs $policy.externalMlflow.cidrs $policy.apiServerCidrs $policy.dns.cidrs -}}
{{- $bits := int (regexFind "[0-9]+$" .) -}}
{{- if and (gt $bits 0) (lt $bits 8) -}}
{{- fail (printf "networkPolicy: %s is too wide; give smaller ranges, or 0.0.0.0/0 or ::/0, from which networkPolicy.exceptCidrs are excluded" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* No value makes a pod less than the Pod Security level `restricted` wants. */}}
{{- define "dvae.validateSecurity" -}}
{{- $common := list "runAsNonRoot" "runAsUser" "runAsGroup" "seLinuxOptions" "seccompProfile" "appArmorProfile" -}}
{{- include "dvae.checkSecurity" (list "podSecurityContext" .Values.podSecurityContext (concat $common (list "fsGroup" "fsGroupChangePolicy" "supplementalGroups" "supplementalGroupsPolicy"))) -}}
{{- include "dvae.checkSecurity" (list "securityContext" .Values.securityContext (concat $common (list "allowPrivilegeEscalation" "readOnlyRootFilesystem" "capabilities"))) -}}
{{- end -}}

{{/* (list "path" context (list "keys" "that" "may" "be")). */}}
{{- define "dvae.checkSecurity" -}}
{{- $path := index . 0 -}}
{{- $context := index . 1 -}}
{{- $why := "the chart's pods fit the Pod Security level restricted" -}}
{{- range $key, $value := $context -}}
{{- if not (has $key (index $ 2)) -}}{{- fail (printf "%s.%s: not allowed: %s. What may be set: %s" $path $key $why (index $ 2 | sortAlpha | join ", ")) -}}{{- end -}}
{{- end -}}
{{- range $key, $needed := dict "runAsNonRoot" true "allowPrivilegeEscalation" false "readOnlyRootFilesystem" true "capabilities" (dict "drop" (list "ALL")) -}}
{{- if and (hasKey $context $key) (ne (toJson $needed) (toJson (index $context $key))) -}}{{- fail (printf "%s.%s: has to be %s: %s; remove it" $path $key (toJson $needed) $why) -}}{{- end -}}
{{- end -}}
{{- if and (hasKey $context "runAsUser") (lt (int64 $context.runAsUser) 1) -}}{{- fail (printf "%s.runAsUser: 0 is root; give another, or null where the cluster chooses it" $path) -}}{{- end -}}
{{- range $key := list "seccompProfile" "appArmorProfile" -}}
{{- with index $context $key -}}
{{- if not (has .type (list "RuntimeDefault" "Localhost")) -}}{{- fail (printf "%s.%s.type: has to be RuntimeDefault or Localhost: %s" $path $key $why) -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- with $context.seLinuxOptions -}}
{{- if or (hasKey . "user") (hasKey . "role") (not (has (.type | default "") (list "" "container_t" "container_init_t" "container_kvm_t"))) -}}
{{- fail (printf "%s.seLinuxOptions: only level, and the types container_t, container_init_t and container_kvm_t: %s" $path $why) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "dvae.validateLabels" -}}
{{- $given := dict "commonLabels" .Values.commonLabels "monitoring.podMonitor.labels" .Values.monitoring.podMonitor.labels "monitoring.dashboard.labels" .Values.monitoring.dashboard.labels "monitoring.alerts.labels" .Values.monitoring.alerts.labels -}}
{{- range $path, $part := include "dvae.podParts" . | fromJson -}}{{- $_ := set $given (printf "%s.podLabels" $path) $part.podLabels -}}{{- end -}}
{{- range $path, $labels := $given -}}
{{- range $name, $_ := $labels -}}
{{- if or (eq $name "kueue.x-k8s.io/queue-name") (regexMatch "^(app\\.kubernetes\\.io|helm\\.sh|ray\\.io|denoising-vae)/" $name) -}}
{{- fail (printf "%s: %s is the chart's own: by such labels policies, services and Ray find the pods; choose another" $path $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The parts of the values that make pods, by their paths, as JSON. */}}
{{- define "dvae.podParts" -}}
{{- $parts := dict "head" .Values.head "mlflow" .Values.mlflow "retrain" .Values.retrain "rayjob" .Values.rayjob -}}
{{- range $name, $given := .Values.groups -}}
{{- $_ := set $parts (printf "groups.%s" $name) (include "dvae.group" (list $ $given) | fromJson) -}}
{{- end -}}
{{- toJson $parts -}}
{{- end -}}

{{- define "dvae.validateEnvironments" -}}
{{- $own := dict "mlflow" "dvae.mlflowUsersEnv" "retrain" "dvae.retrainEnv" "rayjob" "dvae.homeEnv" -}}
{{- range $path, $part := include "dvae.podParts" . | fromJson -}}
{{- $variables := include (dig $path "dvae.pipelineEnv" $own) $ | fromYamlArray -}}
{{- include "dvae.checkEnv" (list (printf "%s.env" $path) $part.env $variables) -}}
{{- if ne $path "rayjob" -}}{{- include "dvae.checkEnv" (list "s3.env" $.Values.s3.env $variables) -}}{{- end -}}
{{- end -}}
{{- end -}}

{{/* (list "path" env variables), where variables are the container's own. */}}
{{- define "dvae.checkEnv" -}}
{{- $path := index . 0 -}}
{{- $taken := list "FQ_RAY_IP" "RAY_ADDRESS" "RAY_AUTH_MODE" "RAY_AUTH_TOKEN" "RAY_AUTH_TOKEN_PATH" "RAY_CLOUD_INSTANCE_ID" "RAY_CLUSTER_NAME" "RAY_DASHBOARD_ADDRESS" "RAY_IP" "RAY_JOB_SUBMISSION_ID" "RAY_NODE_TYPE_NAME" "RAY_PORT" "RAY_REDIS_ADDRESS" "REDIS_PASSWORD" -}}
{{- range index . 2 -}}{{- $taken = append $taken .name -}}{{- end -}}
{{- range $name, $value := index . 1 -}}
{{- if has $name $taken -}}{{- fail (printf "%s.%s: this variable is the chart's or KubeRay's; remove it, and set the value that it comes from" $path $name) -}}{{- end -}}
{{- if and (not (kindIs "map" $value)) (regexMatch "(SECRET|PASSWORD|TOKEN|ACCESS_KEY|API_KEY)$" $name) -}}
{{- fail (printf "%s.%s: a secret would lie in the release and in every pod's description; name where it is: {valueFrom: {secretKeyRef: {name: SECRET, key: KEY}}}" $path $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "dvae.validateVolumes" -}}
{{- range $path, $part := include "dvae.podParts" . | fromJson -}}
{{- $names := list -}}
{{- range $part.extraVolumes -}}
{{- if has .name (concat $names (list "tmp" "shm" "mirror" "site" "run" "data" "preset" "ray-logs" "shared-mem")) -}}
{{- fail (printf "%s.extraVolumes: the name %s is taken; choose another" $path .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- include "dvae.checkVolume" (list $path .) -}}
{{- end -}}
{{- $mounted := list -}}
{{- range $part.extraVolumeMounts -}}
{{- if not (has .name $names) -}}{{- fail (printf "%s.extraVolumeMounts: no volume of %s.extraVolumes is named %s" $path $path .name) -}}{{- end -}}
{{- $where := trimSuffix "/" .mountPath -}}
{{- if has $where $mounted -}}{{- fail (printf "%s.extraVolumeMounts: two are at %s" $path .mountPath) -}}{{- end -}}
{{- $mounted = append $mounted $where -}}
{{- include "dvae.checkMount" (list $path $where) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* (list "path" volume): of the types that the Pod Security level restricted has. */}}
{{- define "dvae.checkVolume" -}}
{{- $path := index . 0 -}}
{{- $volume := index . 1 -}}
{{- $types := list "configMap" "csi" "downwardAPI" "emptyDir" "ephemeral" "persistentVolumeClaim" "projected" "secret" -}}
{{- $given := keys (omit $volume "name") -}}
{{- if or (ne (len $given) 1) (not (has (first $given) $types)) -}}
{{- fail (printf "%s.extraVolumes: %s is of the type %s; the Pod Security level restricted has %s, one of them for each volume" $path $volume.name ($given | sortAlpha | join " and " | default "none") (join ", " $types)) -}}
{{- end -}}
{{- range dig "projected" "sources" list $volume -}}
{{- if hasKey . "serviceAccountToken" -}}
{{- $audience := .serviceAccountToken.audience | default "" -}}
{{- if regexMatch "^((https?://)?kubernetes(\\.default(\\.svc.*)?)?/?)?$" $audience -}}
{{- fail (printf "%s.extraVolumes: %s has a service account's token %s, which opens Kubernetes' API; give the audience that it is for" $path $volume.name (ternary (printf "for %s" $audience) "without an audience" (ne $audience ""))) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* (list "path" "/mount/path"): neither a folder that the image or the chart has, nor inside of it, nor above it. */}}
{{- define "dvae.checkMount" -}}
{{- $path := index . 0 -}}
{{- $where := index . 1 -}}
{{- $own := list "/bin" "/boot" "/dev" "/etc/dvae" "/etc/dvae-retrain" "/etc/passwd" "/lib" "/lib64" "/mirror" "/opt/venv" "/proc" "/run/secrets" "/sbin" "/sys" "/tmp" "/usr" "/var/run/secrets" "/work" -}}
{{- if eq $path "mlflow" -}}{{- $own = concat $own (list "/data" "/run/mlflow") -}}{{- end -}}
{{- range $own -}}
{{- if or (hasPrefix (print . "/") (print $where "/")) (hasPrefix (print $where "/") (print . "/")) (contains "/../" (print $where "/")) (contains "/./" (print $where "/")) -}}
{{- fail (printf "%s.extraVolumeMounts: a mount at %s would lie over or inside of %s, which the pods need as it is; choose another path" $path (default "/" $where) .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
