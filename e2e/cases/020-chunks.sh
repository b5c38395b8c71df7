# 5,000 objects, listed in chunks of 500 and in one answer
kubectl get configmaps -n many --chunk-size=500 -o name | sort | sha256sum
kubectl get configmaps -n many --chunk-size=500 -o name | wc -l
kubectl get configmaps -n many --chunk-size=0 -o json | python3 -c 'import json,sys; print(len(json.load(sys.stdin)["items"]))'
kubectl get configmaps -n many --no-headers | awk '{print $1}' | sort | tail -3
