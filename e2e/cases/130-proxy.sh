# kubectl proxy: plain HTTP on loopback, a watch through it, an unknown path
python3 - <<'PY'
import json, os, subprocess, urllib.error, urllib.request
proxy = subprocess.Popen(["kubectl", "proxy", "--port=0"], stdout=subprocess.PIPE, text=True)
base = "http://" + proxy.stdout.readline().split()[-1]
def get(path):
    try:
        with urllib.request.urlopen(base + path, timeout=30) as answer: return answer.status, answer.read()
    except urllib.error.HTTPError as error: return error.code, error.read()
print(get("/healthz"))
print(get("/api/v1/namespaces/" + os.environ["NAMESPACE"] + "/pods/box")[0])
print(get("/nothing/here")[0])
status, body = get("/api/v1/namespaces/none/pods/none")
print(status, json.loads(body)["reason"])
proxy.terminate(); proxy.wait()
PY
