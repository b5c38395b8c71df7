# explain, api-resources, api-versions, auth can-i, auth whoami, wait, rollout status, scale, top of an absent server
kubectl explain pod.spec.containers.image
kubectl api-resources --no-headers | awk '{print $1}' | sort
kubectl api-versions | sort
kubectl auth can-i create pods
kubectl auth whoami -o json | python3 -c 'import json,sys; u=json.load(sys.stdin)["status"]["userInfo"]; print(u["username"], sorted(u["groups"]))'
kubectl wait pod/box --for=condition=Ready --timeout=30s
kubectl create deployment web --image="$IMAGE" -- sleep 3600
kubectl patch deployment web --type=json -p '[{"op":"add","path":"/spec/template/spec/terminationGracePeriodSeconds","value":0}]'
kubectl scale deployment web --replicas=2
kubectl rollout status deployment web --timeout=60s | tail -1
kubectl get deployment web -o jsonpath='{.status.readyReplicas}{"\n"}'
kubectl rollout restart deployment web
kubectl rollout status deployment web --timeout=60s | tail -1
kubectl delete deployment web --wait
kubectl wait pod/nothing --for=condition=Ready --timeout=1s; echo "exit $?"
kubectl top pods >/dev/null 2>&1; echo "top: exit $?"
