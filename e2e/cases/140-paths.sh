# path and query reach the apiserver byte for byte
kubectl create configmap odd.name --from-literal=k=v
kubectl get --raw "/api/v1/namespaces/$NAMESPACE/configmaps/odd%2Ename" 2>&1 | head -c 60; echo
kubectl get --raw "/api/v1/namespaces/$NAMESPACE/configmaps?fieldSelector=metadata.name%3Dodd.name&limit=1" | python3 -c 'import json,sys; print([i["metadata"]["name"] for i in json.load(sys.stdin)["items"]])'
kubectl get --raw "/api/v1/namespaces/$NAMESPACE/configmaps?labelSelector=a%20in%20(b%2Cc)" | python3 -c 'import json,sys; print(len(json.load(sys.stdin)["items"]))'
kubectl get --raw "//api" 2>/dev/null | head -c 40; echo
kubectl get --raw "/api/v1/../v1/nodes" 2>&1 | head -c 60; echo
kubectl get --raw "/apis/%2e%2e/api" 2>&1 | head -c 60; echo
kubectl delete configmap odd.name
