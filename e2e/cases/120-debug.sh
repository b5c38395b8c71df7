# debug: an ephemeral container beside a running one
kubectl debug box --image="$IMAGE" --container=dbg --quiet -- sh -c 'echo from the debugger'
for n in $(seq 200); do kubectl get pod box -o jsonpath='{.status.ephemeralContainerStatuses[0].state}' | grep -q terminated && break; sleep 0.1; done
kubectl logs box -c dbg
