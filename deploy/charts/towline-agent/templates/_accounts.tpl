{{/*
The two accounts and their rights: `.root`, `.name` (the agent's account), `.impersonator` (the other one), `.weight` (of a
hook, empty for what stays). The preflight's are copies: those that stay are not there yet before the first installation.
*/}}
{{- define "towline-agent.accounts" -}}
{{- $v := .root.Values -}}
{{- $namespace := .root.Release.Namespace -}}
{{- $impersonates := eq $v.mode "impersonate" -}}
{{- $own := dict "root" .root "name" .name "weight" .weight -}}
{{- $ownRole := dict "root" .root "name" .name "weight" .weight "cluster" true -}}
{{- $deputy := dict "root" .root "name" .impersonator "weight" .weight -}}
{{- $deputyRole := dict "root" .root "name" .impersonator "weight" .weight "cluster" true -}}
{{- $groups := printf "%s-groups" .impersonator -}}
{{- $groupsRole := dict "root" .root "name" $groups "weight" .weight "cluster" true -}}
{{- $any := printf "%s-any" .impersonator -}}
{{- $anyRole := dict "root" .root "name" $any "weight" .weight "cluster" true -}}
{{- /* Where there is a constraint, an unconstrained right beside it would be all that counts. */ -}}
{{- $unconstrained := semverCompare "<1.36.0-0" .root.Capabilities.KubeVersion.Version -}}
# The agent's own account. It may keep its state, request tokens for the next account, and ask who may impersonate whom;
# nothing else.
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "towline-agent.metadata" $own | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  {{- include "towline-agent.metadata" $own | nindent 2 }}
rules:
- apiGroups: [""]
  resources: [secrets]
  resourceNames: [{{ include "towline-agent.state" .root }}]
  verbs: [get, patch]
{{- if $impersonates }}
- apiGroups: [""]
  resources: [serviceaccounts/token]
  resourceNames: [{{ .impersonator }}]
  verbs: [create]
{{- end }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  {{- include "towline-agent.metadata" $own | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ .name }}
subjects:
- kind: ServiceAccount
  name: {{ .name }}
  namespace: {{ $namespace }}
{{- if $impersonates }}
---
# `kubectl --as`: whether the user may do that is asked of the cluster, part by part. The answer tells of rights, and gives none.
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  {{- include "towline-agent.metadata" $ownRole | nindent 2 }}
rules:
- apiGroups: [authorization.k8s.io]
  resources: [subjectaccessreviews]
  verbs: [create]
---
{{ include "towline-agent.binding" (dict "root" .root "name" .name "account" .name "weight" .weight) }}
---
# Requests go to kube-apiserver with this account's tokens, which live for an hour. It may do nothing but impersonate.
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "towline-agent.metadata" $deputy | nindent 2 }}
automountServiceAccountToken: false
---
# Kubernetes 1.36 and later (constrained impersonation, KEP-5284): users and groups, where kube-apiserver itself refuses
# system:masters, service accounts and nodes. What the user may then do is decided by the user's own roles.
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  {{- include "towline-agent.metadata" $deputyRole | nindent 2 }}
rules:
- apiGroups: [authentication.k8s.io]
  # The last one says who really asks, where somebody acts as somebody else. Further ones are the issuer's own.
  resources: {{ include "towline-agent.userinfo" (dict "plain" (list "users" "groups" "uids") "root" .root) }}
  verbs: ["impersonate:user-info"]
- apiGroups: ["*"]
  resources: ["*"]
  verbs:
  {{- range list "get" "list" "watch" "create" "update" "patch" "delete" "deletecollection" }}
  - impersonate-on:user-info:{{ . }}
  {{- end }}
- nonResourceURLs: ["*"]
  verbs:
  {{- range list "get" "head" "options" "post" "put" "patch" "delete" }}
  - impersonate-on:user-info:{{ . }}
  {{- end }}
---
{{ include "towline-agent.binding" (dict "root" .root "name" .impersonator "account" .impersonator "weight" .weight) }}
{{- if and $unconstrained $v.impersonation.groups }}
---
# Kubernetes before 1.36 knows no constraint: anybody's name, and the groups that are named here.
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  {{- include "towline-agent.metadata" $groupsRole | nindent 2 }}
rules:
- apiGroups: [""]
  resources: [users]
  verbs: [impersonate]
- apiGroups: [""]
  resources: [groups]
  resourceNames: {{ concat (list "system:authenticated") $v.impersonation.groups | toJson }}
  verbs: [impersonate]
- apiGroups: [authentication.k8s.io]
  resources: {{ include "towline-agent.userinfo" (dict "plain" (list "uids") "root" .root) }}
  verbs: [impersonate]
---
{{ include "towline-agent.binding" (dict "root" .root "name" $groups "account" .impersonator "weight" .weight) }}
{{- end }}
{{- if and $unconstrained $v.impersonation.anyGroup }}
---
# The same with any group, system:masters among them: whoever has that account's token can then be the cluster's
# administrator.
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  {{- include "towline-agent.metadata" $anyRole | nindent 2 }}
rules:
- apiGroups: [""]
  resources: [users, groups]
  verbs: [impersonate]
- apiGroups: [authentication.k8s.io]
  resources: {{ include "towline-agent.userinfo" (dict "plain" (list "uids") "root" .root) }}
  verbs: [impersonate]
---
{{ include "towline-agent.binding" (dict "root" .root "name" $any "account" .impersonator "weight" .weight) }}
{{- end }}
{{- if and $v.impersonation.serviceAccounts (not .weight) }}
{{- $as := printf "%s-as" .impersonator }}
{{- $original := dict "root" .root "name" (printf "%s-original-user" .impersonator) "weight" "" "cluster" true }}
---
# `kubectl --as` of service accounts: KEP-5284's mode for them takes no extra attribute, and so could not say who really asks. Hence the
# older verb, for the accounts that are named here and no other.
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  {{- include "towline-agent.metadata" $original | nindent 2 }}
rules:
- apiGroups: [authentication.k8s.io]
  resources: [userextras/towline.dev/original-user]
  verbs: [impersonate]
---
{{ include "towline-agent.binding" (dict "root" .root "name" $original.name "account" .impersonator "weight" "") }}
{{- $byNamespace := dict }}
{{- range $v.impersonation.serviceAccounts }}
{{- $of := splitList "/" . }}
{{- $names := append (get $byNamespace (first $of) | default list) (last $of) }}
{{- $_ := set $byNamespace (first $of) $names }}
{{- end }}
{{- range $place, $names := $byNamespace }}
{{- $role := dict "root" $.root "name" $as "namespace" $place "weight" "" }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  {{- include "towline-agent.metadata" $role | nindent 2 }}
rules:
- apiGroups: [""]
  resources: [serviceaccounts]
  resourceNames: {{ toJson $names }}
  verbs: [impersonate]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  {{- include "towline-agent.metadata" $role | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ $as }}
subjects:
- kind: ServiceAccount
  name: {{ $.impersonator }}
  namespace: {{ $namespace }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* What of a user may be taken on: `.plain`, and extra attributes. */}}
{{- define "towline-agent.userinfo" -}}
{{- $all := append .plain "userextras/towline.dev/original-user" -}}
{{- range .root.Values.impersonation.extraKeys -}}
{{- $all = append $all (printf "userextras/%s" .) -}}
{{- end -}}
{{- toJson $all -}}
{{- end -}}

{{/* Binds the ClusterRole `.name` to `.account`, by the same name. Roles come first: who binds one must be able to see it. */}}
{{- define "towline-agent.binding" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  {{- include "towline-agent.metadata" (dict "root" .root "name" .name "weight" .weight "cluster" true) | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ .name }}
subjects:
- kind: ServiceAccount
  name: {{ .account }}
  namespace: {{ .root.Release.Namespace }}
{{- end -}}
