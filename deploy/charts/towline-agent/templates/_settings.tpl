{{/* Where files are, in the container. */}}
{{- define "towline-agent.folder" -}}/etc/towline{{- end -}}

{{/* Flags of `towline-agent run`, as its --help names their variables; only those that were set. */}}
{{- define "towline-agent.environment" -}}
{{- $v := .Values -}}
{{- $folder := include "towline-agent.folder" . -}}
{{- $texts := dict
  "RELAY" $v.relay.url
  "OIDC_ISSUER_URL" $v.oidc.issuerUrl
  "OIDC_CLIENT_ID" $v.oidc.clientId
  "OIDC_USERNAME_CLAIM" $v.oidc.usernameClaim
  "OIDC_USERNAME_PREFIX" $v.oidc.usernamePrefix
  "OIDC_GROUPS_CLAIM" $v.oidc.groupsClaim
  "OIDC_GROUPS_PREFIX" $v.oidc.groupsPrefix
  "OIDC_REQUIRED_CLAIM" (join "," $v.oidc.requiredClaims)
  "OIDC_SIGNING_ALGS" (join "," $v.oidc.signingAlgs)
  "MAX_TOKEN_AGE" $v.maxTokenAge
  "MAX_RELAY_ROLE" $v.roles.max
  "ORGANISATION_KEY" $v.roles.organisationKey
  "MAX_BUFFERED_BYTES" $v.limits.maxBufferedBytes
  "DRAIN_TIMEOUT" $v.drainTimeout
  "RESUME_TIMEOUT" $v.resumeTimeout
  "AUDIT_LOG_SIZE" $v.audit.size
  "METRICS_LISTEN" $v.metrics.listen
  "PROXY_HTTPS" $v.proxy.https
  "PROXY_HTTP" $v.proxy.http
  "PROXY_SKIP_RANGE" (join "," $v.proxy.skipRange)
-}}
{{- if or $v.relay.ca $v.relay.caConfigMap $v.relay.caSecret -}}
{{- $_ := set $texts "RELAY_CA_FILE" (printf "%s/relay/ca.pem" $folder) -}}
{{- end -}}
{{- if $v.secondRelay.existingSecret -}}
{{- $_ := set $texts "SECOND_ENROLMENT_TOKEN_FILE" (printf "%s/second-enrolment/%s" $folder $v.secondRelay.key) -}}
{{- $_ := set $texts "SECOND_RELAY" $v.secondRelay.url -}}
{{- if $texts.RELAY_CA_FILE -}}
{{- $_ := set $texts "SECOND_RELAY_CA_FILE" $texts.RELAY_CA_FILE -}}
{{- end -}}
{{- end -}}
{{- if or $v.proxy.ca $v.proxy.caConfigMap $v.proxy.caSecret -}}
{{- $_ := set $texts "PROXY_CERT" (printf "%s/proxy/ca.pem" $folder) -}}
{{- end -}}
{{- if $v.proxy.credentialsSecret -}}
{{- $_ := set $texts "PROXY_CREDENTIALS_FILE" (printf "%s/proxy-credentials/credentials" $folder) -}}
{{- end -}}
{{- if $v.proxy.configSecret -}}
{{- $_ := set $texts "PROXY_CONFIG" (printf "%s/proxy-config/%s" $folder $v.proxy.configKey) -}}
{{- end -}}
{{- $keys := $v.issuerFiles.keys -}}
{{- if or $v.oidc.ca (has "ca.pem" $keys) -}}
{{- $_ := set $texts "OIDC_CA_FILE" (printf "%s/issuer/ca.pem" $folder) -}}
{{- end -}}
{{- if or (not (empty $v.authenticationConfig)) (has "authentication.yaml" $keys) -}}
{{- $_ := set $texts "AUTHENTICATION_CONFIG" (printf "%s/issuer/authentication.yaml" $folder) -}}
{{- end -}}
{{- if or (not (empty $v.entraConfig)) (has "entra.yaml" $keys) -}}
{{- $_ := set $texts "ENTRA_CONFIG" (printf "%s/issuer/entra.yaml" $folder) -}}
{{- end -}}
{{- if or (not (empty $v.introspectionConfig)) (has "introspection.yaml" $keys) -}}
{{- $_ := set $texts "INTROSPECTION_CONFIG" (printf "%s/issuer/introspection.yaml" $folder) -}}
{{- end -}}
{{- if ne $v.mode "impersonate" -}}
{{- $_ := set $texts "MODE" $v.mode -}}
{{- end -}}
{{- if $v.issuerViaRelay -}}
{{- $_ := set $texts "ISSUER_VIA_RELAY" "true" -}}
{{- end -}}
{{- if $v.noSpare -}}
{{- $_ := set $texts "NO_SPARE" "true" -}}
{{- end -}}
{{- if $v.allowSystemMasters -}}
{{- $_ := set $texts "ALLOW_SYSTEM_MASTERS" "true" -}}
{{- end -}}
{{- if $v.allowServiceAccountTokens -}}
{{- $_ := set $texts "ALLOW_SERVICE_ACCOUNT_TOKENS" "true" -}}
{{- end -}}
{{- if or $v.audit.stdout (and (kindIs "invalid" $v.audit.stdout) (not $v.audit.volume)) -}}
{{- $_ := set $texts "AUDIT_LOG" "-" -}}
{{- else if $v.audit.volume -}}
{{- $_ := set $texts "AUDIT_LOG" "/var/log/towline/audit.log" -}}
{{- end -}}
{{- /* Zero is a number, too. */ -}}
{{- range $name, $number := dict
  "MAX_STREAMS" $v.limits.maxStreams
  "MAX_STREAMS_PER_USER" $v.limits.maxStreamsPerUser
  "BULK_LINES" $v.bulkLines
  "AUDIT_LOG_FILES" $v.audit.files
-}}
{{- if not (kindIs "invalid" $number) -}}
{{- $_ := set $texts $name ($number | int64 | toString) -}}
{{- end -}}
{{- end -}}
{{- $environment := dict -}}
{{- range $name, $text := $texts -}}
{{- if $text -}}
{{- $_ := set $environment (printf "TOWLINE_AGENT_%s" $name) $text -}}
{{- end -}}
{{- end -}}
{{- with $v.log -}}
{{- $_ := set $environment "RUST_LOG" . -}}
{{- end -}}
{{- toYaml $environment -}}
{{- end -}}

{{/* A file that was given as text or as YAML. */}}
{{- define "towline-agent.text" -}}
{{- if kindIs "string" . }}{{ . }}{{ else }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{/* What is mounted at …/issuer, if anything: `.name` is whose. */}}
{{- define "towline-agent.issuerFiles" -}}
{{- $v := .root.Values -}}
{{- if or $v.oidc.ca $v.authenticationConfig $v.entraConfig $v.introspectionConfig -}}
{{ .name }}-issuer
{{- else -}}
{{ $v.issuerFiles.configMap }}
{{- end -}}
{{- end -}}

{{/* The Secret that has the enrolment token: `.name` is whose, where it was given as a value. */}}
{{- define "towline-agent.enrolment" -}}
{{- $v := .root.Values -}}
{{- if $v.enrolment.token -}}
{{ .name }}-enrolment
{{- else -}}
{{ $v.enrolment.existingSecret | default (printf "%s-enrolment" (include "towline-agent.agent" .root)) }}
{{- end -}}
{{- end -}}

{{/* ConfigMaps and the Secret that are made from values: `.root`, `.name` (of all), `.weight` (of a hook). */}}
{{- define "towline-agent.settings" -}}
{{- $v := .root.Values -}}
# Flags of `towline-agent run`, as its --help names their variables.
apiVersion: v1
kind: ConfigMap
metadata:
  {{- include "towline-agent.metadata" . | nindent 2 }}
data:
  {{- include "towline-agent.environment" .root | nindent 2 }}
{{- if or $v.oidc.ca $v.authenticationConfig $v.entraConfig $v.introspectionConfig }}
---
apiVersion: v1
kind: ConfigMap
metadata:
  {{- include "towline-agent.metadata" (dict "root" .root "weight" .weight "name" (printf "%s-issuer" .name)) | nindent 2 }}
data:
  {{- with $v.oidc.ca }}
  ca.pem: {{ . | quote }}
  {{- end }}
  {{- with $v.authenticationConfig }}
  authentication.yaml: {{ include "towline-agent.text" . | quote }}
  {{- end }}
  {{- with $v.entraConfig }}
  entra.yaml: {{ include "towline-agent.text" . | quote }}
  {{- end }}
  {{- with $v.introspectionConfig }}
  introspection.yaml: {{ include "towline-agent.text" . | quote }}
  {{- end }}
{{- end }}
{{- range $of := list "relay" "proxy" }}
{{- with (index $v $of).ca }}
---
# Authorities beside the system's.
apiVersion: v1
kind: ConfigMap
metadata:
  {{- include "towline-agent.metadata" (dict "root" $.root "weight" $.weight "name" (printf "%s-%s-ca" $.name $of)) | nindent 2 }}
data:
  ca.pem: {{ . | quote }}
{{- end }}
{{- end }}
{{- with $v.enrolment.token }}
---
# Used once.
apiVersion: v1
kind: Secret
metadata:
  {{- include "towline-agent.metadata" (dict "root" $.root "weight" $.weight "name" (printf "%s-enrolment" $.name)) | nindent 2 }}
type: Opaque
stringData:
  {{ $v.enrolment.key }}: {{ . | quote }}
{{- end }}
{{- end -}}
