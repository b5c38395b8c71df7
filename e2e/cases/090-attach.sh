# attach: what the container writes, what it reads, and its end
# also: spdy
kubectl create -f - <<YAML
apiVersion: v1
kind: Pod
metadata: {name: echoer}
spec:
  restartPolicy: Never
  containers:
  - name: c
    image: $IMAGE
    imagePullPolicy: Never
    stdin: true
    command: [sh, -c, 'while read line; do echo "got \$line"; [ "\$line" = bye ] && exit 0; done']
YAML
kubectl wait pod/echoer --for=condition=Ready --timeout=60s
python3 - <<'PY'
import subprocess
attach = subprocess.Popen(["kubectl", "attach", "-i", "-q", "echoer"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
for line in ("one", "two", "bye"):
    attach.stdin.write(line + "\n"); attach.stdin.flush()
    print(attach.stdout.readline().strip())
print("exit", attach.wait(20))
PY
kubectl wait pod/echoer --for=jsonpath='{.status.phase}'=Succeeded --timeout=30s
kubectl delete pod echoer --now >/dev/null
