# apply, patch in three ways, server-side apply with a conflict, delete, dry-run, diff
cat > "$SCRATCH/a.yaml" <<'YAML'
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {a: "1", b: "2"}
YAML
kubectl apply -f "$SCRATCH/a.yaml"
kubectl apply -f "$SCRATCH/a.yaml"
sed 's/"2"/"3"/' "$SCRATCH/a.yaml" > "$SCRATCH/b.yaml"
kubectl diff -f "$SCRATCH/b.yaml" | grep '^[+-]  b'
kubectl apply -f "$SCRATCH/b.yaml" --dry-run=server
kubectl apply -f - < "$SCRATCH/b.yaml"
kubectl patch configmap settings --type=merge -p '{"data":{"c":"4"}}'
kubectl patch configmap settings --type=json -p '[{"op":"remove","path":"/data/a"}]'
kubectl patch configmap settings --type=strategic -p '{"metadata":{"labels":{"x":"y"}}}'
kubectl get configmap settings -o jsonpath='{.data}{.metadata.labels}{"\n"}'
kubectl apply --server-side --field-manager=one -f - <<'YAML'
apiVersion: v1
kind: ConfigMap
metadata: {name: owned}
data: {k: one}
YAML
kubectl apply --server-side --field-manager=two -f - 2>&1 <<'YAML' | grep -c 'conflict with "one"'
apiVersion: v1
kind: ConfigMap
metadata: {name: owned}
data: {k: two}
YAML
kubectl apply --server-side --field-manager=two --force-conflicts -f - <<'YAML'
apiVersion: v1
kind: ConfigMap
metadata: {name: owned}
data: {k: two}
YAML
kubectl get configmap owned -o jsonpath='{.data.k}{"\n"}'
kubectl replace -f - <<'YAML'
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {z: "9"}
YAML
kubectl delete configmap settings owned
kubectl delete configmap settings; echo "exit $?"
