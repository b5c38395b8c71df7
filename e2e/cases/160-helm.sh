# helm: install, upgrade, history, uninstall of a small chart
mkdir -p "$SCRATCH/chart/templates"
cat > "$SCRATCH/chart/Chart.yaml" <<'YAML'
apiVersion: v2
name: small
version: 0.1.0
YAML
echo 'colour: red' > "$SCRATCH/chart/values.yaml"
cat > "$SCRATCH/chart/templates/all.yaml" <<'YAML'
apiVersion: v1
kind: ConfigMap
metadata: {name: {{ .Release.Name }}-settings}
data: {colour: {{ .Values.colour }}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: {{ .Release.Name }}-web}
spec:
  selector: {matchLabels: {app: {{ .Release.Name }}}}
  template:
    metadata: {labels: {app: {{ .Release.Name }}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: c, image: "{{ .Values.image }}", imagePullPolicy: Never, command: [sleep, "3600"]}]
YAML
helm install demo "$SCRATCH/chart" --set image="$IMAGE" --wait --timeout 60s | grep -E '^(NAME|STATUS|REVISION)'
helm upgrade demo "$SCRATCH/chart" --set image="$IMAGE" --set colour=blue --wait --timeout 60s | grep -E '^(NAME|STATUS|REVISION)'
kubectl get configmap demo-settings -o jsonpath='{.data.colour}{"\n"}'
helm history demo -o json | python3 -c 'import json,sys; print([(h["revision"], h["status"]) for h in json.load(sys.stdin)])'
helm rollback demo 1 --wait --timeout 60s
kubectl get configmap demo-settings -o jsonpath='{.data.colour}{"\n"}'
helm uninstall demo --wait
kubectl get deployment,configmap -l app=demo -o name
