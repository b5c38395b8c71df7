# apply: made, unchanged, changed, seen
cat > "$SCRATCH/a.yaml" <<'YAML'
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {a: "1", b: "2"}
YAML
kubectl apply -f "$SCRATCH/a.yaml"
kubectl apply -f "$SCRATCH/a.yaml"
sed 's/"2"/"3"/' "$SCRATCH/a.yaml" | kubectl apply -f -
kubectl get configmap settings -o jsonpath='{.data}{"\n"}'
kubectl delete configmap settings
