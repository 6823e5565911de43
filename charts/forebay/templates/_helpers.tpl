{{/* Labels of everything in the chart; takes (dict "root" $ "component" NAME). */}}
{{- define "forebay.labels" -}}
{{ include "forebay.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{/* Labels that pods are selected by; they never change. */}}
{{- define "forebay.selector" -}}
app.kubernetes.io/name: forebay
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "forebay.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "forebay.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{/* Cluster-wide names carry the release's, so that a second release fails on the CSIDriver with a clear message and nowhere else. */}}
{{- define "forebay.clusterName" -}}
{{ .root.Release.Name }}-{{ .component }}
{{- end }}

{{/* The command of a probe of the FUSE server; takes (dict "root" $ "question" QUESTION). */}}
{{- define "forebay.fuseProbe" -}}
[/forebay-fuse, {{ printf "--broker=%s/broker.sock" .root.Values.runDir | quote }}, --probe={{ .question }}]
{{- end }}
