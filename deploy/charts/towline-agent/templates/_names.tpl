{{/* What all names begin with: the release's name without -agent, so that `helm install towline-agent` gives towline-agent and towline-impersonator. */}}
{{- define "towline-agent.stem" -}}
{{- .Values.nameOverride | default (trimSuffix "-agent" .Release.Name) | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* The agent's account, and everything that belongs to it. */}}
{{- define "towline-agent.agent" -}}{{ include "towline-agent.stem" . }}-agent{{- end -}}

{{/* The account that impersonates. */}}
{{- define "towline-agent.impersonator" -}}{{ include "towline-agent.stem" . }}-impersonator{{- end -}}

{{/* The Secret with the cluster's identity. */}}
{{- define "towline-agent.state" -}}{{ include "towline-agent.agent" . }}-state{{- end -}}

{{/* The preflight's copy of everything. */}}
{{- define "towline-agent.preflight" -}}{{ include "towline-agent.stem" . }}-preflight{{- end -}}

{{/* Which pods are whose. `.name` is towline-agent or towline-agent-preflight. */}}
{{- define "towline-agent.selector" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end -}}

{{- define "towline-agent.labels" -}}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version | replace "+" "_" }}
{{ include "towline-agent.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end -}}

{{/*
Name, namespace (the release's unless there is a `.namespace`; not for `.cluster` scope), labels and, for the preflight's copies, when they come and go: `.weight` is a
hook's, empty for what stays. Copies are made anew each time, and go once the preflight has passed.
*/}}
{{- define "towline-agent.metadata" -}}
name: {{ .name }}
{{- if not .cluster }}
namespace: {{ .namespace | default .root.Release.Namespace }}
{{- end }}
labels:
  {{- include "towline-agent.labels" (dict "root" .root "name" (ternary "towline-agent-preflight" "towline-agent" (not (empty .weight)))) | nindent 2 }}
{{- with .weight }}
annotations:
  helm.sh/hook: pre-install,pre-upgrade
  helm.sh/hook-weight: {{ . | quote }}
  helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}
{{- end -}}
