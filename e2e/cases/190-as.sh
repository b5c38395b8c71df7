# kubectl --as: user, groups, uid, extra, a service account; with its rights and no others; a group without a user
# also: spdy
who() { python3 -c 'import json,sys
user = json.load(sys.stdin)["status"]["userInfo"]
extra = {k: v for k, v in user.get("extra", {}).items() if k != "towline.dev/original-user"}
print(user["username"], sorted(user["groups"]), user.get("uid"), sorted(extra.items()))'; }
kubectl auth whoami -o json --as=carol --as-group=dev --as-group=ops --as-uid=7 --as-user-extra=example.org/team=a --as-user-extra=example.org/team=b | who
kubectl auth whoami -o json --as=carol | who
kubectl auth whoami -o json --as=system:admin --as-group=system:authenticated | who
kubectl auth whoami -o json --as="system:serviceaccount:$NAMESPACE:default" | who
kubectl get pods --as=carol; echo "exit $?"
kubectl create rolebinding carol-reads --clusterrole=view --user=carol
kubectl get pods -o name --as=carol
kubectl exec box --as=carol -- true; echo "exit $?"
kubectl create rolebinding ops-edit --clusterrole=edit --group=ops
kubectl exec box --as=carol --as-group=ops -- echo as ops
kubectl delete pod nobody --as=carol; echo "exit $?"
kubectl --kubeconfig "$RESTRICTED" get pods --as=alice; echo "exit $?"
kubectl --kubeconfig "$RESTRICTED" exec box --as=alice -- true; echo "exit $?"
python3 - <<'PY'
import subprocess, urllib.error, urllib.request
proxy = subprocess.Popen(["kubectl", "proxy", "--port=0"], stdout=subprocess.PIPE, text=True)
base = "http://" + proxy.stdout.readline().split()[-1]
for headers in [{"Impersonate-Group": "dev"}, {"Impersonate-Uid": "7"}, {"Impersonate-Extra-a": "b"}]:
    try: print(urllib.request.urlopen(urllib.request.Request(base + "/api/v1/nodes", headers=headers), timeout=30).status)
    except urllib.error.HTTPError as error: print(error.code)
proxy.terminate(); proxy.wait()
PY
kubectl delete rolebinding carol-reads ops-edit
