# logs: whole, tail, since, follow to the end, previous, of a missing container
# also: every-kubectl
kubectl run talker --image="$IMAGE" --restart=Never --command -- sh -c 'for n in 1 2 3 4 5; do echo line $n; done'
kubectl wait pod/talker --for=jsonpath='{.status.phase}'=Succeeded --timeout=60s
kubectl logs talker
kubectl logs talker --tail=2
kubectl logs talker --since=1h | wc -l
kubectl logs talker -c nothing; echo "exit $?"
kubectl delete pod talker --now >/dev/null
kubectl run slow --image="$IMAGE" --restart=Never --command -- sh -c 'for n in 1 2 3; do echo slow $n; sleep 0.3; done'
kubectl wait pod/slow --for=jsonpath='{.status.phase}'=Running --timeout=60s >/dev/null 2>&1
kubectl logs -f slow
kubectl delete pod slow --now >/dev/null
# What the first run leaves must outlive it, so that the second stays: of a third, the first one's log would be gone. On a busy machine
# kubelet has the log of neither for a moment after the restart, and now and then loses it for good, directly too: then once more.
overrides='{"spec":{"volumes":[{"name":"kept","emptyDir":{}}],"containers":[{"name":"again","image":"'"$IMAGE"'","command":["sh","-c","if [ -e /kept/x ]; then sleep 600; fi; echo first; touch /kept/x; exit 1"],"volumeMounts":[{"name":"kept","mountPath":"/kept"}]}]}}'
for attempt in 1 2 3; do
  kubectl run again --image="$IMAGE" --restart=OnFailure --overrides="$overrides" >/dev/null
  for n in $(seq 200); do [ "$(kubectl get pod again -o jsonpath='{.status.containerStatuses[0].restartCount}')" = 1 ] && break; sleep 0.1; done
  for n in $(seq 50); do previous=$(kubectl logs again --previous 2>&1); case "$previous" in unable*|failed*) sleep 0.1 ;; *) break 2 ;; esac; done
  kubectl delete pod again --now >/dev/null
done
echo "$previous"
kubectl delete pod again --now --ignore-not-found >/dev/null
