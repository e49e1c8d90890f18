{{/* Every template begins with this: values that are null, or that `helm upgrade --reuse-values` brings from a chart that
did not have them yet, are the chart's own; then the whole is validated. It changes .Values, which all templates share, and
does so once. defaults.json has the chart's values by their paths, since Helm shows templates no default that it dropped. */}}
{{- define "dvae.prepare" -}}
{{- if not (hasKey . "Prepared") -}}
{{- $_ := set . "Prepared" true -}}
{{- include "dvae.dropNulls" (list .Values "") -}}
{{- $defaults := .Files.Get "defaults.json" | fromJson -}}
{{- range $path, $default := $defaults -}}
{{- include "dvae.fill" (list $.Values (splitList "." $path) $default) -}}
{{- end -}}
{{- include "dvae.dropParts" (list .Values.site.extra "cluster.device" "cluster.pools") -}}
{{- include "dvae.dropParts" (list .Values.retrain.config) -}}
{{- range $name, $group := .Values.groups -}}
{{- range $key, $default := dig "groups" $name dict $defaults -}}
{{- if kindIs "map" $default -}}
{{- range $inner, $value := $default -}}{{- include "dvae.fill" (list $group (list $key $inner) $value) -}}{{- end -}}
{{- else -}}
{{- include "dvae.fill" (list $group (list $key) $default) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- include "dvae.validate" . -}}
{{- end -}}
{{- end -}}

{{/* Remove every key whose value is null, at any depth: (list map "path."). In the parts that are a config of the pipeline
null may be a value. */}}
{{- define "dvae.dropNulls" -}}
{{- $map := index . 0 -}}
{{- $path := index . 1 -}}
{{- range $key, $value := $map -}}
{{- if kindIs "invalid" $value -}}
{{- $_ := unset $map $key -}}
{{- else if and (kindIs "map" $value) (not (has (print $path $key) (list "site.extra" "retrain.config"))) -}}
{{- include "dvae.dropNulls" (list $value (printf "%s%s." $path $key)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Set a value at a path unless there is one: (list map (list "names" "of" "the" "path") value). */}}
{{- define "dvae.fill" -}}
{{- $here := index . 0 -}}
{{- $names := index . 1 -}}
{{- range initial $names -}}
{{- if not (hasKey $here .) -}}{{- $_ := set $here . dict -}}{{- end -}}
{{- $here = index $here . -}}
{{- end -}}
{{- if not (hasKey $here (last $names)) -}}{{- $_ := set $here (last $names) (index . 2) -}}{{- end -}}
{{- end -}}

{{/* In a config of the pipeline: remove the sections that are null, which the pipeline does not take, and what is null of
what the chart gives: (list config "section.key" ...). */}}
{{- define "dvae.dropParts" -}}
{{- $config := index . 0 -}}
{{- range $name, $section := $config -}}{{- if kindIs "invalid" $section -}}{{- $_ := unset $config $name -}}{{- end -}}{{- end -}}
{{- range rest . -}}
{{- $names := splitList "." . -}}
{{- $section := index $config (first $names) | default dict -}}
{{- if kindIs "invalid" (index $section (last $names)) -}}{{- $_ := unset $section (last $names) -}}{{- end -}}
{{- end -}}
{{- end -}}
