# get and list: table, json, yaml, jsonpath, wide, names, a missing one
# also: every-kubectl
kubectl create configmap fruit --from-literal=apple=red --from-literal=plum=blue
kubectl get configmap fruit --no-headers | awk '{print $1, $2}'
kubectl get configmap fruit -o json | python3 -c 'import json,sys; o=json.load(sys.stdin); print(o["data"], o["kind"], o["apiVersion"])'
kubectl get configmap fruit -o jsonpath='{.data.apple}{"\n"}'
kubectl get configmap fruit -o yaml | grep -A2 '^data'
kubectl get configmaps,pods -o name
kubectl get pods -o wide --no-headers | awk '{print $1, $2, $3}'
kubectl get nodes -o name
kubectl get configmap nothing; echo "exit $?"
kubectl get pods --field-selector=status.phase=Running -l app=box -o name
kubectl get --raw /version | python3 -c 'import json,sys; print(json.load(sys.stdin)["gitVersion"])'
kubectl version -o json | python3 -c 'import json,sys; print(json.load(sys.stdin)["serverVersion"]["gitVersion"])'
kubectl delete configmap fruit
