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
    # It ends when it is asked to, and not with its last words: what is written in that moment may be lost by kubelet.
    command: [sh, -c, 'while read line; do [ "\$line" = end ] && exit 0; echo "got \$line"; done']
YAML
kubectl wait pod/echoer --for=condition=Ready --timeout=60s
python3 - <<'PY'
import subprocess
attach = subprocess.Popen(["kubectl", "attach", "-i", "-q", "echoer"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
for line in ("one", "two", "bye"):
    attach.stdin.write(line + "\n"); attach.stdin.flush()
    print(attach.stdout.readline().strip())
attach.stdin.write("end\n"); attach.stdin.flush()
print("exit", attach.wait(20))
PY
kubectl wait pod/echoer --for=jsonpath='{.status.phase}'=Succeeded --timeout=30s
kubectl delete pod echoer --now >/dev/null
