# get: a table, json, a large list, one that is not there
kubectl get pod box --no-headers | awk '{print $1, $2, $3}'
kubectl get pod box -o jsonpath='{.metadata.name} {.status.phase}{"\n"}'
kubectl get --raw /openapi/v2 | python3 -c 'import json,sys; print(len(json.load(sys.stdin)["definitions"]) > 500)'
kubectl get pod nothing; echo "exit $?"
