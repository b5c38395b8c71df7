# exec: input, both outputs, exit codes
echo hello | kubectl exec -i box -- cat
kubectl exec box -- sh -c 'echo out; echo err >&2; exit 7' 2>&1 | sort; echo "exit ${PIPESTATUS[0]}"
printf 'a\0b\377c' | kubectl exec -i box -- od -An -tx1
kubectl exec box -- sh -c 'seq 1 100000' | sha256sum
