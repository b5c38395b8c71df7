# an object of 1.4 MB goes up and comes down whole, and one that is too large is refused
python3 - > "$SCRATCH/large.json" <<'PY'
import json
data = {f"k{n}": "x" * 70_000 for n in range(14)}
print(json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "large"}, "data": data}))
PY
kubectl create -f "$SCRATCH/large.json"
kubectl get configmap large -o json | python3 -c 'import json,sys,hashlib; d=json.load(sys.stdin)["data"]; print(len(d), hashlib.sha256("".join(sorted(d.values())).encode()).hexdigest())'
kubectl delete configmap large
# A custom resource has no limit of its own below etcd's 1.5 MB.
python3 - > "$SCRATCH/blob.json" <<'PY'
import json
print(json.dumps({"apiVersion": "e2e.towline.test/v1", "kind": "Blob", "metadata": {"name": "blob"}, "data": "b" * 1_400_000}))
PY
kubectl create -f "$SCRATCH/blob.json"
kubectl get blobs.e2e.towline.test blob -o jsonpath='{.data}' | sha256sum
kubectl delete blobs.e2e.towline.test blob
python3 -c 'import json; print(json.dumps({"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"toolarge"},"data":{"k":"x"*3_200_000}}))' > "$SCRATCH/toolarge.json"
kubectl create -f "$SCRATCH/toolarge.json" 2>/dev/null; echo "exit $?"
