{{/* What the schema can't say, or would repeat a secret to say. All that is wrong is told together. */}}
{{- define "towline-agent.checks" -}}
{{- $v := .Values -}}
{{- $wrong := list -}}
{{- $inline := or $v.oidc.ca $v.authenticationConfig $v.entraConfig $v.introspectionConfig -}}
{{- $authentication := or (not (empty $v.authenticationConfig)) (has "authentication.yaml" $v.issuerFiles.keys) -}}
{{- $entra := or (not (empty $v.entraConfig)) (has "entra.yaml" $v.issuerFiles.keys) -}}
{{- if not (or $v.oidc.issuerUrl $authentication $entra) -}}
{{- $wrong = append $wrong "whose tokens for this cluster are taken? Set oidc.issuerUrl, authenticationConfig or entraConfig" -}}
{{- end -}}
{{- if and $v.oidc.issuerUrl $authentication -}}
{{- $wrong = append $wrong "oidc.issuerUrl stands beside authenticationConfig, which says all issuers: set one of them" -}}
{{- end -}}
{{- if and $inline $v.issuerFiles.configMap -}}
{{- $wrong = append $wrong "issuerFiles.configMap takes the place of oidc.ca, authenticationConfig, entraConfig and introspectionConfig: set it, or them" -}}
{{- end -}}
{{- if and $v.issuerFiles.keys (not $v.issuerFiles.configMap) -}}
{{- $wrong = append $wrong "issuerFiles.keys are of which ConfigMap? Set issuerFiles.configMap" -}}
{{- end -}}
{{- if and $v.enrolment.token $v.enrolment.existingSecret -}}
{{- $wrong = append $wrong "enrolment.token and enrolment.existingSecret are both set: set one of them" -}}
{{- end -}}
{{- if and $v.enrolment.token (not (hasPrefix "tle1." (trim $v.enrolment.token))) -}}
{{- $wrong = append $wrong "enrolment.token is no enrolment token: give the file that has it, --set-file enrolment.token=FILE" -}}
{{- end -}}
{{- if and $v.secondRelay.url (not $v.secondRelay.existingSecret) -}}
{{- $wrong = append $wrong "secondRelay.url is of which relay? Set secondRelay.existingSecret, the Secret with its enrolment token" -}}
{{- end -}}
{{- if and $v.secondRelay.existingSecret (eq $v.secondRelay.existingSecret (include "towline-agent.enrolment" (dict "root" . "name" (include "towline-agent.agent" .)))) (eq $v.secondRelay.key $v.enrolment.key) -}}
{{- $wrong = append $wrong "secondRelay.existingSecret and secondRelay.key are the first relay's: its token is another one" -}}
{{- end -}}
{{- range $name := list "relay" "proxy" -}}
{{- $of := index $v $name -}}
{{- if gt (len (compact (list $of.ca $of.caConfigMap $of.caSecret))) 1 -}}
{{- $wrong = append $wrong (printf "%s.ca, %s.caConfigMap, %s.caSecret: set one of them" $name $name $name) -}}
{{- end -}}
{{- end -}}
{{- range $name, $pem := dict "relay.ca" $v.relay.ca "proxy.ca" $v.proxy.ca "oidc.ca" $v.oidc.ca -}}
{{- if and $pem (not (contains "-----BEGIN CERTIFICATE-----" $pem)) -}}
{{- $wrong = append $wrong (printf "%s has no certificate (PEM): give the file that has it, --set-file %s=FILE" $name $name) -}}
{{- end -}}
{{- end -}}
{{- range $name, $url := dict "proxy.https" $v.proxy.https "proxy.http" $v.proxy.http -}}
{{- if contains "@" $url -}}
{{- $wrong = append $wrong (printf "%s has credentials in it, which anybody who may read ConfigMaps would see: put them into a Secret, proxy.credentialsSecret" $name) -}}
{{- else if and $url (not (regexMatch "^https?://[^/]+/?$" $url)) -}}
{{- $wrong = append $wrong (printf "%s is no proxy's URL, such as http://proxy.example.com:3128" $name) -}}
{{- end -}}
{{- end -}}
{{- if eq $v.mode "impersonate" -}}
{{- range $v.impersonation.groups -}}
{{- if hasPrefix "system:" . -}}
{{- $wrong = append $wrong (printf "impersonation.groups: %s is none of people's groups: names that begin with system: are refused by the agent" .) -}}
{{- end -}}
{{- end -}}
{{- if and (semverCompare "<1.36.0-0" $.Capabilities.KubeVersion.Version) (not (or $v.impersonation.groups $v.impersonation.anyGroup)) -}}
{{- $wrong = append $wrong (printf "Kubernetes %s has no constrained impersonation, which came with 1.36: list your people's groups in impersonation.groups (for `helm template`, --kube-version says the cluster's version)" $.Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- else if or $v.impersonation.groups $v.impersonation.anyGroup $v.impersonation.serviceAccounts -}}
{{- $wrong = append $wrong "impersonation.groups, impersonation.anyGroup and impersonation.serviceAccounts mean nothing with mode passthrough: nobody is impersonated" -}}
{{- end -}}
{{- if ne (empty $v.roles.max) (empty $v.roles.organisationKey) -}}
{{- $wrong = append $wrong "roles.max and roles.organisationKey: set both, or neither" -}}
{{- end -}}
{{- if and $v.roles.max (ne $v.mode "impersonate") -}}
{{- $wrong = append $wrong "roles.max means nothing with mode passthrough: a token that is passed on gets no group" -}}
{{- end -}}
{{- if and $v.audit.stdout $v.audit.volume -}}
{{- $wrong = append $wrong "audit.stdout and audit.volume are both set: set one of them" -}}
{{- end -}}
{{- if $wrong -}}
{{- fail (printf "\n\n- %s\n" (join "\n- " $wrong)) -}}
{{- end -}}
{{- end -}}
