{{/*
A pod's spec, which meets pod security's `restricted`: `.root`, `.name` (its account, and of whom its settings are),
`.impersonator`, `.arguments` (of towline-agent), `.probes`.
*/}}
{{- define "towline-agent.pod" -}}
{{- $v := .root.Values -}}
{{- $namespace := .root.Release.Namespace -}}
{{- $folder := include "towline-agent.folder" .root -}}
{{- $issuer := include "towline-agent.issuerFiles" (dict "root" .root "name" .name) -}}
serviceAccountName: {{ .name }}
terminationGracePeriodSeconds: {{ $v.terminationGracePeriodSeconds | int64 }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile: {type: RuntimeDefault}
{{- if $v.hostNetwork }}
hostNetwork: true
dnsPolicy: ClusterFirstWithHostNet
{{- end }}
{{- with $v.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- with $v.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $v.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $v.tolerations }}
tolerations:
{{- toYaml . | nindent 0 }}
{{- end }}
{{- with $v.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $v.topologySpreadConstraints }}
topologySpreadConstraints:
{{- toYaml . | nindent 0 }}
{{- end }}
containers:
- name: agent
  image: {{ include "towline-agent.image" .root | quote }}
  imagePullPolicy: {{ $v.image.pullPolicy }}
  args: {{ toJson .arguments }}
  env:
  - {name: TOWLINE_AGENT_DATA_DIR, value: /data}
  - {name: TOWLINE_AGENT_STATE_SECRET, value: {{ $namespace }}/{{ include "towline-agent.state" .root }}}
  {{- if eq $v.mode "impersonate" }}
  - {name: TOWLINE_AGENT_IMPERSONATOR, value: {{ $namespace }}/{{ .impersonator }}}
  {{- end }}
  - {name: TOWLINE_AGENT_ENROLMENT_TOKEN_FILE, value: {{ $folder }}/enrolment/{{ $v.enrolment.key }}}
  {{- with $v.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  envFrom:
  - configMapRef: {name: {{ .name }}}
  {{- if and .probes $v.metrics.listen (not $v.hostNetwork) }}
  ports:
  - {name: metrics, containerPort: {{ regexFind "[0-9]+$" $v.metrics.listen }}}
  {{- end }}
  {{- if .probes }}
  # The agent listens on loopback alone, so its own program asks it.
  livenessProbe:
    exec: {command: [/towline-agent, health, --live]}
    periodSeconds: 30
    timeoutSeconds: 5
    failureThreshold: 4
  readinessProbe:
    exec: {command: [/towline-agent, health]}
    periodSeconds: 5
    timeoutSeconds: 5
  {{- end }}
  securityContext:
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    capabilities: {drop: [ALL]}
  {{- with $v.resources }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  volumeMounts:
  - {name: data, mountPath: /data}
  - {name: enrolment, mountPath: {{ $folder }}/enrolment, readOnly: true}
  {{- if $v.secondRelay.existingSecret }}
  - {name: second-enrolment, mountPath: {{ $folder }}/second-enrolment, readOnly: true}
  {{- end }}
  {{- if $issuer }}
  - {name: issuer, mountPath: {{ $folder }}/issuer, readOnly: true}
  {{- end }}
  {{- if $v.issuerSecret }}
  - {name: issuer-secret, mountPath: {{ $folder }}/issuer-secret, readOnly: true}
  {{- end }}
  {{- range $of := list "relay" "proxy" }}
  {{- with index $v $of }}
  {{- if or .ca .caConfigMap .caSecret }}
  - {name: {{ $of }}-ca, mountPath: {{ $folder }}/{{ $of }}, readOnly: true}
  {{- end }}
  {{- end }}
  {{- end }}
  {{- if $v.proxy.credentialsSecret }}
  - {name: proxy-credentials, mountPath: {{ $folder }}/proxy-credentials, readOnly: true}
  {{- end }}
  {{- if $v.proxy.configSecret }}
  - {name: proxy-config, mountPath: {{ $folder }}/proxy-config, readOnly: true}
  {{- end }}
  {{- if $v.audit.volume }}
  - {name: audit, mountPath: /var/log/towline}
  {{- end }}
volumes:
- name: data
  emptyDir: {medium: Memory, sizeLimit: 1Mi}
- name: enrolment
  secret: {secretName: {{ include "towline-agent.enrolment" (dict "root" .root "name" .name) }}, optional: true}
{{- with $v.secondRelay.existingSecret }}
- name: second-enrolment
  secret: {secretName: {{ . }}, optional: true}
{{- end }}
{{- with $issuer }}
- name: issuer
  configMap: {name: {{ . }}, optional: true}
{{- end }}
{{- with $v.issuerSecret }}
- name: issuer-secret
  secret: {secretName: {{ . }}}
{{- end }}
{{- $name := .name }}
{{- range $of := list "relay" "proxy" }}
{{- with index $v $of }}
{{- if .caSecret }}
- name: {{ $of }}-ca
  secret: {secretName: {{ .caSecret }}, items: [{key: {{ .caKey }}, path: ca.pem}]}
{{- else if .caConfigMap }}
- name: {{ $of }}-ca
  configMap: {name: {{ .caConfigMap }}, items: [{key: {{ .caKey }}, path: ca.pem}]}
{{- else if .ca }}
- name: {{ $of }}-ca
  configMap: {name: {{ $name }}-{{ $of }}-ca}
{{- end }}
{{- end }}
{{- end }}
{{- with $v.proxy.credentialsSecret }}
- name: proxy-credentials
  secret: {secretName: {{ . }}, items: [{key: {{ $v.proxy.credentialsKey }}, path: credentials}]}
{{- end }}
{{- with $v.proxy.configSecret }}
- name: proxy-config
  secret: {secretName: {{ . }}}
{{- end }}
{{- with $v.audit.volume }}
- name: audit
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "towline-agent.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end -}}
{{- end -}}
