# exec: exit codes, both outputs, stdin that ends, stdin that was never open, a command that is not there
# also: spdy, every-kubectl
kubectl exec box -- sh -c 'exit 0'; echo "exit $?"
kubectl exec box -- sh -c 'exit 3'; echo "exit $?"
kubectl exec box -- sh -c 'kill -9 $$'; echo "exit $?"
kubectl exec box -- sh -c 'echo out; echo err >&2' 2>/dev/null
kubectl exec box -- sh -c 'echo out; echo err >&2' 2>&1 >/dev/null
echo hello | kubectl exec -i box -- cat
printf 'a\0b\377c' | kubectl exec -i box -- od -An -tx1
kubectl exec -i box -- sh -c 'cat; echo end' </dev/null
kubectl exec box -- sh -c 'cat; echo end' <&-
kubectl exec box -- nothing-there >/dev/null 2>&1; echo "exit $?"
kubectl exec nothing -- true; echo "exit $?"
kubectl exec box -- sh -c 'seq 1 100000' | sha256sum
kubectl exec -i box -- sh -c 'head -c 5; exit 7' <<< 'a long line that nobody reads to its end'; echo " exit $?"
