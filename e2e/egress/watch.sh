# watch: events as they happen
kubectl create configmap seen
python3 - <<'PY'
import subprocess
watch = subprocess.Popen(["kubectl", "get", "configmap", "seen", "--watch", "--output-watch-events", "--no-headers"],
                         stdout=subprocess.PIPE, text=True)
print(watch.stdout.readline().split()[:2])
for n in (1, 2):
    subprocess.run(["kubectl", "label", "configmap", "seen", f"n={n}", "--overwrite"], check=True, stdout=subprocess.DEVNULL)
    print(watch.stdout.readline().split()[:2])
subprocess.run(["kubectl", "delete", "configmap", "seen"], check=True)
print(watch.stdout.readline().split()[:2])
watch.terminate()
PY
